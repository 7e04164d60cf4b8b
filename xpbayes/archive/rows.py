"""Rows of any table file, one after the other, as raw cells: the part that all readers of array columns share.

CSV, ECSV (plain or gzip), FITS, VOTable, Avro, Parquet and HDF5 differ in how a cell is stored, not in what it means.
This module finds the wanted columns and yields their cells; `ArrayParser`, `integer` and `number` read a cell.
Files are streamed: memory does not grow with the file, except for VOTable, whose parser reads it whole.
A damaged row is yielded as `Rejected`; a file that cannot be read at all raises InputError.
"""

import csv
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.quarantine import UNKNOWN_SOURCE, Rejected
from xpbayes.errors import InputError, nearest

Cell = Any
"""bytes from text files, NumPy arrays and scalars or Python values from others, None where absent."""

FORMATS = {
    ".csv": "text",
    ".ecsv": "text",
    ".txt": "text",
    ".fits": "fits",
    ".fit": "fits",
    ".xml": "votable",
    ".vot": "votable",
    ".votable": "votable",
    ".avro": "avro",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".hdf": "hdf5",
}
MISSING = (b"", b"null", b"NULL", b"None", b"nan", b"NaN", b"NAN", b"--", b"[]", b"()")
"""Text of a missing cell."""

COMPRESSED_BLOCK = 1 << 14
"""Bytes of gzip read at once, one spectrum's worth: what a damaged byte can take with it."""
ROWS_AT_ONCE = 512
"""Rows of a binary file held at once."""


@dataclass(frozen=True)
class Wanted:
    """A column that a reader wants.

    Attributes:
        name: its name here and in Gaia's archive.
        aliases: other names, matched without case after `name`.
        flat: prefixes of columns ``prefix0``, ``prefix1``, ... that together make the array.
        path: where an Avro record keeps it, outermost key first.
        required: a file without it is refused.
    """

    name: str
    aliases: tuple[str, ...] = ()
    flat: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    required: bool = False


SOURCE_ID = Wanted(
    "source_id", ("gdr3_source_id", "gaia_source_id", "sourceid", "gaiadr3_source_id"), (), ("sourceId",), True
)


@dataclass(frozen=True)
class Rows:
    """A file's rows.

    Attributes:
        found: names of the wanted columns that the file has.
        cells: iterator over (row number, one cell per wanted column) or a rejected row; row numbers start at 1.
    """

    found: frozenset[str]
    cells: Iterator[tuple[int, list[Cell]] | Rejected]


def table_format(path: Path) -> str:
    """Name the format of a file by its suffix; InputError for an unknown one."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    if not suffixes or suffixes[-1] not in FORMATS:
        raise InputError(f"{path}: unknown file format; use one of {', '.join(FORMATS)} (text, FITS, VOTable also .gz)")
    return FORMATS[suffixes[-1]]


def open_rows(path: Path, wanted: Sequence[Wanted]) -> Rows:
    """Open a table file of any format.

    Args:
        path: the file; the suffix names the format.
        wanted: the columns whose cells are yielded, in this order; `SOURCE_ID` must be one of them.

    Raises:
        InputError: no such file, unknown format, not a file of that format, a required column is missing.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path")
    openers: dict[str, Callable[[Path, Sequence[Wanted]], Rows]] = {
        "text": _text_rows,
        "fits": _fits_rows,
        "votable": _votable_rows,
        "avro": avro_rows,
        "parquet": _parquet_rows,
        "hdf5": _hdf5_rows,
    }
    return openers[table_format(path)](path, wanted)


