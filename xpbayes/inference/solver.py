"""Find the mode of one star's posterior: damped Newton steps, batched over stars.

Every iteration costs one evaluation of residuals, Jacobian and curvature. The curvature is the exact Hessian of L where
that is positive definite; elsewhere Gauss-Newton's 2 J^T J plus a positive bound to the label prior's. Damping follows
Levenberg and Marquardt, scaled by the curvature's diagonal, so that units of the parameters do not matter.
A star that has converged is frozen: its answer does not depend on who shares its batch.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xpbayes.models.forward import ForwardModel
from xpbayes.models.objective import Curvature, curvature, flux_residuals
from xpbayes.models.prior import LabelPrior
from xpbayes.stars import Stars

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
MIN_PIVOT = 3e-6
"""The exact Hessian is used where its scaled Cholesky pivots exceed this, else the positive definite bound."""
CLIPPED_PIVOT = 1e-7
"""Pivots of scaled matrices are raised to this: directions without information get small steps, not NaN."""


class Solution(NamedTuple):
    """Where the solver stopped, per star.

    Attributes:
        parameters: (star, label + 2) labels, ln E, ln parallax.
        objective: (star,) L there.
        decrement: (star,) g^T H^-1 g.
        converged: (star,) decrement below the tolerance.
        n_iterations: (star,).
    """

    parameters: Float[Array, "star parameter"]
    objective: Float[Array, " star"]
    decrement: Float[Array, " star"]
    converged: Bool[Array, " star"]
    n_iterations: Int[Array, " star"]


def _equilibrated_factor(matrix: Array) -> tuple[list[list[Array]], Array, Array]:
    """Cholesky rows of a matrix scaled to unit diagonal, the scale, and the smallest pivot before clipping.

    Unrolled because a batch of 5 x 5 systems is then plain arithmetic on vectors of stars, which every device does
    well, where library calls pay per matrix.
    """
    n = matrix.shape[0]
    diagonal = jnp.diagonal(matrix)
    scale = 1.0 / jnp.sqrt(jnp.maximum(jnp.abs(diagonal), 1e-30))
    a = matrix * scale[:, None] * scale[None, :]
    lower: list[list[Array]] = []
    smallest = a[0, 0]
    for i in range(n):
        row: list[Array] = []
        for j in range(i):
            row.append(_minus(a[i, j], [row[k] * lower[j][k] for k in range(j)]) / lower[j][j])
        pivot = _minus(a[i, i], [e * e for e in row])
        smallest = jnp.minimum(smallest, pivot)
        row.append(jnp.sqrt(jnp.maximum(pivot, CLIPPED_PIVOT)))
        lower.append(row)
    return lower, scale, smallest


def _minus(value: Array, terms: list[Array]) -> Array:
    for term in terms:
        value = value - term
    return value


def smallest_pivot(matrix: Float[Array, "n n"]) -> Float[Array, ""]:
    """Smallest Cholesky pivot after scaling to unit diagonal: positive exactly for positive definite matrices."""
    return _equilibrated_factor(matrix)[2]


def solve_positive(matrix: Float[Array, "n n"], vector: Float[Array, " n"]) -> Float[Array, " n"]:
    """Solve a small positive definite system by Cholesky factorisation of its equilibrated form."""
    n = matrix.shape[0]
    lower, scale, _ = _equilibrated_factor(matrix)
    b = vector * scale
    y: list[Array] = []
    for i in range(n):
        y.append(_minus(b[i], [lower[i][k] * y[k] for k in range(i)]) / lower[i][i])
    x: list[Array] = [b[0]] * n
    for i in reversed(range(n)):
        x[i] = _minus(y[i], [lower[k][i] * x[k] for k in range(i + 1, n)]) / lower[i][i]
    return jnp.stack(x) * scale


class _Point(NamedTuple):
    """Where a star stands: L, its rounding scale, gradient, the positive definite Hessian in use, flux Jacobian."""

    value: Array
    size: Array
    gradient: Array
    hessian: Array
    flux_jacobian: Array
    decrement: Array


def _evaluate(model: ForwardModel, prior: LabelPrior | None, star: Stars, parameters: Array) -> _Point:
    at: Curvature = curvature(model, prior, star, parameters)
    hessian = jnp.where(smallest_pivot(at.hessian) > MIN_PIVOT, at.hessian, at.bound)
    decrement = jnp.abs(at.gradient @ solve_positive(hessian, at.gradient))
    return _Point(at.value, at.size, at.gradient, hessian, at.flux_jacobian, decrement)


class _State(NamedTuple):
    parameters: Array
    at: _Point
    damping: Array
    converged: Array
    n_iterations: Array


def _advance(model: ForwardModel, prior: LabelPrior | None, star: Stars, state: _State) -> _State:
    """One damped step of one star; a converged star stays as it is."""
    at = state.at
    damped = at.hessian + state.damping * jnp.diag(jnp.diagonal(at.hessian))
    step = -solve_positive(damped, at.gradient)
    limit = jnp.concatenate([MAX_SCALED_STEP * model.label_scale, jnp.full(2, MAX_LOG_STEP, step.dtype)])
    step = step * jnp.minimum(1.0, 1.0 / jnp.max(jnp.abs(step) / limit))
    # Without a parallax, L is a narrow bent valley in (log g, parallax). Geodesic acceleration (Transtrum & Sethna
    # 2012) follows the bend: the residuals' second derivative along the step, met by one more solve.
    along = lambda u: jax.jvp(lambda v: flux_residuals(model, star, v), (u,), (step,))[1]  # noqa: E731
    second = jax.jvp(along, (state.parameters,), (step,))[1]
    bend = -solve_positive(damped, second @ at.flux_jacobian)
    share = jnp.max(jnp.abs(bend) / limit) / jnp.maximum(jnp.max(jnp.abs(step) / limit), 1e-12)
    step = jnp.where(share < MAX_BEND, step + bend, step)

    trial = state.parameters + step
    new = _evaluate(model, prior, star, trial)
    better = new.value <= at.value + ACCEPT_ROUNDING * at.size
    # Next to the mode L itself is all rounding; there the gradient decides.
    better |= (new.value <= at.value + 100.0 * ACCEPT_ROUNDING * at.size) & (new.decrement < 0.5 * at.decrement)
    better &= jnp.all(jnp.isfinite(new.gradient)) & jnp.all(jnp.isfinite(new.hessian))

    parameters, at = jax.tree.map(
        lambda yes, no: jnp.where(better, yes, no), (trial, new), (state.parameters, at)
    )
    damping = jnp.clip(jnp.where(better, state.damping * 0.1, state.damping * 8.0), MIN_DAMPING, MAX_DAMPING)
    # Damped to a standstill without progress is a failure that shows in `converged`, not an endless loop.
    converged = better & (at.decrement < DECREMENT_TOLERANCE)
    moved = _State(parameters, at, damping, converged, state.n_iterations + 1)
    return jax.tree.map(lambda yes, no: jnp.where(state.converged, no, yes), moved, state)


@partial(jax.jit, static_argnames="max_iterations")
def solve(
    model: ForwardModel,
    prior: LabelPrior | None,
    stars: Stars,
    start: Float[Array, "star parameter"],
    max_iterations: int = 30,
) -> Solution:
    """Refine every star from its start.

    Args:
        model: the trained forward model.
        prior: the label mixture; None where measured labels take its place (training).
        stars: a batch.
        start: (star, label + 2) where to begin.
        max_iterations: stop after so many; unconverged stars say so.
    """
    with jax.default_matmul_precision("highest"):

        def begin(star: Stars, parameters: Array) -> _State:
            return _State(
                parameters=parameters,
                at=_evaluate(model, prior, star, parameters),
                damping=jnp.asarray(FIRST_DAMPING, parameters.dtype),
                converged=jnp.asarray(False),
                n_iterations=jnp.asarray(0, jnp.int32),
            )

        def unfinished(state: _State) -> Array:
            return jnp.any(~state.converged & (state.n_iterations < max_iterations))

        advance = jax.vmap(partial(_advance, model, prior))
        state = jax.lax.while_loop(unfinished, lambda s: advance(stars, s), jax.vmap(begin)(stars, start))
    return Solution(state.parameters, state.at.value, state.at.decrement, state.converged, state.n_iterations)
