"""Which stars a production run is given, and in which batches they come: a layout fixed by the inputs alone.

In: star tables, folders of them, survey.toml files. Out: a `Layout` of tasks, and per task a stream of `Batch`s that
is flat in memory. The layout never depends on the engine, the machine or what is done already, so that every engine
writes the same parts. A star table is cut by rows, and each cut is a task of its own; a file of XP spectra can only be
read from its beginning, so it is one task with as many parts as it needs.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.companion_table import SeenIds
from xpbayes.archive.companions import Companions
from xpbayes.archive.direct import open_inputs
from xpbayes.archive.stream import stream_file
from xpbayes.archive.survey_config import Survey, expand
from xpbayes.archive.xp import instrument_of_file
from xpbayes.channels import Channels
from xpbayes.data.parquet import read_footer, read_parquet
from xpbayes.data.rejected import Rejected
from xpbayes.data.spectra import Cut, Spectra
from xpbayes.data.spectra_file import read_header, read_star_table_rows, star_table_files
from xpbayes.errors import InputError
from xpbayes.files import has_gone, refuse_repeated
from xpbayes.instrument.instrument import DEFAULT_ID, InstrumentId
from xpbayes.production.duplicates import Identifiers, find_repeated

STARS_AT_ONCE = 2048
"""Stars read, calibrated and solved together: 34 MB of whitening factors, and several times that while solving."""
COMPANIONS = ("gaia", "two_mass", "unwise")
"""Tables that inference joins to the spectra. Labels and reddening are for training only."""


@dataclass(frozen=True)
class InputFile:
    """One file of a run."""

    path: Path  # where it is now
    name: str  # what the manifest calls it: its name without the folder, which may differ between machines
    kind: str  # 'star table', 'spectra', or a kind of companion table
    size: int  # [bytes]
    survey: int = -1  # index of the survey it belongs to, -1 for a star table
    n_rows: int | None = None  # rows of a star table; None where only reading tells

    def identity(self) -> dict[str, Any]:
        """What must stay the same for a run to go on, without reading the file."""
        return {"name": self.name, "kind": self.kind, "size": self.size, "n_rows": self.n_rows}


@dataclass(frozen=True)
class Task:
    """The unit of work: one cut of a star table, or one whole file of spectra."""

    number: int  # position in the layout
    file: int  # index of the input file
    block: int  # number of its first part within the file
    start: int  # rows of a star table; 0 and None for spectra
    stop: int | None
    weight: float  # its share of all input [bytes], to tell what is left


@dataclass(frozen=True)
class Batch:
    """Consecutive stars of a task, few enough to solve at once."""

    block: int  # number within the file of the part that the stars belong to
    table: Spectra
    rejected: tuple[Rejected, ...]  # rows met on the way that could not be used
    n_read: int  # rows of the file that this batch accounts for
    ends_part: bool  # no further batch belongs to this part
    ends_task: bool
    n_uncorrected: int = 0  # stars with a parallax whose zero point was asked for and is not known
    cuts: tuple[Cut, ...] = ()  # of spectra, what companion tables gave to the stars


@dataclass(frozen=True)
class Layout:
    """All inputs of a run and how they are cut."""

    files: tuple[InputFile, ...]  # star tables and files of spectra, in the order they were named
    companions: tuple[InputFile, ...]  # tables to be joined to the spectra
    surveys: tuple[Survey, ...]  # the survey.toml files, or what was made of files that were named without one
    stars_per_part: int  # most rows of a part
    instrument: InstrumentId = DEFAULT_ID  # of all stars

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks, in the order of the files."""
        out: list[Task] = []
        for i, file in enumerate(self.files):
            if file.n_rows is None:
                out.append(Task(len(out), i, 0, 0, None, file.size))
                continue
            for block, start in enumerate(range(0, file.n_rows, self.stars_per_part)):
                stop = min(start + self.stars_per_part, file.n_rows)
                out.append(Task(len(out), i, block, start, stop, file.size * (stop - start) / file.n_rows))
        return tuple(out)

    def companions_of(self, survey: int) -> tuple[InputFile, ...]:
        """Companion files of one survey."""
        return tuple(f for f in self.companions if f.survey == survey)

    def identity(self) -> dict[str, Any]:
        """What must stay the same for a run to go on."""
        return {
            "files": [f.identity() for f in self.files],
            "companions": [f.identity() for f in self.companions],
            "surveys": [s.checksum for s in self.surveys],
            "stars_per_part": self.stars_per_part,
            "stars_at_once": STARS_AT_ONCE,
        }


