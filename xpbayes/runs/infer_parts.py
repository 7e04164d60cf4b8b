"""Infer any number of stars into a catalogue in parts: engines and shards share the work, a killed run is gone on with."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pyarrow as pa

from xpbayes.archive.companions import Companions
from xpbayes.config import InferenceConfig
from xpbayes.data.spectra import OK, Spectra
from xpbayes.data.stars import STAR_BLOCK
from xpbayes.errors import InputError
from xpbayes.production import engine as engines
from xpbayes.production import manifest as manifests
from xpbayes.production import parts
from xpbayes.production.inputs import Chunk, Layout, lay_out, read_chunk
from xpbayes.production.model_file import TrainedModel, load_model
from xpbayes.production.parts import PartDraft, PartRecord, clean, read_record, read_records
from xpbayes.production.prefetch import prefetched
from xpbayes.production.progress import Progress
from xpbayes.production.table import describe
from xpbayes.production.verify import check_repeated
from xpbayes.runs.infer import about_model, model_factor, solve_stars
from xpbayes.runs.inputs import (
    PathLike,
    check_selection,
    check_writable,
    choose_stars,
    versions,
)

if TYPE_CHECKING:
    from xpbayes.training.network_uncertainty import NetworkCovariance

log = logging.getLogger(__name__)

STARS_PER_PART = 32_768
"""Rows of a part of a catalogue: some 15 MB, and less than a minute of one core's work lost to a kill."""


def infer_parts(  # noqa: PLR0913 - what the verb of the command line can say
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
) -> Path:
    """Infer any number of stars into a catalogue in parts, in memory that does not grow with them.

    However often the run is killed and gone on with, and whichever engine does it, the parts are the same bytes.

    Args:
        model: folder of the model.
        inputs: star tables, folders of them, survey.toml files; one or several.
        out: folder for the catalogue: parts, ``manifest.json``, ``quarantine.csv``.
        config: settings; the defaults if None.
        only: 'all', or 'training', 'kept-aside' or 'held-out', a side of the model's own split.
        resume: go on with what `out` holds; else it must be empty.
        engine: 'local', processes of this machine, or 'dask'.
        processes: how many; one a device or core, as far as memory goes, if None.
        scheduler: address of a running Dask scheduler; None starts workers on this machine.
        shard: (i, n): do only every n-th chunk, from the i-th on, beside n - 1 other jobs; implies `resume`. Whoever
            is last completes the manifest.
        stars_per_part: most rows of a part.

    Returns:
        the folder.

    Raises:
        InputError: inputs, model and folder do not fit together; an input has changed, gone or is damaged; the disk
            is full; a source_id is in several parts.

    Example:
        >>> xpbayes.infer_parts("model", ["a.parquet", "b.parquet"], "catalogue/")  # doctest: +SKIP
    """
    engines.check_engine(engine)
    if scheduler is not None and engine != "dask":
        raise InputError(f"--scheduler {scheduler} is for the engine dask; add --engine dask")
    config, folder, model = config or InferenceConfig(), Path(out), Path(model).absolute()
    check_selection(only)
    trained = load_model(model)
    factor = model_factor(model, trained) if config.model_uncertainty else None
    layout = lay_out([inputs] if isinstance(inputs, str | Path) else inputs, trained.channels, stars_per_part)
    settings = config.model_dump(mode="json")
    about = {**about_model(trained, factor), "settings": settings, "selection": only}
    identity = manifests.make_identity(layout, model, about, settings, versions())
    check_writable(folder / manifests.MANIFEST)
    manifest = manifests.open_run(folder, identity, resume=resume or shard is not None)
    clean(folder, everything=manifest["complete"])
    if manifest["complete"]:
        log.info(f"{folder} is complete already: {manifest['totals']['rows_written']:,} rows")
        return folder

    records = read_records(folder)
    manifests.check_inputs_unchanged(layout, records)
    mine = [c for c in layout.chunks if shard is None or c.number % shard[1] == shard[0]]
    kept = manifests.keep_layout(folder, layout)
    job = _Job(str(folder.absolute()), str(model), config, only, kept, manifests.identity_checksum(identity))

    def run(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        if engine == "dask":
            return engines.run_dask(work, items, scheduler, processes)
        return engines.run_local(work, items, processes)

    rejected = manifests.keep_tables(folder, layout)
    done = manifests.finished_chunks(folder, layout, mine, records)
    progress = Progress(sum(c.weight for c in mine))
    progress.already([r for c in done for r in done[c]], sum(c.weight for c in done))
    left = [c for c in mine if c not in done]
    if done or len(left) != len(mine):
        log.info(f"{len(done)} of {len(mine)} chunks are done already")
    for chunk, made in run(partial(infer_chunk, job), left) if left else ():
        progress.add(made, chunk.weight)

    finished = manifests.complete(folder, layout, manifest, rejected)
    if finished is None:
        log.info(
            f"this job's {len(mine)} chunks are done; other jobs' are not, and the last of them completes {folder}"
        )
        return folder
    total = finished["totals"]
    log.info(
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
def _at_work(job: _Job) -> tuple[TrainedModel, "NetworkCovariance | None", Layout, list[Companions]]:
    """Model, what is unknown of it, layout, and the tables to be joined to spectra: read once by each worker."""
    layout, trained = manifests.kept_layout(job.layout), load_model(job.model)
    factor = model_factor(job.model, trained) if job.config.model_uncertainty else None
    return trained, factor, layout, manifests.kept_tables(Path(job.folder), layout)


def infer_chunk(job: _Job, chunk: Chunk) -> list[PartRecord]:
    """Read, calibrate, solve and write one chunk: the one function that every engine calls.

    Parts that are there already stay as they are; for the same input, the others are always the same bytes.
    """
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
                part = solve_batch(trained, factor, chosen, job.config)
                measured = int(chosen.is_measured("parallax").sum()) if job.config.use_parallax else 0
                draft.add(piece.n_read, len(piece.table) - len(chosen), measured, part, piece.rejected)
                rows.append(part)
                engines.give_memory_back()  # what one piece leaves scattered would come on top of the next one's needs
            if piece.ends_part:
                if known is None:
                    table = describe(pa.concat_tables(rows).unify_dictionaries(), _about_part(trained, factor, job))
                    known = parts.write_part(folder, table, draft.record(file.path, last=piece.ends_chunk))
                records.append(known)
                rows, draft = [], None
    return records


def solve_batch(
    trained: TrainedModel, factor: "NetworkCovariance | None", table: Spectra, config: InferenceConfig
) -> pa.Table:
    """Catalogue rows of some thousand stars, by the compiled programs that serve every piece of a run.

    A piece is filled up to whole blocks of stars, on an accelerator to a whole chunk: another size is another program.
    """
    usable = np.flatnonzero(table.problems() == OK)
    whole = STAR_BLOCK if jax.default_backend() == "cpu" else config.chunk_size
    missing = -len(usable) % whole
    if not missing or not len(usable):
        return solve_stars(trained, factor, table, config, logging.DEBUG)[0]
    index = np.concatenate([np.arange(len(table)), np.full(missing, usable[-1])])
    return solve_stars(trained, factor, table.take(index), config, logging.DEBUG)[0].slice(0, len(table))


def _about_part(trained: TrainedModel, factor: "NetworkCovariance | None", job: _Job) -> dict[str, Any]:
    """Metadata of a part: the same for all parts, and no time or host in it."""
    return {**about_model(trained, factor), "settings": job.config.model_dump(mode="json"), "selection": job.only}
