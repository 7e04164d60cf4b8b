"""Stellar labels from spectroscopic surveys: read, matched to Gaia, joined, one row a star.

In: label catalogues (LAMOST AFGK and Hot Payne, APOGEE, GALAH, DESI, SDSS-V, or any whose columns the user names).
Out: `StarLabels` in internal units (kK, dex), with the surveys' own errors: `train` adds the error floor of METHOD 2
itself (`label_error_floor`), so that nothing is added twice. The paper's training cuts are `training_cuts`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field as Setting

from xpbayes.archive.quarantine import Rejected
from xpbayes.archive.star_table import Cut
from xpbayes.archive.tables import NO_ID, Field, Table, read_tables
from xpbayes.config import FrozenSettings
from xpbayes.errors import InputError, nearest

GAIA_EPOCH = 2016.0
"""Reference epoch of Gaia DR3 positions [Julian year]."""
SENTINEL = -900.0
"""Surveys write missing labels as -999 or -9999."""

LabelNames = tuple[str, ...]


class LabelColumns(FrozenSettings):
    """Which columns of a label catalogue mean what; of several names, the first that the file has."""

    source_id: tuple[str, ...] = Setting((), description="Gaia DR3 source_id")
    ra: tuple[str, ...] = Setting(("ra",), description="right ascension [deg]")
    dec: tuple[str, ...] = Setting(("dec",), description="declination [deg]")
    snr: tuple[str, ...] = Setting((), description="signal-to-noise ratios; every one is a column of its own")
    labels: dict[str, tuple[str, ...]] = Setting(
        {"teff": ("teff",), "feh": ("feh",), "logg": ("logg",)}, description="label name = its column"
    )
    errors: dict[str, tuple[str, ...]] = Setting(
        {"teff": ("teff_err",), "feh": ("feh_err",), "logg": ("logg_err",)},
        description="label name = its error's column",
    )


def _columns(
    source_id: tuple[str, ...],
    snr: tuple[str, ...],
    labels: dict[str, tuple[tuple[str, ...], tuple[str, ...]]],
    ra: tuple[str, ...] = ("ra",),
    dec: tuple[str, ...] = ("dec",),
) -> LabelColumns:
    return LabelColumns(
        source_id=source_id,
        snr=snr,
        labels={k: v[0] for k, v in labels.items()},
        errors={k: v[1] for k, v in labels.items()},
        ra=ra,
        dec=dec,
    )


@dataclass(frozen=True)
class SurveyPreset:
    """What is known about a survey.

    Attributes:
        columns: its columns.
        epoch: of its positions [Julian year].
        teff_range: labels outside are not used [K].
    """

    columns: LabelColumns
    epoch: float = 2000.0
    teff_range: tuple[float, float] = (0.0, float("inf"))


JOIN_TEFF_K = 7000.0
"""LAMOST's own labels below, the Hot Payne's above (ZGR23 Section 2.2)."""

SURVEYS: dict[str, SurveyPreset] = {
    "lamost_afgk": SurveyPreset(
        _columns(
            ("gaia_source_id_dr3", "gaia_dr3_source_id"),
            ("snrg", "snrr", "snri"),
            {"teff": (("teff",), ("teff_err",)), "feh": (("feh",), ("feh_err",)), "logg": (("logg",), ("logg_err",))},
            ra=("ra_obs", "ra"),
            dec=("dec_obs", "dec"),
        ),
        teff_range=(0.0, JOIN_TEFF_K),
    ),
    "hot_payne": SurveyPreset(
        _columns(
            ("gaia_source_id_dr3", "gaia_dr3_source_id"),
            ("snrg", "snrr", "snri"),
            {
                "teff": (("teff",), ("teff_err", "e_teff")),
                "feh": (("feh", "fe_h", "[fe/h]"), ("feh_err", "e_feh", "e_[fe/h]")),
                "logg": (("logg",), ("logg_err", "e_logg")),
            },
            ra=("ra", "radeg", "ra_icrs"),
            dec=("dec", "dedeg", "de_icrs"),
        ),
        teff_range=(JOIN_TEFF_K, float("inf")),
    ),
    "apogee": SurveyPreset(
        _columns(
            ("gaiaedr3_source_id", "gaia_source_id"),
            ("snr",),
            {
                "teff": (("teff",), ("teff_err",)),
                "feh": (("fe_h",), ("fe_h_err",)),
                "logg": (("logg",), ("logg_err",)),
                "alpha_m": (("alpha_m",), ("alpha_m_err",)),
            },
        )
    ),
    "galah": SurveyPreset(
        _columns(
            ("gaiadr3_source_id", "dr3_source_id"),
            ("snr_c2_iraf", "snr_px_ccd2"),
            {
                "teff": (("teff",), ("e_teff",)),
                "feh": (("fe_h",), ("e_fe_h",)),
                "logg": (("logg",), ("e_logg",)),
                "alpha_m": (("alpha_fe",), ("e_alpha_fe",)),
            },
        )
    ),
    "desi": SurveyPreset(
        _columns(
            ("source_id",),
            ("sn_b", "sn_r", "sn_z"),
            {"teff": (("teff",), ("teff_err",)), "feh": (("feh",), ("feh_err",)), "logg": (("logg",), ("logg_err",))},
            ra=("target_ra", "ra"),
            dec=("target_dec", "dec"),
        )
    ),
    "sdssv": SurveyPreset(
        _columns(
            ("gaia_dr3_source_id", "gaia_source_id"),
            ("snr",),
            {"teff": (("teff",), ("e_teff",)), "feh": (("fe_h",), ("e_fe_h",)), "logg": (("logg",), ("e_logg",))},
        )
    ),
    "custom": SurveyPreset(LabelColumns(source_id=("source_id",))),
}


class LabelSurvey(FrozenSettings):
    """One label catalogue: a ``[[labels]]`` table of survey.toml."""

    survey: str = Setting("custom", description=f"what is known about the survey: one of {', '.join(SURVEYS)}")
    files: tuple[str, ...] = Setting(min_length=1, description="files, * allowed; relative to survey.toml")
    columns: LabelColumns | None = Setting(None, description="the columns, where they differ from the survey's own")
    teff_unit: Literal["K", "kK"] = Setting("K", description="unit of Teff and its error")
    match: Literal["auto", "source_id", "position"] = Setting(
        "auto", description="auto: by source_id where the file has one, else by position"
    )
    radius_arcsec: float = Setting(0.25, gt=0, description="largest separation of a match by position")
    epoch: float | None = Setting(None, description="epoch of the positions [Julian year]; the survey's own if absent")
    teff_min: float | None = Setting(None, description="labels below are not used [K]")
    teff_max: float | None = Setting(None, description="labels from here on are not used [K]")
    snr_min: float = Setting(0.0, ge=0, description="every S/N must exceed this")
    error_floor: dict[str, float] = Setting(
        {}, description="per label, added to the error in quadrature [kK, dex]; train adds its own label_error_floor"
    )

    def preset(self) -> SurveyPreset:
        """Return what is known about the survey; InputError for an unknown name."""
        if self.survey not in SURVEYS:
            raise InputError(
                f"unknown label survey '{self.survey}'{nearest(self.survey, SURVEYS)}; known are {', '.join(SURVEYS)}"
            )
        return SURVEYS[self.survey]


class TrainingCuts(FrozenSettings):
    """Which labelled stars are good enough to train on; null switches a cut off. Defaults: ZGR23 Section 2.5."""

    snr_min: float | None = Setting(20.0, description="every S/N of the label survey exceeds this")
    teff_error_max: float | None = Setting(0.5, description="sigma(Teff) below this [kK]")
    feh_error_max: float | None = Setting(0.5, description="sigma([Fe/H]) below this [dex]")
    logg_error_max: float | None = Setting(0.5, description="sigma(log g) below this [dex]")
    parallax_over_error_min: float | None = Setting(3.0, description="parallax / error exceeds this")
    fidelity_min: float | None = Setting(0.5, description="fidelity_v2 exceeds this")
    excess_factor_max: float | None = Setting(1.3, description="phot_bp_rp_excess_factor below this")


TRAINING_PRESETS: dict[str, TrainingCuts | None] = {"zgr23": TrainingCuts(), "none": None}


@dataclass(frozen=True)
class StarLabels:
    """Labels of stars, one row a star.

    Attributes:
        names: of the labels, Teff first.
        source_id: (star,) int64.
        value: (star, label) [kK, dex, ...]; NaN where missing.
        error: (star, label) 1-sigma errors, same units; NaN where missing.
        snr: (star,) the smallest of the survey's S/N; NaN where it gives none.
        survey: (star,) which survey the labels come from.
        cuts: what happened to the catalogues' rows, in order.
        rejected: rows that could not be read.
    """

    names: LabelNames
    source_id: NDArray[np.int64]
    value: NDArray[np.float64]
    error: NDArray[np.float64]
    snr: NDArray[np.float64]
    survey: NDArray[np.str_]
    cuts: tuple[Cut, ...]
    rejected: tuple[Rejected, ...]

    def __len__(self) -> int:
        return len(self.source_id)


@dataclass(frozen=True)
class Positions:
    """Where Gaia saw stars.

    Attributes:
        source_id: (star,) int64.
        ra, dec: (star,) [deg], ICRS at `epoch`.
        pmra, pmdec: (star,) proper motion, pmra with cos(dec) [mas/yr]; NaN where unknown.
        epoch: (star,) [Julian year].
    """

    source_id: NDArray[np.int64]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    pmra: NDArray[np.float64]
    pmdec: NDArray[np.float64]
    epoch: NDArray[np.float64]

    @classmethod
    def of(cls, table: Table) -> "Positions":
        """Take them from Gaia's source table; DR3's epoch where it has none."""
        epoch = table.floats("ref_epoch")
        return cls(
            table.columns["source_id"],
            table.floats("ra"),
            table.floats("dec"),
            table.floats("pmra"),
            table.floats("pmdec"),
            np.where(np.isfinite(epoch), epoch, GAIA_EPOCH),
        )

    def at(self, epoch: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(star,) right ascension and declination [deg] at another epoch; stars without proper motion stay."""
        degrees = (epoch - self.epoch) / 3.6e6  # years x mas/yr to degrees
        pmra, pmdec = np.nan_to_num(self.pmra), np.nan_to_num(self.pmdec)
        cosine = np.maximum(np.cos(np.radians(self.dec)), 1e-6)
        return self.ra + pmra * degrees / cosine, np.clip(self.dec + pmdec * degrees, -90.0, 90.0)


