"""The runs, each readable from top to bottom: train, infer, predict, report, fetch, demo.

These are also the Python API (`xpbayes.train`, `xpbayes.infer`, ...). Paths or objects go in; objects come out, and
files too where an output is named.
"""

import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.archive.hashing import uniform_from_id
from xpbayes.checksum import file_checksum
from xpbayes.config import InferenceConfig, TrainingConfig
from xpbayes.data.spectra import (
    OK,
    Spectra,
    column_names,
    join_star_tables,
    read_star_tables,
    star_table_files,
    write_star_table,
)
from xpbayes.data.stars import STAR_BLOCK
from xpbayes.errors import InputError, nearest
from xpbayes.production.model_file import CARD, TrainedModel, load_model, save_model
from xpbayes.production.table import catalogue_rows, describe, read_catalogue, to_arrow, write_catalogue
from xpbayes.training.selection import held_out_by_source_id

if TYPE_CHECKING:
    from xpbayes.analysis.dust_map.build import DustMaps
    from xpbayes.analysis.dust_map.settings import DustMapConfig
    from xpbayes.analysis.pages.confidence import ConfidenceCheck
    from xpbayes.analysis.pages.star_page import StarFit
    from xpbayes.archive.companions import Companions
    from xpbayes.inference.recalibration import LabelCalibration
    from xpbayes.models.extinction import NearInfraredLaw
    from xpbayes.production.inputs import Chunk, Layout
    from xpbayes.production.parts import PartRecord
    from xpbayes.training.network_uncertainty import NetworkCovariance
    from xpbayes.training.reliability import ConfidenceConfig
    from xpbayes.training.training_set import TrainingSet

Say = Callable[[str], None]
PathLike = str | Path
CHECKPOINT = "checkpoint.safetensors"
"""Beside the model while it is trained: what a stopped run goes on from."""
DRAW_STREAM = 17
"""Of the hash that gives every source_id its own random numbers: draws do not depend on who shares a batch."""
SCRATCH = "training-stars"
"""Beside the model while it is trained on more stars than memory holds."""


STARS_PER_PART = 32_768
"""Rows of a part of a catalogue: some 15 MB, and less than a minute of one core's work lost to a kill."""
KNOW_OWN_ERRORS = ("quality_flags", "teff_confidence", "feh_confidence", "logg_confidence", "extrapolation")
"""Columns that do not change where other errors are widened by what is unknown of the model."""


def quiet(line: str) -> None:
    """Say nothing."""


# ---------------------------------------------------------------------------------------------------------- training


def train(
    stars: Spectra | PathLike,
    out: PathLike | None = None,
    config: TrainingConfig | None = None,
    say: Say = quiet,
    *,
    resume: bool = False,
) -> TrainedModel:
    """Train a model on stars with labels.

    Args:
        stars: a star table, its path, or a folder of star tables.
        out: folder for the model; nothing is written if None.
        config: settings; the defaults if None.
        say: receives progress, one line at a time.
        resume: go on after the last phase that ended, if an earlier run to the same `out` was stopped.

    Returns:
        the model; its `card` says what it was trained on and how, how good it is, and which checks it passed.

    Raises:
        InputError: the table cannot be used, too few stars remain, or the run to resume had other stars or settings.

    Example:
        >>> model = xpbayes.train("stars.parquet", out="model")  # doctest: +SKIP
    """
    from xpbayes.checks.training_checks import check_training
    from xpbayes.inference.support import make_support
    from xpbayes.training.learn import train as learn
    from xpbayes.training.self_cleaning import with_absolute_magnitudes

    config = config or TrainingConfig()
    begun = time.perf_counter()
    _check_writable(out)
    with _training_set(stars, config, out, say) as (chosen, source):
        training = chosen.table
        for cut in training.cuts:
            say(f"cut: {cut.what}: {cut.removed} removed, {cut.left} left")
        checkpoint = None if out is None else Path(out) / CHECKPOINT
        law = _near_infrared_law(training, config)
        learned = learn(
            chosen.stars, training.channels.wavelengths, config, say, checkpoint, resume=resume, near_infrared=law
        )
    labels = training.labels(config.labels)[0]
    for phase in learned.record.phases:
        if "diagnostic" in phase:
            phase["diagnostic"] = with_absolute_magnitudes(phase["diagnostic"], training.column("phot_g_mean_mag"))
    model = TrainedModel(
        forward=learned.model,
        prior=learned.prior,
        model_error=learned.model_error,
        channels=training.channels,
        labels=config.labels,
        card={
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "input": source,
            "settings": config.model_dump(mode="json"),
            "seed": config.seed,
            "n_training": len(training),
            "n_held_out": chosen.n_held_out,
            "split": {"by": "source_id hash", "fraction": config.validation_fraction, "seed": config.split_seed},
            "cuts": [vars(c) for c in training.cuts],
            "provenance": training.provenance,
            "parallax_used": _parallax_used(training),
            "grey_extinction": "free" if law is None else f"R(Ks) / R(J) = {law.ratio:g}, for want of parallaxes",
            "label_range": {
                name: np.percentile(training.column(name), [0, 1, 16, 50, 84, 99, 100]).round(4).tolist()
                for name in config.labels
            },
            "phases": learned.record.phases,
            "training_seconds": round(time.perf_counter() - begun, 2),
            "versions": versions(),
        },
        support=make_support(learned.prior, labels, np.asarray(learned.model.label_scale), config.seed),
    )
    calibration = _calibrate(model, chosen.aside, config, say)
    model = replace(model, calibration=calibration)
    model.card["calibration"] = _calibration_entry(calibration, chosen.aside)
    model.card["held_out"] = _assess(model, chosen.held_out, config) if len(chosen.held_out) else {}
    checks = check_training(model.forward, model.channels, model.labels, labels, model.card["held_out"])
    model.card["checks"] = [vars(check) for check in checks]
    for check in checks:
        say(check.line)
    if out is not None:
        say(f"wrote {save_model(model, out)}")
        Path(out, CHECKPOINT).unlink(missing_ok=True)
        model = load_model(out)  # what the next user gets, checksum included
    return model


