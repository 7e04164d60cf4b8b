"""Drawing: each function takes finished numbers and returns a matplotlib figure.

House style: one sans-serif face, no chart junk, colours that survive colour-blindness and grey-scale print.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures.binned import ColumnDensity
from xpbayes.analysis.figures.spectra import SpectrumFit
from xpbayes.analysis.validation import Comparison, running_percentiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, BLUE, ORANGE, GREY, LIGHT = "#1b1f24", "#1f6fb4", "#d9622b", "#8a929c", "#d5dae0"
LABEL_TEXT = {
    "teff": "Teff",
    "feh": "[Fe/H]",
    "logg": "log g",
    "alpha_m": "[α/M]",
    "extinction": "E",
    "parallax": "parallax",
}
LABEL_UNIT = {"teff": "K", "feh": "dex", "logg": "dex", "alpha_m": "dex", "extinction": "mag", "parallax": "mas"}
"""Units on pages; inside, Teff is in kK."""
DENSITY_COLOURS, SIGNED_COLOURS = "Blues", "RdBu_r"
MAX_POINTS = 20_000
"""Points drawn in a scatter plot at most."""


def display_scale(label: str) -> float:
    """Factor from internal to displayed units: Teff is shown in K."""
    return 1e3 if label == "teff" else 1.0


def file_unit(name: str) -> str:
    """Unit of a parameter in files: internal, so kK for Teff."""
    return "kK" if name == "teff" else LABEL_UNIT.get(name, "")


def panels(columns: int, rows: int, width: float, height: float, **subplots: Any) -> "tuple[Figure, NDArray]":
    """Make an empty figure in house style, without pyplot's global state.

    Args:
        columns, rows: of panels.
        width, height: of the whole [inch].
        subplots: for matplotlib's `Figure.subplots`.

    Returns:
        the figure and its (row, column) axes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 9.5,
        "axes.edgecolor": GREY,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "legend.frameon": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        axes = figure.subplots(rows, columns, squeeze=False, **subplots)
    return figure, axes


def thinned(n: int) -> NDArray[np.int64]:
    """Rows to draw of n, evenly picked: all, or `MAX_POINTS` of them."""
    return np.linspace(0, n - 1, min(n, MAX_POINTS)).astype(int)


def density_panel(axis: "Axes", density: ColumnDensity, *, zero: bool = True) -> Any:
    """Draw a density per column with its percentile lines: dashed 15 % and 84 %, solid median.

    Args:
        axis: to draw on.
        density: from `binned`.
        zero: mark y = 0.

    Returns:
        matplotlib's mesh, for a colour bar.
    """
    mesh = axis.pcolormesh(
        density.x_edges, density.y_edges, density.relative.T, cmap=DENSITY_COLOURS, vmin=0.0, vmax=1.0, rasterized=True
    )
    if zero:
        axis.axhline(0.0, color=INK, lw=0.7)
    for k, style in enumerate(("--", "-", "--")):
        axis.plot(density.x, density.percentiles[:, k], style, color=ORANGE, lw=1.5)
    axis.set(xlim=density.x_edges[[0, -1]], ylim=density.y_edges[[0, -1]])
    return mesh


