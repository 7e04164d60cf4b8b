"""The whole search as one program for accelerators: no array comes to the host before a chunk of stars is done.

What `optima.search`, `choose_optima` and `evaluate_mode` do round by round from the host, in the same steps and by the same
functions, so that both ways agree to rounding. All starts of a chunk stay in the device's memory, whitening factors as
triangles; those still moving are gathered anew, `lanes` at a time, into square ones. A chunk is large, because its slowest
starts need far more iterations than all others.

Several devices take chunks in turn: stars know nothing of each other.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import NDArray

from xpbayes.data.stars import STAR_BLOCK, Stars
from xpbayes.inference.errors import ModeDiagnostics, evaluate_mode
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.inference.sampling import importance
from xpbayes.inference.sampling.importance import Summary
from xpbayes.inference.search import optima, solver
from xpbayes.inference.search.optima import Optima
from xpbayes.inference.search.solver import Solution, SolverState
from xpbayes.inference.search.starts import StartGrid, find_starts, first_guess
from xpbayes.models.star_model import StarModel

T = TypeVar("T")

LANES, FEW_LANES = 32_768, 2_048
"""Starts that advance together: enough to fill an accelerator; and when so few are left."""
STARS_TOGETHER = 16_384
"""Stars whose starts are sought, or whose errors are evaluated, together: their square matrices take 0.3 GB."""
BYTES_PER_STAR = 55_000
"""Of a chunk with 66 channels: a square whitening factor, two packed ones, and the states of six starts twice over."""
BYTES_PER_DRAW, MOST_DRAWN_TOGETHER = 5_000, 8_192
"""Of a star's draws, with 66 channels: predicted fluxes, whitened ones, residuals. And stars that are drawn for together."""
LARGEST_CHUNK, USUAL_CHUNK = 2**18, 2**14
"""Stars on one device: more gain nothing; and where the device does not tell how much memory it has."""
MEMORY_SHARE = 0.4
"""Of a device's memory that a chunk may take: the next one is there before it is gone, and programs need room."""


class Found(NamedTuple):
    """What the search finds, on the device."""

    stars: Stars  # as `packed`, model error folded in
    optima: Optima  # the best optimum of every star and what competes with it
    at: ModeDiagnostics  # errors and all else at the best


def devices_to_use() -> list[jax.Device]:
    """All local devices of the default kind."""
    return jax.local_devices()


def stars_that_fit(bytes_per_star: float, largest: int, usual: int) -> int:
    """Stars that a device's memory takes, a power of two; the usual number where it does not tell."""
    room = (devices_to_use()[0].memory_stats() or {}).get("bytes_limit")
    if room is None:
        return usual
    return int(2 ** np.clip(np.floor(np.log2(MEMORY_SHARE * room / bytes_per_star)), 6, np.log2(largest)))


def at_once(most: int, on_cpu: int) -> int:
    """How much is worked on together: what fills an accelerator, or what stays in a processor's cache."""
    return on_cpu if devices_to_use()[0].platform == "cpu" else most


def largest_chunk() -> int:
    """Stars of a chunk on each device."""
    return stars_that_fit(BYTES_PER_STAR, LARGEST_CHUNK, USUAL_CHUNK)


def packed(stars: Stars) -> Stars:
    """Stars with the lower triangles of their whitening factors in one row each, half of the memory."""
    return replace(stars, whitening=stars.whitening[:, *np.tril_indices(stars.whitening.shape[-1])])