@contextmanager
def _training_set(
    stars: Spectra | PathLike, config: TrainingConfig, out: PathLike | None, say: Say
) -> "Iterator[tuple[TrainingSet, dict[str, Any]]]":
    """The stars of a training run and where they come from; in files beside the model while it is trained, if many."""
    from xpbayes.training.training_set import n_rows, training_set, training_set_in_files

    paths = [] if isinstance(stars, Spectra) else star_table_files(stars)
    n_stars = n_rows(paths)
    if isinstance(stars, Spectra) or n_stars <= config.stars_in_memory:
        table, source = _table(stars)
        _require_labels(table.columns, config.labels, str(source["path"]))
        yield training_set(table, config, str(source["path"])), source
        return
    for path in paths:
        _require_labels(column_names(path), config.labels, str(path))
    path = Path(stars)
    source = {"path": path.name, "checksum": "" if path.is_dir() else file_checksum(path), "n_stars": n_stars}
    with tempfile.TemporaryDirectory(prefix="xpbayes-") as elsewhere:
        scratch = Path(elsewhere) if out is None else Path(out) / SCRATCH
        shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
        scratch.mkdir(parents=True)
        try:
            say(f"{n_stars} stars, more than {config.stars_in_memory}: worked on in files, in {scratch}")
            yield training_set_in_files(paths, config, scratch), source
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _calibrate(model: TrainedModel, kept_aside: Spectra, config: TrainingConfig, say: Say) -> "LabelCalibration | None":
    """Calibrate posterior summaries on stars that training did not see, as inference by default sees them."""
    from xpbayes.inference.infer import infer as solve
    from xpbayes.inference.recalibration import fit_calibration, ln_snr_of

    if not len(kept_aside):
        return None
    stars = kept_aside.stars(model.labels, label_error_floor=config.floor_for(len(model.labels)))
    found = solve(model.forward, model.prior, model.model_error, stars, InferenceConfig())
    with np.errstate(divide="ignore"):
        label_error = 1.0 / np.asarray(stars.label_inv_error, np.float64)
    n_labels = len(model.labels)
    calibration = fit_calibration(
        found.median[:, :n_labels],
        np.where(found.converged[:, None], 0.5 * (found.high - found.low)[:, :n_labels], np.nan),
        ln_snr_of(stars),
        np.asarray(stars.labels, np.float64),
        label_error,
        np.asarray(model.forward.label_scale, np.float64),
    )
    if calibration is None:
        say(f"not calibrated: {len(stars)} stars kept aside are too few; raise calibration_fraction")
    else:
        stretch = ", ".join(
            f"{name} {value:.2f}"
            for name, value in zip(model.labels, np.median(calibration.stretch, axis=0), strict=True)
        )
        say(
            f"calibrated on {len(stars)} stars kept aside, {len(calibration.kinds)} kinds; posteriors stretched by {stretch}"
        )
    return calibration


def _calibration_entry(calibration: "LabelCalibration | None", kept_aside: Spectra) -> dict[str, Any]:
    """What the card says of the calibration."""
    if calibration is None:
        return {}
    return {
        "n_stars": len(kept_aside),
        "kinds": (calibration.kinds * calibration.scale).round(3).tolist(),
        "offset": calibration.offset.round(4).tolist(),
        "stretch": calibration.stretch.round(3).tolist(),
    }


def _assess(model: TrainedModel, held_out: Spectra, config: TrainingConfig) -> dict[str, Any]:
    """Accuracy on held-out stars as inference by default would see them."""
    from xpbayes.analysis.pages.model_card import held_out_entry

    how, floor = InferenceConfig(), config.floor_for(len(config.labels))
    return held_out_entry(model, infer(model, held_out, config=how), held_out, floor, use_parallax=how.use_parallax)


def _parallax_used(table: Spectra) -> str:
    measured = table.is_measured("parallax")
    if measured.all():
        return "measured"
    return "spectroscopic, derived from the labels" if not measured.any() else "measured, spectroscopic where missing"


def _near_infrared_law(table: Spectra, config: TrainingConfig) -> "NearInfraredLaw | None":
    """What fixes the grey part of R: the law where no parallax was measured, nothing where one was."""
    from xpbayes.models.extinction import NearInfraredLaw

    names = table.channels.names
    if not config.ks_over_j or table.is_measured("parallax").any() or not {"J", "Ks"} <= set(names):
        return None
    return NearInfraredLaw(names.index("Ks"), names.index("J"), config.ks_over_j)


def _require_labels(columns: Collection[str], labels: tuple[str, ...], where: str) -> None:
    for name in labels:
        for column in (name, f"{name}_error"):
            if column not in columns:
                raise InputError(
                    f"{where}: has no column '{column}'{nearest(column, columns)}; training needs every label in "
                    f"'labels' with its error"
                )


# --------------------------------------------------------------------------------------------------------- inference


