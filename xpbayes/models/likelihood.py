"""chi^2, written once: the whitened residual, and what the model's own error does to the whitening.

Missing channels need no special case: their rows and columns of the whitening factor are zero.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def whitened_residual(
    predicted: Float[Array, " channel"], flux: Float[Array, " channel"], whitening: Float[Array, "channel channel"]
) -> Float[Array, " channel"]:
    """Residual in units of its own error: W (f_pred - f_obs), so that chi^2 = |.|^2 (ZGR23 Eq. 4)."""
    return whitening @ (predicted - flux)


def n_observed(whitening: Float[Array, "channel channel"]) -> Float[Array, ""]:
    """Number of channels that carry weight."""
    return jnp.sum(jnp.diagonal(whitening, axis1=-2, axis2=-1) > 0, axis=-1)


def half_log_det_precision(whitening: Float[Array, "channel channel"]) -> Float[Array, ""]:
    """1/2 ln det C^-1 over the channels that carry weight, for a lower-triangular factor."""
    diagonal = jnp.diagonal(whitening, axis1=-2, axis2=-1)
    return jnp.sum(jnp.where(diagonal > 0, jnp.log(jnp.where(diagonal > 0, diagonal, 1.0)), 0.0), axis=-1)


def add_model_error(
    whitening: Float[Array, "channel channel"],
    flux: Float[Array, " channel"],
    error_factor: Float[Array, "channel rank"],
) -> Float[Array, "channel channel"]:
    """Whitening factor of C + diag(f) S diag(f), with S = F F^T the covariance of the model's relative error.

    Works in the whitened frame, where the matrix to factor is I + B B^T with B = W diag(f) F: its eigenvalues are at
    least one, so float32 is enough, and a missing channel stays missing.

    Args:
        whitening: (channel, channel) lower-triangular W of the measurement.
        flux: (channel,) observed flux: like ZGR23 Eq. 2, relative errors are taken of the measurement.
        error_factor: (channel, rank) F.

    Returns:
        (channel, channel) lower-triangular factor with zero rows and columns where `whitening` has them.
    """
    scaled = whitening @ (flux[:, None] * error_factor)
    inner = jnp.eye(flux.shape[0], dtype=flux.dtype) + scaled @ scaled.T
    return jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(inner), whitening, lower=True)
