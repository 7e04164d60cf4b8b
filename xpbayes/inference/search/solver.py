"""Find the mode of one star's posterior: damped Newton steps, batched over stars.

Every iteration costs one evaluation of residuals, Jacobian and curvature, at the trial point; what it yields decides
whether the trial is taken and where the next one lies. The curvature is the exact Hessian of L where that is positive
definite; elsewhere Gauss-Newton's 2 J^T J plus a positive bound to the label prior's. Damping follows Levenberg and
Marquardt, scaled by the curvature's diagonal, so that units of the parameters do not matter.

Without a parallax, L is a narrow bent valley in (log g, parallax): a dwarf nearby is a giant far away. So the parallax is
eliminated (variable projection): steps are damped in the other parameters alone, and at every trial the parallax is
first brought to its best value there, a linear least-squares amplitude since the flux goes with its square.
A star that has converged is frozen: its answer does not depend on who shares its batch.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import NDArray

from xpbayes.data.stars import STAR_BLOCK, Stars, rows_of_each
from xpbayes.device import aligned_zeros, is_hasty, prepare_device, program
from xpbayes.inference.linear_algebra import smallest_pivot, solve_positive
from xpbayes.models.likelihood import deviance, n_observed, parallax_deviance
from xpbayes.models.objective import Expansion, at_other_parallax, curvature_of, expand
from xpbayes.models.star_model import StarModel

DECREMENT_TOLERANCE = 1e-4
"""Converged when g^T H^-1 g, twice what one more Newton step can gain in L, is below this: 0.007 sigma from the mode."""
MAX_LOG_STEP = 2.0
"""Largest change of ln E or ln parallax in one step: the exponentials are far from quadratic beyond."""
MAX_SCALED_STEP = 1.5
"""Largest change of a label in one step, in units of the training labels' spread."""
FIRST_DAMPING, MIN_DAMPING, MAX_DAMPING = 1e-2, 1e-7, 1e8
ACCEPT_ROUNDING = 2e-6
"""A step may raise L by this fraction of what L is summed from: float32 cannot see smaller changes."""
MAX_BEND = 0.75
"""A bend longer than this share of the step is not trusted."""
PARALLAX_ROUNDS = 5
"""Rounds of Newton's method for the parallax, from the value that the fluxes want."""
MIN_PIVOT = 3e-6
"""The exact Hessian is used where its scaled Cholesky pivots exceed this, else the positive definite bound."""
FIRST_ROUND, ONE_BY_ONE, LONGER = 2, 5, 1.4
"""Iterations that all starts make together; up to how many rounds are of one more, for that is where most starts of a star
meet; every further round is so much longer than the last. Short rounds gather starts anew more often, which costs a third
of an iteration; long ones make those that have converged wait."""
LATE, LATE_BATCH = 40, 16
"""After so many iterations few starts are left: they advance in batches of so many, on CPUs. It is by a start's own
iterations, so that its path does not depend on who shares its batch."""
HOST_CHUNK, HASTY_CHUNK = 2048, 256
"""Stars solved together on CPUs, if the settings do not say how many; what few stars are filled up to."""
BATCH, ACCELERATOR_BATCH = 128, 16384
"""Starts that advance together: what a processor's cache holds; what fills an accelerator."""


class Solution(NamedTuple):
    """Where the solver stopped, per star."""

    theta_log: Float[Array, "star parameter"]  # (star, label + 2) labels, ln E, ln parallax
    objective: Float[Array, " star"]  # L there
    decrement: Float[Array, " star"]  # g^T H^-1 g
    converged: Bool[Array, " star"]  # decrement below the tolerance
    n_iterations: Int[Array, " star"]


