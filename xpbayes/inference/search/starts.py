"""Where the solver begins: label nodes from the prior, extinction and parallax in closed form, ranked by L.

In ln flux the model is linear in E and 2 ln parallax: ln f = ln f_abs(labels) + 2 ln parallax - E R. So each node
costs a weighted 2 x 2 least-squares problem, and all nodes of all stars are a few matrix products: no grid in E is
needed, and the parallax enters as one more measurement. The best nodes are then ranked by the full objective.
Optima that compete lie in different components of the label prior (the main sequence and the subgiants above it), so
every start is of another component.
(ZGR23 search 512 nodes x 61 extinctions with the amplitude from 592-782 nm.)
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from xpbayes.data.stars import Stars
from xpbayes.device import program
from xpbayes.models.forward import ForwardModel, ln_absolute_flux
from xpbayes.models.objective import objective
from xpbayes.models.prior import component_ln_density, draw_labels, ln_prior
from xpbayes.models.star_model import StarModel

MIN_EXTINCTION, MAX_EXTINCTION = 0.01, 10.0
"""Range of E searched [mag], as in ZGR23."""
LOG_FLUX_SOFTENING = 0.03
"""Relative error added per channel in this search only: it stands in for the correlations that the search ignores."""
PARALLAX_MIN_SNR = 3.0
"""From here on ln parallax is Gaussian enough to enter the linear problem."""
N_RANKED = 32
"""Nodes per star that are ranked by the full objective, whatever their component."""
N_RANKED_PER_COMPONENT = 2
"""Nodes of every component of the prior that are ranked beside them."""
MIN_SEPARATION = 0.7
"""Starts of one component keep this distance, in units of the training labels' spread, where they can."""
PENALTY = 1e6
"""Above any difference in L: what is penalised is chosen only when nothing else is left."""


class StartGrid(NamedTuple):
    """Nodes in label space with what they predict."""

    labels: Float[Array, "node label"]
    ln_flux: Float[Array, "node channel"]  # ln f_abs
    ln_prior: Float[Array, " node"]
    members: Bool[Array, "component node"]  # whether a component of the prior is the likeliest to have a node
    # the nodes of each component in order, filled up with others to the same number
    of_each: Int[Array, "component place"]


def make_grid(model: StarModel, n_nodes: int = 1024) -> StartGrid:
    """Draw nodes from the label prior, half of them from its components with equal weights.

    Rare kinds of star (hot, metal-poor, very cool) have low mixture weights but need nodes as much as any.
    """
    labels, ln_flux, ln_density, members = _draw_nodes(model, n_nodes)
    own = np.asarray(members)
    own_first = np.argsort(~own, axis=1, kind="stable")
    of_each: Any = own_first[:, : max(N_RANKED_PER_COMPONENT, own.sum(axis=1).max())]
    return StartGrid(labels, ln_flux, ln_density, members, of_each)


