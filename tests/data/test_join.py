"""The join by source_id against the plainest way to do it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from xpbayes.data.join import are_among, repeated_ids, rows_of

IDS = st.lists(st.sampled_from([0, 1, 5, 2**53, 2**53 + 1, 2**62, -1]), max_size=12).map(
    lambda v: np.array(v, np.int64)
)


@given(wanted=IDS, source_id=IDS)
def test_rows_are_those_of_a_dictionary(wanted, source_id):
    first = {}
    for row, star in enumerate(source_id.tolist()):
        first.setdefault(star, row)
    assert_array_equal(rows_of(wanted, source_id), [first.get(star, -1) for star in wanted.tolist()])
    assert_array_equal(are_among(wanted, np.unique(source_id)), [star in first for star in wanted.tolist()])


@given(source_id=IDS)
def test_repeated_ids_are_counted(source_id):
    ids = source_id.tolist()
    again = sorted(star for star in set(ids) if ids.count(star) > 1)
    found = repeated_ids(source_id)
    assert (found is None) == (not again)
    if found is not None:
        assert (found.count, found.first, found.row) == (len(again), again[0], ids.index(again[0]))
