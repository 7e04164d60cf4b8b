"""2MASS and unWISE: from catalogue rows to band fluxes and inverse errors, with every cut counted.

In: a table with the surveys' own columns, one row a source_id, and Gaia's norm_dg. Out: `BandFluxes`. A band that is
missing or cut has inverse error 0: infinite variance (METHOD 2).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field as Setting

from xpbayes.archive.columns import (
    BRIGHTEST,
    DEFAULT,
    FAINTEST,
    LEAST_PRECISE,
    SOURCE_ID,
    AnyOf,
    Column,
    MissingColumnError,
    ReadOptions,
    error_column,
    magnitude,
    magnitude_error,
)
from xpbayes.archive.companion_table import SortedRuns, read_companion
from xpbayes.archive.tables import Table
from xpbayes.channels import BANDS
from xpbayes.config import FrozenSettings
from xpbayes.data.spectra import Cut
from xpbayes.instrument.photometry import LN10_OVER_2P5, flux_from_magnitude

log = logging.getLogger(__name__)

UNWISE_ZERO_POINT = 22.5
"""Vega magnitude of one unWISE nanomaggy (Schlafly et al. 2019)."""

TWO_MASS_BANDS, UNWISE_BANDS = ("J", "H", "Ks"), ("W1", "W2")
BANDS_OF = {"two_mass": TWO_MASS_BANDS, "unwise": UNWISE_BANDS}
"""By their sections in survey.toml."""


class TwoMassCuts(FrozenSettings):
    """Which 2MASS magnitudes count."""

    quality: str = Setting("A", description="letters of ph_qual that are good, band by band; empty: any, or no ph_qual")
    norm_dg_max: float = Setting(-5.0, description="a star with a larger norm_dg is crowded (ZGR23 Section 2.3)")
    error_floor: float = Setting(0.01, ge=0, description="fraction of the flux added in quadrature to its error")


class UnwiseCuts(FrozenSettings):
    """Which unWISE fluxes count."""

    norm_dg_max: float = Setting(-10.0, description="a star with a larger norm_dg is crowded (ZGR23 Section 2.4)")
    fracflux_min: float = Setting(0.5, ge=0, le=1, description="least share of the flux at the star that is its own")
    quality_min: float = Setting(0.9, ge=0, le=1, description="least PSF-weighted share of good pixels (qf)")
    flags_allowed: int = Setting(0, ge=0, description="bits of flags_unwise that may be set")
    error_floor: float = Setting(0.01, ge=0, description="fraction of the flux added in quadrature to its error")


@dataclass(frozen=True)
class BandFluxes:
    """Fluxes in some bands, one row a star."""

    bands: tuple[str, ...]
    flux: NDArray[np.float64]  # (star, band) [1e-18 W m^-2 nm^-1], 0 where missing
    inverse_error: NDArray[np.float64]  # (star, band) 1/sigma, 0 where missing or cut
    cuts: tuple[Cut, ...]  # per rule, how many measurements (not stars) it removed


TWO_MASS_MAGNITUDES = ("j_m", "h_m", "ks_m")
UNWISE_MEASURED = ("flux_w1", "flux_w2", "mag_w1_vg", "mag_w2_vg")
QUALITY = (
    "has no ph_qual, 2MASS's quality flags; name three columns of flags with quality_columns under [two_mass], or set "
    'quality = "" under [two_mass.cuts] to go without'
)


def _two_mass_columns() -> tuple[Column, ...]:
    columns = [SOURCE_ID, Column("ph_qual", "text", ("qflg", "tmass_ph_qual"))]
    for band in ("j", "h", "ks"):
        short = band[0]
        columns += [
            magnitude(f"{band}_m", (f"{short}_m", f"{short}mag", f"tmass_{band}_m")),
            magnitude_error(
                f"{band}_msigcom", (f"{short}_msigcom", f"e_{short}mag", f"{band}_m_error", f"{short}_m_error")
            ),
        ]
    return tuple(columns)


def _unwise_columns() -> tuple[Column, ...]:
    columns = [SOURCE_ID]
    for n in ("1", "2"):
        columns += [
            Column(f"flux_w{n}", aliases=(f"w{n}_flux", f"fluxw{n}", f"fw{n}"), unit="nmgy", low=-1e12, high=1e12),
            error_column(
                f"dflux_w{n}", 1e12, (f"w{n}_dflux", f"e_fw{n}", f"dfluxw{n}", f"flux_w{n}_error"), unit="nmgy"
            ),
            magnitude(f"mag_w{n}_vg", (f"mag_w{n}", f"w{n}_mag", f"w{n}mag", f"w{n}mpro")),
            magnitude_error(f"mag_w{n}_error", (f"dmag_w{n}", f"w{n}_mag_error", f"e_w{n}mag", f"w{n}sigmpro")),
            Column(f"fracflux_w{n}", aliases=(f"w{n}_fracflux", f"ffw{n}"), low=-1e-6, high=1.0 + 1e-3),
            Column(f"qf_w{n}", aliases=(f"w{n}_qf", f"qfw{n}"), low=-1e-6, high=1.0 + 1e-3),
            Column(f"flags_unwise_w{n}", "integer", (f"w{n}_flags_unwise",)),
        ]
    return tuple(columns)


TWO_MASS_FIELDS, UNWISE_FIELDS = _two_mass_columns(), _unwise_columns()


def read_two_mass(
    paths: list[Path],
    scratch: Path | None = None,
    options: ReadOptions = DEFAULT,
    quality_columns: Sequence[str] = (),
    quality: str = "A",
) -> Table | SortedRuns:
    """Read 2MASS matches: source_id, j_m, j_msigcom, ..., ph_qual; InputError if no magnitude is there.

    `quality_columns` have the flags of J, H and Ks, instead of ph_qual; without letters of `quality` that are good any is,
    and no flag is needed. Other arguments as for `read_companion`.
    """
    columns = TWO_MASS_FIELDS
    if quality_columns:
        columns = (*(c for c in TWO_MASS_FIELDS if c.name != "ph_qual"), *(Column(n, "text") for n in quality_columns))

    def prepare(table: Table) -> Table:
        if quality_columns:
            return _joined_quality(table, quality_columns)
        if quality and "ph_qual" not in table:
            raise MissingColumnError(QUALITY)
        return table

    any_of = _any_of(TWO_MASS_MAGNITUDES, "2MASS magnitudes")
    table = read_companion(paths, columns, scratch, prepare, options=options, any_of=any_of)
    return _with_errors(table, [(m, f"{m}sigcom") for m in TWO_MASS_MAGNITUDES], paths[0])


def _joined_quality(table: Table, names: Sequence[str]) -> Table:
    """Put the three bands' own flags together as ph_qual has them."""
    lacking = [n for n in names if n not in table]
    if lacking:
        raise MissingColumnError(f"has no column {lacking[0]}; correct quality_columns under [two_mass]")
    flags = [np.char.ljust(table.columns[n].astype("U1"), 1) for n in names]
    joined = np.char.add(np.char.add(flags[0], flags[1]), flags[2])
    kept = {k: v for k, v in table.columns.items() if k not in names}
    return replace(table, columns={**kept, "ph_qual": joined})


