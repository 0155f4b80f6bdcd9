"""What the recommender needs of a student."""

from __future__ import annotations

from typing import Protocol

from distilrec.engine.items import Floats, Mask, Places


class Runtime(Protocol):
    """What the recommender needs of a student. All arrays are float32; items are positions in the
    catalogue.
    """

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

    def best(
        self, state: Floats, user: Floats, seen: Places, mask: Mask, k: int
    ) -> tuple[Places, Floats]:
        """The k best items that are not in `seen` and pass the mask, with their scores, best first;
        fewer where there are.

        mask: (items,) uint8, empty for all.
        """
        ...

    def without_each(self, items: Places, events: Places, state: Floats | None = None) -> Floats:
        """For each of these events, the state of a user to whom all the others happened, (events,
        *state shape).

        state: the user's state, to be given where events older than these are in it.
        """
        ...

    def item_vectors(self, items: Places) -> Floats:
        """The vectors of these items, (n, dim)."""
        ...

    def put_item(self, item: int, vector: Floats, bias: float) -> None:
        """Sets the vector of an item, or adds one behind the last."""
        ...
