"""What the columns that say how far a row can be trusted are worth, on a mock survey whose truth is known.

Spurious parallaxes: coverage of the parallax, how many are flagged, false alarms. Sources that no model of single stars
describes: how many are refused by p_outside_model above 0.5. `reliability`: how many of the stars of a given value are
within their errors, and purity and completeness of selections by it.

    python benchmarks/mock.py --seeds 7 --out DIR       # or any catalogue of a survey of ../shared/mock/make_mock.py
    python benchmarks/reliability.py DIR/seed7/truth_test.parquet DIR/seed7/plx.parquet --figure purity.png

And on real stars with labels that a model has not seen, from fluxes alone, errors of labels added in quadrature:

    python benchmarks/reliability.py --model apogee-dr17 STARS.parquet
"""

import argparse

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

import xpbayes
from xpbayes.config import InferenceConfig, TrainingConfig
from xpbayes.data.join import rows_of
from xpbayes.production.table import list_column, read_catalogue
from xpbayes.schema import QualityFlag
from xpbayes.training.training_set import training_cuts

NAMES = ("Teff", "[Fe/H]", "log g", "E", "parallax")
BINS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
CUTS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95)
WITHIN, FLAGGED = 2.0, 8


class Judged:
    """A catalogue beside the truth: (star, parameter) within one and within two errors, and kinds of star."""

    def __init__(self, star: pd.DataFrame, catalogue: pa.Table):
        self.star, self.catalogue = star, catalogue
        truth = np.column_stack([star.teff / 1e3, star.feh, star.logg, star.e, star.parallax_true])
        median, low, high = (list_column(catalogue, f"stellar_params_{name}") for name in ("median", "p16", "p84"))
        half = np.where(truth > median, high - median, median - low)
        pull = np.abs(median - truth) / np.maximum(half, 1e-9)
        self.covered, self.good = pull < 1.0, pull < WITHIN
        self.reliability = list_column(catalogue, "reliability")
        self.solved = np.isfinite(median).all(axis=1)
        self.plain = (star.odd == "").to_numpy() & self.solved
        single = self.plain & ~star.binary.to_numpy() & ~star.crowded.to_numpy()
        self.clean = single & (star.rv == 3.1).to_numpy() & ~star.spurious.to_numpy()

    def column(self, name: str) -> NDArray[np.float64]:
        """A column, NaN where null."""
        return np.asarray(self.catalogue[name].to_numpy(), np.float64)


def parallaxes(of: Judged) -> None:
    """Print what becomes of spurious parallaxes."""
    flagged = (of.catalogue["quality_flags"].to_numpy() & QualityFlag.PARALLAX_TENSION) > 0
    likely = of.column("p_spurious_parallax") > 0.5
    spurious = of.plain & of.star.spurious.to_numpy()
    noisy = of.plain & of.star.binary_noise.to_numpy() & ~spurious
    print(f"{'parallaxes':28s} {'number':>6s} {'covered':>8s} {'p > 0.5':>8s} {'flagged':>8s}")
    for name, rows in (("spurious", spurious), ("twice the stated error", noisy), ("clean stars", of.clean)):
        print(
            f"{name:28s} {rows.sum():6d} {of.covered[rows, -1].mean():8.2f} {likely[rows].mean():8.3f} "
            f"{flagged[rows].mean():8.3f}"
        )


def refusals(of: Judged) -> None:
    """Print how many sources of every kind are taken for outside of the model."""
    outside = of.column("p_outside_model") > 0.5
    flagged = (
        of.catalogue["quality_flags"].to_numpy() & (QualityFlag.UNUSUAL_SPECTRUM | QualityFlag.EXTRAPOLATION)
    ) > 0
    star = of.star
    kinds = {
        "clean stars": of.clean,
        "clean stars, [Fe/H] < -1": of.clean & (star.feh < -1).to_numpy(),
        **{name: (star.odd == kind).to_numpy() for name, kind in (("quasars", "quasar"), ("white dwarfs", "wd"))},
        "hot stars": (star.odd == "hot").to_numpy(),
        "giants of [Fe/H] -2.5": (star.odd == "metal_poor").to_numpy(),
        "binaries, flux ratio > 0.5": of.plain & (star.second_share > 0.5).to_numpy(),
        "crowded": of.plain & star.crowded.to_numpy(),
        "R(V) > 4, E > 0.5": of.plain & (star.rv >= 4).to_numpy() & (star.e > 0.5).to_numpy(),
    }
    print(f"\n{'refused':28s} {'number':>6s} {'p > 0.5':>8s} {'or flags':>8s} {'or [Fe/H] within 2 errors':>26s}")
    for name, rows in kinds.items():
        one = outside | ~of.solved
        values = (one[rows].mean(), (one | flagged)[rows].mean(), (one | flagged | of.good[:, 1])[rows].mean())
        print(f"{name:28s} {rows.sum():6d} {values[0]:8.3f} {values[1]:8.3f} {values[2]:26.3f}")


