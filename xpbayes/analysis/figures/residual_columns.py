"""Inferred minus measured, as a density at every measured value: ZGR23 Figs. 7, 8 (validation), 16 (another survey).

In: rows of a catalogue and measurements of the same stars: labels, reddening, parallax of the star table, or a label
survey's table as `archive.labels` reads it. Out: a `Comparison` of all parameters, which `confidence.py` uses too,
and densities with 15, 50 and 84 % lines; Teff in K.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.figures.binned import ColumnDensity, column_density, suitable_edges
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, Gatherer, NotDrawnError, NumberTable, Product, Rows, Task, table_of
from xpbayes.analysis.validation import BASIC, Comparison, robust_scatter
from xpbayes.archive.label_surveys import LabelSurvey
from xpbayes.archive.labels import StarLabels, read_labels
from xpbayes.archive.positions import Positions
from xpbayes.config import TrainingConfig
from xpbayes.data.join import Lookup
from xpbayes.identity import Side, Split
from xpbayes.production.reader import Catalogue
from xpbayes.production.reliability import MIN_CONFIDENCE
from xpbayes.release import DEFAULT_RELEASE, RELEASES
from xpbayes.schema import release_of

MEASURED = {"extinction": "reddening", "parallax": "parallax"}
"""Star-table columns that E and the parallax are compared with."""
CONFIDENCES = ("teff_confidence", "feh_confidence", "logg_confidence")
MIN_STARS = 20
"""Fewer pairs are no distribution."""
MATCH_RADIUS_ARCSEC = 1.0
"""A catalogue has no proper motions to bring its positions to a survey's epoch with: wider than in `prepare`."""


def confidences(rows: Rows) -> NDArray[np.float64]:
    """(row, 3) those of Teff, [Fe/H] and log g."""
    return np.stack([rows[name].astype(np.float64) for name in CONFIDENCES], axis=1)


class Matches(Gatherer):
    """Keeps the solved stars of a catalogue that have measurements: as many as there are labels, not more."""

    reads = (
        "source_id", "stellar_params_est", "stellar_params_err", "quality_flags", "converged", *CONFIDENCES,
    )  # fmt: skip

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.names, self.n_labels = (*labels, "extinction", "parallax"), len(labels)
        self.parts: list[Comparison] = []

    def keep(
        self, rows: Rows, use: NDArray[np.bool_], value: NDArray[np.float64], error: NDArray[np.float64]
    ) -> None:  # fmt: skip
        """Keep chosen rows with their (row, parameter) measurements."""
        estimate, sigma = (rows[f"stellar_params_{n}"].astype(np.float64) for n in ("est", "err"))
        self.parts.append(
            Comparison(
                rows["source_id"], self.names, estimate, sigma, value, error, flags=rows["quality_flags"],
                confidence=confidences(rows), converged=rows["converged"].astype(bool),
            ).take(use)
        )  # fmt: skip

    def result(self) -> Comparison:
        """All of them."""
        if not self.parts:
            raise NotDrawnError("the catalogue has no rows")
        return Comparison.join(self.parts)


