"""The stars of a training run are the same whether the tables fit into memory or not."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from xpbayes.config import TrainingConfig
from xpbayes.data import stars as starfiles
from xpbayes.data.spectra_file import read_star_tables, write_star_table
from xpbayes.errors import InputError
from xpbayes.training import training_set as module
from xpbayes.training.training_set import n_rows, training_set, training_set_in_files

CONFIG = TrainingConfig(calibration_stars=20, held_out_stars=30)
MORE = CONFIG.model_copy(update={"calibration_stars": 400})
"""More than are kept aside."""


@pytest.fixture(scope="module")
def files(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    half = len(sample) // 2
    return [
        write_star_table(sample.take(rows), folder / f"{name}.parquet")
        for name, rows in (("a", slice(0, half)), ("b", slice(half, None)))
    ]


@pytest.fixture(scope="module")
def both(files, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STARS_AT_ONCE", 300)
        in_files = training_set_in_files(files, CONFIG, tmp_path_factory.mktemp("scratch"))
    return training_set(read_star_tables(files[0].parent), CONFIG, "the sample"), in_files


def test_the_same_stars(both):
    memory, files = both
    assert starfiles.are_in_files(files.stars)
    for a, b in zip(jax.tree.leaves(memory.stars), jax.tree.leaves(files.stars), strict=True):
        assert_array_equal(np.asarray(a), np.asarray(b))
    assert_array_equal(memory.table.source_id, files.table.source_id)
    assert memory.n_held_out == files.n_held_out > 0


def test_the_same_cuts_counted_once(both):
    memory, files = both
    assert [c for c in memory.table.cuts if c.removed] == [c for c in files.table.cuts if c.removed]


@pytest.mark.parametrize("side", ["aside", "held_out"])
def test_the_same_few_for_calibration_and_assessment(both, side):
    memory, files = (getattr(found, side) for found in both)
    assert len(memory) in (20, 30)
    assert_array_equal(memory.source_id, files.source_id)
    assert_array_equal(memory.xp_whitening, files.xp_whitening)


def test_sides_do_not_overlap(both):
    memory, _ = both
    ids = np.concatenate([memory.table.source_id, memory.aside.source_id, memory.held_out.source_id])
    assert len(np.unique(ids)) == len(ids)


def test_training_stars_stand_beside_few_kept_aside(files, both, tmp_path):
    """So many in all; none where enough, or none, are kept aside; the same from files."""
    table = read_star_tables(files[0].parent)
    assert len(both[0].beside) == 0
    assert len(training_set(table, MORE.model_copy(update={"calibration_fraction": 0.0}), "the sample").beside) == 0
    memory, in_files = training_set(table, MORE, "the sample"), training_set_in_files(files, MORE, tmp_path)
    assert 0 < len(memory.aside) < 400 and len(memory.aside) + len(memory.beside) == 400
    assert np.isin(memory.beside.source_id, memory.table.source_id).all()
    assert_array_equal(memory.beside.source_id, in_files.beside.source_id)
    assert_array_equal(memory.beside.xp_whitening, in_files.beside.xp_whitening)


def test_a_star_in_two_files_is_refused(files, sample, tmp_path):
    again = write_star_table(sample.take(slice(0, 40)), tmp_path / "c.parquet")
    with pytest.raises(InputError, match="source_ids occur in more than one table"):
        training_set_in_files([*files, again], CONFIG, tmp_path)


def test_too_few_stars_are_refused(files, tmp_path):
    with pytest.raises(InputError, match="training stars are left after the cuts, at least 200"):
        training_set_in_files(files, CONFIG.model_copy(update={"teff_max": 3.6}), tmp_path)


def test_rows_are_counted_from_footers(files, sample, tmp_path):
    (tmp_path / "none.parquet").write_bytes(b"not Parquet")
    assert n_rows([*files, tmp_path / "none.parquet"]) == len(sample)
