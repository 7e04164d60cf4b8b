"""The learned extinction curve beside published ones (ZGR23 Fig. 15), and how it varies beside how those do with R(V).

Curves are (channel,) optical depths per unit E at wavelengths in nm.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, Product, Series, drawn_now, require_variation, table_of
from xpbayes.errors import InputError
from xpbayes.models.model_error import ModelError, relative_sigma
from xpbayes.training.curve_variation import without_grey_and_curve

MAX_CCM89_NM = 3300.0
"""CCM89 is defined down to wavenumbers of 0.3 per micron."""
FAMILIES = {"G23": 32_000.0, "F99": MAX_CCM89_NM, "F19": MAX_CCM89_NM, "CCM89": MAX_CCM89_NM}
"""Longest wavelength of each family [nm]."""
PUBLISHED = (("CCM89", 2.0), ("CCM89", 3.1), ("CCM89", 4.0), ("CCM89", 5.0), ("G23", 3.1))
MORE_OF_G23 = (2.3, 4.0, 5.0)
"""R_V that Fig. 15 shows, too; G23 begins at 2.3."""
SAME_CHANNEL_NM = 1.0
"""A wavelength of a file counts as that of a channel within this."""
LOWEST_R_V = {"G23": 2.3, "F99": 2.0, "F19": 2.5, "CCM89": 2.0}
HIGHEST_R_V, N_R_V = 5.6, 73
"""Of all of them."""
XI = (-2.0, 0.0, 2.0)
MIDDLE, STEP = 3.1, 0.15
"""dA/dR_V is a difference of so much to both sides of this R(V)."""
FLOOR = 0.005
"""Relative error of a channel beside the model's own."""


def family(name: str, r_v: float, wavelength_nm: NDArray[np.floating]) -> NDArray[np.float64]:
    """(channel,) A(lambda) / A(V) of a published law."""
    import astropy.units as u
    from dust_extinction import parameter_averages

    return np.asarray(getattr(parameter_averages, name)(Rv=r_v)(wavelength_nm * u.nm), np.float64)


def _defined(name: str, wavelength_nm: NDArray[np.floating], *values: Any) -> list[NDArray[np.float64]]:
    """(channel,) wavelengths of the channels where a family is defined, and values there."""
    inside = np.asarray(wavelength_nm) < FAMILIES[name]
    return [np.asarray(v, np.float64)[inside] for v in (wavelength_nm, *values)]


@dataclass(frozen=True)
class Published:
    """A published curve beside a learned one, (channel,) where it is defined."""

    family: str  # or the name of a file
    r_v: float | None
    wavelength_nm: NDArray[np.float64]
    value: NDArray[np.float64]  # with the amount, and what else is free, that suits the learned curve best
    rms: float  # of learned / value - 1
    xi: float = 0.0  # of the learned curve

    @property
    def name(self) -> str:
        """Such as 'CCM89, R_V = 3.1'."""
        return self.family if self.r_v is None else f"{self.family}, R_V = {self.r_v:g}"


def scale_to(learned: NDArray[np.floating], published: NDArray[np.floating]) -> tuple[NDArray[np.float64], float]:
    """Scale a published curve so that the rms of (learned / scaled - 1) is least; the scaled curve, and that rms."""
    ratio = np.asarray(learned, np.float64) / np.asarray(published, np.float64)
    # Least squares of ratio / s - 1 over s: 1/s = sum(ratio) / sum(ratio^2).
    scale = np.sum(ratio**2) / np.sum(ratio)
    return np.asarray(published, np.float64) * scale, float(np.sqrt(np.mean((ratio / scale - 1.0) ** 2)))


def compare_with(law: str, r_v: float, wavelength_nm: NDArray[np.floating], learned: NDArray[np.floating]) -> Published:
    """Compare with one of a family of curves on the channels where it is defined."""
    at, there = _defined(law, wavelength_nm, learned)
    return Published(law, r_v, at, *scale_to(there, family(law, r_v, at)))


