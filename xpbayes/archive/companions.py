"""The tables that are joined to spectra, as a survey.toml names them: Gaia, 2MASS, unWISE, labels, reddening, dust."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from xpbayes.archive import gaia_source, labels, photometric
from xpbayes.archive import reddening as dust_maps
from xpbayes.archive.companion_table import SortedRuns
from xpbayes.archive.positions import Positions, positions_of
from xpbayes.archive.survey_config import DoorSettings, SurveySettings, expand
from xpbayes.archive.tables import Table
from xpbayes.archive.xp import instrument_of_file
from xpbayes.data.rejected import Rejected
from xpbayes.errors import InputError
from xpbayes.release import DEFAULT_RELEASE, RELEASES

log = logging.getLogger(__name__)

Reader = Callable[..., Table | SortedRuns]


@dataclass(frozen=True)
class Companions:
    """The tables that are joined to the spectra, each read once; None where the survey has none."""

    gaia: Table | SortedRuns | None  # parallaxes as they are to be used
    two_mass: Table | SortedRuns | None
    unwise: Table | SortedRuns | None
    star_labels: labels.StarLabels | None
    reddening: Table | SortedRuns | None  # the user's own estimates
    dust: dust_maps.MapQuery | None  # a dust map
    rejected: tuple[Rejected, ...]  # rows of all these tables that could not be read
    notes: dict[str, str]  # what was assumed, for the provenance
    summary: tuple[str, ...] = ()  # per table, what became of its rows, in words


def release_of_survey(survey: SurveySettings, base: Path) -> str:
    """Data release of a survey's spectra: as it says, or as the first file's coefficients do."""
    if survey.release is not None:
        return survey.release
    return instrument_of_file(expand(survey.xp.files, base)[0], survey.xp_options()).release


def read_companions(survey: SurveySettings, base: Path, scratch: Path | None = None) -> Companions:  # noqa: PLR0915 - one table after the other, each as its survey needs
    """Read everything but the spectra; names start from `base`, without `scratch` all is held in memory."""
    notes: dict[str, str] = {}
    rejected: list[Rejected] = []
    release = release_of_survey(survey, base)

    summary: list[str] = []

    def table(name: str, door: DoorSettings, section: str, read: Reader) -> Table | SortedRuns | None:
        if not door.files:
            return None
        files = expand(door.files, base)
        place = None if scratch is None else scratch / name.replace(" ", "_")
        out = read(files, place, options=door.options(f"[{section}]", release))
        rejected.extend(out.rejected)
        if not len(out):
            first = f"; the first, row {out.rejected[0].row}: {out.rejected[0].reason}" if out.rejected else ""
            raise InputError(f"{files[0]}: none of the {out.n_read} rows for {name} can be used{first}")
        where = ""
        if isinstance(out, SortedRuns):
            where = f", sorted on disk in {len(out.runs)} runs"
        elif repeated := len(out) - len(np.unique(out.columns["source_id"])):
            where = f", {repeated} repeated (first kept)"
        log.info(
            f"{name}: {len(out)} rows from {len(files)} file{'s' if len(files) > 1 else ''}"
            + (f", {len(out.rejected)} quarantined" if out.rejected else "")
            + where
        )
        for what, count in out.missing.items():
            log.info(f"{name}: {what}: {count} taken for missing")
        summary.append(f"{name} {len(out)} of {out.n_read} rows used, {len(out.rejected)} quarantined")
        return out

    read_gaia = partial(gaia_source.read_gaia_source, zero_point=survey.gaia.parallax_zero_point)
    gaia = table("Gaia source table", survey.gaia, "gaia", read_gaia)
    if gaia is not None:
        corrected = survey.gaia.parallax_zero_point
        notes["parallax_zero_point"] = gaia_source.zero_point_name(gaia) if corrected else "not corrected"
        if gaia_source.EXCESS in gaia and gaia_source.EXCESS not in RELEASES[release].source_columns:
            notes[gaia_source.EXCESS] = "from the mean fluxes: the release has no such column"
        lacking = [n for n in ("fidelity_v2", "norm_dg", "ruwe") if n not in gaia]
        if lacking and release != DEFAULT_RELEASE.name:
            log.warning(f"Gaia source table: has no {', '.join(lacking)}; cuts and confidences do without")
    settings = survey.two_mass
    read_two_mass = partial(
        photometric.read_two_mass, quality_columns=settings.quality_columns, quality=settings.cuts.quality
    )
    two_mass = table("2MASS", settings, "two_mass", read_two_mass)
    unwise = table("unWISE", survey.unwise, "unwise", photometric.read_unwise)
    if (two_mass is not None or unwise is not None) and (gaia is None or "norm_dg" not in gaia):
        notes["crowding"] = "norm_dg unknown: crowded stars are not cut from 2MASS and unWISE"

    def stars() -> Iterable[Positions]:
        return () if gaia is None else positions_of(gaia, release)

    star_labels = None
    if survey.labels:
        parts = [
            labels.read_labels(one, expand(one.files, base), survey.label_names, stars(), release)
            for one in survey.labels
        ]
        star_labels = labels.join_labels(parts)
        rejected.extend(star_labels.rejected)
        for c in star_labels.cuts:
            log.info(f"{c.what}: {c.removed} removed, {c.left} left")
        if not len(star_labels):
            worst = max(star_labels.cuts, key=lambda c: c.removed)
            raise InputError(
                f"{expand(survey.labels[0].files, base)[0]}: no label is left (most went with {worst.what})"
            )
        n_bad = len(star_labels.rejected)
        summary.append(f"labels {len(star_labels)} stars, {n_bad} row{'' if n_bad == 1 else 's'} quarantined")
        notes["labels"] = ", ".join(one.survey for one in survey.labels)
    own, dust = None, None
    if survey.reddening.source == "columns":
        own = table("reddening", survey.reddening, "reddening", dust_maps.read_reddening)
        notes["reddening"] = "the user's own columns"
    elif survey.reddening.source == "bayestar19":
        place = survey.reddening.map_file
        dust = dust_maps.bayestar19(base / place if place else None)
        notes["reddening"] = f"Bayestar19, {survey.reddening.n_draws} draws over map and parallax"
    return Companions(gaia, two_mass, unwise, star_labels, own, dust, tuple(rejected), notes, tuple(summary))
