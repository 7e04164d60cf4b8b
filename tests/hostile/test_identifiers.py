"""Identifiers that went through floating point are refused where they are lists, arguments, or columns of our own files."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.hostile.doors import star_table
from tests.production.test_export import ABOUT, made_up
from xpbayes.archive.gaia_archive import read_ids
from xpbayes.data.spectra_file import read_star_table
from xpbayes.errors import InputError
from xpbayes.production.reader import open_catalogue
from xpbayes.production.table import describe, read_catalogue, to_arrow, write_catalogue
from xpbayes.runs.inputs import find_stars, stream_tables

EXACT = 5853498713190525697
LOST = {
    "float64": np.array([float(EXACT)]),
    "float32": np.array([EXACT], np.float32),
    "Python's": [float(EXACT)],
    "not whole": [1.5],
    "beside good ones": [EXACT, float(EXACT)],
    "text": ["5.853498713190526e18"],
    "text with decimals": [f"{EXACT}.0"],
    "object array": np.array([EXACT, float(EXACT)], object),
}


@pytest.mark.parametrize("kind", LOST)
def test_arguments(tmp_path, kind):
    star_table(tmp_path)
    with pytest.raises(InputError, match="^the stars asked for: [^\n]*whole number"):
        find_stars(tmp_path / "stars.parquet", LOST[kind])


@pytest.mark.parametrize(
    "given", [[EXACT], np.array([EXACT]), np.array([EXACT], ">u8"), [str(EXACT)], (np.int64(EXACT),)]
)
def test_exact_arguments(tmp_path, given):
    star_table(tmp_path)
    assert find_stars(tmp_path / "stars.parquet", given)[0].source_id.tolist() == [EXACT]


@pytest.mark.parametrize("line", ["5.853498713190526e18", f"{EXACT}.0", "5.85E+18", "1.5", "1e3.0", "nan", "inf"])
@pytest.mark.parametrize("heading", ["", "source_id\n"])
def test_lists_of_identifiers(tmp_path, line, heading):
    (tmp_path / "ids.txt").write_text(f"{heading}{EXACT}\n{line}\n")
    with pytest.raises(InputError, match=r"^[^\n]*ids.txt: [^\n]*number 2[^\n]*; give [^\n]*$"):
        read_ids(tmp_path / "ids.txt")
    (tmp_path / "ids.txt").write_text(f"\ufeff{heading}{EXACT}\r\n# x\r\n{EXACT - 1},\r\n")
    assert read_ids(tmp_path / "ids.txt") == [EXACT, EXACT - 1]


def cast(path: Path, name: str, kind: str) -> Path:
    """The same file with another type of one column."""
    table = pq.read_table(path)
    at = table.schema.get_field_index(name)
    values = table[name].to_pandas().astype(kind)
    pq.write_table(table.set_column(at, name, [values]).replace_schema_metadata(table.schema.metadata), path)
    return path


@pytest.mark.parametrize("kind", ["float64", "float32", "str"])
@pytest.mark.parametrize("name", ["source_id", "gdr3_source_id"])
def test_columns_of_a_catalogue(tmp_path, name, kind):
    table = describe(to_arrow(made_up(9), 3), ABOUT)
    if name not in table.column_names:
        table = table.append_column(name, table["gdr3_source_id"])
    path = cast(write_catalogue(table, tmp_path / "c.parquet"), name, kind)
    for read in (read_catalogue, open_catalogue):
        with pytest.raises(InputError, match=f"column {name} is of type [^\n]*, in which identifiers lose digits"):
            read(path)


@pytest.mark.parametrize("kind", ["float64", "float32", "str"])
def test_columns_of_a_star_table(tmp_path, kind):
    star_table(tmp_path)
    with pytest.raises(InputError, match="^[^\n]*source_id[^\n]*$"):
        read_star_table(cast(tmp_path / "stars.parquet", "source_id", kind))


def test_inputs_that_hold_a_star_twice_are_refused(tmp_path):
    whole = star_table(tmp_path)
    (tmp_path / "copy.parquet").write_bytes(whole)
    pq.write_table(pq.read_table(tmp_path / "stars.parquet"), tmp_path / "other.parquet", compression="gzip")
    names = [tmp_path / f"{name}.parquet" for name in ("stars", "copy", "other")]
    for again in (names[0], names[1]):
        with pytest.raises(InputError, match="is the same file as [^\n]*, or a copy of it|named twice"):
            stream_tables([names[0], again], None)
    with pytest.raises(InputError, match=f"^1 source_ids occur more than once in the inputs .first: {EXACT}.; keep "):
        list(stream_tables([names[0], names[2]], None)[0])
