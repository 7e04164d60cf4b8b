"""What the second stage looks at: a summary of the posterior given the fluxes alone, and the residual spectrum.

Everything is relative: no apparent magnitude, no distance and no position on the sky, by which training stars were selected
and of which their labels would be guessed. A measured parallax is no feature: the networks learn from stars without, and
`refined` brings it in by what the forward model says of it.
"""

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks, signal_to_noise
from xpbayes.device import program
from xpbayes.inference.errors import evaluate_mode, laplace_covariance
from xpbayes.inference.fluxes_alone import FluxesAlone, without_parallax
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.models.forward import ForwardModel, predict_flux
from xpbayes.models.star_model import StarModel
from xpbayes.models.theta import to_linear, to_log

if TYPE_CHECKING:
    from xpbayes.inference.fit import Posteriors

TINY = 1e-9
"""Floor for what a logarithm is taken of."""
RATIO_RANGE = (-0.9, 3.0)
"""Bounds of relative residuals: a flux may be negative, a model flux nearly zero."""


class FluxOnly(NamedTuple):
    """A star's posterior given its fluxes, near its mode.

    Attributes:
        optimum: (star, parameter) labels, xi if the curve varies, E [mag], parallax [mas] at the mode.
        mode: (star, parameter) the same without xi.
        laplace: (star, parameter, parameter) covariance of the latter.
        chi2: (star,) of the fluxes.
        runner_up: (star, label) labels of the second optimum minus the mode's; 0 if there is one only.
        share: (star,) density there over that at the mode; 0 likewise.
    """

    optimum: NDArray[np.float64]
    mode: NDArray[np.float64]
    laplace: NDArray[np.float64]
    chi2: NDArray[np.float64]
    runner_up: NDArray[np.float64]
    share: NDArray[np.float64]

    def take(self, rows: NDArray[np.integer]) -> "FluxOnly":
        """Select stars."""
        return FluxOnly(*(values[rows] for values in self))

    @property
    def sigma(self) -> NDArray[np.float64]:
        """(star, parameter) errors."""
        with np.errstate(invalid="ignore"):
            return np.sqrt(np.maximum(np.diagonal(self.laplace, axis1=1, axis2=2), TINY**2))


def flux_only(model: StarModel, stars: Stars, found: "Posteriors", *, use_parallax: bool) -> FluxOnly:
    """The posterior given the fluxes alone: of stars whose parallax was used, at the optimum next to theirs.

    Args:
        model: the trained model.
        stars: the stars, as inference saw them.
        found: their posteriors, not calibrated.
        use_parallax: whether inference used the parallaxes.
    """
    n = found.estimate.shape[1] - 2
    single = np.isnan(found.runner_up_delta)
    share = np.where(single, 0.0, np.exp(-0.5 * np.where(single, 0.0, found.runner_up_delta)))
    runner_up = np.where(single[:, None], 0.0, found.runner_up[:, :n] - found.estimate[:, :n]).astype(np.float64)
    own = model.forward.without_xi
    if not use_parallax:
        optimum, laplace, chi2 = (np.asarray(v, np.float64) for v in (found.optimum, found.laplace, found.chi2))
    else:
        alone = found.alone or _again(model, stars, found)
        laplace = laplace_covariance(alone.hessian, alone.theta_log)[:, own][:, :, own]
        optimum, chi2 = to_linear(alone.theta_log.astype(np.float64)), alone.chi2.astype(np.float64)
    return FluxOnly(optimum, optimum[:, own], laplace, chi2, runner_up, share)


def _again(model: StarModel, stars: Stars, found: "Posteriors") -> FluxesAlone:
    """The same where inference did not leave it behind."""
    least = np.append(np.full(found.optimum.shape[1] - 2, -np.inf), [TINY, TINY])
    begin: Any = to_log(np.maximum(found.optimum, least).astype(np.float32))
    folded = fold_in_model_error(model, stars.blind(), begin)
    at = by_blocks(partial(evaluate_mode, model.without_error), STAR_BLOCK, folded, begin)
    return without_parallax(model.without_error, folded, begin, at)


def feature_names(labels: Sequence[str], channels: Sequence[str], n_xp: int) -> tuple[str, ...]:
    """Name every feature in order.

    Args:
        labels: the model's labels.
        channels: names of the model's channels.
        n_xp: how many of these are samples of the spectrum.
    """
    pairs = [f"{first}_{second}" for first, second in combinations(labels, 2)]
    return (
        *(f"{name}_mode" for name in labels),
        "sqrt_E_mode",
        "ln_snr",
        *(f"ln_{name}_error" for name in labels),
        "ln_E_error",
        *(f"correlation_{pair}" for pair in pairs),
        "ln_chi2_per_channel",
        "runner_up_share",
        *(f"runner_up_{name}" for name in labels),
        *(f"has_{name}" for name in channels[n_xp:]),
        *(f"residual_{name}" for name in channels),
    )


@program
def _ratios(forward: ForwardModel, stars: Stars, theta_log: Array) -> Array:
    predicted = jax.vmap(partial(predict_flux, forward))(theta_log, stars.ln_scale)
    ratio = stars.flux / jnp.maximum(predicted, TINY) - 1.0
    return jnp.where(jnp.diagonal(stars.whitening, axis1=1, axis2=2) > 0, jnp.clip(ratio, *RATIO_RANGE), jnp.nan)


def relative_residuals(
    forward: ForwardModel, stars: Stars, optimum: Float[NDArray, "star parameter"]
) -> NDArray[np.float32]:
    """(star, channel) observed over predicted flux minus 1, NaN where nothing was observed.

    Args:
        forward: the forward model.
        stars: the stars.
        optimum: labels, xi if the curve varies, E [mag], parallax [mas].
    """
    at = np.array(optimum, np.float32)
    at[:, -2:] = np.maximum(at[:, -2:], TINY)
    return np.asarray(by_blocks(partial(_ratios, forward), STAR_BLOCK, stars, to_log(at)))


def star_features(
    stars: Stars,
    fit: FluxOnly,
    ratio: Float[NDArray, "star channel"],
    residual_scale: Float[NDArray, " channel"],
    n_xp: int,
) -> NDArray[np.float32]:
    """(star, feature) in the order of `feature_names`; not finite for a star without a mode.

    Args:
        stars: the stars.
        fit: their posteriors given the fluxes.
        ratio: from `relative_residuals`.
        residual_scale: unit of these.
        n_xp: how many channels are samples of the spectrum.
    """
    n, measured, sigma = fit.mode.shape[1] - 2, np.isfinite(ratio), fit.sigma
    row, column = np.triu_indices(n, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        columns = [
            *fit.mode[:, :n].T,
            np.sqrt(fit.mode[:, n]),
            np.log(np.maximum(signal_to_noise(stars), TINY)),
            *np.log(sigma[:, : n + 1]).T,
            *(fit.laplace[:, row, column] / (sigma[:, row] * sigma[:, column])).T,
            np.log(fit.chi2 / measured.sum(axis=1) + TINY),
            fit.share,
            *fit.runner_up.T,
            *measured[:, n_xp:].T,
            *np.arcsinh(np.where(measured, ratio, 0.0) / residual_scale).T,
        ]
    return np.stack(columns, axis=1).astype(np.float32)


def places_of(features: Float[NDArray, "star feature"], n_labels: int) -> NDArray[np.float64]:
    """(star, label + 2) of the features those by which stars are near each other: labels at the mode, sqrt(E), ln S/N."""
    return features[:, : n_labels + 2].astype(np.float64)
