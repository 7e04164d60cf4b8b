"""Refined labels: the second stage's mixture, calibrated, with the measured parallax, fading into the forward posterior.

In: stars, their forward posteriors, a `SecondStage`. Out: `Refined`, in the labels alone. Four steps:

1. the networks' mixture given the fluxes, its width stretched as stars kept aside want it;
2. where a parallax was used, every Gaussian is conditioned on it. Near the mode the forward model gives ln parallax as a
   linear function of the labels, up to what the fluxes leave open and the scatter of stars of the same labels; a measured
   parallax is then one more observation of the labels (Kalman's update), and weighs the Gaussians against each other;
3. the forward posterior is one more Gaussian, with all the weight where the second stage has not learned (`support`);
4. medians and quantiles of that mixture.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray
from scipy.special import ndtr

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks
from xpbayes.inference.recalibration import kind_weights
from xpbayes.models.star_model import StarModel
from xpbayes.refinement.features import FluxOnly, flux_only, relative_residuals, star_features
from xpbayes.refinement.networks import MAX_DEVIATION, Layers, Mixture, RefinementNets, mixture, standardised
from xpbayes.refinement.support import FeatureSupport, share_of_second_stage

if TYPE_CHECKING:
    from xpbayes.inference.fit import Posteriors

LOW, MEDIAN, HIGH = (float(ndtr(z)) for z in (-1.0, 0.0, 1.0))
N_BISECTIONS, FAR = 26, 8.0
"""Quantiles are sought within so many sigma of every Gaussian's mean."""


class Stretches(NamedTuple):
    """By how much the networks' mixtures are too narrow, by kind of star.

    Attributes:
        scale: (place,) units of the places: labels at the mode, sqrt(E), ln S/N.
        kinds: (kind, place) centres, in those units.
        width: () over which kinds pass into each other.
        factor: (kind, label).
    """

    scale: Float[np.ndarray, " place"]
    kinds: Float[np.ndarray, "kind place"]
    width: Float[np.ndarray, ""]
    factor: Float[np.ndarray, "kind label"]


@dataclass(frozen=True)
class SecondStage:
    """All that refines a forward posterior.

    Attributes:
        nets: the ensemble.
        support: where it has learned.
        stretches: what stars kept aside say of its widths; None until they are asked.
    """

    nets: RefinementNets
    support: FeatureSupport
    stretches: Stretches | None = None


class Refined(NamedTuple):
    """Refined labels of stars, NaN where a star has no mode.

    Attributes:
        median, low, high, std: (star, label) median, 16 and 84 % quantiles and standard deviation [kK, dex, dex, ...].
        covariance: (star, label, label).
        share: (star,) of the second stage in it; what is left to 1 is the forward posterior's.
    """

    median: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    std: NDArray[np.float64]
    covariance: NDArray[np.float64]
    share: NDArray[np.float64]


class Gaussians(NamedTuple):
    """A mixture of Gaussians in the labels, in NumPy.

    Attributes:
        weight: (star, component).
        mean: (star, component, label).
        covariance: (star, component, label, label).
    """

    weight: NDArray[np.float64]
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


class Seen(NamedTuple):
    """What the networks are shown of stars.

    Attributes:
        features: (star, feature).
        places: (star, place) of these, by which stars are near each other: labels at the mode, sqrt(E), ln S/N.
        residual: (star, channel) of these, the residual spectrum.
        sound: (star,) there is a mode, and everything is finite.
    """

    features: NDArray[np.float32]
    places: NDArray[np.float64]
    residual: NDArray[np.float32]
    sound: NDArray[np.bool_]

    def take(self, rows: NDArray[np.integer]) -> "Seen":
        """Select stars."""
        return Seen(self.features[rows], self.places[rows], self.residual[rows], self.sound[rows])


def see(stars: Stars, fit: FluxOnly, ratio: NDArray[np.floating], scale: NDArray[np.floating], n_xp: int) -> Seen:
    """Features of stars and what else is made of them; arguments as of `star_features`."""
    features = star_features(stars, fit, ratio, scale, n_xp)
    n_channels, n_places = ratio.shape[1], fit.mode.shape[1]
    return Seen(
        features,
        features[:, :n_places].astype(np.float64),
        features[:, -n_channels:],
        np.asarray(np.isfinite(features).all(axis=1)),
    )


def residual_size(nets: RefinementNets, seen: Seen) -> NDArray[np.float64]:
    """(star,) rms of the standardised residual spectrum."""
    n = seen.residual.shape[1]
    deviation = (seen.residual - np.asarray(nets.center)[-n:]) * np.asarray(nets.inverse_scale)[-n:]
    size: NDArray[np.float64] = np.sqrt(
        np.mean(np.square(deviation.clip(-MAX_DEVIATION, MAX_DEVIATION), dtype=np.float64), axis=1)
    )
    return size


