"""How well the confidences work: residuals of good and bad estimates (ZGR23 Fig. 10, 11) and reliability curves.

Numbers and figures, from held-out stars with labels. Also gathers those stars for training, and refuses any that the
model was trained on.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing as figures
from xpbayes.analysis.validation import Comparison, compare, robust_scatter, running_percentiles
from xpbayes.data.spectra import Spectra
from xpbayes.errors import InputError
from xpbayes.identity import Side, Split
from xpbayes.models.reliability import TARGETS
from xpbayes.production.model_file import TrainedModel
from xpbayes.production.reliability import MIN_CONFIDENCE, table_features
from xpbayes.production.table import list_column
from xpbayes.training.reliability import BAD_ABOVE, GOOD_BELOW, RESIDUAL_FLOOR, Fit, residual_chi2

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASIC_RELIABILITY = 8
"""quality_flags below: the basic cut of Eq. 24 to 26."""
RELIABILITY_EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
"""Bins of the reliability curve: finer near one, where most stars are."""
INTERVAL = 0.683
"""Probability inside the curve's error bars."""
N_SIMULATED = 1000
"""Simulated samples that say how large the calibration error of a perfect classifier would come out."""


@dataclass(frozen=True)
class HeldOutFits:
    """Fits that confidences may be learnt from.

    Attributes:
        comparison: the stars, held out by the model's own split and passing the basic cut.
        features: (star, feature).
        targets: labels that get a classifier.
        chi2_eps: (star, target) of Eq. 27.
        n_failed_basic_cut: held-out stars with labels that do not pass the basic cut.
    """

    comparison: Comparison
    features: NDArray[np.float32]
    targets: tuple[str, ...]
    chi2_eps: NDArray[np.float64]
    n_failed_basic_cut: int


def held_out_fits(
    model: TrainedModel, catalogue: pa.Table, about: dict[str, Any], stars: Spectra, where: str
) -> HeldOutFits:
    """Collect what confidences are learnt from.

    Args:
        model: the model that the catalogue was inferred with.
        catalogue: the catalogue.
        about: its metadata.
        stars: the star table that it was inferred from, with labels.
        where: the catalogue's name, for messages.

    Raises:
        InputError: the catalogue is another model's, a star is on the training side of the model's split, or none is
            left.
    """
    targets = tuple(name for name in TARGETS if name in model.labels)
    if not targets:
        raise InputError(f"the model has none of the labels {', '.join(TARGETS)}; confidences exist for these only")
    mine, theirs = model.card.get("arrays_checksum"), about["model"].get("arrays_checksum")
    if mine != theirs:
        raise InputError(f"{where}: was inferred with another model ({theirs}, this one is {mine}); infer it again")
    floor = model.card["settings"]["label_error_floor"]
    n = len(model.labels)
    comparison = compare(catalogue, stars, model.labels, (*floor[:n], *((floor[-1],) * (n - len(floor)))), "mode")
    seen = ~Split.of(model.card).on(Side.HELD_OUT, comparison.source_id)
    if seen.any():
        raise InputError(
            f"{where}: {seen.sum()} of {len(seen)} stars with labels were not held out from training the model "
            f"(first: source_id {comparison.source_id[seen][0]}); infer held-out stars alone, with --only held-out"
        )
    row = np.flatnonzero(np.isin(catalogue["gdr3_source_id"].to_numpy(), comparison.source_id))
    basic = catalogue["quality_flags"].to_numpy()[row] < BASIC_RELIABILITY
    basic &= catalogue["converged"].to_numpy(zero_copy_only=False)[row]
    if not basic.any():
        raise InputError(
            f"{where}: none of its {len(basic)} stars with labels passes the basic cut (quality_flags < 8)"
        )
    comparison, row = _take(comparison, basic), row[basic]
    fit = Fit(
        list_column(catalogue, "stellar_params_est")[row],
        own_errors(catalogue)[row],
        catalogue["chi2_opt"].to_numpy()[row],
        catalogue["ln_prior"].to_numpy()[row],
    )
    at = [model.labels.index(name) for name in targets]
    return HeldOutFits(
        comparison,
        table_features(model, stars.take(comparison.row), fit),
        targets,
        residual_chi2(
            comparison.difference[:, at],
            comparison.error[:, at],
            comparison.label_error[:, at],
            np.array([RESIDUAL_FLOOR[name] for name in targets]),
        ),
        int((~basic).sum()),
    )