def best_parallax_shift(star: Stars, theta_log: Float[Array, " parameter"], at: Expansion) -> Float[Array, ""]:
    """Change of ln parallax that minimises L with all other parameters as they are, from the fluxes at theta_log."""
    # Flux that is a times as large leaves residual + (a - 1) white.
    white, residual = 0.5 * at.jacobian[-1], at.residual
    power = jnp.maximum(white @ white, 1e-30)
    amplitude = jnp.clip(1.0 - white @ residual / power, 1e-4, 1e4)
    misfit = jnp.sum((residual + (amplitude - 1.0) * white) ** 2)
    n_obs = n_observed(star.whitening)
    shift = 0.5 * jnp.log(amplitude)
    for _ in range(PARALLAX_ROUNDS):
        # Newton's method in one dimension: chi^2 = misfit + power (a - amplitude)^2 with a = e^(2 shift).
        a, plx = jnp.exp(2.0 * shift), jnp.exp(theta_log[-1] + shift)
        rho = deviance(misfit + power * (a - amplitude) ** 2, n_obs, star.inv_dof)
        by_flux = 4.0 * power * a * (a - amplitude)
        known = 2.0 * star.parallax_inv_error**2 * plx
        bent: Array | float = 0.0
        if star.doubt is not None:
            of = parallax_deviance((star.parallax_inv_error * (plx - star.parallax)) ** 2, star.doubt)
            bent = of.bend * (known * (plx - star.parallax)) ** 2
            known = of.slope * known
        gradient = rho.slope * by_flux + known * (plx - star.parallax) - 2.0
        bound = 8.0 * rho.slope * power * a**2 + known * plx
        exact = bound + 2.0 * rho.slope * by_flux + rho.bend * by_flux**2 + known * (plx - star.parallax) + bent
        step = gradient / jnp.where(exact > 0.1 * bound, exact, bound)
        shift = shift - jnp.clip(step, -1.0, 1.0)
    return jnp.where(jnp.isfinite(shift), shift, 0.0)


def _damped_step(hessian: Array, gradient: Array, damping: Array) -> Array:
    """Levenberg and Marquardt's step with the parallax, the last parameter, eliminated and not damped."""
    across, own = hessian[:-1, -1], jnp.maximum(hessian[-1, -1], 1e-30)
    reduced = hessian[:-1, :-1] - jnp.outer(across, across) / own
    damped = reduced + damping * jnp.diag(jnp.abs(jnp.diagonal(reduced)))
    others = -solve_positive(damped, gradient[:-1] - across * gradient[-1] / own)
    return jnp.append(others, -(gradient[-1] + across @ others) / own)


class SolverState(NamedTuple):
    """One start: the best point so far with its derivatives, and the trial to evaluate next; of many in NumPy.

    Some are made by position: the order counts.
    """

    theta_log: Any
    value: Any
    size: Any
    gradient: Any
    hessian: Any
    decrement: Any
    trial: Any
    damping: Any
    converged: Any
    n_iterations: Any

    @property
    def solution(self) -> Solution:
        """Where the starts stand."""
        return Solution(self.theta_log, self.value, self.decrement, self.converged, self.n_iterations)


def _advance(model: StarModel, star: Stars, state: SolverState) -> SolverState:
    """Evaluate one star's trial, take it or not, and choose the next; a converged star stays as it is."""
    around = expand(model.forward, star, state.trial)
    shift = best_parallax_shift(star, state.trial, around)
    trial = state.trial.at[-1].add(shift)
    new, bend_along = curvature_of(model, star, trial, at_other_parallax(around, shift))
    definite = smallest_pivot(new.hessian) > MIN_PIVOT
    new_hessian = jnp.where(definite, new.hessian, new.bound)
    new_decrement = jnp.abs(new.gradient @ solve_positive(new_hessian, new.gradient))
    better = new.value <= state.value + ACCEPT_ROUNDING * state.size
    # Next to the mode L itself is all rounding; there the gradient decides.
    near = new.value <= state.value + 100.0 * ACCEPT_ROUNDING * state.size
    better |= near & (new_decrement < state.decrement)
    better &= jnp.isfinite(new.value) & jnp.all(jnp.isfinite(new.gradient)) & jnp.all(jnp.isfinite(new_hessian))
    first = state.n_iterations == 0
    damping = jnp.where(better, state.damping * 0.1, state.damping * 8.0)
    reached = (trial, new.value, new.size, new.gradient, new_hessian, new_decrement)
    best = jax.tree.map(lambda yes, no: jnp.where(better, yes, no), reached, state[: len(reached)])
    theta_log, _, _, gradient, hessian, decrement = best
    damping = jnp.where(first, state.damping, jnp.clip(damping, MIN_DAMPING, MAX_DAMPING))

    step = _damped_step(hessian, gradient, damping)
    limit = jnp.concatenate([MAX_SCALED_STEP * model.forward.intrinsic_scale, jnp.full(2, MAX_LOG_STEP, step.dtype)])
    # Where E is all but nought, nothing else depends on ln E, and its own step must not shorten the others'.
    step = step.at[-2].set(jnp.clip(step[-2], -MAX_LOG_STEP, MAX_LOG_STEP))
    step = step * jnp.minimum(1.0, 1.0 / jnp.max(jnp.abs(step) / limit))
    # Geodesic acceleration (Transtrum & Sethna 2012) follows what bend is left: the residuals' second derivative along
    # the step, met by one more solve. It needs the expansion at the point it starts from, which is at hand only where
    # the trial was taken.
    bend = _damped_step(hessian, bend_along(step), damping)
    share = jnp.max(jnp.abs(bend) / limit) / jnp.maximum(jnp.max(jnp.abs(step) / limit), 1e-12)
    step = jnp.where(better & (share < MAX_BEND), step + bend, step)

    # Damped to a standstill without progress is a failure that shows in `converged`, not an endless loop.
    converged = better & (decrement < DECREMENT_TOLERANCE)
    moved = SolverState._make((*best, theta_log + step, damping, converged, state.n_iterations + 1))
    return jax.tree.map(lambda yes, no: jnp.where(state.converged, no, yes), moved, state)


