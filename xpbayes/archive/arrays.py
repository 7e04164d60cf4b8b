"""Arrays of any kind in memory - NumPy, astropy, pandas, Arrow - taken as the columns of a file are.

Masks, units and byte order are honoured; which numbers were measured, the same `Column`s decide as for files.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.columns import SOURCE_ID, Column, Place
from xpbayes.archive.gaia_source import FIELDS
from xpbayes.archive.labels import label_columns
from xpbayes.archive.reddening import FIELDS as REDDENING_FIELDS
from xpbayes.archive.units import is_declared, unit_change
from xpbayes.archive.values import Decoded, decode, measure, plain
from xpbayes.errors import InputError

WHERE = "arrays in memory"


def known_columns(labels: Iterable[str]) -> dict[str, Column]:
    """Columns of a star table, these labels among them, whose units and plausible ranges files are held to."""
    known = {c.name: replace(c, required=False) for c in (*FIELDS, *REDDENING_FIELDS) if c.kind == "float"}
    for end in ("", "_error"):
        name = f"spectroscopic_parallax{end}"
        known[name] = replace(known[f"parallax{end}"], name=name)
    return known | {column.name: column for name in labels for column in label_columns(name)}


def cells(column: Any, name: str = "an array") -> Any:
    """A column as NumPy array, masked where it has nulls, or as list of cells where these are arrays or text."""
    if hasattr(column, "to_pylist"):  # Arrow; its integers with nulls stay integers
        is_number = str(column.type).startswith(("int", "uint", "float", "double", "halffloat"))
        return column.to_numpy() if is_number and not column.null_count else column.to_pylist()
    try:
        values = np.asarray(column)  # without the unit and the mask that it may have
    except ValueError as error:
        raise InputError(f"{name} has rows that differ in length ({error}); give one row a star") from error
    if values.dtype.kind == "M":
        return values
    if values.dtype.kind in "biuf":
        values = values.astype(values.dtype.newbyteorder("="), copy=False)  # FITS has the other one
    elif hasattr(column, "to_numpy"):
        import pandas as pd

        return [None if np.ndim(value) == 0 and pd.isna(value) else value for value in values]
    mask = getattr(column, "mask", None)  # pandas has a method of that name
    return np.ma.MaskedArray(values, mask) if isinstance(mask, np.ndarray | np.bool_) and np.any(mask) else values


def unit_of(values: Any) -> str | None:
    """The unit that an array declares, "1.0" where it says that it has none; None where it says nothing."""
    text = getattr(values, "unit", None)
    if text is None or (str(text) and not is_declared(text)):
        return None
    return str(text) or "1.0"


def numbers(values: Any, column: Column, name: str = "") -> NDArray[np.float64]:
    """Numbers in the unit of a column, of which nothing else matters here; NaN where masked.

    InputError: they are none, or their unit is of another kind.
    """
    name = name or column.name
    unit = unit_of(values) or column.documented or column.unit
    change = unit_change(unit, column.unit)
    if change is None and not column.unit:
        change = 1.0, 0.0  # what is declared is a name, as in files
    if change is None:
        raise InputError(f"{name} is in {unit}, which is no {column.unit}; convert it")
    found = cells(values, name)
    try:
        if isinstance(found, np.ma.MaskedArray):
            found = np.ma.filled(found.astype(np.float64), np.nan)
        out = np.asarray(found, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is not an array of numbers ({error}); give one row a star") from error
    out = out if change[0] == 1.0 else out * change[0]
    return out + change[1] if change[1] and not column.is_error else out


def require_units(values: Any, errors: Any, column: Column) -> None:
    """Refuse errors without a unit beside values in another one than bare numbers have: both could be meant."""
    declared, bare = unit_of(values), column.documented or column.unit
    if declared and unit_of(errors) is None and (unit_change(declared, bare) or (1.0,))[0] != 1.0:
        raise InputError(f"{column.name} is in {declared} and its errors have no unit; give them as a quantity, too")


def measured(values: Any, column: Column, n: int, missing: Counter[str]) -> NDArray[np.float64]:
    """(star,) numbers of a column, one for all or one a star; NaN where nobody can have measured them, and counted."""
    found = numbers(values, column)
    found = np.full(n, found) if found.ndim == 0 else found.copy()
    require_shape(found, (n,), column.name)
    given = (found > 0).any()
    out = Decoded(found)
    measure(column, out)
    if column.name == "teff" and given and not np.isfinite(found).any():
        raise InputError(
            f"teff: every value is outside {column.low:g} ... {column.high:g} kK as it was given, in "
            f"{unit_of(values) or column.documented or column.unit}; give it with its unit"
        )
    missing.update(out.missing)
    return out.values


def other_column(values: Any, name: str, n: int) -> NDArray[Any]:
    """(star,) values of a column that is not ours, as they are: NaN, or empty text, where masked."""
    found = cells(values, name)
    found = found if isinstance(found, list) else np.atleast_1d(found)
    require_shape(found, (n,), name)
    if isinstance(found, np.ndarray) and found.dtype.kind == "M":
        return found
    raw, null = plain(found, name, WHERE)
    if not isinstance(raw, np.ndarray):
        return decode(Column(name, "text"), Place((name,)), found, n, WHERE).values
    if not null.any():
        return raw
    if raw.dtype.kind in "iu" and (np.abs(raw[~null]) >= 2**53).any():
        raise InputError(f"{name} has masked rows, and its whole numbers need 64 bits; fill them with one that says so")
    return np.where(null, np.nan, raw)


def identifiers(values: Any, n: int, release: str) -> NDArray[np.int64]:
    """(star,) Gaia's identifiers; InputError where one is missing, no such number, or through floating point."""
    found = cells([values] if np.ndim(values) == 0 else values, SOURCE_ID.name)
    require_shape(found, (n,), SOURCE_ID.name)
    out = decode(SOURCE_ID, Place((SOURCE_ID.name,), release=release), found, n, WHERE)
    if out.reasons:
        first = min(out.reasons)
        raise InputError(
            f"{len(out.reasons)} of {n} source_ids cannot be used (first: row {first}, {out.reasons[first]}); give Gaia's, "
            f"or leave source_id out"
        )
    return out.values


def require_shape(values: Any, shape: tuple[int, ...], name: str) -> None:
    """Raise InputError where an array has another shape."""
    has = (len(values),) if isinstance(values, list) else values.shape
    if has != shape:
        raise InputError(f"{name} has shape {has}, not {shape}; give one row a star")
