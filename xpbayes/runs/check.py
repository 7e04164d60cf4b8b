"""Check error bars by simulation (simulation-based calibration)."""

import logging
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from xpbayes.analysis.pages.calibration_page import FILES, CalibrationCheck, write_check
from xpbayes.checks.prior_predictive import Window, simulate, with_realistic_noise
from xpbayes.checks.sbc import chi2_shares, draw_shares, gaussian_shares, importance_shares
from xpbayes.config import InferenceConfig, SamplingConfig
from xpbayes.data.spectra import OK, Spectra
from xpbayes.data.stars import signal_to_noise
from xpbayes.errors import InputError
from xpbayes.identity import Stream, seeds_from_id
from xpbayes.inference.fit import fit_stars
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.models.theta import to_log
from xpbayes.production.meeting import stars_for
from xpbayes.production.model_file import TrainedModel
from xpbayes.runs.fetch import bundled_stars
from xpbayes.runs.inputs import PathLike, check_writable, choose_random, load_if_path, read_stars
from xpbayes.runs.sample import run_chains

log = logging.getLogger(__name__)

SIMULATED_PARALLAX_ERROR = 0.05
"""[mas] Of every second simulated star whose template has no parallax: Gaia's at 17th magnitude."""


def check(
    model: TrainedModel | PathLike,
    stars: Spectra | PathLike | None = None,
    out: PathLike | None = None,
    n_stars: int = 1000,
    n_sampled: int = 100,
    inference: InferenceConfig | None = None,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
) -> CalibrationCheck:
    """Check error bars by simulation: truths from the prior, spectra from the likelihood, and what is inferred of them.

    Args:
        model: a trained model, its folder, or the name of one that comes with the package.
        inference: settings of inference; the defaults if None.
        sampling: settings of sampling; the defaults if None.
        seed: of everything random.
        stars: real stars whose noise is borrowed: a table or its path; the bundled sample if None.
        out: folder for report.html, table and shares; nothing is written if None.
        n_stars: simulated stars.
        n_sampled: so many of them are drawn from with NUTS, too.

    Returns:
        shares of every posterior below the truth, and verdicts.

    Raises:
        InputError: the stars have other channels than the model, or none can lend its noise.

    Example:
        >>> print(xpbayes.check("model", n_stars=1000).passed)  # doctest: +SKIP
    """
    check_writable(out, model, stars, files=FILES)
    inference, sampling = inference or InferenceConfig(), sampling or SamplingConfig()
    trained = load_if_path(model)
    table = bundled_stars() if stars is None else read_stars(stars)[0]
    table = stars_for(trained, table, "the stars" if stars is None else str(stars))
    table = table.take(np.flatnonzero(table.problems() == OK))
    table = choose_random(table, min(n_stars, len(table)), seed)

    begun = time.perf_counter()
    batch = table.stars(trained.labels, doubt_parallax=inference.doubt_parallax)
    real = fit_stars(trained.star_model, batch, inference.model_copy(update={"n_draws": 0}))
    at = to_log(jnp.asarray(real.optimum))
    folded = fold_in_model_error(trained.star_model, jax.tree.map(jnp.asarray, batch.blind()), at)
    usable = np.flatnonzero(np.isfinite(real.chi2) & real.converged)
    if not len(usable):
        raise InputError(
            f"none of {len(table)} stars has a solution, so none can lend its noise; check model and stars"
        )
    templates = with_realistic_noise(folded.take(jnp.asarray(usable)), real.chi2[usable])
    n_xp = trained.channels.n_xp
    simulated = simulate(trained.star_model, templates, n_xp, n_stars, seed, SIMULATED_PARALLAX_ERROR)
    n = len(simulated.stars)
    log.info(f"simulated {n} stars with the noise of {len(usable)} real ones ({time.perf_counter() - begun:.1f} s)")
    seeds = seeds_from_id(np.arange(n), Stream.SIMULATED_DRAWS, seed)
    host = jax.tree.map(np.asarray, simulated.stars)
    inferred = fit_stars(trained.star_model.without_error, host, inference, seeds=seeds)
    log.info(f"inferred them ({time.perf_counter() - begun:.1f} s), {int(inferred.converged.sum())} converged")
    by_importance, k_hat = importance_shares(
        trained.star_model,
        simulated,
        inferred.optimum,
        inferred.with_xi("runner_up"),
        seeds,
        inference.n_draws or 256,
        n_xp,
        inference.n_more_draws,
    )
    shares = {
        "mode + Fisher": gaussian_shares(simulated.truth, inferred.optimum, inferred.covariance_with_xi("covariance")),
        "Laplace": gaussian_shares(simulated.truth, inferred.optimum, inferred.covariance_with_xi("laplace")),
        "importance": by_importance,
    }
    settled = np.zeros(n, bool)
    if n_sampled:
        few = np.arange(min(n_sampled, n))
        draws, diagnostics = run_chains(
            trained, simulated.stars.take(jnp.asarray(few)), inferred.take(few), seeds[few], inference, sampling
        )
        settled[few] = diagnostics.settled
        flat = draws.theta.reshape(len(few), -1, draws.theta.shape[-1])
        window = Window(simulated.window.level[few], simulated.window.colour[few])
        by_chains = np.full(simulated.truth.shape, np.nan)
        by_chains[few] = draw_shares(trained.forward, window, simulated.truth[few], flat, n_xp)
        shares["NUTS"] = by_chains
    magnitude = table.column("phot_g_mean_mag")[usable][simulated.template]
    result = CalibrationCheck(
        labels=trained.labels,
        truth=simulated.truth,
        estimate=np.asarray(inferred.optimum, np.float64),
        mean=np.asarray(inferred.with_xi("mean"), np.float64),
        error=np.asarray(inferred.with_xi("std"), np.float64),
        unbounded=np.asarray(inferred.unbounded, np.float64),
        shares=shares,
        chi2_shares=chi2_shares(simulated),
        chi2=np.asarray(inferred.chi2, np.float64),
        n_obs=(np.diagonal(host.whitening, axis1=1, axis2=2) > 0).sum(axis=1),
        magnitude=magnitude,
        signal_to_noise=signal_to_noise(host),
        k_hat=k_hat,
        settled=settled,
        seconds=time.perf_counter() - begun,
    )
    if out is not None:
        for path in write_check(result, trained, Path(out)):
            log.info(f"wrote {path}")
    return result
