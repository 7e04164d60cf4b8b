"""Densities and percentiles in bins, of values at hand and of streams: NumPy only, no files, no drawing."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHOWN_PERCENTILES = (15.0, 50.0, 84.0)
"""The lines of ZGR23 Figs. 9, 10 and 16."""
DENSITY_COLUMNS = ("low", "high", "n", "p15", "p50", "p84")
MIN_SHOWN = 5
"""A column of fewer values, drawn at full strength, would look like a certainty."""
MIN_IN_COLUMN = 15
"""Percentiles of fewer values say little."""


@dataclass(frozen=True)
class ColumnDensity:
    """How y is distributed at every x.

    Attributes:
        x_edges: (column + 1,).
        y_edges: (cell + 1,).
        count: (column, cell) values; what lies beyond `y_edges` is in no cell.
        n: (column,) values, beyond `y_edges` too.
        percentiles: (column, 3) 15 %, 50 % and 84 % of all values of the column; NaN where there are too few.
    """

    x_edges: NDArray[np.float64]
    y_edges: NDArray[np.float64]
    count: NDArray[np.int64]
    n: NDArray[np.int64]
    percentiles: NDArray[np.float64]

    @property
    def x(self) -> NDArray[np.float64]:
        """(column,) middles."""
        return 0.5 * (self.x_edges[1:] + self.x_edges[:-1])

    def columns(self) -> dict[str, NDArray[Any]]:
        """(column,) each: edges, number of values, percentiles, as files hold them."""
        low, high = self.x_edges[:-1], self.x_edges[1:]
        return dict(zip(DENSITY_COLUMNS, (low, high, self.n, *self.percentiles.T), strict=True))

    @property
    def relative(self) -> NDArray[np.float64]:
        """(column, cell) density over the column's greatest, as ZGR23 Fig. 9; NaN in columns of next to no values."""
        highest = self.count.max(axis=1, keepdims=True)
        shown = (highest > 0) & (self.n[:, None] >= MIN_SHOWN)
        return np.where(shown, self.count / np.maximum(highest, 1), np.nan)


def column_density(
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    x_edges: NDArray[np.float64],
    y_edges: NDArray[np.float64],
    min_count: int = MIN_IN_COLUMN,
) -> ColumnDensity:
    """Bin pairs (x, y) at hand; percentiles are exact. Pairs with a value that is not finite are left out."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = np.asarray(x, np.float64)[known], np.asarray(y, np.float64)[known]
    count = np.histogram2d(x, y, (x_edges, y_edges))[0].astype(np.int64)
    n_columns = len(x_edges) - 1
    # np.histogram2d counts the last edge into the last bin; so must the percentiles.
    column = np.where(x == x_edges[-1], n_columns - 1, np.searchsorted(x_edges, x, side="right") - 1)
    inside = (column >= 0) & (column < n_columns)
    order = np.argsort(column[inside], kind="stable")
    n = np.bincount(column[inside], minlength=n_columns)
    lines = np.full((n_columns, len(SHOWN_PERCENTILES)), np.nan)
    for i, values in enumerate(np.split(y[inside][order], np.cumsum(n)[:-1])):
        if len(values) >= min_count:
            lines[i] = np.percentile(values, SHOWN_PERCENTILES)
    return ColumnDensity(x_edges, y_edges, count, n, lines)


def suitable_edges(
    x: NDArray[np.floating], y: NDArray[np.floating], symmetric: bool = True
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges that suit the number of values: x from its 0.5 % to its 99.5 %, y as far as 98 % of them.

    Args:
        x, y: (star,); values that are not finite do not count.
        symmetric: y goes as far up as down.
    """
    known = np.isfinite(x) & np.isfinite(y)
    n = int(known.sum())
    columns = int(np.clip(np.sqrt(n) / 2.5, 8, 60))
    if n == 0:
        return np.linspace(0.0, 1.0, columns + 1), np.linspace(-1.0, 1.0, 2 * columns + 1)
    low, high = np.percentile(x[known], [0.5, 99.5])
    if symmetric:
        reach = float(np.percentile(np.abs(y[known]), 98.0))
        bottom, top = -reach, reach
    else:
        bottom, top = (float(v) for v in np.percentile(y[known], [1.0, 99.0]))
    return _edges(float(low), float(high), columns), _edges(bottom, top, 2 * columns)


