"""From survey files to star tables: every table of a survey.toml, joined to its XP spectra.

`stream_stars` yields star tables one after the other, flat in memory, for whoever wants to solve them at once;
`prepare` writes them, with the quarantine and a manifest beside. Every row of the XP files is accounted for:
rows read = stars written + stars cut + rows quarantined.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive import gaia_source, labels, photometric
from xpbayes.archive import reddening as dust_maps
from xpbayes.archive.quarantine import Rejected, write_quarantine
from xpbayes.archive.star_table import Cut, StarTable, write_star_table
from xpbayes.archive.survey_config import SurveySettings, expand, read_survey
from xpbayes.archive.tables import Table
from xpbayes.archive.xp import read_xp, xp_product
from xpbayes.calibration.xp_covariance import CalibratedXp
from xpbayes.errors import InputError

Say = Callable[[str], None]

MANIFEST, QUARANTINE = "prepare.json", "quarantine.csv"
LABEL_EXTRAS = ("label_snr", "label_survey")


@dataclass(frozen=True)
class Companions:
    """The tables that are joined to the spectra, each read once; None where the survey has none.

    Attributes:
        gaia: Gaia's source table, parallaxes as they are to be used.
        two_mass: 2MASS matches.
        unwise: unWISE matches.
        star_labels: one row a labelled star.
        reddening: the user's own estimates.
        dust: a dust map.
        rejected: rows of all these tables that could not be read.
        notes: what was assumed, for the provenance.
    """

    gaia: Table | None
    two_mass: Table | None
    unwise: Table | None
    star_labels: labels.StarLabels | None
    reddening: Table | None
    dust: dust_maps.MapQuery | None
    rejected: tuple[Rejected, ...]
    notes: dict[str, str]


@dataclass(frozen=True)
class Part:
    """Stars of one XP file, or some of them.

    Attributes:
        file: the XP file.
        table: the stars that were selected, with the counts of what was not.
        rejected: rows of this part that could not be used.
        n_read: rows of the XP file that this part accounts for.
        n_cut: of these, stars that were read but not selected.
        n_floored: of these, stars whose covariance needed ZGR23's eigenvalue floor.
    """

    file: Path
    table: StarTable
    rejected: tuple[Rejected, ...]
    n_read: int
    n_cut: int
    n_floored: int


def read_companions(survey: SurveySettings, base: Path, say: Say) -> Companions:
    """Read everything but the spectra.

    Args:
        survey: which files.
        base: folder that relative names start from.
        say: receives one line per table.
    """
    notes: dict[str, str] = {}
    rejected: list[Rejected] = []

    def table(name: str, patterns: tuple[str, ...], read: Callable[[list[Path]], Table]) -> Table | None:
        if not patterns:
            return None
        files = expand(patterns, base)
        out = read(files)
        rejected.extend(out.rejected)
        repeated = len(out) - len(np.unique(out.columns["source_id"]))
        say(
            f"{name}: {len(out)} rows from {len(files)} file{'s' if len(files) > 1 else ''}"
            + (f", {len(out.rejected)} quarantined" if out.rejected else "")
            + (f", {repeated} repeated (first kept)" if repeated else "")
        )
        return out

    gaia = table("Gaia source table", survey.gaia.files, gaia_source.read_gaia_source)
    if gaia is not None and survey.gaia.parallax_zero_point:
        zero_point = gaia_source.parallax_zero_point(gaia)
        corrected = gaia.floats("parallax") - np.nan_to_num(zero_point)
        gaia = Table(
            {**gaia.columns, "parallax": corrected, "parallax_zero_point": zero_point}, gaia.rejected, gaia.n_read
        )
        n = int((~np.isfinite(zero_point)).sum())
        notes["parallax_zero_point"] = f"{gaia_source.ZERO_POINT_NAME}; {n} stars outside its range left as they are"
    elif gaia is not None:
        notes["parallax_zero_point"] = "not corrected"
    two_mass = table("2MASS", survey.two_mass.files, photometric.read_two_mass)
    unwise = table("unWISE", survey.unwise.files, photometric.read_unwise)
    if (two_mass is not None or unwise is not None) and (gaia is None or "norm_dg" not in gaia):
        notes["crowding"] = "norm_dg unknown: crowded stars are not cut from 2MASS and unWISE"
    star_labels = None
    if survey.labels:
        positions = labels.Positions.of(gaia) if gaia is not None else None
        parts = [labels.read_labels(s, expand(s.files, base), survey.label_names, positions) for s in survey.labels]
        star_labels = labels.join_labels(parts)
        rejected.extend(star_labels.rejected)
        for c in star_labels.cuts:
            say(f"{c.what}: {c.removed} removed, {c.left} left")
        notes["labels"] = ", ".join(s.survey for s in survey.labels)
    own, dust = None, None
    if survey.reddening.source == "columns":
        own = table("reddening", survey.reddening.files, dust_maps.read_reddening)
        notes["reddening"] = "the user's own columns"
    elif survey.reddening.source == "bayestar19":
        place = survey.reddening.map_file
        dust = dust_maps.bayestar19(base / place if place else None)
        notes["reddening"] = f"Bayestar19, {survey.reddening.n_draws} draws over map and parallax"
    return Companions(gaia, two_mass, unwise, star_labels, own, dust, tuple(rejected), notes)


def stream_stars(survey: SurveySettings, base: Path, companions: Companions) -> Iterator[Part]:
    """Read, calibrate and join the spectra, some thousand stars at a time.

    Args:
        survey: which files.
        base: folder that relative names start from.
        companions: what `read_companions` returned.

    Yields:
        parts in the order of the files; a source_id that came before is quarantined.
    """
    seen = np.zeros(0, np.int64)
    for path in expand(survey.xp.files, base):
        held: list[tuple[NDArray[np.int64], NDArray[np.int64], CalibratedXp]] = []
        rejected: list[Rejected] = []
        n_held = 0
        for rows in read_xp(path, survey.xp.error_scaling):
            repeated = np.isin(rows.source_id, seen)
            _, first = np.unique(rows.source_id, return_index=True)
            again = np.ones(len(rows), bool)
            again[first] = False
            repeated |= again
            rejected += rows.rejected
            rejected += [
                Rejected(path.name, int(rows.row[i]), int(rows.source_id[i]), "source_id was there before")
                for i in np.flatnonzero(repeated)
            ]
            keep = ~repeated
            kept = rows.xp if keep.all() else _take(rows.xp, keep)  # the common case without a copy
            held.append((rows.source_id[keep], rows.row[keep], kept))
            seen = np.union1d(seen, rows.source_id)
            n_held += int(keep.sum())
            if n_held >= survey.stars_per_file:
                yield _join(survey, path, held, rejected, companions)
                held, rejected, n_held = [], [], 0
        if n_held or rejected:
            yield _join(survey, path, held, rejected, companions)


def _take(xp: CalibratedXp, index: NDArray[np.bool_]) -> CalibratedXp:
    return CalibratedXp(xp.flux[index], xp.whitening[index], xp.present[index], xp.floored[index])


def _join(
    survey: SurveySettings,
    path: Path,
    held: list[tuple[NDArray[np.int64], NDArray[np.int64], CalibratedXp]],
    rejected: list[Rejected],
    companions: Companions,
) -> Part:
    channels = survey.channels()
    source_id = np.concatenate([h[0] for h in held])
    flux = np.concatenate([h[2].flux for h in held])
    n = len(source_id)
    n_floored = int(sum(h[2].floored.sum() for h in held))
    columns: dict[str, NDArray[Any]] = {}
    units: dict[str, str] = {}
    cuts = [Cut("rows read", len(rejected), n)]
    norm_dg = np.full(n, np.nan)
    if companions.gaia is not None:
        gaia, known = companions.gaia.align(source_id)
        cuts.append(Cut("in Gaia's source table", 0, int(known.sum())))
        columns |= {
            name: values if name in gaia_source.POSITIONS else values.astype(np.float32)
            for name, values in gaia.columns.items()
            if name not in ("source_id", "astrometric_params_solved")
        }
        units |= {k: v for k, v in gaia_source.UNITS.items() if k in columns}
        norm_dg = gaia.floats("norm_dg")
    band_flux, band_weight = np.zeros((n, len(survey.bands))), np.zeros((n, len(survey.bands)))
    for out in _bands(survey, companions, source_id, norm_dg):
        cuts += out.cuts
        for i, band in enumerate(out.bands):
            if band in survey.bands:
                band_flux[:, survey.bands.index(band)] = out.flux[:, i]
                band_weight[:, survey.bands.index(band)] = out.inverse_error[:, i]
    table = StarTable(
        channels=channels,
        label_names=survey.label_names,
        source_id=source_id,
        flux=np.concatenate([flux, band_flux.astype(np.float32)], axis=1),
        xp_whitening=np.concatenate([h[2].whitening for h in held]),
        band_inverse_error=band_weight.astype(np.float32),
        columns=columns
        | _label_columns(survey, companions, source_id)
        | _reddening(survey, companions, columns, n, source_id),
        cuts=tuple(cuts),
        provenance={
            "source": path.name,
            "xp_product": xp_product(path),
            "xp_error_scaling": survey.xp.error_scaling,
            "xp_correlation": "published" if xp_product(path) == "continuous" else "implied by the XP bases",
            "eigenvalue_floor": f"{n_floored} of {n} stars",
            **companions.notes,
        },
        extra_units=units,
    )
    table = _select(survey, table, path)
    return Part(path, table, tuple(rejected), n + len(rejected), n - len(table), n_floored)


def _bands(
    survey: SurveySettings, companions: Companions, source_id: NDArray[np.int64], norm_dg: NDArray[np.float64]
) -> Iterator[photometric.BandFluxes]:
    if companions.two_mass is not None:
        aligned, _ = companions.two_mass.align(source_id)
        yield photometric.two_mass_fluxes(aligned, norm_dg, survey.two_mass.cuts)
    if companions.unwise is not None:
        aligned, _ = companions.unwise.align(source_id)
        yield photometric.unwise_fluxes(aligned, norm_dg, survey.unwise.cuts)


def _label_columns(
    survey: SurveySettings, companions: Companions, source_id: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    if companions.star_labels is None:
        return {}
    found = companions.star_labels
    rows: dict[str, NDArray[Any]] = {"source_id": found.source_id, "label_snr": found.snr, "label_survey": found.survey}
    for i, name in enumerate(found.names):
        rows[name], rows[f"{name}_error"] = found.value[:, i], found.error[:, i]
    aligned, _ = Table(rows, (), len(found)).align(source_id)
    return {
        name: values.astype(np.float32) if values.dtype.kind == "f" else values
        for name, values in aligned.columns.items()
        if name != "source_id"
    }


def _reddening(
    survey: SurveySettings,
    companions: Companions,
    gaia: dict[str, NDArray[Any]],
    n: int,
    source_id: NDArray[np.int64],
) -> dict[str, NDArray[Any]]:
    if companions.reddening is not None:
        aligned, _ = companions.reddening.align(source_id)
        value, error = aligned.floats("reddening"), aligned.floats("reddening_error")
    elif companions.dust is not None:
        needed = ("ra", "dec", "parallax", "parallax_error")
        lost = [name for name in needed if name not in gaia]
        if lost:
            raise InputError(f"reddening by bayestar19 needs {lost[0]} in Gaia's source table; name it under [gaia]")
        ra, dec, parallax, parallax_error = (gaia[name].astype(np.float64) for name in needed)
        value, error = dust_maps.monte_carlo_reddening(
            companions.dust,
            source_id,
            ra,
            dec,
            parallax,
            parallax_error,
            n_draws=survey.reddening.n_draws,
            seed=survey.reddening.seed,
        )
    else:
        return {}
    # An estimate without any scatter (no dust in front, in every draw) is exact in the map, not in the sky.
    usable = np.isfinite(value) & np.isfinite(error)
    error = np.where(usable, np.maximum(error, dust_maps.ERROR_FLOOR), np.nan)
    return {
        "reddening": np.where(usable, value, np.nan).astype(np.float32),
        "reddening_error": error.astype(np.float32),
    }


def _select(survey: SurveySettings, table: StarTable, path: Path) -> StarTable:
    select = survey.select
    if select == "auto":
        select = "labelled" if survey.labels else "all"
    if select == "all":
        return table
    table = table.take(np.isfinite(table.column(survey.label_names[0])), "no label")
    if select == "labelled" or not len(table):
        return table
    names = [
        "label_snr",
        "teff_error",
        "feh_error",
        "logg_error",
        "parallax",
        "parallax_error",
        "fidelity_v2",
        "phot_bp_rp_excess_factor",
    ]
    keep, counts = labels.training_cuts(survey.training_cuts, {n: table.column(n) for n in names}, path.name)
    table = table.take(keep)
    return StarTable(**{**vars(table), "cuts": (*table.cuts, *counts)})


def prepare(config_path: Path, out: Path, say: Say = lambda line: None) -> list[Path]:
    """Turn the files of a survey.toml into star tables.

    Args:
        config_path: the survey.toml.
        out: folder for the tables, ``quarantine.csv`` and ``prepare.json``; made if absent.
        say: receives one line per step.

    Returns:
        the star tables, in the order of the XP files.

    Raises:
        InputError: a file, column or setting is missing or wrong; the folder already holds star tables; no star is
            left.
    """
    config_path, out = Path(config_path), Path(out)
    survey = read_survey(config_path)
    base = config_path.parent
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a folder")
    if out.is_dir() and any(out.glob("*.parquet")):
        raise InputError(f"{out}: already holds star tables; choose another folder or empty it")
    inputs = expand(survey.xp.files, base)
    companions = read_companions(survey, base, say)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error.strerror}); choose another folder") from error
    written: list[Path] = []
    rejected = list(companions.rejected)
    numbers: dict[Path, int] = {}
    totals = {"rows_read": 0, "stars_written": 0, "stars_cut": 0, "rows_quarantined": 0, "eigenvalue_floor": 0}
    cuts: dict[str, list[int]] = {}
    for part in stream_stars(survey, base, companions):
        totals["rows_read"] += part.n_read
        totals["stars_cut"] += part.n_cut
        totals["rows_quarantined"] += len(part.rejected)
        totals["eigenvalue_floor"] += part.n_floored
        rejected += part.rejected
        for cut in part.table.cuts:
            removed, left = cuts.get(cut.what, [0, 0])
            cuts[cut.what] = [removed + cut.removed, left + cut.left]
        if not len(part.table):
            continue
        number = numbers.get(part.file, 0)
        numbers[part.file] = number + 1
        written.append(write_star_table(part.table, out / f"{_stem(part.file, inputs)}-{number:04d}.parquet"))
        totals["stars_written"] += len(part.table)
        say(f"{written[-1].name}: {len(part.table)} stars")
    if totals["rows_read"] != totals["stars_written"] + totals["stars_cut"] + totals["rows_quarantined"]:
        raise RuntimeError(f"rows were lost: {totals}")  # a bug of ours, never the user's
    write_quarantine(rejected, out / QUARANTINE)
    manifest = {
        "kind": "prepared survey",
        "settings": survey.model_dump(mode="json"),
        "inputs": [p.name for p in inputs],
        "tables": [p.name for p in written],
        "totals": totals,
        "label_cuts": [asdict(c) for c in companions.star_labels.cuts] if companions.star_labels else [],
        "cuts": [{"what": k, "removed": v[0], "left": v[1]} for k, v in cuts.items()],
        "notes": companions.notes,
    }
    temporary = out / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps(manifest, indent=2) + "\n")
    os.replace(temporary, out / MANIFEST)
    for what, (removed, left) in cuts.items():
        say(f"{what}: {removed} removed, {left} left")
    say(
        f"{totals['rows_read']} rows read: {totals['stars_written']} stars written, {totals['stars_cut']} cut, "
        f"{totals['rows_quarantined']} quarantined ({QUARANTINE})"
    )
    if not written:
        raise InputError(
            f"{config_path}: no star is left of {totals['rows_read']} rows ({totals['rows_quarantined']} quarantined, "
            f"{totals['stars_cut']} cut); see {out / QUARANTINE} and {out / MANIFEST}"
        )
    return written


def _stem(path: Path, inputs: list[Path]) -> str:
    """A file's name without its suffixes; with its folder's where two inputs share a name."""
    stem = path.name.split(".")[0]
    if sum(p.name.split(".")[0] == stem for p in inputs) > 1:
        return f"{inputs.index(path):04d}-{stem}"
    return stem
