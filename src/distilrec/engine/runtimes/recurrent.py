"""The recurrent student as numpy arrays and kernels: state, query, scores."""

from __future__ import annotations

import numpy as np

from distilrec.bundle.checks import Arrays, Shapes, length_of
from distilrec.bundle.format import Bundle
from distilrec.bundle.manifest import Manifest, SearchKind
from distilrec.engine import kernels
from distilrec.engine.items import Floats, ItemTable, Mask, Places, columns_of
from distilrec.engine.runtimes.runtime import Runtime
from distilrec.engine.search import make_search

NORM_EPSILON = np.float32(1e-6)


class RecurrentRuntime(Runtime):
    """`distilrec.networks.recurrent`, one event at a time.

    search: how the best items are found. A small catalogue that is searched exactly has a
    transposed copy for that.
    """

    searches = ("exact", "quantised", "graph")

    def __init__(self, bundle: Bundle, search: SearchKind = "exact") -> None:
        vectors, biases, w = bundle.weights.vectors, bundle.weights.biases, bundle.weights.of_kind
        self._items = ItemTable(vectors, biases)
        self._search = make_search(search, self._items, bundle)
        # (channels, room)
        self._columns = columns_of(vectors if self._search is None else vectors[:0])
        self._gain, self._decay = w["gain"], w["decay"]
        self._scale = np.sqrt(1 - self._decay**2)
        self._weights = (
            w["mix"],
            w["widen"] * w["inner_norm"],
            w["widen_bias"],
            np.ascontiguousarray(w["narrow"].T),
            w["narrow_bias"],
            w["outer_norm"],
            NORM_EPSILON,
        )
        self._query = np.zeros(len(self._columns), np.float32)  # reused
        self._scores = np.empty_like(biases)

    @staticmethod
    def shapes(manifest: Manifest, weights: Arrays) -> Shapes:
        scales, wide = length_of(weights, "decay"), length_of(weights, "widen")
        dim = manifest.dim
        return {
            "gain": (len(manifest.event_types), dim),
            "decay": (scales, dim),
            "mix": (dim, scales * dim),
            "inner_norm": ((scales + 1) * dim,),
            "widen": (wide, (scales + 1) * dim),
            "widen_bias": (wide,),
            "narrow": (dim, wide),
            "narrow_bias": (dim,),
            "outer_norm": (dim,),
        }

    @staticmethod
    def query_length(weights: Arrays) -> float:
        """Return the length that the last norm gives (RMSNorm: about |gains|)."""
        return float(np.linalg.norm(weights["outer_norm"]))

    def new_state(self) -> Floats:
        return np.zeros((len(self._decay) + 1, self._decay.shape[1]), np.float32)

    def fold(self, state: Floats, items: Places, events: Places) -> None:
        kernels.fold_recurrent(
            state, items, events, self._items.vectors, self._gain, self._decay, self._scale
        )

    def query(self, state: Floats, user: Floats) -> Floats:
        query = np.zeros(len(self._columns), np.float32)
        kernels.query_recurrent(state, user, *self._weights, query[: self._decay.shape[1]])
        return query

    def best(
        self, state: Floats, user: Floats, seen: Places, mask: Mask, k: int
    ) -> tuple[Places, Floats]:
        if self._search is not None:
            return self._search.best(self.query(state, user)[: self._decay.shape[1]], seen, mask, k)
        items, scores = np.empty(k, np.int32), np.empty(k, np.float32)
        found = kernels.recommend_recurrent(
            state, user, *self._weights, self._columns, self._items.biases, seen, mask, k,
            self._query, self._scores, items, scores,
        )  # fmt: skip
        return items[:found], scores[:found]

    def scores(self, query: Floats) -> Floats:
        if self._search is not None:
            every: Floats = self._items.vectors @ query[: self._decay.shape[1]] + self._items.biases
            return every
        out = np.empty(self._items.count, np.float32)
        kernels.scores_dot(query, self._columns, self._items.biases, out)
        return out

    def scores_of(self, states: Floats, user: Floats, items: Places) -> Floats:
        queries = np.empty((len(states), self._decay.shape[1]), np.float32)
        kernels.queries_recurrent(states, user, *self._weights, queries)
        scores: Floats = queries @ self._items.vectors[items].T + self._items.biases[items]
        return scores

    def without_each(self, items: Places, events: Places, state: Floats | None = None) -> Floats:
        out = np.empty((len(items), *self.new_state().shape), np.float32)
        kernels.without_each_recurrent(
            items, events, self._items.vectors, self._gain, self._decay, self._scale, out
        )  # fmt: skip
        if state is not None:
            of_these = self.new_state()
            self.fold(of_these, items, events)
            out[:, :-1] += (state - of_these)[:-1] / self._decay  # what is older decays once less
        return out

    def item_vectors(self, items: Places) -> Floats:
        return self._items.vectors[items]

    def put_item(self, item: int, vector: Floats, bias: float) -> None:
        self._items.put(item, vector, bias)
        if self._search is not None:
            self._search.put_item(item)
            return
        if missing := self._items.room - self._columns.shape[1]:
            self._columns = np.pad(self._columns, ((0, 0), (0, missing)))
        self._columns[: len(vector), item] = vector
        self._scores = np.empty(self._items.count, np.float32)
