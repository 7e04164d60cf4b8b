import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from xpbayes.models.forward import initial_model, ln_absolute_flux, n_parameters, predict_flux

RNG = np.random.default_rng(0)
LABELS = RNG.normal([5.0, -0.2, 3.0], [0.8, 0.3, 1.0], (500, 3))


@pytest.fixture(scope="module")
def model():
    return initial_model(jax.random.key(0), LABELS, np.linspace(2, 5, 66), np.linspace(1.3, -2, 66))


def test_the_papers_network_has_4484_parameters(model):
    assert n_parameters(model) == 4484


def test_a_numpy_network_agrees(model):
    """Written out in NumPy, float64."""
    x = (LABELS[:20] - np.asarray(model.label_center, float)) / np.asarray(model.label_scale, float)
    for w, b in zip(model.weights[:-1], model.biases[:-1], strict=True):
        x = np.tanh(x @ np.asarray(w, float) + np.asarray(b, float))
    expected = x @ np.asarray(model.weights[-1], float) + np.asarray(model.biases[-1], float)
    got = jax.vmap(lambda t: ln_absolute_flux(model, t))(jnp.asarray(LABELS[:20], jnp.float32))
    assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_inverse_square_law(model):
    here = jnp.array([5.0, 0.0, 4.0, -2.0, 0.0])
    assert_allclose(predict_flux(model, here.at[-1].add(jnp.log(3.0))), 9 * predict_flux(model, here), rtol=1e-5)


def test_one_kiloparsec_without_dust_is_the_absolute_flux(model):
    flux = predict_flux(model, jnp.array([5.0, 0.0, 4.0, -30.0, 0.0]))
    assert_allclose(flux, jnp.exp(ln_absolute_flux(model, jnp.array([5.0, 0.0, 4.0]))), rtol=1e-5)


def test_dust_dims_by_the_curve(model):
    clear = predict_flux(model, jnp.array([5.0, 0.0, 4.0, -30.0, 0.3]))
    dusty = predict_flux(model, jnp.array([5.0, 0.0, 4.0, np.log(0.7), 0.3]))
    assert_allclose(-jnp.log(dusty / clear) / 0.7, jnp.exp(model.ln_curve), rtol=1e-4)


def test_the_scale_is_only_a_unit(model):
    here = jnp.array([5.0, 0.0, 4.0, -1.0, 2.0])
    assert_allclose(predict_flux(model, here, 4.0) * np.exp(4.0), predict_flux(model, here), rtol=1e-5)


def test_inputs_are_normalised_by_the_labels(model):
    low, middle, high = np.percentile(LABELS, [16, 50, 84], axis=0)
    assert_allclose(model.label_center, middle, rtol=1e-6)
    assert_allclose(model.label_scale, (high - low) / 2, rtol=1e-6)
