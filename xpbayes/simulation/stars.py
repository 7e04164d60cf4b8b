"""The truth of a simulated survey: types from the model's label prior, places from a sky, noiseless fluxes.

Also what is odd about a star: a companion, a neighbour, a missing side, a wrong stretch of spectrum. Where stars are and
how much dust is before them is one function, a `Sky`, that can be replaced; `smooth_disc` is the default.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xpbayes.channels import XP_GRID_NM
from xpbayes.config import Recipe
from xpbayes.production.model_file import TrainedModel

G_ZERO_POINT = 18.5
"""G is about this for a mean XP flux of 1e-18 W m^-2 nm^-1 (Vega: 2.5e-11 W m^-2 nm^-1); errors need no better."""
N_XP = XP_GRID_NM.size
BRIGHT_G, FAINT_G = 8.0, 17.65
"""XP spectra of DR3 were published down to G = 17.65; brighter than about 8 there are few."""
DISTANCE_SCALE_KPC = 0.5
"""Distances follow r^2 exp(-r / scale): a smooth disc that is seen to a few kpc."""
E_PER_KPC = 0.15
"""Typical extinction near the plane [mag/kpc]."""
MIN_EXTINCTION = 0.003
"""Least extinction scalar [mag]: ln E is a parameter, so no star is without any dust."""


@dataclass(frozen=True)
class Placement:
    """Positions of stars and what lies before them: (star,) ICRS [deg], E [mag], true parallax [mas], both positive."""

    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    extinction: NDArray[np.float64]
    parallax: NDArray[np.float64]


Magnitude = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""(star,) E [mag] and (star,) parallax [mas] -> (star,) G magnitude that these very stars would then have."""

Sky = Callable[[int, Magnitude, np.random.Generator], Placement]
"""Places n stars whose types are already drawn. Stars outside `BRIGHT_G` ... `FAINT_G` would not be in the survey: a sky
asks `Magnitude` and puts them elsewhere."""


def smooth_disc(n: int, magnitude: Magnitude, rng: np.random.Generator) -> Placement:
    """Place n stars anywhere on the sky behind dust that grows with distance; the default `Sky`.

    A star outside the survey's range of brightness keeps its dust and is put nearer or farther.
    """
    distance = rng.gamma(3.0, DISTANCE_SCALE_KPC, n)
    extinction = np.maximum(rng.exponential(E_PER_KPC * distance), MIN_EXTINCTION)
    g = magnitude(extinction, 1.0 / distance)
    wanted = np.clip(g, BRIGHT_G + rng.uniform(0, 1, n), FAINT_G - rng.uniform(0, 1.5, n))
    return Placement(
        ra=rng.uniform(0.0, 360.0, n),
        dec=np.degrees(np.arcsin(rng.uniform(-1.0, 1.0, n))),
        extinction=extinction,
        parallax=10.0 ** (-0.2 * (wanted - g)) / distance,  # flux goes with the parallax squared
    )


@dataclass(frozen=True)
class SimulatedStars:
    """The truth."""

    source_id: NDArray[np.int64]  # (star,) with the position in its upper bits, as Gaia's
    ra: NDArray[np.float64]  # [deg]
    dec: NDArray[np.float64]  # [deg]
    parameters: NDArray[np.float64]  # (star, label + 2) labels, ln E, ln parallax
    xi: NDArray[np.float64]  # (star,) of the extinction curve; 0 where the model's does not vary
    flux: NDArray[np.float64]  # (star, channel) noiseless, companion included [1e-18 W m^-2 nm^-1]
    g: NDArray[np.float64]  # (star,) rough magnitude
    has_bp: NDArray[np.bool_]  # (star,) which stars are special, as the rest
    has_rp: NDArray[np.bool_]
    crowded: NDArray[np.bool_]
    binary: NDArray[np.bool_]
    outlier: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.source_id)


def draw_stars(model: TrainedModel, n: int, recipe: Recipe, sky: Sky, rng: np.random.Generator) -> SimulatedStars:
    """Draw the truth of n stars from a model whose first channels are the 61 XP samples."""
    import jax

    from xpbayes.models.forward import predict_flux
    from xpbayes.models.prior import draw_labels

    predict = jax.jit(jax.vmap(predict_flux, (None, 0)))

    def fluxes(labels: NDArray[np.float64], e: NDArray[np.float64], plx: NDArray[np.float64]) -> NDArray[np.float64]:
        parameters = np.concatenate([labels, curve, np.log(e)[:, None], np.log(plx)[:, None]], axis=1)
        return np.asarray(predict(model.forward, parameters.astype(np.float32)), np.float64)

    labels = np.asarray(draw_labels(model.prior, jax.random.key(int(rng.integers(2**31))), n), np.float64)
    curve = rng.standard_normal((n, 1)) if model.forward.curve_variation is not None else np.zeros((n, 0))
    at = sky(n, lambda e, plx: rough_g(fluxes(labels, e, plx)), rng)
    flux = fluxes(labels, at.extinction, at.parallax)

    binary = rng.random(n) < recipe.binaries
    if binary.any():
        second = labels[rng.permutation(n)]
        if "feh" in model.labels:  # born together: the same metallicity
            second[:, model.labels.index("feh")] = labels[:, model.labels.index("feh")]
        companion = fluxes(second, at.extinction, at.parallax)
        binary &= companion[:, :N_XP].mean(axis=1) < flux[:, :N_XP].mean(axis=1)
        flux = flux + np.where(binary[:, None], companion, 0.0)

    side = rng.random(n)
    return SimulatedStars(
        source_id=_source_ids(at.ra, at.dec),
        ra=at.ra,
        dec=at.dec,
        parameters=np.concatenate([labels, np.log(at.extinction)[:, None], np.log(at.parallax)[:, None]], axis=1),
        xi=curve[:, 0] if curve.size else np.zeros(n),
        flux=flux,
        g=rough_g(flux),
        has_bp=side >= 0.5 * recipe.missing_side,
        has_rp=side < 1.0 - 0.5 * recipe.missing_side,
        crowded=rng.random(n) < recipe.crowded,
        binary=binary,
        outlier=rng.random(n) < recipe.outliers,
    )


def rough_g(flux: NDArray[np.float64]) -> NDArray[np.float64]:
    """(star,) G magnitude from the mean of the XP samples: good to a few tenths, enough for errors and limits."""
    return G_ZERO_POINT - 2.5 * np.log10(flux[:, :N_XP].mean(axis=1))


def _source_ids(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.int64]:
    """(star,) int64 identifiers by Gaia's own scheme: HEALPix of level 12 from bit 35 up, then a running number."""
    import astropy.units as u
    from astropy_healpix import lonlat_to_healpix

    pixel = lonlat_to_healpix(ra * u.deg, dec * u.deg, 4096, order="nested")
    return (np.asarray(pixel, np.int64) << 35) + 128 * (1 + np.arange(len(ra), dtype=np.int64))
