"""The archive client against a small TAP and DataLink server on loopback: jobs, retries, cut answers, resume."""

import io
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.command_line import refused, run
from xpbayes.archive.adql import as_announced, chunked_queries, make_query
from xpbayes.archive.gaia_archive import Patience, fetch_spectra, fetch_tables, probe
from xpbayes.archive.gaia_source import read_gaia_source
from xpbayes.archive.xp_continuous import read_xp_continuous
from xpbayes.errors import InputError
from xpbayes.release import DR4, RELEASES, Release

pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = Patience(retries=3, pause_s=0.01, timeout_s=5.0, poll_s=0.01)
STARS = np.arange(10, 110, 10)


def votable(stars: np.ndarray, first: int, last: int, limit: int, *, two_mass: bool = False) -> bytes:
    """A real VOTable of the stars in a range, one with a null; OVERFLOW where the limit cut it."""
    from astropy.io.votable import from_table
    from astropy.io.votable.tree import Info
    from astropy.table import MaskedColumn, Table

    ids = stars[(first <= stars) & (last >= stars)].astype(np.int64)
    cut, ids = len(ids) > limit, ids[:limit]
    table = Table(
        {
            "source_id": ids,
            "parallax": ids / 10.0 if stars is STARS else np.full(len(ids), 2.5),
            "parallax_error": np.full(len(ids), 0.1, np.float32),
            "norm_dg": MaskedColumn(-ids.astype(float), mask=ids == 30),
            "designation": [f"star {i}" for i in ids] if len(ids) else np.zeros(0, "U1"),
        }
    )
    if two_mass:
        magnitudes = {f"{band}_{what}": np.full(len(ids), v) for band in ("j", "h", "ks") for what, v in
                      (("m", 11.0), ("msigcom", 0.02))}  # fmt: skip
        table = Table({"source_id": ids, **magnitudes, "ph_qual": ["AAA"] * len(ids)})
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


PAGE = b"\n<!DOCTYPE html><html><head><title>Log\n in</title></head><body>please</body></html>"


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
        self.dialects = {"DATAMODEL_GAIA", "RAW"}  # data structures that the server knows
        self.products = {"XP_CONTINUOUS", "XP_SAMPLED", "RVS"}
        self.refusal = (400, "no")  # what it says of another data structure
        self.asked: list[dict[str, str]] = []
        self.schema: dict[str, list[str]] = {}
        self.stars = STARS
        self.csv: bytes | None = None  # what it gives for spectra, if not made-up coefficients

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
        if path == "/tap/sync":
            return self.tap_schema(form["QUERY"])
        if path == "/data":
            return self.datalink(form)
        if self.trouble("busy"):
            return self.reply(503, b"busy", "text/plain")
        if self.trouble("page"):
            return self.reply(200, PAGE, "text/html; charset=utf-8")
        if self.trouble("page without a type"):
            return self.reply(401, PAGE)
        if path == "/tap/async":
            job = str(len(self.server.jobs))
            first, last = map(int, re.search(r"BETWEEN (\d+) AND (\d+)", form["QUERY"]).groups())
            self.server.queries.append(form["QUERY"])
            limit = int(form.get("MAXREC", 10**9))
            self.server.jobs[job] = {
                "phase": "PENDING", "range": (first, last), "limit": limit, "two_mass": "tmass" in form["QUERY"]
            }  # fmt: skip
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
        if self.trouble("page for a job"):
            return self.reply(200, PAGE)
        if self.trouble("other xml"):
            return self.reply(200, b"<a><b/></a>")
        if "results" in parts:
            if self.trouble("page for a table"):
                return self.reply(200, PAGE, "text/html")
            body = votable(self.server.stars, *job["range"], job["limit"], two_mass=job["two_mass"])
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

    def tap_schema(self, adql: str) -> None:
        """Answer a query of TAP_SCHEMA: columns of the tables that it names, or all tables."""
        from astropy.io.votable import from_table
        from astropy.table import Table

        if self.trouble("busy"):
            return self.reply(503, b"busy", "text/plain")
        wanted = re.findall(r"'([a-z0-9_.]+)'", adql) if "TAP_SCHEMA.columns" in adql else None
        rows = [(t, c) for t, columns in self.server.schema.items() for c in columns if wanted is None or t in wanted]
        rows = rows if wanted is not None else [(t, "") for t in self.server.schema]
        names = {"table_name": [t for t, _ in rows] or np.zeros(0, "U1")}
        if wanted is not None:
            names["column_name"] = [c for _, c in rows] or np.zeros(0, "U1")
        stream = io.BytesIO()
        from_table(Table(names)).to_xml(stream)
        return self.reply(200, stream.getvalue(), "application/x-votable+xml")

    def datalink(self, form: dict[str, str]) -> None:
        ids = [int(i) for i in form["ID"].split(",")]
        self.server.asked.append(form)
        if form["DATA_STRUCTURE"] not in self.server.dialects:
            status, said = self.server.refusal
            return self.reply(status, said.encode(), "text/plain")
        if form["RETRIEVAL_TYPE"] not in self.server.products:
            return self.reply(500, b"Unknown RETRIEVAL_TYPE: " + form["RETRIEVAL_TYPE"].encode(), "text/plain")
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
            archive.writestr(f"{form['RETRIEVAL_TYPE']}_RAW.csv", self.server.csv or "\n".join(lines) + "\n")
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


