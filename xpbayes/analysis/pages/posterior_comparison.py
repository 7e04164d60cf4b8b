"""What is shown of Markov chains: draws, and cheap error bars beside them for the same stars, and where those fail.

`xpbayes sample` prints the one, `xpbayes compare` writes a page of the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from xpbayes.analysis.figures import drawing as figures
from xpbayes.analysis.pages.numbers import MISSING, heading, pair, text
from xpbayes.analysis.pages.page import Page, Picture, Section, Table, wide_console
from xpbayes.analysis.posterior_file import parameter_names
from xpbayes.production.model_file import TrainedModel

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

FILES = ("report.html", "stars.csv")
"""What a comparison writes."""
MAX_RATIO = 1.5
"""A cheap error bar fails a star where, for any parameter, it is longer or shorter than NUTS' by more than this factor."""
MAX_SHIFT = 0.5
"""Or where the centre is off by more of NUTS' standard deviations."""
MAX_K_HAT = 0.7
N_CORNERS = 4
MAX_ROWS, WIDTH = 40, 160
"""Of printed draws: stars, and characters a line."""


def print_draws(groups: "Mapping[str, xr.Dataset]") -> None:
    """Print mean and standard deviation of every parameter, R-hat, ESS and divergences; at most 40 stars."""
    posterior, known = groups["posterior"], groups["diagnostics"]
    names = [str(name) for name in posterior.data_vars]
    source_id = posterior["source_id"].to_numpy()
    rows = []
    for i, star in enumerate(source_id[:MAX_ROWS]):
        one = known.isel(source_id=i)
        draws = posterior.isel(source_id=i).astype(np.float64)
        cells = [pair(n, float(draws[n].mean()), float(draws[n].std())) for n in names]
        ess = [f"{float(one[n].min()):.0f}" for n in ("ess_bulk", "ess_tail")]
        said = "" if bool(one["settled"]) else "not settled"
        rows.append((str(star), *cells, f"{float(one['r_hat'].max()):.3f}", *ess, str(int(one["n_divergent"])), said))
    headings = ("source_id", *(heading(n) for n in names), "R-hat", "ESS bulk", "tail", "divergent", "")
    console = wide_console(WIDTH)
    caption = "mean ± standard deviation of the posterior; worst R-hat and ESS of the parameters"
    Table(headings, rows, 0, caption).print(console)
    if len(source_id) > MAX_ROWS:
        console.print(f"... and {len(source_id) - MAX_ROWS} more")
    console.print(f"{int(known['settled'].sum())} of {len(source_id)} stars have settled")


@dataclass(frozen=True)
class Estimate:
    """Centres and errors of one method, (star, parameter)."""

    centre: NDArray[np.float64]
    sigma: NDArray[np.float64]


@dataclass(frozen=True)
class PosteriorComparison:
    """The same stars, by several methods.

    Attributes:
        labels: names of the model's labels.
        source_id: (star,) Gaia's identifiers.
        methods: the cheap ones, by name.
        nuts: mean and standard deviation of the chains.
        covariance: (star, parameter, parameter) of Fisher, Laplace and NUTS, by name [kK, dex, ..., mag, mas].
        draws: (star, draw, parameter) of NUTS.
        settled: (star,) whose chains can be trusted; only these are counted.
        k_hat, n_modes, signal_to_noise: (star,) of the importance weights; distinct optima; of the spectrum.
        seconds: that solving with all cheap answers took, and NUTS.
    """

    labels: tuple[str, ...]
    source_id: NDArray[np.int64]
    methods: dict[str, Estimate]
    nuts: Estimate
    covariance: dict[str, NDArray[np.float64]]
    draws: NDArray[np.float32]
    settled: NDArray[np.bool_]
    k_hat: NDArray[np.float64]
    n_modes: NDArray[np.int64]
    signal_to_noise: NDArray[np.float64]
    seconds: tuple[float, float]

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters, in order."""
        return parameter_names(self.labels, self.draws.shape[-1])

    def ratio(self, method: str) -> NDArray[np.float64]:
        """(star, parameter) error over NUTS' standard deviation."""
        return self.methods[method].sigma / self.nuts.sigma

    def shift(self, method: str) -> NDArray[np.float64]:
        """(star, parameter) centre minus NUTS' mean, in its standard deviations."""
        return (self.methods[method].centre - self.nuts.centre) / self.nuts.sigma

    def fails(self, method: str) -> NDArray[np.bool_]:
        """(star,) whether a method's answer differs for any parameter."""
        ratio, shift = self.ratio(method), np.abs(self.shift(method))
        good = (ratio < MAX_RATIO) & (ratio > 1.0 / MAX_RATIO) & (shift < MAX_SHIFT)
        return np.asarray(~good.all(axis=1))

    def kinds(self) -> list[tuple[str, NDArray[np.bool_]]]:
        """Kinds of star, by NUTS' means and by what the cheap methods know themselves."""
        mean, sigma = self.nuts.centre, self.nuts.sigma
        low = np.nanpercentile(self.signal_to_noise, 25)
        return [
            ("all", np.ones(len(mean), bool)),
            ("giants (log g < 4, Teff < 6500 K)", (mean[:, 2] < 4) & (mean[:, 0] < 6.5)),
            ("dwarfs (log g > 4, Teff < 6500 K)", (mean[:, 2] >= 4) & (mean[:, 0] < 6.5)),
            ("hot (Teff > 6500 K)", mean[:, 0] >= 6.5),
            (f"low S/N (below {low:.0f}, a quarter)", self.signal_to_noise < low),
            ("E > 0.5", mean[:, -2] > 0.5),
            ("E below 3 sigma", mean[:, -2] < 3 * sigma[:, -2]),
            ("giant or dwarf (sigma of log g > 0.3)", sigma[:, 2] > 0.3),
            ("several optima", self.n_modes > 1),
            ("k_hat > 0.7", self.k_hat > MAX_K_HAT),
            ("one optimum and k_hat < 0.7", (self.n_modes == 1) & (self.k_hat <= MAX_K_HAT)),
        ]


