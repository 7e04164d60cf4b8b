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

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt

from xpbayes.inference.coordinates import Frame, evaluate, frame_at, intrinsic, is_usable, place
from xpbayes.inference.importance import _cholesky
from xpbayes.inference.psis import pareto_smoothed
from xpbayes.inference.solver import solve
from xpbayes.inference.starts import StartGrid, find_starts
from xpbayes.models.forward import ForwardModel
from xpbayes.models.prior import LabelPrior, component_ln_density
from xpbayes.stars import Stars

DOF = 6
"""Degrees of freedom of the Student t, an even number: a proposal must have heavier tails than what it aims at."""
ITERATIONS = 30
"""Of the solver for each component of the prior: a term that is not at its optimum yet is a poorer proposal, not a wrong
one."""
OPTIMUM_SHARE = 0.1
"""Share of each optimum of the whole posterior at first."""
MIN_SHARE = 0.01
"""Least share of a component of the prior at first: its Laplace integral may be far off."""
N_DRAWS, N_ROUNDS = 1024, 6
N_CLIPPED = 32
"""So many of the largest weights of a round are made equal: the square root of the draws."""
N_TERMS = 8
"""Terms fitted."""
EM_STEPS = 12
WIDE_SHARE, WIDE = 0.1, 1.5
"""Share of one more term, as wide as all draws together times this: nothing that was once seen is given up."""
FLOOR = 1e-3
"""Added to the variances of a term, in units of the coordinates."""
MIN_WEIGHT = 1e-2
"""A term with a smaller share of the draws takes its shape from all of them."""


class Mixture(NamedTuple):
    """A mixture of Student t in one star's coordinates.

    Attributes:
        ln_share: (term,) they add up to one.
        mean: (term, parameter).
        factor: (term, parameter, parameter) lower-triangular; its square is the scale matrix.
    """

    ln_share: Float[Array, " term"]
    mean: Float[Array, "term parameter"]
    factor: Float[Array, "term parameter parameter"]


class Adapted(NamedTuple):
    """What was found for a star.

    Attributes:
        frame: its coordinates, around its best optimum.
        mixture: resembles the posterior, in these.
        k_hat: () Pareto shape of the importance weights of the mixture's own draws.
    """

    frame: Frame
    mixture: Mixture
    k_hat: Float[Array, ""]


def _component(prior: LabelPrior, number: Array) -> LabelPrior:
    """One component of a mixture with its weight, as a mixture of one."""
    return LabelPrior(
        prior.ln_weight[number][None], prior.mean[number][None], prior.whitening[number][None], prior.ln_threshold
    )


def component_optima(
    model: ForwardModel, prior: LabelPrior, grid: StartGrid, stars: Stars
) -> Float[Array, "star component parameter"]:
    """Find the optimum of every component of the prior times the likelihood.

    Args:
        model: the trained forward model.
        prior: the label mixture.
        grid: nodes from `starts.make_grid`.
        stars: a batch, model error folded in; a size that many batches share saves compilations.

    Returns:
        (star, component, label + 2) labels, ln E, ln parallax.
    """
    density = jax.vmap(partial(component_ln_density, prior))(grid.labels)
    found = []
    for k in range(prior.mean.shape[0]):
        alone = _component(prior, jnp.asarray(k))
        start = find_starts(model, alone, grid._replace(ln_prior=density[:, k]), stars, 1)[:, 0]
        found.append(solve(model, alone, stars, start, ITERATIONS).parameters)
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


def draw(mixture: Mixture, key: Array) -> Float[Array, " parameter"]:
    """Draw one point."""
    which, where = jax.random.split(key)
    term = jax.random.categorical(which, mixture.ln_share)
    return mixture.mean[term] + mixture.factor[term] @ draw_student(where, mixture.mean.shape[1:])


