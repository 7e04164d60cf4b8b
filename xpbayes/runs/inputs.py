"""What the runs share: stars and models from wherever they are, choices among stars, outputs that can be written."""

import logging
import os
import platform
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from xpbayes.archive.direct import open_inputs, say_bands
from xpbayes.archive.survey_config import Survey, open_survey
from xpbayes.channels import Channels
from xpbayes.data.join import rows_of
from xpbayes.data.spectra import Cut, Spectra, add_up_cuts, join_star_tables
from xpbayes.data.spectra_file import read_star_tables
from xpbayes.errors import InputError, nearest
from xpbayes.files import file_checksum, refuse_overwriting, refuse_repeated
from xpbayes.identity import Side, Split, Stream, uniform_from_id
from xpbayes.production.bundled import is_bundled
from xpbayes.production.model_file import TrainedModel, load_model, save_model

log = logging.getLogger(__name__)

PathLike = str | Path
SELECTIONS = ("all", *Side)


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    packages = ("xpbayes", "jax", "numpyro", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{p: version(p) for p in packages}}


def created() -> str:
    """The time of now, as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def load_if_path(model: TrainedModel | PathLike) -> TrainedModel:
    """The model itself, or read from its folder."""
    return model if isinstance(model, TrainedModel) else load_model(model)


def saved(model: TrainedModel, out: PathLike | None) -> TrainedModel:
    """The model, written and read again as the next user gets it, checksum included; as it is if nothing is written."""
    if out is None:
        return model
    log.info(f"wrote {save_model(model, out)}")
    return load_model(out)


def trained_on(
    training: Spectra, n_held_out: int, labels: tuple[str, ...], source: dict[str, Any], split: Split
) -> dict[str, Any]:
    """What the card of a model says of the stars that it was trained on."""
    return {
        "created": created(),
        "input": source,
        "n_training": len(training),
        "n_held_out": n_held_out,
        "split": {"by": "source_id hash", "fraction": split.held_out, "seed": split.seed},
        "cuts": [vars(cut) for cut in training.cuts],
        "provenance": training.provenance,
        "label_range": {
            name: np.percentile(training.column(name), [0, 1, 16, 50, 84, 99, 100]).round(4).tolist() for name in labels
        },
        "versions": versions(),
    }


def read_stars(stars: Spectra | PathLike) -> tuple[Spectra, dict[str, Any]]:
    """All stars at once, and what they are: a table, a file, or a folder of files."""
    if isinstance(stars, Spectra):
        if not len(stars):
            raise InputError("a table in memory: has no stars; nothing to do")
        return stars, {"path": "a table in memory", "checksum": "", "n_stars": len(stars)}
    table = read_star_tables(require_stars(stars))
    return table, source_of(stars, len(table))


def require_stars(stars: Any) -> str | Path:
    """A file's or folder's name as it is; InputError for what holds no stars either, where stars are wanted."""
    if not isinstance(stars, str | os.PathLike):
        raise InputError(
            f"a {type(stars).__name__} is neither spectra nor a file; give xpbayes.Spectra, or a path (a table in memory: "
            f"xpbayes.Spectra.from_coefficients)"
        )
    return stars if isinstance(stars, str) else Path(stars)


def named_inputs(stars: Any) -> list[PathLike | Survey]:
    """What was given, one path or survey or several, as a list; InputError for anything else."""
    given = list(stars) if isinstance(stars, list | tuple | set | Iterator) else [stars]
    if not given:
        raise InputError("no input was named; name star tables, folders of them, files of XP spectra, or a survey.toml")
    return [one if isinstance(one, Survey) else require_stars(one) for one in given]


def source_of(stars: PathLike, n_stars: int) -> dict[str, Any]:
    """What results say of a file of stars, or of a folder of such files."""
    path = Path(stars)
    return {"path": path.name, "checksum": "" if path.is_dir() else file_checksum(path), "n_stars": n_stars}


def stream_tables(
    stars: Spectra | PathLike | Survey | Sequence[PathLike | Survey],
    out: PathLike | None,
    channels: Channels | None = None,
) -> tuple[Iterator[Spectra], dict[str, Any]]:
    """Star tables one after the other, and what they are: a table, or whatever `open_inputs` takes.

    Of files, the second value holds a list `notes`, which is filled while tables are taken: what became of the rows of
    every table of a survey that was read, and which of them gave nothing to any star.

    Args:
        stars: the inputs.
        out: catalogue that is made of them, beside which rows that could not be used are listed.
        channels: the model's, to whose bands spectra are brought; they keep the survey's if None.
    """
    if isinstance(stars, Spectra):
        table, source = read_stars(stars)
        return iter([table]), source
    named = named_inputs(stars)
    paths = [Path(one) for one in named if not isinstance(one, Survey)]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise InputError(f"{twice[0]}: is named twice among the inputs; name every file once")
    refuse_repeated([path for path in paths if path.is_file()])
    opened = open_inputs(named)
    if channels is not None:
        say_bands(opened, channels)
    notes: list[str] = []
    streams, sources = zip(*(_stream_one(one, out, channels, notes) for one in opened), strict=True)
    if len(opened) == 1:
        return streams[0], {**sources[0], "notes": notes}
    return _each_once(chain.from_iterable(streams)), {
        "path": " ".join(str(source["path"]) for source in sources),
        "checksum": [source["checksum"] for source in sources],
        "notes": notes,
    }


def _stream_one(
    one: Path | Survey, out: PathLike | None, channels: Channels | None, notes: list[str]
) -> tuple[Iterator[Spectra], dict[str, Any]]:
    if not isinstance(one, Survey):
        table, source = read_stars(one)
        return iter([table if channels is None else table.on(channels)]), source
    from xpbayes.archive.companions import read_companions
    from xpbayes.archive.stream import idle_companions, stream_stars, uncorrected_parallaxes
    from xpbayes.data.rejected import write_quarantine

    survey = one.settings.for_inference()

    def parts() -> Iterator[Spectra]:
        companions = read_companions(survey, one.base)
        rejected, n_read, n_stars = list(companions.rejected), 0, 0
        cuts: list[Cut] = []
        uncorrected = 0
        for part in stream_stars(survey, one.base, companions):
            rejected += part.rejected
            n_read += part.n_read
            n_stars += len(part.table)
            cuts += part.table.cuts
            uncorrected += part.n_uncorrected
            yield part.table if channels is None else part.table.on(channels)
        quarantined = len(rejected) - len(companions.rejected)
        notes.append(f"{n_read} rows of spectra read, {quarantined} quarantined")
        notes.extend([*companions.summary, *idle_companions(add_up_cuts(cuts)), *uncorrected_parallaxes(uncorrected)])
        if rejected:
            first = rejected[0]
            log.info(f"{len(rejected)} rows could not be used (first: {first.file}, row {first.row}: {first.reason})")
            if (path_of_rejected := quarantine_of(out)) is not None:
                log.info(f"wrote {write_quarantine(rejected, path_of_rejected)}")
        if not n_stars:
            why = "".join(f"; the first, row {r.row}: {r.reason}" for r in rejected[len(companions.rejected) :][:1])
            what = f"none of its {n_read} rows of spectra can be used" if n_read else "has no rows of spectra"
            raise InputError(f"{one.name}: {what}{why}")

    return parts(), {"path": one.name, "checksum": one.checksum}


def _each_once(tables: Iterable[Spectra]) -> Iterator[Spectra]:
    """Tables of several inputs, in which no star may be twice."""
    from xpbayes.archive.companion_table import SeenIds

    seen = SeenIds()
    for table in tables:
        repeated = seen.add(table.source_id)
        if repeated.any():
            raise InputError(
                f"{int(repeated.sum())} source_ids occur more than once in the inputs (first: "
                f"{table.source_id[repeated][0]}); keep one row a star"
            )
        yield table


def quarantine_of(out: PathLike | None) -> Path | None:
    """The file beside a catalogue that lists the rows of a survey which could not be used."""
    return None if out is None else Path(out).with_suffix(".quarantine.csv")


def find_stars(
    stars: Spectra | PathLike | Survey, source_ids: Iterable[Any], channels: Channels | None = None
) -> tuple[Spectra, str]:
    """The stars of given source_ids, in that order, and what they came from; reading stops when all are found.

    Spectra from files are brought to the bands of the model's channels.
    """
    from xpbayes.archive.cells import source_ids as exact_ids

    wanted = exact_ids(source_ids, "the stars asked for")
    stream, source = stream_tables(stars, None, channels)
    found: list[Spectra] = []
    missing = set(wanted)
    for table in stream:
        there = np.isin(table.source_id, list(missing))
        if there.any():
            found.append(table.take(there))
            missing -= set(found[-1].source_id.tolist())
        if not missing:
            break
    if missing or not found:
        first = next((s for s in wanted if s in missing), None)
        raise InputError(
            f"{source['path']}: {len(missing)} of {len(wanted)} source_ids are not there (first: {first}); check them"
        )
    table = join_star_tables(found, [str(source["path"])] * len(found))
    return table.take(rows_of(np.array(wanted), table.source_id)), str(source["path"])


def check_selection(only: str) -> None:
    """Raise InputError for an unknown side of the model's split."""
    if only not in SELECTIONS:
        raise InputError(f"'{only}' is no selection of stars{nearest(only, SELECTIONS)}; use {', '.join(SELECTIONS)}")


