"""Unbiased summaries of one star's posterior: importance-reweighted draws around its optima (METHOD 5).

The mode in ln E sits one sigma high for a dust-free star; means and quantiles do not. Draws are cheap because the
proposal knows the posterior's shape:

- E and the labels come from Laplace approximations in (labels, E), carried on analytically to E < 0 and cut there:
  with a flat prior in E a dust-free star's posterior is half a Gaussian, which no Gaussian in ln E resembles.
- The parallax is drawn given the rest. The flux is proportional to its square, so its best value is a linear
  least-squares amplitude; the bent valley between log g and parallax never enters.
- The proposal is a mixture: the optimum, the second one where it competes, and the posteriors that the star would have
  under single components of the label prior. At an optimum on the narrow main sequence the whole posterior's curvature
  says nothing of the arm towards the subgiants, which is another component's.

Rounds of more draws follow, each from a mixture fitted to all draws before it, weighted by a power of the posterior
that grows from round to round: an arm that few draws met is followed to its end. Every star gets them, since the weights
of the first draws do not say which star has lost an arm. Every draw counts in the end, under the mixture of all that
were drawn from (deterministic mixture weights, as in adaptive multiple importance sampling, Cornuet et al. 2012).

Points are a randomly rotated Sobol sequence; a star's rotation depends on its own seed alone.
"""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Bool, Float, UInt
from numpy.typing import NDArray

from xpbayes.inference.fitted_mixture import cholesky, clipped_weights, distance2, fit_mixture, weighted_quantiles, whitened
from xpbayes.inference.psis import pareto_smoothed
from xpbayes.inference.solver import smallest_pivot, solve_positive
from xpbayes.models.forward import ForwardModel, predict_flux
from xpbayes.models.likelihood import deviance, n_observed
from xpbayes.models.objective import Curvature, curvature, measurement_residuals, smooth_part
from xpbayes.models.prior import LabelPrior
from xpbayes.stars import Stars, by_blocks

INFLATION = (1.2, 2.4)
"""The proposal is wider than the Laplace approximation by these factors: weights must not pile up in its tails."""
POWER = round((INFLATION[1] / INFLATION[0]) ** 2)
"""The wider Gaussian to this power is the narrower one."""
WIDE_SHARE = 0.4
"""This share of the draws comes from the wider: where a posterior bends, the narrow one misses its ends, and k_hat with
it."""
MIN_RUNNER_UP_SHARE = 0.2
"""A second optimum gets at least this share of what the first has: its Laplace evidence may be off."""
COMPONENT_STEPS = 5
"""Newton steps towards the optimum of every component of the label prior, the first from the whole posterior's."""
COMPONENTS_SHARE, MIN_COMPONENT_SHARE = 0.6, 0.06
"""Share of the draws that the components have together, and the least of each among them."""
MAX_COMPONENT_STEP = 4.0
"""A component's optimum is sought within this of the whole posterior's, in units of the training labels' spread."""
ROUNDS = ((1, 0.1), (1, 0.3), (2, 0.6))
"""Rounds: draws in units of `n_more`, and the power of the posterior that their mixture is fitted to. The first looks
for arms that the star's first draws missed, the others follow them. Two rounds of three times as many draws missed the far
arms of 69 instead of 107 of 20,000 simulated stars, for twice the time."""
ROUND_TERMS, ROUND_STEPS = 5, 3
"""Terms of a round's mixture, and steps of its fit: eight and six cost more and miss as much."""
N_CLIPPED = 16
"""So many of the largest weights are made equal for a fit."""
NO_WEIGHT = 1e-8
"""A draw of less weight is left out of sums and quantiles."""
MAX_WIDTH = 3.0
"""A term wider than this in E [mag], or three times as far from E = 0, is of no use."""
MAX_Z, FARTHEST = 6.0, 12.0
"""Draws of E reach so far above its mean or the cut, in widths; and float32 tells the share above a point up to here."""
TINY_EXTINCTION = 1e-7
BLOCK_DRAWS = 2**15
"""Draws in memory together."""


class Summary(NamedTuple):
    """Summaries per star, of (labels, E, parallax).

    Attributes:
        mean, std, median, low, high: (star, parameter); low and high are the 16 and 84 % quantiles.
        k_hat: (star,) Pareto shape of the importance weights; above 0.7 the summaries cannot be trusted.
        n_effective: (star,) effective number of draws.
    """

    mean: Float[Array, "star parameter"]
    std: Float[Array, "star parameter"]
    median: Float[Array, "star parameter"]
    low: Float[Array, "star parameter"]
    high: Float[Array, "star parameter"]
    k_hat: Float[Array, " star"]
    n_effective: Float[Array, " star"]


