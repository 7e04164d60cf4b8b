"""One star or two, against the truth of a mock survey: how well pairs are told from singles, and are the odds right?

First the survey's ordinary stars with parallaxes at S/N above 10: how well `ln_odds_binary` ranks binaries above single
stars (the AUC), by the share of the second star's light in the first's; how many are found at 2 % false alarms; log g and
Teff of the first star with and without the second; and what it costs. Then, for some stars, half of them binaries,
Laplace's ln odds against those by importance draws, and means under B against chains of NUTS.
Five minutes on 2 quiet cores.

Usage: python benchmarks/second_source.py MODEL SURVEY [--checked 200]
SURVEY is a folder with `stars_test` (star tables) and `truth_test.parquet`, as the mock survey of the shared data makes it.
"""

import argparse
import os
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import xpbayes
from xpbayes.config import InferenceConfig
from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks
from xpbayes.device import prepare_device
from xpbayes.inference import second_source
from xpbayes.inference.ridge import companion_ridge
from xpbayes.inference.sampling.nuts import nuts_transition
from xpbayes.inference.scatter import loosened
from xpbayes.inference.search.optima import search
from xpbayes.inference.search.starts import make_grid
from xpbayes.inference.second_source import (
    companions_tried,
    ln_evidence_of_single,
    solve_companions,
    weigh_hypotheses,
)
from xpbayes.models.objective import curvature, objective
from xpbayes.models.pair import pair_of
from xpbayes.models.star_model import StarModel
from xpbayes.models.theta import to_log
from xpbayes.runs.infer import stars_scatter

MIN_SNR, FALSE_ALARMS = 10.0, 0.02
N_DRAWS, DOF = 400, 5.0
"""Importance draws per optimum, of a Student t."""
CHAINS, WARMUP, KEPT, STEP = 2, 100, 400, 0.5


def read(survey: Path) -> tuple[list[xpbayes.Spectra], pd.DataFrame]:
    """Star tables of the ordinary stars with good parallaxes, and their truth, row by row."""
    truth, tables, rows = pd.read_parquet(survey / "truth_test.parquet").set_index("source_id"), [], []
    for path in sorted((survey / "stars_test").glob("*.parquet")):
        table = xpbayes.read_star_table(path)
        own = truth.loc[table.source_id]
        good = (own.parallax_true / own.parallax_error > MIN_SNR) & (own.odd == "") & (table.problems() == "ok")
        tables.append(table.take(np.flatnonzero(good)))
        rows.append(own[good.to_numpy()])
    return tables, pd.concat(rows)


