"""Infer any number of stars into a catalogue in parts: engines and shards share the work, a killed run is gone on with."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa

from xpbayes.archive.companions import Companions
from xpbayes.archive.direct import CompanionFiles, open_inputs, say_bands
from xpbayes.archive.stream import uncorrected_parallaxes
from xpbayes.archive.survey_config import Survey
from xpbayes.config import InferenceConfig
from xpbayes.data.spectra import OK, Spectra
from xpbayes.data.stars import STAR_BLOCK
from xpbayes.device import FEW_STARS, hasty_programs
from xpbayes.errors import InputError
from xpbayes.production import engine as engines
from xpbayes.production import kept
from xpbayes.production import manifest as manifests
from xpbayes.production.bundled import model_folder
from xpbayes.production.export import check_folder
from xpbayes.production.inputs import STARS_AT_ONCE, Layout, Task, lay_out, read_task
from xpbayes.production.meeting import require_fitting, say_what_is_null, warn_of_transfer
from xpbayes.production.model_file import TrainedModel, load_model
from xpbayes.production.parts import OpenedInput, PartDraft, PartRecord, clean, read_record, read_records, write_part
from xpbayes.production.prefetch import prefetched
from xpbayes.production.progress import Progress
from xpbayes.production.table import describe
from xpbayes.production.verify import check_repeated
from xpbayes.runs.infer import about_model, model_factor, solve_stars
from xpbayes.runs.inputs import PathLike, check_selection, check_writable, choose_stars, versions
from xpbayes.training.network_uncertainty import NetworkCovariance

log = logging.getLogger(__name__)

ROW_BYTES = 10_000
"""Of a star's row in a file, the least there is: a compressed star table's."""
STARS_PER_PART = 32_768
"""Rows of a part of a catalogue: some 15 MB, and less than a minute of one core's work lost to a kill."""


