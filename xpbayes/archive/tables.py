"""Any table file's wanted columns: scalar ones as `Table`s of NumPy columns, those of arrays row by row as raw cells.

In a `Table` missing floats are NaN, missing text is ""; a row whose wanted cells cannot be read is rejected with a reason.
`cells.ArrayParser`, `integer` and `number` read a raw cell. A file that cannot be read at all raises InputError.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.cells import Cell, LostDigitsError
from xpbayes.archive.cells import source_id as read_source_id
from xpbayes.archive.columns import DEFAULT, AnyOf, Column, Place, Places, ReadOptions, tables_with
from xpbayes.archive.open_file import opened
from xpbayes.archive.raw_table import BadRow, Columns, RawTable
from xpbayes.archive.values import BLANK, DTYPE, NO_ID, decode, lost_digits
from xpbayes.data.join import rows_of
from xpbayes.data.rejected import UNKNOWN_SOURCE, Rejected
from xpbayes.errors import InputError

BINARY_BLOCK = 65_536
"""Rows of a binary file's scalar columns read at once."""
ROWS_AT_ONCE = 32
"""Rows of a spectra file held at once."""


@dataclass(frozen=True)
class Table:
    """Columns of one file, or some rows of it, or several files."""

    columns: dict[str, NDArray[Any]]  # wanted ones that were found, (row,) each
    rejected: tuple[Rejected, ...]  # rows that could not be read
    n_read: int  # rows in the files, rejected ones included
    missing: Mapping[str, int] = field(default_factory=dict)  # reason -> how many numbers were taken for missing

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def floats(self, name: str) -> NDArray[np.float64]:
        """Return a float column; all NaN if the file has none of that name."""
        return self.columns[name] if name in self.columns else np.full(len(self), np.nan)

    def take(self, index: NDArray[Any]) -> "Table":
        """Select rows."""
        return replace(self, columns={k: v[index] for k, v in self.columns.items()})

    def blocks(self, names: Sequence[str]) -> Iterator["Table"]:
        """Some of the columns, those that there are; in one piece."""
        yield Table({n: self.columns[n] for n in names if n in self.columns}, (), self.n_read)

    def align(self, source_id: NDArray[np.int64]) -> tuple["Table", NDArray[np.bool_]]:
        """Bring the rows into the order of (star,) other source_ids; of repeated rows, the first counts.

        Returns a table with one row a star, missing values where there is none, and (star,) whether there is one.
        """
        row = rows_of(source_id, self.columns["source_id"])
        known = row >= 0
        aligned = {name: _blanks(values, len(source_id)) for name, values in self.columns.items()}
        for name, out in aligned.items():
            out[known] = self.columns[name][row[known]]
        aligned["source_id"] = source_id
        return replace(self, columns=aligned), known


def read_table(path: str | Path, columns: Sequence[Column]) -> Table:
    """Read the wanted scalar columns of one file; InputError as `columns.tables_with`, or if it cannot be opened."""
    return concatenate(list(read_blocks(path, columns)))


def concatenate(parts: Sequence[Table]) -> Table:
    """Put tables one after the other, missing in one what it lacks of the others' columns; InputError if there is none."""
    if not parts:
        raise InputError("no table files were named; name at least one")
    if len(parts) == 1:
        return parts[0]
    like = {name: values for p in reversed(parts) for name, values in p.columns.items()}
    names = dict.fromkeys(name for p in parts for name in p.columns)
    return Table(
        {n: np.concatenate([p.columns[n] if n in p else _blanks(like[n], len(p)) for p in parts]) for n in names},
        tuple(r for p in parts for r in p.rejected),
        sum(p.n_read for p in parts),
        sum((Counter(p.missing) for p in parts), Counter()),
    )


def _blanks(like: NDArray[Any], n: int) -> NDArray[Any]:
    """Missing values of the type of others."""
    return np.full(n, {"f": np.nan, "i": NO_ID, "U": ""}[like.dtype.kind], dtype=like.dtype)


def _opened(
    path: Path, columns: Sequence[Column], options: ReadOptions, any_of: AnyOf | None
) -> tuple[list[tuple[RawTable, Places]], ExitStack]:
    """The tables of a file that have the wanted columns, and what closes it: a wrong file is refused at once."""
    with ExitStack() as stack:
        found = tables_with(stack.enter_context(opened(path)), path, columns, options, any_of)
        return found, stack.pop_all()


def _file_name(path: Path, raw: RawTable) -> str:
    return f"{path.name}:{raw.member}" if raw.member else path.name


def _batches(
    path: Path, raw: RawTable, needed: list[str], scalar: bool, last: list[int]
) -> Iterator[tuple[NDArray[np.int64], Columns, list[Rejected]]]:
    """Row numbers, columns and bad rows of one table, numbered on from the last row of those before it."""
    before = last[0]
    for batch in raw.batches(needed, BINARY_BLOCK if scalar else ROWS_AT_ONCE, scalar):
        row = batch.row + before
        bad = [rejected_row(b, _file_name(path, raw), before) for b in batch.bad]
        last[0] = max([*last, *row[-1:].tolist(), *(b.row for b in bad)])
        yield row, batch.columns, bad


# ------------------------------------------------------------------------------------------- scalar columns, in blocks


