"""Model spectra along the main sequence, in [Fe/H] and along the giant branch (ZGR23 Figs. 12 to 14).

In: a trained model. Out: fluxes without dust at 1 kpc, the same over their continuum, and the drawing.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, NotDrawnError, Product, Series, drawn_now
from xpbayes.production.model_file import TrainedModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONTINUUM_ORDER = 5
"""Order of the polynomial that stands for the continuum (ZGR23 Section 5.1)."""
MIN_CONTINUUM_CHANNELS = 2 * (CONTINUUM_ORDER + 1)
RYDBERG_HYDROGEN_PER_NM = 1.0967758e-2
"""Rydberg constant of hydrogen (CODATA 2018, reduced mass of H-1): wavelengths are in vacuum, as Gaia's are."""
METAL_LINES = {"Ca II H, K": (393.48, 396.96), "Ca I": (422.79,), "Mg b": (516.9, 517.4, 518.5),
               "Ca II triplet": (850.04, 854.44, 866.45)}  # fmt: skip
"""Vacuum wavelengths [nm] (NIST air wavelengths times the refractive index of air)."""
MAIN_SEQUENCE_TEFF = np.arange(4.0, 11.1, 0.5)
FEH_GRID = np.arange(-2.0, 0.51, 0.25)
FEH_TEFF = 5.5
GIANT_LOGG = np.arange(1.0, 4.16, 0.25)
LABELS = ("teff", "feh", "logg")
NAME_WIDTH = 0.028
"""Room for the name of a spectral line, as a share of the axis."""


def main_sequence_logg(teff: NDArray[np.floating]) -> NDArray[np.float64]:
    """Log g along the main sequence as a function of Teff [kK] (Eq. 28)."""
    kelvin = 1e3 * np.asarray(teff, np.float64)
    return np.where(kelvin < 5000.0, 4.6, np.where(kelvin < 6300.0, 4.6 - 5e-4 * (kelvin - 5000.0), 3.95))


def giant_branch_teff(logg: NDArray[np.floating]) -> NDArray[np.float64]:
    """Teff [kK] along the giant branch as a function of log g (Eq. 29)."""
    g = np.asarray(logg, np.float64)
    return 1e-3 * np.where(g < 3.65, 5200.0 - 441.86 * (3.65 - g), 5900.0 - 1400.0 * (4.15 - g))


def hydrogen_lines(lower: int, upper: range) -> NDArray[np.float64]:
    """Vacuum wavelengths [nm] of a series of hydrogen: 2 for Balmer, 3 for Paschen."""
    n = np.asarray(upper, np.float64)
    return 1.0 / (RYDBERG_HYDROGEN_PER_NM * (1.0 / lower**2 - 1.0 / n**2))


@dataclass(frozen=True)
class Line:
    """A line through label space: (spectrum,) Teff, [Fe/H], log g, or a single value that holds for all."""

    title: str
    words: str  # what a caption says of it
    along: str  # name of the label that colours it
    teff: NDArray[np.floating] | float  # [kK]
    feh: NDArray[np.floating] | float  # [dex]
    logg: NDArray[np.floating]  # [dex]

    @property
    def value(self) -> NDArray[np.float64]:
        """(spectrum,) the label along the line [kK or dex]."""
        return np.asarray(getattr(self, self.along), np.float64)


MAIN_SEQUENCE_LINE = Line(
    "main sequence, [Fe/H] = 0", "along the main sequence of solar metallicity (log g from Eq. 28)",
    "teff", MAIN_SEQUENCE_TEFF, 0.0, main_sequence_logg(MAIN_SEQUENCE_TEFF),
)  # fmt: skip
"""4,000 to 11,000 K (Fig. 12)."""
METALLICITY_LINE = Line(
    "main sequence, 5,500 K", "of 5,500 K main-sequence stars of different metallicity (log g from Eq. 28)",
    "feh", FEH_TEFF, FEH_GRID, main_sequence_logg(np.array(FEH_TEFF)),
)  # fmt: skip
"""Fig. 13."""
GIANT_LINE = Line(
    "giant branch, [Fe/H] = 0", "along the giant branch of solar metallicity (Teff from Eq. 29)",
    "logg", giant_branch_teff(GIANT_LOGG), 0.0, GIANT_LOGG,
)  # fmt: skip
"""Fig. 14."""


