"""The documentation is true: its code runs, its tables are those of the schema."""

import importlib.util
import re
from pathlib import Path

import numpy as np

from tests.conftest import run_page
from xpbayes.data.spectra_file import write_star_table
from xpbayes.production.model_file import save_model

ROOT = Path(__file__).resolve().parents[1]


def test_code_of_the_python_page_runs(trained, sample, short_runs, tmp_path, monkeypatch, capsys):
    """As printed, in a folder with a model and real stars; settings that it does not name are small."""
    monkeypatch.chdir(tmp_path)
    save_model(trained, "model")
    write_star_table(sample.take(np.arange(300)), "stars.parquet")
    write_star_table(sample.take(np.arange(300, 1100)), "labelled.parquet")
    run_page(ROOT / "docs" / "python.md")
    printed = capsys.readouterr().out
    assert "<xpbayes model of teff, feh, logg: 64 channels" in printed and "it is in kelvin" in printed
    assert "<Fit of " in printed
    assert (tmp_path / "catalogue.parquet").is_file() and (tmp_path / "mine" / "card.json").is_file()


def test_column_page_is_made_from_the_schema():
    spec = importlib.util.spec_from_file_location("write_columns", ROOT / "scripts" / "write_columns.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text() == module.page(), "run python scripts/write_columns.py"


def test_the_tests_that_the_page_on_trust_names_are_there():
    named = re.findall(r"`(tests/[\w/.]+?)(?:::(\w+))?`", (ROOT / "docs" / "trust.md").read_text())
    assert len(named) > 50
    for file, name in named:
        assert (ROOT / file).exists(), file
        assert not name or f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"
