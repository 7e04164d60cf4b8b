"""How far refined labels go from the forward posterior, and how wide they are: what stars kept aside bear out, by kind.

The second stage's answer and the forward posterior's err in part apart from each other, so that a place on the line
through both is better than either (Breiman 1996, stacked regressions): label by label

    median = forward + weight (refined - forward).

Where a kind of star does better without the second stage its weight is small, where the second stage is too timid it is
above 1. Members of the ensemble differ where noise of labels is what they learned: in a kind where a share q of what labels
moved is their disagreement, a - c q of the way is expected to be best, with one a and c of all stars. Weights of kinds are
found by robust least squares, drawn towards that, and lowered by one standard error: what few stars or poor labels do not
show is not believed. A star that moved beyond its errors counts as if it had moved by these: a wrong optimum, which the
second stage mends, tells nothing of small moves (Mallows 1975). Widths are the geometric mean of both with that weight,
times the stretch by which 68 % of the labels of stars kept aside lie within; narrower only as far as labels are good enough
to tell.

Before that, `held_back`: at the edge of the sample a refined answer that is less certain than the forward posterior has no
more say than the ratio of their variances. Its networks know one side of the edge alone, and draw stars from beyond it in.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from xpbayes.inference.recalibration import (
    MIN_STARS_PER_KIND,
    PRIOR_STARS,
    Known,
    find_kinds,
    fit_and_widen,
    kind_weights,
)

MAX_KINDS, WIDTH = 24, 0.4
"""More kinds than forward posteriors are calibrated by, and narrower ones: intervals are to hold by S/N and by gravity."""
FINER_SNR = 2.0
"""Kinds are told apart in ln S/N by this much more than in labels, all of them in units of the training stars' spread."""
MAX_WEIGHT = 1.25
UNJUDGED = 0.5
"""Weight where a parallax was used and no star kept aside has one: halfway, which loses next to nothing if either is bad."""
OUTLYING = 1.5
"""Sigma from which a star's pull on the weights does not grow any more (Huber 1964)."""
N_ROUNDS = 20
STARS_PER_KIND, KINDS_DIFFER = 100.0, 0.15
"""A kind's weights are drawn towards what its networks' disagreement lets expect with the weight of so many stars, but where
labels are good enough to show it they may differ by about so much."""
FAR = 5.0
"""Moves and disagreements beyond so many times their medians count as that far."""


class Refined(NamedTuple):
    """Refined labels of stars, NaN where a star has no mode."""

    # (star, label) median, 16 and 84 % quantiles and standard deviation [kK, dex, dex, ...]
    median: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    std: NDArray[np.float64]
    covariance: NDArray[np.float64]  # (star, label, label)
    share: NDArray[np.float64]  # (star,) of the second stage in it; what is left to 1 is the forward posterior's


