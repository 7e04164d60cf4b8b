"""Opening a table file of any format: what it is, its first bytes say, not its suffix; zip and gzip are unpacked.

Out: a `RawFile` whose tables, in order, are those of the file, or of all members of a zip file.
"""

import gzip
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from xpbayes.archive.binary_file import open_avro, open_fits, open_hdf5, open_parquet
from xpbayes.archive.raw_table import RawFile, RawTable, with_masks
from xpbayes.archive.text_file import open_text
from xpbayes.archive.votable import open_votable
from xpbayes.errors import InputError
from xpbayes.files import reason_of

Opener = Callable[[Path], RawFile]
MAGIC = {b"SIMPLE  =": open_fits, b"PAR1": open_parquet, b"\x89HDF\r\n\x1a\n": open_hdf5, b"Obj\x01": open_avro}
"""First bytes of a binary file, and what opens it."""
UNKNOWN = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstandard", b"7z\xbc\xaf": "7-zip", b"%PDF": "PDF"}
"""First bytes of what is recognised only to be refused."""
SUFFIXES = {
    suffix: what
    for what, suffixes in (
        ("a FITS file", (".fits", ".fit")),
        ("a complete Parquet file", (".parquet", ".pq")),
        ("an Avro file", (".avro",)),
        ("a complete HDF5 file", (".h5", ".hdf5", ".hdf")),
        ("a complete VOTable", (".xml", ".vot", ".votable")),
    )
    for suffix in suffixes
}
"""What a file promises to be whose bytes tell nothing."""
TEXT = (".csv", ".ecsv", ".txt", ".tsv", ".dat")
MOUNTED: dict[Path, RawTable] = {}
"""Tables in memory, under names that no file has (`memory`)."""
HEAD = 4096
"""Bytes that tell what a file is."""


@contextmanager
def opened(path: Path) -> Iterator[RawFile]:
    """Open a table file for as long as a with-statement lasts.

    InputError: no such file, of no known format, not complete; a server's error document or a web page.
    """
    path = Path(path)
    if path in MOUNTED:
        yield RawFile((MOUNTED[path],))
        return
    with ExitStack() as stack:
        yield RawFile(tuple(map(with_masks, _tables(path, stack))))


def _tables(path: Path, stack: ExitStack) -> list[RawTable]:
    if not path.is_file():
        what = "is a folder, not a table" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}; check the path")
    head = _head(path)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _members(path, stack)
    packed = head[:2] == b"\x1f\x8b"
    if packed:
        head = _unpacked_head(path)
    name = Path(path.stem) if packed and path.suffix.lower() == ".gz" else path
    opener = _opener(path, name.suffix.lower(), head)
    if packed and opener in MAGIC.values():
        path = _unpack_gzip(path, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xpbayes-"))))
    file = opener(path)
    stack.callback(file.close)
    return list(file.tables)


def _opener(path: Path, suffix: str, head: bytes) -> Opener:
    """What opens the format that the first bytes show, text if they show nothing else; InputError for what is no table."""
    for magic, opener in MAGIC.items():
        if head.startswith(magic):
            return opener
    for magic, what in UNKNOWN.items():
        if head.startswith(magic):
            raise InputError(f"{path}: is {what}, which is not read; unpack or convert it")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] == b"<":
        start = text[:HEAD].lower()
        if b"<html" in start or start.startswith(b"<!doctype html"):
            at = start.find(b"<title>") + 7
            title = text[at : start.find(b"</title>", at)].strip().decode("utf-8", "replace") if at > 6 else ""
            raise InputError(f"{path}: is a web page{f' ({title})' if title else ''}, not a table; download it again")
        return open_votable
    first = next((line for line in text.splitlines() if line[:1] != b"#"), b"")
    if b"\0" in first or (suffix not in TEXT and not any(mark in first for mark in (b",", b"\t", b";", b"|", b" "))):
        if suffix in SUFFIXES:
            raise InputError(f"{path}: is not {SUFFIXES[suffix]}; copy or download it again")
        known = ", ".join((*TEXT, *SUFFIXES))
        raise InputError(f"{path}: unknown file format; use one of {known}, plain, gzip or zip")
    return open_text


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(HEAD)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason_of(error)}); check its permissions") from error


def _unpacked_head(path: Path) -> bytes:
    """The first bytes inside gzip, as far as they can be had."""
    engine = zlib.decompressobj(wbits=31)
    with open(path, "rb") as stream:
        try:
            return engine.decompress(stream.read(1 << 16), HEAD)
        except zlib.error:
            return b""


def _unpack_gzip(path: Path, folder: Path) -> Path:
    target = folder / path.name
    try:
        with gzip.open(path) as packed, open(target, "wb") as plain:
            shutil.copyfileobj(packed, plain)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be unpacked ({error}); copy or download it again") from error
    return target


def _members(path: Path, stack: ExitStack) -> list[RawTable]:
    """The tables of all files in a zip file."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xpbayes-")))
    tables: list[RawTable] = []
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX")]
            for i, name in enumerate(names):
                target = folder / f"{i:06d}-{Path(name).name}"
                with archive.open(name) as packed, open(target, "wb") as plain:
                    shutil.copyfileobj(packed, plain)
                if _head(target)[:4] == b"PK\x03\x04":
                    raise InputError(f"{path}: holds a zip file ({name}); unpack it")
                try:
                    tables += [replace(t, member=name) for t in _tables(target, stack)]
                except InputError as error:
                    raise InputError(str(error).replace(str(target), f"{path}:{name}")) from error
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, zlib.error) as error:
        raise InputError(f"{path}: is not a complete zip file ({error}); copy or download it again") from error
    if not tables:
        raise InputError(f"{path}: is an empty zip file; download it again")
    return tables
