"""What stars kept aside and sources made to be refused teach: judged medians, knots, and the fit of additive odds."""

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import expit, ndtr

from xpbayes.data.stars import ParallaxDoubt, Stars
from xpbayes.inference.references import References
from xpbayes.inference.trust import Trust
from xpbayes.training.trust import Case, _basis, _fit, _knots, judged, with_poorer_parallaxes


def _case(pull, reference_error=0.0, use_parallax=False):
    """Stars of unit errors, whose medians are so far from what is known; ln parallaxes count."""
    median = np.zeros((len(pull), 3)) + [0.0, 0.0, 1.0]
    published = SimpleNamespace(median=median, low=median - [1.0, 1.0, 0.5], high=median + [1.0, 2.0, 0.5])
    known = References.apart(np.array(pull, float), np.full((len(pull), 3), reference_error**2))
    return Case(None, None, published, use_parallax, known)


def test_a_median_is_right_within_two_of_its_errors_on_the_side_of_the_truth():
    found = judged(_case([[1.5, 3.5, 0.0], [-2.5, -2.5, np.log(0.1)]]))
    assert (found.right[0] > 20 * found.wrong[0]).all()
    assert (found.right[1] < 0.05 * found.wrong[1]).all()
    assert_allclose(found.weight, 1.0)


def test_a_reference_with_large_errors_tells_little_and_a_used_parallax_is_not_judged():
    sharp, blunt = (judged(_case([[2.5, 0.0, 0.0]] * 2, error, use_parallax=True)) for error in (0.1, 10.0))
    odds = [np.log(found.right / found.wrong)[0, :2] for found in (sharp, blunt)]
    assert (np.abs(odds[0]) > 3).all()
    assert (np.abs(odds[1]) < 0.3).all()
    assert (sharp.weight[:, 2] == 0).all()
    assert judged(_case([[0.0] * 3] * 2, use_parallax=True), parallax=True).weight[:, 2].all()
    nobody = _case([[0.0] * 3] * 2)
    nobody.known.variance[0, 1] = np.inf
    assert judged(nobody).weight[0, 1] == 0.0


def test_the_share_within_errors_is_found_behind_errors_twice_as_large():
    random, n, share = np.random.default_rng(3), 10_000, 0.8
    within = np.clip(random.standard_normal(n), -1.9, 1.9)
    beyond = random.choice([-1.0, 1.0], n) * 2.0 / random.uniform(0.1, 1.0, n)
    pull = np.where(random.random(n) < share, within, beyond)
    case = _case(np.zeros((n, 3)), reference_error=2.0)
    case.known.value[:, 0] += pull + 2.0 * random.standard_normal(n)
    published = SimpleNamespace(**{k: np.repeat(v[:1], n, axis=0) for k, v in vars(case.published).items()})
    published.high[:, 0] = published.median[:, 0] + 1.0
    told = judged(case._replace(published=published))
    offset, _ = _fit(np.zeros((n, 1)), told.right[:, 0], told.wrong[:, 0], told.weight[:, 0])
    assert_allclose(expit(offset), share, atol=0.04)


def test_poorer_parallaxes_have_the_errors_that_they_state_but_where_they_are_spurious():
    n, random = 40_000, np.random.default_rng(4)
    doubt = ParallaxDoubt(np.where(np.arange(n) % 2, 0.3, 0.0), np.full(n, 0.125))
    one = np.ones(n, np.float32)
    stars = Stars(one, one, one, 5.0 * one, 20.0 * one, one, one, one, one, one, doubt)
    found = with_poorer_parallaxes(stars, random)
    assert (np.asarray(found.parallax_inv_error) < 20.0 / np.sqrt(2.0) + 1e-5).all()
    true = np.asarray(stars.parallax) + 0.05 * random.standard_normal(n)
    pull = (np.asarray(found.parallax) - true) * np.asarray(found.parallax_inv_error)
    sound = np.arange(n) % 2 == 0
    assert_allclose(pull[sound].std(), 1.0, atol=0.02)
    assert_allclose(np.mean(np.abs(pull[~sound]) > 4.0), 0.3 * 2 * ndtr(-0.5), atol=0.02)


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
    likelihoods = target.astype(float), (~target).astype(float)
    offset, values = _fit(_basis(features, knots), *likelihoods, np.ones(len(features)))
    found = Trust(knots, values.reshape(1, 2, 9), np.array([offset])).probabilities(features)[:, 0]
    assert np.abs(found - truth).mean() < 0.02