def starting_state(begin: Any, xp: Any = np) -> SolverState:
    """Starts that have not moved yet, in NumPy's or JAX's arrays."""
    n, p = begin.shape
    return SolverState(
        theta_log=begin,
        value=xp.full(n, xp.inf, begin.dtype),
        size=xp.zeros(n, begin.dtype),
        gradient=xp.full((n, p), xp.inf, begin.dtype),
        hessian=xp.tile(xp.eye(p, dtype=begin.dtype), (n, 1, 1)),
        decrement=xp.full(n, xp.inf, begin.dtype),
        trial=begin.copy(),
        damping=xp.full(n, FIRST_DAMPING, begin.dtype),
        converged=xp.zeros(n, bool),
        n_iterations=xp.zeros(n, xp.int32),
    )


def turned(stars: Stars) -> Stars:
    """Stars with their whitening factors transposed: products of rows with them cost a third of those with the others."""
    return replace(stars, whitening=jnp.swapaxes(stars.whitening, -2, -1))


def advance_lanes(model: StarModel, stars: Stars, state: SolverState, limit: Int[Array, ""]) -> SolverState:
    """Move starts, of a `turned` star each, until all have converged or made `limit` iterations, within a program."""
    with jax.default_matmul_precision("highest"):

        def unfinished(state: SolverState) -> Array:
            return jnp.any(~state.converged & (state.n_iterations < limit))

        # Turned back at every step, which costs nothing: what is turned before the loop is stored anew.
        advance = jax.vmap(lambda star, state: _advance(model, turned(star), state))
        return jax.lax.while_loop(unfinished, lambda s: advance(stars, s), state)


@program
def _advance_batch(
    model: StarModel, stars: Stars, star_of: Int[Array, " start"], state: "_Packed", limit: Int[Array, ""]
) -> "_Packed":
    """The same as a program of its own, each start's star taken from all of them, which are `turned`."""
    moved = advance_lanes(model, stars.take(star_of), state.opened(), limit)
    n = len(star_of)
    numbers = jnp.concatenate([leaf.reshape(n, -1) for leaf in moved[:-2]], axis=1)
    return _Packed(numbers, moved.converged, moved.n_iterations)


class _Packed(NamedTuple):
    """Starts as they travel between host and program, which costs by the number of arrays."""

    numbers: Any  # (start, number) what a `SolverState` begins with, side by side
    converged: Any  # (start,) as there, like the next
    n_iterations: Any

    def opened(self) -> SolverState:
        """As a `SolverState`; in NumPy of views, through which these arrays change."""
        n, width = self.numbers.shape
        p = round(np.sqrt(width - 1.75) - 1.5)  # of p^2 + 3 p + 4
        at = 0
        leaves: list[Any] = []
        for shape in ((p,), (), (), (p,), (p, p), (), (p,), ()):
            size = math.prod(shape)
            leaves.append(self.numbers[:, at : at + size].reshape(n, *shape))
            at += size
        return SolverState(*[*leaves, self.converged, self.n_iterations])

    @classmethod
    def starting(cls, begin: NDArray[np.floating]) -> "_Packed":
        """Starts that have not moved yet."""
        *numbers, converged, n_iterations = starting_state(begin)
        packed = np.concatenate([leaf.reshape(len(begin), -1) for leaf in numbers], axis=1)
        return cls(packed, converged, n_iterations)


_turn = jax.jit(turned)


@partial(jax.jit, donate_argnums=0)
def _put(whitening: Array, rest: Stars, few: Stars, rows: Int[Array, " few"]) -> Stars:
    """Stars with some of them replaced: in their place, where this memory is the program's own."""
    whole = replace(rest, whitening=whitening)
    return jax.tree.map(lambda leaf, new: leaf.at[rows].set(new), whole, turned(few))


