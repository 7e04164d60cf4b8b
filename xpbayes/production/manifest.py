"""The manifest of a catalogue in parts: what it is made from, whether it is complete, and what every part must be.

A run begins by writing its identity - inputs, model, settings, versions - to ``manifest.json``; whoever goes on, on this
machine or another, must have the same one. When the record of every part is there, they move into the manifest, which
is then complete. It holds no times and no host names: two undisturbed runs write the same bytes.
"""

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, StrictBool, StrictInt

from xpbayes.data.json_file import checked, read_json, write_json
from xpbayes.data.parquet import file_metadata, open_parquet, require_kind
from xpbayes.data.rejected import write_quarantine
from xpbayes.data.spectra import add_up_cuts
from xpbayes.errors import InputError
from xpbayes.files import file_checksum, first_difference, locked
from xpbayes.instrument.instrument import InstrumentId
from xpbayes.production.beside import WEIGHT_FACTOR
from xpbayes.production.parts import MAKE_ROOM, RECORDS, PartRecord, check_unchanged, clean, is_intact, read_records
from xpbayes.schema import CATALOGUE_VERSION

if TYPE_CHECKING:  # readers of a finished catalogue need none of the archive's doors
    from xpbayes.production.inputs import Layout, Task
    from xpbayes.production.kept import Kept

MANIFEST, QUARANTINE = "manifest.json", "quarantine.csv"
LOCK = ".lock"
"""Beginning of the names of files that a run at work holds: none of its results."""
MANIFEST_VERSION = 1
log = logging.getLogger(__name__)


class _About(BaseModel):
    """What a catalogue says about its making, as far as readers rely on it."""

    labels: list[str] = Field(min_length=1)
    settings: dict[str, Any] = {}
    model: dict[str, Any] = {}
    instrument: InstrumentId | None = None


class _Identity(BaseModel):
    inputs: dict[str, Any] = {}
    model: dict[str, str] = {}
    settings: dict[str, Any] = {}
    about: _About
    versions: dict[str, str] = {}


class _Begun(BaseModel):
    """A manifest from its beginning."""

    version: StrictInt
    complete: StrictBool
    identity: _Identity


class _Totals(BaseModel):
    rows_read: int
    rows_written: int
    rows_not_selected: int
    rows_quarantined: int
    companion_rows_quarantined: int
    n_with_parallax: int
    bytes: int
    status: dict[str, int]


class _Published(BaseModel):
    """A part, as far as readers rely on it."""

    file: int = Field(ge=0)
    block: int = Field(ge=0)
    n_read: int
    n_rows: int
    n_not_selected: int
    n_with_parallax: int
    n_quarantined: int
    status: dict[str, int]
    first_source_id: int
    last_source_id: int
    size: int
    checksum: str
    input_checksum: str = ""


class _Input(BaseModel):
    name: str
    checksum: str


class _Complete(_Begun):
    """What is added when the catalogue is complete."""

    totals: _Totals
    parts: list[_Published]
    inputs: list[_Input] = []
    companions: list[_Input] = []
    notes: list[str] = []


def catalogue_metadata(path: str | Path) -> dict[str, Any]:
    """Read what a catalogue's file says about its making; InputError if it is no catalogue, or of a newer xpbayes."""
    about = file_metadata(path)
    require_kind(about, "catalogue", CATALOGUE_VERSION, path)
    checked(about, _About, f"{path}: metadata", "infer it again")
    with open_parquet(path) as file:
        kinds = {f.name: str(f.type) for f in file.schema_arrow if f.name.endswith("source_id")}
    for name, kind in kinds.items():
        if kind != "int64":
            raise InputError(
                f"{path}: column {name} is of type {kind}, in which identifiers lose digits; infer it again"
            )
    return about


def model_checksums(folder: Path, *, uncertainty: bool) -> dict[str, str]:
    """SHA-256 of every file that a model folder's results depend on; of the model's own posterior only if it is used."""
    files = [p for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".json")]
    return {p.name: file_checksum(p) for p in files if uncertainty or p.name != WEIGHT_FACTOR}


