"""Bring a trained model to a few stars that have labels of their own, on another survey's scale perhaps.

First the scale: two numbers a label, offset and stretch, with which the fluxes of stars held at their labels are most
probable. The label prior moves with it. Then the network: its last layer, or all of it, for a few passes, stars and network
in turn as in training. The extinction curve and the model's own error stay: a few stars say nothing of them.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from pydantic import Field

from xpbayes.config import FrozenSettings, Phase
from xpbayes.data.stars import Stars
from xpbayes.device import prepare_device
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.models.forward import ForwardModel
from xpbayes.models.objective import objective
from xpbayes.models.posterior import model_site_values
from xpbayes.models.prior import LabelPrior
from xpbayes.models.star_model import StarModel
from xpbayes.training.learn import initial_theta, run_star_phase
from xpbayes.training.phases import run_gradient_phase

ROBUST_SCALE = 660.0
"""As in training: a star that no model describes must not pull the others' scale."""
SCALE_ROUNDS, SCALE_STEPS, SCALE_RATE = 2, 400, 0.02
"""Steps of Adam that find the scale, in units of the labels' spread; the model's error is folded in anew in each round."""
LIKELY_MOVE = 0.5
"""Offsets and ln stretches of such a size are expected before any star was seen."""


class AdaptationConfig(FrozenSettings):
    """How `xpbayes adapt` brings a model to a few stars with labels of their own."""

    layers: Literal["last", "all"] = Field(
        "last", description="which of the network's layers move; R(lambda) never does"
    )
    rounds: int = Field(2, ge=0, description="alternations of stars and network, after the labels' scale was found")
    epochs: int = Field(20, ge=1, description="passes over the stars in each round")
    learning_rate: float = Field(3e-4, gt=0, description="of Adam at the start of a round; it falls as a cosine")
    batch_size: int = Field(64, ge=1, description="stars per step")
    validation_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of source_ids held out, on which it is judged"
    )
    split_seed: int = Field(0, ge=0, description="which split by source_id")
    seed: int = Field(0, ge=0, description="of the batches")


def adapt_model(model: StarModel, stars: Stars, config: AdaptationConfig) -> StarModel:
    """Move scale, prior and network to the labels of some stars.

    Args:
        model: the trained model.
        stars: with labels, and parallaxes and reddenings as far as they are known, as measurements.
        config: the settings.
    """
    prepare_device()
    stars = jax.tree.map(jnp.asarray, stars)
    model, theta_log = find_scale(model, stars)
    forward = model.forward
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
    moving = {f"weights_{last}", f"biases_{last}"} if layers == "last" else set(model_site_values(forward)) - {"ln_R"}
    return tuple(sorted(set(model_site_values(forward)) - moving))


def find_scale(model: StarModel, stars: Stars) -> tuple[StarModel, Float[Array, "star parameter"]]:
    """Find the offset and stretch of every label under which the fluxes of labelled stars are most probable.

    Stars are held at their labels; their E and parallaxes move along.

    Args:
        model: the trained model.
        stars: with labels.

    Returns:
        the model on the stars' scale, its prior moved along; and theta_log of the stars.
    """
    theta_log = initial_theta(stars)
    move, own = jnp.zeros((2, model.forward.n_labels)), theta_log[:, -2:]
    for _ in range(SCALE_ROUNDS):
        at = jnp.concatenate([theta_log[:, :-2], own], axis=1)
        effective = fold_in_model_error(on_scale(model, move), stars, at)
        move, own = _find_scale(model.forward, effective, at, move)
    return on_scale(model, move), jnp.concatenate([theta_log[:, :-2], own], axis=1)


def on_scale(model: StarModel, move: Float[Array, "2 label"]) -> StarModel:
    """The model for labels on another scale: a network that takes them, and a prior that moved along.

    Args:
        model: the trained model.
        move: offsets in units of the labels' spread, and ln of stretches about the median.
    """
    return StarModel(_forward_on(model.forward, move), _prior_on(model.label_prior, model.forward, move), model.error)


def _forward_on(forward: ForwardModel, move: Array) -> ForwardModel:
    center = forward.label_center + forward.label_scale * move[0]
    return ForwardModel(
        forward.weights, forward.biases, forward.ln_curve, center, forward.label_scale * jnp.exp(move[1])
    )


def _prior_on(prior: LabelPrior, forward: ForwardModel, move: Array) -> LabelPrior:
    stretch = jnp.exp(move[1])
    center = forward.label_center + forward.label_scale * move[0]
    return LabelPrior(
        prior.ln_weight,
        center + stretch * (prior.mean - forward.label_center),
        prior.whitening / stretch[None, :, None],
        prior.ln_threshold - jnp.sum(move[1]),
    )


@jax.jit
def _find_scale(forward: ForwardModel, stars: Stars, theta_log: Array, move: Array) -> tuple[Array, Array]:
    import optax

    def loss(at: tuple[Array, Array]) -> Array:
        here = jnp.concatenate([theta_log[:, :-2], at[1]], axis=1)
        own = jax.vmap(partial(objective, StarModel(_forward_on(forward, at[0]))))(stars, here)
        expected = jnp.sum((at[0] / LIKELY_MOVE) ** 2) / here.shape[0]
        return jnp.mean(ROBUST_SCALE * jnp.arcsinh(own / ROBUST_SCALE)) + expected

    optimizer = optax.adam(optax.cosine_decay_schedule(SCALE_RATE, SCALE_STEPS))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        at, state = carry
        change, state = optimizer.update(jax.grad(loss)(at), state)
        return (jax.tree.map(jnp.add, at, change), state), None

    start = (move, theta_log[:, -2:])
    (found, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, SCALE_STEPS)
    return found


def moved_labels(before: ForwardModel, after: ForwardModel) -> dict[str, list[float]]:
    """By how much labels were moved [kK, dex, ...] and stretched, for the card."""
    offset = np.asarray(after.label_center, np.float64) - np.asarray(before.label_center, np.float64)
    stretch = np.asarray(after.label_scale, np.float64) / np.asarray(before.label_scale, np.float64)
    return {"offset": offset.round(4).tolist(), "stretch": stretch.round(4).tolist()}
