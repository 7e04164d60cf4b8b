"""Stars of the same labels differ: in luminosity, as their masses do, and a little in colour.

A forward model has one flux for one set of labels, so a measured parallax would settle log g more sharply than it can: for
giants by far. The model's own error cannot say so, because a covariance of the fluxes that has grey in it would let faint
spectra of any shape pass, and one that has R in it is nothing but an uncertain E. So both are scatters of E and of ln
parallax about what the fluxes say, by kind of star as the model's error tells kinds apart, found on stars kept aside.

While a star is solved, the measured parallax has the scatter in its error (`loosened`); what comes out is the parallax that
the fluxes have. The star's own parallax is that one within the scatter, and the measured one within its error (`settled`):

    parallax = c * (parallax of the fluxes) + (1 - c) * measured,   c = s_g^2 / (s_g^2 + s^2),

and its variance is c^2 times what came out, plus c s^2. E keeps its value and gains the scatter in its width. Where the
measured parallax may be spurious, with a wider s, both cases are averaged over.
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import ndtr

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks
from xpbayes.inference.linear_algebra import invert_positive
from xpbayes.inference.references import WITHIN_ONE_SIGMA, implied_by_labels, measured, weighted_quantiles
from xpbayes.models.model_error import ModelError, kind_weights_of

if TYPE_CHECKING:
    from xpbayes.inference.fit import Posteriors

PRIOR_STARS = (150.0, 30.0)
"""A kind's scatter of E and of ln parallax is drawn towards that of all stars with the weight of so many: stars of the same
labels hardly differ in colour, giants do in luminosity."""
N_ROUNDS, DAMPING = 30, 0.5
FIRST, LEAST = (0.02, 0.05), (1e-3, 2e-3)
"""Scatters of E [mag] and ln parallax to begin with, and what counts as none."""
VARIANCE_ERROR = 1.92
"""The relative error of a variance read off the 68 % quantile of n stars, times the square root of n."""
MIN_STARS = 100
N_BISECTIONS, TINY = 30, 1e-12


def _kind_weights(error: ModelError, stars: Stars) -> NDArray[np.float64]:
    return np.asarray(by_blocks(partial(kind_weights_of, error), STAR_BLOCK, stars), np.float64)


def scatter_of(scatter: Float[NDArray, "kind two"], error: ModelError, stars: Stars) -> NDArray[np.float64]:
    """(star, 2) scatter of E [mag] and ln parallax."""
    weight = _kind_weights(error, stars)
    return np.sqrt(weight @ np.asarray(scatter, np.float64) ** 2)


def fit_scatter(
    found: "Posteriors", stars: Stars, error: ModelError, counts: Float[NDArray, " star"] | None = None
) -> NDArray[np.float32]:
    """(kind, 2) scatter of E [mag] and ln parallax at known labels, found without parallaxes; 0 if little is known.

    It is what measured reddenings and parallaxes differ by from those that labels imply, beyond all errors. For E the
    error of its square is taken off, so that poor measurements do not invent any. For ln parallax the square is shrunk
    as James & Stein (1961) do: none where it may be chance, all where it is clear. `counts` say how much each star
    counts for the scatter of E; that of ln parallax is of all stars: nobody knows of a star beforehand that it is not
    two.
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
        count = np.ones(use.sum()) if counts is None or i else counts[use]
        pooled = (weight[use] + PRIOR_STARS[i] / use.sum()) * count[:, None]
        out[:, i] = [_one(residual, variance, w, i) for w in pooled.T]
    return out


def _one(residual: NDArray[np.float64], variance: NDArray[np.float64], weight: NDArray[np.float64], of: int) -> float:
    """Scatter of residuals beyond their variances, their median apart, from the stars that tell most of it."""
    square, least = FIRST[of] ** 2, LEAST[of]
    for _ in range(N_ROUNDS):
        middle = weighted_quantiles(residual, (weight / (variance + square))[:, None], 0.5)
        told = weight * square / (variance + square)
        beyond = (residual - middle) ** 2 - variance
        square += DAMPING * (max(weighted_quantiles(beyond, told[:, None], WITHIN_ONE_SIGMA)[0], least**2) - square)
    typical, n = np.sum(told * (variance + square)) / told.sum(), told.sum() ** 2 / np.sum(told**2)
    error = VARIANCE_ERROR * typical / np.sqrt(n)
    return float(np.sqrt(max(square - (error**2 / square if of else error), 0.0)))


def loosened(stars: Stars, scatter: Float[NDArray, "star two"]) -> Stars:
    """Stars whose measured parallaxes have the scatter in their errors."""
    inverse = np.asarray(stars.parallax_inv_error, np.float64)
    spread = scatter[:, 1] * np.maximum(np.asarray(stars.parallax, np.float64), 0.0)
    wider = np.hypot(1.0, inverse * spread)
    looser = replace(stars, parallax_inv_error=(inverse / wider).astype(np.float32))
    if stars.doubt is None:
        return looser
    narrowing = wider / np.hypot(1.0 / np.asarray(stars.doubt.narrowing, np.float64), inverse * spread)
    return replace(looser, doubt=replace(stars.doubt, narrowing=narrowing.astype(np.float32)))


