"""One posterior, written once: the NumPyro models against the solver's objective, and METHOD 3's traps."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from numpy.testing import assert_allclose
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta
from numpyro.infer.initialization import init_to_value
from numpyro.infer.util import log_density

from tests.conftest import as_double
from xpbayes.models.forward import initial_model
from xpbayes.models.objective import curvature, objective
from xpbayes.models.posterior import (
    LabelMixture,
    ModelShape,
    WhitenedNormal,
    model_from_sites,
    model_site_values,
    star_posterior,
    star_sites,
    training_posterior,
)
from xpbayes.stars import Stars

RNG = np.random.default_rng(0)
N = 1000


def _random_stars(stars: Stars) -> Stars:
    """Real stars with random bands and parallaxes missing, in float64."""
    stars = jax.tree.map(np.array, stars)
    n, n_channels = stars.flux.shape
    whitening = stars.whitening.astype(float)
    for i in np.flatnonzero(RNG.random(n) < 0.5):
        gone = RNG.choice(n_channels, RNG.integers(1, 4), replace=False)
        # Marginalising a channel: drop its row and column of the covariance, not of its inverse.
        present = np.setdiff1d(np.arange(n_channels), gone)
        covariance = np.linalg.inv(whitening[i].T @ whitening[i])[np.ix_(present, present)]
        whitening[i] = 0
        whitening[i][np.ix_(present, present)] = np.linalg.inv(np.linalg.cholesky(covariance))
    parallax = np.abs(RNG.normal(1, 0.5, n))
    return replace(
        stars,
        whitening=whitening,
        parallax=parallax,
        parallax_inv_error=np.where(RNG.random(n) < 0.5, 1 / 0.05, 0.0),
        reddening_inv_error=np.where(RNG.random(n) < 0.5, stars.reddening_inv_error, 0.0),
    )


@pytest.fixture(scope="module")
def problem(trained, sample):
    stars = _random_stars(sample.take(np.arange(N)).stars(trained.labels, label_error_floor=(0.02, 0.02, 0.02)))
    start = np.concatenate([trained.prior.mean[RNG.integers(0, 8, N)], RNG.normal([-2, 0.3], 0.5, (N, 2))], axis=1)
    points = start + RNG.normal(0, 0.1, start.shape), start
    return stars, points


def _per_star(density, points):
    """Differences of a per-star function between two points: constants drop out."""
    return density(points[0]) - density(points[1])


def test_inference_objective_equals_numpyro(problem, trained, x64):
    """L(u1) - L(u2) = -2 [ln p(u1) - ln p(u2)] for each of 1,000 real stars, missing bands and parallax included."""
    stars, points = as_double(problem)
    stars, model, prior = stars.blind(), as_double(trained.forward), as_double(trained.prior)
    ours = _per_star(
        lambda u: jax.vmap(lambda star, v: objective(model, prior, star, v))(stars, jnp.asarray(u)), points
    )

    @jax.jit
    def one(star, u):
        batch = jax.tree.map(lambda leaf: leaf[None], star)
        return log_density(star_posterior, (batch, model, prior), {}, star_sites(u[None]))[0]

    theirs = _per_star(lambda u: jax.vmap(one)(stars, jnp.asarray(u)), points)
    assert len(ours) == 1000
    assert_allclose(ours, -2 * theirs, rtol=1e-8, atol=1e-8)


def test_training_objective_equals_numpyro(problem, trained, x64):
    """The same for the training posterior's star terms, over the whole batch at once."""
    stars, points = as_double(problem)
    model = as_double(trained.forward)
    shape = ModelShape((32, 32, 32), 64, N, model.label_center, model.label_scale)

    def numpyro_density(u):
        return log_density(training_posterior, (stars, shape), {}, model_site_values(model) | star_sites(u))[0]

    ours = sum(_per_star(lambda u: jax.vmap(lambda s, v: objective(model, None, s, v))(stars, u), points))
    assert_allclose(ours, -2 * _per_star(numpyro_density, points), rtol=1e-8)


