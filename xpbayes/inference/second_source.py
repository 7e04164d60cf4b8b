"""One star or two? Hypothesis A, a single star, against B, an unresolved second source (METHOD 12), by their evidences.

The evidence of A is the sum over all optima that its search found. B is solved for companions of a dozen brightnesses,
equally likely beforehand, each from the solution for the next fainter one; its evidence is the mean over them, and what it
says of the star are their moments. Everything else is integrated by Laplace's approximation, for A and B in the same
coordinates, under the same label prior, with the same fluxes and covariance: what L leaves out drops out of their ratio.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray
from scipy.special import ndtri

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks, replaced, rows_of_each
from xpbayes.device import program
from xpbayes.inference.errors import laplace_covariance
from xpbayes.inference.linear_algebra import ln_det_positive, smallest_pivot
from xpbayes.inference.search.optima import best_of
from xpbayes.inference.search.solver import MIN_PIVOT, Solution, solve
from xpbayes.models.forward import ForwardModel
from xpbayes.models.objective import curvature
from xpbayes.models.pair import CompanionRidge, PairForward, pair_of
from xpbayes.models.star_model import StarModel
from xpbayes.models.theta import to_linear

N_COMPANIONS = 12
"""Brightnesses of the companion: midpoints of as many parts of its prior."""
ABOVE_RIDGE, EVOLVED = 0.05, 3.3
"""A single star is suspicious by its place where its log g is so far below the ridge's, and above this: a giant's
companions are hardly seen."""
POOR_FIT = 1.0
"""It is suspicious by its spectrum where chi^2 per channel is above this."""


class PairPosteriors(NamedTuple):
    """What hypothesis B says of every star; NaN where it was not asked or has no optimum."""

    ln_odds: NDArray[np.float32]  # (star,) ln of the evidence of B over that of A
    flux_ratio: NDArray[np.float32]  # (star,) companion over primary, 500 to 800 nm, and its error
    flux_ratio_error: NDArray[np.float32]
    teff: NDArray[np.float32]  # (star,) of the companion [kK], and its error
    teff_error: NDArray[np.float32]
    estimate: NDArray[np.float32]  # (star, parameter) the primary's labels, E [mag] and parallax [mas], and errors
    error: NDArray[np.float32]


class _AtOptimum(NamedTuple):
    """Of one optimum."""

    ln_evidence: Float[Array, ""]  # Laplace's ln of the integral of exp(-L / 2) over labels, xi, ln E and ln parallax
    hessian: Float[Array, "parameter parameter"]  # positive definite
    companion: Float[Array, " two"]  # Teff [kK] and ln flux ratio; NaN of a single star


def rows_asked(
    ridge: CompanionRidge,
    stars: Stars,
    theta_log: NDArray[np.floating],
    chi2: NDArray[np.floating],
    *,
    everywhere: bool,
) -> NDArray[np.intp]:
    """Rows of the stars that are compared: all, or those whose best single fit leaves room for a second source."""
    if everywhere:
        return np.arange(len(chi2))
    teff, feh, logg = (theta_log[:, i] for i in ridge.at)
    above = np.asarray(ridge.logg_at(jnp.asarray(teff), jnp.asarray(feh))) - logg
    n_channels = np.count_nonzero(np.diagonal(np.asarray(stars.whitening), axis1=1, axis2=2), axis=1)
    return np.flatnonzero(((above > ABOVE_RIDGE) & (logg > EVOLVED)) | (chi2 > POOR_FIT * n_channels))


def unasked(n: int, n_parameters: int) -> PairPosteriors:
    """Of stars that were not compared."""
    one, each = np.full(n, np.nan, np.float32), np.full((n, n_parameters), np.nan, np.float32)
    return PairPosteriors(one, one, one, one, one, each, each)


def weigh_hypotheses(
    model: StarModel, ridge: CompanionRidge, stars: Stars, single: Solution, rows: NDArray[np.intp], max_iterations: int
) -> PairPosteriors:
    """Solve B for some rows of a batch, the model's error folded in, and compare it with A's optima (star, start)."""
    found = unasked(len(stars), model.forward.n_labels + 2)
    if not len(rows):
        return found
    model, (some, alone) = model.without_error, rows_of_each((stars, single), rows)
    pairs = solve_companions(model, ridge, some, best_of(alone).theta_log, max_iterations)
    weighed = _moments(_with_steps(pairs), ln_evidence_of_single(model, some, alone), model.forward)
    return replaced(found, weighed, rows)


def companions_tried() -> NDArray[np.float64]:
    """`companion` of the pairs that are solved, the faintest first."""
    return np.asarray(ndtri((np.arange(N_COMPANIONS) + 0.5) / N_COMPANIONS))


def solve_companions(
    model: StarModel, ridge: CompanionRidge, stars: Stars, alone: Array | NDArray[np.floating], max_iterations: int
) -> list[PairPosteriors]:
    """Solve B for every companion that is tried, the faintest first, beginning `alone`: at A's best optima.

    Of each ln evidence in place of odds, and all parameters of a star, with their errors at that companion.
    """
    at, light = np.array(alone), np.zeros(len(stars))  # ln of whole over primary
    found: list[PairPosteriors] = []
    for z in companions_tried():
        pair = StarModel(pair_of(model.forward, ridge, jnp.float32(z)), model.prior)
        # As bright as the last: as much smaller a primary as there is more light from its companion.
        ratio = by_blocks(partial(_ln_flux_ratios, pair), STAR_BLOCK, at)
        begin, more = at.copy(), np.logaddexp(0.0, ratio) - light
        begin[:, ridge.at[2]] += np.where(np.isfinite(more), more, 0.0) / np.log(10.0)
        solution = solve(pair, stars, begin, max_iterations)
        here = _posteriors(pair, stars, solution)
        found.append(here)
        reached = np.isfinite(here.ln_odds)
        at = np.where(reached[:, None], solution.theta_log, at)
        light = np.where(reached, np.log1p(here.flux_ratio), light)
    return found


def _posteriors(pair: StarModel, stars: Stars, solution: Solution) -> PairPosteriors:
    """For one brightness of the companion; evidence instead of odds, errors of the companion 0."""
    mode = np.asarray(solution.theta_log)
    at = by_blocks(partial(_at_optimum, pair), STAR_BLOCK, stars, mode)
    evidence = np.where(np.asarray(solution.converged) & np.isfinite(at.ln_evidence), at.ln_evidence, -np.inf)
    error = np.sqrt(np.diagonal(laplace_covariance(np.asarray(at.hessian), mode), axis1=1, axis2=2))
    teff, ratio = at.companion[:, 0], np.exp(at.companion[:, 1])
    return PairPosteriors(evidence, ratio, 0.0 * ratio, teff, 0.0 * teff, to_linear(mode), error)


def _with_steps(found: list[PairPosteriors]) -> list[PairPosteriors]:
    """The same with errors of the companion: those between two that were tried are as likely as they are."""

    def steps(name: str) -> NDArray[np.float64]:
        return np.abs(np.gradient(np.stack([getattr(one, name) for one in found]).astype(np.float64), axis=0)) / 12**0.5

    each = zip(found, steps("flux_ratio"), steps("teff"), strict=True)
    return [one._replace(flux_ratio_error=ratio, teff_error=teff) for one, ratio, teff in each]


def _moments(found: list[PairPosteriors], ln_single: NDArray[np.float64], forward: ForwardModel) -> PairPosteriors:
    """Mean and standard deviation over companions, each with its evidence as weight."""
    evidence = np.stack([one.ln_odds for one in found], axis=1).astype(np.float64)
    whole = np.logaddexp.reduce(evidence, axis=1)
    with np.errstate(invalid="ignore"):  # neither has an optimum
        ln_odds = whole - np.log(len(found)) - ln_single
    known = np.isfinite(ln_odds)
    weight = np.exp(np.where(known[:, None], evidence - np.where(known, whole, 0.0)[:, None], -np.inf))

    def moments(name: str, error: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        each, within = (
            np.stack([getattr(one, of) for one in found], axis=1).astype(np.float64) for of in (name, error)
        )
        share = weight.reshape(*weight.shape, *(1,) * (each.ndim - 2))
        each, within = np.where(share > 0, each, 0.0), np.where(share > 0, within, 0.0)
        mean = np.sum(share * each, axis=1)
        return mean, np.sqrt(np.sum(share * (within**2 + (each - mean[:, None]) ** 2), axis=1))

    own = forward.without_xi
    (ratio, ratio_error), (teff, teff_error) = moments("flux_ratio", "flux_ratio_error"), moments("teff", "teff_error")
    estimate, error = moments("estimate", "error")
    values = (ln_odds, ratio, ratio_error, teff, teff_error, estimate[:, own], error[:, own])
    each = (np.where(known if v.ndim == 1 else known[:, None], v, np.nan).astype(np.float32) for v in values)
    return PairPosteriors(*each)


def ln_evidence_of_single(model: StarModel, stars: Stars, found: Solution) -> NDArray[np.float64]:
    """(star,) the sum over A's converged optima (star, start), L infinite where given up; -inf of a star without."""
    counts = np.isfinite(found.objective) & np.asarray(found.converged)
    each = np.full(counts.shape, -np.inf)
    star, start = np.nonzero(counts)
    if len(star):
        some = jax.tree.map(np.asarray, stars).take(star)
        at = by_blocks(partial(_at_optimum, model), STAR_BLOCK, some, np.asarray(found.theta_log)[star, start])
        each[star, start] = np.where(np.isfinite(at.ln_evidence), at.ln_evidence, -np.inf)
    return np.asarray(np.logaddexp.reduce(each, axis=1))


@program
def _ln_flux_ratios(pair: StarModel, theta_log: Float[Array, "star parameter"]) -> Float[Array, " star"]:
    assert isinstance(pair.forward, PairForward)
    return jax.vmap(pair.forward.ln_flux_ratio)(theta_log)


@program
def _at_optimum(model: StarModel, stars: Stars, theta_log: Float[Array, "star parameter"]) -> _AtOptimum:
    def one(star: Stars, u: Array) -> _AtOptimum:
        at = curvature(model, star, u)[0]
        hessian = jnp.where(smallest_pivot(at.hessian) > MIN_PIVOT, at.hessian, at.bound)  # as the solver takes it
        evidence = 0.5 * (u.size * np.log(4.0 * np.pi) - at.value - ln_det_positive(hessian))
        pair, companion = model.forward, jnp.full(2, jnp.nan)
        if isinstance(pair, PairForward):
            companion = jnp.stack([pair.companion(u)[pair.ridge.at[0]], pair.ln_flux_ratio(u)])
        return _AtOptimum(evidence, hessian, companion)

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(stars, theta_log)
