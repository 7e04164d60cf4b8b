"""A parallax from spectroscopic labels: for training where no astrometry is at hand.

log g and a guess of the mass give the radius; Teff and the dereddened Ks magnitude give the angular radius; their
ratio gives the parallax. It is derived from the labels, so it may constrain training and never inference.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.constants import c, h, k

from xpbayes.channels import BANDS
from xpbayes.instrument.photometry import zero_point_flux

FRACTIONAL_ERROR = 0.25
"""Assumed 1-sigma error: 20 % from the mass guess in giants, the rest from log g and the brightness temperature."""

SOLAR_LOGG = 4.438
"""log10 of the Sun's surface gravity [cm s^-2], IAU 2015 nominal values."""
SOLAR_TEFF_KK = 5.772
SOLAR_RADIUS_M = 6.957e8
PARSEC_M = 3.0857e16
GIANT_LOGG = 3.5
"""Stars below are taken as giants."""
GIANT_MASS = 1.2
"""Typical mass of a field red giant [solar masses]."""
DWARF_MASS_EXPONENT = 1.6
"""M ~ Teff^1.6 on the main sequence: 0.55 at 4000 K, 1.9 at 8500 K [solar masses]."""
KS_BRIGHTNESS_RATIO = 1.07
"""Brightness temperature at 2.16 um over Teff: H- opacity is lowest near 1.6 um, so one sees deeper there. The value
puts the Sun (M_Ks = 3.27, Willmer 2018) at its distance."""


def spectroscopic_parallax(
    teff_kk: NDArray[np.floating], logg: NDArray[np.floating], ks_dereddened: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(star,) parallax and 1-sigma error [mas] by Teff [kK], log g [cm s^-2] and Ks without extinction [Vega mag].

    NaN where an input is.
    """
    teff = np.asarray(teff_kk, dtype=np.float64)
    gravity = np.asarray(logg, dtype=np.float64)
    mass = np.where(gravity < GIANT_LOGG, GIANT_MASS, (teff / SOLAR_TEFF_KK) ** DWARF_MASS_EXPONENT)
    radius_m = SOLAR_RADIUS_M * np.sqrt(mass * 10.0 ** (SOLAR_LOGG - gravity))
    band = BANDS["Ks"]
    wavelength_m = band.wavelength_nm * 1e-9
    temperature_k = 1e3 * teff * KS_BRIGHTNESS_RATIO
    planck = 2 * h * c**2 / wavelength_m**5 / np.expm1(h * c / (wavelength_m * k * temperature_k))  # W m^-2 m^-1 sr^-1
    surface_flux = np.pi * planck * 1e-9 / 1e-18  # 1e-18 W m^-2 nm^-1
    flux = zero_point_flux(band) * 10.0 ** (-0.4 * np.asarray(ks_dereddened, dtype=np.float64))
    angular_radius = np.sqrt(flux / surface_flux)
    parallax = 1e3 * PARSEC_M / (radius_m / angular_radius)
    return parallax, FRACTIONAL_ERROR * parallax