def test_a_batch_estimates_the_whole(problem, trained, x64):
    """Scaled densities of the two halves average to the density of all stars; the weight prior counts once."""
    stars, points = as_double(problem)
    model, u = as_double(trained.forward), points[0]
    shape = ModelShape((32, 32, 32), 64, N, model.label_center, model.label_scale)

    def density(part):
        values = model_site_values(model) | star_sites(u[part])
        return log_density(training_posterior, (stars.take(part), shape), {}, values)[0]

    halves = 0.5 * (density(slice(0, N // 2)) + density(slice(N // 2, N)))
    assert_allclose(halves, density(slice(0, N)), rtol=1e-10)


def test_weight_prior_is_n_w_over_n_star(trained, x64):
    """Doubling one weight changes ln p by its Gaussian term with variance n_W / N alone, far from the data."""
    model = as_double(trained.forward)
    stars = as_double(_no_stars(trained))
    shape = ModelShape((32, 32, 32), 64, 500, model.label_center, model.label_scale)
    u = star_sites(jnp.zeros((1, 5)))

    def density(w):
        values = model_site_values(model) | {"weights_1": w} | u
        return log_density(training_posterior, (stars, shape), {}, values)[0]

    n_weights = 3 * 32 + 2 * 32 * 32 + 32 * 64
    expected = -0.5 * 3 * jnp.sum(model.weights[1] ** 2) / (n_weights / 500)
    assert_allclose(density(2 * model.weights[1]) - density(model.weights[1]), expected, rtol=1e-10)


def _no_stars(trained) -> Stars:
    """One star that was not observed at all."""
    n = len(trained.channels)
    zero = np.zeros((1,), np.float32)
    return Stars(
        np.ones((1, n), np.float32), np.zeros((1, n, n), np.float32), zero, zero, zero,
        np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32), zero, zero,
    )  # fmt: skip


def test_curvature_equals_automatic_differentiation(problem, trained, x64):
    stars, points = as_double(problem)
    model = as_double(trained.forward)
    for prior in (None, as_double(trained.prior)):
        ours = jax.jit(partial(curvature, model, prior))
        target = partial(objective, model, prior)
        differentiated = [jax.jit(f) for f in (target, jax.grad(target, argnums=1), jax.hessian(target, argnums=1))]
        for i in (0, 17, 500):
            star, u = stars.take(i), jnp.asarray(points[1][i])
            at = ours(star, u)
            value, gradient, hessian = (f(star, u) for f in differentiated)
            assert_allclose(at.value, value, rtol=1e-12)
            assert_allclose(at.gradient, gradient, rtol=1e-9, atol=1e-7)
            assert_allclose(at.hessian, hessian, rtol=1e-9, atol=1e-6)
            assert np.linalg.eigvalsh(at.bound)[0] >= -1e-9 * np.linalg.eigvalsh(at.bound)[-1]


def test_jacobian_puts_the_mode_where_it_belongs(trained):
    """With E-hat = sigma_E = 0.03 as the only information, the mode in ln E is E = 0.0485, not 0.03 (METHOD 3)."""
    star = replace(
        _no_stars(trained),
        reddening=np.array([0.03], np.float32),
        reddening_inv_error=np.array([1 / 0.03], np.float32),
        parallax=np.array([1.0], np.float32),
        parallax_inv_error=np.array([10.0], np.float32),
        label_inv_error=np.ones((1, 3), np.float32),
    )
    shape = ModelShape((32, 32, 32), 64, 1, trained.forward.label_center, trained.forward.label_scale)
    model = handlers.condition(training_posterior, data=model_site_values(trained.forward))
    start = {"labels": jnp.zeros((1, 3)), "ln_E": jnp.log(jnp.array([0.03])), "ln_plx": jnp.zeros(1)}
    guide = AutoDelta(model, init_loc_fn=init_to_value(values=start))
    result = SVI(model, guide, optax.adam(1e-2), Trace_ELBO()).run(
        jax.random.key(0), 2000, star, shape, progress_bar=False
    )
    expected = (0.03 + np.sqrt(0.03**2 + 4 * 0.03**2)) / 2
    assert_allclose(np.exp(result.params["ln_E_auto_loc"]), expected, rtol=1e-3)
    assert_allclose(expected, 0.0485, rtol=2e-3)


def test_whitened_normal_is_a_gaussian(x64):
    """Its density and draws against a dense multivariate normal."""
    root = RNG.normal(size=(5, 5))
    covariance = root @ root.T + np.eye(5)
    whitening = jnp.asarray(np.linalg.inv(np.linalg.cholesky(covariance)))
    mean = jnp.arange(5.0)
    ours = WhitenedNormal(mean, whitening)
    reference = numpyro.distributions.MultivariateNormal(mean, jnp.asarray(covariance))
    x = jnp.asarray(RNG.normal(size=(7, 5)))
    assert_allclose(ours.log_prob(x), reference.log_prob(x), rtol=1e-10)
    draws = np.asarray(ours.sample(jax.random.key(0), (40_000,)))
    assert_allclose(np.cov(draws.T), covariance, atol=5 * covariance.max() * np.sqrt(2 / 40_000))


def test_whitened_normal_leaves_missing_components_alone():
    whitening = jnp.eye(4).at[2, 2].set(0.0)
    draw = WhitenedNormal(jnp.full(4, 7.0), whitening).sample(jax.random.key(0), (3,))
    assert np.all(np.asarray(draw)[:, 2] == 7.0)


def test_robust_scale_flattens_the_tail():
    normal, robust = (WhitenedNormal(jnp.zeros(3), jnp.eye(3), s) for s in (0.0, 10.0))
    near, far = jnp.full(3, 0.1), jnp.full(3, 100.0)
    assert_allclose(robust.log_prob(near), normal.log_prob(near), rtol=1e-4)
    assert robust.log_prob(far) > 0.01 * normal.log_prob(far)


def test_label_mixture_draws(trained):
    draws = LabelMixture(trained.prior).sample(jax.random.key(0), (2, 50))
    assert draws.shape == (2, 50, 3) and bool(jnp.all(jnp.isfinite(draws)))


def test_sites_round_trip():
    model = initial_model(jax.random.key(0), RNG.normal(size=(50, 3)), np.zeros(6), np.zeros(6), hidden=(4, 5))
    back = model_from_sites(model_site_values(model), model.label_center, model.label_scale)
    assert all(jnp.array_equal(a, b) for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(back), strict=True))
