"""Reddening: both uncertainties enter, the user's own columns, and one sentence where a map is absent."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from xpbayes.archive.reddening import bayestar19, monte_carlo_reddening, read_reddening, sfd
from xpbayes.errors import InputError

IDS = np.arange(1, 10_001) * 34359738368


def linear_dust(scatter: float = 0.0):
    """E grows by 0.1 mag per kpc in every one of 200 samples, give or take; nothing south of -30 degrees."""
    factor = 1 + scatter * np.random.default_rng(1).standard_normal(200)

    def query(ra, dec, distance):
        return np.where(dec[:, None] < -30, np.nan, 1e-4 * distance[:, None] * factor)

    return query


def test_an_exact_parallax_in_an_exact_map_gives_its_value():
    out = monte_carlo_reddening(
        linear_dust(), IDS[:2], np.zeros(2), np.zeros(2), np.array([1.0, 0.5]), np.full(2, 1e-9)
    )
    assert_allclose(out[0], [0.1, 0.2], rtol=1e-6)
    assert (out[1] < 1e-6).all()


def test_map_and_parallax_errors_add_up():
    n = 4000
    args = (IDS[:n], np.zeros(n), np.zeros(n), np.full(n, 1.0))
    _, both = monte_carlo_reddening(linear_dust(0.05), *args, np.full(n, 0.05))
    _, one = monte_carlo_reddening(linear_dust(0.0), *args, np.full(n, 0.05))
    assert_allclose(np.sqrt((one**2).mean()), 0.1 * 0.05, rtol=0.05)  # E ~ 1/parallax: relative errors are equal
    assert_allclose(np.sqrt((both**2).mean()), 0.1 * np.hypot(0.05, 0.05), rtol=0.05)


def test_a_star_outside_the_map_or_without_parallax_has_no_estimate():
    out = monte_carlo_reddening(
        linear_dust(), IDS[:3], np.zeros(3), np.array([0.0, -60.0, 0.0]), np.array([1.0, 1.0, np.nan]), np.full(3, 0.1)
    )
    assert np.isfinite(out[0][0]) and np.isnan(out[0][1:]).all() and np.isnan(out[1][1:]).all()


def test_a_negative_parallax_draw_is_far_away_not_a_crash():
    mean, error = monte_carlo_reddening(
        linear_dust(), IDS[:1], np.zeros(1), np.zeros(1), np.array([-0.5]), np.array([0.1])
    )
    assert_allclose(mean, 10.0)
    assert_allclose(error, 0.0, atol=1e-6)


def test_a_stars_estimate_does_not_depend_on_its_batch():
    args = (IDS[:5], np.zeros(5), np.zeros(5), np.ones(5), np.full(5, 0.2))
    whole = monte_carlo_reddening(linear_dust(0.1), *args, seed=3)
    alone = monte_carlo_reddening(linear_dust(0.1), *(a[3:4] for a in args), seed=3)
    assert_allclose([alone[0][0], alone[1][0]], [whole[0][3], whole[1][3]])
    assert monte_carlo_reddening(linear_dust(0.1), *args, seed=4)[0][0] != whole[0][0]


def test_the_users_columns_are_read(tmp_path):
    (tmp_path / "e.csv").write_text("source_id,ebv,ebv_error\n7,0.12,0.02\n8,,0.1\n")
    table = read_reddening([tmp_path / "e.csv"])
    assert_allclose(table.floats("reddening"), [0.12])
    assert table.rejected[0].reason == "reddening is missing"


def test_an_absent_map_names_the_command_that_fetches_it(tmp_path):
    pytest.importorskip("dustmaps")
    with pytest.raises(InputError, match="from dustmaps.bayestar import fetch"):
        bayestar19(tmp_path / "bayestar2019.h5")
    with pytest.raises(InputError, match="from dustmaps.sfd import fetch"):
        sfd(np.zeros(1), np.zeros(1), tmp_path)


def test_without_dustmaps_the_extra_is_named(monkeypatch):
    for name in ("dustmaps", "dustmaps.bayestar"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(InputError, match=r"xpbayes\[maps\]"):
        bayestar19()


def write_tiny_bayestar(path):
    """A whole-sky map at nside 1 in Bayestar's own layout: E rises from 0 to 1 over the distance bins."""
    h5py = pytest.importorskip("h5py")
    edges = np.linspace(4.0, 19.0, 16)  # distance moduli
    info = np.zeros(
        12,
        dtype=[
            ("nside", "<u4"),
            ("healpix_index", "<u8"),
            ("converged", "u1"),
            ("DM_reliable_min", "<f4"),
            ("DM_reliable_max", "<f4"),
        ],
    )
    info["nside"], info["healpix_index"], info["converged"] = 1, np.arange(12), 1
    info["DM_reliable_min"], info["DM_reliable_max"] = 5, 18
    profile = np.linspace(0, 1, 16, dtype=np.float32)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("pixel_info", data=info)
        data.attrs["DM_bin_edges"] = edges
        file["samples"] = np.broadcast_to(profile, (12, 3, 16)).copy()
        file["best_fit"] = np.broadcast_to(profile, (12, 16)).copy()
        file["GRDiagnostic"] = np.ones((12, 16), np.float32)
    return path


@pytest.mark.filterwarnings("ignore")
def test_bayestar_is_read_through_dustmaps(tmp_path):
    pytest.importorskip("dustmaps")
    query = bayestar19(write_tiny_bayestar(tmp_path / "bayestar2019.h5"))
    distance = 10 ** (np.array([9.0, 14.0]) / 5 + 1)  # distance moduli 9 and 14
    values = query(np.array([10.0, 200.0]), np.array([20.0, -40.0]), distance)
    assert_allclose(values, np.array([[5 / 15], [10 / 15]]) * np.ones(3), atol=1e-3)
    mean, error = monte_carlo_reddening(
        query, IDS[:1], np.array([10.0]), np.array([20.0]), np.array([1.0]), np.array([0.1])
    )
    assert 0.3 < mean[0] < 0.6 and 0 < error[0] < 0.1
