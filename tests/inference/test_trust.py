"""Additive ln odds: what they say between knots, beyond them, and of a star without a solution."""

from types import SimpleNamespace

import numpy as np
from numpy.testing import assert_allclose

from xpbayes.inference.trust import PAIRS, Trust, feature_names, with_second_sources

TRUST = Trust(
    np.array([[0.0, 1.0, 2.0], [-1.0, 0.0, 1.0]]),
    np.array([[[0.0, 1.0, 1.0], [2.0, 0.0, 0.0]], [[0.0, 0.0, -4.0], [0.0, 0.0, 0.0]]]),
    np.array([-1.0, 2.0]),
)


def test_odds_are_sums_of_functions_that_end_at_the_outermost_knots():
    features = np.array([[0.5, 1.0], [99.0, -99.0], [np.nan, 0.0]])
    expected = 1 / (1 + np.exp(-np.array([[-0.5, 2.0], [2.0, -2.0]])))
    assert_allclose(TRUST.probabilities(features)[:2], expected, rtol=1e-6)
    assert np.isnan(TRUST.probabilities(features)[2]).all()
    assert TRUST.probabilities(features[:0]).shape == (0, 2)


def test_every_feature_has_a_name():
    assert len(feature_names(("teff", "feh", "logg"))) == 2 * 3 + 15 == len(set(feature_names(("teff", "feh", "logg"))))


def test_models_that_know_fewer_features_look_at_theirs():
    more = np.array([[0.5, 1.0, 7.0], [0.5, 1.0, np.nan]])
    assert_allclose(TRUST.probabilities(more), TRUST.probabilities(more[:, :2]))


def test_a_second_source_takes_reliability_where_its_posterior_is_elsewhere():
    """Three stars: surely a pair whose log g is 4 sigma off, as likely a pair as none, not compared."""
    evens = np.log(1 / PAIRS - 1)
    center = np.array([[5.0, 0.0, 4.4, 0.1, 1.0]] * 3)
    median = center - [0.0, 0.0, 0.4, 0.0, 0.5]
    half = np.array([0.1, 0.1, 0.1, 0.1, 0.01])
    pair = SimpleNamespace(
        ln_odds=np.array([50.0, evens, np.nan]), estimate=center, error=np.tile([0.1, 0.1, 0.01, 1e-4, 0.1], (3, 1))
    )
    published = SimpleNamespace(median=median, low=median - half, high=median + half, pair=pair)
    single = np.full((3, 6), 0.6, np.float32)
    found = with_second_sources(single, published)
    assert_allclose(found[:, [0, 5]], 0.6, err_msg="nothing else")
    assert_allclose(found[0, 1:5], [0.9545, 0.9545, 0.0, 1.0], atol=1e-4)
    assert_allclose(found[1, 1:5], [0.7772, 0.7772, 0.3, 0.8], atol=1e-4)
    assert_allclose(found[2], 0.6)
    assert with_second_sources(single, SimpleNamespace(pair=None)) is single
