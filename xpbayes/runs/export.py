"""Write a catalogue in another format."""

import logging
from pathlib import Path

from xpbayes.errors import InputError, nearest
from xpbayes.production import export as exports
from xpbayes.production.reader import open_catalogue
from xpbayes.runs.inputs import (
    PathLike,
    check_writable,
)

log = logging.getLogger(__name__)


def export(
    catalogue: PathLike,
    out: PathLike,
    format: str,
    approximate_positions: bool = False,
    processes: int | None = None,
) -> Path:
    """Write a catalogue in another format, with the schema's units, UCDs and descriptions.

    Args:
        catalogue: a catalogue file, or the folder of a catalogue in parts.
        out: file to write; for 'hats' a folder that must not exist.
        format: 'hats', 'votable' or 'fits'.
        approximate_positions: for 'hats', where ra and dec are missing: use the HEALPix pixel in the source_id.
        processes: for 'hats', workers; chosen if None.

    Returns:
        what was written.

    Raises:
        InputError: it cannot be read or written, positions are missing, or a package is.
    """
    target = Path(out)
    check_writable(target, catalogue)
    opened = open_catalogue(catalogue)
    opened.check_intact()
    if format == "hats":
        exports.write_hats(opened, target, approximate_positions=approximate_positions, processes=processes)
    elif format == "votable":
        exports.write_votable(opened, target)
    elif format == "fits":
        exports.write_fits(opened, target)
    else:
        raise InputError(f"'{format}' is no format{nearest(format, exports.FORMATS)}; use {', '.join(exports.FORMATS)}")
    log.info(f"wrote {target}: {opened.n_rows:,} rows")
    return target
