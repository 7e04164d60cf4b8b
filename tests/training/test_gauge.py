"""The gauge's moves leave fluxes alone, find what was moved, and are not diluted by errors; NumPy, no training."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from xpbayes.models.forward import ForwardModel, initial_model, predict_ln_flux
from xpbayes.training.gauge import (
    LARGEST_LABEL_MOVE,
    MIN_EXTINCTION,
    _features,
    move_gauge,
    moves_by_kind,
    robust_ridge,
)

N, N_CHANNELS = 3000, 12
RNG = np.random.default_rng(20)
CENTER, SPREAD = np.array([5.2, -0.2, 3.5]), np.array([0.7, 0.3, 0.9])
LABEL_ERROR, REDDENING_ERROR, RELATIVE_PARALLAX_ERROR = 0.2 * SPREAD, 0.05, 0.05


@pytest.fixture(scope="module")
def survey():
    """Stars at their truth, a network, and measurements with errors."""
    labels = CENTER + SPREAD * RNG.normal(size=(N, 3))
    extinction, parallax = RNG.gamma(2.0, 0.2, N) + 0.01, np.exp(RNG.normal(size=N))
    ln_curve = np.log(np.linspace(3.0, 0.3, N_CHANNELS))
    model = initial_model(jax.random.key(3), labels, np.zeros(N_CHANNELS), ln_curve, hidden=(8, 8))
    theta_log = np.column_stack([labels, np.log(extinction), np.log(parallax)])
    measured = SimpleNamespace(
        labels=labels + LABEL_ERROR * RNG.normal(size=(N, 3)),
        label_inv_error=np.tile(1 / LABEL_ERROR, (N, 1)),
        reddening=extinction + REDDENING_ERROR * RNG.normal(size=N),
        reddening_inv_error=np.full(N, 1 / REDDENING_ERROR),
        parallax=parallax * (1 + RELATIVE_PARALLAX_ERROR * RNG.normal(size=N)),
        parallax_inv_error=1 / (RELATIVE_PARALLAX_ERROR * parallax),
    )
    return model, theta_log, measured


def fluxes(model: ForwardModel, theta_log: np.ndarray) -> np.ndarray:
    return np.asarray(jax.vmap(lambda u: predict_ln_flux(model, u))(jnp.asarray(theta_log, jnp.float32)))


def away(model: ForwardModel, theta_log: np.ndarray, scale: float, zero: float, level: float) -> tuple:
    """The same fluxes from other parameters: E * scale + zero, ln parallax + level."""
    from dataclasses import replace

    curve = np.exp(np.asarray(model.ln_curve, np.float64)) / scale
    moved = theta_log.copy()
    moved[:, 3] = np.log(scale * np.exp(theta_log[:, 3]) + zero)
    moved[:, 4] += level
    bias = np.asarray(model.biases[-1]) - 2 * level + zero * curve
    other = replace(
        model,
        biases=(*model.biases[:-1], jnp.asarray(bias, jnp.float32)),
        ln_curve=jnp.asarray(np.log(curve), jnp.float32),
    )
    return other, moved


def test_fluxes_stay_and_what_was_moved_comes_back(survey):
    model, theta_log, measured = survey
    other, moved = away(model, theta_log, 1.08, 0.02, 0.15)
    assert_allclose(fluxes(other, moved), fluxes(model, theta_log), atol=2e-4)
    found = move_gauge(other, measured, moved, labels=False)
    assert_allclose(fluxes(found.forward, found.theta_log), fluxes(model, theta_log), atol=5e-4)
    assert found.scale == pytest.approx(1 / 1.08, abs=5 * REDDENING_ERROR / (np.exp(theta_log[:, 3]).std() * N**0.5))
    # Nine coefficients and a constant are fitted: their error at a star is about sigma sqrt(10 / N).
    error = np.abs(found.theta_log[:, 4] - theta_log[:, 4])
    assert np.sqrt(np.mean(error**2)) < 2 * RELATIVE_PARALLAX_ERROR * (10 / N) ** 0.5
    there = np.exp(found.theta_log[:, 3]) > 2 * MIN_EXTINCTION
    error = np.exp(found.theta_log[there, 3]) - np.exp(theta_log[there, 3])
    assert np.sqrt(np.mean(error**2)) < 2 * REDDENING_ERROR * (11 / N) ** 0.5


def test_labels_come_back_from_a_move_that_depends_on_them(survey):
    model, theta_log, measured = survey
    moved = theta_log.copy()
    moved[:, 2] += 0.1 * np.tanh((theta_log[:, 2] - 3.5) / 0.9) + 0.05
    found = move_gauge(model, measured, moved, labels=True)
    before, after = (np.sqrt(np.mean((u[:, 2] - theta_log[:, 2]) ** 2)) for u in (moved, found.theta_log))
    assert after < 0.35 * before
    assert np.all(np.abs(found.by[:, :3]) <= LARGEST_LABEL_MOVE * SPREAD * 1.2)


def test_a_joint_solution_is_not_diluted(survey):
    """Solutions that took half of their weight from a noisy measurement: its regression on them has the slope 1."""
    model, theta_log, measured = survey
    extinction = np.exp(theta_log[:, 3])
    from_fluxes = extinction + REDDENING_ERROR * RNG.normal(size=N)
    joint = theta_log.copy()
    joint[:, 3] = np.log(np.maximum(0.5 * (from_fluxes + measured.reddening), 1e-4))
    error = REDDENING_ERROR / (extinction.std() * N**0.5)
    assert move_gauge(model, measured, joint).scale == pytest.approx(1.0, abs=4 * error)


def test_spurious_measurements_and_weights_decide_nothing(survey):
    model, theta_log, measured = survey
    spoiled = SimpleNamespace(**vars(measured))
    bad = np.arange(N) % 20 == 0
    spoiled.parallax = np.where(bad, 3 * measured.parallax, measured.parallax)
    by = move_gauge(model, spoiled, theta_log, labels=False).by[:, 4]
    assert np.abs(np.median(by)) < 0.01
    weight = np.where(np.exp(theta_log[:, 3]) < 0.4, 1.0, 0.0)
    spoiled.reddening = np.where(weight > 0, measured.reddening, 5.0)
    scale = move_gauge(model, spoiled, theta_log, weight, labels=False).scale
    assert scale == pytest.approx(1.0, abs=0.05)


def test_stars_of_little_weight_do_not_tilt_the_scale_of_e(survey):
    """E behind dust of another law is off by less than an estimate's error: fluxes have to tell, by their weights."""
    model, theta_log, measured = survey
    odd = np.arange(N) % 10 == 0
    moved = theta_log.copy()
    moved[odd, 3] += np.log(1.3)
    clean, spoiled = (
        move_gauge(model, measured, u, np.where(odd, 0.3, 1.0), labels=False).scale for u in (theta_log, moved)
    )
    assert abs(spoiled / clean - 1) < 0.005  # .0036; weights that are not squared .0066, all stars alike .0125