def match_positions(
    stars: Positions,
    ra: NDArray[np.float64],
    dec: NDArray[np.float64],
    epoch: float,
    radius_arcsec: float = 0.25,
) -> NDArray[np.int64]:
    """Find the nearest Gaia star of every catalogue row.

    Args:
        stars: Gaia's stars; their proper motions bring them to the catalogue's epoch.
        ra: (row,) right ascension in the catalogue [deg].
        dec: (row,) declination [deg].
        epoch: of the catalogue's positions [Julian year].
        radius_arcsec: largest separation of a match.

    Returns:
        (row,) source_id of the nearest star, `NO_ID` where there is none within the radius.
    """
    import astropy.units as u
    from astropy.coordinates import SkyCoord

    out = np.full(len(ra), NO_ID, np.int64)
    star_ra, star_dec = stars.at(epoch)
    known = np.flatnonzero(np.isfinite(star_ra) & np.isfinite(star_dec))
    asked = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90.0))
    if not known.size or not asked.size:
        return out
    nearest_star, separation, _ = SkyCoord(ra[asked] * u.deg, dec[asked] * u.deg).match_to_catalog_sky(
        SkyCoord(star_ra[known] * u.deg, star_dec[known] * u.deg)
    )
    close = separation <= radius_arcsec * u.arcsec
    out[asked[close]] = stars.source_id[known[nearest_star[close]]]
    return out


