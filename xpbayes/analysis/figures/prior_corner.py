"""The Gaussian-mixture prior on the labels as a corner plot (ZGR23 Fig. 5).

Marginals of a mixture are mixtures of the components' marginals, so nothing is drawn at random.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.figures.binned import enclosing_levels, middles
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, Product, Series, drawn_now, table_of
from xpbayes.models.prior import LabelPrior

SHARES = (0.68, 0.95, 0.99)
CELLS = 240
"""Cells of a marginal: a tenth of the narrowest component's width is finer only where it holds little."""
OUTSIDE = 2e-4
"""Probability of a label beyond either end of its axis."""


@dataclass(frozen=True)
class Corner:
    """Marginal densities of the prior."""

    names: tuple[str, ...]
    edges: tuple[NDArray[np.float64], ...]  # per label (cell + 1,) [kK, dex, ...]
    one: tuple[NDArray[np.float64], ...]  # per label (cell,) density
    two: dict[tuple[int, int], NDArray[np.float64]]  # (i, j) with i < j: (cell of i, cell of j) density
    levels: dict[tuple[int, int], NDArray[np.float64]]  # (3,) densities that enclose the `SHARES`
    weight: NDArray[np.float64]  # (component,)
    mean: NDArray[np.float64]  # (component, label)


def corner(prior: LabelPrior, names: tuple[str, ...]) -> Corner:
    """Compute all one- and two-dimensional marginals of a mixture on labels of these names."""
    from scipy.stats import norm

    weight = np.exp(np.asarray(prior.ln_weight, np.float64))
    weight /= weight.sum()
    mean = np.asarray(prior.mean, np.float64)
    whitening = np.asarray(prior.whitening, np.float64)
    covariance = np.linalg.inv(whitening @ np.swapaxes(whitening, 1, 2))
    sigma = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    edges, one = [], []
    for i in range(len(names)):
        wide = np.linspace((mean[:, i] - 6 * sigma[:, i]).min(), (mean[:, i] + 6 * sigma[:, i]).max(), 4001)
        below = norm.cdf((wide[:, None] - mean[:, i]) / sigma[:, i]) @ weight
        low, high = np.interp([OUTSIDE, 1.0 - OUTSIDE], below, wide)
        edges.append(np.linspace(low, high, CELLS + 1))
        # The mean over a cell, not the value in its middle: the first sums to one whatever the cells' width.
        inside = np.diff(norm.cdf((edges[i][:, None] - mean[:, i]) / sigma[:, i]) @ weight)
        one.append(inside / np.diff(edges[i]))
    two, levels = {}, {}
    for i, j in combinations(range(len(names)), 2):
        x, y = middles(edges[i]), middles(edges[j])
        density = np.zeros((CELLS, CELLS))
        for w, m, c in zip(weight, mean, covariance, strict=True):
            density += w * _gaussian(x - m[i], y - m[j], c[np.ix_((i, j), (i, j))])
        two[i, j] = density
        levels[i, j] = enclosing_levels(density, SHARES)
    return Corner(names, tuple(edges), tuple(one), two, levels, weight, mean)


def _gaussian(x: NDArray[np.float64], y: NDArray[np.float64], covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """(x, y) density of a two-dimensional Gaussian around 0."""
    (a, b), (_, c) = covariance
    det = a * c - b * b
    chi2 = (c * x[:, None] ** 2 - 2 * b * x[:, None] * y + a * y**2) / det
    return np.exp(-0.5 * chi2) / (2 * np.pi * np.sqrt(det))


def draw_corner(numbers: Corner) -> "drawing.Figure":
    """Corner plot: marginals on the diagonal, contours of 68, 95 and 99 % below."""
    n = len(numbers.names)
    figure, axes = drawing.panels(n, n, 2.7 * n, 2.5 * n)
    scale = [drawing.display_scale(name) for name in numbers.names]
    at = [factor * middles(edges) for factor, edges in zip(scale, numbers.edges, strict=True)]
    limits = [factor * numbers.edges[i][[0, -1]] for i, factor in enumerate(scale)]
    for row, column in np.ndindex(n, n):
        axis = axes[row, column]
        if column > row:
            axis.remove()
            continue
        if column == row:
            axis.fill_between(at[row], numbers.one[row], color=drawing.BLUE, alpha=0.3, lw=0)
            axis.plot(at[row], numbers.one[row], color=drawing.BLUE, lw=1.2)
            axis.set(xlim=limits[row], yticks=[], ylim=(0, None))
            axis.spines["left"].set_visible(False)
        else:
            density, levels = numbers.two[column, row].T, numbers.levels[column, row][::-1]
            filled = [*levels, density.max()]
            axis.contourf(at[column], at[row], density, filled, colors=("#cfe0ef", "#7fb0d8", drawing.BLUE))
            axis.contour(at[column], at[row], density, levels, colors=drawing.INK, linewidths=0.5)
            axis.set(xlim=limits[column], ylim=limits[row])
        axis.tick_params(labelbottom=row == n - 1, labelleft=column == 0)
        if row == n - 1:
            axis.set_xlabel(drawing.heading(numbers.names[column]))
        if column == 0 and row > 0:
            axis.set_ylabel(drawing.heading(numbers.names[row]))
    return figure


def _make(run: Run) -> Product:
    assert run.model is not None
    numbers = corner(run.model.prior, run.model.labels)
    n = len(numbers.weight)
    marginals, contours, components = {}, [], {}
    for i, name in enumerate(numbers.names):
        unit = drawing.file_unit(name)
        marginals[name] = Series(middles(numbers.edges[i]), unit, "label")
        marginals[f"density_{name}"] = Series(numbers.one[i], f"1/{unit}" if unit else "", "marginal density")
        components[name] = Series(numbers.mean[:, i], unit, "mean of the component")
    for (i, j), levels in numbers.levels.items():
        contours += [(numbers.names[i], numbers.names[j], s, v) for s, v in zip(SHARES, levels, strict=True)]
    about = {
        "x": "label across", "y": "label upwards", "share": "enclosed probability", "density": "density on the contour",
    }  # fmt: skip
    return Product(
        draw_corner(numbers),
        f"Corner plot of the prior on {', '.join(map(drawing.text, numbers.names))}",
        f"The prior on the labels: a mixture of {n} Gaussians fitted to the labels of "
        f"{run.model.card.get('n_training', 0):,} training stars. Contours enclose 68, 95 and 99 % of the probability; "
        "marginals are exact, no draws. No cut.",
        {
            "": marginals,
            "contours": table_of(contours, about),
            "components": {"weight": Series(numbers.weight, "", "of the component"), **components},
        },
    )


PRIOR = Analysis("prior", "Fig. 5", "The prior on stellar types", drawn_now(_make), ("model",))
