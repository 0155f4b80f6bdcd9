"""Groups of rows that stand one after the other in an array.

Their offsets are one number more than there are groups: group g has the rows
offsets[g]:offsets[g + 1].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def offsets_of(sizes: ArrayLike) -> NDArray[np.int64]:
    """Return the offsets of groups of these sizes, (groups + 1,)."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def groups_of(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the group of every row, (rows,)."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def take_rows(
    offsets: NDArray[np.int64], groups: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the offsets of some groups of rows when they stand one after the other, and the rows
    that they have, (rows,).
    """
    sizes = np.diff(offsets)[groups]
    taken = offsets_of(sizes)
    # A row is its group's first one, and as many further as it has before it in the group
    first: NDArray[np.int64] = np.repeat(offsets[groups] - taken[:-1], sizes)
    return taken, first + np.arange(taken[-1], dtype=np.int64)
