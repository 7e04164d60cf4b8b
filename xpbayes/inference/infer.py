"""Every star's posterior without labels: starts, solver, optima, Fisher and Laplace matrices, summaries (METHOD 5)."""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks, replaced
from xpbayes.inference.errors import are_positive_definite, evaluate_mode, hessians, invert_positive, to_linear
from xpbayes.inference.model_error import refold_model_error
from xpbayes.inference.sampling.importance import Summary, summarise
from xpbayes.inference.search.solver import Solution, StartPool, columns_first, limits, solve
from xpbayes.inference.search.starts import StartGrid, find_starts, first_guess, make_grid
from xpbayes.models.forward import ForwardModel
from xpbayes.models.model_error import ModelError
from xpbayes.models.prior import LabelPrior

if TYPE_CHECKING:
    from xpbayes.config import InferenceConfig

FIRST_ITERATIONS = 20
"""The best start is followed so far for the flux that the model's error is taken of: next to its optimum will do."""
HOPELESS = 15.0
"""A start this far above the star's best after some iterations is given up."""
SAME_PLACE = 0.02
"""Starts that have met, within this in units of the training labels' spread and of ln E and ln parallax, go on as
one."""
SAME_FLUX = 0.005
"""The model's error may be taken of the flux so near to the optimum, in the same units. Where on the way to it the first
start was left is an accident of rounding: at 0.02 it moves the optima of one star in 700 by 1 % of their sigma."""
SAME_OBJECTIVE = 0.01
"""L may rise by this in a step that lessens the decrement: float32 adds L up from terms of order 1,000."""
SHARP, MAX_FURTHER = 1e-6, 6
"""Winners go on to this decrement, 0.0007 sigma from the optimum, or for so many steps at most."""
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
        unbounded: (star, 2) E [mag] and its error at the optimum as if E could be negative: unbiased where there is no dust.
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
    unbounded: NDArray[np.float32]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    median: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    k_hat: NDArray[np.float32]
    n_effective: NDArray[np.float32]


class Searched(NamedTuple):
    """What the search found for every star.

    Attributes:
        stars: the batch with the model's error folded in, whose L was minimised.
        starts: (star, start, parameter) where the search began, best first.
        solution: leading axes (star, start); L is infinite for starts that were given up.
    """

    stars: Stars
    starts: NDArray[np.floating]
    solution: Solution


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


def search(
    model: ForwardModel,
    prior: LabelPrior,
    model_error: ModelError | None,
    grid: StartGrid,
    measured: Stars,
    config: "InferenceConfig",
) -> Searched:
    """Find every star's optima from several starts.

    The relative model error is taken of a predicted flux: of the nearest node's for the ranking of starts, then of the
    one at the optimum that the best start leads to. Only then are all starts followed, so that all compete under one L:
    a search under another L loses optima that exist under the last one alone.

    Args:
        model, prior: the trained model.
        model_error: the model's own error, or None.
        grid: nodes of the start search.
        measured: a batch as inference may see it, with the measurement's own whitening.
        config: the settings.
    """
    stars = measured
    if model_error is not None:
        guess = by_blocks(partial(first_guess, model, grid), STAR_BLOCK, measured)
        stars = refold_model_error(model, measured, model_error, guess)
    ranked = by_blocks(lambda block: find_starts(model, prior, grid, block, config.n_starts), STAR_BLOCK, stars)
    starts = np.array(ranked)
    if model_error is None:
        return Searched(stars, starts, refine(model, prior, stars, starts, config.max_iterations))
    first = solve(model, prior, stars, jnp.asarray(starts[:, 0]), FIRST_ITERATIONS)
    stars = refold_model_error(model, measured, model_error, first.parameters)
    begin = starts.copy()
    begin[:, 0] = first.parameters
    solution = refine(model, prior, stars, begin, config.max_iterations)
    n_iterations: Any = np.array(solution.n_iterations)
    n_iterations[:, 0] += np.asarray(first.n_iterations)
    solution = solution._replace(n_iterations=n_iterations)
    return _at_the_winner(model, prior, model_error, measured, Searched(stars, starts, solution), begin[:, 0], config)


