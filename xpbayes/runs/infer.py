"""Infer stellar parameters without labels, as one catalogue in memory."""

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.archive.direct import CompanionFiles, open_inputs
from xpbayes.archive.survey_config import Survey
from xpbayes.config import InferenceConfig
from xpbayes.data.spectra import OK, Spectra
from xpbayes.data.stars import Stars
from xpbayes.device import suited_programs
from xpbayes.errors import InputError
from xpbayes.identity import Stream, seeds_from_id
from xpbayes.inference.fit import Inferred, Posteriors, fit_stars
from xpbayes.inference.recalibration import ln_snr_of, n_channels_of, recalibrated
from xpbayes.inference.ridge import companion_ridge
from xpbayes.inference.scatter import loosened, settled
from xpbayes.inference.support import extrapolation_of
from xpbayes.inference.trust import trust_features, with_second_sources
from xpbayes.instrument.instrument import InstrumentId
from xpbayes.production.beside import load_weight_factor
from xpbayes.production.engine import CORES
from xpbayes.production.export import check_suffix, save_catalogue
from xpbayes.production.flags import Scores
from xpbayes.production.meeting import say_what_is_null, stars_for, warn_of_transfer
from xpbayes.production.model_file import TrainedModel
from xpbayes.production.table import catalogue_rows, describe, refined_rows, to_arrow
from xpbayes.progress import in_stars, speed
from xpbayes.refinement.refined import refine_labels
from xpbayes.runs.inputs import (
    PathLike,
    check_writable,
    choose_stars,
    created,
    load_if_path,
    named_inputs,
    quarantine_of,
    stream_tables,
    versions,
)
from xpbayes.training.network_uncertainty import (
    NetworkCovariance,
    add_model_covariance,
    added_to_inferred,
    trained_vector,
)

log = logging.getLogger(__name__)

KNOW_OWN_ERRORS = ("quality_flags", "zgr23_flags", "teff_confidence", "feh_confidence", "logg_confidence")
"""Columns that do not change where other errors are widened by what is unknown of the model."""


def infer(
    model: TrainedModel | PathLike,
    stars: Spectra | PathLike | Survey | Sequence[PathLike | Survey],
    out: PathLike | None = None,
    config: InferenceConfig | None = None,
    only: str = "all",
    *,
    factor: NetworkCovariance | None = None,
    companions: CompanionFiles = None,
    flat: bool | None = None,
) -> pa.Table:
    """Infer stellar parameters without labels.

    Args:
        model: a trained model, its folder, or the name of one that comes with the package.
        config: settings; the defaults if None.
        stars: a star table, its path, a folder of star tables; a file of XP spectra, a folder or pattern of them, a HATS
            catalogue or a survey.toml, which are then read, calibrated and solved part by part; or several of these.
        out: file for the catalogue, .parquet, .csv, .ecsv, .fits or .vot; nothing is written if None.
        only: 'all', or 'training', 'kept-aside' or 'held-out', a side of the model's own split.
        factor: of what training leaves unknown of the model, for `model_uncertainty`; read from the model's folder if None.
        companions: tables that belong to files of XP spectra, ``{"two_mass": "2mass.vot", "gaia": ..., "unwise": ...}``;
            what is not named is looked for beside the spectra by its columns, an empty list is none.
        flat: write one number a column in K, dex, mag and mas; in every format but Parquet if None.

    Returns:
        the catalogue: one row per star, columns as in `xpbayes.schema.catalogue_columns`.

    Raises:
        InputError: model and stars do not fit together, a file cannot be used, or what is unknown of the model is asked
            for and was not worked out.

    Example:
        >>> catalogue = xpbayes.infer("model", "stars.parquet", out="catalogue.parquet")  # doctest: +SKIP
    """
    config = config or InferenceConfig()
    begun = time.perf_counter()
    if out is not None:
        check_suffix(Path(out), flat=flat)
    for target in (out, quarantine_of(out)):
        check_writable(target, model, stars)
    if not isinstance(stars, Spectra):
        stars = open_inputs(named_inputs(stars), companions)
        for target in (out, quarantine_of(out)):
            check_writable(target, stars)  # what was found beside the spectra is an input, too
    trained = load_if_path(model)
    factor = model_factor(model, trained, factor) if config.model_uncertainty else None
    stream, source = stream_tables(stars, out, trained.channels)
    parts: list[pa.Table] = []
    n_seen = n_with_parallax = n_unusable = 0
    instrument: InstrumentId | None = None
    for table in stream:
        n_seen += len(table)
        chosen = choose_stars(trained, table, only)
        if not len(chosen):
            continue
        if instrument is None:
            instrument = chosen.instrument
            warn_of_transfer(trained, instrument, str(source["path"]))
            say_what_is_null(trained)
            log.info(f"solving {in_stars(len(chosen))}; programs are compiled before the first")
        instrument.require_same(chosen.instrument, "what came before", str(source["path"]))
        with suited_programs(len(chosen), slow=config.refine):
            part, unusable = solve_stars(trained, factor, chosen, config, where=str(source["path"]))
        n_unusable += unusable
        n_with_parallax += int(chosen.is_measured("parallax").sum()) if config.use_parallax else 0
        parts.append(part)
    notes = "; ".join(source.pop("notes", []))
    n_rows = sum(len(part) for part in parts)
    if not n_rows:
        raise InputError(f"{source['path']}: none of its {n_seen} stars is on the {only} side of the model's split")
    if n_unusable == n_rows:
        raise InputError(f"{source['path']}: none of its {n_rows} stars can be used")
    about = {
        **about_model(trained, factor, instrument),
        "input": {**source, "n_stars": n_seen},
        "settings": config.model_dump(mode="json"),
        "selection": only,
        "n_with_parallax": n_with_parallax,
        "seconds": round(time.perf_counter() - begun, 2),
        "created": created(),
        "versions": versions(),
    }
    catalogue = describe(pa.concat_tables(parts), about)
    if out is not None:
        save_catalogue(catalogue, out, flat=flat)
        log.info(f"wrote {out}")
    if notes:
        parallaxes = f", {n_with_parallax} with a parallax" if config.use_parallax else ""
        log.info(f"{notes}; {n_rows} rows written{parallaxes}, {n_seen - n_rows} not selected")
    return catalogue


