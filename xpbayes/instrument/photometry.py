"""Broad-band magnitudes to flux density and back (ZGR23 Eq. 5).

f_lambda = 3631 Jy c / lambda0^2 10^(-0.4 (m + dm)), in 1e-18 W m^-2 nm^-1.
"""

import numpy as np
from numpy.typing import NDArray

from xpbayes.channels import Band

AB_ZERO_POINT_JY = 3631.0
SPEED_OF_LIGHT_M_S = 299_792_458.0
LN10_OVER_2P5 = np.log(10.0) / 2.5
"""0.921: relative flux error per magnitude error."""
FLUX_ERROR_FLOOR = 0.01
"""Fraction of the flux added in quadrature to a band's error (the ZGR23 authors' practice)."""


def zero_point_flux(band: Band) -> float:
    """Flux density of a star of Vega magnitude 0 in a band [1e-18 W m^-2 nm^-1]."""
    jansky = 1e-26  # W m^-2 Hz^-1
    wavelength_m = band.wavelength_nm * 1e-9
    per_metre = AB_ZERO_POINT_JY * jansky * SPEED_OF_LIGHT_M_S / wavelength_m**2  # W m^-2 m^-1
    return per_metre * 1e-9 / 1e-18 * 10.0 ** (-0.4 * band.vega_to_ab)


def flux_from_magnitude(
    magnitude: NDArray[np.floating],
    magnitude_error: NDArray[np.floating],
    band: Band,
    floor: float = FLUX_ERROR_FLOOR,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Convert (star,) Vega magnitudes and 1-sigma errors [mag], NaN where missing, to flux and inverse error.

    Returns:
        (star,) flux [1e-18 W m^-2 nm^-1] and (star,) 1/sigma, `floor` times the flux included; 0 where missing.
    """
    m = np.asarray(magnitude, dtype=np.float64)
    sigma_m = np.asarray(magnitude_error, dtype=np.float64)
    present = np.isfinite(m) & np.isfinite(sigma_m) & (sigma_m > 0)
    flux = np.where(present, zero_point_flux(band) * 10.0 ** (-0.4 * np.where(present, m, 0.0)), 0.0)
    error = flux * np.hypot(LN10_OVER_2P5 * np.where(present, sigma_m, 1.0), floor)
    inverse_error = np.zeros_like(flux)
    np.divide(1.0, error, out=inverse_error, where=present)
    return flux, inverse_error


def magnitude_from_flux(flux: NDArray[np.floating], band: Band) -> NDArray[np.float64]:
    """Convert flux [1e-18 W m^-2 nm^-1] back to a Vega magnitude; NaN where the flux is not positive."""
    f = np.asarray(flux, dtype=np.float64)
    return np.where(f > 0, -2.5 * np.log10(np.where(f > 0, f, 1.0) / zero_point_flux(band)), np.nan)


def measured_error(
    flux: NDArray[np.floating], inverse_error: NDArray[np.floating], floor: float = FLUX_ERROR_FLOOR
) -> NDArray[np.float64]:
    """The error [mag] that `flux_from_magnitude` was given; NaN where missing or the flux is not positive.

    An error below the floor was never raised to it, and stays; float32 holds one near the floor to 1e-5.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = 1.0 / (np.asarray(flux, np.float64) * np.asarray(inverse_error, np.float64))
        own = np.sqrt(np.maximum(relative**2 - floor**2, 1e-10))
        own = np.where(relative < floor * (1 - 1e-6), relative, own)
        return np.where((relative > 0) & np.isfinite(relative), own / LN10_OVER_2P5, np.nan)
