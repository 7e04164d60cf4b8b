"""What `xpbayes check` shows: are truths where posteriors say they are? Verdicts, figures, one page."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from xpbayes.analysis.figures import drawing as figures
from xpbayes.analysis.pages.numbers import share, text
from xpbayes.analysis.pages.page import Page, Picture, Section, Table, wide_console
from xpbayes.analysis.posterior_file import parameter_names
from xpbayes.checks.prior_predictive import COLOUR, LEVEL, MAX_EXTINCTION, MIN_DOF
from xpbayes.checks.sbc import CONFIDENCE, Verdict, ecdf, judge, uniform_band
from xpbayes.production.model_file import TrainedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DWARF_LOGG, HOT_TEFF = 4.0, 6.5
FILES = ("report.html", "verdicts.csv", "shares.csv")
"""What a check writes."""
DUST_FREE = 3.0
"""Stars with a true E below this many of their own errors are called dust-free."""


@dataclass(frozen=True)
class CalibrationCheck:
    """Simulated stars and how much of each posterior lies below the truth.

    Attributes:
        labels: names of the model's labels.
        truth: (star, parameter) labels [kK, dex, ...], xi if the curve varies, E [mag], parallax [mas].
        estimate: (star, parameter) the mode found.
        mean, error: (star, parameter) of the importance posterior, and its standard deviation; NaN without draws.
        unbounded: (star, 2) E as if it could be negative, and its error [mag].
        shares: by method, (star, parameter) share of the posterior below the truth; NaN where not computed.
        chi2_shares: (star,) share of chi^2 that the noise's law puts below the one at the truth.
        chi2, n_obs: (star,) of the fluxes at the mode, and the number of channels.
        magnitude, signal_to_noise: (star,) G of the template [mag], and of the simulated spectrum.
        k_hat: (star,) of the importance weights.
        settled: (star,) whose Markov chains can be trusted.
        seconds: that it took.
    """

    labels: tuple[str, ...]
    truth: NDArray[np.float64]
    estimate: NDArray[np.float64]
    mean: NDArray[np.float64]
    error: NDArray[np.float64]
    unbounded: NDArray[np.float64]
    shares: dict[str, NDArray[np.float64]]
    chi2_shares: NDArray[np.float64]
    chi2: NDArray[np.float64]
    n_obs: NDArray[np.int64]
    magnitude: NDArray[np.float64]
    signal_to_noise: NDArray[np.float64]
    k_hat: NDArray[np.float64]
    settled: NDArray[np.bool_]
    seconds: float

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters, in order."""
        return parameter_names(self.labels, self.truth.shape[1])

    def verdicts(self) -> list[tuple[str, str, Verdict]]:
        """Method, parameter, verdict."""
        return [(m, n, judge(s[:, i])) for m, s in self.shares.items() for i, n in enumerate(self.names)]

    def outside(self) -> list[str]:
        """Methods that claim to be right, importance and NUTS, with their parameters that leave the band."""
        claims = ("importance", "NUTS")
        return [f"{m} {text(n)}" for m, n, v in self.verdicts() if m in claims and not v.uniform]

    @property
    def passed(self) -> bool:
        """Every parameter of the methods that claim to be right is inside the band."""
        return not self.outside()

    def dust_free(self) -> dict[str, float]:
        """Bias of mode, mean and unbounded E in units of its error, for stars next to no dust; NaN if there are none."""
        with np.errstate(invalid="ignore"):
            few = self.truth[:, -2] < DUST_FREE * self.error[:, -2]
        truth, sigma = self.truth[few, -2], self.error[few, -2]
        answers = {
            "mode": (self.estimate[few, -2], sigma),
            "mean": (self.mean[few, -2], sigma),
            "unbounded": (self.unbounded[few, 0], self.unbounded[few, 1]),
        }
        bias = {k: float(np.mean((e - truth) / s)) if few.any() else np.nan for k, (e, s) in answers.items()}
        return {"n": float(few.sum()), **bias}


