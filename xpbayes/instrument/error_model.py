"""The XP error model: from Gaia's covariance to the one a model may be compared with (ZGR23 Eq. 2).

In: flux (star, sample), Gaia's covariance (star, sample, sample). Out: the inflated covariance. NumPy, float64: the
condition number falls from about 1e10 to 1e4 here, so everything up to here keeps its digits.
"""

import numpy as np
from numpy.typing import NDArray

from xpbayes.channels import BP_RP_BOUNDARY_NM

INDEPENDENT_FRACTION = 0.005
"""Each sample may be off by this fraction, independently (Eq. 2, second term)."""
OVERALL_FRACTION = 0.005
"""The whole spectrum may be off by this fraction (third term)."""
SIDE_FRACTION = 0.001
"""BP and RP may each be off by this fraction (fourth and fifth terms)."""


def gaia_covariance(error: NDArray[np.float64], correlation: NDArray[np.float64]) -> NDArray[np.float64]:
    """(star, sample, sample) covariance of (star, sample) 1-sigma errors with one common (sample, sample) correlation."""
    return error[:, :, None] * correlation * error[:, None, :]


def inflate(
    covariance: NDArray[np.float64],
    flux: NDArray[np.float64],
    wavelength_nm: NDArray[np.float64],
    out: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Add the calibration errors of ZGR23 Eq. 2 to Gaia's (star, sample, sample) covariance, for use in the likelihood.

    `flux` is (star, sample), observed, in the same unit; `wavelength_nm` (sample,); `out` new memory if None.
    """
    is_bp = wavelength_nm < BP_RP_BOUNDARY_NM
    same_side = is_bp[:, None] == is_bp[None, :]
    fraction2 = OVERALL_FRACTION**2 + SIDE_FRACTION**2 * same_side
    np.fill_diagonal(fraction2, fraction2.diagonal() + INDEPENDENT_FRACTION**2)
    inflated = np.multiply(flux[:, :, None], flux[:, None, :], out=out)
    inflated *= fraction2  # in place: three such arrays do not fit into the cache
    inflated += covariance
    return inflated
