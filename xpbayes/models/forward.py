"""The forward model: from one star's parameters to its flux in every channel (ZGR23 Eq. 8).

A star's parameters are always theta_log, the vector (labels..., ln E, ln parallax), labels first in the model's order: the
coordinates in which the posterior is sampled and its mode defined (METHOD 3). Where the model knows how the extinction
curve varies, xi comes after the labels: (labels..., xi, ln E, ln parallax), with f_abs exp(-E (R + xi R1)) (METHOD 11). A
vector without it is of a star behind dust of the mean curve, xi = 0.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from xpbayes.device import program
from xpbayes.models.extinction import attenuate

HIDDEN = (32, 32, 32)
"""Neurons per hidden layer. The paper says 16; its 4,484 parameters are 32."""


class ForwardModel(eqx.Module):
    """Everything that turns parameters into fluxes."""

    weights: tuple[Float[Array, "_ _"], ...]  # one (in, out) matrix per layer of the absolute-flux network
    biases: tuple[Float[Array, " _"], ...]  # one (out,) vector per layer
    ln_curve: Float[Array, " channel"]  # ln R, optical depth per unit E
    label_center: Float[Array, " label"]  # median of the training labels [kK, dex, dex, ...]
    label_scale: Float[Array, " label"]  # half the 16-84 % range of the training labels
    curve_variation: Float[Array, " channel"] | None = None  # R1, by how much R changes with xi; None if it does not

    @property
    def n_labels(self) -> int:
        """Number of stellar labels."""
        return self.label_center.shape[0]

    @property
    def n_star_parameters(self) -> int:
        """Number of a star's parameters: labels, xi if the curve varies, E and parallax."""
        return self.n_labels + 2 + (self.curve_variation is not None)

    @property
    def without_xi(self) -> list[int]:
        """Which of a star's parameters are labels, E and parallax."""
        return [*range(self.n_labels), self.n_star_parameters - 2, self.n_star_parameters - 1]

    @property
    def intrinsic_scale(self) -> Float[Array, " intrinsic"]:
        """What counts as one unit of every parameter but E and parallax: the labels' spread, and 1 of xi."""
        if self.curve_variation is None:
            return self.label_scale
        return jnp.append(self.label_scale, jnp.ones(1, self.label_scale.dtype))

    @property
    def n_weights(self) -> int:
        """Number of network weights, biases not counted (n_W of ZGR23 Eq. 12)."""
        return sum(w.size for w in self.weights)


def layer_sizes(n_labels: int, hidden: Sequence[int], n_channels: int) -> list[tuple[int, int]]:
    """(in, out) of every layer."""
    sizes = [n_labels, *hidden, n_channels]
    return list(zip(sizes[:-1], sizes[1:], strict=True))


def initial_model(
    key: Array,
    labels: np.ndarray,
    ln_absolute_flux_guess: np.ndarray,
    ln_curve_guess: np.ndarray,
    hidden: Sequence[int] = HIDDEN,
) -> ForwardModel:
    """Make an untrained model: Glorot weights, output biases at the mean log absolute flux.

    `labels`, (star, label) of training, are for the normalisation; guesses are mean ln f_abs and ln R, (channel,) each.
    """
    low, middle, high = np.percentile(labels, [16, 50, 84], axis=0)
    sizes = layer_sizes(labels.shape[1], hidden, len(ln_curve_guess))
    keys = jax.random.split(key, len(sizes))
    glorot = jax.nn.initializers.glorot_normal()
    weights = tuple(glorot(k, size, jnp.float32) for k, size in zip(keys, sizes, strict=True))
    weights = (*weights[:-1], 0.1 * weights[-1])
    biases = tuple(jnp.zeros(out, jnp.float32) for _, out in sizes[:-1])
    return ForwardModel(
        weights=weights,
        biases=(*biases, jnp.asarray(ln_absolute_flux_guess, jnp.float32)),
        ln_curve=jnp.asarray(ln_curve_guess, jnp.float32),
        label_center=jnp.asarray(middle, jnp.float32),
        label_scale=jnp.asarray(0.5 * (high - low), jnp.float32),
    )


def last_hidden_layer(forward: ForwardModel, labels: Float[Array, " label"]) -> Float[Array, " neuron"]:
    """What the network's output is linear in."""
    x = (labels - forward.label_center) / forward.label_scale
    for weight, bias in zip(forward.weights[:-1], forward.biases[:-1], strict=True):
        x = jnp.tanh(x @ weight + bias)
    return x


def shape_and_level(
    forward: ForwardModel, labels: Float[Array, " label"]
) -> tuple[Float[Array, " channel"], Float[Array, ""]]:
    """Ln f_abs as a shape (channel,) of order one and a level () common to all channels and labels."""
    level = jnp.mean(forward.biases[-1])
    return last_hidden_layer(forward, labels) @ forward.weights[-1] + (forward.biases[-1] - level), level


def curve_of(forward: ForwardModel, theta_log: Float[Array, " parameter"]) -> Float[Array, " channel"]:
    """R + xi R1 of one star: (channel,) optical depth per unit E of its dust."""
    curve = jnp.exp(forward.ln_curve)
    if forward.curve_variation is None or theta_log.shape[-1] < forward.n_star_parameters:
        return curve
    return curve + theta_log[forward.n_labels] * forward.curve_variation