def solve_stars(
    trained: TrainedModel,
    factor: NetworkCovariance | None,
    table: Spectra,
    config: InferenceConfig,
    level: int = logging.INFO,
    status: NDArray[np.str_] | None = None,
    where: str = "the stars",
) -> tuple[pa.Table, int]:
    """Catalogue rows of one star table, and how many of its stars could not be used; InputError if they do not fit.

    Args:
        trained, config: model and settings.
        factor: of what training leaves unknown of the model, to be added to the errors.
        table: the stars.
        level: of what is said on the way.
        status: (star,) `table.problems()`, if that is known already.
        where: what the stars are called in messages.
    """
    release, star_model, use_parallax = table.instrument.release, trained.star_model, config.use_parallax
    table = stars_for(trained, table, where, quiet=True)
    status = table.problems() if status is None else status
    usable = table.take(np.flatnonzero(status == OK))
    for reason, count in sorted(Counter(status.tolist()).items()):
        if reason != OK:
            first = table.source_id[status == reason][0]
            said = f"not solved: {count} stars, {reason} (first: source_id {first}); they get a row that says so"
            log.log(level, said)

    def progress(done: int, total: int, rate: float) -> None:
        log.log(level, f"inferred {done} of {in_stars(total)} ({speed(rate)})")

    batch = usable.stars(trained.labels, doubt_parallax=config.doubt_parallax)
    seeds = seeds_from_id(usable.source_id, Stream.DRAWS)
    scatter = stars_scatter(trained, batch) if config.calibrate else None
    looked_at = batch if scatter is None else loosened(batch, scatter)
    second = trained.second_stage if config.second_stage else None
    wavelengths = np.asarray(trained.channels.wavelengths)
    ridge = companion_ridge(star_model, trained.labels, wavelengths) if config.binaries else None
    alone = second is not None and use_parallax
    inferred = fit_stars(star_model, looked_at, config, progress, seeds, ridge, alone=alone)
    by_chains = np.zeros(len(usable), bool)
    if config.refine:
        from xpbayes.inference.sampling.ladder import refine_with_nuts

        inferred, by_chains = refine_with_nuts(star_model, looked_at, inferred, config, seeds, threads=_threads())
        log.log(level, f"{int(by_chains.sum())} of {len(usable)} stars are summarised by Markov chains")
    found = inferred
    if scatter is not None:
        inferred = settled(inferred, batch, scatter, use_parallax=use_parallax)
    if config.calibrate and trained.calibration is not None:
        inferred = recalibrated(inferred, trained.calibration, batch, use_parallax=use_parallax)
    scores = _scores(trained, batch, (looked_at, found), inferred, use_parallax=use_parallax)
    as_rows = partial(
        catalogue_rows,
        table,
        status,
        ln_threshold=float(trained.prior.ln_threshold),
        use_parallax=use_parallax,
        by_chains=by_chains,
        scores=scores,
        law=trained.reddening_law,
    )
    rows = as_rows(inferred)
    if trained.confidence is not None:
        from xpbayes.production.reliability import confidence_columns

        filled, notes = confidence_columns(trained, table, rows)
        rows |= filled
        for note in notes:
            log.log(level, note)
    if factor is not None:
        added = added_to_inferred(star_model, factor, looked_at, found.optimum, use_parallax=use_parallax)
        wide = as_rows(add_model_covariance(inferred, added), added=added)
        # Flags and confidences know the stars' own errors, from which the classifiers were learned.
        rows = rows | wide | {name: rows[name] for name in KNOW_OWN_ERRORS}
    if second is not None:
        refined = refine_labels(second, star_model, Inferred(looked_at, found, inferred, use_parallax))
        rows |= refined_rows(refined, inferred, status, rows["status"] == OK)
    return to_arrow(rows, len(trained.labels), release), int((rows["status"] != OK).sum())


