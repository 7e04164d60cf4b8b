"""How well the confidences work: residuals of good and bad estimates (ZGR23 Figs. 10, 11) and reliability curves.

Numbers and figures of stars that trained neither the model nor its classifiers. Figs. 10 and 11 take the confidences that a
catalogue holds; `pages/confidence.py` those of classifiers just trained.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.figures.binned import running_percentiles
from xpbayes.analysis.figures.residual_columns import CONFIDENCES, NEEDS, ValidationStars
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, NotDrawnError, Product, Task, table_of
from xpbayes.analysis.validation import Comparison, robust_scatter
from xpbayes.errors import InputError
from xpbayes.identity import Side, Split
from xpbayes.production.reliability import MIN_CONFIDENCE
from xpbayes.training.reliability import BAD_ABOVE, GOOD_BELOW, RESIDUAL_FLOOR, residual_chi2

RELIABILITY_EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
"""Bins of the reliability curve: finer near one, where most stars are."""
INTERVAL = 0.683
"""Probability inside the curve's error bars."""
N_SIMULATED = 1000
"""Simulated samples that say how large the calibration error of a perfect classifier would come out."""


@dataclass(frozen=True)
class Reliability:
    """How often estimates of a given confidence are good; NaN in empty bins."""

    label: str  # its name
    n: NDArray[np.int64]  # (bin,) stars
    confidence: NDArray[np.float64]  # (bin,) mean
    share_good: NDArray[np.float64]  # (bin,)
    low: NDArray[np.float64]  # (bin,) 68.3 % interval of that share (Jeffreys), as high
    high: NDArray[np.float64]
    calibration_error: float  # mean over stars of |share good - mean confidence| of their bin
    by_chance: float  # mean of the same over samples whose outcomes truly have these confidences: not zero
    by_chance_95: float  # 95 % of such samples stay below


def reliability(
    label: str,
    confidence: NDArray[np.floating],
    good: NDArray[np.bool_],
    edges: Sequence[float] = RELIABILITY_EDGES,
) -> Reliability:
    """Compare (star,) confidences of stars that are either good or bad with the outcomes, in bins from 0 to 1."""
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

    random = np.random.default_rng(0)
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
    """Residuals of the stars on one side of confidence 0.5; NaN without stars."""

    label: str
    side: str  # 'good' (confidence at least 0.5), 'bad', or 'all'
    n: int  # stars
    scatter: float  # robust, of inferred minus label [kK or dex]
    bias: float  # median of the same
    rms: float  # of the same; the tails decide it
    pull_scatter: float  # robust, of the difference in units of both errors
    share_good: float  # share of stars with chi2_eps below 4
    share_bad: float  # above 9


