"""The numbers beside the figures, as they lie on disk, against plain NumPy on the files that they were made from."""

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from numpy.testing import assert_allclose, assert_array_equal

from xpbayes.data.spectra_file import read_star_table
from xpbayes.identity import Side, Split

TRIANGLE = np.triu_indices(5)


@pytest.fixture(scope="module")
def run(analysed):
    """Catalogue and star table side by side, as dictionaries of arrays; the catalogue has the table's order."""
    catalogue = pq.read_table(analysed / "catalogue.parquet").to_pydict()
    stars = pq.read_table(analysed / "stars.parquet").to_pydict()
    assert catalogue["source_id"] == stars["source_id"] and set(catalogue["status"]) == {"ok"}
    names = ("source_id", "teff", "feh", "logg", "teff_error", "feh_error", "logg_error", "reddening",
             "reddening_error", "phot_g_mean_mag", "phot_bp_mean_mag", "phot_rp_mean_mag")  # fmt: skip
    table = {n: np.array([np.nan if v is None else v for v in stars[n]]) for n in names if n != "source_id"}
    table["source_id"] = np.array(stars["source_id"])
    table["estimate"] = np.array(catalogue["stellar_params_est"])
    table["error"] = np.array(catalogue["stellar_params_err"])
    table["fisher"] = np.array(catalogue["stellar_params_icov_triu"])
    table["flags"] = np.array(catalogue["quality_flags"])
    return table


@pytest.fixture(scope="module")
def numbers(figure_folder):
    return lambda name: Table.read(figure_folder / f"{name}.ecsv")


def diagonal(n):
    """Where a packed lower triangle has its diagonal."""
    return np.cumsum(np.arange(1, n + 1)) - 1


def within(values, middle, width):
    return (values >= middle - width / 2) & (values < middle + width / 2)


def test_kiel(run, numbers):
    table = numbers("kiel")
    for row in table:
        label = within(run["teff"], row["teff"], 0.1) & within(run["logg"], row["logg"], 0.1)
        inferred = within(run["estimate"][:, 0], row["teff"], 0.1) & within(run["estimate"][:, 2], row["logg"], 0.1)
        assert (label.sum(), inferred.sum()) == (row["labelled"], row["inferred"])
    assert 390 < table["inferred"].sum() <= 400


def test_correlations(run, numbers):
    found = []
    for triangle in run["fisher"].astype(np.float64):
        fisher = np.zeros((5, 5))
        fisher[TRIANGLE] = triangle
        fisher = fisher + np.triu(fisher, 1).T
        covariance = np.linalg.inv(fisher)
        sigma = np.sqrt(np.diag(covariance))
        found.append(covariance / np.outer(sigma, sigma))
    low, high = np.sort(found, axis=0)[199:201]  # of 400 stars the two in the middle
    at = {name: i for i, name in enumerate(("teff", "feh", "logg", "extinction", "parallax"))}
    table = numbers("correlations")
    assert len(table) == 10 and np.isnan(table["with_parallax"]).all()
    for row in table:
        pair = at[row["first"]], at[row["second"]]
        assert low[pair] - 2e-4 < row["flux_only"] < high[pair] + 2e-4