def infer(
    model: TrainedModel | PathLike,
    stars: Spectra | PathLike | Sequence[PathLike],
    out: PathLike | None = None,
    config: InferenceConfig | None = None,
    only: str = "all",
    say: Say = quiet,
    *,
    factor: "NetworkCovariance | None" = None,
) -> pa.Table:
    """Infer stellar parameters without labels.

    Args:
        model: a trained model or its folder.
        stars: a star table, its path, a folder of star tables, or a survey.toml, whose files are then read, calibrated
            and solved part by part; or several of these.
        out: Parquet file for the catalogue; nothing is written if None.
        config: settings; the defaults if None.
        only: 'all', or 'held-out' / 'training' for that side of the model's own split.
        say: receives progress, one line at a time.
        factor: of what training leaves unknown of the model, for `model_uncertainty`; read from the model's folder if None.

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
    trained = _loaded(model)
    factor = _weight_factor(model, trained, factor) if config.model_uncertainty else None
    _check_writable(out)
    stream, source = _stream(stars, out, say)
    parts: list[pa.Table] = []
    n_seen = n_with_parallax = n_unusable = 0
    for table in stream:
        n_seen += len(table)
        chosen = choose_stars(trained, table, only)
        if not len(chosen):
            continue
        trained.channels.require_same(chosen.channels, "the model", str(source["path"]))
        part, unusable = _infer_part(trained, factor, chosen, config, say)
        n_unusable += unusable
        n_with_parallax += int(chosen.is_measured("parallax").sum()) if config.use_parallax else 0
        parts.append(part)
    n_rows = sum(len(part) for part in parts)
    if not n_rows:
        raise InputError(f"{source['path']}: none of its {n_seen} stars is on the {only} side of the model's split")
    if n_unusable == n_rows:
        raise InputError(f"{source['path']}: none of its {n_rows} stars can be used")
    about = {
        **_about(trained, factor),
        "input": {**source, "n_stars": n_seen},
        "settings": config.model_dump(mode="json"),
        "selection": only,
        "n_with_parallax": n_with_parallax,
        "seconds": round(time.perf_counter() - begun, 2),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    catalogue = describe(pa.concat_tables(parts).unify_dictionaries(), about)
    if out is not None:
        write_catalogue(catalogue, out)
        say(f"wrote {out}")
    return catalogue


def infer_parts(
    model: PathLike,
    inputs: PathLike | Sequence[PathLike],
    out: PathLike,
    config: InferenceConfig | None = None,
    only: str = "all",
    *,
    resume: bool = False,
    engine: str = "local",
    processes: int | None = None,
    scheduler: str | None = None,
    shard: tuple[int, int] | None = None,
    stars_per_part: int = STARS_PER_PART,
    say: Say = quiet,
) -> Path:
    """Infer any number of stars into a catalogue in parts, in memory that does not grow with them.

    However often the run is killed and gone on with, and whichever engine does it, the parts are the same bytes.

    Args:
        model: folder of the model.
        inputs: star tables, folders of them, survey.toml files; one or several.
        out: folder for the catalogue: parts, ``manifest.json``, ``quarantine.csv``.
        config: settings; the defaults if None.
        only: 'all', or 'held-out' / 'training' for that side of the model's own split.
        resume: go on with what `out` holds; else it must be empty.
        engine: 'local', processes of this machine, or 'dask'.
        processes: how many; one a device or core, as far as memory goes, if None.
        scheduler: address of a running Dask scheduler; None starts workers on this machine.
        shard: (i, n): do only every n-th chunk, from the i-th on, beside n - 1 other jobs; implies `resume`. Whoever
            is last completes the manifest.
        stars_per_part: most rows of a part.
        say: receives progress, one line at a time.

    Returns:
        the folder.

    Raises:
        InputError: inputs, model and folder do not fit together; an input has changed, gone or is damaged; the disk
            is full; a source_id is in several parts.

    Example:
        >>> xpbayes.infer_parts("model", ["a.parquet", "b.parquet"], "catalogue/")  # doctest: +SKIP
    """
    from xpbayes.production import engine as engines
    from xpbayes.production import manifest as manifests
    from xpbayes.production.inputs import lay_out
    from xpbayes.production.parts import clean, read_records
    from xpbayes.production.progress import Progress
    from xpbayes.production.verify import check_repeated

    engines.check_engine(engine)
    if scheduler is not None and engine != "dask":
        raise InputError(f"--scheduler {scheduler} is for the engine dask; add --engine dask")
    config, folder, model = config or InferenceConfig(), Path(out), Path(model).absolute()
    _check_selection(only)
    trained = load_model(model)
    factor = _weight_factor(model, trained) if config.model_uncertainty else None
    layout = lay_out([inputs] if isinstance(inputs, str | Path) else inputs, trained.channels, stars_per_part)
    settings = config.model_dump(mode="json")
    about = {**_about(trained, factor), "settings": settings, "selection": only}
    identity = manifests.make_identity(layout, model, about, settings, versions())
    _check_writable(folder / manifests.MANIFEST)
    manifest = manifests.open_run(folder, identity, resume=resume or shard is not None)
    clean(folder, everything=manifest["complete"])
    if manifest["complete"]:
        say(f"{folder} is complete already: {manifest['totals']['rows_written']:,} rows")
        return folder

    records = read_records(folder)
    manifests.check_inputs_unchanged(layout, records)
    mine = [c for c in layout.chunks if shard is None or c.number % shard[1] == shard[0]]
    kept = manifests.keep_layout(folder, layout)
    job = _Job(str(folder.absolute()), str(model), config, only, kept, manifests.identity_checksum(identity))

    def run(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        if engine == "dask":
            return engines.run_dask(work, items, scheduler, processes, say)
        return engines.run_local(work, items, processes, say)

    rejected = manifests.keep_tables(folder, layout, say)
    done = manifests.finished_chunks(folder, layout, mine, records, say)
    progress = Progress(sum(c.weight for c in mine), say)
    progress.already([r for c in done for r in done[c]], sum(c.weight for c in done))
    left = [c for c in mine if c not in done]
    if done or len(left) != len(mine):
        say(f"{len(done)} of {len(mine)} chunks are done already")
    for chunk, made in run(partial(_infer_chunk, job), left) if left else ():
        progress.add(made, chunk.weight)

    finished = manifests.complete(folder, layout, manifest, rejected)
    if finished is None:
        say(f"this job's {len(mine)} chunks are done; other jobs' are not, and the last of them completes {folder}")
        return folder
    total = finished["totals"]
    say(
        f"{total['rows_read']:,} rows read: {total['rows_written']:,} written, {total['rows_not_selected']:,} not "
        f"selected, {total['rows_quarantined']:,} quarantined; {total['bytes'] / 1e6:,.1f} MB in {folder}"
    )
    check_repeated(folder, finished)
    if not total["status"].get(OK):
        raise InputError(
            f"{folder}: none of its {total['rows_read']} rows has a solution; see {manifests.MANIFEST} for the reasons"
        )
    return folder


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know, small enough to be sent with every chunk.

    Attributes:
        folder: of the catalogue.
        model: folder of the model.
        config: settings.
        only: side of the model's split.
        layout: file that keeps the layout.
        identity: checksum of everything that the run is made from, so that nothing is kept from an earlier one.
    """

    folder: str
    model: str
    config: InferenceConfig
    only: str
    layout: str
    identity: str


