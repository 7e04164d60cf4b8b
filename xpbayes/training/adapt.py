"""Bring a trained model to a few stars that have labels of their own, on another survey's scale perhaps.

First the scale: two numbers a label, offset and stretch, by which what the model infers of the stars agrees with their
labels. Network and label prior move together, so nothing else changes. Then, if asked for, the network: its last layer, or
all of it, for a few passes, stars and network in turn as in training. The extinction curve and the model's own error stay: a
few stars say nothing of them.
"""

from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray
from pydantic import Field

from xpbayes.config import FrozenSettings, Phase
from xpbayes.data.stars import Stars
from xpbayes.device import prepare_device
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.models.forward import ForwardModel
from xpbayes.models.posterior import model_site_values
from xpbayes.models.prior import LabelPrior
from xpbayes.models.star_model import StarModel
from xpbayes.training.learn import initial_theta, run_star_phase
from xpbayes.training.phases import run_gradient_phase

ROBUST_SCALE = 660.0
"""As in training: a star that no model describes must not pull the others' scale."""
ITERATIONS, OUTLYING = 30, 2.0
"""Of the scale's fit; residuals beyond so many robust sigma count little."""
LIKELY_TILT, LARGEST_TILT = 0.05, 0.5
"""Stretches of such a size are expected before any star was seen, and none beyond."""
LARGEST_OFFSET = 1.0
"""In units of the training labels' spread; scales of surveys differ by less than half of it."""


class AdaptationConfig(FrozenSettings):
    """How `xpbayes adapt` brings a model to a few stars with labels of their own."""

    layers: Literal["none", "last", "all"] = Field(
        "none", description="which of the network's layers move, after the labels' scale; R(lambda) never does"
    )
    rounds: int = Field(2, ge=1, description="alternations of stars and network")
    epochs: int = Field(20, ge=1, description="passes over the stars in each round")
    learning_rate: float = Field(3e-4, gt=0, description="of Adam at the start of a round; it falls as a cosine")
    batch_size: int = Field(64, ge=1, description="stars per step")
    validation_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of source_ids held out, on which it is judged"
    )
    split_seed: int = Field(
        1, ge=0, description="which split by source_id; not that of training, whose sides may be all one"
    )
    seed: int = Field(0, ge=0, description="of the batches")


def move_network(model: StarModel, stars: Stars, config: AdaptationConfig) -> StarModel:
    """Move the network to the labels of some stars, stars and network in turn.

    The model is on the stars' scale; parallaxes and reddenings are measurements, as far as they are known.
    """
    if config.layers == "none":
        return model
    prepare_device()
    stars = jax.tree.map(jnp.asarray, stars)
    forward, theta_log = model.forward, initial_theta(stars, curve_varies=model.forward.curve_variation is not None)
    settle = Phase(update="stars", epochs=8)
    move = Phase(
        update="model",
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        final_rate=0.02,
        robust_scale=ROBUST_SCALE,
    )
    fixed = fixed_sites(forward, config.layers)
    for key in jax.random.split(jax.random.key(config.seed), config.rounds):
        effective = fold_in_model_error(model, stars, theta_log)
        theta_log, _, _ = run_star_phase(forward, effective, theta_log, settle)
        forward, theta_log, _ = run_gradient_phase(
            forward, effective, theta_log, move, config.batch_size, key, fixed=fixed
        )
    return StarModel(forward, model.prior, model.error)


def fixed_sites(forward: ForwardModel, layers: str) -> tuple[str, ...]:
    """Sites of the model that adaptation leaves alone."""
    last = len(forward.weights) - 1
    sites = set(model_site_values(forward)) - {"R1"}  # which gradients never move
    moving = {f"weights_{last}", f"biases_{last}"} if layers == "last" else sites - {"ln_R"}
    return tuple(sorted(sites - moving))


def find_scale(
    inferred: NDArray[np.float64], labels: NDArray[np.float64], center: NDArray[np.float64], spread: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Find the offset and stretch of every label from what a model inferred of labelled stars.

    A model whose network and prior move to another scale infers what it inferred, moved: this is that move. Outliers count
    little, and a stretch that few stars cannot tell stays near 1; neither goes beyond its limit.

    Args:
        inferred: (star, label) posterior medians, from fluxes alone.
        labels: (star, label) the stars' own.
        center, spread: (label,) of the model's training labels.

    Returns:
        (2, label) offsets in units of `spread` and ln of stretches about `center`, as `on_scale` takes them.
    """
    x, difference = (inferred - center) / spread, (labels - inferred) / spread
    offset, tilt = np.median(difference, axis=0), np.zeros(len(center))
    for _ in range(ITERATIONS):
        left = difference - offset - tilt * x
        scatter = 1.4826 * np.median(np.abs(left), axis=0) + 1e-9
        weight = 1.0 / (1.0 + (left / (OUTLYING * scatter)) ** 2)
        offset = np.sum(weight * (difference - tilt * x), axis=0) / np.sum(weight, axis=0)
        expected = (scatter / LIKELY_TILT) ** 2
        tilt = np.sum(weight * x * (difference - offset), axis=0) / (np.sum(weight * x**2, axis=0) + expected)
    limited = np.clip([offset, tilt], [[-LARGEST_OFFSET], [-LARGEST_TILT]], [[LARGEST_OFFSET], [LARGEST_TILT]])
    return np.stack([limited[0], np.log1p(limited[1])])


def at_limit(move: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(label,) whose offset or stretch `find_scale` has kept from going further."""
    return np.asarray((np.abs([move[0], np.expm1(move[1])]) >= [[LARGEST_OFFSET], [LARGEST_TILT - 1e-9]]).any(axis=0))


def on_scale(model: StarModel, move: Float[Array, "2 label"]) -> StarModel:
    """The model for labels on another scale, from `find_scale`: a network that takes them, a prior that moved along."""
    forward, prior, stretch = model.forward, model.label_prior, jnp.exp(move[1])
    center = forward.label_center + forward.label_scale * move[0]
    moved = LabelPrior(
        prior.ln_weight,
        center + stretch * (prior.mean - forward.label_center),
        prior.whitening / stretch[None, :, None],
        prior.ln_threshold - jnp.sum(move[1]),
    )
    return StarModel(
        replace(forward, label_center=center, label_scale=forward.label_scale * stretch), moved, model.error
    )


def moved_labels(before: ForwardModel, after: ForwardModel) -> dict[str, list[float]]:
    """By how much labels were moved [kK, dex, ...] and stretched, for the card."""
    offset = np.asarray(after.label_center, np.float64) - np.asarray(before.label_center, np.float64)
    stretch = np.asarray(after.label_scale, np.float64) / np.asarray(before.label_scale, np.float64)
    return {"offset": offset.round(4).tolist(), "stretch": stretch.round(4).tolist()}
