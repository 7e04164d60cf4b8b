"""Residuals against another survey by cross-match (ZGR23 Fig. 16).

In: rows of a catalogue, and a label survey's table in any format and naming that `archive.labels` reads.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from xpbayes.analysis.figures.residual_columns import (
    BASIC,
    MIN_STARS,
    Matches,
    draw_residuals,
    residual_tables,
    residuals,
)
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, NotDrawnError, Product, Rows, Task
from xpbayes.archive.label_surveys import LabelSurvey
from xpbayes.archive.labels import StarLabels, read_labels
from xpbayes.archive.positions import Positions
from xpbayes.data.join import Lookup
from xpbayes.production.reader import Catalogue
from xpbayes.release import DEFAULT_RELEASE, RELEASES
from xpbayes.schema import release_of

MATCH_RADIUS_ARCSEC = 1.0
"""A catalogue has no proper motions to bring its positions to a survey's epoch with: wider than in `prepare`."""


def catalogue_positions(catalogue: Catalogue) -> Iterator[Positions]:
    """Positions of a catalogue's stars, some at a time."""
    epoch = RELEASES.get(release_of(catalogue.about), DEFAULT_RELEASE).epoch
    for table in catalogue.tables(("source_id", "ra", "dec"), 1 << 20):
        ra, dec = (table[n].to_numpy(zero_copy_only=False).astype(np.float64) for n in ("ra", "dec"))
        still = np.full(len(ra), np.nan)
        yield Positions(table["source_id"].to_numpy(), ra, dec, still, still, np.full(len(ra), epoch))


def read_external(path: Path, survey: str, labels: tuple[str, ...], catalogue: Catalogue) -> StarLabels:
    """Read another survey's labels; of repeated visits the one of the highest S/N, else the first, comes first.

    Args:
        path: the table.
        survey: whose columns it has: a name in `label_surveys.SURVEYS`.
        labels: which labels.
        catalogue: for a match by position, where the table has no source_id.

    Raises:
        InputError: no such survey, or the table lacks what it needs.
    """
    description = LabelSurvey(survey=survey, files=(str(path),), radius_arcsec=MATCH_RADIUS_ARCSEC)
    found = read_labels(description, [path], labels, catalogue_positions(catalogue), release_of(catalogue.about))
    order = np.argsort(-np.nan_to_num(found.snr, nan=-np.inf), kind="stable")
    return found.take(order)


class ExternalStars(Matches):
    """Keeps the solved stars that another survey has labels of."""

    def __init__(self, labels: tuple[str, ...], other: StarLabels) -> None:
        super().__init__(labels)
        self.other, self.lookup = other, Lookup.of(other.source_id)

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        at = self.lookup.rows(rows["source_id"])
        hit = at >= 0
        value, error = np.full((2, len(rows), len(self.names)), np.nan)
        value[hit, : self.n_labels] = self.other.value[at[hit]]
        error[hit, : self.n_labels] = self.other.error[at[hit]]
        self.keep(rows, rows.solved & hit, value, error)


def _start(run: Run) -> Task:
    assert run.external is not None and run.catalogue is not None
    other = read_external(run.external, run.survey, run.labels, run.catalogue)
    gatherer = ExternalStars(run.labels, other)
    return Task((gatherer,), lambda: _product(run, gatherer))


def _product(run: Run, gatherer: ExternalStars) -> Product:
    assert run.external is not None
    matched = gatherer.result()
    if not len(matched):
        raise NotDrawnError(
            f"{run.external}: none of its {len(gatherer.other)} stars with labels is a solved star of the catalogue"
        )
    stars = matched.take(matched.basic)
    rows = residuals(stars, normalised=False, confident=True)
    if not rows:
        raise NotDrawnError(f"{run.external}: only {len(stars)} of its stars pass the cuts; {MIN_STARS} are needed")
    known = bool(np.isfinite(np.asarray(stars.confidence)).any())
    confidence = (
        "and the parameter's own confidence at least 0.5"
        if known
        else "(the catalogue has no confidences, which the paper cuts on)"
    )
    return Product(
        draw_residuals(rows, False, "survey"),
        f"Residuals of {len(rows)} parameters against {run.external.name}, {len(stars)} stars",
        f"Inferred minus {run.external.name} at every value of the survey: density over the greatest of its column, "
        f"lines at 15, 50 and 84 %. {len(matched):,} solved stars match, {len(stars):,} pass quality_flags < {BASIC} "
        f"{confidence}. Of repeated visits the one of the highest S/N counts.",
        residual_tables(rows, normalised=False),
    )


EXTERNAL = Analysis("external", "Fig. 16", "Residuals against another survey", _start, ("catalogue", "external"))
