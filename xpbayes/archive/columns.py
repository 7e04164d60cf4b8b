"""Which columns a reader wants, where a file keeps them under whatever name, in which unit, and what is plausible.

The one place that decides, for every format and every door: which column is the identifier, what a declared unit does,
which numbers stand for "not measured", which tables of a file are read.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.raw_table import RawFile, RawTable
from xpbayes.archive.units import is_declared, unit_change
from xpbayes.errors import InputError, nearest
from xpbayes.release import ID_ALIASES, RELEASES

log = logging.getLogger(__name__)

Kind = Literal["id", "float", "integer", "text", "array"]


@dataclass(frozen=True)
class Column:
    """A wanted column."""

    name: str  # its name here and in Gaia's archive
    kind: Kind = "float"  # how to read it
    aliases: tuple[str, ...] = ()  # other names, matched without case after `name`
    required: bool = False  # a table without it is not read, and a row without it is rejected
    flat: tuple[str, ...] = ()  # prefixes of columns ``prefix0``, ``prefix1``, ... that together make an array
    by_wavelength: bool = False  # the numbers of such columns may be wavelengths [nm]
    from_name: bool = False  # where no column and no constant has it, the file's name may
    unit: str = ""  # unit of what is handed on; none: whatever a file declares is left as it is
    documented: str = ""  # unit of the numbers where the file declares none; `unit` if empty
    low: float = -np.inf  # a number must lie between the two, in `unit`; any other means that nothing was measured
    high: float = np.inf
    zero_is_missing: bool = False  # 0 exactly stands for "not measured"
    is_error: bool = False  # an error: a shift of the zero point does not concern it
    rivals: tuple[str, ...] = ()  # of identifiers, names that may be another release's: not taken, but a cause of doubt

    @property
    def all_names(self) -> tuple[str, ...]:
        """Name and aliases, lower case."""
        return tuple(dict.fromkeys(n.lower() for n in (self.name, *self.aliases)))


def error_column(name: str, high: float, aliases: tuple[str, ...] = (), **more: Any) -> Column:
    """A 1-sigma error: what is not positive, or beyond `high`, is missing, never the tightest."""
    return Column(name, "float", aliases, low=0.0, high=high, is_error=True, **more)


BRIGHTEST, FAINTEST, LEAST_PRECISE = -5.0, 30.0, 5.0
"""Magnitudes and errors of a measurement lie between [mag]."""


def magnitude(name: str, aliases: tuple[str, ...] = ()) -> Column:
    """A magnitude [mag]; 99.999, -999 and 0 are what catalogues write for none."""
    return Column(name, aliases=aliases, unit="mag", low=BRIGHTEST, high=FAINTEST, zero_is_missing=True)


def magnitude_error(name: str, aliases: tuple[str, ...] = ()) -> Column:
    """The error of a magnitude [mag]; 9.999 stands for none."""
    return error_column(name, LEAST_PRECISE, aliases, unit="mag")


SOURCE_ID = Column("source_id", "id", ID_ALIASES, required=True)
"""Gaia's identifiers, under any name that tables have for them."""


@dataclass(frozen=True)
class ReadOptions:
    """How the user wants a door's files read."""

    source_id: str | None = None  # the column of identifiers, where several could be it
    hdu: int | str | None = None  # number or name of the one table to read
    allow_truncated: bool = False  # read a table that its server says it has cut
    section: str = ""  # the survey.toml section that these settings belong to, for messages
    release: str | None = None  # that the files are of; None: they say it themselves, or are of the default

    def setting(self, name: str) -> str:
        """The setting's name as the user may write it."""
        return f"{name} under {self.section}" if self.section else name


DEFAULT = ReadOptions()


