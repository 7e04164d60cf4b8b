"""Every verb refuses an output that is one of its inputs, by its own name or through a link, before it reads anything."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.simulation.test_survey import small_model
from xpbayes.analysis.dust_map import build
from xpbayes.analysis.pages import confidence as confidence_page
from xpbayes.analysis.pages import gallery, star_page
from xpbayes.analysis.pages import posterior_comparison as comparison_page
from xpbayes.archive.gaia_archive import RECORD
from xpbayes.archive.prepare import MANIFEST as PREPARED
from xpbayes.archive.prepare import QUARANTINE, prepare
from xpbayes.cli import catalogue as catalogue_verbs
from xpbayes.cli import model as model_verbs
from xpbayes.cli.options import read_settings
from xpbayes.config import Recipe
from xpbayes.errors import InputError
from xpbayes.production.beside import CONFIDENCE, TRANSFER, WEIGHT_FACTOR
from xpbayes.production.manifest import MANIFEST
from xpbayes.production.model_file import ARRAYS, CARD
from xpbayes.runs import check as check_run
from xpbayes.runs.analyse import analyse
from xpbayes.runs.check import check
from xpbayes.runs.compare import compare
from xpbayes.runs.confidence import confidence
from xpbayes.runs.dust_map import dust_map
from xpbayes.runs.export import export
from xpbayes.runs.fit import fit
from xpbayes.runs.infer import infer
from xpbayes.runs.infer_parts import infer_parts
from xpbayes.runs.report import report
from xpbayes.runs.sample import sample
from xpbayes.runs.train import CHECKPOINT, train
from xpbayes.runs.transfer import transfer
from xpbayes.runs.uncertainty import uncertainty
from xpbayes.simulation.files import GAIA_FILE
from xpbayes.simulation.survey import TRUTH, simulate

M, S = Path("model"), Path("stars")
INTO_FILES: dict[str, Callable[[str, Path], object]] = {
    "infer": lambda given, out: infer("model", given, out),
    "sample": lambda given, out: sample("model", given, out, n_random=1),
    "sample --settings": lambda given, out: model_verbs.sample(M, S, out, settings=Path(given)),
    "infer --settings": lambda given, out: catalogue_verbs.infer([str(S)], out, settings=Path(given)),
    "predict --plot": lambda given, out: model_verbs.predict(SimpleNamespace(args=[]), Path(given).parent, plot=out),
    "uncertainty --figure": lambda given, out: model_verbs.uncertainty(M, Path(given), out),
    "report, catalogue": lambda given, out: report("model", given, "stars", out),
    "report, stars": lambda given, out: report("model", "catalogue", given, out),
    "report, draws": lambda given, out: report("model", "catalogue", "stars", out, draws=given),
    **{f"export {f}": lambda given, out, f=f: export(given, out, f) for f in ("hats", "votable", "fits")},
}
"""Verbs that write a file."""


def fetched(given: str, out: Path) -> object:
    """The verb that reads identifiers and writes what the archive answers."""
    return catalogue_verbs.fetch_spectra(Path(given), out)


INTO_FOLDERS: dict[str, tuple[str, Callable[[str, Path], object]]] = {
    "infer, parts": (MANIFEST, lambda given, out: infer_parts("model", [given], out)),
    **{f"train, {n}": (n, train) for n in (CARD, ARRAYS, CHECKPOINT)},
    "infer, quarantine": ("c.quarantine.csv", lambda given, out: infer("model", given, out / "c.parquet")),
    "confidence, classifiers": (CONFIDENCE, lambda given, out: confidence("model", given, "stars", out)),
    "transfer, its own": (TRANSFER, lambda given, out: transfer("model", ["stars", given], out)),
    "fit, figure": ("7.png", lambda given, out: fit("model", given, [7], out)),
    "confidence, catalogue": (ARRAYS, lambda given, out: confidence("model", given, "stars", out)),
    "confidence, stars": (CARD, lambda given, out: confidence("model", "catalogue", given, out)),
    "confidence --figures": (confidence_page.NUMBERS, lambda given, out: confidence("m", "c", given, figures=out)),
    "uncertainty": (WEIGHT_FACTOR, lambda given, out: uncertainty("model", given, out)),
    "transfer, pairs": (CARD, lambda given, out: transfer("model", ["stars", given], out)),
    "transfer --crosswalk": (ARRAYS, lambda given, out: transfer("model", ["stars"], out, given)),
    "fit": (star_page.NUMBERS, lambda given, out: fit("model", given, [1], out)),
    **{f"check, {n}": (n, lambda given, out: check("model", given, out)) for n in check_run.FILES},
    **{f"compare, {n}": (n, lambda given, out: compare("model", given, out)) for n in comparison_page.FILES},
    **{f"dustmap, {n}": (n, dust_map) for n in (build.SKY, build.PROFILE, build.BIRDS_EYE, build.ABOUT)},
    **{
        f"analyse, {n}": (n, lambda given, out: analyse(None, out, {"catalogue": Path(given)}))
        for n in (gallery.INDEX, gallery.RECORD)
    },
    **{f"fetch spectra, {n}": (n, fetched) for n in (RECORD, "XP_CONTINUOUS-000000.csv")},
    "infer --settings, parts": (MANIFEST, INTO_FILES["infer --settings"]),
    "train --settings": (ARRAYS, lambda given, out: model_verbs.train(S, out, settings=Path(given))),
    "fit --settings": ("7.png", lambda given, out: model_verbs.fit(M, S, [7], out, settings=Path(given))),
    "check --settings": (check_run.FILES[0], lambda given, out: model_verbs.check(M, out, settings=Path(given))),
    "compare --settings": (
        comparison_page.FILES[0],
        lambda given, out: model_verbs.compare(M, S, out, settings=Path(given)),
    ),
}
"""Verbs that write files into a folder: one of these, and the verb."""
LINKS = ("itself", "symlink", "hard link", "folder link")


def refused(tmp_path: Path, name: str, how: str, run: Callable[[str, Path], object], *, folder: bool) -> None:
    """Run a verb of which an output is an input."""
    out = tmp_path / "out"
    out.mkdir()
    given = out / name
    if how in ("symlink", "hard link"):
        original = tmp_path / "input"
        original.write_bytes(b"# precious")
        given.symlink_to(original) if how == "symlink" else given.hardlink_to(original)
        given = original
    else:
        given.write_bytes(b"# precious")
    if how == "folder link":
        (tmp_path / "other").symlink_to(out)
        given = tmp_path / "other" / name
    with pytest.raises(InputError, match=f"^[^\n]*{name}: is an input of this run [^\n]*choose another output$"):
        run(str(given), out if folder else out / name)
    assert given.read_bytes() == b"# precious" and [p.name for p in out.iterdir()] == [name]


@pytest.mark.parametrize("how", LINKS)
@pytest.mark.parametrize("name", [TRUTH, GAIA_FILE])
def test_simulate_does_not_replace_what_it_imitates(tmp_path, name, how):
    def run(given: str, out: Path) -> object:
        return simulate(small_model(), 1, out, Recipe(like=given))

    refused(tmp_path, name, how, run, folder=True)


@pytest.mark.parametrize("name", [PREPARED, QUARANTINE, "part-0000.parquet"])
@pytest.mark.parametrize("linked", [False, True])
def test_prepare_does_not_replace_what_it_reads(tmp_path, name, linked):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "link").symlink_to(out / name)
    (out / name).write_bytes(b"# precious")
    xp = "link" if linked else f"out/{name}"
    (tmp_path / "part.csv").write_text("source_id\n")
    (tmp_path / "survey.toml").write_text(f'select = "all"\nbands = []\n[xp]\nfiles = ["part.csv", "{xp}"]\n')
    with pytest.raises(
        InputError, match=f"^[^\n]*{name}: is an input that [^\n]*|^[^\n]*already holds star tables[^\n]*$"
    ):
        prepare(tmp_path / "survey.toml", out)
    assert (out / name).read_bytes() == b"# precious"


@pytest.mark.parametrize("how", LINKS)
@pytest.mark.parametrize("verb", INTO_FILES)
def test_a_file_that_is_an_input(tmp_path, verb, how):
    refused(tmp_path, "a.parquet", how, INTO_FILES[verb], folder=False)


@pytest.mark.parametrize("how", LINKS)
@pytest.mark.parametrize("verb", INTO_FOLDERS)
def test_a_folder_that_holds_an_input(tmp_path, verb, how):
    name, run = INTO_FOLDERS[verb]
    refused(tmp_path, name, how, run, folder=True)


def test_prepare_does_not_replace_its_survey(tmp_path):
    (tmp_path / "x.csv").write_text("source_id\n")
    survey = tmp_path / PREPARED
    survey.write_text('bands = []\n[xp]\nfiles = ["x.csv"]\n')
    with pytest.raises(InputError, match=f"^[^\n]*{PREPARED}: is an input that [^\n]*$"):
        prepare(survey, tmp_path)
    assert survey.read_text().startswith("bands")


def test_settings_may_lie_beside_what_is_written(tmp_path):
    (tmp_path / "settings.toml").write_text("[inference]\nn_draws = 64\n")
    assert read_settings(tmp_path / "settings.toml", tmp_path).inference.n_draws == 64
