"""What a report says of single stars that its reader asked for, and a section of each: tables and figures.

In: catalogue, star table and model, and draws of `xpbayes sample` where there are some. Nothing is refitted: every estimate
is the catalogue's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import norm

from xpbayes.analysis.figures import drawing as figures
from xpbayes.analysis.figures.spectra import spectrum_fit
from xpbayes.analysis.pages.numbers import MISSING, heading, number, text
from xpbayes.analysis.pages.page import Aside, Part, Picture, Points, Section, Table
from xpbayes.analysis.pages.star_page import NOTABLE, StarFit, flag_sentences, star_figure, star_fits
from xpbayes.archive.cells import source_ids as exact_ids
from xpbayes.data.join import Lookup
from xpbayes.data.spectra import OK, Spectra
from xpbayes.errors import InputError
from xpbayes.identity import Side, Split
from xpbayes.production.flat import diagonal, recommended
from xpbayes.production.model_file import TrainedModel
from xpbayes.production.table import CHAINS, WIDENED, list_column, text_column

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 130
N_NEIGHBOURS = 8
MAX_K_HAT = 0.7
TYPICAL = ((4.8, -0.1, 2.5), (5.7, 0.0, 4.4))
"""Teff [kK], [Fe/H], log g of a red clump giant and of a Sun-like dwarf."""
SIDES = {
    Side.TRAINING: "It is on the training side of the split.",
    Side.KEPT_ASIDE: "It was kept aside by source_id: training has not seen it, but posteriors were calibrated on it.",
    Side.HELD_OUT: "It was held out by source_id: training has not seen it.",
}
FISHER, LAPLACE, POSTERIOR, NUTS = "mode + Fisher (ZGR23)", "Laplace", "importance draws", "NUTS"
REFINED = "refined labels"
"""With a second stage, the recommended values; else those of the draws are."""


@dataclass(frozen=True)
class Answer:
    """What one method says of a star: (parameter,) mode or mean, and standard deviation."""

    centre: NDArray[np.float64]
    sigma: NDArray[np.float64]
    quantiles: NDArray[np.float64] | None = None  # (3, parameter) 16, 50 and 84 %; None where the method is a Gaussian


@dataclass(frozen=True)
class Neighbours:
    """Stars of the catalogue whose inferred labels are nearest."""

    source_id: NDArray[np.int64]  # (neighbour,) nearest first
    distance: NDArray[np.float64]  # (neighbour,) in units of the model's label scales
    estimate: NDArray[np.float64]  # (neighbour, label) inferred
    label: NDArray[np.float64]  # (neighbour, label) spectroscopic; NaN where unknown


@dataclass(frozen=True)
class RequestedStar:
    """One star of the report."""

    fit: StarFit  # estimate, quality and spectrum
    answers: dict[str, Answer]  # by method
    draws: NDArray[np.float64] | None  # (draw, parameter) of NUTS; None if there are none
    label: NDArray[np.float64]  # (label,) spectroscopic; NaN where unknown
    label_error: NDArray[np.float64]  # (label,)
    neighbours: Neighbours
    remarks: tuple[str, ...]  # sentences, the most important first


def typical_stars(catalogue: pa.Table, model: TrainedModel) -> list[int]:
    """Choose stars that show what a section looks like: source_ids of a clean giant, a clean dwarf and one with a flag."""
    estimate = list_column(catalogue, "stellar_params_est")[:, : len(TYPICAL[0])]
    flags, k_hat = catalogue["quality_flags"].to_numpy(), catalogue["k_hat"].to_numpy(zero_copy_only=False)
    solved = np.isfinite(estimate).all(axis=1)
    single = catalogue["n_modes"].to_numpy(zero_copy_only=False) == 1
    clean = solved & (flags == 0) & single & ~(k_hat > MAX_K_HAT)
    scale = np.asarray(model.forward.label_scale, np.float64)[: estimate.shape[1]]
    chosen: list[int] = []
    for labels, allowed in ((TYPICAL[0], clean), (TYPICAL[1], clean), (TYPICAL[0], solved & (flags > 0))):
        distance = np.sum(((estimate - np.asarray(labels)[: estimate.shape[1]]) / scale) ** 2, axis=1)
        if allowed.any():
            chosen.append(int(catalogue["source_id"][int(np.argmin(np.where(allowed, distance, np.inf)))].as_py()))
    return list(dict.fromkeys(chosen))


def find_neighbours(
    source_id: int,
    labels: NDArray[np.float64],
    candidates: NDArray[np.int64],
    estimate: NDArray[np.float64],
    known: NDArray[np.float64],
    scale: NDArray[np.float64],
) -> Neighbours:
    """Find the candidates whose inferred labels are nearest to one star's, which is no neighbour of itself.

    Estimates of candidates are inferred labels, those known spectroscopic ones; `scale` is (label,) one unit of distance.
    """
    distance = np.sqrt(np.sum(((estimate - labels) / scale) ** 2, axis=1))
    distance = np.where((candidates == source_id) | ~np.isfinite(distance), np.inf, distance)
    order = np.argsort(distance, kind="stable")[:N_NEIGHBOURS]
    order = order[np.isfinite(distance[order])]
    return Neighbours(candidates[order], distance[order], estimate[order], known[order])


def read_draws(path: str | Path, model: TrainedModel) -> dict[int, NDArray[np.float64]]:
    """(draw, parameter) draws by source_id, of a netCDF file of `xpbayes sample`.

    Raises:
        InputError: the file holds no draws, or those of another model.
    """
    from xpbayes.analysis.posterior_file import parameter_names, read_posterior

    posterior = read_posterior(path).posterior
    names = parameter_names(model.labels)
    missing = [n for n in names if n not in posterior]
    if missing or posterior.attrs.get("model") != str(model.card.get("arrays_checksum")):
        raise InputError(f"{path}: was drawn with another model; sample with the model of the report")
    values = np.stack([posterior[n].values for n in names], axis=-1).astype(np.float64)  # chain, draw, star, parameter
    values = np.moveaxis(values, 2, 0).reshape(values.shape[2], -1, len(names))
    return dict(zip((int(s) for s in posterior["source_id"].values), values, strict=True))


def requested_stars(
    model: TrainedModel,
    catalogue: pa.Table,
    metadata: dict[str, Any],
    stars: Spectra,
    source_ids: Sequence[int],
    draws: dict[int, NDArray[np.float64]],
) -> list[RequestedStar]:
    """Collect what is known of some stars of a catalogue and the star table that it was inferred from.

    Draws are (draw, parameter) by source_id, as far as there are any.

    Raises:
        InputError: a star is not in the catalogue, or not in the star table.
    """
    wanted = exact_ids(source_ids, "the stars asked for")
    if not wanted:
        return []
    ids = catalogue["source_id"].to_numpy()
    picked = catalogue.take(pa.array(_rows_of(Lookup.of(ids), wanted, "the catalogue")))
    in_table = Lookup.of(stars.source_id)
    part = stars.take(_rows_of(in_table, wanted, "the star table"))
    used = bool(metadata.get("settings", {}).get("use_parallax", True))
    fits = star_fits(model, part, picked, {}, parallax_used=used)

    n = len(model.labels)
    solved = np.flatnonzero(text_column(catalogue, "status") == OK)
    estimate = list_column(catalogue, "stellar_params_est")[solved][:, :n]
    at = in_table.rows(ids[solved])
    known = np.where(at[:, None] >= 0, stars.labels(model.labels)[0].astype(np.float64)[at], np.nan)
    scale = np.asarray(model.forward.label_scale, np.float64)
    label, label_error = (values.astype(np.float64) for values in part.labels(model.labels))
    answers = _answers(picked, n)
    split = Split.of(model.card) if model.card.get("split") else Split(0.0)
    on = {side: split.on(side, np.array(wanted)) for side in Side}
    found = []
    for i, (fit, row) in enumerate(zip(fits, picked.to_pylist(), strict=True)):
        own = dict(answers[i])
        chains = draws.get(fit.source_id)
        if chains is not None:
            own[NUTS] = Answer(chains.mean(axis=0), chains.std(axis=0), np.percentile(chains, [16, 50, 84], axis=0))
        near = find_neighbours(fit.source_id, fit.estimate[:n], ids[solved], estimate, known, scale)
        found.append(
            RequestedStar(
                fit=_with_runner_up(fit, row, model, part, i),
                answers=own,
                draws=chains,
                label=label[i],
                label_error=label_error[i],
                neighbours=near,
                remarks=tuple(remarks(row, fit, next(side for side in Side if on[side][i]))),
            )
        )
    return found


def _rows_of(known: Lookup, wanted: Sequence[int], where: str) -> NDArray[np.signedinteger]:
    rows = known.rows(np.array(wanted, np.int64))
    if (rows < 0).any():
        raise InputError(
            f"{(rows < 0).sum()} of {len(wanted)} requested stars are not in {where} (first: source_id "
            f"{wanted[int(np.argmax(rows < 0))]}); check --source-id"
        )
    return rows


def _answers(rows: pa.Table, n_labels: int) -> list[dict[str, Answer]]:
    """Per star, what the catalogue's columns say by method."""
    p = n_labels + 2
    mode, fisher = list_column(rows, "stellar_params_est"), list_column(rows, "stellar_params_err")
    with np.errstate(invalid="ignore"):
        laplace = np.sqrt(diagonal(list_column(rows, "laplace_cov_triu"), p))
    mean, std, low, median, high = (
        list_column(rows, f"stellar_params_{name}") for name in ("mean", "std", "p16", "median", "p84")
    )
    method = text_column(rows, "method")
    best, is_refined = recommended(rows), "refined_median" in rows.column_names
    out = []
    for i in range(len(rows)):
        own: dict[str, Answer] = {}
        if is_refined:
            quantiles = np.stack([best.low[i], best.value[i], best.high[i]])
            own[REFINED] = Answer(best.value[i], best.error[i], quantiles)
        if np.isfinite(mean[i]).all():
            name = "catalogue's NUTS" if method[i].removesuffix(WIDENED) == CHAINS else POSTERIOR
            own[name] = Answer(mean[i], std[i], np.stack([low[i], median[i], high[i]]))
        own |= {LAPLACE: Answer(mode[i], laplace[i]), FISHER: Answer(mode[i], fisher[i])}
        out.append(own if np.isfinite(mode[i]).all() else {})
    return out


