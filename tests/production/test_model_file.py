import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from xpbayes.errors import InputError
from xpbayes.production.model_file import load_model, save_model


def test_round_trip_is_exact(trained, model_folder):
    back = load_model(model_folder)
    for a, b in zip(
        jax.tree.leaves((trained.forward, trained.prior, trained.model_error)),
        jax.tree.leaves((back.forward, back.prior, back.model_error)),
        strict=True,
    ):
        assert np.shape(a) == np.shape(b) and np.array_equal(np.asarray(a), np.asarray(b))
    assert back.channels == trained.channels and back.labels == trained.labels
    assert back.card["n_training"] == trained.card["n_training"]


def test_a_model_without_model_error(trained, tmp_path):
    from dataclasses import replace

    without = replace(trained, star_model=trained.star_model.without_error)
    assert load_model(save_model(without, tmp_path / "m")).model_error is None


def test_card_holds_the_training_record(model_folder):
    card = json.loads((model_folder / "card.json").read_text())
    assert {"phases", "versions", "seed", "input", "split", "cuts", "settings", "parallax_used"} <= set(card)
    assert card["phases"][0]["loss_per_star"]


def test_loads_without_numpyro(model_folder):
    code = (
        "import sys; sys.modules['numpyro'] = None\n"
        f"import xpbayes; m = xpbayes.load_model({str(model_folder)!r})\n"
        "print(len(xpbayes.predict_flux(m, teff=5800, feh=0, logg=4.4).flux))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "64", run.stderr


def _copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_not_a_model(tmp_path):
    with pytest.raises(InputError, match="is not a model"):
        load_model(tmp_path)


def test_a_damaged_card(model_folder, tmp_path):
    copy = _copy(model_folder, tmp_path)
    (copy / "card.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        load_model(copy)


def test_exchanged_weights_are_noticed(model_folder, tmp_path):
    copy = _copy(model_folder, tmp_path)
    raw = bytearray((copy / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (copy / "model.safetensors").write_bytes(raw)
    with pytest.raises(InputError, match="not the file that the card describes"):
        load_model(copy)


def test_a_newer_model_is_refused(model_folder, tmp_path):
    copy = _copy(model_folder, tmp_path)
    card = json.loads((copy / "card.json").read_text()) | {"version": 99}
    (copy / "card.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match="newer than this xpbayes reads"):
        load_model(copy)
