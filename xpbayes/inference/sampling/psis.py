"""Pareto-smoothed importance sampling (Vehtari, Simpson, Gelman, Yao & Gabry 2024), for a batch of stars inside jit.

The largest importance ratios are replaced by the expected order statistics of a generalised Pareto distribution fitted
to them; its shape k_hat says whether the weights can be trusted (below 0.7) or not. ArviZ's `psislw` is the reference
in tests; ours exists because it must run for millions of stars on the device that holds their draws.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

K_PRIOR_WEIGHT, K_PRIOR_MEAN = 10.0, 0.5
"""Weakly informative prior on k, in draws (the paper's appendix)."""


def pareto_smoothed(ln_ratio: Float[Array, " draw"]) -> tuple[Float[Array, " draw"], Float[Array, ""]]:
    """Smooth one star's ln of target / proposal density, any constant, -inf allowed: weights of sum one, and k_hat."""
    n = ln_ratio.shape[0]
    n_tail = math.ceil(min(0.2 * n, 3.0 * math.sqrt(n)))
    shifted = ln_ratio - jnp.max(ln_ratio)
    largest, order = top(shifted, n_tail + 1)
    tail, cutoff = order[-2::-1], largest[-1]
    base = jnp.exp(jnp.maximum(cutoff, -80.0))  # float32's exp ends at -87
    excess = jnp.exp(largest[-2::-1]) - base
    k, sigma = _fit_generalised_pareto(excess)
    quantile = (jnp.arange(n_tail) + 0.5) / n_tail
    away = jnp.abs(k) > 1e-6
    safe = jnp.where(away, k, 1.0)
    expected = sigma * jnp.where(away, jnp.expm1(-safe * jnp.log1p(-quantile)) / safe, -jnp.log1p(-quantile))
    smoothed = jnp.minimum(jnp.log(expected + base), 0.0)
    usable = jnp.isfinite(k) & (sigma > 0)
    ln_weight = shifted.at[tail].set(jnp.where(usable, smoothed, shifted[tail]))
    return jax.nn.softmax(ln_weight), jnp.where(usable, k, jnp.inf)


def top(values: Float[Array, " draw"], n: int) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
    """The n largest, and where they are, without sorting all: that would take as long as the draws themselves.

    XLA on the CPU has a program of its own for this, but does not see where it applies if slices are taken of the result.
    """
    return tuple(map(jax.lax.optimization_barrier, jax.lax.top_k(values, n)))


def _fit_generalised_pareto(excess: Float[Array, " tail"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Shape, regularised as PSIS does, and scale of a sorted excess: empirical Bayes of Zhang & Stephens (2009)."""
    n = excess.shape[0]
    n_grid = 30 + int(math.sqrt(n))
    largest, quartile = excess[-1], excess[int(n / 4 + 0.5) - 1]
    index = jnp.arange(1, n_grid + 1) - 0.5
    theta = 1.0 / largest + (1.0 - jnp.sqrt(n_grid / index)) / 3.0 / jnp.maximum(quartile, 1e-30)

    def shape(t: Array) -> Array:
        return jnp.mean(jnp.log1p(-t * excess))

    k = jax.vmap(shape)(theta)
    ln_profile = n * (jnp.log(-theta / k) - k - 1.0)
    best = jnp.sum(theta * jax.nn.softmax(jnp.where(jnp.isfinite(ln_profile), ln_profile, -jnp.inf)))
    found = shape(best)
    sigma = -found / best
    return (n * found + K_PRIOR_WEIGHT * K_PRIOR_MEAN) / (n + K_PRIOR_WEIGHT), sigma
