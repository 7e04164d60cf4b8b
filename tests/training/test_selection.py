import numpy as np
from numpy.testing import assert_array_equal

from tests.conftest import with_columns
from xpbayes.training.selection import held_out_by_source_id, training_cuts

IDS = np.arange(20_000, dtype=np.int64) * 4_398_046_511_104 + 17


def test_split_belongs_to_the_star_not_the_table():
    order = np.random.default_rng(0).permutation(len(IDS))
    assert_array_equal(held_out_by_source_id(IDS, 0.2)[order], held_out_by_source_id(IDS[order], 0.2))


def test_share_is_as_asked():
    share = held_out_by_source_id(IDS, 0.2).mean()
    assert abs(share - 0.2) < 4 * np.sqrt(0.2 * 0.8 / len(IDS))  # 4 sigma of a binomial share


def test_another_seed_is_an_independent_split():
    both = (held_out_by_source_id(IDS, 0.2, 0) & held_out_by_source_id(IDS, 0.2, 1)).mean()
    assert abs(both - 0.04) < 4 * np.sqrt(0.04 * 0.96 / len(IDS))


def test_a_larger_fraction_contains_the_smaller():
    small, large = held_out_by_source_id(IDS, 0.1), held_out_by_source_id(IDS, 0.3)
    assert np.all(large[small])


def test_every_cut_is_counted(sample):
    teff = sample.column("teff").copy()
    teff[:5] = 9.0
    kept = training_cuts(with_columns(sample, teff=teff), ("teff", "feh", "logg"), 8.5)
    removed = sum(c.removed for c in kept.cuts[len(sample.cuts) :])
    assert len(sample) - removed == len(kept) == kept.cuts[-1].left
    assert (kept.column("teff") < 8.5).all() and np.isfinite(kept.labels(("teff", "feh", "logg"))[0]).all()
