"""Which dust: mean xi and R(V) of the extinction curve R + xi R1 over the sky, in distance bins, and from above.

What adds up along a line of sight is E and E xi: a voxel's mean xi is the mean of E xi over that of E, both with the same
weights, and the dust between two bins has the difference of the one over that of the other. The finest resolution wins
at which enough stars tell of xi and its error is small enough: a star says less of its curve than of its extinction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.dust_map.birds_eye import HEIGHT_STEPS, MIN_COVERED, FromAbove, cell_centres, crossings
from xpbayes.analysis.dust_map.healpix_map import PixelMap, at_finest, bin_before, known_around
from xpbayes.analysis.dust_map.means import in_hard_bins
from xpbayes.analysis.dust_map.selection import MeasuredCurve
from xpbayes.models.extinction import MAX_XI_ERROR, ReddeningLaw

if TYPE_CHECKING:
    from astropy.coordinates import SkyCoord
    from astropy.units import Quantity

COARSEST = 8
"""Resolutions go on below those of the map of E, in halves, down to this nside."""
STEP_KPC = 0.05
MOMENTS = ("along", "extinction", "var_along", "var_extinction", "cov")
"""What `ratio` takes: mean E xi and mean E, their variances and covariance."""

QUANTITIES = {
    "extinction": ("EXTINCTION", "E", "mag", "mean E of the stars in the bin, weighted as they tell of xi"),
    "along": ("XI_EXTINCTION", "E", "mag", "mean E xi of the same stars, equally weighted"),
    "var_extinction": ("VAR_EXTINCTION", "E", "mag2", "variance of the mean E"),
    "var_along": ("VAR_XI_EXTINCTION", "E", "mag2", "variance of the mean E xi"),
    "cov": ("COVARIANCE", "E", "mag2", "covariance of both"),
    "xi": ("XI", "E", "", "xi of all dust as far as the bin: mean E xi over mean E"),
    "xi_sigma": ("XI_SIGMA", "E", "", "its standard error"),
    "r_v": ("R_V", "E", "", "R(V) of that xi"),
    "r_v_sigma": ("R_V_SIGMA", "E", "", "its standard error"),
    "dust_xi": ("DUST_XI", "E", "", "xi of the dust between this bin and the one before"),
    "dust_xi_sigma": ("DUST_XI_SIGMA", "E", "", "its standard error"),
    "dust_r_v": ("DUST_R_V", "E", "", "R(V) of that xi"),
    "dust_r_v_sigma": ("DUST_R_V_SIGMA", "E", "", "its standard error"),
    "distance": ("DISTANCE", "E", "kpc", "mean 1/parallax of the stars: where the means hold"),
    "stars": ("STARS", "E", "", "stars that tell of xi"),
    "nside": ("NSIDE", "I", "", "resolution that the means were taken at; 0 where there is none"),
}
"""Attribute: name of the HDU, FITS format, unit, description."""


@dataclass(frozen=True)
class CurveVoxels:
    """Mean E and E xi of every pixel in every bin; (pixel, bin) each, NaN without stars.

    The expected error chooses the resolution: to choose by the scatter of a few stars would be to choose stars that agree
    by chance.
    """

    extinction: NDArray[np.float64]  # mean E [mag]
    along: NDArray[np.float64]  # mean E xi [mag]
    var_extinction: NDArray[np.float64]  # of the means, by the scatter of the voxel's stars [mag^2], as the next two
    var_along: NDArray[np.float64]
    cov: NDArray[np.float64]
    distance: NDArray[np.float64]  # mean 1/parallax, weighted alike [kpc]
    stars: NDArray[np.float64]  # stars with any weight
    expected: NDArray[np.float64]  # standard error of xi by the stars' own errors alone


def ratio(
    along: NDArray[Any], extinction: NDArray[Any], var_along: NDArray[Any], var_e: NDArray[Any], cov: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Xi of an amount of dust, E xi over E, and its standard error; NaN where there is no dust."""
    with np.errstate(divide="ignore", invalid="ignore"):
        xi = np.where(extinction > 0, along / extinction, np.nan)
        return xi, np.sqrt(np.maximum(var_along - 2.0 * xi * cov + xi**2 * var_e, 0.0)) / extinction


