"""The users in memory: their states, bounded in number, the least recently used ones
leaving first.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distilrec.engine.items import Floats
from distilrec.engine.locks import fork_safe_lock
from distilrec.engine.time_inputs import NEVER
from distilrec.engine.visits import goes_on

_FIRST_ROOM = 16
NO_ITEMS = np.zeros(0, np.int32)


@dataclass(slots=True)
class User:
    """One user in memory.

    state: what the runtime folds events into; features: U f_u, (dim,); log: (2, capacity) int32,
    items and event types;
    last: time of the latest event; received: when the last one to arrive did; epoch, position: up
    to where the user's log in the store is folded in; unmatched: events (item, type) of the
    bundle's history, from around its end, that no stored event has been found to be; folded,
    folded_before: when the event that was folded last happened and the one before, NEVER without
    one, and visit: how many of the latest events are those of the last visit, where answers depend
    on the time; hidden: items that the user does not want to see,
    rising, None for none; an array that is replaced, never changed.
    """

    state: Floats
    features: Floats
    log: NDArray[np.int32]
    length: int = 0
    last: float = -math.inf
    received: float = -math.inf
    epoch: str = ""
    position: int = 0
    has_history: bool = False
    unmatched: list[tuple[int, int]] | None = None
    folded: float = NEVER
    folded_before: float = NEVER
    visit: int = 0
    hidden: NDArray[np.int32] | None = None

    def happened(self, when: float, gap: float) -> None:
        """Follow the time of an event that is folded. gap: seconds that end a visit.

        One that comes late and is folded behind later ones counts as happening with the last of
        these: it neither ends their visit nor makes the last event an older one.
        """
        when = max(when, self.folded)
        self.visit = self.visit + 1 if goes_on(self.folded, when, gap) else 1
        self.folded, self.folded_before = when, self.folded

    @property
    def items(self) -> NDArray[np.int32]:
        """The latest items, oldest first, with repetitions, (length,)."""
        return self.log[0, : self.length]

    @property
    def events(self) -> NDArray[np.int32]:
        """Their event types, (length,)."""
        return self.log[1, : self.length]

    def left_out(self, *, seen: bool) -> NDArray[np.int32]:
        """Return the items that a list leaves out: what the user does not want to see, and with
        `seen` what they have had.
        """
        items = self.items if seen else NO_ITEMS
        return items if self.hidden is None else np.concatenate([items, self.hidden])

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        hidden = 0 if self.hidden is None else self.hidden.nbytes
        return self.state.nbytes + self.features.nbytes + self.log.nbytes + hidden


class Users:
    """Users by id. At most `max_users` of them, and of each the latest `max_events` events; the
    states forget nothing.

    Any thread may call the methods; a `User` itself may only be read and changed by a thread that
    holds `lock`.
    """

    def __init__(self, max_users: int | None, max_events: int) -> None:
        self.lock = fork_safe_lock()
        self._users: OrderedDict[str, User] = OrderedDict()
        self.max_users, self.max_events = max_users, max_events
        self.nbytes = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._users)

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._users

    def get(self, user_id: str) -> User | None:
        """Return the user, who thereby is the most recently used."""
        with self.lock:
            return self.use(user_id)

    def use(self, user_id: str) -> User | None:
        """Do what `get` does, for a thread that holds the lock."""
        user = self._users.get(user_id)
        if user is not None:
            self._users.move_to_end(user_id)
        return user

    def peek(self, user_id: str) -> User | None:
        """Return the user, without counting as use."""
        return self._users.get(user_id)

    def put(self, user_id: str, user: User) -> None:
        """Add or replace a user; the least recently used one leaves where there are too many."""
        with self.lock:
            self.drop(user_id)
            self._users[user_id] = user
            self.nbytes += user.nbytes
            if self.max_users is not None and len(self._users) > self.max_users:
                _, gone = self._users.popitem(last=False)
                self.nbytes -= gone.nbytes
                self.evicted += 1

    def drop(self, user_id: str) -> None:
        """Forget a user, if in memory."""
        with self.lock:
            user = self._users.pop(user_id, None)
            if user is not None:
                self.nbytes -= user.nbytes

    def clear(self) -> None:
        """Forget all users."""
        with self.lock:
            self._users.clear()
            self.nbytes = 0

    def recent(self, count: int) -> list[str]:
        """Return the most recently used users, latest first."""
        with self.lock:
            return [
                user_id for user_id, _ in zip(reversed(self._users), range(count), strict=False)
            ]

    def remember(self, user: User, item: int, event: int) -> None:
        """Add an event to the log of a user who is held here, or is about to be."""
        if user.length == self.max_events:
            user.log[:, :-1] = user.log[:, 1:]
            user.length -= 1
        elif user.length == user.log.shape[1]:
            room = min(max(_FIRST_ROOM, user.length // 4), self.max_events - user.length)
            self.nbytes += 2 * room * user.log.itemsize
            user.log = np.concatenate([user.log, np.empty((2, room), np.int32)], axis=1)
        user.log[:, user.length] = item, event
        user.length += 1

    def hide(self, user: User, hidden: NDArray[np.int32] | None) -> None:
        """Set what a user who is held here does not want to see."""
        before = user.nbytes
        user.hidden = hidden
        self.nbytes += user.nbytes - before

    def remember_all(self, user: User, items: NDArray[np.int32], events: NDArray[np.int32]) -> None:
        """Add many events to the log of a user who is not held here yet."""
        whole = np.stack(
            [np.concatenate([user.items, items]), np.concatenate([user.events, events])]
        )
        user.log = (
            whole if whole.shape[1] <= self.max_events else whole[:, -self.max_events :].copy()
        )
        user.length = user.log.shape[1]
