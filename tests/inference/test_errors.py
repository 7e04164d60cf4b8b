import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.conftest import QUICK, as_double
from xpbayes.inference.errors import evaluate_mode
from xpbayes.inference.linear_algebra import are_positive_definite
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
