"""Rows that could not be used: each with its file, its number, its source_id and a reason, never dropped in silence.

Rows in = rows out + rows quarantined. A reader hands its rejected rows on with its batches; `write_quarantine` puts
them into a CSV beside the star tables.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from xpbayes.errors import InputError
from xpbayes.files import whole_file

UNKNOWN_SOURCE = -1
"""source_id of a row whose own could not be read."""

QUARANTINE_COLUMNS = ("file", "row", "source_id", "reason")


@dataclass(frozen=True)
class Rejected:
    """One row that could not be used."""

    file: str  # the file's name
    row: int  # the row's number in the file; the first row of data is 1
    source_id: int  # Gaia's identifier, or `UNKNOWN_SOURCE`
    reason: str  # what is wrong, in words


def write_quarantine(rows: Iterable[Rejected], path: Path) -> Path:
    """Write rejected rows as CSV; the file has only its header if there are none."""
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(QUARANTINE_COLUMNS)
        writer.writerows((r.file, r.row, r.source_id, r.reason) for r in rows)
    return path


def read_quarantine(path: Path) -> list[Rejected]:
    """Read what `write_quarantine` wrote; InputError if it is something else."""
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            rows = csv.DictReader(stream)
            return [Rejected(r["file"], int(r["row"]), int(r["source_id"]), r["reason"]) for r in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}); copy it again") from error
