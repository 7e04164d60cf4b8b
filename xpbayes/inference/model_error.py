"""The model's own error folded into the whitening factors of stars, before and during the search for their optima."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks
from xpbayes.models.forward import ForwardModel, predict_flux
from xpbayes.models.model_error import ModelError, with_model_error


@jax.jit
def _fold_in(error: ModelError, stars: Stars, flux: Array) -> Stars:
    with jax.default_matmul_precision("highest"):
        return jax.vmap(partial(with_model_error, error))(stars, flux)


def fold_in_model_error(
    stars: Stars, error: ModelError | None, flux: Float[Array, "star channel"] | None = None
) -> Stars:
    """Return the stars with the model's own error in their whitening factors and tails; unchanged if there is none.

    Args:
        stars: a batch, with the measurement's own whitening.
        error: the model error, or None.
        flux: what the relative error is taken of. The measured fluxes if None: good enough to find an optimum by, but a
            channel that came out faint by chance then counts for too much. What the model predicts at the optimum has
            no such noise.
    """
    if error is None:
        return stars
    folded = by_blocks(partial(_fold_in, error), STAR_BLOCK, stars, stars.flux if flux is None else flux)
    return jax.tree.map(jnp.asarray, folded)


@jax.jit
def _predicted(model: ForwardModel, stars: Stars, parameters: Array) -> Array:
    flux = jax.vmap(predict_flux, (None, 0, 0))(model, parameters, stars.ln_scale)
    return jnp.where(jnp.isfinite(flux), flux, stars.flux)


def refold_model_error(
    model: ForwardModel, measured: Stars, error: ModelError | None, parameters: Float[Array, "star parameter"]
) -> Stars:
    """Return the stars with the relative error taken of what the model predicts at their optima.

    Args:
        model: the forward model.
        measured: a batch, with the measurement's own whitening.
        error: the model error, or None.
        parameters: (star, label + 2) optima found with the error taken of the measured fluxes.
    """
    flux = by_blocks(partial(_predicted, model), STAR_BLOCK, measured, parameters)
    return fold_in_model_error(measured, error, flux)
