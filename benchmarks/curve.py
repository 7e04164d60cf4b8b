"""How the extinction curve varies, judged on real stars that are inferred blind, and on stars whose truth is known.

Of real stars held out, from fluxes alone, prints for each model: the cosine of R1 with dA/dR_V of G23 (weighted by the
model's error, grey and R taken out); the Pearson correlation of xi of neighbours within 0.3 deg for E > 0.6, shuffled, and
by Teff; labels' robust scatter by E, beside a model without variation if one is given; the median chi^2 per channel
under the measurement's covariance alone, by E.
With --truth, of catalogues of a mock survey (../shared/mock): labels, E and R(V) by R(V), plain stars with E > 0.5.

Usage: python benchmarks/curve.py MODEL STARS.parquet [--without MODEL] [--number N]
       python benchmarks/curve.py --truth truth_test.parquet CATALOGUE.parquet ...
Both models must have been trained with the same split.
"""

import argparse
import os
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

import xpbayes
from xpbayes.analysis.figures.curve_neighbours import MIN_EXTINCTION, NEAR, neighbours
from xpbayes.analysis.figures.extinction_curve import FAMILIES, channel_weights, direction
from xpbayes.analysis.figures.flux_residuals import flux_residuals
from xpbayes.analysis.run_inputs import STARS_AT_ONCE
from xpbayes.analysis.validation import robust_scatter
from xpbayes.config import InferenceConfig, TrainingConfig
from xpbayes.data.join import rows_of
from xpbayes.data.spectra import OK, Spectra
from xpbayes.production.table import list_column, text_column
from xpbayes.training.training_set import training_cuts

BLIND = InferenceConfig(use_parallax=False, n_draws=0, second_stage=False)
EXTINCTION = (0.0, 0.2, 1.0, np.inf)
TEFF = (0.0, 4.2, 4.6, np.inf)
"""Bins of what is inferred [mag, kK]."""
UNITS = {"teff": 1e3}
RESIDUALS_BY = (0.0, 0.2, 1.5, np.inf)
"""Bins of E [mag] for residuals."""
BEHIND_DUST = 0.5
"""E [mag] from which R(V) is judged against the truth."""


def inferred(model: xpbayes.TrainedModel, table: Spectra) -> tuple[dict[str, np.ndarray], float]:
    """Columns of the solved stars, and the seconds of CPU time that they took."""
    begun = time.process_time()
    rows = xpbayes.infer(model, table, config=BLIND, only="held-out")
    spent = time.process_time() - begun
    good = (text_column(rows, "status") == OK) & rows["converged"].to_numpy(zero_copy_only=False)
    found = {"source_id": rows["source_id"].to_numpy()[good], "estimate": list_column(rows, "stellar_params_est")[good]}
    for name in ("ra", "dec", "xi", "xi_err"):
        if name in rows.column_names:
            found[name] = rows[name].to_numpy()[good]
    return found, spent


def scatter_by_extinction(found: dict[str, np.ndarray], labels: np.ndarray, names: tuple[str, ...]) -> list[str]:
    """One cell for each bin of E."""
    e, cells = found["estimate"][:, -2], []
    for low, high in zip(EXTINCTION[:-1], EXTINCTION[1:], strict=True):
        use = (e >= low) & (e < high)
        miss = (found["estimate"][:, : len(names)] - labels)[use]
        each = (
            f"{UNITS.get(n, 1.0) * robust_scatter(miss[np.isfinite(miss[:, i]), i]):8.4g}" for i, n in enumerate(names)
        )
        cells.append(f"E {low:g}-{high:g} ({use.sum():5d}): {' '.join(each)}")
    return cells


