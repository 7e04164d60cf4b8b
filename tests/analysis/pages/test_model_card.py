"""The model card: measured figures, printed as a page, and readable where NumPyro is not."""

import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from tests.conftest import QUICK
from xpbayes.analysis.pages.model_card import held_out_entry, model_card, print_card
from xpbayes.checks.training_checks import channel_residuals, held_out_skill
from xpbayes.runs.infer import infer
from xpbayes.runs.inputs import choose_stars

FLOOR = (0.02, 0.02, 0.02)


@pytest.fixture(scope="module")
def measured(trained, sample):
    """Held-out stars of a healthy model."""
    labelled = sample.take(np.isfinite(sample.labels(trained.labels)[0]).all(axis=1))
    held = choose_stars(trained, labelled, "held-out")
    held = held.take(np.arange(128))
    catalogue = infer(trained, held, config=QUICK.model_copy(update={"use_parallax": True}))
    return held_out_entry(trained, catalogue, held, FLOOR, use_parallax=True)


def _page(model):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        print_card(model, console)
        return console.export_text()


def test_held_out_stars_are_measured(measured, trained):
    assert {a["label"] for a in measured["accuracy"]} == set(trained.labels)
    assert measured["n"] > 100 and measured["with_parallax"] == 0
    assert held_out_skill(measured["skill"]).passed
    assert channel_residuals(trained.channels, measured["channel_residual"]).passed
    assert 0 <= measured["extrapolated"] < 0.2


def test_the_page_says_what_a_user_needs(trained, measured):
    from dataclasses import replace

    page = _page(replace(trained, card=trained.card | {"held_out": measured}))
    for words in (
        "What it was trained on", "spectroscopic, derived from the labels", "Where it can be trusted",
        "extrapolation score", "How good it is", "from flux alone", "Its extinction curve R", "xp392", "Its limits",
        "No self-cleaning", "Checks", "parallax_scale", "passed",
    ):  # fmt: skip
        assert words in page, words
    assert f"{measured['n']:,} held-out stars" in page


def test_what_was_not_measured_is_said(trained):
    assert "Not measured" in _page(trained)
    from dataclasses import replace

    old = replace(trained, card={"settings": {}}, support=None)
    titles = [s.title for s in model_card(old)]
    assert titles[0] == "What it was trained on" and "None were made." in _page(old)


def test_the_card_prints_without_numpyro(model_folder):
    code = "import sys; sys.modules['numpyro'] = None\nfrom xpbayes.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "card", str(model_folder)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "Where it can be trusted" in run.stdout