class Proposal(NamedTuple):
    """A Gaussian in (E, labels), E first, cut at E = 0.

    Attributes:
        mean: (label + 1,).
        factor: (label + 1, label + 1) lower-triangular; its first row belongs to E.
        lowest: (width,) E = 0 in units of the first factor, for every width.
        ln_norm: (width,) ln of the density's constant, its share of the draws included.
        evidence: () ln of the Laplace approximation's integral.
    """

    mean: Array
    factor: Array
    lowest: Array
    ln_norm: Array
    evidence: Array


class _Component(NamedTuple):
    """One Gaussian of the label prior: precision and mean in label space, ln of its weight and normalisation."""

    precision: Array
    mean: Array
    ln_weight: Array


@lru_cache
def _points(n_draws: int, dimension: int) -> NDArray[np.float32]:
    from scipy.stats import qmc

    return qmc.Sobol(dimension, seed=0).random(n_draws).astype(np.float32)


def propose(model: ForwardModel, prior: LabelPrior, star: Stars, mode: Float[Array, " parameter"]) -> Proposal:
    """Laplace approximation in (E, labels) around one optimum, the parallax integrated out.

    Args:
        model: the trained forward model.
        prior: the label mixture.
        star: one star, model error folded in.
        mode: (label + 2,) labels, ln E, ln parallax.
    """
    return at_optimum(curvature(model, prior, star, mode)[0], mode)


def at_optimum(at: Curvature, mode: Float[Array, " parameter"]) -> Proposal:
    """The same from the derivatives of L at the optimum."""
    # In ln E the slope of L is nought there, so that of the density in E, without its Jacobian, is 2.
    flat = at._replace(gradient=jnp.zeros_like(mode))
    _, gaussian = _gaussian(flat, mode, None)
    return gaussian


def _gaussian(at: Curvature, point: Array, component: _Component | None) -> tuple[Array, Proposal]:
    """Optimum (labels, E, ln parallax) and Gaussian of the quadratic that L is around a point.

    Args:
        at: L there with its derivatives in (labels, ln E, ln parallax); without a label prior where a component is given.
        point: (label + 2,).
        component: takes the label prior's place, or None.
    """
    n = point.size - 2
    # -2 ln density in (labels, E, ln parallax): L without the Jacobian -2 ln E.
    extinction = jnp.exp(point[-2])
    unit = jnp.ones_like(point).at[-2].set(1.0 / extinction)
    slope = at.gradient.at[-2].add(2.0)
    exact = at.hessian.at[-2, -2].add(-slope[-2]) * unit[:, None] * unit[None, :]
    bound = at.bound * unit[:, None] * unit[None, :]
    gradient, value = slope * unit, at.value + 2.0 * point[-2]
    if component is not None:
        pull = component.precision @ (point[:n] - component.mean)
        exact, bound = (h.at[:n, :n].add(2.0 * component.precision) for h in (exact, bound))
        gradient = gradient.at[:n].add(2.0 * pull)
        value = value + (point[:n] - component.mean) @ pull - 2.0 * component.ln_weight
    hessian = jnp.where(smallest_pivot(exact) > 1e-5, exact, bound)
    step = -solve_positive(hessian, gradient)
    center = jnp.concatenate([point[:n], extinction[None], point[-1:]]) + step
    covariance = 2.0 * jax.vmap(partial(solve_positive, hessian))(jnp.eye(n + 2, dtype=point.dtype))
    pick = jnp.array([n, *range(n)])
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(covariance)[pick], 1e-30))
    correlation = covariance[pick][:, pick] / scale[:, None] / scale[None, :]
    factor = scale[:, None] * cholesky(0.5 * (correlation + correlation.T) + 1e-6 * jnp.eye(n + 1))
    ln_det = jnp.sum(jnp.log(jnp.diagonal(factor)))
    return center, _cut(center[pick], factor, ln_det - 0.5 * (value + 0.5 * gradient @ step))


