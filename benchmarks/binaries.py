"""Self-cleaning against the truth: equal-mass binaries, simulated at a known fraction, that it finds and singles it loses.

A model trained on the bundled sample (or the one given) plays nature: real labels and reddenings, parallaxes at 3 %,
noise from the real covariances; a known fraction of the stars is twice as bright at the same colour. Then a fresh model
is trained on the simulated measurements, binaries included, and cleans itself. Each star's log g error is one of four
sizes, because that decides what can be seen: a doubled flux is 0.3 dex in log g, or 41 % in parallax.
Two rounds of cleaning of the default phases; --preset zgr23 is the paper's own training (minutes instead).

Usage: python benchmarks/binaries.py [MODEL] [--fraction F] [--preset zgr23] [--stars N]
"""

import argparse
import os
from dataclasses import replace

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np

import xpbayes
from xpbayes.config import DEFAULT_PHASES, Phase, TrainingConfig
from xpbayes.data.stars import Stars
from xpbayes.models.forward import predict_flux
from xpbayes.progress import progress_shown
from xpbayes.training.learn import train
from xpbayes.training.self_cleaning import fig4_outliers, pulls, survivors
from xpbayes.training.training_set import training_cuts

LABELS = ("teff", "feh", "logg")
LABEL_ERROR = (0.05, 0.05)
"""Of Teff [kK] and [Fe/H] [dex]."""
LOGG_ERRORS = (0.03, 0.05, 0.1, 0.2)
PARALLAX_ERROR, REDDENING_ERROR = 0.03, 0.03
"""Relative, and in mag."""
RNG = np.random.default_rng(20230303)


def simulate(model: xpbayes.TrainedModel, stars: Stars, fraction: float) -> tuple[Stars, np.ndarray, np.ndarray]:
    """Replace everything that was measured by a draw from the model.

    Args:
        model: nature.
        stars: real stars, for labels, reddenings, parallaxes, covariances.
        fraction: share of binaries.

    Returns:
        simulated stars, (star,) True for binaries, (star,) error of log g.
    """
    n = len(stars)
    truth = np.asarray(stars.labels, np.float64)
    extinction = np.clip(np.asarray(stars.reddening), 0.01, 2.0)
    parallax = np.asarray(stars.parallax, np.float64)
    u = jnp.asarray(np.column_stack([truth, np.log(extinction), np.log(parallax)]), jnp.float32)
    flux = np.asarray(jax.vmap(predict_flux, (None, 0, 0))(model.forward, u, jnp.asarray(stars.ln_scale)))
    binary = RNG.random(n) < fraction
    flux = flux * np.where(binary, 2.0, 1.0)[:, None]
    noise = np.linalg.solve(np.asarray(stars.whitening, np.float64), RNG.normal(size=flux.shape)[..., None])[..., 0]
    logg_error = RNG.choice(LOGG_ERRORS, n)
    error = np.column_stack([np.full(n, LABEL_ERROR[0]), np.full(n, LABEL_ERROR[1]), logg_error])
    return (
        replace(
            stars,
            flux=(flux + noise).astype(np.float32),
            labels=(truth + error * RNG.normal(size=truth.shape)).astype(np.float32),
            label_inv_error=(1.0 / error).astype(np.float32),
            parallax=(parallax * (1 + PARALLAX_ERROR * RNG.normal(size=n))).astype(np.float32),
            parallax_inv_error=(1.0 / (PARALLAX_ERROR * parallax)).astype(np.float32),
            reddening=(extinction + REDDENING_ERROR * RNG.normal(size=n)).astype(np.float32),
            reddening_inv_error=np.full(n, 1.0 / REDDENING_ERROR, np.float32),
        ),
        binary,
        logg_error,
    )


def phases() -> tuple[Phase, ...]:
    """The default's first two rounds, each followed by the paper's self-cleaning."""
    models = [p for p in DEFAULT_PHASES if p.update == "model"][:2]
    solve, clean = next(p for p in DEFAULT_PHASES if p.update == "stars"), Phase(update="self_cleaning")
    return (models[0], solve, clean, models[1].model_copy(update={"stars": "survivors"}), solve, clean)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder of the model that plays nature; trained first if not given")
    parser.add_argument("--fraction", type=float, default=0.15)
    parser.add_argument("--stars", type=int, default=6000)
    parser.add_argument("--preset", default="default", choices=("default", "zgr23"))
    arguments = parser.parse_args()
    table = xpbayes.bundled_stars()
    with progress_shown():
        nature = xpbayes.load_model(arguments.model) if arguments.model else xpbayes.train(table)
    config = TrainingConfig(model_error=False, phases=phases())
    if arguments.preset == "zgr23":
        config = TrainingConfig(preset="zgr23")
    kept = training_cuts(table, LABELS, config.teff_max)
    kept = kept.take(kept.column("spectroscopic_parallax") < 20.0)
    real = kept.take(np.arange(min(arguments.stars, len(kept)))).stars(LABELS, spectroscopic_parallax=True)
    stars, binary, logg_error = simulate(nature, real, arguments.fraction)
    dwarf = np.asarray(real.labels)[:, 2] > 3.5
    with progress_shown():
        result = train(stars, kept.channels.wavelengths, config)
    dropped = ~result.survivor
    print(f"\n{len(binary)} simulated stars, {binary.mean():.1%} equal-mass binaries, preset {arguments.preset}")
    for entry in result.phases:
        if entry["update"] == "self_cleaning":
            print(f"self-cleaning in phase {entry['phase']}: dropped {entry['dropped_by']}")
    found = pulls(result.model.forward, stars, result.theta_log)
    last = [p for p in config.phases if p.update == "self_cleaning"][-1]
    rules = {
        f"labels, parallax: each within {last.max_parameter_pull:g} sigma": ~survivors(found, last)["parameters"],
        f"fluxes: each within {last.max_flux_pull:g} sigma": ~survivors(found, last)["fluxes"],
        "both, as a training phase applies them": dropped,
        "Fig. 4: (log g, parallax) within 3.5 sigma": fig4_outliers(found.labels[:, 2], found.parallax),
    }
    print(f"\n{'rule, at the final solution':44} {'completeness':>12} {'false alarms':>12}")
    for rule, marked in rules.items():
        print(f"{rule:44} {marked[binary].mean():12.1%} {marked[~binary].mean():12.1%}")
    print(f"\n{'log g error':>11} {'kind':8} {'binaries':>9} {'completeness':>13} {'singles':>8} {'false alarms':>13}")
    for size in (*LOGG_ERRORS, None):
        for kind, member in (("all", np.ones_like(dwarf)), ("dwarfs", dwarf), ("giants", ~dwarf)):
            use = member if size is None else member & (logg_error == size)
            two, one = use & binary, use & ~binary
            print(
                f"{'all' if size is None else f'{size:g} dex':>11} {kind:8} {two.sum():9d} {dropped[two].mean():13.1%} "
                f"{one.sum():8d} {dropped[one].mean():13.1%}"
            )


if __name__ == "__main__":
    main()