def read_labels(survey: LabelSurvey, paths: Sequence[Path], names: LabelNames, stars: Positions | None) -> StarLabels:
    """Read one label catalogue and match it to Gaia; repeated visits are still there.

    Args:
        survey: its description.
        paths: its files.
        names: the wanted labels, Teff first; a label that the survey lacks is NaN.
        stars: Gaia's stars, for a match by position.

    Raises:
        InputError: a file or a needed column is missing; no way to match.
    """
    preset = survey.preset()
    columns = survey.columns or preset.columns
    table, found = _read_columns(columns, paths, names)
    n = len(table)
    cuts = [Cut(f"{survey.survey}: rows read", len(table.rejected), n)]
    keep = np.ones(n, bool)

    def cut(what: str, bad: NDArray[np.bool_]) -> None:
        nonlocal keep
        removed = int((keep & bad).sum())
        keep = keep & ~bad
        cuts.append(Cut(f"{survey.survey}: {what}", removed, int(keep.sum())))

    value, error = np.full((n, len(names)), np.nan), np.full((n, len(names)), np.nan)
    for i, name in enumerate(names):
        if ("value", name) not in found:
            continue
        scale = 1e-3 if name == "teff" and survey.teff_unit == "K" else 1.0
        raw, raw_error = table.floats(found["value", name]), table.floats(found["error", name])
        with np.errstate(invalid="ignore"):
            good = np.isfinite(raw) & (raw > SENTINEL) & np.isfinite(raw_error) & (raw_error > 0)
        value[good, i] = raw[good] * scale
        error[good, i] = np.hypot(raw_error[good] * scale, survey.error_floor.get(name, 0.0))
    cut("no Teff with an error", ~np.isfinite(value[:, 0]))
    low = survey.teff_min if survey.teff_min is not None else preset.teff_range[0]
    high = survey.teff_max if survey.teff_max is not None else preset.teff_range[1]
    with np.errstate(invalid="ignore"):
        cut(f"Teff outside {low:g} ... {high:g} K", (value[:, 0] < low * 1e-3) | (value[:, 0] >= high * 1e-3))
    ratios = [table.floats(found["snr", name]) for name in columns.snr if ("snr", name) in found]
    snr = np.min(ratios, axis=0) if ratios else np.full(n, np.nan)
    if survey.snr_min > 0:
        if not ratios:
            raise InputError(f"{paths[0]}: snr_min is set but none of {', '.join(columns.snr) or 'no column'} is there")
        with np.errstate(invalid="ignore"):
            cut(f"S/N <= {survey.snr_min:g}", ~(snr > survey.snr_min))
    source_id = _match(survey, preset, table, found, stars, paths[0])
    cut("no Gaia star", source_id <= 0)
    return StarLabels(
        names,
        source_id[keep],
        value[keep],
        error[keep],
        snr[keep],
        np.full(int(keep.sum()), survey.survey),
        tuple(cuts),
        table.rejected,
    )


