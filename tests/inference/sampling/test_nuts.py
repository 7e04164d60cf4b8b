"""Markov chains: exact posteriors, two optima with their weights, reproducible stars, and chains that are refused."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpyro.infer.hmc_util import IntegratorState, euclidean_kinetic_energy, velocity_verlet
from scipy.stats import kstest, truncnorm

from xpbayes.config import InferenceConfig
from xpbayes.data.stars import Stars
from xpbayes.inference.sampling.convergence import diagnose
from xpbayes.inference.sampling.nuts import (
    DEPTH,
    Schedule,
    choose_point,
    nuts_transition,
    optima_of,
    sample_stars,
)
from xpbayes.inference.sampling.proposal import Mixture, component_optima, draw_many, draw_student, ln_density
from xpbayes.inference.search.starts import make_grid
from xpbayes.models.forward import ForwardModel
from xpbayes.models.prior import LabelPrior
from xpbayes.models.star_model import StarModel

RNG = np.random.default_rng(0)
N = 12
SIGMA_E = 0.004
ODDS = (0.7, 0.3)
MEANS = np.array([[-1.0, 0.0, 0.5], [1.0, 0.2, -0.5]])
SIGMA = 0.05
SCHEDULE = Schedule(n_draws=200, max_rounds=2)
N_WALKERS, CYCLES = 4000, 12


@pytest.fixture(scope="module")
def problem():
    """Fluxes that fix E to a Gaussian and say nothing of the labels, whose prior has two components."""
    sizes = [(3, 4), (4, N)]
    forward = ForwardModel(
        tuple(jnp.zeros(size) for size in sizes),
        tuple(jnp.zeros(out) for _, out in sizes),
        jnp.linspace(1.0, -1.0, N),
        jnp.zeros(3),
        jnp.ones(3),
    )
    values = (np.log(ODDS), MEANS, np.broadcast_to(np.eye(3) / SIGMA, (2, 3, 3)), -9.0)
    prior = LabelPrior(*(jnp.asarray(v, jnp.float32) for v in values))
    extinction = SIGMA_E * np.repeat([0.0, 4.0], 6)
    noise = RNG.normal(size=(12, N))
    curve = np.exp(np.asarray(forward.ln_curve, float))
    relative = SIGMA_E * np.linalg.norm(curve)
    flux = np.exp(-extinction[:, None] * curve)
    whitening = np.stack([np.diag(1 / (relative * f)) for f in flux])
    zero = np.zeros(12)
    stars = Stars(
        *(
            jnp.asarray(v, jnp.float32)
            for v in (flux * (1 + relative * noise), whitening, zero, zero + 1, zero + 1e4, np.zeros((12, 3)),
                      np.zeros((12, 3)), zero, zero, zero)
        )
    )  # fmt: skip
    # Linear in E at these errors: f / f_true = 1 - (E - E_true) R.
    best = (extinction - SIGMA_E * noise @ (curve / np.linalg.norm(curve))) / SIGMA_E
    mode = SIGMA_E * 0.5 * (best + np.sqrt(best**2 + 4))
    top = [np.column_stack([np.tile(m, (12, 1)), mode, np.ones(12)]) for m in MEANS]
    model = StarModel(forward, prior)
    components = component_optima(model, make_grid(model, 64), stars)
    return model, stars, np.asarray(components), optima_of(*top), best


@pytest.fixture(scope="module")
def sampled(problem):
    model, stars, components, optima, _ = problem
    return sample_stars(model, stars, components, optima, np.arange(12, dtype=np.uint32), SCHEDULE)


@pytest.mark.thorough
def test_extinction_of_dust_free_stars_is_a_cut_gaussian(problem, sampled):
    """SciPy's truncated normal, star by star: some best values of E are negative."""
    draws, found = sampled
    best = problem[-1]
    assert best.min() < -0.3
    law = truncnorm(-best, np.inf, loc=best)
    extinction = draws.theta[..., 3].reshape(12, -1) / SIGMA_E
    assert_allclose(extinction.mean(axis=1), law.mean(), atol=0.15)
    assert_allclose(extinction.std(axis=1), law.std(), atol=0.1)
    for at in (0.16, 0.5, 0.84):
        assert_allclose(np.quantile(extinction, at, axis=1), law.ppf(at), atol=0.2)
    assert found.n_divergent.sum() == 0


@pytest.mark.thorough
def test_two_optima_get_their_weights(problem, sampled):
    """Labels that the fluxes do not see follow the prior: chains go to and fro between its components."""
    draws, found = sampled
    teff = draws.theta[..., 0]
    share = (teff > 0).mean(axis=(1, 2))
    assert_allclose(share, ODDS[1], atol=0.08)
    assert_allclose(share.mean(), ODDS[1], atol=0.02)
    assert_allclose(teff[teff > 0].std(), SIGMA, rtol=0.1)
    assert found.settled.mean() > 0.8
    assert np.all(found.r_hat < 1.05)