@partial(jax.jit, static_argnames="member")
def _mixture(nets: RefinementNets, features: Array, sigma: Array, member: int) -> Mixture:
    layers = Layers(*(tuple(values[member] for values in part) for part in (nets.weights, nets.biases)))
    with jax.default_matmul_precision("highest"):
        return mixture(layers, standardised(nets, features), sigma / nets.unit)


def ensemble(nets: RefinementNets, features: NDArray[np.float32], mode: NDArray, sigma: NDArray) -> Gaussians:
    """What the members say together, about the labels themselves.

    Args:
        nets: the ensemble.
        features: (star, feature), finite.
        mode: (star, label) in the forward posterior.
        sigma: (star, label) errors in it.
    """
    n_members, unit = nets.n_members, np.asarray(nets.unit, np.float64)
    parts = [
        by_blocks(partial(_mixture, nets, member=m), STAR_BLOCK, features, sigma.astype(np.float32))
        for m in range(n_members)
    ]
    weight, mean, factor = (
        np.concatenate([np.asarray(getattr(part, name), np.float64) for part in parts], axis=1)
        for name in Mixture._fields
    )
    factor = factor * unit[:, None]
    covariance = factor @ factor.transpose(0, 1, 3, 2)
    return Gaussians(np.exp(weight) / n_members, mode[:, None] + mean * unit, covariance)


def stretched(of: Gaussians, factor: Float[NDArray, "star label"]) -> Gaussians:
    """Mixtures wider by a factor in every label, about their means."""
    middle = np.sum(of.weight[:, :, None] * of.mean, axis=1)[:, None]
    covariance = of.covariance * factor[:, None, :, None] * factor[:, None, None, :]
    return Gaussians(of.weight, middle + factor[:, None] * (of.mean - middle), covariance)


def stretch_at(stretches: Stretches | None, places: NDArray[np.float64], n_labels: int) -> NDArray[np.float64]:
    """(star, label) factors at stars; 1 where nothing is known."""
    if stretches is None:
        return np.ones((len(places), n_labels))
    weight = kind_weights(places / stretches.scale, stretches.kinds, float(stretches.width))
    return weight @ np.asarray(stretches.factor, np.float64)


def with_parallax(
    of: Gaussians,
    fit: FluxOnly,
    parallax: NDArray[np.floating],
    inverse_error: NDArray[np.floating],
    scatter: NDArray[np.floating],
    at: NDArray[np.floating],
) -> Gaussians:
    """Mixtures given the measured parallax.

    Args:
        of: the mixtures given the fluxes.
        fit: the forward posterior given the fluxes.
        parallax, inverse_error: (star,) measured [mas], and 1 / its error, 0 where it was not used.
        scatter: (star,) of ln parallax at given labels.
        at: (star,) parallax that the fit with it found [mas]: where its logarithm is taken.
    """
    n = of.mean.shape[2]
    unit = np.ones_like(fit.mode)
    unit[:, -1] = 1.0 / np.maximum(fit.mode[:, -1], 1e-9)
    covariance = fit.laplace * unit[:, :, None] * unit[:, None, :]
    slope = np.linalg.solve(covariance[:, :n, :n], covariance[:, :n, -1:])[:, :, 0]
    left = np.maximum(covariance[:, -1, -1] - np.sum(slope * covariance[:, :n, -1], axis=1), 0.0)
    used = np.flatnonzero((inverse_error > 0) & (at > 0) & np.isfinite(slope).all(axis=1))
    a, mean, matrix = slope[used], of.mean[used], of.covariance[used]
    ln_at, near = np.log(at[used]), at[used]
    measured = ln_at + (parallax[used] - near) / near
    noise = left[used] + scatter[used] ** 2 + 1.0 / (inverse_error[used] * near) ** 2
    expected = np.log(fit.mode[used, -1])[:, None] + np.einsum("skl,sl->sk", mean - fit.mode[used, None, :n], a)
    along = np.einsum("sklm,sm->skl", matrix, a)
    variance = np.einsum("skl,sl->sk", along, a) + noise[:, None]
    surprise = measured[:, None] - expected
    ln_weight = np.log(np.maximum(of.weight[used], 1e-300)) - 0.5 * surprise**2 / variance - 0.5 * np.log(variance)
    weight = np.exp(ln_weight - ln_weight.max(axis=1, keepdims=True))
    out = Gaussians(*(values.copy() for values in of))
    out.weight[used] = weight / weight.sum(axis=1, keepdims=True)
    out.mean[used] = mean + along * (surprise / variance)[:, :, None]
    out.covariance[used] = matrix - along[:, :, :, None] * along[:, :, None, :] / variance[:, :, None, None]
    return out


def faded(of: Gaussians, share: NDArray[np.float64], median: NDArray, covariance: NDArray) -> Gaussians:
    """Mixtures with the forward posterior as one more Gaussian.

    Args:
        of: the second stage's mixtures.
        share: (star,) its weight.
        median: (star, label) of the forward posterior.
        covariance: (star, label, label) of the same.
    """
    return Gaussians(
        np.concatenate([of.weight * share[:, None], 1.0 - share[:, None]], axis=1),
        np.concatenate([of.mean, median[:, None]], axis=1),
        np.concatenate([of.covariance, covariance[:, None]], axis=1),
    )


