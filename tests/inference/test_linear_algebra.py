import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

from xpbayes.inference.linear_algebra import (
    are_positive_definite,
    cholesky,
    from_upper_triangle,
    invert_positive,
    smallest_pivot,
    solve_positive,
    upper_triangle,
)

RNG = np.random.default_rng(0)


def test_small_systems_are_solved(x64):
    root = RNG.normal(size=(5, 5)) * np.array([1e-3, 1, 10, 1, 1e3])
    matrix, vector = jnp.asarray(root.T @ root), jnp.asarray(RNG.normal(size=5))
    assert_allclose(solve_positive(matrix, vector), np.linalg.solve(matrix, vector), rtol=1e-6)


def test_smallest_pivot_tells_the_sign():
    assert smallest_pivot(jnp.eye(3)) == 1
    assert smallest_pivot(jnp.diag(jnp.array([1.0, -1e-3, 1.0]))) < 0
    assert smallest_pivot(jnp.array([[1.0, 2.0], [2.0, 1.0]])) < 0


def test_inverse_is_the_inverse_and_positive():
    root = RNG.normal(size=(20, 5, 5)) * np.array([1e-2, 1, 1, 10, 1e2])
    matrices = root.transpose(0, 2, 1) @ root
    covariance = invert_positive(matrices)
    assert_allclose(covariance @ matrices, np.broadcast_to(np.eye(5), (20, 5, 5)), atol=1e-5)
    assert are_positive_definite(covariance).all()


def test_a_singular_matrix_gets_huge_errors_not_negative_ones():
    matrix = np.diag([1.0, 4.0, 0.0, 1.0, 1.0])[None]
    matrix[0, 0, 1] = matrix[0, 1, 0] = 2.0 + 1e-7  # slightly indefinite, as rounding makes it
    covariance = invert_positive(matrix)
    assert np.all(np.linalg.eigvalsh(covariance[0]) > 0)
    assert covariance[0, 0, 0] > 1e5


def test_nan_stays_nan_and_alone():
    matrices = np.stack([np.eye(3), np.full((3, 3), np.nan)])
    covariance = invert_positive(matrices)
    assert_allclose(covariance[0], np.eye(3))
    assert np.isnan(covariance[1]).all()
    assert are_positive_definite(matrices).tolist() == [True, False]


def test_a_matrix_of_nothing_has_no_covariance():
    covariance = invert_positive(np.stack([np.eye(3), np.zeros((3, 3)), -np.eye(3)]))
    assert np.isnan(covariance[1:]).all() and np.isfinite(covariance[0]).all()


def test_positive_definiteness_is_judged_after_scaling():
    good = np.diag([1e-12, 1.0, 1e12])
    bad = good.copy()
    bad[0, 2] = bad[2, 0] = 1.1
    assert are_positive_definite(np.stack([good, bad])).tolist() == [True, False]


def test_triangles_round_trip():
    matrices = RNG.normal(size=(3, 5, 5))
    matrices = matrices + matrices.transpose(0, 2, 1)
    packed = upper_triangle(matrices)
    assert packed.shape == (3, 15)
    assert_allclose(packed[0, :5], matrices[0, 0], rtol=1e-6)  # row by row
    assert_allclose(from_upper_triangle(packed), matrices, rtol=1e-6)


def test_cholesky_equals_numpy_s():
    root = RNG.normal(size=(5, 5))
    matrix = root @ root.T + np.eye(5)
    assert_allclose(cholesky(jnp.asarray(matrix, jnp.float32)), np.linalg.cholesky(matrix), rtol=1e-4, atol=1e-5)