@lru_cache(maxsize=1)
def _at_work(job: _Job) -> tuple[TrainedModel, "NetworkCovariance | None", "Layout", "list[Companions]"]:
    """Model, what is unknown of it, layout, and the tables to be joined to spectra: read once by each worker."""
    from xpbayes.production.manifest import kept_layout, kept_tables

    layout, trained = kept_layout(job.layout), load_model(job.model)
    factor = _weight_factor(job.model, trained) if job.config.model_uncertainty else None
    return trained, factor, layout, kept_tables(Path(job.folder), layout)


def _infer_chunk(job: _Job, chunk: "Chunk") -> list["PartRecord"]:
    """Read, calibrate, solve and write one chunk: the one function that every engine calls.

    Parts that are there already stay as they are; for the same input, the others are always the same bytes.
    """
    from xpbayes.production.engine import give_memory_back
    from xpbayes.production.inputs import read_chunk
    from xpbayes.production.parts import PartDraft, read_record, write_part
    from xpbayes.production.prefetch import prefetched

    trained, factor, layout, companions = _at_work(job)
    folder, file = Path(job.folder), layout.files[chunk.file]
    records: list[PartRecord] = []
    rows: list[pa.Table] = []
    draft: PartDraft | None = None
    known: PartRecord | None = None
    with prefetched(read_chunk(layout, chunk, companions)) as pieces:
        for piece in pieces:
            if draft is None:
                known = read_record(folder, chunk.file, piece.block)
                draft = PartDraft(chunk.file, piece.block)
            if known is None:
                chosen = choose_stars(trained, piece.table, job.only)
                part = _infer_piece(trained, factor, chosen, job.config)
                measured = int(chosen.is_measured("parallax").sum()) if job.config.use_parallax else 0
                draft.add(piece.n_read, len(piece.table) - len(chosen), measured, part, piece.rejected)
                rows.append(part)
                give_memory_back()  # what one piece leaves scattered would come on top of the next one's needs
            if piece.ends_part:
                if known is None:
                    table = describe(pa.concat_tables(rows).unify_dictionaries(), _about_part(trained, factor, job))
                    known = write_part(folder, table, draft.record(file.path, last=piece.ends_chunk))
                records.append(known)
                rows, draft = [], None
    return records


def _infer_piece(
    trained: TrainedModel, factor: "NetworkCovariance | None", table: Spectra, config: InferenceConfig
) -> pa.Table:
    """Catalogue rows of some thousand stars, by the compiled programs that serve every piece of a run.

    A piece is filled up to whole blocks of stars, on an accelerator to a whole chunk: another size is another program.
    """
    usable = np.flatnonzero(table.problems() == OK)
    whole = STAR_BLOCK if jax.default_backend() == "cpu" else config.chunk_size
    missing = -len(usable) % whole
    if not missing or not len(usable):
        return _infer_part(trained, factor, table, config, quiet)[0]
    index = np.concatenate([np.arange(len(table)), np.full(missing, usable[-1])])
    return _infer_part(trained, factor, table.take(index), config, quiet)[0].slice(0, len(table))


def _weight_factor(
    model: TrainedModel | PathLike, trained: TrainedModel, factor: "NetworkCovariance | None" = None
) -> "NetworkCovariance":
    """What training leaves unknown of a model: as given, or from the model's folder."""
    from xpbayes.production.weight_file import load_weight_factor
    from xpbayes.training.network_uncertainty import trained_vector

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


def _threads() -> int | None:
    """Cores that an engine has given this process; None: all that there are."""
    from xpbayes.production.engine import CORES

    given = os.environ.get(CORES)
    return len(given.split(",")) if given else None


def _about(trained: TrainedModel, factor: "NetworkCovariance | None" = None) -> dict[str, Any]:
    """What every catalogue says about the model that it was made with."""
    model = {k: trained.card.get(k) for k in ("created", "arrays_checksum", "n_training", "split")}
    if trained.confidence is not None:
        model["confidence_checksum"] = trained.card["confidence"].get("arrays_checksum")
    if factor is not None:
        columns = np.ascontiguousarray(factor.columns, "<f4")
        model["uncertainty"] = {
            "checksum": f"sha256:{hashlib.sha256(columns.tobytes()).hexdigest()}",
            "n_stars": factor.n_stars,
            "directions": columns.shape[1],
            "captured": factor.captured,
        }
    return {"labels": trained.labels, "channels": json.loads(trained.channels.to_json()), "model": model}


def _about_part(trained: TrainedModel, factor: "NetworkCovariance | None", job: _Job) -> dict[str, Any]:
    """Metadata of a part: the same for all parts, and no time or host in it."""
    return {**_about(trained, factor), "settings": job.config.model_dump(mode="json"), "selection": job.only}


