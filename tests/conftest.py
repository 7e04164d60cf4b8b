"""Fixtures: real stars, a small trained model, float64. Everything is seeded.

What all tests share is made once, whatever the number of pytest-xdist's workers.
"""

import fcntl
import gc
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Threads of OpenMP, scikit-learn's, wait for each other by spinning: beside another worker this takes twice the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Most of the time goes into compiling programs that run once or twice. Unoptimised ones, written by XLA's older emitters
# (where it still has them: an unknown flag ends the process) and in one LLVM module each, are ready in a quarter of it.
# XLA_FLAGS=--xla_backend_optimization_level=3 tests what users run.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)

import jax
import numpy as np
import pytest
from pydantic import BaseModel
from threadpoolctl import threadpool_limits

from tests.listening import heard
from xpbayes.analysis.posterior_file import import_arviz
from xpbayes.config import (
    DustMapConfig,
    InferenceConfig,
    Phase,
    RefinementConfig,
    SamplingConfig,
    Settings,
    TrainingConfig,
)
from xpbayes.data.spectra import Spectra
from xpbayes.data.spectra_file import read_star_table, write_star_table
from xpbayes.device import prepare_device
from xpbayes.production.model_file import TrainedModel, load_model, save_model

prepare_device()
# The variables alone come too late where a plugin has imported NumPy: many small inverses then take 15 times as long.
threadpool_limits(1)

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"

SHORT_PHASES = (
    Phase(update="model", epochs=30, learning_rate=4e-3, final_rate=0.2, robust_scale=660.0),
    Phase(update="stars", epochs=8),
    Phase(update="model_error", epochs=5),
    Phase(update="model", epochs=30, learning_rate=3e-3, final_rate=0.02, robust_scale=660.0),
    Phase(update="stars", epochs=8),
    Phase(update="model_error", epochs=6),
)
SHORT_REFINEMENT = RefinementConfig(members=2, hidden=(16,), epochs=3, rows=1, max_stars=1000)
SHORT_TRAINING = TrainingConfig(
    hidden=(32, 32, 32), phases=SHORT_PHASES, batch_size=128, prior_components=8, held_out_stars=0,
    calibration_stars=600, refinement=SHORT_REFINEMENT,
)  # fmt: skip
QUICK = InferenceConfig(
    use_parallax=False, n_nodes=256, n_starts=2, n_draws=64, n_more_draws=0, chunk_size=256, max_iterations=40
)  # fmt: skip
"""Inference in short; whoever shares it shares its compiled programs, whatever the number of stars.

Chunks are whole blocks of stars: smaller ones are filled up to a block each.
"""


def _set_defaults(kind: type[BaseModel], values: Mapping[str, object]) -> dict[str, object]:
    """Give settings other defaults; returns those that they had."""
    before = {name: kind.model_fields[name].default for name in values}
    for name, value in values.items():
        kind.model_fields[name].default = value
    kind.model_rebuild(force=True)
    return before


@contextmanager
def _in_short(small: Mapping[type[BaseModel], Mapping[str, object]]) -> Iterator[None]:
    def set_all(values_of: Mapping[type[BaseModel], Mapping[str, object]]) -> dict[type[BaseModel], dict[str, object]]:
        before = {kind: _set_defaults(kind, values) for kind, values in values_of.items()}
        _set_defaults(Settings, {name: field.annotation() for name, field in Settings.model_fields.items()})
        return before

    before = set_all(small)
    try:
        yield
    finally:
        set_all(before)


SHORT_INFERENCE = {InferenceConfig: {name: getattr(QUICK, name) for name in QUICK.model_fields_set - {"use_parallax"}}}


@pytest.fixture
def short_runs():
    """Every run is short where its caller does not say otherwise: for pages, whose code runs as it is printed."""
    small = {
        TrainingConfig: {name: getattr(SHORT_TRAINING, name) for name in SHORT_TRAINING.model_fields_set},
        SamplingConfig: {"draws": 100, "max_rounds": 1},
        DustMapConfig: {"max_extinction_error": 1.0, "sky_max_parallax_error": 0.33},
    }
    with _in_short(SHORT_INFERENCE | small):
        yield


