"""What users without events get: the student's scores, and what is popular of late.

score + w log(1 + n): the odds of an item grow with the power w of its events n, of which newer ones
count for more (`distilrec.engine.popular`). An item without events has the student's score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from distilrec.bundle.checks import Arrays, Shapes
from distilrec.bundle.manifest import Manifest
from distilrec.engine.items import Floats, Mask, Places
from distilrec.engine.popular import Ranking, Window, window_of
from distilrec.engine.runtimes.runtime import Runtime
from distilrec.stores.records import KEPT_HOURS

HALF_LIFE = 24.0
_HALF_LIVES = 8  # after which an event counts no more


class Blend(NamedTuple):
    """How much of what is popular of late is in the scores of users without events.

    weight: w, 0 for nothing; half_life: hours after which an event counts half.
    """

    weight: float = 0.0
    half_life: float = HALF_LIFE

    def window(self, event_types: list[str] | None) -> Window:
        """Return which events count. Raises ConfigError."""
        checked = window_of(1, self.half_life, event_types)
        hours = min(KEPT_HOURS, math.ceil(_HALF_LIVES * self.half_life))
        return checked._replace(hours=hours)

    def parts(self, ranking: Ranking, index: Mapping[str, int]) -> tuple[Places, Floats]:
        """Return the items of a ranking that are in the catalogue, rising, and what is added to
        their scores. index: the position of each id.
        """
        added = {
            place: self.weight * math.log1p(count)
            for item, count in ranking
            if (place := index.get(item)) is not None
        }
        places = np.array(sorted(added), np.int32)
        return places, np.array([added[place] for place in places.tolist()], np.float32)


class BlendedRuntime(Runtime):
    """A runtime whose scores have something added for some items; exact where it is exact.

    places: these items, rising; parts: what is added to the score of each, 0 or more.
    """

    def __init__(self, runtime: Runtime, places: Places, parts: Floats) -> None:
        self._runtime, self._places, self._parts = runtime, places, parts
        self.timed, self.visit_gap = runtime.timed, runtime.visit_gap
        self.context_table = runtime.context_table

    def part_of(self, items: Places) -> Floats:
        """Return what is added to the scores of these items, (items,)."""
        if not len(self._places):
            return np.zeros(len(items), np.float32)
        found = np.minimum(np.searchsorted(self._places, items), len(self._places) - 1)
        part: Floats = np.where(self._places[found] == items, self._parts[found], np.float32(0))
        return part

    def scores(self, query: Floats) -> Floats:
        scores = self._runtime.scores(query)
        scores[self._places] += self._parts
        return scores

    def scores_of(self, states: Floats, user: Floats, items: Places) -> Floats:
        return self._runtime.scores_of(states, user, items) + self.part_of(items)

    def best(
        self, state: Floats, user: Floats, seen: Places, mask: Mask, k: int
    ) -> tuple[Places, Floats]:
        # Of the items to which nothing is added, only the best k of all can be among the best
        places, scores = self._runtime.best(state, user, seen, mask, k)
        kept = ~np.isin(places, self._places)
        counted = self._places if not len(mask) else self._places[mask[self._places] == 1]
        counted = counted[~np.isin(counted, seen)]
        own = self.scores_of(state[None], user, counted)[0]
        places = np.concatenate([places[kept], counted])
        scores = np.concatenate([scores[kept], own])
        order = np.argsort(-scores, kind="stable")[:k]
        return places[order], scores[order]

    # As they are without it.

    @staticmethod
    def shapes(manifest: Manifest, weights: Arrays) -> Shapes:
        raise NotImplementedError("it is not made of a bundle")

    def new_state(self) -> Floats:
        return self._runtime.new_state()

    def fold(self, state: Floats, items: Places, events: Places) -> None:
        self._runtime.fold(state, items, events)

    def asked_at(self, user: Floats, last: float, now: float, visit: int) -> Floats:
        return self._runtime.asked_at(user, last, now, visit)

    def query(self, state: Floats, user: Floats) -> Floats:
        return self._runtime.query(state, user)

    def without_each(self, items: Places, events: Places, state: Floats | None = None) -> Floats:
        return self._runtime.without_each(items, events, state)

    def item_vectors(self, items: Places | slice) -> Floats:
        return self._runtime.item_vectors(items)

    def put_item(self, item: int, vector: Floats, bias: float) -> None:
        self._runtime.put_item(item, vector, bias)
