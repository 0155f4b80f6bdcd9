"""The products of a regression of the next event on the decayed history before it, or on two: of
this visit and of earlier ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from distilrec.data.dataset import UNKNOWN_ITEM, Dataset
from distilrec.engine.kernels import inlined, kernel
from distilrec.networks.visits import visits_of_rows

_NOTHING = 1e-9  # a weight that no sum of float32 weights would show
_SMALLEST = 0.01  # weight of an event of earlier visits that still counts


def default_decay(dataset: Dataset, *, visits: bool) -> float:
    """Return what an event keeps of its weight with each later one where nothing else is said.
    visits: whether a history is that of one visit; the lines of a basket weigh the same.
    """
    return 1.0 if visits and dataset.info.order == "ties" else 0.9


class Products(NamedTuple):
    """X'X and X'Y of some training events, Y their items, X the history before each, in which an
    event loses weight with each later one; (items, items) float64 each, of items with training
    rows. With visits X is two histories, each with a weight for every item, so that X'X is (2
    items, 2 items) and X'Y (2 items, items), float32.
    """

    gram: NDArray[np.float32] | NDArray[np.float64]
    cross: NDArray[np.float32] | NDArray[np.float64]


def decayed_products(
    dataset: Dataset,
    decay: float,
    chosen: NDArray[np.bool_] | None = None,
    users: NDArray[np.bool_] | None = None,
    visit_gap: float = 0.0,
) -> Products:
    """Return the products of the training events of a data set.

    decay: what an event keeps of its weight with each later one. chosen: (rows,), which events are
    those of the regression, by default all that are to be predicted. users: (users,), whose events
    count, all by default. visit_gap: seconds without an event that end a visit, where a history is
    that of one visit. Negative events are in no history.
    """
    items = dataset.info.warm_items
    gram, cross = np.zeros((items, items)), np.zeros((items, items))
    log = _log_of(dataset, chosen, users, visit_gap)
    add_decayed_products(log.starts, log.items, log.chosen, log.counted, decay, gram, cross)
    gram += gram.T
    return Products(gram, cross.T)


class _Log(NamedTuple):
    """The training events of a regression. rows: of the data set; starts: where each history
    begins among these, and their number; the others: of these.
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    items: NDArray[np.int32]
    chosen: NDArray[np.bool_]
    counted: NDArray[np.bool_]


def _log_of(
    dataset: Dataset,
    chosen: NDArray[np.bool_] | None = None,
    users: NDArray[np.bool_] | None = None,
    visit_gap: float = 0.0,
) -> _Log:
    items = dataset.info.warm_items
    known = dataset.is_training() & (dataset.items != UNKNOWN_ITEM) & (dataset.items < items)
    if users is not None:
        known &= users[dataset.user_rows()]
    if chosen is None:
        chosen = np.ones(len(known), bool) if dataset.roles is None else dataset.is_target()
    counted, rows = counted_events(dataset), np.flatnonzero(known)
    begins = np.flatnonzero(np.diff(visits_of_rows(dataset, visit_gap)[rows], prepend=-1))
    return _Log(
        rows,
        np.append(begins, len(rows)).astype(np.int64),
        dataset.items[rows],
        chosen[rows],
        np.ones(len(rows), bool) if counted is None else counted[rows],
    )


def visit_products(dataset: Dataset, gap: float, decay: float, earlier: float) -> Products:
    """Return the products of the training events of a data set, X being the history of this visit
    and that of earlier ones.

    gap: seconds without an event that end a visit; decay, earlier: what an event of each of the two
    keeps of its weight with each later one of the same.
    """
    items = dataset.info.warm_items
    log = _log_of(dataset)
    gram = np.zeros((2 * items, 2 * items), np.float32)
    cross = np.zeros((2 * items, items), np.float32)
    times = np.floor(dataset.times[log.rows])
    settings = gap, decay, earlier
    add_visit_products(log.starts, log.items, times, log.chosen, log.counted, settings, gram, cross)
    return Products(gram, cross)


def solved(products: Products, ridge: float) -> NDArray[np.float32]:
    """Return (X'X + ridge I)^-1 X'Y, float32."""
    gram, cross = (torch.from_numpy(matrix).float() for matrix in products)
    gram.diagonal().add_(ridge)
    weights: NDArray[np.float32] = torch.cholesky_solve(cross, torch.linalg.cholesky(gram)).numpy()
    return weights


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
    starts: (histories + 1,), where the events of each history begin; items: (events,) int32;
    chosen, counted: (events,) bool; gram, cross: (items, items) float64, rows of cross by Y.
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


@inlined
def _add_row(matrix, row, columns, values, factor):  # type: ignore[no-untyped-def]
    """Add values times a factor to some columns of a row."""
    for n in range(len(columns)):
        matrix[row, columns[n]] += factor * values[n]


@kernel
def add_visit_products(  # type: ignore[no-untyped-def]
    starts, items, times, chosen, counted, settings, gram, cross
):
    """Add X'X and X'Y of the chosen events, as `visit_products` says; settings: gap, decay and
    earlier.

    The history of earlier visits is the same for all events of a visit, so that its product with
    itself is added once for each visit, times the chosen events of it; and what two events of one
    visit have in the histories behind them has one sum.
    starts: (users + 1,); items: (events,) int32; times: (events,) whole seconds; chosen, counted:
    (events,) bool; gram: (2 items, 2 items), cross: (2 items, items).
    """
    gap, decay, earlier = settings
    below = cross.shape[1]
    for user in range(len(starts) - 1):
        first, last = starts[user], starts[user + 1]
        past, begin = np.empty(last - first, np.int64), first  # what was had before the visit
        known = 0
        while begin < last:
            end = begin + 1
            while end < last and times[end] - times[end - 1] < gap:
                end += 1
            weights = np.empty(known)
            oldest, weight = known, 1.0
            while oldest > 0 and weight > _SMALLEST:
                oldest -= 1
                weights[oldest] = weight
                weight *= earlier
            rows, before = below + past[oldest:known], weights[oldest:]
            this, asked = np.empty(end - begin, np.int64), np.zeros(end - begin)
            n, targets = 0, 0.0
            for row in range(begin, end):
                if chosen[row]:
                    targets += 1.0
                    _add_row(cross.T, items[row], rows, before, 1.0)
                    asked[max(n - 1, 0)] += 1.0 if n > 0 else 0.0
                    weight = 1.0
                    for j in range(n - 1, -1, -1):
                        cross[this[j], items[row]] += weight
                        weight *= decay
                if counted[row]:
                    this[n] = items[row]
                    n += 1
            for i in range(len(rows)):
                _add_row(gram, rows[i], rows, before, targets * before[i])
            pairs, behind = 0.0, 0.0
            for later in range(n - 1, -1, -1):
                pairs = asked[later] + decay * decay * pairs
                behind = asked[later] + decay * behind
                item, weight = this[later], pairs
                gram[item, item] += weight
                for j in range(later - 1, -1, -1):
                    weight *= decay
                    gram[item, this[j]] += weight
                    gram[this[j], item] += weight
                _add_row(gram, item, rows, before, behind)
                _add_row(gram.T, item, rows, before, behind)
            past[known : known + n] = this[:n]
            known += n
            begin = end
