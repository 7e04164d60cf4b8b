from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from xpbayes.analysis.figures.spectra import EXAMPLE_KINDS, choose_examples, spectrum_fit
from xpbayes.models.model_error import kind_weights
from xpbayes.runs.predict import predict_flux


@pytest.fixture
def trained(trained):
    """A model whose stars of the same labels have one luminosity: its fluxes stay at their own level."""
    return replace(trained, calibration=None)


def test_prediction_is_that_of_predict_flux(trained, sample):
    estimate = np.array([5.8, 0.0, 4.4, 0.1, 1.5])
    fit = spectrum_fit(trained, sample, 3, estimate)
    other = predict_flux(trained, teff=5800, feh=0, logg=4.4, extinction=0.1, parallax=1.5)
    assert_allclose(fit.predicted, other.flux, rtol=1e-4)


def test_errors_are_the_marginal_ones_of_measurement_and_model(trained, sample):
    """Against a dense inverse of the precision; S = sum_k w_k S_k and the Student t's weight added by hand."""
    n = sample.channels.n_xp
    lower = np.zeros((n, n))
    lower[np.tril_indices(n)] = sample.xp_whitening[3]
    measured = np.diag(np.append(np.zeros(n), 1 / sample.band_inverse_error[3].astype(float) ** 2))
    measured[:n, :n] = np.linalg.inv(lower.T @ lower)
    n_channels = sample.flux.shape[1]
    star = jax.tree.map(lambda leaf: jnp.asarray(leaf[3]), sample.take(np.arange(4)).stars(trained.labels))
    weight = np.asarray(kind_weights(trained.model_error, star), float)
    relative = np.einsum("k,kij->ij", weight, np.asarray(trained.model_error.covariance, float))
    fit = spectrum_fit(trained, sample, 3, np.array([5.8, 0.0, 4.4, 0.1, 1.5]))
    total = measured + fit.predicted[:, None] * relative * fit.predicted
    chi2 = (fit.observed - fit.predicted) @ np.linalg.solve(total, fit.observed - fit.predicted)
    nu = 1.0 / (weight @ np.asarray(trained.model_error.inv_dof, float))
    assert chi2 > 2 * n_channels  # these are not the star's parameters: the error bars must be wider for it
    assert_allclose(fit.error, np.sqrt(np.diag(total) * (nu + chi2) / (nu + n_channels)), rtol=5e-3)
    assert_allclose(fit.residual, (fit.observed - fit.predicted) / fit.error)


def test_without_a_model_error_a_bad_fit_keeps_the_measured_errors(trained, sample):
    n = sample.channels.n_xp
    lower = np.zeros((n, n))
    lower[np.tril_indices(n)] = sample.xp_whitening[3]
    fit = spectrum_fit(
        replace(trained, star_model=trained.star_model.without_error), sample, 3, np.array([5.8, 0.0, 4.4, 0.1, 1.5])
    )
    assert_allclose(fit.error[:n], np.sqrt(np.diag(np.linalg.inv(lower.T @ lower))), rtol=1e-3)
    assert_allclose(fit.error[n:], 1 / sample.band_inverse_error[3], rtol=1e-4)


def test_missing_bands_are_not_drawn(trained, sample):
    bands = sample.band_inverse_error.copy()
    bands[3, 1] = 0
    fit = spectrum_fit(trained, replace(sample, band_inverse_error=bands), 3, np.array([5.8, 0, 4.4, 0.1, 1.5]))
    assert np.isnan(fit.observed[62]) and np.isfinite(fit.observed[[61, 63]]).all()


def test_examples_are_the_nearest_and_distinct():
    stars = np.array([kind[1] for kind in EXAMPLE_KINDS])[::-1] + 0.01
    chosen = choose_examples(stars, (1, 1, 1))
    assert [row for _, row in chosen] == [5, 4, 3, 2, 1, 0]
    assert len({row for _, row in choose_examples(np.zeros((6, 3)), (1, 1, 1))}) == 6
