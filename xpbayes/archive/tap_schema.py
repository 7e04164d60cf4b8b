"""What Gaia's archive has of one release, before anything is asked of it: TAP_SCHEMA against what our queries want.

In: a release's profile and the archive's own description of its tables. Out: `ArchiveTables`, with columns under other
names taken from there and optional ones that are not there left out; a page of lines says what differs.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from xpbayes.archive.adql import SPURIOUS_COLUMNS, TWO_MASS_JOINS, ArchiveTables
from xpbayes.archive.gaia_archive import TAP_URL, Patience, ask_now
from xpbayes.errors import InputError, nearest
from xpbayes.release import Release

log = logging.getLogger(__name__)
PATIENT = Patience()
REQUIRED = ("source_id", "ra", "dec", "parallax", "parallax_error", "has_xp_continuous")
"""Columns of gaia_source without which a query makes no sense."""


def probe(release: Release, table: str = "gaia", *, url: str = TAP_URL, patience: Patience = PATIENT) -> ArchiveTables:
    """Compare a release's profile with the archive.

    Args:
        release: what is expected.
        table: 'gaia' or 'two_mass', which query is to follow.
        url: of the TAP service.
        patience: how often to retry.

    Returns:
        what there is.

    Raises:
        InputError: the archive does not answer, or what a query cannot do without is not there; what else differs is
            said line by line before.
    """
    source = f"{release.schema}.gaia_source"
    summary = f"{release.schema}.xp_summary"
    wanted = [source, summary, *([release.spurious_table] if release.spurious_table else [])]
    joins = [f"{release.schema}.{name}" for name in TWO_MASS_JOINS] if table == "two_mass" else []
    found = _columns([*wanted, *joins], url, patience)
    lines: list[str] = []
    lost = [name for name in (source, *joins) if name not in found]
    if lost:
        tables = _tables(url, patience)
        lines += [f"{name}: no such table{nearest(name, tables)}" for name in lost]
        _say(release, lines)
        raise InputError(
            f"{url}: has {len(lost)} of the tables that the query of {release.title} needs not (first: {lost[0]}"
            f"{nearest(lost[0], tables)}); the archive has changed, upgrade xpbayes"
        )
    names: list[tuple[str, str]] = []
    for ours in release.source_columns:
        candidates = release.substitutes.get(ours, (ours,))
        theirs = next((name for name in candidates if name in found[source]), None)
        if theirs is not None:
            names.append((ours, theirs))
            if theirs != candidates[0]:
                lines.append(f"{source}: {ours} is {theirs} there")
            continue
        lines.append(f"{source}: has no column {ours}{nearest(ours, found[source])}")
        if ours in REQUIRED:
            _say(release, lines)
            raise InputError(
                f"{url}: {source} has no column {ours}{nearest(ours, found[source])}, which the query needs; the archive "
                f"has changed, upgrade xpbayes"
            )
    has_summary = set(release.summary_columns) <= found.get(summary, set())
    if not has_summary and table == "gaia":
        lines.append(f"{summary}: not there, or without {release.summary_columns[0]} and its like")
    if release.spurious_table and not set(SPURIOUS_COLUMNS) <= found.get(release.spurious_table, set()):
        raise InputError(
            f"{url}: {release.spurious_table} has no {' or '.join(SPURIOUS_COLUMNS)}; the archive has changed, upgrade "
            f"xpbayes"
        )
    _say(release, lines)
    return ArchiveTables(release, tuple(names), has_summary)


def _say(release: Release, lines: Sequence[str]) -> None:
    """One page, where there is anything to say."""
    if lines:
        log.warning(f"{release.title} in the archive is not what xpbayes expects; what is missing is left out:")
        for line in lines:
            log.warning(f"  {line}")


def _columns(tables: Sequence[str], url: str, patience: Patience) -> Mapping[str, set[str]]:
    """Names of the columns of those of these tables that there are, in small letters."""
    listed = ", ".join(f"'{name}'" for name in tables)
    rows = ask_now(
        f"SELECT table_name, column_name FROM TAP_SCHEMA.columns WHERE table_name IN ({listed})", url, patience
    )
    found: dict[str, set[str]] = {}
    for table, column in _texts(rows, "table_name", "column_name"):
        found.setdefault(table, set()).add(column)
    return found


def _tables(url: str, patience: Patience) -> list[str]:
    rows = ask_now("SELECT table_name FROM TAP_SCHEMA.tables WHERE table_name LIKE 'gaia%'", url, patience)
    return [name for (name,) in _texts(rows, "table_name")]


def _texts(rows: Any, *names: str) -> list[tuple[str, ...]]:
    return [
        tuple(str(cell).strip().strip('"').lower() for cell in row)
        for row in zip(*(rows[n] for n in names), strict=True)
    ]
