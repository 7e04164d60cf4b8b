"""Markov chains for single stars: NumPyro's No-U-Turn sampler on the posterior of `models.posterior`, many at once.

In: stars and their optima. Out: draws, with what diagnoses them. All stars and chains of a batch advance in one compiled
program, batches side by side on the processor's cores; a star's random numbers depend on its own seed alone, and batches
have one size, so its draws do not depend on who shares its batch.

The chains walk in the coordinates of `coordinates`, where a posterior is nearly a unit Gaussian around its optimum:
short trajectories and an identity mass matrix serve, and only the step size is adapted, one for all chains of a star.
They move in two ways, each of which leaves the posterior as it is: after every transition of NUTS come `JUMPS` choices
among independent points from the mixture of `proposal` and the point where the chain stands, with odds of posterior over
proposal (Tjelmeland 2004; iterated sampling importance resampling, Andrieu, Lee & Vihola 2018). NUTS goes where the
mixture has not looked; a choice takes a chain from one top or arm of the posterior to another as often as it asks, so
that the weights of optima need no estimate of their own. Every choice ends with one draw. The points to choose from do
not depend on the chains: they are evaluated beforehand, all together, at a twentieth of the cost of a step of NUTS.

Chains begin at points of the mixture, the first two at the optima: where they still disagree, R-hat shows it. A mixture
may miss a thin arm that NUTS finds, so after the warm-up it is fitted anew to what the chains have seen, and then stays as
it is while draws are kept. Where chains have not settled, that is done once more, then for twice as long, and so on;
their draws are thinned, and nothing of before is kept.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt
from numpy.typing import NDArray

from xpbayes.data.stars import Stars, rows_of_each
from xpbayes.inference.sampling.convergence import Diagnostics, diagnose
from xpbayes.inference.sampling.coordinates import evaluate, place, potential
from xpbayes.inference.sampling.proposal import (
    N_DRAWS,
    FittedProposal,
    component_optima,
    draw_many,
    improve,
    lay_out,
    ln_density,
)
from xpbayes.inference.search.starts import make_grid
from xpbayes.models.star_model import StarModel
from xpbayes.models.theta import to_linear, to_log

BATCH = 16
"""Stars that advance together: the slowest chain of a batch decides when it is done."""
JUMPS = 5
"""Choices among independent points, and draws, for one transition of NUTS."""
DRAWS_PER_CALL = 50
"""Draws that every chain of a batch makes in one call."""
COMPONENT_BATCH = 64
"""Stars whose optima under every component of the prior are sought together."""
FIRST_STEP = 0.5
TARGET_ACCEPT = 0.9
"""Above the usual 0.8: the second of two optima may be narrower than the one that the step size was adapted in."""
DEPTH = 3
"""Trajectories have 2^3 - 1 steps at most: in these coordinates a Gaussian turns round after three or four."""
N_CANDIDATES = 16
"""Independent points that a chain chooses from, beside where it stands."""
MIN_WARMUP = 150
"""Draws before the step size, adapted to the mean acceptance of all chains of a star, is fixed."""


@dataclass(frozen=True)
class Draws:
    """Draws of some stars, NumPy; leading axes (star, chain, draw)."""

    theta: NDArray[np.float32]  # (star, chain, draw, parameter) labels, E [mag], parallax [mas]
    # (star, chain, draw) ln density of (labels, E, parallax), up to a star's constant
    ln_posterior: NDArray[np.float32]
    diverging: NDArray[np.bool_]  # (star, chain, draw) the energy of a trajectory that led to it was lost
    accept_prob: NDArray[np.float32]  # (star, chain, draw) mean acceptance of the last trajectory's points
    n_steps: NDArray[np.int32]  # (star, chain, draw) leapfrog steps since the draw before
    jumped: NDArray[np.bool_]  # (star, chain, draw) the chain chose an independent point
    step_size: NDArray[np.float32]  # (star,)
    n_transitions: NDArray[np.int32]  # (star,) choices of every chain that the draws are evenly picked from
    n_made: NDArray[np.int32]  # (star,) choices of every chain in all, after the first warm-up
    k_hat: NDArray[np.float32]  # (star,) Pareto shape of importance weights of the independent points' mixture

    def __len__(self) -> int:
        return len(self.theta)


class Schedule(NamedTuple):
    """How long chains walk."""

    n_chains: int = 4  # per star
    n_warmup: int = 150  # per chain
    n_draws: int = 500  # per chain
    max_rounds: int = 8  # unsettled stars begin anew, at first as long, then 2, 4, ... times, up to so many


class _Kept(NamedTuple):
    """What is kept of every draw: leading axes (star, chain, draw). z is in the star's coordinates."""

    z: Any
    theta: Any
    ln_posterior: Any
    diverging: Any
    accept_prob: Any
    n_steps: Any
    jumped: Any


