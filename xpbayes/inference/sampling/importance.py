"""Unbiased summaries of one star's posterior: importance-reweighted draws around its optima (METHOD 5).

More than 500 lines, for proposal, draws, their density and the rounds of more share one set of coordinates, told below.

The mode in ln E sits one sigma high for a dust-free star; means and quantiles do not. Draws are cheap because the
proposal knows the posterior's shape:

- Only the labels, and xi where the extinction curve varies, are drawn from a proposal that has to be found: "labels" below
  means both. Given the labels, every flux that fits is next to the
  one at the optimum, where ln f is linear in E and in the logarithm of the parallax: both follow from linear least squares,
  in closed form. The ridge between Teff and E and the bent valley between log g and parallax never enter.
- E is drawn from its Gaussian given the labels, cut at E = 0: with a flat prior a dust-free star's E is half a Gaussian.
  The parallax is drawn given the rest; its best value for the very flux that was drawn is an amplitude.
- The proposal in the labels is a mixture: Laplace approximations of the optimum, of the second one where it competes, and
  of the posteriors that the star would have under single components of the label prior. At an optimum on the narrow main
  sequence the whole posterior's curvature says nothing of the arm towards the subgiants, which is another component's.

Rounds of more draws follow, each from a mixture fitted to all draws before it, weighted by a power of the posterior
that grows from round to round: an arm that few draws met is followed to its end. Stars get them whose first draws'
weights are uneven (k_hat). Every draw counts in the end, under the mixture of all that were drawn from (deterministic
mixture weights, as in adaptive multiple importance sampling, Cornuet et al. 2012).

Points are a randomly rotated Sobol sequence; a star's rotation depends on its own seed alone.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Bool, Float, UInt
from numpy.typing import NDArray

from xpbayes.data.stars import Stars, by_blocks, replaced, rows_of_each
from xpbayes.device import is_hasty, is_traced, program
from xpbayes.inference.laplace import Gaussian, around_components, laplace_at
from xpbayes.inference.linear_algebra import cholesky, distance2, whitened
from xpbayes.inference.sampling.psis import pareto_smoothed
from xpbayes.inference.sampling.weighted_mixture import clipped_weights, fit_mixture, weighted_quantiles
from xpbayes.models.extinction import attenuate
from xpbayes.models.forward import ForwardModel, curve_of, shape_and_level
from xpbayes.models.likelihood import deviance, n_observed
from xpbayes.models.objective import measurement_deviance, parallax_weight, smooth_part, spurious_at
from xpbayes.models.star_model import StarModel
from xpbayes.models.theta import to_linear

T = TypeVar("T")

INFLATION = (1.1, 2.2)
"""The proposal is wider than the Laplace approximation by these factors: weights must not pile up in its tails."""
POWER = round((INFLATION[1] / INFLATION[0]) ** 2)
"""The wider Gaussian to this power is the narrower one."""
WIDE_SHARE = 0.4
"""This share of the draws comes from the wider: where a posterior bends, the narrow one misses its ends, and k_hat with
it."""
MIN_RUNNER_UP_SHARE = 0.2
"""A second optimum gets at least this share of what the first has: its Laplace evidence may be off."""
COMPONENTS_SHARE, MIN_COMPONENT_SHARE = 0.6, 0.06
"""Share of the draws that the components have together, and the least of each among them."""
ROUNDS = ((1, 0.1), (1, 0.4), (2, 0.8))
"""Rounds: draws in units of `n_more`, and the power of the posterior that their mixture is fitted to. The first looks
for arms that the star's first draws missed, the others follow them."""
ROUND_TERMS, ROUND_STEPS = 5, 3
"""Terms of a round's mixture, and steps of its fit."""
ENOUGH = 0.2
"""Of k_hat: below, the first draws stay alone. Simulated truths are then covered as well as if all stars got more: a star
that has lost an arm mostly shows it here."""
N_CLIPPED = 16
"""So many of the largest weights are made equal for a fit."""
NO_WEIGHT = 1e-8
"""A draw of less weight is left out of sums and quantiles."""
MAX_WIDTH = 3.0
"""A term wider than this in E [mag], or three times as far from E = 0, is of no use."""
WIDE_SHARE_EXTINCTION = 0.2
"""Share of the draws whose E given the labels comes from the wider Gaussian."""
MIN_CUT_VARIANCE = 0.05
"""Least variance that a cut leaves to E, in units of the uncut one."""
MAX_Z, FARTHEST = 6.0, 12.0
"""Draws of E reach so far above its mean or the cut, in widths; and float32 tells the share above a point up to here."""
TINY_EXTINCTION = 1e-7
LEAST_AMOUNT = 0.2
"""Of dust per unit of E with another xi, where it is one at the optimum."""
BATCH_DRAWS = 2**15
"""Draws in memory together."""


