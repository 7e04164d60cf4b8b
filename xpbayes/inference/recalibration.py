"""Calibrate posterior summaries of labels on stars with labels that training never saw.

The model error is learned from residuals of stars at their own labels. How well labels come out when they are sought it
cannot show: training stars are fitted better than others, a kind's mean covariance is not each star's, and flat priors
in E and parallax push the labels of most stars the same way. So stars kept aside are inferred as any star is, and for
every kind of star two numbers per label are read off: the median of (posterior median - label), and the factor by which
posteriors must be stretched about their median for 68 % of labels to lie within 68 % intervals, the labels' own errors
included; cross-validation widens all of them by what such a fit promises too much. A star's posterior of a label is then

    label = median - offset + stretch * t * (draw - median),

with t the amplitude of a Student t of `DOF` degrees of freedom: pulls of real labels have such tails. Kinds are regions
in (labels, ln S/N), as inferred. After Kuleshov, Fenner & Ermon (2018), who recalibrate regressions on held-out data.
Modes, E and parallax, Fisher's and Laplace's covariances stay as the posterior has them.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks
from xpbayes.models.model_error import mean_ln_snr

if TYPE_CHECKING:
    from xpbayes.inference.fit import Posteriors

DOF = 4.0
INNER = float(stats.t.ppf(stats.norm.cdf(1.0), DOF))
"""Half the 68 % interval of a Student t in units of its scale."""
SPREAD = float(np.sqrt(DOF / (DOF - 2.0)))
"""Its standard deviation likewise."""
WITHIN_ONE_SIGMA = 0.6827
LN_SNR_UNIT = 0.3
"""Kinds are told apart by this much in ln S/N as by half the 16-84 % range of a training label."""
MAX_KINDS, MIN_STARS_PER_KIND = 16, 100
WIDTH = 0.7
"""Kinds pass into each other over this part of the median distance to the second nearest."""
PRIOR_STARS = 30.0
"""A kind's numbers are drawn towards those of all stars with the weight of so many."""
N_ROUNDS, DAMPING = 25, 0.7
N_FOLDS = 5
"""Stars that a calibration was fitted to lie within its intervals by construction, others 1 to 2 % less often; what it
says of stars left out shows by how much."""
MIN_RATIO = 0.2
"""A label within its own error needs no width at all; one round narrows a kind by this factor at most."""


@dataclass(frozen=True)
class LabelCalibration:
    """What is wrong with posteriors of labels, by kind of star.

    Attributes:
        scale: (label + 1,) units of the features, (labels, ln S/N).
        kinds: (kind, label + 1) centres, in those units.
        width: () over which kinds pass into each other.
        offset: (kind, label) of posterior medians [kK, dex, dex, ...].
        stretch: (kind, label) of posteriors about their medians.
    """

    scale: Float[np.ndarray, " label+1"]
    kinds: Float[np.ndarray, "kind label+1"]
    width: Float[np.ndarray, ""]
    offset: Float[np.ndarray, "kind label"]
    stretch: Float[np.ndarray, "kind label"]


_mean_ln_snr = jax.jit(jax.vmap(mean_ln_snr))


def ln_snr_of(stars: Stars) -> NDArray[np.float64]:
    """(star,) mean ln S/N of the channels, as measured."""
    return np.asarray(by_blocks(_mean_ln_snr, STAR_BLOCK, stars) if len(stars) else [], np.float64)


def _weights(features: NDArray, kinds: NDArray, width: float) -> NDArray[np.float64]:
    """(star, kind) how much a star belongs to every kind."""
    distance2 = np.sum((features[:, None] - kinds) ** 2, axis=2)
    weight = np.exp(-0.5 * (distance2 - distance2.min(axis=1, keepdims=True)) / width**2)
    return weight / weight.sum(axis=1, keepdims=True)


def _weighted_quantile(values: NDArray, weight: NDArray, level: float) -> float:
    order = np.argsort(values)
    cumulative = np.cumsum(weight[order])
    return float(np.interp(level * cumulative[-1], cumulative - 0.5 * weight[order], values[order]))


