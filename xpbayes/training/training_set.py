"""From star tables to what training works on: cuts, the split by source_id, and the batch, larger than memory or not.

In: a star table, or files of them, and the settings. Out: a `TrainingSet`. Tables that are too large are read twice, some
thousand stars at a time: once for cuts and split, once to write what is left of them into files (`data.stars`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xpbayes.archive.labels import ANY_LABEL, PLAUSIBLE
from xpbayes.config import TrainingConfig
from xpbayes.data.spectra import MATRICES, OK, Cut, Spectra, add_up_cuts, join_star_tables
from xpbayes.data.spectra_file import read_star_table_rows
from xpbayes.data.stars import Stars, evenly, make_star_files, write_rows
from xpbayes.errors import InputError
from xpbayes.identity import Side, Split

STARS_AT_ONCE = 4096
ALL_STARS = "stars in the table"
"""The first of a run's cuts."""
MIN_TRAINING_STARS = 200
"""Fewer stars cannot pin down a network and a 16-component prior."""


@dataclass(frozen=True)
class TrainingSet:
    """Stars of a training run."""

    table: Spectra  # the training stars; without fluxes where the stars are in files
    stars: Stars  # the same as the mathematics sees them
    aside: Spectra  # stars kept aside, evenly picked, on which posteriors are to be calibrated
    beside: Spectra  # training stars, evenly picked, that are inferred blind beside them; none where none is kept aside
    held_out: Spectra  # held-out stars, evenly picked, on which the model is to be assessed; `n_held_out` in all
    n_held_out: int


@dataclass(frozen=True)
class _Sides:
    """Rows of a table that passed the cuts: which are for what."""

    training: Spectra
    beside: NDArray[np.intp]  # of the training stars
    aside: NDArray[np.intp]
    held_out: NDArray[np.intp]
    n_held_out: int


def training_set(table: Spectra, config: TrainingConfig, where: str) -> TrainingSet:
    """Select the stars of a training run from a table in memory, `where` in a message; InputError if too few."""
    kept = training_cuts(table, config.labels, config.teff_max, config.min_channels)
    sides = _split(kept, config, where)
    stars = sides.training.stars(
        config.labels, spectroscopic_parallax=True, label_error_floor=config.floor_for(len(config.labels))
    )
    aside, held_out = (kept.take(rows) for rows in (sides.aside, sides.held_out))
    return TrainingSet(sides.training, stars, aside, sides.training.take(sides.beside), held_out, sides.n_held_out)


def training_set_in_files(paths: Sequence[Path], config: TrainingConfig, scratch: Path) -> TrainingSet:
    """Select the stars of a training run from tables that are larger than memory, of the same channels and labels.

    The folder `scratch` receives the training stars: twice 4 bytes per pair of channels and star.

    Raises:
        InputError: a table cannot be used, they differ or repeat a star, too few stars are left, or there is no room.
    """
    slim: list[Spectra] = []
    names: list[str] = []
    inherited: list[Cut] = []
    for path in paths:
        for number, portion in enumerate(_portions(path)):
            if number == 0:
                inherited += portion.cuts
            kept = training_cuts(portion.replace(cuts=()), config.labels, config.teff_max, config.min_channels)
            slim.append(_without_fluxes(kept, config))
            names.append(path.name)
    together = join_star_tables(slim, names)
    together = together.replace(cuts=(*add_up_cuts(inherited), *_in_sequence(together.cuts)))
    sides = _split(together, config, str(paths[0] if len(paths) == 1 else paths[0].parent))
    training_ids = np.sort(sides.training.source_id)
    few = [together.source_id[sides.aside], sides.training.source_id[sides.beside], together.source_id[sides.held_out]]
    few_ids = [np.sort(ids) for ids in few]
    n_labels = len(config.labels)
    stars = make_star_files(scratch, len(training_ids), len(together.channels), n_labels)
    portions: tuple[list[Spectra], ...] = ([], [], [])
    at = 0
    for path in paths:
        for portion in _portions(path):
            mine = portion.take(np.isin(portion.source_id, training_ids))
            part = mine.stars(config.labels, spectroscopic_parallax=True, label_error_floor=config.floor_for(n_labels))
            write_rows(stars, slice(at, at + len(mine)), part)
            at += len(mine)
            for ids, tables in zip(few_ids, portions, strict=True):
                tables.append(portion.take(np.isin(portion.source_id, ids)))
    aside, beside, held_out = (join_star_tables(tables, names) for tables in portions)
    return TrainingSet(sides.training, stars, aside, beside, held_out, sides.n_held_out)


def n_rows(paths: Sequence[Path]) -> int:
    """Rows of Parquet files, from their footers; a file that is none counts nothing: its reader will say so."""
    total = 0
    for path in paths:
        try:
            total += pq.read_metadata(path).num_rows
        except (OSError, ValueError):
            continue
    return total


def _portions(path: Path) -> Iterator[Spectra]:
    return read_star_table_rows(path, at_once=STARS_AT_ONCE)


