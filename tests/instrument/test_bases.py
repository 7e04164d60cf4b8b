"""The XP bases, guarded with GaiaXPy's own calibrate()."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from xpbayes.channels import XP_GRID_NM
from xpbayes.instrument.bases import design_matrix, implied_correlation
from xpbayes.instrument.gaiaxpy import figures_left_alone


def _numbers(text: str) -> np.ndarray:
    return np.array([float(x) for x in text.strip("()[]").split(",")])


@pytest.fixture(scope="module")
def sources(shared_data):
    return pd.read_csv(shared_data / "xp_continuous" / "XP_CONTINUOUS_RAW.csv", comment="#")


def _covariance(row) -> np.ndarray:
    blocks = []
    for band in ("bp", "rp"):
        error = _numbers(row[f"{band}_coefficient_errors"])
        n = len(error)
        correlation = np.eye(n)
        correlation[np.tril_indices(n, -1)] = _numbers(row[f"{band}_coefficient_correlations"])
        correlation += np.tril(correlation, -1).T
        blocks.append(correlation * np.outer(error, error))
    return np.block([[blocks[0], np.zeros_like(blocks[0])], [np.zeros_like(blocks[1]), blocks[1]]])


def test_equals_gaiaxpy(sources, shared_data, capsys):
    with figures_left_alone():
        from gaiaxpy import calibrate

    path = str(shared_data / "xp_continuous" / "XP_CONTINUOUS_RAW.csv")
    reference, _ = calibrate(path, sampling=XP_GRID_NM, save_file=False)
    design = design_matrix()
    for i, row in sources.iterrows():
        coefficients = np.concatenate([_numbers(row.bp_coefficients), _numbers(row.rp_coefficients)])
        assert_allclose(design @ coefficients, reference.iloc[i].flux, rtol=1e-12)
        error = np.sqrt(np.diag(design @ _covariance(row) @ design.T))
        assert_allclose(error, reference.iloc[i].flux_error, rtol=1e-12)


def test_implied_correlation_is_a_correlation():
    correlation = implied_correlation()
    assert_allclose(np.diag(correlation), 1.0)
    assert_allclose(correlation, correlation.T)
    assert np.linalg.eigvalsh(correlation)[0] > 0
    assert -0.5 < np.mean(np.diag(correlation, 1)) < -0.2


def test_implied_correlation_is_nearer_the_truth_than_none(sources):
    """Against the published correlations of real sources: 0.07 rms, where a diagonal is off by 0.17."""
    design = design_matrix()
    for _, row in sources.iterrows():
        covariance = design @ _covariance(row) @ design.T
        sigma = np.sqrt(np.diag(covariance))
        real = covariance / np.outer(sigma, sigma)
        rms = np.sqrt(np.mean((implied_correlation() - real) ** 2))
        assert rms < 0.1 < np.sqrt(np.mean((np.eye(61) - real) ** 2))


def test_importing_gaiaxpy_leaves_figures_alone():
    design_matrix()
    assert not matplotlib.rcParams["text.usetex"]
