"""The mean extinction curve of the dust: a map of stars behind one kind of dust says so, weights, what adds up, files."""

import json

import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from numpy.testing import assert_allclose

from tests.analysis.dust_map.conftest import catalogue_rows, fixed
from tests.command_line import refused
from xpbayes.analysis.dust_map.build import build_dust_map
from xpbayes.analysis.dust_map.curve_map import MOMENTS, CurveMap, curve_from_above, curve_means, ratio
from xpbayes.analysis.dust_map.selection import MeasuredCurve, Tally, open_for_map, select
from xpbayes.config import DustMapConfig
from xpbayes.models.extinction import ReddeningLaw
from xpbayes.runs.dust_map import dust_map

RNG = np.random.default_rng(0)
LAW = ReddeningLaw((-2.0, 0.0, 2.0), (2.5, 3.1, 3.7))
CONFIG = DustMapConfig(
    profile_bins=8, profile_reach=4.0, sky_edges=(0.0, 1.0, 2.0, 4.0), curve=True,
    sky_max_parallax_error=0.33, nsides=(64, 32),
)  # fmt: skip
CENTRE = SkyCoord(l=100 * u.deg, b=0 * u.deg, frame="galactic")


def observed(e, xi, sigma_e, sigma_along, rho, rng):
    """What a catalogue says of stars whose fluxes measure E and E xi with such errors, xi having its prior N(0, 1).

    Returns:
        mode of E and xi, variances and covariance, by Gaussian algebra about the peak of the likelihood.
    """
    n = len(e)
    noise = rng.standard_normal((2, n))
    e_hat = e + sigma_e * noise[0]
    along_hat = e * xi + sigma_along * (rho * noise[0] + np.sqrt(1 - rho**2) * noise[1])
    inverse = np.linalg.inv([[sigma_e**2, rho * sigma_e * sigma_along], [rho * sigma_e * sigma_along, sigma_along**2]])
    at_e, at_xi = np.maximum(e_hat, sigma_e), np.zeros(n)
    for _ in range(200):  # Newton on -ln p(E, xi) = chi2 / 2 - ln E + xi^2 / 2
        d = np.stack([at_e - e_hat, at_e * at_xi - along_hat])
        jacobian = np.array([[np.ones(n), np.zeros(n)], [at_xi, at_e]])  # of (E, E xi) by (E, xi)
        slope = inverse @ d
        gradient = np.einsum("ian,in->an", jacobian, slope) + [-1 / at_e, at_xi]
        hessian = np.einsum("ian,ij,jbn->nab", jacobian, inverse, jacobian)
        hessian[:, 0, 0] += at_e**-2
        hessian[:, 1, 1] += 1.0
        full = hessian.copy()
        full[:, 0, 1] += slope[1]
        full[:, 1, 0] += slope[1]
        step = np.linalg.solve(hessian, gradient.T[..., None])[..., 0]
        at_e, at_xi = np.maximum(at_e - 0.3 * step[:, 0], 0.5 * at_e), at_xi - 0.3 * step[:, 1]
    return at_e, at_xi, np.linalg.inv(full)


def write(path, distance, e, xi, *, sigma_e=0.03, sigma_along=0.15, rho=-0.3, law=LAW, rng=None):
    """A catalogue of stars within 3 deg, of such dust."""
    rng = rng or np.random.default_rng(1)
    n = len(e)
    at_e, at_xi, covariance = observed(e, xi, sigma_e, sigma_along, rho, rng)
    longitude, latitude = 100 + rng.uniform(-3, 3, n), rng.uniform(-3, 3, n)
    plx = 1 / distance
    sigma = np.sqrt(covariance[:, 0, 0])
    rows = catalogue_rows(longitude, latitude, at_e, plx, sigma, 0.002 * plx)
    triangle = np.zeros((n, 15))
    triangle[:, 12], triangle[:, 14] = sigma**2, (0.002 * plx) ** 2
    xi_cov = np.zeros((n, 5))
    xi_cov[:, 3] = covariance[:, 0, 1]
    more = {
        "laplace_cov_triu": fixed(triangle),
        "xi": pa.array(at_xi.astype(np.float32)),
        "xi_err": pa.array(np.sqrt(covariance[:, 1, 1]).astype(np.float32)),
        "xi_cov": fixed(xi_cov),
    }
    for name, values in more.items():
        rows = rows.append_column(name, values)
    about = {"kind": "catalogue", "version": 1, "labels": ["teff", "feh", "logg"]}
    about["model"] = {"curve_varies": True, "reddening_law": law and {"xi": law.xi, "r_v": law.at}}
    pq.write_table(rows.replace_schema_metadata({"xpbayes": json.dumps(about)}), path)
    return path


@pytest.fixture(scope="module")
def one_law(tmp_path_factory):
    """All stars behind dust of xi = 0.8, R(V) = 3.34, E = 0.3 mag/kpc x distance."""
    distance = 4.0 * RNG.random(8000) ** 0.5
    path = tmp_path_factory.mktemp("curve") / "c.parquet"
    return write(path, distance, 0.3 * distance, np.full(8000, 0.8))


