"""What training leaves unknown of the model, against dense double-precision references on a tiny network."""

from dataclasses import fields, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.conftest import as_double
from xpbayes.data.stars import Stars
from xpbayes.inference.fit import Posteriors
from xpbayes.models.forward import ForwardModel, predict_flux
from xpbayes.models.objective import measurement_residuals, objective
from xpbayes.models.prior import LabelPrior
from xpbayes.models.star_model import StarModel
from xpbayes.training.network_uncertainty import (
    add_model_covariance,
    factor_weights,
    trained_vector,
    weight_covariance,
    weight_precision,
    with_vector,
)

RNG = np.random.default_rng(0)
N_CHANNELS, N_STARS, N_TRAINING = 9, 30, 60
SIZES = [(3, 4), (4, N_CHANNELS)]
SIGMA = 0.01


@pytest.fixture(scope="module")
def problem():
    """Stars on the model, without noise, so that Gauss-Newton is exact, and their solutions; labels measured."""
    forward = ForwardModel(
        tuple(jnp.asarray(0.5 * RNG.normal(size=size), jnp.float32) for size in SIZES),
        tuple(jnp.asarray(0.3 * RNG.normal(size=out), jnp.float32) for _, out in SIZES),
        jnp.linspace(1.0, -1.0, N_CHANNELS),
        jnp.asarray([5.0, 0.0, 3.0]),
        jnp.asarray([1.0, 0.5, 1.5]),
    )
    labels = np.array([5.0, 0.0, 3.0]) + RNG.normal(size=(N_STARS, 3)) * [1.0, 0.5, 1.5]
    at = np.column_stack([labels, np.log(0.3 + RNG.random(N_STARS)), 0.3 * RNG.normal(size=N_STARS)])
    at = jnp.asarray(at, jnp.float32)
    flux = jax.vmap(partial(predict_flux, forward))(at)
    whitening = jnp.asarray(np.tril(0.3 * RNG.normal(size=(N_CHANNELS, N_CHANNELS)), -1) + np.eye(N_CHANNELS))
    # With E + 1/E-sigma^2: the Jacobian's pull on ln E and ln parallax is balanced by the measurements, so `at` is a mode.
    extinction, parallax = jnp.exp(at[:, 3]), jnp.exp(at[:, 4])
    error_e, error_plx = jnp.full(N_STARS, 0.1), jnp.full(N_STARS, 0.1)
    stars = Stars(
        flux=flux,
        whitening=whitening.astype(jnp.float32) / (SIGMA * flux[:, None, :]),
        ln_scale=jnp.zeros(N_STARS),
        parallax=parallax - error_plx**2 / parallax,
        parallax_inv_error=1 / error_plx,
        labels=at[:, :3],
        label_inv_error=jnp.full((N_STARS, 3), 1 / 0.05),
        reddening=extinction - error_e**2 / extinction,
        reddening_inv_error=1 / error_e,
        inv_dof=jnp.zeros(N_STARS),
    )
    prior = LabelPrior(
        jnp.zeros(1), jnp.asarray([[5.0, 0.0, 3.0]]), jnp.eye(3)[None] / 50.0, jnp.asarray(-9.0)
    )  # so wide that it pulls nowhere
    return StarModel(forward, prior), stars, at


@pytest.fixture(scope="module")
def precision(problem):
    model, stars, at = problem
    return weight_precision(model.forward, stars, at, N_TRAINING)


def _residuals(forward, star, vector, u):
    """Everything that the joint posterior squares, of one star, in float64."""
    flux = predict_flux(with_vector(forward, vector), u, star.ln_scale)
    return jnp.concatenate([star.whitening @ (flux - star.flux), measurement_residuals(star, u)])


@pytest.mark.thorough
def test_precision_is_the_dense_joint_one_with_stars_marginalised(problem, precision, x64):
    """Central differences of all residuals by the model and all stars, the joint matrix, and one Schur complement."""
    model, stars, at = as_double(problem)
    model = model.forward
    vector, n_w = np.asarray(trained_vector(model)), trained_vector(model).size
    joint = np.zeros((n_w + 5 * N_STARS,) * 2)
    weight = np.arange(n_w) < model.n_weights
    joint[np.arange(n_w), np.arange(n_w)] = weight * N_STARS / model.n_weights
    for i in range(N_STARS):
        residuals = jax.jit(lambda both, i=i: _residuals(model, stars.take(i), both[:n_w], both[n_w:]))
        point, step = np.concatenate([vector, at[i]]), 1e-6
        slope = np.stack([(residuals(point + d) - residuals(point - d)) / (2 * step) for d in step * np.eye(n_w + 5)])
        index = np.concatenate([np.arange(n_w), n_w + 5 * i + np.arange(5)])
        joint[np.ix_(index, index)] += slope @ slope.T
    across, own = joint[:n_w, n_w:], joint[n_w:, n_w:]
    expected = (joint[:n_w, :n_w] - across @ np.linalg.solve(own, across.T)) * N_TRAINING / N_STARS
    size = np.sqrt(np.diagonal(expected))
    assert_allclose(precision / size[:, None] / size, expected / size[:, None] / size, atol=2e-4)