def _without_fluxes(table: Spectra, config: TrainingConfig) -> Spectra:
    """The columns that training looks at, and nothing large."""
    names = ["phot_g_mean_mag"]
    for name in (*config.labels, "parallax", "spectroscopic_parallax", "reddening"):
        names += [name, f"{name}_error"]
    return table.replace(
        **{name: getattr(table, name)[:, :0].copy() for name in MATRICES},
        columns={name: table.columns[name] for name in names if name in table.columns},
        extra_units={},
    )


def _in_sequence(cuts: Sequence[Cut]) -> tuple[Cut, ...]:
    """Count anew what each rule left: one that removed nothing from a portion was not counted there."""
    out: list[Cut] = []
    for cut in cuts:
        left = cut.left if not out else out[-1].left - cut.removed
        out.append(replace(cut, left=left))
    return tuple(out)


def _split(kept: Spectra, config: TrainingConfig, where: str) -> _Sides:
    split = Split(config.validation_fraction, config.calibration_fraction, config.split_seed)
    held, aside = (split.on(side, kept.source_id) for side in (Side.HELD_OUT, Side.KEPT_ASIDE))
    training = kept.take(~held, "held out for validation, by source_id")
    training = training.take(~aside[~held], "kept aside for calibration, by source_id")
    if len(training) < MIN_TRAINING_STARS:
        raise InputError(
            f"{where}: {len(training)} training stars are left after the cuts, at least {MIN_TRAINING_STARS} are needed; "
            f"of {len(kept)} that passed, {int(held.sum())} are held out (validation_fraction = "
            f"{config.validation_fraction:g}), {int(aside.sum())} kept aside (calibration_fraction = "
            f"{config.calibration_fraction:g}){most_removed(kept.cuts)}; bring more stars, or make these fractions smaller"
        )
    rows_aside, rows_held = np.flatnonzero(aside), np.flatnonzero(held)
    rows_aside = rows_aside[evenly(len(rows_aside), config.calibration_stars)]
    return _Sides(
        training,
        beside=evenly(len(training), config.calibration_stars - len(rows_aside) if len(rows_aside) else 0),
        aside=rows_aside,
        held_out=rows_held[evenly(len(rows_held), config.held_out_stars)],
        n_held_out=len(rows_held),
    )


def most_removed(cuts: Sequence[Cut]) -> str:
    """The cut of this run, not of what led to its table, that took most stars, in words; '' if none took any."""
    first = max((i for i, cut in enumerate(cuts) if cut.what == ALL_STARS), default=0)
    largest = max(cuts[first:], key=lambda c: c.removed, default=None)
    return f"; most others went with '{largest.what}', {largest.removed}" if largest and largest.removed else ""


# --------------------------------------------------------------------------------------------------------------- cuts


def has_distance(table: Spectra) -> NDArray[np.bool_]:
    """(star,) which stars have a parallax, measured or spectroscopic."""
    return table.is_measured("parallax") | np.isfinite(table.column("spectroscopic_parallax"))


def implausible(table: Spectra, label: str) -> tuple[NDArray[np.bool_], str]:
    """(star,) whose label or error nobody can have measured, as where catalogues are read; and the rule in words.

    Such are numbers that stand for missing ones, and those in another unit.
    """
    unit, low, high, greatest = PLAUSIBLE.get(label, ANY_LABEL)
    value, error = table.column(label), table.column(f"{label}_error")
    with np.errstate(invalid="ignore"):
        bad = (value <= low) | (value >= high) | (error >= greatest)
    return bad, f"{label} outside {low:g} ... {high:g} {unit.partition('(')[0]}".rstrip() + ", or its error too large"


def training_cuts(
    table: Spectra,
    labels: Sequence[str],
    teff_max: float | None = None,
    min_channels: int | None = None,
    *,
    distances: bool = True,
) -> Spectra:
    """Apply the training cuts, to stars with all labels and their errors; each is counted in the result's `cuts`.

    Args:
        table: all stars.
        labels: names of the labels.
        teff_max: training stars are cooler [kK]; any if None.
        min_channels: training stars were measured in at least so many channels; if None, bands may be missing and no
            sample of the spectrum, or nothing where there are bands alone.
        distances: training stars have a parallax, measured or spectroscopic.
    """
    table = table.replace(cuts=(*table.cuts, Cut(ALL_STARS, 0, len(table))))
    problems = table.problems(labelled=True)
    for reason in sorted(set(problems.tolist()) - {OK}):
        table, problems = table.take(problems != reason, f"unusable: {reason}"), problems[problems != reason]
    for name in labels:
        bad, what = implausible(table, name)
        table = table.take(~bad, what) if bad.any() else table
    label, error = table.labels(labels)
    complete = np.isfinite(label).all(axis=1) & np.isfinite(error).all(axis=1)
    table = table.take(complete, f"a label or its error is missing ({', '.join(labels)})")
    if "teff" in labels and teff_max is not None:
        table = table.take(table.column("teff") < teff_max, f"Teff not below {1e3 * teff_max:.0f} K")
    if distances:
        table = table.take(has_distance(table), "neither a parallax nor a spectroscopic parallax")
    present = table.channel_present()
    if min_channels is None:
        needed = present[:, : table.channels.n_xp or None]
        return table.take(needed.all(axis=1), "a sample of the spectrum is missing")
    return table.take(present.sum(axis=1) >= min_channels, f"fewer than {min_channels} channels")
