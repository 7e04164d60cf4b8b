"""L = -2 ln posterior of one star, as residuals and a smooth rest, for the second-order solver (METHOD 3 and 5).

L(u) = rho(|r(u)|^2) + |m(u)|^2 + s(u): r are the whitened fluxes, rho the deviance of their distribution (the identity
for a Gaussian), m every Gaussian measurement, s the Jacobian of ln E and ln parallax and the label prior. Constants are
left out. `posterior.py` is the same density as a NumPyro model.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from xpbayes.data.stars import ParallaxDoubt, Stars
from xpbayes.models.forward import FluxExpansion, ForwardModel
from xpbayes.models.likelihood import deviance, n_observed, parallax_deviance, spurious_probability, whitened_residual
from xpbayes.models.pair import PairExpansion, expand_ln_flux, predict_flux, second_along, weighted_hessian
from xpbayes.models.prior import LabelPrior, ln_prior, prior_curvature
from xpbayes.models.star_model import StarModel


def flux_residuals(
    forward: ForwardModel, star: Stars, theta_log: Float[Array, " parameter"]
) -> Float[Array, " channel"]:
    """Whitened residuals of the fluxes of one star (ZGR23 Eq. 4)."""
    return whitened_residual(predict_flux(forward, theta_log, star.ln_scale), star.flux, star.whitening)


def measurement_residuals(star: Stars, theta_log: Float[Array, " parameter"]) -> Float[Array, " parameter"]:
    """Labels, reddening and parallax of one star compared with their measurements; zero where missing.

    Where the curve varies xi itself is among them, as if measured to be 0 +- 1: its prior.
    """
    n = star.labels.shape[-1]
    labels, ln_extinction, ln_parallax = theta_log[:n], theta_log[-2], theta_log[-1]
    return jnp.concatenate(
        [
            (labels - star.labels) * star.label_inv_error,
            theta_log[n:-2],
            ((jnp.exp(ln_extinction) - star.reddening) * star.reddening_inv_error)[None],
            ((jnp.exp(ln_parallax) - star.parallax) * star.parallax_inv_error)[None],
        ]
    )


def measurement_deviance(star: Stars, theta_log: Float[Array, " parameter"]) -> Float[Array, ""]:
    """What all of these add to L."""
    square = measurement_residuals(star, theta_log) ** 2
    if star.doubt is None:
        return jnp.sum(square)
    return jnp.sum(square[:-1]) + parallax_deviance(square[-1], star.doubt).value


def parallax_weight(star: Stars, parallax: Float[Array, ""]) -> Float[Array, ""] | float:
    """Mean of 1 / sigma^2 over both errors of a doubted parallax, over that of the stated one; 1 without doubt.

    The farther `parallax` [mas] is from the measured one, the likelier that is spurious.
    """
    if star.doubt is None:
        return 1.0
    return parallax_deviance((star.parallax_inv_error * (parallax - star.parallax)) ** 2, star.doubt).slope


def spurious_at(star: Stars, doubt: ParallaxDoubt, parallax: Float[Array, "*point"]) -> Float[Array, "*point"]:
    """Probability that one star's measured parallax is spurious, were the true one this [mas]; NaN if none was measured."""
    square = (star.parallax_inv_error * (parallax - star.parallax)) ** 2
    return jnp.where(star.parallax_inv_error > 0, spurious_probability(square, doubt), jnp.nan)


def smooth_part(prior: LabelPrior | None, theta_log: Float[Array, " parameter"]) -> Float[Array, ""]:
    """-2 ln of the Jacobian of (ln E, ln parallax) and of the label prior, if there is one."""
    jacobian = -2.0 * (theta_log[-2] + theta_log[-1])
    return jacobian if prior is None else jacobian - 2.0 * ln_prior(prior, theta_log[: prior.n_labels])


def flux_chi2(forward: ForwardModel, star: Stars, theta_log: Float[Array, " parameter"]) -> Float[Array, ""]:
    """chi^2 of the fluxes alone (ZGR23 Eq. 4)."""
    return jnp.sum(flux_residuals(forward, star, theta_log) ** 2)


def objective(model: StarModel, star: Stars, theta_log: Float[Array, " parameter"]) -> Float[Array, ""]:
    """L = -2 ln posterior of one star with the model's error in its whitening factor, up to a constant."""
    fluxes = deviance(flux_chi2(model.forward, star, theta_log), n_observed(star.whitening), star.inv_dof).value
    return fluxes + measurement_deviance(star, theta_log) + smooth_part(model.prior, theta_log)


class Curvature(NamedTuple):
    """L and its derivatives at one point."""

    value: Float[Array, ""]  # L
    # sum of the magnitudes that L was added from: its rounding error scales with this, not with L
    size: Float[Array, ""]
    gradient: Float[Array, " parameter"]
    hessian: Float[Array, "parameter parameter"]  # exact
    # Gauss-Newton's 2 J^T J plus a positive bound to the label prior's Hessian: never indefinite
    bound: Float[Array, "parameter parameter"]
    chi2: Float[Array, ""]  # of the fluxes
    information: Float[Array, "parameter parameter"]  # J^T C^-1 J of the fluxes, weighted as rho weights the star


class Expansion(NamedTuple):
    """The fluxes of one star to second order around a point, whitened."""

    ln_flux: FluxExpansion | PairExpansion  # ln f with its derivatives
    flux: Float[Array, " channel"]  # f
    jacobian: Float[Array, "parameter channel"]  # W df
    residual: Float[Array, " channel"]  # W (f - observed)


