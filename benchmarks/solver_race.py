"""The engine's solver beside the paper's Adam, 64 random starts, float64 and optimistix: real held-out stars, one run.

    python benchmarks/solver_race.py MODEL STARS.parquet [--stars 2000] [--optimistix 200] [--steps 12288] [--starts N]

Stars are those that the model was not trained on (its card names the split), fluxes alone unless --parallax. All rates
are stars per core-second: CPU time of one process whose programs run in one thread; so many cores, so many processes.
1. ZGR23's Adam (12,288 steps, 0.01 halved every 768, float32, in the batch size that is fastest here) against one solve
   from the same start, and against the whole search with its starts and both covariances. Every star runs all steps:
   nothing is extrapolated. Objectives are compared in float64, at both ends, for the same stars.
2. The best of 64 starts drawn from the label prior and the range of E, each solved by our solver, against the engine's.
3. The same engine in float64: how far the float32 estimates are from it, in each star's own sigma.
4. optimistix' Levenberg-Marquardt and BFGS in float64 from the start of 1.
Acceptance: 1,000 and 300 times Adam, better or within 0.01 for 99.9 %; 99.5 % reach the best of 64 within 0.01; 99.9 %
within 1 % of sigma; never worse than optimistix by more than 0.01.
"""

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

import xpbayes
from xpbayes.config import InferenceConfig, TrainingConfig
from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks
from xpbayes.identity import Side, Split
from xpbayes.inference.errors import evaluate_mode, laplace_covariance
from xpbayes.inference.fit import fit_stars
from xpbayes.inference.linear_algebra import invert_positive
from xpbayes.inference.search.optima import search
from xpbayes.inference.search.solver import solve
from xpbayes.inference.search.starts import MAX_EXTINCTION, MIN_EXTINCTION, StartGrid, make_grid
from xpbayes.models.likelihood import deviance, n_observed
from xpbayes.models.objective import flux_residuals, measurement_residuals, objective, smooth_part
from xpbayes.models.prior import draw_labels
from xpbayes.models.star_model import StarModel
from xpbayes.models.theta import to_linear
from xpbayes.training.training_set import training_cuts

N_RANDOM = 64
CLOSE = 0.01
"""In L: the same optimum for every purpose."""
RATE, HALVED_EVERY = 0.01, 768
BATCHES = (64, 128, 256, 512, 1024)
LISTED = 12
"""Failures that are listed one by one."""
GIANT_LOGG = 3.8
ABOVE_ZERO = 300.0
"""Added to what is not a sum of squares, so that Levenberg-Marquardt may take its root."""


class Problem(NamedTuple):
    """A trained model and the stars as measured, in one floating point precision."""

    model: StarModel
    stars: Stars


class Answer(NamedTuple):
    """What the engine says of every star.

    Attributes:
        stars: the batch with the model's error folded in, whose L is minimised.
        first: (star, parameter) the best of the starts that were found for these stars.
        theta_log: (star, parameter) labels, ln E, ln parallax.
        converged: (star,).
    """

    stars: Stars
    first: NDArray[np.floating]
    theta_log: NDArray[np.floating]
    converged: NDArray[np.bool_]


@contextmanager
def core_seconds(took: list[float]) -> Iterator[None]:
    begun = time.process_time()
    yield
    took.append(time.process_time() - begun)


def engine(at: Problem, grid: StartGrid, config: InferenceConfig) -> Answer:
    """Search as `infer` does, and keep what it does not return: the objective that was minimised."""
    stars, starts, solution, _ = search(at.model, grid, at.stars, config)
    best, which = winner(solution.theta_log, solution.objective)
    return Answer(stars, starts[:, 0], best, np.asarray(solution.converged)[np.arange(len(best)), which])


def winner(theta_log: Any, value: Any) -> tuple[NDArray[np.floating], NDArray[np.intp]]:
    """(star, parameter) of the best start, and which it is."""
    value = np.asarray(value)
    which = np.argmin(np.where(np.isfinite(value), value, np.inf), axis=1)
    return np.asarray(theta_log)[np.arange(len(which)), which], which