@partial(program, static_argnames="n_nodes")
def _draw_nodes(model: StarModel, n_nodes: int) -> tuple[Array, Array, Array, Array]:
    """Labels, ln flux, ln prior and components of nodes, always the same ones of a model."""
    forward, prior = model.forward, model.label_prior
    likely, rare = jax.random.split(jax.random.key(0))
    even = replace(prior, ln_weight=prior.ln_weight * 0.0 - np.log(prior.ln_weight.shape[0]))
    labels = jnp.concatenate(
        [draw_labels(prior, likely, n_nodes - n_nodes // 2), draw_labels(even, rare, n_nodes // 2)]
    )
    likeliest = jnp.argmax(jax.vmap(partial(component_ln_density, prior))(labels), axis=1)
    return (
        labels,
        jax.vmap(partial(ln_absolute_flux, forward))(labels),
        jax.vmap(partial(ln_prior, prior))(labels),
        likeliest == jnp.arange(prior.ln_weight.shape[0])[:, None],
    )


def _node_fits(forward: ForwardModel, grid: StartGrid, stars: Stars) -> tuple[Array, Array, Array]:
    """Best E and 2 ln parallax of every node for every star, and the score: (star, node) each."""
    precision = jnp.sum(stars.whitening**2, axis=1)  # diagonal of W^T W
    usable = (stars.flux > 0) & (precision > 0)
    flux = jnp.where(usable, stars.flux, 1.0)
    relative_variance = 1.0 / jnp.maximum(precision * flux**2, 1e-12)
    weight = jnp.where(usable, 1.0 / (relative_variance + LOG_FLUX_SOFTENING**2), 0.0)
    y, m, curve = jnp.log(flux) + stars.ln_scale[:, None], grid.ln_flux, jnp.exp(forward.ln_curve)

    # The parallax is one more measurement of a = 2 ln parallax.
    snr = stars.parallax * stars.parallax_inv_error
    good = snr > PARALLAX_MIN_SNR
    parallax_weight = jnp.where(good, (0.5 * snr) ** 2, 0.0)
    parallax_a = 2.0 * jnp.log(jnp.where(good, stars.parallax, 1.0))

    # Weighted sums of d = y - m_node, with the model a - E R; `1` and `R` name the two directions.
    s_11 = jnp.sum(weight, axis=1) + parallax_weight
    s_1r = weight @ curve
    s_rr = weight @ curve**2
    d_1 = (jnp.sum(weight * y, axis=1) + parallax_weight * parallax_a)[:, None] - weight @ m.T
    d_r = ((weight * y) @ curve)[:, None] - (weight * curve) @ m.T
    d_d = (
        (jnp.sum(weight * y**2, axis=1) + parallax_weight * parallax_a**2)[:, None]
        - 2.0 * (weight * y) @ m.T
        + weight @ (m**2).T
    )
    # Minimise over a for given E, then over E in its range: a one-dimensional quadratic, so clipping is exact.
    quadratic = s_rr - s_1r**2 / s_11
    linear = s_1r[:, None] / s_11[:, None] * d_1 - d_r
    extinction = jnp.clip(linear / jnp.maximum(quadratic, 1e-9)[:, None], MIN_EXTINCTION, MAX_EXTINCTION)
    a = (d_1 + extinction * s_1r[:, None]) / s_11[:, None]
    chi2 = d_d - d_1**2 / s_11[:, None] - 2.0 * extinction * linear + extinction**2 * quadratic[:, None]
    return extinction, a, chi2 - 2.0 * grid.ln_prior[None, :]


@program
def first_guess(forward: ForwardModel, grid: StartGrid, stars: Stars) -> Float[Array, "star parameter"]:
    """The best node of every star by the linear problem alone: it needs no model error in the whitening."""
    with jax.default_matmul_precision("highest"):
        extinction, a, score = _node_fits(forward, grid, stars)
    best = jnp.argmin(score, axis=1)[:, None]
    return _at_nodes(grid, extinction, a, best, forward.n_star_parameters)[:, 0]


def _at_nodes(
    grid: StartGrid, extinction: Array, a: Array, node: Int[Array, "star chosen"], n_parameters: int
) -> Array:
    """(star, chosen, parameter) theta_log at some nodes of every star."""
    best_extinction, best_a = (jnp.take_along_axis(all_nodes, node, axis=1) for all_nodes in (extinction, a))
    labels = grid.labels[node]
    mean_curve = jnp.zeros((*labels.shape[:-1], n_parameters - labels.shape[-1] - 2), labels.dtype)  # xi, if it is one
    return jnp.concatenate([labels, mean_curve, jnp.log(best_extinction)[..., None], 0.5 * best_a[..., None]], axis=-1)


@partial(program, static_argnames="n_starts")
def find_starts(model: StarModel, grid: StartGrid, stars: Stars, n_starts: int) -> Float[Array, "star start parameter"]:
    """Choose starts for every star of a batch, the best first, then the best of every other component of the prior."""
    with jax.default_matmul_precision("highest"):
        extinction, a, score = _node_fits(model.forward, grid, stars)
        _, best = jax.lax.top_k(-score, N_RANKED)
        own = jnp.take_along_axis(grid.members, grid.of_each, axis=1)
        _, place = jax.lax.top_k(jnp.where(own, -score[:, grid.of_each], -jnp.inf), N_RANKED_PER_COMPONENT)
        of_each = jnp.take_along_axis(grid.of_each[None], place, axis=2)
        node = jnp.concatenate([best, of_each.reshape(len(best), -1)], axis=1)
        picked = _at_nodes(grid, extinction, a, node, model.forward.n_star_parameters)
        full = jax.vmap(lambda star, u: jax.vmap(lambda p: objective(model, star, p))(u))(stars, picked)
    full = jnp.where(jnp.isfinite(full), full, jnp.inf)
    component = jnp.argmax(grid.members, axis=0)[node]

    def spread(candidates: Array, value: Array, component: Array) -> Array:
        position = candidates[:, :-2] / model.forward.intrinsic_scale
        chosen = []
        for _ in range(n_starts):
            best = jnp.argmin(value)
            chosen.append(candidates[best])
            distance = jnp.sqrt(jnp.sum((position - position[best]) ** 2, axis=1))
            # The same component goes to the back of the queue, near neighbours in it to its end, rather than out: there
            # may be nothing else.
            same = component == component[best]
            value += PENALTY * same + PENALTY * (same & (distance < MIN_SEPARATION))
            value = value.at[best].set(jnp.inf)
        return jnp.stack(chosen)

    return jax.vmap(spread)(picked, full, component)