def choose_stars(model: TrainedModel, table: Spectra, only: str) -> Spectra:
    """Stars on one side of the source_id split that the model was trained with, whether or not they passed its cuts."""
    check_selection(only)
    return table if only == "all" else table.take(Split.of(model.card).on(only, table.source_id))


def choose_random(table: Spectra, n: int, seed: int) -> Spectra:
    """Choose stars at random, in the table's order, by source_id and seed alone; InputError if there are fewer."""
    if n > len(table):
        raise InputError(f"{n} stars were asked for, {len(table)} can be used; ask for fewer")
    rank = np.argsort(uniform_from_id(table.source_id, Stream.CHOICE, seed), kind="stable")[:n]
    return table.take(np.sort(rank))


def require_labels(columns: Collection[str], labels: tuple[str, ...], where: str) -> None:
    """Raise InputError where a label that training needs, or its error, is missing."""
    for name in labels:
        for column in (name, f"{name}_error"):
            if column not in columns:
                raise InputError(
                    f"{where}: has no column '{column}'{nearest(column, columns)}; training needs every label in "
                    f"'labels' with its error"
                )


def check_writable(out: PathLike | None, *inputs: Any, files: Sequence[str] = ()) -> None:
    """Refuse an unwritable output, or one that is an input, before hours of work, not after.

    Args:
        out: the output; None if nothing is written.
        inputs: paths and surveys, or sequences of them, that must not be written to, the files of a survey among them;
            anything else is in memory.
        files: where the output is a folder, what will be written into it: names, or patterns of names.
    """
    if out is None:
        return
    if is_bundled(out):
        raise InputError(
            f"{out}: comes with the package and stays as it is; copy the folder, or name another with --out"
        )
    named = [one for i in inputs for one in (i if isinstance(i, list | tuple) else [i])]
    given = [p for p in named if isinstance(p, str | Path)]
    surveys = [one for one in named if isinstance(one, Survey)]
    surveys += [open_survey(Path(p)) for p in given if Path(p).suffix == ".toml"]
    given += [path for survey in surveys for path in (survey.path, *survey.files) if path.is_file()]
    refuse_overwriting(out, given)
    for path in [p for name in files for p in (Path(out) / name, *Path(out).glob(name))]:
        check_writable(path, *given)
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
        if target.exists() and not (target.is_dir() or target.is_file()):
            raise OSError(22, "it is there and is no file")
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another output") from error
