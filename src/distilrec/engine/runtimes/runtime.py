"""What the recommender needs of a student."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import ModuleType
from typing import ClassVar

import numpy as np

from distilrec.bundle.checks import Arrays, Shapes, Whole
from distilrec.bundle.format import Bundle
from distilrec.bundle.manifest import Manifest, SearchKind
from distilrec.engine.items import Floats, Mask, Places


def signs_of(manifest: Manifest) -> Floats | None:
    """Return the sign with which an event of each type enters a state, (types,): -1 for negative
    ones; None where no type is negative.
    """
    if not (negative := manifest.negative_types):
        return None
    signs = np.ones(len(manifest.event_types), np.float32)
    signs[list(negative)] = -1.0
    return signs


_NO_NEIGHBOURS = np.zeros(0, np.int32), np.zeros(0, np.float32)


class Runtime(ABC):
    """What the recommender needs of a student. All arrays are float32; items are positions in the
    catalogue.

    `Bundle.weights` has `vectors`, `biases`, `user_table` and `item_table` for every kind of
    student, and in `of_kind` those of `shapes` and `whole_numbers`; all are checked before a
    runtime is made.
    """

    searches: ClassVar[tuple[SearchKind, ...]] = ("exact",)
    """How the best items can be found."""
    timed: bool = False
    """Whether answers depend on the time at which they are asked for; see `asked_at`."""
    visit_gap: float = 0.0
    """Seconds without an event that end a visit, for a student that knows visits."""
    context_table: Floats | None = None
    """What each column of the encoded context of a question adds to U f_u, (columns, dim), for a
    student that is told it.
    """

    @abstractmethod
    def __init__(self, bundle: Bundle, search: SearchKind, kernels: ModuleType) -> None:
        """Make a runtime of a bundle. search: one of `searches`; kernels: the loops, compiled or in
        numpy, see `distilrec.engine.loops`.
        """

    @staticmethod
    @abstractmethod
    def shapes(manifest: Manifest, weights: Arrays) -> Shapes:
        """Return the shapes of the arrays that only this kind has, `weights`; sizes that the
        manifest does not have come from them. Raises ValueError for sizes that cannot be.
        """

    @staticmethod
    def whole_numbers(manifest: Manifest, weights: Arrays) -> Mapping[str, Whole]:
        """Return what the arrays of whole numbers among these must be, where this kind has some.
        Raises ValueError for what cannot be.
        """
        return {}

    @staticmethod
    def query_length(weights: Arrays) -> float:
        """Return about how long queries are, where `graph` is one of `searches`."""
        raise NotImplementedError("a student that is searched by a graph has a query_length")

    @abstractmethod
    def new_state(self) -> Floats:
        """Return the state of a user without events."""

    @abstractmethod
    def fold(self, state: Floats, items: Places, events: Places) -> None:
        """Update the state in place by these events, oldest first."""

    def asked_at(self, user: Floats, last: float, now: float, visit: int) -> Floats:
        """Return what stands for U f_u in an answer at a time, (dim,) or, with what belongs to
        visits behind it, longer, for a student that is `timed`.

        user: U f_u; last: when the user's last event happened, NEVER without one; now: the time of
        the question; both in seconds since 1970. visit: how many of the latest events are those of
        the last visit.
        """
        return user

    @abstractmethod
    def query(self, state: Floats, user: Floats) -> Floats:
        """Return the query of a user, to be given to `scores`: what `encode` gives in training,
        with zeros behind it where the kernels need them. user: U f_u, (dim,), or `asked_at`.
        """

    @abstractmethod
    def scores(self, query: Floats) -> Floats:
        """Return the scores of the whole catalogue, (items,), a new array."""

    @abstractmethod
    def scores_of(self, states: Floats, user: Floats, items: Places) -> Floats:
        """Return the scores of these items for several states of one user, (states, items)."""

    @abstractmethod
    def best(
        self, state: Floats, user: Floats, seen: Places, mask: Mask, k: int
    ) -> tuple[Places, Floats]:
        """Return the k best items that are not in `seen` and pass the mask, with their scores, best
        first; fewer where there are fewer.

        mask: (items,) uint8, empty for all.
        """

    @abstractmethod
    def without_each(self, items: Places, events: Places, state: Floats | None = None) -> Floats:
        """Return for each of these events the state of a user who has all the others, (events,
        *state shape).

        state: the user's state, to be given where events older than these are in it; then these are
        two or more.
        """

    @abstractmethod
    def item_vectors(self, items: Places | slice) -> Floats:
        """Return the vectors of these items, (n, dim); for a slice without copying them."""

    def neighbours_of(self, item: int) -> tuple[Places, Floats]:
        """Return the items whose scores an event on this item moves by itself, and S, by how much,
        before what its type and age make of that; no items for kinds that have no such weights.
        """
        return _NO_NEIGHBOURS

    @abstractmethod
    def put_item(self, item: int, vector: Floats, bias: float) -> None:
        """Set the vector of an item, or add one behind the last."""
