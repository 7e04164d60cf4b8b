"""CPU seconds that a user waits for first answers, each in a process of its own, with nothing compiled before.

Run from the project's root:  python benchmarks/cold_start.py MODEL STARS
MODEL is a model's folder or name, STARS a star table; its first ten stars are solved.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

TARGETS = {"import xpbayes": 0.3, "predict": 3, "ten stars": 15, "one star, fit with figure": 20, "first part": 20}
"""[CPU s] at most (issue 24.4)."""
FIRST_PART = """
import sys, time
import numpy as np
from xpbayes.config import InferenceConfig
from xpbayes.data.spectra_file import read_star_table
from xpbayes.production.model_file import load_model
from xpbayes.runs.infer_parts import solve_batch
model, stars = load_model(sys.argv[1]), read_star_table(sys.argv[2])
stars = stars.take(np.arange(256) % len(stars))
begun = time.process_time()
solve_batch(model, None, stars, InferenceConfig())
first, begun = time.process_time() - begun, time.process_time()
solve_batch(model, None, stars, InferenceConfig())
print(first - (time.process_time() - begun))
"""
"""Of a worker of a big run: the first batch less what the batch itself takes."""


def cpu_seconds(*command: str) -> tuple[float, str]:
    """CPU seconds of a process and its children, system included, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, run.stdout


def main() -> None:
    """Measure all and print a table."""
    import numpy as np

    from xpbayes.data.spectra_file import read_star_table, write_star_table

    model, stars = sys.argv[1:3]
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    found = read_star_table(stars).take(np.arange(10))
    labels = ("--teff", "5800", "--feh", "0", "--logg", "4.4")
    with tempfile.TemporaryDirectory() as scratch:
        ten = str(write_star_table(found, Path(scratch) / "ten.parquet"))
        commands = {
            "import xpbayes": ("-c", "import xpbayes"),
            "predict": ("-m", "xpbayes", "predict", model, *labels),
            "ten stars": ("-m", "xpbayes", "infer", model, ten, "--out", f"{scratch}/catalogue.parquet"),
            "one star, fit with figure": (
                *("-m", "xpbayes", "fit", model, ten),
                *("--source-id", str(found.source_id[0]), "--out", f"{scratch}/fit"),
            ),
            "first part": ("-c", FIRST_PART, model, ten),
        }
        for name, command in commands.items():
            seconds, said = cpu_seconds(*command)
            seconds = float(said) if name == "first part" else seconds
            print(f"{name:28s}{seconds:7.2f} CPU s   target {TARGETS[name]:g}", flush=True)


if __name__ == "__main__":
    main()