def _cut(mean: Array, factor: Array, evidence: Array) -> Proposal:
    """A Gaussian in (E, labels) with its constants, cut at E = 0."""
    n = mean.size
    width = jnp.asarray(INFLATION, mean.dtype)
    lowest = (TINY_EXTINCTION - mean[0]) / (width * factor[0, 0])
    ln_share = jnp.log(jnp.array([1.0 - WIDE_SHARE, WIDE_SHARE], mean.dtype))
    ln_size = jnp.sum(jnp.log(jnp.diagonal(factor))) + n * jnp.log(width) + 0.5 * n * np.log(2.0 * np.pi)
    return Proposal(mean, factor, lowest, ln_share - ln_size - norm.logcdf(-lowest), evidence)


def _of_components(model: ForwardModel, prior: LabelPrior, star: Stars, mode: Array) -> Proposal:
    """Every component of the label prior times the likelihood, each as a Gaussian around its own optimum."""
    n = model.n_labels
    components = _Component(
        jnp.einsum("kde,kfe->kdf", prior.whitening, prior.whitening),
        prior.mean,
        prior.ln_weight + jnp.sum(jnp.log(jnp.diagonal(prior.whitening, axis1=1, axis2=2)), axis=1),
    )
    reach = jnp.append(MAX_COMPONENT_STEP * model.label_scale, jnp.ones(1, mode.dtype))  # labels, ln parallax

    def improve(center: Array, component: _Component) -> tuple[Array, Proposal]:
        moved = jnp.clip(jnp.append(center[:n], center[-1]) - jnp.append(mode[:n], mode[-1]), -reach, reach)
        ln_extinction = jnp.log(jnp.maximum(center[n], 0.3 * jnp.exp(mode[-2])))
        point = jnp.concatenate([mode[:n] + moved[:n], ln_extinction[None], mode[-1:] + moved[n:]])
        return _gaussian(curvature(model, None, star, point)[0], point, component)

    def step(center: Array, _: None) -> tuple[Array, Proposal]:
        return jax.vmap(improve)(center, components)

    # One step in the program, whatever their number: each would take seconds to compile.
    n_components = len(prior.ln_weight)
    begin = jnp.tile(mode.at[n].set(jnp.exp(mode[n])), (n_components, 1))
    _, gaussians = jax.lax.scan(step, begin, None, length=COMPONENT_STEPS)
    return jax.tree.map(lambda leaf: leaf[-1], gaussians)


def proposal_mixture(
    model: ForwardModel, prior: LabelPrior, star: Stars, mode: Array, runner_up: Array, competes: Array
) -> tuple[Proposal, Float[Array, " term"]]:
    """Find all terms of the proposal in (E, labels); see `importance_draws` for the arguments.

    Returns:
        the terms along a leading axis, and their shares of the draws.
    """
    tops = jax.vmap(partial(propose, model, prior, star))(jnp.stack([mode, runner_up]))
    parts = _of_components(model, prior, star, mode)
    terms = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), tops, parts)
    usable = jax.vmap(lambda term: jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in term])))(terms)
    usable = usable & (terms.factor[:, 0, 0] < MAX_WIDTH) & (jnp.abs(terms.mean[:, 0]) < 3.0 * MAX_WIDTH)
    usable = usable.at[0].set(True).at[1].set(usable[1] & competes)
    odds = jnp.clip(jax.nn.sigmoid(tops.evidence[1] - tops.evidence[0]), MIN_RUNNER_UP_SHARE, 0.5)
    of_second = jnp.where(usable[1], odds, 0.0)
    any_part = jnp.any(usable[2:])
    likely = jax.nn.softmax(jnp.where(usable[2:], parts.evidence, jnp.where(any_part, -jnp.inf, 0.0)))
    likely = jnp.where(usable[2:], jnp.maximum(likely, MIN_COMPONENT_SHARE), 0.0)
    of_parts = COMPONENTS_SHARE * likely / jnp.maximum(jnp.sum(likely), 1e-9)
    rest = 1.0 - jnp.sum(of_parts)
    share = jnp.concatenate([jnp.stack([rest * (1.0 - of_second), rest * of_second]), of_parts])
    # A term that cannot be used must not spoil sums with NaN: it borrows the first one's shape, and no draw.
    terms = jax.tree.map(lambda leaf: jnp.where(usable.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, leaf[0]), terms)
    return terms, share


class _Drawn(NamedTuple):
    """Draws of one star.

    Attributes:
        x: (draw, label + 1) E and labels.
        parameters: (draw, label + 2) labels, ln E, ln parallax.
        ln_height: (draw,) ln of the posterior density over that of the draw's parallax given the rest.
    """

    x: Array
    parameters: Array
    ln_height: Array


