"""Refined labels: the second stage's mixture, with the measured parallax, fading into the forward posterior, adjusted.

In: stars with their forward posteriors, a `SecondStage`. Out: `Refined`, in the labels alone. Four steps:

1. the networks' mixture given the fluxes;
2. where a parallax was used, every Gaussian is conditioned on it. Near the mode the forward model gives ln parallax as a
   linear function of the labels, up to what the fluxes leave open and the scatter of stars of the same labels; a measured
   parallax is then one more observation of the labels (Kalman's update), and weighs the Gaussians against each other;
3. the forward posterior is one more Gaussian, with all the weight where the second stage has not learned (`support`);
   medians and quantiles of that mixture, which are `held_back` at the sample's edge;
4. how far these go from the forward posterior, and how wide they are, is adjusted as stars kept aside, with parallaxes and
   without, bear out (`adjusting`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray
from scipy.special import ndtr

from xpbayes.data.stars import STAR_BLOCK, by_blocks, replaced, rows_of_each
from xpbayes.device import program
from xpbayes.inference.scatter import trusted_inverse_error
from xpbayes.models.star_model import StarModel
from xpbayes.refinement.adjusting import UNJUDGED, Adjustments, Interval, Refined, adjusted, held_back
from xpbayes.refinement.features import flux_only, places_of, relative_residuals, star_features
from xpbayes.refinement.networks import Layers, Mixture, RefinementNets, mixture, residual_size, standardised
from xpbayes.refinement.support import FeatureSupport, share_of_second_stage

if TYPE_CHECKING:
    from xpbayes.inference.fit import Inferred, Posteriors

LOW, MEDIAN, HIGH = (float(ndtr(z)) for z in (-1.0, 0.0, 1.0))
AT_ONCE = 8192
"""Stars whose mixtures are held together."""
N_BISECTIONS = 26
"""Of a few sigma, between the outermost of the Gaussians' own quantiles."""
RELATIVE = float(np.sqrt(0.5))
"""Of an error function's argument to a number of sigma."""


@dataclass(frozen=True)
class SecondStage:
    """All that refines a forward posterior."""

    nets: RefinementNets  # the ensemble
    support: FeatureSupport  # where it has learned
    n_xp: int  # how many of the model's channels are samples of the spectrum
    flux_only: Adjustments | None = None  # what stars kept aside bear out without parallaxes; None until they are asked
    with_parallax: Adjustments | None = None  # the same with them


class Gaussians(NamedTuple):
    """A mixture of Gaussians in the labels, in NumPy."""

    weight: NDArray[np.float64]  # (star, component)
    mean: NDArray[np.float64]  # (star, component, label)
    covariance: NDArray[np.float64]  # (star, component, label, label)

    def apart(self, n_members: int) -> NDArray[np.float64]:
        """(star, label) standard deviation of the means that members give, whose components follow each other."""
        n, _, n_labels = self.mean.shape
        weight, mean = self.weight.reshape(n, n_members, -1, 1), self.mean.reshape(n, n_members, -1, n_labels)
        each = np.sum(weight * mean, axis=2) / np.maximum(weight.sum(axis=2), 1e-300)
        return np.asarray(each.std(axis=1, ddof=min(1, n_members - 1)))


@program
def _mixture(nets: RefinementNets, layers: Layers, features: Array, sigma: Array) -> Mixture:
    with jax.default_matmul_precision("highest"):
        return mixture(layers, standardised(nets, features), sigma / nets.unit)


def ensemble(nets: RefinementNets, features: NDArray[np.float32], mode: NDArray, sigma: NDArray) -> Gaussians:
    """What the members say together, about the labels themselves; mode and errors are the forward posterior's."""
    n_members, unit = nets.n_members, np.asarray(nets.unit, np.float64)
    stacked = jax.tree.map(np.asarray, Layers(nets.weights, nets.biases))
    scaling = replace(nets, weights=(), biases=())
    members = [jax.tree.map(lambda values, m=m: values[m], stacked) for m in range(n_members)]
    parts = [
        by_blocks(partial(_mixture, scaling, layers), STAR_BLOCK, features, sigma.astype(np.float32))
        for layers in members
    ]
    weight, mean, factor = (
        np.concatenate([np.asarray(getattr(part, name), np.float64) for part in parts], axis=1)
        for name in Mixture._fields
    )
    factor = factor * unit[:, None]
    covariance = factor @ factor.transpose(0, 1, 3, 2)
    return Gaussians(np.exp(weight) / n_members, mode[:, None] + mean * unit, covariance)


class Relation(NamedTuple):
    """What fluxes say of ln parallax once the labels are known, next to where the fit with the parallax ended."""

    slope: NDArray[np.float64]  # (star, label) of ln parallax on the labels
    at: NDArray[np.float64]  # (star, label) labels where it is taken
    value: NDArray[np.float64]  # (star,) ln parallax there
    variance: NDArray[np.float64]  # (star,) that the fluxes leave open


