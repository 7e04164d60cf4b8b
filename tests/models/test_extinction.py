import jax
import jax.numpy as jnp
from numpy.testing import assert_allclose

from xpbayes.models.extinction import NearInfraredLaw, attenuate, grey_excess

LN_FLUX, LN_CURVE = jnp.linspace(0.0, 1.0, 61), jnp.linspace(1.5, 0.5, 61)
CURVE = jnp.exp(LN_CURVE)


def test_unit_optical_depth_dims_by_e():  # the definition, not a copy of the code
    assert_allclose(attenuate(LN_FLUX, jnp.array(1.0), jnp.ones(61)), LN_FLUX - 1.0, rtol=1e-6)


def test_two_clouds_dim_like_their_sum():  # a law
    near = attenuate(LN_FLUX, jnp.array(0.5), CURVE)
    assert_allclose(attenuate(near, jnp.array(1.0), CURVE), attenuate(LN_FLUX, jnp.array(1.5), CURVE), rtol=1e-5)


def test_slope_in_e_is_minus_the_curve():  # the solver and NUTS live on gradients
    assert_allclose(jax.jacfwd(attenuate, argnums=1)(LN_FLUX, jnp.array(1.0), CURVE), -CURVE, rtol=1e-6)


def test_grey_excess_is_what_was_added_to_a_curve_that_obeys_the_law():
    law = NearInfraredLaw(60, 50, float(jnp.exp(LN_CURVE[60] - LN_CURVE[50])))
    assert_allclose(grey_excess(jnp.log(jnp.exp(LN_CURVE) + 0.3), law), 0.3, atol=1e-5)
    assert_allclose(grey_excess(jnp.log(jnp.exp(LN_CURVE) - 0.3), law), -0.3, atol=1e-5)
    # A law that no positive curve of this shape obeys: R stays positive.
    assert_allclose(grey_excess(LN_CURVE, NearInfraredLaw(60, 0, 1e-3)), 0.9 * jnp.exp(0.5), rtol=1e-6)
