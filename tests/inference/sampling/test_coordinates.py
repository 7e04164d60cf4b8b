"""Coordinates of a star's posterior: the same density as the NumPyro model's, and its own Jacobian."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpyro.infer.util import log_density

from tests.conftest import as_double
from xpbayes.config import InferenceConfig
from xpbayes.data.stars import ParallaxDoubt
from xpbayes.inference.fit import fit_stars
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.inference.sampling.coordinates import coordinates_at, evaluate, intrinsic, place, potential
from xpbayes.models.posterior import star_posterior, star_sites

RNG = np.random.default_rng(0)
POINTS = RNG.standard_t(5, size=(16, 5)) * 1.5


@pytest.fixture(scope="module")
def real(trained, sample):
    """Sixteen real stars at their optima."""
    stars = sample.take(np.arange(16)).stars(trained.labels)
    config = InferenceConfig(n_nodes=256, n_starts=2, use_parallax=False, n_draws=0)
    found = fit_stars(trained.star_model, stars, config)
    linear = np.asarray(found.estimate, float)
    mode = jnp.asarray(np.concatenate([linear[:, :3], np.log(linear[:, 3:])], axis=1), jnp.float32)
    blind = jax.tree.map(jnp.asarray, stars.blind(parallax=False))
    return fold_in_model_error(trained.star_model, blind), mode


_coordinates_at = jax.jit(coordinates_at)
_potential = jax.jit(potential)


@jax.jit
def _densities(model, one, coordinates, z):
    """U, -ln p by NumPyro, ln |du / dz|, and how far the density of (labels, E, parallax) is from NumPyro's."""
    star = one.take(0)
    _, u, ln_linear = evaluate(model, star, coordinates, z)
    jacobian = jax.jacfwd(lambda at: evaluate(model, star, coordinates, at)[1])(z)
    ln_p, _ = log_density(star_posterior, (one, model), {}, star_sites(u[None]))
    ln_det = jnp.linalg.slogdet(jacobian)[1]
    return potential(model, star, coordinates, z), -ln_p, ln_det, ln_linear - (ln_p - u[-2] - u[-1])


@pytest.mark.parametrize(("row", "with_parallax"), [(0, False), (3, True), (9, False)])
def test_potential_is_numpyros_density_and_the_jacobian(trained, real, row, with_parallax, x64):
    """U(z) = -ln p(labels, ln E, ln parallax) - ln |du / dz| + constant, the determinant by automatic differentiation."""
    model, stars, modes = as_double((trained.star_model.without_error, *real))
    if with_parallax:
        plx = jnp.exp(modes[:, -1])
        doubt = ParallaxDoubt(jnp.full(16, 0.2), jnp.full(16, 0.125))
        stars = replace(stars, parallax=0.8 * plx, parallax_inv_error=20 / plx, doubt=doubt)
    one = stars.take(slice(row, row + 1))
    coordinates = _coordinates_at(model, one.take(0), modes[row])
    found = [_densities(model, one, coordinates, jnp.asarray(z)) for z in POINTS]
    u, minus_ln_p, ln_det, off = (np.array(v) for v in zip(*found, strict=True))
    assert_allclose(np.ptp(u - (minus_ln_p - ln_det)), 0.0, atol=1e-6)
    assert_allclose(np.ptp(off), 0.0, atol=1e-6, err_msg="density of (labels, E, parallax)")
    assert np.ptp(u - minus_ln_p) > 0.3, "without the Jacobian it would be another density"


def test_place_is_the_inverse_of_intrinsic(trained, real, x64):
    model, stars, modes = as_double((trained.star_model.without_error, *real))
    for row in (0, 5):
        coordinates = _coordinates_at(model, stars.take(row), modes[row])
        for z in POINTS:
            labels, ln_extinction, stretch = intrinsic(coordinates, jnp.asarray(z))
            back, same_stretch = place(coordinates, labels, ln_extinction, jnp.asarray(z[-1]))
            assert_allclose(back, z, atol=1e-8)
            assert_allclose(stretch, same_stretch, rtol=1e-10)
            assert np.exp(ln_extinction) > 0


def test_the_optimum_is_near_the_origin_and_units_are_sigmas(trained, real):
    """At z = 0 the density is near its highest, one unit away about a half lower in ln: Laplace's approximation."""
    stars, modes = real
    drops = []
    for row in range(8):
        star = stars.take(row)
        coordinates = _coordinates_at(trained.star_model.without_error, star, modes[row])
        at = partial(_potential, trained.star_model.without_error, star, coordinates)
        steps = [at(jnp.asarray(sign * axis, jnp.float32)) - at(jnp.zeros(5)) for axis in np.eye(5) for sign in (1, -1)]
        drops.append(np.mean(np.array(steps).reshape(5, 2), axis=1))
    assert_allclose(np.median(drops, axis=0), 0.5, atol=0.25)