def relation_to_parallax(
    mode: NDArray[np.floating],
    laplace: NDArray[np.floating],
    parallax: NDArray[np.floating],
    inverse_error: NDArray[np.floating],
) -> Relation:
    """The relation, from a fit with the parallax by taking what the parallax said off its Hessian.

    The mode and its covariance are of labels, E [mag], parallax [mas]; the measurement is the one used [mas], with 1 /
    its error.
    """
    n = mode.shape[1] - 2
    unit = np.ones(mode.shape)
    unit[:, -1] = mode[:, -1]
    precision = np.linalg.inv(laplace) * unit[:, :, None] * unit[:, None, :]
    weight = mode[:, -1] * inverse_error**2
    precision[:, -1, -1] -= weight * (2.0 * mode[:, -1] - parallax)
    given_labels = np.linalg.inv(precision[:, n:, n:])
    slope = -(given_labels @ precision[:, n:, :n])[:, 1]
    variance = np.maximum(given_labels[:, 1, 1], 0.0)
    value = np.log(mode[:, -1]) - variance * weight * (parallax - mode[:, -1])
    return Relation(slope, mode[:, :n].astype(np.float64), value, variance)


def with_parallax(
    of: Gaussians, found: Relation, near: NDArray[np.floating], parallax: NDArray, inverse_error: NDArray
) -> Gaussians:
    """Mixtures given the measured parallax [mas], whose logarithm is taken to be linear `near` some parallax [mas].

    `found` is what the fluxes say of it; its error has the scatter of such stars in it.
    """
    noise = found.variance + 1.0 / (inverse_error * near) ** 2
    measured = np.log(near) + (parallax - near) / near
    expected = found.value[:, None] + np.einsum("skl,sl->sk", of.mean - found.at[:, None], found.slope)
    along = np.einsum("sklm,sm->skl", of.covariance, found.slope)
    variance = np.einsum("skl,sl->sk", along, found.slope) + noise[:, None]
    surprise = measured[:, None] - expected
    ln_weight = np.log(np.maximum(of.weight, 1e-300)) - 0.5 * surprise**2 / variance - 0.5 * np.log(variance)
    weight = np.exp(ln_weight - ln_weight.max(axis=1, keepdims=True))
    return Gaussians(
        weight / weight.sum(axis=1, keepdims=True),
        of.mean + along * (surprise / variance)[:, :, None],
        of.covariance - along[:, :, :, None] * along[:, :, None, :] / variance[:, :, None, None],
    )


def faded(of: Gaussians, share: NDArray[np.float64], median: NDArray, covariance: NDArray) -> Gaussians:
    """Mixtures, with the weight `share`, (star,), and the forward posterior, by its median, as one more Gaussian."""
    return Gaussians(
        np.concatenate([of.weight * share[:, None], 1.0 - share[:, None]], axis=1),
        np.concatenate([of.mean, median[:, None]], axis=1),
        np.concatenate([of.covariance, covariance[:, None]], axis=1),
    )


def quantiles(
    of: Gaussians, levels: tuple[float, ...], added: Float[NDArray, "star label"] | float = 0.0
) -> NDArray[np.float64]:
    """(level, star, label) quantiles of mixtures, label by label, by bisection.

    `added` is the variance of something else that every label has in it, such as a measurement's error.
    """
    variance = np.diagonal(of.covariance, axis1=2, axis2=3)
    more = np.asarray(added)
    sigma = np.sqrt(variance + (more[:, None] if more.ndim else more))
    # About each mixture's mean and in units of its widest Gaussian, float32 tells places apart to millionths of a sigma.
    center, unit = np.sum(of.weight[:, :, None] * of.mean, axis=1), sigma.max(axis=1)
    standard = (of.weight, (of.mean - center[:, None]) / unit[:, None], sigma / unit[:, None])
    found = by_blocks(partial(_bisected, levels=levels), STAR_BLOCK, *(v.astype(np.float32) for v in standard))
    return center + unit * np.moveaxis(np.asarray(found, np.float64), 1, 0)


@partial(program, static_argnames="levels")
def _bisected(
    weight: Float[Array, "star component"],
    mean: Float[Array, "star component label"],
    sigma: Float[Array, "star component label"],
    levels: tuple[float, ...],
) -> Float[Array, "star level label"]:
    """Quantiles of standardised mixtures."""
    level = jnp.asarray(levels, mean.dtype)[:, None, None]
    # The star is the last axis, and components are added up one by one: so it is plain arithmetic on vectors of stars.
    parts = [(weight[:, k], mean[:, k].T, RELATIVE / sigma[:, k].T, sigma[:, k].T) for k in range(weight.shape[1])]
    z, aim = jax.scipy.special.ndtri(level), (2.0 * level - 1.0) * jnp.sum(weight, axis=1)
    # Where every Gaussian of the mixture has its own quantile, the mixture has its.
    own = [(jnp.where(w > 0, m + z * s, jnp.inf), jnp.where(w > 0, m + z * s, -jnp.inf)) for w, m, _, s in parts]
    low = reduce(jnp.minimum, (below for below, _ in own))
    high = reduce(jnp.maximum, (above for _, above in own))

    def halved(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        share = sum(w * jax.lax.erf((middle - m) * by) for w, m, by, _ in parts)
        below = share < aim
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, N_BISECTIONS, halved, (low, high))
    return jnp.moveaxis(0.5 * (low + high), -1, 0)


