"""Figures of a dust map: differential extinction over the sky (ZGR23 Fig. 20), from above (Fig. 21), R(V) beside both.

R(V) is shown as Zhang & Green (2025) do, about 3.1, the mean of the Milky Way.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.dust_map.birds_eye import BirdsEye
from xpbayes.analysis.dust_map.curve_map import CurveFromAbove, CurveMap
from xpbayes.analysis.dust_map.healpix_map import DustMap, PixelMap
from xpbayes.analysis.figures import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "magma_r"
R_V_COLOURS = {"cmap": drawing.SIGNED_COLOURS, "vmin": 2.6, "vmax": 3.6}
R_V_TEXT = "R(V) of the dust"
FULL_SKY_FRACTION = 0.1
"""A map that covers less of the sky is drawn as a flat patch instead of an ellipse."""


def sky_image(
    dust_map: PixelMap, values: NDArray[np.floating], longitude: NDArray[np.float64], latitude: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Look up (row,) values of a map at Galactic positions [deg] of any shape; NaN where there are none."""
    import astropy.units as u

    row = dust_map.rows_at(longitude * u.deg, latitude * u.deg)
    return np.where(row >= 0, np.append(np.asarray(values, np.float64), np.nan)[row], np.nan)


def draw_sky(dust_map: DustMap) -> "Figure":
    """Differential extinction in every distance bin; light grey where the map has too few stars."""
    values = dust_map.differential
    return _draw_bins(dust_map, values, _colours(values, 0.01), "differential extinction ΔE [mag]")


def draw_curve_sky(curve_map: CurveMap) -> "Figure":
    """R(V) of the dust in every distance bin, beside `draw_sky`; light grey where it is not known."""
    return _draw_bins(curve_map, curve_map.dust_r_v, R_V_COLOURS, R_V_TEXT)


def _draw_bins(pixels: PixelMap, values: NDArray[np.floating], colours: Mapping[str, Any], label: str) -> "Figure":
    n_pixels, n_bins = values.shape
    if 0 < n_pixels <= FULL_SKY_FRACTION * 12 * pixels.finest**2:
        figure, axes, image = _draw_patch(pixels, values, colours)
    else:
        figure, axes = drawing.sky_grid(n_bins)
        at = drawing.sky_positions()
        for k, axis in enumerate(axes):
            image = drawing.sky_panel(axis, sky_image(pixels, values[:, k], *at), _title(pixels, values, k), **colours)
    figure.colorbar(image, ax=axes, label=label, pad=0.01, extend="both")
    return figure


def _title(pixels: PixelMap, values: NDArray[np.floating], k: int) -> str:
    shown = np.isfinite(values[:, k])
    stars = (
        f"{shown.sum():,} pixels, median {np.median(pixels.stars[shown, k]):.0f} stars" if shown.any() else "no pixel"
    )
    return f"{pixels.edges[k]:g}–{pixels.edges[k + 1]:g} kpc ({stars})"


def _colours(values: NDArray[np.floating], least: float) -> dict[str, Any]:
    """Colours from 0 to 98 % of what is finite, to 1 where nothing is."""
    known = values[np.isfinite(values)]
    high = max(float(np.percentile(known, 98)), least) if len(known) else 1.0
    return {"cmap": COLOURS, "vmin": 0.0, "vmax": high}


def _draw_patch(
    pixels: PixelMap, values: NDArray[np.floating], colours: Mapping[str, Any]
) -> "tuple[Figure, list[Axes], Any]":
    import astropy.units as u
    from astropy_healpix import healpix_to_lonlat

    lon, lat = healpix_to_lonlat(pixels.pixel, pixels.finest, order="nested")
    b, n_bins = lat.to_value(u.deg), values.shape[1]
    middle = np.degrees(np.arctan2(np.sin(lon).mean().value, np.cos(lon).mean().value))
    offset = (lon.to_value(u.deg) - middle + 180.0) % 360.0 - 180.0
    margin = 60.0 / pixels.finest
    x = np.linspace(offset.min() - margin, offset.max() + margin, 500) + middle
    y = np.linspace(b.min() - margin, b.max() + margin, 500)
    aspect = 1.0 / np.cos(np.radians(b.mean()))
    width = 11.0 / min(4, n_bins)
    shape = (y[-1] - y[0]) / max((x[-1] - x[0]) / aspect, 1e-3)
    figure, axes = drawing.grid(n_bins, 4, width, 0.9 + 0.91 * width * float(np.clip(shape, 0.3, 2.0)))
    grid_x, grid_y = np.meshgrid(x, y)
    for k, axis in enumerate(axes):
        looked_up = sky_image(pixels, values[:, k], grid_x % 360.0, grid_y)
        image = _picture(axis, looked_up, (x[0], x[-1], y[0], y[-1]), aspect=aspect, **colours)
        axis.invert_xaxis()
        axis.set_title(_title(pixels, values, k).replace(" (", "\n("), fontsize=9)
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
    colours, title = _colours(above.density, 1e-3), f"mean dE/dr over |z| < {1e3 * above.max_height:.0f} pc"
    return _draw_from_above(above.axis, above.density, colours, title, "extinction density [mag/kpc]")


def draw_curve_from_above(above: CurveFromAbove) -> "Figure":
    """R(V) of the dust near the plane seen from above, beside `draw_birds_eye`."""
    title = f"dust with |z| < {1e3 * above.max_height:.0f} pc"
    return _draw_from_above(above.axis, above.r_v, R_V_COLOURS, title, R_V_TEXT)


def _draw_from_above(
    centres: NDArray[np.float64], values: NDArray[np.float64], colours: Mapping[str, Any], title: str, label: str
) -> "Figure":
    edge = centres[-1] + 0.5 * (centres[1] - centres[0])
    x_range, y_range = _frame(centres, values, edge)
    shape = (x_range[1] - x_range[0]) / (y_range[1] - y_range[0])
    figure, ((axis,),) = drawing.panels(1, 1, 1.8 + 5.2 * min(shape, 1.0), 0.8 + 5.2 / max(shape, 1.0))
    image = _picture(axis, values, (-edge, edge, -edge, edge), **colours)
    for radius in range(1, int(edge) + 1):
        drawing.circle(axis, 0.0, 0.0, radius, color=drawing.GREY, lw=0.3)
    axis.plot(0, 0, "+", color=drawing.INK, ms=7)
    axis.set(
        xlim=x_range, ylim=y_range, xlabel="x [kpc] → Galactic centre", ylabel="y [kpc] → rotation", title=title
    )  # fmt: skip
    figure.colorbar(image, ax=axis, label=label, pad=0.01, extend="both")
    return figure


def _frame(
    centres: NDArray[np.float64], values: NDArray[np.float64], edge: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ranges of x and y that hold what the map covers and the Sun; at least a third as wide as high, or the reverse."""
    shown = np.isfinite(values)
    if not shown.any():
        return (-edge, edge), (-edge, edge)
    ranges = []
    for i in (0, 1):
        at = centres[shown.any(axis=i)]
        ranges.append((min(at[0], 0.0) - 0.05 * edge, max(at[-1], 0.0) + 0.05 * edge))
    least = max(high - low for low, high in ranges) / 3.0
    margins = [0.5 * max(least - (high - low), 0.0) for low, high in ranges]
    x, y = ((low - margin, high + margin) for (low, high), margin in zip(ranges, margins, strict=True))
    return x, y
