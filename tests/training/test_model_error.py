"""The learned model error: recovers planted covariances and tails by kind, keeps clear of parallax and extinction."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.models.forward import predict_flux
from xpbayes.models.model_error import kind_weights, relative_sigma, with_model_error
from xpbayes.models.star_model import StarModel
from xpbayes.training.model_error import DOF_GRID, allowed_directions, learn_model_error

pytestmark = pytest.mark.thorough

N = 1024
N_ITERATIONS = 30
RED = slice(15, 61)
"""Channels where the noise is well below the planted error."""


@pytest.fixture(scope="module")
def noiseless(trained, sample):
    """Real stars' parameters and noise; fluxes of the model itself, at each star's own brightness."""
    random = np.random.default_rng(0)
    use = sample.take(np.flatnonzero(np.isfinite(sample.labels(trained.labels)[0]).all(axis=1))[:N])
    stars = jax.tree.map(jnp.asarray, use.stars(trained.labels, label_error_floor=(0.02, 0.02, 0.02)))
    n = len(stars)
    extinction, parallax = random.uniform(0.05, 0.8, n), np.exp(random.normal(0, 0.4, n))
    u = jnp.concatenate([stars.labels, jnp.log(jnp.asarray(np.stack([extinction, parallax], 1), jnp.float32))], axis=1)
    predicted = jax.jit(jax.vmap(lambda v, s: predict_flux(trained.forward, v, s)))(u, stars.ln_scale)
    shift = 0.5 * jnp.log(jnp.max(stars.flux, axis=1) / jnp.max(predicted, axis=1))
    u = u.at[:, -1].add(shift)
    labels = stars.labels + jnp.asarray(random.normal(size=stars.labels.shape), jnp.float32) / stars.label_inv_error
    return u, replace(
        stars,
        flux=predicted * jnp.exp(2 * shift)[:, None],
        labels=labels,
        reddening=jnp.asarray(extinction + random.normal(0, 0.1, n), jnp.float32),
        reddening_inv_error=jnp.full(n, 10.0),
        parallax=jnp.exp(u[:, -1]) * jnp.asarray(1 + random.normal(0, 0.1, n), jnp.float32),
        parallax_inv_error=10.0 / jnp.exp(u[:, -1]),
    )


@pytest.fixture(scope="module")
def planted_factor(trained):
    """(channel, 3) F with S = F F^T: smooth, 3 % per channel, clear of grey and R."""
    basis = np.asarray(allowed_directions(trained.forward.ln_curve), float)
    smooth = np.stack([np.sin(np.linspace(0, k * 3, basis.shape[0])) for k in (1, 2, 3)], axis=1)
    return basis @ (basis.T @ (0.03 * smooth)) / np.sqrt(3)


def _observe(stars, factor, size, dof, seed):
    """Add noise and a relative error of `size` (star,) times F; both share an amplitude of `dof` degrees of freedom."""
    random = np.random.default_rng(seed)
    n = len(stars)
    amplitude = np.ones(n) if dof is None else np.sqrt(dof / random.chisquare(dof, n))
    delta = (amplitude * size)[:, None] * (random.normal(size=(n, 3)) @ factor.T)
    white = amplitude[:, None] * random.normal(size=stars.flux.shape)
    # A missing channel has a zero row: a one on its diagonal makes the factor invertible, apart from the others.
    whitening = np.asarray(stars.whitening, float)
    missing = np.diagonal(whitening, axis1=1, axis2=2) <= 0
    noise = np.linalg.solve(whitening + np.eye(whitening.shape[1]) * missing[:, None, :], white[..., None])[..., 0]
    clean = np.asarray(stars.flux, float)
    return replace(stars, flux=jnp.asarray(clean * (1 + delta) + np.where(missing, 0, noise), jnp.float32))


@pytest.fixture(scope="module")
def gaussian(noiseless, planted_factor, trained):
    u, clean = noiseless
    stars = _observe(clean, planted_factor, np.ones(N), None, 1)
    return stars, *learn_model_error(trained.forward, stars, u, N_ITERATIONS)


def _red_sigma(covariance):
    return np.sqrt(np.diagonal(np.asarray(covariance, float), axis1=-2, axis2=-1))[..., RED].mean(axis=-1)


def test_recovers_a_planted_covariance(gaussian, planted_factor):
    """One law for all stars: its size, its strongest direction, and that it has no tail."""
    _, learned, _ = gaussian
    truth = planted_factor @ planted_factor.T
    assert_allclose(relative_sigma(learned)[RED].mean(), _red_sigma(truth), rtol=0.15)
    found = np.tensordot(np.asarray(learned.share, float), np.asarray(learned.covariance, float), axes=1)
    space = np.linalg.svd(planted_factor, full_matrices=False)[0]
    assert np.linalg.norm(space.T @ np.linalg.eigh(found)[1][:, -1]) > 0.9
    # All but a small part of the variance lies in the three planted directions.
    assert np.trace(space.T @ found[:, :] @ space) > 0.8 * np.trace(found)
    assert learned.kinds.shape[0] == 3 and np.all(np.asarray(learned.inv_dof) < 0.06)
    assert_allclose(np.sum(learned.share), 1.0, rtol=1e-5)


def test_likelihood_rises(gaussian):
    """Overall, and nearly always: kinds are soft and share a prior, so not to the last digit."""
    history = np.array(gaussian[2])
    assert history[-1] > history[0] + 5
    assert np.mean(np.diff(history) > -0.05) > 0.9 and history[-1] > history.max() - 0.5


def test_covariances_are_positive_and_symmetric(gaussian):
    for one in np.asarray(gaussian[1].covariance, float):
        assert_allclose(one, one.T, atol=1e-9)
        assert np.linalg.eigvalsh(one)[0] > -1e-6 * np.linalg.eigvalsh(one)[-1]


def test_cannot_mimic_parallax_or_extinction(gaussian, trained):
    curve = np.exp(np.asarray(trained.forward.ln_curve, float))
    for one in np.asarray(gaussian[1].covariance, float):
        for mimic in (np.ones_like(curve), curve):
            unit = mimic / np.linalg.norm(mimic)
            assert np.linalg.norm(unit @ one) < 1e-3 * np.linalg.norm(one)


def test_recovers_a_planted_tail(noiseless, planted_factor, trained):
    """Ten degrees of freedom: the heaviest tail there is to choose, and the scale matrix is not inflated by it."""
    u, clean = noiseless
    learned, _ = learn_model_error(
        trained.forward, _observe(clean, planted_factor, np.ones(N), 10.0, 2), u, N_ITERATIONS
    )
    assert_allclose(learned.inv_dof, 1.0 / DOF_GRID[0], rtol=1e-6)
    assert_allclose(relative_sigma(learned)[RED].mean(), _red_sigma(planted_factor @ planted_factor.T), rtol=0.2)


def test_kinds_of_star_get_their_own_errors(noiseless, planted_factor, trained, gaussian):
    """Three times the error for stars that look like one kind: that kind's covariance shows it, others' do not."""
    u, clean = noiseless
    weight = np.asarray(jax.jit(jax.vmap(lambda star: kind_weights(gaussian[1], star)))(clean))
    kind = np.argmax(weight.sum(axis=0))
    size = 1.0 + 2.0 * weight[:, kind]
    learned, _ = learn_model_error(
        trained.forward, _observe(clean, planted_factor, size, None, 3), u, 30, start=gaussian[1]
    )
    sigma = _red_sigma(learned.covariance)
    base = _red_sigma(planted_factor @ planted_factor.T)
    assert_allclose(sigma[kind], 3 * base, rtol=0.25)
    assert np.all(np.delete(sigma, kind) < 2 * base)


def test_starting_from_an_estimate_keeps_its_kinds_and_goes_on(noiseless, gaussian, trained):
    stars, learned, history = gaussian
    again, later = learn_model_error(trained.forward, stars, noiseless[0], 2, start=learned)
    assert np.array_equal(again.kinds, learned.kinds) and np.array_equal(again.shapes, learned.shapes)
    assert_allclose(later[0], history[-1], atol=0.3)
    assert_allclose(relative_sigma(again), relative_sigma(learned), rtol=0.05, atol=1e-4)


def test_folding_in_equals_one_star_at_a_time(gaussian, trained):
    """Also beyond one chunk, and with the tail."""
    stars, learned, _ = gaussian
    folded = fold_in_model_error(StarModel(trained.forward, None, learned), stars)
    assert len(folded) == len(stars)
    for i in (0, 600, len(stars) - 1):
        expected = with_model_error(learned, stars.take(i))
        assert_allclose(
            folded.whitening[i], expected.whitening, rtol=2e-3, atol=2e-3 * float(jnp.abs(expected.whitening).max())
        )
        assert_allclose(folded.inv_dof[i], expected.inv_dof, rtol=1e-4, atol=1e-6)
    assert fold_in_model_error(StarModel(trained.forward), stars) is stars


def test_residuals_of_new_stars_are_as_large_as_expected(noiseless, planted_factor, gaussian, trained):
    """Stars that were not learned from, at their true parameters: chi^2, weighted as their Student t weights it, is n."""
    u, clean = noiseless
    new = _observe(clean, planted_factor, np.ones(N), None, 9)
    predicted = jax.jit(jax.vmap(lambda v, s: predict_flux(trained.forward, v, s)))(u, new.ln_scale)

    def chi2_per_channel(stars):
        residual = np.einsum("sij,sj->si", stars.whitening, np.asarray(predicted - stars.flux))
        n = np.sum(np.diagonal(stars.whitening, axis1=1, axis2=2) > 0, axis=1)
        chi2, inv_dof = np.sum(residual**2, axis=1), np.asarray(stars.inv_dof)
        return np.mean((1 + inv_dof * n) / (1 + inv_dof * chi2) * chi2 / n)

    assert_allclose(
        chi2_per_channel(fold_in_model_error(StarModel(trained.forward, None, gaussian[1]), new)), 1.0, atol=0.1
    )
    assert chi2_per_channel(new) > 1.5
