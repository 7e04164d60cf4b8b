import jax
import jax.numpy as jnp
from numpy.testing import assert_allclose

from xpbayes.models.extinction import attenuate

LN_FLUX, LN_CURVE = jnp.linspace(0.0, 1.0, 61), jnp.linspace(1.5, 0.5, 61)


def test_unit_optical_depth_dims_by_e():  # the definition, not a copy of the code
    assert_allclose(attenuate(LN_FLUX, jnp.array(1.0), jnp.zeros(61)), LN_FLUX - 1.0, rtol=1e-6)


def test_two_clouds_dim_like_their_sum():  # a law
    near = attenuate(LN_FLUX, jnp.array(0.5), LN_CURVE)
    assert_allclose(attenuate(near, jnp.array(1.0), LN_CURVE), attenuate(LN_FLUX, jnp.array(1.5), LN_CURVE), rtol=1e-5)


def test_slope_in_e_is_minus_the_curve():  # the solver and NUTS live on gradients
    assert_allclose(jax.jacfwd(attenuate, argnums=1)(LN_FLUX, jnp.array(1.0), LN_CURVE), -jnp.exp(LN_CURVE), rtol=1e-6)
