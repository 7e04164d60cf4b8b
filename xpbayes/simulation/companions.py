"""What the other surveys saw of simulated stars: Gaia's astrometry, 2MASS, unWISE, labels, reddening."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.label_surveys import JOIN_TEFF_K
from xpbayes.archive.photometric import TWO_MASS_BANDS, UNWISE_BANDS, UNWISE_ZERO_POINT
from xpbayes.channels import BANDS, Channels
from xpbayes.config import Recipe
from xpbayes.instrument.photometry import LN10_OVER_2P5, zero_point_flux
from xpbayes.release import DEFAULT_RELEASE
from xpbayes.simulation.files import write_csv
from xpbayes.simulation.noise import BandErrors, Noise
from xpbayes.simulation.stars import SimulatedStars

TWO_MASS_FILE, UNWISE_FILE = "tmass.csv.gz", "unwise.csv.gz"
GAIA_FILE, REDDENING_FILE = "gaia_source.csv.gz", "reddening.csv"
LABEL_FILES = {"lamost_afgk": "lamost.csv", "hot_payne": "hot_payne.csv"}
LABEL_ERRORS = {"teff": 0.05, "feh": 0.05, "logg": 0.08}
"""Typical errors of LAMOST labels [kK, dex, dex]; 0.05 for any other label."""
LEAST_SHARE = 0.05
"""An observed band has at least this share of its flux: a magnitude needs a positive one."""
LABEL_OFFSET_ARCSEC = 0.05
"""Label surveys' positions differ from Gaia's by up to this, well inside the match radius."""


def write_bands(
    stars: SimulatedStars, channels: Channels, bands: BandErrors, noise: Noise, rng: np.random.Generator, out: Path
) -> tuple[list[Path], NDArray[np.float64]]:
    """Write 2MASS magnitudes and unWISE nanomaggies of the bands that the model has.

    Args:
        stars: the truth.
        channels: the model's.
        bands: noiseless fluxes and errors.
        noise: as drawn for the spectra.
        rng: random numbers.
        out: the folder.

    Returns:
        the files, and (star, band) the observed flux in all of the channel set's bands, NaN where a measurement is bad.
    """
    n, everywhere = len(stars), np.full(len(stars), 1.0)
    observed = np.full((n, channels.n_bands), np.nan)
    two_mass: dict[str, tuple[str, NDArray[np.generic]]] = {}
    unwise: dict[str, tuple[str, NDArray[np.generic]]] = {}
    letters = dict.fromkeys(TWO_MASS_BANDS, np.full(n, "U"))
    for j, name in enumerate(channels.band_names):
        if name not in BANDS:
            continue
        zero_point = zero_point_flux(BANDS[name])
        sigma, good = bands.sigma[:, j], bands.good[:, j]
        measurement = noise.amplitude * bands.relative[:, j] * rng.standard_normal(n)
        share = 1.0 + noise.model_error[:, channels.n_xp + j] + measurement
        value = bands.flux[:, j] * np.maximum(share, LEAST_SHARE)
        observed[:, j] = np.where(good, value, np.nan)
        band = name.lower()
        if name in TWO_MASS_BANDS:
            two_mass[f"{band}_m"] = ("%.17g", -2.5 * np.log10(value / zero_point))
            two_mass[f"{band}_msigcom"] = ("%.17g", sigma)
            letters[name] = np.where(good, "A", "U")
        elif name in UNWISE_BANDS:
            maggies = value / zero_point * 10.0 ** (0.4 * UNWISE_ZERO_POINT)
            unwise[f"flux_{band}"] = ("%.17g", maggies)
            unwise[f"dflux_{band}"] = ("%.17g", maggies * LN10_OVER_2P5 * sigma)
            unwise[f"fracflux_{band}"] = ("%g", np.where(good, 0.99, 0.1))
            unwise[f"qf_{band}"] = ("%g", everywhere)
    source_id = {"source_id": ("%d", stars.source_id)}
    files = []
    if two_mass:
        designation = np.array([f"SIM{i:08d}" for i in range(n)])
        quality = np.array(["".join(row) for row in zip(*letters.values(), strict=True)])
        columns = {**source_id, "designation": ("%s", designation), **two_mass, "ph_qual": ("%s", quality)}
        files.append(write_csv(out / TWO_MASS_FILE, columns))
    if unwise:
        files.append(write_csv(out / UNWISE_FILE, {**source_id, **unwise}))
    return files, observed


def write_gaia(stars: SimulatedStars, rng: np.random.Generator, out: Path) -> Path:
    """Write Gaia's source table: positions, noisy parallaxes, quality columns."""
    n = len(stars)
    z = np.maximum(10.0 ** (0.4 * (13.1 - 15.0)), 10.0 ** (0.4 * (stars.g - 15.0)))
    error = 1e-3 * np.sqrt(40.0 + 800.0 * z + 30.0 * z**2)  # Gaia's published performance, DR3 [mas]
    norm_dg = np.where(stars.crowded, rng.uniform(-4.9, 0.0, n), rng.uniform(-30.0, -10.1, n))
    constants = {"ref_epoch": DEFAULT_RELEASE.epoch, "pmra": 0.0, "pmdec": 0.0, "ruwe": 1.0}
    constants |= {"phot_bp_rp_excess_factor": 1.2, "fidelity_v2": 1.0}
    return write_csv(
        out / GAIA_FILE,
        {
            "source_id": ("%d", stars.source_id),
            "ra": ("%.12f", stars.ra),
            "dec": ("%.12f", stars.dec),
            "parallax": ("%.10g", np.exp(stars.parameters[:, -1]) + error * rng.standard_normal(n)),
            "parallax_error": ("%.8g", error),
            "phot_g_mean_mag": ("%.6f", stars.g),
            "norm_dg": ("%.4f", norm_dg),
            **{name: ("%.1f", np.full(n, value)) for name, value in constants.items()},
        },
    )


