"""Tables of any types, nulls, byte orders and sentinels, at every door and in every format.

Never a traceback; rows in = rows out + rows quarantined; identifiers are exact; what is missing never becomes a measurement.
"""

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.doors import SUFFIX, TABLES
from tests.hostile.make import FORMATS, columns, write
from xpbayes.errors import InputError

ID_TYPES = ("<i8", ">i8", "<u8", "<i4", "<f8", ">f4", "text", "decimal text")
NUMBER_TYPES = ("<f8", ">f8", "<f4", "<i4", ">i2", "text")
SENTINELS = (0.0, -1.0, -999.0, 99.999, 9.999, -9999.0, np.nan, np.inf, -np.inf, 1e300, 1e-300)
UNREADABLE = ("", "abc", "1_0", "0x1", "1,5", "--", "null", "True", "1e")
WITH_MASKS = ("csv", "csv.gz", "ecsv", "vot", "binary2.vot", "parquet", "avro")
SCALAR_DOORS = tuple(door for door in TABLES if door not in ("spectra", "labels"))


@st.composite
def tables(draw, door: str, kind: str):
    """Columns of a door, and the identifiers that the table gives, None where it gives none."""
    n = draw(st.integers(1, 6))
    ids = draw(st.lists(st.integers(1, 2**53 - 1) | st.integers(2**53, 2**63 - 1), min_size=n, max_size=n, unique=True))
    out: dict = {}
    kind_of_id = draw(st.sampled_from([t for t in ID_TYPES if t != "<u8" or not kind.endswith("vot")]))  # no such FIELD
    if kind_of_id == "text":
        out["source_id"] = np.array([str(i) for i in ids])
    elif kind_of_id == "decimal text":
        out["source_id"] = np.array([f"{i}.0" for i in ids])
    else:
        ids = [i % 2**31 or 1 for i in ids] if kind_of_id == "<i4" else ids
        out["source_id"] = np.array(ids).astype(kind_of_id)
    if kind in WITH_MASKS and draw(st.booleans()):
        mask = draw(st.lists(st.booleans(), min_size=n, max_size=n))
        out["source_id"] = np.ma.array(out["source_id"], mask=mask)
        ids = [None if m else i for i, m in zip(ids, mask, strict=True)]
    for name, good in list(columns(door).items())[1:]:
        if good.dtype.kind == "U":
            out[name] = np.array(
                [
                    draw(st.sampled_from(("AAA", "A", "", "b'AAB'", "null", "A" if kind == "fits" else "ÄÖ")))
                    for _ in range(n)
                ]
            )
            continue
        value = st.sampled_from(SENTINELS) | st.floats(0.0625, 20.0, width=32)
        values = draw(st.lists(value, min_size=n, max_size=n))
        type_ = draw(st.sampled_from(NUMBER_TYPES))
        if type_ == "text":
            text = [draw(st.just(repr(v)) | st.sampled_from(UNREADABLE)) for v in values]
            out[name] = np.array(text)
        else:
            with np.errstate(all="ignore"):
                out[name] = np.nan_to_num(values, posinf=999, neginf=-999).clip(-3e4, 3e4).astype(type_) if (
                    type_[1] == "i"
                ) else np.array(values).astype(type_)  # fmt: skip
        if draw(st.booleans()) and draw(st.booleans()) and not (type_ == "text" and kind.endswith("vot")):
            out[name] = np.repeat(out[name][:, None], draw(st.integers(1, 2)), axis=1)
        if kind in WITH_MASKS and out[name].ndim == 1 and draw(st.booleans()):
            out[name] = np.ma.array(out[name], mask=draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    return out, ids


def check(folder, door: str, kind: str, table: dict, ids: list) -> None:
    path = folder / f"x.{SUFFIX.get(kind, kind)}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(path, kind, table)
        try:
            out, sentence = TABLES[door](path), ""
        except InputError as error:
            out, sentence = None, str(error)
    assert "\n" not in sentence
    if out is None:
        return
    assert len(out) + len(out.rejected) == out.n_read == len(ids)
    found = out.columns["source_id"].tolist()
    assert [i for i in ids if i in set(found)] == found  # exact, in order, none invented
    for name, values in out.columns.items():
        if values.dtype.kind != "f":
            continue
        assert not np.isinf(values).any()
        if "error" in name or "sig" in name or name.startswith("dflux"):
            given_values = _numbers(table[name]) if name in table else []
            for value in values[np.isfinite(values)]:
                assert value > 0
                assert any(abs(value - v) <= 1e-6 * abs(v) for v in given_values), (name, value)


def _numbers(column) -> list[float]:
    out = []
    for value in np.ma.getdata(column).reshape(-1).tolist():
        try:
            out.append(float(value))
        except ValueError:
            continue
    return out


UNHURRIED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.mark.parametrize("kind", FORMATS)
@given(data=st.data())
@settings(max_examples=10, derandomize=True, database=None, deadline=None, suppress_health_check=UNHURRIED)
def test_any_table_is_read_or_refused(tmp_path, kind, data):
    door = data.draw(st.sampled_from(SCALAR_DOORS))
    check(tmp_path, door, kind, *data.draw(tables(door, kind)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
@given(data=st.data())
@settings(max_examples=1000, deadline=None, suppress_health_check=UNHURRIED)
def test_any_table_is_read_or_refused_for_long(tmp_path, kind, data):
    door = data.draw(st.sampled_from(SCALAR_DOORS))
    check(tmp_path, door, kind, *data.draw(tables(door, kind)))