class Adjustments(NamedTuple):
    """What stars kept aside say of refined labels, by kind of star."""

    scale: Float[np.ndarray, " label+1"]  # units of labels at the mode and ln S/N, by which kinds are told apart
    kinds: Float[np.ndarray, "kind label+1"]  # centres, in those units
    width: Float[np.ndarray, ""]  # over which kinds pass into each other
    weight: Float[np.ndarray, "kind label"]  # of the second stage against the forward posterior
    stretch: Float[np.ndarray, "kind label"]  # of what comes out

    def at(self, places: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weight and stretch, (star, label) each, of stars at places as of `features.places_of`."""
        kind = kind_weights(_without_dust(places) / self.scale, self.kinds, float(self.width))
        return kind @ np.asarray(self.weight, np.float64), kind @ np.asarray(self.stretch, np.float64)


def _without_dust(places: NDArray[np.floating]) -> NDArray[np.float64]:
    """Labels and ln S/N of places, or of their units."""
    return np.delete(np.asarray(places, np.float64), -2, axis=-1)


class Interval(NamedTuple):
    """An answer: (star, label) medians, and halves of the 68 % intervals."""

    median: NDArray[np.float64]
    half: NDArray[np.float64]


def between(forward: Interval, refined: Interval, weight: NDArray[np.float64]) -> Interval:
    """From the forward posterior's answer at weight 0 to the refined one at 1, and beyond."""
    median = forward.median + weight * (refined.median - forward.median)
    return Interval(median, forward.half * (refined.half / forward.half) ** np.minimum(weight, 1.0))


def held_back(of: Refined, forward: Interval, edge: NDArray[np.float64]) -> Refined:
    """Refined labels less certain than the forward posterior, nearer to it where `edge` is 1: at the sample's edge."""
    say = np.minimum(1.0, 2.0 * forward.half / (of.high - of.low)) ** (2.0 * edge)
    back = (1.0 - say) * (forward.median - of.median)
    return of._replace(median=of.median + back, low=of.low + back, high=of.high + back)


def adjusted(of: Refined, forward: Interval, weight: NDArray[np.float64], stretch: NDArray[np.float64]) -> Refined:
    """Refined labels as stars kept aside bear them out; where they are the forward posterior's they stay."""
    plain = Interval(of.median, 0.5 * (of.high - of.low))
    new = between(forward, plain, weight)
    factor = new.half / plain.half * stretch ** of.share[:, None]
    return of._replace(
        median=new.median,
        low=new.median - factor * (of.median - of.low),
        high=new.median + factor * (of.high - of.median),
        std=factor * of.std,
        covariance=factor[:, :, None] * factor[:, None, :] * of.covariance,
    )


def fit_adjustments(
    places: NDArray[np.float64],
    spread: NDArray[np.floating],
    forward: Interval,
    refined: Interval,
    apart: NDArray[np.float64],
    labels: NDArray[np.float64],
    error: NDArray[np.float64],
) -> Adjustments | None:
    """Find weights and stretches, of stars at places as of `features.places_of`; None if they are too few.

    `spread` is that of training stars in these; `apart`, (star, label), by how much the networks' means scatter; labels
    are measured.
    """
    if len(places) < MIN_STARS_PER_KIND:
        return None
    scale = _without_dust(spread)
    scale[-1] /= FINER_SNR
    where = _without_dust(places) / scale
    kinds, width = find_kinds(where, MAX_KINDS, WIDTH)
    kind = kind_weights(where, kinds, width)
    sigma = np.hypot(forward.half, error)
    moved = refined.median - forward.median
    noise = kind.T @ np.minimum(apart, FAR * np.median(apart, axis=0)) ** 2
    noise /= np.maximum(kind.T @ np.minimum(np.abs(moved), FAR * np.median(np.abs(moved), axis=0)) ** 2, 1e-30)
    per_label = zip((labels - forward.median).T, moved.T, sigma.T, noise.T, strict=True)
    weight = np.stack([_weights(wanted / s, m / s, kind, of_label) for wanted, m, s, of_label in per_label], axis=1)
    new = between(forward, refined, kind @ weight)
    known = Known(new.median - labels, new.half, error**2, np.ones_like(labels))
    stretch = fit_and_widen(known, kind, shifted=False).stretch
    told = kind.T @ known.told(kind @ stretch) / kind.sum(axis=0)[:, None]
    stretch = np.where(stretch < 1.0, stretch**told, stretch)
    return Adjustments(*(np.asarray(v, np.float32) for v in (scale, kinds, width, weight, stretch)))


def _weights(
    wanted: NDArray[np.float64], moved: NDArray[np.float64], kind: NDArray[np.float64], noise: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(kind,) weights of one label, from how far to go, `wanted`, and how far it moved, (star,) each over their errors.

    `kind` says how much a star belongs to each, `noise` what share of what it moved is the networks' own, as they
    disagree.
    """
    counts = 1.0 / np.maximum(np.abs(moved), 1.0)
    of_all = moved[:, None] * np.column_stack([np.ones(len(moved)), -(kind @ noise)])
    tied = np.mean(moved**2) * np.array([1.0, PRIOR_STARS * np.mean((kind @ noise) ** 2)]) + 1e-12
    common = _robust(of_all, wanted, counts, np.ones(2), tied)[0]
    if common[1] < 0:
        common = np.append(_robust(of_all[:, :1], wanted, counts, np.ones(1), tied[:1])[0], 0.0)
    expected = np.clip(common[0] - common[1] * noise, 0.0, MAX_WEIGHT)
    tied = np.minimum(STARS_PER_KIND * (kind.T @ moved**2) / kind.sum(axis=0), KINDS_DIFFER**-2)
    of_kinds, error = _robust(kind * moved[:, None], wanted, counts, expected, tied)
    return np.asarray(np.clip(of_kinds - error, 0.0, MAX_WEIGHT))


def _robust(
    x: NDArray[np.float64],
    wanted: NDArray[np.float64],
    counts: NDArray[np.float64],
    expected: NDArray[np.float64],
    prior: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(regressor,) Huber's slopes of what is wanted, over its error, on `x`, drawn to what is expected; their errors.

    `counts` say how much each star counts, `prior` the precision of what is expected.
    """

    def trust(left: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.minimum(1.0, OUTLYING / np.maximum(np.abs(left), OUTLYING))

    slope = expected
    for _ in range(N_ROUNDS):
        weight = counts * trust(wanted - x @ slope)
        inverse = np.linalg.inv((x * weight[:, None]).T @ x + np.diag(prior))
        slope = inverse @ (x.T @ (weight * wanted) + prior * expected)
    left = wanted - x @ slope
    spread = np.average((trust(left) * left) ** 2, weights=counts)
    return slope, np.sqrt(spread * np.diag(inverse))
