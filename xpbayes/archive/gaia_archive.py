"""Getting data from Gaia's archive: catalogue tables by TAP, chunk by chunk, and XP spectra by DataLink.

A chunk is a file; a finished chunk is never fetched again, an unfinished one leaves nothing behind. Failures of the
network or the server are retried with growing pauses; a chunk with more rows than the archive returns at once is cut
in two. The protocol is pyvo's and is imported where used.
"""

import hashlib
import io
import logging
import re
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, Field

from xpbayes.archive.adql import Query
from xpbayes.archive.cells import source_ids as exact_ids
from xpbayes.archive.columns import SOURCE_ID
from xpbayes.data.json_file import read_json, write_json
from xpbayes.data.parquet import write_parquet
from xpbayes.errors import InputError
from xpbayes.files import reason_of, whole_file
from xpbayes.release import DEFAULT_RELEASE, release_named

log = logging.getLogger(__name__)

TAP_URL = "https://gea.esac.esa.int/tap-server/tap"
DATALINK_URL = "https://gea.esac.esa.int/data-server/data"
"""Gaia's archive at ESAC: TAP, and the data server behind its DataLink."""

MAX_ROWS = 3_000_000
"""Most rows that an anonymous asynchronous job returns."""
SPECTRA_PER_REQUEST = 2000
"""The archive's limit on identifiers per DataLink request is 5,000; smaller requests lose less when they fail."""
HEAD = 4096
"""Bytes of an answer that tell a web page."""
RECORD = "fetch.json"
VERSION = 1  # of that file
STRUCTURES = ("DATAMODEL_GAIA", "RAW")
"""DataLink's names for one table with a row a source and arrays as arrays: the present one, and the one before."""
UNKNOWN = "(unknown|invalid|unsupported|not (?:valid|supported|allowed|found|exist))"
UNKNOWN_TYPE = re.compile(f"{UNKNOWN}.{{0,40}}retrieval.?type|retrieval.?type.{{0,80}}{UNKNOWN}")
"""What a refusal says that no repetition will change, in small letters."""


@dataclass(frozen=True)
class Patience:
    """How often a failed request is repeated.

    Attributes:
        retries: repetitions after the first try.
        pause_s: before the first repetition; doubled each time [s].
        timeout_s: of one request; a job on the server may run ten times longer [s].
        poll_s: between looks at a running job [s].
    """

    retries: int = 5
    pause_s: float = 5.0
    timeout_s: float = 300.0
    poll_s: float = 5.0


class _RetryError(Exception):
    """The request may succeed if repeated."""


class _TooManyRowsError(Exception):
    """The archive cut the result."""


def fetch_tables(
    queries: Iterable[Query],
    out: Path,
    *,
    url: str = TAP_URL,
    max_rows: int = MAX_ROWS,
    patience: Patience = Patience(),
) -> list[Path]:
    """Run queries and store each chunk as Parquet, ready for ``[gaia]`` and ``[two_mass]`` of a survey.toml.

    Args:
        queries: the chunks, from `adql.chunked_queries`.
        out: folder of the chunks; chunks that are there already, from the same queries, are kept.
        url: of the TAP service.
        max_rows: a result of this many rows is taken for cut, and its range is halved.
        patience: how often to retry.

    Returns:
        the chunks' files, in order; a chunk without rows has no file.

    Raises:
        InputError: the archive refuses a query, or does not answer after all retries; or the folder's chunks come from
            other queries.
    """
    _folder(out)
    record = _Record.read(out)
    files: list[Path] = []
    todo = list(queries)[::-1]
    while todo:
        query = todo.pop()
        digest = hashlib.sha256(query.adql.encode()).hexdigest()
        path = out / f"{query.name}.parquet"
        done = record.find(query.name, digest, out)
        if done == "split":
            todo += query.halves()[::-1]
            continue
        if done is not None and (done == 0 or path.is_file()):
            log.info(f"{query.name}: already there")
            files += [path] if done else []
            continue
        try:
            table = _patiently(lambda q=query: _run(q, url, max_rows, patience), query.name, patience)  # type: ignore[misc]
        except _TooManyRowsError:
            if query.first == query.last:
                raise InputError(
                    f"{query.name}: one source_id gives more than {max_rows} rows; raise max_rows"
                ) from None
            log.info(f"{query.name}: more than {max_rows} rows, fetched in halves")
            record.add(query.name, digest, "split", out)
            todo += query.halves()[::-1]
            continue
        n = len(table)
        if n:
            write_parquet(_to_arrow(table), path)
            files.append(path)
        record.add(query.name, digest, n, out)
        log.info(f"{query.name}: {n} rows")
    return files


