"""From inference results to catalogue rows: ZGR23 Table 2's columns and flags, one row per star without exception.

A star that could not be solved has null parameters, the flag POOR_FIT and a sentence in `status`.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.data.parquet import metadata_of, plain_text, read_parquet, read_together, write_parquet
from xpbayes.data.spectra import OK, Spectra
from xpbayes.errors import InputError
from xpbayes.inference.fit import CurvePosteriors, Posteriors
from xpbayes.inference.linear_algebra import upper_triangle
from xpbayes.models.extinction import ReddeningLaw
from xpbayes.production.flags import Parallaxes, Scores, paper_flags, quality_flags
from xpbayes.production.manifest import catalogue_metadata
from xpbayes.refinement.adjusting import Refined
from xpbayes.refinement.refined import forward_gaussian
from xpbayes.release import DEFAULT_RELEASE
from xpbayes.schema import (
    BINARY_COLUMNS,
    CATALOGUE_VERSION,
    FORMER_ID,
    arrow_schema,
    astropy_metadata,
    catalogue_columns,
    columns_of,
)

MODE, DRAWS, CHAINS = "mode+laplace", "mode+laplace+importance", "mode+laplace+nuts"
"""What `method` says: how far up the ladder of approximations a star was taken."""
WIDENED = "+model"
"""What follows where errors contain what training leaves unknown of the model."""
UNSEEN = 30.0
"""Extinction behind which no XP spectrum shows a star [mag]: modes beyond are of fluxes that say nothing."""


def catalogue_rows(  # noqa: PLR0913 - what a row is made from
    table: Spectra,
    status: NDArray[np.str_],
    inferred: Posteriors,
    ln_threshold: float,
    *,
    use_parallax: bool,
    by_chains: NDArray[np.bool_] | None = None,
    added: NDArray[np.float64] | None = None,
    scores: Scores = Scores(),  # noqa: B008 - immutable
    law: ReddeningLaw | None = None,
) -> dict[str, Any]:
    """Build the columns of the catalogue as NumPy arrays, one row per star of the table, usable or not.

    Args:
        table: all stars.
        status: (star,) 'ok' or the reason why a star was not solved.
        inferred: results of the 'ok' stars, in order; so are the further ones.
        ln_threshold: the model's threshold on ln_prior.
        use_parallax: whether the fit used the measured parallax.
        by_chains: whose summaries are from Markov chains; none if None.
        added: (star, parameter, parameter) what the results contain because the model is uncertain, NaN where nothing;
            None leaves out the columns that tell.
        scores: how far they can be trusted.
        law: the model's R(V) along xi.
    """
    n, n_parameters = len(table), inferred.estimate.shape[1]
    finite: NDArray[np.bool_] = np.logical_and(
        np.isfinite(inferred.estimate).all(axis=1), np.isfinite(inferred.covariance).all(axis=(1, 2))
    )
    tried, reason = np.flatnonzero(status == OK), status.astype("U64").copy()
    unbounded: NDArray[np.bool_] = inferred.estimate[:, -2] > UNSEEN
    has_errors = have_errors(*(np.diagonal(of, axis1=1, axis2=2) for of in (inferred.covariance, inferred.laplace)))
    reason[tried[~has_errors]] = "an error of its parameters is 0 or not finite"
    reason[tried[unbounded]] = "the fluxes bound neither extinction nor parallax"
    reason[tried[~finite]] = "solver met a non-finite value"
    solved = finite & has_errors & ~unbounded
    spread = partial(_spread, n, tried[solved], solved)
    estimate, covariance, chi2, ln_prior, laplace, median, low, high = (
        spread(getattr(inferred, name))
        for name in ("estimate", "covariance", "chi2", "ln_prior", "laplace", "median", "low", "high")
    )
    with np.errstate(invalid="ignore"):
        parallax_error = np.sqrt(laplace[:, -1, -1])
    parallaxes = Parallaxes(
        estimate[:, -1], parallax_error, median[:, -1], low[:, -1], high[:, -1],
        table.column("parallax"), table.column("parallax_error"),
    )  # fmt: skip
    of_paper = paper_flags(chi2, ln_prior, ln_threshold, parallaxes)
    unknown = np.full((len(tried), 1 + n_parameters), np.nan, np.float32)
    each = (scores.fit_quality, scores.extrapolation, inferred.spurious)
    quality, beyond, spurious = (spread(unknown[:, 0] if of is None else of) for of in each)
    trust = spread(unknown if scores.trust is None else scores.trust)
    measured = table.is_measured("parallax") & use_parallax
    n_obs = table.channel_present().sum(axis=1)
    nothing = np.full(n, np.nan, np.float32)
    # Of any length: NumPy would cut longer names.
    method = np.where(np.isnan(inferred.k_hat), MODE, DRAWS).astype(object)
    if by_chains is not None:
        method[by_chains] = CHAINS
    if added is not None:
        method[np.isfinite(added).all(axis=(1, 2))] += WIDENED
    rows = {
        "source_id": table.source_id,
        "ra": table.column("ra"),
        "dec": table.column("dec"),
        "stellar_params_est": estimate,
        "stellar_params_err": np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)).astype(np.float32),
        "chi2_opt": chi2,
        "ln_prior": ln_prior,
        "teff_confidence": nothing,
        "feh_confidence": nothing,
        "logg_confidence": nothing,
        "quality_flags": quality_flags(of_paper, parallaxes, quality, beyond, spurious),
        "zgr23_flags": of_paper,
        "fit_quality": quality,
        "stellar_params_icov_triu": upper_triangle(spread(inferred.fisher)),
        "stellar_params_cov_triu": upper_triangle(covariance),
        "laplace_cov_triu": upper_triangle(laplace),
        "stellar_params_mean": spread(inferred.mean),
        "stellar_params_std": spread(inferred.std),
        "stellar_params_median": median,
        "stellar_params_p16": low,
        "stellar_params_p84": high,
        "e_unbounded": spread(inferred.unbounded[:, 0]),
        "e_unbounded_err": spread(inferred.unbounded[:, 1]),
        "k_hat": spread(inferred.k_hat),
        "n_effective": spread(inferred.n_effective),
        "n_modes": spread(inferred.n_modes),
        "runner_up_est": spread(inferred.runner_up),
        "runner_up_delta": spread(inferred.runner_up_delta),
        "extrapolation": beyond,
        "p_spurious_parallax": spurious,
        "p_outside_model": trust[:, 0],
        "reliability": trust[:, 1:],
        "n_obs": n_obs,
        "dof": n_obs + measured - n_parameters,
        "converged": spread(inferred.converged),
        "n_iterations": spread(inferred.n_iterations),
        "newton_decrement": spread(inferred.decrement),
        "hessian_positive": spread(inferred.hessian_positive),
        "method": spread(method),
        "status": reason,
    }
    if inferred.curve is not None:
        rows |= {name: spread(values) for name, values in _curve_values(inferred, inferred.curve, law).items()}
    if inferred.pair is not None:
        rows |= {name: spread(of) for name, of in zip(BINARY_COLUMNS, inferred.pair, strict=True)}
    if added is not None:
        model_covariance = spread(added)
        rows["model_cov_triu"] = upper_triangle(model_covariance)
        rows["stellar_params_model_err"] = np.sqrt(np.diagonal(model_covariance, axis1=1, axis2=2))
    return rows


def have_errors(*errors: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(star,) whose (star, parameter) errors, or their squares, are above 0 and finite as the catalogue has them."""
    with np.errstate(over="ignore"):
        single = [error.astype(np.float32) for error in errors]
    return np.logical_and.reduce([((error > 0) & np.isfinite(error)).all(axis=1) for error in single])


