"""A transfer between two simulated releases: what it finds is what went in, and its error is its own."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from xpbayes.channels import XP_GRID_NM
from xpbayes.errors import InputError
from xpbayes.instrument.error_model import inflate
from xpbayes.instrument.instrument import DEFAULT_ID
from xpbayes.instrument.transfer import colour_and_magnitude, covariances, learn_transfer, transferred
from xpbayes.instrument.whitening import whiten_packed

M = XP_GRID_NM.size
OTHER = replace(DEFAULT_ID, release="dr4", models=("a", "b"))
NOISE = 1.5


def true_ratio(flux: np.ndarray) -> np.ndarray:
    """Smooth in wavelength, with colour and magnitude terms."""
    colour, magnitude, _ = colour_and_magnitude(flux, np.ones(flux.shape, bool), 0.0)
    x = (XP_GRID_NM - 700.0) / 300.0
    c, m = colour[:, None] - 0.5, magnitude[:, None] + 3.0
    return 1.0 + 0.02 * np.sin(2.0 * x) + 0.01 * c * x - 0.006 * c**2 * x**2 + 0.003 * m * np.cos(x)


def releases(n: int, sigma: float, seed: int = 0, noise: float = NOISE):
    """Stars in both: flux and stated covariance of source and target, and the target's true flux."""
    rng = np.random.default_rng(seed)
    slope, level = rng.uniform(-1.5, 1.0, (n, 1)), rng.uniform(0.5, 2.5, (n, 1))
    source = np.exp(level * np.log(10) / 1.5 + slope * (XP_GRID_NM - 700.0) / 300.0)
    truth = true_ratio(source) * source
    near = np.exp(-np.abs(np.subtract.outer(np.arange(M), np.arange(M))) / 1.5)
    stars = []
    for flux, factor in ((source, noise), (truth, 1.0)):
        covariance = (sigma * flux)[:, :, None] * near * (sigma * flux)[:, None, :]
        noisy = flux + factor * (np.linalg.cholesky(covariance) @ rng.standard_normal((n, M, 1)))[:, :, 0]
        stars.append((noisy, covariance))
    return stars[0], stars[1], source, truth


def test_a_pair_of_releases_without_noise_is_found_exactly():
    source, target, flux, truth = releases(120, 1e-6, noise=1.0)
    found = learn_transfer(OTHER, DEFAULT_ID, source, target)
    assert found.n_pairs == 120 and found.n_outliers == 0
    given = np.ones(flux.shape, bool)
    moved, _, outside = found.apply(flux, source[1], given)
    # The ratio is quadratic in colour and linear in magnitude: all of it lies in what the transfer can be.
    assert_allclose(moved, truth, rtol=3e-5)
    assert outside.mean() < 0.02  # those at the very edge, whose colour the noise has moved


@pytest.fixture(scope="module")
def noisy():
    return learn_transfer(OTHER, DEFAULT_ID, *releases(150, 0.02)[:2])


def test_noise_factor_and_own_error_are_those_of_the_releases(noisy):
    assert abs(noisy.noise - NOISE) < 0.03
    # Other stars, without noise: what is left is the transfer's own error.
    (flux, covariance), _, source, truth = releases(150, 0.02, seed=1)
    everywhere = np.ones(source.shape, bool)
    moved, spread, _ = noisy.apply(source, np.zeros_like(covariance), everywhere)
    pull = (moved - truth) / np.sqrt(np.diagonal(spread, axis1=1, axis2=2))
    assert 0.4 < np.sqrt(np.mean(pull**2)) < 1.6 and np.abs(moved / truth - 1).max() < 0.02


def test_chi2_of_other_stars_is_what_their_errors_say(noisy):
    (flux, covariance), (target, target_covariance), source, truth = releases(150, 0.02, seed=2)
    moved, spread, _ = noisy.apply(flux, covariance, np.ones(flux.shape, bool))
    residual = moved - truth
    chi2 = np.einsum("nc,ncd,nd->n", residual, np.linalg.inv(spread), residual)
    assert abs(chi2.mean() / M - 1.0) < 0.1
    assert np.linalg.eigvalsh(spread)[:, 0].min() > 0


def test_noise_in_the_source_does_not_lower_the_ratio():
    source, target, flux, truth = releases(160, 0.15, noise=1.0)
    found = learn_transfer(OTHER, DEFAULT_ID, source, target)
    moved, _, _ = found.apply(flux, source[1], np.ones(flux.shape, bool))
    assert abs(np.mean(moved / truth) - 1.0) < 0.005  # a plain regression on the noisy flux: -0.02


def test_pairs_that_are_not_the_same_star_are_left_out():
    source, target, flux, truth = releases(150, 0.02, noise=1.0)
    target[0][:20] *= 1.5
    found = learn_transfer(OTHER, DEFAULT_ID, source, target)
    assert found.n_outliers == 20
    moved, _, _ = found.apply(flux, source[1], np.ones(flux.shape, bool))
    assert abs(np.mean(moved / truth) - 1.0) < 0.002
    with pytest.raises(InputError, match="40 pairs of stars can be used, at least 100"):
        learn_transfer(OTHER, DEFAULT_ID, *(tuple(a[:40] for a in side) for side in (source, target)))


def test_whitening_factors_are_carried_over(noisy):
    (flux, covariance), _, _, _ = releases(5, 0.02, seed=3)
    full = inflate(covariance, flux, XP_GRID_NM)
    present = np.ones(flux.shape, bool)
    present[1, :25] = False  # no BP
    packed, _ = whiten_packed(full, present)
    single = np.where(present, flux, 0.0).astype(np.float32)
    moved, whitening, n_outside = transferred(noisy, single, packed)
    assert n_outside == 0
    _, spread, there = covariances(moved, whitening)
    assert (there == present).all()
    expected = noisy.apply(single.astype(float), full, present)
    assert_allclose(moved, expected[0], rtol=1e-6)
    both = present[:, :, None] & present[:, None, :]
    assert_allclose(spread[both], expected[1][both], rtol=1e-3, atol=1e-5 * spread.max())
    # Without a colour the transfer's own error is larger than with one.
    nothing = np.zeros_like(full)
    without, with_both = (noisy.apply(flux, nothing, p)[1][1] for p in (present, np.ones(flux.shape, bool)))
    assert np.trace(without[25:, 25:]) > 2 * np.trace(with_both[25:, 25:])
