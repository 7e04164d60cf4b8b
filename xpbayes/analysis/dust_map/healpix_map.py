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
from xpbayes.analysis.dust_map.pixels import PixelMap, at_finest
from xpbayes.analysis.dust_map.selection import Measured
from xpbayes.errors import InputError

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
    """Extinction in pixels and distance bins.

    Attributes:
        mean: (row, bin) cumulative E [mag]; NaN where no resolution has enough stars.
        sigma: (row, bin) its standard error [mag].
        spread: (row, bin) spread of E inside the voxel [mag].
        differential: (row, bin) E minus that of the bin before [mag]; the first bin's is its own E if it begins at 0.
        differential_sigma: (row, bin) its standard error [mag].
    """

    mean: NDArray[np.float32]
    sigma: NDArray[np.float32]
    spread: NDArray[np.float32]
    differential: NDArray[np.float32]
    differential_sigma: NDArray[np.float32]
    QUANTITIES = QUANTITIES
    KIND, FILE = "dust map", "profile.fits"

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
        line = self.profile
        value, sigma = on_lines(self, line.at, (line.value, line.sigma), coords, distance, covered=covered)
        return value[()], sigma[()]

    @cached_property
    def profile(self) -> "Profile":
        """The lines of E along every pixel that queries and the bird's-eye view read."""
        return profile(self)


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

    def average(shift: int) -> Voxels:
        pixel = (stars.pixel - pixels.start) >> 2 * shift
        return means(stars, pixel, len(pixels) >> 2 * shift, edges, min_stars)

    made, nside = at_finest(pixels, nsides, average, lambda voxels: voxels.stars >= min_stars)
    shape = nside.shape
    before, sigma_before = np.full(shape, np.nan), np.full(shape, np.nan)
    before[:, 1:], sigma_before[:, 1:] = made.mean[:, :-1], made.sigma[:, :-1]
    if edges[0] == 0:
        before[:, 0] = sigma_before[:, 0] = 0.0
    # Means of different resolutions share only some of their stars: their covariance is not known, and small.
    same = np.zeros(shape, bool)
    same[:, 1:] = nside[:, 1:] == nside[:, :-1]
    variance = made.sigma**2 + sigma_before**2 - 2.0 * np.where(same, made.cov_previous, 0.0)
    rows = np.flatnonzero((nside > 0).any(axis=1))
    values = {name: getattr(made, name) for name in ("mean", "sigma", "spread", "distance", "stars")}
    values |= {"differential": made.mean - before, "differential_sigma": np.sqrt(variance)}
    single = {name: value[rows].astype(np.float32) for name, value in values.items()}
    return DustMap(edges=edges, finest=nsides[0], pixel=pixels.start + rows, nside=nside[rows], about={}, **single)


@dataclass(frozen=True)
class Profile:
    """E along the line of sight of every pixel: straight lines from node to node, the first at the Sun.

    Attributes:
        at: (row, node) distances, rising [kpc]: 0, then the mean distance of every bin's stars.
        value, sigma: (row, node) E and its standard error [mag]. Bins without enough stars are bridged; NaN beyond the
            last bin that has them.
    """

    at: NDArray[np.float64]
    value: NDArray[np.float64]
    sigma: NDArray[np.float64]


def interval(at: NDArray[np.float64], row: NDArray[np.int64], distance: NDArray[np.float64]) -> NDArray[np.int64]:
    """(point,) the node beyond each distance, from 1 on; one more than there are beyond the last."""
    after = np.ones(row.shape, np.int64)
    for k in range(1, at.shape[1]):
        after += at[row, k] < distance
    return after


def profile(dust_map: DustMap) -> Profile:
    """Join the means of a map to lines."""
    at = nodes(dust_map.edges, dust_map.distance)
    return Profile(at, *(bridged(values, at) for values in (dust_map.mean, dust_map.sigma)))


def nodes(edges: NDArray[np.float64], distance: NDArray[np.floating]) -> NDArray[np.float64]:
    """(row, bin + 1) distances of the nodes of lines: the Sun, then each bin's stars, or its middle if it has none."""
    centre = 0.5 * (edges[1:] + edges[:-1])
    return np.concatenate(
        [np.zeros((len(distance), 1)), np.where(np.isfinite(distance), distance, centre)], axis=1, dtype=np.float64
    )


