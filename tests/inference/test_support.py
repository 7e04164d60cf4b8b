"""How far outside: zero in the middle, one at the rim, growing outwards, and not fooled by the mixture's bridges."""

import jax
import numpy as np
import pytest

from xpbayes.inference.support import extrapolation, make_support
from xpbayes.production.model_file import load_model
from xpbayes.training.learn import fit_label_prior

RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def two_islands():
    """Dwarfs and giants with nothing in between, and a mixture of one Gaussian that covers the gap."""
    labels = np.concatenate([RNG.normal([5.5, 0, 4.4], [0.4, 0.2, 0.1], (1500, 3)),
                             RNG.normal([4.6, 0, 1.4], [0.2, 0.2, 0.2], (1500, 3))])  # fmt: skip
    prior = fit_label_prior(labels, 1, 0)
    return labels, prior, make_support(prior, labels, labels.std(axis=0))


def test_training_stars_are_inside(two_islands):
    labels, prior, support = two_islands
    score = extrapolation(support, prior, labels)
    assert score.dtype == np.float32 and np.median(score) < 0.5
    assert np.mean(score > 1) < 0.01


def test_a_gap_that_the_mixture_bridges_is_outside(two_islands):
    _, prior, support = two_islands
    gap, island = np.array([[5.05, 0, 2.9]]), np.array([[5.5, 0, 4.4]])
    assert extrapolation(support, prior, gap)[0] > 1 > extrapolation(support, prior, island)[0]


def test_farther_is_worse(two_islands):
    _, prior, support = two_islands
    path = np.array([5.5, 0, 4.4]) + np.linspace(0, 1, 9)[:, None] * np.array([4.0, 0, 0])
    score = extrapolation(support, prior, path)
    assert np.all(np.diff(score[2:]) > 0) and score[-1] > 3


def test_missing_labels_are_nan_and_batching_does_not_matter(two_islands):
    labels, prior, support = two_islands
    some = labels[:300].copy()
    some[7, 1] = np.nan
    score = extrapolation(support, prior, some)
    assert np.isnan(score[7]) and np.isfinite(np.delete(score, 7)).all()
    np.testing.assert_allclose(extrapolation(support, prior, some[100:110]), score[100:110], rtol=1e-5)
    assert extrapolation(support, prior, some[:0]).shape == (0,)


def test_it_is_saved_with_the_model(trained, model_folder):
    back = load_model(model_folder).support
    for a, b in zip(jax.tree.leaves(trained.support), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