def trusted_inverse_error(stars: Stars, spurious: Float[NDArray, " star"] | None) -> NDArray[np.float64]:
    """(star,) 1 / error of the parallaxes [1/mas], of 1 / sigma^2 the mean over both errors that a doubted one has.

    `spurious` is the probability of the larger one, NaN where none was measured; None if none is doubted.
    """
    inverse = np.asarray(stars.parallax_inv_error, np.float64)
    if spurious is None or stars.doubt is None:
        return inverse
    share = np.where(np.isfinite(spurious), spurious, 0.0)
    return inverse * np.sqrt(1.0 - share * (1.0 - np.asarray(stars.doubt.narrowing, np.float64) ** 2))


class Settling(NamedTuple):
    """From parameters of `loosened` stars to the stars' own, (star, parameter) each: factor * value + shift."""

    factor: NDArray[np.float64]
    added: NDArray[np.float64]  # to their variances, once these are multiplied by the square of the factor
    shift: NDArray[np.float64]


def settling(
    estimate: Float[NDArray, "star parameter"],
    stars: Stars,
    scatter: Float[NDArray, "star two"],
    inverse: Float[NDArray, " star"],
) -> Settling:
    """What `settled` does to single numbers next to the optima; `inverse` is 1 / error [1/mas], 0 if not used."""
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
    """Results for the E and parallax of stars, as measured, from those of `loosened` stars.

    Optima and covariances have the mean precision of a doubted parallax; draws are mixed of those if it is sound and if
    not.
    """
    factor, added, shift = by = settling(
        found.estimate, stars, scatter, trusted_inverse_error(stars, found.spurious) * use_parallax
    )
    summaries = _summaries(found, by)
    if found.spurious is not None and stars.doubt is not None and np.isfinite(found.median).any():
        inverse = np.asarray(stars.parallax_inv_error, np.float64) * use_parallax
        both = (inverse, inverse * np.asarray(stars.doubt.narrowing, np.float64))
        sound, doubtful = (_summaries(found, settling(found.estimate, stars, scatter, error)) for error in both)
        summaries = _mixed(sound, doubtful, np.where(np.isfinite(found.spurious), found.spurious, 0.0))
    covariance, laplace = (
        matrix * factor[:, :, None] * factor[:, None, :] + added[:, :, None] * np.eye(added.shape[1])
        for matrix in (found.covariance, found.laplace)
    )
    unbounded = np.column_stack([found.unbounded[:, 0], np.hypot(found.unbounded[:, 1], scatter[:, 0])])
    return replace(
        found,
        estimate=(factor * found.estimate + shift).astype(np.float32),
        runner_up=(factor * found.runner_up + shift).astype(np.float32),
        fisher=invert_positive(covariance).astype(np.float32),
        covariance=covariance,
        laplace=laplace,
        unbounded=unbounded.astype(np.float32),
        **summaries,
    )


def _summaries(found: "Posteriors", by: Settling) -> dict[str, Any]:
    """What draws say, settled likewise; quantiles of E and parallax are not negative."""
    factor, added, shift = by
    mean, std = factor * found.mean + shift, np.sqrt((factor * found.std) ** 2 + added)
    median = factor * np.where(np.isfinite(found.median), found.median, np.nan)
    low, high = (np.sqrt((median - factor * end) ** 2 + added) for end in (found.low, found.high))
    least = median + shift - low
    least[:, -2:] = np.maximum(least[:, -2:], 0.0)
    new = {"mean": mean, "std": std, "median": median + shift, "low": least, "high": median + shift + high}
    return {name: values.astype(np.float32) for name, values in new.items()}


def _mixed(
    sound: dict[str, NDArray[np.float32]], spurious: dict[str, NDArray[np.float32]], share: NDArray[np.floating]
) -> dict[str, Any]:
    """Summaries whose parallaxes are a mixture: quantiles by bisection, each part a Gaussian with halves of two widths."""
    parts = [{name: values[:, -1].astype(np.float64) for name, values in of.items()} for of in (sound, spurious)]
    one, two = parts
    new = {"mean": one["mean"] + share * (two["mean"] - one["mean"])}
    square = [of["std"] ** 2 + (of["mean"] - new["mean"]) ** 2 for of in parts]
    new["std"] = np.sqrt(square[0] + share * (square[1] - square[0]))

    def below(of: dict[str, NDArray[np.float64]], x: NDArray[np.float64]) -> NDArray[np.float64]:
        side = np.where(x < of["median"], of["median"] - of["low"], of["high"] - of["median"])
        return ndtr((x - of["median"]) / np.maximum(side, TINY))

    for name, z in (("low", -1.0), ("median", 0.0), ("high", 1.0)):
        least, most = np.minimum(one[name], two[name]), np.maximum(one[name], two[name])
        for _ in range(N_BISECTIONS):
            middle = 0.5 * (least + most)
            too_low = below(one, middle) + share * (below(two, middle) - below(one, middle)) < ndtr(z)
            least, most = np.where(too_low, middle, least), np.where(too_low, most, middle)
        new[name] = np.where(share > 0, 0.5 * (least + most), one[name])
    return {
        name: np.column_stack([sound[name][:, :-1], of_parallax.astype(np.float32)])
        for name, of_parallax in new.items()
    }
