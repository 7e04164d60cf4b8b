"""Coordinates in which one star's posterior is nearly a unit Gaussian, with their Jacobian.

In: the optimum of a star, in (labels, ln E, ln parallax). Out: a map from z, a vector of as many real numbers, to those
parameters, and -ln of the posterior's density in z: what a sampler walks in.

Three things about a star's posterior stop a sampler that walks in the parameters themselves, and each has its step here:

- E ends at zero. In ln E a dust-free star's posterior has a flat tail towards minus infinity; in E it has a wall. With
  E = s softplus(t), t is E in units of s where E is large and ln E where it is small: the wall becomes an exponential
  tail, and the density stays log-concave. s is the error of E, or the distance from zero where that is smaller.
- E and the labels lie on a narrow ridge: given E, the labels follow the Laplace approximation's conditional Gaussian,
  carried on to E = 0 analytically, as in `laplace`.
- The parallax lies in a bent valley. Given the rest, the flux fixes it: the last coordinate counts from its best value,
  a linear least-squares amplitude, in units of its error there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xpbayes.data.stars import Stars
from xpbayes.inference.laplace import laplace_at
from xpbayes.models.forward import predict_flux
from xpbayes.models.likelihood import deviance, n_observed, whitened_residual
from xpbayes.models.objective import measurement_deviance, parallax_weight, smooth_part
from xpbayes.models.star_model import StarModel

LOW_TAIL = -12.0
"""Below this, ln softplus(t) is t to float32."""
MIN_AMPLITUDE = 1e-3
PARALLAX_ROUNDS = 2
"""Where the parallax is measured, its exponential is expanded so many times."""


class Coordinates(NamedTuple):
    """Where the coordinates of one optimum begin and what their units are; E first, then the labels."""

    softness: Float[Array, ""]  # s, scale of the softplus [mag]
    start: Float[Array, ""]  # of t: t = start + unit z_0
    unit: Float[Array, ""]
    mean: Float[Array, " label+1"]  # of the Gaussian in (E, labels)
    factor: Float[Array, "label+1 label+1"]  # its lower-triangular factor
    ln_parallax: Float[Array, ""]  # at the optimum: where the parallax is counted from
    evidence: Float[Array, ""]  # ln of the Laplace approximation's integral around the optimum


def coordinates_at(model: StarModel, star: Stars, mode: Float[Array, " parameter"]) -> Coordinates:
    """Lay the coordinates around one optimum (labels, ln E, ln parallax) of a star with the model's error folded in."""
    gaussian = laplace_at(model, star, mode)
    extinction, sigma = jnp.maximum(jnp.exp(mode[-2]), 1e-20), gaussian.factor[0, 0]
    softness = jnp.minimum(extinction, sigma)
    start = _inverse_softplus(extinction / softness)
    slope = jax.nn.sigmoid(start)
    # Curvature of -ln density in t at the mode in ln E, where (E - mean) / sigma^2 = 1 / E.
    bend = slope * (1.0 - slope) * (1.0 + softness / extinction) + (softness * slope / sigma) ** 2
    own = (softness, start, 1.0 / jnp.sqrt(bend))
    return Coordinates(*own, gaussian.mean, gaussian.factor, mode[-1], gaussian.evidence)


def is_usable(coordinates: Coordinates) -> Array:
    """Whether every number is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in coordinates]))


def _inverse_softplus(y: Array) -> Array:
    return y + jnp.log(-jnp.expm1(-y))


def _ln_softplus(t: Array) -> Array:
    safe = jnp.maximum(t, LOW_TAIL)
    return jnp.where(t > LOW_TAIL, jnp.log(jax.nn.softplus(safe)), t)


def _ln_stretch(coordinates: Coordinates, t: Array) -> Array:
    """Ln |d(E, labels) / dz|."""
    rest = jnp.sum(jnp.log(jnp.diagonal(coordinates.factor)[1:]))
    return jnp.log(coordinates.unit * coordinates.softness) + jax.nn.log_sigmoid(t) + rest


def intrinsic(coordinates: Coordinates, z: Float[Array, " parameter"]) -> tuple[Float[Array, " label"], Array, Array]:
    """Labels and ln E of a point, and ln |d(E, labels) / dz|; its last coordinate, the parallax's, is not looked at."""
    t = coordinates.start + coordinates.unit * z[0]
    ln_extinction = jnp.log(coordinates.softness) + _ln_softplus(t)
    white = jnp.concatenate([(jnp.exp(ln_extinction)[None] - coordinates.mean[:1]) / coordinates.factor[0, 0], z[1:-1]])
    return coordinates.mean[1:] + coordinates.factor[1:] @ white, ln_extinction, _ln_stretch(coordinates, t)


