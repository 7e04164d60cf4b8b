"""The Cholesky path against the paper's own recipe: eigenvalues, floor, L = D^(-1/2) U^T."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from xpbayes.instrument.whitening import EIGENVALUE_FLOOR, unpack, whiten_packed

RNG = np.random.default_rng(1)


def whiten(covariance: np.ndarray, present: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(star, sample, sample) float64 factors, not packed, and which were floored."""
    row, column = np.tril_indices(covariance.shape[-1])
    present = np.ones(covariance.shape[:2], bool) if present is None else present
    packed, floored = whiten_packed(covariance, present, out=np.empty((len(covariance), len(row))))
    factor = np.zeros(covariance.shape)
    factor[:, row, column] = packed
    return factor, floored


def _random_covariance(n: int, smallest: float, largest: float) -> np.ndarray:
    vectors, _ = np.linalg.qr(RNG.normal(size=(n, n)))
    return (vectors * np.geomspace(smallest, largest, n)) @ vectors.T


def _paper_chi2(covariance: np.ndarray, residual: np.ndarray) -> float:
    value, vector = np.linalg.eigh(covariance)
    return float(np.sum((vector.T @ residual) ** 2 / np.maximum(value, EIGENVALUE_FLOOR)))


@pytest.mark.parametrize("smallest", [1e-3, 1e-8, 1e-12])
def test_chi2_equals_the_eigenvalue_recipe(smallest):
    covariance = np.stack([_random_covariance(61, smallest, 1.0) for _ in range(4)])
    covariance = 0.5 * (covariance + covariance.transpose(0, 2, 1))
    residual = RNG.normal(size=(4, 61))
    factor, floored = whiten(covariance)
    for c, r, w in zip(covariance, residual, factor, strict=True):
        assert_allclose(np.sum((w @ r) ** 2), _paper_chi2(c, r), rtol=1e-6)
        assert np.all(np.triu(w, 1) == 0) and np.all(np.diag(w) > 0)
    assert np.all(floored == (smallest < EIGENVALUE_FLOOR))


def test_an_indefinite_covariance_is_floored():
    covariance = np.diag([1.0, 2.0, -1e-6])[None]
    factor, floored = whiten(covariance)
    assert floored[0]
    assert_allclose(np.sum((factor[0] @ np.array([1.0, 0.0, 0.0])) ** 2), 1.0, rtol=1e-6)


def test_absent_samples_do_not_count():
    covariance = _random_covariance(8, 0.1, 1.0)
    present = np.array([True] * 8)
    present[[2, 5]] = False
    factor, _ = whiten(np.stack([covariance]), present[None])
    residual = RNG.normal(size=8)
    inside = np.ix_(present, present)
    expected = residual[present] @ np.linalg.solve(covariance[inside], residual[present])
    assert_allclose(np.sum((factor[0] @ residual) ** 2), expected, rtol=1e-10)
    assert np.all(factor[0][[2, 5]] == 0) and np.all(factor[0][:, [2, 5]] == 0)


def test_packing_round_trip():
    covariance = np.stack([_random_covariance(6, 0.1, 1.0) for _ in range(3)])
    factor, _ = whiten(covariance)
    full = unpack(whiten_packed(covariance, np.ones((3, 6), bool))[0], np.array([[2.0, 0.0]] * 3, np.float32), 6)
    assert_allclose(full[:, :6, :6], factor.astype(np.float32))
    assert np.all(full[:, 6, 6] == 2.0) and np.all(full[:, 7] == 0) and full.shape == (3, 8, 8)
