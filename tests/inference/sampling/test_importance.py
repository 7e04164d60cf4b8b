"""Draws and summaries of one star's posterior: against SciPy, exact posteriors, and a long Markov chain."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS
from numpyro.infer.initialization import init_to_value
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, norm, truncnorm

from tests.conftest import QUICK, as_double
from xpbayes.config import InferenceConfig
from xpbayes.data.stars import Stars
from xpbayes.inference.errors import evaluate_mode
from xpbayes.inference.fit import fit_stars
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.inference.sampling.importance import (
    _above,
    given_labels,
    importance_draws,
    summarise,
)
from xpbayes.inference.search.solver import solve
from xpbayes.models.forward import ForwardModel, shape_and_level
from xpbayes.models.objective import objective
from xpbayes.models.posterior import star_posterior, star_sites
from xpbayes.models.prior import LabelPrior
from xpbayes.models.star_model import StarModel
from xpbayes.models.theta import to_linear, to_log

RNG = np.random.default_rng(0)
N = 12
SIGMA_E = 0.004
"""Error of E that the fluxes of the simulated stars leave [mag]."""


# --------------------------------------------------------------------------------------- simulated, exactly solvable


def _prior(weights=(1.0,), means=((0.0, 0.0, 0.0),), sigma=0.05):
    whitening = np.broadcast_to(np.eye(3) / sigma, (len(weights), 3, 3))
    values = (np.log(weights), np.array(means), whitening, -9.0)
    return LabelPrior(*(jnp.asarray(v, jnp.float32) for v in values))


@pytest.fixture(scope="module")
def plain():
    """A model whose flux does not depend on the labels: their posterior is the prior."""
    sizes = [(3, 4), (4, N)]
    weights = tuple(jnp.zeros(size) for size in sizes)
    biases = tuple(jnp.zeros(out) for _, out in sizes)
    forward = ForwardModel(weights, biases, jnp.linspace(1.0, -1.0, N), jnp.zeros(3), jnp.ones(3))
    return StarModel(forward, _prior())


def _dusty_stars(model, extinction, noise):
    """Stars at 1 mas whose parallax is known sharply, so that E is a Gaussian of width SIGMA_E from their fluxes."""
    n = len(extinction)
    curve = np.exp(np.asarray(model.forward.ln_curve, float))
    relative = SIGMA_E * np.linalg.norm(curve)
    flux = np.exp(-extinction[:, None] * curve)
    whitening = np.stack([np.diag(1 / (relative * f)) for f in flux])
    flux = flux * (1 + relative * noise)
    zero = np.zeros(n)
    values = (
        flux, whitening, zero, np.ones(n), np.full(n, 1e4), np.zeros((n, 3)), np.zeros((n, 3)), zero, zero, zero
    )  # fmt: skip
    return Stars(*(jnp.asarray(v, jnp.float32) for v in values))


def _mode(model, stars):
    start = jnp.tile(jnp.array([0.0, 0.0, 0.0, np.log(3 * SIGMA_E), 0.0]), (len(stars), 1))
    return solve(model, stars, start, 100).theta_log


def _summaries(model, stars):
    n, mode = len(stars), _mode(model, stars)
    return mode, summarise(model, stars, mode, mode, jnp.zeros(n, bool), jnp.arange(n, dtype=jnp.uint32), 1024)


@pytest.mark.thorough
def test_extinction_of_simulated_stars_is_a_cut_gaussian(plain):
    """E from fluxes with Gaussian errors under a flat prior: SciPy's truncated normal, star by star.

    Dust-free stars, and stars at one to five sigma, with noise: among them stars whose best E is negative.
    """
    extinction = SIGMA_E * np.repeat([0.0, 1.0, 2.0, 5.0], 16)
    noise = RNG.normal(size=(64, N))
    stars = _dusty_stars(plain, extinction, noise)
    curve = np.exp(np.asarray(plain.forward.ln_curve, float))
    # Linear in E at these errors, one per cent in flux: f / f_true = 1 - (E - E_true) R.
    best = (extinction - SIGMA_E * noise @ (curve / np.linalg.norm(curve))) / SIGMA_E
    assert best.min() < -1
    law = truncnorm(-best, np.inf, loc=best)
    mode, found = _summaries(plain, stars)
    assert_allclose(found.mean[:, 3] / SIGMA_E, law.mean(), atol=0.15)
    assert_allclose(found.std[:, 3] / SIGMA_E, law.std(), atol=0.1)
    for column, at in (("low", 0.16), ("median", 0.5), ("high", 0.84)):
        assert_allclose(getattr(found, column)[:, 3] / SIGMA_E, law.ppf(at), atol=0.2)
    assert np.all(found.k_hat < 0.7)
    # The mode in ln E is where the papers' formula has it, above both.
    assert_allclose(np.exp(mode[:, 3]) / SIGMA_E, 0.5 * (best + np.sqrt(best**2 + 4)), atol=0.15)
    assert np.all(np.exp(mode[:, 3]) > found.mean[:, 3])


def test_the_mode_is_high_where_mean_and_median_are_not(plain):
    """A noiseless dust-free star: mode 1 sigma, mean 0.80, median 0.67; at 4 sigma mean and median are unbiased."""
    stars = _dusty_stars(plain, SIGMA_E * np.array([0.0, 4.0] * 32), np.zeros((64, N)))
    mode, found = _summaries(plain, stars)
    free, dusty = (np.s_[i::2] for i in (0, 1))
    modes, means, medians = (
        np.asarray(v) / SIGMA_E for v in (jnp.exp(mode[:, 3]), found.mean[:, 3], found.median[:, 3])
    )
    assert_allclose(modes[free], 1.0, atol=0.05)
    assert_allclose(means[free].mean(), np.sqrt(2 / np.pi), atol=0.05)
    assert_allclose(medians[free].mean(), norm.ppf(0.75), atol=0.05)
    assert_allclose(means[dusty].mean(), 4.0, atol=0.05)
    assert_allclose(medians[dusty].mean(), 4.0, atol=0.05)
    assert modes[dusty].mean() > 4.15  # 2 + sqrt(5) = 4.24


def test_extinction_that_could_be_negative_is_unbiased_without_dust(plain):
    """64 stars with noise and no dust: E at the optimum, carried on below zero, is the least-squares answer, star by star.

    Its pulls average 0 within 3 / sqrt(64) of their standard deviation, where the mode's average is 1.1.
    """
    noise = RNG.normal(size=(64, N))
    stars = _dusty_stars(plain, np.zeros(64), noise)
    curve = np.exp(np.asarray(plain.forward.ln_curve, float))
    best = -noise @ (curve / np.linalg.norm(curve))
    mode = _mode(plain, stars)
    found = np.asarray(evaluate_mode(plain, stars, mode).unbounded, float)
    assert_allclose(found[:, 0] / SIGMA_E, best, atol=0.1)
    assert_allclose(found[:, 1] / SIGMA_E, 1.0, atol=0.05)
    pulls = found[:, 0] / found[:, 1]
    assert abs(pulls.mean()) < 3 / 8 and abs(pulls.std() - 1) < 3 / np.sqrt(128)
    assert np.mean(np.exp(mode[:, 3])) / SIGMA_E > 1


TWO = _prior((0.7, 0.3), ((-1.0, 0.0, 0.5), (1.0, 0.2, -0.5)))


def test_two_competing_optima_give_a_mixture(plain):
    """Fluxes that say nothing of the labels: their posterior is the prior, both components with their weights."""
    stars = _dusty_stars(plain, np.full(64, 10 * SIGMA_E), RNG.normal(size=(64, N)))
    tops = [jnp.tile(jnp.array([*np.asarray(m), np.log(10 * SIGMA_E), 0.0], jnp.float32), (64, 1)) for m in TWO.mean]
    two = replace(plain, prior=TWO)
    first, second = (solve(two, stars, top, 100).theta_log for top in tops)
    seed = jnp.arange(64, dtype=jnp.uint32)
    both = summarise(two, stars, first, second, jnp.ones(64, bool), seed, 512)
    alone = summarise(two, stars, first, second, jnp.zeros(64, bool), seed, 512)
    mean = 0.7 * np.asarray(TWO.mean[0]) + 0.3 * np.asarray(TWO.mean[1])
    std = np.sqrt(0.05**2 + 0.21 * np.asarray(TWO.mean[1] - TWO.mean[0]) ** 2)
    assert_allclose(both.mean[:, :3], np.tile(mean, (64, 1)), atol=0.06)
    assert_allclose(both.std[:, :3], np.tile(std, (64, 1)), atol=0.05)
    assert_allclose(np.mean(both.mean[:, 0]), mean[0], atol=0.02)
    assert np.all(np.asarray(both.low[:, 0]) < -0.9) and np.all(np.asarray(both.high[:, 0]) > 0.9)
    # Which of them is called the best does not matter.
    swapped = summarise(two, stars, second, first, jnp.ones(64, bool), seed, 512)
    assert_allclose(np.mean(swapped.mean[:, 0]), mean[0], atol=0.02)
    # Nor does it matter that the second was found at all: the prior's components are proposals of their own.
    assert_allclose(alone.mean[:, :3], np.tile(mean, (64, 1)), atol=0.06)
    assert_allclose(np.mean(alone.mean[:, 0]), mean[0], atol=0.02)


def test_inference_finds_both_and_mixes_them(plain):
    """From the start search to the summary; L of the optima differs by 2 ln of their odds."""
    stars = _dusty_stars(plain, np.full(8, 10 * SIGMA_E), RNG.normal(size=(8, N)))
    config = InferenceConfig(n_nodes=64, n_starts=3, n_draws=512, n_more_draws=0, use_parallax=True)
    found = fit_stars(replace(plain, prior=TWO), stars, config)
    assert_array_equal(found.n_modes, 2)
    assert_allclose(found.runner_up_delta, 2 * np.log(7 / 3), atol=0.02)
    assert_allclose(found.estimate[:, 0], -1.0, atol=0.02)
    assert_allclose(found.runner_up[:, 0], 1.0, atol=0.02)
    assert_allclose(found.mean[:, 0], -0.4, atol=0.06)


# ---------------------------------------------------------------------------------------------------- real stars


SEARCH = QUICK.model_copy(update={"n_draws": 0})
N_DRAWS, N_MORE = 512, 512


def _sampled(estimate):
    """(labels, E, parallax) to (labels, ln E, ln parallax)."""
    return jnp.asarray(to_log(np.asarray(estimate, float)), jnp.float32)


@pytest.fixture(scope="module")
def real(trained, sample):
    """Sixteen real stars without parallax at their best optima, every second with a parallax; some tails are heavy."""
    stars = sample.take(np.arange(16)).stars(trained.labels)
    found = fit_stars(trained.star_model, stars, SEARCH)
    blind = jax.tree.map(jnp.asarray, stars.blind(parallax=False))
    folded = fold_in_model_error(trained.star_model, blind, _sampled(found.estimate))
    return folded, _sampled(found.estimate), found


_objectives = jax.jit(jax.vmap(objective, (None, None, 0)))


def _pulls(ln_values):
    """Ln of the means of exp(rows), less their own mean, in units of their sampling errors; rows known to 0.1 only."""
    top = ln_values.max(axis=1, keepdims=True)
    value = np.exp(ln_values - top)
    mean = value.mean(axis=1)
    error = value.std(axis=1) / mean / np.sqrt(value.shape[1])
    ln_mean, error = (np.log(mean) + top[:, 0])[error < 0.1], error[error < 0.1]
    return (ln_mean - np.average(ln_mean, weights=error**-2)) / error if len(error) else error


@pytest.fixture(scope="module")
def in_double(trained, real):
    """Model, stars, optima, and 8192 draws of each star, in double precision."""
    with jax.enable_x64(True):
        model, stars, modes = as_double((trained.star_model.without_error, *real[:2]))
        return model, stars, modes, _many_draws(model, stars, modes)


def _many_draws(model, stars, modes):
    return importance_draws(model, stars, modes, modes, jnp.zeros(16, bool), jnp.full(16, 7, jnp.uint32), n_draws=8192)


@pytest.mark.parametrize("with_parallax", [False, True])
def test_ratio_is_posterior_over_proposal(in_double, with_parallax, x64):
    """Draws of q, weighted by h / q, integrate to one for every density h: here to one constant that is left out of q.

    q is posterior over ratio; SciPy's Gaussians h, half as wide as the posterior, lie at its mean and one sigma from it
    along ten directions. Where draws tell such an integral to 0.1 it agrees with the others within five of its errors.
    """
    model, stars, modes, drawn = in_double
    if with_parallax:
        plx = jnp.exp(modes[:, -1])
        stars = replace(stars, parallax=0.9 * plx, parallax_inv_error=10 / plx)
        drawn = _many_draws(model, stars, modes)
    found, tested = [], 0
    for star, draws, ln_ratio in zip(map(stars.take, range(16)), *map(np.asarray, drawn), strict=True):
        ln_p = -0.5 * np.asarray(_objectives(model, star, jnp.asarray(draws))) - draws[:, -2]
        x = np.column_stack([draws[:, :3], np.exp(draws[:, 3]), draws[:, 4]])  # where E's Jacobian has left
        weight = np.exp(ln_ratio - ln_ratio.max())
        mean = np.average(x, axis=0, weights=weight)
        covariance = np.cov(x.T, aweights=weight)
        if mean[3] < 3 * np.sqrt(covariance[3, 3]):
            continue  # a Gaussian h would reach below E = 0, where there is no draw
        places = [mean, *(mean + sign * step for step in np.linalg.cholesky(covariance).T for sign in (-1, 1))]
        ln_h = np.array([multivariate_normal(place, covariance / 4).logpdf(x) for place in places])
        pulls = _pulls(ln_h - (ln_p - ln_ratio))
        tested += len(pulls)
        assert_allclose(pulls, 0.0, atol=5.0)
        found.append(_pulls(ln_h - ln_p))
    assert tested >= 20
    assert np.abs(np.concatenate(found)).max() > 5, "the posterior itself would pass for q: nothing was tested"


@jax.jit
def _in_extinction(x, labels, extinction, ln_parallax, forward, star, sigma):
    """-2 ln density in (labels, E, ln parallax): E's Jacobian leaves L again."""
    u = jnp.concatenate([labels, jnp.log(jnp.maximum(extinction + sigma * x[:1], 1e-9)), ln_parallax + 0.01 * x[1:]])
    return objective(StarModel(forward), star, u) + 2 * u[-2]


