"""Make a second stage: infer labelled stars blind, learn, and calibrate on stars that neither stage learned from."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import numpy as np
from numpy.typing import NDArray

from xpbayes.config import InferenceConfig
from xpbayes.data.scratch import in_memory
from xpbayes.data.stars import Stars
from xpbayes.inference.fit import fit_stars
from xpbayes.inference.recalibration import (
    MIN_STARS_PER_KIND,
    Known,
    find_kinds,
    fit_and_widen,
    kind_weights,
)
from xpbayes.models.star_model import StarModel
from xpbayes.refinement.copies import copies
from xpbayes.refinement.features import flux_only, places_of, relative_residuals, star_features
from xpbayes.refinement.learning import Lessons, learn
from xpbayes.refinement.networks import residual_size
from xpbayes.refinement.refined import (
    HIGH,
    LOW,
    MEDIAN,
    SecondStage,
    Stretches,
    mixtures,
    quantiles,
)
from xpbayes.refinement.support import make_feature_support

if TYPE_CHECKING:
    from xpbayes.config import RefinementConfig

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
    """What stars with labels teach, inferred blind.

    Args:
        model: the trained forward model.
        stars: the stars.
        n_xp: how many channels are samples of the spectrum.
        scale: (channel,) unit of relative residuals; that of these stars if None.

    Returns:
        the lessons, and the unit.
    """
    found = fit_stars(model, stars, BLIND)
    n = model.forward.n_labels
    fit = flux_only(model, stars, found, use_parallax=False)
    ratio = relative_residuals(model.forward, stars, fit.mode)
    if scale is None:
        known = np.where(np.isfinite(ratio).any(axis=0), ratio, 1.0)
        scale = np.maximum(np.nanpercentile(np.abs(known), TYPICAL, axis=0), 1e-4).astype(np.float32)
    features = star_features(stars, fit, ratio, scale, n_xp)
    with np.errstate(divide="ignore"):
        error = 1.0 / np.asarray(stars.label_inv_error, np.float64)
    offset = np.asarray(stars.labels, np.float64) - fit.mode[:, :n]
    offset[~found.converged] = np.nan
    return Lessons(features, offset, error, fit.sigma[:, :n]), scale


def learn_second_stage(model: StarModel, stars: Stars, n_xp: int, config: "RefinementConfig") -> SecondStage | None:
    """Train the second stage of a model.

    Args:
        model: the trained forward model.
        stars: stars with labels, in memory or in files.
        n_xp: how many channels are samples of the spectrum.
        config: settings.

    Returns:
        the second stage, not calibrated yet; None if there are fewer stars than the settings want.
    """
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
    return second_stage_of(Lessons(*map(np.concatenate, zip(*parts, strict=True))), scale, n_xp, config)


def second_stage_of(
    lessons: Lessons, scale: NDArray[np.floating], n_xp: int, config: "RefinementConfig"
) -> SecondStage:
    """Learn from lessons; arguments as of `lessons_of` and `learn_second_stage`."""
    lessons = lessons.take(lessons.usable)
    nets = learn(lessons, scale, config)
    places = places_of(lessons.features, lessons.offset.shape[1])
    return SecondStage(nets, make_feature_support(places, residual_size(nets, lessons.features), config.seed), n_xp)


def calibrate_second_stage(second: SecondStage, model: StarModel, aside: Stars, looked_at: Stars) -> SecondStage:
    """Find by how much the mixtures must be stretched for 68 % of labels to lie within their 68 % intervals.

    Of real stars alone: copies are as noisy as they say, and faint stars are noisier.

    Args:
        second: the second stage.
        model: the forward model.
        aside: stars with labels that neither has learned from; they are inferred from their fluxes.
        looked_at: the same as inference sees them, with the scatter of such stars in the errors of their parallaxes:
            those with a parallax are inferred with it too.
    """
    second = replace(second, stretches=None, with_parallax=None)
    second = replace(second, stretches=_stretches(second, _judged(second, model, aside, BLIND)))
    measured = np.flatnonzero(np.asarray(aside.parallax_inv_error) > 0)
    if len(measured) < MIN_STARS_PER_KIND:
        return second
    some = jax.tree.map(lambda leaf: np.asarray(leaf)[measured], looked_at)
    judged = _judged(second, model, some, BLIND.model_copy(update={"use_parallax": True}))
    return replace(second, with_parallax=_stretches(second, judged))


def _judged(second: SecondStage, model: StarModel, stars: Stars, how: InferenceConfig) -> list[NDArray[np.float64]]:
    """Places, residuals of medians, halves of 68 % intervals and squared errors of the labels; of the sound stars."""
    found = fit_stars(model, stars, how)
    known = mixtures(second, model, stars, found, use_parallax=how.use_parallax)
    rows = known.rows
    label, inverse = (np.asarray(v, np.float64)[rows] for v in (stars.labels, stars.label_inv_error))
    low, median, high = (quantiles(known.of, level) for level in (LOW, MEDIAN, HIGH))
    good = np.asarray(found.converged, bool)[rows] & (inverse > 0).all(axis=1)
    values = (known.places, median - label, 0.5 * (high - low), 1.0 / np.where(inverse > 0, inverse, 1.0) ** 2)
    return [v[good] for v in values]


def _stretches(second: SecondStage, judged: list[NDArray[np.float64]]) -> Stretches | None:
    """Stretches by kind of star; None of too few stars. `judged` is from `_judged`."""
    places, residual, half, variance = judged
    if len(places) < MIN_STARS_PER_KIND:
        return None
    spread = np.asarray(second.support.spread, np.float64)
    kinds, width = find_kinds(places / spread)
    weight = kind_weights(places / spread, kinds, width)
    factor = fit_and_widen(Known(residual, half, variance), weight, shifted=False).stretch
    words = ", ".join(f"{value:.2f}" for value in np.median(weight @ factor, axis=0))
    log.info(f"second stage: 68 % intervals of {len(places)} stars kept aside stretched by {words}")
    return Stretches(*(np.asarray(v, np.float32) for v in (spread, kinds, width, factor)))
