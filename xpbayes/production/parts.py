"""A catalogue in parts: the files of its folder, and how each comes to be there whole or not at all.

In: rows of one part, rows that were quarantined, counts. Out: ``part-FFFFF-BBBB.parquet`` (input file F, part B of it)
and its `PartRecord` under ``records/``. Every file is written under a temporary name, forced to disk and renamed; the
record comes last, so that a part without one is a part that was not finished. Nothing here depends on time or host.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from xpbayes.data.json_file import read_json, write_json
from xpbayes.data.parquet import encode_parquet
from xpbayes.data.rejected import Rejected
from xpbayes.data.spectra import Cut, add_up_cuts
from xpbayes.errors import InputError
from xpbayes.files import file_checksum, has_gone, remove_abandoned, whole_file

RECORDS = "records"
MAKE_ROOM = "make room and go on with --resume"
PART_PATTERN = "part-*.parquet"


def part_name(file: int, block: int) -> str:
    """Name of a part, without suffix."""
    return f"part-{file:05d}-{block:04d}"


@dataclass(frozen=True)
class PartRecord:
    """What is known about a finished part: which part of which input file it is, and its rows."""

    file: int
    block: int
    last: bool  # no further part comes from its chunk
    n_read: int  # rows of the input that it accounts for
    n_rows: int  # rows of the catalogue; a part without rows has no file
    n_not_selected: int  # stars on the other side of the model's split, where one side was asked for
    n_with_parallax: int  # rows with a parallax that entered the fit
    status: dict[str, int]  # rows per status, 'ok' among them
    first_source_id: int  # 0 and -1 if it has no rows
    last_source_id: int
    size: int  # of its file [bytes], 0 if it has none
    checksum: str  # SHA-256 of its file, "" if it has none
    input_checksum: str
    input_modified: (
        int  # time of the input file's last change [ns]: while it is the same, nothing needs to be read again
    )
    quarantined: tuple[Rejected, ...] = ()  # rows of the input that could not be used
    n_uncorrected: int = 0  # stars with a parallax whose zero point was asked for and is not known
    cuts: tuple[Cut, ...] = ()  # of spectra, how many stars the companion tables gave something to

    @property
    def name(self) -> str:
        """Name of the part's file."""
        return f"{part_name(self.file, self.block)}.parquet"

    def check_rows(self) -> None:
        """Rows in = rows out + rows not selected + rows quarantined; anything else is a bug of ours."""
        accounted = self.n_rows + self.n_not_selected + len(self.quarantined)
        if self.n_read != accounted or self.n_rows != sum(self.status.values()):
            raise RuntimeError(f"{self.name}: {self.n_read} rows were read and {accounted} are accounted for")


class PartDraft:
    """A part while it grows."""

    def __init__(self) -> None:
        self._rows: list[pa.Table] = []
        self._counts: Counter[str] = Counter()
        self._quarantined: list[Rejected] = []
        self._cuts: tuple[Cut, ...] = ()

    def add(self, rows: pa.Table, rejected: Iterable[Rejected] = (), cuts: Iterable[Cut] = (), **counts: int) -> None:
        """Take one piece: catalogue rows, rows that could not be used, and the numbers of `PartRecord` by name."""
        self._rows.append(rows)
        self._quarantined += rejected
        self._cuts = add_up_cuts([*self._cuts, *cuts])
        self._counts.update(counts)

    def finished(self, file: int, block: int, source: "OpenedInput", *, last: bool) -> tuple[pa.Table, PartRecord]:
        """The part's rows and its record, without size and checksum; InputError if the input file is another now."""
        source.check()
        rows = pa.concat_tables(self._rows)
        ids = rows["source_id"].to_numpy()
        return rows, PartRecord(
            file=file,
            block=block,
            last=last,
            n_read=self._counts["n_read"],
            n_rows=len(rows),
            n_not_selected=self._counts["n_not_selected"],
            n_with_parallax=self._counts["n_with_parallax"],
            status=dict(sorted(Counter(rows["status"].to_pylist()).items())),
            first_source_id=int(ids.min()) if len(ids) else 0,
            last_source_id=int(ids.max()) if len(ids) else -1,
            size=0,
            checksum="",
            input_checksum=source.checksum,
            input_modified=source.modified,
            quarantined=tuple(self._quarantined),
            n_uncorrected=self._counts["n_uncorrected"],
            cuts=self._cuts,
        )