def run_page(path: Path, shorter: Mapping[str, str] | None = None) -> dict:
    """Run all Python code of a page or notebook, as it is printed but for words in `shorter`; returns its names."""
    namespace: dict = {}
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text())["cells"]
        blocks = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    else:
        blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    for block in blocks:
        for word, other in (shorter or {}).items():
            block = block.replace(word, other)
        exec(compile(block, f"docs/{path.name}", "exec"), namespace)
    return namespace


MOST_MAPPINGS = 45_000
"""Programs of XLA's CPU backend are mapped into memory piece by piece; beyond 65,530 mappings Linux ends the process."""


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look at it each time that JAX has traced a program."""
    gc.collect()
    gc.freeze()


LONGEST = (
    "test_pages",
    "test_infer_parts",
    "test_golden",
    "test_importance",
    "test_nuts",
    "test_model_error",
    "test_on_device",
    "test_meeting",
)
"""Files that begin first, so that no worker is left with one of them in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_configure(config: pytest.Config) -> None:
    """Import ArviZ before there are workers: it leaves a file in the user's cache, once a day."""
    if config.getoption("numprocesses", None):
        import_arviz()


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Drop compiled programs when a process has gathered many: one that runs all files would die of them."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_text().count("\n") > MOST_MAPPINGS:
        jax.clear_caches()


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Lines that xpbayes has said since the test began."""
    with heard() as lines:
        yield lines


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the shared real data (../shared/data) are not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Give a path that every worker of this run sees; the first to ask makes what is there, the others wait."""
    own = tmp_path_factory.getbasetemp()
    folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def at(name: str, make: Callable[[Path], object]) -> Path:
        path = folder / name
        with open(folder / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                make(folder / f"new-{name}")
                (folder / f"new-{name}").rename(path)
        return path

    return at


@pytest.fixture(scope="session")
def bundled(made_once) -> Spectra:
    """The bundled sample, 10,000 real stars."""
    from xpbayes.archive.apogee import bundled_stars

    return read_star_table(made_once("bundled.parquet", lambda path: write_star_table(bundled_stars(), path)))


@pytest.fixture(scope="session")
def sample(bundled: Spectra) -> Spectra:
    """Every fifth bundled star: 2,000 real stars."""
    return bundled.take(np.arange(0, len(bundled), 5))


@pytest.fixture(scope="session")
def trained(sample: Spectra, made_once) -> TrainedModel:
    """A model trained briefly on the sample: real, but rough."""

    from xpbayes.runs.train import train

    def make(path: Path) -> None:
        with _in_short(SHORT_INFERENCE):  # of stars kept aside
            train(sample, path, SHORT_TRAINING)

    return load_model(made_once("model", make))


@pytest.fixture(scope="session")
def model_folder(trained: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the model that this worker may change."""
    return save_model(trained, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="session")
def star_file(sample: Spectra, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small star table on disk."""
    return write_star_table(sample.take(np.arange(300)), tmp_path_factory.mktemp("stars") / "stars.parquet")


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


def as_double(tree):
    """Turn the float32 leaves of a pytree into float64; call under the fixture `x64`."""

    def double(leaf):
        leaf = np.asarray(leaf)
        return jax.device_put(leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf)

    return jax.tree.map(double, tree)


def inference_toml(config: InferenceConfig) -> str:
    """The settings as `--settings` reads them."""
    given = config.model_dump(exclude_none=True)
    return "[inference]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in given.items())


def with_columns(table: Spectra, **columns) -> Spectra:
    """A copy of a star table with some scalar columns replaced or added."""
    return replace(table, columns={**table.columns, **columns})


def with_other_curve(trained: TrainedModel) -> TrainedModel:
    """Another model: the same but for its extinction curve."""
    forward = replace(trained.forward, ln_curve=trained.forward.ln_curve + 0.1)
    return replace(trained, star_model=replace(trained.star_model, forward=forward))