def groups(check: CalibrationCheck) -> list[tuple[str, NDArray[np.bool_]]]:
    """Kinds of simulated star; each is told by the template's brightness or by the truth, so shares stay comparable."""
    teff, logg, extinction = check.truth[:, 0], check.truth[:, 2], check.truth[:, -2]
    found = [
        ("giants (log g < 4 and Teff < 6500 K)", (logg < DWARF_LOGG) & (teff < HOT_TEFF)),
        ("dwarfs (log g > 4 and Teff < 6500 K)", (logg >= DWARF_LOGG) & (teff < HOT_TEFF)),
        ("hot (Teff > 6500 K)", teff >= HOT_TEFF),
        ("E < 0.1", extinction < 0.1),
        ("0.1 < E < 0.5", (extinction >= 0.1) & (extinction < 0.5)),
        ("E > 0.5", extinction >= 0.5),
    ]
    for name, values in (("G", check.magnitude), ("S/N", check.signal_to_noise)):
        known = np.isfinite(values)
        if known.any():
            low, high = np.percentile(values[known], [33.3, 66.7])
            found += [
                (f"{name} < {low:.1f}", known & (values < low)),
                (f"{low:.1f} < {name} < {high:.1f}", known & (values >= low) & (values < high)),
                (f"{name} > {high:.1f}", known & (values >= high)),
            ]
    return [(name, member) for name, member in found if member.sum() >= 30]


def verdict_table(check: CalibrationCheck, caption: str = "") -> Table:
    """The pass/fail table."""
    rows = [
        (
            method, text(name), f"{v.n:,}", "pass" if v.uniform else "FAIL", share(v.coverage68), share(v.coverage95),
            f"{v.mean:.3f}", f"{v.distance:.3f}",
        )
        for method, name, v in check.verdicts()
    ]  # fmt: skip
    headings = ("method", "parameter", "stars", "uniform", "covers 68.3 %", "covers 95.4 %", "mean share", "distance")
    return Table(headings, rows, 2, caption)


def print_check(check: CalibrationCheck) -> None:
    """Print the pass/fail table."""
    console = wide_console()
    caption = f"uniform: inside the simultaneous {CONFIDENCE:.0%} band of n uniform shares"
    verdict_table(check, caption).print(console)
    noise = judge(check.chi2_shares)
    free = check.dust_free()
    console.print(f"chi2 at the truth follows its law: {'pass' if noise.uniform else 'FAIL'} ({noise.n:,} stars)")
    console.print(
        f"E of {free['n']:.0f} stars with E < {DUST_FREE:.0f} sigma: the mode is {free['mode']:+.2f} sigma from the truth, "
        f"the posterior mean {free['mean']:+.2f} sigma, E as if it could be negative {free['unbounded']:+.2f} sigma"
    )


def share_figure(check: CalibrationCheck) -> "Figure":
    """Empirical distribution of the shares minus the diagonal, with the simultaneous band."""
    methods, names = list(check.shares), check.names
    figure, axes = figures.panels(len(names), len(methods), 2.5 * len(names), 2.0 * len(methods))
    for row, method in enumerate(methods):
        for column, name in enumerate(names):
            axis = axes[row, column]
            known = check.shares[method][:, column]
            known = known[np.isfinite(known)]
            if not len(known):
                axis.remove()
                continue
            band = uniform_band(len(known))
            axis.fill_between(band.at, band.low - band.at, band.high - band.at, color=figures.LIGHT, lw=0)
            axis.axhline(0, color=figures.GREY, lw=0.6)
            inside = judge(known).uniform
            colour = figures.BLUE if inside else figures.ORANGE
            axis.plot(band.at, ecdf(known, band.at) - band.at, color=colour, lw=1.4)
            axis.set_title(f"{method}: {text(name)}", fontsize=8.5)
            if column == 0:
                axis.set_ylabel("ECDF − uniform")
            if row == len(methods) - 1:
                axis.set_xlabel("share below the truth")
    return figure


def coverage_figure(check: CalibrationCheck) -> "Figure":
    """Share of truths inside the central 68.3 % by kind of star, one panel per method."""
    kinds, methods = groups(check), list(check.shares)
    figure, axes = figures.panels(len(methods), 1, 2.4 * len(methods) + 2.4, 0.36 * len(kinds) + 1.6)
    one = stats.norm.cdf(1.0)
    colours = (figures.INK, figures.BLUE, figures.ORANGE, figures.GREY, "#7a5195")
    for column, method in enumerate(methods):
        axis = axes[0, column]
        axis.axvline(2 * one - 1, color=figures.GREY, lw=0.8)
        for i, name in enumerate(check.names):
            values = check.shares[method][:, i]
            of_kind = [values[member & np.isfinite(values)] for _, member in kinds]
            at = [np.mean((v > 1 - one) & (v < one)) if len(v) >= 20 else np.nan for v in of_kind]
            axis.plot(at, np.arange(len(kinds)) + 0.13 * (i - 2), "o", ms=4, color=colours[i % 5], label=text(name))
        axis.set(xlim=(0.3, 1.0), ylim=(len(kinds) - 0.5, -0.5), title=method, xlabel="inside central 68.3 %")
        axis.set_yticks(np.arange(len(kinds)), [n for n, _ in kinds] if column == 0 else [""] * len(kinds), fontsize=8)
    axes[0, -1].legend(fontsize=8, loc="lower left", frameon=False)
    return figure


