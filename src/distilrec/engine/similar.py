"""Items that are like one item, or like several together."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from distilrec.engine.items import Floats, Mask, Places
from distilrec.engine.runtimes.runtime import Runtime

POPULARITY = 0.1
"""What an item's bias counts for beside a cosine; chosen on validation, see docs/quality.md."""
_NEIGHBOURS = np.float32(0.1)  # the same of what a neighbour adds to a logit
_SMALLEST = np.float32(1e-12)
_ALL = slice(None)


class SimilarItems:
    """Likeness to given items, s_i = mean over j of (cos(v_j, v_i) + .1 S[j, i]) + p b_i. S is what
    an event on j adds to the logit of i for students that have such neighbours, else 0, b_i the
    bias, which grows with popularity, p how much that counts.

    O(items d) per answer. Only for a thread that holds the lock of the recommender. The lengths of
    the vectors are computed for the first answer, and again when one has changed.

    biases: of the items of the bundle, (items,); those that come later have the least of them.
    """

    def __init__(self, runtime: Runtime, biases: Floats, kernels: ModuleType) -> None:
        self._runtime, self._kernels = runtime, kernels
        self._biases = biases
        self._inverse_lengths = np.zeros(0, np.float32)
        self._made_for = -1

    def best(
        self, given: Places, left_out: Places, mask: Mask, k: int, popularity: float, changes: int
    ) -> tuple[Places, Floats]:
        """Return the k items that are most like the given ones, with their likeness, best first.

        left_out: items that are not in the answer, besides the given ones; mask: (items,) uint8,
        empty for all; changes: how many vectors have been set since the start.
        """
        vectors = self._runtime.item_vectors(_ALL)  # (items, dim)
        if self._made_for != changes:
            self._prepare(vectors)
            self._made_for = changes
        inverse, share = self._inverse_lengths, np.float32(1 / len(given))
        scores = (vectors @ (share * inverse[given] @ vectors[given])) * inverse  # (items,)
        if popularity:
            scores += np.float32(popularity) * self._biases
        for item in given.tolist():
            near, parts = self._runtime.neighbours_of(item)
            scores[near] += _NEIGHBOURS * share * parts  # an item is in it once
        items, best = np.empty(k, np.int32), np.empty(k, np.float32)
        without = np.concatenate([given, left_out])
        count = self._kernels.top_k(scores, without, mask, k, items, best)
        return items[:count], best[:count]

    def _prepare(self, vectors: Floats) -> None:
        lengths = np.sqrt(np.einsum("id,id->i", vectors, vectors))
        self._inverse_lengths = 1 / np.maximum(lengths, _SMALLEST)
        later = len(vectors) - len(self._biases)
        if later:
            least = np.full(later, self._biases.min(), np.float32)
            self._biases = np.concatenate([self._biases, least])
