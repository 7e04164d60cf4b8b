"""Every star's posterior without labels: optima, Fisher and Laplace matrices, summaries of draws (METHOD 5)."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks, chunk_size
from xpbayes.device import prepare_device, program
from xpbayes.inference import on_device
from xpbayes.inference.errors import evaluate_mode, laplace_covariance
from xpbayes.inference.fluxes_alone import FluxesAlone, without_parallax
from xpbayes.inference.linear_algebra import are_positive_definite, invert_positive
from xpbayes.inference.sampling.importance import Summary, summarise
from xpbayes.inference.search.optima import Optima, best_of, choose_optima, search
from xpbayes.inference.search.solver import HOST_CHUNK
from xpbayes.inference.search.starts import StartGrid, make_grid
from xpbayes.inference.second_source import PairPosteriors, rows_asked, unasked, weigh_hypotheses
from xpbayes.models.forward import ForwardModel
from xpbayes.models.objective import spurious_at
from xpbayes.models.pair import CompanionRidge
from xpbayes.models.star_model import StarModel
from xpbayes.models.theta import to_linear

if TYPE_CHECKING:
    from xpbayes.config import InferenceConfig

DRAWN = ("mean", "std", "median", "low", "high")
"""What draws are summarised by."""


class CurvePosteriors(NamedTuple):
    """What is known of every star's xi, all else marginalised."""

    estimate: NDArray[np.float32]  # (star,) at the mode
    error: NDArray[np.float64]  # (star,) 1-sigma error by Laplace: 1 where nothing but the prior is known
    correlation: NDArray[np.float64]  # (star, parameter) Laplace correlation with labels, E and parallax
    mean: NDArray[np.float32]  # (star,) of the posterior, as the next four; NaN if no draws were asked for
    std: NDArray[np.float32]
    median: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    runner_up: NDArray[np.float32]  # (star,) at the second optimum; NaN if there is one only


@dataclass(frozen=True)
class Posteriors:
    """Results per star, NumPy."""

    estimate: NDArray[np.float32]  # (star, parameter) labels, E [mag], parallax [mas] at the mode
    fisher: NDArray[np.float32]  # (star, parameter, parameter) information matrix of the same (Eq. 21, 22)
    covariance: NDArray[np.float64]  # (star, parameter, parameter) its inverse (Eq. 23)
    laplace: NDArray[np.float64]  # (star, parameter, parameter) covariance from the full posterior's Hessian
    chi2: NDArray[np.float32]  # (star,) of the fluxes, with the model's error in the covariance
    ln_prior: NDArray[np.float32]  # (star,)
    objective: NDArray[np.float32]  # (star,) L = -2 ln posterior + constant
    decrement: NDArray[np.float32]  # and the next two: see `solver.Solution`
    converged: NDArray[np.bool_]
    n_iterations: NDArray[np.int32]
    hessian_positive: NDArray[np.bool_]  # (star,) the full Hessian (Eq. 20) is positive definite
    n_modes: NDArray[np.int32]  # (star,) distinct optima found within `COMPETES` of the best
    runner_up: NDArray[np.float32]  # (star, parameter) the second of them; NaN if there is one only
    runner_up_delta: NDArray[np.float32]  # (star,) by how much its L is higher; NaN likewise
    # (star, 2) E [mag] and its error at the optimum as if E could be negative: unbiased where there is no dust
    unbounded: NDArray[np.float32]
    mean: NDArray[np.float32]  # (star, parameter) of the posterior, as the next four; NaN if no draws were asked for
    std: NDArray[np.float32]
    median: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    k_hat: NDArray[np.float32]  # (star,) quality of the draws behind them, as the next
    n_effective: NDArray[np.float32]
    # (star,) probability that the measured parallax is spurious; NaN without one, None if none is doubted
    spurious: NDArray[np.float32] | None = None
    curve: CurvePosteriors | None = None  # of xi, which all of these are marginal over; None if the curve does not vary
    pair: PairPosteriors | None = None  # under the hypothesis of an unresolved second source; None if not asked for
    alone: FluxesAlone | None = None  # given the fluxes alone; None where it was not asked for, or not found yet

    def take(self, rows: slice | NDArray[np.integer]) -> "Posteriors":
        """Select stars."""
        return _each(lambda leaf: leaf[rows], self)

    @property
    def optimum(self) -> NDArray[np.float32]:
        """(star, parameter) labels, xi if the curve varies, E [mag], parallax [mas] at the mode: what predicts its flux."""
        return self.with_xi("estimate")

    def with_xi(self, name: Literal["estimate", "mean", "std", "median", "low", "high", "runner_up"]) -> NDArray[Any]:
        """(star, parameter) an attribute with xi in its place after the labels, if the curve varies."""
        values: NDArray[Any] = getattr(self, name)
        return (
            values if self.curve is None else np.insert(values, values.shape[1] - 2, getattr(self.curve, name), axis=1)
        )

    def covariance_with_xi(self, name: Literal["covariance", "laplace"]) -> NDArray[np.float64]:
        """(star, parameter, parameter) one of the covariances with xi in its place, if the curve varies: by Laplace."""
        own: NDArray[np.float64] = getattr(self, name)
        if self.curve is None:
            return own
        at, error = own.shape[1] - 2, self.curve.error
        mixed = self.curve.correlation * error[:, None] * np.sqrt(np.diagonal(own, axis1=1, axis2=2))
        full = np.insert(np.insert(own, at, mixed, axis=1), at, 0.0, axis=2)
        full[:, :, at] = np.insert(mixed, at, error**2, axis=1)
        return full