NOTHING = {"f": np.nan, "i": 0, "b": False, "O": "none"}
"""What a star without a solution has, by the kind of a column's NumPy type."""


def _spread(n: int, solved: NDArray[np.intp], finite: NDArray[np.bool_], values: NDArray[Any]) -> NDArray[Any]:
    """(n, ...) of all stars, from the values of those that were tried: of these the finite ones are the solved ones."""
    out = np.full((n, *values.shape[1:]), NOTHING[values.dtype.kind], dtype=values.dtype)
    out[solved] = values[finite]
    return out


def _curve_values(inferred: Posteriors, curve: CurvePosteriors, law: ReddeningLaw | None) -> dict[str, NDArray[Any]]:
    """Columns of xi, of the stars that were tried; R(V) is null where xi is hardly known, or no law tells."""
    xi = np.where(np.isfinite(curve.median), curve.median, curve.estimate)
    error = np.where(np.isfinite(curve.std), curve.std, curve.error)
    nothing = np.full(len(xi), np.nan)
    r_v, r_v_error = law.measured_r_v(xi, error) if law is not None else (nothing, nothing)
    sigma = np.sqrt(np.diagonal(inferred.laplace, axis1=1, axis2=2))
    return {
        "xi": curve.estimate,
        "xi_err": curve.error,
        "xi_mean": curve.mean,
        "xi_std": curve.std,
        "xi_median": curve.median,
        "xi_p16": curve.low,
        "xi_p84": curve.high,
        "xi_cov": curve.correlation * curve.error[:, None] * sigma,
        "r_v": r_v,
        "r_v_err": r_v_error,
    }


