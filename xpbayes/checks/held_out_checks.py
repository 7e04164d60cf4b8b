"""Named checks of a model and its second stage on held-out stars: scale and zero point of E, parallaxes, intervals.

What is measured is plain data for the model card, from which figures are drawn; what is demanded of it makes the checks.
Stars are told apart by what was inferred of them, never by what is measured of them: an honest posterior is without bias
among stars of the same answer, and among stars of the same truth it is not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from xpbayes.checks.training_checks import Check

EDGES: Mapping[str, tuple[float, ...]] = {
    "teff": (2.0, 4.0, 5.0, 6.0, 7.0, 8.5, 60.0),
    "logg": (-1.0, 1.1, 2.0, 3.0, 3.8, 4.3, 6.5),
    "E": (-1.0, 0.05, 0.1, 0.2, 0.4, 0.8, 20.0),
    "parallax_snr": (1.0, 3.0, 5.0, 10.0, 20.0, 1000.0),
}
"""Of bins [kK, dex, mag, -]; the first and the last stand for all beyond."""
MIN_IN_BIN, MIN_STARS = 30, 100
WITHIN_ONE_SIGMA = math.erf(math.sqrt(0.5))
CLIP = 5.0
"""Pulls beyond count as such in means: one wrong reference is not to decide."""
MAX_SLOPE, MAX_ZERO_POINT = 0.03, 0.01
"""Of E against its references [-, mag]."""
MAX_COVERAGE = 0.05
MAX_PULL = 0.45
"""A bias of so many sigma costs 68 % intervals as much coverage as `MAX_COVERAGE`."""
MAX_MEAN_PULL = 0.2
"""Of E without bounds: a mean over 25 stars is then off by its own error."""
MAX_PARALLAX_RATIO = 1.0
MAX_LOSS = 0.05
"""No group's scatter may grow by more in the second stage; of the same stars, so that chance leaves half of that."""
NM_B, NM_V = 440.0, 550.0
"""Effective wavelengths of B and V [nm]."""
MIN_EXCESS, MAX_EXCESS = 0.7, 1.3
"""[mag] Of B - V for a unit of E: dust maps differ by 15 %, and narrow channels from broad bands."""


@dataclass(frozen=True)
class Inferred:
    """What inference says, (star, parameter) each: labels, E [mag], parallax [mas]."""

    # 50, 16 and 84 % quantiles
    median: Float[np.ndarray, "star parameter"]
    low: Float[np.ndarray, "star parameter"]
    high: Float[np.ndarray, "star parameter"]
    unbounded: Float[np.ndarray, "star two"]  # (star, 2) E as if it could be negative, and its error [mag]

    def half(self, reference: NDArray[np.float64]) -> NDArray[np.float64]:
        """(star, parameter) half of the 68 % interval on the reference's side."""
        return np.where(reference > self.median, self.high - self.median, self.median - self.low)

    def pull(self, reference: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.float64]:
        """(star, parameter) median minus reference over both errors together; NaN where there is no reference."""
        return (self.median - reference) / np.hypot(self.half(reference), error)


