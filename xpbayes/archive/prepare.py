"""From survey files to star tables on disk: `prepare`, which can be interrupted at any moment and run again.

The tables of an XP file are written under temporary names and renamed; then the file's record is written, which says
that it is done. A re-run skips recorded files and does the others anew: it ends with the same bytes as an undisturbed run.
Records and settings are in ``.prepare`` beside the tables. A re-run with other inputs or settings is refused.
"""

import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from xpbayes.archive.companion_table import SeenIds
from xpbayes.archive.companions import Companions, read_companions
from xpbayes.archive.stream import idle_companions, stream_file, uncorrected_parallaxes
from xpbayes.archive.survey_config import SurveySettings, companion_files, expand, read_survey
from xpbayes.data.json_file import read_json, write_json
from xpbayes.data.rejected import Rejected, write_quarantine
from xpbayes.data.spectra import Cut, add_up_cuts
from xpbayes.data.spectra_file import write_star_table
from xpbayes.errors import InputError
from xpbayes.files import file_checksum, locked, make_folder, reason_of, remove_abandoned, whole_file
from xpbayes.release import release_named

log = logging.getLogger(__name__)

MANIFEST, QUARANTINE = "prepare.json", "quarantine.csv"
WORK, DONE = ".prepare", "files"
"""Folder of records beside the tables, and in it the records of finished XP files."""
VERSION = 1
"""Of the records."""
MAKE_ROOM = "make room there"


class _File(BaseModel):
    name: str
    checksum: str


class _Input(_File):
    size: int
    modified: int


class _Totals(BaseModel):
    rows_read: int
    stars_written: int
    stars_cut: int
    rows_quarantined: int
    eigenvalue_floor: int
    parallax_uncorrected: int = 0


class _Record(BaseModel):
    """What is kept of a finished XP file."""

    version: int = VERSION
    input: _Input
    tables: list[_File]
    totals: _Totals
    cuts: list[Cut]
    rejected: list[Rejected]


class _Begun(BaseModel):
    """Settings and companion tables of the first run."""

    version: int = VERSION
    settings: dict[str, Any]
    inputs: list[str]
    companions: list[_File]


class _CompanionRecord(BaseModel):
    """What the manifest needs to know of the companion tables, should they not be read again."""

    version: int = VERSION
    rejected: list[Rejected]
    label_cuts: list[Cut]
    notes: dict[str, str]
    summary: list[str]


def prepare(config_path: Path, out: Path, release: str | None = None) -> list[Path]:
    """Turn the files of a survey.toml into star tables; go on where an earlier run of the same survey ended.

    Args:
        config_path: the survey.toml.
        out: folder for the tables, ``quarantine.csv`` and ``prepare.json``; made if absent.
        release: data release of the spectra, dr3 or dr4; as the survey.toml or the files say if None.

    Returns:
        the star tables, in the order of the XP files.

    Raises:
        InputError: a file, column or setting is missing or wrong; the folder holds star tables of another survey, or
            of this one with other inputs or settings; no star is left.
    """
    config_path, out = Path(config_path), Path(out)
    survey = read_survey(config_path)
    if release is not None:
        survey = survey.model_copy(update={"release": release_named(release).name})
    inputs = expand(survey.xp.files, config_path.parent)
    stems = [_stem(path, inputs) for path in inputs]
    _spare_inputs([config_path, *inputs, *companion_files(survey, config_path.parent)], stems, out)
    work = _open_folder(out)
    with locked(work / "lock", f"{out}: another run is at work there; wait until it ends, or choose another folder"):
        return _go_on(config_path, out, survey, inputs, stems)


