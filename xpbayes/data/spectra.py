"""The star table: one Parquet layout that every command reads and writes.

A `Spectra` keeps what the archive knows (64-bit source_id, coordinates, labels, quality columns) in NumPy;
`Spectra.stars()` gives the float32 batch that the mathematics sees. Column names, units and meanings are in
`schema.star_table_columns`; channel set, labels, provenance and cuts are in the file's metadata.
A star that no likelihood can use stays in the table with a reason (`problems`); a file that cannot be read raises
InputError with one sentence.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xpbayes.channels import Channels
from xpbayes.data.stars import Stars
from xpbayes.errors import InputError, nearest
from xpbayes.files import reason_of, whole_file
from xpbayes.instrument.whitening import unpack
from xpbayes.schema import STAR_TABLE_VERSION, star_table_columns

METADATA_KEY = b"xpbayes"
OK = "ok"
ROWS_AT_ONCE, BYTES_AT_ONCE = 1024, 1 << 18
"""Rows decoded and bytes of the file held at once: a whole file's worth of new memory costs more than reading it."""


@dataclass(frozen=True)
class Cut:
    """One selection and what it removed.

    Attributes:
        what: the rule in words.
        removed: number of stars it removed.
        left: number of stars after it.
    """

    what: str
    removed: int
    left: int


