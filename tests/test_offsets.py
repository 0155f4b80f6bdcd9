"""Groups of rows against lists of lists."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distilrec.offsets import groups_of, offsets_of, take_rows

SIZES = st.lists(st.integers(0, 5), max_size=8)


@given(SIZES, st.data())
def test_rows_are_those_of_lists(sizes, data):
    rows = iter(range(sum(sizes)))
    lists = [[next(rows) for _ in range(size)] for size in sizes]
    offsets = offsets_of(sizes)
    assert (offsets.dtype, len(offsets)) == (np.int64, len(sizes) + 1)
    for group, expected in enumerate(lists):
        assert list(range(offsets[group], offsets[group + 1])) == expected
        assert np.flatnonzero(groups_of(offsets) == group).tolist() == expected
    places = st.integers(0, max(len(sizes) - 1, 0))
    groups = data.draw(st.lists(places, max_size=9 if sizes else 0))
    taken, found = take_rows(offsets, np.array(groups, np.int64))
    assert found.tolist() == [row for group in groups for row in lists[group]]
    assert np.diff(taken).tolist() == [sizes[group] for group in groups]
