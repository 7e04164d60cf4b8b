"""What readers are told to type, typed: the code of pages and of the notebook, and every command of their shell blocks.

Each page has a folder with what it may take for granted. Settings are short where the page does not name them, numbers of
stars are small, one rough model serves all, and Gaia's archive is a server on loopback. What does not run is in `NOT_RUN`,
each with its reason. All in one file: they share their compiled programs. What takes long is marked `pages`, and run by
`make test-pages` and CI.
"""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tests.archive.test_tap import QUICK as SOON
from tests.archive.test_tap import archive, schema_of  # noqa: F401 - a fixture
from tests.command_line import run
from tests.conftest import run_page
from tests.instrument.stub import stub
from tests.workshop import bundled_in_short, furnish, furnish_two_releases
from xpbayes.api.model import Model
from xpbayes.api.spectra import Spectra
from xpbayes.archive import apogee, gaia_archive
from xpbayes.archive.label_surveys import LabelSurvey
from xpbayes.archive.labels import read_labels
from xpbayes.archive.survey_config import check_survey
from xpbayes.data.spectra_file import write_star_table
from xpbayes.instrument.bases import registered
from xpbayes.production import bundled as bundled_models
from xpbayes.production import engine
from xpbayes.release import DR4
from xpbayes.runs import star as runs_star

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOK = ROOT / "docs" / "first_hour.ipynb"
NOT_RUN = {
    "README.md: confidence ": "30 bad estimates of held-out stars are needed; tests/training/test_reliability.py",
    "README.md: sample ": "as posterior.md's",
    "README.md: compare ": "many stars say something; tests/test_posterior_commands.py, with -m slow",
    "README.md: check ": "the same",
    "README.md: uncertainty ": "a quarter of a minute of compilation; tests/test_model_uncertainty.py",
    "README.md: infer model stars.parquet --model-uncertainty ": "needs it",
    "confidence.md: confidence ": "as README's",
    "dr4.md: infer ": "stars of a survey without bands are refused; tests/instrument/test_transfer.py",
    "extinction_curve.md: dustmap ": "xi is needed, which 300 stars do not give; tests/analysis/dust_map/test_curve_map.py",
    "posterior.md: sample model stars.parquet --random ": "as the one before it",
    "posterior.md: compare ": "as README's",
    "posterior.md: check ": "as README's",
    "posterior.md: uncertainty ": "as README's",
    "posterior.md: infer model stars.parquet --model-uncertainty ": "as README's",
    "report.md: report ": "as README's; single stars and draws in tests/analysis/pages/test_report.py",
    "report.md: sample ": "as posterior.md's",
    "second_sources.md: infer ": "a minute of compilation; tests/inference/test_second_source.py",
    "tutorial.md: report ": "as README's",
}
"""Beginnings of commands that are read but not run, and why."""
FEW = {"--stars": "60", "--random": "1", "--region": "80,0,0.4", "--last": "119"}
"""Sizes in the place of those that the pages name."""
FIGURES = ["--only", "kiel", "--only", "curve"]
"""Of `analyse` where it is to draw all; tests/analysis/pages/test_gallery.py draws them."""


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command of a page's shell blocks; `> FILE` stays."""
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "xpbayes":
                yield words[1:]


@pytest.fixture(scope="session")
def workshop(bundled, model_folder, tmp_path_factory):
    """Made once; every page has a copy."""
    folder = tmp_path_factory.mktemp("workshop") / "all"
    furnish(folder, model_folder, bundled)
    return folder


@pytest.fixture(scope="session")
def package_models(model_folder, tmp_path_factory):
    """The folder of the package's models, in which the tests' own stands for each: one set of programs."""
    folder = tmp_path_factory.mktemp("bundled")
    for name, about in bundled_models.BUNDLED.items():
        shutil.copytree(model_folder, folder / name)
        card = json.loads((folder / name / "card.json").read_text())
        card |= {"name": name, "good_for": about.good_for, "not_for": about.not_for, "licence": about.licence}
        (folder / name / "card.json").write_text(json.dumps(card))
    return folder


