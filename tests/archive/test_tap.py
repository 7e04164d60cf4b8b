"""The archive client against a small TAP and DataLink server on loopback: jobs, retries, cut answers, resume."""

import io
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from xpbayes.archive.adql import chunked_queries, make_query
from xpbayes.archive.gaia_archive import Patience, fetch_spectra, fetch_tables
from xpbayes.archive.gaia_source import read_gaia_source
from xpbayes.archive.xp_continuous import read_xp_continuous
from xpbayes.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = Patience(retries=3, pause_s=0.01, timeout_s=5.0, poll_s=0.01)
STARS = np.arange(10, 110, 10)


def votable(first: int, last: int, limit: int) -> bytes:
    """A real VOTable of the stars in a range, one with a null; OVERFLOW where the limit cut it."""
    from astropy.io.votable import from_table
    from astropy.io.votable.tree import Info
    from astropy.table import MaskedColumn, Table

    ids = STARS[(first <= STARS) & (last >= STARS)].astype(np.int64)
    cut, ids = len(ids) > limit, ids[:limit]
    table = Table(
        {
            "source_id": ids,
            "parallax": ids / 10.0,
            "parallax_error": np.full(len(ids), 0.1, np.float32),
            "norm_dg": MaskedColumn(-ids.astype(float), mask=ids == 30),
            "designation": [f"star {i}" for i in ids] if len(ids) else np.zeros(0, "U1"),
        }
    )
    document = from_table(table)
    resource = document.resources[0]
    resource.type = "results"
    resource.infos.append(Info(name="QUERY_STATUS", value="OVERFLOW" if cut else "OK"))
    stream = io.BytesIO()
    document.to_xml(stream)
    return stream.getvalue()


UWS = (
    '<?xml version="1.0"?><uws:job xmlns:uws="http://www.ivoa.net/xml/UWS/v1.0" '
    'xmlns:xlink="http://www.w3.org/1999/xlink" version="1.1"><uws:jobId>{job}</uws:jobId><uws:ownerId/>'
    "<uws:phase>{phase}</uws:phase><uws:quote/><uws:executionDuration>0</uws:executionDuration><uws:destruction/>"
    "<uws:parameters/>{results}{error}</uws:job>"
)


