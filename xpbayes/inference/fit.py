"""Every star's posterior without labels: optima, Fisher and Laplace matrices, summaries of draws (METHOD 5)."""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks
from xpbayes.device import prepare_device
from xpbayes.inference.errors import evaluate_mode, hessians, laplace_covariance
from xpbayes.inference.linear_algebra import are_positive_definite, invert_positive
from xpbayes.inference.sampling.importance import Summary, summarise
from xpbayes.inference.search.optima import choose_optima, search
from xpbayes.inference.search.starts import StartGrid, make_grid
from xpbayes.models.star_model import StarModel
from xpbayes.models.theta import to_linear

if TYPE_CHECKING:
    from xpbayes.config import InferenceConfig


@dataclass(frozen=True)
class Posteriors:
    """Results per star, NumPy.

    Attributes:
        estimate: (star, parameter) labels, E [mag], parallax [mas] at the mode.
        fisher: (star, parameter, parameter) information matrix of the same, float32 (Eq. 21, 22).
        covariance: (star, parameter, parameter) its inverse, float64 (Eq. 23).
        laplace: (star, parameter, parameter) covariance of the same from the full posterior's Hessian, float64.
        chi2: (star,) of the fluxes, with the model's error in the covariance.
        ln_prior: (star,).
        objective: (star,) L = -2 ln posterior + constant.
        decrement, converged, n_iterations: see `solver.Solution`.
        hessian_positive: (star,) the full Hessian (Eq. 20) is positive definite.
        n_modes: (star,) distinct optima found within `COMPETES` of the best.
        runner_up: (star, parameter) the second of them; NaN if there is one only.
        runner_up_delta: (star,) by how much its L is higher; NaN likewise.
        unbounded: (star, 2) E [mag] and its error at the optimum as if E could be negative: unbiased where there is no dust.
        mean, std, median, low, high: (star, parameter) of the posterior; NaN if no draws were asked for.
        k_hat, n_effective: (star,) quality of the draws behind them.
    """

    estimate: NDArray[np.float32]
    fisher: NDArray[np.float32]
    covariance: NDArray[np.float64]
    laplace: NDArray[np.float64]
    chi2: NDArray[np.float32]
    ln_prior: NDArray[np.float32]
    objective: NDArray[np.float32]
    decrement: NDArray[np.float32]
    converged: NDArray[np.bool_]
    n_iterations: NDArray[np.int32]
    hessian_positive: NDArray[np.bool_]
    n_modes: NDArray[np.int32]
    runner_up: NDArray[np.float32]
    runner_up_delta: NDArray[np.float32]
    unbounded: NDArray[np.float32]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    median: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    k_hat: NDArray[np.float32]
    n_effective: NDArray[np.float32]

    def take(self, rows: slice | NDArray[np.integer]) -> "Posteriors":
        """Select stars."""
        return Posteriors(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def fit_stars(
    model: StarModel,
    stars: Stars,
    config: "InferenceConfig",
    progress: Callable[[int, int, float], None] = lambda done, total, rate: None,
    seeds: NDArray[np.uint32] | None = None,
) -> Posteriors:
    """Infer all stars of a batch.

    Args:
        model: the trained model.
        stars: the stars; labels and reddening are not looked at, the parallax only if the settings say so.
        config: the settings.
        progress: receives stars done, stars in total, and stars per second.
        seeds: (star,) each star's own, for its draws; the row number if None.
    """
    prepare_device()
    if not len(stars):
        return _nothing(model.forward.n_labels + 2)
    begun = time.perf_counter()
    blind = stars.blind(parallax=config.use_parallax)
    seeds = np.arange(len(stars), dtype=np.uint32) if seeds is None else np.asarray(seeds, np.uint32)
    grid = make_grid(model.without_error, config.n_nodes)
    total, size = len(stars), config.chunk_size
    done = []
    for start in range(0, total, size):
        rows = slice(start, min(start + size, total))
        done.append(_fit_batch(model, grid, blind.take(rows), seeds[rows], config))
        progress(rows.stop, total, rows.stop / (time.perf_counter() - begun))
    return Posteriors(**{f.name: np.concatenate([getattr(part, f.name) for part in done]) for f in fields(Posteriors)})


def _fit_batch(
    model: StarModel, grid: StartGrid, measured: Stars, seed: NDArray[np.uint32], config: "InferenceConfig"
) -> Posteriors:
    stars, _, solution = search(model, grid, measured, config)
    model = model.without_error
    best, n_modes, runner_up, delta = choose_optima(
        solution, lambda at: by_blocks(partial(hessians, model), STAR_BLOCK, stars, at)
    )
    mode = np.asarray(best.theta_log)
    at = by_blocks(partial(evaluate_mode, model), STAR_BLOCK, stars, mode)
    summary = (
        summarise(
            model,
            stars,
            best.theta_log,
            jnp.asarray(runner_up),
            jnp.asarray(n_modes > 1),
            jnp.asarray(seed),
            config.n_draws,
            config.n_more_draws,
        )
        if config.n_draws
        else _no_summary(*mode.shape)
    )
    single = n_modes == 1
    return Posteriors(
        estimate=np.asarray(to_linear(jnp.asarray(best.theta_log))),
        fisher=at.fisher,
        covariance=invert_positive(at.fisher),
        laplace=laplace_covariance(at.hessian, mode),
        chi2=at.chi2,
        ln_prior=at.ln_prior,
        objective=np.asarray(best.objective),
        decrement=np.asarray(best.decrement),
        converged=np.asarray(best.converged),
        n_iterations=np.asarray(best.n_iterations),
        hessian_positive=are_positive_definite(at.hessian),
        unbounded=at.unbounded,
        n_modes=n_modes,
        runner_up=np.where(single[:, None], np.float32(np.nan), np.asarray(to_linear(jnp.asarray(runner_up)))),
        runner_up_delta=np.where(single, np.float32(np.nan), delta),
        **{name: np.asarray(value) for name, value in summary._asdict().items()},
    )


def _no_summary(n: int, n_parameters: int) -> Summary:
    each, one = jnp.full((n, n_parameters), jnp.nan), jnp.full(n, jnp.nan)
    return Summary(each, each, each, each, each, one, one)


def _nothing(n_parameters: int) -> Posteriors:
    """Results of no stars: a part of a stream may hold none that can be used."""
    one, each = np.zeros(0, np.float32), np.zeros((0, n_parameters), np.float32)
    square = np.zeros((0, n_parameters, n_parameters))
    flag, number = one.astype(bool), one.astype(np.int32)
    return Posteriors(
        estimate=each,
        fisher=square.astype(np.float32),
        covariance=square,
        laplace=square,
        chi2=one,
        ln_prior=one,
        objective=one,
        decrement=one,
        converged=flag,
        n_iterations=number,
        hessian_positive=flag,
        unbounded=np.zeros((0, 2), np.float32),
        n_modes=number,
        runner_up=each,
        runner_up_delta=one,
        **{name: np.asarray(value) for name, value in _no_summary(0, n_parameters)._asdict().items()},
    )