class FluxExpansion(NamedTuple):
    """ln f of one star to second order in its parameters, in closed form.

    A tanh network's second derivatives need no more than what its forward pass leaves behind: with z_l the input of
    layer l's tanh and a_l the derivative of any weighted sum of outputs by that tanh, the Hessian of the sum is
    sum_l (dz_l)^T diag(a_l tanh'') dz_l. Differentiating twice automatically costs five times as much.
    """

    value: Float[Array, " channel"]  # ln f in the star's own unit
    slope: Float[Array, "parameter channel"]  # d ln f
    layer_slope: tuple[Float[Array, "label _"], ...]  # per hidden layer (label, neuron) dz by the labels
    first: tuple[Float[Array, " _"], ...]  # per hidden layer tanh'
    second: tuple[Float[Array, " _"], ...]  # and tanh''


def expand_ln_flux(
    forward: ForwardModel, theta_log: Float[Array, " parameter"], ln_scale: Float[Array, ""] | float = 0.0
) -> FluxExpansion:
    """Evaluate `predict_ln_flux` with what its derivatives need."""
    x = (theta_log[: forward.n_labels] - forward.label_center) / forward.label_scale
    slope = jnp.diag(1.0 / forward.label_scale)
    layer_slope, first, second = [], [], []
    for weight, bias in zip(forward.weights[:-1], forward.biases[:-1], strict=True):
        x = jnp.tanh(x @ weight + bias)
        slope = slope @ weight
        layer_slope.append(slope)
        first.append(1.0 - x * x)
        second.append(-2.0 * x * first[-1])
        slope = slope * first[-1]
    level = jnp.mean(forward.biases[-1])
    shape = x @ forward.weights[-1] + (forward.biases[-1] - level)
    extinction = jnp.exp(theta_log[-2])
    curve = curve_of(forward, theta_log)
    value = attenuate(shape, extinction, curve) + (level + 2.0 * theta_log[-1] - ln_scale)
    rows = [slope @ forward.weights[-1]]
    if forward.curve_variation is not None:
        rows.append(-extinction * forward.curve_variation[None])
    rows += [-extinction * curve[None], jnp.full((1, value.size), 2.0, value.dtype)]
    return FluxExpansion(value, jnp.concatenate(rows), tuple(layer_slope), tuple(first), tuple(second))


def weighted_hessian(
    forward: ForwardModel, at: FluxExpansion, weight: Float[Array, " channel"]
) -> Float[Array, "parameter parameter"]:
    """Hessian of sum_c weight_c ln f_c by the parameters."""
    n_labels = forward.n_labels
    by_labels = jnp.zeros((n_labels, n_labels), weight.dtype)
    adjoint = forward.weights[-1] @ weight
    for matrix, slope, first, second in reversed(
        list(zip(forward.weights[:-1], at.layer_slope, at.first, at.second, strict=True))
    ):
        by_labels += (slope * (adjoint * second)) @ slope.T
        adjoint = matrix @ (adjoint * first)
    n = at.slope.shape[0]
    full = jnp.zeros((n, n), weight.dtype).at[:n_labels, :n_labels].set(by_labels)
    full = full.at[-2, -2].set(weight @ at.slope[-2])  # d2 ln f / d ln E^2 = -E R, the slope itself
    if forward.curve_variation is not None:
        mixed = weight @ at.slope[-3]  # and d2 ln f / d xi d ln E = -E R1
        full = full.at[-3, -2].set(mixed).at[-2, -3].set(mixed)
    return full


def second_along(
    forward: ForwardModel, at: FluxExpansion, step: Float[Array, " parameter"]
) -> Float[Array, " channel"]:
    """Second derivative of ln f along a step: d2/dt2 ln f(theta_log + t step) at t = 0."""
    bend = jnp.zeros_like(at.first[0])
    layers = zip(forward.weights[1:], at.layer_slope, at.first, at.second, strict=True)
    for i, (following, slope, first, second) in enumerate(layers):
        along = step[: forward.n_labels] @ slope
        bend = second * along * along + (first * bend if i else 0.0)
        bend = bend @ following
    bend = bend + at.slope[-2] * step[-2] ** 2
    return bend if forward.curve_variation is None else bend + at.slope[-3] * (2.0 * step[-3] * step[-2])


def ln_absolute_flux(forward: ForwardModel, labels: Float[Array, " label"]) -> Float[Array, " channel"]:
    """Ln of the flux at 1 kpc without dust [1e-18 W m^-2 nm^-1] of labels [kK, dex, dex, ...] (ZGR23 Section 3.1)."""
    shape, level = shape_and_level(forward, labels)
    return shape + level


@program
def ln_absolute_fluxes(forward: ForwardModel, labels: Float[Array, "star label"]) -> Float[Array, "star channel"]:
    """`ln_absolute_flux` of many stars."""
    return jax.vmap(partial(ln_absolute_flux, forward))(labels)


def predict_ln_flux(
    forward: ForwardModel, theta_log: Float[Array, " parameter"], ln_scale: Float[Array, ""] | float = 0.0
) -> Float[Array, " channel"]:
    """Natural log of the observed flux: ln f_abs + 2 ln parallax - E R (ZGR23 Eq. 8).

    Its unit is exp(`ln_scale`) x 1e-18 W m^-2 nm^-1: a star's own scale keeps float32 accurate, because the large
    common terms are added up once, not rounded in every channel.
    """
    shape, level = shape_and_level(forward, theta_log[: forward.n_labels])
    curve = curve_of(forward, theta_log)
    return attenuate(shape, jnp.exp(theta_log[-2]), curve) + (level + 2.0 * theta_log[-1] - ln_scale)


def predict_flux(
    forward: ForwardModel, theta_log: Float[Array, " parameter"], ln_scale: Float[Array, ""] | float = 0.0
) -> Float[Array, " channel"]:
    """Observed flux in every channel, in units of exp(ln_scale) x 1e-18 W m^-2 nm^-1; see `predict_ln_flux`."""
    return jnp.exp(predict_ln_flux(forward, theta_log, ln_scale))
