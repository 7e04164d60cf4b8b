"""What training left in the model card: self-cleaning on low-extinction Sun-like stars (ZGR23 Fig. 4), and checks.

Checks are what was measured on held-out stars, and which kinds of star were kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, NotDrawnError, NumberTable, Product, Series, drawn_now, table_of
from xpbayes.checks import held_out_checks as held_out
from xpbayes.checks.training_checks import MIN_KEPT, Check

TWIN_BINARY_MAG = 0.75
"""Two equal stars are brighter than one by 2.5 log10 2 = 0.7526 mag."""
RADIUS = 3.5
"""Of the circle in Fig. 4 [sigma]."""
MARKS = ("o", "s", "D")
COLOURS = (drawing.BLUE, drawing.ORANGE, drawing.GREY)
NAMES = {"teff": "Teff [kK]", "logg": "log g", "E": "E [mag]", "parallax_snr": "S/N"}
LEGEND = {"loc": "upper left", "handletextpad": 0.2, "columnspacing": 1.0}
Bins = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class SelfCleaning:
    """Sun-like stars after self-cleaning."""

    logg_pull: NDArray[np.float64]  # (star,) fitted minus measured, over the measurement's error
    parallax_pull: NDArray[np.float64]  # (star,) likewise
    absolute_magnitude: NDArray[np.float64]  # (star,) M_G [mag], NaN where G is not known
    outlier: NDArray[np.bool_]  # (star,) outside of the circle
    n_stars: int  # that self-cleaning looked at, of any kind
    dropped: float  # share of them that it dropped

    @property
    def magnitude_shift(self) -> float:
        """Median M_G of outliers minus that of the others [mag]; NaN without either."""
        known = np.isfinite(self.absolute_magnitude)
        out, rest = (self.absolute_magnitude[known & m] for m in (self.outlier, ~self.outlier))
        return float(np.median(out) - np.median(rest)) if len(out) and len(rest) else float("nan")


def from_card(card: dict[str, Any]) -> SelfCleaning:
    """Read the last self-cleaning of a training; NotDrawnError if there was none, or no Sun-like star."""
    phases = [p for p in card.get("phases", []) if "diagnostic" in p]
    if not phases:
        raise NotDrawnError("the model's training had no phase of self-cleaning (preset zgr23 has)")
    found = phases[-1]["diagnostic"]
    if not found["row"]:
        raise NotDrawnError("none of the training stars is a low-extinction Sun-like star as in Eq. 16")
    absolute = [np.nan if m is None else m for m in found.get("absolute_magnitude", [None] * len(found["row"]))]
    return SelfCleaning(
        logg_pull=np.asarray(found["logg_pull"], np.float64),
        parallax_pull=np.asarray(found["parallax_pull"], np.float64),
        absolute_magnitude=np.asarray(absolute, np.float64),
        outlier=np.asarray(found["outlier"], bool),
        n_stars=int(phases[-1]["n_stars"]),
        dropped=float(phases[-1]["dropped_by"]["both"]),
    )


def draw_self_cleaning(numbers: SelfCleaning) -> "drawing.Figure":
    """Pulls in parallax and log g with the circle; histogram of absolute magnitudes."""
    figure, ((left, right),) = drawing.panels(2, 1, 9.6, 4.2)
    magnitude, known = numbers.absolute_magnitude, np.isfinite(numbers.absolute_magnitude)
    dots = left.scatter(numbers.parallax_pull, numbers.logg_pull, c=magnitude, s=10, lw=0, cmap="viridis_r",
                        plotnonfinite=True)  # fmt: skip
    drawing.circle(left, 0.0, 0.0, RADIUS)
    reach = 1.1 * max(RADIUS, float(np.percentile(np.hypot(numbers.logg_pull, numbers.parallax_pull), 99.5)))
    left.set(xlabel="Δϖ / σ", ylabel="Δ log g / σ", xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal",
             title=f"Sun-like stars ({len(numbers.outlier):,})")  # fmt: skip
    figure.colorbar(dots, ax=left, label="$M_G$ [mag]", pad=0.01)
    if known.any():
        edges = np.histogram_bin_edges(magnitude[known], bins=40)
        for chosen, colour, text in (
            (~numbers.outlier, drawing.BLUE, "inside"),
            (numbers.outlier, drawing.ORANGE, "outside"),
        ):
            shown = magnitude[known & chosen]
            right.hist(shown, edges, color=colour, alpha=0.7, lw=0, label=f"{text} ({len(shown):,})")
        drawing.legend(right)
        right.invert_xaxis()
    right.set(xlabel="$M_G$ [mag]", ylabel="stars", title="absolute magnitudes")
    return figure


def _self_cleaning(run: Run) -> Product:
    assert run.model is not None
    numbers = from_card(run.model.card)
    shift = numbers.magnitude_shift
    words = (
        f" In the median the {int(numbers.outlier.sum()):,} outside are {-shift:+.2f} mag brighter; a twin binary would be "
        f"{TWIN_BINARY_MAG} mag." if np.isfinite(shift) else ""
    )  # fmt: skip
    return Product(
        draw_self_cleaning(numbers),
        f"Self-cleaning of {len(numbers.outlier)} Sun-like stars: pulls, and absolute magnitudes of outliers",
        f"Low-extinction Sun-like training stars as in Eq. 16, {len(numbers.outlier):,} of {numbers.n_stars:,}; the circle "
        f"has a radius of {RADIUS} σ.{words} Self-cleaning dropped {numbers.dropped:.1%} of all.",
        {
            "": {
                "parallax_pull": Series(numbers.parallax_pull, "", "(fitted - measured) / error"),
                "logg_pull": Series(numbers.logg_pull, "", "(fitted - measured) / error"),
                "absolute_magnitude": Series(numbers.absolute_magnitude, "mag", "M_G"),
                "outlier": Series(numbers.outlier, "", "outside of the circle"),
            }
        },
    )


SELF_CLEANING = Analysis("self_cleaning", "Fig. 4", "Self-cleaning", drawn_now(_self_cleaning), ("model",))


def _words(of: str, entry: Mapping[str, float]) -> str:
    """A bin, briefly; Teff in kK."""
    low, high, edges = entry["low"], entry["high"], held_out.EDGES[of]
    if low == edges[0]:
        return f"< {high:g}"
    return f"> {low:g}" if high == edges[-1] else f"{low:g}–{high:g}"


def _series(axis: "drawing.Axes", bins: Mapping[str, Bins], width: float, limit: float, middle: float = 0.0) -> None:
    """Values in bins, one group of them after the other, with their own standard errors and what is allowed."""
    at, ticks, words = 0, list[int](), list[str]()
    for (of, entries), mark, colour in zip(bins.items(), MARKS, COLOURS, strict=False):
        if not entries:
            continue
        x = np.arange(at, at + len(entries))
        value, n = (np.array([entry[key] for entry in entries], np.float64) for key in ("value", "n"))
        axis.errorbar(x, value, width / np.sqrt(n), fmt=mark, ms=4.5, lw=1.0, color=colour, label=NAMES.get(of, of))
        ticks += x.tolist()
        words += [_words(of, entry) for entry in entries]
        at += len(entries) + 1
    _allowed(axis, middle, limit)
    axis.set_xticks(ticks, words, rotation=60, fontsize=7.5, ha="right", rotation_mode="anchor")
    axis.margins(x=0.04, y=0.25)
    if len(bins) > 1:
        drawing.legend(axis, 7.5, ncols=3, **LEGEND)


def _allowed(axis: "drawing.Axes", middle: float, limit: float) -> None:
    """Shade what the checks allow."""
    axis.axhspan(middle - limit, middle + limit, color=drawing.LIGHT, alpha=0.6, lw=0, zorder=0)
    axis.axhline(middle, color=drawing.GREY, lw=0.8, zorder=0)


def _extinction(axis: "drawing.Axes", line: Mapping[str, Any]) -> None:
    _series(axis, {"E": line["difference"]}, 0.0, held_out.MAX_ZERO_POINT)
    axis.set(xlabel="E, mean of both [mag]", ylabel="median E − estimate [mag]",
             title=f"E = {line['zero_point']:+.3f} + {line['slope']:.3f} × estimate")  # fmt: skip


def _pulls(
    width: float, limit: float, ylabel: str, title: str, axis: "drawing.Axes", found: Mapping[str, Bins]
) -> None:
    _series(axis, found, width, limit)
    axis.set(ylabel=ylabel, title=title)


def _coverage(axis: "drawing.Axes", found: Mapping[str, Mapping[str, Any]]) -> None:
    cases = {"with_parallax": "with parallax", "flux_only": "fluxes alone"}
    names = list(dict.fromkeys(name for of in found.values() for name in of))
    for i, (case, words) in enumerate(cases.items()):
        of = found.get(case, {})
        if not of:
            continue
        x = np.array([names.index(name) for name in of]) + 0.16 * (2 * i - 1)
        share, n = (np.array([entry[key] for entry in of.values()]) for key in ("share", "n"))
        axis.errorbar(x, share, np.sqrt(share * (1.0 - share) / n), fmt=MARKS[i], ms=4.5, lw=1.0, color=COLOURS[i],
                      label=words)  # fmt: skip
    _allowed(axis, held_out.WITHIN_ONE_SIGMA, held_out.MAX_COVERAGE)
    axis.set_xticks(range(len(names)), [drawing.text(name) for name in names], fontsize=8.5)
    axis.margins(x=0.1, y=0.3)
    axis.set(ylabel="within the 68 % interval", title="coverage")
    drawing.legend(axis, 7.5, ncols=2, **LEGEND)


def _parallax_ratio(axis: "drawing.Axes", bins: Bins) -> None:
    _series(axis, {"parallax_snr": bins}, float(np.sqrt(0.5)), 0.0, held_out.MAX_PARALLAX_RATIO)
    axis.set(xlabel="S/N of the measured parallax", ylabel="error over measured error", title="parallax with fluxes",
             ylim=(0.0, max(1.1, 1.2 * max((entry["value"] for entry in bins), default=1.0))))  # fmt: skip


def _kept(axis: "drawing.Axes", kept: Mapping[str, float]) -> None:
    axis.barh(list(kept), list(kept.values()), color=drawing.BLUE, height=0.6)
    axis.axvline(MIN_KEPT, color=drawing.ORANGE, lw=1.2, ls="--")
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=8.5)
    axis.set(xlim=(0.0, 1.0), xlabel="mean weight in training", title="kinds of star that count")


PANELS: Mapping[str, Callable[["drawing.Axes", Any], None]] = {
    "extinction": _extinction,
    "extinction_pulls": partial(_pulls, 1.0, held_out.MAX_MEAN_PULL, "mean pull", "E without bounds"),
    "parallax_pulls": partial(_pulls, 1.25, held_out.MAX_PULL, "median pull", "parallax from fluxes alone"),
    "coverage": _coverage,
    "parallax_ratio": _parallax_ratio,
    "kept_by_kind": _kept,
}


def measured(card: Mapping[str, Any]) -> dict[str, Any]:
    """What the card holds of each panel; NotDrawnError if nothing."""
    found = dict(card.get("held_out", {}).get("checked", {}))
    kept = [phase["kept_by_kind"] for phase in card.get("phases", []) if "kept_by_kind" in phase]
    found |= {"kept_by_kind": kept[-1]} if kept else {}
    found["coverage"] = {case: of for case, of in found.get("coverage", {}).items() if of}
    found = {name: found[name] for name in PANELS if found.get(name)}
    if not found:
        raise NotDrawnError("the model card holds no measurements on held-out stars; train with held_out_stars above 0")
    return found


def draw_checks(found: Mapping[str, Any]) -> "drawing.Figure":
    """One panel for everything that was measured."""
    figure, axes = drawing.grid(len(found), 3 if len(found) in (3, 5, 6) else 2, 4.1, 3.4)
    for axis, name in zip(axes, found, strict=True):
        PANELS[name](axis, found[name])
    return figure


def numbers(found: Mapping[str, Any]) -> NumberTable:
    """Every number of the figure, one a row."""
    rows: list[tuple[str, str, float, float, int, float]] = []
    for name, of in found.items():
        if name == "extinction":
            rows += [(name, key, np.nan, np.nan, of["n"], of[key]) for key in ("slope", "zero_point")]
            of = {"E": of["difference"]}
        if name == "kept_by_kind":
            rows += [(name, kind, np.nan, np.nan, 0, value) for kind, value in of.items()]
        elif name == "coverage":
            rows += [(f"{name} {case}", parameter, np.nan, np.nan, entry["n"], entry["share"])
                     for case, entries in of.items() for parameter, entry in entries.items()]  # fmt: skip
        else:
            groups = {"parallax_snr": of} if name == "parallax_ratio" else of
            rows += [(name, by, entry["low"], entry["high"], entry["n"], entry["value"])
                     for by, entries in groups.items() for entry in entries]  # fmt: skip
    about = {
        "measured": "panel", "of": "parameter or kind of star", "low": "bin from", "high": "to",
        "n": "stars; 0 where not counted", "value": "what was found",
    }  # fmt: skip
    return table_of(rows, about)


def _checks(run: Run) -> Product:
    assert run.model is not None
    card = run.model.card
    found = measured(card)
    failed = [check.name for check in (Check(**c) for c in card.get("checks", [])) if check.passed is False]
    n = card.get("held_out", {}).get("n", 0)
    return Product(
        draw_checks(found),
        f"Checks of {n} held-out stars: extinction, parallaxes, coverage; and kinds of star kept",
        f"{n:,} held-out stars as inferred, binned by what was inferred of them; pulls are over the errors of both. Bars "
        "are standard errors, shaded is what the checks allow beside twice these. Coverage counts the references' errors; "
        "a measured parallax does not judge the posterior that it went into. "
        + (f"Checks that failed: {', '.join(failed)}." if failed else "No check failed."),
        {"": numbers(found)},
    )


CHECKS = Analysis("checks", "", "Checks on held-out stars", drawn_now(_checks), ("model",))