def _go_on(config_path: Path, out: Path, survey: SurveySettings, inputs: list[Path], stems: list[str]) -> list[Path]:
    """Do what is left to do, alone in the folder."""
    base, work = config_path.parent, out / WORK
    about = _Begun(
        settings=survey.model_dump(mode="json"),
        inputs=[path.name for path in inputs],
        companions=[_File(name=path.name, checksum=file_checksum(path)) for path in companion_files(survey, base)],
    )
    _require_same(work / "survey.json", about, out)
    records = {stem: work / DONE / f"{stem}.json" for stem in stems}
    done = {s: read_json(path, _Record, _again(out), VERSION) for s, path in records.items() if path.is_file()}
    for path, stem in zip(inputs, stems, strict=True):
        if stem in done:
            _require_unchanged(path, done[stem].input, out)
    if done:
        log.info(f"{len(done)} of {len(inputs)} XP files were done before")
    for place in (out, work, work / DONE):
        remove_abandoned(place)
    scratch = work / "companions"
    shutil.rmtree(scratch, ignore_errors=True)
    companions = None
    seen = SeenIds()
    for path, stem in zip(inputs, stems, strict=True):
        if stem in done:
            seen.add(_read_ids(work / DONE / f"{stem}.npy", out))
            continue
        if companions is None:
            companions = read_companions(survey, base, scratch)
            record = _CompanionRecord(
                rejected=list(companions.rejected),
                label_cuts=list(companions.star_labels.cuts if companions.star_labels else ()),
                notes=companions.notes,
                summary=list(companions.summary),
            )
            write_json(record.model_dump(mode="json"), work / "companions.json", MAKE_ROOM)
        done[stem] = _prepare_file(survey, path, stem, out, companions, seen)
    shutil.rmtree(scratch, ignore_errors=True)
    return _finish(config_path, out, survey, [done[stem] for stem in stems])


def _prepare_file(
    survey: SurveySettings, path: Path, stem: str, out: Path, companions: Companions, seen: SeenIds
) -> _Record:
    """Write the star tables of one XP file, then its record."""
    identity = _identity(path)
    before = seen.all()
    totals = Counter(dict.fromkeys(_Totals.model_fields, 0))
    cuts: list[Cut] = []
    rejected: list[Rejected] = []
    tables: list[_File] = []
    for part in stream_file(survey, path, companions, seen):
        totals.update(
            rows_read=part.n_read,
            stars_written=len(part.table),
            stars_cut=part.n_cut,
            rows_quarantined=len(part.rejected),
            eigenvalue_floor=part.n_floored,
            parallax_uncorrected=part.n_uncorrected,
        )
        rejected += part.rejected
        cuts += part.table.cuts
        if len(part.table):
            table = write_star_table(part.table, out / f"{stem}-{len(tables):04d}.parquet")
            tables.append(_File(name=table.name, checksum=file_checksum(table)))
            log.info(f"{table.name}: {len(part.table)} stars")
    if totals["rows_read"] != totals["stars_written"] + totals["stars_cut"] + totals["rows_quarantined"]:
        raise RuntimeError(f"{path}: rows were lost: {dict(totals)}")  # a bug of ours, never the user's
    record = _Record(
        input=_Input(**identity, checksum=file_checksum(path)),
        tables=tables,
        totals=_Totals(**totals),
        cuts=list(add_up_cuts(cuts)),
        rejected=rejected,
    )
    folder = out / WORK / DONE
    with whole_file(folder / f"{stem}.npy", MAKE_ROOM) as temporary, open(temporary, "wb") as stream:
        np.save(stream, np.setdiff1d(seen.all(), before))
    # The last: from here on the file is done.
    write_json(record.model_dump(mode="json"), folder / f"{stem}.json", MAKE_ROOM)
    return record


def _finish(config_path: Path, out: Path, survey: SurveySettings, records: list[_Record]) -> list[Path]:
    """Write the quarantine and the manifest of all files together."""
    companions = read_json(out / WORK / "companions.json", _CompanionRecord, _again(out), VERSION)
    totals = {name: sum(getattr(r.totals, name) for r in records) for name in _Totals.model_fields}
    cuts = add_up_cuts(c for record in records for c in record.cuts)
    write_quarantine([*companions.rejected, *(r for record in records for r in record.rejected)], out / QUARANTINE)
    tables = [t for record in records for t in record.tables]
    manifest = {
        "kind": "prepared survey",
        "version": VERSION,
        "settings": survey.model_dump(mode="json"),
        "inputs": [{"name": r.input.name, "checksum": r.input.checksum} for r in records],
        "tables": [t.model_dump() for t in tables],
        "totals": totals,
        "label_cuts": [vars(c) for c in companions.label_cuts],
        "cuts": [vars(c) for c in cuts],
        "notes": companions.notes,
    }
    write_json(manifest, out / MANIFEST, MAKE_ROOM)
    for cut in cuts:
        log.info(f"{cut.what}: {cut.removed} removed, {cut.left} left")
    last = (
        f"{totals['rows_read']} rows read: {totals['stars_written']} stars written, {totals['stars_cut']} cut, "
        f"{totals['rows_quarantined']} quarantined ({QUARANTINE})"
    )
    uncorrected = uncorrected_parallaxes(totals["parallax_uncorrected"])
    log.info("; ".join([last, *companions.summary, *idle_companions(cuts), *uncorrected]))
    if not tables:
        raise InputError(
            f"{config_path}: no star is left of {totals['rows_read']} rows ({totals['rows_quarantined']} quarantined, "
            f"{totals['stars_cut']} cut); see {out / QUARANTINE} and {out / MANIFEST}"
        )
    lost = [t.name for t in tables if not (out / t.name).is_file()]
    if lost:
        raise InputError(
            f"{out}: {len(lost)} star tables have gone since they were written (first: {lost[0]}); put them back, or "
            f"{_again(out)}"
        )
    return [out / t.name for t in tables]