class _Chains(NamedTuple):
    """All chains of one star between two calls."""

    z: Array  # (chain, parameter)
    averaging: Any  # state of the dual averaging of ln step size
    n_calls: Array  # () calls made so far: random numbers follow from it


def choose_point(
    key: Array, z: Float[Array, " parameter"], ln_ratio: Array, points: Float[Array, "n parameter"], ln_ratios: Array
) -> tuple[Array, Array, Array]:
    """Choose among independent points and where the chain stands; leaves the target density as it is.

    Ratios are ln of target over proposal density at z and at the points, which are drawn from the proposal. Returns the
    chosen z with its ratio, and whether it is new.
    """
    ratios = jnp.append(jnp.where(jnp.isfinite(ln_ratios), ln_ratios, -jnp.inf), ln_ratio)
    chosen = jax.random.categorical(key, ratios)
    jumped = chosen < points.shape[0]
    return jnp.where(jumped, points[jnp.minimum(chosen, points.shape[0] - 1)], z), ratios[chosen], jumped


def nuts_transition(target: Callable[[Array], Array], z: Array, step_size: Array, key: Array) -> Any:
    """One transition of NumPyro's NUTS in coordinates of unit mass: its state afterwards."""
    from numpyro.infer.hmc import hmc

    init, transition = hmc(potential_fn=target, algo="NUTS")
    unit = jnp.ones_like(z)
    fixed = {"inverse_mass_matrix": unit, "adapt_step_size": False, "adapt_mass_matrix": False, "max_tree_depth": DEPTH}
    return transition(init(z, 0, step_size=step_size, rng_key=key, **fixed))


@partial(jax.jit, static_argnames="n_chains")
def _begin(model: StarModel, stars: Stars, found: FittedProposal, optima: Array, seed: Array, n_chains: int) -> _Chains:
    """Where all chains of a batch begin: the first ones at the optima, the others at points of the mixture."""
    from numpyro.infer.hmc_util import dual_averaging

    def one(inputs: tuple[Stars, FittedProposal, Array, Array]) -> _Chains:
        star, known, tops, own = inputs
        n = min(tops.shape[0], n_chains)
        at_tops = jax.vmap(lambda top: place(known.coordinates, top[:-2], top[-2], jnp.zeros(()))[0])(tops[:n])
        drawn = draw_many(known.mixture, jax.random.fold_in(jax.random.key(own), 1), n_chains)
        points = jnp.concatenate([at_tops, drawn])
        energy = jax.vmap(partial(potential, model, star, known.coordinates))(points)
        usable = jnp.all(jnp.isfinite(points), axis=1) & jnp.isfinite(energy)
        drawn = jnp.where(usable[n:, None], drawn, 0.0)
        z = drawn.at[:n].set(jnp.where(usable[:n, None], at_tops, drawn[:n]))
        # Of the type that `_walk` gives back: a second one would be a second program.
        ln_step = jnp.log(jnp.asarray(10.0 * FIRST_STEP, z.dtype))
        return _Chains(z, dual_averaging()[0](ln_step), jnp.zeros((), jnp.uint32))

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(one, (stars, found, optima, seed))


