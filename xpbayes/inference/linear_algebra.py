"""Linear algebra of many small matrices: factors, inverses and triangles of what a star's few parameters need.

On the device everything is unrolled: a batch of 5 x 5 systems is then plain arithmetic on vectors of stars, which every
device does well, where a library call per matrix costs more, and hung on CPUs. On the host, in float64, matrices are
inverted by their eigenvalues: whatever comes in, covariances come out positive.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

CLIPPED_PIVOT = 1e-7
"""Pivots of scaled matrices are raised to this: directions without information get small steps, not NaN."""
NO_INFORMATION = 1e-20
"""Diagonal entries are raised to this [1/kK^2, 1/dex^2, ...]: a parameter that nothing constrains."""
MAX_CONDITION = 1e12
"""Eigenvalues of a scaled Fisher matrix below the largest over this are floored: a direction without information gets
a huge error instead of a negative variance."""


def _equilibrated_factor(matrix: Array) -> tuple[list[list[Array]], Array, Array]:
    """Cholesky rows of a matrix scaled to unit diagonal, the scale, and the smallest pivot before clipping."""
    n = matrix.shape[0]
    diagonal = jnp.diagonal(matrix)
    scale = 1.0 / jnp.sqrt(jnp.maximum(jnp.abs(diagonal), 1e-30))
    a = matrix * scale[:, None] * scale[None, :]
    lower: list[list[Array]] = []
    smallest = a[0, 0]
    for i in range(n):
        row: list[Array] = []
        for j in range(i):
            row.append(_minus(a[i, j], [row[k] * lower[j][k] for k in range(j)]) / lower[j][j])
        pivot = _minus(a[i, i], [e * e for e in row])
        smallest = jnp.minimum(smallest, pivot)
        row.append(jnp.sqrt(jnp.maximum(pivot, CLIPPED_PIVOT)))
        lower.append(row)
    return lower, scale, smallest


def _minus(value: Array, terms: list[Array]) -> Array:
    for term in terms:
        value = value - term
    return value


def smallest_pivot(matrix: Float[Array, "n n"]) -> Float[Array, ""]:
    """Smallest Cholesky pivot after scaling to unit diagonal: positive exactly for positive definite matrices."""
    return _equilibrated_factor(matrix)[2]


def solve_positive(matrix: Float[Array, "n n"], vector: Float[Array, " n"]) -> Float[Array, " n"]:
    """Solve a small positive definite system by Cholesky factorisation of its equilibrated form."""
    n = matrix.shape[0]
    lower, scale, _ = _equilibrated_factor(matrix)
    b = vector * scale
    y: list[Array] = []
    for i in range(n):
        y.append(_minus(b[i], [lower[i][k] * y[k] for k in range(i)]) / lower[i][i])
    x: list[Array] = [b[0]] * n
    for i in reversed(range(n)):
        x[i] = _minus(y[i], [lower[k][i] * x[k] for k in range(i + 1, n)]) / lower[i][i]
    return jnp.stack(x) * scale


def ln_det_positive(matrix: Float[Array, "n n"]) -> Float[Array, ""]:
    """Ln determinant of a small positive definite matrix, by its equilibrated factor."""
    lower, scale, _ = _equilibrated_factor(matrix)
    return 2.0 * sum((jnp.log(row[-1]) for row in lower), jnp.zeros((), matrix.dtype)) - 2.0 * jnp.sum(jnp.log(scale))


def cholesky(matrix: Array) -> Array:
    """Lower-triangular factor of one small matrix, its diagonal of the order of one; pivots are clipped."""
    n = matrix.shape[0]
    lower = [[jnp.zeros((), matrix.dtype)] * n for _ in range(n)]
    for i in range(n):
        for j in range(i):
            lower[i][j] = (matrix[i, j] - sum(lower[i][k] * lower[j][k] for k in range(j))) / lower[j][j]
        pivot = matrix[i, i] - sum(lower[i][k] ** 2 for k in range(i))
        lower[i][i] = jnp.sqrt(jnp.maximum(pivot, CLIPPED_PIVOT))
    return jnp.stack([jnp.stack(row) for row in lower])


def factor_scaled(scale: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Lower-triangular factor of a small matrix of any units, taken of the matrix scaled to unit diagonal."""
    size = jnp.sqrt(jnp.maximum(jnp.diagonal(scale), 1e-12))
    return size[:, None] * cholesky(scale / size[:, None] / size[None, :])


