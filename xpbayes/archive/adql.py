"""The queries for Gaia's archive: ZGR23's Appendix A, corrected, in chunks of source_id.

Corrected: the comma after pmdec_error, the swapped BP and RP flux errors, `xp_summary` for the chi-squared that the
confidence classifiers use. Left out: the join with astrophysical_parameters, of which no column was used and
which drops stars. Added: what the parallax zero point needs.
unWISE is not in Gaia's archive: bring it as a table ([unwise] in survey.toml).
What a release has, and under which names, its profile says (`release.py`), and the archive itself (`gaia_archive.probe`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from xpbayes.errors import InputError, nearest
from xpbayes.release import DEFAULT_RELEASE, Release

LAST_SOURCE_ID = (12 * 4**12 << 35) - 1
"""source_id holds a HEALPix index of level 12 from bit 35 up: no source_id is larger."""

SPURIOUS_COLUMNS = ("fidelity_v2", "norm_dg")
TWO_MASS_JOINS = ("tmass_psc_xsc_best_neighbour", "tmass_psc_xsc_join")
"""Tables of every release that lead from its sources to 2MASS."""


@dataclass(frozen=True)
class ArchiveTables:
    """What one release has in the archive, as far as our queries want it."""

    release: Release
    columns: Mapping[str, str]  # our column of gaia_source to the archive's, for those that there are
    has_summary: bool  # whether there is an xp_summary


def as_announced(release: Release = DEFAULT_RELEASE) -> ArchiveTables:
    """What the release's profile says, without asking the archive."""
    columns = {name: release.substitutes.get(name, (name,))[0] for name in release.source_columns}
    return ArchiveTables(release, columns, release.summary_is_known)


@dataclass(frozen=True)
class Query:
    """One chunk of one table, 'gaia' or 'two_mass': a range of source_ids, both ends included."""

    table: str
    first: int
    last: int
    there: ArchiveTables

    @property
    def name(self) -> str:
        """A file name for the chunk that sorts like its range."""
        return f"{self.table}-{self.first:020d}-{self.last:020d}"

    @property
    def adql(self) -> str:
        """What is sent: stars with continuous XP spectra, in the order of source_id."""
        columns, joins, conditions = TABLES[self.table](self.there)
        return "\n".join(
            [
                "SELECT",
                ",\n".join(f"  {column}" for column in columns),
                f"FROM {self.there.release.schema}.gaia_source AS g",
                *joins,
                f"WHERE g.{self.there.columns['has_xp_continuous']} = 'true'",
                *(f"AND {condition}" for condition in conditions),
                f"AND g.source_id BETWEEN {self.first} AND {self.last}",
                "ORDER BY g.source_id",
            ]
        )

    def halves(self) -> tuple["Query", "Query"]:
        """Split the range in two: for a chunk with more rows than the archive returns at once."""
        middle = (self.first + self.last) // 2
        return replace(self, last=middle), replace(self, first=middle + 1)


def _gaia_source(there: ArchiveTables) -> tuple[list[str], list[str], list[str]]:
    """Columns, joins and conditions: astrometry, photometry and quality."""
    release = there.release
    columns = [f"g.{theirs}" + ("" if ours == theirs else f" AS {ours}") for ours, theirs in there.columns.items()]
    joins = []
    if there.has_summary:
        columns += [f"x.{name}" for name in release.summary_columns]
        joins.append(f"LEFT OUTER JOIN {release.schema}.xp_summary AS x ON g.source_id = x.source_id")
    if release.spurious_table:
        columns += [f"spur.{name}" for name in SPURIOUS_COLUMNS]
        joins.append(f"LEFT OUTER JOIN {release.spurious_table} AS spur ON g.source_id = spur.source_id")
    return columns, joins, []


def _two_mass(there: ArchiveTables) -> tuple[list[str], list[str], list[str]]:
    """The same of 2MASS magnitudes: at least one band of quality A, no extended source."""
    magnitudes = [f"tmass.{band}_{what}" for band in ("j", "h", "ks") for what in ("m", "msigcom")]
    columns = [
        "g.source_id",
        "tmass.designation",
        "tmass.ra AS tm_ra",
        "tmass.dec AS tm_dec",
        *magnitudes,
        "tmass.ph_qual",
        "xmatch.angular_distance AS gaia_tmass_angular_distance",
    ]
    neighbour, join = (f"{there.release.schema}.{name}" for name in TWO_MASS_JOINS)
    joins = [
        f"JOIN {neighbour} AS xmatch ON g.source_id = xmatch.source_id",
        f"JOIN {join} AS xjoin ON xmatch.clean_tmass_psc_xsc_oid = xjoin.clean_tmass_psc_xsc_oid",
        "JOIN gaiadr1.tmass_original_valid AS tmass ON xjoin.original_psc_source_id = tmass.designation",
    ]
    is_good = "(tmass.ph_qual LIKE 'A__' OR tmass.ph_qual LIKE '_A_' OR tmass.ph_qual LIKE '__A')"
    return columns, joins, [is_good, "tmass.ext_key IS NULL"]


TABLES = {"gaia": _gaia_source, "two_mass": _two_mass}


def make_query(table: str, first: int, last: int, there: ArchiveTables | None = None) -> Query:
    """Build one chunk's query, of DR3 as announced if `there` is None; InputError for an unknown table or an empty range."""
    if table not in TABLES:
        raise InputError(f"unknown table '{table}'{nearest(table, TABLES)}; known are {', '.join(TABLES)}")
    if not 0 <= first <= last <= LAST_SOURCE_ID:
        raise InputError(f"the source_id range {first} ... {last} is empty or outside 0 ... {LAST_SOURCE_ID}")
    return Query(table, first, last, there or as_announced())


def chunked_queries(
    table: str, n_chunks: int, first: int = 0, last: int = LAST_SOURCE_ID, there: ArchiveTables | None = None
) -> Iterator[Query]:
    """Cut a source_id range, the whole sky by default, into chunks of equal width: adjacent, without overlap, in order.

    220 million spectra in 256 chunks are 0.9 million rows each on average. Arguments and errors as for `make_query`.
    """
    width = last - first + 1
    if not 1 <= n_chunks <= width:
        raise InputError(f"cannot cut {width} source_ids into {n_chunks} chunks; ask for between 1 and {width}")
    for i in range(n_chunks):
        yield make_query(table, first + i * width // n_chunks, first + (i + 1) * width // n_chunks - 1, there)
