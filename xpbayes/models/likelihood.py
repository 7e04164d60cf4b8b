"""chi^2, written once: the whitened residual, and what the model's own error does to the whitening.

Missing channels need no special case: their rows and columns of the whitening factor are zero.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xpbayes.data.stars import ParallaxDoubt

FACTOR_BLOCK = 16
"""Channels whose covariance is factored together."""


def whitened_residual(
    predicted: Float[Array, " channel"], flux: Float[Array, " channel"], whitening: Float[Array, "channel channel"]
) -> Float[Array, " channel"]:
    """Residual in units of its own error: W (f_pred - f_obs), so that chi^2 = |.|^2 (ZGR23 Eq. 4)."""
    return whitening @ (predicted - flux)


def at_own_level(
    predicted: Float[Array, " channel"], flux: Float[Array, " channel"], whitening: Float[Array, "channel channel"]
) -> Float[Array, " channel"]:
    """The predicted flux times the grey factor that fits the observed flux best.

    A catalogue's own values give a star's flux up to such a factor where stars of the same labels differ in luminosity.
    """
    white = whitening @ predicted
    return predicted * (white @ (whitening @ flux)) / (white @ white)


def n_observed(whitening: Float[Array, "channel channel"]) -> Float[Array, ""]:
    """Number of channels that carry weight."""
    return jnp.sum(jnp.diagonal(whitening, axis1=-2, axis2=-1) > 0, axis=-1)


def half_log_det_precision(whitening: Float[Array, "channel channel"]) -> Float[Array, ""]:
    """1/2 ln det C^-1 over the channels that carry weight, for a lower-triangular factor."""
    diagonal = jnp.diagonal(whitening, axis1=-2, axis2=-1)
    return jnp.sum(jnp.where(diagonal > 0, jnp.log(jnp.where(diagonal > 0, diagonal, 1.0)), 0.0), axis=-1)


def marginal_sigma(whitening: Float[Array, "channel channel"]) -> Float[Array, " channel"]:
    """Error of every channel, the others marginalised: roots of the diagonal of W^-1 W^-T; 1 where nothing was observed."""
    # Where nothing was observed the factor has zero rows; a one on the diagonal makes it invertible, apart from them.
    observed = jnp.diagonal(whitening) > 0
    factor = whitening + jnp.diag(jnp.where(observed, 0.0, 1.0))
    inverse = jax.scipy.linalg.solve_triangular(factor, jnp.eye(observed.size, dtype=factor.dtype), lower=True)
    return jnp.sqrt(jnp.sum(inverse**2, axis=1))


class Deviance(NamedTuple):
    """rho(chi^2), what the fluxes add to L = -2 ln posterior, with its first two derivatives by chi^2."""

    value: Float[Array, ""]  # rho
    # rho': the star's weight. Above 1 for a star that fits better than most, below 1 for a bad fit.
    slope: Float[Array, ""]
    bend: Float[Array, ""]  # rho''


def deviance(chi2: Float[Array, ""], n_obs: Float[Array, ""], inv_dof: Float[Array, ""]) -> Deviance:
    """-2 ln density of a multivariate Student t in its chi^2, without the normalisation; of a Gaussian for tail 0.

    With nu = 1 / tail, rho = (nu + n) ln(1 + chi^2 / nu). Equivalent to a noise amplitude of each star's own, with an
    inverse-gamma prior, integrated out: how well spectra of a kind are described differs from star to star by factors.
    """
    heavy = inv_dof > 0
    k = jnp.where(heavy, inv_dof, 1.0)
    slope = (1.0 + k * n_obs) / (1.0 + k * chi2)
    return Deviance(
        jnp.where(heavy, (1.0 / k + n_obs) * jnp.log1p(k * chi2), chi2),
        jnp.where(heavy, slope, 1.0),
        jnp.where(heavy, -slope * k / (1.0 + k * chi2), 0.0),
    )


def parallax_deviance(square: Float[Array, ""], doubt: ParallaxDoubt | None) -> Deviance:
    """-2 ln density of a measured parallax, without a constant: of a Gaussian, or where it is doubted of two.

    The second is as much wider as a spurious parallax's error is larger than stated; which of both a star's parallax is
    of is summed over. `square` is of the parallax minus the measured one, over the stated error.
    """
    if doubt is None:
        return Deviance(square, jnp.ones_like(square), jnp.zeros_like(square))
    ln_odds, gain = _spurious_ln_odds(square, doubt)
    spurious, even = jax.nn.sigmoid(ln_odds), jax.nn.sigmoid(-ln_odds)
    return Deviance(square - 2.0 * jax.nn.softplus(ln_odds), 1.0 - gain * spurious, -0.5 * gain**2 * spurious * even)


def spurious_probability(square: Float[Array, ""], doubt: ParallaxDoubt) -> Float[Array, ""]:
    """Probability that a parallax is spurious, given how far off it is; arguments as in `parallax_deviance`."""
    return jax.nn.sigmoid(_spurious_ln_odds(square, doubt)[0])


def _spurious_ln_odds(square: Array, doubt: ParallaxDoubt) -> tuple[Array, Array]:
    """Ln odds of spurious, and the share of the inverse variance that a spurious parallax lacks."""
    gain = 1.0 - doubt.narrowing**2
    prior = jnp.log(doubt.prior) - jnp.log1p(-doubt.prior)
    return prior + jnp.log(doubt.narrowing) + 0.5 * gain * square, gain


def ln_normalisation(whitening: Float[Array, "channel channel"], inv_dof: Float[Array, ""]) -> Float[Array, ""]:
    """Ln of the constant that makes exp(-rho / 2) a density over the observed fluxes."""
    n = n_observed(whitening)
    heavy = inv_dof > 0
    half_nu = 0.5 / jnp.where(heavy, inv_dof, 1.0)
    student = (
        jax.scipy.special.gammaln(half_nu + 0.5 * n)
        - jax.scipy.special.gammaln(half_nu)
        - 0.5 * n * jnp.log(2.0 * half_nu * jnp.pi)
    )
    return half_log_det_precision(whitening) + jnp.where(heavy, student, -0.5 * n * jnp.log(2.0 * jnp.pi))


def add_model_error(
    whitening: Float[Array, "channel channel"],
    flux: Float[Array, " channel"],
    relative_covariance: Float[Array, "channel channel"],
) -> Float[Array, "channel channel"]:
    """Whitening factor of C + diag(f) S diag(f), with S the covariance of the model's relative error.

    Works in the whitened frame, where the matrix to factor is I + B S B^T with B = W diag(f): its eigenvalues are at
    least one, so float32 is enough, and a missing channel stays missing. Like ZGR23 Eq. 2, relative errors are of
    `flux`.
    """
    scaled = whitening * flux[None, :]
    inner = jnp.eye(flux.shape[0], dtype=flux.dtype) + scaled @ relative_covariance @ scaled.T
    return over_factor(inner, whitening)


def over_factor(matrix: Float[Array, "row row"], rows: Float[Array, "row column"]) -> Float[Array, "row column"]:
    """L^-1 rows, with L the lower-triangular factor of a positive definite matrix.

    Block by block: libraries' routines for whole matrices of a star's size take twice as long as products of its parts.
    """
    done = []
    while (left := matrix.shape[0]) > 0:
        size = min(FACTOR_BLOCK, left)
        factor = jax.lax.linalg.cholesky(matrix[:size, :size], symmetrize_input=False)
        inverse = jax.scipy.linalg.solve_triangular(factor, jnp.eye(size, dtype=matrix.dtype), lower=True)
        done.append(inverse @ rows[:size])
        below = matrix[size:, :size] @ inverse.T
        matrix = matrix[size:, size:] - below @ (inverse @ matrix[:size, size:])
        rows = rows[size:] - below @ done[-1]
    return jnp.concatenate(done)
