"""Gaia XP_CONTINUOUS spectra: coefficients, errors and correlations, from every format that users hold.

Bulk ``XpContinuousMeanSpectrum_*.csv.gz``, CSV, ECSV, FITS, VOTable, Avro as GaiaXPy reads it, Parquet and HATS with
list columns, HDF5 mirrors; arrays in one cell or flattened over columns ``bp_coeff_0, bp_coeff_1, ...``.
Out: a stream of `XpBatch`. How many coefficients there are, the file says. A source may lack BP or RP; a row that
cannot be used is quarantined. Not here: what coefficients mean (`instrument/xp_covariance.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.cells import ArrayParser, Cell, integer, number
from xpbayes.archive.columns import DEFAULT, SOURCE_ID, Column, ReadOptions
from xpbayes.archive.tables import Rows, open_rows, row_source_id
from xpbayes.data.rejected import UNKNOWN_SOURCE, Rejected
from xpbayes.errors import InputError
from xpbayes.instrument.xp_covariance import XpSide

BATCH_SIZE = 128
"""Rows per batch: 3,190 doubles a row, 3 MB, which the processor's cache can hold."""

UNKNOWN_BASIS = -1
CORRELATION_TOLERANCE = 1e-5
"""Published correlations are float32: this far beyond 1 is rounding."""

SPECTRA_ID = replace(SOURCE_ID, aliases=(*SOURCE_ID.aliases, "sourceId"), from_name=True)
"""Where files of spectra keep the star: a column, a PARAM, or the file's name."""
COEFFICIENT_UNIT = "1 / s"
"""Electrons a second, where a file declares a unit."""


def _side_columns(side: str) -> tuple[Column, ...]:
    solution = f"{side}Spec/solution"
    return (
        Column(f"{side}_n_parameters", "integer", (f"{solution}/numberOfParameters",)),
        Column(
            f"{side}_coefficients",
            "array",
            (f"{side}_coeffs", f"{solution}/parameters"),
            flat=(f"{side}_coeff_",),
            unit=COEFFICIENT_UNIT,
        ),
        Column(
            f"{side}_coefficient_errors",
            "array",
            (f"{side}_coeff_errors", f"{side}_errors"),
            flat=(f"e_{side}_coeff_", f"{side}_coeff_err_"),
            unit=COEFFICIENT_UNIT,
        ),
        Column(f"{side}_coefficient_correlations", "array", (f"{side}_correlations",)),
        Column(f"{side}_coefficient_covariances", "array", (f"{solution}/covariance",)),
        Column(f"{side}_standard_deviation", aliases=(f"{solution}/standardDeviation",)),
        Column(f"{side}_basis_function_id", "integer", (f"{side}Spec/basisFunctionSetDefId",)),
    )


COLUMNS = (SPECTRA_ID, *_side_columns("bp"), *_side_columns("rp"))
COEFFICIENTS = (
    ("bp_coefficients", "rp_coefficients"),
    "has neither bp_coefficients nor rp_coefficients; name a file of continuous XP spectra",
)
LATER_RELEASE = "spec/solution/sqrtcov"
"""A field of Gaia's internal records of releases after DR3, whose bases are other ones."""


@dataclass(frozen=True)
class XpBatch:
    """Consecutive rows of a file, all with the same coefficient counts."""

    source_id: NDArray[np.int64]  # (star,) int64
    row: NDArray[np.int64]  # (star,) row numbers in the file, the first is 1
    bp: XpSide  # BP of every source
    rp: XpSide  # RP of every source
    rejected: tuple[Rejected, ...]  # rows met on the way that could not be used
    later: bool = False  # the file holds records of a release after DR3

    def __len__(self) -> int:
        return len(self.source_id)

    def without(self, reason: NDArray[np.str_], file: str) -> "XpBatch":
        """The rows for which there is no (star,) reason why they cannot be used; the others are rejected with it."""
        keep = reason == ""
        if keep.all():
            return self
        bad = [Rejected(file, int(self.row[i]), int(self.source_id[i]), str(reason[i])) for i in np.flatnonzero(~keep)]
        source_id, row = self.source_id[keep], self.row[keep]
        rejected = (*self.rejected, *bad)
        return XpBatch(source_id, row, self.bp.take(keep), self.rp.take(keep), rejected, self.later)

    @property
    def counts(self) -> tuple[int, int]:
        """Coefficients of BP and RP; 0 where no source has that side."""
        return self.bp.n_coefficients, self.rp.n_coefficients


