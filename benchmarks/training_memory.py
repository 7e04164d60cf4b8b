"""Memory and time of training, in memory and in files, as the training set grows.

    python benchmarks/training_memory.py STARS.parquet [--stars 40000 160000] [--in-memory 40000] [--epochs-scale 0.05]

Real stars are repeated under new source_ids, each with another draw of its own noise, into a folder of star tables; then
`xpbayes train` runs on the folder with few epochs, its own process each time. Printed: peak memory of its own (RssAnon;
pages of files that the system may drop at any time do not count), seconds, and thousand stars per second of a model
epoch. Acceptance: memory below 6 GB and flat in files.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import xpbayes
from xpbayes.data.spectra import Spectra
from xpbayes.data.spectra_file import write_star_table
from xpbayes.instrument.whitening import unpack

ROWS_PER_TABLE = 20_000


def again(table: Spectra, copy: int, rng: np.random.Generator) -> Spectra:
    """The same stars once more, under other source_ids and with noise of their own size added."""
    flux = table.flux.copy()
    for rows in np.array_split(np.arange(len(table)), max(1, len(table) // 1000)):
        whitening = unpack(table.xp_whitening[rows], table.band_inverse_error[rows], table.channels.n_xp)
        present = np.diagonal(whitening, axis1=1, axis2=2) > 0
        whole = np.asarray(whitening, np.float64) + np.eye(whitening.shape[1]) * ~present[:, None, :]
        noise = np.linalg.solve(whole, rng.normal(size=(*whole.shape[:2], 1)))[..., 0]
        flux[rows] += np.where(present, noise, 0.0).astype(np.float32)
    return replace(table, source_id=table.source_id + copy, flux=flux)


def write_tables(table: Spectra, n_stars: int, folder: Path) -> None:
    rng = np.random.default_rng(0)
    written = copy = 0
    while written < n_stars:
        some = table.take(slice(0, min(len(table), n_stars - written)))
        if copy:
            some = again(some, copy, rng)
        for begin in range(0, len(some), ROWS_PER_TABLE):
            write_star_table(
                some.take(slice(begin, begin + ROWS_PER_TABLE)), folder / f"{copy:03d}-{begin:07d}.parquet"
            )
        written, copy = written + len(some), copy + 1


def own_memory(pid: int) -> float:
    """Anonymous memory of a process [GB]; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("RssAnon")), 0.0)


def race(folder: Path, out: Path, in_memory: int, epochs_scale: float) -> None:
    settings = out.with_suffix(".toml")
    settings.write_text(
        f"[training]\nstars_in_memory = {in_memory}\nepochs_scale = {epochs_scale}\nheld_out_stars = 200\n"
    )
    command = [sys.executable, "-m", "xpbayes", "train", folder, "--out", out, "--settings", settings]
    begun, peak, log = time.perf_counter(), 0.0, out.with_suffix(".log")
    with (
        open(log, "w") as stream,
        subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=stream) as run,
    ):
        while run.poll() is None:
            peak = max(peak, own_memory(run.pid))
            time.sleep(0.1)
    said = log.read_text()
    if run.returncode:
        raise SystemExit(said.splitlines()[-1])
    card = json.loads((out / "card.json").read_text())
    models = [p for p in card["phases"] if p["update"] == "model"]
    rate = sum(p["n_stars"] * p["epochs"] for p in models) / sum(p["seconds"] for p in models)
    where = "in files" if "worked on in files" in said else "in memory"
    print(
        f"{card['n_training']:>9,} training stars {where}: peak {peak:.2f} GB, {time.perf_counter() - begun:.0f} s in all, "
        f"{card['training_seconds']:.0f} s of it training; {rate / 1e3:.1f} thousand stars per second and epoch "
        f"(compilation included)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="star table with labels")
    parser.add_argument("--stars", type=int, nargs="+", default=[40_000, 160_000])
    parser.add_argument("--in-memory", type=int, nargs="*", default=[40_000], help="of these sizes, also in memory")
    parser.add_argument("--epochs-scale", type=float, default=0.05)
    arguments = parser.parse_args()
    table = xpbayes.read_star_table(arguments.table)
    for n_stars in arguments.stars:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "tables"
            folder.mkdir()
            write_tables(table, n_stars, folder)
            if n_stars in arguments.in_memory:
                race(folder, Path(name) / "memory", n_stars, arguments.epochs_scale)
            race(folder, Path(name) / "files", 0, arguments.epochs_scale)


if __name__ == "__main__":
    main()