@dataclass(frozen=True)
class Place:
    """Where a table keeps a wanted column."""

    names: tuple[str, ...]  # the table's column, or the columns of a flattened array; none where it is a constant
    constant: Any = None  # the value of every row, where `names` is empty
    factor: float = 1.0  # number in our unit = factor x number in the file + shift
    shift: float = 0.0
    wavelength_nm: NDArray[np.float64] | None = None  # of a flattened array whose columns are named so
    release: str | None = None  # of identifiers, the data release that they must be of; None where any will do


AnyOf = tuple[Sequence[str], str]
Places = list[Place | None]
"""One for every wanted column; None where the table does not have it."""


class MissingColumnError(InputError):
    """A table lacks what a reader needs; another table of the file may have it."""


def tables_with(
    file: RawFile,
    path: Path,
    columns: Sequence[Column],
    options: ReadOptions = DEFAULT,
    any_of: AnyOf | None = None,
) -> list[tuple[RawTable, Places]]:
    """Find the tables of an open file that have the wanted columns; the others are named in the log.

    The path is for messages and for an identifier in its name; `any_of` has names of columns of which a table must have
    one, and what to say where it has none.

    Raises:
        InputError: no table has the required columns; several columns could be the identifier; a unit that cannot be
            converted; a table that the server cut.
    """
    found: list[tuple[RawTable, Places]] = []
    passed: list[tuple[RawTable, MissingColumnError]] = []
    named = str(options.hdu).lower()
    chosen = [t for t in file.tables if options.hdu is None or named in (k.lower() for k in t.keys)]
    if not chosen:
        known = ", ".join("/".join(t.keys) for t in file.tables)
        raise InputError(f"{path}: has no table '{options.hdu}' ({known}); correct {options.setting('hdu')}")
    for table in chosen:
        try:
            places = resolve(table, path, columns, options)
            have = {c.name for c, p in zip(columns, places, strict=True) if p is not None}
            if any_of is not None and not have & set(any_of[0]):
                raise MissingColumnError(f"{path}: {any_of[1]}")
        except MissingColumnError as error:
            passed.append((table, error))
            continue
        if table.truncated is not None and not options.allow_truncated:
            raise InputError(
                f"{path}: its server has cut the answer short ({table.truncated}); ask for it in parts, or set "
                f"{options.setting('allow_truncated = true')}"
            )
        found.append((table, places))
    if not found:
        largest = max(passed, key=lambda p: len(p[0].names))[1]
        if len(passed) == 1:
            raise largest
        raise InputError(f"{largest} (and {len(passed) - 1} more tables of it lack it too)")
    for table, _ in passed:
        log.warning("%s: table %s lacks the wanted columns and is not read", path, "/".join(table.keys) or table.member)
    return found


def resolve(table: RawTable, path: Path, columns: Sequence[Column], options: ReadOptions = DEFAULT) -> Places:
    """Find the wanted columns of one table; `tables_with` tells what is refused."""
    lower: dict[str, list[str]] = {}
    for name in table.names:
        lower.setdefault(name.lower(), []).append(name)
    places: Places = []
    for column in columns:
        place = _find_id(table, path, column, options, lower) if column.kind == "id" else _find(column, path, lower)
        if place is None:
            place = _constant(table, path, column)
        if place is None and column.required:
            raise MissingColumnError(
                f"{path}: has no column {column.name}{nearest(column.name, table.names)}; its {len(table.names)} "
                f"columns begin with {', '.join(table.names[:4])}"
            )
        places.append(None if place is None else _with_unit(place, table, path, column))
    return places


