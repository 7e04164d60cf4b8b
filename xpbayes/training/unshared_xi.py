"""What neighbours' xi do not share is no dust's: an error of the model along R1, by kind of star.

Stars that are close on the sky and behind as much dust are mostly behind the same dust. Where the xi of a kind of star
differ from those of their neighbours by more than the stated errors and more than those of most kinds, its spectra differ
along R1 for other reasons: those of the coolest giants do. Residuals alone cannot tell, for the learning of the model's
error leaves to xi whatever a xi ~ N(0, 1) explains, and such kinds are hardly seen without dust. The variance beyond is
added to their error, so that their xi return to the prior and say so.

Only differences between kinds count: dust that varies from star to star makes all kinds differ from their neighbours alike.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from xpbayes.data.directions import unit_vectors
from xpbayes.data.stars import Stars, evenly, in_memory
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.models.model_error import ModelError, kind_weights_of
from xpbayes.models.star_model import StarModel
from xpbayes.training.curve_variation import MIN_EXTINCTION
from xpbayes.training.model_error import allowed_directions, as_double, collect_sums

NEAR_DEG, NEAR_LN_EXTINCTION = 0.3, 0.2
"""Neighbours are as close as this on the sky [deg] and in ln E."""
LARGEST_DIFFERENCE = 2.5
"""Differences of xi count as this at most: one odd star is not its kind."""
LARGEST_VARIANCE = 1.0
"""Of xi by the likelihood, for a star to be compared."""
MIN_PAIRS, MIN_SIGNIFICANCE = 50, 2.0
"""With fewer pairs of a kind, or an excess of fewer standard errors, the kind keeps its error."""
MAX_STARS, BATCH = 20_480, 256


def excess_by_kind(
    xi: Float[NDArray, " star"],
    variance: Float[NDArray, " star"],
    weight: Float[NDArray, "star kind"],
    pairs: NDArray[np.integer],
) -> Float[NDArray, " kind"]:
    """(kind,) variance of xi that its neighbours do not share, beyond the stated one and beyond that of most kinds.

    Args:
        xi: by the likelihood alone.
        variance: stated.
        weight: how much each star belongs to every kind.
        pairs: (pair, 2) of neighbours.

    Returns:
        (kind,), 0 where nothing significant is found.
    """
    first, second = pairs.T
    squared = np.minimum(np.abs(xi[first] - xi[second]), LARGEST_DIFFERENCE) ** 2 - variance[first] - variance[second]
    squared -= squared.mean()
    both = weight[first] + weight[second]
    n_pairs = both.sum(axis=0)
    inverse = np.linalg.inv(both.T @ both + np.eye(both.shape[1]))
    found = inverse @ (both.T @ squared)
    rest = both * (squared - both @ found)[:, None]
    error = np.sqrt(np.diag(inverse @ (rest.T @ rest) @ inverse))
    order = np.argsort(found)
    usual = found[order][np.searchsorted(np.cumsum(n_pairs[order]), 0.5 * n_pairs.sum())]
    excess = found - usual
    return np.where((n_pairs > MIN_PAIRS) & (excess > MIN_SIGNIFICANCE * error), excess, 0.0)


def with_unshared_xi(
    model: StarModel,
    stars: Stars,
    theta_log: Float[Array, "star parameter"],
    ra: Float[NDArray, " star"],
    dec: Float[NDArray, " star"],
) -> tuple[ModelError, Float[NDArray, " kind"]]:
    """The model's error with what neighbours' xi do not share, and (kind,) the variance of xi that was added.

    Unchanged where too few stars behind dust are neighbours.

    Args:
        model: with R1 and an error.
        stars: training stars with the measurement's own whitening, in memory or in files.
        theta_log: (star, parameter) their solutions.
        ra, dec: their positions [deg].
    """
    error, forward = model.error, model.forward
    assert error is not None and forward.curve_variation is not None
    ln_extinction = np.asarray(theta_log, np.float64)[:, -2]
    rows = np.flatnonzero((ln_extinction > np.log(MIN_EXTINCTION)) & np.isfinite(ra) & np.isfinite(dec))
    rows = rows[evenly(len(rows), MAX_STARS)]
    rows = rows[: len(rows) - len(rows) % BATCH]
    nothing = np.zeros(len(error.covariance))
    if not len(rows):
        return error, nothing
    xi, variance, weight = _measured_xi(model, stars, theta_log, rows)
    known = variance < LARGEST_VARIANCE
    rows, xi, variance, weight = rows[known], xi[known], variance[known], weight[known]
    pairs = cKDTree(unit_vectors(ra[rows], dec[rows])).query_pairs(
        2.0 * np.sin(np.radians(NEAR_DEG) / 2.0), output_type="ndarray"
    )
    apart = np.abs(ln_extinction[rows][pairs[:, 0]] - ln_extinction[rows][pairs[:, 1]])
    pairs = pairs[apart < NEAR_LN_EXTINCTION]
    if len(pairs) < MIN_PAIRS:
        return error, nothing
    excess = excess_by_kind(xi, variance, weight, pairs)
    squared = (weight.T @ np.exp(2.0 * ln_extinction[rows])) / np.maximum(weight.sum(axis=0), 1e-6)
    # Along what R1 is beside E and distance, in which a star's xi is an error of flux of E times as much.
    basis = np.asarray(allowed_directions(forward.ln_curve), np.float64)
    direction = basis @ (basis.T @ np.asarray(forward.curve_variation, np.float64))
    added = (excess * squared)[:, None, None] * np.outer(direction, direction)
    covariance = jnp.asarray(np.asarray(error.covariance, np.float64) + added, jnp.float32)
    return replace(error, covariance=covariance), excess


def _measured_xi(
    model: StarModel, stars: Stars, theta_log: Array, rows: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The xi of stars by the likelihood alone, its variance, (star, kind) weights; labels and estimates as known."""
    assert model.error is not None and model.forward.curve_variation is not None
    parts: list[tuple[NDArray[np.float64], ...]] = []
    for begin in range(0, len(rows), BATCH):
        some = rows[begin : begin + BATCH]
        batch = in_memory(stars, some)
        folded = fold_in_model_error(model, batch, theta_log[some])
        with jax.enable_x64(True):
            along = as_double(model.forward.curve_variation[:, None])
            sums = collect_sums(as_double(model.forward), along, as_double(folded), as_double(theta_log[some]), 0.0)
        precision, pull, chi2, n_obs = (np.asarray(leaf, np.float64) for leaf in sums)
        extinction, dof = np.exp(np.asarray(theta_log[some], np.float64)[:, -2]), 1.0 / np.asarray(folded.inv_dof)
        information = np.maximum(extinction**2 * precision[:, 0, 0], 1e-30)
        xi = extinction * pull[:, 0] / information
        amplitude = (dof + n_obs) / (dof + np.maximum(chi2 - xi**2 * information, 0.0))
        parts.append((xi, 1.0 / (amplitude * information), np.asarray(kind_weights_of(model.error, batch), np.float64)))
    xi, variance, weight = (np.concatenate(v) for v in zip(*parts, strict=True))
    return xi, variance, weight
