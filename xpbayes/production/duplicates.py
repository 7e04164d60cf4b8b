"""Source_ids that occur more than once among many files, found without holding all of them in memory.

In: per file its range of source_ids, its number of rows and a way to read them. Out: what is repeated, and where first.
Files whose ranges do not overlap are never compared: Gaia's bulk files are ordered, and most surveys keep that order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 20_000_000
"""Source_ids compared at once: 160 MB, and as much again to sort them."""


@dataclass(frozen=True)
class Identifiers:
    """The source_ids of one file."""

    name: str  # what to call the file in a message
    first: int  # smallest and largest source_id
    last: int
    count: int  # rows
    read: Callable[[], NDArray[np.int64]]


@dataclass(frozen=True)
class Repeated:
    """Source_ids that occur more than once."""

    count: int
    first: int  # the smallest of them
    files: tuple[str, ...]  # that hold the first, one entry per occurrence, at most four


def find_repeated(files: Sequence[Identifiers], at_once: int = AT_ONCE) -> Repeated | None:
    """Find source_ids that occur more than once, within a file or across files.

    Where overlapping files hold more than `at_once`, they are read once per share of their common range.
    """
    count, first = 0, 0
    holders: tuple[str, ...] = ()
    for group in _overlapping([f for f in files if f.count]):
        total = sum(f.count for f in group)
        low, high = group[0].first, max(f.last for f in group)
        edges = np.linspace(low, high + 1, -(-total // at_once) + 1).astype(np.int64)
        edges[0], edges[-1] = low, high + 1  # beyond 2^53 a float does not hold every integer
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            parts = []
            for file in group:
                ids = file.read()
                parts.append(ids[(ids >= start) & (ids < stop)])
            unique, times = np.unique(np.concatenate(parts), return_counts=True)
            again = unique[times > 1]
            if again.size and not count:
                first = int(again[0])
                where = zip(group, parts, strict=True)
                holders = tuple(sorted(f.name for f, ids in where for _ in range(int((ids == first).sum()))))[:4]
            count += again.size
    return Repeated(count, first, holders) if count else None


def _overlapping(files: list[Identifiers]) -> list[list[Identifiers]]:
    """Groups of files whose ranges touch, in the order of their source_ids."""
    groups: list[list[Identifiers]] = []
    reach = -1
    for file in sorted(files, key=lambda f: (f.first, f.last)):
        if groups and file.first <= reach:
            groups[-1].append(file)
        else:
            groups.append([file])
        reach = max(reach, file.last)
    return groups
