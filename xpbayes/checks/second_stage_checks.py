"""Named checks of a second stage on stars that training held out: refined labels are better, and their intervals hold."""

from collections.abc import Mapping, Sequence
from typing import Any

from xpbayes.checks.held_out_checks import MAX_COVERAGE, MIN_STARS, WITHIN_ONE_SIGMA, off_coverage
from xpbayes.checks.training_checks import Check

MAX_LOSS = 0.05
"""No group's scatter may grow by more; the same stars are compared, so that chance leaves half of that."""


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
