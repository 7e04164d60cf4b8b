"""Move model and stars together along what fluxes do not see, to where the stars' measurements want them (METHOD 9).

Fluxes stay as they are under

    ln parallax -> ln parallax + d(Theta)      with   ln f_abs -> ln f_abs - 2 d(Theta)
    E -> a E + b(Theta), R -> R / a            with   ln f_abs -> ln f_abs + b(Theta) R / a
    Theta -> Theta + g(Theta)                  with   f_abs(Theta + g) -> f_abs(Theta)

so only measured parallaxes, reddening estimates and labels fix d, a, b and g, hundreds of times more weakly than the
fluxes pin every star to the model of the moment: alternating phases all but stand still along them. Here they are found
at once. A star's joint solution has, to first order, no correlation with what is left of its own measurement (the two
are the parts of the measurement that the fit used and did not), so the regression of measured - solved on the solution
is not diluted by errors in either: it is zero at the joint optimum, and the move that makes it zero leads there.

d, b and g are linear in the last hidden layer of the network, whitened and ordered by its spread: the first two moves are
then exact, changes of the output weights alone, and cost no fluxes. After a move of labels the network must follow, in
the next phase of the model.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from xpbayes.data.stars import Stars
from xpbayes.models.forward import ForwardModel, last_hidden_layer
from xpbayes.training.weights import kinds_of_star

LN_PARALLAX_PRIOR, EXTINCTION_PRIOR, LABEL_PRIOR = 0.5, 0.05, 0.3
"""Prior spread of every feature's coefficient: of d, of b [mag], and of g in units of the training labels' spread."""
DOF = 4.0
"""Of the Student t that measurements are taken to follow: unresolved binaries and spurious parallaxes are among them."""
N_EXTINCTION_FEATURES, N_LAST_FEATURES = 6, 20
"""b depends on the foremost features alone: what reddening estimates get wrong for a kind of star (distances of a dust map,
fields that a survey picked) is not to become that kind's zero point. On more of them once no network follows: labels from
fluxes then stay the same, and a kind's zero point that is left out tilts the scale of E."""
N_REWEIGHTS, N_NEWTON = 12, 4
MIN_EXTINCTION = 1e-3
"""Smallest E after a move [mag]."""
LARGEST_LABEL_MOVE = 0.5
"""In units of the training labels' spread: the network must be able to follow."""
RELATIVE_SINGULAR_VALUE = 1e-4
"""Combinations of neurons that vary less than this share of the first are left out."""


