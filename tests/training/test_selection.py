import numpy as np
import pytest

from tests.conftest import with_columns
from xpbayes.training.training_set import most_removed, training_cuts


def test_every_cut_is_counted(sample):
    teff = sample.column("teff").copy()
    teff[:5] = 9.0
    kept = training_cuts(with_columns(sample, teff=teff), ("teff", "feh", "logg"), 8.5)
    removed = sum(c.removed for c in kept.cuts[len(sample.cuts) :])
    assert len(sample) - removed == len(kept) == kept.cuts[-1].left
    assert (kept.column("teff") < 8.5).all() and np.isfinite(kept.labels(("teff", "feh", "logg"))[0]).all()


@pytest.mark.parametrize(("label", "value"), [("teff", -9.999), ("teff", 5800.0), ("feh", -9999.0), ("logg", 99.0)])
def test_labels_that_nobody_measured_are_missing(sample, label, value):
    values = sample.column(label).copy()
    values[:5] = value
    names = ("teff", "feh", "logg")
    kept = training_cuts(with_columns(sample, **{label: values}), names)
    removed = {cut.what: cut.removed for cut in kept.cuts[len(sample.cuts) :]}
    assert [count for what, count in removed.items() if what.startswith(f"{label} outside")] == [5]
    assert len(kept) == len(training_cuts(sample.take(np.arange(5, len(sample))), names))


def test_what_took_most_stars_is_said_of_this_run(sample):
    """The bundled stars' own history has larger cuts."""
    few = with_columns(sample, feh=np.full(len(sample), np.nan)).take(np.arange(20), "all others")
    kept = training_cuts(few, ("teff", "feh", "logg"))
    assert most_removed(kept.cuts) == "; most others went with 'a label or its error is missing (teff, feh, logg)', 20"