def fetch_spectra(
    source_ids: Sequence[int],
    out: Path,
    *,
    product: str = "continuous",
    release: str = DEFAULT_RELEASE.name,
    url: str = DATALINK_URL,
    per_request: int = SPECTRA_PER_REQUEST,
    patience: Patience = Patience(),
) -> list[Path]:
    """Download XP spectra of given stars through DataLink, as the archive's own CSV.

    Args:
        source_ids: which stars; repeated ones are asked for once.
        out: folder of the files; requests that were answered before are kept.
        product: 'continuous' or 'sampled'.
        release: short name of the data release that the source_ids are of.
        url: of the data server.
        per_request: stars per request.
        patience: how often to retry.

    Returns:
        one CSV file per request, in order; a request without spectra has no file.

    Raises:
        InputError: an unknown product, no source_ids, or the archive does not answer after all retries.
    """
    profile = release_named(release)
    if product not in profile.products:
        raise InputError(
            f"unknown product '{product}' of {profile.title}; known of it is {' and '.join(profile.products)}"
        )
    kind = profile.products[product]
    ids = sorted(exact_ids(source_ids, "the stars to fetch"))
    if not ids:
        raise InputError(f"no source_ids to fetch spectra for; give source_ids of {profile.title}")
    _folder(out)
    record = _Record.read(out)
    files: list[Path] = []
    service = _DataLink(url, kind, profile.title)
    for start in range(0, len(ids), per_request):
        chunk = ids[start : start + per_request]
        digest = hashlib.sha256((kind + ",".join(map(str, chunk))).encode()).hexdigest()
        name = f"{kind}-{start // per_request:06d}"
        path = out / f"{name}.csv"
        done = record.find(name, digest, out)
        if done is not None and (done == 0 or path.is_file()):
            log.info(f"{name}: already there")
            files += [path] if done else []
            continue
        text = _patiently(lambda c=chunk: service.download(c, patience), name, patience)  # type: ignore[misc]
        n = sum(1 for line in text.splitlines() if line and not line.startswith(b"#")) - 1
        if n > 0:
            with whole_file(path) as temporary:
                temporary.write_bytes(text)
            files.append(path)
        record.add(name, digest, max(n, 0), out)
        log.info(f"{name}: {max(n, 0)} spectra for {len(chunk)} stars")
    return files


def read_ids(path: Path) -> list[int]:
    """Read a text file with one Gaia source_id per line, a heading perhaps, and # for comments.

    Raises:
        InputError: it cannot be read, or a line is none.
    """
    try:
        lines = [line.strip().rstrip(",") for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({reason_of(error)}); give a text file of source_ids") from error
    lines = [line for line in lines if line and not line.startswith("#")]
    return exact_ids(lines[1:] if lines and lines[0].strip('"').lower() in SOURCE_ID.all_names else lines, str(path))


def _folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error.strerror}); choose another folder") from error


Rows = Annotated[int, Field(ge=0)] | Literal["split"]


class _Chunk(BaseModel):
    query: str
    rows: Rows


class _Record(BaseModel):
    """What a folder holds: per chunk the checksum of its query and its number of rows, or 'split'."""

    version: int = VERSION
    chunks: dict[str, _Chunk]

    @classmethod
    def read(cls, out: Path) -> "_Record":
        path = out / RECORD
        return read_json(path, cls, "delete it and fetch again", VERSION) if path.is_file() else cls(chunks={})

    def find(self, name: str, digest: str, out: Path) -> Rows | None:
        if name not in self.chunks:
            return None
        if self.chunks[name].query != digest:
            raise InputError(f"{out}: chunk {name} was fetched with another query; choose another folder")
        return self.chunks[name].rows

    def add(self, name: str, digest: str, rows: Rows, out: Path) -> None:
        self.chunks[name] = _Chunk(query=digest, rows=rows)
        write_json(self.model_dump(), out / RECORD, "make room there and run the same command again to go on")


def _patiently(request: Callable[[], Any], name: str, patience: Patience) -> Any:
    """Repeat a request until it succeeds or patience ends."""
    pause = patience.pause_s
    for attempt in range(patience.retries + 1):
        try:
            return request()
        except _RetryError as error:
            if attempt == patience.retries:
                raise InputError(
                    f"{name}: no complete answer after {attempt + 1} tries ({error}); finished chunks are kept, "
                    f"run the same command again to go on"
                ) from error
            log.info(f"{name}: {error}; trying again in {pause:g} s")
            time.sleep(pause)
            pause *= 2
    raise AssertionError("unreachable")


