"""How well the model describes a star's fluxes, as a probability: what share of ordinary stars is described worse?

With the model's own error in the covariance, chi^2 no longer follows its textbook distribution: the errors of bright stars
are mostly the model's, which is worst where models are worst. So ln (chi^2 / channels) of stars that training kept aside is
taken as it is, at every S/N: its median, and its distance to the 16 % quantile as the standard deviation of a Gaussian. The
lower half is that of ordinary stars; the upper half holds binaries, blends and stars behind other dust as well.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import ndtr

MIN_STARS_PER_KNOT, MAX_KNOTS = 100, 16
LOW = float(ndtr(-1.0))
"""Share of a Gaussian below one standard deviation from its middle."""
UNUSUAL = 1e-3
"""Spectra of a lower fit quality carry the flag UNUSUAL_SPECTRUM."""


@dataclass(frozen=True)
class FitQuality:
    """Distribution of ln (chi^2 / channels) of ordinary stars."""

    ln_snr: Float[np.ndarray, " knot"]  # mean ln S/N of the channels, rising
    middle: Float[np.ndarray, " knot"]  # median
    width: Float[np.ndarray, " knot"]  # standard deviation

    def of(self, chi2: NDArray, n_channels: NDArray, ln_snr: NDArray) -> NDArray[np.float32]:
        """(star,) share of ordinary stars of this mean ln S/N whose fluxes fit worse; NaN where there is no chi^2."""
        return ndtr(-self.deviation(chi2, n_channels, ln_snr)).astype(np.float32)

    def deviation(self, chi2: NDArray, n_channels: NDArray, ln_snr: NDArray) -> NDArray[np.float64]:
        """(star,) by how many standard deviations fluxes fit worse than those of ordinary stars; arguments as for `of`."""
        middle, width = (np.interp(ln_snr, self.ln_snr, values) for values in (self.middle, self.width))
        with np.errstate(divide="ignore", invalid="ignore"):
            return (np.log(chi2 / n_channels) - middle) / width


def fit_quality_of(chi2: NDArray, n_channels: NDArray, ln_snr: NDArray) -> FitQuality | None:
    """Learn the distribution from stars that training kept aside; None if they are fewer than `MIN_STARS_PER_KNOT`."""
    known = (chi2 > 0) & (n_channels > 0) & np.isfinite(ln_snr)
    n_knots = min(int(known.sum()) // MIN_STARS_PER_KNOT, MAX_KNOTS)
    if not n_knots:
        return None
    order = np.argsort(ln_snr[known], kind="stable")
    value, ln_snr = (v[known][order] for v in (np.log(np.where(known, chi2 / n_channels, 1.0)), ln_snr))
    knots = [np.median(part) for part in np.array_split(ln_snr, n_knots)]
    low, middle = np.transpose([np.quantile(part, (LOW, 0.5)) for part in np.array_split(value, n_knots)])
    return FitQuality(*(np.asarray(v, np.float32) for v in (knots, middle, np.maximum(middle - low, 1e-3))))
