"""What stars kept aside and sources made to be refused teach: judged medians, knots, and the fit of additive odds."""

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import expit

from xpbayes.inference.references import References
from xpbayes.inference.trust import Trust
from xpbayes.training.trust import Case, _basis, _fit, _knots, judged


def _case(pull, reference_error=0.0, use_parallax=False):
    """Two stars of unit errors, whose medians are so far from what is known; ln parallaxes count."""
    median = np.zeros((2, 3)) + [0.0, 0.0, 1.0]
    published = SimpleNamespace(median=median, low=median - [1.0, 1.0, 0.5], high=median + [1.0, 2.0, 0.5])
    known = References(np.array(pull, float), np.full((2, 3), reference_error**2))
    return Case(None, None, published, use_parallax, known)


def test_a_median_is_right_within_two_of_its_errors_on_the_side_of_the_truth():
    found = judged(_case([[1.9, 3.9, 0.0], [-2.1, -2.1, np.log(0.1)]]))
    assert found.right.tolist() == [[True, True, True], [False, False, False]]
    assert_allclose(found.weight, 1.0)


def test_a_reference_with_large_errors_tells_little_and_a_used_parallax_is_not_judged():
    found = judged(_case([[2.5, 0.0, 0.0]] * 2, reference_error=1.0, use_parallax=True))
    assert found.right[0, 0], "within 2 of both errors together"
    assert_allclose(found.weight[0, :2], 0.25)
    assert (found.weight[:, 2] == 0).all()
    nobody = _case([[0.0] * 3] * 2)
    nobody.known.variance[0, 1] = np.inf
    assert judged(nobody).weight[0, 1] == 0.0


def test_knots_rise_even_where_a_feature_is_constant():
    features = np.column_stack([np.linspace(0, 1, 100), np.zeros(100), np.arange(100) % 2])
    assert (np.diff(_knots(features, np.arange(100) >= 60), axis=1) > 0).all()


@pytest.mark.parametrize("balance", [1.0, 0.0])
def test_additive_odds_are_found_and_one_class_alone_is_no_trouble(balance):
    random = np.random.default_rng(0)
    features = random.uniform(-2, 2, (20_000, 2))
    truth = expit(np.abs(features[:, 0]) - 2.0) * balance
    target = random.random(len(features)) < truth
    knots = np.tile(np.linspace(-2, 2, 9), (2, 1))
    offset, values = _fit(_basis(features, knots), target, np.ones(len(features)))
    found = Trust(knots, values.reshape(1, 2, 9), np.array([offset])).probabilities(features)[:, 0]
    assert np.abs(found - truth).mean() < 0.02
