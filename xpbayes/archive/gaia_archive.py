"""Getting data from Gaia's archive: catalogue tables by TAP, chunk by chunk, and XP spectra by DataLink.

`probe` asks first what tables there are (TAP_SCHEMA). A chunk is a file; a finished chunk is never fetched again, an
unfinished one leaves nothing behind; a chunk with more rows than the archive returns at once is cut in two.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from xpbayes.archive.adql import SPURIOUS_COLUMNS, TWO_MASS_JOINS, ArchiveTables, Query
from xpbayes.archive.archive_client import PATIENT, DataLink, Patience, ask_now, patiently, run_job
from xpbayes.archive.cells import source_ids as exact_ids
from xpbayes.archive.columns import SOURCE_ID
from xpbayes.data.json_file import read_json, write_json
from xpbayes.data.parquet import write_parquet
from xpbayes.errors import InputError, nearest
from xpbayes.files import make_folder, reason_of, whole_file
from xpbayes.release import DEFAULT_RELEASE, Release, release_named

log = logging.getLogger(__name__)

TAP_URL = "https://gea.esac.esa.int/tap-server/tap"
DATALINK_URL = "https://gea.esac.esa.int/data-server/data"
"""Gaia's archive at ESAC: TAP, and the data server behind its DataLink."""

MAX_ROWS = 3_000_000
"""Most rows that an anonymous asynchronous job returns."""
SPECTRA_PER_REQUEST = 2000
"""The archive's limit on identifiers per DataLink request is 5,000; smaller requests lose less when they fail."""
RECORD = "fetch.json"
VERSION = 1  # of that file


REQUIRED = ("source_id", "ra", "dec", "parallax", "parallax_error", "has_xp_continuous")
"""Columns of gaia_source without which a query makes no sense."""


def probe(release: Release, table: str = "gaia", *, url: str = TAP_URL, patience: Patience = PATIENT) -> ArchiveTables:
    """Compare a release's profile with what the archive's TAP_SCHEMA has, before a query of 'gaia' or 'two_mass'.

    Returns:
        what there is: columns under other names taken from there, optional ones that are not there left out.

    Raises:
        InputError: the archive does not answer, or what a query cannot do without is not there; what else differs is
            said line by line before.
    """
    source = f"{release.schema}.gaia_source"
    summary = f"{release.schema}.xp_summary"
    wanted = [source, summary, *([release.spurious_table] if release.spurious_table else [])]
    joins = [f"{release.schema}.{name}" for name in TWO_MASS_JOINS] if table == "two_mass" else []
    found = _columns([*wanted, *joins], url, patience)
    lost = [name for name in (source, *joins) if name not in found]
    lines: list[str] = []
    fatal: list[str] = []
    names: dict[str, str] = {}
    if lost:
        asked = "SELECT table_name FROM TAP_SCHEMA.tables WHERE table_name LIKE 'gaia%'"
        tables = [name for (name,) in ask_now(asked, url, patience)]
        lines += [f"{name}: no such table{nearest(name, tables)}" for name in lost]
        first = f"{lost[0]}{nearest(lost[0], tables)}"
        fatal.append(f"has {len(lost)} of the tables that the query of {release.title} needs not (first: {first})")
    for ours in () if lost else release.source_columns:
        candidates = release.substitutes.get(ours, (ours,))
        theirs = next((name for name in candidates if name in found[source]), None)
        if theirs is None:
            lines.append(f"{source}: has no column {ours}{nearest(ours, found[source])}")
            if ours in REQUIRED:
                fatal.append(f"{source} has no column {ours}{nearest(ours, found[source])}, which the query needs")
            continue
        names[ours] = theirs
        if theirs != candidates[0]:
            lines.append(f"{source}: {ours} is {theirs} there")
    has_summary = set(release.summary_columns) <= found.get(summary, set())
    if not has_summary and table == "gaia" and not fatal:
        lines.append(f"{summary}: not there, or without {release.summary_columns[0]} and its like")
    if release.spurious_table and not set(SPURIOUS_COLUMNS) <= found.get(release.spurious_table, set()):
        fatal.append(f"{release.spurious_table} has no {' or '.join(SPURIOUS_COLUMNS)}")
    if lines:
        log.warning(f"{release.title} in the archive is not what xpbayes expects; what is missing is left out:")
        for line in lines:
            log.warning(f"  {line}")
    if fatal:
        raise InputError(f"{url}: {fatal[0]}; the archive has changed, upgrade xpbayes")
    return ArchiveTables(release, names, has_summary)


def _columns(tables: Sequence[str], url: str, patience: Patience) -> Mapping[str, set[str]]:
    """Names of the columns of those of these tables that there are, in small letters."""
    listed = ", ".join(f"'{name}'" for name in tables)
    found: dict[str, set[str]] = {}
    asked = f"SELECT table_name, column_name FROM TAP_SCHEMA.columns WHERE table_name IN ({listed})"
    for table, column in ask_now(asked, url, patience):
        found.setdefault(table, set()).add(column)
    return found


