"""Gaia XP_SAMPLED spectra: fluxes and errors on 336-1020 nm, from CSV, ECSV, FITS, VOTable, Avro, Parquet or HDF5.

One spectrum a row (arrays, or a column per sample), or one sample a row, as the archive gives single stars. Without
wavelengths a spectrum has the archive's 343 samples; with them, any that contain the 61 of the grid.
Out: a stream of `SampledBatch` on the 61-sample grid, an exact subset of the 343. The archive has no correlations for
this product; `xp_covariance.calibrate_sampled` uses the one that the XP bases imply, never a diagonal.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.cells import ArrayParser
from xpbayes.archive.columns import DEFAULT, Column, Place, Places, ReadOptions
from xpbayes.archive.tables import Row, open_rows, row_source_id
from xpbayes.archive.xp_continuous import SPECTRA_ID
from xpbayes.channels import XP_GRID_NM
from xpbayes.data.rejected import UNKNOWN_SOURCE, Rejected
from xpbayes.errors import InputError
from xpbayes.instrument.xp_covariance import FLUX_UNIT_SI

SAMPLED_GRID_NM = np.arange(336.0, 1021.0, 2.0)
"""Wavelengths of the archive's product [nm]."""
PICKED = np.searchsorted(SAMPLED_GRID_NM, XP_GRID_NM)
"""Where the 61 samples sit among the 343."""

SAME_NM = 1e-3
"""Wavelengths this close are the same sample [nm]: rounding of float32 and of unit conversions."""
BRIGHTEST = 1e-8
"""No star has such a flux [W m^-2 nm^-1]: Sirius has 1e-10 at its peak. Beyond are sentinels, -999 and 99 among them."""

BATCH_SIZE = 2048
FLUX_UNIT = "W / (m2 nm)"
COLUMNS = (
    SPECTRA_ID,
    Column("flux", "array", ("xp_flux", "xp.flux"), True, ("flux_", "xp_flux_"), by_wavelength=True, unit=FLUX_UNIT),
    Column(
        "flux_error",
        "array",
        ("xp_flux_error", "xp.flux_error"),
        True,
        ("flux_error_", "xp_flux_error_", "e_flux_"),
        by_wavelength=True,
        unit=FLUX_UNIT,
        is_error=True,
    ),
    Column("wavelength", "array", ("sampling", "xp.wavelength", "xp_wavelength"), unit="nm"),
)
NAMES = tuple(column.name for column in COLUMNS[1:])


@dataclass(frozen=True)
class SampledBatch:
    """Consecutive rows of a file of sampled spectra."""

    source_id: NDArray[np.int64]  # (star,) int64
    row: NDArray[np.int64]  # (star,) row numbers in the file, the first is 1
    flux: NDArray[np.float64]  # (star, 61) [1e-18 W m^-2 nm^-1], 0 where missing
    error: NDArray[np.float64]  # (star, 61) 1-sigma errors, same unit, 1 where missing
    present: NDArray[np.bool_]  # (star, 61) which samples were measured
    rejected: tuple[Rejected, ...]  # rows met on the way that could not be used

    def __len__(self) -> int:
        return len(self.source_id)


def read_xp_sampled(path: str | Path, options: ReadOptions = DEFAULT) -> Iterator[SampledBatch]:
    """Read a file of sampled XP spectra, batch by batch; where a row holds one sample, a spectrum's row is its first.

    Over all `SampledBatch`es, spectra + rejected rows = spectra of the file. InputError: no such file, of no known format,
    or without flux and flux_error.
    """
    path = Path(path)
    rows = open_rows(path, COLUMNS, options)  # before the generator starts: a wrong file is refused at once

    def batches() -> Iterator[SampledBatch]:
        good: list[_Spectrum] = []
        rejected: list[Rejected] = []
        for places, table in rows.tables:
            for item in _spectra(path, places, table):
                (rejected if isinstance(item, Rejected) else good).append(item)  # type: ignore[arg-type]
                if len(good) == BATCH_SIZE:
                    yield _assemble(good, rejected)
                    good, rejected = [], []
        if good or rejected:
            yield _assemble(good, rejected)

    return batches()


@dataclass(frozen=True)
class _Spectrum:
    """The 61 samples of one star [1e-18 W m^-2 nm^-1], and the row that it begins in."""

    row: int
    source_id: int
    flux: NDArray[np.float64]
    error: NDArray[np.float64]


@dataclass
class _Samples:
    """A spectrum that comes sample by sample: flux, error and wavelength so far, and what went wrong."""

    row: int
    source_id: int
    samples: list[tuple[float, float, float]] = field(default_factory=list)
    reason: str = ""