class Inferred(NamedTuple):
    """Stars with their posteriors."""

    stars: Stars  # as inference saw them: with the scatter of stars of the same labels in errors of parallaxes
    found: Posteriors  # as inference found them
    published: Posteriors  # the same, calibrated or not, as a catalogue has them
    use_parallax: bool  # whether measured parallaxes were used


def _each(change: Callable[..., Any], *found: Posteriors) -> Posteriors:
    """Posteriors whose every array is made from those of others."""
    trees = [{f.name: getattr(one, f.name) for f in fields(Posteriors)} for one in found]
    return Posteriors(**jax.tree.map(change, *trees))


def fit_stars(
    model: StarModel,
    stars: Stars,
    config: "InferenceConfig",
    progress: Callable[[int, int, float], None] = lambda done, total, rate: None,
    seeds: NDArray[np.uint32] | None = None,
    ridge: CompanionRidge | None = None,
    *,
    alone: bool = False,
) -> Posteriors:
    """Infer all stars of a batch; labels and reddening are not looked at, the parallax only if the settings say so.

    Progress receives stars done, stars in total, and stars per second. Seeds are of each star's draws, its row number
    if None; `ridge` is where companions lie, for the settings' `binaries`. If what the fluxes say `alone` is wanted,
    too, it is found at once where the search is on the host.
    """
    prepare_device()
    if not len(stars):
        return _nothing(model.forward, pairs=ridge is not None)
    begun = time.perf_counter()
    blind = stars.blind(parallax=config.use_parallax)
    seeds = np.arange(len(stars), dtype=np.uint32) if seeds is None else np.asarray(seeds, np.uint32)
    grid = make_grid(model.without_error, config.n_nodes)
    total, done = len(stars), []
    # The search is one program on accelerators, if the settings do not say otherwise.
    one_program = jax.default_backend() != "cpu" if config.one_program is None else config.one_program
    parts = (
        _on_device(model, grid, blind, seeds, config)
        if one_program and ridge is None  # pairs begin from what the search leaves behind on the host
        else _on_host(model, grid, blind, seeds, config, ridge, alone=alone)
    )
    for part in parts:
        done.append(part)
        n_done = sum(len(one.estimate) for one in done)
        progress(n_done, total, n_done / (time.perf_counter() - begun))
    return _each(lambda *parts: np.concatenate(parts), *done)


def _on_host(
    model: StarModel,
    grid: StartGrid,
    blind: Stars,
    seeds: NDArray[np.uint32],
    config: "InferenceConfig",
    ridge: CompanionRidge | None,
    *,
    alone: bool,
) -> Iterator[Posteriors]:
    """Batch by batch, the search round by round."""
    bare = model.without_error
    size = config.chunk_size or HOST_CHUNK
    for start in range(0, len(blind), size):
        rows = slice(start, min(start + size, len(blind)))
        stars, _, solution, chunk = search(model, grid, blind.take(rows), config)
        at = by_blocks(partial(evaluate_mode, bare), STAR_BLOCK, stars, np.asarray(best_of(solution).theta_log))
        optima, summary = choose_optima(solution, at.hessian), None
        if config.n_draws:
            two = optima.best.theta_log, optima.runner_up, optima.n_modes > 1
            summary = summarise(bare, stars, *two, seeds[rows], config.n_draws, config.n_more_draws)
        pair = None
        if ridge is not None:
            mode, everywhere = np.asarray(optima.best.theta_log), config.binaries != "suspicious"
            asked = rows_asked(ridge, stars, mode, np.asarray(at.chi2), everywhere=everywhere)
            pair = weigh_hypotheses(bare, ridge, stars, solution, asked, config.max_iterations)
        found = _posteriors(model.forward, stars, optima, at, summary, pair)
        fluxes = without_parallax(bare, stars, optima.best.theta_log, at, chunk) if alone else None
        yield replace(found, alone=fluxes)


