"""Kiel diagrams: where labels are, where the catalogue is, and how much of it the labels cover (ZGR23 Fig. 1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing as figures
from xpbayes.analysis.figures.model_spectra import giant_branch_teff, main_sequence_logg
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, NotDrawnError, Product, Rows, Series, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEFF_EDGES = np.linspace(2.0, 20.0, 181)
"""Cells of 100 K [kK]."""
LOGG_EDGES = np.linspace(-1.0, 6.0, 71)
"""Cells of 0.1 dex."""


@dataclass(frozen=True)
class KielDiagrams:
    """Counts in cells of (Teff, log g).

    Attributes:
        labelled: (teff, logg) stars with labels.
        inferred: (teff, logg) solved stars.
        n_labelled, n_inferred: stars in all, beyond the cells too.
        n_matched: stars of the catalogue that have labels.
        n_rows: rows of the catalogue.
    """

    labelled: NDArray[np.int64]
    inferred: NDArray[np.int64]
    n_labelled: int
    n_inferred: int
    n_matched: int
    n_rows: int

    @property
    def covered(self) -> float:
        """Share of the solved stars whose cell holds at least one labelled star."""
        return float(self.inferred[self.labelled > 0].sum() / max(self.n_inferred, 1))


class KielGatherer:
    """Counts solved stars of a catalogue, and labels of the whole star table."""

    reads: Sequence[str] = ("stellar_params_est",)
    joins: Sequence[str] = ("teff", "logg")

    def __init__(
        self, labels: tuple[str, ...], teff: NDArray[np.floating], logg: NDArray[np.floating]
    ) -> None:  # fmt: skip
        self.at = [labels.index("teff"), labels.index("logg")]
        self.labelled = cell_counts(teff, logg)
        self.n_labelled = int((np.isfinite(teff) & np.isfinite(logg)).sum())
        self.inferred = np.zeros_like(self.labelled)
        self.n_inferred = self.n_matched = self.n_rows = 0

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        estimate = rows["stellar_params_est"][rows.solved]
        self.inferred += cell_counts(estimate[:, self.at[0]], estimate[:, self.at[1]])
        self.n_inferred += len(estimate)
        self.n_rows += len(rows)
        self.n_matched += int((np.isfinite(rows.joined["teff"]) & np.isfinite(rows.joined["logg"])).sum())

    def result(self) -> KielDiagrams:
        """What was counted."""
        return KielDiagrams(
            self.labelled, self.inferred, self.n_labelled, self.n_inferred, self.n_matched, self.n_rows
        )  # fmt: skip


def cell_counts(teff: NDArray[np.floating], logg: NDArray[np.floating]) -> NDArray[np.int64]:
    """(teff, logg) counts of stars [kK, dex]; what is not finite or beyond the cells is not counted."""
    known = np.isfinite(teff) & np.isfinite(logg)
    return np.histogram2d(teff[known], logg[known], (TEFF_EDGES, LOGG_EDGES))[0].astype(np.int64)


def draw_kiel(numbers: KielDiagrams) -> "Figure":
    """Labels with the tracks of Eqs. 28 and 29 to the left, the catalogue and what labels do not cover to the right."""
    from matplotlib.colors import LogNorm

    figure, axes = figures.panels(2, 1, 10.0, 4.6, sharex=True, sharey=True)
    both = numbers.labelled + numbers.inferred
    enough = np.maximum(1e-3 * both.sum(), 1)
    some = [np.flatnonzero(np.cumsum(both.sum(axis=k)) >= enough)[0] for k in (1, 0)]
    last = [np.flatnonzero(np.cumsum(both.sum(axis=k)[::-1]) >= enough)[0] for k in (1, 0)]
    limits_x = 1e3 * TEFF_EDGES[[max(some[0] - 2, 0), -1 - max(last[0] - 2, 0)]]
    limits_y = LOGG_EDGES[[max(some[1] - 2, 0), -1 - max(last[1] - 2, 0)]]
    panels = (
        (axes[0, 0], numbers.labelled, f"labels ({numbers.n_labelled:,} stars)"),
        (axes[0, 1], numbers.inferred, f"inferred ({numbers.n_inferred:,} stars, {numbers.covered:.1%} covered)"),
    )
    norm = LogNorm(1, max(int(numbers.labelled.max()), int(numbers.inferred.max()), 2))
    for axis, count, title in panels:
        shown = np.where(count > 0, count, np.nan).T
        mesh = axis.pcolormesh(1e3 * TEFF_EDGES, LOGG_EDGES, shown, norm=norm, cmap="viridis", rasterized=True)
        axis.set(title=title, xlabel="Teff [K]", xlim=limits_x[::-1], ylim=limits_y[::-1])
    left, right = axes[0]
    uncovered = np.where((numbers.inferred > 0) & (numbers.labelled == 0), 1.0, np.nan).T
    right.pcolormesh(1e3 * TEFF_EDGES, LOGG_EDGES, uncovered, cmap="autumn", vmin=0.0, vmax=2.0, rasterized=True)
    teff = np.linspace(TEFF_EDGES[0], TEFF_EDGES[-1], 400)
    logg = np.linspace(0.5, 4.15, 100)
    left.plot(1e3 * teff, main_sequence_logg(teff), color=figures.ORANGE, lw=1.5, label="main sequence (Eq. 28)")
    left.plot(1e3 * giant_branch_teff(logg), logg, "--", color=figures.ORANGE, lw=1.5, label="giant branch (Eq. 29)")
    left.set_ylabel("log g [dex]")
    left.legend(fontsize=8, loc="upper left", frameon=False)
    figure.colorbar(mesh, ax=axes[0].tolist(), label="stars per 100 K × 0.1 dex", pad=0.01)
    return figure


def _start(run: Run) -> Task:
    assert run.stars is not None
    missing = [n for n in ("teff", "logg") if n not in run.labels or not run.star_column(n)]
    if missing:
        raise NotDrawnError(f"the star table or the model has no label {missing[0]}")
    columns = run.stars.columns(("teff", "logg"))
    gatherer = KielGatherer(run.labels, columns["teff"], columns["logg"])
    return Task((gatherer,), lambda: _product(gatherer.result()))


def _product(numbers: KielDiagrams) -> Product:
    if not numbers.n_labelled or not numbers.n_inferred:
        raise NotDrawnError(f"there are {numbers.n_labelled} stars with labels and {numbers.n_inferred} solved ones")
    teff, logg = np.nonzero((numbers.labelled > 0) | (numbers.inferred > 0))
    return Product(
        draw_kiel(numbers),
        f"Kiel diagrams of {numbers.n_labelled} stars with labels and {numbers.n_inferred} inferred stars",
        f"Left: labels of the star table, {numbers.n_labelled:,} stars, with the tracks that later figures follow. Right: "
        f"posterior modes of {numbers.n_inferred:,} solved stars of {numbers.n_rows:,} in the catalogue, "
        f"{numbers.n_matched:,} of which have labels; {numbers.covered:.1%} lie in cells with at least one labelled star, "
        "the others are orange. No other cut.",
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
