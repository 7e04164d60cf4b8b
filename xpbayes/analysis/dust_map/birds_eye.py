"""The map from above: extinction density averaged through the Galactic plane (ZGR23 Eq. 30, Fig. 21).

In: a profile map. Out: a grid of mean dE/dr, x towards the Galactic centre.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.dust_map.healpix_map import DustMap, PixelMap, write_fits

MIN_COVERED = 0.5
"""Share of the column that must be on the map."""
STEP_KPC = 0.025
HEIGHT_STEPS = 33


@dataclass(frozen=True, kw_only=True)
class FromAbove:
    """What every view from above has.

    Attributes:
        IMAGES: (y, x) attributes that its file holds, with their units.
        axis: (cell,) centres of the cells along x and along y [kpc]; Sun at 0, x towards the Galactic centre.
        covered: (y, x) share of the column that the map covers.
        max_height: [kpc].
    """

    IMAGES: ClassVar[Mapping[str, str]]
    axis: NDArray[np.float64]
    covered: NDArray[np.float64]
    max_height: float

    def write(self, path: Path) -> Path:
        """Write FITS images with linear coordinates."""
        from astropy.io import fits

        units: list[Any] = [fits.PrimaryHDU()]
        for name, unit in self.IMAGES.items():
            image = fits.ImageHDU(getattr(self, name).astype(np.float32), name=name.upper())
            for i, along in ((1, "X"), (2, "Y")):
                image.header[f"CTYPE{i}"], image.header[f"CUNIT{i}"] = along, "kpc"
                image.header[f"CRPIX{i}"], image.header[f"CRVAL{i}"] = 1.0, self.axis[0]
                image.header[f"CDELT{i}"] = self.axis[1] - self.axis[0]
            if unit:
                image.header["BUNIT"] = unit
            image.header["ZMAX"] = (self.max_height, "[kpc] mean over |z| below this")
            units.append(image)
        return write_fits(fits.HDUList(units), path)


@dataclass(frozen=True, kw_only=True)
class BirdsEye(FromAbove):
    """Extinction density: (y, x) mean of dE/dr over |z| < max_height [mag/kpc], NaN where less than half is covered."""

    density: NDArray[np.float64]
    IMAGES = {"density": "mag/kpc", "covered": ""}


def cell_centres(reach: float, step: float) -> NDArray[np.float64]:
    """(cell,) along x and along y [kpc]."""
    n = int(np.ceil(reach / step))
    return np.asarray((np.arange(2 * n) - n + 0.5) * step, np.float64)


def crossings(
    pixels: PixelMap, axis: NDArray[np.float64], max_height: float
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Follow the columns of an image through the plane, `HEIGHT_STEPS` heights one after the other.

    The axis is from `cell_centres`, the height in kpc. Of each height: (crossing,) flat number of the image's cell, row of
    the map, and node of the line beyond, as of `PixelMap.node_beyond`.
    """
    from astropy import units as u

    x, y = np.meshgrid(axis, axis)
    level, longitude = np.hypot(x, y).ravel(), np.arctan2(y, x).ravel()
    for z in (np.arange(HEIGHT_STEPS) + 0.5) / HEIGHT_STEPS * 2.0 * max_height - max_height:
        row = pixels.rows_at(longitude * u.rad, np.arctan2(z, level) * u.rad)
        on = np.flatnonzero(row >= 0)
        yield on, row[on], pixels.node_beyond(row[on], np.hypot(level, z)[on])


def birds_eye(dust_map: DustMap, max_height: float = 0.4, step: float = STEP_KPC) -> BirdsEye:
    """Average dE/dr of a profile with fine bins over |z| < max_height [kpc], in cells of `step` [kpc].

    Eq. 30, in mag/kpc instead of mag/pc. dE/dr is the difference of the means of successive bins over the distance between
    their stars, and holds between them; that is the slope of what `DustMap.extinction` reads.
    """
    axis = cell_centres(float(dust_map.edges[-1]), step)
    slope = np.diff(dust_map.lines[0], axis=1) / np.diff(dust_map.at, axis=1)
    total, covered = np.zeros(len(axis) ** 2), np.zeros(len(axis) ** 2)
    for cell, row, node in crossings(dust_map, axis, max_height):
        value = slope[row, (node - 1).clip(0, slope.shape[1] - 1)]
        known = np.isfinite(value) & (node <= slope.shape[1])
        total[cell] += np.where(known, value, 0.0)
        covered[cell] += known
    share = covered / HEIGHT_STEPS
    with np.errstate(divide="ignore", invalid="ignore"):
        density = np.where(share >= MIN_COVERED, total / covered, np.nan)
    density, share = (image.reshape(len(axis), len(axis)) for image in (density, share))
    return BirdsEye(axis=axis, density=density, covered=share, max_height=max_height)