def _edges(low: float, high: float, n: int) -> NDArray[np.float64]:
    half = max(0.5 * (high - low), 1e-6 * max(abs(low), abs(high), 1.0))
    middle = 0.5 * (low + high)
    return np.linspace(middle - half, middle + half, n + 1)


class ColumnStream:
    """The same for pairs that pass by: counts in fine cells, percentiles to a fraction of a cell.

    Attributes:
        x_edges: (column + 1,).
        y_edges: (cell + 1,), fine and equally spaced.
        count: (column, cell + 2), the first and last cell being what lies below and above.
    """

    def __init__(self, x_edges: NDArray[np.float64], y_edges: NDArray[np.float64]) -> None:
        self.x_edges, self.y_edges = x_edges, y_edges
        self.count = np.zeros((len(x_edges) - 1, len(y_edges) + 1), np.int64)

    def add(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> None:
        """Count pairs; x beyond its edges and values that are not finite are left out."""
        column = np.searchsorted(self.x_edges, x, side="right") - 1
        use = np.isfinite(y) & (column >= 0) & (column < len(self.count))
        cell = np.searchsorted(self.y_edges, y[use], side="right")
        flat = np.bincount(column[use] * self.count.shape[1] + cell, minlength=self.count.size)
        self.count += flat.reshape(self.count.shape)

    def density(self, coarser: int = 1, min_count: int = MIN_IN_COLUMN) -> ColumnDensity:
        """What was counted.

        Args:
            coarser: that many fine cells become one; must divide their number.
            min_count: least values of a column for percentiles.
        """
        inner = self.count[:, 1:-1]
        shown = inner.reshape(len(inner), -1, coarser).sum(axis=2)
        n = self.count.sum(axis=1)
        lines = np.full((len(n), len(SHOWN_PERCENTILES)), np.nan)
        for i in np.flatnonzero(n >= min_count):
            lines[i] = histogram_percentiles(self.count[i], self.y_edges, SHOWN_PERCENTILES)
        return ColumnDensity(self.x_edges, self.y_edges[::coarser], shown, n, lines)


def histogram_percentiles(
    count: NDArray[np.integer], edges: NDArray[np.float64], percentiles: tuple[float, ...]
) -> NDArray[np.float64]:
    """Percentiles of counted values, taken as evenly spread inside each cell.

    Args:
        count: (cell + 2,) the first and last being what lies below and above the edges.
        edges: (cell + 1,).
        percentiles: in per cent.

    Returns:
        (percentile,); NaN where it falls below or above the edges, or there are no values.
    """
    below = np.concatenate([[0], np.cumsum(count)])
    wanted = np.asarray(percentiles) / 100.0 * below[-1]
    out = np.full(len(wanted), np.nan)
    if below[-1] == 0:
        return out
    cell = np.clip(np.searchsorted(below, wanted, side="left") - 1, 0, len(count) - 1)
    inside = (cell >= 1) & (cell <= len(edges) - 1)
    at = cell[inside]
    share = (wanted[inside] - below[at]) / np.maximum(count[at], 1)
    out[inside] = edges[at - 1] + share * (edges[at] - edges[at - 1])
    return out


def enclosing_levels(density: NDArray[np.floating], shares: tuple[float, ...]) -> NDArray[np.float64]:
    """Densities above which the given shares of the total lie: levels of the smallest regions that hold them.

    Args:
        density: of any shape, on cells of equal size, not negative.
        shares: e.g. (0.68, 0.95, 0.99).

    Returns:
        (share,) levels, falling as shares rise.
    """
    falling = np.sort(np.asarray(density, np.float64).ravel())[::-1]
    held = np.cumsum(falling) / falling.sum()
    return falling[np.minimum(np.searchsorted(held, shares), len(falling) - 1)]
