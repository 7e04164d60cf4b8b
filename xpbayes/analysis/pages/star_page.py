"""What `xpbayes fit` shows of a single star: parameters with errors, its optima, and a figure of data and model."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing as figures
from xpbayes.analysis.figures.spectra import SpectrumFit, spectrum_fit
from xpbayes.analysis.pages.numbers import MISSING, heading, number, pair, text
from xpbayes.analysis.pages.page import Aside, Page, Picture, Section, Table, save_figures, wide_console
from xpbayes.data.spectra import OK, Spectra
from xpbayes.errors import InputError
from xpbayes.inference.search.modes import Modes
from xpbayes.production.flat import recommended
from xpbayes.production.model_file import TrainedModel
from xpbayes.production.table import list_column, text_column
from xpbayes.release import DEFAULT_RELEASE, titles
from xpbayes.schema import FLAG_SENTENCES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERS = "fit.json"
NOTABLE = 9.0
"""Optima within this Delta L of the best are drawn too."""
SAME_SOLUTION = 0.3
"""The catalogue's estimate is the best optimum if no parameter is further from it than this [sigma]."""


@dataclass(frozen=True)
class StarFit:
    """One star, fitted; Teff is in kK.

    Attributes:
        source_id: of Gaia.
        status: 'ok', or why there is no solution; the rest is then empty or NaN.
        label_names: the model's labels.
        value, low, high: (parameter,) recommended labels [kK, dex, ...], E [mag], parallax [mas], and their 68 % intervals.
        estimate, error: (parameter,) ZGR23-compatible: the posterior's mode, where the spectrum is drawn, and Fisher errors.
        measured_parallax, measured_parallax_error: Gaia's [mas], NaN where missing.
        parallax_used: there is a measured parallax, and it entered the fit.
        chi2, n_obs, dof, ln_prior, flags: as in the catalogue.
        confidence: probability that each label is reliable, for labels that have a classifier.
        modes: the optima.
        wavelength_nm: (channel,) [nm].
        spectrum: data and model at the estimate.
        others: Delta L and model flux of further optima, up to a Delta L of 9.
        release: that source_id is of.
    """

    source_id: int
    status: str
    label_names: tuple[str, ...]
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    estimate: NDArray[np.float64]
    error: NDArray[np.float64]
    measured_parallax: float
    measured_parallax_error: float
    parallax_used: bool
    chi2: float
    n_obs: int
    dof: int
    ln_prior: float
    flags: int
    confidence: dict[str, float]
    modes: Modes
    wavelength_nm: NDArray[np.float64]
    spectrum: SpectrumFit | None = None
    others: tuple[tuple[float, NDArray[np.float64]], ...] = ()
    release: str = DEFAULT_RELEASE.name

    @property
    def title(self) -> str:
        """The star's name: its data release and source_id."""
        return f"{titles([self.release])} {self.source_id}"

    @property
    def solved(self) -> bool:
        """Whether there is a solution."""
        return self.status == OK

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters."""
        return (*self.label_names, "extinction", "parallax")

    @property
    def written(self) -> list[tuple[str, str]]:
        """Every parameter's name, and its value ± error with the unit."""
        each = zip(self.names, self.value, 0.5 * (self.high - self.low), strict=True)
        return [(text(n), f"{pair(n, v, e)} {figures.LABEL_UNIT.get(n, '')}".replace("-", "−")) for n, v, e in each]

    @property
    def quality(self) -> str:
        """How well the model fits, in a sentence."""
        fitted = f"χ² = {self.chi2:.1f} in {self.n_obs} channels, {self.dof} degrees of freedom"
        return f"{fitted}; ln prior = {self.ln_prior:.1f}."

    @property
    def agrees(self) -> bool:
        """The estimate is the best optimum that many starts found."""
        if not self.modes.modes:
            return False
        best = self.modes.modes[0]
        return bool(np.max(np.abs(best.estimate - self.estimate) / best.error) < SAME_SOLUTION)

    @property
    def delta(self) -> list[float]:
        """L of every optimum minus that of the best."""
        return [mode.objective - self.modes.modes[0].objective for mode in self.modes.modes]

    def as_json(self) -> dict[str, Any]:
        """The numbers, JSON-ready, in displayed units; NaN as None."""

        def displayed(values: NDArray[np.float64]) -> dict[str, float | None]:
            return {n: _number(v * figures.display_scale(n)) for n, v in zip(self.names, values, strict=True)}

        return {
            "source_id": self.source_id,
            "status": self.status,
            "units": {n: figures.LABEL_UNIT.get(n, "") for n in self.names},
            "value": displayed(self.value),
            "p16": displayed(self.low),
            "p84": displayed(self.high),
            "estimate": displayed(self.estimate),
            "error": displayed(self.error),
            "measured_parallax": _number(self.measured_parallax),
            "measured_parallax_error": _number(self.measured_parallax_error),
            "parallax_used": self.parallax_used,
            "chi2": _number(self.chi2),
            "n_obs": self.n_obs,
            "dof": self.dof,
            "ln_prior": _number(self.ln_prior),
            "quality_flags": self.flags,
            "confidence": {n: _number(v) for n, v in self.confidence.items()},
            "n_starts": self.modes.n_starts,
            "n_starts_unconverged": self.modes.n_unconverged,
            "estimate_is_best_mode": self.agrees,
            "modes": [
                {
                    "delta_l": _number(delta),
                    "n_starts": mode.n_starts,
                    "estimate": displayed(mode.estimate),
                    "error": displayed(mode.error),
                }
                for mode, delta in zip(self.modes.modes, self.delta, strict=True)
            ],
        }