def _run(query: Query, url: str, max_rows: int, patience: Patience) -> Any:
    """Run one query as an asynchronous job; astropy Table."""
    import warnings

    import requests
    from pyvo.dal import DALFormatError, DALOverflowWarning, DALQueryError, DALServiceError, TAPService
    from urllib3.exceptions import HTTPError

    session = _session(patience)
    job = None
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            job = TAPService(url, session=session).submit_job(query.adql, maxrec=max_rows)
            job.run()
            _wait(job, patience)
            result = job.fetch_result()
        if len(result) >= max_rows or any(issubclass(w.category, DALOverflowWarning) for w in caught):
            raise _TooManyRowsError
        return result.to_table()
    except DALQueryError as error:
        raise InputError(
            f"{query.name}: the archive refuses the query ({_first_line(error)}), see --print-adql"
        ) from error
    except (DALServiceError, DALFormatError, requests.RequestException, HTTPError, OSError) as error:
        raise _RetryError(_first_line(error)) from error
    except (InputError, _RetryError, _TooManyRowsError):
        raise
    except Exception as error:  # what a cut answer makes of pyvo's and astropy's parsers
        raise _RetryError(f"the answer is not a complete VOTable: {_first_line(error)}") from error
    finally:
        if job is not None:
            _forget(job)


def ask_now(adql: str, url: str, patience: Patience) -> Any:
    """Run a query whose answer is small and comes at once; astropy Table.

    Raises:
        InputError: the archive refuses it, or does not answer after all retries.
    """
    import requests
    from pyvo.dal import DALFormatError, DALQueryError, DALServiceError, TAPService
    from urllib3.exceptions import HTTPError

    def ask() -> Any:
        try:
            return TAPService(url, session=_session(patience)).run_sync(adql).to_table()
        except DALQueryError as error:
            raise InputError(f"{url}: refuses a query of its own TAP_SCHEMA ({_first_line(error)})") from error
        except (DALServiceError, DALFormatError, requests.RequestException, HTTPError, OSError) as error:
            raise _RetryError(_first_line(error)) from error
        except (ValueError, IndexError, KeyError) as error:
            raise _RetryError(f"the answer is not a complete VOTable: {_first_line(error)}") from error

    return _patiently(ask, "TAP_SCHEMA", patience)


def _wait(job: Any, patience: Patience) -> None:
    """Look at a job until it is done; raise what it has to say if it failed."""
    deadline = time.monotonic() + 10 * patience.timeout_s
    while job.phase not in ("COMPLETED", "ERROR", "ABORTED"):
        if time.monotonic() > deadline:
            raise _RetryError(f"the job is still {job.phase} after {10 * patience.timeout_s:.0f} s")
        time.sleep(patience.poll_s)
    if job.phase == "ABORTED":
        raise _RetryError("the archive aborted the job")
    job.raise_if_error()


def _forget(job: Any) -> None:
    """Delete a job on the server; if that fails, the archive's own clean-up will."""
    import contextlib

    with contextlib.suppress(Exception):
        job.delete()


def _session(patience: Patience) -> Any:
    """A session whose every request has a time limit, which pyvo does not set, and which a web page ends at once."""
    import requests

    class Limited(requests.Session):
        def request(self, *args: Any, **kwargs: Any) -> Any:
            kwargs.setdefault("timeout", patience.timeout_s)
            answer = super().request(*args, **kwargs)
            _refuse_web_page(answer, bool(kwargs.get("stream")))
            return answer

    return Limited()


def _refuse_web_page(answer: Any, is_stream: bool) -> None:
    """Raise InputError for a login or error page in the place of an answer; a busy server's may be tried again."""
    if answer.status_code == 429 or answer.status_code >= 500:
        return
    head = _head(answer.raw) if is_stream else answer.content[:HEAD]
    begins = head.lstrip().lower().startswith((b"<!doctype html", b"<html"))
    if begins or "text/html" in answer.headers.get("Content-Type", "").lower():
        title = re.search(r"<title[^>]*>(.*?)</title", head.decode("utf-8", "replace"), re.DOTALL | re.IGNORECASE)
        name = f" ('{' '.join(title[1].split())[:80]}')" if title else ""
        raise InputError(
            f"{answer.url}: answers with a web page{name}, not with data; check the address, a login that the network asks "
            f"for, or the archive's status"
        )


