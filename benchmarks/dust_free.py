"""E of simulated stars without dust, and of stars with much: how far mode, mean, median and `e_unbounded` are off.

    python benchmarks/dust_free.py MODEL STARS.parquet [--stars 3000] [--seed 0]

Labels come from the prior, noise from stars that the model was not trained on, every second star has a parallax of
0.02 mas. Biases are in units of each star's own error, with the standard error of their average.
Acceptance: within 0.05 sigma without dust, where no posterior on E > 0 can have its mean or median: `e_unbounded` is
meant for such averages. Mean and median are held to the same where E is above five of its errors.
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import xpbayes
from xpbayes.checks.prior_predictive import MAX_EXTINCTION, simulate, with_realistic_noise
from xpbayes.config import InferenceConfig, TrainingConfig
from xpbayes.identity import Side, Split
from xpbayes.inference.fit import Posteriors, fit_stars
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.models.theta import to_log
from xpbayes.training.training_set import training_cuts

PARALLAX_ERROR = 0.02
NO_DUST, MUCH = 1e-6, 5.0
"""E of stars without dust [mag]; and from so many errors on, a star has much."""


def say(kind: str, truth: NDArray[np.float64], found: Posteriors, of: NDArray[np.bool_]) -> None:
    """Print the biases of one kind of star."""
    errors = {"mode": found.std[:, -2], "mean": found.std[:, -2], "median": found.std[:, -2]}
    values = {"mode": found.estimate[:, -2], "mean": found.mean[:, -2], "median": found.median[:, -2]}
    errors["e_unbounded"], values["e_unbounded"] = found.unbounded[:, 1], found.unbounded[:, 0]
    print(f"{kind}: {of.sum()} stars, median error of E {np.median(found.std[of, -2]):.4f} mag")
    for name, value in values.items():
        pulls = (np.asarray(value, float) - truth)[of] / errors[name][of]
        print(
            f"   {name:12} {pulls.mean():+.3f} +- {pulls.std() / np.sqrt(len(pulls)):.3f} sigma in the mean, "
            f"{np.median(pulls):+.3f} +- {1.25 * pulls.std() / np.sqrt(len(pulls)):.3f} in the median"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument(
        "table", type=Path, help="star table; the side of the model's split that it was not trained on is used"
    )
    parser.add_argument("--stars", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    trained = xpbayes.load_model(arguments.model)
    table = training_cuts(xpbayes.read_star_table(arguments.table), trained.labels, TrainingConfig().teff_max)
    table = table.take(Split.of(trained.card).on(Side.HELD_OUT, table.source_id))
    rows = np.unique(np.linspace(0, len(table) - 1, min(arguments.stars, len(table))).astype(int))
    batch = table.take(rows).stars(trained.labels)
    config = InferenceConfig()
    search = config.model_copy(update={"n_draws": 0})
    real = fit_stars(trained.star_model, batch, search)
    at = to_log(jnp.asarray(real.estimate))
    folded = fold_in_model_error(trained.star_model, jax.tree.map(jnp.asarray, batch.blind()), at)
    usable = np.flatnonzero(np.isfinite(real.chi2) & real.converged)
    templates = with_realistic_noise(folded.take(jnp.asarray(usable)), real.chi2[usable])
    for dust, most in (("no dust", NO_DUST), ("dust", MAX_EXTINCTION)):
        n_xp = trained.channels.n_xp
        sky = simulate(trained.star_model, templates, n_xp, arguments.stars, arguments.seed, PARALLAX_ERROR, most)
        begun = time.perf_counter()
        found = fit_stars(trained.star_model.without_error, jax.tree.map(np.asarray, sky.stars), config)
        rate = len(sky.stars) / (time.perf_counter() - begun)
        print(f"{dust}: {len(sky.stars)} simulated stars, {rate:.0f} stars/s, compilation included")
        known = np.asarray(sky.stars.parallax_inv_error) > 0
        truth = sky.truth[:, -2]
        much = (truth > MUCH * found.std[:, -2]) if most > NO_DUST else np.ones(len(truth), bool)
        one = found.n_modes == 1
        for name, of in (
            ("with a parallax", known & much),
            ("without parallax, one optimum", ~known & one & much),
            ("without parallax, optima that compete", ~known & ~one & much),
        ):
            say(f"{dust}, {name}", truth, found, of)


if __name__ == "__main__":
    main()
