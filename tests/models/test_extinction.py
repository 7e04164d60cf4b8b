import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from xpbayes.models.extinction import FallOff, NearInfraredLaw, ReddeningLaw, attenuate, grey_excess

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
    assert_allclose(grey_excess(jnp.exp(LN_CURVE) + 0.3, law), 0.3, atol=1e-5)
    assert_allclose(grey_excess(jnp.exp(LN_CURVE) - 0.3, law), -0.3, atol=1e-5)
    # A law that no positive curve of this shape obeys: R stays positive.
    assert_allclose(grey_excess(jnp.exp(LN_CURVE), NearInfraredLaw(60, 0, 1e-3)), 0.9 * jnp.exp(0.5), rtol=1e-6)


@pytest.mark.parametrize(("w1", "ratio"), [(0.18, 0.12), (0.21, 0.13), (0.9, 0.134)])
def test_a_ratio_goes_with_how_r_falls_off_and_not_with_what_is_grey(w1, ratio):
    """J = 1, Ks = 0.4: the fall is (w1 - 0.12) / 0.6, 0.1 in a typical law; 0.17 is the steepest that is looked at."""
    law = NearInfraredLaw(3, 0, 0.12, fall_off=FallOff((2, 3, 0, 1), 0.1, 0.2))
    curve = jnp.array([1.0, 0.4, w1, 0.12])
    assert_allclose(law.ratio_of(curve), ratio, rtol=1e-5)
    for grey in (0.0, 0.05):
        excess = grey_excess(curve + grey, law)
        left = curve + grey - excess
        assert_allclose(left[3] / left[0], ratio, rtol=1e-5)
        assert_allclose(excess - grey, grey_excess(curve, law), atol=1e-6)
    assert law.in_words(("J", "Ks", "W1", "W2")) == "R(W2) / R(J) = 0.12 + 0.2 ((R(W1) - R(W2)) / (R(J) - R(Ks)) - 0.1)"


def test_r_v_is_told_where_xi_is_known_and_a_law_reaches():
    law = ReddeningLaw((-4.0, -2.0, 0.0, 2.0, 4.0), (2.3, 2.3, 2.9, 3.7, 3.7))
    r_v, error = law.measured_r_v(np.array([0.0, 0.0, 1.0, -4.0, 9.0]), np.array([0.2, 0.71, 0.7, 0.1, 0.1]))
    assert_allclose(r_v, [2.9, np.nan, 3.3, np.nan, np.nan])
    assert_allclose(error[[0, 2]], [0.2 * 0.35, 0.7 * 0.275])
    assert np.isnan(error[[1, 3, 4]]).all()
    assert ReddeningLaw.of_card({"reddening_law": {"xi": [0, 1], "r_v": [3, 4]}}) == ReddeningLaw((0, 1), (3, 4))
    assert ReddeningLaw.of_card({}) is None
