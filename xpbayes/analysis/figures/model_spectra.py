"""Model spectra along the main sequence, in [Fe/H] and along the giant branch (ZGR23 Figs. 12 to 14).

In: a trained model. Out: fluxes without dust at 1 kpc, the same over their continuum, and the drawing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing as figures
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, NotDrawnError, Product, Series, Task, drawn_now
from xpbayes.production.model_file import TrainedModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
class Sequence:
    """Spectra along a line through label space.

    Attributes:
        title: of the line.
        along: name of the label that colours it.
        value: (spectrum,) that label [kK or dex].
        labels: (spectrum, label).
        wavelength_nm: (channel,).
        n_xp: leading channels that are XP samples.
        flux: (spectrum, channel) at 1 kpc without dust [1e-18 W m^-2 nm^-1].
        normalised: (spectrum, n_xp) flux over its continuum.
        likely: (spectrum,) the label prior is above the model's threshold: such stars were in the training sample.
    """

    title: str
    along: str
    value: NDArray[np.float64]
    labels: NDArray[np.float64]
    wavelength_nm: NDArray[np.float64]
    n_xp: int
    flux: NDArray[np.float64]
    normalised: NDArray[np.float64]
    likely: NDArray[np.bool_]


def over_continuum(wavelength_nm: NDArray[np.floating], flux: NDArray[np.floating]) -> NDArray[np.float64]:
    """Divide spectra by their continuum: the exponential of a polynomial of order 5 in wavelength, fitted to ln flux.

    In ln flux all channels count alike; in flux the blue end of a cool star, a hundredth of its maximum, would not.

    Args:
        wavelength_nm: (channel,).
        flux: (spectrum, channel), positive.
    """
    middle, half = 0.5 * (wavelength_nm[0] + wavelength_nm[-1]), 0.5 * (wavelength_nm[-1] - wavelength_nm[0])
    design = np.polynomial.legendre.legvander((wavelength_nm - middle) / half, CONTINUUM_ORDER)
    ln_flux = np.log(np.asarray(flux, np.float64))
    coefficients = np.linalg.lstsq(design, ln_flux.T, rcond=None)[0]
    return np.exp(ln_flux - (design @ coefficients).T)


def sequence(
    model: TrainedModel, title: str, along: str, teff: NDArray[np.float64], feh: NDArray[np.float64],
    logg: NDArray[np.float64],
) -> Sequence:  # fmt: skip
    """Predict spectra along a line; labels other than these three stay at the middle of the training sample.

    Args:
        model: the trained model.
        title: of the line.
        along: 'teff', 'feh' or 'logg'.
        teff, feh, logg: (spectrum,) [kK, dex, dex].
    """
    import jax
    import jax.numpy as jnp

    from xpbayes.models.forward import ln_absolute_flux
    from xpbayes.models.prior import ln_prior

    middle = np.asarray(model.forward.label_center, np.float64)
    labels = np.tile(middle, (len(teff), 1))
    for name, values in (("teff", teff), ("feh", feh), ("logg", logg)):
        labels[:, model.labels.index(name)] = values
    at = jnp.asarray(labels, jnp.float32)
    flux = np.exp(np.asarray(jax.vmap(ln_absolute_flux, (None, 0))(model.forward, at), np.float64))
    likely = np.asarray(jax.vmap(ln_prior, (None, 0))(model.prior, at)) > float(model.prior.ln_threshold)
    wavelength, n_xp = model.channels.wavelengths, model.channels.n_xp
    normalised = (
        over_continuum(wavelength[:n_xp], flux[:, :n_xp])
        if n_xp >= MIN_CONTINUUM_CHANNELS
        else np.full((len(teff), n_xp), np.nan)
    )
    value = {"teff": teff, "feh": feh, "logg": logg}[along]
    return Sequence(title, along, value, labels, wavelength, n_xp, flux, normalised, likely)


def main_sequence(model: TrainedModel) -> Sequence:
    """Solar-metallicity main sequence, 4,000 to 11,000 K (Fig. 12)."""
    teff = MAIN_SEQUENCE_TEFF
    return sequence(
        model, "main sequence, [Fe/H] = 0", "teff", teff, np.zeros(len(teff)), main_sequence_logg(teff)
    )  # fmt: skip


def metallicities(model: TrainedModel) -> Sequence:
    """Main-sequence stars of 5,500 K (Fig. 13)."""
    teff = np.full(len(FEH_GRID), FEH_TEFF)
    return sequence(model, "main sequence, 5,500 K", "feh", teff, FEH_GRID, main_sequence_logg(teff))


def giant_branch(model: TrainedModel) -> Sequence:
    """Solar-metallicity giant branch (Fig. 14)."""
    return sequence(
        model, "giant branch, [Fe/H] = 0", "logg", giant_branch_teff(GIANT_LOGG), np.zeros(len(GIANT_LOGG)), GIANT_LOGG
    )


def draw_sequence(spectra: Sequence) -> "Figure":
    """Fluxes to the left, continuum-normalised XP spectra with marked lines to the right."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure, axes = figures.panels(2, 1, 10.6, 4.4, width_ratios=(1.0, 1.25))
    left, right = axes[0]
    factor = figures.display_scale(spectra.along)
    colours = ScalarMappable(Normalize(factor * spectra.value.min(), factor * spectra.value.max()), "viridis")
    split = spectra.n_xp
    for i, value in enumerate(factor * spectra.value):
        colour, line = colours.to_rgba(value), "-" if spectra.likely[i] else ":"
        left.plot(spectra.wavelength_nm[:split], spectra.flux[i, :split], line, color=colour, lw=1.2)
        left.plot(spectra.wavelength_nm[split:], spectra.flux[i, split:], "o", ms=3, color=colour,
                  fillstyle="full" if spectra.likely[i] else "none")  # fmt: skip
        right.plot(spectra.wavelength_nm[:split], spectra.normalised[i], line, color=colour, lw=1.1)
    left.set(xlabel="wavelength [nm]", ylabel="flux at 1 kpc [10$^{-18}$ W m$^{-2}$ nm$^{-1}$]", xscale="log",
             yscale="log", title=spectra.title)  # fmt: skip
    figures.plain_log_ticks(left)
    figures.decade_ticks(left)
    right.set(xlabel="wavelength [nm]", title="over a 5th-order continuum")
    low, high = right.get_ylim()
    right.set_ylim(low, high + 0.24 * (high - low))  # room for the names of lines
    _mark_lines(right, spectra.wavelength_nm[0], spectra.wavelength_nm[split - 1])
    figure.colorbar(
        colours, ax=axes[0].tolist(), pad=0.01,
        label=f"{figures.LABEL_TEXT[spectra.along]} [{figures.LABEL_UNIT[spectra.along]}]",
    )  # fmt: skip
    return figure


