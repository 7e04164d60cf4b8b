"""What has no end, or ends too early: nests, lines, headers, and a FITS file that becomes shorter while it is mapped."""

import gzip
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.archive.test_doors import FORMATS, IDS, ROW, labels, labels_of, two_mass, votable, write
from xpbayes.archive import text_file
from xpbayes.archive.gaia_source import read_gaia_source
from xpbayes.archive.photometric import read_two_mass
from xpbayes.archive.xp_sampled import read_xp_sampled
from xpbayes.errors import InputError


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("cell", ["[" * 100_000, "[" * 50_000 + "]" * 50_000])
def test_deep_nesting_is_one_bad_row_in_every_format(tmp_path, kind, cell):
    good, ids = "[1e-16" + ",1e-16" * 342 + "]", IDS[:2]
    table = {"source_id": ids, "flux": np.array([cell, good]), "flux_error": np.array([good, good])}
    (batch,) = read_xp_sampled(write(tmp_path, kind, table))
    assert_array_equal(batch.source_id, ids[1:])
    assert [(r.row, r.source_id) for r in batch.rejected] == [(1, ids[0])]
    rows = {k: v[:2] for k, v in labels(teff=np.array([cell, "5000", "0"])).items()}
    out = labels_of(write(tmp_path, kind, rows))
    assert_array_equal(out.source_id, ids[1:])
    assert [(r.row, r.source_id) for r in out.rejected] == [(1, ids[0])]


def test_nests_of_tags_and_groups_are_refused(tmp_path):
    import h5py

    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        at = file
        for _ in range(500):
            at = at.create_group("a")
        at["source_id"] = IDS
    with pytest.raises(InputError, match="nested more than 32 deep"):
        read_two_mass([tmp_path / "x.hdf5"])
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        for k, v in two_mass().items():
            file[f"t/{k}"] = v.astype("S") if v.dtype.kind == "U" else v
        file["t/again"] = file["t"]  # a group inside itself
        file["elsewhere"] = h5py.ExternalLink("no such file", "/t")
        file["nowhere"] = h5py.SoftLink("/none")
    assert_array_equal(read_two_mass([tmp_path / "x.hdf5"]).columns["source_id"], IDS)
    (tmp_path / "x.vot").write_text("<VOTABLE>" + "<RESOURCE>" * 100_000 + ROW)
    with pytest.raises(InputError, match="is not a complete VOTable"):
        read_two_mass([tmp_path / "x.vot"])


@pytest.mark.parametrize("packed", [False, True])
def test_a_cell_of_a_votable_without_end_is_one_bad_row(tmp_path, monkeypatch, packed):
    monkeypatch.setattr("xpbayes.archive.votable.LINE_LIMIT", 1 << 16)
    text = votable(ROW + ROW.replace("9.5", "9" * 200_000)).encode()
    (tmp_path / "x.vot").write_bytes(gzip.compress(text) if packed else text)
    table = read_two_mass([tmp_path / "x.vot"])
    assert_array_equal(table.columns["source_id"], IDS[:1])
    assert [r.row for r in table.rejected] == [2] and "a cell or tag is longer than" in table.rejected[0].reason


def test_rows_of_a_votable_in_one_text_are_no_cell(tmp_path, monkeypatch):
    monkeypatch.setattr("xpbayes.archive.votable.LINE_LIMIT", 1 << 16)
    path = write(tmp_path, "binary2", {k: np.repeat(v, 1000) for k, v in two_mass().items()})
    assert path.stat().st_size > 2 << 16 and len(read_two_mass([path])) == 3000


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_a_line_without_end_is_one_bad_row_and_takes_no_memory(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(text_file, "LINE_LIMIT", 1 << 16)
    monkeypatch.setattr(text_file, "KEPT", 100)
    text = b"source_id,j_m,j_msigcom,ph_qual\n7," + b"9" * 5_000_000 + b",1,AAA\n8,9,0.1,AAA\n"
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    table = read_two_mass([path])
    assert table.columns["source_id"].tolist() == [8]
    assert [(r.row, r.source_id) for r in table.rejected] == [(1, 7)] and "longer than" in table.rejected[0].reason


@pytest.mark.parametrize("broken", ["datatype: [", "datatype: 7", "[" * 1000, "- 1", "a: !no/such/tag [1]"])
def test_a_header_whose_units_cannot_be_read_is_refused(tmp_path, broken):
    import h5py
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"source_id": IDS, "parallax": np.full(3, 0.001)}
    (tmp_path / "x.ecsv").write_text(f"# %ECSV 1.0\n# ---\n# {broken}\nsource_id parallax\n{IDS[0]} 0.001\n")
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata({"table_meta_yaml": broken}), tmp_path / "x.parquet")
    pq.write_table(table.replace_schema_metadata({"IVOA.VOTable-Parquet.content": broken}), tmp_path / "y.parquet")
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["t"] = np.rec.fromarrays(list(columns.values()), names=list(columns))
        file["t.__table_column_meta__"] = [broken.encode()]
    for name in ("x.ecsv", "x.parquet", "y.parquet", "x.hdf5"):
        with pytest.raises(InputError, match=f"^[^\n]*{name}: [^\n]*header[^\n]*$"):
            read_gaia_source([tmp_path / name])


SHORTENED = """
import gc, sys
from pathlib import Path
from astropy.io import fits
from xpbayes.archive.binary_file import open_fits
path = Path(sys.argv[1])
file = open_fits(path)
columns = [c for c in gc.get_objects() if isinstance(c, fits.Column)]
batches = file.tables[0].batches(["x"], 100, True)
print(len(next(batches).row))
path.write_bytes(b"short")
print(next(batches).bad[0])
file.close()
del file, batches
gc.collect()
print("alive")
"""


def test_a_fits_file_that_becomes_shorter_ends_no_process(tmp_path):
    path = write(tmp_path, "fits", {"x": np.ones(60_000)})
    told = subprocess.run([sys.executable, "-c", SHORTENED, path], capture_output=True, text=True, check=False)
    first, bad, alive = told.stdout.splitlines()
    assert (first, alive) == ("100", "alive") and "row=101" in bad and "become shorter while it was read" in bad