def curve_means(
    stars: MeasuredCurve, pixel: NDArray[np.int64], n_pixels: int, edges: NDArray[np.float64]
) -> CurveVoxels:
    """Average E and E xi, weighted by the inverse variance of E xi, in hard bins of 1/parallax.

    The errors are from the scatter of the stars about the means: their own errors and the structure inside the voxel. From
    n stars it is itself uncertain, which makes the means follow Student's t, with (n - 1) / (n - 3) times the variance.
    Arguments as of `in_hard_bins`.
    """
    known = stars.weight > 0
    stars, total = in_hard_bins(stars.take(known), pixel[known], n_pixels, edges)
    w = stars.weight
    n, sum_w = total(), total(w)
    with np.errstate(divide="ignore", invalid="ignore"):
        e, along, distance = (total(w * v) / sum_w for v in (stars.amount, stars.along, 1.0 / stars.parallax))
        of_e, of_along = w * (stars.amount - total.of(e)), w * (stars.along - total.of(along))
        few = np.where(n > 3, n / (n - 3.0), np.nan) / sum_w**2
        var_e, var_along, cov = (few * total(v) for v in (of_e**2, of_along**2, of_e * of_along))
        expected = np.where(e > 0, 1.0 / np.sqrt(sum_w) / e, np.inf)
    return CurveVoxels(e, along, var_e, var_along, cov, distance, n, expected)


@dataclass(frozen=True, repr=False)
class CurveMap(PixelMap):
    """Xi and R(V), by a law of R(V) along xi, in pixels and distance bins: (row, bin) what `QUANTITIES` says.

    Of the dust between two bins NaN where that is so little that its xi is known to no better than `MAX_XI_ERROR`.
    """

    law: ReddeningLaw
    extinction: NDArray[np.float32]
    along: NDArray[np.float32]
    var_extinction: NDArray[np.float32]
    var_along: NDArray[np.float32]
    cov: NDArray[np.float32]
    xi: NDArray[np.float32]
    xi_sigma: NDArray[np.float32]
    r_v: NDArray[np.float32]
    r_v_sigma: NDArray[np.float32]
    dust_xi: NDArray[np.float32]
    dust_xi_sigma: NDArray[np.float32]
    dust_r_v: NDArray[np.float32]
    dust_r_v_sigma: NDArray[np.float32]
    QUANTITIES = QUANTITIES
    KIND, FILE = "map of R(V)", "curve_profile.fits"
    TYPICAL = {"median_r_v": "r_v", "median_r_v_sigma": "r_v_sigma"}

    def curve(
        self, coords: "SkyCoord", distance: "Quantity | None" = None, *, covered: bool = False
    ) -> tuple[Any, Any, Any, Any]:
        """Read the mean curve of all dust in front of positions: R(V), its standard error, xi, its standard error.

        E and E xi rise linearly from 0 at the Sun through the means of the bins; arguments and errors are those of
        `DustMap.extinction`. R(V) is NaN where xi lies beyond the laws.
        """
        along, e, sigma = self.on_lines(self._lines, coords, distance, covered=covered)
        with np.errstate(divide="ignore", invalid="ignore"):
            xi = np.where(e > 0, along / e, np.nan)
        r_v, r_v_sigma = self.law.measured_r_v(xi, sigma)
        return r_v[()], r_v_sigma[()], xi[()], sigma[()]

    @cached_property
    def _lines(self) -> list[NDArray[np.float64]]:
        along, e, sigma = (self.bridged(values) for values in (self.along, self.extinction, self.xi_sigma))
        # A share of the first bin's dust has that dust's xi, and its error.
        sigma[:, 0] = sigma[:, 1]
        for table in (along, e):
            table[:, 0] = 1e-9 * table[:, 1]
        return [along, e, sigma]

    def more_tables(self) -> list[Any]:
        """The law: XI, R_V."""
        from astropy.io import fits

        columns = [fits.Column("XI", "D", array=self.law.xi), fits.Column("R_V", "D", array=self.law.at)]
        return [fits.BinTableHDU.from_columns(columns, name="LAW")]

    @classmethod
    def from_tables(cls, units: Any) -> dict[str, Any]:
        """The law."""
        xi, at = (tuple(np.asarray(units["LAW"].data[name], float).tolist()) for name in ("XI", "R_V"))
        if len(xi) != len(at) or len(xi) < 2 or not (np.diff(xi) > 0).all():
            raise ValueError("its table of R(V) does not rise")
        return {"law": ReddeningLaw(xi, at)}


def curve_map_of_piece(
    stars: MeasuredCurve,
    pixels: range,
    edges: NDArray[np.float64],
    nsides: Sequence[int],
    min_stars: int,
    max_error: float,
    law: ReddeningLaw,
) -> CurveMap:
    """Make the map of one piece of the sky, as `map_of_piece`.

    A voxel may have the standard error `max_error` of xi by the stars' own errors.
    """

    def average(stars: MeasuredCurve, pixel: NDArray[np.int64], n_pixels: int) -> CurveVoxels:
        return curve_means(stars, pixel, n_pixels, edges)

    def good(voxels: CurveVoxels) -> NDArray[np.bool_]:
        return (voxels.stars >= max(min_stars, 4)) & (voxels.expected <= max_error)

    made, nside = at_finest(stars, pixels, nsides, average, good)
    values = {name: getattr(made, name) for name in CurveVoxels.__dataclass_fields__ if name in QUANTITIES}
    own = [values[name] for name in MOMENTS]
    # Of the dust between two bins: differences of the means; bins are independent, so variances add up.
    steps = [of + sign * bin_before(of, edges) for of, sign in zip(own, (-1, -1, 1, 1, 1), strict=True)]
    between = known_well(*ratio(*steps))
    for of, (xi, sigma) in (("", ratio(*own)), ("dust_", between)):
        values |= {f"{of}xi": xi, f"{of}xi_sigma": sigma}
        values[f"{of}r_v"], values[f"{of}r_v_sigma"] = law.measured_r_v(xi, sigma)
    return CurveMap.of_piece(pixels, edges, nside, values, finest=nsides[0], law=law)


