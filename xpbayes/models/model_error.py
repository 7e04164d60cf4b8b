"""The model's own error: the covariance of its relative error, by kind of star, and the tail of its distribution.

How well the model describes a spectrum depends on what kind of star it is (a 3,500 K giant has bands that a small
network only approximates) and on how bright it is (beside a sharp measurement, the errors of its calibration show).
Both can be told from the observed spectrum alone, so a star's covariance is fixed before its parameters are sought:

    S = sum_k w_k S_k,   w_k falling with the distance of the star's features from those of kind k.

Features are the shape of the spectrum, grey level taken out, along a few directions, and its mean ln S/N. Within a kind
stars still differ by factors: the fluxes follow a Student t with scale matrix C + S, whose degrees of freedom, 1 / tail,
belong to the kind too.
"""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from xpbayes.data.stars import Stars
from xpbayes.device import program
from xpbayes.models.likelihood import add_model_error

SOFTENING = 0.03
"""Relative error added per channel when a star's features are measured: noise must not look like another kind."""
MIN_CHANNEL_SNR = 1.0
RIDGE = 1e-3
"""Keeps the features of a star with few channels finite, at the mean kind."""


class ModelError(eqx.Module):
    """Covariance of the model's relative error and tail of the fluxes' distribution, by kind of star."""

    shapes: Float[Array, "channel shape"]  # directions in ln flux along which kinds are told apart
    feature_center: Float[Array, " shape+1"]  # normalisation of the features, with their scale
    feature_scale: Float[Array, " shape+1"]
    kinds: Float[Array, "kind shape+1"]  # normalised features of every kind
    width: Float[Array, ""]  # distance over which one kind passes into the next
    # S_k, positive semi-definite, without the directions that parallax and extinction can mimic
    covariance: Float[Array, "kind channel channel"]
    inv_dof: Float[Array, " kind"]  # 1 / degrees of freedom of the Student t
    share: Float[Array, " kind"]  # of the training stars


def raw_features(shapes: Float[Array, "channel shape"], star: Stars) -> Float[Array, " shape+1"]:
    """Shape coefficients of one observed spectrum, its grey level fitted along, and its mean ln S/N."""
    precision = jnp.sum(star.whitening**2, axis=0)  # diagonal of W^T W
    usable = (star.flux > 0) & (precision > 0)
    flux = jnp.where(usable, star.flux, 1.0)
    inverse_variance = precision * flux**2
    weight = jnp.where(usable, 1.0 / (1.0 / jnp.maximum(inverse_variance, 1e-12) + SOFTENING**2), 0.0)
    design = jnp.concatenate([jnp.ones((flux.size, 1), flux.dtype), shapes], axis=1)
    normal = design.T @ (weight[:, None] * design) + RIDGE * jnp.eye(design.shape[1])
    fitted = jnp.linalg.solve(normal, design.T @ (weight * jnp.log(flux)))
    return jnp.append(fitted[1:], mean_ln_snr(star))


def mean_ln_snr(star: Stars) -> Float[Array, ""]:
    """Mean ln S/N of one star's channels, as measured; a channel counts as S/N 1 at least."""
    precision = jnp.sum(star.whitening**2, axis=0)
    usable = (star.flux > 0) & (precision > 0)
    ln_snr = 0.5 * jnp.log(jnp.maximum(precision * star.flux**2, MIN_CHANNEL_SNR**2))
    return jnp.sum(jnp.where(usable, ln_snr, 0.0)) / jnp.maximum(jnp.sum(usable), 1)


def kind_weights(error: ModelError, star: Stars) -> Float[Array, " kind"]:
    """How much one star belongs to every kind; the weights add up to one."""
    features = (raw_features(error.shapes, star) - error.feature_center) / error.feature_scale
    distance2 = jnp.sum((features - error.kinds) ** 2, axis=1)
    return jax.nn.softmax(-0.5 * distance2 / error.width**2)


@program
def kind_weights_of(error: ModelError, stars: Stars) -> Float[Array, "star kind"]:
    """The same of all stars of a batch."""
    return jax.vmap(kind_weights, (None, 0))(error, stars)


def with_model_error(error: ModelError, star: Stars, flux: Float[Array, " channel"] | None = None) -> Stars:
    """One star with the model's error, relative to `flux` or the measured one, in its whitening, and its tail."""
    weight = kind_weights(error, star)
    covariance = jnp.tensordot(weight, error.covariance, axes=1)
    of = star.flux if flux is None else flux
    return replace(star, whitening=add_model_error(star.whitening, of, covariance), inv_dof=weight @ error.inv_dof)


def relative_sigma(error: ModelError) -> NDArray[np.float64]:
    """(channel,) 1-sigma relative model error per channel, averaged over the kinds of star."""
    variance = np.diagonal(np.asarray(error.covariance, np.float64), axis1=1, axis2=2)
    return np.sqrt(np.asarray(error.share, np.float64) @ variance)
