"""Labels are free: the APOGEE x XP stars with three labels and with [alpha/M] as a fourth, through both stages.

Trains both ways on the same stars - those that have all four labels -, infers the same held-out stars from flux alone,
and prints scatter, bias and coverage of posterior medians and of refined labels side by side. Is it the spectrum that tells
[alpha/M]? Networks like the second stage's are shown the other three labels alone, true and refined ones: what they guess
is what the labels' correlations tell. About ten minutes on 2 cores with the bundled sample.

Usage: python benchmarks/alpha.py [STARS.parquet] [--four]
Without STARS: the bundled sample. --four leaves out the training with three labels.
"""

import argparse
import os
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import xpbayes
from xpbayes.analysis.validation import GIANT_LOGG, accuracy, compare, robust_scatter
from xpbayes.config import InferenceConfig, RefinementConfig, TrainingConfig
from xpbayes.data.join import rows_of
from xpbayes.identity import Side, Split
from xpbayes.production.table import list_column
from xpbayes.progress import progress_shown
from xpbayes.refinement.learning import Lessons, learn
from xpbayes.refinement.refined import ensemble, quantiles
from xpbayes.training.training_set import training_cuts

FOUR = ("teff", "feh", "logg", "alpha_m")


def guessed(labels: np.ndarray, alpha: np.ndarray, error: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Medians of [alpha/M] that networks like the second stage's guess from three other labels.

    Args:
        labels, alpha, error: of the training stars.
        asked: (star, 3) labels of other stars.
    """
    middle, spread = np.median(alpha), np.full((len(alpha), 1), alpha.std())
    lessons = Lessons(labels.astype(np.float32), (alpha - middle)[:, None], error[:, None], spread)
    nets = learn(lessons, np.ones(1), RefinementConfig(members=2, hidden=(64, 64)))
    at = np.full((len(asked), 1), middle)
    return quantiles(ensemble(nets, asked.astype(np.float32), at, np.full(at.shape, alpha.std())), (0.5,))[0, :, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stars", nargs="?")
    parser.add_argument("--four", action="store_true")
    arguments = parser.parse_args()
    table = xpbayes.read_star_table(arguments.stars) if arguments.stars else xpbayes.bundled_stars()
    table = training_cuts(table, FOUR, TrainingConfig().teff_max)
    results = {}
    for labels in (FOUR,) if arguments.four else (FOUR[:3], FOUR):
        config = TrainingConfig(labels=labels, held_out_stars=0)
        begun = time.perf_counter()
        with progress_shown():
            model = xpbayes.train(table, config=config)
        training = time.perf_counter() - begun
        catalogue = xpbayes.infer(model, table, config=InferenceConfig(use_parallax=False), only="held-out")
        for answer in ("posterior", "refined") if model.second_stage else ("posterior",):
            compared = compare(catalogue, table, labels, config.floor_for(len(labels)), answer)
            results[len(labels), answer] = {(r.label, r.group): r for r in accuracy(compared)}
        converged = np.mean(catalogue["converged"].to_numpy(zero_copy_only=False))
        n = model.card["n_training"]
        print(f"{len(labels)} labels: trained on {n} stars in {training:.0f} s, {converged:.2%} converged")
    print(
        f"\n{'label':8} {'group':8} {'n':>6} | "
        + " | ".join(f"{k} labels, {a}: scatter, bias, 68, 95 %" for k, a in results)
    )
    for key, row in results[4, "posterior"].items():
        cells = []
        for r in (of.get(key) for of in results.values()):
            unit = 1e3 if key[0] == "teff" else 1.0
            cells.append(
                f"{unit * r.scatter:9.3f} {unit * r.bias:+8.3f} {r.coverage68:6.3f} {r.coverage95:6.3f}"
                if r
                else " " * 32
            )
        print(f"{key[0]:8} {key[1]:8} {row.n:6d} | " + " | ".join(cells))
    split = Split.of(model.card)
    taught, asked = (table.take(split.on(side, table.source_id)) for side in (Side.TRAINING, Side.HELD_OUT))
    known = np.stack([taught.column(n) for n in FOUR[:3]], axis=1)
    rows = rows_of(catalogue["source_id"].to_numpy(), table.source_id)
    truth = table.take(rows)
    error = np.hypot(taught.column("alpha_m_error"), config.floor_for(4)[3])
    print(f"\n[alpha/M] of {len(asked)} held-out stars: spread {robust_scatter(truth.column('alpha_m')):.3f} dex")
    giant = truth.column("logg") < GIANT_LOGG
    for what, labels3 in {
        "true labels": np.stack([truth.column(n) for n in FOUR[:3]], axis=1),
        "refined labels": list_column(catalogue, "refined_median")[:, :3],
    }.items():
        miss = guessed(known, taught.column("alpha_m"), error, labels3) - truth.column("alpha_m")
        finite = np.isfinite(miss)
        each = [robust_scatter(miss[finite & group]) for group in (giant | ~giant, giant, ~giant)]
        print(
            f"guessed from Teff, [Fe/H], log g, {what}: all {each[0]:.3f}, giants {each[1]:.3f}, dwarfs {each[2]:.3f}"
        )


if __name__ == "__main__":
    main()
