"""Copies are drawn as their stated errors say, behind as much dust as they say."""

import jax
import numpy as np
import pytest

from xpbayes.refinement.copies import MAX_NOISE, MISSING_BAND, copies

N_XP = 61


@pytest.fixture(scope="module")
def pair(sample, trained):
    stars = sample.take(np.arange(400)).stars(trained.labels)
    return stars, copies(trained.forward, stars, N_XP, np.random.default_rng(0))


def _optical_depth(trained, stars, copy):
    """Dust that a copy has gained, from the ratio of the errors' profiles: noise is grey, dust is not."""
    before, after = (np.asarray(s.whitening)[:, :N_XP, :N_XP] for s in (stars, copy))
    curve = np.exp(np.asarray(trained.forward.ln_curve))[:N_XP]
    ratio = np.log(np.diagonal(after, axis1=1, axis2=2) / np.diagonal(before, axis1=1, axis2=2))
    return np.array([np.polyfit(curve, row, 1)[0] for row in ratio])


def test_noise_is_what_the_new_errors_say(pair, trained):
    """The copy minus the dimmed star is noise with the variance that was added: k^2 - 1 of k^2 in the new units."""
    stars, copy = pair
    dust = _optical_depth(trained, stars, copy)
    dimmed = np.exp(-dust[:, None] * np.exp(np.asarray(trained.forward.ln_curve)))
    expected = np.asarray(stars.flux) * dimmed * np.exp(np.asarray(stars.ln_scale - copy.ln_scale))[:, None]
    white = np.einsum("sij,sj->si", np.asarray(copy.whitening, np.float64), np.asarray(copy.flux) - expected)
    n = np.sum(np.diagonal(np.asarray(copy.whitening), axis1=1, axis2=2) > 0, axis=1)
    share = np.sum(white**2, axis=1) / n  # (k^2 - 1) / k^2 on average
    quiet = share < 0.1
    assert 0.15 < quiet.mean() < 0.45
    assert share.max() < 1.0 - 1.0 / MAX_NOISE**2 + 6.0 * np.sqrt(2.0 / 61)
    assert np.quantile(share, 0.95) > 0.8


def test_half_are_redder(pair, trained):
    dust = _optical_depth(trained, *pair)
    assert np.mean(dust > 1e-3) == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / len(dust)))
    assert dust.min() > -1e-3
    assert np.mean(dust[dust > 1e-3]) == pytest.approx(0.6, abs=4 * 0.6 / np.sqrt(0.5 * len(dust)))


def test_bands_go_missing_and_samples_stay(pair):
    before, after = (np.diagonal(np.asarray(s.whitening), axis1=1, axis2=2) > 0 for s in pair)
    np.testing.assert_array_equal(before[:, :N_XP], after[:, :N_XP])
    lost = np.mean(~after[:, N_XP:][before[:, N_XP:]])
    assert lost == pytest.approx(MISSING_BAND, abs=4 * np.sqrt(MISSING_BAND / before[:, N_XP:].sum()))


def test_labels_stay_and_numbers_are_finite(pair):
    stars, copy = pair
    np.testing.assert_array_equal(stars.labels, copy.labels)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(copy))
