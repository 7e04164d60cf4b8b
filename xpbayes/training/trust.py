"""Learn whom to trust: from stars kept aside, and from sources made to be refused; see `inference.trust`."""

import logging
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from xpbayes.config import InferenceConfig
from xpbayes.inference.fit import fit_stars
from xpbayes.inference.references import References
from xpbayes.inference.scatter import loosened, scatter_of
from xpbayes.inference.trust import WITHIN, Trust, trust_features
from xpbayes.training.outsiders import outsiders

if TYPE_CHECKING:
    from xpbayes.data.stars import Stars
    from xpbayes.inference.fit import Posteriors
    from xpbayes.inference.recalibration import Calibration
    from xpbayes.inference.support import LabelSupport
    from xpbayes.models.star_model import StarModel

log = logging.getLogger(__name__)

N_EACH = 200
"""Sources of every kind that are made, as far as a sixth of the stars kept aside goes."""
FALSE_ALARMS = 0.01
"""Share of stars kept aside that are taken for sources outside of the model."""
PENALTY = 1.0
"""Of squared values at knots, in units of stars."""
OUTSIDERS_SHARE = {"outside": 0.5, "reliability": 0.01}
"""Weight of all outsiders together over that of stars: as many are to be told apart; few are in a catalogue."""
OUTSIDE = -1.0
"""In the place of a weight: that of a source outside of the model."""


class Case(NamedTuple):
    """Stars kept aside as inference has them, and what is known of them.

    Attributes:
        stars: the stars, as inference saw them.
        found: their posteriors as inference found them.
        published: the same, calibrated or not, as a catalogue would have them.
        use_parallax: whether parallaxes were used.
        known: of labels, E and ln parallax.
    """

    stars: "Stars"
    found: "Posteriors"
    published: "Posteriors"
    use_parallax: bool
    known: References


class Judged(NamedTuple):
    """What is known of published medians, (star, parameter) each.

    Attributes:
        right: within `WITHIN` of their errors, the reference's own taken in.
        weight: how much that tells: little where the reference's error hides the star's; 0 where there is no reference.
    """

    right: NDArray[np.bool_]
    weight: NDArray[np.float64]


def judged(case: Case) -> Judged:
    """Compare published medians of labels, E and ln parallax with what is known of them.

    A parallax that was used is not judged: what is known of it is mostly itself.
    """
    published, known = case.published, case.known
    with np.errstate(invalid="ignore", divide="ignore"):
        median, low, high = (np.array(v, np.float64) for v in (published.median, published.low, published.high))
        for values in (median, low, high):
            values[:, -1] = np.log(values[:, -1])
        variance = np.maximum(known.variance, 0.0)
        half2 = np.where(known.value > median, high - median, median - low) ** 2
        pull2 = (median - known.value) ** 2 / (half2 + variance)
        weight = (half2 / (half2 + variance)) ** 2
    if case.use_parallax:
        weight[:, -1] = 0.0
    there = np.isfinite(pull2) & np.isfinite(weight) & np.isfinite(known.variance)
    return Judged(np.where(there, pull2, np.inf) < WITHIN**2, np.where(there, weight, 0.0))