def unpacked(stars: Stars) -> Stars:
    """The inverse of `packed`."""
    n = stars.flux.shape[-1]
    number = np.zeros((n, n), np.int32)
    number[np.tril_indices(n)] = np.arange(n * (n + 1) // 2)
    square = jnp.where(np.tri(n, dtype=bool), stars.whitening[:, number], 0.0)
    return replace(stars, whitening=square)


def in_chunks(
    stars: Stars, seeds: NDArray[np.uint32], size: int, work: Callable[[Stars, NDArray[np.uint32]], T]
) -> Iterator[tuple[int, T]]:
    """Let all devices work on chunks of stars, each on those that come when it is free.

    Every device has the same program: its answers do not depend on how many there are. One `shard_map` over all of them
    is another program for another number of devices, which XLA rounds in other places. Yields how many of a chunk's
    stars count (the last one is filled up by repeating a star), and what `work` returned of them for the host; in
    order.
    """
    devices = devices_to_use()
    # On accelerators the host finishes one chunk while the device works on the next.
    workers = devices * at_once(2, 1)
    free: SimpleQueue[jax.Device] = SimpleQueue()
    for device in workers:
        free.put(device)

    def one(start: int) -> tuple[int, T]:
        device, n = free.get(), min(size, len(stars) - start)
        try:
            rows = np.minimum(np.arange(start, start + size), len(stars) - 1)
            with jax.default_device(device):
                return n, work(jax.device_put(stars.take(rows), device), seeds[rows])
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(workers)) as pool:
        tasks = [pool.submit(copy_context().run, one, start) for start in range(0, len(stars), size)]
        for task in tasks:
            yield task.result()


@partial(jax.jit, static_argnames=("n_starts", "most"))
def find(model: StarModel, grid: StartGrid, measured: Stars, n_starts: int, most: int) -> Found:
    """`search_chunk` of stars with square whitening factors."""
    return search_chunk(model, grid, packed(measured), n_starts, most)


@partial(jax.jit, static_argnames=("n_draws", "n_more"))
def draw(model: StarModel, found: Found, seeds: Array, n_draws: int, n_more: int) -> Summary:
    """`importance.summarise` as one program; arguments as for `importance_draws`."""
    best, n_modes, runner_up, _ = found.optima
    given = (found.stars, best.theta_log, runner_up, n_modes > 1, seeds)

    def some(n_more: int, rows: Array) -> Summary:
        stars, *rest = _taken(given, rows)
        stars = unpacked(stars)
        return importance.summarise_draws(
            stars, *importance.importance_draws(model, stars, *rest, n_draws=n_draws, n_more=n_more)
        )

    def together(n_more: int) -> int:
        room = stars_that_fit(
            BYTES_PER_DRAW * importance.all_draws(n_draws, n_more), MOST_DRAWN_TOGETHER, MOST_DRAWN_TOGETHER // 8
        )
        return at_once(room, importance.batch_size(n_draws, n_more))

    first = _for_each(len(seeds), partial(some, 0), together(0))
    if not n_more:
        return first

    def go_on(rows: Array, summary: Summary) -> Summary:
        return _put(summary, rows, some(n_more, rows))

    return in_turns(~importance.enough(first.k_hat), together(n_more), go_on, first)[0]


# ------------------------------------------------------------------------------------------------- within the program


def in_turns(pending: Bool[Array, " row"], size: int, work: Callable[[Array, T], T], tree: T, least: int = 0) -> Any:
    """Work on the rows that are pending, `size` at a time, until not more than `least` are left.

    `work` takes numbers of rows and the tree, and returns the tree with theirs replaced; a turn that is not full is
    filled up with numbers beyond the last row, whose results must be dropped. Returns the tree, and which rows are
    left.
    """
    size = min(size, len(pending))

    def turn(carried: tuple[T, Array]) -> tuple[T, Array]:
        tree, pending = carried
        (rows,) = jnp.nonzero(pending, size=size, fill_value=len(pending))
        return work(rows, tree), pending.at[rows].set(False, mode="drop")

    return jax.lax.while_loop(lambda carried: jnp.sum(carried[1]) > least, turn, (tree, pending))


def _taken(tree: T, rows: Int[Array, " row"]) -> T:
    return jax.tree.map(lambda leaf: leaf.at[rows].get(mode="clip"), tree)


def _put(tree: T, rows: Int[Array, " row"], new: T) -> T:
    return jax.tree.map(lambda leaf, value: leaf.at[rows].set(value.astype(leaf.dtype), mode="drop"), tree, new)


