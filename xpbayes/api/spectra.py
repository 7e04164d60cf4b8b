"""Spectra for a notebook: from arrays with or without units, and from files; what it holds is a `data.spectra.Spectra`."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xpbayes.channels import BANDS, XP_GRID_NM, xp_channels
from xpbayes.data import spectra as table
from xpbayes.data.join import repeated_ids
from xpbayes.data.parquet import METADATA_KEY
from xpbayes.errors import InputError, nearest
from xpbayes.instrument.bases import instrument_of
from xpbayes.instrument.error_model import gaia_covariance, inflate
from xpbayes.instrument.instrument import Instrument
from xpbayes.instrument.photometry import LN10_OVER_2P5, flux_from_magnitude, magnitude_from_flux
from xpbayes.instrument.whitening import whiten_packed
from xpbayes.release import DEFAULT_RELEASE
from xpbayes.schema import DEFAULT_LABELS, LABEL_UNITS

FLUX, FLUX_SQUARED, NANOMETRE = "1e-18 W m-2 nm-1", "1e-36 W2 m-4 nm-2", "nm"
SMALLEST_PLAUSIBLE = 1e-6
"""Of a typical flux in the internal unit: Gaia's faintest spectra have 0.1, the same in W m^-2 nm^-1 1e-19."""
STARS_AT_ONCE = 512
"""Stars whose covariances are inverted together: 15 MB."""
Measured = tuple[Any, Any]
"""A value and its 1-sigma error, of every star."""


