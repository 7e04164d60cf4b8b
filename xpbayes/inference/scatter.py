"""Stars of the same labels differ: in luminosity, as their masses do, and a little in colour.

A forward model has one flux for one set of labels, so a measured parallax would settle log g more sharply than it can: for
giants by far. The model's own error cannot say so, because a covariance of the fluxes that has grey in it would let faint
spectra of any shape pass, and one that has R in it is nothing but an uncertain E. So both are scatters of E and of ln
parallax about what the fluxes say, by kind of star as the model's error tells kinds apart, found on stars kept aside.

While a star is solved, the measured parallax has the scatter in its error (`loosened`); what comes out is the parallax that
the fluxes have. The star's own parallax is that one within the scatter, and the measured one within its error (`settled`):

    parallax = c * (parallax of the fluxes) + (1 - c) * measured,   c = s_g^2 / (s_g^2 + s^2),

and its variance is c^2 times what came out, plus c s^2. E keeps its value and gains the scatter in its width.
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks
from xpbayes.inference.linear_algebra import invert_positive
from xpbayes.inference.references import WITHIN_ONE_SIGMA, implied_by_labels, measured, weighted_quantiles
from xpbayes.models.model_error import ModelError, kind_weights_of

if TYPE_CHECKING:
    from xpbayes.inference.fit import Posteriors

PRIOR_STARS = 30.0
"""A kind's scatter is drawn towards that of all stars with the weight of so many."""
N_ROUNDS, DAMPING = 30, 0.5
FIRST, LEAST = (0.02, 0.05), (1e-3, 2e-3)
"""Scatters of E [mag] and ln parallax to begin with, and what counts as none."""
VARIANCE_ERROR = 1.92
"""The relative error of a variance read off the 68 % quantile of n stars, times the square root of n."""
MIN_STARS = 100


def _kind_weights(error: ModelError, stars: Stars) -> NDArray[np.float64]:
    return np.asarray(by_blocks(partial(kind_weights_of, error), STAR_BLOCK, stars), np.float64)


def scatter_of(scatter: Float[NDArray, "kind two"], error: ModelError, stars: Stars) -> NDArray[np.float64]:
    """(star, 2) scatter of E [mag] and ln parallax."""
    if not len(stars):
        return np.zeros((0, 2))
    weight = _kind_weights(error, stars)
    return np.sqrt(weight @ np.asarray(scatter, np.float64) ** 2)


def fit_scatter(found: "Posteriors", stars: Stars, error: ModelError) -> NDArray[np.float32]:
    """(kind, 2) scatter of E [mag] and ln parallax at known labels; 0 where too little was measured.

    It is what measured reddenings and parallaxes differ by from those that labels imply, beyond all errors: of its square
    the error is taken off, so that poor measurements do not invent any.

    Args:
        found: results of inference, without parallaxes.
        stars: the same stars, with labels and what else was measured.
        error: of the model; says what kinds there are.
    """
    implied = implied_by_labels(found, stars)
    value, sigma = measured(stars)
    weight = _kind_weights(error, stars)
    out = np.zeros((weight.shape[1], 2), np.float32)
    for i in range(2):
        use = implied.known & np.isfinite(sigma[:, i])
        if use.sum() < MIN_STARS:
            continue
        residual = (value - implied.value)[use, i]
        variance = (sigma**2 + implied.variance + implied.left)[use, i]
        pooled = weight[use] + PRIOR_STARS / use.sum()
        out[:, i] = [_one(residual, variance, w, FIRST[i], LEAST[i]) for w in pooled.T]
    return out


def _one(
    residual: NDArray[np.float64],
    variance: NDArray[np.float64],
    weight: NDArray[np.float64],
    first: float,
    least: float,
) -> float:
    """Scatter of residuals beyond their variances, their median apart, from the stars that tell most of it."""
    square = first**2
    for _ in range(N_ROUNDS):
        middle = weighted_quantiles(residual, (weight / (variance + square))[:, None], 0.5)
        told = weight * square / (variance + square)
        beyond = (residual - middle) ** 2 - variance
        square += DAMPING * (max(weighted_quantiles(beyond, told[:, None], WITHIN_ONE_SIGMA)[0], least**2) - square)
    typical, n = np.sum(told * (variance + square)) / told.sum(), told.sum() ** 2 / np.sum(told**2)
    return float(np.sqrt(max(square - VARIANCE_ERROR * typical / np.sqrt(n), 0.0)))