def ln_density(mixture: Mixture, z: Float[Array, " parameter"]) -> Float[Array, ""]:
    """Ln density of the mixture at one point, up to the Student t's constant."""
    offset = z - mixture.mean  # (term, parameter)
    white: list[Array] = []
    for i in range(z.shape[0]):
        known = sum((mixture.factor[:, i, k] * white[k] for k in range(i)), jnp.zeros_like(mixture.ln_share))
        white.append((offset[:, i] - known) / mixture.factor[:, i, i])
    ln_det = jnp.sum(jnp.log(jnp.diagonal(mixture.factor, axis1=1, axis2=2)), axis=1)
    return jax.nn.logsumexp(mixture.ln_share - ln_det + _ln_student(jnp.stack(white, axis=-1)))


class _Terms(NamedTuple):
    """The first mixture: a Student t in the coordinates of every optimum."""

    frames: Frame
    ln_share: Array


def _first_terms(
    model: ForwardModel, prior: LabelPrior, star: Stars, components: Array, optima: Array, known: Array
) -> _Terms:
    numbers = jnp.arange(components.shape[0])
    within = jax.vmap(lambda k, at: frame_at(model, _component(prior, k), star, at))(numbers, components)
    whole = jax.vmap(lambda at: frame_at(model, prior, star, at))(optima)
    evidence = jnp.where(jax.vmap(is_usable)(within), within.evidence, -jnp.inf)
    share = jax.nn.softmax(jnp.where(jnp.any(jnp.isfinite(evidence)), evidence, 0.0))
    share = jnp.where(jnp.isfinite(evidence), jnp.maximum(share, MIN_SHARE), 0.0)
    known = known & jax.vmap(is_usable)(whole)
    share = jnp.concatenate([share, jnp.where(known, OPTIMUM_SHARE, 0.0)])
    frames = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), within, whole)
    # A term without coordinates must not spoil sums with NaN: it borrows those of the largest.
    largest = jnp.argmax(share)
    frames = jax.tree.map(
        lambda leaf: jnp.where((share > 0).reshape(-1, *([1] * (leaf.ndim - 1))), leaf, leaf[largest]), frames
    )
    return _Terms(frames, jnp.log(share / jnp.sum(share)))


def _first_draws(terms: _Terms, frame: Frame, key: Array, n: int) -> tuple[Array, Array]:
    """Draws in the coordinates of `frame`, and ln of their density there."""
    which, where = jax.random.split(key)
    term = jax.random.categorical(which, terms.ln_share, shape=(n,))
    points = draw_student(where, (n, frame.mean.size + 1))

    def one(number: Array, point: Array) -> tuple[Array, Array]:
        labels, ln_extinction, _ = intrinsic(jax.tree.map(lambda leaf: leaf[number], terms.frames), point)

        def density(own: Frame) -> Array:
            z, ln_stretch = place(own, labels, ln_extinction, point[-1])
            return _ln_student(z) - ln_stretch

        z, ln_stretch = place(frame, labels, ln_extinction, point[-1])
        return z, jax.nn.logsumexp(terms.ln_share + jax.vmap(density)(terms.frames)) + ln_stretch

    return jax.vmap(one)(term, points)


def _fit(z: Float[Array, "draw parameter"], weight: Float[Array, " draw"]) -> Mixture:
    """Fit a mixture to weighted draws by expectation-maximisation, beginning from slices along their longest axis."""
    n_parameters = z.shape[1]
    mean = weight @ z
    offset = z - mean
    covariance = (offset * weight[:, None]).T @ offset + FLOOR * jnp.eye(n_parameters)
    axis = jnp.ones(n_parameters)
    for _ in range(12):
        axis = covariance @ axis
        axis = axis / jnp.sqrt(jnp.sum(axis**2))
    along = offset @ axis
    order = jnp.argsort(along)
    rank = jnp.zeros_like(weight).at[order].set(jnp.cumsum(weight[order]))
    slice_of = jnp.clip((rank * N_TERMS).astype(int), 0, N_TERMS - 1)
    share = jax.nn.one_hot(slice_of, N_TERMS, axis=0)  # (term, draw)

    def maximise(share: Array) -> Mixture:
        r = share * weight
        total = jnp.sum(r, axis=1)
        center = (r @ z + MIN_WEIGHT * mean) / (total + MIN_WEIGHT)[:, None]
        apart = z - center[:, None, :]
        scatter = jnp.einsum("kn,kni,knj->kij", r, apart, apart) + MIN_WEIGHT * covariance
        scale = scatter / (total + MIN_WEIGHT)[:, None, None] + FLOOR * jnp.eye(n_parameters)
        return Mixture(jnp.log(total + 1e-4), center, jax.vmap(_factor)(scale))

    def step(_: int, mixture: Mixture) -> Mixture:
        return maximise(jax.nn.softmax(_ln_gaussians(mixture, z), axis=0))

    fitted = jax.lax.fori_loop(0, EM_STEPS, step, maximise(share))
    ln_share = jnp.append(jax.nn.log_softmax(fitted.ln_share) + jnp.log1p(-WIDE_SHARE), jnp.log(WIDE_SHARE))
    return Mixture(
        ln_share,
        jnp.concatenate([fitted.mean, mean[None]]),
        jnp.concatenate([fitted.factor, WIDE * _factor(covariance)[None]]),
    )