def known_well(
    xi: NDArray[np.float64], sigma: NDArray[np.float64], shown: NDArray[np.bool_] | bool = True
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Xi and its standard error where that is no larger than `MAX_XI_ERROR`, else NaN."""
    shown = shown & (sigma <= MAX_XI_ERROR)
    return np.where(shown, xi, np.nan), np.where(shown, sigma, np.nan)


@dataclass(frozen=True, kw_only=True)
class CurveFromAbove(FromAbove):
    """Curves of the dust with |z| < max_height: (y, x) xi, R(V) and standard errors.

    NaN where the map covers less than half of the column, or xi is known to no better than `MAX_XI_ERROR`.
    """

    xi: NDArray[np.float64]
    xi_sigma: NDArray[np.float64]
    r_v: NDArray[np.float64]
    r_v_sigma: NDArray[np.float64]
    IMAGES = dict.fromkeys(("r_v", "r_v_sigma", "xi", "xi_sigma", "covered"), "")


def curve_from_above(curve_map: CurveMap, max_height: float = 0.4, step: float = STEP_KPC) -> CurveFromAbove:
    """Xi of the dust in columns through the plane: the sum of d(E xi)/dr over that of dE/dr; arguments as of `birds_eye`.

    Both are linear in the means of the voxels that the column crosses, whose errors are independent; between two bins with
    values the steps are straight lines.
    """
    from scipy.sparse import csr_array

    axis, at = cell_centres(float(curve_map.edges[-1]), step), curve_map.at
    voxel, first = _voxels(curve_map)
    n_nodes = at.shape[1]
    nearer, farther = known_around(np.concatenate([np.ones((len(at), 1), bool), curve_map.nside > 0], axis=1))
    covered, parts = np.zeros(len(axis) ** 2), []
    for cell, row, node in crossings(curve_map, axis, max_height):
        beyond = np.where(node < n_nodes, farther[row, node.clip(0, n_nodes - 1)], n_nodes)
        inside = beyond < n_nodes
        cell, row, node, beyond = cell[inside], row[inside], node[inside], beyond[inside]
        before = nearer[row, node - 1]
        covered[cell] += 1.0
        by = 1.0 / (at[row, beyond] - at[row, before])
        behind = before > 0  # the Sun has no dust, and no error
        parts.append((cell, voxel[row, beyond - 1], by))
        parts.append((cell[behind], voxel[row, before - 1][behind], -by[behind]))
    cells, voxels, by = (np.concatenate(part) for part in zip(*parts, strict=True))
    sums = csr_array((by, (cells, voxels)), shape=(len(covered), max(len(first), 1)))
    sums.sum_duplicates()
    each = [getattr(curve_map, name).reshape(-1)[first].astype(np.float64) for name in MOMENTS]
    each = [values if len(values) else np.zeros(1) for values in each]
    xi, sigma = ratio(*(sums @ v for v in each[:2]), *(sums.power(2) @ v for v in each[2:]))
    share = covered / HEIGHT_STEPS
    xi, sigma = known_well(xi, sigma, share >= MIN_COVERED)
    r_v, r_v_sigma = curve_map.law.measured_r_v(xi, sigma)
    images = {"xi": xi, "xi_sigma": sigma, "r_v": r_v, "r_v_sigma": r_v_sigma, "covered": share}
    square = {name: image.reshape(len(axis), len(axis)) for name, image in images.items()}
    return CurveFromAbove(axis=axis, max_height=max_height, **square)


def _voxels(curve_map: CurveMap) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(row, bin) number of each voxel, those of one coarse pixel being the same; (voxel,) where it is first, flat."""
    nside = np.maximum(curve_map.nside.astype(np.int64), 1)
    parent = curve_map.pixel[:, None] // (curve_map.finest // nside) ** 2
    n_bins = nside.shape[1]
    key = (12 * nside**2 + parent) * n_bins + np.arange(n_bins)  # pixels in the numbering of all resolutions
    _, first, number = np.unique(key, return_index=True, return_inverse=True)
    return number.reshape(key.shape), first
