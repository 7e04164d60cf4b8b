"""The dust map itself: adaptive HEALPix pixels times distance bins, as arrays, as FITS, and as answers to queries.

Pixels are nested and Galactic at the finest nside; a pixel that was filled at a coarser resolution repeats that value
and says so in `nside`. Only pixels with any value are kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.dust_map.bins import Voxels
from xpbayes.analysis.dust_map.selection import Measured
from xpbayes.data.fits_header import check_headers
from xpbayes.errors import InputError
from xpbayes.files import reason_of, whole_file

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


@dataclass(frozen=True)
class DustMap:
    """Extinction in pixels and distance bins.

    Attributes:
        edges: (bin + 1,) distances [kpc].
        finest: nside of the pixel numbers.
        pixel: (row,) nested Galactic pixel numbers, rising.
        mean: (row, bin) cumulative E [mag]; NaN where no resolution has enough stars.
        sigma: (row, bin) its standard error [mag].
        spread: (row, bin) spread of E inside the voxel [mag].
        distance: (row, bin) mean 1/parallax of the voxel's stars [kpc]: where the mean holds.
        stars: (row, bin) number of stars behind the value, in the pixel of the resolution used.
        nside: (row, bin) that resolution, 0 where there is none.
        differential: (row, bin) E minus that of the bin before [mag]; the first bin's is its own E if it begins at 0.
        differential_sigma: (row, bin) its standard error [mag].
        about: settings and counts, for headers.
    """

    edges: NDArray[np.float64]
    finest: int
    pixel: NDArray[np.int64]
    mean: NDArray[np.float32]
    sigma: NDArray[np.float32]
    spread: NDArray[np.float32]
    distance: NDArray[np.float32]
    stars: NDArray[np.float32]
    nside: NDArray[np.int16]
    differential: NDArray[np.float32]
    differential_sigma: NDArray[np.float32]
    about: dict[str, Any]

    def extinction(
        self, coords: "SkyCoord", distance: "Quantity | None" = None, *, covered: bool = False
    ) -> tuple[Any, Any]:
        """E and its standard error at positions; `query` describes it."""
        return query(self, coords, distance, covered=covered)

    @cached_property
    def profile(self) -> "Profile":
        """The lines of E along every pixel that queries and the bird's-eye view read."""
        return profile(self)

    def rows_of(self, pixel: NDArray[np.int64]) -> NDArray[np.int64]:
        """(point,) rows of nested pixel numbers; -1 for a pixel without values."""
        if not len(self.pixel):
            return np.full(np.shape(pixel), -1)
        row = np.searchsorted(self.pixel, pixel).clip(0, len(self.pixel) - 1)
        return np.where(self.pixel[row] == pixel, row, -1)

    def write(self, path: Path) -> Path:
        """Write FITS: one table per quantity, one row per pixel, one column per bin, explicit nested indexing."""
        from astropy.io import fits

        primary = fits.PrimaryHDU()
        for key, value in self.about.items():
            primary.header.add_history(f"{key} = {value}")
        table = [
            fits.Column("NEAR", "D", unit="kpc", array=self.edges[:-1]),
            fits.Column("FAR", "D", unit="kpc", array=self.edges[1:]),
        ]
        units: list[Any] = [primary, fits.BinTableHDU.from_columns(table, name="BINS")]
        keys: dict[str, tuple[Any, str]] = {
            "PIXTYPE": ("HEALPIX", "HEALPix pixels"),
            "ORDERING": ("NESTED", "numbering of the pixels"),
            "COORDSYS": ("G", "Galactic"),
            "NSIDE": (self.finest, "resolution of the pixel numbers"),
            "INDXSCHM": ("EXPLICIT", "column PIXEL holds the numbers"),
            "OBJECT": ("PARTIAL", "pixels without any value are left out"),
            "FIRSTPIX": (0, ""),
            "LASTPIX": (12 * self.finest**2 - 1, ""),
        }
        for attribute, (name, kind, unit, description) in QUANTITIES.items():
            values = getattr(self, attribute)
            columns = [fits.Column("PIXEL", "J", array=self.pixel.astype(np.int32))]
            columns += [
                fits.Column(f"BIN_{k:02d}", kind, unit=unit or None, array=values[:, k]) for k in range(values.shape[1])
            ]
            hdu = fits.BinTableHDU.from_columns(columns, name=name)
            for key, card in keys.items():
                hdu.header[key] = card
            hdu.header["COMMENT"] = f"{description}; NaN: no value" if kind == "E" else description
            units.append(hdu)
        return write_fits(fits.HDUList(units), path)

    @classmethod
    def read(cls, path: Path | str) -> "DustMap":
        """Read what `write` wrote.

        Raises:
            InputError: missing, damaged, or another kind of file.
        """
        from astropy.io import fits

        path = Path(path)
        try:
            check_headers(path)
            with fits.open(path, memmap=False) as units:
                names = {u.name for u in units}
                missing = [n for n in ("BINS", *(q[0] for q in QUANTITIES.values())) if n not in names]
                if missing:
                    raise InputError(
                        f"{path}: is no dust map of xpbayes (no table {missing[0]}); name its profile.fits"
                    )
                header = units["EXTINCTION"].header
                if header["ORDERING"] != "NESTED" or header["COORDSYS"] != "G":
                    raise InputError(f"{path}: is not nested and Galactic; write it again with xpbayes")
                edges = np.append(units["BINS"].data["NEAR"], units["BINS"].data["FAR"][-1])
                arrays: dict[str, Any] = {}
                for attribute, (name, kind, *_) in QUANTITIES.items():
                    data = units[name].data
                    columns = [data[column] for column in data.names[1:]]
                    arrays[attribute] = np.stack(columns, axis=1).astype(np.float32 if kind == "E" else np.int16)
                pixel = np.asarray(units["EXTINCTION"].data["PIXEL"], np.int64)
                lines = [str(line).split(" = ", 1) for line in units[0].header.get("HISTORY", [])]
                finest = int(header["NSIDE"])
        except InputError:
            raise
        except Exception as error:  # astropy raises what the bytes happen to break
            raise InputError(f"{path}: cannot be read as a dust map ({reason_of(error)}); make it again") from error
        about = {line[0]: line[1] for line in lines if len(line) == 2}
        return cls(edges=edges.astype(np.float64), finest=finest, pixel=pixel, about=about, **arrays)


