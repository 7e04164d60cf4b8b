"""How the learned extinction curve varies beside how published ones vary with R(V): R + xi R1 and R1 itself."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.figures.extinction_curve import MAX_CCM89_NM
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, Product, Series, drawn_now, require_variation
from xpbayes.models.model_error import ModelError, relative_sigma
from xpbayes.training.curve_variation import without_grey_and_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAMILIES = {"G23": 32_000.0, "F99": MAX_CCM89_NM, "F19": MAX_CCM89_NM, "CCM89": MAX_CCM89_NM}
"""Longest wavelength of each family [nm]."""
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


def channel_weights(error: ModelError | None, n: int) -> NDArray[np.float64]:
    """(channel,) inverse variances of ln flux by the model's own error."""
    sigma = np.full(n, FLOOR) if error is None else np.hypot(FLOOR, relative_sigma(error))
    return np.asarray(sigma**-2.0, np.float64)


@dataclass(frozen=True)
class Direction:
    """How a family varies with R(V), as far as its amount and grey do not mimic it, scaled to R1.

    Attributes:
        name: of the family.
        wavelength_nm: (channel,) where it is defined.
        learned: (channel,) R1 there, without what mimics there.
        published: (channel,) dA/dR_V, likewise.
        cosine: between both, weighted.
        r_v_per_xi: change of R(V) with xi.
    """

    name: str
    wavelength_nm: NDArray[np.float64]
    learned: NDArray[np.float64]
    published: NDArray[np.float64]
    cosine: float
    r_v_per_xi: float


def direction(
    name: str,
    wavelength_nm: NDArray[np.floating],
    curve: NDArray[np.floating],
    variation: NDArray[np.floating],
    weight: NDArray[np.floating],
) -> Direction:
    """Compare R1 with dA/dR_V of a family.

    Args:
        name: of `FAMILIES`.
        wavelength_nm: (channel,) [nm].
        curve, variation: (channel,) R and R1.
        weight: (channel,) inverse variances.
    """
    inside = np.asarray(wavelength_nm) < FAMILIES[name]
    at = np.asarray(wavelength_nm, np.float64)[inside]
    high, low = MIDDLE + STEP, MIDDLE - STEP
    # E(B-V) R_V A/A(V): the same dust with another R(V).
    change = (high * family(name, high, at) - low * family(name, low, at)) / (high - low)
    metric = np.diag(np.asarray(weight, np.float64)[inside])
    mean = np.asarray(curve, np.float64)[inside]
    own, published = (
        without_grey_and_curve(np.asarray(v, np.float64), mean, metric) for v in (np.asarray(variation)[inside], change)
    )
    dot = own @ metric @ published
    size = published @ metric @ published
    cosine = dot / np.sqrt(size * (own @ metric @ own))
    return Direction(name, at, own, published * dot / size, float(cosine), float(dot / size))


@dataclass(frozen=True)
class Nearest:
    """The law of a family that is nearest to R + xi R1, its amount and a grey part free.

    Attributes:
        name: of the family.
        xi: which curve.
        r_v: of the law.
        wavelength_nm: (channel,) where it is defined.
        value: (channel,) of the law, with that amount and grey part.
        rms: of learned / law - 1.
    """

    name: str
    xi: float
    r_v: float
    wavelength_nm: NDArray[np.float64]
    value: NDArray[np.float64]
    rms: float


