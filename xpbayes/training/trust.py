"""Learn whom to trust: from stars kept aside, and from sources made to be refused; see `inference.trust`."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import norm

from xpbayes.config import InferenceConfig
from xpbayes.data.stars import rows_of_each
from xpbayes.inference.fit import Inferred, fit_stars
from xpbayes.inference.recalibration import recalibrated
from xpbayes.inference.references import References, measured
from xpbayes.inference.scatter import loosened, settled
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
N_ALTERED, MOST_NOISE = 1000, 5.0
"""Parallaxes of so many stars kept aside, at most, are made poorer: errors of 1 to so many times those measured are added,
evenly in their logarithm."""
FARTHEST_PULL, LEAST_SPREAD = 20.0, 0.1
"""Differences are clipped to this, and no reference is better than that, in units of medians' errors."""
_CORE, _WINGS = np.arange(0.05, WITHIN, 0.1), WITHIN * np.exp(np.arange(0.0125, np.log(FARTHEST_PULL / WITHIN), 0.025))
PULLS = np.concatenate([_CORE, _WINGS])
"""Errors of medians in their own units: those within follow a Gaussian, density beyond falls with the square."""
PULL_SHARES = np.concatenate([norm.pdf(_CORE) / norm.pdf(_CORE).sum(), 1.0 / _WINGS / (1.0 / _WINGS).sum()])


class Case(NamedTuple):
    """Stars kept aside as inference saw them, and what is known of their labels, E and ln parallax."""

    stars: "Stars"
    found: "Posteriors"  # their posteriors as inference found them
    published: "Posteriors"  # the same, calibrated or not, as a catalogue would have them
    use_parallax: bool  # whether parallaxes were used
    known: References

    @property
    def inferred(self) -> Inferred:
        """Without what is known of them."""
        return Inferred(*self[:4])


class Evidence(NamedTuple):
    """What is known of published medians, (row, parameter) each."""

    # Likelihoods of what is known if the median is within `WITHIN` of its errors, and if it is not; equal where nothing
    # is known
    right: NDArray[np.float64]
    wrong: NDArray[np.float64]
    weight: NDArray[np.float64]  # of the row


def judged(case: Case, *, parallax: bool = False) -> Evidence:
    """Compare published medians of labels, E and ln parallax with what is known of them, whose errors are deconvolved.

    Parallaxes that were used are judged if asked only; else what is known of them is mostly themselves.
    """
    published, known = case.published, case.known
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        median, low, high = (np.array(v, np.float64) for v in (published.median, published.low, published.high))
        for values in (median, low, high):
            values[:, -1] = np.log(values[:, -1])
        half = np.where(known.value > median, high - median, median - low)
        pull = np.abs(median - known.value) / half
        spread2 = np.maximum(known.variance - known.shared, 0.0) / half**2
    there = np.isfinite(pull) & np.isfinite(spread2)
    there[:, -1] &= parallax or not case.use_parallax
    difference = np.where(there, np.minimum(pull, FARTHEST_PULL), 0.0)
    spread = np.sqrt(np.where(there, spread2, 1.0) + LEAST_SPREAD**2)
    right, wrong = np.zeros_like(difference), np.zeros_like(difference)
    for z, share, wide in zip(PULLS, PULL_SHARES, PULLS > WITHIN, strict=True):
        near = share * (norm.pdf((difference - z) / spread) + norm.pdf((difference + z) / spread))
        (wrong if wide else right)[...] += near
    known = there & (right + wrong > 0)
    return Evidence(np.where(known, right, 1.0), np.where(known, wrong, 1.0), known.astype(np.float64))