def _spectra(path: Path, places: Places, table: Iterator[Row]) -> Iterator[_Spectrum | Rejected]:
    """The spectra of a table, in order."""
    parse = ArrayParser()
    building: _Samples | None = None

    def finish() -> Iterator[_Spectrum | Rejected]:
        if building is None:
            return
        try:
            if building.reason:
                raise ValueError(f"one of its samples cannot be read ({building.reason})")
            yield _spectrum(building.row, building.source_id, places, *np.array(building.samples).T)
        except ValueError as reason:
            yield Rejected(path.name, building.row, building.source_id, str(reason))

    for item in table:
        if isinstance(item, Rejected):
            if building is None:
                yield item
            else:
                building.reason = building.reason or item.reason  # a sample of it is lost
            continue
        row, (id_cell, *cells) = item
        source = UNKNOWN_SOURCE
        try:
            source = row_source_id(id_cell, places[0], path)
            flux, error, wavelength = (parse.named(n, c) for n, c in zip(NAMES, cells, strict=True))
            if wavelength is not None and len(wavelength) == 1:
                if building is None or building.source_id != source:
                    yield from finish()
                    building = _Samples(row, source)
                one = (np.nan if v is None else float(v[0]) for v in (flux, error, wavelength))
                building.samples.append(tuple(one))  # type: ignore[arg-type]
                continue
            if flux is None or error is None:
                raise ValueError(f"{'flux' if flux is None else 'flux_error'} is missing")
            yield _spectrum(row, source, places, flux, error, wavelength)
        except InputError:
            raise
        except ValueError as reason:
            if building is not None and source in (building.source_id, UNKNOWN_SOURCE):
                building.reason = building.reason or str(reason)
            else:
                yield Rejected(path.name, row, source, str(reason))
    yield from finish()


def _spectrum(
    row: int,
    source_id: int,
    places: Places,
    flux: NDArray[np.float64],
    error: NDArray[np.float64],
    wavelength: NDArray[np.float64] | None,
) -> _Spectrum:
    """Pick the 61 samples and bring them to our unit; ValueError with the reason where that cannot be."""
    grids = [wavelength if wavelength is None else _in_unit(wavelength, places[3])] * 2
    values = []
    for name, place, numbers, grid in zip(NAMES, places[1:3], (flux, error), grids, strict=False):
        if grid is None and place is not None:
            grid = place.wavelength_nm
        known = SAMPLED_GRID_NM.size if grid is None else len(grid)
        if len(numbers) != known:
            raise ValueError(f"{name} has {len(numbers)} values, not {known}")
        picked = _in_unit(numbers[PICKED if grid is None else _where(grid)], place)
        values.append(np.where(np.abs(picked) < BRIGHTEST, picked, np.nan) / FLUX_UNIT_SI)
    if not (np.isfinite(values[0]) & np.isfinite(values[1]) & (values[1] > 0)).any():
        raise ValueError("no sample has a finite flux and a positive error")
    return _Spectrum(row, source_id, values[0], values[1])


def _in_unit(numbers: NDArray[np.float64], place: Place | None) -> NDArray[np.float64]:
    return numbers if place is None or place.factor == 1.0 else numbers * place.factor


def _where(wavelength_nm: NDArray[np.float64]) -> NDArray[np.intp]:
    """Where the 61 samples are among these wavelengths; ValueError where they are not."""
    order = np.argsort(wavelength_nm, kind="stable")
    after = np.minimum(np.searchsorted(wavelength_nm[order], XP_GRID_NM - SAME_NM), len(order) - 1)
    at = order[after]
    lacking = ~(np.abs(wavelength_nm[at] - XP_GRID_NM) <= SAME_NM)
    if lacking.any():
        raise ValueError(
            f"its wavelengths lack {int(lacking.sum())} of the {XP_GRID_NM.size} samples (first: "
            f"{XP_GRID_NM[lacking][0]:g} nm)"
        )
    return at


def _assemble(good: list[_Spectrum], rejected: list[Rejected]) -> SampledBatch:
    shape = (len(good), XP_GRID_NM.size)
    flux = np.array([g.flux for g in good], np.float64).reshape(shape)
    error = np.array([g.error for g in good], np.float64).reshape(shape)
    present = np.isfinite(flux) & np.isfinite(error) & (error > 0)
    return SampledBatch(
        source_id=np.array([g.source_id for g in good], np.int64),
        row=np.array([g.row for g in good], np.int64),
        flux=np.where(present, flux, 0.0),
        error=np.where(present, error, 1.0),
        present=present,
        rejected=tuple(rejected),
    )