@pytest.mark.thorough
def test_a_stars_draws_depend_on_its_seed_alone(problem, sampled):
    """Neither on its place in the batch nor on who else is in it."""
    model, stars, components, optima, _ = problem
    some = np.array([7, 2, 9])
    again, _ = sample_stars(model, stars.take(some), components[some], optima[some], some.astype(np.uint32), SCHEDULE)
    assert_array_equal(again.theta, sampled[0].theta[some])
    assert_array_equal(again.step_size, sampled[0].step_size[some])
    assert np.any(again.theta[0] != again.theta[1])


@pytest.mark.thorough
def test_ln_posterior_is_the_density(problem, sampled):
    """Against the cut Gaussian in E and the two components of the prior, up to a constant; parallax aside."""
    draws, _ = sampled
    best, row = problem[-1], 8
    points, value = draws.theta[row].reshape(-1, 5), draws.ln_posterior[row].ravel()
    ln_p = -0.5 * (points[:, 3] / SIGMA_E - best[row]) ** 2
    ln_p += np.logaddexp(
        *(np.log(w) - 0.5 * ((points[:, :3] - m) ** 2).sum(axis=1) / SIGMA**2 for w, m in zip(ODDS, MEANS, strict=True))
    )
    ln_p += -0.5 * ((points[:, 4] - 1) * 1e4) ** 2
    near = np.abs(points[:, 4] - 1) * 1e4 < 3
    assert_allclose(np.std((value - ln_p)[near]), 0.0, atol=0.15)
    assert np.std(ln_p) > 1


def test_the_choice_among_points_leaves_the_density_alone():
    """A Gaussian target, a mixture that is off and too wide: repeated choices alone give the target's moments."""
    mean, sigma = jnp.array([1.0, -2.0]), jnp.array([0.5, 2.0])
    factor = jnp.stack([jnp.diag(jnp.array([1.5, 3.0])), jnp.diag(jnp.array([1.0, 4.0]))])
    mixture = Mixture(jnp.log(jnp.array([0.4, 0.6])), jnp.array([[0.0, 0.0], [2.0, -3.0]]), factor)

    def ln_ratio(z):
        return -0.5 * jnp.sum(((z - mean) / sigma) ** 2) - ln_density(mixture, z)

    def step(state, key):
        where, choice = jax.random.split(key)
        points = draw_many(mixture, where, 8)
        *state, jumped = choose_point(choice, *state, points, jax.vmap(ln_ratio)(points))
        return tuple(state), (state[0], jumped)

    @jax.jit
    def chain(key):
        start = jnp.array([4.0, 4.0])
        return jax.lax.scan(step, (start, ln_ratio(start)), jax.random.split(key, 3000))[1]

    z, jumped = (np.asarray(v) for v in chain(jax.random.key(1)))
    assert_allclose(z[100:].mean(axis=0), mean, atol=0.12)
    assert_allclose(z[100:].std(axis=0), sigma, rtol=0.06)
    assert np.all(np.any(z[1:] != z[:-1], axis=1) == jumped[1:])


@pytest.fixture(scope="module")
def transitions():
    """`CYCLES` transitions in a row from exact draws of a correlated Gaussian, by NUTS and by steps that accept blindly."""
    lower = jnp.array([[0.9, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.3, 0.4, 1.1]])
    precision = jnp.linalg.inv(lower @ lower.T)
    z = jax.random.normal(jax.random.key(0), (N_WALKERS, 3)) @ lower.T
    step_size = jnp.asarray(1.0)

    def target(z):
        return 0.5 * z @ precision @ z

    def blind(z, key):
        """The same leapfrog steps with whatever end they reach taken: Metropolis' correction left out."""
        _, verlet = velocity_verlet(target, euclidean_kinetic_energy)
        state = IntegratorState(z, jax.random.normal(key, z.shape), target(z), jax.grad(target)(z))
        return jax.lax.fori_loop(0, 2, lambda i, s: verlet(step_size, jnp.ones_like(z), s), state).z

    def walk(step, begin):
        def cycle(z, key):
            return jax.vmap(step)(z, jax.random.split(key, N_WALKERS)), None

        return jax.lax.scan(cycle, begin, jax.random.split(jax.random.key(1), CYCLES))[0]

    by_nuts = jax.jit(partial(walk, lambda z, key: nuts_transition(target, z, step_size, key).z))(z)
    by_blind = jax.jit(partial(walk, blind))(z)
    # In coordinates where the Gaussian is of unit width.
    return tuple(np.linalg.solve(np.asarray(lower, float), np.asarray(v, float).T).T for v in (z, by_nuts, by_blind))