def summary_table(comparison: PosteriorComparison, caption: str = "") -> Table:
    """One row per method and parameter: ratios of errors and shifts, 16, 50 and 84 %."""
    rows = []
    for method in comparison.methods:
        ratio, shift = comparison.ratio(method)[comparison.settled], comparison.shift(method)[comparison.settled]
        for i, name in enumerate(comparison.names):
            r, s = np.nanpercentile(ratio[:, i], [16, 50, 84]), np.nanpercentile(shift[:, i], [16, 50, 84])
            rows.append([method, text(name), *(f"{v:.2f}" for v in r), *(f"{v:+.2f}" for v in s)])
    headings = ("method", "parameter", "σ ratio 16 %", "50 %", "84 %", "shift 16 %", "50 %", "84 %")
    return Table(headings, rows, 2, caption)


def failure_table(comparison: PosteriorComparison, caption: str = "") -> Table:
    """One row per kind of star: how often each cheap method fails it."""
    rows = []
    for name, member in comparison.kinds():
        chosen = member & comparison.settled
        shares = [f"{comparison.fails(m)[chosen].mean():.0%}" if chosen.any() else MISSING for m in comparison.methods]
        rows.append([name, str(int(chosen.sum())), *shares])
    return Table(("kind of star", "stars", *comparison.methods), rows, 1, caption)


def correlation_table(comparison: PosteriorComparison) -> Table:
    """Median correlation of every pair of parameters, by method."""
    names, median = comparison.names, []
    for covariance in comparison.covariance.values():
        size = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
        correlation = covariance / size[:, :, None] / size[:, None, :]
        median.append(np.nanmedian(correlation[comparison.settled], axis=0))
    rows = [
        [f"{text(names[i])} – {text(names[j])}", *(f"{m[i, j]:+.2f}" for m in median)]
        for i, j in combinations(range(len(names)), 2)
    ]
    return Table(("parameters", *comparison.covariance), rows)


def print_comparison(comparison: PosteriorComparison) -> None:
    """Print ratios and shifts, and where the cheap answers fail."""
    console = wide_console()
    sizes = "error over NUTS' standard deviation, and centre minus NUTS' mean in its units"
    failures = f"share of stars whose answer differs: an error by a factor {MAX_RATIO}, a centre by {MAX_SHIFT} sigma"
    summary_table(comparison, sizes).print(console)
    failure_table(comparison, failures).print(console)
    console.print(f"{int(comparison.settled.sum())} of {len(comparison.settled)} stars settled and are counted")


def ratio_figure(comparison: PosteriorComparison) -> "Figure":
    """Distributions of the ratio of errors, and of the shifts, by method and parameter."""
    names = comparison.names
    figure, axes = figures.panels(len(names), 2, 2.5 * len(names), 5.0)
    colours = (figures.GREY, figures.BLUE, figures.ORANGE)
    for i, name in enumerate(names):
        for method, colour in zip(comparison.methods, colours, strict=True):
            ratio = np.clip(comparison.ratio(method)[comparison.settled, i], 0.21, 4.9)
            shift = np.clip(comparison.shift(method)[comparison.settled, i], -1.99, 1.99)
            axes[0, i].hist(np.log2(ratio), np.linspace(-2.3, 2.3, 47), histtype="step", color=colour, label=method)
            axes[1, i].hist(shift, np.linspace(-2, 2, 41), histtype="step", color=colour)
        axes[0, i].set(title=text(name), xlabel="log2 of σ / σ(NUTS)", xlim=(-2.3, 2.3))
        axes[1, i].set(xlabel="(centre − mean) / σ(NUTS)", xlim=(-2, 2))
        for axis in axes[:, i]:
            axis.axvline(0, color=figures.INK, lw=0.6)
    axes[0, 0].set_ylabel("stars")
    axes[1, 0].set_ylabel("stars")
    axes[0, -1].legend(fontsize=7, loc="upper left", frameon=False)
    return figure


