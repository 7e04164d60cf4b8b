"""The two ways in which a chain of `nuts` moves: a transition of NUTS, and a choice among independent points.

Each leaves the target density as it is, whatever the other does.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

DEPTH = 3
"""Trajectories have 2^3 - 1 steps at most: in these coordinates a Gaussian turns round after three or four."""


def choose_point(
    key: Array, z: Float[Array, " parameter"], ln_ratio: Array, points: Float[Array, "n parameter"], ln_ratios: Array
) -> tuple[Array, Array, Array]:
    """Choose among independent points and where the chain stands; leaves the target density as it is.

    Args:
        key: random key.
        z: where the chain stands.
        ln_ratio: () ln of target over proposal density there.
        points, ln_ratios: (n, parameter) and (n,) drawn from the proposal, with the same ratio.

    Returns:
        the chosen z with its ratio, and whether it is new.
    """
    ratios = jnp.append(jnp.where(jnp.isfinite(ln_ratios), ln_ratios, -jnp.inf), ln_ratio)
    chosen = jax.random.categorical(key, ratios)
    jumped = chosen < points.shape[0]
    return jnp.where(jumped, points[jnp.minimum(chosen, points.shape[0] - 1)], z), ratios[chosen], jumped


def nuts_transition(target: Callable[[Array], Array], z: Array, step_size: Array, key: Array) -> Any:
    """One transition of NumPyro's NUTS in coordinates of unit mass: its state afterwards."""
    from numpyro.infer.hmc import hmc

    init, transition = hmc(potential_fn=target, algo="NUTS")
    state = init(
        z,
        0,
        step_size=step_size,
        inverse_mass_matrix=jnp.ones_like(z),
        adapt_step_size=False,
        adapt_mass_matrix=False,
        max_tree_depth=DEPTH,
        rng_key=key,
    )
    return transition(state)


def dual_averaging_of_step_size() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """NumPyro's start and update of the average of ln step size."""
    from numpyro.infer.hmc_util import dual_averaging

    return dual_averaging()
