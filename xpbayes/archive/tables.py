"""Scalar columns of any table file: Gaia's source table, photometry, labels, reddening.

Out: `Table`s of NumPy columns, one row a usable row of the file; missing floats are NaN, missing text is "". A row
whose wanted cells cannot be read is rejected with a reason. `read_blocks` streams; `read_tables` puts all together.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.cells import source_id as read_source_id
from xpbayes.archive.columns import DEFAULT, Column, Place, Places, ReadOptions, tables_with
from xpbayes.archive.open_file import opened
from xpbayes.archive.raw_table import BadRow, RawTable
from xpbayes.archive.values import BLANK, DTYPE, NO_ID, decode
from xpbayes.data.join import rows_of
from xpbayes.data.rejected import UNKNOWN_SOURCE, Rejected
from xpbayes.errors import InputError

BINARY_BLOCK = 65_536
"""Rows of a binary file read at once."""
AnyOf = tuple[Sequence[str], str]
"""Columns of which a table must have one, and what to say where it has none."""


@dataclass(frozen=True)
class Table:
    """Columns of one file, or some rows of it, or several files.

    Attributes:
        columns: wanted columns that were found, (row,) each.
        rejected: rows that could not be read.
        n_read: rows in the files, rejected ones included.
        missing: reason -> how many numbers were taken for missing.
    """

    columns: dict[str, NDArray[Any]]
    rejected: tuple[Rejected, ...]
    n_read: int
    missing: Mapping[str, int] = field(default_factory=dict)

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
        """Bring the rows into the order of other source_ids; of repeated rows, the first counts.

        Args:
            source_id: (star,) int64.

        Returns:
            a table with one row a star, missing values where there is none, and (star,) whether there is one.
        """
        row = rows_of(source_id, self.columns["source_id"])
        known = row >= 0
        index = row[known]
        aligned: dict[str, NDArray[Any]] = {}
        for name, values in self.columns.items():
            out = _blanks(values, len(source_id))
            out[known] = values[index]
            aligned[name] = out
        aligned["source_id"] = source_id
        return replace(self, columns=aligned), known


def read_tables(paths: Iterable[Path], columns: Sequence[Column]) -> Table:
    """Read files of the same kind as one table.

    Raises:
        InputError: a file is missing, foreign, or lacks a required column; there are no files.
    """
    return concatenate([read_table(path, columns) for path in paths])


def read_table(path: str | Path, columns: Sequence[Column]) -> Table:
    """Read the wanted scalar columns of one file.

    Args:
        path: the file.
        columns: what is wanted.

    Raises:
        InputError: no such file, of no known format, without a required column; identifiers stored as floats; a unit
            that cannot be converted; a table that its server has cut.
    """
    return concatenate(list(read_blocks(path, columns)))


def concatenate(parts: Sequence[Table]) -> Table:
    """Put tables one after the other; a column that one of them lacks is missing in its rows.

    Raises:
        InputError: there is none.
    """
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


def read_blocks(
    path: str | Path, columns: Sequence[Column], options: ReadOptions = DEFAULT, any_of: AnyOf | None = None
) -> Iterator[Table]:
    """Read the wanted scalar columns of one file some rows at a time: memory does not grow with the file.

    Args:
        path: the file.
        columns: what is wanted.
        options: what the user says about the file.
        any_of: columns of which a table must have one.

    Yields:
        at least one table.

    Raises:
        InputError: as `read_table`.
    """
    path = Path(path)
    stack = ExitStack()
    try:  # before the generator starts: a wrong file is refused at once
        found = tables_with(stack.enter_context(opened(path)), path, columns, options, any_of)
    except BaseException:
        stack.close()
        raise
    return _blocks(path, found, columns, stack)


def _blocks(
    path: Path, found: list[tuple[RawTable, Places]], columns: Sequence[Column], stack: ExitStack
) -> Iterator[Table]:
    before = 0
    any_rows = False
    with stack:
        for raw, places in found:
            here = [(c, p) for c, p in zip(columns, places, strict=True) if p is not None]
            here.sort(key=lambda cp: cp[0].kind != "id")  # the first tells whose a bad row is
            file = f"{path.name}:{raw.member}" if raw.member else path.name
            needed = list(dict.fromkeys(name for _, p in here for name in p.names)) or list(raw.names[:1])
            last = 0
            for batch in raw.batches(needed, BINARY_BLOCK, True):
                any_rows = True
                last = int(max([last, *batch.row[-1:], *(b.row for b in batch.bad)]))
                bad = tuple(rejected_row(b, file, before) for b in batch.bad)
                yield _table(batch.row + before, batch.columns, here, columns, bad, file, path)
            before += last
        if not any_rows:
            names = {c.name: c for _, places in found for c, p in zip(columns, places, strict=True) if p is not None}
            yield Table({c.name: np.zeros(0, DTYPE[c.kind]) for c in names.values()}, (), 0)


def _table(
    row: NDArray[np.int64],
    raw: Mapping[str, Any],
    here: Sequence[tuple[Column, Place]],
    columns: Sequence[Column],
    bad: tuple[Rejected, ...],
    file: str,
    path: Path,
) -> Table:
    """The usable rows of a batch; the others with their reasons."""
    n = len(row)
    values: dict[str, NDArray[Any]] = {}
    reasons: dict[int, str] = {}
    missing: Counter[str] = Counter()
    for column, place in here:
        if not n:
            values[column.name] = np.full(0, BLANK[column.kind], DTYPE[column.kind])
            continue
        out = decode(column, place, raw[place.names[0]] if place.names else None, n, str(path))
        values[column.name] = out.values
        reasons = {**out.reasons, **reasons}
        missing.update(out.missing)
    values = {c.name: values[c.name] for c in columns if c.name in values}
    ids = next((values[c.name] for c, _ in here if c.kind == "id"), None)
    rejected = tuple(
        Rejected(file, int(row[i]), UNKNOWN_SOURCE if ids is None else int(ids[i]), reasons[i]) for i in sorted(reasons)
    )
    if reasons:
        keep = np.ones(n, bool)
        keep[list(reasons)] = False
        values = {k: v[keep] for k, v in values.items()}
    every = tuple(sorted((*rejected, *bad), key=lambda r: r.row)) if bad else rejected
    return Table(values, every, n + len(bad), missing)


def rejected_row(bad: BadRow, file: str, before: int) -> Rejected:
    """A row that could not be taken apart, with its source_id where that can be told."""
    try:
        source = read_source_id(bad.source)
    except ValueError:
        source = None
    return Rejected(file, before + bad.row, UNKNOWN_SOURCE if source is None else source, bad.reason)
