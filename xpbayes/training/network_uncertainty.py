"""How well training has determined the model, and what that adds to a star's error.

In: a trained model and some of its training stars at their solutions. Out: the Laplace approximation of the posterior of
everything that was trained (weights, biases, ln R), every training star's own parameters integrated out, and what it adds
to the covariance of any star.

Gauss-Newton throughout: with J_w and J_u the whitened derivatives of a star's fluxes by the model and by its own
parameters, s its weight under the Student t, and A the precision of its parameters, labels and other measurements included,

    H = sum_stars s J_w^T (I - s J_u A^-1 J_u^T) J_w + 1 / prior variance,      Sigma = H^-1.

A catalogue star's optimum moves with the model by du/dw = -A^-1 s J_u^T J_w, A now as inference has it, so its covariance
grows by (du/dw) Sigma (du/dw)^T. Only the directions in which the model moves stars matter for that: Sigma is kept as
K K^T with as many columns as it takes to carry nearly all of what is added on average.

All stars share one model, so this part of their errors is common to similar stars: it does not average down.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from numpy.typing import NDArray

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks
from xpbayes.inference.linear_algebra import cholesky, invert_positive, smallest_pivot, solve_positive
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.models.forward import ForwardModel, expand_ln_flux, predict_ln_flux
from xpbayes.models.likelihood import deviance, n_observed
from xpbayes.models.objective import curvature, flux_chi2
from xpbayes.models.star_model import StarModel
from xpbayes.models.theta import to_log

if TYPE_CHECKING:
    from xpbayes.inference.fit import Posteriors

BATCH = 32
"""Stars whose derivatives by all weights are in memory together: 38 MB."""
MIN_PIVOT = 1e-5
MAX_COLUMNS = 256
NOTHING = 1e-10
"""Directions that add less than this share of what the first one adds are rounding."""
CAPTURED = 0.98
"""Share of the added variance that the columns carry, if `MAX_COLUMNS` are enough."""


class NetworkCovariance(NamedTuple):
    """What is kept of the posterior of the model."""

    columns: NDArray[np.float32]  # (weight, column) K with K K^T its covariance, in the order of `trained_vector`
    # Share of the added variance, summed over stars and parameters in units of their own errors, that K carries
    captured: float
    n_stars: int  # training stars that it was worked out from; the sum over all of them is taken to be like theirs


def trained_vector(forward: ForwardModel) -> Float[Array, " weight"]:
    """Everything that was trained, as one vector: weights, biases, ln R, layer by layer."""
    return ravel_pytree((forward.weights, forward.biases, forward.ln_curve))[0]


def with_vector(forward: ForwardModel, vector: Float[Array, " weight"]) -> ForwardModel:
    """The inverse of `trained_vector`; normalisations are those of `forward`."""
    _, unravel = ravel_pytree((forward.weights, forward.biases, forward.ln_curve))
    weights, biases, ln_curve = unravel(vector)
    return replace(forward, weights=weights, biases=biases, ln_curve=ln_curve)


def _relative(forward: ForwardModel, star: Stars, theta_log: Array) -> tuple[Array, Array]:
    """Whitening of relative fluxes, times the root of the star's weight; (channel, parameter) d ln f by its parameters."""
    at = expand_ln_flux(forward, theta_log, star.ln_scale)
    slope = deviance(flux_chi2(forward, star, theta_log), n_observed(star.whitening), star.inv_dof).slope
    return jnp.sqrt(slope) * star.whitening * jnp.exp(at.value), at.slope.T


def _inverse_root(matrix: Array) -> Array:
    """R with R R^T the inverse of a small positive definite matrix."""
    scale = 1.0 / jnp.sqrt(jnp.diagonal(matrix))
    lower = cholesky(matrix * scale[:, None] * scale[None, :])
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return scale[:, None] * jax.scipy.linalg.solve_triangular(lower, eye, lower=True).T


def marginal_rows(
    forward: ForwardModel, star: Stars, theta_log: Float[Array, " parameter"]
) -> Float[Array, "channel weight"]:
    """Rows whose squares add up to one training star's information on the model, its own parameters integrated out.

    The star has labels, parallax and reddening as measurements, and the model's error folded in.
    """
    whitening, by_parameters = _relative(forward, star, theta_log)
    by_weights = jax.jacrev(lambda w: predict_ln_flux(with_vector(forward, w), theta_log))(trained_vector(forward))
    precision = 0.5 * curvature(StarModel(forward), star, theta_log)[0].bound
    explained = whitening @ by_parameters @ _inverse_root(precision)  # V with I - V V^T in the middle of H
    value, vector = jnp.linalg.eigh(explained.T @ explained)
    value = jnp.clip(value, 1e-12, 1.0)
    axes = explained @ vector / jnp.sqrt(value)
    rows = whitening @ by_weights
    return rows - (axes * (1.0 - jnp.sqrt(1.0 - value))) @ (axes.T @ rows)


