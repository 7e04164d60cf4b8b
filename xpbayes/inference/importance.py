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

Points are a randomly rotated Sobol sequence; a star's rotation depends on its own seed alone.
"""

from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Bool, Float, UInt
from numpy.typing import NDArray

from xpbayes.inference.psis import pareto_smoothed
from xpbayes.inference.solver import smallest_pivot, solve_positive
from xpbayes.models.forward import ForwardModel, predict_flux
from xpbayes.models.likelihood import deviance, n_observed
from xpbayes.models.objective import Curvature, curvature, measurement_residuals, smooth_part
from xpbayes.models.prior import LabelPrior
from xpbayes.stars import Stars, by_blocks

INFLATION = (1.2, 2.4)
"""The proposal is wider than the Laplace approximation by these factors: weights must not pile up in its tails."""
WIDE_SHARE = 0.25
"""This share of the draws comes from the wider: where a posterior bends, the narrow one misses its ends, and k_hat with
it."""
MIN_RUNNER_UP_SHARE = 0.2
"""A second optimum gets at least this share of what the first has: its Laplace evidence may be off."""
N_COMPONENTS, COMPONENT_STEPS = 6, 2
"""Components of the label prior with a term of their own, and Newton steps towards each one's optimum."""
COMPONENTS_SHARE, MIN_COMPONENT_SHARE = 0.6, 0.03
"""Share of the draws that the components have together, and the least of each among them."""
MAX_COMPONENT_STEP = 2.0
"""A component's optimum is sought within this of the whole posterior's, in units of the training labels' spread."""
MAX_Z = 6.0
TINY_EXTINCTION = 1e-7
BLOCK = 64
"""Stars whose draws are in memory together."""


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
    mean = center[pick]
    width = jnp.asarray(INFLATION, point.dtype)
    lowest = (TINY_EXTINCTION - mean[0]) / (width * factor[0, 0])
    ln_det = jnp.sum(jnp.log(jnp.diagonal(factor)))
    ln_share = jnp.log(jnp.array([1.0 - WIDE_SHARE, WIDE_SHARE], point.dtype))
    ln_size = ln_det + (n + 1) * jnp.log(width) + 0.5 * (n + 1) * np.log(2.0 * np.pi)
    ln_norm = ln_share - ln_size - norm.logcdf(-lowest)
    return center, Proposal(mean, factor, lowest, ln_norm, ln_det - 0.5 * (value + 0.5 * gradient @ step))


def _of_components(model: ForwardModel, prior: LabelPrior, star: Stars, mode: Array) -> Proposal:
    """The likeliest components of the label prior times the likelihood, each as a Gaussian around its own optimum."""
    n = model.n_labels
    every = _Component(
        jnp.einsum("kde,kfe->kdf", prior.whitening, prior.whitening),
        prior.mean,
        prior.ln_weight + jnp.sum(jnp.log(jnp.diagonal(prior.whitening, axis1=1, axis2=2)), axis=1),
    )
    at, _ = curvature(model, None, star, mode)
    center, gaussian = jax.vmap(partial(_gaussian, at, mode))(every)
    evidence = jnp.where(jnp.isfinite(gaussian.evidence), gaussian.evidence, -jnp.inf)
    _, best = jax.lax.top_k(evidence, min(N_COMPONENTS, evidence.size))
    chosen = jax.tree.map(lambda leaf: leaf[best], every)
    reach = jnp.append(MAX_COMPONENT_STEP * model.label_scale, jnp.ones(1, mode.dtype))  # labels, ln parallax

    def improve(center: Array, component: _Component) -> tuple[Array, Proposal]:
        moved = jnp.clip(jnp.append(center[:n], center[-1]) - jnp.append(mode[:n], mode[-1]), -reach, reach)
        ln_extinction = jnp.log(jnp.maximum(center[n], 0.3 * jnp.exp(mode[-2])))
        point = jnp.concatenate([mode[:n] + moved[:n], ln_extinction[None], mode[-1:] + moved[n:]])
        return _gaussian(curvature(model, None, star, point)[0], point, component)

    center = center[best]
    for _ in range(COMPONENT_STEPS):
        center, gaussian = jax.vmap(improve)(center, chosen)
    return gaussian


