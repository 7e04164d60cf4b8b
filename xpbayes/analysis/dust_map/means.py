"""Means per voxel, a voxel being one pixel times one distance bin: the paper's way (ZGR23 Section 5.4), and beyond it.

In: stars with their pixel as a number 0 ... n_pixels - 1, and the bins. Out: `Voxels`.

A hard bin (`voxel_means`) takes 1/parallax for the distance. Stars near an edge then fall on its wrong side, more of
them inwards or outwards as the stars' density runs, and where errors of E and parallax go together those that are
misplaced bring an E that is wrong in the same sense. In `voxel_means_joint` every star belongs to one bin, but which one
is not known:

    p(E_i, plx_i) = sum_k pi_k  int_{bin k} N((E_i, plx_i) | (E, plx), C_i)  N(E | mean_k, spread_k^2)  dE dplx / width_k

with the parallax even inside a bin and, where bins are narrower than the errors of distance, a weak prior on the rise
from bin to bin. The integral over the parallax is the probability of the bin under N(plx_i, C_i)
(Eq. A below); given the bin, E_i is corrected for the parallax error that this implies (Eq. B). Means, spreads and
shares pi_k of each pixel are found by expectation-maximisation. One more component collects what lies beyond the last
edge.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.dust_map.selection import AnyMeasured, Measured

MAX_ITERATIONS = 60
TOLERANCE = 1e-3
"""Largest change of a mean, in standard errors, that ends the iteration."""
WIDEST_BIN = 0.06
"""Bins are cut into pieces no wider than this in arcsinh of the distance in kpc: the paper's fine bins are 0.058."""
BEYOND = 1.5
"""Narrow bins reach so much farther than the last edge, then one collects the rest."""
LEAST_LN_SHARE = 10.0
"""A star takes no part in bins that its parallax makes e^10 less likely than the best."""
SPREAD_STARS = 4.0
"""Weight of the expected spread, in stars: with few of them the spread could shrink to nothing on one star."""
FRACTIONAL_SPREAD, LEAST_SPREAD = 0.1, 0.01
"""Expected spread of E inside a voxel: a tenth of E, and 0.01 mag."""
RISE_FREEDOM, LEAST_FREEDOM = 1.0, 0.003
"""The rise of E from bin to bin is expected to scatter by so many times its typical value, and by 0.003 mag: where bins
are narrower than the errors of distance no data could tell them apart."""
SHARE_STARS = 5.0
"""Weight of the shares pi_k of all pixels together, in stars."""
LEAST_STARS = 0.5
"""Expected number of stars below which a voxel is empty."""
BLOCK_STARS = 50_000
"""Stars handled at once."""


def profile_edges(n_bins: int, reach: float) -> NDArray[np.float64]:
    """(bin + 1,) edges [kpc] of the profile's fine bins: sinh(n arcsinh(reach) / bins), as under ZGR23 Eq. 30."""
    return np.sinh(np.arange(n_bins + 1) * np.arcsinh(reach) / n_bins)


@dataclass(frozen=True)
class Voxels:
    """Cumulative extinction of every pixel (at one resolution) in every bin; (pixel, bin) each."""

    mean: NDArray[np.float64]  # mean E of the voxel's stars [mag]; NaN without stars
    sigma: NDArray[np.float64]  # its standard error [mag], from the stars' errors and the spread of E inside the voxel
    spread: NDArray[np.float64]  # standard deviation of E among the voxel's stars beyond their errors [mag]
    distance: NDArray[np.float64]  # mean 1/parallax of the stars, weighted as E [kpc]: where the mean holds
    stars: NDArray[np.float64]  # number; the expected one where stars are shared between bins
    cov_previous: NDArray[np.float64]  # of the mean with that of the bin before; 0 where stars are not shared


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

    Stars are those after the cuts, pixels (star,) 0 ... n_pixels - 1, edges (bin + 1,) [kpc].
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


