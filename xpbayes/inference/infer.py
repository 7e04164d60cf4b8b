"""Every star's posterior without labels: starts, solver, optima, Fisher and Laplace matrices, summaries (METHOD 5)."""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from numpy.typing import NDArray

from xpbayes.config import InferenceConfig
from xpbayes.inference.importance import Summary, summarise
from xpbayes.inference.model_error import fold_in_model_error, refold_model_error
from xpbayes.inference.solver import Solution, solve
from xpbayes.inference.starts import StartGrid, find_starts, make_grid
from xpbayes.inference.uncertainty import are_positive_definite, at_mode, hessians, invert_positive, to_linear
from xpbayes.models.forward import ForwardModel
from xpbayes.models.model_error import ModelError
from xpbayes.models.prior import LabelPrior
from xpbayes.stars import Stars, chunk_size

FIRST_ITERATIONS = 5
"""All starts make so many together; then it shows which may still win."""
HOPELESS = 40.0
"""A start this far above the star's best after that is given up."""
SAME_PLACE = 0.02
"""Starts that have met, within this in units of the training labels' spread and of ln E and ln parallax, go on as
one."""
LANE_BLOCK = 1024
"""Starts that go on are refined in blocks of this size: one program, whatever their number."""
STRAGGLERS = 8
"""Iterations that a block makes together; those still moving then are gathered again."""
COMPETES = 9.0
"""Optima within this of the best in L are counted: their posterior odds are above 1 : 90."""
DISTINCT_SIGMA = 0.5
"""Two solutions closer than this, in the best one's Laplace sigmas, are one optimum."""


@dataclass(frozen=True)
class Inferred:
    """Results per star, NumPy.

    Attributes:
        estimate: (star, parameter) labels, E [mag], parallax [mas] at the mode.
        fisher: (star, parameter, parameter) information matrix of the same, float32 (Eq. 21, 22).
        covariance: (star, parameter, parameter) its inverse, float64 (Eq. 23).
        laplace: (star, parameter, parameter) covariance of the same from the full posterior's Hessian, float64.
        chi2: (star,) of the fluxes, with the model's error in the covariance.
        ln_prior: (star,).
        objective: (star,) L = -2 ln posterior + constant.
        decrement, converged, n_iterations: see `solver.Solution`.
        hessian_positive: (star,) the full Hessian (Eq. 20) is positive definite.
        n_modes: (star,) distinct optima found within `COMPETES` of the best.
        runner_up: (star, parameter) the second of them; NaN if there is one only.
        runner_up_delta: (star,) by how much its L is higher; NaN likewise.
        mean, std, median, low, high: (star, parameter) of the posterior; NaN if no draws were asked for.
        k_hat, n_effective: (star,) quality of the draws behind them.
    """

    estimate: NDArray[np.float32]
    fisher: NDArray[np.float32]
    covariance: NDArray[np.float64]
    laplace: NDArray[np.float64]
    chi2: NDArray[np.float32]
    ln_prior: NDArray[np.float32]
    objective: NDArray[np.float32]
    decrement: NDArray[np.float32]
    converged: NDArray[np.bool_]
    n_iterations: NDArray[np.int32]
    hessian_positive: NDArray[np.bool_]
    n_modes: NDArray[np.int32]
    runner_up: NDArray[np.float32]
    runner_up_delta: NDArray[np.float32]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    median: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    k_hat: NDArray[np.float32]
    n_effective: NDArray[np.float32]


class Optima(NamedTuple):
    """The best optimum of every star and what competes with it.

    Attributes:
        best: the solution of the winning start.
        n_modes: (star,) distinct optima within `COMPETES`.
        runner_up: (star, parameter) labels, ln E, ln parallax of the second; the best again if there is none.
        delta: (star,) L of the second above the best; inf if there is none.
    """

    best: Solution
    n_modes: NDArray[np.int32]
    runner_up: NDArray[np.float32]
    delta: NDArray[np.float32]


def refine(
    model: ForwardModel, prior: LabelPrior, stars: Stars, starts: Float[Array, "star start parameter"], most: int
) -> Solution:
    """Solve every star from every start.

    All starts move together for a few iterations; those that may still win, each place once, are gathered into blocks
    and go on; the slowest of these once more. A start's own path does not depend on which others are beside it.

    Args:
        model, prior: the trained model.
        stars: a batch, model error folded in.
        starts: where to begin.
        most: iterations at most, in all.

    Returns:
        a solution with leading axes (star, start); L is infinite for starts that were given up.
    """
    n, k, p = starts.shape
    star_of = np.repeat(np.arange(n), k)
    first = solve(model, prior, stars.take(jnp.asarray(star_of)), starts.reshape(-1, p), FIRST_ITERATIONS)
    lanes = {name: np.array(value) for name, value in first._asdict().items()}
    left = _promising(lanes["parameters"].reshape(n, k, p), lanes["objective"].reshape(n, k), model)
    given_up = np.setdiff1d(np.arange(n * k), left)
    lanes["objective"][given_up], lanes["converged"][given_up] = np.inf, False
    left = left[~lanes["converged"][left]]
    for iterations in (STRAGGLERS, most):
        for start in range(0, len(left), LANE_BLOCK):
            rows = left[start : start + LANE_BLOCK]
            padded = np.pad(rows, (0, LANE_BLOCK - len(rows)), mode="edge")
            begin = jnp.asarray(lanes["parameters"][padded])
            again = solve(model, prior, stars.take(jnp.asarray(star_of[padded])), begin, iterations)
            for name, found in again._asdict().items():
                after = np.asarray(found)[: len(rows)]
                lanes[name][rows] = lanes[name][rows] + after if name == "n_iterations" else after
        promising = _promising(lanes["parameters"].reshape(n, k, p), lanes["objective"].reshape(n, k), model)
        left = np.intersect1d(left[~lanes["converged"][left]], promising)
    return Solution(**{name: jnp.asarray(lane.reshape(n, k, *lane.shape[1:])) for name, lane in lanes.items()})


