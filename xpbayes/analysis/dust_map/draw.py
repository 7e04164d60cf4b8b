"""Figures of a dust map: differential extinction over the sky (ZGR23 Fig. 20), the view from above (Fig. 21)."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.dust_map.birds_eye import BirdsEye
from xpbayes.analysis.dust_map.healpix_map import DustMap
from xpbayes.analysis.figures.drawing import GREY, INK, LIGHT, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = "magma_r"
FULL_SKY_FRACTION = 0.1
"""A map that covers less of the sky is drawn as a flat patch instead of an ellipse."""


def sky_image(
    dust_map: DustMap, values: NDArray[np.floating], longitude: NDArray[np.float64], latitude: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Look up (row,) values of a map at Galactic positions [deg] of any shape; NaN where there are none."""
    import astropy.units as u
    from astropy_healpix import lonlat_to_healpix

    pixel = lonlat_to_healpix(longitude * u.deg, latitude * u.deg, dust_map.finest, order="nested")
    row = dust_map.rows_of(np.asarray(pixel))
    return np.where(row >= 0, np.append(np.asarray(values, np.float64), np.nan)[row], np.nan)


def draw_sky(dust_map: DustMap) -> "Figure":
    """Differential extinction in every distance bin; light grey where the map has too few stars."""
    n_bins = len(dust_map.edges) - 1
    whole = len(dust_map.pixel) > FULL_SKY_FRACTION * 12 * dust_map.finest**2
    return _draw_ellipses(dust_map, n_bins) if whole else _draw_patch(dust_map, n_bins)


def _title(dust_map: DustMap, k: int) -> str:
    shown = np.isfinite(dust_map.differential[:, k])
    count = (
        f"{shown.sum():,} pixels, median {np.median(dust_map.stars[shown, k]):.0f} stars" if shown.any() else "no pixel"
    )
    return f"{dust_map.edges[k]:g}–{dust_map.edges[k + 1]:g} kpc ({count})"


def _limits(dust_map: DustMap) -> tuple[float, float]:
    values = dust_map.differential[np.isfinite(dust_map.differential)]
    return (0.0, max(float(np.percentile(values, 98)), 0.01)) if len(values) else (0.0, 1.0)


