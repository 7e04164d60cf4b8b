"""The optima of every star's posterior, from several starts: search, refinement, choice (METHOD 5).

Functions of some `xp`, the library of their arrays, NumPy's or JAX's, serve the search on the host and on devices.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks, replaced, rows_of_each
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.inference.search.solver import Solution, SolverState, StarChunk, StartPool, limits, solve
from xpbayes.inference.search.starts import StartGrid, find_starts, first_guess
from xpbayes.models.forward import ForwardModel
from xpbayes.models.star_model import StarModel

if TYPE_CHECKING:
    from xpbayes.config import InferenceConfig

FIRST_ITERATIONS = 20
"""The best start is followed so far for the flux that the model's error is taken of: next to its optimum will do."""
HOPELESS, JUDGED = 15.0, 5
"""A start this far above the star's best is given up, after so many iterations: earlier the best may be one on its way."""
SAME_PLACE = 0.05
"""Starts whose next steps end within this of each other, in units of the training labels' spread and of ln E and ln
parallax, have met and go on as one."""
SAME_FLUX = 0.005
"""The model's error may be taken of the flux so near to the optimum, in the same units: where on the way to it the first
start was left is an accident of rounding."""
SAME_OBJECTIVE = 0.01
"""L may rise by this in a step that lessens the decrement: float32 adds L up from terms of order 1,000."""
SHARP, MAX_FURTHER = 1e-6, 6
"""Winners go on to this decrement, 0.0007 sigma from the optimum, or for so many steps at most."""
COMPETES = 9.0
"""Optima within this of the best in L are counted: their posterior odds are above 1 : 90."""
DISTINCT_SIGMA = 0.5
"""Two solutions closer than this, in the best one's Laplace sigmas, are one optimum."""


class Searched(NamedTuple):
    """What the search found for every star."""

    stars: Stars  # the batch with the model's error folded in, whose L was minimised
    starts: NDArray[np.floating]  # (star, start, parameter) where the search began, best first
    solution: Solution  # leading axes (star, start); L is infinite for starts that were given up
    chunk: StarChunk  # the stars as the solver has them


class Optima(NamedTuple):
    """The best optimum of every star and what competes with it; in NumPy, or on the device."""

    best: Solution  # the solution of the winning start
    n_modes: Any  # (star,) distinct optima within `COMPETES`
    runner_up: Any  # (star, parameter) labels, ln E, ln parallax of the second; the best again if there is none
    delta: Any  # (star,) L of the second above the best; inf if there is none


def search(model: StarModel, grid: StartGrid, measured: Stars, config: "InferenceConfig") -> Searched:
    """Find every star's optima from several starts; `measured` as inference may see it, with its own whitening.

    The relative model error is taken of a predicted flux: of the nearest node's for the ranking of starts, then of the
    one at the optimum that the best start leads to. Only then are all starts followed, so that all compete under one L:
    a search under another L loses optima that exist under the last one alone.
    """
    stars = measured
    if model.error is not None:
        guess = by_blocks(partial(first_guess, model.forward, grid), STAR_BLOCK, measured)
        stars = fold_in_model_error(model, measured, guess)
    ranked = by_blocks(lambda some: find_starts(model.without_error, grid, some, config.n_starts), STAR_BLOCK, stars)
    starts = np.array(ranked)
    if model.error is None:
        chunk = StarChunk.of(stars)
        return Searched(stars, starts, refine(model, chunk, starts, config.max_iterations), chunk)
    first = solve(model, stars, starts[:, 0], FIRST_ITERATIONS)
    stars = fold_in_model_error(model, measured, first.theta_log)
    begin = starts.copy()
    begin[:, 0] = first.theta_log
    chunk = StarChunk.of(stars)
    solution = refine(model, chunk, begin, config.max_iterations)
    n_iterations: Any = np.array(solution.n_iterations)
    n_iterations[:, 0] += np.asarray(first.n_iterations)
    solution = solution._replace(n_iterations=n_iterations)
    return _at_the_winner(model, measured, Searched(stars, starts, solution, chunk), begin[:, 0], config)