def refined_rows(
    refined: Refined, published: Posteriors, status: NDArray[np.str_], solved: NDArray[np.bool_]
) -> dict[str, Any]:
    """Columns of the second stage, one row per star of the table; null for whoever has no solution.

    Refined labels and forward posteriors as published are of the stars that were tried, whose (star,) status is 'ok';
    `solved` says which have a solution.
    """
    center, covariance = forward_gaussian(published, refined.median.shape[1])
    move = (refined.median - center) / np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    values: dict[str, NDArray[Any]] = {
        "median": refined.median,
        "p16": refined.low,
        "p84": refined.high,
        "std": refined.std,
        "cov_triu": upper_triangle(refined.covariance),
        "move": move,
        "share": refined.share,
    }
    spread = partial(_spread, len(status), np.flatnonzero(solved), solved[status == OK])
    return {f"refined_{name}": spread(of) for name, of in values.items()}


def to_arrow(rows: dict[str, Any], n_labels: int, release: str = DEFAULT_RELEASE.name) -> pa.Table:
    """Give `catalogue_rows`' rows their types, units and descriptions; `release` names the stars' data release."""
    columns = catalogue_columns(
        n_labels,
        model_uncertainty="model_cov_triu" in rows,
        refined="refined_median" in rows,
        curve="xi" in rows,
        binaries="ln_odds_binary" in rows,
        release=release,
    )
    ids = rows["source_id"]
    rows = {**rows, FORMER_ID: ids, "release": np.full(len(ids), release)}
    arrays = []
    for column in columns:
        values = rows[column.name]
        if pa.types.is_fixed_size_list(column.type):
            flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1), from_pandas=True)
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, column.type.list_size))
        elif pa.types.is_string(column.type):
            arrays.append(pa.array(values.tolist(), type=column.type))
        else:
            arrays.append(pa.array(values, from_pandas=True).cast(column.type))
    return pa.Table.from_arrays(arrays, schema=arrow_schema(columns, {}))


def describe(catalogue: pa.Table, about: dict[str, Any]) -> pa.Table:
    """Attach to a catalogue what produced it, in JSON-ready words: model, input, settings."""
    text = json.dumps({"kind": "catalogue", "version": CATALOGUE_VERSION, **about})
    return catalogue.replace_schema_metadata({"xpbayes": text, **astropy_metadata(catalogue.schema)})


def write_catalogue(catalogue: pa.Table, path: str | Path) -> Path:
    """Write a catalogue to one Parquet file."""
    write_parquet(catalogue, Path(path))
    return Path(path)


def read_catalogue(path: str | Path) -> pa.Table:
    """Read a catalogue, a file or a folder of parts, as `infer` returns it; `catalogue_about` tells how it was made.

    Raises:
        InputError: not a catalogue, not finished, damaged, or lacking a column.
    """
    if Path(path).is_dir():
        from xpbayes.production.reader import open_catalogue

        catalogue = open_catalogue(path)
        return describe(read_together(catalogue.files, _read_file, "infer it again"), catalogue.about)
    return _read_file(Path(path))


def _read_file(path: Path) -> pa.Table:
    metadata = catalogue_metadata(path)
    table = plain_text(read_parquet(path, advice="infer it again"))
    missing = [c.name for c in columns_of(metadata) if c.required and c.name not in table.column_names]
    if missing:
        raise InputError(f"{path}: {len(missing)} columns are missing (first: {missing[0]}); infer it again")
    if "source_id" not in table.column_names:
        table = table.append_column("source_id", table[FORMER_ID])
    return table


def catalogue_about(catalogue: pa.Table) -> dict[str, Any]:
    """What a catalogue in memory was made with: model, settings, input; of one in parts, counts of its manifest too."""
    return metadata_of(catalogue.schema, "the catalogue")


def text_column(table: pa.Table, name: str) -> NDArray[np.str_]:
    """(row,) values of a text column."""
    return table[name].combine_chunks().cast(pa.string()).to_numpy(zero_copy_only=False)


def list_column(table: pa.Table, name: str) -> NDArray[np.float64]:
    """(row, item) values of a column of lists of one size, or of a scalar one as a single item; NaN where null."""
    column = table[name].combine_chunks()
    items = items_of(column) if pa.types.is_nested(column.type) else column
    width = column.type.list_size if pa.types.is_fixed_size_list(column.type) else len(items) // max(len(column), 1)
    return items.to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(column), width)


def items_of(column: pa.Array) -> pa.Array:
    """Items of all rows of a column of lists; of a fixed-size one those of null rows too, which `flatten` leaves out."""
    if not pa.types.is_fixed_size_list(column.type):
        return column.flatten()
    size = column.type.list_size
    return column.values.slice(column.offset * size, len(column) * size)