def _take(comparison: Comparison, member: NDArray[np.bool_]) -> Comparison:
    names = ("source_id", "estimate", "error", "label", "label_error", "row", "half")
    parts = {name: getattr(comparison, name) for name in names}
    return replace(comparison, **{name: part[member] for name, part in parts.items() if part is not None})


def own_errors(catalogue: pa.Table) -> NDArray[np.float64]:
    """(star, parameter) Fisher errors without what a catalogue may have added for the uncertainty of the model.

    Confidences are learnt and applied with these, whether errors were widened or not.
    """
    error = list_column(catalogue, "stellar_params_err")
    if "stellar_params_model_err" not in catalogue.column_names:
        return error
    added = np.nan_to_num(list_column(catalogue, "stellar_params_model_err"))
    return np.sqrt(np.maximum(error**2 - added**2, 0.0))


@dataclass(frozen=True)
class Reliability:
    """How often estimates of a given confidence are good.

    Attributes:
        label: name of the label.
        n: (bin,) stars.
        confidence: (bin,) mean confidence; NaN in empty bins.
        share_good: (bin,) share of good stars.
        low, high: (bin,) 68.3 % interval of that share (Jeffreys).
        calibration_error: expected calibration error: mean over stars of |share good - mean confidence| of their bin.
        by_chance: mean of the same over samples whose outcomes truly have these confidences: it is not zero.
        by_chance_95: 95 % of such samples stay below this.
    """

    label: str
    n: NDArray[np.int64]
    confidence: NDArray[np.float64]
    share_good: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    calibration_error: float
    by_chance: float
    by_chance_95: float


def reliability(
    label: str,
    confidence: NDArray[np.floating],
    good: NDArray[np.bool_],
    edges: Sequence[float] = RELIABILITY_EDGES,
    seed: int = 0,
) -> Reliability:
    """Compare confidences with outcomes.

    Args:
        label: name of the label.
        confidence: (star,) of stars that are either good or bad.
        good: (star,) the outcome.
        edges: of the bins, from 0 to 1.
        seed: of the simulated samples.
    """
    from scipy.stats import beta

    if not len(confidence):
        raise InputError(f"{label}: no star is either good or bad; reliability needs some")
    p = np.asarray(confidence, np.float64)
    n_bins = len(edges) - 1
    which = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, n_bins - 1)
    n = np.bincount(which, minlength=n_bins)
    total = np.bincount(which, weights=p, minlength=n_bins)
    n_good = np.bincount(which, weights=good, minlength=n_bins)

    def error(count_good: NDArray[Any]) -> float:
        return float(np.abs(count_good - total).sum() / len(p))

    random = np.random.default_rng(seed)
    simulated = [
        error(np.bincount(which, weights=random.random(len(p)) < p, minlength=n_bins)) for _ in range(N_SIMULATED)
    ]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, share = total / n, n_good / n
    tail = 0.5 * (1.0 - INTERVAL)
    low = np.where(n_good > 0, beta.ppf(tail, n_good + 0.5, n - n_good + 0.5), 0.0)
    high = np.where(n_good < n, beta.ppf(1.0 - tail, n_good + 0.5, n - n_good + 0.5), 1.0)
    low[n == 0] = high[n == 0] = np.nan
    return Reliability(
        label, n, mean, share, low, high, error(n_good), float(np.mean(simulated)), float(np.quantile(simulated, 0.95))
    )


@dataclass(frozen=True)
class GoodOrBad:
    """Residuals of the stars on one side of confidence 0.5.

    Attributes:
        label: name of the label.
        side: 'good' (confidence at least 0.5), 'bad', or 'all'.
        n: number of stars.
        scatter, bias: robust scatter and median of inferred minus label [kK or dex]; NaN without stars.
        rms: root mean square of the same, which the tails decide.
        pull_scatter: robust scatter of the difference in units of both errors.
        share_good, share_bad: shares of stars with chi2_eps below 4, and above 9.
    """

    label: str
    side: str
    n: int
    scatter: float
    bias: float
    rms: float
    pull_scatter: float
    share_good: float
    share_bad: float