@dataclass(frozen=True)
class _Solution:
    """One side of one row; `correlation` is None where there is none."""

    coefficient: NDArray[np.float64]
    error: NDArray[np.float64]
    correlation: NDArray[np.float64] | None
    standard_deviation: float
    basis_id: int = UNKNOWN_BASIS


_Sides = tuple[_Solution | None, _Solution | None]
_Row = tuple[int, int, _Sides]
"""Its number, the source_id, BP and RP."""


def read_xp_continuous(
    path: str | Path, batch_size: int = BATCH_SIZE, options: ReadOptions = DEFAULT
) -> Iterator[XpBatch]:
    """Read a file of continuous XP spectra, batch by batch; a batch ends early where coefficient counts change.

    Over all `XpBatch`es, rows + rejected rows = rows of the file. InputError: no such file, not of that format, or no
    coefficients and errors in it.
    """
    path = Path(path)
    rows = open_rows(path, COLUMNS, options, COEFFICIENTS)
    for side in ("bp", "rp"):
        if f"{side}_coefficients" in rows.found and not (
            {f"{side}_coefficient_errors", f"{side}_coefficient_covariances"} & rows.found
        ):
            raise InputError(
                f"{path}: has {side}_coefficients but no {side}_coefficient_errors; get the table with its errors"
            )
    return _batches(path, rows, batch_size)


def _batches(path: Path, rows: Rows, batch_size: int) -> Iterator[XpBatch]:
    parse = ArrayParser()
    later = any(n.lower().endswith(LATER_RELEASE) for n in rows.names)
    held: list[_Row] = []
    rejected: list[Rejected] = []
    like: _Sides = (None, None)
    for places, table in rows.tables:
        for place in places:
            if place is not None and place.factor != 1.0:
                raise InputError(f"{path}: column {place.names[0]} is not in electrons a second; convert it")
        for item in table:
            if isinstance(item, Rejected):
                rejected.append(item)
                continue
            row, cells = item
            source = UNKNOWN_SOURCE
            try:
                source = row_source_id(cells[0], places[0], path)
                sides = (_solution("bp", cells[1:8], parse), _solution("rp", cells[8:15], parse))
                if sides[0] is None and sides[1] is None:
                    raise ValueError("neither BP nor RP coefficients")
            except InputError:
                raise
            except ValueError as error:
                rejected.append(Rejected(path.name, row, source, str(error)))
                continue
            if len(held) == batch_size or not all(map(_alike, sides, like)):
                yield _batch(path.name, held, like, rejected, later)
                held, rejected, like = [], [], (None, None)
            held.append((row, source, sides))
            like = (like[0] or sides[0], like[1] or sides[1])
    if held or rejected:
        yield _batch(path.name, held, like, rejected, later)


def _alike(one: _Solution | None, other: _Solution | None) -> bool:
    """Whether arrays are as long, where there are any."""
    if one is None or other is None:
        return True
    same_length = len(one.coefficient) == len(other.coefficient)
    return same_length and (one.correlation is None) == (other.correlation is None)


