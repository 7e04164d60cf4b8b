"""How much the network's own uncertainty adds to a star's error: Laplace beside joint sampling, then the trained model.

First, on few simulated stars and a small network, NumPyro's NUTS draws from `models.posterior.training_posterior`, globals
and stars together, and the spread of the fluxes that the draws predict is set beside what Gauss-Newton's Laplace
approximation of the globals, stars integrated out, says of it. Then the same approximation for the model, and what it
adds to the errors of stars, by kind.

Usage: python benchmarks/weights.py MODEL STARS.parquet [--stars 2000] [--figure added.png] [--no-joint]
       STARS is the table that the model was trained on.
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

from xpbayes.analysis.pages.model_uncertainty import print_uncertainty, write_figure
from xpbayes.data.stars import Stars
from xpbayes.models.forward import ForwardModel, predict_flux, predict_ln_flux
from xpbayes.progress import progress_shown
from xpbayes.runs.uncertainty import uncertainty
from xpbayes.training.network_uncertainty import trained_vector, weight_precision, with_vector

HIDDEN, N_CHANNELS, N_STARS = (5,), 10, 200
N_WARMUP, N_DRAWS = 600, 1000
RELATIVE_ERROR, LABEL_ERROR = 0.02, np.array([0.05, 0.05, 0.1])


def small_training_set() -> tuple[ForwardModel, Stars]:
    """A smooth truth that the small network can follow, noisy fluxes, labels, reddenings and parallaxes."""
    random = np.random.default_rng(0)
    sizes = [3, *HIDDEN, N_CHANNELS]
    truth = ForwardModel(
        tuple(jnp.asarray(0.6 * random.normal(size=s), jnp.float32) for s in zip(sizes[:-1], sizes[1:], strict=True)),
        tuple(jnp.asarray(0.3 * random.normal(size=s), jnp.float32) for s in sizes[1:]),
        jnp.linspace(1.2, -1.0, N_CHANNELS),
        jnp.asarray([5.0, -0.2, 3.0]),
        jnp.asarray([0.8, 0.4, 1.2]),
    )
    labels = np.array([5.0, -0.2, 3.0]) + random.uniform(-1.7, 1.7, size=(N_STARS, 3)) * [0.8, 0.4, 1.2]
    extinction, parallax = 0.1 + 0.5 * random.random(N_STARS), 0.5 + random.random(N_STARS)
    at = jnp.asarray(np.column_stack([labels, np.log(extinction), np.log(parallax)]), jnp.float32)
    flux = np.asarray(jax.vmap(partial(predict_flux, truth))(at))
    noisy = flux * (1 + RELATIVE_ERROR * random.normal(size=flux.shape))
    error_e, error_plx = 0.03, 0.03 * parallax
    values = (
        noisy,
        np.stack([np.diag(1 / (RELATIVE_ERROR * f)) for f in flux]),
        np.zeros(N_STARS),
        parallax + error_plx * random.normal(size=N_STARS),
        1 / error_plx,
        labels + LABEL_ERROR * random.normal(size=labels.shape),
        np.tile(1 / LABEL_ERROR, (N_STARS, 1)),
        extinction + error_e * random.normal(size=N_STARS),
        np.full(N_STARS, 1 / error_e),
        np.zeros(N_STARS),
    )
    return truth, Stars(*(jnp.asarray(v, jnp.float64) for v in values))


def joint_sampling() -> None:
    """Globals and stars by NUTS, in coordinates whitened by the Hessian at the joint optimum; Laplace beside it."""
    from numpyro.infer import MCMC, NUTS
    from numpyro.infer.util import log_density

    from xpbayes.models.posterior import ModelShape, model_site_values, star_sites, training_posterior

    truth, stars = small_training_set()
    truth = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), truth)
    shape = ModelShape(HIDDEN, N_CHANNELS, N_STARS, truth.label_center, truth.label_scale)
    n_global = trained_vector(truth).size
    start = jnp.concatenate(
        [stars.labels, jnp.log(stars.reddening)[:, None].clip(-4), jnp.log(stars.parallax)[:, None]], 1
    )

    def split(vector: jax.Array) -> tuple[ForwardModel, jax.Array]:
        return with_vector(truth, vector[:n_global]), vector[n_global:].reshape(N_STARS, 5)

    def energy(vector: jax.Array) -> jax.Array:
        model, at = split(vector)
        return -log_density(training_posterior, (stars, shape), {}, model_site_values(model) | star_sites(at))[0]

    begun = time.perf_counter()
    vector = jnp.concatenate([trained_vector(truth), start.ravel()])
    gradient, hessian = jax.jit(jax.value_and_grad(energy)), jax.jit(jax.hessian(energy))
    value, damping = float(energy(vector)), 1.0
    for _ in range(200):  # Newton with damping, to the joint optimum
        _, g = gradient(vector)
        values, axes = np.linalg.eigh(np.asarray(hessian(vector)))
        step = axes @ ((axes.T @ np.asarray(g)) / (np.abs(values) + damping))
        trial = vector - jnp.asarray(step)
        found = float(energy(trial))
        gain = value - found
        if np.isfinite(found) and gain > -1e-9:
            vector, value, damping = trial, found, damping / 5
            if gain < 1e-7 and damping < 1e-3:
                break
        else:
            damping *= 10
    values, axes = np.linalg.eigh(np.asarray(hessian(vector)))
    print(
        f"joint optimum: -ln p {value:.3f}, largest gradient {np.abs(np.asarray(gradient(vector)[1])).max():.1e}, least "
        f"curvature {values.min():.2e}, {time.perf_counter() - begun:.0f} s; {n_global} globals, {len(vector)} in all"
    )
    root = jnp.asarray(axes / np.sqrt(np.maximum(values, 1e-2 * np.abs(values).min() + 1e-8)))
    kernel = NUTS(
        potential_fn=lambda x: energy(vector + root @ x),
        adapt_mass_matrix=True,
        max_tree_depth=6,
        target_accept_prob=0.85,
    )
    chains = MCMC(kernel, num_warmup=N_WARMUP, num_samples=N_DRAWS, num_chains=2, chain_method="sequential",
                  progress_bar=False)  # fmt: skip
    begun = time.perf_counter()
    chains.run(jax.random.key(0), init_params=jnp.asarray(0.1 * np.random.default_rng(1).normal(size=(2, len(vector)))),
               extra_fields=("diverging",))  # fmt: skip
    drawn = jax.vmap(lambda x: vector + root @ x)(chains.get_samples())
    divergent = int(chains.get_extra_fields()["diverging"].sum())

    # Fluxes that the globals predict at stars of given parameters: free of a network's own symmetries.
    model, at = split(vector)
    places = at[:: max(1, N_STARS // 40)]

    def fluxes(v: jax.Array) -> jax.Array:
        return jax.vmap(lambda u: predict_ln_flux(with_vector(truth, v[:n_global]), u))(places).ravel()

    predicted = np.asarray(jax.lax.map(fluxes, drawn))
    halves = np.stack(np.split(predicted, 2))
    between = np.abs(halves[0].mean(0) - halves[1].mean(0)) / predicted.std(0)
    slope = np.asarray(jax.jacfwd(lambda w: fluxes(jnp.concatenate([w, vector[n_global:]])))(vector[:n_global]))
    covariance = np.linalg.inv(weight_precision(model, stars, at, N_STARS))
    laplace = np.sqrt(np.einsum("fi,ij,fj->f", slope, covariance, slope))
    ratio = laplace / predicted.std(0)
    shift = (np.asarray(fluxes(vector)) - predicted.mean(0)) / predicted.std(0)
    print(f"NUTS: 2 chains x {N_DRAWS}, {divergent} divergent, {time.perf_counter() - begun:.0f} s; chains differ by "
          f"{np.median(between):.2f} sigma (median), {between.max():.2f} at most")  # fmt: skip
    print(f"sigma of ln flux by the globals: NUTS median {np.median(predicted.std(0)):.5f}")
    low, middle, high = np.percentile(ratio, [5, 50, 95])
    print(f"Gauss-Newton Laplace / NUTS: median {middle:.3f}, 5 to 95 %: {low:.3f} to {high:.3f}")
    print(f"optimum minus NUTS' mean: median {np.median(shift):+.2f} sigma, 5 to 95 %: "
          f"{np.percentile(shift, 5):+.2f} to {np.percentile(shift, 95):+.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("stars")
    parser.add_argument("--stars", dest="n", type=int, default=2000)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--no-joint", action="store_true")
    arguments = parser.parse_args()
    if not arguments.no_joint:
        with jax.enable_x64(True):
            joint_sampling()
    begun, cpu = time.perf_counter(), time.process_time()
    with progress_shown():
        found = uncertainty(arguments.model, arguments.stars, None, arguments.n)
    print_uncertainty(found)
    print(f"{time.perf_counter() - begun:.0f} s, CPU {time.process_time() - cpu:.0f} s")
    if arguments.figure:
        print(write_figure(found, arguments.figure))


if __name__ == "__main__":
    main()
