"""Residuals against another survey by cross-match (ZGR23 Fig. 16).

In: rows of a catalogue, and a label survey's table in any format and naming that `archive.labels` reads.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from xpbayes.analysis.figures import drawing as figures
from xpbayes.analysis.figures.residual_columns import (
    BASIC,
    MIN_STARS,
    Matched,
    draw_residuals,
    join_matched,
    matched_residuals,
    matched_rows,
    residual_tables,
)
from xpbayes.analysis.figures.residual_columns import MatchGatherer as _Validation
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, NotDrawnError, Product, Rows, Task
from xpbayes.archive.label_surveys import LabelSurvey
from xpbayes.archive.labels import StarLabels, read_labels
from xpbayes.archive.positions import GAIA_EPOCH, Positions
from xpbayes.data.join import Lookup
from xpbayes.production.reader import Catalogue

MATCH_RADIUS_ARCSEC = 1.0
"""A catalogue has no proper motions to bring its positions to a survey's epoch with: wider than in `prepare`."""


def catalogue_positions(catalogue: Catalogue) -> Iterator[Positions]:
    """Positions of a catalogue's stars, some at a time."""
    for table in catalogue.tables(("gdr3_source_id", "ra", "dec"), 1 << 20):
        ra, dec = (table[n].to_numpy(zero_copy_only=False).astype(np.float64) for n in ("ra", "dec"))
        still = np.full(len(ra), np.nan)
        yield Positions(
            table["gdr3_source_id"].to_numpy(), ra, dec, still, still, np.full(len(ra), GAIA_EPOCH)
        )  # fmt: skip


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
    found = read_labels(description, [path], labels, catalogue_positions(catalogue))
    order = np.argsort(-np.nan_to_num(found.snr, nan=-np.inf), kind="stable")
    return StarLabels(
        found.names, found.source_id[order], found.value[order], found.error[order], found.snr[order],
        found.survey[order], found.cuts, found.rejected,
    )  # fmt: skip


class ExternalGatherer:
    """Keeps the solved stars that another survey has labels of."""

    reads: Sequence[str] = _Validation.reads
    joins: Sequence[str] = ()

    def __init__(self, labels: tuple[str, ...], other: StarLabels) -> None:
        self.names = (*labels, "extinction", "parallax")
        self.other, self.lookup = other, Lookup.of(other.source_id)
        self.n_labels = len(labels)
        self.parts: list[Matched] = []

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        at = self.lookup.rows(rows["gdr3_source_id"])
        shape = (len(rows), len(self.names))
        value, error = np.full(shape, np.nan), np.full(shape, np.nan)
        hit = at >= 0
        value[hit, : self.n_labels] = self.other.value[at[hit]]
        error[hit, : self.n_labels] = self.other.error[at[hit]]
        self.parts.append(matched_rows(self.names, rows, rows.solved & hit, value, error))

    def result(self) -> Matched:
        """All of them."""
        return join_matched(self.parts, self.names)


def _start(run: Run) -> Task:
    assert run.external is not None and run.catalogue is not None
    other = read_external(run.external, run.survey, run.labels, run.catalogue)
    gatherer = ExternalGatherer(run.labels, other)
    return Task((gatherer,), lambda: _product(run, gatherer))


def _product(run: Run, gatherer: ExternalGatherer) -> Product:
    assert run.external is not None
    matched = gatherer.result()
    if not len(matched):
        raise NotDrawnError(
            f"{run.external}: none of its {len(gatherer.other)} stars with labels is a solved star of the catalogue"
        )
    stars = matched.take(matched.flags < BASIC)
    rows = matched_residuals(stars, normalised=False, confident=True)
    if not rows:
        raise NotDrawnError(f"{run.external}: only {len(stars)} of its stars pass the cuts; {MIN_STARS} are needed")
    known = bool(np.isfinite(stars.confidence).any())
    confidence = (
        "and the parameter's own confidence at least 0.5"
        if known
        else "(the catalogue has no confidences, which the paper cuts on)"
    )
    return Product(
        draw_residuals(rows, [figures.LABEL_UNIT.get(r.name, "") for r in rows], False, "survey"),
        f"Residuals of {len(rows)} parameters against {run.external.name}, {len(stars)} stars",
        f"Inferred minus {run.external.name} at every value of the survey: density over the greatest of its column, "
        f"lines at 15, 50 and 84 %. {len(matched):,} solved stars match, {len(stars):,} pass quality_flags < {BASIC} "
        f"{confidence}. Of repeated visits the one of the highest S/N counts.",
        residual_tables(rows, normalised=False),
    )


EXTERNAL = Analysis(
    "external", "Fig. 16", "Residuals against another survey", _start, ("catalogue", "external")
)  # fmt: skip