@pytest.fixture
def here(bundled, model_folder, package_models, archive, tmp_path, monkeypatch, short_runs):  # noqa: F811
    """An empty folder, in which training gives the tests' model and the archive is near."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    stars = bundled_in_short(bundled)
    monkeypatch.setattr(apogee, "bundled_stars", lambda: stars)
    monkeypatch.setattr(bundled_models, "FOLDER", package_models)
    monkeypatch.setattr(engine, "run_local", lambda work, items, processes=None: ((i, work(i)) for i in items))
    tap, data = {"url": f"{archive.url}/tap", "patience": SOON}, {"url": f"{archive.url}/data", "patience": SOON}
    both = {"tap_url": f"{archive.url}/tap", "data_url": f"{archive.url}/data", "patience": SOON}
    for function, where in (
        (gaia_archive.fetch_tables, tap),
        (gaia_archive.probe, tap),
        (gaia_archive.fetch_spectra, data),
        (runs_star.star, both),
    ):
        monkeypatch.setattr(function, "__kwdefaults__", {**function.__kwdefaults__, **where})
    one = stars.take(np.arange(1)).replace(source_id=np.array([4295806720]))
    lines = [
        f"{one.source_id[0]},{wavelength},{1e-18 * flux:.9e},{1e-18 * sigma:.9e}"
        for wavelength, flux, sigma in zip(
            one.channels.wavelengths[:61], one.flux[0], one.flux_error()[0], strict=False
        )
    ]
    archive.csv = ("source_id,wavelength,flux,flux_error\n" + "\n".join(lines) + "\n").encode()
    archive.stars = one.source_id
    return SimpleNamespace(folder=folder, model=model_folder, archive=archive, stars=bundled)


def follow(page: Path, here: SimpleNamespace) -> None:
    """Run the commands of a page, one after the other."""
    for words in commands(page):
        said = shlex.join(words)
        if any(f"{page.name}: {said}".startswith(start) for start in NOT_RUN):
            continue
        out = None
        if ">" in words:
            words, (_, out) = words[: words.index(">")], words[words.index(">") :]
        if words[0] == "analyse" and "--only" not in words:
            words += FIGURES
        for option, few in FEW.items():
            if option in words and words[words.index(option) + 1][:1].isdigit():
                words[words.index(option) + 1] = few
        words = [re.sub(r"\$SLURM_ARRAY_TASK_ID/\d+", "0/1", word).replace("/shared/", "shared/") for word in words]
        if words[0] == "train":
            shutil.copytree(here.model, words[words.index("--out") + 1], dirs_exist_ok=True)
            continue
        result = run(*words)
        assert result.returncode == 0, f"{said}: {result.stderr}"
        if out:
            Path(out).write_text(result.stdout)


@pytest.mark.pages
def test_code_of_the_python_page_runs(here, sample, capsys):
    """As printed, in a folder with a model and real stars."""
    shutil.copytree(here.model, "model")
    write_star_table(sample.take(np.arange(250)), "stars.parquet")
    write_star_table(sample.take(np.arange(250, 1050)), "labelled.parquet")
    run_page(ROOT / "docs" / "python.md")
    printed = capsys.readouterr().out
    assert "<xpbayes model of teff, feh, logg: 64 channels" in printed and "it is in kelvin" in printed
    assert "<Fit of " in printed
    assert (here.folder / "catalogue.parquet").is_file() and (here.folder / "mine" / "card.json").is_file()


@pytest.mark.pages
def test_code_of_the_tutorial_runs(sample, short_runs, tmp_path, monkeypatch, capsys):
    """As printed, but on every fifth bundled star; settings that it does not name are small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(apogee, "bundled_stars", lambda: sample)
    run_page(ROOT / "docs" / "tutorial.md")
    printed = capsys.readouterr().out
    assert "2000 stars, 64 channels" in printed and "in 68 % intervals" in printed
    assert (tmp_path / "figures" / "kiel.png").is_file() and (tmp_path / "catalogue.parquet").is_file()


