"""First light: accuracy beside speed on the full APOGEE x XP table.

Trains on 80 % of the source_ids (Teff < 8,500 K, finite labels and JHK), infers the other 20 % from flux alone - no
parallax - and prints every figure that the first-light issue asks for, beside its target. About five minutes on 2 cores.

Usage: python benchmarks/first_light.py [STARS.parquet] [--bundled] [--split-seed N]
STARS is what 'xpbayes fetch apogee' writes; without it the table is fetched into a temporary folder.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import xpbayes
from xpbayes.analysis.figures.extinction_curve import scale_to
from xpbayes.analysis.validation import accuracy, compare
from xpbayes.config import InferenceConfig, TrainingConfig
from xpbayes.production.table import list_column
from xpbayes.progress import progress_shown
from xpbayes.training.training_set import training_cuts

TARGETS = {"teff": 130.0, "feh": 0.21, "logg": 0.33}
PUBLISHED_CURVE = Path(__file__).resolve().parents[2] / "shared" / "data" / "zgr23" / "extinction_curve.txt"


def verdict(value: float, target: float) -> str:
    return "met" if value <= target else "MISSED"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stars", nargs="?", help="star table from 'xpbayes fetch apogee'")
    parser.add_argument("--bundled", action="store_true", help="use the bundled 10,000 stars instead")
    parser.add_argument("--split-seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.bundled:
            table = xpbayes.bundled_stars()
        elif arguments.stars:
            table = xpbayes.read_star_table(arguments.stars)
        else:
            table = xpbayes.fetch_apogee(Path(scratch) / "stars.parquet")

    config = TrainingConfig(split_seed=arguments.split_seed)
    begun = time.perf_counter()
    with progress_shown():
        model = xpbayes.train(table, config=config)
    training = time.perf_counter() - begun
    kept = training_cuts(table, config.labels, config.teff_max)
    flux_only = InferenceConfig(use_parallax=False)
    begun = time.perf_counter()
    catalogue = xpbayes.infer(model, kept, config=flux_only, only="held-out")
    inference = time.perf_counter() - begun

    rows = accuracy(compare(catalogue, kept, model.labels, config.floor_for(3), "posterior"))
    print(
        f"\n{len(kept)} stars after cuts; {model.card['n_training']} trained on, {len(catalogue)} held out; flux only"
    )
    print(f"{'label':6} {'group':8} {'n':>6} {'scatter':>9} {'bias':>9} {'68 %':>6} {'95 %':>6}  target")
    for row in rows:
        unit = 1e3 if row.label == "teff" else 1.0
        target = TARGETS[row.label] if row.group == "all" else None
        note = f"<= {target:g}: {verdict(unit * row.scatter, target)}" if target else ""
        print(
            f"{row.label:6} {row.group:8} {row.n:6d} {unit * row.scatter:9.3f} {unit * row.bias:+9.3f} "
            f"{row.coverage68:6.3f} {row.coverage95:6.3f}  {note}"
        )
    if PUBLISHED_CURVE.is_file():
        published = np.loadtxt(PUBLISHED_CURVE)[:61, 1]
        _, rms = scale_to(np.exp(np.asarray(model.forward.ln_curve, float))[:61], published)
        print(f"R(lambda) 392-992 nm against the published curve: {rms:.2%} rms, target <= 3 %: {verdict(rms, 0.03)}")
    else:
        print("R(lambda): not compared because the published curve is not on this machine")
    converged = np.mean(catalogue["converged"].to_numpy(zero_copy_only=False))
    positive = np.mean(catalogue["hessian_positive"].to_numpy(zero_copy_only=False))
    sigma = np.median(list_column(catalogue, "stellar_params_err"), axis=0)
    print(f"converged {converged:.2%}, positive definite Hessian {positive:.2%}, median sigma {np.round(sigma, 4)}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"training {training:.0f} s, inference {inference:.0f} s ({len(catalogue) / inference:.0f} stars/s, compilation"
    )
    print(f"included), peak memory {memory:.1f} GB, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
