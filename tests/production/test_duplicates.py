"""Repeated source_ids are found whatever the order and size of the files."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from xpbayes.production.duplicates import Identifiers, find_repeated


def files(*lists: list[int]) -> list[Identifiers]:
    out = []
    for i, values in enumerate(lists):
        ids = np.array(values, np.int64)
        out.append(
            Identifiers(f"f{i}", int(ids.min(initial=2**62)), int(ids.max(initial=0)), len(ids), lambda a=ids: a)
        )
    return out


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(1, 60), max_size=12), max_size=6), st.integers(1, 20))
def test_as_counting_does(lists, at_once):
    counts = Counter(v for values in lists for v in values)
    expected = {v for v, n in counts.items() if n > 1}
    found = find_repeated(files(*lists), at_once)
    if not expected:
        assert found is None
    else:
        assert (found.count, found.first) == (len(expected), min(expected))
        holders = [f"f{i}" for i, values in enumerate(lists) for _ in range(values.count(found.first))]
        assert Counter(found.files) <= Counter(holders) and len(found.files) == min(len(holders), 4)


def test_identifiers_that_a_float_cannot_tell_apart():
    big = 2**62
    assert find_repeated(files([big, big + 2], [big + 1, big + 3])) is None
    assert find_repeated(files([big, big + 1], [big + 1, big + 3]), at_once=1).first == big + 1


def test_files_apart_are_never_read_together():
    reads: list[tuple[int, ...]] = []

    def make(name: str, ids: list[int]) -> Identifiers:
        def read() -> np.ndarray:
            reads.append(tuple(ids))
            return np.array(ids, np.int64)

        return Identifiers(name, min(ids), max(ids), len(ids), read)

    assert find_repeated([make("b", [10, 12]), make("a", [1, 3]), make("c", [11, 13])], at_once=10) is None
    assert reads == [(1, 3), (10, 12), (11, 13)]
