"""Calibrate posteriors on stars kept aside, as inference sees them: with their parallaxes, and without.

Where they are few, training stars stand beside them for offsets and widths, see `inference.recalibration`; how well fluxes
are described, and whom to trust, is learned from those kept aside alone.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xpbayes.config import InferenceConfig, TrainingConfig
from xpbayes.data.spectra import join_star_tables
from xpbayes.inference.fit import fit_stars
from xpbayes.inference.fit_quality import fit_quality_of
from xpbayes.inference.recalibration import (
    INNER,
    Calibration,
    KindCalibration,
    farther_off,
    fit_calibration,
    ln_snr_of,
    n_channels_of,
    recalibrated,
)
from xpbayes.inference.references import references
from xpbayes.inference.scatter import fit_scatter, loosened, scatter_of, settled
from xpbayes.inference.support import LabelSupport
from xpbayes.inference.trust import Trust
from xpbayes.models.star_model import StarModel
from xpbayes.training.companions import counts_of
from xpbayes.training.training_set import TrainingSet
from xpbayes.training.trust import Case, learn_trust

log = logging.getLogger(__name__)


class Calibrated(NamedTuple):
    """What stars kept aside say of posteriors."""

    calibration: Calibration | None = None
    aside: Sequence[Case] = ()  # they, without parallaxes and with, as the calibration leaves their posteriors
    trust: Trust | None = None
    farther: float = 1.0  # by how much more distances of training stars beside them count


class _Looked(NamedTuple):
    """Stars as inference saw them, those kept aside first, and what calibrates their posteriors."""

    case: Case
    calibration: KindCalibration | None
    n_aside: int

    @property
    def of_aside(self) -> Case:
        """Stars kept aside alone."""
        few, case = np.arange(self.n_aside), self.case
        return case._replace(
            **{name: getattr(case, name).take(few) for name in ("stars", "found", "published", "known")}
        )


def calibrate(
    model: StarModel, support: LabelSupport | None, chosen: TrainingSet, config: TrainingConfig
) -> Calibrated:
    """Calibrate a model's posteriors, and learn whom to trust where the training labels' `support` is known."""
    n_aside, n_beside = len(chosen.aside), len(chosen.beside)
    if not n_aside:
        return Calibrated()
    table = join_star_tables([chosen.aside, chosen.beside], ["aside", "beside"]) if n_beside else chosen.aside
    wavelength = np.asarray(chosen.table.channels.wavelengths, np.float64)
    floor, doubt = config.floor_for(len(config.labels)), InferenceConfig().doubt_parallax
    stars = table.stars(config.labels, label_error_floor=floor, doubt_parallax=doubt)
    aside = np.arange(len(stars)) < n_aside
    ln_snr, scale = ln_snr_of(stars), np.asarray(model.forward.label_scale, np.float64)
    counts = counts_of(model, stars, config.labels, wavelength)

    found = fit_stars(model, stars, InferenceConfig(use_parallax=False))
    spread, scatter = None, np.zeros((len(stars), 2))
    if model.error is not None:
        spread = fit_scatter(found, stars, model.error, counts[:, -2])
        scatter = scatter_of(spread, model.error, stars)
    own = settled(found, stars, scatter, use_parallax=False)
    known = references(own, stars, scatter)
    factor = farther_off(own, known, aside, counts)
    farther = np.where(aside, 1.0, factor)
    of = fit_calibration(own, known, ln_snr, scale, counts=counts, farther=farther)
    alone = _Looked(Case(stars, found, own, use_parallax=False, known=known), of, n_aside)
    quality = fit_quality_of(own.chi2[:n_aside].astype(np.float64), n_channels_of(stars)[:n_aside], ln_snr[:n_aside])
    if alone.calibration is None:
        log.info(f"not calibrated: {n_aside} stars kept aside are too few; raise calibration_fraction")
        return Calibrated(aside=[alone.of_aside])

    looked = [alone]
    rows = np.flatnonzero(stars.parallax_inv_error > 0)
    if np.any(aside[rows]):
        some = stars.take(rows)
        with_scatter = loosened(some, scatter[rows])
        found = fit_stars(model, with_scatter, InferenceConfig())
        own, known = settled(found, some, scatter[rows], use_parallax=True), known.take(rows)
        of = fit_calibration(
            own, known, ln_snr[rows], scale, own_parallax=True, counts=counts[rows], farther=farther[rows]
        )
        case = Case(with_scatter, found, own, use_parallax=True, known=known)
        looked.append(_Looked(case, of, int(np.sum(aside[rows]))))
    calibration = Calibration(looked[-1].calibration or alone.calibration, alone.calibration, spread, quality)
    if scatter.any():
        extinction, parallax = np.median(scatter, axis=0)
        log.info(f"stars of the same labels scatter by {extinction:.3f} mag in E and {100 * parallax:.1f}% in parallax")
    who = f"{n_aside} stars kept aside"
    who += f" and {n_beside} training stars, whose distances count {factor:.3f} times" if n_beside else ""
    for one in looked[::-1]:
        if one.calibration is not None:
            how = "flux and parallax" if one.case.use_parallax else "flux alone"
            log.info(f"calibrated on {who}, {how}: {_in_words(one.calibration, config.labels)}")
    cases = [_published(one.of_aside, calibration) for one in looked]
    return Calibrated(calibration, cases, _learn_trust(model, support, calibration, wavelength, cases, config), factor)


def _published(case: Case, calibration: Calibration) -> Case:
    """Stars whose posteriors are as a catalogue has them."""
    published = recalibrated(case.published, calibration, case.stars, use_parallax=case.use_parallax)
    return case._replace(published=published)


def _learn_trust(
    model: StarModel,
    support: LabelSupport | None,
    calibration: Calibration,
    wavelength: NDArray[np.float64],
    cases: list[Case],
    config: TrainingConfig,
) -> Trust | None:
    if support is None:
        return None
    names = config.labels
    at = (names.index("feh"), names.index("logg")) if {"feh", "logg"} <= set(names) else None
    return learn_trust(model, support, calibration, wavelength, cases, config.seed, at)


def _in_words(calibration: KindCalibration, labels: tuple[str, ...]) -> str:
    """By how much a calibration stretches typical stars."""
    stretch = np.median(calibration.stretch, axis=0)
    parts = [
        f"{name} {INNER * value:.2f}" for name, value in zip((*labels, "E", "parallax"), stretch, strict=True) if value
    ]
    return f"{len(calibration.kinds)} kinds, 68 % intervals stretched by {', '.join(parts)}"