def column_names(path: Path) -> list[str]:
    """List the columns of a table file; for Avro, the record's top-level names."""
    kind = table_format(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path")
    if kind == "text":
        return TextFile(path).header
    if kind == "parquet":
        return list(open_parquet(path).schema_arrow.names)
    if kind == "fits":
        with open_fits(path) as hdus:
            return list(first_table(hdus, path).columns.names)
    if kind == "votable":
        return list(open_votable(path).dtype.names or ())
    if kind == "avro":
        with open(path, "rb") as stream:
            return [f["name"] for f in _avro_reader(stream, path).writer_schema.get("fields", [])]
    with open_hdf5(path) as file:
        return list(hdf5_columns(file, path))


def resolve_columns(
    names: Sequence[str], wanted: Sequence[Wanted], path: Path
) -> tuple[list[list[str] | None], frozenset[str]]:
    """For every wanted column: the file's column, or the columns of a flattened array, or None."""
    lower = {name.lower(): name for name in names}
    places: list[list[str] | None] = []
    for column in wanted:
        place = next(([lower[n.lower()]] for n in (column.name, *column.aliases) if n.lower() in lower), None)
        for prefix in column.flat:
            if place is None and f"{prefix}0".lower() in lower:
                place, i = [], 0
                while f"{prefix}{i}".lower() in lower:
                    place.append(lower[f"{prefix}{i}".lower()])
                    i += 1
        if place is None and column.required:
            raise InputError(
                f"{path}: has no column {column.name}{nearest(column.name, names)}; its {len(names)} columns begin "
                f"with {', '.join(list(names)[:4])}"
            )
        places.append(place)
    return places, frozenset(c.name for c, p in zip(wanted, places, strict=True) if p is not None)


# ---------------------------------------------------------------------------------------------------------- text


class DamagedError(Exception):
    """The compressed stream ends early or is corrupt."""


class TextFile:
    """Header, delimiter and lines of a CSV or ECSV file, plain or gzip."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = self._stream_lines()
        delimiter = ","
        ecsv = False
        header = None
        try:
            for line in self._lines:
                text = line.rstrip(b"\r")
                if text.startswith(b"#"):
                    ecsv = ecsv or text.startswith(b"# %ECSV")
                    if ecsv and b"delimiter:" in text:
                        delimiter = text.split(b"delimiter:")[1].decode().strip().strip("'\"") or " "
                    continue
                if text:
                    header = text
                    break
        except DamagedError as error:
            raise InputError(f"{path}: {error.args[0]} before its header; copy or download it again") from error
        if header is None:
            raise InputError(f"{path}: has no header line; name a CSV or ECSV table")
        if ecsv and delimiter == "," and b"," not in header and b" " in header:
            delimiter = " "  # ECSV's default
        self.delimiter = delimiter.encode()
        try:
            text_header = header.decode("utf-8-sig")
            self.header = [name.strip() for name in next(csv.reader([text_header], delimiter=delimiter))]
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path}: its header is not text ({error}); name a CSV or ECSV table") from error

    def _stream_lines(self) -> Iterator[bytes]:
        """Lines without their newline; DamagedError after the last, the unfinished text in args[1]."""
        rest = b""
        try:
            for chunk in _inflate(self.path):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
        except DamagedError as error:
            raise DamagedError(str(error), rest) from error
        if rest:
            yield rest

    def data_lines(self) -> Iterator[bytes]:
        """Lines after the header."""
        return self._lines

    def split(self, line: bytes) -> list[bytes]:
        """Split one line into cells; ValueError if the number of cells is not the header's."""
        cells: list[bytes] = []
        pieces = line.split(b'"')
        last = len(pieces) - 1
        mark = self.delimiter
        for i, piece in enumerate(pieces):
            if i % 2:
                cells.append(piece)
                continue
            if i and i < last:
                if piece == mark:
                    continue
                piece = piece[1:-1]
            elif i:
                if not piece:
                    continue
                piece = piece[1:]
            elif last:
                if not piece:
                    continue
                piece = piece[:-1]
            cells += piece.split(mark)
        if len(cells) != len(self.header):
            raise ValueError(f"{len(cells)} fields where the header has {len(self.header)}")
        return cells


def _inflate(path: Path) -> Iterator[bytes]:
    """Decompressed chunks of a file that may be gzip; DamagedError at the point where it cannot go on."""
    with open(path, "rb") as stream:
        if stream.read(2) != b"\x1f\x8b":
            stream.seek(0)
            while chunk := stream.read(1 << 20):
                yield chunk
            return
        stream.seek(0)
        fresh, failures = _decompressor()
        engine = fresh()
        begun = False
        while block := stream.read(COMPRESSED_BLOCK):
            while block:
                begun = True
                try:
                    text = engine.decompress(block)
                except failures as error:
                    raise DamagedError(f"is damaged gzip ({error})") from error
                if text:
                    yield text
                block = b""
                if engine.eof:  # another gzip member may follow; zero padding is legal
                    block = engine.unused_data.lstrip(b"\x00")
                    engine = fresh()
                    begun = False
        if begun:
            raise DamagedError("is cut short (gzip ends early)")


def _decompressor() -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    """A maker of gzip decompressors: isal's if installed, twice as fast as the standard library's."""
    try:
        from isal import isal_zlib
    except ImportError:
        return lambda: zlib.decompressobj(wbits=31), (zlib.error,)
    isal: Any = isal_zlib  # its stubs call the exception class an instance
    return lambda: isal.decompressobj(wbits=31), (isal.error, zlib.error, ValueError)


def _text_rows(path: Path, wanted: Sequence[Wanted]) -> Rows:
    file = TextFile(path)
    places, found = resolve_columns(file.header, wanted, path)
    where = [None if place is None else [file.header.index(n) for n in place] for place in places]
    id_at = where[[w.name for w in wanted].index(SOURCE_ID.name)]
    assert id_at is not None  # SOURCE_ID is required

    def source_of(line: bytes) -> int:
        try:
            return integer(line.split(b'"')[0].split(file.delimiter)[id_at[0]]) or UNKNOWN_SOURCE
        except (ValueError, IndexError):
            return UNKNOWN_SOURCE

    def cells() -> Iterator[tuple[int, list[Cell]] | Rejected]:
        row = 0
        lines = file.data_lines()
        while True:
            try:
                line = next(lines)
            except StopIteration:
                return
            except DamagedError as error:
                yield Rejected(
                    path.name, row + 1, source_of(error.args[1]), f"the file {error.args[0]} inside this row"
                )
                return
            line = line.rstrip(b"\r")
            if not line.strip() or line.startswith(b"#"):
                continue
            row += 1
            try:
                values = file.split(line)
            except ValueError as error:
                yield Rejected(path.name, row, source_of(line), str(error))
                continue
            yield (
                row,
                [None if at is None else values[at[0]] if len(at) == 1 else [values[i] for i in at] for at in where],
            )

    return Rows(found, cells())


# -------------------------------------------------------------------------------------------------------- binary


def _chunked_rows(
    n_rows: int,
    places: list[list[str] | None],
    read: Callable[[str, slice], Any],
    close: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, list[Cell]] | Rejected]:
    """Rows of a file that gives slices of columns."""
    try:
        for start in range(0, n_rows, ROWS_AT_ONCE):
            part = slice(start, min(start + ROWS_AT_ONCE, n_rows))
            columns: list[Any] = []
            for place in places:
                if place is None:
                    columns.append(None)
                elif len(place) == 1:
                    columns.append(read(place[0], part))
                else:
                    columns.append(np.stack([np.asarray(read(name, part), np.float64) for name in place], axis=1))
            for i in range(part.stop - start):
                yield start + i + 1, [None if c is None else c[i] for c in columns]
    finally:
        close()


