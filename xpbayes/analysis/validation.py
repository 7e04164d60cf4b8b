"""Inferred parameters against labels: scatter, bias, pulls, coverage. Numbers only; `figures` draws them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.checks.held_out_checks import HeldOut, Inferred
from xpbayes.data.join import rows_of
from xpbayes.data.spectra import OK, Spectra
from xpbayes.errors import InputError
from xpbayes.production.table import list_column, text_column

MAD_TO_SIGMA = 1.4826
"""Standard deviation of a Gaussian over its median absolute deviation."""
GIANT_LOGG = 3.5
"""Stars with a label below are counted as giants."""
BASIC = 8
"""quality_flags below: basic reliability."""
Answer = Literal["recommended", "refined", "posterior", "mode"]
"""What is compared: labels 'refined' by the second stage, 'posterior' medians, both with p16, p84 and standard deviations,
or the ZGR23-compatible 'mode' with Fisher's errors; 'recommended' are refined labels where there are any, else medians."""


@dataclass(frozen=True)
class Comparison:
    """Solved stars that have labels, or other measurements of their parameters."""

    source_id: NDArray[np.int64]
    label_names: tuple[str, ...]  # of all parameters, where these were measured too
    estimate: NDArray[np.float64]  # (star, label) inferred [kK, dex, dex, mag, mas]
    error: NDArray[np.float64]  # their standard deviations
    label: NDArray[np.float64]  # (star, label) measured; NaN where not
    label_error: NDArray[np.float64]  # error floor included
    row: NDArray[np.signedinteger] | None = None  # of each star in the star table, where there is one table
    half: NDArray[np.float64] | None = None  # half of the 68 % interval; may be left out for a Gaussian
    flags: NDArray[np.uint8] | None = None  # quality_flags, where they were asked for, as what follows
    confidence: NDArray[np.float64] | None = None  # (star, 3) Teff, [Fe/H], log g; NaN without classifiers
    converged: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.source_id)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "label_names"}
        return {name: values for name, values in arrays.items() if values is not None}

    def take(self, member: NDArray[Any]) -> "Comparison":
        """The stars of an index or a mask."""
        arrays: dict[str, Any] = {name: values[member] for name, values in self._arrays().items()}
        return replace(self, **arrays)

    def of(self, names: Sequence[str]) -> "Comparison":
        """Some of the labels."""
        at = [self.label_names.index(name) for name in names]
        arrays: dict[str, Any] = {n: v[:, at] for n, v in self._arrays().items() if v.ndim == 2 and n != "confidence"}
        return replace(self, label_names=tuple(names), **arrays)

    @property
    def basic(self) -> NDArray[np.bool_]:
        """(star,) True where flags tell of basic reliability."""
        return np.asarray(self.flags) < BASIC

    @classmethod
    def join(cls, parts: "Sequence[Comparison]") -> "Comparison":
        """One after the other; at least one."""
        arrays: dict[str, Any] = {n: np.concatenate([getattr(p, n) for p in parts]) for n in parts[0]._arrays()}
        return replace(parts[0], **arrays)

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
            return np.zeros(len(self), bool)
        return self.label[:, self.label_names.index("logg")] < GIANT_LOGG


