"""Kiel diagrams: where labels are, where the catalogue is, and how much of it the labels cover (ZGR23 Fig. 1)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.figures.model_spectra import giant_branch_teff, main_sequence_logg
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, NotDrawnError, Product, Rows, Series, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEFF_EDGES = np.linspace(2.0, 20.0, 181)
"""Cells of 100 K [kK]."""
LOGG_EDGES = np.linspace(-1.0, 6.0, 71)
"""Cells of 0.1 dex."""
BEYOND = 0.005
"""Share of either sample that may lie beyond each end of an axis."""


class Kiel:
    """Counts in cells of (Teff, log g): solved stars of a catalogue, and labels of the whole star table.

    Args:
        labels: names of the catalogue's labels.
        teff, logg: (star,) labels of the star table [kK, dex].

    Attributes:
        labelled: (teff, logg) stars with labels.
        inferred: (teff, logg) solved stars.
        n_labelled, n_inferred: stars in all, beyond the cells too.
        n_matched: stars of the catalogue that have labels.
        n_rows: rows of the catalogue.
    """

    reads: Sequence[str] = ("stellar_params_est",)
    joins: Sequence[str] = ("teff", "logg")

    def __init__(self, labels: tuple[str, ...], teff: NDArray[np.floating], logg: NDArray[np.floating]) -> None:
        self.at = [labels.index("teff"), labels.index("logg")]
        self.labelled, self.n_labelled = cell_counts(teff, logg), int((np.isfinite(teff) & np.isfinite(logg)).sum())
        self.inferred = np.zeros_like(self.labelled)
        self.n_inferred = self.n_matched = self.n_rows = 0

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        estimate = rows["stellar_params_est"][rows.solved]
        self.inferred += cell_counts(*estimate[:, self.at].T)
        self.n_inferred += len(estimate)
        self.n_rows += len(rows)
        self.n_matched += int((np.isfinite(rows.joined["teff"]) & np.isfinite(rows.joined["logg"])).sum())

    @property
    def covered(self) -> float:
        """Share of the solved stars whose cell holds at least one labelled star."""
        return float(self.inferred[self.labelled > 0].sum() / max(self.n_inferred, 1))

    def limits(self, axis: int) -> tuple[int, int]:
        """First and last edge of Teff (axis 0) or log g (1) that hold both samples, but for the share `BEYOND`."""
        ends = []
        for count in (self.labelled, self.inferred):
            held = np.cumsum(count.sum(axis=1 - axis)) / max(count.sum(), 1)
            ends.append((np.argmax(held > BEYOND), np.argmax(held >= 1.0 - BEYOND) + 1))
        return int(min(first for first, _ in ends)), int(max(last for _, last in ends))


def cell_counts(teff: NDArray[np.floating], logg: NDArray[np.floating]) -> NDArray[np.int64]:
    """(teff, logg) counts of stars [kK, dex]; what is not finite or beyond the cells is not counted."""
    known = np.isfinite(teff) & np.isfinite(logg)
    return np.histogram2d(teff[known], logg[known], (TEFF_EDGES, LOGG_EDGES))[0].astype(np.int64)


def draw_kiel(numbers: Kiel) -> "Figure":
    """Labels with the tracks of Eqs. 28 and 29 to the left, the catalogue and what labels do not cover to the right."""
    figure, ((left, right),) = drawing.panels(2, 1, 10.0, 4.6, sharex=True, sharey=True)
    most = int(max(numbers.labelled.max(), numbers.inferred.max()))
    for axis, count, title in (
        (left, numbers.labelled, f"labels ({numbers.n_labelled:,} stars)"),
        (right, numbers.inferred, f"posterior modes ({numbers.n_inferred:,} stars, {numbers.covered:.1%} covered)"),
    ):
        mesh = drawing.counts(axis, 1e3 * TEFF_EDGES, LOGG_EDGES, count, most)
        axis.set(title=title, xlabel=drawing.heading("teff"))
    uncovered = np.where((numbers.inferred > 0) & (numbers.labelled == 0), 1.0, np.nan)
    drawing.cells(right, 1e3 * TEFF_EDGES, LOGG_EDGES, uncovered, cmap="autumn", vmin=0.0, vmax=2.0)
    (cool, hot), (low, high) = TEFF_EDGES[list(numbers.limits(0))], LOGG_EDGES[list(numbers.limits(1))]
    left.set(ylabel=drawing.heading("logg"), xlim=(1e3 * hot, 1e3 * cool), ylim=(high, low))
    teff, logg = np.linspace(cool, hot, 400), np.linspace(0.5, 4.15, 100)
    left.plot(1e3 * teff, main_sequence_logg(teff), color=drawing.ORANGE, lw=1.5, label="main sequence (Eq. 28)")
    left.plot(1e3 * giant_branch_teff(logg), logg, "--", color=drawing.ORANGE, lw=1.5, label="giant branch (Eq. 29)")
    drawing.legend(left, loc="upper left")
    right.plot([], [], "s", color="#ff8000", markersize=5, label="no labelled star")  # autumn's middle, as drawn above
    drawing.legend(right, loc="upper left")
    figure.colorbar(mesh, ax=[left, right], label="stars per 100 K × 0.1 dex", pad=0.01)
    return figure


def _start(run: Run) -> Task:
    assert run.stars is not None
    missing = [n for n in Kiel.joins if n not in run.labels or not run.star_column(n)]
    if missing:
        raise NotDrawnError(f"the star table or the model has no label {missing[0]}")
    columns = run.stars.columns(Kiel.joins)
    numbers = Kiel(run.labels, columns["teff"], columns["logg"])
    return Task((numbers,), lambda: _product(numbers))


def _product(numbers: Kiel) -> Product:
    if not numbers.n_labelled or not numbers.n_inferred:
        raise NotDrawnError(f"there are {numbers.n_labelled} stars with labels and {numbers.n_inferred} solved ones")
    teff, logg = np.nonzero((numbers.labelled > 0) | (numbers.inferred > 0))
    return Product(
        draw_kiel(numbers),
        f"Kiel diagrams of {numbers.n_labelled} stars with labels and {numbers.n_inferred} inferred stars",
        f"Left: labels of the star table, {numbers.n_labelled:,} stars, with the tracks that later figures follow. Right: "
        f"posterior modes of {numbers.n_inferred:,} solved stars of {numbers.n_rows:,} in the catalogue, "
        f"{numbers.n_matched:,} of which have labels; {numbers.covered:.1%} lie in cells with at least one labelled star, "
        f"the others are orange. No other cut; at most {BEYOND:.1%} of either sample lie beyond an end of an axis.",
        {
            "": {
                "teff": Series(0.5 * (TEFF_EDGES[teff] + TEFF_EDGES[teff + 1]), "kK", "middle of the cell"),
                "logg": Series(0.5 * (LOGG_EDGES[logg] + LOGG_EDGES[logg + 1]), "dex", "middle of the cell"),
                "labelled": Series(numbers.labelled[teff, logg], "", "stars with labels"),
                "inferred": Series(numbers.inferred[teff, logg], "", "solved stars"),
            }
        },
    )


KIEL = Analysis("kiel", "Fig. 1", "Kiel diagram and cross-match coverage", _start, ("catalogue", "stars"))
