"""What a report says of single stars that its reader asked for.

In: catalogue, star table and model, and draws of `xpbayes sample` where there are some. Out: numbers, sentences, tables
and figures of every star: spectrum with fit and residuals, posterior beside Fisher and Laplace, neighbours in label space.
Nothing is refitted: every estimate is the catalogue's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.identity import Side, Split
from xpbayes.analysis.figures import drawing as figures
from xpbayes.analysis.pages.page import Table
from xpbayes.analysis.figures.spectra import spectrum_fit
from xpbayes.analysis.pages.star_page import (
    NOTABLE,
    StarFit,
    flag_sentences,
    parameter_text,
    parameter_unit,
    shown,
    star_fits,
)
from xpbayes.data.join import rows_of
from xpbayes.data.spectra import OK, Spectra
from xpbayes.production.table import CHAINS, WIDENED, list_column, text_column
from xpbayes.errors import InputError
from xpbayes.production.model_file import TrainedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_NEIGHBOURS = 8
MAX_K_HAT = 0.7
TYPICAL = ((4.8, -0.1, 2.5), (5.7, 0.0, 4.4))
"""Teff [kK], [Fe/H], log g of a red clump giant and of a Sun-like dwarf."""
FISHER, LAPLACE, POSTERIOR, NUTS = "mode + Fisher", "Laplace", "importance draws", "NUTS"


@dataclass(frozen=True)
class Answer:
    """What one method says of a star.

    Attributes:
        centre, sigma: (parameter,) mode or mean, and standard deviation.
        low, median, high: (parameter,) 16, 50 and 84 % quantiles; None where the method is a Gaussian.
    """

    centre: NDArray[np.float64]
    sigma: NDArray[np.float64]
    low: NDArray[np.float64] | None = None
    median: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Neighbours:
    """Stars of the catalogue whose inferred labels are nearest.

    Attributes:
        source_id: (neighbour,) Gaia DR3, nearest first.
        distance: (neighbour,) in units of the model's label scales.
        estimate: (neighbour, label) inferred.
        label: (neighbour, label) spectroscopic; NaN where unknown.
    """

    source_id: NDArray[np.int64]
    distance: NDArray[np.float64]
    estimate: NDArray[np.float64]
    label: NDArray[np.float64]


@dataclass(frozen=True)
class RequestedStar:
    """One star of the report.

    Attributes:
        fit: estimate, quality and spectrum.
        answers: by method.
        draws: (draw, parameter) of NUTS; None if there are none.
        label, label_error: (label,) spectroscopic; NaN where unknown.
        neighbours: in label space.
        training: (star, label) labels of the training stars that the table holds.
        remarks: sentences, the most important first.
    """

    fit: StarFit
    answers: dict[str, Answer]
    draws: NDArray[np.float64] | None
    label: NDArray[np.float64]
    label_error: NDArray[np.float64]
    neighbours: Neighbours
    training: NDArray[np.float64]
    remarks: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters."""
        return (*self.fit.label_names, "extinction", "parallax")

    @property
    def solved(self) -> bool:
        """Whether there is a solution."""
        return self.fit.status == OK


def typical_stars(catalogue: pa.Table, model: TrainedModel) -> list[int]:
    """Choose stars that show what a section looks like: a clean giant, a clean dwarf, one with a flag.

    Args:
        catalogue: all rows.
        model: what made it.

    Returns:
        source_ids, as many of the three as there are.
    """
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
            chosen.append(int(catalogue["gdr3_source_id"][int(np.argmin(np.where(allowed, distance, np.inf)))].as_py()))
    return list(dict.fromkeys(chosen))


def find_neighbours(
    source_id: int,
    labels: NDArray[np.float64],
    candidates: NDArray[np.int64],
    estimate: NDArray[np.float64],
    known: NDArray[np.float64],
    scale: NDArray[np.float64],
) -> Neighbours:
    """Find the stars whose inferred labels are nearest to one star's.

    Args:
        source_id: the star's; it is no neighbour of itself.
        labels: (label,) the star's inferred labels.
        candidates: (star,) source_ids.
        estimate: (star, label) their inferred labels.
        known: (star, label) their spectroscopic labels, NaN where unknown.
        scale: (label,) what counts as one unit of distance.
    """
    distance = np.sqrt(np.sum(((estimate - labels) / scale) ** 2, axis=1))
    distance = np.where((candidates == source_id) | ~np.isfinite(distance), np.inf, distance)
    order = np.argsort(distance, kind="stable")[:N_NEIGHBOURS]
    order = order[np.isfinite(distance[order])]
    return Neighbours(candidates[order], distance[order], estimate[order], known[order])