def lay_out(inputs: Sequence[str | Path | Survey], channels: Channels, stars_per_part: int) -> Layout:
    """Find and check all inputs, files or what `open_inputs` made of others, and cut them into tasks.

    No more than headers and source_ids are read. `channels` are the model's; a star table may have other bands.

    Raises:
        InputError: an input is missing, of another kind, empty or named twice; its channels are not the model's; star
            tables share a source_id; inputs are of different instruments.
    """
    instruments: dict[str, InstrumentId] = {}
    files: list[InputFile] = []
    companions: list[InputFile] = []
    surveys: list[Survey] = []
    for given in open_inputs(inputs):
        if isinstance(given, Survey):
            settings = given.settings.for_inference()
            settings = settings.model_copy(update={"stars_per_file": min(STARS_AT_ONCE, stars_per_part)})
            survey = replace(given, settings=settings)
            number, base = len(surveys), given.base
            surveys.append(survey)
            spectra = expand(survey.settings.xp.files, base)
            files += [_file(p, "spectra", number) for p in spectra]
            instruments[given.name] = instrument_of_file(spectra[0], survey.settings.xp_options())
            for kind in COMPANIONS:
                patterns = getattr(survey.settings, kind).files
                companions += [_file(p, kind, number) for p in (expand(patterns, base) if patterns else [])]
            continue
        for path in star_table_files(given):
            header, n_rows = read_header(path)
            channels.require_same_spectra(header.channels, "the model", str(path))
            instruments[str(path)] = header.instrument
            files.append(_file(path, "star table", n_rows=n_rows))
    if not files:
        raise InputError("no input was named; name star tables, folders of them, or a survey.toml")
    first, instrument = next(iter(instruments.items()))
    for name, other in instruments.items():
        instrument.require_same(other, first, name)
    paths = [file.path for file in files]
    if twice := [path for path, times in Counter(paths).items() if times > 1]:
        raise InputError(f"{twice[0]}: is named twice among the inputs; name every file once")
    refuse_repeated(paths)
    repeated = find_repeated([_identifiers(f) for f in files if f.n_rows])
    if repeated is not None:
        raise InputError(
            f"{repeated.count} source_ids occur more than once in the star tables (first: {repeated.first}, in "
            f"{' and '.join(dict.fromkeys(repeated.files))}); keep one row a star"
        )
    return Layout(tuple(files), tuple(companions), tuple(surveys), stars_per_part, instrument)


def _file(path: Path, kind: str, survey: int = -1, n_rows: int | None = None) -> InputFile:
    return InputFile(path.absolute(), path.name, kind, path.stat().st_size, survey, n_rows)


def _identifiers(file: InputFile) -> Identifiers:
    """The source_ids of a star table; their range from the file's own statistics where it has them."""

    def read() -> NDArray[np.int64]:
        return read_parquet(file.path, ["source_id"])["source_id"].to_numpy()

    about, _ = read_footer(file.path)
    at = about.schema.names.index("source_id")
    statistics = [about.row_group(i).column(at).statistics for i in range(about.num_row_groups)]
    if any(s is None or not s.has_min_max for s in statistics):
        ids = read()
        return Identifiers(file.name, int(ids.min()), int(ids.max()), len(ids), read)
    return Identifiers(file.name, min(s.min for s in statistics), max(s.max for s in statistics), about.num_rows, read)


# ------------------------------------------------------------------------------------------------------------ reading


def read_task(
    layout: Layout, task: Task, companions: Sequence[Companions], channels: Channels | None = None
) -> Iterator[Batch]:
    """Read one task, batch by batch; InputError if its file has gone or is damaged.

    Args:
        layout, task: what to read.
        companions: of every survey, the tables to be joined to its spectra.
        channels: the model's, to whose bands the stars are brought; they keep their own if None.
    """
    file = layout.files[task.file]
    if not file.path.is_file():
        raise has_gone(file.path)
    if task.stop is None:
        yield from _read_spectra(layout, task, companions, channels)
        return
    start = task.start
    for table in read_star_table_rows(file.path, task.start, task.stop, STARS_AT_ONCE):
        start += len(table)
        last = start == task.stop
        yield Batch(task.block, table if channels is None else table.on(channels), (), len(table), last, last)


def _read_spectra(
    layout: Layout, task: Task, companions: Sequence[Companions], channels: Channels | None
) -> Iterator[Batch]:
    file = layout.files[task.file]
    settings = layout.surveys[file.survey].settings
    parts = stream_file(settings, file.path, companions[file.survey], SeenIds())
    block, n_stars = 0, 0
    part = next(parts, None)
    while part is not None:
        layout.instrument.require_same(part.table.instrument, layout.files[0].name, file.name)
        n_stars += len(part.table)
        after = next(parts, None)  # only what follows tells whether this was the last
        full = n_stars + settings.stars_per_file > layout.stars_per_part
        last = after is None
        table = part.table if channels is None else part.table.on(channels)
        yield Batch(block, table, part.rejected, part.n_read, full or last, last, part.n_uncorrected, part.table.cuts)
        if full:
            block, n_stars = block + 1, 0
        part = after
