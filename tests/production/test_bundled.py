"""The models that come with the package."""

import json
from pathlib import Path

import numpy as np
import pytest

import xpbayes
from tests.command_line import run
from xpbayes.errors import InputError
from xpbayes.files import file_checksum
from xpbayes.production.bundled import (
    BUNDLED,
    DEFAULT_MODEL,
    check_figures,
    is_model,
    model_folder,
    split_model,
)
from xpbayes.runs.inputs import check_writable


@pytest.fixture(scope="module")
def model():
    return xpbayes.load()


@pytest.mark.parametrize("about", BUNDLED.values(), ids=BUNDLED)
def test_card_arrays_and_figures_are_as_promised(about):
    card = json.loads((about.folder / "card.json").read_text())
    assert card["arrays_checksum"] == file_checksum(about.folder / "model.safetensors")
    assert card["second_stage"]["arrays_checksum"] == file_checksum(about.folder / "second_stage.safetensors")
    assert not check_figures(card, about)
    assert card["licence"] == about.licence
    assert card["name"] == about.name
    assert sum(path.stat().st_size for path in about.folder.iterdir()) < 4e6


def test_worse_figures_are_found():
    rows = [
        {"label": name, "group": "all", "scatter": 1.01 * most} for name, most in BUNDLED[DEFAULT_MODEL].scatter.items()
    ]
    assert len(check_figures({"held_out": {"refined": rows}}, BUNDLED[DEFAULT_MODEL])) == 3
    assert len(check_figures({"held_out": {}}, BUNDLED[DEFAULT_MODEL])) == 3


def test_it_knows_all_channels_and_the_sun(model):
    assert len(model.channels) == 64
    assert model.second_stage is not None
    sun = model.predict(teff=5772, feh=0.0, logg=4.44, parallax=10.0)
    ks = float(sun.flux.sel(channel="Ks").item())
    # The Sun has M_Ks = 3.27 (Willmer 2018), 8.27 at 100 pc; Ks = 0 is 4.283e-13 W m-2 nm-1 (Cohen et al. 2003).
    assert np.isclose(-2.5 * np.log10(ks / 4.283e5), 8.27, atol=0.15)
    assert float(model.card["held_out"]["n"]) > 6000


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_folder(DEFAULT_MODEL) == BUNDLED[DEFAULT_MODEL].folder
    Path(DEFAULT_MODEL).mkdir()
    assert model_folder(DEFAULT_MODEL) == Path(DEFAULT_MODEL)
    assert not is_model(DEFAULT_MODEL)  # it holds none


def test_a_name_that_is_nearly_right_is_told():
    with pytest.raises(InputError, match="did you mean 'apogee-dr17'"):
        model_folder("apogee-dr16")


def test_a_model_may_be_named_before_files(said):
    own = str(BUNDLED[DEFAULT_MODEL].folder)
    for first in (own, DEFAULT_MODEL):
        assert split_model([first, "a.csv", "b.csv"]) == (Path(own), ["a.csv", "b.csv"])
    assert not said
    assert split_model(["a.csv"]) == (Path(own), ["a.csv"])
    assert "not for hot stars" in said[0]
    with pytest.raises(InputError, match="name the files of stars after it"):
        split_model([DEFAULT_MODEL])


def test_the_package_s_own_is_not_changed():
    for path in (BUNDLED[DEFAULT_MODEL].folder, BUNDLED[DEFAULT_MODEL].folder / "catalogue.parquet"):
        with pytest.raises(InputError, match="stays as it is"):
            check_writable(path)


def test_models_are_listed():
    listed = run("models")
    assert listed.returncode == 0
    assert f"{DEFAULT_MODEL} (default)" in listed.stdout
    assert BUNDLED[DEFAULT_MODEL].licence in listed.stdout
