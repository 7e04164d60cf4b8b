"""Scalar columns of any format as numbers, identifiers or text: decided once, for every door.

An identifier never passes through floating point: a column that has is refused, and a null is one bad row. A number is
taken to our unit; one outside its column's plausible range was not measured, and is counted with the reason. Text loses
what Python or a spreadsheet put around it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.cells import EXACT, MISSING, LostDigitsError, integer, number, source_id, undress
from xpbayes.archive.columns import Column, Place
from xpbayes.errors import InputError

NO_ID = -1
"""A whole number that is missing."""
BLANK: dict[str, Any] = {"float": np.nan, "integer": NO_ID, "id": NO_ID, "text": ""}
"""A missing value of each kind."""
DTYPE: dict[str, Any] = {"float": np.float64, "integer": np.int64, "id": np.int64, "text": "U1"}
NULLS = [m.decode() for m in MISSING]
LARGEST = 2**63 - 1
OUTSIDE = "outside 1 ... 2^63 - 1"


@dataclass
class Decoded:
    """One column of some rows."""

    values: NDArray[Any]  # (row,) as the column's kind has them, the kind's blank where missing
    reasons: dict[int, str] = field(default_factory=dict)  # row index -> why the row cannot be used
    missing: dict[str, int] = field(default_factory=dict)  # reason -> how many numbers were taken for missing


def lost_digits(where: str, name: str, what: str = "") -> InputError:
    """Refuse identifiers that have been through floating point."""
    return InputError(
        f"{where}: column {name} holds identifiers that have been through floating point{what}, which has lost their last "
        f"digits; get the table with 64-bit integers"
    )


def decode(column: Column, place: Place, cells: Any, n: int, where: str) -> Decoded:
    """Read one column of n rows, by its raw values of any format, ignored where the place is a constant.

    InputError: identifiers have been through floating point; a cell is an array where one number is wanted.
    """
    name = place.names[0] if place.names else column.name
    raw, null = plain([place.constant] * n if not place.names else cells, name, where)
    if column.kind == "text":
        out = _text(raw, null)
    elif not isinstance(raw, np.ndarray):
        out = _numbers_in_text(column, raw, where, name, place.release)
    elif column.kind == "float":
        out = Decoded(np.where(null, np.nan, raw.astype(np.float64)))
    else:
        out = _whole(column, raw, null, where, name)
    if column.kind == "float":
        if (place.factor, place.shift) != (1.0, 0.0):
            out.values = out.values * place.factor + place.shift if place.shift else out.values * place.factor
        measure(column, out)
    if column.required:
        blank = out.values == "" if column.kind == "text" else out.values == NO_ID
        blank = np.isnan(out.values) if column.kind == "float" else blank
        for i in np.flatnonzero(blank).tolist():
            out.reasons.setdefault(i, f"{column.name} is missing")
    return out


def plain(cells: Any, name: str, where: str) -> tuple[Any, NDArray[np.bool_]]:
    """Cells as a numeric array or a polars column of text, and which are null."""
    import polars as pl

    if isinstance(cells, pl.Series):
        return cells, cells.is_null().to_numpy()
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "biuf":
        if cells.ndim > 1 and cells.size != len(cells):
            raise _several(where, name, " x ".join(map(str, cells.shape[1:])))
        null = np.ma.getmaskarray(cells).reshape(len(cells))
        return np.ma.getdata(cells).reshape(len(cells)), np.asarray(null, bool)
    mask = (
        np.ma.getmaskarray(cells).reshape(len(cells), -1).any(axis=1) if isinstance(cells, np.ma.MaskedArray) else None
    )
    values = (
        list(cells) if isinstance(cells, (list, tuple)) else np.ma.getdata(cells).reshape(len(cells), -1)[:, 0].tolist()
    )
    if isinstance(cells, np.ndarray) and cells.size != len(cells):
        raise InputError(f"{where}: column {name} has {cells.size // len(cells)} texts a row where one is wanted")
    lengths = {np.size(v) for v in values if isinstance(v, (np.ndarray, list, tuple))}
    if lengths - {0, 1}:
        raise _several(where, name, str(max(lengths)))
    if lengths:
        values = [(v[0] if np.size(v) else None) if isinstance(v, (np.ndarray, list, tuple)) else v for v in values]
        values = [v.item() if isinstance(v, np.generic) else v for v in values]
    null = np.array([v is None or v is np.ma.masked or v != v for v in values], bool)  # noqa: PLR0124 - NaN
    if mask is not None:
        null |= mask
    kinds = {type(v) for v, is_null in zip(values, null.tolist(), strict=True) if not is_null}
    if kinds and kinds <= {int, float, bool, np.bool_}:
        kept = [0 if is_null else v for v, is_null in zip(values, null.tolist(), strict=True)]
        if float in kinds:
            return np.array(kept, np.float64), null
        if all(-(2**63) <= int(v) < 2**63 for v in kept):
            return np.array([int(v) for v in kept], np.int64), null
    shown = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]
    text = [None if is_null else str(v) for v, is_null in zip(shown, null.tolist(), strict=True)]
    return pl.Series(values=text, dtype=pl.String), null


def _several(where: str, name: str, what: str) -> InputError:
    return InputError(f"{where}: column {name} has {what} numbers a row where one is wanted; split or correct it")


def _stripped(text: Any) -> Any:
    text = text.str.strip_chars()
    return text.set(text.is_in(NULLS).fill_null(False), None)


def _text(raw: Any, null: NDArray[np.bool_]) -> Decoded:
    if isinstance(raw, np.ndarray):
        values = ["" if is_null else str(v) for v, is_null in zip(raw.tolist(), null.tolist(), strict=True)]
        return Decoded(np.array(values, dtype=str) if values else np.zeros(0, "U1"))
    text = _stripped(raw)
    dressed = text.str.contains(r"""^(b['"]|=|['"])""").fill_null(False).any()
    values = ["" if v is None else undress(v.encode()).decode() if dressed else v for v in text.to_list()]
    return Decoded(np.array(values, dtype=str) if values else np.zeros(0, "U1"))


def _numbers_in_text(column: Column, raw: Any, where: str, name: str, release: str | None) -> Decoded:
    """Numbers in text: all at once, and what is left one by one."""
    import polars as pl

    text = _stripped(raw)
    values = text.cast(pl.Float64 if column.kind == "float" else pl.Int64, strict=False)
    left = np.flatnonzero((values.is_null() & text.is_not_null()).to_numpy())
    out = Decoded(values.fill_null(BLANK[column.kind]).to_numpy().copy())
    identifier = partial(source_id, release=release)
    read: dict[str, Callable[[Any], Any]] = {"float": number, "integer": _integer_or_truth, "id": identifier}
    for i in left.tolist():
        try:
            value = read[column.kind](text[i].encode())
            out.values[i] = BLANK[column.kind] if value is None else value
        except LostDigitsError:
            if column.kind == "id":
                raise lost_digits(where, name, f" (first: {text[i][:30]})") from None
            out.reasons[i] = f"{column.name} has lost digits in floating point"
        except OverflowError:
            out.reasons[i] = f"{column.name} {text[i][:30]} is beyond 2^63 - 1"
        except ValueError as error:
            why = str(error)
            out.reasons[i] = why if why.startswith(column.name) else f"{column.name} is {why}"
    if column.kind == "id":
        _outside(column, out)
    return out


TRUTH = {b"true": 1, b"t": 1, b"false": 0, b"f": 0}


def _integer_or_truth(cell: bytes) -> int | None:
    return TRUTH[cell.lower()] if cell.lower() in TRUTH else integer(cell)


def _whole(column: Column, raw: NDArray[Any], null: NDArray[np.bool_], where: str, name: str) -> Decoded:
    """Whole numbers, identifiers among them, from a numeric column."""
    out = Decoded(np.full(len(raw), NO_ID, np.int64))
    if raw.dtype.kind == "f":
        null = null | np.isnan(raw)
        finite = np.where(np.isfinite(raw), raw, 0.0)
        whole = np.isfinite(raw) & (np.floor(finite) == finite)
        lost = whole & (np.abs(finite) >= EXACT.get(raw.dtype.newbyteorder("="), 2**53)) & ~null
        if lost.any():
            if column.kind == "id":
                raise lost_digits(where, name, f" (first: row {int(np.flatnonzero(lost)[0]) + 1})")
            out.reasons.update(
                dict.fromkeys(np.flatnonzero(lost).tolist(), f"{column.name} has lost digits in floating point")
            )
        for i in np.flatnonzero(~whole & ~null).tolist():
            out.reasons[i] = f"{column.name} is not a whole number ({raw[i]:g})"
        good = whole & ~lost & ~null
    else:
        good = ~null
        if raw.dtype.kind == "u":
            good &= raw <= LARGEST
            if column.required or column.kind != "id":
                what = OUTSIDE if column.kind == "id" else "beyond 2^63 - 1"
                too_large = np.flatnonzero(~good & ~null).tolist()
                out.reasons.update({i: f"{column.name} {raw[i]} is {what}" for i in too_large})
    out.values[good] = raw[good].astype(np.int64)
    if column.kind == "id":
        _outside(column, out)
    return out


def _outside(column: Column, out: Decoded) -> None:
    """Identifiers that Gaia cannot have given; where a table may do without any, they say that there is none."""
    for i in np.flatnonzero((out.values <= 0) & (out.values != NO_ID)).tolist():
        if column.required:
            out.reasons.setdefault(i, f"{column.name} {out.values[i]} is {OUTSIDE}")
        out.values[i] = NO_ID


def measure(column: Column, out: Decoded) -> None:
    """Take numbers, in our unit, that nobody can have measured for missing."""
    values = out.values
    infinite = np.isinf(values)
    with np.errstate(invalid="ignore"):
        low, high = values <= column.low, values >= column.high
    limits = f"{column.name} outside {column.low:g} ... {column.high:g}"
    if column.low == 0:
        rules = {f"{column.name} not positive": low & ~infinite, f"{column.name} at or above {column.high:g}": high}
    else:
        rules = {limits: (low | high) & ~infinite}
    rules |= {f"{column.name} not finite": infinite}
    if column.zero_is_missing:
        rules[f"{column.name} exactly 0"] = values == 0
    for what, bad in rules.items():
        count = int(bad.sum())
        if not count:
            continue
        values[bad] = np.nan
        if column.required:
            out.reasons.update(dict.fromkeys(np.flatnonzero(bad).tolist(), what))
        else:
            out.missing[what] = count
