"""Where the second stage has learned, and how it fades."""

import numpy as np
import pytest

from xpbayes.refinement.support import make_feature_support, share_of_second_stage

RNG = np.random.default_rng(5)
N = 20_000


@pytest.fixture(scope="module")
def places():
    return RNG.normal(size=(N, 3)) * [0.5, 0.3, 2.0]


@pytest.fixture(scope="module")
def support(places):
    return make_feature_support(places, RNG.uniform(0.5, 1.0, N))


def test_those_that_it_learned_from_have_all_of_it(support, places):
    share = share_of_second_stage(support, places, np.full(N, 0.7))
    assert np.mean(share == 1.0) > 0.99
    assert np.mean(share < 0.5) < 2e-3 + 4 * np.sqrt(1e-3 / N)


def test_it_fades_with_distance_and_ends(support):
    away = np.linspace(0.0, 8.0, 60)[:, None] * [0.5, 0.0, 0.0]
    share = share_of_second_stage(support, away, np.full(60, 0.7))
    assert share[0] == 1.0
    assert share[-1] == 0.0
    assert np.all(np.diff(share) <= 0.05)  # distances to single stars go up and down a little


def test_a_spectrum_like_no_other_has_nothing_of_it(support):
    share = share_of_second_stage(support, np.zeros((3, 3)), np.array([0.9, 1.0, 3.0]))
    assert share[0] > share[1] > share[2] == 0.0


def test_what_is_not_finite_has_nothing_of_it(support):
    places = np.zeros((2, 3))
    places[0, 1] = np.nan
    np.testing.assert_array_equal(share_of_second_stage(support, places, np.array([0.5, np.nan])), [0.0, 0.0])
