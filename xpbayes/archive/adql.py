"""The queries for Gaia's archive: ZGR23's Appendix A, corrected, in chunks of source_id.

Corrected: the comma after pmdec_error, the swapped BP and RP flux errors, `xp_summary` for the chi-squared that the
confidence classifiers use. Left out: the join with astrophysical_parameters, of which no column was used and
which drops stars. Added: what the parallax zero point needs.
unWISE is not in Gaia's archive: bring it as a table ([unwise] in survey.toml).
What a data release has, and under which names, its profile says (`release.py`), and the archive itself (`tap_schema.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from xpbayes.errors import InputError, nearest
from xpbayes.release import DEFAULT_RELEASE, Release

LAST_SOURCE_ID = (12 * 4**12 << 35) - 1
"""source_id holds a HEALPix index of level 12 from bit 35 up: no source_id is larger."""

SPURIOUS_COLUMNS = ("fidelity_v2", "norm_dg")


@dataclass(frozen=True)
class ArchiveTables:
    """What one release has in the archive, as far as our queries want it.

    Attributes:
        release: the release.
        names: our column of gaia_source to the archive's, for those that there are.
        has_summary: whether there is an xp_summary.
    """

    release: Release
    names: tuple[tuple[str, str], ...]
    has_summary: bool

    @property
    def columns(self) -> dict[str, str]:
        """Our column of gaia_source to the archive's."""
        return dict(self.names)


def as_announced(release: Release = DEFAULT_RELEASE) -> ArchiveTables:
    """What the release's profile says, without asking the archive."""
    names = tuple((name, release.substitutes.get(name, (name,))[0]) for name in release.source_columns)
    return ArchiveTables(release, names, release.summary_is_known)


@dataclass(frozen=True)
class Query:
    """One chunk of one table.

    Attributes:
        table: 'gaia' or 'two_mass'.
        first, last: source_id range, both included.
        adql: what is sent.
        there: what the archive has.
    """

    table: str
    first: int
    last: int
    adql: str
    there: ArchiveTables

    @property
    def name(self) -> str:
        """A file name for the chunk that sorts like its range."""
        return f"{self.table}-{self.first:020d}-{self.last:020d}"

    def halves(self) -> tuple["Query", "Query"]:
        """Split the range in two: for a chunk with more rows than the archive returns at once."""
        middle = (self.first + self.last) // 2
        low, high = (self.first, middle), (middle + 1, self.last)
        return make_query(self.table, *low, self.there), make_query(self.table, *high, self.there)


def gaia_source_adql(first: int, last: int, there: ArchiveTables) -> str:
    """Astrometry, photometry and quality of every star with continuous XP spectra in a source_id range."""
    release, names = there.release, there.columns
    columns = [f"g.{theirs}" + ("" if ours == theirs else f" AS {ours}") for ours, theirs in names.items()]
    joins = []
    if there.has_summary:
        columns += [f"x.{name}" for name in release.summary_columns]
        joins.append(f"LEFT OUTER JOIN {release.schema}.xp_summary AS x ON g.source_id = x.source_id")
    if release.spurious_table:
        columns += [f"spur.{name}" for name in SPURIOUS_COLUMNS]
        joins.append(f"LEFT OUTER JOIN {release.spurious_table} AS spur ON g.source_id = spur.source_id")
    return "\n".join(
        [
            "SELECT",
            _listing(columns),
            f"FROM {release.schema}.gaia_source AS g",
            *joins,
            f"WHERE g.{names['has_xp_continuous']} = 'true'",
            f"AND g.source_id BETWEEN {first} AND {last}",
            "ORDER BY g.source_id",
        ]
    )


TWO_MASS_JOINS = ("tmass_psc_xsc_best_neighbour", "tmass_psc_xsc_join")
"""Tables of every release that lead from its sources to 2MASS."""


def two_mass_adql(first: int, last: int, there: ArchiveTables) -> str:
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
    schema = there.release.schema
    neighbour, join = TWO_MASS_JOINS
    return "\n".join(
        [
            "SELECT",
            _listing(columns),
            f"FROM {schema}.gaia_source AS g",
            f"JOIN {schema}.{neighbour} AS xmatch ON g.source_id = xmatch.source_id",
            f"JOIN {schema}.{join} AS xjoin ON xmatch.clean_tmass_psc_xsc_oid = xjoin.clean_tmass_psc_xsc_oid",
            "JOIN gaiadr1.tmass_original_valid AS tmass ON xjoin.original_psc_source_id = tmass.designation",
            f"WHERE g.{there.columns['has_xp_continuous']} = 'true'",
            "AND (tmass.ph_qual LIKE 'A__' OR tmass.ph_qual LIKE '_A_' OR tmass.ph_qual LIKE '__A')",
            "AND tmass.ext_key IS NULL",
            f"AND g.source_id BETWEEN {first} AND {last}",
            "ORDER BY g.source_id",
        ]
    )


TABLES = {"gaia": gaia_source_adql, "two_mass": two_mass_adql}


def make_query(table: str, first: int, last: int, there: ArchiveTables | None = None) -> Query:
    """Build one chunk's query, of DR3 as announced if `there` is None; InputError for an unknown table or an empty range."""
    there = there or as_announced()
    if table not in TABLES:
        raise InputError(f"unknown table '{table}'{nearest(table, TABLES)}; known are {', '.join(TABLES)}")
    if not 0 <= first <= last <= LAST_SOURCE_ID:
        raise InputError(f"the source_id range {first} ... {last} is empty or outside 0 ... {LAST_SOURCE_ID}")
    return Query(table, first, last, TABLES[table](first, last, there), there)


def chunked_queries(
    table: str, n_chunks: int, first: int = 0, last: int = LAST_SOURCE_ID, there: ArchiveTables | None = None
) -> Iterator[Query]:
    """Cut a source_id range into chunks of equal width: adjacent, without overlap, in order.

    Args:
        table: 'gaia' or 'two_mass'.
        n_chunks: how many; 220 million spectra in 256 chunks are 0.9 million rows each on average.
        first: first source_id of the range; the whole sky by default.
        last: its last source_id.
        there: what the archive has; DR3 as announced if None.
    """
    width = last - first + 1
    if not 1 <= n_chunks <= width:
        raise InputError(f"cannot cut {width} source_ids into {n_chunks} chunks; ask for between 1 and {width}")
    for i in range(n_chunks):
        yield make_query(table, first + i * width // n_chunks, first + (i + 1) * width // n_chunks - 1, there)


def _listing(columns: list[str]) -> str:
    return ",\n".join(f"  {column}" for column in columns)