def _at_the_winner(
    model: ForwardModel,
    prior: LabelPrior,
    model_error: ModelError,
    measured: Stars,
    found: Searched,
    taken_at: NDArray[np.floating],
    config: "InferenceConfig",
) -> Searched:
    """Take the relative error of the flux at the winner's optimum where the best start led elsewhere.

    Else a star's L would depend on which start was ranked first, and where two are all but equal, on rounding.

    Args:
        model, prior, model_error: the trained model.
        measured: the batch with the measurement's own whitening.
        found: what the search found so far.
        taken_at: (star, parameter) where the flux is from that `found.stars` took the error of.
        config: the settings.
    """
    solution = found.solution
    at = np.asarray(solution.parameters)
    winner = at[np.arange(len(at)), np.argmin(np.asarray(solution.objective), axis=1)]
    elsewhere = np.flatnonzero(np.max(np.abs(_place(winner - taken_at, model)), axis=1) > SAME_FLUX)
    if not len(elsewhere):
        return found
    # Whole blocks, repeating some: another number of stars would be another program.
    padded = np.resize(elsewhere, -(-len(elsewhere) // STAR_BLOCK) * STAR_BLOCK)
    few = refold_model_error(
        model, jax.tree.map(lambda leaf: np.asarray(leaf)[padded], measured), model_error, winner[padded]
    )
    few = jax.tree.map(lambda leaf: np.asarray(leaf)[: len(elsewhere)], few)
    stars = replaced(found.stars, few, elsewhere)
    alive = np.isfinite(np.asarray(solution.objective)[elsewhere])
    again = refine(model, prior, few, at[elsewhere], config.max_iterations, alive)
    more = np.asarray(again.n_iterations) + np.asarray(solution.n_iterations)[elsewhere]
    return Searched(stars, found.starts, replaced(solution, again._replace(n_iterations=more), elsewhere))


def refine(
    model: ForwardModel,
    prior: LabelPrior,
    stars: Stars,
    starts: Float[Array, "star start parameter"] | NDArray[np.floating],
    most: int,
    alive: NDArray[np.bool_] | None = None,
) -> Solution:
    """Solve every star from every start.

    All starts move together for a few iterations; those that may still win, each place once, go on. A start's own path
    does not depend on which others are beside it.

    Args:
        model, prior: the trained model.
        stars: a batch, model error folded in.
        starts: where to begin.
        most: iterations at most, in all.
        alive: (star, start) the starts that count; all if None.

    Returns:
        a solution with leading axes (star, start); L is infinite for starts that were given up.
    """
    n, k, p = starts.shape
    lanes = StartPool(columns_first(stars), np.asarray(starts).reshape(-1, p), np.repeat(np.arange(n), k))
    left: NDArray[np.integer] = np.arange(n * k) if alive is None else np.flatnonzero(alive)
    for limit in limits(most):
        left = lanes.advance(model, prior, left, limit)
        promising = _promising(lanes.state.parameters.reshape(n, k, p), lanes.state.value.reshape(n, k), model)
        # Given up on its way, a start may still be lower by rounding than the one at its place that goes on.
        lanes.state.value[~promising], lanes.state.converged[~promising] = np.inf, False
        left = left[promising[left]]
    winners = np.arange(n) * k + np.argmin(lanes.state.value.reshape(n, k), axis=1)
    _step_further(model, prior, lanes, winners)
    return jax.tree.map(lambda leaf: leaf.reshape(n, k, *leaf.shape[1:]), lanes.solution())


def _step_further(model: ForwardModel, prior: LabelPrior, lanes: StartPool, rows: NDArray[np.integer]) -> None:
    """Take steps beyond convergence for one lane of every star, where they lead nearer to the optimum.

    Newton's last step makes the distance its own square, for one evaluation of one start, where a sharper tolerance
    would cost more evaluations of all.

    Args:
        model, prior, lanes: as in `refine`.
        rows: one lane of every star.
    """
    at = lanes.state
    left = rows[at.converged[rows]]
    for _ in range(MAX_FURTHER):
        left = left[at.decrement[left] > SHARP]
        if not len(left):
            return
        further = lanes.further(left)
        further.advance(model, prior, np.arange(len(left)), 1)
        new = further.state
        nearer = (new.decrement < at.decrement[left]) & (new.value <= at.value[left] + SAME_OBJECTIVE)
        left = left[nearer]
        for name in ("parameters", "value", "decrement", "trial"):
            getattr(at, name)[left] = getattr(new, name)[nearer]
        at.n_iterations[left] += 1


def _place(parameters: NDArray[np.floating], model: ForwardModel) -> NDArray[np.floating]:
    """Parameters in units of the training labels' spread, ln E and ln parallax as they are."""
    return np.asarray(parameters / np.append(np.asarray(model.label_scale), [1.0, 1.0]).astype(parameters.dtype))


def _promising(
    parameters: NDArray[np.floating], objective: NDArray[np.floating], model: ForwardModel
) -> NDArray[np.bool_]:
    """(star x start,) whether each start may still win: not far above the best, and each place once."""
    n, k = objective.shape
    value = np.where(np.isfinite(objective), objective, np.inf)
    order, row = np.argsort(value, axis=1, kind="stable"), np.arange(n)[:, None]  # the lowest stays of those that met
    value = value[row, order]
    keep = value <= value[:, :1] + HOPELESS  # of a star whose every start failed, all: it still gets its row
    place = _place(parameters, model)[row, order]
    for later in range(1, k):
        for earlier in range(later):
            together = np.max(np.abs(place[:, later] - place[:, earlier]), axis=1) < SAME_PLACE
            keep[:, later] &= ~(together & keep[:, earlier])
    found = np.empty_like(keep)
    np.put_along_axis(found, order, keep, axis=1)
    return found.reshape(-1)


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
    config: "InferenceConfig",
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
    total, size = len(stars), config.chunk_size
    done = []
    for start in range(0, total, size):
        rows = slice(start, min(start + size, total))
        done.append(_infer_chunk(model, prior, model_error, grid, blind.take(rows), seeds[rows], config))
        progress(rows.stop, total, rows.stop / (time.perf_counter() - begun))
    return Inferred(**{f.name: np.concatenate([getattr(part, f.name) for part in done]) for f in fields(Inferred)})


def _infer_chunk(
    model: ForwardModel,
    prior: LabelPrior,
    model_error: ModelError | None,
    grid: StartGrid,
    measured: Stars,
    seed: NDArray[np.uint32],
    config: "InferenceConfig",
) -> Inferred:
    chunk, _, solution = search(model, prior, model_error, grid, measured, config)
    best, n_modes, runner_up, delta = choose_optima(
        solution, lambda at: by_blocks(partial(hessians, model, prior), STAR_BLOCK, chunk, at)
    )
    mode = np.asarray(best.parameters)
    at = by_blocks(partial(evaluate_mode, model, prior), STAR_BLOCK, chunk, mode)
    summary = (
        summarise(
            model,
            prior,
            chunk,
            best.parameters,
            jnp.asarray(runner_up),
            jnp.asarray(n_modes > 1),
            jnp.asarray(seed),
            config.n_draws,
            config.n_more_draws,
        )
        if config.n_draws
        else _no_summary(*mode.shape)
    )
    single = n_modes == 1
    return Inferred(
        estimate=np.asarray(to_linear(best.parameters)),
        fisher=at.fisher,
        covariance=invert_positive(at.fisher),
        laplace=laplace_covariance(at.hessian, mode),
        chi2=at.chi2,
        ln_prior=at.ln_prior,
        objective=np.asarray(best.objective),
        decrement=np.asarray(best.decrement),
        converged=np.asarray(best.converged),
        n_iterations=np.asarray(best.n_iterations),
        hessian_positive=are_positive_definite(at.hessian),
        unbounded=at.unbounded,
        n_modes=n_modes,
        runner_up=np.where(single[:, None], np.float32(np.nan), np.asarray(to_linear(jnp.asarray(runner_up)))),
        runner_up_delta=np.where(single, np.float32(np.nan), delta),
        **{name: np.asarray(value) for name, value in summary._asdict().items()},
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
        unbounded=np.zeros((0, 2), np.float32),
        n_modes=number,
        runner_up=each,
        runner_up_delta=one,
        **{name: np.asarray(value) for name, value in _no_summary(0, n_parameters)._asdict().items()},
    )