def _infer_part(
    trained: TrainedModel, factor: "NetworkCovariance | None", table: Spectra, config: InferenceConfig, say: Say
) -> tuple[pa.Table, int]:
    """Catalogue rows of one star table, and how many of its stars could not be used."""
    from xpbayes.inference.infer import infer as solve

    status = table.problems()
    usable = table.take(np.flatnonzero(status == OK))
    for reason, count in sorted(Counter(status.tolist()).items()):
        if reason != OK:
            first = table.source_id[status == reason][0]
            say(f"not solved: {count} stars, {reason} (first: source_id {first}); they get a row that says so")

    def progress(done: int, total: int, rate: float) -> None:
        say(f"inferred {done} of {total} stars ({rate:.0f} stars/s)")

    parts, batch = (trained.forward, trained.prior, trained.model_error), usable.stars(trained.labels)
    seeds = (uniform_from_id(usable.source_id, DRAW_STREAM) * 2.0**32).astype(np.uint32)
    inferred = solve(*parts, batch, config, progress, seeds)
    by_chains = np.zeros(len(usable), bool)
    if config.refine:
        from xpbayes.inference.sampling.ladder import refine_with_nuts

        inferred, by_chains = refine_with_nuts(*parts, batch, inferred, config, seeds, threads=_threads())
        say(f"{int(by_chains.sum())} of {len(usable)} stars are summarised by Markov chains")
    if config.calibrate and trained.calibration is not None and config.n_draws:
        from xpbayes.inference.recalibration import ln_snr_of, recalibrated

        inferred = recalibrated(inferred, trained.calibration, ln_snr_of(batch))
    as_rows = partial(
        catalogue_rows,
        table,
        status,
        ln_threshold=float(trained.prior.ln_threshold),
        use_parallax=config.use_parallax,
        by_chains=by_chains,
    )
    rows = as_rows(inferred)
    if trained.support is not None:
        from xpbayes.inference.support import extrapolation

        labels = jnp.asarray(inferred.estimate[:, : len(trained.labels)])
        rows["extrapolation"] = np.full(len(table), np.nan, np.float32)
        rows["extrapolation"][status == OK] = extrapolation(trained.support, trained.prior, labels)
    if trained.confidence is not None:
        from xpbayes.production.reliability import confidence_columns

        filled, notes = confidence_columns(trained, table, rows)
        rows |= filled
        for note in notes:
            say(note)
    if factor is not None:
        from xpbayes.training.network_uncertainty import add_model_covariance, added_to_inferred

        added = added_to_inferred(*parts, factor, batch, inferred.estimate, use_parallax=config.use_parallax)
        wide = as_rows(add_model_covariance(inferred, added), added=added)
        # Flags and confidences know the stars' own errors, from which the classifiers were learned.
        rows = wide | {name: rows[name] for name in KNOW_OWN_ERRORS}
    return to_arrow(rows, len(trained.labels)), len(table) - len(usable)


def _stream(
    stars: Spectra | PathLike | Sequence[PathLike], out: PathLike | None, say: Say
) -> tuple[Iterator[Spectra], dict[str, Any]]:
    """Star tables one after the other, and what they are: a table, a file, a folder of files, or a survey.toml."""
    if not isinstance(stars, Spectra | str | Path):
        if len(stars) == 1:
            return _stream(stars[0], out, say)
        streams = [_stream(one, out, say) for one in stars]
        names = " ".join(str(source["path"]) for _, source in streams)
        return chain.from_iterable(stream for stream, _ in streams), {
            "path": names,
            "checksum": [source["checksum"] for _, source in streams],
        }
    if isinstance(stars, Spectra) or Path(stars).suffix != ".toml":
        table, source = _table(stars)
        return iter([table]), source
    from xpbayes.archive.companions import read_companions
    from xpbayes.archive.prepare import QUARANTINE
    from xpbayes.archive.stream import stream_stars
    from xpbayes.archive.survey_config import read_survey
    from xpbayes.data.rejected import write_quarantine

    path = Path(stars)
    survey = read_survey(path).for_inference()

    def parts() -> Iterator[Spectra]:
        companions = read_companions(survey, path.parent, say)
        rejected = list(companions.rejected)
        for part in stream_stars(survey, path.parent, companions):
            rejected += part.rejected
            yield part.table
        if rejected:
            say(f"{len(rejected)} rows could not be used (first: {rejected[0].file}, row {rejected[0].row})")
            if out is not None:
                say(f"wrote {write_quarantine(rejected, Path(out).with_suffix('.' + QUARANTINE))}")

    return parts(), {"path": path.name, "checksum": file_checksum(path)}


SELECTIONS = ("all", "held-out", "training")


def _check_selection(only: str) -> None:
    if only not in SELECTIONS:
        raise InputError(f"'{only}' is no selection of stars{nearest(only, SELECTIONS)}; use {', '.join(SELECTIONS)}")


def choose_stars(model: TrainedModel, table: Spectra, only: str) -> Spectra:
    """Select one side of the split that the model was trained with.

    'training' is that side of the source_id split, whether or not a star passed the training cuts.
    """
    _check_selection(only)
    if only == "all":
        return table
    split = model.card["split"]
    held_out = held_out_by_source_id(table.source_id, split["fraction"], split["seed"])
    return table.take(held_out if only == "held-out" else ~held_out)


def verify(catalogue: PathLike, say: Say = quiet) -> None:
    """Re-check a finished catalogue in parts.

    Args:
        catalogue: its folder.
        say: receives every problem, and a line if there are none.

    Raises:
        InputError: it is not finished, or something is wrong with it.
    """
    from xpbayes.production.verify import verify_catalogue

    found = verify_catalogue(Path(catalogue))
    for problem in found.problems:
        say(problem)
    if found.problems:
        raise InputError(f"{catalogue}: {len(found.problems)} problems (first: {found.problems[0]})")
    say(f"{found.n_rows:,} rows in {found.n_parts} parts: every check passed")


