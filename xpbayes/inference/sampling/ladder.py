"""The ladder of approximations: which stars of a catalogue are taken from importance draws up to Markov chains.

Laplace's approximation serves as a proposal of importance draws; where these cannot be trusted (k_hat above 0.7) or two
optima compete, mean, standard deviation and quantiles come from chains instead, if the chains settle.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from xpbayes.config import InferenceConfig
from xpbayes.data.stars import Stars
from xpbayes.inference.fit import Posteriors, spurious_in
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.inference.sampling.nuts import Schedule, sample_inferred
from xpbayes.models.star_model import StarModel
from xpbayes.models.theta import to_log

MAX_K_HAT = 0.7


def needs_chains(inferred: Posteriors) -> NDArray[np.bool_]:
    """(star,) whose importance draws cannot be trusted, or whose optima compete."""
    solved = np.isfinite(inferred.estimate).all(axis=1)
    return solved & (~(inferred.k_hat <= MAX_K_HAT) | (inferred.n_modes > 1))


def refine_with_nuts(
    model: StarModel,
    stars: Stars,
    inferred: Posteriors,
    config: InferenceConfig,
    seeds: NDArray[np.uint32],
    threads: int | None = None,
) -> tuple[Posteriors, NDArray[np.bool_]]:
    """Take the stars, as they were inferred with these settings, that need it up to Markov chains.

    Returns results with mean, std, quantiles and effective number of draws replaced where chains settled (k_hat stays,
    it says why), and (star,) where that is. Seeds are each star's own.
    """
    rows = np.flatnonzero(needs_chains(inferred))
    by_chains = np.zeros(len(inferred.estimate), bool)
    if not len(rows):
        return inferred, by_chains
    blind = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[rows]), stars.blind(parallax=config.use_parallax))
    looked_at = fold_in_model_error(model, blind, to_log(jnp.asarray(inferred.optimum[rows])))
    optima = inferred.optimum[rows], inferred.with_xi("runner_up")[rows]
    draws, found = sample_inferred(model, config.n_nodes, looked_at, *optima, seeds[rows], Schedule(), threads=threads)
    flat = draws.theta.reshape(len(rows), -1, draws.theta.shape[-1]).astype(np.float64)
    low, median, high = np.quantile(flat, [0.16, 0.5, 0.84], axis=1)
    new: dict[str, Any] = {
        "mean": flat.mean(axis=1),
        "std": flat.std(axis=1),
        "median": median,
        "low": low,
        "high": high,
        "n_effective": found.ess_bulk.min(axis=1),
    }
    good, n, curve = found.settled, inferred.estimate.shape[1] - 2, inferred.curve
    by_chains[rows[good]] = True

    def with_new(old: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
        out = old.copy()
        out[rows[good]] = values[good]
        return out

    if curve is not None:
        of_xi = {name: with_new(getattr(curve, name), v[:, n]) for name, v in new.items() if name != "n_effective"}
        curve = curve._replace(**of_xi)
        new = {name: v if v.ndim == 1 else np.delete(v, n, axis=1) for name, v in new.items()}
    if inferred.spurious is not None:
        new["spurious"] = spurious_in(looked_at, flat[:, :, -1])
    replaced: dict[str, Any] = {name: with_new(getattr(inferred, name), values) for name, values in new.items()}
    return replace(inferred, curve=curve, **replaced), by_chains
