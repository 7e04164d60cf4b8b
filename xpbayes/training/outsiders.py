"""Sources that no model of single stars describes, made without any data: what a refusal is learned from.

Each has the errors, correlations and brightness of a star kept aside, and one of these spectra: a hot or a cold black body,
a white dwarf (a black body with broad Balmer lines), a quasar (a power law with broad emission lines at any redshift), two
stars in one at different extinctions, or the model's own extrapolation to labels beyond those of its training stars, to
fewer metals than any of these have above all.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from xpbayes.data.stars import STAR_BLOCK, Stars, by_blocks, rows_of_each
from xpbayes.inference.support import LabelSupport
from xpbayes.models.forward import ForwardModel, ln_absolute_fluxes

HC_OVER_K = 1.4388e7
"""[nm K]"""
BALMER = (410.2, 434.0, 486.1, 656.3)
"""[nm]"""
QUASAR_LINES = ((121.6, 4.0), (154.9, 1.2), (190.9, 0.8), (279.8, 0.6), (486.1, 0.4), (656.3, 1.5))
"""Wavelength [nm] and peak over the continuum of broad lines, after the composite of Vanden Berk et al. (2001)."""
BEYOND = (1.5, 4.0)
"""Labels beyond the training sample's: distances from its middle, times these."""
FEWEST, FEWER = 0.1, (0.2, 1.2)
"""Metal-poor stars are made of this share of the training sample, with [Fe/H] so much below all but its lowest [dex]."""
GIANTS, GIANTS_SHARE = 3.3, 0.75
"""log g, and the share of them that are below, as far as there are such: the halo is seen in giants."""
MIN_BLEND, MIN_CONTRAST = 0.2, 0.2
"""A blend is at least so far from either of its stars: flux ratio, and rms difference of their ln fluxes."""

Random = np.random.Generator
Shapes = Float[np.ndarray, "source channel"]


def outsiders(
    forward: ForwardModel,
    support: LabelSupport,
    wavelength: Float[NDArray, " channel"],
    templates: Stars,
    n_each: int,
    seed: int,
    feh_and_logg: tuple[int, int] | None = None,
) -> Stars:
    """Make a batch of sources of every kind, one kind after the other.

    Args:
        forward: the forward model.
        support: where its training labels are.
        wavelength: of the channels [nm].
        templates: stars as measured, that lend errors, brightness and parallaxes.
        n_each: sources of each kind.
        seed: of all random numbers.
        feh_and_logg: places of [Fe/H] and log g among the labels; None if one of them is none.
    """
    random = np.random.default_rng(seed)
    curve = np.exp(np.asarray(forward.ln_curve, np.float64))
    sound = np.flatnonzero((np.asarray(templates.flux) > 0).mean(axis=1) > 0.9)
    known: list[Callable[[Stars], Shapes]] = [lambda of: _beyond(forward, support, len(of), random)]
    if feh_and_logg is not None:
        known += 2 * [lambda of: _metal_poor(forward, support, feh_and_logg, len(of), random)]
    made: list[Callable[[Stars], Shapes]] = [
        lambda of: _black_body(wavelength, random.uniform(12.0, 60.0, (len(of), 1))),
        lambda of: _black_body(wavelength, random.uniform(1.4, 2.7, (len(of), 1))),
        lambda of: _white_dwarf(wavelength, len(of), random),
        lambda of: _quasar(wavelength, len(of), random),
        partial(_blend, curve, random),
        *known,
    ]
    parts = []
    for kind in made:
        of = rows_of_each(templates, random.choice(sound, n_each))
        shape = kind(of) - random.exponential(0.15, (n_each, 1)) * curve
        seen = _seen(shape, of, random)
        parts.append(_at_its_distance(seen, shape, random) if kind in known else seen)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _black_body(wavelength: NDArray[np.float64], temperature: NDArray[np.float64]) -> Shapes:
    """Ln flux density, temperatures in kK."""
    return -5.0 * np.log(wavelength) - np.log(np.expm1(np.minimum(HC_OVER_K / (wavelength * 1e3 * temperature), 600.0)))


def _white_dwarf(wavelength: NDArray[np.float64], n: int, random: Random) -> Shapes:
    temperature = random.uniform(6.0, 30.0, (n, 1))
    shape = _black_body(wavelength, temperature)
    depth = random.uniform(0.1, 0.7, (n, 1)) * np.exp(-(((temperature - 12.0) / 8.0) ** 2))
    for line in BALMER:
        shape = shape + np.log1p(-depth / (1.0 + ((wavelength - line) / random.uniform(4.0, 12.0, (n, 1))) ** 2))
    return shape