def auc(score: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    both = np.concatenate([score[positive], score[negative]])
    rank = both.argsort(kind="stable").argsort() + 1
    n, m = positive.sum(), negative.sum()
    return float((rank[:n].sum() - n * (n + 1) / 2) / (n * m))


def acceptance(model: xpbayes.Model, tables: list[xpbayes.Spectra], truth: pd.DataFrame) -> None:
    """Print the table."""
    few = tables[0].take(np.arange(64))
    for binaries in (False, True):
        model.fit(few, draws=0, second_stage=False, binaries=binaries)  # compile
    seconds, found = {}, {}
    for binaries in (False, "suspicious", True):
        begun = time.process_time()
        fits = [model.fit(t, draws=0, second_stage=False, binaries=binaries) for t in tables]
        seconds[binaries] = 1e3 * (time.process_time() - begun) / len(truth)
        found[binaries] = {
            name: np.concatenate([np.stack(f.catalogue[name].to_numpy(zero_copy_only=False)) for f in fits])
            for name in fits[0].catalogue.column_names
            if name.startswith(("ln_odds", "binary_", "stellar_params_est"))
        }
    c = found[True]
    odds = np.nan_to_num(c["ln_odds_binary"].astype(float), nan=-99.0)
    ordinary = (truth.rv == 3.1).to_numpy()
    single = ordinary & ~(truth.binary | truth.spurious | truth.crowded).to_numpy()
    binary, share = ordinary & truth.binary.to_numpy(), truth.second_share.to_numpy()
    cut = np.quantile(odds[single], 1 - FALSE_ALARMS)
    asked = np.isfinite(found["suspicious"]["ln_odds_binary"].astype(float))
    print(
        f"{len(truth)} stars, {single.sum()} clean single ones; at {FALSE_ALARMS:.0%} false alarms ln odds > {cut:.2f}"
    )
    print(f"{'second over first':18} {'n':>5} {'AUC':>6} {'found':>6} | log g, Teff: bias alone, bias and |median| "
          "under B | within errors | flux ratio | suspicious")  # fmt: skip
    groups = {"0.5 to 1": (0.5, 9.0), "0.1 to 0.5": (0.1, 0.5), "below 0.1": (0.0, 0.1)}
    labels = truth[["teff", "feh", "logg"]].to_numpy() / np.asarray([1e3, 1.0, 1.0])
    off, alone = c["binary_params"][:, :3] - labels, c["stellar_params_est"][:, :3] - labels
    inside = np.abs(off) < c["binary_params_err"][:, :3]
    for name, (low, high) in groups.items():
        own = binary & (share > low) & (share <= high)
        said = np.abs(c["binary_flux_ratio"].astype(float) - share) < c["binary_flux_ratio_err"].astype(float)
        print(
            f"{name:18} {own.sum():5d} {auc(odds, own, single):6.3f} {(odds[own] > cut).mean():6.2f} | "
            f"{np.median(alone[own, 2]):+.3f} {np.median(off[own, 2]):+.3f} {np.median(np.abs(off[own, 2])):.3f}, "
            f"{1e3 * np.median(alone[own, 0]):+.0f} {1e3 * np.median(off[own, 0]):+.0f} "
            f"{1e3 * np.median(np.abs(off[own, 0])):.0f} K | {inside[own, 2].mean():.2f} {inside[own, 0].mean():.2f} | "
            f"{said[own].mean():.2f} | {asked[own].mean():.2f}"
        )
    print(f"clean single stars that are suspicious: {asked[single].mean():.2f}; by kind, share above the cut: "
          + ", ".join(f"{name} {(odds[single & (truth.kind == k).to_numpy()] > cut).mean():.3f}"
                      for k, name in enumerate(("dwarfs", "subgiants", "giants", "clump"))))  # fmt: skip
    print(f"CPU ms per star: alone {seconds[False]:.1f}, suspicious ones compared {seconds['suspicious']:.1f}, all "
          f"{seconds[True]:.1f}")  # fmt: skip


def student(key: jax.Array, mean: jax.Array, factor: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """Draws of a multivariate Student t, and their ln density."""
    normal, chi2 = jax.random.split(key)
    p = mean.size
    z = jax.random.normal(normal, (n, p)) / jnp.sqrt(jax.random.chisquare(chi2, DOF, shape=(n, 1)) / DOF)
    lgamma = jax.scipy.special.gammaln
    ln = lgamma((DOF + p) / 2) - lgamma(DOF / 2) - 0.5 * p * jnp.log(DOF * jnp.pi)
    ln -= jnp.sum(jnp.log(jnp.diagonal(factor))) + 0.5 * (DOF + p) * jnp.log1p(jnp.sum(z**2, axis=1) / DOF)
    return mean + z @ factor.T, ln


def factors(model: StarModel, stars: Stars, at: np.ndarray) -> np.ndarray:
    """Cholesky factors of Laplace's covariances, in float64; of the eigenvalues' magnitude where L is no bowl."""
    of_each = jax.jit(jax.vmap(lambda star, u: curvature(model, star, u)[0].hessian))
    hessian = np.asarray(by_blocks(of_each, STAR_BLOCK, stars, at), np.float64)
    value, vector = np.linalg.eigh(hessian)
    covariance = (vector * (2.0 / np.maximum(np.abs(value), 1e-3))[:, None, :]) @ vector.transpose(0, 2, 1)
    return np.linalg.cholesky(covariance).astype(np.float32)


def check(model: xpbayes.Model, tables: list[xpbayes.Spectra], truth: pd.DataFrame, n: int) -> None:
    """Compare Laplace's odds with importance draws, and B's means with NUTS."""
    binary = (
        truth.binary.iloc[: len(tables[0])].to_numpy() & (truth.second_share.iloc[: len(tables[0])] > 0.1).to_numpy()
    )
    rows = np.sort(np.concatenate([np.flatnonzero(binary)[: n // 2], np.flatnonzero(~binary)[: n - n // 2]]))
    stars, config = tables[0].take(rows).stars(model.labels), InferenceConfig()
    scatter = stars_scatter(model, stars)
    stars = (stars if scatter is None else loosened(stars, scatter)).blind()
    ridge = companion_ridge(model.star_model, model.labels, np.asarray(model.channels.wavelengths))
    bare = model.star_model.without_error
    stars, _, single, _ = search(model.star_model, make_grid(bare, config.n_nodes), stars, config)
    said = weigh_hypotheses(bare, ridge, stars, single, np.arange(n), config.max_iterations)
    best = np.asarray(single.theta_log)[np.arange(n), np.argmin(single.objective, axis=1)]
    pairs = solve_companions(bare, ridge, stars, best, config.max_iterations)
    keys = jax.random.split(jax.random.key(1), n)

    def by_draws(hypothesis: StarModel, key: jax.Array, star: Stars, mean: jax.Array, factor: jax.Array) -> jax.Array:
        draws, ln = student(key, mean, factor, N_DRAWS)
        return -0.5 * jax.vmap(partial(objective, hypothesis, star))(draws) - ln

    def ln_evidence(hypothesis: StarModel, at: np.ndarray) -> np.ndarray:
        run = jax.jit(lambda model, *of_stars: jax.vmap(partial(by_draws, model))(*of_stars))
        ln = np.asarray(run(hypothesis, keys, stars, at, factors(hypothesis, stars, at)), np.float64)
        return np.logaddexp.reduce(np.where(np.isfinite(ln), ln, -np.inf), axis=1) - np.log(N_DRAWS)

    each = []
    for z, pair in zip(companions_tried(), pairs, strict=True):
        held = StarModel(pair_of(bare.forward, ridge, jnp.float32(z)), bare.prior)
        each.append(ln_evidence(held, np.asarray(to_log(pair.estimate), np.float32)))
    double = np.logaddexp.reduce(each, axis=0) - np.log(len(each))
    # A's other optima as Laplace has them.
    others = ln_evidence_of_single(bare, stars, single)
    others -= ln_evidence_of_single(bare, stars, single._replace(objective=only_lowest(single.objective)))
    odds = double - ln_evidence(bare, best) - others
    agree("Laplace's ln odds less importance draws'", said.ln_odds, odds)
    second_source.N_COMPANIONS = 48
    finer = weigh_hypotheses(bare, ridge, stars, single, np.arange(n), config.max_iterations)
    second_source.N_COMPANIONS = 12
    agree("ln odds of 12 companions less those of 48", said.ln_odds, finer.ln_odds)

    free = StarModel(pair_of(bare.forward, ridge), bare.prior)
    begin = np.insert(to_log(said.estimate), said.estimate.shape[1] - 2, 0.0, axis=1)
    brightest = np.argmax(np.stack([p.ln_odds for p in pairs], axis=1), axis=1)
    begin[:, -3] = companions_tried()[brightest]
    theta = np.stack([np.asarray(to_log(p.estimate)) for p in pairs], axis=1)[np.arange(n), brightest]
    begin[:, :-3], begin[:, -2:] = theta[:, :-2], theta[:, -2:]
    begin = begin.astype(np.float32)

    def chain(key: jax.Array, star: Stars, center: jax.Array, factor: jax.Array) -> tuple:
        target = lambda y: 0.5 * objective(free, star, center + factor @ y)  # noqa: E731 - a closure of the star's

        def move(y: jax.Array, key: jax.Array) -> tuple:
            new = nuts_transition(target, y, jnp.float32(STEP), key)
            at = center + factor @ new.z
            return new.z, (jnp.exp(free.forward.ln_flux_ratio(at)), at[ridge.at[2]])

        return jax.lax.scan(move, jnp.zeros_like(center), jax.random.split(key, WARMUP + KEPT))[1]

    factor = factors(free, stars, begin)
    run = jax.jit(jax.vmap(chain))
    drawn = [run(jax.random.split(jax.random.key(9 + i), n), stars, begin, factor) for i in range(CHAINS)]
    kept = [np.stack([np.asarray(d[i])[:, WARMUP:] for d in drawn], axis=1) for i in range(2)]
    means = kept[0].mean(axis=2)
    settled = np.abs(means[:, 0] - means[:, 1]) < 0.1
    compare("NUTS", said, kept[0].mean(axis=(1, 2)), kept[1].mean(axis=(1, 2)), ridge.at[2], settled)


def only_lowest(value: np.ndarray) -> np.ndarray:
    """L of each star's best start, infinite for the others."""
    value = np.asarray(value)
    return np.where(value == np.min(value, axis=1, keepdims=True), value, np.inf)


def agree(name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    off, rank = np.abs(ours - theirs), pd.Series(ours).corr(pd.Series(theirs), method="spearman")
    print(f"{len(off)} stars, {name}: median {np.median(ours - theirs):+.2f}, 68 % within {np.quantile(off, 0.68):.2f}, "
          f"95 % within {np.quantile(off, 0.95):.2f}; rank correlation {rank:.3f}", flush=True)  # fmt: skip


def compare(name: str, said: object, ratio: np.ndarray, logg: np.ndarray, at: int, use: np.ndarray) -> None:
    """Print how far B's means are from others, in their own errors."""
    pulls = (said.flux_ratio - ratio)[use] / said.flux_ratio_error[use]
    pulls_logg = (said.estimate[:, at] - logg)[use] / said.error[use, at]
    print(f"means under B less those of {name}, in sigma, {use.sum()} stars: flux ratio {np.median(pulls):+.2f}, 68 % "
          f"within {np.quantile(np.abs(pulls), 0.68):.2f}; log g {np.median(pulls_logg):+.2f}, "
          f"{np.quantile(np.abs(pulls_logg), 0.68):.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("survey", type=Path)
    parser.add_argument("--checked", type=int, default=200)
    arguments = parser.parse_args()
    prepare_device()
    model, (tables, truth) = xpbayes.load(arguments.model), read(arguments.survey)
    if arguments.checked:
        check(model, tables, truth, arguments.checked)
    acceptance(model, tables, truth)


if __name__ == "__main__":
    main()