def star_fits(
    model: TrainedModel, stars: Spectra, catalogue: pa.Table, modes: dict[int, Modes], *, parallax_used: bool
) -> list[StarFit]:
    """Put together what is known of stars: their rows of a catalogue, one for one, and optima by source_id.

    Measured parallaxes entered the fits if `parallax_used`.
    """
    estimate, error = list_column(catalogue, "stellar_params_est"), list_column(catalogue, "stellar_params_err")
    best = recommended(catalogue)
    status, measured = text_column(catalogue, "status"), (stars.column("parallax"), stars.column("parallax_error"))
    trusted = model.confidence.targets if model.confidence else ()
    names = ("chi2_opt", "ln_prior", "n_obs", "dof", "quality_flags", *(f"{n}_confidence" for n in trusted))
    columns = {name: catalogue[name].to_numpy(zero_copy_only=False).astype(float) for name in names}  # null: NaN
    known = "release" in catalogue.column_names
    releases = text_column(catalogue, "release") if known else [DEFAULT_RELEASE.name] * len(stars)
    fits = []
    for i, source_id in enumerate(stars.source_id.tolist()):
        fit_at = partial(spectrum_fit, model, stars, i)
        row = {name: float(values[i]) for name, values in columns.items()}
        optima = modes.get(source_id, Modes((), 0, 0))
        above = [(mode.objective - optima.modes[0].objective, mode.estimate) for mode in optima.modes[1:]]
        fits.append(
            StarFit(
                source_id=source_id,
                status=str(status[i]),
                label_names=model.labels,
                value=best.value[i],
                low=best.low[i],
                high=best.high[i],
                estimate=estimate[i],
                error=error[i],
                measured_parallax=float(measured[0][i]),
                measured_parallax_error=float(measured[1][i]),
                parallax_used=parallax_used and bool(np.isfinite(measured[0][i]) and np.isfinite(measured[1][i])),
                chi2=row["chi2_opt"],
                n_obs=int(row["n_obs"]),
                dof=int(row["dof"]),
                ln_prior=row["ln_prior"],
                flags=int(row["quality_flags"]),
                confidence={n: row[f"{n}_confidence"] for n in trusted},
                modes=optima,
                wavelength_nm=model.channels.wavelengths,
                spectrum=fit_at(estimate[i]) if status[i] == OK else None,
                others=tuple((delta, fit_at(at).predicted) for delta, at in above if delta < NOTABLE),
                release=str(releases[i]),
            )
        )
    return fits


