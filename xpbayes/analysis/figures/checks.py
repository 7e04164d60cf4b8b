"""What the checks of held-out stars measured, and which kinds of star training kept: from the model card."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, NotDrawnError, Product, Series, drawn_now
from xpbayes.checks.held_out_checks import (
    EDGES,
    MAX_COVERAGE,
    MAX_MEAN_PULL,
    MAX_PARALLAX_RATIO,
    MAX_PULL,
    MAX_ZERO_POINT,
    WITHIN_ONE_SIGMA,
)
from xpbayes.checks.training_checks import MIN_KEPT, Check

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = ("o", "s", "D")
COLOURS = (drawing.BLUE, drawing.ORANGE, drawing.GREY)
Bins = Sequence[Mapping[str, float]]


def _words(of: str, entry: Mapping[str, float]) -> str:
    """A bin, briefly; Teff in kK."""
    low, high, edges = entry["low"], entry["high"], EDGES[of]
    if low == edges[0]:
        return f"< {high:g}"
    return f"> {low:g}" if high == edges[-1] else f"{low:g}–{high:g}"


def _series(axis: "Axes", bins: Mapping[str, Bins], width: float, limit: float, middle: float = 0.0) -> None:
    """Values in bins, one group of them after the other, with their own standard errors and what is allowed."""
    at, ticks, words = 0, list[int](), list[str]()
    for (of, entries), mark, colour in zip(bins.items(), MARKS, COLOURS, strict=False):
        if not entries:
            continue
        x = np.arange(at, at + len(entries))
        value, n = (np.array([entry[key] for entry in entries], np.float64) for key in ("value", "n"))
        axis.errorbar(x, value, width / np.sqrt(n), fmt=mark, ms=4.5, lw=1.0, color=colour, label=_NAMES.get(of, of))
        ticks += x.tolist()
        words += [_words(of, entry) for entry in entries]
        at += len(entries) + 1
    axis.axhspan(middle - limit, middle + limit, color=drawing.LIGHT, alpha=0.6, lw=0, zorder=0)
    axis.axhline(middle, color=drawing.GREY, lw=0.8, zorder=0)
    axis.set_xticks(ticks, words, rotation=60, fontsize=7.5, ha="right", rotation_mode="anchor")
    axis.margins(x=0.04, y=0.25)
    if len(bins) > 1:
        drawing.legend(axis, 7.5, ncols=3, loc="upper left", handletextpad=0.2, columnspacing=1.0)


_NAMES = {"teff": "Teff [kK]", "logg": "log g", "E": "E [mag]", "parallax_snr": "S/N"}


def _extinction(axis: "Axes", found: Mapping[str, Any]) -> None:
    line = found["extinction"]
    _series(axis, {"E": line["difference"]}, 0.0, MAX_ZERO_POINT)
    axis.set(xlabel="E, mean of both [mag]", ylabel="median E − estimate [mag]",
             title=f"E = {line['zero_point']:+.3f} + {line['slope']:.3f} × estimate")  # fmt: skip


def _extinction_pulls(axis: "Axes", found: Mapping[str, Any]) -> None:
    _series(axis, found["extinction_pulls"], 1.0, MAX_MEAN_PULL)
    axis.set(ylabel="mean pull", title="E without bounds")


def _parallax_pulls(axis: "Axes", found: Mapping[str, Any]) -> None:
    _series(axis, found["parallax_pulls"], 1.25, MAX_PULL)
    axis.set(ylabel="median pull", title="parallax from fluxes alone")


def _coverage(axis: "Axes", found: Mapping[str, Any]) -> None:
    cases = {"with_parallax": "with parallax", "flux_only": "fluxes alone"}
    names = list(dict.fromkeys(name for of in found["coverage"].values() for name in of))
    for i, (case, words) in enumerate(cases.items()):
        of = found["coverage"].get(case, {})
        if not of:
            continue
        x = np.array([names.index(name) for name in of]) + 0.16 * (2 * i - 1)
        share, n = (np.array([entry[key] for entry in of.values()]) for key in ("share", "n"))
        axis.errorbar(x, share, np.sqrt(share * (1.0 - share) / n), fmt=MARKS[i], ms=4.5, lw=1.0, color=COLOURS[i],
                      label=words)  # fmt: skip
    axis.axhspan(WITHIN_ONE_SIGMA - MAX_COVERAGE, WITHIN_ONE_SIGMA + MAX_COVERAGE, color=drawing.LIGHT, alpha=0.6, lw=0,
                 zorder=0)  # fmt: skip
    axis.axhline(WITHIN_ONE_SIGMA, color=drawing.GREY, lw=0.8, zorder=0)
    axis.set_xticks(range(len(names)), [drawing.text(name) for name in names], fontsize=8.5)
    axis.margins(x=0.1, y=0.3)
    axis.set(ylabel="within the 68 % interval", title="coverage")
    drawing.legend(axis, 7.5, ncols=2, loc="upper left", handletextpad=0.2, columnspacing=1.0)


def _parallax_ratio(axis: "Axes", found: Mapping[str, Any]) -> None:
    bins = found["parallax_ratio"]
    _series(axis, {"parallax_snr": bins}, float(np.sqrt(0.5)), 0.0, MAX_PARALLAX_RATIO)
    axis.set(xlabel="S/N of the measured parallax", ylabel="error over measured error", title="parallax with fluxes",
             ylim=(0.0, max(1.1, 1.2 * max((entry["value"] for entry in bins), default=1.0))))  # fmt: skip


def _kept(axis: "Axes", found: Mapping[str, Any]) -> None:
    kept = found["kept_by_kind"]
    axis.barh(list(kept), list(kept.values()), color=drawing.BLUE, height=0.6)
    axis.axvline(MIN_KEPT, color=drawing.ORANGE, lw=1.2, ls="--")
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=8.5)
    axis.set(xlim=(0.0, 1.0), xlabel="mean weight in training", title="kinds of star that count")


PANELS: Mapping[str, Callable[["Axes", Mapping[str, Any]], None]] = {
    "extinction": _extinction,
    "extinction_pulls": _extinction_pulls,
    "parallax_pulls": _parallax_pulls,
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


def draw_checks(found: Mapping[str, Any]) -> "Figure":
    """One panel for everything that was measured."""
    figure, axes = drawing.grid(len(found), 3 if len(found) in (3, 5, 6) else 2, 4.1, 3.4)
    for axis, name in zip(axes, found, strict=True):
        PANELS[name](axis, found)
    return figure


def numbers(found: Mapping[str, Any]) -> dict[str, Series]:
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
    what, of_what, low, high, n, value = zip(*rows, strict=True)
    return {
        "measured": Series(list(what), "", "panel"),
        "of": Series(list(of_what), "", "parameter or kind of star"),
        "low": Series(np.array(low), "", "bin from"),
        "high": Series(np.array(high), "", "to"),
        "n": Series(np.array(n), "", "stars; 0 where not counted"),
        "value": Series(np.array(value), "", "what was found"),
    }


def _make(run: Run) -> Product:
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


CHECKS = Analysis("checks", "", "Checks on held-out stars", drawn_now(_make), ("model",))