def _draw_ellipses(dust_map: DustMap, n_bins: int) -> "Figure":
    from matplotlib.figure import Figure

    columns = min(2, n_bins)
    rows = -(-n_bins // columns)
    figure = Figure(figsize=(5.2 * columns, 2.9 * rows), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False, subplot_kw={"projection": "mollweide"})
    # Longitude grows to the left, the centre of the Galaxy is in the middle.
    x, y = np.linspace(-180.0, 180.0, 961), np.linspace(-90.0, 90.0, 481)
    grid_x, grid_y = np.meshgrid(0.5 * (x[1:] + x[:-1]), 0.5 * (y[1:] + y[:-1]))
    low, high = _limits(dust_map)
    for k, axis in enumerate(axes.flat):
        if k >= n_bins:
            axis.remove()
            continue
        image = sky_image(dust_map, dust_map.differential[:, k], -grid_x % 360.0, grid_y)
        axis.set_facecolor(LIGHT)
        mesh = axis.pcolormesh(
            np.radians(x), np.radians(y), image, cmap=COLOURS, vmin=low, vmax=high, rasterized=True, shading="flat"
        )
        axis.set_title(_title(dust_map, k), fontsize=9, color=INK)
        axis.set_xticks(np.radians([-120, -60, 0, 60, 120]), ["120°", "60°", "0°", "300°", "240°"], fontsize=7)
        axis.set_yticks(np.radians([-60, -30, 0, 30, 60]), ["−60°", "−30°", "0°", "30°", "60°"], fontsize=7)
        axis.tick_params(colors=GREY)
        axis.grid(color=GREY, lw=0.3)
    figure.colorbar(mesh, ax=axes.ravel().tolist(), label="differential extinction ΔE [mag]", pad=0.01, extend="both")
    return figure


def _draw_patch(dust_map: DustMap, n_bins: int) -> "Figure":
    import astropy.units as u
    from astropy_healpix import healpix_to_lonlat

    lon, lat = healpix_to_lonlat(dust_map.pixel, dust_map.finest, order="nested")
    b = lat.to_value(u.deg)
    middle = np.degrees(np.arctan2(np.sin(lon).mean().value, np.cos(lon).mean().value))
    offset = (lon.to_value(u.deg) - middle + 180.0) % 360.0 - 180.0
    margin = 60.0 / dust_map.finest
    x = np.linspace(offset.min() - margin, offset.max() + margin, 500) + middle
    y = np.linspace(b.min() - margin, b.max() + margin, 500)
    columns = min(4, n_bins)
    rows = -(-n_bins // columns)
    width = 10.0 / columns
    shape = (y[-1] - y[0]) / max((x[-1] - x[0]) * np.cos(np.radians(b.mean())), 1e-3)
    figure, axes = panels(columns, rows, 11.0, rows * (0.9 + width * float(np.clip(shape, 0.3, 2.0))))
    grid_x, grid_y = np.meshgrid(x, y)
    low, high = _limits(dust_map)
    for k, axis in enumerate(axes.flat):
        if k >= n_bins:
            axis.remove()
            continue
        values = sky_image(dust_map, dust_map.differential[:, k], grid_x % 360.0, grid_y)
        axis.set_facecolor(LIGHT)
        image = axis.imshow(
            values,
            origin="lower",
            extent=(x[0], x[-1], y[0], y[-1]),
            cmap=COLOURS,
            vmin=low,
            vmax=high,
            aspect=1.0 / np.cos(np.radians(b.mean())),
            interpolation="nearest",
        )
        axis.invert_xaxis()
        axis.set_title(_title(dust_map, k).replace(" (", "\n("), fontsize=9)
        axis.set(xlabel="Galactic l [°]", ylabel="Galactic b [°]" if k % columns == 0 else "")
    figure.colorbar(image, ax=axes.ravel().tolist(), label="differential extinction ΔE [mag]", pad=0.01, extend="both")
    return figure


def draw_birds_eye(above: BirdsEye) -> "Figure":
    """Mean extinction density seen from above, the Galactic centre to the right."""
    edge = above.axis[-1] + 0.5 * (above.axis[1] - above.axis[0])
    x_range, y_range = _frame(above, edge)
    shape = (x_range[1] - x_range[0]) / (y_range[1] - y_range[0])
    figure, axes = panels(1, 1, 1.8 + 5.2 * min(shape, 1.0), 0.8 + 5.2 / max(shape, 1.0))
    axis = axes[0, 0]
    values = above.density[np.isfinite(above.density)]
    high = max(float(np.percentile(values, 98)), 1e-3) if len(values) else 1.0
    axis.set_facecolor(LIGHT)
    image = axis.imshow(
        above.density,
        origin="lower",
        extent=(-edge, edge, -edge, edge),
        cmap=COLOURS,
        vmin=0.0,
        vmax=high,
        interpolation="nearest",
    )
    angle = np.linspace(0.0, 2.0 * np.pi, 361)
    for radius in range(1, int(edge) + 1):
        axis.plot(radius * np.cos(angle), radius * np.sin(angle), color=GREY, lw=0.3)
    axis.plot(0, 0, "+", color=INK, ms=7)
    axis.set(xlim=x_range, ylim=y_range)
    axis.set(
        xlabel="x [kpc] → Galactic centre",
        ylabel="y [kpc] → rotation",
        title=f"mean dE/dr over |z| < {1e3 * above.max_height:.0f} pc",
    )
    figure.colorbar(image, ax=axis, label="extinction density [mag/kpc]", pad=0.01, extend="both")
    return figure


def _frame(above: BirdsEye, edge: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ranges of x and y that hold what the map covers and the Sun; at least a third as wide as high, or the reverse."""
    shown = np.isfinite(above.density)
    if not shown.any():
        return (-edge, edge), (-edge, edge)
    ranges = []
    for i in (0, 1):
        at = above.axis[shown.any(axis=i)]
        ranges.append((min(at[0], 0.0) - 0.05 * edge, max(at[-1], 0.0) + 0.05 * edge))
    size = [high - low for low, high in ranges]
    least = max(size) / 3.0
    wide = [
        (low - 0.5 * max(least - s, 0.0), high + 0.5 * max(least - s, 0.0))
        for (low, high), s in zip(ranges, size, strict=True)
    ]
    return wide[0], wide[1]
