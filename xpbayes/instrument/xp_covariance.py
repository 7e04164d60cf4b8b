"""XP coefficients to sampled spectra: flux f = D c and covariance C = D C_c D^T, in the star table's own unit.

In: one `XpSide` for BP and one for RP (coefficients, errors, correlations). Out: flux, covariance and which samples
were measured (`sample_spectra`); or, through ZGR23's error model, the packed whitening factor (`calibrate`).
NumPy, float64: Gaia's covariance alone has a condition number of about 1e10.
Not here: file formats (`archive/xp_continuous.py`), the bases (`bases.py`), the error model (`error_model.py`).
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xpbayes.channels import BP_RP_BOUNDARY_NM, XP_GRID_NM
from xpbayes.instrument.bases import design_matrices, implied_correlation, instrument_of
from xpbayes.instrument.error_model import gaia_covariance, inflate
from xpbayes.instrument.instrument import Instrument
from xpbayes.instrument.whitening import whiten_packed

ErrorScaling = Literal["published", "divided"]
"""How coefficient errors enter C_c: as published, or divided by bp/rp_standard_deviation (ZGR23 footnote 2: not done)."""

FLUX_UNIT_SI = 1e-18
"""The internal flux unit [W m^-2 nm^-1]."""

BLOCK = 32
"""Stars per block: 32 x (61 x 61) doubles are 1 MB, small enough for the cache. Blocks of 512 are 3x slower."""


class _Scratch(threading.local):
    """Arrays that the work on one block of stars needs, kept for the next block.

    The first touch of new memory costs more than the arithmetic. What one block leaves here is gone with the next.
    """

    def __init__(self) -> None:
        self._held: dict[str, NDArray[np.float64]] = {}

    def array(self, name: str, *shape: int) -> NDArray[np.float64]:
        """An array of that shape with anything in it; the same memory for the same name."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.size < size:
            held = self._held[name] = np.empty(size)
        return held[:size].reshape(shape)


_KEPT = _Scratch()


@dataclass(frozen=True)
class XpSide:
    """BP or RP of a batch of sources, as Gaia publishes it."""

    coefficient: NDArray[np.float64]  # (star, k) [e-/s-like units of the bases]; zeros where the side is missing
    error: NDArray[np.float64]  # (star, k) published 1-sigma errors; ones where missing
    correlation: (
        NDArray[np.float64] | None
    )  # (star, k(k-1)/2) strict lower triangle, row by row; None: the file has none
    standard_deviation: NDArray[np.float64]  # (star,) of the least-squares solution; NaN where unknown
    present: NDArray[np.bool_]  # (star,) False where the source has no such side
    basis_id: NDArray[np.int64] | None = None  # (star,) of the set of basis functions, -1 unknown; None: nothing said

    def __len__(self) -> int:
        return len(self.present)

    @property
    def n_coefficients(self) -> int:
        """Coefficients per source; 0 where no source of the batch has this side."""
        return self.coefficient.shape[1]

    def take(self, index: NDArray[np.bool_] | NDArray[np.int64] | slice) -> "XpSide":
        """Select sources."""
        return XpSide(*(None if values is None else values[index] for values in vars(self).values()))  # type: ignore[arg-type]


@dataclass(frozen=True)
class _SideDesign:
    """The rows of D that one side reaches."""

    rows: slice  # samples of the grid with any weight
    matrix: NDArray[np.float64]  # (row, k) D with merge weights [1e-18 W m^-2 nm^-1 per coefficient unit]
    alone: NDArray[
        np.float64
    ]  # (row,) undoes merge weights where the other side is missing; 0 where one does not count


@lru_cache(maxsize=8)
def _side_designs(instrument: Instrument) -> tuple[_SideDesign, _SideDesign]:
    is_bp = XP_GRID_NM < BP_RP_BOUNDARY_NM
    weights = [weight for _, weight in instrument.sides()]
    sides = []
    for matrix, weight, own in zip(design_matrices(instrument), weights, (is_bp, ~is_bp), strict=True):
        reached = np.flatnonzero(weight > 0)
        rows = slice(int(reached[0]), int(reached[-1]) + 1)
        alone = np.where(own[rows], 1.0 / np.where(own[rows], weight[rows], 1.0), 0.0)
        sides.append(_SideDesign(rows, np.ascontiguousarray(matrix[rows] / FLUX_UNIT_SI), alone))
    return sides[0], sides[1]


@lru_cache(maxsize=8)
def _triangle_index(k: int) -> NDArray[np.intp]:
    """(k * k,) where each entry of the full correlation matrix sits in its strict lower triangle; any place for ones."""
    index = np.zeros((k, k), np.intp)
    row, column = np.tril_indices(k, -1)
    index[row, column] = index[column, row] = np.arange(row.size)
    return index.ravel()


def coefficient_covariance(
    side: XpSide, scaling: ErrorScaling = "published", scratch: _Scratch | None = None
) -> NDArray[np.float64]:
    """(star, k, k) C_c from errors and packed correlations, in new memory if there is no scratch.

    The identity where the side is missing. Without correlations it is diagonal: the samples' correlations then come from
    the bases alone.
    """
    n, k = side.error.shape
    error = side.error
    if scaling == "divided":
        error = error / np.where(side.present, side.standard_deviation, 1.0)[:, None]
    flat = (scratch or _Scratch()).array("coefficients", n, k * k)
    if side.correlation is None:
        flat.fill(0.0)
    else:
        np.take(side.correlation, _triangle_index(k), axis=1, out=flat, mode="clip")  # "raise" would make a copy
    flat[:, :: k + 1] = 1.0
    full = flat.reshape(n, k, k)
    full *= error[:, :, None]
    full *= error[:, None, :]
    return full


