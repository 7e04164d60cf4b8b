"""Self-cleaning on low-extinction Sun-like stars (ZGR23 Fig. 4), from what training recorded in the model card."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, NotDrawnError, Product, Series, drawn_now

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TWIN_BINARY_MAG = 0.75
"""Two equal stars are brighter than one by 2.5 log10 2 = 0.7526 mag."""
RADIUS = 3.5
"""Of the circle in Fig. 4 [sigma]."""


@dataclass(frozen=True)
class SelfCleaning:
    """Sun-like stars after self-cleaning.

    Attributes:
        logg_pull, parallax_pull: (star,) fitted minus measured, over the measurement's error.
        absolute_magnitude: (star,) M_G [mag], NaN where G is not known.
        outlier: (star,) outside of the circle.
        n_stars: stars that self-cleaning looked at, of any kind.
        dropped: share of them that it dropped.
    """

    logg_pull: NDArray[np.float64]
    parallax_pull: NDArray[np.float64]
    absolute_magnitude: NDArray[np.float64]
    outlier: NDArray[np.bool_]
    n_stars: int
    dropped: float

    @property
    def magnitude_shift(self) -> float:
        """Median M_G of outliers minus that of the others [mag]; NaN without either."""
        known = np.isfinite(self.absolute_magnitude)
        out, rest = (self.absolute_magnitude[known & m] for m in (self.outlier, ~self.outlier))
        return float(np.median(out) - np.median(rest)) if len(out) and len(rest) else float("nan")


def from_card(card: dict[str, Any]) -> SelfCleaning:
    """Read the last self-cleaning of a training.

    Raises:
        NotDrawnError: there was none, or no Sun-like star.
    """
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


def draw_self_cleaning(numbers: SelfCleaning) -> "Figure":
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


def _make(run: Run) -> Product:
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


SELF_CLEANING = Analysis("self_cleaning", "Fig. 4", "Self-cleaning", drawn_now(_make), ("model",))
