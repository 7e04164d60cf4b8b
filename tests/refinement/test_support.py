"""Where the second stage has learned, and how it fades."""

import numpy as np
import pytest

from xpbayes.refinement.support import _smallest, among_labels, make_feature_support, share_of_second_stage

RNG = np.random.default_rng(5)
N = 20_000


@pytest.fixture(scope="module")
def places():
    return RNG.normal(size=(N, 3)) * [0.5, 0.3, 2.0]


LABELS = RNG.normal(size=(6000, 2)) * [0.5, 0.3]
ERROR = np.full(LABELS.shape, 0.01)
INSIDE = np.zeros(2), np.full(2, 0.05)
"""A mode in the middle of all labels, and its errors."""


@pytest.fixture(scope="module")
def support(places):
    return make_feature_support(places, RNG.uniform(0.5, 1.0, N), LABELS, ERROR)


def _share(support, places, residual):
    """Of stars whose modes lie among the labels."""
    return share_of_second_stage(support, places, residual, *(np.tile(v, (len(places), 1)) for v in INSIDE))[0]


def test_those_that_it_learned_from_have_all_of_it(support, places):
    share = _share(support, places[:4000], np.full(4000, 0.7))
    assert np.mean(share == 1.0) > 0.99
    assert np.mean(share < 0.5) < 2e-3 + 4 * np.sqrt(1e-3 / 4000)


def test_it_fades_with_distance_and_ends(support):
    away = np.linspace(0.0, 8.0, 60)[:, None] * [0.5, 0.0, 0.0]
    share = _share(support, away, np.full(60, 0.7))
    assert share[0] == 1.0
    assert share[-1] == 0.0
    assert np.all(np.diff(share) <= 0.05)  # distances to single stars go up and down a little


def test_a_spectrum_like_no_other_has_nothing_of_it(support):
    share = _share(support, np.zeros((3, 3)), np.array([0.9, 1.0, 3.0]))
    assert share[0] > share[1] > share[2] == 0.0


def test_what_is_not_finite_has_nothing_of_it(support):
    places = np.zeros((2, 3))
    places[0, 1] = np.nan
    np.testing.assert_array_equal(_share(support, places, np.array([0.5, np.nan])), [0.0, 0.0])


def _among_labels(support, labels, sigma):
    """Share of stars that are in no other way unlike those that were learned from, at given places among the labels."""
    modes = labels + sigma * RNG.normal(size=labels.shape)
    n = len(labels)
    return share_of_second_stage(support, np.zeros((n, 3)), np.full(n, 0.7), modes, np.full(modes.shape, sigma))[0]


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.2])
def test_stars_like_those_learned_from_keep_it_at_any_noise(support, sigma):
    """Modes scatter about the labels by as much as their errors say, thin parts of the sample included."""
    other = np.random.default_rng(1).normal(size=(2000, 2)) * [0.5, 0.3]
    share = _among_labels(support, other, sigma)
    assert np.mean(share) > 0.97
    assert np.mean(share == 0.0) < 0.01


def test_a_kind_that_was_left_out_has_nothing_of_it(places):
    """Its inferred place is one where noisy copies of others were seen; no measured label is near in units of its error."""
    known = LABELS[LABELS[:, 0] > -0.5]
    without = make_feature_support(places, RNG.uniform(0.5, 1.0, N), known, ERROR[: len(known)])
    left_out = np.column_stack([RNG.uniform(-1.2, -0.8, 500), 0.3 * RNG.normal(size=500)])
    assert np.mean(_among_labels(without, left_out, 0.05)) < 0.02
    assert np.mean(_among_labels(without, left_out, 1.0)) > 0.7  # so noisy that it may as well be one of the others


def test_distance_is_in_units_of_both_errors(places):
    labels = np.tile([[0.0, 0.0]], (50, 1))
    one_place = make_feature_support(places, RNG.uniform(0.5, 1.0, N), labels, np.full((50, 2), 0.3))
    mode, sigma = np.array([[1.0, 0.0], [1.0, 2.0], [np.nan, 0.0]]), np.full((3, 2), 0.4)
    np.testing.assert_allclose(among_labels(one_place, mode, sigma).distance, [2.0, np.sqrt(20.0), np.inf], rtol=1e-5)


def test_one_wrong_label_is_no_support(places):
    labels = np.concatenate([np.zeros((200, 2)), [[5.0, 5.0]]]) + 1e-3 * RNG.normal(size=(201, 2))
    support = make_feature_support(places, RNG.uniform(0.5, 1.0, N), labels, np.full((201, 2), 0.05))
    there = np.array([[5.0, 5.0]])
    assert among_labels(support, there, np.full((1, 2), 0.05)).distance[0] > 1.0


def test_at_the_edge_labels_lie_to_one_side(places):
    """Labels fill a square; about a mode on its edge half of a normal distribution is left, with a mean of 0.8 sigma."""
    labels = RNG.uniform(-1.0, 1.0, (6000, 2))
    square = make_feature_support(places, RNG.uniform(0.5, 1.0, N), labels, np.full((6000, 2), 0.01))
    mode, sigma = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, -1.2], [np.nan, 0.0]]), np.full((4, 2), 0.2)
    offset = among_labels(square, mode, sigma).offset
    np.testing.assert_allclose(offset, [[0.0, 0.0], [0.8, 0.0], [0.0, 1.53], [np.inf] * 2], atol=0.2)
    edge = share_of_second_stage(square, np.zeros((3, 3)), np.full(3, 0.7), mode[:3], sigma[:3])[1]
    assert edge[0].max() == edge[1, 1] == 0.0
    assert 0.2 < edge[1, 0] < edge[2, 1] == 1.0


def test_the_smallest_are_those_of_a_sort_and_leave_values_as_they_were():
    values = RNG.random((50, 40)).astype(np.float32)
    values[0, 1:], values[1] = np.inf, values[2]
    before, expected = values.copy(), np.sort(values, axis=1)[:, :3]
    np.testing.assert_array_equal(np.stack(_smallest(values, 3), axis=1), expected)
    np.testing.assert_array_equal(values, before)