def read_unwise(paths: list[Path], scratch: Path | None = None, options: ReadOptions = DEFAULT) -> Table | SortedRuns:
    """Read unWISE matches, as `read_companion`: flux_w1, dflux_w1, ... or magnitudes; InputError if neither is there."""
    any_of = _any_of(UNWISE_MEASURED, "unWISE fluxes or magnitudes")
    table = read_companion(paths, UNWISE_FIELDS, scratch, options=options, any_of=any_of)
    return _with_errors(table, [(f"flux_w{n}", f"dflux_w{n}") for n in "12"], paths[0])


def _with_errors(table: Table | SortedRuns, pairs: list[tuple[str, str]], path: Path) -> Table | SortedRuns:
    """The table; measurements without their errors, which count for nothing, are said."""
    for measured, error in pairs:
        if measured in table and error not in table:
            log.warning("%s: has %s but no %s, without which it does not count", path, measured, error)
    return table


def _any_of(names: tuple[str, ...], what: str) -> AnyOf:
    return names, f"has no {what} (none of {', '.join(names)}); name another table"


class _Counter:
    """Applies rules to measurements and counts what each one removes."""

    def __init__(self, survey: str, measured: NDArray[np.bool_]) -> None:
        self.survey, self.keep = survey, measured.copy()
        n = int(measured.sum())
        self.cuts = [Cut(f"{survey}: magnitudes or fluxes measured", int(measured.size - n), n)]

    def cut(self, what: str, bad: NDArray[np.bool_]) -> None:
        removed = int((self.keep & bad).sum())
        self.keep &= ~bad
        self.cuts.append(Cut(f"{self.survey}: {what}", removed, int(self.keep.sum())))


