"""The runs that look closely at posteriors, each readable from top to bottom: sample, compare, check.

As in `pipeline`, paths or objects go in; objects come out, and files too where an output is named.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.hashing import uniform_from_id
from xpbayes.config import InferenceConfig, SamplingConfig, TrainingConfig
from xpbayes.data.spectra import OK, Spectra
from xpbayes.data.stars import Stars
from xpbayes.errors import InputError
from xpbayes.inference.errors import to_sampled
from xpbayes.inference.infer import Inferred, infer
from xpbayes.inference.model_error import fold_in_model_error, refold_model_error
from xpbayes.inference.sampling.nuts import Diagnostics, Draws, Schedule, sample_inferred
from xpbayes.inference.search.solver import solve
from xpbayes.inference.search.starts import make_grid
from xpbayes.pipeline import (
    DRAW_STREAM,
    PathLike,
    Say,
    _check_writable,
    _pick_stars,
    _require_labels,
    _table,
    bundled_stars,
    choose_stars,
    quiet,
    versions,
)
from xpbayes.production.model_file import TrainedModel, load_model
from xpbayes.production.weight_file import save_weight_factor
from xpbayes.training.learn import initial_parameters
from xpbayes.training.network_uncertainty import NetworkCovariance, factor_weights, weight_covariance, weight_precision
from xpbayes.training.selection import training_cuts

if TYPE_CHECKING:
    import xarray as xr

    from xpbayes.analysis.pages.calibration_page import CalibrationCheck
    from xpbayes.analysis.pages.posterior_comparison import PosteriorComparison

SIMULATED_PARALLAX_ERROR = 0.05
"""[mas] Of every second simulated star whose template has no parallax: Gaia's at 17th magnitude."""
SOLVER_ITERATIONS = 60
"""Of training stars, from their measured values."""
MAX_STARS_WITH_CHANNELS = 64
"""Up to so many stars, a file of draws also holds likelihood and predicted flux of every channel: 1 MB a star."""


@dataclass(frozen=True)
class Sampled:
    """Stars with everything that is known of their posteriors.

    Attributes:
        model: the trained model.
        table: the stars.
        stars: the same as a batch, model error folded in.
        seeds: (star,) each star's own.
        inferred: modes and cheap summaries.
        draws, diagnostics: of the Markov chains.
        seconds: of the inference, and of the sampling.
    """

    model: TrainedModel
    table: Spectra
    stars: Stars
    seeds: NDArray[np.uint32]
    inferred: Inferred
    draws: Draws
    diagnostics: Diagnostics
    seconds: tuple[float, float]


def choose_random(table: Spectra, n: int, seed: int) -> Spectra:
    """Choose stars at random, in the table's order; which ones depends on their source_id and the seed alone.

    Raises:
        InputError: there are fewer.
    """
    if n > len(table):
        raise InputError(f"{n} stars were asked for, {len(table)} can be used; ask for fewer")
    rank = np.argsort(uniform_from_id(table.source_id, 1000 + seed), kind="stable")[:n]
    return table.take(np.sort(rank))


def pick_stars(
    model: TrainedModel,
    stars: Spectra | PathLike,
    source_ids: Sequence[int],
    n_random: int | None,
    only: str,
    seed: int,
    say: Say,
) -> Spectra:
    """Usable stars by source_id, or at random.

    Raises:
        InputError: neither or both were asked for, a star is not there or cannot be used, or the channels differ.
    """
    if bool(source_ids) == (n_random is not None):
        raise InputError("name stars with --source-id, or ask for some with --random N; one of the two")
    if source_ids:
        table, where = _pick_stars(stars, list(dict.fromkeys(source_ids)), say)
    else:
        table, source = _table(stars)
        where = str(source["path"])
    model.channels.require_same(table.channels, "the model", where)
    status = table.problems()
    if source_ids and (status != OK).any():
        bad = np.flatnonzero(status != OK)
        raise InputError(
            f"{where}: {len(bad)} of {len(table)} stars cannot be used (first: source_id {table.source_id[bad[0]]}, "
            f"{status[bad[0]]}); leave them out"
        )
    usable = choose_stars(model, table.take(np.flatnonzero(status == OK)), only)
    if source_ids and not len(usable):
        raise InputError(f"{where}: none of the stars is on the {only} side of the model's split")
    return usable if n_random is None else choose_random(usable, n_random, seed)


