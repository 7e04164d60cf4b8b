"""A few Gaussians fitted to weighted draws, inside jit and for a batch of stars: what adaptive importance sampling needs.

In: draws with weights that add up to one. Out: shares, means and lower-triangular factors. A library's fit is one
data set at a time and on the host; here there are thousands of small ones on the device that holds the draws.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from xpbayes.inference.linear_algebra import factor_scaled, whitened
from xpbayes.inference.sampling.psis import top

N_TERMS, EM_STEPS = 8, 6
"""Terms fitted and steps taken, where nothing else is asked for."""
WIDE_SHARE, WIDE = 0.1, 1.5
"""Share of one more term, as wide as all draws together times this: nothing that was once seen is given up."""
FLOOR = 1e-3
"""Added to the variances of a term, in units of the coordinates."""
HALVINGS = 22
"""Of the range of the draws, for quantiles: as fine as float32 tells apart."""
MIN_WEIGHT = 1e-2
"""A term with a smaller share of the draws takes its shape from all of them."""


class Mixture(NamedTuple):
    """A mixture of Gaussians, or of Student t: whose density the factors scale is for its user to say."""

    ln_share: Float[Array, " term"]  # they add up to one
    mean: Float[Array, "term parameter"]
    factor: Float[Array, "term parameter parameter"]  # lower-triangular; its square is the scale matrix


def fit_mixture(
    z: Float[Array, "draw parameter"], weight: Float[Array, " draw"], n_terms: int = N_TERMS, steps: int = EM_STEPS
) -> Mixture:
    """Fit a mixture to weighted draws by expectation-maximisation, beginning from slices along their longest axis.

    The weights add up to one; one more term, as wide as all draws together, is added to `n_terms`. Both steps are
    products with a matrix of (1, y, y y^T), y the draws in units of their own spread: many times as fast as differences
    from every mean, and float32 is exact enough, the variances being raised by `FLOOR` anyway.
    """
    n = z.shape[1]
    row, column = np.triu_indices(n)
    mean = weight @ z
    spread = jnp.sqrt(weight @ (z - mean) ** 2 + FLOOR)
    y = (z - mean) / spread
    # Draws along the last axis throughout: sums over a short last axis take several times as long on CPUs.
    y = y.T
    features = jnp.concatenate([jnp.ones_like(y[:1]), y, y[row] * y[column]])
    floor = jnp.diag(FLOOR / spread**2)

    def full(packed: Array) -> Array:
        return jnp.zeros((n, n)).at[row, column].set(packed).at[column, row].set(packed)

    covariance = full(features[1 + n :] @ weight)
    axis = jnp.ones(n)
    for _ in range(12):
        axis = covariance @ axis
        axis = axis / jnp.sqrt(jnp.sum(axis**2))
    along = axis @ y
    bounds = weighted_quantiles(along, weight, jnp.arange(1, n_terms) / n_terms)
    slice_of = jnp.sum(along > bounds[:, None], axis=0)

    def term(moments: Array) -> tuple[Array, Array, Array]:
        """Share, mean and factor of a term from its sums over the draws; the mean of all is at zero."""
        total, first = moments[0], moments[1 : 1 + n]
        center = first / (total + MIN_WEIGHT)
        cross = center[:, None] * first[None, :]
        scatter = full(moments[1 + n :]) - cross - cross.T + total * center[:, None] * center[None, :]
        scale = (scatter + MIN_WEIGHT * covariance) / (total + MIN_WEIGHT) + floor
        return jnp.log(total + 1e-4), center, factor_scaled(scale)

    def coefficients(ln_share: Array, center: Array, factor: Array) -> Array:
        """What the features are multiplied with for ln of share times density."""
        inverse = whitened(jnp.eye(n), factor).T
        white = inverse @ center
        precision = inverse.T @ inverse
        constant = ln_share - jnp.sum(jnp.log(jnp.diagonal(factor))) - 0.5 * white @ white
        squares = jnp.where(row == column, -0.5, -1.0) * precision[row, column]
        return jnp.concatenate([constant[None], white @ inverse, squares])

    def maximise(share: Array) -> tuple[Array, Array, Array]:
        return jax.vmap(term)((share * weight) @ features.T)

    def step(_: int, share: Array) -> Array:
        return jax.nn.softmax(jax.vmap(coefficients)(*maximise(share)) @ features, axis=0)

    share = jax.lax.fori_loop(0, steps, step, jax.nn.one_hot(slice_of, n_terms, axis=0))
    ln_share, center, factor = maximise(share)
    return Mixture(
        jnp.append(jax.nn.log_softmax(ln_share) + jnp.log1p(-WIDE_SHARE), jnp.log(WIDE_SHARE)),
        mean + spread * jnp.concatenate([center, jnp.zeros((1, n))]),
        spread[:, None] * jnp.concatenate([factor, WIDE * factor_scaled(covariance + floor)[None]]),
    )


def clipped_weights(ln_ratio: Float[Array, " draw"], n_clipped: int) -> Float[Array, " draw"]:
    """Weights that add up to one, the `n_clipped` largest made equal: what one draw says of its surroundings is little.

    `ln_ratio` is of target / proposal density, any constant; what is not finite counts as no weight.
    """
    ln_ratio = jnp.where(jnp.isfinite(ln_ratio), ln_ratio, -jnp.inf)
    return jax.nn.softmax(jnp.minimum(ln_ratio, top(ln_ratio, n_clipped)[0][-1]))


def weighted_quantiles(
    values: Float[Array, " draw"], weight: Float[Array, " draw"], at: Float[Array, " quantile"]
) -> Float[Array, " quantile"]:
    """Quantiles of finite weighted draws: least values with so much of all weight, 1, at or below them, by bisection.

    Sorting would take most of the time that a star's draws take, on CPUs.
    """

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        enough = (values <= middle[:, None]) @ weight >= at
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    ends = (jnp.broadcast_to(jnp.min(values), at.shape), jnp.broadcast_to(jnp.max(values), at.shape))
    return jax.lax.fori_loop(0, HALVINGS, halve, ends)[1]
