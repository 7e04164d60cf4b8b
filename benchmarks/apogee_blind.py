"""Blind test on real stars: accuracy and calibration against APOGEE, beside gradient boosting on the same stars.

For each of several splits by source_id: train the default preset on 80 % of the full APOGEE x XP table, infer the other
20 % from flux alone - no parallax - and train peers on the same 80 %: HistGradientBoosting, XGBoost, and an ensemble of
the second stage's own networks that is shown the fluxes instead of a forward posterior. Prints scatter, bias and
coverage (68 %: half of p16 to p84, 95 %: 1.96 std, label errors included) of posterior medians and of refined labels for
all stars, giants and dwarfs by label and as inferred, and three S/N bins, R(lambda) against the published curve, time and
memory. Of stars that are chosen by their labels right intervals do not hold 68 %: 'right' is what they would if every
star's label were drawn from its own interval, half a Gaussian on either side of the median.
About eight minutes a split on 2 cores.

Usage: python benchmarks/apogee_blind.py [STARS.parquet] [--splits 0 1 2] [--peers all|networks|none] [--models FOLDER]
STARS is what 'xpbayes fetch apogee' writes; without it the table is fetched into a temporary folder. Models are kept in
FOLDER/split_N and taken from there if they exist.
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
from xpbayes.config import InferenceConfig, RefinementConfig, TrainingConfig
from xpbayes.data.spectra import Spectra
from xpbayes.identity import Side, Split
from xpbayes.production.table import list_column
from xpbayes.refinement.learning import Lessons, learn
from xpbayes.refinement.refined import ensemble, quantiles
from xpbayes.training.training_set import training_cuts

PUBLISHED_CURVE = Path(__file__).resolve().parents[2] / "shared" / "data" / "zgr23" / "extinction_curve.txt"
UNITS = {"teff": 1e3, "feh": 1.0, "logg": 1.0}
GIANT_LOGG = 3.8


def robust(values: np.ndarray) -> float:
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def peer_features(table: Spectra) -> np.ndarray:
    """Log flux relative to the star's own mean, and neighbouring log flux ratios; fluxes <= 0 are missing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ln = np.where(table.flux > 0, np.log(table.flux), np.nan)
    return np.concatenate([ln - np.nanmean(ln, axis=1, keepdims=True), np.diff(ln, axis=1)], axis=1)


