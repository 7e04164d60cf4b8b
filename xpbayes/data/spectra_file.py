"""The star table's file: one Parquet layout that every command reads and writes.

Column names, units and meanings are in `schema.star_table_columns`; channel set, labels, provenance and cuts are in the
file's metadata. A star that no likelihood can use stays in the table (`Spectra.problems`); a file that cannot be read
raises InputError with one sentence.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xpbayes.channels import Channels
from xpbayes.data.join import repeated_ids
from xpbayes.data.json_file import checked
from xpbayes.data.parquet import AGAIN, fixed_list, is_parquet, metadata_of, open_parquet, require_kind, write_parquet
from xpbayes.data.spectra import MATRICES, Cut, Spectra, join_star_tables
from xpbayes.errors import InputError, nearest
from xpbayes.instrument.instrument import DEFAULT_ID, InstrumentId
from xpbayes.schema import STAR_TABLE_VERSION, star_table_columns

KIND = "star table"
ROWS_AT_ONCE = 1024
"""Rows decoded at once: a whole file's worth of new memory costs more than reading it."""


@dataclass(frozen=True)
class Header:
    """What the metadata of a star table say; attributes as in `Spectra`. Without an instrument it is of version 0.1.0."""

    channels: Channels
    labels: tuple[str, ...]
    cuts: tuple[Cut, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    instrument: InstrumentId = DEFAULT_ID

    def __post_init__(self) -> None:
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be at least one name, and each once")


def write_star_table(table: Spectra, path: str | os.PathLike[str]) -> Path:
    """Write a star table as .parquet, under a temporary name first; parent folders are made."""
    path = Path(path)
    about = {
        "kind": KIND,
        "version": STAR_TABLE_VERSION,
        "channels": json.loads(table.channels.to_json()),
        "labels": table.label_names,
        "cuts": [vars(c) for c in table.cuts],
        "provenance": table.provenance,
        "instrument": table.instrument.to_json(),
    }
    fields, arrays = [], []
    columns = {"source_id": table.source_id, **{n: getattr(table, n) for n in MATRICES}, **table.columns}
    known = {c.name: c for c in star_table_columns(table.channels, table.label_names)}
    for name in [*(n for n in known if n in columns), *(n for n in table.columns if n not in known)]:
        if name in MATRICES:
            arrays.append(fixed_list(columns[name], known[name].type))
        else:
            kind = known[name].type if name in known else None
            arrays.append(pa.array(columns[name], type=kind, from_pandas=name != "source_id"))
        about_column = {"unit": table.extra_units.get(name, ""), "description": ""}
        fields.append(known[name].field() if name in known else pa.field(name, arrays[-1].type, metadata=about_column))
    schema = pa.schema(fields, metadata={"xpbayes": json.dumps(about)})
    write_parquet(pa.Table.from_arrays(arrays, schema=schema), path)
    return path


def read_star_table(path: str | os.PathLike[str]) -> Spectra:
    """Read a star table.

    Raises:
        InputError: the file is missing, truncated, empty, of another kind, lacks a column, has a wrong unit, or
            repeats a source_id.
    """
    (table,) = read_star_table_rows(path)
    return table


def read_star_table_rows(
    path: str | os.PathLike[str], start: int = 0, stop: int | None = None, at_once: int | None = None
) -> Iterator[Spectra]:
    """Read rows of a star table, so many at a time, for tables larger than memory; InputError as `read_star_table`."""
    path = Path(path)
    with open_parquet(path) as file:
        header = _header(file, path)
        stop = file.metadata.num_rows if stop is None else stop
        at_once = max(1, stop - start) if at_once is None else at_once
        at, rows = start, None
        for batch in _batches(file, start, stop, min(ROWS_AT_ONCE, at_once)):
            while batch.num_rows:
                rows = rows or _Rows(file.schema_arrow, min(at_once, stop - at))
                batch = rows.add(batch)
                if not rows.room:
                    table = rows.table(header, file.schema_arrow, path, at)
                    at, rows = at + len(table), None
                    yield table
                    del table  # whoever has it may give its memory back before the next one is made
        if at < min(stop, file.metadata.num_rows):
            raise InputError(f"{path}: is damaged (it has fewer rows than it says); {AGAIN}")


def _batches(file: pq.ParquetFile, start: int, stop: int, at_once: int) -> Iterator[pa.RecordBatch]:
    """Rows of a file, from one row group after the other: asked for several, Arrow keeps what it has read."""
    at = 0
    for group in range(file.num_row_groups):
        end = at + file.metadata.row_group(group).num_rows
        if at < stop and end > start:
            for batch in file.iter_batches(at_once, row_groups=[group], use_threads=False):
                low, high = max(start - at, 0), min(stop - at, batch.num_rows)
                at += batch.num_rows
                if low < high:
                    yield batch.slice(low, high - low)
        at = end


class _Rows:
    """Rows of a table, filled batch by batch."""

    def __init__(self, schema: pa.Schema, size: int) -> None:
        self.matrices = {
            name: np.empty((size, schema.field(name).type.list_size if name in schema.names else 0), np.float32)
            for name in MATRICES
        }
        self._there = [name for name in MATRICES if name in schema.names]
        self._scalars = [name for name in schema.names if name not in MATRICES]
        self._batches: list[pa.RecordBatch] = []
        self._nulls = dict.fromkeys(["source_id", *self._there], 0)
        self.room = size

    def add(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Take as many rows as there is room for; return the rest."""
        mine, rest = batch.slice(0, self.room), batch.slice(self.room)
        for name in self._nulls:
            self._nulls[name] += mine.column(name).null_count
        end = len(self.matrices["flux"]) - self.room + mine.num_rows
        for name in self._there:
            if not mine.column(name).null_count:
                values = mine.column(name).flatten().to_numpy(zero_copy_only=False)
                self.matrices[name][end - mine.num_rows : end] = values.reshape(mine.num_rows, -1)
        self._batches.append(mine.select(self._scalars))
        self.room -= mine.num_rows
        return rest

    def table(self, header: Header, schema: pa.Schema, path: Path, start: int) -> Spectra:
        """All rows as a table; `start` is the number of the first in the file."""
        for name, count in self._nulls.items():
            if count:
                advice = (
                    "leave these rows out" if name == "source_id" else "write zeros in the weights instead of nulls"
                )
                raise InputError(f"{path}: {count} rows have no {name}; {advice}")
        scalars = pa.Table.from_batches(self._batches)
        columns = {name: scalars[name].to_numpy(zero_copy_only=False) for name in scalars.column_names}
        source_id = columns.pop("source_id")
        if (bad := np.flatnonzero(source_id <= 0)).size:
            raise InputError(
                f"{path}: {bad.size} source_ids are outside 1 ... 2^63 - 1 (first: {source_id[bad[0]]}, row "
                f"{start + bad[0]}); leave these rows out"
            )
        again = repeated_ids(source_id)
        if again is not None:
            raise InputError(
                f"{path}: {again.count} source_ids occur more than once (first: {again.first}, row "
                f"{start + again.row}); keep one row a star"
            )
        known = {c.name for c in star_table_columns(header.channels, header.labels)}
        return Spectra(
            channels=header.channels,
            label_names=header.labels,
            source_id=source_id,
            **self.matrices,
            columns=columns,
            cuts=header.cuts,
            provenance=header.provenance,
            extra_units={n: _unit(schema.field(n)) for n in schema.names if n not in known},
            instrument=header.instrument,
        )


def read_header(path: str | os.PathLike[str]) -> tuple[Header, int]:
    """Read what a star table is, and how many stars it has, without reading it; InputError as `read_star_table`."""
    with open_parquet(path) as file:
        return _header(file, Path(path)), file.metadata.num_rows


def _header(file: pq.ParquetFile, path: Path) -> Header:
    about = metadata_of(file.schema_arrow, path)
    require_kind(about, KIND, STAR_TABLE_VERSION, path)
    header = checked(about, Header, f"{path}: metadata", AGAIN)
    _check_columns(file.schema_arrow, header.channels, header.labels, path)
    if file.metadata.num_rows == 0:
        raise InputError(f"{path}: has no stars; nothing to do")
    return header


def _check_columns(schema: pa.Schema, channels: Channels, labels: tuple[str, ...], path: Path) -> None:
    expected = star_table_columns(channels, labels)
    missing = [c.name for c in expected if c.required and c.name not in schema.names]
    if missing:
        raise InputError(
            f"{path}: {len(missing)} required column{'s are' if len(missing) > 1 else ' is'} missing "
            f"(first: {missing[0]}){nearest(missing[0], schema.names)}; write the table with xpbayes"
        )
    repeated = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if repeated is not None:
        raise InputError(f"{path}: has several columns {repeated}; keep one of them")
    for column in expected:
        if column.name not in schema.names:
            continue
        have = schema.field(column.name)
        if have.type != column.type:
            raise InputError(f"{path}: column {column.name} has type {have.type}, expected {column.type}")
        if _unit(have) != column.unit:
            raise InputError(
                f"{path}: column {column.name} is in '{_unit(have)}', expected '{column.unit}'; convert it and write it "
                f"again"
            )


def _unit(field: pa.Field) -> str:
    return (field.metadata or {}).get(b"unit", b"").decode(errors="replace")


def read_star_tables(path: str | os.PathLike[str]) -> Spectra:
    """Read one star table, or all of a folder as one.

    Raises:
        InputError: as `read_star_table`; or the folder holds none, tables of different kinds, or a star twice.
    """
    files = star_table_files(path)
    tables = [read_star_table(f) for f in files]
    return join_star_tables(tables, [f.name for f in files]) if Path(path).is_dir() else tables[0]


def star_table_files(path: str | os.PathLike[str]) -> list[Path]:
    """The file of that name, or all star tables of a folder; InputError if it holds none, or is no Parquet file."""
    given = Path(path)
    files = sorted(given.glob("*.parquet")) if given.is_dir() else [given]
    if not files:
        raise InputError(f"{given}: holds no star table (*.parquet); name a star table or a folder of them{HOW}")
    if given.is_file() and given.suffix != ".parquet" and not is_parquet(given):
        raise InputError(f"{given}: is no star table (.parquet); name one, or a folder of them{HOW}")
    return files


HOW = ", as 'xpbayes prepare' makes them of the spectra and labels in a survey.toml"
