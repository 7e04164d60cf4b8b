"""Which dust: mean xi and R(V) of the extinction curve R + xi R1 over the sky, in distance bins, and from above.

What adds up along a line of sight is E and E xi: a voxel's mean xi is the mean of E xi over that of E, both with the same
weights, and the dust between two bins has the difference of the one over that of the other. The finest resolution wins
at which enough stars tell of xi and its error is small enough: a star says less of its curve than of its extinction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.dust_map.birds_eye import HEIGHT_STEPS, MIN_COVERED, cell_centres, crossings, write_images
from xpbayes.analysis.dust_map.healpix_map import bridged, nodes, on_lines
from xpbayes.analysis.dust_map.pixels import PixelMap, at_finest
from xpbayes.analysis.dust_map.selection import MeasuredCurve
from xpbayes.models.extinction import MAX_XI_ERROR, ReddeningLaw

if TYPE_CHECKING:
    from astropy.coordinates import SkyCoord
    from astropy.units import Quantity

COARSEST = 8
"""Resolutions go on below those of the map of E, in halves, down to this nside."""
STEP_KPC = 0.05

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

    Attributes:
        extinction, along: the means [mag].
        var_extinction, var_along, cov: of the means, by the scatter of the voxel's stars [mag^2].
        distance: mean 1/parallax, weighted alike [kpc].
        stars: stars with any weight.
        expected: standard error of xi by the stars' own errors alone. It chooses the resolution: to choose by the scatter of
            a few stars would be to choose stars that agree by chance.
    """

    extinction: NDArray[np.float64]
    along: NDArray[np.float64]
    var_extinction: NDArray[np.float64]
    var_along: NDArray[np.float64]
    cov: NDArray[np.float64]
    distance: NDArray[np.float64]
    stars: NDArray[np.float64]
    expected: NDArray[np.float64]

    def ratio(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Xi and its standard error."""
        return ratio(self.along, self.extinction, self.var_along, self.var_extinction, self.cov)


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

    Args:
        stars: after the cuts.
        pixel: (star,) 0 ... n_pixels - 1.
        n_pixels: how many.
        edges: (bin + 1,) [kpc]; a star on an edge belongs to the farther bin.
    """
    n_bins = len(edges) - 1
    which = np.searchsorted(edges, 1.0 / stars.parallax, side="right") - 1
    inside = (which >= 0) & (which < n_bins) & (stars.weight > 0)
    voxel, w = pixel[inside] * n_bins + which[inside], stars.weight[inside]

    def total(values: NDArray[np.float64] | None) -> NDArray[np.float64]:
        return np.bincount(voxel, values, n_pixels * n_bins).reshape(n_pixels, n_bins).astype(np.float64)

    n, sum_w = total(None), total(w)
    with np.errstate(divide="ignore", invalid="ignore"):
        e, along, distance = (total(w * v[inside]) / sum_w for v in (stars.amount, stars.along, 1.0 / stars.parallax))
        of_e = w * (stars.amount[inside] - e.reshape(-1)[voxel])
        of_along = w * (stars.along[inside] - along.reshape(-1)[voxel])
        few = np.where(n > 3, n / (n - 3.0), np.nan) / sum_w**2
        var_e, var_along, cov = (few * total(v) for v in (of_e**2, of_along**2, of_e * of_along))
        expected = np.where(e > 0, 1.0 / np.sqrt(sum_w) / e, np.inf)
    return CurveVoxels(e, along, var_e, var_along, cov, distance, n, expected)


@dataclass(frozen=True, repr=False)
class CurveMap(PixelMap):
    """Xi and R(V) in pixels and distance bins.

    Attributes:
        law: R(V) along xi.
        extinction, along, var_extinction, var_along, cov: (row, bin) mean E and E xi, and covariance [mag, mag^2].
        xi, xi_sigma, r_v, r_v_sigma: (row, bin) of all dust as far as the bin, and standard errors.
        dust_xi, dust_xi_sigma, dust_r_v, dust_r_v_sigma: (row, bin) of the dust between this bin and the one before; NaN
            where that is so little that its xi is known to no better than `MAX_XI_ERROR`.
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

    def curve(
        self, coords: "SkyCoord", distance: "Quantity | None" = None, *, covered: bool = False
    ) -> tuple[Any, Any, Any, Any]:
        """Read the mean curve of all dust in front of positions: R(V), its standard error, xi, its standard error.

        E and E xi rise linearly from 0 at the Sun through the means of the bins; arguments and errors are those of
        `DustMap.extinction`. R(V) is NaN where xi lies beyond the laws.
        """
        along, e, sigma = on_lines(self, self.at, self._lines, coords, distance, covered=covered)
        with np.errstate(divide="ignore", invalid="ignore"):
            xi = np.where(e > 0, along / e, np.nan)
        r_v, r_v_sigma = self.law.measured_r_v(xi, sigma)
        return r_v[()], r_v_sigma[()], xi[()], sigma[()]

    @cached_property
    def at(self) -> NDArray[np.float64]:
        """(row, node) distances of the nodes of the lines of E and E xi [kpc]."""
        return nodes(self.edges, self.distance)

    @cached_property
    def _lines(self) -> list[NDArray[np.float64]]:
        along, e, sigma = (bridged(values, self.at) for values in (self.along, self.extinction, self.xi_sigma))
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

    @classmethod
    def of_piece(
        cls,
        stars: MeasuredCurve,
        pixels: range,
        edges: NDArray[np.float64],
        nsides: Sequence[int],
        min_stars: int,
        max_error: float,
        law: ReddeningLaw,
    ) -> Self:
        """Make the map of one piece of the sky.

        Args:
            stars: of the piece, pixels at the finest nside.
            pixels: the piece's, a whole number of the coarsest ones.
            edges: (bin + 1,) [kpc].
            nsides: resolutions, finest first.
            min_stars: stars that a voxel needs.
            max_error: the greatest standard error of xi by the stars' own errors.
            law: R(V) along xi.
        """

        def average(shift: int) -> CurveVoxels:
            return curve_means(stars, (stars.pixel - pixels.start) >> 2 * shift, len(pixels) >> 2 * shift, edges)

        def good(voxels: CurveVoxels) -> NDArray[np.bool_]:
            return (voxels.stars >= max(min_stars, 4)) & (voxels.expected <= max_error)

        made, nside = at_finest(pixels, nsides, average, good)
        values = {name: getattr(made, name) for name in CurveVoxels.__dataclass_fields__ if name in QUANTITIES}
        values |= dict(zip(("xi", "xi_sigma"), made.ratio(), strict=True))
        values |= dict(zip(("dust_xi", "dust_xi_sigma"), _between(made, from_sun=edges[0] == 0), strict=True))
        for of in ("", "dust_"):
            r_v = law.measured_r_v(values[f"{of}xi"], values[f"{of}xi_sigma"])
            values |= dict(zip((f"{of}r_v", f"{of}r_v_sigma"), r_v, strict=True))
        rows = np.flatnonzero((nside > 0).any(axis=1))
        single = {name: value[rows].astype(np.float32) for name, value in values.items()}
        return cls(
            edges=edges, finest=nsides[0], pixel=pixels.start + rows, law=law, nside=nside[rows], about={}, **single
        )


def _between(made: CurveVoxels, *, from_sun: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Xi of the dust between a bin and the one before, and its standard error; bins of stars are independent."""
    names = ("along", "extinction", "var_along", "var_extinction", "cov")
    own = [getattr(made, name) for name in names]
    before = [np.concatenate([np.full((len(v), 1), 0.0 if from_sun else np.nan), v[:, :-1]], axis=1) for v in own]
    steps = [a - b for a, b in zip(own[:2], before[:2], strict=True)]
    xi, sigma = ratio(*steps, *(a + b for a, b in zip(own[2:], before[2:], strict=True)))
    known = sigma <= MAX_XI_ERROR
    return np.where(known, xi, np.nan), np.where(known, sigma, np.nan)


@dataclass(frozen=True)
class CurveFromAbove:
    """The dust near the Galactic plane seen from above.

    Attributes:
        axis: (cell,) centres of the cells along x and along y [kpc]; Sun at 0, x towards the Galactic centre.
        xi, xi_sigma, r_v, r_v_sigma: (y, x) of the dust with |z| < max_height and standard errors; NaN where the map covers
            less than half of the column, or xi is known to no better than `MAX_XI_ERROR`.
        covered: (y, x) share of the column that the map covers.
        max_height: [kpc].
    """

    axis: NDArray[np.float64]
    xi: NDArray[np.float64]
    xi_sigma: NDArray[np.float64]
    r_v: NDArray[np.float64]
    r_v_sigma: NDArray[np.float64]
    covered: NDArray[np.float64]
    max_height: float

    def write(self, path: Path) -> Path:
        """Write FITS images with linear coordinates."""
        names = ("r_v", "r_v_sigma", "xi", "xi_sigma", "covered")
        images = {name.upper(): (getattr(self, name), "") for name in names}
        return write_images(path, self.axis, self.max_height, images)


def curve_from_above(curve_map: CurveMap, max_height: float = 0.4, step: float = STEP_KPC) -> CurveFromAbove:
    """Xi of the dust in columns through the plane: the sum of d(E xi)/dr over that of dE/dr.

    Both are linear in the means of the voxels that the column crosses, whose errors are independent; between two bins with
    values the steps are straight lines.

    Args:
        curve_map: a profile with fine bins.
        max_height: [kpc].
        step: size of a cell [kpc].
    """
    from scipy.sparse import csr_array

    axis, at = cell_centres(float(curve_map.edges[-1]), step), curve_map.at
    voxel, first = _voxels(curve_map)
    n_nodes = at.shape[1]
    known = np.concatenate([np.ones((len(at), 1), bool), curve_map.nside > 0], axis=1)
    number = np.where(known, np.arange(n_nodes), 0)
    nearer = np.maximum.accumulate(number, axis=1)
    farther = np.minimum.accumulate(np.where(known, number, n_nodes)[:, ::-1], axis=1)[:, ::-1]
    covered, parts = np.zeros(len(axis) ** 2), []
    for cell, row, node in crossings(curve_map, at, axis, max_height):
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
    names = ("along", "extinction", "var_along", "var_extinction", "cov")
    each = [getattr(curve_map, name).reshape(-1)[first].astype(np.float64) for name in names]
    each = [values if len(values) else np.zeros(1) for values in each]
    xi, sigma = ratio(*(sums @ v for v in each[:2]), *(sums.power(2) @ v for v in each[2:]))
    share = covered / HEIGHT_STEPS
    shown = (share >= MIN_COVERED) & (sigma <= MAX_XI_ERROR)
    xi, sigma = np.where(shown, xi, np.nan), np.where(shown, sigma, np.nan)
    r_v, r_v_sigma = curve_map.law.measured_r_v(xi, sigma)
    images = np.stack([xi, sigma, r_v, r_v_sigma, share]).reshape(5, len(axis), len(axis))
    return CurveFromAbove(axis, images[0], images[1], images[2], images[3], images[4], max_height)


def _voxels(curve_map: CurveMap) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(row, bin) number of each voxel, those of one coarse pixel being the same; (voxel,) where it is first, flat."""
    nside = np.maximum(curve_map.nside.astype(np.int64), 1)
    parent = curve_map.pixel[:, None] // (curve_map.finest // nside) ** 2
    n_bins = nside.shape[1]
    key = (12 * nside**2 + parent) * n_bins + np.arange(n_bins)  # pixels in the numbering of all resolutions
    _, first, number = np.unique(key, return_index=True, return_inverse=True)
    return number.reshape(key.shape), first
