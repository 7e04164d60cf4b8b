import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.conftest import QUICK, as_double
from xpbayes.inference.errors import (
    are_positive_definite,
    evaluate_mode,
    from_upper_triangle,
    invert_positive,
    upper_triangle,
)
from xpbayes.models.forward import predict_flux
from xpbayes.models.theta import to_linear

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def stars(trained, sample):
    return sample.take(np.arange(10)).stars(trained.labels).blind()


def test_fisher_equals_a_finite_difference_one(trained, stars, x64):
    """Central differences of the flux by Teff, [Fe/H], log g, E and parallax, in NumPy; 1/sigma^2 on the parallax."""
    model, batch = as_double((trained.star_model.without_error, stars))
    from dataclasses import replace

    batch = replace(batch, parallax_inv_error=jnp.full(10, 25.0))
    u = jnp.asarray(np.column_stack([RNG.normal([5, -0.2, 3], 0.3, (10, 3)), RNG.normal([-1.5, 0.3], 0.3, (10, 2))]))
    fisher = evaluate_mode(model, batch, u).fisher
    for i in range(10):
        linear = np.asarray(to_linear(u[i]))

        def flux(x, i=i):
            sampled = np.concatenate([x[:3], np.log(x[3:])])
            return np.asarray(predict_flux(model.forward, jnp.asarray(sampled), batch.ln_scale[i]))

        step = 1e-5 * np.maximum(np.abs(linear), 0.1)
        columns = [
            (flux(linear + h) - flux(linear - h)) / (2 * step[k]) for k, h in enumerate(np.diag(step))
        ]  # fmt: skip
        jacobian = np.stack(columns, axis=1)
        whitening = np.asarray(batch.whitening[i])
        expected = jacobian.T @ (whitening.T @ whitening) @ jacobian + np.diag([0, 0, 0, 0, 25.0**2])
        assert_allclose(fisher[i], expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_hessian_in_float32_has_the_sign_of_the_one_in_float64(trained, sample):
    """Judged at solutions of 200 real stars, where the smallest scaled eigenvalue is about 1e-4."""
    from xpbayes.inference.fit import fit_stars
    from xpbayes.inference.model_error import fold_in_model_error
    from xpbayes.models.objective import objective

    stars = sample.take(np.arange(200)).stars(trained.labels).blind(parallax=False)
    result = fit_stars(trained.star_model, stars, QUICK)
    u = np.concatenate([result.estimate[:, :3], np.log(result.estimate[:, 3:])], axis=1)
    folded = fold_in_model_error(trained.star_model, jax.tree.map(jnp.asarray, stars), jnp.asarray(u, jnp.float32))
    with jax.enable_x64(True):
        model, batch, at = as_double((trained.star_model.without_error, folded, u))
        hessian = jax.jit(jax.vmap(lambda s, v: jax.hessian(lambda x: objective(model, s, x))(v)))
        exact = hessian(batch, at)
        expected = are_positive_definite(np.asarray(exact))
    assert np.mean(result.hessian_positive == expected) > 0.98
    assert np.mean(expected[result.converged]) > 0.98


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
