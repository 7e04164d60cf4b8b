"""Training: reproducible, downhill, and able to find a known truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from xpbayes.config import Phase, TrainingConfig
from xpbayes.inference.training import initial_parameters, run_model_phase, run_star_phase, train

TINY = TrainingConfig(
    phases=(
        Phase(update="model", epochs=4, learning_rate=3e-3),
        Phase(update="stars", epochs=4),
        Phase(update="model_error", epochs=2),
        Phase(update="model", epochs=3, learning_rate=1e-3),
    ),
    batch_size=64,
    prior_components=3,
)


@pytest.fixture(scope="module")
def stars(sample):
    labels = ("teff", "feh", "logg")
    use = np.isfinite(sample.labels(labels)[0]).all(axis=1) & np.isfinite(sample.column("spectroscopic_parallax"))
    part = sample.take(np.flatnonzero(use)[:600])
    return part.stars(labels, spectroscopic_parallax=True, label_error_floor=(0.02, 0.02, 0.02)), part.channels.wavelengths


@pytest.fixture(scope="module")
def lines():
    return []


@pytest.fixture(scope="module")
def tiny(stars, lines):
    return train(*stars, TINY, lines.append)


def test_same_seed_same_result(stars, tiny):
    first, second = tiny, train(*stars, TINY)
    for a, b in zip(jax.tree.leaves(first.model), jax.tree.leaves(second.model), strict=True):
        assert_array_equal(np.asarray(a), np.asarray(b))
    assert_array_equal(np.asarray(first.parameters), np.asarray(second.parameters))


def test_another_seed_is_another_network(stars, tiny):
    other = train(*stars, TINY.model_copy(update={"seed": 1, "phases": TINY.phases[:1]}))
    assert not np.array_equal(np.asarray(other.model.weights[0]), np.asarray(tiny.model.weights[0]))


def test_record_tells_what_happened(tiny, lines):
    record = tiny.record
    assert [p["update"] for p in record.phases] == ["model", "stars", "model_error", "model"]
    assert len(record.phases[0]["loss_per_star"]) == 4 and len(lines) == 4
    assert record.phases[0]["loss_per_star"][-1] < record.phases[0]["loss_per_star"][0]


def test_model_error_can_be_switched_off(stars):
    result = train(*stars, TINY.model_copy(update={"model_error": False}))
    assert result.model_error is None
    assert [p["update"] for p in result.record.phases] == ["model", "stars", "model"]


def test_a_model_phase_leaves_the_stars_and_a_star_phase_the_model(stars, tiny):
    batch = jax.tree.map(jnp.asarray, stars[0])
    start = initial_parameters(batch)
    trained = tiny
    before = jax.tree.map(np.array, trained.model)
    moved, converged, _ = run_star_phase(trained.model, batch, start, Phase(update="stars", epochs=40))
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, np.asarray(b)), before, trained.model))
    assert not np.array_equal(np.asarray(moved), np.asarray(start)) and converged > 0.8
    kept = np.asarray(moved).copy()
    run_model_phase(trained.model, batch, moved, Phase(update="model"), TINY, jax.random.key(0))
    assert_array_equal(np.asarray(moved), kept)


def test_star_phase_lowers_every_stars_objective(stars, tiny):
    from xpbayes.models.objective import objective

    batch = jax.tree.map(jnp.asarray, stars[0])
    trained = tiny
    start = initial_parameters(batch)
    moved, _, _ = run_star_phase(trained.model, batch, start, Phase(update="stars", epochs=6))
    value = jax.jit(jax.vmap(lambda s, u: objective(trained.model, None, s, u)))
    before, after = np.asarray(value(batch, start)), np.asarray(value(batch, moved))
    assert np.all(after <= before + 1e-3 * np.abs(before))
