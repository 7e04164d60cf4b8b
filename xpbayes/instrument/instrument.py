"""The instrument that a spectrum's coefficients belong to: which release and basis functions, and the matrices of these.

An `InstrumentId` is what files say: star tables, models and catalogues hold one, and whatever meets must have the same.
An `Instrument` has the design matrices, too. Not here: where it comes from (`gaiaxpy.py`, `bases.py`).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.channels import XP_GRID_NM
from xpbayes.errors import InputError
from xpbayes.release import DEFAULT_RELEASE, RELEASES, Release, titles

ErrorShape = tuple[float, float, float]
Matrices = tuple[tuple[NDArray[np.float64], NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Of BP and of RP: (sample, coefficient) basis functions without merge weights, and (sample,) these weights."""
SIDES = ("BP", "RP")


@dataclass(frozen=True)
class InstrumentId:
    """What tells one instrument from another: the data release's short name, and three things of BP and of RP each."""

    release: str
    models: tuple[str, str]
    counts: tuple[int, int]  # of coefficients
    basis_ids: tuple[int | None, int | None]  # Gaia's numbers of the sets of basis functions; None where unknown

    def to_json(self) -> dict[str, Any]:
        """Plain data for a file's metadata."""
        return asdict(self)

    @classmethod
    def from_json(cls, about: dict[str, Any]) -> "InstrumentId":
        """Read what `to_json` wrote."""
        return cls(str(about["release"]), *(tuple(about[n]) for n in ("models", "counts", "basis_ids")))

    @property
    def title(self) -> str:
        """The release in words."""
        return titles([self.release])

    def require_same(self, other: "InstrumentId", mine: str, theirs: str) -> None:
        """Raise InputError unless both are the same instrument; `mine` and `theirs` say what they belong to."""
        if self == other:
            return
        if self.release != other.release:
            raise InputError(
                f"{theirs} is of {other.title} and {mine} of {self.title}; use what is of one release, or learn a "
                f"transfer between them with 'xpbayes transfer'"
            )
        name = next(n for n in ("models", "counts", "basis_ids") if getattr(self, n) != getattr(other, n))
        words = {"models": "instrument models", "counts": "numbers of coefficients", "basis_ids": "basis functions"}
        raise InputError(
            f"{theirs} and {mine} are of {self.title} with different {words[name]} ({getattr(other, name)} and "
            f"{getattr(self, name)}); prepare the stars again with one instrument"
        )


def default_id(release: Release = DEFAULT_RELEASE) -> InstrumentId:
    """The instrument of a release as its profile has it; models that are not known yet have no name."""
    bp, rp = release.bp, release.rp
    return InstrumentId(release.name, (bp.model or "", rp.model or ""), release.counts, (bp.basis_id, rp.basis_id))


DEFAULT_ID = default_id()


def same_release(one: str, other: str, mine: str, theirs: str) -> None:
    """Raise InputError unless both are the same release: the same source_id may be another star in another one."""
    if one != other:
        raise InputError(
            f"{theirs} is of {titles([other])} and {mine} of {titles([one])}, whose source_ids are not the same; use what "
            f"is of one release"
        )


@dataclass(frozen=True)
class Instrument:
    """An instrument that spectra can be calibrated with.

    `ln_error_shape` is that of BP and RP, ln of a coefficient's typical error against its order, c1 x + c2 x^2 + c0 with x
    from -1 to 1 over the coefficients. `matrices` makes basis functions [W m^-2 nm^-1 per coefficient unit] and weights for
    (sample,) wavelengths [nm].
    """

    about: InstrumentId
    ln_error_shape: tuple[ErrorShape, ErrorShape]
    matrices: Callable[[NDArray[np.float64]], Matrices]

    def sides(self) -> Matrices:
        """The matrices on the XP grid, made once; InputError where they are not what the instrument says of itself."""
        return _sides(self)

    def ln_errors(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(coefficient,) ln of typical errors of BP and of RP, up to a constant."""
        shapes = zip(self.about.counts, self.ln_error_shape, strict=True)
        orders = ((np.linspace(-1.0, 1.0, k), shape) for k, shape in shapes)
        bp, rp = (np.asarray(linear * x + quadratic * x**2 + last) for x, (linear, quadratic, last) in orders)
        return bp, rp


@lru_cache(maxsize=8)
def _sides(instrument: Instrument) -> Matrices:
    made = instrument.matrices(XP_GRID_NM)
    for name, count, (matrix, weight) in zip(SIDES, instrument.about.counts, made, strict=True):
        if matrix.shape != (XP_GRID_NM.size, count) or weight.shape != XP_GRID_NM.shape:
            raise InputError(
                f"the {name} instrument model of {instrument.about.title} has {matrix.shape[1]} basis functions where "
                f"{count} were expected; run 'xpbayes doctor'"
            )
    return made


def fits(known: tuple[int, int], counts: tuple[int, int]) -> bool:
    """Whether spectra with these numbers of coefficients can be of an instrument; 0 stands for a missing side."""
    return any(counts) and all(n in (0, k) for k, n in zip(known, counts, strict=True))


def release_with(counts: tuple[int, int]) -> Release | None:
    """The first release whose spectra have these numbers of coefficients, whether or not there is an instrument."""
    return next((r for r in RELEASES.values() if fits(r.counts, counts)), None)