def _find_id(
    table: RawTable, path: Path, column: Column, options: ReadOptions, lower: dict[str, list[str]]
) -> Place | None:
    """The column of identifiers: the one that the user names, or the only one that can be it."""
    if options.source_id is not None:
        asked = [options.source_id] if options.source_id in table.names else lower.get(options.source_id.lower(), [])
        if not asked:
            raise MissingColumnError(
                f"{path}: has no column {options.source_id}{nearest(options.source_id, table.names)}; correct "
                f"{options.setting('source_id')}"
            )
    else:
        of_release = [r for name, r in RELEASES.items() if options.release in (None, name)]
        names = [n for n in column.all_names if any(r.has_id(n) for r in of_release)]
        asked = [name for alias in names for name in lower.get(alias, [])]
        asked += [name for rival in column.rivals if asked for name in lower.get(rival, [])]
    if len(asked) > 1:
        raise InputError(
            f"{path}: {len(asked)} columns could be Gaia's source_id ({', '.join(asked)}); say which with "
            f"{options.setting('source_id')}"
        )
    return Place(tuple(asked), release=options.release) if asked else None


def _find(column: Column, path: Path, lower: dict[str, list[str]]) -> Place | None:
    for alias in column.all_names:
        here = lower.get(alias, [])
        if len(here) > 1:
            raise InputError(f"{path}: has {len(here)} columns {alias} ({', '.join(here)}); keep one of them")
        if here:
            return Place((here[0],))
    for prefix in column.flat:
        pattern = re.compile(re.escape(prefix.lower()) + r"(\d+(?:\.\d+)?)(?:nm)?$")
        numbered = sorted((float(m[1]), lower[n][0]) for n in lower if (m := pattern.match(n)) is not None)
        if not numbered:
            continue
        numbers = np.array([n for n, _ in numbered])
        names = tuple(name for _, name in numbered)
        if numbers[0] in (0, 1) and (np.diff(numbers) == 1).all():
            return Place(names)
        if column.by_wavelength and numbers[0] > 1:
            return Place(names, wavelength_nm=numbers)
        gap = (
            numbers[0] + 1 if len(numbers) == 1 else numbers[:-1][np.diff(numbers) != 1][0] + 1 if numbers[0] < 2 else 0
        )
        raise InputError(f"{path}: has {len(names)} columns {prefix}... but no {prefix}{gap:g}; complete them")
    return None


GAIA_IN_NAME = re.compile(r"gaia[ _-]*(?:e?dr[34])?[ _-]*(\d+)|(?<!\d)(\d{16,19})(?!\d)", re.IGNORECASE)
"""Where a file's name holds its star: ``XP_SAMPLED-Gaia_DR3_1908095850396090880.csv``."""


def _constant(table: RawTable, path: Path, column: Column) -> Place | None:
    here = {name: value for name, value in table.constants.items() if name.lower() in column.all_names}
    if column.kind == "id" and len({str(value).rpartition(" ")[2] for value in here.values()}) > 1:
        said = ", ".join(f"{name} = {value}" for name, value in here.items())
        raise InputError(f"{path}: its header names several stars ({said}); keep one")
    if here:
        return Place((), next(iter(here.values())))
    if column.from_name:
        found = GAIA_IN_NAME.findall(Path(table.member).stem) or GAIA_IN_NAME.findall(path.stem)
        if len(found) == 1:
            return Place((), (found[0][0] or found[0][1]).encode())
    return None


def _with_unit(place: Place, table: RawTable, path: Path, column: Column) -> Place:
    """The place with what turns its numbers into our unit."""
    declared = {table.units[n] for n in place.names if is_declared(table.units.get(n))}
    if not column.unit:  # a number without one: percents are hundredths, whatever else is declared is a name
        pure = unit_change(*declared, "") if len(declared) == 1 and column.kind == "float" else None
        return place if pure is None else replace(place, factor=pure[0])
    if len(declared) > 1:
        raise InputError(f"{path}: the columns of {column.name} have several units ({', '.join(sorted(declared))})")
    unit = next(iter(declared), column.documented or column.unit)
    change = unit_change(unit, column.unit)
    if change is None:
        raise InputError(
            f"{path}: column {place.names[0]} has the unit '{unit}', which cannot be converted to {column.unit}; convert "
            f"the column, or correct its unit"
        )
    return replace(place, factor=change[0], shift=0.0 if column.is_error else change[1])