def open_fits(path: Path) -> Any:
    """Open a FITS file, plain or gzip; the caller closes it."""
    from astropy.io import fits

    try:
        return fits.open(path, memmap=True)
    except OSError as error:
        raise InputError(f"{path}: is not a FITS file ({error}); check the path") from error


def first_table(hdus: Any, path: Path) -> Any:
    """Return the first binary table of a FITS file."""
    for hdu in hdus:
        if getattr(hdu, "columns", None) is not None:
            return hdu
    raise InputError(f"{path}: has no table extension; name a FITS file with a binary table")


def _fits_rows(path: Path, wanted: Sequence[Wanted]) -> Rows:
    hdus = open_fits(path)
    try:
        hdu = first_table(hdus, path)
        places, found = resolve_columns(hdu.columns.names, wanted, path)
        data = hdu.data
        n_rows = len(data)
    except InputError:
        hdus.close()
        raise
    except Exception as error:  # astropy has no one exception for a damaged file
        hdus.close()
        raise InputError(f"{path}: is not a complete FITS table ({error}); copy or download it again") from error
    return Rows(found, _chunked_rows(n_rows, places, lambda name, part: data[name][part], hdus.close))


def open_votable(path: Path) -> Any:
    """Read the first table of a VOTable as a masked structured array."""
    import warnings

    from astropy.io.votable import parse_single_table

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unit spelling and the like: not the reader's business
            return parse_single_table(path, verify="ignore").array
    except Exception as error:  # the parser raises whatever expat, gzip or itself meets
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: is not a complete VOTable ({reason}); copy or download it again") from error


def _votable_rows(path: Path, wanted: Sequence[Wanted]) -> Rows:
    array = open_votable(path)
    places, found = resolve_columns(array.dtype.names or (), wanted, path)
    return Rows(found, _chunked_rows(len(array), places, lambda name, part: array[name][part]))


