"""A dust map beside the truth, voxel by voxel: bias, pull, resolution. Numbers only.

In: a map and any function E(l, b, distance) of Galactic degrees and kpc - a simulated distribution, or another map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.dust_map.healpix_map import DustMap

Extinction = Callable[[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""(point,) Galactic l, b [deg] and distance [kpc] -> (point,) E [mag]."""
OVERSAMPLING = 2
"""The truth is averaged over so many points along each side of the finest pixels."""
RADIAL_POINTS = 8
"""And over so many distances of a bin."""
SHARES = (np.arange(RADIAL_POINTS) + 0.5) / RADIAL_POINTS


@dataclass(frozen=True)
class Compared:
    """Voxels with a differential extinction, each counted once however many fine pixels it covers.

    Attributes:
        bin: (voxel,) number of the distance bin.
        nside: (voxel,) the finer of the resolutions of the two means.
        stars: (voxel,) the fewer of their stars.
        differential, differential_sigma, differential_true: (voxel,) [mag].
        mean, sigma, mean_true: (voxel,) cumulative E [mag].
    """

    bin: NDArray[np.int64]
    nside: NDArray[np.int64]
    stars: NDArray[np.float64]
    differential: NDArray[np.float64]
    differential_sigma: NDArray[np.float64]
    differential_true: NDArray[np.float64]
    mean: NDArray[np.float64]
    sigma: NDArray[np.float64]
    mean_true: NDArray[np.float64]

    @property
    def relative_bias(self) -> NDArray[np.float64]:
        """(voxel,) differential extinction over its truth, minus one."""
        return self.differential / self.differential_true - 1.0

    @property
    def pull(self) -> NDArray[np.float64]:
        """(voxel,) (differential extinction - truth) / standard error."""
        return (self.differential - self.differential_true) / self.differential_sigma