@pytest.fixture(scope="module")
def maps(one_law):
    return build_dust_map(one_law, CONFIG)


def independent(curve_map):
    """(voxel,) first flat places of the voxels: a coarse one repeats its value."""
    parent = curve_map.pixel[:, None] // (curve_map.finest // np.maximum(curve_map.nside, 1).astype(int)) ** 2
    key = (parent * 4096 + curve_map.nside) * 64 + np.arange(curve_map.nside.shape[1])
    _, first = np.unique(key, return_index=True)
    return first[curve_map.nside.reshape(-1)[first] > 0]


def test_dust_of_one_law_has_that_law_everywhere(maps):
    """Not pulled to the prior's 0, though single stars are; errors as large as the scatter."""
    for made in (maps.curve.sky, maps.curve.profile):
        first = independent(made)
        xi, sigma = (getattr(made, n).reshape(-1)[first].astype(float) for n in ("xi", "xi_sigma"))
        pull = (xi - 0.8) / sigma
        assert len(first) > 30 and abs(pull.mean()) < 4 / np.sqrt(len(first)) and abs(pull.std() - 1) < 0.25
        weighted = np.average(xi, weights=sigma**-2)
        assert abs(weighted - 0.8) < 0.04
        shown = np.isfinite(made.r_v)
        assert_allclose(made.r_v[shown], 3.1 + 0.3 * made.xi[shown], rtol=1e-5)
        assert_allclose(made.r_v_sigma[shown], 0.3 * made.xi_sigma[shown], rtol=1e-5)


def test_catalogued_xi_is_pulled_where_the_map_is_not(one_law):
    """What the weights undo: the plain mean of xi."""
    xi = pq.read_table(one_law)["xi"].to_numpy()
    assert 0.6 < xi.mean() < 0.76


def stars(amount, along, weight, distance=0.5):
    one = np.ones(len(amount))
    return MeasuredCurve(
        np.zeros(len(one), np.int64), amount, one / distance, 0.01 * one, 0.01 * one, 0 * one, 0.01 * one, amount,
        along, weight,
    )  # fmt: skip


def test_dust_adds_up_as_e_and_e_xi():
    """A voxel half behind a cloud of another kind has the dust-weighted mean of xi, not that of the stars."""
    e = np.repeat([0.1, 1.0], 40)
    xi = np.repeat([2.0, -1.0], 40)
    found = curve_means(stars(e, e * xi, np.ones(80)), np.zeros(80, int), 1, np.array([0.0, 1.0]))
    assert_allclose(ratio(*(getattr(found, name) for name in MOMENTS))[0], (0.1 * 2 - 1) / 1.1)


def test_stars_that_know_only_the_prior_have_no_say():
    e, xi = RNG.uniform(0.3, 1, 50), 0.5 + 0.1 * RNG.standard_normal(50)
    plain = curve_means(stars(e, e * xi, np.ones(50)), np.zeros(50, int), 1, np.array([0.0, 1.0]))
    more = [np.append(v, np.full(30, w)) for v, w in ((e, 3.0), (e * xi, -9.0), (np.ones(50), 0.0))]
    both = curve_means(stars(*more), np.zeros(80, int), 1, np.array([0.0, 1.0]))
    for name in ("extinction", "along", "var_along", "stars"):
        assert_allclose(getattr(both, name), getattr(plain, name))


def test_without_dust_a_star_weighs_nothing(tmp_path):
    n = 200
    write(tmp_path / "c.parquet", np.ones(n), np.full(n, 0.5), np.zeros(n))
    rows = pq.read_table(tmp_path / "c.parquet")
    i = rows.schema.get_field_index("xi_err")
    rows = rows.set_column(i, "xi_err", pa.array(np.ones(n, np.float32)))
    pq.write_table(rows, tmp_path / "c.parquet")
    (found,) = select(open_for_map(tmp_path / "c.parquet", curve=True), CONFIG, Tally())
    assert len(found) == n and not found.weight.any()


@pytest.mark.parametrize("rho", [-0.6, 0.5])
def test_the_peak_of_the_likelihood_is_recovered(rho, tmp_path):
    """Mean E and E xi of many stars are the truth whatever the prior of xi, with errors of both going together."""
    n = 4000
    write(tmp_path / "c.parquet", np.ones(n), np.full(n, 0.6), np.full(n, 1.5), sigma_along=0.2, rho=rho)
    (found,) = select(open_for_map(tmp_path / "c.parquet", curve=True), CONFIG, Tally())
    assert_allclose(np.average(found.amount), 0.6, atol=4 * 0.03 / np.sqrt(n) + 0.003)
    assert_allclose(np.average(found.along), 0.9, atol=4 * 0.2 / np.sqrt(n) + 0.015)
    assert_allclose(np.std(found.along), 0.2, rtol=0.1)


