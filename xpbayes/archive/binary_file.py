"""FITS, VOTable, Parquet, HDF5 and Avro: every one opened as a `ColumnFile`, columns that are read block by block.

How a library opens a file, what it raises for a foreign one, and how its cells become arrays is said here, once a format.
Memory does not grow with the file, with two exceptions that lie in the formats: a gzip FITS file and a VOTable in binary
serialisation are decoded whole before the first row can be had.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from xpbayes.archive.columns import SOURCE_ID, Places, Wanted, found_names, needed_columns, resolve_columns
from xpbayes.errors import InputError

ROWS_AT_ONCE = 512
"""Rows of a spectra file held at once."""

Columns = Mapping[str, Any]
"""Column name -> cells of some rows: an array, or a list of arrays, bytes or Python values."""


class BlockError(Exception):
    """The file cannot be read on from here."""


@dataclass(frozen=True)
class ColumnFile:
    """An open file of columns.

    Attributes:
        names: its columns, in order.
        blocks: (needed names, rows at once) -> the columns of consecutive rows; BlockError where the file is damaged.
        close: to be called when done.
        resolve: finds wanted columns in it.
    """

    names: Sequence[str]
    blocks: Callable[[Sequence[str], int], Iterator[Columns]]
    close: Callable[[], None]
    resolve: Callable[[Sequence[Wanted], Path], tuple[Places, frozenset[str]]]


def open_columns(path: Path, kind: str) -> ColumnFile:
    """Open a file of a binary format.

    Args:
        path: the file.
        kind: fits, votable, parquet, hdf5 or avro.

    Raises:
        InputError: not a file of that format, or cut short where that shows at once.
    """
    return {"fits": _fits, "votable": _votable, "parquet": _parquet, "hdf5": _hdf5, "avro": _avro}[kind](path)


def open_resolved(path: Path, kind: str, wanted: Sequence[Wanted]) -> tuple[ColumnFile, Places, frozenset[str]]:
    """Open a file and find the wanted columns: their places and the names of those found; closed again on a refusal."""
    file = open_columns(path, kind)
    try:
        return file, *file.resolve(wanted, path)
    except InputError:
        file.close()
        raise


def _column_file(
    names: Sequence[str],
    blocks: Callable[[Sequence[str], int], Iterator[Columns]],
    close: Callable[[], None] = lambda: None,
) -> ColumnFile:
    return ColumnFile(names, blocks, close, lambda wanted, path: resolve_columns(names, wanted, path))


def _sliced(n_rows: int, read: Callable[[str, slice], Any]) -> Callable[[Sequence[str], int], Iterator[Columns]]:
    """Blocks of a file that gives any slice of a column."""

    def blocks(needed: Sequence[str], size: int) -> Iterator[Columns]:
        for start in range(0, n_rows, size):
            part = slice(start, min(start + size, n_rows))
            yield {name: read(name, part) for name in needed}

    return blocks


def _refusal(path: Path, what: str, error: Exception) -> InputError:
    reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    return InputError(f"{path}: is not {what} ({reason}); copy or download it again")


def _fits(path: Path) -> ColumnFile:
    from astropy.io import fits

    try:
        hdus = fits.open(path, memmap=True)
    except OSError as error:
        raise _refusal(path, "a FITS file", error) from error
    hdu = next((h for h in hdus if getattr(h, "columns", None) is not None), None)
    if hdu is None:
        hdus.close()
        raise InputError(f"{path}: has no table extension; name a FITS file with a binary table")
    try:
        data = hdu.data
        n_rows = len(data)
    except Exception as error:  # astropy has no one exception for a damaged file
        hdus.close()
        raise _refusal(path, "a complete FITS table", error) from error
    # Rows first, column second: astropy converts scaled columns as soon as they are named.
    return _column_file(hdu.columns.names, _sliced(n_rows, lambda name, part: data[part][name]), hdus.close)


def _votable(path: Path) -> ColumnFile:
    """The first table; as text (TABLEDATA) it is streamed, in any other serialisation decoded whole."""
    try:
        fields, is_text = _votable_fields(path)
    except Exception as error:  # the parser raises whatever expat, gzip or itself meets
        raise _refusal(path, "a complete VOTable", error) from error
    if is_text:
        names = [field["name"] for field in fields]
        return _column_file(names, lambda needed, size: _votable_blocks(path, fields, needed, size))
    import warnings

    from astropy.io.votable import parse_single_table

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unit spelling and the like: not the reader's business
            array = parse_single_table(path, verify="ignore").array
    except Exception as error:
        raise _refusal(path, "a complete VOTable", error) from error
    return _column_file(array.dtype.names or (), _sliced(len(array), lambda name, part: array[name][part]))


def _votable_fields(path: Path) -> tuple[list[dict[str, str]], bool]:
    """Attributes of the first table's FIELDs, a null value among them, and whether its rows are text."""
    from astropy.utils.xml.iterparser import get_xml_iterator

    fields: list[dict[str, str]] = []
    with get_xml_iterator(str(path)) as events:
        for start, tag, data, _ in events:
            if start and tag == "FIELD":
                fields.append({"name": data.get("ID", ""), **data})
            elif start and tag == "VALUES" and fields and "null" in data:
                fields[-1]["null"] = data["null"]
            elif start and tag in ("TABLEDATA", "BINARY", "BINARY2", "FITS"):
                return fields, tag == "TABLEDATA"
    raise ValueError("it holds no table")


