import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal

from tests.conftest import with_other_curve
from xpbayes.analysis import run_inputs
from xpbayes.analysis.run_inputs import Run, find_inputs, open_run, open_stars
from xpbayes.data.join import Lookup
from xpbayes.data.spectra_file import write_star_table
from xpbayes.errors import InputError
from xpbayes.production.reader import open_catalogue


@pytest.fixture(scope="module")
def folder(analysed):
    return analysed


def test_stars_are_found_by_source_id_wherever_they_are():
    source_id = np.array([2**60 + 5, 7, 2**60 + 1, 7, 3])
    asked = np.array([3, 4, 2**60 + 1, 7, 2**60 + 2, 2**60 + 5])
    assert_array_equal(Lookup.of(source_id).rows(asked), [4, -1, 2, 1, -1, 0])  # of repeated ones, the first
    assert_array_equal(Lookup.of(np.zeros(0, np.int64)).rows(asked), np.full(6, -1))


def test_rows_are_joined_with_the_star_table_across_blocks(folder, monkeypatch):
    """Against a dictionary; blocks of 37 rows must not matter, nor the order of the star table."""
    monkeypatch.setattr(run_inputs, "ROWS_AT_ONCE", 37)
    run = open_run(find_inputs(folder, {}))
    table = pq.read_table(folder / "stars.parquet", columns=["source_id", "teff", "phot_g_mean_mag"]).to_pydict()
    teff = dict(zip(table["source_id"], table["teff"], strict=True))
    seen = 0
    for rows in run.rows(("source_id", "chi2_opt"), ("teff", "no_such_column")):
        expected = [np.nan if teff[s] is None else teff[s] for s in rows["source_id"].tolist()]
        assert_array_equal(rows.joined["teff"], np.asarray(expected))
        assert np.isnan(rows.joined["no_such_column"]).all() and len(rows) <= 37
        seen += len(rows)
    assert seen == open_catalogue(folder / "catalogue.parquet").n_rows


def test_every_row_of_a_catalogue_is_read_once_however_small_its_row_groups(folder, tmp_path):
    table = pq.read_table(folder / "catalogue.parquet")
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=30)
    catalogue = open_catalogue(tmp_path / "c.parquet")
    read = list(catalogue.tables(["source_id"], 70))
    assert [len(t) for t in read[:4]] == [70, 20, 70, 20]  # three groups of 30 are read together
    assert_array_equal(np.concatenate([t["source_id"].to_numpy() for t in read]), table["source_id"].to_numpy())


def test_a_folder_of_star_tables_is_one(sample, tmp_path):
    for k in range(3):
        write_star_table(sample.take(np.arange(10 * k, 10 * k + 10)), tmp_path / f"{k}.parquet")
    stars = open_stars(tmp_path)
    assert stars.n_rows == 30
    assert_array_equal(stars.columns(("source_id",))["source_id"], sample.source_id[:30])
    assert_array_equal(stars.sampled_ids(None), sample.source_id[:30])
    assert_array_equal(stars.sampled_ids(15), sample.source_id[[*range(10), *range(20, 30)]])
    batches = list(stars.batches())
    assert_array_equal(np.concatenate([b.flux for b in batches]), sample.flux[:30])
    assert_array_equal(np.concatenate([b.xp_whitening for b in batches]), sample.xp_whitening[:30])


class TestBadInput:
    def test_nothing_there(self, tmp_path):
        with pytest.raises(InputError, match="neither a model"):
            find_inputs(tmp_path, {})
        with pytest.raises(InputError, match="no folder of a run"):
            find_inputs(tmp_path / "none", {})
        with pytest.raises(InputError, match="check --dust-map"):
            find_inputs(tmp_path, {"dust_map": tmp_path / "none"})

    def test_a_catalogue_that_lacks_a_column(self, folder, tmp_path):
        table = pq.read_table(folder / "catalogue.parquet")
        about = table.schema.metadata
        table = table.rename_columns({"chi2_opt": "chi2_optimum"}).replace_schema_metadata(about)
        pq.write_table(table, tmp_path / "catalogue.parquet")
        run = Run(catalogue=open_catalogue(tmp_path / "catalogue.parquet"))
        with pytest.raises(InputError, match=r"no column 'chi2_opt' \(did you mean 'chi2_optimum'\?\)"):
            list(run.rows(("chi2_opt",), ()))

    def test_an_unfinished_catalogue(self, tmp_path):
        (tmp_path / "manifest.json").write_text(
            json.dumps({"version": 1, "identity": {"about": {"labels": ["teff"]}}, "complete": False})
        )
        with pytest.raises(InputError, match="is not finished; go on with 'xpbayes infer"):
            open_run({"catalogue": tmp_path})

    def test_a_catalogue_of_another_model(self, folder, trained, tmp_path):
        from xpbayes.production.model_file import save_model

        other = with_other_curve(trained)
        save_model(other, tmp_path / "model")
        with pytest.raises(InputError, match="made with another model"):
            open_run({"model": tmp_path / "model", "catalogue": folder / "catalogue.parquet"})

    def test_a_catalogue_for_a_star_table(self, folder):
        with pytest.raises(InputError, match="holds a catalogue, not a star table"):
            open_stars(folder / "catalogue.parquet")
