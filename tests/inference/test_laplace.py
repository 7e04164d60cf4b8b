"""Laplace approximations in (E, labels): against the Hessian by automatic differentiation, and each other."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.conftest import QUICK, as_double
from xpbayes.inference.fit import fit_stars
from xpbayes.inference.laplace import around_components, laplace_at
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.inference.search.solver import solve
from xpbayes.models.objective import objective
from xpbayes.models.prior import LabelPrior

SEARCH = QUICK.model_copy(update={"n_draws": 0})


@pytest.fixture(scope="module")
def optima(trained, sample):
    """Eight real stars without parallax, in float32, and labels, ln E, ln parallax at their optima."""
    stars = sample.take(np.arange(8)).stars(trained.labels)
    found = fit_stars(trained.star_model, stars, SEARCH)
    mode = np.concatenate([found.estimate[:, :3], np.log(found.estimate[:, 3:])], axis=1)
    blind = jax.tree.map(jnp.asarray, stars.blind(parallax=False))
    return fold_in_model_error(trained.star_model, blind, jnp.asarray(mode)), jnp.asarray(mode)


def _single(prior: LabelPrior, number: int) -> LabelPrior:
    """One component of a mixture, with its weight: not normalised to one."""
    one = slice(number, number + 1)
    return LabelPrior(prior.ln_weight[one], prior.mean[one], prior.whitening[one], prior.ln_threshold)


def _newton_step(model, star, u):
    at = partial(objective, model, star)
    return -jnp.linalg.solve(jax.hessian(at)(u), jax.grad(at)(u))


@jax.jit
def _bend_in_extinction(model, star, x):
    """Hessian of -2 ln density in (labels, E, ln parallax)."""

    def value(x):
        u = x.at[-2].set(jnp.log(x[-2]))
        return objective(model, star, u) + 2 * u[-2]

    return jax.hessian(value)(x)


def test_covariance_is_the_inverse_hessian_s_block(trained, optima, x64):
    """-2 ln density in (labels, E, ln parallax) differentiated twice; the parallax's row and column integrated out."""
    model, stars, modes = as_double((trained.star_model.without_error, *optima))
    modes = jnp.asarray(solve(model, stars, modes, 100).theta_log)
    newton = jax.jit(jax.vmap(partial(_newton_step, model)))
    for _ in range(3):  # the solver stops within 0.01 sigma
        modes = modes + newton(stars, modes)
    tested = 0
    for i in range(8):
        star, mode = stars.take(i), modes[i]
        hessian = np.asarray(_bend_in_extinction(model, star, mode.at[-2].set(jnp.exp(mode[-2]))))
        if np.linalg.eigvalsh(hessian)[0] <= 0:
            continue
        tested += 1
        expected = 2 * np.linalg.inv(hessian)[np.ix_([3, 0, 1, 2], [3, 0, 1, 2])]
        found = jax.jit(laplace_at)(model, star, mode)
        scale = np.sqrt(np.diagonal(expected))
        covariance = np.asarray(found.factor @ found.factor.T)
        assert_allclose(covariance / scale / scale[:, None], expected / scale / scale[:, None], atol=1e-4)
        # The density's slope in E is nought where that of L without ln E's Jacobian is: off the mode by that step.
        slope = np.zeros(5)
        slope[-2] = 2.0 / np.exp(float(mode[-2]))
        step = -np.linalg.solve(hessian, slope)
        center = np.asarray(mode.at[-2].set(jnp.exp(mode[-2]))) + step
        assert_allclose((np.asarray(found.mean) - center[[3, 0, 1, 2]]) / scale, 0.0, atol=1e-3)
        assert np.all(np.triu(np.asarray(found.factor), 1) == 0)
    assert tested >= 6


def test_each_component_s_gaussian_is_that_of_a_posterior_with_it_alone(trained, optima, x64):
    """Spread and integral, where the steps have come to that posterior's optimum; four in five, as far as it was tried.

    The curvature is that of the last step's beginning, so that a few have come there and not yet found its width.
    """
    model, stars, modes = as_double((trained.star_model.without_error, *optima))
    parts = jax.jit(jax.vmap(around_components, (None, 0, 0)))(model, stars, modes)
    laplace = jax.jit(jax.vmap(laplace_at, (None, 0, 0)))  # one program for all components
    agree = []
    for number in range(len(model.prior.ln_weight)):
        alone = replace(model, prior=_single(model.prior, number))
        best = solve(alone, stars, modes, 200)
        whole = laplace(alone, stars, best.theta_log)
        part = jax.tree.map(lambda leaf, k=number: np.asarray(leaf[:, k]), parts)
        ours, sigma = (np.linalg.norm(np.asarray(g.factor), axis=2) for g in (part, whole))
        there = np.all(np.abs(part.mean - np.asarray(whole.mean)) < 0.1 * sigma, axis=1) & np.asarray(best.converged)
        alike = np.all(np.abs(ours / sigma - 1) < 0.2, axis=1) & (np.abs(part.evidence - whole.evidence) < 0.2)
        agree.extend(alike[there])
    assert len(agree) >= 16 and np.mean(agree) >= 0.8
