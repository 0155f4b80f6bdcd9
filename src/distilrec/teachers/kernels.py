"""The loops of the regressions, compiled by numba.

Those on neighbours have the histories X twice: by row (offsets, items, values) and by item
(item_offsets, item_rows, item_values).
"""

from __future__ import annotations

import numpy as np

from distilrec.engine.kernels import inlined, kernel


@kernel
def fill_systems(  # type: ignore[no-untyped-def]
    first, by_row, by_item, by_target, norms, own, chosen, grams, crosses
):
    """Choose the neighbours of the targets from `first` on, (targets, neighbours), -1 where there
    are fewer, and fill in X_N' X_N and X_N' y.
    """
    target_offsets, target_rows = by_target
    sums = np.zeros(len(norms))
    latest = np.full(len(by_row[0]) - 1, -1)  # entry of each row
    for n in range(len(chosen)):
        target = first + n
        seen = add_up(
            target_rows[target_offsets[target] : target_offsets[target + 1]], by_row, sums
        )
        if not own:
            seen = seen[seen != target]
        # Ties in the order of the catalogue
        best = np.argsort(-sums[seen] / norms[seen], kind="mergesort")[: chosen.shape[1]]
        neighbours = seen[best]
        chosen[n, : len(best)] = neighbours
        crosses[n, : len(best)] = sums[neighbours]
        sums[:] = 0.0
        add_products(neighbours, by_item, latest, grams[n])


@inlined
def add_up(rows, by_row, sums):  # type: ignore[no-untyped-def]
    """Add the values of some rows by item, and return the items that they have, in order."""
    offsets, items, values = by_row
    for row in rows:
        for at in range(offsets[row], offsets[row + 1]):
            sums[items[at]] += values[at]
    return np.flatnonzero(sums)


@inlined
def add_products(neighbours, by_item, latest, gram):  # type: ignore[no-untyped-def]
    """Add X_N' X_N. latest: -1 for each row; it is so again in the end."""
    offsets, rows, values = by_item
    count = 0
    for item in neighbours:
        count += offsets[item + 1] - offsets[item]
    # What a row has of the neighbours so far, as a chain of entries, the latest first
    before, slots, weights = np.empty(count, np.int64), np.empty(count, np.int32), np.empty(count)
    entry = 0
    for slot in range(len(neighbours)):
        item = neighbours[slot]
        for at in range(offsets[item], offsets[item + 1]):
            row, value = rows[at], values[at]
            before[entry], slots[entry], weights[entry] = latest[row], slot, value
            latest[row] = entry
            other = entry
            while other >= 0:
                gram[slot, slots[other]] += value * weights[other]
                other = before[other]
            entry += 1
    for item in neighbours:
        for at in range(offsets[item], offsets[item + 1]):
            latest[rows[at]] = -1
    for i in range(len(neighbours)):
        for j in range(i):
            gram[j, i] = gram[i, j]
