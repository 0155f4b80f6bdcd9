"""The recurrent student as numpy arrays and kernels: state, query, scores."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np
from msgspec import UNSET

from distilrec.bundle.checks import Arrays, Shapes, Whole, length_of
from distilrec.bundle.format import Bundle
from distilrec.bundle.manifest import CONTEXT, Manifest, SearchKind
from distilrec.engine.context import shapes_of_context
from distilrec.engine.items import Floats, ItemTable, Mask, Places, columns_of
from distilrec.engine.runtimes.neighbours import (
    OwnBiases,
    neighbours_in,
    shapes_of_neighbours,
    whole_numbers_of_neighbours,
)
from distilrec.engine.runtimes.runtime import Runtime, signs_of
from distilrec.engine.search import make_search
from distilrec.engine.time_inputs import shapes_of_time, time_inputs_in
from distilrec.engine.visits import of_question

NORM_EPSILON = np.float32(1e-6)
_VISIT_INPUTS = "visit_inputs"


class RecurrentRuntime(Runtime):
    """`distilrec.networks.recurrent`, one event at a time.

    search: how the best items are found. A small catalogue that is searched exactly has a
    transposed copy for that.
    """

    searches = ("exact", "quantised", "graph")

    def __init__(self, bundle: Bundle, search: SearchKind, kernels: ModuleType) -> None:
        self._kernels = kernels
        vectors, biases, w = bundle.weights.vectors, bundle.weights.biases, bundle.weights.of_kind
        self._items = ItemTable(vectors, biases)
        self._search = make_search(search, self._items, bundle, kernels)
        # (channels, room)
        self._columns = columns_of(vectors if self._search is None else vectors[:0])
        self._gain, self._decay = w["gain"], w["decay"]
        self._signs = signs_of(bundle.manifest)  # the gain has them already, x_last has not
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
        self._neighbours = neighbours_in(w, len(bundle.manifest.event_types))
        self._own_biases = OwnBiases(self._items, self._neighbours, kernels)
        # What every request reads, worked out once
        dim = self._decay.shape[1]
        self._kept_events = self._neighbours.kept
        self._latest_floats = 2 * self._neighbours.events
        self._state_shape = (len(self._decay) + 1 + self._neighbours.rows_of_state(dim), dim)
        self._query_length = max(len(self._columns), dim + self._latest_floats)
        self._time = time_inputs_in(bundle.manifest, w, kernels)
        gap = bundle.manifest.visit_gap
        self.visit_gap = 0.0 if gap is UNSET else gap
        self._visit_inputs = w.get(_VISIT_INPUTS, np.zeros((2, dim), np.float32))
        self.timed = self._time is not None or self.visit_gap > 0
        self.context_table = w.get(CONTEXT)
        self._query = self._new_query()  # reused
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
            **shapes_of_neighbours(manifest, weights),
            **shapes_of_time(manifest, weights),
            **shapes_of_context(manifest, weights),
            **({} if manifest.visit_gap is UNSET else {_VISIT_INPUTS: (2, dim)}),
        }

    @staticmethod
    def whole_numbers(manifest: Manifest, weights: Arrays) -> Mapping[str, Whole]:
        return whole_numbers_of_neighbours(manifest, weights)

    @staticmethod
    def query_length(weights: Arrays) -> float:
        """Return the length that the last norm gives (RMSNorm: about |gains|)."""
        return float(np.linalg.norm(weights["outer_norm"]))

    def new_state(self) -> Floats:
        return np.zeros(self._state_shape, np.float32)

    def fold(self, state: Floats, items: Places, events: Places) -> None:
        self._kernels.fold_recurrent(
            state, items, events, self._items.vectors, self._gain, self._decay, self._scale
        )
        if self._signs is not None and len(events):
            state[len(self._decay)] *= self._signs[events[-1]]
        if self._kept_events:
            self._kernels.keep_latest(self._kept(state), items, events, self._kept_events)

    def asked_at(self, user: Floats, last: float, now: float, visit: int) -> Floats:
        told = user if self._time is None else self._time.added(user, last, now)
        if not self.visit_gap:
            return told
        visit = of_question(visit, last, now, self.visit_gap)
        out = np.empty(len(told) + 1, np.float32)
        np.add(told, self._visit_inputs[int(visit == 0)], out=out[:-1])
        out[-1] = visit
        return out

    def query(self, state: Floats, user: Floats) -> Floats:
        query, dim = self._new_query(), self._decay.shape[1]
        self._kernels.query_recurrent(state, user, *self._weights, query[:dim])
        if self._kept_events:
            self._kernels.read_latest(
                self._kept(state),
                self._kept_events,
                self._visit(user),
                len(self._neighbours.ages) // 2,
                self._latest(query),
            )
        return query

    def _new_query(self) -> Floats:
        """Return room for a query, the latest events behind it, and what kernels read."""
        return np.zeros(self._query_length, np.float32)

    def _latest(self, query: Floats) -> Floats:
        dim = self._decay.shape[1]
        return query[dim : dim + self._latest_floats]

    def _visit(self, user: Floats) -> int:
        """Return how many of the latest events are of this visit, of what `asked_at` returned."""
        visit: int = self._kernels.visit_in(user, self._decay.shape[1], self._kept_events)
        return visit

    def _kept(self, states: Floats) -> Floats:
        """Return the rows of a state, or of each of several, that keep the latest events."""
        return states[..., len(self._decay) + 1 :, :]

    def best(
        self, state: Floats, user: Floats, seen: Places, mask: Mask, k: int
    ) -> tuple[Places, Floats]:
        if self._search is not None:
            query, added = self.query(state, user), None
            if self._kept_events:
                added = self._own_biases.of(self._latest(query))
            return self._search.best(query[: self._decay.shape[1]], seen, mask, k, added)
        items, scores = np.empty(k, np.int32), np.empty(k, np.float32)
        asked = (
            self._columns, self._items.biases, seen, mask, k,
            self._query, self._scores, items, scores,
        )  # fmt: skip
        if self._kept_events:
            count = self._kernels.recommend_with_neighbours(
                state, user, *self._weights, self._kept_events, *self._neighbours, *asked
            )
        else:
            count = self._kernels.recommend_recurrent(state, user, *self._weights, *asked)
        return items[:count], scores[:count]

    def scores(self, query: Floats) -> Floats:
        out: Floats
        if self._search is not None:
            out = self._items.vectors @ query[: self._decay.shape[1]] + self._items.biases
        else:
            out = np.empty(self._items.count, np.float32)
            self._kernels.scores_dot(query, self._columns, self._items.biases, out)
        if self._kept_events:
            self._kernels.add_neighbours(self._latest(query), *self._neighbours, out)
        return out

    def scores_of(self, states: Floats, user: Floats, items: Places) -> Floats:
        queries = np.empty((len(states), self._decay.shape[1]), np.float32)
        self._kernels.queries_recurrent(states, user, *self._weights, queries)
        scores: Floats = queries @ self._items.vectors[items].T + self._items.biases[items]
        if self._kept_events:
            self._kernels.neighbours_of(
                self._kept(states),
                self._kept_events,
                self._visit(user),
                items,
                *self._neighbours,
                scores,
            )
        return scores

    def without_each(self, items: Places, events: Places, state: Floats | None = None) -> Floats:
        out = np.empty((len(items), *self.new_state().shape), np.float32)
        self._kernels.without_each_recurrent(
            items, events, self._items.vectors, self._gain, self._decay, self._scale, out
        )  # fmt: skip
        if self._signs is not None and len(events):
            last = out[:, len(self._decay)]
            last[:-1] *= self._signs[events[-1]]
            last[-1] *= self._signs[events[max(len(events) - 2, 0)]]
        of_these = self.new_state()
        self.fold(of_these, items, events)
        if state is not None:
            scales = len(self._decay)
            # What is older decays once less
            out[:, :scales] += (state - of_these)[:scales] / self._decay
        if self._kept_events:
            self._kernels.latest_without_each(
                self._kept(of_these if state is None else state),
                self._kept_events,
                self._kept(out),
            )
        return out

    def item_vectors(self, items: Places | slice) -> Floats:
        return self._items.vectors[items]

    def neighbours_of(self, item: int) -> tuple[Places, Floats]:
        return self._neighbours.of(item)

    def put_item(self, item: int, vector: Floats, bias: float) -> None:
        self._items.put(item, vector, bias)
        if self._search is not None:
            self._search.put_item(item)
            self._own_biases.put_item(item)
            return
        if missing := self._items.room - self._columns.shape[1]:
            self._columns = np.pad(self._columns, ((0, 0), (0, missing)))
        self._columns[: len(vector), item] = vector
        self._scores = np.empty(self._items.count, np.float32)
