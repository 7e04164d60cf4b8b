"""Where the second stage has learned: how near a star is to those that it learned from.

Three questions. How far in labels, extinction and S/N, all as inferred, are the nearest stars; how large is the residual
spectrum as a whole? Both are scaled so that one training star in a thousand lies beyond 1. And how far is the star's
mode from the nearest *measured* labels, in units of its own errors? Noisy stars' modes lie where no labels do, so that
the first question does not see a kind of star that was never learned from; the networks would draw it into the sample. At
the edge of the sample all labels around a star lie to one side: by how much is its `offset`.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray
from scipy.spatial import KDTree

from xpbayes.data.stars import by_blocks
from xpbayes.device import program
from xpbayes.inference.support import NEIGHBOUR, RARE, neighbour_distance

MAX_STARS = 8192
"""Kept with the model, evenly drawn."""
FULL, NONE = 0.75, 1.25
"""Up to the first score a star has all of the second stage, from the second on nothing of it."""
MAX_LABELS = 4096
"""Of stars whose measured labels are kept with the model, evenly drawn."""
SPACING = 8
"""A star stands for the labels around it as far as its so-many-th neighbour: the sample is thin in places."""
FULL_LABELS, NONE_LABELS = 1.0, 2.0
"""The same two scores for the distance to measured labels, in sigma."""
WITHIN, EDGE = 0.5, 1.0
"""Up to the first offset from labels around it, in sigma, a star is within the sample, from the second on at its edge."""
FAR = 60.0
"""Squared distances beyond that of the nearest label from which on labels are alike: far."""
AT_ONCE = 64
"""Stars whose distances to all labels are held together."""


class FeatureSupport(NamedTuple):
    """The stars that the networks learned from."""

    points: Float[np.ndarray, "point place"]  # labels at the mode, sqrt(E) and ln S/N, in units of `spread`
    spread: Float[np.ndarray, " place"]  # half the 16-84 % ranges of these
    reach: Float[np.ndarray, ""]  # distance to the third nearest neighbour that one star in a thousand exceeds
    # rms of the standardised residual spectrum that one star in a thousand exceeds
    residual_reach: Float[np.ndarray, ""]
    labels: Float[np.ndarray, "known label"]  # measured labels [kK, dex, dex, ...]
    # how far each stands for what is around it, in the same units, its own error included
    label_reach: Float[np.ndarray, "known label"]


def make_feature_support(
    places: Float[NDArray, "row place"],
    residual: Float[NDArray, " row"],
    labels: Float[NDArray, "star label"],
    error: Float[NDArray, "star label"],
    seed: int = 0,
) -> FeatureSupport:
    """Summarise the training stars.

    Places and the rms of the standardised residual spectrum are of all that was learned from, copies included; labels
    are measured, of every star once.
    """
    low, high = np.percentile(places, [16, 84], axis=0)
    spread = np.maximum(0.5 * (high - low), 1e-3)
    order = np.random.default_rng(seed).permutation(len(places))
    points, others = (places[some] / spread for some in (order[:MAX_STARS], order[MAX_STARS:]))
    # Of stars that are no points themselves, if there are any: a point is its own nearest neighbour.
    judged, neighbour = (others, NEIGHBOUR) if len(others) * RARE > 1 else (points, NEIGHBOUR + 1)
    reach = np.quantile(neighbour_distance(points, judged, min(neighbour, len(points))), 1.0 - RARE)
    some = np.random.default_rng(seed).permutation(len(labels))[:MAX_LABELS]
    values = (points, spread, reach, np.quantile(residual, 1.0 - RARE), labels[some], _reach(labels[some], error[some]))
    return FeatureSupport(*(np.asarray(v, np.float32) for v in values))


def _reach(labels: NDArray[np.floating], error: NDArray[np.floating]) -> NDArray[np.float64]:
    """(star, label) how far measured labels stand for what is around them: to their neighbours, and their errors."""
    low, high = np.percentile(labels, [16, 84], axis=0)
    unit = np.maximum(0.5 * (high - low), 1e-3)
    spacing = KDTree(labels / unit).query(labels / unit, k=[min(SPACING + 1, len(labels))])[0] / np.sqrt(
        labels.shape[1]
    )
    return np.asarray(np.hypot(spacing * unit, error))


class AmongLabels(NamedTuple):
    """Where modes lie among measured labels.

    Attributes:
        distance: (star,) to the third-nearest, in units of both errors; infinite if not finite.
        offset: (star, label) to the mean of those within these errors, in units of the star's; infinite likewise.
    """

    distance: NDArray[np.float64]
    offset: NDArray[np.float64]


def among_labels(
    support: FeatureSupport, mode: Float[NDArray, "star label"], sigma: Float[NDArray, "star label"]
) -> AmongLabels:
    """Where modes lie among measured labels.

    Args:
        support: of the second stage.
        mode: labels at the mode.
        sigma: their errors in the forward posterior.
    """
    n_nearest = min(NEIGHBOUR, len(support.labels))
    out = AmongLabels(np.full(len(mode), np.inf), np.full(mode.shape, np.inf))
    finite = np.flatnonzero(np.isfinite(mode).all(axis=1) & np.isfinite(sigma).all(axis=1))
    known = np.ascontiguousarray(support.labels.T), np.ascontiguousarray(support.label_reach.T) ** 2
    for begin in range(0, len(finite), AT_ONCE):
        rows = finite[begin : begin + AT_ONCE]
        at, error = mode[rows].astype(np.float32), sigma[rows].astype(np.float32)
        square = np.array(by_blocks(partial(_square_distances, *known), AT_ONCE, at, error))
        least = _smallest(square, n_nearest)
        out.distance[rows] = np.sqrt(least[-1])
        near = np.minimum(np.subtract(square, least[0][:, None], out=square), FAR, out=square)
        near = np.exp(np.multiply(near, -0.5, out=near), out=near)  # nowhere so small that arithmetic slows down
        mean = near @ support.labels / near.sum(axis=1, keepdims=True)
        out.offset[rows] = np.abs(mean - at) / error
    return out


@program
def _square_distances(labels: Array, reach_square: Array, at: Array, error: Array) -> Array:
    """(star, known) squared distances to measured labels (label, known), in units of both errors."""
    each = zip(at.T, error.T, labels, reach_square, strict=True)
    return sum(jnp.square(m[:, None] - label) / (jnp.square(s)[:, None] + reach) for m, s, label, reach in each)


def _smallest(values: NDArray[np.float32], n: int) -> list[NDArray[np.float32]]:
    """(row,) the smallest, second, ... n-th value of every row; of few, minima one by one are the quickest."""
    every, found = np.arange(len(values)), []
    for _ in range(n):
        at = values.argmin(axis=1)
        found.append((at, values[every, at]))
        values[every, at] = np.inf
    for at, value in reversed(found):  # as they were
        values[every, at] = value
    return [value for _, value in found]


def _left(score: NDArray[np.float64], full: float, none: float) -> NDArray[np.float64]:
    """(star, ...) from 1 up to the first score, smoothly, to 0 from the second on."""
    left = np.clip((none - score) / (none - full), 0.0, 1.0)
    return np.asarray(left**2 * (3.0 - 2.0 * left))


def share_of_second_stage(
    support: FeatureSupport,
    places: Float[NDArray, "star place"],
    residual: Float[NDArray, " star"],
    mode: Float[NDArray, "star label"],
    sigma: Float[NDArray, "star label"],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(star,) from 1 where the networks have learned to 0 elsewhere; (star, label) from 0 in the sample to 1 at its edge.

    Args:
        support: of the second stage.
        places, residual: as of `make_feature_support`.
        mode, sigma: labels and their errors in the forward posterior, the parallax's part included where it was used.
    """
    score = residual / float(support.residual_reach)
    finite = np.isfinite(places).all(axis=1) & np.isfinite(score)
    distance = np.full(len(places), np.inf)
    if finite.any():
        distance[finite] = neighbour_distance(
            support.points, places[finite] / support.spread, min(NEIGHBOUR, len(support.points))
        )
    away = np.where(finite, np.maximum(distance / float(support.reach), score), np.inf)
    at = among_labels(support, mode, sigma)
    share = np.minimum(_left(away, FULL, NONE), _left(at.distance, FULL_LABELS, NONE_LABELS))
    return share, 1.0 - _left(at.offset, WITHIN, EDGE)
