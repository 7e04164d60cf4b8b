"""Gaia XP_SAMPLED spectra: 343 fluxes and errors on 336-1020 nm, from CSV, ECSV, FITS, VOTable, Avro, Parquet or HDF5.

Out: a stream of `SampledBatch` on the 61-sample grid, an exact subset of the 343. The archive has no correlations for
this product; `calibrate_sampled` uses the one that the XP bases imply, never a diagonal.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.cells import ArrayParser
from xpbayes.archive.columns import SOURCE_ID, Wanted
from xpbayes.archive.rows import open_rows
from xpbayes.archive.xp_continuous import read_source_id
from xpbayes.channels import XP_GRID_NM
from xpbayes.data.rejected import UNKNOWN_SOURCE, Rejected
from xpbayes.instrument.bases import implied_correlation
from xpbayes.instrument.error_model import gaia_covariance, inflate
from xpbayes.instrument.whitening import whiten_packed
from xpbayes.instrument.xp_covariance import BLOCK, FLUX_UNIT_SI, CalibratedXp

SAMPLED_GRID_NM = np.arange(336.0, 1021.0, 2.0)
"""Wavelengths of the archive's product [nm]."""
PICKED = np.searchsorted(SAMPLED_GRID_NM, XP_GRID_NM)
"""Where the 61 samples sit among the 343."""

BATCH_SIZE = 2048
COLUMNS = (
    SOURCE_ID,
    Wanted("flux", ("xp_flux",), ("flux_",), required=True),
    Wanted("flux_error", ("xp_flux_error",), ("flux_error_",), required=True),
)


@dataclass(frozen=True)
class SampledBatch:
    """Consecutive rows of a file of sampled spectra.

    Attributes:
        source_id: (star,) int64.
        row: (star,) row numbers in the file, the first is 1.
        flux: (star, 61) [1e-18 W m^-2 nm^-1], 0 where missing.
        error: (star, 61) 1-sigma errors, same unit, 1 where missing.
        present: (star, 61) which samples were measured.
        rejected: rows met on the way that could not be used.
    """

    source_id: NDArray[np.int64]
    row: NDArray[np.int64]
    flux: NDArray[np.float64]
    error: NDArray[np.float64]
    present: NDArray[np.bool_]
    rejected: tuple[Rejected, ...]

    def __len__(self) -> int:
        return len(self.source_id)


def read_xp_sampled(path: str | Path, batch_size: int = BATCH_SIZE) -> Iterator[SampledBatch]:
    """Read a file of sampled XP spectra, batch by batch.

    Args:
        path: the file; its suffix names the format.
        batch_size: most rows per batch.

    Yields:
        `SampledBatch`es; over all of them, rows + rejected rows = rows of the file.

    Raises:
        InputError: no such file, not of that format, or without flux and flux_error.
    """
    path = Path(path)
    rows = open_rows(path, COLUMNS)  # before the generator starts: a wrong file is refused at once

    def batches() -> Iterator[SampledBatch]:
        parse = ArrayParser()
        good: list[tuple[int, int, NDArray[np.float64], NDArray[np.float64]]] = []
        rejected: list[Rejected] = []
        for item in rows.cells:
            if isinstance(item, Rejected):
                rejected.append(item)
                continue
            row, (id_cell, *arrays) = item
            source = UNKNOWN_SOURCE
            try:
                source = read_source_id(id_cell)
                flux, error = (_pick(n, parse, c) for n, c in zip(("flux", "flux_error"), arrays, strict=True))
                if not (np.isfinite(flux) & np.isfinite(error) & (error > 0)).any():
                    raise ValueError("no sample has a finite flux and a positive error")
            except ValueError as reason:
                rejected.append(Rejected(path.name, row, source, str(reason)))
                continue
            good.append((row, source, flux, error))
            if len(good) == batch_size:
                yield _assemble(good, rejected)
                good, rejected = [], []
        if good or rejected:
            yield _assemble(good, rejected)

    return batches()


def _pick(name: str, parse: ArrayParser, cell: object) -> NDArray[np.float64]:
    try:
        values = parse(cell)
    except ValueError as error:
        raise ValueError(f"{name} is {error}") from error
    if values is None:
        raise ValueError(f"{name} is missing")
    if len(values) != SAMPLED_GRID_NM.size:
        raise ValueError(f"{name} has {len(values)} values, not {SAMPLED_GRID_NM.size}")
    return values[PICKED] / FLUX_UNIT_SI


def _assemble(
    good: list[tuple[int, int, NDArray[np.float64], NDArray[np.float64]]], rejected: list[Rejected]
) -> SampledBatch:
    shape = (len(good), XP_GRID_NM.size)
    flux = np.array([g[2] for g in good], np.float64).reshape(shape)
    error = np.array([g[3] for g in good], np.float64).reshape(shape)
    present = np.isfinite(flux) & np.isfinite(error) & (error > 0)
    return SampledBatch(
        source_id=np.array([g[1] for g in good], np.int64),
        row=np.array([g[0] for g in good], np.int64),
        flux=np.where(present, flux, 0.0),
        error=np.where(present, error, 1.0),
        present=present,
        rejected=tuple(rejected),
    )


def calibrate_sampled(
    flux: NDArray[np.float64], error: NDArray[np.float64], present: NDArray[np.bool_]
) -> CalibratedXp:
    """Calibrate spectra that have errors but no correlations: implied correlation, error model, whitening.

    Args:
        flux: (star, 61) [1e-18 W m^-2 nm^-1].
        error: (star, 61) 1-sigma errors, same unit; any positive value where missing.
        present: (star, 61) which samples were measured.
    """
    correlation = implied_correlation()
    packed, floored = [], []
    for start in range(0, len(flux), BLOCK):
        block = slice(start, start + BLOCK)
        covariance = inflate(gaia_covariance(error[block], correlation), flux[block], XP_GRID_NM)
        whitening, low = whiten_packed(covariance, present[block])
        packed.append(whitening)
        floored.append(low)
    n_packed = XP_GRID_NM.size * (XP_GRID_NM.size + 1) // 2
    return CalibratedXp(
        flux=flux.astype(np.float32),
        whitening=np.concatenate(packed) if packed else np.zeros((0, n_packed), np.float32),
        present=present,
        floored=np.concatenate(floored) if floored else np.zeros(0, bool),
    )
