"""Whitening: a factor W with W^T W = C^-1, so that chi^2 = |W (f_pred - f_obs)|^2 (ZGR23 Eq. 3 and 4).

Any such factor gives the same chi^2. Ours is lower triangular, from a Cholesky factor; the paper's eigenvalue floor is
applied to the few covariances that need it. NumPy, float64 in, float32 out.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dtrtri, dtrttp

from xpbayes.device import aligned_zeros

EIGENVALUE_FLOOR = 1e-9
"""ZGR23, Section 2.1 [(1e-18 W m^-2 nm^-1)^2]."""


def whiten_packed(
    covariance: NDArray[np.float64], present: NDArray[np.bool_], out: NDArray[Any] | None = None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Compute whitening factors as the star table stores them: by LAPACK, one by one, which beats any batching.

    Args:
        covariance: (star, sample, sample), symmetric; entries of absent samples are ignored.
        present: (star, sample) which samples were measured.
        out: (star, packed) where to put them; new memory, float32, if None.

    Returns:
        (star, packed) lower triangles, row by row, with zeros in rows and columns of absent samples, and (star,)
        whether the eigenvalue floor was needed.
    """
    n_star, n_sample, _ = covariance.shape
    if out is None:
        out = np.empty((n_star, n_sample * (n_sample + 1) // 2), np.float32)
    floored = np.zeros(n_star, dtype=bool)
    whole = np.asarray(present.all(axis=1))
    for i in range(n_star):
        matrix = covariance[i]
        if not whole[i]:
            # An absent sample becomes an independent one of unit variance for the factorisation, then a zero row and
            # column.
            both = present[i][:, None] & present[i]
            matrix = np.where(both, matrix, np.eye(n_sample))
        # Fortran's view of a row-major lower triangle is an upper one, column after column: our packing.
        upper, status = dpotrf(matrix.T, lower=0, clean=0)
        if status == 0:
            upper, status = dtrtri(upper, lower=0, overwrite_c=1)
        if status == 0:
            triangle, status = dtrttp(upper, "U")
        # |W|_F^2 = tr C^-1 >= 1 / smallest eigenvalue: below 1/floor no eigenvalue can be under the floor.
        if status != 0 or not triangle @ triangle <= 1.0 / EIGENVALUE_FLOOR:
            factor, floored[i] = _whiten_floored(matrix)
            triangle = factor[np.tril_indices(n_sample)]
        out[i] = triangle if whole[i] else triangle * both[np.tril_indices(n_sample)]
    return out, floored


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


def unpack(packed: NDArray[np.floating], band_inverse_error: NDArray[np.floating], n_xp: int) -> Any:
    """Assemble the whitening factor of XP samples and bands: (star, channel, channel) float32, zeros where missing.

    `packed` is (star, n_xp(n_xp+1)/2), lower triangles of the XP factor; `band_inverse_error` (star, band) 1/sigma.
    """
    n_star, n_band = band_inverse_error.shape
    n = n_xp + n_band
    full = aligned_zeros((n_star, n, n), np.float32)
    for row in range(n_xp):  # slices, which cost a third of what indices do
        first = row * (row + 1) // 2
        full[:, row, : row + 1] = packed[:, first : first + row + 1]
    band = np.arange(n_xp, n)
    full[:, band, band] = band_inverse_error
    return full
