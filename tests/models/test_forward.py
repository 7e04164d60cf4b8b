"""The forward model: laws of light, a network written out in NumPy, and its closed-form derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.conftest import as_double
from xpbayes.models import forward
from xpbayes.models.forward import initial_model

expand_ln_flux, ln_absolute_flux, predict_flux, predict_ln_flux, second_along, weighted_hessian = map(
    jax.jit,
    (
        forward.expand_ln_flux,
        forward.ln_absolute_flux,
        forward.predict_flux,
        forward.predict_ln_flux,
        forward.second_along,
        forward.weighted_hessian,
    ),
)
differentiated_slope = jax.jit(jax.jacfwd(forward.predict_ln_flux, argnums=1))
differentiated_hessian = jax.jit(jax.hessian(lambda model, u, w: w @ forward.predict_ln_flux(model, u), argnums=1))


@jax.jit
def differentiated_along(model, u, step):
    return jax.jacfwd(jax.jacfwd(lambda t: forward.predict_ln_flux(model, u + t * step)))(0.0)


RNG = np.random.default_rng(0)
LABELS = RNG.normal([5.0, -0.2, 3.0], [0.8, 0.3, 1.0], (500, 3))
HERE = np.array([4.4, -0.6, 2.1, -1.2, 0.7])


@pytest.fixture(scope="module")
def model():
    return initial_model(jax.random.key(0), LABELS, np.linspace(2, 5, 66), np.linspace(1.3, -2, 66))


def test_the_papers_network_has_4484_parameters(model):
    assert sum(leaf.size for leaf in (*model.weights, *model.biases, model.ln_curve)) == 4484


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


@pytest.fixture(scope="module", params=[(7,), (4, 6), (5, 3, 8)], ids=["one layer", "two", "three"])
def bent(request):
    """Small networks with weights and biases large enough to bend, and layers of unequal size; four labels once."""
    n_labels = 4 if len(request.param) == 2 else 3
    labels = RNG.normal(size=(200, n_labels)) * 0.7 + 1.0
    found = initial_model(jax.random.key(1), labels, np.linspace(0, 1, 9), np.linspace(0.5, -1, 9), request.param)
    weights = tuple(w + 0.5 * RNG.normal(size=w.shape).astype(np.float32) for w in found.weights)
    biases = tuple(b + 0.3 * RNG.normal(size=b.shape).astype(np.float32) for b in found.biases)
    return type(found)(weights, biases, found.ln_curve, found.label_center, found.label_scale)


def _point(model):
    return jnp.asarray(np.append(RNG.normal(1.0, 0.5, model.n_labels), RNG.normal([-1.0, 0.4], 0.3)))


def test_expansion_equals_automatic_differentiation(bent, x64):
    model = as_double(bent)
    for _ in range(5):
        u = _point(model)
        at = expand_ln_flux(model, u, 2.5)
        assert_allclose(at.value, predict_ln_flux(model, u, 2.5), rtol=1e-13, atol=1e-13)
        assert_allclose(at.slope.T, differentiated_slope(model, u, 2.5), rtol=1e-11, atol=1e-13)


def test_weighted_hessian_equals_automatic_differentiation(bent, x64):
    model = as_double(bent)
    for _ in range(5):
        u, weight = _point(model), jnp.asarray(RNG.normal(size=9))
        found = weighted_hessian(model, expand_ln_flux(model, u), weight)
        expected = differentiated_hessian(model, u, weight)
        assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
        assert np.abs(expected[: model.n_labels, : model.n_labels]).max() > 0.01, "nothing bends: nothing was tested"


def test_second_along_equals_two_forward_derivatives(bent, x64):
    model = as_double(bent)
    for _ in range(5):
        u, step = _point(model), jnp.asarray(RNG.normal(size=model.n_labels + 2))
        found = second_along(model, expand_ln_flux(model, u), step)
        assert_allclose(found, differentiated_along(model, u, step), rtol=1e-10, atol=1e-12)


def test_second_along_and_weighted_hessian_are_one_quadratic_form(bent, x64):
    """sum_c w_c step^T H_c step both ways."""
    model = as_double(bent)
    u, step, weight = _point(model), jnp.asarray(RNG.normal(size=model.n_labels + 2)), jnp.asarray(RNG.normal(size=9))
    at = expand_ln_flux(model, u)
    assert_allclose(
        step @ weighted_hessian(model, at, weight) @ step, weight @ second_along(model, at, step), rtol=1e-10
    )


def test_derivatives_hold_in_single_precision(model):
    """The catalogue runs in float32: the closed forms keep five digits of the largest entry."""
    u, weight = jnp.asarray(HERE, jnp.float32), jnp.asarray(RNG.normal(size=66), jnp.float32)
    at = expand_ln_flux(model, u)
    found = np.asarray(weighted_hessian(model, at, weight))
    with jax.enable_x64(True):
        double, v, w = as_double((model, u, weight))
        slope = np.asarray(differentiated_slope(double, v))
        expected = np.asarray(differentiated_hessian(double, v, w))
    assert_allclose(at.slope.T, slope, atol=1e-5 * np.abs(slope).max())
    assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
