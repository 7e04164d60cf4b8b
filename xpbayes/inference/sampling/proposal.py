"""A mixture of Student t that resembles one star's posterior, found by adaptive importance sampling.

In: stars and their optima. Out: for every star its coordinates (`coordinates`) and, in these, a mixture to draw from and
to evaluate: proposals for the independent jumps of `nuts`, close enough to the posterior that most are taken.

It begins from what is known beforehand. The prior is a sum of Gaussians, so the posterior is a sum too, of each of them
times the likelihood; such a term is much closer to a Gaussian than the whole, whose shape may have arms and several
tops. The optimum of every term is sought, coordinates are laid around it, and its share follows from Laplace's
approximation to its integral. The flux is not linear in the labels, though, so what this says of ridges is not enough.
Hence a few rounds follow of drawing, weighting by posterior over proposal, and fitting a new mixture to the weighted
draws by expectation-maximisation (population Monte Carlo, Cappé et al. 2008), with the largest weights clipped, as long
as the proposal is poor (Koblents & Míguez 2015).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xpbayes.data.stars import Stars
from xpbayes.inference.linear_algebra import whitened
from xpbayes.inference.sampling.coordinates import Coordinates, coordinates_at, evaluate, intrinsic, is_usable, place
from xpbayes.inference.sampling.psis import pareto_smoothed
from xpbayes.inference.sampling.weighted_mixture import Mixture, clipped_weights, fit_mixture
from xpbayes.inference.search.solver import solve
from xpbayes.inference.search.starts import StartGrid, find_starts
from xpbayes.models.prior import LabelPrior, component_ln_density
from xpbayes.models.star_model import StarModel

DOF = 6
"""Degrees of freedom of the Student t, an even number: a proposal must have heavier tails than what it aims at."""
ITERATIONS = 30
"""Of the solver for each component of the prior: a term that is not at its optimum yet is a poorer proposal, not a wrong
one."""
OPTIMUM_SHARE = 0.1
"""Share of each optimum of the whole posterior at first."""
MIN_SHARE = 0.01
"""Least share of a component of the prior at first: its Laplace integral may be far off."""
N_DRAWS, N_ROUNDS = 1024, 4
TEMPER = 0.6
"""Mixtures are fitted to this power of the posterior, wider by a third: a proposal must cover the ends of every arm, or
chains that get there stay for long."""
CHAIN_WORTH = 0.5
"""A point of a chain counts as so many independent draws."""
N_CLIPPED = 32
"""So many of the largest weights of a round are made equal: the square root of the draws."""


class FittedProposal(NamedTuple):
    """What was found for a star."""

    coordinates: Coordinates  # around its best optimum
    mixture: Mixture  # resembles the posterior, in these
    k_hat: Float[Array, ""]  # Pareto shape of the importance weights of the mixture's own draws


def component_optima(model: StarModel, grid: StartGrid, stars: Stars) -> Float[Array, "star component parameter"]:
    """The optimum theta_log under every component of the prior; batches of one size share its programs."""
    prior = model.label_prior
    density = jax.vmap(partial(component_ln_density, prior))(grid.labels)
    found = []
    for k in range(prior.mean.shape[0]):
        ln_weight, mean, factor = (
            leaf[jnp.asarray(k)][None] for leaf in (prior.ln_weight, prior.mean, prior.whitening)
        )
        alone = StarModel(model.forward, LabelPrior(ln_weight, mean, factor, prior.ln_threshold))
        start = find_starts(alone, grid._replace(ln_prior=density[:, k]), stars, 1)[:, 0]
        found.append(solve(alone, stars, start, ITERATIONS).theta_log)
    return jnp.stack(found, axis=1)


def draw_student(key: Array, shape: tuple[int, ...]) -> Float[Array, "*draw parameter"]:
    """Draw from the standard multivariate Student t with `DOF` degrees of freedom; the last axis is one vector."""
    noise, amplitude = jax.random.split(key)
    # chi^2 / DOF of an even number of degrees of freedom is a sum of exponentials, which compiles far faster.
    uniform = jax.random.uniform(amplitude, (*shape[:-1], DOF // 2), minval=1e-30)
    gamma = -jnp.sum(jnp.log(uniform), axis=-1) / (DOF // 2)
    return jax.random.normal(noise, shape) / jnp.sqrt(gamma)[..., None]


def _ln_student(white: Float[Array, " parameter"]) -> Float[Array, ""]:
    """Ln density of the same, without its constant."""
    return -0.5 * (DOF + white.shape[-1]) * jnp.log1p(jnp.sum(white**2, axis=-1) / DOF)


def draw_many(mixture: Mixture, key: Array, n: int) -> Float[Array, "draw parameter"]:
    """Draw n points."""
    which, where = jax.random.split(key)
    n_terms, n_parameters = mixture.mean.shape
    top = jnp.cumsum(jnp.exp(mixture.ln_share))
    term = jnp.searchsorted(top[:-1], jax.random.uniform(which, (n,)) * top[-1], side="right")
    # A product with a matrix of ones and zeros: gathering a factor for every draw takes longer.
    packed = jnp.concatenate([mixture.mean[:, None, :], mixture.factor], axis=1).reshape(n_terms, -1)
    chosen = (jax.nn.one_hot(term, n_terms) @ packed).reshape(n, n_parameters + 1, n_parameters)
    white = draw_student(where, (n, n_parameters))
    return chosen[:, 0] + jnp.sum(chosen[:, 1:] * white[:, None, :], axis=-1)


def ln_density(mixture: Mixture, z: Float[Array, " parameter"]) -> Float[Array, ""]:
    """Ln density of the mixture at one point, up to the Student t's constant."""
    ln_det = jnp.sum(jnp.log(jnp.diagonal(mixture.factor, axis1=1, axis2=2)), axis=1)
    return jax.nn.logsumexp(mixture.ln_share - ln_det + _ln_student(whitened(z - mixture.mean, mixture.factor)))


