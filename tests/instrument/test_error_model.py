import numpy as np
from numpy.testing import assert_allclose

from xpbayes.channels import XP_GRID_NM
from xpbayes.instrument.error_model import gaia_covariance, inflate

RNG = np.random.default_rng(0)


def test_equals_equation_2_written_out():
    flux = RNG.uniform(1, 100, (3, 61))
    start = np.stack([np.diag(RNG.uniform(0.1, 1, 61)) for _ in range(3)])
    for f, c, result in zip(flux, start, inflate(start, flux, XP_GRID_NM), strict=True):
        bp, rp = np.where(XP_GRID_NM < 640, f, 0), np.where(XP_GRID_NM >= 640, f, 0)
        expected = c + np.diag(0.005 * f) ** 2 + 0.005**2 * np.outer(f, f)
        expected += 0.001**2 * (np.outer(bp, bp) + np.outer(rp, rp))
        assert_allclose(result, expected, rtol=1e-12)


def test_covariance_has_the_errors_on_its_diagonal():
    error, correlation = RNG.uniform(0.1, 1, (4, 5)), np.full((5, 5), 0.3) + 0.7 * np.eye(5)
    covariance = gaia_covariance(error, correlation)
    assert_allclose(np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)), error)
    assert_allclose(covariance[2, 0, 3], 0.3 * error[2, 0] * error[2, 3])