class Summary(NamedTuple):
    """Summaries per star, of (labels, E, parallax)."""

    mean: Float[Array, "star parameter"]
    std: Float[Array, "star parameter"]
    median: Float[Array, "star parameter"]
    low: Float[Array, "star parameter"]  # 16 and 84 % quantiles
    high: Float[Array, "star parameter"]
    k_hat: Float[Array, " star"]  # Pareto shape of the importance weights; above 0.7 the summaries cannot be trusted
    n_effective: Float[Array, " star"]  # effective number of draws
    # probability that the measured parallax is spurious, NaN without one; None if none is doubted
    spurious: Float[Array, " star"] | None = None


class LabelProposal(NamedTuple):
    """Gaussians in label space, along a leading axis."""

    mean: Float[Array, "term label"]
    factor: Float[Array, "term label label"]  # lower-triangular
    ln_norm: Float[Array, "term width"]  # ln of the density's constant, the width's share of the draws included
    share: Float[Array, " term"]  # of the draws


class ExtinctionGivenLabels(NamedTuple):
    """What one star's fluxes say of E once its labels are known: a Gaussian of the same width for all labels."""

    shape: Float[Array, " channel"]  # ln f_abs at the optimum, as `shape_and_level` has it
    extinction: Float[Array, ""]  # best E there [mag]
    slope: Float[Array, " channel"]  # by how much it changes with ln f_abs
    sigma: Float[Array, ""]  # its error [mag], the parallax integrated out


@lru_cache
def _points(n_draws: int, dimension: int) -> NDArray[np.float32]:
    from scipy.stats import qmc

    return qmc.Sobol(dimension, seed=0).random(n_draws).astype(np.float32)


def given_labels(forward: ForwardModel, star: Stars, mode: Float[Array, " parameter"]) -> ExtinctionGivenLabels:
    """Solve for E and the parallax of any labels near to an optimum, by linear least squares in ln f.

    Wherever the posterior is, the flux is the optimum's to within its errors: to first order it is f (1 + d) with d =
    ln f_abs - ln f_abs(optimum) + 2 (change of ln parallax) - R (change of E).
    """
    shape, level = shape_and_level(forward, mode[: forward.n_labels])
    extinction, plx, curve = jnp.exp(mode[-2]), jnp.exp(mode[-1]), curve_of(forward, mode)
    flux = jnp.exp(attenuate(shape, extinction, curve) + (level + 2.0 * mode[-1] - star.ln_scale))
    residual, by_parallax, by_extinction = jnp.stack([flux - star.flux, 2.0 * flux, -curve * flux]) @ star.whitening.T
    weight = deviance(residual @ residual, n_observed(star.whitening), star.inv_dof).slope
    parallax_precision = (plx * star.parallax_inv_error) ** 2 * parallax_weight(star, plx)
    measured = (star.parallax - plx) / plx  # ln parallax above the optimum's, as the measurement has it
    total = weight * by_parallax @ by_parallax + parallax_precision
    # What is left of E's direction once the parallax has followed it.
    follows = weight * by_parallax @ by_extinction / total
    own = by_extinction - follows * by_parallax
    precision = jnp.maximum(weight * own @ by_extinction + star.reddening_inv_error**2, MAX_WIDTH**-2)
    pull = (
        -follows * (parallax_precision * measured + 1.0) + (star.reddening - extinction) * star.reddening_inv_error**2
    )
    slope = -weight * flux * (own @ star.whitening) / precision
    best = extinction + (pull - weight * own @ residual) / precision
    return ExtinctionGivenLabels(shape, best, slope, 1.0 / jnp.sqrt(precision))


