"""The optima of every star's posterior, from several starts: search, refinement, choice (METHOD 5)."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks, replaced
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.inference.search.solver import Solution, StartPool, columns_first, limits, solve
from xpbayes.inference.search.starts import StartGrid, find_starts, first_guess
from xpbayes.models.forward import ForwardModel
from xpbayes.models.star_model import StarModel

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


def search(model: StarModel, grid: StartGrid, measured: Stars, config: "InferenceConfig") -> Searched:
    """Find every star's optima from several starts.

    The relative model error is taken of a predicted flux: of the nearest node's for the ranking of starts, then of the
    one at the optimum that the best start leads to. Only then are all starts followed, so that all compete under one L:
    a search under another L loses optima that exist under the last one alone.

    Args:
        model: the trained model.
        grid: nodes of the start search.
        measured: a batch as inference may see it, with the measurement's own whitening.
        config: the settings.
    """
    stars = measured
    if model.error is not None:
        guess = by_blocks(partial(first_guess, model.forward, grid), STAR_BLOCK, measured)
        stars = fold_in_model_error(model, measured, guess)
    ranked = by_blocks(lambda some: find_starts(model.without_error, grid, some, config.n_starts), STAR_BLOCK, stars)
    starts = np.array(ranked)
    if model.error is None:
        return Searched(stars, starts, refine(model, stars, starts, config.max_iterations))
    first = solve(model, stars, jnp.asarray(starts[:, 0]), FIRST_ITERATIONS)
    stars = fold_in_model_error(model, measured, first.theta_log)
    begin = starts.copy()
    begin[:, 0] = first.theta_log
    solution = refine(model, stars, begin, config.max_iterations)
    n_iterations: Any = np.array(solution.n_iterations)
    n_iterations[:, 0] += np.asarray(first.n_iterations)
    solution = solution._replace(n_iterations=n_iterations)
    return _at_the_winner(model, measured, Searched(stars, starts, solution), begin[:, 0], config)


def _at_the_winner(
    model: StarModel,
    measured: Stars,
    found: Searched,
    taken_at: NDArray[np.floating],
    config: "InferenceConfig",
) -> Searched:
    """Take the relative error of the flux at the winner's optimum where the best start led elsewhere.

    Else a star's L would depend on which start was ranked first, and where two are all but equal, on rounding.

    Args:
        model: the trained model.
        measured: the batch with the measurement's own whitening.
        found: what the search found so far.
        taken_at: (star, parameter) where the flux is from that `found.stars` took the error of.
        config: the settings.
    """
    solution = found.solution
    at = np.asarray(solution.theta_log)
    winner = at[np.arange(len(at)), np.argmin(np.asarray(solution.objective), axis=1)]
    there = np.isfinite(winner).all(axis=1) & np.isfinite(taken_at).all(axis=1)
    moved = np.subtract(winner, taken_at, out=np.zeros_like(winner), where=there[:, None])
    elsewhere = np.flatnonzero(np.max(np.abs(_place(moved, model.forward)), axis=1) > SAME_FLUX)
    if not len(elsewhere):
        return found
    # Whole batches, repeating some: another number of stars would be another program.
    padded = np.resize(elsewhere, -(-len(elsewhere) // STAR_BLOCK) * STAR_BLOCK)
    few = fold_in_model_error(model, jax.tree.map(lambda leaf: np.asarray(leaf)[padded], measured), winner[padded])
    few = jax.tree.map(lambda leaf: np.asarray(leaf)[: len(elsewhere)], few)
    stars = replaced(found.stars, few, elsewhere)
    alive = np.isfinite(np.asarray(solution.objective)[elsewhere])
    again = refine(model, few, at[elsewhere], config.max_iterations, alive)
    more = np.asarray(again.n_iterations) + np.asarray(solution.n_iterations)[elsewhere]
    return Searched(stars, found.starts, replaced(solution, again._replace(n_iterations=more), elsewhere))


def refine(
    model: StarModel,
    stars: Stars,
    starts: Float[Array, "star start parameter"] | NDArray[np.floating],
    most: int,
    alive: NDArray[np.bool_] | None = None,
) -> Solution:
    """Solve every star from every start.

    All starts move together for a few iterations; those that may still win, each place once, go on. A start's own path
    does not depend on which others there are.

    Args:
        model: the trained model.
        stars: a batch, model error folded in.
        starts: where to begin.
        most: iterations at most, in all.
        alive: (star, start) the starts that count; all if None.

    Returns:
        a solution with leading axes (star, start); L is infinite for starts that were given up.
    """
    n, k, p = starts.shape
    pool = StartPool(columns_first(stars), np.asarray(starts).reshape(-1, p), np.repeat(np.arange(n), k))
    left: NDArray[np.integer] = np.arange(n * k) if alive is None else np.flatnonzero(alive)
    for limit in limits(most):
        left = pool.advance(model.without_error, left, limit)
        promising = _promising(pool.state.theta_log.reshape(n, k, p), pool.state.value.reshape(n, k), model.forward)
        # Given up on its way, a start may still be lower by rounding than the one at its place that goes on.
        pool.state.value[~promising], pool.state.converged[~promising] = np.inf, False
        left = left[promising[left]]
    winners = np.arange(n) * k + np.argmin(pool.state.value.reshape(n, k), axis=1)
    _step_further(model.without_error, pool, winners)
    return jax.tree.map(lambda leaf: leaf.reshape(n, k, *leaf.shape[1:]), pool.solution())


def _step_further(model: StarModel, pool: StartPool, rows: NDArray[np.integer]) -> None:
    """Take steps beyond convergence for one start of every star, where they lead nearer to the optimum.

    Newton's last step makes the distance its own square, for one evaluation of one start, where a sharper tolerance
    would cost more evaluations of all.

    Args:
        model, pool: as in `refine`.
        rows: one start of every star.
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
        nearer = (new.decrement < at.decrement[left]) & (new.value <= at.value[left] + SAME_OBJECTIVE)
        left = left[nearer]
        for name in ("theta_log", "value", "decrement", "trial"):
            getattr(at, name)[left] = getattr(new, name)[nearer]
        at.n_iterations[left] += 1