@jax.jit
def _batch_rows(forward: ForwardModel, stars: Stars, theta_log: Array) -> Array:
    with jax.default_matmul_precision("highest"):
        return jax.vmap(partial(marginal_rows, forward))(stars, theta_log)


def _finite_rows(
    function: Callable[[Stars, Array], Array], stars: Stars, theta_log: Array
) -> Iterator[NDArray[np.float64]]:
    """(row, weight) of all stars of a batch that a function gives (star, row, weight) for, without those not finite."""
    for start in range(0, len(stars), BATCH):
        # Of one size, so that one program serves all; what fills the last batch does not count.
        at = jnp.minimum(jnp.arange(start, start + BATCH), len(stars) - 1)
        found = np.asarray(function(stars.take(at), theta_log[at]), np.float64)[: len(stars) - start]
        rows = found.reshape(-1, found.shape[-1])
        yield rows[np.isfinite(rows).all(axis=1)]


def weight_precision(
    forward: ForwardModel, stars: Stars, theta_log: Float[Array, "star parameter"], n_training: int
) -> NDArray[np.float64]:
    """H (weight, weight), the precision of everything that was trained.

    Args:
        forward: the forward model.
        stars: some of the training stars, labels included, model error folded in.
        theta_log: (star, label + 2) their solutions.
        n_training: how many training stars there were: the sum over `stars` is scaled up to them.
    """
    from scipy.linalg.blas import dsyrk

    n_weights = trained_vector(forward).shape[0]
    total = np.zeros((n_weights, n_weights))
    for rows in _finite_rows(partial(_batch_rows, forward), stars, theta_log):
        # In double precision: what the stars tell of some directions is a thousand million times what the prior tells.
        total += dsyrk(1.0, rows.T)  # upper triangle
    total = np.triu(total) + np.triu(total, 1).T
    total *= n_training / len(stars)
    # W ~ N(0, n_W / N) (METHOD 3: ZGR23 Eq. 12 as a prior).
    # Biases and ln R, which follow the weights in the vector, have a flat one.
    total[np.diag_indices(n_weights)] += (np.arange(n_weights) < forward.n_weights) * n_training / forward.n_weights
    return total


def _response(model: StarModel, star: Stars, theta_log: Array) -> tuple[Array, Array]:
    """(parameter, channel): -du by d ln f of the model; and (parameter, parameter) covariance of u, by Laplace."""
    whitening, by_parameters = _relative(model.forward, star, theta_log)
    at, _ = curvature(model, star, theta_log)
    precision = 0.5 * jnp.where(smallest_pivot(at.hessian) > MIN_PIVOT, at.hessian, at.bound)
    pull = (whitening @ by_parameters).T @ whitening
    solve = partial(solve_positive, precision)
    return jax.vmap(solve, 1, 1)(pull), jax.vmap(solve)(jnp.eye(theta_log.size, dtype=theta_log.dtype))


@jax.jit
def _scaled_response(model: StarModel, stars: Stars, theta_log: Array) -> Array:
    """(star, parameter, weight) -du/dw in units of each parameter's own error."""

    def one(star: Stars, u: Array) -> Array:
        response, covariance = _response(model, star, u)
        by_weights = jax.jacrev(lambda w: predict_ln_flux(with_vector(model.forward, w), u))(
            trained_vector(model.forward)
        )
        return response @ by_weights / jnp.sqrt(jnp.maximum(jnp.diagonal(covariance), 1e-30))[:, None]

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(stars, theta_log)


def factor_weights(
    model: StarModel,
    precision: NDArray[np.floating],
    stars: Stars,
    theta_log: Float[Array, "star parameter"],
    captured: float = CAPTURED,
    max_columns: int = MAX_COLUMNS,
) -> NetworkCovariance:
    """Keep the directions of the model's covariance that move stars.

    Args:
        model: the trained model.
        precision: (weight, weight) H, from `weight_precision`.
        stars: stars like those of the catalogue, without labels, model error folded in.
        theta_log: (star, label + 2) their optima.
        captured: share of the added variance to keep, with at most `max_columns` directions.
    """
    from scipy.linalg import solve_triangular

    model = model.without_error
    lower = np.linalg.cholesky(precision)
    response = np.concatenate(list(_finite_rows(partial(_scaled_response, model), stars, theta_log)))
    half = solve_triangular(lower, response.T, lower=True)  # (weight, row): its squares are the added variances
    value, vector = np.linalg.eigh(half.T @ half if half.shape[1] < half.shape[0] else half @ half.T)
    value, vector = np.maximum(value[::-1], 0.0), vector[:, ::-1]
    share = np.cumsum(value) / max(value.sum(), 1e-300)
    wanted = int(np.searchsorted(share, captured)) + 1
    n = max(1, min(wanted, max_columns, int(np.sum(value > NOTHING * value[0]))))
    basis = vector[:, :n]
    if half.shape[1] < half.shape[0]:
        basis = half @ basis / np.sqrt(value[:n])
    columns = solve_triangular(lower, basis, lower=True, trans="T")
    return NetworkCovariance(columns.astype(np.float32), float(share[n - 1]), len(stars))


