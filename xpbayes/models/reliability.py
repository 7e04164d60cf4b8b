"""How far one star's estimates can be trusted: the classifiers of ZGR23 Section 4.4 and Appendix B.

In: one star's features (feature,), NaN where one was not measured. Out: (target,) the probability that the estimate of
each target label is good, in the sense of Eq. 27. Not here: training, and what is good (`training/reliability.py`).
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xpbayes.data.stars import Stars
from xpbayes.models.forward import layer_sizes, predict_flux
from xpbayes.models.likelihood import at_own_level, marginal_sigma
from xpbayes.models.model_error import with_model_error
from xpbayes.models.star_model import StarModel

HIDDEN = (64, 64, 64)
"""Neurons per hidden layer (Appendix B)."""
DROPOUT = 0.1
"""Share of inputs dropped before each hidden layer while training (Appendix B)."""
MAX_DEVIATION = 10.0
"""Standardised features are clipped to this: a star far outside of the training sample must not decide by one number."""
TARGETS = ("teff", "feh", "logg")
"""Labels that have a classifier."""
QUALITY_FEATURES = (
    "asinh_plx_snr",
    "asinh_g_snr",
    "asinh_bp_snr",
    "asinh_rp_snr",
    "ln_phot_bp_rp_excess_factor",
    "phot_g_mean_mag",
    "ln_ruwe",
    "fidelity_v2",
    "norm_dg",
    "ln_bp_chi_squared",
    "ln_rp_chi_squared",
)
"""Features that Gaia's tables give."""


def feature_names(labels: Sequence[str], channels: Sequence[str]) -> tuple[str, ...]:
    """Name every feature in order (Appendix B; one estimate and error per label, one residual per channel)."""
    return (
        "ln_rchi2_opt",
        "ln_dplx2",
        "ln_prior",
        *(f"{name}_est" for name in labels),
        *(f"{name}_est_err" for name in labels),
        *QUALITY_FEATURES,
        *(f"asinh_residual_{name}" for name in channels),
    )


class ConfidenceNets(eqx.Module):
    """One classifier per target label, stacked along a leading axis."""

    # one (target, in, out) array per layer; the first takes every feature and its indicator of absence
    weights: tuple[Float[Array, "target _ _"], ...]
    biases: tuple[Float[Array, "target _"], ...]  # one (target, out) array per layer
    center: Float[Array, " feature"]  # median over the training stars
    # 1 / half the 16-84 % range; 0 for a feature that the training stars did not have
    inverse_scale: Float[Array, " feature"]
    indicator: Float[Array, " feature"]  # 1 where being absent is itself an input, 0 where it never varied in training
    targets: tuple[str, ...] = eqx.field(static=True)  # names of the labels with a classifier
    features: tuple[str, ...] = eqx.field(static=True)  # names of the features, in order


def initial_nets(
    key: Array,
    center: Float[Array, " feature"],
    inverse_scale: Float[Array, " feature"],
    indicator: Float[Array, " feature"],
    targets: Sequence[str],
    features: Sequence[str],
) -> ConfidenceNets:
    """Make untrained classifiers: He weights for the rectified layers, zero biases."""
    sizes = layer_sizes(2 * len(features), HIDDEN, 1)
    he = jax.nn.initializers.he_normal(batch_axis=0)
    keys = jax.random.split(key, len(sizes))
    return ConfidenceNets(
        weights=tuple(he(k, (len(targets), *size), jnp.float32) for k, size in zip(keys, sizes, strict=True)),
        biases=tuple(jnp.zeros((len(targets), out), jnp.float32) for _, out in sizes),
        center=center,
        inverse_scale=inverse_scale,
        indicator=indicator,
        targets=tuple(targets),
        features=tuple(features),
    )


def network_input(nets: ConfidenceNets, features: Float[Array, " feature"]) -> Float[Array, " input"]:
    """Standardise one star's features; an absent one becomes 0, the training median, and sets its indicator."""
    absent = ~jnp.isfinite(features)
    deviation = (jnp.where(absent, nets.center, features) - nets.center) * nets.inverse_scale
    return jnp.concatenate([jnp.clip(deviation, -MAX_DEVIATION, MAX_DEVIATION), absent * nets.indicator])


def layers_ln_odds(
    weights: Sequence[Float[Array, "target _ _"]],
    biases: Sequence[Float[Array, "target _"]],
    x: Float[Array, " input"],
    keep: Sequence[Bool[Array, "target _"]] | None = None,
) -> Float[Array, " target"]:
    """Ln odds of every classifier for one star's `network_input`; `keep`: inputs of hidden layers left by dropout."""
    h = jnp.broadcast_to(x, (weights[0].shape[0], x.shape[0]))
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        last = i == len(weights) - 1
        if keep is not None and not last:
            h = jnp.where(keep[i], h / (1.0 - DROPOUT), 0.0)
        h = jnp.einsum("ti,tio->to", h, weight) + bias
        h = h if last else jax.nn.relu(h)
    return h[:, 0]


def confidence(nets: ConfidenceNets, features: Float[Array, " feature"]) -> Float[Array, " target"]:
    """Probability that each target's estimate is good, for one star; features as `feature_names` lists them."""
    return jax.nn.sigmoid(layers_ln_odds(nets.weights, nets.biases, network_input(nets, features)))


def flux_pulls(
    model: StarModel, star: Stars, theta_log: Float[Array, " parameter"], own_level: bool = False
) -> Float[Array, " channel"]:
    """(f_pred - f_obs) / sigma of one star, sigma marginal over the other channels, NaN where nothing was observed.

    Sigma is the scale of the star's Student t, model error included, before its amplitude: a badly described star must
    show its residuals. With `own_level` the model's flux is brought to the star's own level first, as best fits.
    """
    observed = jnp.diagonal(star.whitening) > 0
    predicted = predict_flux(model.forward, theta_log, star.ln_scale)
    if own_level:
        predicted = at_own_level(predicted, star.flux, star.whitening)
    star = star if model.error is None else with_model_error(model.error, star, predicted)
    pull = (predicted - star.flux) / marginal_sigma(star.whitening)
    return jnp.where(observed, pull, jnp.nan)