def _solution(side: str, cells: list[Cell], parse: ArrayParser) -> _Solution | None:
    """Read one side of one row; None where it is missing; ValueError with the reason where it is unusable."""
    n_cell, coefficient_cell, error_cell, correlation_cell, covariance_cell, deviation_cell, basis_cell = cells
    coefficient = parse.named(f"{side}_coefficients", coefficient_cell)
    if coefficient is None:
        return None
    try:
        announced = integer(n_cell)
        deviation = number(deviation_cell)
        basis_id = integer(basis_cell)
    except ValueError as error:
        names = ", ".join(f"{side}_{n}" for n in ("n_parameters", "standard_deviation", "basis_function_id"))
        raise ValueError(f"one of {names} is {error}") from error
    k = len(coefficient) if announced is None else announced
    _expect(side, "coefficients", coefficient, k)
    sigma = parse.named(f"{side}_coefficient_errors", error_cell)
    correlation = parse.named(f"{side}_coefficient_correlations", correlation_cell)
    covariance = parse.named(f"{side}_coefficient_covariances", covariance_cell)
    if sigma is None and covariance is not None:
        sigma, correlation = _from_covariance(side, covariance, k, deviation)
    if sigma is None:
        raise ValueError(f"{side}_coefficient_errors are missing")
    _expect(side, "coefficient_errors", sigma, k)
    if correlation is not None:
        if len(correlation) == k * k:
            correlation = correlation.reshape(k, k)[np.tril_indices(k, -1)]
        _expect(side, "coefficient_correlations", correlation, k * (k - 1) // 2)
    return _Solution(coefficient, sigma, correlation, deviation, UNKNOWN_BASIS if basis_id is None else basis_id)


def _expect(side: str, what: str, values: NDArray[np.float64], count: int) -> None:
    if len(values) != count:
        raise ValueError(f"{side}_{what} has {len(values)} values, not {count}")


def _from_covariance(
    side: str, values: NDArray[np.float64], k: int, deviation: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Errors and packed correlations of a covariance that was scaled by 1 / standard deviation squared."""
    row, column = np.tril_indices(k)
    if len(values) == k * k:
        values = values.reshape(k, k)[row, column]
    _expect(side, "coefficient_covariances", values, k * (k + 1) // 2)
    if not deviation > 0:
        raise ValueError(f"{side}_standard_deviation is missing, and the covariances are in its units")
    variance = values[row == column]
    if not (variance > 0).all():
        raise ValueError(f"{side}_coefficient_covariances has a variance that is not positive")
    sigma = np.sqrt(variance)
    strict = row != column
    return sigma * deviation, values[strict] / (sigma[row[strict]] * sigma[column[strict]])


def _batch(file: str, held: list[_Row], like: _Sides, rejected: list[Rejected], later: bool) -> XpBatch:
    """Put rows of equal counts together, less those with values that no covariance can hold; `like` is any of them.

    Arrays made at once and filled row by row were slower: their memory is new each time, and its first touch costs more
    than all the copying.
    """
    row, source_id = (np.array([of[i] for of in held], np.int64) for i in (0, 1))
    bp, rp = (_side([sides[i] for _, _, sides in held], like[i]) for i in (0, 1))
    reason = np.full(len(held), "", dtype="U80")
    for name, side in (("bp", bp), ("rp", rp)):
        for what, bad in _faults(side):
            if bad.any():  # all at once, because none is the common case
                reason[(reason == "") & bad & side.present] = f"{name}_{what}"
    batch = XpBatch(source_id, row, bp, rp, tuple(rejected), later).without(reason, file)
    return replace(batch, rejected=tuple(sorted(batch.rejected, key=lambda r: r.row)))


def _side(solutions: Sequence[_Solution | None], like: _Solution | None) -> XpSide:
    """One side of all rows, with zeros and unit errors where a row has none; `like` is any that there is."""
    k = 0 if like is None else len(like.coefficient)
    correlated = like is not None and like.correlation is not None
    none = _Solution(np.zeros(k), np.ones(k), np.zeros(k * (k - 1) // 2) if correlated else None, np.nan)
    rows = [none if solution is None else solution for solution in solutions]
    return XpSide(
        coefficient=np.array([r.coefficient for r in rows]).reshape(len(rows), k),
        error=np.array([r.error for r in rows]).reshape(len(rows), k),
        correlation=np.array([r.correlation for r in rows]) if correlated else None,
        standard_deviation=np.array([r.standard_deviation for r in rows], np.float64),
        present=np.array([solution is not None for solution in solutions], bool),
        basis_id=np.array([r.basis_id for r in rows], np.int64),
    )


def _faults(side: XpSide) -> list[tuple[str, NDArray[np.bool_]]]:
    with np.errstate(invalid="ignore"):
        faults = [
            ("coefficients has a value that is not finite", np.asarray(~np.isfinite(side.coefficient).all(axis=1))),
            ("coefficient_errors has a value that is not finite", np.asarray(~np.isfinite(side.error).all(axis=1))),
            ("coefficient_errors has a value that is not positive", np.asarray((side.error <= 0).any(axis=1))),
        ]
        if side.correlation is not None:
            # Written so that NaN fails too, and without a copy of the largest array.
            high, low = side.correlation.max(axis=1, initial=0.0), side.correlation.min(axis=1, initial=0.0)
            inside = (high <= 1.0 + CORRELATION_TOLERANCE) & (low >= -1.0 - CORRELATION_TOLERANCE)
            faults.append(("coefficient_correlations has a value outside [-1, 1]", ~inside))
    return faults
