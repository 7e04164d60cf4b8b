"""CSV and ECSV files, plain or gzip, streamed: header, delimiter, lines, and what the archive's own lines hold at once.

A line as the archive writes it is parsed whole (`cells.LineParser`); scalar columns are parsed in blocks; any line with
other quotes goes through the standard library's CSV parser. All three give the same cells. A cell may go on over several
lines, if the quotes close and the fields are then as many as the header's. A line that is too long is a bad row.
"""

import csv
import io
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xpbayes.archive.cells import LineParser
from xpbayes.archive.raw_table import BadRow, Batch, RawFile, RawTable
from xpbayes.archive.units import yaml_header
from xpbayes.errors import InputError

COMPRESSED_BLOCK = 1 << 14
"""Bytes of gzip read at once, one spectrum's worth: what a damaged byte can take with it."""
PLAIN_BLOCK = 1 << 18
"""Bytes of plain text read at once."""
TEXT_BLOCK = 32 << 20
"""Bytes of lines whose scalar columns are parsed at once."""
LINE_LIMIT = 16 << 20
"""Bytes of a line, or of a row over several lines, at most: 400 times a spectrum's."""
KEPT = 1 << 16
"""Bytes kept of a line that is too long: enough to tell whose it is."""


BEGINS_A_ROW = re.compile(rb"\"?[0-9]{10}")
"""A line that begins with an identifier goes on no cell of the row before, whose quotes were not closed."""


SEPARATOR = re.compile(rb'"?sep=([\x20-\x7e\t])"?')
"""A first line that tells a spreadsheet how cells are apart."""


class LongLine(bytes):
    """The beginning of a line beyond the limit."""


class Ending(bytes):
    """Not a line: where the file cannot be read on, with the unfinished text; `reason` says why."""

    reason: str


class TextFile:
    """Header, delimiter and rows of a CSV or ECSV file."""

    def __init__(self, path: Path) -> None:
        """Read up to the header; InputError if there is none."""
        self.path = path
        self._lines: Iterator[bytes] = _lines(path)
        self._waiting: deque[bytes] = deque()
        comments: list[str] = []
        header = b""
        separator = None
        for line in self._lines:
            if isinstance(line, (Ending, LongLine)):
                reason = line.reason if isinstance(line, Ending) else "has a line that is too long"
                raise InputError(f"{path}: {reason} before its header; copy or download it again")
            text = line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r")
            if (said := SEPARATOR.fullmatch(text.strip())) is not None:
                separator = said[1].decode()
            elif text[:1] == b"#":
                comments.append(text[1:].decode("utf-8", "replace").removeprefix(" "))
            elif text.strip():
                header = text
                break
        if not header:
            raise InputError(f"{path}: has no header line; name a CSV or ECSV table")
        self.about, self.units = _ecsv_header(comments, path)
        delimiter = self.about.get("delimiter", separator)
        if delimiter is None and self.about and b"," not in header:
            delimiter = " "  # ECSV's default
        if delimiter is None:
            delimiter = next((d for d in (",", "\t", ";", "|") if d.encode() in header), ",")
        if not isinstance(delimiter, str) or len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n':
            raise InputError(
                f"{path}: its header declares an impossible delimiter ({str(delimiter)[:20]!r}); correct it"
            )
        self.delimiter: bytes = delimiter.encode()
        try:
            self.header = [name.strip() for name in _split(header.decode("utf-8"), delimiter)]
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path}: its header is not text ({error}); name a CSV or ECSV table") from error

    def rows(self) -> Iterator[bytes]:
        """Lines of data, neither empty nor comments; the last may be an `Ending`."""
        while True:
            line = self._waiting.popleft() if self._waiting else next(self._lines, None)
            if line is None:
                return
            if line[-1:] == b"\r":
                line = line.rstrip(b"\r")
            if isinstance(line, Ending) or (line and line[:1] != b"#" and not line.isspace()):
                yield line

    def split(self, line: bytes) -> list[bytes]:
        """Split a row into cells; ValueError if it is no row of this table.

        A line whose quotes are not closed goes on in the next ones, if that makes as many fields as the header has.
        """
        if type(line) is LongLine:
            raise ValueError(f"the line is longer than {LINE_LIMIT >> 20} MB")
        if isinstance(line, Ending):
            raise ValueError(f"the file {line.reason} inside this row")
        if b'"' not in line:
            cells = line.split(self.delimiter)
        else:
            whole = line if line.count(b'"') % 2 == 0 else self._closed(line)
            try:
                text = whole.decode("utf-8", "surrogateescape")
                cells = [c.encode("utf-8", "surrogateescape") for c in _split(text, self.delimiter.decode())]
            except csv.Error as error:
                raise ValueError(f"not a line of CSV ({error})") from error
        if len(cells) != len(self.header):
            raise ValueError(f"{len(cells)} fields where the header has {len(self.header)}")
        return cells

    def _closed(self, line: bytes) -> bytes:
        """The row that begins with this line, if its quotes close in time; the line alone if they do not."""
        taken: list[bytes] = []
        fields, outside, size, at = 1, True, 0, line
        while True:
            for i, piece in enumerate(at.split(b'"')):
                outside = outside ^ (i > 0)
                fields += piece.count(self.delimiter) if outside else 0
            size += len(at)
            if outside and fields == len(self.header):
                return b"\n".join([line, *taken])
            following = None
            if not outside and fields <= len(self.header) and size <= LINE_LIMIT:
                following = self._waiting.popleft() if self._waiting else next(self._lines, None)
            if following is not None:
                at = following.rstrip(b"\r") if type(following) is bytes else following
                taken.append(at)
            if following is None or type(following) is not bytes or BEGINS_A_ROW.match(following):
                self._waiting.extendleft(reversed(taken))
                return line