@dataclass(frozen=True)
class Sequence:
    """Spectra along a line through label space."""

    line: Line
    labels: NDArray[np.float64]
    wavelength_nm: NDArray[np.float64]  # (channel,)
    n_xp: int  # leading channels that are XP samples
    flux: NDArray[np.float64]  # (spectrum, channel) at 1 kpc without dust [1e-18 W m^-2 nm^-1]
    normalised: NDArray[np.float64]  # (spectrum, channel) flux over its continuum; NaN but for XP samples
    likely: NDArray[np.bool_]  # (spectrum,) label prior above the model's threshold: as in training


def over_continuum(wavelength_nm: NDArray[np.floating], flux: NDArray[np.floating]) -> NDArray[np.float64]:
    """Divide (spectrum, channel) fluxes by their continuum: a polynomial of order 5 in wavelength, fitted to ln flux.

    In ln flux all channels count alike; in flux the blue end of a cool star, a hundredth of its maximum, would not.
    """
    middle, half = 0.5 * (wavelength_nm[0] + wavelength_nm[-1]), 0.5 * (wavelength_nm[-1] - wavelength_nm[0])
    design = np.polynomial.legendre.legvander((wavelength_nm - middle) / half, CONTINUUM_ORDER)
    ln_flux = np.log(np.asarray(flux, np.float64))
    coefficients = np.linalg.lstsq(design, ln_flux.T, rcond=None)[0]
    return np.exp(ln_flux - (design @ coefficients).T)


def sequence(model: TrainedModel, line: Line) -> Sequence:
    """Predict spectra along a line; labels other than its three stay at the middle of the training sample."""
    from xpbayes.models.forward import ln_absolute_fluxes
    from xpbayes.models.prior import ln_priors

    labels = np.tile(np.asarray(model.forward.label_center, np.float64), (len(line.value), 1))
    for name in LABELS:
        labels[:, model.labels.index(name)] = getattr(line, name)
    at = labels.astype(np.float32)
    flux = np.exp(np.asarray(ln_absolute_fluxes(model.forward, at), np.float64))
    likely = np.asarray(ln_priors(model.prior, at)) > float(model.prior.ln_threshold)
    wavelength, n_xp = model.channels.wavelengths, model.channels.n_xp
    normalised = np.full(flux.shape, np.nan)
    if n_xp >= MIN_CONTINUUM_CHANNELS:
        normalised[:, :n_xp] = over_continuum(wavelength[:n_xp], flux[:, :n_xp])
    return Sequence(line, labels, wavelength, n_xp, flux, normalised, likely)