def draw_posteriors(
    model: TrainedModel, table: Spectra, inference: InferenceConfig, sampling: SamplingConfig, say: Say
) -> Sampled:
    """Solve stars, then draw from their posteriors.

    Args:
        model: the trained model.
        table: stars that can be used.
        inference, sampling: settings.
        say: receives progress, one line at a time.
    """
    begun = time.perf_counter()
    batch = table.stars(model.labels)
    seeds = (uniform_from_id(table.source_id, DRAW_STREAM) * 2.0**32).astype(np.uint32)
    inferred = infer(model.forward, model.prior, model.model_error, batch, inference, seeds=seeds)
    solved = time.perf_counter()
    say(f"solved {len(table)} stars, {int(inferred.converged.sum())} converged")
    blind = jax.tree.map(jnp.asarray, batch.blind(parallax=inference.use_parallax))
    at = to_sampled(jnp.asarray(inferred.estimate))
    folded = refold_model_error(model.forward, blind, model.model_error, at)

    def progress(done: int, total: int, rate: float) -> None:
        say(f"{done} of {total} stars have settled ({rate:.1f} stars/s)")

    draws, diagnostics = sample_inferred(
        model.forward,
        model.prior,
        make_grid(model.forward, model.prior, inference.n_nodes),
        folded,
        inferred.estimate,
        inferred.runner_up,
        seeds,
        Schedule(sampling.chains, sampling.warmup, sampling.draws, sampling.max_rounds),
        progress,
    )
    seconds = (solved - begun, time.perf_counter() - solved)
    return Sampled(model, table, folded, seeds, inferred, draws, diagnostics, seconds)


def sample(
    model: TrainedModel | PathLike,
    stars: Spectra | PathLike,
    out: PathLike | None = None,
    source_ids: Sequence[int] = (),
    n_random: int | None = None,
    inference: InferenceConfig | None = None,
    sampling: SamplingConfig | None = None,
    only: str = "all",
    channels: bool | None = None,
    seed: int = 0,
    say: Say = quiet,
) -> "dict[str, xr.Dataset]":
    """Draw from the posteriors of single stars with NUTS.

    Args:
        model: a trained model or its folder.
        stars: a star table, its path, a folder of star tables, or (with source_ids) a survey.toml.
        out: netCDF file for ArviZ; nothing is written if None.
        source_ids: which stars; or
        n_random: how many at random.
        inference, sampling: settings; the defaults if None.
        only: 'all', or 'held-out' / 'training' for that side of the model's own split.
        channels: also likelihood and predictions for every channel; None: up to 64 stars.
        seed: of the random choice of stars. A star's draws depend on its source_id alone.
        say: receives progress, one line at a time.

    Returns:
        ArviZ's groups by name; `analysis.posterior_file.to_arviz` makes one object of them.

    Raises:
        InputError: a star is not there or cannot be used, or model and stars do not fit together.

    Example:
        >>> groups = xpbayes.sample("model", "stars.parquet", "posterior.nc", n_random=20)  # doctest: +SKIP
    """
    from xpbayes.analysis.posterior_file import posterior_groups, write_posterior

    inference, sampling = inference or InferenceConfig(), sampling or SamplingConfig()
    trained = load_model(model) if not isinstance(model, TrainedModel) else model
    _check_writable(out)
    table = pick_stars(trained, stars, source_ids, n_random, only, seed, say)
    found = draw_posteriors(trained, table, inference, sampling, say)
    about = {
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "inference_library": "xpbayes, numpyro",
        "model": str(trained.card.get("arrays_checksum")),
        "parallax_used": str(inference.use_parallax),
        "sampling_time": f"{found.seconds[1]:.1f}",
        "versions": ", ".join(f"{k} {v}" for k, v in versions().items()),
    }
    groups = posterior_groups(
        trained,
        table.source_id,
        found.stars,
        found.draws,
        found.diagnostics,
        found.seeds,
        about,
        len(table) <= MAX_STARS_WITH_CHANNELS if channels is None else channels,
    )
    n_left = int((~found.diagnostics.settled).sum())
    if n_left:
        first = table.source_id[~found.diagnostics.settled][0]
        say(f"{n_left} of {len(table)} stars have not settled (first: source_id {first}); see the group diagnostics")
    if out is not None:
        say(f"wrote {write_posterior(groups, Path(out))}")
    return groups