def _place(theta_log: NDArray[np.floating], forward: ForwardModel) -> NDArray[np.floating]:
    """theta_log in units of the training labels' spread, ln E and ln parallax as they are; NaN where it is infinite."""
    theta_log = np.where(np.isfinite(theta_log), theta_log, theta_log.dtype.type(np.nan))
    return np.asarray(theta_log / np.append(np.asarray(forward.intrinsic_scale), [1.0, 1.0]).astype(theta_log.dtype))


def _promising(
    theta_log: NDArray[np.floating], objective: NDArray[np.floating], forward: ForwardModel
) -> NDArray[np.bool_]:
    """(star x start,) whether each start may still win: not far above the best, and each place once."""
    n, k = objective.shape
    value = np.where(np.isfinite(objective), objective, np.inf)
    order, row = np.argsort(value, axis=1, kind="stable"), np.arange(n)[:, None]  # the lowest stays of those that met
    value = value[row, order]
    keep = value <= value[:, :1] + HOPELESS  # of a star whose every start failed, all: it still gets its row
    place = _place(theta_log, forward)[row, order]
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
    theta_log = np.asarray(solution.theta_log)
    value = np.where(np.isfinite(solution.objective), solution.objective, np.inf)
    winner = np.argmin(value, axis=1)
    best = Solution(*(leaf[np.arange(n), winner] for leaf in solution))
    metric = 0.5 * np.asarray(hessian(jnp.asarray(best.theta_log)), np.float64)
    # A star whose every start failed has one optimum, which is none: nothing competes with it.
    lowest = value[np.arange(n), winner][:, None]
    delta = np.subtract(value, lowest, out=np.full_like(value, np.inf), where=np.isfinite(lowest))
    theta_log = np.where(
        np.isfinite(value)[:, :, None] & np.isfinite(theta_log), theta_log, theta_log.dtype.type(np.nan)
    )
    metric = np.where(np.isfinite(metric), metric, np.nan)
    usable = np.asarray(solution.converged) & (delta < COMPETES)
    n_modes = np.ones(n, np.int32)
    runner_up, runner_delta = np.array(best.theta_log), np.full(n, np.inf, np.float32)
    order = np.argsort(np.where(usable, delta, np.inf), axis=1, kind="stable")
    distinct_so_far = np.zeros((n, k), bool)
    distinct_so_far[np.arange(n), winner] = True
    for place in range(k):
        candidate = order[:, place]
        at = theta_log[np.arange(n), candidate].astype(np.float64)
        apart = usable[np.arange(n), candidate] & (candidate != winner)
        for other in range(k):
            step = at - theta_log[:, other]
            distance2 = np.abs(np.einsum("ni,nij,nj->n", step, metric, step))
            apart &= ~distinct_so_far[:, other] | (distance2 > DISTINCT_SIGMA**2)
        first = apart & (n_modes == 1)
        runner_up[first] = at[first]
        runner_delta[first] = delta[np.arange(n), candidate][first]
        n_modes += apart
        distinct_so_far[np.arange(n), candidate] |= apart
    return Optima(best, n_modes, runner_up, runner_delta)
