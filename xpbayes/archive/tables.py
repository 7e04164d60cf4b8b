"""Scalar columns of any table file: Gaia's source table, photometry, labels, reddening.

Out: `Table`s of NumPy columns, one row a usable row of the file; missing floats are NaN, missing text is "". A row
whose wanted cells cannot be read is rejected with a reason. `read_blocks` streams; `read_tables` puts all together.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive import columns
from xpbayes.archive.binary_file import BlockError, ColumnFile, open_resolved
from xpbayes.archive.cells import MISSING, integer, number
from xpbayes.archive.columns import Places, Wanted, needed_columns, resolve_columns
from xpbayes.archive.rows import table_format
from xpbayes.archive.text_file import DamagedError, TextFile
from xpbayes.data.join import rows_of
from xpbayes.data.rejected import UNKNOWN_SOURCE, Rejected
from xpbayes.errors import InputError

Kind = Literal["float", "integer", "text"]

NULLS = [m.decode() for m in MISSING]
TEXT_BLOCK = 32 << 20
"""Bytes of text parsed at once."""
BINARY_BLOCK = 65_536
"""Rows of a binary file read at once."""
NO_ID = -1
"""An integer that is missing."""
BLANK: dict[Kind, Any] = {"float": np.nan, "integer": NO_ID, "text": ""}
"""A missing value of each kind."""
DTYPE: dict[Kind, Any] = {"float": np.float64, "integer": np.int64, "text": "U1"}


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
    kind: Kind = "float"
    aliases: tuple[str, ...] = ()
    required: bool = False


SOURCE_ID = Field("source_id", "integer", columns.SOURCE_ID.aliases, required=True)


@dataclass(frozen=True)
class Table:
    """Columns of one file, or some rows of it, or several files.

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
            blank = {"f": np.nan, "i": NO_ID, "U": ""}[values.dtype.kind]
            out = np.full(len(source_id), blank, dtype=values.dtype)
            out[known] = values[index]
            aligned[name] = out
        aligned["source_id"] = source_id
        return Table(aligned, self.rejected, self.n_read), known


def read_tables(paths: Iterable[Path], fields: Sequence[Field]) -> Table:
    """Read files of the same kind as one table; a column is found if every file has it.

    Raises:
        InputError: a file is missing, foreign, or lacks a required column; there are no files.
    """
    return concatenate([read_table(path, fields) for path in paths])


def read_table(path: str | Path, fields: Sequence[Field]) -> Table:
    """Read the wanted scalar columns of one file.

    Args:
        path: the file; its suffix names the format.
        fields: the wanted columns.

    Raises:
        InputError: no such file, not of that format, a required column is missing, identifiers stored as floats.
    """
    return concatenate(list(read_blocks(path, fields)))


def concatenate(parts: Sequence[Table]) -> Table:
    """Put tables one after the other; columns that not all of them have are left out.

    Raises:
        InputError: there is none.
    """
    if not parts:
        raise InputError("no table files were named; name at least one")
    if len(parts) == 1:
        return parts[0]
    common = [n for n in parts[0].columns if all(n in p for p in parts)]
    return Table(
        {name: np.concatenate([p.columns[name] for p in parts]) for name in common},
        tuple(r for p in parts for r in p.rejected),
        sum(p.n_read for p in parts),
    )


def read_blocks(path: str | Path, fields: Sequence[Field]) -> Iterator[Table]:
    """Read the wanted scalar columns of one file some rows at a time: memory does not grow with the file.

    Args:
        path: the file; its suffix names the format.
        fields: the wanted columns.

    Yields:
        at least one table, all with the same columns.

    Raises:
        InputError: as `read_table`.
    """
    path = Path(path)
    kind = table_format(path)
    wanted = [Wanted(f.name, f.aliases, required=f.required) for f in fields]
    if kind == "text":
        file = TextFile(path)
        places, _ = resolve_columns(file.header, wanted, path)
        chosen = [(f, file.header.index(p[0])) for f, p in zip(fields, places, strict=True) if p is not None]
        return _text_blocks(file, chosen)
    opened, places, _ = open_resolved(path, kind, wanted)
    return _binary_blocks(path, opened, [f for f, p in zip(fields, places, strict=True) if p is not None], places)


# -------------------------------------------------------------------------------------------------------- binary


def _binary_blocks(path: Path, file: ColumnFile, fields: Sequence[Field], places: Places) -> Iterator[Table]:
    names = needed_columns(places)
    row = 1
    try:
        for block in file.blocks(names, BINARY_BLOCK):
            n = len(block[names[0]])
            values: dict[str, NDArray[Any]] = {}
            reason = np.full(n, "", dtype="U120")
            for field, name in zip(fields, names, strict=True):
                values[field.name], bad = _convert(block[name], field, path)
                reason[bad & (reason == "")] = f"{field.name} {'is missing' if field.required else 'cannot be read'}"
            yield _finish(path, values, reason, row)
            row += n
    except BlockError as error:
        lost = Rejected(path.name, row, UNKNOWN_SOURCE, f"the file is damaged from this row on ({error})")
        yield Table(_no_rows(fields), (lost,), 1)
        return
    finally:
        file.close()
    if row == 1:
        yield Table(_no_rows(fields), (), 0)


def _no_rows(fields: Iterable[Field]) -> dict[str, NDArray[Any]]:
    return {f.name: np.zeros(0, DTYPE[f.kind]) for f in fields}