def place(
    coordinates: Coordinates, labels: Float[Array, " label"], ln_extinction: Float[Array, ""], last: Float[Array, ""]
) -> tuple[Float[Array, " parameter"], Array]:
    """The inverse of `intrinsic`: the point z of given labels and E, and ln |d(E, labels) / dz| there.

    The parallax's coordinate is the `last`; it is the same whichever optimum the coordinates are around.
    """
    extinction = jnp.exp(ln_extinction)
    t = _inverse_softplus(jnp.maximum(extinction / coordinates.softness, 1e-30))
    rest = (
        labels
        - coordinates.mean[1:]
        - coordinates.factor[1:, 0] * (extinction - coordinates.mean[0]) / coordinates.factor[0, 0]
    )
    white: list[Array] = []
    for i in range(rest.size):
        known = sum((coordinates.factor[i + 1, k + 1] * white[k] for k in range(i)), jnp.zeros_like(ln_extinction))
        white.append((rest[i] - known) / coordinates.factor[i + 1, i + 1])
    z = jnp.stack([(t - coordinates.start) / coordinates.unit, *white, last])
    return z, _ln_stretch(coordinates, t)


def evaluate(
    model: StarModel, star: Stars, coordinates: Coordinates, z: Float[Array, " parameter"]
) -> tuple[Float[Array, ""], Float[Array, " parameter"], Float[Array, ""]]:
    """-ln density in z of one point, its theta_log, and ln density of (labels, E, parallax); the network runs once.

    Both are of the posterior, up to the same constant of the star's, which has the model's error folded in.
    """
    labels, ln_extinction, ln_stretch = intrinsic(coordinates, z)
    reference = jnp.concatenate([labels, ln_extinction[None], coordinates.ln_parallax[None]])
    flux, zero = predict_flux(model.forward, reference, star.ln_scale), jnp.zeros_like(star.flux)
    white, observed = whitened_residual(flux, zero, star.whitening), whitened_residual(star.flux, zero, star.whitening)
    n_obs = n_observed(star.whitening)

    # The parallax given the rest: f = a f1 with a the squared ratio of parallaxes; best a by linear least squares.
    power = jnp.maximum(white @ white, 1e-20)
    amplitude = jnp.maximum(white @ observed / power, MIN_AMPLITUDE)
    misfit = jnp.sum((amplitude * white - observed) ** 2)
    by_flux = 0.5 * jnp.log(amplitude)
    flux_precision = 4.0 * deviance(misfit, n_obs, star.inv_dof).slope * amplitude**2 * power  # of ln parallax
    center, total = by_flux, flux_precision
    for _ in range(PARALLAX_ROUNDS):
        plx = jnp.exp(coordinates.ln_parallax + center)
        precision = (plx * star.parallax_inv_error) ** 2 * parallax_weight(star, plx)
        total = flux_precision + precision
        measured = center + (star.parallax - plx) / plx  # as the measurement has it, to first order
        center = (flux_precision * by_flux + precision * measured + 1.0) / total
    above = center + z[-1] / jnp.sqrt(total)

    theta_log = reference.at[-1].add(above)
    residual = jnp.exp(2.0 * above) * white - observed
    fluxes = deviance(jnp.sum(residual**2), n_obs, star.inv_dof).value
    rest = measurement_deviance(star, theta_log) + smooth_part(model.prior, theta_log)
    # L is -2 ln density in (labels, ln E, ln parallax).
    ln_jacobian = ln_stretch - ln_extinction - 0.5 * jnp.log(total)
    half = 0.5 * (fluxes + rest)
    return half - ln_jacobian, theta_log, -half - theta_log[-2] - theta_log[-1]


def potential(
    model: StarModel, star: Stars, coordinates: Coordinates, z: Float[Array, " parameter"]
) -> Float[Array, ""]:
    """-ln posterior density in z of one star, up to a constant; see `evaluate`."""
    return evaluate(model, star, coordinates, z)[0]