def nearest(
    name: str, xi: float, wavelength_nm: NDArray[np.floating], curve: NDArray[np.floating], weight: NDArray[np.floating]
) -> Nearest:
    """Find it by weighted least squares.

    Args:
        name: of `FAMILIES`.
        xi: which curve.
        wavelength_nm, curve: (channel,) [nm], R + xi R1.
        weight: (channel,) inverse variances.
    """
    inside = np.asarray(wavelength_nm) < FAMILIES[name]
    at, learned = (np.asarray(v, np.float64)[inside] for v in (wavelength_nm, curve))
    root = np.sqrt(np.asarray(weight, np.float64)[inside])
    best: tuple[float, float, NDArray[np.float64]] | None = None
    for r_v in np.linspace(LOWEST_R_V[name], HIGHEST_R_V, N_R_V):
        basis = np.stack([family(name, float(r_v), at), np.ones_like(at)], axis=1)
        value = basis @ np.linalg.lstsq(basis * root[:, None], learned * root, rcond=None)[0]
        misfit = float(np.sum((root * (learned - value)) ** 2))
        if best is None or misfit < best[0]:
            best = (misfit, float(r_v), value)
    assert best is not None
    rms = float(np.sqrt(np.mean((learned / best[2] - 1.0) ** 2)))
    return Nearest(name, xi, best[1], at, best[2], rms)


def draw_families(
    wavelength_nm: NDArray[np.floating], curves: dict[float, NDArray[np.float64]], laws: list[Nearest],
    directions: list[Direction], variation: NDArray[np.floating],
) -> "Figure":  # fmt: skip
    """R + xi R1 and the nearest laws above; R1 and dA/dR_V below."""
    figure, ((top,), (bottom,)) = drawing.panels(1, 2, 9.0, 7.0, sharex=True, height_ratios=(1.3, 1.0))
    colours: dict[float, Any] = dict(zip(curves, (drawing.BLUE, drawing.INK, drawing.ORANGE), strict=True))
    lines = dict(zip(FAMILIES, ("-", "--", "-.", ":"), strict=True))
    for xi, curve in curves.items():
        top.plot(wavelength_nm, curve, "o", ms=3, color=colours[xi], label=f"xpbayes, ξ = {xi:+g}".replace("+0", "0"))
    for law in laws:
        top.plot(law.wavelength_nm, law.value, lines[law.name], color=colours[law.xi], lw=0.9,
                 label=f"{law.name}, $R_V$ = {law.r_v:.2f} (rms {law.rms:.1%})")  # fmt: skip
    bottom.plot(wavelength_nm, variation, "o", ms=3, color=drawing.INK, label="$R_1$")
    for found in directions:
        mimics = variation[: len(found.learned)] - found.learned  # what was taken out of R1 there
        bottom.plot(found.wavelength_nm, found.published + mimics, lines[found.name], color=drawing.BLUE, lw=1.0,
                    label=f"{found.name}, d$A$/d$R_V$ × {found.r_v_per_xi:.2f} (cosine {found.cosine:.3f})")  # fmt: skip
    bottom.axhline(0.0, color=drawing.GREY, lw=0.6)
    top.set(ylabel="R + ξ R₁, optical depth per unit E", xscale="log", yscale="log")
    bottom.set(xlabel="wavelength [nm]", ylabel="R₁")
    for axis in (top, bottom):
        drawing.plain_log_ticks(axis)
    top.tick_params(labelbottom=False)
    drawing.legend(top, 6.5, ncols=3, loc="lower left")
    drawing.legend(bottom, 7.5, loc="lower right")
    return figure


def _make(run: Run) -> Product:
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
            "laws": {
                "family": Series([n.name for n in laws], "", "published"),
                "xi": Series([n.xi for n in laws], "", "of the learned curve"),
                "r_v": Series([n.r_v for n in laws], "", "of the nearest law"),
                "rms": Series([n.rms for n in laws], "", "of learned / law - 1"),
            },
            "direction": {
                "family": Series([d.name for d in directions], "", "published"),
                "cosine": Series([d.cosine for d in directions], "", "of R1 with dA/dR_V"),
                "r_v_per_xi": Series([d.r_v_per_xi for d in directions], "", "change of R(V) with xi"),
            },
        },
    )


CURVE_FAMILIES = Analysis("curve_families", "", "How the extinction curve varies", drawn_now(_make), ("model",))