def check_model(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise InputError if a model folder is no longer what a run was begun with."""
    now = model_checksums(folder, uncertainty=bool(identity["settings"].get("model_uncertainty")))
    changed = sorted(name for name in {*now, *identity["model"]} if now.get(name) != identity["model"].get(name))
    if changed:
        raise InputError(
            f"{folder}: {changed[0]} has changed since the run began; put the model back, or infer into another folder"
        )


def make_identity(
    layout: "Layout", model: Path, about: dict[str, Any], settings: dict[str, Any], versions: dict[str, str]
) -> dict[str, Any]:
    """Put together what must not change between the first part and the last; `about` is the metadata of every part."""
    return {
        "inputs": layout.identity(),
        "model": model_checksums(model, uncertainty=bool(settings.get("model_uncertainty"))),
        "settings": settings,
        "about": about,
        "versions": versions,
    }


def identity_checksum(identity: dict[str, Any]) -> str:
    """SHA-256 of what `make_identity` returned."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a catalogue in parts; InputError if there is none, it is damaged or from a newer xpbayes."""
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder}: is not a catalogue in parts (no {MANIFEST}); name one that 'xpbayes infer' wrote")
    again = "infer the catalogue again"
    if read_json(path, _Begun, again, MANIFEST_VERSION).complete:
        read_json(path, _Complete, again)
    return read_json(path, dict[str, Any], again)


def read_complete(folder: Path) -> dict[str, Any]:
    """Read the manifest of a catalogue whose parts are all there; InputError also where they are not."""
    manifest = read_manifest(folder)
    if not manifest["complete"]:
        raise InputError(f"{folder}: is not finished; go on with 'xpbayes infer ... --out {folder} --resume'")
    return manifest


def part_records(manifest: Mapping[str, Any]) -> list[PartRecord]:
    """Parts of a complete manifest; their quarantined rows are only counted there."""
    known = {f.name for f in fields(PartRecord)}
    unlisted = {"last": False, "input_checksum": "", "input_modified": 0}
    return [PartRecord(**{**unlisted, **{k: v for k, v in p.items() if k in known}}) for p in manifest["parts"]]


@contextmanager
def alone(folder: Path, shard: tuple[int, int] | None = None) -> Iterator[None]:
    """Keep other runs out of a catalogue's folder while one is at work; shards share it, each with itself alone."""
    made = not folder.exists()
    busy = f"{folder}: another run is at work there; wait until it ends, or choose another folder"
    try:
        with ExitStack() as stack:
            stack.enter_context(locked(folder / LOCK, busy, shared=shard is not None))
            if shard is not None:
                stack.enter_context(locked(folder / f"{LOCK}-{shard[0]}-{shard[1]}", busy))
            yield
    finally:
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # refused before anything was written