def write_check(check: CalibrationCheck, model: TrainedModel, folder: Path) -> list[Path]:
    """Write report.html, verdicts.csv and shares.csv into a folder that is made if need be."""
    verdicts = verdict_table(check)
    columns = [f"{m} {n}" for m in check.shares for n in check.names]
    values = np.concatenate([*check.shares.values()], axis=1)
    shares = Table(columns, [[f"{v:.5f}" for v in row] for row in values])
    free, noise = check.dust_free(), judge(check.chi2_shares)
    dof = check.n_obs - check.truth.shape[1]
    sampled = int(np.isfinite(check.shares.get("NUTS", np.full((1, 1), np.nan))[:, 0]).sum())
    sections = [
        Section(
            "Verdicts",
            [
                "Of every simulated star's posterior, the share below the truth was noted. If posteriors are right, these "
                "shares are uniform. 'Uniform' says whether their distribution stays inside the band that uniform shares "
                f"leave once in a hundred times anywhere; the distance is the largest departure. {check.settled.sum():,} "
                f"of {sampled:,} stars sampled with NUTS had chains that settled; all are counted.",
                verdicts,
            ],
        ),
        Section(
            "Distributions of the shares",
            [
                "Above zero: too many truths lie low in their posterior; a rise that falls again through zero: posteriors "
                "are too narrow or too wide. Grey: the simultaneous band. Mode + Fisher and Laplace are Gaussians in "
                "(labels, E, parallax) around the mode in ln E, so that E is too high by construction where there is "
                "little dust, and bent or several-topped posteriors are not described.",
                Picture.of(share_figure(check), "Empirical distribution of posterior shares by method and parameter"),
            ],
        ),
        Section(
            "Coverage by kind of star",
            [
                "Share of truths inside the central 68.3 % of their posterior. Kinds are told by the truth or by the "
                "template; within a kind chosen by the truth, a right posterior need not cover exactly.",
                Picture.of(coverage_figure(check), "Coverage by kind of star and method"),
            ],
        ),
        Section(
            "Expected and observed chi-squared",
            [
                f"At the truth, chi-squared follows the noise's law: {'pass' if noise.uniform else 'FAIL'} "
                f"({noise.n:,} stars). At the mode its median is {np.median(check.chi2):.1f}, where {np.median(dof):.0f} "
                "degrees of freedom are left."
            ],
        ),
        Section(
            "Stars without dust",
            [
                f"{free['n']:.0f} stars have a true E below {DUST_FREE:.0f} of their own errors. Their mode, in ln E, is "
                f"{free['mode']:+.2f} sigma from the truth on average; the posterior mean {free['mean']:+.2f} sigma; E as "
                f"if it could be negative, e_unbounded in a catalogue, {free['unbounded']:+.2f} sigma."
            ],
        ),
        Section(
            "What was simulated",
            [
                f"Labels from the model's mixture, E flat below {MAX_EXTINCTION} mag, parallax flat; restricted, in "
                f"simulation and posterior alike, to stars within {LEVEL} of a real star's mean ln flux and {COLOUR} of "
                "its blue minus red. The noise is the real star's, missing bands included, at the amplitude that its own "
                f"fit found, as a Student t of at least {MIN_DOF:.0f} degrees of freedom. The check is of how posteriors "
                "are computed, given model and noise; whether these describe real stars is for comparisons with surveys. "
                "Inference on real stars takes the model's error from the observed flux; here it is known."
            ],
        ),
    ]
    outside = check.outside()
    notice = (
        f"Outside of the band: {', '.join(outside)}; every other parameter of importance and NUTS posteriors is inside."
        if outside
        else "Every parameter of the importance and NUTS posteriors is inside the band."
    )
    subtitle = f"{len(check.truth):,} simulated stars, {check.seconds:.0f} s; model {model.card.get('arrays_checksum')}"
    page = Page("Are the error bars right?", subtitle, sections, [notice]).write(folder / FILES[0])
    return [page, verdicts.write_csv(folder / FILES[1]), shares.write_csv(folder / FILES[2])]
