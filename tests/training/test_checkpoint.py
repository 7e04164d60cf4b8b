"""Checkpoints: what goes in comes out, and nothing foreign is ever built."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from xpbayes.config import Phase, TrainingConfig
from xpbayes.errors import InputError
from xpbayes.models.prior import LabelPrior
from xpbayes.training.checkpoint import pack, read_checkpoint, tree_checksum, unpack, write_checkpoint

PRIOR = LabelPrior(jnp.zeros(2), jnp.ones((2, 3)), jnp.ones((2, 3, 3)), jnp.asarray(-7.0))
ABOUT = {"stars": "sha256:1", "settings": {"seed": 0, "phases": [{"epochs": 3}]}, "phases": [], "done": 1}


def test_any_tree_of_ours_comes_back():
    tree = {"a": (PRIOR, None, 3, [np.arange(4, dtype=np.int64)]), "b": jnp.asarray([True, False])}
    arrays = {}
    back = unpack(json.loads(json.dumps(pack(tree, arrays))), arrays)
    assert isinstance(back["a"][0], LabelPrior) and back["a"][1:3] == (None, 3)
    assert tree_checksum(back["a"][0]) == tree_checksum(PRIOR) and back["b"].dtype == bool


def test_foreign_classes_are_neither_written_nor_built(tmp_path):
    with pytest.raises(TypeError, match="cannot hold a Path"):
        pack({"a": type("Path", (), {})()}, {})
    for other in ("subprocess:Popen", "xpbayes.files:remove_abandoned", "xpbayes.files:Path", "xpbayes.__main__:main"):
        with pytest.raises(ValueError, match="not a class of this package"):
            unpack({"class": other, "fields": {"folder": {"value": str(tmp_path)}}}, {})


def test_a_change_of_one_bit_changes_the_checksum():
    array = np.arange(8, dtype=np.float32)
    changed = array.copy()
    changed.view(np.uint8)[5] ^= 1
    assert tree_checksum([array]) != tree_checksum([changed])
    assert tree_checksum([array]) != tree_checksum([array.reshape(2, 4)])
    assert tree_checksum([array]) == tree_checksum([array.copy()])


def test_the_first_changed_setting_is_named(tmp_path):
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, PRIOR, ABOUT)
    assert not list(tmp_path.glob("*.tmp"))
    state, about = read_checkpoint(path, ABOUT)
    assert tree_checksum(state) == tree_checksum(PRIOR) and about == ABOUT
    changed = ABOUT | {"settings": {"seed": 0, "phases": [{"epochs": 4}]}}
    with pytest.raises(InputError, match=r"written with phases\[0\].epochs = 3, now it is 4; set it back"):
        read_checkpoint(path, changed)


def test_another_file_is_one_sentence(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "c.safetensors"
    for content in (b"", b"\0" * 100):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not a usable checkpoint"):
            read_checkpoint(path, ABOUT)
    save_file({"a": np.zeros(3)}, path)
    with pytest.raises(InputError, match="is not a usable checkpoint"):
        read_checkpoint(path, ABOUT)


def test_an_unwritable_place_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_checkpoint(tmp_path / "file" / "c.safetensors", PRIOR, ABOUT)


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ({"update": "model", "optimizer": "newton"}, "phases that update stars alone"),
        ({"update": "both", "optimizer": "adam"}, "outside of the batch"),
    ],
)
def test_phases_that_cannot_be_are_refused(phase, message):
    with pytest.raises(ValueError, match=message):
        Phase(**phase)


def test_epochs_scale_leaves_solver_and_steps_of_the_rate_in_proportion():
    phases = [p.scaled(0.25) for p in TrainingConfig(preset="zgr23").phases]
    assert [(p.epochs, p.step_epochs) for p in phases if p.update == "both"] == [(32, 8), (32, 8)]
    assert (phases[5].epochs, phases[5].step_epochs) == (1024, 128)
    assert Phase(update="stars", epochs=8).scaled(0.1).epochs == 8
