"""The whole chain on surveys whose truth is known and whose physics this project did not write.

For every seed: make the survey (../shared/mock/make_mock.py), prepare, train the default preset, infer the test stars with
and without parallaxes, compare with the truth (evaluate.py) and the learned R with the law (rlaw.py). Prints, per group of
stars, scatter and bias of the medians and the coverage of every interval, how many of each kind carry each flag, and beside
it the seconds of each step.
About six minutes a survey on two quiet cores.

    python benchmarks/mock.py [--seeds 7 11] [--law g23] [--clouds 7] [--ehat 0.1 0.03] [--out DIR] [--settings TOML]
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MOCK = Path(__file__).resolve().parents[2] / "shared" / "mock"


def timed(name: str, command: list[str], folder: Path) -> str:
    """Run a command; print how long it took and return what it printed. Its own words are kept in a file."""
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (folder / f"{name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    print(f"{name:22s} {cpu:7.1f} CPU s {time.perf_counter() - begun:7.1f} s", flush=True)
    return done.stdout


def flag_rates(truth: Path, catalogue: Path) -> str:
    """Share of stars of every kind that carry each flag, per cent: clean ones, and what is wrong by construction."""
    import numpy as np
    import pandas as pd
    import pyarrow.parquet as pq

    from xpbayes.schema import QualityFlag

    names = ("source_id", "quality_flags", "zgr23_flags")
    ids, flags, paper = (pq.read_table(catalogue, columns=[name])[name].to_numpy() for name in names)
    star = pd.read_parquet(truth).set_index("source_id").loc[ids]
    plain = (star.odd == "").to_numpy()
    single = plain & ~star.binary.to_numpy() & ~star.crowded.to_numpy()
    clean = single & (star.rv == 3.1).to_numpy() & ~star.spurious.to_numpy()
    kinds = {
        "clean": clean,
        "clean, G > 16": clean & (star.G > 16).to_numpy(),
        "clean, [Fe/H] < -1": clean & (star.feh < -1).to_numpy(),
        "clean, > 8,500 K": clean & (star.teff > 8500).to_numpy(),
        **{what: (star.odd == what).to_numpy() for what in ("metal_poor", "hot", "wd", "quasar")},
        "R_V > 4, E > 0.5": plain & (star.rv >= 4).to_numpy() & (star.e > 0.5).to_numpy(),
        "spurious parallax": plain & star.spurious.to_numpy(),
        "binary, share > 0.5": plain & (star.second_share > 0.5).to_numpy(),
    }
    bits = (QualityFlag.POOR_FIT, QualityFlag.UNUSUAL_SPECTRUM, QualityFlag.EXTRAPOLATION, QualityFlag.PARALLAX_TENSION)
    lines = [f"{'stars':20s} {'n':>5s}" + "".join(f"{bit.name:>18s}" for bit in bits) + "    by Eq. 26   any >= 8"]
    for name, there in kinds.items():
        rates = [np.mean(flags[there] & int(bit) > 0) for bit in bits]
        rates += [np.mean(paper[there] & int(QualityFlag.PARALLAX_TENSION) > 0), np.mean(flags[there] >= 8)]
        widths = (18, 18, 18, 18, 13, 11)
        shown = "".join(f"{100 * r:{w}.1f}" for r, w in zip(rates, widths, strict=True))
        lines.append(f"{name:20s} {there.sum():5d}{shown}")
    return "\n".join(lines)


def judge(seed: int, arguments: argparse.Namespace, folder: Path) -> None:
    """Make one survey and go through the whole chain."""
    python, xpbayes = [sys.executable], [sys.executable, "-m", "xpbayes"]
    settings = [] if arguments.settings is None else ["--settings", str(arguments.settings)]
    print(
        f"\n==== seed {seed}, law {arguments.law}, clouds {arguments.clouds}, errors of E {arguments.ehat}", flush=True
    )
    folder.mkdir(parents=True, exist_ok=True)
    made = ["--seed", str(seed), "--law", arguments.law, "--clouds", str(arguments.clouds)]
    made += ["--ehat", *map(str, arguments.ehat)]
    timed("make", [*python, str(MOCK / "make_mock.py"), "--out", str(folder), *made], folder)
    for side in ("train", "test"):
        stars = folder / f"stars_{side}"
        timed(f"prepare {side}", [*xpbayes, "prepare", str(folder / side / "survey.toml"), "--out", str(stars)], folder)
    model, tests = str(folder / "model"), str(folder / "stars_test")
    timed("train", [*xpbayes, "train", str(folder / "stars_train"), "--out", model, *settings], folder)
    catalogues = [str(folder / f"{name}.parquet") for name in ("with", "without")]
    for out, how in zip(catalogues, ([], ["--no-parallax"]), strict=True):
        timed(f"infer {Path(out).stem}", [*xpbayes, "infer", model, tests, "--out", out, *how, *settings], folder)
    told = [str(folder), *catalogues, str(folder / "evaluation")]
    print(timed("evaluate", [*python, str(MOCK / "evaluate.py"), *told], folder))
    for path in catalogues:
        print(f"flags of {Path(path).stem} parallax, per cent\n{flag_rates(folder / 'truth_test.parquet', Path(path))}")
    print(timed("R", [*python, str(MOCK / "rlaw.py"), model], folder), flush=True)


def main() -> None:
    """Run the chain for every seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[7])
    parser.add_argument("--law", choices=("g23", "f99"), default="g23")
    parser.add_argument("--clouds", type=int, default=7)
    parser.add_argument("--ehat", type=float, nargs=2, default=(0.1, 0.03))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--settings", type=Path)
    arguments = parser.parse_args()
    if not (MOCK / "make_mock.py").is_file():
        raise SystemExit(f"{MOCK} is absent; this benchmark needs the scripts of the mock survey")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "2")
    with tempfile.TemporaryDirectory(prefix="xpbayes-mock-") as temporary:
        for seed in arguments.seeds:
            judge(seed, arguments, (arguments.out or Path(temporary)) / f"seed_{seed}_{arguments.law}")


if __name__ == "__main__":
    main()