def _terms(mean: Array, factor: Array, share: Array) -> LabelProposal:
    n = mean.shape[1]
    width = jnp.asarray(INFLATION, mean.dtype)
    ln_share = jnp.log(jnp.array([1.0 - WIDE_SHARE, WIDE_SHARE], mean.dtype))
    ln_size = jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), axis=1)[:, None] + n * jnp.log(width)
    return LabelProposal(mean, factor, ln_share - ln_size - 0.5 * n * np.log(2.0 * np.pi), share)


def _of_labels(gaussian: Gaussian) -> tuple[Array, Array]:
    """Mean and factor of the labels of a Gaussian that is cut at E = 0, to second moments."""
    lowest = -gaussian.mean[0] / gaussian.factor[0, 0]
    above = jnp.exp(norm.logpdf(lowest) - norm.logcdf(-lowest))
    spread = jnp.maximum(1.0 + lowest * above - above**2, MIN_CUT_VARIANCE)
    along, rest = gaussian.factor[1:, 0], gaussian.factor[1:, 1:]
    covariance = spread * jnp.outer(along, along) + rest @ rest.T
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(covariance), 1e-30))
    factor = scale[:, None] * cholesky(covariance / scale[:, None] / scale[None, :] + 1e-6 * jnp.eye(scale.size))
    return gaussian.mean[1:] + above * along, factor


def _mix(tops: Gaussian, parts: Gaussian, competes: Array) -> LabelProposal:
    """All terms of the first proposal: around the best and the second optimum, and of the label prior's components."""
    gaussians = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), tops, parts)
    mean, factor = jax.vmap(_of_labels)(gaussians)
    finite = jnp.isfinite(mean).all(axis=1) & jnp.isfinite(factor).all(axis=(1, 2)) & jnp.isfinite(gaussians.evidence)
    narrow = (gaussians.factor[:, 0, 0] < MAX_WIDTH) & (jnp.abs(gaussians.mean[:, 0]) < 3.0 * MAX_WIDTH)
    usable = (finite & narrow).at[0].set(True).at[1].set(finite[1] & narrow[1] & competes)
    odds = jnp.clip(jax.nn.sigmoid(tops.evidence[1] - tops.evidence[0]), MIN_RUNNER_UP_SHARE, 0.5)
    of_second = jnp.where(usable[1], odds, 0.0)
    any_part = jnp.any(usable[2:])
    likely = jax.nn.softmax(jnp.where(usable[2:], parts.evidence, jnp.where(any_part, -jnp.inf, 0.0)))
    likely = jnp.where(usable[2:], jnp.maximum(likely, MIN_COMPONENT_SHARE), 0.0)
    of_parts = COMPONENTS_SHARE * likely / jnp.maximum(jnp.sum(likely), 1e-9)
    rest = 1.0 - jnp.sum(of_parts)
    share = jnp.concatenate([jnp.stack([rest * (1.0 - of_second), rest * of_second]), of_parts])
    # A term that cannot be used must not spoil sums with NaN: it borrows the first one's shape, and no draw.
    mean = jnp.where(usable[:, None], mean, mean[0])
    factor = jnp.where(usable[:, None, None], factor, factor[0])
    return _terms(mean, factor, share)


class _Drawn(NamedTuple):
    """Draws of one star."""

    theta_log: Array  # (draw, label + 2) labels, ln E, ln parallax
    ln_height: Array  # (draw,) ln of the posterior density over that of the draw's E and parallax given its labels


class _SoFar(NamedTuple):
    """One star between two rounds."""

    terms: LabelProposal  # all that was drawn from
    drawn: _Drawn  # all draws
    ln_density: Array  # (draw,) ln of the density of their labels under all terms


class _Room(NamedTuple):
    """Where the next round's draws and terms go, in arrays that have room for those of all rounds."""

    draws: int  # how many draws and terms there are
    terms: int
    fresh: int  # draws that are wanted; more are made, of no weight, and the next round's take their place


class _Round(NamedTuple):
    """One round of more draws."""

    number: int  # of the round
    temper: float  # power of the posterior that its mixture is fitted to
    room: _Room | None = None  # where its draws go; None if arrays grow