def open_text(path: Path) -> RawFile:
    """Open a CSV or ECSV file."""
    file = TextFile(path)
    meta = file.about.get("meta")
    table = RawTable(
        ("1",),
        tuple(file.header),
        partial(_batches, file),
        units=file.units,
        constants=meta if isinstance(meta, dict) else {},
    )
    return RawFile((table,))


def _batches(file: TextFile, needed: Sequence[str], size: int, scalar: bool) -> Iterator[Batch]:
    """Rows of a text file; a damaged end is one bad row."""
    where = [file.header.index(name) for name in needed]
    return _scalar_batches(file, needed, where) if scalar else _row_batches(file, needed, where, size)


def _split_or_bad(file: TextFile, row: int, line: bytes, where: int) -> list[bytes] | BadRow:
    """A line's cells, or why there are none, with the cell of its source_id, if that comes before any quote."""
    try:
        return file.split(line)
    except ValueError as error:
        cells = line.split(b'"')[0].split(file.delimiter)
        return BadRow(row, str(error), cells[where] if where < len(cells) else None)


def _row_batches(file: TextFile, needed: Sequence[str], where: list[int], size: int) -> Iterator[Batch]:
    """Rows with arrays, one line after the other: the whole line at once if it is as the archive writes it."""
    parse = LineParser(len(file.header), where) if file.delimiter == b"," else lambda line: None
    rows: list[int] = []
    held: list[list[Any]] = []
    bad: list[BadRow] = []

    def batch() -> Batch:
        columns = zip(*held, strict=True) if held else ([] for _ in needed)
        return Batch(np.array(rows, np.int64), dict(zip(needed, columns, strict=True)), tuple(bad))

    for row, line in enumerate(file.rows(), 1):
        cells = parse(line) if type(line) is bytes else None
        if cells is None:
            split = _split_or_bad(file, row, line, where[0])
            if isinstance(split, BadRow):
                bad.append(split)
                continue
            cells = [split[i] for i in where]
        rows.append(row)
        held.append(cells)
        if len(rows) == size:
            yield batch()
            rows, held, bad = [], [], []
    if rows or bad:
        yield batch()


def _scalar_batches(file: TextFile, needed: Sequence[str], where: list[int]) -> Iterator[Batch]:
    """Scalar columns as text, some megabytes of lines at a time."""
    n_marks = len(file.header) - 1
    plain: list[bytes] = []
    careful: list[tuple[int, list[bytes]]] = []
    rows: list[int] = []
    bad: list[BadRow] = []
    size = 0

    def batch() -> Batch:
        frame = _parse_block(plain, file.delimiter, where)
        columns: dict[str, Any] = {}
        for name, i in zip(needed, where, strict=True):
            columns[name] = frame[str(i)]
            if careful:
                text: list[Any] = frame[str(i)].to_list()
                for at, cells in careful:  # in order, so that every place is the final one
                    text.insert(at, cells[i].decode("utf-8", "replace"))
                columns[name] = _text_series(text)
        return Batch(np.array(rows, np.int64), columns, tuple(bad))

    for row, line in enumerate(file.rows(), 1):
        size += len(line)
        if b'"' not in line and type(line) is bytes and line.count(file.delimiter) == n_marks:
            plain.append(line)
            rows.append(row)
        elif isinstance(split := _split_or_bad(file, row, line, where[0]), BadRow):
            bad.append(split)
        else:
            careful.append((len(rows), split))
            rows.append(row)
        if size > TEXT_BLOCK:
            yield batch()
            plain, careful, rows, bad, size = [], [], [], [], 0
    if rows or bad:
        yield batch()


