"""The XP bases: how a sampled spectrum depends on Gaia's coefficients, and what that implies for its correlations.

Out: D (sample, coefficient), so that flux = D c and covariance = D C_c D^T (METHOD 2); the correlation that the bases
imply for a spectrum that was published without one.
GaiaXPy owns the bases. It takes seconds to import, so it is imported inside.
"""

import contextlib
import io
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from xpbayes.channels import XP_GRID_NM

BP_MODEL, RP_MODEL = "v375wi", "v142r"
"""Gaia DR3's instrument models, GaiaXPy's defaults."""

LN_ERROR_SHAPE = {"bp": (-1.01793, -0.57880, 0.17097), "rp": (-0.83328, -0.83403, 0.31980)}
"""ln of a coefficient's typical error against its order k, as c1 x + c2 x^2 + c0 with x running from -1 to 1 over the
coefficients: a least-squares fit to the median profile of 2,000 Gaia DR3 sources (published coefficient errors).
The sampled correlation that it implies differs from that of three real sources with full covariances by 0.07-0.09 rms
(equal errors: 0.14-0.19; a diagonal: 0.17-0.19)."""


@contextlib.contextmanager
def figures_left_alone() -> Iterator[None]:
    """Import GaiaXPy inside this: on import it turns on LaTeX for every matplotlib figure of the process."""
    import matplotlib

    with matplotlib.rc_context():
        yield


@lru_cache(maxsize=4)
def _design(grid: tuple[float, ...]) -> NDArray[np.float64]:
    with figures_left_alone():
        from gaiaxpy.calibrator import calibrator

    # A private function: there is no public door to the design matrices. tests/calibration guards it with
    # GaiaXPy's own calibrate().
    build = getattr(calibrator, "__generate_xp_matrices_and_merge")
    with contextlib.redirect_stdout(io.StringIO()):
        bases, merge = build("calibrator", np.asarray(grid), BP_MODEL, RP_MODEL)
    return np.hstack([bases[band].design_matrix.T * np.asarray(merge[band])[:, None] for band in bases])


def design_matrix(grid_nm: NDArray[np.float64] = XP_GRID_NM) -> NDArray[np.float64]:
    """Compute D with the BP/RP merge weights applied: flux = D c.

    Args:
        grid_nm: (sample,) wavelengths [nm].

    Returns:
        (sample, 110) float64 [W m^-2 nm^-1 per coefficient unit]; BP coefficients first, then RP.
    """
    return _design(tuple(float(w) for w in grid_nm))


def implied_correlation(grid_nm: NDArray[np.float64] = XP_GRID_NM) -> NDArray[np.float64]:
    """Compute the correlation of sampled fluxes for independent coefficients with typical errors.

    For XP spectra published with errors only (METHOD 2): neighbouring samples are anti-correlated, -0.35 on average.

    Args:
        grid_nm: (sample,) wavelengths [nm].

    Returns:
        (sample, sample) float64 correlation matrix, unit diagonal, positive semi-definite.
    """
    design = design_matrix(grid_nm)
    order = np.linspace(-1.0, 1.0, design.shape[1] // 2)
    ln_error = np.concatenate(
        [
            linear * order + quadratic * order**2 + constant
            for linear, quadratic, constant in (LN_ERROR_SHAPE["bp"], LN_ERROR_SHAPE["rp"])
        ]
    )
    scaled = design * np.exp(ln_error)
    covariance = scaled @ scaled.T
    sigma = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(sigma, sigma)
    np.fill_diagonal(correlation, 1.0)
    return correlation
