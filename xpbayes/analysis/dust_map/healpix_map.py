"""The dust map itself: adaptive HEALPix pixels times distance bins, as arrays, as FITS, and as answers to queries.

Pixels are nested and Galactic at the finest nside; a pixel that was filled at a coarser resolution repeats that value
and says so in `nside`. Only pixels with any value are kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.dust_map.bins import Voxels
from xpbayes.analysis.dust_map.pixels import PixelMap, at_finest, bin_before
from xpbayes.analysis.dust_map.selection import Measured

if TYPE_CHECKING:
    from astropy.coordinates import SkyCoord
    from astropy.units import Quantity

Means = Callable[[Measured, NDArray[np.int64], int, NDArray[np.float64], int], Voxels]

QUANTITIES = {
    "mean": ("EXTINCTION", "E", "mag", "mean E of the stars in the bin: cumulative extinction"),
    "sigma": ("SIGMA", "E", "mag", "its standard error, spread of E inside the voxel included"),
    "spread": ("SPREAD", "E", "mag", "spread of E among the voxel's stars beyond their errors"),
    "distance": ("DISTANCE", "E", "kpc", "mean 1/parallax of the stars: where the mean E holds"),
    "differential": ("DIFFERENTIAL", "E", "mag", "mean E minus that of the bin before"),
    "differential_sigma": ("DIFFERENTIAL_SIGMA", "E", "mag", "its standard error"),
    "stars": ("STARS", "E", "", "stars that the mean is based on"),
    "nside": ("NSIDE", "I", "", "resolution that the mean was taken at; 0 where there is none"),
}
"""Attribute: name of the HDU, FITS format, unit, description."""


@dataclass(frozen=True, repr=False)
class DustMap(PixelMap):
    """Extinction in pixels and distance bins: (row, bin) what `QUANTITIES` says, NaN where too few stars are.

    The first bin's `differential` is its own E if it begins at 0.
    """

    mean: NDArray[np.float32]
    sigma: NDArray[np.float32]
    spread: NDArray[np.float32]
    differential: NDArray[np.float32]
    differential_sigma: NDArray[np.float32]
    QUANTITIES = QUANTITIES
    KIND, FILE = "dust map", "profile.fits"
    TYPICAL = {"median_extinction": "mean", "median_sigma": "sigma"}

    def extinction(
        self, coords: "SkyCoord", distance: "Quantity | None" = None, *, covered: bool = False
    ) -> tuple[Any, Any]:
        """Read E and its standard error off a map, usually the profile, whose bins are fine.

        E rises linearly from 0 at the Sun through the means of the bins at the mean distances of their stars; bins without
        enough stars are bridged. Beyond the last bin that has stars, and in pixels without any, both answers are NaN.

        Args:
            coords: positions in any frame, with or without distances.
            distance: distances, as a quantity; those of `coords` if None.
            covered: refuse positions that the map does not cover, in place of NaN.

        Returns:
            E and standard error [mag], in the shape of coords and distance together; floats for one position.

        Raises:
            InputError: no distance, one that is not a positive length, or with `covered` a position outside of the map.
        """
        value, sigma = self.on_lines(self.lines, coords, distance, covered=covered)
        return value[()], sigma[()]

    @cached_property
    def lines(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(row, node) E and its standard error [mag] along every pixel, at the distances `at`."""
        return self.bridged(self.mean), self.bridged(self.sigma)


def map_of_piece(
    stars: Measured, pixels: range, edges: NDArray[np.float64], nsides: Sequence[int], min_stars: int, means: Means
) -> DustMap:
    """Make the map of one piece of the sky: means at every resolution, the finest that has enough stars wins.

    Args:
        stars: of the piece, pixels at the finest nside.
        pixels: the piece's, a whole number of the coarsest ones.
        edges: (bin + 1,) [kpc].
        nsides: resolutions, finest first.
        min_stars: stars that a voxel needs.
        means: `bins.voxel_means` or `joint.voxel_means_joint`.
    """

    def average(stars: Measured, pixel: NDArray[np.int64], n_pixels: int) -> Voxels:
        return means(stars, pixel, n_pixels, edges, min_stars)

    made, nside = at_finest(stars, pixels, nsides, average, lambda voxels: voxels.stars >= min_stars)
    # Means of different resolutions share only some of their stars: their covariance is not known, and small.
    shared = np.where(nside == np.insert(nside[:, :-1], 0, 0, axis=1), made.cov_previous, 0.0)
    variance = made.sigma**2 + bin_before(made.sigma, edges) ** 2 - 2.0 * shared
    values = {name: getattr(made, name) for name in ("mean", "sigma", "spread", "distance", "stars")}
    values |= {"differential": made.mean - bin_before(made.mean, edges), "differential_sigma": np.sqrt(variance)}
    return DustMap.of_piece(pixels, edges, nside, values, finest=nsides[0])
