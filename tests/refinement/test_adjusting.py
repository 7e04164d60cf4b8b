"""Weights and stretches against worlds whose best answer is known."""

import numpy as np
import pytest

from xpbayes.refinement.adjusting import (
    MAX_WEIGHT,
    Adjustments,
    Interval,
    Refined,
    adjusted,
    between,
    fit_adjustments,
    held_back,
)

N, LABEL_ERROR = 800, 0.1
FIRST_KIND = np.arange(N) % 2 == 0
PLACES = np.random.default_rng(0).normal(size=(N, 4))  # two labels, sqrt(E), ln S/N
PLACES[:, 0] += np.where(FIRST_KIND, -4.0, 4.0)


def _world(seed, forward_sigma, refined_sigma, overconfident=1.0):
    """Two answers that err independently of each other, with (star, label) sigmas, and labels of the same stars."""
    rng = np.random.default_rng(seed)
    draw = rng.normal(size=(3, N, 2))
    shape = np.ones((N, 2))
    forward = Interval(forward_sigma * draw[0], forward_sigma * shape)
    refined = Interval(refined_sigma * draw[1], refined_sigma * shape / overconfident)
    return forward, refined, LABEL_ERROR * draw[2], np.full((N, 2), LABEL_ERROR)


def _found(world):
    forward, refined, *known = world
    return fit_adjustments(PLACES, np.ones(4), forward, refined, np.zeros((N, 2)), *known)


def test_independent_answers_are_weighed_by_their_variances():
    """Best is s_f^2 / (s_f^2 + s_r^2) = 0.8; one standard error less is asked for."""
    weight, _ = _found(_world(1, 1.0, 0.5)).at(PLACES)
    assert 0.7 < np.median(weight) < 0.8


def test_where_the_second_stage_is_worse_for_a_kind_it_hardly_counts_there():
    sigma = np.where(FIRST_KIND, 0.3, 3.0)[:, None]
    weight, _ = _found(_world(2, 1.0, sigma)).at(PLACES)
    assert np.median(weight[FIRST_KIND]) > 0.6
    assert np.median(weight[~FIRST_KIND]) < 0.35


@pytest.mark.parametrize("worse", [1.0, 1.5, 3.0])
def test_no_group_loses_to_the_forward_posterior(worse):
    """Judged on other stars than those that the weights were found on; the truth is 0."""
    sigma = np.where(FIRST_KIND, 0.3, worse)[:, None]
    found = _found(_world(3, 1.0, sigma))
    forward, refined, *_ = _world(4, 1.0, sigma)
    new = between(forward, refined, found.at(PLACES)[0])
    for group in (FIRST_KIND, ~FIRST_KIND):
        assert np.std(new.median[group]) < 1.05 * np.std(forward.median[group])
    assert np.std(new.median[FIRST_KIND]) < 0.5


def test_where_networks_disagree_less_is_expected_of_them():
    """A narrow kind whose labels are too poor to tell: half of its networks' moves are noise, as in the other kind's."""
    rng = np.random.default_rng(20)
    noisy = np.where(FIRST_KIND, 0.0, 1.0)[:, None]
    draw = rng.normal(size=(4, N, 2))
    truth, noise = 0.3 * draw[0], 0.3 * noisy * draw[1]
    forward, refined = Interval(0.0 * truth, 0.3 + 0.0 * truth), Interval(truth + noise, 0.2 + 0.0 * truth)
    known = truth + draw[2], np.ones((N, 2))
    apart = np.abs(0.3 * noisy * draw[3])
    weight, blind = (
        fit_adjustments(PLACES, np.ones(4), forward, refined, some, *known).at(PLACES)[0]
        for some in (apart, 0.0 * apart)
    )
    assert np.median(weight[~FIRST_KIND]) < 0.7 * np.median(weight[FIRST_KIND])
    best = np.where(noisy > 0, 0.5, 1.0)
    assert np.mean((weight - best) ** 2) < np.mean((blind - best) ** 2)


def test_a_second_stage_that_is_too_timid_goes_further():
    """It has moved half of the way to the label."""
    rng = np.random.default_rng(5)
    truth = rng.normal(size=(N, 2))
    forward, refined = Interval(0.0 * truth, 1.0 + 0.0 * truth), Interval(0.5 * truth, 0.5 + 0.0 * truth)
    weight, _ = fit_adjustments(
        PLACES, np.ones(4), forward, refined, np.zeros((N, 2)), truth, np.full((N, 2), 0.01)
    ).at(PLACES)
    np.testing.assert_allclose(weight, MAX_WEIGHT, rtol=1e-5)


def test_wrong_labels_do_not_decide():
    forward, refined, label, error = _world(6, 1.0, 0.5)
    label[:40] = 40.0 * np.sign(refined.median - forward.median)[:40]
    weight, _ = _found((forward, refined, label, error)).at(PLACES)
    assert np.median(weight) < 0.9