def _head(raw: Any) -> bytes:
    """The first bytes of an answer that is still to be read."""
    head: bytes = raw.read(HEAD, decode_content=True)
    first, rest = io.BytesIO(head), raw.read

    def read(size: int | None = None, **how: Any) -> bytes:
        begin = first.read(size)
        if size is None:
            return begin + rest(**how)
        return begin + rest(size - len(begin), **how) if len(begin) < size else begin  # a short one would end the file

    raw.read = read
    return head


class _UnknownStructureError(Exception):
    """The server does not speak this dialect."""


@dataclass
class _DataLink:
    """One product of one release at the data server, asked for in the dialect that the server speaks.

    Attributes:
        url: of the data server.
        kind: the retrieval type.
        title: the release as the archive calls it.
        structures: names of the data structure that may still be the server's; one is left once it has answered.
    """

    url: str
    kind: str
    title: str
    structures: tuple[str, ...] = STRUCTURES

    def download(self, ids: Sequence[int], patience: Patience) -> bytes:
        """Ask for spectra; the CSV inside the archive's answer, b'' if it has none."""
        for i, structure in enumerate(self.structures):
            last = i == len(self.structures) - 1
            try:
                found = self._ask(ids, structure, patience, last=last)
            except _UnknownStructureError:
                continue
            if found:
                self.structures = (structure,)
            if found or last:
                return found
        raise AssertionError("unreachable: the last dialect's answer is final")

    def _ask(self, ids: Sequence[int], structure: str, patience: Patience, *, last: bool) -> bytes:
        """One request in one dialect; its refusal is that of the dialect, unless it is the last one's."""
        import requests

        data = {
            "RETRIEVAL_TYPE": self.kind,
            "DATA_STRUCTURE": structure,
            "FORMAT": "csv",
            "RELEASE": self.title,
            "VALID_DATA": "false",
            "USE_ZIP_ALWAYS": "true",
            "ID": ",".join(map(str, ids)),
        }
        try:
            with _session(patience) as session:
                answer = session.post(self.url, data=data)
                content = answer.content
        except (requests.RequestException, OSError) as error:
            raise _RetryError(_first_line(error)) from error
        if answer.status_code >= 400:
            self._refused(answer.status_code, content, last=last)
        length = answer.headers.get("Content-Length")
        if length is not None and int(length) != len(content):
            raise _RetryError(f"{len(content)} of {length} bytes arrived")
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                members = [n for n in archive.namelist() if n.lower().endswith(".csv")]
                return archive.read(members[0]) if members else b""
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise _RetryError(f"the answer is not a complete zip file ({_first_line(error)})") from error

    def _refused(self, status: int, content: bytes, *, last: bool) -> NoReturn:
        """Tell a refusal that is final from one of the dialect, and both from a server in trouble."""
        said = content[:2000].decode("utf-8", "replace").lower()
        if UNKNOWN_TYPE.search(said):
            raise InputError(
                f"{self.kind}: the archive does not know this product of {self.title} (status {status}); see which it has "
                f"at {self.url.rpartition('/')[0]}, or upgrade xpbayes"
            )
        of_dialect = re.search(r"data.?structure", said) is not None or (400 <= status < 500 and status != 429)
        if of_dialect and not last:
            raise _UnknownStructureError
        if status == 429 or (status >= 500 and not of_dialect):
            self.structures = self.structures[1:] + self.structures[:1]  # should it be the dialect and not say so
            raise _RetryError(f"the archive answers with status {status}")
        raise InputError(
            f"{self.kind}: the archive refuses the request with status {status}; check the source_ids and the release"
        )


def _to_arrow(table: Any) -> Any:
    """Masked astropy table to Arrow: nulls stay nulls, integers stay integers."""
    import numpy as np
    import pyarrow as pa

    arrays, names = [], []
    for name in table.colnames:
        column = table[name]
        mask = np.ma.getmaskarray(column) if hasattr(column, "mask") else np.zeros(len(column), bool)
        values = np.asarray(np.ma.getdata(column))
        if values.dtype.kind in "OSU":
            text = [
                None if m else (v.decode() if isinstance(v, bytes) else str(v))
                for v, m in zip(values, mask, strict=True)
            ]
            arrays.append(pa.array(text, pa.string()))
        else:
            if values.dtype.kind == "f":
                mask = mask | np.isnan(values)
            arrays.append(pa.array(values.astype(values.dtype.newbyteorder("=")), mask=mask))
        names.append(name)
    return pa.table(arrays, names=names)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