def compare(
    model: TrainedModel | PathLike,
    stars: Spectra | PathLike,
    out: PathLike | None = None,
    source_ids: Sequence[int] = (),
    n_random: int | None = None,
    inference: InferenceConfig | None = None,
    sampling: SamplingConfig | None = None,
    only: str = "all",
    seed: int = 0,
    say: Say = quiet,
) -> "PosteriorComparison":
    """Compare mode + Fisher, Laplace and importance with NUTS for the same real stars.

    Args:
        model: a trained model or its folder.
        stars: a star table, its path, or a folder of star tables.
        out: folder for report.html and stars.csv; nothing is written if None.
        source_ids: which stars; or
        n_random: how many at random.
        inference, sampling: settings; the defaults if None.
        only: 'all', or 'held-out' / 'training' for that side of the model's own split.
        seed: of the random choice of stars.
        say: receives progress, one line at a time.

    Raises:
        InputError: a star is not there or cannot be used, model and stars do not fit together, no importance draws
            are asked for, or no star's chains have settled.

    Example:
        >>> comparison = xpbayes.compare("model", "stars.parquet", "compare", n_random=50)  # doctest: +SKIP
    """
    from xpbayes.analysis.pages.posterior_comparison import Estimate, PosteriorComparison, write_comparison

    inference, sampling = inference or InferenceConfig(), sampling or SamplingConfig()
    if not inference.n_draws:
        raise InputError("a comparison needs importance draws; set n_draws of [inference] to 256 or so")
    trained = load_model(model) if not isinstance(model, TrainedModel) else model
    _check_writable(None if out is None else Path(out) / "report.html")
    table = pick_stars(trained, stars, source_ids, n_random, only, seed, say)
    found = draw_posteriors(trained, table, inference, sampling, say)
    if not found.diagnostics.settled.any():
        raise InputError(
            f"the chains of none of {len(table)} stars have settled, so there is nothing to compare with; set draws of "
            f"[sampling] above {sampling.draws}"
        )
    inferred = found.inferred
    flat = found.draws.parameters.reshape(len(table), -1, found.draws.parameters.shape[-1])
    exact = flat.astype(np.float64)
    estimate = np.asarray(inferred.estimate, np.float64)
    covariance = {
        "mode + Fisher": inferred.covariance,
        "Laplace": inferred.laplace,
        "NUTS": np.stack([np.cov(one, rowvar=False) for one in exact]),
    }
    sigma = {m: np.sqrt(np.diagonal(c, axis1=1, axis2=2)) for m, c in covariance.items()}
    result = PosteriorComparison(
        labels=trained.labels,
        source_id=table.source_id,
        methods={
            "mode + Fisher": Estimate(estimate, sigma["mode + Fisher"]),
            "Laplace": Estimate(estimate, sigma["Laplace"]),
            "importance": Estimate(np.asarray(inferred.mean, np.float64), np.asarray(inferred.std, np.float64)),
        },
        nuts=Estimate(exact.mean(axis=1), exact.std(axis=1)),
        covariance=covariance,
        draws=flat,
        settled=found.diagnostics.settled,
        k_hat=np.asarray(inferred.k_hat, np.float64),
        n_modes=inferred.n_modes.astype(np.int64),
        signal_to_noise=_signal_to_noise(jax.tree.map(np.asarray, found.stars)),
        seconds=found.seconds,
    )
    if out is not None:
        for path in write_comparison(result, trained, Path(out)):
            say(f"wrote {path}")
    return result


