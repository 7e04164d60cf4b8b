"""Where the second stage has learned: how near a star is to those that it learned from.

Two questions, as of the forward model's own support: how far in labels, extinction and S/N are the nearest stars, and how
large is the residual spectrum as a whole? Both are scaled so that one training star in a thousand lies beyond 1.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from xpbayes.inference.support import NEIGHBOUR, RARE, neighbour_distance

MAX_STARS = 8192
"""Kept with the model, evenly drawn."""
FULL, NONE = 0.75, 1.25
"""Up to the first score a star has all of the second stage, from the second on nothing of it."""


class FeatureSupport(NamedTuple):
    """The stars that the networks learned from.

    Attributes:
        points: (point, place) labels at the mode, sqrt(E) and ln S/N, in units of `spread`.
        spread: (place,) half the 16-84 % ranges of these.
        reach: () distance to the third nearest neighbour that one star in a thousand exceeds.
        residual_reach: () rms of the standardised residual spectrum that one star in a thousand exceeds.
    """

    points: Float[np.ndarray, "point place"]
    spread: Float[np.ndarray, " place"]
    reach: Float[np.ndarray, ""]
    residual_reach: Float[np.ndarray, ""]


def make_feature_support(
    places: Float[NDArray, "star place"], residual: Float[NDArray, " star"], seed: int = 0
) -> FeatureSupport:
    """Summarise the training stars.

    Args:
        places: labels at the mode, sqrt(E), ln S/N.
        residual: rms of the standardised residual spectrum.
        seed: of what is drawn.
    """
    low, high = np.percentile(places, [16, 84], axis=0)
    spread = np.maximum(0.5 * (high - low), 1e-3)
    order = np.random.default_rng(seed).permutation(len(places))
    points, others = (places[some] / spread for some in (order[:MAX_STARS], order[MAX_STARS:]))
    # Of stars that are no points themselves, if there are any: a point is its own nearest neighbour.
    judged, neighbour = (others, NEIGHBOUR) if len(others) * RARE > 1 else (points, NEIGHBOUR + 1)
    reach = np.quantile(neighbour_distance(points, judged, min(neighbour, len(points))), 1.0 - RARE)
    values = (points, spread, reach, np.quantile(residual, 1.0 - RARE))
    return FeatureSupport(*(np.asarray(v, np.float32) for v in values))


def share_of_second_stage(
    support: FeatureSupport, places: Float[NDArray, "star place"], residual: Float[NDArray, " star"]
) -> NDArray[np.float64]:
    """(star,) from 1 where the networks have learned to 0 where they have not; arguments as of `make_feature_support`."""
    score = residual / float(support.residual_reach)
    finite = np.isfinite(places).all(axis=1) & np.isfinite(score)
    distance = np.full(len(places), np.inf)
    if finite.any():
        distance[finite] = neighbour_distance(
            support.points, places[finite] / support.spread, min(NEIGHBOUR, len(support.points))
        )
    away = np.where(finite, np.maximum(distance / float(support.reach), score), np.inf)
    left = np.clip((NONE - away) / (NONE - FULL), 0.0, 1.0)
    return left**2 * (3.0 - 2.0 * left)
