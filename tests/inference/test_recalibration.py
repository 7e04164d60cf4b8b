"""Calibration of label posteriors: planted offsets and widths come back, and intervals then cover what they say."""

from dataclasses import make_dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from xpbayes.inference.recalibration import INNER, SPREAD, fit_calibration, recalibrated

N = 4000
SCALE = np.array([0.5, 0.3, 0.8])
OFFSET = {"cool": np.array([0.05, -0.04, 0.1]), "hot": np.array([-0.02, 0.0, -0.2])}
STRETCH = {"cool": np.array([1.0, 2.0, 0.7]), "hot": np.array([3.0, 1.0, 1.5])}


def _stars(seed, tails=np.inf):
    """Cool and hot stars; medians miss the labels by an offset and by more or less than their stated widths."""
    random = np.random.default_rng(seed)
    hot = np.arange(N) % 2 == 1
    spread = random.uniform(-1, 1, size=(N, 3)) * [0.8, 1.0, 2.0]
    labels = np.column_stack([np.where(hot, 6.5, 4.0), np.zeros(N), np.full(N, 3.0)]) + spread
    std = np.exp(random.normal(np.log([0.06, 0.08, 0.15]), 0.3, size=(N, 3)))
    error = np.broadcast_to([0.02, 0.02, 0.03], (N, 3)).copy()
    offset = np.where(hot[:, None], OFFSET["hot"], OFFSET["cool"])
    stretch = np.where(hot[:, None], STRETCH["hot"], STRETCH["cool"])
    noise = random.normal(size=(N, 3)) if np.isinf(tails) else random.standard_t(tails, size=(N, 3))
    median = labels + offset + stretch * std * noise
    measured = labels + error * random.normal(size=(N, 3))
    return SimpleNamespace(
        hot=hot,
        labels=measured,
        error=error,
        median=median,
        std=std,
        ln_snr=np.full(N, 4.0),
        offset=offset,
        true=stretch,
    )


def _fit(stars):
    return fit_calibration(stars.median, stars.std, stars.ln_snr, stars.labels, stars.error, SCALE)


@pytest.fixture(scope="module")
def calibration():
    return _fit(_stars(0, tails=4.0))


Found = make_dataclass("Found", ["median", "mean", "std", "low", "high"], frozen=True)


def _found(stars):
    """Results of inference of which only what calibration reads and writes is there."""
    other = np.full((N, 2), 7.0, np.float32)
    each = {
        "median": stars.median, "mean": stars.median + 0.1 * stars.std, "std": stars.std,
        "low": stars.median - stars.std, "high": stars.median + stars.std,
    }  # fmt: skip
    return Found(**{k: np.concatenate([v.astype(np.float32), other], axis=1) for k, v in each.items()})


def test_planted_offsets_and_stretches_come_back(calibration):
    """2,000 stars a group: medians to 0.06 sigma (3 standard errors of a median), factors to 10 %."""
    stars = _stars(0, tails=4.0)
    after = recalibrated(_found(stars), calibration, stars.ln_snr)
    shift = stars.median - after.median[:, :3]
    for group in (stars.hot, ~stars.hot):
        expected, wide = stars.offset[group][0], (stars.true[group] * stars.std[group]).mean(axis=0)
        assert np.all(np.abs(shift[group].mean(axis=0) - expected) < 0.06 * wide + 0.002)
        stretch = (after.std[group, :3] / stars.std[group]).mean(axis=0) / SPREAD
        assert_allclose(stretch, stars.true[group][0], rtol=0.1)


@pytest.mark.parametrize("tails", [4.0, np.inf])
def test_intervals_of_new_stars_cover_what_they_say(calibration, tails):
    """4,000 new stars, 3 labels: 68 % and 95 % intervals to 3 standard errors; Gaussian pulls are covered at least so."""
    stars = _stars(1, tails=tails)
    after = recalibrated(_found(stars), calibration, stars.ln_snr)
    miss = np.abs(after.median[:, :3] - stars.labels)
    half = np.hypot(0.5 * (after.high - after.low)[:, :3], stars.error)
    twice = 1.96 * np.hypot(after.std[:, :3], stars.error)
    within, nearly_all = np.mean(miss < half), np.mean(miss < twice)
    if np.isinf(tails):
        assert 0.68 < within < 0.76 and nearly_all > 0.97
    else:
        # The fit's own noise, of as many stars, adds as much again as that of these.
        assert abs(within - 0.683) < 3 * np.sqrt(2 * 0.683 * 0.317 / (3 * N)) + 0.005
        assert 0.93 < nearly_all < 0.97


def test_a_calibration_of_wrong_widths_is_told_from_a_right_one(calibration):
    """Without it, the same intervals miss by far: the check above can fail."""
    stars = _stars(1)
    before = np.mean(np.abs(stars.median - stars.labels) < np.hypot(stars.std, stars.error), axis=0)
    assert before.min() < 0.6


def test_extinction_and_parallax_stay(calibration):
    stars = _stars(2)
    found = _found(stars)
    after = recalibrated(found, calibration, stars.ln_snr)
    for name in ("median", "mean", "std", "low", "high"):
        assert_array_equal(getattr(after, name)[:, 3:], getattr(found, name)[:, 3:])
    assert_allclose(
        after.high[:, :3] - after.median[:, :3], INNER / SPREAD * after.std[:, :3], rtol=1e-3
    )  # of these symmetric posteriors


def test_stars_without_a_label_or_a_posterior_do_not_count(calibration):
    stars = _stars(0, tails=4.0)
    extra = {
        "median": np.concatenate([stars.median, np.full((500, 3), np.nan), stars.median[:500]]),
        "std": np.concatenate([stars.std, np.ones((500, 3)), stars.std[:500]]),
        "ln_snr": np.concatenate([stars.ln_snr, np.ones(1000)]),
        "labels": np.concatenate([stars.labels, np.zeros((1000, 3))]),
        "error": np.concatenate([stars.error, np.ones((500, 3)), np.full((500, 3), np.inf)]),
    }
    again = _fit(SimpleNamespace(**extra))
    assert_array_equal(again.offset, calibration.offset)
    assert_array_equal(again.stretch, calibration.stretch)


def test_a_star_without_draws_stays_unknown(calibration):
    stars = _stars(3)
    found = _found(stars)
    empty = replace(found, **{n: np.full_like(getattr(found, n), np.nan) for n in vars(found)})
    after = recalibrated(empty, calibration, stars.ln_snr)
    assert np.isnan(after.median).all() and np.isnan(after.high[:, :3]).all()


def test_too_few_stars_are_not_calibrated():
    stars = _stars(0)
    few = SimpleNamespace(**{k: v[:90] for k, v in vars(stars).items()})
    assert _fit(few) is None
