"""The section of a requested star in the report: tables and figures of what `requested_stars` found."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from xpbayes.analysis.figures import drawing as figures
from xpbayes.analysis.pages.numbers import MISSING, heading, number, text
from xpbayes.analysis.pages.page import Aside, Part, Picture, Points, Section, Table
from xpbayes.analysis.pages.requested_stars import FISHER, LAPLACE, NUTS, RequestedStar
from xpbayes.analysis.pages.star_page import star_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 130


def star_section(star: RequestedStar, training: NDArray[np.float64]) -> Section:
    """Everything about one star.

    Args:
        star: the star.
        training: (star, label) labels of the training stars that the table holds.
    """
    fit, name, key = star.fit, star.fit.title, f"star-{star.fit.source_id}"
    first: list[Part] = [headline(star), Points([("", remark) for remark in star.remarks])]
    if not star.solved:
        return Section(name, first, key)
    quality = (
        f"χ² = {fit.chi2:.1f} in {fit.n_obs} channels, {fit.dof} degrees of freedom; ln prior = {fit.ln_prior:.1f}."
    )
    spectrum = Picture.of(
        star_figure(fit),
        f"Observed and model spectrum of {name} with residuals in units of sigma",
        "Points are data with their marginal 1 σ errors, calibration and model error included; the solid line is the model "
        "at the catalogue's estimate, dashed the second optimum where there is one that competes; below, the residual in σ.",
        DPI,
    )
    posterior = Picture.of(
        posterior_figure(star),
        f"Posterior of every parameter of {name} by method",
        "Fisher leaves the prior out, Laplace has it; both are Gaussians around the mode. Bars are quantiles of draws from "
        "the posterior itself, which need not be symmetric. The dotted line is the spectroscopic label, or Gaia's parallax, "
        "where it is inside of the panel.",
        DPI,
    )
    near: list[Part] = [neighbour_table(star)]
    if len(fit.label_names) > 1 and len(star.neighbours.source_id):
        beside = Picture.of(
            neighbour_figure(star, training),
            f"Labels of {name}, of its neighbours and of the training stars",
            "The star with its Fisher errors among the labels of the training stars, and the stars of the catalogue whose "
            "inferred labels are nearest.",
            DPI,
        )
        near = [Section("Neighbours in label space", [beside, *near], f"{key}-neighbours")]
    sections = [
        Section("Spectrum, fit and residuals", [spectrum], f"{key}-spectrum"),
        Section("Posterior beside Fisher and Laplace", [posterior], f"{key}-posterior"),
    ]
    return Section(name, [*first, parameter_table(star), Aside(quality), *sections, *near], key)


def headline(star: RequestedStar) -> str:
    """Labels in one line, for contents and headings."""
    if not star.solved:
        return star.fit.status
    return ", ".join(
        f"{text(n)} {number(n, v)}{' K' if n == 'teff' else ''}"
        for n, v in zip(star.fit.label_names, star.fit.value, strict=False)
    )


def parameter_table(star: RequestedStar) -> Table:
    """Parameters by method, with the spectroscopic label and the measured parallax beside them."""
    rows = []
    measured = [*zip(star.label, star.label_error, strict=True), (np.nan, np.nan)]
    measured.append((star.fit.measured_parallax, star.fit.measured_parallax_error))
    for k, name in enumerate(star.names):
        cells = [heading(name)]
        for answer in star.answers.values():
            if answer.quantiles is None:
                cells.append(f"{number(name, answer.centre[k])} ± {number(name, answer.sigma[k])}")
            else:
                low, median, high = answer.quantiles[:, k]
                cells.append(f"{number(name, median)} +{number(name, high - median)} −{number(name, median - low)}")
        value, error = measured[k]
        cells.append(f"{number(name, value)} ± {number(name, error)}" if np.isfinite(value) else MISSING)
        rows.append(cells)
    note = (
        "Mode with standard deviation for Fisher and Laplace; median with 16 and 84 % for draws; all as calibrated on "
        "stars kept aside if the model was. Measured: the spectroscopic label, or Gaia's parallax"
    )
    used = "." if star.fit.parallax_used else ", which took no part."
    return Table(("parameter", *star.answers, "measured"), rows, 1, note + used)


def neighbour_table(star: RequestedStar) -> Table:
    """The neighbours with inferred and spectroscopic labels."""
    names, near = star.fit.label_names, star.neighbours
    headings = ["source_id", "distance", *(h for name in names for h in (text(name), f"{text(name)} label"))]
    rows = []
    for i, source_id in enumerate(near.source_id.tolist()):
        pairs = zip(names, near.estimate[i], near.label[i], strict=True)
        cells = [number(name, value) for name, *both in pairs for value in both]
        rows.append([str(source_id), f"{near.distance[i]:.2f}", *cells])
    caption = (
        f"The {len(rows)} stars of the catalogue whose inferred labels are nearest, with their spectroscopic labels where "
        "known (Teff in K); distance in units of the training labels' half width from 16 to 84 %."
    )
    return Table(headings, rows, 1, caption)


def posterior_figure(star: RequestedStar) -> "Figure":
    """One panel per parameter: Fisher and Laplace as Gaussians, draws as a bar or a histogram, the label as a line."""
    names = star.names
    rows = -(-len(names) // 3)
    figure, axes = figures.panels(3, rows, 9.0, 2.5 * rows)
    for axis in axes.flat[len(names) :]:
        axis.remove()
    measured = np.append(star.label, [np.nan, star.fit.measured_parallax])
    for k, (axis, name) in enumerate(zip(axes.flat, names, strict=False)):
        factor = figures.display_scale(name)
        reach = [(a.centre[k] - 4 * a.sigma[k], a.centre[k] + 4 * a.sigma[k]) for a in star.answers.values()]
        low, high = factor * min(r[0] for r in reach), factor * max(r[1] for r in reach)
        if name in ("extinction", "parallax"):
            low = max(low, 0.0)
        x, top = np.linspace(low, high, 400), 0.0
        for method, colour, line in ((FISHER, figures.BLUE, "-"), (LAPLACE, figures.ORANGE, "--")):
            centre, sigma = factor * star.answers[method].centre[k], factor * star.answers[method].sigma[k]
            if np.isfinite(sigma) and sigma > 0:
                axis.plot(x, norm.pdf(x, centre, sigma), line, color=colour, lw=1.5, label=method)
                top = max(top, float(norm.pdf(x, centre, sigma).max()))
        if star.draws is not None:
            counts, _, _ = axis.hist(
                factor * star.draws[:, k], 40, (low, high), density=True, color=figures.LIGHT, label=NUTS
            )
            top = max(top, float(np.max(counts)))
        drawn = [(method, a.quantiles[:, k]) for method, a in star.answers.items() if a.quantiles is not None]
        for j, (method, quantiles) in enumerate(drawn):
            y, (left, median, right) = -(0.09 + 0.09 * j) * top, factor * quantiles
            axis.plot([left, right], [y, y], color=figures.INK, lw=2.2)
            axis.plot(median, y, "os^"[j], color=figures.INK, ms=5, label=f"{method}, median and 16–84 %")
        if np.isfinite(measured[k]) and low <= factor * measured[k] <= high:
            axis.axvline(factor * measured[k], color=figures.GREY, lw=1.2, ls=":", label="measured")
        axis.set(xlabel=heading(name), yticks=[], xlim=(low, high), ylim=(-0.32 * top, 1.12 * top))
        axis.spines["left"].set_visible(False)
        axis.locator_params(axis="x", nbins=4)
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, fontsize=8.5)
    return figure


def neighbour_figure(star: RequestedStar, training: NDArray[np.float64]) -> "Figure":
    """The star, its neighbours and the training stars: second and third label against Teff.

    Args:
        star: the star.
        training: (star, label) labels of the training stars.
    """
    names = star.fit.label_names
    pairs = [[0, k] for k in sorted(range(1, len(names)), key=lambda k: names[k] != "logg")][:2]
    figure, axes = figures.panels(len(pairs), 1, 4.6 * len(pairs), 3.7)
    scale = np.array([figures.display_scale(n) for n in names])
    some = training[figures.thinned(len(training))] if len(training) else np.zeros((0, len(names)))
    error = star.answers[FISHER].sigma
    for axis, pair in zip(axes[0], pairs, strict=True):
        points, near, own, label, (width, height) = (
            (scale[pair] * values[..., pair]).T
            for values in (some, star.neighbours.estimate, star.fit.estimate, star.label, error)
        )
        if len(some):
            axis.plot(*points, ".", ms=1.6, color=figures.LIGHT, rasterized=True, label="training labels", zorder=1)
        axis.plot(*near, "o", ms=5, mfc="none", color=figures.BLUE, label="neighbours")
        axis.errorbar(*own, height, width, fmt="*", ms=11, color=figures.ORANGE, lw=1.2, label="this star", zorder=5)
        if np.isfinite(label).all():
            axis.plot(*label, "x", ms=8, mew=1.8, color=figures.INK, label="its label")
        axis.set(xlabel=heading(names[pair[0]]), ylabel=heading(names[pair[1]]))
        axis.invert_xaxis()
        if names[pair[1]] == "logg":
            axis.invert_yaxis()
    axes[0, 0].legend(fontsize=8, loc="best")
    return figure