def importance_draws(
    model: ForwardModel,
    prior: LabelPrior,
    star: Stars,
    mode: Float[Array, " parameter"],
    runner_up: Float[Array, " parameter"],
    competes: Bool[Array, ""],
    seed: UInt[Array, ""],
    n_draws: int,
    n_more: int = 0,
) -> tuple[Float[Array, "draw parameter"], Float[Array, " draw"]]:
    """Draw around one star's optima.

    Args:
        model: the trained forward model.
        prior: the label mixture.
        star: one star, model error folded in.
        mode, runner_up: (label + 2,) best and second optimum: labels, ln E, ln parallax.
        competes: the runner-up is a distinct optimum worth drawing from.
        seed: the star's own.
        n_draws: number of draws at first, a power of two.
        n_more: a power of two; four times as many more in three rounds from mixtures fitted to all draws before; 0
            for none.

    Returns:
        (draw, label + 2) labels, ln E, ln parallax; (draw,) ln of posterior / proposal density, up to a constant.
    """
    terms, share = proposal_mixture(model, prior, star, mode, runner_up, competes)
    key = jax.random.key(seed)
    center, unit = terms.mean[0], terms.factor[0]
    drawn = _draw(model, prior, star, mode, terms, share, _rotated(key, n_draws, model.n_labels, mode.dtype))
    ln_density = _ln_mixture(terms, share, drawn.x)
    for number, (times, temper) in enumerate(ROUNDS if n_more else ()):
        weight = clipped_weights(temper * drawn.ln_height - ln_density, N_CLIPPED)
        fitted = fit_mixture(whitened(drawn.x - center, unit), weight, ROUND_TERMS, ROUND_STEPS)
        of_new, no_evidence = jnp.exp(fitted.ln_share), jnp.zeros(len(fitted.mean), mode.dtype)
        new = jax.vmap(_cut)(center + fitted.mean @ unit.T, unit @ fitted.factor, no_evidence)
        n_now = times * n_more
        points = _rotated(jax.random.fold_in(key, number), n_now, model.n_labels, mode.dtype)
        more = _draw(model, prior, star, mode, new, of_new, points)
        old = len(weight) / (len(weight) + n_now)
        # Every draw's density under all terms, of which those that were there before are known for the old draws.
        of_old = jnp.concatenate([ln_density, _ln_mixture(terms, share, more.x)]) + np.log(old)
        drawn = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), drawn, more)
        ln_density = jnp.logaddexp(of_old, _ln_mixture(new, of_new, drawn.x) + np.log1p(-old))
        terms = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), terms, new)
        share = jnp.concatenate([old * share, (1.0 - old) * of_new])
    # The density is one in (labels, E, ln parallax) here: E's Jacobian leaves again.
    ln_ratio = drawn.ln_height - ln_density
    return drawn.parameters, jnp.where(jnp.isfinite(ln_ratio), ln_ratio, -jnp.inf)


def _rotated(key: Array, n_draws: int, n_labels: int, dtype: Any) -> Float[Array, "draw coordinate"]:
    """Points of the unit cube: for the term, E, labels, the width and the parallax."""
    rotation = jax.random.uniform(key, (n_labels + 4,), dtype=dtype)
    return jnp.clip((jnp.asarray(_points(n_draws, n_labels + 4)) + rotation) % 1.0, 1e-6, 1.0 - 1e-6)


def _ln_mixture(terms: Proposal, share: Array, x: Float[Array, "draw label+1"]) -> Float[Array, " draw"]:
    """Ln density of a mixture."""

    def of_term(term: Proposal, share: Array) -> tuple[Array, Array]:
        """Ln of the wider Gaussian, and both over the wider: the narrower one is a power of it."""
        ln_wide = -0.5 * distance2((x - term.mean).T, term.factor) / INFLATION[1] ** 2
        narrow = jnp.exp(term.ln_norm[0] - term.ln_norm[1] + (POWER - 1) * ln_wide)
        return jnp.log(jnp.maximum(share, 1e-30)) + term.ln_norm[1] + ln_wide, 1.0 + narrow

    ln_wide, both = jax.vmap(of_term)(terms, share)
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


