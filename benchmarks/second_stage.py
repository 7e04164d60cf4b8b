"""What a second stage does where its training stars tell nothing: held-out real stars, inferred from flux alone.

On top of one trained model, second stages are learned from its training stars
 - as they are;
 - with residual spectra exchanged between stars: refined labels must be the forward posterior's again;
 - without a kind of star (metal-poor, hot, cool dwarfs), of which no star kept aside is looked at either: stars of that kind
   must stay within the forward posterior's errors.
Then noisier and redder copies of held-out stars: scatter and coverage by how much noise was added. And information against
prior correlation: the slope of refined on true [Fe/H] at fixed Teff and log g. First what the model's own second stage
costs: CPU time of inference with it and without, in turns, with draws and without.
About ten minutes on 2 quiet cores with the full table.

Usage: python benchmarks/second_stage.py MODEL STARS.parquet [--members 2] [--only-cost]
MODEL was trained on STARS ('xpbayes fetch apogee' writes them).
"""

import argparse
import os
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax.numpy as jnp
import numpy as np

import xpbayes
from xpbayes.config import InferenceConfig, RefinementConfig, TrainingConfig
from xpbayes.data.spectra import Spectra
from xpbayes.data.stars import signal_to_noise
from xpbayes.identity import Side, Split
from xpbayes.inference.fit import Inferred, fit_stars
from xpbayes.production.model_file import TrainedModel
from xpbayes.refinement.copies import copies
from xpbayes.refinement.learning import Lessons
from xpbayes.refinement.refined import SecondStage, refine_labels
from xpbayes.refinement.stage import BLIND, calibrate_second_stage, labels_of, lessons_of, second_stage_of
from xpbayes.training.training_set import training_cuts

UNITS = (1e3, 1.0, 1.0)
N_COSTED = 8192
COOL_DWARF, HOT, METAL_POOR = 4.2, 6.5, -1.0


def robust(values: np.ndarray) -> float:
    return float(1.4826 * np.nanmedian(np.abs(values - np.nanmedian(values))))


def kinds(labels: np.ndarray) -> dict[str, np.ndarray]:
    teff, feh, logg = labels.T
    return {
        "[Fe/H] < -1": feh < METAL_POOR,
        f"Teff > {HOT:g} kK": teff > HOT,
        f"dwarfs below {COOL_DWARF:g} kK": (teff < COOL_DWARF) & (logg > 4.0),
    }


def line(name: str, estimate: np.ndarray, half: np.ndarray, truth: np.ndarray, error: np.ndarray) -> None:
    residual = estimate - truth
    inside = np.abs(residual) < np.hypot(half, error)
    scatter = " ".join(f"{u * robust(r):8.3f}" for u, r in zip(UNITS, residual.T, strict=True))
    bias = " ".join(f"{u * np.nanmedian(r):+8.3f}" for u, r in zip(UNITS, residual.T, strict=True))
    print(
        f"{name:44} {len(truth):5d}  {scatter}  {bias}  {' '.join(f'{v:.3f}' for v in inside.mean(axis=0))}", flush=True
    )


def slope(x: np.ndarray, y: np.ndarray, fixed: np.ndarray) -> float:
    """Of y on x once a quadratic in what is fixed is taken off both."""
    terms = [np.ones(len(x)), *fixed.T, *(fixed**2).T, fixed[:, 0] * fixed[:, 1]]
    basis = np.stack(terms, axis=1)
    rest = [v - basis @ np.linalg.lstsq(basis, v, rcond=None)[0] for v in (x, y)]
    good = np.abs(rest[0]) < 3 * robust(rest[0])
    return float(np.sum(rest[0][good] * rest[1][good]) / np.sum(rest[0][good] ** 2))


