"""The prior on a star's labels: a mixture of full-covariance Gaussians, properly normalised (ZGR23 Section 4.1)."""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from xpbayes.device import program


class LabelPrior(eqx.Module):
    """A Gaussian mixture in label space."""

    ln_weight: Float[Array, " component"]  # ln of the mixture weights
    mean: Float[Array, "component label"]  # [kK, dex, dex, ...]
    # P with P P^T the precision matrix (scikit-learn's precisions_cholesky)
    whitening: Float[Array, "component label label"]
    # 0.1 % quantile of ln p over draws of the mixture itself: below it a star is of an unlikely type (Eq. 25)
    ln_threshold: Float[Array, ""]

    @property
    def n_labels(self) -> int:
        """Number of stellar labels."""
        return self.mean.shape[-1]


def component_ln_density(prior: LabelPrior, labels: Float[Array, " label"]) -> Float[Array, " component"]:
    """Ln (weight x density) of every component at one point."""
    n = labels.shape[0]
    # The few labels' sums are written out: as products of small matrices they take twenty times as long on CPUs.
    offset = [labels[d] - prior.mean[:, d] for d in range(n)]
    white = [sum(offset[d] * prior.whitening[:, d, e] for d in range(n)) for e in range(n)]
    ln_det = jnp.sum(jnp.log(jnp.diagonal(prior.whitening, axis1=1, axis2=2)), axis=1)
    return prior.ln_weight + ln_det - 0.5 * n * np.log(2.0 * np.pi) - 0.5 * sum(z**2 for z in white)


def ln_prior(prior: LabelPrior, labels: Float[Array, " label"]) -> Float[Array, ""]:
    """Ln p of one star's labels [kK, dex, dex, ...], normalised over label space."""
    return jax.nn.logsumexp(component_ln_density(prior, labels))


@program
def ln_priors(prior: LabelPrior, labels: Float[Array, "star label"]) -> Float[Array, " star"]:
    """Ln p(labels) of many stars; see `ln_prior`."""
    return jax.vmap(partial(ln_prior, prior))(labels)


class PriorCurvature(NamedTuple):
    """-ln p and its derivatives by the labels at one point."""

    value: Float[Array, ""]  # -ln p
    gradient: Float[Array, " label"]
    hessian: Float[Array, "label label"]  # exact; not always positive definite between components
    # mean precision of the components, weighted by their responsibilities: positive definite everywhere, and an
    # upper bound to the Hessian in the sense of expectation-maximisation
    bound: Float[Array, "label label"]


def prior_curvature(prior: LabelPrior, labels: Float[Array, " label"]) -> PriorCurvature:
    """Evaluate -ln p with gradient and Hessian in closed form: a fifth of the cost of differentiating twice."""
    ln_density = component_ln_density(prior, labels)
    value = jax.nn.logsumexp(ln_density)
    share = jnp.exp(ln_density - value)
    precision = jnp.einsum("kde,kfe->kdf", prior.whitening, prior.whitening)
    n = labels.shape[0]
    # Gradient of each component's -ln density, written out as above.
    pull = [sum(precision[:, d, f] * (labels[f] - prior.mean[:, f]) for f in range(n)) for d in range(n)]
    gradient = [jnp.sum(share * p) for p in pull]
    away = [p - g for p, g in zip(pull, gradient, strict=True)]
    spread = jnp.stack([jnp.sum(share * away[d] * away[f]) for d in range(n) for f in range(n)]).reshape(n, n)
    bound = (share @ precision.reshape(-1, n * n)).reshape(n, n)
    return PriorCurvature(-value, jnp.stack(gradient), bound - spread, bound)


@partial(program, static_argnames="n")
def draw_labels(prior: LabelPrior, key: Array, n: int) -> Float[Array, "draw label"]:
    """Draw n labels from the mixture."""
    which, noise = jax.random.split(key)
    component = jax.random.categorical(which, prior.ln_weight, shape=(n,))
    white = jax.random.normal(noise, (n, prior.mean.shape[1]), dtype=prior.mean.dtype)
    # precision = P P^T, so labels = mean + P^-T z.
    solve = jax.vmap(lambda p, z: jax.scipy.linalg.solve_triangular(p.T, z, lower=True))
    return prior.mean[component] + solve(prior.whitening[component], white)
