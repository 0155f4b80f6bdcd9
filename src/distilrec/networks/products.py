"""The products of a regression of the next event on the decayed history before it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distilrec.data.dataset import UNKNOWN_ITEM, Dataset
from distilrec.engine.kernels import kernel
from distilrec.offsets import offsets_of

_NOTHING = 1e-9  # a weight that no sum of float32 weights would show


class Products(NamedTuple):
    """X'X and X'Y of some training events, Y their items, X the history before each, in which an
    event loses weight with each later one; (items, items) float64 each, of items with training
    rows.
    """

    gram: NDArray[np.float64]
    cross: NDArray[np.float64]


def decayed_products(
    dataset: Dataset,
    decay: float,
    chosen: NDArray[np.bool_] | None = None,
    users: NDArray[np.bool_] | None = None,
) -> Products:
    """Return the products of the training events of a data set.

    decay: what an event keeps of its weight with each later one. chosen: (rows,), which events are
    those of the regression, by default all that are to be predicted. users: (users,), whose events
    count, all by default. Negative events are in no history.
    """
    items = dataset.info.warm_items
    gram, cross = np.zeros((items, items)), np.zeros((items, items))
    known = dataset.is_training() & (dataset.items != UNKNOWN_ITEM) & (dataset.items < items)
    owners = dataset.user_rows()
    if users is not None:
        known &= users[owners]
    if chosen is None:
        chosen = np.ones(len(known), bool) if dataset.roles is None else dataset.is_target()
    counted = counted_events(dataset)
    rows = np.flatnonzero(known)
    add_decayed_products(
        offsets_of(np.bincount(owners[rows], minlength=dataset.users)),
        dataset.items[rows],
        chosen[rows],
        np.ones(len(rows), bool) if counted is None else counted[rows],
        decay,
        gram,
        cross,
    )
    gram += gram.T
    return Products(gram, cross.T)


def counted_events(dataset: Dataset) -> NDArray[np.bool_] | None:
    """Return which rows count in a history, (rows,), None for all: negative ones do not."""
    return None if dataset.roles is None else ~dataset.roles.negative[dataset.events]


@kernel
def add_decayed_products(  # type: ignore[no-untyped-def]
    starts, items, chosen, counted, decay, gram, cross
):
    """Add X'X and Y'X of the chosen events, Y their items, X the counted events before each, which
    lose weight by `decay` with each later one; of X'X one of (i, j) and (j, i), and half of (i, i).

    The weights of two events in all histories after the later one of them have one sum, so that a
    pair is added once, however many histories hold it.
    starts: (users + 1,), where the events of each user begin; items: (events,) int32; chosen,
    counted: (events,) bool; gram, cross: (items, items) float64, rows of cross by Y.
    """
    for user in range(len(starts) - 1):
        first, last = starts[user], starts[user + 1]
        before, asked = np.empty(last - first, np.int64), np.zeros(last - first)
        n = 0
        for row in range(first, last):
            if chosen[row] and n > 0:
                asked[n - 1] += 1.0
                weight, at = 1.0, n - 1
                while at >= 0 and weight > _NOTHING:
                    cross[items[row], before[at]] += weight
                    weight *= decay
                    at -= 1
            if counted[row]:
                before[n] = items[row]
                n += 1
        total = 0.0
        for later in range(n - 1, -1, -1):
            total = asked[later] + decay * decay * total
            item = before[later]
            gram[item, item] += total / 2
            weight, at = total * decay, later - 1
            while at >= 0 and weight > _NOTHING:
                gram[item, before[at]] += weight
                weight *= decay
                at -= 1