def export(
    catalogue: PathLike,
    out: PathLike,
    format: str,
    approximate_positions: bool = False,
    processes: int | None = None,
    say: Say = quiet,
) -> Path:
    """Write a catalogue in another format, with the schema's units, UCDs and descriptions.

    Args:
        catalogue: a catalogue file, or the folder of a catalogue in parts.
        out: file to write; for 'hats' a folder that must not exist.
        format: 'hats', 'votable' or 'fits'.
        approximate_positions: for 'hats', where ra and dec are missing: use the HEALPix pixel in the source_id.
        processes: for 'hats', workers; chosen if None.
        say: receives progress.

    Returns:
        what was written.

    Raises:
        InputError: it cannot be read or written, positions are missing, or a package is.
    """
    from xpbayes.production import export as exports
    from xpbayes.production.reader import open_catalogue

    opened, target = open_catalogue(catalogue), Path(out)
    _check_writable(target)
    if format == "hats":
        exports.write_hats(opened, target, approximate_positions=approximate_positions, processes=processes)
    elif format == "votable":
        exports.write_votable(opened, target)
    elif format == "fits":
        exports.write_fits(opened, target)
    else:
        raise InputError(f"'{format}' is no format{nearest(format, exports.FORMATS)}; use {', '.join(exports.FORMATS)}")
    say(f"wrote {target}: {opened.n_rows:,} rows")
    return target


# ------------------------------------------------------------------------------------------ confidences, single stars


def confidence(
    model: TrainedModel | PathLike,
    catalogue: PathLike,
    stars: Spectra | PathLike,
    out: PathLike | None = None,
    config: "ConfidenceConfig | None" = None,
    figures: PathLike | None = None,
    say: Say = quiet,
) -> "tuple[TrainedModel, ConfidenceCheck]":
    """Train classifiers of how reliable the estimates are (ZGR23 Section 4.4, Appendix B).

    Args:
        model: a trained model or its folder.
        catalogue: what it inferred for stars that it never saw (``only="held-out"``).
        stars: the star table that the catalogue was inferred from, with labels.
        out: folder for the model with its classifiers, its own folder perhaps; nothing is written if None.
        config: settings; Appendix B's if None.
        figures: folder for figures and numbers of how well the confidences work; none if None.
        say: receives progress, one line at a time.

    Returns:
        the model with classifiers, and how they do on the stars held out from training them.

    Raises:
        InputError: the catalogue is another model's or holds stars of the training side; too few stars remain.

    Example:
        >>> model, check = xpbayes.confidence("model", "catalogue.parquet", "stars.parquet")  # doctest: +SKIP
    """
    from xpbayes.analysis.pages.confidence import held_out_fits, judge, write_check
    from xpbayes.models.reliability import feature_names
    from xpbayes.training.reliability import ConfidenceConfig, confidences, train_confidence

    config = config or ConfidenceConfig()
    begun = time.perf_counter()
    trained = _loaded(model)
    _check_writable(out if out is None else Path(out) / CARD)
    _check_writable(figures if figures is None else Path(figures) / CARD)
    rows, about = read_catalogue(catalogue)
    table, source = _table(stars)
    trained.channels.require_same(table.channels, "the model", str(source["path"]))
    fits = held_out_fits(trained, rows, about, table, str(catalogue))
    split = {"by": "source_id hash", "fraction": config.validation_fraction, "seed": trained.card["split"]["seed"] + 1}
    validation = held_out_by_source_id(fits.comparison.source_id, split["fraction"], split["seed"])
    say(f"{len(validation)} held-out stars with labels pass the basic cut, {fits.n_failed_basic_cut} do not")
    names = feature_names(trained.labels, trained.channels.names)
    learned = train_confidence(fits.features, fits.chi2_eps, validation, fits.targets, names, config, say)
    check = judge(fits, validation, learned.nets.targets, confidences(learned.nets, fits.features))
    entry = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "catalogue": {k: about.get(k) for k in ("created", "input", "selection", "settings", "n_with_parallax")},
        "stars": source,
        "features": list(names),
        "split": split,
        "n_failed_basic_cut": fits.n_failed_basic_cut,
        **learned.record,
        **check.numbers(),
        "seconds": round(time.perf_counter() - begun, 2),
        "versions": versions(),
    }
    trained = replace(trained, confidence=learned.nets, card={**trained.card, "confidence": entry})
    if figures is not None:
        for path in write_check(check, Path(figures)):
            say(f"wrote {path}")
    if out is not None:
        say(f"wrote {save_model(trained, out)}")
        trained = load_model(out)
    return trained, check


def fit(
    model: TrainedModel | PathLike,
    stars: Spectra | PathLike,
    source_ids: Sequence[int],
    out: PathLike | None = None,
    config: InferenceConfig | None = None,
    say: Say = quiet,
) -> "list[StarFit]":
    """Fit a handful of stars and find every optimum of their posteriors that many starts can reach.

    Args:
        model: a trained model or its folder.
        stars: a star table, its path, a folder of star tables, or a survey.toml.
        source_ids: which stars; each fit's order is theirs.
        out: folder for ``fit.json`` and one figure a star; nothing is written if None.
        config: settings; the defaults if None.
        say: receives progress, one line at a time.

    Raises:
        InputError: a source_id is not there, or model and stars do not fit together.

    Example:
        >>> stars = xpbayes.fit("model", "stars.parquet", [4295806720], out="fit")  # doctest: +SKIP
    """
    from xpbayes.analysis.pages.star_page import star_fits, write_fits
    from xpbayes.inference.search.modes import find_modes

    config = config or InferenceConfig()
    trained = _loaded(model)
    _check_writable(out if out is None else Path(out) / CARD)
    table, where = _pick_stars(stars, list(dict.fromkeys(source_ids)), say)
    trained.channels.require_same(table.channels, "the model", where)
    factor = _weight_factor(model, trained) if config.model_uncertainty else None
    rows, _ = _infer_part(trained, factor, table, config, say)
    usable = table.take(np.flatnonzero(table.problems() == OK))
    say(f"looking for other optima of {len(usable)} stars")
    modes = (
        find_modes(trained.forward, trained.prior, trained.model_error, usable.stars(trained.labels), config)
        if len(usable)
        else []
    )
    found = dict(zip(usable.source_id.tolist(), modes, strict=True))
    fits = star_fits(trained, table, rows, found, parallax_used=config.use_parallax)
    if out is not None:
        for path in write_fits(fits, Path(out)):
            say(f"wrote {path}")
    return fits


