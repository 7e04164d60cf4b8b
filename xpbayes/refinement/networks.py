"""The networks of the second stage: from one star's features to a mixture of Gaussians about its forward posterior.

Every member of the ensemble gives `N_COMPONENTS` Gaussians in the labels: weights, means and Cholesky factors (Bishop 1994);
members count the same (Lakshminarayanan, Pritzel & Blundell 2017). Means are distances from the mode in units of `unit`,
widths are multiples of the forward posterior's own errors: a star with twice the noise begins with twice the width.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from xpbayes.inference.linear_algebra import cholesky, whitened
from xpbayes.models.forward import layer_sizes

FIRST_LN_WEIGHTS, FIRST_LN_WIDTHS = np.array([0.0, -1.0, -1.0, -2.0]), np.array([0.0, -0.8, 0.4, 1.0])
"""Of an untrained member's Gaussians: a common one as wide as the forward posterior, narrower and wider ones."""
N_COMPONENTS = len(FIRST_LN_WEIGHTS)
MAX_DEVIATION = 8.0
"""Standardised features are clipped to this: a star must not be decided by one number that training never saw."""
LN_WIDTHS = (-6.0, 4.0)
"""Bounds of the ln of a component's width over the forward error."""


class RefinementNets(eqx.Module):
    """The ensemble and what standardises its input."""

    weights: tuple[Float[Array, "member _ _"], ...]  # one (member, in, out) array per layer
    biases: tuple[Float[Array, "member _"], ...]  # one (member, out) array per layer
    # mean and 1 / standard deviation of the training stars' features
    center: Float[Array, " feature"]
    inverse_scale: Float[Array, " feature"]
    residual_scale: Float[Array, " channel"]  # typical relative residual, the unit of the residual spectrum
    unit: Float[Array, " label"]  # unit of shifts [kK, dex, dex, ...]

    @property
    def n_members(self) -> int:
        """Networks in the ensemble."""
        return self.biases[0].shape[0]


def residual_size(nets: RefinementNets, features: Float[NDArray, "star feature"]) -> NDArray[np.float64]:
    """(star,) rms of the standardised residual spectrum, with which the features end."""
    n = nets.residual_scale.shape[0]
    deviation = (features[:, -n:] - np.asarray(nets.center)[-n:]) * np.asarray(nets.inverse_scale)[-n:]
    square = np.square(deviation.clip(-MAX_DEVIATION, MAX_DEVIATION), dtype=np.float64)
    return np.asarray(np.sqrt(np.mean(square, axis=1)))


class Layers(NamedTuple):
    """One member's layers."""

    weights: tuple[Float[Array, "_ _"], ...]
    biases: tuple[Float[Array, " _"], ...]


class Mixture(NamedTuple):
    """A mixture of Gaussians in the labels, as distances from the mode."""

    ln_weight: Float[Array, "*star component"]  # (component,)
    mean: Float[Array, "*star component label"]  # (component, label) in units of `RefinementNets.unit`
    # (component, label, label) lower-triangular Cholesky factors of the covariances, in the same units
    factor: Float[Array, "*star component label label"]


def n_outputs(n_labels: int) -> int:
    """Numbers that a member gives for a star."""
    return N_COMPONENTS * (1 + n_labels + n_labels * (n_labels + 1) // 2)


def initial_layers(key: Array, n_features: int, hidden: tuple[int, ...], n_labels: int) -> Layers:
    """Make an untrained member: it gives the forward posterior back, nearly."""
    sizes = layer_sizes(n_features, hidden, n_outputs(n_labels))
    gain = [2.0] * len(hidden) + [0.01]
    weights = tuple(
        jax.random.normal(k, size) * np.sqrt(g / size[0])
        for k, size, g in zip(jax.random.split(key, len(sizes)), sizes, gain, strict=True)
    )
    return Layers(weights, tuple(jnp.zeros(after) for _, after in sizes))


def standardised(nets: RefinementNets, features: Float[Array, "*star feature"]) -> Float[Array, "*star feature"]:
    """Features as the networks take them."""
    return jnp.clip((features - nets.center) * nets.inverse_scale, -MAX_DEVIATION, MAX_DEVIATION)


def mixture(
    layers: Layers,
    inputs: Float[Array, "star feature"],
    sigma: Float[Array, "star label"],
    key: Array | None = None,
    dropout: float = 0.0,
) -> Mixture:
    """What one member says of standardised features, `sigma` in units of shifts; with a key `dropout` is dropped."""
    h = inputs
    for i, (weight, bias) in enumerate(zip(layers.weights[:-1], layers.biases[:-1], strict=True)):
        h = jax.nn.silu(h @ weight + bias)
        if key is not None and dropout > 0:
            h = h * jax.random.bernoulli(jax.random.fold_in(key, i), 1.0 - dropout, h.shape) / (1.0 - dropout)
    n = sigma.shape[1]
    out = (h @ layers.weights[-1] + layers.biases[-1]).reshape(len(inputs), N_COMPONENTS, -1)
    ln_weight = jax.nn.log_softmax(out[:, :, 0] + FIRST_LN_WEIGHTS, axis=1)
    ln_width = jnp.clip(out[:, :, 1 + n : 1 + 2 * n] + FIRST_LN_WIDTHS[:, None], *LN_WIDTHS)
    width = jnp.exp(ln_width) * sigma[:, None, :]
    below = np.tril_indices(n, -1)
    slope = jnp.broadcast_to(jnp.eye(n), (*width.shape, n)).at[:, :, *below].set(out[:, :, 1 + 2 * n :])
    return Mixture(ln_weight, out[:, :, 1 : 1 + n], slope * width[:, :, :, None])


def ln_density(
    of: Mixture, value: Float[Array, "star label"], error: Float[Array, "star label"]
) -> Float[Array, " star"]:
    """Ln density of measured labels, their errors in every component; distances from the mode in units of shifts."""
    offset = value[:, None, :] - of.mean
    covariance = jnp.einsum("skij,sklj->skil", of.factor, of.factor) + jax.vmap(jnp.diag)(error**2)[:, None]
    lower = jax.vmap(jax.vmap(cholesky))(covariance)
    white = whitened(offset, lower)
    ln_determinant = jnp.sum(jnp.log(jnp.diagonal(lower, axis1=2, axis2=3)), axis=2)
    constant = 0.5 * value.shape[1] * np.log(2.0 * np.pi)
    each = of.ln_weight - 0.5 * jnp.sum(white**2, axis=2) - ln_determinant - constant
    return jax.nn.logsumexp(each, axis=1)