@pytest.mark.parametrize("normalised", [False, True], ids=["residuals", "pulls"])
def test_residuals(run, numbers, trained, normalised):
    name = "pulls" if normalised else "residuals"
    settings = trained.card["settings"]
    use = Split.of(trained.card).on(Side.HELD_OUT, run["source_id"]) & (run["flags"] < 8)
    use &= ~(run["teff"] >= (settings["teff_max"] or np.inf))
    summary = {row["parameter"]: row for row in numbers(f"{name}_summary")}
    lines = numbers(name)
    assert set(summary) == {"teff", "feh", "logg", "extinction"}
    for k, parameter in enumerate(("teff", "feh", "logg", "extinction")):
        column = "reddening" if parameter == "extinction" else parameter
        factor, floor = (1e3, 0.02) if parameter == "teff" else (1.0, 0.02 if k < 3 else 0.0)
        value, error = factor * run[column], factor * np.hypot(run[f"{column}_error"], floor)
        known = use & np.isfinite(value) & np.isfinite(error) & np.isfinite(run["teff"] + run["logg"])
        residual = factor * run["estimate"][:, k] - value
        if normalised:
            residual /= np.hypot(factor * run["error"][:, k], error)
        value, residual = value[known], residual[known]
        row = summary[parameter]
        assert row["n"] == known.sum()
        assert_allclose(row["bias"], np.median(residual), rtol=1e-5, atol=1e-7)
        assert_allclose(row["scatter"], 1.4826 * np.median(np.abs(residual - np.median(residual))), rtol=1e-4)
        rows = lines[lines["parameter"] == parameter]
        for i, cell in enumerate(rows):
            last = i == len(rows) - 1
            inside = (value >= cell["low"]) & ((value <= cell["high"]) if last else (value < cell["high"]))
            assert cell["n"] == inside.sum()
            if inside.sum() >= 15:
                expected = np.percentile(residual[inside], (15, 50, 84))
                assert_allclose([cell["p15"], cell["p50"], cell["p84"]], expected, rtol=1e-4, atol=1e-6)
            else:
                assert np.isnan(cell["p50"])


def test_reliability(run, numbers, figure_folder):
    figures = {f["name"]: f for f in json.loads((figure_folder / "analyses.json").read_text())["figures"]}
    caption = figures["reliability"]["caption"]
    width = [float(v) for v in re.search(r"cells of ([\d.]+) × ([\d.]+) mag", caption).groups()]
    colour = run["phot_bp_mean_mag"] - run["phot_rp_mean_mag"]
    magnitude = run["phot_g_mean_mag"] + 5 * np.log10(run["estimate"][:, 4] / 100)
    for row in numbers("reliability"):
        cell = within(colour, row["colour"], width[0]) & within(magnitude, row["absolute_magnitude"], width[1])
        assert (row["n"], row["reliable"]) == (cell.sum(), (cell & (run["flags"] < 8)).sum())
    assert f"{(run['flags'] < 8).sum()} reliable" in caption


def test_prior(numbers, trained):
    """Marginals by adding up the mixture's density over the other two labels."""
    from xpbayes.models.prior import ln_priors

    marginals, components = numbers("prior"), numbers("prior_components")
    assert_allclose(components["weight"].sum(), 1.0, atol=1e-6)
    grid = {n: np.linspace(*m, 181) for n, m in (("teff", (1.0, 11.0)), ("feh", (-4.5, 2.0)), ("logg", (-3.0, 8.0)))}
    for k, name in enumerate(trained.labels):
        at = np.asarray(marginals[name])[40:240:40]
        axes = [at if n == name else grid[n] for n in trained.labels]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        density = np.exp(np.asarray(ln_priors(trained.prior, points.reshape(-1, 3).astype(np.float32)), np.float64))
        cell = np.prod([grid[n][1] - grid[n][0] for n in trained.labels if n != name])
        others = tuple(j for j in range(3) if j != k)
        expected = density.reshape(points.shape[:3]).sum(axis=others) * cell
        assert_allclose(np.asarray(marginals[f"density_{name}"])[40:240:40], expected, rtol=0.02)


@pytest.mark.parametrize("name", ["main_sequence", "metallicity", "giant_branch"])
def test_spectra(name, numbers, trained):
    import jax
    import jax.numpy as jnp

    from xpbayes.models.forward import predict_flux

    table, n = numbers(name), len(trained.channels)
    along = {"main_sequence": "teff", "metallicity": "feh", "giant_branch": "logg"}[name]
    value = np.asarray(table[along]).reshape(-1, n)[:, 0]
    zero = np.zeros(len(value))
    if name == "giant_branch":  # Eq. 29
        teff = np.where(value < 3.65, 5200 - 441.86 * (3.65 - value), 5900 - 1400 * (4.15 - value)) / 1e3
        labels = np.stack([teff, zero, value], axis=1)
    else:  # Eq. 28
        teff = value if name == "main_sequence" else np.full(len(value), 5.5)
        logg = np.select([teff < 5, teff < 6.3], [4.6, 4.6 - 0.5 * (teff - 5)], 3.95)
        labels = np.stack([teff, zero if name == "main_sequence" else value, logg], axis=1)
    at = np.column_stack([labels, np.full(len(value), -30.0), zero])  # no dust, 1 kpc
    expected = jax.vmap(predict_flux, (None, 0))(trained.forward, jnp.asarray(at, jnp.float32))
    flux = np.asarray(table["flux"]).reshape(-1, n)
    assert_allclose(flux, expected, rtol=1e-4)
    n_xp = trained.channels.n_xp
    x = (trained.channels.wavelengths[:n_xp] - 692) / 300
    for one, normalised in zip(flux[:, :n_xp], np.asarray(table["normalised"]).reshape(-1, n), strict=True):
        assert_allclose(normalised[:n_xp], one / np.exp(np.polyval(np.polyfit(x, np.log(one), 5), x)), rtol=1e-6)
        assert np.isnan(normalised[n_xp:]).all()