@dataclass(frozen=True)
class OpenedInput:
    """An input file when reading it began."""

    path: Path
    modified: int  # time of its last change [ns]
    size: int
    inode: int
    checksum: str

    @classmethod
    def at(cls, path: Path) -> "OpenedInput":
        """Take down what a file is, before it is read; its checksum is worked out once for all its parts."""
        opened = _stat(path)
        return cls(path, *opened, _known_checksum(path, *opened))

    def check(self) -> None:
        """Raise InputError if the file is another now, or has gone."""
        if _stat(self.path) != (self.modified, self.size, self.inode):
            raise InputError(
                f"{self.path}: has changed while it was read; let nobody write to it and go on with --resume"
            )


def check_unchanged(path: Path, checksum: str, modified: int) -> None:
    """Raise InputError if an input is not what it was; it is read again only if its time of change differs."""
    if _stat(path)[0] != modified and file_checksum(path) != checksum:
        raise InputError(
            f"{path}: has changed since parts were made from it; put the first one back, or infer into another folder"
        )


def _stat(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise has_gone(path) from error
    return found.st_mtime_ns, found.st_size, found.st_ino


@lru_cache(maxsize=4)
def _known_checksum(path: Path, modified: int, size: int, inode: int) -> str:
    return file_checksum(path)


def write_part(folder: Path, table: pa.Table, record: PartRecord) -> PartRecord:
    """Write one part, if it has rows, and then its record, which is returned with the file's size and checksum.

    Raises:
        InputError: the disk is full or the folder cannot be written.
        RuntimeError: rows were lost.
    """
    record.check_rows()
    if table.num_rows:
        with whole_file(folder / record.name, MAKE_ROOM) as temporary:
            encode_parquet(table, temporary)
            if pq.read_metadata(temporary).num_rows != record.n_rows:
                raise RuntimeError(f"{record.name}: {record.n_rows} rows are recorded, others were written")
            record = replace(record, size=temporary.stat().st_size, checksum=file_checksum(temporary))
    write_json(asdict(record), folder / RECORDS / f"{part_name(record.file, record.block)}.json", MAKE_ROOM)
    return record


def read_record(folder: Path, file: int, block: int) -> PartRecord | None:
    """Read the record of a part whose file is there and intact; None if it has to be made."""
    try:
        record = read_json(folder / RECORDS / f"{part_name(file, block)}.json", PartRecord, "")
    except InputError:
        return None
    return record if is_intact(folder, record) else None


def read_records(folder: Path) -> list[PartRecord]:
    """Read the records of all finished parts, in order; InputError if one is damaged."""
    out = []
    for path in sorted((folder / RECORDS).glob("part-*.json")):
        try:
            record = read_json(path, PartRecord, "delete it and its part and go on with --resume")
        except InputError:
            if not path.exists():
                continue  # another shard has just gathered the records into the manifest
            raise
        if path.stem != part_name(record.file, record.block):
            raise InputError(f"{path}: is the record of another part; delete it and go on with --resume")
        out.append(record)
    return sorted(out, key=lambda r: (r.file, r.block))


def is_intact(folder: Path, record: PartRecord) -> bool:
    """Tell whether a part's file is the one that its record describes."""
    if not record.n_rows:
        return True
    path = folder / record.name
    return path.is_file() and path.stat().st_size == record.size and file_checksum(path) == record.checksum


def clean(folder: Path, *, everything: bool) -> None:
    """Remove temporary files of processes that are no more from a catalogue.

    `everything`: it is complete, so that nobody can be writing; else a shard on another machine may be at work.
    """
    for place in (folder, folder / RECORDS):
        remove_abandoned(place, everything=everything)
