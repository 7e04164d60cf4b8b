"""The table of spectra: what the archive knows of some stars, in NumPy, before it becomes a batch for the mathematics.

A `Spectra` keeps 64-bit source_ids, coordinates, labels and quality columns; `Spectra.stars()` gives the float32 batch.
A star that no likelihood can use stays in the table with a reason (`problems`). Its file is `spectra_file.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from xpbayes.channels import Channels
from xpbayes.data.join import repeated_ids
from xpbayes.data.stars import Stars, parallax_doubt
from xpbayes.device import prepare_device
from xpbayes.errors import InputError
from xpbayes.instrument.instrument import DEFAULT_ID, InstrumentId
from xpbayes.instrument.whitening import unpack

OK = "ok"
MATRICES = ("flux", "xp_whitening", "band_inverse_error")
"""Arrays of two dimensions in a `Spectra`."""
FLAT = 1e-3
"""Relative range of the XP samples below which a spectrum is a constant; the least of the 10,000 bundled stars is 0.22."""
STARS_AT_ONCE = 4096
"""Stars whose errors are worked out together: 120 MB."""


@dataclass(frozen=True)
class Cut:
    """One selection, the rule in words, and how many stars it removed and left."""

    what: str
    removed: int
    left: int


@dataclass(frozen=True, repr=False, eq=False)  # arrays have no one answer to whether they are the same
class Spectra:
    """Stars with everything the archive knows about them.

    Attributes:
        channels: the channel set of `flux`.
        label_names: stellar labels, Teff first.
        source_id: (star,) int64, of the data release of `instrument`.
        flux: (star, channel) float32 [1e-18 W m^-2 nm^-1].
        xp_whitening: (star, packed) float32, see `schema`.
        band_inverse_error: (star, band) float32.
        columns: every other scalar column, (star,) each; missing floats are NaN.
        cuts: the selections that led to this table.
        provenance: where it came from and what was assumed, in words.
        extra_units: units of columns that the schema does not know.
        instrument: what the XP samples were calibrated with.
    """

    channels: Channels
    label_names: tuple[str, ...]
    source_id: NDArray[np.int64]
    flux: NDArray[np.float32]
    xp_whitening: NDArray[np.float32]
    band_inverse_error: NDArray[np.float32]
    columns: dict[str, NDArray[Any]]
    cuts: tuple[Cut, ...] = ()
    provenance: dict[str, str] = field(default_factory=dict)
    extra_units: dict[str, str] = field(default_factory=dict)
    instrument: InstrumentId = DEFAULT_ID

    def __len__(self) -> int:
        return len(self.source_id)

    def column(self, name: str) -> NDArray[np.float64]:
        """Return a float column, all NaN if the table has none of that name."""
        if name not in self.columns:
            return np.full(len(self), np.nan)
        return np.asarray(self.columns[name], dtype=np.float64)

    def is_measured(self, name: str) -> NDArray[np.bool_]:
        """(star,) which stars have a finite value and a finite error of that name."""
        return np.isfinite(self.column(name)) & np.isfinite(self.column(f"{name}_error"))

    def labels(self, names: Sequence[str] | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (star, label) labels and errors in internal units, NaN where missing; all of the table's if None."""
        names = self.label_names if names is None else names
        value, error = (np.stack([self.column(n + end) for n in names], axis=1) for end in ("", "_error"))
        return value, error

    def channel_present(self) -> NDArray[np.bool_]:
        """(star, channel) which channels carry weight."""
        n = self.channels.n_xp
        diagonal = np.cumsum(np.arange(1, n + 1)) - 1  # positions of the diagonal in the packed triangle
        return np.concatenate([self.xp_whitening[:, diagonal], self.band_inverse_error], axis=1) != 0

    def replace(self, **changes: Any) -> Self:
        """The same stars with some attributes replaced."""
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        other = object.__new__(type(self))  # a subclass may be built in another way
        other.__dict__.update(kept | changes)
        return other

    def take(self, index: Any, cut: str | None = None) -> Self:
        """Select stars by mask, slice or row numbers; with `cut`, record the rule and its count."""
        picked = self.replace(
            **{name: getattr(self, name)[index] for name in ("source_id", *MATRICES)},
            columns={k: v[index] for k, v in self.columns.items()},
        )
        if cut is None:
            return picked
        return picked.replace(cuts=(*self.cuts, Cut(cut, len(self) - len(picked), len(picked))))

    def on(self, channels: Channels) -> Self:
        """The same stars on another set of bands: those that it lacks are left out, those that are new are missing.

        InputError if the XP samples differ, or a band is at another wavelength.
        """
        if channels == self.channels:
            return self
        channels.require_same_spectra(self.channels, "the model", "the stars")
        own, n = self.channels.band_names, self.channels.n_xp
        place = np.array([own.index(band) if band in own else -1 for band in channels.band_names], int)

        def placed(bands: NDArray[np.float32]) -> NDArray[np.float32]:
            empty = np.zeros((len(self), 1), np.float32)  # stands last, for those that are missing
            return np.concatenate([bands, empty], axis=1)[:, place]

        flux = np.concatenate([self.flux[:, :n], placed(self.flux[:, n:])], axis=1)
        return self.replace(channels=channels, flux=flux, band_inverse_error=placed(self.band_inverse_error))

    def __getitem__(self, index: Any) -> Self:
        """Select stars: one by its row number, several by a mask, a slice or row numbers."""
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"row {index} of a table of {len(self)} stars")
            index = [index]
        return self.take(rows_at(index))

    def __repr__(self) -> str:
        channels = f"{self.channels.n_xp} XP samples" + "".join(f", {band}" for band in self.channels.band_names)
        known = [name for name in ("parallax", *self.label_names) if self.is_measured(name).any()]
        return f"<{type(self).__name__}: {len(self)} stars; {channels}" + (f"; {', '.join(known)}>" if known else ">")

    def flux_error(self, channels: Sequence[int] | None = None) -> NDArray[np.float64]:
        """(star, channel) marginal 1-sigma errors of the observed flux, same unit, NaN where not observed.

        With C = (W^T W)^-1 and W lower triangular, the variance of channel c is |row c of W^-1|^2: back substitution for
        the wanted rows alone, all if None, for all stars at once.
        """
        n = self.channels.n_xp
        channels = range(len(self.channels)) if channels is None else channels
        out = np.full((len(self), len(channels)), np.nan)
        packed = np.ascontiguousarray(self.xp_whitening.T, np.float64)  # stars last: every step runs along memory
        first = np.arange(n) * np.arange(1, n + 1) // 2  # where a row of the packed triangle begins
        diagonal = packed[first + np.arange(n)]
        present = diagonal > 0
        safe = np.where(present, diagonal, 1.0)
        for k, c in enumerate(channels):
            if c >= n:
                inverse = self.band_inverse_error[:, c - n].astype(np.float64)
                out[:, k] = np.where(inverse > 0, 1.0 / np.where(inverse > 0, inverse, 1.0), np.nan)
                continue
            row = np.zeros((n, len(self)))
            for j in range(c, -1, -1):
                below = np.arange(j + 1, c + 1)
                known = (row[below] * packed[first[below] + j]).sum(axis=0)
                row[j] = np.where(present[j], ((j == c) - known) / safe[j], 0.0)
            out[:, k] = np.where(present[c], np.sqrt((row**2).sum(axis=0)), np.nan)
        return out

    @property
    def snr(self) -> NDArray[np.float64]:
        """(star,) signal to noise: the median over the observed channels of flux over error; NaN without any."""
        out = np.full(len(self), np.nan)
        for start in range(0, len(self), STARS_AT_ONCE):
            rows = slice(start, start + STARS_AT_ONCE)
            some = self.take(rows)
            ratio = some.flux / some.flux_error()
            seen = np.isfinite(ratio).any(axis=1)
            out[rows][seen] = np.nanmedian(ratio[seen], axis=1)
        return out

    def problems(self, *, labelled: bool = False) -> NDArray[np.str_]:
        """(star,) 'ok', or why no likelihood can use the star; in training, one that reads labels and the like, too."""
        reason = np.full(len(self), OK, dtype="U64")
        present = self.channel_present()

        def mark(bad: Any, text: str) -> None:
            reason[bad & (reason == OK)] = text

        finite_weights = np.isfinite(self.xp_whitening).all(axis=1) & np.isfinite(self.band_inverse_error).all(axis=1)
        mark(~finite_weights, "flux error is not finite")
        mark((self.band_inverse_error < 0).any(axis=1), "flux error is negative")
        mark((~np.isfinite(self.flux) & present).any(axis=1), "flux is not finite")
        mark(present.sum(axis=1) == 0, "no channel was measured")
        mark((present & (self.flux > 0)).sum(axis=1) < 3, "fewer than three channels have a positive flux")
        mark(self._is_flat(present), "flux is the same at all wavelengths")
        only_labelled = ("reddening", "spectroscopic_parallax", *self.label_names) if labelled else ()
        for name in ("parallax", *only_labelled):
            mark(self.column(f"{name}_error") <= 0, f"{name}_error is not positive")
        return reason

    def _is_flat(self, present: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(star,) whose measured XP samples, three at least, are one number: no star's are, and some fit would follow."""
        flux, there = self.flux[:, : self.channels.n_xp], present[:, : self.channels.n_xp]
        top = np.where(there, flux, -np.inf).max(axis=1, initial=-np.inf)
        low = np.where(there, flux, np.inf).min(axis=1, initial=np.inf)
        with np.errstate(invalid="ignore"):
            return (there.sum(axis=1) >= 3) & (top - low <= FLAT * np.abs(top))

    def stars(
        self,
        labels: Sequence[str] | None = None,
        *,
        spectroscopic_parallax: bool = False,
        label_error_floor: Sequence[float] = (),
        doubt_parallax: bool = False,
    ) -> Stars:
        """Build the float32 batch.

        Args:
            labels: which labels, in which order; all of the table if None.
            spectroscopic_parallax: use that column where Gaia's parallax is missing. It is derived from the labels:
                for training only.
            label_error_floor: (label,) added to the label errors in quadrature [kK, dex, ...]; none if empty.
            doubt_parallax: parallaxes may be spurious, by what fidelity_v2 and RUWE say; where the table has them.
        """
        prepare_device()
        label, label_error = self.labels(labels)
        if len(label_error_floor):
            label_error = np.hypot(label_error, np.asarray(label_error_floor))
        parallax, parallax_error = self.column("parallax"), self.column("parallax_error")
        if spectroscopic_parallax:
            use = ~self.is_measured("parallax")
            parallax = np.where(use, self.column("spectroscopic_parallax"), parallax)
            parallax_error = np.where(use, self.column("spectroscopic_parallax_error"), parallax_error)
        flux = np.where(self.channel_present(), self.flux, 0.0)
        scale = np.max(np.abs(np.where(np.isfinite(flux), flux, 0.0)), axis=1, initial=1e-20)[:, None]
        nothing: Any = np.zeros(len(flux), np.float32)
        return Stars(
            flux=(flux / scale).astype(np.float32),
            whitening=unpack(self.xp_whitening * scale, self.band_inverse_error * scale, self.channels.n_xp),
            ln_scale=np.log(scale[:, 0]).astype(np.float32),
            **_measured("parallax", "parallax", parallax, parallax_error),
            **_measured("labels", "label", label, label_error),
            **_measured("reddening", "reddening", self.column("reddening"), self.column("reddening_error")),
            inv_dof=nothing,  # measurement errors alone have no tail; the model's own error may bring one
            doubt=parallax_doubt(self.column("fidelity_v2"), self.column("ruwe")) if doubt_parallax else None,
        )


def _measured(name: str, of: str, value: NDArray[np.float64], error: NDArray[np.float64]) -> dict[str, Any]:
    """Value and inverse error as float32, weight 0 where either is missing."""
    known = np.isfinite(value) & np.isfinite(error) & (error > 0)
    inverse = np.zeros_like(value)
    np.divide(1.0, error, out=inverse, where=known)
    return {name: np.where(known, value, 0.0).astype(np.float32), f"{of}_inv_error": inverse.astype(np.float32)}


def rows_at(index: Any) -> Any:
    """A slice, a mask or row numbers, as NumPy takes them; what is masked selects nothing. InputError for anything else."""
    if isinstance(index, slice):
        return index
    rows = np.asarray(index)
    rows = rows if rows.size or rows.dtype.kind != "f" else rows.astype(np.intp)  # [] selects nothing
    if isinstance(index, tuple) or rows.ndim != 1 or rows.dtype.kind not in "biu":
        raise InputError(
            f"an index of shape {rows.shape} and type {rows.dtype} selects no stars; give a mask, a slice or row numbers"
        )
    if isinstance(mask := getattr(index, "mask", None), np.ndarray):
        return rows & ~mask if rows.dtype == bool else rows[~mask]
    return rows


def add_up_cuts(cuts: Iterable[Cut]) -> tuple[Cut, ...]:
    """Count the same rule in several tables as one rule, in the order of first appearance."""
    counted: dict[str, Cut] = {}
    for cut in cuts:
        before = counted.get(cut.what, Cut(cut.what, 0, 0))
        counted[cut.what] = Cut(cut.what, before.removed + cut.removed, before.left + cut.left)
    return tuple(counted.values())


def join_star_tables(tables: Sequence[Spectra], names: Sequence[str]) -> Spectra:
    """Put star tables of the same channels, labels and instrument one after the other; names are for messages."""
    first = tables[0]
    for table, name in zip(tables[1:], names[1:], strict=True):
        first.channels.require_same(table.channels, names[0], name)
        first.instrument.require_same(table.instrument, names[0], name)
        if table.label_names != first.label_names:
            raise InputError(f"{name} has labels {table.label_names} and {names[0]} has {first.label_names}")
    source_id = np.concatenate([t.source_id for t in tables])
    again = repeated_ids(source_id)
    if again is not None:
        raise InputError(
            f"{names[0]} and others: {again.count} source_ids occur in more than one table (first: {again.first}); keep "
            f"one row a star"
        )
    columns = {}
    for name in dict.fromkeys(key for t in tables for key in t.columns):
        parts = [t.columns[name] if name in t.columns else np.full(len(t), np.nan) for t in tables]
        columns[name] = np.concatenate(parts)
    return first.replace(
        source_id=source_id,
        **{name: np.concatenate([getattr(t, name) for t in tables]) for name in MATRICES},
        columns=columns,
        cuts=add_up_cuts(c for t in tables for c in t.cuts),
    )
