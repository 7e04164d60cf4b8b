"""How far outside of the training sample a star is: one score for every star of a catalogue.

Two questions, each scaled so that 0 is the middle of the sample and 1 the place of the one training star in a thousand
that is farthest out: how improbable are the labels under the mixture, and how far are the nearest training stars? The
mixture alone would trust the bridges that its Gaussians build across empty label space, the distance alone a lonely
star with a wrong label. The score is the larger of both: above 1 a result is an extrapolation.

A star beyond the sample does not end there, though: the prior pulls it inside, where nothing tells it from others. So
two more questions are put to its fluxes. What would they say without the prior? A Newton step from the mode, by the
inverse of the Fisher matrix times the gradient of ln p, leads there; where that is beyond the range of the training
labels, the score is the length of the step over `HELD` sigma. And are they bluer than any star without dust can be: E,
were it free to be negative, over as many sigma?
"""

from functools import partial
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray
from scipy.spatial import KDTree

from xpbayes.data.stars import STAR_BLOCK, by_blocks
from xpbayes.device import program
from xpbayes.models.prior import LabelPrior, draw_labels, ln_prior, ln_priors

if TYPE_CHECKING:
    from xpbayes.inference.fit import Posteriors

MAX_SUPPORT = 4096
"""Training stars kept with the model, evenly drawn: enough to see holes of the size of a label's error."""
NEIGHBOUR = 3
"""The distance is to the third nearest: one wrong label is then no support."""
RARE = 1e-3
N_DRAWS = 20_000
HELD = 2.0
"""Sigma: a star of the sample is that far off on one side in 2 % of all cases, and at the sample's edge only."""


class LabelSupport(eqx.Module):
    """Where in label space a model was trained."""

    labels: Float[Array, "star label"]  # training labels [kK, dex, dex, ...]
    scale: Float[Array, " label"]  # unit of distances: half the 16-84 % range of the training labels
    reach: Float[Array, ""]  # distance to the third neighbour that one training star in a thousand exceeds
    ln_typical: Float[Array, ""]  # median and 0.1 % quantile of the mixture's ln density over its own draws
    ln_rare: Float[Array, ""]


def neighbour_distance(
    support: NDArray[np.floating], points: NDArray[np.floating], neighbour: int
) -> NDArray[np.float64]:
    """(point,) distance to the n-th nearest support star, both in units of the scale."""
    distance: NDArray[np.float64] = KDTree(support).query(points, k=[neighbour])[0][:, 0]
    return distance


def make_support(prior: LabelPrior, labels: np.ndarray, scale: np.ndarray, seed: int = 0) -> LabelSupport:
    """Summarise the (star, label) training labels, to which the mixture was fitted, and whose spread is the scale."""
    rng = np.random.default_rng(seed)
    some = labels if len(labels) <= MAX_SUPPORT else labels[np.sort(rng.permutation(len(labels))[:MAX_SUPPORT])]
    kept, unit = jnp.asarray(some, jnp.float32), jnp.asarray(scale, jnp.float32)
    # Each star is its own nearest neighbour, so one more counts.
    neighbour = min(NEIGHBOUR, len(kept) - 1)
    own = neighbour_distance(np.asarray(kept / unit), np.asarray(kept / unit), neighbour + 1)
    density = np.asarray(ln_priors(prior, draw_labels(prior, jax.random.key(seed), N_DRAWS)))
    return LabelSupport(
        labels=kept,
        scale=unit,
        reach=jnp.asarray(np.quantile(own, 1.0 - RARE), jnp.float32),
        ln_typical=jnp.asarray(np.median(density), jnp.float32),
        ln_rare=jnp.asarray(np.quantile(density, RARE), jnp.float32),
    )


def extrapolation(
    support: LabelSupport, prior: LabelPrior, labels: Float[Array, "star label"] | np.ndarray
) -> np.ndarray:
    """(star,) how far outside of the training sample these labels [kK, dex, dex, ...] are; NaN where a label is.

    0 in the middle of the training sample, 1 at its outermost thousandth, more beyond.
    """
    points = np.asarray(labels, dtype=np.float32)
    out = np.full(len(points), np.nan, np.float32)
    finite = np.flatnonzero(np.isfinite(points).all(axis=1))
    if len(finite):
        inside = points[finite]
        rarity = np.asarray(by_blocks(partial(_rarity, prior, support.ln_typical, support.ln_rare), STAR_BLOCK, inside))
        scale, neighbour = np.asarray(support.scale), min(NEIGHBOUR, len(support.labels) - 1)
        distance = neighbour_distance(np.asarray(support.labels) / scale, inside / scale, neighbour)
        out[finite] = np.maximum(np.maximum(rarity, distance / np.asarray(support.reach)), 0.0)
    return out


@program
def _rarity(
    prior: LabelPrior, typical: Array, rare: Array, labels: Float[Array, "star label"]
) -> Float[Array, " star"]:
    return (typical - ln_priors(prior, labels)) / (typical - rare)


_slopes = program(jax.vmap(jax.grad(ln_prior, argnums=1), (None, 0)))


def held_inside(
    support: LabelSupport,
    prior: LabelPrior,
    labels: Float[NDArray, "star label"],
    covariance: Float[NDArray, "star label label"],
) -> NDArray[np.float64]:
    """(star,) by how many sigma the prior holds stars inside that their fluxes alone would place beyond the sample.

    0 where the fluxes alone stay within the range of the training labels; NaN where a label is. The labels are at the
    mode, their covariance is of fluxes and parallax, without the prior.
    """
    slope = np.asarray(by_blocks(partial(_slopes, prior), STAR_BLOCK, np.asarray(labels, np.float32)), np.float64)
    step = -np.einsum("sij,sj->si", covariance, slope)
    low, high = np.quantile(np.asarray(support.labels), (0.5 * RARE, 1.0 - 0.5 * RARE), axis=0)
    alone = labels + step
    beyond = ((alone < low) | (alone > high)).any(axis=1)
    pull = np.sqrt(np.maximum(-np.sum(step * slope, axis=1), 0.0))
    return np.where(np.isfinite(alone).all(axis=1), np.where(beyond, pull, 0.0), np.nan)


def extrapolation_of(support: LabelSupport, prior: LabelPrior, found: "Posteriors") -> NDArray[np.float32]:
    """(star,) score of results of inference, see above: of the labels themselves, and of what held them."""
    if not len(found.estimate):
        return np.zeros(0, np.float32)
    n = found.estimate.shape[1] - 2
    labels = np.asarray(found.estimate[:, :n], np.float64)
    held = held_inside(support, prior, labels, found.covariance[:, :n, :n])
    with np.errstate(invalid="ignore", divide="ignore"):
        bluer = -found.unbounded[:, 0] / found.unbounded[:, 1]
    score = np.maximum(extrapolation(support, prior, labels), np.fmax(held, bluer) / HELD)
    return score.astype(np.float32)
