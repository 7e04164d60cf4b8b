"""Markov chains for single stars: NumPyro's No-U-Turn sampler on the posterior of `models.posterior`, many at once.

In: stars and their optima. Out: draws, with what diagnoses them. All stars and chains of a block advance in one compiled
program; a star's random numbers depend on its own seed alone, and blocks have one size, so its draws do not depend on
who shares its batch.

The chains walk in the coordinates of `coordinates`, where a posterior is nearly a unit Gaussian around its optimum:
short trajectories and an identity mass matrix serve, and only the step size is adapted. Every transition has two parts,
each of which leaves the posterior as it is: one of NUTS, and a choice among independent points from the mixture of
`mixture` and the point where the chain stands, with odds of posterior over proposal (Tjelmeland 2004; iterated
sampling importance resampling, Andrieu, Lee & Vihola 2018). NUTS goes where the mixture has not looked; the choice
takes chains from one top or arm of the posterior to another as often as it asks, so that the weights of optima need no
estimate of their own. Chains begin at points of the mixture, the first two at the optima: where they still disagree,
R-hat shows it. Stars whose chains have not settled walk on, and their draws are thinned.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt
from numpy.typing import NDArray

from xpbayes.inference.coordinates import evaluate, place, potential
from xpbayes.inference.mixture import Adapted, Mixture, adapt, component_optima, draw, ln_density
from xpbayes.inference.starts import StartGrid
from xpbayes.inference.uncertainty import to_linear
from xpbayes.models.forward import ForwardModel
from xpbayes.models.objective import objective
from xpbayes.models.prior import LabelPrior
from xpbayes.stars import Stars

BLOCK = 16
"""Stars that advance together: the slowest chain of a block decides when it is done."""
STRETCH = 50
"""Transitions that a block makes in one call."""
COMPONENT_BLOCK = 64
"""Stars whose optima under every component of the prior are sought together."""
FIRST_STEP = 0.5
TARGET_ACCEPT = 0.9
"""Above the usual 0.8: the second of two optima may be narrower than the one that the step size was adapted in."""
DEPTH = 3
"""Trajectories have 2^3 - 1 steps at most: in these coordinates a Gaussian turns round after three or four."""
N_CANDIDATES = 8
"""Independent points that a chain chooses from, beside where it stands."""
MIN_WARMUP = 150
"""NumPyro's adaptation of the step size begins anew 50 transitions before the end of a warm-up of at least this length;
of a shorter one, so late that the step size would be of chance."""
MAX_R_HAT = 1.01
MIN_ESS_PER_CHAIN = 100
"""Vehtari et al. (2021) ask for both of every parameter, bulk and tail."""


@dataclass(frozen=True)
class Draws:
    """Draws of some stars, NumPy; leading axes (star, chain, draw).

    Attributes:
        parameters: (star, chain, draw, parameter) labels, E [mag], parallax [mas].
        ln_posterior: (star, chain, draw) ln density of (labels, E, parallax), up to a constant of the star's.
        diverging: (star, chain, draw) the energy of a trajectory was lost.
        accept_prob: (star, chain, draw) mean acceptance of a trajectory's points.
        n_steps: (star, chain, draw) leapfrog steps.
        jumped: (star, chain, draw) the chain chose an independent point.
        step_size: (star, chain).
        n_transitions: (star,) of every chain after its warm-up; the draws are evenly picked from them.
        k_hat: (star,) Pareto shape of the importance weights of the mixture that independent points come from.
    """

    parameters: NDArray[np.float32]
    ln_posterior: NDArray[np.float32]
    diverging: NDArray[np.bool_]
    accept_prob: NDArray[np.float32]
    n_steps: NDArray[np.int32]
    jumped: NDArray[np.bool_]
    step_size: NDArray[np.float32]
    n_transitions: NDArray[np.int32]
    k_hat: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.parameters)


class Schedule(NamedTuple):
    """How long chains walk.

    Attributes:
        n_chains: per star.
        n_warmup, n_draws: per chain.
        max_rounds: a star that has not settled walks on, up to so many times n_draws in all.
    """

    n_chains: int = 4
    n_warmup: int = 150
    n_draws: int = 500
    max_rounds: int = 8


class Diagnostics(NamedTuple):
    """Whether chains can be trusted, per star, by ArviZ.

    Attributes:
        r_hat: (star, parameter) rank-normalised split R-hat.
        ess_bulk, ess_tail: (star, parameter) effective number of draws.
        n_divergent: (star,) divergent transitions among the draws.
        settled: (star,) R-hat and both ESS are good enough for every parameter.
    """

    r_hat: NDArray[np.float64]
    ess_bulk: NDArray[np.float64]
    ess_tail: NDArray[np.float64]
    n_divergent: NDArray[np.int64]
    settled: NDArray[np.bool_]


def diagnose(parameters: NDArray[np.floating], diverging: NDArray[np.bool_]) -> Diagnostics:
    """Diagnose chains.

    Args:
        parameters: (star, chain, draw, parameter).
        diverging: (star, chain, draw).
    """
    import arviz as az
    import xarray as xr

    draws = xr.Dataset({"x": (("star", "chain", "draw", "parameter"), np.asarray(parameters, np.float64))})
    order = ("star", "parameter")
    r_hat = az.rhat(draws)["x"].transpose(*order).to_numpy()
    bulk = az.ess(draws, method="bulk")["x"].transpose(*order).to_numpy()
    tail = az.ess(draws, method="tail")["x"].transpose(*order).to_numpy()
    enough = MIN_ESS_PER_CHAIN * parameters.shape[1]
    settled = ((r_hat < MAX_R_HAT) & (bulk > enough) & (tail > enough)).all(axis=1)
    return Diagnostics(r_hat, bulk, tail, diverging.sum(axis=(1, 2)), settled)


class _Kept(NamedTuple):
    """What is kept of a transition."""

    z: Array
    diverging: Array
    accept_prob: Array
    n_steps: Array
    jumped: Array


def choose_point(
    target: Callable[[Array], Array], mixture: Mixture, key: Array, z: Array, energy: Array, gradient: Array
) -> tuple[Array, Array, Array, Array]:
    """Choose among independent points and where the chain stands; leaves the density exp(-target) as it is.

    Args:
        target: -ln density in z.
        mixture: where the independent points come from.
        key: random key.
        z, energy, gradient: where the chain stands; the target and its gradient there.

    Returns:
        the chosen z with its energy and gradient, and whether it is new.
    """
    where, choice = jax.random.split(key)
    points = jax.vmap(partial(draw, mixture))(jax.random.split(where, N_CANDIDATES))
    ratio = -jax.vmap(target)(points) - jax.vmap(partial(ln_density, mixture))(points)
    ratio = jnp.where(jnp.isfinite(ratio), ratio, -jnp.inf)
    chosen = jax.random.categorical(choice, jnp.append(ratio, -energy - ln_density(mixture, z)))
    moved = points[jnp.minimum(chosen, N_CANDIDATES - 1)]
    new_energy, new_gradient = jax.value_and_grad(target)(moved)
    taken = (chosen < N_CANDIDATES) & jnp.isfinite(new_energy) & jnp.all(jnp.isfinite(new_gradient))
    old, new = (z, energy, gradient), (moved, new_energy, new_gradient)
    z, energy, gradient = jax.tree.map(lambda a, b: jnp.where(taken, a, b), new, old)
    return z, energy, gradient, taken


def _kernel(target: Callable[[Array], Array], start: Array, key: Array, n_warmup: int) -> tuple[Any, Any]:
    """NumPyro's NUTS on one chain's target: its state at the start and its transition."""
    from numpyro.infer.hmc import hmc

    init, transition = hmc(potential_fn=target, algo="NUTS")
    state = init(
        start,
        n_warmup,
        step_size=FIRST_STEP,
        inverse_mass_matrix=jnp.ones_like(start),
        adapt_mass_matrix=False,
        target_accept_prob=TARGET_ACCEPT,
        max_tree_depth=DEPTH,
        rng_key=key,
    )
    return state, transition


def _advance(
    target: Callable[[Array], Array], mixture: Mixture, transition: Any, key: Array, state: Any
) -> tuple[Any, _Kept]:
    """One transition; its random numbers follow from the key and the number of transitions made so far."""
    state = transition(state)
    z, energy, gradient, jumped = choose_point(
        target, mixture, jax.random.fold_in(key, state.i), state.z, state.potential_energy, state.z_grad
    )
    state = state._replace(z=z, potential_energy=energy, z_grad=gradient)
    return state, _Kept(z, state.diverging, state.accept_prob, state.num_steps, jumped)


def _keys(own: Array, number: Array) -> tuple[Array, Array, Array]:
    """Three keys of one chain of one star: where it begins, NUTS, and the choice of points."""
    begin, walk, leap = jax.random.split(jax.random.fold_in(jax.random.key(own), number), 3)
    return begin, walk, leap


@partial(jax.jit, static_argnames=("n_chains", "n_warmup"))
def _begin(
    model: ForwardModel,
    prior: LabelPrior,
    stars: Stars,
    found: Adapted,
    optima: Array,
    seed: Array,
    n_chains: int,
    n_warmup: int,
) -> Any:
    """States of all chains of a block before their warm-up."""

    def one(star: Stars, known: Adapted, tops: Array, own: Array, number: Array) -> Any:
        begin, walk, _ = _keys(own, number)
        target = partial(potential, model, prior, star, known.frame)
        start = draw(known.mixture, begin)
        top = tops[jnp.minimum(number, tops.shape[0] - 1)]
        at_top, _ = place(known.frame, top[:-2], top[-2], jnp.zeros(()))
        points = jnp.stack([start, at_top])
        usable = jnp.all(jnp.isfinite(points), axis=1) & jnp.isfinite(jax.vmap(target)(points))
        use_top = usable[1] & (number < tops.shape[0])
        start = jnp.where(use_top, at_top, jnp.where(usable[0], start, 0.0))
        return _kernel(target, start, walk, n_warmup)[0]

    with jax.default_matmul_precision("highest"):
        numbers = jnp.arange(n_chains)
        chains = jax.vmap(one, (None, None, None, None, 0))
        return jax.vmap(chains, (0, 0, 0, 0, None))(stars, found, optima, seed, numbers)


@partial(jax.jit, static_argnames="n_warmup")
def _walk(
    model: ForwardModel, prior: LabelPrior, stars: Stars, found: Adapted, seed: Array, states: Any, n_warmup: int
) -> tuple[Any, Array, Array, _Kept]:
    """Advance all chains of a block by `STRETCH` transitions: states, parameters, ln posterior, what else is kept.

    The step size is adapted as long as a chain has made fewer than `n_warmup` transitions.
    """

    def one(star: Stars, known: Adapted, own: Array, state: Any, number: Array) -> tuple[Any, Array, Array, _Kept]:
        _, walk, leap = _keys(own, number)
        target = partial(potential, model, prior, star, known.frame)
        _, transition = _kernel(target, state.z, walk, n_warmup)
        advance = partial(_advance, target, known.mixture, transition, leap)
        state, kept = jax.lax.scan(lambda s, _: advance(s), state, None, STRETCH)

        def finish(z: Array) -> tuple[Array, Array]:
            _, u = evaluate(model, prior, star, known.frame, z)
            # Density of (labels, E, parallax): without the Jacobian of the logarithms.
            return to_linear(u), -0.5 * objective(model, prior, star, u) - u[-2] - u[-1]

        parameters, ln_posterior = jax.vmap(finish)(kept.z)
        return state, parameters, ln_posterior, kept

    with jax.default_matmul_precision("highest"):
        chains = jax.vmap(one, (None, None, None, 0, 0))
        return jax.vmap(chains, (0, 0, 0, 0, None))(stars, found, seed, states, jnp.arange(states.z.shape[1]))


@dataclass
class _Walker:
    """One star between stretches: its block's inputs and what its chains have left behind."""

    inputs: tuple[Any, ...]
    state: Any
    k_hat: float
    stretches: list[tuple[NDArray[Any], ...]]

    def draws(self, n_draws: int) -> tuple[NDArray[Any], ...]:
        """All draws so far, evenly thinned; a draw between them that diverged is counted with the next one kept."""
        joined = [np.concatenate(parts, axis=1) for parts in zip(*self.stretches, strict=True)]
        every = joined[0].shape[1] // n_draws
        parameters, ln_posterior, diverging, accept_prob, n_steps, jumped = joined
        groups = diverging.reshape(diverging.shape[0], n_draws, every)
        last = slice(every - 1, None, every)
        diverged = np.asarray(groups.any(axis=2))
        return (
            parameters[:, last],
            ln_posterior[:, last],
            diverged,
            *(v[:, last] for v in (accept_prob, n_steps, jumped)),
        )

    def n_transitions(self) -> int:
        return STRETCH * len(self.stretches)


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _padded(items: list[Any]) -> list[Any]:
    return items + [items[-1]] * (BLOCK - len(items))