@dataclass(frozen=True)
class Spectra:
    """Stars with everything the archive knows about them.

    Attributes:
        channels: the channel set of `flux`.
        label_names: stellar labels, Teff first.
        source_id: (star,) int64.
        flux: (star, channel) float32 [1e-18 W m^-2 nm^-1].
        xp_whitening: (star, packed) float32, see `schema`.
        band_inverse_error: (star, band) float32.
        columns: every other scalar column, (star,) each; missing floats are NaN.
        cuts: the selections that led to this table.
        provenance: where it came from and what was assumed, in words.
        extra_units: units of columns that the schema does not know.
    """

    channels: Channels
    label_names: tuple[str, ...]
    source_id: NDArray[np.int64]
    flux: NDArray[np.float32]
    xp_whitening: NDArray[np.float32]
    band_inverse_error: NDArray[np.float32]
    columns: dict[str, NDArray[Any]]
    cuts: tuple[Cut, ...] = ()
    provenance: dict[str, str] = field(default_factory=dict)
    extra_units: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.source_id)

    def column(self, name: str) -> NDArray[np.float64]:
        """Return a float column, all NaN if the table has none of that name."""
        if name not in self.columns:
            return np.full(len(self), np.nan)
        return np.asarray(self.columns[name], dtype=np.float64)

    def is_measured(self, name: str) -> NDArray[np.bool_]:
        """(star,) which stars have a finite value and a finite error of that name."""
        return np.isfinite(self.column(name)) & np.isfinite(self.column(f"{name}_error"))

    def labels(self, names: Sequence[str] | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (star, label) labels and errors in internal units, NaN where missing.

        Args:
            names: which labels; all of the table if None. A label that the table lacks is missing for every star.
        """
        names = self.label_names if names is None else names
        value = np.stack([self.column(n) for n in names], axis=1)
        error = np.stack([self.column(f"{n}_error") for n in names], axis=1)
        return value, error

    def channel_present(self) -> NDArray[np.bool_]:
        """(star, channel) which channels carry weight."""
        n = self.channels.n_xp
        diagonal = np.cumsum(np.arange(1, n + 1)) - 1  # positions of the diagonal in the packed triangle
        return np.concatenate([self.xp_whitening[:, diagonal], self.band_inverse_error], axis=1) != 0

    def take(self, index: Any, cut: str | None = None) -> "Spectra":
        """Select stars; with `cut`, record the rule and its count."""
        picked = replace(
            self,
            source_id=self.source_id[index],
            flux=self.flux[index],
            xp_whitening=self.xp_whitening[index],
            band_inverse_error=self.band_inverse_error[index],
            columns={k: v[index] for k, v in self.columns.items()},
        )
        if cut is None:
            return picked
        return replace(picked, cuts=(*self.cuts, Cut(cut, len(self) - len(picked), len(picked))))

    def problems(self) -> NDArray[np.str_]:
        """(star,) 'ok', or why no likelihood can use the star."""
        reason = np.full(len(self), OK, dtype="U64")
        present = self.channel_present()

        def mark(bad: Any, text: str) -> None:
            reason[bad & (reason == OK)] = text

        finite_weights = np.isfinite(self.xp_whitening).all(axis=1) & np.isfinite(self.band_inverse_error).all(axis=1)
        mark(~finite_weights, "flux error is not finite")
        mark((self.band_inverse_error < 0).any(axis=1), "flux error is negative")
        mark((~np.isfinite(self.flux) & present).any(axis=1), "flux is not finite")
        mark(present.sum(axis=1) == 0, "no channel was measured")
        mark((present & (self.flux > 0)).sum(axis=1) < 3, "fewer than three channels have a positive flux")
        for name in ("parallax", "reddening", "spectroscopic_parallax", *self.label_names):
            mark(self.column(f"{name}_error") <= 0, f"{name}_error is not positive")
        return reason

    def stars(
        self,
        labels: Sequence[str] | None = None,
        *,
        spectroscopic_parallax: bool = False,
        label_error_floor: Sequence[float] = (),
    ) -> Stars:
        """Build the float32 batch.

        Args:
            labels: which labels, in which order; all of the table if None.
            spectroscopic_parallax: use that column where Gaia's parallax is missing. It is derived from the labels:
                for training only.
            label_error_floor: (label,) added to the label errors in quadrature [kK, dex, ...]; none if empty.
        """
        label, label_error = self.labels(labels)
        if len(label_error_floor):
            label_error = np.hypot(label_error, np.asarray(label_error_floor))
        parallax, parallax_error = self.column("parallax"), self.column("parallax_error")
        if spectroscopic_parallax:
            use = ~self.is_measured("parallax")
            parallax = np.where(use, self.column("spectroscopic_parallax"), parallax)
            parallax_error = np.where(use, self.column("spectroscopic_parallax_error"), parallax_error)
        flux = np.where(self.channel_present(), self.flux, 0.0)
        scale = np.max(np.abs(np.where(np.isfinite(flux), flux, 0.0)), axis=1, initial=1e-20)[:, None]
        measured_labels = _measured("labels", label, label_error)
        return Stars(
            flux=(flux / scale).astype(np.float32),
            whitening=unpack(self.xp_whitening * scale, self.band_inverse_error * scale, self.channels.n_xp),
            ln_scale=np.log(scale[:, 0]).astype(np.float32),
            **_measured("parallax", parallax, parallax_error),
            labels=measured_labels["labels"],
            label_inv_error=measured_labels["labels_inv_error"],
            **_measured("reddening", self.column("reddening"), self.column("reddening_error")),
            **_gaussian(len(flux)),
        )


def _gaussian(n: int) -> dict[str, Any]:
    """Measurement errors alone have no tail; the model's own error may bring one."""
    return {"inv_dof": np.zeros(n, np.float32)}


def _measured(name: str, value: NDArray[np.float64], error: NDArray[np.float64]) -> dict[str, Any]:
    """Value and inverse error as float32, weight 0 where either is missing."""
    known = np.isfinite(value) & np.isfinite(error) & (error > 0)
    inverse = np.zeros_like(value)
    np.divide(1.0, error, out=inverse, where=known)
    return {
        name: np.where(known, value, 0.0).astype(np.float32),
        f"{name}_inv_error": inverse.astype(np.float32),
    }


def write_star_table(table: Spectra, path: str | os.PathLike[str]) -> Path:
    """Write a star table, under a temporary name first.

    Args:
        table: what to write.
        path: a `.parquet` file; parent folders are made.
    """
    path = Path(path)
    columns = star_table_columns(table.channels, table.label_names)
    metadata = {
        "xpbayes": json.dumps(
            {
                "kind": "star table",
                "version": STAR_TABLE_VERSION,
                "channels": json.loads(table.channels.to_json()),
                "labels": table.label_names,
                "cuts": [vars(c) for c in table.cuts],
                "provenance": table.provenance,
            }
        )
    }
    arrays: dict[str, pa.Array] = {}
    lists = {"flux": table.flux, "xp_whitening": table.xp_whitening, "band_inverse_error": table.band_inverse_error}
    fields = []
    for column in columns:
        if column.name == "source_id":
            arrays[column.name] = pa.array(table.source_id, type=column.type)
        elif column.name in lists:
            arrays[column.name] = fixed_list(lists[column.name], column.type)
        elif column.name in table.columns:
            arrays[column.name] = pa.array(table.columns[column.name], type=column.type, from_pandas=True)
        else:
            continue
        fields.append(column.field())
    for name, values in table.columns.items():
        if name not in arrays:
            arrays[name] = pa.array(values, from_pandas=True)
            fields.append(
                pa.field(name, arrays[name].type, metadata={"unit": table.extra_units.get(name, ""), "description": ""})
            )
    schema = pa.schema(fields, metadata=metadata)
    write_parquet(pa.Table.from_arrays([arrays[f.name] for f in fields], schema=schema), path)
    return path


def fixed_list(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Turn a (row, item) array into an Arrow fixed-size list column."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, type=kind.value_type), kind.list_size)


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write Parquet as the house does: byte-stream-split floats, zstd, temporary name, rename."""
    plain = [f.name for f in table.schema if pa.types.is_integer(f.type) or pa.types.is_dictionary(f.type)]
    floats = [
        f"{f.name}.list.element" if pa.types.is_fixed_size_list(f.type) else f.name
        for f in table.schema
        if pa.types.is_floating(f.type) or pa.types.is_fixed_size_list(f.type)
    ]
    with whole_file(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            use_dictionary=[n for n in plain if n != "source_id"],
            use_byte_stream_split=floats,
            row_group_size=16_384,
        )


def _open(path: Path) -> pq.ParquetFile:
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise InputError(f"{path}: is a folder, not a star table; name one .parquet file")
    try:
        return pq.ParquetFile(path, buffer_size=BYTES_AT_ONCE, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: is not a complete Parquet file ({str(error).splitlines()[0].rstrip('.')}); write or copy it again"
        ) from error


def file_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the xpbayes metadata of a Parquet file; InputError if it has none."""
    path = Path(path)
    with _open(path) as file:
        return _metadata(file, path)


def column_names(path: str | os.PathLike[str]) -> list[str]:
    """Names of the columns of a Parquet file."""
    with _open(Path(path)) as file:
        return list(file.schema_arrow.names)


def _metadata(file: pq.ParquetFile, path: Path) -> dict[str, Any]:
    raw = (file.schema_arrow.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise InputError(f"{path}: is Parquet but not a file of xpbayes (no metadata); write it with xpbayes")
    return json.loads(raw)


def read_star_table(path: str | os.PathLike[str]) -> Spectra:
    """Read a star table.

    Raises:
        InputError: the file is missing, truncated, empty, of another kind, lacks a column, has a wrong unit, or
            repeats a source_id.
    """
    path = Path(path)
    with _open(path) as file:
        return _read(file, path)


def _read(file: pq.ParquetFile, path: Path) -> Spectra:
    metadata = _metadata(file, path)
    if metadata.get("kind") != "star table":
        raise InputError(f"{path}: holds a {metadata.get('kind', 'file of unknown kind')}, not a star table")
    if metadata["version"] > STAR_TABLE_VERSION:
        raise InputError(
            f"{path}: star table version {metadata['version']} is newer than this xpbayes reads "
            f"({STAR_TABLE_VERSION}); upgrade xpbayes"
        )
    channels = Channels.from_json(json.dumps(metadata["channels"]))
    labels = tuple(metadata["labels"])
    schema = file.schema_arrow
    _check_columns(schema, channels, labels, path)
    if file.metadata.num_rows == 0:
        raise InputError(f"{path}: has no stars; nothing to do")
    lists = ("flux", "xp_whitening", "band_inverse_error")
    try:
        scalars = file.read(columns=[name for name in schema.names if name not in lists])
        matrices = _read_matrices(file, lists, path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: is damaged ({str(error).splitlines()[0]}); write or copy it again") from error
    columns = {name: scalars[name].to_numpy(zero_copy_only=False) for name in scalars.column_names}
    source_id = columns.pop("source_id")
    unique, first, count = np.unique(source_id, return_index=True, return_counts=True)
    if (count > 1).any():
        raise InputError(
            f"{path}: {(count > 1).sum()} source_ids occur more than once (first: {unique[count > 1][0]}, row "
            f"{first[count > 1][0]}); keep one row a star"
        )
    known = {c.name for c in star_table_columns(channels, labels)}
    return Spectra(
        channels=channels,
        label_names=labels,
        source_id=source_id,
        **matrices,
        columns=columns,
        cuts=tuple(Cut(**c) for c in metadata.get("cuts", [])),
        provenance=metadata.get("provenance", {}),
        extra_units={f.name: (f.metadata or {}).get(b"unit", b"").decode() for f in schema if f.name not in known},
    )


def _read_matrices(file: pq.ParquetFile, names: Sequence[str], path: Path) -> dict[str, NDArray[np.float32]]:
    """Columns of fixed-size lists as (row, item) arrays, decoded some rows at a time; no items where there is none."""
    schema, n = file.schema_arrow, file.metadata.num_rows
    out = {
        name: np.empty((n, schema.field(name).type.list_size if name in schema.names else 0), np.float32)
        for name in names
    }
    there = [name for name in names if name in schema.names]
    nulls = dict.fromkeys(there, 0)
    start = 0
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=there, use_threads=False):
        rows = slice(start, start + batch.num_rows)
        start = rows.stop
        for name in there:
            column = batch.column(name)
            nulls[name] += column.null_count
            if not column.null_count:
                out[name][rows] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    for name, count in nulls.items():
        if count:
            raise InputError(f"{path}: {count} rows have no {name}; write zeros in the weights instead of nulls")
    return out


def read_star_table_rows(path: str | os.PathLike[str], start: int, stop: int, at_once: int) -> Iterator[Spectra]:
    """Read rows of a star table, some at a time: for tables that are larger than memory.

    Each portion passes through a small file of its own, so that `read_star_table`, with all its checks, serves them too.

    Args:
        path: the table.
        start, stop: which rows.
        at_once: stars of a portion at most.

    Raises:
        InputError: as `read_star_table`, and if there is no room for a portion.
    """
    path = Path(path)
    try:
        file = pq.ParquetFile(path)
        first = np.concatenate(
            [[0], np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])]
        )
        groups = [i for i in range(file.num_row_groups) if first[i] < stop and first[i + 1] > start]
        at = int(first[groups[0]])
        waiting: list[pa.RecordBatch] = []
        n_waiting = 0
        with tempfile.TemporaryDirectory(prefix="xpbayes-") as scratch:
            copy = Path(scratch) / path.name
            for batch in file.iter_batches(batch_size=at_once, row_groups=groups):
                low, high = max(start - at, 0), min(stop - at, batch.num_rows)
                at += batch.num_rows
                if low >= high:
                    continue
                waiting.append(batch.slice(low, high - low))
                n_waiting += high - low
                while n_waiting >= at_once or (n_waiting and at >= stop):
                    rows = pa.Table.from_batches(waiting)
                    _write_copy(rows.slice(0, at_once), copy)
                    rest = rows.slice(at_once)
                    waiting, n_waiting = rest.to_batches(), rest.num_rows
                    del rows, rest
                    try:
                        yield read_star_table(copy)
                    except InputError as error:
                        raise InputError(str(error).replace(str(copy), str(path))) from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read ({reason_of(error)}); write or copy it again") from error


def _write_copy(rows: pa.Table, path: Path) -> None:
    try:
        pq.write_table(rows, path, compression="none", use_dictionary=False)
    except OSError as error:
        raise InputError(
            f"{path.parent}: cannot be written ({reason_of(error)}); make room there, or name another folder in "
            f"TMPDIR, and go on with --resume"
        ) from error


def read_star_tables(path: str | os.PathLike[str]) -> Spectra:
    """Read one star table, or all of a folder as one.

    Raises:
        InputError: as `read_star_table`; or the folder holds none, tables of different kinds, or a star twice.
    """
    files = star_table_files(path)
    tables = [read_star_table(f) for f in files]
    return join_star_tables(tables, [f.name for f in files]) if Path(path).is_dir() else tables[0]


def star_table_files(path: str | os.PathLike[str]) -> list[Path]:
    """The file of that name, or all star tables of a folder; InputError if it holds none."""
    folder = Path(path)
    if not folder.is_dir():
        return [folder]
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise InputError(f"{folder}: holds no star table (*.parquet); name a star table or a folder of them")
    return files


def add_up_cuts(cuts: Iterable[Cut]) -> tuple[Cut, ...]:
    """Count the same rule in several tables as one rule, in the order of first appearance."""
    counted: dict[str, Cut] = {}
    for cut in cuts:
        before = counted.get(cut.what, Cut(cut.what, 0, 0))
        counted[cut.what] = Cut(cut.what, before.removed + cut.removed, before.left + cut.left)
    return tuple(counted.values())


def join_star_tables(tables: Sequence[Spectra], names: Sequence[str]) -> Spectra:
    """Put star tables one after the other.

    Args:
        tables: at least one; all with the same channels and labels.
        names: what to call each in a message.
    """
    first = tables[0]
    for table, name in zip(tables[1:], names[1:], strict=True):
        first.channels.require_same(table.channels, names[0], name)
        if table.label_names != first.label_names:
            raise InputError(f"{name} has labels {table.label_names} and {names[0]} has {first.label_names}")
    source_id = np.concatenate([t.source_id for t in tables])
    unique, count = np.unique(source_id, return_counts=True)
    if (count > 1).any():
        raise InputError(
            f"{names[0]} and others: {(count > 1).sum()} source_ids occur in more than one table (first: "
            f"{unique[count > 1][0]}); keep one row a star"
        )
    columns = {}
    for name in dict.fromkeys(key for t in tables for key in t.columns):
        parts = [t.columns[name] if name in t.columns else np.full(len(t), np.nan) for t in tables]
        columns[name] = np.concatenate(parts)
    return replace(
        first,
        source_id=source_id,
        flux=np.concatenate([t.flux for t in tables]),
        xp_whitening=np.concatenate([t.xp_whitening for t in tables]),
        band_inverse_error=np.concatenate([t.band_inverse_error for t in tables]),
        columns=columns,
        cuts=add_up_cuts(c for t in tables for c in t.cuts),
    )


def _check_columns(schema: pa.Schema, channels: Channels, labels: tuple[str, ...], path: Path) -> None:
    expected = star_table_columns(channels, labels)
    missing = [c.name for c in expected if c.required and c.name not in schema.names]
    if missing:
        raise InputError(
            f"{path}: {len(missing)} required column{'s are' if len(missing) > 1 else ' is'} missing "
            f"(first: {missing[0]}){nearest(missing[0], schema.names)}; write the table with xpbayes"
        )
    for column in expected:
        if column.name not in schema.names:
            continue
        have = schema.field(column.name)
        if have.type != column.type:
            raise InputError(f"{path}: column {column.name} has type {have.type}, expected {column.type}")
        unit = (have.metadata or {}).get(b"unit", b"").decode()
        if unit != column.unit:
            raise InputError(
                f"{path}: column {column.name} is in '{unit}', expected '{column.unit}'; convert it and write it again"
            )
