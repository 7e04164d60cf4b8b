"""Re-check a finished catalogue."""

import logging
from pathlib import Path

from xpbayes.errors import InputError
from xpbayes.production.verify import verify_catalogue, verify_file
from xpbayes.runs.inputs import PathLike

log = logging.getLogger(__name__)


def verify(catalogue: PathLike) -> None:
    """Re-check a finished catalogue, one file or a folder of parts; InputError if it is not finished or wrong."""
    path = Path(catalogue)
    found = verify_catalogue(path) if path.is_dir() else verify_file(path)
    for problem in found.problems:
        log.info(problem)
    if found.problems:
        raise InputError(f"{catalogue}: {len(found.problems)} problems (first: {found.problems[0]})")
    where = "" if path.is_file() else f" in {found.n_parts} part{'s' * (found.n_parts > 1)}"
    log.info(f"{found.n_rows:,} rows{where}: every check passed")