_given_labels = jax.jit(given_labels)
_shapes = jax.jit(jax.vmap(shape_and_level, (None, 0)))


def test_extinction_given_labels_is_the_best_of_its_labels(in_double, x64):
    """SciPy's minimiser over (E, ln parallax) with the labels held, flux not linearised: within 0.3 of its error.

    At labels drawn from the posterior, where E itself ranges over many times that error.
    """
    model, stars, modes, (draws, ln_ratio) = in_double
    random, moved = np.random.default_rng(2), []
    for i in (1, 4, 8):
        weight = np.exp(np.asarray(ln_ratio[i]) - np.max(ln_ratio[i]))
        some = np.asarray(draws[i])[random.choice(len(weight), 10, p=weight / weight.sum())]
        labels, star, mode = some[:, :3], stars.take(i), modes[i]
        follow = _given_labels(model.forward, star, mode)
        shapes = np.asarray(_shapes(model.forward, jnp.asarray(labels))[0])
        best = float(follow.extinction) + (shapes - np.asarray(follow.shape)) @ np.asarray(follow.slope)

        for at, ours, ln_parallax in zip(labels, best, some[:, -1], strict=True):
            if ours < 3 * follow.sigma:
                continue  # the cut is near: the minimum may be at it
            options = {"xatol": 0.01, "initial_simplex": [[0, 0], [1, 0], [0, 1]]}
            given = (at, ours, ln_parallax, model.forward, star, follow.sigma)
            found = minimize(_in_extinction, np.zeros(2), given, method="Nelder-Mead", options=options)
            assert abs(found.x[0]) < 0.3
            moved.append((ours - float(follow.extinction)) / float(follow.sigma))
    assert len(moved) > 15 and np.std(moved) > 2


