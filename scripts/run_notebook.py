"""Run docs/first_hour.ipynb from top to bottom in an empty folder and keep what it shows: `make notebook`.

What depends on when and where it ran (times, paths, versions) is left out, so that the file changes only where answers do.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "first_hour.ipynb"


def main() -> None:
    """Run, clean, write."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm, of a Jupyter without widgets
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=900, resources={"metadata": {"path": folder}}, record_timing=False).execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.validate(notebook)
    nbformat.write(notebook, NOTEBOOK)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                sys.exit(f"a cell wrote to standard error: {output.text}")
            if folder in str(output) or str(Path.home()) in str(output):
                sys.exit(f"a cell shows a path of this machine:\n{cell.source}")


if __name__ == "__main__":
    main()