def importance_draws(
    model: StarModel,
    stars: Stars,
    mode: Float[Array, "star parameter"],
    runner_up: Float[Array, "star parameter"],
    competes: Bool[Array, " star"],
    seed: UInt[Array, " star"],
    *,
    n_draws: int,
    n_more: int = 0,
) -> tuple[Float[Array, "star draw parameter"], Float[Array, "star draw"]]:
    """Draw around every star's optima: theta_log, and ln of posterior / proposal density, up to a star's constant.

    The model's error is folded into the stars; there are as many as fit into memory with their draws. The runner-up is
    drawn from if it `competes`: is a distinct optimum. `n_draws` at first and `n_more` are powers of two; of these four
    times as many follow in three rounds from mixtures fitted to all draws before; 0 for none. One program after the
    other, instead of one for all: compiling them takes half the memory so.
    """
    tops = _around_optima(model, stars, mode, runner_up)
    parts = _around_components(model, stars, mode)
    so_far = _begin(model, stars, mode, tops, parts, competes, seed, n_draws=n_draws)
    rounds = [(times * n_more, temper) for times, temper in (ROUNDS if n_more else ())]
    largest = max((n_now for n_now, _ in rounds), default=0)
    if is_hasty() and rounds and not is_traced(stars):
        so_far, room = _with_room(so_far, sum(n_now for n_now, _ in rounds), len(rounds) * ROUND_TERMS)
        for number, (n_now, temper) in enumerate(rounds):
            now = _Round(number, temper, room._replace(fresh=n_now))
            so_far = _go_on(model, stars, mode, seed, so_far, now, n_now=largest)
            room = _Room(room.draws + n_now, room.terms + ROUND_TERMS, 0)
    else:
        for number, (n_now, temper) in enumerate(rounds):
            so_far = _go_on(model, stars, mode, seed, so_far, _Round(number, temper), n_now=n_now)
    return so_far.drawn.theta_log, _ln_ratio(so_far.drawn.ln_height, so_far.ln_density)


@program
def _ln_ratio(ln_height: Array, ln_density: Array) -> Array:
    ln_ratio = ln_height - ln_density
    return jnp.where(jnp.isfinite(ln_ratio), ln_ratio, -jnp.inf)


@program
def _around_optima(model: StarModel, stars: Stars, mode: Array, runner_up: Array) -> Gaussian:
    optima = jnp.stack([mode, runner_up], axis=1)
    with jax.default_matmul_precision("highest"):
        return jax.vmap(lambda star, tops: jax.vmap(partial(laplace_at, model, star))(tops))(stars, optima)


@program
def _around_components(model: StarModel, stars: Stars, mode: Array) -> Gaussian:
    with jax.default_matmul_precision("highest"):
        return jax.vmap(partial(around_components, model))(stars, mode)


@partial(program, static_argnames="n_draws")
def _begin(
    model: StarModel,
    stars: Stars,
    mode: Array,
    tops: Gaussian,
    parts: Gaussian,
    competes: Array,
    seed: Array,
    n_draws: int,
) -> _SoFar:
    """The first draws."""

    def one(star: Stars, best: Array, two: Gaussian, each: Gaussian, distinct: Array, own: Array) -> _SoFar:
        terms = _mix(two, each, distinct)
        drawn = _draw(model, star, best, terms, _rotated(jax.random.key(own), n_draws, best.size - 2))
        return _SoFar(terms, drawn, _ln_mixture(terms, drawn.theta_log[:, :-2]))

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(stars, mode, tops, parts, competes, seed)


def _with_room(so_far: _SoFar, n_draws: int, n_terms: int) -> tuple[_SoFar, _Room]:
    """Fill a batch up with copies of the first draw and the first term, of no weight; rounds then share one program."""

    def filled(leaf: Array, more: int) -> Any:
        known = np.asarray(leaf)
        return np.concatenate([known, np.repeat(known[:, :1], more, axis=1)], axis=1)

    terms = jax.tree.map(partial(filled, more=n_terms), so_far.terms)
    drawn = jax.tree.map(partial(filled, more=n_draws), so_far.drawn)
    room = _Room(so_far.ln_density.shape[1], so_far.terms.share.shape[1], 0)
    terms.share[:, room.terms :] = 0.0
    drawn.ln_height[:, room.draws :] = -np.inf
    return _SoFar(terms, drawn, filled(so_far.ln_density, n_draws)), room