def cost(trained: TrainedModel, stars: Spectra, turns: int = 5) -> None:
    """CPU time of inference in memory, from flux alone; the first turn, which compiles, does not count."""
    for what, draws in (("without draws", {"n_draws": 0}), ("as by default", {})):
        spent: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(turns):
            for second_stage, of in spent.items():
                config = InferenceConfig(use_parallax=False, second_stage=second_stage, **draws)
                begun = time.process_time()
                xpbayes.infer(trained, stars, config=config)
                of.append(1e3 * (time.process_time() - begun) / len(stars))
        with_it, without = (np.array(spent[second_stage][1:]) for second_stage in (True, False))
        ratio = with_it / without
        print(
            f"cost, {what}: {np.median(with_it):.3f} CPU ms a star with the second stage, {np.median(without):.3f} "
            f"without, {np.median(ratio):.3f} times ({ratio.min():.3f} to {ratio.max():.3f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("stars")
    parser.add_argument("--members", type=int, default=2)
    parser.add_argument("--only-cost", action="store_true")
    arguments = parser.parse_args()
    trained, table = xpbayes.load(arguments.model), xpbayes.read_star_table(arguments.stars)
    cost(trained, table.take(np.linspace(0, len(table) - 1, N_COSTED, dtype=int)))
    if arguments.only_cost:
        return
    model, n_xp = trained.star_model, trained.channels.n_xp
    settings = TrainingConfig.model_validate(trained.card["settings"])
    floor = settings.floor_for(len(trained.labels))
    kept, split = (
        training_cuts(table, settings.labels, settings.teff_max, settings.min_channels),
        Split.of(trained.card),
    )
    training, aside, held_out = (
        kept.take(split.on(side, kept.source_id)).stars(trained.labels, label_error_floor=floor)
        for side in (Side.TRAINING, Side.KEPT_ASIDE, Side.HELD_OUT)
    )
    config = RefinementConfig(members=arguments.members)
    lessons, scale = lessons_of(model, training, n_xp)
    copied = [
        lessons_of(model, copies(model.forward, training, n_xp, np.random.default_rng(i)), n_xp, scale)[0]
        for i in range(config.copies_for(len(training)))
    ]
    lessons = Lessons(*map(np.concatenate, zip(lessons, *copied, strict=True)))
    known, known_error = labels_of(training)
    n_channels = len(scale)
    found, of_aside = (fit_stars(model, stars, BLIND) for stars in (held_out, aside))
    truth, error = labels_of(held_out)
    known_aside = labels_of(aside)[0]

    def second_stage(some: Lessons, without: str | None = None) -> SecondStage:
        """Learned, and judged on stars kept aside, without any star of a kind."""
        members, judges = (
            np.ones(len(labels), bool) if without is None else ~kinds(labels)[without]
            for labels in (known, known_aside)
        )
        some = some.take(np.tile(members, 1 + len(copied)))
        second = second_stage_of(some, known[members], known_error[members], scale, n_xp, config)
        rows = np.flatnonzero(judges)
        seen = of_aside.take(rows)
        return calibrate_second_stage(
            second, model, [Inferred(aside.take(jnp.asarray(rows)), seen, seen, use_parallax=False)]
        )

    def refined(second: SecondStage, stars=held_out, of=found):
        return refine_labels(second, model, Inferred(stars, of, of, use_parallax=False))

    print(f"{'':44} {'n':>5}  scatter: Teff [K], [Fe/H], log g    bias                         68 % intervals cover")
    sigma = np.sqrt(np.diagonal(found.laplace, axis1=1, axis2=2))[:, :3]
    line("forward posterior: modes, Laplace's errors", found.estimate[:, :3], sigma, truth, error)
    begun = time.process_time()
    second = second_stage(lessons)
    print(f"one second stage: {time.process_time() - begun:.0f} CPU s")
    answer = refined(second)
    line("second stage", answer.median, 0.5 * (answer.high - answer.low), truth, error)
    for name, of in (("forward", found.estimate[:, :3]), ("refined", answer.median)):
        giant = truth[:, 2] < 3.5
        slopes = [slope(truth[g, 1], of[g, 1].astype(float), truth[g][:, [0, 2]]) for g in (giant, ~giant)]
        print(f"{name} [Fe/H] on the true one at fixed Teff and log g: giants {slopes[0]:.2f}, dwarfs {slopes[1]:.2f}")

    rng = np.random.default_rng(1)
    exchanged = lessons.features.copy()
    exchanged[:, -n_channels:] = exchanged[rng.permutation(len(exchanged)), -n_channels:]
    answer = refined(second_stage(lessons._replace(features=exchanged)))
    line("learned from exchanged residuals", answer.median, 0.5 * (answer.high - answer.low), truth, error)

    for name, here in kinds(truth).items():
        answer = refined(second_stage(lessons, name))
        line(f"{name}: forward", found.estimate[here, :3], sigma[here], truth[here], error[here])
        half = 0.5 * (answer.high - answer.low)
        line("  refined, learned without them", answer.median[here], half[here], truth[here], error[here])
        moved = np.abs(answer.median - found.estimate[:, :3])[here] / sigma[here]
        shares = " ".join(f"{v:.2f}" for v in np.mean(moved < 1.0, axis=0))
        print(
            f"  within the forward posterior's errors of it: {shares}; "
            f"share of the second stage {answer.share[here].mean():.2f}"
        )

    noisy = copies(model.forward, held_out, n_xp, np.random.default_rng(9))
    of = fit_stars(model, noisy, BLIND)
    answer, ratio = refined(second, noisy, of), signal_to_noise(held_out) / signal_to_noise(noisy)
    sigma = np.sqrt(np.diagonal(of.laplace, axis1=1, axis2=2))[:, :3]
    for low, high in ((0.0, 1.2), (1.2, 2.5), (2.5, 6.0)):
        some = (ratio >= low) & (ratio < high) & np.isfinite(answer.median).all(axis=1)
        line(
            f"copies with S/N over {low:g} to {high:g}: forward",
            of.estimate[some, :3],
            sigma[some],
            truth[some],
            error[some],
        )
        half = 0.5 * (answer.high - answer.low)
        line("  refined", answer.median[some], half[some], truth[some], error[some])


if __name__ == "__main__":
    main()
