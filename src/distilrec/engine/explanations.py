"""Which past events of a user matter for the score of an item: exact counterfactuals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from distilrec.engine.answers import Contribution
from distilrec.engine.items import Floats, Places
from distilrec.engine.runtimes.runtime import Runtime
from distilrec.engine.users import User

_EXPLAINED = 1_000  # latest events of a user


class Effects(NamedTuple):
    """What each of a user's latest events did for the scores of some items.

    items: of the events, oldest first; start: which of the remembered events is the first of them;
    values: (events, asked items).
    """

    items: Places
    start: int
    values: Floats

    def largest(self, k: int, item_ids: Sequence[str]) -> list[list[Contribution]]:
        """Return for each asked item the k contributions of the largest size.

        item_ids: by position in the catalogue.
        """
        order = np.argsort(-np.abs(self.values), axis=0, kind="stable")[:k]
        return [
            [
                Contribution(
                    item_ids[self.items[n]], float(self.values[n, column]), int(n) + self.start
                )
                for n in order[:, column]
            ]
            for column in range(self.values.shape[1])
        ]


def effects_of(
    runtime: Runtime, user: User, known: Floats, asked: Places, max_events: int, now: float
) -> Effects:
    """Return the effects of the events of a user who has some; the others are of the visits that
    they are of. known: the features of the user, and
    the context of the question, (dim,); max_events: how many are remembered; now: when the question
    is asked.

    O(events S d + events d^2).
    """
    start = max(0, user.length - _EXPLAINED)
    items, kinds = user.items[start:].copy(), user.events[start:]
    # Events that are in the state, but not among these.
    older = start or user.length == max_events
    states = runtime.without_each(items, kinds, user.state if older else None)
    features = runtime.asked_at(known, user.folded, now, user.visit)
    scores = runtime.scores_of(user.state[None], features, asked)  # (1, asked)
    others = runtime.scores_of(states, features, asked)
    if runtime.timed:
        fewer = max(user.visit - 1, 0)
        if runtime.visit_gap:
            features = runtime.asked_at(known, user.folded, now, fewer)
            own = max(len(states) - user.visit, 0)
            others[own:] = runtime.scores_of(states[own:], features, asked)
        # Without the last event, the one before is the last
        features = runtime.asked_at(known, user.folded_before, now, fewer)
        others[-1] = runtime.scores_of(states[-1:], features, asked)[0]
    return Effects(items, start, scores - others)