def quantiles(of: Gaussians, level: float, added: Float[NDArray, "star label"] | float = 0.0) -> NDArray[np.float64]:
    """(star, label) quantiles of mixtures, label by label, by bisection.

    Args:
        of: the mixtures.
        level: which quantile.
        added: variance of something else that every label has in it, such as a measurement's error.
    """
    variance = np.diagonal(of.covariance, axis1=2, axis2=3)
    more = np.asarray(added)
    sigma = np.sqrt(variance + (more[:, None] if more.ndim else more))
    counts = of.weight[:, :, None] > 0
    low = np.where(counts, of.mean - FAR * sigma, np.inf).min(axis=1)
    high = np.where(counts, of.mean + FAR * sigma, -np.inf).max(axis=1)
    for _ in range(N_BISECTIONS):
        middle = 0.5 * (low + high)
        below = np.sum(of.weight[:, :, None] * ndtr((middle[:, None] - of.mean) / sigma), axis=1) < level
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return 0.5 * (low + high)


def summary(of: Gaussians, share: NDArray[np.float64]) -> Refined:
    """Medians, quantiles and moments of mixtures."""
    mean = np.sum(of.weight[:, :, None] * of.mean, axis=1)
    apart = of.mean - mean[:, None]
    each = of.covariance + apart[:, :, :, None] * apart[:, :, None, :]
    covariance = np.sum(of.weight[:, :, None, None] * each, axis=1)
    std = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    median, low, high = (quantiles(of, level) for level in (MEDIAN, LOW, HIGH))
    return Refined(median, low, high, std, covariance, share)


def forward_gaussian(published: "Posteriors", n_labels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(star, label) centre and (star, label, label) covariance of the labels in the forward posterior as published.

    Its median and half its 68 % interval, where draws were asked for, with Laplace's correlations; else Laplace alone.
    """
    laplace = np.asarray(published.laplace, np.float64)[:, :n_labels, :n_labels]
    sigma = np.sqrt(np.diagonal(laplace, axis1=1, axis2=2))
    half = 0.5 * (published.high - published.low)[:, :n_labels].astype(np.float64)
    drawn = np.isfinite(half) & (half > 0)
    ratio = np.where(drawn, half, sigma) / sigma
    median = np.where(drawn, published.median[:, :n_labels], published.estimate[:, :n_labels]).astype(np.float64)
    return median, laplace * ratio[:, :, None] * ratio[:, None, :]


def refine_labels(
    second: SecondStage,
    model: StarModel,
    stars: Stars,
    found: "Posteriors",
    published: "Posteriors",
    n_xp: int,
    scatter: Float[NDArray, " star"] | None = None,
    *,
    use_parallax: bool,
) -> Refined:
    """Refine the labels of stars.

    Args:
        second: the second stage.
        model: the forward model that it belongs to.
        stars: the stars, as measured.
        found: their posteriors as inference found them.
        published: the same, calibrated or not, as the catalogue has them: what the result fades into.
        n_xp: how many channels are samples of the spectrum.
        scatter: (star,) of ln parallax at given labels; none if None.
        use_parallax: whether inference used the parallaxes.
    """
    n = found.estimate.shape[1] - 2
    fit = flux_only(model, stars, found, use_parallax=use_parallax)
    nets = second.nets
    seen = see(stars, fit, relative_residuals(model.forward, stars, fit.mode), np.asarray(nets.residual_scale), n_xp)
    median, covariance = forward_gaussian(published, n)
    sound = seen.sound & np.isfinite(median).all(axis=1) & np.isfinite(covariance).all(axis=(1, 2))
    rows = np.flatnonzero(sound)
    fit, seen = fit.take(rows), seen.take(rows)
    of = ensemble(nets, seen.features, fit.mode[:, :n], fit.sigma[:, :n])
    of = stretched(of, stretch_at(second.stretches, seen.places, n))
    inverse_error = np.asarray(stars.parallax_inv_error, np.float64)[rows] * use_parallax
    if inverse_error.any():
        spread = np.zeros(len(rows)) if scatter is None else np.asarray(scatter, np.float64)[rows]
        parallax, at = np.asarray(stars.parallax, np.float64)[rows], found.estimate[rows, -1].astype(np.float64)
        of = with_parallax(of, fit, parallax, inverse_error, spread, at)
    share = share_of_second_stage(second.support, seen.places, residual_size(nets, seen))
    result = summary(faded(of, share, median[rows], covariance[rows]), share)

    def spread_out(values: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.full((len(sound), *values.shape[1:]), np.nan)
        out[rows] = values
        return out

    return Refined(*(spread_out(values) for values in result))
