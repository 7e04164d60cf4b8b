"""Re-check a finished catalogue."""

from pathlib import Path

from xpbayes.errors import InputError
from xpbayes.production.verify import verify_catalogue
from xpbayes.runs.inputs import (
    PathLike,
    Say,
    quiet,
)


def verify(catalogue: PathLike, say: Say = quiet) -> None:
    """Re-check a finished catalogue in parts.

    Args:
        catalogue: its folder.
        say: receives every problem, and a line if there are none.

    Raises:
        InputError: it is not finished, or something is wrong with it.
    """
    found = verify_catalogue(Path(catalogue))
    for problem in found.problems:
        say(problem)
    if found.problems:
        raise InputError(f"{catalogue}: {len(found.problems)} problems (first: {found.problems[0]})")
    say(f"{found.n_rows:,} rows in {found.n_parts} parts: every check passed")
