"""The ridge regression of each item on its neighbours only: items x items weights for catalogues
whose matrix does not fit into memory.

    b_j = (X_N' X_N + ridge I)^-1 X_N' y_j,   N the neighbours of j: largest X_i' y_j / norm(X_i)

The columns of SLIM on features chosen beforehand (fsSLIM, Ning & Karypis 2011, sec. III-C), with a
ridge in place of its two penalties. With all items as neighbours it is the dense solution of an
item that was had together with all of them. An item costs the pairs of neighbours in each row, and
a third of neighbours^3 operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distilrec.offsets import offsets_of
from distilrec.teachers.item_weights import SparseWeights
from distilrec.teachers.kernels import fill_systems

_TOGETHER = 64  # items whose systems are solved at one time


@dataclass(frozen=True)
class Regression:
    """Rows of X, each a history, and the items that they have as targets.

    offsets: (rows + 1,) int64; items: (n,) int32; values: (n,) float32; target_offsets: (items +
    1,) int64, the rows of target j are target_rows[target_offsets[j]:target_offsets[j + 1]]; own:
    whether an item can be its own neighbour.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    values: NDArray[np.float32]
    target_offsets: NDArray[np.int64]
    target_rows: NDArray[np.int32]
    own: bool

    @property
    def catalogue(self) -> int:
        """The number of items."""
        return len(self.target_offsets) - 1


def rows_by_item(
    rows: NDArray[np.int32], items: NDArray[np.int32], catalogue: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the rows of every item, one item after the other: (items + 1,) offsets, and rows."""
    counts = np.bincount(items, minlength=catalogue)
    offsets = offsets_of(counts)
    return offsets, rows[np.argsort(items, kind="stable")]


def solve_on_neighbours(
    regression: Regression, ridges: Sequence[float], neighbours: int
) -> list[SparseWeights]:
    """Return the weights for each ridge."""
    items, size = regression.catalogue, min(neighbours, regression.catalogue)
    lengths = np.diff(regression.offsets)
    rows = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    order = np.argsort(regression.items, kind="stable")
    by_row = (regression.offsets, regression.items, regression.values)
    by_item = (*rows_by_item(rows, regression.items, items), regression.values[order])
    by_target = (regression.target_offsets, regression.target_rows)
    squares = np.bincount(regression.items, regression.values.astype(np.float64) ** 2, items)
    norms = np.sqrt(np.maximum(squares, 1e-12))
    chosen = np.full((items, size), -1, np.int32)
    values = [np.zeros((items, size), np.float32) for _ in ridges]
    for first in range(0, items, _TOGETHER):
        some = slice(first, min(first + _TOGETHER, items))
        count = some.stop - first
        grams, crosses = np.zeros((count, size, size)), np.zeros((count, size))
        fill_systems(
            first, by_row, by_item, by_target, norms, regression.own, chosen[some], grams, crosses
        )
        right = torch.from_numpy(crosses).unsqueeze(2)
        for ridge, values_of_ridge in zip(ridges, values, strict=True):
            left = torch.from_numpy(grams + ridge * np.eye(size))
            factor = torch.linalg.cholesky(left)
            values_of_ridge[some] = torch.cholesky_solve(right, factor).squeeze(2).numpy()
    return [_by_row(chosen, values_of_ridge) for values_of_ridge in values]


def _by_row(chosen: NDArray[np.int32], values: NDArray[np.float32]) -> SparseWeights:
    """Return the weights by the item of the history. chosen, values: (targets, neighbours)."""
    used = (chosen >= 0) & (values != 0)
    targets = np.repeat(np.arange(len(chosen), dtype=np.int32), used.sum(1))
    offsets, targets = rows_by_item(targets, chosen[used], len(chosen))
    order = np.argsort(chosen[used], kind="stable")
    return SparseWeights(offsets, targets, values[used][order])