def sample_stars(
    model: ForwardModel,
    prior: LabelPrior,
    stars: Stars,
    components: Float[Array, "star component parameter"],
    optima: Float[Array, "star optimum parameter"],
    seed: UInt[Array, " star"],
    schedule: Schedule,
    progress: Callable[[int, int, float], None] = lambda done, total, rate: None,
) -> tuple[Draws, Diagnostics]:
    """Draw from every star's posterior.

    Args:
        model: the trained forward model.
        prior: the label mixture.
        stars: a batch, model error folded in.
        components: the optimum under every component of the prior, from `mixture.component_optima`.
        optima: optima of the whole posterior, best first, in (labels, ln E, ln parallax); NaN where there is none.
        seed: (star,) each star's own.
        schedule: how long chains walk; warm-up and draws are multiples of `STRETCH`.
        progress: receives stars settled or given up, stars in total, and stars per second.

    Raises:
        ValueError: the warm-up is too short for the step size to settle, or is no multiple of `STRETCH`, nor are the draws.
    """
    if schedule.n_warmup < MIN_WARMUP:
        raise ValueError(f"a warm-up of {schedule.n_warmup} transitions is too short; use at least {MIN_WARMUP}")
    if schedule.n_draws % STRETCH or schedule.n_warmup % STRETCH:
        raise ValueError(f"warm-up and draws per chain must be multiples of {STRETCH}")
    begun, n = time.perf_counter(), len(stars)
    optima, seed = jnp.asarray(optima), jnp.asarray(seed)
    walkers: list[_Walker] = []
    for start in range(0, n, BLOCK):
        rows = jnp.minimum(jnp.arange(start, start + BLOCK), n - 1)
        block, tops, own = stars.take(rows), optima[rows], seed[rows]
        found = adapt(model, prior, block, components[rows], tops, own)
        states = _begin(model, prior, block, found, tops, own, schedule.n_chains, schedule.n_warmup)
        for _ in range(schedule.n_warmup // STRETCH):
            states, *_ = _walk(model, prior, block, found, own, states, schedule.n_warmup)
        for i in range(min(BLOCK, n - start)):
            one = jax.tree.map(lambda leaf, j=i: leaf[j], (block, found, own))
            state = jax.tree.map(lambda leaf, j=i: leaf[j], states)
            walkers.append(_Walker(one, state, float(found.k_hat[i]), []))

    settled = np.zeros(n, bool)
    for round_number in range(schedule.max_rounds):
        left = np.flatnonzero(~settled)
        # As many stretches again as were made so far, so that what is kept stays a round number of transitions apart.
        factor = 1 if round_number == 0 else 2 ** (round_number - 1)
        if not len(left) or (round_number and 2**round_number > schedule.max_rounds):
            break
        for start in range(0, len(left), BLOCK):
            chosen = [walkers[i] for i in left[start : start + BLOCK]]
            block, found, own = _stack(_padded([w.inputs for w in chosen]))
            states = _stack(_padded([w.state for w in chosen]))
            for _ in range(factor * schedule.n_draws // STRETCH):
                states, *kept = _walk(model, prior, block, found, own, states, schedule.n_warmup)
                _, diverging, accept_prob, n_steps, jumped = kept[2]
                host = [np.asarray(leaf) for leaf in (*kept[:2], diverging, accept_prob, n_steps, jumped)]
                for i, walker in enumerate(chosen):
                    walker.stretches.append(tuple(leaf[i] for leaf in host))
            for i, walker in enumerate(chosen):
                walker.state = jax.tree.map(lambda leaf, j=i: leaf[j], states)
            these = [walker.draws(schedule.n_draws) for walker in chosen]
            checked = diagnose(np.stack([t[0] for t in these]), np.stack([t[2] for t in these]))
            settled[left[start : start + BLOCK]] = checked.settled
            progress(int(settled.sum()), n, settled.sum() / (time.perf_counter() - begun))

    every = zip(*(walker.draws(schedule.n_draws) for walker in walkers), strict=True)
    parameters, ln_posterior, diverging, accept_prob, n_steps, jumped = (np.stack(leaves) for leaves in every)
    draws = Draws(
        parameters=parameters,
        ln_posterior=ln_posterior,
        diverging=diverging,
        accept_prob=accept_prob,
        n_steps=n_steps,
        jumped=jumped,
        step_size=np.stack([np.asarray(w.state.adapt_state.step_size) for w in walkers]),
        n_transitions=np.array([w.n_transitions() for w in walkers], np.int32),
        k_hat=np.array([w.k_hat for w in walkers], np.float32),
    )
    return draws, diagnose(draws.parameters, draws.diverging)


def optima_of(estimate: NDArray[np.floating], runner_up: NDArray[np.floating]) -> NDArray[np.float32]:
    """(star, 2, parameter) best and second optimum in (labels, ln E, ln parallax), NaN where there is none.

    Args:
        estimate, runner_up: (star, parameter) labels, E [mag], parallax [mas], as `infer` gives them.
    """
    both = np.stack([estimate, runner_up], axis=1).astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        both[..., -2:] = np.log(both[..., -2:])
    return both


def sample_inferred(
    model: ForwardModel,
    prior: LabelPrior,
    grid: StartGrid,
    stars: Stars,
    estimate: NDArray[np.floating],
    runner_up: NDArray[np.floating],
    seed: NDArray[np.uint32],
    schedule: Schedule,
    progress: Callable[[int, int, float], None] = lambda done, total, rate: None,
) -> tuple[Draws, Diagnostics]:
    """Draw from the posteriors of stars that `infer` has solved.

    Args:
        model, prior: the trained model.
        grid: nodes from `starts.make_grid`.
        stars: a batch, model error folded in.
        estimate, runner_up: (star, parameter) labels, E [mag], parallax [mas] of the optima; NaN if there is none.
        seed: (star,) each star's own.
        schedule, progress: as in `sample_stars`.
    """
    found = []
    for start in range(0, len(stars), COMPONENT_BLOCK):
        rows = jnp.minimum(jnp.arange(start, start + COMPONENT_BLOCK), len(stars) - 1)
        found.append(np.asarray(component_optima(model, prior, grid, stars.take(rows)))[: len(stars) - start])
    optima = optima_of(estimate, runner_up)
    components = jnp.asarray(np.concatenate(found))
    return sample_stars(model, prior, stars, components, jnp.asarray(optima), jnp.asarray(seed), schedule, progress)
