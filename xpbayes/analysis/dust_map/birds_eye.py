"""The map from above: extinction density averaged through the Galactic plane (ZGR23 Eq. 30, Fig. 21).

In: a profile map, or any function E(l, b, distance). Out: a grid of mean dE/dr, x towards the Galactic centre.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.dust_map.healpix_map import DustMap, interval
from xpbayes.analysis.dust_map.pixels import PixelMap, write_fits

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
        images = {"DENSITY": (self.density, "mag/kpc"), "COVERED": (self.covered, "")}
        return write_images(path, self.axis, self.max_height, images)


def write_images(
    path: Path, axis: NDArray[np.float64], max_height: float, images: Mapping[str, tuple[NDArray[np.floating], str]]
) -> Path:
    """Write views from above as FITS images: (y, x) values and unit of each, by its name."""
    from astropy.io import fits

    units: list[Any] = [fits.PrimaryHDU()]
    for name, (values, unit) in images.items():
        image = fits.ImageHDU(values.astype(np.float32), name=name)
        for i, along in ((1, "X"), (2, "Y")):
            image.header[f"CTYPE{i}"], image.header[f"CUNIT{i}"] = along, "kpc"
            image.header[f"CRPIX{i}"], image.header[f"CRVAL{i}"] = 1.0, axis[0]
            image.header[f"CDELT{i}"] = axis[1] - axis[0]
        if unit:
            image.header["BUNIT"] = unit
        image.header["ZMAX"] = (max_height, "[kpc] mean over |z| below this")
        units.append(image)
    return write_fits(fits.HDUList(units), path)


class Crossing(NamedTuple):
    """Where columns through the plane, at one height, lie on a map.

    Attributes:
        cell: (crossing,) flat number of the image's cell.
        row: (crossing,) of the map.
        node: (crossing,) the node of the line beyond, from 1 on; one more than there are beyond the last.
    """

    cell: NDArray[np.int64]
    row: NDArray[np.int64]
    node: NDArray[np.int64]


def cell_centres(reach: float, step: float) -> NDArray[np.float64]:
    """(cell,) along x and along y [kpc]."""
    n = int(np.ceil(reach / step))
    return np.asarray((np.arange(2 * n) - n + 0.5) * step, np.float64)


def crossings(
    pixels: PixelMap, at: NDArray[np.float64], axis: NDArray[np.float64], max_height: float
) -> Iterator[Crossing]:
    """Follow the columns of an image through the plane, `HEIGHT_STEPS` heights one after the other.

    Args:
        pixels: the map.
        at: (row, node) distances of the nodes of its lines [kpc].
        axis: from `cell_centres`.
        max_height: [kpc].
    """
    from astropy import units as u
    from astropy_healpix import lonlat_to_healpix

    x, y = np.meshgrid(axis, axis)
    level, longitude = np.hypot(x, y).ravel(), np.arctan2(y, x).ravel()
    for z in (np.arange(HEIGHT_STEPS) + 0.5) / HEIGHT_STEPS * 2.0 * max_height - max_height:
        pixel = lonlat_to_healpix(longitude * u.rad, np.arctan2(z, level) * u.rad, pixels.finest, order="nested")
        row = pixels.rows_of(np.asarray(pixel))
        on = np.flatnonzero(row >= 0)
        yield Crossing(on, row[on], interval(at, row[on], np.hypot(level, z)[on]))


def birds_eye(dust_map: DustMap, max_height: float = 0.4, step: float = STEP_KPC) -> BirdsEye:
    """Average dE/dr over |z| < max_height (Eq. 30, in mag/kpc instead of mag/pc).

    dE/dr is the difference of the means of successive bins over the distance between their stars, and holds between
    them; that is the slope of what `DustMap.extinction` reads.

    Args:
        dust_map: a profile with fine bins.
        max_height: [kpc].
        step: size of a cell [kpc].
    """
    axis, line = cell_centres(float(dust_map.edges[-1]), step), dust_map.profile
    slope = np.diff(line.value, axis=1) / np.diff(line.at, axis=1)
    total, covered = np.zeros(len(axis) ** 2), np.zeros(len(axis) ** 2)
    for cell, row, node in crossings(dust_map, line.at, axis, max_height):
        value = slope[row, (node - 1).clip(0, slope.shape[1] - 1)]
        known = np.isfinite(value) & (node <= slope.shape[1])
        total[cell] += np.where(known, value, 0.0)
        covered[cell] += known
    share = covered / HEIGHT_STEPS
    with np.errstate(divide="ignore", invalid="ignore"):
        density = np.where(share >= MIN_COVERED, total / covered, np.nan)
    shape = (len(axis), len(axis))
    return BirdsEye(axis, density.reshape(shape), share.reshape(shape), max_height)
