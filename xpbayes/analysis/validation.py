"""Inferred parameters against labels: scatter, bias, pulls, coverage. Numbers only; `figures.py` draws them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.data.join import rows_of
from xpbayes.data.spectra import OK, Spectra
from xpbayes.errors import InputError
from xpbayes.production.table import list_column, text_column

MAD_TO_SIGMA = 1.4826
"""Standard deviation of a Gaussian over its median absolute deviation."""
GIANT_LOGG = 3.5
"""Stars with a label below are counted as giants."""
Answer = Literal["posterior", "mode"]
"""What is compared: 'posterior' medians with p16, p84 and standard deviations, or the 'mode' with Fisher's errors."""


@dataclass(frozen=True)
class Comparison:
    """Solved stars that have labels.

    Attributes:
        source_id: (star,).
        label_names: names of the labels.
        estimate, error: (star, label) inferred values and standard deviations [kK, dex, ...].
        label, label_error: (star, label) spectroscopic values and errors, error floor included.
        row: (star,) row of each star in the star table.
        half: (star, label) half of the 68 % interval; as `error` for a Gaussian, for which it may be left out.
    """

    source_id: NDArray[np.int64]
    label_names: tuple[str, ...]
    estimate: NDArray[np.float64]
    error: NDArray[np.float64]
    label: NDArray[np.float64]
    label_error: NDArray[np.float64]
    row: NDArray[np.int64]
    half: NDArray[np.float64] | None = None

    @property
    def difference(self) -> NDArray[np.float64]:
        """(star, label) inferred minus label."""
        return self.estimate - self.label

    @property
    def pull(self) -> NDArray[np.float64]:
        """(star, label) difference over half of the 68 % interval and the label's error together."""
        return self.difference / np.hypot(self.error if self.half is None else self.half, self.label_error)

    @property
    def giant(self) -> NDArray[np.bool_]:
        """(star,) True for giants, by label; all False without a log g label."""
        if "logg" not in self.label_names:
            return np.zeros(len(self.source_id), bool)
        return self.label[:, self.label_names.index("logg")] < GIANT_LOGG


def compare(
    catalogue: pa.Table,
    stars: Spectra,
    label_names: Sequence[str],
    label_error_floor: Sequence[float] = (),
    answer: Answer = "posterior",
) -> Comparison:
    """Match a catalogue with the labels of a star table.

    Args:
        catalogue: the catalogue.
        stars: a star table that holds its stars.
        label_names: the model's labels.
        label_error_floor: added to the label errors in quadrature, as in training.
        answer: which of the catalogue's answers.

    Raises:
        InputError: not one solved star of the catalogue has labels in the table, or posteriors are asked for and the
            catalogue has none.
    """
    source_id = catalogue["gdr3_source_id"].to_numpy()
    row = rows_of(source_id, stars.source_id)
    names = tuple(label_names)
    label = np.stack([stars.column(n)[row] for n in names], axis=1)
    label_error = np.stack([stars.column(f"{n}_error")[row] for n in names], axis=1)
    if len(label_error_floor):
        label_error = np.hypot(label_error, np.asarray(label_error_floor))
    use = (row >= 0) & np.isfinite(label).all(axis=1) & np.isfinite(label_error).all(axis=1)
    use &= text_column(catalogue, "status") == OK
    if not use.any():
        raise InputError("no solved star of the catalogue has labels in the star table; give the table it came from")
    n = len(names)
    center, width = {"posterior": ("median", "std"), "mode": ("est", "err")}[answer]
    estimate, error = (list_column(catalogue, f"stellar_params_{name}")[:, :n] for name in (center, width))
    half = error
    if answer == "posterior":
        low, high = (list_column(catalogue, f"stellar_params_{name}")[:, :n] for name in ("p16", "p84"))
        half = 0.5 * (high - low)
        use &= np.isfinite(estimate).all(axis=1)
        if not use.any():
            raise InputError("the catalogue has no posterior medians; infer it with n_draws above 0, or compare modes")
    return Comparison(
        source_id=source_id[use],
        label_names=names,
        estimate=estimate[use],
        error=error[use],
        label=label[use],
        label_error=label_error[use],
        row=row[use],
        half=half[use],
    )


def has_posteriors(catalogue: pa.Table) -> bool:
    """Whether any star of a catalogue has posterior medians."""
    return bool(np.isfinite(list_column(catalogue, "stellar_params_median")).any())


def robust_scatter(values: NDArray[np.floating]) -> float:
    """1.4826 x median absolute deviation from the median."""
    return float(MAD_TO_SIGMA * np.median(np.abs(values - np.median(values))))


@dataclass(frozen=True)
class Accuracy:
    """How one label compares for one group of stars.

    Attributes:
        label: name of the label.
        group: 'all', 'giants' or 'dwarfs'.
        n: number of stars.
        scatter: robust scatter [kK or dex].
        bias: median difference [kK or dex].
        coverage68, coverage95: shares of stars within half of the 68 % interval, and within 1.96 standard deviations, label
            errors included.
    """

    label: str
    group: str
    n: int
    scatter: float
    bias: float
    coverage68: float
    coverage95: float


def accuracy(comparison: Comparison) -> list[Accuracy]:
    """Tabulate scatter, bias and coverage for every label, overall and for giants and dwarfs."""
    groups = {"all": np.ones(len(comparison.source_id), bool)}
    if "logg" in comparison.label_names:
        groups |= {"giants": comparison.giant, "dwarfs": ~comparison.giant}
    rows = []
    for i, name in enumerate(comparison.label_names):
        for group, member in groups.items():
            if not member.any():
                continue
            difference, pull = comparison.difference[member, i], np.abs(comparison.pull[member, i])
            sigma = np.hypot(comparison.error[member, i], comparison.label_error[member, i])
            rows.append(
                Accuracy(
                    name,
                    group,
                    int(member.sum()),
                    robust_scatter(difference),
                    float(np.median(difference)),
                    float(np.mean(pull < 1.0)),
                    float(np.mean(np.abs(difference) < 1.959964 * sigma)),
                )
            )
    return rows


def running_percentiles(
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    n_bins: int = 15,
    percentiles: tuple[float, ...] = (16.0, 50.0, 84.0),
    min_count: int = 15,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentiles of y in bins of x between its 1st and 99th percentile.

    Returns:
        (bin,) centres and (bin, percentile) values, NaN in bins of fewer than `min_count` stars.
    """
    low, high = np.percentile(x, [1, 99])
    edges = np.linspace(low, high, n_bins + 1)
    which = np.digitize(x, edges) - 1
    out = np.full((n_bins, len(percentiles)), np.nan)
    for i in range(n_bins):
        inside = y[which == i]
        if len(inside) >= min_count:
            out[i] = np.percentile(inside, percentiles)
    return 0.5 * (edges[:-1] + edges[1:]), out