@pytest.mark.pages
@pytest.mark.filterwarnings("ignore")
def test_code_of_the_recipes_runs(here, sample):
    write_star_table(sample.take(np.arange(250)), "stars.parquet")
    run_page(ROOT / "docs" / "recipes.md")
    assert (here.folder / "ten.fits").is_file() and (here.folder / "corner.png").stat().st_size > 10_000


@pytest.mark.pages
@pytest.mark.filterwarnings("ignore")
def test_code_of_the_notebook_runs(here, bundled, monkeypatch, capsys):
    """As printed, on every eighth bundled star and those that it names."""
    named = np.flatnonzero(
        (bundled.source_id == 798262866449579008)
        | (abs(bundled.column("dec") + 47.48) < 0.7) & (abs(bundled.column("ra") - 201.7) < 1.0)
    )
    stars = bundled.take(np.union1d(np.arange(0, len(bundled), 8), named))
    monkeypatch.setattr(apogee, "bundled_stars", lambda: stars)
    monkeypatch.setattr(Model, "sample", partialmethod(in_short, Model.sample))
    plt.switch_backend("agg")
    names = run_page(NOTEBOOK, {"_forward": "", "min_stars=5": "min_stars=2"})  # the rough model has no second stage
    assert len(names["ten"]) and len(names["members"]) > 20 and names["draws"]["posterior"]["teff"].size
    assert "passed:" in capsys.readouterr().out and (here.folder / "catalogue.parquet").is_file()


def in_short(model: Model, sample: Callable, spectra: Spectra, **given: object) -> object:
    """`Model.sample` with as many chains and draws as the other pages have: one program for all."""
    return sample(model, spectra, parallax=given["parallax"])


def test_what_the_notebook_shows_is_stored_and_says_nothing_of_a_machine():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output["output_type"] != "error" for cell in cells for output in cell["outputs"])
    text = NOTEBOOK.read_text()
    assert not re.search(r"(?<![\w.])/(root|home|tmp|work|usr|opt)/", text) and len(text) < 1_000_000
    assert text.count('"image/png"') >= 4


@pytest.mark.pages
def test_the_commands_of_the_readme_run_in_order(here):
    follow(ROOT / "README.md", here)
    for made in ("mine.vot", "catalogue.fits", "report.html", "fits/1222926864488848640.png"):
        assert (here.folder / made).is_file()


@pytest.mark.pages
@pytest.mark.parametrize("page", [p for p in PAGES[1:] if list(commands(p))], ids=lambda page: page.name)
@pytest.mark.filterwarnings("ignore")
def test_commands_of_a_page_run_in_order(page, here, workshop):
    shutil.copytree(workshop, here.folder, dirs_exist_ok=True)
    if page.name in ("production.md", "recipes.md"):  # they begin a catalogue
        shutil.rmtree(here.folder / "catalogue")
    if page.name == "recipes.md":
        (here.folder / "mine.toml").write_text(re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)[0])
    with ExitStack() as stack:
        if page.name == "dr4.md":
            furnish_two_releases(here.folder, here.stars)
            stack.enter_context(registered(stub()))
            here.archive.schema = schema_of(DR4)
            here.archive.products = {"MEAN_SPECTRUM_XP"}
        follow(page, here)


def test_what_is_not_run_is_on_a_page():
    every = [f"{page.name}: {shlex.join(words)}" for page in PAGES for words in commands(page)]
    for start, reason in NOT_RUN.items():
        assert reason and any(command.startswith(start) for command in every), start
        for file in re.findall(r"tests/[\w/.]+\.py", reason):
            assert (ROOT / file).is_file(), file


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
