"""Every command of README.md and of the pages' shell blocks, in order, as a reader would type it, on real stars.

What takes minutes, or a server, is parsed by the command line and checked to be given files that are there by then; its
outputs are then taken for made. The rest runs, with settings that are short where the page does not name them.
"""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
import typer.main

from tests.command_line import run
from xpbayes.archive import apogee
from xpbayes.archive.label_surveys import LabelSurvey
from xpbayes.archive.labels import read_labels
from xpbayes.archive.survey_config import check_survey
from xpbayes.cli import app
from xpbayes.production import engine
from xpbayes.production.bundled import BUNDLED

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = {"fetch bundled", "fetch gaia", "infer", "report", "predict", "fit", "survey", "prepare", "verify", "export", "card",
       "doctor"}  # fmt: skip
"""What runs on README.md; on other pages, whose commands are README's, all is checked as what takes minutes is."""
GIVEN = ("model", "stars.parquet", "survey.toml", "catalogue.parquet", "catalogue", "other.parquet", "stars", "demo",
         "XP.csv", "2mass.vot", "gaia.fits", "dr3_stars.parquet", "dr4_stars.parquet",
         "dr3_neighbourhood.parquet", "ids.txt", "mine.parquet", "mine.toml")  # fmt: skip
"""What a page about one subject may take for granted: products of README's commands, and files of the reader's."""


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command of a page's shell blocks."""
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.partition(" > ")[0], comments=True)
            if words and words[0] == "xpbayes":
                yield words[1:]


def parsed(words: list[str]) -> tuple[str, dict]:
    """A command's name and what its options and arguments say; a mistake in them is the test's."""
    command, words, name = typer.main.get_command(app), list(words), []
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        name.append(words.pop(0))
        command = command.commands[name[-1]]
    return " ".join(name), command.make_context(" ".join(name), words).params


def files(value: object) -> list[str]:
    return [v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, str | Path)]


def is_there(folder: Path, path: Path) -> bool:
    """Whether a file is there, or a folder that a command was said to fill with such files."""
    made = [folder / parent for parent in (path, *path.parents)][:-1]
    return (
        str(path) == "."
        or str(path) in BUNDLED
        or (path.is_absolute() and path.exists())  # the same by its folder
        or bool(list(folder.glob(str(path))))
        or any(m.is_dir() and not list(m.iterdir()) for m in made)
    )


def pretend(words: list[str], folder: Path) -> None:
    """Check that a command is given what there is, and make what it would."""
    name, given = parsed(words)
    made = {"out", "figure", "figures", "plot"}
    if name == "analyse":
        del given["survey"]  # a survey's name
    inputs = {"model", "stars", "catalogue", "spectra", "survey", "settings", "draws", "files", "gaia", "two_mass", "unwise",
              "run", "pairs", "crosswalk", "ids"}  # fmt: skip
    for key, value in given.items():
        for path in files(value) if key in inputs and name != "check" else []:
            assert is_there(folder, Path(path)), f"{shlex.join(words)}: {path} is not there by then"
    for key in made & given.keys():
        for path in files(given[key]):
            target = folder / str(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.write_text("") if target.suffix else target.mkdir()


@pytest.fixture
def here(sample, model_folder, tmp_path, monkeypatch, short_runs):
    """An empty folder, in which training gives the tests' model and the bundled sample is small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(apogee, "bundled_stars", lambda: sample.take(np.arange(300)))
    monkeypatch.setattr(engine, "run_local", lambda work, items, processes=None: ((i, work(i)) for i in items))
    return SimpleNamespace(folder=tmp_path, model=model_folder)


def test_the_commands_of_the_readme_run_in_order(here):
    folder = here.folder
    for words in commands(ROOT / "README.md"):
        name, given = parsed(words)
        if name == "train":
            shutil.copytree(here.model, given["out"])
        elif name == "simulate":
            words[words.index("--stars") + 1] = "40"
            assert run(*words).returncode == 0
        elif name in RUN and "--model-uncertainty" not in words:
            result = run(*words)
            assert result.returncode == 0, f"{shlex.join(words)}: {result.stderr}"
            if name == "survey":
                (folder / "survey.toml").write_text(result.stdout)
        else:
            pretend(words, folder)
    assert (folder / "mine.vot").is_file() and (folder / "catalogue.fits").is_file()
    assert (folder / "report.html").is_file() and (folder / "fits" / "1222926864488848640.png").is_file()


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_commands_of_a_page_fit_together(page, tmp_path):
    for name in GIVEN:
        (tmp_path / name).write_text("") if Path(name).suffix else (tmp_path / name).mkdir()
    for words in commands(page):
        pretend([word.replace("$SLURM_ARRAY_TASK_ID", "7") for word in words], tmp_path)


def test_the_example_of_own_labels_is_read(sample, tmp_path):
    """The table of docs/survey.md as it is printed, and its settings for other names."""
    text = (ROOT / "docs" / "survey.md").read_text()
    (table,) = re.findall(r"```text\n(source_id,teff.*?)```", text, re.DOTALL)
    (tmp_path / "mine.csv").write_text(table)
    survey = LabelSurvey(survey="custom", files=("mine.csv",))
    stars = read_labels(survey, [tmp_path / "mine.csv"], ("teff", "feh", "logg"), None)
    np.testing.assert_allclose([stars.value[0, 0], stars.error[0, 0]], [4.786, 0.061])


def test_settings_of_the_pages_are_settings():
    import tomllib

    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "survey.md").read_text(), re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        data = tomllib.loads(block)
        flags = data.get("labels", {}).get("flags") if isinstance(data.get("labels"), dict) else None
        if flags is not None:  # a table within [[labels]]
            data = {"labels": [{"survey": "custom", "files": ["a.csv"], "flags": flags}]}
        check_survey({"xp": {"files": ["xp.csv"]}, **data}, "docs/survey.md")