class ValidationStars(Matches):
    """The stars that validation looks at, with measurements from the star table.

    Only those on the held-out side of the model's split, if one is given; `floor` (label,) is added to label errors in
    quadrature; stars with a label hotter than `teff_max` [kK] were not in training and are left out.
    """

    def __init__(
        self, labels: tuple[str, ...], split: Split | None, floor: Sequence[float] = (), teff_max: float = np.inf
    ) -> None:
        super().__init__(labels)
        self.split, self.floor, self.teff_max = split, np.zeros(len(labels)), teff_max
        self.floor[: len(floor)] = floor[: len(labels)]
        self.sources = [*labels, *MEASURED.values()]
        self.joins = tuple(f"{n}{e}" for n in self.sources for e in ("", "_error"))
        self.n_hot = self.n_seen = 0

    @classmethod
    def of(cls, run: Run) -> "ValidationStars":
        """Gathered once for all figures that need them."""

        def make() -> ValidationStars:
            if run.model is None:
                return cls(run.labels, None)
            settings = TrainingConfig.model_validate(run.model.card["settings"])
            return cls(
                run.labels, Split.of(run.model.card), settings.floor_for(len(run.labels)), settings.teff_max or np.inf
            )

        return run.once("labelled", make)

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        value, error = (np.stack([rows.joined[n + e] for n in self.sources], axis=1) for e in ("", "_error"))
        error[:, : self.n_labels] = np.hypot(error[:, : self.n_labels], self.floor)
        known = np.isfinite(value) & np.isfinite(error) & (error > 0)
        value, error = np.where(known, value, np.nan), np.where(known, error, np.nan)
        use = rows.solved & known[:, : self.n_labels].any(axis=1)
        if "teff" in self.names:
            hot = use & (value[:, self.names.index("teff")] >= self.teff_max)
            self.n_hot += int(hot.sum())
            use &= ~hot
        if self.split is not None:
            held = self.split.on(Side.HELD_OUT, rows["source_id"])
            self.n_seen += int((use & ~held).sum())
            use &= held
        self.keep(rows, use, value, error)

    @property
    def cuts(self) -> str:
        """What was left out, in words."""
        side = (
            f"held out from training by source_id ({self.n_seen:,} stars that were not are left out)"
            if self.split is not None
            else "whatever side of the model's split they are on (no model was named)"
        )
        hot = (
            f", labels below the training sample's limit of {1e3 * self.teff_max:.0f} K ({self.n_hot:,} are not)"
            if np.isfinite(self.teff_max)
            else ""
        )
        return f"solved stars with labels, {side}{hot}, quality_flags < {BASIC}"


@dataclass(frozen=True)
class Residuals:
    """Residuals of one parameter."""

    name: str
    n: int  # stars
    scatter: float  # robust, in the residual's own unit, as the median `bias`
    bias: float
    density: ColumnDensity  # at every measured value


def residuals(stars: Comparison, normalised: bool, confident: bool = False) -> list[Residuals]:
    """Residuals of every parameter measured often enough; `confident` drops estimates whose own confidence is low."""
    out = []
    for i, name in enumerate(stars.label_names):
        factor = drawing.display_scale(name)
        value = factor * stars.label[:, i]
        residual = stars.pull[:, i] if normalised else factor * stars.difference[:, i]
        if confident and stars.confidence is not None and f"{name}_confidence" in CONFIDENCES:
            value[stars.confidence[:, CONFIDENCES.index(f"{name}_confidence")] < MIN_CONFIDENCE] = np.nan
        known = residual[np.isfinite(value) & np.isfinite(residual)]
        if len(known) >= MIN_STARS:
            density = column_density(value, residual, *suitable_edges(value, residual))
            out.append(Residuals(name, len(known), robust_scatter(known), float(np.median(known)), density))
    return out


def draw_residuals(rows: Sequence[Residuals], normalised: bool, against: str) -> "drawing.Figure":
    """One panel per parameter; `against` says on the axes who measured."""
    figure, axes = drawing.grid(len(rows), 2 if len(rows) == 4 else 3, 3.5, 2.9)  # four in a square, not three and one
    for axis, row in zip(axes, rows, strict=True):
        mesh = drawing.density_panel(axis, row.density)
        unit = drawing.LABEL_UNIT.get(row.name, "")
        axis.set(
            xlabel=f"{drawing.heading(row.name)}, {against}", title=f"{drawing.text(row.name)} ({row.n:,} stars)",
            ylabel=f"(mode − {against}) / σ" if normalised else f"mode − {against} [{unit}]",
        )  # fmt: skip
    drawing.percentile_legend(axes[0])
    figure.colorbar(mesh, ax=axes, label=drawing.DENSITY_LABEL, pad=0.01)
    return figure