def _pick_stars(stars: Spectra | PathLike, wanted: list[int], say: Say) -> tuple[Spectra, str]:
    """The stars of given source_ids, in that order, and what they came from; reading stops when all are found."""
    stream, source = _stream(stars, None, say)
    found: list[Spectra] = []
    missing = set(wanted)
    for table in stream:
        row = {int(s): i for i, s in enumerate(table.source_id.tolist()) if s in missing}
        if row:
            found.append(table.take(np.array(list(row.values()))))
            missing -= row.keys()
        if not missing:
            break
    if missing or not found:
        first = next((s for s in wanted if s in missing), None)
        raise InputError(
            f"{source['path']}: {len(missing)} of {len(wanted)} source_ids are not there (first: {first}); check them"
        )
    table = join_star_tables(found, [str(source["path"])] * len(found))
    at = {int(s): i for i, s in enumerate(table.source_id.tolist())}
    return table.take(np.array([at[s] for s in wanted])), str(source["path"])


# -------------------------------------------------------------------------------------------------------- prediction


@dataclass(frozen=True)
class Prediction:
    """A model spectrum.

    Attributes:
        channels: names of the channels.
        wavelength_nm: (channel,) [nm].
        flux: (channel,) [1e-18 W m^-2 nm^-1].
        model_error: (channel,) 1-sigma relative error of the model itself; 0 where it was not learned.
        ln_prior: how common such stars are in the training sample.
        unlikely: ln_prior lies below the model's threshold: the prediction is an extrapolation.
    """

    channels: tuple[str, ...]
    wavelength_nm: NDArray[np.float64]
    flux: NDArray[np.float64]
    model_error: NDArray[np.float64]
    ln_prior: float
    unlikely: bool


def predict_flux(
    model: TrainedModel | PathLike, *, extinction: float = 0.0, parallax: float = 1.0, **labels: float
) -> Prediction:
    """Predict the flux of one star.

    Args:
        model: a trained model or its folder.
        extinction: E [mag], not negative.
        parallax: [mas], positive.
        labels: the model's stellar labels by name; teff in K, the others in dex.

    Raises:
        InputError: a label is missing, unknown or out of any sensible range.

    Example:
        >>> xpbayes.predict_flux("model", teff=5800, feh=0, logg=4.4, extinction=0.1)  # doctest: +SKIP
    """
    from xpbayes.inference.model_error import relative_sigma
    from xpbayes.models.forward import ln_absolute_flux
    from xpbayes.models.prior import ln_prior

    trained = _loaded(model)
    for name in labels:
        if name not in trained.labels:
            raise InputError(f"the model has no label '{name}'{nearest(name, trained.labels)}")
    missing = [name for name in trained.labels if name not in labels]
    if missing:
        raise InputError(f"the label '{missing[0]}' is missing; the model needs {', '.join(trained.labels)}")
    if not np.isfinite([extinction, parallax, *labels.values()]).all():
        raise InputError("labels, extinction and parallax must be finite numbers")
    if "teff" in labels and not 1000 <= labels["teff"] <= 100_000:
        raise InputError(f"teff = {labels['teff']:g} is outside 1000 to 100000; it is in kelvin")
    if extinction < 0 or parallax <= 0:
        raise InputError("the extinction must not be negative and the parallax must be positive (mas)")
    value = np.array([labels[n] / 1e3 if n == "teff" else labels[n] for n in trained.labels], np.float32)
    intrinsic = np.asarray(ln_absolute_flux(trained.forward, jnp.asarray(value)), np.float64)
    curve = np.exp(np.asarray(trained.forward.ln_curve, np.float64))
    ln_p = float(ln_prior(trained.prior, jnp.asarray(value)))
    n = len(trained.channels)
    return Prediction(
        channels=trained.channels.names,
        wavelength_nm=trained.channels.wavelengths,
        flux=np.exp(intrinsic - extinction * curve) * parallax**2,
        model_error=relative_sigma(trained.model_error) if trained.model_error is not None else np.zeros(n),
        ln_prior=ln_p,
        unlikely=ln_p < float(trained.prior.ln_threshold),
    )


# ------------------------------------------------------------------------------------------------- data, report, demo


def fetch_apogee(out: PathLike, say: Say = quiet) -> Spectra:
    """Download the full APOGEE x XP library with pip and write it as a star table.

    Args:
        out: Parquet file.
        say: receives progress.
    """
    from xpbayes.archive.apogee import PACKAGE, fetch_library, read_library, star_table_from_library

    _check_writable(out)
    with tempfile.TemporaryDirectory() as scratch:
        library = read_library(fetch_library(say, Path(scratch)))
    say(f"calibrating {len(library.source_id)} spectra")
    table = star_table_from_library(library, f"full table of {PACKAGE}")
    for cut in table.cuts:
        say(f"cut: {cut.what}: {cut.removed} removed, {cut.left} left")
    write_star_table(table, out)
    say(f"wrote {out}")
    return table


