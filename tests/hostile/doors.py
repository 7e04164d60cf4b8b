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
from xpbayes.analysis.dust_map.birds_eye import BirdsEye
from xpbayes.analysis.dust_map.curve_map import CurveMap
from xpbayes.analysis.dust_map.healpix_map import DustMap
from xpbayes.analysis.figures.dust import _about, read_birds_eye
from xpbayes.archive import prepare
from xpbayes.archive.gaia_archive import RECORD, _Folder
from xpbayes.archive.gaia_source import read_gaia_source
from xpbayes.archive.label_surveys import LabelSurvey
from xpbayes.archive.labels import read_labels
from xpbayes.archive.photometric import read_two_mass, read_unwise
from xpbayes.archive.reddening import read_reddening
from xpbayes.archive.survey_config import SurveySettings, XpSettings, expand, read_survey
from xpbayes.archive.xp import read_xp
from xpbayes.archive.xp_continuous import read_xp_continuous
from xpbayes.channels import Channels
from xpbayes.config import DustMapConfig, Settings
from xpbayes.data.json_file import read_json
from xpbayes.data.rejected import read_quarantine
from xpbayes.data.spectra_file import read_star_table
from xpbayes.models.extinction import ReddeningLaw
from xpbayes.production.beside import WEIGHT_FACTOR, load_weight_factor
from xpbayes.production.inputs import Layout, Survey
from xpbayes.production.kept import kept_tables
from xpbayes.production.manifest import read_manifest
from xpbayes.production.model_file import ARRAYS, CARD, CARD_VERSION, load_model
from xpbayes.production.parts import RECORDS, read_records
from xpbayes.production.table import read_catalogue
from xpbayes.production.verify import verify_catalogue
from xpbayes.simulation.sky import Dust
from xpbayes.training.checkpoint import read_checkpoint, tree_checksum

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


PREPARED: dict[str, tuple[type, Any]] = {
    "begun": (
        prepare._Begun,
        {"version": 1, "settings": {}, "inputs": ["x.csv"], "companions": [{"name": "a", "checksum": "b"}]},
    ),
    "companions": (
        prepare._CompanionRecord,
        {"version": 1, "rejected": [], "label_cuts": [], "notes": {"a": "b"}, "summary": ["c"]},
    ),
    "record": (prepare._Record, {
        "version": 1,
        "input": {"name": "x.csv", "size": 10, "modified": 3, "checksum": "sha256:00"},
        "tables": [{"name": "x-0000.parquet", "checksum": "sha256:00"}],
        "totals": {
            "rows_read": 2, "stars_written": 1, "stars_cut": 0, "rows_quarantined": 1, "eigenvalue_floor": 0,
        },
        "cuts": [{"what": "rows read", "removed": 0, "left": 2}],
        "rejected": [{"file": "x.csv", "row": 1, "source_id": -1, "reason": "no"}],
    }),
}  # fmt: skip
"""What `prepare` leaves in its folder of records, and what a second run takes it for."""


def archive_record(folder: Path) -> Read:
    """What `fetch` knows of its chunks."""

    return through(lambda path: _Folder(path.parent), folder, RECORD)


FETCHED = {"version": 1, "chunks": {"a": {"query": "0" * 64, "rows": 3}, "b": {"query": "1" * 64, "rows": "split"}}}
DUST = {
    "kind": "dust", "version": 1, "disc_density": 0.1, "disc_height": 0.1, "disc_length": 2.6,
    "cloud_position": [[1.0, 0.0, 0.0]], "cloud_radius": [0.1], "cloud_depth": [1.0],
}  # fmt: skip
DUST_MAP = {
    "kind": "dust map", "version": 1, **DustMapConfig().model_dump(mode="json"), "rows": 10, "kept": 5,
}  # fmt: skip


def checkpoint(folder: Path) -> Read:
    """A checkpoint's header, around an array that it needs."""

    def read(raw: bytes) -> object:
        from safetensors.numpy import save_file

        words = {"xpbayes": raw.decode("utf-8", "replace")}
        save_file({"array.0": np.zeros(3, np.float32)}, folder / "c.safetensors", metadata=words)
        return read_checkpoint(folder / "c.safetensors", {"stars": "sha256:1", "settings": {"seed": 0}})

    return read


def weight_factor(folder: Path) -> Read:
    """What is unknown of a model."""
    return through(lambda path: load_weight_factor(path.parent, "sha256:1"), folder, WEIGHT_FACTOR)


CHECKPOINT = {
    "kind": "training checkpoint", "version": 3, "checksum": tree_checksum({"array.0": np.zeros(3, np.float32)}),
    "tree": {"tuple": [{"array": "array.0"}, {"value": None}, {"dict": {"a": {"value": 1}}}]},
    "about": {"stars": "sha256:1", "settings": {"seed": 0}, "phases": [], "done": 1},
}  # fmt: skip