def network_ensemble(x: np.ndarray, y: np.ndarray, error: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    """Medians of an ensemble of mixture density networks on features of the fluxes, trained as the second stage is."""
    middle, spread = np.median(y, axis=0), y.std(axis=0)
    x, x_test = np.nan_to_num(x), np.nan_to_num(x_test)
    wide = np.broadcast_to(spread, y.shape)
    nets = learn(Lessons(x.astype(np.float32), y - middle, error, wide), np.ones(1), RefinementConfig(members=5))
    at = np.broadcast_to(middle, (len(x_test), y.shape[1]))
    return quantiles(ensemble(nets, x_test.astype(np.float32), at, np.broadcast_to(spread, at.shape)), (0.5,))[0]


def peers(
    train: Spectra, test: Spectra, names: tuple[str, ...], floor: tuple[float, ...], which: str
) -> dict[str, np.ndarray]:
    """Predictions of each peer, (star, label), early stopping of trees on 10 % of the training stars."""
    if which == "none":
        return {}
    x, x_test = peer_features(train), peer_features(test)
    y, error = (np.stack([train.column(f"{n}{e}") for n in names], axis=1).astype(float) for e in ("", "_error"))
    found = {"networks on fluxes": network_ensemble(x, y, np.hypot(error, floor), x_test)}
    if which == "networks":
        return found
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.model_selection import train_test_split

    found["HistGradientBoosting"] = np.zeros((len(test), len(names)))
    for i in range(len(names)):
        boost = HistGradientBoostingRegressor(
            max_iter=2000, learning_rate=0.06, early_stopping=True, n_iter_no_change=30, random_state=0
        )
        found["HistGradientBoosting"][:, i] = boost.fit(x, y[:, i]).predict(x_test)
    try:
        import xgboost
    except ImportError:
        print("XGBoost: not run because it is not installed (pip install xgboost-cpu)")
        return found
    found["XGBoost"] = np.zeros((len(test), len(names)))
    fit, stop = train_test_split(np.arange(len(y)), test_size=0.1, random_state=0)
    for i in range(len(names)):
        boost = xgboost.XGBRegressor(
            n_estimators=3000, learning_rate=0.06, max_depth=6, subsample=0.8, early_stopping_rounds=30, n_jobs=2
        )
        boost.fit(x[fit], y[fit, i], eval_set=[(x[stop], y[stop, i])], verbose=False)
        found["XGBoost"][:, i] = boost.predict(x_test)
    return found


def by_gravity(logg: np.ndarray) -> dict[str, np.ndarray]:
    return {"giants": logg < GIANT_LOGG, "dwarfs": logg >= GIANT_LOGG}


def drawn_labels(estimate: np.ndarray, low: np.ndarray, high: np.ndarray, error: np.ndarray) -> np.ndarray:
    """(star, label) drawn from half a Gaussian on either side of medians, with the labels' own errors."""
    own, of_label = np.random.default_rng(0).standard_normal((2, *estimate.shape))
    return estimate + own * np.where(own > 0, high - estimate, estimate - low) + of_label * error


def table_of(
    estimate: np.ndarray,
    half: np.ndarray,
    sigma: np.ndarray,
    truth: np.ndarray,
    drawn: np.ndarray,
    chosen: dict[str, np.ndarray],
    names: tuple[str, ...],
) -> None:
    """Print scatter, bias and coverage of giants and dwarfs by label, and of groups chosen without looking at labels."""
    print(
        f"{'label':6} {'group':15} {'n':>5} {'scatter':>8} {'bias':>8} {'bias/scatter':>12} {'68 %':>6} {'right':>6} "
        f"{'95 %':>6}"
    )
    groups, of_drawn = (by_gravity(labels[:, names.index("logg")]) | chosen for labels in (truth, drawn))
    for i, name in enumerate(names):
        for group, inside in groups.items():
            residual = (estimate - truth)[inside, i]
            miss = np.abs(residual)
            within, nearly_all = np.mean(miss < half[inside, i]), np.mean(miss < 1.96 * sigma[inside, i])
            right = np.mean((np.abs(estimate - drawn) < half)[of_drawn[group], i])
            scatter, bias, unit = robust(residual), float(np.median(residual)), UNITS[name]
            print(
                f"{name:6} {group:15} {inside.sum():5d} {unit * scatter:8.3f} {unit * bias:+8.3f} "
                f"{abs(bias) / scatter:12.2f} {within:6.3f} {right:6.3f} {nearly_all:6.3f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stars", nargs="?", help="star table from 'xpbayes fetch apogee'")
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--peers", choices=("all", "networks", "none"), default="all")
    parser.add_argument("--models", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        table = (
            xpbayes.read_star_table(arguments.stars)
            if arguments.stars
            else xpbayes.fetch_apogee(Path(scratch) / "stars.parquet")
        )
    for split in arguments.splits:
        config = TrainingConfig(split_seed=split, held_out_stars=0)
        begun = time.perf_counter()
        folder = None if arguments.models is None else arguments.models / f"split_{split}"
        known = folder is not None and (folder / "card.json").is_file()
        model = xpbayes.load(folder) if known else xpbayes.train(table, folder, config)
        training = time.perf_counter() - begun
        kept = training_cuts(table, config.labels, config.teff_max)
        held = Split.of(model.card).on(Side.HELD_OUT, kept.source_id)
        test = kept.take(held)
        begun = time.perf_counter()
        catalogue = xpbayes.infer(model, test, config=InferenceConfig(use_parallax=False))
        inference = time.perf_counter() - begun
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

        names = model.labels
        stars = test.stars(names, label_error_floor=config.floor_for(len(names)))
        truth, label_error = np.asarray(stars.labels, float), 1.0 / np.asarray(stars.label_inv_error, float)
        snr = np.median(np.sqrt(np.sum(stars.whitening**2, axis=1)) * stars.flux, axis=1)
        edges = np.quantile(snr, [0, 1 / 3, 2 / 3, 1])
        logg = names.index("logg")
        giant = truth[:, logg] < GIANT_LOGG
        chosen = {"all": np.ones(len(test), bool)} | {
            f"S/N {edges[i]:.0f}-{edges[i + 1]:.0f}": (snr >= edges[i]) & (snr <= edges[i + 1]) for i in range(3)
        }
        print(f"\nsplit {split}: {model.card['n_training']} trained on, {len(test)} held out, flux only")
        answers = {"posterior medians": "stellar_params"} | (
            {"refined labels": "refined"} if model.second_stage else {}
        )
        for answer, prefix in answers.items():
            estimate, low, high, std = (
                list_column(catalogue, f"{prefix}_{name}")[:, :3] for name in ("median", "p16", "p84", "std")
            )
            print(answer)
            half, sigma = np.hypot(0.5 * (high - low), label_error), np.hypot(std, label_error)
            drawn = drawn_labels(estimate, low, high, label_error)
            inferred = {f"inferred {kind}": inside for kind, inside in by_gravity(estimate[:, logg]).items()}
            table_of(estimate, half, sigma, truth, drawn, chosen | inferred, names)
        begun = time.perf_counter()
        predicted = peers(kept.take(~held), test, names, config.floor_for(len(names)), arguments.peers)
        for peer, values in predicted.items():
            residual = values - truth
            text = [
                f"{n} {UNITS[n] * robust(residual[:, i]):.3f} (giants {UNITS[n] * robust(residual[giant, i]):.3f}, "
                f"dwarfs {UNITS[n] * robust(residual[~giant, i]):.3f})"
                for i, n in enumerate(names)
            ]
            print(f"{peer}: {'; '.join(text)}")
        if predicted:
            print(f"peers together {time.perf_counter() - begun:.0f} s")
        if PUBLISHED_CURVE.is_file():
            published = np.loadtxt(PUBLISHED_CURVE)[:61, 1]
            _, rms = scale_to(np.exp(np.asarray(model.forward.ln_curve, float))[:61], published)
            print(f"R(lambda) 392-992 nm against the published curve: {rms:.2%} rms")
        k_hat = catalogue["k_hat"].to_numpy()
        print(
            f"training {'before' if known else f'{training:.0f} s'}, inference {inference:.0f} s with compilation "
            f"({len(test) / inference:.0f} stars/s), peak memory {memory:.1f} GB; "
            f"k_hat < 0.7 for {np.mean(k_hat < 0.7):.1%}, "
            f"converged {np.mean(catalogue['converged'].to_numpy(zero_copy_only=False)):.2%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