def failure_figure(comparison: PosteriorComparison) -> "Figure":
    """Kiel diagram of NUTS' means, one panel per cheap method, failures marked."""
    methods = list(comparison.methods)
    figure, axes = figures.panels(len(methods), 1, 3.6 * len(methods), 3.8)
    mean = comparison.nuts.centre
    for axis, method in zip(axes[0], methods, strict=True):
        failed = comparison.fails(method) & comparison.settled
        good = ~failed & comparison.settled
        axis.plot(1e3 * mean[good, 0], mean[good, 2], "o", ms=3, color=figures.LIGHT, label="agrees")
        axis.plot(1e3 * mean[failed, 0], mean[failed, 2], "o", ms=4, color=figures.ORANGE, label="differs")
        unsettled = ~comparison.settled
        axis.plot(1e3 * mean[unsettled, 0], mean[unsettled, 2], "x", ms=4, color=figures.INK, label="NUTS not settled")
        axis.set(title=f"{method}: {failed.sum()} of {comparison.settled.sum()} differ", xlabel="Teff [K]")
        axis.invert_xaxis()
        axis.invert_yaxis()
    axes[0, 0].set_ylabel("log g [dex]")
    axes[0, 0].legend(fontsize=8)
    return figure


def corner_figure(comparison: PosteriorComparison, row: int) -> "Figure":
    """Draws of one star with the ellipses of the Gaussian answers."""
    names = comparison.names
    n, factor = len(names), np.array([figures.display_scale(name) for name in names])
    points = comparison.draws[row].astype(np.float64) * factor
    figure, axes = figures.panels(n, n, 8.4, 8.4)
    angle = np.linspace(0, 2 * np.pi, 100)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    colours = {"mode + Fisher": figures.GREY, "Laplace": figures.BLUE}
    low, high = np.percentile(points, [0.3, 99.7], axis=0)
    for i, j in np.ndindex(n, n):
        axis: Any = axes[i, j]
        if j > i:
            axis.remove()
            continue
        axis.set_xlim(low[j], high[j])
        if i == j:
            axis.hist(points[:, i], 40, (low[i], high[i]), color=figures.LIGHT, density=True)
            x = np.linspace(low[i], high[i], 200)
            for method, estimate in comparison.methods.items():
                height = norm.pdf(x, factor[i] * estimate.centre[row, i], factor[i] * estimate.sigma[row, i])
                axis.plot(x, height, color=colours.get(method, figures.ORANGE), lw=1.1, label=method)
            axis.set_yticks([])
        else:
            axis.plot(points[::2, j], points[::2, i], ",", color=figures.INK, alpha=0.5, rasterized=True)
            for method, colour in colours.items():
                value, vector = np.linalg.eigh(comparison.covariance[method][row][np.ix_([j, i], [j, i])])
                ellipse = vector @ (np.sqrt(np.maximum(value, 0.0))[:, None] * circle)
                centre = comparison.methods[method].centre[row][[j, i]]
                for k in (1.0, 2.0):
                    axis.plot(*(centre[:, None] + k * ellipse) * factor[[j, i], None], color=colour, lw=1.0)
            axis.set_ylim(low[i], high[i])
        axis.tick_params(labelsize=6, labelbottom=i == n - 1, labelleft=j == 0 and i > 0)
        if i == n - 1:
            axis.set_xlabel(text(names[j]), fontsize=8)
        if j == 0 and i > 0:
            axis.set_ylabel(text(names[i]), fontsize=8)
    # Of the figure, not of a panel: the layout would make room for it and widen the first column.
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=9, loc="upper right", frameon=False)
    return figure