@dataclass(frozen=True)
class HeldOut:
    """Held-out stars."""

    names: tuple[str, ...]  # labels in order; E and parallax follow
    # (star, parameter) labels, reddening estimate, measured parallax; NaN where missing
    reference: Float[np.ndarray, "star parameter"]
    error: Float[np.ndarray, "star parameter"]
    with_parallax: Inferred | None  # answers from fluxes and parallaxes; None if no star has a parallax
    flux_only: Inferred  # answers from fluxes alone

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters."""
        return (*self.names, "E", "parallax")


# ------------------------------------------------------------------------------------------------------------- numbers


def straight_line(
    x: NDArray[np.float64], y: NDArray[np.float64], x_error: NDArray[np.float64], y_error: NDArray[np.float64]
) -> dict[str, float]:
    """Fit y = 'zero_point' + 'slope' x, errors in both; outliers count less. The error of each is beside it."""

    def pulls(at: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((y - at[0] - at[1] * x) / np.hypot(y_error, at[1] * x_error))

    from scipy.optimize import least_squares  # takes long to import

    found = least_squares(pulls, (0.0, 1.0), loss="soft_l1")
    width = max(1.0, float(np.sqrt(np.mean(np.minimum(np.abs(pulls(found.x)), CLIP) ** 2))))
    errors = width * np.sqrt(np.diagonal(np.linalg.inv(found.jac.T @ found.jac)))
    (zero, slope), (zero_error, slope_error) = found.x, errors
    values = {"slope": slope, "slope_error": slope_error, "zero_point": zero, "zero_point_error": zero_error}
    return {name: round(float(value), 5) for name, value in values.items()}


def in_bins(by: NDArray[np.float64], values: NDArray[np.float64], of: str, statistic: Any) -> list[dict[str, float]]:
    """A statistic of the finite values in the bins of `EDGES`, where there are enough: 'low', 'high', 'n', 'value'."""
    edges, out = EDGES[of], []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = values[(by >= low) & (by < high) & np.isfinite(values)]
        if len(inside) >= MIN_IN_BIN:
            value = round(float(statistic(inside)), 4)
            out.append({"low": float(low), "high": float(high), "n": len(inside), "value": value})
    return out


def _clipped_mean(pulls: NDArray[np.float64]) -> float:
    return float(np.mean(np.clip(pulls, -CLIP, CLIP)))


def _coverage(stars: HeldOut, answer: Inferred, skip: tuple[str, ...] = ()) -> dict[str, dict[str, float]]:
    pull = answer.pull(stars.reference, stars.error)
    out = {}
    for name, values in zip(stars.parameters, pull.T, strict=True):
        known = values[np.isfinite(values)]
        if len(known) >= MIN_STARS and name not in skip:
            out[name] = {"n": len(known), "share": round(float(np.mean(np.abs(known) < 1.0)), 4)}
    return out


def _extinction(stars: HeldOut) -> dict[str, Any]:
    answer = stars.with_parallax or stars.flux_only
    reference, error = stars.reference[:, -2], stars.error[:, -2]
    value, own = answer.unbounded.T
    known = np.isfinite(reference) & np.isfinite(value) & (own > 0) & (error > 0)
    if known.sum() < MIN_STARS:
        return {}
    pull = np.where(known, (value - reference) / np.hypot(own, error), np.nan)
    # The mean of both, each with its weight, does not correlate with their difference.
    best = (value * error**2 + reference * own**2) / (error**2 + own**2)
    by = {"E": best} | {name: answer.median[:, i] for i, name in enumerate(stars.names) if name in EDGES}
    line = straight_line(reference[known], value[known], error[known], own[known])
    shown = in_bins(best, np.where(known, value - reference, np.nan), "E", np.median)
    pulls = {name: in_bins(values, pull, name, _clipped_mean) for name, values in by.items()}
    return {"extinction": {**line, "n": int(known.sum()), "difference": shown}, "extinction_pulls": pulls}


def parallax_ratios(stars: HeldOut) -> NDArray[np.float64]:
    """(star,) error of the inferred parallax over that of the measured one, in bins of the measurement's S/N.

    Fluxes know the parallax by c times the error that they claim, c from how far it is from what was measured, the
    measurement's error taken off. Of what fluxes and measurement together give, the share w that the posterior claims is
    the fluxes', and the error of the whole is that of the parts, whatever was claimed.
    """
    assert stars.with_parallax is not None
    measured, error = stars.reference[:, -1], stars.error[:, -1]
    alone = stars.flux_only
    claimed = alone.half(stars.reference)[:, -1]
    both = 0.5 * (stars.with_parallax.high - stars.with_parallax.low)[:, -1]
    share = np.clip(1.0 - (both / error) ** 2, 0.0, 1.0)
    square = ((alone.median[:, -1] - measured) ** 2 - error**2) / claimed**2
    snr, ratio = measured / error, np.full(len(measured), np.nan)
    for low, high in zip(EDGES["parallax_snr"][:-1], EDGES["parallax_snr"][1:], strict=True):
        inside = np.flatnonzero((snr >= low) & (snr < high) & np.isfinite(square))
        if len(inside) >= MIN_IN_BIN:
            factor2 = max(float(np.quantile(square[inside], WITHIN_ONE_SIGMA)), 0.0)
            w, relative = share[inside], claimed[inside] / error[inside]
            ratio[inside] = np.sqrt((1.0 - w) ** 2 + w**2 * factor2 * relative**2)
    return ratio


def measure(stars: HeldOut) -> dict[str, Any]:
    """What the checks judge and figures draw, as plain data; what cannot be measured is left out."""
    found: dict[str, Any] = _extinction(stars)
    found["coverage"] = {"flux_only": _coverage(stars, stars.flux_only)}
    pull = stars.flux_only.pull(stars.reference, stars.error)[:, -1]
    if np.isfinite(pull).sum() >= MIN_STARS:
        found["parallax_pulls"] = {
            name: in_bins(stars.flux_only.median[:, i], pull, name, np.median)
            for i, name in enumerate(stars.names)
            if name in EDGES
        }
    if stars.with_parallax is not None:
        # A parallax cannot judge the posterior that it went into.
        found["coverage"]["with_parallax"] = _coverage(stars, stars.with_parallax, ("parallax",))
        snr = stars.reference[:, -1] / stars.error[:, -1]
        found["parallax_ratio"] = in_bins(snr, parallax_ratios(stars), "parallax_snr", np.median)
    return found


# -------------------------------------------------------------------------------------------------------------- checks


def _pulls(
    name: str, found: Mapping[str, Any], allowed: tuple[float, float], words: tuple[str, str, str], question: str
) -> Check:
    """Whether the bin farthest from nought, beyond two of its own errors `width` / sqrt(n), is near enough."""
    (width, limit), (what, bins, needed) = allowed, words
    entries = [(by, entry) for by, of in found.get(name, {}).items() for entry in of]
    if not entries:
        return Check(name, None, f"needs {MIN_STARS} held-out stars with {needed}")
    by, entry = max(entries, key=lambda e: abs(e[1]["value"]) - 2.0 * width / np.sqrt(e[1]["n"]))
    return Check(
        name,
        abs(entry["value"]) <= limit + 2.0 * width / float(np.sqrt(entry["n"])),
        f"the {what} is {entry['value']:+.2f} for {entry['n']} stars of {_range(by, entry)}",
        f"at most {limit}, and two standard errors, in bins of {bins}",
        question,
    )


def _range(name: str, entry: Mapping[str, float]) -> str:
    low, high, edges = entry["low"], entry["high"], EDGES[name]
    of = {"teff": "Teff", "logg": "log g", "parallax_snr": "S/N"}.get(name, name)
    unit = {"teff": " kK", "E": " mag"}.get(name, "")
    if low == edges[0]:
        return f"{of} below {high:g}{unit}"
    return f"{of} above {low:g}{unit}" if high == edges[-1] else f"{of} {low:g} to {high:g}{unit}"


def extinction_scale(found: Mapping[str, Any]) -> Check:
    """E has the scale and the zero point of the reddening estimates of held-out stars, errors in both."""
    name, line = "extinction_scale", found.get("extinction")
    if not line:
        return Check(name, None, f"needs {MIN_STARS} held-out stars with reddening estimates")
    return Check(
        name,
        abs(line["slope"] - 1.0) <= MAX_SLOPE + 2.0 * line["slope_error"]
        and abs(line["zero_point"]) <= MAX_ZERO_POINT + 2.0 * line["zero_point_error"],
        f"E is {line['slope']:.3f} ± {line['slope_error']:.3f} times the estimates and {line['zero_point']:+.4f} ± "
        f"{line['zero_point_error']:.4f} mag",
        f"within {MAX_SLOPE:.0%} and {MAX_ZERO_POINT} mag, and two standard errors",
        "are the errors of the reddening estimates right, and did the gauge come to rest?",
    )


def extinction_pulls(found: Mapping[str, Any]) -> Check:
    """Means of E without bounds are unbiased for every kind of star: dust maps are such means."""
    return _pulls(
        "extinction_pulls",
        found,
        (1.0, MAX_MEAN_PULL),
        ("mean pull of e_unbounded", "Teff, log g and E", "reddening estimates"),
        "do reddening estimates have an error of their own for this kind of star?",
    )


def parallax_pulls(found: Mapping[str, Any]) -> Check:
    """Parallaxes from fluxes alone are neither too large nor too small for any kind of star: luminosities are right."""
    return _pulls(
        "parallax_pulls",
        found,
        (1.25, MAX_PULL),
        ("median pull of parallaxes from fluxes alone", "log g and Teff", "measured parallaxes"),
        "did training sacrifice these stars, or do their parallaxes have another zero point?",
    )


def off_coverage(share: float, n: float) -> float:
    """By how much the share of n stars within their 68 % intervals is off 68.3 %, beyond two of its standard errors."""
    noise = np.sqrt(WITHIN_ONE_SIGMA * (1.0 - WITHIN_ONE_SIGMA) / n)
    return float(abs(share - WITHIN_ONE_SIGMA) - 2.0 * noise)


def coverage(found: Mapping[str, Any]) -> Check:
    """68 % intervals of all parameters hold 68 % of the references, with and without parallax, errors of both counted."""
    cases = found.get("coverage", {})
    shares = [(case, parameter, entry) for case, of in cases.items() for parameter, entry in of.items()]
    if not shares:
        return Check("coverage", None, f"needs {MIN_STARS} held-out stars with labels")
    case, parameter, entry = max(shares, key=lambda s: off_coverage(s[2]["share"], s[2]["n"]))
    how = {"with_parallax": "with parallax", "flux_only": "from fluxes alone"}[case]
    return Check(
        "coverage",
        off_coverage(entry["share"], entry["n"]) <= MAX_COVERAGE,
        f"of {len(shares)} parameters and cases, {parameter} {how} is worst: its 68 % interval holds {entry['share']:.1%} "
        f"of {entry['n']} stars",
        f"within {MAX_COVERAGE:.0%} of {WITHIN_ONE_SIGMA:.1%}, and two standard errors",
        "were enough stars kept aside for calibration, and are the errors of the references right?",
    )


def parallax_gain(found: Mapping[str, Any]) -> Check:
    """Inferred parallaxes are never worse than those that went in (ZGR23 Section 5.4), and better where these are weak."""
    bins = found.get("parallax_ratio", [])
    if not bins:
        return Check("parallax_gain", None, f"needs {MIN_IN_BIN} held-out stars with measured parallaxes of one S/N")

    def beyond(entry: Mapping[str, float]) -> float:
        return float(entry["value"] * (1.0 - 2.0 / np.sqrt(2.0 * entry["n"])))

    worst, least = max(bins, key=beyond), min(bins, key=lambda entry: entry["value"])
    return Check(
        "parallax_gain",
        beyond(worst) <= MAX_PARALLAX_RATIO,
        f"errors of inferred parallaxes are {worst['value']:.2f} times the measured ones at "
        f"{_range('parallax_snr', worst)} and {least['value']:.2f} times at {_range('parallax_snr', least)}",
        f"at most {MAX_PARALLAX_RATIO:g} at every S/N, two standard errors taken off",
        "are intervals from fluxes alone too narrow?",
    )


def extinction_unit(wavelength_nm: NDArray[np.floating], curve: NDArray[np.floating]) -> Check:
    """A unit of E reddens B - V by about a magnitude: catches estimates in another unit, to which E's scale bends.

    `curve` is (channel,) R, optical depth per unit E.
    """
    name, order = "extinction_unit", np.argsort(wavelength_nm)
    wavelength = np.asarray(wavelength_nm, np.float64)[order]
    if not (wavelength[0] <= NM_B and wavelength[-1] >= NM_V and np.sum(wavelength < 700.0) >= 3):
        return Check(name, None, "needs channels from B to V")
    at_b, at_v = np.interp((NM_B, NM_V), wavelength, np.asarray(curve, np.float64)[order])
    excess = 2.5 / np.log(10.0) * (at_b - at_v)
    return Check(
        name,
        bool(MIN_EXCESS <= excess <= MAX_EXCESS),
        f"one unit of E is a colour excess B - V of {excess:.2f} mag",
        f"between {MIN_EXCESS} and {MAX_EXCESS} mag",
        "are reddening estimates E(B-V) in mag, not extinctions in some band?",
    )


def check_held_out(found: Mapping[str, Any]) -> list[Check]:
    """Every check of held-out stars, from `measure`; empty if no stars were inferred."""
    return [make(found) for make in (extinction_scale, extinction_pulls, parallax_pulls, coverage, parallax_gain)]


def check_second_stage(forward: Sequence[Mapping[str, Any]], refined: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Check refined labels beside those of the forward posterior; no checks without any of `refined`.

    Both are rows of accuracy of the same stars, as the card has them: 'label', 'group', 'n', 'scatter', 'coverage68'.
    """
    if not refined:
        return []
    before = {(row["label"], row["group"]): row for row in forward}
    rows = [row for row in refined if row["n"] >= MIN_STARS and (row["label"], row["group"]) in before]
    if not rows:
        few = f"no group of {MIN_STARS} held-out stars"
        return [Check("refined_labels", None, few), Check("refined_intervals", None, few)]
    ratio = {
        (r["label"], r["group"]): r["scatter"] / max(before[r["label"], r["group"]]["scatter"], 1e-9) for r in rows
    }
    worst = max(ratio, key=lambda key: ratio[key])
    far = max(rows, key=lambda row: off_coverage(row["coverage68"], row["n"]))
    of_all = ", ".join(f"{label} {value:.2f}" for (label, group), value in ratio.items() if group == "all")
    return [
        Check(
            "refined_labels",
            ratio[worst] <= 1.0 + MAX_LOSS,
            f"scatter over the forward posterior's: {of_all}; at worst {ratio[worst]:.2f} ({worst[0]}, {worst[1]})",
            f"nowhere above {1.0 + MAX_LOSS:.2f}",
            "are training stars like those held out, and were there enough? Train with second_stage = false if not",
        ),
        Check(
            "refined_intervals",
            off_coverage(far["coverage68"], far["n"]) <= MAX_COVERAGE,
            f"68 % intervals cover {far['coverage68']:.1%} at worst ({far['label']}, {far['group']})",
            f"within {MAX_COVERAGE:.0%} of {WITHIN_ONE_SIGMA:.1%}, and two standard errors",
            "are the labels' errors right, and are there enough stars kept aside (calibration_fraction)?",
        ),
    ]