def _number(value: float) -> float | None:
    return float(f"{value:.7g}") if np.isfinite(value) else None


def flag_sentences(flags: int) -> list[str]:
    """The sentences of the flags that are set."""
    return [text for flag, text in FLAG_SENTENCES.items() if flags & int(flag)]


def print_star(star: StarFit) -> None:
    """Print a star's parameters, quality and optima."""
    console = wide_console()
    console.print(f"\n[bold]{star.title}[/bold]")
    if not star.solved:
        console.print(f"no solution: {star.status}")
        return
    _parameter_table(star).print(console)
    console.print(
        f"chi2 = {star.chi2:.1f} for {star.n_obs} channels, {star.dof} degrees of freedom; ln prior = {star.ln_prior:.1f}"
    )
    sentences = flag_sentences(star.flags)
    console.print(f"quality_flags = {star.flags}" + (f": {'; '.join(sentences)}" if sentences else ": no warning"))
    if not star.modes.modes:
        console.print(f"none of {star.modes.n_starts} starts converged to an optimum")
        return
    failed = f", {star.modes.n_unconverged} did not converge" if star.modes.n_unconverged else ""
    n = len(star.modes.modes)
    title = f"{n} {'optimum' if n == 1 else 'optima'} from {star.modes.n_starts} starts{failed}"
    _mode_table(star).print(console, title)
    if not star.agrees:
        console.print("note: many starts found a better optimum than the mode above; raise n_starts to infer")


def _parameter_table(star: StarFit) -> Table:
    rows = []
    for i, name in enumerate(star.names):
        note = ""
        if name == "parallax" and np.isfinite(star.measured_parallax):
            used = "used" if star.parallax_used else "not used"
            note = f"Gaia: {star.measured_parallax:.4f} ± {star.measured_parallax_error:.4f}, {used}"
        elif name == "parallax":
            note = "not measured"
        trust = star.confidence.get(name, float("nan"))
        values = tuple(number(name, of[i]) for of in (star.value, star.low, star.high))
        mode = f"{number(name, star.estimate[i])} ± {number(name, star.error[i])}"
        rows.append((heading(name), *values, mode, f"{trust:.2f}" if np.isfinite(trust) else MISSING, note))
    headings = ("parameter", "value", "16 %", "84 %", "ZGR23-compatible", "confidence", "note")
    caption = "Value: the posterior's median with its 68 % interval. ZGR23-compatible: mode ± Fisher error."
    return Table(headings, rows, 1, caption, wide=(6,))


def _mode_table(star: StarFit) -> Table:
    rows = [
        (f"{delta:.2f}", *(number(n, v) for n, v in zip(star.names, mode.estimate, strict=True)), str(mode.n_starts))
        for mode, delta in zip(star.modes.modes, star.delta, strict=True)
    ]
    headings = ("ΔL", *(heading(name) for name in star.names), "starts")
    return Table(headings, rows, 0, "ΔL: -2 ln posterior minus that of the best")


