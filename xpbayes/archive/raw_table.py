"""What a format module makes of a file: tables of raw columns in batches of rows. Whatever comes after knows no format.

Raw values are NumPy arrays (masked where the format has nulls), lists of Python values, bytes or arrays, or, from text,
strings. What a value means - an identifier, a number in a unit, a missing one - `values` and `cells` decide for all.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.cells import ArrayParser
from xpbayes.errors import InputError

Columns = Mapping[str, Any]
"""Column name -> cells of some rows."""


class DamagedError(Exception):
    """The file cannot be read on from here."""


@dataclass(frozen=True)
class BadRow:
    """A row that the format's reader could not take apart."""

    row: int  # its number in the table, the first is 1
    reason: str  # what is wrong, in words
    source: Any = None  # the cell that may hold its source_id; None where there is none


@dataclass(frozen=True)
class Batch:
    """Some rows of a table."""

    row: NDArray[np.int64]  # (row,) their numbers in the table, the first is 1
    columns: Columns  # the needed columns; may be empty where there is no row
    bad: tuple[BadRow, ...] = ()  # rows met on the way that could not be taken apart


ReadBatches = Callable[[Sequence[str], int, bool], Iterator[Batch]]
"""Reads the needed columns of a table, so many rows at once; the first name tells whose a bad row is.

What cannot be read is refused at once. The last argument promises that no cell is an array.
"""


@dataclass(frozen=True)
class RawTable:
    """One table of a file."""

    keys: tuple[str, ...]  # its number among the file's tables, and its name: what the setting `hdu` may say
    names: tuple[str, ...]  # its columns, in order; fields of nested records are joined by "/" or "."
    batches: ReadBatches  # reads some of them
    units: Mapping[str, str] = field(default_factory=dict)  # that the file declares
    constants: Mapping[str, Any] = field(default_factory=dict)  # of all rows: PARAMs, header cards, ECSV meta
    truncated: str | None = None  # the server's sentence where the table is said to be cut short
    member: str = ""  # name inside a zip file


@dataclass(frozen=True)
class RawFile:
    """An open file: its tables, and what closes it."""

    tables: tuple[RawTable, ...]
    close: Callable[[], None] = lambda: None


def with_masks(table: RawTable) -> RawTable:
    """A table in which those cells of x are missing that its column ``x.mask`` says, as astropy and vaex write it."""
    masks = {name: f"{name}.mask" for name in table.names if f"{name}.mask" in table.names}

    def batches(needed: Sequence[str], size: int, scalar: bool) -> Iterator[Batch]:
        every = list(dict.fromkeys([*needed, *(masks[name] for name in needed if name in masks)]))
        read = table.batches(every, size, scalar)
        return (replace(b, columns={n: masked(b.columns, n) for n in needed if n in b.columns}) for b in read)

    def masked(columns: Columns, name: str) -> Any:
        return _masked(columns[name], columns[masks[name]]) if name in masks else columns[name]

    return replace(table, batches=batches) if masks else table


def _masked(cells: Any, mask: Any) -> Any:
    """Cells of which some are missing; masks of text are true, false, 1 or 0."""
    if isinstance(mask, np.ndarray) and mask.dtype.kind in "bui" and isinstance(cells, np.ndarray):
        missing = np.ma.filled(mask, 1).astype(bool)
        missing = missing.reshape(missing.shape + (1,) * (cells.ndim - missing.ndim))
        return np.ma.array(cells, mask=np.ma.getmaskarray(cells) | missing)
    out: list[Any] = []
    for cell, missing in zip(cells, mask, strict=True):
        if np.ndim(missing) and np.shape(missing) == np.shape(cell):
            out.append(np.ma.array(cell, mask=np.asarray(missing, bool)))
        else:
            text = missing.decode("utf-8", "replace") if isinstance(missing, bytes) else str(missing)
            text = text.strip().lower()
            out.append(_partly(cell, text) if text[:1] == "[" else None if text in ("true", "1", "t") else cell)
    return out


def _partly(cell: Any, text: str) -> Any:
    """A cell of text that holds an array, without those of its numbers whose mask, in text as well, says so."""
    try:
        return np.ma.array(ArrayParser()(cell), mask=np.array(json.loads(text), bool))
    except (ValueError, RecursionError):
        return None


def in_batches(blocks: Iterator[Columns]) -> Iterator[Batch]:
    """Number the rows of consecutive columns; a damaged end is one bad row."""
    row = 1
    try:
        for columns in blocks:
            n = len(next(iter(columns.values())))
            yield Batch(np.arange(row, row + n), columns)
            row += n
    except InputError:
        raise
    except Exception as error:  # of whatever library reads the format
        words = (str(error).splitlines() or [type(error).__name__])[0]
        reason = f"the file is damaged from this row on ({words})"
        yield Batch(np.zeros(0, np.int64), {}, (BadRow(row, reason),))


def sliced(
    n_rows: int, read: Callable[[Any, str], Any], some: Callable[[slice], Any] = lambda part: part
) -> ReadBatches:
    """Batches of a table that gives any slice of a column.

    `read` makes a column's cells of what `some` makes of a slice of rows before a column is named: the slice itself.
    """

    def blocks(needed: Sequence[str], size: int) -> Iterator[Columns]:
        for start in range(0, n_rows, size):
            rows = some(slice(start, min(start + size, n_rows)))
            yield {name: read(rows, name) for name in needed}

    return batches_of(blocks)


def batches_of(blocks: Callable[[Sequence[str], int], Iterator[Columns]]) -> ReadBatches:
    """Batches of what gives the needed columns of so many rows at a time."""
    return lambda needed, size, scalar: in_batches(blocks(needed, size))


def refusal(path: Path, what: str, error: Exception) -> InputError:
    """Say that a file is not what it should be."""
    reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    return InputError(f"{path}: is not {what} ({reason}); copy or download it again")
