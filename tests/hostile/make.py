"""Small files that a door must survive, each below 10 kB: whole tables of every format, and what befalls files.

A whole table comes out of `table`; `harmed` gives it cut, with bytes exchanged, nested, of another kind. Also the seeds of
`benchmarks/fuzz.py`. What fuzzing has found is in ``found/``, one file a fault, named DOOR-WHAT.SUFFIX.
"""

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = ("csv", "csv.gz", "ecsv", "fits", "vot", "binary.vot", "binary2.vot", "parquet", "hdf5", "avro")
FOUND = Path(__file__).parent / "found"
IDS = np.array([5853498713190525696, 5853498713190525697, 5762406957886626816])
COEFFICIENTS = np.linspace(1.0, 2.0, 55).round(2)


def columns(door: str) -> dict[str, Any]:
    """Three good rows of one door."""
    ones = np.ones(3)
    measured: dict[str, dict[str, Any]] = {
        "gaia": {"ra": ones, "dec": ones, "parallax": ones, "parallax_error": 0.1 * ones, "ruwe": ones},
        "two_mass": {"j_m": 9 * ones, "j_msigcom": 0.02 * ones, "ph_qual": np.array(["AAA"] * 3)},
        "unwise": {"flux_w1": 1e4 * ones, "dflux_w1": ones, "flags_unwise_w1": np.zeros(3, np.int64)},
        "reddening": {"reddening": 0.1 * ones, "reddening_error": 0.02 * ones},
        "labels": {"teff": 5000 * ones, "teff_err": 50 * ones, "feh": -ones, "feh_err": 0.1 * ones}
        | {"logg": 4 * ones, "logg_err": 0.1 * ones},
        "spectra": {
            f"{side}_{what}": np.tile(COEFFICIENTS, (3, 1))
            for side in ("bp", "rp")
            for what in ("coefficients", "coefficient_errors")
        },
    }
    return {"source_id": IDS, **measured[door]}


def write(path: Path, kind: str, table: Mapping[str, Any], units: Mapping[str, str] | None = None) -> Path:
    """Write columns - arrays, masked where a cell is missing, or of several dimensions - in any format."""
    from astropy.table import Table

    units = units or {}
    out = Table(dict(table), units=units)
    if kind in ("csv", "csv.gz"):
        text = io.StringIO()
        lines = csv.writer(text)
        lines.writerow(out.colnames)
        lines.writerows([_cell(value) for value in row] for row in out)
        raw = text.getvalue().encode("utf-8", "surrogateescape")
        path.write_bytes(gzip.compress(raw, 1, mtime=0) if kind == "csv.gz" else raw)
    elif kind == "ecsv":
        out.write(path, format="ascii.ecsv", overwrite=True)
    elif kind == "fits":
        out.write(path, format="fits", overwrite=True)
    elif kind.endswith("vot"):
        how = kind.removesuffix("vot").rstrip(".") or "tabledata"
        out.write(path, format="votable", tabledata_format=how, overwrite=True)
    elif kind == "hdf5":
        _write_hdf5(path, out, units)
    elif kind == "parquet":
        _write_parquet(path, out, units)
    else:
        _write_avro(path, out)
    return path


def _cell(value: Any) -> Any:
    if np.ndim(value):
        return json.dumps([str(v) if isinstance(v, str) else float(v) for v in value])
    return "" if value is np.ma.masked else value


def _rows(column: Any) -> list[Any]:
    values, null = np.ma.getdata(column).tolist(), np.ma.getmaskarray(column).reshape(len(column), -1).any(axis=1)
    return [None if is_null else v for v, is_null in zip(values, null.tolist(), strict=True)]


