"""Means per voxel, a voxel being one pixel times one distance bin: the paper's way (ZGR23 Section 5.4).

In: stars with their pixel as a number 0 ... n_pixels - 1, and the bins. Out: `Voxels`. `joint.py` gives the same from
the stars' full covariances.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.dust_map.selection import AnyMeasured, Measured


def profile_edges(n_bins: int, reach: float) -> NDArray[np.float64]:
    """(bin + 1,) edges [kpc] of the profile's fine bins: sinh(n arcsinh(reach) / bins), as under ZGR23 Eq. 30."""
    return np.sinh(np.arange(n_bins + 1) * np.arcsinh(reach) / n_bins)


@dataclass(frozen=True)
class Voxels:
    """Cumulative extinction of every pixel (at one resolution) in every bin.

    Attributes:
        mean: (pixel, bin) mean E of the voxel's stars [mag]; NaN without stars.
        sigma: (pixel, bin) its standard error [mag], from the stars' errors and the spread of E inside the voxel.
        spread: (pixel, bin) that spread: standard deviation of E among the voxel's stars beyond their errors [mag].
        distance: (pixel, bin) mean 1/parallax of the voxel's stars, weighted as E [kpc]: where the mean E holds.
        stars: (pixel, bin) number of stars; expected number where stars are shared between bins.
        cov_previous: (pixel, bin) covariance of the mean with that of the bin before; 0 where stars are not shared.
    """

    mean: NDArray[np.float64]
    sigma: NDArray[np.float64]
    spread: NDArray[np.float64]
    distance: NDArray[np.float64]
    stars: NDArray[np.float64]
    cov_previous: NDArray[np.float64]


@dataclass(frozen=True)
class Sums:
    """Sums over the stars of voxels: (star,) flat number of each star's voxel, and the (pixel, bin) shape of all."""

    voxel: NDArray[np.int64]
    shape: tuple[int, int]

    def __call__(self, values: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """(pixel, bin) sums of (star,) values; the number of stars if None."""
        return np.bincount(self.voxel, values, self.shape[0] * self.shape[1]).reshape(self.shape).astype(np.float64)

    def of(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(star,) value of each star's voxel."""
        return values.reshape(-1)[self.voxel]


def in_hard_bins(
    stars: AnyMeasured, pixel: NDArray[np.int64], n_pixels: int, edges: NDArray[np.float64]
) -> tuple[AnyMeasured, Sums]:
    """The stars that are in any bin of 1/parallax, and sums over them; a star on an edge belongs to the farther bin.

    Args:
        stars: after the cuts.
        pixel: (star,) 0 ... n_pixels - 1.
        n_pixels: how many.
        edges: (bin + 1,) [kpc].
    """
    n_bins = len(edges) - 1
    which = np.searchsorted(edges, 1.0 / stars.parallax, side="right") - 1
    inside = (which >= 0) & (which < n_bins)
    return stars.take(inside), Sums((pixel * n_bins + which)[inside], (n_pixels, n_bins))


def voxel_means(
    stars: Measured, pixel: NDArray[np.int64], n_pixels: int, edges: NDArray[np.float64], min_stars: int = 10
) -> Voxels:
    """Average E by inverse variance in hard bins of 1/parallax.

    The standard error adds to 1 / sum(w) what the spread of E inside the voxel - structure smaller than it, the gradient
    across it - contributes, with the moment estimate of that spread (DerSimonian & Laird 1986), which is never negative.
    A spread found from n stars is itself uncertain: in units of it the mean follows Student's t with n - 1 degrees of
    freedom, whose variance is (n - 1) / (n - 3), and the standard error contains that.

    Arguments as of `in_hard_bins`; voxels of fewer than `min_stars` are filled too, and left to the caller.
    """
    stars, total = in_hard_bins(stars, pixel, n_pixels, edges)
    e, w = stars.extinction, 1.0 / stars.var_e
    n, sum_w, sum_w2 = total(), total(w), total(w * w)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = total(w * e) / sum_w
        distance = total(w / stars.parallax) / sum_w
        q = total(w * (e - total.of(mean)) ** 2)
        spread2 = np.where(n > 1, np.maximum((q - (n - 1.0)) / (sum_w - sum_w2 / sum_w), 0.0), 0.0)
        few = np.where(n > 3, (n - 1.0) / (n - 3.0), 1.0)
        sigma = np.sqrt(1.0 / sum_w + few * spread2 * sum_w2 / sum_w**2)
    sigma, spread = (np.where(n == 0, np.nan, of) for of in (sigma, np.sqrt(spread2)))
    return Voxels(mean, sigma, spread, distance, n, np.zeros_like(mean))