@partial(program, static_argnames="n_now")
def _go_on(model: StarModel, stars: Stars, mode: Array, seed: Array, so_far: _SoFar, now: _Round, n_now: int) -> _SoFar:
    """A round of more draws, from a mixture fitted to all before it."""
    number, temper, room = now

    def joined(before: Array, after: Array, at: int | None) -> Array:
        if at is None:
            return jnp.concatenate([before, after])
        return jax.lax.dynamic_update_slice_in_dim(before, after, at, axis=0)

    def one(star: Stars, best: Array, own: Array, before: _SoFar) -> _SoFar:
        terms, drawn, ln_density = before
        center, unit = terms.mean[0], terms.factor[0]
        weight = clipped_weights(temper * drawn.ln_height - ln_density, N_CLIPPED)
        fitted = fit_mixture(whitened(drawn.theta_log[:, :-2] - center, unit), weight, ROUND_TERMS, ROUND_STEPS)
        new = _terms(center + fitted.mean @ unit.T, unit @ fitted.factor, jnp.exp(fitted.ln_share))
        points = _rotated(jax.random.fold_in(jax.random.key(own), number), n_now, best.size - 2)
        more = _draw(model, star, best, new, points)
        library: Any = np
        if room is None:
            old = len(weight) / (len(weight) + n_now)
        else:
            old, library = room.draws / (room.draws + room.fresh), jnp
            more = more._replace(ln_height=jnp.where(jnp.arange(n_now) < room.fresh, more.ln_height, -jnp.inf))
        draws, places = (None, None) if room is None else (room.draws, room.terms)
        # Every draw's density under all terms, of which those that were there before are known for the old draws.
        of_old = joined(ln_density, _ln_mixture(terms, more.theta_log[:, :-2]), draws) + library.log(old)
        drawn = jax.tree.map(lambda a, b: joined(a, b, draws), drawn, more)
        ln_density = jnp.logaddexp(of_old, _ln_mixture(new, drawn.theta_log[:, :-2]) + library.log1p(-old))
        both = (terms._replace(share=old * terms.share), new._replace(share=(1.0 - old) * new.share))
        return _SoFar(jax.tree.map(lambda a, b: joined(a, b, places), *both), drawn, ln_density)

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(stars, mode, seed, so_far)


def _rotated(key: Array, n_draws: int, n_labels: int) -> Float[Array, "draw coordinate"]:
    """Points of the unit cube: for the term, its width, the labels, E, its width and the parallax."""
    rotation = jax.random.uniform(key, (n_labels + 5,))
    return jnp.clip((jnp.asarray(_points(n_draws, n_labels + 5)) + rotation) % 1.0, 1e-6, 1.0 - 1e-6)


def _ln_mixture(terms: LabelProposal, labels: Float[Array, "draw label"]) -> Float[Array, " draw"]:
    """Ln density of a mixture."""

    def of_term(mean: Array, factor: Array, ln_norm: Array, share: Array) -> tuple[Array, Array]:
        """Ln of the wider Gaussian, and both over the wider: the narrower one is a power of it."""
        ln_wide = -0.5 * distance2((labels - mean).T, factor) / INFLATION[1] ** 2
        narrow = jnp.exp(ln_norm[0] - ln_norm[1] + (POWER - 1) * ln_wide)
        return jnp.log(jnp.maximum(share, 1e-30)) + ln_norm[1] + ln_wide, 1.0 + narrow

    ln_wide, both = jax.vmap(of_term)(*terms)
    largest = jnp.max(ln_wide, axis=0)
    return largest + jnp.log(jnp.sum(jnp.exp(ln_wide - largest) * both, axis=0))


def _above(lowest: Float[Array, " draw"], share: Float[Array, " draw"]) -> Float[Array, " draw"]:
    """Quantiles of the standard Gaussian cut off below `lowest`."""
    near = jnp.minimum(lowest, FARTHEST)
    z = -norm.ppf(norm.cdf(-near) * (1.0 - share))
    # Beyond where float32 has no numbers for the share above: by its exponential part, and a step of Newton's method.
    beyond = jnp.maximum(lowest, FARTHEST)
    far = jnp.sqrt(beyond**2 - 2.0 * jnp.log1p(-share))
    far = far + (norm.logcdf(-far) - norm.logcdf(-beyond) - jnp.log1p(-share)) / (far + 1.0 / far)
    return jnp.clip(jnp.where(lowest > FARTHEST, far, z), lowest, MAX_Z + jnp.maximum(lowest, 0.0))


