"""VOTable: every table of the file, streamed where its rows are text, by astropy where they are binary.

A first pass finds tables, FIELDs, PARAMs and the server's status, which may come after the rows; an answer that is an
error document is refused with the server's own sentence. FIELDs without datatype are read as text.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from xpbayes.archive.raw_table import Columns, DamagedError, RawFile, RawTable, ReadBatches, batches_of, refusal, sliced
from xpbayes.archive.text_file import LINE_LIMIT
from xpbayes.archive.units import is_declared
from xpbayes.errors import InputError

FLOATS = ("float", "double")


@dataclass(eq=False)
class _Described:
    """What the first pass finds of a table: attributes of FIELDs and PARAMs, how its rows are written, its status."""

    name: str = ""
    fields: list[dict[str, str]] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    serialisation: str = ""
    truncated: str | None = None


def open_votable(path: Path) -> RawFile:
    """Open a VOTable; InputError if it is none, or a server's error document."""
    try:
        described = _describe(path)
    except (InputError, OSError):
        raise
    except Exception as error:  # whatever expat, gzip or the parser meets
        raise refusal(path, "a complete VOTable", error) from error
    if any(d.serialisation not in ("", "TABLEDATA") for d in described):
        readers = _binary(path, [d.fields for d in described])
    else:
        texts = [d for d in described if d.serialisation]
        readers = [_text(path, texts.index(d) if d in texts else -1, d.fields) for d in described]
    return RawFile(
        tuple(
            RawTable(
                keys=(str(i + 1), *([d.name] if d.name else [])),
                names=tuple(f["name"] for f in d.fields),
                batches=read,
                units={f["name"]: f["unit"] for f in d.fields if is_declared(f.get("unit"))},
                constants=d.params,
                truncated=d.truncated,
            )
            for i, (d, read) in enumerate(zip(described, readers, strict=True))
            if d.serialisation
        )
    )


class _Text:
    """Bytes of a file as they are asked for, so long as the text between two tags has an end."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._size = 0
        self.limit: float = LINE_LIMIT

    def __call__(self, n: int) -> bytes:
        block = self._read(n)
        tag = block.rfind(b"<")
        self._size = len(block) - tag if tag >= 0 else self._size + len(block)
        if self._size > self.limit:
            raise ValueError(f"a cell or tag is longer than {LINE_LIMIT >> 20} MB")
        return block


@contextmanager
def _events(path: Path) -> Iterator[tuple[Any, _Text]]:
    from astropy.utils.data import get_readable_fileobj
    from astropy.utils.xml.iterparser import get_xml_iterator

    with get_readable_fileobj(str(path), encoding="binary") as stream:
        text = _Text(stream.read)
        with get_xml_iterator(text) as events:
            yield events, text


def _describe(path: Path) -> list[_Described]:  # noqa: PLR0912 - one branch for each tag of a VOTable
    """All tables of a file; those of one RESOURCE share its PARAMs and its status."""
    tables: list[_Described] = []
    first = 0  # of this RESOURCE
    table: _Described | None = None
    shared: dict[str, str] = {}
    status, damaged = {}, None
    try:
        with _events(path) as (events, text):
            for start, tag, data, _ in events:
                if start and tag == "RESOURCE":
                    first, shared = len(tables), {}
                elif start and tag == "TABLE":
                    table = _Described(data.get("name") or data.get("ID", ""))
                elif start and tag == "FIELD" and table is not None:
                    table.fields.append({**data, "name": data.get("name") or data.get("ID", "")})
                elif start and tag == "VALUES" and table is not None and table.fields and "null" in data:
                    table.fields[-1]["null"] = data["null"]
                elif start and tag == "PARAM":
                    (shared if table is None else table.params)[data.get("name", "")] = data.get("value", "")
                elif start and table is not None and tag in ("TABLEDATA", "BINARY", "BINARY2", "FITS"):
                    table.serialisation = tag
                    text.limit = LINE_LIMIT if tag == "TABLEDATA" else math.inf  # one text for all rows
                elif tag == "TABLE" and not start and table is not None:
                    table.params = {**shared, **table.params}
                    tables.append(table)
                    table = None
                elif tag == "INFO" and start:
                    status = data
                elif tag == "INFO" and status.get("name") == "QUERY_STATUS":
                    _note_status(path, status.get("value", ""), data.strip(), tables[first:], table)
                    status = {}
    except InputError:
        raise
    except Exception as error:  # expat's own; the rows before the damage are good
        damaged = error
    if table is not None and table.serialisation == "TABLEDATA":
        tables.append(table)
    if damaged is not None and not any(t.serialisation for t in tables):
        raise damaged
    if not any(t.serialisation for t in tables):
        raise ValueError("it holds no table")
    return tables


def _note_status(
    path: Path, value: str, sentence: str, tables: list[_Described], open_table: _Described | None
) -> None:
    if value == "ERROR":
        raise InputError(f"{path}: is the server's refusal, not a table: {' '.join(sentence.split()) or 'no reason'}")
    if value == "OVERFLOW":
        for table in [*tables, *([open_table] if open_table else [])]:
            table.truncated = " ".join(sentence.split()) or "QUERY_STATUS is OVERFLOW"


def _text(path: Path, number: int, fields: list[dict[str, str]]) -> ReadBatches:
    first = {f["name"]: i for i, f in reversed(list(enumerate(fields)))}  # of columns of one name

    def blocks(needed: Sequence[str], size: int) -> Iterator[Columns]:
        return _text_blocks(path, number, {first[name]: fields[first[name]] for name in needed}, size)

    return batches_of(blocks)


def _text_blocks(path: Path, number: int, wanted: Mapping[int, Mapping[str, str]], size: int) -> Iterator[Columns]:  # noqa: PLR0912 - one branch for each tag of a row
    """Rows of the file's table of that number, as they come."""

    def fresh() -> dict[str, list[Any]]:
        return {f["name"]: [] for f in wanted.values()}

    columns, n, at, tables = fresh(), 0, 0, -1
    cells: dict[str, Any] = {}
    try:
        with _events(path) as (events, _):
            for start, tag, data, _ in events:
                if tag == "TABLEDATA" and start:
                    tables += 1
                elif tables != number:
                    continue
                elif tag == "TD" and not start:
                    if at in wanted:
                        cells[wanted[at]["name"]] = _cell(wanted[at], data)
                    at += 1
                elif tag == "TR" and start:
                    at, cells = 0, {}
                elif tag == "TR":
                    for name, column in columns.items():
                        column.append(cells.get(name))
                    n += 1
                    if n == size:
                        yield columns
                        columns, n = fresh(), 0
                elif tag == "TABLEDATA":
                    break
            else:
                raise ValueError("it ends inside the table")
    except Exception as error:  # whatever expat or gzip meets: nothing after it can be found
        if n:
            yield columns
        raise DamagedError((str(error).splitlines() or [type(error).__name__])[0]) from error
    if n:
        yield columns