def _on_device(
    model: StarModel, grid: StartGrid, blind: Stars, seeds: NDArray[np.uint32], config: "InferenceConfig"
) -> Iterator[Posteriors]:
    """Chunk by chunk, the search as one program."""
    devices, bare = on_device.devices_to_use(), model.without_error
    largest = config.chunk_size or on_device.largest_chunk()
    size = chunk_size(-(-len(blind) // len(devices)), largest, min(64, largest))

    def chunk(stars: Stars, own: NDArray[np.uint32]) -> Any:
        found = on_device.find(model, grid, stars, config.n_starts, config.max_iterations)
        drawn = on_device.draw(bare, found, own, config.n_draws, config.n_more_draws) if config.n_draws else None
        return jax.tree.map(np.asarray, (_light(stars), found.optima, found.at, drawn))

    for n, found in on_device.in_chunks(blind, seeds, size, chunk):
        yield _posteriors(model.forward, *jax.tree.map(lambda leaf, n=n: leaf[:n], found))


_linear = program(to_linear)


def _posteriors(
    forward: ForwardModel,
    stars: Stars,
    optima: Optima,
    at: Any,
    summary: Summary | None,
    pair: PairPosteriors | None = None,
) -> Posteriors:
    """Everything in NumPy, as `at` is, a `ModeDiagnostics`: covariances are inverted in float64."""
    best, n_modes, runner_up, delta = optima
    mode = np.asarray(best.theta_log)
    estimate, second = (np.asarray(by_blocks(_linear, STAR_BLOCK, one)) for one in (mode, runner_up))
    if summary is None:
        spurious: Any = spurious_in(stars, np.exp(mode[:, -1:]))
        summary = _no_summary(*mode.shape)._replace(spurious=spurious)
    single = n_modes == 1
    told = best._asdict() | at._asdict() | summary._asdict()
    own: Any = {f.name: np.asarray(told[f.name]) for f in fields(Posteriors) if told.get(f.name) is not None}
    found = Posteriors(
        **own,
        estimate=estimate,
        covariance=invert_positive(at.fisher),
        laplace=laplace_covariance(at.hessian, mode),
        hessian_positive=are_positive_definite(at.hessian),
        n_modes=n_modes,
        runner_up=np.where(single[:, None], np.float32(np.nan), second),
        runner_up_delta=np.where(single, np.float32(np.nan), delta),
        pair=pair,
    )
    return found if forward.curve_variation is None else _marginal_over_xi(found, forward)


def spurious_in(stars: Stars, parallax: Float[NDArray, "star draw"]) -> NDArray[np.float32] | None:
    """(star,) mean over parallaxes [mas] of the probability that each measured one is spurious.

    NaN without a measured one, None if none is doubted.
    """
    if stars.doubt is None:
        return None
    return np.asarray(by_blocks(_spurious, STAR_BLOCK, _light(stars), np.asarray(parallax, np.float32)))


_spurious = program(jax.vmap(lambda star, of: jnp.mean(spurious_at(star, star.doubt, of))))


def _light(stars: Stars) -> Stars:
    """Without what need not travel where the fluxes are not looked at."""
    return replace(stars, flux=stars.ln_scale, whitening=stars.ln_scale)


def _marginal_over_xi(found: Posteriors, forward: ForwardModel) -> Posteriors:
    """Results for labels, E and parallax, and those for xi apart."""
    rest, at = forward.without_xi, forward.n_labels
    covariance = found.covariance[:, rest][:, :, rest]
    sigma = np.sqrt(np.diagonal(found.laplace, axis1=1, axis2=2))
    names = ("estimate", *DRAWN, "runner_up")
    return replace(
        found,
        **{name: getattr(found, name)[:, rest] for name in names},
        fisher=invert_positive(covariance).astype(np.float32),
        covariance=covariance,
        laplace=found.laplace[:, rest][:, :, rest],
        curve=CurvePosteriors(
            **{name: getattr(found, name)[:, at] for name in names},
            error=sigma[:, at],
            correlation=found.laplace[:, at][:, rest] / (sigma[:, at, None] * sigma[:, rest]),
        ),
    )


def _no_summary(n: int, n_parameters: int) -> Summary:
    each: Any = np.full((n, n_parameters), np.nan, np.float32)
    one: Any = np.full(n, np.nan, np.float32)
    return Summary(each, each, each, each, each, one, one)


def _nothing(forward: ForwardModel, *, pairs: bool) -> Posteriors:
    """Results of no stars: a part of a stream may hold none that can be used."""
    n = forward.n_star_parameters
    one: Any = np.zeros(0, np.float32)
    each, square = one.reshape(0, 1).repeat(n, axis=1), np.zeros((0, n, n))
    found = Posteriors(
        **dict.fromkeys(("chi2", "ln_prior", "objective", "decrement", "runner_up_delta", "k_hat", "n_effective"), one),
        **dict.fromkeys(("estimate", "runner_up", *DRAWN), each),
        **dict.fromkeys(("converged", "hessian_positive"), one.astype(bool)),
        **dict.fromkeys(("n_iterations", "n_modes"), one.astype(np.int32)),
        fisher=square.astype(np.float32),
        covariance=square,
        laplace=square,
        unbounded=np.zeros((0, 2), np.float32),
        pair=unasked(0, forward.n_labels + 2) if pairs else None,
    )
    return found if forward.curve_variation is None else _marginal_over_xi(found, forward)
