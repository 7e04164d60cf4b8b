"""Is a finished catalogue what its manifest says, and can it be true?

In: the folder of a catalogue in parts, or one file. Out: problems, one sentence each; none if all is well. Checked are
checksums, rows, schema and metadata of every part, source_ids that repeat, finite parameters where the status is ok,
covariances that are positive semi-definite, and the balance of rows read, written, not selected and quarantined.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xpbayes.data.join import repeated_ids
from xpbayes.data.parquet import column_names, metadata_of, plain_text, read_parquet
from xpbayes.data.rejected import read_quarantine
from xpbayes.data.spectra import OK
from xpbayes.errors import InputError
from xpbayes.inference.linear_algebra import from_upper_triangle
from xpbayes.production.duplicates import Identifiers, find_repeated
from xpbayes.production.manifest import MANIFEST, QUARANTINE, catalogue_metadata, part_records, read_complete, totals
from xpbayes.production.parts import PART_PATTERN, PartRecord, is_intact
from xpbayes.production.table import have_errors, list_column
from xpbayes.schema import columns_of, id_column

ESSENTIAL = ("stellar_params_est", "stellar_params_err", "stellar_params_cov_triu", "chi2_opt", "ln_prior")
"""Columns of ZGR23 Table 2 that every solved star has."""
MIN_EIGENVALUE = -1e-5
"""Of a packed matrix scaled to unit diagonal: float32 rounding of six entries may cost as much."""


@dataclass(frozen=True)
class Verified:
    """What was found."""

    n_parts: int  # with rows
    n_rows: int
    problems: tuple[str, ...]  # one sentence each


def verify_catalogue(folder: Path) -> Verified:
    """Re-check a finished catalogue, part by part; InputError if it is no catalogue in parts, or not finished."""
    manifest = read_complete(folder)
    records = part_records(manifest)
    problems: list[str] = []
    listed = {r.name for r in records if r.n_rows}
    there = {p.name for p in folder.glob(PART_PATTERN)}
    problems += [f"{name}: is listed in {MANIFEST} and not there" for name in sorted(listed - there)]
    problems += [f"{name}: is there and not listed in {MANIFEST}" for name in sorted(there - listed)]
    about = manifest["identity"]["about"]
    for record in records:
        if record.name in listed & there:
            problems += check_part(folder, record, about)
    problems += _check_balance(folder, manifest, records)
    if not problems:
        try:
            check_repeated(folder, manifest)
        except InputError as error:
            problems.append(str(error))
    return Verified(len(listed), sum(r.n_rows for r in records), tuple(problems))


def check_repeated(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise InputError for a catalogue in which a star has several rows."""

    def read(name: str) -> NDArray[np.int64]:
        identifier = id_column(column_names(folder / name))
        return read_parquet(folder / name, [identifier], "infer it again")[identifier].to_numpy()

    parts = [
        Identifiers(r.name, r.first_source_id, r.last_source_id, r.n_rows, partial(read, r.name))
        for r in part_records(manifest)
    ]
    repeated = find_repeated(parts)
    if repeated is not None:
        raise InputError(
            f"{folder}: {repeated.count} source_ids have more than one row (first: {repeated.first}, in "
            f"{' and '.join(dict.fromkeys(repeated.files))}); take the repeated stars out of the inputs and infer again"
        )


def verify_file(path: Path) -> Verified:
    """Re-check a catalogue of one file, all that holds for a part without a manifest; InputError if it is none."""
    about = catalogue_metadata(path)
    table = plain_text(read_parquet(path, advice="copy or infer it again"))
    if wrong := wrong_columns(table, about):
        return Verified(1, table.num_rows, (wrong,))
    problems = check_rows(table, about)
    identifier = id_column(table.column_names)
    if (repeated := repeated_ids(table[identifier].to_numpy())) is not None:
        problems.append(f"{repeated.count} source_ids have more than one row (first: {repeated.first})")
    return Verified(1, table.num_rows, tuple(problems))


def check_part(folder: Path, record: PartRecord, about: Mapping[str, Any]) -> list[str]:
    """Problems of one part, of which the manifest says `record`, and `about` in every part's metadata."""
    path = folder / record.name
    if not is_intact(folder, record):
        return [f"{record.name}: is not the file that was written (size or checksum differ); copy or infer it again"]
    try:
        table = plain_text(pq.read_table(path))
    except (pa.ArrowException, OSError) as error:
        return [f"{record.name}: cannot be read ({str(error).splitlines()[0]})"]
    if wrong := wrong_columns(table, about):
        return [f"{record.name}: {wrong}"]
    problems = check_rows(table, about)
    if not _is_about(table, about):
        problems.append("its metadata name another model, other settings or another selection")
    if table.num_rows != record.n_rows:
        problems.append(f"has {table.num_rows} rows, not {record.n_rows}")
    if dict(Counter(table["status"].to_pylist())) != record.status:
        problems.append("its rows do not have the states that the manifest counts")
    ids = table[id_column(table.column_names)].to_numpy()
    if len(ids) and (int(ids.min()), int(ids.max())) != (record.first_source_id, record.last_source_id):
        problems.append("its source_ids are not in the range that the manifest names")
    return [f"{record.name}: {p}" for p in problems]