def _cell(about: Mapping[str, str], text: str) -> Any:
    """A cell of a field: text, a float where the field says so (its digits may be lost), or a list of text."""
    text = text.strip()
    if not text or text == about.get("null"):
        return None
    kind, shape = about.get("datatype", "char"), about.get("arraysize", "1")
    if kind in ("char", "unicodeChar"):
        return text.encode()
    if kind == "boolean" and shape == "1":
        return {"t": b"1", "true": b"1", "1": b"1", "f": b"0", "false": b"0", "0": b"0"}.get(text.lower())
    if shape == "1":
        try:
            return float(text) if kind in FLOATS and "_" not in text else text.encode()
        except ValueError:
            return text.encode()
    return [item.encode() for item in text.split()]  # numbers with blanks between them


def _binary(path: Path, fields: list[list[dict[str, str]]]) -> list[ReadBatches]:
    """Tables decoded whole; their columns by the fields' names, which need not be astropy's."""
    from astropy.io.votable import parse

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unit spelling and the like: not the reader's business
            arrays = [t.array for t in parse(path, verify="ignore").iter_tables()]
    except Exception as error:  # astropy has no one exception for a damaged file
        raise refusal(path, "a complete VOTable", error) from error
    widths = [len(a.dtype.names or f) for a, f in zip(arrays, fields, strict=False)]
    if len(arrays) != len(fields) or widths != [len(f) for f in fields]:
        raise InputError(
            f"{path}: is not a complete VOTable (its fields and its data differ); copy or download it again"
        )
    readers: list[ReadBatches] = []
    for array, own in zip(arrays, fields, strict=True):
        ids = dict(zip((f["name"] for f in own), array.dtype.names or (), strict=bool(array.dtype.names)))
        readers.append(sliced(len(array), partial(_slice, array, ids)))
    return readers


def _slice(array: Any, ids: Mapping[str, str], part: slice, name: str) -> Any:
    return array[ids[name]][part]
