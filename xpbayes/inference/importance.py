"""Unbiased summaries of one star's posterior: importance-reweighted draws around its optima (METHOD 5).

The mode in ln E sits one sigma high for a dust-free star; means and quantiles do not. Draws are cheap because the
proposal knows the posterior's shape:

- E and the labels come from the Laplace approximation in (labels, E), carried on analytically to E < 0 and cut there:
  with a flat prior in E a dust-free star's posterior is half a Gaussian, which no Gaussian in ln E resembles.
- The parallax is drawn given the rest. The flux is proportional to its square, so its best value is a linear
  least-squares amplitude; the bent valley between log g and parallax never enters.
- Where a second optimum competes, the proposal is the mixture of both.

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
from xpbayes.models.objective import curvature, measurement_residuals, smooth_part
from xpbayes.models.prior import LabelPrior
from xpbayes.stars import Stars, by_blocks

INFLATION = (1.2, 2.4)
"""The proposal is wider than the Laplace approximation by these factors: weights must not pile up in its tails."""
WIDE_SHARE = 0.25
"""This share of the draws comes from the wider: where a posterior bends, the narrow one misses its ends, and k_hat with
it."""
MIN_RUNNER_UP_SHARE = 0.2
"""A second optimum gets at least this share of the draws: its Laplace evidence may be off."""
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


class _Proposal(NamedTuple):
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


@lru_cache
def _points(n_draws: int, dimension: int) -> NDArray[np.float32]:
    from scipy.stats import qmc

    return qmc.Sobol(dimension, seed=0).random(n_draws).astype(np.float32)


def _propose(model: ForwardModel, prior: LabelPrior, star: Stars, mode: Array) -> _Proposal:
    n = model.n_labels
    at, _ = curvature(model, prior, star, mode)
    extinction = jnp.exp(mode[-2])
    # -2 ln density in (labels, E, ln parallax): without the Jacobian -2 ln E, whose slope at the mode is then 2 / E.
    unit = jnp.ones(n + 2, mode.dtype).at[-2].set(1.0 / extinction)
    exact = at.hessian.at[-2, -2].add(-2.0) * unit[:, None] * unit[None, :]
    bound = at.bound * unit[:, None] * unit[None, :]
    hessian = jnp.where(smallest_pivot(exact) > 1e-5, exact, bound)
    slope = jnp.zeros(n + 2, mode.dtype).at[-2].set(2.0 / extinction)
    center = jnp.concatenate([mode[:n], extinction[None], mode[-1:]]) - solve_positive(hessian, slope)
    covariance = 2.0 * jax.vmap(partial(solve_positive, hessian))(jnp.eye(n + 2, dtype=mode.dtype))
    pick = jnp.array([n, *range(n)])
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(covariance)[pick], 1e-30))
    correlation = covariance[pick][:, pick] / scale[:, None] / scale[None, :]
    factor = scale[:, None] * _cholesky(0.5 * (correlation + correlation.T) + 1e-6 * jnp.eye(n + 1))
    mean = center[pick]
    width = jnp.asarray(INFLATION, mode.dtype)
    lowest = (TINY_EXTINCTION - mean[0]) / (width * factor[0, 0])
    ln_det = jnp.sum(jnp.log(jnp.diagonal(factor))) + (n + 1) * jnp.log(width)
    ln_share = jnp.log(jnp.array([1.0 - WIDE_SHARE, WIDE_SHARE], mode.dtype))
    ln_norm = ln_share - ln_det - 0.5 * (n + 1) * np.log(2.0 * np.pi) - norm.logcdf(-lowest)
    return _Proposal(mean, factor, lowest, ln_norm, -0.5 * at.value + jnp.sum(jnp.log(jnp.diagonal(factor))))


def _cholesky(matrix: Array) -> Array:
    """Lower-triangular factor of one small matrix, unrolled: a library call per matrix costs more, and hung on CPUs."""
    n = matrix.shape[0]
    lower = [[jnp.zeros((), matrix.dtype)] * n for _ in range(n)]
    for i in range(n):
        for j in range(i):
            lower[i][j] = (matrix[i, j] - sum(lower[i][k] * lower[j][k] for k in range(j))) / lower[j][j]
        pivot = matrix[i, i] - sum(lower[i][k] ** 2 for k in range(i))
        lower[i][i] = jnp.sqrt(jnp.maximum(pivot, 1e-7))
    return jnp.stack([jnp.stack(row) for row in lower])


def _ln_density(proposal: _Proposal, x: Float[Array, "draw label+1"]) -> Float[Array, " draw"]:
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
    first, second = _propose(model, prior, star, mode), _propose(model, prior, star, runner_up)
    usable = competes & jnp.all(jnp.isfinite(second.ln_norm)) & jnp.all(jnp.isfinite(second.mean))
    share = jnp.where(usable, jnp.clip(jax.nn.sigmoid(second.evidence - first.evidence), MIN_RUNNER_UP_SHARE, 0.5), 0.0)
    rotation = jax.random.uniform(jax.random.key(seed), (n + 4,), dtype=mode.dtype)
    points = jnp.clip((jnp.asarray(_points(n_draws, n + 4)) + rotation) % 1.0, 1e-6, 1.0 - 1e-6)
    from_second, wide = points[:, 0] < share, points[:, -2] < WIDE_SHARE

    def given(proposal: _Proposal) -> Array:
        lowest, width = (jnp.where(wide, v[1], v[0]) for v in (proposal.lowest, jnp.asarray(INFLATION, mode.dtype)))
        above = norm.cdf(-lowest)  # survival function, accurate where E = 0 is far in the upper tail
        z_e = jnp.clip(-norm.ppf(above * (1.0 - points[:, 1])), lowest, jnp.maximum(MAX_Z, lowest))
        z = jnp.concatenate([z_e[:, None], norm.ppf(points[:, 2 : 2 + n])], axis=1)
        return proposal.mean + width[:, None] * z @ proposal.factor.T

    safe_second = jax.tree.map(lambda a, b: jnp.where(usable, a, b), second, first)
    x = jnp.where(from_second[:, None], given(safe_second), given(first))
    x = x.at[:, 0].set(jnp.maximum(x[:, 0], TINY_EXTINCTION))
    labels, ln_extinction = x[:, 1:], jnp.log(x[:, 0])
    ln_q = jnp.logaddexp(
        jnp.log1p(-share) + _ln_density(first, x),
        jnp.log(jnp.maximum(share, 1e-30)) + _ln_density(safe_second, x),
    )

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