def wrong_columns(table: pa.Table, about: Mapping[str, Any]) -> str:
    """What is wrong with the names and types of columns; '' if nothing is."""
    expected = pa.schema([c.field() for c in columns_of(about)])
    if table.schema.equals(expected, check_metadata=False):
        return ""
    different = [
        f.name for f in expected if f.name not in table.schema.names or table.schema.field(f.name).type != f.type
    ]
    return f"its columns are not the schema's (first: {(different or table.schema.names)[0]})"


def check_rows(table: pa.Table, about: Mapping[str, Any]) -> list[str]:
    """Problems of rows with the schema's columns, by what must be true of every solved star."""
    columns = columns_of(about)
    problems = []
    unit = [c.name for c in columns if table.schema.field(c.name).metadata != c.field().metadata]
    if unit:
        problems.append(f"{len(unit)} columns have another unit, UCD or description (first: {unit[0]})")
    status = np.array(table["status"].to_pylist(), dtype=str)
    solved = table.filter(pa.array(status == OK))
    for name in ESSENTIAL:
        values = list_column(solved, name)
        bad: NDArray[np.bool_] = np.logical_not(np.isfinite(values).all(axis=1))
        if bad.any():
            problems.append(f"{int(bad.sum())} rows with status ok have no finite {name} ({_first(solved, bad)})")
    bad = ~have_errors(list_column(solved, "stellar_params_err"))
    if bad.any():
        problems.append(
            f"{int(bad.sum())} rows with status ok have an error that is 0 or not finite ({_first(solved, bad)})"
        )
    for column in columns:
        size = getattr(column.type, "list_size", 0)
        n = int((np.sqrt(8 * size + 1) - 1) / 2)
        if not column.name.endswith("_triu") or n * (n + 1) // 2 != size:
            continue
        bad = ~is_positive_semidefinite(list_column(solved, column.name), n)
        if bad.any():
            problems.append(f"{int(bad.sum())} {column.name} are not positive semi-definite ({_first(solved, bad)})")
    return problems


def is_positive_semidefinite(packed: NDArray[np.float64], n: int) -> NDArray[np.bool_]:
    """(row,) whether (row, n (n + 1) / 2) upper triangles are so, up to float32 rounding; true where not finite."""
    matrix = from_upper_triangle(packed)
    known = np.isfinite(packed).all(axis=1)
    matrix[~known] = np.eye(n)
    diagonal = np.diagonal(matrix, axis1=1, axis2=2)
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    scaled = matrix * scale[:, :, None] * scale[:, None, :]
    return (diagonal >= 0).all(axis=1) & (np.linalg.eigvalsh(scaled)[:, 0] >= MIN_EIGENVALUE)


def _first(table: pa.Table, bad: NDArray[np.bool_]) -> str:
    return f"first: source_id {table[id_column(table.column_names)][int(np.flatnonzero(bad)[0])].as_py()}"


def _is_about(table: pa.Table, about: Mapping[str, Any]) -> bool:
    try:
        found = metadata_of(table.schema, "")
    except InputError:
        return False
    return all(found.get(k) == v for k, v in about.items())


def _check_balance(folder: Path, manifest: Mapping[str, Any], records: list[PartRecord]) -> list[str]:
    """Rows in = rows out + rows not selected + rows quarantined, in every part and in total."""
    problems = []
    for raw in manifest["parts"]:
        made_from, listed = raw.get("input_checksum"), dict(enumerate(manifest.get("inputs", ()))).get(raw["file"])
        if made_from and (listed is None or made_from != listed["checksum"]):  # 0.1.0 did not say
            problems.append(f"part {raw['file']}-{raw['block']}: was made from another file than {MANIFEST} lists")
        if raw["n_read"] != raw["n_rows"] + raw["n_not_selected"] + raw["n_quarantined"]:
            problems.append(f"part {raw['file']}-{raw['block']}: rows read and rows accounted for differ")
    counted = totals(records)
    total = manifest["totals"]
    for key in ("rows_read", "rows_written", "rows_not_selected", "bytes", "status", "n_with_parallax"):
        if counted[key] != total[key]:
            problems.append(f"{MANIFEST}: {key} is {total[key]}, its parts add up to {counted[key]}")
    n_quarantined = total["rows_quarantined"] + total["companion_rows_quarantined"]
    try:
        found = len(read_quarantine(folder / QUARANTINE))
    except InputError as error:
        return [*problems, str(error)]
    if found != n_quarantined:
        problems.append(f"{QUARANTINE}: has {found} rows, {MANIFEST} counts {n_quarantined}")
    return problems