def sample_spectra(
    bp: XpSide,
    rp: XpSide,
    scaling: ErrorScaling = "published",
    instrument: Instrument | None = None,
    scratch: _Scratch | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Sample spectra and their full covariance: f = D c, C = D C_c D^T (METHOD 2).

    A source without BP has no samples below 640 nm, one without RP none above; the sample where both overlap is then
    the remaining side's own, without merge weight, as GaiaXPy has it.

    Args:
        bp, rp: both sides of the same sources.
        scaling: how errors enter, see `ErrorScaling`.
        instrument: whose coefficients; DR3's if None.
        scratch: where the covariance is put; new memory if None.

    Returns:
        (star, sample) flux [1e-18 W m^-2 nm^-1], (star, sample, sample) covariance [same, squared], both 0 where
        missing, and (star, sample) whether the sample was measured.
    """
    scratch = scratch or _Scratch()
    n, m = len(bp), XP_GRID_NM.size
    flux, covariance = np.zeros((n, m)), scratch.array("samples", n, m, m)
    covariance.fill(0.0)
    present = np.zeros((n, m), bool)
    designs = _side_designs(instrument or instrument_of())
    for side, other, design in zip((bp, rp), (rp, bp), designs, strict=True):
        if not side.present.any():
            continue
        rows, (reach, k) = design.rows, design.matrix.shape
        own = side.coefficient @ design.matrix.T
        # One product over the whole block, then one small product a star: three times faster than two a star.
        half = scratch.array("half", n * k, reach)
        np.matmul(coefficient_covariance(side, scaling, scratch).reshape(-1, k), design.matrix.T, out=half)
        own_covariance = scratch.array("side", n, reach, reach)
        np.matmul(design.matrix, half.reshape(n, k, reach), out=own_covariance)
        reached = np.broadcast_to(side.present[:, None], own.shape)
        if not other.present.all():
            factor = np.where(other.present[:, None], 1.0, design.alone)
            own = own * factor
            own_covariance *= factor[:, :, None]
            own_covariance *= factor[:, None, :]
            reached = reached & (factor > 0)
        if not side.present.all():
            own = np.where(side.present[:, None], own, 0.0)
            own_covariance[~side.present] = 0.0
        flux[:, rows] += own
        covariance[:, rows, rows] += own_covariance
        present[:, rows] |= reached
    return flux, covariance, present


@dataclass(frozen=True)
class CalibratedXp:
    """XP samples as the star table stores them."""

    flux: NDArray[np.float32]  # (star, sample) float32 [1e-18 W m^-2 nm^-1], 0 where missing
    whitening: NDArray[np.float32]  # (star, packed) float32 packed lower triangles, see `schema`
    present: NDArray[np.bool_]  # (star, sample) whether the sample was measured
    floored: NDArray[np.bool_]  # (star,) whether ZGR23's eigenvalue floor was needed

    @classmethod
    def empty(cls, n: int) -> "CalibratedXp":
        """Room for n stars."""
        m = XP_GRID_NM.size
        flux, whitening = np.empty((n, m), np.float32), np.empty((n, m * (m + 1) // 2), np.float32)
        return cls(flux, whitening, np.empty((n, m), bool), np.empty(n, bool))

    def put(
        self, block: slice, flux: NDArray[np.float64], covariance: NDArray[np.float64], present: NDArray[np.bool_]
    ) -> None:
        """Inflate (ZGR23 Eq. 2) and whiten (Eq. 3) a block of stars, and keep them in their place."""
        inflated = inflate(covariance, flux, XP_GRID_NM, out=_KEPT.array("inflated", *covariance.shape))
        self.floored[block] = whiten_packed(inflated, present, out=self.whitening[block])[1]
        self.flux[block], self.present[block] = flux, present

    def take(self, index: NDArray[np.bool_] | slice) -> "CalibratedXp":
        """Select stars; a slice copies nothing."""
        return CalibratedXp(*(values[index] for values in vars(self).values()))

    @classmethod
    def join(cls, parts: Sequence["CalibratedXp"]) -> "CalibratedXp":
        """Put stars one after the other."""
        return cls(*map(np.concatenate, zip(*(vars(part).values() for part in parts), strict=True)))


def calibrate(
    bp: XpSide, rp: XpSide, scaling: ErrorScaling = "published", instrument: Instrument | None = None
) -> CalibratedXp:
    """Calibrate coefficients all the way: sample, inflate (ZGR23 Eq. 2), whiten (Eq. 3), pack.

    Arguments as for `sample_spectra`.
    """
    out = CalibratedXp.empty(len(bp))
    for start in range(0, len(bp), BLOCK):
        block = slice(start, start + BLOCK)
        out.put(block, *sample_spectra(bp.take(block), rp.take(block), scaling, instrument, _KEPT))
    return out


def calibrate_sampled(
    flux: NDArray[np.float64],
    error: NDArray[np.float64],
    present: NDArray[np.bool_],
    instrument: Instrument | None = None,
) -> CalibratedXp:
    """Calibrate (star, 61) spectra that have errors but no correlations: by those that the instrument's bases imply.

    Flux and 1-sigma errors in 1e-18 W m^-2 nm^-1, any positive error where missing; DR3's instrument if None.
    """
    correlation = implied_correlation(instrument)
    out = CalibratedXp.empty(len(flux))
    for start in range(0, len(flux), BLOCK):
        block = slice(start, start + BLOCK)
        out.put(block, flux[block], gaia_covariance(error[block], correlation), present[block])
    return out
