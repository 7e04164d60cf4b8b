"""A catalogue in parts: the files of its folder, and how each comes to be there whole or not at all.

In: rows of one part, rows that were quarantined, counts. Out: ``part-FFFFF-BBBB.parquet`` (input file F, part B of it)
and its `PartRecord` under ``records/``. Every file is written under a temporary name, forced to disk and renamed; the
record comes last, so that a part without one is a part that was not finished. Nothing here depends on time or host.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

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
    """What is known about a finished part.

    Attributes:
        file, block: which part of which input file.
        last: no further part comes from its chunk.
        n_read: rows of the input that it accounts for.
        n_rows: rows of the catalogue; a part without rows has no file.
        n_not_selected: stars on the other side of the model's split, where one side was asked for.
        n_with_parallax: rows with a parallax that entered the fit.
        status: rows per status, 'ok' among them.
        first_source_id, last_source_id: range of its source_ids; 0 and -1 if it has no rows.
        size: of its file [bytes], 0 if it has none.
        checksum: SHA-256 of its file, "" if it has none.
        input_checksum: SHA-256 of the input file.
        input_modified: time of the input file's last change [ns]: while it is the same, nothing needs to be read again.
        quarantined: rows of the input that could not be used.
        n_uncorrected: stars with a parallax whose zero point was asked for and is not known.
        cuts: of spectra, how many stars the companion tables gave something to.
    """

    file: int
    block: int
    last: bool
    n_read: int
    n_rows: int
    n_not_selected: int
    n_with_parallax: int
    status: dict[str, int]
    first_source_id: int
    last_source_id: int
    size: int
    checksum: str
    input_checksum: str
    input_modified: int
    quarantined: tuple[Rejected, ...] = field(default=())
    n_uncorrected: int = 0
    cuts: tuple[Cut, ...] = field(default=())

    @property
    def name(self) -> str:
        """Name of the part's file."""
        return f"{part_name(self.file, self.block)}.parquet"

    def check_rows(self) -> None:
        """Rows in = rows out + rows not selected + rows quarantined; anything else is a bug of ours."""
        accounted = self.n_rows + self.n_not_selected + len(self.quarantined)
        if self.n_read != accounted or self.n_rows != sum(self.status.values()):
            raise RuntimeError(f"{self.name}: {self.n_read} rows were read and {accounted} are accounted for")

    def to_json(self) -> dict[str, Any]:
        """Turn into plain data."""
        return asdict(self)


class PartDraft:
    """Counts of a part while it grows."""

    def __init__(self, file: int, block: int) -> None:
        self._file, self._block = file, block
        self._n_read = self._n_rows = self._n_not_selected = self._n_with_parallax = self._n_uncorrected = 0
        self._status: Counter[str] = Counter()
        self._first, self._last = 0, -1
        self._quarantined: list[Rejected] = []
        self._cuts: tuple[Cut, ...] = ()

    def add(
        self,
        n_read: int,
        n_not_selected: int,
        n_with_parallax: int,
        rows: pa.Table,
        rejected: Iterable[Rejected],
        n_uncorrected: int = 0,
        cuts: Iterable[Cut] = (),
    ) -> None:
        """Count one piece.

        Args:
            n_read: rows of the input.
            n_not_selected: stars that were not asked for.
            n_with_parallax: stars with a parallax that entered the fit.
            rows: the catalogue rows.
            rejected: rows that could not be used.
            n_uncorrected: stars whose parallax was to be corrected and was not.
            cuts: what companion tables gave to the stars.
        """
        self._n_read += n_read
        self._n_not_selected += n_not_selected
        self._n_with_parallax += n_with_parallax
        self._n_uncorrected += n_uncorrected
        self._quarantined += rejected
        self._cuts = add_up_cuts([*self._cuts, *cuts])
        if rows.num_rows:
            self._status.update(rows["status"].cast(pa.string()).to_pylist())
            ids = rows["source_id"].to_numpy()
            low, high = int(ids.min()), int(ids.max())
            self._first, self._last = (min(self._first, low), max(self._last, high)) if self._n_rows else (low, high)
            self._n_rows += rows.num_rows

    def record(self, source: "OpenedInput", *, last: bool) -> PartRecord:
        """Finish the part.

        Args:
            source: the input file as it was when reading began.
            last: no further part comes from its chunk.

        Raises:
            InputError: the input file is another now.
        """
        source.check()
        return PartRecord(
            file=self._file,
            block=self._block,
            last=last,
            n_read=self._n_read,
            n_rows=self._n_rows,
            n_not_selected=self._n_not_selected,
            n_with_parallax=self._n_with_parallax,
            status=dict(sorted(self._status.items())),
            first_source_id=self._first,
            last_source_id=self._last,
            size=0,
            checksum="",
            input_checksum=source.checksum,
            input_modified=source.modified,
            quarantined=tuple(self._quarantined),
            n_uncorrected=self._n_uncorrected,
            cuts=self._cuts,
        )


@dataclass(frozen=True)
class OpenedInput:
    """An input file when reading it began.

    Attributes:
        path: the file.
        modified: time of its last change [ns].
        size: [bytes].
        inode: the file system's number for it.
        checksum: SHA-256.
    """

    path: Path
    modified: int
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
    """Write one part and then its record.

    Args:
        folder: of the catalogue.
        table: the part's rows; no file is written if there are none.
        record: everything but size and checksum.

    Returns:
        the record as written.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    record.check_rows()
    if table.num_rows:
        with whole_file(folder / record.name, MAKE_ROOM) as temporary:
            encode_parquet(table, temporary)
            if pq.read_metadata(temporary).num_rows != record.n_rows:
                raise RuntimeError(f"{record.name}: {record.n_rows} rows are recorded, others were written")
            record = replace(record, size=temporary.stat().st_size, checksum=file_checksum(temporary))
    write_json(record.to_json(), folder / RECORDS / f"{part_name(record.file, record.block)}.json", MAKE_ROOM)
    return record


def read_record(folder: Path, file: int, block: int) -> PartRecord | None:
    """Read the record of a part whose file is there and intact; None if it has to be made."""
    try:
        record = read_json(folder / RECORDS / f"{part_name(file, block)}.json", PartRecord, "")
    except InputError:
        return None
    return record if is_intact(folder, record) else None


def read_records(folder: Path) -> list[PartRecord]:
    """Read the records of all finished parts, in order.

    Raises:
        InputError: a record is damaged.
    """
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
    """Remove temporary files of processes that are no more.

    Args:
        folder: of the catalogue.
        everything: the catalogue is complete, so that nobody can be writing; else only what is known to be abandoned,
            because a shard on another machine may be at work.
    """
    for place in (folder, folder / RECORDS):
        remove_abandoned(place, everything=everything)
