"""Your teacher as a Python function: histories in, logits over the catalogue out.

python examples/teachers/function.py [--users 200] [--epochs 5]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from shop import distill_from

from distilrec.data import Dataset, Histories
from distilrec.teachers import Teacher, function_teacher


def teacher(dataset: Dataset) -> Teacher:
    """Return what followed what: counts of pairs of items at most five events apart, the nearer
    the more.
    """
    items = dataset.info.warm_items
    followed = np.full((items, items), 0.1, np.float32)
    for user in range(dataset.info.warm_users):
        own = dataset.items[dataset.offsets[user] : dataset.train_end[user]]
        for gap in range(1, 6):
            np.add.at(followed, (own[:-gap], own[gap:]), 1 / gap)
    chances = np.log(followed / followed.sum(1, keepdims=True))

    def scores(histories: Histories) -> NDArray[np.float32]:
        """(batch, items) float32, one column per item in the order of dataset.info.item_ids."""
        out = np.zeros((len(histories), items), np.float32)
        for k in range(len(histories)):
            for age, item in enumerate(histories.of(k)[: -(5 + 1) : -1]):
                out[k] += 0.6**age * chances[item]
        return out

    return function_teacher(scores, dataset, identity="pairs within five events, version 1")


if __name__ == "__main__":
    distill_from("function", teacher)
