"""What a cell of any file means: an array of numbers, a number, a whole number, or nothing.

In: bytes from text files, NumPy arrays and scalars or Python values from others. Out: float64 arrays, floats, ints, None
where missing; ValueError with the reason where it is none of these.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Cell = Any
"""bytes from text files, NumPy arrays and scalars or Python values from others, None where absent."""

MISSING = (b"", b"null", b"NULL", b"None", b"nan", b"NaN", b"NAN", b"--", b"[]", b"()")
"""Text of a missing cell."""


def _json_parser() -> Callable[[], Any] | None:
    """A maker of simdjson parsers, if installed."""
    try:
        from simdjson import Parser
    except ImportError:
        return None
    return Parser


class ArrayParser:
    """Turns an array cell into float64 numbers.

    Text goes through simdjson where installed (25 ns a number; Python's own float takes several times longer). Whatever
    is not strict JSON - NaN, (1, 2), nulls inside - takes a careful path.
    """

    def __init__(self) -> None:
        self._make = _json_parser()
        self._parser = self._make() if self._make else None

    def __call__(self, cell: Cell) -> NDArray[np.float64] | None:
        """Read one cell.

        Args:
            cell: text, array, list, masked value or None.

        Returns:
            (item,) float64 with NaN for nulls inside, flattened; None where the cell is missing.

        Raises:
            ValueError: the cell is not an array of numbers; the message says why.
        """
        if isinstance(cell, bytes):
            if len(cell) < 8 and cell.strip() in MISSING:
                return None
            if cell[:1] == b"(":
                cell = b"[" + cell[1:-1] + b"]" if cell[-1:] == b")" else cell
            if self._parser is not None and self._make is not None:
                try:
                    values = np.frombuffer(self._parser.parse(cell).as_buffer(of_type="d"), np.float64)
                    return values if values.size else None
                except Exception:  # not strict JSON; a parser whose document failed cannot be used again
                    self._parser = self._make()
            elif cell[:1] == b"[" and cell[-1:] == b"]" and b"_" not in cell:  # Python reads 1_0 as ten
                try:
                    return _array_numbers([float(item) for item in cell[1:-1].split(b",")])
                except ValueError:
                    pass
            return _careful_numbers(cell)
        return _array_numbers(cell)


class LineParser:
    """Reads the wanted cells of a whole line of CSV in one go, if the line is as the archive writes them.

    Without its quotes such a line is a JSON list: numbers, nulls and lists of numbers. One parse of the line is twice as
    fast as splitting it and parsing its arrays one by one.
    """

    def __init__(self, n_columns: int, wanted: Sequence[int]) -> None:
        """Say how many columns a line has and which of them are wanted."""
        self._make = _json_parser()
        self._parser = self._make() if self._make else None
        self._n_columns, self._wanted = n_columns, wanted

    def __call__(self, line: bytes) -> list[Cell] | None:
        """Read one line.

        Returns:
            a cell per wanted column: float64 array, int, float or None where missing; None instead of all of them if
            the line needs a closer look.
        """
        if self._parser is None or self._make is None or not _quotes_hold_lists(line):
            return None
        try:
            document = self._parser.parse(b"[%b]" % line.replace(b'"', b""))
        except (ValueError, RuntimeError):  # not JSON, or a number that no 64 bits hold
            self._parser = self._make()  # one whose document failed cannot be used again
            return None
        if len(document) != self._n_columns:
            return None
        cells: list[Cell] = []
        for i in self._wanted:
            value = document[i]
            if value is None or type(value) is int or type(value) is float:
                cells.append(value)
                continue
            try:
                cells.append(np.frombuffer(value.as_buffer(of_type="d"), np.float64))
            except (AttributeError, TypeError, ValueError):  # true, false, text, nulls inside
                return None
        return cells


def _quotes_hold_lists(line: bytes) -> bool:
    """Tell whether brackets and quotes come together and nowhere else, so that quotes may be dropped."""
    at, n = line.find(b'"'), 0
    bracket = line.find(b"[")  # searched for, not counted: counting a byte in 40 kB takes ten times longer
    while at >= 0:
        if n % 2 == 0:
            if bracket != at + 1:
                return False
            bracket = line.find(b"[", at + 2)
        elif line[at - 1 : at] != b"]":
            return False
        n += 1
        at = line.find(b'"', at + 1)
    return n % 2 == 0 and bracket < 0


_WORDS = re.compile(r"\b(nan|inf(?:inity)?)\b", re.IGNORECASE)


def _careful_numbers(text: bytes) -> NDArray[np.float64] | None:
    plain = text.decode("ascii", "replace").strip().replace("(", "[").replace(")", "]")
    plain = _WORDS.sub(lambda m: "NaN" if m[0][0] in "nN" else "Infinity", plain)
    plain = plain.replace("None", "null").replace(",]", "]")
    try:
        values = json.loads(plain)
    except ValueError as error:
        raise ValueError(f"not an array of numbers ({_short(plain)})") from error
    return _array_numbers(values)


def _array_numbers(cell: Cell) -> NDArray[np.float64] | None:
    if cell is None or cell is np.ma.masked:
        return None
    if type(cell) is np.ndarray and cell.dtype == np.float64 and cell.ndim == 1 and cell.size and cell[0] == cell[0]:
        return cell  # the common case, at once
    try:
        if isinstance(cell, np.ma.MaskedArray):
            values = np.ma.filled(cell.astype(np.float64), np.nan)
        elif isinstance(cell, list) and cell and isinstance(cell[0], bytes):
            values = np.array([np.nan if v.strip() in MISSING else float(v) for v in cell])
        else:
            values = np.asarray(cell, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"not an array of numbers ({_short(cell)})") from error
    values = np.atleast_1d(values).ravel()
    return None if values.size == 0 or (np.isnan(values[0]) and np.isnan(values).all()) else values


def integer(cell: Cell) -> int | None:
    """Read a whole number; None where missing; ValueError if it is not one. Text never passes through a float."""
    if type(cell) is int:
        return cell
    if cell is None or cell is np.ma.masked:
        return None
    if isinstance(cell, bytes):
        cell = cell.strip()
        if cell in MISSING:
            return None
        try:
            return int(cell)
        except ValueError:
            pass
    try:
        value = float(cell)
    except (TypeError, ValueError) as error:
        raise ValueError(f"not a whole number ({_short(cell)})") from error
    if np.isnan(value):
        return None
    if not value.is_integer():  # infinities included
        raise ValueError(f"not a whole number ({_short(cell)})")
    return int(cell) if not isinstance(cell, bytes) else int(value)


def number(cell: Cell) -> float:
    """Read a number; NaN where missing; ValueError if it is not one."""
    if cell is None or cell is np.ma.masked:
        return float("nan")
    if isinstance(cell, bytes):
        cell = cell.strip()
        if cell in MISSING:
            return float("nan")
    try:
        return float(cell)
    except (TypeError, ValueError) as error:
        raise ValueError(f"not a number ({_short(cell)})") from error


def _short(value: Any) -> str:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= 24 else text[:21] + "..."