def bundled_stars(out: PathLike | None = None, say: Say = quiet) -> Spectra:
    """Return the bundled sample of 10,000 real stars as a star table.

    Args:
        out: Parquet file to write; none if None.
        say: receives progress.
    """
    from xpbayes.archive.apogee import bundled_stars as read

    _check_writable(out)
    table = read()
    if out is not None:
        write_star_table(table, out)
        say(f"wrote {out}: {len(table)} stars")
    return table


def report(
    model: TrainedModel | PathLike,
    catalogue: PathLike,
    stars: Spectra | PathLike,
    out: PathLike,
    timings: dict[str, float] | None = None,
    say: Say = quiet,
    *,
    source_ids: Sequence[int] = (),
    draws: PathLike | None = None,
) -> Path:
    """Write the report of a run: one self-contained HTML file.

    Args:
        model: a trained model or its folder.
        catalogue: the catalogue file, or the folder of a catalogue in parts.
        stars: the star table that was inferred, with labels where known.
        out: HTML file.
        timings: further stages and their seconds, for the page.
        say: receives progress.
        source_ids: stars that get a section of their own.
        draws: file of `sample`: the draws of these stars.

    Raises:
        InputError: the inputs do not belong together, or a requested star is not there.
    """
    from xpbayes.analysis.pages.report import write_report
    from xpbayes.analysis.run_inputs import open_stars

    trained = _loaded(model)
    table, _ = _table(stars)
    _check_writable(out)
    with tempfile.TemporaryDirectory() as scratch:  # the figures stream their stars from disk
        on_disk = write_star_table(stars, Path(scratch) / "stars.parquet") if isinstance(stars, Spectra) else stars
        files = open_stars(on_disk)
        path = write_report(trained, catalogue, table, files, Path(out), timings or {}, source_ids, draws)
    say(f"wrote {path}")
    return path


def dust_map(
    catalogue: PathLike, out: PathLike | None = None, config: "DustMapConfig | None" = None, say: Say = quiet
) -> "DustMaps":
    """Make a three-dimensional dust map from a catalogue's extinctions and parallaxes (ZGR23 Section 5.4).

    Args:
        catalogue: a catalogue file, or the folder of a catalogue in parts; it is streamed.
        out: folder for sky.fits, profile.fits, birds_eye.fits, figures and dust_map.json; nothing is written if None.
        config: cuts, resolutions, distance bins, kind of mean; the paper's if None.
        say: receives progress.

    Returns:
        the maps; `profile.extinction(coords, distance)` answers queries.

    Raises:
        InputError: no finished catalogue, a missing column, or no star passes the cuts.
    """
    from xpbayes.analysis.dust_map.build import ABOUT, build_dust_map, write_dust_map

    if out is None:
        return build_dust_map(Path(catalogue), config, say=say)
    _check_writable(Path(out) / ABOUT)
    Path(out).mkdir(parents=True, exist_ok=True)
    maps = build_dust_map(Path(catalogue), config, scratch=Path(out), say=say)
    for path in write_dust_map(maps, Path(out)):
        say(f"wrote {path}")
    return maps


def demo(out: PathLike, say: Say = quiet) -> Path:
    """Do everything once on the bundled sample: train, infer held-out stars, write catalogue and report.

    Args:
        out: folder for all products.
        say: receives progress.

    Returns:
        path of the report.
    """
    folder = Path(out)
    seconds: dict[str, float] = {}

    def timed(stage: str, run: Callable[[], Any]) -> Any:
        say(f"--- {stage}")
        begun = time.perf_counter()
        result = run()
        seconds[stage] = time.perf_counter() - begun
        return result

    from xpbayes.analysis.pages.requested_stars import typical_stars

    _check_writable(folder / CARD)
    timed("calibrating the bundled sample", lambda: bundled_stars(folder / "stars.parquet", say))
    model = timed("training on 80 % of the stars", lambda: train(folder / "stars.parquet", folder / "model", say=say))
    timed(
        "inferring the other 20 % from flux alone",
        lambda: infer(model, folder / "stars.parquet", folder / "catalogue.parquet", only="held-out", say=say),
    )
    path = timed(
        "writing the report",
        lambda: report(
            model,
            folder / "catalogue.parquet",
            folder / "stars.parquet",
            folder / "report.html",
            dict(seconds),
            say,
            source_ids=typical_stars(read_catalogue(folder / "catalogue.parquet")[0], model),
        ),
    )
    for stage, value in seconds.items():
        say(f"{value:7.1f} s  {stage}")
    return path


# ------------------------------------------------------------------------------------------------------------ helpers


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    packages = ("xpbayes", "jax", "numpyro", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{p: version(p) for p in packages}}


def _loaded(model: TrainedModel | PathLike) -> TrainedModel:
    return model if isinstance(model, TrainedModel) else load_model(model)


def _table(stars: Spectra | PathLike) -> tuple[Spectra, dict[str, Any]]:
    if isinstance(stars, Spectra):
        return stars, {"path": "a table in memory", "checksum": "", "n_stars": len(stars)}
    table = read_star_tables(stars)
    path = Path(stars)
    checksum = "" if path.is_dir() else file_checksum(path)
    return table, {"path": path.name, "checksum": checksum, "n_stars": len(table)}


def _check_writable(out: PathLike | None) -> None:
    """Refuse an unwritable output before hours of work, not after."""
    if out is None:
        return
    target = Path(out)
    parent = target.parent
    while not parent.exists():
        parent = parent.parent
    try:
        if not parent.is_dir():
            raise NotADirectoryError(20, f"{parent} is not a folder")
        with tempfile.TemporaryFile(dir=parent):
            pass
        if target.is_dir() and target.suffix:
            raise IsADirectoryError(21, "it is a folder")
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another output") from error


def to_stderr(line: str) -> None:
    """Say a line where it does not mix with results."""
    print(line, file=sys.stderr, flush=True)