def test_curve(numbers, trained):
    from astropy import units as u
    from dust_extinction.parameter_averages import CCM89

    table, scatter = numbers("curve"), numbers("curve_scatter")
    learned = np.exp(np.asarray(trained.forward.ln_curve, np.float64))
    assert_allclose(table["learned"], learned)
    published = CCM89(Rv=3.1)(np.asarray(table["wavelength"]) * u.nm)
    scaled = np.asarray(table["CCM89, R_V = 3.1"])
    assert np.ptp(scaled / published) < 1e-9 * np.mean(scaled / published)
    ratio = learned / scaled
    row = scatter[scatter["curve"] == "CCM89, R_V = 3.1"][0]
    assert row["channels"] == len(learned)
    assert_allclose(row["rms"], np.sqrt(np.mean((ratio - 1) ** 2)), rtol=1e-6)


def test_flux_residuals(run, numbers, analysed, trained):
    """One channel's width from scratch: prediction at the estimate and the star's level, error from the dense covariance."""
    import jax
    import jax.numpy as jnp

    from xpbayes.models.forward import predict_flux

    stars = read_star_table(analysed / "stars.parquet")
    use = Split.of(trained.card).on(Side.HELD_OUT, run["source_id"]) & (run["flags"] < 8)
    use &= np.isfinite(run["teff"] + run["feh"] + run["logg"])
    rows, channel = np.flatnonzero(use), list(trained.channels.names).index("xp592")
    at = np.column_stack([run["estimate"][rows, :3], np.log(run["estimate"][rows, 3:])])
    predicted = jax.vmap(predict_flux, (None, 0))(trained.forward, jnp.asarray(at, jnp.float32))
    predicted = np.asarray(predicted, np.float64)
    if trained.has_levels:  # stars of the same labels differ in luminosity: the estimate tells no grey factor
        measured = np.hstack(
            [stars.xp_whitening[rows][:, diagonal(trained.channels.n_xp)], stars.band_inverse_error[rows]]
        )
        ratio = np.where(measured > 0, stars.flux[rows] / predicted, np.nan)
        predicted *= np.nanmedian(ratio, axis=1)[:, None]
    n, chi = trained.channels.n_xp, []
    for i, flux in zip(rows, predicted[:, channel], strict=True):
        whitening = np.zeros((n, n))
        whitening[np.tril_indices(n)] = stars.xp_whitening[i]
        present = np.diag(whitening) > 0
        covariance = np.linalg.inv((whitening.T @ whitening)[np.ix_(present, present)])
        sigma = np.sqrt(covariance[np.cumsum(present)[channel] - 1, np.cumsum(present)[channel] - 1])
        chi.append((flux - stars.flux[i, channel]) / sigma)
    width = numbers("flux_residuals_width")
    low, high = np.percentile(chi, [16, 84])
    assert_allclose(width["half_width"][list(width["channel"]).index("xp592")], (high - low) / 2, rtol=2e-3)
    table = numbers("flux_residuals")
    cells = table[(table["channel"] == "xp592") & (table["parameter"] == "teff")]
    teff = 1e3 * run["teff"][rows]
    counts = [(teff >= c["low"]) & ((teff < c["high"]) | (c["high"] == cells["high"].max())) for c in cells]
    inside = [int((c & (teff <= cells["high"].max())).sum()) for c in counts]
    assert_array_equal(cells["n"], inside)