def test_the_last_move_tells_finer_kinds_apart(survey):
    """A zero point of E that only the hindmost combination of neurons describes."""
    model, theta_log, measured = survey
    extinction = np.exp(theta_log[:, 3])
    hindmost = _features(model, theta_log[:, :3]).values[:, -1]
    moved = theta_log.copy()
    moved[:, 3] = np.log(extinction + 0.3 + 0.05 * hindmost)
    wrong = [
        np.std(np.exp(move_gauge(model, measured, moved, labels=False, last=last).theta_log[:, 3]) - extinction)
        for last in (False, True)
    ]
    assert wrong[1] < 0.2 * wrong[0]


def test_what_was_not_measured_stays(survey):
    model, theta_log, measured = survey
    blind = SimpleNamespace(**vars(measured))
    blind.reddening_inv_error = np.zeros(N)
    blind.parallax_inv_error = np.zeros(N)
    found = move_gauge(model, blind, theta_log, labels=False)
    assert_allclose(found.theta_log, theta_log)
    assert found.scale == 1.0


def test_the_record_tells_kinds_apart(survey):
    model, theta_log, measured = survey
    other, moved = away(model, theta_log, 1.0, 0.0, 0.15)
    told = moves_by_kind(move_gauge(other, measured, moved), moved)
    assert told["all"][-1] == pytest.approx(-0.15, abs=0.01) and {"giants", "sun-like dwarfs"} <= set(told)


def test_robust_ridge_is_ridge_for_exact_targets():
    features = np.column_stack([np.ones(50), RNG.normal(size=(50, 3))])
    truth = np.array([0.3, -1.0, 2.0, 0.5])
    found = robust_ridge(features, features @ truth, np.full(50, 10.0), np.full(4, 1e-9))
    assert_allclose(found, truth, atol=1e-9)
    shrunk = robust_ridge(features, features @ truth, np.full(50, 10.0), np.full(4, 1e9))
    assert np.abs(shrunk).max() < 1e-4