def _votable_blocks(path: Path, fields: list[dict[str, str]], needed: Sequence[str], size: int) -> Iterator[Columns]:
    from astropy.utils.xml.iterparser import get_xml_iterator

    wanted = {i: field for i, field in enumerate(fields) if field["name"] in needed}
    columns: dict[str, list[Any]] = {name: [] for name in needed}
    n = at = 0
    cells: dict[str, Any] = {}
    try:
        with get_xml_iterator(str(path)) as events:
            for start, tag, data, _ in events:
                if tag == "TD" and not start:
                    if at in wanted:
                        cells[wanted[at]["name"]] = _votable_cell(wanted[at], data)
                    at += 1
                elif tag == "TR" and start:
                    at, cells = 0, {}
                elif tag == "TR":
                    for name, column in columns.items():
                        column.append(cells.get(name))
                    n += 1
                    if n == size:
                        yield columns
                        columns, n = {name: [] for name in needed}, 0
                elif tag == "TABLEDATA" and not start:
                    break
            else:
                raise ValueError("it ends inside the table")
    except Exception as error:  # whatever expat or gzip meets: nothing after it can be found
        if n:
            yield columns
        raise BlockError(str(error).splitlines()[0]) from error
    if n:
        yield columns


def _votable_cell(field: Mapping[str, str], text: str) -> Any:
    text = text.strip()
    if not text or text == field.get("null"):
        return None
    if field.get("arraysize", "1") == "1" or field["datatype"] in ("char", "unicodeChar"):
        return text.encode()
    return [item.encode() for item in text.split()]  # numbers with blanks between them


def _parquet(path: Path) -> ColumnFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise _refusal(path, "a complete Parquet file", error) from error

    def blocks(needed: Sequence[str], size: int) -> Iterator[Columns]:
        try:
            for batch in file.iter_batches(batch_size=size, columns=list(needed)):
                yield {name: _arrow_cells(batch.column(batch.schema.get_field_index(name))) for name in needed}
        except (pa.ArrowException, OSError) as error:
            raise BlockError(str(error).splitlines()[0]) from error

    return _column_file(file.schema_arrow.names, blocks, file.close)