def open_parquet(path: Path) -> Any:
    """Open a Parquet file without reading its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: is not a complete Parquet file ({str(error).splitlines()[0].rstrip('.')}); copy it again"
        ) from error


def _parquet_rows(path: Path, wanted: Sequence[Wanted]) -> Rows:
    file = open_parquet(path)
    places, found = resolve_columns(file.schema_arrow.names, wanted, path)
    needed = [name for place in places if place is not None for name in place]

    def cells() -> Iterator[tuple[int, list[Cell]] | Rejected]:
        row = 0
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=needed):
            columns = {name: _arrow_cells(batch.column(batch.schema.get_field_index(name))) for name in needed}
            for _, values in _chunked_rows(batch.num_rows, places, lambda name, part, c=columns: c[name][part]):  # type: ignore[misc]
                row += 1
                yield row, values

    return Rows(found, cells())


def _arrow_cells(column: Any) -> Sequence[Any]:
    """Cells of an Arrow column: one array a row for list columns, without a copy where there are no nulls inside."""
    import pyarrow as pa

    if not (
        pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type)
    ):
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            return [None if v is None else v.encode() for v in column.to_pylist()]
        return column.to_pylist()
    if pa.types.is_fixed_size_list(column.type):
        size = column.type.list_size
        offsets = np.arange(len(column) + 1) * size + column.offset * size
        values = column.values
    else:
        offsets, values = column.offsets.to_numpy(), column.values
    flat = values.to_numpy(zero_copy_only=False)
    null = column.is_null().to_numpy(zero_copy_only=False)
    return [None if null[i] else flat[offsets[i] : offsets[i + 1]] for i in range(len(column))]


def open_hdf5(path: Path) -> Any:
    """Open an HDF5 file; the caller closes it."""
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"{path}: reading HDF5 needs h5py; pip install 'xpbayes[archive]'") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: is not a complete HDF5 file ({error}); copy or download it again") from error


def hdf5_columns(file: Any, path: Path) -> dict[str, Any]:
    """The columns of an HDF5 mirror: datasets of one group, or the fields of one compound dataset."""
    import h5py

    tables: list[dict[str, Any]] = []

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.names:
            tables.append({name: item.fields(name) for name in item.dtype.names})
        elif isinstance(item, h5py.Group):
            tables.append({k: v for k, v in item.items() if isinstance(v, h5py.Dataset) and not v.dtype.names})

    visit("", file)
    file.visititems(visit)
    known = {n.lower() for n in (SOURCE_ID.name, *SOURCE_ID.aliases)}
    for table in tables:
        if known & {name.lower() for name in table}:
            return table
    raise InputError(f"{path}: no group or table of it has a source_id; name an HDF5 mirror of a Gaia table")


def _hdf5_rows(path: Path, wanted: Sequence[Wanted]) -> Rows:
    file = open_hdf5(path)
    try:
        columns = hdf5_columns(file, path)
        places, found = resolve_columns(list(columns), wanted, path)
    except InputError:
        file.close()
        raise
    needed = {name for place in places if place is not None for name in place}
    lengths = {name: len(columns[name]) for name in needed}
    if len(set(lengths.values())) > 1:
        file.close()
        shortest = min(lengths, key=lambda name: lengths[name])
        raise InputError(
            f"{path}: its columns have different lengths ({shortest} has {lengths[shortest]} of "
            f"{max(lengths.values())} rows); write it again"
        )
    n_rows = next(iter(lengths.values()))
    return Rows(found, _chunked_rows(n_rows, places, lambda name, part: columns[name][part], file.close))


def _avro_reader(stream: Any, path: Path) -> Any:
    import fastavro

    try:
        return fastavro.reader(stream)
    except Exception as error:  # fastavro raises ValueError, EOFError, struct.error, ... for a foreign file
        raise InputError(f"{path}: is not an Avro file ({error}); copy or download it again") from error


def avro_rows(path: Path, wanted: Sequence[Wanted]) -> Rows:
    """Records either flat, with the archive's names, or nested as Gaia's own (and GaiaXPy's) are."""
    with open(path, "rb") as stream:
        names = {f["name"] for f in _avro_reader(stream, path).writer_schema.get("fields", [])}
    nested = not any(n in names for n in (SOURCE_ID.name, *SOURCE_ID.aliases))
    places: list[list[str] | None]
    if nested:
        places = [list(w.path) if w.path and w.path[0] in names else None for w in wanted]
        found = frozenset(w.name for w, p in zip(wanted, places, strict=True) if p is not None)
        if SOURCE_ID.name not in found:
            raise InputError(
                f"{path}: its records have neither source_id nor sourceId; name an Avro file of Gaia spectra"
            )
    else:
        places, found = resolve_columns(sorted(names), wanted, path)

    def cell(record: Mapping[str, Any], place: list[str] | None) -> Cell:
        if place is None:
            return None
        if nested:
            return reduce(lambda at, key: at.get(key) if isinstance(at, Mapping) else None, place, record)  # type: ignore[arg-type, return-value]
        return record.get(place[0]) if len(place) == 1 else [record.get(n) for n in place]

    def cells() -> Iterator[tuple[int, list[Cell]] | Rejected]:
        row = 0
        with open(path, "rb") as stream:
            records = iter(_avro_reader(stream, path))
            while True:
                try:
                    record = next(records)
                except StopIteration:
                    return
                except Exception as error:  # a damaged block: nothing after it can be found
                    yield Rejected(
                        path.name, row + 1, UNKNOWN_SOURCE, f"the file is damaged from this row on ({error})"
                    )
                    return
                row += 1
                yield row, [cell(record, place) for place in places]

    return Rows(found, cells())


# --------------------------------------------------------------------------------------------------------- cells


class ArrayParser:
    """Turns an array cell into float64 numbers.

    Text goes through simdjson where installed (35 ns a number; Python's own float takes several times longer). Whatever
    is not strict JSON - NaN, (1, 2), nulls inside - takes a careful path.
    """

    def __init__(self) -> None:
        try:
            from simdjson import Parser
        except ImportError:
            self._make: Callable[[], Any] | None = None
            self._parser: Any = None
        else:
            self._make = Parser
            self._parser = Parser()

    def __call__(self, cell: Cell) -> NDArray[np.float64] | None:
        """Read one cell.

        Args:
            cell: text, array, list, masked value or None.

        Returns:
            (item,) float64 with NaN for nulls inside, flattened; None where the cell is missing.

        Raises:
            ValueError: the cell is not an array of numbers; the message says why.
        """
        if isinstance(cell, bytes):
            if len(cell) < 8 and cell.strip() in MISSING:
                return None
            if cell[:1] == b"(":
                cell = b"[" + cell[1:-1] + b"]" if cell[-1:] == b")" else cell
            if self._parser is not None and self._make is not None:
                try:
                    values = np.frombuffer(self._parser.parse(cell).as_buffer(of_type="d"), np.float64)
                    return values if values.size else None
                except Exception:  # not strict JSON; a parser whose document failed cannot be used again
                    self._parser = self._make()
            elif cell[:1] == b"[" and cell[-1:] == b"]" and b"_" not in cell:  # Python reads 1_0 as ten
                try:
                    return _array_numbers([float(item) for item in cell[1:-1].split(b",")])
                except ValueError:
                    pass
            return _careful_numbers(cell)
        return _array_numbers(cell)


_WORDS = re.compile(r"\b(nan|inf(?:inity)?)\b", re.IGNORECASE)


def _careful_numbers(text: bytes) -> NDArray[np.float64] | None:
    plain = text.decode("ascii", "replace").strip().replace("(", "[").replace(")", "]")
    plain = _WORDS.sub(lambda m: "NaN" if m[0][0] in "nN" else "Infinity", plain)
    plain = plain.replace("None", "null").replace(",]", "]")
    try:
        values = json.loads(plain)
    except ValueError as error:
        raise ValueError(f"not an array of numbers ({_short(plain)})") from error
    return _array_numbers(values)


def _array_numbers(cell: Cell) -> NDArray[np.float64] | None:
    if cell is None or cell is np.ma.masked:
        return None
    try:
        if isinstance(cell, np.ma.MaskedArray):
            values = np.ma.filled(cell.astype(np.float64), np.nan)
        elif isinstance(cell, list) and cell and isinstance(cell[0], bytes):
            values = np.array([np.nan if v.strip() in MISSING else float(v) for v in cell])
        else:
            values = np.asarray(cell, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"not an array of numbers ({_short(cell)})") from error
    values = np.atleast_1d(values).ravel()
    return None if values.size == 0 or np.isnan(values).all() else values


def integer(cell: Cell) -> int | None:
    """Read a whole number; None where missing; ValueError if it is not one. Text never passes through a float."""
    if cell is None or cell is np.ma.masked:
        return None
    if isinstance(cell, bytes):
        cell = cell.strip()
        if cell in MISSING:
            return None
        try:
            return int(cell)
        except ValueError:
            pass
    try:
        value = float(cell)
    except (TypeError, ValueError) as error:
        raise ValueError(f"not a whole number ({_short(cell)})") from error
    if np.isnan(value):
        return None
    if not value.is_integer():  # infinities included
        raise ValueError(f"not a whole number ({_short(cell)})")
    return int(cell) if not isinstance(cell, bytes) else int(value)


def number(cell: Cell) -> float:
    """Read a number; NaN where missing; ValueError if it is not one."""
    if cell is None or cell is np.ma.masked:
        return float("nan")
    if isinstance(cell, bytes):
        cell = cell.strip()
        if cell in MISSING:
            return float("nan")
    try:
        return float(cell)
    except (TypeError, ValueError) as error:
        raise ValueError(f"not a number ({_short(cell)})") from error


def _short(value: Any) -> str:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= 24 else text[:21] + "..."