def expand(forward: ForwardModel, star: Stars, theta_log: Float[Array, " parameter"]) -> Expansion:
    """Expand the fluxes of one star; the whitening matrix, which is most of the data, is used once."""
    at = expand_ln_flux(forward, theta_log, star.ln_scale)
    flux = jnp.exp(at.value)
    both = jnp.concatenate([flux * at.slope, (flux - star.flux)[None]]) @ star.whitening.T
    return Expansion(at, flux, both[:-1], both[-1])


def at_other_parallax(at: Expansion, shift: Float[Array, ""]) -> Expansion:
    """Shift an expansion's ln parallax: the flux goes with the parallax squared and its shape stays."""
    more = jnp.expm1(2.0 * shift)
    return Expansion(
        at.ln_flux._replace(value=at.ln_flux.value + 2.0 * shift),
        at.flux * (1.0 + more),
        at.jacobian * (1.0 + more),
        at.residual + more * 0.5 * at.jacobian[-1],  # d f / d ln parallax = 2 f
    )


def curvature(
    model: StarModel, star: Stars, theta_log: Float[Array, " parameter"]
) -> tuple[Curvature, Callable[[Float[Array, " parameter"]], Float[Array, " parameter"]]]:
    """Evaluate `objective` with its gradient and Hessian, exactly, at a small multiple of its own cost.

    The same as differentiating it twice (tests compare them), in closed form; and a function of a step that gives J^T
    C^-1 d2f along that step: what geodesic acceleration needs (Transtrum & Sethna 2012).
    """
    return curvature_of(model, star, theta_log, expand(model.forward, star, theta_log))


def curvature_of(
    model: StarModel, star: Stars, theta_log: Float[Array, " parameter"], around: Expansion
) -> tuple[Curvature, Callable[[Float[Array, " parameter"]], Float[Array, " parameter"]]]:
    """The same from the expansion at `theta_log`."""
    at, flux, jacobian, r = around
    chi2 = r @ r
    rho = deviance(chi2, n_observed(star.whitening), star.inv_dof)
    # d2 chi^2 = 2 J^T J + sum_c v_c (d ln f_c d ln f_c^T + d2 ln f_c), with v = 2 f W^T r.
    weight = 2.0 * flux * (r @ star.whitening)
    bend = _products(at.slope, weight) + weighted_hessian(model.forward, at, weight)
    information = rho.slope * _products(jacobian)
    flux_gradient = 2.0 * (jacobian @ r)

    measured, m_gradient, m_hessian, m_bound = _measurements(star, theta_log)
    smooth = -2.0 * (theta_log[-2] + theta_log[-1])
    gradient = (rho.slope * flux_gradient + m_gradient).at[-2:].add(-2.0)
    hessian = 2.0 * information + rho.slope * bend + rho.bend * jnp.outer(flux_gradient, flux_gradient) + m_hessian
    bound = 2.0 * information + m_bound
    if model.prior is not None:
        n = model.prior.n_labels
        known = prior_curvature(model.prior, theta_log[:n])
        smooth = smooth + 2.0 * known.value
        gradient = gradient.at[:n].add(2.0 * known.gradient)
        hessian = hessian.at[:n, :n].add(2.0 * known.hessian)
        bound = bound.at[:n, :n].add(2.0 * known.bound)

    def bend_along(step: Array) -> Array:
        second = flux * ((step @ at.slope) ** 2 + second_along(model.forward, at, step))
        return rho.slope * (jacobian @ (star.whitening @ second))

    value, size = rho.value + measured + smooth, rho.value + measured + jnp.abs(smooth)
    return Curvature(value, size, gradient, hessian, bound, chi2, information), bend_along


def _products(rows: Array, weight: Array | float = 1.0) -> Array:
    """Sums over channels of the products of all pairs of rows: so small a matrix product is dear in a library."""
    return jnp.sum((rows * weight)[:, None, :] * rows[None, :, :], axis=-1)


def _measurements(star: Stars, theta_log: Array) -> tuple[Array, Array, Array, Array]:
    """`measurement_deviance` with gradient, Hessian, and the Hessian without its negative part.

    Every residual depends on one parameter, so all are diagonal.
    """
    residual = measurement_residuals(star, theta_log)
    linear = jnp.exp(theta_log[-2:])
    inverse_error = jnp.stack([star.reddening_inv_error, star.parallax_inv_error])
    intrinsic = jnp.concatenate([star.label_inv_error, jnp.ones_like(theta_log[star.labels.shape[-1] : -2])])
    slope = jnp.concatenate([intrinsic, linear * inverse_error])
    bend = jnp.concatenate([jnp.zeros_like(intrinsic), linear * inverse_error])  # d2 e^x = e^x
    gauss_newton = 2.0 * slope**2
    gradient, hessian = 2.0 * residual * slope, gauss_newton + 2.0 * residual * bend
    if star.doubt is None:
        return jnp.sum(residual**2), gradient, jnp.diag(hessian), jnp.diag(gauss_newton)
    square = residual**2
    parallax = parallax_deviance(square[-1], star.doubt)
    of_parallax = parallax.slope * hessian[-1] + parallax.bend * gradient[-1] ** 2
    return (
        jnp.sum(square[:-1]) + parallax.value,
        gradient.at[-1].multiply(parallax.slope),
        jnp.diag(hessian.at[-1].set(of_parallax)),
        jnp.diag(gauss_newton.at[-1].multiply(parallax.slope)),
    )
