import numpy as np

from tests.conftest import with_columns
from xpbayes.training.training_set import training_cuts


def test_every_cut_is_counted(sample):
    teff = sample.column("teff").copy()
    teff[:5] = 9.0
    kept = training_cuts(with_columns(sample, teff=teff), ("teff", "feh", "logg"), 8.5)
    removed = sum(c.removed for c in kept.cuts[len(sample.cuts) :])
    assert len(sample) - removed == len(kept) == kept.cuts[-1].left
    assert (kept.column("teff") < 8.5).all() and np.isfinite(kept.labels(("teff", "feh", "logg"))[0]).all()
