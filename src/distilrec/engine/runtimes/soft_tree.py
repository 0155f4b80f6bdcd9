"""The soft-tree student as numpy arrays and kernels."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from distilrec.bundle.checks import Arrays, Shapes, length_of, require
from distilrec.bundle.format import Bundle
from distilrec.bundle.manifest import Manifest, SearchKind
from distilrec.engine.items import Floats, ItemTable, Mask, Places, columns_of
from distilrec.engine.runtimes.runtime import Runtime, signs_of

_SMALLEST = np.float32(1e-30)


class TreeRuntime(Runtime):
    """`distilrec.networks.soft_tree`; the distribution of every leaf is computed once.

    An item vector holds its channel of every leaf, then its inputs; a user vector begins with what
    it adds to the gates.
    """

    def __init__(self, bundle: Bundle, search: SearchKind, kernels: ModuleType) -> None:
        self._kernels = kernels
        vectors, biases, w = bundle.weights.vectors, bundle.weights.biases, bundle.weights.of_kind
        self._items = ItemTable(vectors, biases)
        self._signs = signs_of(bundle.manifest)
        self._gates, self._gate_bias, self._log_totals = w["gates"], w["gate_bias"], w["log_totals"]
        self._decays = w["decays"][:, None]
        self._leaves = len(self._log_totals)
        self._columns = columns_of(
            np.exp(self._items.vectors[:, : self._leaves] + biases[:, None] - self._log_totals)
        )
        self._no_bias = np.zeros(self._columns.shape[1], np.float32)

    @staticmethod
    def shapes(manifest: Manifest, weights: Arrays) -> Shapes:
        nodes = length_of(weights, "gate_bias")
        # An item vector holds its channel of every leaf, then its inputs.
        inputs = manifest.dim - nodes - 1
        require(nodes & (nodes + 1) == 0 and inputs >= 0, f"has a tree of {nodes} gates")
        return {
            "gates": (nodes, 2 * inputs),
            "gate_bias": (nodes,),
            "log_totals": (nodes + 1,),
            "decays": (2,),
        }

    def new_state(self) -> Floats:
        return np.zeros((2, self._items.vectors.shape[1] - self._leaves), np.float32)

    def fold(self, state: Floats, items: Places, events: Places) -> None:
        for inputs in self._inputs(items, events):
            state *= self._decays
            state += (1 - self._decays) * inputs

    def _inputs(self, items: Places, events: Places) -> Floats:
        """Return what these events add to a state, (events, C)."""
        inputs: Floats = self._items.vectors[items, self._leaves :]
        return inputs if self._signs is None else inputs * self._signs[events][:, None]

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
        queries = np.array([self.query(state, user) for state in states]).reshape(
            -1, len(self._columns)
        )
        return _logarithm(queries @ self._columns[:, items])

    def best(
        self, state: Floats, user: Floats, seen: Places, mask: Mask, k: int
    ) -> tuple[Places, Floats]:
        items, scores = np.empty(k, np.int32), np.empty(k, np.float32)
        probabilities = self._probabilities(self.query(state, user))
        count = self._kernels.top_k(probabilities, seen, mask, k, items, scores)
        return items[:count], _logarithm(scores[:count])

    def _probabilities(self, query: Floats) -> Floats:
        out = np.empty(self._items.count, np.float32)
        self._kernels.scores_dot(query, self._columns, self._no_bias, out)
        return out

    def without_each(self, items: Places, events: Places, state: Floats | None = None) -> Floats:
        steps = np.zeros((len(items) + 1, *self.new_state().shape), np.float64)
        for n, inputs in enumerate(self._inputs(items, events)):
            steps[n + 1] = self._decays * steps[n] + (1 - self._decays) * inputs
        later = self._decays[None] ** np.arange(len(items) - 1, -1, -1)[:, None, None]
        out: Floats = (steps[-1] - later * np.diff(steps, axis=0)).astype(np.float32)
        if state is not None:
            out += (state - steps[-1]) / self._decays  # what is older decays once less
        return out

    def item_vectors(self, items: Places | slice) -> Floats:
        return self._items.vectors[items, : self._leaves]

    def put_item(self, item: int, vector: Floats, bias: float) -> None:
        self._items.put(item, vector, bias)
        if missing := self._items.room - self._columns.shape[1]:
            self._columns = np.pad(self._columns, ((0, 0), (0, missing)))
            self._no_bias = np.zeros(self._columns.shape[1], np.float32)
        self._columns[: self._leaves, item] = np.exp(
            vector[: self._leaves] + bias - self._log_totals
        )


def _logarithm(probabilities: Floats) -> Floats:
    logarithm: Floats = np.log(probabilities + _SMALLEST)
    return logarithm
