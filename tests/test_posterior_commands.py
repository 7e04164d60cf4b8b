"""`sample`, `compare`, `check` and `infer --refine` from the command line, and what they refuse."""

import csv
import sys

import numpy as np
import pytest

from xpbayes.analysis.posterior_file import read_posterior
from xpbayes.cli import main
from xpbayes.data.spectra_file import read_star_table
from xpbayes.inference.sampling.convergence import Diagnostics
from xpbayes.production.table import CHAINS, catalogue_about, read_catalogue, text_column
from xpbayes.runs import compare
from xpbayes.runs.sample import Sampled

SHORT = "[sampling]\ndraws = 200\nmax_rounds = 2\n[inference]\nn_nodes = 256\nn_more_draws = 0\n"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a command in-process; returns exit status, standard output and standard error."""
    (tmp_path / "short.toml").write_text(SHORT)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["xpbayes", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


def test_stars_must_be_named_one_way(run, model_folder, star_file, tmp_path):
    status, _, error = run("sample", model_folder, star_file, "--out", tmp_path / "p.nc")
    assert status == 2 and "--source-id" in error and "--random" in error
    status, _, error = run("sample", model_folder, star_file, "--random", 100_000, "--out", tmp_path / "p.nc")
    assert status == 2 and "ask for fewer" in error
    status, _, error = run("sample", model_folder, star_file, "--source-id", 7, "--out", tmp_path / "p.nc")
    assert status == 2 and "not there" in error
    status, _, error = run("sample", model_folder, star_file, "--random", 2, "--draws", 130, "--out", tmp_path / "p.nc")
    assert status == 2 and "sampling.draws" in error
    assert not (tmp_path / "p.nc").exists()


def test_no_comparison_where_no_chain_has_settled(run, model_folder, star_file, tmp_path, monkeypatch):
    """One sentence that says what to do, and no page: a comparison with nothing would look like agreement."""

    def unsettled(model, table, inference, sampling):
        n, shape = len(table), (len(table), 5)
        nothing = np.zeros(shape)
        known = Diagnostics(nothing + 2, nothing, nothing, np.zeros(n, int), np.zeros(n, bool))
        return Sampled(None, None, None, None, known, (0.0, 0.0))

    monkeypatch.setattr(compare, "draw_posteriors", unsettled)
    arguments = ("compare", model_folder, star_file, "--random", 7, "--out", tmp_path / "compare")
    status, out, error = run(*arguments)
    assert status == 2 and out == "" and not (tmp_path / "compare").exists()
    (line,) = (line for line in error.splitlines() if line.startswith("xpbayes: "))
    assert "the chains of none of 7 stars have settled" in line and "set draws of [sampling] above 500" in line


@pytest.mark.slow
def test_sample_compare_refine_and_check(run, model_folder, star_file, tmp_path):
    """One after the other: they share their compiled programs."""
    settings = ("--settings", tmp_path / "short.toml")
    ids = read_star_table(star_file).source_id[[3, 50]]
    status, out, _ = run(
        "sample",
        model_folder,
        star_file,
        "--source-id",
        ids[0],
        "--source-id",
        ids[1],
        "--out",
        tmp_path / "p.nc",
        *settings,
    )
    assert status == 0 and str(ids[0]) in out
    two = read_posterior(tmp_path / "p.nc")
    assert np.array_equal(two["posterior"]["source_id"], ids)
    assert two["posterior"]["teff"].shape == (4, 200, 2)
    # The same star alone has the same draws.
    run("sample", model_folder, star_file, "--source-id", ids[1], "--out", tmp_path / "one.nc", *settings)
    one = read_posterior(tmp_path / "one.nc")
    for name in ("teff", "feh", "logg", "extinction", "parallax"):
        assert np.array_equal(one["posterior"][name][:, :, 0], two["posterior"][name][:, :, 1])

    status, out, _ = run("compare", model_folder, star_file, "--random", 12, "--out", tmp_path / "compare", *settings)
    assert status == 0 and "mode + Fisher" in out
    page = (tmp_path / "compare" / "report.html").read_text()
    assert "In plain words" in page and page.count("<img") >= 4
    rows = list(csv.DictReader((tmp_path / "compare" / "stars.csv").open()))
    assert len(rows) == 12 and all(float(r["sigma teff NUTS"]) > 0 for r in rows)

    status, *_ = run("infer", model_folder, star_file, "--refine", "--out", tmp_path / "c.parquet", *settings)
    plain, *_ = run("infer", model_folder, star_file, "--out", tmp_path / "d.parquet", *settings)
    assert status == 0 and plain == 0
    refined = read_catalogue(tmp_path / "c.parquet")
    about = catalogue_about(refined)
    before = read_catalogue(tmp_path / "d.parquet")
    by_chains = text_column(refined, "method") == CHAINS
    needed = (refined["k_hat"].to_numpy() > 0.7) | (refined["n_modes"].to_numpy() > 1)
    assert about["settings"]["refine"] and by_chains.any() and not by_chains[~needed].any()
    assert refined.filter(~by_chains)["stellar_params_mean"] == before.filter(~by_chains)["stellar_params_mean"]
    assert refined.filter(by_chains)["stellar_params_mean"] != before.filter(by_chains)["stellar_params_mean"]

    status, out, _ = run(
        "check", model_folder, "--stars", 120, "--nuts", 16, "--like", star_file, "--out", tmp_path / "check", *settings
    )
    assert status == 0 and "chi2 at the truth" in out
    verdicts = list(csv.DictReader((tmp_path / "check" / "verdicts.csv").open()))
    assert {v["method"] for v in verdicts} == {"mode + Fisher", "Laplace", "importance", "NUTS"}
    assert len(verdicts) == 20
