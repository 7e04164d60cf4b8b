import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

from xpbayes.models.theta import to_linear, to_log

THETA = np.array([5.0, 0.1, 4.0, 0.3, 2.0])


def test_labels_stay_and_the_others_are_logarithms():
    theta_log = np.append(THETA[:3], np.log(THETA[3:]))
    assert_allclose(to_linear(theta_log), THETA, rtol=1e-15)
    assert_allclose(to_log(THETA), theta_log, rtol=1e-15)


def test_there_and_back_with_any_leading_axes():
    many = np.tile(THETA, (2, 3, 1))
    assert_allclose(to_linear(to_log(many)), many, rtol=1e-15)
    assert jax.vmap(to_linear)(jnp.asarray(many[0])).shape == (3, 5)


def test_arrays_stay_what_they_are():
    """NumPy in double precision must not come back as JAX's single precision."""
    assert type(to_log(THETA)) is np.ndarray and to_log(THETA).dtype == np.float64
    assert isinstance(to_log(jnp.asarray(THETA)), jax.Array)
