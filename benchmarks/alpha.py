"""Labels are free: the APOGEE x XP stars with three labels and with [alpha/M] as a fourth.

Trains both ways on the same stars - those that have all four labels -, infers the same held-out stars from flux alone,
and prints scatter, bias and coverage side by side. [alpha/M] is compared with the scatter of guessing it from [Fe/H],
which a model must beat to know anything of its own. About six minutes on 2 cores with the bundled sample.

Usage: python benchmarks/alpha.py [STARS.parquet]      (without STARS: the bundled sample)
"""

import argparse
import os
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import xpbayes
from xpbayes.analysis.validation import accuracy, compare, robust_scatter
from xpbayes.config import InferenceConfig, TrainingConfig
from xpbayes.progress import progress_shown
from xpbayes.training.selection import training_cuts

FOUR = ("teff", "feh", "logg", "alpha_m")


def scatter_given_feh(table: xpbayes.Spectra) -> float:
    """Robust scatter of [alpha/M] about its running median in [Fe/H]: what is left to learn from a spectrum."""
    feh, alpha = table.column("feh"), table.column("alpha_m")
    order = np.argsort(feh)
    parts = np.array_split(order, 40)
    return robust_scatter(np.concatenate([alpha[p] - np.median(alpha[p]) for p in parts]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stars", nargs="?")
    arguments = parser.parse_args()
    table = xpbayes.read_star_table(arguments.stars) if arguments.stars else xpbayes.bundled_stars()
    table = training_cuts(table, FOUR, TrainingConfig().teff_max)
    results = {}
    for labels in (FOUR[:3], FOUR):
        config = TrainingConfig(labels=labels, held_out_stars=0)
        begun = time.perf_counter()
        with progress_shown():
            model = xpbayes.train(table, config=config)
        training = time.perf_counter() - begun
        catalogue = xpbayes.infer(model, table, config=InferenceConfig(use_parallax=False), only="held-out")
        rows = accuracy(compare(catalogue, table, labels, config.floor_for(len(labels))))
        results[len(labels)] = {(r.label, r.group): r for r in rows}
        converged = np.mean(catalogue["converged"].to_numpy(zero_copy_only=False))
        n = model.card["n_training"]
        print(f"{len(labels)} labels: trained on {n} stars in {training:.0f} s, {converged:.2%} converged")
    three, four = results[3], results[4]
    print(
        f"\n{'label':8} {'group':8} {'n':>6} | {'3 labels':>9} {'bias':>8} {'68 %':>6} {'95 %':>6} | {'4 labels':>9} ..."
    )
    for key, row in four.items():
        cells = []
        for r in (three.get(key), row):
            unit = 1e3 if key[0] == "teff" else 1.0
            cells.append(
                f"{unit * r.scatter:9.3f} {unit * r.bias:+8.3f} {r.coverage68:6.3f} {r.coverage95:6.3f}"
                if r
                else " " * 32
            )
        print(f"{key[0]:8} {key[1]:8} {row.n:6d} | {cells[0]} | {cells[1]}")
    spread = robust_scatter(table.column("alpha_m"))
    print(f"\n[alpha/M]: spread {spread:.3f}, guessed from [Fe/H] {scatter_given_feh(table):.3f} dex")


if __name__ == "__main__":
    main()
