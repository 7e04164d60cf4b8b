from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from xpbayes.models import reliability as classifiers
from xpbayes.models.forward import predict_flux
from xpbayes.models.model_error import kind_weights
from xpbayes.models.reliability import ConfidenceNets, feature_names, flux_pulls, initial_nets, layers_ln_odds

RNG = np.random.default_rng(0)
confidence, network_input = jax.jit(classifiers.confidence), jax.jit(classifiers.network_input)
NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def nets() -> ConfidenceNets:
    """Untrained; feature c did not exist in training, feature d was sometimes absent."""
    made = initial_nets(
        jax.random.key(0),
        jnp.array([1.0, 2.0, 0.0, 4.0]),
        jnp.array([1.0, 0.5, 0.0, 2.0]),
        jnp.array([0.0, 0.0, 0.0, 1.0]),
        ("teff", "logg"),
        NAMES,
    )
    biases = tuple(jnp.asarray(RNG.normal(size=b.shape), jnp.float32) for b in made.biases)
    return replace(made, biases=biases)


def test_classifiers_are_three_layers_of_64_rectified_neurons_and_a_sigmoid(nets):
    x = np.array([1.5, 1.0, 7.0, 4.2])
    h0 = np.concatenate([(x - [1, 2, 0, 4]) * [1, 0.5, 0, 2], np.zeros(4)])
    for t in range(2):
        h = h0
        assert [w.shape[2] for w in nets.weights] == [64, 64, 64, 1]
        for w, b in zip(nets.weights[:-1], nets.biases[:-1], strict=True):
            h = np.maximum(h @ np.asarray(w[t], np.float64) + np.asarray(b[t]), 0)
        odds = h @ np.asarray(nets.weights[-1][t], np.float64) + np.asarray(nets.biases[-1][t])
        assert_allclose(confidence(nets, jnp.asarray(x))[t], 1 / (1 + np.exp(-odds[0])), rtol=1e-4)


def test_an_absent_feature_is_its_median_unless_absence_was_learnt(nets):
    value = jnp.array([0.3, 1.0, 0.0, 5.0])
    median = confidence(nets, value.at[0].set(1.0))
    assert_allclose(confidence(nets, value.at[0].set(jnp.nan)), median, rtol=1e-6)
    assert_allclose(network_input(nets, value.at[3].set(jnp.nan))[4:], [0, 0, 0, 1])
    assert np.all(np.abs(confidence(nets, value.at[3].set(jnp.nan)) - confidence(nets, value.at[3].set(4.0))) > 1e-4)


def test_a_feature_that_training_never_had_is_ignored(nets):
    value = jnp.array([0.3, 1.0, 0.0, 5.0])
    for c in (-1e6, 3.0, np.nan, np.inf):
        assert_allclose(confidence(nets, value.at[2].set(c)), confidence(nets, value), rtol=0)


def test_one_wild_feature_is_clipped(nets):
    value = jnp.array([0.3, 1.0, 0.0, 5.0])
    assert_allclose(network_input(nets, value.at[0].set(1e9))[0], 10.0)


def test_dropout_keeps_the_mean_of_a_linear_layer(nets):
    """Inputs that are left are divided by the share that is left."""
    x = jnp.asarray(RNG.normal(size=8), jnp.float32)
    keep = [jnp.ones((2, 8), bool), jnp.ones((2, 64), bool), jnp.ones((2, 64), bool)]
    linear = (nets.weights[-1][:, :8], nets.biases[-1])
    one = layers_ln_odds((jnp.tile(jnp.eye(8), (2, 1, 1)), linear[0]), (jnp.zeros((2, 8)), linear[1]), jnp.abs(x), keep)
    plain = layers_ln_odds((jnp.tile(jnp.eye(8), (2, 1, 1)), linear[0]), (jnp.zeros((2, 8)), linear[1]), jnp.abs(x))
    assert_allclose((one - linear[1][:, 0]) * 0.9, plain - linear[1][:, 0], rtol=1e-5)


def test_feature_names_are_those_of_appendix_b():
    names = feature_names(("teff", "feh", "logg"), ("xp392", "Ks"))
    assert len(set(names)) == len(names) == 20 + 2  # Appendix B's list, and one residual a channel
    assert {"ln_rchi2_opt", "ln_dplx2", "logg_est_err", "asinh_bp_snr", "norm_dg", "asinh_residual_Ks"} <= set(names)


def test_flux_pulls_against_the_dense_covariance(trained, sample):
    """NumPy: sigma^2 from the inverse of W^T W over the channels that are there, the model's own error added before."""
    star = sample.take(np.arange(3)).stars(trained.labels)
    cut = np.array(star.whitening)
    cut[:, 5, :], cut[:, :, 5] = 0, 0
    star = jax.tree.map(jnp.asarray, replace(star, whitening=cut))
    u = jnp.array([[5.0, -0.2, 3.0, -2.0, 0.0]] * 3)
    got = np.asarray(jax.jit(jax.vmap(flux_pulls, (None, 0, 0)))(trained.star_model, star, u))
    there = np.arange(64) != 5
    for i in range(3):
        w = cut[i].astype(np.float64)[np.ix_(there, there)]
        flux = np.asarray(star.flux[i], np.float64)
        predicted = np.asarray(predict_flux(trained.forward, u[i], star.ln_scale[i]), np.float64)
        weight = np.asarray(kind_weights(trained.model_error, star.take(i)), np.float64)
        relative = np.einsum("k,kij->ij", weight, np.asarray(trained.model_error.covariance, np.float64))
        variance = np.diag(np.linalg.inv(w.T @ w)) + (predicted**2 * np.diag(relative))[there]
        assert_allclose(got[i, there], (predicted - flux)[there] / np.sqrt(variance), rtol=2e-3, atol=2e-3)
        assert np.isnan(got[i, 5])


def test_flux_pulls_at_the_star_s_own_level_know_no_grey_factor(trained, sample):
    """A parallax off by any factor leaves them as they are; without, it does not."""
    star = jax.tree.map(jnp.asarray, sample.take(np.arange(3)).stars(trained.labels))
    u = jnp.array([[5.0, -0.2, 3.0, -2.0, 0.0]] * 3)
    own_level = jax.jit(jax.vmap(lambda s, v: flux_pulls(trained.star_model, s, v, True)))
    pulls = [own_level(star, v) for v in (u, u.at[:, -1].add(0.3))]
    assert_allclose(*pulls, rtol=2e-3, atol=2e-3)
    plain = jax.jit(jax.vmap(lambda s, v: flux_pulls(trained.star_model, s, v)))(star, u)
    assert np.abs(plain - pulls[0]).max() > 1
