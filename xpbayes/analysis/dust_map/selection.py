"""The stars of a dust map: a catalogue streamed, cut, placed on HEALPix pixels and sorted into pieces of the sky.

In: a catalogue (one Parquet file, or a folder of part-*.parquet) and settings. Out: `Measured` stars, one piece of the
sky at a time. Memory holds `ROWS_AT_ONCE`, `MEMORY_BYTES` of stars, and later one piece of the sky; the rest waits on
disk.
"""

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.analysis.run_inputs import apply_cuts
from xpbayes.config import DustMapConfig
from xpbayes.data.parquet import read_footer
from xpbayes.data.spectra import OK
from xpbayes.errors import InputError, nearest
from xpbayes.production.reader import Catalogue, open_catalogue
from xpbayes.production.table import text_column

COLUMNS = ("ra", "dec", "stellar_params_est", "stellar_params_cov_triu", "chi2_opt", "dof", "status")
CURVE_COLUMNS = ("laplace_cov_triu", "xi", "xi_err", "xi_cov")
ROWS_AT_ONCE = 65_536
PIECE_NSIDE = 8
"""Pieces of the sky: 768 of them, at most some million stars each in a catalogue of 220 million."""
MEMORY_BYTES = 256 << 20
LEAST_SHARE = 1e-3
"""A star counts for the curve where fluxes have contributed such a share of what is known of its xi."""
MAX_PRIOR_SHIFT = 3.0
"""The mode of a star with E near zero says little about how negative its likelihood's peak would be: no further than
so many sigma below zero."""


@dataclass(frozen=True)
class Measured:
    """Stars that passed the cuts; (star,) each."""

    pixel: NDArray[np.int64]  # HEALPix pixel, Galactic, nested, at the finest nside of the map
    extinction: NDArray[np.float64]  # [mag]
    parallax: NDArray[np.float64]  # [mas]
    var_e: NDArray[np.float64]  # their variances and covariance [mag^2, mas^2, mag mas]
    var_plx: NDArray[np.float64]
    cov: NDArray[np.float64]
    relative_error: NDArray[np.float64]  # sigma_plx / plx as catalogued; the maps differ in their cut on it

    def __len__(self) -> int:
        return len(self.pixel)

    def take(self, which: NDArray[Any]) -> Self:
        """The stars of an index or a mask."""
        return type(self)(*(getattr(self, f.name)[which] for f in fields(self)))


AnyMeasured = TypeVar("AnyMeasured", bound=Measured)


@dataclass(frozen=True)
class MeasuredCurve(Measured):
    """Stars that passed the cuts, with what they say of their extinction curves R + xi R1 beside E.

    Fluxes are linear in E and in E xi, ln f = ln f_abs - E R - E xi R1: both add up along the line of sight.
    """

    amount: NDArray[np.float64]  # E without the pull of xi's prior [mag]
    along: NDArray[np.float64]  # E xi, likewise [mag]
    weight: NDArray[np.float64]  # inverse variance of E xi, 0 where nothing but its prior is known of xi [mag^-2]


CUTS = {
    "unsolved": "without a solution",
    "no_position": "without a position",
    "poor_fit": "with a poor fit",
    "extinction": "with too large an extinction",
    "extinction_error": "with too uncertain an extinction",
    "parallax_error": "with too uncertain a parallax",
}
"""In their order, and which stars each takes."""


@dataclass
class Tally:
    """How many stars came in and which cut took how many; a star is counted at the first cut that takes it."""

    rows: int = 0
    unsolved: int = 0
    no_position: int = 0
    poor_fit: int = 0
    extinction: int = 0
    extinction_error: int = 0
    parallax_error: int = 0
    kept: int = 0

    def sentences(self) -> list[str]:
        """One line per cut."""
        removed = [f"cut: {getattr(self, name)} stars {text}" for name, text in CUTS.items() if getattr(self, name)]
        return [f"{self.rows} stars read", *removed, f"{self.kept} stars kept"]

    @property
    def largest(self) -> str:
        """The cut that took most, in words."""
        name = max(CUTS, key=lambda cut: getattr(self, cut))
        return f"largest cut: {name.replace('_', ' ')}, {getattr(self, name)} stars"


