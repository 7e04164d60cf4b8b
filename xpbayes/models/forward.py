"""The forward model: from one star's parameters to its flux in every channel (ZGR23 Eq. 8).

A star's parameters are always the vector (labels..., ln E, ln parallax), labels first in the model's order: the
coordinates in which the posterior is sampled and its mode defined (METHOD 3).
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from xpbayes.models.extinction import attenuate

HIDDEN = (32, 32, 32)
"""Neurons per hidden layer. The paper says 16; its 4,484 parameters are 32."""


class ForwardModel(eqx.Module):
    """Everything that turns parameters into fluxes.

    Attributes:
        weights: one (in, out) matrix per layer of the absolute-flux network.
        biases: one (out,) vector per layer.
        ln_curve: (channel,) ln R, optical depth per unit E.
        label_center: (label,) median of the training labels [kK, dex, dex, ...].
        label_scale: (label,) half the 16-84 % range of the training labels.
    """

    weights: tuple[Float[Array, "_ _"], ...]
    biases: tuple[Float[Array, " _"], ...]
    ln_curve: Float[Array, " channel"]
    label_center: Float[Array, " label"]
    label_scale: Float[Array, " label"]

    @property
    def n_labels(self) -> int:
        """Number of stellar labels."""
        return self.label_center.shape[0]

    @property
    def n_weights(self) -> int:
        """Number of network weights, biases not counted (n_W of ZGR23 Eq. 12)."""
        return sum(w.size for w in self.weights)


def n_parameters(model: ForwardModel) -> int:
    """Count trained parameters: weights, biases and ln R."""
    return model.n_weights + sum(b.size for b in model.biases) + model.ln_curve.size


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

    Args:
        key: JAX random key.
        labels: (star, label) training labels, for the normalisation.
        ln_absolute_flux_guess: (channel,) mean of ln f_abs over the training stars.
        ln_curve_guess: (channel,) ln R to start from.
        hidden: neurons per hidden layer.
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


def _network(model: ForwardModel, labels: Float[Array, " label"]) -> tuple[Float[Array, " channel"], Float[Array, ""]]:
    """Ln f_abs as a shape (channel,) of order one and a level () common to all channels."""
    x = (labels - model.label_center) / model.label_scale
    for weight, bias in zip(model.weights[:-1], model.biases[:-1], strict=True):
        x = jnp.tanh(x @ weight + bias)
    level = jnp.mean(model.biases[-1])
    return x @ model.weights[-1] + (model.biases[-1] - level), level


def ln_absolute_flux(model: ForwardModel, labels: Float[Array, " label"]) -> Float[Array, " channel"]:
    """Natural log of the flux at 1 kpc without dust (ZGR23 Section 3.1).

    Args:
        model: the forward model.
        labels: (label,) stellar labels [kK, dex, dex, ...].

    Returns:
        (channel,) ln of flux in 1e-18 W m^-2 nm^-1.
    """
    shape, level = _network(model, labels)
    return shape + level


def predict_ln_flux(
    model: ForwardModel, parameters: Float[Array, " parameter"], ln_scale: Float[Array, ""] | float = 0.0
) -> Float[Array, " channel"]:
    """Natural log of the observed flux: ln f_abs + 2 ln parallax - E R (ZGR23 Eq. 8).

    Args:
        model: the forward model.
        parameters: (label + 2,) labels, ln E [ln mag], ln parallax [ln mas].
        ln_scale: () ln of the unit of the result, in 1e-18 W m^-2 nm^-1: a star's own scale keeps float32 accurate,
            because the large common terms are added up once, not rounded in every channel.

    Returns:
        (channel,) ln of flux in that unit. A batch is `jax.vmap(predict_ln_flux, (None, 0, 0))`.
    """
    shape, level = _network(model, parameters[:-2])
    return attenuate(shape, jnp.exp(parameters[-2]), model.ln_curve) + (level + 2.0 * parameters[-1] - ln_scale)


def predict_flux(
    model: ForwardModel, parameters: Float[Array, " parameter"], ln_scale: Float[Array, ""] | float = 0.0
) -> Float[Array, " channel"]:
    """Observed flux in every channel, in units of exp(ln_scale) x 1e-18 W m^-2 nm^-1; see `predict_ln_flux`."""
    return jnp.exp(predict_ln_flux(model, parameters, ln_scale))
