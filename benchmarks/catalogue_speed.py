"""Speed, memory and disk of a production run, from official files or star tables to a verified catalogue and exports.

    python benchmarks/catalogue_speed.py MODEL --stars 10000 [--million] [--tables STARS] [--settings run.toml] [--exports]

Without --tables, a survey is simulated in official formats, and the run starts at its csv.gz. With --tables, the rows of
that star table are repeated under new source_ids until there are enough. Three runs, unless --settings says how: both
covariances and flags alone; with unbiased summaries from the first draws; and with the rounds of more. Each starts from
nothing, compilation included; beside it stands the rate of the parts that came after the first. Prints stars/s, the peak
memory of all processes together (proportional set size, sampled twice a second), and bytes per million stars of
everything written. --million does all of it once more with 10^6 stars: 20 GB of scratch, and hours, most of them for
simulating.
Acceptance on 2 cores: 1,500 and 600 stars/s, less than 3 GB at 10^4 and at 10^6 stars alike.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np


class Memory:
    """Peak memory of a process and all its descendants; pages that they share are counted once."""

    def __init__(self, process: int) -> None:
        self.peak = 0
        self._process, self._over = process, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self.peak = max(self.peak, sum(map(proportional_set_size, descendants(self._process))))


def descendants(process: int) -> list[int]:
    """A process and everything that it started."""
    found = [process]
    for pid in found:
        try:
            found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        except OSError:
            continue
    return found


def proportional_set_size(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def run(*command: object) -> tuple[float, int]:
    """Seconds and peak memory [bytes] of one command of xpbayes."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "xpbayes", *map(str, command)], stdout=subprocess.DEVNULL)
    with Memory(process.pid) as memory:
        if process.wait() != 0:
            sys.exit(f"xpbayes {command[0]} ended with status {process.returncode}")
    return time.perf_counter() - begun, memory.peak


def size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def repeat_stars(source: Path, n: int, folder: Path) -> Path:
    """Star tables of 16,384 stars each with the rows of another, under new source_ids."""
    from dataclasses import replace

    from xpbayes.data.spectra_file import read_star_table, write_star_table

    stars = read_star_table(source)
    for number, start in enumerate(range(0, n, 16_384)):
        rows = np.arange(start, min(start + 16_384, n))
        part = replace(stars.take(rows % len(stars)), source_id=rows + 1_000_000_000)
        write_star_table(part, folder / f"stars-{number:04d}.parquet")
    return folder


def measure(arguments: argparse.Namespace, n_stars: int, scratch: Path) -> None:
    """Everything with so many stars."""
    from xpbayes.production.manifest import read_manifest

    millions = n_stars / 1e6
    if arguments.tables:
        inputs = repeat_stars(arguments.tables, n_stars, scratch / "stars")
    else:
        seconds, peak = run("simulate", arguments.model, "--stars", n_stars, "--out", scratch / "survey", "-q")
        inputs = scratch / "survey" / "survey.toml"
        print(f"simulate: {n_stars / seconds:.0f} stars/s, peak memory {peak / 1e9:.2f} GB")
    print(f"inputs: {size(inputs.parent if inputs.is_file() else inputs) / millions / 1e9:.2f} GB a million stars")
    fast = scratch / "no_draws.toml"
    fast.write_text("[inference]\nn_draws = 0\n")
    plain = scratch / "plain.toml"
    plain.write_text("[inference]\nn_more_draws = 0\n")
    runs = {
        "both covariances and flags": ["--settings", fast],
        "unbiased summaries from the first draws alone": ["--settings", plain],
        "unbiased summaries": [],
    }
    if arguments.settings:
        runs = {f"as {arguments.settings} says": ["--settings", arguments.settings]}
    more = ["--processes", arguments.processes] if arguments.processes else []
    out = scratch / "catalogue"
    for what, options in runs.items():
        shutil.rmtree(out, ignore_errors=True)
        seconds, peak = run("infer", arguments.model, inputs, "--out", out, *options, *more)
        total = read_manifest(out)["totals"]
        print(
            f"infer, {what}: {total['rows_written']} stars in {seconds:.1f} s = {total['rows_written'] / seconds:.0f} "
            f"stars/s, start and compilation included{after_the_first(out)}; peak memory {peak / 1e9:.2f} GB, states "
            f"{total['status']}",
            flush=True,
        )
    print(f"catalogue: {size(out) / millions / 1e6:.0f} MB a million stars")
    seconds, peak = run("verify", out, "-q")
    print(f"verify: {n_stars / seconds:.0f} stars/s, peak memory {peak / 1e9:.2f} GB")
    for kind in ("votable", "fits", "hats") if arguments.exports else ():
        exported = scratch / f"c.{kind}"
        positions = ["--approximate-positions"] if kind == "hats" else []
        seconds, peak = run("export", out, "--format", kind, "--out", exported, "-q", *positions)
        print(
            f"{kind}: {n_stars / seconds:.0f} stars/s, peak memory {peak / 1e9:.2f} GB, "
            f"{size(exported) / millions / 1e6:.0f} MB a million stars"
        )


def after_the_first(catalogue: Path) -> str:
    """The rate of the parts that came after the first to be finished, when every program had been compiled."""
    import pyarrow.parquet as pq

    parts = sorted(catalogue.glob("part-*.parquet"), key=lambda path: path.stat().st_mtime)
    if len(parts) < 4:
        return ""
    begun, ended = parts[0].stat().st_mtime, parts[-1].stat().st_mtime
    return f" ({sum(pq.read_metadata(p).num_rows for p in parts[1:]) / (ended - begun):.0f} after the first part)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--stars", type=int, default=10_000)
    parser.add_argument("--million", action="store_true", help="once more with 10^6 stars")
    parser.add_argument("--tables", type=Path, help="a star table to repeat, instead of a simulated survey")
    parser.add_argument("--settings", type=Path)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--exports", action="store_true")
    parser.add_argument("--scratch", type=Path, help="where to work; a temporary folder if not given")
    arguments = parser.parse_args()
    for n_stars in (arguments.stars, 1_000_000) if arguments.million else (arguments.stars,):
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            measure(arguments, n_stars, Path(scratch))


if __name__ == "__main__":
    main()
