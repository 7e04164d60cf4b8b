"""Densities and percentiles in bins, of values at hand and of streams."""

from collections.abc import Iterator
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
    """How y is distributed at every x."""

    x_edges: NDArray[np.float64]  # (column + 1,)
    y_edges: NDArray[np.float64]  # (cell + 1,)
    count: NDArray[np.int64]  # (column, cell); what lies beyond `y_edges` is in no cell
    n: NDArray[np.int64]  # (column,) values, beyond `y_edges` too
    percentiles: NDArray[np.float64]  # (column, 3) `SHOWN_PERCENTILES` of all values; NaN where there are too few

    @property
    def x(self) -> NDArray[np.float64]:
        """(column,) middles."""
        return middles(self.x_edges)

    def columns(self) -> dict[str, NDArray[Any]]:
        """(column,) each: edges, number of values, percentiles, as files hold them."""
        low, high = self.x_edges[:-1], self.x_edges[1:]
        return dict(zip(DENSITY_COLUMNS, (low, high, self.n, *self.percentiles.T), strict=True))

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The same, column by column."""
        return zip(*self.columns().values(), strict=True)

    @property
    def relative(self) -> NDArray[np.float64]:
        """(column, cell) density over the column's greatest, as ZGR23 Fig. 9; NaN in columns of next to no values."""
        highest = self.count.max(axis=1, keepdims=True)
        shown = (highest > 0) & (self.n[:, None] >= MIN_SHOWN)
        return np.where(shown, self.count / np.maximum(highest, 1), np.nan)


def percentiles_in_bins(
    bins: NDArray[np.integer], y: NDArray[np.floating], n_bins: int, percentiles: tuple[float, ...]
) -> NDArray[np.float64]:
    """(bin, percentile) of values y by the numbers of their bins; NaN where there are fewer than `MIN_IN_COLUMN`."""
    out = np.full((n_bins, len(percentiles)), np.nan)
    for i in range(n_bins):
        inside = y[bins == i]
        if len(inside) >= MIN_IN_COLUMN:
            out[i] = np.percentile(inside, percentiles)
    return out


def running_percentiles(
    x: NDArray[np.floating], y: NDArray[np.floating], n_bins: int = 15
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(bin,) centres and (bin, 3) 16, 50, 84 % of y in bins of x between its 1st and 99th percentile."""
    low, high = np.percentile(x, [1, 99])
    edges = np.linspace(low, high, n_bins + 1)
    return middles(edges), percentiles_in_bins(np.digitize(x, edges) - 1, y, n_bins, (16.0, 50.0, 84.0))


def middles(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """(bin,) middles of bins between (bin + 1,) edges."""
    return 0.5 * (edges[1:] + edges[:-1])


def column_density(
    x: NDArray[np.floating], y: NDArray[np.floating], x_edges: NDArray[np.float64], y_edges: NDArray[np.float64]
) -> ColumnDensity:
    """Bin pairs (x, y) at hand; percentiles are exact. Pairs with a value that is not finite are left out."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = np.asarray(x, np.float64)[known], np.asarray(y, np.float64)[known]
    count = np.histogram2d(x, y, (x_edges, y_edges))[0].astype(np.int64)
    n_columns = len(x_edges) - 1
    # np.histogram2d counts the last edge into the last bin; so must the percentiles.
    column = np.where(x == x_edges[-1], n_columns - 1, np.searchsorted(x_edges, x, side="right") - 1)
    n = np.bincount(column[(column >= 0) & (column < n_columns)], minlength=n_columns)
    return ColumnDensity(x_edges, y_edges, count, n, percentiles_in_bins(column, y, n_columns, SHOWN_PERCENTILES))


def suitable_edges(x: NDArray[np.floating], y: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges that suit the finite values: x from its 0.5 % to its 99.5 %, y as far up and down as 98 % of them."""
    known = np.isfinite(x) & np.isfinite(y)
    n = int(known.sum())
    columns = int(np.clip(np.sqrt(n) / 2.5, 8, 60))
    if n == 0:
        return np.linspace(0.0, 1.0, columns + 1), np.linspace(-1.0, 1.0, 2 * columns + 1)
    low, high = np.percentile(x[known], [0.5, 99.5])
    reach = float(np.percentile(np.abs(y[known]), 98.0))
    return _edges(float(low), float(high), columns), _edges(-reach, reach, 2 * columns)


def _edges(low: float, high: float, n: int) -> NDArray[np.float64]:
    half = max(0.5 * (high - low), 1e-6 * max(abs(low), abs(high), 1.0))
    middle = 0.5 * (low + high)
    return np.linspace(middle - half, middle + half, n + 1)


class ColumnStream:
    """The same for pairs that pass by: counts in fine cells, equally spaced; percentiles to a fraction of a cell."""

    def __init__(self, x_edges: NDArray[np.float64], y_edges: NDArray[np.float64]) -> None:
        self.x_edges, self.y_edges = x_edges, y_edges
        self.count = np.zeros((len(x_edges) - 1, len(y_edges) + 1), np.int64)  # below and above `y_edges`, too

    def add(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> None:
        """Count pairs; x beyond its edges and values that are not finite are left out."""
        column = np.searchsorted(self.x_edges, x, side="right") - 1
        use = np.isfinite(y) & (column >= 0) & (column < len(self.count))
        cell = np.searchsorted(self.y_edges, y[use], side="right")
        flat = np.bincount(column[use] * self.count.shape[1] + cell, minlength=self.count.size)
        self.count += flat.reshape(self.count.shape)

    def density(self, coarser: int) -> ColumnDensity:
        """What was counted; `coarser` fine cells, which must divide their number, become one."""
        inner = self.count[:, 1:-1]
        shown = inner.reshape(len(inner), -1, coarser).sum(axis=2)
        n = self.count.sum(axis=1)
        lines = np.full((len(n), len(SHOWN_PERCENTILES)), np.nan)
        for i in np.flatnonzero(n >= MIN_IN_COLUMN):
            lines[i] = histogram_percentiles(self.count[i], self.y_edges, SHOWN_PERCENTILES)
        return ColumnDensity(self.x_edges, self.y_edges[::coarser], shown, n, lines)


def histogram_percentiles(
    count: NDArray[np.integer], edges: NDArray[np.float64], percentiles: tuple[float, ...]
) -> NDArray[np.float64]:
    """(percentile,) of counted values, taken as evenly spread inside each cell.

    `count` is (cell + 2,), the first and last being what lies below and above the (cell + 1,) edges. A percentile that
    falls there, or of no values, is NaN.
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
    """(share,) densities, of cells of equal size, above which the given shares of the total lie."""
    falling = np.sort(np.asarray(density, np.float64).ravel())[::-1]
    held = np.cumsum(falling) / falling.sum()
    return falling[np.minimum(np.searchsorted(held, shares), len(falling) - 1)]