def whitened(offset: Float[Array, "*point n"], factor: Float[Array, "*point n n"]) -> Float[Array, "*point n"]:
    """Inverse of lower-triangular factors times offsets; leading axes broadcast."""
    return jnp.stack(_white([offset[..., i] for i in range(offset.shape[-1])], factor), axis=-1)


def distance2(offset: Float[Array, "n *point"], factor: Float[Array, "*point n n"]) -> Float[Array, "*point"]:  # noqa: F821 - jaxtyping's shape string, no names
    """Squared lengths of whitened offsets, their coordinates along the first axis."""
    return jnp.asarray(sum(z**2 for z in _white(list(offset), factor)))


def _white(offset: list[Array], factor: Array) -> list[Array]:
    """Solve for one coordinate after the other, unrolled as `cholesky` is."""
    white: list[Array] = []
    for i, known in enumerate(offset):
        rest = known - sum(factor[..., i, k] * white[k] for k in range(i))
        white.append(rest / factor[..., i, i])
    return white


def are_positive_definite(matrices: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(star,) whether each symmetric matrix is positive definite, judged after scaling to unit diagonal."""
    m = np.asarray(matrices, dtype=np.float64)
    diagonal = np.diagonal(m, axis1=1, axis2=2)
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(m).all(axis=(1, 2)) & (diagonal > 0).all(axis=1))
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    correlation = np.where(finite[:, None, None], m, 0.0) * scale[:, :, None] * scale[:, None, :]
    return finite & (np.linalg.eigvalsh(correlation)[:, 0] > 0)


def invert_positive(matrices: NDArray[np.floating]) -> NDArray[np.float64]:
    """Invert symmetric information matrices, (star, parameter, parameter), so that the result is positive definite.

    That is C = I^-1 (Eq. 23), in float64; NaN where the input is not finite or has no positive diagonal.
    """
    m = np.asarray(matrices, dtype=np.float64)
    usable: NDArray[np.bool_] = np.asarray(np.isfinite(m).all(axis=(1, 2)))
    usable &= (np.diagonal(m, axis1=1, axis2=2) > 0).any(axis=1)  # else no eigenvalue need be positive
    safe = np.where(usable[:, None, None], m, np.eye(m.shape[1]))
    diagonal = np.diagonal(safe, axis1=1, axis2=2)
    scale = 1.0 / np.sqrt(np.maximum(diagonal, NO_INFORMATION))
    value, vector = np.linalg.eigh(safe * scale[:, :, None] * scale[:, None, :])
    value = np.maximum(value, value[:, -1:] / MAX_CONDITION)
    inverse = (vector / value[:, None, :]) @ vector.transpose(0, 2, 1)
    covariance = inverse * scale[:, :, None] * scale[:, None, :]
    covariance = 0.5 * (covariance + covariance.transpose(0, 2, 1))
    covariance[~usable] = np.nan
    return covariance


def upper_triangle(matrices: NDArray[np.floating]) -> NDArray[np.float32]:
    """Pack symmetric matrices: upper triangle, row by row, as in ZGR23 Table 2; infinite where float32 ends."""
    row, column = np.triu_indices(matrices.shape[-1])
    with np.errstate(over="ignore"):
        return matrices[:, row, column].astype(np.float32)


def from_upper_triangle(packed: NDArray[np.floating]) -> NDArray[np.float64]:
    """The inverse of `upper_triangle`."""
    n = int((np.sqrt(8 * packed.shape[-1] + 1) - 1) / 2)
    row, column = np.triu_indices(n)
    full = np.zeros((len(packed), n, n))
    full[:, row, column] = packed
    full[:, column, row] = packed
    return full
