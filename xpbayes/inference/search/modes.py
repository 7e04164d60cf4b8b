"""Every optimum of one star's posterior that many starts can find: for a handful of stars, not for a catalogue.

A quarter of the starts come from the search that the catalogue uses, as far apart as it allows; the rest are scattered
over the label prior and the range of E whatever the star looks like, so that a fault of the search shows.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from xpbayes.config import InferenceConfig
from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks
from xpbayes.device import prepare_device, program
from xpbayes.inference.errors import evaluate_mode
from xpbayes.inference.linear_algebra import are_positive_definite, invert_positive
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.inference.search.solver import solve
from xpbayes.inference.search.starts import MAX_EXTINCTION, MIN_EXTINCTION, StartGrid, find_starts, make_grid
from xpbayes.models.forward import ForwardModel, predict_ln_flux
from xpbayes.models.star_model import StarModel
from xpbayes.models.theta import to_linear

N_SEARCHED = 16
"""Starts from the catalogue's own search."""
N_SCATTERED = 48
"""Starts that know nothing of the star but its brightness."""
SAME_MODE = 0.3
"""Solutions closer than this in every parameter, in Laplace sigmas of the better one, are one optimum."""
MAX_ITERATIONS = 200


@dataclass(frozen=True)
class Mode:
    """One optimum."""

    estimate: NDArray[np.float64]  # (parameter,) labels, E [mag], parallax [mas]
    error: NDArray[np.float64]  # (parameter,) 1-sigma errors from the Fisher matrix there
    objective: float  # L = -2 ln posterior + constant, the same constant for all modes of a star
    n_starts: int  # how many starts ended there
    xi: float | None = None  # of the extinction curve; None where it does not vary


@dataclass(frozen=True)
class Modes:
    """The optima of one star, best first."""

    modes: tuple[Mode, ...]  # distinct optima; empty if no start converged
    n_starts: int  # starts tried
    n_unconverged: int  # starts that did not reach an optimum
    # (parameter,) theta_log of whose predicted flux the model's relative error is taken; None without one
    reference: NDArray[np.float32] | None = None


@program
def _scattered_starts(forward: ForwardModel, grid: StartGrid, star: Stars) -> Float[Array, "start parameter"]:
    """Draw starts from the prior's nodes and log-uniform E; the parallax makes the mean brightness right."""
    which, where = jax.random.split(jax.random.key(0))
    labels = grid.labels[jax.random.choice(which, grid.labels.shape[0], (N_SCATTERED,), replace=False)]
    low, high = np.log(MIN_EXTINCTION), np.log(MAX_EXTINCTION)
    ln_extinction = jax.random.uniform(where, (N_SCATTERED,), minval=low, maxval=high)
    mean_curve = jnp.zeros((N_SCATTERED, forward.n_star_parameters - forward.n_labels - 2))
    dark = jnp.concatenate([labels, mean_curve, ln_extinction[:, None], jnp.zeros((N_SCATTERED, 1))], axis=1)
    predicted = jax.vmap(lambda u: predict_ln_flux(forward, u, star.ln_scale))(dark)
    usable = (star.flux > 0) & (jnp.diagonal(star.whitening) > 0)
    excess = jnp.where(usable, jnp.log(jnp.where(usable, star.flux, 1.0)) - predicted, 0.0)
    return dark.at[:, -1].set(0.5 * excess.sum(axis=1) / jnp.maximum(usable.sum(), 1))


def find_modes(model: StarModel, stars: Stars, config: InferenceConfig) -> list[Modes]:
    """Find the optima of every star of a small batch, of what its settings let inference see."""
    prepare_device()
    blind = jax.tree.map(np.asarray, stars.blind(parallax=config.use_parallax))
    bare = model.without_error
    grid = make_grid(bare, config.n_nodes)
    found = []
    for i in range(len(stars)):
        own = blind.take(slice(i, i + 1))
        one = fold_in_model_error(model, own)
        searched = np.asarray(find_starts(bare, grid, one, N_SEARCHED))[0]
        scattered = _scattered_starts(model.forward, grid, jax.tree.map(lambda leaf: leaf[0], one))
        starts, reference = np.concatenate([searched, scattered]), None
        if model.error is not None:
            # As for the catalogue, the relative error is taken of what the model predicts at the best optimum.
            first = solve(bare, _repeated(one, len(starts)), starts, MAX_ITERATIONS)
            best = np.argmin(np.where(np.isfinite(first.objective), first.objective, np.inf))
            reference = np.asarray(first.theta_log)[best]
            one = fold_in_model_error(model, own, reference[None])
            starts = np.where(np.isfinite(first.theta_log), first.theta_log, starts)
        of_star = _modes_of(bare, one, starts)
        found.append(of_star if reference is None else replace(of_star, reference=reference))
    return found


def _repeated(one: Stars, n: int) -> Stars:
    """Copies of one star, in NumPy: nothing is compiled for them."""
    return jax.tree.map(np.asarray, one).take(np.zeros(n, int))


def _modes_of(model: StarModel, one: Stars, starts: NDArray[np.floating]) -> Modes:
    repeated = _repeated(one, len(starts))
    solution = solve(model, repeated, starts, MAX_ITERATIONS)
    at = by_blocks(partial(evaluate_mode, model), STAR_BLOCK, repeated, solution.theta_log)
    hessian = np.asarray(at.hessian, np.float64)
    objective = np.asarray(solution.objective, np.float64)
    reached = np.asarray(solution.converged) & are_positive_definite(hessian) & np.isfinite(objective)
    order = [int(k) for k in np.argsort(objective, kind="stable") if reached[k]]
    objective, hessian = objective[order], hessian[order]
    sampled = np.asarray(solution.theta_log, np.float64)[order]
    linear = np.asarray(to_linear(jnp.asarray(solution.theta_log)), np.float64)[order]
    error = np.sqrt(np.diagonal(invert_positive(np.asarray(at.fisher)[order]), axis1=1, axis2=2))
    # L = -2 ln p: the covariance in the sampled coordinates is twice the inverse Hessian.
    sigma = np.sqrt(2.0 * np.diagonal(invert_positive(hessian), axis1=1, axis2=2))
    left = list(range(len(order)))
    modes = []
    while left:
        best = left[0]
        near = [k for k in left if np.max(np.abs(sampled[k] - sampled[best]) / sigma[best]) < SAME_MODE]
        own = model.forward.without_xi
        xi = None if len(own) == linear.shape[1] else float(linear[best, -3])
        modes.append(Mode(linear[best, own], error[best, own], float(objective[best]), len(near), xi))
        left = [k for k in left if k not in near]
    return Modes(tuple(modes), len(starts), int((~reached).sum()))