@partial(jax.jit, compiler_options={"xla_backend_optimization_level": 2})
def _walk(model, stars, mode):
    """NumPyro's own NUTS on its own model; one program for every star, optimised because it takes a million steps."""
    kernel = NUTS(
        star_posterior, init_strategy=init_to_value(values=star_sites(mode)), dense_mass=True, target_accept_prob=0.9
    )
    chains = MCMC(
        kernel, num_warmup=800, num_samples=3000, num_chains=4, chain_method="vectorized", progress_bar=False
    )  # fmt: skip
    chains.run(jax.random.key(5), stars, model)
    return chains.get_samples(group_by_chain=True)


def _chain(model, stars, mode):
    """Rows of (labels, E, parallax); nothing shared with the draws.

    Args:
        model, stars: a batch of one star.
        mode: (1, parameter) where chains begin.
    """
    found = _walk(model, stars, mode)
    walk = np.concatenate([found["labels"][:, :, 0], found["ln_E"], found["ln_plx"]], axis=-1).astype(float)
    worth = [effective_sample_size(walk[..., k]) for k in range(5)]
    settled = max(split_gelman_rubin(walk[..., k]) for k in range(5)) < 1.02 and min(worth) > 1000
    return to_linear(walk.reshape(-1, 5)) if settled else None


