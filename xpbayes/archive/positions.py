"""Matching a catalogue to Gaia by position: the nearest star, its proper motion taken into account.

Gaia's stars come in blocks, of which one is in memory at a time; the catalogue's positions are held.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.companion_table import SortedRuns
from xpbayes.archive.tables import NO_ID, Table
from xpbayes.release import DEFAULT_RELEASE, RELEASES

COLUMNS = ("source_id", "ra", "dec", "pmra", "pmdec", "ref_epoch")
COARSE_NSIDE = 64
"""HEALPix pixels of a degree: rows that are in none of a block's, nor beside one, need no look at the block."""


@dataclass(frozen=True)
class Positions:
    """Where Gaia saw stars: ICRS at `epoch` [deg, Julian year], proper motions [mas/yr], pmra with cos(dec), else NaN."""

    source_id: NDArray[np.int64]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    pmra: NDArray[np.float64]
    pmdec: NDArray[np.float64]
    epoch: NDArray[np.float64]

    @classmethod
    def of(cls, table: Table, release: str = DEFAULT_RELEASE.name) -> "Positions":
        """Take them from Gaia's source table; the release's epoch where it has none."""
        ra, dec, pmra, pmdec, epoch = (table.floats(name) for name in COLUMNS[1:])
        epoch = np.where(np.isfinite(epoch), epoch, RELEASES[release].epoch)
        return cls(table.columns["source_id"], ra, dec, pmra, pmdec, epoch)

    def at(self, epoch: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(star,) right ascension and declination [deg] at another epoch; stars without proper motion stay."""
        degrees = (epoch - self.epoch) / 3.6e6  # years x mas/yr to degrees
        pmra, pmdec = np.nan_to_num(self.pmra), np.nan_to_num(self.pmdec)
        cosine = np.maximum(np.cos(np.radians(self.dec)), 1e-6)
        return self.ra + pmra * degrees / cosine, np.clip(self.dec + pmdec * degrees, -90.0, 90.0)


def positions_of(table: Table | SortedRuns, release: str = DEFAULT_RELEASE.name) -> Iterable[Positions]:
    """Positions of Gaia's source table, block by block."""
    return (Positions.of(block, release) for block in table.blocks(COLUMNS))


def match_positions(
    stars: Iterable[Positions],
    ra: NDArray[np.float64],
    dec: NDArray[np.float64],
    epoch: float,
    radius_arcsec: float = 0.25,
) -> NDArray[np.int64]:
    """(row,) source_id of the Gaia star nearest to every catalogue position, `NO_ID` where none is within the radius.

    Gaia's stars come in blocks; their proper motions bring them to the catalogue's epoch [Julian year]. ra, dec [deg].
    """
    import astropy.units as u
    from astropy.coordinates import SkyCoord

    out = np.full(len(ra), NO_ID, np.int64)
    best = np.full(len(ra), np.inf)
    asked = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90.0)
    for block in stars:
        star_ra, star_dec = block.at(epoch)
        known = np.flatnonzero(np.isfinite(star_ra) & np.isfinite(star_dec))
        rows = np.flatnonzero(asked)
        rows = rows[_near(ra[rows], dec[rows], star_ra[known], star_dec[known])]
        if not known.size or not rows.size:
            continue
        nearest_star, separation, _ = SkyCoord(ra[rows] * u.deg, dec[rows] * u.deg).match_to_catalog_sky(
            SkyCoord(star_ra[known] * u.deg, star_dec[known] * u.deg)
        )
        arcsec = separation.to_value(u.arcsec)
        better = (arcsec <= radius_arcsec) & (arcsec < best[rows])
        best[rows[better]] = arcsec[better]
        out[rows[better]] = block.source_id[known[nearest_star[better]]]
    return out


def _near(
    ra: NDArray[np.float64], dec: NDArray[np.float64], star_ra: NDArray[np.float64], star_dec: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """(row,) which rows have a star in their coarse pixel or a neighbouring one."""
    import astropy.units as u
    from astropy_healpix import HEALPix

    healpix = HEALPix(nside=COARSE_NSIDE, order="nested")
    holds = np.zeros(healpix.npix + 1, bool)  # the last stands for a neighbour that a corner pixel lacks: -1
    pixels = np.unique(healpix.lonlat_to_healpix(star_ra * u.deg, star_dec * u.deg))
    holds[pixels] = True
    holds[healpix.neighbours(pixels)] = True
    holds[-1] = False
    return holds[healpix.lonlat_to_healpix(ra * u.deg, dec * u.deg)]
