"""A catalogue of any size, rows by rows: one Parquet file or a folder of parts, for whoever does not need all at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xpbayes.data.parquet import open_parquet, plain_text, read_footer
from xpbayes.errors import InputError
from xpbayes.production.manifest import catalogue_metadata, part_records, read_complete
from xpbayes.production.parts import PartRecord, is_intact
from xpbayes.schema import Column, columns_of, id_column

ROWS_AT_ONCE = 16_384
AGAIN = "copy or infer it again"


@dataclass(frozen=True)
class Rows:
    """Rows of any kind, read some at a time."""

    n_rows: int
    columns: tuple[Column, ...]
    tables: Callable[[Sequence[str] | None], Iterator[pa.Table]]  # of the named columns, all if None, in order


@dataclass(frozen=True)
class Catalogue:
    """A catalogue on disk: its Parquet files, in order."""

    files: tuple[Path, ...]
    n_rows: int
    about: dict[str, Any]  # what it was made with
    records: tuple[PartRecord, ...] = ()  # of a catalogue in parts, what its manifest says of each file

    @property
    def columns(self) -> tuple[Column, ...]:
        """Its columns, as the schema describes them."""
        return columns_of(self.about)

    @property
    def rows(self) -> Rows:
        """Its rows as they are."""
        return Rows(self.n_rows, self.columns, self.tables)

    def tables(self, names: Sequence[str] | None = None, rows_at_once: int = ROWS_AT_ONCE) -> Iterator[pa.Table]:
        """Read the named columns, all if None, in order, at most so many rows at a time; text comes as plain strings.

        Raises:
            InputError: a file is damaged, or has other rows than the manifest says.
        """
        wanted = [c.name for c in self.columns] if names is None else list(names)
        for i, path in enumerate(self.files):
            with open_parquet(path, AGAIN) as file:
                if self.records and file.metadata.num_rows != self.records[i].n_rows:
                    raise InputError(
                        f"{path}: has {file.metadata.num_rows} rows, not the {self.records[i].n_rows} of the manifest; "
                        f"{AGAIN}"
                    )
                identifier = id_column(file.schema_arrow.names)
                stored = [identifier if name == "source_id" else name for name in wanted]
                for groups in _row_groups(file.metadata, rows_at_once):
                    for batch in file.iter_batches(
                        rows_at_once, row_groups=groups, columns=list(dict.fromkeys(stored))
                    ):
                        yield plain_text(pa.Table.from_batches([batch]).select(stored).rename_columns(wanted))

    def check_intact(self) -> None:
        """Raise InputError if a file of a catalogue in parts is not the one that was written."""
        bad = [r.name for path, r in zip(self.files, self.records, strict=False) if not is_intact(path.parent, r)]
        if bad:
            raise InputError(
                f"{self.files[0].parent}: {len(bad)} of its parts are not the files that were written (first: {bad[0]}); "
                f"{AGAIN}"
            )


def _row_groups(metadata: pq.FileMetaData, rows_at_once: int) -> Iterator[list[int]]:
    """Consecutive row groups of at least so many rows: asked for all of them, Arrow keeps what it has read until the end."""
    together: list[int] = []
    n_rows = 0
    for k in range(metadata.num_row_groups):
        together.append(k)
        n_rows += metadata.row_group(k).num_rows
        if n_rows >= rows_at_once:
            yield together
            together, n_rows = [], 0
    if together:
        yield together


def open_catalogue(path: str | Path) -> Catalogue:
    """Find the files of a catalogue: a Parquet file, or the folder of one in parts.

    Raises:
        InputError: it is no catalogue, not finished, or has no rows.
    """
    path = Path(path)
    if path.is_dir():
        manifest = read_complete(path)
        records = [r for r in part_records(manifest) if r.n_rows]
        files = tuple(path / r.name for r in records)
        gone = [f for f in files if not f.is_file()]
        if gone:
            raise InputError(f"{path}: {len(gone)} of its parts have gone (first: {gone[0].name}); copy it again")
        about = {
            "kind": "catalogue",
            **manifest["identity"]["about"],
            "n_with_parallax": manifest["totals"]["n_with_parallax"],
            "input": {"path": path.name, "n_stars": manifest["totals"]["rows_read"]},
            "versions": manifest["identity"]["versions"],
        }
        n_rows = sum(r.n_rows for r in records)
    else:
        about = catalogue_metadata(path)
        records = []
        files, n_rows = (path,), read_footer(path)[0].num_rows
    if not n_rows:
        raise InputError(f"{path}: has no rows; nothing to do")
    return Catalogue(files, n_rows, about, tuple(records))
