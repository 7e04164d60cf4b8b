"""Star tables straight from survey files, one after the other: spectra read, calibrated, and joined to all other tables.

Memory does not grow with the files. Every row of the XP files is accounted for, part by part:
rows read = stars in the table + stars cut + rows quarantined.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive import gaia_source, labels, photometric
from xpbayes.archive import reddening as dust_maps
from xpbayes.archive.companion_table import SeenIds
from xpbayes.archive.companions import Companions
from xpbayes.archive.survey_config import SurveySettings, expand
from xpbayes.archive.tables import Table
from xpbayes.archive.xp import XpRows, read_xp
from xpbayes.data.rejected import Rejected
from xpbayes.data.spectra import Cut, Spectra
from xpbayes.errors import InputError
from xpbayes.instrument.xp_covariance import CalibratedXp
from xpbayes.release import DEFAULT_RELEASE


@dataclass(frozen=True)
class Part:
    """Stars of one XP file, or some of them."""

    table: Spectra  # the stars that were selected, with the counts of what was not
    rejected: tuple[Rejected, ...]  # rows of this part that could not be used
    n_read: int  # rows of the file that this part accounts for
    n_cut: int  # of these, stars that were read but not selected
    n_floored: int  # of these, stars whose covariance needed ZGR23's eigenvalue floor
    n_uncorrected: int  # stars of the table with a parallax whose zero point was asked for and is not known


def stream_stars(survey: SurveySettings, base: Path, companions: Companions) -> Iterator[Part]:
    """Read, calibrate and join the spectra of all files of a survey, whose names start from `base`.

    Yields parts of some thousand stars in the order of the files; a source_id that came before is quarantined.
    """
    seen = SeenIds()
    for path in expand(survey.xp.files, base):
        yield from stream_file(survey, path, companions, seen)


def stream_file(survey: SurveySettings, path: Path, companions: Companions, seen: SeenIds) -> Iterator[Part]:
    """Read, calibrate and join the spectra of one file; `seen` are the source_ids of earlier ones, its own are added."""
    held: list[XpRows] = []
    rejected: list[Rejected] = []
    n_held = 0
    for rows in read_xp(path, survey.xp.error_scaling, survey.xp_options()):
        rejected += rows.rejected
        repeated = seen.add(rows.source_id)
        if repeated.any():
            rejected += [
                Rejected(path.name, int(rows.row[i]), int(rows.source_id[i]), "source_id was there before")
                for i in np.flatnonzero(repeated)
            ]
            rows = rows.take(~repeated)
        while len(rows):
            room = survey.stars_per_file - n_held
            held.append(rows.take(slice(0, room)))
            n_held += len(held[-1])
            rows = rows.take(slice(room, None))
            if n_held == survey.stars_per_file:
                yield _join(survey, path, held, rejected, companions)
                held, rejected, n_held = [], [], 0
        held = held or [rows]  # without a star, when all that came was rejected
    if n_held or rejected:
        yield _join(survey, path, held, rejected, companions)


COMPANIONS = ("Gaia's source table", "2MASS", "unWISE", "the label catalogues", "the reddening estimates")
FEW_STARS_HAVE = COMPANIONS[3:]
PHOTOMETRY: dict[str, tuple[str, Callable[..., photometric.BandFluxes]]] = {
    "two_mass": ("2MASS", photometric.two_mass_fluxes),
    "unwise": ("unWISE", photometric.unwise_fluxes),
}


def idle_companions(cuts: Iterable[Cut]) -> list[str]:
    """Say, by the cuts of all parts, which tables gave nothing to any star, a wrong file most often, or not to all."""
    left = {c.what: c.left for c in cuts}
    removed = {c.what: c.removed for c in cuts}
    n_stars = left.get("rows read", 0)
    out: list[str] = []
    for name in COMPANIONS:
        own = [what for what in left if what.startswith(f"{name}: ")]
        lacking = n_stars - left.get(f"in {name}", n_stars)
        if left.get(f"in {name}") == 0:
            out.append(f"none of the {n_stars} stars is in {name}")
        elif own and left[own[-1]] == 0:
            out.append(f"no measurement of {name} counts (most went with '{max(own, key=lambda what: removed[what])}')")
        elif lacking and name not in FEW_STARS_HAVE:
            out.append(f"{lacking} of the {n_stars} stars {'is' if lacking == 1 else 'are'} not in {name}")
    return out


def _join(
    survey: SurveySettings, path: Path, held: list[XpRows], rejected: list[Rejected], companions: Companions
) -> Part:
    source_id, product = np.concatenate([rows.source_id for rows in held]), held[-1].product
    xp = CalibratedXp.join([rows.xp for rows in held])  # the first may hold no star, which tells of no instrument
    notes = dict(companions.notes)
    n, n_floored = len(source_id), int(xp.floored.sum())
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
        if "parallax_zero_point" in gaia:
            unknown = int((known & ~np.isfinite(gaia.floats("parallax_zero_point"))).sum())
            notes["parallax_zero_point"] += f"; {unknown} stars outside its range left as they are"
    band_flux, band_weight = np.zeros((n, len(survey.bands))), np.zeros((n, len(survey.bands)))
    for kind, (title, to_fluxes) in PHOTOMETRY.items():
        if (companion := getattr(companions, kind)) is None:
            continue
        aligned, known = companion.align(source_id)
        out = to_fluxes(aligned, norm_dg, getattr(survey, kind).cuts)
        cuts += [Cut(f"in {title}", 0, int(known.sum())), *out.cuts]
        for i, band in enumerate(out.bands):
            if band in survey.bands:
                band_flux[:, survey.bands.index(band)] = out.flux[:, i]
                band_weight[:, survey.bands.index(band)] = out.inverse_error[:, i]
    label_columns = _label_columns(survey, companions, source_id)
    reddening_columns = _reddening(survey, companions, columns, source_id)
    for what, name, found in (
        ("label catalogues", survey.label_names[0], label_columns),
        ("reddening estimates", "reddening", reddening_columns),
    ):
        if found:
            cuts.append(Cut(f"in the {what}", 0, int(np.isfinite(found[name]).sum())))
    table = Spectra(
        channels=survey.channels(),
        label_names=survey.label_names,
        source_id=source_id,
        flux=np.concatenate([xp.flux, band_flux.astype(np.float32)], axis=1),
        xp_whitening=xp.whitening,
        band_inverse_error=band_weight.astype(np.float32),
        columns=columns | label_columns | reddening_columns,
        cuts=tuple(cuts),
        provenance={
            "source": path.name,
            "xp_product": product,
            "xp_error_scaling": survey.xp.error_scaling,
            "xp_correlation": "published" if product == "continuous" else "implied by the XP bases",
            "eigenvalue_floor": f"{n_floored} of {n} stars",
            **notes,
        },
        extra_units=units,
        instrument=held[-1].instrument,
    )
    table = _select(survey, table, path)
    return Part(table, tuple(rejected), n + len(rejected), n - len(table), n_floored, _n_uncorrected(table))


def _n_uncorrected(table: Spectra) -> int:
    """Stars with a parallax that keep it, though the zero point was asked for."""
    if "parallax_zero_point" not in table.columns:
        return 0
    return int((table.is_measured("parallax") & ~np.isfinite(table.column("parallax_zero_point"))).sum())


def uncorrected_parallaxes(n: int) -> list[str]:
    """Say how many parallaxes were left as they are; nothing if none was."""
    return [f"{n} parallaxes without a known zero point left as they are"] if n else []


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
        n_draws, seed = survey.reddening.n_draws, survey.reddening.seed
        value, error = dust_maps.monte_carlo_reddening(
            companions.dust, source_id, ra, dec, parallax, parallax_error, n_draws, seed
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


RULES_OF_FIRST_RELEASE = {"fidelity_v2": "fidelity_min", "phot_bp_rp_excess_factor": "excess_factor_max"}
"""Training cuts on columns that DR3 has and later releases may lack: there they are left out, not refused."""


def _select(survey: SurveySettings, table: Spectra, path: Path) -> Spectra:
    select = survey.select
    if select == "auto":
        select = "labelled" if survey.labels else "all"
    if select == "all":
        return table
    table = table.take(np.isfinite(table.column(survey.label_names[0])), "no label")
    if select == "labelled" or not len(table):
        return table
    cuts = survey.training_cuts
    for name, setting in RULES_OF_FIRST_RELEASE.items():
        if table.instrument.release != DEFAULT_RELEASE.name and not np.isfinite(table.column(name)).any():
            cuts = cuts.model_copy(update={setting: None})
            what = f"{name}: {table.instrument.title} has none, not cut on"
            table = table.replace(cuts=(*table.cuts, Cut(what, 0, len(table))))
    keep, counts = labels.training_cuts(cuts, {n: table.column(n) for n in labels.CUT_COLUMNS}, path.name)
    return table.take(keep).replace(cuts=(*table.cuts, *counts))
