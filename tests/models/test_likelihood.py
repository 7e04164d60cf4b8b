import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

from tests.conftest import as_double
from xpbayes.models.likelihood import add_model_error, half_log_det_precision, n_observed, whitened_residual

RNG = np.random.default_rng(0)
N = 12


def _problem(missing=()):
    root = RNG.normal(size=(N, N))
    covariance = root @ root.T / N + 0.1 * np.eye(N)
    flux, factor = RNG.uniform(0.5, 2, N), 0.1 * RNG.normal(size=(N, 4))
    present = np.ones(N, bool)
    present[list(missing)] = False
    inside = np.ix_(present, present)
    whitening = np.zeros((N, N))
    whitening[inside] = np.linalg.inv(np.linalg.cholesky(covariance[inside]))
    return covariance, flux, factor, present, whitening


def test_chi2_and_determinant_with_model_error_equal_the_direct_ones(x64):
    for missing in ((), (3,), (0, 11)):
        covariance, flux, factor, present, whitening = _problem(missing)
        total = (covariance + np.outer(flux, flux) * (factor @ factor.T))[np.ix_(present, present)]
        combined = add_model_error(*as_double((whitening, flux, factor)))
        residual = RNG.normal(size=N)
        expected = residual[present] @ np.linalg.solve(total, residual[present])
        white = whitened_residual(jnp.asarray(residual), jnp.zeros(N), combined)
        assert_allclose(np.sum(white**2), expected, rtol=1e-10)
        assert_allclose(half_log_det_precision(combined), -0.5 * np.linalg.slogdet(total)[1], rtol=1e-10)
        assert n_observed(combined) == present.sum()
        assert np.all(np.asarray(combined)[~present] == 0) and np.all(np.asarray(combined)[:, ~present] == 0)


def test_no_model_error_changes_nothing(x64):
    _, flux, factor, _, whitening = _problem()
    assert_allclose(add_model_error(jnp.asarray(whitening), jnp.asarray(flux), jnp.asarray(0 * factor)), whitening)


def test_model_error_only_ever_weakens_a_measurement(x64):
    _, flux, factor, _, whitening = _problem()
    combined = np.asarray(add_model_error(*as_double((whitening, flux, factor))))
    weaker = whitening.T @ whitening - combined.T @ combined
    assert np.linalg.eigvalsh(weaker)[0] > -1e-10
