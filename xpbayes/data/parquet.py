"""Parquet as the house reads and writes it: units and provenance inside, whole or not at all, one sentence if damaged."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xpbayes.errors import InputError
from xpbayes.files import reason_of, whole_file

METADATA_KEY = b"xpbayes"
BYTES_AT_ONCE = 1 << 18
"""Bytes of a file held at once: a whole file's worth of new memory costs more than reading it."""
ROWS_OF_A_GROUP = 16_384
"""Rows of a row group, the least that is read at random: 150 MB of star table."""
AGAIN = "write or copy it again"


def fixed_list(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Turn a (row, item) array into an Arrow fixed-size list column."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, type=kind.value_type), kind.list_size)


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write Parquet as the house does, under a temporary name first."""
    with whole_file(path) as temporary:
        encode_parquet(table, temporary)


def encode_parquet(table: pa.Table, path: Path) -> None:
    """Encode Parquet as the house does: byte-stream-split floats, zstd."""
    plain = [f.name for f in table.schema if pa.types.is_integer(f.type) or pa.types.is_string(f.type)]
    floats = [
        f"{f.name}.list.element" if pa.types.is_fixed_size_list(f.type) else f.name
        for f in table.schema
        if pa.types.is_floating(f.type) or pa.types.is_fixed_size_list(f.type)
    ]
    pq.write_table(
        table,
        path,
        compression="zstd",
        use_dictionary=[n for n in plain if n != "source_id"],
        use_byte_stream_split=floats,
        row_group_size=ROWS_OF_A_GROUP,
    )


NO_PARQUET = (".csv", ".ecsv", ".fits", ".vot")
"""Suffixes of what catalogues are exported to."""


@contextmanager
def open_parquet(path: str | os.PathLike[str], advice: str = AGAIN) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; whatever is wrong with it, now or while it is read, is one sentence that ends in the advice.

    Raises:
        InputError: there is no such file, it is not Parquet, or it is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name one .parquet file")
    try:
        if path.suffix in NO_PARQUET and not is_parquet(path):
            raise InputError(
                f"{path}: is no Parquet file, and only such are read here; name the .parquet it was made of"
            )
        file = pq.ParquetFile(path, buffer_size=BYTES_AT_ONCE, pre_buffer=False)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = reason_of(error).rstrip(".")
        raise InputError(f"{path}: is not a complete Parquet file ({reason}); {advice}") from error
    with file:
        try:
            require_counts(file, path, advice)
            yield file
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: is damaged ({reason_of(error)}); {advice}") from error


def read_footer(path: str | os.PathLike[str]) -> tuple[pq.FileMetaData, pa.Schema]:
    """What a Parquet file says of its row groups and columns; InputError as `open_parquet`."""
    with open_parquet(path) as file:
        return file.metadata, file.schema_arrow


def read_together(paths: Sequence[Path], read: Callable[[Path], pa.Table], advice: str = AGAIN) -> pa.Table:
    """The tables of several files as one; InputError where one has other columns than the first."""
    tables = [read(path) for path in paths]
    for path, table in zip(paths, tables, strict=True):
        if not table.schema.equals(tables[0].schema):
            raise InputError(f"{path}: has other columns, or of other types, than {paths[0].name}; {advice}")
    return pa.concat_tables(tables)


def is_parquet(path: Path) -> bool:
    """Whether a file begins as Parquet does."""
    with open(path, "rb") as stream:
        return stream.read(4) == b"PAR1"


def require_counts(file: pq.ParquetFile, path: Path, advice: str = AGAIN) -> None:
    """Refuse a file whose metadata do not agree on how many rows it has."""
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    if min(groups, default=0) < 0 or sum(groups) != file.metadata.num_rows:
        raise InputError(f"{path}: is damaged (its metadata do not agree on how many rows it has); {advice}")


def read_parquet(path: str | os.PathLike[str], columns: Sequence[str] | None = None, advice: str = AGAIN) -> pa.Table:
    """Read columns of a Parquet file, all if None; InputError as `open_parquet`."""
    with open_parquet(path, advice) as file:
        return file.read(columns=None if columns is None else list(columns))


def plain_text(table: pa.Table) -> pa.Table:
    """Text as plain strings: dictionaries, in which earlier versions kept it, differ from file to file."""
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(i, field.with_type(pa.string()), table.column(i).cast(pa.string()))
    return table


def column_names(path: str | os.PathLike[str]) -> list[str]:
    """Names of the columns of a Parquet file."""
    return list(read_footer(path)[1].names)


def file_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the xpbayes metadata of a Parquet file; InputError if it has none."""
    return metadata_of(read_footer(path)[1], path)


def metadata_of(schema: pa.Schema, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The xpbayes metadata of an open file; InputError if there are none, or they cannot be read."""
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise InputError(f"{path}: is Parquet but not a file of xpbayes (no metadata); write it with xpbayes")
    try:
        about = json.loads(raw)
        if not isinstance(about, dict):
            raise TypeError(f"a {type(about).__name__}, not an object")
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: its metadata are damaged ({reason_of(error)}); {AGAIN}") from error
    return about


def require_kind(about: dict[str, Any], kind: str, newest: int, path: str | os.PathLike[str]) -> None:
    """Refuse a file of another kind, or of a version that this xpbayes does not know."""
    if about.get("kind") != kind:
        raise InputError(f"{path}: holds a {about.get('kind', 'file of unknown kind')}, not a {kind}")
    version = about.get("version")
    if type(version) is not int:
        raise InputError(f"{path}: its metadata are damaged (version {version!r}); {AGAIN}")
    if version > newest:
        raise InputError(
            f"{path}: {kind} version {version} is newer than this xpbayes reads ({newest}); upgrade xpbayes"
        )
