"""A simulated survey in official formats, through every door, by the command line's own verbs."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.command_line import refused, run
from tests.conftest import QUICK, SHORT_TRAINING, inference_toml
from xpbayes.data.join import rows_of
from xpbayes.data.spectra import join_star_tables
from xpbayes.data.spectra_file import read_star_tables
from xpbayes.errors import InputError
from xpbayes.production.table import catalogue_about, list_column, read_catalogue
from xpbayes.training.training_set import training_set

N = 400


@pytest.fixture(scope="module")
def survey(model_folder, tmp_path_factory):
    """400 stars drawn from the trained model, with missing bands and a missing side here and there."""
    folder = tmp_path_factory.mktemp("survey") / "survey"
    result = run("simulate", model_folder, "--stars", N, "--out", folder, "--missing-band", 0.1, "--missing-side", 0.02)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def prepared(survey, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "stars"
    result = run("prepare", survey / "survey.toml", "--out", out)
    assert result.returncode == 0, result.stderr
    return out


def test_prepare_gives_star_tables_with_the_models_channels(prepared, trained):
    table = read_star_tables(prepared)
    assert len(table) == N and table.channels == trained.channels


def test_fluxes_are_the_generators(survey, prepared):
    """Every channel of every star, those with one side missing included: float32 precision of the star's peak."""
    table = read_star_tables(prepared)
    truth = pq.read_table(survey / "truth.parquet")
    row = {int(s): i for i, s in enumerate(truth["source_id"].to_numpy())}
    observed = list_column(truth, "flux_observed")[[row[int(s)] for s in table.source_id]]
    present = table.channel_present() & np.isfinite(observed)
    peak = np.nanmax(np.where(present, np.abs(observed), np.nan), axis=1, keepdims=True)
    assert not truth["has_bp"].to_numpy(zero_copy_only=False).all()
    assert np.max((np.abs(table.flux - observed) / peak)[present]) < 1e-7


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    path = tmp_path_factory.mktemp("settings") / "run.toml"
    path.write_text(inference_toml(QUICK.model_copy(update={"use_parallax": True, "n_draws": 256, "calibrate": False})))
    return path


@pytest.fixture(scope="module")
def catalogue(prepared, model_folder, settings):
    """What is inferred from the star tables."""
    out = settings.with_name("tables.parquet")
    result = run("infer", model_folder, prepared, "--out", out, "--settings", settings)
    assert result.returncode == 0, result.stderr
    return read_catalogue(out)


@pytest.mark.thorough
def test_inference_from_star_tables_and_straight_from_the_survey_agree(
    survey, catalogue, model_folder, settings, tmp_path
):
    out = tmp_path / "stream.parquet"
    result = run("infer", model_folder, survey / "survey.toml", "--out", out, "--settings", settings)
    assert result.returncode == 0, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"{N} rows of spectra read, 0 quarantined; ") and f"2MASS {N} of {N} rows used" in last
    tables, about, stream = catalogue, catalogue_about(catalogue), read_catalogue(out)
    assert about["input"]["n_stars"] == N == len(stream)
    order = np.argsort(tables["gdr3_source_id"].to_numpy()), np.argsort(stream["gdr3_source_id"].to_numpy())
    first, second = (list_column(t, "stellar_params_est")[o] for t, o in zip((tables, stream), order, strict=True))
    assert np.nanmax(np.abs(first - second)) < 1e-3


def test_a_survey_toml_that_is_written_from_the_files_trains(survey, prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(survey)
    tables = sorted(str(path) for path in Path().glob("*.csv*"))
    written = run("survey", "xp", *tables)
    assert written.returncode == 0, written.stderr
    assert "lamost.csv: labels of lamost_afgk; hot_payne has the same columns" in written.stderr
    Path("written.toml").write_text(written.stdout)
    result = run("prepare", "written.toml", "--out", tmp_path / "stars")
    assert result.returncode == 0, result.stderr
    table, expected = read_star_tables(tmp_path / "stars"), read_star_tables(prepared)
    expected = expected.take(rows_of(table.source_id, expected.source_id))
    for name in (*table.label_names, "parallax", "reddening"):
        np.testing.assert_array_equal(table.column(name), expected.column(name))
    assert len(training_set(table, SHORT_TRAINING, "stars").stars) >= 200


def test_truth_is_recovered(survey, catalogue):
    """400 stars: 68 % intervals of every parameter cover between 58 and 80 % of true values (4 sigma).

    Without the calibration: it corrects the model for real stars, and these are the model's own.
    """
    rows = catalogue
    truth = pq.read_table(survey / "truth.parquet").to_pandas().set_index("source_id")
    truth = truth.loc[rows["gdr3_source_id"].to_numpy()]
    columns = ["teff", "feh", "logg", "extinction", "parallax"]
    true = truth[columns].to_numpy()
    low, high = (list_column(rows, f"stellar_params_{name}") for name in ("p16", "p84"))
    covered = np.mean((low < true) & (true < high), axis=0)
    assert np.all((covered > 0.58) & (covered < 0.80)), covered


def test_print_adql_sends_nothing():
    result = run("fetch", "gaia", "--print-adql", "--chunks", 2, "--table", "two_mass")
    assert result.returncode == 0 and result.stdout.count("SELECT") == 2


def test_fetch_gaia_without_a_folder_is_refused():
    assert "needs --out DIR" in refused("fetch", "gaia")


def test_a_misspelt_survey_key_names_the_nearest(tmp_path):
    (tmp_path / "survey.toml").write_text("[xp]\nfiles = ['a.csv']\n[gaia]\nfile = ['b.csv']\n")
    assert "did you mean 'files'" in refused("prepare", tmp_path / "survey.toml", "--out", tmp_path / "out")


def test_an_empty_folder_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="holds no star table"):
        read_star_tables(tmp_path)


@pytest.mark.parametrize("verb", [("train",), ("adapt", "apogee-dr17")])
def test_what_must_be_prepared_first_is_said(verb, tmp_path):
    (tmp_path / "xp.csv").write_text("source_id,flux\n1,2\n")
    (tmp_path / "survey.toml").write_text(f"[xp]\nfiles = ['{tmp_path / 'xp.csv'}']\n")
    for name in ("xp.csv", "survey.toml"):
        sentence = refused(*verb, tmp_path / name, "--out", tmp_path / "model")
        assert f"{name}: is no star table (.parquet)" in sentence and "as 'xpbayes prepare' makes them" in sentence


def test_a_star_in_two_tables_is_refused(sample):
    with pytest.raises(InputError, match="2 source_ids occur in more than one table"):
        join_star_tables([sample.take(np.arange(5)), sample.take(np.arange(3, 8))], ["a", "b"])


def test_joining_undoes_splitting(sample):
    joined = join_star_tables([sample.take(np.arange(700)), sample.take(np.arange(700, len(sample)))], ["a", "b"])
    assert np.array_equal(joined.flux, sample.flux) and np.array_equal(joined.source_id, sample.source_id)
    assert joined.cuts[0].left == 2 * sample.cuts[0].left  # each part carries its own history
