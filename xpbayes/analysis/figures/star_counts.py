"""Stars in cells: Kiel diagrams (ZGR23 Fig. 1), and the share of reliable stars over colour and magnitude (Fig. 17)."""

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.figures.spectra import giant_branch_teff, main_sequence_logg
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, Gatherer, NotDrawnError, Product, Rows, Series, Task, require_columns
from xpbayes.analysis.validation import BASIC

TEFF_EDGES = np.linspace(2.0, 20.0, 181)
"""Cells of 100 K [kK]."""
LOGG_EDGES = np.linspace(-1.0, 6.0, 71)
"""Cells of 0.1 dex."""
KIEL_CELLS = (TEFF_EDGES, LOGG_EDGES)
BEYOND = 0.005
"""Share of either sample that may lie beyond each end of an axis."""
COLOUR_EDGES = np.linspace(-1.0, 6.0, 281)
MAGNITUDE_EDGES = np.linspace(-8.0, 17.0, 501)
PHOTOMETRY = ("phot_g_mean_mag", "phot_bp_mean_mag", "phot_rp_mean_mag")
MIN_IN_CELL = 3
"""A share of fewer stars is not drawn."""


def cell_counts(
    x: NDArray[np.floating], y: NDArray[np.floating], edges: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> NDArray[np.int64]:
    """(x, y) counts of stars; what is not finite or beyond the cells is not counted."""
    known = np.isfinite(x) & np.isfinite(y)
    return np.histogram2d(x[known], y[known], edges)[0].astype(np.int64)


class Kiel(Gatherer):
    """Counts in cells of (Teff, log g): solved stars of a catalogue, and labels of the whole star table.

    `labelled` and `inferred` are (teff, logg); `n_labelled` and `n_inferred` count stars beyond the cells, too;
    `n_matched` are stars of the catalogue that have labels.
    """

    reads = ("stellar_params_est",)
    joins = ("teff", "logg")

    def __init__(self, labels: tuple[str, ...], teff: NDArray[np.floating], logg: NDArray[np.floating]) -> None:
        self.at = labels.index("teff"), labels.index("logg")
        self.labelled, self.n_labelled = cell_counts(teff, logg, KIEL_CELLS), int(np.isfinite(teff + logg).sum())
        self.inferred = np.zeros_like(self.labelled)
        self.n_inferred = self.n_matched = self.n_rows = 0

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        estimate = rows["stellar_params_est"][rows.solved]
        self.inferred += cell_counts(estimate[:, self.at[0]], estimate[:, self.at[1]], KIEL_CELLS)
        self.n_inferred += len(estimate)
        self.n_rows += len(rows)
        self.n_matched += int(np.isfinite(rows.joined["teff"] + rows.joined["logg"]).sum())

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


def draw_kiel(numbers: Kiel) -> "drawing.Figure":
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


def _start_kiel(run: Run) -> Task:
    assert run.stars is not None
    missing = [n for n in Kiel.joins if n not in run.labels or not run.star_column(n)]
    if missing:
        raise NotDrawnError(f"the star table or the model has no label {missing[0]}")
    columns = run.stars.columns(Kiel.joins)
    numbers = Kiel(run.labels, columns["teff"], columns["logg"])
    return Task((numbers,), lambda: _kiel(numbers))


def _kiel(numbers: Kiel) -> Product:
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


KIEL = Analysis("kiel", "Fig. 1", "Kiel diagram and cross-match coverage", _start_kiel, ("catalogue", "stars"))


class Reliability(Gatherer):
    """Counts over (BP - RP, M_G); M_G = G + 5 log10(inferred parallax / mas) - 10, extinction not removed.

    `count` is of solved stars, `reliable` of those with basic reliability; `n` and `n_reliable` count stars beyond the
    cells, too; `n_without` are solved stars without magnitudes.
    """

    reads = ("stellar_params_est", "quality_flags")
    joins = PHOTOMETRY

    def __init__(self) -> None:
        self.count = np.zeros((len(COLOUR_EDGES) - 1, len(MAGNITUDE_EDGES) - 1), np.int64)
        self.reliable = np.zeros_like(self.count)
        self.n = self.n_reliable = self.n_without = 0

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        g, bp, rp = (rows.joined[name] for name in PHOTOMETRY)
        with np.errstate(divide="ignore", invalid="ignore"):
            magnitude = g + 5.0 * np.log10(rows["stellar_params_est"][:, -1]) - 10.0
        known = rows.solved & np.isfinite(magnitude) & np.isfinite(bp - rp)
        good = known & (rows["quality_flags"] < BASIC)
        self.n += int(known.sum())
        self.n_reliable += int(good.sum())
        self.n_without += int((rows.solved & ~known).sum())
        for total, use in ((self.count, known), (self.reliable, good)):
            total += cell_counts((bp - rp)[use], magnitude[use], (COLOUR_EDGES, MAGNITUDE_EDGES))


def coarser(count: NDArray[np.int64], factor: int) -> NDArray[np.int64]:
    """Sum blocks of factor x factor cells; both numbers of cells must be divisible."""
    a, b = count.shape
    return count.reshape(a // factor, factor, b // factor, factor).sum(axis=(1, 3))


def suitable_factor(numbers: Reliability) -> int:
    """How many cells to join so that the typical star sits in a cell with a dozen others."""
    for factor in (1, 2, 4, 5, 10):
        count = coarser(numbers.count, factor)
        if numbers.n and (count.astype(float) ** 2).sum() / max(count.sum(), 1) >= 12:
            return factor
    return 10


def draw_reliability(numbers: Reliability) -> "drawing.Figure":
    """Share of reliable stars, and the number of stars beside it."""
    factor = suitable_factor(numbers)
    count, reliable = coarser(numbers.count, factor), coarser(numbers.reliable, factor)
    x, y = COLOUR_EDGES[::factor], MAGNITUDE_EDGES[::factor]
    figure, ((left, right),) = drawing.panels(2, 1, 9.8, 4.8, sharex=True, sharey=True)
    share = np.where(count >= MIN_IN_CELL, reliable / np.maximum(count, 1), np.nan)
    a = drawing.cells(left, x, y, share, vmin=0, vmax=1, cmap="RdYlBu")
    b = drawing.counts(right, x, y, count, count.max())
    (first, last), (top, bottom) = ((i.min(), i.max()) for i in np.nonzero(count))
    left.set(
        xlim=(x[max(first - 1, 0)], x[min(last + 2, len(x) - 1)]), xlabel="BP − RP [mag]",
        ylim=(y[min(bottom + 2, len(y) - 1)], y[max(top - 1, 0)]), ylabel="$M_G$ [mag]", facecolor="#f2f4f6",
        title=f"reliable: {numbers.n_reliable:,} of {numbers.n:,} ({numbers.n_reliable / numbers.n:.1%})",
    )  # fmt: skip
    right.set(xlabel="BP − RP [mag]", title="stars")
    figure.colorbar(a, ax=left, label="share with quality_flags < 8", pad=0.01)
    figure.colorbar(b, ax=right, label="stars per cell", pad=0.01)
    return figure


def _start_reliability(run: Run) -> Task:
    require_columns(run, PHOTOMETRY)
    numbers = Reliability()
    return Task((numbers,), lambda: _reliability(run, numbers))


def _reliability(run: Run, numbers: Reliability) -> Product:
    if not numbers.n:
        raise NotDrawnError("no solved star has G, BP and RP magnitudes")
    factor = suitable_factor(numbers)
    count, reliable = coarser(numbers.count, factor), coarser(numbers.reliable, factor)
    i, j = np.nonzero(count)
    x, y = COLOUR_EDGES[::factor], MAGNITUDE_EDGES[::factor]
    parallax = "measured parallaxes took part" if run.uses_parallax else "from flux alone, no parallax took part"
    return Product(
        draw_reliability(numbers),
        f"Share of reliable stars over colour and absolute magnitude, {numbers.n} stars",
        f"Share of stars with quality_flags < 8 in cells of {x[1] - x[0]:.3g} × {y[1] - y[0]:.3g} mag with "
        f"at least {MIN_IN_CELL} stars, and the number of stars: {numbers.n:,} solved stars, {numbers.n_reliable:,} "
        f"reliable (ZGR23: 82 %). M_G from Gaia's G and the inferred parallax ({parallax}), extinction not removed; "
        f"{numbers.n_without:,} solved stars have no magnitudes.",
        {
            "": {
                "colour": Series(0.5 * (x[i] + x[i + 1]), "mag", "BP - RP, middle of the cell"),
                "absolute_magnitude": Series(0.5 * (y[j] + y[j + 1]), "mag", "M_G, middle of the cell"),
                "n": Series(count[i, j], "", "solved stars"),
                "reliable": Series(reliable[i, j], "", "with quality_flags < 8"),
            }
        },
    )


RELIABILITY = Analysis(
    "reliability",
    "Fig. 17",
    "Reliability over the colour–magnitude diagram",
    _start_reliability,
    ("catalogue", "stars"),
)
