"""What a report says of single stars that its reader asked for.

In: catalogue, star table and model, and draws of `xpbayes sample` where there are some. Out: numbers and sentences of every
star, which `star_section` draws. Nothing is refitted: every estimate is the catalogue's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.analysis.figures.spectra import spectrum_fit
from xpbayes.analysis.pages.numbers import text
from xpbayes.analysis.pages.star_page import NOTABLE, StarFit, flag_sentences, star_fits
from xpbayes.archive.cells import source_ids as exact_ids
from xpbayes.data.join import Lookup
from xpbayes.data.spectra import OK, Spectra
from xpbayes.errors import InputError
from xpbayes.identity import Side, Split
from xpbayes.production.flat import diagonal, recommended
from xpbayes.production.model_file import TrainedModel
from xpbayes.production.table import CHAINS, WIDENED, list_column, text_column

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
    """What one method says of a star.

    Attributes:
        centre, sigma: (parameter,) mode or mean, and standard deviation.
        quantiles: (3, parameter) 16, 50 and 84 %; None where the method is a Gaussian.
    """

    centre: NDArray[np.float64]
    sigma: NDArray[np.float64]
    quantiles: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Neighbours:
    """Stars of the catalogue whose inferred labels are nearest.

    Attributes:
        source_id: (neighbour,) nearest first.
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
        remarks: sentences, the most important first.
    """

    fit: StarFit
    answers: dict[str, Answer]
    draws: NDArray[np.float64] | None
    label: NDArray[np.float64]
    label_error: NDArray[np.float64]
    neighbours: Neighbours
    remarks: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters."""
        return self.fit.names

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
    draws: dict[int, NDArray[np.float64]],
) -> list[RequestedStar]:
    """Collect what is known of some stars.

    Args:
        model: the trained model.
        catalogue: all rows.
        metadata: of the catalogue.
        stars: the star table that it was inferred from.
        source_ids: which stars.
        draws: (draw, parameter) by source_id, as far as there are any.

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
    for i, fit in enumerate(fits):
        row = {name: picked[name][i].as_py() for name in picked.column_names}
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
    return replace(
        fit,
        others=(
            (
                float(delta),
                spectrum_fit(model, stars, i, np.array(second, float)).predicted,
            ),
        ),
    )


def remarks(row: dict[str, Any], fit: StarFit, side: Side) -> list[str]:
    """Say in sentences how far a star's row of the catalogue can be trusted.

    Args:
        row: the catalogue's columns by name.
        fit: the same star.
        side: it is on that side of the model's split.
    """
    if fit.status != OK:
        return [f"There is no solution: {fit.status}."]
    out = [f"Flagged: {sentence}." for sentence in flag_sentences(fit.flags)] or ["No quality flag is set."]
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
        out.append(f"It lies {where} the training sample: extrapolation score {row['extrapolation']:.2f}.")
    for name, value in fit.confidence.items():
        if np.isfinite(value):
            out.append(f"Confidence in {text(name)}: {value:.2f}.")
    out.append(SIDES[side])
    return out