def test_few_stars_with_poor_labels_show_nothing():
    """Labels of errors far beyond both answers: the weight is lowered by what they cannot tell."""
    forward, refined, label, error = _world(7, 1.0, 0.5)
    few = slice(0, 200)
    poor = label[few] + 20.0 * np.random.default_rng(8).normal(size=(200, 2)), error[few] + 20.0
    some = [Interval(*(v[few] for v in of)) for of in (forward, refined)]
    weight, _ = fit_adjustments(PLACES[few], np.ones(4), *some, np.zeros((200, 2)), *poor).at(PLACES)
    good, _ = fit_adjustments(PLACES[few], np.ones(4), *some, np.zeros((200, 2)), label[few], error[few]).at(PLACES)
    assert np.median(weight) < np.median(good) - 0.1


def test_intervals_hold_by_snr():
    """Widths of the second stage are too small for faint stars alone."""
    overconfident = np.where(PLACES[:, 3] < 0.0, 2.0, 1.0)[:, None]
    found = _found(_world(9, 1.0, 0.5, overconfident))
    forward, refined, label, error = _world(10, 1.0, 0.5, overconfident)
    weight, stretch = found.at(PLACES)
    new = between(forward, refined, weight)
    inside = np.abs(new.median - label) < np.hypot(new.half * stretch, error)
    for third in np.array_split(np.argsort(PLACES[:, 3]), 3):
        np.testing.assert_allclose(inside[third].mean(axis=0), 0.683, atol=0.05)


def test_poor_labels_do_not_narrow_intervals():
    """Both answers are right about their widths; the labels' errors are five times as large and overstated by a tenth."""
    forward, refined, label, _ = _world(14, 1.0, 1.0)
    rng = np.random.default_rng(15)
    poor = label + 5.0 * rng.normal(size=label.shape), np.full(label.shape, 5.5)
    weight, stretch = fit_adjustments(PLACES, np.ones(4), forward, refined, np.zeros((N, 2)), *poor).at(PLACES)
    assert stretch.min() > 0.85
    assert weight.max() <= MAX_WEIGHT


@pytest.mark.parametrize(("edge", "half", "say"), [(0.0, 2.0, 1.0), (1.0, 2.0, 0.25), (0.5, 2.0, 0.5), (1.0, 0.5, 1.0)])
def test_at_the_edge_what_is_less_certain_has_less_say(edge, half, say):
    ones = np.ones((5, 2))
    of = Refined(ones, ones - half, ones + half, half * ones, half**2 * np.tile(np.eye(2), (5, 1, 1)), np.ones(5))
    new = held_back(of, Interval(0.0 * ones, ones), edge * ones)
    np.testing.assert_allclose(new.median, say)
    np.testing.assert_allclose([new.high - new.low, new.high - new.median], [2.0 * half * ones, half * ones])


def _refined(share):
    rng = np.random.default_rng(11)
    median, half = rng.normal(size=(5, 2)), rng.uniform(0.5, 1.0, (5, 2))
    covariance = np.einsum("si,sj,ij->sij", half, half, [[1.0, 0.3], [0.3, 1.0]])
    return Refined(median, median - 0.9 * half, median + 1.1 * half, half, covariance, np.full(5, share))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_at_the_ends_of_the_line_are_the_two_answers(weight):
    of, ones = _refined(1.0), np.ones((5, 2))
    forward = Interval(of.median + 1.0, 3.0 * ones)
    new = adjusted(of, forward, weight * ones, ones)
    np.testing.assert_allclose(new.median, of.median if weight else forward.median)
    np.testing.assert_allclose(0.5 * (new.high - new.low), 0.5 * (of.high - of.low) if weight else forward.half)
    np.testing.assert_allclose(new.std**2, np.diagonal(new.covariance, axis1=1, axis2=2))


def test_what_has_faded_into_the_forward_posterior_stays_it():
    of, ones = _refined(0.0), np.ones((5, 2))
    forward = Interval(of.median, 0.5 * (of.high - of.low))
    for mine, own in zip(adjusted(of, forward, 0.3 * ones, 1.7 * ones), of, strict=True):
        np.testing.assert_allclose(mine, own)


def test_too_few_stars_say_nothing():
    few = [Interval(*(v[:50] for v in of)) for of in _world(12, 1.0, 0.5)[:2]]
    assert fit_adjustments(PLACES[:50], np.ones(4), *few, *[np.zeros((50, 2))] * 2, np.ones((50, 2))) is None


def test_kinds_are_not_told_apart_by_dust():
    found = _found(_world(13, 1.0, 0.5))
    dusty = PLACES + [0.0, 0.0, 5.0, 0.0]
    assert isinstance(found, Adjustments)
    for mine, other in zip(found.at(PLACES), found.at(dusty), strict=True):
        np.testing.assert_array_equal(mine, other)
