"""Rows of any table file, one after the other, as raw cells: the part that all readers of array columns share.

This module finds the wanted columns and yields their cells; `cells.ArrayParser`, `integer` and `number` read a cell.
A damaged row is yielded as `Rejected`; a file that cannot be read at all raises InputError.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xpbayes.archive.cells import Cell, LostDigitsError, source_id
from xpbayes.archive.columns import DEFAULT, Column, Place, Places, ReadOptions, tables_with
from xpbayes.archive.open_file import opened
from xpbayes.archive.raw_table import Columns, RawTable
from xpbayes.archive.tables import AnyOf, rejected_row
from xpbayes.archive.values import lost_digits
from xpbayes.data.rejected import Rejected

ROWS_AT_ONCE = 32
"""Rows of a spectra file held at once."""

Row = tuple[int, list[Cell]] | Rejected
"""Row number, starting at 1, and one cell per wanted column; or why there are none."""


@dataclass(frozen=True)
class Rows:
    """The rows of a file's tables, of all that have the wanted columns.

    Attributes:
        found: names of the wanted columns that the first of these tables has.
        names: all columns of these tables.
        tables: per table, where its wanted columns are, and its rows, in order.
    """

    found: frozenset[str]
    names: frozenset[str]
    tables: Iterator[tuple[Places, Iterator[Row]]]


def open_rows(
    path: Path, wanted: Sequence[Column], options: ReadOptions = DEFAULT, any_of: AnyOf | None = None
) -> Rows:
    """Open a table file of any format.

    Args:
        path: the file.
        wanted: the columns whose cells are yielded, in this order; the first holds the identifiers.
        options: what the user says about the file.
        any_of: columns of which a table must have one.

    Raises:
        InputError: no such file, of no known format, a required column is missing; as `columns.tables_with` says.
    """
    stack = ExitStack()
    try:
        found = tables_with(stack.enter_context(opened(path)), path, wanted, options, any_of)
    except BaseException:
        stack.close()
        raise
    have = frozenset(c.name for c, p in zip(wanted, found[0][1], strict=True) if p is not None)
    return Rows(have, frozenset(n for t, _ in found for n in t.names), _tables(path, found, stack))


def column_names(path: Path) -> list[str]:
    """List the columns of all tables of a file."""
    with opened(path) as file:
        return list(dict.fromkeys(name for table in file.tables for name in table.names))


def _tables(
    path: Path, found: list[tuple[RawTable, Places]], stack: ExitStack
) -> Iterator[tuple[Places, Iterator[Row]]]:
    before = [0]
    with stack:
        for raw, places in found:
            yield places, _rows(path, raw, places, before)


def _rows(path: Path, raw: RawTable, places: Places, before: list[int]) -> Iterator[Row]:
    """Rows of one table, numbered on from those before it."""
    file = f"{path.name}:{raw.member}" if raw.member else path.name
    needed = list(dict.fromkeys(n for p in places if p is not None for n in p.names))
    start = before[0]
    for batch in raw.batches(needed, ROWS_AT_ONCE, False):
        bad = iter([rejected_row(b, file, start) for b in batch.bad])
        waiting = next(bad, None)
        columns = [_cells(batch.columns, p, len(batch.row)) for p in places]
        for row, *cells in zip((batch.row + start).tolist(), *columns, strict=True):
            while waiting is not None and waiting.row < row:
                yield waiting
                waiting = next(bad, None)
            before[0] = max(before[0], row)
            yield row, cells
        while waiting is not None:
            before[0] = max(before[0], waiting.row)
            yield waiting
            waiting = next(bad, None)


def _cells(columns: Columns, place: Place | None, n: int) -> Any:
    """Cells of one wanted column in a batch; a flattened array is put together."""
    if place is None or not n:
        return [None] * n
    if not place.names:
        return [place.constant] * n
    if len(place.names) == 1:
        return columns[place.names[0]]
    parts = [columns[name] for name in place.names]
    if all(isinstance(p, np.ndarray) and p.dtype.kind in "biuf" for p in parts):
        return np.ma.filled(np.ma.stack(parts, axis=1).astype(np.float64), np.nan)
    return [list(cells) for cells in zip(*parts, strict=True)]


def row_source_id(cell: Cell, place: Place | None, path: Path) -> int:
    """Read the identifier of a row.

    Raises:
        ValueError: it is missing, or none that Gaia could have given in the wanted release.
        InputError: it has been through floating point.
    """
    if type(cell) is int and 0 < cell < 2**63:
        return cell
    try:
        value = source_id(cell, None if place is None else place.release)
    except LostDigitsError as error:
        name = place.names[0] if place is not None and place.names else "source_id"
        raise lost_digits(str(path), name, f" (first: {error.args[0].split(' ')[0]})") from None
    if value is None:
        raise ValueError("source_id is missing")
    return value
