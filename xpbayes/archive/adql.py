"""The queries for Gaia's archive: ZGR23's Appendix A, corrected, in chunks of source_id.

Corrected: the comma after pmdec_error, the swapped BP and RP flux errors, `gaiadr3.xp_summary` for the chi-squared
that the confidence classifiers use. Left out: the join with astrophysical_parameters, of which no column was used and
which drops stars. Added: what the parallax zero point needs.
unWISE is not in Gaia's archive: bring it as a table ([unwise] in survey.toml).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from xpbayes.errors import InputError, nearest

LAST_SOURCE_ID = (12 * 4**12 << 35) - 1
"""source_id holds a HEALPix index of level 12 from bit 35 up: no source_id is larger."""

SOURCE_COLUMNS = (
    "random_index",
    "source_id",
    "ref_epoch",
    "ra",
    "ra_error",
    "dec",
    "dec_error",
    "parallax",
    "parallax_error",
    "pmra",
    "pmra_error",
    "pmdec",
    "pmdec_error",
    "ruwe",
    "astrometric_excess_noise",
    "phot_g_mean_mag",
    "phot_g_mean_flux",
    "phot_g_mean_flux_error",
    "phot_bp_mean_mag",
    "phot_bp_mean_flux",
    "phot_bp_mean_flux_error",
    "phot_rp_mean_mag",
    "phot_rp_mean_flux",
    "phot_rp_mean_flux_error",
    "has_xp_continuous",
    "phot_bp_n_obs",
    "phot_rp_n_obs",
    "phot_bp_rp_excess_factor",
    "visibility_periods_used",
    "nu_eff_used_in_astrometry",
    "pseudocolour",
    "ecl_lat",
    "astrometric_params_solved",
)
SUMMARY_COLUMNS = ("bp_n_measurements", "bp_chi_squared", "rp_n_measurements", "rp_chi_squared")
SPURIOUS_COLUMNS = ("fidelity_v2", "norm_dg")


@dataclass(frozen=True)
class Query:
    """One chunk of one table.

    Attributes:
        table: 'gaia' or 'two_mass'.
        first, last: source_id range, both included.
        adql: what is sent.
    """

    table: str
    first: int
    last: int
    adql: str

    @property
    def name(self) -> str:
        """A file name for the chunk that sorts like its range."""
        return f"{self.table}-{self.first:020d}-{self.last:020d}"

    def halves(self) -> tuple["Query", "Query"]:
        """Split the range in two: for a chunk with more rows than the archive returns at once."""
        middle = (self.first + self.last) // 2
        return make_query(self.table, self.first, middle), make_query(self.table, middle + 1, self.last)


def gaia_source_adql(first: int, last: int) -> str:
    """Astrometry, photometry and quality of every star with continuous XP spectra in a source_id range."""
    columns = [f"g.{name}" for name in SOURCE_COLUMNS]
    columns += [f"x.{name}" for name in SUMMARY_COLUMNS]
    columns += [f"spur.{name}" for name in SPURIOUS_COLUMNS]
    return "\n".join(
        [
            "SELECT",
            _listing(columns),
            "FROM gaiadr3.gaia_source AS g",
            "LEFT OUTER JOIN gaiadr3.xp_summary AS x ON g.source_id = x.source_id",
            "LEFT OUTER JOIN external.gaiaedr3_spurious AS spur ON g.source_id = spur.source_id",
            "WHERE g.has_xp_continuous = 'true'",
            f"AND g.source_id BETWEEN {first} AND {last}",
            "ORDER BY g.source_id",
        ]
    )


def two_mass_adql(first: int, last: int) -> str:
    """2MASS magnitudes of stars with continuous XP spectra: at least one band of quality A, no extended source."""
    columns = [
        "g.source_id",
        "tmass.designation",
        "tmass.ra AS tm_ra",
        "tmass.dec AS tm_dec",
        "tmass.j_m",
        "tmass.j_msigcom",
        "tmass.h_m",
        "tmass.h_msigcom",
        "tmass.ks_m",
        "tmass.ks_msigcom",
        "tmass.ph_qual",
        "xmatch.angular_distance AS gaia_tmass_angular_distance",
    ]
    return "\n".join(
        [
            "SELECT",
            _listing(columns),
            "FROM gaiadr3.gaia_source AS g",
            "JOIN gaiadr3.tmass_psc_xsc_best_neighbour AS xmatch ON g.source_id = xmatch.source_id",
            "JOIN gaiadr3.tmass_psc_xsc_join AS xjoin"
            " ON xmatch.clean_tmass_psc_xsc_oid = xjoin.clean_tmass_psc_xsc_oid",
            "JOIN gaiadr1.tmass_original_valid AS tmass ON xjoin.original_psc_source_id = tmass.designation",
            "WHERE g.has_xp_continuous = 'true'",
            "AND (tmass.ph_qual LIKE 'A__' OR tmass.ph_qual LIKE '_A_' OR tmass.ph_qual LIKE '__A')",
            "AND tmass.ext_key IS NULL",
            f"AND g.source_id BETWEEN {first} AND {last}",
            "ORDER BY g.source_id",
        ]
    )


TABLES = {"gaia": gaia_source_adql, "two_mass": two_mass_adql}


def make_query(table: str, first: int, last: int) -> Query:
    """Build one chunk's query; InputError for an unknown table or an empty range."""
    if table not in TABLES:
        raise InputError(f"unknown table '{table}'{nearest(table, TABLES)}; known are {', '.join(TABLES)}")
    if not 0 <= first <= last <= LAST_SOURCE_ID:
        raise InputError(f"the source_id range {first} ... {last} is empty or outside 0 ... {LAST_SOURCE_ID}")
    return Query(table, first, last, TABLES[table](first, last))


def chunked_queries(table: str, n_chunks: int, first: int = 0, last: int = LAST_SOURCE_ID) -> Iterator[Query]:
    """Cut a source_id range into chunks of equal width: adjacent, without overlap, in order.

    Args:
        table: 'gaia' or 'two_mass'.
        n_chunks: how many; 220 million spectra in 256 chunks are 0.9 million rows each on average.
        first: first source_id of the range; the whole sky by default.
        last: its last source_id.
    """
    width = last - first + 1
    if not 1 <= n_chunks <= width:
        raise InputError(f"cannot cut {width} source_ids into {n_chunks} chunks; ask for between 1 and {width}")
    for i in range(n_chunks):
        yield make_query(table, first + i * width // n_chunks, first + (i + 1) * width // n_chunks - 1)


def _listing(columns: list[str]) -> str:
    return ",\n".join(f"  {column}" for column in columns)