def compare(
    catalogue: pa.Table,
    stars: Spectra,
    label_names: Sequence[str],
    label_error_floor: Sequence[float] = (),
    answer: Answer = "recommended",
) -> Comparison:
    """Match a catalogue with the labels of a star table that holds its stars.

    Args:
        catalogue, stars, label_names: what is compared, and the model's labels.
        label_error_floor: added to the label errors in quadrature, as in training.
        answer: which of the catalogue's answers.

    Raises:
        InputError: no solved star has labels in the table, or posteriors are asked for and the catalogue has none.
    """
    names, n = tuple(label_names), len(label_names)
    source_id = catalogue["source_id"].to_numpy()
    row = rows_of(source_id, stars.source_id)
    label, label_error = (np.stack([stars.column(f"{m}{e}")[row] for m in names], axis=1) for e in ("", "_error"))
    if len(label_error_floor):
        label_error = np.hypot(label_error, np.asarray(label_error_floor))
    use = (row >= 0) & np.isfinite(np.hstack([label, label_error])).all(axis=1)
    use &= text_column(catalogue, "status") == OK
    if not use.any():
        raise InputError("no solved star of the catalogue has labels in the star table; give the table it came from")

    is_refined = answer == "refined" or (answer == "recommended" and "refined_median" in catalogue.column_names)
    prefix = "refined" if is_refined else "stellar_params"

    def column(name: str) -> NDArray[np.float64]:
        return list_column(catalogue, f"{prefix}_{name}")[:, :n]

    if answer == "mode":
        estimate, error = column("est"), column("err")
        return Comparison(source_id, names, estimate, error, label, label_error, row, error).take(use)
    estimate, half = column("median"), 0.5 * (column("p84") - column("p16"))
    use &= np.isfinite(estimate).all(axis=1)
    if not use.any():
        raise InputError("the catalogue has no posterior medians; infer it with n_draws above 0, or compare modes")
    return Comparison(source_id, names, estimate, column("std"), label, label_error, row, half).take(use)


def held_out_stars(
    flux_only: pa.Table, with_parallax: pa.Table | None, stars: Spectra, names: Sequence[str], floor: Sequence[float]
) -> HeldOut:
    """What the checks of held-out stars look at: the stars, with what is known of them, and catalogues of the same.

    `with_parallax` is None if no star has one; `floor` (label,) is the error floor of the labels, as in training.
    """

    def answer(catalogue: pa.Table) -> Inferred:
        unbounded = [catalogue[f"e_unbounded{e}"].to_numpy(zero_copy_only=False) for e in ("", "_err")]
        median, low, high = (list_column(catalogue, f"stellar_params_{name}") for name in ("median", "p16", "p84"))
        return Inferred(median, low, high, np.stack(unbounded, axis=1).astype(np.float64))

    known = (*names, "reddening", "parallax")
    reference, error = (np.stack([stars.column(f"{m}{e}") for m in known], axis=1) for e in ("", "_error"))
    error = np.hypot(error, [*floor, 0.0, 0.0]).astype(np.float64)
    both = None if with_parallax is None else answer(with_parallax)
    return HeldOut(tuple(names), reference.astype(np.float64), error, both, answer(flux_only))


def has_posteriors(catalogue: pa.Table) -> bool:
    """Whether any star of a catalogue has posterior medians."""
    return bool(np.isfinite(list_column(catalogue, "stellar_params_median")).any())


def robust_scatter(values: NDArray[np.floating]) -> float:
    """1.4826 x median absolute deviation from the median."""
    return float(MAD_TO_SIGMA * np.median(np.abs(values - np.median(values))))


@dataclass(frozen=True)
class Accuracy:
    """How one label compares for one group of stars; in kK or dex."""

    label: str
    group: str  # 'all', 'giants' or 'dwarfs'
    n: int  # stars
    scatter: float  # robust
    bias: float  # median difference
    coverage68: float  # share within half of the 68 % interval, label errors included
    coverage95: float  # the same within 1.96 standard deviations


def accuracy(comparison: Comparison) -> list[Accuracy]:
    """Tabulate scatter, bias and coverage for every label, overall and for giants and dwarfs."""
    groups = {"all": np.ones(len(comparison), bool)}
    if "logg" in comparison.label_names:
        groups |= {"giants": comparison.giant, "dwarfs": ~comparison.giant}
    rows = []
    for i, name in enumerate(comparison.label_names):
        for group, member in groups.items():
            if not member.any():
                continue
            difference, pull = comparison.difference[member, i], np.abs(comparison.pull[member, i])
            sigma = np.hypot(comparison.error[member, i], comparison.label_error[member, i])
            scatter, bias = robust_scatter(difference), float(np.median(difference))
            within = float(np.mean(pull < 1.0)), float(np.mean(np.abs(difference) < 1.959964 * sigma))
            rows.append(Accuracy(name, group, int(member.sum()), scatter, bias, *within))
    return rows
