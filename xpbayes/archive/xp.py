"""XP spectra of either product as calibrated rows of a star table: the one door that `prepare` and `infer` use.

In: any file that `xp_continuous` or `xp_sampled` reads. Out: a stream of `XpRows`, flat in memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.columns import DEFAULT, ReadOptions
from xpbayes.archive.rows import column_names
from xpbayes.archive.xp_continuous import XpBatch, read_xp_continuous
from xpbayes.archive.xp_sampled import calibrate_sampled, read_xp_sampled
from xpbayes.data.rejected import Rejected
from xpbayes.errors import InputError
from xpbayes.instrument.xp_covariance import CalibratedXp, ErrorScaling, XpSide, calibrate, coefficient_counts

Product = Literal["continuous", "sampled"]


@dataclass(frozen=True)
class XpRows:
    """Calibrated XP spectra of consecutive rows.

    Attributes:
        source_id: (star,) int64.
        row: (star,) row numbers in the file, the first is 1.
        xp: flux, whitening and which samples were measured.
        rejected: rows met on the way that could not be used.
        product: which of Gaia's two they come from.
    """

    source_id: NDArray[np.int64]
    row: NDArray[np.int64]
    xp: CalibratedXp
    rejected: tuple[Rejected, ...]
    product: Product = "continuous"

    def __len__(self) -> int:
        return len(self.source_id)


def xp_product(path: str | Path) -> Product:
    """Tell continuous from sampled spectra by the file's columns; InputError if it has neither."""
    names = {n.lower() for n in column_names(Path(path))}
    if any(n.startswith(("bp_coef", "rp_coef", "bpspec/", "rpspec/")) for n in names):
        return "continuous"
    if any(n in ("flux", "xp_flux", "xp.flux") or n.startswith(("flux_", "xp_flux_")) for n in names):
        return "sampled"
    raise InputError(
        f"{path}: has neither coefficients (bp_coefficients, rp_coefficients) nor sampled fluxes (flux, flux_error); "
        f"name a file of Gaia XP spectra"
    )


def read_xp(path: str | Path, scaling: ErrorScaling = "published", options: ReadOptions = DEFAULT) -> Iterator[XpRows]:
    """Read and calibrate a file of XP spectra, batch by batch.

    Args:
        path: the file; its columns tell the product.
        scaling: how coefficient errors enter (continuous spectra only).
        options: what the user says about the file.

    Yields:
        `XpRows`; over all of them, rows + rejected rows = rows of the file.
    """
    path = Path(path)
    if xp_product(path) == "continuous":
        batches = read_xp_continuous(path, options=options)
        return (_calibrate(batch, scaling, path.name) for batch in batches)
    spectra = read_xp_sampled(path, options=options)
    return (
        XpRows(s.source_id, s.row, calibrate_sampled(s.flux, s.error, s.present), s.rejected, "sampled")
        for s in spectra
    )


def _calibrate(batch: XpBatch, scaling: ErrorScaling, name: str) -> XpRows:
    """Calibrate one batch; rows that the instrument model cannot take are rejected."""
    reason = np.full(len(batch), "", dtype="U80")
    sides: list[XpSide] = []
    for side_name, side, count in zip(("BP", "RP"), (batch.bp, batch.rp), coefficient_counts(), strict=True):
        if side.n_coefficients != count:
            text = f"{side.n_coefficients} {side_name} coefficients where the instrument model has {count}"
            reason[side.present & (reason == "")] = text
            side = _absent(len(batch), count)
        if scaling == "divided":
            unknown = side.present & ~(side.standard_deviation > 0)
            reason[unknown & (reason == "")] = f"no {side_name} standard deviation to divide the errors by"
        sides.append(side)
    keep = reason == ""
    if keep.all():
        return XpRows(batch.source_id, batch.row, calibrate(sides[0], sides[1], scaling), batch.rejected)
    bad = tuple(
        Rejected(name, int(batch.row[i]), int(batch.source_id[i]), str(reason[i])) for i in np.flatnonzero(~keep)
    )
    return XpRows(
        batch.source_id[keep],
        batch.row[keep],
        calibrate(sides[0].take(keep), sides[1].take(keep), scaling),
        (*batch.rejected, *bad),
    )


def _absent(n: int, k: int) -> XpSide:
    return XpSide(np.zeros((n, k)), np.ones((n, k)), None, np.full(n, np.nan), np.zeros(n, bool))