def proposal_mixture(
    model: ForwardModel, prior: LabelPrior, star: Stars, mode: Array, runner_up: Array, competes: Array
) -> tuple[Proposal, Float[Array, " term"]]:
    """Find all terms of the proposal in (E, labels); see `importance_draws` for the arguments.

    Returns:
        the terms along a leading axis, and their shares of the draws.
    """
    first, second = propose(model, prior, star, mode), propose(model, prior, star, runner_up)
    parts = _of_components(model, prior, star, mode)
    terms = jax.tree.map(lambda a, b, c: jnp.concatenate([a[None], b[None], c]), first, second, parts)
    usable = jax.vmap(lambda term: jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in term])))(terms)
    usable = usable.at[0].set(True).at[1].set(usable[1] & competes)
    odds = jnp.clip(jax.nn.sigmoid(second.evidence - first.evidence), MIN_RUNNER_UP_SHARE, 0.5)
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


def cholesky(matrix: Array) -> Array:
    """Lower-triangular factor of one small matrix, unrolled: a library call per matrix costs more, and hung on CPUs."""
    n = matrix.shape[0]
    lower = [[jnp.zeros((), matrix.dtype)] * n for _ in range(n)]
    for i in range(n):
        for j in range(i):
            lower[i][j] = (matrix[i, j] - sum(lower[i][k] * lower[j][k] for k in range(j))) / lower[j][j]
        pivot = matrix[i, i] - sum(lower[i][k] ** 2 for k in range(i))
        lower[i][i] = jnp.sqrt(jnp.maximum(pivot, 1e-7))
    return jnp.stack([jnp.stack(row) for row in lower])


def _ln_density(proposal: Proposal, x: Float[Array, "draw label+1"]) -> Float[Array, " draw"]:
    white: list[Array] = []
    for i in range(x.shape[1]):
        rest = x[:, i] - proposal.mean[i] - sum(proposal.factor[i, k] * white[k] for k in range(i))
        white.append(rest / proposal.factor[i, i])
    distance2 = sum(z * z for z in white)
    each = [proposal.ln_norm[k] - 0.5 * distance2 / width**2 for k, width in enumerate(INFLATION)]
    return jnp.logaddexp(*each)


