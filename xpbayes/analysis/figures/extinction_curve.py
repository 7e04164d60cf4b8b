"""The learned extinction curve beside published ones: numbers only; `reddening_law.py` draws them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_CCM89_NM = 3300.0
"""CCM89 is defined down to wavenumbers of 0.3 per micron."""
R_V_FAMILY = (2.0, 3.1, 4.0, 5.0)


@dataclass(frozen=True)
class CurveComparison:
    """One published curve, scaled to the learned one.

    Attributes:
        name: e.g. 'CCM89, R_V = 3.1'.
        wavelength_nm: (channel,) where it is defined [nm].
        value: (channel,) scaled to the learned curve by least squares of the ratio.
        rms: root mean square of learned / scaled - 1 over those channels.
    """

    name: str
    wavelength_nm: NDArray[np.float64]
    value: NDArray[np.float64]
    rms: float


def scale_to(learned: NDArray[np.floating], published: NDArray[np.floating]) -> tuple[NDArray[np.float64], float]:
    """Scale a published curve to the learned one so that the rms of their ratio's difference from one is least.

    Returns:
        the scaled curve, and that rms.
    """
    ratio = np.asarray(learned, np.float64) / np.asarray(published, np.float64)
    # Least squares of ratio / s - 1 over s: 1/s = sum(ratio) / sum(ratio^2).
    scale = np.sum(ratio**2) / np.sum(ratio)
    return np.asarray(published, np.float64) * scale, float(np.sqrt(np.mean((ratio / scale - 1.0) ** 2)))


def compare_with(
    law: str, r_v: float, wavelength_nm: NDArray[np.floating], learned: NDArray[np.floating]
) -> CurveComparison:
    """Compare with one of a family of curves on the channels where it is defined.

    Args:
        law: 'CCM89' or 'G23'.
        r_v: which of them.
        wavelength_nm: (channel,) [nm].
        learned: (channel,) R, optical depth per unit E.
    """
    from astropy import units as u
    from dust_extinction import parameter_averages

    wavelength = np.asarray(wavelength_nm, np.float64)
    inside = wavelength < (MAX_CCM89_NM if law == "CCM89" else np.inf)
    published = getattr(parameter_averages, law)(Rv=r_v)(wavelength[inside] * u.nm)
    return CurveComparison(f"{law}, R_V = {r_v:g}", wavelength[inside], *scale_to(learned[inside], published))


def compare_with_published(wavelength_nm: NDArray[np.floating], learned: NDArray[np.floating]) -> list[CurveComparison]:
    """Compare with CCM89 for several R_V where it is defined, and with G23 (R_V = 3.1) on all channels."""
    chosen = [*(("CCM89", r_v) for r_v in R_V_FAMILY), ("G23", 3.1)]
    return [compare_with(law, r_v, wavelength_nm, learned) for law, r_v in chosen]
