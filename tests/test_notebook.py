"""The notebook of the first hour: its code runs, and what it shows is stored in it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from xpbayes.archive import apogee

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "first_hour.ipynb"
DOUBTFUL = 1095334484320289280
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.filterwarnings("ignore")
def test_the_code_of_the_notebook_runs(bundled, short_runs, tmp_path, monkeypatch, capsys):
    """As printed, on every eighth bundled star and those that it names; settings that it does not name are small."""
    import matplotlib

    named = np.flatnonzero((bundled.source_id == DOUBTFUL) | (bundled.column("dec") + 47.48 < 0.7)
                           & (bundled.column("dec") + 47.48 > -0.7) & (abs(bundled.column("ra") - 201.7) < 1.0))  # fmt: skip
    stars = bundled.take(np.union1d(np.arange(0, len(bundled), 8), named))
    monkeypatch.setattr(apogee, "bundled_stars", lambda: stars)
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    namespace: dict = {}
    for i, cell in enumerate(CELLS):
        code = "".join(cell["source"]).replace("chains=4, draws=300", "chains=2, draws=100")
        exec(compile(code, f"cell {i}", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "look like dwarfs" in printed and "passed:" in printed
    assert abs(np.median(namespace["members"].parallax) - 0.184) < 0.04  # the cluster's
    assert (tmp_path / "catalogue.parquet").is_file()


def test_what_the_notebook_shows_is_stored_and_says_nothing_of_a_machine():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    assert all(output["output_type"] != "error" for cell in CELLS for output in cell["outputs"])
    text = NOTEBOOK.read_text()
    assert not re.search(r"(?<![\w.])/(root|home|tmp|work|usr|opt)/", text) and len(text) < 1_000_000
    assert text.count('"image/png"') >= 4
