"""Scalar columns of any table file: Gaia's source table, photometry, labels, reddening.

Out: a `Table` of NumPy columns, one row a usable row of the file; missing floats are NaN, missing text is "". A row
whose wanted cells cannot be read is rejected with a reason. Formats and damage are handled as in `rows.py`.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive import rows
from xpbayes.archive.quarantine import UNKNOWN_SOURCE, Rejected
from xpbayes.archive.rows import MISSING, Wanted, table_format
from xpbayes.errors import InputError

NULLS = [m.decode() for m in MISSING]
TEXT_BLOCK = 32 << 20
"""Bytes of text parsed at once."""
NO_ID = -1
"""An integer that is missing."""


@dataclass(frozen=True)
class Field:
    """A wanted scalar column.

    Attributes:
        name: its name here.
        kind: how to read it.
        aliases: names it has in other releases, matched without case.
        required: a file without it is refused, and a row without it is rejected.
    """

    name: str
    kind: Literal["float", "integer", "text"] = "float"
    aliases: tuple[str, ...] = ()
    required: bool = False


SOURCE_ID = Field("source_id", "integer", rows.SOURCE_ID.aliases, required=True)


@dataclass(frozen=True)
class Table:
    """Columns of one file or several.

    Attributes:
        columns: wanted columns that were found, (row,) each.
        rejected: rows that could not be read.
        n_read: rows in the files, rejected ones included.
    """

    columns: dict[str, NDArray[Any]]
    rejected: tuple[Rejected, ...]
    n_read: int

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def floats(self, name: str) -> NDArray[np.float64]:
        """Return a float column; all NaN if the file has none of that name."""
        return self.columns[name] if name in self.columns else np.full(len(self), np.nan)

    def take(self, index: NDArray[Any]) -> "Table":
        """Select rows."""
        return Table({k: v[index] for k, v in self.columns.items()}, self.rejected, self.n_read)

    def align(self, source_id: NDArray[np.int64]) -> tuple["Table", NDArray[np.bool_]]:
        """Bring the rows into the order of other source_ids; of repeated rows, the first counts.

        Args:
            source_id: (star,) int64.

        Returns:
            a table with one row a star, missing values where there is none, and (star,) whether there is one.
        """
        own, first = np.unique(self.columns["source_id"], return_index=True)
        at = np.searchsorted(own, source_id)
        known = at < len(own)
        known[known] = own[at[known]] == source_id[known]
        index = first[at[known]]
        columns: dict[str, NDArray[Any]] = {}
        for name, values in self.columns.items():
            blank = {"f": np.nan, "i": NO_ID, "U": ""}[values.dtype.kind]
            out = np.full(len(source_id), blank, dtype=values.dtype)
            out[known] = values[index]
            columns[name] = out
        columns["source_id"] = source_id
        return Table(columns, self.rejected, self.n_read), known


def read_tables(paths: Iterable[Path], fields: Sequence[Field]) -> Table:
    """Read files of the same kind as one table; a column is found if every file has it.

    Raises:
        InputError: a file is missing, foreign, or lacks a required column; there are no files.
    """
    parts = [read_table(path, fields) for path in paths]
    if not parts:
        raise InputError("no table files were named; name at least one")
    common = [n for n in parts[0].columns if all(n in p for p in parts)]
    return Table(
        {name: np.concatenate([p.columns[name] for p in parts]) for name in common},
        tuple(r for p in parts for r in p.rejected),
        sum(p.n_read for p in parts),
    )


def read_table(path: str | Path, fields: Sequence[Field]) -> Table:
    """Read the wanted scalar columns of one file.

    Args:
        path: the file; its suffix names the format.
        fields: the wanted columns.

    Raises:
        InputError: no such file, not of that format, a required column is missing, identifiers stored as floats.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path")
    kind = table_format(path)
    if kind == "text":
        return _read_text(path, fields)
    wanted = [Wanted(f.name, f.aliases, required=f.required) for f in fields]
    if kind == "avro":
        found, columns = _avro_columns(path, wanted)
    else:
        opened, names, read = _opened(path, kind)
        try:
            places, found = rows.resolve_columns(names, wanted, path)
            columns = {w.name: read(place[0]) for w, place in zip(wanted, places, strict=True) if place is not None}
        finally:
            opened()
    chosen = [f for f in fields if f.name in found]
    n = len(next(iter(columns.values()))) if columns else 0
    values: dict[str, NDArray[Any]] = {}
    reason = np.full(n, "", dtype="U120")
    for f in chosen:
        values[f.name], bad = _convert(columns[f.name], f, path)
        reason[bad & (reason == "")] = f"{f.name} is missing" if f.required else f"{f.name} cannot be read"
    return _finish(path, values, reason, n, 1, ())