class _Terms(NamedTuple):
    """The first mixture: a Student t in the coordinates of every optimum."""

    coordinates: Coordinates
    ln_share: Array


def _first_terms(model: StarModel, star: Stars, components: Array, optima: Array, known: Array) -> _Terms:
    prior, n_components = model.label_prior, components.shape[0]
    # One program for both: the whole prior is the mixture with no component left out.
    alone = jnp.where(jnp.eye(n_components, dtype=bool), prior.ln_weight, -jnp.inf)
    weights = jnp.concatenate([alone, jnp.broadcast_to(prior.ln_weight, (optima.shape[0], n_components))])

    def lay(ln_weight: Array, at: Array) -> Coordinates:
        return coordinates_at(StarModel(model.forward, replace(prior, ln_weight=ln_weight)), star, at)

    coordinates = jax.vmap(lay)(weights, jnp.concatenate([components, optima]))
    within, whole = (
        jax.tree.map(lambda leaf, at=at: leaf[at], coordinates)
        for at in (slice(n_components), slice(n_components, None))
    )
    evidence = jnp.where(jax.vmap(is_usable)(within), within.evidence, -jnp.inf)
    share = jax.nn.softmax(jnp.where(jnp.any(jnp.isfinite(evidence)), evidence, 0.0))
    share = jnp.where(jnp.isfinite(evidence), jnp.maximum(share, MIN_SHARE), 0.0)
    known = known & jax.vmap(is_usable)(whole)
    share = jnp.concatenate([share, jnp.where(known, OPTIMUM_SHARE, 0.0)])
    # A term without coordinates must not spoil sums with NaN: it borrows those of the largest.
    largest = jnp.argmax(share)
    coordinates = jax.tree.map(
        lambda leaf: jnp.where((share > 0).reshape(-1, *([1] * (leaf.ndim - 1))), leaf, leaf[largest]), coordinates
    )
    return _Terms(coordinates, jnp.log(share / jnp.sum(share)))


def _first_draws(terms: _Terms, coordinates: Coordinates, key: Array, n: int) -> tuple[Array, Array]:
    """Draws in `coordinates`, and ln of their density there."""
    which, where = jax.random.split(key)
    term = jax.random.categorical(which, terms.ln_share, shape=(n,))
    points = draw_student(where, (n, coordinates.mean.size + 1))

    def one(number: Array, point: Array) -> tuple[Array, Array]:
        labels, ln_extinction, _ = intrinsic(jax.tree.map(lambda leaf: leaf[number], terms.coordinates), point)

        def density(own: Coordinates) -> Array:
            z, ln_stretch = place(own, labels, ln_extinction, point[-1])
            return _ln_student(z) - ln_stretch

        z, ln_stretch = place(coordinates, labels, ln_extinction, point[-1])
        return z, jax.nn.logsumexp(terms.ln_share + jax.vmap(density)(terms.coordinates)) + ln_stretch

    return jax.vmap(one)(term, points)


