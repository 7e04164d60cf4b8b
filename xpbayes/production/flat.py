"""A catalogue as people use one: one number a column, in K, dex, mag and mas, the recommended value of a parameter first.

The recommended value is the median of the posterior with its 16 and 84 % quantiles: refined where the model has a second
stage, else as calibrated on stars that training kept aside; where no draws were asked for, or a star has none, it is the
mode with its Laplace error. What ZGR23 publish, modes with Fisher errors, follows as ``teff_mode`` and ``teff_mode_err``.
This is the only place that decides it: fits in memory, exports and pages take their values from here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.production.reader import Rows
from xpbayes.production.table import catalogue_about, list_column, text_column
from xpbayes.schema import DEFAULT_LABELS, LABEL_UCDS, Column, catalogue_columns, id_column

PARAMETERS = {
    "teff": ("K", LABEL_UCDS["teff"], "effective temperature"),
    "feh": ("dex", LABEL_UCDS["feh"], "[Fe/H]"),
    "logg": ("dex", LABEL_UCDS["logg"], "log g"),
    "alpha_m": ("dex", LABEL_UCDS["alpha_m"], "[alpha/M]"),
    "extinction": ("mag", "phys.absorption", "extinction scalar E"),
    "parallax": ("mas", "pos.parallax", "parallax"),
}
"""Unit, UCD and title of flat columns; another label is in dex."""
INTERVAL = {
    "": ("{ucd}", "{title}: {what}"),
    "_err": ("stat.error;{ucd}", "half of {name}_p84 - {name}_p16"),
    "_p16": ("{ucd};stat.value", "16 % quantile of {name}"),
    "_p84": ("{ucd};stat.value", "84 % quantile of {name}"),
}
"""Columns of a parameter, what their names end with -> UCD and description: a value and its 68 % interval."""
MODE = {
    "_mode": ("{ucd};stat.max", "{title}: posterior mode (ZGR23-compatible)"),
    "_mode_err": ("stat.error;{ucd}", "{title}: Fisher error (ZGR23-compatible)"),
}
BINARY = {
    "_binary": ("{ucd};stat.mean", "{title}: of the brighter star, if there is a second source"),
    "_binary_err": ("stat.error;{ucd}", "1-sigma error of {name}_binary"),
}
RELIABILITY = {
    "_reliability": (
        "stat.probability",
        "{title}: probability that the median of the forward posterior is within 2 of its errors",
    )
}
KEPT = (
    "quality_flags", "status", "fit_quality", "extrapolation", "p_outside_model", "p_spurious_parallax", "refined_share",
    "xi_median", "xi_p16", "xi_p84", "r_v", "r_v_err", "teff_confidence", "feh_confidence", "logg_confidence", "k_hat",
    "n_modes", "chi2_opt", "n_obs", "dof", "ln_prior", "e_unbounded", "e_unbounded_err", "method", "release",
    "ln_odds_binary", "binary_flux_ratio", "binary_flux_ratio_err",
)  # fmt: skip
"""Columns of the catalogue that are flat already."""
OF_COMPANION = ("binary_teff2", "binary_teff2_err")
"""Those that are flat but for their unit, kK."""


def unit_of(parameter: str) -> str:
    """Of flat columns."""
    return PARAMETERS.get(parameter, ("dex",))[0]


def flat_rows(rows: Rows, about: Mapping[str, Any]) -> Rows:
    """A catalogue's rows with those of `flat_columns` that it can fill; `about` is what it was made with."""

    def tables(names: Sequence[str] | None) -> Iterator[pa.Table]:
        for table in rows.tables(None):
            flat = flat_table(table, about)
            yield flat if names is None else flat.select(list(names))

    return Rows(rows.n_rows, columns_for(about, [c.name for c in rows.columns]), tables)


def flat_table(catalogue: pa.Table, about: Mapping[str, Any] | None = None) -> pa.Table:
    """Turn rows of a catalogue into one number a column.

    Args:
        catalogue: what `infer` or `read_catalogue` returned.
        about: what it was made with; as its metadata say if None.

    Returns:
        the columns of `flat_columns`, with units, UCDs and descriptions in their fields' metadata.
    """
    about = catalogue_about(catalogue) if about is None else about
    has = set(catalogue.column_names)
    values: dict[str, Any] = {"source_id": catalogue[id_column(catalogue.column_names)].to_numpy()}
    forward = forward_values(catalogue)
    of_list = {"{}_mode": "stellar_params_est", "{}_mode_err": "stellar_params_err"}
    of_list |= {"{}_binary": "binary_params", "{}_binary_err": "binary_params_err"}
    each = {flat: list_column(catalogue, name) for flat, name in of_list.items() if name in has}
    for suffix, ours, before in zip(
        ("", "_err", "_p16", "_p84"), recommended(catalogue, forward), forward, strict=True
    ):
        each |= {f"{{}}{suffix}": ours, f"{{}}_forward{suffix}": before}
    for i, name in enumerate((*about["labels"], "extinction", "parallax")):
        scale = 1e3 if name == "teff" else 1.0
        values |= {flat.format(name): of[:, i] * scale for flat, of in each.items()}
        if "reliability" in has:
            values[f"{name}_reliability"] = list_column(catalogue, "reliability")[:, i]
    values |= {name: catalogue[name].to_numpy() * 1e3 for name in OF_COMPANION if name in has}
    columns = columns_for(about, catalogue.column_names)
    arrays = [
        pa.array(values[c.name], type=c.type)
        if c.name in values
        else pa.array(text_column(catalogue, c.name), type=c.type)
        if pa.types.is_string(c.type)
        else catalogue[c.name].combine_chunks().cast(c.type)
        for c in columns
    ]
    return pa.Table.from_arrays(
        arrays, schema=pa.schema([c.field() for c in columns], metadata=catalogue.schema.metadata)
    )


