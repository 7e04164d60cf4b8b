"""Inferred minus measured, as a density at every measured value: validation (ZGR23 Figs. 7, 8), and its machinery.

In: rows of a catalogue and measurements of the same stars - labels, reddening, parallax. Out: `Matched` stars, which
`external.py` and `confidence_panels.py` use too, and densities with 15, 50 and 84 % lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing as figures
from xpbayes.analysis.figures.binned import ColumnDensity, column_density, suitable_edges
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, NotDrawnError, NumberTable, Product, Rows, Series, Task
from xpbayes.analysis.validation import robust_scatter
from xpbayes.config import TrainingConfig
from xpbayes.identity import Side, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURED = {"extinction": "reddening", "parallax": "parallax"}
"""Star-table columns that E and the parallax are compared with."""
CONFIDENCES = ("teff_confidence", "feh_confidence", "logg_confidence")
BASIC = 8
"""quality_flags below: basic reliability."""
MIN_STARS = 20
"""Fewer pairs are no distribution."""


@dataclass(frozen=True)
class Matched:
    """Solved stars with at least one measurement.

    Attributes:
        names: parameters in the catalogue's order.
        source_id: (star,).
        estimate, error: (star, parameter) inferred [kK, dex, dex, mag, mas].
        value, value_error: (star, parameter) measured, NaN where it was not.
        flags: (star,) quality_flags.
        confidence: (star, 3) in Teff, [Fe/H], log g; NaN without classifiers.
        converged: (star,).
    """

    names: tuple[str, ...]
    source_id: NDArray[np.int64]
    estimate: NDArray[np.float64]
    error: NDArray[np.float64]
    value: NDArray[np.float64]
    value_error: NDArray[np.float64]
    flags: NDArray[np.uint8]
    confidence: NDArray[np.float64]
    converged: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.source_id)

    def take(self, member: NDArray[Any]) -> "Matched":
        """The stars of an index or a mask."""
        return Matched(self.names, *(getattr(self, f.name)[member] for f in fields(self)[1:]))

    @property
    def difference(self) -> NDArray[np.float64]:
        """(star, parameter) inferred minus measured."""
        return self.estimate - self.value

    @property
    def pull(self) -> NDArray[np.float64]:
        """(star, parameter) the same in units of both errors together."""
        return self.difference / np.hypot(self.error, self.value_error)


class MatchGatherer:
    """Keeps the solved stars of a catalogue that have measurements: as many as there are labels, not more.

    Args:
        labels: names of the catalogue's labels.
        split: of the model, to keep its held-out side; None keeps all.
        floor: (label,) added to label errors in quadrature [kK, dex].
        teff_max: stars with a hotter label were not in training and are left out [kK].
    """

    reads: Sequence[str] = (
        "gdr3_source_id", "stellar_params_est", "stellar_params_err", "quality_flags", "converged", *CONFIDENCES,
    )  # fmt: skip

    def __init__(
        self,
        labels: tuple[str, ...],
        split: Split | None,
        floor: Sequence[float] = (),
        teff_max: float = np.inf,
    ) -> None:
        self.names = (*labels, "extinction", "parallax")
        self.split, self.floor, self.teff_max = split, np.zeros(len(labels)), teff_max
        self.floor[: len(floor)] = floor[: len(labels)]
        self.sources = [*labels, *MEASURED.values()]
        self.joins: Sequence[str] = tuple(f"{n}{e}" for n in self.sources for e in ("", "_error"))
        self.n_hot = self.n_seen = 0
        self.parts: list[Matched] = []

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        n = len(self.names)
        value, value_error = np.full((len(rows), n), np.nan), np.full((len(rows), n), np.nan)
        for i, name in enumerate(self.sources):
            value[:, i], value_error[:, i] = rows.joined[name], rows.joined[f"{name}_error"]
        value_error[:, : len(self.floor)] = np.hypot(value_error[:, : len(self.floor)], self.floor)
        known = np.isfinite(value) & np.isfinite(value_error) & (value_error > 0)
        value, value_error = np.where(known, value, np.nan), np.where(known, value_error, np.nan)
        use = rows.solved & known[:, : len(self.floor)].any(axis=1)
        if "teff" in self.names:
            hot = use & (value[:, self.names.index("teff")] >= self.teff_max)
            self.n_hot += int(hot.sum())
            use &= ~hot
        if self.split is not None:
            held = self.split.on(Side.HELD_OUT, rows["gdr3_source_id"])
            self.n_seen += int((use & ~held).sum())
            use &= held
        self.parts.append(matched_rows(self.names, rows, use, value, value_error))

    def result(self) -> Matched:
        """All of them."""
        return join_matched(self.parts, self.names)


def matched_rows(
    names: tuple[str, ...], rows: Rows, use: NDArray[np.bool_], value: NDArray[np.float64],
    value_error: NDArray[np.float64],
) -> Matched:  # fmt: skip
    """Put chosen rows and their measurements together."""
    return Matched(
        names,
        rows["gdr3_source_id"][use],
        rows["stellar_params_est"][use].astype(np.float64),
        rows["stellar_params_err"][use].astype(np.float64),
        value[use],
        value_error[use],
        rows["quality_flags"][use],
        np.stack([rows[c][use].astype(np.float64) for c in CONFIDENCES], axis=1),
        rows["converged"][use].astype(bool),
    )


def join_matched(parts: Sequence[Matched], names: tuple[str, ...]) -> Matched:
    """One after the other."""
    if not parts:
        raise NotDrawnError("the catalogue has no rows")
    return Matched(names, *(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Matched)[1:]))


@dataclass(frozen=True)
class Residuals:
    """Residuals of one parameter.

    Attributes:
        name: of the parameter.
        n: stars.
        scatter, bias: robust scatter and median of the residual, in its own unit.
        density: of the residual at every measured value.
    """

    name: str
    n: int
    scatter: float
    bias: float
    density: ColumnDensity


def residuals(name: str, value: NDArray[np.float64], residual: NDArray[np.float64]) -> Residuals | None:
    """Bin one parameter's residuals; None if there are too few.

    Args:
        name: of the parameter.
        value: (star,) measured, NaN where it was not.
        residual: (star,).
    """
    known = np.isfinite(value) & np.isfinite(residual)
    if known.sum() < MIN_STARS:
        return None
    edges = suitable_edges(value, residual)
    return Residuals(
        name, int(known.sum()), robust_scatter(residual[known]), float(np.median(residual[known])),
        column_density(value, residual, *edges),
    )  # fmt: skip


def draw_residuals(rows: Sequence[Residuals], units: Sequence[str], normalised: bool, against: str) -> "Figure":
    """One panel per parameter.

    Args:
        rows: residuals, in K where in K.
        units: of every parameter's measured value.
        normalised: the residuals are in units of their errors.
        against: who measured, for the axes.
    """
    columns = 2 if len(rows) == 4 else min(3, len(rows))  # four in a square, not three and one
    figure, axes = figures.panels(columns, -(-len(rows) // columns), 3.5 * columns, 2.9 * -(-len(rows) // columns))
    for axis, row, unit in zip(axes.flat, rows, units, strict=False):
        mesh = figures.density_panel(axis, row.density)
        text = figures.LABEL_TEXT.get(row.name, row.name)
        axis.set(
            xlabel=f"{text} [{unit}], {against}", title=f"{text} ({row.n:,} stars)",
            ylabel=f"(inferred − {against}) / σ" if normalised else f"inferred − {against} [{unit}]",
        )  # fmt: skip
    for axis in axes.flat[len(rows) :]:
        axis.remove()
    figure.colorbar(mesh, ax=axes.ravel()[: len(rows)].tolist(), label="density / greatest of its column", pad=0.01)
    return figure


def residual_tables(rows: Sequence[Residuals], normalised: bool) -> dict[str, NumberTable]:
    """What `draw_residuals` shows, as numbers; Teff in K, as drawn."""
    lines: dict[str, list[Any]] = {k: [] for k in ("parameter", "low", "high", "n", "p15", "p50", "p84")}
    for row in rows:
        d = row.density
        for i in range(len(d.n)):
            values = (row.name, d.x_edges[i], d.x_edges[i + 1], int(d.n[i]), *d.percentiles[i])
            for key, value in zip(lines, values, strict=True):
                lines[key].append(value)
    about = {
        "parameter": "compared", "low": "measured value from", "high": "to", "n": "stars",
        "p15": "15 % of the residual", "p50": "median", "p84": "84 %",
    }  # fmt: skip
    summary = {
        "parameter": Series([r.name for r in rows], "", "compared; Teff in K"),
        "n": Series([r.n for r in rows], "", "stars"),
        "scatter": Series([r.scatter for r in rows], "", "1.4826 MAD of the residual"),
        "bias": Series([r.bias for r in rows], "", "median of the residual"),
    }
    words = " in units of both errors" if normalised else ""
    return {
        "": {k: Series(v, "", about[k] + (words if k in ("p15", "p50", "p84") else "")) for k, v in lines.items()},
        "summary": summary,
    }


def matched_residuals(stars: Matched, normalised: bool, confident: bool = False) -> list[Residuals]:
    """Residuals of every parameter that was measured; Teff in K.

    Args:
        stars: matched.
        normalised: in units of both errors.
        confident: leave out estimates whose own confidence is known and below 0.5.
    """
    out = []
    for i, name in enumerate(stars.names):
        value, residual = stars.value[:, i].copy(), (stars.pull if normalised else stars.difference)[:, i]
        if confident and f"{name}_confidence" in CONFIDENCES:
            value[stars.confidence[:, CONFIDENCES.index(f"{name}_confidence")] < 0.5] = np.nan
        factor = figures.display_scale(name)
        row = residuals(name, factor * value, residual * (1.0 if normalised else factor))
        if row is not None:
            out.append(row)
    return out


def labelled(run: Run) -> MatchGatherer:
    """The stars that validation looks at, gathered once for all figures that need them."""

    def make() -> MatchGatherer:
        split: Split | None = None
        floor: tuple[float, ...] = ()
        teff_max = np.inf
        if run.model is not None:
            split = Split.of(run.model.card)
            settings = TrainingConfig.model_validate(run.model.card["settings"])
            floor, teff_max = settings.floor_for(len(run.labels)), settings.teff_max
        return MatchGatherer(run.labels, split, floor, teff_max)

    return run.once("labelled", make)


def validation_cuts(gatherer: MatchGatherer) -> str:
    """What was left out, in words."""
    side = (
        f"held out from training by source_id ({gatherer.n_seen:,} stars that were not are left out)"
        if gatherer.split is not None
        else "whatever side of the model's split they are on (no model was named)"
    )
    hot = (
        f", labels below the training sample's limit of {1e3 * gatherer.teff_max:.0f} K ({gatherer.n_hot:,} are not)"
        if np.isfinite(gatherer.teff_max)
        else ""
    )
    return f"solved stars with labels, {side}{hot}, quality_flags < {BASIC}"


def _start(normalised: bool, run: Run) -> Task:
    gatherer = labelled(run)
    return Task((gatherer,), lambda: _product(run, gatherer, normalised))


def _product(run: Run, gatherer: MatchGatherer, normalised: bool) -> Product:
    stars = gatherer.result()
    stars = stars.take(stars.flags < BASIC)
    rows = matched_residuals(stars, normalised)
    if not rows:
        raise NotDrawnError(
            f"only {len(stars)} stars of the catalogue are {validation_cuts(gatherer)}; {MIN_STARS} are needed"
        )
    missing = [n for n in stars.names if n not in {r.name for r in rows}]
    gone = f" No panel for {', '.join(figures.LABEL_TEXT.get(m, m) for m in missing)}: not measured." if missing else ""
    used = "" if not run.uses_parallax else " Measured parallaxes took part in the inference."
    what = (
        "divided by inferred and measured errors together (label errors with the floor of training)"
        if normalised
        else "in K, dex, mag and mas"
    )
    return Product(
        draw_residuals(rows, [figures.LABEL_UNIT.get(r.name, "") for r in rows], normalised, "measured"),
        f"Residuals of {len(rows)} parameters against their measured values, {len(stars)} stars",
        f"Inferred minus measured, {what}, at every measured value: density over the greatest of its column, lines at "
        f"15, 50 and 84 %. {len(stars):,} stars: {validation_cuts(gatherer)}. Each panel shows the central 98 % of the "
        f"residuals.{gone}{used} Inferred values are posterior modes (stellar_params_est).",
        residual_tables(rows, normalised),
    )


RESIDUALS = Analysis(
    "residuals", "Fig. 7", "Validation residuals", lambda run: _start(False, run), ("catalogue", "stars")
)
PULLS = Analysis(
    "pulls", "Fig. 8", "Validation residuals over their errors", lambda run: _start(True, run), ("catalogue", "stars")
)
