"""Companion tables larger than memory: sorted runs on disk align as a table in memory does."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from xpbayes.archive import companion_table
from xpbayes.archive.columns import SOURCE_ID, Column
from xpbayes.archive.companion_table import SeenIds, SortedRuns, read_companion
from xpbayes.archive.tables import Table

FIELDS = (SOURCE_ID, Column("x"), Column("name", "text"), Column("n", "integer"))
N = 1000


@pytest.fixture
def files(tmp_path):
    """Three files in no order, with stars that occur twice in a file and in two files, and one bad row."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(3):
        ids = rng.integers(1, 2000, N)
        lines = ["source_id,x,name,n"]
        lines += [f"{s},{100 * i + k},{chr(97 + s % 26)}{i},{s % 7}" for k, s in enumerate(ids.tolist())]
        lines[5] = "bad,1,a,2"
        paths.append(tmp_path / f"{i}.csv")
        paths[-1].write_text("\n".join(lines) + "\n")
    return paths


@pytest.fixture
def both(files, tmp_path, monkeypatch):
    monkeypatch.setattr(companion_table, "GROUP_ROWS", 64)
    monkeypatch.setattr("xpbayes.archive.text_file.TEXT_BLOCK", 4000)  # many blocks a file
    runs = read_companion(files, FIELDS, tmp_path / "scratch", rows_in_memory=700)
    assert isinstance(runs, SortedRuns) and len(runs.runs) == 4
    return read_companion(files, FIELDS), runs


def test_runs_align_as_a_table_in_memory_does(both):
    whole, runs = both
    assert isinstance(whole, Table) and len(whole) == len(runs) == 3 * N - 3
    assert runs.rejected == whole.rejected and len(runs.rejected) == 3
    rng = np.random.default_rng(1)
    for ids in (rng.permutation(2500)[:900].astype(np.int64), np.array([7], np.int64), np.zeros(0, np.int64)):
        expected, known = whole.align(ids)
        got, also_known = runs.align(ids)
        assert_array_equal(also_known, known)
        assert list(got.columns) == list(expected.columns)
        for name, values in expected.columns.items():
            assert_array_equal(got.columns[name], values)


def test_only_the_row_groups_of_the_wanted_stars_are_read(both, monkeypatch):
    _, runs = both
    read = []
    original = companion_table._read_groups
    monkeypatch.setattr(companion_table, "_read_groups", lambda run, at, n: read.extend(at) or original(run, at, n))
    runs.align(np.arange(100, 130))
    groups = sum(len(run.low) for run in runs.runs)
    assert 4 <= len(read) <= 8 < groups / 5


def test_blocks_give_every_row_once(both):
    whole, runs = both
    blocks = list(runs.blocks(("source_id", "x", "nothing")))
    assert len(blocks) == 4 and set(blocks[0].columns) == {"source_id", "x"}
    assert sorted(np.concatenate([b.columns["x"] for b in blocks])) == sorted(whole.columns["x"])


def test_memory_does_not_grow_with_the_table(tmp_path):
    """Rows held at once, measured: sixteen times the rows, the same peak."""
    import tracemalloc

    peaks = []
    for n in (10_000, 160_000):
        path = tmp_path / f"{n}.csv"
        ids = np.arange(1, n + 1)
        path.write_text("source_id,x\n" + "\n".join(f"{i},{i}.5" for i in ids.tolist()) + "\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("xpbayes.archive.text_file.TEXT_BLOCK", 100_000)
            tracemalloc.start()
            runs = read_companion([path], FIELDS[:2], tmp_path / f"scratch{n}", rows_in_memory=5_000)
            aligned, known = runs.align(np.arange(n - 2000, n + 1))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert known.all() and aligned.columns["x"][-1] == n + 0.5
    assert peaks[1] < 1.5 * peaks[0], peaks


@pytest.mark.parametrize("order", ["ba", "ab"])
def test_a_column_that_only_some_files_have_is_missing_in_the_others_and_that_is_said(tmp_path, caplog, order):
    (tmp_path / "a.csv").write_text("source_id,x\n" + "\n".join(f"{i},1" for i in range(1, 50)) + "\n")
    (tmp_path / "b.csv").write_text("source_id,x,n\n" + "\n".join(f"{i},2,3" for i in range(30, 90)) + "\n")
    paths = [tmp_path / f"{name}.csv" for name in order]
    runs = read_companion(paths, FIELDS, tmp_path / "scratch", rows_in_memory=20)
    assert isinstance(runs, SortedRuns) and set(runs.columns) == {"source_id", "x", "n"}
    for table in (runs, read_companion(paths, FIELDS)):
        aligned, _ = table.align(np.array([1, 40, 80]))
        first = order == "ba"  # of a repeated star, the first counts
        assert_array_equal(aligned.columns["x"], [1, 2 if first else 1, 2])
        assert_array_equal(aligned.columns["n"], [-1, 3 if first else -1, 3])
    assert "a.csv: lacks n, which other files of its kind have" in caplog.text


def test_seen_ids_are_those_of_a_set():
    rng = np.random.default_rng(2)
    seen, known = SeenIds(), set()
    for _ in range(60):
        ids = rng.integers(0, 3000, rng.integers(0, 40)).astype(np.int64)
        expected = []
        for i in ids.tolist():
            expected.append(i in known)
            known.add(i)
        assert_array_equal(seen.add(ids), expected)
    assert_array_equal(seen.all(), sorted(known))