def _draw_extinction(
    follow: ExtinctionGivenLabels,
    shape: Float[Array, "draw channel"],
    points: Float[Array, "draw two"],
    amount: Float[Array, " draw"] | None,
) -> tuple[Float[Array, " draw"], Float[Array, " draw"]]:
    """Draw E given the labels, whose ln f_abs is `shape`, and how much dust its unit is; E and ln of its density."""
    best = follow.extinction + (shape - follow.shape) @ follow.slope
    width = jnp.asarray(INFLATION, best.dtype) * follow.sigma
    if amount is not None:
        best, width = best / amount, width / amount[:, None]
    lowest = (TINY_EXTINCTION - best[:, None]) / width
    wide = (points[:, 1] < WIDE_SHARE_EXTINCTION).astype(int)
    own = jnp.where(wide, lowest[:, 1], lowest[:, 0])
    of_each = width[wide] if amount is None else jnp.where(wide, width[:, 1], width[:, 0])
    extinction = jnp.maximum(best + of_each * _above(own, points[:, 0]), TINY_EXTINCTION)
    z = (extinction - best)[:, None] / width
    ln_share = np.log([1.0 - WIDE_SHARE_EXTINCTION, WIDE_SHARE_EXTINCTION])
    ln_density = jnp.logaddexp(*(ln_share - jnp.log(width) - 0.5 * z**2 - norm.logcdf(-lowest)).T)
    return extinction, ln_density


def _draw(
    model: StarModel, star: Stars, mode: Array, terms: LabelProposal, points: Float[Array, "draw coordinate"]
) -> _Drawn:
    """Draw labels from a mixture, E given these, and the parallax given both."""
    n, n_labels = mode.size - 2, model.forward.n_labels
    number = jnp.minimum(jnp.searchsorted(jnp.cumsum(terms.share), points[:, 0], side="right"), terms.share.size - 1)
    width = jnp.where(points[:, 1] < WIDE_SHARE, INFLATION[1], INFLATION[0])
    z = norm.ppf(points[:, 2 : 2 + n])
    labels = terms.mean[number] + width[:, None] * jnp.einsum("dij,dj->di", terms.factor[number], z)
    shape, level = jax.vmap(partial(shape_and_level, model.forward))(labels[:, :n_labels])
    follow = given_labels(model.forward, star, mode)
    curve = jax.vmap(partial(curve_of, model.forward))(jnp.pad(labels, ((0, 0), (0, 2))))
    # What fluxes tell is E (R + xi R1) along `slope`, in which R counts as one: with another xi the same dust is another E.
    amount = None
    if model.forward.curve_variation is not None:
        by_xi = follow.slope @ model.forward.curve_variation
        amount = jnp.maximum(1.0 + by_xi * (labels[:, n_labels] - mode[n_labels]), LEAST_AMOUNT)
    extinction, ln_of_extinction = _draw_extinction(follow, shape, points[:, 2 + n : 4 + n], amount)

    # Parallax given the rest: f = a f1 with a = (parallax / that of the mode)^2, best a by linear least squares.
    ln_flux = jax.vmap(attenuate)(shape, extinction, curve)
    flux = jnp.exp(ln_flux + (level[:, None] + 2.0 * mode[-1] - star.ln_scale))
    white, observed = flux @ star.whitening.T, star.whitening @ star.flux
    power = jnp.sum(white**2, axis=1)
    amplitude = jnp.maximum(white @ observed / power, 1e-8)
    misfit = jnp.maximum(observed @ observed - amplitude**2 * power, 0.0)
    n_obs = n_observed(star.whitening)
    weight = deviance(misfit, n_obs, star.inv_dof).slope
    plx = jnp.exp(mode[-1])
    flux_precision = 4.0 * weight * amplitude**2 * power  # of ln parallax
    by_flux = 0.5 * jnp.log(amplitude)  # of ln parallax, above the mode's
    parallax_precision = (plx * star.parallax_inv_error) ** 2 * parallax_weight(star, plx * jnp.exp(by_flux))
    total = flux_precision + parallax_precision
    measured = (star.parallax - plx) / plx  # ln parallax above the mode's, as the measurement has it
    center = (flux_precision * by_flux + parallax_precision * measured + 1.0) / total
    z = norm.ppf(points[:, -1])
    above_mode = center + INFLATION[0] * z / jnp.sqrt(total)
    ln_of_parallax = 0.5 * jnp.log(total) - 0.5 * z**2

    ln_extinction = jnp.log(extinction)
    theta_log = jnp.concatenate([labels, ln_extinction[:, None], (mode[-1] + above_mode)[:, None]], axis=1)
    residual = jnp.exp(2.0 * above_mode)[:, None] * white - observed
    rho = deviance(jnp.sum(residual**2, axis=1), n_obs, star.inv_dof).value
    rest = jax.vmap(lambda u: measurement_deviance(star, u) + smooth_part(model.prior, u))(theta_log)
    # The posterior is one in (labels, E, ln parallax) here: E's Jacobian leaves again.
    ln_density = -0.5 * (rho + rest) - ln_extinction
    return _Drawn(theta_log, ln_density - ln_of_extinction - ln_of_parallax)