def _with_runner_up(fit: StarFit, row: dict[str, Any], model: TrainedModel, stars: Spectra, i: int) -> StarFit:
    """Add the spectrum of the catalogue's second optimum."""
    second, delta = row["runner_up_est"], row["runner_up_delta"]
    if second is None or delta is None or not np.isfinite(np.array(second, float)).all() or delta > NOTABLE:
        return fit
    there = spectrum_fit(model, stars, i, np.array(second, float))
    return replace(fit, others=((float(delta), there.predicted),))


def remarks(row: dict[str, Any], fit: StarFit, side: Side) -> list[str]:
    """Say in sentences how far a star, on that side of the model's split, can be trusted, given its row by column."""
    if not fit.solved:
        return [f"There is no solution: {fit.status}."]
    out = [f"Flagged: {sentence}." for sentence in flag_sentences(fit.flags)] or ["No quality flag is set."]
    if not row["converged"]:
        out.append("The solver did not converge: treat every number below with care.")
    if not row["hessian_positive"]:
        out.append("The Hessian at the solution is not positive definite: error bars have no meaning there.")
    if row["n_modes"] > 1:
        by = f"the second is higher by {row['runner_up_delta']:.1f} in L = −2 ln posterior"
        out.append(f"{row['n_modes']} optima compete; {by}.")
    k_hat = row["k_hat"]
    if k_hat is not None and np.isfinite(k_hat):
        trust = "cannot be trusted" if k_hat > MAX_K_HAT else "can be trusted"
        out.append(f"The importance draws {trust}: k_hat is {k_hat:.2f}, the limit {MAX_K_HAT}.")
    if row["extrapolation"] is not None and np.isfinite(row["extrapolation"]):
        where = "outside" if row["extrapolation"] > 1 else "inside"
        out.append(f"It lies {where} the training sample: extrapolation score {row['extrapolation']:.2f}.")
    for name, value in fit.confidence.items():
        if np.isfinite(value):
            out.append(f"Confidence in {text(name)}: {value:.2f}.")
    out.append(SIDES[side])
    return out


def star_section(star: RequestedStar, training: NDArray[np.float64]) -> Section:
    """Everything about one star, among the (star, label) labels of the training stars that the table holds."""
    fit, name, key = star.fit, star.fit.title, f"star-{star.fit.source_id}"
    first: list[Part] = [headline(star), Points([("", remark) for remark in star.remarks])]
    if not star.fit.solved:
        return Section(name, first, key)
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
    return Section(name, [*first, parameter_table(star), Aside(fit.quality), *sections, *near], key)


def headline(star: RequestedStar) -> str:
    """Labels in one line, for contents and headings."""
    if not star.fit.solved:
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
    for k, name in enumerate(star.fit.names):
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
    names = star.fit.names
    figure, axes = figures.grid(len(names), 3, 3.0, 2.5)
    measured = np.append(star.label, [np.nan, star.fit.measured_parallax])
    for k, (axis, name) in enumerate(zip(axes, names, strict=True)):
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
                factor * star.draws[:, k], bins=40, range=(low, high), density=True, color=figures.LIGHT, label=NUTS
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
    """The star, its neighbours and the (star, label) training stars: second and third label against Teff."""
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
