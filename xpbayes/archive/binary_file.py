"""FITS, Parquet, HDF5 and Avro: every table of a file as a `RawTable`, read by the library that knows the format.

How a library opens a file, what it raises for a foreign one, where it keeps units, and how its cells become arrays is
said here, once a format. Memory does not grow with the file.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial, reduce
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from xpbayes.archive.raw_table import Batch, Columns, DamagedError, RawFile, RawTable, batches_of, refusal, sliced
from xpbayes.archive.units import is_declared, yaml_header
from xpbayes.data.fits_header import check_headers
from xpbayes.data.parquet import require_counts
from xpbayes.errors import InputError


def open_fits(path: Path) -> RawFile:
    """Open a FITS file; its header's cards hold for every row."""
    from astropy.io import fits

    try:
        check_headers(path)
        hdus = fits.open(path, memmap=True)
        tables = [
            _hdu_table(path, i, hdu, hdus[0].header)
            for i, hdu in enumerate(hdus)
            if getattr(hdu, "columns", None) is not None
        ]
    except Exception as error:  # astropy has no one exception for a damaged file
        raise refusal(path, "a complete FITS file", error) from error
    if not tables:
        hdus.close()
        raise InputError(f"{path}: has no table extension; name a FITS file with a binary table")
    return RawFile(tuple(tables), hdus.close)


@cache
def _mapped_rows() -> type:
    """Astropy's rows of a FITS table, but that they are let go without a last look at the file.

    astropy copies columns when it lets rows go, which may be long after the file was read; where the file has become
    shorter by then, whoever looks at what was mapped of it is ended by a signal.
    """
    from astropy.io import fits

    class Rows(fits.FITS_rec):
        def __del__(self) -> None:
            pass

    return Rows


def _hdu_table(path: Path, number: int, hdu: Any, primary: Any) -> RawTable:
    hdu._data_type = _mapped_rows()
    data = hdu.data
    size = path.stat().st_size
    columns = {c.name: c for c in hdu.columns}

    def some(part: slice) -> Any:
        if path.stat().st_size < size:
            raise DamagedError("it has become shorter while it was read")
        return data[part]

    def read(rows: Any, name: str) -> Any:
        cells, null = rows[name], columns[name].null
        return cells if null is None else np.ma.masked_equal(cells, null)

    return RawTable(
        keys=(str(number), *([hdu.name] if hdu.name else [])),
        names=tuple(columns),
        # Rows first, column second: astropy converts scaled columns as soon as they are named.
        batches=sliced(0 if data is None else len(data), read, some),
        units={name: c.unit for name, c in columns.items() if is_declared(c.unit)},
        constants={**dict(primary), **dict(hdu.header)},
    )


# -------------------------------------------------------------------------------------------------------- Parquet