def read_draws(path: str | Path, model: TrainedModel) -> dict[int, NDArray[np.float64]]:
    """Draws of `xpbayes sample`.

    Args:
        path: netCDF file.
        model: that the draws must have been made with.

    Returns:
        (draw, parameter) by source_id.

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
    training: NDArray[np.float64],
    draws: dict[int, NDArray[np.float64]],
) -> list[RequestedStar]:
    """Collect what is known of some stars.

    Args:
        model: the trained model.
        catalogue: all rows.
        metadata: of the catalogue.
        stars: the star table that it was inferred from.
        source_ids: which stars.
        training: (star, label) labels of the training stars.
        draws: (draw, parameter) by source_id, as far as there are any.

    Raises:
        InputError: a star is not in the catalogue, or not in the star table.
    """
    wanted = list(dict.fromkeys(int(s) for s in source_ids))
    if not wanted:
        return []
    ids = catalogue["gdr3_source_id"].to_numpy()
    rows = _rows_of(ids, wanted, "the catalogue")
    part = stars.take(_rows_of(stars.source_id, wanted, "the star table"))
    picked = catalogue.take(pa.array(rows))
    fits = star_fits(
        model, part, picked, {}, parallax_used=bool(metadata.get("settings", {}).get("use_parallax", True))
    )

    n = len(model.labels)
    solved = np.flatnonzero(text_column(catalogue, "status") == OK)
    estimate = list_column(catalogue, "stellar_params_est")[solved][:, :n]
    at = rows_of(ids[solved], stars.source_id)
    known = np.where(at[:, None] >= 0, stars.labels(model.labels)[0][at], np.nan)
    scale = np.asarray(model.forward.label_scale, np.float64)
    label, label_error = (values.astype(np.float64) for values in part.labels(model.labels))
    answers = _answers(picked, n)
    split = Split.of(model.card) if model.card.get("split") else Split(0.0)
    on = {side: split.on(side, np.array(wanted)) for side in Side}
    found = []
    for i, fit in enumerate(fits):
        row = {name: picked[name][i].as_py() for name in picked.column_names}
        own = dict(answers[i])
        chains = draws.get(fit.source_id)
        if chains is not None:
            low, median, high = np.percentile(chains, [16, 50, 84], axis=0)
            own[NUTS] = Answer(chains.mean(axis=0), chains.std(axis=0), low, median, high)
        near = find_neighbours(fit.source_id, fit.estimate[:n], ids[solved], estimate, known, scale)
        found.append(
            RequestedStar(
                fit=_with_runner_up(fit, row, model, part, i),
                answers=own,
                draws=chains,
                label=label[i],
                label_error=label_error[i],
                neighbours=near,
                training=training,
                remarks=tuple(remarks(row, fit, next(side for side in Side if on[side][i]))),
            )
        )
    return found


def _rows_of(ids: NDArray[np.int64], wanted: Sequence[int], where: str) -> NDArray[np.int64]:
    rows = rows_of(np.asarray(wanted, np.int64), ids)
    missing = np.asarray(wanted)[rows < 0]
    if len(missing):
        raise InputError(
            f"{len(missing)} of {len(wanted)} requested stars are not in {where} (first: source_id {missing[0]}); check "
            f"--source-id"
        )
    return rows


def _answers(rows: pa.Table, n_labels: int) -> list[dict[str, Answer]]:
    """Per star, what the catalogue's columns say by method."""
    p = n_labels + 2
    diagonal = [k * p - k * (k - 1) // 2 for k in range(p)]
    mode, fisher = list_column(rows, "stellar_params_est"), list_column(rows, "stellar_params_err")
    with np.errstate(invalid="ignore"):
        laplace = np.sqrt(list_column(rows, "laplace_cov_triu")[:, diagonal])
    mean, std, low, median, high = (
        list_column(rows, f"stellar_params_{name}") for name in ("mean", "std", "p16", "median", "p84")
    )
    method = text_column(rows, "method")
    out = []
    for i in range(len(rows)):
        own = {FISHER: Answer(mode[i], fisher[i]), LAPLACE: Answer(mode[i], laplace[i])}
        if np.isfinite(mean[i]).all():
            name = "catalogue's NUTS" if method[i].removesuffix(WIDENED) == CHAINS else POSTERIOR
            own[name] = Answer(mean[i], std[i], low[i], median[i], high[i])
        out.append(own if np.isfinite(mode[i]).all() else {})
    return out


def _with_runner_up(fit: StarFit, row: dict[str, Any], model: TrainedModel, stars: Spectra, i: int) -> StarFit:
    """Add the spectrum of the catalogue's second optimum."""
    second, delta = row["runner_up_est"], row["runner_up_delta"]
    if second is None or delta is None or not np.isfinite(np.array(second, float)).all() or delta > NOTABLE:
        return fit
    return replace(fit, others=((float(delta), spectrum_fit(model, stars, i, np.array(second, float)).predicted),))


SIDES = {
    Side.TRAINING: "It is on the training side of the split.",
    Side.KEPT_ASIDE: "It was kept aside by source_id: training has not seen it, but posteriors were calibrated on it.",
    Side.HELD_OUT: "It was held out by source_id: training has not seen it.",
}


def remarks(row: dict[str, Any], fit: StarFit, side: Side) -> list[str]:
    """Say in sentences how far a star's row of the catalogue can be trusted.

    Args:
        row: the catalogue's columns by name.
        fit: the same star.
        side: it is on that side of the model's split.
    """
    if fit.status != OK:
        return [f"There is no solution: {fit.status}."]
    flags = flag_sentences(fit.flags)
    out = [f"Flagged: {text}." for text in flags] or ["No quality flag is set."]
    if not row["converged"]:
        out.append("The solver did not converge: treat every number below with care.")
    if not row["hessian_positive"]:
        out.append("The Hessian at the solution is not positive definite: error bars have no meaning there.")
    if row["n_modes"] > 1:
        out.append(
            f"{row['n_modes']} optima compete; the second is higher by {row['runner_up_delta']:.1f} in "
            "L = −2 ln posterior."
        )
    k_hat = row["k_hat"]
    if k_hat is not None and np.isfinite(k_hat):
        trust = "cannot be trusted" if k_hat > MAX_K_HAT else "can be trusted"
        out.append(f"The importance draws {trust}: k_hat is {k_hat:.2f}, the limit {MAX_K_HAT}.")
    if row["extrapolation"] is not None and np.isfinite(row["extrapolation"]):
        where = "outside" if row["extrapolation"] > 1 else "inside"
        out.append(f"Its labels lie {where} the training sample: extrapolation score {row['extrapolation']:.2f}.")
    for name, value in fit.confidence.items():
        if np.isfinite(value):
            out.append(f"Confidence in {parameter_text(name)}: {value:.2f}.")
    out.append(SIDES[side])
    return out


def headline(star: RequestedStar) -> str:
    """Labels in one line, for contents and headings."""
    if not star.solved:
        return star.fit.status
    return ", ".join(
        f"{parameter_text(n)} {shown(n, v)}{' K' if n == 'teff' else ''}"
        for n, v in zip(star.fit.label_names, star.fit.estimate, strict=False)
    )


def parameter_table(star: RequestedStar) -> Table:
    """Parameters by method, with the spectroscopic label and the measured parallax beside them."""
    rows = []
    measured = [*zip(star.label, star.label_error, strict=True), (np.nan, np.nan)]
    measured.append((star.fit.measured_parallax, star.fit.measured_parallax_error))
    for k, name in enumerate(star.names):
        unit = parameter_unit(name)
        cells = [f"{parameter_text(name)} [{unit}]" if unit else parameter_text(name)]
        for answer in star.answers.values():
            if answer.median is None or answer.low is None or answer.high is None:
                cells.append(f"{shown(name, answer.centre[k])} ± {shown(name, answer.sigma[k])}")
            else:
                up, down = answer.high[k] - answer.median[k], answer.median[k] - answer.low[k]
                cells.append(f"{shown(name, answer.median[k])} +{shown(name, up)} −{shown(name, down)}")
        value, error = measured[k]
        cells.append(f"{shown(name, value)} ± {shown(name, error)}" if np.isfinite(value) else "–")
        rows.append(cells)
    note = (
        "Mode with standard deviation for Fisher and Laplace; median with 16 and 84 % for draws, labels as calibrated on "
        "stars kept aside if the model was. Measured: the spectroscopic label, or Gaia's parallax"
    )
    used = "." if star.fit.parallax_used else ", which took no part."
    return Table(("parameter", *star.answers, "measured"), rows, 1, note + used)


def neighbour_table(star: RequestedStar) -> Table:
    """The neighbours with inferred and spectroscopic labels."""
    names = star.fit.label_names
    near = star.neighbours
    headings = ["source_id", "distance"]
    for name in names:
        headings += [parameter_text(name), f"{parameter_text(name)} label"]
    rows = []
    for i, source_id in enumerate(near.source_id.tolist()):
        cells = [str(source_id), f"{near.distance[i]:.2f}"]
        for k, name in enumerate(names):
            cells += [shown(name, near.estimate[i, k]), shown(name, near.label[i, k])]
        rows.append(cells)
    caption = (
        f"The {len(rows)} stars of the catalogue whose inferred labels are nearest, with their spectroscopic labels where "
        "known (Teff in K); distance in units of the training labels' half width from 16 to 84 %."
    )
    return Table(headings, rows, 1, caption)


def posterior_figure(star: RequestedStar) -> "Figure":
    """One panel per parameter: Fisher and Laplace as Gaussians, draws as a bar or a histogram, the label as a line."""
    names = star.names
    columns = 3
    rows = -(-len(names) // columns)
    figure, axes = figures.panels(columns, rows, 9.0, 2.5 * rows)
    for axis in axes.flat[len(names) :]:
        axis.remove()
    measured = np.append(star.label, [np.nan, star.fit.measured_parallax])
    for k, (axis, name) in enumerate(zip(axes.flat, names, strict=False)):
        factor = figures.display_scale(name)
        spans = [(a.centre[k] - 4 * a.sigma[k], a.centre[k] + 4 * a.sigma[k]) for a in star.answers.values()]
        low, high = min(s[0] for s in spans), max(s[1] for s in spans)
        if name in ("extinction", "parallax"):
            low = max(low, 0.0)
        x = np.linspace(low, high, 400)
        top = 0.0
        for method, colour, line in ((FISHER, figures.BLUE, "-"), (LAPLACE, figures.ORANGE, "--")):
            answer = star.answers[method]
            if not np.isfinite(answer.sigma[k]) or answer.sigma[k] <= 0:
                continue
            density = np.exp(-0.5 * ((x - answer.centre[k]) / answer.sigma[k]) ** 2) / (
                answer.sigma[k] * factor * np.sqrt(2 * np.pi)
            )
            axis.plot(factor * x, density, line, color=colour, lw=1.5, label=method)
            top = max(top, float(density.max()))
        if star.draws is not None:
            counts, _, _ = axis.hist(
                factor * star.draws[:, k],
                40,
                (factor * low, factor * high),
                density=True,
                color=figures.LIGHT,
                label=NUTS,
            )
            top = max(top, float(np.max(counts)))
        for j, (method, answer) in enumerate(a for a in star.answers.items() if a[1].median is not None):
            assert answer.low is not None and answer.median is not None and answer.high is not None
            y = -(0.09 + 0.09 * j) * top
            axis.plot(factor * np.array([answer.low[k], answer.high[k]]), [y, y], color=figures.INK, lw=2.2)
            axis.plot(
                factor * answer.median[k], y, "os"[j], color=figures.INK, ms=5, label=f"{method}, median and 16–84 %"
            )
        if np.isfinite(measured[k]) and low <= measured[k] <= high:
            axis.axvline(factor * measured[k], color=figures.GREY, lw=1.2, ls=":", label="measured")
        unit = parameter_unit(name)
        axis.set(xlabel=f"{parameter_text(name)} [{unit}]" if unit else parameter_text(name), yticks=[])
        axis.set(xlim=(factor * low, factor * high), ylim=(-0.32 * top, 1.12 * top))
        axis.spines["left"].set_visible(False)
        axis.locator_params(axis="x", nbins=4)
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, fontsize=8.5)
    return figure


def neighbour_figure(star: RequestedStar) -> "Figure":
    """The star, its neighbours and the training stars: second and third label against Teff."""
    names = star.fit.label_names
    pairs = [(0, k) for k in sorted(range(1, len(names)), key=lambda k: names[k] != "logg")][:2]
    figure, axes = figures.panels(len(pairs), 1, 4.6 * len(pairs), 3.7)
    scale = [figures.display_scale(n) for n in names]
    training = star.training[figures.thinned(len(star.training))] if len(star.training) else star.training
    error = star.answers[FISHER].sigma
    for axis, (i, k) in zip(axes[0], pairs, strict=True):
        if len(training):
            axis.plot(
                scale[i] * training[:, i], scale[k] * training[:, k], ".", ms=1.6, color=figures.LIGHT, rasterized=True,
                label="training labels", zorder=1,
            )  # fmt: skip
        near = star.neighbours.estimate
        axis.plot(
            scale[i] * near[:, i], scale[k] * near[:, k], "o", ms=5, mfc="none", color=figures.BLUE, label="neighbours"
        )
        axis.errorbar(
            scale[i] * star.fit.estimate[i], scale[k] * star.fit.estimate[k], scale[k] * error[k], scale[i] * error[i],
            fmt="*", ms=11, color=figures.ORANGE, lw=1.2, label="this star", zorder=5,
        )  # fmt: skip
        if np.isfinite(star.label[[i, k]]).all():
            axis.plot(
                scale[i] * star.label[i],
                scale[k] * star.label[k],
                "x",
                ms=8,
                mew=1.8,
                color=figures.INK,
                label="its label",
            )
        units = [parameter_unit(names[j]) for j in (i, k)]
        texts = [
            f"{parameter_text(names[j])} [{u}]" if u else parameter_text(names[j])
            for j, u in zip((i, k), units, strict=True)
        ]
        axis.set(xlabel=texts[0], ylabel=texts[1])
        axis.invert_xaxis()
        if names[k] == "logg":
            axis.invert_yaxis()
    axes[0, 0].legend(fontsize=8, loc="best")
    return figure
