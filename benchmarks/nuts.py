"""NUTS on held-out real stars: draws a second, R-hat, effective draws, divergences, beside what was asked for.

Usage: python benchmarks/nuts.py MODEL [STARS.parquet] [--stars 500]      (without STARS: the bundled sample)
"""

import argparse
import os
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import xpbayes
from xpbayes.config import InferenceConfig, SamplingConfig
from xpbayes.progress import progress_shown
from xpbayes.runs.sample import draw_posteriors, pick_stars


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("stars", nargs="?")
    parser.add_argument("--stars", dest="n", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    model = xpbayes.load_model(arguments.model)
    table = xpbayes.read_star_table(arguments.stars) if arguments.stars else xpbayes.bundled_stars()
    chosen = pick_stars(model, table, (), arguments.n, "held-out", 0)
    inference, sampling = InferenceConfig(), SamplingConfig(max_rounds=arguments.rounds)
    draw_posteriors(model, chosen.take(slice(0, 16)), inference, SamplingConfig(draws=100, max_rounds=1))
    begun, cpu = time.perf_counter(), time.process_time()
    with progress_shown():
        found = draw_posteriors(model, chosen, inference, sampling)
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
    draws, known = found.draws, found.diagnostics
    n, made = len(chosen), sampling.chains * int(draws.n_made.sum())
    r_hat, bulk, tail = known.r_hat.max(axis=1), known.ess_bulk.min(axis=1), known.ess_tail.min(axis=1)
    print(f"{n} held-out stars, {sampling.chains} chains x {sampling.draws} draws; compiled before")
    # Draws after the warm-up, those of rounds that were not kept among them; solving and warming up count as time.
    print(f"wall {wall:.1f} s, CPU {cpu:.1f} s; {made:,} draws made, {made / 400 / wall:.1f} stars/s per 400 draws")
    print(f"  of it {found.seconds[0]:.1f} s to solve, {found.seconds[1]:.1f} s to sample")
    kept = n * sampling.chains * sampling.draws
    print(
        f"  {kept:,} draws kept, {kept / 400 / wall:.1f} stars/s per 400 of these; effective: {bulk.sum() / wall:.0f}/s"
    )
    first = draws.n_made == sampling.draws
    print(
        f"settled in the first round: {(first & known.settled).mean():.1%}; draws made a chain {draws.n_made.mean():.0f}"
    )
    trajectories = max(int((draws.n_steps > 0).sum()), 1)
    print(
        f"leapfrog steps a trajectory {draws.n_steps.sum() / trajectories:.1f}; divergent trajectories "
        f"{draws.diverging.sum() / trajectories:.4%}"
    )
    print(f"R-hat < 1.01: {np.mean(r_hat < 1.01):.1%}; worst {r_hat.max():.3f}")
    print(
        f"bulk ESS > 400: {np.mean(bulk > 400):.1%}, median {np.median(bulk):.0f}; tail > 400: {np.mean(tail > 400):.1%}"
    )
    print(f"settled {known.settled.mean():.1%}; divergent draws {draws.diverging.mean():.4%}")
    print(
        f"independent points chosen: {draws.jumped.mean():.1%}; mixture k_hat < 0.7: {np.mean(draws.k_hat < 0.7):.1%}"
    )


if __name__ == "__main__":
    main()
