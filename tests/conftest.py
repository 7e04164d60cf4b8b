"""Fixtures: real stars, a small trained model, float64. Everything is seeded."""

import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import numpy as np
import pytest

from xpbayes.archive.star_table import StarTable
from xpbayes.config import Phase, TrainingConfig
from xpbayes.modelfile import TrainedModel

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"

SHORT_PHASES = (
    Phase(update="model", epochs=30, learning_rate=4e-3, final_rate=0.2, robust_scale=660.0),
    Phase(update="stars", epochs=8),
    Phase(update="model_error", epochs=5),
    Phase(update="model", epochs=30, learning_rate=3e-3, final_rate=0.02, robust_scale=660.0),
    Phase(update="stars", epochs=8),
    Phase(update="model_error", epochs=6),
)
SHORT_TRAINING = TrainingConfig(phases=SHORT_PHASES, batch_size=128, prior_components=8, held_out_stars=0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the shared real data (../shared/data) are not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def bundled() -> StarTable:
    """The bundled sample, 10,000 real stars."""
    from xpbayes.archive.apogee import bundled_stars

    return bundled_stars()


@pytest.fixture(scope="session")
def sample(bundled: StarTable) -> StarTable:
    """Every fifth bundled star: 2,000 real stars."""
    return bundled.take(np.arange(0, len(bundled), 5))


@pytest.fixture(scope="session")
def trained(sample: StarTable) -> TrainedModel:
    """A model trained briefly on the sample: real, but rough."""
    from xpbayes.pipeline import train

    return train(sample, config=SHORT_TRAINING)


@pytest.fixture(scope="session")
def model_folder(trained: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from xpbayes.modelfile import save_model

    return save_model(trained, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="session")
def star_file(sample: StarTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small star table on disk."""
    from xpbayes.archive.star_table import write_star_table

    return write_star_table(sample.take(np.arange(300)), tmp_path_factory.mktemp("stars") / "stars.parquet")


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


def as_double(tree):
    """Turn the float32 leaves of a pytree into float64; call under the fixture `x64`."""
    import jax.numpy as jnp

    def double(leaf):
        leaf = np.asarray(leaf)
        return jnp.asarray(leaf, jnp.float64) if leaf.dtype == np.float32 else jnp.asarray(leaf)

    return jax.tree.map(double, tree)


def with_columns(table: StarTable, **columns) -> StarTable:
    """A copy of a star table with some scalar columns replaced or added."""
    return replace(table, columns={**table.columns, **columns})
