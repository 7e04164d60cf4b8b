"""What a cell of any file means: an array of numbers, a number, a whole number, an identifier, or nothing.

In: bytes from text files, NumPy arrays and scalars or Python values from others. Out: float64 arrays, floats, ints, None
where missing; ValueError with the reason where it is none of these.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.errors import InputError
from xpbayes.release import RELEASES

Cell = Any
"""bytes from text files, NumPy arrays and scalars or Python values from others, None where absent."""

MISSING = tuple(b" null NULL None nan NaN NAN -- [] () masked <NA> NA N/A n/a".split(b" "))
"""Text of a missing cell."""

EXACT = {np.dtype(np.float32): 2**24, np.dtype(np.float16): 2**11}
"""Whole numbers up to here survive in a floating-point type; 2^53 in float64."""


class LostDigitsError(ValueError):
    """An identifier has been through floating point: which one it was, nobody can tell."""


class _Json:
    """Simdjson's parser, None if not installed; one whose document failed cannot be used again and needs renewal."""

    def __init__(self) -> None:
        self.parse: Callable[[bytes], Any] | None = None
        with suppress(ImportError):
            self.renew()

    def renew(self) -> None:
        from simdjson import Parser

        self.parse = Parser().parse


class ArrayParser:
    """Turns an array cell into float64 numbers.

    Text goes through simdjson where installed (25 ns a number; Python's own float takes several times longer). Whatever
    is not strict JSON - NaN, (1, 2), nulls inside, arrays as NumPy prints them - takes a careful path.
    """

    def __init__(self) -> None:
        self._json = _Json()

    def __call__(self, cell: Cell) -> NDArray[np.float64] | None:
        """(item,) float64 of one cell, flattened, NaN for nulls inside; None where the cell is missing.

        ValueError: the cell is not an array of numbers; the message says why.
        """
        if type(cell) is np.ndarray:
            return _array_numbers(cell)
        if isinstance(cell, str):
            cell = cell.encode()
        if isinstance(cell, bytes):
            if len(cell) < 8 and cell.strip() in MISSING:
                return None
            if cell[:1] == b"(":
                cell = b"[" + cell[1:-1] + b"]" if cell[-1:] == b")" else cell
            if self._json.parse is not None:
                try:
                    values = np.frombuffer(self._json.parse(cell).as_buffer(of_type="d"), np.float64)
                    return values if values.size else None
                except Exception:  # not strict JSON
                    self._json.renew()
            return _careful_numbers(cell)
        return _array_numbers(cell)

    def named(self, name: str, cell: Cell) -> NDArray[np.float64] | None:
        """The same; the ValueError says whose cell it is."""
        if cell is None:
            return None
        try:
            return self(cell)
        except ValueError as error:
            raise ValueError(f"{name} is {error}") from error


class LineParser:
    """Reads the wanted cells of a whole line of CSV in one go, if the line is as the archive writes them.

    Without its quotes such a line is a JSON list: numbers, nulls and lists of numbers. One parse of the line is twice as
    fast as splitting it and parsing its arrays one by one.
    """

    def __init__(self, n_columns: int, wanted: Sequence[int]) -> None:
        """Say how many columns a line has and which of them are wanted."""
        self._json = _Json()
        self._n_columns, self._wanted = n_columns, wanted

    def __call__(self, line: bytes) -> list[Cell] | None:
        """A cell per wanted column: float64 array, int, float or None where missing.

        None instead of all of them if the line needs a closer look.
        """
        if self._json.parse is None or not _quotes_hold_lists(line):
            return None
        try:
            document = self._json.parse(b"[%b]" % line.replace(b'"', b""))
        except (ValueError, RuntimeError):  # not JSON, or a number that no 64 bits hold
            self._json.renew()
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


COMMA, CLOSING = b",]"


def _quotes_hold_lists(line: bytes) -> bool:
    """Tell whether brackets and quotes come together, as whole cells, and nowhere else: quotes may then be dropped."""
    at, n, last = line.find(b'"'), 0, len(line) - 1
    bracket = line.find(b"[")  # searched for, not counted: counting a byte in 40 kB takes ten times longer
    while at >= 0:
        if n % 2 == 0:
            if bracket != at + 1 or (at and line[at - 1] != COMMA):
                return False
            bracket = line.find(b"[", at + 2)
        elif line[at - 1] != CLOSING or (at < last and line[at + 1] != COMMA):
            return False
        n += 1
        at = line.find(b'"', at + 1)
    return n % 2 == 0 and bracket < 0


_WRAPPED = re.compile(rb"(?:np\.|numpy\.)?float(?:16|32|64)\(([^()]*)\)")
"""A number as NumPy 2 prints it."""
_ARRAY = re.compile(rb"^\s*(?:np\.|numpy\.)?array\((.*?)(?:,\s*dtype=[^,()]*)?,?\s*\)\s*$", re.DOTALL)
_BRACKETS = bytes.maketrans(b"()[]", b"    ")


def _careful_numbers(text: bytes) -> NDArray[np.float64] | None:
    """Numbers between any brackets, apart by commas or, as NumPy prints them, by blanks; no nesting is followed."""
    inner = text
    if b"float" in text or b"array" in text:
        inner = _WRAPPED.sub(rb"\1", inner)
        wrapped = _ARRAY.match(inner)
        inner = wrapped[1] if wrapped else inner
    inner = inner.strip()
    if b"..." in inner:
        raise ValueError("an array that was abbreviated with '...' when it was printed; write it with all its numbers")
    opened, closed = inner[:1] in b"[(", inner[-1:] in b"])"
    if opened != closed or inner.count(b"[") != inner.count(b"]") or inner.count(b"(") != inner.count(b")"):
        raise ValueError(f"not an array of numbers ({_short(text)})")
    inner = inner.translate(_BRACKETS).strip()
    items = [i.strip() for i in inner.removesuffix(b",").split(b",")] if b"," in inner else inner.split()
    try:
        return _array_numbers([np.nan if i in MISSING and i else _float(i) for i in items])
    except ValueError:
        raise ValueError(f"not an array of numbers ({_short(text)})") from None


