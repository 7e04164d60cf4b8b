"""Drawing: each function takes finished numbers and returns a matplotlib figure.

House style: one sans-serif face, no chart junk, colours that survive colour-blindness and grey-scale print.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures.binned import ColumnDensity, middles, running_percentiles
from xpbayes.analysis.validation import Comparison
from xpbayes.errors import InputError
from xpbayes.files import whole_file

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
FLUX_LABEL = "flux [10$^{-18}$ W m$^{-2}$ nm$^{-1}$]"
DENSITY_COLOURS, SIGNED_COLOURS = "Blues", "RdBu_r"
DENSITY_LABEL = "density / greatest of its column"
FIGURE_SUFFIXES = (".png", ".pdf", ".svg")
MAX_POINTS = 20_000
"""Points drawn in a scatter plot at most."""


def save_figure(figure: "Figure", path: Path, dpi: float) -> Path:
    """Write a figure whole or not at all, its folder made if need be; InputError if it cannot be, or by its ending."""
    if path.suffix.lower() not in FIGURE_SUFFIXES:
        raise InputError(f"{path}: a figure's name ends in .png, .pdf or .svg")
    drawn = io.BytesIO()  # matplotlib's own writers fail in their own ways on a full disk
    figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=dpi)
    with whole_file(path) as temporary:
        temporary.write_bytes(drawn.getvalue())
    return path


def display_scale(label: str) -> float:
    """Factor from internal to displayed units: Teff is shown in K."""
    return 1e3 if label == "teff" else 1.0


def text(name: str) -> str:
    """What a parameter is called."""
    return LABEL_TEXT.get(name, name)


def heading(name: str) -> str:
    """What a parameter is called, with the unit that it is shown in."""
    unit = LABEL_UNIT.get(name, "")
    return f"{text(name)} [{unit}]" if unit else text(name)


def file_unit(name: str) -> str:
    """Unit of a parameter in files: internal, so kK for Teff."""
    return "kK" if name == "teff" else LABEL_UNIT.get(name, "")


def panels(columns: int, rows: int, width: float, height: float, **subplots: Any) -> "tuple[Figure, Any]":
    """Make an empty figure in house style, without pyplot's global state, and its (row, column) axes.

    Width and height are of the whole [inch]; `subplots` is for matplotlib's `Figure.subplots`.
    """
    import matplotlib

    from xpbayes.analysis.figures.picture import Picture

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
        figure = Picture(figsize=(width, height), layout="constrained", facecolor="white")
        axes = figure.subplots(rows, columns, squeeze=False, **subplots)
    return figure, axes


def grid(n: int, columns: int, width: float, height: float, **subplots: Any) -> "tuple[Figure, list[Axes]]":
    """Make a figure of n panels in rows of at most so many columns; places without a panel stay empty.

    Width and height are of one panel [inch]; `subplots` is for matplotlib's `Figure.subplots`.
    """
    columns = min(columns, n)
    rows = -(-n // columns)
    figure, axes = panels(columns, rows, width * columns, height * rows, **subplots)
    for axis in axes.flat[n:]:
        axis.remove()
    return figure, list(axes.flat[:n])


SKY_LONGITUDE, SKY_LATITUDE = np.linspace(-180.0, 180.0, 961), np.linspace(-90.0, 90.0, 481)
"""Edges of the cells that maps of the sky are drawn in [deg]; longitude to the right, so minus Galactic l."""


def sky_grid(n: int, columns: int | None = None) -> "tuple[Figure, list[Axes]]":
    """Make a figure of n Mollweide maps of the sky, Galactic, the centre of the Galaxy in the middle."""
    columns = columns or (3 if n == 3 else min(n, 2))  # three in a row leave no place empty
    width = 12.0 / max(columns, 2)
    figure, axes = grid(n, columns, width, 0.56 * width, subplot_kw={"projection": "mollweide"})
    for axis in axes:
        axis.set_facecolor(LIGHT)
        axis.set_xticks(np.radians([-120, -60, 0, 60, 120]), ["120°", "60°", "0°", "300°", "240°"], fontsize=7)
        axis.set_yticks(np.radians([-60, -30, 0, 30, 60]), ["−60°", "−30°", "0°", "30°", "60°"], fontsize=7)
        axis.tick_params(colors=GREY)
    return figure, axes


def sky_positions() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(y, x) Galactic l and b [deg] of the middles of the cells; longitude grows to the left."""
    grid_x, grid_y = np.meshgrid(middles(SKY_LONGITUDE), middles(SKY_LATITUDE))
    return -grid_x % 360.0, grid_y


def sky_panel(axis: "Axes", image: NDArray[np.floating], title: str, **mesh: Any) -> Any:
    """Draw a map of the sky on an axis of `sky_grid`; returns matplotlib's mesh, for a colour bar.

    The image is (y, x) at `sky_positions`, NaN where there is no value; `mesh` is for matplotlib's `pcolormesh`.
    """
    drawn = axis.pcolormesh(np.radians(SKY_LONGITUDE), np.radians(SKY_LATITUDE), image, rasterized=True, **mesh)
    axis.set_title(title, fontsize=9)
    axis.grid(color=GREY, lw=0.3)  # the mesh has switched it off
    return drawn


