"""The learned extinction curve beside families of CCM89 and G23, and a published one if a file is named (ZGR23 Fig. 15)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.figures.extinction_curve import CurveComparison, compare_with, compare_with_published, scale_to
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, Product, Series, drawn_now
from xpbayes.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

G23_FAMILY = (2.3, 4.0, 5.0)
"""R_V other than 3.1, which `compare_with_published` has; G23 begins at 2.3."""
SAME_CHANNEL_NM = 1.0
"""A wavelength of a file counts as that of a channel within this."""


def read_curve(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read a curve: text of two columns, wavelength [nm] and extinction in any unit, # for comments.

    Returns:
        (row,) wavelengths and (row,) values.

    Raises:
        InputError: it is something else.
    """
    try:
        table = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as two columns of numbers ({error}); check the file") from error
    if table.shape[1] != 2 or len(table) < 2 or not (np.isfinite(table).all() and (table > 0).all()):
        raise InputError(f"{path}: is not two columns of positive numbers, wavelength in nm and extinction; check it")
    return table[:, 0], table[:, 1]


def compare_with_file(
    path: Path, wavelength_nm: NDArray[np.floating], learned: NDArray[np.floating]
) -> CurveComparison:
    """Compare with a published curve on the channels that it has.

    Args:
        path: see `read_curve`.
        wavelength_nm, learned: (channel,) the learned curve.

    Raises:
        InputError: the file is no curve, or has fewer than two of the channels.
    """
    at, value = read_curve(path)
    distance = np.abs(np.asarray(wavelength_nm)[:, None] - at)
    inside = distance.min(axis=1) < SAME_CHANNEL_NM
    if inside.sum() < 2:
        raise InputError(f"{path}: has {inside.sum()} of the model's {len(inside)} wavelengths; name a curve in nm")
    scaled, rms = scale_to(np.asarray(learned)[inside], value[distance.argmin(axis=1)[inside]])
    return CurveComparison(path.name, np.asarray(wavelength_nm)[inside], scaled, rms)


def draw_curves(
    wavelength_nm: NDArray[np.floating], learned: NDArray[np.floating], curves: list[CurveComparison]
) -> "Figure":
    """R(lambda), and learned over published for every curve."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure, ((top,), (bottom,)) = drawing.panels(1, 2, 9.0, 6.2, sharex=True, height_ratios=(1.3, 1.0))
    top.plot(wavelength_nm, learned, "o", ms=3, color=drawing.INK, label="xpbayes", zorder=5)
    shade = ScalarMappable(Normalize(1.5, 5.5), "plasma")
    for curve in curves:
        family, _, r_v = curve.name.partition(", R_V = ")
        colour: Any = shade.to_rgba(np.asarray(float(r_v))) if r_v else drawing.INK
        line = {"CCM89": "-", "G23": "--"}.get(family, "-")
        width = 1.1 if r_v else 1.8
        name = f"{family}, $R_V$ = {r_v}" if r_v else family
        top.plot(curve.wavelength_nm, curve.value, line, color=colour, lw=width, label=f"{name} (rms {curve.rms:.1%})")
        at = np.searchsorted(wavelength_nm, curve.wavelength_nm)
        bottom.plot(curve.wavelength_nm, learned[at] / curve.value, line, color=colour, lw=width)
    bottom.axhline(1.0, color=drawing.GREY, lw=0.6)
    top.set(ylabel="R, optical depth per unit E", xscale="log", yscale="log")
    bottom.set(xlabel="wavelength [nm]", ylabel="learned / published", ylim=(0.6, 1.4))
    for axis in (top, bottom):
        drawing.plain_log_ticks(axis)
    top.tick_params(labelbottom=False)
    drawing.legend(top, 7.5, ncols=2, loc="lower left")
    return figure


def _make(run: Run) -> Product:
    assert run.model is not None
    wavelength = run.model.channels.wavelengths
    learned = np.exp(np.asarray(run.model.forward.ln_curve, np.float64))
    curves = compare_with_published(wavelength, learned)
    curves += [compare_with("G23", r_v, wavelength, learned) for r_v in G23_FAMILY]
    words = "; no published ZGR23 curve was named (--curve)"
    if run.curve is not None:
        curves.append(compare_with_file(run.curve, wavelength, learned))
        words = f"; thick, {run.curve.name} (ratio's scatter {curves[-1].rms:.1%})"
    best = min(curves, key=lambda c: c.rms)
    drawn = {
        "wavelength": Series(wavelength, "nm", "channel"),
        "learned": Series(learned, "", "optical depth per unit E"),
    }
    for curve in curves:
        value = np.full(len(wavelength), np.nan)
        value[np.searchsorted(wavelength, curve.wavelength_nm)] = curve.value
        drawn[curve.name] = Series(value, "", "scaled to the learned curve")
    return Product(
        draw_curves(wavelength, learned, curves),
        "The learned extinction curve beside CCM89 and G23 curves, and their ratios",
        f"R(λ), learned with one free value in each of {len(wavelength)} channels, beside curves scaled to it: CCM89 "
        f"(solid, to 3.3 µm) and G23 (dashed; it begins at R_V = 2.3) from low to high R_V{words}. Nearest: {best.name} "
        f"(scatter of the ratio {best.rms:.1%}). No cut: one curve for the whole sky.",
        {
            "": drawn,
            "scatter": {
                "curve": Series([c.name for c in curves], "", "published"),
                "channels": Series([len(c.value) for c in curves], "", "compared"),
                "rms": Series([c.rms for c in curves], "", "of learned / scaled - 1"),
            },
        },
    )


CURVE = Analysis("curve", "Fig. 15", "The extinction curve", drawn_now(_make), ("model",))
