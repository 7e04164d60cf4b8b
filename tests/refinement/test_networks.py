"""The mixture density of one member against SciPy's Gaussians in float64, and what an untrained member says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from xpbayes.refinement.networks import (
    FIRST_LN_WEIGHTS,
    FIRST_LN_WIDTHS,
    Mixture,
    RefinementNets,
    initial_layers,
    ln_density,
    mixture,
    standardised,
)

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("n_labels", [1, 3, 4])
def test_density_is_that_of_a_mixture_of_gaussians_widened_by_the_errors_of_labels(n_labels):
    n, k = 6, 2
    ln_weight = np.log(RNG.dirichlet(np.ones(k), n))
    mean = RNG.normal(size=(n, k, n_labels))
    factor = np.tril(RNG.normal(size=(n, k, n_labels, n_labels)) * 0.3) + np.eye(n_labels) * 0.8
    value, error = RNG.normal(size=(n, n_labels)), RNG.uniform(0.1, 1.0, (n, n_labels))
    of = Mixture(*(jnp.asarray(v, jnp.float32) for v in (ln_weight, mean, factor)))
    found = ln_density(of, jnp.asarray(value, jnp.float32), jnp.asarray(error, jnp.float32))
    for i in range(n):
        each = [
            ln_weight[i, j]
            + multivariate_normal(mean[i, j], factor[i, j] @ factor[i, j].T + np.diag(error[i] ** 2)).logpdf(value[i])
            for j in range(k)
        ]
        assert found[i] == pytest.approx(logsumexp(each), abs=2e-4)


def test_an_untrained_member_gives_the_forward_posterior_back():
    """The last layer's weights are small: means are near 0, the common component is as wide as the forward posterior."""
    layers = initial_layers(jax.random.key(1), 20, (32, 32), 3)
    sigma = jnp.asarray([[0.5, 1.0, 2.0]])
    of = mixture(layers, jnp.asarray(RNG.normal(size=(1, 20)), jnp.float32), sigma)
    width = np.sqrt(np.sum(np.asarray(of.factor) ** 2, axis=3))[0]
    assert np.max(np.abs(of.mean)) < 0.5
    np.testing.assert_allclose(np.log(width / sigma[0]), np.tile(FIRST_LN_WIDTHS[:, None], 3), atol=0.5)
    np.testing.assert_allclose(of.ln_weight[0] - of.ln_weight[0, 0], FIRST_LN_WEIGHTS, atol=0.5)


def test_twice_the_noise_is_twice_the_width():
    """Widths are multiples of the forward posterior's, whatever the features say."""
    layers = initial_layers(jax.random.key(2), 5, (16,), 2)
    features = jnp.asarray(RNG.normal(size=(4, 5)), jnp.float32)
    one, two = (mixture(layers, features, s * jnp.ones((4, 2))) for s in (1.0, 2.0))
    np.testing.assert_allclose(two.factor, 2.0 * one.factor, rtol=1e-6)
    np.testing.assert_array_equal(two.mean, one.mean)


def test_no_single_feature_decides():
    nets = RefinementNets((), (), jnp.zeros(2), jnp.asarray([1.0, 0.0]), jnp.ones(1), jnp.ones(1))
    found = standardised(nets, jnp.asarray([[1e6, 1e6], [-1e6, 3.0]]))
    np.testing.assert_array_equal(found, [[8.0, 0.0], [-8.0, 0.0]])
