"""The manifest of a catalogue in parts: what it is made from, whether it is complete, and what every part must be.

A run begins by writing its identity - inputs, model, settings, versions - to ``manifest.json``; whoever goes on, on this
machine or another, must have the same one. When the record of every part is there, they move into the manifest, which
is then complete. It holds no times and no host names: two undisturbed runs write the same bytes.
"""

import hashlib
import json
import logging
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xpbayes.data.rejected import Rejected, write_quarantine
from xpbayes.errors import InputError
from xpbayes.files import file_checksum
from xpbayes.production.model_file import WEIGHT_FACTOR
from xpbayes.production.parts import (
    RECORDS,
    PartRecord,
    cannot_write,
    clean,
    is_intact,
    read_records,
    temporary_name,
    write_json,
)

if TYPE_CHECKING:  # readers of a finished catalogue need none of the archive's doors
    from xpbayes.archive.companions import Companions
    from xpbayes.production.inputs import Chunk, InputFile, Layout

log = logging.getLogger(__name__)

MANIFEST, QUARANTINE = "manifest.json", "quarantine.csv"
TABLES = "tables.pickle"
MANIFEST_VERSION = 1


def model_checksums(folder: Path, *, uncertainty: bool) -> dict[str, str]:
    """SHA-256 of every file that a model folder's results depend on; of the model's own posterior only if it is used."""
    files = [p for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".json")]
    return {p.name: file_checksum(p) for p in files if uncertainty or p.name != WEIGHT_FACTOR}


def make_identity(
    layout: "Layout", model: Path, about: dict[str, Any], settings: dict[str, Any], versions: dict[str, str]
) -> dict[str, Any]:
    """Put together what must not change between the first part and the last.

    Args:
        layout: inputs and how they are cut.
        model: folder of the model.
        about: the metadata of every part.
        settings: of inference.
        versions: of the software that results depend on.
    """
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
    """Read the manifest of a catalogue in parts.

    Raises:
        InputError: there is none, or it is damaged or from a newer xpbayes.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder}: is not a catalogue in parts (no {MANIFEST}); name one that 'xpbayes infer' wrote")
    try:
        manifest = json.loads(path.read_text())
        version = manifest["version"]
        manifest["identity"], manifest["complete"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({type(error).__name__}); infer the catalogue again") from error
    if version > MANIFEST_VERSION:
        raise InputError(f"{path}: version {version} is newer than this xpbayes reads; upgrade xpbayes")
    return manifest


def open_run(folder: Path, identity: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    """Begin a run in an empty folder, or go on with one.

    Args:
        folder: of the catalogue; made if absent.
        identity: what `make_identity` returned.
        resume: a run that was begun is gone on with; else the folder must be empty.

    Returns:
        the manifest.

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
    if folder.is_dir() and any(not p.name.endswith(".tmp") for p in folder.iterdir()):
        raise InputError(f"{folder}: is not empty and holds no catalogue; choose another folder")
    manifest = {"kind": "catalogue in parts", "version": MANIFEST_VERSION, "complete": False, "identity": identity}
    write_json(manifest, folder / MANIFEST)
    return manifest


NAMES = {"inputs": "other inputs", "model": "another model", "settings": "other settings", "versions": "other versions",
         "about": "another selection of stars"}  # fmt: skip


def _difference(old: Any, new: Any) -> str:
    """Name what differs first, in words; empty if nothing does."""
    for key in ("inputs", "model", "settings", "versions", "about"):
        if old.get(key) != new.get(key):
            return f"{NAMES[key]} ({_first_difference(old.get(key), new.get(key))})"
    return ""


