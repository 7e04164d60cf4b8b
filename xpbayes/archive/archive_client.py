"""Requests to Gaia's archive: patience with the network and the server, jobs of its TAP service, and its DataLink.

The protocol is pyvo's and is imported where used.
"""

import io
import logging
import re
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, NoReturn

from xpbayes.errors import InputError

log = logging.getLogger(__name__)

HEAD = 4096
"""Bytes of an answer that tell a web page."""
STRUCTURES = ("DATAMODEL_GAIA", "RAW")
"""DataLink's names for one table with a row a source and arrays as arrays: the present one, and the one before."""
UNKNOWN = "(unknown|invalid|unsupported|not (?:valid|supported|allowed|found|exist))"
UNKNOWN_TYPE = re.compile(f"{UNKNOWN}.{{0,40}}retrieval.?type|retrieval.?type.{{0,80}}{UNKNOWN}")
"""What a refusal says that no repetition will change, in small letters."""


@dataclass(frozen=True)
class Patience:
    """How often a failed request is repeated."""

    retries: int = 5  # after the first try
    pause_s: float = 5.0  # before the first repetition; doubled each time
    timeout_s: float = 300.0  # of one request; a job on the server may run ten times longer
    poll_s: float = 5.0  # between looks at a running job


PATIENT = Patience()


class _RetryError(Exception):
    """The request may succeed if repeated."""


def patiently(request: Callable[[], Any], name: str, patience: Patience) -> Any:
    """Repeat a request until it succeeds or patience ends."""
    pause = patience.pause_s
    for attempt in count(1):
        try:
            return request()
        except _RetryError as error:
            if attempt > patience.retries:
                raise InputError(
                    f"{name}: no complete answer after {attempt} tries ({error}); finished chunks are kept, run the same "
                    f"command again to go on"
                ) from error
            log.info(f"{name}: {error}; trying again in {pause:g} s")
            time.sleep(pause)
            pause *= 2
    raise AssertionError("unreachable")


@contextmanager
def _asking(refused: str, advice: str = "") -> Iterator[None]:
    """Tell what pyvo and the network raise apart: what may be tried again, and refusals, which are said."""
    import requests
    from pyvo.dal import DALFormatError, DALQueryError, DALServiceError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except DALQueryError as error:
        raise InputError(f"{refused} ({_first_line(error)}){advice}") from error
    except (DALServiceError, DALFormatError, requests.RequestException, HTTPError, OSError) as error:
        raise _RetryError(_first_line(error)) from error
    except (InputError, _RetryError):
        raise
    except Exception as error:  # what a cut answer makes of pyvo's and astropy's parsers
        raise _RetryError(f"the answer is not a complete VOTable: {_first_line(error)}") from error


def run_job(adql: str, name: str, url: str, max_rows: int, patience: Patience) -> Any:
    """Run one query as an asynchronous job; astropy Table, None where the archive cut it."""
    from pyvo.dal import DALOverflowWarning, TAPService

    job = None
    try:
        with _asking(f"{name}: the archive refuses the query", ", see --print-adql"):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                job = TAPService(url, session=_session(patience)).submit_job(adql, maxrec=max_rows)
                job.run()
                _wait(job, patience)
                result = job.fetch_result()
            is_cut = len(result) >= max_rows or any(issubclass(w.category, DALOverflowWarning) for w in caught)
            return None if is_cut else result.to_table()
    finally:
        if job is not None:
            with suppress(Exception):  # the archive's own clean-up will delete it
                job.delete()


def ask_now(adql: str, url: str, patience: Patience) -> list[tuple[str, ...]]:
    """Rows of text that TAP_SCHEMA gives at once, in small letters; InputError if it refuses, or does not answer."""
    from pyvo.dal import TAPService

    def ask() -> list[tuple[str, ...]]:
        with _asking(f"{url}: refuses a query of its own TAP_SCHEMA"):
            rows = TAPService(url, session=_session(patience)).run_sync(adql).to_table()
            return [tuple(str(cell).strip().strip('"').lower() for cell in row) for row in rows]

    found: list[tuple[str, ...]] = patiently(ask, "TAP_SCHEMA", patience)
    return found


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
class DataLink:
    """One product of one release at the data server, asked for in the dialect that the server speaks."""

    url: str
    kind: str  # the retrieval type
    title: str  # the release as the archive calls it
    structures: tuple[str, ...] = STRUCTURES  # that may still be the server's; one is left once it has answered

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


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