def excess_chi2(model: xpbayes.TrainedModel, table: Spectra, found: dict[str, np.ndarray]) -> None:
    """Print chi^2 per channel under the measurement's own covariance, median of stars: of E > 1.5 and beyond little dust."""
    e = found["estimate"][:, -2]
    estimate = np.insert(found["estimate"], -2, found["xi"], axis=1) if "xi" in found else found["estimate"]
    rows = rows_of(found["source_id"], table.source_id)
    medians = []
    for low, high in zip(RESIDUALS_BY[:-1], RESIDUALS_BY[1:], strict=True):
        use = np.flatnonzero((e >= low) & (e < high))
        chi2 = []
        for some in np.array_split(use, -(-len(use) // STARS_AT_ONCE)):
            spectra = table.take(rows[some])
            stars = spectra.stars(model.labels)
            chi = flux_residuals(model, spectra, estimate[some], model.channels.names)
            scale = np.exp(np.asarray(stars.ln_scale, float))[:, None]
            miss = np.nan_to_num(chi * spectra.flux_error(list(range(len(model.channels)))) / scale)
            whitening = np.asarray(stars.whitening, float)
            n = np.count_nonzero(np.diagonal(whitening, axis1=1, axis2=2), axis=1)
            chi2.append(np.sum(np.einsum("sij,sj->si", whitening, miss) ** 2, axis=1) / n)
        medians.append(np.median(np.concatenate(chi2)))
        print(
            f"    E {low:g}-{high:g} ({len(use):5d}): chi^2 per channel, the model's error left out {medians[-1]:.2f}"
        )
    print(f"    of E > {RESIDUALS_BY[-2]:g} beyond that of E < {RESIDUALS_BY[1]:g}: {medians[-1] - medians[0]:.2f}")


def judge_xi(found: dict[str, np.ndarray]) -> None:
    """Neighbours' xi, all and by Teff, and what xi is where there is no dust."""
    teff, e = found["estimate"][:, 0], found["estimate"][:, -2]
    for low, high in ((0.0, np.inf), *zip(TEFF[:-1], TEFF[1:], strict=True)):
        use = (e > MIN_EXTINCTION) & (teff >= low) & (teff < high)
        xi = found["xi"][use].astype(float)
        near = neighbours(found["ra"][use], found["dec"][use], xi, (NEAR,))
        print(
            f"  E > {MIN_EXTINCTION:g}, Teff {low:g}-{high:g} kK: {use.sum()} stars, {near.n[0]} pairs within {NEAR:g} deg: "
            f"r = {near.correlation[0]:.3f}, shuffled {near.shuffled[0]:+.3f} +- {near.shuffled_std[0]:.3f}; "
            f"xi std {xi.std():.2f}, error {np.median(found['xi_err'][use]):.2f}"
        )
    clear = e < 0.1
    print(f"  E < 0.1: xi std {found['xi'][clear].std():.2f}, error {np.median(found['xi_err'][clear]):.2f}")


def judge_truth(path: str, truth: pd.DataFrame) -> None:
    """Bias, scatter and 68 % coverage of medians, and bias, scatter and pulls of R(V), by the dust's true R(V)."""
    rows = pq.read_table(path)
    star = truth.loc[rows["source_id"].to_numpy()]
    low, median, high = (list_column(rows, f"stellar_params_{name}") for name in ("p16", "median", "p84"))
    true = star[["teff", "feh", "logg", "e"]].to_numpy(float) / [1e3, 1.0, 1.0, 1.0]
    plain = (star.odd == "").to_numpy() & ~(star.binary | star.crowded | star.spurious).to_numpy(bool)
    r_v, behind = star.rv.to_numpy(), plain & (star.e > BEHIND_DUST).to_numpy()
    groups = {
        "E < 0.2, R(V) 3.1": plain & (true[:, 3] < 0.2) & (r_v == 3.1),
        "E > 0.5, R(V) 3.1": behind & (r_v == 3.1),
        "E > 0.5, another": behind & (r_v != 3.1),
        "E > 0.5, R(V) >= 4": behind & (r_v >= 4.0),
        "E > 0.5, all": behind,
    }
    print(f"{path}: bias, scatter, coverage of Teff [K], [Fe/H], log g, E")
    for name, use in groups.items():
        cells = []
        for i, unit in enumerate((1e3, 1.0, 1.0, 1.0)):
            miss, inside = median[use, i] - true[use, i], (low[use, i] < true[use, i]) & (true[use, i] < high[use, i])
            cells.append(f"{unit * np.nanmedian(miss):+.3g} {unit * robust_scatter(miss):.3g} {inside.mean():.2f}")
        print(f"  {name:18s} {use.sum():5d}: {' | '.join(cells)}")
        if "r_v" in rows.column_names and not name.startswith("E < "):
            found, error = (
                rows[column].to_numpy(zero_copy_only=False).astype(float)[use] for column in ("r_v", "r_v_err")
            )
            miss = (found - r_v[use])[np.isfinite(found)]
            pull = miss / error[np.isfinite(found)]
            print(
                f"    R(V), known for {len(miss)}: bias {np.median(miss):+.3f}, scatter {robust_scatter(miss):.3f}, "
                f"pulls {np.median(pull):+.2f}, their scatter {robust_scatter(pull):.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model; a catalogue with --truth")
    parser.add_argument("stars", nargs="?")
    parser.add_argument("more", nargs="*", help="more catalogues, with --truth")
    parser.add_argument("--truth", help="the mock survey's truth, .parquet")
    parser.add_argument("--without", help="folder of a model without variation, of the same split")
    parser.add_argument("--number", type=int, default=0, help="of stars of the table, evenly spaced; all if 0")
    arguments = parser.parse_args()
    if arguments.truth:
        truth = pd.read_parquet(arguments.truth).set_index("source_id")
        for path in filter(None, (arguments.model, arguments.stars, *arguments.more)):
            judge_truth(path, truth)
        return
    if arguments.stars is None:
        parser.error("name the stars, or the truth with --truth")
    table = xpbayes.read_star_table(arguments.stars)
    if arguments.number:
        table = table.take(np.linspace(0, len(table) - 1, arguments.number).astype(int))
    for folder in filter(None, (arguments.model, arguments.without)):
        model = xpbayes.load_model(folder)
        chosen = training_cuts(table, model.labels, TrainingConfig.model_validate(model.card["settings"]).teff_max)
        print(f"{folder}:")
        forward, wavelength = model.forward, np.asarray(model.channels.wavelengths, float)
        if forward.curve_variation is not None:
            curve, variation = np.exp(np.asarray(forward.ln_curve, float)), np.asarray(forward.curve_variation, float)
            weight = channel_weights(model.model_error, len(curve))
            for name in FAMILIES:
                d = direction(name, wavelength, curve, variation, weight)
                print(f"  R1 and dA/dR_V of {name}: cosine {d.cosine:.3f}, R(V) per xi {d.r_v_per_xi:+.3f}")
        found, spent = inferred(model, chosen)
        rows = rows_of(found["source_id"], chosen.source_id)
        labels = np.stack([chosen.column(name)[rows] for name in model.labels], axis=1)
        print(f"  {len(rows)} stars, {spent:.0f} s of CPU time; scatter of {', '.join(model.labels)} (Teff in K):")
        for cell in scatter_by_extinction(found, labels, model.labels):
            print(f"    {cell}")
        excess_chi2(model, chosen, found)
        if "xi" in found:
            judge_xi(found)


if __name__ == "__main__":
    main()