@pytest.fixture(scope="module")
def steady(trained, sample):
    """Stars, their optima, their draws, and which have one optimum and good draws, best first.

    128 real stars, every second with a parallax of ten per cent: the short training leaves most others a bent posterior.
    """
    stars = sample.take(np.arange(128)).stars(trained.labels)
    blind = fit_stars(trained.star_model, stars, SEARCH)
    parallax = blind.estimate[:, -1]
    known = np.where(np.arange(128) % 2 == 0, 10 / parallax, 0).astype(np.float32)
    stars = replace(stars.blind(), parallax=parallax, parallax_inv_error=known)
    search = SEARCH.model_copy(update={"use_parallax": True})
    found = fit_stars(trained.star_model, stars, search)
    mode, no = _sampled(found.estimate), jnp.zeros(128, bool)
    folded = fold_in_model_error(trained.star_model, jax.tree.map(jnp.asarray, stars), mode)
    call = partial(summarise, trained.star_model.without_error, folded, mode, mode, no)
    drawn, again = (call(jnp.arange(k, k + 128, dtype=jnp.uint32), N_DRAWS, N_MORE) for k in (0, 1000))
    worst = np.maximum(drawn.k_hat, again.k_hat)  # a heavy tail escapes one set of draws now and then, seldom two
    usable = np.flatnonzero((found.n_modes == 1) & found.hessian_positive & (worst < 0.5))
    return folded, found, drawn, usable[np.argsort(worst[usable])]