def _read_columns(
    columns: LabelColumns, paths: Sequence[Path], names: LabelNames
) -> tuple[Table, dict[tuple[str, str], str]]:
    """Read what the mapping names; the second value says under which field each quantity is."""
    fields: dict[str, Field] = {}
    where: dict[tuple[str, str], str] = {}

    def want(key: tuple[str, str], candidates: tuple[str, ...], kind: Literal["float", "integer"] = "float") -> None:
        if candidates:
            fields[candidates[0]] = Field(candidates[0], kind, candidates[1:])
            where[key] = candidates[0]

    for name in names:
        want(("value", name), columns.labels.get(name, ()))
        want(("error", name), columns.errors.get(name, ()))
    for name in columns.snr:
        want(("snr", name), (name,))
    want(("at", "ra"), columns.ra)
    want(("at", "dec"), columns.dec)
    want(("at", "source_id"), columns.source_id, "integer")
    table = read_tables(paths, list(fields.values()))
    found = {key: field for key, field in where.items() if field in table}
    for name in names:
        lost = [kind for kind in ("value", "error") if (kind, name) in where and (kind, name) not in found]
        if lost:
            raise InputError(
                f"{paths[0]}: has no column {where[lost[0], name]} for the {'error of ' if lost[0] == 'error' else ''}"
                f"label {name}; map it in [labels.columns]"
            )
        if ("value", name) in found and ("error", name) not in found:
            raise InputError(f"{paths[0]}: label {name} has no error column; map it in [labels.columns.errors]")
    if ("value", names[0]) not in found:
        raise InputError(f"{paths[0]}: has no column for the label {names[0]}; map it in [labels.columns.labels]")
    return table, found


