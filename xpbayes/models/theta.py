"""A star's parameters in their two forms: theta, as they are, and theta_log, in which the posterior is sampled.

Labels come first, in the model's order, then xi where the extinction curve varies. theta = (labels, E [mag], parallax
[mas]); theta_log = (labels, ln E, ln parallax).
Any number of leading axes; NumPy arrays stay NumPy arrays, in their own precision.
"""

from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

Points = TypeVar("Points", Array, NDArray[Any])


def to_linear(theta_log: Points) -> Points:
    """(labels, ln E, ln parallax) to (labels, E, parallax)."""
    xp: Any = np if isinstance(theta_log, np.ndarray) else jnp
    found: Points = xp.concatenate([theta_log[..., :-2], xp.exp(theta_log[..., -2:])], axis=-1)
    return found


def to_log(theta: Points) -> Points:
    """(labels, E, parallax) to (labels, ln E, ln parallax)."""
    xp: Any = np if isinstance(theta, np.ndarray) else jnp
    found: Points = xp.concatenate([theta[..., :-2], xp.log(theta[..., -2:])], axis=-1)
    return found
