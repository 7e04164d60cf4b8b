"""Real stars: the full APOGEE x XP library, downloaded, and the bundled sample of it."""

import logging
import tempfile
from pathlib import Path

from xpbayes.archive import apogee
from xpbayes.data.spectra import Spectra
from xpbayes.data.spectra_file import write_star_table
from xpbayes.runs.inputs import PathLike, check_writable

log = logging.getLogger(__name__)


def fetch_apogee(out: PathLike) -> Spectra:
    """Download the full APOGEE x XP library with pip and write it as a star table, a Parquet file."""
    check_writable(out)
    with tempfile.TemporaryDirectory() as scratch:
        library = apogee.read_library(apogee.fetch_library(Path(scratch)))
    log.info(f"calibrating {len(library)} spectra")
    table = apogee.star_table_from_library(library, f"full table of {apogee.PACKAGE}")
    for cut in table.cuts:
        log.info(f"cut: {cut.what}: {cut.removed} removed, {cut.left} left")
    write_star_table(table, out)
    log.info(f"wrote {out}")
    return table


def bundled_stars(out: PathLike | None = None) -> Spectra:
    """Return the bundled sample of 10,000 real stars as a star table, and write it to a Parquet file unless None."""
    check_writable(out)
    table = apogee.bundled_stars()
    if out is not None:
        write_star_table(table, out)
        log.info(f"wrote {out}: {len(table)} stars")
    return table