def _promising(parameters: NDArray[np.floating], objective: NDArray[np.floating], model: ForwardModel) -> NDArray:
    """Starts, as flat indices, that may still win: not far above the best, and each place once."""
    n, k = objective.shape
    value = np.where(np.isfinite(objective), objective, np.inf)
    best = value.min(axis=1)
    keep = value <= (best + HOPELESS)[:, None]
    keep |= np.arange(k) == np.argmin(value, axis=1)[:, None]  # a star whose every start failed still gets its row
    place = parameters / np.append(np.asarray(model.label_scale), [1.0, 1.0]).astype(parameters.dtype)
    for later in range(1, k):
        for earlier in range(later):
            together = np.max(np.abs(place[:, later] - place[:, earlier]), axis=1) < SAME_PLACE
            keep[:, later] &= ~(together & keep[:, earlier])
    return np.flatnonzero(keep)


def choose_optima(solution: Solution, hessian: Callable[[Array], Array]) -> Optima:
    """Choose the best solution of every star and find what is distinct from it.

    Args:
        solution: leading axes (star, start), from `refine`.
        hessian: gives the (star, parameter, parameter) Hessians of L at (star, parameter).
    """
    n, k = solution.objective.shape
    parameters = np.asarray(solution.parameters)
    value = np.where(np.isfinite(solution.objective), solution.objective, np.inf)
    winner = np.argmin(value, axis=1)
    best = Solution(*(leaf[np.arange(n), winner] for leaf in solution))
    metric = 0.5 * np.asarray(hessian(jnp.asarray(best.parameters)), np.float64)
    delta = value - value[np.arange(n), winner][:, None]
    usable = np.asarray(solution.converged) & (delta < COMPETES)
    n_modes = np.ones(n, np.int32)
    runner_up, runner_delta = np.array(best.parameters), np.full(n, np.inf, np.float32)
    order = np.argsort(np.where(usable, delta, np.inf), axis=1, kind="stable")
    distinct_so_far = np.zeros((n, k), bool)
    distinct_so_far[np.arange(n), winner] = True
    for place in range(k):
        candidate = order[:, place]
        at = parameters[np.arange(n), candidate].astype(np.float64)
        apart = usable[np.arange(n), candidate] & (candidate != winner)
        for other in range(k):
            step = at - parameters[:, other]
            distance2 = np.abs(np.einsum("ni,nij,nj->n", step, metric, step))
            apart &= ~distinct_so_far[:, other] | (distance2 > DISTINCT_SIGMA**2)
        first = apart & (n_modes == 1)
        runner_up[first] = at[first]
        runner_delta[first] = delta[np.arange(n), candidate][first]
        n_modes += apart
        distinct_so_far[np.arange(n), candidate] |= apart
    return Optima(best, n_modes, runner_up, runner_delta)


def laplace_covariance(hessian: NDArray[np.floating], parameters: NDArray[np.floating]) -> NDArray[np.float64]:
    """Covariance of (labels, E, parallax) from the Hessian of L in the sampled coordinates.

    Args:
        hessian: (star, parameter, parameter) of L = -2 ln p in (labels, ln E, ln parallax).
        parameters: (star, parameter) where it was taken.

    Returns:
        (star, parameter, parameter) D (2 H^-1) D with D = diag(1, ..., E, parallax); positive definite.
    """
    linear = np.ones_like(parameters, dtype=np.float64)
    linear[:, -2:] = np.exp(np.asarray(parameters, np.float64)[:, -2:])
    return 2.0 * invert_positive(hessian) * linear[:, :, None] * linear[:, None, :]