def write_page(star: StarFit, path: Path, where: str, model: str) -> Path:
    """Write one page about a star: parameters, quality, optima, spectrum; `where` that is from and the model in words.

    Raises:
        InputError: it cannot be written.
    """
    notices = [f"Flagged: {sentence}." for sentence in flag_sentences(star.flags)]
    if not star.solved:
        return Page(star.title, where, [], [f"There is no solution: {star.status}."]).write(path)
    spectrum = Picture.of(
        star_figure(star),
        f"Observed and model spectrum of {star.title} with residuals in units of sigma",
        "Points are data with their marginal 1 σ errors, model error included; the solid line is the model at the mode, "
        "dashed other optima that compete; below, the residual in σ.",
    )
    sections = [
        Section("Parameters", [_parameter_table(star), Aside(star.quality)]),
        Section("Spectrum, fit and residuals", [spectrum]),
        *([Section("Optima of the posterior", [_mode_table(star)])] if star.modes.modes else []),
    ]
    tiles = [(value, name) for name, value in star.written]
    return Page(star.title, f"{where}; {model}", sections, notices or ["No quality flag is set."], tiles).write(path)


def star_figure(star: StarFit) -> "Figure":
    """Data with errors and the model; below, residuals in sigma."""
    if star.spectrum is None:
        raise InputError(f"source_id {star.source_id}: has no solution to draw ({star.status})")
    fit, wavelength = star.spectrum, star.wavelength_nm
    figure, axes = figures.panels(1, 1, 8.2, 5.6)
    grid = axes[0, 0].get_subplotspec().subgridspec(2, 1, height_ratios=(2.6, 1), hspace=0.05)
    axes[0, 0].remove()
    top = figure.add_subplot(grid[0])
    bottom = figure.add_subplot(grid[1], sharex=top)
    for delta, flux in star.others:
        top.plot(wavelength, flux, "--", color=figures.BLUE, lw=1.0, label=f"other optimum, ΔL = {delta:.1f}")
    top.plot(wavelength, fit.predicted, color=figures.ORANGE, lw=1.5, label="model at the mode")
    top.errorbar(
        wavelength, fit.observed, fit.error, fmt="o", ms=3, lw=0.8, color=figures.INK, label="data, 1σ with model error"
    )
    values = [f"{name} = {value}" for name, value in star.written]
    lines = [star.title, *("    ".join(values[i : i + 4]) for i in range(0, len(values), 4))]
    top.set_title("\n".join(lines), loc="left", fontsize=9, linespacing=1.5)
    top.set(xscale="log", ylabel=figures.FLUX_LABEL, ylim=_flux_limits(fit))
    top.tick_params(labelbottom=False)
    figures.legend(top)
    bottom.axhspan(-1, 1, color=figures.LIGHT, lw=0)
    bottom.axhline(0, color=figures.GREY, lw=0.7)
    bottom.plot(wavelength, fit.residual, "o", ms=3, color=figures.INK)
    limit = max(3.0, 1.1 * float(np.nanmax(np.abs(fit.residual))))
    bottom.set(ylim=(-limit, limit), xscale="log", xlabel="wavelength [nm]", ylabel="(data − model) / σ")
    bottom.text(
        0.99, 0.04, f"χ² = {star.chi2:.1f}, {star.dof} degrees of freedom (with all correlations)",
        fontsize=8, ha="right", transform=bottom.transAxes,
    )  # fmt: skip
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
    figures.plain_log_ticks(bottom)
    top.minorticks_off()
    return figure


def _flux_limits(fit: SpectrumFit) -> tuple[float, float]:
    low = np.nanmin(np.minimum(fit.observed - fit.error, fit.predicted))
    high = np.nanmax(np.maximum(fit.observed + fit.error, fit.predicted))
    margin = 0.05 * (high - low)
    return float(min(low - margin, 0.0) if low < 0.2 * high else low - margin), float(high + margin)


def write_fits(stars: list[StarFit], folder: Path) -> list[Path]:
    """Write fit.json and one PNG per solved star, named by its source_id, into a folder that is made if need be.

    Raises:
        InputError: the folder cannot be written.
    """
    numbers = json.dumps([star.as_json() for star in stars], indent=1) + "\n"
    drawn = ((f"{star.source_id}.png", star_figure(star)) for star in stars if star.spectrum is not None)
    return save_figures(folder, {NUMBERS: numbers}, drawn)