@program
def summarise_draws(stars: Stars, draws: Array, ln_ratio: Array) -> Summary:
    """Summaries of weighted draws; arguments as `importance_draws` has and returns them."""

    def one(star: Stars, draws: Array, ln_ratio: Array) -> Summary:
        weight, k_hat = pareto_smoothed(ln_ratio)
        linear = to_linear(draws)
        # Draws without weight may be anywhere, beyond float32 too: they must spoil neither sums nor the range of bisection.
        linear = jnp.where(weight[:, None] > NO_WEIGHT, linear, linear[jnp.argmax(weight)])
        mean = weight @ linear
        quantile = jax.vmap(weighted_quantiles, (1, None, None))(linear, weight, jnp.array([0.16, 0.5, 0.84]))
        return Summary(
            mean=mean,
            std=jnp.sqrt(weight @ (linear - mean) ** 2),
            low=quantile[:, 0],
            median=quantile[:, 1],
            high=quantile[:, 2],
            k_hat=k_hat,
            n_effective=1.0 / jnp.sum(weight**2),
            spurious=None if star.doubt is None else weight @ spurious_at(star, star.doubt, linear[:, -1]),
        )

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(stars, draws, ln_ratio)


def summarise(
    model: StarModel,
    stars: Stars,
    mode: Float[Array, "star parameter"],
    runner_up: Float[Array, "star parameter"],
    competes: Bool[Array, " star"],
    seed: UInt[Array, " star"] | NDArray[np.uint32],
    n_draws: int,
    n_more: int = 0,
) -> Summary:
    """Summarise every star's posterior, as `importance_draws` has it; rounds for stars without `enough` first draws."""
    given = (stars, mode, runner_up, competes, seed)
    return where_needed(
        partial(summarise_batch, model, n_draws), lambda summary: summary.k_hat, n_draws, n_more, *given
    )


def summarise_batch(model: StarModel, n_draws: int, n_more: int, *given: Any) -> Summary:
    """Summarise stars all of whom have the rounds, if `n_more` is not 0; `given` are the stars' of `importance_draws`."""
    return summarise_draws(given[0], *importance_draws(model, *given, n_draws=n_draws, n_more=n_more))


def where_needed(batch: Callable[..., T], k_hat: Callable[[T], Any], n_draws: int, n_more: int, *given: Any) -> T:
    """What `batch` makes of the first draws, and of more for stars where these are not `enough`; on the host.

    `batch` takes the draws of a round, 0 for none, and a batch of `given`, trees with the star as leading axis; `k_hat`
    takes what it returns. Batch by batch from Python: as a loop inside one program, XLA on the CPU now and then stood
    still for ever.
    """
    size = batch_size(n_draws, n_more)  # of both: another would be another program
    first = by_blocks(partial(batch, 0), size, *given)
    rows = np.flatnonzero(~enough(k_hat(first))) if n_more else np.arange(0)
    if not len(rows):
        return first
    return replaced(first, by_blocks(partial(batch, n_more), size, *rows_of_each(given, rows)), rows)


def enough(k_hat: Any) -> Any:
    """(star,) whether the weights of the first draws ask for no more."""
    return k_hat < ENOUGH


def batch_size(n_draws: int, n_more: int) -> int:
    """Stars whose draws are in memory together: as many as stay in a processor's cache; see `importance_draws`."""
    return int(np.clip(BATCH_DRAWS // all_draws(n_draws, n_more), 16, 64))


def all_draws(n_draws: int, n_more: int) -> int:
    """Draws of a star, those of the rounds included."""
    return n_draws + n_more * sum(times for times, _ in ROUNDS)
