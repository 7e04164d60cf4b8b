"""Maps in HEALPix pixels times distance bins, of whatever quantities: rows, FITS files, the choice of resolution.

Pixels are nested and Galactic at the finest nside; only pixels with any value are kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from xpbayes.data.fits_header import check_headers
from xpbayes.errors import InputError
from xpbayes.files import reason_of, whole_file


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
        QUANTITIES: attribute: name of the HDU, FITS format, unit, description.
        KIND, FILE: what messages call it, and the file to name.
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
                    arrays[attribute] = np.stack(columns, axis=1).astype(np.float32 if kind == "E" else np.int16)
                pixel = np.asarray(units[first].data["PIXEL"], np.int64)
                lines = [str(line).split(" = ", 1) for line in units[0].header.get("HISTORY", [])]
                finest = int(header["NSIDE"])
        except InputError:
            raise
        except Exception as error:  # astropy raises what the bytes happen to break
            raise InputError(f"{path}: cannot be read as a {cls.KIND} ({reason_of(error)}); make it again") from error
        about = {line[0]: line[1] for line in lines if len(line) == 2}
        make: Any = cls  # takes the fields of the class that inherits
        made: Self = make(edges=edges.astype(np.float64), finest=finest, pixel=pixel, about=about, **arrays)
        return made

    @classmethod
    def join(cls, pieces: Sequence[Self], about: dict[str, Any], **common: Any) -> Self:
        """Put the pieces of the sky together; they come in rising order of pixels.

        Args:
            pieces: of the sky.
            about: of the whole.
            common: fields that all have: edges, finest, and what else is not (row, bin).
        """
        arrays = {}
        for name in ("pixel", *cls.QUANTITIES):
            kind: Any = np.int64 if name == "pixel" else np.int16 if name == "nside" else np.float32
            shape = (0,) if name == "pixel" else (0, len(common["edges"]) - 1)
            arrays[name] = np.concatenate([np.zeros(shape, kind), *(getattr(piece, name) for piece in pieces)])
        make: Any = cls  # takes the fields of the class that inherits
        made: Self = make(about=about, **common, **arrays)
        return made


def write_fits(units: Any, path: Path) -> Path:
    """Write an HDU list."""
    with whole_file(path) as temporary:
        units.writeto(temporary, overwrite=True)
    return path


def at_finest(
    pixels: range, nsides: Sequence[int], average: Callable[[int], A], good: Callable[[A], NDArray[np.bool_]]
) -> tuple[A, NDArray[np.int16]]:
    """Averages at every resolution; in each voxel the finest that is good wins.

    Args:
        pixels: of one piece of the sky at the finest nside, a whole number of the coarsest ones.
        nsides: resolutions, finest first.
        average: averages in pixels 4^shift times as large, given shift.
        good: (pixel, bin) where such an average may be used.

    Returns:
        (pixel, bin) averages at the finest nside, NaN where none is good, 0 stars; and the nside of each, or 0.
    """
    made: A | None = None
    for resolution in nsides:
        shift = int(np.log2(nsides[0] // resolution))
        found = average(shift)
        if made is None:
            shape = (len(pixels), found.stars.shape[1])
            made = type(found)(**{name: np.full(shape, np.nan) for name in found.__dataclass_fields__})
            made.stars[:] = 0.0
            nside = np.zeros(shape, np.int16)
        new = (nside == 0) & np.repeat(good(found), 4**shift, axis=0)
        for name in found.__dataclass_fields__:
            getattr(made, name)[new] = np.repeat(getattr(found, name), 4**shift, axis=0)[new]
        nside[new] = resolution
    assert made is not None
    return made, nside