@pytest.mark.slow  # a million steps of NUTS; benchmarks/nuts.py compares more stars
def test_summaries_equal_a_long_markov_chain(trained, steady):
    """Mean, spread and quantiles of three real stars of one optimum, in units of the posterior's spread.

    The draws of a star are worth some 900, chains 1,000 at least: means are known to 0.04, quantiles to 0.06; tolerances
    are two and a half of these.
    """
    stars, found, drawn, usable = steady
    compared = 0
    for i in usable[:8]:
        walk = _chain(
            trained.star_model.without_error, stars.take(slice(int(i), int(i) + 1)), _sampled(found.estimate[i : i + 1])
        )
        if walk is None:
            continue  # a chain that has not settled is no reference
        scale = walk.std(axis=0)
        low, median, high = np.quantile(walk, [0.16, 0.5, 0.84], axis=0)
        assert_allclose((drawn.mean[i] - walk.mean(axis=0)) / scale, 0.0, atol=0.1)
        assert_allclose(drawn.std[i] / scale, 1.0, atol=0.1)
        for ours, theirs in ((drawn.low, low), (drawn.median, median), (drawn.high, high)):
            assert_allclose((ours[i] - theirs) / scale, 0.0, atol=0.15)
        compared += 1
        if compared == 3:
            return
    raise AssertionError(f"only {compared} stars have chains that can be compared with")


@pytest.mark.parametrize("lowest", [-40.0, -1.0, 0.0, 3.0, 5.7, 9.0, 11.9, 12.1, 30.0])
def test_gaussians_cut_far_above_their_mean_are_drawn_whole(lowest):
    """SciPy's truncated normal in float64, in units of its own spread."""
    share = np.linspace(0.001, 0.999, 99)
    found = _above(jnp.full(99, lowest, jnp.float32), jnp.asarray(share, jnp.float32))
    law = truncnorm(lowest, np.inf)
    assert_allclose((np.asarray(found) - law.ppf(share)) / law.std(), 0.0, atol=0.02)


def _drawn(trained, real, n_more):
    stars, modes, _ = real
    no, seed = jnp.zeros(16, bool), jnp.arange(16, dtype=jnp.uint32)
    return importance_draws(
        trained.star_model.without_error, stars, modes, modes, no, seed, n_draws=N_DRAWS, n_more=n_more
    )


@pytest.fixture(scope="module")
def in_rounds(trained, real):
    return _drawn(trained, real, 256)


