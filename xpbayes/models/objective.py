"""L = -2 ln posterior of one star, as residuals and a smooth rest, for the second-order solver (METHOD 3 and 5).

L(u) = |r(u)|^2 + s(u): r stacks the whitened fluxes and every Gaussian measurement, s holds the Jacobian of ln E and
ln parallax and the label prior. Constants are left out. `posterior.py` is the same density as a NumPyro model.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xpbayes.models.forward import ForwardModel, predict_flux, predict_ln_flux
from xpbayes.models.likelihood import whitened_residual
from xpbayes.models.prior import LabelPrior, ln_prior, prior_curvature
from xpbayes.stars import Stars


def flux_residuals(
    model: ForwardModel, star: Stars, parameters: Float[Array, " parameter"]
) -> Float[Array, " channel"]:
    """Whitened residuals of the fluxes of one star (ZGR23 Eq. 4)."""
    return whitened_residual(predict_flux(model, parameters, star.ln_scale), star.flux, star.whitening)


def measurement_residuals(star: Stars, parameters: Float[Array, " parameter"]) -> Float[Array, " label+2"]:
    """Labels, reddening and parallax of one star compared with their measurements; zero where missing."""
    labels, ln_extinction, ln_parallax = parameters[:-2], parameters[-2], parameters[-1]
    return jnp.concatenate(
        [
            (labels - star.labels) * star.label_inv_error,
            ((jnp.exp(ln_extinction) - star.reddening) * star.reddening_inv_error)[None],
            ((jnp.exp(ln_parallax) - star.parallax) * star.parallax_inv_error)[None],
        ]
    )


def smooth_part(prior: LabelPrior | None, parameters: Float[Array, " parameter"]) -> Float[Array, ""]:
    """-2 ln of the Jacobian of (ln E, ln parallax) and of the label prior.

    Args:
        prior: the label mixture; None where measured labels take its place (training).
        parameters: (label + 2,).
    """
    jacobian = -2.0 * (parameters[-2] + parameters[-1])
    return jacobian if prior is None else jacobian - 2.0 * ln_prior(prior, parameters[:-2])


def flux_chi2(model: ForwardModel, star: Stars, parameters: Float[Array, " parameter"]) -> Float[Array, ""]:
    """chi^2 of the fluxes alone (ZGR23 Eq. 4)."""
    return jnp.sum(flux_residuals(model, star, parameters) ** 2)


def objective(
    model: ForwardModel, prior: LabelPrior | None, star: Stars, parameters: Float[Array, " parameter"]
) -> Float[Array, ""]:
    """L = -2 ln posterior of one star, up to a constant.

    Args:
        model: the forward model.
        prior: the label mixture, or None.
        star: one star.
        parameters: (label + 2,) labels, ln E, ln parallax.
    """
    measured = jnp.sum(measurement_residuals(star, parameters) ** 2)
    return flux_chi2(model, star, parameters) + measured + smooth_part(prior, parameters)


class Curvature(NamedTuple):
    """L and its derivatives at one point.

    Attributes:
        value: () L.
        size: () sum of the magnitudes that L was added from: its rounding error scales with this, not with L.
        gradient: (parameter,).
        hessian: (parameter, parameter) exact.
        bound: (parameter, parameter) Gauss-Newton's 2 J^T J plus a positive bound to the label prior's Hessian: never
            indefinite.
        flux_jacobian: (channel, parameter) of the whitened fluxes.
    """

    value: Float[Array, ""]
    size: Float[Array, ""]
    gradient: Float[Array, " parameter"]
    hessian: Float[Array, "parameter parameter"]
    bound: Float[Array, "parameter parameter"]
    flux_jacobian: Float[Array, "channel parameter"]


def curvature(
    model: ForwardModel, prior: LabelPrior | None, star: Stars, parameters: Float[Array, " parameter"]
) -> Curvature:
    """Evaluate `objective` with its gradient and Hessian, exactly, at a small multiple of its own cost.

    The same as differentiating `objective` twice (tests compare them), arranged so that the whitening matrix, which
    is most of the data, is used three times whatever the number of parameters: once for residual and Jacobian
    together, once transposed for the residuals' own curvature, once by the caller.
    """

    def ln_flux(u: Array) -> Array:
        return predict_ln_flux(model, u, star.ln_scale)

    identity = jnp.eye(parameters.size, dtype=parameters.dtype)
    value, push = jax.linearize(ln_flux, parameters)
    slope = jax.vmap(push)(identity).T  # (channel, parameter): d ln f
    flux = jnp.exp(value)
    r = whitened_residual(flux, star.flux, star.whitening)
    jacobian = star.whitening @ (flux[:, None] * slope)
    # d2 chi^2 = 2 J^T J + sum_c v_c (d ln f_c d ln f_c^T + d2 ln f_c), with v = f W^T 2r.
    weight = flux * (2.0 * r @ star.whitening)
    bend = slope.T @ (weight[:, None] * slope) + jax.hessian(lambda u: jnp.vdot(weight, ln_flux(u)))(parameters)

    def measured(u: Array) -> Array:
        return jnp.sum(measurement_residuals(star, u) ** 2)

    m_jacobian = jax.jacfwd(measurement_residuals, argnums=1)(star, parameters)
    m_value, m_gradient = jax.value_and_grad(measured)(parameters)
    gauss_newton = 2.0 * (jacobian.T @ jacobian + m_jacobian.T @ m_jacobian)

    chi2 = r @ r
    smooth = -2.0 * (parameters[-2] + parameters[-1])
    gradient = (2.0 * r @ jacobian + m_gradient).at[-2:].add(-2.0)
    hessian = 2.0 * jacobian.T @ jacobian + bend + jax.hessian(measured)(parameters)
    bound = gauss_newton
    if prior is not None:
        at = prior_curvature(prior, parameters[:-2])
        n = parameters.size - 2
        smooth = smooth + 2.0 * at.value
        gradient = gradient.at[:n].add(2.0 * at.gradient)
        hessian = hessian.at[:n, :n].add(2.0 * at.hessian)
        bound = bound.at[:n, :n].add(2.0 * at.bound)
    return Curvature(
        chi2 + m_value + smooth, chi2 + m_value + jnp.abs(smooth), gradient, hessian, bound, jacobian
    )