def learn_trust(
    model: "StarModel",
    support: "LabelSupport",
    calibration: "Calibration",
    wavelength: Float[NDArray, " channel"],
    cases: list[Case],
    seed: int,
) -> Trust | None:
    """Learn from stars kept aside and as many sources made to be refused.

    Args:
        model: the trained model.
        support: where its training labels are.
        calibration: of posteriors, with how well fluxes of ordinary stars are described.
        wavelength: of the channels [nm].
        cases: stars kept aside, with parallaxes used and without.
        seed: of the sources made.

    Returns:
        what was learned; None if how well fluxes are described is not known.
    """
    quality = calibration.fit_quality
    if quality is None:
        return None
    templates = cases[0].stars
    n_each = max(1, min(N_EACH, len(templates) // 6))
    made = _loosened(model, calibration, outsiders(model.forward, support, wavelength, templates, n_each, seed))

    def left_by(stars: "Stars", found: "Posteriors", case: Case) -> NDArray[np.float64]:
        return trust_features(model, support, quality, stars, found, use_parallax=case.use_parallax)

    features, told = [], []
    for case in cases:
        features.append(left_by(case.stars, case.found, case))
        told.append(judged(case))
    for case in cases:
        config = InferenceConfig(n_draws=0, use_parallax=case.use_parallax)
        features.append(left_by(made, fit_stars(model, made, config), case))
        nobody = np.zeros((len(made), told[0].right.shape[1]))
        told.append(Judged(nobody > 0, nobody + OUTSIDE))
    every = np.concatenate(features)
    right, weight = (np.concatenate(values) for values in zip(*told, strict=True))
    solved = np.isfinite(every).all(axis=1)
    every, right, weight = every[solved], right[solved], weight[solved]
    outside = (weight == OUTSIDE).all(axis=1)
    flux_only = np.repeat([not case.use_parallax for case in (*cases, *cases)], [len(rows) for rows in features])
    knots = _knots(every, outside)
    basis = _basis(every, knots)
    offset, values = _fit(basis, outside, np.where(outside, OUTSIDERS_SHARE["outside"] * _ratio(outside), 1.0))
    odds = basis @ values + offset
    fits = [(offset - float(np.quantile(odds[~outside], 1.0 - FALSE_ALARMS)), values)]
    for i in range(right.shape[1]):
        rows = weight[:, i] != 0
        if i == right.shape[1] - 1:  # like the stars that tell of it
            rows &= flux_only[solved]
        share = OUTSIDERS_SHARE["reliability"] * weight[rows & ~outside, i].sum() / max(1, int(np.sum(rows & outside)))
        fits.append(_fit(basis[rows], right[rows, i], np.where(outside, share, weight[:, i])[rows]))
    log.info(
        f"trust learned from {np.sum(~outside)} fits of stars kept aside and {np.sum(outside)} of sources outside of the "
        f"model, {np.mean(odds[outside] - offset + fits[0][0] > 0):.0%} of which are recognised"
    )
    shape = (len(fits), *knots.shape)
    return Trust(
        knots.astype(np.float32),
        np.concatenate([v for _, v in fits]).reshape(shape).astype(np.float32),
        np.array([o for o, _ in fits], np.float32),
    )


def _loosened(model: "StarModel", calibration: "Calibration", stars: "Stars") -> "Stars":
    if calibration.scatter is None or model.error is None:
        return stars
    return loosened(stars, scatter_of(calibration.scatter, model.error, stars))


def _ratio(outside: NDArray[np.bool_]) -> float:
    return int(np.sum(~outside)) / max(1, int(np.sum(outside)))


def _knots(features: NDArray[np.float64], outside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(feature, knot) rising, where stars are and where what is outside."""
    stars, others = features[~outside], features[outside]
    levels = [0.0, 0.02, 0.25, 0.5, 0.75, 0.98, 1.0]
    found = np.sort(
        np.concatenate([np.quantile(stars, levels, axis=0), np.quantile(others, (0.1, 0.5, 0.9), axis=0)]), 0
    )
    found = found.T
    gap = 1e-4 * (1.0 + np.abs(found).max(axis=1, keepdims=True))  # what is all but constant needs knots as well
    return np.maximum.accumulate(found, axis=1) + gap * np.arange(found.shape[1])


def _basis(features: NDArray[np.float64], knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """(star, feature x knot) functions that are one at one knot and nought at the others."""
    unit = np.eye(knots.shape[1])
    return np.concatenate(
        [np.stack([np.interp(x, at, one) for one in unit], axis=1) for x, at in zip(features.T, knots, strict=True)],
        axis=1,
    )


def _fit(
    basis: NDArray[np.float64], target: NDArray[np.bool_], weight: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Offset and values of one additive model of ln odds."""
    from sklearn.linear_model import LogisticRegression

    n_right = int(np.count_nonzero(target))
    if n_right in (0, len(target)):
        odds = (n_right + 0.5) / (len(target) - n_right + 0.5)
        return float(np.log(odds)), np.zeros(basis.shape[1])
    found = LogisticRegression(C=1.0 / PENALTY, max_iter=2000).fit(basis, target, sample_weight=weight)
    return float(found.intercept_[0]), found.coef_[0]