@jax.jit
def _walk(
    model: StarModel, stars: Stars, found: FittedProposal, seed: Array, chains: _Chains, adapting: Array
) -> tuple[_Chains, _Kept, Array]:
    """Take all chains of a batch `DRAWS_PER_CALL` draws further; the chains, what is kept, and (star,) the step size.

    If the step size is not adapted, it is the average of what it was.
    """
    from numpyro.infer.hmc_util import dual_averaging

    n_chains, n_parameters = chains.z.shape[1:]
    n_cycles = DRAWS_PER_CALL // JUMPS
    n_points = n_chains * DRAWS_PER_CALL * N_CANDIDATES
    _, average = dual_averaging()

    def propose(inputs: tuple[Stars, FittedProposal, Array]) -> tuple[Array, Array]:
        """Independent points of one star and ln of posterior over proposal."""
        star, known, key = inputs
        points = draw_many(known.mixture, key, n_points)
        energy = jax.vmap(partial(potential, model, star, known.coordinates))(points)
        return points, -energy - jax.vmap(partial(ln_density, known.mixture))(points)

    def cycle(star: Stars, known: FittedProposal, state: tuple[Array, Any], inputs: tuple[Array, Array, Array]) -> Any:
        """One transition of NUTS and `JUMPS` choices of every chain of one star."""
        z, averaging = state
        step_size = jnp.exp(jnp.where(adapting, averaging[0], averaging[1]))

        def chain(z: Array, points: Array, ln_ratios: Array, key: Array) -> tuple[Array, ...]:
            walk, leap = jax.random.split(key)
            moved = nuts_transition(partial(potential, model, star, known.coordinates), z, step_size, walk)

            def jump(here: tuple[Array, Array], inputs: tuple[Array, Array, Array]) -> Any:
                z, ratio, jumped = choose_point(inputs[0], *here, *inputs[1:])
                return (z, ratio), (z, jumped)

            at = (moved.z, -moved.potential_energy - ln_density(known.mixture, moved.z))
            (z, _), (kept, jumped) = jax.lax.scan(jump, at, (jax.random.split(leap, JUMPS), points, ln_ratios))
            return z, kept, jumped, moved.diverging, moved.accept_prob, moved.num_steps

        z, kept, jumped, diverging, accept_prob, n_steps = jax.vmap(chain)(z, *inputs)
        updated = average(TARGET_ACCEPT - jnp.mean(accept_prob), averaging)
        averaging = jax.tree.map(lambda a, b: jnp.where(adapting, a, b), updated, averaging)
        first = jnp.arange(JUMPS) == 0
        each = (diverging[:, None] & first, jnp.repeat(accept_prob[:, None], JUMPS, 1), n_steps[:, None] * first)
        return (z, averaging), (kept, *each, jumped)

    def walk(star: Stars, known: FittedProposal, state: _Chains, points: Array, ln_ratios: Array, key: Array) -> Any:
        keys = jax.random.split(key, (n_cycles, n_chains))
        inputs = (points, ln_ratios, keys)
        (z, averaging), kept = jax.lax.scan(partial(cycle, star, known), (state.z, state.averaging), inputs)
        # (cycle, chain, jump, ...) to (chain, draw, ...).
        kept = jax.tree.map(lambda v: jnp.moveaxis(v, 0, 1).reshape(n_chains, DRAWS_PER_CALL, *v.shape[3:]), kept)
        return _Chains(z, averaging, state.n_calls + 1), jnp.exp(averaging[1]), kept

    def finish(inputs: tuple[Stars, FittedProposal, Array]) -> tuple[Array, Array]:
        star, known, z = inputs
        _, u, ln_posterior = jax.vmap(partial(evaluate, model, star, known.coordinates))(z)
        return to_linear(u), ln_posterior

    with jax.default_matmul_precision("highest"):
        keys = jax.vmap(lambda own, n: jax.random.split(jax.random.fold_in(jax.random.key(own), n + 2)))(
            seed, chains.n_calls
        )
        # One star after another: the points of one are a product of matrices, and stay in the processor's cache.
        points, ln_ratios = jax.lax.map(propose, (stars, found, keys[:, 0]))
        points = points.reshape(-1, n_cycles, n_chains, JUMPS, N_CANDIDATES, n_parameters)
        chains, step_size, (z, *rest) = jax.vmap(walk)(
            stars, found, chains, points, ln_ratios.reshape(points.shape[:-1]), keys[:, 1]
        )
        theta, ln_posterior = jax.lax.map(finish, (stars, found, z.reshape(z.shape[0], -1, n_parameters)))
        shape = z.shape[:3]
        return chains, _Kept(z, theta.reshape(z.shape), ln_posterior.reshape(shape), *rest), step_size


