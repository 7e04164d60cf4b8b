"""A catalogue's rows as hats-import wants them: positions for every star, text as plain strings.

Needs the extra `dist`. `_healpix_29`, by which HATS sorts and cuts, is computed from ra and dec by hats-import itself.
The source_id encodes a position too, but only as a HEALPix pixel of order 12, 52 arcsec wide, and at the epoch when the
source was first catalogued: good enough to sort by, not to match by.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hats_import.catalog.file_readers import InputReader
from numpy.typing import NDArray

from xpbayes.production.reader import Catalogue
from xpbayes.schema import id_column

HEALPIX_ORDER = 12
"""Of the pixel that the leading bits of a Gaia source_id name, in the nested scheme."""
SOURCE_ID_SHIFT = 35


def positions_from_source_id(source_id: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(star,) right ascension and declination [deg] of source_ids' pixels, at most 0.9 arcmin from the stars."""
    from astropy_healpix import healpix_to_lonlat

    ra, dec = healpix_to_lonlat(source_id >> SOURCE_ID_SHIFT, 2**HEALPIX_ORDER, order="nested")
    return ra.to_value("deg"), dec.to_value("deg")


def with_positions(table: pa.Table) -> pa.Table:
    """Put the centre of the source_id's pixel where ra or dec is missing."""
    if not {"ra", "dec"} & set(table.column_names):
        return table
    ra, dec = (np.array(table[n].to_numpy(zero_copy_only=False), np.float64) for n in ("ra", "dec"))
    missing = ~(np.isfinite(ra) & np.isfinite(dec))
    if not missing.any():
        return table
    ra[missing], dec[missing] = positions_from_source_id(table[id_column(table.column_names)].to_numpy()[missing])
    for name, values in (("ra", ra), ("dec", dec)):
        at = table.column_names.index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(values))
    return table


class CatalogueReader(InputReader):
    """Reads one file of a catalogue for hats-import, some rows at a time."""

    def __init__(self, about: dict[str, Any]) -> None:
        self._about = about

    def read(self, input_file: Any, read_columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield a file's tables of these columns, all if None."""
        one = Catalogue((Path(str(input_file)),), 0, self._about)
        names = None if read_columns is None else list(dict.fromkeys([*read_columns, "source_id"]))
        for table in one.tables(names, rows_at_once=262_144):
            yield with_positions(table).select(read_columns or table.column_names).replace_schema_metadata()
