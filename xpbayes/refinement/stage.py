"""Make a second stage: infer labelled stars blind, learn, and calibrate on stars that neither stage learned from."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xpbayes.config import InferenceConfig, RefinementConfig
from xpbayes.data.stars import Stars, in_memory
from xpbayes.inference.fit import Inferred, fit_stars
from xpbayes.models.star_model import StarModel
from xpbayes.refinement.adjusting import Adjustments, Interval, fit_adjustments
from xpbayes.refinement.copies import copies
from xpbayes.refinement.features import flux_only, places_of, relative_residuals, star_features
from xpbayes.refinement.learning import Lessons, learn
from xpbayes.refinement.networks import residual_size
from xpbayes.refinement.refined import SecondStage, answers
from xpbayes.refinement.support import make_feature_support

log = logging.getLogger(__name__)

BLIND = InferenceConfig(use_parallax=False, n_draws=0)
"""How labelled stars are inferred: as a catalogue's are, without draws, which the networks do not look at."""
AT_ONCE = 8192
"""Stars that are inferred together: what they leave behind is small."""
TYPICAL = 68.0
"""Percentile of a channel's relative residuals that is their unit."""


def lessons_of(
    model: StarModel, stars: Stars, n_xp: int, scale: NDArray[np.floating] | None = None
) -> tuple[Lessons, NDArray[np.floating]]:
    """What stars with labels teach, inferred blind, and the unit of relative residuals: `scale`, of these stars if None."""
    found = fit_stars(model, stars, BLIND)
    n = model.forward.n_labels
    fit = flux_only(model, stars, found, use_parallax=False)
    ratio = relative_residuals(model.forward, stars, fit.optimum)
    if scale is None:
        known = np.where(np.isfinite(ratio).any(axis=0), ratio, 1.0)
        scale = np.maximum(np.nanpercentile(np.abs(known), TYPICAL, axis=0), 1e-4).astype(np.float32)
    features = star_features(stars, fit, ratio, scale, n_xp)
    labels, error = labels_of(stars)
    offset = labels - fit.mode[:, :n]
    offset[~found.converged] = np.nan
    return Lessons(features, offset, error, fit.sigma[:, :n]), scale


def learn_second_stage(model: StarModel, stars: Stars, n_xp: int, config: RefinementConfig) -> SecondStage | None:
    """Train a second stage on labelled stars, in memory or in files, not calibrated yet; None if they are too few."""
    if len(stars) < config.min_stars:
        log.info(f"no second stage: {len(stars)} training stars are fewer than {config.min_stars}")
        return None
    rng = np.random.default_rng(config.seed)
    rows = np.sort(rng.permutation(len(stars))[: config.max_stars])
    scale: NDArray[np.floating] | None = None
    n_copies, parts = config.copies_for(len(rows)), []
    for begin in range(0, len(rows), AT_ONCE):
        some = in_memory(stars, rows[begin : begin + AT_ONCE])
        for these in (some, *(copies(model.forward, some, n_xp, rng) for _ in range(n_copies))):
            part, scale = lessons_of(model, these, n_xp, scale)
            parts.append(part)
        log.info(f"second stage: inferred {min(begin + AT_ONCE, len(rows))} of {len(rows)} training stars, blind")
    assert scale is not None
    known = in_memory(stars, rows)
    lessons = Lessons(*map(np.concatenate, zip(*parts, strict=True)))
    return second_stage_of(lessons, *labels_of(known), scale, n_xp, config)


def labels_of(stars: Stars) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measured labels and their errors, (star, label) each."""
    with np.errstate(divide="ignore"):
        return np.asarray(stars.labels, np.float64), 1.0 / np.asarray(stars.label_inv_error, np.float64)


def second_stage_of(
    lessons: Lessons,
    labels: NDArray[np.float64],
    error: NDArray[np.float64],
    scale: NDArray[np.floating],
    n_xp: int,
    config: RefinementConfig,
) -> SecondStage:
    """Learn from lessons of all stars and their copies; labels and errors are measured, of every star once."""
    lessons = lessons.take(lessons.usable)
    nets = learn(lessons, scale, config)
    places = places_of(lessons.features, lessons.offset.shape[1])
    known = np.isfinite(labels).all(axis=1) & np.isfinite(error).all(axis=1)
    size = residual_size(nets, lessons.features)
    return SecondStage(nets, make_feature_support(places, size, labels[known], error[known], config.seed), n_xp)


def calibrate_second_stage(second: SecondStage, model: StarModel, cases: Sequence[Inferred]) -> SecondStage:
    """Find how far refined labels are to go and how wide they must be for 68 % of labels to lie within 68 % intervals.

    Of real stars alone: copies are as noisy as they say, and faint stars are noisier. Cases are stars that
    neither stage learned from, with parallaxes, without, or once each; in the first, stars without one are left out.
    """
    for case in cases:
        found = _adjustments(second, model, case)
        second = replace(second, with_parallax=found) if case.use_parallax else replace(second, flux_only=found)
    return second


def _adjustments(second: SecondStage, model: StarModel, case: Inferred) -> Adjustments | None:
    """How refined labels are to be adjusted; None of too few stars."""
    labels, error = labels_of(case.stars)
    converged = np.asarray(case.found.converged, bool)
    parts: list[tuple[NDArray[np.float64], ...]] = []
    for here in answers(second, model, case):
        good = converged[here.rows] & (here.used == case.use_parallax) & np.isfinite(error[here.rows]).all(axis=1)
        rows, of = here.rows[good], here.refined
        apart = of.share[:, None] * here.mixture.apart(second.nets.n_members)
        told = (here.places, *here.forward, of.median, 0.5 * (of.high - of.low), apart)
        parts.append((*(v[good] for v in told), labels[rows], error[rows]))
    if not parts:
        return None
    places, median, half, refined, refined_half, *known = map(np.concatenate, zip(*parts, strict=True))
    both = Interval(median, half), Interval(refined, refined_half)
    found = fit_adjustments(places, np.asarray(second.support.spread, np.float64), *both, *known)
    if found is not None:
        weight, stretch = (", ".join(f"{v:.2f}" for v in np.median(v, axis=0)) for v in found.at(places))
        how = "with parallaxes" if case.use_parallax else "fluxes alone"
        log.info(
            f"second stage, {len(places)} stars kept aside, {how}: weights {weight}; 68 % intervals stretched by {stretch}"
        )
    return found