def _mark_lines(axis: "Axes", low: float, high: float) -> None:
    balmer, paschen = hydrogen_lines(2, range(3, 7)), hydrogen_lines(3, range(8, 15))
    marks = [(name, np.array([at]), ":") for name, at in zip(("Hα", "Hβ", "Hγ", "Hδ"), balmer, strict=True)]
    marks += [("H Paschen", paschen, "-."), *((name, np.asarray(at), "--") for name, at in METAL_LINES.items())]
    top = axis.get_ylim()[1]
    for name, at, style in marks:
        inside = at[(at > low) & (at < high)]
        for wavelength in inside:
            axis.axvline(wavelength, ls=style, lw=0.6, color=figures.GREY, zorder=0)
        if len(inside):
            place = inside.max() if name == "H Paschen" else inside.mean()
            axis.text(
                place, top, name, rotation=90, fontsize=6.5, va="top", ha="center", color=figures.INK,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip


def _product(spectra: Sequence, figure_words: str) -> Product:
    n, n_outside = len(spectra.value), int((~spectra.likely).sum())
    outside = (
        f" Dotted: {n_outside} of {n} spectra lie where the label prior is below the model's threshold, in other words "
        "where the training sample had no stars: extrapolations." if n_outside else ""
    )  # fmt: skip
    channels = np.tile(spectra.wavelength_nm, n)
    normalised = np.full(spectra.flux.shape, np.nan)
    normalised[:, : spectra.n_xp] = spectra.normalised
    each = len(spectra.wavelength_nm)
    unit = "kK" if spectra.along == "teff" else "dex"
    return Product(
        draw_sequence(spectra),
        f"Model spectra: {spectra.title}, {n} values of {figures.LABEL_TEXT[spectra.along]}",
        f"Model spectra without dust at 1 kpc, {figure_words}. Right: XP samples over a continuum, a polynomial of order "
        f"{CONTINUUM_ORDER} in ln flux; lines of hydrogen from the Rydberg formula, all wavelengths in vacuum. No cut: "
        f"{n} spectra computed from the model.{outside}",
        {
            "": {
                spectra.along: Series(np.repeat(spectra.value, each), unit, "label along the sequence"),
                "wavelength": Series(channels, "nm", "channel"),
                "flux": Series(spectra.flux.ravel(), "1e-18 W m-2 nm-1", "at 1 kpc without dust"),
                "normalised": Series(normalised.ravel(), "", "flux over continuum; XP samples only"),
                "likely": Series(np.repeat(spectra.likely, each), "", "label prior above the model's threshold"),
            }
        },
    )


def _drawn(make: Callable[[TrainedModel], Sequence], words: str) -> Callable[[Run], Task]:
    def product(run: Run) -> Product:
        assert run.model is not None
        missing = [n for n in ("teff", "feh", "logg") if n not in run.model.labels]
        if missing:
            raise NotDrawnError(f"the model has no label {missing[0]}")
        return _product(make(run.model), words)

    return drawn_now(product)


MAIN_SEQUENCE = Analysis(
    "main_sequence", "Fig. 12", "Model spectra along the main sequence",
    _drawn(main_sequence, "along the main sequence of solar metallicity (log g from Eq. 28)"), ("model",),
)  # fmt: skip
METALLICITY = Analysis(
    "metallicity", "Fig. 13", "Model spectra in [Fe/H]",
    _drawn(metallicities, "of 5,500 K main-sequence stars of different metallicity (log g from Eq. 28)"), ("model",),
)  # fmt: skip
GIANT_BRANCH = Analysis(
    "giant_branch", "Fig. 14", "Model spectra along the giant branch",
    _drawn(giant_branch, "along the giant branch of solar metallicity (Teff from Eq. 29)"), ("model",),
)  # fmt: skip