def choose_corners(comparison: PosteriorComparison) -> list[tuple[str, int]]:
    """A few telling stars: the most ordinary, the least for the best cheap method, one at zero dust, one with two tops."""
    settled = np.flatnonzero(comparison.settled)
    if not len(settled):
        return []
    best = list(comparison.methods)[-1]
    off = np.abs(np.log(comparison.ratio(best))).max(axis=1) + np.abs(comparison.shift(best)).max(axis=1)
    off = np.where(np.isfinite(off), off, np.nanmax(off))
    dust = comparison.nuts.centre[:, -2] / comparison.nuts.sigma[:, -2]
    wanted = [
        ("an ordinary star", settled[np.argsort(off[settled])[len(settled) // 4]]),
        (f"where {best} differs most", settled[np.argmax(off[settled])]),
        ("next to no dust", settled[np.argmin(dust[settled])]),
    ]
    two = settled[comparison.n_modes[settled] > 1]
    if len(two):
        wanted.append(("two optima", two[0]))
    chosen: dict[int, str] = {}
    for name, row in wanted:
        chosen.setdefault(int(row), name)
    return [(name, row) for row, name in chosen.items()][:N_CORNERS]


def write_comparison(comparison: PosteriorComparison, model: TrainedModel, folder: Path) -> list[Path]:
    """Write report.html and stars.csv into a folder that is made if need be."""
    methods = list(comparison.methods)
    fails = {m: comparison.fails(m)[comparison.settled].mean() if comparison.settled.any() else np.nan for m in methods}
    sections = [
        Section(
            "In plain words",
            [
                "NUTS draws from the posterior itself and serves as the truth here. Every method below answers the same "
                "question for the same star. 'Differs' means that for at least one parameter the error bar is off by more "
                f"than a factor {MAX_RATIO}, or the centre by more than {MAX_SHIFT} of NUTS' standard deviations: "
                + "; ".join(f"{m} for {fails[m]:.0%} of the stars" for m in methods)
                + f". {int(comparison.settled.sum())} of {len(comparison.settled)} stars had chains that settled; only "
                "they are counted. Mode + Fisher is what ZGR23 publish: it leaves out the prior, and its E and parallax are "
                "modes in their logarithms, above the mean where a parameter is not known well. Laplace adds the prior. "
                "Importance reweights draws from mixtures of Gaussians and gives means.",
                failure_table(comparison),
            ],
        ),
        Section(
            "Errors and centres",
            [
                "Ratio of each method's error to NUTS' standard deviation, and centre minus NUTS' mean in units of it: 16, "
                "50 and 84 % of the stars.",
                summary_table(comparison),
                Picture.of(ratio_figure(comparison), "Histograms of error ratios and shifts by method and parameter"),
            ],
        ),
        Section(
            "Where they differ",
            [
                "Every star at NUTS' mean; orange where the method's answer differs.",
                Picture.of(failure_figure(comparison), "Kiel diagrams with the stars where each method differs"),
            ],
        ),
        Section(
            "Correlations",
            ["Median over the stars of the correlation of two parameters.", correlation_table(comparison)],
        ),
    ]
    for name, row in choose_corners(comparison):
        said = (
            "Draws of NUTS (points, grey histograms) and the cheap answers (lines; ellipses of 1 and 2 sigma). k_hat "
            f"{comparison.k_hat[row]:.2f}, {comparison.n_modes[row]} optima found."
        )
        picture = Picture.of(corner_figure(comparison, row), f"Corner plot of {name}", dpi=110)
        sections.append(Section(f"source_id {comparison.source_id[row]}: {name}", [said, picture]))
    subtitle = (
        f"{len(comparison.source_id):,} real stars; cheap answers {comparison.seconds[0]:.1f} s, NUTS "
        f"{comparison.seconds[1]:.1f} s, compilation included; model {model.card.get('arrays_checksum')}"
    )
    notice = (
        f"{methods[-1].capitalize()} gives another answer than NUTS for {fails[methods[-1]]:.0%} of the stars, "
        f"mode + Fisher for {fails[methods[0]]:.0%}."
    )
    page = Page("Cheap error bars beside NUTS", subtitle, sections, [notice]).write(folder / FILES[0])
    return [page, star_table(comparison).write_csv(folder / FILES[1])]


def star_table(comparison: PosteriorComparison) -> Table:
    """Every star's centres and errors by every method."""
    estimates = {**comparison.methods, "NUTS": comparison.nuts}
    columns = [f"{what} {name} {m}" for m in estimates for name in comparison.names for what in ("centre", "sigma")]
    # star, method, parameter, centre or sigma
    values = np.stack([np.stack([e.centre, e.sigma], axis=-1) for e in estimates.values()], axis=1)
    rows = [
        (
            str(source_id), str(int(comparison.settled[i])), f"{comparison.k_hat[i]:.3f}", str(comparison.n_modes[i]),
            f"{comparison.signal_to_noise[i]:.1f}", *(f"{v:.6g}" for v in values[i].ravel()),
        )
        for i, source_id in enumerate(comparison.source_id)
    ]  # fmt: skip
    return Table(("source_id", "settled", "k_hat", "n_modes", "signal_to_noise", *columns), rows)