def part_records(folder: Path) -> Read:
    """The record of a finished part, as a resumed run takes it."""
    (folder / RECORDS).mkdir()
    return through(lambda path: read_records(folder), folder / RECORDS, "part-00000-0000.json")


def kept_companions(folder: Path) -> Read:
    """What a run keeps of its companion tables."""
    place = folder / RECORDS / "tables-000"
    place.mkdir(parents=True)
    survey = Survey(folder / "survey.toml", SurveySettings(xp=XpSettings(files=("x.csv",))), "sha256:00")
    layout = Layout((), (), (survey,), 10)
    return through(lambda path: kept_tables(folder, layout), place, "tables.json")


PART = {
    "file": 0, "block": 0, "last": True, "n_read": 2, "n_rows": 2, "n_not_selected": 0, "n_with_parallax": 0,
    "status": {"ok": 2}, "first_source_id": 1, "last_source_id": 2, "size": 10, "checksum": "sha256:00",
    "input_checksum": "sha256:00", "input_modified": 3,
    "quarantined": [{"file": "x.csv", "row": 1, "source_id": -1, "reason": "no"}],
}  # fmt: skip
KEPT = {
    "checksums": [], "modified": [], "rejected": [], "notes": {}, "summary": ["c"],
    "tables": {"gaia": {"n_read": 3, "n_rows": 3, "columns": ["source_id"], "missing": {}, "rows": "gaia.parquet"}},
}  # fmt: skip

JSON_KINDS: dict[str, tuple[Callable[[Path], Read], Any]] = {
    "fetch.json": (archive_record, FETCHED),
    "sky.json": (lambda folder: through(Dust.read, folder, "sky.json"), DUST),
    "dust_map.json": (lambda folder: through(lambda path: _about(path.parent), folder, "dust_map.json"), DUST_MAP),
    "checkpoint": (checkpoint, CHECKPOINT),
    "part_record": (part_records, PART),
    "kept_tables": (kept_companions, KEPT),
    **{
        f"prepare-{name}": (
            lambda folder, kind=kind: through(
                lambda path: read_json(path, kind, "", prepare.VERSION), folder, "x.json"
            ),
            good,
        )
        for name, (kind, good) in PREPARED.items()
    },
}
"""Every kind of JSON file of ours but model cards, manifests and Parquet's metadata: its reader and a good one."""

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
    },
    **{name: make for name, (make, _) in JSON_KINDS.items()},
    "weights": weight_factor,
    "dust_fits": partial(through, DustMap.read, name="sky.fits"),
    "curve_fits": partial(through, CurveMap.read, name="curve_sky.fits"),
    "birds_eye": partial(through, read_birds_eye, name="birds_eye.fits"),
    "quarantine": partial(through, read_quarantine, name="quarantine.csv"),
    "hats": partial(through, lambda path: expand((str(path.parent),), path.parent), name="collection.properties"),
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
    elif target in JSON_KINDS:
        yield json.dumps(JSON_KINDS[target][1]).encode()
    elif target in FILES:
        yield FILES[target](folder)
    else:
        yield (SURVEY if target == "survey" else SETTINGS).encode()


def one_pixel(kind: type, **more: Any) -> Any:
    """A map of one pixel, of either kind."""
    quantities = {n: np.ones((1, 2), np.int16 if n == "nside" else np.float32) for n in kind.QUANTITIES}
    edges = np.array([0.0, 1.0, 2.0])
    return kind(edges=edges, finest=1, pixel=np.array([3]), about={"map": "sky"}, **more, **quantities)


def small_dust_map() -> DustMap:
    """A dust map of one pixel."""
    return one_pixel(DustMap)


def small_curve_map() -> CurveMap:
    """A map of the extinction curve of one pixel."""
    return one_pixel(CurveMap, law=ReddeningLaw((-1.0, 1.0), (2.8, 3.4)))


def small_view() -> BirdsEye:
    """A view from above of two cells a side."""
    axis, cells = np.array([-0.5, 0.5]), np.ones((2, 2))
    return BirdsEye(axis=axis, density=cells, covered=cells, max_height=0.4)


def safetensors_bytes(arrays: dict[str, np.ndarray], words: dict[str, str]) -> bytes:
    """A safetensors file with words in its header."""
    from safetensors.numpy import save

    return save(arrays, metadata=words)


FILES: dict[str, Callable[[Path], bytes]] = {
    "weights": lambda folder: safetensors_bytes(
        {"columns": np.ones((2, 2), np.float32)}, {"model": "sha256:1", "captured": "0.5", "n_stars": "3"}
    ),
    "dust_fits": lambda folder: small_dust_map().write(folder / "good.fits").read_bytes(),
    "curve_fits": lambda folder: small_curve_map().write(folder / "good.fits").read_bytes(),
    "birds_eye": lambda folder: small_view().write(folder / "good.fits").read_bytes(),
    "quarantine": lambda folder: b"file,row,source_id,reason\na.csv,3,-1,no\n",
    "hats": lambda folder: b"obs_collection=xp\nhats_primary_table_url=x\n",
}


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
