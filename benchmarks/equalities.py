"""Two equalities that everything rests on, as numbers: solver against NumPyro, Fisher against finite differences.

Usage: python benchmarks/equalities.py MODEL [STARS.parquet]      (without STARS: the bundled sample)
"""

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.util import log_density

import xpbayes
from xpbayes.inference.errors import evaluate_mode
from xpbayes.models.forward import predict_flux
from xpbayes.models.objective import objective
from xpbayes.models.posterior import star_posterior, star_sites
from xpbayes.models.theta import to_linear, to_log

N = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("stars", nargs="?")
    arguments = parser.parse_args()
    trained = xpbayes.load_model(arguments.model)
    table = xpbayes.read_star_table(arguments.stars) if arguments.stars else xpbayes.bundled_stars()
    rng = np.random.default_rng(0)
    stars = table.take(np.sort(rng.choice(len(table), N, replace=False))).stars(trained.labels).blind()
    labels = np.asarray(trained.prior.mean)[rng.integers(0, len(trained.prior.mean), N)]
    point = np.concatenate([labels, rng.normal([-2, 0.3], 0.5, (N, 2))], axis=1)
    other = point + rng.normal(0, 0.1, point.shape)
    jax.config.update("jax_enable_x64", True)
    model, stars = jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), (trained.star_model.without_error, stars)
    )

    @jax.jit
    def ours(u):
        return jax.vmap(lambda star, v: objective(model, star, v))(stars, u)

    @jax.jit
    def numpyro(u):
        def one(star, v):
            batch = jax.tree.map(lambda leaf: leaf[None], star)
            return log_density(star_posterior, (batch, model), {}, star_sites(v[None]))[0]

        return jax.vmap(one)(stars, u)

    left = ours(jnp.asarray(other)) - ours(jnp.asarray(point))
    right = -2.0 * (numpyro(jnp.asarray(other)) - numpyro(jnp.asarray(point)))
    worst = float(jnp.max(jnp.abs(left / right - 1)))
    print(f"solver's objective against -2 x NumPyro's log density, {N} stars: {worst:.1e} relative, target 1e-8")

    u = jnp.asarray(point)
    fisher = np.asarray(evaluate_mode(model, stars, u).fisher)
    linear = to_linear(point)

    @jax.jit
    def white(x):
        flux = jax.vmap(lambda v, s: predict_flux(model.forward, v, s))(to_log(x), stars.ln_scale)
        return jnp.einsum("sij,sj->si", stars.whitening, flux)

    columns = []
    for k in range(linear.shape[1]):
        step = np.zeros_like(linear)
        step[:, k] = 1e-5 * np.maximum(np.abs(linear[:, k]), 0.1)
        columns.append((white(linear + step) - white(linear - step)) / (2 * step[:, k : k + 1]))
    jacobian = np.stack(columns, axis=-1)
    expected = np.einsum("sci,scj->sij", jacobian, jacobian)
    scale = np.sqrt(np.einsum("sii,sjj->sij", expected, expected))
    print(
        f"Fisher against central differences, {N} stars: {np.max(np.abs(fisher - expected) / scale):.1e} of the scale"
    )


if __name__ == "__main__":
    main()