def voxel_means_joint(
    stars: Measured, pixel: NDArray[np.int64], n_pixels: int, edges: NDArray[np.float64], min_stars: int = 10
) -> Voxels:
    """Average E in bins of distance, every star shared between bins by its (E, parallax) covariance.

    Wide bins are cut into narrow ones for the fit, inside of which the parallax may be taken as even, and the results
    averaged as the stars are shared. Arguments as of `voxel_means`; pixels without a bin of `min_stars` get no errors.
    """
    fine, bin_of = _narrow(edges)
    prior = _Prior.of(voxel_means(stars, pixel, n_pixels, fine), stars, fine)
    order = np.argsort(pixel, kind="stable")
    starts = np.searchsorted(pixel[order], np.arange(n_pixels + 1))
    shape = (n_pixels, len(edges) - 1)
    out = Voxels(*(np.full(shape, fill) for fill in (np.nan, np.nan, np.nan, np.nan, 0.0, 0.0)))
    first = 0
    while first < n_pixels:
        last = int(np.searchsorted(starts, starts[first] + BLOCK_STARS, side="right")) - 1
        last = min(max(last, first + 1), n_pixels)
        chosen = order[starts[first] : starts[last]]
        if len(chosen):
            found = _fit(stars.take(chosen), pixel[chosen] - first, last - first, fine, bin_of, prior, min_stars)
            for name in Voxels.__dataclass_fields__:
                getattr(out, name)[first:last] = getattr(found, name)
        first = last
    return out