def open_run(folder: Path, identity: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    """Begin a run in an empty folder, or with `resume` go on with one; returns the manifest.

    Raises:
        InputError: the folder holds something and `resume` is false, holds something else, or holds a run with other
            inputs, another model, other settings or other versions.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder")
    identity = json.loads(json.dumps(identity))
    if (folder / MANIFEST).is_file():
        if not resume:
            raise InputError(
                f"{folder}: holds a catalogue already; go on with it by --resume, or choose another folder"
            )
        manifest = read_manifest(folder)
        difference = _difference(manifest["identity"], identity)
        if difference:
            raise InputError(
                f"{folder}: was begun with {difference}; go on with what it was begun with, or choose another folder"
            )
        return manifest
    if folder.is_dir() and any(not p.name.endswith(".tmp") and not p.name.startswith(LOCK) for p in folder.iterdir()):
        raise InputError(f"{folder}: is not empty and holds no catalogue; choose another folder")
    manifest = {"kind": "catalogue in parts", "version": MANIFEST_VERSION, "complete": False, "identity": identity}
    write_json(manifest, folder / MANIFEST, MAKE_ROOM)
    return manifest


NAMES = {"inputs": "other inputs", "model": "another model", "settings": "other settings", "versions": "other versions",
         "about": "another selection of stars"}  # fmt: skip


def _difference(old: Any, new: Any) -> str:
    """Name what differs first, in words; empty if nothing does."""
    for key, other in NAMES.items():
        found = first_difference(old.get(key), new.get(key))
        if found is not None:
            then, now = (len(v) if isinstance(v, list) else v for v in found[1:])
            then, now = (str(v) if len(str(v)) < 40 else f"{str(v)[:16]}..." for v in (then, now))
            return f"{other} ({found[0]}: {then} then, {now} now)"
    return ""


def check_inputs_unchanged(layout: "Layout", records: Iterable[PartRecord]) -> None:
    """Raise InputError where an input is no longer the file that finished parts came from, or these had several."""
    seen: dict[int, PartRecord] = {}
    for record in records:
        first = seen.setdefault(record.file, record)
        path = layout.files[record.file].path
        if first is record:
            check_unchanged(path, record.input_checksum, record.input_modified)
        elif record.input_checksum != first.input_checksum:
            raise InputError(
                f"{path}: {first.name} and {record.name} were made from different files of that name; infer into another "
                f"folder"
            )


def _parts_of_each(
    tasks: Iterable["Task"], records: Iterable[PartRecord]
) -> Iterator[tuple["Task", list[PartRecord] | None]]:
    """Every task with the records of its parts, None where there are not all."""
    by_file: dict[int, dict[int, PartRecord]] = {}
    for record in records:
        by_file.setdefault(record.file, {})[record.block] = record
    for task in tasks:
        found = by_file.get(task.file, {})
        blocks = [task.block]
        if task.stop is None:  # of spectra, only the last part tells how many there are
            blocks = list(range(1 + next((b for b, record in found.items() if record.last), -1)))
        yield task, [found[b] for b in blocks] if blocks and found.keys() >= set(blocks) else None


def finished_tasks(
    folder: Path, tasks: Sequence["Task"], records: Sequence[PartRecord]
) -> dict["Task", list[PartRecord]]:
    """Find tasks of which every part is there and intact, by the records of all finished parts."""
    intact = []
    for record in records:
        if is_intact(folder, record):
            intact.append(record)
        else:
            log.info(f"{record.name}: is not what its record says (damaged or removed); it is made again")
    return {task: mine for task, mine in _parts_of_each(tasks, intact) if mine}


# --------------------------------------------------------------------------------------------------------- completion


def complete(
    folder: Path,
    layout: "Layout",
    model: Path,
    manifest: dict[str, Any],
    companions: Callable[[], list["Kept"]],
) -> dict[str, Any] | None:
    """Gather the records into the manifest as it was begun, if all are there; None if parts are missing.

    `companions` returns what was kept of every survey's companion tables, while the records are there.

    Raises:
        InputError: the disk is full; an input or the model is not what the parts were made with.
        RuntimeError: rows were lost.
    """
    from xpbayes.archive.stream import idle_companions

    records = read_records(folder)
    if any(mine is None for _, mine in _parts_of_each(layout.tasks, records)):
        now = read_manifest(folder)  # another shard may have gathered them a moment ago
        return now if now["complete"] else None
    check_inputs_unchanged(layout, records)
    check_model(model, manifest["identity"])
    for record in records:
        record.check_rows()
    for i, file in enumerate(layout.files):
        n_read = sum(r.n_read for r in records if r.file == i)
        if file.n_rows is not None and n_read != file.n_rows:
            raise RuntimeError(f"{file.name}: {file.n_rows} rows, of which {n_read} were read")
    kept = companions()
    rejected = [row for one in kept for row in one.rejected]
    companion_checksums = [checksum for one in kept for checksum in one.checksums]
    quarantined = [*rejected, *(q for r in records for q in r.quarantined)]
    checksums = {r.file: r.input_checksum for r in records}
    done = {
        **manifest,
        "complete": True,
        "inputs": [{**f.identity(), "checksum": checksums[i]} for i, f in enumerate(layout.files)],
        "companions": [
            {**f.identity(), "checksum": c} for f, c in zip(layout.companions, companion_checksums, strict=True)
        ],
        "totals": totals(records, len(rejected)),
        "quarantined_by_reason": dict(sorted(Counter(r.reason for r in quarantined).items())),
        "notes": [
            *(line for one in kept for line in one.summary),
            *idle_companions(add_up_cuts(c for r in records for c in r.cuts)),
        ],
        "parts": [_published(r) for r in records],
    }
    write_quarantine(quarantined, folder / QUARANTINE)
    write_json(done, folder / MANIFEST, MAKE_ROOM)
    shutil.rmtree(folder / RECORDS, ignore_errors=True)
    clean(folder, everything=True)
    return done


def _published(record: PartRecord) -> dict[str, Any]:
    """A part as the complete manifest lists it: without what only a resumed run needs."""
    raw = {"name": record.name if record.n_rows else None, **asdict(record), "n_quarantined": len(record.quarantined)}
    return {k: v for k, v in raw.items() if k not in ("quarantined", "cuts", "input_modified", "last")}


def totals(records: Iterable[PartRecord], companion_rows: int = 0) -> dict[str, Any]:
    """Add up the parts: rows read = rows written + rows not selected + rows quarantined."""
    records = list(records)
    status = sum((Counter(record.status) for record in records), Counter[str]())
    return {
        "rows_read": sum(r.n_read for r in records),
        "rows_written": sum(r.n_rows for r in records),
        "rows_not_selected": sum(r.n_not_selected for r in records),
        "rows_quarantined": sum(len(r.quarantined) for r in records),
        "companion_rows_quarantined": companion_rows,
        "n_with_parallax": sum(r.n_with_parallax for r in records),
        "n_uncorrected": sum(r.n_uncorrected for r in records),
        "bytes": sum(r.size for r in records),
        "status": dict(sorted(status.items())),
    }
