"""A catalogue as people use one: one number a column, in K, dex, mag and mas, the recommended value of a parameter first.

The recommended value is the median of the posterior with its 16 and 84 % quantiles: refined where the model has a second
stage, else as calibrated on stars that training kept aside; where no draws were asked for, or a star has none, it is the
mode with its Laplace error. What ZGR23 publish, modes with Fisher errors, follows as ``teff_mode`` and ``teff_mode_err``.
This is the only place that decides it: fits in memory, exports and pages take their values from here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.production.table import catalogue_about, list_column, text_column
from xpbayes.schema import DEFAULT_LABELS, LABEL_UCDS, Column, catalogue_columns, id_column

PARAMETER_UNITS = {"teff": "K", "extinction": "mag", "parallax": "mas"}
"""Of flat columns; a label that is not named here is in dex."""
PARAMETER_UCDS = {**LABEL_UCDS, "extinction": "phys.absorption", "parallax": "pos.parallax"}
TITLES = {"teff": "effective temperature", "feh": "[Fe/H]", "logg": "log g", "alpha_m": "[alpha/M]",
          "extinction": "extinction scalar E", "parallax": "parallax"}  # fmt: skip
KEPT = (
    "quality_flags", "status", "fit_quality", "extrapolation", "p_outside_model", "p_spurious_parallax", "refined_share",
    "xi_median", "xi_p16", "xi_p84", "r_v", "r_v_err", "teff_confidence", "feh_confidence", "logg_confidence", "k_hat",
    "n_modes", "chi2_opt", "n_obs", "dof", "ln_prior", "e_unbounded", "e_unbounded_err", "method", "release",
    "ln_odds_binary", "binary_flux_ratio", "binary_flux_ratio_err",
)  # fmt: skip
"""Columns of the catalogue that are flat already."""
OF_COMPANION = ("binary_teff2", "binary_teff2_err")
"""Those that are flat but for their unit, kK."""


class Rows(Protocol):
    """A catalogue that is read some rows at a time; `reader.Catalogue` is one."""

    @property
    def n_rows(self) -> int:
        """Rows in all."""
        ...

    @property
    def columns(self) -> tuple[Column, ...]:
        """What they hold."""
        ...

    def tables(self, names: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows in order, of the named columns."""
        ...