class StarChunk(NamedTuple):
    """Stars on the device, filled up to whole chunks: one program then serves any number of them."""

    turned: Stars  # the stars, `turned`

    @classmethod
    def of(cls, stars: Stars) -> "StarChunk":
        """Bring a batch to the device."""
        n = len(stars)
        size = HASTY_CHUNK if is_hasty() and n <= HASTY_CHUNK else -(-n // HOST_CHUNK) * HOST_CHUNK

        def filled(leaf: Array) -> Array:
            if n == size:
                return jax.device_put(leaf)
            whole = aligned_zeros((size, *leaf.shape[1:]), leaf.dtype)
            whole[:n] = leaf
            return jax.device_put(whole)

        return cls(_turn(jax.tree.map(filled, stars)))

    def replaced(self, few: Stars, rows: NDArray[np.integer]) -> "StarChunk":
        """The same with some stars replaced, whole blocks of them; this one is gone then."""
        whole = self.turned
        for begin in range(0, len(rows), STAR_BLOCK):
            block = slice(begin, begin + STAR_BLOCK)
            rest = replace(whole, whitening=whole.ln_scale)
            whole = _put(whole.whitening, rest, rows_of_each(few, block), rows[block])
        return StarChunk(whole)

    def without_parallax(self) -> "StarChunk":
        """The same stars, no parallax measured."""
        nothing = jax.device_put(np.zeros(len(self.turned), np.float32))
        return StarChunk(replace(self.turned, parallax_inv_error=nothing))


class StartPool:
    """Starts on their way to optima, each of a star of a batch; a star may have many.

    They advance in batches of one size, whatever their number: one program serves all, a batch's data stay in the
    processor's cache, and those still moving are gathered anew after every round, so that few wait for the slowest. A
    start goes on exactly where it stood: its path depends neither on the rounds nor on who shares its batch.
    """

    def __init__(
        self,
        stars: StarChunk,
        start: Float[Array, "start parameter"] | NDArray[np.floating],
        star_of: NDArray[np.integer] | None = None,
    ) -> None:
        """Set every start to where it begins, of the stars in these rows, of all in order if None."""
        self._stars = stars
        self._star_of = np.arange(len(start)) if star_of is None else np.asarray(star_of)
        self._packed = _Packed.starting(np.asarray(start))
        self.state = self._packed.opened()

    def advance(self, model: StarModel, rows: NDArray[np.integer], limit: int) -> NDArray[np.integer]:
        """Move starts until they converge or have made `limit` iterations; the `rows` that have not converged."""
        size = _batch_size(limit)
        for begin in range(0, len(rows), size):
            batch = rows[begin : begin + size]
            padded = batch if len(batch) == size else batch[np.minimum(np.arange(size), len(batch) - 1)]
            state = _Packed(*(leaf[padded] for leaf in self._packed))
            moved = _advance_batch(model, self._stars.turned, self._star_of[padded], state, np.int32(limit))
            for leaf, new in zip(self._packed, moved, strict=True):
                leaf[batch] = np.asarray(new)[: len(batch)]
        return rows[~self.state.converged[rows]]

    def further(self, rows: NDArray[np.integer]) -> "StartPool":
        """New starts from the trials of some of these, of the same stars."""
        return StartPool(self._stars, self.state.trial[rows], self._star_of[rows])


def _batch_size(limit: int) -> int:
    if jax.default_backend() != "cpu":
        return ACCELERATOR_BATCH
    return LATE_BATCH if limit > LATE and not is_hasty() else BATCH


def limits(most: int) -> list[int]:
    """Iterations since the start after which starts are gathered anew."""
    found, limit, more = [], FIRST_ROUND, 1
    while limit < most:
        found.append(limit)
        limit, more = limit + more, more if limit < ONE_BY_ONE else math.ceil(LONGER * more)
    return [*found, most]


def solve(
    model: StarModel,
    stars: Stars | StarChunk,
    start: Float[Array, "star parameter"] | NDArray[np.floating],
    max_iterations: int = 30,
    rows: NDArray[np.integer] | None = None,
) -> Solution:
    """Refine every star from its start, of the stars in these rows, or all in order; unconverged ones say so."""
    prepare_device()
    pool = StartPool(stars if isinstance(stars, StarChunk) else StarChunk.of(stars), start, rows)
    left: NDArray[np.integer] = np.arange(len(start))
    for limit in limits(max_iterations):
        left = pool.advance(model.without_error, left, limit)
    return pool.state.solution
