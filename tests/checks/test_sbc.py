"""Simulation-based calibration accepts what is right and rejects what is wrong."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm, truncnorm

from xpbayes.checks.sbc import gaussian_shares, judge, uniform_band

RNG = np.random.default_rng(3)
N = 1500


def test_uniform_shares_leave_the_band_once_in_a_hundred():
    outside = np.array([not judge(RNG.random(400)).uniform for _ in range(1000)])
    assert 0.002 < outside.mean() < 0.025


def test_the_band_narrows_with_the_root_of_n():
    few, many = uniform_band(100), uniform_band(10_000)
    width = [np.max(band.high - band.low) for band in (few, many)]
    assert_allclose(width[0] / width[1], 10, rtol=0.15)


def _exact():
    """Stars with a flat prior in E on (0, 10 sigma): truth, and the posterior's centre, whose law is a cut Gaussian."""
    truth = RNG.uniform(0, 10, N)
    return truth, truth + RNG.normal(size=N)


def _share(truth, centre, sigma=1.0):
    return truncnorm((0 - centre) / sigma, (10 - centre) / sigma, loc=centre, scale=sigma).cdf(truth)


def test_the_right_posterior_passes_with_right_coverage():
    found = judge(_share(*_exact()))
    assert found.uniform and found.n == N
    assert_allclose([found.coverage68, found.coverage95, found.mean], [0.683, 0.954, 0.5], atol=0.04)


@pytest.mark.parametrize("wrong", ["errors x 0.8", "shifted mean", "dropped Jacobian", "ends ignored"])
def test_a_wrong_posterior_is_rejected(wrong):
    truth, centre = _exact()
    if wrong == "errors x 0.8":
        shares = _share(truth, centre, 0.8)
    elif wrong == "shifted mean":
        shares = _share(truth, centre + 0.25)
    elif wrong == "ends ignored":
        shares = gaussian_shares(truth[:, None], (centre + 0.2 / np.maximum(centre, 0.2))[:, None], np.ones((N, 1, 1)))[
            :, 0
        ]
    else:  # flat in ln E instead of E: the density loses a factor E
        x = np.linspace(1e-3, 10, 4000)
        density = norm.pdf(x, centre[:, None]) / x
        running = np.cumsum(density, axis=1)
        shares = np.array([np.interp(t, x, r / r[-1]) for t, r in zip(truth, running, strict=True)])
    assert not judge(shares).uniform


def test_missing_shares_are_left_out_and_none_at_all_is_no_pass():
    found = judge(np.where(np.arange(200) % 2, RNG.random(200), np.nan))
    assert found.n == 100
    assert not judge(np.full(5, np.nan)).uniform
