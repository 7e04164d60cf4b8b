"""Work out how well the training stars determine a model."""

import logging
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from xpbayes.analysis.pages.model_uncertainty import ModelUncertainty
from xpbayes.config import InferenceConfig, TrainingConfig
from xpbayes.data.spectra import Spectra
from xpbayes.errors import InputError
from xpbayes.identity import Side
from xpbayes.inference.fit import fit_stars
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.inference.search.solver import solve
from xpbayes.models.star_model import StarModel
from xpbayes.models.theta import to_log
from xpbayes.production.beside import WEIGHT_FACTOR, save_weight_factor
from xpbayes.production.meeting import stars_for
from xpbayes.production.model_file import TrainedModel
from xpbayes.runs.inputs import (
    PathLike,
    check_writable,
    choose_random,
    choose_stars,
    load_if_path,
    read_stars,
    require_labels,
)
from xpbayes.training.learn import initial_theta
from xpbayes.training.network_uncertainty import factor_weights, weight_covariance, weight_precision
from xpbayes.training.training_set import training_cuts

log = logging.getLogger(__name__)

SOLVER_ITERATIONS = 60
"""Of training stars, from their measured values."""


def uncertainty(
    model: TrainedModel | PathLike,
    stars: Spectra | PathLike,
    out: PathLike | None = None,
    n_stars: int = 2000,
    n_response: int = 400,
    seed: int = 0,
) -> ModelUncertainty:
    """Work out how well the training stars determine the model, and what is unknown of it adds to stars' errors.

    Args:
        model: a trained model, its folder, or the name of one that comes with the package.
        seed: of everything random.
        stars: the star table that it was trained on, or its path.
        out: folder of the model, which receives weight_factor.safetensors; nothing is written if None.
        n_stars: so many of its training stars, at random; the others are taken to be like them.
        n_response: so many of these show in which directions of the model stars move.

    Raises:
        InputError: the table has no labels, other channels, or none of the model's training stars.

    Example:
        >>> found = xpbayes.uncertainty("model", "stars.parquet", out="model")  # doctest: +SKIP
    """
    check_writable(out, stars, files=(WEIGHT_FACTOR,))
    trained = load_if_path(model)
    table, source = read_stars(stars)
    where = str(source["path"])
    # Its training stars are of its own instrument: a transfer leads to no more of them.
    table = stars_for(replace(trained, transfer=None), table, where)
    config = TrainingConfig.model_validate(trained.card["settings"])
    require_labels(table.columns, trained.labels, where)
    chosen = choose_stars(
        trained, training_cuts(table, trained.labels, config.teff_max, config.min_channels), Side.TRAINING
    )
    if not len(chosen):
        raise InputError(f"{where}: none of its stars is on the training side of the model's split; name its own stars")
    chosen = choose_random(chosen, min(n_stars, len(chosen)), seed)
    begun = time.perf_counter()

    floor = config.floor_for(len(trained.labels))
    measured = jax.tree.map(
        jnp.asarray, chosen.stars(trained.labels, spectroscopic_parallax=True, label_error_floor=floor)
    )
    folded = fold_in_model_error(trained.star_model, measured)
    known = solve(
        StarModel(trained.forward),
        folded,
        initial_theta(measured, curve_varies=trained.forward.curve_variation is not None),
        SOLVER_ITERATIONS,
    )
    folded = fold_in_model_error(trained.star_model, measured, known.theta_log)
    n_training = int(trained.card["n_training"])
    log.info(f"solved {len(chosen)} of {n_training} training stars ({time.perf_counter() - begun:.1f} s)")
    precision = weight_precision(trained.forward, folded, known.theta_log, n_training)
    log.info(f"information on {len(precision)} trained numbers ({time.perf_counter() - begun:.1f} s)")

    few = choose_random(chosen, min(n_response, len(chosen)), seed + 1)
    batch = few.stars(trained.labels)
    inference = InferenceConfig(n_draws=0)
    found = fit_stars(trained.star_model, batch, inference)
    at = to_log(jnp.asarray(found.optimum))
    seen = fold_in_model_error(trained.star_model, jax.tree.map(jnp.asarray, batch.blind()), at)
    factor = factor_weights(trained.star_model, precision, seen, at)._replace(n_stars=len(chosen))
    rest = trained.forward.without_xi
    added = np.asarray(
        weight_covariance(trained.star_model.without_error, jnp.asarray(factor.columns), seen, at), np.float64
    )[:, rest][:, :, rest]
    log.info(
        f"{factor.columns.shape[1]} directions carry {factor.captured:.1%} of what is added "
        f"({time.perf_counter() - begun:.1f} s)"
    )
    if out is not None:
        log.info(f"wrote {save_weight_factor(factor, out, str(trained.card.get('arrays_checksum')))}")
    return ModelUncertainty(
        labels=trained.labels,
        factor=factor,
        estimate=np.asarray(found.estimate, np.float64),
        covariance=np.asarray(found.laplace, np.float64),
        added=added,
        n_training=n_training,
    )
