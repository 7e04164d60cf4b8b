"""Re-check a finished catalogue."""

import logging
from pathlib import Path

from xpbayes.errors import InputError
from xpbayes.production.verify import verify_catalogue
from xpbayes.runs.inputs import (
    PathLike,
)

log = logging.getLogger(__name__)


def verify(catalogue: PathLike) -> None:
    """Re-check a finished catalogue in parts.

    Args:
        catalogue: its folder.

    Raises:
        InputError: it is not finished, or something is wrong with it.
    """
    found = verify_catalogue(Path(catalogue))
    for problem in found.problems:
        log.info(problem)
    if found.problems:
        raise InputError(f"{catalogue}: {len(found.problems)} problems (first: {found.problems[0]})")
    log.info(f"{found.n_rows:,} rows in {found.n_parts} parts: every check passed")
