"""XP spectra of either product as calibrated rows of a star table: the one door that `prepare` and `infer` use.

In: any file that `xp_continuous` or `xp_sampled` reads. Out: a stream of `XpRows`, flat in memory.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.columns import DEFAULT, ReadOptions
from xpbayes.archive.tables import column_names
from xpbayes.archive.xp_continuous import UNKNOWN_BASIS, XpBatch, read_xp_continuous
from xpbayes.archive.xp_sampled import read_xp_sampled
from xpbayes.data.rejected import Rejected
from xpbayes.errors import InputError
from xpbayes.instrument.bases import instrument_for, instrument_of, missing_instrument
from xpbayes.instrument.instrument import SIDES, Instrument, InstrumentId, release_with
from xpbayes.instrument.xp_covariance import CalibratedXp, ErrorScaling, XpSide, calibrate, calibrate_sampled
from xpbayes.release import DEFAULT_RELEASE

Product = Literal["continuous", "sampled"]


@dataclass(frozen=True)
class XpRows:
    """Calibrated XP spectra of consecutive rows."""

    source_id: NDArray[np.int64]  # (star,)
    row: NDArray[np.int64]  # (star,) row numbers in the file, the first is 1
    xp: CalibratedXp
    rejected: tuple[Rejected, ...]  # rows met on the way that could not be used
    product: Product  # which of Gaia's two they come from
    instrument: InstrumentId  # which one they were calibrated with

    def __len__(self) -> int:
        return len(self.source_id)

    def take(self, index: NDArray[np.bool_] | slice) -> "XpRows":
        """Select stars; a slice copies nothing."""
        return replace(self, source_id=self.source_id[index], row=self.row[index], xp=self.xp.take(index))


def product_of(names: Iterable[str]) -> Product | None:
    """Tell continuous from sampled spectra by a file's columns; None if they are neither's."""
    lower = {n.lower() for n in names}
    if any(n.startswith(("bp_coef", "rp_coef", "bpspec/", "rpspec/")) for n in lower):
        return "continuous"
    if any(n in ("flux", "xp_flux", "xp.flux") or re.match(r"(xp_)?flux_(error|\d)", n) for n in lower):
        return "sampled"
    return None


def xp_product(path: str | Path) -> Product:
    """Which spectra a file holds; InputError if it has none."""
    product = product_of(column_names(Path(path)))
    if product is not None:
        return product
    raise InputError(
        f"{path}: has neither coefficients (bp_coefficients, rp_coefficients) nor sampled fluxes (flux, flux_error); "
        f"name a file of Gaia XP spectra"
    )


def read_xp(path: str | Path, scaling: ErrorScaling = "published", options: ReadOptions = DEFAULT) -> Iterator[XpRows]:
    """Read and calibrate a file of XP spectra, batch by batch.

    Its columns tell the product; `scaling` is how coefficient errors enter, of continuous spectra only. Over all that is
    yielded, rows + rejected rows = rows of the file.

    Raises:
        InputError: the file cannot be read, or its spectra are of a release for which there is no instrument.
    """
    path = Path(path)
    if xp_product(path) == "continuous":
        return _calibrated(path, read_xp_continuous(path, options=options), scaling, options.release)
    instrument = instrument_of(options.release or DEFAULT_RELEASE.name)
    return (
        XpRows(
            s.source_id,
            s.row,
            calibrate_sampled(s.flux, s.error, s.present, instrument),
            s.rejected,
            "sampled",
            instrument.about,
        )
        for s in read_xp_sampled(path, options=options)
    )


def _calibrated(path: Path, batches: Iterator[XpBatch], scaling: ErrorScaling, release: str | None) -> Iterator[XpRows]:
    """Calibrate batches with one instrument: the named release's, or the one that the file's first spectra are of."""
    instrument = None if release is None else instrument_of(release)
    for batch in batches:
        instrument = instrument or _instrument_of(path, batch)
        yield _calibrate(batch, scaling, path.name, instrument or instrument_of())


def _instrument_of(path: Path, batch: XpBatch) -> Instrument | None:
    """The instrument that a batch's coefficients are of; None where they tell nothing, InputError if there is none."""
    ids = tuple(_common_basis(side) for side in (batch.bp, batch.rp))
    instrument = instrument_for(batch.counts, (ids[0], ids[1]))
    if instrument is not None or not any(batch.counts):
        return instrument
    release = release_with(batch.counts)
    if release is not None or batch.later:
        raise missing_instrument(str(path), batch.counts, release)
    return None


def instrument_of_file(path: str | Path, options: ReadOptions = DEFAULT) -> InstrumentId:
    """Which instrument a file's spectra will be calibrated with, from its beginning; InputError as `read_xp`."""
    path = Path(path)
    if options.release is not None or xp_product(path) == "sampled":
        return instrument_of(options.release or DEFAULT_RELEASE.name).about
    found = (_instrument_of(path, batch) for batch in read_xp_continuous(path, options=options))
    return next((instrument for instrument in found if instrument is not None), instrument_of()).about


def _common_basis(side: XpSide) -> int | None:
    """The set of basis functions that most sources of a side have; None where it is unknown."""
    if side.basis_id is None or not (known := side.basis_id[side.present & (side.basis_id != UNKNOWN_BASIS)]).size:
        return None
    return int(np.median(known))


def _calibrate(batch: XpBatch, scaling: ErrorScaling, name: str, instrument: Instrument) -> XpRows:
    """Calibrate one batch; rows that the instrument model cannot take are rejected."""
    reason = np.full(len(batch), "", dtype="U120")
    sides: list[XpSide] = []
    about = instrument.about
    expected = zip(SIDES, (batch.bp, batch.rp), about.counts, about.basis_ids, strict=True)
    for side_name, side, count, basis_id in expected:
        if side.n_coefficients != count:
            text = f"{side.n_coefficients} {side_name} coefficients where the instrument model has {count}"
            reason[side.present & (reason == "")] = text
            side = _absent(len(batch), count)
        elif basis_id is not None and side.basis_id is not None:
            others = side.present & (side.basis_id != basis_id) & (side.basis_id != UNKNOWN_BASIS)
            for i in np.flatnonzero(others & (reason == "")):
                reason[i] = (
                    f"{side_name} basis functions {side.basis_id[i]} where the instrument model of {about.title} has "
                    f"{basis_id}"
                )
        if scaling == "divided":
            unknown = side.present & ~(side.standard_deviation > 0)
            reason[unknown & (reason == "")] = f"no {side_name} standard deviation to divide the errors by"
        sides.append(side)
    kept = replace(batch, bp=sides[0], rp=sides[1]).without(reason, name)
    xp = calibrate(kept.bp, kept.rp, scaling, instrument)
    return XpRows(kept.source_id, kept.row, xp, kept.rejected, "continuous", about)


def _absent(n: int, k: int) -> XpSide:
    return XpSide(np.zeros((n, k)), np.ones((n, k)), None, np.full(n, np.nan), np.zeros(n, bool))
