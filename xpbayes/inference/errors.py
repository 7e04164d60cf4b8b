"""How well a star's parameters are known: the Fisher matrix (ZGR23 Eq. 21 to 23) and the Hessian's sign (Eq. 20).

Linear parameters here: (labels..., E [mag], parallax [mas]), in that order.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from xpbayes.data.stars import Stars
from xpbayes.inference.laplace import at_optimum
from xpbayes.models.objective import curvature
from xpbayes.models.prior import ln_prior
from xpbayes.models.star_model import StarModel


class ModeDiagnostics(NamedTuple):
    """What is evaluated at the solutions of stars.

    Attributes:
        fisher: (star, parameter, parameter) information matrix of (labels, E, parallax): J^T C^-1 J, weighted as the
            fluxes' tail weights the star, and 1 / sigma_parallax^2; the prior is not included (Eq. 21, 22).
        hessian: (star, parameter, parameter) of L in (labels, ln E, ln parallax) (Eq. 20).
        chi2: (star,) of the fluxes.
        ln_prior: (star,) of the labels.
        unbounded: (star, 2) E [mag] and its error of the Gaussian that the posterior is there, labels and parallax
            integrated out, as if E could be negative.
    """

    fisher: Float[Array, "star parameter parameter"]
    hessian: Float[Array, "star parameter parameter"]
    chi2: Float[Array, " star"]
    ln_prior: Float[Array, " star"]
    unbounded: Float[Array, "star two"]


@jax.jit
def evaluate_mode(model: StarModel, stars: Stars, theta_log: Float[Array, "star parameter"]) -> ModeDiagnostics:
    """Evaluate all of it from one evaluation of the curvature.

    Args:
        model: the trained model.
        stars: a batch.
        theta_log: (star, label + 2) solutions: labels, ln E, ln parallax.
    """

    def one(star: Stars, u: Array) -> ModeDiagnostics:
        at, _ = curvature(model, star, u)
        # d/dE = (1/E) d/d ln E, and likewise for the parallax: Eq. 21 wants linear parameters.
        unit = jnp.ones_like(u).at[-2:].set(jnp.exp(-u[-2:]))
        fisher = (at.information * unit[:, None] * unit[None, :]).at[-1, -1].add(star.parallax_inv_error**2)
        gaussian = at_optimum(at, u)
        unbounded = jnp.stack([gaussian.mean[0], gaussian.factor[0, 0]])
        return ModeDiagnostics(fisher, at.hessian, at.chi2, ln_prior(model.label_prior, u[:-2]), unbounded)

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(stars, theta_log)


@jax.jit
def hessians(
    model: StarModel, stars: Stars, theta_log: Float[Array, "star parameter"]
) -> Float[Array, "star parameter parameter"]:
    """Full Hessian of L in (labels, ln E, ln parallax) (Eq. 20).

    Through `objective.curvature`: differentiating L twice in float32 loses the smallest eigenvalue to rounding for one
    star in six.
    """
    with jax.default_matmul_precision("highest"):
        return jax.vmap(lambda star, u: curvature(model, star, u)[0].hessian)(stars, theta_log)


def are_positive_definite(matrices: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(star,) whether each symmetric matrix is positive definite, judged after scaling to unit diagonal."""
    m = np.asarray(matrices, dtype=np.float64)
    diagonal = np.diagonal(m, axis1=1, axis2=2)
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(m).all(axis=(1, 2)) & (diagonal > 0).all(axis=1))
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    correlation = np.where(finite[:, None, None], m, 0.0) * scale[:, :, None] * scale[:, None, :]
    return finite & (np.linalg.eigvalsh(correlation)[:, 0] > 0)


NO_INFORMATION = 1e-20
"""Diagonal entries are raised to this [1/kK^2, 1/dex^2, ...]: a parameter that nothing constrains."""
MAX_CONDITION = 1e12
"""Eigenvalues of a scaled Fisher matrix below the largest over this are floored: a direction without information gets
a huge error instead of a negative variance."""


def invert_positive(matrices: NDArray[np.floating]) -> NDArray[np.float64]:
    """Invert information matrices so that the result is positive definite (C = I^-1, Eq. 23).

    Args:
        matrices: (star, parameter, parameter) symmetric.

    Returns:
        (star, parameter, parameter) float64 covariances; NaN where the input is not finite.
    """
    m = np.asarray(matrices, dtype=np.float64)
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(m).all(axis=(1, 2)))
    safe = np.where(finite[:, None, None], m, np.eye(m.shape[1]))
    diagonal = np.diagonal(safe, axis1=1, axis2=2)
    scale = 1.0 / np.sqrt(np.maximum(diagonal, NO_INFORMATION))
    value, vector = np.linalg.eigh(safe * scale[:, :, None] * scale[:, None, :])
    value = np.maximum(value, value[:, -1:] / MAX_CONDITION)
    inverse = (vector / value[:, None, :]) @ vector.transpose(0, 2, 1)
    covariance = inverse * scale[:, :, None] * scale[:, None, :]
    covariance = 0.5 * (covariance + covariance.transpose(0, 2, 1))
    covariance[~finite] = np.nan
    return covariance


def laplace_covariance(hessian: NDArray[np.floating], theta_log: NDArray[np.floating]) -> NDArray[np.float64]:
    """Covariance of (labels, E, parallax) from the Hessian of L in the sampled coordinates.

    Args:
        hessian: (star, parameter, parameter) of L = -2 ln p in (labels, ln E, ln parallax).
        theta_log: (star, parameter) where it was taken.

    Returns:
        (star, parameter, parameter) D (2 H^-1) D with D = diag(1, ..., E, parallax); positive definite.
    """
    linear = np.ones_like(theta_log, dtype=np.float64)
    linear[:, -2:] = np.exp(np.asarray(theta_log, np.float64)[:, -2:])
    return 2.0 * invert_positive(hessian) * linear[:, :, None] * linear[:, None, :]


def upper_triangle(matrices: NDArray[np.floating]) -> NDArray[np.float32]:
    """Pack symmetric matrices: upper triangle, row by row, as in ZGR23 Table 2."""
    row, column = np.triu_indices(matrices.shape[-1])
    return matrices[:, row, column].astype(np.float32)


def from_upper_triangle(packed: NDArray[np.floating]) -> NDArray[np.float64]:
    """The inverse of `upper_triangle`."""
    n = int((np.sqrt(8 * packed.shape[-1] + 1) - 1) / 2)
    row, column = np.triu_indices(n)
    full = np.zeros((len(packed), n, n))
    full[:, row, column] = packed
    full[:, column, row] = packed
    return full
