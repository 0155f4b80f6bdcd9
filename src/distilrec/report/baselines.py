"""Baselines that any recommender should beat: popularity, item neighbours, EASE. numpy, fitted on
training rows only, of these on what is to be predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset, Histories
from distilrec.measure.ranking import Scorer
from distilrec.teachers.ease import EaseConfig, EaseTeacher, fit_ease, shared_users
from distilrec.teachers.item_weights import DENSE_ITEMS
from distilrec.training.validation import best_on_validation

NEIGHBOURS = (20, 50, 100, 200)


@dataclass(frozen=True)
class Popularity:
    """Scores an item by its training interactions, the same for everybody."""

    counts: NDArray[np.float32]

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Return scores, (batch, items) float32."""
        return np.repeat(self.counts[None, :], len(histories), axis=0)


@dataclass(frozen=True)
class ItemNeighbours:
    """Scores an item by the sum of its similarities to the items of the history that have it among
    their neighbours.

    near: (items with training rows, n) int64, the neighbours of each item, and similarity: the
    same shape, float32, how alike they are; items: size of the catalogue; counted: (types,), which
    events of a history count, None for all.
    """

    near: NDArray[np.int64]
    similarity: NDArray[np.float32]
    items: int
    counted: NDArray[np.bool_] | None = None

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Return scores, (batch, items) float32."""
        out = np.zeros((len(histories), self.items), np.float32)
        if self.counted is not None:
            histories = histories.only(self.counted)
        for k in range(len(histories)):
            had = np.unique(histories.of(k))
            had = had[had < len(self.near)]
            np.add.at(out[k], self.near[had].ravel(), self.similarity[had].ravel())
        return out


def popularity(dataset: Dataset) -> Popularity:
    """Return the popularity baseline."""
    return Popularity(dataset.popularity().astype(np.float32))


def item_knn(dataset: Dataset, numbers: Sequence[int] = NEIGHBOURS) -> ItemNeighbours:
    """Return the cosine similarity of items, each row cut to its nearest neighbours (Sarwar et al.
    2001).

    numbers: of neighbours, of which the best on validation is taken.
    """
    shared = shared_users(dataset)
    norms = np.maximum(np.sqrt(np.diag(shared)), 1e-12)
    similarity = shared / norms / norms[:, None]
    np.fill_diagonal(similarity, 0.0)
    # A copy, so that the order of the whole catalogue is not kept
    near = np.argsort(-similarity, axis=1, kind="stable")[:, : max(numbers)].copy()
    values = np.take_along_axis(similarity, near, axis=1)
    counted = None if dataset.roles is None else dataset.roles.target
    cut = (
        ItemNeighbours(near[:, :n], values[:, :n], dataset.catalogue_size, counted) for n in numbers
    )
    return best_on_validation(cut, dataset)


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
        chosen["ItemKNN"] = item_knn(dataset)
    if "EASE" in known or dense:
        chosen["EASE"] = known.get("EASE") or fit_ease(EaseConfig(), dataset)
    return chosen