def write_fits(units: Any, path: Path) -> Path:
    """Write an HDU list."""
    with whole_file(path) as temporary:
        units.writeto(temporary, overwrite=True)
    return path


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
    shape = (len(pixels), len(edges) - 1)
    made = Voxels(**{name: np.full(shape, np.nan) for name in Voxels.__dataclass_fields__})
    made.stars[:] = 0.0
    nside = np.zeros(shape, np.int16)
    for resolution in nsides:
        shift = 2 * int(np.log2(nsides[0] // resolution))
        voxels = means(stars, (stars.pixel - pixels.start) >> shift, len(pixels) >> shift, edges, min_stars)
        new = (nside == 0) & np.repeat(voxels.stars >= min_stars, 1 << shift, axis=0)
        for name in Voxels.__dataclass_fields__:
            getattr(made, name)[new] = np.repeat(getattr(voxels, name), 1 << shift, axis=0)[new]
        nside[new] = resolution
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


def join(pieces: Sequence[DustMap], edges: NDArray[np.float64], finest: int, about: dict[str, Any]) -> DustMap:
    """Put the pieces of the sky together; they come in rising order of pixels."""
    arrays = {}
    for name in ("pixel", *QUANTITIES):
        kind: Any = np.int64 if name == "pixel" else np.int16 if name == "nside" else np.float32
        shape = (0,) if name == "pixel" else (0, len(edges) - 1)
        arrays[name] = np.concatenate([np.zeros(shape, kind), *(getattr(piece, name) for piece in pieces)])
    return DustMap(edges=edges, finest=finest, about=about, **arrays)


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

    def interval(self, row: NDArray[np.int64], distance: NDArray[np.float64]) -> NDArray[np.int64]:
        """(point,) the node beyond each distance, from 1 on; one more than there are beyond the last."""
        after = np.ones(row.shape, np.int64)
        for k in range(1, self.at.shape[1]):
            after += self.at[row, k] < distance
        return after


def profile(dust_map: DustMap) -> Profile:
    """Join the means of a map to lines."""
    centre = 0.5 * (dust_map.edges[1:] + dust_map.edges[:-1])
    sun = np.zeros((len(dust_map.pixel), 1))
    at = np.concatenate([sun, np.where(np.isfinite(dust_map.distance), dust_map.distance, centre)], axis=1)
    filled = [
        _without_gaps(np.concatenate([sun, a.astype(np.float64)], axis=1), at) for a in (dust_map.mean, dust_map.sigma)
    ]
    return Profile(at, *filled)


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


def query(
    dust_map: DustMap, coords: "SkyCoord", distance: "Quantity | None" = None, *, covered: bool = False
) -> tuple[Any, Any]:
    """Read E and its standard error off a map.

    E rises linearly from 0 at the Sun through the means of the bins at the mean distances of their stars; bins without
    enough stars are bridged. Beyond the last bin that has stars, and in pixels without any, the map knows nothing: both
    answers are NaN.

    Args:
        dust_map: usually the profile, whose bins are fine.
        coords: positions in any frame, with or without distances.
        distance: distances, as a quantity; those of `coords` if None.
        covered: refuse positions that the map does not cover, in place of NaN.

    Returns:
        E and standard error [mag], in the shape of coords and distance together; floats for one position.

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
    pixel = np.asarray(lonlat_to_healpix(galactic.l, galactic.b, dust_map.finest, order="nested"), np.int64)
    pixel, kpc = np.broadcast_arrays(pixel, kpc)
    row = dust_map.rows_of(pixel)
    value, sigma = np.full(kpc.shape, np.nan), np.full(kpc.shape, np.nan)
    on = row >= 0
    if on.any():
        line, r = dust_map.profile, kpc[on]
        after = line.interval(row[on], r)
        node = np.minimum(after, line.at.shape[1] - 1)
        low, high = line.at[row[on], node - 1], line.at[row[on], node]
        share = (r - low) / (high - low)
        # The last mean holds to the end of its bin.
        last = after > node
        usable = ~last | (r <= dust_map.edges[-1])
        for out, table in ((value, line.value), (sigma, line.sigma)):
            far = table[row[on], node]
            between = np.where(
                share == 0.0, table[row[on], node - 1], table[row[on], node - 1] * (1 - share) + far * share
            )
            out[on] = np.where(usable, np.where(last, far, between), np.nan)
    if covered and np.isnan(value).any():
        _refuse_uncovered(galactic, kpc, np.isnan(value))
    return value[()], sigma[()]


def _refuse_uncovered(galactic: "SkyCoord", kpc: NDArray[np.float64], missing: NDArray[np.bool_]) -> None:
    longitude, latitude = (np.broadcast_to(a.deg, kpc.shape)[missing].flat[0] for a in (galactic.l, galactic.b))
    raise InputError(
        f"{int(missing.sum())} of {missing.size} positions are not covered by the dust map (first: l = {longitude:.3f}, "
        f"b = {latitude:.3f} deg, {kpc[missing].flat[0]:.3g} kpc); ask nearer ones, or without covered=True for NaN there"
    )
