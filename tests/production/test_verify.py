"""Each check of `verify` finds the fault that it is there for."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.production.test_export import made_up
from xpbayes.archive.stream import idle_companions
from xpbayes.data.rejected import Rejected, write_quarantine
from xpbayes.data.spectra import Cut
from xpbayes.errors import InputError
from xpbayes.instrument.instrument import DEFAULT_ID
from xpbayes.production.manifest import MANIFEST, QUARANTINE, totals
from xpbayes.production.parts import OpenedInput, PartDraft, read_record, write_part
from xpbayes.production.reader import open_catalogue
from xpbayes.production.table import describe, to_arrow, write_catalogue
from xpbayes.production.verify import is_positive_semidefinite, verify_catalogue
from xpbayes.runs.export import export
from xpbayes.runs.verify import verify
from xpbayes.schema import catalogue_columns

ABOUT = {"labels": ["teff", "feh", "logg"], "instrument": DEFAULT_ID.to_json(), "selection": "all"}
N = 40


def plausible(n: int, seed: int) -> dict:
    """Rows of made-up numbers with positive definite matrices."""
    rows = made_up(n, seed)
    rng = np.random.default_rng(seed)
    for column in catalogue_columns(3):
        if column.name.endswith("_triu"):
            size = int((np.sqrt(8 * column.type.list_size + 1) - 1) / 2)
            factor = rng.normal(size=(n, size, size))
            matrix = factor @ factor.transpose(0, 2, 1)
            packed = matrix[:, *np.triu_indices(size)]
            rows[column.name] = np.where(np.isfinite(rows[column.name][:, :1]), packed, np.nan)
    rows["stellar_params_err"] = 0.1 + np.abs(rows["stellar_params_err"])
    rows["source_id"] = rows["source_id"] + 1000 * seed
    return rows


def make(folder: Path, change=lambda rows, block: None, quarantined=()) -> Path:
    """A finished catalogue of two parts, whose rows may be spoiled before they are written."""
    source = folder / "input.txt"
    folder.mkdir(parents=True, exist_ok=True)
    source.write_text("input")
    records = []
    for block in range(2):
        rows = plausible(N, block + 1)
        change(rows, block)
        table = describe(to_arrow(rows, 3), ABOUT)
        draft = PartDraft()
        draft.add(table, quarantined if block else (), n_read=N + (len(quarantined) if block else 0))
        records.append(write_part(folder, *draft.finished(0, block, OpenedInput.at(source), last=block == 1)))
        assert read_record(folder, 0, block) == records[-1]
    source.unlink()
    for path in (folder / "records").iterdir():
        path.unlink()
    (folder / "records").rmdir()
    write_quarantine(quarantined, folder / QUARANTINE)
    parts = []
    for record in records:
        raw = {k: v for k, v in asdict(record).items() if k != "quarantined"}
        parts.append({**raw, "name": record.name, "n_quarantined": len(record.quarantined)})
    manifest = {"version": 1, "complete": True, "identity": {"about": ABOUT, "versions": {}}, "parts": parts}
    manifest["inputs"] = [{"name": source.name, "checksum": records[0].input_checksum}]
    manifest["totals"] = totals(records)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def problems(folder: Path) -> str:
    return "\n".join(verify_catalogue(folder).problems)


def test_a_good_one_passes(tmp_path):
    found = verify_catalogue(make(tmp_path, quarantined=[Rejected("a.csv", 3, 7, "rubbish")]))
    assert found.problems == () and (found.n_parts, found.n_rows) == (2, 2 * N)


def test_a_part_in_which_no_star_has_a_solution_passes(tmp_path):
    def spoil(rows, block):
        rows["status"] = np.full(N, "no flux") if block else rows["status"]

    assert verify_catalogue(make(tmp_path, spoil)).problems == ()


def test_one_flipped_bit(tmp_path):
    part = make(tmp_path) / "part-00000-0001.parquet"
    raw = bytearray(part.read_bytes())
    raw[len(raw) // 2] ^= 1
    part.write_bytes(raw)
    assert "part-00000-0001.parquet: is not the file that was written" in problems(tmp_path)


def test_missing_and_surplus_parts(tmp_path):
    make(tmp_path)
    (tmp_path / "part-00000-0000.parquet").rename(tmp_path / "part-00009-0000.parquet")
    found = problems(tmp_path)
    assert "part-00000-0000.parquet: is listed" in found and "part-00009-0000.parquet: is there and not" in found


def test_a_parameter_that_is_not_finite(tmp_path):
    def spoil(rows, block):
        if block == 1:
            rows["stellar_params_est"][0, 2] = np.nan

    found = problems(make(tmp_path, spoil))
    assert "part-00000-0001.parquet: 1 rows with status ok have no finite stellar_params_est (first: source_id" in found


@pytest.mark.parametrize(("name", "value"), [("err", 0.0), ("err", np.inf)])
def test_an_error_that_is_none(tmp_path, name, value):
    def spoil(rows, block):
        if block == 1:
            rows[f"stellar_params_{name}"][0, 2] = value

    found = problems(make(tmp_path, spoil))
    assert (
        "part-00000-0001.parquet: 1 rows with status ok have an error that is 0 or not finite (first: source_id"
        in found
    )


def test_a_covariance_with_a_negative_eigenvalue(tmp_path):
    def spoil(rows, block):
        if block == 0:
            rows["stellar_params_cov_triu"][5, 1] = 10 * np.sqrt(
                rows["stellar_params_cov_triu"][5, 0] * rows["stellar_params_cov_triu"][5, 5]
            )

    assert "1 stellar_params_cov_triu are not positive semi-definite" in problems(make(tmp_path, spoil))


def test_a_star_with_two_rows(tmp_path):
    shared = plausible(N, 1)["source_id"][:3]

    def spoil(rows, block):
        if block == 1:
            rows["source_id"][:3] = shared

    found = problems(make(tmp_path, spoil))
    assert "3 source_ids have more than one row" in found
    assert "part-00000-0000.parquet and part-00000-0001.parquet" in found


def test_another_unit(tmp_path):
    """Rewritten with its checksum, but with a unit of its own."""
    from xpbayes.files import file_checksum

    part = make(tmp_path) / "part-00000-0000.parquet"
    table = pq.read_table(part)
    at = table.schema.get_field_index("ra")
    schema = table.schema.set(at, table.schema.field(at).with_metadata({"unit": "rad"}))
    pq.write_table(table.cast(schema), part)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest["parts"][0] |= {"size": part.stat().st_size, "checksum": file_checksum(part)}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    found = problems(tmp_path)
    assert "1 columns have another unit, UCD or description (first: ra)" in found and "bytes is" in found


@pytest.mark.parametrize("key", ["n_read", "n_rows", "n_not_selected", "n_quarantined"])
def test_rows_that_do_not_add_up(tmp_path, key):
    make(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest["parts"][1][key] += 1
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert "rows read and rows accounted for differ" in problems(tmp_path)


def test_a_shortened_quarantine(tmp_path):
    make(tmp_path, quarantined=[Rejected("a.csv", 3, 7, "rubbish")])
    write_quarantine([], tmp_path / QUARANTINE)
    assert "quarantine.csv: has 0 rows, manifest.json counts 1" in problems(tmp_path)


def test_a_damaged_manifest_is_one_sentence(tmp_path):
    make(tmp_path)
    (tmp_path / MANIFEST).write_text('{"version": 1')
    with pytest.raises(InputError, match="is damaged"):
        verify_catalogue(tmp_path)


def test_a_record_adds_up_what_companions_gave(tmp_path):
    table = to_arrow(plausible(N, 1), 3)
    draft = PartDraft()
    for _ in range(2):
        draft.add(table, cuts=[Cut("rows read", 0, N), Cut("in 2MASS", 0, 0)], n_read=N)
    source = tmp_path / "input.txt"
    source.write_text("input")
    _, record = draft.finished(0, 0, OpenedInput.at(source), last=True)
    assert idle_companions(record.cuts) == [f"none of the {2 * N} stars is in 2MASS"]


def test_rows_that_were_lost_are_never_written(tmp_path):
    table = to_arrow(plausible(N, 1), 3)
    draft = PartDraft()
    draft.add(table, n_read=N + 1)
    source = tmp_path / "input.txt"
    source.write_text("input")
    with pytest.raises(RuntimeError, match="41 rows were read and 40 are accounted for"):
        write_part(tmp_path, *draft.finished(0, 0, OpenedInput.at(source), last=True))
    assert not list(tmp_path.glob("part-*"))
    _, good = draft.finished(0, 0, OpenedInput.at(source), last=True)
    assert write_part(tmp_path, table, replace(good, n_read=N)).size > 0


def test_positive_semidefinite_as_numpy_says():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(500, 5, 5))
    matrix = matrix + matrix.transpose(0, 2, 1) + 3 * np.eye(5)
    expected = np.linalg.eigvalsh(matrix)[:, 0] > 0
    assert 50 < expected.sum() < 450
    found = is_positive_semidefinite(matrix[:, *np.triu_indices(5)], 5)
    assert np.array_equal(found, expected)


def test_strong_correlations_survive_rounding():
    """0.99999 in float32 is still a covariance."""
    covariance = np.full((2, 2), 0.999999)
    np.fill_diagonal(covariance, 1.0)
    packed = (covariance * 1e-6)[np.triu_indices(2)].astype(np.float32).astype(float)[None]
    assert is_positive_semidefinite(packed, 2).all()
    assert not is_positive_semidefinite(np.array([[1.0, 1.001, 1.0]]), 2).any()


def test_a_part_of_another_input(tmp_path):
    folder = make(tmp_path)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["parts"][1]["input_checksum"] = "sha256:0"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert "part 0-1: was made from another file than manifest.json lists" in problems(folder)


def test_an_input_that_changes_while_it_is_read_is_refused(tmp_path):
    source = tmp_path / "input.txt"
    source.write_text("one")
    opened = OpenedInput.at(source)
    opened.check()
    (tmp_path / "other").write_text("two")
    (tmp_path / "other").replace(source)
    with pytest.raises(InputError, match="has changed while it was read"):
        PartDraft().finished(0, 0, opened, last=True)


@pytest.mark.parametrize("fault", ["shorter", "swapped"])
def test_a_damaged_catalogue_is_not_exported(tmp_path, fault):
    folder = make(tmp_path / "c")
    first, second = sorted(folder.glob("part-*"))
    if fault == "shorter":
        pq.write_table(pq.read_table(first).slice(0, 30), first)
    else:
        first.rename(folder / "x")
        second.rename(first)
        (folder / "x").rename(second)
    for kind in ("fits", "votable", "hats"):
        with pytest.raises(InputError, match="not the files that were written .first: part-00000-0000"):
            export(folder, tmp_path / "out" / kind, kind)
    assert not any((tmp_path / "out").glob("*"))


def test_rows_that_the_manifest_does_not_count_are_not_read(tmp_path):
    folder = make(tmp_path)
    first = min(folder.glob("part-*"))
    opened = open_catalogue(folder)
    pq.write_table(pq.read_table(first).slice(0, 30), first)
    with pytest.raises(InputError, match="has 30 rows, not the 40 of the manifest"):
        list(opened.tables(["gdr3_source_id"]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: "[" * 100_000, "is damaged"),
        (lambda m: b"\xff\xfe", "is damaged"),
        (lambda m: "[]", "is damaged"),
        (lambda m: json.dumps({**m, "version": "1"}), "is damaged .version"),
        (lambda m: json.dumps({**m, "version": 2}), "is newer than this xpbayes reads"),
        (lambda m: json.dumps({**m, "complete": "yes"}), "is damaged .complete"),
        (lambda m: json.dumps({**m, "parts": None}), "is damaged .parts"),
        (lambda m: json.dumps({**m, "identity": {"about": {}}}), "is damaged .identity.about.labels"),
        (lambda m: json.dumps({**m, "totals": {**m["totals"], "status": 3}}), "is damaged .totals.status"),
    ],
)
def test_a_manifest_that_is_none_is_one_sentence(tmp_path, spoil, message):
    folder = make(tmp_path)
    text = spoil(json.loads((folder / MANIFEST).read_text()))
    (folder / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as caught:
        verify_catalogue(folder)
    assert "\n" not in str(caught.value)


def test_one_file_is_verified_too(tmp_path, said):
    rows = plausible(N, 1)
    path = write_catalogue(describe(to_arrow(rows, 3), ABOUT), tmp_path / "c.parquet")
    verify(path)
    assert said[-1] == f"{N} rows: every check passed"
    solved = np.flatnonzero(rows["status"] == "ok")
    rows["source_id"][1] = rows["source_id"][0]
    rows["chi2_opt"][solved[4]] = np.nan
    spoiled = write_catalogue(describe(to_arrow(rows, 3), ABOUT), tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"d\.parquet: 2 problems .*no finite chi2_opt"):
        verify(spoiled)
    assert any("1 source_ids have more than one row" in line for line in said)
