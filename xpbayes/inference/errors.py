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
from xpbayes.device import program
from xpbayes.inference.laplace import at_optimum
from xpbayes.inference.linear_algebra import invert_positive
from xpbayes.models.objective import curvature, parallax_weight
from xpbayes.models.prior import ln_prior
from xpbayes.models.star_model import StarModel


class ModeDiagnostics(NamedTuple):
    """What is evaluated at the solutions of stars."""

    # information matrix of (labels, E, parallax) (Eq. 21, 22): J^T C^-1 J, weighted as the fluxes' tail weights the star,
    # and 1 / sigma_parallax^2, its mean over both errors that a doubted parallax may have; without the prior but for
    # that of xi where the curve varies, or every star without dust would have no errors at all
    fisher: Float[Array, "star parameter parameter"]
    hessian: Float[Array, "star parameter parameter"]  # of L in (labels, ln E, ln parallax) (Eq. 20)
    chi2: Float[Array, " star"]  # of the fluxes
    ln_prior: Float[Array, " star"]  # of the labels
    # (star, 2) E [mag] and its error of the Gaussian that the posterior is there, labels and parallax integrated
    # out, as if E could be negative
    unbounded: Float[Array, "star two"]


@program
def evaluate_mode(model: StarModel, stars: Stars, theta_log: Float[Array, "star parameter"]) -> ModeDiagnostics:
    """Evaluate all of it at solutions, from one evaluation of the curvature.

    Differentiating L twice automatically in float32 loses the Hessian's smallest eigenvalue to rounding for one star in
    six.
    """

    def one(star: Stars, u: Array) -> ModeDiagnostics:
        at, _ = curvature(model, star, u)
        # d/dE = (1/E) d/d ln E, and likewise for the parallax: Eq. 21 wants linear parameters.
        unit = jnp.ones_like(u).at[-2:].set(jnp.exp(-u[-2:]))
        fisher = (
            (at.information * unit[:, None] * unit[None, :])
            .at[-1, -1]
            .add(star.parallax_inv_error**2 * parallax_weight(star, jnp.exp(u[-1])))
        )
        if u.size > model.forward.n_labels + 2:
            fisher = fisher.at[-3, -3].add(1.0)
        gaussian = at_optimum(at, u)
        unbounded = jnp.stack([gaussian.mean[0], gaussian.factor[0, 0]])
        return ModeDiagnostics(
            fisher, at.hessian, at.chi2, ln_prior(model.label_prior, u[: model.forward.n_labels]), unbounded
        )

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(stars, theta_log)


def laplace_covariance(hessian: NDArray[np.floating], theta_log: NDArray[np.floating]) -> NDArray[np.float64]:
    """Covariance of (labels, E, parallax), positive definite, from the Hessian of L in (labels, ln E, ln parallax).

    Each (star, parameter, parameter): D (2 H^-1) D with D = diag(1, ..., E, parallax), as L = -2 ln p.
    """
    linear = np.ones_like(theta_log, dtype=np.float64)
    linear[:, -2:] = np.exp(np.asarray(theta_log, np.float64)[:, -2:])
    return 2.0 * invert_positive(hessian) * linear[:, :, None] * linear[:, None, :]