def _text_series(values: list[Any]) -> Any:
    import polars as pl

    return pl.Series(values=values, dtype=pl.String)


def _parse_block(lines: list[bytes], delimiter: bytes, chosen: list[int]) -> dict[str, Any]:
    """Columns of lines without quotes, by their numbers."""
    import polars as pl

    if not lines:
        return {str(j): _text_series([]) for j in chosen}
    wanted = sorted(set(chosen))
    blank = b"-" + delimiter * lines[0].count(delimiter)  # polars unpacks what begins as gzip, zlib or zstandard would
    frame = pl.read_csv(
        io.BytesIO(b"\n".join([blank, *lines])),
        has_header=False,
        separator=delimiter.decode(),
        quote_char=None,
        infer_schema=False,
        encoding="utf8-lossy",
        columns=wanted,
    )
    frame = frame.slice(1)
    if frame.height != len(lines):  # a parser that sees other lines than we do must not be believed
        split = [line.split(delimiter) for line in lines]
        return {str(j): _text_series([cells[j].decode("utf-8", "replace") for cells in split]) for j in chosen}
    return {str(j): frame.to_series(k) for k, j in enumerate(wanted)}  # their names differ between versions


def _split(text: str, delimiter: str) -> list[str]:
    return next(csv.reader([text], delimiter=delimiter, skipinitialspace=delimiter != " ", strict=True))


def _ecsv_header(comments: list[str], path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What an ECSV header says - delimiter, meta - and units; nothing if it is none."""
    if not comments or not comments[0].startswith("%ECSV"):
        return {}, {}
    about, units = yaml_header((line for line in comments[1:] if line.strip() != "---"), path)
    return {"delimiter": None, **about}, units


def _lines(path: Path) -> Iterator[bytes]:
    """Lines without their newline; an `Ending` where the file cannot be read on."""
    held: list[bytes] = []  # pieces of the line that is not yet complete: joined once, not at every block
    size = 0
    text = b""
    for text in _inflate(path):
        if type(text) is Ending:
            break
        at = 0
        while (end := text.find(b"\n", at)) >= 0:
            if held:
                held.append(text[at:end])
                yield _joined(held, size + end - at)
                held, size = [], 0
            else:
                yield text[at:end] if end - at <= LINE_LIMIT else LongLine(text[at : at + KEPT])
            at = end + 1
        if at < len(text):
            size += len(text) - at
            if size <= LINE_LIMIT or not held:
                held.append(text[at:] if size <= LINE_LIMIT else text[at : at + KEPT])
    if type(text) is Ending:
        unfinished = Ending(b"".join(held))
        unfinished.reason = text.reason
        yield unfinished
    elif held:
        yield _joined(held, size)


def _joined(held: list[bytes], size: int) -> bytes:
    line = b"".join(held)
    return line if size <= LINE_LIMIT else LongLine(line[:KEPT])


def _inflate(path: Path) -> Iterator[bytes]:
    """Decompressed blocks of a file that may be gzip; an `Ending` at the point where it cannot go on."""
    with open(path, "rb") as stream:
        if stream.read(2) != b"\x1f\x8b":
            stream.seek(0)
            while block := stream.read(PLAIN_BLOCK):
                yield block
            return
        stream.seek(0)
        fresh, failures = _decompressor()
        engine = fresh()
        begun = False
        ending = Ending()
        while block := stream.read(COMPRESSED_BLOCK):
            while block:
                begun = True
                try:
                    text = engine.decompress(block)
                except failures as error:
                    ending.reason = f"is damaged gzip ({error})"
                    yield ending
                    return
                if text:
                    yield text
                block = b""
                if engine.eof:  # another gzip member may follow; zero padding is legal
                    block = engine.unused_data.lstrip(b"\x00")
                    engine = fresh()
                    begun = False
        if begun:
            ending.reason = "is cut short (gzip ends early)"
            yield ending


def _decompressor() -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    """A maker of gzip decompressors: isal's if installed, twice as fast as the standard library's."""
    try:
        from isal import isal_zlib
    except ImportError:
        return lambda: zlib.decompressobj(wbits=31), (zlib.error,)
    isal: Any = isal_zlib  # its stubs call the exception class an instance
    return lambda: isal.decompressobj(wbits=31), (isal.error, zlib.error, ValueError)
