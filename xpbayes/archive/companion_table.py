"""A table that is joined to spectra by source_id, in memory while it is small and in sorted runs on disk beyond.

In: files of any size. Out: a `Table`, or `SortedRuns`, of which both can `align`. A run is a Parquet file of rows sorted by
source_id; row groups whose range holds none of the wanted stars are not read. Gaia's files and queries are in the order
of source_id, as bulk spectra are: a part of the spectra then touches one or two row groups. Tables in any other order
cost one row group a run and part; memory is the same.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.columns import DEFAULT, AnyOf, Column, MissingColumnError, ReadOptions
from xpbayes.archive.tables import Table, concatenate, read_blocks
from xpbayes.archive.values import BLANK, DTYPE
from xpbayes.data.join import are_among
from xpbayes.data.rejected import Rejected
from xpbayes.errors import InputError

log = logging.getLogger(__name__)

ROWS_IN_MEMORY = 1_000_000
"""Rows of a table that are held at once: 300 MB of Gaia's source table, whose 37 columns are the most of any."""
GROUP_ROWS = 16_384
"""Rows of a row group: the least that is read of a run."""

Companion = Any
"""`Table` or `SortedRuns`: ``len``, ``in``, ``align(source_id)``, ``blocks(names)`` and ``rejected``."""


@dataclass(frozen=True)
class Run:
    """One sorted file."""

    path: Path
    low: NDArray[np.int64]  # (group,) least source_id of its row groups
    high: NDArray[np.int64]  # (group,) greatest


@dataclass(frozen=True)
class SortedRuns:
    """Rows of a companion table on disk; `rejected`, `n_read` and `missing` as a `Table` has them."""

    columns: tuple[str, ...]  # that a file had
    runs: tuple[Run, ...]  # in the order in which the rows were read
    n_rows: int  # in all of them
    rejected: tuple[Rejected, ...]
    empty: Table  # without rows, of the columns' types
    n_read: int
    missing: Mapping[str, int]

    def __len__(self) -> int:
        return self.n_rows

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def align(self, source_id: NDArray[np.int64]) -> tuple[Table, NDArray[np.bool_]]:
        """Bring the rows into the order of other source_ids, as `Table.align`: of repeated rows, the first counts."""
        ids = np.unique(source_id)
        found = [self.empty]
        for run in self.runs:
            holds = np.searchsorted(ids, run.low, "left") < np.searchsorted(ids, run.high, "right")
            for table in _read_groups(run, np.flatnonzero(holds), self.columns):
                found.append(table.take(are_among(table.columns["source_id"], ids)))
        return concatenate(found).align(source_id)

    def blocks(self, names: Sequence[str]) -> Iterator[Table]:
        """Some of the columns, run by run."""
        chosen = tuple(n for n in names if n in self.columns)
        for run in self.runs:
            yield concatenate(list(_read_groups(run, np.arange(len(run.low)), chosen)))