def reliabilities(of: Judged) -> None:
    """Print calibration, purity and completeness."""
    print("\nshare within two errors, by reliability (number of stars), all sources")
    print(f"{'':10s}" + "".join(f"{f'{a:g} to {b:g}':>16s}" for a, b in zip(BINS, BINS[1:], strict=False)))
    for i, name in enumerate(NAMES):
        value, good = of.reliability[of.solved, i], of.good[of.solved, i]
        which = np.clip(np.digitize(value, BINS) - 1, 0, len(BINS) - 2)
        cells = [
            f"{good[which == k].mean():.2f} ({np.sum(which == k)})" if (which == k).any() else "-" for k in range(8)
        ]
        error = sum((which == k).mean() * abs(value[which == k].mean() - good[which == k].mean()) for k in set(which))
        print(f"{name:10s}" + "".join(f"{cell:>16s}" for cell in cells) + f"   mean error {error:.3f}")
    print(
        "\npurity / completeness of reliability above a cut, all sources; beside: quality_flags < 8, quality_flags = 0"
    )
    print(f"{'':10s}" + "".join(f"{cut:>14g}" for cut in CUTS) + f"{'flags < 8':>14s}{'flags = 0':>14s}")
    flags = of.catalogue["quality_flags"].to_numpy()
    for i, name in enumerate(NAMES):
        good = of.good[:, i] & of.solved
        chosen = [of.solved & (of.reliability[:, i] >= cut) for cut in CUTS] + [flags < 8, flags == 0]
        cells = [f"{good[rows].mean():.3f} / {(good & rows).sum() / good.sum():.3f}" for rows in chosen]
        print(f"{name:10s}" + "".join(f"{cell:>14s}" for cell in cells))


def draw(of: Judged, path: str) -> None:
    """Draw purity against completeness of selections by `reliability` above a cut, a panel a parameter."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(NAMES), figsize=(13.0, 3.1), sharey=True, layout="constrained")
    flags = of.catalogue["quality_flags"].to_numpy() < FLAGGED
    for i, (name, panel) in enumerate(zip(NAMES, panels, strict=True)):
        good = of.good[:, i] & of.solved
        order = np.argsort(-np.where(of.solved, of.reliability[:, i], -1.0))
        right = np.cumsum(good[order])
        panel.plot(right / good.sum(), right / np.arange(1, len(order) + 1), color="C0")
        for cut, marker in ((0.5, "o"), (0.9, "s")):
            rows = of.solved & (of.reliability[:, i] >= cut)
            panel.plot((good & rows).sum() / good.sum(), good[rows].mean(), f"C0{marker}", label=f"reliability > {cut}")
        panel.plot((good & flags).sum() / good.sum(), good[flags].mean(), "C1^", label="quality_flags < 8")
        panel.axhline(good[of.solved].mean(), color="0.6", lw=1.0, ls=":", label="all rows")
        panel.set(title=name, xlabel="completeness", xlim=(0.3, 1.02), ylim=(0.8, 1.0))
    panels[0].set_ylabel("purity")
    panels[0].legend(loc="lower left", fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def real_stars(folder: str, stars: str) -> None:
    """Print how `reliability` and `p_outside_model` fare on held-out stars with labels."""
    model = xpbayes.load_model(folder)
    settings = TrainingConfig.model_validate(model.card["settings"])
    table = training_cuts(xpbayes.read_star_table(stars), model.labels, settings.teff_max)
    catalogue = xpbayes.infer(model, table, config=InferenceConfig(use_parallax=False), only="held-out")
    rows = rows_of(catalogue["source_id"].to_numpy(), table.source_id)
    label, error = (value[rows] for value in table.labels(model.labels))
    floor = settings.floor_for(len(model.labels))
    median, low, high = (list_column(catalogue, f"stellar_params_{name}") for name in ("median", "p16", "p84"))
    reliability = list_column(catalogue, "reliability")
    outside = np.asarray(catalogue["p_outside_model"].to_numpy(), np.float64)
    trusted = reliability[np.isfinite(median[:, 0]), 0] > 0.5
    print(f"{len(rows)} stars: reliability > 0.5 in Teff {trusted.mean():.3f}", end=", ")
    print(f"p_outside_model > 0.5 {(outside > 0.5).mean():.3f}")
    for i, name in enumerate(model.labels):
        half = np.where(label[:, i] > median[:, i], high[:, i] - median[:, i], median[:, i] - low[:, i])
        good = np.abs(median[:, i] - label[:, i]) < WITHIN * np.sqrt(half**2 + error[:, i] ** 2 + floor[i] ** 2)
        known = np.isfinite(label[:, i]) & np.isfinite(median[:, i])
        value, good = reliability[known, i], good[known]
        which = np.clip(np.digitize(value, BINS) - 1, 0, len(BINS) - 2)
        found = [k for k in range(len(BINS) - 1) if (which == k).any()]
        cells = (f"{value[which == k].mean():.2f}: {good[which == k].mean():.2f} ({np.sum(which == k)})" for k in found)
        miss = sum((which == k).mean() * abs(value[which == k].mean() - good[which == k].mean()) for k in found)
        print(f"{name:6s} reliability: share within two errors (number)  {'  '.join(cells)}   mean error {miss:.3f}")


def main() -> None:
    """Compare a catalogue with the truth, or a model's answers with labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truth", help="the mock survey's, .parquet; a star table with --model")
    parser.add_argument("catalogue", nargs="?")
    parser.add_argument("--figure", help="draw purity and completeness there")
    parser.add_argument("--model", help="judge this model on the labelled stars that it has not seen")
    arguments = parser.parse_args()
    if arguments.model:
        real_stars(arguments.model, arguments.truth)
        return
    if arguments.catalogue is None:
        parser.error("name the catalogue, or a model with --model")
    catalogue = read_catalogue(arguments.catalogue)
    star = pd.read_parquet(arguments.truth).set_index("source_id").loc[catalogue["source_id"].to_numpy()]
    of = Judged(star, catalogue)
    parallaxes(of)
    refusals(of)
    reliabilities(of)
    if arguments.figure:
        draw(of, arguments.figure)


if __name__ == "__main__":
    main()