class Spectra(table.Spectra):
    """XP spectra, broad bands and parallaxes of some stars.

    Index it like an array: ``spectra[0]``, ``spectra[:10]``, ``spectra[spectra.snr > 20]``.

    Args:
        flux: (star, sample) flux density, an astropy quantity or numbers [1e-18 W m^-2 nm^-1]; NaN where missing. One
            star may be given without the leading axis.
        covariance: (star, sample, sample) of `flux`, in its unit squared.
        error: (star, sample) 1-sigma errors instead; samples of the XP grid then get the correlation that Gaia's bases
            imply.
        wavelength: (sample,) of the samples [nm] or a quantity; any grid that holds the model's, whose samples are taken
            from it. The XP grid if None.
        bands: Vega magnitudes and errors by the band's name, ``{"J": (magnitude, error)}``, or quantities of flux density;
            NaN where missing. Bands that are not named are missing.
        parallax: value and error [mas] or quantities.
        reddening: estimate of E and its error [mag]; to train on.
        source_id: (star,) Gaia's identifiers; 1, 2, ... if None.
        labels: values and errors by the label's name, ``{"teff": (5800, 50)}``, teff in K; to train on.
        columns: any other column, such as ra and dec [deg].
        calibrated: the covariance contains the errors of the calibration (ZGR23 Eq. 2) already.
        release: data release that the spectra and source_ids are of: dr3 or dr4.

    Raises:
        InputError: shapes do not fit, a unit cannot be converted, or a name is unknown.
    """

    def __init__(  # noqa: PLR0913 - a keyword for each thing that a survey may have measured
        self,
        flux: ArrayLike,
        *,
        covariance: ArrayLike | None = None,
        error: ArrayLike | None = None,
        wavelength: ArrayLike | None = None,
        bands: Mapping[str, Measured] | None = None,
        parallax: Measured | None = None,
        reddening: Measured | None = None,
        source_id: ArrayLike | None = None,
        labels: Mapping[str, Measured] | None = None,
        columns: Mapping[str, ArrayLike] | None = None,
        calibrated: bool = False,
        release: str = DEFAULT_RELEASE.name,
    ) -> None:
        values = np.atleast_2d(_numbers(flux, FLUX, "flux"))
        n = len(values)
        grid = XP_GRID_NM if wavelength is None else _numbers(wavelength, NANOMETRE, "wavelength")
        _require_shape(values, (n, len(grid)), "flux")
        picked = _where(grid)
        instrument = instrument_of(release)
        xp, present, spread = _samples(values, covariance, error, picked, calibrated, instrument)
        whitening, _ = whiten_packed(spread, present)
        for name in bands or {}:
            if name not in BANDS:
                raise InputError(f"'{name}' is no band{nearest(name, BANDS)}; known are {', '.join(BANDS)}")
        names = [b for b in BANDS if bands is None or b in bands]
        band_flux, band_weight = np.zeros((2, n, len(names)))
        for i, name in enumerate(names if bands else []):
            band_flux[:, i], band_weight[:, i] = _band(name, (bands or {})[name], n)
        own: dict[str, NDArray[Any]] = {k: _column(v, k, n) for k, v in (columns or {}).items()}
        for name, unit, pair in (("parallax", "mas", parallax), ("reddening", "mag", reddening)):
            if pair is not None:
                own[name], own[f"{name}_error"] = _measured(pair, unit, name, n)
        for name, measured in (labels or {}).items():
            unit = LABEL_UNITS.get(name, "")
            value, sigma = _measured(measured, {"kK": "K", "dex": ""}.get(unit, unit), name, n)
            scale = 1e-3 if unit == "kK" else 1.0
            own[name], own[f"{name}_error"] = scale * value, scale * sigma
        floats = {
            k: v.astype(np.float32) if v.dtype == np.float64 and k not in ("ra", "dec") else v for k, v in own.items()
        }
        self.__dict__.update(
            channels=xp_channels(tuple(names)),
            label_names=tuple(labels) if labels else DEFAULT_LABELS,
            source_id=_source_ids(source_id, n),
            flux=np.concatenate([xp, band_flux], axis=1).astype(np.float32),
            xp_whitening=whitening,
            band_inverse_error=band_weight.astype(np.float32),
            columns=floats,
            cuts=(),
            provenance={"source": "arrays in memory"},
            extra_units={},
            instrument=instrument.about,
        )

    @classmethod
    def of(cls, spectra: table.Spectra) -> Self:
        """The same stars with the verbs of this class."""
        other = object.__new__(cls)
        other.__dict__.update(vars(spectra))
        return other

    @classmethod
    def read(cls, path: str | PathLike[str], *, release: str | None = None) -> Self:
        """Read a star table or a folder of them, or the spectra of any file of Gaia's, with nothing joined to them.

        The data release of Gaia's files is dr3 or dr4, or as their coefficients say if None.

        Raises:
            InputError: it cannot be read, or none of its rows can be used.
        """
        from xpbayes.archive.memory import spectra_of_file
        from xpbayes.data.spectra_file import read_star_tables

        path = Path(path)
        return cls.of(
            read_star_tables(path) if path.is_dir() or _is_star_table(path) else spectra_of_file(path, release)
        )

    @classmethod
    def fetch(
        cls, source_ids: Sequence[int], *, folder: str | PathLike[str] | None = None, release: str = "dr3"
    ) -> Self:
        """Get a few stars of a data release from Gaia's archive: XP spectra, parallaxes, 2MASS magnitudes.

        What is fetched is kept in the folder, if any, and not asked for again.

        Raises:
            InputError: none of them has a spectrum, or the archive does not answer.
        """
        from xpbayes.runs.star import fetch_stars

        return cls.of(fetch_stars(source_ids, None if folder is None else Path(folder), release=release))

    @classmethod
    def from_coefficients(cls, rows: Any, *, release: str | None = None) -> Self:
        """Calibrate a table of spectra with Gaia's own column names; a parallax and a position are taken along.

        Args:
            rows: a pandas, astropy or Arrow table: ``source_id``, ``bp_coefficients``, ``bp_coefficient_errors``,
                ``bp_coefficient_correlations``, the same of RP, and so on; or sampled ``flux`` and ``flux_error``.
            release: as for `read`.

        Raises:
            InputError: a column is missing, or none of the rows can be used.
        """
        from xpbayes.archive.memory import spectra_of_table

        return cls.of(spectra_of_table(rows, release))

    def save(self, path: str | PathLike[str]) -> Path:
        """Write a star table; InputError if it cannot be written."""
        from xpbayes.data.spectra_file import write_star_table

        return write_star_table(self, path)

    @property
    def wavelength(self) -> NDArray[np.float64]:
        """(channel,) [nm]."""
        return self.channels.wavelengths

    @property
    def covariance(self) -> NDArray[np.float64]:
        """(star, sample, sample) of the XP samples as the likelihood has it; NaN where a sample is missing."""
        from xpbayes.instrument.whitening import unpack

        n = self.channels.n_xp
        out = np.empty((len(self), n, n))
        for start in range(0, len(self), STARS_AT_ONCE):
            rows = slice(start, start + STARS_AT_ONCE)
            factor = unpack(self.xp_whitening[rows], np.zeros((len(self.xp_whitening[rows]), 0)), n).astype(np.float64)
            missing = np.diagonal(factor, axis1=1, axis2=2) == 0
            inverse = np.linalg.inv(factor + missing[:, :, None] * np.eye(n))
            out[rows] = inverse @ inverse.transpose(0, 2, 1)
            out[rows][missing[:, :, None] | missing[:, None, :]] = np.nan
        return out

    def magnitude(self, band: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(star,) Vega magnitudes in a band and their errors [mag], the error floor of `instrument.photometry` included.

        InputError if the spectra do not have the band.
        """
        if band not in self.channels.band_names:
            raise InputError(f"there is no band '{band}'{nearest(band, self.channels.band_names)}")
        at = self.channels.names.index(band)
        inverse = self.band_inverse_error[:, at - self.channels.n_xp].astype(np.float64)
        flux = np.where(inverse > 0, self.flux[:, at], np.nan).astype(np.float64)
        magnitude = magnitude_from_flux(flux, BANDS[band])
        with np.errstate(divide="ignore", invalid="ignore"):
            return magnitude, np.where(np.isfinite(magnitude), 1.0 / (LN10_OVER_2P5 * flux * inverse), np.nan)


def _is_star_table(path: Path) -> bool:
    """Whether a file says of itself that it is of xpbayes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return METADATA_KEY in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False


def _numbers(values: Any, unit: str, name: str) -> NDArray[np.float64]:
    """Plain numbers in a unit, of a quantity or of what is taken to be in it; masked values are NaN."""
    if getattr(values, "unit", None) is not None:
        from astropy import units as u

        try:
            values = u.Quantity(values).to_value(u.Unit(unit))
        except u.UnitConversionError as error:
            raise InputError(f"{name} is in {values.unit}, which is no {unit}; convert it") from error
    try:
        if np.ma.isMaskedArray(values):
            values = np.ma.filled(values.astype(np.float64), np.nan)
        numbers = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is not an array of numbers ({error}); give one row a star") from error
    if unit == FLUX and numbers.size and np.isfinite(numbers).any():
        typical = np.nanmax(np.abs(numbers))
        if 0 < typical < SMALLEST_PLAUSIBLE:
            raise InputError(
                f"{name} is at most {typical:.1e}, and numbers are taken in {FLUX}; give it as an astropy quantity with "
                f"its unit"
            )
    return numbers


def _require_shape(values: NDArray[Any], shape: tuple[int, ...], name: str) -> None:
    if values.shape != shape:
        raise InputError(f"{name} has shape {values.shape}, not {shape}; give one row a star")


def _where(grid: NDArray[np.float64]) -> NDArray[np.intp]:
    """(61,) where the samples of the XP grid are."""
    order = np.argsort(grid)
    at = order[np.clip(np.searchsorted(grid[order], XP_GRID_NM - 1e-3), 0, len(grid) - 1)]
    missing = np.abs(grid[at] - XP_GRID_NM) > 1e-3
    if missing.any():
        raise InputError(
            f"wavelength lacks {missing.sum()} of the {len(XP_GRID_NM)} samples that models are made of (first: "
            f"{XP_GRID_NM[missing][0]:.0f} nm); sample the spectra at {XP_GRID_NM[0]:.0f}, {XP_GRID_NM[1]:.0f}, ... "
            f"{XP_GRID_NM[-1]:.0f} nm"
        )
    return at


def _samples(
    flux: NDArray[np.float64],
    covariance: ArrayLike | None,
    error: ArrayLike | None,
    picked: NDArray[np.intp],
    calibrated: bool,
    instrument: Instrument,
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Flux, which samples were measured, and the covariance that the likelihood uses, all on the XP grid."""
    from xpbayes.instrument.bases import implied_correlation

    if (covariance is None) == (error is None):
        raise InputError("give the covariance of the fluxes or their errors, one of the two")
    n, size = flux.shape
    xp = flux[:, picked]
    if covariance is not None:
        full = _numbers(covariance, FLUX_SQUARED, "covariance")
        full = full[None] if full.ndim == 2 else full
        _require_shape(full, (n, size, size), "covariance")
        spread = full[:, picked[:, None], picked]
        sigma2 = np.diagonal(spread, axis1=1, axis2=2)
        if not np.allclose(spread, spread.swapaxes(1, 2), rtol=1e-4, atol=0, equal_nan=True):
            raise InputError("covariance is not symmetric; give the covariance of the fluxes, star by star")
    else:
        sigma = np.atleast_2d(_numbers(error, FLUX, "error"))
        _require_shape(sigma, (n, size), "error")
        sigma2 = np.where(sigma[:, picked] > 0, sigma[:, picked], np.nan) ** 2
        spread = gaia_covariance(
            np.sqrt(np.where(np.isfinite(sigma2), sigma2, 1.0)), implied_correlation(instrument=instrument)
        )
    present = np.isfinite(xp) & np.isfinite(sigma2) & (sigma2 > 0)
    xp = np.where(present, xp, 0.0)
    spread = np.where(present[:, :, None] & present[:, None, :], spread, np.eye(len(picked)))
    return xp, present, spread if calibrated else inflate(spread, xp, XP_GRID_NM)


def _measured(measured: Measured, unit: str, name: str, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    try:
        value, error = measured
    except (TypeError, ValueError) as problem:
        raise InputError(f"{name} is not a pair of values and errors; give both") from problem
    return _floats(value, unit, name, n), _floats(error, unit, f"the error of {name}", n)


def _band(name: str, measured: Measured, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(star,) flux and 1/sigma of one band, 0 where missing."""
    value = measured[0] if isinstance(measured, tuple | list) and measured else measured
    if str(getattr(value, "unit", None) or "mag") == "mag":
        return flux_from_magnitude(*_measured(measured, "mag", name, n), BANDS[name])
    flux, sigma = _measured(measured, FLUX, name, n)
    present = np.isfinite(flux) & np.isfinite(sigma) & (sigma > 0)
    return np.where(present, flux, 0.0), np.where(present, 1.0 / np.where(present, sigma, 1.0), 0.0)


def _floats(values: Any, unit: str, name: str, n: int) -> NDArray[np.float64]:
    numbers = _numbers(values, unit, name)
    numbers = np.full(n, numbers) if numbers.ndim == 0 else numbers
    _require_shape(numbers, (n,), name)
    return numbers


def _column(values: Any, name: str, n: int) -> NDArray[Any]:
    array = np.atleast_1d(np.asarray(getattr(values, "value", values)))
    _require_shape(array, (n,), name)
    return array


def _source_ids(values: Any, n: int) -> NDArray[np.int64]:
    if values is None:
        return np.arange(1, n + 1)
    ids = np.atleast_1d(np.asarray(values))
    if ids.dtype.kind not in "iu" or np.ma.is_masked(values):
        raise InputError(f"source_id is of type {ids.dtype}, in which identifiers lose digits; give 64-bit integers")
    _require_shape(ids, (n,), "source_id")
    if repeated := repeated_ids(ids.astype(np.int64)):
        raise InputError(
            f"{repeated.count} source_ids occur more than once (first: {repeated.first}); keep one row a star"
        )
    return ids.astype(np.int64)
