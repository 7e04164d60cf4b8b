"""Laplace approximations of one star's posterior in (E, labels), the parallax integrated out.

The quadratic that L is around a point in (labels, ln E, ln parallax) becomes a Gaussian in E itself: without the
Jacobian of ln E it can be carried on to E < 0, which is what says whether there is any dust at all. Around the optimum
of the whole posterior it is the Laplace approximation; with one component of the label prior in the prior's place it
is the posterior that the star would have under that component alone.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from xpbayes.data.stars import Stars
from xpbayes.inference.linear_algebra import cholesky, smallest_pivot, solve_positive
from xpbayes.models.objective import Curvature, curvature
from xpbayes.models.star_model import StarModel

COMPONENT_STEPS = 5
"""Newton steps towards the optimum of every component of the label prior, the first from the whole posterior's."""
MAX_COMPONENT_STEP = 4.0
"""A component's optimum is sought within this of the whole posterior's, in units of the training labels' spread."""


class Gaussian(NamedTuple):
    """A Gaussian in (E, labels), E first."""

    mean: Float[Array, " label+1"]
    factor: Float[Array, "label+1 label+1"]  # lower-triangular; its first row belongs to E
    evidence: Float[Array, ""]  # ln of the integral of the posterior that it approximates


class _Component(NamedTuple):
    """One Gaussian of the label prior: precision and mean in label space, ln of its weight and normalisation."""

    precision: Array
    mean: Array
    ln_weight: Array


def laplace_at(model: StarModel, star: Stars, mode: Float[Array, " parameter"]) -> Gaussian:
    """Laplace approximation around one optimum (labels, ln E, ln parallax), the model's error in the star."""
    return at_optimum(curvature(model, star, mode)[0], mode)


def at_optimum(at: Curvature, mode: Float[Array, " parameter"]) -> Gaussian:
    """The same from the derivatives of L at the optimum."""
    # In ln E the slope of L is nought there, so that of the density in E, without its Jacobian, is 2.
    flat = at._replace(gradient=jnp.zeros_like(mode))
    _, gaussian = _gaussian(flat, mode, None)
    return gaussian


def _gaussian(at: Curvature, point: Array, component: _Component | None) -> tuple[Array, Gaussian]:
    """Optimum (labels, E, ln parallax) and Gaussian of the quadratic that L, which is `at` a point, is around it.

    A component takes the label prior's place: L is without one then.
    """
    n = point.size - 2
    # -2 ln density in (labels, E, ln parallax): L without the Jacobian -2 ln E.
    extinction = jnp.exp(point[-2])
    unit = jnp.ones_like(point).at[-2].set(1.0 / extinction)
    slope = at.gradient.at[-2].add(2.0)
    exact = at.hessian.at[-2, -2].add(-slope[-2]) * unit[:, None] * unit[None, :]
    bound = at.bound * unit[:, None] * unit[None, :]
    gradient, value = slope * unit, at.value + 2.0 * point[-2]
    if component is not None:
        pull = component.precision @ (point[:n] - component.mean)
        exact, bound = (h.at[:n, :n].add(2.0 * component.precision) for h in (exact, bound))
        gradient = gradient.at[:n].add(2.0 * pull)
        value = value + (point[:n] - component.mean) @ pull - 2.0 * component.ln_weight
    hessian = jnp.where(smallest_pivot(exact) > 1e-5, exact, bound)
    step = -solve_positive(hessian, gradient)
    center = jnp.concatenate([point[:n], extinction[None], point[-1:]]) + step
    covariance = 2.0 * jax.vmap(partial(solve_positive, hessian))(jnp.eye(n + 2, dtype=point.dtype))
    pick = jnp.array([n, *range(n)])
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(covariance)[pick], 1e-30))
    correlation = covariance[pick][:, pick] / scale[:, None] / scale[None, :]
    factor = scale[:, None] * cholesky(0.5 * (correlation + correlation.T) + 1e-6 * jnp.eye(n + 1))
    ln_det = jnp.sum(jnp.log(jnp.diagonal(factor)))
    return center, Gaussian(center[pick], factor, ln_det - 0.5 * (value + 0.5 * gradient @ step))


def around_components(model: StarModel, star: Stars, mode: Float[Array, " parameter"]) -> Gaussian:
    """Every component of the label prior times the likelihood, each as a Gaussian around its own optimum."""
    prior, n = model.label_prior, mode.size - 2
    more = n - prior.n_labels  # xi, whose own prior stays with the likelihood
    ln_det = jnp.sum(jnp.log(jnp.diagonal(prior.whitening, axis1=1, axis2=2)), axis=1)
    components = _Component(
        jnp.pad(jnp.einsum("kde,kfe->kdf", prior.whitening, prior.whitening), ((0, 0), (0, more), (0, more))),
        jnp.pad(prior.mean, ((0, 0), (0, more))),
        prior.ln_weight + ln_det - 0.5 * prior.n_labels * np.log(2.0 * np.pi),
    )
    reach = jnp.append(MAX_COMPONENT_STEP * model.forward.intrinsic_scale, jnp.ones(1, mode.dtype))  # and ln parallax

    def improve(center: Array, component: _Component) -> tuple[Array, Gaussian]:
        moved = jnp.clip(jnp.append(center[:n], center[-1]) - jnp.append(mode[:n], mode[-1]), -reach, reach)
        ln_extinction = jnp.log(jnp.maximum(center[n], 0.3 * jnp.exp(mode[-2])))
        point = jnp.concatenate([mode[:n] + moved[:n], ln_extinction[None], mode[-1:] + moved[n:]])
        return _gaussian(curvature(StarModel(model.forward), star, point)[0], point, component)

    def step(center: Array, _: None) -> tuple[Array, Gaussian]:
        return jax.vmap(improve)(center, components)

    # One step in the program, whatever their number: each would take seconds to compile.
    n_components = len(prior.ln_weight)
    begin = jnp.tile(mode.at[n].set(jnp.exp(mode[n])), (n_components, 1))
    _, gaussians = jax.lax.scan(step, begin, None, length=COMPONENT_STEPS)
    return jax.tree.map(lambda leaf: leaf[-1], gaussians)