def _optima(model, stars, at):
    """Newton's method on the objective itself, differentiated automatically."""
    slope, bend = jax.grad(objective, 2), jax.hessian(objective, 2)

    def newton(star, u):
        for _ in range(3):
            u = u - jnp.linalg.solve(bend(model, star, u), slope(model, star, u))
        return u

    return jax.vmap(newton)(stars, at)


@pytest.mark.thorough
def test_added_covariance_is_that_of_optima_under_other_models(problem, precision, x64):
    """Stars solved anew after the model was moved a little along each column: the sum of the squared shifts."""
    model, stars, at = as_double(problem)
    blind = replace(stars, label_inv_error=jnp.zeros_like(stars.label_inv_error))
    factor = factor_weights(model, precision, blind, at, captured=1.0, max_columns=8)
    columns = jnp.asarray(factor.columns, at.dtype)
    found = np.asarray(weight_covariance(model, columns, blind, at))
    expected = np.zeros_like(found)
    solved = jax.jit(lambda w, begin: _optima(replace(model, forward=with_vector(model.forward, w)), blind, begin))
    vector, step = trained_vector(model.forward), 1e-4
    begin = solved(vector, at)
    for column in columns.T:
        moved = [solved(vector + s * column, begin) for s in (step, -step)]
        linear = [np.concatenate([m[:, :3], np.exp(m[:, 3:])], axis=1) for m in moved]
        shift = (linear[0] - linear[1]) / (2 * step)
        expected += shift[:, :, None] * shift[:, None, :]
    size = np.sqrt(np.diagonal(expected, axis1=1, axis2=2))
    unit = size[:, :, None] * size[:, None, :]
    assert_allclose(found / unit, expected / unit, atol=0.02)
    assert np.linalg.eigvalsh(found.astype(float)).min() > -1e-6 * np.abs(found).max()
    nothing = weight_covariance(model, jnp.zeros_like(columns), blind, at)
    assert np.array_equal(np.asarray(nothing), np.zeros_like(found))


@pytest.mark.thorough
def test_more_training_stars_leave_less_unknown(problem, precision):
    """Four times the stars, half the error; all of the added variance is in as many columns as there are."""
    model, stars, at = problem
    blind = replace(stars, label_inv_error=jnp.zeros_like(stars.label_inv_error))
    added = []
    for many in (1, 4):
        factor = factor_weights(model, many * precision, blind, at, captured=1.0, max_columns=200)
        assert factor.captured > 0.9999
        added.append(np.asarray(weight_covariance(model, jnp.asarray(factor.columns), blind, at)))
    assert_allclose(added[0], 4 * added[1], rtol=1e-3, atol=1e-9)
    few = factor_weights(model, precision, blind, at, captured=0.5)
    assert 0.5 <= few.captured < 1 and few.columns.shape[1] < 20


@pytest.fixture
def found():
    """Results of three stars with unit covariances and summaries around 1; the third has no draws."""
    numbers = {f.name: np.ones((3, 5), np.float32) for f in fields(Posteriors)}
    numbers |= dict.fromkeys(("fisher", "covariance", "laplace"), np.tile(np.eye(5), (3, 1, 1)))
    summaries = {"mean": 1.1, "std": 1.0, "median": 1.0, "low": 0.4, "high": 2.2}
    without = np.array([1, 1, np.nan])[:, None]
    return Posteriors(**numbers | {n: np.full((3, 5), v, np.float32) * without for n, v in summaries.items()})


def test_widths_add_in_quadrature_and_centres_stay(found):
    """By hand; a star of which nothing is known to add, and one without draws, keep what they have."""
    added = np.tile(np.diag([9 / 16, 9 / 16, 9 / 16, 16 / 9, 0.0]), (3, 1, 1))
    added[1] = np.nan
    wide = add_model_covariance(found, added)
    for name in ("mean", "median", "estimate"):
        np.testing.assert_array_equal(getattr(wide, name), getattr(found, name))
    assert_allclose(np.diagonal(wide.covariance[0]), [25 / 16, 25 / 16, 25 / 16, 25 / 9, 1])
    assert_allclose(wide.laplace[0], wide.covariance[0])
    assert_allclose(np.diagonal(wide.fisher[0]), [16 / 25, 16 / 25, 16 / 25, 9 / 25, 1], rtol=1e-6)
    assert_allclose(wide.std[0], [5 / 4, 5 / 4, 5 / 4, 5 / 3, 1], rtol=1e-6)
    assert_allclose(wide.high[0], 1 + np.array([np.hypot(1.2, 0.75)] * 3 + [np.hypot(1.2, 4 / 3), 1.2]), rtol=1e-6)
    assert_allclose(wide.low[0], [1 - np.hypot(0.6, 0.75)] * 3 + [0.0, 0.4], rtol=1e-6)  # E is not negative
    for f in fields(Posteriors):
        np.testing.assert_array_equal(getattr(wide, f.name)[1], getattr(found, f.name)[1])
    assert np.isnan(wide.std[2]).all() and wide.covariance[2, 0, 0] == 25 / 16