class Values(NamedTuple):
    """Values of parameters with their 68 % intervals, (row, parameter) in the catalogue's units; NaN where not solved."""

    value: NDArray[np.float64]
    error: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def recommended(catalogue: pa.Table, forward: Values | None = None) -> Values:
    """The recommended values of rows [kK, dex, dex, mag, mas], whose `forward_values` may be known already."""
    forward = forward_values(catalogue) if forward is None else forward
    if "refined_median" not in catalogue.column_names:
        return forward
    best = Values(*(of.copy() for of in forward))
    median, low, high = (list_column(catalogue, f"refined_{name}") for name in ("median", "p16", "p84"))
    n = median.shape[1]
    known = np.isfinite(median)
    for of, refined in zip(best, (median, 0.5 * (high - low), low, high), strict=True):
        of[:, :n] = np.where(known, refined, of[:, :n])
    return best


def forward_values(catalogue: pa.Table) -> Values:
    """Medians of the forward posterior, calibrated if the model was; modes with Laplace errors where nothing was drawn."""
    mode = list_column(catalogue, "stellar_params_est")
    with np.errstate(invalid="ignore"):
        laplace = np.sqrt(diagonal(list_column(catalogue, "laplace_cov_triu"), mode.shape[1]))
    median, low, high = (list_column(catalogue, f"stellar_params_{name}") for name in ("median", "p16", "p84"))
    drawn = np.isfinite(median) & (high != low)  # all weight may lie on one draw, and float32 hold no error of 1e6 mas
    value = np.where(drawn, median, mode)
    return Values(
        value,
        np.where(drawn, 0.5 * (high - low), laplace),
        np.where(drawn, low, value - laplace),
        np.where(drawn, high, value + laplace),
    )


def diagonal(packed: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """(row, n) diagonals of upper triangles that are packed row by row."""
    row, column = np.triu_indices(n)
    return packed[:, row == column]


def columns_for(about: Mapping[str, Any], names: Sequence[str]) -> tuple[Column, ...]:
    """The flat columns of a catalogue with given columns; confidences only where a classifier has filled them."""
    columns = flat_columns(
        tuple(about["labels"]),
        refined="refined_median" in names,
        curve="xi" in names,
        binaries="ln_odds_binary" in names,
    )
    trusted = "confidence_checksum" in (about.get("model") or {})
    if "reliability" not in names:  # of a version before it
        columns = tuple(c for c in columns if not c.name.endswith("_reliability"))
    return tuple(
        c
        for c in columns
        if c.name not in KEPT or (c.name in names and (trusted or not c.name.endswith("_confidence")))
    )


def flat_columns(
    labels: tuple[str, ...] = DEFAULT_LABELS, *, refined: bool = False, curve: bool = False, binaries: bool = False
) -> tuple[Column, ...]:
    """List the columns of a flat table of stars; arguments as of `schema.catalogue_columns`, labels with Teff first."""
    f64 = pa.float64()
    names = (*labels, "extinction", "parallax")
    all_columns = catalogue_columns(len(labels), refined=refined, curve=curve, binaries=binaries)
    known = {column.name: column for column in all_columns}
    columns = [
        Column("source_id", pa.int64(), "", "meta.id;meta.main", "Gaia source identifier"),
        Column("ra", f64, "deg", "pos.eq.ra;meta.main", "right ascension (ICRS)"),
        Column("dec", f64, "deg", "pos.eq.dec;meta.main", "declination (ICRS)"),
    ]
    for name in names:
        how = "refined by what the residual spectrum tells" if refined and name in labels else "as calibrated"
        columns += _of(name, INTERVAL, what=f"posterior median, {how}; the mode where nothing was drawn")
    columns += [known[name] for name in KEPT if name in known]
    for name in names:
        columns += [replace(column, unit="") for column in _of(name, RELIABILITY)]
    columns += [replace(known[name], unit="K") for name in OF_COMPANION if binaries]
    for name in names if binaries else ():
        columns += _of(name, BINARY)
    for name in labels if refined else ():
        columns += _of(name, INTERVAL, f"{name}_forward", "median of the forward posterior, before refinement")
    for name in names:
        columns += _of(name, MODE)
    return tuple(columns)


def _of(
    parameter: str, columns: Mapping[str, tuple[str, str]], name: str | None = None, what: str = ""
) -> list[Column]:
    """Flat columns of a parameter, by another name perhaps, and what it is."""
    unit, own, title = PARAMETERS.get(parameter, ("dex", "", parameter))
    name = parameter if name is None else name
    found = []
    for end, (ucd, text) in columns.items():
        ucd, text = ucd.format(ucd=own).strip(";"), text.format(title=title, name=name, what=what)
        found.append(Column(f"{name}{end}", pa.float32(), unit, ucd, text))
    return found
