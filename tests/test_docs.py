"""The documentation is true: its code runs, its tables are those of the schema."""

import importlib.util
import re
from pathlib import Path

import xpbayes
from tests.conftest import QUICK
from xpbayes.production.model_file import load_model, save_model

ROOT = Path(__file__).resolve().parents[1]


def test_code_of_the_python_page_runs(trained, sample, tmp_path, monkeypatch, capsys):
    """As printed, but on every fifth star, with the model of the tests in place of training, and a short inference."""
    from xpbayes.runs import fetch, train

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetch, "bundled_stars", lambda: sample)
    monkeypatch.setattr(train, "train", lambda stars, out, **options: load_model(save_model(trained, out)))
    monkeypatch.setattr(xpbayes, "InferenceConfig", lambda **options: QUICK)
    namespace: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL):
        exec(compile(block, "docs/python.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "xp392 392 nm" in printed and "it is in kelvin" in printed
    assert (tmp_path / "catalogue.parquet").is_file() and xpbayes.load_model(tmp_path / "model").labels


def test_column_page_is_made_from_the_schema():
    spec = importlib.util.spec_from_file_location("write_columns", ROOT / "scripts" / "write_columns.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text() == module.page(), "run python scripts/write_columns.py"
