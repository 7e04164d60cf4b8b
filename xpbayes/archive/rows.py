"""Rows of any table file, one after the other, as raw cells: the part that all readers of array columns share.

CSV, ECSV (plain or gzip), FITS, VOTable, Avro, Parquet and HDF5 differ in how a cell is stored, not in what it means.
This module finds the wanted columns and yields their cells; `cells.ArrayParser`, `integer` and `number` read a cell.
A damaged row is yielded as `Rejected`; a file that cannot be read at all raises InputError.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xpbayes.archive.binary_file import ROWS_AT_ONCE, BlockError, ColumnFile, Columns, open_columns, open_resolved
from xpbayes.archive.cells import Cell, LineParser, integer
from xpbayes.archive.columns import SOURCE_ID, Places, Wanted, needed_columns, resolve_columns
from xpbayes.archive.text_file import DamagedError, TextFile
from xpbayes.data.rejected import UNKNOWN_SOURCE, Rejected
from xpbayes.errors import InputError

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

Row = tuple[int, list[Cell]] | Rejected
"""Row number, starting at 1, and one cell per wanted column; or why there are none."""


@dataclass(frozen=True)
class Rows:
    """A file's rows.

    Attributes:
        found: names of the wanted columns that the file has.
        cells: its rows, in order.
    """

    found: frozenset[str]
    cells: Iterator[Row]


def table_format(path: Path) -> str:
    """Name the format of a file by its suffix; InputError for an unknown one or a file that is not there."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    if not suffixes or suffixes[-1] not in FORMATS:
        raise InputError(f"{path}: unknown file format; use one of {', '.join(FORMATS)} (text, FITS, VOTable also .gz)")
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path")
    return FORMATS[suffixes[-1]]


def open_rows(path: Path, wanted: Sequence[Wanted]) -> Rows:
    """Open a table file of any format.

    Args:
        path: the file; the suffix names the format.
        wanted: the columns whose cells are yielded, in this order; `SOURCE_ID` must be one of them.

    Raises:
        InputError: no such file, unknown format, not a file of that format, a required column is missing.
    """
    kind = table_format(path)
    if kind == "text":
        return _text_rows(TextFile(path), wanted)
    file, places, found = open_resolved(path, kind, wanted)
    return Rows(found, _binary_rows(file, places, path))


def column_names(path: Path) -> list[str]:
    """List the columns of a table file; for Avro, the record's top-level names."""
    kind = table_format(path)
    if kind == "text":
        return TextFile(path).header
    file = open_columns(path, kind)
    file.close()
    return list(file.names)


def _text_rows(file: TextFile, wanted: Sequence[Wanted]) -> Rows:
    places, found = resolve_columns(file.header, wanted, file.path)
    where = [None if place is None else [file.header.index(n) for n in place] for place in places]
    return Rows(found, _text_cells(file, where, [w.name for w in wanted].index(SOURCE_ID.name)))


def _text_cells(file: TextFile, where: list[list[int] | None], source_at: int) -> Iterator[Row]:
    id_column = where[source_at]
    assert id_column is not None  # SOURCE_ID is required

    def source_of(line: bytes) -> int:
        try:
            return integer(line.split(b'"')[0].split(file.delimiter)[id_column[0]]) or UNKNOWN_SOURCE
        except (ValueError, IndexError):
            return UNKNOWN_SOURCE

    # A column of its own for every array: the whole line is then read at once.
    direct = [at[0] for at in where if at is not None and len(at) == 1]
    as_is = file.delimiter == b"," and all(at is None or len(at) == 1 for at in where)
    parse = LineParser(len(file.header), direct)
    row = 0
    lines = file.data_lines()
    while True:
        row += 1
        try:
            line = next(lines)
        except StopIteration:
            return
        except DamagedError as error:
            reason = f"the file {error.args[0]} inside this row"
            yield Rejected(file.path.name, row, source_of(error.args[1]), reason)
            return
        if as_is and (cells := parse(line)) is not None:
            following = iter(cells)
            yield row, [None if at is None else next(following) for at in where]
            continue
        try:
            values = file.split(line)
        except ValueError as error:
            yield Rejected(file.path.name, row, source_of(line), str(error))
            continue
        yield (
            row,
            [None if at is None else values[at[0]] if len(at) == 1 else [values[i] for i in at] for at in where],
        )


def _binary_rows(file: ColumnFile, places: Places, path: Path) -> Iterator[Row]:
    row = 0
    try:
        for columns in file.blocks(needed_columns(places), ROWS_AT_ONCE):
            cells = [_place_cells(columns, place) for place in places]
            for i in range(len(next(iter(columns.values())))):
                row += 1
                yield row, [None if c is None else c[i] for c in cells]
    except BlockError as error:
        yield Rejected(path.name, row + 1, UNKNOWN_SOURCE, f"the file is damaged from this row on ({error})")
    finally:
        file.close()


def _place_cells(columns: Columns, place: list[str] | None) -> Any:
    """Cells of one wanted column in a block; a flattened array is put together."""
    if place is None:
        return None
    if len(place) == 1:
        return columns[place[0]]
    return np.stack([np.asarray(columns[name], np.float64) for name in place], axis=1)