def _scores(
    trained: TrainedModel, batch: Stars, seen: tuple[Stars, Posteriors], inferred: Posteriors, *, use_parallax: bool
) -> Scores:
    """What says how far rows can be trusted, of stars as measured and their posteriors as the catalogue has them.

    `seen`: the stars as inference saw them, and their posteriors as it found them.
    """
    quality = None if trained.calibration is None else trained.calibration.fit_quality
    fit_quality = beyond = trust = None
    if quality is not None:
        fit_quality = quality.of(inferred.chi2, n_channels_of(batch), ln_snr_of(batch))
    if trained.support is not None:
        beyond = extrapolation_of(trained.support, trained.prior, inferred)
        if trained.trust is not None and quality is not None:
            left = trust_features(trained.star_model, trained.support, quality, *seen, use_parallax=use_parallax)
            trust = with_second_sources(trained.trust.probabilities(left), inferred)
    return Scores(fit_quality, beyond, trust)


def stars_scatter(trained: TrainedModel, stars: Stars) -> NDArray[np.float64] | None:
    """(star, 2) by how much E [mag] and ln parallax scatter at given labels; None if the model does not know."""
    return None if trained.calibration is None else trained.calibration.scatter_of(trained.model_error, stars)


def _threads() -> int | None:
    """Cores that an engine has given this process; None: all that there are."""
    given = os.environ.get(CORES)
    return len(given.split(",")) if given else None


def model_factor(
    model: TrainedModel | PathLike, trained: TrainedModel, factor: NetworkCovariance | None = None
) -> NetworkCovariance:
    """What training leaves unknown of a model: as given, or from the model's folder."""
    if factor is not None:
        n_given, n_trained = len(factor.columns), trained_vector(trained.forward).size
        if n_given != n_trained:
            raise InputError(f"the factor is of {n_given} trained numbers, the model has {n_trained}; give its own")
        return factor
    if isinstance(model, TrainedModel):
        raise InputError(
            "model_uncertainty needs to know what is unknown of the model; give the factor that xpbayes.uncertainty found, "
            "or the model's folder after 'xpbayes uncertainty'"
        )
    return load_weight_factor(model, str(trained.card.get("arrays_checksum")))


def about_model(
    trained: TrainedModel, factor: NetworkCovariance | None = None, instrument: InstrumentId | None = None
) -> dict[str, Any]:
    """What every catalogue says about its model, the factor that was added to errors, and the stars' instrument.

    `instrument`: the model's if None.
    """
    model = {k: trained.card.get(k) for k in ("created", "arrays_checksum", "n_training", "split")}
    if trained.forward.curve_variation is not None:
        model["curve_varies"] = True
        model["reddening_law"] = trained.card.get("reddening_law")
    beside = {
        "transfer": trained.transfer is not None and trained.transfer.source == instrument,
        "confidence": trained.confidence is not None,
        "second_stage": trained.second_stage is not None,
    }
    for name in (name for name, used in beside.items() if used):
        model[f"{name}_checksum"] = trained.card[name].get("arrays_checksum")
    if factor is not None:
        columns = np.ascontiguousarray(factor.columns, "<f4")
        model["uncertainty"] = {
            "checksum": f"sha256:{hashlib.sha256(columns.tobytes()).hexdigest()}",
            "n_stars": factor.n_stars,
            "directions": columns.shape[1],
            "captured": factor.captured,
        }
    return {
        "labels": trained.labels,
        "channels": json.loads(trained.channels.to_json()),
        "instrument": (instrument or trained.instrument).to_json(),
        "model": model,
    }
