"""Stars whose extinction curves differ: xi is one more parameter, and everything else is marginal over it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.conftest import QUICK
from xpbayes.inference.fit import fit_stars
from xpbayes.models.forward import predict_flux
from xpbayes.models.prior import draw_labels

pytestmark = pytest.mark.thorough

N = 256
"""One chunk; the first half is next to no dust."""


@pytest.fixture(scope="module")
def varied(trained):
    """The model with an R1 that bends the curve: 3 % of R, blue against red, at both ends."""
    curve = np.exp(np.asarray(trained.forward.ln_curve))
    bend = 0.05 * curve * (np.linspace(-1, 1, len(curve)) ** 2 - 1 / 3)
    return replace(trained.star_model, forward=replace(trained.forward, curve_variation=jnp.asarray(bend, jnp.float32)))


@pytest.fixture(scope="module")
def simulated(varied, trained, sample):
    """Fluxes of the model itself with errors of half a per cent, and their truth: labels, xi, ln E, ln parallax."""
    random = np.random.default_rng(3)
    labels = np.asarray(draw_labels(trained.prior, jax.random.key(3), N))
    extinction = np.where(np.arange(N) < N // 2, 1e-3, random.uniform(0.6, 1.5, N))
    rest = np.column_stack([random.standard_normal(N), np.log(extinction), np.zeros(N)])
    truth = np.concatenate([labels, rest], axis=1).astype(np.float32)
    flux = np.asarray(jax.vmap(predict_flux, (None, 0))(varied.forward, jnp.asarray(truth)), np.float64)
    scale = np.log(flux[:, 30])
    flux /= np.exp(scale)[:, None]
    stars = jax.tree.map(np.array, sample.take(np.arange(N)).stars(trained.labels))
    whitening = np.stack([np.diag(200.0 / f) for f in flux])
    flux *= 1 + 0.005 * random.standard_normal(flux.shape)
    zero = np.zeros(N, np.float32)
    return replace(
        stars, flux=flux.astype(np.float32), whitening=whitening.astype(np.float32), ln_scale=scale.astype(np.float32),
        parallax=np.ones(N, np.float32), parallax_inv_error=np.full(N, 20.0, np.float32), reddening_inv_error=zero,
        inv_dof=zero,
    ), truth  # fmt: skip


@pytest.fixture(scope="module")
def found(varied, simulated):
    how = QUICK.model_copy(update={"n_draws": 256, "use_parallax": True})
    return fit_stars(replace(varied, error=None), simulated[0], how)


def test_xi_is_found_where_there_is_dust(found, simulated):
    """Draws and Laplace agree with the truth within errors that are well below the prior's."""
    dusty, truth = slice(N // 2, N), simulated[1][N // 2 :, 3]
    good = found.converged[dusty] & (found.k_hat[dusty] < 0.7)
    assert good.mean() > 0.8
    error = found.curve.error[dusty][good]
    assert np.median(error) < 0.6
    pulls = (found.curve.mean[dusty] - truth)[good] / found.curve.std[dusty][good]
    n = good.sum()
    assert abs(np.mean(pulls)) < 4 / np.sqrt(n) and abs(np.std(pulls) - 1) < 4 / np.sqrt(2 * n)
    covered = np.mean((found.curve.low[dusty] < truth) & (truth < found.curve.high[dusty]))
    assert abs(covered - 0.68) < 4 * np.sqrt(0.68 * 0.32 / (N // 2))


def test_without_dust_xi_is_its_prior(found):
    clear = slice(0, N // 2)
    error = found.curve.error[clear]
    assert np.median(error) > 0.95
    # Modes of parameters with the prior N(0, 1) scatter by the root of 1 - error^2.
    assert np.std(found.curve.estimate[clear]) < 1.5 * np.sqrt(np.mean(1 - error**2))
    assert abs(np.median(found.curve.std[clear]) - 1.0) < 0.1


def test_without_dust_nothing_else_changes(found, trained, simulated):
    """Labels and E of dust-free stars are those of the model with one curve for all, within a fifth of their errors."""
    plain = replace(trained.star_model, error=None)
    same = fit_stars(plain, simulated[0], QUICK.model_copy(update={"n_draws": 0, "use_parallax": True}))
    clear = np.flatnonzero(found.converged & same.converged)
    clear = clear[clear < N // 2]
    sigma = np.sqrt(np.diagonal(same.laplace, axis1=1, axis2=2))
    moved = np.abs(found.estimate - same.estimate)[clear] / sigma[clear]
    assert np.mean(moved < 0.2) > 0.95
    wider = np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2) / np.diagonal(same.covariance, axis1=1, axis2=2))
    assert_allclose(np.median(wider[clear], axis=0), 1.0, atol=0.03)


def test_other_results_are_marginal_over_xi(found, simulated):
    """A law: five parameters; what knows xi too has it between labels and E; its correlations are some."""
    assert found.estimate.shape == found.mean.shape == (N, 5)
    assert found.covariance.shape == found.laplace.shape == found.fisher.shape == (N, 5, 5)
    assert_allclose(found.optimum[:, 3], found.curve.estimate)
    assert_allclose(np.delete(found.optimum, 3, axis=1), found.estimate)
    full = found.covariance_with_xi("laplace")
    assert full.shape == (N, 6, 6) and np.all(np.linalg.eigvalsh(full[found.hessian_positive]) > 0)
    assert_allclose(np.delete(np.delete(full, 3, axis=1), 3, axis=2), found.laplace)
    assert np.all(np.abs(found.curve.correlation[found.converged]) <= 1.0)
    part = found.take(slice(3, 5))
    assert_allclose(part.curve.estimate, found.curve.estimate[3:5])