def _factor(scale: Array) -> Array:
    size = jnp.sqrt(jnp.diagonal(scale))
    return size[:, None] * _cholesky(scale / size[:, None] / size[None, :])


def _ln_gaussians(mixture: Mixture, z: Array) -> Array:
    """(term, draw) ln of share times density."""

    def one(ln_share: Array, mean: Array, factor: Array) -> Array:
        white: list[Array] = []
        for i in range(z.shape[1]):
            known = sum((factor[i, k] * white[k] for k in range(i)), jnp.zeros(()))
            white.append((z[:, i] - mean[i] - known) / factor[i, i])
        return ln_share - jnp.sum(jnp.log(jnp.diagonal(factor))) - 0.5 * sum(w * w for w in white)

    return jax.vmap(one)(*mixture)


def _clipped(ln_ratio: Array) -> Array:
    """Weights that add up to one, the largest made equal."""
    limit = jnp.sort(ln_ratio)[-N_CLIPPED]
    return jax.nn.softmax(jnp.minimum(ln_ratio, limit))


@jax.jit
def adapt(
    model: ForwardModel,
    prior: LabelPrior,
    stars: Stars,
    components: Float[Array, "star component parameter"],
    optima: Float[Array, "star optimum parameter"],
    seed: UInt[Array, " star"],
) -> Adapted:
    """Find the mixture of every star of a block.

    Args:
        model: the trained forward model.
        prior: the label mixture.
        stars: a block, model error folded in.
        components: from `component_optima`.
        optima: optima of the whole posterior, best first, in (labels, ln E, ln parallax); NaN where there is none.
        seed: (star,) each star's own.
    """

    def one(star: Stars, within: Array, tops: Array, own: Array) -> Adapted:
        known = jnp.all(jnp.isfinite(tops), axis=1)
        terms = _first_terms(model, prior, star, within, jnp.where(known[:, None], tops, tops[0]), known)
        frame = jax.tree.map(lambda leaf: leaf[within.shape[0]], terms.frames)  # the best optimum's

        def ln_ratios(z: Array, ln_q: Array) -> Array:
            energy = jax.vmap(lambda point: evaluate(model, prior, star, frame, point)[0])(z)
            ratio = -energy - ln_q
            return jnp.where(jnp.isfinite(ratio), ratio, -jnp.inf)

        keys = jax.random.split(jax.random.key(own), N_ROUNDS)
        first, ln_q = _first_draws(terms, frame, keys[0], N_DRAWS)

        def improve(state: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Mixture]:
            mixture = _fit(state[0], _clipped(state[1]))
            z = jax.vmap(partial(draw, mixture))(jax.random.split(key, N_DRAWS))
            return (z, ln_ratios(z, jax.vmap(partial(ln_density, mixture))(z))), mixture

        (_, ratio), mixtures = jax.lax.scan(improve, (first, ln_ratios(first, ln_q)), keys[1:])
        mixture = jax.tree.map(lambda leaf: leaf[-1], mixtures)
        return Adapted(frame, mixture, pareto_smoothed(ratio)[1])

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(stars, components, optima, seed)
