"""Every loader as a function of bytes, for the tests of this folder and for `benchmarks/fuzz.py`."""

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.make import FORMATS, text_of, whole
from xpbayes.archive.gaia_source import read_gaia_source
from xpbayes.archive.label_surveys import LabelSurvey
from xpbayes.archive.labels import read_labels
from xpbayes.archive.photometric import read_two_mass, read_unwise
from xpbayes.archive.reddening import read_reddening
from xpbayes.archive.survey_config import read_survey
from xpbayes.archive.xp import read_xp
from xpbayes.archive.xp_continuous import read_xp_continuous
from xpbayes.channels import Channels
from xpbayes.config import Settings
from xpbayes.data.spectra_file import read_star_table
from xpbayes.production.manifest import read_manifest
from xpbayes.production.model_file import ARRAYS, CARD, CARD_VERSION, load_model
from xpbayes.production.table import read_catalogue
from xpbayes.production.verify import verify_catalogue

Read = Callable[[bytes], object]
SUFFIX = {"csv.gz": "csv.gz", "vot": "vot", "binary.vot": "vot", "binary2.vot": "vot"}

TABLES: dict[str, Callable[[Path], object]] = {
    "spectra": lambda path: list(read_xp(path)),
    "gaia": lambda path: read_gaia_source([path]),
    "two_mass": lambda path: read_two_mass([path]),
    "unwise": lambda path: read_unwise([path]),
    "labels": lambda path: read_labels(LabelSurvey(files=("x",)), [path], ("teff", "feh", "logg"), None),
    "reddening": lambda path: read_reddening([path]),
}
"""The doors for tables of any format."""


def through(door: Callable[[Path], object], folder: Path, name: str) -> Read:
    """A door that reads bytes, as a file of that name."""
    path = folder / name

    def read(raw: bytes) -> object:
        path.write_bytes(raw)
        return door(path)

    return read


def bulk(folder: Path) -> Read:
    """The bulk parser: text in gzip; every row must come out, or be refused."""
    path = folder / "bulk.csv.gz"

    def read(raw: bytes) -> object:
        path.write_bytes(gzip.compress(raw, 1))
        batches = list(read_xp_continuous(path))
        rows = [*(r for b in batches for r in b.row.tolist()), *(r.row for b in batches for r in b.rejected)]
        if sorted(rows) != list(range(1, len(rows) + 1)):
            raise AssertionError(f"rows {sorted(rows)[:20]} of {len(rows)}")
        return batches

    return read


# ------------------------------------------------------------------------------------------------------- the model


CHANNELS = Channels(("xp400", "xp500", "J"), (400.0, 500.0, 1240.0), 2)


def small_arrays() -> dict[str, np.ndarray]:
    """Arrays of a model of three channels and three labels."""
    random = np.random.default_rng(0)
    shapes = {
        "weights.0": (3, 4), "biases.0": (4,), "weights.1": (4, 3), "biases.1": (3,), "ln_curve": (3,),
        "label_center": (3,), "label_scale": (3,), "prior.ln_weight": (2,), "prior.mean": (2, 3),
        "prior.whitening": (2, 3, 3), "prior.ln_threshold": (),
    }  # fmt: skip
    return {name: np.asarray(random.uniform(0.5, 1.0, shape), np.float32) for name, shape in shapes.items()}


def small_card(arrays: bytes) -> dict[str, Any]:
    """The card of such a model."""
    return {
        "version": CARD_VERSION,
        "channels": json.loads(CHANNELS.to_json()),
        "labels": ["teff", "feh", "logg"],
        "arrays_checksum": f"sha256:{hashlib.sha256(arrays).hexdigest()}",
    }


def array_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """What a safetensors file of them holds."""
    from safetensors.numpy import save

    return save(arrays)


def model_card(folder: Path) -> Read:
    """The model loader, by its card."""
    model = folder / "model-card"
    model.mkdir()
    (model / ARRAYS).write_bytes(array_bytes(small_arrays()))
    return through(lambda path: load_model(path.parent), model, CARD)


def model_arrays(folder: Path) -> Read:
    """The model loader, by its arrays; the card always has their checksum."""
    model = folder / "model-arrays"
    model.mkdir()

    def read(raw: bytes) -> object:
        (model / ARRAYS).write_bytes(raw)
        (model / CARD).write_text(json.dumps(small_card(raw)))
        return load_model(model)

    return read


# --------------------------------------------------------------------------------------------------- and all others