@pytest.mark.parametrize("trouble", ["page", "page without a type", "page for a job", "page for a table"])
def test_a_web_page_in_the_place_of_an_answer_ends_at_once(archive, tmp_path, trouble, said):
    archive.troubles = [trouble]
    with pytest.raises(InputError, match=r"^[^\n]*answers with a web page \('Log in'\), not with data[^\n]*$"):
        fetch(archive, tmp_path)
    assert not any("trying again" in line for line in said)
    assert ids_of(fetch(archive, tmp_path)) == STARS.tolist()


def test_a_job_that_is_none_is_asked_for_again(archive, tmp_path):
    archive.troubles = ["other xml"]
    assert ids_of(fetch(archive, tmp_path)) == STARS.tolist()


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


@pytest.mark.parametrize("trouble", ["busy", "cut"])
def test_a_failed_download_is_repeated_and_finished_ones_are_kept(archive, tmp_path, trouble):
    options = {"url": f"{archive.url}/data", "per_request": 2, "patience": QUICK}
    archive.troubles = [trouble]
    files = fetch_spectra([2, 4, 6], tmp_path, **options)
    assert len(files) == 2 and len(archive.spectra) == 3
    archive.spectra.clear()
    assert fetch_spectra([2, 4, 6], tmp_path, **options) == files and archive.spectra == []


def test_a_web_page_in_the_place_of_spectra_ends_at_once(archive, tmp_path):
    archive.troubles = ["garbage"]
    with pytest.raises(InputError, match="answers with a web page, not with data"):
        fetch_spectra([2], tmp_path, url=f"{archive.url}/data", patience=QUICK)
    assert len(archive.spectra) == 1


def test_stars_without_spectra_have_no_file_and_wrong_requests_are_refused(archive, tmp_path):
    options = {"url": f"{archive.url}/data", "patience": QUICK}
    assert fetch_spectra([1, 3], tmp_path / "a", **options) == []
    with pytest.raises(InputError, match="unknown product"):
        fetch_spectra([1], tmp_path / "b", product="RVS", **options)
    with pytest.raises(InputError, match="no source_ids"):
        fetch_spectra([], tmp_path / "b", **options)
    archive.troubles = ["refuse", "refuse"]
    with pytest.raises(InputError, match="status 400"):
        fetch_spectra([2], tmp_path / "b", **options)


# ------------------------------------------------------------------------------------------------- dialects, releases

UNKNOWN_STRUCTURE = [(400, "no"), (500, "DATA_STRUCTURE DATAMODEL_GAIA is not known"), (500, "internal error")]


@pytest.mark.parametrize("refusal", UNKNOWN_STRUCTURE)
def test_a_server_that_speaks_the_former_dialect_is_understood(archive, tmp_path, refusal):
    archive.dialects, archive.refusal = {"RAW"}, refusal
    options = {"url": f"{archive.url}/data", "per_request": 2, "patience": QUICK}
    assert len(fetch_spectra([2, 4, 6, 8], tmp_path, **options)) == 2
    assert [f["DATA_STRUCTURE"] for f in archive.asked] == ["DATAMODEL_GAIA", "RAW", "RAW"]  # asked for once
    assert {f["RELEASE"] for f in archive.asked} == {"Gaia DR3"}


def test_a_server_that_speaks_the_present_dialect_is_asked_in_it_alone(archive, tmp_path):
    archive.dialects = {"DATAMODEL_GAIA", "DATAMODEL_STANDARD"}
    options = {"url": f"{archive.url}/data", "per_request": 2, "patience": QUICK}
    assert len(fetch_spectra([2, 4, 6, 8], tmp_path, **options)) == 2
    assert [f["DATA_STRUCTURE"] for f in archive.asked] == ["DATAMODEL_GAIA"] * 2