def importance_draws(
    model: ForwardModel,
    prior: LabelPrior,
    star: Stars,
    mode: Float[Array, " parameter"],
    runner_up: Float[Array, " parameter"],
    competes: Bool[Array, ""],
    seed: UInt[Array, ""],
    n_draws: int,
) -> tuple[Float[Array, "draw parameter"], Float[Array, " draw"]]:
    """Draw around one star's optima.

    Args:
        model: the trained forward model.
        prior: the label mixture.
        star: one star, model error folded in.
        mode, runner_up: (label + 2,) best and second optimum: labels, ln E, ln parallax.
        competes: the runner-up is a distinct optimum worth drawing from.
        seed: the star's own.
        n_draws: number of draws, a power of two.

    Returns:
        (draw, label + 2) labels, ln E, ln parallax; (draw,) ln of posterior / proposal density, up to a constant.
    """
    n = model.n_labels
    terms, share = proposal_mixture(model, prior, star, mode, runner_up, competes)
    rotation = jax.random.uniform(jax.random.key(seed), (n + 4,), dtype=mode.dtype)
    points = jnp.clip((jnp.asarray(_points(n_draws, n + 4)) + rotation) % 1.0, 1e-6, 1.0 - 1e-6)
    number = jnp.minimum(jnp.searchsorted(jnp.cumsum(share), points[:, 0], side="right"), share.size - 1)
    own, wide = jax.tree.map(lambda leaf: leaf[number], terms), points[:, -2] < WIDE_SHARE
    lowest = jnp.where(wide, own.lowest[:, 1], own.lowest[:, 0])
    width = jnp.where(wide, INFLATION[1], INFLATION[0])
    above = norm.cdf(-lowest)  # survival function, accurate where E = 0 is far in the upper tail
    z_e = jnp.clip(-norm.ppf(above * (1.0 - points[:, 1])), lowest, jnp.maximum(MAX_Z, lowest))
    z = jnp.concatenate([z_e[:, None], norm.ppf(points[:, 2 : 2 + n])], axis=1)
    x = own.mean + width[:, None] * jnp.einsum("dij,dj->di", own.factor, z)
    x = x.at[:, 0].set(jnp.maximum(x[:, 0], TINY_EXTINCTION))
    labels, ln_extinction = x[:, 1:], jnp.log(x[:, 0])
    ln_share = jnp.log(jnp.maximum(share, 1e-30))
    ln_q = jax.nn.logsumexp(ln_share[:, None] + jax.vmap(_ln_density, (0, None))(terms, x), axis=0)

    # Parallax given the rest: f = a f1 with a = (parallax / that of the mode)^2, best a by linear least squares.
    reference = jnp.concatenate([labels, ln_extinction[:, None], jnp.full((n_draws, 1), mode[-1])], axis=1)
    flux = jax.vmap(lambda u: predict_flux(model, u, star.ln_scale))(reference)
    white, observed = flux @ star.whitening.T, star.whitening @ star.flux
    power = jnp.sum(white**2, axis=1)
    amplitude = jnp.maximum(white @ observed / power, 1e-3)
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
    ln_q = ln_q - 0.5 * z**2 + 0.5 * jnp.log(total)

    parameters = reference.at[:, -1].add(above_mode)
    residual = jnp.exp(2.0 * above_mode)[:, None] * white - observed
    rho = deviance(jnp.sum(residual**2, axis=1), n_obs, star.tail).value
    rest = jax.vmap(lambda u: jnp.sum(measurement_residuals(star, u) ** 2) + smooth_part(prior, u))(parameters)
    # The density is one in (labels, E, ln parallax) here: E's Jacobian leaves again.
    ln_ratio = -0.5 * (rho + rest) - ln_extinction - ln_q
    return parameters, jnp.where(jnp.isfinite(ln_ratio), ln_ratio, -jnp.inf)


def _weighted_quantiles(values: Array, weight: Array, at: Array) -> Array:
    """Quantiles of weighted draws, interpolated between their mid-ranks."""
    order = jnp.argsort(values)
    cumulative = jnp.cumsum(weight[order])
    return jnp.interp(at, cumulative - 0.5 * weight[order], values[order])


@partial(jax.jit, static_argnames="n_draws")
def _summarise_block(
    model: ForwardModel,
    prior: LabelPrior,
    stars: Stars,
    mode: Array,
    runner_up: Array,
    competes: Array,
    seed: Array,
    n_draws: int,
) -> Summary:
    def one(star: Stars, best: Array, second: Array, two: Array, own: Array) -> Summary:
        draws, ln_ratio = importance_draws(model, prior, star, best, second, two, own, n_draws)
        weight, k_hat = pareto_smoothed(ln_ratio)
        linear = jnp.concatenate([draws[:, :-2], jnp.exp(draws[:, -2:])], axis=1)
        mean = weight @ linear
        quantile = jax.vmap(_weighted_quantiles, (1, None, None))(linear, weight, jnp.array([0.16, 0.5, 0.84]))
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
) -> Summary:
    """Summarise every star's posterior; see `importance_draws` for the arguments.

    Block by block from Python: as a loop inside one program, XLA on the CPU now and then stood still for ever.
    """
    summaries = partial(_summarise_block, model, prior, n_draws=n_draws)
    return by_blocks(summaries, BLOCK, stars, mode, runner_up, competes, seed)
