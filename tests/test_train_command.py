"""`xpbayes train` and `xpbayes card` as a user meets them."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.command_line import run
from xpbayes.config import TrainingConfig
from xpbayes.errors import InputError
from xpbayes.files import locked
from xpbayes.runs.train import LOCK, _near_infrared_law, _take_dropped, train

TINY = """
[training]
validation_fraction = 0.05
calibration_fraction = 0.1
prior_components = 2
batch_size = 64
held_out_stars = 0
model_error = false
[[training.phases]]
update = "both"
stars = "high_quality"
epochs = 1
learning_rate = 1e-6
star_learning_rate = 1e-6
gradient_clip = 1000.0
[[training.phases]]
update = "self_cleaning"
[training.high_quality]
min_parallax_over_error = 3
max_reddening_error = 0.2
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    path = tmp_path_factory.mktemp("settings") / "run.toml"
    path.write_text(TINY)
    return path


def test_train_prints_the_card_beside_the_path(star_file, settings, short_runs, tmp_path):
    out = tmp_path / "m"
    result = run("train", star_file, "--out", out, "--settings", settings, "--resume")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(out)
    assert "Model card" in result.stderr and "check parallax_scale" in result.stderr
    assert sorted(p.name for p in out.iterdir()) == ["card.json", "model.safetensors", "self_cleaning.csv"]
    _tells_who_was_dropped(out, star_file)
    assert "Where it can be trusted" in run("card", out).stdout


def _tells_who_was_dropped(model, stars):
    """Training stars, once each, as many as the card's shares say."""
    card = json.loads((model / "card.json").read_text())
    (phase,) = (p for p in card["phases"] if p["update"] == "self_cleaning")
    head, *lines = (model / "self_cleaning.csv").read_text().splitlines()
    assert head == "source_id,reason" and "dropped" not in phase
    who = [int(line.split(",")[0]) for line in lines]
    assert len(set(who)) == len(who) and set(who) <= set(pq.read_table(stars)["source_id"].to_pylist())
    for reason, share in phase["dropped_by"].items():
        n = sum(reason == "both" or reason in line.split(",")[1] for line in lines)
        assert n == round(share * phase["n_stars"])
    assert who


def test_the_last_self_cleaning_is_told_by_star_and_reason():
    phases = [{"dropped": {"parameters": [0], "fluxes": []}}, {}, {"dropped": {"parameters": [1, 3], "fluxes": [1, 2]}}]
    lines = _take_dropped(phases, np.array([10, 11, 12, 13]))
    assert lines == ["11,parameters and fluxes", "12,fluxes", "13,parameters"] and phases == [{}, {}, {}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "zgr32"), "setting 'training.preset' is 'zgr32'"),
        (
            ("--preset", "zgr23", "--validation-fraction", 0.05),
            "stars is of high quality (strictest: high_quality.min_parallax_over_error",
        ),
        (("--epochs-scale", 0), "epochs_scale"),
    ],
)
def test_mistakes_are_one_sentence(star_file, tmp_path, arguments, message):
    result = run("train", star_file, "--out", tmp_path / "m", *arguments)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("resume", [False, True])
def test_the_second_of_two_runs_at_once_is_refused(tmp_path, resume):
    stars, out = tmp_path / "no stars.parquet", tmp_path / "m"
    with locked(out / LOCK, "busy"):
        with pytest.raises(InputError, match="^[^\n]*m: another run is at work there; wait until it ends[^\n]*$"):
            train(stars, out, resume=resume)
        assert [p.name for p in out.iterdir()] == [LOCK]
    with pytest.raises(InputError, match=r"no stars\.parquet: no such file"):  # the lock has gone, and it goes on
        train(stars, out, resume=resume)


def test_card_of_no_model_is_one_sentence(tmp_path):
    result = run("card", tmp_path)
    assert result.returncode == 2 and "is not a model" in result.stderr


def test_a_table_larger_than_memory_is_worked_on_in_files(star_file, settings, short_runs, tmp_path):
    out = tmp_path / "m"
    many = tmp_path / "many.toml"
    many.write_text(settings.read_text().replace("[training]", "[training]\nstars_in_memory = 100", 1))
    result = run("train", star_file, "--out", out, "--settings", many)
    assert result.returncode == 0, result.stderr
    assert "more than 100: worked on in files" in result.stderr
    assert sorted(p.name for p in out.iterdir()) == ["card.json", "model.safetensors", "self_cleaning.csv"]
    _tells_who_was_dropped(out, star_file)


@pytest.mark.parametrize(
    ("bands", "measured", "expected"),
    [
        (("J", "Ks", "W2"), True, (2, 0, 0.116, False, None)),
        (("J", "Ks", "W1", "W2"), True, (3, 0, 0.116, False, ((2, 3, 0, 1), 0.11, 0.47))),
        (("J", "Ks", "W1", "W2"), False, (1, 0, 0.4, True, None)),
        (("J", "Ks"), True, None),
        (("W2",), False, None),
    ],
)
def test_what_fixes_the_grey_part_of_r(bands, measured, expected):
    """WISE where parallaxes were measured, 2MASS where none was; `zgr23` leaves R free."""
    table = SimpleNamespace(
        channels=SimpleNamespace(names=bands),
        is_measured=lambda name: np.array([measured and name == "parallax", False]),
    )
    law = _near_infrared_law(table, TrainingConfig())
    assert law is None if expected is None else tuple(law) == expected
    assert _near_infrared_law(table, TrainingConfig(preset="zgr23")) is None
    if expected is not None and measured:
        assert _near_infrared_law(table, TrainingConfig(w2_over_j=0.12)) == expected[:2] + (0.12, False, None)


def test_published_laws_are_near_what_fixes_the_grey_part_of_r():
    """Gordon et al. (2023) at R(V) = 3.1, monochromatic, and Wang & Chen (2019), Table 3: within 0.02, as is claimed."""
    import astropy.units as u
    from dust_extinction.parameter_averages import G23

    law = _near_infrared_law(
        SimpleNamespace(
            channels=SimpleNamespace(names=("J", "Ks", "W1", "W2")), is_measured=lambda name: np.array([True])
        ),
        TrainingConfig(),
    )
    gordon = np.asarray(G23(Rv=3.1)([1.235, 2.159, 3.353, 4.603] * u.micron))
    for curve in (gordon, np.array([0.243, 0.078, 0.039, 0.026])):
        assert abs(float(law.ratio_of(curve)) - curve[3] / curve[0]) < 0.02
