"""Answers that must not change: a short training, a catalogue of 500 stars, two stars fitted.

Bits depend on the processor and on the libraries that compile for it: golden.json holds checksums for each kind of machine
where they were taken, and percentiles of the catalogue, which every other machine must meet too. A change that is meant to
change answers: XPBAYES_WRITE_GOLDEN=1 writes what this machine finds, in place of all that was there.
XPBAYES_ADD_GOLDEN=1 adds this machine's checksums and leaves the rest.
"""

import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.cluster  # noqa: F401 - only threads of what is loaded can be limited
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

import xpbayes

GOLDEN = Path(__file__).with_name("golden.json")
N_STARS, N_PER_PART = 500, 200
N_KEPT_ASIDE = 134
"""Stars on which the model of this test was calibrated."""
FITTED = (3, 100)
PERCENTILES = (16, 50, 84)
DIGITS = 6
PHASES = (
    {"update": "model", "epochs": 12, "learning_rate": 6e-3, "final_rate": 0.2, "robust_scale": 660.0},
    {"update": "stars", "epochs": 4},
    {"update": "model_error", "epochs": 3},
    {"update": "model", "epochs": 12, "learning_rate": 3e-3, "final_rate": 0.05, "robust_scale": 660.0},
    {"update": "stars", "epochs": 4},
)
TRAINING = {"phases": PHASES, "batch_size": 128, "prior_components": 6, "held_out_stars": 0}


# --------------------------------------------------------------------------------------------------------- the answers


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict:
    """Checksums and percentiles of what the public functions answer; settings are the defaults, but for a short training.

    The stars that are inferred have labels and so a spectroscopic parallax; every second one brings it as measured.
    """
    folder = tmp_path_factory.mktemp("golden")
    stars = xpbayes.bundled_stars()
    with threadpool_limits(1, "openmp"):  # scikit-learn's sums depend on how many threads share them
        xpbayes.train(stars.take(np.arange(0, len(stars), 8)), folder / "model", xpbayes.TrainingConfig(**TRAINING))
    table = folder / "stars.parquet"
    xpbayes.write_star_table(stars.take(np.arange(5, 5 + 20 * N_STARS, 20)), table)
    fitted = _with_parallaxes(table)
    xpbayes.infer(folder / "model", table, folder / "catalogue.parquet")
    xpbayes.infer_parts(folder / "model", table, folder / "parts", processes=1, stars_per_part=N_PER_PART)
    xpbayes.fit(folder / "model", table, fitted, folder / "fit")
    catalogue = pq.read_table(folder / "catalogue.parquet")
    parts = [pq.read_table(path) for path in sorted((folder / "parts").glob("*.parquet"))]
    assert len(parts) == -(-N_STARS // N_PER_PART)
    return {
        "checksums": {
            "model": {
                f"{path.name} {name}": _of_array(array)
                for path in sorted((folder / "model").glob("*.safetensors"))
                for name, array in sorted(load_file(path).items())
            },
            "catalogue": _of_columns(catalogue),
            "parts": _of_columns(pa.concat_tables(parts).unify_dictionaries()),
            "fit": _checksum(json.dumps(_timeless(json.loads((folder / "fit" / "fit.json").read_text()))).encode()),
        },
        "percentiles": {
            name: np.nanpercentile(_numbers(column), PERCENTILES, axis=0).T.tolist()
            for name, column in zip(catalogue.column_names, catalogue.columns, strict=True)
            if name != "newton_decrement"  # what rounding leaves of a step
            and pa.types.is_floating(_item_type(column))
            and np.isfinite(_numbers(column)).all(axis=1).any()
        },
    }


def _with_parallaxes(path: Path) -> list[int]:
    """Give every second star of a star table its parallax; returns the source_id of those to fit."""
    table = pq.read_table(path)
    own = np.arange(len(table)) % 2 == 0
    for name in ("parallax", "parallax_error"):
        known = table[f"spectroscopic_{name}"].to_numpy()
        field = pa.field(name, pa.float32(), metadata={"unit": "mas"})
        table = table.append_column(field, pa.array(np.where(own, known, np.nan), pa.float32()))
    pq.write_table(table, path)
    return table["source_id"].take(list(FITTED)).to_pylist()


def _checksum(*parts: bytes) -> str:
    return hashlib.sha256(b"|".join(parts)).hexdigest()[:16]


def _of_array(array: np.ndarray) -> str:
    return _checksum(str(array.dtype).encode(), str(array.shape).encode(), np.ascontiguousarray(array).tobytes())


def _of_columns(table: pa.Table) -> dict[str, str]:
    """Of values and of what is null, whatever chunks and dictionaries hold them."""
    checksums = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        null = column.is_null().to_numpy().tobytes()
        if pa.types.is_string(_item_type(column)):
            checksums[name] = _checksum(json.dumps(column.to_pylist()).encode())
        else:
            checksums[name] = _checksum(_of_array(_numbers(column)).encode(), null)
    return checksums


def _item_type(column: pa.ChunkedArray) -> pa.DataType:
    return column.type.value_type if hasattr(column.type, "value_type") else column.type


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    flat = column.combine_chunks()
    flat = flat.flatten() if pa.types.is_fixed_size_list(flat.type) else flat
    nothing = pa.scalar(np.nan if pa.types.is_floating(flat.type) else 0).cast(flat.type)
    return flat.fill_null(nothing).to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _timeless(value):
    """JSON without entries that tell when or how long."""
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k != "created" and "seconds" not in k}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