def compare_with_published(wavelength_nm: NDArray[np.floating], learned: NDArray[np.floating]) -> list[Published]:
    """Compare with CCM89 for several R_V where it is defined, and with G23 (R_V = 3.1) on all channels."""
    return [compare_with(law, r_v, wavelength_nm, learned) for law, r_v in PUBLISHED]


def read_curve(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read (row,) wavelengths [nm] and extinctions in any unit: text of two columns, # for comments, or InputError."""
    try:
        table = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as two columns of numbers ({error}); check the file") from error
    if table.shape[1] != 2 or len(table) < 2 or not (np.isfinite(table).all() and (table > 0).all()):
        raise InputError(f"{path}: is not two columns of positive numbers, wavelength in nm and extinction; check it")
    return table[:, 0], table[:, 1]


def compare_with_file(path: Path, wavelength_nm: NDArray[np.floating], learned: NDArray[np.floating]) -> Published:
    """Compare with a curve of `read_curve` on the channels that it has; InputError if it has fewer than two."""
    at, value = read_curve(path)
    distance = np.abs(np.asarray(wavelength_nm)[:, None] - at)
    inside = distance.min(axis=1) < SAME_CHANNEL_NM
    if inside.sum() < 2:
        raise InputError(f"{path}: has {inside.sum()} of the model's {len(inside)} wavelengths; name a curve in nm")
    scaled, rms = scale_to(np.asarray(learned)[inside], value[distance.argmin(axis=1)[inside]])
    return Published(path.name, None, np.asarray(wavelength_nm)[inside], scaled, rms)


def _name_axes(top: "drawing.Axes", bottom: "drawing.Axes", above: str, below: str) -> None:
    top.set(ylabel=f"{above}, optical depth per unit E", xscale="log", yscale="log")
    bottom.set(xlabel="wavelength [nm]", ylabel=below)
    for axis in (top, bottom):
        drawing.plain_log_ticks(axis)
    top.tick_params(labelbottom=False)


def draw_curves(
    wavelength_nm: NDArray[np.floating], learned: NDArray[np.floating], curves: list[Published]
) -> "drawing.Figure":
    """R(lambda), and learned over published for every curve."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure, ((top,), (bottom,)) = drawing.panels(1, 2, 9.0, 6.2, sharex=True, height_ratios=(1.3, 1.0))
    top.plot(wavelength_nm, learned, "o", ms=3, color=drawing.INK, label="xpbayes", zorder=5)
    shade = ScalarMappable(Normalize(1.5, 5.5), "plasma")
    for curve in curves:
        colour: Any = drawing.INK if curve.r_v is None else shade.to_rgba(np.asarray(curve.r_v))
        line, width = "--" if curve.family == "G23" else "-", 1.8 if curve.r_v is None else 1.1
        name = curve.name.replace("R_V", "$R_V$")
        top.plot(curve.wavelength_nm, curve.value, line, color=colour, lw=width, label=f"{name} (rms {curve.rms:.1%})")
        at = np.searchsorted(wavelength_nm, curve.wavelength_nm)
        bottom.plot(curve.wavelength_nm, learned[at] / curve.value, line, color=colour, lw=width)
    bottom.axhline(1.0, color=drawing.GREY, lw=0.6)
    bottom.set(ylim=(0.6, 1.4))
    _name_axes(top, bottom, "R", "learned / published")
    drawing.legend(top, 7.5, ncols=2, loc="lower left")
    return figure


def _curve(run: Run) -> Product:
    assert run.model is not None
    wavelength = run.model.channels.wavelengths
    learned = np.exp(np.asarray(run.model.forward.ln_curve, np.float64))
    curves = compare_with_published(wavelength, learned)
    curves += [compare_with("G23", r_v, wavelength, learned) for r_v in MORE_OF_G23]
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
            "scatter": table_of(
                [(c.name, len(c.value), c.rms) for c in curves],
                {"curve": "published", "channels": "compared", "rms": "of learned / scaled - 1"},
            ),
        },
    )


CURVE = Analysis("curve", "Fig. 15", "The extinction curve", drawn_now(_curve), ("model",))


def channel_weights(error: ModelError | None, n: int) -> NDArray[np.float64]:
    """(channel,) inverse variances of ln flux by the model's own error."""
    sigma = np.full(n, FLOOR) if error is None else np.hypot(FLOOR, relative_sigma(error))
    return np.asarray(sigma**-2.0, np.float64)


@dataclass(frozen=True)
class Direction:
    """How a family varies with R(V), as far as its amount and grey do not mimic it, scaled to R1."""

    name: str  # of the family
    wavelength_nm: NDArray[np.float64]  # (channel,) where it is defined
    learned: NDArray[np.float64]  # (channel,) R1 there, without what mimics there
    published: NDArray[np.float64]  # (channel,) dA/dR_V, likewise
    cosine: float  # between both, weighted
    r_v_per_xi: float  # change of R(V) with xi


def direction(
    name: str,
    wavelength_nm: NDArray[np.floating],
    curve: NDArray[np.floating],
    variation: NDArray[np.floating],
    weight: NDArray[np.floating],
) -> Direction:
    """Compare R1 with dA/dR_V of one of `FAMILIES`: all (channel,), curve and variation R and R1, weight 1/variance."""
    at, mean, variation, inside = _defined(name, wavelength_nm, curve, variation, weight)
    high, low = MIDDLE + STEP, MIDDLE - STEP
    # E(B-V) R_V A/A(V): the same dust with another R(V).
    change = (high * family(name, high, at) - low * family(name, low, at)) / (high - low)
    metric = np.diag(inside)
    own, published = (without_grey_and_curve(v, mean, metric) for v in (variation, change))
    dot = own @ metric @ published
    size = published @ metric @ published
    cosine = dot / np.sqrt(size * (own @ metric @ own))
    return Direction(name, at, own, published * dot / size, float(cosine), float(dot / size))


def nearest(
    name: str, xi: float, wavelength_nm: NDArray[np.floating], curve: NDArray[np.floating], weight: NDArray[np.floating]
) -> Published:
    """Find the law of a family that is nearest to R + xi R1, its amount and a grey part free; weight is 1/variance."""
    at, learned, inside = _defined(name, wavelength_nm, curve, weight)
    root = np.sqrt(inside)

    def fitted(r_v: float) -> tuple[float, float, NDArray[np.float64]]:
        """Misfit, R(V), and the law with that amount and grey part."""
        basis = np.stack([family(name, r_v, at), np.ones_like(at)], axis=1)
        value = basis @ np.linalg.lstsq(basis * root[:, None], learned * root, rcond=None)[0]
        return float(np.sum((root * (learned - value)) ** 2)), r_v, value

    grid = np.linspace(LOWEST_R_V[name], HIGHEST_R_V, N_R_V).tolist()
    _, r_v, value = min(map(fitted, grid), key=lambda found: found[0])
    return Published(name, r_v, at, value, float(np.sqrt(np.mean((learned / value - 1.0) ** 2))), xi)


def draw_families(
    wavelength_nm: NDArray[np.floating], curves: dict[float, NDArray[np.float64]], laws: list[Published],
    directions: list[Direction], variation: NDArray[np.floating],
) -> "drawing.Figure":  # fmt: skip
    """R + xi R1 and the nearest laws above; R1 and dA/dR_V below."""
    figure, ((top,), (bottom,)) = drawing.panels(1, 2, 9.0, 7.0, sharex=True, height_ratios=(1.3, 1.0))
    colours: dict[float, Any] = dict(zip(curves, (drawing.BLUE, drawing.INK, drawing.ORANGE), strict=True))
    lines = dict(zip(FAMILIES, ("-", "--", "-.", ":"), strict=True))
    for xi, curve in curves.items():
        top.plot(wavelength_nm, curve, "o", ms=3, color=colours[xi], label=f"xpbayes, ξ = {xi:+g}".replace("+0", "0"))
    for law in laws:
        top.plot(law.wavelength_nm, law.value, lines[law.family], color=colours[law.xi], lw=0.9,
                 label=f"{law.family}, $R_V$ = {law.r_v:.2f} (rms {law.rms:.1%})")  # fmt: skip
    bottom.plot(wavelength_nm, variation, "o", ms=3, color=drawing.INK, label="$R_1$")
    for found in directions:
        mimics = variation[: len(found.learned)] - found.learned  # what was taken out of R1 there
        bottom.plot(found.wavelength_nm, found.published + mimics, lines[found.name], color=drawing.BLUE, lw=1.0,
                    label=f"{found.name}, d$A$/d$R_V$ × {found.r_v_per_xi:.2f} (cosine {found.cosine:.3f})")  # fmt: skip
    bottom.axhline(0.0, color=drawing.GREY, lw=0.6)
    _name_axes(top, bottom, "R + ξ R₁", "R₁")
    drawing.legend(top, 6.5, ncols=3, loc="lower left")
    drawing.legend(bottom, 7.5, loc="lower right")
    return figure


def _families(run: Run) -> Product:
    require_variation(run)
    assert run.model is not None and run.model.forward.curve_variation is not None
    forward, wavelength = run.model.forward, np.asarray(run.model.channels.wavelengths, np.float64)
    curve, variation = np.exp(np.asarray(forward.ln_curve, np.float64)), np.asarray(forward.curve_variation, np.float64)
    weight = channel_weights(run.model.model_error, len(curve))
    curves = {xi: curve + xi * variation for xi in XI}
    laws = [nearest(name, xi, wavelength, of, weight) for xi, of in curves.items() for name in FAMILIES]
    directions = [direction(name, wavelength, curve, variation, weight) for name in FAMILIES]
    law, known = run.model.reddening_law, "the model has no table of R(V)"
    if law is not None:
        known = "by the model's table, R(V) = " + ", ".join(
            f"{r_v:.2f} at ξ = {xi:g}" for xi, r_v in zip(XI, law.r_v(np.array(XI))[0], strict=True)
        )
    drawn = {
        "wavelength": Series(wavelength, "nm", "channel"),
        **{f"R(xi={xi:g})": Series(of, "", "optical depth per unit E") for xi, of in curves.items()},
        "R1": Series(variation, "", "change of R with xi"),
    }
    return Product(
        draw_families(wavelength, curves, laws, directions, variation),
        "The learned extinction curve for three xi beside families of published curves, and its variation beside theirs",
        f"Above, R + ξ R₁ in {len(wavelength)} channels and the nearest law of each family, amount and grey part free (no "
        f"spectrum tells grey from distance); {known}. Below, R₁ and dA/dR_V about R_V = {MIDDLE:g}, as far as amount "
        "and grey do not mimic it, weighted by the model's own error: cosines "
        + ", ".join(f"{d.name} {d.cosine:.3f}" for d in directions)
        + f". G23 is defined on all channels, the others to {1e-3 * MAX_CCM89_NM:.1f} µm.",
        {
            "": drawn,
            "laws": table_of(
                [(n.family, n.xi, n.r_v, n.rms) for n in laws],
                {
                    "family": "published",
                    "xi": "of the learned curve",
                    "r_v": "of the nearest law",
                    "rms": "of learned / law - 1",
                },
            ),
            "direction": table_of(
                [(d.name, d.cosine, d.r_v_per_xi) for d in directions],
                {"family": "published", "cosine": "of R1 with dA/dR_V", "r_v_per_xi": "change of R(V) with xi"},
            ),
        },
    )


CURVE_FAMILIES = Analysis("curve_families", "", "How the extinction curve varies", drawn_now(_families), ("model",))
