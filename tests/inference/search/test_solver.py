"""The batched solver against optimistix, against itself in other batches, and against problems it must not solve."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.conftest import as_double
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.inference.search.solver import best_parallax_shift, solve
from xpbayes.inference.search.starts import find_starts, make_grid
from xpbayes.models.objective import expand, objective
from xpbayes.models.star_model import StarModel

RNG = np.random.default_rng(0)
N = 64


@pytest.fixture(scope="module")
def problem(trained, sample):
    stars = jax.tree.map(jnp.asarray, sample.take(np.arange(N)).stars(trained.labels).blind())
    stars = fold_in_model_error(trained.star_model, stars)
    grid = make_grid(trained.star_model.without_error)
    return stars, find_starts(trained.star_model.without_error, grid, stars, 2)


@pytest.fixture(scope="module")
def solution(problem, trained):
    stars, starts = problem
    return solve(trained.star_model.without_error, stars, starts[:, 0], 60)


def test_nearly_all_stars_converge(solution):
    assert np.mean(solution.converged) > 0.9


def test_gradient_vanishes_at_the_mode(problem, solution, trained, x64):
    """In float64, with the exact Hessian: one more Newton step gains less than 0.001 in L."""
    stars, model = as_double((problem[0], trained.star_model.without_error))
    target = jax.jit(jax.vmap(lambda s, u: jax.grad(lambda v: objective(model, s, v))(u)))
    second = jax.jit(jax.vmap(lambda s, u: jax.hessian(lambda v: objective(model, s, v))(u)))
    u = jnp.asarray(solution.theta_log, jnp.float64)
    gradient, hessian = target(stars, u), second(stars, u)
    gain = 0.5 * jnp.einsum("si,si->s", gradient, jnp.linalg.solve(hessian, gradient[..., None])[..., 0])
    assert np.all(np.abs(np.asarray(gain))[np.asarray(solution.converged)] < 1e-3)


def test_never_worse_than_optimistix(problem, solution, trained, x64):
    """BFGS of optimistix in float64 from the same starts: ours is nowhere more than 0.01 above in L."""
    stars, model = as_double((problem[0], trained.star_model.without_error))
    ours = jax.jit(jax.vmap(lambda s, u: objective(model, s, u)))(stars, jnp.asarray(solution.theta_log, jnp.float64))
    scale = jnp.asarray([0.1, 0.1, 0.2, 0.3, 0.2])  # so that one step of one unit is sensible in every parameter

    def one(star, start):
        target = lambda x, _: objective(model, star, start + scale * x)  # noqa: E731
        found = optx.minimise(target, optx.BFGS(1e-9, 1e-9), jnp.zeros(5), max_steps=400, throw=False)
        return target(found.value, None)

    theirs = jax.jit(jax.vmap(one))(stars, jnp.asarray(problem[1][:, 0], jnp.float64))
    worse = np.asarray(ours - theirs)[np.asarray(solution.converged)]
    # Another optimum from the same start is luck, not precision: allow it for one star in twenty.
    assert np.mean(worse < 0.01) >= 0.95


def test_answer_does_not_depend_on_the_batch(problem, solution, trained):
    stars, starts = problem
    order = RNG.permutation(N)
    shuffled = solve(trained.star_model.without_error, stars.take(order), starts[order, 0], 60)
    assert_array_equal(np.asarray(shuffled.theta_log), np.asarray(solution.theta_log)[order])


def test_does_not_move_from_the_mode(problem, solution, trained):
    again = solve(trained.star_model.without_error, problem[0], solution.theta_log, 20)
    done = np.asarray(solution.converged & again.converged)
    assert_allclose(again.objective[done], solution.objective[done], atol=0.01)


def test_too_few_iterations_are_not_called_converged(problem, trained):
    """The must-fail case of the convergence test: two steps from a distant start."""
    stars, starts = problem
    far = starts[:, 0] + jnp.array([1.0, 0.5, 1.0, 1.0, 0.5])
    assert np.mean(solve(trained.star_model.without_error, stars, far, 2).converged) < 0.1


def test_a_star_of_nan_is_not_called_converged(problem, trained):
    stars, starts = problem
    flux = stars.flux.at[5, 10].set(jnp.nan)
    result = solve(trained.star_model.without_error, replace(stars, flux=flux), starts[:, 0], 60)
    assert not bool(result.converged[5])
    assert np.mean(np.delete(np.asarray(result.converged), 5)) > 0.9


@jax.jit
def _along(model, star, u, sigma):
    """Ln parallaxes on a line of 20,001 points, and L there."""
    reach = u[-1] + jnp.linspace(-1.0, 1.0, 20_001) * sigma
    return reach, jax.vmap(lambda x: objective(model, star, u.at[-1].set(x)))(reach)


def _scan(model, star, u, sigma):
    """Ln parallax of least L on the line, and L there; the objective alone is the judge."""
    reach, value = _along(model, star, u, sigma)
    best = jnp.argmin(value)
    assert 0 < int(best) < 20_000, "the least value is at the end of the line"
    return float(reach[best]), float(value[best])


def _best(model, star, u):
    return u[-1] + best_parallax_shift(star, u, expand(model.forward, star, u))


@pytest.mark.parametrize("inv_dof", [0.0, 0.3])
@pytest.mark.parametrize("measured", [None, "agrees", "three sigma off", "negative"])
def test_best_parallax_is_the_least_on_a_line(problem, solution, trained, x64, inv_dof, measured):
    """Labels and E away from the mode; with and without a measured parallax, of ten per cent where there is one."""
    stars, model = as_double((problem[0], StarModel(trained.forward)))
    for i in (1, 7, 20, 41):
        u = jnp.asarray(solution.theta_log[i], jnp.float64) + jnp.array([0.05, 0.02, -0.1, 0.05, 0.0])
        star = replace(stars.take(i), inv_dof=jnp.asarray(inv_dof))
        star = replace(star, parallax_inv_error=jnp.asarray(0.0))
        alone, _ = _scan(model, star, u, 2.0)
        if measured is not None:
            plx = np.exp(alone)
            value = {"agrees": 1.0, "three sigma off": 1.3, "negative": -0.2}[measured] * plx
            star = replace(star, parallax=jnp.asarray(value), parallax_inv_error=jnp.asarray(10.0 / plx))
        expected, least = _scan(model, star, u, 2.0)
        found = _best(model, star, u.at[-1].add(0.3))
        assert_allclose(found, expected, atol=2e-3)
        assert objective(model, star, u.at[-1].set(found)) < least + 0.02


@pytest.mark.parametrize("inv_dof", [0.0, 0.1])
def test_best_parallax_is_stationary_where_nothing_fits(problem, solution, trained, x64, inv_dof):
    """Wrong labels, and a parallax of 25 % that the fluxes contradict: L has no slope left in ln parallax."""
    stars, model = as_double((problem[0], StarModel(trained.forward)))
    stars = replace(stars, inv_dof=jnp.full(N, inv_dof))
    u = jnp.asarray(solution.theta_log, jnp.float64) + jnp.array([0.5, -0.4, 0.8, 0.3, 0.0])
    plx = jnp.exp(u[:, -1])
    stars = replace(stars, parallax=1.5 * plx, parallax_inv_error=4.0 / plx)

    @jax.jit
    @jax.vmap
    def slope(star, v):
        at = v.at[-1].set(_best(model, star, v))
        value = lambda x: objective(model, star, at.at[-1].set(x))  # noqa: E731
        return jax.grad(value)(at[-1]), jax.grad(jax.grad(value))(at[-1])

    gradient, curvature = map(np.asarray, slope(stars, u))
    assert np.mean(gradient**2 < 1e-4 * np.abs(curvature)) > 0.95


def test_best_parallax_of_a_star_of_nothing_stays_put(problem, trained):
    """No flux and no parallax: nothing to solve for, and no NaN."""
    star = problem[0].take(0)
    nothing = replace(star, whitening=0 * star.whitening, parallax_inv_error=jnp.asarray(0.0))
    u = jnp.array([5.0, 0.0, 4.0, -1.0, 0.2])
    assert bool(jnp.isfinite(_best(trained.star_model, nothing, u)))


def test_tails_are_among_the_stars(problem):
    """The other tests solve Student t fluxes, as the trained model error has them."""
    assert np.mean(np.asarray(problem[0].inv_dof) > 0) == 1


def test_gaussian_stars_converge_as_well(problem, trained):
    stars, starts = problem
    gaussian = replace(stars, inv_dof=jnp.zeros_like(stars.inv_dof))
    assert np.mean(solve(trained.star_model.without_error, gaussian, starts[:, 0], 60).converged) > 0.9


def test_a_start_without_dust_holds_nothing_up(problem, trained):
    """ln E = -10 has a long way to go, and the labels need not wait for it."""
    stars, starts = problem
    start = starts[:, 0].at[:, -2].set(-10.0) + jnp.array([0.3, 0.2, 0.3, 0.0, 0.2])
    assert np.mean(solve(trained.star_model.without_error, stars, start, 60).converged) > 0.9