def infer(
    model: ForwardModel,
    prior: LabelPrior,
    model_error: ModelError | None,
    stars: Stars,
    config: InferenceConfig,
    progress: Callable[[int, int, float], None] = lambda done, total, rate: None,
    seeds: NDArray[np.uint32] | None = None,
) -> Inferred:
    """Infer all stars of a batch.

    Args:
        model: the trained forward model.
        prior: the label mixture.
        model_error: the model's own error, or None.
        stars: the stars; labels and reddening are not looked at, the parallax only if the settings say so.
        config: the settings.
        progress: receives stars done, stars in total, and stars per second.
        seeds: (star,) each star's own, for its draws; the row number if None.
    """
    if not len(stars):
        return _nothing(model.n_labels + 2)
    begun = time.perf_counter()
    blind = stars.blind(parallax=config.use_parallax)
    seeds = np.arange(len(stars), dtype=np.uint32) if seeds is None else np.asarray(seeds, np.uint32)
    grid = make_grid(model, prior, config.n_nodes)
    total = len(stars)
    # Whole chunks of the one size where there is more than one: a stream of parts then needs one program.
    size = config.chunk_size if total > config.chunk_size else chunk_size(total, config.chunk_size)
    done = []
    for start in range(0, total, size):
        count = min(size, total - start)
        chunk = jax.tree.map(jnp.asarray, blind.take(slice(start, start + count))).padded(size)
        seed = jnp.asarray(np.pad(seeds[start : start + count], (0, size - count), mode="edge"))
        done.append(_infer_chunk(model, prior, model_error, grid, chunk, seed, config, count))
        progress(start + count, total, (start + count) / (time.perf_counter() - begun))
    return Inferred(**{f.name: np.concatenate([getattr(part, f.name) for part in done]) for f in fields(Inferred)})


def _infer_chunk(
    model: ForwardModel,
    prior: LabelPrior,
    model_error: ModelError | None,
    grid: StartGrid,
    measured: Stars,
    seed: Array,
    config: InferenceConfig,
    count: int,
) -> Inferred:
    """Results of the first `count` stars of a padded chunk."""
    chunk = fold_in_model_error(measured, model_error)
    starts = find_starts(model, prior, grid, chunk, config.n_starts)
    solution = refine(model, prior, chunk, starts, config.max_iterations)
    if model_error is not None:
        # Once more with the relative error taken of what the model predicts: the optima move by a part of a sigma.
        first = jnp.argmin(jnp.where(jnp.isfinite(solution.objective), solution.objective, jnp.inf), axis=1)
        at = jnp.take_along_axis(solution.parameters, first[:, None, None], axis=1)[:, 0]
        chunk = refold_model_error(model, measured, model_error, at)
        again = refine(model, prior, chunk, solution.parameters, config.max_iterations)
        solution = again._replace(n_iterations=solution.n_iterations + again.n_iterations)
    best, n_modes, runner_up, delta = choose_optima(solution, partial(hessians, model, prior, chunk))
    mode = best.parameters
    at = jax.tree.map(lambda leaf: np.asarray(leaf[:count]), at_mode(model, prior, chunk, mode))
    competes: Bool[Array, " star"] = jnp.asarray(n_modes > 1)
    summary = (
        summarise(model, prior, chunk, mode, jnp.asarray(runner_up), competes, seed, config.n_draws)
        if config.n_draws
        else _no_summary(*mode.shape)
    )
    second = np.asarray(to_linear(jnp.asarray(runner_up)))[:count]
    single = n_modes[:count] == 1
    return Inferred(
        estimate=np.asarray(to_linear(mode))[:count],
        fisher=at.fisher,
        covariance=invert_positive(at.fisher),
        laplace=laplace_covariance(at.hessian, np.asarray(mode)[:count]),
        chi2=at.chi2,
        ln_prior=at.ln_prior,
        objective=np.asarray(best.objective)[:count],
        decrement=np.asarray(best.decrement)[:count],
        converged=np.asarray(best.converged)[:count],
        n_iterations=np.asarray(best.n_iterations)[:count],
        hessian_positive=are_positive_definite(at.hessian),
        n_modes=n_modes[:count],
        runner_up=np.where(single[:, None], np.float32(np.nan), second),
        runner_up_delta=np.where(single, np.float32(np.nan), delta[:count]),
        **{name: np.asarray(value)[:count] for name, value in summary._asdict().items()},
    )


def _no_summary(n: int, n_parameters: int) -> Summary:
    each, one = jnp.full((n, n_parameters), jnp.nan), jnp.full(n, jnp.nan)
    return Summary(each, each, each, each, each, one, one)


def _nothing(n_parameters: int) -> Inferred:
    """Results of no stars: a part of a stream may hold none that can be used."""
    one, each = np.zeros(0, np.float32), np.zeros((0, n_parameters), np.float32)
    square = np.zeros((0, n_parameters, n_parameters))
    flag, number = one.astype(bool), one.astype(np.int32)
    return Inferred(
        estimate=each,
        fisher=square.astype(np.float32),
        covariance=square,
        laplace=square,
        chi2=one,
        ln_prior=one,
        objective=one,
        decrement=one,
        converged=flag,
        n_iterations=number,
        hessian_positive=flag,
        n_modes=number,
        runner_up=each,
        runner_up_delta=one,
        **{name: np.asarray(value) for name, value in _no_summary(0, n_parameters)._asdict().items()},
    )