@dataclass(frozen=True)
class ConfidenceCheck:
    """Confidences judged on stars that trained neither the model nor the classifiers.

    Attributes:
        targets: labels with a classifier.
        confidence: (star, target).
        label, difference, pull: (star, target) label value, inferred minus label, and the same over both errors.
        reliability: one per target.
        sides: good, bad and all of each target.
    """

    targets: tuple[str, ...]
    confidence: NDArray[np.float64]
    label: NDArray[np.float64]
    difference: NDArray[np.float64]
    pull: NDArray[np.float64]
    reliability: tuple[Reliability, ...]
    sides: tuple[GoodOrBad, ...]

    def numbers(self) -> dict[str, Any]:
        """Everything but the single stars, JSON-ready; NaN as None."""
        curves = [
            {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(curve).items()}
            for curve in self.reliability
        ]
        return _without_nan({"reliability": curves, "residuals": [asdict(side) for side in self.sides]})


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    if isinstance(value, float):
        return round(value, 6) if np.isfinite(value) else None
    return value


def judge(
    fits: HeldOutFits, member: NDArray[np.bool_], targets: Sequence[str], confidence: NDArray[np.floating]
) -> ConfidenceCheck:
    """Judge confidences.

    Args:
        fits: the stars.
        member: (star,) which of them to judge on: those held out from training the classifiers.
        targets: labels with a classifier.
        confidence: (star, target) of all stars.
    """
    comparison = _take(fits.comparison, member)
    at = [comparison.label_names.index(name) for name in targets]
    chi2_eps = fits.chi2_eps[member][:, [fits.targets.index(name) for name in targets]]
    p = np.asarray(confidence, np.float64)[member]
    difference, pull = comparison.difference[:, at], comparison.pull[:, at]
    curves, sides = [], []
    for i, name in enumerate(targets):
        known = (chi2_eps[:, i] < GOOD_BELOW) | (chi2_eps[:, i] > BAD_ABOVE)
        curves.append(reliability(name, p[known, i], chi2_eps[known, i] < GOOD_BELOW))
        good = p[:, i] >= MIN_CONFIDENCE
        for side, chosen in (("good", good), ("bad", ~good), ("all", np.ones(len(p), bool))):
            sides.append(_side(name, side, difference[chosen, i], pull[chosen, i], chi2_eps[chosen, i]))
    return ConfidenceCheck(tuple(targets), p, comparison.label[:, at], difference, pull, tuple(curves), tuple(sides))


def _side(
    name: str, side: str, difference: NDArray[np.float64], pull: NDArray[np.float64], chi2_eps: NDArray[np.float64]
) -> GoodOrBad:
    if not len(difference):
        nothing = float("nan")
        return GoodOrBad(name, side, 0, nothing, nothing, nothing, nothing, nothing, nothing)
    return GoodOrBad(
        name,
        side,
        len(difference),
        robust_scatter(difference),
        float(np.median(difference)),
        float(np.sqrt(np.mean(difference**2))),
        robust_scatter(pull),
        float(np.mean(chi2_eps < GOOD_BELOW)),
        float(np.mean(chi2_eps > BAD_ABOVE)),
    )


def print_check(check: ConfidenceCheck) -> None:
    """Print good and bad residuals, and the calibration error, of every label."""
    from rich.console import Console
    from rich.table import Table

    table = Table(caption="held-out stars; good: confidence at least 0.5; bad: below; scatter is robust")
    for heading in ("label", "stars", "n", "scatter", "median", "rms", "chi2_eps > 9"):
        table.add_column(heading, justify="left" if heading in {"label", "stars"} else "right")
    for side in check.sides:
        factor = figures.display_scale(side.label)
        digits = 0 if side.label == "teff" else 3
        values = [f"{factor * v:.{digits}f}" if side.n else "–" for v in (side.scatter, side.bias, side.rms)]
        unit = figures.LABEL_UNIT[side.label]
        table.add_row(
            f"{figures.LABEL_TEXT[side.label]} [{unit}]" if side.side == "good" else "",
            side.side,
            f"{side.n:,}",
            *values,
            f"{side.share_bad:.1%}" if side.n else "–",
            end_section=side.side == "all",
        )
    console = Console()
    console.print(table)
    for curve in check.reliability:
        console.print(
            f"{figures.LABEL_TEXT[curve.label]}: expected calibration error {curve.calibration_error:.4f} "
            f"(a perfect classifier: {curve.by_chance:.4f}, 95 % below {curve.by_chance_95:.4f})",
            highlight=False,
        )


