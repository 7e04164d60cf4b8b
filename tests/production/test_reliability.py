"""Classifiers in a model's folder, and what they do to a catalogue. The classifiers are untrained: only the plumbing."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.conftest import QUICK, with_columns
from xpbayes.errors import InputError
from xpbayes.models.reliability import feature_names, initial_nets
from xpbayes.production.model_file import load_model, save_model
from xpbayes.production.reliability import confidence_columns, shifted_features, table_features
from xpbayes.production.table import list_column
from xpbayes.runs.infer import infer
from xpbayes.training.reliability import Estimates, confidences


@pytest.fixture(scope="module")
def with_nets(trained):
    names = feature_names(trained.labels, trained.channels.names)
    n = len(names)
    nets = initial_nets(jax.random.key(0), jnp.zeros(n), 0.1 * jnp.ones(n), jnp.ones(n), ("teff", "logg"), names)
    about = {"targets": ["teff", "logg"], "features": list(names), "features_present": dict.fromkeys(names, 1.0)}
    return replace(trained, confidence=nets, card={**trained.card, "confidence": about})


@pytest.fixture(scope="module")
def folder(with_nets, tmp_path_factory):
    return save_model(with_nets, tmp_path_factory.mktemp("nets") / "model")


@pytest.fixture(scope="module")
def some(sample):
    table = sample.take(np.arange(70))
    flux = table.flux.copy()
    flux[3] = np.nan
    return replace(table, flux=flux)


@pytest.fixture(scope="module")
def catalogue(with_nets, some):
    return infer(with_nets, some, config=QUICK)


def test_the_model_s_own_arrays_stay_as_they_were(trained, with_nets, folder, tmp_path):
    plain = json.loads((save_model(trained, tmp_path / "plain") / "card.json").read_text())
    card = json.loads((folder / "card.json").read_text())
    assert card["arrays_checksum"] == plain["arrays_checksum"]
    assert "confidence" not in plain and not (tmp_path / "plain" / "confidence.safetensors").exists()


def test_round_trip_is_exact(with_nets, folder):
    back = load_model(folder).confidence
    for a, b in zip(jax.tree.leaves(with_nets.confidence), jax.tree.leaves(back), strict=True):
        assert np.array_equal(a, b)
    assert (back.targets, back.features) == (with_nets.confidence.targets, with_nets.confidence.features)


def test_a_model_without_classifiers_leaves_none_behind(trained, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    save_model(trained, copy)
    assert load_model(copy).confidence is None and not (copy / "confidence.safetensors").exists()


def test_loads_without_numpyro_and_scikit_learn(folder):
    code = (
        "import sys; sys.modules['numpyro'] = None; sys.modules['sklearn'] = None\n"
        f"import xpbayes; print(xpbayes.load_model({str(folder)!r}).confidence.targets)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "('teff', 'logg')", run.stderr


@pytest.mark.parametrize(
    ("what", "message"), [("gone", "is missing"), ("changed", "not the file"), ("card", "damaged")]
)
def test_damaged_classifiers_are_one_sentence(what, message, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "confidence.safetensors"
    if what == "gone":
        path.unlink()
    elif what == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    else:
        card = json.loads((copy / "card.json").read_text())
        del card["confidence"]["targets"]
        (copy / "card.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match=message):
        load_model(copy)


def test_classifiers_of_other_features_are_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    card = json.loads((copy / "card.json").read_text())
    card["confidence"]["features"][0] = "ln_something"
    (copy / "card.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match="was trained on 84 features"):
        load_model(copy)


def test_infer_fills_columns_and_flags(catalogue):
    flags = catalogue["quality_flags"].to_numpy()
    for name, bit in (("teff", 1), ("logg", 4)):
        value = catalogue[f"{name}_confidence"].to_numpy()
        assert np.isnan(value[3]) and np.isfinite(np.delete(value, 3)).all()
        assert np.array_equal((flags & bit) > 0, value < 0.5)
    assert catalogue["feh_confidence"].null_count == len(catalogue) and not (flags & 2).any()


def test_other_columns_stay_as_they_were(trained, catalogue, some):
    plain = infer(trained, some, config=QUICK)
    changed = [n for n in plain.column_names if not plain[n].equals(catalogue[n])]
    assert set(changed) <= {"teff_confidence", "logg_confidence", "quality_flags", "zgr23_flags"}
    assert np.array_equal(plain["quality_flags"].to_numpy() & 0xF8, catalogue["quality_flags"].to_numpy() & 0xF8)


def test_training_sees_the_features_that_inference_sees(with_nets, catalogue, some):
    """Confidences recomputed from the finished catalogue are those in it."""
    rows = np.delete(np.arange(len(some)), 3)
    fit = Estimates(
        list_column(catalogue, "stellar_params_est")[rows],
        list_column(catalogue, "stellar_params_err")[rows],
        catalogue["chi2_opt"].to_numpy()[rows],
        catalogue["ln_prior"].to_numpy()[rows],
    )
    again = confidences(with_nets.confidence, table_features(with_nets, some.take(rows), fit))
    assert_allclose(again[:, 0], catalogue["teff_confidence"].to_numpy()[rows], rtol=1e-5)


def test_features_that_training_did_not_have_are_mentioned(with_nets, sample, said):
    infer(with_nets, sample.take(np.arange(20)), config=QUICK)
    assert sum("features are not there as they were in training" in line for line in said) == 1


def test_the_same_features_need_no_mention(sample):
    features = np.array([[1.0, np.nan], [2.0, 3.0]])
    assert shifted_features({"a": 1.0, "b": 0.6}, ("a", "b"), features) == []
    assert "b (0% of the stars then, 100% now)" in shifted_features({"b": 0.0}, ("b",), np.ones((3, 1)))[0]


def test_a_measured_parallax_is_a_feature(with_nets, sample):
    table = with_columns(sample.take(np.arange(4)), parallax=np.full(4, 2.0), parallax_error=np.full(4, 0.1))
    fit = Estimates(np.tile([5.0, 0, 3, 0.1, 1.5], (4, 1)), np.ones((4, 5)), np.ones(4), np.ones(4))
    at = with_nets.confidence.features.index("ln_dplx2")
    assert_allclose(table_features(with_nets, table, fit)[:, at], np.log(5.0), rtol=1e-5)


def test_a_model_without_classifiers_is_one_sentence(trained, some):
    with pytest.raises(InputError, match="has no confidence classifiers"):
        confidence_columns(trained, some, {})
