"""Writers of the official file formats: bulk XP_CONTINUOUS, Gaia source, 2MASS, unWISE, labels, reddening.

In: the truth and the noise drawn for it. Out: the files that the archive's readers know, as the surveys would have them.
"""

import gzip
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.label_surveys import JOIN_TEFF_K
from xpbayes.archive.photometric import TWO_MASS_BANDS, UNWISE_BANDS, UNWISE_ZERO_POINT
from xpbayes.channels import BANDS, Channels
from xpbayes.config import Recipe
from xpbayes.files import whole_file
from xpbayes.instrument.photometry import LN10_OVER_2P5, zero_point_flux
from xpbayes.release import DEFAULT_RELEASE
from xpbayes.simulation.noise import BandErrors, Noise
from xpbayes.simulation.spectra import ObservedXp
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
BULK_SIDE = {
    "basis_function_id": "int16",
    "degrees_of_freedom": "int16",
    "n_parameters": "int16",
    "n_measurements": "int16",
    "n_rejected_measurements": "int16",
    "standard_deviation": "float32",
    "chi_squared": "float32",
    "coefficients": "float64[null]",
    "coefficient_errors": "float32[null]",
    "coefficient_correlations": "float32[null]",
    "n_relevant_bases": "int16",
    "relative_shrinking": "int16",
}
BULK_COLUMNS = {"source_id": "int64", "solution_id": "int64"}
BULK_COLUMNS |= {f"{side}_{name}": kind for side in ("bp", "rp") for name, kind in BULK_SIDE.items()}
"""Columns of XpContinuousMeanSpectrum, in order, with their types."""
SOLUTION_ID = 4545469030156206080
DOUBLE, SINGLE = "%.17g", "%.9g"
"""Digits that give a float64 or a float32 back to the last bit."""
Columns = dict[str, tuple[str, NDArray[Any]]]
"""By name: printf format and (row,) values."""


def write_bulk(path: Path, blocks: Iterable[ObservedXp]) -> Path:
    """Write the archive's bulk layout: an ECSV header in comments, arrays as "[...]", missing as null; gzip."""
    with (
        whole_file(path) as temporary,
        open(temporary, "wb") as packed,
        gzip.GzipFile(path.name.removesuffix(".gz"), "wb", compresslevel=4, fileobj=packed) as plain,
        io.TextIOWrapper(plain, encoding="ascii", newline="\n") as stream,
    ):
        stream.write("# %ECSV 1.0\n# ---\n# delimiter: ','\n# datatype:\n")
        for name, kind in BULK_COLUMNS.items():
            is_array = kind.endswith("[null]")
            stream.write(f"# -\n#   name: {name}\n#   datatype: {'string' if is_array else kind}\n")
            if is_array:
                stream.write(f"#   subtype: '{kind}'\n")
        stream.write(",".join(BULK_COLUMNS) + "\n")
        for block in blocks:
            for i, source_id in enumerate(block.source_id.tolist()):
                cells = [str(source_id), str(SOLUTION_ID)]
                for identifier, side in (("56", block.bp), ("57", block.rp)):
                    if not side.present[i]:
                        cells += ["null"] * len(BULK_SIDE)
                        continue
                    assert side.correlation is not None  # always simulated
                    k = str(side.n_coefficients)
                    cells += [identifier, "2000", k, "2055", "5", SINGLE % side.standard_deviation[i], "2000.0"]
                    cells += [_array(DOUBLE, side.coefficient[i]), _array(SINGLE, side.error[i])]
                    cells += [_array(SINGLE, side.correlation[i]), k, "1.0"]
                stream.write(",".join(cells) + "\n")
    return path


def _array(form: str, values: NDArray[np.float64]) -> str:
    return f'"[{",".join([form] * len(values)) % tuple(values.tolist())}]"'


def write_csv(path: Path, columns: Columns) -> Path:
    """Write scalar columns as CSV, gzip if the name says so."""
    form = ",".join(kind for kind, _ in columns.values())
    lines = [",".join(columns)]
    lines += [form % row for row in zip(*(values.tolist() for _, values in columns.values()), strict=True)]
    text = ("\n".join(lines) + "\n").encode()
    with whole_file(path) as temporary:
        temporary.write_bytes(gzip.compress(text, compresslevel=4) if path.suffix == ".gz" else text)
    return path


def write_bands(
    stars: SimulatedStars, channels: Channels, bands: BandErrors, noise: Noise, rng: np.random.Generator, out: Path
) -> tuple[list[Path], NDArray[np.float64]]:
    """Write 2MASS magnitudes and unWISE nanomaggies of the bands that the model has.

    Returns:
        the files, and (star, band) the observed flux in all of the channel set's bands, NaN where a measurement is bad.
    """
    n = len(stars)
    observed = np.full((n, channels.n_bands), np.nan)
    two_mass: Columns = {}
    unwise: Columns = {}
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
            two_mass[f"{band}_m"] = (DOUBLE, -2.5 * np.log10(value / zero_point))
            two_mass[f"{band}_msigcom"] = (DOUBLE, sigma)
            letters[name] = np.where(good, "A", "U")
        elif name in UNWISE_BANDS:
            maggies = value / zero_point * 10.0 ** (0.4 * UNWISE_ZERO_POINT)
            unwise[f"flux_{band}"] = (DOUBLE, maggies)
            unwise[f"dflux_{band}"] = (DOUBLE, maggies * LN10_OVER_2P5 * sigma)
            unwise[f"fracflux_{band}"] = ("%g", np.where(good, 0.99, 0.1))
            unwise[f"qf_{band}"] = ("%g", np.ones(n))
    source_id: Columns = {"source_id": ("%d", stars.source_id)}
    files = []
    if two_mass:
        names = source_id | {"designation": ("%s", np.array([f"SIM{i:08d}" for i in range(n)]))}
        quality = np.array(["".join(row) for row in zip(*letters.values(), strict=True)])
        files.append(write_csv(out / TWO_MASS_FILE, {**names, **two_mass, "ph_qual": ("%s", quality)}))
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
        columns: Columns = {
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
    measured: Columns = {"reddening": ("%.8g", value), "reddening_error": ("%.8g", sigma)}
    return write_csv(out / REDDENING_FILE, {"source_id": ("%d", stars.source_id), **measured})
