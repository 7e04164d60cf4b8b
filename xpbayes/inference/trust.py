"""How far a star's row can be trusted: whether it is outside of the model, and whether each parameter is within its errors.

Both are probabilities, of one additive model: ln odds are a sum of functions, one of each of some twenty numbers that a fit
leaves behind, linear between knots and constant beyond. Stars kept aside in training, and sources made to be refused, say
which functions (`training.trust`).

- *Outside of the model*: is the source an ordinary star of the training sample's kinds, or anything else? Against stars
  stand black bodies, white dwarfs, quasars, blends, and labels beyond the training sample's, each seen with the errors of a
  real star. The odds are scaled such that one in a hundred stars kept aside has a probability above a half.
- *Within its errors*: is the published median less than `WITHIN` of its half 68 % intervals off? Of stars with a reliability
  of 0.9, nine in ten are. Where a second source was asked for, that it is there, and what the star then is, counts too.
"""

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks
from xpbayes.device import program
from xpbayes.inference.fit_quality import FitQuality
from xpbayes.inference.recalibration import ln_snr_of, n_channels_of
from xpbayes.inference.support import LabelSupport, extrapolation, held_inside
from xpbayes.models.model_error import ModelError, raw_features
from xpbayes.models.star_model import StarModel

if TYPE_CHECKING:
    from xpbayes.inference.fit import Posteriors

WITHIN = 2.0
"""A parameter within so many half widths of its 68 % interval counts as right."""
LEAST_ERROR = 1e-6
PAIRS = 0.1
"""Share of sources taken for unresolved pairs beforehand, where every flux ratio is as likely: of the stars of a magnitude
that nearly half have a companion, and that three in four of these are too faint to matter (Duchene & Kraus 2013)."""
FARTHEST = 50.0
"""Features are clipped to this: all differences that count are far below."""


class Trust(NamedTuple):
    """What ln odds of outside of the model, and of each parameter within its errors, are the sums of."""

    knots: Float[np.ndarray, "feature knot"]  # rising
    values: Float[np.ndarray, "target feature knot"]  # of the functions; targets are 'outside', labels, E and parallax
    offset: Float[np.ndarray, " target"]  # of the sums

    def probabilities(self, features: Float[NDArray, "star feature"]) -> NDArray[np.float32]:
        """(star, target) probabilities; NaN for a star without features."""
        features = features[:, : len(self.knots)]  # models that were trained before know fewer
        ln_odds = np.broadcast_to(self.offset, (len(features), len(self.offset))).astype(np.float64)
        for x, knots, values in zip(features.T, self.knots, np.moveaxis(self.values, 1, 0), strict=True):
            ln_odds += np.stack([np.interp(x, knots, value) for value in values], axis=1)
        return np.where(np.isfinite(features).all(axis=1)[:, None], expit(ln_odds), np.nan).astype(np.float32)


def with_second_sources(
    probabilities: Float[NDArray, "star target"], published: "Posteriors"
) -> Float[NDArray, "star target"]:
    """Probabilities, as of `Trust`, that also count with a second source, where hypothesis B was compared.

    With the probability of B a parameter is within its errors as often as B's own posterior has it. Parallaxes are
    left: what is published of them is nearer to the measured ones than either hypothesis by itself.
    """
    pair = published.pair
    if pair is None:
        return probabilities
    is_pair = expit(np.asarray(pair.ln_odds, np.float64) + logit(PAIRS))[:, None]
    median, low, high, center, error = (
        np.asarray(v, np.float64)[:, :-1]
        for v in (published.median, published.low, published.high, pair.estimate, pair.error)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        ends = (median + side * WITHIN * half - center for side, half in ((1.0, high - median), (-1.0, median - low)))
        above, below = (ndtr(end / error) for end in ends)
    out, of_labels = probabilities.copy(), probabilities[:, 1:-1]
    known = np.isfinite(is_pair + above - below)
    out[:, 1:-1] = np.where(known, (1.0 - is_pair) * of_labels + is_pair * (above - below), of_labels)
    return out


def feature_names(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Name every feature in order."""
    return (
        *("fit", "rarity", "held_inside", "bluer_than_dustless", "shape", "ln_snr", "ln_prior"),
        *labels,
        "sqrt_E",
        *(f"ln_error_{name}" for name in (*labels, "E", "ln_parallax")),
        *("parallax_tension", "has_parallax", "p_spurious_parallax", "runner_up_share", "fit_times_rarity"),
    )


@program
def _shapes(error: ModelError, stars: Stars) -> jax.Array:
    """(star,) distance of each spectrum's shape from the nearest kind of training star."""

    def one(star: Stars) -> jax.Array:
        own = (raw_features(error.shapes, star) - error.feature_center) / error.feature_scale
        return jax.numpy.sqrt(jax.numpy.min(jax.numpy.sum((own - error.kinds)[:, :-1] ** 2, axis=1)))

    return jax.vmap(one)(stars)


def trust_features(
    model: StarModel,
    support: LabelSupport,
    quality: FitQuality,
    stars: Stars,
    found: "Posteriors",
    *,
    use_parallax: bool,
) -> NDArray[np.float64]:
    """(star, feature) as of `feature_names`, NaN without a solution; stars and posteriors as inference has them."""
    n_labels, n = found.estimate.shape[1] - 2, len(found.estimate)
    if not n:
        return np.zeros((0, 2 * n_labels + 15))
    estimate = np.asarray(found.estimate, np.float64)
    labels, ln_snr = estimate[:, :n_labels], ln_snr_of(stars)
    shape = np.zeros(n) if model.error is None else by_blocks(partial(_shapes, model.error), STAR_BLOCK, stars)
    inverse = np.asarray(stars.parallax_inv_error, np.float64) * use_parallax
    measured = inverse > 0
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        sigma = np.sqrt(np.diagonal(found.laplace, axis1=1, axis2=2)) + LEAST_ERROR
        tension = np.abs(np.asarray(stars.parallax, np.float64) - estimate[:, -1])
        tension = tension / np.hypot(sigma[:, -1], 1.0 / np.where(measured, inverse, 1.0))
        spurious = np.zeros(n) if found.spurious is None else np.where(measured, found.spurious, 0.0)
        columns = [
            quality.deviation(np.asarray(found.chi2, np.float64), n_channels_of(stars), ln_snr),
            extrapolation(support, model.label_prior, labels),
            held_inside(support, model.label_prior, labels, found.covariance[:, :n_labels, :n_labels]),
            -found.unbounded[:, 0] / found.unbounded[:, 1],
            shape,
            ln_snr,
            found.ln_prior,
            *labels.T,
            np.sqrt(estimate[:, -2]),
            *np.log(sigma[:, :-1]).T,
            np.log(sigma[:, -1] / estimate[:, -1]),
            np.where(measured, tension, 0.0),
            measured,
            spurious,
            np.where(np.isnan(found.runner_up_delta), 0.0, np.exp(-0.5 * found.runner_up_delta)),
        ]
        columns.append(columns[0] * columns[1])  # a bad fit says more where stars are rare
    solved = np.isfinite(estimate).all(axis=1) & np.isfinite(found.chi2)
    features = np.clip(np.nan_to_num(np.stack(columns, axis=1).astype(np.float64)), -FARTHEST, FARTHEST)
    return np.where(solved[:, None], features, np.nan)