def read_companion(
    paths: Sequence[Path],
    columns: Sequence[Column],
    scratch: Path | None = None,
    prepare: Callable[[Table], Table] = lambda table: table,
    rows_in_memory: int = ROWS_IN_MEMORY,
    *,
    options: ReadOptions = DEFAULT,
    any_of: AnyOf | None = None,
) -> Table | SortedRuns:
    """Read files of the same kind as one companion table; every block of rows goes through `prepare` as it is read.

    Beyond `rows_in_memory` sorted runs are written to `scratch`, which is emptied by whoever made it; None holds
    everything in memory. source_id is among the wanted `columns`; `options` and `any_of` as for `columns.tables_with`.

    Raises:
        InputError: a file is missing, foreign, or lacks a required column; there are no files; the disk is full.
    """
    held: list[Table] = []
    runs: list[Run] = []
    rejected: list[Rejected] = []
    missing: Counter[str] = Counter()
    n_rows = n_read = 0
    found: dict[str, NDArray[Any]] = {}  # without rows
    had: dict[Path, set[str]] = {}
    for path in paths:
        for block in read_blocks(path, columns, options, any_of):
            try:
                table = prepare(block)
            except MissingColumnError as error:
                raise InputError(f"{path}: {error}") from error
            rejected += table.rejected
            missing.update(table.missing)
            n_rows += len(table)
            n_read += table.n_read
            found = {name: values[:0] for name, values in table.columns.items()} | found
            had[path] = had.get(path, set()) | set(table.columns)
            held.append(Table(table.columns, (), table.n_read))
            if scratch is not None and sum(map(len, held)) >= rows_in_memory:
                runs.append(_write_run(concatenate(held), columns, scratch / f"run-{len(runs):05d}.parquet"))
                held = []
    for path, names in had.items():
        if lost := [name for name in found if name not in names]:
            log.warning("%s: lacks %s, which other files of its kind have; missing there", path, ", ".join(lost))
    if scratch is None or not runs:
        return replace(concatenate(held), rejected=tuple(rejected), missing=missing)
    if any(map(len, held)):
        runs.append(_write_run(concatenate(held), columns, scratch / f"run-{len(runs):05d}.parquet"))
    return SortedRuns(tuple(found), tuple(runs), n_rows, tuple(rejected), Table(found, (), 0), n_read, missing)


def _write_run(table: Table, columns: Sequence[Column], path: Path) -> Run:
    """Write sorted rows, with all columns that another run may have, missing where this one has not found them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    blank = {c.name: np.full(len(table), BLANK[c.kind], DTYPE[c.kind]) for c in columns if c.name not in table}
    source_id = table.columns["source_id"]
    order = np.argsort(source_id, kind="stable")  # of repeated rows, the first stays first
    starts = np.arange(0, len(order), GROUP_ROWS)
    ends = np.minimum(starts + GROUP_ROWS, len(order)) - 1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name: pa.array(values[order]) for name, values in (table.columns | blank).items()}
        pq.write_table(pa.table(arrays), path, row_group_size=GROUP_ROWS, compression="lz4", use_dictionary=False)
    except OSError as error:
        raise InputError(
            f"{path.parent}: cannot hold the sorted companion table ({error.strerror or error}); make room there"
        ) from error
    return Run(path, source_id[order[starts]], source_id[order[ends]])


def _read_groups(run: Run, groups: NDArray[np.intp], names: Sequence[str]) -> Iterator[Table]:
    """Row groups of a run, one at a time."""
    if not len(groups):
        return
    import pyarrow.parquet as pq

    with pq.ParquetFile(run.path) as file:
        for group in groups.tolist():
            rows = file.read_row_group(group, columns=list(names), use_threads=False)
            yield Table({name: _numpy(rows[name]) for name in names}, (), rows.num_rows)


def _numpy(column: Any) -> NDArray[Any]:
    values = column.to_numpy()
    return values.astype(str) if values.dtype == object else values


class SeenIds:
    """source_ids met so far: 8 bytes each, in sorted arrays of ever larger size."""

    def __init__(self) -> None:
        self._sorted: list[NDArray[np.int64]] = []

    def add(self, source_id: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Add some; return (star,) which of them had been there before, in this call or an earlier one."""
        unique, first = np.unique(source_id, return_index=True)
        repeated = np.ones(len(source_id), bool)
        repeated[first] = False
        for known in self._sorted:
            repeated |= are_among(source_id, known)
        if len(unique):
            self._sorted.append(unique)
        while len(self._sorted) > 1 and len(self._sorted[-2]) < 2 * len(self._sorted[-1]):
            last = self._sorted.pop()
            self._sorted[-1] = np.union1d(self._sorted[-1], last)
        return repeated

    def all(self) -> NDArray[np.int64]:
        """Return all of them, sorted."""
        return np.unique(np.concatenate(self._sorted)) if self._sorted else np.zeros(0, np.int64)