def _narrow(edges: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Edges with more between them where bins are wide, and (narrow bin,) the wide bin of each.

    Narrow bins go on behind the last edge, as a further wide bin: stars come over the edge from there.
    """
    parts = []
    edges = np.append(edges, BEYOND * edges[-1])
    for near, far in zip(edges[:-1], edges[1:], strict=True):
        low, high = float(np.arcsinh(near)), float(np.arcsinh(far))
        n = int(np.ceil((high - low) / WIDEST_BIN))
        parts.append(np.append(near, np.sinh(np.linspace(low, high, n + 1))[1:-1]))
    bin_of = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return np.append(np.concatenate(parts), edges[-1]), bin_of


@dataclass(frozen=True)
class _Prior:
    """What all pixels of a piece of the sky have in common; (bin + 1,) each, the last beyond the last edge."""

    mean: NDArray[np.float64]  # E by hard bins, all pixels together, never falling [mag]
    rise: NDArray[np.float64]  # its steps, the first from E = 0 at the Sun
    stiffness: NDArray[np.float64]  # inverse variance of a pixel's own steps about them
    share: NDArray[np.float64]  # shares of the stars

    @classmethod
    def of(cls, hard: Voxels, stars: Measured, edges: NDArray[np.float64]) -> "_Prior":
        known = hard.stars > 0
        number = hard.stars.sum(axis=0)
        overall = np.where(known, hard.mean * hard.stars, 0.0).sum(axis=0) / np.maximum(number, 1.0)
        centre, seen = 0.5 * (edges[1:] + edges[:-1]), number > 0
        mean = np.interp(centre, np.append(0.0, centre[seen]), np.append(0.0, overall[seen]))
        mean = np.maximum.accumulate(np.maximum(np.append(mean, mean[-1]), 0.0))
        rise = np.diff(mean, prepend=0.0)
        share = np.append(number, np.sum(stars.parallax * edges[-1] < 1.0)) + 1.0
        return cls(mean, rise, 1.0 / (RISE_FREEDOM * rise + LEAST_FREEDOM) ** 2, share / share.sum())


def _fit(
    stars: Measured,
    pixel: NDArray[np.int64],
    n_pixels: int,
    edges: NDArray[np.float64],
    bin_of: NDArray[np.int64],
    prior: _Prior,
    min_stars: int,
) -> Voxels:
    n = len(edges)  # bins, and one beyond the last edge
    ln_bin, parallax, parallax_var = _bins_given_parallax(stars, edges)
    star, k = np.nonzero(ln_bin > ln_bin.max(axis=1, keepdims=True) - LEAST_LN_SHARE)
    first = np.searchsorted(star, np.arange(len(stars)))
    ln_bin, parallax, parallax_var = ln_bin[star, k], parallax[star, k], parallax_var[star, k]
    slope = (stars.cov / stars.var_plx)[star]
    # Eq. B: E given that the parallax lies in the bin.
    e = stars.extinction[star] - slope * (stars.parallax[star] - parallax)
    var = (stars.var_e - stars.cov**2 / stars.var_plx)[star] + slope**2 * parallax_var
    total = Sums(pixel[star] * n + k, (n_pixels, n))
    mean = np.broadcast_to(prior.mean, (n_pixels, n))
    expected_spread2 = (FRACTIONAL_SPREAD * mean + LEAST_SPREAD) ** 2
    spread2, shares = expected_spread2, np.broadcast_to(prior.share, mean.shape)
    for _ in range(MAX_ITERATIONS):
        total_var = var + total.of(spread2)
        residual = e - total.of(mean)
        ln_joint = ln_bin + np.log(total.of(shares)) - 0.5 * residual**2 / total_var - 0.5 * np.log(total_var)
        belongs = np.exp(ln_joint - np.maximum.reduceat(ln_joint, first)[star])
        belongs /= np.add.reduceat(belongs, first)[star]
        weight = belongs / total_var
        sum_w = total(weight)
        before, mean = mean, _smoothed(sum_w, total(weight * e), prior.rise, prior.stiffness)
        residual = e - total.of(mean)
        # Moment estimate of the spread, pulled to what is expected with the weight of a few stars.
        pull = SPREAD_STARS / (spread2 + LEAST_SPREAD**2) ** 2
        excess = total(weight / total_var * (residual**2 - var))
        spread2 = np.maximum((excess + pull * expected_spread2) / (total(weight / total_var) + pull), 1e-6)
        count = total(belongs)
        shares = (count + SHARE_STARS * prior.share) / (count.sum(axis=1, keepdims=True) + SHARE_STARS)
        if np.max(np.abs(mean - before) * np.sqrt(sum_w + prior.stiffness)) < TOLERANCE:
            break
    by_hand = [np.searchsorted(pixel[star], np.arange(n_pixels + 1)), star, k, weight * residual]
    return _in_wide_bins(mean, spread2, count, total(belongs / parallax), by_hand, bin_of, prior, min_stars)


def _in_wide_bins(
    mean: NDArray[np.float64],
    spread2: NDArray[np.float64],
    count: NDArray[np.float64],
    sum_distance: NDArray[np.float64],
    scores: list[NDArray[Any]],
    bin_of: NDArray[np.int64],
    prior: _Prior,
    min_stars: int,
) -> Voxels:
    """Average the narrow bins of every wide one as their stars are shared; errors from the information about all.

    That information is the sum over stars of the outer products of their scores - not the sum of weights, which would
    take every star's bin for known - plus that of the smoothness. Scores come as (star, bin, value) triplets sorted by
    pixel, with the start of each pixel.
    """
    n_pixels, n = count.shape
    n_wide = int(bin_of[-1])  # without what lies behind the last edge
    member = (bin_of[:, None] == np.arange(n_wide)).astype(np.float64)
    stars = count[:, :-1] @ member
    inside = np.where(stars < LEAST_STARS, np.nan, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        average = (count[:, :-1] * mean[:, :-1]) @ member / stars
        second = (count[:, :-1] * (spread2 + mean**2)[:, :-1]) @ member / stars
        distance = sum_distance[:, :-1] @ member / stars
    sigma, cov_previous = np.full(stars.shape, np.nan), np.zeros(stars.shape)
    smoothness = np.diag(prior.stiffness + np.append(prior.stiffness[1:], 0.0))
    k = np.arange(1, n)
    smoothness[k, k - 1] = smoothness[k - 1, k] = -prior.stiffness[1:]
    starts, star, which, value = scores
    for p in np.flatnonzero((stars >= min_stars).any(axis=1)):
        part = slice(starts[p], starts[p + 1])
        gradient = np.zeros((star[part][-1] - star[part][0] + 1, n))
        gradient[star[part] - star[part][0], which[part]] = value[part]
        covariance = np.linalg.inv(gradient.T @ gradient + smoothness)
        averaging = member * count[p, :-1, None] / np.maximum(stars[p], LEAST_STARS)
        wide = averaging.T @ covariance[:-1, :-1] @ averaging
        sigma[p] = np.sqrt(np.diagonal(wide))
        cov_previous[p, 1:] = np.diagonal(wide, -1)
    spread = np.sqrt(np.maximum(second - average**2, 0.0))
    return Voxels(average * inside, sigma * inside, spread * inside, distance * inside, stars, cov_previous)


def _bins_given_parallax(
    stars: Measured, edges: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Eq. A: (star, bin + 1) ln probability density of each bin, then mean and variance of the parallax inside it.

    Moments of a normal distribution cut at the bin's edges; the last bin lies beyond the last edge.
    """
    from scipy.special import log_ndtr

    sigma = np.sqrt(stars.var_plx)[:, None]
    with np.errstate(divide="ignore"):
        high = np.append(1.0 / edges[:-1], 1.0 / edges[-1])  # [mas], infinite for a bin that begins at 0
        low = np.append(1.0 / edges[1:], 0.0)
    width = np.where(np.isfinite(high), high, 20.0 + low) - low  # 50 pc instead of 0: only the scale of a share
    a, b = (low - stars.parallax[:, None]) / sigma, (high - stars.parallax[:, None]) / sigma
    # By symmetry both limits can be brought to the side where the tail is accurate.
    flip = a > 0
    a, b = np.where(flip, -b, a), np.where(flip, -a, b)
    ln_a, ln_b = log_ndtr(a), log_ndtr(b)
    ln_mass = ln_b + np.log1p(-np.exp(np.minimum(ln_a - ln_b, -1e-12)))
    ln_norm = 0.5 * np.log(2.0 * np.pi)
    with np.errstate(invalid="ignore", over="ignore"):
        at_a, at_b = (np.exp(np.minimum(-0.5 * x**2 - ln_norm - ln_mass, 300.0)) for x in (a, b))
        shift = at_a - at_b
        edge = np.where(np.isfinite(a), a * at_a, 0.0) - np.where(np.isfinite(b), b * at_b, 0.0)
        variance = 1.0 + edge - shift**2
    inside = ln_mass > -30.0
    shift = np.where(inside, np.where(flip, -shift, shift), 0.0)
    variance = np.where(inside, variance, 0.0).clip(0.0, 1.0)
    return ln_mass - np.log(width), stars.parallax[:, None] + sigma * shift, sigma**2 * variance


def _smoothed(
    sum_w: NDArray[np.float64], sum_we: NDArray[np.float64], rise: NDArray[np.float64], stiffness: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(pixel, bin + 1) most probable means under their stars and N(mean_k - mean_(k-1) | rise_k, 1 / stiffness_k).

    The normal equations are tridiagonal: solved by elimination for all pixels at once.
    """
    n = sum_w.shape[1]
    beyond = np.append(stiffness[1:], 0.0)
    diagonal = sum_w + stiffness + beyond
    right = sum_we + stiffness * rise - np.append(stiffness[1:] * rise[1:], 0.0)
    for k in range(1, n):
        factor = stiffness[k] / diagonal[:, k - 1]
        diagonal[:, k] -= factor * stiffness[k]
        right[:, k] += factor * right[:, k - 1]
    out = np.empty_like(right)
    out[:, -1] = right[:, -1] / diagonal[:, -1]
    for k in range(n - 2, -1, -1):
        out[:, k] = (right[:, k] + stiffness[k + 1] * out[:, k + 1]) / diagonal[:, k]
    return out
