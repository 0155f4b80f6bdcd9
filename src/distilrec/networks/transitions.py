"""From past items to the next one, by counting: the neighbours of a student."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset

_EVENTS, _DECAY = 10, 0.9  # latest events that are paired with the next one, and their weights
_SHRINKAGE = 20.0  # pairs that an item is thought to have had besides
Floats = NDArray[np.float32]


def largest_transitions(
    dataset: Dataset, number: int, without: tuple[int, int] | None = None
) -> tuple[NDArray[np.int64], Floats]:
    """Return for each item with training rows the items that most follow it and their weights,
    (items, number) each, rising by item in each row.

    A weight says how much more often an item is among the next ones than its popularity says:
    (n_ji - n_j p_i) / (n_j + shrinkage), n_ji the events on i soon after one on j. An item follows
    itself only where the log has repeats.
    without: (part, parts) leaves out the users whose position is this part, modulo parts.
    """
    items = dataset.info.warm_items
    keys, counts = _pairs(dataset, without)
    past, following = keys // items, keys % items
    of_past = np.bincount(past, counts, items)
    of_next = np.bincount(following, counts, items)
    expected = of_past[past] * of_next[following] / max(counts.sum(), 1.0)
    weights = (counts - expected) / (of_past[past] + _SHRINKAGE)
    if not dataset.info.repeats:
        weights[past == following] = -np.inf
    # The most popular items stand behind, for items that too few have followed
    others = np.arange(items)[:, None] * items + np.arange(number)
    keys, first = np.unique(np.concatenate([keys, others.ravel()]), return_index=True)
    weights = np.concatenate([weights, np.full(others.size, -np.inf)])[first]
    past = keys // items
    order = np.lexsort((-weights, past))
    starts = np.searchsorted(past, np.arange(items))
    chosen = np.sort(order[starts[:, None] + np.arange(number)], axis=1)  # by item again
    return keys[chosen] % items, weights[chosen].astype(np.float32)


def _pairs(
    dataset: Dataset, without: tuple[int, int] | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the pairs of an item and one that comes soon after it, past * items + next, rising,
    and how often each occurs, later ones weighing less. Negative events make no pair, and the next
    event is one to be predicted.
    """
    items = dataset.info.warm_items
    counted = dataset.is_training() & (dataset.items >= 0) & (dataset.items < items)
    if dataset.roles is not None:
        counted &= ~dataset.roles.negative[dataset.events]
    rows = np.flatnonzero(counted)
    is_target = None if dataset.roles is None else dataset.is_target()[rows]
    users = dataset.user_rows()[rows]
    if without is not None:
        in_part = users % without[1] != without[0]
        rows, users = rows[in_part], users[in_part]
        is_target = None if is_target is None else is_target[in_part]
    taken = dataset.items[rows].astype(np.int64)
    keys, weights = [np.zeros(0, np.int64)], [np.zeros(0)]
    for age in range(min(_EVENTS, len(rows) - 1)):
        together = users[age + 1 :] == users[: -age - 1]
        if is_target is not None:
            together &= is_target[age + 1 :]
        keys.append((taken[: -age - 1] * items + taken[age + 1 :])[together])
        weights.append(np.full(len(keys[-1]), _DECAY**age))
    found, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    counts = np.bincount(inverse, np.concatenate(weights), len(found)).astype(np.float64)
    return found, counts