@dataclass(frozen=True)
class ConfidenceCheck:
    """Confidences judged on stars that trained neither the model nor the classifiers.

    Attributes:
        targets: labels with a classifier.
        confidence: (star, target) probability that the label is reliable.
        label, difference, pull: (star, target) measured, inferred minus that [kK, dex, ...], and the same over both errors.
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


def eps(stars: Comparison, targets: Sequence[str]) -> NDArray[np.float64]:
    """(star, target) chi2_eps of Eq. 27."""
    some = stars.of(targets)
    return residual_chi2(
        some.difference, some.error, some.label_error, np.array([RESIDUAL_FLOOR[t] for t in targets])
    )  # fmt: skip


def judge(stars: Comparison, targets: Sequence[str], confidence: NDArray[np.floating]) -> ConfidenceCheck:
    """Judge (star, target) confidences of stars that trained neither the model nor the classifiers."""
    some, p = stars.of(targets), np.asarray(confidence, np.float64)
    difference, pull, chi2_eps = some.difference, some.pull, eps(stars, targets)
    curves, sides = [], []
    for i, name in enumerate(targets):
        known = (chi2_eps[:, i] < GOOD_BELOW) | (chi2_eps[:, i] > BAD_ABOVE)
        curves.append(reliability(name, p[known, i], chi2_eps[known, i] < GOOD_BELOW))
        good = p[:, i] >= MIN_CONFIDENCE
        for side, chosen in (("good", good), ("bad", ~good), ("all", np.ones(len(p), bool))):
            sides.append(_side(name, side, difference[chosen, i], pull[chosen, i], chi2_eps[chosen, i]))
    return ConfidenceCheck(tuple(targets), p, some.label, difference, pull, tuple(curves), tuple(sides))


def _side(
    name: str, side: str, difference: NDArray[np.float64], pull: NDArray[np.float64], chi2_eps: NDArray[np.float64]
) -> GoodOrBad:
    if not len(difference):
        return GoodOrBad(name, side, 0, *[float("nan")] * 6)
    return GoodOrBad(
        name, side, len(difference), robust_scatter(difference), float(np.median(difference)),
        float(np.sqrt(np.mean(difference**2))), robust_scatter(pull), float(np.mean(chi2_eps < GOOD_BELOW)),
        float(np.mean(chi2_eps > BAD_ABOVE)),
    )  # fmt: skip


def judged(stars: Comparison, n_labels: int) -> ConfidenceCheck:
    """Judge the confidences that a catalogue holds; NotDrawnError if no star has both labels and confidences."""
    assert stars.confidence is not None
    names = stars.label_names[:n_labels]
    held = [i for i, c in enumerate(CONFIDENCES) if c.removesuffix("_confidence") in names]
    confidence = stars.confidence[:, held]
    known = np.asarray(np.isfinite(np.hstack([confidence, stars.label[:, :n_labels]])).all(axis=1))
    if not known.any():
        raise NotDrawnError("no star with labels has confidences; train classifiers with 'xpbayes confidence'")
    targets = [CONFIDENCES[i].removesuffix("_confidence") for i in held]
    return judge(stars.of(names).take(known), targets, confidence[known])


def residual_figure(check: ConfidenceCheck, normalised: bool = False) -> "drawing.Figure":
    """Residuals of good (left) and bad (right) estimates against the label, over both errors if `normalised`."""
    n = len(check.targets)
    figure, axes = drawing.panels(2, n, 7.6, 2.5 * n)
    values = check.pull if normalised else check.difference
    for i, name in enumerate(check.targets):
        factor = drawing.display_scale(name)
        label = factor * check.label[:, i]
        residual = values[:, i] * (1.0 if normalised else factor)
        good = check.confidence[:, i] >= MIN_CONFIDENCE
        reach = max(float(np.percentile(np.abs(residual), 99.7)), 1e-3)
        low, high = np.percentile(label, [0.1, 99.9])
        for axis, side, chosen in ((axes[i, 0], "good", good), (axes[i, 1], "bad", ~good)):
            x, y = label[chosen], residual[chosen]
            picked = drawing.thinned(len(x))
            crowded = len(x) > 300
            axis.plot(
                x[picked], np.clip(y[picked], -reach, reach), ".", ms=2 if crowded else 5,
                color=drawing.BLUE, alpha=0.4 if crowded else 0.8, rasterized=True,
            )  # fmt: skip
            if crowded:
                drawing.percentile_lines(axis, *running_percentiles(x, y))
            axis.axhline(0, color=drawing.INK, lw=0.7)
            margin = 0.03 * (high - low)
            axis.set(xlim=(low - margin, high + margin), ylim=(-1.05 * reach, 1.05 * reach))
            axis.set_title(f"{drawing.text(name)}: {side}, {len(x):,} star{'' if len(x) == 1 else 's'}", fontsize=9.5)
            axis.set_xlabel(f"label {drawing.heading(name)}")
        axes[i, 0].set_ylabel(
            "(inferred − label) / σ" if normalised else f"inferred − label [{drawing.LABEL_UNIT[name]}]"
        )
    return figure


def reliability_figure(check: ConfidenceCheck) -> "drawing.Figure":
    """Share of good stars against confidence with binomial error bars; below, where the stars are."""
    n = len(check.targets)
    figure, axes = drawing.panels(n, 2, 3.2 * n, 4.6)
    for i, curve in enumerate(check.reliability):
        top, bottom = axes[:, i]
        some = curve.n > 0
        bars = np.abs(np.stack([curve.share_good - curve.low, curve.high - curve.share_good])[:, some])
        top.plot([0, 1], [0, 1], color=drawing.GREY, lw=0.9)
        top.errorbar(
            curve.confidence[some], curve.share_good[some], bars, fmt="o", ms=4, lw=1, capsize=2, color=drawing.BLUE
        )
        top.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), title=drawing.LABEL_TEXT[curve.label])
        top.text(
            0.04, 0.93, f"calibration error {curve.calibration_error:.3f}\nby chance {curve.by_chance:.3f}",
            fontsize=8, va="top", transform=top.transAxes,
        )  # fmt: skip
        bottom.hist(check.confidence[:, i], np.linspace(0, 1, 41), color=drawing.BLUE, alpha=0.75, lw=0, log=True)
        bottom.set(xlim=(-0.03, 1.03), xlabel="confidence", ylabel="stars" if i == 0 else "")
    axes[0, 0].set_ylabel("share of good estimates")
    return figure


def _start(normalised: bool, run: Run) -> Task:
    gatherer = ValidationStars.of(run)
    check = partial(run.once, "confidence_check", lambda: _check(run, gatherer))
    return Task((gatherer,), lambda: _product(*check(), normalised))


def _check(run: Run, gatherer: ValidationStars) -> tuple[ConfidenceCheck, str]:
    stars = gatherer.result()
    if not np.isfinite(np.asarray(stars.confidence)).any():
        raise NotDrawnError(
            "the catalogue has no confidences; train classifiers with 'xpbayes confidence', infer again"
        )
    stars = stars.take(np.asarray(stars.basic & np.asarray(stars.converged)))
    words = f"{gatherer.cuts}, converged"
    about = run.model.card.get("confidence") if run.model is not None else None
    if about is not None:
        split = about["split"]
        stars = stars.take(Split(split["fraction"], seed=split["seed"]).on(Side.HELD_OUT, stars.source_id))
        words += f", held out from the classifiers too ({split['fraction']:.0%} by source_id)"
    return judged(stars, len(run.labels)), words


def _product(check: ConfidenceCheck, words: str, normalised: bool) -> Product:
    n = len(check.confidence)
    what = "over both errors" if normalised else "in K and dex"
    scale = drawing.display_scale
    rows = [
        (s.label, s.side, s.n, *(scale(s.label) * np.array([s.scatter, s.bias, s.rms])), s.pull_scatter, s.share_bad)
        for s in check.sides
    ]
    about = {
        "label": "whose confidence", "side": "good, bad or all", "n": "stars", "scatter": "robust [K or dex]",
        "median": "[K or dex]", "rms": "[K or dex]", "pull_scatter": "robust, in both errors",
        "share_bad": "of stars with chi2_eps above 9",
    }  # fmt: skip
    return Product(
        residual_figure(check, normalised),
        f"Residuals of estimates called good and bad by their confidence, {n} stars",
        f"Inferred minus label, {what}, of estimates with a confidence of at least 0.5 (left) and below (right), with "
        f"lines at 16, 50 and 84 %. {n:,} stars: {words}. Dots beyond the panel lie on its rim.",
        {"": table_of(rows, about)},
    )


CONFIDENCE = Analysis("confidence", "Fig. 10", "Residuals of good and bad estimates", partial(_start, False), NEEDS)
CONFIDENCE_PULLS = Analysis(
    "confidence_pulls", "Fig. 11", "Pulls of good and bad estimates", partial(_start, True), NEEDS
)
