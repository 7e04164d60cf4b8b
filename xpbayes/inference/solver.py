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
from xpbayes.models.objective import residuals, smooth_part
from xpbayes.models.prior import LabelPrior, precision_bound
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


class Curvature(NamedTuple):
    """L and its derivatives at one point.

    Attributes:
        value: () L.
        size: () sum of the magnitudes that L was added from: its rounding error scales with this, not with L.
        gradient: (parameter,).
        hessian: (parameter, parameter) positive definite approximation.
        jacobian: (residual, parameter) of the residuals.
    """

    value: Float[Array, ""]
    size: Float[Array, ""]
    gradient: Float[Array, " parameter"]
    hessian: Float[Array, "parameter parameter"]
    jacobian: Float[Array, "residual parameter"]


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


class _State(NamedTuple):
    parameters: Array
    at: Curvature
    damping: Array
    decrement: Array
    converged: Array
    n_iterations: Array


def curvature(
    model: ForwardModel, prior: LabelPrior | None, star: Stars, parameters: Float[Array, " parameter"]
) -> Curvature:
    """Evaluate L, its gradient and a positive definite Hessian for one star."""
    r, push = jax.linearize(lambda u: residuals(model, star, u), parameters)
    jacobian = jax.vmap(push, out_axes=1)(jnp.eye(parameters.size, dtype=parameters.dtype))
    gauss_newton = 2.0 * jacobian.T @ jacobian
    # What Gauss-Newton leaves out: the residuals' own curvature, contracted with the residuals. The whitening enters
    # it once, as a fixed vector, so it costs little more than the network's second derivative.
    bend = jax.hessian(lambda u: 2.0 * jnp.vdot(r, residuals(model, star, u)))(parameters)
    smooth, smooth_gradient = jax.value_and_grad(smooth_part, argnums=1)(prior, parameters)
    exact, bounded = gauss_newton + bend, gauss_newton
    if prior is not None:
        exact = exact + jax.hessian(smooth_part, argnums=1)(prior, parameters)
        n = parameters.size - 2
        bounded = bounded.at[:n, :n].add(2.0 * precision_bound(prior, parameters[:n]))
    chi2 = r @ r
    return Curvature(
        value=chi2 + smooth,
        size=chi2 + jnp.abs(smooth),
        gradient=2.0 * jacobian.T @ r + smooth_gradient,
        hessian=jnp.where(smallest_pivot(exact) > MIN_PIVOT, exact, bounded),
        jacobian=jacobian,
    )


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
    smallest = jnp.min(diagonal)
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


def _decrement(at: Curvature) -> Array:
    return jnp.abs(at.gradient @ solve_positive(at.hessian, at.gradient))


def _advance(model: ForwardModel, prior: LabelPrior | None, star: Stars, state: _State) -> _State:
    """One damped step of one star; a converged star stays as it is."""
    diagonal = jnp.diagonal(state.at.hessian)
    damped = state.at.hessian + state.damping * jnp.diag(diagonal)
    step = -solve_positive(damped, state.at.gradient)
    limit = jnp.concatenate([MAX_SCALED_STEP * model.label_scale, jnp.full(2, MAX_LOG_STEP, step.dtype)])
    step = step * jnp.minimum(1.0, 1.0 / jnp.max(jnp.abs(step) / limit))
    # Without a parallax, L is a narrow bent valley in (log g, parallax). Geodesic acceleration (Transtrum & Sethna
    # 2012) follows the bend: the residuals' second derivative along the step, met by one more solve.
    along = lambda u: jax.jvp(lambda v: residuals(model, star, v), (u,), (step,))[1]  # noqa: E731
    second = jax.jvp(along, (state.parameters,), (step,))[1]
    bend = -solve_positive(damped, state.at.jacobian.T @ second)
    share = jnp.max(jnp.abs(bend) / limit) / jnp.maximum(jnp.max(jnp.abs(step) / limit), 1e-12)
    step = jnp.where(share < MAX_BEND, step + bend, step)
    trial = state.parameters + step
    at = curvature(model, prior, star, trial)
    decrement = _decrement(at)
    better = at.value <= state.at.value + ACCEPT_ROUNDING * state.at.size
    # Next to the mode L itself is all rounding; there the gradient decides.
    better |= (at.value <= state.at.value + 100.0 * ACCEPT_ROUNDING * state.at.size) & (
        decrement < 0.5 * state.decrement
    )
    better &= jnp.all(jnp.isfinite(at.gradient)) & jnp.all(jnp.isfinite(at.hessian))

    kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), (trial, at), (state.parameters, state.at))
    damping = jnp.clip(jnp.where(better, state.damping * 0.1, state.damping * 8.0), MIN_DAMPING, MAX_DAMPING)
    # Damped to a standstill without progress is a failure that shows in `converged`, not an endless loop.
    moved = _State(
        parameters=kept[0],
        at=kept[1],
        damping=damping,
        decrement=jnp.where(better, decrement, state.decrement),
        converged=better & (decrement < DECREMENT_TOLERANCE),
        n_iterations=state.n_iterations + 1,
    )
    return jax.tree.map(lambda new, old: jnp.where(state.converged, old, new), moved, state)


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
            at = curvature(model, prior, star, parameters)
            return _State(
                parameters=parameters,
                at=at,
                damping=jnp.asarray(FIRST_DAMPING, parameters.dtype),
                decrement=_decrement(at),
                converged=jnp.asarray(False),
                n_iterations=jnp.asarray(0, jnp.int32),
            )

        def unfinished(state: _State) -> Array:
            return jnp.any(~state.converged & (state.n_iterations < max_iterations))

        advance = jax.vmap(partial(_advance, model, prior))
        state = jax.lax.while_loop(unfinished, lambda s: advance(stars, s), jax.vmap(begin)(stars, start))
    return Solution(state.parameters, state.at.value, state.decrement, state.converged, state.n_iterations)