@dataclass
class _Walker:
    """One star between rounds, on the host: its batch's inputs, its chains, and what they have left behind."""

    n_transitions: int
    n_made: int
    inputs: tuple[Any, ...]
    chains: Any
    kept: _Kept
    known: Diagnostics
    step_size: float


def _thinned(calls: list[_Kept], n_draws: int) -> _Kept:
    """All draws of a round, evenly thinned; a trajectory between two that diverged is counted with the later."""
    joined = _Kept(*(np.concatenate(parts, axis=2) for parts in zip(*calls, strict=True)))
    every = joined.diverging.shape[2] // n_draws
    groups = (*joined.diverging.shape[:2], n_draws, every)
    last = _Kept(*(leaf[:, :, every - 1 :: every] for leaf in joined))
    return last._replace(
        diverging=joined.diverging.reshape(groups).any(axis=3), n_steps=joined.n_steps.reshape(groups).sum(axis=3)
    )


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def sample_stars(
    model: StarModel,
    stars: Stars,
    components: Float[Array, "star component parameter"],
    optima: Float[Array, "star optimum parameter"],
    seed: UInt[Array, " star"],
    schedule: Schedule,
    progress: Callable[[int, int, float], None] = lambda done, total, rate: None,
    threads: int | None = None,
) -> tuple[Draws, Diagnostics]:
    """Draw from every star's posterior, the model's error in the stars.

    Components are optima as of `proposal.component_optima`; `optima` are of the whole posterior, best first, theta_log
    each, NaN where there is none. Progress receives stars settled or given up, stars in total, and stars per second;
    `threads` batches advance side by side, as many as the processor has cores if None. ValueError: the warm-up is too
    short for the step size to settle, or it or the draws are no multiple of `DRAWS_PER_CALL`.
    """
    if schedule.n_warmup < MIN_WARMUP:
        raise ValueError(f"a warm-up of {schedule.n_warmup} draws is too short; use at least {MIN_WARMUP}")
    if schedule.n_draws % DRAWS_PER_CALL or schedule.n_warmup % DRAWS_PER_CALL:
        raise ValueError(f"warm-up and draws per chain must be multiples of {DRAWS_PER_CALL}")
    begun, n = time.perf_counter(), len(stars)
    model = model.without_error
    host = jax.tree.map(np.asarray, (stars, components, optima, seed))
    walkers: dict[int, _Walker] = {}

    def first(rows: NDArray[np.intp]) -> list[_Walker]:
        batch, within, tops, own = rows_of_each(host, np.resize(rows, BATCH))
        found = improve(model, batch, *lay_out(model, batch, within, tops, own), jnp.asarray(False), own)
        chains = _begin(model, batch, found, tops, own, schedule.n_chains)
        seen = []
        for _ in range(schedule.n_warmup // DRAWS_PER_CALL):
            chains, kept, _ = _walk(model, batch, found, own, chains, jnp.asarray(True))
            seen.append(np.asarray(kept.z))
        # The first call's draws are still on their way from where the chains began.
        points = np.concatenate(seen[1:], axis=2)
        return _round(model, (batch, found, own), chains, points, schedule, 0, [0] * len(rows))

    def again(number: int, rows: NDArray[np.intp]) -> list[_Walker]:
        chosen = [walkers[int(i)] for i in np.resize(rows, BATCH)]
        inputs, chains, seen = _stack([(w.inputs, w.chains, w.kept.z) for w in chosen])
        return _round(model, inputs, chains, seen, schedule, number, [w.n_made for w in chosen[: len(rows)]])

    with ThreadPoolExecutor(threads or _n_cores()) as pool:
        left, number = np.arange(n, dtype=np.intp), 0
        while len(left) and _length(number) <= schedule.max_rounds:
            task = first if number == 0 else partial(again, number)
            batches = [left[i : i + BATCH] for i in range(0, len(left), BATCH)]
            for rows, done in zip(batches, pool.map(task, batches), strict=True):
                walkers.update(zip(rows.tolist(), done, strict=True))
                settled = sum(bool(w.known.settled) for w in walkers.values())
                progress(settled, n, settled / (time.perf_counter() - begun))
            left = np.array([i for i in left.tolist() if not walkers[i].known.settled], np.intp)
            number += 1

    ended = [walkers[i] for i in range(n)]
    kept = _stack([w.kept for w in ended])._asdict()
    del kept["z"]
    draws = Draws(
        **kept,
        step_size=np.array([w.step_size for w in ended], np.float32),
        n_transitions=np.array([w.n_transitions for w in ended], np.int32),
        n_made=np.array([w.n_made for w in ended], np.int32),
        k_hat=np.array([w.inputs[1].k_hat for w in ended], np.float32),
    )
    return draws, _stack([w.known for w in ended])


def _length(number: int) -> int:
    """How many times the draws a round takes: 1, 1, 2, 4, ... A better mixture is often all that the second needs."""
    return 1 if number == 0 else int(2 ** (number - 1))


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _round(
    model: StarModel,
    inputs: tuple[Stars, FittedProposal, Array],
    chains: _Chains,
    seen: NDArray[np.float32],
    schedule: Schedule,
    number: int,
    made: list[int],
) -> list[_Walker]:
    """Fit a batch's mixtures to what its chains have seen, take them further, and diagnose the draws.

    The inputs are stars, what was found for them, and seeds; `seen` is in each star's coordinates; the round's number,
    from 0, says how far chains walk, and is part of the random numbers. `made`: choices made before, of each star that
    counts; the others fill the batch.
    """
    batch, found, own = inputs
    seen = seen.reshape(len(seen), -1, seen.shape[-1])
    points = jnp.asarray(seen[:, np.linspace(0, seen.shape[1] - 1, N_DRAWS).astype(int)])
    no_density, seed = jnp.zeros(points.shape[:2], jnp.float32), own + np.uint32(number + 1)
    inputs = (batch, improve(model, batch, found.coordinates, points, no_density, jnp.asarray(True), seed), own)
    calls = []
    n_walked = _length(number) * schedule.n_draws
    for call in range(1 + n_walked // DRAWS_PER_CALL):
        chains, kept, step_size = _walk(model, *inputs, chains, jnp.asarray(False))
        if call:  # the first is the chains' way from the old proposals to the new
            calls.append(jax.tree.map(np.asarray, kept))
    kept = rows_of_each(_thinned(calls, schedule.n_draws), slice(len(made)))
    each = jax.tree.map(np.asarray, (inputs, chains, kept, diagnose(kept.theta, kept.diverging), step_size))
    of_star: list[Any] = [jax.tree.map(lambda leaf, i=i: leaf[i], each) for i in range(len(made))]
    return [_Walker(n_walked, before + n_walked, *one) for one, before in zip(of_star, made, strict=True)]


def optima_of(estimate: NDArray[np.floating], runner_up: NDArray[np.floating]) -> NDArray[np.float32]:
    """(star, 2, parameter) theta_log of best and second optimum, as `infer` gives them, NaN where there is none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return to_log(np.stack([estimate, runner_up], axis=1).astype(np.float32))


def sample_inferred(  # noqa: PLR0913 - those of `sample_stars`, and where the optima are
    model: StarModel,
    n_nodes: int,
    stars: Stars,
    estimate: NDArray[np.floating],
    runner_up: NDArray[np.floating],
    seed: NDArray[np.uint32],
    schedule: Schedule,
    progress: Callable[[int, int, float], None] = lambda done, total, rate: None,
    threads: int | None = None,
) -> tuple[Draws, Diagnostics]:
    """Draw from the posteriors of stars that `infer` has solved, the model's error in them; see `sample_stars`.

    The optima are labels, E [mag], parallax [mas], the runner-up NaN if there is none. `n_nodes` are of the search for
    the optimum under every component of the prior.
    """
    model, found = model.without_error, []
    grid = make_grid(model, n_nodes)
    for start in range(0, len(stars), COMPONENT_BATCH):
        rows = jnp.minimum(jnp.arange(start, start + COMPONENT_BATCH), len(stars) - 1)
        found.append(np.asarray(component_optima(model, grid, stars.take(rows)))[: len(stars) - start])
    optima = optima_of(estimate, runner_up)
    components = jnp.asarray(np.concatenate(found))
    return sample_stars(model, stars, components, jnp.asarray(optima), jnp.asarray(seed), schedule, progress, threads)
