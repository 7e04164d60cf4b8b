"""L and its closed-form derivatives, Gaussian and Student t, against automatic differentiation in float64."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.conftest import as_double
from xpbayes.data.stars import ParallaxDoubt, Stars
from xpbayes.models.forward import initial_model, predict_flux
from xpbayes.models.objective import at_other_parallax, curvature, expand, flux_chi2, flux_residuals, objective
from xpbayes.models.prior import LabelPrior
from xpbayes.models.star_model import StarModel

RNG = np.random.default_rng(0)
N = 14
TAILS = [0.0, 0.1, 1.5]


@pytest.fixture(scope="module")
def model():
    found = initial_model(
        jax.random.key(0), RNG.normal(size=(200, 3)), np.linspace(0, 1, N), np.linspace(0.5, -1, N), (6, 5)
    )
    weights = tuple(w + 0.5 * RNG.normal(size=w.shape).astype(np.float32) for w in found.weights)
    return type(found)(weights, found.biases, found.ln_curve, found.label_center, found.label_scale)


@pytest.fixture(scope="module")
def prior():
    whitening = np.stack([np.diag([1.5, 2.0, 0.8]), np.array([[1.0, 0.4, 0], [0, 1.2, 0], [0, 0, 2.0]])])
    return LabelPrior(
        *(jnp.asarray(v, jnp.float32) for v in (np.log([0.7, 0.3]), RNG.normal(size=(2, 3)), whitening, -9.0))
    )


def _star(model, inv_dof, truth):
    """A star at `truth` with correlated errors of 3 %, two channels missing, and everything measured."""
    flux = np.asarray(predict_flux(model, jnp.asarray(truth), 0.3), float)
    root = np.diag(0.03 * flux) @ (np.eye(N) + 0.3 * RNG.normal(size=(N, N)))
    present = np.delete(np.arange(N), [4, 9])
    whitening = np.zeros((N, N))
    inside = np.ix_(present, present)
    whitening[inside] = np.linalg.inv(np.linalg.cholesky((root @ root.T)[inside]))
    flux = flux + root @ RNG.normal(size=N)
    values = (
        flux, whitening, 0.3, np.exp(truth[-1]) + 0.1, 8.0, truth[:3] + 0.1, np.array([3.0, 0.0, 5.0]),
        np.exp(truth[-2]) - 0.05, 15.0, inv_dof,
    )  # fmt: skip
    return Stars(*(jnp.asarray(v, jnp.float64) for v in values))


@pytest.fixture(params=[(tail, False) for tail in TAILS] + [(0.1, True)])
def case(request, model, x64):
    """A model, a star and a point near its truth; the last with an extinction curve that varies and a doubted parallax."""
    tail, varies = request.param
    model = as_double(model)
    intrinsic = RNG.normal(0, 0.5, 3)
    if varies:
        model = replace(model, curve_variation=0.2 * jnp.asarray(RNG.normal(size=N)) * jnp.exp(model.ln_curve))
        intrinsic = np.append(intrinsic, 1.3)
    truth = np.append(intrinsic, RNG.normal([-1.0, 0.2], 0.3))
    star = _star(model, tail, truth)
    if varies:
        star = replace(star, doubt=ParallaxDoubt(jnp.asarray(0.3), jnp.asarray(0.2)))
    return model, star, jnp.asarray(truth + RNG.normal(0, 0.1, len(truth)))


@jax.jit
def _curvature(model, star, u):
    return curvature(model, star, u)[0]


@jax.jit
def _differentiated(model, star, u):
    target = partial(objective, model, star)
    return target(u), jax.grad(target)(u), jax.hessian(target)(u)


@pytest.mark.parametrize("with_prior", [False, True])
def test_value_gradient_and_hessian_equal_automatic_differentiation(case, prior, with_prior):
    model, star, u = case
    known = as_double(prior) if with_prior else None
    at = _curvature(StarModel(model, known), star, u)
    value, gradient, expected = _differentiated(StarModel(model, known), star, u)
    assert_allclose(at.value, value, rtol=1e-12)
    assert_allclose(at.gradient, gradient, rtol=1e-10, atol=1e-9)
    assert_allclose(at.hessian, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())
    assert at.size >= abs(at.value)


def test_chi2_and_information(case):
    """chi^2 and rho' J^T J, from the residuals alone."""
    model, star, u = case
    at = _curvature(StarModel(model), star, u)
    jacobian = np.asarray(jax.jacfwd(lambda v: flux_residuals(model, star, v))(u))
    chi2, inv_dof = float(flux_chi2(model, star, u)), float(star.inv_dof)
    weight = (1 + 12 * inv_dof) / (1 + inv_dof * chi2)  # 12 of 14 channels are there
    assert_allclose(at.chi2, chi2, rtol=1e-12)
    assert_allclose(at.information, weight * jacobian.T @ jacobian, rtol=1e-9, atol=1e-9)


def test_bound_is_positive(case, prior):
    """Also far from the mode, where the Hessian is not."""
    model, star, u = case
    indefinite = 0
    for _ in range(40):
        at = _curvature(StarModel(model, as_double(prior)), star, u + jnp.asarray(RNG.normal(0, 0.7, u.size)))
        eigenvalues = np.linalg.eigvalsh(at.bound)
        assert eigenvalues[0] > -1e-9 * eigenvalues[-1]
        indefinite += np.linalg.eigvalsh(at.hessian)[0] < 0
    assert indefinite > 0, "the Hessian was positive everywhere: nothing was tested"


def test_another_parallax_needs_no_new_evaluation(case):
    """The expansion taken to another ln parallax is the expansion there: fluxes, derivatives and residuals."""
    model, star, u = case
    for shift in (-0.7, 0.0, 0.02, 1.3):
        there = expand(model, star, u.at[-1].add(shift))
        moved = at_other_parallax(expand(model, star, u), jnp.asarray(shift))
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-10, atol=1e-9), moved, there)


def test_bend_along_equals_automatic_differentiation(case):
    """J^T C^-1 d2f along a step, weighted as rho weights the star."""
    model, star, u = case
    at, bend_along = curvature(StarModel(model), star, u)
    jacobian = jax.jacfwd(lambda v: flux_residuals(model, star, v))(u)
    for _ in range(3):
        step = jnp.asarray(RNG.normal(size=u.size))
        second = jax.jacfwd(jax.jacfwd(lambda t, s=step: flux_residuals(model, star, u + t * s)))(0.0)
        weight = (1 + 12 * star.inv_dof) / (1 + star.inv_dof * at.chi2)
        assert_allclose(bend_along(step), weight * second @ jacobian, rtol=1e-9, atol=1e-9)


def test_a_missing_channel_has_no_influence(case):
    model, star, u = case
    spoilt = replace(star, flux=star.flux.at[jnp.array([4, 9])].set(123.0))
    ours, theirs = (_curvature(StarModel(model), s, u) for s in (star, spoilt))
    for a, b in zip(ours, theirs, strict=True):
        assert_allclose(a, b, rtol=1e-12)