def _for_each(n: int, work: Callable[[Array], T], together: int | None = None) -> T:
    """What `work` gives for the numbers 0 to n - 1, some at a time."""
    together = together or at_once(STARS_TOGETHER, STAR_BLOCK)
    shapes = jax.eval_shape(work, jnp.zeros(min(together, n), int))
    empty = jax.tree.map(lambda leaf: jnp.zeros((n, *leaf.shape[1:]), leaf.dtype), shapes)
    done, _ = in_turns(jnp.ones(n, bool), together, lambda rows, tree: _put(tree, rows, work(rows)), empty)
    return done


def search_chunk(model: StarModel, grid: StartGrid, measured: Stars, n_starts: int, most: int) -> Found:
    """Find the optima of `packed` stars with their own whitening, in `most` iterations at most; evaluate the best."""
    n, bare, forward = len(measured), model.without_error, model.forward

    def begin(rows: Array) -> tuple[Stars, Array]:
        stars = unpacked(_taken(measured, rows))
        if model.error is not None:
            stars = fold_in_model_error(model, stars, first_guess(forward, grid, stars))
        return packed(stars), find_starts(bare, grid, stars, n_starts)

    stars, starts = _for_each(n, begin)
    if model.error is None:
        limits = solver.limits(most)
        rounds = _Rounds(jnp.array(limits, jnp.int32), len(limits), optima.MAX_FURTHER)
        solution = _refine(bare, stars, starts, jnp.ones(starts.shape[:2], bool), rounds)
    else:
        stars, solution = _passes(model, measured, stars, starts, most)

    best = optima.best_of(solution, jnp).theta_log
    at = _for_each(n, lambda rows: evaluate_mode(bare, unpacked(_taken(stars, rows)), _taken(best, rows)))
    return Found(stars, optima.choose_optima(solution, at.hessian, jnp), at)


class _Rounds(NamedTuple):
    """After how many iterations starts are gathered anew."""

    limits: Int[Array, " round"]  # iterations since the start; those of no round are filled up
    n: Any  # how many rounds
    n_further: Any  # steps of the winners beyond convergence


def _passes(model: StarModel, measured: Stars, stars: Stars, starts: Array, most: int) -> tuple[Stars, Solution]:
    """Three searches, each under the relative error of the flux where the last one ended.

    First the best start alone, then all, then all of the stars whose winner is another than the first one led to. See
    `optima.search`.
    """
    n, k = starts.shape[:2]
    first, last = solver.limits(optima.FIRST_ITERATIONS), solver.limits(most)
    longest = max(len(first), len(last))
    table = jnp.array([np.pad(some, (0, longest - len(some)), mode="edge") for some in (first, last)], jnp.int32)

    def fold(at: Array, rows: Array, stars: Stars) -> Stars:
        few = fold_in_model_error(model, unpacked(_taken(measured, rows)), _taken(at, rows))
        return _put(stars, rows, packed(few))

    def one(number: Array, carried: tuple[Stars, Solution, Array, Array]) -> tuple[Stars, Solution, Array, Array]:
        stars, known, alive, taken_at = carried
        is_first = number == 0
        rounds = _Rounds(
            jnp.where(is_first, table[0], table[1]),
            jnp.where(is_first, len(first), len(last)),
            jnp.where(is_first, 0, optima.MAX_FURTHER),
        )
        found = _refine(model.without_error, stars, known.theta_log, alive, rounds)
        found = found._replace(n_iterations=found.n_iterations + known.n_iterations)
        searched = jnp.any(alive, axis=1)
        known = jax.tree.map(lambda new, old: jnp.where(_beside(searched, new), new, old), found, known)
        at = known.theta_log[jnp.arange(n), jnp.argmin(known.objective, axis=1)]
        elsewhere = is_first | optima.is_elsewhere(at, taken_at, model.forward, jnp)
        stars, _ = in_turns(elsewhere & (number < 2), at_once(STARS_TOGETHER, STAR_BLOCK), partial(fold, at), stars)
        alive = elsewhere[:, None] & (is_first | jnp.isfinite(known.objective))
        return stars, known, alive, jnp.where(elsewhere[:, None], at, taken_at)

    nothing = jnp.full((n, k), jnp.inf, starts.dtype)
    known = Solution(starts, nothing, nothing, jnp.zeros((n, k), bool), jnp.zeros((n, k), jnp.int32))
    alone = jnp.broadcast_to(jnp.arange(k) == 0, (n, k))
    stars, solution, _, _ = jax.lax.fori_loop(0, 3, one, (stars, known, alone, starts[:, 0]))
    return stars, solution


