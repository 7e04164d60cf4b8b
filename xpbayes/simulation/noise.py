"""How wrong each simulated spectrum is: the noise that the likelihood assumes, drawn for one star after the other.

A star's fluxes scatter about its noiseless ones with scale matrix C + diag(f) S diag(f) and one amplitude for all of
it, measurement noise and model error, XP and bands alike: f_obs = f + amplitude (C + ...)^(1/2) xi, a multivariate
Student t. S and the degrees of freedom belong to the kind of star, told from the noiseless spectrum and the errors that
the star is going to have. Files state errors without the amplitude: a survey does not know it either.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.photometric import TWO_MASS_BANDS, UNWISE_BANDS
from xpbayes.channels import BANDS, Channels
from xpbayes.config import Recipe
from xpbayes.data.spectra import Spectra
from xpbayes.instrument.photometry import FLUX_ERROR_FLOOR, LN10_OVER_2P5, zero_point_flux
from xpbayes.instrument.xp_covariance import CalibratedXp
from xpbayes.production.model_file import TrainedModel
from xpbayes.simulation.stars import SimulatedStars

MAX_AMPLITUDE = 10.0
"""Largest factor by which a star's errors exceed the stated ones.

Below two degrees of freedom a Student t has no variance: a few stars would have errors of any size and fluxes below zero.
The distribution ends where a star is nothing but noise already; smaller amplitudes are drawn as they are.
"""


@dataclass(frozen=True)
class BandErrors:
    """What 2MASS and unWISE are going to measure, before any noise; (star, band) each."""

    flux: NDArray[np.float64]  # noiseless, a neighbour's light included [1e-18 W m^-2 nm^-1]
    sigma: NDArray[np.float64]  # stated error [mag]
    relative: NDArray[np.float64]  # relative error that the calibration makes of it, floor included
    good: NDArray[np.bool_]  # the survey calls the measurement good
    usable: NDArray[np.bool_]  # good, and of a star that is not crowded: what inference will see


def draw_band_errors(stars: SimulatedStars, channels: Channels, recipe: Recipe, rng: np.random.Generator) -> BandErrors:
    """Decide which bands are good and how large their errors are; bands of no survey that is simulated are absent."""
    n = len(stars)
    flux = stars.flux[:, channels.n_xp :].copy()
    sigma = np.full(flux.shape, 0.02)
    good = np.zeros(flux.shape, bool)
    for j, name in enumerate(channels.band_names):
        if name not in (*TWO_MASS_BANDS, *UNWISE_BANDS):
            continue
        flux[:, j] *= np.where(stars.crowded, 1.0 + rng.uniform(0.2, 1.0, n), 1.0)
        vega = -2.5 * np.log10(flux[:, j] / zero_point_flux(BANDS[name]))
        sigma[:, j] = np.hypot(0.02, 0.03 * 10.0 ** (0.4 * (vega - 14.0)))  # [mag]: 0.03 at 14th magnitude, as 2MASS
        good[:, j] = rng.random(n) >= recipe.missing_band
    relative = np.hypot(LN10_OVER_2P5 * sigma, FLUX_ERROR_FLOOR)
    return BandErrors(flux, sigma, relative, good, good & ~stars.crowded[:, None])


@dataclass(frozen=True)
class Noise:
    """Drawn for some stars: (star,) amplitude, and (star, channel) relative error of the model, amplitude included."""

    amplitude: NDArray[np.float64]
    model_error: NDArray[np.float64]


class NoiseSource:
    """Draws the noise of stars of any kind as a model's error describes it: without one of amplitude 1, the model exact."""

    def __init__(self, model: TrainedModel) -> None:
        self.channels, self.labels, self.error = model.channels, model.labels, model.model_error
        if self.error is None:
            return
        value, vector = np.linalg.eigh(np.asarray(self.error.covariance, np.float64))
        self._factor = vector * np.sqrt(np.maximum(value, 0.0))[:, None, :]  # (kind, channel, direction)

    def draw(
        self, noiseless: CalibratedXp, bands: BandErrors, block: NDArray[np.int64], rng: np.random.Generator
    ) -> Noise:
        """Draw the noise of (block,) some stars from their own noiseless XP samples and the bands of all stars."""
        import jax

        from xpbayes.models.model_error import kind_weights_of

        n, n_channels = len(block), len(self.channels)
        if self.error is None:
            return Noise(np.ones(n), np.zeros((n, n_channels)))
        usable, flux = bands.usable[block], bands.flux[block]
        inverse_error = np.where(usable, 1.0 / (flux * bands.relative[block]), 0.0)
        table = Spectra(
            channels=self.channels,
            label_names=self.labels,
            source_id=block,
            flux=np.concatenate([noiseless.flux, np.where(usable, flux, 0.0)], axis=1).astype(np.float32),
            xp_whitening=noiseless.whitening,
            band_inverse_error=inverse_error.astype(np.float32),
            columns={},
        )
        with jax.default_matmul_precision("highest"):
            weight = np.asarray(kind_weights_of(self.error, table.stars()), np.float64)
        # A sum of independent errors of every kind has covariance S = sum_k w_k S_k.
        kinds, _, directions = self._factor.shape
        xi = rng.standard_normal((n, kinds, directions)) * np.sqrt(weight)[:, :, None]
        relative = np.einsum("kcd,nkd->nc", self._factor, xi, optimize=True)
        amplitude = draw_amplitude(weight @ np.asarray(self.error.inv_dof, np.float64), rng)
        return Noise(amplitude, amplitude[:, None] * relative)


def draw_amplitude(inv_dof: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """(star,) g^(-1/2) with g ~ Gamma(nu / 2) / (nu / 2), nu = 1 / tail; 1 for tail 0, at most `MAX_AMPLITUDE`."""
    half_nu = 0.5 / np.where(inv_dof > 0, inv_dof, 1.0)
    g = np.where(inv_dof > 0, rng.gamma(half_nu) / half_nu, 1.0)
    return 1.0 / np.sqrt(np.maximum(g, MAX_AMPLITUDE**-2))
