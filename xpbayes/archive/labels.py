"""Stellar labels from spectroscopic surveys: read, matched to Gaia, joined, one row a star.

In: label catalogues (LAMOST AFGK and Hot Payne, APOGEE, GALAH, DESI, SDSS-V, or any whose columns the user names).
Out: `StarLabels` in internal units (kK, dex), with the surveys' own errors: `train` adds the error floor of METHOD 2
itself (`label_error_floor`), so that nothing is added twice. The paper's training cuts are `training_cuts`.
Catalogues are read in blocks; what is held are the labels that pass, 100 bytes each.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field as Setting
from pydantic import field_validator

from xpbayes.archive.columns import SOURCE_ID, Column, ReadOptions, error_column
from xpbayes.archive.label_surveys import FlagRule, LabelColumns, LabelSurvey
from xpbayes.archive.positions import Positions, match_positions
from xpbayes.archive.tables import Table, read_blocks
from xpbayes.archive.values import NO_ID
from xpbayes.config import FrozenSettings
from xpbayes.data.rejected import Rejected
from xpbayes.data.spectra import Cut
from xpbayes.errors import InputError
from xpbayes.release import DEFAULT_RELEASE

PLAUSIBLE: dict[str, tuple[str, float, float, float]] = {
    "teff": ("kK", 1.0, 300.0, 100.0),
    "feh": ("dex", -9.0, 5.0, 5.0),
    "logg": ("dex(cm / s2)", -5.0, 11.0, 5.0),
    "alpha_m": ("dex", -5.0, 5.0, 5.0),
}
"""Unit, least and greatest value, greatest error of a label: [Fe/H] = 99, -9.99 or -9999 was not measured."""
ANY_LABEL = ("", -900.0, np.inf, np.inf)
"""The same for a label that only the user knows: surveys write missing ones as -999 or -9999."""


def label_columns(name: str, documented: str = "") -> tuple[Column, Column]:
    """A label and its error: unit and what is plausible; `documented` is the unit of numbers without one."""
    unit, low, high, greatest = PLAUSIBLE.get(name, ANY_LABEL)
    return (
        Column(name, unit=unit, documented=documented, low=low, high=high),
        error_column(f"{name}_error", greatest, unit=unit, documented=documented),
    )


LabelNames = tuple[str, ...]
Quantity = tuple[str, str]
"""("value" | "error", label), ("snr" | "flag", column) or ("at", "ra" | "dec" | "source_id")."""


class TrainingCuts(FrozenSettings):
    """Which labelled stars are good enough to train on; false switches a cut off. Defaults: ZGR23 Section 2.5."""

    snr_min: float | None = Setting(20.0, description="every S/N of the label survey exceeds this")
    teff_error_max: float | None = Setting(0.5, description="sigma(Teff) below this [kK]")
    feh_error_max: float | None = Setting(0.5, description="sigma([Fe/H]) below this [dex]")
    logg_error_max: float | None = Setting(0.5, description="sigma(log g) below this [dex]")
    parallax_over_error_min: float | None = Setting(3.0, description="parallax / error exceeds this")
    fidelity_min: float | None = Setting(0.5, description="fidelity_v2 exceeds this")
    excess_factor_max: float | None = Setting(1.3, description="phot_bp_rp_excess_factor below this")

    @field_validator("*", mode="before")
    @classmethod
    def _switched_off(cls, value: Any) -> Any:
        return None if value is False else value  # TOML has no null


@dataclass(frozen=True)
class StarLabels:
    """Labels of stars, one row a star; NaN where missing."""

    names: LabelNames  # of the labels, Teff first
    source_id: NDArray[np.int64]  # (star,)
    value: NDArray[np.float64]  # (star, label) [kK, dex, ...]
    error: NDArray[np.float64]  # (star, label) 1-sigma errors, same units
    snr: NDArray[np.float64]  # (star,) the smallest of the survey's S/N
    survey: NDArray[np.str_]  # (star,) which survey the labels come from
    cuts: tuple[Cut, ...]  # what happened to the catalogues' rows, in order
    rejected: tuple[Rejected, ...]  # rows that could not be read

    def __len__(self) -> int:
        return len(self.source_id)

    def take(self, index: NDArray[Any], *cuts: Cut) -> "StarLabels":
        """Select rows, with what is to be said of it."""
        rows = {name: getattr(self, name)[index] for name in ("source_id", "value", "error", "snr", "survey")}
        return replace(self, **rows, cuts=(*self.cuts, *cuts))


def read_labels(
    survey: LabelSurvey,
    paths: Sequence[Path],
    names: LabelNames,
    stars: Iterable[Positions] | None,
    release: str = DEFAULT_RELEASE.name,
) -> StarLabels:
    """Read one label catalogue and match it to Gaia; repeated visits are still there.

    Args:
        survey, paths: its description and files.
        names: the wanted labels, Teff first; a label that the survey lacks is NaN.
        stars: Gaia's stars in blocks, for a match by position.
        release: that the spectra are of; a column whose name says that its identifiers are another's is not used.

    Raises:
        InputError: a file or a needed column is missing; no way to match.
    """
    columns = _own_columns(survey)
    wanted, where = _wanted(survey, columns, names)
    options = ReadOptions(None, survey.hdu, survey.allow_truncated, "[[labels]] (source_id: its columns)", release)
    teff = where.get(("value", names[0]), names[0])
    parts: list[dict[str, NDArray[Any]]] = []
    rejected: list[Rejected] = []
    removed: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    n_read = 0
    for path in paths:
        no_teff = f"has no column {teff} for the label {names[0]}; map it in [labels.columns.labels]"
        for table in read_blocks(path, wanted, options, ((teff,), no_teff)):
            found = {key: column for key, column in where.items() if column in table}
            _check(survey, found, where, names, path)
            parts.append(_select(survey, table, found, columns, names, path, removed, missing))
            rejected += table.rejected
            missing.update(table.missing)
            n_read += len(table)
    if not parts:
        raise InputError("no label files were named; name at least one")
    kept = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    source_id = _match(survey, kept, stars, paths[0])
    cuts = [Cut(f"{survey.survey}: rows read", len(rejected), n_read)]
    cuts += [Cut(f"{survey.survey}: {what}, taken for missing", count, n_read) for what, count in missing.items()]
    for what, count in removed.items():
        cuts.append(Cut(f"{survey.survey}: {what}", count, cuts[-1].left - count))
    keep = source_id > 0
    rows = (source_id, kept["value"], kept["error"], kept["snr"], np.full(len(keep), survey.survey))
    no_star = Cut(f"{survey.survey}: no Gaia star", int((~keep).sum()), int(keep.sum()))
    return StarLabels(names, *rows, tuple(cuts), tuple(rejected)).take(keep, no_star)


UNDATED_ID = "gaia_source_id"
"""Label surveys have DR2's identifiers under this name as often as DR3's."""
ANY_ID = tuple(name for name in SOURCE_ID.all_names if name != UNDATED_ID)


def _own_columns(survey: LabelSurvey) -> LabelColumns:
    """Its columns; whose identifiers nobody has named may be under the names that other tables have for them."""
    columns = survey.columns or survey.preset().columns
    if survey.match == "position":
        return columns.model_copy(update={"source_id": ()})
    is_named = survey.survey != "custom" or (survey.columns is not None and "source_id" in columns.model_fields_set)
    return columns if is_named else columns.model_copy(update={"source_id": ANY_ID})


def _wanted(survey: LabelSurvey, columns: LabelColumns, names: LabelNames) -> tuple[list[Column], dict[Quantity, str]]:
    """The columns that the mapping names, and under which of them each quantity is."""
    wanted: dict[str, Column] = {}
    where: dict[Quantity, str] = {}

    def want(key: Quantity, candidates: tuple[str, ...], like: Column | None = None, **about: Any) -> None:
        if candidates:
            column = replace(like or Column("", **about), name=candidates[0], aliases=candidates[1:])
            wanted.setdefault(candidates[0], column)
            where[key] = candidates[0]

    for name in names:
        value, error = label_columns(name, survey.teff_unit if name == "teff" else "")
        want(("value", name), columns.labels.get(name, ()), value)
        want(("error", name), columns.errors.get(name, ()), error)
    for name in columns.snr:
        want(("snr", name), (name,), low=-900.0)
    want(("at", "ra"), columns.ra, unit="deg", low=-361.0, high=721.0)
    want(("at", "dec"), columns.dec, unit="deg", low=-90.001, high=90.001)
    rivals = (UNDATED_ID,) if columns.source_id == ANY_ID else ()
    want(("at", "source_id"), columns.source_id, kind="id", rivals=rivals)
    for rule in survey.rules():
        text = any(isinstance(v, str) for v in rule.allowed)
        number = "float" if NO_ID in rule.allowed else "integer"  # a missing one is no -1
        want(("flag", rule.column[0]), rule.column, kind="text" if text else number)
    return list(wanted.values()), where


def _check(
    survey: LabelSurvey, found: dict[Quantity, str], where: dict[Quantity, str], names: LabelNames, path: Path
) -> None:
    """Refuse a file that lacks a label which its survey has, or an error, or a flag that the user names."""
    lacking = [r.column[0] for r in survey.rules() if survey.flags and ("flag", r.column[0]) not in found]
    if lacking:
        raise InputError(f"{path}: has no column {lacking[0]} to cut on; correct [[labels.flags]]")
    for name in names:
        # A survey's other releases may lack a label that is not the first; half a label is a mistake.
        has = [kind for kind in ("value", "error") if (kind, name) in found]
        lost = [kind for kind in ("value", "error") if (kind, name) in where and kind not in has]
        if lost and (has or name in ("teff", "feh", "logg")):
            raise InputError(
                f"{path}: has no column {where[lost[0], name]} for the {'error of ' if lost[0] == 'error' else ''}"
                f"label {name}; map it in [labels.columns]"
            )
        if has == ["value"]:
            raise InputError(f"{path}: label {name} has no error column; map it in [labels.columns.errors]")


def _select(
    survey: LabelSurvey,
    table: Table,
    found: dict[Quantity, str],
    columns: LabelColumns,
    names: LabelNames,
    path: Path,
    removed: Counter[str],
    missing: Counter[str],
) -> dict[str, NDArray[Any]]:
    """Labels of a block in internal units, with S/N and what to match by, the cuts applied.

    Rows are counted in `removed`, single labels in `missing`.
    """
    n = len(table)
    keep = np.ones(n, bool)

    def cut(what: str, bad: NDArray[np.bool_]) -> None:
        nonlocal keep
        removed[what] += int((keep & bad).sum())
        keep = keep & ~bad

    value, error = np.full((n, len(names)), np.nan), np.full((n, len(names)), np.nan)
    for i, name in enumerate(names):
        if ("value", name) not in found:
            continue
        raw, raw_error = table.floats(found["value", name]), table.floats(found["error", name])
        good = np.isfinite(raw) & np.isfinite(raw_error)
        value[good, i] = raw[good]
        error[good, i] = np.hypot(raw_error[good], survey.error_floor.get(name, 0.0))
    for rule in survey.rules():
        if ("flag", rule.column[0]) not in found:
            removed[f"no column {rule.column[0]} to cut on"] += 0
            continue
        bad = _flagged(rule, table.columns[found["flag", rule.column[0]]])
        if rule.label is None:
            cut(rule.sentence, bad)
        elif rule.label in names:
            i = names.index(rule.label)
            missing[f"{rule.label} where {rule.sentence}"] += int((keep & bad & np.isfinite(value[:, i])).sum())
            value[bad, i] = error[bad, i] = np.nan
    cut("no Teff with an error", ~np.isfinite(value[:, 0]))
    low, high = survey.teff_limits()
    with np.errstate(invalid="ignore"):
        cut(f"Teff outside {low:g} ... {high:g} K", (value[:, 0] < low * 1e-3) | (value[:, 0] >= high * 1e-3))
    ratios = [table.floats(found["snr", name]) for name in columns.snr if ("snr", name) in found]
    snr = np.min(ratios, axis=0) if ratios else np.full(n, np.nan)
    if survey.snr_min > 0:
        if not ratios:
            raise InputError(f"{path}: snr_min is set but none of {', '.join(columns.snr) or 'no column'} is there")
        with np.errstate(invalid="ignore"):
            cut(f"S/N <= {survey.snr_min:g}", ~(snr > survey.snr_min))
    by_id = ("at", "source_id") in found
    by_position = ("at", "ra") in found and ("at", "dec") in found
    rows = {
        "value": value,
        "error": error,
        "snr": snr,
        "source_id": table.columns[found["at", "source_id"]] if by_id else np.zeros(n, np.int64),
        "ra": table.floats(found.get(("at", "ra"), "")),
        "dec": table.floats(found.get(("at", "dec"), "")),
        "by_id": np.full(n, by_id),
        "by_position": np.full(n, by_position),
    }
    return {name: values[keep] for name, values in rows.items()}


def _flagged(rule: FlagRule, values: NDArray[Any]) -> NDArray[np.bool_]:
    """(row,) which rows a flag speaks against; a flag that is missing does not speak for one."""
    if rule.allowed:
        return ~np.isin(values, np.array(rule.allowed, dtype=values.dtype))
    mask = np.int64(sum(1 << bit for bit in set(rule.forbidden_bits)))
    return np.asarray(((values & mask) != 0) | (values == NO_ID))


def _match(
    survey: LabelSurvey, rows: dict[str, NDArray[Any]], stars: Iterable[Positions] | None, path: Path
) -> NDArray[np.int64]:
    """(row,) source_id of every row, not positive where it has no star."""
    if survey.match == "source_id" and not rows["by_id"].all():
        raise InputError(
            f"{path}: has no source_id column to match by; map it in [labels.columns] or match by position"
        )
    if rows["by_id"].all() and survey.match != "position":
        return rows["source_id"]
    if not rows["by_position"].all():
        raise InputError(f"{path}: has neither a source_id nor ra and dec; map them in [labels.columns]")
    blocks = iter(stars or ())
    first = next(blocks, None)
    if first is None or not np.isfinite(first.ra).any():
        raise InputError(f"{path}: matching by position needs ra and dec in Gaia's source table; name it under [gaia]")
    epoch = survey.epoch if survey.epoch is not None else survey.preset().epoch
    return match_positions(chain((first,), blocks), rows["ra"], rows["dec"], epoch, survey.radius_arcsec)


def join_labels(parts: Sequence[StarLabels]) -> StarLabels:
    """Join surveys' labels; of repeated visits the highest S/N wins, ties go to the survey that was named first."""
    rows = {n: np.concatenate([getattr(p, n) for p in parts]) for n in ("source_id", "value", "error", "snr", "survey")}
    order = np.argsort(-np.nan_to_num(rows["snr"], nan=-1.0), kind="stable")
    _, first = np.unique(rows["source_id"][order], return_index=True)
    chosen = np.sort(order[first])
    cuts, rejected = tuple(c for p in parts for c in p.cuts), tuple(r for p in parts for r in p.rejected)
    n_repeated = len(order) - len(chosen)
    together = StarLabels(parts[0].names, **rows, cuts=cuts, rejected=rejected)
    return together.take(chosen, Cut("labels: repeated visits, highest S/N kept", n_repeated, len(chosen)))