@pytest.mark.thorough
def test_rounds_of_more_draws_are_worth_more_and_do_not_change_the_integral(trained, real, in_rounds):
    """The mean ratio is the posterior's integral over a normalised proposal, whatever was drawn from.

    Compared where the first draws are fair already: its relative error is 1 / sqrt(effective draws), here below 0.1.
    """
    (few, first), (many, later) = _drawn(trained, real, 0), in_rounds
    assert many.shape == (16, 512 + 4 * 256, 5)
    assert_allclose(many[:, :512], few, rtol=1e-5, atol=1e-5)  # another program: its last digits may differ
    first, later = np.asarray(first, float), np.asarray(later, float)

    def effective(ln_ratio):
        weight = np.exp(ln_ratio - ln_ratio.max(axis=1, keepdims=True))
        return weight.sum(axis=1) ** 2 / (weight**2).sum(axis=1)

    fair = effective(first) > 100
    assert fair.sum() >= 5
    integrals = [np.log(np.mean(np.exp(v), axis=1)) for v in (first, later)]
    assert_allclose(integrals[1][fair], integrals[0][fair], atol=0.3)
    assert np.all(effective(later) > 1.5 * effective(first))


@pytest.mark.thorough
def test_rounds_that_share_a_program_draw_the_same(trained, real, in_rounds, monkeypatch):
    """For few stars, arrays have room for all rounds from the first on."""
    draws, ln_ratio = in_rounds
    monkeypatch.setattr("xpbayes.inference.sampling.importance.is_hasty", lambda: True)
    same, same_ratio = _drawn(trained, real, 256)
    assert same.shape == draws.shape == (16, 512 + 4 * 256, 5)
    first = 512 + 256  # of the later rounds' mixtures, rounding decides some draws' term
    assert_allclose(same[:, :first], draws[:, :first], rtol=2e-3, atol=2e-3)
    assert_allclose(np.median(same, axis=1), np.median(draws, axis=1), rtol=0.02, atol=0.02)
    weight, other = (np.asarray(jax.nn.logsumexp(ratio, axis=1)) for ratio in (ln_ratio, same_ratio))
    assert_allclose(other, weight, atol=0.05)


def test_summaries_do_not_depend_on_who_shares_the_batch(trained, real):
    stars, modes, _ = real
    call = partial(summarise, trained.star_model.without_error)
    no, seed = jnp.zeros(16, bool), jnp.arange(100, 116, dtype=jnp.uint32)
    together = call(stars, modes, modes, no, seed, N_DRAWS)
    order = np.random.default_rng(1).permutation(16)
    shuffled = call(stars.take(order), modes[order], modes[order], no, seed[order], N_DRAWS)
    alone = call(stars.take(slice(5, 6)), modes[5:6], modes[5:6], no[:1], seed[5:6], N_DRAWS)
    assert together.spurious is None  # nobody doubts these parallaxes
    for a, b, c in zip(*map(jax.tree.leaves, (together, shuffled, alone)), strict=True):
        assert_array_equal(np.asarray(a)[order], np.asarray(b))
        assert_allclose(np.asarray(c)[0], np.asarray(a)[5], rtol=1e-3, atol=1e-3)


def test_a_star_s_draws_depend_on_its_own_seed(trained, real):
    stars, modes, _ = real
    call = partial(summarise, trained.star_model.without_error, stars, modes, modes, jnp.zeros(16, bool))
    one, other = (call(jnp.arange(k, k + 16, dtype=jnp.uint32), N_DRAWS) for k in (0, 500))
    assert np.all(np.any(np.asarray(one.mean) != np.asarray(other.mean), axis=1))
    good = np.asarray(one.k_hat < 0.5) & np.asarray(other.k_hat < 0.5)
    assert np.all(np.abs(one.mean - other.mean)[good] < 0.5 * np.asarray(one.std)[good])


def test_quantiles_are_ordered_and_within_the_physical_range(trained, real):
    stars, modes, _ = real
    found = summarise(
        trained.star_model.without_error,
        stars,
        modes,
        modes,
        jnp.zeros(16, bool),
        jnp.arange(16, dtype=jnp.uint32),
        N_DRAWS,
    )
    assert np.all(found.low <= found.median) and np.all(found.median <= found.high)
    assert np.all(found.low[:, 3:] > 0) and np.all(found.std > 0)
    assert np.all((found.n_effective > 1) & (found.n_effective <= N_DRAWS + 0.1))
