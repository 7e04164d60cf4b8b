import numpy as np
import pytest
from numpy.testing import assert_allclose

from xpbayes.analysis.figures.binned import (
    ColumnStream,
    column_density,
    enclosing_levels,
    histogram_percentiles,
    running_percentiles,
    suitable_edges,
)

RNG = np.random.default_rng(0)
X_EDGES, Y_EDGES = np.linspace(0, 10, 6), np.linspace(-3, 3, 13)


def test_density_and_percentiles_against_a_loop():
    x, y = RNG.uniform(-1, 11, 3000), RNG.normal(size=3000)
    x[:40], y[40:80] = np.nan, np.nan
    density = column_density(x, y, X_EDGES, Y_EDGES)
    known = np.isfinite(x) & np.isfinite(y)
    for i in range(5):
        inside = y[known & (x >= X_EDGES[i]) & (x < X_EDGES[i + 1])]
        assert density.n[i] == len(inside)
        assert_allclose(density.percentiles[i], np.percentile(inside, [15, 50, 84]))
        for j in range(12):
            assert density.count[i, j] == ((inside >= Y_EDGES[j]) & (inside < Y_EDGES[j + 1])).sum()
    assert_allclose(density.relative.max(axis=1), 1.0)


def test_the_last_edge_belongs_to_the_last_column():
    density = column_density(np.full(20, 10.0), np.arange(20.0), X_EDGES, Y_EDGES)
    assert density.n[-1] == 20 and density.percentiles[-1, 1] == 9.5


def test_sparse_columns_have_no_lines_and_empty_ones_no_density():
    density = column_density(np.full(14, 1.0), np.zeros(14), X_EDGES, Y_EDGES)
    assert np.isnan(density.percentiles).all()
    assert np.isnan(density.relative[1:]).all() and density.relative[0].max() == 1


def test_a_column_of_next_to_no_values_is_not_drawn():
    x = np.repeat([1.0, 3.0], [4, 5])
    density = column_density(x, np.zeros(9), X_EDGES, Y_EDGES)
    assert np.isnan(density.relative[0]).all() and density.relative[1].max() == 1 and density.n[0] == 4


def test_running_percentiles_against_a_loop():
    x, y = RNG.uniform(0, 10, 5000), RNG.normal(size=5000)
    centre, lines = running_percentiles(x, y, n_bins=7)
    low, high = np.percentile(x, [1, 99])
    width = (high - low) / 7
    for i in range(7):
        inside = y[(x >= low + i * width) & (x < low + (i + 1) * width)]
        assert_allclose(centre[i], low + (i + 0.5) * width)
        assert_allclose(lines[i], np.percentile(inside, [16, 50, 84]))


def test_sparse_bins_are_left_empty():
    _, lines = running_percentiles(np.arange(20.0), np.arange(20.0), n_bins=10)
    assert np.isnan(lines).all()


def test_a_stream_agrees_with_values_at_hand_however_it_is_cut():
    x, y = RNG.uniform(0, 10, 20_000), RNG.standard_t(2, 20_000)  # tails beyond the cells
    fine = np.linspace(-3, 3, 601)
    stream = ColumnStream(X_EDGES, fine)
    for part in np.array_split(np.arange(20_000), 7):
        stream.add(x[part], y[part])
    streamed, whole = stream.density(coarser=50), column_density(x, y, X_EDGES, Y_EDGES)
    assert np.array_equal(streamed.count, whole.count) and np.array_equal(streamed.n, whole.n)
    assert_allclose(streamed.percentiles, whole.percentiles, atol=0.011)  # a cell is 0.01


def test_percentiles_beyond_the_cells_are_not_invented():
    count = np.array([50, 0, 10, 40, 0])  # half of the values lie below
    assert np.isnan(histogram_percentiles(count, np.arange(4.0), (15.0,)))
    assert_allclose(histogram_percentiles(count, np.arange(4.0), (55.0, 80.0)), [1.5, 2.5])
    assert np.isnan(histogram_percentiles(np.zeros(5, int), np.arange(4.0), (50.0,)))


def test_levels_of_a_gaussian_are_its_ellipses():
    """A two-dimensional Gaussian holds 1 - exp(-r^2 / 2) within r sigma, where its density is exp(-r^2 / 2) / 2 pi."""
    axis = np.linspace(-6, 6, 401)
    density = np.exp(-0.5 * (axis[:, None] ** 2 + axis**2)) / (2 * np.pi)
    levels = enclosing_levels(density, (0.68, 0.95, 0.99))
    assert_allclose(levels, (1 - np.array([0.68, 0.95, 0.99])) / (2 * np.pi), rtol=0.01)


@pytest.mark.parametrize("n", [0, 1, 50, 100_000])
def test_edges_rise_whatever_there_is(n):
    for edges in suitable_edges(np.full(n, 3.0), np.zeros(n)):
        assert (np.diff(edges) > 0).all()