def test_dust_behind_dust(tmp_path):
    """xi of the second kilopcs' dust alone, from stars that see both."""
    n = 12_000
    distance = 4.0 * RNG.random(n) ** 0.5
    near, far = np.full(n, 0.6), np.where(distance > 2.0, 0.8, 0.0)
    e = near + far
    write(tmp_path / "c.parquet", distance, e, (near * -1.0 + far * 1.0) / e)
    config = CONFIG.model_copy(update={"sky_edges": (0.0, 1.5, 2.0, 4.0)})
    sky = build_dust_map(tmp_path / "c.parquet", config).curve.sky
    for k, expected in ((0, -1.0), (2, 1.0)):
        values, sigma = sky.dust_xi[:, k], sky.dust_xi_sigma[:, k]
        known = np.isfinite(values)
        assert known.sum() > 20
        assert abs(np.average(values[known], weights=sigma[known] ** -2.0) - expected) < 0.1
    # between 1.5 and 2 kpc there is no dust: nothing is said of its curve where nothing is known
    assert np.isnan(sky.dust_xi[:, 1]).mean() > 0.8 and not (sky.dust_xi_sigma > 0.7).any()


def test_coarser_pixels_are_used_where_xi_is_uncertain(one_law, maps):
    strict = build_dust_map(one_law, CONFIG.model_copy(update={"max_curve_error": 0.1})).curve.sky
    here = maps.curve.sky.rows_of(strict.pixel)
    assert (here >= 0).all() and (strict.nside <= maps.curve.sky.nside[here]).all()
    assert (strict.nside < maps.curve.sky.nside[here]).any()


def test_what_the_products_say_agrees(one_law, maps, tmp_path):
    out = tmp_path / "m"
    dust_map(one_law, out, CONFIG)
    names = {p.name for p in out.iterdir()}
    assert {f"curve_{n}" for n in ("sky.fits", "profile.fits", "birds_eye.fits", "sky.png", "birds_eye.pdf")} < names
    back = CurveMap.read(out / "curve_profile.fits")
    for name in CurveMap.QUANTITIES:
        assert_allclose(getattr(back, name), getattr(maps.curve.profile, name))
    assert back.law == LAW
    with fits.open(out / "curve_profile.fits") as units:
        assert units["XI_EXTINCTION"].columns["BIN_00"].unit == "mag" and units["R_V"].header["NSIDE"] == 64
    r_v, r_v_sigma, xi, sigma = back.curve(CENTRE, [0.0, 0.2, 2.0, 9.0] * u.kpc)
    assert_allclose(xi[:3], 0.8, atol=5 * 0.3)
    assert (abs(r_v[:3] - 3.34) < 5 * r_v_sigma[:3]).all() and np.isnan([r_v[3], sigma[3]]).all()
    assert_allclose(r_v_sigma[:3], 0.3 * sigma[:3])
    about = json.loads((out / "dust_map.json").read_text())
    assert abs(about["coverage"]["curve_sky"][2]["median_r_v"] - 3.34) < 0.1


def test_from_above_one_law_is_that_law(maps):
    above = curve_from_above(maps.curve.profile, 0.05, 0.1)
    shown = np.isfinite(above.xi)
    assert shown.sum() > 3
    pull = (above.xi[shown] - 0.8) / above.xi_sigma[shown]
    assert abs(pull.mean()) < 2.5 and pull.std() < 2
    assert_allclose(above.r_v[shown], 3.1 + 0.3 * above.xi[shown])


def test_from_above_is_the_dust_weighted_mean():
    """Exact values of a map of the whole sky: xi = 1 within 1 kpc, -1 beyond, dE/dr even."""
    edges = np.linspace(0.0, 2.0, 21)
    centre, n, nside = 0.5 * (edges[1:] + edges[:-1]), 12 * 16, 4
    e = np.tile(0.5 * centre, (n, 1))
    along = 0.5 * np.where(centre < 1.0, centre, 2.0 - centre) + 0 * e
    one = np.ones_like(e)
    values = dict.fromkeys(CurveMap.QUANTITIES, 1e-06 * one) | {
        "extinction": e, "along": along, "distance": centre + 0 * e, "nside": (nside * one).astype(np.int16), "cov": 0 * one,
    }  # fmt: skip
    made = CurveMap(edges=edges, finest=nside, pixel=np.arange(n), law=LAW, about={}, **values)
    above = curve_from_above(made, 0.1, 0.1)
    x, y = np.meshgrid(above.axis, above.axis)
    r = np.hypot(x, y)
    assert_allclose(above.xi[r < 0.85], 1.0, rtol=1e-6)
    assert_allclose(above.xi[(r > 1.1) & (r < 1.8)], -1.0, rtol=1e-6)
    assert np.isnan(above.xi[r > 2.1]).all()


class TestBadInput:
    def test_a_catalogue_without_xi(self, patch_catalogue, tmp_path):
        said = refused("dustmap", patch_catalogue, "--curve", "--out", tmp_path / "m", "--quiet")
        assert "has no column 'xi'" in said and "--curve-variation" in said and not (tmp_path / "m").exists()

    def test_a_catalogue_that_does_not_say_which_law(self, tmp_path):
        write(tmp_path / "c.parquet", np.ones(50), np.ones(50), np.zeros(50), law=None)
        assert "which R(V)" in refused("dustmap", tmp_path / "c.parquet", "--curve", "--out", tmp_path / "m", "--quiet")
