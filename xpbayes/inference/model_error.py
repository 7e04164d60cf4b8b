"""The model's own error folded into the whitening factors of stars, before and during the search for their optima."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks
from xpbayes.device import program
from xpbayes.models.forward import ForwardModel, predict_flux
from xpbayes.models.model_error import ModelError, with_model_error
from xpbayes.models.star_model import StarModel


def fold_in_model_error(
    model: StarModel, stars: Stars, theta_log: Float[Array, "star parameter"] | None = None
) -> Stars:
    """The stars with the model's own error in their whitening factors and tails; unchanged if there is none.

    The relative error is taken of the flux predicted at theta_log; of the measured flux if None: good enough to find an
    optimum by, but a channel that came out faint by chance then counts for too much.
    """
    if model.error is None:
        return stars
    flux = stars.flux
    if theta_log is not None:
        flux = by_blocks(partial(_predicted, model.forward), STAR_BLOCK, stars, theta_log)
    return jax.device_put(by_blocks(partial(_fold_in, model.error), STAR_BLOCK, stars, flux))


@program
def _predicted(forward: ForwardModel, stars: Stars, theta_log: Array) -> Array:
    flux = jax.vmap(predict_flux, (None, 0, 0))(forward, theta_log, stars.ln_scale)
    return jnp.where(jnp.isfinite(flux), flux, stars.flux)


@program
def _fold_in(error: ModelError, stars: Stars, flux: Array) -> Stars:
    with jax.default_matmul_precision("highest"):
        return jax.vmap(partial(with_model_error, error))(stars, flux)