def true_means(
    dust_map: DustMap,
    truth: Extinction,
    distances: NDArray[np.float64] | None = None,
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """(row, bin) the truth averaged over each voxel: over the solid angle of its pixel, and over the bin.

    The pixel is the one whose resolution the map used; where the map has no value, the finest.

    Args:
        dust_map: the map.
        truth: E anywhere.
        distances: (star,) true distances of stars [kpc]: inside a bin the truth is averaged as these are spread over
            the whole field. Evenly in distance if None. A mean over stars is the former, and in wide bins, where stars
            crowd at one end, far from the latter.
        weights: (star,) of these stars; even if None. An inverse-variance mean leans to where errors are small.
    """
    fine = _fine_means(dust_map, truth, distances, weights)
    out = fine.copy()
    for nside in np.unique(dust_map.nside[dust_map.nside > 0]):
        parent = dust_map.pixel >> 2 * int(np.log2(dust_map.finest // nside))
        _, which = np.unique(parent, return_inverse=True)
        number = np.bincount(which)
        for k in range(fine.shape[1]):
            used = dust_map.nside[:, k] == nside
            out[used, k] = (np.bincount(which, fine[:, k]) / number)[which[used]]
    return out


def _fine_means(
    dust_map: DustMap, truth: Extinction, distances: NDArray[np.float64] | None, weights: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    import astropy.units as u
    from astropy_healpix import healpix_to_lonlat

    n_sub = OVERSAMPLING**2
    children = dust_map.pixel[:, None] * n_sub + np.arange(n_sub)
    lon, lat = healpix_to_lonlat(children.reshape(-1), dust_map.finest * OVERSAMPLING, order="nested")
    longitude, latitude = lon.to_value(u.deg), lat.to_value(u.deg)
    out = np.zeros(dust_map.mean.shape)
    for k in range(len(dust_map.edges) - 1):
        near, far = dust_map.edges[k], dust_map.edges[k + 1]
        at = near + SHARES * (far - near)
        if distances is not None and (inside := (distances >= near) & (distances < far)).sum() >= RADIAL_POINTS:
            weight = None if weights is None else weights[inside]
            at = np.quantile(distances[inside], SHARES, method="inverted_cdf", weights=weight)
        for distance in at:
            value = truth(longitude, latitude, np.full(longitude.shape, distance))
            out[:, k] += value.reshape(-1, n_sub).mean(axis=1) / RADIAL_POINTS
    return out


def compare(dust_map: DustMap, true: NDArray[np.float64], rows: NDArray[np.bool_] | None = None) -> Compared:
    """Compare every voxel that has a differential extinction with the truth.

    Args:
        dust_map: the map.
        true: (row, bin) from `true_means`.
        rows: (row,) which pixels take part; all if None.
    """
    n_bins = true.shape[1]
    before, nside_before, stars_before = np.full(true.shape, np.nan), dust_map.nside.copy(), dust_map.stars.copy()
    before[:, 1:] = true[:, :-1]
    nside_before[:, 1:], stars_before[:, 1:] = dust_map.nside[:, :-1], dust_map.stars[:, :-1]
    if dust_map.edges[0] == 0:
        before[:, 0] = 0.0
    finer = np.maximum(dust_map.nside, nside_before)
    usable = np.isfinite(dust_map.differential)
    if rows is not None:
        usable &= rows[:, None]
    picked: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for k in range(n_bins):
        row = np.flatnonzero(usable[:, k])
        shift = 2 * np.log2(dust_map.finest // finer[row, k]).astype(np.int64)
        key = np.stack([finer[row, k], dust_map.pixel[row] >> shift])
        _, first = np.unique(key, axis=1, return_index=True)
        picked.append((row[first], np.full(len(first), k)))
    r = np.concatenate([rows for rows, _ in picked])
    k_of = np.concatenate([bins for _, bins in picked])

    def at(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(values[r, k_of], np.float64)

    return Compared(
        bin=k_of,
        nside=finer[r, k_of].astype(np.int64),
        stars=at(np.minimum(dust_map.stars, stars_before)),
        differential=at(dust_map.differential),
        differential_sigma=at(dust_map.differential_sigma),
        differential_true=at(true - before),
        mean=at(dust_map.mean),
        sigma=at(dust_map.sigma),
        mean_true=at(true),
    )


def blur_scale(
    dust_map: DustMap, truth: Extinction, rows: NDArray[np.bool_], near: float, far: float, step: float = 0.02
) -> float:
    """Resolution along the line of sight: the Gaussian blur of the truth that is most like the map between two distances.

    Args:
        dust_map: a map with fine bins.
        truth: E anywhere.
        rows: (row,) pixels that take part.
        near, far: range of distances [kpc].
        step: of the blur, and of the distances at which the map is read [kpc].

    Returns:
        standard deviation of the blur [kpc] in distance, up to a third of the far end; NaN without enough voxels, or
        where no blur up to there is best: the truth has too little structure to tell.
    """
    import astropy.units as u
    from astropy_healpix import healpix_to_lonlat

    middle = 0.5 * (dust_map.edges[1:] + dust_map.edges[:-1])
    bins = np.flatnonzero((middle >= near) & (middle < far))
    used = rows & (np.isfinite(dust_map.differential[:, bins]).sum(axis=1) >= min(3, len(bins)))
    if not used.any():
        return float("nan")
    reach = dust_map.edges[-1] * 1.5
    grid = np.arange(step, reach, step)
    nside = np.median(dust_map.nside[used][:, bins].max(axis=1)).astype(int)
    parent = np.unique(dust_map.pixel[used] >> 2 * int(np.log2(dust_map.finest // nside)))
    lon, lat = healpix_to_lonlat(parent, nside, order="nested")
    line = truth(
        np.repeat(lon.to_value(u.deg), len(grid)), np.repeat(lat.to_value(u.deg), len(grid)), np.tile(grid, len(parent))
    )
    line = np.concatenate([np.zeros((len(parent), 1)), line.reshape(len(parent), -1)], axis=1)
    row = dust_map.rows_of(parent << 2 * int(np.log2(dust_map.finest // nside)))
    found, sigma = dust_map.differential[row][:, bins], dust_map.differential_sigma[row][:, bins]
    scales = np.arange(0.0, far / 3.0 + step, step)
    misfit = []
    at = np.append(0.0, grid)
    for scale in scales:
        width = np.maximum(np.abs(at[:, None] - at[None, :]) / max(scale, 1e-9), 0.0)
        kernel = np.eye(len(at)) if scale == 0 else np.exp(-0.5 * np.minimum(width, 30.0) ** 2)
        blurred = line @ (kernel / kernel.sum(axis=1, keepdims=True)).T
        rise = np.stack([np.interp(middle, at, values) for values in blurred])
        rise = np.diff(rise, axis=1, prepend=0.0)[:, bins]
        misfit.append(np.nansum(np.clip((found - rise) / sigma, -10, 10) ** 2))
    best = int(np.argmin(misfit))
    return float(scales[best]) if best < len(scales) - 1 else float("nan")


def robust_std(values: NDArray[np.float64]) -> float:
    """Standard deviation from the 16th and 84th percentiles."""
    low, high = np.percentile(values, [15.865, 84.135])
    return float(0.5 * (high - low))
