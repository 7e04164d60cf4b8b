"""Share of reliable stars over the colour - absolute-magnitude diagram (ZGR23 Fig. 17)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, NotDrawnError, Product, Rows, Series, Task, require_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOUR_EDGES = np.linspace(-1.0, 6.0, 281)
MAGNITUDE_EDGES = np.linspace(-8.0, 17.0, 501)
PHOTOMETRY = ("phot_g_mean_mag", "phot_bp_mean_mag", "phot_rp_mean_mag")
MIN_IN_CELL = 3
"""A share of fewer stars is not drawn."""


class Reliability:
    """Counts over (BP - RP, M_G); M_G = G + 5 log10(inferred parallax / mas) - 10, extinction not removed.

    Attributes:
        count: (colour, magnitude) solved stars.
        reliable: (colour, magnitude) those with quality_flags < 8.
        n, n_reliable: stars in all, beyond the cells too.
        n_without: solved stars without magnitudes.
    """

    reads: Sequence[str] = ("stellar_params_est", "quality_flags")
    joins: Sequence[str] = PHOTOMETRY

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
        good = known & (rows["quality_flags"] < 8)
        self.n += int(known.sum())
        self.n_reliable += int(good.sum())
        self.n_without += int((rows.solved & ~known).sum())
        for total, use in ((self.count, known), (self.reliable, good)):
            cells = np.histogram2d((bp - rp)[use], magnitude[use], (COLOUR_EDGES, MAGNITUDE_EDGES))[0]
            total += cells.astype(np.int64)


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


def draw_reliability(numbers: Reliability) -> "Figure":
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


def _start(run: Run) -> Task:
    require_columns(run, PHOTOMETRY)
    numbers = Reliability()
    return Task((numbers,), lambda: _product(run, numbers))


def _product(run: Run, numbers: Reliability) -> Product:
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
    "reliability", "Fig. 17", "Reliability over the colour–magnitude diagram", _start, ("catalogue", "stars")
)