def check(
    model: TrainedModel | PathLike,
    stars: Spectra | PathLike | None = None,
    out: PathLike | None = None,
    n_stars: int = 1000,
    n_sampled: int = 100,
    inference: InferenceConfig | None = None,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    say: Say = quiet,
) -> "CalibrationCheck":
    """Check error bars by simulation: truths from the prior, spectra from the likelihood, and what is inferred of them.

    Args:
        model: a trained model or its folder.
        stars: real stars whose noise is borrowed: a table or its path; the bundled sample if None.
        out: folder for report.html, table and shares; nothing is written if None.
        n_stars: simulated stars.
        n_sampled: so many of them are drawn from with NUTS, too.
        inference, sampling: settings; the defaults if None.
        seed: of all random numbers.
        say: receives progress, one line at a time.

    Returns:
        shares of every posterior below the truth, and verdicts.

    Raises:
        InputError: the stars have other channels than the model, or none can lend its noise.

    Example:
        >>> print(xpbayes.check("model", n_stars=1000).passed)  # doctest: +SKIP
    """
    from xpbayes.analysis.pages.calibration_page import CalibrationCheck, write_check
    from xpbayes.checks.prior_predictive import Window, simulate, with_realistic_noise
    from xpbayes.checks.sbc import chi2_shares, draw_shares, gaussian_shares, importance_shares

    inference, sampling = inference or InferenceConfig(), sampling or SamplingConfig()
    trained = load_model(model) if not isinstance(model, TrainedModel) else model
    _check_writable(None if out is None else Path(out) / "report.html")
    table = bundled_stars() if stars is None else _table(stars)[0]
    trained.channels.require_same(table.channels, "the model", "the stars" if stars is None else str(stars))
    table = table.take(np.flatnonzero(table.problems() == OK))
    table = choose_random(table, min(n_stars, len(table)), seed)

    begun = time.perf_counter()
    batch = table.stars(trained.labels)
    real = infer(
        trained.forward, trained.prior, trained.model_error, batch, inference.model_copy(update={"n_draws": 0})
    )
    at = to_sampled(jnp.asarray(real.estimate))
    folded = refold_model_error(trained.forward, jax.tree.map(jnp.asarray, batch.blind()), trained.model_error, at)
    usable = np.flatnonzero(np.isfinite(real.chi2) & real.converged)
    if not len(usable):
        raise InputError(
            f"none of {len(table)} stars has a solution, so none can lend its noise; check model and stars"
        )
    templates = with_realistic_noise(folded.take(jnp.asarray(usable)), real.chi2[usable])
    n_xp = trained.channels.n_xp
    simulated = simulate(trained.forward, trained.prior, templates, n_xp, n_stars, seed, SIMULATED_PARALLAX_ERROR)
    n = len(simulated.stars)
    say(f"simulated {n} stars with the noise of {len(usable)} real ones ({time.perf_counter() - begun:.1f} s)")
    seeds = (uniform_from_id(np.arange(n), seed + 31) * 2.0**32).astype(np.uint32)
    host = jax.tree.map(np.asarray, simulated.stars)
    inferred = infer(trained.forward, trained.prior, None, host, inference, seeds=seeds)
    say(f"inferred them ({time.perf_counter() - begun:.1f} s), {int(inferred.converged.sum())} converged")
    by_importance, k_hat = importance_shares(
        trained.forward,
        trained.prior,
        simulated,
        inferred.estimate,
        inferred.runner_up,
        seeds,
        inference.n_draws or 256,
        n_xp,
        inference.n_more_draws,
    )
    shares = {
        "mode + Fisher": gaussian_shares(simulated.truth, inferred.estimate, inferred.covariance),
        "Laplace": gaussian_shares(simulated.truth, inferred.estimate, inferred.laplace),
        "importance": by_importance,
    }
    settled = np.zeros(n, bool)
    if n_sampled:
        few = np.arange(min(n_sampled, n))
        draws, diagnostics = sample_inferred(
            trained.forward,
            trained.prior,
            make_grid(trained.forward, trained.prior, inference.n_nodes),
            simulated.stars.take(jnp.asarray(few)),
            inferred.estimate[few],
            inferred.runner_up[few],
            seeds[few],
            Schedule(sampling.chains, sampling.warmup, sampling.draws, sampling.max_rounds),
            lambda done, total, rate: say(f"NUTS: {done} of {total} stars have settled ({rate:.1f} stars/s)"),
        )
        settled[few] = diagnostics.settled
        flat = draws.parameters.reshape(len(few), -1, draws.parameters.shape[-1])
        window = Window(simulated.window.level[few], simulated.window.colour[few])
        by_chains = np.full(simulated.truth.shape, np.nan)
        by_chains[few] = draw_shares(trained.forward, window, simulated.truth[few], flat, n_xp)
        shares["NUTS"] = by_chains
    magnitude = table.column("phot_g_mean_mag")[usable][simulated.template]
    result = CalibrationCheck(
        labels=trained.labels,
        truth=simulated.truth,
        estimate=np.asarray(inferred.estimate, np.float64),
        mean=np.asarray(inferred.mean, np.float64),
        error=np.asarray(inferred.std, np.float64),
        unbounded=np.asarray(inferred.unbounded, np.float64),
        shares=shares,
        chi2_shares=chi2_shares(simulated),
        chi2=np.asarray(inferred.chi2, np.float64),
        n_obs=(np.diagonal(host.whitening, axis1=1, axis2=2) > 0).sum(axis=1),
        magnitude=magnitude,
        signal_to_noise=_signal_to_noise(host),
        k_hat=k_hat,
        settled=settled,
        seconds=time.perf_counter() - begun,
    )
    if out is not None:
        for path in write_check(result, trained, Path(out)):
            say(f"wrote {path}")
    return result


