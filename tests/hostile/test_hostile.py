"""Every loader reads a file or refuses it in one sentence, whatever the file: broken, cut, nested, of another kind."""

import json
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.hostile.doors import (
    FILES,
    JSON_KINDS,
    SETTINGS,
    SUFFIX,
    SURVEY,
    TABLES,
    TARGETS,
    array_bytes,
    seeds,
    small_arrays,
    small_card,
    small_manifest,
    star_table,
)
from tests.hostile.make import FORMATS, FOUND, ODD_FILES, bad_json, harmed, odd_text, text_of, whole
from tests.production.test_export import ABOUT, made_up
from tests.production.test_verify import make as make_parts
from xpbayes.analysis.dust_map.selection import open_for_map
from xpbayes.errors import InputError
from xpbayes.production.reader import open_catalogue
from xpbayes.production.table import describe, read_catalogue, to_arrow, write_catalogue


def faults(read, files: Iterator[tuple[str, bytes]]) -> list[str]:
    """What is neither read nor refused in one line."""
    out = []
    for name, raw in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(raw)
        except InputError as error:
            if "\n" in str(error) or not str(error).strip():
                out.append(f"{name}: not one sentence: {str(error)[:200]!r}")
        except Exception:
            out.append(f"{name}: {''.join(traceback.format_exc().splitlines(True)[-7:])}")
    return out


@pytest.mark.parametrize("door", list(TABLES))
def test_odd_text(tmp_path, door):
    assert not faults(TARGETS[f"{door}-csv"](tmp_path), odd_text(*text_of(door)))


@pytest.mark.parametrize("door", list(TABLES))
def test_files_of_no_table(tmp_path, door):
    for suffix in ("csv", "csv.gz", "ecsv", "fits", "vot", "parquet", "hdf5", "avro", "xyz"):
        path = tmp_path / f"x.{suffix}"

        def read(raw: bytes, path: Path = path) -> object:
            path.write_bytes(raw)
            return TABLES[door](path)

        assert not faults(read, iter(ODD_FILES.items())), suffix


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("door", ["spectra", "labels"])
def test_harmed_tables(tmp_path, door, kind):
    assert not faults(TARGETS[f"{door}-{kind}"](tmp_path), harmed(whole(door, kind, tmp_path)))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("door", ["gaia", "two_mass", "unwise", "reddening"])
def test_cut_tables(tmp_path, door, kind):
    path = tmp_path / f"x.{SUFFIX.get(kind, kind)}"

    def read(raw: bytes) -> object:
        path.write_bytes(raw)
        return TABLES[door](path)

    assert not faults(read, (f for f in harmed(whole(door, kind, tmp_path)) if f[0].startswith("cut")))


def test_star_tables(tmp_path):
    read = TARGETS["star_table"](tmp_path)
    assert not faults(read, harmed(star_table(tmp_path)))
    assert not faults(read, iter(ODD_FILES.items()))
    assert not faults(read, metadata_of_star_tables(tmp_path))
    catalogue = TARGETS["catalogue"](tmp_path)
    assert not faults(catalogue, iter(ODD_FILES.items()))
    assert not faults(catalogue, metadata_of_star_tables(tmp_path, kind="catalogue"))


