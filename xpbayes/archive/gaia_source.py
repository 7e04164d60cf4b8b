"""Gaia's source table: astrometry, photometry and quality columns of every star, and its parallax zero point.

Out: a `Table` with the columns below where the file has them. The zero point is the table's own column of parallax biases
where it has one, else that of Lindegren et al. (2021, A&A 649, A4) by the authors' package; it is off by default.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.adql import SPURIOUS_COLUMNS
from xpbayes.archive.columns import DEFAULT, SOURCE_ID, Column, ReadOptions, error_column, magnitude
from xpbayes.archive.companion_table import SortedRuns, read_companion
from xpbayes.archive.tables import Table
from xpbayes.errors import InputError
from xpbayes.release import RELEASES, ZERO_POINT_PACKAGE

POSITIONS = ("ra", "dec")
EXCESS = "phot_bp_rp_excess_factor"
SUBSTITUTES = {ours: names for release in RELEASES.values() for ours, names in release.substitutes.items()}
PARALLAX_BIAS = next(release.parallax_bias for release in RELEASES.values() if release.parallax_bias)
FLOATS = tuple(
    dict.fromkeys(
        name
        for release in RELEASES.values()
        for name in (*release.source_columns, *SPURIOUS_COLUMNS, *release.summary_columns)
        if name not in ("random_index", "source_id", "has_xp_continuous", "astrometric_params_solved")
    )
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
        Column(PARALLAX_BIAS, unit="mas", low=-10.0, high=10.0),
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
    Column("astrometric_params_solved", "integer", SUBSTITUTES.get("astrometric_params_solved", ())),
)
ANY = (
    [c.name for c in FIELDS if c is not SOURCE_ID],
    "has no column of Gaia's source table but source_id; name a file of that under [gaia]",
)
STAR_TABLE_UNITS = {"mas / yr": "mas.yr-1", "1 / s": "s-1", "1 / um": "um-1"}
"""How star tables spell them."""
UNITS = {
    name: STAR_TABLE_UNITS.get(column.unit, column.unit)
    for name, column in MEASURED.items()
    if column.unit and name not in (*POSITIONS, "parallax", "parallax_error")
}
"""Units of columns that the star table's schema does not know."""

ZERO_POINT_NAME = f"Lindegren et al. 2021 ({ZERO_POINT_PACKAGE})"
OWN_BIAS_NAME = f"the table's own {PARALLAX_BIAS}"
PARALLAX_BIT, PSEUDOCOLOUR_BIT = 1 << 2, 1 << 6
"""Of astrometric_params_solved: these parameters were fitted. Other bits say what else was, accelerations and orbits."""
FIVE, SIX = 31, 95
"""Solutions that the published recipe knows: with five parameters, and with a pseudocolour."""
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

    `zero_point`: subtract the parallax zero point and keep it as a column of its own, NaN where it is unknown. Other
    arguments as for `read_companion`.
    """

    def finish(table: Table) -> Table:
        table = _of_release(table, options)
        if options.release is not None and EXCESS not in RELEASES[options.release].source_columns:
            table = _with_excess_factor(table)
        return correct_parallax(table) if zero_point else table

    return read_companion(paths, FIELDS, scratch, finish, options=options, any_of=ANY)


def _of_release(table: Table, options: ReadOptions) -> Table:
    """Refuse rows at another release's reference epoch: the same source_id may be another star there."""
    epoch = table.floats("ref_epoch")
    for release in RELEASES.values():
        others = epoch == release.epoch
        if options.release not in (None, release.name) and others.any():
            raise InputError(
                f"Gaia's source table has {int(others.sum())} rows at epoch {release.epoch} (first: source_id "
                f"{table.columns['source_id'][others][0]}), which is of {release.title}, and the spectra are of "
                f"{RELEASES[str(options.release)].title}; name that release's table under [gaia]"
            )
    return table


def _with_excess_factor(table: Table) -> Table:
    """The BP and RP flux excess, (I_BP + I_RP) / I_G (Riello et al. 2021), where a table has the fluxes but not it."""
    fluxes = [f"phot_{band}_mean_flux" for band in ("bp", "rp", "g")]
    if EXCESS in table or any(flux not in table for flux in fluxes):
        return table
    bp, rp, g = (table.floats(flux) for flux in fluxes)
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.where(g > 0, (bp + rp) / g, np.nan)
    return replace(table, columns={**table.columns, EXCESS: excess})


def correct_parallax(table: Table) -> Table:
    """Subtract the zero point from the parallaxes; a star for which none is known keeps its own."""
    known = parallax_zero_point(table)
    corrected = table.floats("parallax") - np.nan_to_num(known)
    return replace(table, columns={**table.columns, "parallax": corrected, "parallax_zero_point": known})


def zero_point_name(table: Table | SortedRuns) -> str:
    """What the zero point of a table's parallaxes comes from, in words."""
    return f"{OWN_BIAS_NAME}, else {ZERO_POINT_NAME}" if PARALLAX_BIAS in table else ZERO_POINT_NAME


def parallax_zero_point(table: Table) -> NDArray[np.float64]:
    """(star,) parallax zero point [mas], to be subtracted: the table's own bias where it has one, else the recipe's.

    NaN outside the recipe's range (6 < G < 21 and its colours) or where no parallax was fitted. InputError if there is no
    bias, and the package or one of `ZERO_POINT_COLUMNS` is not there.
    """
    zero_point = table.floats(PARALLAX_BIAS).copy()
    missing = [n for n in ZERO_POINT_COLUMNS if n not in table]
    if PARALLAX_BIAS in table and (missing or np.isfinite(zero_point).all()):
        return zero_point
    try:
        from zero_point import zpt
    except ImportError as error:
        if PARALLAX_BIAS in table:
            return zero_point
        raise InputError(
            f"the parallax zero point needs {ZERO_POINT_PACKAGE}; pip install 'xpbayes[archive]'"
        ) from error
    if missing:
        raise InputError(
            f"the parallax zero point needs {len(missing)} more columns of Gaia's source table (first: {missing[0]}); "
            f"fetch the table with them, or set parallax_zero_point = false"
        )
    magnitude, nu_eff, pseudocolour, latitude = (table.floats(n) for n in ZERO_POINT_COLUMNS[:4])
    solved = table.columns["astrometric_params_solved"]
    fitted = (solved > 0) & (solved & PARALLAX_BIT > 0)
    six = fitted & (solved & PSEUDOCOLOUR_BIT > 0)
    five = fitted & ~six
    with np.errstate(invalid="ignore"):
        usable = ~np.isfinite(zero_point) & np.isfinite(magnitude) & np.isfinite(latitude)
        usable &= (magnitude >= 6) & (magnitude <= 21)
        usable &= (five & (nu_eff >= 1.1) & (nu_eff <= 1.9)) | (six & (pseudocolour >= 1.24) & (pseudocolour <= 1.72))
    if usable.any():
        zpt.load_tables()
        zero_point[usable] = zpt.get_zpt(
            magnitude[usable],
            np.nan_to_num(nu_eff[usable]),
            np.nan_to_num(pseudocolour[usable]),
            latitude[usable],
            np.where(six[usable], SIX, FIVE),
            _warnings=False,
        )
    return zero_point
