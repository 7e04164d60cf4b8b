import pytest

from xpbayes.config import DustMapConfig, Settings, TrainingConfig, parse_settings
from xpbayes.errors import InputError


def test_defaults_need_no_file():
    assert Settings.read(None).training == TrainingConfig()


def test_flags_override_the_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[training]\nseed = 3\nbatch_size = 64\n")
    settings = Settings.read(path, training={"seed": 5, "split_seed": None})
    assert (settings.training.seed, settings.training.batch_size, settings.training.split_seed) == (5, 64, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nsede = 1\n", r"unknown setting 'training.sede' \(did you mean 'seed'\?\)"),
        ("[trainig]\nseed = 1\n", r"unknown setting 'trainig' \(did you mean 'training'\?\)"),
        ("[[training.phases]]\nupdate = 'model'\nepoch = 3\n", r"did you mean 'epochs'\?"),
        ("[training]\nvalidation_fraction = 1.5\n", "validation_fraction.*less than 1"),
        ("[[training.phases]]\nepochs = 3\n", "setting 'training.phases.0.update' is missing"),
        ("[training\n", "not valid TOML"),
        *((f"[inference]\nn_draws = {n}\n", "powers of two") for n in (1, 3, 513)),
        ("[inference]\nn_draws = 1e22\n", "inference.n_draws"),
        *((f"[training]\nepochs_scale = {n}\n", "training.epochs_scale.*finite") for n in ("nan", "inf", "-inf")),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        Settings.read(path)
    assert "\n" not in str(caught.value) and "run.toml" in str(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        Settings.read(tmp_path / "none.toml")


def test_label_error_floor_extends_to_further_labels():
    assert TrainingConfig().floor_for(4) == (0.02, 0.02, 0.02, 0.02)


def test_settings_that_do_not_fit_together_are_named():
    with pytest.raises(InputError, match=r"^run: setting 'training.phases.0': optimizer 'newton' is for phases that"):
        parse_settings(Settings, {"training": {"phases": [{"update": "model", "optimizer": "newton"}]}}, "run")
    with pytest.raises(InputError, match=r"^the dust map: sky_edges must rise from a distance of 0 or more$"):
        parse_settings(DustMapConfig, {"sky_edges": ["1"]}, "the dust map")


def test_the_network_is_as_wide_as_its_stars_can_teach():
    """The paper's preset and a size of one's own do not ask how many there are."""
    default = TrainingConfig()
    assert [default.hidden_for(n) for n in (9_999, 10_000)] == [(32, 32, 32), (64, 64, 64)]
    assert TrainingConfig(preset="zgr23").hidden_for(10**6) == (32, 32, 32)
    assert TrainingConfig(hidden=(16,)).hidden_for(10**6) == (16,)


def test_wider_networks_learn_more_slowly():
    model, stars = (next(p for p in TrainingConfig().phases if p.update == update) for update in ("model", "stars"))
    assert [model.for_width(n).learning_rate / model.learning_rate for n in (16, 32, 64)] == [1.0, 1.0, 0.5]
    assert stars.for_width(64) == stars