@pytest.mark.parametrize("door", [read_catalogue, open_catalogue, open_for_map])
@pytest.mark.parametrize("in_parts", [False, True])
def test_harmed_catalogues(tmp_path, door, in_parts):
    folder = make_parts(tmp_path / "parts")
    path = next(folder.glob("part-*.parquet"))
    good = path.read_bytes()
    if not in_parts:
        good = write_catalogue(describe(to_arrow(made_up(9), 3), ABOUT), path).read_bytes()

    def read(raw: bytes) -> object:
        path.write_bytes(raw)
        return door(folder if in_parts else path)

    n = len(good)
    exchanged = ((str(i), good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :]) for i in range(n // 3, n, max(1, n // 100)))
    assert not faults(read, [*harmed(good), *exchanged])


def metadata_of_star_tables(folder: Path, kind: str = "star table") -> Iterator[tuple[str, bytes]]:
    """Star tables with other JSON in their metadata."""
    import pyarrow.parquet as pq

    star_table(folder)
    table = pq.read_table(folder / "stars.parquet")
    about = {**json.loads(table.schema.metadata[b"xpbayes"]), "kind": kind}
    for name, raw in bad_json(about):
        pq.write_table(table.replace_schema_metadata({b"xpbayes": raw}), folder / "other.parquet")
        yield name, (folder / "other.parquet").read_bytes()


def test_model_cards(tmp_path):
    card = small_card(array_bytes(small_arrays()))
    read = TARGETS["card"](tmp_path)
    read(next(seeds("card", tmp_path)))
    assert not faults(read, bad_json(card))
    assert not faults(read, bad_json({**card, "confidence": {"arrays_checksum": "", "targets": [], "features": []}}))
    assert not faults(read, iter(ODD_FILES.items()))


def broken_arrays() -> Iterator[tuple[str, bytes]]:
    """Arrays that no model has: another dtype or length, not finite, one more or fewer."""
    good = small_arrays()
    for name, values in good.items():
        yield f"without {name}", array_bytes({k: v for k, v in good.items() if k != name})
        yield f"integers in {name}", array_bytes({**good, name: values.astype(np.int32)})
        yield f"truths in {name}", array_bytes({**good, name: values.astype(bool)})
        yield f"{name} longer", array_bytes({**good, name: np.concatenate([np.atleast_1d(values)] * 2)})
        yield f"{name} nested", array_bytes({**good, name: values[None, None]})
        yield f"{name} empty", array_bytes({**good, name: np.zeros((0,), np.float32)})
        for odd in (np.nan, np.inf):
            spoilt = values.copy()
            spoilt[(-1,) * values.ndim] = odd
            yield f"{odd} in {name}", array_bytes({**good, name: spoilt})


def test_arrays_that_no_model_has_are_refused(tmp_path):
    read = TARGETS["arrays"](tmp_path)
    for name, raw in broken_arrays():
        with pytest.raises(InputError) as refused:
            assert read(raw) is name
        assert "\n" not in str(refused.value), name


def test_model_arrays(tmp_path):
    read = TARGETS["arrays"](tmp_path)
    read(array_bytes(small_arrays()))
    assert not faults(read, harmed(array_bytes(small_arrays())))
    assert not faults(read, iter(ODD_FILES.items()))


def test_manifests(tmp_path):
    read = TARGETS["manifest"](tmp_path)
    read(next(seeds("manifest", tmp_path)))
    assert not faults(read, bad_json(small_manifest()))
    for key in ("totals", "identity"):
        assert not faults(read, _inside(key, small_manifest()[key], small_manifest()))
    assert not faults(read, iter(ODD_FILES.items()))


def _inside(key: str, value: dict | list, whole: dict) -> Iterator[tuple[str, bytes]]:
    """Files with other JSON under one key."""
    marked = json.dumps({**whole, key: "@here@"}).encode()
    for name, raw in bad_json(value):
        yield f"{key}-{name}", marked.replace(b'"@here@"', raw)


@pytest.mark.parametrize("kind", list(JSON_KINDS))
def test_json(tmp_path, kind):
    read = TARGETS[kind](tmp_path)
    good = JSON_KINDS[kind][1]
    if kind != "kept_tables":  # its tables are not there
        read(json.dumps(good).encode())
    assert not faults(read, bad_json(good))
    assert not faults(read, iter(ODD_FILES.items()))
    for key, value in good.items():
        if isinstance(value, dict | list):
            assert not faults(read, _inside(key, value, good)), key


@pytest.mark.parametrize("kind", [k for k, (_, good) in JSON_KINDS.items() if "version" in good])
def test_a_newer_version_of_a_json_file_says_so(tmp_path, kind):
    read, good = TARGETS[kind](tmp_path), JSON_KINDS[kind][1]
    with pytest.raises(InputError, match=r"version 9 is newer than this xpbayes reads|of version 9, not"):
        read(json.dumps({**good, "version": 9}).encode())
    with pytest.raises(InputError, match="damaged|not a usable"):
        read(json.dumps({**good, "version": "9"}).encode())


@pytest.mark.parametrize("kind", list(FILES))
def test_other_files_of_ours(tmp_path, kind):
    read = TARGETS[kind](tmp_path)
    assert not faults(read, harmed(FILES[kind](tmp_path)))
    assert not faults(read, iter(ODD_FILES.items()))


TOML = {
    "deep": b"a = " + b"[" * 4000 + b"]" * 4000,
    "deep-table": b"a = " + b"{a=" * 1500 + b"1" + b"}" * 1500,
    "dotted": b".".join([b"a"] * 3000) + b" = 1",
    "latin1": b"a = '\xe9'",
    "bom": b"\xef\xbb\xbf[xp]\nfiles = ['x']\n",
    "utf-16": "[xp]\nfiles = ['x']\n".encode("utf-16"),
    "nul": b"a = 1\0",
    "twice": b"a = 1\na = 2\n",
    "number": b"xp = 3",
    "list": b"xp = [1, 2]\nlabels = {a = 1}\ngaia = 'x'\n",
    "huge": b"seed = " + b"9" * 5000,
    "date": b"select = 1979-05-27T07:32:00Z",
    "cut": b"[xp",
    "nan": b"stars_per_file = nan\n[xp]\nfiles = ['x']\n",
}


def other_values(good: str) -> Iterator[tuple[str, bytes]]:
    """TOML files with each value in turn exchanged for one of another type."""
    lines = good.splitlines()
    for i, line in enumerate(lines):
        name, equals, _ = line.partition("=")
        if equals:
            for j, value in enumerate(
                ("[]", "{}", "true", "-1", "nan", "1e999", "'x'", "[[]]", "[1, 'a', {}]", "1979-05-27")
            ):
                yield f"{i}-{j}", "\n".join([*lines[:i], f"{name}= {value}", *lines[i + 1 :]]).encode()


@pytest.mark.parametrize(("target", "good"), [("survey", SURVEY), ("settings", SETTINGS)])
def test_settings(tmp_path, target, good):
    read = TARGETS[target](tmp_path)
    read(good.encode())
    assert not faults(read, iter(TOML.items()))
    assert not faults(read, iter(ODD_FILES.items()))
    assert not faults(read, other_values(good))


def test_what_fuzzing_has_found(tmp_path):
    known = [*sorted(FOUND.glob("*"))]
    for i, path in enumerate(known):
        target = path.name.split("--")[0]
        (tmp_path / str(i)).mkdir()
        assert not faults(TARGETS[target](tmp_path / str(i)), iter([(path.name, path.read_bytes())]))
