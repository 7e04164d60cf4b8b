"""Mixtures fitted to weighted draws, and their quantiles: against NumPy and scikit-learn."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from xpbayes.inference.sampling import weighted_mixture as fitted_mixture
from xpbayes.inference.sampling.importance import ROUND_STEPS, ROUND_TERMS
from xpbayes.inference.sampling.weighted_mixture import EM_STEPS, N_TERMS, fit_mixture, weighted_quantiles

RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def bent():
    """Draws along a parabola, as a ridge between giants and dwarfs is, with a second clump."""
    along = RNG.normal(size=900)
    ridge = np.column_stack([along, 0.8 * along**2, 0.3 * along]) + 0.15 * RNG.normal(size=(900, 3))
    clump = np.array([4.0, -2.0, 1.0]) + 0.3 * RNG.normal(size=(300, 3))
    return np.concatenate([ridge, clump])


def _ln_density(fitted, z):
    terms = zip(*map(np.asarray, fitted), strict=True)
    return logsumexp([s + multivariate_normal(m, f @ f.T).logpdf(z) for s, m, f in terms], axis=0)


def test_a_fit_with_more_steps_is_as_good_as_scikit_learn_s(bent, monkeypatch):
    """Mean ln density of the draws: scikit-learn's less what the wide term's tenth costs, ln 0.9, and 0.15.

    Without what widens terms on purpose, which a proposal needs and a description of the draws does not.
    """
    for name, value in (("MIN_WEIGHT", 1e-5), ("FLOOR", 1e-6)):
        monkeypatch.setattr(fitted_mixture, name, value)
    fitted = fit_mixture(jnp.asarray(bent, jnp.float32), jnp.full(len(bent), 1 / len(bent)), steps=200)
    assert_allclose(np.exp(np.asarray(fitted.ln_share)).sum(), 1.0, atol=1e-5)
    reference = GaussianMixture(N_TERMS, random_state=0, n_init=3).fit(bent)
    assert _ln_density(fitted, bent).mean() > reference.score(bent) + np.log(0.9) - 0.15


@pytest.mark.parametrize("size", [(N_TERMS, EM_STEPS), (ROUND_TERMS, ROUND_STEPS)])
def test_a_few_steps_follow_a_bend_far_better_than_one_gaussian(bent, size):
    fit = jax.jit(partial(fit_mixture, n_terms=size[0], steps=size[1]))
    fitted = fit(jnp.asarray(bent, jnp.float32), jnp.full(len(bent), 1 / len(bent)))
    one = multivariate_normal(bent.mean(axis=0), np.cov(bent.T)).logpdf(bent).mean()
    assert _ln_density(fitted, bent).mean() > one + 0.5


def test_weights_count_as_repeated_draws(bent):
    """Draws of weight two and the same draws twice give one mixture."""
    times = RNG.integers(1, 3, len(bent))
    fit = jax.jit(fit_mixture)
    weighted = fit(jnp.asarray(bent, jnp.float32), jnp.asarray(times / times.sum(), jnp.float32))
    repeated = np.repeat(bent, times, axis=0)
    plain = fit(jnp.asarray(repeated, jnp.float32), jnp.full(len(repeated), 1 / len(repeated)))
    assert_allclose(_ln_density(weighted, bent), _ln_density(plain, bent), atol=0.05)


@pytest.mark.parametrize("n", [5, 400])
def test_quantiles_equal_numpy_s(n):
    """NumPy's weighted inverse of the distribution function."""
    values, weight = RNG.normal(size=n), RNG.random(n)
    weight /= weight.sum()
    at = np.array([0.16, 0.5, 0.84])
    found = weighted_quantiles(*(jnp.asarray(v, jnp.float32) for v in (values, weight, at)))
    expected = np.quantile(values, at, weights=weight, method="inverted_cdf")
    assert_allclose(found, expected, atol=1e-5)
