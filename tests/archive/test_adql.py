"""The archive's queries, by a parser of the language, and their chunks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpbayes.archive.adql import LAST_SOURCE_ID, TABLES, chunked_queries, make_query
from xpbayes.archive.gaia_source import FIELDS
from xpbayes.archive.photometric import TWO_MASS_FIELDS
from xpbayes.errors import InputError
from xpbayes.release import DR3

SOURCE_COLUMNS = DR3.source_columns


def parsed(adql: str):
    """Tables and columns of a query, by an ADQL grammar. It takes SQL's word EXTERNAL for reserved; Gaia's does not."""
    translator = pytest.importorskip("queryparser.adql").ADQLQueryTranslator
    processor = pytest.importorskip("queryparser.postgresql").PostgreSQLQueryProcessor()
    processor.set_query(translator(adql.replace("external.", '"external".')).to_postgresql())
    processor.process_query()
    return set(processor.tables), {(c[1], c[2]) for c in processor.columns}


def test_the_source_query_parses_and_names_every_table():
    tables, columns = parsed(make_query("gaia", 0, 99).adql)
    assert tables == {("gaiadr3", "gaia_source"), ("gaiadr3", "xp_summary"), ("external", "gaiaedr3_spurious")}
    assert {("gaia_source", c) for c in SOURCE_COLUMNS} <= columns
    assert ("xp_summary", "bp_chi_squared") in columns and ("gaiaedr3_spurious", "norm_dg") in columns


def test_the_two_mass_query_parses_and_names_every_table():
    tables, columns = parsed(make_query("two_mass", 0, 99).adql)
    assert tables == {
        ("gaiadr3", "gaia_source"),
        ("gaiadr3", "tmass_psc_xsc_best_neighbour"),
        ("gaiadr3", "tmass_psc_xsc_join"),
        ("gaiadr1", "tmass_original_valid"),
    }
    assert {("tmass_original_valid", c) for c in ("j_m", "h_msigcom", "ph_qual", "ext_key")} <= columns


def test_the_papers_second_query_as_printed_does_not_parse():  # what the correction is for
    exceptions = pytest.importorskip("queryparser.exceptions")
    adql = make_query("gaia", 0, 9).adql.replace("g.pmdec_error,", "g.pmdec_error g.extra")
    with pytest.raises(exceptions.QuerySyntaxError):
        parsed(adql)


def test_each_flux_stands_before_its_own_error():
    names = list(SOURCE_COLUMNS)
    for band in ("g", "bp", "rp"):
        assert names[names.index(f"phot_{band}_mean_flux") + 1] == f"phot_{band}_mean_flux_error"


def test_the_doors_know_the_columns_that_the_queries_ask_for():
    known = {f.name for f in FIELDS}
    assert set(SOURCE_COLUMNS) - known == {"random_index", "has_xp_continuous"}
    assert {"j_m", "j_msigcom", "h_m", "ks_msigcom", "ph_qual"} <= {f.name for f in TWO_MASS_FIELDS}


@given(st.integers(1, 500), st.integers(0, 10**6), st.integers(0, 10**6))
def test_chunks_cover_the_range_once(n, first, width):
    last = first + width
    if n > width + 1:
        with pytest.raises(InputError):
            list(chunked_queries("gaia", n, first, last))
        return
    chunks = list(chunked_queries("gaia", n, first, last))
    assert chunks[0].first == first and chunks[-1].last == last and len(chunks) == n
    assert all(a.last + 1 == b.first for a, b in zip(chunks[:-1], chunks[1:], strict=True))
    assert [c.name for c in chunks] == sorted(c.name for c in chunks)


def test_halves_cover_a_chunk():
    left, right = make_query("two_mass", 10, 21).halves()
    assert (left.first, left.last, right.first, right.last) == (10, 15, 16, 21)


def test_the_whole_sky_is_the_default():
    chunks = list(chunked_queries("gaia", 3))
    assert chunks[0].first == 0 and chunks[-1].last == LAST_SOURCE_ID
    assert np.int64(LAST_SOURCE_ID) > 6917528997577384320  # the largest source_id of DR3
    assert "BETWEEN 0 AND" in chunks[0].adql


@pytest.mark.parametrize(
    ("table", "first", "last"), [("gaja", 0, 1), ("gaia", 5, 4), ("gaia", -1, 4), ("gaia", 0, 2**63)]
)
def test_wrong_requests_are_refused(table, first, last):
    with pytest.raises(InputError):
        make_query(table, first, last)
    assert set(TABLES) == {"gaia", "two_mass"}
