"""What a run keeps in its folder for its workers: the layout and the companion tables, as JSON and Parquet, never code.

Everything is under ``records/`` and goes with it when the catalogue is complete.
"""

import hashlib
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from xpbayes.archive.companion_table import Run, SortedRuns
from xpbayes.archive.companions import Companions, read_companions
from xpbayes.archive.tables import Table
from xpbayes.data.json_file import read_json, write_json
from xpbayes.data.parquet import open_parquet, read_parquet
from xpbayes.data.rejected import Rejected
from xpbayes.errors import InputError
from xpbayes.files import reason_of, temporary_name, whole_file
from xpbayes.production.inputs import COMPANIONS, Layout
from xpbayes.production.parts import MAKE_ROOM, RECORDS, OpenedInput, check_unchanged

TABLES = "tables.json"
AGAIN = "delete its folder and go on with --resume"


def keep_layout(folder: Path, layout: Layout) -> str:
    """Write the layout for this run's workers, who would take long to find it again; returns the file's path.

    Paths may differ from machine to machine, so every job of a batch keeps its own, named by its content.
    """
    raw = TypeAdapter(Layout).dump_json(layout)
    path = folder / RECORDS / f"layout-{hashlib.sha256(raw).hexdigest()[:32]}.json"
    with whole_file(path, MAKE_ROOM) as temporary:
        temporary.write_bytes(raw)
    return str(path.absolute())


def kept_layout(path: str) -> Layout:
    """Read what `keep_layout` wrote; InputError if it is not that."""
    layout = read_json(path, Layout, AGAIN)
    if hashlib.sha256(Path(path).read_bytes()).hexdigest()[:32] != Path(path).stem.removeprefix("layout-"):
        raise InputError(f"{path}: is not the file that the run wrote; {AGAIN}")
    return layout


@dataclass(frozen=True)
class _KeptTable:
    """A table on disk."""

    n_read: int  # rows in its files
    n_rows: int  # usable ones
    columns: tuple[str, ...]
    missing: dict[str, int]  # reason -> how many numbers were taken for missing
    rows: str = ""  # file of all rows, or
    runs: tuple[str, ...] = ()  # files of sorted rows


@dataclass(frozen=True)
class Kept:
    """The companion tables of one survey on disk; notes and summary as `Companions` has them."""

    checksums: list[str]  # SHA-256 of the survey's companion files, in the layout's order
    modified: list[int]  # their times of change [ns]
    rejected: list[Rejected]  # rows that could not be used
    notes: dict[str, str]
    summary: tuple[str, ...]
    tables: dict[str, _KeptTable]  # by kind


def keep_tables(folder: Path, layout: Layout) -> None:
    """Read the companion tables of every survey and keep them for the workers, if that was not done yet.

    Raises:
        InputError: a table has changed since it was read, or cannot be used; the disk is full.
    """
    for survey in range(len(layout.surveys)):
        final = _tables_folder(folder, survey)
        if not final.is_dir():
            scratch = temporary_name(final)
            try:
                scratch.mkdir(parents=True)
                _read_and_keep(layout, survey, scratch)
                try:
                    os.replace(scratch, final)
                except OSError:
                    if not final.is_dir():
                        raise
                    shutil.rmtree(scratch)  # another job was first, with the same tables
            except OSError as error:
                raise InputError(f"{final}: cannot be written ({reason_of(error)}); {MAKE_ROOM}") from error
    for survey, about in enumerate(kept_about(folder, layout)):
        for file, checksum, modified in zip(layout.companions_of(survey), about.checksums, about.modified, strict=True):
            check_unchanged(file.path, checksum, modified)


def kept_tables(folder: Path, layout: Layout) -> list[Companions]:
    """Return the companion tables of every survey, as `keep_tables` left them."""
    out = []
    for survey, about in enumerate(kept_about(folder, layout)):
        tables: dict[str, Any] = dict.fromkeys((*COMPANIONS, "star_labels", "reddening", "dust"))
        tables |= {k: _load(about.tables[k], _tables_folder(folder, survey)) for k in COMPANIONS if k in about.tables}
        out.append(Companions(**tables, rejected=tuple(about.rejected), notes=about.notes, summary=about.summary))
    return out


def _tables_folder(folder: Path, survey: int) -> Path:
    return folder / RECORDS / f"tables-{survey:03d}"


def kept_about(folder: Path, layout: Layout) -> list[Kept]:
    """What `keep_tables` wrote of every survey; InputError if it is not that."""
    out = []
    for survey in range(len(layout.surveys)):
        path, n_files = _tables_folder(folder, survey) / TABLES, len(layout.companions_of(survey))
        about = read_json(path, Kept, AGAIN)
        if not len(about.checksums) == len(about.modified) == n_files:
            raise InputError(f"{path}: is damaged (it tells of {len(about.checksums)} files, not {n_files}); {AGAIN}")
        out.append(about)
    return out


def _read_and_keep(layout: Layout, survey: int, scratch: Path) -> None:
    one = layout.surveys[survey]
    opened = [OpenedInput.at(f.path) for f in layout.companions_of(survey)]
    companions = read_companions(one.settings, one.base, scratch=scratch)
    for file in opened:
        file.check()
    about = Kept(
        checksums=[file.checksum for file in opened],
        modified=[file.modified for file in opened],
        rejected=list(companions.rejected),
        notes=companions.notes,
        summary=companions.summary,
        tables={
            kind: _save(getattr(companions, kind), kind, scratch)
            for kind in COMPANIONS
            if getattr(companions, kind) is not None
        },
    )
    write_json(TypeAdapter(Kept).dump_python(about, mode="json"), scratch / TABLES, MAKE_ROOM)


def _save(table: Table | SortedRuns, kind: str, folder: Path) -> _KeptTable:
    """Write a table's rows, unless they are on disk already, and return what is known of them."""
    about = _KeptTable(table.n_read, len(table), tuple(table.columns), dict(table.missing))
    if isinstance(table, SortedRuns):
        return replace(about, runs=tuple(str(run.path.relative_to(folder)) for run in table.runs))
    name = f"{kind}.parquet"
    with whole_file(folder / name, MAKE_ROOM) as temporary:
        pq.write_table(pa.table({k: pa.array(v) for k, v in table.columns.items()}), temporary, compression="lz4")
    return replace(about, rows=name)


def _load(about: _KeptTable, folder: Path) -> Table | SortedRuns:
    if not about.runs:
        rows = read_parquet(folder / about.rows, about.columns, AGAIN)
        return Table(_columns(rows), (), about.n_read, about.missing)
    runs = tuple(_run(folder / name) for name in about.runs)
    with open_parquet(runs[0].path, AGAIN) as file:
        first = file.read_row_group(0, columns=list(about.columns)).slice(0, 1)
    empty = Table({k: v[:0] for k, v in _columns(first).items()}, (), 0)
    return SortedRuns(about.columns, runs, about.n_rows, (), empty, about.n_read, about.missing)


def _run(path: Path) -> Run:
    """A sorted run, the ranges of its row groups from its own statistics."""
    with open_parquet(path, AGAIN) as file:
        about = file.metadata
        at = about.schema.names.index("source_id")
        ranges = [about.row_group(i).column(at).statistics for i in range(about.num_row_groups)]
        return Run(path, np.array([r.min for r in ranges], np.int64), np.array([r.max for r in ranges], np.int64))


def _columns(rows: pa.Table) -> dict[str, Any]:
    columns = {name: rows[name].to_numpy() for name in rows.column_names}
    return {k: v.astype(str) if v.dtype == object else v for k, v in columns.items()}