def bridged(values: NDArray[np.floating], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """(row, bin + 1) values at the nodes, 0 at the Sun; bins without one are bridged, NaN beyond the last."""
    return _without_gaps(np.concatenate([np.zeros((len(values), 1)), values], axis=1, dtype=np.float64), at)


def _without_gaps(values: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate over NaN between finite values of a row; NaN stays beyond the last."""
    n = values.shape[1]
    known, node, row = np.isfinite(values), np.arange(n), np.arange(len(values))[:, None]
    before = np.maximum.accumulate(np.where(known, node, 0), axis=1)
    after = np.minimum.accumulate(np.where(known, node, n)[:, ::-1], axis=1)[:, ::-1]
    safe = np.minimum(after, n - 1)
    gap = (safe > before) & (after < n)
    span = np.where(gap, at[row, safe] - at[row, before], 1.0)
    share = np.where(gap, (at - at[row, before]) / span, 0.0)
    filled = values[row, before] * (1.0 - share) + np.where(gap, values[row, safe], 0.0) * share
    return np.where(after < n, filled, np.nan)


def on_lines(
    pixels: PixelMap,
    at: NDArray[np.float64],
    tables: Sequence[NDArray[np.float64]],
    coords: "SkyCoord",
    distance: "Quantity | None" = None,
    *,
    covered: bool = False,
) -> list[NDArray[np.float64]]:
    """Read lines at positions.

    Values run linearly from node to node, the Sun and the mean distances of the stars of each bin; the last mean holds to
    the end of its bin. Beyond the last bin that has stars, and in pixels without any, the map knows nothing: NaN.

    Args:
        pixels: the map.
        at: (row, node) from `nodes`.
        tables: (row, node) from `bridged`.
        coords: positions in any frame, with or without distances.
        distance: distances, as a quantity; those of `coords` if None.
        covered: refuse positions that the map does not cover, in place of NaN.

    Returns:
        of each table, values in the shape of coords and distance together.

    Raises:
        InputError: no distance, one that is not a positive length, or with `covered` a position outside of the map.
    """
    import astropy.units as u
    from astropy_healpix import lonlat_to_healpix

    try:
        kpc = np.asarray(u.Quantity(coords.distance if distance is None else distance).to_value(u.kpc), np.float64)
    except u.UnitConversionError as error:
        raise InputError(
            "a dust map is asked at a distance: give lengths with a unit, such as 2 * u.kpc, or coords with distances"
        ) from error
    bad = ~(np.isfinite(kpc) & (kpc >= 0))
    if bad.any():
        raise InputError(f"{int(bad.sum())} of {kpc.size} distances are negative or not numbers; give positive ones")
    galactic = coords.galactic
    pixel = np.asarray(lonlat_to_healpix(galactic.l, galactic.b, pixels.finest, order="nested"), np.int64)
    pixel, kpc = np.broadcast_arrays(pixel, kpc)
    row = pixels.rows_of(pixel)
    found = [np.full(kpc.shape, np.nan) for _ in tables]
    on = row >= 0
    if on.any():
        r = kpc[on]
        after = interval(at, row[on], r)
        node = np.minimum(after, at.shape[1] - 1)
        low, high = at[row[on], node - 1], at[row[on], node]
        share = (r - low) / (high - low)
        # The last mean holds to the end of its bin.
        last = after > node
        usable = ~last | (r <= pixels.edges[-1])
        for out, table in zip(found, tables, strict=True):
            far = table[row[on], node]
            between = np.where(
                share == 0.0, table[row[on], node - 1], table[row[on], node - 1] * (1 - share) + far * share
            )
            out[on] = np.where(usable, np.where(last, far, between), np.nan)
    if covered and np.isnan(found[0]).any():
        _refuse_uncovered(galactic, kpc, np.isnan(found[0]))
    return found


def _refuse_uncovered(galactic: "SkyCoord", kpc: NDArray[np.float64], missing: NDArray[np.bool_]) -> None:
    longitude, latitude = (np.broadcast_to(a.deg, kpc.shape)[missing].flat[0] for a in (galactic.l, galactic.b))
    raise InputError(
        f"{int(missing.sum())} of {missing.size} positions are not covered by the dust map (first: l = {longitude:.3f}, "
        f"b = {latitude:.3f} deg, {kpc[missing].flat[0]:.3g} kpc); ask nearer ones, or without covered=True for NaN there"
    )