def _draw(
    model: ForwardModel,
    prior: LabelPrior,
    star: Stars,
    mode: Array,
    terms: Proposal,
    share: Array,
    points: Float[Array, "draw coordinate"],
) -> _Drawn:
    """Draw E and labels from a mixture, and the parallax given these."""
    n = model.n_labels
    number = jnp.minimum(jnp.searchsorted(jnp.cumsum(share), points[:, 0], side="right"), share.size - 1)
    own, wide = jax.tree.map(lambda leaf: leaf[number], terms), points[:, -2] < WIDE_SHARE
    lowest = jnp.where(wide, own.lowest[:, 1], own.lowest[:, 0])
    width = jnp.where(wide, INFLATION[1], INFLATION[0])
    z_e = _above(lowest, points[:, 1])
    z = jnp.concatenate([z_e[:, None], norm.ppf(points[:, 2 : 2 + n])], axis=1)
    x = own.mean + width[:, None] * jnp.einsum("dij,dj->di", own.factor, z)
    x = x.at[:, 0].set(jnp.maximum(x[:, 0], TINY_EXTINCTION))
    labels, ln_extinction = x[:, 1:], jnp.log(x[:, 0])

    # Parallax given the rest: f = a f1 with a = (parallax / that of the mode)^2, best a by linear least squares.
    same_parallax = jnp.full((len(points), 1), mode[-1])
    reference = jnp.concatenate([labels, ln_extinction[:, None], same_parallax], axis=1)
    flux = jax.vmap(lambda u: predict_flux(model, u, star.ln_scale))(reference)
    white, observed = flux @ star.whitening.T, star.whitening @ star.flux
    power = jnp.sum(white**2, axis=1)
    amplitude = jnp.maximum(white @ observed / power, 1e-8)
    misfit = jnp.maximum(observed @ observed - amplitude**2 * power, 0.0)
    n_obs = n_observed(star.whitening)
    weight = deviance(misfit, n_obs, star.tail).slope
    plx = jnp.exp(mode[-1])
    flux_precision = 4.0 * weight * amplitude**2 * power  # of ln parallax
    parallax_precision = (plx * star.parallax_inv_error) ** 2
    total = flux_precision + parallax_precision
    measured = (star.parallax - plx) / plx  # ln parallax above the mode's, as the measurement has it
    center = (flux_precision * 0.5 * jnp.log(amplitude) + parallax_precision * measured + 1.0) / total
    z = norm.ppf(points[:, -1])
    above_mode = center + INFLATION[0] * z / jnp.sqrt(total)
    ln_of_parallax = 0.5 * jnp.log(total) - 0.5 * z**2

    parameters = reference.at[:, -1].add(above_mode)
    residual = jnp.exp(2.0 * above_mode)[:, None] * white - observed
    rho = deviance(jnp.sum(residual**2, axis=1), n_obs, star.tail).value
    rest = jax.vmap(lambda u: jnp.sum(measurement_residuals(star, u) ** 2) + smooth_part(prior, u))(parameters)
    return _Drawn(x, parameters, -0.5 * (rho + rest) - ln_extinction - ln_of_parallax)


@partial(jax.jit, static_argnames=("n_draws", "n_more"))
def _summarise_block(
    model: ForwardModel,
    prior: LabelPrior,
    stars: Stars,
    mode: Array,
    runner_up: Array,
    competes: Array,
    seed: Array,
    n_draws: int,
    n_more: int,
) -> Summary:
    def one(star: Stars, best: Array, second: Array, two: Array, own: Array) -> Summary:
        draws, ln_ratio = importance_draws(model, prior, star, best, second, two, own, n_draws, n_more)
        weight, k_hat = pareto_smoothed(ln_ratio)
        linear = jnp.concatenate([draws[:, :-2], jnp.exp(draws[:, -2:])], axis=1)
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
        )

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(stars, mode, runner_up, competes, seed)


def summarise(
    model: ForwardModel,
    prior: LabelPrior,
    stars: Stars,
    mode: Float[Array, "star parameter"],
    runner_up: Float[Array, "star parameter"],
    competes: Bool[Array, " star"],
    seed: UInt[Array, " star"],
    n_draws: int,
    n_more: int = 0,
) -> Summary:
    """Summarise every star's posterior; see `importance_draws` for the arguments.

    Args:
        n_more: of the rounds; 0 for none.
    """
    # Block by block from Python: as a loop inside one program, XLA on the CPU now and then stood still for ever.
    call = partial(_summarise_block, model, prior, n_draws=n_draws, n_more=n_more)
    return by_blocks(call, block_size(n_draws, n_more), stars, mode, runner_up, competes, seed)


def block_size(n_draws: int, n_more: int) -> int:
    """Stars whose draws are in memory together: as many as stay in a processor's cache; see `importance_draws`."""
    n_all = n_draws + n_more * sum(times for times, _ in ROUNDS)
    return int(np.clip(BLOCK_DRAWS // n_all, 16, 64))
