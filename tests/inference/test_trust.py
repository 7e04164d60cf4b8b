"""Additive ln odds: what they say between knots, beyond them, and of a star without a solution."""

import numpy as np
from numpy.testing import assert_allclose

from xpbayes.inference.trust import Trust, feature_names

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
    assert len(feature_names(("teff", "feh", "logg"))) == 2 * 3 + 14 == len(set(feature_names(("teff", "feh", "logg"))))