class _Features(NamedTuple):
    """A constant and the whitened last hidden layer at every star, and the way back to the neurons."""

    values: NDArray[np.float64]  # (star, 1 + k)
    center: NDArray[np.float64]  # (neuron,) mean of the layer
    to_neurons: NDArray[np.float64]  # (neuron, k): the layer's deviation from its mean times this are the features

    def on_layer(self, coefficient: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """Weights (neuron,) and bias () of the same function of the layer itself."""
        weight = self.to_neurons @ coefficient[1:]
        return weight, float(coefficient[0] - self.center @ weight)


_layer = jax.jit(jax.vmap(last_hidden_layer, (None, 0)))


def _features(forward: ForwardModel, labels: NDArray[np.float64]) -> _Features:
    with jax.default_matmul_precision("highest"):
        layer = np.asarray(_layer(forward, jnp.asarray(labels, jnp.float32)), np.float64)
    center = layer.mean(axis=0)
    _, size, directions = np.linalg.svd(layer - center, full_matrices=False)
    kept = size > RELATIVE_SINGULAR_VALUE * size[0]
    to_neurons = directions[kept].T * np.sqrt(len(layer)) / size[kept]
    return _Features(np.column_stack([np.ones(len(layer)), (layer - center) @ to_neurons]), center, to_neurons)


def robust_ridge(
    features: Float[NDArray, "star feature"],
    target: Float[NDArray, " star"],
    inverse_error: Float[NDArray, " star"],
    prior_precision: Float[NDArray, " feature"],
    weight: Float[NDArray, " star"] | float = 1.0,
) -> Float[NDArray, " feature"]:
    """Linear regression with Student t errors and a Gaussian prior about zero, by iterated weights.

    Inverse errors are 0 where there is no target; the stars' weights count beside them.
    """
    coefficient = np.zeros(features.shape[1])
    for _ in range(N_REWEIGHTS):
        pull = (target - features @ coefficient) * inverse_error
        each = weight * inverse_error**2 * (DOF + 1.0) / (DOF + pull**2)
        normal = (features * each[:, None]).T @ features + np.diag(prior_precision)
        coefficient = np.linalg.solve(normal, (features * each[:, None]).T @ target)
    return coefficient


class Moved(NamedTuple):
    """What `move_gauge` yields: the moved model and stars."""

    forward: ForwardModel
    theta_log: Float[NDArray, "star parameter"]
    by: Float[NDArray, "star parameter"]  # (star, label + 2) by how much labels, E [mag] and ln parallax moved
    scale: float  # a, the factor of all E


def move_gauge(
    forward: ForwardModel,
    stars: Stars,
    theta_log: Float[Any, "star parameter"],
    weight: Float[NDArray, " star"] | float = 1.0,
    *,
    labels: bool = True,
    last: bool = False,
) -> Moved:
    """Find all moves at the present solutions (star, label + 2) and make them.

    Args:
        forward: the forward model.
        stars: the training stars; only their labels, parallaxes and reddening estimates are looked at.
        theta_log: their solutions.
        weight: (star,) how much each counts, from `weights.star_weights`.
        labels: move labels too; the network then has to follow.
        last: move E by finer kinds of star; no phase of the model may follow.
    """
    u = np.array(theta_log, np.float64)
    n_labels = forward.n_labels
    by = np.zeros_like(u)
    features = _features(forward, u[:, :n_labels])
    output, bias = (np.array(v[-1], np.float64) for v in (forward.weights, forward.biases))
    curve = np.exp(np.asarray(forward.ln_curve, np.float64))
    variation = forward.curve_variation

    # ln parallax: measured against modelled parallax, around the move so far.
    measured, inverse = (np.asarray(v, np.float64) for v in (stars.parallax, stars.parallax_inv_error))
    coefficient = np.zeros(features.values.shape[1])
    for _ in range(N_NEWTON if np.any(inverse > 0) else 0):
        move = features.values @ coefficient
        parallax = np.exp(u[:, -1] + move)
        target = measured / parallax - 1.0 + move
        coefficient = robust_ridge(
            features.values, target, inverse * parallax, _precision(features, LN_PARALLAX_PRIOR), weight
        )
    by[:, -1] = features.values @ coefficient
    of_neurons, constant = features.on_layer(coefficient)
    output -= 2.0 * of_neurons[:, None]
    bias -= 2.0 * constant

    # E: its scale, its zero point, and by kind of star.
    extinction, scale = np.exp(u[:, -2]), 1.0
    inverse = np.asarray(stars.reddening_inv_error, np.float64)
    if np.any(inverse > 0):
        coefficient = np.zeros(features.values.shape[1] + 1)
        n_used = 1 + (N_LAST_FEATURES if last else N_EXTINCTION_FEATURES)
        used = np.r_[: min(n_used, len(coefficient) - 1), -1]
        coefficient[used] = robust_ridge(
            np.column_stack([features.values, extinction])[:, used],
            np.asarray(stars.reddening, np.float64),
            inverse,
            np.append(_precision(features, EXTINCTION_PRIOR), 0.0)[used],
            np.square(weight),  # E behind another extinction law is off by less than an estimate's error: no pull tells
        )
        scale = float(coefficient[-1])
        moved = np.maximum(scale * extinction + features.values @ coefficient[:-1], MIN_EXTINCTION)
        by[:, -2] = moved - extinction
        curve /= scale
        variation = None if variation is None else variation / scale
        of_neurons, constant = features.on_layer(coefficient[:-1])
        output += np.outer(of_neurons, curve)
        bias += constant * curve
        u[:, -2] = np.log(moved)

    if labels:
        spread = np.asarray(forward.label_scale, np.float64)
        for i in range(n_labels):
            residual = (np.asarray(stars.labels, np.float64)[:, i] - u[:, i]) / spread[i]
            inverse = np.asarray(stars.label_inv_error, np.float64)[:, i] * spread[i]
            coefficient = robust_ridge(features.values, residual, inverse, _precision(features, LABEL_PRIOR), weight)
            move = np.clip(features.values @ coefficient, -LARGEST_LABEL_MOVE, LARGEST_LABEL_MOVE)
            by[:, i] = spread[i] * move
    u[:, :n_labels] += by[:, :n_labels]
    u[:, -1] += by[:, -1]
    to32 = lambda v: jnp.asarray(v, jnp.float32)  # noqa: E731
    moved_model = replace(
        forward,
        weights=(*forward.weights[:-1], to32(output)),
        biases=(*forward.biases[:-1], to32(bias)),
        ln_curve=to32(np.log(curve)),
        curve_variation=None if variation is None else to32(variation),
    )
    return Moved(moved_model, u, by, scale)


def moves_by_kind(
    moved: Moved, theta_log: NDArray[np.floating], names: tuple[str, ...] = ("teff", "feh", "logg")
) -> dict[str, list[float]]:
    """Median move of (labels..., E, ln parallax) of every kind of star that there is: what training had still to go."""
    u, shown = np.asarray(theta_log, np.float64), [*range(len(names)), -2, -1]
    return {
        name: np.median(moved.by[there][:, shown], axis=0).round(5).tolist()
        for name, there in kinds_of_star(u[:, : len(names)], names).items()
        if there.any()
    }


def _precision(features: _Features, spread: float) -> NDArray[np.float64]:
    """Of the prior of the constant, which is flat but for rounding, and of every feature."""
    precision = np.full(features.values.shape[1], 1.0 / spread**2)
    precision[0] = 1e-6
    return precision
