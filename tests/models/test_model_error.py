"""The model's own error: features of a spectrum, kinds of star, and what they do to a star's whitening."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from xpbayes.data.stars import Stars
from xpbayes.models.model_error import (
    MIN_CHANNEL_SNR,
    RIDGE,
    SOFTENING,
    ModelError,
    kind_weights,
    raw_features,
    relative_sigma,
    with_model_error,
)

RNG = np.random.default_rng(0)
N = 10
SHAPES = np.linalg.qr(np.column_stack([np.ones(N), RNG.normal(size=(N, 2))]))[0][:, 1:]


def _star(flux, relative_error):
    whitening = np.diag(1 / (relative_error * np.abs(flux)))
    zero = np.zeros(())
    values = (flux, whitening, zero, zero, zero, np.zeros(3), np.zeros(3), zero, zero, zero)
    return Stars(*(jnp.asarray(v, jnp.float64) for v in values))


def _covariance():
    root = 0.05 * RNG.normal(size=(N, 4))
    return root @ root.T


@pytest.fixture
def error(x64):
    """Three kinds in a plane of two shapes and ln S/N."""
    kinds = np.array([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, -1.5, 1.0]])
    values = (
        SHAPES, np.array([0.1, -0.2, 4.0]), np.array([0.5, 0.4, 1.0]), kinds, 0.6,
        np.stack([_covariance() for _ in range(3)]), np.array([0.0, 0.2, 0.5]), np.array([0.5, 0.3, 0.2]),
    )  # fmt: skip
    return ModelError(*(jnp.asarray(v, jnp.float64) for v in values))


def _spectrum(error, normalised):
    """A star whose features are the given normalised ones."""
    features = np.asarray(error.feature_center) + np.asarray(error.feature_scale) * np.asarray(normalised)
    return _star(np.exp(SHAPES @ features[:2]), np.exp(-features[2]))


def test_features_are_the_shape_and_the_signal_to_noise(x64):
    """Made of known shape coefficients at S/N 100: both come back, whatever the brightness."""
    known = np.array([0.7, -0.3])
    for grey in (0.01, 1.0, 50.0):
        star = _star(grey * np.exp(SHAPES @ known), 0.01)
        # The ridge takes a share of the order of its size over the weights.
        assert_allclose(raw_features(jnp.asarray(SHAPES), star)[:2], known, atol=1e-4)
        assert_allclose(raw_features(jnp.asarray(SHAPES), star)[2], np.log(100), rtol=1e-10)


def test_features_equal_a_weighted_least_squares_fit(x64):
    """NumPy's lstsq with the ridge as extra rows; noise of another size in every channel."""
    flux, sigma = RNG.uniform(0.5, 2, N), RNG.uniform(0.005, 0.3, N)
    flux[3], present = -0.1, np.delete(np.arange(N), 3)
    root = np.sqrt(1 / (sigma**2 + SOFTENING**2))[present]
    design = np.column_stack([np.ones(N), SHAPES])[present]
    stacked = np.vstack([root[:, None] * design, np.sqrt(RIDGE) * np.eye(3)])
    expected = np.linalg.lstsq(stacked, np.append(root * np.log(flux[present]), np.zeros(3)), rcond=None)[0]
    found = raw_features(jnp.asarray(SHAPES), _star(flux, sigma))
    assert_allclose(found[:2], expected[1:], rtol=1e-8)
    assert_allclose(found[2], np.log(np.maximum(1 / sigma[present], MIN_CHANNEL_SNR)).mean(), rtol=1e-10)


def test_missing_channels_do_not_count(x64):
    star = _star(np.exp(SHAPES @ [0.4, 0.2]), 0.02)
    whitening = star.whitening.at[2].set(0.0).at[:, 2].set(0.0)
    absent = replace(star, whitening=whitening, flux=star.flux.at[2].set(77.0))
    assert_allclose(raw_features(jnp.asarray(SHAPES), absent), raw_features(jnp.asarray(SHAPES), star), atol=1e-3)


def test_a_star_of_nothing_has_finite_features(x64):
    nothing = replace(_star(np.ones(N), 0.1), whitening=jnp.zeros((N, N)))
    assert_allclose(raw_features(jnp.asarray(SHAPES), nothing), 0.0, atol=1e-12)


def test_weights_are_a_softmax_of_the_distance(error):
    """Written out in NumPy; they add up to one, and a star of one kind belongs to it."""
    for at in ([0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1.0, -0.4, 0.3]):
        distance2 = ((np.array(at) - np.asarray(error.kinds)) ** 2).sum(1)
        expected = np.exp(-0.5 * distance2 / 0.36)
        found = kind_weights(error, _spectrum(error, at))
        assert_allclose(found, expected / expected.sum(), atol=2e-3)
        assert_allclose(found.sum(), 1.0, rtol=1e-12)
    assert kind_weights(error, _spectrum(error, [2.0, 0.0, 0.0]))[1] > 0.95


def test_the_error_of_a_mixed_star_is_the_mixture(error):
    """Dense: (W^T W)^-1 = C + diag(f) sum_k w_k S_k diag(f); the tail is the same mixture."""
    star = _spectrum(error, [0.9, -0.5, 0.2])
    weight = np.asarray(kind_weights(error, star))
    assert weight.min() > 0.05 or np.sort(weight)[-2] > 0.05, "the star must be mixed"
    found = with_model_error(error, star)
    flux = np.asarray(star.flux)
    relative = np.einsum("k,kij->ij", weight, np.asarray(error.covariance))
    expected = np.linalg.inv(star.whitening.T @ star.whitening) + np.outer(flux, flux) * relative
    assert_allclose(np.linalg.inv(found.whitening.T @ found.whitening), expected, rtol=1e-8, atol=1e-12)
    assert_allclose(found.inv_dof, weight @ [0.0, 0.2, 0.5], rtol=1e-12)
    assert_allclose(found.flux, star.flux)


def test_kinds_far_away_have_no_influence(error):
    """A star of the second kind does not notice what the third one's covariance is."""
    star = _spectrum(error, [2.3, 0.3, -0.3])
    spoilt = replace(error, covariance=error.covariance.at[2].multiply(3.0))
    assert_allclose(
        with_model_error(spoilt, star).whitening, with_model_error(error, star).whitening, rtol=2e-3, atol=1e-2
    )


def test_relative_sigma_is_weighted_by_share(error):
    c = np.diagonal(error.covariance, axis1=1, axis2=2)
    assert_allclose(relative_sigma(error) ** 2, 0.5 * c[0] + 0.3 * c[1] + 0.2 * c[2], rtol=1e-12)


def test_single_precision_agrees(error):
    """The catalogue's arithmetic on a sharp measurement, S/N 300."""
    star = _spectrum(error, [0.9, -0.5, 1.7])
    with jax.enable_x64(False):
        single = with_model_error(*jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float32), (error, star)))
    assert_allclose(single.whitening, with_model_error(error, star).whitening, rtol=2e-3, atol=0.02)