def fetch_tables(
    queries: Iterable[Query],
    out: Path,
    *,
    url: str = TAP_URL,
    max_rows: int = MAX_ROWS,
    patience: Patience = PATIENT,
) -> list[Path]:
    """Run queries and store each chunk as Parquet, ready for ``[gaia]`` and ``[two_mass]`` of a survey.toml.

    Chunks that the folder has already, from the same queries, are kept. A result of `max_rows` is taken for cut, and its
    range is halved. Returns the chunks' files, in order; a chunk without rows has no file.

    Raises:
        InputError: the archive refuses a query, or does not answer after all retries; or the folder's chunks come from
            other queries.
    """
    folder = _Folder(out)
    files: list[Path] = []
    todo = list(queries)[::-1]
    while todo:
        query = todo.pop()
        path = out / f"{query.name}.parquet"
        rows = folder.fill(path, query.adql, partial(_fetch_chunk, query, path, url, max_rows, patience), patience)
        if rows == "split":
            todo += query.halves()[::-1]
        elif rows:
            files.append(path)
    return files


def _fetch_chunk(query: Query, path: Path, url: str, max_rows: int, patience: Patience) -> "Rows":
    """Write one chunk, if it has rows and the archive gives them all; how many."""
    table = run_job(query.adql, query.name, url, max_rows, patience)
    if table is None and query.first == query.last:
        raise InputError(f"{query.name}: one source_id gives more than {max_rows} rows; raise max_rows")
    if table is None:
        log.info(f"{query.name}: more than {max_rows} rows, fetched in halves")
        return "split"
    if len(table):
        write_parquet(_to_arrow(table), path)
    log.info(f"{query.name}: {len(table)} rows")
    return len(table)


def fetch_spectra(
    source_ids: Sequence[int],
    out: Path,
    *,
    product: str = "continuous",
    release: str = DEFAULT_RELEASE.name,
    url: str = DATALINK_URL,
    per_request: int = SPECTRA_PER_REQUEST,
    patience: Patience = PATIENT,
) -> list[Path]:
    """Download XP spectra of given stars through DataLink, as the archive's own CSV.

    Stars that are repeated are asked for once, and requests that were answered before not again. `product` is
    'continuous' or 'sampled', `release` the one that the source_ids are of. Returns one CSV file per request, in order; a
    request without spectra has no file.

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
    folder, service = _Folder(out), DataLink(url, kind, profile.title)
    files: list[Path] = []
    for start in range(0, len(ids), per_request):
        some, path = ids[start : start + per_request], out / f"{kind}-{start // per_request:06d}.csv"
        asked = kind + ",".join(map(str, some))
        if folder.fill(path, asked, partial(_fetch_some, service, some, path, patience), patience):
            files.append(path)
    return files


def _fetch_some(service: "DataLink", ids: Sequence[int], path: Path, patience: Patience) -> int:
    """Write the spectra that there are of some stars; how many."""
    text = service.download(ids, patience)
    n = max(0, sum(1 for line in text.splitlines() if line and not line.startswith(b"#")) - 1)
    if n:
        with whole_file(path) as temporary:
            temporary.write_bytes(text)
    log.info(f"{path.stem}: {n} spectra for {len(ids)} stars")
    return n


def read_ids(path: Path) -> list[int]:
    """Read a text file with one Gaia source_id per line, a heading perhaps, and # for comments; InputError otherwise."""
    try:
        lines = [line.strip().rstrip(",") for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({reason_of(error)}); give a text file of source_ids") from error
    lines = [line for line in lines if line and not line.startswith("#")]
    return exact_ids(lines[1:] if lines and lines[0].strip('"').lower() in SOURCE_ID.all_names else lines, str(path))


Rows = Annotated[int, Field(ge=0)] | Literal["split"]


class _Chunk(BaseModel):
    query: str
    rows: Rows


class _Record(BaseModel):
    """What a folder holds: per chunk the checksum of its query and its number of rows, or 'split'."""

    version: int = VERSION
    chunks: dict[str, _Chunk]


class _Folder:
    """Chunks on disk, made if absent, and the record of those that are finished."""

    def __init__(self, out: Path) -> None:
        make_folder(out)
        self._file = out / RECORD
        is_new = not self._file.is_file()
        self._record = (
            _Record(chunks={}) if is_new else read_json(self._file, _Record, "delete it and fetch again", VERSION)
        )

    def fill(self, path: Path, query: str, fetch: Callable[[], Rows], patience: Patience) -> Rows:
        """Rows of a chunk, 'split' if it has too many: fetched, and its file written, unless that was done before."""
        name, digest = path.stem, hashlib.sha256(query.encode()).hexdigest()
        done = self._record.chunks.get(name)
        if done is not None and done.query != digest:
            raise InputError(f"{path.parent}: chunk {name} was fetched with another query; choose another folder")
        if done is not None and (done.rows in (0, "split") or path.is_file()):
            if done.rows != "split":
                log.info(f"{name}: already there")
            return done.rows
        rows: Rows = patiently(fetch, name, patience)
        self._record.chunks[name] = _Chunk(query=digest, rows=rows)
        advice = "make room there and run the same command again to go on"
        write_json(self._record.model_dump(), self._file, advice)
        return rows


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
