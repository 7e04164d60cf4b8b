"""Learn the model's own error from stars whose labels are known.

A star's relative model error delta (channel,) is confined to directions that parallax and extinction cannot mimic:
orthogonal to (1, ..., 1) and to R. Left free, its covariance S eats those two (a 15 % "model error", and an R(lambda)
5 % off). In the whitened frame the residual of a star is

    y = B delta + G eta + noise,   B = W diag(f_pred),   G = dy/d(parameters),

with eta the star's parameter errors under its labels, parallax and reddening estimates. eta is marginalised, so S is
not emptied along directions in which the labels could be moved instead. delta and noise share one amplitude per star
(Student t). S and the tail of every kind of star then follow by expectation-maximisation.
"""

from dataclasses import replace
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray
from scipy.special import gammaln

from xpbayes.data.stars import Stars, evenly
from xpbayes.models.forward import ForwardModel, predict_flux, predict_ln_flux
from xpbayes.models.likelihood import whitened_residual
from xpbayes.models.model_error import ModelError, kind_weights_of, raw_features

START_SIGMA = 0.02
"""Relative model error per direction before the first iteration."""
START_DOF = 20.0
DOF_GRID = np.geomspace(20.0, 100.0, 12)
"""Degrees of freedom to choose from. With fewer a star's own residuals would set the size of its errors almost alone: how
well a spectrum fits says little of how well its labels come out."""
ITERATIONS_BEFORE_DOF = 3
"""From an isotropic start the tail would be blamed on the shape of S."""
FREE_REDDENING_SIGMA, FREE_LN_PARALLAX_SIGMA = 1.0, 1.0
"""Prior widths of E [mag] and ln parallax where a star has no estimate."""
BATCH = 512
MAX_STARS = 5120
"""Stars that an estimate uses, evenly spread."""
N_KINDS = 16
MIN_STARS_PER_KIND = 300
N_SHAPES = 3
FEATURE_POWER = 0.5
"""Features are divided by their spread to this power: between equal weights and their natural ones in ln flux."""
PRIOR_STARS = 60.0
"""A kind's covariance is drawn towards the average one with the weight of so many stars."""


T = TypeVar("T")


class Sums(NamedTuple):
    """What expectation-maximisation needs of each star, nuisance parameters marginalised."""

    precision: Array  # (star, q, q) B^T K^-1 B in the allowed directions
    pull: Array  # (star, q) B^T K^-1 y
    chi2: Array  # (star,) y^T K^-1 y
    n_obs: Array  # (star,)


def allowed_directions(ln_curve: Float[Array, " channel"]) -> Float[Array, "channel q"]:
    """Orthonormal basis of the directions orthogonal to grey and to R(lambda)."""
    curve = np.exp(np.asarray(ln_curve, dtype=np.float64))
    mimics = np.stack([np.ones_like(curve), curve], axis=1)
    full, _ = np.linalg.qr(mimics, mode="complete")
    return jnp.asarray(full[:, 2:], jnp.float32)


@jax.jit
def collect_sums(
    forward: ForwardModel, directions: Array, stars: Stars, theta_log: Array, xi_sigma: Array | float = 1.0
) -> Sums:
    """Residuals of a batch at what labels and estimates alone say, along some directions, all else marginalised.

    Args:
        forward: the forward model.
        directions: (channel, q) of relative flux.
        stars: with labels.
        theta_log: (star, parameter) current solutions, around which fluxes are linearised.
        xi_sigma: prior width of xi: 1, or 0 to see what xi would explain.
    """

    def one(star: Stars, u: Array) -> Sums:
        def residual(v: Array) -> Array:  # in (labels, E xi, E, ln parallax): ln flux is linear in all but the labels
            n = forward.n_labels
            sampled = jnp.concatenate([v[:n], v[n:-2] / v[-2:-1], jnp.log(v[-2:-1]), v[-1:]])
            return whitened_residual(predict_flux(forward, sampled, star.ln_scale), star.flux, star.whitening)

        solved = jnp.concatenate([u[:-2], jnp.exp(u[-2:-1]), u[-1:]])
        solved = solved.at[forward.n_labels : -2].multiply(solved[-2])
        y, push = jax.linearize(residual, solved)
        jacobian = jax.vmap(push, out_axes=1)(jnp.eye(solved.size, dtype=solved.dtype))

        # Expected parameters and their errors, from the labels and estimates alone; E xi is 0 +- E.
        has_label = star.label_inv_error > 0
        label = jnp.where(has_label, star.labels, u[: forward.n_labels])
        xi = jnp.zeros_like(u[forward.n_labels : -2])
        label_sigma = 1.0 / jnp.where(has_label, star.label_inv_error, 1.0 / forward.label_scale)
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

        expected = jnp.concatenate([label, xi, reddening[None], ln_parallax[None]])
        sigma = jnp.concatenate(
            [label_sigma, xi + xi_sigma * solved[-2], reddening_sigma[None], ln_parallax_sigma[None]]
        )
        y = y + jacobian @ (expected - solved)
        g = jacobian * sigma
        b = star.whitening @ (predict_flux(forward, u, star.ln_scale)[:, None] * directions)
        # K^-1 = 1 - G (1 + G^T G)^-1 G^T, a 5 x 5 problem.
        inner = jnp.linalg.inv(jnp.eye(g.shape[1]) + g.T @ g)
        gb, gy = g.T @ b, g.T @ y
        return Sums(
            precision=b.T @ b - gb.T @ inner @ gb,
            pull=b.T @ y - gb.T @ (inner @ gy),
            chi2=y @ y - gy @ inner @ gy,
            n_obs=jnp.sum(jnp.diagonal(star.whitening) > 0).astype(y.dtype),
        )

    return jax.vmap(one)(stars, theta_log)


