"""Kill a production run again and again, go on with it each time, and compare every byte with an undisturbed run.

    python benchmarks/kill_test.py MODEL STARS [--kills 50] [--dask-kills 2] [--out DIR]

Each kill is a SIGKILL at a random moment: of the whole process group, of the parent alone (its orphans must end by
themselves), or of one worker (the run must go on by itself). Then one of three workers of a Dask cluster is killed twice
(extra `dist`; left out where it is not installed). Inputs are a cut of a star table and a simulated survey in
official formats. Prints, beside the outcome, how long the runs took. Needs a POSIX system.
"""

import argparse
import hashlib
import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

SETTINGS = "[inference]\nchunk_size = 64\nn_starts = 1\nn_nodes = 256\nn_draws = 0\n"
"""No draws: while they are compiled, kills would meet nothing else."""
STARS_PER_PART = 64


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a finished catalogue."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.is_file()}


def children(process: int) -> list[int]:
    """Processes whose parent is this one."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def workers(process: int) -> list[int]:
    """Those of them that do the work: the tracker of shared resources is one more."""

    def command(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:  # it has ended meanwhile
            return ""

    return [pid for pid in children(process) if "spawn_main" in command(pid)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("stars", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--dask-kills", type=int, default=2)
    parser.add_argument("--n-stars", type=int, default=2000, help="rows of the star table to use")
    parser.add_argument("--n-simulated", type=int, default=600)
    parser.add_argument("--longest", type=float, default=30.0, help="latest moment of a kill [s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("kill_test"))
    arguments = parser.parse_args()
    from xpbayes.data.spectra_file import read_star_table, write_star_table

    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    stars = read_star_table(arguments.stars)
    rows = np.arange(min(arguments.n_stars, len(stars)))
    table = write_star_table(stars.take(rows), out / "stars.parquet")
    (out / "run.toml").write_text(SETTINGS)
    environment = dict(os.environ)
    xpbayes = [sys.executable, "-m", "xpbayes"]
    inputs = [table]
    if arguments.n_simulated:
        survey = out / "survey"
        if not survey.exists():
            command = [*xpbayes, "simulate", str(arguments.model), "--stars", str(arguments.n_simulated)]
            subprocess.run([*command, "--out", str(survey), "-q"], check=True, env=environment)
        inputs.append(survey / "survey.toml")

    def start(folder: Path, *more: str, processes: int = 2) -> subprocess.Popen[bytes]:
        command = [*xpbayes, "infer", str(arguments.model), *map(str, inputs), "--out", str(folder), "--no-parallax"]
        command += ["--settings", str(out / "run.toml"), "--stars-per-part", str(STARS_PER_PART)]
        command += ["--processes", str(processes)]
        with open(out / "log.txt", "ab") as log:
            return subprocess.Popen([*command, *more], env=environment, stdout=log, stderr=log, start_new_session=True)

    def finish(process: subprocess.Popen[bytes]) -> None:
        if process.wait() != 0:
            sys.exit(f"a run ended with status {process.returncode}; see {out / 'log.txt'}")

    undisturbed = out / "undisturbed"
    shutil.rmtree(undisturbed, ignore_errors=True)
    for attempt in ("cold", "compiled"):
        shutil.rmtree(undisturbed, ignore_errors=True)
        begun = time.perf_counter()
        finish(start(undisturbed))
        print(f"undisturbed run, {attempt}: {time.perf_counter() - begun:.1f} s", flush=True)
    expected = checksums(undisturbed)
    n_parts = sum(name.startswith("part-") for name in expected)

    rng = random.Random(arguments.seed)
    kinds: Counter[str] = Counter()
    catalogues = 0
    begun = time.perf_counter()
    while sum(kinds.values()) < arguments.kills:
        folder = out / f"killed-{catalogues}"
        shutil.rmtree(folder, ignore_errors=True)
        done = False
        while not done:
            process = start(folder, "--resume")
            while True:
                if sum(kinds.values()) >= arguments.kills:
                    finish(process)
                    done = True
                    break
                try:
                    process.wait(rng.uniform(0.0, arguments.longest))
                except subprocess.TimeoutExpired:
                    kind = rng.choice(["group", "parent", "worker"])
                    victims = children(process.pid)
                    if kind == "worker" and not victims:
                        kind = "group"
                    kinds[kind] += 1
                    if kind == "worker":
                        try:
                            os.kill(rng.choice(victims), signal.SIGKILL)
                        except ProcessLookupError:
                            kinds[kind] -= 1
                        continue
                    if kind == "group":
                        os.killpg(process.pid, signal.SIGKILL)
                    else:
                        process.kill()
                    process.wait()
                    break
                else:
                    finish(process)
                    done = True
                    break
        catalogues += 1
        if checksums(folder) != expected:
            found = checksums(folder)
            different = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
            sys.exit(f"{folder}: {len(different)} files differ (first: {different[0]})")
        print(f"catalogue {catalogues}: identical after {sum(kinds.values())} kills in total", flush=True)
    seconds = time.perf_counter() - begun
    print(
        f"{sum(kinds.values())} kills ({', '.join(f'{n} {k}' for k, n in sorted(kinds.items()))}) in {catalogues} "
        f"catalogues of {n_parts} parts: every file byte-identical to the undisturbed run; {seconds:.0f} s"
    )
    if arguments.dask_kills and importlib.util.find_spec("distributed") is not None:
        begun = time.perf_counter()
        folder = out / "dask"
        shutil.rmtree(folder, ignore_errors=True)
        process = start(folder, "--engine", "dask", processes=3)
        killed = 0
        while killed < arguments.dask_kills and process.poll() is None:
            # Once there are parts, and of a worker that has had time to begin.
            while not list(folder.glob("part-*")) and process.poll() is None:
                time.sleep(0.2)
            time.sleep(rng.uniform(0.0, 5.0))
            victims = workers(process.pid)
            if len(victims) == 3 and process.poll() is None:
                os.kill(victims[-1], signal.SIGKILL)  # the one that was started last: the same again, once it is back
                killed += 1
        finish(process)
        found = checksums(folder)
        different = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
        if different:
            sys.exit(f"{folder}: {len(different)} files differ (first: {different[0]})")
        print(
            f"Dask, three workers, one killed {killed} times: every file byte-identical; {time.perf_counter() - begun:.0f} s"
        )


if __name__ == "__main__":
    main()
