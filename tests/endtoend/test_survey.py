"""A simulated survey in official formats, through every door, by the command line's own verbs."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.test_cli import refused, run
from xpbayes.archive.star_table import join_star_tables, read_star_tables
from xpbayes.catalogue.table import list_column, read_catalogue
from xpbayes.errors import InputError

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


def test_inference_from_star_tables_and_straight_from_the_survey_agree(survey, prepared, model_folder, tmp_path):
    catalogues = []
    for name, source in (("tables", prepared), ("stream", survey / "survey.toml")):
        result = run("infer", model_folder, source, "--out", tmp_path / f"{name}.parquet", "--n-starts", 1)
        assert result.returncode == 0, result.stderr
        catalogues.append(read_catalogue(tmp_path / f"{name}.parquet"))
    (tables, about), (stream, _) = catalogues
    assert about["input"]["n_stars"] == N == len(stream)
    order = np.argsort(tables["gdr3_source_id"].to_numpy()), np.argsort(stream["gdr3_source_id"].to_numpy())
    first, second = (list_column(t, "stellar_params_est")[o] for t, o in zip((tables, stream), order, strict=True))
    assert np.nanmax(np.abs(first - second)) < 1e-3


def test_truth_is_recovered(survey, prepared, model_folder, tmp_path):
    """Pulls of 400 stars: 68 % intervals of every parameter cover between 58 and 80 % of true values (4 sigma)."""
    result = run("infer", model_folder, prepared, "--out", tmp_path / "c.parquet")
    assert result.returncode == 0, result.stderr
    catalogue, _ = read_catalogue(tmp_path / "c.parquet")
    truth = pq.read_table(survey / "truth.parquet").to_pandas().set_index("source_id")
    truth = truth.loc[catalogue["gdr3_source_id"].to_numpy()]
    columns = ["teff", "feh", "logg", "extinction", "parallax"]
    pull = (list_column(catalogue, "stellar_params_est") - truth[columns].to_numpy()) / list_column(
        catalogue, "stellar_params_err"
    )
    covered = np.mean(np.abs(pull) < 1, axis=0)
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


def test_a_star_in_two_tables_is_refused(sample):
    with pytest.raises(InputError, match="2 source_ids occur in more than one table"):
        join_star_tables([sample.take(np.arange(5)), sample.take(np.arange(3, 8))], ["a", "b"])


def test_joining_undoes_splitting(sample):
    joined = join_star_tables([sample.take(np.arange(700)), sample.take(np.arange(700, len(sample)))], ["a", "b"])
    assert np.array_equal(joined.flux, sample.flux) and np.array_equal(joined.source_id, sample.source_id)
    assert joined.cuts[0].left == 2 * sample.cuts[0].left  # each part carries its own history