def _quasar(wavelength: NDArray[np.float64], n: int, random: Random) -> Shapes:
    redshift, slope = random.uniform(0.05, 4.5, (n, 1)), random.normal(-1.5, 0.5, (n, 1))
    rest = wavelength / (1.0 + redshift)
    flux = rest**slope
    for line, peak in QUASAR_LINES:
        strength = peak * np.exp(0.4 * random.normal(size=(n, 1)))
        flux = flux * (1.0 + strength * np.exp(-0.5 * ((rest - line) / (0.012 * line)) ** 2))
    forest = np.exp(-0.0036 * (1.0 + redshift) ** 3.46 * (rest < 121.6))  # mean opacity (Madau 1995)
    return np.log(np.maximum(flux * forest, 1e-3 * flux))


def _blend(curve: NDArray[np.float64], random: Random, of: Stars) -> Shapes:
    """The template and another of the templates, at another extinction."""
    one = np.log(np.maximum(np.asarray(of.flux, np.float64), 1e-3))
    out, left = one.copy(), np.arange(len(one))
    for _ in range(20):
        other = one[random.permutation(len(one))][left] - curve * random.exponential(0.5, (len(left), 1))
        other += np.median(one[left] - other, axis=1, keepdims=True) + np.log(
            random.uniform(MIN_BLEND, 1.0, (len(left), 1))
        )
        out[left] = np.logaddexp(one[left], other)
        apart = one[left] - other
        left = left[(apart - apart.mean(axis=1, keepdims=True)).std(axis=1) < MIN_CONTRAST]
        if not len(left):
            break
    return out


def _beyond(forward: ForwardModel, support: LabelSupport, n: int, random: Random) -> Shapes:
    """The model carried on to labels outside of the range of its training stars."""
    known = np.asarray(support.labels, np.float64)
    low, middle, high = np.quantile(known, (0.005, 0.5, 0.995), axis=0)
    picked = known[random.integers(0, len(known), 40 * n)]
    label = random.integers(0, known.shape[1], (40 * n, 1)) == np.arange(known.shape[1])
    picked = picked + label * (picked - middle) * (random.uniform(*BEYOND, (40 * n, 1)) - 1.0)
    outside = ((picked < low) | (picked > high)).any(axis=1) & (picked[:, 0] > 0.5 * low[0])
    return _shapes(forward, picked[outside][:n])


def _metal_poor(forward: ForwardModel, support: LabelSupport, at: tuple[int, int], n: int, random: Random) -> Shapes:
    """The model carried on to fewer metals, from the training stars that have least; most of them giants."""
    known, (feh_at, logg_at) = np.asarray(support.labels, np.float64), at
    giants = known[known[:, logg_at] < GIANTS]
    picked, n_giants = [], int(GIANTS_SHARE * n) if len(giants) > 1 / FEWEST else 0
    for some, number in ((known, n - n_giants), (giants, n_giants)):
        if not number:
            continue
        fewest = some[some[:, feh_at] <= np.quantile(some[:, feh_at], FEWEST)]
        picked.append(fewest[random.integers(0, len(fewest), number)])
    labels = np.concatenate(picked)
    labels[:, feh_at] = np.quantile(known[:, feh_at], 0.005) - random.uniform(*FEWER, n)
    return _shapes(forward, labels)


def _shapes(forward: ForwardModel, labels: NDArray[np.float64]) -> Shapes:
    function = partial(ln_absolute_fluxes, forward)
    return np.asarray(by_blocks(function, STAR_BLOCK, labels.astype(np.float32)), np.float64)


def _seen(shape: Shapes, of: Stars, random: Random) -> Stars:
    """Spectra of these shapes, as bright as their templates, with errors drawn anew."""
    flux, there = np.asarray(of.flux, np.float64), np.diagonal(np.asarray(of.whitening), axis1=1, axis2=2) > 0
    shape = shape - np.median(shape, axis=1, keepdims=True)
    level = np.median(np.where(there, flux, np.nan)[:, : shape.shape[1]], axis=1, keepdims=True)
    level = np.where(np.isfinite(level), level, np.nanmedian(np.where(there, flux, np.nan), axis=1, keepdims=True))
    noiseless = np.exp(np.clip(shape, -12.0, 4.0)) * np.maximum(level, 1e-3)
    factor = np.where(there[:, :, None], np.asarray(of.whitening, np.float64), np.eye(flux.shape[1]))
    error = np.linalg.solve(factor, np.where(there, random.standard_normal(flux.shape), 0.0)[:, :, None])[:, :, 0]
    return replace(of, flux=jnp.asarray(np.where(there, noiseless + error, 0.0), jnp.float32))


def _at_its_distance(seen: Stars, absolute: Shapes, random: Random) -> Stars:
    """The parallaxes that make sources of known luminosity so bright, measured with the templates' errors."""
    flux = np.asarray(seen.flux, np.float64)
    ln_ratio = np.median(np.log(np.maximum(flux, 1e-3)) - absolute, axis=1) + np.asarray(seen.ln_scale, np.float64)
    inverse = np.asarray(seen.parallax_inv_error, np.float64)
    error = random.standard_normal(len(inverse)) / np.where(inverse > 0, inverse, np.inf)
    return replace(seen, parallax=jnp.asarray(np.exp(0.5 * ln_ratio) + error, jnp.float32))
