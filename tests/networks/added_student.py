"""A kind of student that distilrec does not have: one class in torch, one class for the engine, and a row in each table.

As a program it is the command `distilrec` with this kind: `python tests/networks/added_student.py -m distilrec.cli run ...`.
"""

from __future__ import annotations

import sys
from typing import ClassVar

import numpy as np
from torch.nn import functional

from distilrec.engine.items import ItemTable
from distilrec.engine.runtimes.kinds import RUNTIMES
from distilrec.engine.runtimes.runtime import Runtime
from distilrec.networks.kinds import STUDENTS
from distilrec.networks.sequence import FeatureProjection, ItemTower, causal_mean, with_padding
from distilrec.networks.student import Range, Student, StudentSettings
from distilrec.settings import Count


class MeanConfig(StudentSettings, frozen=True, tag="mean"):
    dim: Count = 8
    max_history: Count = 200


class Mean(Student):
    """u = mean of the history's v_i + U f_u, s_i = u . v_i + b_i."""

    settings = MeanConfig
    space: ClassVar = {"max_history": Range(50, 200)}

    def __init__(self, dataset, config):
        super().__init__(dataset, config)
        self.max_history, self.state_dim = config.max_history, config.dim
        self.items = ItemTower(dataset, config.dim)
        self.user_features = FeatureProjection(dataset.user_features, config.dim)

    def encode(self, batch, vectors):
        x = functional.embedding(batch.items, with_padding(vectors))
        mean = causal_mean(x, batch, self.items.catalogue_size)
        return mean + self.user_features(batch.users).unsqueeze(1)

    def arrays(self):
        return {}


class MeanRuntime(Runtime):
    def __init__(self, bundle, search, kernels):
        self._items = ItemTable(bundle.weights.vectors, bundle.weights.biases)

    @staticmethod
    def shapes(manifest, weights):
        return {}

    def new_state(self):
        return np.zeros(self._items.vectors.shape[1] + 1, np.float32)  # the sum, and how many

    def fold(self, state, items, events):
        state[:-1] += self._items.vectors[items].sum(0)
        state[-1] += len(items)

    def query(self, state, user):
        return state[:-1] / max(state[-1], 1) + user

    def scores(self, query):
        return self._items.vectors @ query + self._items.biases

    def scores_of(self, states, user, items):
        queries = states[:, :-1] / np.maximum(states[:, -1:], 1) + user
        return queries @ self._items.vectors[items].T + self._items.biases[items]

    def best(self, state, user, seen, mask, k):
        scores = self.scores(self.query(state, user))
        scores[seen] = -np.inf
        if len(mask):
            scores[mask == 0] = -np.inf
        order = np.argsort(-scores, kind="stable")[:k].astype(np.int32)
        order = order[np.isfinite(scores[order])]
        return order, scores[order]

    def without_each(self, items, events, state=None):
        if state is None:
            state = self.new_state()
            self.fold(state, items, events)
        each = np.hstack([self._items.vectors[items], np.ones((len(items), 1), np.float32)])
        return state - each

    def item_vectors(self, items):
        return self._items.vectors[items]

    def put_item(self, item, vector, bias):
        self._items.put(item, vector, bias)


def add() -> None:
    """The two rows."""
    STUDENTS["mean"] = Mean
    RUNTIMES["mean"] = MeanRuntime


if __name__ == "__main__":
    add()
    from distilrec.cli import main

    main(sys.argv[3:])