def _first_difference(old: Any, new: Any, where: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            if old.get(key) != new.get(key):
                name = old.get("name", "") if isinstance(old.get("name"), str) else ""
                return _first_difference(old.get(key), new.get(key), " ".join(p for p in (name or where, key) if p))
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return f"{where}: {len(old)} then, {len(new)} now".lstrip(": ")
        for a, b in zip(old, new, strict=True):
            if a != b:
                return _first_difference(a, b, where)
    then, now = (str(v) if len(str(v)) < 40 else f"{str(v)[:16]}..." for v in (old, new))
    return f"{where}: {then} then, {now} now"


def check_inputs_unchanged(layout: "Layout", records: Iterable[PartRecord], checked: set[int] | None = None) -> None:
    """Refuse to go on where an input is no longer the file that finished parts came from.

    Only files whose time of change differs are read again.

    Raises:
        InputError: an input has changed or gone.
    """
    seen: set[int] = set() if checked is None else checked
    for record in records:
        if record.file in seen:
            continue
        seen.add(record.file)
        _check_unchanged(layout.files[record.file], record.input_checksum, record.input_modified)


def _check_unchanged(file: "InputFile", checksum: str, modified: int) -> None:
    if file.path.stat().st_mtime_ns != modified and file_checksum(file.path) != checksum:
        raise InputError(
            f"{file.path}: has changed since parts were made from it; put the first one back, or infer into another "
            f"folder"
        )


# ------------------------------------------------------------------------------------------------- companion tables


def keep_tables(folder: Path, layout: "Layout") -> list[Rejected]:
    """Read the companion tables of every survey and keep them for the workers, if that was not done yet.

    Args:
        folder: of the catalogue.
        layout: inputs and how they are cut.

    Returns:
        rows of the tables that could not be used.

    Raises:
        InputError: a table has changed since it was read, or cannot be used; the disk is full.
    """
    from xpbayes.production.inputs import join_tables

    rejected: list[Rejected] = []
    for survey in range(len(layout.surveys)):
        final = _tables_folder(folder, survey)
        if not final.is_dir():
            scratch = temporary_name(final)
            try:
                scratch.mkdir(parents=True)
                tables = join_tables(layout, survey, scratch)
                (scratch / TABLES).write_bytes(pickle.dumps(tables))
                try:
                    os.replace(scratch, final)
                except OSError:
                    if not final.is_dir():
                        raise
                    shutil.rmtree(scratch)  # another job was first, with the same tables
            except OSError as error:
                raise cannot_write(final, error) from error
        tables = pickle.loads((final / TABLES).read_bytes())
        for file, checksum, modified in zip(
            layout.companions_of(survey), tables.checksums, tables.modified, strict=True
        ):
            _check_unchanged(file, checksum, modified)
        rejected += tables.companions.rejected
    return rejected


def kept_tables(folder: Path, layout: "Layout") -> list["Companions"]:
    """Return the companion tables of every survey, as `keep_tables` left them."""
    from xpbayes.production.inputs import located

    folders = [_tables_folder(folder, i) for i in range(len(layout.surveys))]
    return [located(pickle.loads((f / TABLES).read_bytes()), f) for f in folders]


def kept_checksums(folder: Path, layout: "Layout") -> list[str]:
    """SHA-256 of every companion file, in the layout's order."""
    out: list[str] = []
    for survey in range(len(layout.surveys)):
        out += pickle.loads((_tables_folder(folder, survey) / TABLES).read_bytes()).checksums
    return out


def _tables_folder(folder: Path, survey: int) -> Path:
    return folder / RECORDS / f"tables-{survey:03d}"


# ------------------------------------------------------------------------------------------------- while it lasts


def keep_layout(folder: Path, layout: "Layout") -> str:
    """Write the layout for this run's workers, who would take long to find it again; returns the file's path.

    Paths may differ from machine to machine, so every job of a batch keeps its own, named by its content.
    """
    raw = pickle.dumps(layout)
    path = folder / RECORDS / f"layout-{hashlib.sha256(raw).hexdigest()[:16]}.pickle"
    try:
        path.parent.mkdir(exist_ok=True)
        temporary = temporary_name(path)
        temporary.write_bytes(raw)
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    return str(path.absolute())


def kept_layout(path: str) -> "Layout":
    """Read what `keep_layout` wrote."""
    return pickle.loads(Path(path).read_bytes())


def finished_chunks(
    folder: Path, layout: "Layout", chunks: Sequence["Chunk"], records: Sequence[PartRecord]
) -> dict["Chunk", list[PartRecord]]:
    """Find chunks of which every part is there and intact.

    Args:
        folder: of the catalogue.
        layout: inputs and how they are cut.
        chunks: those that matter to this job.
        records: of all finished parts.
    """
    by_file: dict[int, dict[int, PartRecord]] = {}
    for record in records:
        by_file.setdefault(record.file, {})[record.block] = record
    done: dict[Chunk, list[PartRecord]] = {}
    for chunk in chunks:
        found = by_file.get(chunk.file, {})
        if chunk.stop is not None:
            blocks = [chunk.block]
        else:
            last = next((b for b, r in found.items() if r.last), None)
            if last is None:
                continue
            blocks = list(range(last + 1))
        mine = [found[b] for b in blocks if b in found]
        intact = [is_intact(folder, r) for r in mine]
        for record, good in zip(mine, intact, strict=True):
            if not good:
                log.info(f"{record.name}: is not what its record says (damaged or removed); it is made again")
        if len(mine) == len(blocks) and all(intact):
            done[chunk] = mine
    return done


# --------------------------------------------------------------------------------------------------------- completion


def unfinished_files(layout: "Layout", records: Sequence[PartRecord]) -> list[int]:
    """Input files of which parts are missing."""
    blocks: dict[int, set[int]] = {}
    last: dict[int, int] = {}
    for record in records:
        blocks.setdefault(record.file, set()).add(record.block)
        if layout.files[record.file].n_rows is None and record.last:
            last[record.file] = record.block
    expected = {
        i: last.get(i, -1) + 1 if f.n_rows is None else -(-f.n_rows // layout.stars_per_part)
        for i, f in enumerate(layout.files)
    }
    return [i for i, n in expected.items() if n == 0 or blocks.get(i, set()) != set(range(n))]


def complete(
    folder: Path, layout: "Layout", manifest: dict[str, Any], rejected: Sequence[Rejected]
) -> dict[str, Any] | None:
    """Gather the records into the manifest, if all are there.

    Args:
        folder: of the catalogue.
        layout: inputs and how they are cut.
        manifest: as it was begun.
        rejected: rows of companion tables that could not be used.

    Returns:
        the complete manifest; None if parts are missing.

    Raises:
        InputError: the disk is full.
        RuntimeError: rows were lost.
    """
    records = read_records(folder)
    if unfinished_files(layout, records):
        now = read_manifest(folder)  # another shard may have gathered them a moment ago
        return now if now["complete"] else None
    for record in records:
        record.check_rows()
    for i, file in enumerate(layout.files):
        n_read = sum(r.n_read for r in records if r.file == i)
        if file.n_rows is not None and n_read != file.n_rows:
            raise RuntimeError(f"{file.name}: {file.n_rows} rows, of which {n_read} were read")
    quarantined = [*rejected, *(q for r in records for q in r.quarantined)]
    checksums = {r.file: r.input_checksum for r in records}
    done = {
        **manifest,
        "complete": True,
        "inputs": [{**f.identity(), "checksum": checksums[i]} for i, f in enumerate(layout.files)],
        "companions": [
            {**f.identity(), "checksum": c}
            for f, c in zip(layout.companions, kept_checksums(folder, layout), strict=True)
        ],
        "totals": totals(records, len(rejected)),
        "quarantined_by_reason": dict(sorted(Counter(r.reason for r in quarantined).items())),
        "parts": [_published(r) for r in records],
    }
    try:
        write_quarantine(quarantined, folder / QUARANTINE)
    except OSError as error:
        raise cannot_write(folder / QUARANTINE, error) from error
    write_json(done, folder / MANIFEST)
    shutil.rmtree(folder / RECORDS, ignore_errors=True)
    clean(folder, everything=True)
    return done


def _published(record: PartRecord) -> dict[str, Any]:
    """A part as the complete manifest lists it: without what only a resumed run needs."""
    raw = {"name": record.name if record.n_rows else None, **asdict(record), "n_quarantined": len(record.quarantined)}
    return {k: v for k, v in raw.items() if k not in ("quarantined", "input_checksum", "input_modified", "last")}


def totals(records: Iterable[PartRecord], companion_rows: int = 0) -> dict[str, Any]:
    """Add up the parts: rows read = rows written + rows not selected + rows quarantined."""
    records = list(records)
    status: Counter[str] = Counter()
    for record in records:
        status.update(record.status)
    return {
        "rows_read": sum(r.n_read for r in records),
        "rows_written": sum(r.n_rows for r in records),
        "rows_not_selected": sum(r.n_not_selected for r in records),
        "rows_quarantined": sum(len(r.quarantined) for r in records),
        "companion_rows_quarantined": companion_rows,
        "n_with_parallax": sum(r.n_with_parallax for r in records),
        "bytes": sum(r.size for r in records),
        "status": dict(sorted(status.items())),
    }