def _beside(condition: Array, leaf: Array) -> Array:
    return condition.reshape(-1, *(1,) * (leaf.ndim - 1))


class _Going(NamedTuple):
    """Between two rounds."""

    number: Array  # of the next round
    state: SolverState  # of all starts
    left: Array  # (lane,) those that go on


def _refine(
    model: StarModel,
    stars: Stars,
    starts: Float[Array, "star start parameter"],
    alive: Bool[Array, "star start"],
    rounds: _Rounds,
) -> Solution:
    """Solve every star from every start; `optima.refine` within a program.

    Rounds of all starts that may still win, then steps of the winners beyond convergence: one loop, so that the solver's
    step is compiled once.
    """
    n, k, p = starts.shape

    def further(now: _Going) -> Array:
        return now.number >= rounds.n

    def unfinished(now: _Going) -> Array:
        return (now.number < rounds.n + rounds.n_further) & (
            ~further(now) | (now.number == rounds.n) | jnp.any(now.left)
        )

    def one(now: _Going) -> _Going:
        state, later = now.state, further(now)
        winner = jnp.argmin(state.value.reshape(n, k), axis=1)[:, None] == jnp.arange(k)
        left = jnp.where(now.number == rounds.n, winner.reshape(-1) & state.converged, now.left)
        left &= ~later | (state.decrement > optima.SHARP)
        given = _either(later, solver.starting_state(state.trial, jnp), state)
        limit = jnp.where(later, 1, rounds.limits[jnp.minimum(now.number, len(rounds.limits) - 1)])
        new = _advance(model, stars, k, given, left, limit)

        margin = jnp.where(later | (limit >= optima.JUDGED), optima.HOPELESS, jnp.inf)
        place = optima.going_to(new, xp=jnp).reshape(n, k, p)
        keep = optima.promising(place, new.value.reshape(n, k), model.forward, margin, jnp).reshape(-1)
        value = jnp.where(keep, new.value, jnp.inf)
        moved = new._replace(value=value, converged=new.converged & keep)
        nearer = left & optima.is_nearer(state.value, state.decrement, new)
        stepped = {name: _either(nearer, getattr(new, name), getattr(state, name)) for name in optima.BETTERED}
        stepped["n_iterations"] = state.n_iterations + nearer
        left &= jnp.where(later, nearer, keep & ~new.converged)
        number = jnp.where(later | jnp.any(left), now.number + 1, rounds.n)
        return _Going(number, _either(later, state._replace(**stepped), moved), left)

    begin = _Going(jnp.int32(0), solver.starting_state(starts.reshape(-1, p), jnp), alive.reshape(-1))
    solution = jax.lax.while_loop(unfinished, one, begin).state.solution
    return jax.tree.map(lambda leaf: leaf.reshape(n, k, *leaf.shape[1:]), solution)


def _either(condition: Array, yes: T, no: T) -> T:
    return jax.tree.map(lambda a, b: jnp.where(_beside(condition, a) if condition.ndim else condition, a, b), yes, no)


def _advance(
    model: StarModel, stars: Stars, n_starts: int, state: SolverState, left: Bool[Array, " lane"], limit: Array
) -> SolverState:
    """Move the starts that are left until they converge or reach the limit, those still moving side by side."""
    n = len(left)

    def some(rows: Array, state: SolverState) -> SolverState:
        own = _taken(state, rows)
        own = own._replace(converged=own.converged | (rows >= n))  # what fills up must not keep the others going
        moved = solver.advance_lanes(
            model, solver.turned(unpacked(_taken(stars, jnp.minimum(rows, n - 1) // n_starts))), own, limit
        )
        return _put(state, rows, moved)

    left = left & ~state.converged & (state.n_iterations < limit)
    many = at_once(LANES, solver.BATCH)
    few = FEW_LANES if n > many > FEW_LANES else 0
    state, left = in_turns(left, many, some, state, few)
    if few:
        state, _ = in_turns(left, few, some, state)
    return state