def test_an_unknown_retrieval_type_is_final_and_other_troubles_are_not(archive, tmp_path):
    options = {"url": f"{archive.url}/data", "patience": QUICK, "release": "dr4"}
    with pytest.raises(InputError, match="^[^\n]*MEAN_SPECTRUM_XP: the archive does not know this product of Gaia DR4"):
        fetch_spectra([2], tmp_path / "a", **options)
    assert len(archive.asked) == 1
    archive.products = {"MEAN_SPECTRUM_XP"}
    archive.troubles = ["busy", "busy"]
    (file,) = fetch_spectra([2], tmp_path / "b", **options)
    assert file.name == "MEAN_SPECTRUM_XP-000000.csv" and archive.asked[-1]["RELEASE"] == "Gaia DR4"
    with pytest.raises(InputError, match="unknown product 'sampled' of Gaia DR4"):
        fetch_spectra([2], tmp_path / "c", product="sampled", **options)


def schema_of(release: Release, **changes) -> dict[str, list[str]]:
    columns = [changes.get(n, release.substitutes.get(n, (n,))[0]) for n in release.source_columns]
    tables = {f"{release.schema}.gaia_source": [c for c in columns if c]}
    if release.spurious_table:
        tables[release.spurious_table] = ["source_id", "fidelity_v2", "norm_dg"]
    if release.summary_is_known:
        tables[f"{release.schema}.xp_summary"] = ["source_id", *release.summary_columns]
    return tables


@pytest.mark.parametrize("release", RELEASES.values(), ids=RELEASES)
def test_an_archive_as_announced_needs_no_words(archive, release, said):
    archive.schema, archive.troubles = schema_of(release), ["busy"]
    assert probe(release, url=f"{archive.url}/tap", patience=QUICK) == as_announced(release)
    assert [line for line in said if "trying again" not in line] == (
        [] if release.summary_is_known else [line for line in said if "xp_summary" in line or "not what" in line]
    )


def test_a_changed_archive_is_one_page_and_a_query_that_works(archive, said):
    archive.schema = schema_of(DR4, ruwe="", pseudocolour="pseudo_colour", has_xp_continuous="has_mean_spectrum_xp")
    there = probe(DR4, url=f"{archive.url}/tap", patience=QUICK)
    page = "\n".join(said)
    assert "gaiadr4.gaia_source: has no column ruwe" in page
    assert "has no column pseudocolour (did you mean 'pseudo_colour'?)" in page
    assert "has_xp_continuous is has_mean_spectrum_xp there" in page and "gaiadr4.xp_summary: not there" in page
    adql = make_query("gaia", 0, 9, there).adql
    assert "g.astrometric_params AS astrometric_params_solved" in adql and "g.tentative_parallax_bias" in adql
    assert "WHERE g.has_mean_spectrum_xp = 'true'" in adql and "FROM gaiadr4.gaia_source AS g" in adql
    assert not any(word in adql for word in ("ruwe", "pseudocolour", "xp_summary", "spur", "excess_factor"))
    left, right = make_query("gaia", 0, 9, there).halves()
    assert left.there == right.there == there


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"gaia_dr4.gaia_source": ["source_id"]}, r"gaiadr4.gaia_source \(did you mean 'gaia_dr4.gaia_source'\?\)"),
        (schema_of(DR4, parallax="plx"), r"no column parallax .*which the query needs; the archive has changed"),
    ],
)
def test_an_archive_without_what_a_query_needs_is_one_sentence(archive, schema, words):
    archive.schema = schema
    with pytest.raises(InputError, match=f"^[^\n]*{words}[^\n]*$"):
        probe(DR4, url=f"{archive.url}/tap", patience=QUICK)


def test_two_mass_needs_the_tables_that_lead_there(archive):
    archive.schema = schema_of(DR4)
    with pytest.raises(InputError, match="2 of the tables.*tmass_psc_xsc_best_neighbour"):
        probe(DR4, "two_mass", url=f"{archive.url}/tap", patience=QUICK)


def test_the_command_asks_what_there_is_before_it_queries(archive, tmp_path, monkeypatch):
    there = {"url": f"{archive.url}/tap", "patience": QUICK}
    for function in (probe, fetch_tables):
        monkeypatch.setattr(function, "__kwdefaults__", {**function.__kwdefaults__, **there})
    command = ("fetch", "gaia", "--release", "dr4", "--chunks", 2, "--last", 119, "--out", tmp_path / "dr4")
    archive.schema = schema_of(DR4, ruwe="", parallax="plx")
    assert "gaiadr4.gaia_source has no column parallax" in refused(*command)
    assert archive.queries == []
    archive.schema = schema_of(DR4, ruwe="")
    done = run(*command)
    assert "gaiadr4.gaia_source: has no column ruwe" in done.stderr
    assert len(archive.queries) == 2 and all("FROM gaiadr4.gaia_source" in query for query in archive.queries)
    assert not any("ruwe" in query for query in archive.queries)
    assert ids_of([Path(line) for line in done.stdout.split()]) == STARS.tolist()
