"""Learn the covariance of the model's own error from stars whose labels are known.

A star's relative model error delta (channel,) is taken as N(0, S), S confined to directions that parallax and
extinction cannot mimic: orthogonal to (1, ..., 1) and to R. Left free, S eats those two (a 15 % "model error", and an
R(lambda) 5 % off). In the whitened frame the residual of a star is

    y = B delta + G eta + noise,   B = W diag(f),   G = dy/d(parameters),   noise ~ N(0, 1),

with eta the star's parameter errors under its labels, parallax and reddening estimates. eta is marginalised, so S is
not emptied along directions in which the labels could be moved instead. S then follows by expectation-maximisation,
which keeps it positive definite and raises the likelihood at every iteration.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from xpbayes.models.forward import ForwardModel, predict_flux
from xpbayes.models.likelihood import add_model_error, whitened_residual
from xpbayes.stars import Stars, chunk_size

START_SIGMA = 0.02
"""Relative model error per direction before the first iteration."""
TAIL_DOF = 20.0
"""Degrees of freedom of the multivariate Student t that down-weights outliers (binaries, wrong labels)."""
FREE_REDDENING_SIGMA, FREE_LN_PARALLAX_SIGMA = 1.0, 1.0
"""Prior widths of E [mag] and ln parallax where a star has no estimate."""
CHUNK = 512
MAX_STARS = 3072
"""Stars that an estimate uses, evenly spread: the covariance of 62 directions needs no more."""


class _Sums(NamedTuple):
    """What expectation-maximisation needs of each star, nuisance parameters marginalised.

    Attributes:
        precision: (star, q, q) B^T K^-1 B in the allowed directions.
        pull: (star, q) B^T K^-1 y.
        chi2: (star,) y^T K^-1 y.
        n_obs: (star,).
    """

    precision: Array
    pull: Array
    chi2: Array
    n_obs: Array


def allowed_directions(ln_curve: Float[Array, " channel"]) -> Float[Array, "channel q"]:
    """Orthonormal basis of the directions orthogonal to grey and to R(lambda)."""
    curve = np.exp(np.asarray(ln_curve, dtype=np.float64))
    mimics = np.stack([np.ones_like(curve), curve], axis=1)
    full, _ = np.linalg.qr(mimics, mode="complete")
    return jnp.asarray(full[:, 2:], jnp.float32)


@jax.jit
def _collect(model: ForwardModel, directions: Array, stars: Stars, parameters: Array) -> _Sums:
    def one(star: Stars, u: Array) -> _Sums:
        def residual(v: Array) -> Array:  # in (labels, E, ln parallax)
            sampled = jnp.concatenate([v[:-2], jnp.log(v[-2:-1]), v[-1:]])
            return whitened_residual(predict_flux(model, sampled, star.ln_scale), star.flux, star.whitening)

        solved = jnp.concatenate([u[:-2], jnp.exp(u[-2:-1]), u[-1:]])
        y, push = jax.linearize(residual, solved)
        jacobian = jax.vmap(push, out_axes=1)(jnp.eye(solved.size, dtype=solved.dtype))

        # Expected parameters and their errors, from the labels and estimates alone.
        has_label = star.label_inv_error > 0
        label = jnp.where(has_label, star.labels, u[:-2])
        label_sigma = 1.0 / jnp.where(has_label, star.label_inv_error, 1.0 / model.label_scale)
        has_reddening, has_parallax = star.reddening_inv_error > 0, star.parallax_inv_error > 0
        reddening = jnp.where(has_reddening, star.reddening, solved[-2])
        reddening_sigma = jnp.where(
            has_reddening, 1.0 / jnp.where(has_reddening, star.reddening_inv_error, 1.0), FREE_REDDENING_SIGMA
        )
        # A parallax is used as a measurement of ln parallax, whose error is the relative one, at most the free width.
        safe_parallax = jnp.where(has_parallax & (star.parallax > 0), star.parallax, 1.0)
        relative = 1.0 / jnp.maximum(star.parallax_inv_error * safe_parallax, 1.0 / FREE_LN_PARALLAX_SIGMA)
        usable = has_parallax & (star.parallax > 0)
        ln_parallax = jnp.where(usable, jnp.log(safe_parallax), u[-1])
        ln_parallax_sigma = jnp.where(usable, relative, FREE_LN_PARALLAX_SIGMA)

        expected = jnp.concatenate([label, reddening[None], ln_parallax[None]])
        sigma = jnp.concatenate([label_sigma, reddening_sigma[None], ln_parallax_sigma[None]])
        y = y + jacobian @ (expected - solved)
        g = jacobian * sigma
        b = star.whitening @ (star.flux[:, None] * directions)
        # K^-1 = 1 - G (1 + G^T G)^-1 G^T, a 5 x 5 problem.
        inner = jnp.linalg.inv(jnp.eye(g.shape[1]) + g.T @ g)
        gb, gy = g.T @ b, g.T @ y
        return _Sums(
            precision=b.T @ b - gb.T @ inner @ gb,
            pull=b.T @ y - gb.T @ (inner @ gy),
            chi2=y @ y - gy @ inner @ gy,
            n_obs=jnp.sum(jnp.diagonal(star.whitening) > 0).astype(y.dtype),
        )

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(stars, parameters)


@jax.jit
def _expect(sums: _Sums, factor: Array) -> tuple[Array, Array, Array]:
    """Sums over stars of weight x posterior second moment, of weights, and of ln likelihood, given S = F F^T."""

    def one(star: _Sums) -> tuple[Array, Array, Array]:
        q = factor.shape[1]
        inner = jnp.eye(q) + factor.T @ star.precision @ factor
        lower = jnp.linalg.cholesky(inner)
        half = jax.scipy.linalg.solve_triangular(lower, factor.T, lower=True)  # V = half^T half
        mean = half.T @ (half @ star.pull)
        chi2 = jnp.maximum(star.chi2 - jnp.sum((half @ star.pull) ** 2), 0.0)
        weight = (TAIL_DOF + star.n_obs) / (TAIL_DOF + chi2)
        ln_det = 2.0 * jnp.sum(jnp.log(jnp.diagonal(lower)))
        ln_like = -0.5 * ln_det - 0.5 * (TAIL_DOF + star.n_obs) * jnp.log1p(chi2 / TAIL_DOF)
        return half.T @ half + weight * jnp.outer(mean, mean), weight, ln_like

    with jax.default_matmul_precision("highest"):
        moment, weight, ln_like = jax.vmap(one)(sums)
        return jnp.sum(moment, axis=0), jnp.sum(weight), jnp.sum(ln_like)


def learn_model_error(
    model: ForwardModel,
    stars: Stars,
    parameters: Float[Array, "star parameter"],
    n_iterations: int,
    start: Float[Array, "channel rank"] | None = None,
) -> tuple[Float[Array, "channel rank"], list[float]]:
    """Estimate F, with S = F F^T the covariance of the model's relative error.

    Args:
        model: the forward model.
        stars: stars with labels, and with the measurement's own whitening (no model error in it).
        parameters: (star, label + 2) current solutions.
        n_iterations: of expectation-maximisation.
        start: F to begin with; small and isotropic if None.

    Returns:
        (channel, rank) F, and the mean ln likelihood per star before each iteration.
    """
    directions = allowed_directions(model.ln_curve)
    # Whole chunks only, so that one program serves all; fewer stars than one chunk are all used.
    n_used = min(len(stars), MAX_STARS)
    size = min(n_used, CHUNK)
    n_used -= n_used % size
    picked = np.linspace(0, len(stars) - 1, n_used).astype(int)
    collected = [
        _collect(model, directions, stars.take(jnp.asarray(rows)), parameters[rows])
        for rows in picked.reshape(-1, size)
    ]
    q = directions.shape[1]
    if start is None:
        covariance = np.eye(q) * START_SIGMA**2
    else:
        inside = np.asarray(directions, dtype=np.float64).T @ np.asarray(start, dtype=np.float64)
        covariance = inside @ inside.T + 1e-8 * np.eye(q)
    history = []
    for _ in range(n_iterations):
        factor = jnp.asarray(np.linalg.cholesky(covariance), jnp.float32)
        totals = [_expect(sums, factor) for sums in collected]
        moment = np.sum([np.asarray(t[0], dtype=np.float64) for t in totals], axis=0)
        history.append(float(sum(t[2] for t in totals)) / n_used)
        covariance = 0.5 * (moment + moment.T) / n_used + 1e-9 * np.eye(q)
    return directions @ jnp.asarray(np.linalg.cholesky(covariance), jnp.float32), history


def relative_sigma(factor: Float[Array, "channel rank"]) -> np.ndarray:
    """(channel,) 1-sigma relative model error per channel."""
    return np.asarray(jnp.sqrt(jnp.sum(factor**2, axis=1)))


@jax.jit
def _whitening_with_model_error(stars: Stars, factor: Array) -> Array:
    with jax.default_matmul_precision("highest"):
        return jax.vmap(lambda star: add_model_error(star.whitening, star.flux, factor))(stars)


def fold_in_model_error(stars: Stars, factor: Float[Array, "channel rank"] | None) -> Stars:
    """Return the stars with the model's own error in their whitening factors; unchanged if there is none.

    Args:
        stars: a batch.
        factor: (channel, rank) F, S = F F^T.
    """
    if factor is None:
        return stars
    n, size = len(stars), chunk_size(len(stars), CHUNK)
    parts = [
        _whitening_with_model_error(stars.take(slice(i, i + size)).padded(size), factor) for i in range(0, n, size)
    ]
    return replace(stars, whitening=jnp.concatenate(parts)[:n])
