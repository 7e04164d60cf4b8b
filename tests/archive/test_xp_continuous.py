"""One reader for every format of continuous XP spectra: the same numbers from each, and no row lost in silence."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from xpbayes.archive.cells import ArrayParser, LineParser, integer
from xpbayes.archive.text_file import TextFile
from xpbayes.archive.xp_continuous import COLUMNS, read_xp_continuous
from xpbayes.data.rejected import UNKNOWN_SOURCE
from xpbayes.errors import InputError

DATA = Path(__file__).resolve().parents[2] / "../shared/data/xp_continuous"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real spectra are not beside the project")

K = 5  # coefficients a side: the count is the file's business
N_CORRELATIONS = K * (K - 1) // 2
HEADER = [
    "source_id",
    "solution_id",
    *(
        f"{side}_{name}"
        for side in ("bp", "rp")
        for name in (
            "n_parameters",
            "standard_deviation",
            "coefficients",
            "coefficient_errors",
            "coefficient_correlations",
        )
    ),
]


def made_up(n: int, seed: int = 0, k: int = K) -> dict[str, list]:
    rng = np.random.default_rng(seed)
    table: dict[str, list] = {
        "source_id": [int(i) for i in 4295806720 + np.arange(n) * 34359738368],
        "solution_id": [1636148068921376768] * n,
    }
    for side in ("bp", "rp"):
        table[f"{side}_n_parameters"] = [k] * n
        table[f"{side}_standard_deviation"] = [float(v) for v in rng.uniform(1, 1.3, n)]
        table[f"{side}_coefficients"] = list(rng.normal(0, 1e4, (n, k)))
        table[f"{side}_coefficient_errors"] = list(rng.uniform(1, 9, (n, k)).astype(np.float32).astype(np.float64))
        table[f"{side}_coefficient_correlations"] = list(rng.uniform(-0.2, 0.2, (n, k * (k - 1) // 2)))
    return table


def cell(value, opening: str = "[", missing: str = "null") -> str:
    if value is None:
        return missing
    if isinstance(value, np.ndarray):
        closing = {"[": "]", "(": ")"}[opening]
        return f'"{opening}{", ".join(repr(float(v)) for v in value)}{closing}"'
    return str(value)


def csv_lines(table: dict[str, list], opening: str = "[", missing: str = "null") -> list[str]:
    n = len(table["source_id"])
    return [",".join(cell(table[name][i], opening, missing) for name in HEADER) for i in range(n)]


def write_csv(path: Path, lines: list[str], header: list[str] = HEADER, comments: str = "") -> Path:
    text = comments + "\n".join([",".join(header), *lines]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read_all(path: Path, **options):
    batches = list(read_xp_continuous(path, **options))
    return batches, [r for b in batches for r in b.rejected]


def check_same(path: Path, table: dict[str, list], rtol: float = 0.0) -> None:
    batches, rejected = read_all(path)
    assert rejected == []
    assert_array_equal(np.concatenate([b.source_id for b in batches]), table["source_id"])
    at = 0
    for batch in batches:
        for i in range(len(batch)):
            for name, side in (("bp", batch.bp), ("rp", batch.rp)):
                expected = table[f"{name}_coefficients"][at]
                assert side.present[i] == (expected is not None)
                if expected is not None:
                    assert_allclose(side.coefficient[i], expected, rtol=rtol)
                    assert_allclose(side.error[i], table[f"{name}_coefficient_errors"][at], rtol=rtol)
                    assert_allclose(side.correlation[i], table[f"{name}_coefficient_correlations"][at], rtol=rtol)
                    assert_allclose(side.standard_deviation[i], table[f"{name}_standard_deviation"][at], rtol=rtol)
            at += 1
    assert at == len(table["source_id"])


def without(table: dict[str, list], side: str, rows: list[int]) -> dict[str, list]:
    out = {k: list(v) for k, v in table.items()}
    for name, values in out.items():
        if name.startswith(side):
            for i in rows:
                values[i] = None
    return out


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".ecsv", ".ecsv.gz"])
@pytest.mark.parametrize(("opening", "missing"), [("[", "null"), ("(", ""), ("[", "NaN")])
def test_text_in_every_dialect(tmp_path, suffix, opening, missing):
    table = without(without(made_up(7), "bp", [1, 4]), "rp", [6])
    comments = "# %ECSV 1.0\n# ---\n# delimiter: ','\n# datatype:\n" if "ecsv" in suffix else ""
    check_same(write_csv(tmp_path / f"x{suffix}", csv_lines(table, opening, missing), comments=comments), table)


def test_ecsv_with_blanks_between_columns(tmp_path):
    table = made_up(3)
    lines = [" ".join(cell(table[name][i]).replace(", ", ",") for name in HEADER) for i in range(3)]
    text = "\n".join(["# %ECSV 1.0", "# ---", " ".join(HEADER), *lines]) + "\n"
    (tmp_path / "x.ecsv").write_text(text)
    check_same(tmp_path / "x.ecsv", table)


def test_fits_votable_parquet_hdf5_and_avro_hold_the_same(tmp_path):
    import fastavro
    import pyarrow as pa
    import pyarrow.parquet as pq
    from astropy.table import Table

    table = made_up(6)
    whole = Table({k: np.stack(v) if isinstance(v[0], np.ndarray) else v for k, v in table.items()})
    whole.write(tmp_path / "x.fits")
    check_same(tmp_path / "x.fits", table)
    whole.write(tmp_path / "x.vot", format="votable")
    check_same(tmp_path / "x.vot", table)

    partial = without(table, "bp", [2])
    pq.write_table(
        pa.table({k: [None if x is None else x for x in v] for k, v in partial.items()}), tmp_path / "x.parquet"
    )
    check_same(tmp_path / "x.parquet", partial)

    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        group = file.create_group("spectra")
        for name, values in table.items():
            group[name] = np.stack(values) if isinstance(values[0], np.ndarray) else np.array(values)
    check_same(tmp_path / "x.h5", table)

    number = ["null", "double"]
    array = ["null", {"type": "array", "items": "double"}]
    kinds = {"source_id": "long", "solution_id": "long"}
    fields = [
        {"name": n, "type": kinds.get(n, array if "coefficient" in n else number if "dev" in n else ["null", "int"])}
        for n in HEADER
    ]
    records = [
        {n: v[i].tolist() if isinstance(v[i], np.ndarray) else v[i] for n, v in partial.items()} for i in range(6)
    ]
    with open(tmp_path / "x.avro", "wb") as stream:
        fastavro.writer(stream, {"type": "record", "name": "xp", "fields": fields}, records)
    check_same(tmp_path / "x.avro", partial)


def test_avro_as_gaiaxpy_reads_it_gives_published_errors(tmp_path):
    import fastavro

    table = made_up(3)
    row, column = np.tril_indices(K)

    def solution(side: str, i: int) -> dict:
        sigma = table[f"{side}_coefficient_errors"][i] / table[f"{side}_standard_deviation"][i]
        full = np.eye(K)
        full[np.tril_indices(K, -1)] = table[f"{side}_coefficient_correlations"][i]
        covariance = sigma[:, None] * full * sigma[None, :]
        return {
            "solution": {
                "numberOfParameters": K,
                "standardDeviation": table[f"{side}_standard_deviation"][i],
                "parameters": table[f"{side}_coefficients"][i].tolist(),
                "covariance": covariance[row, column].tolist(),
            }
        }

    array = {"type": "array", "items": "double"}
    inner = [
        ("numberOfParameters", "int"),
        ("standardDeviation", "double"),
        ("parameters", array),
        ("covariance", array),
    ]

    def spectrum(name: str) -> dict:
        fields = [{"name": n, "type": t} for n, t in inner]
        record = {"type": "record", "name": f"{name}Solution", "fields": fields}
        return {"type": "record", "name": f"{name}Spec", "fields": [{"name": "solution", "type": record}]}

    schema = {
        "type": "record",
        "name": "XpContinuous",
        "fields": [{"name": "sourceId", "type": "long"}]
        + [{"name": f"{s}Spec", "type": ["null", spectrum(s)]} for s in ("bp", "rp")],
    }
    records = [
        {
            "sourceId": table["source_id"][i],
            "bpSpec": solution("bp", i) if i != 1 else None,
            "rpSpec": solution("rp", i),
        }
        for i in range(3)
    ]
    with open(tmp_path / "x.avro", "wb") as stream:
        fastavro.writer(stream, schema, records)
    check_same(tmp_path / "x.avro", without(table, "bp", [1]), rtol=1e-12)


@needs_data
@pytest.mark.parametrize("stem", ["XP_CONTINUOUS_RAW", "XP_CONTINUOUS_RAW_with_missing_BP"])
def test_the_archives_own_files_agree_across_formats(stem):
    (expected,), _ = read_all(DATA / f"{stem}.csv")
    assert expected.bp.n_coefficients == 55
    for suffix in (".ecsv", ".fits", ".xml"):
        (batch,), rejected = read_all(DATA / f"{stem}{suffix}")
        assert rejected == []
        assert_array_equal(batch.source_id, expected.source_id)
        for side, reference in ((batch.bp, expected.bp), (batch.rp, expected.rp)):
            assert_array_equal(side.present, reference.present)
            assert_allclose(side.coefficient, reference.coefficient, rtol=1e-7)
            assert_allclose(side.error, reference.error, rtol=1e-6)
            assert_allclose(side.correlation, reference.correlation, rtol=1e-6, atol=1e-8)


def test_coefficient_counts_come_from_the_file_and_may_change(tmp_path):
    lines = csv_lines(made_up(2, k=4)) + csv_lines(made_up(3, k=6))
    batches, rejected = read_all(write_csv(tmp_path / "x.csv", lines))
    assert [b.bp.n_coefficients for b in batches] == [4, 6] and rejected == []


def test_batches_are_small_and_rows_numbered_from_one(tmp_path):
    batches, _ = read_all(write_csv(tmp_path / "x.csv.gz", csv_lines(made_up(10))), batch_size=4)
    assert [len(b) for b in batches] == [4, 4, 2]
    assert_array_equal(np.concatenate([b.row for b in batches]), np.arange(1, 11))


def test_without_simdjson_the_numbers_are_the_same(tmp_path, monkeypatch):
    table = without(made_up(4), "rp", [2])
    path = write_csv(tmp_path / "x.csv", csv_lines(table, "("))
    monkeypatch.setitem(__import__("sys").modules, "simdjson", None)
    check_same(path, table)


def test_without_isal_gzip_still_reads(tmp_path, monkeypatch):
    table = made_up(4)
    monkeypatch.setitem(__import__("sys").modules, "isal", None)
    check_same(write_csv(tmp_path / "x.csv.gz", csv_lines(table)), table)


DAMAGE = {
    "two arrays of another length": (
        lambda t, i: t["bp_coefficients"].__setitem__(i, np.ones(3)),
        "bp_coefficients has 3",
    ),
    "errors of another length": (
        lambda t, i: t["rp_coefficient_errors"].__setitem__(i, np.ones(9)),
        "rp_coefficient_errors has 9",
    ),
    "correlations of another length": (
        lambda t, i: t["bp_coefficient_correlations"].__setitem__(i, np.ones(2)),
        "bp_coefficient_correlations has 2 values, not 10",
    ),
    "NaN": (lambda t, i: t["bp_coefficients"].__setitem__(i, np.array([1, np.nan, 1, 1, 1])), "not finite"),
    "inf": (lambda t, i: t["rp_coefficient_errors"].__setitem__(i, np.array([1, np.inf, 1, 1, 1])), "not finite"),
    "negative error": (lambda t, i: t["rp_coefficient_errors"].__setitem__(i, -np.ones(5)), "not positive"),
    "correlation beyond one": (
        lambda t, i: t["rp_coefficient_correlations"].__setitem__(i, np.full(10, 1.5)),
        "outside [-1, 1]",
    ),
    "text": (lambda t, i: t["bp_coefficients"].__setitem__(i, '"[1,2,x,4,5]"'), "not an array of numbers"),
    "wrong id": (lambda t, i: t["source_id"].__setitem__(i, "starA"), "source_id is not a whole number (starA)"),
    "negative id": (lambda t, i: t["source_id"].__setitem__(i, -4), "outside"),
    "no id": (lambda t, i: t["source_id"].__setitem__(i, None), "source_id is missing"),
    "no errors": (lambda t, i: t["bp_coefficient_errors"].__setitem__(i, None), "bp_coefficient_errors are missing"),
    "a deviation in words": (lambda t, i: t["bp_standard_deviation"].__setitem__(i, "big"), "not a number (big)"),
}


@pytest.mark.parametrize("name", list(DAMAGE))
def test_a_bad_row_is_quarantined_with_its_number_and_reason(tmp_path, name):
    table = made_up(5)
    change, reason = DAMAGE[name]
    change(table, 2)
    batches, (bad,) = read_all(write_csv(tmp_path / "x.csv.gz", csv_lines(table)))
    assert sum(len(b) for b in batches) == 4
    assert bad.row == 3 and bad.file == "x.csv.gz" and reason in bad.reason
    expected = UNKNOWN_SOURCE if "id" in name.split() else made_up(5)["source_id"][2]
    assert bad.source_id == expected


def test_a_row_without_any_spectrum_is_quarantined(tmp_path):
    table = without(without(made_up(3), "bp", [1]), "rp", [1])
    _, (bad,) = read_all(write_csv(tmp_path / "x.csv", csv_lines(table)))
    assert bad.row == 2 and bad.reason == "neither BP nor RP coefficients"


def test_a_short_line_is_quarantined(tmp_path):
    lines = csv_lines(made_up(3))
    lines[1] = lines[1].rsplit(',"', 1)[0]
    _, (bad,) = read_all(write_csv(tmp_path / "x.csv", lines))
    assert bad.row == 2 and bad.reason == "11 fields where the header has 12"


@pytest.mark.parametrize("isal", [True, False])
def test_a_cut_gzip_gives_its_whole_rows_and_says_where_it_ends(tmp_path, monkeypatch, isal):
    if not isal:
        monkeypatch.setitem(__import__("sys").modules, "isal", None)
    path = write_csv(tmp_path / "x.csv.gz", csv_lines(made_up(200)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    batches, (bad,) = read_all(path)
    n = sum(len(b) for b in batches)
    assert 50 < n < 150 and bad.row == n + 1 and "cut short" in bad.reason


def test_damaged_bytes_inside_gzip_keep_what_came_before(tmp_path):
    path = write_csv(tmp_path / "x.csv.gz", csv_lines(made_up(400)))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 64] = bytes(64)
    path.write_bytes(bytes(raw))
    batches, rejected = read_all(path)
    rows = sorted([int(r) for b in batches for r in b.row] + [r.row for r in rejected])
    assert rejected and len(rows) > 100 and rows == list(range(1, len(rows) + 1))


SCALARS = st.sampled_from(
    ["", "null", "NaN", "inf", "-inf", "1e999", "abc", "-1", "0", "1.5", '"', "[1,2]", "\u2603", ",", "\x00"]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rows_in_are_rows_out_plus_quarantined_whatever_happens(tmp_path, data):
    n = 6
    lines = csv_lines(made_up(n))
    for i in data.draw(st.sets(st.integers(0, n - 1), max_size=3)):
        how = data.draw(st.sampled_from(["cut", "insert", "cell", "delete"]))
        line = lines[i]
        at = data.draw(st.integers(0, len(line) - 1))
        if how == "cut":
            lines[i] = line[: at + 1]
        elif how == "insert":
            lines[i] = line[:at] + data.draw(SCALARS) + line[at:]
        elif how == "delete":
            lines[i] = line[:at] + line[at + data.draw(st.integers(1, 40)) :] or "x"
        else:
            cells = next(csv.reader([line]))
            j = data.draw(st.integers(0, len(cells) - 1))
            cells[j] = data.draw(SCALARS)
            lines[i] = ",".join(f'"{c}"' if c.startswith("[") else c for c in cells)
    n_rows = sum(bool(line.strip()) and not line.startswith("#") for line in lines)
    batches, rejected = read_all(write_csv(tmp_path / "x.csv", lines), batch_size=data.draw(st.integers(1, 8)))
    rows = sorted([int(r) for b in batches for r in b.row] + [r.row for r in rejected])
    assert rows == list(range(1, n_rows + 1))
    for batch in batches:  # whatever is let through can be used
        for side in (batch.bp, batch.rp):
            assert np.isfinite(side.coefficient).all() and (side.error > 0).all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, 4000))
def test_any_cut_of_a_gzip_file_reads_or_refuses_with_a_sentence(tmp_path, cut):
    path = write_csv(tmp_path / "x.csv.gz", csv_lines(made_up(20)))
    raw = path.read_bytes()
    path.write_bytes(raw[: max(1, len(raw) - cut)])
    if len(raw) - cut < 18:  # not even gzip's own header and trailer
        with pytest.raises(InputError, match="x.csv.gz"):
            read_all(path)
        return
    try:
        batches, rejected = read_all(path)
    except InputError:  # cut inside the header line
        return
    rows = sorted([int(r) for b in batches for r in b.row] + [r.row for r in rejected])
    assert rows == list(range(1, len(rows) + 1)) and len(rejected) == 1


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.csv", b"", "no header line"),
        ("x.csv", b"source_id,ra\n1,2\n", "neither bp_coefficients nor rp_coefficients"),
        ("x.csv", b"source,bp_coefficients\n1,2\n", "no column source_id"),
        ("x.csv", b"source_id,bp_coefficients\n1,2\n", "no bp_coefficient_errors"),
        ("x.fits", b"no", "not a FITS file"),
        ("x.vot", b"<VOTABLE>", "not a complete VOTable"),
        ("x.parquet", b"PAR1", "not a complete Parquet file"),
        ("x.avro", b"Obj", "not an Avro file"),
        ("x.h5", b"hdf", "not a complete HDF5 file"),
        ("x.png", b"", "unknown file format"),
        ("x.csv.gz", b"\x1f\x8b\x08", "before its header"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_foreign_file_is_refused_in_one_sentence(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="^[^\n]+$") as error:
        read_all(tmp_path / name)
    assert sentence in str(error.value) and name in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_all(tmp_path / "nowhere.csv")


def test_source_id_never_passes_through_a_float():
    assert integer(b"4295806720123456789") == 4295806720123456789


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_text_arrays_round_trip_to_the_last_bit(values):
    text = json.dumps(values).encode()
    assert_array_equal(ArrayParser()(text), np.array(values))


def test_columns_are_the_archives_own_names():
    assert {"bp_coefficients", "rp_coefficient_correlations"} <= {c.name for c in COLUMNS}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    "text", [b"[NaN, nan, NaN]", b"[null,null,null]", b"(nan,nan,nan)", b"null", b"[]", b"[  ]     "]
)
def test_an_array_without_any_number_is_missing_either_way(monkeypatch, fast, text):
    if not fast:
        monkeypatch.setitem(__import__("sys").modules, "simdjson", None)
    assert ArrayParser()(text) is None


def test_a_votable_as_text_is_streamed_and_a_binary_one_is_read(tmp_path, monkeypatch):
    from astropy.table import Table

    from xpbayes.archive import votable

    table = made_up(7)
    whole = Table({k: np.stack(v) if isinstance(v[0], np.ndarray) else v for k, v in table.items()})
    monkeypatch.setattr("xpbayes.archive.tables.ROWS_AT_ONCE", 3)
    for serialisation in ("tabledata", "binary", "binary2"):
        path = tmp_path / f"{serialisation}.vot"
        whole.write(path, format="votable", tabledata_format=serialisation)
        check_same(path, table)
    sizes = []
    original = votable._text_blocks
    monkeypatch.setattr(
        votable, "_text_blocks", lambda *a: (sizes.append(len(b["source_id"])) or b for b in original(*a))
    )
    check_same(tmp_path / "tabledata.vot", table)
    assert sizes == [3, 3, 1]


def test_a_votable_that_is_cut_gives_its_whole_rows(tmp_path):
    from astropy.table import Table

    table = made_up(7)
    whole = Table({k: np.stack(v) if isinstance(v[0], np.ndarray) else v for k, v in table.items()})
    path = tmp_path / "x.vot"
    whole.write(path, format="votable")
    text = path.read_bytes()
    path.write_bytes(text[: text.rindex(b"<TR>") + 40])
    batches, (bad,) = read_all(path)
    assert sum(len(b) for b in batches) == 6 and bad.row == 7 and "damaged from this row on" in bad.reason


@pytest.mark.parametrize(
    "line",
    [
        b'1,"[1,2]",3',
        b'1,"(1,2)",3',
        b"1,null,3",
        b"1,,3",
        b'1,"[1,NaN]",3',
        b'1,"1,2",3',
        b"1,[1,2],3",
        b'1,"[1,2],3',
        b'1,"[[1,2]]",3',
        b'1,"[1,null]",3',
        b"true,1,3",
        b'99999999999999999999,"[1]",3',
        b'"[1]","2,3"',
        b'1,"[1]""[2]",3',
    ],
)
def test_a_line_read_at_once_is_what_its_cells_are(tmp_path, line):
    """The fast way through a line never says anything else than splitting it and reading cell by cell."""
    file = tmp_path / "x.csv"
    file.write_bytes(b"source_id,array,number\n" + line + b"\n")
    text = TextFile(file)
    cells = LineParser(3, [0, 1, 2])(line)
    if cells is None:
        return  # left to the careful way
    expected = text.split(line)
    parse = ArrayParser()
    assert cells[0] == integer(expected[0]) and cells[2] == integer(expected[2])
    if isinstance(cells[1], np.ndarray):
        assert_array_equal(cells[1], parse(expected[1]))
    else:
        assert cells[1] is None and parse(expected[1]) is None


def test_the_archives_own_lines_are_read_at_once():
    line = b'4295806720,"[1.5,-2e-3]",null,"[7]",3'
    cells = LineParser(5, [0, 1, 2, 4])(line)
    assert cells is not None and cells[0] == 4295806720 and cells[2] is None and cells[3] == 3
    assert_array_equal(cells[1], [1.5, -2e-3])