TRAINING_RULES = {
    "snr_min": ("label_snr", ">"),
    "teff_error_max": ("teff_error", "<"),
    "feh_error_max": ("feh_error", "<"),
    "logg_error_max": ("logg_error", "<"),
    "parallax_over_error_min": ("parallax / error", ">"),
    "fidelity_min": ("fidelity_v2", ">"),
    "excess_factor_max": ("phot_bp_rp_excess_factor", "<"),
}
"""Of `TrainingCuts`: what must be larger, or smaller."""
CUT_COLUMNS = (*(what.removesuffix(" / error") for what, _ in TRAINING_RULES.values()), "parallax_error")


def training_cuts(
    cuts: TrainingCuts, columns: dict[str, NDArray[np.float64]], where: str
) -> tuple[NDArray[np.bool_], tuple[Cut, ...]]:
    """Select training stars by (star,) `CUT_COLUMNS`, a missing value failing its rule, in the order of the paper.

    Returns:
        (star,) True where kept, and how many stars each rule removes.

    Raises:
        InputError: a rule needs a column that is not there, or that no star has; `where` says what they belong to.
    """
    n = len(next(iter(columns.values())))
    keep = np.ones(n, bool)
    table = [Cut("stars with labels", 0, n)]
    for setting, (what, sign) in TRAINING_RULES.items():
        limit = getattr(cuts, setting)
        if limit is None:
            continue
        name = what.removesuffix(" / error")
        if name not in columns or (n and not np.isfinite(columns[name]).any()):
            raise InputError(
                f"{where}: the training cut {setting} needs {name}, which no star has; give it or set it false"
            )
        with np.errstate(invalid="ignore", divide="ignore"):
            value = columns[name] if what == name else columns[name] / columns[f"{name}_error"]
            good = value > limit if sign == ">" else value < limit
        removed = int((keep & ~good).sum())
        keep &= good
        table.append(Cut(f"{what} {sign} {limit:g}", removed, int(keep.sum())))
    return keep, tuple(table)
