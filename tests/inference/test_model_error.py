"""The learned model error: recovers a known covariance, keeps clear of parallax and extinction."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from xpbayes.inference.model_error import allowed_directions, fold_in_model_error, learn_model_error, relative_sigma
from xpbayes.models.forward import predict_flux
from xpbayes.models.likelihood import add_model_error

RNG = np.random.default_rng(0)
N = 1024


@pytest.fixture(scope="module")
def simulated(trained, sample):
    """Real noise and real stars' parameters; fluxes from the model, with a known relative model error."""
    use = sample.take(np.flatnonzero(np.isfinite(sample.labels(trained.labels)[0]).all(axis=1))[:N])
    stars = jax.tree.map(jnp.asarray, use.stars(trained.labels, label_error_floor=(0.02, 0.02, 0.02)))
    n = len(stars)
    extinction, parallax = RNG.uniform(0.05, 0.8, n), np.exp(RNG.normal(0, 0.4, n))
    u = jnp.concatenate([stars.labels, jnp.log(jnp.asarray(np.stack([extinction, parallax], 1), jnp.float32))], axis=1)
    level = stars.ln_scale  # bring every star to its own brightness, so that its noise is right
    predicted = jax.vmap(lambda v, s: predict_flux(trained.forward, v, s))(u, level)
    shift = 0.5 * jnp.log(jnp.max(stars.flux, axis=1) / jnp.max(predicted, axis=1))
    u = u.at[:, -1].add(shift)
    predicted = predicted * jnp.exp(2 * shift)[:, None]

    basis = np.asarray(allowed_directions(trained.forward.ln_curve), float)
    smooth = np.stack([np.sin(np.linspace(0, k * 3, basis.shape[0])) for k in (1, 2, 3)], axis=1)
    factor = basis @ (basis.T @ (0.03 * smooth)) / np.sqrt(3)
    delta = RNG.normal(size=(n, 3)) @ factor.T
    noise = jax.vmap(jnp.linalg.solve)(stars.whitening, jnp.asarray(RNG.normal(size=predicted.shape), jnp.float32))
    measured_labels = stars.labels + jnp.asarray(RNG.normal(size=stars.labels.shape), jnp.float32) / stars.label_inv_error
    stars = replace(
        stars,
        flux=predicted * (1 + jnp.asarray(delta, jnp.float32)) + noise,
        labels=measured_labels,
        reddening=jnp.asarray(extinction + RNG.normal(0, 0.1, n), jnp.float32),
        reddening_inv_error=jnp.full(n, 10.0),
        parallax=jnp.exp(u[:, -1]) * jnp.asarray(1 + RNG.normal(0, 0.1, n), jnp.float32),
        parallax_inv_error=10.0 / jnp.exp(u[:, -1]),
    )
    return stars, u, factor


def test_recovers_a_known_covariance(simulated, trained):
    stars, u, truth = simulated
    learned, history = learn_model_error(trained.forward, stars, u, 60)
    assert np.all(np.diff(history) > -0.01), "expectation-maximisation never loses likelihood"
    red = slice(15, 61)  # where the noise is well below the model error
    assert_allclose(relative_sigma(learned)[red].mean(), np.sqrt((truth**2).sum(1))[red].mean(), rtol=0.15)
    # The strongest direction is the true one.
    vector = np.linalg.svd(np.asarray(learned, float))[0][:, 0]
    true_space = np.linalg.svd(truth, full_matrices=False)[0]
    assert np.linalg.norm(true_space.T @ vector) > 0.9


def test_cannot_mimic_parallax_or_extinction(simulated, trained):
    stars, u, _ = simulated
    learned, _ = learn_model_error(trained.forward, stars, u, 3)
    curve = np.exp(np.asarray(trained.forward.ln_curve, float))
    factor = np.asarray(learned, float)
    for mimic in (np.ones_like(curve), curve):
        assert np.linalg.norm(mimic @ factor) < 1e-4 * np.linalg.norm(mimic) * np.linalg.norm(factor)


def test_folding_in_equals_one_star_at_a_time(simulated, trained):
    stars, _, _ = simulated
    folded = fold_in_model_error(stars, trained.model_error)
    for i in (0, 600, len(stars) - 1):
        expected = add_model_error(stars.whitening[i], stars.flux[i], trained.model_error)
        assert_allclose(folded.whitening[i], expected, rtol=2e-3, atol=2e-3 * float(jnp.abs(expected).max()))
    assert fold_in_model_error(stars, None) is stars
