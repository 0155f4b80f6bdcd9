"""An earlier bundle on data that have grown since: what users would get, had nothing been done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from distilrec.bundle.format import read_bundle
from distilrec.data.dataset import Dataset, Histories
from distilrec.features.encoding import FeatureMatrix
from distilrec.offsets import offsets_of
from distilrec.report.comparison import BundleScorer
from distilrec.training.warm import columns_at, places_in


class EarlierBundle:
    """The scores of an earlier bundle over the items of grown data.

    The bundle gets the events on items that it knows, with event types and features as it knows
    them. Items that it does not know have a score below all others.
    """

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        bundle = read_bundle(folder)
        manifest, info = bundle.manifest, dataset.info
        self._items = places_in(bundle.catalogue.ids, info.item_ids).astype(np.int32)
        types = {name: place for place, name in enumerate(manifest.event_types)}
        self._types = np.array([types.get(name, 0) for name in info.event_types], np.int32)
        users = columns_at(manifest.user_encoder, info.user_encoder)
        self._context = None
        if manifest.context_encoder is not UNSET:
            self._context = columns_at(manifest.context_encoder, info.context_encoder)
        self._scorer = BundleScorer(
            folder,
            replace(dataset, user_features=_translated(dataset.user_features, users)),
        )

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Return the scores of all items, (batch, items) float32."""
        known = self._scorer.scores(self._translated(histories))  # (batch, items of the bundle)
        scores = np.repeat(known.min(1, keepdims=True) - 1, len(self._items), axis=1)
        there = self._items >= 0
        scores[:, there] = known[:, self._items[there]]
        return scores

    def _translated(self, histories: Histories) -> Histories:
        items = self._items[histories.items]
        kept = items >= 0
        context = None
        if histories.context is not None and self._context is not None:
            context = _translated(histories.context, self._context)
        return replace(
            histories,
            offsets=offsets_of(kept)[histories.offsets],
            items=items[kept],
            events=self._types[histories.events[kept]],
            times=None if histories.times is None else histories.times[kept],
            context=context,
        )


def _translated(features: FeatureMatrix, columns: NDArray[np.int64]) -> FeatureMatrix:
    """Return encoded rows in the columns of an earlier encoder. columns: where each stands there,
    -1 for one that it lacks.
    """
    places = columns[features.columns] if len(columns) else features.columns.astype(np.int64)
    weights = np.where(places < 0, np.float32(0), features.weights)
    width = int(columns.max(initial=-1)) + 1
    return FeatureMatrix(np.maximum(places, 0).astype(np.int32), weights, width)