def draw_sequence(spectra: Sequence) -> "drawing.Figure":
    """Fluxes to the left, continuum-normalised XP spectra with marked lines to the right."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure, ((left, right),) = drawing.panels(2, 1, 10.6, 4.4, width_ratios=(1.0, 1.25))
    along, split, wavelength = spectra.line.along, spectra.n_xp, spectra.wavelength_nm
    value = drawing.display_scale(along) * spectra.line.value
    colours = ScalarMappable(Normalize(value.min(), value.max()), "viridis")
    for i, likely in enumerate(spectra.likely):
        colour, style = colours.to_rgba(value[i]), "-" if likely else ":"
        left.plot(wavelength[:split], spectra.flux[i, :split], style, color=colour, lw=1.2)
        left.plot(wavelength[split:], spectra.flux[i, split:], "o", ms=3, color=colour,
                  fillstyle="full" if likely else "none")  # fmt: skip
        right.plot(wavelength[:split], spectra.normalised[i, :split], style, color=colour, lw=1.1)
    drawing.spectrum_axis(left, ylabel=drawing.FLUX_LABEL.replace("flux", "flux at 1 kpc"), title=spectra.line.title)
    if not spectra.likely.all():
        left.plot([], [], "-", color=drawing.INK, lw=1.2, label="as in training")
        left.plot([], [], ":", color=drawing.INK, lw=1.2, label="extrapolation")
        drawing.legend(left, loc="lower left")
    right.set(xlabel="wavelength [nm]", title="over a 5th-order continuum")
    _mark_lines(right, wavelength[0], wavelength[split - 1])
    figure.colorbar(colours, ax=[left, right], pad=0.01, label=drawing.heading(along))
    return figure


def _mark_lines(axis: "Axes", low: float, high: float) -> None:
    """Mark spectral lines between two wavelengths; their names stand side by side above the spectra."""
    balmer, paschen = hydrogen_lines(2, range(3, 7)), hydrogen_lines(3, range(8, 15))
    marks = [(name, np.array([at]), ":") for name, at in zip(("Hα", "Hβ", "Hγ", "Hδ"), balmer, strict=True)]
    marks += [("H Paschen", paschen, "-."), *((name, np.asarray(at), "--") for name, at in METAL_LINES.items())]
    shown = [(name, inside, style) for name, at, style in marks if len(inside := at[(at > low) & (at < high)])]
    bottom, top = axis.get_ylim()
    height, width = top - bottom, high - low
    axis.set_ylim(bottom, top + 0.34 * height)
    place = -np.inf
    for name, at, style in sorted(shown, key=lambda mark: mark[1].mean()):
        axis.vlines(at, bottom, top, ls=style, lw=0.6, color=drawing.GREY, zorder=0)
        place = max(at.mean(), place + NAME_WIDTH * width)
        axis.annotate(
            name, (at.mean(), top), (place, top + 0.06 * height), rotation=90, fontsize=6.5, va="bottom", ha="center",
            color=drawing.INK, arrowprops={"arrowstyle": "-", "lw": 0.5, "color": drawing.GREY, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip


def _product(spectra: Sequence) -> Product:
    line, n, n_outside = spectra.line, len(spectra.likely), int((~spectra.likely).sum())
    outside = (
        f" Dotted: {n_outside} of {n} spectra lie where the label prior is below the model's threshold, in other words "
        "where the training sample had no stars: extrapolations." if n_outside else ""
    )  # fmt: skip
    each = len(spectra.wavelength_nm)
    return Product(
        draw_sequence(spectra),
        f"Model spectra: {line.title}, {n} values of {drawing.text(line.along)}",
        f"Model spectra without dust at 1 kpc, {line.words}. Right: XP samples over a continuum, a polynomial of order "
        f"{CONTINUUM_ORDER} in ln flux; lines of hydrogen from the Rydberg formula, all wavelengths in vacuum. No cut: "
        f"{n} spectra computed from the model.{outside}",
        {
            "": {
                line.along: Series(
                    np.repeat(line.value, each), drawing.file_unit(line.along), "label along the sequence"
                ),
                "wavelength": Series(np.tile(spectra.wavelength_nm, n), "nm", "channel"),
                "flux": Series(spectra.flux.ravel(), "1e-18 W m-2 nm-1", "at 1 kpc without dust"),
                "normalised": Series(spectra.normalised.ravel(), "", "flux over continuum; XP samples only"),
                "likely": Series(np.repeat(spectra.likely, each), "", "label prior above the model's threshold"),
            }
        },
    )


def _analysis(name: str, paper: str, title: str, line: Line) -> Analysis:
    def product(run: Run) -> Product:
        assert run.model is not None
        missing = [n for n in LABELS if n not in run.model.labels]
        if missing:
            raise NotDrawnError(f"the model has no label {missing[0]}")
        return _product(sequence(run.model, line))

    return Analysis(name, paper, title, drawn_now(product), ("model",))


MAIN_SEQUENCE = _analysis("main_sequence", "Fig. 12", "Model spectra along the main sequence", MAIN_SEQUENCE_LINE)
METALLICITY = _analysis("metallicity", "Fig. 13", "Model spectra in [Fe/H]", METALLICITY_LINE)
GIANT_BRANCH = _analysis("giant_branch", "Fig. 14", "Model spectra along the giant branch", GIANT_LINE)
