"""Two stars in one source: the pair's posterior as a NumPyro model and as the solver's objective, and its derivatives."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpyro.infer.util import log_density

from tests.conftest import as_double
from xpbayes.inference.ridge import companion_ridge
from xpbayes.models.forward import predict_flux as predict_star_flux
from xpbayes.models.objective import curvature, objective
from xpbayes.models.pair import pair_of, predict_flux
from xpbayes.models.posterior import star_posterior, star_sites, theta_from_sites
from xpbayes.models.star_model import StarModel

RNG = np.random.default_rng(2)


@pytest.fixture(scope="module")
def ridge(trained):
    return companion_ridge(trained.star_model, trained.labels, np.asarray(trained.channels.wavelengths))


@pytest.fixture(scope="module")
def points(trained):
    """(star, parameter) pairs: labels, companion, ln E, ln parallax."""
    labels = trained.prior.mean[RNG.integers(0, 8, 20)] + RNG.normal(0, 0.05, (20, 3))
    return np.column_stack([labels, RNG.normal(0.3, 0.8, 20), RNG.normal(-2, 0.5, 20), RNG.normal(0.3, 0.5, 20)])


@pytest.mark.parametrize("curve_varies", [False, True])
def test_solver_and_numpyro_have_the_same_density_of_pairs(trained, sample, ridge, points, x64, curve_varies):
    stars = as_double(sample.take(np.arange(20)).stars(trained.labels)).blind()
    forward = trained.forward
    if curve_varies:
        forward = replace(forward, curve_variation=0.1 * jnp.exp(forward.ln_curve))
        points = np.insert(points, 3, RNG.normal(0, 1, 20), axis=1)
    model = StarModel(pair_of(as_double(forward), as_double(ridge)), as_double(trained.prior))
    assert points.shape[1] == model.forward.n_star_parameters
    other = points + RNG.normal(0, 0.05, points.shape)
    each = jax.jit(jax.vmap(partial(objective, model)))

    @jax.jit
    @jax.vmap
    def numpyro(star, u):
        batch = jax.tree.map(lambda leaf: leaf[None], star)
        sites = star_sites(u[None], curve_varies=curve_varies, pair=True)
        assert_allclose(np.shape(theta_from_sites(sites)), (1, u.size))
        return log_density(star_posterior, (batch, model), {}, sites)[0]

    ours, theirs = (f(stars, jnp.asarray(points)) - f(stars, jnp.asarray(other)) for f in (each, numpyro))
    assert_allclose(ours, -2 * theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.thorough
def test_derivatives_of_a_pair_are_those_of_its_objective(trained, sample, ridge, points, x64):
    """Gradient, Hessian and the bend along a step, in closed form, against JAX's."""
    stars = as_double(sample.take(np.arange(3)).stars(trained.labels)).blind()
    forward = as_double(replace(trained.forward, curve_variation=0.1 * jnp.exp(trained.forward.ln_curve)))
    model = StarModel(pair_of(forward, as_double(ridge)), as_double(trained.prior))
    u, steps = jnp.asarray(np.insert(points[:3], 3, 0.4, axis=1)), jnp.asarray(RNG.normal(size=(3, 7)))

    def ours(star, u, step):
        at, bend_along = curvature(model, star, u)
        rho_slope = at.information[0, 0] / jnp.sum(jax.jacfwd(white(star))(u)[:, 0] ** 2)
        return at.value, at.gradient, at.hessian, bend_along(step) / rho_slope

    def white(star):
        return lambda v: star.whitening @ predict_flux(model.forward, v, star.ln_scale)

    def theirs(star, u, step):
        density, flux = partial(objective, model, star), white(star)
        second = jax.jacfwd(jax.jacfwd(lambda t: flux(u + t * step)))(0.0)
        return density(u), jax.grad(density)(u), jax.hessian(density)(u), jax.jacfwd(flux)(u).T @ second

    for mine, right in zip(*(jax.jit(jax.vmap(f))(stars, u, steps) for f in (ours, theirs)), strict=True):
        assert_allclose(mine, right, rtol=1e-7, atol=1e-4)


def test_a_companion_without_light_leaves_the_single_star(trained, ridge, points):
    pair = pair_of(trained.forward, ridge)
    giant = jnp.asarray([4.6, -0.1, 2.2, -6.0, -2.0, 0.3], jnp.float32)
    flux = predict_flux(pair, giant)
    ratio = np.exp(float(pair.ln_flux_ratio(giant)))
    assert ratio < 5e-3
    assert_allclose(flux, predict_star_flux(trained.forward, pair.primary(giant)), rtol=3.0 * ratio)


def test_a_companion_is_at_most_about_as_bright_as_its_primary(trained, ridge):
    """On the main sequence the brightest companion is nearly the primary's twin."""
    pair = pair_of(trained.forward, ridge)
    for teff in (4.2, 4.8, 5.4, 6.0):
        logg = float(ridge.logg_at(jnp.asarray(teff), jnp.asarray(-0.1)))
        twin = jnp.asarray([teff, -0.1, logg, 8.0, -2.0, 0.3], jnp.float32)
        assert abs(float(pair.companion(twin)[0]) - teff) < 0.4
        assert abs(float(pair.ln_flux_ratio(twin))) < 0.5
