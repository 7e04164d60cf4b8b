"""The posterior given a star's fluxes alone, beside one whose parallax was used, sought from where that has its mode."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks, rows_of_each
from xpbayes.inference.errors import ModeDiagnostics, evaluate_mode
from xpbayes.inference.search.solver import StarChunk, solve
from xpbayes.models.star_model import StarModel


class FluxesAlone(NamedTuple):
    """The mode given the fluxes alone; of stars without a parallax the one that is known."""

    theta_log: NDArray[np.float32]  # (star, parameter) labels, xi if the curve varies, ln E, ln parallax
    hessian: NDArray[np.float32]  # (star, parameter, parameter) of L there
    chi2: NDArray[np.float32]  # (star,) of the fluxes


def without_parallax(
    model: StarModel,
    stars: Stars,
    theta_log: Float[Array, "star parameter"] | NDArray[np.floating],
    at: ModeDiagnostics,
    chunk: StarChunk | None = None,
) -> FluxesAlone:
    """Solve for the mode given the fluxes alone, of all stars whose parallax was used.

    The stars are as their modes, at which `at` was evaluated, were found, the model's error in them; `chunk` has the
    same stars if the solver has them already.
    """
    found = FluxesAlone(*(np.array(leaf, np.float32) for leaf in (theta_log, at.hessian, at.chi2)))
    used = (np.asarray(stars.parallax_inv_error) > 0) & np.isfinite(found.theta_log).all(axis=1)
    if used.any():
        rows = np.flatnonzero(used)
        # With the doubt of parallaxes that are left out, of no effect: one program serves both fits.
        bare = (chunk or StarChunk.of(stars)).without_parallax()
        there = np.asarray(solve(model, bare, found.theta_log[rows], rows=rows).theta_log)
        blind = replace(stars.blind(parallax=False), doubt=stars.doubt)
        some = rows_of_each(blind, slice(None) if used.all() else rows)
        again = by_blocks(partial(evaluate_mode, model), STAR_BLOCK, some, there)
        for values, new in zip(found, (there, again.hessian, again.chi2), strict=True):
            values[rows] = new
    return found
