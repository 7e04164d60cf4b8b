"""The ladder of approximations: which stars of a catalogue are taken from importance draws up to Markov chains.

Laplace's approximation serves as a proposal of importance draws; where these cannot be trusted (k_hat above 0.7) or two
optima compete, mean, standard deviation and quantiles come from chains instead, if the chains settle.
"""

from collections.abc import Callable
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
    schedule: Schedule | None = None,
    progress: Callable[[int, int, float], None] = lambda done, total, rate: None,
    threads: int | None = None,
) -> tuple[Posteriors, NDArray[np.bool_]]:
    """Take the stars that need it up to Markov chains.

    Args:
        model: the trained model.
        stars: as they were inferred.
        inferred: their results.
        config: the settings they were inferred with.
        seeds: (star,) each star's own.
        schedule: how long chains walk; the default if None.
        progress, threads: as in `nuts.sample_stars`.

    Returns:
        results with mean, std, quantiles and effective number of draws replaced where chains settled (k_hat stays, it
        says why), and (star,) where that is.
    """
    rows = np.flatnonzero(needs_chains(inferred))
    by_chains = np.zeros(len(inferred.estimate), bool)
    if not len(rows):
        return inferred, by_chains
    # A batch may be padded with copies of a star: each is sampled once.
    flux = np.asarray(stars.flux)
    first: dict[bytes, int] = {}
    copy_of = np.array([first.setdefault(flux[i].tobytes() + seeds[i].tobytes(), int(i)) for i in rows])
    once = np.unique(copy_of)
    blind = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[once]), stars.blind(parallax=config.use_parallax))
    looked_at = fold_in_model_error(model, blind, to_log(jnp.asarray(inferred.optimum[once])))
    draws, found = sample_inferred(
        model,
        config.n_nodes,
        looked_at,
        inferred.optimum[once],
        inferred.with_xi("runner_up")[once],
        seeds[once],
        schedule or Schedule(),
        progress,
        threads,
    )
    flat = draws.theta.reshape(len(once), -1, draws.theta.shape[-1]).astype(np.float64)
    low, median, high = np.quantile(flat, [0.16, 0.5, 0.84], axis=1)
    new: dict[str, Any] = {
        "mean": flat.mean(axis=1),
        "std": flat.std(axis=1),
        "median": median,
        "low": low,
        "high": high,
        "n_effective": found.ess_bulk.min(axis=1),
    }
    at = np.searchsorted(once, copy_of)
    good = found.settled[at]
    by_chains[rows[good]] = True
    n, curve = inferred.estimate.shape[1] - 2, inferred.curve

    def with_new(old: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
        out = old.copy()
        out[rows[good]] = values[at[good]]
        return out

    if curve is not None:
        of_xi = {name: with_new(getattr(curve, name), v[:, n]) for name, v in new.items() if name != "n_effective"}
        curve = curve._replace(**of_xi)
        new = {name: v if v.ndim == 1 else np.delete(v, n, axis=1) for name, v in new.items()}
    if inferred.spurious is not None:
        new["spurious"] = spurious_in(looked_at, flat[:, :, -1])
    replaced: dict[str, Any] = {name: with_new(getattr(inferred, name), values) for name, values in new.items()}
    return replace(inferred, curve=curve, **replaced), by_chains
