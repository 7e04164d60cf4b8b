"""The label prior against scikit-learn and against automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.mixture import GaussianMixture

from tests.conftest import as_double
from xpbayes.models.prior import LabelPrior, draw_labels, ln_prior, prior_curvature
from xpbayes.training.learn import fit_label_prior

RNG = np.random.default_rng(0)
ln_prior_of_all = jax.jit(jax.vmap(ln_prior, (None, 0)))


@pytest.fixture(scope="module")
def labels(sample):
    values = sample.labels(("teff", "feh", "logg"))[0]
    return values[np.isfinite(values).all(axis=1)]


@pytest.fixture(scope="module")
def prior(labels):
    return fit_label_prior(labels, 16, seed=0)


def test_equals_scikit_learn(labels):
    """The same mixture, with scikit-learn's own evaluation: 1e-5."""
    fit = GaussianMixture(16, random_state=0, max_iter=50, tol=1e-2).fit(labels)
    ours = LabelPrior(
        *(jnp.asarray(a, jnp.float32) for a in (np.log(fit.weights_), fit.means_, fit.precisions_cholesky_)),
        jnp.asarray(0.0),
    )
    got = ln_prior_of_all(ours, jnp.asarray(labels, jnp.float32))
    assert_allclose(got, fit.score_samples(labels), rtol=1e-5, atol=2e-5)


def test_is_normalised(prior):
    """Importance sampling from a wide Gaussian: the integral is one within five standard errors."""
    centre, width = np.asarray(prior.mean).mean(axis=0), np.array([3.0, 1.5, 3.0])
    x = RNG.normal(centre, width, (400_000, 3))
    ln_q = -0.5 * np.sum(((x - centre) / width) ** 2, axis=1) - np.sum(np.log(width)) - 1.5 * np.log(2 * np.pi)
    ratio = np.exp(np.asarray(ln_prior_of_all(prior, jnp.asarray(x, jnp.float32)), float) - ln_q)
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / np.sqrt(len(ratio))


def test_draws_follow_the_density(prior):
    """Mean and covariance of draws against those of the mixture, five standard errors."""
    draws = np.asarray(draw_labels(prior, jax.random.key(1), 100_000), float)
    weight = np.exp(np.asarray(prior.ln_weight, float))
    mean = weight @ np.asarray(prior.mean, float)
    assert np.all(np.abs(draws.mean(axis=0) - mean) < 5 * draws.std(axis=0) / np.sqrt(len(draws)))


def test_threshold_is_the_papers_quantile(prior):
    """0.1 % of other draws lie below it; tolerance four sigma of a binomial share."""
    draws = draw_labels(prior, jax.random.key(7), 100_000)
    below = float(jnp.mean(ln_prior_of_all(prior, draws) < prior.ln_threshold))
    assert abs(below - 1e-3) < 4 * np.sqrt(1e-3 * (1 / 1e5 + 1 / 2e5))


def test_curvature_equals_automatic_differentiation(prior, labels, x64):
    double = as_double(prior)
    closed_form = jax.jit(prior_curvature)
    value, gradient, hessian = map(jax.jit, (ln_prior, jax.grad(ln_prior, argnums=1), jax.hessian(ln_prior, argnums=1)))
    for t in jnp.asarray(labels[::200], jnp.float64):
        at = closed_form(double, t)
        assert_allclose(at.value, -value(double, t), rtol=1e-12)
        assert_allclose(at.gradient, -gradient(double, t), rtol=1e-8, atol=1e-8)
        assert_allclose(at.hessian, -hessian(double, t), rtol=1e-7, atol=1e-7)
        assert np.linalg.eigvalsh(at.bound)[0] > 0
        assert np.linalg.eigvalsh(at.bound - at.hessian)[0] > -1e-8  # a bound indeed