@jax.jit
def _expect(sums: Sums, covariance: Array, weight: Array, counts: Array, dof: Array) -> tuple[Array, Array, Array]:
    """Expectation step for a batch: stars of (star, kind) weight, that count, under (kind, q, q) S_k and (kind,) dof.

    Returns:
        (kind, q, q) sums of kind weight x expected second moment of delta in units of the star's own amplitude;
        (star,) chi^2 under C + S; (star,) ln det of the same in the whitened frame.
    """
    q = covariance.shape[-1]

    def one(star: Sums, w: Array) -> tuple[Array, Array, Array]:
        factor = jnp.linalg.cholesky(jnp.tensordot(w, covariance, axes=1))
        lower = jnp.linalg.cholesky(jnp.eye(q) + factor.T @ star.precision @ factor)
        half = jax.scipy.linalg.solve_triangular(lower, factor.T, lower=True)  # half^T half = posterior covariance
        mean = half.T @ (half @ star.pull)
        chi2 = jnp.maximum(star.chi2 - jnp.sum((half @ star.pull) ** 2), 0.0)
        nu = 1.0 / (w @ (1.0 / dof))
        amplitude = (nu + star.n_obs) / (nu + chi2)
        moment = half.T @ half + amplitude * jnp.outer(mean, mean)
        return moment, chi2, 2.0 * jnp.sum(jnp.log(jnp.diagonal(lower)))

    moment, chi2, ln_det = jax.vmap(one)(sums, weight)
    return jnp.einsum("sk,sij->kij", weight * counts[:, None], moment), chi2, ln_det


def _ln_likelihood(dof: NDArray[np.float64], chi2: NDArray, ln_det: NDArray, n_obs: NDArray) -> NDArray[np.float64]:
    """Ln density of a multivariate Student t in the whitened frame."""
    norm = gammaln(0.5 * (dof + n_obs)) - gammaln(0.5 * dof) - 0.5 * n_obs * np.log(0.5 * dof)
    return norm - 0.5 * ln_det - 0.5 * (dof + n_obs) * np.log1p(chi2 / dof)


def _find_kinds(forward: ForwardModel, stars: Stars, theta_log: Array) -> ModelError:
    """Cut the training stars into kinds by what their spectra look like; nothing is known of their errors yet."""
    from sklearn.cluster import KMeans

    noiseless = jax.jit(jax.vmap(lambda u: predict_ln_flux(forward, u)))(theta_log)  # dust included
    predicted = np.asarray(noiseless, dtype=np.float64)
    shape = predicted - predicted.mean(axis=1, keepdims=True)
    _, _, directions = np.linalg.svd(shape - shape.mean(axis=0), full_matrices=False)
    shapes = jnp.asarray(directions[:N_SHAPES].T, jnp.float32)
    features = np.asarray(_features(shapes, stars), np.float64)
    center, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6) ** FEATURE_POWER
    n_kinds = int(np.clip(len(features) // MIN_STARS_PER_KIND, 1, N_KINDS))
    found = KMeans(n_kinds, n_init=4, random_state=0).fit((features - center) / scale)
    to_kind = np.linalg.norm((features - center)[:, None] / scale - found.cluster_centers_, axis=2)
    n_channels = stars.flux.shape[1]
    return ModelError(
        shapes=shapes,
        feature_center=jnp.asarray(center, jnp.float32),
        feature_scale=jnp.asarray(scale, jnp.float32),
        kinds=jnp.asarray(found.cluster_centers_, jnp.float32),
        width=jnp.asarray(0.5 * np.median(np.partition(to_kind, min(1, n_kinds - 1), axis=1)[:, min(1, n_kinds - 1)])),
        covariance=jnp.zeros((n_kinds, n_channels, n_channels)),
        inv_dof=jnp.full(n_kinds, 1.0 / START_DOF),
        share=jnp.full(n_kinds, 1.0 / n_kinds),
    )


def as_double(tree: T) -> T:
    """Turn the float32 leaves of a pytree into float64; call where that is enabled."""
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf, np.float64)), tree)