def plain_log_ticks(axis: "Axes") -> None:
    """Label a logarithmic axis of wavelengths [nm], and of values of order one, with plain numbers."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

    low, high = axis.get_xlim()
    ticks = [t for t in (400, 500, 600, 800, 1000, 1500, 2000, 3000, 5000) if low <= t <= high]
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(ScalarFormatter())
    if axis.get_yscale() == "log":
        axis.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 3, 4, 5]))
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_formatter(NullFormatter())


def decade_ticks(axis: "Axes") -> None:
    """Label a logarithmic y axis that spans decades with powers of ten, one that does not with plain numbers."""
    from matplotlib.ticker import LogFormatterMathtext, LogLocator, NullFormatter, ScalarFormatter

    low, high = axis.get_ylim()
    axis.yaxis.set_minor_formatter(NullFormatter())
    if high < 100 * low:
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(ScalarFormatter())
        return
    axis.yaxis.set_major_locator(LogLocator())
    axis.yaxis.set_major_formatter(LogFormatterMathtext())


def spectra(wavelength_nm: NDArray[np.floating], examples: Sequence[tuple[str, SpectrumFit]]) -> "Figure":
    """Observed and predicted flux of example stars, with residuals in sigma below each.

    Args:
        wavelength_nm: (channel,) [nm].
        examples: title and fit of each star.
    """
    from matplotlib.gridspec import GridSpecFromSubplotSpec

    columns = 2
    rows = -(-len(examples) // columns)
    figure, axes = panels(columns, rows, 9.4, 2.9 * rows)
    for panel, (title, fit) in zip(axes.flat, examples, strict=False):
        grid = GridSpecFromSubplotSpec(2, 1, panel.get_subplotspec(), height_ratios=(2.4, 1), hspace=0.06)
        panel.remove()
        top, bottom = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
        bottom.sharex(top)
        scale = np.nanmax(fit.observed)
        top.plot(wavelength_nm, fit.predicted / scale, color=ORANGE, lw=1.4, label="model")
        top.errorbar(
            wavelength_nm, fit.observed / scale, fit.error / scale, fmt="o", ms=2.2, lw=0.6, color=INK, label="data"
        )
        top.set_title(title, fontsize=9)
        top.tick_params(labelbottom=False)
        top.set_ylabel("flux / maximum")
        bottom.axhline(0, color=GREY, lw=0.6)
        bottom.axhspan(-1, 1, color=LIGHT, lw=0)
        bottom.plot(wavelength_nm, fit.residual, "o", ms=2.2, color=INK)
        limit = max(3.0, 1.1 * np.nanmax(np.abs(fit.residual)))
        bottom.set(ylim=(-limit, limit), ylabel="residual [σ]", xlabel="wavelength [nm]", xscale="log")
        for axis in (top, bottom):
            axis.spines[["top", "right"]].set_visible(False)
        plain_log_ticks(bottom)
        top.minorticks_off()
        if panel is axes.flat[0]:
            top.legend(fontsize=8)
    for panel in axes.flat[len(examples) :]:
        panel.remove()
    return figure


def against_labels(comparison: Comparison) -> "Figure":
    """Inferred minus label against the label, with running 16th, 50th and 84th percentiles."""
    n = len(comparison.label_names)
    figure, axes = panels(n, 2, 3.2 * n, 5.6)
    for i, name in enumerate(comparison.label_names):
        factor = display_scale(name)
        label, difference = factor * comparison.label[:, i], factor * comparison.difference[:, i]
        picked = thinned(len(label))
        top, bottom = axes[:, i]
        text, unit = LABEL_TEXT.get(name, name), LABEL_UNIT.get(name, "")
        low, high = np.percentile(label, [0.2, 99.8])
        top.plot(label[picked], (label + difference)[picked], ".", ms=1.6, color=BLUE, alpha=0.5, rasterized=True)
        top.plot([low, high], [low, high], color=INK, lw=0.7)
        top.set(xlim=(low, high), ylim=(low, high), ylabel=f"inferred {text} [{unit}]", title=text)
        reach = np.percentile(np.abs(difference), 98)
        bottom.plot(label[picked], difference[picked], ".", ms=1.6, color=BLUE, alpha=0.5, rasterized=True)
        centre, lines = running_percentiles(label, difference)
        for k, style in enumerate(("--", "-", "--")):
            bottom.plot(centre, lines[:, k], style, color=ORANGE, lw=1.5)
        bottom.axhline(0, color=INK, lw=0.7)
        bottom.set(xlim=(low, high), ylim=(-reach, reach), xlabel=f"label {text} [{unit}]", ylabel="inferred − label")
    return figure


def pulls(comparison: Comparison) -> "Figure":
    """Histograms of (inferred - label) / error beside a unit Gaussian."""
    n = len(comparison.label_names)
    figure, axes = panels(n, 1, 3.2 * n, 2.9)
    edges = np.linspace(-6, 6, 61)
    x = np.linspace(-6, 6, 301)
    for i, name in enumerate(comparison.label_names):
        axis = axes[0, i]
        values = np.clip(comparison.pull[:, i], -6, 6)  # the outermost bins collect what lies beyond
        axis.hist(values, edges, density=True, color=BLUE, alpha=0.75, lw=0)
        axis.plot(x, np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi), color=INK, lw=1.2)
        axis.set(title=LABEL_TEXT.get(name, name), xlabel="(inferred − label) / σ", ylabel="density" if i == 0 else "")
    return figure


def model_spectrum(wavelength_nm: NDArray[np.floating], flux: NDArray[np.floating], title: str) -> "Figure":
    """One predicted spectrum."""
    figure, axes = panels(1, 1, 7.0, 3.6)
    axis = axes[0, 0]
    axis.plot(wavelength_nm, flux, "o-", ms=3, lw=1.0, color=BLUE)
    axis.set(
        xlabel="wavelength [nm]",
        ylabel="flux [10$^{-18}$ W m$^{-2}$ nm$^{-1}$]",
        xscale="log",
        yscale="log",
        title=title,
    )
    plain_log_ticks(axis)
    decade_ticks(axis)
    return figure
