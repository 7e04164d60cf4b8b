"""The main sequence of a model's label prior: where the companions of hypothesis B lie (METHOD 12).

The mixture was fitted to the training labels, so the ridge is theirs; it is found anew from what every model stores, and
models that were trained before have one, too.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from xpbayes.errors import InputError
from xpbayes.models.forward import ForwardModel, ln_absolute_flux
from xpbayes.models.pair import CompanionRidge, brightness_terms, ridge_terms
from xpbayes.models.prior import draw_labels
from xpbayes.models.star_model import StarModel

NEEDED = ("teff", "feh", "logg")
N_DRAWS = 100_000
DWARFS = 3.9
"""log g above which a star of the training sample is taken for a dwarf."""
MIN_FEH = -1.5
"""Below, a main sequence is hardly populated."""
MIN_SHARE = 0.02
"""With fewer dwarfs than this there is no ridge to speak of."""
ENDS = (0.002, 0.998)
"""The ridge's ends are these quantiles of the dwarfs' Teff."""
ROUNDS = 20
BAND = (500.0, 800.0)
"""Channels [nm] in whose mean ln f brightness is compared: about Gaia's G."""


def companion_ridge(model: StarModel, labels: Sequence[str], wavelength_nm: NDArray[np.floating]) -> CompanionRidge:
    """Find the ridge of a model with these labels; InputError if one that it needs is missing, or dwarfs are."""
    missing = [name for name in NEEDED if name not in labels]
    if missing:
        raise InputError(
            f"the model has no main-sequence ridge, which binaries need: its labels are {', '.join(labels)}, without "
            f"{missing[0]}; leave --binaries out"
        )
    teff_at, feh_at, logg_at = (list(labels).index(name) for name in NEEDED)
    at = (teff_at, feh_at, logg_at)
    draws = np.asarray(draw_labels(model.label_prior, jax.random.key(0), N_DRAWS), np.float64)
    own = draws[:, at]
    dwarfs = own[(own[:, 2] > DWARFS) & (own[:, 1] > MIN_FEH)]
    if len(dwarfs) < MIN_SHARE * N_DRAWS:
        raise InputError(
            f"the model has no main-sequence ridge, which binaries need: {len(dwarfs) / N_DRAWS:.1%} of its stars have "
            f"log g above {DWARFS}; leave --binaries out"
        )
    low, high = np.quantile(dwarfs[:, 0], ENDS)
    logg = _robust_fit(np.asarray(ridge_terms(jnp.asarray(dwarfs[:, 0]), jnp.asarray(dwarfs[:, 1]))), dwarfs[:, 2])
    wavelength = np.asarray(wavelength_nm)
    band = (wavelength >= BAND[0]) & (wavelength <= BAND[1])
    band = band / band.sum() if band.any() else np.full(len(wavelength), 1.0 / len(wavelength))
    center, scale = own.mean(axis=0), own.std(axis=0)
    as_bright = np.zeros(len(np.asarray(brightness_terms(jnp.zeros(3)))))
    arrays: dict[str, Any] = {"logg": logg, "teff_range": (low, high), "as_bright": as_bright}
    arrays |= {"center": center, "scale": scale, "band": band}
    ridge = CompanionRidge(**{name: jnp.asarray(v, jnp.float32) for name, v in arrays.items()}, at=at)
    return _with_brightness(model.forward, ridge, draws[:: N_DRAWS // 5000])


def _robust_fit(terms: NDArray[np.floating], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients by least squares with Cauchy's weights: subgiants above the ridge do not pull it."""
    weight = np.ones(len(values))
    for _ in range(ROUNDS):
        root = np.sqrt(weight)
        coefficients: NDArray[np.float64] = np.linalg.lstsq(terms * root[:, None], values * root, rcond=None)[0]
        residual = values - terms @ coefficients
        weight = 1.0 / (1.0 + (residual / (1.48 * np.median(np.abs(residual)))) ** 2)
    return coefficients


def _with_brightness(forward: ForwardModel, ridge: CompanionRidge, labels: NDArray[np.float64]) -> CompanionRidge:
    """Learn which star on the ridge is as bright as a primary with given labels, (star, label)."""
    brightness = jax.jit(jax.vmap(lambda one: ln_absolute_flux(forward, one) @ ridge.band))
    low, high = (float(end) for end in ridge.teff_range)
    teff = np.linspace(low, high, 60)
    primary = np.asarray(brightness(jnp.asarray(labels, jnp.float32)), np.float64)
    way = np.empty(len(labels))
    feh_at = ridge.at[1]
    metals = np.quantile(labels[:, feh_at], np.linspace(0.01, 0.99, 8))
    nearest = np.abs(labels[:, feh_at, None] - metals).argmin(axis=1)
    for i, feh in enumerate(metals):
        star = np.tile(np.median(labels, axis=0), (len(teff), 1))
        star[:, ridge.at[0]], star[:, feh_at] = teff, feh
        star[:, ridge.at[2]] = ridge.logg_at(jnp.asarray(teff), jnp.full(len(teff), feh))
        on_ridge = np.maximum.accumulate(np.asarray(brightness(jnp.asarray(star, jnp.float32)), np.float64))
        mine = nearest == i
        way[mine] = (np.interp(primary[mine], on_ridge, teff) - low) / (high - low)
    way = np.clip(way, 0.01, 0.99)
    scaled = (labels[:, ridge.at] - np.asarray(ridge.center)) / np.asarray(ridge.scale)
    terms = np.asarray(brightness_terms(jnp.asarray(scaled, jnp.float32)), np.float64)
    weight = way * (1.0 - way)  # errors of Teff, not of its logit
    as_bright = np.linalg.lstsq(terms * weight[:, None], np.log(way / (1.0 - way)) * weight, rcond=None)[0]
    return replace(ridge, as_bright=jnp.asarray(as_bright, jnp.float32))
