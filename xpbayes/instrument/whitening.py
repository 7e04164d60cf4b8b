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
    row, column = np.tril_indices(n_sample)
    packed = np.empty((n_star, len(row)))
    floored = _fill_packed(packed, covariance, present)
    factor = np.zeros((n_star, n_sample, n_sample))
    factor[:, row, column] = packed
    return factor, floored


def whiten_packed(
    covariance: NDArray[np.float64],
    present: NDArray[np.bool_] | None = None,
    out: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Compute the same factors as the star table stores them.

    Args:
        covariance: (star, sample, sample), symmetric; entries of absent samples are ignored.
        present: (star, sample) which samples were measured; all if None.
        out: (star, packed) where to put them; new memory if None.

    Returns:
        (star, packed) float32 lower triangles, row by row, and (star,) whether the eigenvalue floor was needed.
    """
    n_star, n_sample, _ = covariance.shape
    if out is None:
        out = np.empty((n_star, n_sample * (n_sample + 1) // 2), np.float32)
    return out, _fill_packed(out, covariance, present)


def _fill_packed(
    packed: NDArray[np.floating], covariance: NDArray[np.float64], present: NDArray[np.bool_] | None
) -> NDArray[np.bool_]:
    """Write the packed triangles of W; return (star,) whether the floor was needed.

    In float64, by LAPACK on one matrix after the other, which beats any batching.
    """
    n_star, n_sample, _ = covariance.shape
    floored = np.zeros(n_star, dtype=bool)
    whole = np.ones(n_star, bool) if present is None else np.asarray(present.all(axis=1))
    for i in range(n_star):
        matrix = covariance[i]
        if present is not None and not whole[i]:
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
        packed[i] = triangle if whole[i] else triangle * both[np.tril_indices(n_sample)]
    return floored


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
    full = aligned_zeros((n_star, n, n), np.float32)
    for row in range(n_xp):  # slices, which cost a third of what indices do
        first = row * (row + 1) // 2
        full[:, row, : row + 1] = packed[:, first : first + row + 1]
    band = np.arange(n_xp, n)
    full[:, band, band] = band_inverse_error
    return full
