"""What judges a star's posterior: its labels, what they imply of E and the parallax, and measurements of these two.

Once a star's labels are known, its fluxes leave E and the parallax little freedom: with A the slope of either on the labels
in the Laplace approximation, value = mode + A (labels - mode of the labels), to within A's share of the labels' errors and a
width r that the approximation has along. Reddening estimates and measured parallaxes are averaged with that.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from xpbayes.data.stars import Stars

if TYPE_CHECKING:
    from xpbayes.inference.fit import Posteriors

WITHIN_ONE_SIGMA = 0.6827
MIN_PARALLAX_SNR = 5.0
"""A measured parallax below this does not judge ln parallax: its logarithm is no Gaussian."""


class References(NamedTuple):
    """What is known of stars beside their fluxes."""

    value: NDArray[np.float64]  # (star, parameter) labels, E [mag], ln parallax
    # (star, parameter) of its own errors, less what scatter of stars at the same labels is in both; infinite where
    # nothing is known
    variance: NDArray[np.float64]
    # (star, parameter) of the posterior's variance, what value errs by as well: it drops out of their difference
    shared: NDArray[np.float64]

    @classmethod
    def apart(cls, value: NDArray[np.float64], variance: NDArray[np.float64]) -> "References":
        """Measurements whose errors are their own."""
        return cls(value, variance, np.zeros_like(value))

    def take(self, rows: NDArray[np.integer]) -> "References":
        """Select stars."""
        return References(*(values[rows] for values in self))


class Implied(NamedTuple):
    """What labels imply of E [mag] and ln parallax, (star, 2) each."""

    value: NDArray[np.float64]  # at the known labels
    variance: NDArray[np.float64]  # of the labels' errors
    left: NDArray[np.float64]  # variance that the posterior keeps where labels are known
    known: NDArray[np.bool_]  # (star,) there are labels and an optimum


def in_sampled(found: "Posteriors") -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(star, parameter) modes and (star, parameter, parameter) inverses of Fisher's and Laplace's matrix, in ln parallax."""
    mode = np.asarray(found.estimate, np.float64).copy()
    unit = np.ones_like(mode)
    with np.errstate(divide="ignore", invalid="ignore"):
        unit[:, -1] = 1.0 / mode[:, -1]
        mode[:, -1] = np.log(mode[:, -1])
    unit = unit[:, :, None] * unit[:, None, :]
    return mode, found.covariance * unit, found.laplace * unit


def label_variances(stars: Stars) -> NDArray[np.float64]:
    """(star, label), infinite where a label is missing."""
    with np.errstate(divide="ignore"):
        return 1.0 / np.asarray(stars.label_inv_error, np.float64) ** 2


def implied_by_labels(found: "Posteriors", stars: Stars) -> Implied:
    """E and ln parallax at the stars' labels, by results of inference without parallaxes."""
    n = np.shape(stars.labels)[1]
    mode, _, laplace = in_sampled(found)
    label_variance, labels = label_variances(stars), np.asarray(stars.labels, np.float64)
    known = np.isfinite(laplace).all(axis=(1, 2)) & np.isfinite(label_variance).all(axis=1)
    known &= np.asarray(found.converged, bool) & np.isfinite(mode).all(axis=1)
    laplace, mode = np.where(known[:, None, None], laplace, np.eye(n + 2)), np.where(known[:, None], mode, 0.0)
    slope = laplace[:, n:, :n] @ np.linalg.inv(laplace[:, :n, :n])
    return Implied(
        mode[:, n:] + (slope @ (labels - mode[:, :n])[:, :, None])[:, :, 0],
        (slope**2 @ np.where(known[:, None], label_variance, 1.0)[:, :, None])[:, :, 0],
        np.diagonal(laplace[:, n:, n:] - slope @ laplace[:, :n, n:], axis1=1, axis2=2),
        known,
    )


def measured(stars: Stars) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(star, 2) reddening estimate [mag] and ln of the measured parallax, and their errors, infinite where useless."""
    parallax, inverse = (np.asarray(v, np.float64) for v in (stars.parallax, stars.parallax_inv_error))
    reddening, weight = (np.asarray(v, np.float64) for v in (stars.reddening, stars.reddening_inv_error))
    useful = parallax * inverse > MIN_PARALLAX_SNR
    value = np.column_stack([reddening, np.log(np.where(useful, parallax, 1.0))])
    with np.errstate(divide="ignore"):
        return value, 1.0 / np.column_stack([weight, np.where(useful, parallax * inverse, 0.0)])


def references(found: "Posteriors", stars: Stars, scatter: Float[NDArray, "star two"] | None = None) -> References:
    """What is known of stars beside their fluxes, by results of inference without parallaxes.

    What labels imply errs as the mode itself does in what labels do not decide, by `Implied.left`: what is `shared`, but for
    the `scatter` of E [mag] and ln parallax at given labels that is in it, which was measured. It is averaged with what was
    measured of the star, each with the weight it deserves.
    """
    implied = implied_by_labels(found, stars)
    value, error = measured(stars)
    own = implied.variance + implied.left
    share = own / (own + error**2)
    variance = (1.0 - share) ** 2 * implied.variance
    variance += np.where(share > 0, share * np.where(share > 0, error, 0.0), 0.0) ** 2
    # The posterior's difference from the value keeps `share` of what both err by.
    known = 0.0 if scatter is None else np.minimum(scatter**2, implied.left)
    variance -= (1.0 - share**2) * known
    shared = np.column_stack([np.zeros_like(stars.labels), (1.0 - share**2) * (implied.left - known)])
    return References(
        np.concatenate([stars.labels, share * value + (1.0 - share) * implied.value], axis=1),
        np.where(implied.known[:, None], np.concatenate([label_variances(stars), variance], axis=1), np.inf),
        np.where(implied.known[:, None], shared, 0.0),
    )


def weighted_quantiles(values: NDArray, weight: NDArray, level: float) -> NDArray[np.float64]:
    """(kind,) quantiles of values (star,) under the weights (star, kind) of every kind."""
    order = np.argsort(values)
    values, weight = values[order], np.ascontiguousarray(weight.T[:, order])
    cumulative = np.cumsum(weight, axis=1)
    return np.array([_quantile(values, w, c, level * c[-1]) for w, c in zip(weight, cumulative, strict=True)])


def _quantile(values: NDArray, weight: NDArray, cumulative: NDArray, target: float) -> np.float64:
    """Interpolate sorted values, each of which lies in the middle of its weight, where the sum of weights is `target`."""
    last = len(values) - 1
    below = min(int(np.searchsorted(cumulative, target, side="right")), last)
    if below and cumulative[below] - 0.5 * weight[below] > target:
        below -= 1
    around = slice(below, below + 2)
    return np.interp(target, cumulative[around] - 0.5 * weight[around], values[around])