def fit_calibration(
    median: Float[NDArray, "star label"],
    half: Float[NDArray, "star label"],
    ln_snr: Float[NDArray, " star"],
    labels: Float[NDArray, "star label"],
    label_error: Float[NDArray, "star label"],
    label_scale: Float[NDArray, " label"],
) -> LabelCalibration | None:
    """Measure offsets and stretches.

    Args:
        median, half: of the posteriors; half the way from their 16 to their 84 % quantile; stars with 0 anywhere are
            not used.
        ln_snr: mean ln S/N of the stars' channels.
        labels, label_error: what is known of the same stars; stars with an infinite error anywhere are not used.
        label_scale: units in which labels tell kinds apart.

    Returns:
        the calibration; None if fewer than `MIN_STARS_PER_KIND` stars can be used.
    """
    sound = np.asarray(np.all(np.isfinite(np.concatenate([median, half, label_error], axis=1)), axis=1))
    sound &= np.all(half > 0, axis=1)  # one draw may have all the weight
    if sound.sum() < MIN_STARS_PER_KIND:
        return None
    known = _Known(*(np.asarray(v[sound], np.float64) for v in (median, half, ln_snr, labels, label_error)))
    found = _fit(known, label_scale)
    fold = np.arange(len(known.median)) % N_FOLDS
    if np.sum(fold != 0) < MIN_STARS_PER_KIND:
        return found
    needed = np.empty_like(known.median)
    for left_out in range(N_FOLDS):
        others = _fit(_Known(*(v[fold != left_out] for v in known)), label_scale)
        seen = _Known(*(v[fold == left_out] for v in known))
        offset, stretch = _at(others, seen.median, seen.ln_snr)
        needed[fold == left_out] = _needed_stretch(seen, offset) / stretch
    return replace(found, stretch=found.stretch * np.quantile(needed, WITHIN_ONE_SIGMA, axis=0).astype(np.float32))


class _Known(NamedTuple):
    """Stars with labels as inference has them, and their labels."""

    median: NDArray[np.float64]
    half: NDArray[np.float64]
    ln_snr: NDArray[np.float64]
    labels: NDArray[np.float64]
    label_error: NDArray[np.float64]


def _needed_stretch(known: _Known, offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """(star, label) by how much a posterior must be stretched for its 68 % interval to end at the label."""
    distance2 = (known.median - known.labels - offset) ** 2 - known.label_error**2
    return np.sqrt(np.maximum(distance2, 0.0)) / (INNER * known.half)


def _at(
    calibration: LabelCalibration, median: NDArray[np.float64], ln_snr: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(star, label) offset and stretch."""
    features = np.column_stack([median, ln_snr]) / calibration.scale
    weight = _weights(features, calibration.kinds, float(calibration.width))
    return weight @ calibration.offset, weight @ calibration.stretch


def _fit(known: _Known, label_scale: NDArray[np.floating]) -> LabelCalibration:
    from sklearn.cluster import KMeans

    residual = known.median - known.labels
    scale = np.append(label_scale, LN_SNR_UNIT)
    features = np.column_stack([known.median, known.ln_snr]) / scale
    n_kinds = int(np.clip(len(features) // MIN_STARS_PER_KIND, 1, MAX_KINDS))
    kinds = KMeans(n_kinds, n_init=4, random_state=0).fit(features).cluster_centers_
    distance = np.sort(np.linalg.norm(features[:, None] - kinds, axis=2), axis=1)
    width = max(WIDTH * float(np.median(distance[:, min(1, n_kinds - 1)])), 1e-6)
    weight = _weights(features, kinds, width)
    pooled = weight + PRIOR_STARS / len(features)
    offset, stretch = np.zeros((n_kinds, residual.shape[1])), np.ones((n_kinds, residual.shape[1]))
    places = [(k, i) for k in range(n_kinds) for i in range(residual.shape[1])]
    for _ in range(N_ROUNDS):
        left = residual - weight @ offset
        offset += DAMPING * np.array([_weighted_quantile(left[:, i], pooled[:, k], 0.5) for k, i in places]).reshape(
            offset.shape
        )
        needed = _needed_stretch(known, weight @ offset) / (weight @ stretch)
        ratio = [_weighted_quantile(needed[:, i], pooled[:, k], WITHIN_ONE_SIGMA) for k, i in places]
        stretch *= np.maximum(np.reshape(ratio, stretch.shape), MIN_RATIO) ** DAMPING
    return LabelCalibration(*(np.asarray(v, np.float32) for v in (scale, kinds, width, offset, stretch)))


def recalibrated(found: "Posteriors", calibration: LabelCalibration, ln_snr: Float[NDArray, " star"]) -> "Posteriors":
    """Posterior summaries of labels as the calibration has them; everything else as it was.

    Args:
        found: results of inference.
        calibration: offsets and stretches.
        ln_snr: (star,) mean ln S/N of the stars' channels.
    """
    n = calibration.offset.shape[1]
    median = np.asarray(found.median[:, :n], np.float64)
    known = np.isfinite(median[:, :1])
    offset, stretch = _at(calibration, np.where(known, median, 0.0), np.where(known[:, 0], ln_snr, 0.0))

    def with_labels(values: NDArray[np.float32], labels: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.concatenate([labels.astype(np.float32), values[:, n:]], axis=1)

    return replace(
        found,
        median=with_labels(found.median, median - offset),
        mean=with_labels(found.mean, median - offset + stretch * (found.mean[:, :n] - median)),
        std=with_labels(found.std, SPREAD * stretch * found.std[:, :n]),
        low=with_labels(found.low, median - offset - INNER * stretch * (median - found.low[:, :n])),
        high=with_labels(found.high, median - offset + INNER * stretch * (found.high[:, :n] - median)),
    )
