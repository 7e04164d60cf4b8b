"""Draw from the posteriors of single stars with NUTS."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from xpbayes.analysis.posterior_file import posterior_groups, write_posterior
from xpbayes.config import InferenceConfig, SamplingConfig
from xpbayes.data.spectra import OK, Spectra
from xpbayes.data.stars import Stars
from xpbayes.errors import InputError
from xpbayes.identity import Stream, seeds_from_id
from xpbayes.inference.fit import Posteriors, fit_stars
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.inference.sampling.convergence import Diagnostics
from xpbayes.inference.sampling.nuts import Draws, Schedule, sample_inferred
from xpbayes.models.theta import to_log
from xpbayes.production.meeting import stars_for
from xpbayes.production.model_file import TrainedModel
from xpbayes.runs.inputs import (
    PathLike,
    check_writable,
    choose_random,
    choose_stars,
    created,
    find_stars,
    load_if_path,
    read_stars,
    versions,
)

log = logging.getLogger(__name__)

MAX_STARS_WITH_CHANNELS = 64
"""Up to so many stars, a file of draws also holds likelihood and predicted flux of every channel: 1 MB a star."""


def sample(  # noqa: PLR0913 - what the verb of the command line can say
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
) -> dict[str, xr.Dataset]:
    """Draw from the posteriors of single stars with NUTS.

    Args:
        model: a trained model, its folder, or the name of one that comes with the package.
        inference: settings of inference; the defaults if None.
        sampling: settings of sampling; the defaults if None.
        stars: a star table, its path, a folder of star tables, or (with source_ids) a survey.toml.
        out: netCDF file for ArviZ; nothing is written if None.
        source_ids: which stars; or
        n_random: how many at random.
        only: 'all', or 'training', 'kept-aside' or 'held-out', a side of the model's own split.
        channels: also likelihood and predictions for every channel; None: up to 64 stars.
        seed: of the random choice of stars. A star's draws depend on its source_id alone.

    Returns:
        ArviZ's groups by name; `analysis.posterior_file.to_arviz` makes one object of them.

    Raises:
        InputError: a star is not there or cannot be used, or model and stars do not fit together.

    Example:
        >>> groups = xpbayes.sample("model", "stars.parquet", "posterior.nc", n_random=20)  # doctest: +SKIP
    """
    inference, sampling = inference or InferenceConfig(), sampling or SamplingConfig()
    check_writable(out, model, stars)
    trained = load_if_path(model)
    table = pick_stars(trained, stars, source_ids, n_random, only, seed)
    found = draw_posteriors(trained, table, inference, sampling)
    about = {
        "created_at": created(),
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
        log.info(
            f"{n_left} of {len(table)} stars have not settled (first: source_id {first}); see the group diagnostics"
        )
    if out is not None:
        log.info(f"wrote {write_posterior(groups, Path(out))}")
    return groups


@dataclass(frozen=True)
class Sampled:
    """Stars with everything that is known of their posteriors."""

    stars: Stars  # model error folded in
    seeds: NDArray[np.uint32]  # (star,) each star's own
    inferred: Posteriors  # modes and cheap summaries
    draws: Draws  # of the Markov chains
    diagnostics: Diagnostics
    seconds: tuple[float, float]  # of the inference, and of the sampling


def pick_stars(
    model: TrainedModel,
    stars: Spectra | PathLike,
    source_ids: Sequence[int],
    n_random: int | None,
    only: str,
    seed: int,
) -> Spectra:
    """Usable stars by source_id, or at random.

    InputError if neither or both were asked for, a star is not there or cannot be used, or the channels differ.
    """
    source_ids = list(source_ids)  # an array has no truth
    if isinstance(stars, Spectra):
        read_stars(stars)  # refused if there are none
    if bool(source_ids) == (n_random is not None):
        raise InputError("name stars with --source-id, or ask for some with --random N; one of the two")
    if source_ids:
        table, where = find_stars(stars, source_ids, model.channels)
    else:
        table, source = read_stars(stars)
        where = str(source["path"])
    table = stars_for(model, table, where)
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
    model: TrainedModel, table: Spectra, inference: InferenceConfig, sampling: SamplingConfig
) -> Sampled:
    """Solve stars that can be used, then draw from their posteriors."""
    begun = time.perf_counter()
    batch = table.stars(model.labels, doubt_parallax=inference.doubt_parallax)
    seeds = seeds_from_id(table.source_id, Stream.DRAWS)
    inferred = fit_stars(model.star_model, batch, inference, seeds=seeds)
    solved = time.perf_counter()
    log.info(f"solved {len(table)} stars, {int(inferred.converged.sum())} converged")
    blind = jax.tree.map(jnp.asarray, batch.blind(parallax=inference.use_parallax))
    folded = fold_in_model_error(model.star_model, blind, to_log(jnp.asarray(inferred.optimum)))
    draws, diagnostics = run_chains(model, folded, inferred, seeds, inference, sampling)
    seconds = (solved - begun, time.perf_counter() - solved)
    return Sampled(folded, seeds, inferred, draws, diagnostics, seconds)


def run_chains(
    model: TrainedModel,
    stars: Stars,
    found: Posteriors,
    seeds: NDArray[np.uint32],
    inference: InferenceConfig,
    sampling: SamplingConfig,
) -> tuple[Draws, Diagnostics]:
    """Draw from the posteriors of stars, model error folded in, whose optima are found, by each star's own seed."""

    def progress(done: int, total: int, rate: float) -> None:
        log.info(f"{done} of {total} stars have settled ({rate:.1f} stars/s)")

    schedule = Schedule(sampling.chains, sampling.warmup, sampling.draws, sampling.max_rounds)
    at = found.optimum, found.with_xi("runner_up")
    return sample_inferred(model.star_model, inference.n_nodes, stars, *at, seeds, schedule, progress)
