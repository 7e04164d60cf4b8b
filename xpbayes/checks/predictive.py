"""What a draw from one star's posterior says of its spectrum: likelihood channel by channel, and a spectrum like it.

The whitening factor W is lower-triangular, so row c of W (f - f_pred) is what channel c adds to the channels before it:
the likelihood is a product over channels without approximation. Under the Student t each factor is a Student t again,
whose scale follows from the residuals before it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xpbayes.data.stars import Stars
from xpbayes.models.forward import ForwardModel, predict_flux
from xpbayes.models.likelihood import whitened_residual
from xpbayes.models.posterior import WhitenedStudent
from xpbayes.models.theta import to_log


def channel_ln_likelihood(
    residual: Float[Array, " channel"], whitening: Float[Array, "channel channel"], inv_dof: Float[Array, ""]
) -> Float[Array, " channel"]:
    """Ln density of every whitened residual given those before it; zero for channels that W says were not measured."""
    present = jnp.diagonal(whitening) > 0
    square = jnp.where(present, residual**2, 0.0)
    before = jnp.cumsum(square) - square
    count = jnp.cumsum(present) - present
    heavy = inv_dof > 0
    nu = 1.0 / jnp.where(heavy, inv_dof, 1.0)
    dof = nu + count
    scale2 = (nu + before) / dof
    gammaln = jax.scipy.special.gammaln
    student = (
        gammaln(0.5 * (dof + 1.0)) - gammaln(0.5 * dof) - 0.5 * jnp.log(dof * jnp.pi * scale2)
        - 0.5 * (dof + 1.0) * jnp.log1p(square / (dof * scale2))
    )  # fmt: skip
    gaussian = -0.5 * square - 0.5 * jnp.log(2.0 * jnp.pi)
    return jnp.where(present, jnp.where(heavy, student, gaussian), 0.0)


@jax.jit
def predict_draws(
    forward: ForwardModel, star: Stars, theta: Float[Array, "draw parameter"], seed: Array
) -> tuple[Float[Array, "draw channel"], Float[Array, "draw channel"], Float[Array, "draw channel"]]:
    """Evaluate draws (draw, label + 2) of labels, E [mag] and parallax [mas] from one star, model error folded in.

    Returns:
        (draw, channel) each: ln likelihood of the whitened fluxes; a flux drawn from the predictive distribution, in the
        star's own unit (a channel that was not measured is drawn without noise); the same whitened.
    """

    def one(point: Array, key: Array) -> tuple[Array, Array, Array]:
        theta_log = to_log(point)
        predicted = predict_flux(forward, theta_log, star.ln_scale)
        residual = whitened_residual(predicted, star.flux, star.whitening)
        again = WhitenedStudent(predicted, star.whitening, star.inv_dof).sample(key)
        return channel_ln_likelihood(residual, star.whitening, star.inv_dof), again, star.whitening @ again

    with jax.default_matmul_precision("highest"):
        key = jax.random.fold_in(jax.random.key(seed), 0x5EED)
        return jax.vmap(one)(theta, jax.random.split(key, theta.shape[0]))


whitened_flux = jax.jit(jax.vmap(lambda star: star.whitening @ star.flux))
"""(star, channel) observed fluxes, whitened."""