def learn_trust(
    model: "StarModel",
    support: "LabelSupport",
    calibration: "Calibration",
    wavelength: Float[NDArray, " channel"],
    cases: list[Case],
    seed: int,
    feh_and_logg: tuple[int, int] | None = None,
) -> Trust | None:
    """Learn from stars kept aside, from the same altered, and from as many sources made to be refused.

    Args:
        model: the trained model.
        support: where its training labels are.
        calibration: of posteriors, with how well fluxes of ordinary stars are described; None comes back without.
        wavelength: of the channels [nm].
        cases: stars kept aside as measured, without their parallaxes, and those that have one with it.
        seed: of what is made and altered.
        feh_and_logg: as of `outsiders`.
    """
    quality = calibration.fit_quality
    if quality is None:
        return None
    templates = cases[0].stars
    n_each = max(1, min(N_EACH, len(templates) // 6))
    made = outsiders(model.forward, support, wavelength, templates, n_each, seed, feh_and_logg)
    made = loosened(made, _scatter(model, calibration, made))

    def left_by(stars: "Stars", found: "Posteriors", use_parallax: bool) -> NDArray[np.float64]:
        return trust_features(model, support, quality, stars, found, use_parallax=use_parallax)

    lessons = [
        Lesson(left_by(*case[:2], case.use_parallax), judged(case), case.use_parallax, "as measured") for case in cases
    ]
    if len(cases) > 1:
        case = _with_poorer_parallaxes(model, calibration, cases[0], np.random.default_rng(seed))
        told = judged(case, parallax=True)
        lessons.append(Lesson(left_by(*case[:2], case.use_parallax), told, case.use_parallax, "altered"))
    nobody = np.zeros((len(made), cases[0].known.value.shape[1]))
    for use_parallax in (case.use_parallax for case in cases):
        config = InferenceConfig(n_draws=0, use_parallax=use_parallax)
        features = left_by(made, fit_stars(model, made, config), use_parallax)
        lessons.append(Lesson(features, Evidence(nobody, nobody + 1.0, nobody + 1.0), use_parallax, "outside"))
    return _learned(lessons)


class Lesson(NamedTuple):
    """Rows (row, feature) to learn from, and what is told of them: stars kept aside, or sources outside the model."""

    features: NDArray[np.float64]
    told: Evidence
    use_parallax: bool
    kind: Literal["as measured", "altered", "outside"]


def _learned(lessons: list[Lesson]) -> Trust:
    """Fit the functions of every target."""
    every, sizes = np.concatenate([lesson.features for lesson in lessons]), [len(lesson.features) for lesson in lessons]
    solved = np.isfinite(every).all(axis=1)

    def of_rows(of_lesson: list[bool]) -> NDArray[np.bool_]:
        return np.repeat(of_lesson, sizes)[solved]

    outside, as_measured = (of_rows([lesson.kind == kind for lesson in lessons]) for kind in ("outside", "as measured"))
    flux_only = of_rows([not lesson.use_parallax for lesson in lessons])
    every = every[solved]
    right, wrong, weight = (np.concatenate(v)[solved] for v in zip(*(lesson.told for lesson in lessons), strict=True))
    either = as_measured | outside
    knots = _knots(every[either], outside[either])
    basis = _basis(every, knots)
    share = np.where(outside, OUTSIDERS_SHARE["outside"] * as_measured.sum() / max(1, int(outside.sum())), 1.0)
    offset, values = _fit(
        basis[either], outside[either].astype(np.float64), as_measured[either].astype(np.float64), share[either]
    )
    odds = basis @ values + offset
    fits = [(offset - float(np.quantile(odds[as_measured], 1.0 - FALSE_ALARMS)), values)]
    for i in range(right.shape[1]):
        rows = weight[:, i] > 0
        if i == right.shape[1] - 1:  # like the stars that tell of it
            rows &= flux_only | ~outside
        stars, others = weight[rows & ~outside, i].sum(), int(np.sum(rows & outside))
        each = np.where(outside, OUTSIDERS_SHARE["reliability"] * stars / max(1, others), weight[:, i])
        fits.append(_fit(basis[rows], right[rows, i], wrong[rows, i], each[rows]))
    log.info(
        f"trust learned from {as_measured.sum()} fits of stars kept aside and {outside.sum()} of sources outside of "
        f"the model, {np.mean(odds[outside] - offset + fits[0][0] > 0):.0%} of which are recognised"
    )
    shape = (len(fits), *knots.shape)
    return Trust(
        knots.astype(np.float32),
        np.concatenate([v for _, v in fits]).reshape(shape).astype(np.float32),
        np.array([o for o, _ in fits], np.float32),
    )


def _with_poorer_parallaxes(
    model: "StarModel", calibration: "Calibration", whole: Case, random: np.random.Generator
) -> Case:
    """Stars with poorer parallaxes as inference and a catalogue have them: what is true is nearly known."""
    with_one = np.flatnonzero(np.asarray(whole.stars.parallax_inv_error) > 0)
    some = with_one[random.permutation(len(with_one))[:N_ALTERED]]
    before = rows_of_each(whole.stars, some)
    stars = with_poorer_parallaxes(before, random)
    scatter = _scatter(model, calibration, stars)
    looked_at = loosened(stars, scatter)
    found = fit_stars(model, looked_at, InferenceConfig())
    published = settled(found, stars, scatter, use_parallax=True)
    published = recalibrated(published, calibration, stars, use_parallax=True)
    known = whole.known.take(some)
    # What is known was part of what is judged, which is drawn to it by the square of one error over the other.
    value, error = (of_both[:, 1] for of_both in measured(before))
    half = 0.5 * (published.high - published.low)[:, -1].astype(np.float64)
    drawn = np.clip((half * np.asarray(stars.parallax_inv_error, np.float64)) ** 2, 0.0, 0.5)
    known.value[:, -1], known.variance[:, -1] = value, error**2 * np.maximum(1.0 - 2.0 * drawn, LEAST_SPREAD**2)
    known.shared[:, -1] = 0.0
    return Case(looked_at, found, published, use_parallax=True, known=known)


def with_poorer_parallaxes(stars: "Stars", random: np.random.Generator) -> "Stars":
    """Stars whose parallaxes were measured with larger errors, and are spurious as often as they are taken to be."""
    n, inverse = len(stars), np.asarray(stars.parallax_inv_error, np.float64)
    noise = np.exp(random.uniform(0.0, np.log(MOST_NOISE), n))
    wider = np.hypot(1.0, noise)
    if stars.doubt is not None:
        spurious = random.random(n) < np.asarray(stars.doubt.prior)
        noise = np.where(spurious, wider / np.asarray(stars.doubt.narrowing), noise)
    error = np.where(inverse > 0, 1.0 / np.where(inverse > 0, inverse, 1.0), 0.0)
    parallax = np.asarray(stars.parallax, np.float64) + error * noise * random.standard_normal(n)
    return replace(
        stars,
        parallax=jnp.asarray(parallax, jnp.float32),
        parallax_inv_error=jnp.asarray(inverse / wider, jnp.float32),
    )


def _scatter(model: "StarModel", calibration: "Calibration", stars: "Stars") -> NDArray[np.float64]:
    """(star, 2) scatter of E and ln parallax; 0 if the model does not know."""
    known = calibration.scatter_of(model.error, stars)
    return np.zeros((len(stars), 2)) if known is None else known


def _knots(features: NDArray[np.float64], outside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(feature, knot) rising, where stars are and where what is outside."""
    stars, others = features[~outside], features[outside]
    levels = [0.0, 0.02, 0.25, 0.5, 0.75, 0.98, 1.0]
    both = np.concatenate([np.quantile(stars, levels, axis=0), np.quantile(others, (0.1, 0.5, 0.9), axis=0)])
    found = np.sort(both, axis=0).T
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
    basis: NDArray[np.float64],
    right: NDArray[np.float64],
    wrong: NDArray[np.float64],
    weight: NDArray[np.float64],
) -> tuple[float, NDArray[np.float64]]:
    """Offset and values of one additive model of ln odds, from likelihoods of what is known in either case."""
    total = float(weight.sum())
    chance = float(np.clip(np.sum(weight * right / (right + wrong)) / max(total, 1.0), 0.01, 0.99))
    first = np.append(logit(chance), np.zeros(basis.shape[1]))

    def loss(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        share = expit(x[0] + basis @ x[1:])
        likelihood = share * right + (1.0 - share) * wrong
        slope = weight * share * (1.0 - share) * (wrong - right) / likelihood
        value = -np.sum(weight * np.log(likelihood)) + 0.5 * PENALTY * np.sum(x[1:] ** 2)
        return float(value), np.append(slope.sum(), basis.T @ slope + PENALTY * x[1:])

    found = minimize(loss, first, jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
    return float(found[0]), found[1:]
