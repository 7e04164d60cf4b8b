"""Write a catalogue in another format."""

import logging
from pathlib import Path

from xpbayes.errors import InputError, nearest
from xpbayes.production import export as exports
from xpbayes.production.flat import flat_rows
from xpbayes.production.reader import open_catalogue
from xpbayes.runs.inputs import PathLike, check_writable

log = logging.getLogger(__name__)


def export(
    catalogue: PathLike,
    out: PathLike,
    format: str | None = None,
    approximate_positions: bool = False,
    processes: int | None = None,
    *,
    flat: bool | None = None,
) -> Path:
    """Write a catalogue in another format, with the schema's units, UCDs and descriptions; returns what was written.

    Args:
        catalogue: a file, or the folder of one in parts.
        out: file to write; for 'hats' a folder that must not exist.
        format: 'hats', 'votable', 'fits', 'csv', 'ecsv' or 'parquet'; as the file's suffix says if None.
        approximate_positions: for 'hats', where ra and dec are missing: use the HEALPix pixel in the source_id.
        processes: for 'hats', workers; chosen if None.
        flat: one number a column in K, dex, mag and mas, or the catalogue's own columns; flat for all but 'hats' if None.

    Raises:
        InputError: it cannot be read or written, positions are missing, or a package is.
    """
    target = Path(out)
    if format is not None and format not in exports.FORMATS:
        raise InputError(f"'{format}' is no format{nearest(format, exports.FORMATS)}; use {', '.join(exports.FORMATS)}")
    suffix = target.suffix if format is None else exports.FORMATS[format]
    is_flat = suffix and exports.check_suffix(target.with_suffix(suffix), flat=flat is not False)
    if flat and not is_flat:
        raise InputError("a HATS catalogue keeps the catalogue's own columns; leave out --flat")
    check_writable(target, catalogue)
    opened = open_catalogue(catalogue)
    opened.check_intact()
    if suffix:
        exports.WRITERS[suffix](flat_rows(opened.rows, opened.about) if is_flat else opened.rows, target)
    else:
        exports.write_hats(opened, target, approximate_positions=approximate_positions, processes=processes)
    log.info(f"wrote {target}: {opened.n_rows:,} rows")
    return target
