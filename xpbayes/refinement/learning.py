"""Train the ensemble: the log score of measured labels, their own errors deconvolved.

In: features and labels of stars inferred blind. Out: networks. Only arrays in, arrays out: which stars, and how they were
inferred, the caller says.
"""

import logging
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from xpbayes.refinement.networks import Layers, RefinementNets, initial_layers, ln_density, mixture, standardised

if TYPE_CHECKING:
    import optax

    from xpbayes.config import RefinementConfig

log = logging.getLogger(__name__)

MIN_SPREAD = 1e-6
"""Features that vary by less are the same for all training stars; they are left out by a scale of 0."""


class Lessons(NamedTuple):
    """What the networks learn from."""

    features: Float[NDArray, "row feature"]  # see `features.feature_names`; a star may have several rows
    offset: Float[NDArray, "row label"]  # measured labels minus those at the mode [kK, dex, dex, ...]
    error: Float[NDArray, "row label"]  # errors of the measured labels
    sigma: Float[NDArray, "row label"]  # errors of the forward posterior

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(row,) whether everything is finite."""
        known = [np.isfinite(values).all(axis=1) for values in self]
        return np.logical_and.reduce(known) & (self.sigma > 0).all(axis=1)

    def take(self, rows: NDArray[np.generic]) -> "Lessons":
        """Select rows."""
        return Lessons(*(values[rows] for values in self))


def learn(lessons: Lessons, residual_scale: Float[NDArray, " channel"], config: "RefinementConfig") -> RefinementNets:
    """Train every member on all rows, which are finite, each from its own start and in its own order."""
    spread = lessons.features.std(axis=0)
    nets = RefinementNets(
        weights=(),
        biases=(),
        center=jnp.asarray(lessons.features.mean(axis=0)),
        inverse_scale=jnp.asarray(
            np.where(spread > MIN_SPREAD, 1.0 / np.maximum(spread, MIN_SPREAD), 0.0), jnp.float32
        ),
        residual_scale=jnp.asarray(residual_scale, jnp.float32),
        unit=jnp.asarray(np.median(np.abs(lessons.offset), axis=0) + MIN_SPREAD, jnp.float32),
    )
    unit = np.asarray(nets.unit)
    rows = (
        standardised(nets, jnp.asarray(lessons.features, jnp.float32)),
        *(jnp.asarray(values / unit, jnp.float32) for values in lessons[1:]),
    )
    begun = time.perf_counter()
    members = []
    for key in jax.random.split(jax.random.key(config.seed), config.members):
        layers, score = _one(rows, key, config)
        members.append(layers)
        log.info(
            f"second stage: network {len(members)}/{config.members}, mean log score {score:.3f} "
            f"({time.perf_counter() - begun:.0f} s)"
        )
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    return replace(nets, weights=together.weights, biases=together.biases)


def _one(rows: tuple[Array, ...], key: Array, config: "RefinementConfig") -> tuple[Layers, float]:
    """One member and its mean log score over the last epoch."""
    of_start, of_order = jax.random.split(key)
    n, n_labels = len(rows[0]), rows[1].shape[1]
    size = min(config.batch_size, n)
    layers = initial_layers(of_start, rows[0].shape[1], config.hidden, n_labels)
    how = _How(config.learning_rate, config.weight_decay, config.dropout, config.epochs * (n // size))
    optimizer = _optimizer(how)
    state = optimizer.init(layers)
    loss = jnp.zeros(())
    for epoch_key in jax.random.split(of_order, config.epochs):
        order = jax.random.permutation(epoch_key, n)[: n // size * size].reshape(-1, size)
        layers, state, loss = _epoch(rows, layers, state, order, epoch_key, how)
    return layers, -float(loss)


class _How(NamedTuple):
    """What a compiled epoch depends on beside its arrays; see `config.RefinementConfig`."""

    learning_rate: float
    weight_decay: float
    dropout: float
    n_steps: int


def _optimizer(how: _How) -> "optax.GradientTransformation":
    import optax

    return optax.adamw(optax.cosine_decay_schedule(how.learning_rate, how.n_steps), weight_decay=how.weight_decay)


@partial(jax.jit, static_argnames="how")
def _epoch(
    rows: tuple[Array, ...], layers: Layers, state: "optax.OptState", order: Array, key: Array, how: _How
) -> tuple[Layers, "optax.OptState", Array]:
    """One pass over the rows in the order given, (step, row in it), and the mean loss."""
    import optax

    optimizer = _optimizer(how)

    def loss_of(layers: Layers, batch: list[Array], key: Array) -> Array:
        features, offset, error, sigma = batch
        return -jnp.mean(ln_density(mixture(layers, features, sigma, key, how.dropout), offset, error))

    def step(carry: tuple[Layers, Any], index: Array) -> tuple[tuple[Layers, Any], Array]:
        layers, state = carry
        of_step = jax.random.fold_in(key, index[0])
        loss, gradient = jax.value_and_grad(loss_of)(layers, [values[index] for values in rows], of_step)
        updates, state = optimizer.update(gradient, state, layers)
        return (optax.apply_updates(layers, updates), state), loss

    (layers, state), losses = jax.lax.scan(step, (layers, state), order)
    return layers, state, jnp.mean(losses)
