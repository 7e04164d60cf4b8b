"""Simulation-based calibration (Talts et al. 2018; Säilynoja et al. 2022): are posteriors what they claim to be?

Parameters are drawn from the prior, data from the likelihood, and each posterior is asked how much of it lies below the
truth. If posteriors are right, these shares are uniform, for every parameter and for any selection of stars that does
not look at the truth or at the answer alone. In: shares (star, parameter) in [0, 1]. Out: verdicts with sample sizes.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray
from scipy import stats

from xpbayes.checks.prior_predictive import Simulated, Window, in_window
from xpbayes.data.stars import Stars
from xpbayes.inference.sampling.importance import importance_draws, where_needed
from xpbayes.inference.sampling.nuts import optima_of
from xpbayes.inference.sampling.psis import pareto_smoothed
from xpbayes.models.forward import ForwardModel
from xpbayes.models.star_model import StarModel
from xpbayes.models.theta import to_linear, to_log

CONFIDENCE = 0.99
"""Of the simultaneous band: one set of uniform shares in a hundred leaves it."""
N_POINTS = 64
"""Where the empirical distribution is compared."""
N_SIMULATED = 4000
MIN_SHARE_INSIDE = 0.02
"""A posterior with less of its weight in the window has no share below the truth."""


class Band(NamedTuple):
    """A simultaneous band for the share of n uniform numbers that is below each point `at`."""

    at: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@lru_cache(maxsize=64)
def uniform_band(n: int) -> Band:
    """Band that the whole empirical distribution of n uniform numbers stays in with probability `CONFIDENCE`.

    Pointwise binomial intervals, all at the one level at which simulated sets leave any of them as rarely as asked
    (Säilynoja, Bürkner & Vehtari 2022, Section 2.1).
    """
    at = np.arange(1, N_POINTS) / N_POINTS
    random = np.random.default_rng(n)
    # Counts in equal bins of n uniform numbers are multinomial; their running sums are the counts below each point.
    counts = np.cumsum(random.multinomial(n, np.full(N_POINTS, 1.0 / N_POINTS), N_SIMULATED)[:, :-1], axis=1)
    two_sided = 2.0 * np.minimum(stats.binom.cdf(counts, n, at), stats.binom.sf(counts - 1, n, at))
    level = np.quantile(two_sided.min(axis=1), 1.0 - CONFIDENCE)
    return Band(at, stats.binom.ppf(0.5 * level, n, at) / n, stats.binom.ppf(1.0 - 0.5 * level, n, at) / n)


@dataclass(frozen=True)
class Verdict:
    """How one set of n shares compares with uniform ones."""

    n: int
    uniform: bool  # inside the simultaneous band everywhere
    # Share of truths inside the central 68.3 and 95.4 % of their posterior
    coverage68: float
    coverage95: float
    mean: float  # of the shares; above a half the posteriors lie too low
    distance: float  # largest distance of the empirical distribution from the diagonal


def judge(shares: NDArray[np.floating]) -> Verdict:
    """Judge (star,) shares of one parameter's posterior below the truth; NaN are left out."""
    known = np.asarray(shares, np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        nothing = float("nan")
        return Verdict(0, False, nothing, nothing, nothing, nothing)
    band = uniform_band(len(known))
    found = ecdf(known, band.at)
    inside = bool(((found >= band.low) & (found <= band.high)).all())
    one, two = stats.norm.cdf(1.0), stats.norm.cdf(2.0)
    return Verdict(
        n=len(known),
        uniform=inside,
        coverage68=float(np.mean((known > 1 - one) & (known < one))),
        coverage95=float(np.mean((known > 1 - two) & (known < two))),
        mean=float(known.mean()),
        distance=float(np.abs(found - band.at).max()),
    )


def ecdf(shares: NDArray[np.floating], at: NDArray[np.floating]) -> NDArray[np.float64]:
    """Share of the numbers at or below each point."""
    return np.searchsorted(np.sort(shares), at, side="right") / len(shares)


def gaussian_shares(
    truth: NDArray[np.floating], estimate: NDArray[np.floating], covariance: NDArray[np.floating]
) -> NDArray[np.float64]:
    """(star, parameter) of a Gaussian posterior below the truth."""
    sigma = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    return stats.norm.cdf((truth - estimate) / sigma)


@partial(jax.jit, static_argnames="n_xp")
def _weigh(
    forward: ForwardModel, draws: Array, ln_ratio: Array, truth: Array, window: Window, n_xp: int
) -> tuple[Array, Array]:
    def one(draws: Array, ln_ratio: Array, true: Array, look: Window) -> tuple[Array, Array]:
        weight, k_hat = pareto_smoothed(ln_ratio)
        inside = jax.vmap(lambda u: in_window(forward, look, u, n_xp))(draws)
        weight = weight * inside
        total = jnp.sum(weight)
        share = weight @ (to_linear(draws) < true) / total
        return jnp.where(total > MIN_SHARE_INSIDE, share, jnp.nan), k_hat

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(draws, ln_ratio, truth, window)


def importance_shares(
    model: StarModel,
    simulated: Simulated,
    estimate: NDArray[np.floating],
    runner_up: NDArray[np.floating],
    seeds: NDArray[np.uint32],
    n_draws: int,
    n_xp: int,
    n_more: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares (star, parameter) of importance-reweighted posteriors, NaN where next to none is in the window, and k_hat.

    Args:
        model: the trained model.
        simulated: the stars.
        estimate, runner_up: (star, parameter) from `infer`.
        seeds: (star,).
        n_draws: per star, a power of two.
        n_xp: how many of the channels are XP samples.
        n_more: of the rounds, for stars whose first draws are not `enough`; see `importance_draws`.
    """
    model = model.without_error

    def batch(
        n_more: int, stars: Stars, optima: Array, truth: Array, window: Window, seed: Array
    ) -> tuple[Array, Array]:
        two = jnp.all(jnp.isfinite(optima[:, 1]), axis=1)
        second = jnp.where(two[:, None], optima[:, 1], optima[:, 0])
        draws, ln_ratio = importance_draws(
            model, stars, optima[:, 0], second, two, seed, n_draws=n_draws, n_more=n_more
        )
        return _weigh(model.forward, draws, ln_ratio, truth, window, n_xp=n_xp)

    share, k_hat = where_needed(
        batch,
        lambda found: found[1],
        n_draws,
        n_more,
        simulated.stars,
        optima_of(estimate, runner_up),
        jnp.asarray(simulated.truth, jnp.float32),
        simulated.window,
        jnp.asarray(seeds),
    )
    return np.asarray(share, np.float64), np.asarray(k_hat, np.float64)


def draw_shares(
    forward: ForwardModel, window: Window, truth: NDArray[np.floating], draws: NDArray[np.floating], n_xp: int
) -> NDArray[np.float64]:
    """Shares (star, parameter) of posteriors given by draws, NaN where next to nothing of one is in the star's window.

    Draws are (star, draw, parameter) of labels, E [mag], parallax [mas]; n_xp of the channels are XP samples.
    """

    @jax.jit
    def inside(look: Window, linear: Array) -> Array:
        sampled = to_log(linear)
        return jax.vmap(lambda u: in_window(forward, look, u, n_xp))(sampled)

    out = np.full(truth.shape, np.nan)
    for i, points in enumerate(draws):
        near = np.asarray(inside(Window(window.level[i], window.colour[i]), jnp.asarray(points)))
        if near.mean() > MIN_SHARE_INSIDE:
            out[i] = (points[near] < truth[i]).mean(axis=0)
    return out


def chi2_shares(simulated: Simulated) -> NDArray[np.float64]:
    """(star,) share of chi^2 that the noise's law puts below the one at the truth: uniform if simulation is right."""
    stars = simulated.stars
    n = (np.diagonal(np.asarray(stars.whitening), axis1=1, axis2=2) > 0).sum(axis=1)
    inv_dof = np.asarray(stars.inv_dof, np.float64)
    heavy = inv_dof > 0
    nu = 1.0 / np.where(heavy, inv_dof, 1.0)
    return np.where(heavy, stats.f.cdf(simulated.chi2_truth / n, n, nu), stats.chi2.cdf(simulated.chi2_truth, n))
