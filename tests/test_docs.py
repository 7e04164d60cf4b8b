"""The documentation is true: its tables are those of the schema, the tests that it names are there."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


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
