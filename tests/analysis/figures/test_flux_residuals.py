from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from xpbayes.analysis.figures.flux_residuals import (
    FluxSample,
    draw_sky_residuals,
    flux_columns,
    flux_residuals,
    sky_residuals,
)
from xpbayes.runs.predict import predict_flux

RNG = np.random.default_rng(0)


@pytest.fixture
def trained(trained):
    """A model whose stars of the same labels have one luminosity: its fluxes stay at their own level."""
    return replace(trained, calibration=None)


def test_errors_are_the_diagonal_of_the_dense_covariance(sample):
    """Against a dense inverse; a missing sample and a missing band have no error."""
    stars = sample.take(np.arange(6))
    n = stars.channels.n_xp
    row, column = np.tril_indices(n)
    whitening, bands = stars.xp_whitening.copy(), stars.band_inverse_error.copy()
    whitening[2, (row == 20) | (column == 20)] = 0
    bands[3, 1] = 0

    found = stars.replace(xp_whitening=whitening, band_inverse_error=bands).flux_error()
    for s in range(6):
        lower = np.zeros((n, n))
        lower[row, column] = whitening[s]
        here = np.diag(lower) > 0
        covariance = np.linalg.inv(lower[np.ix_(here, here)].T @ lower[np.ix_(here, here)])
        assert_allclose(found[s, :n][here], np.sqrt(np.diag(covariance)), rtol=1e-4)
        assert np.isnan(found[s, :n][~here]).all()
    assert np.isnan(found[2, 20]) and np.isnan(found[3, n + 1])
    assert_allclose(found[0, n:], 1 / bands[0], rtol=1e-6)


def test_residuals_are_prediction_minus_observation_over_error(trained, sample):
    stars = sample.take(np.arange(4))
    estimate = np.tile([5.8, 0.0, 4.4, 0.1, 1.5], (4, 1))
    names = ("xp592", "H")
    found = flux_residuals(trained, stars, estimate, names)
    predicted = predict_flux(trained, teff=5800, feh=0, logg=4.4, extinction=0.1, parallax=1.5)
    at = [trained.channels.names.index(n) for n in names]
    expected = (predicted.flux[at] - stars.flux[:, at]) / stars.flux_error(at)
    assert_allclose(found, expected, rtol=1e-3)


@pytest.fixture
def fluxes():
    n = 8000
    chi = RNG.normal(0.3, 1.0, (n, 3)).astype(np.float32)
    chi[:400, 1] = np.nan
    chi[400:420, 0] = 50
    estimate = np.tile(np.float32([5, 0, 3, 0.2, 1]), (n, 1))
    error = np.tile(np.float32([0.1, 0.1, 0.1, 0.02, 0.1]), (n, 1))
    error[:500, 4] = 0.5
    columns = {
        "source_id": np.arange(n), "stellar_params_est": estimate, "stellar_params_err": error,
        "ra": RNG.uniform(0, 360, n), "dec": np.degrees(np.arcsin(RNG.uniform(-1, 1, n))),
        "chi2_opt": np.where(np.arange(n) % 20 == 0, 6, 1).astype(np.float32), "dof": np.ones(n, np.int16),
        "quality_flags": np.zeros(n, np.uint8), "teff": RNG.uniform(4, 7, n), "feh": RNG.normal(0, 0.3, n),
        "logg": RNG.uniform(1, 5, n), "reddening": np.full(n, np.nan),
    }  # fmt: skip
    return FluxSample(("xp402", "xp592", "J"), chi, columns)


def test_columns_against_numpy(fluxes):
    member = np.arange(8000) % 2 == 0
    numbers = flux_columns(fluxes, member, ("teff", "feh", "logg"))
    assert numbers.channels == ("xp592",) and numbers.parameters == ("teff", "feh", "logg")  # no reddening, no others
    density = numbers.densities["xp592", "teff"]
    teff, chi = 1e3 * fluxes["teff"][member], fluxes.chi[member, 1]
    i = len(density.n) // 2
    inside = chi[(teff >= density.x_edges[i]) & (teff < density.x_edges[i + 1]) & np.isfinite(chi)]
    assert_allclose(density.percentiles[i], np.percentile(inside, [15, 50, 84]), rtol=1e-5)
    known = chi[np.isfinite(chi)]
    assert_allclose(numbers.scatter, [0.5 * (np.percentile(known, 84) - np.percentile(known, 16))], rtol=1e-5)


def test_sky_means_against_a_loop(fluxes, trained):
    import astropy.units as u
    from astropy.coordinates import SkyCoord
    from astropy_healpix import lonlat_to_healpix

    numbers = sky_residuals(fluxes)
    assert numbers.channels == ("xp402", "J")
    keep = (fluxes["stellar_params_err"][:, 4] < 0.2) & (fluxes["chi2_opt"] < 5)
    assert numbers.n_stars == keep.sum()
    galactic = SkyCoord(fluxes["ra"] * u.deg, fluxes["dec"] * u.deg).galactic
    pixel = np.asarray(lonlat_to_healpix(galactic.l, galactic.b, numbers.nside, order="nested"))
    for row in range(0, len(numbers.pixel), 37):
        here = keep & (pixel == numbers.pixel[row]) & (np.abs(fluxes.chi[:, 0]) <= 10)
        assert numbers.n[row, 0] == here.sum()
        if here.sum() >= 5:
            assert_allclose(numbers.mean[row, 0], fluxes.chi[here, 0].mean(), rtol=1e-4)
    assert len(draw_sky_residuals(trained.channels, {"all": numbers}).axes) == 3


def test_resolution_follows_the_number_of_stars(fluxes):
    some = np.arange(8000) < 1200
    few = FluxSample(fluxes.channels, fluxes.chi[some], {name: values[some] for name, values in fluxes.columns.items()})
    assert sky_residuals(few).nside < sky_residuals(fluxes).nside
    assert_array_equal(np.isfinite(sky_residuals(few).mean), sky_residuals(few).n >= 5)
