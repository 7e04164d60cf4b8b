"""Every star's posterior mode and its error, without labels: starts, solver, Fisher matrix, Hessian check (METHOD 5)."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from xpbayes.config import InferenceConfig
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.inference.solver import Solution, solve
from xpbayes.inference.starts import StartGrid, find_starts, make_grid
from xpbayes.inference.uncertainty import are_positive_definite, fisher_matrices, hessians, invert_positive, to_linear
from xpbayes.models.forward import ForwardModel
from xpbayes.models.objective import flux_chi2
from xpbayes.models.prior import LabelPrior, ln_prior
from xpbayes.stars import Stars, chunk_size


@dataclass(frozen=True)
class Inferred:
    """Results per star, NumPy.

    Attributes:
        estimate: (star, parameter) labels, E [mag], parallax [mas] at the mode.
        fisher: (star, parameter, parameter) information matrix of the same, float32.
        covariance: (star, parameter, parameter) its inverse, float64.
        chi2: (star,) of the fluxes.
        ln_prior: (star,).
        objective: (star,) L = -2 ln posterior + constant.
        decrement, converged, n_iterations: see `solver.Solution`.
        hessian_positive: (star,) the full Hessian (Eq. 20) is positive definite.
    """

    estimate: NDArray[np.float32]
    fisher: NDArray[np.float32]
    covariance: NDArray[np.float64]
    chi2: NDArray[np.float32]
    ln_prior: NDArray[np.float32]
    objective: NDArray[np.float32]
    decrement: NDArray[np.float32]
    converged: NDArray[np.bool_]
    n_iterations: NDArray[np.int32]
    hessian_positive: NDArray[np.bool_]


@jax.jit
def _at_solution(model: ForwardModel, prior: LabelPrior, stars: Stars, parameters: Any) -> tuple[Any, Any]:
    chi2 = jax.vmap(lambda star, u: flux_chi2(model, star, u))(stars, parameters)
    return chi2, jax.vmap(lambda u: ln_prior(prior, u[:-2]))(parameters)


def _solve_chunk(
    model: ForwardModel, prior: LabelPrior, grid: StartGrid, stars: Stars, config: InferenceConfig
) -> Solution:
    """Best of several starts for each star of one chunk."""
    n_starts = config.n_starts
    starts = find_starts(model, prior, grid, stars, n_starts)
    repeated = stars.take(jnp.repeat(jnp.arange(len(stars)), n_starts))
    solution = solve(model, prior, repeated, starts.reshape(-1, starts.shape[-1]), config.max_iterations)
    value = jnp.where(jnp.isfinite(solution.objective), solution.objective, jnp.inf).reshape(-1, n_starts)
    best = jnp.arange(len(stars)) * n_starts + jnp.argmin(value, axis=1)
    return jax.tree.map(lambda leaf: leaf[best], solution)


def infer(
    model: ForwardModel,
    prior: LabelPrior,
    model_error: Any | None,
    stars: Stars,
    config: InferenceConfig,
    progress: Callable[[int, int, float], None] = lambda done, total, rate: None,
) -> Inferred:
    """Infer all stars of a batch.

    Args:
        model: the trained forward model.
        prior: the label mixture.
        model_error: (channel, rank) F, or None.
        stars: the stars; labels and reddening are not looked at, the parallax only if the settings say so.
        config: the settings.
        progress: receives stars done, stars in total, and stars per second.
    """
    if not len(stars):
        return _nothing(model.n_labels + 2)
    begun = time.perf_counter()
    blind = stars.blind(parallax=config.use_parallax)
    grid = make_grid(model, prior, config.n_nodes)
    total = len(stars)
    # Whole chunks of the one size where there is more than one: a stream of parts then needs one program.
    size = config.chunk_size if total > config.chunk_size else chunk_size(total, config.chunk_size)
    chunks, solutions = [], []
    for start in range(0, total, size):
        count = min(size, total - start)
        chunk = jax.tree.map(jnp.asarray, blind.take(slice(start, start + count)))
        chunk = fold_in_model_error(chunk.padded(size), model_error)
        solution = _solve_chunk(model, prior, grid, chunk, config)
        solutions.append(jax.tree.map(lambda leaf, n=count: np.asarray(leaf[:n]), solution))
        chunks.append(_results(model, prior, chunk, solution.parameters, count))
        progress(start + count, total, (start + count) / (time.perf_counter() - begun))
    solution = jax.tree.map(lambda *leaves: np.concatenate(leaves), *solutions)
    results = {k: np.concatenate([c[k] for c in chunks]) for k in chunks[0]}

    # Stars that did not converge get a second, compacted pass with far more iterations.
    left = np.flatnonzero(~solution.converged)
    for start in range(0, len(left), 256):
        rows = left[start : start + 256]
        chunk = fold_in_model_error(jax.tree.map(jnp.asarray, blind.take(jnp.asarray(rows))).padded(256), model_error)
        begin = jnp.asarray(solution.parameters[np.pad(rows, (0, 256 - len(rows)), mode="edge")])
        again = solve(model, prior, chunk, begin, config.max_iterations_second)
        for name, value in again._asdict().items():
            if name == "n_iterations":
                solution.n_iterations[rows] += np.asarray(value[: len(rows)])
            else:
                getattr(solution, name)[rows] = np.asarray(value[: len(rows)])
        for name, values in _results(model, prior, chunk, again.parameters, len(rows)).items():
            results[name][rows] = values
    return Inferred(
        estimate=np.asarray(to_linear(jnp.asarray(solution.parameters))),
        covariance=invert_positive(results["fisher"]),
        objective=solution.objective,
        decrement=solution.decrement,
        converged=solution.converged,
        n_iterations=solution.n_iterations,
        **results,
    )


def _nothing(n_parameters: int) -> Inferred:
    """Results of no stars: a part of a stream may hold none that can be used."""
    one, square = np.zeros(0, np.float32), np.zeros((0, n_parameters, n_parameters))
    return Inferred(
        estimate=np.zeros((0, n_parameters), np.float32),
        fisher=square.astype(np.float32),
        covariance=square,
        chi2=one,
        ln_prior=one,
        objective=one,
        decrement=one,
        converged=one.astype(bool),
        n_iterations=one.astype(np.int32),
        hessian_positive=one.astype(bool),
    )


def _results(
    model: ForwardModel, prior: LabelPrior, stars: Stars, parameters: Any, count: int
) -> dict[str, NDArray[Any]]:
    """Everything that is evaluated at the solution, for the first `count` stars of a padded chunk."""
    chi2, ln_p = _at_solution(model, prior, stars, parameters)
    hessian = hessians(model, prior, stars, parameters)
    return {
        "fisher": np.asarray(fisher_matrices(model, stars, parameters)[:count]),
        "chi2": np.asarray(chi2[:count]),
        "ln_prior": np.asarray(ln_p[:count]),
        "hessian_positive": are_positive_definite(np.asarray(hessian[:count])),
    }
