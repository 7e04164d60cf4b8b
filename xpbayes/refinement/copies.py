"""Copies of labelled stars as they would look fainter, behind more dust or without a band: more kinds of data to learn from.

Labelled stars are brighter and less reddened than most of a catalogue. A second stage that has seen them alone would trust
a noisy or reddened residual spectrum as it trusts theirs.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks
from xpbayes.models.forward import ForwardModel

MAX_NOISE = 5.0
"""Errors of a noisier copy are 1 to so many times the star's, evenly in their logarithm."""
MEAN_DUST = 0.6
"""Mean of the extinction that a redder copy gains [mag], exponentially distributed."""
NOISIER, REDDER = 0.75, 0.5
"""Shares of copies that are noisier and redder, independently of each other."""
MISSING_BAND = 0.15
"""Chance of each broad band of a copy to be missing."""


def copies(forward: ForwardModel, stars: Stars, n_xp: int, rng: np.random.Generator) -> Stars:
    """One copy of every star, as measured, without the model's error; channels from `n_xp` on are broad bands."""
    n, n_channels = stars.flux.shape
    noise = np.where(rng.random(n) < NOISIER, np.exp(rng.random(n) * np.log(MAX_NOISE)), 1.0)
    dust = np.where(rng.random(n) < REDDER, rng.exponential(MEAN_DUST, n), 0.0)
    lost = rng.random((n, n_channels)) < MISSING_BAND
    lost[:, :n_xp] = False
    given = (noise, dust, ~lost, rng.standard_normal((n, n_channels + 1)))
    return by_blocks(partial(_copied, forward.ln_curve), STAR_BLOCK, stars, *(v.astype(np.float32) for v in given))


@jax.jit
def _copied(ln_curve: Array, stars: Stars, noise: Array, dust: Array, kept: Array, draws: Array) -> Stars:
    return jax.vmap(partial(_copy, ln_curve))(stars, noise, dust, kept, draws)


def _copy(ln_curve: Array, star: Stars, noise: Array, dust: Array, kept: Array, draws: Array) -> Stars:
    """One star with `noise` times its errors, behind `dust` more, without the channels that are not `kept`."""
    measured = jnp.diagonal(star.whitening) > 0
    invertible = star.whitening + jnp.diag(jnp.where(measured, 0.0, 1.0))
    error = jax.scipy.linalg.solve_triangular(invertible, jnp.where(measured, draws[1:], 0.0), lower=True)
    dimmed = jnp.exp(-dust * jnp.exp(ln_curve))
    more = jnp.sqrt(noise**2 - 1.0)
    flux = (star.flux + more * error) * dimmed
    scale, precision = jnp.median(dimmed), star.parallax_inv_error
    both = kept[:, None] * kept
    return replace(
        star,
        flux=flux / scale,
        whitening=both * star.whitening / (noise * dimmed[None, :]) * scale,
        ln_scale=star.ln_scale + jnp.log(scale),
        parallax=star.parallax + jnp.where(precision > 0, more * draws[0] / jnp.maximum(precision, 1e-6), 0.0),
        parallax_inv_error=precision / noise,
    )
