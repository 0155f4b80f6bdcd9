"""The orders in which trainings read the histories of a log without order: another one each time,
so that models learn from sets of events; where only those at the same time have none, from sets of
these.

A log with an order keeps it, always.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset

_OWN_NUMBERS = 1  # apart from the other random numbers of an epoch


@dataclass(frozen=True)
class Ordered:
    """A data set with the training rows of each user in some order.

    keys: (rows,) int64, by which labels are found: the row of each event in the data set as it was,
    counted on by all rows for each earlier order that labels are stored for.
    """

    dataset: Dataset
    keys: NDArray[np.int64]


@dataclass(frozen=True)
class Orders:
    """Random orders that follow from a seed.

    number: how many different ones there are, used in turn; 0 gives each epoch its own.
    """

    seed: int
    number: int = 0

    def of_epoch(self, dataset: Dataset, epoch: int) -> Ordered:
        """Return the data set for an epoch, counted from 1."""
        if self.number:
            return self.of_labels(dataset, (epoch - 1) % self.number)
        return _ordered(dataset, self.seed, epoch)

    def of_labels(self, dataset: Dataset, order: int) -> Ordered:
        """Return the data set in one of the `number` orders, counted from 0."""
        ordered = _ordered(dataset, self.seed, order)
        return replace(ordered, keys=ordered.keys + order * len(ordered.keys))


def _ordered(dataset: Dataset, seed: int, order: int) -> Ordered:
    rows = np.arange(len(dataset.items))
    if dataset.info.order == "time":
        return Ordered(dataset, rows)
    rows = shuffled_rows(dataset, np.random.default_rng([seed, order, _OWN_NUMBERS]))
    return Ordered(
        replace(
            dataset,
            items=dataset.items[rows],
            events=dataset.events[rows],
            times=dataset.times[rows],
            context=None if dataset.context is None else dataset.context.take(rows),
        ),
        rows,
    )


def shuffled_rows(dataset: Dataset, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return which row stands at each place when the training rows of each user are shuffled, or
    those at the same time among each other where they have an order otherwise, (rows,); the others
    stay where they are.
    """
    rows = np.arange(len(dataset.items))
    training = np.flatnonzero(dataset.is_training())
    drawn = rng.random(len(training))
    times = dataset.times[training] if dataset.info.order == "ties" else np.zeros(len(training))
    rows[training] = training[np.lexsort((drawn, times, dataset.user_rows()[training]))]
    return rows
