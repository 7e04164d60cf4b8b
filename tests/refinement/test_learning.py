"""What networks learn from made-up lessons whose truth is known."""

from dataclasses import dataclass

import numpy as np
import pytest

from xpbayes.config import RefinementConfig
from xpbayes.refinement.learning import Lessons, learn
from xpbayes.refinement.refined import ensemble, quantiles

QUICK = RefinementConfig(members=2, hidden=(24,), epochs=12, batch_size=128, dropout=0.0)
N, N_FEATURES = 4000, 6
TRUE_SCATTER, LABEL_ERROR, FORWARD_ERROR = 0.3, 0.6, 1.0


@dataclass
class World:
    """Offsets of the truth from the mode are 0.8 times the first feature, and scatter by 0.3; their labels by 0.6 more."""

    features: np.ndarray
    truth: np.ndarray
    lessons: Lessons


def _world(seed: int, *, shuffled: bool = False) -> World:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(N, N_FEATURES)).astype(np.float32)
    truth = 0.8 * features[:, :1] + TRUE_SCATTER * rng.normal(size=(N, 1))
    if shuffled:
        features = features[rng.permutation(N)]
    measured = truth + LABEL_ERROR * rng.normal(size=(N, 1))
    errors = (np.full((N, 1), value) for value in (LABEL_ERROR, FORWARD_ERROR))
    return World(features, truth, Lessons(features, measured, *errors))


@pytest.fixture(scope="module")
def learned():
    return learn(_world(0).lessons, np.ones(1), QUICK)


def _median_and_half(nets, world):
    of = ensemble(nets, world.features, np.zeros((N, 1)), world.lessons.sigma)
    low, median, high = quantiles(of, (0.1587, 0.5, 0.8413))
    return median, 0.5 * (high - low)


def test_the_errors_of_labels_are_not_in_what_is_learned(learned):
    """Widths are the truth's scatter; with the labels' errors in them they would be 0.67."""
    new = _world(1)
    median, half = _median_and_half(learned, new)
    assert np.std(median - new.truth) == pytest.approx(TRUE_SCATTER, rel=0.05)
    assert np.median(half) == pytest.approx(TRUE_SCATTER, rel=0.12)


def test_intervals_hold(learned):
    new = _world(2)
    median, half = _median_and_half(learned, new)
    inside = np.mean(np.abs(median - new.truth) < half)
    assert inside == pytest.approx(0.683, abs=0.05)


def test_features_that_tell_nothing_give_the_forward_posterior_back():
    """Learned from shuffled features, the answer is the offsets' own distribution: their mean 0 and their scatter."""
    nets = learn(_world(3, shuffled=True).lessons, np.ones(1), QUICK)
    median, half = _median_and_half(nets, _world(4))
    spread = np.hypot(0.8, TRUE_SCATTER)
    assert np.std(median) < 0.2 * spread
    assert np.median(half) == pytest.approx(spread, rel=0.15)


def test_rows_that_are_not_finite_teach_nothing():
    world = _world(5)
    features, offset = world.lessons.features.copy(), world.lessons.offset.copy()
    features[0, 0], offset[1, 0] = np.nan, np.inf
    usable = world.lessons._replace(features=features, offset=offset).usable
    np.testing.assert_array_equal(np.flatnonzero(~usable), [0, 1])
