import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.analysis.rows import halves, make_rows
from xpbayes.analysis.figures.clusters import Cluster, ClusterGatherer, draw_clusters, offsets, read_clusters
from xpbayes.errors import InputError

RNG = np.random.default_rng(0)
N = 600
HERE = Cluster("here", 200.0, -47.0, -3.0, -6.0, 0.2, 0.5, 0.05, 1.0)


def test_offsets_are_those_of_astropy():
    import astropy.units as u
    from astropy.coordinates import SkyCoord

    ra, dec = HERE.ra + RNG.uniform(-1, 1, 50), HERE.dec + RNG.uniform(-1, 1, 50)
    x, y = offsets(ra, dec, HERE)
    stars, centre = SkyCoord(ra * u.deg, dec * u.deg), SkyCoord(HERE.ra * u.deg, HERE.dec * u.deg)
    separation, angle = centre.separation(stars).rad, centre.position_angle(stars).rad
    assert_allclose(x, np.degrees(np.tan(separation)) * np.sin(angle), atol=1e-9)
    assert_allclose(y, np.degrees(np.tan(separation)) * np.cos(angle), atol=1e-9)
    assert np.isnan(offsets(np.array([HERE.ra + 180]), np.array([47.0]), HERE)[0]).all()


@pytest.fixture
def rows():
    joined = {
        "pmra": RNG.normal(-3, 0.8, N), "pmdec": RNG.normal(-6, 0.8, N), "parallax": RNG.normal(0.2, 0.1, N),
        "parallax_error": RNG.uniform(0.01, 0.2, N),
    }  # fmt: skip
    estimate = np.tile([5.0, 0.0, 3.0, 0.2, 0.2], (N, 1))
    estimate[:, 4] += RNG.normal(0, 0.03, N)
    return make_rows(
        N, joined, RNG.random(N) < 0.9, stellar_params_est=estimate,
        ra=HERE.ra + RNG.normal(0, 0.4, N), dec=HERE.dec + RNG.normal(0, 0.3, N),
        quality_flags=RNG.choice([0, 8], N, p=[0.8, 0.2]).astype(np.uint8),
        feh_confidence=RNG.choice([0.2, 0.9, np.nan], N),
    )  # fmt: skip


def test_members_pass_every_cut(rows):
    gatherer = ClusterGatherer([HERE])
    for part in halves(rows):
        gatherer.add(part)
    (members,) = gatherer.result()
    x, y = offsets(rows["ra"], rows["dec"], HERE)
    sky = rows.solved & (np.hypot(x, y) < 0.5) & (np.hypot(x, y) >= 0.05)
    motion = sky & (np.hypot(rows.joined["pmra"] + 3, rows.joined["pmdec"] + 6) < 1)
    reliable = motion & (rows["quality_flags"] < 8) & ~(rows["feh_confidence"] < 0.5)
    shown = reliable & (rows.joined["parallax_error"] > 0.04)
    assert (members.n_sky, members.n_motion, members.n_reliable) == (sky.sum(), motion.sum(), reliable.sum())
    assert_allclose(members.columns["measured"], rows.joined["parallax"][shown])
    assert_allclose(members.columns["inferred"], rows["stellar_params_est"][shown, 4])
    assert len(draw_clusters([members]).axes) == 3


def test_a_table_of_clusters(tmp_path):
    path = tmp_path / "clusters.csv"
    head = "name,ra,dec,pmra,pmdec,parallax,radius,inner_radius,pm_radius\n"
    path.write_text(head + "here,200,-47,-3,-6,0.2,0.5,0.05,1\nthere,1,2,3,4,0.3,1,,2\n")
    here, there = read_clusters(path)
    assert here == HERE and there.inner_radius == 0.0
    path.write_text(head + "here,200,-47,-3,-6,0,0.5,0.05,1\n")
    with pytest.raises(InputError, match=r"1 of 1 clusters \(first: here\)"):
        read_clusters(path)
    path.write_text("name,ra,dec\nhere,1,2\n")
    with pytest.raises(InputError, match="pmra"):
        read_clusters(path)
