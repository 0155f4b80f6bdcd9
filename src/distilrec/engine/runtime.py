"""The two kinds of students as numpy arrays and kernels: state, query, scores. No torch."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distilrec.bundle.format import Bundle
from distilrec.engine import kernels

NORM_EPSILON = np.float32(1e-6)
Floats = NDArray[np.float32]


class Runtime(Protocol):
    """What the recommender needs of a student. All arrays are float32; items are positions in the catalogue."""

    def new_state(self) -> Floats:
        """The state of a user without events."""
        ...

    def fold(self, state: Floats, items: NDArray[np.int32], events: NDArray[np.int32]) -> None:
        """Updates the state in place by these events, oldest first."""
        ...

    def query(self, state: Floats, user: Floats) -> Floats:
        """The query of a user, to be given to `scores`; user: U f_u, (dim,)."""
        ...

    def scores(self, query: Floats) -> Floats:
        """Scores of the whole catalogue, (items,), a new array."""
        ...

    def score(self, query: Floats, item: int) -> float:
        """The score of one item."""
        ...

    def best(self, state: Floats, user: Floats, seen: NDArray[np.int32], k: int) -> tuple[NDArray[np.int32], Floats]:
        """The k best items that are not in `seen`, and their scores, best first; fewer where there are fewer."""
        ...

    def without_each(self, items: NDArray[np.int32], events: NDArray[np.int32]) -> Floats:
        """For each of these events, the state of a user to whom all the others happened, (events, *state shape)."""
        ...

    def append_item(self, vector: Floats, bias: float) -> None:
        """Adds an item behind the last one."""
        ...


class RecurrentRuntime:
    """`distilrec.students.recurrent`, one event at a time."""

    def __init__(self, bundle: Bundle) -> None:
        w = bundle.weights
        self.vectors, self.biases = w["vectors"], w["biases"]
        self.columns = _columns(self.vectors)
        self.gain, self.decay = w["gain"], w["decay"]
        self.scale = np.sqrt(1 - self.decay**2)
        self._weights = (
            w["mix"],
            w["inner_norm"],
            w["widen"],
            w["widen_bias"],
            np.ascontiguousarray(w["narrow"].T),
            w["narrow_bias"],
            w["outer_norm"],
            NORM_EPSILON,
        )
        self._query, self._scores = np.zeros(len(self.columns), np.float32), np.empty_like(self.biases)  # reused

    def new_state(self) -> Floats:
        return np.zeros((len(self.decay) + 1, self.decay.shape[1]), np.float32)

    def fold(self, state: Floats, items: NDArray[np.int32], events: NDArray[np.int32]) -> None:
        kernels.fold_recurrent(state, items, events, self.vectors, self.gain, self.decay, self.scale)

    def query(self, state: Floats, user: Floats) -> Floats:
        query = np.zeros(len(self.columns), np.float32)
        kernels.query_recurrent(state, user, *self._weights, query[: self.decay.shape[1]])
        return query

    def best(self, state: Floats, user: Floats, seen: NDArray[np.int32], k: int) -> tuple[NDArray[np.int32], Floats]:
        items, scores = np.empty(k, np.int32), np.empty(k, np.float32)
        found = kernels.recommend_recurrent(
            state, user, *self._weights, self.columns, self.biases, seen, k, self._query, self._scores, items, scores
        )
        return items[:found], scores[:found]

    def scores(self, query: Floats) -> Floats:
        out = np.empty(len(self.biases), np.float32)
        kernels.scores_dot(query, self.columns, self.biases, out)
        return out

    def without_each(self, items: NDArray[np.int32], events: NDArray[np.int32]) -> Floats:
        out = np.empty((len(items), *self.new_state().shape), np.float32)
        kernels.without_each_recurrent(items, events, self.vectors, self.gain, self.decay, self.scale, out)
        return out

    def score(self, query: Floats, item: int) -> float:
        return float(query @ self.columns[:, item] + self.biases[item])

    def append_item(self, vector: Floats, bias: float) -> None:
        self.vectors = np.vstack([self.vectors, vector])
        self.columns = _columns(self.vectors)
        self.biases = np.append(self.biases, np.float32(bias))
        self._scores = np.empty_like(self.biases)


def _columns(vectors: Floats) -> Floats:
    """Item vectors transposed, (channels, items), with channels of zeros up to a multiple of what the kernel takes."""
    missing = -vectors.shape[1] % kernels.CHANNELS
    return np.ascontiguousarray(np.pad(vectors, ((0, 0), (0, missing))).T)


class MlpRuntime:
    """`distilrec.students.mlp`; the hidden layer of the items is computed once."""

    def __init__(self, bundle: Bundle) -> None:
        w = bundle.weights
        self.vectors, self.biases = w["vectors"], w["biases"]
        self.user_layer, self.user_layer_bias = w["user_layer"], w["user_layer_bias"]
        self.item_layer, self.readout = w["item_layer"], w["readout"]
        self.hidden = np.ascontiguousarray(self.vectors @ self.item_layer.T)  # (items, hidden)

    def new_state(self) -> Floats:
        return np.zeros(self.vectors.shape[1] + 1, np.float32)

    def fold(self, state: Floats, items: NDArray[np.int32], events: NDArray[np.int32]) -> None:
        kernels.fold_mean(state, items, self.vectors)

    def query(self, state: Floats, user: Floats) -> Floats:
        mean = state[:-1] / max(state[-1], 1.0)
        query: Floats = self.user_layer @ (mean + user) + self.user_layer_bias
        return query

    def scores(self, query: Floats) -> Floats:
        out = np.empty(len(self.biases), np.float32)
        kernels.scores_relu(query, self.readout, self.hidden, self.biases, out)
        return out

    def best(self, state: Floats, user: Floats, seen: NDArray[np.int32], k: int) -> tuple[NDArray[np.int32], Floats]:
        items, scores = np.empty(k, np.int32), np.empty(k, np.float32)
        found = kernels.top_k(self.scores(self.query(state, user)), seen, k, items, scores)
        return items[:found], scores[:found]

    def without_each(self, items: NDArray[np.int32], events: NDArray[np.int32]) -> Floats:
        whole = self.new_state()
        self.fold(whole, items, events)
        states: Floats = whole - np.hstack([self.vectors[items], np.ones((len(items), 1), np.float32)])
        return states

    def score(self, query: Floats, item: int) -> float:
        return float(self.readout @ np.maximum(query + self.hidden[item], 0) + self.biases[item])

    def append_item(self, vector: Floats, bias: float) -> None:
        self.vectors = np.vstack([self.vectors, vector])
        self.hidden = np.vstack([self.hidden, self.item_layer @ vector])
        self.biases = np.append(self.biases, np.float32(bias))


def make_runtime(bundle: Bundle) -> Runtime:
    """The runtime of a bundle's kind of student."""
    return RecurrentRuntime(bundle) if bundle.manifest.kind == "recurrent" else MlpRuntime(bundle)