def deviations(unit):
    """What should be zero if (walker, parameter) draws are of a unit Gaussian, in units of its sampling error."""
    n = len(unit)
    fourth = (unit**4).mean(axis=0) - 3.0
    across = [(unit[:, i] * unit[:, j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    return np.sqrt(n) * np.concatenate(
        [unit.mean(axis=0), ((unit**2).mean(axis=0) - 1) / np.sqrt(2), fourth / np.sqrt(96), across]
    )


def test_transitions_leave_a_known_posterior_as_it_is(transitions):
    """Draws that begin on it stay on it; they move, so that standing still does not pass."""
    begin, by_nuts, _ = transitions
    assert np.abs(deviations(begin)).max() < 4  # the test's own tolerance
    assert np.abs(deviations(by_nuts)).max() < 4
    for i in range(3):
        assert kstest(by_nuts[:, i], "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(begin.T, by_nuts.T)[:3, 3:]).max() < 0.1


def test_blind_acceptance_does_not(transitions):
    """The must-fail case: the same integrator at the same step size, every end point taken."""
    assert np.abs(deviations(transitions[2])).max() > 20
    assert min(kstest(transitions[2][:, i], "norm").pvalue for i in range(3)) < 1e-6


def test_a_transition_is_numpyros_own():
    """Step by step the states of `numpyro.infer.NUTS`: the same key, potential, step size, unit mass and depth."""
    from numpyro.infer import NUTS

    def target(z):
        return 0.5 * jnp.sum(z**2 / jnp.array([1.0, 0.5, 2.0])) + 0.1 * z[0] ** 4

    z, key, step_size = jnp.array([0.3, -1.0, 0.8]), jax.random.key(3), jnp.asarray(0.4)
    kernel = NUTS(
        potential_fn=target, step_size=0.4, adapt_step_size=False, adapt_mass_matrix=False, max_tree_depth=DEPTH
    )
    theirs = kernel.init(key, 0, z, (), {})
    advance, own = jax.jit(lambda state: kernel.sample(state, (), {})), jax.jit(partial(nuts_transition, target))
    steps = []
    for _ in range(6):
        key, use = jax.random.split(key)
        ours = own(theirs.z, step_size, use)
        theirs = advance(theirs._replace(rng_key=jax.random.split(use, 3)[0]))  # as NumPyro makes a chain's key of it
        assert_allclose(ours.z, theirs.z, rtol=1e-5, atol=1e-6)
        assert_allclose(ours.accept_prob, theirs.accept_prob, rtol=1e-4)
        assert int(ours.num_steps) == int(theirs.num_steps)
        steps.append(int(ours.num_steps))
    assert max(steps) <= 2**DEPTH - 1 and len(set(steps)) > 1


def test_mixture_density_is_that_of_its_draws():
    """Two terms of Student t: the integral over a grid is the constant that is left out."""
    factor = jnp.stack([jnp.array([[0.5, 0.0], [0.3, 0.4]]), jnp.array([[1.0, 0.0], [-0.5, 0.7]])])
    mixture = Mixture(jnp.log(jnp.array([0.3, 0.7])), jnp.array([[0.0, 1.0], [2.0, -1.0]]), factor)
    axis = np.linspace(-40, 40, 801)
    grid = jnp.asarray(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2), jnp.float32)
    total = np.exp(np.asarray(jax.vmap(partial(ln_density, mixture))(grid), float)).sum() * 0.01
    # The bivariate t's constant is 1 / (2 pi), whatever its degrees of freedom.
    assert_allclose(total, 2 * np.pi, rtol=5e-3)
    z = np.asarray(draw_student(jax.random.key(0), (20000, 2)))
    assert_allclose(z.var(axis=0), 6 / 4, rtol=0.06)


def test_chains_in_different_places_are_not_settled():
    """The diagnosis must reject chains stuck in two optima, and accept independent draws."""
    good = RNG.normal(size=(1, 4, 500, 2))
    bad = good + np.array([0, 0, 3, 3])[:, None, None]
    slow = np.cumsum(RNG.normal(size=(1, 4, 500, 2)), axis=2)
    never = np.zeros((3, 4, 500), bool)
    found = diagnose(np.concatenate([good, bad, slow]), never)
    assert_array_equal(found.settled, [True, False, False])
    assert found.r_hat[1].max() > 1.3


@pytest.mark.parametrize("schedule", [Schedule(n_warmup=100), Schedule(n_draws=130)])
def test_useless_schedules_are_refused(problem, schedule):
    model, stars, components, optima, _ = problem
    with pytest.raises(ValueError, match="warm-up"):
        sample_stars(model, stars, components, optima, np.arange(12, dtype=np.uint32), schedule)


def test_threads_are_handed_down(problem, monkeypatch):
    """From the ladder to the pool that walks: a process that shares a machine takes no more than it was given."""
    from concurrent.futures import ThreadPoolExecutor

    from xpbayes.inference.sampling import ladder, nuts

    given, model, stars = [], *problem[:2]

    class Pool(ThreadPoolExecutor):
        def __init__(self, n):
            given.append(n)
            raise InterruptedError

    monkeypatch.setattr(nuts, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(nuts, "_n_cores", lambda: 7)
    monkeypatch.setattr(nuts, "component_optima", lambda model, grid, stars: np.zeros((len(stars), 2, 5)))
    one = np.ones((12, 5), np.float32)
    found = SimpleNamespace(
        estimate=one, optimum=one, with_xi=lambda name: one, k_hat=np.ones(12), n_modes=np.ones(12, int)
    )
    config, seeds = InferenceConfig(n_nodes=32), np.arange(12, dtype=np.uint32)
    for threads in (1, 2, None):
        with pytest.raises(InterruptedError):
            ladder.refine_with_nuts(model, stars, found, config, seeds, threads=threads)
    assert given == [1, 2, 7]