@dataclass(frozen=True)
class ModelUncertainty:
    """How well training has determined a model, and what that adds to the errors of stars like its own.

    Attributes:
        labels: names of the model's labels.
        factor: of the covariance of everything that was trained.
        estimate: (star, parameter) optima of stars, without their labels.
        covariance: (star, parameter, parameter) of these, by Laplace.
        added: (star, parameter, parameter) what the model's uncertainty adds.
        n_training: how many stars the model was trained on.
    """

    labels: tuple[str, ...]
    factor: NetworkCovariance
    estimate: NDArray[np.float64]
    covariance: NDArray[np.float64]
    added: NDArray[np.float64]
    n_training: int

    def ratio(self) -> NDArray[np.float64]:
        """(star, parameter) added error over the star's own, NaN where that is not known."""
        own = np.diagonal(self.covariance, axis1=1, axis2=2)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.sqrt(np.diagonal(self.added, axis1=1, axis2=2) / np.where(own > 0, own, np.nan))


def uncertainty(
    model: TrainedModel | PathLike,
    stars: Spectra | PathLike,
    out: PathLike | None = None,
    n_stars: int = 2000,
    n_response: int = 400,
    seed: int = 0,
    say: Say = quiet,
) -> ModelUncertainty:
    """Work out how well the training stars determine the model, and what is unknown of it adds to stars' errors.

    Args:
        model: a trained model or its folder.
        stars: the star table that it was trained on, or its path.
        out: folder of the model, which receives weight_factor.safetensors; nothing is written if None.
        n_stars: so many of its training stars, at random; the others are taken to be like them.
        n_response: so many of these show in which directions of the model stars move.
        seed: of the choice.
        say: receives progress, one line at a time.

    Raises:
        InputError: the table has no labels, other channels, or none of the model's training stars.

    Example:
        >>> found = xpbayes.uncertainty("model", "stars.parquet", out="model")  # doctest: +SKIP
    """
    trained = load_model(model) if not isinstance(model, TrainedModel) else model
    table, source = _table(stars)
    where = str(source["path"])
    trained.channels.require_same(table.channels, "the model", where)
    config = TrainingConfig.model_validate(trained.card["settings"])
    _require_labels(table.columns, trained.labels, where)
    chosen = choose_stars(
        trained, training_cuts(table, trained.labels, config.teff_max, config.min_channels), "training"
    )
    if not len(chosen):
        raise InputError(f"{where}: none of its stars is on the training side of the model's split; name its own stars")
    chosen = choose_random(chosen, min(n_stars, len(chosen)), seed)
    begun = time.perf_counter()

    floor = config.floor_for(len(trained.labels))
    measured = jax.tree.map(
        jnp.asarray, chosen.stars(trained.labels, spectroscopic_parallax=True, label_error_floor=floor)
    )
    folded = fold_in_model_error(measured, trained.model_error)
    known = solve(trained.forward, None, folded, initial_parameters(measured), SOLVER_ITERATIONS)
    folded = refold_model_error(trained.forward, measured, trained.model_error, known.parameters)
    n_training = int(trained.card["n_training"])
    say(f"solved {len(chosen)} of {n_training} training stars ({time.perf_counter() - begun:.1f} s)")
    precision = weight_precision(trained.forward, folded, known.parameters, n_training)
    say(f"information on {len(precision)} trained numbers ({time.perf_counter() - begun:.1f} s)")

    few = choose_random(chosen, min(n_response, len(chosen)), seed + 1)
    batch = few.stars(trained.labels)
    inference = InferenceConfig(n_draws=0)
    found = infer(trained.forward, trained.prior, trained.model_error, batch, inference)
    at = to_sampled(jnp.asarray(found.estimate))
    seen = refold_model_error(trained.forward, jax.tree.map(jnp.asarray, batch.blind()), trained.model_error, at)
    factor = factor_weights(trained.forward, trained.prior, precision, seen, at)._replace(n_stars=len(chosen))
    added = np.asarray(
        weight_covariance(trained.forward, trained.prior, jnp.asarray(factor.columns), seen, at), np.float64
    )
    say(
        f"{factor.columns.shape[1]} directions carry {factor.captured:.1%} of what is added "
        f"({time.perf_counter() - begun:.1f} s)"
    )
    if out is not None:
        say(f"wrote {save_weight_factor(factor, out, str(trained.card.get('arrays_checksum')))}")
    return ModelUncertainty(
        labels=trained.labels,
        factor=factor,
        estimate=np.asarray(found.estimate, np.float64),
        covariance=np.asarray(found.laplace, np.float64),
        added=added,
        n_training=n_training,
    )


def _signal_to_noise(stars: Stars) -> NDArray[np.float64]:
    """(star,) median over the measured channels of flux over error, the model's own error included."""
    precision = np.sum(np.asarray(stars.whitening, np.float64) ** 2, axis=1)
    ratio = np.where(precision > 0, np.asarray(stars.flux) * np.sqrt(precision), np.nan)
    return np.nanmedian(ratio, axis=1)