def open_parquet(path: Path) -> RawFile:
    """Open a Parquet file; the fields of nested columns, as LSDB writes them, are columns ``nested.field``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise refusal(path, "a complete Parquet file", error) from error
    require_counts(file, path)
    fields: dict[str, tuple[str, str]] = {}
    for f in schema:
        kind = f.type.value_type if pa.types.is_list(f.type) or pa.types.is_large_list(f.type) else f.type
        inner = [kind.field(i).name for i in range(kind.num_fields)] if pa.types.is_struct(kind) else [""]
        fields.update({f"{f.name}.{i}" if i else f.name: (f.name, i) for i in inner})

    def blocks(needed: Sequence[str], size: int) -> Iterator[Columns]:
        whole = list(dict.fromkeys(fields[name][0] for name in needed))
        try:
            for batch in file.iter_batches(batch_size=size, columns=whole):
                tops = {name: batch.column(batch.schema.get_field_index(name)) for name in whole}
                yield {name: _arrow_cells(_inner(tops[fields[name][0]], fields[name][1])) for name in needed}
        except (pa.ArrowException, OSError) as error:
            raise DamagedError(str(error).splitlines()[0]) from error

    table = RawTable(("1",), tuple(fields), batches_of(blocks), units=_parquet_units(schema, path))
    return RawFile((table,), file.close)


def _inner(column: Any, name: str) -> Any:
    """A field of a struct, or of a list of structs."""
    import pyarrow as pa

    if not name:
        return column
    if pa.types.is_struct(column.type):
        return pa.compute.struct_field(column, name)
    inner = column.values.field(name)
    return type(column).from_arrays(column.offsets, inner)


def _parquet_units(schema: Any, path: Path) -> dict[str, str]:
    """Units as xpbayes (field metadata), astropy (its YAML) and VOParquet (a VOTable header) write them."""
    units = {
        f.name: f.metadata[b"unit"].decode(errors="replace") for f in schema if f.metadata and f.metadata.get(b"unit")
    }
    about = schema.metadata or {}
    if b"table_meta_yaml" in about:
        units.update(yaml_header(about[b"table_meta_yaml"].decode("utf-8", "replace").splitlines(), path)[1])
    if header := about.get(b"IVOA.VOTable-Parquet.content"):
        from xml.etree import ElementTree

        try:
            fields = [e.attrib for e in ElementTree.fromstring(header).iter() if e.tag.rpartition("}")[2] == "FIELD"]
        except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
            raise refusal(path, "a Parquet file with a whole VOTable header", error) from error
        units.update({f["name"]: f["unit"] for f in fields if "name" in f and "unit" in f})
    return units


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
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        mask = column.is_null().to_numpy(zero_copy_only=False)
        plain = column.fill_null(0) if mask.any() else column  # integers must not become floats for the sake of a null
        numbers = plain.to_numpy(zero_copy_only=False)
        return np.ma.array(numbers, mask=mask) if mask.any() else numbers
    else:
        return column.to_pylist()
    flat = values.to_numpy(zero_copy_only=False)
    null = column.is_null().to_numpy(zero_copy_only=False)
    return [None if null[i] else flat[offsets[i] : offsets[i + 1]] for i in range(len(column))]


# ----------------------------------------------------------------------------------------------------------- HDF5


def open_hdf5(path: Path) -> RawFile:
    """Open an HDF5 file: the datasets of each group, as vaex has them too, and each compound dataset, are tables."""
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"{path}: reading HDF5 needs h5py; pip install 'xpbayes[archive]'") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise refusal(path, "a complete HDF5 file", error) from error
    found: dict[str, dict[str, Any]] = {}
    units: dict[str, dict[str, str]] = {}

    def note(table: str, name: str, dataset: Any, *holders: Any) -> None:
        found.setdefault(table, {})[name] = dataset
        for holder in holders:
            for key in ("unit", "units", "UNIT"):
                if is_declared(text := _text(holder.attrs.get(key))):
                    units.setdefault(table, {})[name] = text

    def visit(place: str, item: Any) -> None:
        group, _, name = place.rpartition("/")
        if name.endswith(".__table_column_meta__"):
            beside = f"{group}/{name.removesuffix('.__table_column_meta__')}".lstrip("/")
            units.setdefault(beside, {}).update(yaml_header([_text(line) for line in item[()]], path)[1])
        elif item.dtype.names:
            for field in item.dtype.names:
                note(place, field, item.fields(field))
        elif item.shape and "/columns/" in f"/{group}":
            table, _, column = group.rpartition("/")
            beside = item.parent
            if name == "data":
                cells = _Strings(item, beside["indices"]) if "indices" in beside else item
                note(table, column, cells, item, beside)
                if "mask" in beside:
                    note(table, f"{column}.mask", beside["mask"])
                elif "null_bitmap" in beside:
                    note(table, f"{column}.mask", _NullBitmap(beside["null_bitmap"], len(cells)))
        elif item.shape:
            note(group, name, item, item)

    try:
        for place, item in _datasets(file, set()):
            visit(place, item)
    except InputError:
        file.close()
        raise
    except Exception as error:  # h5py has no one exception for a damaged file
        file.close()
        raise refusal(path, "a complete HDF5 file", error) from error
    if not found:
        file.close()
        raise InputError(f"{path}: holds no dataset; name an HDF5 table")
    tables = [
        RawTable(
            (str(i + 1), place or "/"), tuple(columns), partial(_hdf5_batches, path, columns), units.get(place, {})
        )
        for i, (place, columns) in enumerate(found.items())
    ]
    return RawFile(tuple(tables), file.close)


class _Strings:
    """Strings as vaex keeps them: all their bytes, and where each begins and the last ends."""

    def __init__(self, data: Any, indices: Any) -> None:
        self._data, self._indices = data, indices

    def __len__(self) -> int:
        return max(0, len(self._indices) - 1)

    def __getitem__(self, part: slice) -> list[bytes]:
        at = self._indices[part.start : part.stop + 1].tolist()
        if at != sorted(at) or not 0 <= at[0] <= at[-1] <= len(self._data):
            raise DamagedError("its strings have impossible places")
        raw = bytes(self._data[at[0] : at[-1]])
        return [raw[a - at[0] : b - at[0]] for a, b in pairwise(at)]


class _NullBitmap:
    """A bit for each row, set where there is a value, as vaex has it from Arrow."""

    def __init__(self, bits: Any, n: int) -> None:
        self._bits, self._n = bits, n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, part: slice) -> Any:
        first = part.start // 8
        bits = np.unpackbits(self._bits[first : -(-part.stop // 8)], bitorder="little")[part.start - 8 * first :]
        return bits[: part.stop - part.start] == 0


DEEPEST = 32
"""Groups within groups that are looked into; HDF5 itself has no limit until the stack ends, and the process with it."""


def _datasets(group: Any, seen: set[int], place: str = "") -> Iterator[tuple[str, Any]]:
    """Datasets of a group and of those in it, each once; links to elsewhere are not followed."""
    import h5py

    if place.count("/") >= DEEPEST:
        raise ValueError(f"its groups are nested more than {DEEPEST} deep")
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            continue
        item, here = group[name], f"{place}/{name}"
        address = h5py.h5o.get_info(item.id).addr
        if address in seen:
            continue
        seen.add(address)
        if isinstance(item, h5py.Group):
            yield from _datasets(item, seen, here)
        elif isinstance(item, h5py.Dataset):
            yield here[1:], item


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)


def _hdf5_batches(
    path: Path, columns: Mapping[str, Any], needed: Sequence[str], size: int, scalar: bool
) -> Iterator[Batch]:
    lengths = {name: len(columns[name]) for name in needed}
    if len(set(lengths.values())) > 1:
        shortest = min(lengths, key=lambda name: lengths[name])
        raise InputError(
            f"{path}: its columns have different lengths ({shortest} has {lengths[shortest]} of "
            f"{max(lengths.values())} rows); write it again"
        )
    return sliced(lengths[needed[0]], lambda part, name: columns[name][part])(needed, size, scalar)


# ----------------------------------------------------------------------------------------------------------- Avro


MOST_FIELDS = 10_000
"""Fields looked at: records that hold one another by name have no end."""


def open_avro(path: Path) -> RawFile:
    """Open an Avro file; fields of nested records are columns ``outer/inner``."""
    import fastavro

    stream = open(path, "rb")  # noqa: SIM115 - the RawFile closes it
    try:
        records = fastavro.reader(stream)
        schema: Any = records.writer_schema
        names = list(dict.fromkeys(islice(_leaves(schema, "", {}), MOST_FIELDS)))
        units = {f["name"]: str(f["unit"]) for f in schema["fields"] if is_declared(f.get("unit"))}
    except Exception as error:  # fastavro raises ValueError, EOFError, struct.error, ... for a foreign file
        stream.close()
        raise refusal(path, "an Avro file", error) from error

    def blocks(needed: Sequence[str], size: int) -> Iterator[Columns]:
        stream.seek(0)
        remaining = iter(fastavro.reader(stream))
        while True:
            block: list[Any] = []
            failure = None
            try:
                for record in islice(remaining, size):
                    block.append(record)
            except Exception as error:  # a damaged block: nothing after it can be found
                failure = error
            if block:
                yield {name: [_leaf(record, name) for record in block] for name in needed}
            if failure is not None:
                raise DamagedError(str(failure)) from failure
            if len(block) < size:
                return

    return RawFile(
        (RawTable(("1", str(schema.get("name", ""))), tuple(names), batches_of(blocks), units),), stream.close
    )


def _leaves(schema: Any, place: str, named: dict[str, Any], depth: int = 0) -> Iterator[str]:
    """Names of the fields that are no records, outermost name first.

    The schema has each record in full once, and by its name from then on: `named` are those met so far.
    """
    options = [named.get(s, s) if isinstance(s, str) else s for s in (schema if isinstance(schema, list) else [schema])]
    records = [s for s in options if isinstance(s, dict) and s.get("type") == "record"]
    if not records or depth > 8:
        yield place
        return
    for record in records:
        name = str(record.get("name", ""))
        named |= {name: record, f"{record.get('namespace', '')}.{name}": record}
        for f in record["fields"]:
            yield from _leaves(f["type"], f"{place}/{f['name']}".lstrip("/"), named, depth + 1)


def _leaf(record: Any, name: str) -> Any:
    return reduce(lambda at, key: at.get(key) if isinstance(at, Mapping) else None, name.split("/"), record)