def write_labels(
    stars: SimulatedStars, names: tuple[str, ...], recipe: Recipe, rng: np.random.Generator, out: Path
) -> list[Path]:
    """Write LAMOST labels below 7000 K and Hot Payne's above; by position, as the real catalogues are matched."""
    n, n_labels = len(stars), len(names)
    sigma = np.array([LABEL_ERRORS.get(name, 0.05) for name in names]) * rng.uniform(0.5, 1.5, (n, n_labels))
    value = stars.parameters[:, :n_labels] + sigma * rng.standard_normal((n, n_labels))
    has = rng.random(n) < recipe.labelled
    offset = LABEL_OFFSET_ARCSEC / 3600.0 * rng.uniform(-1, 1, (n, 2))  # [deg]
    ra = (stars.ra + offset[:, 0] / np.maximum(np.cos(np.radians(stars.dec)), 1e-3)) % 360.0
    dec = np.clip(stars.dec + offset[:, 1], -90.0, 90.0)
    snr = rng.uniform(25, 200, n)
    hot = value[:, 0] * 1e3 >= JOIN_TEFF_K
    files = []
    for survey, chosen in (("lamost_afgk", has & ~hot), ("hot_payne", has & hot)):
        if not chosen.any():
            continue
        columns: dict[str, tuple[str, NDArray[np.generic]]] = {
            "ra": ("%.10f", ra[chosen]),
            "dec": ("%.10f", dec[chosen]),
            "snrg": ("%.1f", snr[chosen]),
            "snrr": ("%.1f", 1.2 * snr[chosen]),
            "snri": ("%.1f", 1.1 * snr[chosen]),
        }
        for i, label in enumerate(names):
            scale = 1e3 if label == "teff" else 1.0
            columns[label] = ("%.9g", value[chosen, i] * scale)
            columns[f"{label}_err"] = ("%.9g", sigma[chosen, i] * scale)
        files.append(write_csv(out / LABEL_FILES[survey], columns))
    return files


def write_reddening(stars: SimulatedStars, rng: np.random.Generator, out: Path) -> Path:
    """Write estimates of E as good as a 3D map's: 0.02 mag and 10 %."""
    true = np.exp(stars.parameters[:, -2])
    sigma = np.hypot(0.02, 0.1 * true)
    value = true + sigma * rng.standard_normal(len(stars))
    columns = {"source_id": ("%d", stars.source_id), "reddening": ("%.8g", value), "reddening_error": ("%.8g", sigma)}
    return write_csv(out / REDDENING_FILE, columns)