def read_blocks(
    path: str | Path, columns: Sequence[Column], options: ReadOptions = DEFAULT, any_of: AnyOf | None = None
) -> Iterator[Table]:
    """Read the wanted scalar columns of one file some rows at a time: memory does not grow with the file.

    Yields at least one table; arguments and errors as for `columns.tables_with`.
    """
    path = Path(path)
    found, stack = _opened(path, columns, options, any_of)
    return _blocks(path, found, columns, stack)


def _blocks(
    path: Path, found: list[tuple[RawTable, Places]], columns: Sequence[Column], stack: ExitStack
) -> Iterator[Table]:
    last = [0]
    any_rows = False
    with stack:
        for raw, places in found:
            here = [(c, p) for c, p in zip(columns, places, strict=True) if p is not None]
            here.sort(key=lambda cp: cp[0].kind != "id")  # the first tells whose a bad row is
            needed = list(dict.fromkeys(name for _, p in here for name in p.names)) or list(raw.names[:1])
            for row, cells, bad in _batches(path, raw, needed, True, last):
                any_rows = True
                table = _table(row, cells, here, _file_name(path, raw), str(path))
                ordered = {c.name: table.columns[c.name] for c in columns if c.name in table}
                rejected = tuple(sorted((*table.rejected, *bad), key=lambda r: r.row))
                yield replace(table, columns=ordered, rejected=rejected, n_read=len(row) + len(bad))
        if not any_rows:
            names = {c.name: c for _, places in found for c, p in zip(columns, places, strict=True) if p is not None}
            yield Table({c.name: np.zeros(0, DTYPE[c.kind]) for c in names.values()}, (), 0)


def _table(row: NDArray[np.int64], raw: Columns, here: Sequence[tuple[Column, Place]], file: str, where: str) -> Table:
    """The usable rows of a batch; the others with their reasons."""
    n = len(row)
    values: dict[str, NDArray[Any]] = {}
    reasons: dict[int, str] = {}
    missing: Counter[str] = Counter()
    for column, place in here:
        if not n:
            values[column.name] = np.full(0, BLANK[column.kind], DTYPE[column.kind])
            continue
        out = decode(column, place, raw[place.names[0]] if place.names else None, n, where)
        values[column.name] = out.values
        reasons = {**out.reasons, **reasons}
        missing.update(out.missing)
    ids = next((values[c.name] for c, _ in here if c.kind == "id"), None)
    rejected = tuple(
        Rejected(file, int(row[i]), UNKNOWN_SOURCE if ids is None else int(ids[i]), reasons[i]) for i in sorted(reasons)
    )
    table = Table(values, rejected, n, missing)
    return table.take(np.setdiff1d(np.arange(n), list(reasons))) if reasons else table


def rejected_row(bad: BadRow, file: str, before: int) -> Rejected:
    """A row that could not be taken apart, with its source_id where that can be told."""
    try:
        source = read_source_id(bad.source)
    except ValueError:
        source = None
    return Rejected(file, before + bad.row, UNKNOWN_SOURCE if source is None else source, bad.reason)


# ------------------------------------------------------------------------------------------ columns of arrays, by rows

Row = tuple[int, list[Cell]] | Rejected
"""Row number, starting at 1, and one cell per wanted column; or why there are none."""


@dataclass(frozen=True)
class Rows:
    """The rows of a file's tables, of all that have the wanted columns."""

    found: frozenset[str]  # the wanted columns that the first of these tables has
    names: frozenset[str]  # all columns of these tables
    tables: Iterator[tuple[Places, Iterator[Row]]]  # where each has its wanted columns, and its rows, in order


def open_rows(
    path: Path, wanted: Sequence[Column], options: ReadOptions = DEFAULT, any_of: AnyOf | None = None
) -> Rows:
    """Open a table file of any format to read cells of the wanted columns, the first of which holds the identifiers.

    A damaged row is yielded as `Rejected`; arguments and errors as for `columns.tables_with`.
    """
    found, stack = _opened(path, wanted, options, any_of)
    have = frozenset(c.name for c, p in zip(wanted, found[0][1], strict=True) if p is not None)

    def tables() -> Iterator[tuple[Places, Iterator[Row]]]:
        last = [0]
        with stack:
            for raw, places in found:
                yield places, _rows(path, raw, places, last)

    return Rows(have, frozenset(n for t, _ in found for n in t.names), tables())


def column_names(path: Path) -> list[str]:
    """List the columns of all tables of a file."""
    with opened(path) as file:
        return list(dict.fromkeys(name for table in file.tables for name in table.names))


def _rows(path: Path, raw: RawTable, places: Places, last: list[int]) -> Iterator[Row]:
    needed = list(dict.fromkeys(n for p in places if p is not None for n in p.names))
    for numbers, columns, bad in _batches(path, raw, needed, False, last):
        cells = [_cells(columns, p, len(numbers)) for p in places]
        rows: list[Row] = [(row, of) for row, *of in zip(numbers.tolist(), *cells, strict=True)]
        yield from sorted([*rows, *bad], key=lambda r: r.row if isinstance(r, Rejected) else r[0]) if bad else rows


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
    """Read the identifier of a row; InputError if it has been through floating point.

    ValueError: it is missing, or none that Gaia could have given in the wanted release.
    """
    if type(cell) is int and 0 < cell < 2**63:
        return cell
    try:
        value = read_source_id(cell, None if place is None else place.release)
    except LostDigitsError as error:
        name = place.names[0] if place is not None and place.names else "source_id"
        raise lost_digits(str(path), name, f" (first: {error.args[0].split(' ')[0]})") from None
    if value is None:
        raise ValueError("source_id is missing")
    return value
