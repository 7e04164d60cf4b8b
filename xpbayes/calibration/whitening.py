"""Whitening: a factor W with W^T W = C^-1, so that chi^2 = |W (f_pred - f_obs)|^2 (ZGR23 Eq. 3 and 4).

Any such factor gives the same chi^2. Ours is lower triangular, from a Cholesky factor; the paper's eigenvalue floor is
applied to the few covariances that need it. NumPy, float64 in, float32 out.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dtrtri

EIGENVALUE_FLOOR = 1e-9
"""ZGR23, Section 2.1 [(1e-18 W m^-2 nm^-1)^2]."""


def whiten(
    covariance: NDArray[np.float64], present: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Compute the lower-triangular whitening factors of a batch of covariances.

    Args:
        covariance: (star, sample, sample), symmetric; entries of absent samples are ignored.
        present: (star, sample) which samples were measured; all if None.

    Returns:
        (star, sample, sample) W, with zero rows and columns where a sample is absent, and (star,) whether the
        eigenvalue floor was needed.
    """
    n_star, n_sample, _ = covariance.shape
    if present is None:
        present = np.ones((n_star, n_sample), dtype=bool)
    # An absent sample becomes an independent one of unit variance for the factorisation, then a zero row and column.
    both = present[:, :, None] & present[:, None, :]
    filled = np.where(both, covariance, np.eye(n_sample))
    factor = np.empty_like(filled)
    floored = np.zeros(n_star, dtype=bool)
    for i, matrix in enumerate(filled):
        try:
            factor[i] = _invert_lower(np.linalg.cholesky(matrix))
            # |W|_F^2 = tr C^-1 >= 1 / smallest eigenvalue: below 1/floor no eigenvalue can be under the floor.
            safe = bool(np.sum(factor[i] ** 2) <= 1.0 / EIGENVALUE_FLOOR)
        except np.linalg.LinAlgError:
            safe = False
        if not safe:
            factor[i], floored[i] = _whiten_floored(matrix)
    factor *= both
    return factor, floored


def _invert_lower(lower: NDArray[np.float64]) -> NDArray[np.float64]:
    inverse, status = dtrtri(lower, lower=1)
    if status != 0:
        raise np.linalg.LinAlgError(f"dtrtri failed with status {status}")
    return np.tril(inverse)


def _whiten_floored(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], bool]:
    """Apply the paper's floor (Eq. 3), then return to a triangular factor. The second value: did the floor bind."""
    value, vector = np.linalg.eigh(matrix)
    binds = bool(value[0] < EIGENVALUE_FLOOR)
    # W = Dhat^(-1/2) U^T is square, not triangular; its QR factor R has R^T R = W^T W, and reversing rows and columns
    # before and after turns the upper triangle into a lower one.
    square = vector.T / np.sqrt(np.maximum(value, EIGENVALUE_FLOOR))[:, None]
    upper: NDArray[np.float64] = np.linalg.qr(square[:, ::-1]).R
    lower = upper[::-1, ::-1]
    return lower * np.sign(np.diag(lower))[:, None], binds


def pack(factor: NDArray[np.floating]) -> NDArray[np.float32]:
    """Pack lower triangles row by row: (star, n, n) -> (star, n(n+1)/2) float32."""
    row, column = np.tril_indices(factor.shape[-1])
    return factor[:, row, column].astype(np.float32)


def unpack(packed: NDArray[np.floating], band_inverse_error: NDArray[np.floating], n_xp: int) -> Any:
    """Assemble the full whitening factor of XP samples and bands.

    Args:
        packed: (star, n_xp(n_xp+1)/2) lower triangles of the XP factor.
        band_inverse_error: (star, band) 1/sigma, 0 where missing.
        n_xp: number of XP samples.

    Returns:
        (star, channel, channel) float32, zeros where missing.
    """
    n_star, n_band = band_inverse_error.shape
    n = n_xp + n_band
    full = np.zeros((n_star, n, n), dtype=np.float32)
    row, column = np.tril_indices(n_xp)
    full[:, row, column] = packed
    band = np.arange(n_xp, n)
    full[:, band, band] = band_inverse_error
    return full
