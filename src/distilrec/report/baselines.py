"""Baselines that any recommender should beat: popularity, item neighbours, EASE. numpy, fitted on
training rows only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset, Histories
from distilrec.measure.ranking import MOST_SCORES, Scorer
from distilrec.teachers.ease import EaseConfig, EaseTeacher, fit_ease
from distilrec.teachers.item_weights import DENSE_ITEMS
from distilrec.training.validation import validation_ndcg

NEIGHBOURS = (20, 50, 100, 200)


@dataclass(frozen=True)
class Popularity:
    """Scores an item by its training interactions, the same for everybody."""

    counts: NDArray[np.float32]

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Return scores, (batch, items) float32."""
        return np.repeat(self.counts[None, :], len(histories), axis=0)


@dataclass(frozen=True)
class ItemWeights:
    """Scores by the sum of the weights of the items in the history: s = sum_j B[j, :]. B: (items,
    items) float32.
    """

    weights: NDArray[np.float32]

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Return scores, (batch, items) float32."""
        out = np.zeros((len(histories), len(self.weights)), np.float32)
        for k in range(len(histories)):
            out[k] = self.weights[np.unique(histories.of(k))].sum(0)
        return out


def popularity(dataset: Dataset) -> Popularity:
    """Return the popularity baseline."""
    return Popularity(dataset.popularity().astype(np.float32))


def interaction_matrix(dataset: Dataset) -> NDArray[np.float32]:
    """Return who had what in training, (users, items) of 0 and 1."""
    matrix = np.zeros((dataset.users, dataset.catalogue_size), np.float32)
    rows = dataset.training_rows()
    matrix[dataset.user_rows()[rows], dataset.items[rows]] = 1.0
    return matrix


def _shared_users(dataset: Dataset) -> NDArray[np.float32]:
    """Return how many users had both of two items in training, (items, items): X'X for the matrix X
    of who had what, of which a few users are made at a time. Whole numbers, so the sum is exact.
    """
    rows = dataset.training_rows()
    users, items = dataset.user_rows()[rows], dataset.items[rows]
    shared = np.zeros((dataset.catalogue_size,) * 2, np.float32)
    step = max(1, MOST_SCORES // dataset.catalogue_size)
    for first in range(0, dataset.users, step):
        low, high = np.searchsorted(users, [first, first + step])
        some = np.zeros((step, dataset.catalogue_size), np.float32)
        some[users[low:high] - first, items[low:high]] = 1.0
        shared += some.T @ some
    return shared


def item_knn(dataset: Dataset, neighbours: int) -> ItemWeights:
    """Return the cosine similarity of items, each row cut to its nearest neighbours (Sarwar et al.
    2001).
    """
    shared = _shared_users(dataset)
    norms = np.maximum(np.sqrt(np.diag(shared)), 1e-12)
    similarity = shared / norms / norms[:, None]
    np.fill_diagonal(similarity, 0.0)
    if neighbours < len(similarity):
        far = np.argsort(-similarity, axis=1, kind="stable")[:, neighbours:]
        np.put_along_axis(similarity, far, 0.0, axis=1)
    return ItemWeights(similarity.astype(np.float32))


def ease(dataset: Dataset, ridge: float) -> EaseTeacher:
    """Return the EASE baseline with a given ridge (`distilrec.teachers.ease`)."""
    return fit_ease(EaseConfig(ridge=ridge), dataset)


def fitted_baselines(
    dataset: Dataset, known: Mapping[str, Scorer] | None = None
) -> dict[str, Scorer]:
    """Return the baselines by name, their one parameter chosen on validation; those that are not
    sparse only where they fit in memory.

    known: some that are fitted already.
    """
    known = known or {}
    chosen: dict[str, Scorer] = {"popularity": popularity(dataset)}
    dense = dataset.catalogue_size <= DENSE_ITEMS
    if dense:
        chosen["ItemKNN"] = _best(dataset, item_knn, NEIGHBOURS)
    if "EASE" in known or dense:
        chosen["EASE"] = known.get("EASE") or fit_ease(EaseConfig(), dataset)
    return chosen


def _best(
    dataset: Dataset, fit: Callable[[Dataset, Any], ItemWeights], values: Sequence[float]
) -> ItemWeights:
    fitted = [fit(dataset, value) for value in values]
    return max(fitted, key=lambda model: validation_ndcg(model, dataset))