def _opened(path: Path, kind: str) -> tuple[Any, Sequence[str], Any]:
    """A closer, the column names and a reader of one whole column."""
    if kind == "fits":
        hdus = rows.open_fits(path)
        try:
            hdu = rows.first_table(hdus, path)
            data = hdu.data
        except InputError:
            hdus.close()
            raise
        except Exception as error:  # astropy has no one exception for a damaged file
            hdus.close()
            raise InputError(f"{path}: is not a complete FITS table ({error}); copy it again") from error
        return hdus.close, hdu.columns.names, lambda name: np.array(data[name])
    if kind == "votable":
        array = rows.open_votable(path)
        return (lambda: None), array.dtype.names or (), lambda name: array[name]
    if kind == "parquet":
        file = rows.open_parquet(path)
        return (
            file.close,
            file.schema_arrow.names,
            lambda name: file.read(columns=[name]).column(0),
        )
    handle = rows.open_hdf5(path)
    try:
        columns = rows.hdf5_columns(handle, path)
    except InputError:
        handle.close()
        raise
    return handle.close, list(columns), lambda name: np.asarray(columns[name][:])


def _avro_columns(path: Path, wanted: Sequence[Wanted]) -> tuple[frozenset[str], dict[str, Any]]:
    opened = rows.avro_rows(path, wanted)
    cells = [item[1] for item in opened.cells if not isinstance(item, Rejected)]
    return opened.found, {
        w.name: np.array([c[i] for c in cells], dtype=object) for i, w in enumerate(wanted) if w.name in opened.found
    }