def _tempered(energy: Array, ln_density: Array) -> Array:
    """Weights of draws of some ln density as draws of the tempered posterior, of sum one, the largest made equal."""
    return clipped_weights(-TEMPER * energy - ln_density, N_CLIPPED)


class _Round(NamedTuple):
    """Draws of one round of population Monte Carlo with the mixture that they came from."""

    mixture: Mixture
    z: Array
    ln_density: Array


def _improve(
    energy: Callable[[Array], Array], known: Array, known_weight: Array, known_worth: Array, key: Array
) -> tuple[Mixture, Array]:
    """Fit mixtures in turn and draw from them; the one whose own draws had the most even weights, and their k_hat.

    The energy is -ln density of many points. Every fit takes in known points: what was once seen is not forgotten;
    `known_worth` is their effective number.
    """

    def begin(mixture: Mixture, key: Array) -> _Round:
        z = draw_many(mixture, key, N_DRAWS)
        return _Round(mixture, z, jax.vmap(partial(ln_density, mixture))(z))

    def step(now: _Round, key: Array) -> tuple[_Round, tuple[Mixture, Array, Array]]:
        height = energy(now.z)
        ratio = -height - now.ln_density
        ratio = jnp.where(jnp.isfinite(ratio), ratio, -jnp.inf)
        weight, (smoothed, k_hat) = _tempered(height, now.ln_density), pareto_smoothed(ratio)
        share = known_worth / (known_worth + 1.0 / jnp.sum(weight**2))
        together = jnp.concatenate([share * known_weight, (1.0 - share) * weight])
        following = begin(fit_mixture(jnp.concatenate([known, now.z]), together), key)
        return following, (now.mixture, k_hat, jnp.where(jnp.isfinite(k_hat), 1.0 / jnp.sum(smoothed**2), 0.0))

    keys = jax.random.split(key, N_ROUNDS)
    first = begin(fit_mixture(known, known_weight), keys[0])
    _, (mixtures, k_hat, worth) = jax.lax.scan(step, first, keys)
    best = jnp.argmax(worth)
    return jax.tree.map(lambda leaf: leaf[best], mixtures), k_hat[best]


@jax.jit
def lay_out(
    model: StarModel, stars: Stars, components: Array, optima: Array, seed: Array
) -> tuple[Coordinates, Array, Array]:
    """Every star's coordinates, and first draws in these with ln of their density.

    `optima` are of the whole posterior, best first; NaN where there is none. The model's error is folded into the stars.
    """

    def one(inputs: tuple[Stars, Array, Array, Array]) -> tuple[Coordinates, Array, Array]:
        star, within, tops, own = inputs
        known = jnp.all(jnp.isfinite(tops), axis=1)
        terms = _first_terms(model, star, within, jnp.where(known[:, None], tops, tops[0]), known)
        coordinates = jax.tree.map(lambda leaf: leaf[within.shape[0]], terms.coordinates)  # the best optimum's
        return coordinates, *_first_draws(terms, coordinates, jax.random.fold_in(jax.random.key(own), 1), N_DRAWS)

    with jax.default_matmul_precision("highest"):
        # Star after star: the draws of one are enough for the processor, and stay in its cache.
        return jax.lax.map(one, (stars, components, optima, seed))


@jax.jit
def improve(
    model: StarModel,
    stars: Stars,
    coordinates: Coordinates,
    known: Array,
    ln_density: Array,
    by_chains: Array,
    seed: Array,
) -> FittedProposal:
    """Find the mixture of every star from what is known, draws of `lay_out` in its coordinates with their ln density.

    Or anew, by another seed, from `N_DRAWS` points of chains: these have the posterior itself for their density.
    """

    def one(inputs: tuple[Stars, Coordinates, Array, Array, Array]) -> FittedProposal:
        star, coordinates, z, ln_q, own = inputs

        def energy(z: Array) -> Array:
            return jax.vmap(lambda point: evaluate(model, star, coordinates, point)[0])(z)

        usable = jnp.all(jnp.isfinite(z), axis=1)
        z = jnp.where(usable[:, None], z, 0.0)
        height = jnp.where(usable, energy(z), jnp.inf)
        weight = _tempered(height, jnp.where(by_chains, -height, ln_q))
        worth = jnp.where(by_chains, CHAIN_WORTH, 1.0) / jnp.sum(weight**2)
        return FittedProposal(coordinates, *_improve(energy, z, weight, worth, jax.random.key(own)))

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(one, (stars, coordinates, known, ln_density, seed))