@jax.jit
def _features(shapes: Array, stars: Stars) -> Array:
    return jax.vmap(lambda star: raw_features(shapes, star))(stars)


def learn_model_error(
    forward: ForwardModel,
    stars: Stars,
    theta_log: Float[Array, "star parameter"],
    n_iterations: int,
    start: ModelError | None = None,
    counts: Float[NDArray, " star"] | None = None,
) -> tuple[ModelError, list[float]]:
    """Estimate the covariance of the model's relative error, and its tail, for every kind of star.

    Args:
        forward: the forward model.
        stars: stars with labels, and with the measurement's own whitening (no model error in it).
        theta_log: (star, label + 2) current solutions.
        n_iterations: of expectation-maximisation.
        start: the estimate to begin with, whose kinds are kept; small and isotropic if None.
        counts: (star,) how much each star counts, from `weights.star_weights`; 1 if None. A companion or another
            extinction law is no error of the model.

    Returns:
        the model error, and the mean ln likelihood per star before each iteration.
    """
    directions = allowed_directions(forward.ln_curve)
    basis = np.asarray(directions, dtype=np.float64)
    # Whole batches only, so that one program serves all; fewer stars than one batch are all used.
    n_used = min(len(stars), MAX_STARS)
    size = min(n_used, BATCH)
    n_used -= n_used % size
    picked = evenly(len(stars), n_used)
    used = stars.take(picked)
    error = start if start is not None else _find_kinds(forward, used, theta_log[picked])
    weight = np.asarray(kind_weights_of(error, used), np.float64)
    count = np.ones(n_used) if counts is None else np.asarray(counts, np.float64)[picked]
    # Double precision: chi^2 is what is left of sums a thousand times larger, and a star whose chi^2 rounds to nothing
    # would be given an amplitude without bounds.
    with jax.enable_x64(True):
        collected = [
            collect_sums(
                as_double(forward),
                as_double(directions),
                as_double(used.take(slice(i, i + size))),
                as_double(theta_log[picked[i : i + size]]),
            )
            for i in range(0, n_used, size)
        ]
    n_obs = np.concatenate([np.asarray(sums.n_obs, np.float64) for sums in collected])
    q = basis.shape[1]
    dof = 1.0 / np.asarray(error.inv_dof, np.float64)
    covariance = basis.T @ np.asarray(error.covariance, dtype=np.float64) @ basis
    covariance += (START_SIGMA**2 if start is None else 1e-8) * np.eye(q)
    history = []
    for iteration in range(n_iterations):
        with jax.enable_x64(True):
            batches = zip(collected, np.split(weight, len(collected)), np.split(count, len(collected)), strict=True)
            found = [_expect(sums, *map(jnp.asarray, (covariance, w, n, dof))) for sums, w, n in batches]
        moment = np.sum([np.asarray(f[0], np.float64) for f in found], axis=0)
        chi2, ln_det = (np.concatenate([np.asarray(f[j], np.float64) for f in found]) for j in (1, 2))
        nu = 1.0 / (weight @ (1.0 / dof))
        history.append(float(np.average(_ln_likelihood(nu, chi2, ln_det, n_obs), weights=count)))
        members = count @ weight
        overall = moment.sum(axis=0) / members.sum()
        covariance = (moment + PRIOR_STARS * overall) / (members + PRIOR_STARS)[:, None, None]
        covariance = 0.5 * (covariance + covariance.transpose(0, 2, 1)) + 1e-9 * np.eye(q)
        if start is not None or iteration >= ITERATIONS_BEFORE_DOF:
            by_dof = np.stack([_ln_likelihood(v, chi2, ln_det, n_obs) for v in DOF_GRID], axis=1)
            by_kind = weight.T @ (count[:, None] * by_dof) + PRIOR_STARS * np.average(by_dof, axis=0, weights=count)
            dof = DOF_GRID[np.argmax(by_kind, axis=1)]
    return replace(
        error,
        covariance=jnp.asarray(basis @ covariance @ basis.T, jnp.float32),
        inv_dof=jnp.asarray(1.0 / dof, jnp.float32),
        share=jnp.asarray(weight.mean(axis=0), jnp.float32),
    ), history