def cells(axis: "Axes", x: NDArray[np.floating], y: NDArray[np.floating], value: NDArray[Any], **mesh: Any) -> Any:
    """Draw (x, y) values of cells between edges, nothing where a value is NaN; returns matplotlib's mesh."""
    return axis.pcolormesh(x, y, value.T, rasterized=True, **mesh)


def counts(axis: "Axes", x: NDArray[np.floating], y: NDArray[np.floating], count: NDArray[Any], most: int) -> Any:
    """Draw numbers of stars in cells, in colours of their logarithm up to `most`; nothing where there is none."""
    from matplotlib.colors import LogNorm

    return cells(axis, x, y, np.where(count > 0, count, np.nan), norm=LogNorm(1, max(most, 2)), cmap="viridis")


def dots(axis: "Axes", x: NDArray[Any], y: NDArray[Any], size: float = 1.6) -> None:
    """Draw stars as dots, at most `MAX_POINTS` of them."""
    picked = thinned(len(x))
    axis.plot(x[picked], y[picked], ".", ms=size, color=BLUE, alpha=0.5, rasterized=True)


def circle(axis: "Axes", x: float, y: float, radius: float, style: str = "-", **line: Any) -> None:
    """Draw a circle, in orange unless told otherwise."""
    angle = np.linspace(0.0, 2.0 * np.pi, 361)
    axis.plot(x + radius * np.cos(angle), y + radius * np.sin(angle), style, **{"color": ORANGE, "lw": 1.0, **line})


def percentile_lines(axis: "Axes", x: NDArray[np.floating], percentiles: NDArray[np.floating]) -> None:
    """Draw (x, 3) percentiles: dashed, solid median, dashed."""
    for values, style in zip(percentiles.T, ("--", "-", "--"), strict=True):
        axis.plot(x, values, style, color=ORANGE, lw=1.5)


def percentile_legend(axis: "Axes") -> None:
    """Say what the lines of a `density_panel` are."""
    median, low = axis.lines[-2], axis.lines[-3]
    axis.legend([median, low], ["median", "15, 84 %"], fontsize=7.0, frameon=False, loc="lower left")


def legend(axis: "Axes", size: float = 8.0, **place: Any) -> None:
    """Draw a legend without a frame."""
    axis.legend(fontsize=size, frameon=False, **place)


def thinned(n: int) -> NDArray[np.int64]:
    """Rows to draw of n, evenly picked: all, or `MAX_POINTS` of them."""
    return np.linspace(0, n - 1, min(n, MAX_POINTS)).astype(int)


def density_panel(axis: "Axes", density: ColumnDensity) -> Any:
    """Draw a density per column, lines at 15, 84 % (dashed) and 50 % (solid), and y = 0; returns matplotlib's mesh."""
    mesh = cells(axis, density.x_edges, density.y_edges, density.relative, cmap=DENSITY_COLOURS, vmin=0.0, vmax=1.0)
    axis.axhline(0.0, color=INK, lw=0.7)
    percentile_lines(axis, density.x, density.percentiles)
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


def spectrum_axis(axis: "Axes", **settings: Any) -> None:
    """Give a panel logarithmic axes of wavelength and flux: powers of ten where it spans decades, or plain numbers."""
    from matplotlib.ticker import LogFormatterMathtext, LogLocator, NullFormatter, ScalarFormatter

    axis.set(**{"xlabel": "wavelength [nm]", "ylabel": FLUX_LABEL, "xscale": "log", "yscale": "log", **settings})
    plain_log_ticks(axis)
    low, high = axis.get_ylim()
    decades = high >= 100 * low
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_locator(LogLocator() if decades else LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(LogFormatterMathtext() if decades else ScalarFormatter())


def against_labels(comparison: Comparison) -> "Figure":
    """Inferred minus label against the label, with running 16th, 50th and 84th percentiles."""
    n = len(comparison.label_names)
    figure, axes = panels(n, 2, 3.2 * n, 5.6)
    for i, name in enumerate(comparison.label_names):
        factor = display_scale(name)
        label, difference = factor * comparison.label[:, i], factor * comparison.difference[:, i]
        top, bottom = axes[:, i]
        low, high = np.percentile(label, [0.2, 99.8])
        dots(top, label, label + difference)
        top.plot([low, high], [low, high], color=INK, lw=0.7)
        top.set(xlim=(low, high), ylim=(low, high), ylabel=f"inferred {heading(name)}", title=text(name))
        reach = np.percentile(np.abs(difference), 98)
        dots(bottom, label, difference)
        percentile_lines(bottom, *running_percentiles(label, difference))
        bottom.axhline(0, color=INK, lw=0.7)
        bottom.set(xlim=(low, high), ylim=(-reach, reach), xlabel=f"label {heading(name)}", ylabel="inferred − label")
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
        axis.set(title=text(name), xlabel="(inferred − label) / σ", ylabel="density" if i == 0 else "")
    return figure
