"""Operations and bytes of every stage of inference, counted by XLA, and how long they must take at least.

    python benchmarks/roofline.py MODEL STARS.parquet [--stars 512]

MODEL is a model's folder or name. Every stage is compiled for this machine's CPU, and XLA counts what its program does
(`compiled.cost_analysis()`; a loop's body counts once, so that what the solver does is counted per evaluation and
multiplied by the evaluations that the stars needed). Beside the counts stand what this machine does in fact, in CPU
seconds, and bounds for GPUs from published figures of theirs: no more than a bound, since nothing was measured on one.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import numpy as np

import xpbayes
from xpbayes.config import InferenceConfig
from xpbayes.device import prepare_device
from xpbayes.inference.errors import evaluate_mode
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.inference.on_device import packed, unpacked
from xpbayes.inference.sampling import importance
from xpbayes.inference.search.optima import best_of, choose_optima, search
from xpbayes.inference.search.solver import advance_lanes, starting_state, turned
from xpbayes.inference.search.starts import find_starts, first_guess, make_grid

GPUS = {"A100 80 GB": (19.5e12, 2.04e12), "H100 SXM": (67e12, 3.35e12), "H200": (67e12, 4.8e12)}
"""Published peaks: float32 operations/s outside of tensor cores, and bytes/s of memory."""
STARS_IN_GAIA = 220e6


class Stage(NamedTuple):
    """What one stage does to a star.

    Attributes:
        operations, bytes: as XLA counts them.
        seconds: of this CPU.
    """

    operations: float
    bytes: float
    seconds: float

    def times(self, n: float) -> "Stage":
        """So many times as much."""
        return Stage(*(n * value for value in self))

    def bound(self, peak: float, bandwidth: float) -> float:
        """[s] of a GPU at least."""
        return max(self.operations / peak, self.bytes / bandwidth)


def counted(function: Callable[..., Any], *arguments: Any) -> Stage:
    """Count and time one stage; stars are the second argument's leading axis."""
    compiled = jax.jit(function).lower(*arguments).compile()
    cost = compiled.cost_analysis()
    jax.block_until_ready(compiled(*arguments))
    begun = time.process_time()
    jax.block_until_ready(compiled(*arguments))
    n = len(jax.tree.leaves(arguments[1])[0])
    return Stage(cost["flops"] / n, cost["bytes accessed"] / n, (time.process_time() - begun) / n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("stars")
    parser.add_argument("--stars", type=int, default=512, dest="n")
    given = parser.parse_args()
    prepare_device()
    trained, table = xpbayes.load(given.model), xpbayes.read_star_table(given.stars)
    model, config = trained.star_model, InferenceConfig()
    bare = model.without_error
    table = table.on(trained.channels).take(np.linspace(0, len(table) - 1, given.n).astype(int))
    measured = jax.tree.map(np.asarray, table.stars(trained.labels).blind())
    grid = make_grid(bare, config.n_nodes)
    stars, starts, solution, _ = search(model, grid, measured, config)
    stars = jax.tree.map(np.asarray, stars)
    best = np.asarray(best_of(solution).theta_log)
    optima = choose_optima(solution, np.asarray(jax.jit(evaluate_mode)(bare, stars, best).hessian))
    evaluations = float(np.sum(solution.n_iterations, axis=1).mean())

    with jax.default_matmul_precision("highest"):
        one = counted(
            lambda m, s, u: advance_lanes(m, turned(s), starting_state(u, jax.numpy), np.int32(1)),
            bare,
            stars,
            starts[:, 0],
        )
        draw = {}
        for name, more in (("first draws", 0), ("rounds of more draws", config.n_more_draws)):
            # What is worked on together on a CPU.
            rows = slice(0, importance.batch_size(config.n_draws, more))
            some = (stars, best, optima.runner_up, optima.n_modes > 1, np.arange(given.n, dtype=np.uint32))
            few = jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf)[rows], some)
            draw[name] = counted(
                lambda m, g, more=more: importance.summarise_batch(m, config.n_draws, more, *g), bare, few
            )
        first_draws = importance.summarise(bare, *some, n_draws=config.n_draws)
        needing = float(np.mean(~importance.enough(first_draws.k_hat)))
        stages = {
            "starts": counted(lambda m, s: find_starts(m, grid, s, config.n_starts), bare, stars),
            "model's error, three times": counted(fold_in_model_error, model, measured, best).times(3),
            "first guess": counted(lambda m, s: first_guess(m.forward, grid, s), bare, stars),
            f"solver, {evaluations:.1f} evaluations": one.times(evaluations),
            "unpacking for these": counted(lambda _, s: unpacked(s), bare, packed(stars)).times(evaluations / 5),
            "optima, Fisher, Laplace": counted(evaluate_mode, bare, stars, best),
            "first draws": draw["first draws"],
        }
    whole = draw["rounds of more draws"]
    # A program of rounds draws the first ones too.
    stages[f"rounds of more draws, {100 * needing:.0f} % of stars"] = whole.times(needing)

    print(f"{given.n} stars of {stars.flux.shape[1]} channels, {len(model.forward.biases)} layers; per star:")
    print("| stage | Mflop | MB | flop/byte | CPU µs |" + "".join(f" {gpu}, µs at least |" for gpu in GPUS))
    print("|---|" + "---|" * (4 + len(GPUS)))
    search_only = Stage(0.0, 0.0, 0.0)
    everything = Stage(0.0, 0.0, 0.0)
    for name, stage in stages.items():
        everything = Stage(*map(sum, zip(everything, stage, strict=True)))
        if "draws" not in name:
            search_only = everything
        say(name, stage)
    say("**without draws**", search_only)
    say("**everything**", everything)
    for name, total in (("without draws", search_only), ("everything", everything)):
        hours = {
            f"{n} {gpu}": STARS_IN_GAIA * total.bound(*peaks) / n / 3600 for gpu, peaks in GPUS.items() for n in (1, 8)
        }
        hours["1,000 cores like these, measured"] = STARS_IN_GAIA * total.seconds / 1000 / 3600
        print(f"220 million stars, {name}: " + ", ".join(f"{what} {value:.2f} h" for what, value in hours.items()))


def say(name: str, stage: Stage) -> None:
    bounds = "".join(f" {1e6 * stage.bound(*peaks):.2f} |" for peaks in GPUS.values())
    print(
        f"| {name} | {stage.operations / 1e6:.2f} | {stage.bytes / 1e6:.2f} | {stage.operations / stage.bytes:.2f} | "
        f"{1e6 * stage.seconds:.0f} |{bounds}",
        flush=True,
    )


if __name__ == "__main__":
    main()