# ------------------------------------------------------------------------------------------------ what was done before


def _open_folder(out: Path) -> Path:
    """Return the folder of records, made if absent; refuse a place that is something else's."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a folder")
    work = out / WORK
    if out.is_dir() and not work.is_dir() and any(out.glob("*.parquet")):
        raise InputError(f"{out}: already holds star tables that prepare did not write; choose another folder")
    make_folder(work / DONE, out)
    return work


def _spare_inputs(inputs: list[Path], stems: list[str], out: Path) -> None:
    """Refuse a folder where a file of this run would replace an input."""
    for path in (p.resolve() for p in inputs):
        stem, _, number = path.name.removesuffix(".parquet").rpartition("-")
        is_table = path.suffix == ".parquet" and stem in stems and number.isdecimal()
        if path.parent == out.resolve() and (is_table or path.name in (MANIFEST, QUARANTINE)):
            raise InputError(
                f"{path}: is an input that a file of this run would replace; choose another folder than {out}"
            )


def _again(out: Path) -> str:
    return f"delete {out} to start again"


def _require_same(path: Path, about: _Begun, out: Path) -> None:
    """Keep the settings and companion tables of the first run, and refuse any others."""
    if not path.is_file():
        write_json(about.model_dump(mode="json"), path, MAKE_ROOM)
        return
    before = read_json(path, _Begun, _again(out), VERSION)
    begun = [f"other settings of '{key}'" for key, now in about.settings.items() if before.settings.get(key) != now]
    if before.inputs != about.inputs:
        begun.append(f"{len(before.inputs)} XP files, now there are {len(about.inputs)} or they have other names")
    begun += [f"another {file.name}" for file in about.companions if file not in before.companions]
    if len(before.companions) != len(about.companions):
        begun.append(f"{len(before.companions)} companion tables, now there are {len(about.companions)}")
    if begun:
        raise InputError(f"{out}: was begun with {begun[0]}; go back to that, choose another folder, or {_again(out)}")


def _require_unchanged(path: Path, recorded: _Input, out: Path) -> None:
    """Refuse an XP file that is not the one whose tables are there; size and time spare reading it again."""
    now = _identity(path)
    if all(now[k] == getattr(recorded, k) for k in now) or file_checksum(path) == recorded.checksum:
        return
    raise InputError(f"{path}: has changed since its star tables were written; choose another folder, or {_again(out)}")


def _identity(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"name": path.name, "size": status.st_size, "modified": status.st_mtime_ns}


def _read_ids(path: Path, out: Path) -> NDArray[np.int64]:
    """The source_ids of a finished XP file."""
    try:
        ids: NDArray[np.int64] = np.load(path, allow_pickle=False)
        if ids.dtype != np.int64 or ids.ndim != 1:
            raise ValueError(f"{ids.ndim}-dimensional {ids.dtype}")
    except (OSError, EOFError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: is damaged ({reason_of(error)}); {_again(out)}") from error
    return ids


def _stem(path: Path, inputs: list[Path]) -> str:
    """A file's name without its suffixes; with its number where two inputs share a name."""
    stem = path.name.split(".")[0]
    if sum(p.name.split(".")[0] == stem for p in inputs) > 1:
        return f"{inputs.index(path):04d}-{stem}"
    return stem