def _convert(cells: Any, field: Field, path: Path) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """One column as float64, int64 or text, and which of its rows cannot be used."""
    null = np.ma.getmaskarray(cells) if isinstance(cells, np.ma.MaskedArray) else np.zeros(len(cells), bool)
    raw = np.asarray(np.ma.getdata(cells))
    null = np.asarray(null.reshape(len(raw), -1).any(axis=1), dtype=bool)
    if raw.dtype == object:
        null = null | np.array([v is None for v in raw], bool)
    if field.kind == "text":
        return _text_column(raw, null, field)
    if raw.dtype.kind in "OSU":
        return _number_column(raw, null, field)
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


def _text_column(
    raw: NDArray[Any], null: NDArray[np.bool_], field: Field
) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    strings = [
        "" if n else (v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v)).strip()
        for v, n in zip(raw.tolist(), null.tolist(), strict=True)
    ]
    text = np.array(strings, dtype="U")
    return text, (text == "") & field.required


def _number_column(raw: NDArray[Any], null: NDArray[np.bool_], field: Field) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Numbers that are stored as text or as Python values."""
    out = np.full(len(raw), BLANK[field.kind], DTYPE[field.kind])
    bad = np.zeros(len(raw), bool)
    for i in np.flatnonzero(~null):
        cell = raw[i].encode() if isinstance(raw[i], str) else raw[i]
        try:
            value = number(cell) if field.kind == "float" else integer(cell)
            out[i] = NO_ID if value is None else value
        except (ValueError, OverflowError):
            bad[i] = True
    return out, bad | (out == NO_ID if field.required and field.kind == "integer" else np.zeros(len(raw), bool))


def _finish(path: Path, values: dict[str, NDArray[Any]], reason: NDArray[np.str_], first_row: int) -> Table:
    """Take out the rows that have a reason to be rejected."""
    bad = np.flatnonzero(reason != "")
    ids = values.get("source_id")
    rejected = tuple(
        Rejected(path.name, int(first_row + i), UNKNOWN_SOURCE if ids is None else int(ids[i]), str(reason[i]))
        for i in bad
    )
    if not len(bad):
        return Table(values, (), len(reason))
    keep = reason == ""
    return Table({k: v[keep] for k, v in values.items()}, rejected, len(reason))


# ---------------------------------------------------------------------------------------------------------- text


def _text_blocks(file: TextFile, chosen: list[tuple[Field, int]]) -> Iterator[Table]:
    """Tables of some data lines each; a damaged end is one rejected row."""
    lines: list[bytes] = []
    size, first = 0, 1
    lost: tuple[Rejected, ...] = ()
    try:
        for line in file.data_lines():
            lines.append(line)
            size += len(line)
            if size > TEXT_BLOCK:
                yield _text_block(file, lines, first, chosen)
                first += len(lines)
                lines, size = [], 0
    except DamagedError as error:
        row, reason = first + len(lines), f"the file {error.args[0]} inside this row"
        lost = (Rejected(file.path.name, row, UNKNOWN_SOURCE, reason),)
    if lines or lost or first == 1:
        table = _text_block(file, lines, first, chosen)
        yield Table(table.columns, (*table.rejected, *lost), table.n_read + len(lost))


def _text_block(file: TextFile, lines: list[bytes], first: int, chosen: list[tuple[Field, int]]) -> Table:
    if not lines:
        return Table(_no_rows(f for f, _ in chosen), (), 0)
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
    frame = _text_frame(file, [lines[i] for i in good], [j for _, j in chosen])
    values: dict[str, NDArray[Any]] = {}
    for field, j in chosen:
        column, missing, bad = _parse_text(frame[str(j)], field)
        values[field.name] = np.full(len(lines), BLANK[field.kind], dtype=column.dtype)
        values[field.name][at] = column
        for wrong, text in ((bad, "is not a number"), (missing & field.required, "is missing")):
            rows = at[wrong]
            reason[rows[reason[rows] == ""]] = f"{field.name} {text}"
    return _finish(file.path, values, reason, first)


def _text_frame(file: TextFile, lines: list[bytes], chosen: list[int]) -> Any:
    """A polars frame of text columns, named by their numbers."""
    import polars as pl

    frame = pl.DataFrame()
    if lines:
        try:
            frame = pl.read_csv(
                io.BytesIO(b"\n".join(lines)),
                has_header=False,
                separator=file.delimiter.decode(),
                infer_schema=False,
                encoding="utf8-lossy",
                columns=sorted(set(chosen)),
            )
            frame = frame.rename({f"column_{j + 1}": str(j) for j in set(chosen)})
        except pl.exceptions.PolarsError:
            frame = pl.DataFrame()
    if frame.height == len(lines) and lines:
        return frame
    split = [file.split(line) for line in lines]  # quotes that confuse the fast parser
    return pl.DataFrame(
        {str(j): [cells[j].decode("utf-8", "replace") for cells in split] for j in set(chosen)},
        schema={str(j): pl.String for j in set(chosen)},
    )


def _parse_text(text: Any, field: Field) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]:
    """A column of text as its kind; which rows are missing, and which are not numbers."""
    import polars as pl

    text = text.str.strip_chars()
    text = text.set(text.is_in(NULLS).fill_null(False), None)
    if field.kind == "text":
        out = np.array(text.fill_null("").to_list(), dtype=str) if len(text) else np.zeros(0, "U1")
        return out, out == "", np.zeros(len(out), bool)
    values = text.cast(pl.Float64 if field.kind == "float" else pl.Int64, strict=False)
    missing = text.is_null().to_numpy()
    bad = values.is_null().to_numpy() & ~missing
    return values.fill_null(BLANK[field.kind]).to_numpy(), missing, bad
