"""Pareto smoothing against ArviZ, and where it must give the alarm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm, t

from xpbayes.analysis.posterior_file import import_arviz
from xpbayes.inference.sampling import psis

RNG = np.random.default_rng(0)
pareto_smoothed = jax.jit(psis.pareto_smoothed)


def _arviz(ln_ratio):
    """Weights and k of ArviZ's psislw; from 1.0 on it takes the log likelihood, of opposite sign, and is elsewhere."""
    az = import_arviz()
    if int(az.__version__.split(".")[0]) < 1:
        ln_weight, k = az.psislw(np.asarray(ln_ratio, float))
    else:
        from arviz_stats.base import array_stats

        ln_weight, k = array_stats.psislw(-np.asarray(ln_ratio, float))
    return np.exp(np.asarray(ln_weight)), float(k)


def _ln_ratio(proposal_scale, n=400, seed=0):
    """Standard normal target under a normal proposal of another width; in the bulk k is about 1 - scale^2.

    ArviZ 0.23 rounds the number of draws in the tail up, as the paper does and we do; 1.x rounds it down. For these numbers
    of draws 3 sqrt(n), or n / 5, is a whole number.
    """
    x = proposal_scale * np.random.default_rng(seed).normal(size=n)
    return norm.logpdf(x) - norm.logpdf(x, scale=proposal_scale)


CASES = {
    "wider": _ln_ratio(1.3),
    "a little too narrow": _ln_ratio(0.85),
    "too narrow": _ln_ratio(0.5),
    "far too narrow": _ln_ratio(0.3),
    "many draws": _ln_ratio(0.8, 4096),
    "few draws": _ln_ratio(0.8, 100),
    "pareto": -np.log(RNG.random(400)) * 0.6,
    "shifted by a constant": _ln_ratio(0.7) + 300.0,
}


@pytest.mark.parametrize("case", CASES)
def test_weights_and_k_equal_arviz(case, x64):
    expected, k = _arviz(CASES[case])
    weight, k_hat = pareto_smoothed(jnp.asarray(CASES[case]))
    assert_allclose(k_hat, k, atol=1e-6)
    assert_allclose(weight, expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_single_precision_agrees_with_arviz(case):
    expected, k = _arviz(CASES[case])
    weight, k_hat = pareto_smoothed(jnp.asarray(CASES[case], jnp.float32))
    assert_allclose(k_hat, k, atol=0.01)
    assert_allclose(weight, expected, rtol=0.02, atol=1e-6)


def test_sign_matters():
    """The must-fail case of the comparison: ratios upside down are other ratios."""
    ln_ratio = jnp.asarray(_ln_ratio(0.5), jnp.float32)
    assert abs(float(pareto_smoothed(ln_ratio)[1]) - float(pareto_smoothed(-ln_ratio)[1])) > 0.5


def test_weights_add_up_to_one_and_keep_their_order():
    ln_ratio = jnp.asarray(_ln_ratio(0.6), jnp.float32)
    weight, _ = pareto_smoothed(ln_ratio)
    assert_allclose(weight.sum(), 1.0, rtol=1e-5)
    assert np.all(np.diff(np.asarray(weight)[np.argsort(ln_ratio)]) >= -1e-9)


def test_a_bad_proposal_is_told_from_a_good_one():
    good, bad = (float(pareto_smoothed(jnp.asarray(_ln_ratio(s), jnp.float32))[1]) for s in (1.3, 0.3))
    assert good < 0.3 and bad > 0.7


def test_known_shape_is_recovered(x64):
    """Ratios that follow a Pareto law of shape k: the mean of k_hat over 40 sets of draws."""
    for k in (0.3, 0.6, 0.9):
        found = [
            float(pareto_smoothed(jnp.asarray(-k * np.log(np.random.default_rng(s).random(2048))))[1])
            for s in range(40)
        ]
        assert_allclose(np.mean(found), k, atol=0.06)


def test_smoothing_makes_the_estimate_steadier():
    """The mean of x^2 under a Student t of 5 degrees of freedom, from a normal: spread over 200 sets of draws."""
    plain, smooth = [], []
    for seed in range(200):
        x = np.random.default_rng(seed).normal(size=256)
        ln_ratio = t.logpdf(x, 5) - norm.logpdf(x)
        raw = np.exp(ln_ratio) / np.exp(ln_ratio).sum()
        plain.append(raw @ x**2)
        smooth.append(np.asarray(pareto_smoothed(jnp.asarray(ln_ratio, jnp.float32))[0]) @ x**2)
    assert np.std(smooth) < np.std(plain)


def test_impossible_draws_have_no_weight():
    ln_ratio = jnp.asarray(_ln_ratio(1.2), jnp.float32).at[:20].set(-jnp.inf)
    weight, k_hat = pareto_smoothed(ln_ratio)
    assert np.all(np.asarray(weight[:20]) == 0) and bool(jnp.isfinite(k_hat))
    assert_allclose(weight.sum(), 1.0, rtol=1e-5)


def test_equal_ratios_give_equal_weights():
    weight, _ = pareto_smoothed(jnp.zeros(256))
    assert_allclose(weight, 1 / 256, rtol=1e-5)


def test_one_draw_that_carries_everything_gives_the_alarm():
    _, k_hat = pareto_smoothed(jnp.full(256, -200.0).at[7].set(0.0))
    assert not k_hat < 0.7
