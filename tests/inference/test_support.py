"""How far outside: zero in the middle, one at the rim, growing outwards, and not fooled by the mixture's bridges."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from xpbayes.inference.support import extrapolation, extrapolation_of, held_inside, make_support
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


@pytest.fixture(scope="module")
def dwarfs():
    """One kind of star whose prior is a Gaussian: what fluxes alone would say is known in closed form."""
    labels = RNG.normal([5.5, -0.2, 4.4], [0.4, 0.3, 0.1], (4000, 3))
    prior = fit_label_prior(labels, 1, 0)
    return labels, prior, make_support(prior, labels, labels.std(axis=0))


def _posterior(dwarfs, from_flux, sigma):
    """Mode of prior times a flux likelihood, Gaussian both; the likelihood's covariance."""
    labels = dwarfs[0]
    weight, prior_weight = np.diag(1 / np.asarray(sigma) ** 2), np.linalg.inv(np.cov(labels.T))
    mode = np.linalg.solve(weight + prior_weight, weight @ from_flux + prior_weight @ labels.mean(axis=0))
    return mode[None], np.diag(np.asarray(sigma) ** 2)[None]


def test_a_star_that_only_the_prior_holds_inside_is_seen(dwarfs):
    """[Fe/H] = -2.6 by its fluxes, eight of the sample's sigma out, with an error of 0.5: the mode lies inside."""
    _, prior, support = dwarfs
    mode, covariance = _posterior(dwarfs, np.array([5.5, -2.6, 4.4]), (0.05, 0.5, 0.02))
    pull = held_inside(support, prior, mode, covariance)
    assert extrapolation(support, prior, mode)[0] < 1
    np.testing.assert_allclose(pull, (mode[0, 1] + 2.6) / 0.5, rtol=0.05)
    found = SimpleNamespace(estimate=np.append(mode, [[0.1, 1.0]], axis=1), covariance=np.zeros((1, 5, 5)),
                            unbounded=np.array([[0.1, 0.02]]))  # fmt: skip
    found.covariance[:, :3, :3] = covariance
    np.testing.assert_allclose(extrapolation_of(support, prior, found), pull / 2, rtol=1e-5)


def test_noise_within_the_range_is_not_held(dwarfs):
    """A faint star whose fluxes say little: pulled as far, but from a place where training stars are."""
    _, prior, support = dwarfs
    mode, covariance = _posterior(dwarfs, np.array([5.5, 0.5, 4.4]), (0.2, 1.0, 0.1))
    assert held_inside(support, prior, mode, covariance)[0] == 0


def test_bluer_than_without_dust_is_outside(dwarfs):
    labels, prior, support = dwarfs
    estimate, covariance = np.tile([5.5, -0.2, 4.4, 0.0, 1.0], (3, 1)), np.tile(1e-4 * np.eye(5), (3, 1, 1))
    found = SimpleNamespace(estimate=estimate, covariance=covariance,
                            unbounded=np.array([[-0.1, 0.02], [-0.02, 0.02], [np.nan, np.nan]]))  # fmt: skip
    score = extrapolation_of(support, prior, found)
    assert score[0] == np.float32(2.5) and score[1] < 1 and score[2] < 1


def test_no_solution_has_no_score(dwarfs):
    _, prior, support = dwarfs
    found = SimpleNamespace(estimate=np.full((1, 5), np.nan), covariance=np.full((1, 5, 5), np.nan),
                            unbounded=np.full((1, 2), np.nan))  # fmt: skip
    assert np.isnan(extrapolation_of(support, prior, found)).all()


def test_it_is_saved_with_the_model(trained, model_folder):
    back = load_model(model_folder).support
    for a, b in zip(jax.tree.leaves(trained.support), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
