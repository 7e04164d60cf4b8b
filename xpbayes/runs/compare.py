"""Compare mode + Fisher, Laplace and importance with NUTS for the same real stars."""

import logging
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from xpbayes.analysis.pages.posterior_comparison import FILES, Estimate, PosteriorComparison, write_comparison
from xpbayes.config import InferenceConfig, SamplingConfig
from xpbayes.data.spectra import Spectra
from xpbayes.data.stars import signal_to_noise
from xpbayes.errors import InputError
from xpbayes.production.model_file import TrainedModel
from xpbayes.runs.inputs import PathLike, check_writable, load_if_path
from xpbayes.runs.sample import draw_posteriors, pick_stars

log = logging.getLogger(__name__)


def compare(  # noqa: PLR0913 - what the verb of the command line can say
    model: TrainedModel | PathLike,
    stars: Spectra | PathLike,
    out: PathLike | None = None,
    source_ids: Sequence[int] = (),
    n_random: int | None = None,
    inference: InferenceConfig | None = None,
    sampling: SamplingConfig | None = None,
    only: str = "all",
    seed: int = 0,
) -> PosteriorComparison:
    """Compare mode + Fisher, Laplace and importance with NUTS for the same real stars.

    Args:
        model: a trained model, its folder, or the name of one that comes with the package.
        inference: settings of inference; the defaults if None.
        sampling: settings of sampling; the defaults if None.
        seed: of everything random.
        stars: a star table, its path, or a folder of star tables.
        out: folder for report.html and stars.csv; nothing is written if None.
        source_ids: which stars; or
        n_random: how many at random.
        only: 'all', or 'training', 'kept-aside' or 'held-out', a side of the model's own split.

    Raises:
        InputError: a star is not there or cannot be used, model and stars do not fit together, no importance draws
            are asked for, or no star's chains have settled.

    Example:
        >>> comparison = xpbayes.compare("model", "stars.parquet", "compare", n_random=50)  # doctest: +SKIP
    """
    inference, sampling = inference or InferenceConfig(), sampling or SamplingConfig()
    if not inference.n_draws:
        raise InputError("a comparison needs importance draws; set n_draws of [inference] to 256 or so")
    check_writable(out, model, stars, files=FILES)
    trained = load_if_path(model)
    table = pick_stars(trained, stars, source_ids, n_random, only, seed)
    found = draw_posteriors(trained, table, inference, sampling)
    if not found.diagnostics.settled.any():
        raise InputError(
            f"the chains of none of {len(table)} stars have settled, so there is nothing to compare with; set draws of "
            f"[sampling] above {sampling.draws}"
        )
    inferred = found.inferred
    flat = found.draws.theta.reshape(len(table), -1, found.draws.theta.shape[-1])
    exact = flat.astype(np.float64)
    estimate = np.asarray(inferred.optimum, np.float64)
    covariance = {
        "mode + Fisher": inferred.covariance_with_xi("covariance"),
        "Laplace": inferred.covariance_with_xi("laplace"),
        "NUTS": np.stack([np.cov(one, rowvar=False) for one in exact]),
    }
    sigma = {m: np.sqrt(np.diagonal(c, axis1=1, axis2=2)) for m, c in covariance.items()}
    result = PosteriorComparison(
        labels=trained.labels,
        source_id=table.source_id,
        methods={
            "mode + Fisher": Estimate(estimate, sigma["mode + Fisher"]),
            "Laplace": Estimate(estimate, sigma["Laplace"]),
            "importance": Estimate(
                np.asarray(inferred.with_xi("mean"), np.float64), np.asarray(inferred.with_xi("std"), np.float64)
            ),
        },
        nuts=Estimate(exact.mean(axis=1), exact.std(axis=1)),
        covariance=covariance,
        draws=flat,
        settled=found.diagnostics.settled,
        k_hat=np.asarray(inferred.k_hat, np.float64),
        n_modes=inferred.n_modes.astype(np.int64),
        signal_to_noise=signal_to_noise(jax.tree.map(np.asarray, found.stars)),
        seconds=found.seconds,
    )
    if out is not None:
        for path in write_comparison(result, trained, Path(out)):
            log.info(f"wrote {path}")
    return result
