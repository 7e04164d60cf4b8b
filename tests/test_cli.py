"""The command line as a user meets it: every mistake one sentence on standard error and exit status 2."""

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer.main

from tests.command_line import refused, run
from tests.conftest import QUICK, inference_toml
from xpbayes.cli import app


def started(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The same as a process of its own: for what only a process has."""
    return subprocess.run(
        [sys.executable, "-m", "xpbayes", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_help_names_every_verb():
    text = run("--help").stdout
    for verb in ("demo", "fetch", "train", "infer", "verify", "export", "report", "predict"):
        assert verb in text


def verbs(group, *path):
    """Every command, by the words that name it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, *path, name)
        else:
            yield (*path, name), command


@pytest.mark.parametrize(("words", "command"), verbs(typer.main.get_command(app)), ids=str)
def test_help_shows_every_word(words, command, monkeypatch):
    """Units and table names stand in brackets, which rich takes for markup."""
    monkeypatch.setenv("COLUMNS", "300")
    shown = run(*words, "--help").stdout
    helps = [param.help for param in command.params if getattr(param, "help", None)]
    for text in (command.help, *helps):
        assert text.replace("\\[", "[") in shown, text


def test_settings_are_named_in_help(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert "tables [training], [inference] and [sampling]" in run("train", "--help").stdout


def test_version():
    assert started("--version").stdout.strip() == "0.1.0"


def test_a_mistake_ends_the_process_with_status_2_and_one_sentence(tmp_path):
    result = started("card", tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("xpbayes: ") and len(result.stderr.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_output_that_cannot_be_written_is_one_sentence():
    command = [sys.executable, "-m", "xpbayes", "--version"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 2
    said = f"xpbayes: standard output: cannot be read or written ({os.strerror(errno.ENOSPC)})\n"
    assert result.stderr == said
    closed = subprocess.run(["sh", "-c", f"{shlex.join(command)} >&-"], capture_output=True, text=True, check=False)
    assert closed.returncode == 0 and closed.stderr == ""


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom xpbayes.cli import app\nfrom typer.testing import CliRunner\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "heavy = {'jax', 'numpyro', 'gaiaxpy', 'arviz', 'astropy', 'matplotlib', 'pandas', 'sklearn', 'pyarrow', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(("flag", "doubted"), [("--no-doubt-parallax", False), ("--doubt-parallax", True), ("", True)])
def test_parallaxes_are_doubted_as_the_flag_says(flag, doubted, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("xpbayes.runs.infer.infer", lambda *given, **_: seen.append(given[3]))
    monkeypatch.setattr("xpbayes.runs.fit.fit", lambda *given: seen.append(given[4]) or [])
    assert run("infer", "stars.parquet", "--out", tmp_path / "c.csv", *filter(None, [flag])).returncode == 0
    assert run("fit", tmp_path, "x.csv", "--source-id", 1, "--out", tmp_path, *filter(None, [flag])).returncode == 0
    assert [config.doubt_parallax for config in seen] == [doubted] * 2


def test_predict_prints_a_table_and_draws(model_folder, tmp_path):
    figure = tmp_path / "sun.png"
    result = run("predict", model_folder, "--teff", 5800, "--feh", 0, "--logg", 4.4, "--extinction", 0.1,
                 "--parallax", 1, "--plot", figure)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "xp392" in result.stdout and "Ks" in result.stdout
    assert figure.stat().st_size > 5000


def test_predict_in_kilokelvin_is_refused(model_folder):
    assert "in kelvin" in refused("predict", model_folder, "--teff", 5.8, "--feh", 0, "--logg", 4.4)


def test_predict_without_a_label_is_refused(model_folder):
    assert "'logg' is missing" in refused("predict", model_folder, "--teff", 5800, "--feh", 0)


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(inference_toml(QUICK))
    return path


def test_infer_then_report(model_folder, star_file, settings, tmp_path):
    catalogue = tmp_path / "out" / "catalogue.parquet"
    result = run(
        "infer",
        model_folder,
        star_file,
        "--out",
        catalogue,
        "--no-parallax",
        "--only",
        "held-out",
        "--settings",
        settings,
    )
    assert result.returncode == 0, result.stderr
    assert "stars/s" in result.stderr and result.stdout.strip() == str(catalogue)
    page = tmp_path / "report.html"
    result = run("report", model_folder, catalogue, star_file, "--out", page)
    assert result.returncode == 0, result.stderr
    assert "No parallax was used" in page.read_text()


@pytest.fixture
def damaged(star_file, tmp_path):
    """Star tables with one thing wrong each."""

    def make(kind: str) -> Path:
        path = tmp_path / f"{kind}.parquet"
        table = pq.read_table(star_file)
        if kind == "truncated":
            path.write_bytes(star_file.read_bytes()[:9000])
            return path
        if kind == "column":
            table = table.drop_columns(["flux"])
        if kind == "unit":
            i = table.schema.get_field_index("flux")
            table = table.cast(table.schema.set(i, table.schema.field(i).with_metadata({b"unit": b"Jy"})))
        if kind == "duplicate":
            table = pa.concat_tables([table, table.slice(0, 1)])
        if kind == "empty":
            table = table.slice(0, 0)
        if kind == "nan":
            i = table.schema.get_field_index("flux")
            n = table.schema.field(i).type.list_size
            values = pa.array(np.full(len(table) * n, np.nan, np.float32))
            table = table.set_column(i, table.schema.field(i), pa.FixedSizeListArray.from_arrays(values, n))
        pq.write_table(table, path)
        return path

    return make


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "not a complete Parquet file"),
        ("column", "first: flux"),
        ("unit", "is in 'Jy', expected '1e-18 W m-2 nm-1'"),
        ("duplicate", "occur more than once"),
        ("empty", "has no stars"),
        ("nan", "can be used"),
    ],
)
def test_bad_star_tables(kind, message, damaged, model_folder, tmp_path):
    assert message in refused("infer", model_folder, damaged(kind), "--out", tmp_path / "c.parquet", "-q")
    assert not (tmp_path / "c.parquet").exists()


def test_negative_errors_get_rows_with_a_reason(star_file, model_folder, settings, tmp_path):
    """A bad star never stops a batch."""
    table = pq.read_table(star_file)
    i = table.schema.get_field_index("band_inverse_error")
    n = table.schema.field(i).type.list_size
    values = table.column(i).combine_chunks().flatten().to_numpy().copy()
    values[:n] = -1
    column = pa.FixedSizeListArray.from_arrays(pa.array(values), n)
    bad = tmp_path / "negative.parquet"
    pq.write_table(table.set_column(i, table.schema.field(i), column), bad)
    result = run("infer", model_folder, bad, "--out", tmp_path / "c.parquet", "--settings", settings)
    assert result.returncode == 0, result.stderr
    assert "not solved: 1 stars, flux error is negative" in result.stderr
    catalogue = pq.read_table(tmp_path / "c.parquet")
    assert len(catalogue) == len(table)
    assert catalogue["status"][0].as_py() == "flux error is negative"


def test_a_model_for_other_channels(model_folder, star_file, tmp_path):
    import json

    table = pq.read_table(star_file)
    about = json.loads(table.schema.metadata[b"xpbayes"])
    about["channels"]["names"][1] = "xp401"
    other = tmp_path / "other.parquet"
    pq.write_table(table.replace_schema_metadata({"xpbayes": json.dumps(about)}), other)
    sentence = refused("infer", model_folder, other, "--out", tmp_path / "c.parquet", "-q")
    assert "1 missing (first: xp402), 1 unknown (first: xp401)" in sentence


def test_an_unwritable_output(model_folder, star_file, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused("infer", model_folder, star_file, "--out", tmp_path / "file" / "c.parquet")


def test_not_a_model(star_file, tmp_path):
    assert "is not a model" in refused("infer", tmp_path, star_file, "--out", tmp_path / "c.parquet")


def test_an_unknown_setting_names_the_nearest(star_file, tmp_path):
    settings = tmp_path / "run.toml"
    settings.write_text("[training]\nvalidation_fracton = 0.1\n")
    sentence = refused("train", star_file, "--out", tmp_path / "m", "--settings", settings)
    assert "did you mean 'validation_fraction'" in sentence


def test_an_unknown_flag_names_the_nearest(star_file, tmp_path):
    result = run("train", star_file, "--out", tmp_path / "m", "--sed", 3)
    assert result.returncode == 2 and "--seed" in result.stderr


def test_too_few_stars_to_train(star_file, tmp_path):
    sentence = refused("train", star_file, "--out", tmp_path / "m", "--validation-fraction", 0.9, "-q")
    assert "training stars are left" in sentence