def open_for_map(path: Path, *, curve: bool = False) -> Catalogue:
    """Find a catalogue, a file or a folder of parts, and check that it has what a dust map, or one of curves too, needs.

    Raises:
        InputError: no catalogue, an unfinished one, or one that lacks a column.
    """
    catalogue = open_catalogue(path)
    needed = (*COLUMNS, *CURVE_COLUMNS) if curve else COLUMNS
    for file in catalogue.files:
        _, schema = read_footer(file)
        if curve and "xi" not in schema.names:
            raise InputError(
                f"{file}: has no column 'xi', its model has one extinction curve for all stars; make the map without "
                "--curve, or infer with a model trained with --curve-variation"
            )
        for name in needed:
            if name not in schema.names:
                raise InputError(
                    f"{file}: has no column '{name}'{nearest(name, schema.names)}; a dust map needs {', '.join(needed)}"
                )
        for name in (n for n in needed if n.startswith("stellar_params") or n.endswith(("_triu", "xi_cov"))):
            if not pa.types.is_fixed_size_list(schema.field(name).type):
                raise InputError(
                    f"{file}: column '{name}' is {schema.field(name).type}, not lists of one length; infer it again"
                )
    return catalogue


def select(catalogue: Catalogue, config: DustMapConfig, tally: Tally) -> Iterator[Measured]:
    """Read, cut and place the stars of what `open_for_map` opened, `ROWS_AT_ONCE` at a time; the tally counts along."""
    for rows in catalogue.tables((*COLUMNS, *CURVE_COLUMNS) if config.curve else COLUMNS, ROWS_AT_ONCE):
        yield _cut(rows, config, tally)


