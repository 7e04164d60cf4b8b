"""Flags of catalogue rows: the bits of ZGR23 Table 2 as the paper defines them, and those of xpbayes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xpbayes.inference.fit_quality import UNUSUAL
from xpbayes.schema import QualityFlag

CHI2_CHANNELS = 61
"""Eq. 24 divides by 61 whatever was observed; n_obs and dof stand beside it."""
MAX_REDUCED_CHI2 = 2.0
MAX_PARALLAX_PULL = 10.0
"""Eq. 26, in units of the measurement's error."""
MAX_PARALLAX_TENSION = 3.0
"""In units of both errors together."""
MAX_SPURIOUS = 0.5
MAX_EXTRAPOLATION = 1.0


class Scores(NamedTuple):
    """(star,) each; None where the model cannot tell."""

    fit_quality: NDArray[np.float32] | None = None  # see `inference.fit_quality`
    extrapolation: NDArray[np.float32] | None = None  # see `inference.support`
    trust: NDArray[np.float32] | None = None  # (star, 1 + parameter) see `inference.trust`


class Parallaxes(NamedTuple):
    """Inferred and measured parallaxes [mas], (star,) each; NaN where missing."""

    mode: NDArray[np.floating]  # at the optimum
    mode_error: NDArray[np.floating]  # its standard error, of the full posterior's curvature
    median: NDArray[np.floating]  # 50, 16 and 84 % quantiles of draws
    low: NDArray[np.floating]
    high: NDArray[np.floating]
    measured: NDArray[np.floating]  # Gaia's
    measured_error: NDArray[np.floating]

    @property
    def tension(self) -> NDArray[np.float64]:
        """(star,) distance of both, in units of both errors together: that of the posterior on the measurement's side."""
        drawn = np.isfinite(self.median)
        center = np.where(drawn, self.median, self.mode)
        half = np.where(self.measured > center, self.high - self.median, self.median - self.low)
        return np.abs(self.measured - center) / np.hypot(np.where(drawn, half, self.mode_error), self.measured_error)


def paper_flags(
    chi2: NDArray[np.floating], ln_prior: NDArray[np.floating], ln_threshold: float, parallaxes: Parallaxes
) -> NDArray[np.uint8]:
    """(star,) bits 3 to 5 of ZGR23 Table 2 (Eq. 24 to 26); (star,) chi2 of the fluxes is NaN where there is no fit."""
    flags = np.zeros(len(chi2), np.uint8)
    with np.errstate(invalid="ignore", divide="ignore"):
        flags[~(chi2 / CHI2_CHANNELS <= MAX_REDUCED_CHI2)] |= np.uint8(QualityFlag.POOR_FIT)
        flags[ln_prior < ln_threshold] |= np.uint8(QualityFlag.UNLIKELY_TYPE)
        pull = np.abs(parallaxes.measured - parallaxes.mode) / parallaxes.measured_error
        flags[pull > MAX_PARALLAX_PULL] |= np.uint8(QualityFlag.PARALLAX_TENSION)
    return flags


def quality_flags(
    of_paper: NDArray[np.uint8],
    parallaxes: Parallaxes,
    fit_quality: NDArray[np.floating],
    extrapolation: NDArray[np.floating],
    spurious: NDArray[np.floating],
) -> NDArray[np.uint8]:
    """(star,) bits 3 and 4 of `paper_flags`, and bits 5 to 7 as `schema.QualityFlag` has them.

    Fit quality, extrapolation and the probability that the parallax is spurious are (star,), NaN where not known.
    """
    flags = of_paper & np.uint8(0xFF & ~QualityFlag.PARALLAX_TENSION)
    with np.errstate(invalid="ignore", divide="ignore"):
        off = (parallaxes.tension > MAX_PARALLAX_TENSION) | (spurious > MAX_SPURIOUS)
        flags[off] |= np.uint8(QualityFlag.PARALLAX_TENSION)
        flags[fit_quality < UNUSUAL] |= np.uint8(QualityFlag.UNUSUAL_SPECTRUM)
        flags[extrapolation > MAX_EXTRAPOLATION] |= np.uint8(QualityFlag.EXTRAPOLATION)
    return flags
