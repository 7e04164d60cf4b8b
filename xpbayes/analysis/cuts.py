"""Cuts one after the other, with how many stars each took."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


def apply_cuts(
    keep: NDArray[np.bool_], passed: Mapping[str, NDArray[np.bool_]], taken: dict[str, int]
) -> NDArray[np.bool_]:
    """(star,) which stars pass every cut.

    Args:
        keep: (star,) which are there before.
        passed: (star,) of every cut, by its name.
        taken: how many stars each cut took so far; a star is counted at the first cut that takes it.
    """
    keep = keep.copy()
    for name, good in passed.items():
        taken[name] = taken.get(name, 0) + int((keep & ~good).sum())
        keep &= good
    return keep


def in_words(taken: Mapping[str, int]) -> str:
    """Which cuts took how many stars, "none" if none did."""
    return ", ".join(f"{what}: {count:,}" for what, count in taken.items() if count) or "none"
