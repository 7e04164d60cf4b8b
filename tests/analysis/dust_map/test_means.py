"""Hard bins against plain loops; shared stars against the truth, and against hard bins where both must agree."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import truncnorm

from tests.analysis.dust_map.conftest import measured
from xpbayes.analysis.dust_map.means import _bins_given_parallax, _narrow, _smoothed, voxel_means, voxel_means_joint

EDGES = np.array([0.0, 0.5, 1.0, 2.0, 4.0])


def test_means_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    n = 300
    distance, pixel = rng.uniform(0.1, 5.0, n), rng.integers(3, size=n)
    stars = measured(rng.random(n), 1 / distance, rng.uniform(0.01, 0.04, n), 0.01, pixel=pixel)
    found = voxel_means(stars, pixel, 3, EDGES)
    for p in range(3):
        for k in range(4):
            chosen = (pixel == p) & (distance >= EDGES[k]) & (distance < EDGES[k + 1])
            e, var = stars.extinction[chosen], stars.var_e[chosen]
            assert found.stars[p, k] == chosen.sum()
            assert_allclose(found.mean[p, k], np.sum(e / var) / np.sum(1 / var))
            assert_allclose(found.distance[p, k], np.sum(distance[chosen] / var) / np.sum(1 / var))


def test_standard_errors_are_the_scatter_of_repeated_means():
    """20 stars a voxel, 4,000 voxels, a spread of 0.05 mag inside each: formal errors alone would be 2.5 times too small."""
    rng = np.random.default_rng(1)
    n_pixels, per = 4000, 20
    pixel = np.repeat(np.arange(n_pixels), per)
    sigma = rng.uniform(0.015, 0.03, len(pixel))
    for spread in (0.0, 0.05):
        e = 0.4 + np.hypot(sigma, spread) * rng.standard_normal(len(pixel))
        found = voxel_means(measured(e, np.ones(len(e)), sigma, 0.01), pixel, n_pixels, np.array([0.5, 1.5]))
        pull = (found.mean - 0.4) / found.sigma
        # 4,000 pulls: 1 +- 0.011; with 20 stars the estimated spread itself makes the tails 5 % longer.
        assert_allclose(pull.std(), 1.0, atol=0.07)
        if spread:
            assert_allclose(np.sqrt(np.mean(found.spread**2)), spread, rtol=0.02)


def test_an_empty_voxel_is_nan_and_one_star_is_itself():
    found = voxel_means(measured([0.3], [1 / 0.7], 0.02, 0.01), np.array([1]), 2, EDGES)
    assert np.isnan(found.mean[0]).all() and found.stars.sum() == 1
    assert_allclose([found.mean[1, 1], found.sigma[1, 1], found.spread[1, 1]], [0.3, 0.02, 0.0])


def test_bins_given_a_parallax_are_moments_of_a_cut_normal():
    edges = np.array([0.0, 0.8, 1.0, 1.3, 3.0])
    stars = measured([0.1, 0.1, 0.1], [1.0, 0.5, 2.0], 0.02, [0.1, 0.2, 0.05])
    ln_density, mean, variance = _bins_given_parallax(stars, edges)
    low, high = [1 / 0.8, 1.0, 1 / 1.3, 1 / 3.0, 0.0], [np.inf, 1 / 0.8, 1.0, 1 / 1.3, 1 / 3.0]
    for i, (centre, sigma) in enumerate(zip(stars.parallax, np.sqrt(stars.var_plx), strict=True)):
        for k in range(5):
            cut = truncnorm((low[k] - centre) / sigma, (high[k] - centre) / sigma, centre, sigma)
            if ln_density[i, k] < -15:
                continue
            assert_allclose([mean[i, k], variance[i, k]], [cut.mean(), cut.var()], rtol=1e-5, atol=1e-9)


def test_smoothing_solves_its_normal_equations():
    rng = np.random.default_rng(2)
    sum_w, mean, rise, stiffness = rng.random((2, 6)), rng.random((2, 6)), rng.random(6), rng.random(6)
    found = _smoothed(sum_w, sum_w * mean, rise, stiffness)
    step = np.eye(6) - np.eye(6, k=-1)
    for p in range(2):
        dense = np.diag(sum_w[p]) + step.T @ np.diag(stiffness) @ step
        assert_allclose(found[p], np.linalg.solve(dense, sum_w[p] * mean[p] + step.T @ (stiffness * rise)))


def test_narrow_bins_keep_the_wide_edges():
    fine, bin_of = _narrow(EDGES)
    assert set(EDGES) <= set(fine) and (np.diff(np.arcsinh(fine)) < 0.0601).all()
    for k in range(4):
        inside = np.flatnonzero(bin_of == k)
        assert_allclose([fine[inside[0]], fine[inside[-1] + 1]], EDGES[k : k + 2])
    assert bin_of[-1] == 4 and fine[-1] > EDGES[-1]


def test_shared_stars_agree_with_hard_bins_where_distances_are_exact():
    rng = np.random.default_rng(3)
    n = 2000
    distance, pixel = rng.uniform(0.05, 3.9, n), rng.integers(4, size=n)
    stars = measured(0.2 * distance + 0.02 * rng.standard_normal(n), 1 / distance, 0.02, 1e-3 / distance, pixel=pixel)
    hard, joint = voxel_means(stars, pixel, 4, EDGES), voxel_means_joint(stars, pixel, 4, EDGES)
    assert_allclose(joint.stars, hard.stars, atol=1.5)
    assert_allclose(joint.mean, hard.mean, atol=0.02)


@pytest.fixture(scope="module")
def behind_a_cloud():
    """A cloud of 0.3 mag at 1 kpc; errors of E and parallax go together with rho = 0.7, distances are good to 15 %."""
    rng = np.random.default_rng(4)
    n, n_pixels = 20_000, 40
    distance = np.cbrt(rng.uniform(0.3**3, 1.9**3, n))
    e = np.where(distance > 1.0, 0.4, 0.1)
    plx, sigma_e, rho = 1 / distance, 0.04, 0.7
    sigma_plx = 0.15 * plx
    x, y = rng.standard_normal((2, n))
    stars = measured(
        e + sigma_e * x, plx + sigma_plx * (rho * x + np.sqrt(1 - rho**2) * y), sigma_e, sigma_plx, rho,
        pixel=rng.integers(n_pixels, size=n),
    )  # fmt: skip
    stars = stars.take(stars.parallax > 0.3)
    edges = np.array([0.4, 1.0, 1.8])
    return stars, n_pixels, edges


def test_sharing_removes_the_bias_that_hard_bins_have(behind_a_cloud):
    """Stars scattered over the cloud make hard bins find two thirds of it; sharing finds it within 5 %."""
    stars, n_pixels, edges = behind_a_cloud
    hard = voxel_means(stars, stars.pixel, n_pixels, edges)
    joint = voxel_means_joint(stars, stars.pixel, n_pixels, edges)
    rise_hard, rise_joint = (np.median(v.mean[:, 1] - v.mean[:, 0]) for v in (hard, joint))
    assert rise_hard < 0.25
    assert_allclose(rise_joint, 0.3, atol=0.02)
    assert np.abs(np.median(joint.mean[:, 0]) - 0.1) < 0.5 * np.abs(np.median(hard.mean[:, 0]) - 0.1)


def test_errors_of_shared_means_are_of_the_size_of_their_scatter(behind_a_cloud):
    stars, n_pixels, edges = behind_a_cloud
    joint = voxel_means_joint(stars, stars.pixel, n_pixels, edges)
    for k in (0, 1):
        # 40 pixels: a standard deviation is known to 11 %.
        assert 0.6 < np.std(joint.mean[:, k]) / np.median(joint.sigma[:, k]) < 1.4


def test_errors_of_few_stars_contain_that_their_spread_is_uncertain():
    """Ten stars a voxel, spread far beyond their errors: Student's t, yet pulls of variance one."""
    n_pixels = 20_000
    pixel = np.repeat(np.arange(n_pixels), 10)
    e = 0.4 + 0.1 * np.random.default_rng(5).standard_normal(len(pixel))
    found = voxel_means(measured(e, np.ones(len(e)), 0.001, 0.01), pixel, n_pixels, np.array([0.5, 1.5]))
    assert abs(np.std((found.mean - 0.4) / found.sigma) - 1.0) < 0.02
