"""A catalogue of any size, rows by rows: one Parquet file or a folder of parts, for whoever does not need all at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xpbayes.data.parquet import file_metadata
from xpbayes.errors import InputError
from xpbayes.production.manifest import read_manifest
from xpbayes.production.verify import part_records
from xpbayes.schema import Column, columns_of

ROWS_AT_ONCE = 16_384


@dataclass(frozen=True)
class Catalogue:
    """A catalogue on disk.

    Attributes:
        files: its Parquet files, in order.
        n_rows: rows in all of them.
        about: what it was made with.
    """

    files: tuple[Path, ...]
    n_rows: int
    about: dict[str, Any]

    @property
    def columns(self) -> tuple[Column, ...]:
        """Its columns, as the schema describes them."""
        return columns_of(self.about)

    def tables(self, names: Sequence[str] | None = None, rows_at_once: int = ROWS_AT_ONCE) -> Iterator[pa.Table]:
        """Read it in order, some rows at a time; text columns come as plain strings.

        Args:
            names: which columns; all if None.
            rows_at_once: most rows of a table.

        Raises:
            InputError: a file is damaged.
        """
        wanted = [c.name for c in self.columns] if names is None else list(names)
        for path in self.files:
            try:
                with pq.ParquetFile(path) as file:
                    for groups in _row_groups(file.metadata, rows_at_once):
                        for batch in file.iter_batches(rows_at_once, row_groups=groups, columns=wanted):
                            yield _plain(pa.Table.from_batches([batch]).select(wanted))
            except (pa.ArrowException, OSError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"{path}: cannot be read ({reason}); copy or infer it again") from error


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


def _plain(table: pa.Table) -> pa.Table:
    """Dictionaries differ from file to file: decode them."""
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(i, field.with_type(pa.string()), table.column(i).cast(pa.string()))
    return table


def open_catalogue(path: str | Path) -> Catalogue:
    """Find the files of a catalogue.

    Args:
        path: a Parquet file, or the folder of a catalogue in parts.

    Raises:
        InputError: it is no catalogue, not finished, or has no rows.
    """
    path = Path(path)
    if path.is_dir():
        manifest = read_manifest(path)
        if not manifest["complete"]:
            raise InputError(f"{path}: is not finished; go on with 'xpbayes infer ... --out {path} --resume'")
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
        about = file_metadata(path)
        if about.get("kind") != "catalogue":
            raise InputError(f"{path}: holds a {about.get('kind', 'file of unknown kind')}, not a catalogue")
        files, n_rows = (path,), pq.read_metadata(path).num_rows
    if not n_rows:
        raise InputError(f"{path}: has no rows; nothing to do")
    return Catalogue(files, n_rows, about)