class Archive(ThreadingHTTPServer):
    """What the client meets. `troubles` is a list of what goes wrong next: 'busy', 'cut', 'abort', 'refuse'."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.troubles: list[str] = []
        self.jobs: dict[str, dict] = {}
        self.queries: list[str] = []
        self.spectra: list[list[int]] = []
        self.deleted = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Archive

    def log_message(self, *args) -> None:
        pass

    def reply(
        self, status: int, body: bytes = b"", kind: str = "text/xml", length: int | None = None, **headers
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def form(self) -> dict[str, str]:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        return {k: v[0] for k, v in parse_qs(raw).items()}

    def trouble(self, kind: str) -> bool:
        if self.server.troubles and self.server.troubles[0] == kind:
            self.server.troubles.pop(0)
            return True
        return False

    def do_POST(self) -> None:
        path, form = urlsplit(self.path).path, self.form()
        if path == "/data":
            return self.datalink(form)
        if self.trouble("busy"):
            return self.reply(503, b"busy", "text/plain")
        if path == "/tap/async":
            job = str(len(self.server.jobs))
            first, last = map(int, re.search(r"BETWEEN (\d+) AND (\d+)", form["QUERY"]).groups())
            self.server.queries.append(form["QUERY"])
            limit = int(form.get("MAXREC", 10**9))
            self.server.jobs[job] = {"phase": "PENDING", "range": (first, last), "limit": limit}
            return self.reply(303, Location=f"{self.server.url}/tap/async/{job}")
        job = path.split("/")[3]
        if path.endswith("/phase") and form.get("PHASE") == "RUN":
            self.server.jobs[job]["phase"] = "EXECUTING"
        return self.reply(303, Location=f"{self.server.url}/tap/async/{job}")

    def do_DELETE(self) -> None:
        self.server.deleted += 1
        self.reply(200)

    def do_GET(self) -> None:
        parts = urlsplit(self.path).path.split("/")
        job = self.server.jobs[parts[3]]
        if "results" in parts:
            body = votable(*job["range"], job["limit"])
            if self.trouble("cut"):
                self.reply(200, body[: len(body) // 2], length=len(body))
                self.close_connection = True
                return None
            return self.reply(200, body, "application/x-votable+xml")
        if len(parts) > 4 and parts[4] == "error":
            info = '<INFO name="QUERY_STATUS" value="ERROR">no such column</INFO>'
            text = f'<VOTABLE><RESOURCE type="results">{info}</RESOURCE></VOTABLE>'
            return self.reply(200, text.encode())
        phase, results, error = job["phase"], "", ""
        if phase == "EXECUTING":
            job["phase"] = "ABORTED" if self.trouble("abort") else "ERROR" if self.trouble("refuse") else "COMPLETED"
        elif phase == "COMPLETED":
            href = f"{self.server.url}/tap/async/{parts[3]}/results/result"
            results = f'<uws:results><uws:result id="result" xlink:href="{href}"/></uws:results>'
        elif phase == "ERROR":
            message = "<uws:message>no such column</uws:message>"
            error = f'<uws:errorSummary type="fatal" hasDetail="true">{message}</uws:errorSummary>'
        if len(parts) > 4 and parts[4] == "phase":
            return self.reply(200, phase.encode(), "text/plain")
        return self.reply(200, UWS.format(job=parts[3], phase=phase, results=results, error=error).encode())

    def datalink(self, form: dict[str, str]) -> None:
        ids = [int(i) for i in form["ID"].split(",")]
        self.server.spectra.append(ids)
        if self.trouble("busy"):
            return self.reply(500, b"no", "text/plain")
        if self.trouble("refuse"):
            return self.reply(400, b"no", "text/plain")
        numbers = '"[1.0,2.0]"'
        names = ",".join(f"{s}_{n}" for s in ("bp", "rp") for n in ("coefficients", "coefficient_errors"))
        lines = [f"source_id,{names}", *(f"{i},{','.join([numbers] * 4)}" for i in ids if i % 2 == 0)]
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr(f"{form['RETRIEVAL_TYPE']}_RAW.csv", "\n".join(lines) + "\n")
        body = stream.getvalue()
        if self.trouble("cut"):
            self.reply(200, body[: len(body) // 2], "application/zip", len(body))
            self.close_connection = True
            return None
        if self.trouble("garbage"):
            return self.reply(200, b"<html>come back later</html>", "text/html")
        return self.reply(200, body, "application/zip")


@pytest.fixture
def archive():
    server = Archive()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(archive, out, n=3, **options):
    queries = chunked_queries("gaia", n, 0, 119)
    return fetch_tables(queries, out, url=f"{archive.url}/tap", patience=QUICK, **options)


def ids_of(files) -> list[int]:
    return read_gaia_source(files).columns["source_id"].tolist()


def test_chunks_arrive_as_parquet_that_the_gaia_door_reads(archive, tmp_path):
    files = fetch(archive, tmp_path)
    table = read_gaia_source(files)
    assert_array_equal(table.columns["source_id"], STARS)
    assert_allclose(table.floats("parallax"), STARS / 10)
    assert np.isnan(table.floats("norm_dg")[2]) and table.floats("norm_dg")[3] == -40
    assert len(archive.queries) == 3 and "fidelity_v2" in archive.queries[0]
    assert archive.deleted == 3  # jobs are not left behind
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("trouble", ["busy", "cut", "abort"])
def test_a_failed_request_is_repeated(archive, tmp_path, trouble, said):
    archive.troubles = [trouble, trouble]
    assert ids_of(fetch(archive, tmp_path)) == STARS.tolist()
    assert sum("trying again" in line for line in said) == 2


def test_patience_ends_and_the_next_run_goes_on(archive, tmp_path, said):
    assert len(fetch_tables([make_query("gaia", 0, 39)], tmp_path, url=f"{archive.url}/tap", patience=QUICK)) == 1
    archive.troubles = ["busy"] * 4
    with pytest.raises(InputError, match="no complete answer after 4 tries.*run the same command again"):
        fetch(archive, tmp_path)
    archive.queries.clear()
    assert ids_of(fetch(archive, tmp_path)) == STARS.tolist()
    assert len(archive.queries) == 2 and any("already there" in line for line in said)
    archive.queries.clear()
    fetch(archive, tmp_path)
    assert archive.queries == []


def test_a_lost_file_is_fetched_again_and_an_empty_chunk_is_not(archive, tmp_path):
    queries = [make_query("gaia", 0, 49), make_query("gaia", 111, 119)]
    (file,) = fetch_tables(queries, tmp_path, url=f"{archive.url}/tap", patience=QUICK)
    file.unlink()
    archive.queries.clear()
    assert fetch_tables(queries, tmp_path, url=f"{archive.url}/tap", patience=QUICK) == [file]
    assert len(archive.queries) == 1


def test_a_chunk_that_the_archive_cuts_is_halved(archive, tmp_path):
    assert ids_of(fetch(archive, tmp_path, n=1, max_rows=4)) == STARS.tolist()
    archive.queries.clear()
    assert ids_of(fetch(archive, tmp_path, n=1, max_rows=4)) == STARS.tolist()  # resumed through the record
    assert archive.queries == []


def test_a_refused_query_is_said_in_one_sentence(archive, tmp_path):
    archive.troubles = ["refuse"]
    with pytest.raises(InputError, match="^[^\n]*refuses the query[^\n]*$"):
        fetch(archive, tmp_path)


def test_a_folder_of_other_queries_is_left_alone(archive, tmp_path):
    fetch(archive, tmp_path)
    text = (tmp_path / "fetch.json").read_text()
    (tmp_path / "fetch.json").write_text(re.sub(r'"query": "[0-9a-f]{8}', '"query": "00000000', text))
    with pytest.raises(InputError, match="another query"):
        fetch(archive, tmp_path)
    (tmp_path / "fetch.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        fetch(archive, tmp_path)


def test_no_server_at_all_is_said_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match="^[^\n]*no complete answer after 1 tries[^\n]*$"):
        fetch_tables(
            [make_query("gaia", 0, 9)], tmp_path, url="http://127.0.0.1:9/tap", patience=Patience(0, 0.01, 1.0, 0.01)
        )


def test_spectra_arrive_as_csv_that_the_xp_door_reads(archive, tmp_path):
    files = fetch_spectra([8, 2, 3, 4, 2, 6], tmp_path, url=f"{archive.url}/data", per_request=2, patience=QUICK)
    assert archive.spectra == [[2, 3], [4, 6], [8]]
    read = [int(i) for f in files for b in read_xp_continuous(f) for i in b.source_id]
    assert read == [2, 4, 6, 8]


@pytest.mark.parametrize("trouble", ["busy", "cut", "garbage"])
def test_a_failed_download_is_repeated_and_finished_ones_are_kept(archive, tmp_path, trouble):
    options = {"url": f"{archive.url}/data", "per_request": 2, "patience": QUICK}
    archive.troubles = [trouble]
    files = fetch_spectra([2, 4, 6], tmp_path, **options)
    assert len(files) == 2 and len(archive.spectra) == 3
    archive.spectra.clear()
    assert fetch_spectra([2, 4, 6], tmp_path, **options) == files and archive.spectra == []


def test_stars_without_spectra_have_no_file_and_wrong_requests_are_refused(archive, tmp_path):
    options = {"url": f"{archive.url}/data", "patience": QUICK}
    assert fetch_spectra([1, 3], tmp_path / "a", **options) == []
    with pytest.raises(InputError, match="unknown product"):
        fetch_spectra([1], tmp_path / "b", product="RVS", **options)
    with pytest.raises(InputError, match="no source_ids"):
        fetch_spectra([], tmp_path / "b", **options)
    archive.troubles = ["refuse"]
    with pytest.raises(InputError, match="status 400"):
        fetch_spectra([2], tmp_path / "b", **options)