def _arrow_cells(column: Any) -> Any:
    """Cells of an Arrow column: one array a row for list columns, without a copy where there are no nulls inside."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        return _arrow_cells(column.dictionary_decode())
    if pa.types.is_fixed_size_list(kind):
        offsets = np.arange(len(column) + 1) * kind.list_size + column.offset * kind.list_size
        values = column.values
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets, values = column.offsets.to_numpy(), column.values
    elif (pa.types.is_floating(kind) or pa.types.is_integer(kind)) and not column.null_count:
        return column.to_numpy()
    elif pa.types.is_floating(kind):
        return column.to_numpy(zero_copy_only=False)  # nulls are NaN
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return [None if v is None else v.encode() for v in column.to_pylist()]
    else:
        return column.to_pylist()
    flat = values.to_numpy(zero_copy_only=False)
    null = column.is_null().to_numpy(zero_copy_only=False)
    return [None if null[i] else flat[offsets[i] : offsets[i + 1]] for i in range(len(column))]


def _hdf5(path: Path) -> ColumnFile:
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"{path}: reading HDF5 needs h5py; pip install 'xpbayes[archive]'") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise _refusal(path, "a complete HDF5 file", error) from error
    try:
        columns = _hdf5_columns(file, path)
    except InputError:
        file.close()
        raise

    def resolve(wanted: Sequence[Wanted], path: Path) -> tuple[Places, frozenset[str]]:
        places, found = resolve_columns(list(columns), wanted, path)
        lengths = {name: len(columns[name]) for name in needed_columns(places)}
        if len(set(lengths.values())) > 1:
            shortest = min(lengths, key=lambda name: lengths[name])
            raise InputError(
                f"{path}: its columns have different lengths ({shortest} has {lengths[shortest]} of "
                f"{max(lengths.values())} rows); write it again"
            )
        return places, found

    def blocks(needed: Sequence[str], size: int) -> Iterator[Columns]:
        return _sliced(len(columns[needed[0]]), lambda name, part: columns[name][part])(needed, size)

    return ColumnFile(list(columns), blocks, file.close, resolve)


def _hdf5_columns(file: Any, path: Path) -> dict[str, Any]:
    """The columns of an HDF5 mirror: datasets of one group, or the fields of one compound dataset."""
    import h5py

    tables: list[dict[str, Any]] = []

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.names:
            tables.append({name: item.fields(name) for name in item.dtype.names})
        elif isinstance(item, h5py.Group):
            datasets = {k: v for k, v in item.items() if isinstance(v, h5py.Dataset) and not v.dtype.names}
            tables.append({k: v for k, v in datasets.items() if v.shape})

    visit("", file)
    file.visititems(visit)
    known = {n.lower() for n in (SOURCE_ID.name, *SOURCE_ID.aliases)}
    for table in tables:
        if known & {name.lower() for name in table}:
            return table
    raise InputError(f"{path}: no group or table of it has a source_id; name an HDF5 mirror of a Gaia table")


def _avro(path: Path) -> ColumnFile:
    """Records either flat, with the archive's names, or nested as Gaia's own (and GaiaXPy's) are."""
    import fastavro

    stream = open(path, "rb")  # noqa: SIM115 - the ColumnFile closes it
    try:
        records = fastavro.reader(stream)
        names = [f["name"] for f in records.writer_schema.get("fields", [])]  # type: ignore[union-attr]
    except Exception as error:  # fastavro raises ValueError, EOFError, struct.error, ... for a foreign file
        stream.close()
        raise _refusal(path, "an Avro file", error) from error
    nested = not any(n in names for n in (SOURCE_ID.name, *SOURCE_ID.aliases))

    def resolve(wanted: Sequence[Wanted], path: Path) -> tuple[Places, frozenset[str]]:
        if not nested:
            return resolve_columns(names, wanted, path)
        places: Places = [["/".join(w.path)] if w.path and w.path[0] in names else None for w in wanted]
        found = found_names(wanted, places)
        if SOURCE_ID.name not in found:
            raise InputError(
                f"{path}: its records have neither source_id nor sourceId; name an Avro file of Gaia spectra"
            )
        return places, found

    def cell(record: Any, name: str) -> Any:
        if not nested:
            return record.get(name)
        return reduce(lambda at, key: at.get(key) if isinstance(at, Mapping) else None, name.split("/"), record)

    def blocks(needed: Sequence[str], size: int) -> Iterator[Columns]:
        remaining = iter(records)
        while True:
            block: list[Any] = []
            failure = None
            try:
                for record in islice(remaining, size):
                    block.append(record)
            except Exception as error:  # a damaged block: nothing after it can be found
                failure = error
            if block:
                yield {name: [cell(record, name) for record in block] for name in needed}
            if failure is not None:
                raise BlockError(str(failure)) from failure
            if len(block) < size:
                return

    return ColumnFile(names, blocks, stream.close, resolve)