def summary(of: Gaussians, share: NDArray[np.float64]) -> Refined:
    """Medians, quantiles and moments of mixtures."""
    mean = np.sum(of.weight[:, :, None] * of.mean, axis=1)
    apart = of.mean - mean[:, None]
    each = of.covariance + apart[:, :, :, None] * apart[:, :, None, :]
    covariance = np.sum(of.weight[:, :, None, None] * each, axis=1)
    std = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    median, low, high = quantiles(of, (MEDIAN, LOW, HIGH))
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


class Answers(NamedTuple):
    """Both answers of some stars: those with a mode and finite features."""

    rows: NDArray[np.integer]  # (sound star,) which stars these are
    places: NDArray[np.float64]  # (sound star, place) by which stars are near each other
    used: NDArray[np.bool_]  # (sound star,) whether their parallax was
    forward: Interval  # the forward posterior's
    refined: Refined  # the second stage's, not adjusted
    mixture: Gaussians  # the networks', given the parallax where it was used


def answers(second: SecondStage, model: StarModel, case: "Inferred") -> Iterator[Answers]:
    """Both answers, some stars at a time."""
    for begin in range(0, len(case.found.estimate), AT_ONCE):
        batch = slice(begin, begin + AT_ONCE)
        some, found, published = rows_of_each(case.stars, batch), case.found.take(batch), case.published.take(batch)
        here = _answers(second, model, case._replace(stars=some, found=found, published=published))
        yield here._replace(rows=begin + here.rows)


def _answers(second: SecondStage, model: StarModel, case: "Inferred") -> Answers:
    """Both answers of one batch."""
    stars, found, published, use_parallax = case
    n, nets = found.estimate.shape[1] - 2, second.nets
    fit = flux_only(model, stars, found, use_parallax=use_parallax)
    ratio = relative_residuals(model.forward, stars, fit.optimum)
    features = star_features(stars, fit, ratio, np.asarray(nets.residual_scale), second.n_xp)
    mode, laplace = np.asarray(found.estimate, np.float64), np.asarray(found.laplace, np.float64)
    median, covariance = forward_gaussian(published, n)
    told = (features, mode, laplace, median, covariance)
    rows = np.flatnonzero(np.logical_and.reduce([np.isfinite(v).reshape(len(v), -1).all(axis=1) for v in told]))
    fit, features, mode, laplace = fit.take(rows), features[rows], mode[rows], laplace[rows]
    median, covariance = median[rows], covariance[rows]
    of = ensemble(nets, features, fit.mode[:, :n], fit.sigma[:, :n])
    parallax, inverse_error = np.asarray(stars.parallax, np.float64), trusted_inverse_error(stars, found.spurious)
    parallax, inverse_error = parallax[rows], inverse_error[rows]
    used = (inverse_error > 0) & (mode[:, -1] > 0) & use_parallax
    if used.any():
        at, measured = np.flatnonzero(used), (parallax[used], inverse_error[used])
        relation = relation_to_parallax(mode[at], laplace[at], *measured)
        of = replaced(of, with_parallax(rows_of_each(of, at), relation, mode[at, -1], *measured), at)
    places = places_of(features, n)
    sigma = np.sqrt(np.diagonal(laplace, axis1=1, axis2=2))[:, :n]
    share, edge = share_of_second_stage(second.support, places, residual_size(nets, features), mode[:, :n], sigma)
    forward = Interval(median, np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)))
    refined = held_back(summary(faded(of, share, median, covariance), share), forward, edge)
    return Answers(rows, places, used, forward, refined, of)


def refine_labels(second: SecondStage, model: StarModel, case: "Inferred") -> Refined:
    """Refine the labels of stars; where nothing was learned the result fades into the posteriors as published."""
    n, n_stars = case.found.estimate.shape[1] - 2, len(case.found.estimate)
    result = [np.full((n_stars, *shape), np.nan) for shape in ((n,), (n,), (n,), (n,), (n, n), ())]
    for here in answers(second, model, case):
        weight, stretch = np.where(here.used[:, None], UNJUDGED, 1.0) * np.ones((1, n)), np.ones((len(here.rows), n))
        for adjustments, rows in ((second.flux_only, ~here.used), (second.with_parallax, here.used)):
            if adjustments is not None:
                weight[rows], stretch[rows] = adjustments.at(here.places[rows])
        refined = adjusted(here.refined, here.forward, weight, stretch)
        for values, new in zip(result, refined, strict=True):
            values[here.rows] = new
    return Refined(*result)