def residual_figure(check: ConfidenceCheck, normalised: bool = False) -> "Figure":
    """Residuals of good (left) and bad (right) estimates against the label (ZGR23 Fig. 10).

    Args:
        check: from `judge`.
        normalised: residuals in units of both errors (Fig. 11) instead of K and dex.
    """
    n = len(check.targets)
    figure, axes = figures.panels(2, n, 7.6, 2.5 * n)
    values = check.pull if normalised else check.difference
    for i, name in enumerate(check.targets):
        text, unit = figures.LABEL_TEXT[name], figures.LABEL_UNIT[name]
        factor = figures.display_scale(name)
        label = factor * check.label[:, i]
        residual = values[:, i] * (1.0 if normalised else factor)
        good = check.confidence[:, i] >= MIN_CONFIDENCE
        reach = max(float(np.percentile(np.abs(residual), 99.7)), 1e-3)
        low, high = np.percentile(label, [0.1, 99.9])
        for axis, side, chosen in ((axes[i, 0], "good", good), (axes[i, 1], "bad", ~good)):
            x, y = label[chosen], residual[chosen]
            picked = figures.thinned(len(x))
            crowded = len(x) > 300
            axis.plot(
                x[picked], np.clip(y[picked], -reach, reach), ".", ms=2 if crowded else 5,
                color=figures.BLUE, alpha=0.4 if crowded else 0.8, rasterized=True,
            )  # fmt: skip
            if crowded:
                centre, lines = running_percentiles(x, y)
                for k, style in enumerate(("--", "-", "--")):
                    axis.plot(centre, lines[:, k], style, color=figures.ORANGE, lw=1.5)
            axis.axhline(0, color=figures.INK, lw=0.7)
            margin = 0.03 * (high - low)
            axis.set(xlim=(low - margin, high + margin), ylim=(-1.05 * reach, 1.05 * reach))
            axis.set_title(f"{text}: {side}, {len(x):,} star{'' if len(x) == 1 else 's'}", fontsize=9.5)
            axis.set_xlabel(f"label {text} [{unit}]")
        axes[i, 0].set_ylabel("(inferred − label) / σ" if normalised else f"inferred − label [{unit}]")
    return figure


def reliability_figure(check: ConfidenceCheck) -> "Figure":
    """Share of good stars against confidence with binomial error bars; below, where the stars are."""
    n = len(check.targets)
    figure, axes = figures.panels(n, 2, 3.2 * n, 4.6)
    for i, curve in enumerate(check.reliability):
        top, bottom = axes[:, i]
        some = curve.n > 0
        bars = np.abs(np.stack([curve.share_good - curve.low, curve.high - curve.share_good])[:, some])
        top.plot([0, 1], [0, 1], color=figures.GREY, lw=0.9)
        top.errorbar(
            curve.confidence[some], curve.share_good[some], bars, fmt="o", ms=4, lw=1, capsize=2, color=figures.BLUE
        )
        top.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), title=figures.LABEL_TEXT[curve.label])
        top.text(
            0.04, 0.93, f"calibration error {curve.calibration_error:.3f}\nby chance {curve.by_chance:.3f}",
            fontsize=8, va="top", transform=top.transAxes,
        )  # fmt: skip
        bottom.hist(check.confidence[:, i], np.linspace(0, 1, 41), color=figures.BLUE, alpha=0.75, lw=0, log=True)
        bottom.set(xlim=(-0.03, 1.03), xlabel="confidence", ylabel="stars" if i == 0 else "")
    axes[0, 0].set_ylabel("share of good estimates")
    return figure


def write_check(check: ConfidenceCheck, folder: Path) -> list[Path]:
    """Write confidence.json and the figures: residuals in K and dex, residuals in sigma, reliability.

    Args:
        check: from `judge`.
        folder: is made if need be.

    Raises:
        InputError: the folder cannot be written.
    """
    written = [folder / "confidence.json"]
    drawn = {
        "residuals": residual_figure(check),
        "residuals_normalised": residual_figure(check, normalised=True),
        "reliability": reliability_figure(check),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written[0].write_text(json.dumps(check.numbers(), indent=1) + "\n")
        for name, figure in drawn.items():
            written.append(folder / f"confidence_{name}.png")
            figure.savefig(written[-1], dpi=150)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}); choose another output") from error
    return written
