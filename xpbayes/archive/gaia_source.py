"""Gaia's source table: astrometry, photometry and quality columns of every star, and its parallax zero point.

Out: a `Table` with the columns below where the file has them. The zero point of Lindegren et al. (2021, A&A 649, A4)
comes from the authors' package gaiadr3-zeropoint; it is off by default.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.adql import SOURCE_COLUMNS, SPURIOUS_COLUMNS, SUMMARY_COLUMNS
from xpbayes.archive.columns import DEFAULT, SOURCE_ID, Column, ReadOptions, error_column, magnitude
from xpbayes.archive.companion_table import SortedRuns, read_companion
from xpbayes.archive.tables import Table
from xpbayes.errors import InputError

POSITIONS = ("ra", "dec")
FLOATS = tuple(
    name
    for name in (*SOURCE_COLUMNS, *SPURIOUS_COLUMNS, *SUMMARY_COLUMNS)
    if name not in ("random_index", "source_id", "has_xp_continuous", "astrometric_params_solved")
)
"""What the archive is asked for, but for whole numbers."""
ALIASES = {
    "phot_g_mean_mag": ("gmag", "g"),
    "phot_bp_mean_mag": ("bpmag", "bp"),
    "phot_rp_mean_mag": ("rpmag", "rp"),
    "ra": ("ra_icrs",),
    "dec": ("de_icrs",),
    "parallax": ("plx",),
    "parallax_error": ("e_plx",),
    "phot_bp_rp_excess_factor": ("bp_rp_flux_excess",),
}
MEASURED: dict[str, Column] = {
    c.name: c
    for c in (
        Column("ra", aliases=ALIASES["ra"], unit="deg", low=-361.0, high=721.0),
        Column("dec", aliases=ALIASES["dec"], unit="deg", low=-90.001, high=90.001),
        Column("parallax", aliases=ALIASES["parallax"], unit="mas", low=-900.0, high=900.0),
        error_column("parallax_error", 900.0, ALIASES["parallax_error"], unit="mas"),
        *(Column(n, unit="mas / yr", low=-11_000.0, high=11_000.0) for n in ("pmra", "pmdec")),
        *(error_column(n, 11_000.0, unit="mas / yr") for n in ("pmra_error", "pmdec_error")),
        *(error_column(n, 1e4, unit="mas") for n in ("ra_error", "dec_error")),
        Column("ref_epoch", unit="yr", low=1900.0, high=2100.0),
        Column("nu_eff_used_in_astrometry", unit="1 / um", low=0.0, high=10.0),
        Column("pseudocolour", unit="1 / um", low=-900.0, high=900.0),
        Column("ecl_lat", unit="deg", low=-90.001, high=90.001),
        Column("astrometric_excess_noise", unit="mas", low=-1e-9),
        Column("fidelity_v2", low=-1e-6, high=1.0 + 1e-6),
        *(magnitude(f"phot_{b}_mean_mag", ALIASES[f"phot_{b}_mean_mag"]) for b in ("g", "bp", "rp")),
        *(Column(f"phot_{b}_mean_flux", unit="1 / s") for b in ("g", "bp", "rp")),
        *(error_column(f"phot_{b}_mean_flux_error", np.inf, unit="1 / s") for b in ("g", "bp", "rp")),
    )
}
"""Columns with a unit and a plausible range: the nearest star has a parallax of 768 mas, the fastest moves by 10,393
mas/yr; what lies beyond is what catalogues write for nothing."""
FIELDS = (
    SOURCE_ID,
    *(MEASURED.get(name, Column(name, aliases=ALIASES.get(name, ()))) for name in FLOATS),
    Column("astrometric_params_solved", "integer"),
)
UNITS = {
    **dict.fromkeys(("phot_g_mean_mag", "phot_bp_mean_mag", "phot_rp_mean_mag"), "mag"),
    **{f"phot_{b}_mean_flux{e}": "s-1" for b in ("g", "bp", "rp") for e in ("", "_error")},
    **dict.fromkeys(("pmra", "pmra_error", "pmdec", "pmdec_error"), "mas.yr-1"),
    **dict.fromkeys(("ra_error", "dec_error", "astrometric_excess_noise"), "mas"),
    "ref_epoch": "yr",
    "nu_eff_used_in_astrometry": "um-1",
    "pseudocolour": "um-1",
    "ecl_lat": "deg",
}
"""Units of columns that the star table's schema does not know."""

ZERO_POINT_NAME = "Lindegren et al. 2021 (gaiadr3-zeropoint)"
ZERO_POINT_COLUMNS = (
    "phot_g_mean_mag",
    "nu_eff_used_in_astrometry",
    "pseudocolour",
    "ecl_lat",
    "astrometric_params_solved",
)


def read_gaia_source(
    paths: list[Path], scratch: Path | None = None, zero_point: bool = False, options: ReadOptions = DEFAULT
) -> Table | SortedRuns:
    """Read one or more files of Gaia's source table, with or without columns of gaiaedr3_spurious and xp_summary.

    Args:
        paths: the files.
        scratch: folder for a table that is larger than memory should hold; None holds it in memory.
        zero_point: subtract the parallax zero point and keep it as a column of its own, NaN where it is unknown.
        options: what the user says about the files.
    """
    correct = correct_parallax if zero_point else lambda table: table
    return read_companion(paths, FIELDS, scratch, correct, options=options)


def correct_parallax(table: Table) -> Table:
    """Subtract the zero point from the parallaxes; a star outside the recipe's range keeps its own."""
    known = parallax_zero_point(table)
    corrected = table.floats("parallax") - np.nan_to_num(known)
    return replace(table, columns={**table.columns, "parallax": corrected, "parallax_zero_point": known})


def parallax_zero_point(table: Table) -> NDArray[np.float64]:
    """Compute the parallax zero point, to be subtracted from the parallax.

    Args:
        table: with phot_g_mean_mag, nu_eff_used_in_astrometry, pseudocolour, ecl_lat and astrometric_params_solved.

    Returns:
        (star,) zero point [mas]; NaN outside the recipe's range (6 < G < 21 and its colours) or without five or six
        astrometric parameters.

    Raises:
        InputError: the package or one of the columns is not there.
    """
    try:
        from zero_point import zpt
    except ImportError as error:
        raise InputError("the parallax zero point needs gaiadr3-zeropoint; pip install 'xpbayes[archive]'") from error
    missing = [n for n in ZERO_POINT_COLUMNS if n not in table]
    if missing:
        raise InputError(
            f"the parallax zero point needs {len(missing)} more columns of Gaia's source table (first: {missing[0]}); "
            f"fetch the table with them, or set parallax_zero_point = false"
        )
    magnitude, nu_eff, pseudocolour, latitude = (table.floats(n) for n in ZERO_POINT_COLUMNS[:4])
    solved = table.columns["astrometric_params_solved"]
    five, six = solved == 31, solved == 95
    with np.errstate(invalid="ignore"):
        usable = np.isfinite(magnitude) & np.isfinite(latitude) & (magnitude >= 6) & (magnitude <= 21)
        usable &= (five & (nu_eff >= 1.1) & (nu_eff <= 1.9)) | (six & (pseudocolour >= 1.24) & (pseudocolour <= 1.72))
    zero_point = np.full(len(table), np.nan)
    if usable.any():
        zpt.load_tables()
        zero_point[usable] = zpt.get_zpt(
            magnitude[usable],
            np.nan_to_num(nu_eff[usable]),
            np.nan_to_num(pseudocolour[usable]),
            latitude[usable],
            solved[usable],
            _warnings=False,
        )
    return zero_point
