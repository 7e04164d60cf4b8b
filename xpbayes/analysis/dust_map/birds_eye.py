"""The map from above: extinction density averaged through the Galactic plane (ZGR23 Eq. 30, Fig. 21).

In: a profile map, or any function E(l, b, distance). Out: a grid of mean dE/dr, x towards the Galactic centre.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.dust_map.healpix_map import DustMap, write_fits

MIN_COVERED = 0.5
"""Share of the column that must be on the map."""
STEP_KPC = 0.025
HEIGHT_STEPS = 33


@dataclass(frozen=True)
class BirdsEye:
    """Extinction density seen from above.

    Attributes:
        axis: (cell,) centres of the cells along x and along y [kpc]; Sun at 0, x towards the Galactic centre.
        density: (y, x) mean of dE/dr over |z| < max_height [mag/kpc]; NaN where the map covers less than half of it.
        covered: (y, x) share of the column that the map covers.
        max_height: [kpc].
    """

    axis: NDArray[np.float64]
    density: NDArray[np.float64]
    covered: NDArray[np.float64]
    max_height: float

    def write(self, path: Path) -> Path:
        """Write a FITS image with linear coordinates."""
        from astropy.io import fits

        units = []
        for name, values, unit in (("DENSITY", self.density, "mag/kpc"), ("COVERED", self.covered, "")):
            image = fits.ImageHDU(values.astype(np.float32), name=name)
            step = self.axis[1] - self.axis[0]
            for i, axis in ((1, "X"), (2, "Y")):
                image.header[f"CTYPE{i}"], image.header[f"CUNIT{i}"] = axis, "kpc"
                image.header[f"CRPIX{i}"], image.header[f"CRVAL{i}"] = 1.0, self.axis[0]
                image.header[f"CDELT{i}"] = step
            if unit:
                image.header["BUNIT"] = unit
            image.header["ZMAX"] = (self.max_height, "[kpc] mean over |z| below this")
            units.append(image)
        return write_fits(fits.HDUList([fits.PrimaryHDU(), *units]), path)


def birds_eye(dust_map: DustMap, max_height: float = 0.4, step: float = STEP_KPC) -> BirdsEye:
    """Average dE/dr over |z| < max_height (Eq. 30, in mag/kpc instead of mag/pc).

    dE/dr is the difference of the means of successive bins over the distance between their stars, and holds between
    them; that is the slope of `healpix_map.query`.

    Args:
        dust_map: a profile with fine bins.
        max_height: [kpc].
        step: size of a cell [kpc].
    """
    from astropy import units as u
    from astropy_healpix import lonlat_to_healpix

    reach = float(dust_map.edges[-1])
    n = int(np.ceil(reach / step))
    axis = np.asarray((np.arange(2 * n) - n + 0.5) * step, np.float64)
    heights = (np.arange(HEIGHT_STEPS) + 0.5) / HEIGHT_STEPS * 2.0 * max_height - max_height
    line = dust_map.profile
    slope = np.diff(line.value, axis=1) / np.diff(line.at, axis=1)
    x, y = np.meshgrid(axis, axis)
    level = np.hypot(x, y)
    total, covered = np.zeros(x.shape), np.zeros(x.shape)
    for z in heights:
        r = np.hypot(level, z)
        lon, lat = np.arctan2(y, x) * u.rad, np.arctan2(z, level) * u.rad
        pixel = lonlat_to_healpix(lon, lat, dust_map.finest, order="nested")
        row = dust_map.rows_of(np.asarray(pixel))
        on = row >= 0
        interval = line.interval(row[on], r[on]) - 1
        value = slope[row[on], interval.clip(0, slope.shape[1] - 1)]
        known = np.isfinite(value) & (interval < slope.shape[1])
        total[on] += np.where(known, value, 0.0)
        covered[on] += known
    share = covered / HEIGHT_STEPS
    with np.errstate(divide="ignore", invalid="ignore"):
        density = np.where(share >= MIN_COVERED, total / covered, np.nan)
    return BirdsEye(axis, density, share, max_height)
