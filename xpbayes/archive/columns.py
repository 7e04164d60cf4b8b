"""Which columns a reader wants, and where a file keeps them under whatever name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xpbayes.errors import InputError, nearest

Places = list[list[str] | None]
"""For every wanted column: the file's column, or the columns of a flattened array, or None."""


@dataclass(frozen=True)
class Wanted:
    """A column that a reader wants.

    Attributes:
        name: its name here and in Gaia's archive.
        aliases: other names, matched without case after `name`.
        flat: prefixes of columns ``prefix0``, ``prefix1``, ... that together make the array.
        path: where an Avro record keeps it, outermost key first.
        required: a file without it is refused.
    """

    name: str
    aliases: tuple[str, ...] = ()
    flat: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    required: bool = False


SOURCE_ID = Wanted(
    "source_id", ("gdr3_source_id", "gaia_source_id", "sourceid", "gaiadr3_source_id"), (), ("sourceId",), True
)


def resolve_columns(names: Sequence[str], wanted: Sequence[Wanted], path: Path) -> tuple[Places, frozenset[str]]:
    """Find the wanted columns among a file's.

    Returns:
        their places, in the order of `wanted`, and the names of those that were found.

    Raises:
        InputError: a required column is not there.
    """
    lower = {name.lower(): name for name in names}
    places: Places = []
    for column in wanted:
        place = next(([lower[n.lower()]] for n in (column.name, *column.aliases) if n.lower() in lower), None)
        for prefix in column.flat:
            if place is None and f"{prefix}0".lower() in lower:
                place, i = [], 0
                while f"{prefix}{i}".lower() in lower:
                    place.append(lower[f"{prefix}{i}".lower()])
                    i += 1
        if place is None and column.required:
            raise InputError(
                f"{path}: has no column {column.name}{nearest(column.name, names)}; its {len(names)} columns begin "
                f"with {', '.join(list(names)[:4])}"
            )
        places.append(place)
    return places, found_names(wanted, places)


def found_names(wanted: Sequence[Wanted], places: Places) -> frozenset[str]:
    """Names of the wanted columns that have a place."""
    return frozenset(c.name for c, p in zip(wanted, places, strict=True) if p is not None)


def needed_columns(places: Places) -> list[str]:
    """The file's columns that the places name."""
    return [name for place in places if place is not None for name in place]
