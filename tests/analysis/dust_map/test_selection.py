import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy_healpix import healpix_to_lonlat
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize

from tests.analysis.dust_map.conftest import catalogue_rows, measured
from xpbayes.analysis.dust_map.selection import SkyPieces, Tally, galactic_pixel, open_for_map, select, without_prior
from xpbayes.config import DustMapConfig
from xpbayes.errors import InputError


def selected(path, config):
    tally = Tally()
    parts = list(select(open_for_map(path), config, tally))
    return parts, tally


def test_each_cut_takes_its_stars_and_every_star_is_accounted_for(tmp_path):
    n = 8
    e, sigma_e = np.full(n, 0.5), np.full(n, 0.02)
    plx, sigma_plx = np.full(n, 1.0), np.full(n, 0.05)
    e[0], sigma_e[1], sigma_plx[2] = 10.5, 0.041, 0.34
    rows = catalogue_rows(np.full(n, 10.0), np.full(n, 5.0), e, plx, sigma_e, sigma_plx)
    replaced = {
        "chi2_opt": pa.array([60, 60, 60, 310, 60, 60, 60, 60], pa.float32()),
        "status": pa.array(["ok"] * 4 + ["no flux"] + ["ok"] * 3).dictionary_encode(),
        "dec": pa.array([0.0, 0, 0, 0, 0, None, 0, 0]),
    }
    for name, values in replaced.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, values)
    pq.write_table(rows, tmp_path / "c.parquet")
    parts, tally = selected(tmp_path / "c.parquet", DustMapConfig())
    assert vars(tally) == {
        "rows": 8,
        "unsolved": 1,
        "no_position": 1,
        "poor_fit": 1,
        "extinction": 1,
        "extinction_error": 1,
        "parallax_error": 1,
        "kept": 2,
    }
    assert sum(len(p) for p in parts) == 2
    assert "1 stars with a poor fit" in " ".join(tally.sentences())


def test_unsolved_stars_may_have_null_lists(tmp_path):
    rows = catalogue_rows(np.zeros(3), np.zeros(3), np.full(3, 0.5), np.ones(3), 0.02, 0.05)
    kind = rows.schema.field("stellar_params_est").type
    values = rows["stellar_params_est"].to_pylist()
    rows = rows.set_column(3, "stellar_params_est", pa.array([values[0], None, [None] * 5], kind))
    pq.write_table(rows, tmp_path / "c.parquet")
    _, tally = selected(tmp_path / "c.parquet", DustMapConfig())
    assert (tally.kept, tally.unsolved) == (1, 2)


def test_pixels_are_galactic_and_nested():
    """Pixel centres, sent through ICRS, come back."""
    pixel = np.random.default_rng(1).integers(12 * 64**2, size=200)
    lon, lat = healpix_to_lonlat(pixel, 64, order="nested")
    rows = catalogue_rows(lon.to_value(u.deg), lat.to_value(u.deg), np.ones(200), np.ones(200), 0.01, 0.01)
    assert_array_equal(galactic_pixel(rows["ra"].to_numpy(), rows["dec"].to_numpy(), 64), pixel)


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.7])
def test_without_prior_undoes_what_the_prior_does(rho):
    """Against the maximum of likelihood x E x parallax, found numerically."""
    peak = np.array([[0.3, 1.0], [0.02, 0.5], [-0.01, 2.0]])
    sigma = np.array([[0.03, 0.05], [0.02, 0.04], [0.03, 0.3]])
    mode = []
    for centre, (s, t) in zip(peak, sigma, strict=True):
        inverse = np.linalg.inv([[s * s, rho * s * t], [rho * s * t, t * t]])

        def lost(x, centre=centre, inverse=inverse):
            d = np.exp(x) - centre
            return 0.5 * d @ inverse @ d - x.sum()

        mode.append(np.exp(minimize(lost, np.log([0.1, 1.0]), method="Nelder-Mead", tol=1e-12).x))
    mode = np.array(mode)
    assert (mode[:, 0] > peak[:, 0]).all()
    back = without_prior(measured(mode[:, 0], mode[:, 1], sigma[:, 0], sigma[:, 1], rho))
    assert_allclose(np.stack([back.extinction, back.parallax], 1), peak, atol=2e-5)


def test_without_prior_goes_no_lower_than_three_sigma():
    back = without_prior(measured([1e-4], [1.0], 0.03, 0.05))
    assert_allclose(back.extinction, -0.09)


def test_spilling_to_disk_changes_nothing(tmp_path):
    rng = np.random.default_rng(2)
    pixel = rng.integers(12 * 256**2, size=5000)
    stars = measured(rng.random(5000), rng.random(5000) + 0.1, 0.02, 0.01, pixel=pixel)
    collected = []
    for memory in (1 << 30, 20_000):
        with SkyPieces(256, 64, tmp_path, memory) as pieces:
            for part in np.array_split(np.arange(5000), 13):
                pieces.add(stars.take(part))
            assert bool(list(tmp_path.iterdir())) == (memory == 20_000)
            collected.append(list(pieces))
        assert not list(tmp_path.iterdir())
    for (first_a, a), (first_b, b) in zip(*collected, strict=True):
        assert first_a == first_b and ((a.pixel - first_a) < 1024).all() and (a.pixel >= first_a).all()
        assert_array_equal(a.extinction, b.extinction)
    assert sum(len(a) for _, a in collected[0]) == 5000


def test_a_wrong_column_is_one_sentence(tmp_path):
    rows = catalogue_rows(np.zeros(3), np.zeros(3), np.ones(3), np.ones(3), 0.02, 0.05)
    names = ["chi2_opt_" if name == "chi2_opt" else name for name in rows.column_names]
    pq.write_table(rows.rename_columns(names).replace_schema_metadata(rows.schema.metadata), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"no column 'chi2_opt' \(did you mean 'chi2_opt_'\?\)"):
        open_for_map(tmp_path / "c.parquet")
    text = rows.set_column(4, "stellar_params_cov_triu", pa.array([1.0, 2.0, 3.0]))
    pq.write_table(text, tmp_path / "d.parquet")
    with pytest.raises(InputError, match="'stellar_params_cov_triu' is double"):
        open_for_map(tmp_path / "d.parquet")


def test_what_is_no_catalogue_is_refused(tmp_path, star_file):
    with pytest.raises(InputError, match="star table, not a catalogue"):
        open_for_map(star_file)
    with pytest.raises(InputError, match="no such file"):
        open_for_map(tmp_path / "nothing.parquet")


def test_settings_that_do_not_fit_are_refused():
    for bad in ({"nsides": (64, 256)}, {"nsides": (100,)}, {"sky_edges": (1.0, 1.0)}, {"min_stars": 1}, {"cuts": 3}):
        with pytest.raises(ValueError):
            DustMapConfig(**bad)