def manifest(folder: Path) -> Read:
    """A catalogue's manifest, as every reader of a catalogue and `verify` take it."""
    catalogue = folder / "catalogue"
    catalogue.mkdir()

    def both(path: Path) -> None:
        read_manifest(path.parent)
        verify_catalogue(path.parent)

    return through(both, catalogue, "manifest.json")


SURVEY = """select = "all"
[xp]
files = ["x.csv"]
[gaia]
files = ["gaia.csv"]
[[labels]]
survey = "custom"
files = ["l.csv"]
[labels.columns.labels]
teff = ["teff"]
"""
SETTINGS = "[training]\nseed = 1\n[[training.phases]]\nupdate = 'model'\n[inference]\nn_draws = 64\n"

TARGETS: dict[str, Callable[[Path], Read]] = {
    "bulk": bulk,
    **{
        f"{door}-{kind}": partial(through, read, name=f"x.{SUFFIX.get(kind, kind)}")
        for door, read in TABLES.items()
        for kind in FORMATS
        if door in ("spectra", "labels") or kind == "csv"
    },
    "star_table": partial(through, read_star_table, name="x.parquet"),
    "catalogue": partial(through, read_catalogue, name="x.parquet"),
    "card": model_card,
    "arrays": model_arrays,
    "manifest": manifest,
    "survey": partial(through, read_survey, name="survey.toml"),
    "settings": partial(through, Settings.read, name="settings.toml"),
}
"""What is fuzzed: name -> a folder's reader of bytes."""
TARGETS = {name: (lambda folder, make=make: make(folder=folder)) for name, make in TARGETS.items()}


def seeds(target: str, folder: Path) -> Iterator[bytes]:
    """Good files to begin with."""
    door, _, kind = target.partition("-")
    if target == "bulk":
        header, row = text_of("spectra")
        yield f"{header}\n{row}\n".encode()
        yield b"source_id,bp_n_parameters,bp_coefficients,bp_coefficient_errors,bp_coefficient_correlations\n" + (
            b'7,2,"[1.0,2.0]","[0.1,0.1]","[0.5]"\n8,1,"(1,)","(1,)",""\n9,,"[1 2\n3]","[nan, null, 1]",\n'
        )
    elif door in TABLES:
        yield whole(door, kind, folder)
        if kind == "csv":
            header, row = text_of(door)
            yield f"{header}\n{row}\n{row.replace('1', '-1')}\n,,\n".encode()
    elif target in ("star_table", "catalogue"):
        yield star_table(folder)
    elif target == "card":
        yield json.dumps(small_card(array_bytes(small_arrays()))).encode()
    elif target == "arrays":
        yield array_bytes(small_arrays())
    elif target == "manifest":
        yield json.dumps(small_manifest()).encode()
    else:
        yield (SURVEY if target == "survey" else SETTINGS).encode()


def star_table(folder: Path) -> bytes:
    """A star table of one star and three channels."""
    from xpbayes.data.spectra import Spectra
    from xpbayes.data.spectra_file import write_star_table

    stars = Spectra(
        channels=CHANNELS,
        label_names=("teff",),
        source_id=np.array([5853498713190525697]),
        flux=np.ones((1, 3), np.float32),
        xp_whitening=np.ones((1, 3), np.float32),
        band_inverse_error=np.ones((1, 1), np.float32),
        columns={},
        cuts=(),
        provenance={},
    )
    return write_star_table(stars, folder / "stars.parquet").read_bytes()


def small_manifest() -> dict[str, Any]:
    """A manifest of one part that is not there."""
    part = {
        "name": "part-00000-0000.parquet", "file": 0, "block": 0, "n_read": 2, "n_rows": 2, "n_not_selected": 0,
        "n_with_parallax": 0, "status": {"ok": 2}, "first_source_id": 1, "last_source_id": 2, "size": 10,
        "checksum": "sha256:00", "n_quarantined": 0,
    }  # fmt: skip
    totals = {
        "rows_read": 2, "rows_written": 2, "rows_not_selected": 0, "rows_quarantined": 0, "companion_rows_quarantined": 0,
        "n_with_parallax": 0, "bytes": 10, "status": {"ok": 2},
    }  # fmt: skip
    about = {"labels": ["teff", "feh", "logg"], "channels": json.loads(CHANNELS.to_json()), "model": {}, "settings": {}}
    inputs = [{"name": "a.parquet", "checksum": "sha256:00", "size": 3}]
    return {
        "kind": "catalogue in parts", "version": 1, "complete": True,
        "identity": {"inputs": {}, "model": {}, "settings": {}, "about": about, "versions": {}},
        "inputs": inputs, "companions": [], "totals": totals, "quarantined_by_reason": {}, "parts": [part],
    }  # fmt: skip
