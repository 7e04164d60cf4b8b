"""CSV and ECSV files, plain or gzip: header, delimiter and lines, streamed.

A gzip file that ends early or is damaged gives its lines up to there, then `DamagedError`.
"""

import csv
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xpbayes.errors import InputError

COMPRESSED_BLOCK = 1 << 14
"""Bytes of gzip read at once, one spectrum's worth: what a damaged byte can take with it."""
PLAIN_BLOCK = 1 << 18
"""Bytes of plain text read at once."""


class DamagedError(Exception):
    """The compressed stream ends early or is corrupt; args[1], where present, is the unfinished line."""


class TextFile:
    """Header, delimiter and lines of a CSV or ECSV file."""

    def __init__(self, path: Path) -> None:
        """Read up to the header; InputError if there is none."""
        self.path = path
        self._lines = _lines(path)
        delimiter = ","
        ecsv = False
        header = None
        try:
            for line in self._lines:
                text = line.rstrip(b"\r")
                if text.startswith(b"#"):
                    ecsv = ecsv or text.startswith(b"# %ECSV")
                    if ecsv and b"delimiter:" in text:
                        delimiter = text.split(b"delimiter:")[1].decode().strip().strip("'\"") or " "
                    continue
                if text:
                    header = text
                    break
        except DamagedError as error:
            raise InputError(f"{path}: {error.args[0]} before its header; copy or download it again") from error
        if header is None:
            raise InputError(f"{path}: has no header line; name a CSV or ECSV table")
        if ecsv and delimiter == "," and b"," not in header and b" " in header:
            delimiter = " "  # ECSV's default
        self.delimiter = delimiter.encode()
        try:
            text_header = header.decode("utf-8-sig")
            self.header = [name.strip() for name in next(csv.reader([text_header], delimiter=delimiter))]
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path}: its header is not text ({error}); name a CSV or ECSV table") from error

    def data_lines(self) -> Iterator[bytes]:
        """Lines of data: neither empty nor comments. DamagedError where the file cannot be read on."""
        for line in self._lines:
            if line[-1:] == b"\r":
                line = line.rstrip(b"\r")
            if line and line[:1] != b"#" and not line.isspace():
                yield line

    def split(self, line: bytes) -> list[bytes]:
        """Split one line into cells; ValueError if the number of cells is not the header's."""
        cells: list[bytes] = []
        pieces = line.split(b'"')
        last = len(pieces) - 1
        mark = self.delimiter
        for i, piece in enumerate(pieces):
            if i % 2:
                cells.append(piece)
                continue
            if i and i < last:
                if piece == mark:
                    continue
                piece = piece[1:-1]
            elif i:
                if not piece:
                    continue
                piece = piece[1:]
            elif last:
                if not piece:
                    continue
                piece = piece[:-1]
            cells += piece.split(mark)
        if len(cells) != len(self.header):
            raise ValueError(f"{len(cells)} fields where the header has {len(self.header)}")
        return cells


def _lines(path: Path) -> Iterator[bytes]:
    """Lines without their newline; DamagedError after the last, the unfinished text in args[1]."""
    held: list[bytes] = []  # pieces of the line that is not yet complete: joined once, not at every block
    try:
        for text in _inflate(path):
            at = 0
            while (end := text.find(b"\n", at)) >= 0:
                if held:
                    held.append(text[at:end])
                    yield b"".join(held)
                    held = []
                else:
                    yield text[at:end]
                at = end + 1
            if at < len(text):
                held.append(text[at:])
    except DamagedError as error:
        raise DamagedError(str(error), b"".join(held)) from error
    if held:
        yield b"".join(held)


def _inflate(path: Path) -> Iterator[bytes]:
    """Decompressed blocks of a file that may be gzip; DamagedError at the point where it cannot go on."""
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
        while block := stream.read(COMPRESSED_BLOCK):
            while block:
                begun = True
                try:
                    text = engine.decompress(block)
                except failures as error:
                    raise DamagedError(f"is damaged gzip ({error})") from error
                if text:
                    yield text
                block = b""
                if engine.eof:  # another gzip member may follow; zero padding is legal
                    block = engine.unused_data.lstrip(b"\x00")
                    engine = fresh()
                    begun = False
        if begun:
            raise DamagedError("is cut short (gzip ends early)")


def _decompressor() -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    """A maker of gzip decompressors: isal's if installed, twice as fast as the standard library's."""
    try:
        from isal import isal_zlib
    except ImportError:
        return lambda: zlib.decompressobj(wbits=31), (zlib.error,)
    isal: Any = isal_zlib  # its stubs call the exception class an instance
    return lambda: isal.decompressobj(wbits=31), (isal.error, zlib.error, ValueError)