def residual_tables(rows: Sequence[Residuals], normalised: bool) -> dict[str, NumberTable]:
    """What `draw_residuals` shows, as numbers; Teff in K, as drawn."""
    cells = [(row.name, *cell) for row in rows for cell in row.density.rows()]
    words = " in units of both errors" if normalised else ""
    about = {
        "parameter": "compared", "low": "measured value from", "high": "to", "n": "stars",
        "p15": f"15 % of the residual{words}", "p50": f"median{words}", "p84": f"84 %{words}",
    }  # fmt: skip
    summary = {
        "parameter": "compared; Teff in K", "n": "stars", "scatter": "1.4826 MAD of the residual",
        "bias": "median of the residual",
    }  # fmt: skip
    in_all = [(row.name, row.n, row.scatter, row.bias) for row in rows]
    return {"": table_of(cells, about), "summary": table_of(in_all, summary)}


def _start(normalised: bool, run: Run) -> Task:
    gatherer = ValidationStars.of(run)
    return Task((gatherer,), lambda: _product(run, gatherer, normalised))


def _product(run: Run, gatherer: ValidationStars, normalised: bool) -> Product:
    stars = gatherer.result()
    stars = stars.take(stars.basic)
    rows = residuals(stars, normalised)
    if not rows:
        raise NotDrawnError(f"only {len(stars)} stars of the catalogue are {gatherer.cuts}; {MIN_STARS} are needed")
    missing = [n for n in stars.label_names if n not in {r.name for r in rows}]
    gone = f" No panel for {', '.join(drawing.text(m) for m in missing)}: not measured." if missing else ""
    used = "" if not run.uses_parallax else " Measured parallaxes took part in the inference."
    what = (
        "divided by inferred and measured errors together (label errors with the floor of training)"
        if normalised
        else "in K, dex, mag and mas"
    )
    return Product(
        draw_residuals(rows, normalised, "measured"),
        f"Residuals of {len(rows)} parameters against their measured values, {len(stars)} stars",
        f"Inferred minus measured, {what}, at every measured value: density over the greatest of its column, lines at "
        f"15, 50 and 84 %. {len(stars):,} stars: {gatherer.cuts}. Each panel shows the central 98 % of the "
        f"residuals.{gone}{used} Inferred values are posterior modes (stellar_params_est).",
        residual_tables(rows, normalised),
    )


NEEDS = ("catalogue", "stars")
RESIDUALS = Analysis("residuals", "Fig. 7", "Residuals at every measured value", partial(_start, False), NEEDS)
PULLS = Analysis("pulls", "Fig. 8", "Pulls at every measured value", partial(_start, True), NEEDS)


def catalogue_positions(catalogue: Catalogue) -> Iterator[Positions]:
    """Positions of a catalogue's stars, some at a time."""
    epoch = RELEASES.get(release_of(catalogue.about), DEFAULT_RELEASE).epoch
    for table in catalogue.tables(("source_id", "ra", "dec"), 1 << 20):
        ra, dec = (table[n].to_numpy(zero_copy_only=False).astype(np.float64) for n in ("ra", "dec"))
        still = np.full(len(ra), np.nan)
        yield Positions(table["source_id"].to_numpy(), ra, dec, still, still, np.full(len(ra), epoch))


def read_external(path: Path, survey: str, labels: tuple[str, ...], catalogue: Catalogue) -> StarLabels:
    """Read labels by the columns of a survey in `label_surveys.SURVEYS`; InputError if that or a column is not there.

    Of repeated visits the one of the highest S/N, else the first, comes first. The catalogue is for a match by
    position, where the table has no source_id.
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


def _start_external(run: Run) -> Task:
    assert run.external is not None and run.catalogue is not None
    other = read_external(run.external, run.survey, run.labels, run.catalogue)
    gatherer = ExternalStars(run.labels, other)
    return Task((gatherer,), lambda: _external(run, gatherer))


def _external(run: Run, gatherer: ExternalStars) -> Product:
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


EXTERNAL = Analysis(
    "external", "Fig. 16", "Residuals against another survey", _start_external, ("catalogue", "external")
)