def _write_hdf5(path: Path, table: Any, units: Mapping[str, str]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name in table.colnames:
            values = np.ma.getdata(table[name])
            data = file.create_dataset(
                f"t/{name}", data=np.char.encode(values, "utf-8") if values.dtype.kind == "U" else values
            )
            if name in units:
                data.attrs["unit"] = units[name]


def _write_parquet(path: Path, table: Any, units: Mapping[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays, fields = [], []
    for name in table.colnames:
        values = np.ma.getdata(table[name])
        kind = pa.from_numpy_dtype(values.dtype.newbyteorder("=")) if values.dtype.kind in "biuf" else pa.string()
        arrays.append(pa.array(_rows(table[name]), type=pa.list_(kind) if values.ndim > 1 else kind))
        fields.append(pa.field(name, arrays[-1].type, metadata={"unit": units[name]} if name in units else None))
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), path)


def _write_avro(path: Path, table: Any) -> None:
    import fastavro

    kinds = {"i": "long", "u": "long", "f": "double", "U": "string", "b": "boolean"}
    fields = []
    for name in table.colnames:
        kind: Any = kinds[table[name].dtype.kind]
        fields.append({"name": name, "type": ["null", kind if table[name].ndim == 1 else _array_of(kind)]})
    rows = [_rows(table[name]) for name in table.colnames]
    with open(path, "wb") as stream:
        records = [dict(zip(table.colnames, cells, strict=True)) for cells in zip(*rows, strict=True)]
        fastavro.writer(stream, {"type": "record", "name": "t", "fields": fields}, records, sync_marker=b"0" * 16)


def _array_of(kind: str) -> dict[str, str]:
    return {"type": "array", "items": kind}


def harmed(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """A file cut at several places, with bytes exchanged, and with zeros in it."""
    n = len(raw)
    for i in range(1, 10):
        yield f"cut{i}", raw[: n * i // 10]
    yield "cut-last", raw[:-1]
    for i in range(10):
        at = (2 * i + 1) * n // 20
        yield f"flipped{i}", raw[:at] + bytes(b ^ 0xFF for b in raw[at : at + 4]) + raw[at + 4 :]
        yield f"zeros{i}", raw[:at] + bytes(min(32, n - at)) + raw[at + 32 :]
    yield "twice", raw + raw
    yield "longer", raw + b"\0" * 512


def odd_text(header: str, row: str) -> Iterator[tuple[str, bytes]]:
    """Text tables that only look like one, around a header and a row that are good."""
    good = f"{header}\n{row}\n".encode()
    first, source = header.partition(",")[0], row.partition(",")[0]
    yield "nested", f'{header}\n{source},"{"[" * 3000}{"]" * 3000}"\n'.encode()
    yield "nested-open", f"{header}\n{source},{'[' * 8000}\n".encode()
    yield "quotes", good + b'"' * 999
    yield "quote-newlines", header.encode() + b'\n"' + b"\n" * 4000 + b'"\n'
    yield "many-columns", ",".join(f"{first}{i}" for i in range(1500)).encode() + b"\n" + good
    yield "same-columns", f"{header},{header}\n{row},{row}\n".encode()
    yield "empty-names", f"{header},,,\n{row},,,\n".encode()
    yield "nul", good.replace(b"\n", b"\n\0")
    yield "utf-16", good.decode().encode("utf-16")
    yield "bom", b"\xef\xbb\xbf" + good
    yield "latin1", good + b"\xe9\xff,\xfe\n"
    yield "cr", good.replace(b"\n", b"\r")
    yield "crlf", good.replace(b"\n", b"\r\n")
    yield "header-only", f"{header}\n".encode()
    yield "comments", b"# nothing\n" * 50
    yield "ecsv-cut", b"# %ECSV 1.0\n# ---\n# datatype:\n# - {name: " + good
    yield "ecsv-odd", f"# %ECSV 1.0\n# ---\n# delimiter: [1]\n# datatype: 7\n# meta: [a]\n{header}\n{row}\n".encode()
    yield "ecsv-alias", b"# %ECSV 1.0\n# ---\n# a: &a [*a, *a]\n# delimiter: ','\n" + good
    yield "ecsv-deep", f"# %ECSV 1.0\n# ---\n# meta: {'[' * 500}\n{header}\n{row}\n".encode()
    yield "ecsv-tag", b"# %ECSV 1.0\n# ---\n# meta: !!python/object/apply:os.system [true]\n" + good
    yield "ecsv-long-delimiter", b"# %ECSV 1.0\n# ---\n# delimiter: ',,'\n# datatype: []\n" + good
    yield "huge-id", f"{header}\n{'9' * 5000},{row.partition(',')[2]}\n".encode()
    yield "huge-exponent", f"{header}\n{source}{',1e99999' * header.count(',')}\n".encode()


ODD_FILES: dict[str, bytes] = {
    "empty": b"",
    "newline": b"\n",
    "zeros": bytes(4096),
    "html": b"<!DOCTYPE html><html><head><title>503 Service Unavailable</title></head><body>busy</body></html>",
    "html-lower": b"\n\n  <html><body>login</body></html>",
    "xml": b"<?xml version='1.0'?><a><b/></a>",
    "xml-cut": b"<?xml version='1.0'?><VOTABLE><RESOURCE><TABLE><FIELD name='source_id'",
    "xml-entity": b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]><VOTABLE>&b;</VOTABLE>",
    "xml-external": b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><VOTABLE>&a;</VOTABLE>",
    "xml-deep": b"<VOTABLE>" + b"<RESOURCE>" * 900,
    "votable-error": b"<VOTABLE><RESOURCE type='results'><INFO name='QUERY_STATUS' value='ERROR'>no such table</INFO>"
    b"</RESOURCE></VOTABLE>",
    "votable-odd": b"<VOTABLE><RESOURCE><TABLE><FIELD name='source_id' datatype='long' arraysize='x*'/>"
    b"<FIELD name='j_m' datatype='quux'/><DATA><TABLEDATA><TR><TD>1</TD></TR></TABLEDATA></DATA></TABLE></RESOURCE>"
    b"</VOTABLE>",
    "json": b'{"source_id": [1, 2]}',
    "json-deep": b"[" * 9000,
    "pdf": b"%PDF-1.7\n",
    "zip-head": b"PK\x03\x04",
    "zip-empty": b"PK\x05\x06" + bytes(18),
    "gzip-head": b"\x1f\x8b",
    "gzip-html": gzip.compress(b"<html>no</html>", mtime=0),
    "gzip-twice": gzip.compress(gzip.compress(b"source_id,x\n1,2\n", mtime=0), mtime=0),
    "fits-head": b"SIMPLE  =                    T",
    "fits-blank": (b"SIMPLE  =                    T" + b" " * 50).ljust(2880),
    "parquet-head": b"PAR1PAR1",
    "parquet-long-footer": b"PAR1" + bytes(8) + b"\xff\xff\xff\x7fPAR1",
    "hdf5-head": b"\x89HDF\r\n\x1a\n" + bytes(64),
    "avro-head": b"Obj\x01",
    "avro-odd": b"Obj\x01\x04\x16avro.schema\x04{}\x00" + bytes(32),
    "pickle": b"cposix\nsystem\n(Vtrue\ntR.",
    "bzip2": b"BZh91AY&SY",
}
"""Files of no table, whatever their name."""


def whole(door: str, kind: str, folder: Path) -> bytes:
    """The bytes of a good table."""
    return write(folder / f"whole.{kind}", kind, columns(door)).read_bytes()


def text_of(door: str) -> tuple[str, str]:
    """Header and first row of a door's CSV file."""
    table = columns(door)
    text = io.StringIO()
    csv.writer(text).writerow([_cell(v[0]) for v in table.values()])
    return ",".join(table), text.getvalue().strip()


def bad_json(good: Any) -> Iterator[tuple[str, bytes]]:
    """JSON documents beside a good one: of other types, keys, nesting and encodings."""
    raw = json.dumps(good).encode()
    yield from ((f"is-{name}", text) for name, text in JSON_VALUES.items())
    yield "cut", raw[: len(raw) // 2]
    yield "utf-16", raw.decode().encode("utf-16")
    yield "latin1", raw.replace(b"{", b'{"\xe9\xff": 1,', 1)
    yield "nan", raw.replace(b"1", b"NaN", 1)
    yield "nul", raw + b"\0"
    for key in good if isinstance(good, dict) else ():
        yield f"without-{key}", json.dumps({k: v for k, v in good.items() if k != key}).encode()
        for name, text in JSON_VALUES.items():
            marked = json.dumps({**good, key: "@here@"}).encode()
            yield f"{key}-{name}", marked.replace(b'"@here@"', text)


JSON_VALUES = {
    "null": b"null",
    "true": b"true",
    "number": b"-1.5",
    "huge": b"1e999",
    "large": b"9" * 400,
    "text": b'"text"',
    "list": b"[null, [], {}]",
    "object": b'{"a": {"b": [1]}}',
    "empty": b"[]",
    "surrogate": b'"\\ud800"',
    "deep": b"[" * 3000 + b"]" * 3000,
    "deep-object": b'{"a":' * 1500 + b"1" + b"}" * 1500,
}