def _cut(rows: pa.Table, config: DustMapConfig, tally: Tally) -> Measured:
    estimate, triangle = _matrix(rows["stellar_params_est"]), _matrix(rows["stellar_params_cov_triu"])
    p = estimate.shape[1]
    if triangle.shape[1] != p * (p + 1) // 2:
        raise InputError(f"the catalogue has {p} parameters but {triangle.shape[1]} covariances a star; infer it again")
    # The upper triangle row by row ends with E-E, E-parallax, parallax-parallax.
    var_e, cov, var_plx = triangle[:, -3:].T
    e, plx = estimate[:, -2:].T
    ra, dec, chi2, dof = (_numbers(rows[name]) for name in ("ra", "dec", "chi2_opt", "dof"))
    solved = np.asarray(text_column(rows, "status") == OK)
    solved &= np.isfinite([var_e, cov, var_plx, e, plx, chi2]).all(axis=0) & (var_e > 0) & (var_plx > 0) & (plx > 0)
    keep = np.ones(len(rows), bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative_error = np.sqrt(var_plx) / plx
        tests = {
            "unsolved": solved,
            "no_position": np.isfinite(ra) & np.isfinite(dec),
            "poor_fit": (dof > 0) & (chi2 / dof < config.max_reduced_chi2),
            "extinction": e < config.max_extinction,
            "extinction_error": var_e < config.max_extinction_error**2,
            "parallax_error": relative_error < max(config.sky_max_parallax_error, config.profile_max_parallax_error),
        }
    tally.rows += len(rows)
    kept = apply_cuts(keep, tests, vars(tally))
    tally.kept += int(kept.sum())
    if config.curve:  # where there is much dust E is uncertain and xi well known
        kept = apply_cuts(keep, {name: passed for name, passed in tests.items() if name != "extinction_error"}, {})
    pixel = galactic_pixel(ra[kept], dec[kept], config.nsides[0])
    stars = Measured(pixel, *(column[kept] for column in (e, plx, var_e, var_plx, cov, relative_error)))
    plain = without_prior(stars) if config.remove_prior else stars
    if not config.curve:
        return plain
    return with_curve(plain, stars, rows.filter(pa.array(kept)), remove_prior=config.remove_prior)


def with_curve(plain: Measured, stars: Measured, rows: pa.Table, *, remove_prior: bool) -> MeasuredCurve:
    """Add E and E xi where the likelihood of (E, parallax, E xi) has its peak.

    The catalogue's mode maximises ln likelihood + ln E + ln parallax - xi^2 / 2. The likelihood is Gaussian in E and E xi:
    its precision is that of the posterior without these priors and without what the fluxes bend in (E, xi). The pull of
    xi's prior is always undone: averages of posterior modes would remember it however many stars there are; that on E and
    parallax if `remove_prior`. Given are the stars as they are averaged for E, at the mode, and as rows of the catalogue.
    """
    xi, error = (_numbers(rows[name]) for name in ("xi", "xi_err"))
    by_e, by_plx = _matrix(rows["xi_cov"])[:, -2:].T
    var_e, cov, var_plx = _matrix(rows["laplace_cov_triu"])[:, -3:].T
    e, plx = stars.extinction, stars.parallax
    covariance = np.stack([var_e, cov, by_e, cov, var_plx, by_plx, by_e, by_plx, error**2], axis=-1).reshape(-1, 3, 3)
    known = np.isfinite(covariance).all(axis=(1, 2)) & np.isfinite(xi) & (error**2 < 1.0 - LEAST_SHARE)
    known &= _positive(covariance)
    covariance[~known] = np.eye(3)
    precision = np.linalg.inv(covariance)  # of (E, parallax, xi)
    precision -= np.stack([e**-2.0, plx**-2.0, np.ones(len(e))], axis=-1)[:, :, None] * np.eye(3)
    # At the mode the likelihood falls with E xi as the prior rises: in (E, xi) that product bends.
    precision[:, 0, 2] += xi / e
    precision[:, 2, 0] += xi / e
    known &= _positive(precision)
    precision[~known] = np.eye(3)
    linear = np.broadcast_to(np.eye(3), covariance.shape).copy()  # of (E, parallax, E xi) by (E, parallax, xi)
    linear[:, 2, 0], linear[:, 2, 2] = xi, e
    of_likelihood = linear @ np.linalg.inv(precision) @ linear.transpose(0, 2, 1)
    pull = np.stack([xi**2 / e, np.zeros(len(e)), -xi / e], axis=-1)
    if remove_prior:
        pull += np.stack([1.0 / e, 1.0 / plx, np.zeros(len(e))], axis=-1)
    step = -(of_likelihood @ pull[..., None])[..., 0]
    return MeasuredCurve(
        **{f.name: getattr(plain, f.name) for f in fields(Measured)},
        amount=np.where(known, e + step[:, 0], 0.0),
        along=np.where(known, e * xi + step[:, 2], 0.0),
        weight=np.where(known, 1.0 / of_likelihood[:, 2, 2], 0.0),
    )


def _positive(matrices: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(star,) which 3 x 3 matrices are positive definite, by their leading minors."""
    minors = [np.linalg.det(matrices[:, :n, :n]) for n in (1, 2, 3)]
    return np.all(np.isfinite(minors) & (np.array(minors) > 0), axis=0)


def without_prior(stars: Measured) -> Measured:
    """Move E and parallax from the posterior's mode back to the likelihood's peak.

    The catalogue's mode maximises ln likelihood + ln E + ln parallax (ZGR23 Eq. 17): it lies C (1/E, 1/parallax) beyond
    the peak of a Gaussian likelihood with covariance C. Averages need the peak: its errors have mean zero, the mode's
    are all positive for stars with little dust (E = (peak + sqrt(peak^2 + 4 sigma^2)) / 2 for E alone).
    """
    e = stars.extinction - stars.var_e / stars.extinction - stars.cov / stars.parallax
    plx = stars.parallax - stars.cov / stars.extinction - stars.var_plx / stars.parallax
    lowest = -MAX_PRIOR_SHIFT * np.sqrt(stars.var_e)
    # Where the limit binds, the parallax keeps to the same line of the error ellipse.
    plx = np.where(e < lowest, plx + stars.cov / stars.var_e * (lowest - e), plx)
    plx = np.maximum(plx, 0.1 * stars.parallax)
    return replace(stars, extinction=np.maximum(e, lowest), parallax=plx)


def galactic_pixel(ra: NDArray[np.float64], dec: NDArray[np.float64], nside: int) -> NDArray[np.int64]:
    """(star,) nested HEALPix pixels in Galactic coordinates of ICRS positions [deg]."""
    import astropy.units as u
    from astropy.coordinates import SkyCoord
    from astropy_healpix import lonlat_to_healpix

    galactic = SkyCoord(ra=ra * u.deg, dec=dec * u.deg, frame="icrs").galactic
    return np.asarray(lonlat_to_healpix(galactic.l, galactic.b, nside, order="nested"), np.int64)


def _matrix(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """(row, item) values of a fixed-size list column, NaN where null; a null list is a row of NaN."""
    chunk = column.combine_chunks()
    width = chunk.type.list_size
    flat = chunk.values.slice(chunk.offset * width, len(chunk) * width)
    values = flat.to_numpy(zero_copy_only=False).reshape(-1, width).astype(np.float64)
    values[np.asarray(chunk.is_null())] = np.nan
    return values


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return column.combine_chunks().cast(pa.float64()).to_numpy(zero_copy_only=False)


class SkyPieces:
    """Stars sorted into pieces of the sky; beyond `MEMORY_BYTES` they wait in temporary files.

    Use as a context manager: the files go when it closes. A piece is a whole number of the coarsest pixels.
    """

    def __init__(
        self,
        finest: int,
        coarsest: int,
        folder: Path | None = None,
        memory_bytes: int = MEMORY_BYTES,
        *,
        kind: type[Measured] = Measured,
    ) -> None:
        self._shift = 2 * int(np.log2(finest // min(PIECE_NSIDE, coarsest)))
        self._memory_bytes = memory_bytes
        self._kind = kind
        self._record = np.dtype([(f.name, "i4" if f.name == "pixel" else "f4") for f in fields(kind)])
        self._held: dict[int, list[NDArray[np.void]]] = {}
        self._held_bytes = 0
        self._parent = folder
        self._made_parent = False
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()
        if self._made_parent and self._parent is not None:
            with suppress(OSError):  # it may hold other things by now
                self._parent.rmdir()

    @property
    def pixels_per_piece(self) -> int:
        """Pixels at the finest nside in one piece."""
        return 1 << self._shift

    def add(self, stars: Measured) -> None:
        """Sort stars in."""
        piece = stars.pixel >> self._shift
        order = np.argsort(piece, kind="stable")
        records = np.empty(len(stars), self._record)
        for name in self._record.names or ():
            records[name] = getattr(stars, name)[order]
        pieces, starts = np.unique(piece[order], return_index=True)
        for number, block in zip(pieces.tolist(), np.split(records, starts[1:]), strict=len(pieces) > 0):
            self._held.setdefault(number, []).append(block.copy())
        self._held_bytes += records.nbytes
        if self._held_bytes > self._memory_bytes:
            self._spill()

    def _spill(self) -> None:
        try:
            if self._folder is None:
                if self._parent is not None and not self._parent.exists():
                    self._parent.mkdir(parents=True)
                    self._made_parent = True
                self._folder = tempfile.TemporaryDirectory(prefix=".dust-map-", dir=self._parent)
            for number, blocks in self._held.items():
                with (Path(self._folder.name) / str(number)).open("ab") as stream:
                    stream.writelines(block.tobytes() for block in blocks)
        except OSError as error:
            raise InputError(
                f"{self._parent}: temporary files of a dust map cannot be written ({error.strerror}); free some space"
            ) from error
        self._held.clear()
        self._held_bytes = 0

    def __iter__(self) -> Iterator[tuple[int, Measured]]:
        """Yield each piece that has stars: its first pixel, and the stars."""
        numbers = set(self._held)
        if self._folder is not None:
            numbers |= {int(f.name) for f in Path(self._folder.name).iterdir()}
        for number in sorted(numbers):
            blocks = list(self._held.get(number, []))
            if self._folder is not None and (path := Path(self._folder.name) / str(number)).exists():
                blocks.insert(0, np.fromfile(path, self._record))
            records = np.concatenate(blocks)
            pixel, *rest = (records[name] for name in self._record.names or ())
            yield number << self._shift, self._kind(pixel.astype(np.int64), *(c.astype(np.float64) for c in rest))
