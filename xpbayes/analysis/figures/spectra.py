"""Spectra of single stars beside the model's, and the model's own along lines through label space (ZGR23 Figs. 12-14).

Fluxes are in 1e-18 W m^-2 nm^-1; those of the lines are without dust at 1 kpc, with the same over their continuum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, NotDrawnError, Product, Series, drawn_now
from xpbayes.data.spectra import Spectra
from xpbayes.data.stars import Stars
from xpbayes.device import program
from xpbayes.models.forward import ForwardModel, ln_absolute_fluxes, predict_flux
from xpbayes.models.likelihood import at_own_level, deviance, n_observed, whitened_residual
from xpbayes.models.model_error import ModelError, with_model_error
from xpbayes.models.prior import ln_priors
from xpbayes.models.theta import to_log
from xpbayes.production.model_file import TrainedModel

EXAMPLE_KINDS = (
    ("hot star", (7.2, 0.0, 4.2)),
    ("Sun-like star", (5.77, 0.0, 4.44)),
    ("K dwarf", (4.5, -0.1, 4.6)),
    ("M dwarf", (3.7, -0.1, 4.7)),
    ("red clump giant", (4.8, -0.1, 2.5)),
    ("metal-poor giant", (4.7, -1.3, 1.8)),
)
"""Kinds of star and the labels (kK, dex, dex) that an example of each should have."""

TINY = 1e-9
"""Floor for E [mag] and parallax [mas] before taking logarithms."""
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


@dataclass(frozen=True)
class SpectrumFit:
    """One star's fit; NaN where not observed."""

    observed: NDArray[np.float64]  # (channel,)
    predicted: NDArray[np.float64]  # (channel,)
    # (channel,) 1-sigma marginal, measurement and model together. A star that fits worse than its kind has wider ones,
    # as it has less weight in the posterior: the Student t's slope at its chi^2.
    error: NDArray[np.float64]

    @property
    def residual(self) -> NDArray[np.float64]:
        """(channel,) (observed - predicted) / error."""
        return (self.observed - self.predicted) / self.error


def theta_log(estimate: NDArray[np.floating]) -> NDArray[np.floating]:
    """(..., parameter) labels, ln E, ln parallax from labels, E [mag], parallax [mas] that may be 0 or below."""
    return to_log(np.concatenate([estimate[..., :-2], np.maximum(estimate[..., -2:], TINY)], axis=-1))


def spectrum_fit(model: TrainedModel, stars: Spectra, row: int, estimate: NDArray[np.floating]) -> SpectrumFit:
    """Compare the flux of one row of a star table with the model at (parameter,) labels, E [mag], parallax [mas].

    A model of levels is brought to the star's own level, as best fits.
    """
    present = stars.channel_present()[row]
    parameters = jnp.asarray(theta_log(estimate), jnp.float32)
    star = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), stars.take(np.array([row])).stars(model.labels))
    predicted, whitening, slope = _compare(model.forward, model.model_error, star, parameters, model.has_levels)
    inverse = np.linalg.inv(np.asarray(whitening, np.float64)[np.ix_(present, present)])
    scale = np.exp(float(star.ln_scale))
    error = np.full(len(present), np.nan)
    error[present] = scale * np.sqrt(np.sum(inverse**2, axis=1) / float(slope))  # diagonal of W^-1 W^-T
    observed = np.where(present, stars.flux[row].astype(np.float64), np.nan)
    return SpectrumFit(observed, np.where(present, scale * np.asarray(predicted, np.float64), np.nan), error)


@partial(program, static_argnames="own_level")
def _compare(
    forward: ForwardModel, error: ModelError | None, star: Stars, parameters: Array, own_level: bool
) -> tuple[Array, Array, Array]:
    """(channel,) prediction on the star's scale, (channel, channel) whitening, model error included, () slope."""
    with jax.default_matmul_precision("highest"):
        predicted = predict_flux(forward, parameters, star.ln_scale)
        if own_level:
            predicted = at_own_level(predicted, star.flux, star.whitening)
        star = star if error is None else with_model_error(error, star, predicted)
        chi2 = jnp.sum(whitened_residual(predicted, star.flux, star.whitening) ** 2)
        return predicted, star.whitening, deviance(chi2, n_observed(star.whitening), star.inv_dof).slope


def choose_examples(estimate: NDArray[np.floating], label_scale: NDArray[np.floating]) -> list[tuple[str, int]]:
    """For each kind of star the nearest row of (star, label), in units of (label,) `label_scale`; each row once."""
    left = np.ones(len(estimate), bool)
    chosen = []
    n = min(estimate.shape[1], 3)
    for name, wanted in EXAMPLE_KINDS[: len(estimate)]:
        offset = (estimate[:, :n] - np.asarray(wanted)[:n]) / np.asarray(label_scale)[:n]
        distance = np.where(left, np.sum(offset**2, axis=1), np.inf)
        row = int(np.argmin(distance))
        left[row] = False
        chosen.append((name, row))
    return chosen


def draw_spectra(wavelength_nm: NDArray[np.floating], examples: Sequence[tuple[str, SpectrumFit]]) -> "drawing.Figure":
    """Observed and predicted flux of stars by their titles, at (channel,) wavelengths, and residuals in sigma below."""
    from matplotlib.gridspec import GridSpecFromSubplotSpec

    figure, places = drawing.grid(len(examples), 2, 4.7, 2.9)
    for place, (title, fit) in zip(places, examples, strict=True):
        spec = place.get_subplotspec()
        assert spec is not None  # it is one of a grid
        rows = GridSpecFromSubplotSpec(2, 1, spec, height_ratios=(2.4, 1), hspace=0.06)
        place.remove()
        top, bottom = figure.add_subplot(rows[0]), figure.add_subplot(rows[1])
        bottom.sharex(top)
        top.plot(wavelength_nm, fit.predicted, color=drawing.ORANGE, lw=1.4, label="model")
        top.errorbar(
            wavelength_nm, fit.observed, fit.error, fmt="o", ms=2.2, lw=0.6, color=drawing.INK, label="data"
        )  # fmt: skip
        top.set_title(title, fontsize=9)
        top.tick_params(labelbottom=False)
        top.set_ylabel(drawing.FLUX_LABEL, fontsize=8)
        bottom.axhline(0, color=drawing.GREY, lw=0.6)
        bottom.axhspan(-1, 1, color=drawing.LIGHT, lw=0)
        bottom.plot(wavelength_nm, fit.residual, "o", ms=2.2, color=drawing.INK)
        limit = max(3.0, 1.1 * np.nanmax(np.abs(fit.residual)))
        bottom.set(ylim=(-limit, limit), ylabel="residual [σ]", xlabel="wavelength [nm]", xscale="log")
        for axis in (top, bottom):
            axis.spines[["top", "right"]].set_visible(False)
        drawing.plain_log_ticks(bottom)
        top.minorticks_off()
        if place is places[0]:
            drawing.legend(top)
    return figure


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
class ModelSpectra:
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


def sequence(model: TrainedModel, line: Line) -> ModelSpectra:
    """Predict spectra along a line; labels other than its three stay at the middle of the training sample."""
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
    return ModelSpectra(line, labels, wavelength, n_xp, flux, normalised, likely)


def draw_sequence(spectra: ModelSpectra) -> "drawing.Figure":
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


def _mark_lines(axis: "drawing.Axes", low: float, high: float) -> None:
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


def _product(spectra: ModelSpectra) -> Product:
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