@jax.jit
def weight_covariance(
    model: StarModel,
    columns: Float[Array, "weight column"],
    stars: Stars,
    theta_log: Float[Array, "star parameter"],
) -> Float[Array, "star parameter parameter"]:
    """What the uncertainty of the model adds to (star, parameter, parameter) covariances of (labels, E, parallax).

    Args:
        model: the trained model.
        columns: (weight, column) of `NetworkCovariance`.
        stars: a batch as inference sees it, model error folded in.
        theta_log: (star, label + 2) their optima: labels, ln E, ln parallax.
    """
    at = trained_vector(model.forward)

    def one(inputs: tuple[Stars, Array]) -> Array:
        star, u = inputs
        response, _ = _response(model, star, u)

        def along(column: Array) -> Array:
            return jax.jvp(lambda w: predict_ln_flux(with_vector(model.forward, w), u), (at,), (column,))[1]

        shift = response @ jax.vmap(along, 1, 1)(columns)
        linear = jnp.concatenate([jnp.ones_like(u[:-2]), jnp.exp(u[-2:])])
        shift = linear[:, None] * shift
        return shift @ shift.T

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(one, (stars, theta_log))


def added_to_inferred(
    model: StarModel,
    factor: NetworkCovariance,
    stars: Stars,
    optimum: NDArray[np.floating],
    *,
    use_parallax: bool,
) -> NDArray[np.float64]:
    """What the uncertainty of the model adds to the covariance of stars that `infer` has solved.

    Args:
        model: the trained model.
        factor: of what is unknown of it.
        stars: as they were inferred.
        optimum: (star, parameter) labels, xi if the curve varies, E [mag], parallax [mas].
        use_parallax: whether the measured parallaxes were used.

    Returns:
        (star, parameter, parameter) of (labels, E [mag], parallax [mas]), without xi; NaN where a star has no optimum. A
        star's does not depend on who shares its batch.
    """
    rest = model.forward.without_xi
    if not len(stars):
        return np.zeros((0, len(rest), len(rest)))
    blind = jax.tree.map(jnp.asarray, stars.blind(parallax=use_parallax))
    at = to_log(jnp.asarray(optimum))
    folded = fold_in_model_error(model, blind, at)
    one_batch = partial(weight_covariance, model.without_error, jnp.asarray(factor.columns))
    added = np.asarray(by_blocks(one_batch, STAR_BLOCK, folded, at), np.float64)[:, rest][:, :, rest]
    return np.where(np.isfinite(added).all(axis=(1, 2), keepdims=True), added, np.nan)


def add_model_covariance(found: "Posteriors", added: Float[NDArray, "star parameter parameter"]) -> "Posteriors":
    """Results with the covariance from `added_to_inferred`; optima, means and medians stay, and all where that is NaN.

    Covariances are sums, and Fisher's matrix is the inverse of its sum. A standard deviation gains what is added in
    quadrature, and so does the distance of each quantile from the median, down to zero for E and parallax.
    """
    known = np.isfinite(added).all(axis=(1, 2))
    added = np.where(known[:, None, None], added, 0.0)
    sigma = np.sqrt(np.diagonal(added, axis1=1, axis2=2))
    covariance = found.covariance + added
    median = np.asarray(found.median, np.float64)
    low, high = median - np.hypot(median - found.low, sigma), median + np.hypot(found.high - median, sigma)
    low[:, -2:] = np.maximum(low[:, -2:], 0.0)

    def where_known(new: NDArray[np.float64], old: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.where(known.reshape(-1, *[1] * (old.ndim - 1)), new.astype(np.float32), old)

    return replace(
        found,
        covariance=covariance,
        fisher=where_known(invert_positive(covariance), found.fisher),
        laplace=found.laplace + added,
        std=where_known(np.hypot(found.std, sigma), found.std),
        low=where_known(low, found.low),
        high=where_known(high, found.high),
    )
