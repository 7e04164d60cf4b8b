"""Fit quality is the share of ordinary stars that fit worse: uniform for them at every S/N."""

import numpy as np
import pytest

from xpbayes.inference.fit_quality import UNUSUAL, fit_quality_of

RNG = np.random.default_rng(5)
N_CHANNELS = 66


def _stars(n, bad=0.0):
    """chi^2 that falls with S/N, as where the model's error is too large for bright stars; some are three times as bad."""
    ln_snr = RNG.uniform(3.0, 5.0, n)
    is_bad = RNG.random(n) < bad
    ln_chi2 = 0.4 - 0.4 * (ln_snr - 3.0) + 0.2 * RNG.standard_normal(n) + np.log(3.0) * is_bad
    return np.exp(ln_chi2) * N_CHANNELS, np.full(n, N_CHANNELS), ln_snr, is_bad


def test_ordinary_stars_are_uniform_at_every_signal_to_noise():
    *known, _ = _stars(4000, bad=0.1)
    chi2, n, ln_snr, _ = _stars(20_000)
    quality = fit_quality_of(*known).of(chi2, n, ln_snr)
    for bright in (ln_snr > 4.3, ln_snr < 3.7):
        assert 0.45 < np.median(quality[bright]) < 0.62
        assert 0.02 < np.mean(quality[bright] < 0.05) < 0.08
    assert np.mean(quality < UNUSUAL) < 0.005


def test_bad_stars_among_those_kept_aside_do_not_hide_others():
    *known, _ = _stars(4000, bad=0.1)
    chi2, n, ln_snr, is_bad = _stars(2000, bad=0.5)
    quality = fit_quality_of(*known).of(chi2, n, ln_snr)
    assert np.mean(quality[is_bad] < UNUSUAL) > 0.9 > 0.01 > np.mean(quality[~is_bad] < UNUSUAL)


def test_missing_channels_are_not_counted():
    *known, _ = _stars(1000)
    quality = fit_quality_of(*known)
    few = quality.of(np.array([30.0]), np.array([30]), np.array([4.0]))
    assert few == quality.of(np.array([66.0]), np.array([66]), np.array([4.0]))


def test_nothing_known_is_nan():
    *known, _ = _stars(300)
    assert np.isnan(fit_quality_of(*known).of(np.array([np.nan]), np.array([66]), np.array([4.0]))).all()


@pytest.mark.parametrize("n", [0, 99])
def test_too_few_stars_teach_nothing(n):
    assert fit_quality_of(*_stars(n)[:3]) is None
