"""Named checks of a second stage on stars that training held out: refined labels are better, and their intervals hold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xpbayes.checks.training_checks import Check

MIN_STARS = 100
MAX_LOSS = 0.05
"""No group's scatter may grow by more; the same stars are compared, so that chance leaves half of that."""
MAX_COVERAGE_ERROR = 0.05
WITHIN_ONE_SIGMA = 0.6827


def check_second_stage(forward: Sequence[Mapping[str, Any]], refined: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Check refined labels beside those of the forward posterior.

    Args:
        forward, refined: rows of accuracy of the same stars, as the card has them: 'label', 'group', 'n', 'scatter',
            'coverage68'. No checks are made without any of `refined`.
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
    miss = {(r["label"], r["group"]): r["coverage68"] - WITHIN_ONE_SIGMA for r in rows}
    chance = 2.0 * np.sqrt(WITHIN_ONE_SIGMA * (1.0 - WITHIN_ONE_SIGMA))
    beyond = {(r["label"], r["group"]): abs(miss[r["label"], r["group"]]) - chance / np.sqrt(r["n"]) for r in rows}
    worst, far = max(ratio, key=lambda key: ratio[key]), max(beyond, key=lambda key: float(beyond[key]))
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
            bool(beyond[far] <= MAX_COVERAGE_ERROR),
            f"68 % intervals cover {WITHIN_ONE_SIGMA + miss[far]:.1%} at worst ({far[0]}, {far[1]})",
            f"within {MAX_COVERAGE_ERROR:.0%} of {WITHIN_ONE_SIGMA:.1%}, and two standard errors",
            "are the labels' errors right, and are there enough stars kept aside (calibration_fraction)?",
        ),
    ]
