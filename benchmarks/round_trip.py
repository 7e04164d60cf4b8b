"""Round trip: a survey drawn from a model, written to official files, prepared, inferred, compared with the truth.

Prints how well the generator's fluxes come back, the amplitudes of the noise that was drawn, and the pulls of every
parameter for stars with every band: of the optimum with its Fisher errors, and of the posterior's mean with its
standard deviation.
Usage: python benchmarks/round_trip.py MODEL [--stars 20000]
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pyarrow.parquet as pq

import xpbayes
from xpbayes.archive.prepare import prepare
from xpbayes.config import InferenceConfig, Recipe
from xpbayes.data.spectra_file import read_star_tables
from xpbayes.production.table import list_column
from xpbayes.simulation.survey import simulate

PARAMETERS = ("teff", "feh", "logg", "extinction", "parallax")


ESTIMATES = (
    ("optimum, Fisher errors", "stellar_params_est", "stellar_params_err"),
    ("posterior mean and standard deviation", "stellar_params_mean", "stellar_params_std"),
)
"""What is compared with the truth: a name, the catalogue's estimate, its error."""


def print_pulls(what: str, pull: np.ndarray) -> None:
    """Print mean and spread of (star, parameter) pulls, and whether the spread is one."""
    print(f"{what}: pulls of {len(pull)} stars with every band (target: standard deviation 1.00 +- 0.05)")
    if not len(pull):
        return
    print(f"{'parameter':11} {'mean':>7} {'std':>7} {'robust':>7} {'|pull| < 1':>11}")
    for name, values in zip(PARAMETERS, pull.T, strict=True):
        robust = 1.4826 * np.median(np.abs(values - np.median(values)))
        met = "met" if abs(values.std() - 1) <= 0.05 else "MISSED"
        print(
            f"{name:11} {values.mean():7.3f} {values.std():7.3f} {robust:7.3f} {np.mean(np.abs(values) < 1):11.3f} {met}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--stars", type=int, default=20_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        survey, tables = Path(scratch) / "survey", Path(scratch) / "stars"
        seconds = {}
        begun = time.perf_counter()
        simulate(Path(arguments.model), arguments.stars, survey, Recipe(missing_band=0.05, missing_side=0.02))
        seconds["simulate"] = time.perf_counter() - begun
        begun = time.perf_counter()
        prepare(survey / "survey.toml", tables)
        seconds["prepare"] = time.perf_counter() - begun
        stars = read_star_tables(tables)
        begun = time.perf_counter()
        # Without the calibration, which corrects a model for real stars: these are the model's own.
        config = InferenceConfig(calibrate=False)
        catalogue = xpbayes.infer(arguments.model, stars, config=config)
        seconds["infer"] = time.perf_counter() - begun
        truth = pq.read_table(survey / "truth.parquet")
    row = {int(s): i for i, s in enumerate(truth["source_id"].to_numpy())}
    order = np.array([row[int(s)] for s in stars.source_id])
    observed = list_column(truth, "flux_observed")[order]
    present = stars.channel_present() & np.isfinite(observed)
    # Where a spectrum crosses zero a relative difference means nothing: the star's own peak is the scale.
    peak = np.nanmax(np.where(present, np.abs(observed), np.nan), axis=1, keepdims=True)
    worst = np.max((np.abs(stars.flux - observed) / peak)[present])
    print(f"{len(stars)} of {arguments.stars} stars came back; largest flux difference {worst:.1e} of the star's peak")

    true = np.stack([truth[name].to_numpy() for name in PARAMETERS], axis=1)[order]
    amplitude = truth["amplitude"].to_numpy()[order]
    low, middle, high = np.quantile(amplitude, (0.16, 0.5, 0.84))
    print(f"amplitude of the noise: 16, 50, 84 % quantiles {low:.2f}, {middle:.2f}, {high:.2f}")
    for what, estimate, error in ESTIMATES:
        pull = (list_column(catalogue, estimate) - true) / list_column(catalogue, error)
        print_pulls(what, pull[present.all(axis=1) & np.isfinite(pull).all(axis=1)])
    print(", ".join(f"{stage} {value:.0f} s" for stage, value in seconds.items()))


if __name__ == "__main__":
    main()
