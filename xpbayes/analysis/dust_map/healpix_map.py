"""HEALPix pixels times distance bins: what every such map has, and the dust map itself, as arrays, as FITS, as answers.

Pixels are nested and Galactic at the finest nside; a pixel that was filled at a coarser resolution repeats that value
and says so in `nside`. Only pixels with any value are kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.dust_map.means import Voxels
from xpbayes.analysis.dust_map.selection import AnyMeasured, Measured
from xpbayes.data.fits_header import check_headers
from xpbayes.errors import InputError
from xpbayes.files import reason_of, whole_file

if TYPE_CHECKING:
    from astropy.coordinates import SkyCoord
    from astropy.units import Quantity

DTYPES: Mapping[str, type[np.generic]] = {"E": np.float32, "I": np.int16}
"""Of quantities, by their FITS format."""


class Averages(Protocol):
    """Arrays (pixel, bin), the number of stars among them."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def stars(self) -> NDArray[np.float64]:
        """(pixel, bin) stars behind a value."""


A = TypeVar("A", bound=Averages)


@dataclass(frozen=True, repr=False)
class PixelMap:
    """What every such map has.

    Attributes:
        QUANTITIES: attribute: name of the HDU, FITS format, unit, description; (row, bin) each.
        KIND, FILE: what messages call it, and the file to name.
        TYPICAL: the quantities whose medians a summary tells, by what it calls them.
        edges: (bin + 1,) distances [kpc].
        finest: nside of the pixel numbers.
        pixel: (row,) nested Galactic pixel numbers, rising.
        distance: (row, bin) where the means hold: mean 1/parallax of the stars [kpc].
        stars: (row, bin) number of stars behind a value, in the pixel of the resolution used.
        nside: (row, bin) that resolution, 0 where there is none.
        about: settings and counts, for headers.
    """

    QUANTITIES: ClassVar[Mapping[str, tuple[str, str, str, str]]]
    KIND: ClassVar[str]
    FILE: ClassVar[str]
    TYPICAL: ClassVar[Mapping[str, str]]
    edges: NDArray[np.float64]
    finest: int
    pixel: NDArray[np.int64]
    distance: NDArray[np.float32]
    stars: NDArray[np.float32]
    nside: NDArray[np.int16]
    about: dict[str, Any]

    def __repr__(self) -> str:
        bins = ", ".join(f"{near:g}–{far:g}" for near, far in zip(self.edges[:4], self.edges[1:5], strict=False))
        more = ", ..." if len(self.edges) > 5 else ""
        where = f"{len(self.pixel)} pixels of nside {self.finest}, {len(self.edges) - 1} bins"
        return f"<{self.KIND}: {where}: {bins}{more} kpc>"

    def rows_of(self, pixel: NDArray[np.int64]) -> NDArray[np.int64]:
        """(point,) rows of nested pixel numbers; -1 for a pixel without values."""
        if not len(self.pixel):
            return np.full(np.shape(pixel), -1)
        row = np.searchsorted(self.pixel, pixel).clip(0, len(self.pixel) - 1)
        return np.where(self.pixel[row] == pixel, row, -1)

    def rows_at(self, longitude: Any, latitude: Any) -> NDArray[np.int64]:
        """Rows at Galactic positions, angles of any shape with their unit; -1 where there are no values."""
        from astropy_healpix import lonlat_to_healpix

        return self.rows_of(np.asarray(lonlat_to_healpix(longitude, latitude, self.finest, order="nested"), np.int64))

    @cached_property
    def at(self) -> NDArray[np.float64]:
        """(row, node) distances of the nodes of lines [kpc]: the Sun, then each bin's stars, or its middle without any."""
        centre = 0.5 * (self.edges[1:] + self.edges[:-1])
        known = np.where(np.isfinite(self.distance), self.distance, centre)
        return np.concatenate([np.zeros((len(known), 1)), known], axis=1, dtype=np.float64)

    def node_beyond(self, row: NDArray[np.int64], distance: NDArray[np.float64]) -> NDArray[np.int64]:
        """(point,) the node beyond each distance, from 1 on; one more than there are beyond the last."""
        after = np.ones(row.shape, np.int64)
        for k in range(1, self.at.shape[1]):
            after += self.at[row, k] < distance
        return after

    def bridged(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """(row, node) values at the nodes, 0 at the Sun; bins without one are bridged, NaN beyond the last."""
        values = np.concatenate([np.zeros((len(values), 1)), values], axis=1, dtype=np.float64)
        n, row = values.shape[1], np.arange(len(values))[:, None]
        before, after = known_around(np.isfinite(values))
        safe = np.minimum(after, n - 1)
        gap = (safe > before) & (after < n)
        span = np.where(gap, self.at[row, safe] - self.at[row, before], 1.0)
        share = np.where(gap, (self.at - self.at[row, before]) / span, 0.0)
        filled = values[row, before] * (1.0 - share) + np.where(gap, values[row, safe], 0.0) * share
        return np.where(after < n, filled, np.nan)

    def on_lines(
        self, tables: Sequence[NDArray[np.float64]], coords: "SkyCoord", distance: "Quantity | None", *, covered: bool
    ) -> list[NDArray[np.float64]]:
        """Read tables from `bridged` at positions, each in the shape of coords and distance together.

        Values run linearly from node to node; the last mean holds to the end of its bin. Beyond the last bin that has
        stars, and in pixels without any, the map knows nothing: NaN. Arguments and errors as of `DustMap.extinction`.
        """
        import astropy.units as u

        try:
            kpc = np.asarray(u.Quantity(coords.distance if distance is None else distance).to_value(u.kpc), np.float64)
        except u.UnitConversionError as error:
            raise InputError(
                "a dust map is asked at a distance: give lengths with a unit, such as 2 * u.kpc, or coords with distances"
            ) from error
        bad = ~(np.isfinite(kpc) & (kpc >= 0))
        if bad.any():
            raise InputError(
                f"{int(bad.sum())} of {kpc.size} distances are negative or not numbers; give positive ones"
            )
        galactic = coords.galactic
        row, kpc = np.broadcast_arrays(self.rows_at(galactic.l, galactic.b), kpc)
        found = [np.full(kpc.shape, np.nan) for _ in tables]
        on = row >= 0
        if on.any():
            row, r = row[on], kpc[on]
            after = self.node_beyond(row, r)
            node = np.minimum(after, self.at.shape[1] - 1)
            low, high = self.at[row, node - 1], self.at[row, node]
            share = (r - low) / (high - low)
            # The last mean holds to the end of its bin.
            last = after > node
            usable = ~last | (r <= self.edges[-1])
            for out, table in zip(found, tables, strict=True):
                near, far = table[row, node - 1], table[row, node]
                between = np.where(share == 0.0, near, near * (1 - share) + far * share)
                out[on] = np.where(usable, np.where(last, far, between), np.nan)
        if covered and (missing := np.isnan(found[0])).any():
            longitude, latitude = (
                np.broadcast_to(angle.deg, kpc.shape)[missing].flat[0] for angle in (galactic.l, galactic.b)
            )
            raise InputError(
                f"{int(missing.sum())} of {missing.size} positions are not covered by the dust map (first: "
                f"l = {longitude:.3f}, b = {latitude:.3f} deg, {kpc[missing].flat[0]:.3g} kpc); ask nearer ones, or without "
                "covered=True for NaN there"
            )
        return found

    def more_tables(self) -> list[Any]:
        """HDUs to write beside the quantities."""
        return []

    @classmethod
    def from_tables(cls, units: Any) -> dict[str, Any]:
        """Fields that `more_tables` wrote."""
        return {}

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
        for attribute, (name, kind, unit, description) in self.QUANTITIES.items():
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
        return write_fits(fits.HDUList([*units, *self.more_tables()]), path)

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read what `write` wrote.

        Raises:
            InputError: missing, damaged, or another kind of file.
        """
        from astropy.io import fits

        path = Path(path)
        first = next(iter(cls.QUANTITIES.values()))[0]
        try:
            check_headers(path)
            with fits.open(path, memmap=False) as units:
                names = {u.name for u in units}
                missing = [n for n in ("BINS", *(q[0] for q in cls.QUANTITIES.values())) if n not in names]
                if missing:
                    raise InputError(
                        f"{path}: is no {cls.KIND} of xpbayes (no table {missing[0]}); name its {cls.FILE}"
                    )
                header = units[first].header
                if header["ORDERING"] != "NESTED" or header["COORDSYS"] != "G":
                    raise InputError(f"{path}: is not nested and Galactic; write it again with xpbayes")
                edges = np.append(units["BINS"].data["NEAR"], units["BINS"].data["FAR"][-1])
                arrays: dict[str, Any] = cls.from_tables(units)
                for attribute, (name, kind, *_) in cls.QUANTITIES.items():
                    data = units[name].data
                    columns = [data[column] for column in data.names[1:]]
                    arrays[attribute] = np.stack(columns, axis=1).astype(DTYPES[kind])
                pixel = np.asarray(units[first].data["PIXEL"], np.int64)
                lines = [str(line).split(" = ", 1) for line in units[0].header.get("HISTORY", [])]
                finest = int(header["NSIDE"])
        except InputError:
            raise
        except Exception as error:  # astropy raises what the bytes happen to break
            raise InputError(f"{path}: cannot be read as a {cls.KIND} ({reason_of(error)}); make it again") from error
        about = {line[0]: line[1] for line in lines if len(line) == 2}
        return cls(edges=edges.astype(np.float64), finest=finest, pixel=pixel, about=about, **arrays)

    @classmethod
    def of_piece(
        cls, pixels: range, edges: NDArray[np.float64], nside: NDArray[np.int16], values: Mapping[str, Any], **more: Any
    ) -> Self:
        """Make the map of one piece of the sky, pixels at the finest nside, from (pixel, bin) values and their nsides."""
        rows = np.flatnonzero((nside > 0).any(axis=1))
        single = {name: value[rows].astype(np.float32) for name, value in values.items()}
        return cls(edges=edges, pixel=pixels.start + rows, nside=nside[rows], about={}, **single, **more)

    @classmethod
    def join(cls, pieces: Sequence[Self], about: dict[str, Any], **common: Any) -> Self:
        """Put pieces of the sky, in rising order of pixels, together; common fields are those that are not (row, bin)."""
        arrays: dict[str, Any] = {"pixel": np.concatenate([np.zeros(0, np.int64), *(p.pixel for p in pieces)])}
        for name, (_, kind, *_) in cls.QUANTITIES.items():
            none = np.zeros((0, len(common["edges"]) - 1), DTYPES[kind])
            arrays[name] = np.concatenate([none, *(getattr(piece, name) for piece in pieces)])
        return cls(about=about, **common, **arrays)


def write_fits(units: Any, path: Path) -> Path:
    """Write an HDU list."""
    with whole_file(path) as temporary:
        units.writeto(temporary, overwrite=True)
    return path


def known_around(known: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(row, node) the last known node up to each, 0 if there is none, and the first from each on, else their number."""
    n = known.shape[1]
    before = np.maximum.accumulate(np.where(known, np.arange(n), 0), axis=1)
    after = np.minimum.accumulate(np.where(known, np.arange(n), n)[:, ::-1], axis=1)[:, ::-1]
    return before, after


def bin_before(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """(pixel, bin) values of the bin before: of the first 0 if it begins at the Sun, else NaN."""
    return np.insert(values[:, :-1], 0, 0.0 if edges[0] == 0 else np.nan, axis=1)


def at_finest(
    stars: AnyMeasured,
    pixels: range,
    nsides: Sequence[int],
    average: Callable[[AnyMeasured, NDArray[np.int64], int], A],
    good: Callable[[A], NDArray[np.bool_]],
) -> tuple[A, NDArray[np.int16]]:
    """Averages at every resolution; in each voxel the finest that is good wins.

    Args:
        stars: of one piece of the sky, pixels at the finest nside.
        pixels: the piece's, a whole number of the coarsest ones.
        nsides: resolutions, finest first.
        average: averages of stars, given (star,) which of so many pixels each is in.
        good: (pixel, bin) where such an average may be used.

    Returns:
        (pixel, bin) averages at the finest nside, NaN where none is good, 0 stars; and the nside of each, or 0.
    """
    made: A | None = None
    for resolution in nsides:
        shift = 2 * int(np.log2(nsides[0] // resolution))
        found = average(stars, (stars.pixel - pixels.start) >> shift, len(pixels) >> shift)
        if made is None:
            shape = (len(pixels), found.stars.shape[1])
            made = type(found)(**{name: np.full(shape, np.nan) for name in found.__dataclass_fields__})
            made.stars[:] = 0.0
            nside = np.zeros(shape, np.int16)
        new = (nside == 0) & np.repeat(good(found), 2**shift, axis=0)
        for name in found.__dataclass_fields__:
            getattr(made, name)[new] = np.repeat(getattr(found, name), 2**shift, axis=0)[new]
        nside[new] = resolution
    assert made is not None
    return made, nside


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
    """Make the map of one piece of the sky from means at every resolution: the finest that has `min_stars` wins.

    Stars, pixels and nsides are as of `at_finest`, edges (bin + 1,) [kpc], means `voxel_means` or `voxel_means_joint`.
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