@dataclass(frozen=True)
class InMemory:
    """A table as `Rows`."""

    columns: tuple[Column, ...]
    table: pa.Table

    @property
    def n_rows(self) -> int:
        """Rows in all."""
        return len(self.table)

    def tables(self, names: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The table, in one piece."""
        yield self.table if names is None else self.table.select(list(names))


@dataclass(frozen=True)
class Flat:
    """Another catalogue's rows with flat columns.

    Attributes:
        rows: the catalogue.
        about: what it was made with.
    """

    rows: Rows
    about: Mapping[str, Any]

    @property
    def n_rows(self) -> int:
        """Rows in all."""
        return self.rows.n_rows

    @property
    def columns(self) -> tuple[Column, ...]:
        """Those of `flat_columns` that the catalogue can fill."""
        return columns_for(self.about, [c.name for c in self.rows.columns])

    def tables(self, names: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Block by block."""
        for table in self.rows.tables():
            flat = flat_table(table, self.about)
            yield flat if names is None else flat.select(list(names))


def flat_table(catalogue: pa.Table, about: Mapping[str, Any] | None = None) -> pa.Table:
    """Turn rows of a catalogue into one number a column.

    Args:
        catalogue: what `infer` or `read_catalogue` returned.
        about: what it was made with; as its metadata say if None.

    Returns:
        the columns of `flat_columns`, with units, UCDs and descriptions in their fields' metadata.
    """
    about = catalogue_about(catalogue) if about is None else about
    names = (*about["labels"], "extinction", "parallax")
    values: dict[str, Any] = {"source_id": catalogue[id_column(catalogue.column_names)].to_numpy()}
    mode, fisher = list_column(catalogue, "stellar_params_est"), list_column(catalogue, "stellar_params_err")
    forward = forward_values(catalogue)
    best = recommended(catalogue, forward)
    for i, name in enumerate(names):
        scale = 1e3 if name == "teff" else 1.0
        values |= {f"{name}_mode": mode[:, i] * scale, f"{name}_mode_err": fisher[:, i] * scale}
        if "reliability" in catalogue.column_names:
            values[f"{name}_reliability"] = list_column(catalogue, "reliability")[:, i]
        for suffix, ours, before in zip(("", "_err", "_p16", "_p84"), best, forward, strict=True):
            values |= {f"{name}{suffix}": ours[:, i] * scale, f"{name}_forward{suffix}": before[:, i] * scale}
    if "ln_odds_binary" in catalogue.column_names:
        of_pair = [list_column(catalogue, name) for name in ("binary_params", "binary_params_err")]
        for i, name in enumerate(names):
            scale = 1e3 if name == "teff" else 1.0
            values |= {f"{name}_binary{end}": of[:, i] * scale for end, of in zip(("", "_err"), of_pair, strict=True)}
        values |= {name: catalogue[name].to_numpy() * 1e3 for name in OF_COMPANION}
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
    """The recommended values of a catalogue's rows [kK, dex, dex, mag, mas].

    Args:
        catalogue: the rows.
        forward: their `forward_values`, if these are known already.
    """
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
    drawn = np.isfinite(median)
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
    """List the columns of a flat table of stars.

    Args:
        labels: names of the model's labels, Teff first.
        refined: the model has a second stage, which refined the labels.
        curve: the model knows how the extinction curve varies.
        binaries: stars were compared with pairs of stars.
    """
    f64 = pa.float64()
    names = (*labels, "extinction", "parallax")
    known = {
        column.name: column
        for column in catalogue_columns(len(labels), refined=refined, curve=curve, binaries=binaries)
    }
    columns = [
        Column("source_id", pa.int64(), "", "meta.id;meta.main", "Gaia source identifier"),
        Column("ra", f64, "deg", "pos.eq.ra;meta.main", "right ascension (ICRS)"),
        Column("dec", f64, "deg", "pos.eq.dec;meta.main", "declination (ICRS)"),
    ]
    for name in names:
        how = "refined by what the residual spectrum tells" if refined and name in labels else "as calibrated"
        columns += _interval_columns(name, name, f"posterior median, {how}; the mode where nothing was drawn")
    columns += [known[name] for name in KEPT if name in known]
    for name in names:
        what = (
            f"{TITLES.get(name, name)}: probability that the median of the forward posterior is within 2 of its errors"
        )
        columns.append(Column(f"{name}_reliability", pa.float32(), "", "stat.probability", what))
    if binaries:
        columns += [replace(known[name], unit="K") for name in OF_COMPANION]
        columns += _binary_columns(names)
    for name in labels if refined else ():
        columns += _interval_columns(f"{name}_forward", name, "median of the forward posterior, before refinement")
    for name in names:
        unit, ucd, title = PARAMETER_UNITS.get(name, "dex"), PARAMETER_UCDS.get(name, ""), TITLES.get(name, name)
        mode = f"{name}_mode"
        columns += [
            Column(mode, pa.float32(), unit, f"{ucd};stat.max", f"{title}: posterior mode (ZGR23-compatible)"),
            Column(f"{mode}_err", pa.float32(), unit, f"stat.error;{ucd}", f"{title}: Fisher error (ZGR23-compatible)"),
        ]
    return tuple(replace(c, ucd=c.ucd.strip(";")) for c in columns)


def _binary_columns(names: Sequence[str]) -> list[Column]:
    """Flat columns of the primary's parameters under hypothesis B."""
    columns = []
    for name in names:
        unit, ucd, title = PARAMETER_UNITS.get(name, "dex"), PARAMETER_UCDS.get(name, ""), TITLES.get(name, name)
        what = f"{title}: of the brighter star, if there is a second source"
        columns += [
            Column(f"{name}_binary", pa.float32(), unit, f"{ucd};stat.mean", what),
            Column(f"{name}_binary_err", pa.float32(), unit, f"stat.error;{ucd}", f"1-sigma error of {name}_binary"),
        ]
    return columns


def _interval_columns(name: str, parameter: str, description: str) -> list[Column]:
    """Flat columns of a value of some parameter and its 68 % interval."""
    f32, unit, ucd = pa.float32(), PARAMETER_UNITS.get(parameter, "dex"), PARAMETER_UCDS.get(parameter, "")
    title = TITLES.get(parameter, parameter)
    return [
        Column(name, f32, unit, ucd, f"{title}: {description}"),
        Column(f"{name}_err", f32, unit, f"stat.error;{ucd}", f"half of {name}_p84 - {name}_p16"),
        Column(f"{name}_p16", f32, unit, f"{ucd};stat.value", f"16 % quantile of {name}"),
        Column(f"{name}_p84", f32, unit, f"{ucd};stat.value", f"84 % quantile of {name}"),
    ]