def _array_numbers(cell: Cell) -> NDArray[np.float64] | None:
    if cell is None or cell is np.ma.masked:
        return None
    if type(cell) is np.ndarray and cell.dtype == np.float64 and cell.ndim == 1 and cell.size and cell[0] == cell[0]:
        return cell  # the common case, at once
    try:
        if isinstance(cell, np.ma.MaskedArray):
            values = np.ma.filled(cell.astype(np.float64), np.nan)
        elif isinstance(cell, list) and any(isinstance(v, bytes) for v in cell):
            values = np.array([number(v) for v in cell])
        else:
            values = np.asarray(cell, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"not an array of numbers ({_short(cell)})") from error
    values = np.atleast_1d(values).ravel()
    return None if values.size == 0 or (np.isnan(values[0]) and np.isnan(values).all()) else values


def _float(text: bytes) -> float:
    if b"_" in text:  # Python reads 1_0 as ten
        raise ValueError("not a number")
    return float(text)


_DRESSED = re.compile(rb"""^(?:b'(.*)'|b"(.*)"|="(.*)"|'(.*?)'?|"(.*)")$""", re.DOTALL)
"""Text as Python prints bytes, and as spreadsheets protect numbers: b'1', ="1", '1, "1"."""


def undress(text: bytes) -> bytes:
    """Text without blanks around it and without what Python or a spreadsheet has put there."""
    text = text.strip()
    if text[:1] in b"b='\"" and (match := _DRESSED.match(text)) is not None:
        return next(group for group in match.groups() if group is not None).strip()
    return text


_DESIGNATION = re.compile(rb"^gaia[ _-]*(e?dr[0-9]+)[ _-]+([0-9]+)$", re.IGNORECASE)


def source_id(cell: Cell, release: str | None = None) -> int | None:
    """Read an identifier, a number or a name as ``Gaia_DR3_4295806720``; None where missing.

    Where it says which data release it is of, that must be `release`, or any known one if None. ValueError: it is none
    that Gaia could have given there; LostDigitsError: it has been through floating point.
    """
    if type(cell) is bytes or isinstance(cell, str):
        text = undress(cell.encode() if isinstance(cell, str) else cell)
        designation = _DESIGNATION.match(text)
        if designation is not None:
            found = designation[1].decode().upper()
            allowed = [r for name, r in RELEASES.items() if release in (None, name)]
            if not any(found in r.designations for r in allowed):
                raise ValueError(f"source_id is of Gaia {found}, not {' or '.join(r.designations[0] for r in allowed)}")
            text = designation[2]
        cell = text
    try:
        value = integer(cell)
    except LostDigitsError:
        raise
    except ValueError as error:
        raise ValueError(f"source_id is {error}") from error
    if value is not None and not 0 < value < 2**63:
        raise ValueError(f"source_id {value} is outside 1 ... 2^63 - 1")
    return value


def source_ids(cells: Iterable[Cell], where: str) -> list[int]:
    """Read a list of identifiers, each once, in order; InputError if one is none, or has been through floating point."""
    found: dict[int, None] = {}
    for i, cell in enumerate(cells, 1):
        try:
            value = source_id(cell)
        except LostDigitsError as error:
            raise InputError(f"{where}: {error} (number {i}); give whole numbers") from None
        except ValueError as error:
            raise InputError(f"{where}: {error} (number {i}); give one Gaia source_id each") from None
        if value is None:
            raise InputError(f"{where}: number {i} is missing; give one Gaia source_id each")
        found[value] = None
    return list(found)


def _bare(cell: Cell) -> Cell:
    """A cell without what is around it; None where missing."""
    if cell is None or cell is np.ma.masked:
        return None
    if isinstance(cell, bytes):
        cell = undress(cell)
        return None if cell in MISSING else cell
    return cell.reshape(-1)[0] if isinstance(cell, np.ndarray) and cell.size == 1 else cell


def integer(cell: Cell) -> int | None:
    """Read a whole number; None where missing; ValueError if it is not one. Text never passes through a float."""
    if type(cell) is int:
        return cell
    cell = _bare(cell)
    if cell is None:
        return None
    if isinstance(cell, bytes) and b"_" not in cell:
        with suppress(ValueError):
            return int(cell)
    if isinstance(cell, (np.integer, np.bool_, bool)):
        return int(cell)
    try:
        value = _float(cell) if isinstance(cell, bytes) else float(cell)
    except (TypeError, ValueError) as error:
        raise ValueError(f"not a whole number ({_short(cell)})") from error
    if np.isnan(value):
        return None
    if not value.is_integer():  # infinities included
        raise ValueError(f"not a whole number ({_short(cell)})")
    if abs(value) >= EXACT.get(getattr(cell, "dtype", None), 2**53):
        raise LostDigitsError(f"{_short(cell)} has been through floating point, which has lost its last digits")
    return int(value)


def number(cell: Cell) -> float:
    """Read a number; NaN where missing; ValueError if it is not one."""
    if type(cell) is float:
        return cell
    cell = _bare(cell)
    if cell is None:
        return float("nan")
    try:
        return _float(cell) if isinstance(cell, bytes) else float(cell)
    except (TypeError, ValueError) as error:
        raise ValueError(f"not a number ({_short(cell)})") from error


def _short(value: Any) -> str:
    text = value[:64].decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= 24 else text[:21] + "..."