# ----------------------------------------------------------------------------------------------------- what was stored


def _machine() -> dict[str, str]:
    """What bits depend on. That XLA stays on one thread the package sees to itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    abilities = about.get("flags", about.get("Features", "")).split()
    options = [o for o in os.environ.get("XLA_FLAGS", "").split() if "multi_thread_eigen" not in o]
    return {
        "processor": about.get("model name", f"{platform.processor()} {platform.machine()}"),
        "abilities": _checksum(" ".join(sorted(abilities)).encode()),
        "libraries": ", ".join(f"{n} {version(n)}" for n in ("jax", "jaxlib", "numpy", "scipy", "scikit-learn")),
        "compiler": " ".join(sorted(options)),
    }


@pytest.fixture(scope="module")
def stored(answers) -> dict:
    """golden.json, written anew if that was asked for."""
    if os.environ.get("XPBAYES_WRITE_GOLDEN"):
        _write({"percentiles": answers["percentiles"], "machines": []}, answers)
    if os.environ.get("XPBAYES_ADD_GOLDEN"):
        _write(json.loads(GOLDEN.read_text()), answers)
    return json.loads(GOLDEN.read_text())


def _write(golden: dict, answers: dict) -> None:
    golden["percentiles"] = {
        name: [[float(f"{x:.{DIGITS}g}") for x in row] for row in rows] for name, rows in golden["percentiles"].items()
    }
    others = [m for m in golden["machines"] if m["machine"] != _machine()]
    golden["machines"] = [*others, {"machine": _machine(), "checksums": answers["checksums"]}]
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


# ----------------------------------------------------------------------------------------------------------- the tests


def test_every_bit_is_what_it_was(answers, stored):
    here = [entry["checksums"] for entry in stored["machines"] if entry["machine"] == _machine()]
    if not here:
        pytest.skip(f"no checksums were taken on a machine like this: {_machine()}")
    for kind, expected in here[0].items():
        assert answers["checksums"][kind] == expected, kind


def test_numbers_are_what_they_were_on_another_machine(answers, stored):
    """Percentiles move less than other stars would move them: by a median's standard error."""
    assert answers["percentiles"].keys() == stored["percentiles"].keys()
    for name, expected in stored["percentiles"].items():
        expected, found = np.array(expected), np.array(answers["percentiles"][name])
        scatter = 0.5 * (expected[:, 2:] - expected[:, :1])
        allowed = 10.0 ** (1 - DIGITS) * np.abs(expected) + np.sqrt(np.pi / 2 / N_STARS) * scatter
        if name == "stellar_params_std":  # as calibrated: widths found from n stars are uncertain by 1 / sqrt(2 n)
            allowed += expected / np.sqrt(2 * N_KEPT_ASIDE)
        if name == "reliability":  # learnt from as many: a probability is then uncertain by sqrt(p (1 - p) / n)
            allowed += np.sqrt(expected * (1 - expected) / N_KEPT_ASIDE)
        assert np.all(np.abs(found - expected) <= allowed), name