def _at_the_winner(
    model: StarModel, measured: Stars, found: Searched, taken_at: NDArray[np.floating], config: "InferenceConfig"
) -> Searched:
    """Take the relative error of the flux at the winner's optimum where the best start, `taken_at`, led elsewhere.

    Else a star's L would depend on which start was ranked first, and where two are all but equal, on rounding.
    """
    solution = found.solution
    at = np.asarray(solution.theta_log)
    winner = at[np.arange(len(at)), np.argmin(np.asarray(solution.objective), axis=1)]
    elsewhere = np.flatnonzero(is_elsewhere(winner, taken_at, model.forward))
    if not len(elsewhere):
        return found
    # Whole batches, repeating some: another number of stars would be another program.
    padded = np.resize(elsewhere, -(-len(elsewhere) // STAR_BLOCK) * STAR_BLOCK)
    few = fold_in_model_error(model, rows_of_each(measured, padded), winner[padded])
    chunk = found.chunk.replaced(few, padded)
    stars = replaced(found.stars, rows_of_each(few, slice(len(elsewhere))), elsewhere)
    alive = np.isfinite(np.asarray(solution.objective)[elsewhere])
    again = refine(model, chunk, at[elsewhere], config.max_iterations, alive, elsewhere)
    more = np.asarray(again.n_iterations) + np.asarray(solution.n_iterations)[elsewhere]
    return Searched(stars, found.starts, replaced(solution, again._replace(n_iterations=more), elsewhere), chunk)


def refine(
    model: StarModel,
    stars: StarChunk,
    starts: Float[Array, "star start parameter"] | NDArray[np.floating],
    most: int,
    alive: NDArray[np.bool_] | None = None,
    rows: NDArray[np.integer] | None = None,
) -> Solution:
    """Solve every star from every start; leading axes (star, start), L infinite for starts that were given up.

    All starts move together for a few iterations; those that may still win, each place once, go on. A start's own path
    does not depend on which others there are. None makes more than `most` iterations; those that are not `alive` do not
    count; `rows` say which of the stars these starts are of, all in order if None.
    """
    n, k, p = starts.shape
    star_of = np.repeat(np.arange(n) if rows is None else rows, k)
    pool = StartPool(stars, np.asarray(starts).reshape(-1, p), star_of)
    left: NDArray[np.integer] = np.arange(n * k) if alive is None else np.flatnonzero(alive)
    before = None
    for limit in limits(most):
        margin = HOPELESS if limit >= JUDGED else np.inf
        # Of stars none of whose starts has moved there is nothing new to be said.
        stirred = np.unique(left // k) if margin == before else np.arange(n)
        left, before = pool.advance(model.without_error, left, limit), margin
        lane = (stirred[:, None] * k + np.arange(k)).ravel()
        value, place = pool.state.value[lane], going_to(pool.state, lane)
        keep = np.ones(n * k, bool)
        keep[lane] = promising(place.reshape(-1, k, p), value.reshape(-1, k), model.forward, margin).reshape(-1)
        # Given up on its way, a start may still be lower by rounding than the one at its place that goes on.
        pool.state.value[~keep], pool.state.converged[~keep] = np.inf, False
        left = left[keep[left]]
    winners = np.arange(n) * k + np.argmin(pool.state.value.reshape(n, k), axis=1)
    _step_further(model.without_error, pool, winners)
    return jax.tree.map(lambda leaf: leaf.reshape(n, k, *leaf.shape[1:]), pool.state.solution)


def _step_further(model: StarModel, pool: StartPool, rows: NDArray[np.integer]) -> None:
    """Take steps beyond convergence for one start of every star, where they lead nearer to the optimum.

    Newton's last step makes the distance its own square, for one evaluation of one start, where a sharper tolerance
    would cost more evaluations of all.
    """
    at = pool.state
    left = rows[at.converged[rows]]
    for _ in range(MAX_FURTHER):
        left = left[at.decrement[left] > SHARP]
        if not len(left):
            return
        further = pool.further(left)
        further.advance(model, np.arange(len(left)), 1)
        new = further.state
        nearer = is_nearer(at.value[left], at.decrement[left], new)
        left = left[nearer]
        for name in BETTERED:
            getattr(at, name)[left] = getattr(new, name)[nearer]
        at.n_iterations[left] += 1


def is_elsewhere(winner: Any, taken_at: Any, forward: ForwardModel, xp: Any = np) -> Any:
    """(star,) whether two places are so far apart that the model's error may be another; not where one is infinite."""
    there = (xp.isfinite(winner) & xp.isfinite(taken_at)).all(axis=1)[:, None]
    moved = xp.where(there, winner, 0.0) - xp.where(there, taken_at, 0.0)
    return xp.max(xp.abs(place_of(moved, forward, xp)), axis=1) > SAME_FLUX


BETTERED = ("theta_log", "value", "decrement", "trial")
"""What such a step changes."""


def is_nearer(value: Any, decrement: Any, new: SolverState) -> Any:
    """(start,) whether a step beyond convergence leads nearer to the optimum."""
    return (new.decrement < decrement) & (new.value <= value + SAME_OBJECTIVE)


def place_of(theta_log: Any, forward: ForwardModel, xp: Any = np) -> Any:
    """theta_log in units of the training labels' spread, ln E and ln parallax as they are; NaN where it is infinite."""
    unit = xp.concatenate([xp.asarray(forward.intrinsic_scale), xp.ones(2)]).astype(theta_log.dtype)
    return xp.where(xp.isfinite(theta_log), theta_log, xp.nan) / unit


def going_to(state: SolverState, lane: Any = slice(None), xp: Any = np) -> Any:
    """(start, parameter) where each start's next step ends, or where it has come to rest; of some of them."""
    trial = state.trial[lane]
    moves = ~state.converged[lane] & xp.isfinite(trial).all(axis=1)
    return xp.where(moves[:, None], trial, state.theta_log[lane])


def promising(place: Any, objective: Any, forward: ForwardModel, margin: Any = HOPELESS, xp: Any = np) -> Any:
    """(star, start) which starts may still win: L not by more than `margin` above the best, each place but once."""
    n, k = objective.shape
    value = xp.where(xp.isfinite(objective), objective, xp.inf)
    order, row = xp.argsort(value, axis=1, stable=True), xp.arange(n)[:, None]  # the lowest stays of those that met
    value = value[row, order]
    keep = value <= value[:, :1] + margin  # of a star whose every start failed, all: it still gets its row
    # The star is the last axis from here on: sums over few numbers beside each other are slow.
    place = xp.moveaxis(place_of(place, forward, xp)[row, order], 0, -1).copy()
    kept = keep[None, :, 0]
    for later in range(1, k):
        together = xp.max(xp.abs(place[later] - place[:later]), axis=1) < SAME_PLACE
        kept = xp.concatenate([kept, (keep[None, :, later] & ~xp.any(together & kept, axis=0))])
    kept = kept.T
    return xp.take_along_axis(kept, xp.argsort(order, axis=1), axis=1)


def best_of(solution: Solution, xp: Any = np) -> Solution:
    """The best solution of every star, from those of its starts: leading axes (star, start)."""
    value = xp.where(xp.isfinite(solution.objective), solution.objective, xp.inf)
    winner = xp.argmin(value, axis=1)
    return Solution(*(xp.asarray(leaf)[xp.arange(len(winner)), winner] for leaf in solution))


def choose_optima(solution: Solution, hessian: Any, xp: Any = np) -> Optima:
    """Find the best optimum of every star, where the Hessian is of L, and what is distinct from it."""
    best, row = best_of(solution, xp), xp.arange(len(hessian))
    value = xp.where(xp.isfinite(solution.objective), solution.objective, xp.inf)
    winner, (n, k) = xp.argmin(value, axis=1), value.shape
    metric = 0.5 * xp.asarray(hessian, float)
    # A star whose every start failed has one optimum, which is none: nothing competes with it.
    lowest = value[row, winner][:, None]
    known = xp.isfinite(lowest)
    delta = xp.where(known, value - xp.where(known, lowest, 0.0), xp.inf)
    theta_log = xp.asarray(solution.theta_log)
    theta_log = xp.where(xp.isfinite(value)[:, :, None] & xp.isfinite(theta_log), theta_log, xp.nan)
    metric = xp.where(xp.isfinite(metric), metric, xp.nan)
    usable = xp.asarray(solution.converged) & (delta < COMPETES)
    n_modes, runner_up = xp.ones(n, xp.int32), best.theta_log
    runner_delta: Any = xp.full(n, xp.inf, value.dtype)
    order = xp.argsort(xp.where(usable, delta, xp.inf), axis=1, stable=True)
    distinct = xp.arange(k) == winner[:, None]
    for place in range(k):
        candidate = order[:, place]
        at = theta_log[row, candidate]
        step = xp.asarray(at[:, None] - theta_log, float)
        distance2 = xp.abs(xp.einsum("nki,nij,nkj->nk", step, metric, step))
        apart = usable[row, candidate] & (candidate != winner)
        apart &= xp.all(~distinct | (distance2 > DISTINCT_SIGMA**2), axis=1)
        first = apart & (n_modes == 1)
        runner_up = xp.where(first[:, None], at, runner_up)
        runner_delta = xp.where(first, delta[row, candidate], runner_delta)
        n_modes = n_modes + apart
        distinct = distinct | (apart[:, None] & (xp.arange(k) == candidate[:, None]))
    return Optima(best, n_modes, runner_up, runner_delta)