def _match(
    survey: LabelSurvey,
    preset: SurveyPreset,
    table: Table,
    found: dict[tuple[str, str], str],
    stars: Positions | None,
    path: Path,
) -> NDArray[np.int64]:
    by_id = ("at", "source_id") in found
    if survey.match == "source_id" and not by_id:
        raise InputError(
            f"{path}: has no source_id column to match by; map it in [labels.columns] or match by position"
        )
    if by_id and survey.match != "position":
        return table.columns[found["at", "source_id"]]
    if ("at", "ra") not in found or ("at", "dec") not in found:
        raise InputError(f"{path}: has neither a source_id nor ra and dec; map them in [labels.columns]")
    if stars is None or not np.isfinite(stars.ra).any():
        raise InputError(f"{path}: matching by position needs ra and dec in Gaia's source table; name it under [gaia]")
    epoch = survey.epoch if survey.epoch is not None else preset.epoch
    ra, dec = table.floats(found["at", "ra"]), table.floats(found["at", "dec"])
    return match_positions(stars, ra, dec, epoch, survey.radius_arcsec)


def join_labels(parts: Sequence[StarLabels]) -> StarLabels:
    """Join surveys and resolve repeated visits: the highest S/N wins, ties go to the survey that was named first.

    Args:
        parts: what `read_labels` returned, same labels.
    """
    names = parts[0].names
    source_id = np.concatenate([p.source_id for p in parts])
    snr = np.concatenate([p.snr for p in parts])
    order = np.argsort(-np.nan_to_num(snr, nan=-1.0), kind="stable")
    _, first = np.unique(source_id[order], return_index=True)
    chosen = np.sort(order[first])
    cut = Cut("labels: repeated visits, highest S/N kept", len(source_id) - len(chosen), len(chosen))
    return StarLabels(
        names,
        source_id[chosen],
        np.concatenate([p.value for p in parts])[chosen],
        np.concatenate([p.error for p in parts])[chosen],
        snr[chosen],
        np.concatenate([p.survey for p in parts])[chosen],
        (*(c for p in parts for c in p.cuts), cut),
        tuple(r for p in parts for r in p.rejected),
    )


def training_cuts(
    cuts: TrainingCuts,
    columns: dict[str, NDArray[np.float64]],
    where: str,
) -> tuple[NDArray[np.bool_], tuple[Cut, ...]]:
    """Select training stars and count what each rule removes, in the order of the paper.

    Args:
        cuts: the rules.
        columns: (star,) each: label_snr, teff_error, feh_error, logg_error, parallax, parallax_error, fidelity_v2,
            phot_bp_rp_excess_factor. A star whose value is missing fails the rule.
        where: what the columns belong to, for the message.

    Returns:
        (star,) True where kept, and the counts.

    Raises:
        InputError: a rule needs a column that is not there, or that no star has.
    """

    def over_error(c: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        return c["parallax"] / c["parallax_error"]

    rules = (
        ("label_snr", cuts.snr_min, ">", "snr_min", None),
        ("teff_error", cuts.teff_error_max, "<", "teff_error_max", None),
        ("feh_error", cuts.feh_error_max, "<", "feh_error_max", None),
        ("logg_error", cuts.logg_error_max, "<", "logg_error_max", None),
        ("parallax", cuts.parallax_over_error_min, ">", "parallax_over_error_min", over_error),
        ("fidelity_v2", cuts.fidelity_min, ">", "fidelity_min", None),
        ("phot_bp_rp_excess_factor", cuts.excess_factor_max, "<", "excess_factor_max", None),
    )
    n = len(next(iter(columns.values())))
    keep = np.ones(n, bool)
    table = [Cut("stars with labels", 0, n)]
    for name, limit, sign, setting, compute in rules:
        if limit is None:
            continue
        if name not in columns or (n and not np.isfinite(columns[name]).any()):
            raise InputError(
                f"{where}: the training cut {setting} needs {name}, which no star has; give it or set null"
            )
        value = compute(columns) if compute else columns[name]
        with np.errstate(invalid="ignore", divide="ignore"):
            good = value > limit if sign == ">" else value < limit
        removed = int((keep & ~good).sum())
        keep &= good
        label = "parallax / error" if compute else name
        table.append(Cut(f"{label} {sign} {limit:g}", removed, int(keep.sum())))
    return keep, tuple(table)