def two_mass_fluxes(table: Table, norm_dg: NDArray[np.float64], cuts: TwoMassCuts) -> BandFluxes:
    """Convert 2MASS magnitudes to fluxes, one row a star (see `Table.align`); missing magnitudes are NaN.

    `norm_dg` is (star,) Gaia's crowding measure; NaN, no neighbour within 30 arcsec, is not crowded.
    """
    magnitude = np.stack([table.floats(f"{b.lower()}_m") for b in TWO_MASS_BANDS], axis=1)
    error = np.stack([table.floats(f"{b.lower()}_msigcom") for b in TWO_MASS_BANDS], axis=1)
    counter = _Counter("2MASS", np.isfinite(magnitude) & np.isfinite(error) & (error > 0))
    if cuts.quality:
        letters = table.columns.get("ph_qual", np.full(len(table), "", dtype="U3"))
        good = [[c in cuts.quality for c in text.ljust(3)[:3]] for text in letters.tolist()]
        counter.cut(f"ph_qual not in '{cuts.quality}'", ~np.array(good, bool).reshape(-1, 3))
    counter.cut(f"norm_dg > {cuts.norm_dg_max:g}", _crowded(norm_dg, cuts.norm_dg_max))
    return _from_magnitudes(TWO_MASS_BANDS, magnitude, error, counter, cuts.error_floor)


def unwise_fluxes(table: Table, norm_dg: NDArray[np.float64], cuts: UnwiseCuts) -> BandFluxes:
    """Convert unWISE fluxes (Vega nanomaggies) or, where there are none, magnitudes; arguments as for 2MASS."""

    def both(pattern: str) -> NDArray[np.float64]:
        return np.stack([table.floats(pattern.format(n)).astype(np.float64) for n in (1, 2)], axis=1)

    flux, flux_error = both("flux_w{}"), both("dflux_w{}")
    magnitude, error = both("mag_w{}_vg"), both("mag_w{}_error")
    positive = (flux > 0) & (flux_error > 0)
    magnitude = np.where(positive, UNWISE_ZERO_POINT - 2.5 * np.log10(np.where(positive, flux, 1.0)), magnitude)
    error = np.where(positive, flux_error / np.where(positive, flux, 1.0) / LN10_OVER_2P5, error)
    with np.errstate(invalid="ignore"):  # a flux that no star has, or lost in its error, measures nothing
        magnitude = np.where((magnitude > BRIGHTEST) & (magnitude < FAINTEST), magnitude, np.nan)
        error = np.where(error < LEAST_PRECISE, error, np.nan)
    counter = _Counter("unWISE", np.isfinite(magnitude) & np.isfinite(error) & (error > 0))
    with np.errstate(invalid="ignore"):  # an absent quality column is NaN: nothing to cut on
        counter.cut(f"fracflux < {cuts.fracflux_min:g}", both("fracflux_w{}") < cuts.fracflux_min)
        counter.cut(f"qf < {cuts.quality_min:g}", both("qf_w{}") < cuts.quality_min)
    flags = np.stack([table.columns.get(f"flags_unwise_w{n}", np.zeros(len(table), np.int64)) for n in (1, 2)], axis=1)
    counter.cut("flags_unwise", (np.maximum(flags, 0) & ~cuts.flags_allowed) != 0)
    counter.cut(f"norm_dg > {cuts.norm_dg_max:g}", _crowded(norm_dg, cuts.norm_dg_max))
    return _from_magnitudes(UNWISE_BANDS, magnitude, error, counter, cuts.error_floor)


def _crowded(norm_dg: NDArray[np.float64], limit: float) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        return np.asarray(norm_dg > limit)[:, None]


def _from_magnitudes(
    bands: tuple[str, ...],
    magnitude: NDArray[np.float64],
    error: NDArray[np.float64],
    counter: _Counter,
    floor: float,
) -> BandFluxes:
    magnitude = np.where(counter.keep, magnitude, np.nan)
    pairs = [flux_from_magnitude(magnitude[:, i], error[:, i], BANDS[b], floor) for i, b in enumerate(bands)]
    flux, inverse_error = (np.stack(of, axis=1) for of in zip(*pairs, strict=True))
    return BandFluxes(bands, flux, inverse_error, tuple(counter.cuts))
