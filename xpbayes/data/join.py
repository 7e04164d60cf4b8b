"""The one join of the package: rows of a table by source_id, and source_ids that a table holds more than once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Lookup:
    """Rows of a table by source_id: (row,) sorted, and where each is in the table."""

    source_id: NDArray[np.int64]
    order: NDArray[np.signedinteger]

    @classmethod
    def of(cls, source_id: NDArray[np.int64]) -> "Lookup":
        """Sort source_ids; of repeated ones the first counts."""
        order = np.argsort(source_id, kind="stable")
        return cls(source_id[order], order.astype(np.int32) if len(order) < 2**31 else order)

    def rows(self, source_id: NDArray[np.int64]) -> NDArray[np.signedinteger]:
        """(star,) row of each star in the table, -1 where it is not there."""
        if not len(self.source_id):
            return np.full(len(source_id), -1)
        at, known = _search(source_id, self.source_id)
        return np.where(known, self.order[at], -1)


def rows_of(wanted: NDArray[np.int64], source_id: NDArray[np.int64]) -> NDArray[np.signedinteger]:
    """(star,) row of each wanted star among the source_ids of a table, -1 where it is not there."""
    return Lookup.of(source_id).rows(wanted)


def are_among(wanted: NDArray[np.int64], ordered: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(star,) which of the wanted stars are among source_ids in ascending order, however many there are."""
    return _search(wanted, ordered)[1] if len(ordered) else np.zeros(len(wanted), bool)


def _search(wanted: NDArray[np.int64], ordered: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return at, ordered[at] == wanted


@dataclass(frozen=True)
class RepeatedIds:
    """How many source_ids a table holds more than once, the smallest of them, and the row where that is first."""

    count: int
    first: int
    row: int


def repeated_ids(source_id: NDArray[np.int64]) -> RepeatedIds | None:
    """Find source_ids that occur more than once; None if every row is another star's."""
    unique, first, count = np.unique(source_id, return_index=True, return_counts=True)
    again = np.flatnonzero(count > 1)
    return RepeatedIds(len(again), int(unique[again[0]]), int(first[again[0]])) if len(again) else None
