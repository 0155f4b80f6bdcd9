"""The MLP student as numpy arrays and kernels."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from distilrec.bundle.checks import Arrays, Shapes, length_of
from distilrec.bundle.format import Bundle
from distilrec.bundle.manifest import Manifest, SearchKind
from distilrec.engine.items import Floats, ItemTable, Mask, Places
from distilrec.engine.runtimes.runtime import Runtime, signs_of


class MlpRuntime(Runtime):
    """`distilrec.networks.mlp`; the hidden layer of the items is computed once."""

    def __init__(self, bundle: Bundle, search: SearchKind, kernels: ModuleType) -> None:
        self._kernels = kernels
        vectors, biases, w = bundle.weights.vectors, bundle.weights.biases, bundle.weights.of_kind
        self._user_layer, self._user_layer_bias = w["user_layer"], w["user_layer_bias"]
        self._item_layer, self._readout = w["item_layer"], w["readout"]
        self._items = ItemTable(vectors, biases)
        self._signs = signs_of(bundle.manifest)
        self._hidden = np.ascontiguousarray(vectors @ self._item_layer.T)  # (room, hidden)

    @staticmethod
    def shapes(manifest: Manifest, weights: Arrays) -> Shapes:
        hidden, dim = length_of(weights, "readout"), manifest.dim
        return {
            "user_layer": (hidden, dim),
            "user_layer_bias": (hidden,),
            "item_layer": (hidden, dim),
            "readout": (hidden,),
        }

    def new_state(self) -> Floats:
        return np.zeros(self._items.vectors.shape[1] + 1, np.float32)

    def fold(self, state: Floats, items: Places, events: Places) -> None:
        if self._signs is None:
            self._kernels.fold_mean(state, items, self._items.vectors)
            return
        # Event by event, so that a state is the same bits in whatever steps it was folded
        for item, sign in zip(items[:, None], self._signs[events], strict=True):
            state[:-1] *= sign
            self._kernels.fold_mean(state, item, self._items.vectors)
            state[:-1] *= sign

    def query(self, state: Floats, user: Floats) -> Floats:
        query: Floats = self._queries(state[None], user)[0]
        return query

    def _queries(self, states: Floats, user: Floats) -> Floats:
        mean = states[:, :-1] / np.maximum(states[:, -1:], 1.0)
        queries: Floats = (mean + user) @ self._user_layer.T + self._user_layer_bias
        return queries

    def scores(self, query: Floats) -> Floats:
        out = np.empty(self._items.count, np.float32)
        self._kernels.scores_relu(
            query, self._readout, self._hidden[: self._items.count], self._items.biases, out
        )
        return out

    def scores_of(self, states: Floats, user: Floats, items: Places) -> Floats:
        queries, hidden = self._queries(states, user), self._hidden[items]
        rows = [np.maximum(query + hidden, 0) @ self._readout for query in queries]
        scores: Floats = np.array(rows, np.float32) + self._items.biases[items]
        return scores

    def best(
        self, state: Floats, user: Floats, seen: Places, mask: Mask, k: int
    ) -> tuple[Places, Floats]:
        items, scores = np.empty(k, np.int32), np.empty(k, np.float32)
        count = self._kernels.top_k(
            self.scores(self.query(state, user)), seen, mask, k, items, scores
        )
        return items[:count], scores[:count]

    def without_each(self, items: Places, events: Places, state: Floats | None = None) -> Floats:
        whole = self.new_state()
        self.fold(whole, items, events)
        vectors = self._items.vectors[items]
        if self._signs is not None:
            vectors = vectors * self._signs[events][:, None]
        contributions = np.hstack([vectors, np.ones((len(items), 1), np.float32)])
        states: Floats = (whole if state is None else state) - contributions
        return states

    def item_vectors(self, items: Places | slice) -> Floats:
        return self._items.vectors[items]

    def put_item(self, item: int, vector: Floats, bias: float) -> None:
        self._items.put(item, vector, bias)
        if missing := self._items.room - len(self._hidden):
            self._hidden = np.pad(self._hidden, ((0, missing), (0, 0)))
        self._hidden[item] = self._item_layer @ vector
