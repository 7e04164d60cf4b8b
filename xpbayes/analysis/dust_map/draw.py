"""Figures of a dust map: differential extinction over the sky (ZGR23 Fig. 20), the view from above (Fig. 21)."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.dust_map.birds_eye import BirdsEye
from xpbayes.analysis.dust_map.healpix_map import DustMap
from xpbayes.analysis.figures import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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
    n_pixels, n_bins = dust_map.differential.shape
    patch = 0 < n_pixels <= FULL_SKY_FRACTION * 12 * dust_map.finest**2
    figure, axes, image = _draw_patch(dust_map, n_bins) if patch else _draw_ellipses(dust_map, n_bins)
    figure.colorbar(image, ax=axes, label="differential extinction ΔE [mag]", pad=0.01, extend="both")
    return figure


def _title(dust_map: DustMap, k: int) -> str:
    shown = np.isfinite(dust_map.differential[:, k])
    stars = (
        f"{shown.sum():,} pixels, median {np.median(dust_map.stars[shown, k]):.0f} stars" if shown.any() else "no pixel"
    )
    return f"{dust_map.edges[k]:g}–{dust_map.edges[k + 1]:g} kpc ({stars})"


def _colours(values: NDArray[np.floating], least: float) -> dict[str, Any]:
    """Colours from 0 to 98 % of what is finite, to 1 where nothing is."""
    known = values[np.isfinite(values)]
    high = max(float(np.percentile(known, 98)), least) if len(known) else 1.0
    return {"cmap": COLOURS, "vmin": 0.0, "vmax": high}


def _draw_ellipses(dust_map: DustMap, n_bins: int) -> "tuple[Figure, list[Axes], Any]":
    figure, axes = drawing.sky_grid(n_bins)
    at, colours = drawing.sky_positions(), _colours(dust_map.differential, 0.01)
    for k, axis in enumerate(axes):
        image = drawing.sky_panel(
            axis, sky_image(dust_map, dust_map.differential[:, k], *at), _title(dust_map, k), **colours
        )
    return figure, axes, image


def _draw_patch(dust_map: DustMap, n_bins: int) -> "tuple[Figure, list[Axes], Any]":
    import astropy.units as u
    from astropy_healpix import healpix_to_lonlat

    lon, lat = healpix_to_lonlat(dust_map.pixel, dust_map.finest, order="nested")
    b = lat.to_value(u.deg)
    middle = np.degrees(np.arctan2(np.sin(lon).mean().value, np.cos(lon).mean().value))
    offset = (lon.to_value(u.deg) - middle + 180.0) % 360.0 - 180.0
    margin = 60.0 / dust_map.finest
    x = np.linspace(offset.min() - margin, offset.max() + margin, 500) + middle
    y = np.linspace(b.min() - margin, b.max() + margin, 500)
    aspect = 1.0 / np.cos(np.radians(b.mean()))
    width = 11.0 / min(4, n_bins)
    shape = (y[-1] - y[0]) / max((x[-1] - x[0]) / aspect, 1e-3)
    figure, axes = drawing.grid(n_bins, 4, width, 0.9 + 0.91 * width * float(np.clip(shape, 0.3, 2.0)))
    grid_x, grid_y = np.meshgrid(x, y)
    colours = _colours(dust_map.differential, 0.01)
    for k, axis in enumerate(axes):
        values = sky_image(dust_map, dust_map.differential[:, k], grid_x % 360.0, grid_y)
        image = _picture(axis, values, (x[0], x[-1], y[0], y[-1]), aspect=aspect, **colours)
        axis.invert_xaxis()
        axis.set_title(_title(dust_map, k).replace(" (", "\n("), fontsize=9)
        axis.set(xlabel="Galactic l [°]", ylabel="Galactic b [°]" if k % 4 == 0 else "")
    return figure, axes, image


def _picture(
    axis: "Axes", values: NDArray[np.float64], extent: tuple[float, float, float, float], **settings: Any
) -> Any:
    """Show (y, x) values in a frame, grey where there are none."""
    axis.set_facecolor(drawing.LIGHT)
    return axis.imshow(values, origin="lower", extent=extent, interpolation="nearest", **settings)


def draw_birds_eye(above: BirdsEye) -> "Figure":
    """Mean extinction density seen from above, the Galactic centre to the right."""
    edge = above.axis[-1] + 0.5 * (above.axis[1] - above.axis[0])
    x_range, y_range = _frame(above, edge)
    shape = (x_range[1] - x_range[0]) / (y_range[1] - y_range[0])
    figure, ((axis,),) = drawing.panels(1, 1, 1.8 + 5.2 * min(shape, 1.0), 0.8 + 5.2 / max(shape, 1.0))
    image = _picture(axis, above.density, (-edge, edge, -edge, edge), **_colours(above.density, 1e-3))
    for radius in range(1, int(edge) + 1):
        drawing.circle(axis, 0.0, 0.0, radius, color=drawing.GREY, lw=0.3)
    axis.plot(0, 0, "+", color=drawing.INK, ms=7)
    axis.set(
        xlim=x_range, ylim=y_range, xlabel="x [kpc] → Galactic centre", ylabel="y [kpc] → rotation",
        title=f"mean dE/dr over |z| < {1e3 * above.max_height:.0f} pc",
    )  # fmt: skip
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
    least = max(high - low for low, high in ranges) / 3.0
    margins = [0.5 * max(least - (high - low), 0.0) for low, high in ranges]
    x, y = ((low - margin, high + margin) for (low, high), margin in zip(ranges, margins, strict=True))
    return x, y