def infer_parts(  # noqa: PLR0913, PLR0915 - what the verb of the command line can say, one step after the other
    model: PathLike,
    inputs: PathLike | Survey | Sequence[PathLike | Survey],
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
    companions: CompanionFiles = None,
) -> Path:
    """Infer any number of stars into a catalogue in parts, in memory that does not grow with them.

    However often the run is killed and gone on with, and whichever engine does it, the parts are the same bytes.

    Args:
        config: settings; the defaults if None.
        model: folder of the model.
        inputs: star tables, folders of them, survey.toml files, files of XP spectra; one or several.
        out: folder for the catalogue: parts, ``manifest.json``, ``quarantine.csv``.
        only: 'all', or 'training', 'kept-aside' or 'held-out', a side of the model's own split.
        resume: go on with what `out` holds; else it must be empty.
        engine: 'local', processes of this machine, or 'dask'.
        processes: how many; one a device or core, as far as memory goes, if None.
        scheduler: address of a running Dask scheduler; None starts workers on this machine.
        shard: (i, n): do only every n-th task, from the i-th on, beside n - 1 other jobs; implies `resume`. Whoever
            is last completes the manifest.
        stars_per_part: most rows of a part.
        companions: tables that belong to files of XP spectra, as for `infer`.

    Returns:
        the folder.

    Raises:
        InputError: inputs, model and folder do not fit together; an input has changed, gone or is damaged; the disk
            is full; a source_id is in several parts.

    Example:
        >>> xpbayes.infer_parts("model", ["a.parquet", "b.parquet"], "catalogue/")  # doctest: +SKIP
    """
    engines.check_engine(engine)
    engines.slots(processes)  # an impossible number is refused before anything is written
    if scheduler is not None and engine != "dask":
        raise InputError(f"--scheduler {scheduler} is for the engine dask; add --engine dask")
    if stars_per_part < 1:
        raise InputError(f"--stars-per-part {stars_per_part} is not possible; use at least 1")
    config, folder, model = config or InferenceConfig(), Path(out), model_folder(model).absolute()
    check_selection(only)
    check_folder(folder)
    check_writable(folder, model, inputs, files=(manifests.MANIFEST,))
    opened = open_inputs(inputs, companions)
    trained = load_model(model)
    factor = model_factor(model, trained) if config.model_uncertainty else None
    layout = lay_out(opened, trained.channels, stars_per_part)
    say_bands(opened, trained.channels)
    require_fitting(trained, trained.channels, layout.instrument, layout.files[0].name)
    warn_of_transfer(trained, layout.instrument, layout.files[0].name)
    settings = config.model_dump(mode="json")
    about = {**about_model(trained, factor, layout.instrument), "settings": settings, "selection": only}
    identity = manifests.make_identity(layout, model, about, settings, versions())
    with manifests.alone(folder, shard):
        manifest = manifests.open_run(folder, identity, resume=resume or shard is not None)
        clean(folder, everything=manifest["complete"])
        if manifest["complete"]:
            log.info(f"{folder} is complete already: {manifest['totals']['rows_written']:,} rows")
            return folder

        records = read_records(folder)
        manifests.check_inputs_unchanged(layout, records)
        mine = [t for t in layout.tasks if shard is None or t.number % shard[1] == shard[0]]
        layout_file = kept.keep_layout(folder, layout)
        identified, few = manifests.identity_checksum(identity), _are_few(layout, config)
        job = _Job(str(folder.absolute()), str(model), config, only, layout_file, identified, few)

        run = partial(engines.run_dask, scheduler=scheduler) if engine == "dask" else engines.run_local

        kept.keep_tables(folder, layout)
        done = manifests.finished_tasks(folder, mine, records)
        progress = Progress(sum(t.weight for t in mine))
        progress.already([r for t in done for r in done[t]], sum(t.weight for t in done))
        left = [t for t in mine if t not in done]
        if done:
            log.info(f"{len(done)} of {len(mine)} tasks are done already")
        if left:
            say_what_is_null(trained)
            tasks = "1 task" if len(left) == 1 else f"{len(left)} tasks"
            log.info(f"{tasks} to do; each worker compiles its programs before its first stars")
        for task, made in run(partial(infer_task, job), left, processes=processes) if left else ():
            progress.add(made, task.weight)

        finished = manifests.complete(folder, layout, model, manifest, partial(kept.kept_about, folder, layout))
    if finished is None:
        log.info(f"this job's {len(mine)} tasks are done; other jobs' are not, and the last of them completes {folder}")
        return folder
    total = finished["totals"]
    log.info(
        f"{total['rows_read']:,} rows read: {total['rows_written']:,} written, {total['rows_not_selected']:,} not "
        f"selected, {total['rows_quarantined']:,} quarantined; {total['bytes'] / 1e6:,.1f} MB in {folder}"
        + "".join(f"; {line}" for line in uncorrected_parallaxes(total["n_uncorrected"]))
    )
    check_repeated(folder, finished)
    if finished.get("notes"):
        log.info("; ".join(finished["notes"]))
    if not total["status"].get(OK):
        raise InputError(
            f"{folder}: none of its {total['rows_read']} rows has a solution; see {manifests.MANIFEST} for the reasons"
        )
    return folder


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know, small enough to be sent with every task."""

    folder: str  # of the catalogue
    model: str  # folder of the model
    config: InferenceConfig
    only: str  # side of the model's split
    layout: str  # file that keeps the layout
    identity: str  # checksum of everything that the run is made from, so that nothing is kept from an earlier one
    few: bool  # the run's stars are so few that programs need not be fast


def _are_few(layout: Layout, config: InferenceConfig) -> bool:
    return sum(task.weight for task in layout.tasks) <= FEW_STARS * ROW_BYTES and not config.refine


class _AtWork(NamedTuple):
    """What a worker reads once."""

    trained: TrainedModel
    factor: NetworkCovariance | None  # what is unknown of the model
    layout: Layout
    companions: list[Companions]  # of every survey, to be joined to its spectra
    about: dict[str, Any]  # metadata of every part: no time or host in it


@lru_cache(maxsize=1)
def _at_work(job: _Job) -> _AtWork:
    folder, model = Path(job.folder), Path(job.model)
    identity = manifests.read_manifest(folder)["identity"]
    if manifests.identity_checksum(identity) != job.identity:
        raise InputError(f"{folder}: holds another run now; infer into another folder")
    layout, trained = kept.kept_layout(job.layout), load_model(model)
    factor = model_factor(model, trained) if job.config.model_uncertainty else None
    manifests.check_model(model, identity)  # after reading: what was read is what the run was begun with
    return _AtWork(trained, factor, layout, kept.kept_tables(folder, layout), identity["about"])


def infer_task(job: _Job, task: Task) -> list[PartRecord]:
    """Read, calibrate, solve and write one task: the one function that every engine calls.

    Parts that are there already stay as they are; for the same input, the others are always the same bytes.
    """
    trained, factor, layout, companions, about = _at_work(job)
    folder, use_parallax = Path(job.folder), job.config.use_parallax
    records: list[PartRecord] = []
    draft: PartDraft | None = None
    known: PartRecord | None = None
    source = OpenedInput.at(layout.files[task.file].path)
    with prefetched(read_task(layout, task, companions, trained.channels)) as batches:
        for batch in batches:
            if draft is None:
                known, draft = read_record(folder, task.file, batch.block), PartDraft()
            if known is None:
                chosen = choose_stars(trained, batch.table, job.only)
                with hasty_programs(job.few):
                    rows = solve_batch(trained, factor, chosen, job.config)
                draft.add(
                    rows,
                    batch.rejected,
                    batch.cuts,
                    n_read=batch.n_read,
                    n_not_selected=len(batch.table) - len(chosen),
                    n_with_parallax=int(chosen.is_measured("parallax").sum()) if use_parallax else 0,
                    n_uncorrected=batch.n_uncorrected,
                )
                engines.give_memory_back()  # what one batch leaves scattered would come on top of the next one's needs
            if batch.ends_part:
                if known is None:
                    rows, record = draft.finished(task.file, batch.block, source, last=batch.ends_task)
                    known = write_part(folder, describe(rows, about), record)
                records.append(known)
                draft = None
    return records


def solve_batch(
    trained: TrainedModel, factor: NetworkCovariance | None, table: Spectra, config: InferenceConfig
) -> pa.Table:
    """Catalogue rows of some thousand stars, by the compiled programs that serve every batch of a run.

    A batch is filled up to whole blocks of stars, on an accelerator to all that it takes: another size is another program.
    """
    status = table.problems()
    usable = np.flatnonzero(status == OK)
    whole = STAR_BLOCK if jax.default_backend() == "cpu" else config.chunk_size or STARS_AT_ONCE
    missing = -len(usable) % whole
    if not missing or not len(usable):
        return solve_stars(trained, factor, table, config, logging.DEBUG, status)[0]
    index = np.concatenate([np.arange(len(table)), np.full(missing, usable[-1])])
    return solve_stars(trained, factor, table.take(index), config, logging.DEBUG, status[index])[0].slice(0, len(table))
