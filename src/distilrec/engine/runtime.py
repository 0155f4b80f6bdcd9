"""The three kinds of students as numpy arrays and kernels: state, query, scores. No torch."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from distilrec.bundle.format import Bundle
from distilrec.bundle.manifest import SearchKind
from distilrec.engine import kernels
from distilrec.engine.items import Floats, ItemTable, Mask, Places, columns_of
from distilrec.engine.search import check_search, make_search

NORM_EPSILON = np.float32(1e-6)
_SMALLEST = np.float32(1e-30)


class Runtime(Protocol):
    """What the recommender needs of a student. All arrays are float32; items are positions in the catalogue."""

    def new_state(self) -> Floats:
        """The state of a user without events."""
        ...

    def fold(self, state: Floats, items: Places, events: Places) -> None:
        """Updates the state in place by these events, oldest first."""
        ...

    def query(self, state: Floats, user: Floats) -> Floats:
        """The query of a user, to be given to `scores`; user: U f_u, (dim,)."""
        ...

    def scores(self, query: Floats) -> Floats:
        """Scores of the whole catalogue, (items,), a new array."""
        ...

    def scores_of(self, states: Floats, user: Floats, items: Places) -> Floats:
        """Scores of these items for several states of one user, (states, items)."""
        ...

    def best(self, state: Floats, user: Floats, seen: Places, mask: Mask, k: int) -> tuple[Places, Floats]:
        """The k best items that are not in `seen` and pass the mask, with their scores, best first; fewer where there are.

        mask: (items,) uint8, empty for all.
        """
        ...

    def without_each(self, items: Places, events: Places, state: Floats | None = None) -> Floats:
        """For each of these events, the state of a user to whom all the others happened, (events, *state shape).

        state: the user's state, to be given where events older than these are in it.
        """
        ...

    def item_vectors(self, items: Places) -> Floats:
        """The vectors of these items, (n, dim)."""
        ...

    def put_item(self, item: int, vector: Floats, bias: float) -> None:
        """Sets the vector of an item, or adds one behind the last."""
        ...


class RecurrentRuntime:
    """`distilrec.students.recurrent`, one event at a time.

    search: how the best items are found. A small catalogue that is searched exactly has a transposed copy for that.
    """

    def __init__(self, bundle: Bundle, search: SearchKind = "exact") -> None:
        w = bundle.weights
        self._items = ItemTable(w["vectors"], w["biases"])
        self._search = make_search(search, self._items, bundle)
        self._columns = columns_of(w["vectors"] if self._search is None else w["vectors"][:0])  # (channels, room)
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
        self._scores = np.empty_like(w["biases"])

    def new_state(self) -> Floats:
        return np.zeros((len(self._decay) + 1, self._decay.shape[1]), np.float32)

    def fold(self, state: Floats, items: Places, events: Places) -> None:
        kernels.fold_recurrent(state, items, events, self._items.vectors, self._gain, self._decay, self._scale)

    def query(self, state: Floats, user: Floats) -> Floats:
        query = np.zeros(len(self._columns), np.float32)
        kernels.query_recurrent(state, user, *self._weights, query[: self._decay.shape[1]])
        return query

    def best(self, state: Floats, user: Floats, seen: Places, mask: Mask, k: int) -> tuple[Places, Floats]:
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


class MlpRuntime:
    """`distilrec.students.mlp`; the hidden layer of the items is computed once."""

    def __init__(self, bundle: Bundle) -> None:
        w = bundle.weights
        self._user_layer, self._user_layer_bias = w["user_layer"], w["user_layer_bias"]
        self._item_layer, self._readout = w["item_layer"], w["readout"]
        self._items = ItemTable(w["vectors"], w["biases"])
        self._hidden = np.ascontiguousarray(w["vectors"] @ self._item_layer.T)  # (room, hidden)

    def new_state(self) -> Floats:
        return np.zeros(self._items.vectors.shape[1] + 1, np.float32)

    def fold(self, state: Floats, items: Places, events: Places) -> None:
        kernels.fold_mean(state, items, self._items.vectors)

    def query(self, state: Floats, user: Floats) -> Floats:
        query: Floats = self._queries(state[None], user)[0]
        return query

    def _queries(self, states: Floats, user: Floats) -> Floats:
        mean = states[:, :-1] / np.maximum(states[:, -1:], 1.0)
        queries: Floats = (mean + user) @ self._user_layer.T + self._user_layer_bias
        return queries

    def scores(self, query: Floats) -> Floats:
        out = np.empty(self._items.count, np.float32)
        kernels.scores_relu(query, self._readout, self._hidden[: self._items.count], self._items.biases, out)
        return out

    def scores_of(self, states: Floats, user: Floats, items: Places) -> Floats:
        queries, hidden = self._queries(states, user), self._hidden[items]
        rows = [np.maximum(query + hidden, 0) @ self._readout for query in queries]
        scores: Floats = np.array(rows, np.float32) + self._items.biases[items]
        return scores

    def best(self, state: Floats, user: Floats, seen: Places, mask: Mask, k: int) -> tuple[Places, Floats]:
        items, scores = np.empty(k, np.int32), np.empty(k, np.float32)
        found = kernels.top_k(self.scores(self.query(state, user)), seen, mask, k, items, scores)
        return items[:found], scores[:found]

    def without_each(self, items: Places, events: Places, state: Floats | None = None) -> Floats:
        whole = self.new_state()
        self.fold(whole, items, events)
        each = np.hstack([self._items.vectors[items], np.ones((len(items), 1), np.float32)])
        states: Floats = (whole if state is None else state) - each
        return states

    def item_vectors(self, items: Places) -> Floats:
        return self._items.vectors[items]

    def put_item(self, item: int, vector: Floats, bias: float) -> None:
        self._items.put(item, vector, bias)
        if missing := self._items.room - len(self._hidden):
            self._hidden = np.pad(self._hidden, ((0, missing), (0, 0)))
        self._hidden[item] = self._item_layer @ vector


class TreeRuntime:
    """`distilrec.students.soft_tree`; the distribution of every leaf is computed once.

    An item vector holds its channel of every leaf, then its inputs; a user vector begins with what it adds to the gates.
    """

    def __init__(self, bundle: Bundle) -> None:
        w = bundle.weights
        self._items = ItemTable(w["vectors"], w["biases"])
        self._gates, self._gate_bias, self._log_totals = w["gates"], w["gate_bias"], w["log_totals"]
        self._decays = w["decays"][:, None]
        self._leaves = len(self._log_totals)
        self._columns = columns_of(
            np.exp(self._items.vectors[:, : self._leaves] + w["biases"][:, None] - self._log_totals)
        )
        self._no_bias = np.zeros(self._columns.shape[1], np.float32)

    def new_state(self) -> Floats:
        return np.zeros((2, self._items.vectors.shape[1] - self._leaves), np.float32)

    def fold(self, state: Floats, items: Places, events: Places) -> None:
        for inputs in self._items.vectors[items, self._leaves :]:
            state *= self._decays
            state += (1 - self._decays) * inputs

    def query(self, state: Floats, user: Floats) -> Floats:
        """Path probabilities, (channels,)."""
        right = self._gates @ state.reshape(-1) + self._gate_bias + user[: self._leaves - 1]
        right = 1 / (1 + np.exp(-np.clip(right, -60, 60)))
        paths = np.ones(1, np.float32)
        while len(paths) < self._leaves:
            gate = right[len(paths) - 1 : 2 * len(paths) - 1]
            paths = np.stack([paths * (1 - gate), paths * gate], axis=-1).reshape(-1)
        query = np.zeros(len(self._columns), np.float32)
        query[: self._leaves] = paths
        return query

    def scores(self, query: Floats) -> Floats:
        return _logarithm(self._probabilities(query))

    def scores_of(self, states: Floats, user: Floats, items: Places) -> Floats:
        queries = np.array([self.query(state, user) for state in states]).reshape(-1, len(self._columns))
        return _logarithm(queries @ self._columns[:, items])

    def best(self, state: Floats, user: Floats, seen: Places, mask: Mask, k: int) -> tuple[Places, Floats]:
        items, scores = np.empty(k, np.int32), np.empty(k, np.float32)
        probabilities = self._probabilities(self.query(state, user))
        found = kernels.top_k(probabilities, seen, mask, k, items, scores)
        return items[:found], _logarithm(scores[:found])

    def _probabilities(self, query: Floats) -> Floats:
        out = np.empty(self._items.count, np.float32)
        kernels.scores_dot(query, self._columns, self._no_bias, out)
        return out

    def without_each(self, items: Places, events: Places, state: Floats | None = None) -> Floats:
        steps = np.zeros((len(items) + 1, *self.new_state().shape), np.float64)
        for n, inputs in enumerate(self._items.vectors[items, self._leaves :]):
            steps[n + 1] = self._decays * steps[n] + (1 - self._decays) * inputs
        later = self._decays[None] ** np.arange(len(items) - 1, -1, -1)[:, None, None]
        out: Floats = (steps[-1] - later * np.diff(steps, axis=0)).astype(np.float32)
        if state is not None:
            out += (state - steps[-1]) / self._decays  # what is older decays once less
        return out

    def item_vectors(self, items: Places) -> Floats:
        return self._items.vectors[items, : self._leaves]

    def put_item(self, item: int, vector: Floats, bias: float) -> None:
        self._items.put(item, vector, bias)
        if missing := self._items.room - self._columns.shape[1]:
            self._columns = np.pad(self._columns, ((0, 0), (0, missing)))
            self._no_bias = np.zeros(self._columns.shape[1], np.float32)
        self._columns[: self._leaves, item] = np.exp(vector[: self._leaves] + bias - self._log_totals)


def _logarithm(probabilities: Floats) -> Floats:
    logarithm: Floats = np.log(probabilities + _SMALLEST)
    return logarithm


def make_runtime(bundle: Bundle, search: SearchKind | None = None) -> Runtime:
    """The runtime of a bundle's kind of student. search: in place of the bundle's own.

    Raises ConfigError where this bundle or kind cannot be searched that way.
    """
    search = search or bundle.manifest.search.kind
    check_search(search, bundle.manifest.kind, "search")
    match bundle.manifest.kind:
        case "recurrent":
            return RecurrentRuntime(bundle, search)
        case "soft_tree":
            return TreeRuntime(bundle)
        case "mlp":
            return MlpRuntime(bundle)
