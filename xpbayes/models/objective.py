"""L = -2 ln posterior of one star, as residuals and a smooth rest, for the second-order solver (METHOD 3 and 5).

L(u) = |r(u)|^2 + s(u): r stacks the whitened fluxes and every Gaussian measurement, s holds the Jacobian of ln E and
ln parallax and the label prior. Constants are left out. `posterior.py` is the same density as a NumPyro model.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from xpbayes.models.forward import ForwardModel, predict_flux
from xpbayes.models.likelihood import whitened_residual
from xpbayes.models.prior import LabelPrior, ln_prior
from xpbayes.stars import Stars


def residuals(
    model: ForwardModel, star: Stars, parameters: Float[Array, " parameter"]
) -> Float[Array, " channel+label+2"]:
    """Stack everything that is compared with a measurement, in units of its error; zero where missing.

    Args:
        model: the forward model.
        star: one star.
        parameters: (label + 2,) labels, ln E, ln parallax.
    """
    labels, ln_extinction, ln_parallax = parameters[:-2], parameters[-2], parameters[-1]
    return jnp.concatenate(
        [
            whitened_residual(predict_flux(model, parameters, star.ln_scale), star.flux, star.whitening),
            (labels - star.labels) * star.label_inv_error,
            ((jnp.exp(ln_extinction) - star.reddening) * star.reddening_inv_error)[None],
            ((jnp.exp(ln_parallax) - star.parallax) * star.parallax_inv_error)[None],
        ]
    )


def smooth_part(prior: LabelPrior | None, parameters: Float[Array, " parameter"]) -> Float[Array, ""]:
    """-2 ln of the Jacobian and of the label prior.

    Args:
        prior: the label mixture; None where measured labels take its place (training).
        parameters: (label + 2,).
    """
    jacobian = -2.0 * (parameters[-2] + parameters[-1])
    return jacobian if prior is None else jacobian - 2.0 * ln_prior(prior, parameters[:-2])


def objective(
    model: ForwardModel, prior: LabelPrior | None, star: Stars, parameters: Float[Array, " parameter"]
) -> Float[Array, ""]:
    """L = -2 ln posterior of one star, up to a constant."""
    return jnp.sum(residuals(model, star, parameters) ** 2) + smooth_part(prior, parameters)


def flux_chi2(model: ForwardModel, star: Stars, parameters: Float[Array, " parameter"]) -> Float[Array, ""]:
    """chi^2 of the fluxes alone (ZGR23 Eq. 4)."""
    return jnp.sum(whitened_residual(predict_flux(model, parameters, star.ln_scale), star.flux, star.whitening) ** 2)
