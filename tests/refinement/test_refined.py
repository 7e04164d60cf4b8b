"""Mixtures against brute force: quantiles, moments, a measured parallax, fading."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from xpbayes.refinement.refined import (
    Gaussians,
    Relation,
    faded,
    quantiles,
    relation_to_parallax,
    summary,
    with_parallax,
)

RNG = np.random.default_rng(8)
N_DRAWS = 400_000


def _mixtures(n=4, k=3, n_labels=2) -> Gaussians:
    factor = np.tril(RNG.normal(size=(n, k, n_labels, n_labels)) * 0.2) + 0.3 * np.eye(n_labels)
    mean = RNG.normal(size=(n, k, n_labels))
    return Gaussians(RNG.dirichlet(np.ones(k), n), mean, factor @ factor.transpose(0, 1, 3, 2))


def _draws(of: Gaussians, star: int) -> np.ndarray:
    which = RNG.choice(of.weight.shape[1], N_DRAWS, p=of.weight[star])
    factor = np.linalg.cholesky(of.covariance[star])[which]
    return of.mean[star, which] + np.einsum("nij,nj->ni", factor, RNG.normal(size=(N_DRAWS, of.mean.shape[2])))


def test_quantiles_and_moments_are_those_of_draws():
    of = _mixtures()
    found = summary(of, np.ones(4))
    for star in range(4):
        draws = _draws(of, star)
        low, median, high = np.quantile(draws, norm.cdf([-1, 0, 1]), axis=0)
        for mine, theirs in ((found.low, low), (found.median, median), (found.high, high)):
            np.testing.assert_allclose(mine[star], theirs, atol=0.02)
        np.testing.assert_allclose(found.covariance[star], np.cov(draws.T), atol=0.02)
        np.testing.assert_allclose(found.std[star], draws.std(axis=0), rtol=0.01)


def test_quantiles_with_a_measurements_error():
    of, error = _mixtures(n=2), np.array([[0.3, 0.5], [0.0, 1.0]])
    (found,) = quantiles(of, (0.9,), error**2)
    for star in range(2):
        draws = _draws(of, star) + error[star] * RNG.normal(size=(N_DRAWS, 2))
        np.testing.assert_allclose(found[star], np.quantile(draws, 0.9, axis=0), atol=0.02)


def test_fading_ends_at_the_forward_posterior():
    of = _mixtures()
    median, covariance = RNG.normal(size=(4, 2)), np.tile(np.diag([0.04, 0.09]), (4, 1, 1))
    none, all_of_it = (summary(faded(of, np.full(4, s), median, covariance), np.full(4, s)) for s in (0.0, 1.0))
    np.testing.assert_allclose(none.median, median, atol=1e-6)
    np.testing.assert_allclose(none.std, np.tile([0.2, 0.3], (4, 1)), rtol=1e-9)
    np.testing.assert_allclose(none.high - none.low, 2 * none.std, rtol=1e-5)
    for mine, own in zip(all_of_it[:5], summary(of, np.ones(4))[:5], strict=True):
        np.testing.assert_allclose(mine, own, atol=1e-6)


@pytest.mark.parametrize("parallax_snr", [3.0, 10.0, 80.0])
def test_a_parallax_is_one_more_observation_of_the_labels(parallax_snr):
    """Against a grid: labels as in the mixture, ln parallax a Gaussian about a plane over them, measured once."""
    of = _mixtures(n=1, k=2)
    slope, at, value, left = np.array([0.8, -0.5]), np.array([0.2, -0.1]), 0.7, 0.02
    near = 2.1
    parallax, error = 1.05 * near, near / parallax_snr
    relation = Relation(slope[None], at[None], np.array([value]), np.array([left]))
    measurement = (np.array([parallax]), np.array([1.0 / error]))
    found = summary(with_parallax(of, relation, np.array([near]), *measurement), np.ones(1))

    axes = [np.linspace(*(of.mean[0, :, i].mean() + np.array([-6, 6])), 1201) for i in range(2)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    density = sum(of.weight[0, k] * multivariate_normal(of.mean[0, k], of.covariance[0, k]).pdf(grid) for k in range(2))
    measured = np.log(near) + (parallax - near) / near
    density = density * norm(value + (grid - at) @ slope, np.sqrt(left + (error / near) ** 2)).pdf(measured)
    density /= density.sum()
    mean = np.einsum("ij,ijl->l", density, grid)
    apart = grid - mean
    covariance = np.einsum("ij,ijl,ijm->lm", density, apart, apart)
    np.testing.assert_allclose(found.covariance[0], covariance, rtol=2e-3, atol=1e-5)
    for i in range(2):
        marginal = np.cumsum(density.sum(axis=1 - i))
        np.testing.assert_allclose(found.median[0, i], np.interp(0.5, marginal, axes[i]), atol=0.01)


@pytest.mark.parametrize("parallax_snr", [2.0, 20.0])
def test_the_relation_is_that_of_the_fluxes_alone(parallax_snr):
    """A Gaussian posterior of labels, ln E and ln parallax given the fluxes; the measurement is added, then taken off."""
    root = np.tril(RNG.normal(size=(4, 4)) * 0.2) + 0.3 * np.eye(4)
    precision, middle = np.linalg.inv(root @ root.T), np.array([0.3, -0.2, np.log(0.5), np.log(2.0)])
    parallax = 2.0 * 1.2
    inverse = parallax_snr / parallax
    u = middle.copy()
    for _ in range(200):  # Newton's steps to where both are best
        model = np.exp(u[3])
        gradient, hessian = precision @ (u - middle), precision.copy()
        gradient[3] -= (parallax - model) * model * inverse**2
        hessian[3, 3] += model * (2 * model - parallax) * inverse**2
        u = u - 0.5 * np.linalg.solve(hessian, gradient)
    unit = np.append(np.ones(2), np.exp(u[2:]))
    mode = np.append(u[:2], np.exp(u[2:]))
    laplace = np.linalg.inv(hessian) * unit[:, None] * unit
    # E itself, not its logarithm: next to the mode the same Gaussian.
    found = relation_to_parallax(mode[None], laplace[None], np.array([parallax]), np.array([inverse]))
    covariance = root @ root.T
    slope = np.linalg.solve(covariance[:2, :2], covariance[:2, 3])
    np.testing.assert_allclose(found.slope[0], slope, rtol=1e-6)
    np.testing.assert_allclose(found.variance[0], covariance[3, 3] - slope @ covariance[:2, 3], rtol=1e-6)
    expected = middle[3] + (u[:2] - middle[:2]) @ slope
    np.testing.assert_allclose(found.value[0], expected, atol=1e-6)