def loosened(stars: Stars, scatter: Float[NDArray, "star two"]) -> Stars:
    """Stars whose measured parallaxes have the scatter in their errors."""
    inverse = np.asarray(stars.parallax_inv_error, np.float64)
    spread = scatter[:, 1] * np.maximum(np.asarray(stars.parallax, np.float64), 0.0)
    return replace(stars, parallax_inv_error=jnp.asarray(inverse / np.hypot(1.0, inverse * spread), jnp.float32))


class Settling(NamedTuple):
    """From parameters of `loosened` stars to the stars' own, (star, parameter) each: factor * value + shift.

    Attributes:
        factor, shift: of values.
        added: to their variances, once these are multiplied by the square of the factor.
    """

    factor: NDArray[np.float64]
    added: NDArray[np.float64]
    shift: NDArray[np.float64]


def settling(
    estimate: Float[NDArray, "star parameter"],
    stars: Stars,
    scatter: Float[NDArray, "star two"],
    *,
    use_parallax: bool,
) -> Settling:
    """What `settled` does to single numbers; arguments as there, `estimate` the optima."""
    inverse = np.asarray(stars.parallax_inv_error, np.float64) * use_parallax
    estimate = np.where(np.isfinite(estimate), estimate, np.nan)  # where there is no solution
    spread = scatter[:, 1] * np.asarray(estimate[:, -1], np.float64)
    kept = 1.0 / (1.0 + (inverse * spread) ** 2)
    factor, added, shift = np.ones(estimate.shape), np.zeros(estimate.shape), np.zeros(estimate.shape)
    factor[:, -1], shift[:, -1] = kept, (1.0 - kept) * np.asarray(stars.parallax, np.float64)
    added[:, -2], added[:, -1] = scatter[:, 0] ** 2, kept * spread**2
    return Settling(factor, added, shift)


def settled(
    found: "Posteriors", stars: Stars, scatter: Float[NDArray, "star two"], *, use_parallax: bool
) -> "Posteriors":
    """Results for the stars' own E and parallax, from those of `loosened` stars.

    Args:
        found: results of inference.
        stars: as measured.
        scatter: (star, 2) of E [mag] and ln parallax.
        use_parallax: whether measured parallaxes were used.
    """
    factor, added, shift = settling(found.estimate, stars, scatter, use_parallax=use_parallax)

    def single(values: NDArray[np.floating]) -> NDArray[np.float32]:
        return values.astype(np.float32)

    def wider(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
        return covariance * factor[:, :, None] * factor[:, None, :] + added[:, :, None] * np.eye(added.shape[1])

    median = factor * np.where(np.isfinite(found.median), found.median, np.nan)
    low, high = (np.sqrt((median - factor * end) ** 2 + added) for end in (found.low, found.high))
    covariance = wider(found.covariance)
    return replace(
        found,
        estimate=single(factor * found.estimate + shift),
        runner_up=single(factor * found.runner_up + shift),
        fisher=single(invert_positive(covariance)),
        covariance=covariance,
        laplace=wider(found.laplace),
        unbounded=single(np.column_stack([found.unbounded[:, 0], np.hypot(found.unbounded[:, 1], scatter[:, 0])])),
        mean=single(factor * found.mean + shift),
        std=single(np.sqrt((factor * found.std) ** 2 + added)),
        median=single(median + shift),
        low=single(_above_zero(median + shift - low)),
        high=single(median + shift + high),
    )


def _above_zero(low: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantiles, those of E and parallax not negative."""
    low[:, -2:] = np.maximum(low[:, -2:], 0.0)
    return low
