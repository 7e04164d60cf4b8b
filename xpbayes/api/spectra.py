"""Spectra for a notebook: from arrays with or without units, and from files; what it holds is a `data.spectra.Spectra`."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from glob import escape
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xpbayes.archive import arrays
from xpbayes.archive.columns import Column, magnitude, magnitude_error
from xpbayes.archive.gaia_source import POSITIONS, UNITS
from xpbayes.archive.labels import label_columns
from xpbayes.archive.units import unit_change
from xpbayes.archive.xp_sampled import BRIGHTEST
from xpbayes.channels import BANDS, FLUX_UNIT, XP_GRID_NM, xp_channels
from xpbayes.data import spectra as table
from xpbayes.data.join import repeated_ids
from xpbayes.data.parquet import METADATA_KEY
from xpbayes.errors import InputError, nearest
from xpbayes.instrument.bases import instrument_of
from xpbayes.instrument.error_model import gaia_covariance, inflate
from xpbayes.instrument.instrument import Instrument
from xpbayes.instrument.photometry import FLUX_ERROR_FLOOR, flux_from_magnitude, magnitude_from_flux, measured_error
from xpbayes.instrument.whitening import whiten_packed
from xpbayes.instrument.xp_covariance import FLUX_UNIT_SI
from xpbayes.release import DEFAULT_RELEASE
from xpbayes.schema import DEFAULT_LABELS, LABEL_UNITS

log = logging.getLogger(__name__)

FLUX = Column("flux", unit=FLUX_UNIT, low=-BRIGHTEST / FLUX_UNIT_SI, high=BRIGHTEST / FLUX_UNIT_SI)
FLUX_SQUARED = Column("covariance", unit="1e-36 W2 m-4 nm-2")
WAVELENGTH = Column("wavelength", unit="nm")
LEAST_SNR, GREATEST_SNR = 0.01, 100.0
"""Per sample, the latter at a flux of 1 and as photons go, by its square root: noise alone has 0.67, DR3's best 12."""
ROUNDING = 1e-4
"""Negative eigenvalues of a covariance over its largest that float32 and its makers' algebra explain."""
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
        covariance: (star, sample, sample) of `flux`, a quantity where `flux` is one in another unit.
        error: (star, sample) 1-sigma errors instead; samples of the XP grid then get the correlation that Gaia's bases
            imply.
        wavelength: (sample,) of the samples [nm] or a quantity; any grid that holds the model's, whose samples are taken
            from it. The XP grid if None.
        bands: Vega magnitudes and errors by the band's name, ``{"J": (magnitude, error)}``, or quantities of flux density;
            missing as in files: NaN, masked, or what nobody can have measured. Bands that are not named are missing.
        parallax: value and error [mas] or quantities.
        reddening: estimate of E and its error [mag]; to train on.
        source_id: (star,) Gaia's identifiers; 1, 2, ... if None.
        labels: values and errors by the label's name, ``{"teff": (5800, 50)}``, teff in K; to train on.
        columns: any other column, such as ra and dec [deg]; Gaia's own and labels in the star table's units.
        calibrated: the covariance contains the errors of the calibration (ZGR23 Eq. 2) already.
        release: data release that the spectra and source_ids are of: dr3 or dr4.

    Raises:
        InputError: shapes do not fit, a unit cannot be converted, errors are of another unit, or a name is unknown.
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
        values = np.atleast_2d(arrays.numbers(flux, FLUX))
        n = len(values)
        grid = XP_GRID_NM if wavelength is None else arrays.numbers(wavelength, WAVELENGTH)
        arrays.require_shape(values, (n, len(grid)), "flux")
        if (covariance is None) == (error is None):
            raise InputError("give the covariance of the fluxes or their errors, one of the two")
        arrays.require_units(flux, error if covariance is None else covariance, FLUX)
        instrument = instrument_of(release)
        xp, present, spread = _samples(values, covariance, error, _where(grid), calibrated, instrument)
        ids = np.arange(1, n + 1) if source_id is None else arrays.identifiers(source_id, n, release)
        if repeated := repeated_ids(ids):
            raise InputError(
                f"{repeated.count} source_ids occur more than once (first: {repeated.first}); keep one row a star"
            )
        whitening = _whitened(spread, present, ids)
        for name in bands or {}:
            if name not in BANDS:
                raise InputError(f"'{name}' is no band{nearest(name, BANDS)}; known are {', '.join(BANDS)}")
        names = [b for b in BANDS if bands is None or b in bands]
        missing: Counter[str] = Counter()
        band_flux, band_weight = np.zeros((2, n, len(names)))
        for i, name in enumerate(names if bands else []):
            band_flux[:, i], band_weight[:, i] = _band(name, (bands or {})[name], n, missing)
        own, units = _columns(columns or {}, {"parallax": parallax, "reddening": reddening}, labels or {}, n, missing)
        if missing:
            counts = "; ".join(f"{what}: {count} taken for missing" for what, count in missing.items())
            log.warning(f"{arrays.WHERE}: {counts}")
        self.__dict__.update(
            channels=xp_channels(tuple(names)),
            label_names=tuple(labels) if labels else DEFAULT_LABELS,
            source_id=ids,
            flux=np.concatenate([xp, band_flux], axis=1).astype(np.float32),
            xp_whitening=whitening,
            band_inverse_error=band_weight.astype(np.float32),
            columns=own,
            cuts=(),
            provenance={"source": arrays.WHERE},
            extra_units=units,
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
        """Read star tables or Gaia's files of spectra, one or a folder of them, with nothing joined to the latter.

        The data release of Gaia's files is dr3 or dr4, or as their coefficients say if None.

        Raises:
            InputError: it cannot be read, or none of its rows can be used.
        """
        from xpbayes.archive.direct import spectra_in
        from xpbayes.archive.memory import spectra_of_files
        from xpbayes.archive.survey_config import expand
        from xpbayes.data.spectra_file import read_star_tables

        path = Path(path)
        if not path.is_dir():
            return cls.of(read_star_tables(path) if _is_star_table(path) else spectra_of_files(path, [path], release))
        files = tuple(escape(str(found)) for found in spectra_in(path))
        return cls.of(spectra_of_files(path, expand(files, Path()), release) if files else read_star_tables(path))

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
        """(star,) Vega magnitudes in a band and their errors [mag] as measured, without the 1 % floor of fluxes.

        InputError if the spectra do not have the band.
        """
        if band not in self.channels.band_names:
            raise InputError(f"there is no band '{band}'{nearest(band, self.channels.band_names)}")
        at = self.channels.names.index(band)
        inverse = self.band_inverse_error[:, at - self.channels.n_xp].astype(np.float64)
        flux = np.where(inverse > 0, self.flux[:, at], np.nan).astype(np.float64)
        return magnitude_from_flux(flux, BANDS[band]), measured_error(flux, inverse)


def _is_star_table(path: Path) -> bool:
    """Whether a file says of itself that it is of xpbayes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return METADATA_KEY in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False


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

    n, size = flux.shape
    xp = flux[:, picked]
    if covariance is not None:
        full = arrays.numbers(covariance, FLUX_SQUARED)
        full = full[None] if full.ndim == 2 else full
        arrays.require_shape(full, (n, size, size), "covariance")
        spread = full[:, picked[:, None], picked]
        sigma2 = np.diagonal(spread, axis1=1, axis2=2)
        if not np.allclose(spread, spread.swapaxes(1, 2), rtol=1e-4, atol=0, equal_nan=True):
            raise InputError("covariance is not symmetric; give the covariance of the fluxes, star by star")
    else:
        sigma = np.atleast_2d(arrays.numbers(error, FLUX, "error"))
        arrays.require_shape(sigma, (n, size), "error")
        sigma2 = np.where(sigma[:, picked] > 0, sigma[:, picked], np.nan) ** 2
        spread = gaia_covariance(
            np.sqrt(np.where(np.isfinite(sigma2), sigma2, 1.0)), implied_correlation(instrument=instrument)
        )
    present = (np.abs(xp) < FLUX.high) & np.isfinite(sigma2) & (sigma2 > 0)
    _require_plausible(xp[present], sigma2[present])
    xp = np.where(present, xp, 0.0)
    spread = np.where(present[:, :, None] & present[:, None, :], spread, np.eye(len(picked)))
    return xp, present, spread if calibrated else inflate(spread, xp, XP_GRID_NM)


def _require_plausible(flux: NDArray[np.float64], variance: NDArray[np.float64]) -> None:
    """Refuse (sample,) fluxes and variances that are not of one unit, or not of ours."""
    if not flux.size:
        return
    typical, ratio = np.median(np.abs(flux)), np.median(np.abs(flux) / np.sqrt(variance))
    if not LEAST_SNR <= ratio <= GREATEST_SNR * np.sqrt(typical):
        raise InputError(
            f"flux is {typical:.1e} in the median sample and {ratio:.1e} times its error, as no XP spectrum is; numbers "
            f"are taken in {FLUX_UNIT}, covariances in its square: give it as an astropy quantity, its errors, too"
        )


def _whitened(
    spread: NDArray[np.float64], present: NDArray[np.bool_], source_id: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Whitening factors; not finite, which `problems` says, where no fluxes have such a covariance."""
    bad: NDArray[np.bool_] = ~np.isfinite(spread).all(axis=(1, 2))  # type: ignore[assignment]
    spread[bad] = np.eye(spread.shape[1])
    whitening, floored = whiten_packed(spread, present)
    value = np.linalg.eigvalsh(spread[floored])
    bad[floored] = value[:, 0] < -ROUNDING * value[:, -1]
    if bad.any():
        log.warning(
            f"{arrays.WHERE}: the covariances of {bad.sum()} of {len(bad)} stars are not positive definite (first: "
            f"source_id {source_id[bad][0]}); these stars are not fitted"
        )
        whitening[bad] = np.nan
    return whitening


def _measured(
    measured: Measured, columns: tuple[Column, Column], n: int, missing: Counter[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    name = columns[0].name
    try:
        value, error = measured
    except (TypeError, ValueError) as problem:
        raise InputError(f"{name} is not a pair of values and errors; give both") from problem
    arrays.require_units(value, error, columns[0])
    return arrays.measured(value, columns[0], n, missing), arrays.measured(error, columns[1], n, missing)


def _band(
    name: str, measured: Measured, n: int, missing: Counter[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(star,) flux and 1/sigma of one band, 0 where missing."""
    unit = arrays.unit_of(measured[0] if isinstance(measured, tuple | list) and measured else measured)
    if unit is None or unit_change(unit, "mag"):
        columns = magnitude(name), magnitude_error(f"{name}_error")
        return flux_from_magnitude(*_measured(measured, columns, n, missing), BANDS[name])
    if not unit_change(unit, FLUX_UNIT):
        raise InputError(f"{name} is in {unit}; give Vega magnitudes, or flux densities in {FLUX_UNIT} or the like")
    flux, sigma = _measured(measured, (replace(FLUX, name=name), replace(FLUX, name=f"{name}_error")), n, missing)
    present = np.isfinite(flux) & np.isfinite(sigma) & (sigma > 0)
    sigma = np.hypot(np.where(present, sigma, 1.0), FLUX_ERROR_FLOOR * np.where(present, flux, 0.0))
    return np.where(present, flux, 0.0), np.where(present, 1.0 / sigma, 0.0)


def _columns(
    columns: Mapping[str, ArrayLike],
    pairs: Mapping[str, Measured | None],
    labels: Mapping[str, Measured],
    n: int,
    missing: Counter[str],
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Every column of the table, and the units of those that are not ours."""
    known = arrays.known_columns((*LABEL_UNITS, *labels))
    for name in ("source_id", *table.MATRICES):
        if name in columns or name in labels:
            raise InputError(f"'{name}' is a name of the star table's own; call the column another name")
    own: dict[str, NDArray[Any]] = {}
    units: dict[str, str] = {}
    for name, values in columns.items():
        if name not in known:
            own[name] = arrays.other_column(values, name, n)
            units |= {name: unit} if (unit := arrays.unit_of(values)) else {}
            continue
        numbers = arrays.measured(values, known[name], n, missing)
        own[name] = numbers if name in POSITIONS else numbers.astype(np.float32)
    for name, pair in [*pairs.items(), *labels.items()]:
        if pair is None:
            continue
        both = label_columns(name, "K" if name == "teff" else "") if name in labels else None
        found = _measured(pair, both or (known[name], known[f"{name}_error"]), n, missing)
        for key, numbers in zip((name, f"{name}_error"), found, strict=True):
            if key in own:
                raise InputError(f"{key} is given twice; leave it out of columns")
            own[key] = numbers.astype(np.float32)
    return own, units | {name: unit for name, unit in UNITS.items() if name in own}
