"""From past items to the next one, in closed form: the neighbours of a student."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset
from distilrec.networks.products import Products, decayed_products, default_decay, solved
from distilrec.networks.visits import visits_of_rows

REGRESSED_ITEMS = 8_000
"""Items of the largest catalogue whose transitions are regressed: the six matrices of the largest
take 3 GB. Those of larger ones are counted.
"""
_DECAY = 0.9  # what an event keeps of its weight with each later one
_RIDGE = 300.0
_EVENTS = 10  # latest events that are paired with the next one, where pairs are counted
_SHRINKAGE = 20.0  # pairs that an item is thought to have had besides
_PART = tuple[int, int] | None
Floats = NDArray[np.float32]


class Transitions(NamedTuple):
    """The items that most follow each item with training rows, rising in each row, and their
    weights; (items, number) each.
    """

    items: NDArray[np.int32]
    weights: Floats


_found: dict[tuple[object, ...], tuple[Transitions, ...]] = {}  # those asked for last


def largest_transitions(
    dataset: Dataset, number: int, parts: int, visit_gap: float = 0.0
) -> tuple[Transitions, ...]:
    """Return the largest transitions of all users, and then of all but each part of them: the user
    at position u is in part u modulo parts. Those that were asked for last are kept, as the models
    of a run, trained one after the other, have the same.

    The weights of a catalogue of up to REGRESSED_ITEMS items are those of the ridge regression of
    the next item on the history, as in the `linear` teacher: what one item says of another beyond
    what the others say. Of a larger one they are counted: how much more often an item is among the
    next ones than its popularity says, (n_ji - n_j p_i) / (n_j + shrinkage), n_ji the events on i
    soon after one on j. An item follows itself only where the log has repeats.

    visit_gap: seconds without an event that end a visit, where visits are known: then histories are
    those of one visit, and where events at the same time have no order all of it weighs the same.
    """
    key = (dataset.fingerprint(), number, parts, visit_gap, REGRESSED_ITEMS)
    if key not in _found:
        find = _all_counted if dataset.info.warm_items > REGRESSED_ITEMS else _all_regressed
        found = tuple(find(dataset, number, parts, visit_gap))
        _found.clear()
        _found[key] = found
    return _found[key]


def _all_regressed(
    dataset: Dataset, number: int, parts: int, visit_gap: float
) -> Iterator[Transitions]:
    decay = default_decay(dataset, visits=visit_gap > 0)
    whole = decayed_products(dataset, decay, visit_gap=visit_gap)
    yield _regressed(dataset, number, whole)
    for part in range(parts):
        users = np.arange(dataset.users) % parts == part
        own = decayed_products(dataset, decay, users=users, visit_gap=visit_gap)
        yield _regressed(dataset, number, Products(whole.gram - own.gram, whole.cross - own.cross))


def _regressed(dataset: Dataset, number: int, products: Products) -> Transitions:
    weights = torch.from_numpy(solved(products, _RIDGE))
    if not dataset.info.repeats:
        weights.fill_diagonal_(-torch.inf)
    chosen = weights.topk(number, dim=1).indices.sort(dim=1).values
    return Transitions(chosen.int().numpy(), weights.gather(1, chosen).numpy())


def _all_counted(
    dataset: Dataset, number: int, parts: int, visit_gap: float
) -> Iterator[Transitions]:
    for part in (None, *range(parts)):
        yield _counted(dataset, number, None if part is None else (part, parts), visit_gap)


def _counted(dataset: Dataset, number: int, without: _PART, visit_gap: float) -> Transitions:
    """Return the transitions of all users but those of a part."""
    items = dataset.info.warm_items
    keys, counts = _pairs(dataset, without, visit_gap)
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
    return Transitions((keys[chosen] % items).astype(np.int32), weights[chosen].astype(np.float32))


def _pairs(
    dataset: Dataset, without: _PART, visit_gap: float
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
    visits = visits_of_rows(dataset, visit_gap)[rows]
    keys, weights = [np.zeros(0, np.int64)], [np.zeros(0)]
    for age in range(min(_EVENTS, len(rows) - 1)):
        together = visits[age + 1 :] == visits[: -age - 1]
        if is_target is not None:
            together &= is_target[age + 1 :]
        keys.append((taken[: -age - 1] * items + taken[age + 1 :])[together])
        weights.append(np.full(len(keys[-1]), _DECAY**age))
    found, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    counts = np.bincount(inverse, np.concatenate(weights), len(found)).astype(np.float64)
    return found, counts