def double(tree: Any) -> Any:
    """The same in float64; call with 64 bits enabled."""
    return jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64) if np.asarray(leaf).dtype == np.float32 else np.asarray(leaf), tree
    )


def exact_objective(at: Problem, stars: Stars, theta_log: NDArray[np.floating]) -> NDArray[np.float64]:
    """L in float64, from the float32 data."""
    with jax.enable_x64(True):
        model, batch = double((at.model, stars))

        @jax.jit
        def value(batch: Stars, u: jax.Array) -> jax.Array:
            return jax.vmap(partial(objective, model))(batch, u)

        return np.asarray(by_blocks(value, STAR_BLOCK, batch, np.asarray(theta_log, np.float64)))


@jax.jit
def adam(model: StarModel, stars: Stars, start: jax.Array, steps: jax.Array) -> jax.Array:
    """ZGR23's optimiser: a batch of stars together, nothing but gradients of the sum."""
    optimiser = optax.adam(lambda count: RATE * 0.5 ** (count // HALVED_EVERY))
    gradient = jax.grad(lambda u: jnp.sum(jax.vmap(partial(objective, model))(stars, u)))

    def step(_: jax.Array, state: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        u, moments = state
        update, moments = optimiser.update(gradient(u), moments)
        return u + update, moments

    return jax.lax.fori_loop(0, steps, step, (start, optimiser.init(start)))[0]


def race_adam(at: Problem, answer: Answer, config: InferenceConfig, steps: int) -> None:
    """Part 1."""
    model, n = at.model.without_error, len(at.stars)
    speeds = {}
    for size in BATCHES:
        if size > max(n, BATCHES[0]):
            continue
        batch = jax.tree.map(jnp.asarray, answer.stars.take(jnp.arange(size) % n))
        start = jnp.asarray(answer.first[np.arange(size) % n])
        adam(model, batch, start, jnp.int32(2)).block_until_ready()
        took: list[float] = []
        with core_seconds(took):
            adam(model, batch, start, jnp.int32(100)).block_until_ready()
        speeds[size] = 100 * size / took[0]
    fastest = max(speeds, key=lambda size: speeds[size])
    print(f"   steps per core-second by batch size: {', '.join(f'{k}: {v:,.0f}' for k, v in speeds.items())}")

    def descend(stars: Stars, start: jax.Array) -> jax.Array:
        return adam(model, stars, start, jnp.int32(steps))

    took = []
    with core_seconds(took):
        found = np.asarray(by_blocks(descend, fastest, answer.stars, answer.first))
    theirs = fastest * -(-n // fastest) / took[0]  # the last block is filled up, and worked on as well

    def one_start() -> Any:
        return solve(model, answer.stars, jnp.asarray(answer.first), config.max_iterations)

    def search() -> Any:
        return fit_stars(at.model, at.stars, config.model_copy(update={"n_draws": 0}))

    single, result = one_start(), search()  # compiles
    ours, whole = [], []
    for _ in range(3):
        with core_seconds(ours):
            one_start()
        with core_seconds(whole):
            search()
    ours, whole = n / np.median(ours), n / np.median(whole)
    print(f"   Adam, {steps} steps, {n} stars in batches of {fastest}: {theirs:,.1f} stars per core-second")
    print(f"   one solve from the same start: {ours:,.0f} = {ours / theirs:,.0f} x Adam (target 1,000)")
    print(f"   whole search, both covariances: {whole:,.0f} = {whole / theirs:,.0f} x Adam (target 300)")

    values = [exact_objective(at, answer.stars, u) for u in (found, np.asarray(single.theta_log), answer.theta_log)]
    by_infer = np.asarray(to_linear(jnp.asarray(answer.theta_log)))
    same = np.mean(np.all(np.abs(result.estimate / by_infer - 1) < 1e-4, axis=1))
    print(f"   (the engine as taken apart here gives infer's own estimates for {same:.2%} of stars)")
    for name, mine in (("one solve", values[1]), ("the engine", values[2])):
        above = mine - values[0]
        print(
            f"   {name} is better than Adam or within {CLOSE} for {np.mean(above < CLOSE):.2%} of {n} stars (target "
            f"99.9 %); better by more than {CLOSE} for {np.mean(above < -CLOSE):.2%}; worst {above.max():.3f}"
        )
    say_failures(at, answer, found, values[2] - values[0])


def race_random(at: Problem, answer: Answer, config: InferenceConfig) -> None:
    """Part 2."""
    n, rng = len(at.stars), np.random.default_rng(1)
    labels = np.asarray(draw_labels(at.model.label_prior, jax.random.key(1), n * N_RANDOM))
    ln_extinction = rng.uniform(np.log(MIN_EXTINCTION), np.log(MAX_EXTINCTION), n * N_RANDOM)
    # The solver brings the parallax to its best value before anything else, wherever it starts.
    start = np.concatenate([labels, ln_extinction[:, None], np.zeros((n * N_RANDOM, 1))], axis=1).astype(np.float32)
    best, took = np.empty_like(answer.theta_log), []
    n_reached = np.zeros(n, int)
    for begin in range(0, n, STAR_BLOCK):  # 64 copies of a star's data: some stars at a time
        rows = np.arange(begin, min(begin + STAR_BLOCK, n))
        repeated = np.repeat(rows, N_RANDOM)
        some = slice(begin * N_RANDOM, (rows[-1] + 1) * N_RANDOM)
        with core_seconds(took):
            found = solve(at.model, answer.stars.take(repeated), start[some], config.max_iterations)
        shape = (len(rows), N_RANDOM)
        value = np.where(np.isfinite(found.objective), found.objective, np.inf).reshape(shape)
        best[rows], _ = winner(np.asarray(found.theta_log).reshape(*shape, -1), value)
        n_reached[rows] = np.sum(value < value.min(axis=1)[:, None] + CLOSE, axis=1)
    theirs, ours = (exact_objective(at, answer.stars, u) for u in (best, answer.theta_log))
    above = ours - theirs
    print(
        f"   {np.mean(above < CLOSE):.2%} of {n} stars reach the best of {N_RANDOM} random starts within {CLOSE} (target "
        f"99.5 %); the engine is lower by more than that for {np.mean(above < -CLOSE):.2%}"
    )
    print(
        f"   of {N_RANDOM} random starts, {np.median(n_reached):.0f} (median) end in the star's best optimum; "
        f"{sum(took):.0f} s"
    )
    say_failures(at, answer, best, above)


def say_failures(at: Problem, answer: Answer, better: NDArray[np.floating], above: NDArray[np.float64]) -> None:
    """Where the engine ended above another solution: what kind of failure, and the worst of them."""
    wrong = np.flatnonzero(~(above < CLOSE))
    if not len(wrong):
        return
    kinds: Counter[str] = Counter()
    lines = []
    scale = np.asarray(at.model.forward.label_scale)
    for i in wrong[np.argsort(-above[wrong])]:
        mine, other = answer.theta_log[i].astype(float), better[i].astype(float)
        apart = np.max(np.abs(np.append((mine - other)[:-2] / scale, (mine - other)[-2:])))
        giant = mine[2] < GIANT_LOGG, other[2] < GIANT_LOGG
        if not answer.converged[i]:
            kind = "not converged"
        elif apart < 0.05:
            kind = "same optimum, not quite reached"
        elif giant[0] != giant[1]:
            kind = f"{'giant' if giant[0] else 'dwarf'} instead of {'giant' if giant[1] else 'dwarf'}"
        else:
            kind = "another optimum of the same kind of star"
        kinds[kind] += 1
        numbers = "; ".join(" ".join(f"{v:.3f}" for v in [*u[:-2], *np.exp(u[-2:])]) for u in (mine, other))
        lines.append(f"     star {i}: {above[i]:.3f} above, {kind}: ours {numbers} theirs")
    print(f"   failures: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}")
    print("\n".join(lines[:LISTED]))


def race_float64(at: Problem, grid: StartGrid, answer: Answer, config: InferenceConfig) -> None:
    """Part 3. The nodes of the start grid are the same numbers: drawn anew, they would be other nodes."""
    with jax.enable_x64(True):
        precise = Problem(*double(at))
        exact = engine(precise, double(grid), config)
        at_exact = by_blocks(partial(evaluate_mode, precise.model), STAR_BLOCK, exact.stars, exact.theta_log)
        theirs = np.asarray(to_linear(jnp.asarray(exact.theta_log)))
    assert exact.theta_log.dtype == np.float64
    covariance = {
        "Fisher": invert_positive(np.asarray(at_exact.fisher)),
        "Laplace": laplace_covariance(np.asarray(at_exact.hessian), exact.theta_log),
    }
    mine = np.asarray(to_linear(jnp.asarray(answer.theta_log)), np.float64)
    for name, matrices in covariance.items():
        sigma = np.sqrt(np.diagonal(matrices, axis1=1, axis2=2))
        off = np.max(np.abs(mine - theirs) / sigma, axis=1)
        print(
            f"   {np.mean(off < 0.01):.2%} of {len(off)} stars within 1 % of their {name} sigma of the float64 run in every "
            f"parameter (target 99.9 %); median {np.median(off):.1e}, 99.9 % {np.quantile(off, 0.999):.1e} sigma"
        )
    above = exact_objective(at, exact.stars, answer.theta_log) - exact_objective(at, exact.stars, exact.theta_log)
    far = np.flatnonzero(~(off < 0.01))
    print(f"   converged in float32 {answer.converged.mean():.2%}, in float64 {exact.converged.mean():.2%}")
    for i in far[np.argsort(-off[far])][:LISTED]:
        numbers = "; ".join(" ".join(f"{v:.4f}" for v in u) for u in (mine[i], theirs[i]))
        print(
            f"     star {i}: {off[i]:.3f} sigma off, L {above[i]:+.4f}, converged {answer.converged[i]} and "
            f"{exact.converged[i]}: float32 {numbers} float64"
        )


def as_residuals(model: StarModel, star: Stars, u: jax.Array) -> jax.Array:
    """L + constant as a sum of squares, for Levenberg-Marquardt."""
    flux = flux_residuals(model.forward, star, u)
    chi2 = flux @ flux
    share = jnp.sqrt(deviance(chi2, n_observed(star.whitening), star.inv_dof).value / chi2)
    rest = jnp.sqrt(jnp.maximum(smooth_part(model.prior, u) + ABOVE_ZERO, 1e-12))
    return jnp.concatenate([share * flux, measurement_residuals(star, u), rest[None]])


def race_optimistix(at: Problem, answer: Answer, config: InferenceConfig, n: int) -> None:
    """Part 4."""
    try:
        import optimistix as optx
    except ImportError:
        print("   not run: optimistix is not installed")
        return
    rows = np.unique(np.linspace(0, len(at.stars) - 1, min(n, len(at.stars))).astype(int))
    chosen = answer._replace(
        stars=jax.tree.map(lambda leaf: np.asarray(leaf)[rows], answer.stars),
        **{name: getattr(answer, name)[rows] for name in ("first", "theta_log", "converged")},
    )
    single = solve(at.model, chosen.stars, jnp.asarray(chosen.first), config.max_iterations)
    ours = {"one solve": np.asarray(single.theta_log), "the engine": chosen.theta_log}
    with jax.enable_x64(True):
        model, stars = double((at.model, chosen.stars))
        # Steps of one unit are then sensible in every parameter: BFGS begins with one.
        scale = jnp.concatenate([0.1 * jnp.asarray(model.forward.label_scale), jnp.full(2, 0.1)])

        def squares(star: Stars, start: jax.Array) -> jax.Array:
            method = optx.LevenbergMarquardt(rtol=1e-10, atol=1e-10)
            residuals = lambda x, _: as_residuals(model, star, start + scale * x)  # noqa: E731
            found = optx.least_squares(residuals, method, jnp.zeros_like(start), max_steps=500, throw=False)
            return start + scale * found.value

        def minimum(star: Stars, start: jax.Array) -> jax.Array:
            method = optx.BFGS(rtol=1e-10, atol=1e-10)
            value = lambda x, _: objective(model, star, start + scale * x)  # noqa: E731
            found = optx.minimise(value, method, jnp.zeros_like(start), max_steps=1000, throw=False)
            return start + scale * found.value

        methods: dict[str, Callable[..., jax.Array]] = {"Levenberg-Marquardt": squares, "BFGS": minimum}
        found = {}
        for name, method in methods.items():
            begun = time.process_time()
            many = jax.jit(jax.vmap(method))
            found[name] = np.asarray(by_blocks(many, 50, stars, chosen.first.astype(np.float64)))
            print(f"   {name}: {time.process_time() - begun:.0f} s with compilation")
    for name, theirs in found.items():
        reference = exact_objective(at, chosen.stars, theirs)
        for mine, theta_log in ours.items():
            above = exact_objective(at, chosen.stars, theta_log) - reference
            print(
                f"   {mine} against {name}: worse by more than {CLOSE} for {np.sum(~(above < CLOSE))} of {len(rows)} stars "
                f"(worst {np.nanmax(above):.3f}), better by more than that for {np.sum(above < -CLOSE)}"
            )
            if mine == "the engine":
                say_failures(at, chosen, theirs, above)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("table", help="star table; the side of the model's split that it was not trained on is used")
    parser.add_argument("--stars", type=int, default=2000)
    parser.add_argument("--optimistix", type=int, default=200, help="stars of part 4")
    parser.add_argument("--steps", type=int, default=12_288)
    parser.add_argument("--starts", type=int, help="starts refined per star; the settings' own number if left out")
    parser.add_argument("--parallax", action="store_true", help="use the stars' measured parallaxes")
    parser.add_argument("--parts", default="1234", help="which parts to run")
    arguments = parser.parse_args()
    if hasattr(
        os, "sched_setaffinity"
    ):  # as the engine's processes: XLA's helpers on a second core cost more than they do
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    trained = xpbayes.load_model(arguments.model)
    table = xpbayes.read_star_table(arguments.table)
    table = training_cuts(table, trained.labels, TrainingConfig().teff_max)
    table = table.take(Split.of(trained.card).on(Side.HELD_OUT, table.source_id))
    rows = np.unique(np.linspace(0, len(table) - 1, min(arguments.stars, len(table))).astype(int))
    stars = table.take(rows).stars(trained.labels).blind(parallax=arguments.parallax)
    at = Problem(trained.star_model, jax.tree.map(np.asarray, stars))
    config = InferenceConfig(use_parallax=arguments.parallax)
    if arguments.starts is not None:
        config = config.model_copy(update={"n_starts": arguments.starts})
    print(
        f"{len(rows)} of {len(table)} held-out stars, {config.n_starts} starts, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    grid = make_grid(at.model.without_error, config.n_nodes)
    answer = engine(at, grid, config)
    print(f"converged: {answer.converged.mean():.2%}")
    parts: dict[str, tuple[str, Callable[[], None]]] = {
        "1": ("Adam", lambda: race_adam(at, answer, config, arguments.steps)),
        "2": (f"best of {N_RANDOM} random starts", lambda: race_random(at, answer, config)),
        "3": ("float64", lambda: race_float64(at, grid, answer, config)),
        "4": ("optimistix", lambda: race_optimistix(at, answer, config, arguments.optimistix)),
    }
    for key, (title, run) in parts.items():
        if key in arguments.parts:
            print(f"{key}. {title}")
            begun = time.perf_counter()
            run()
            print(f"   ({time.perf_counter() - begun:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