def _convert(column: Any, field: Field, path: Path) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """One column as float64, int64 or text, and which of its rows cannot be used."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        null = column.is_null().to_numpy() if column.null_count else np.zeros(len(column), bool)
        if pa.types.is_integer(column.type) and column.null_count:
            column = column.fill_null(NO_ID)
        raw = column.to_numpy()
    else:
        null = np.ma.getmaskarray(column) if isinstance(column, np.ma.MaskedArray) else np.zeros(len(column), bool)
        raw = np.ma.getdata(column)
    raw = np.asarray(raw)
    null = np.asarray(np.asarray(null).reshape(len(raw), -1).any(axis=1), dtype=bool)
    if raw.dtype == object:
        null = np.logical_or(null, np.array([v is None for v in raw], bool))
    if field.kind == "text":
        strings = [
            "" if n else (v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v)).strip()
            for v, n in zip(raw.tolist(), null.tolist(), strict=True)
        ]
        text = np.array(strings, dtype="U")
        return text, (text == "") & field.required
    if raw.dtype.kind in "OSU":
        out = np.full(
            len(raw), np.nan if field.kind == "float" else NO_ID, np.float64 if field.kind == "float" else np.int64
        )
        bad = np.zeros(len(raw), bool)
        for i in np.flatnonzero(~null):
            cell = raw[i].encode() if isinstance(raw[i], str) else raw[i]
            try:
                value = rows.number(cell) if field.kind == "float" else rows.integer(cell)
                out[i] = NO_ID if value is None else value
            except ValueError:
                bad[i] = True
        return out, bad | (field.required & (out == NO_ID) if field.kind == "integer" else np.zeros(len(raw), bool))
    if field.kind == "float":
        return np.where(null, np.nan, raw.astype(np.float64)), np.zeros(len(raw), bool)
    if raw.dtype.kind == "f":
        finite = raw[np.isfinite(raw)]
        if (np.abs(finite) >= 2.0**53).any() and not null.any():
            raise InputError(
                f"{path}: column {field.name} is stored in floating point, which has lost its last digits; "
                f"get the table with 64-bit integers"
            )
        raw = np.where(np.isfinite(raw), raw, NO_ID)
    integers = np.where(null, NO_ID, raw).astype(np.int64)
    return integers, (integers == NO_ID) & field.required


def _finish(
    path: Path,
    values: dict[str, NDArray[Any]],
    reason: NDArray[np.str_],
    n: int,
    first_row: int,
    earlier: tuple[Rejected, ...],
    numbers: NDArray[np.int64] | None = None,
) -> Table:
    bad = np.flatnonzero(reason != "")
    ids = values.get("source_id")
    numbers = np.arange(first_row, first_row + n) if numbers is None else numbers
    rejected = tuple(
        Rejected(path.name, int(numbers[i]), UNKNOWN_SOURCE if ids is None else int(ids[i]), str(reason[i]))
        for i in bad
    )
    keep = reason == ""
    return Table({k: v[keep] for k, v in values.items()}, (*earlier, *rejected), n + len(earlier))


def _read_text(path: Path, fields: Sequence[Field]) -> Table:
    file = rows.TextFile(path)
    wanted = [Wanted(f.name, f.aliases, required=f.required) for f in fields]
    places, found = rows.resolve_columns(file.header, wanted, path)
    chosen = [(f, file.header.index(p[0])) for f, p in zip(fields, places, strict=True) if p is not None]
    parts = [_text_block(path, file, lines, first, lost, chosen) for lines, first, lost in _text_blocks(path, file)]
    if not parts:
        empty = {
            f.name: np.zeros(0, {"float": np.float64, "integer": np.int64, "text": "U1"}[f.kind]) for f, _ in chosen
        }
        return Table(empty, (), 0)
    return Table(
        {name: np.concatenate([p.columns[name] for p in parts]) for name in parts[0].columns},
        tuple(r for p in parts for r in p.rejected),
        sum(p.n_read for p in parts),
    )


def _text_blocks(path: Path, file: Any) -> Iterator[tuple[list[bytes], int, Rejected | None]]:
    """Blocks of data lines, the number of their first row, and what became of a damaged end."""
    lines: list[bytes] = []
    size, first = 0, 1
    stream = file.data_lines()
    while True:
        try:
            line = next(stream).rstrip(b"\r")
        except StopIteration:
            break
        except rows.DamagedError as error:
            row = first + len(lines)
            yield lines, first, Rejected(path.name, row, UNKNOWN_SOURCE, f"the file {error.args[0]} inside this row")
            return
        if not line.strip() or line.startswith(b"#"):
            continue
        lines.append(line)
        size += len(line)
        if size > TEXT_BLOCK:
            yield lines, first, None
            first += len(lines)
            lines, size = [], 0
    if lines:
        yield lines, first, None


def _text_block(
    path: Path, file: Any, lines: list[bytes], first: int, lost: Rejected | None, chosen: list[tuple[Field, int]]
) -> Table:
    import polars as pl

    n_marks = len(file.header) - 1
    reason = np.full(len(lines), "", dtype="U120")
    good = []
    for i, line in enumerate(lines):
        if line.count(file.delimiter) != n_marks or b'"' in line:
            try:
                file.split(line)
            except ValueError as error:
                reason[i] = str(error)
                continue
        good.append(i)
    at = np.array(good, np.int64)
    values: dict[str, NDArray[Any]] = {}
    frame = pl.DataFrame({str(j): pl.Series([], dtype=pl.String) for _, j in chosen})
    if good:
        try:
            frame = pl.read_csv(
                io.BytesIO(b"\n".join(lines[i] for i in good)),
                has_header=False,
                separator=file.delimiter.decode(),
                infer_schema=False,
                encoding="utf8-lossy",
                columns=[j for _, j in chosen],
            )
            frame = frame.rename({f"column_{j + 1}": str(j) for _, j in chosen})
        except pl.exceptions.PolarsError:
            frame = pl.DataFrame()
        if frame.height != len(good):  # quotes that confuse the fast parser
            split = [file.split(lines[i]) for i in good]
            frame = pl.DataFrame(
                {str(j): [cells[j].decode("utf-8", "replace") for cells in split] for _, j in chosen},
                schema={str(j): pl.String for _, j in chosen},
            )
    for field, j in chosen:
        text = frame[str(j)].str.strip_chars()
        text = text.set(text.is_in(NULLS).fill_null(False), None)
        if field.kind == "text":
            out = np.array(text.fill_null("").to_list(), dtype=str) if len(text) else np.zeros(0, "U1")
            missing, bad = out == "", np.zeros(len(out), bool)
        else:
            kind = pl.Float64 if field.kind == "float" else pl.Int64
            number = text.cast(kind, strict=False)
            missing = text.is_null().to_numpy()
            bad = number.is_null().to_numpy() & ~missing
            out = number.fill_null(float("nan") if field.kind == "float" else NO_ID).to_numpy()
        values[field.name] = _spread(out, at, len(lines), field)
        for i in at[bad]:
            if reason[i] == "":
                reason[i] = f"{field.name} is not a number"
        if field.required:
            for i in at[missing]:
                if reason[i] == "":
                    reason[i] = f"{field.name} is missing"
    table = _finish(path, values, reason, len(lines), first, ())
    if lost is None:
        return table
    return Table(table.columns, (*table.rejected, lost), table.n_read + 1)


def _spread(values: NDArray[Any], at: NDArray[np.int64], n: int, field: Field) -> NDArray[Any]:
    """Values of the good lines at their places among all lines."""
    if len(at) == n:
        return values
    blank = {"float": np.nan, "integer": NO_ID, "text": ""}[field.kind]
    out = np.full(n, blank, dtype=values.dtype)
    out[at] = values
    return out
