"""The users of a recommender: their states, folded from a history, a log and live events."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from msgspec import UNSET

from distilrec.bundle.format import Bundle
from distilrec.engine.embedding import embed_bag, embed_features
from distilrec.engine.items import Floats, Places
from distilrec.engine.order import Placed, follows, history_until, placed
from distilrec.engine.runtimes.runtime import Runtime
from distilrec.engine.time_inputs import NEVER
from distilrec.engine.users import User, Users
from distilrec.ids import Id, as_id
from distilrec.stores.records import Since, StoredEvent, UserRecord
from distilrec.targets import roles_by_type, still_hidden

_FOLDED = 500  # events of a long log that are folded before others get their turn


class Sessions:
    """The users in memory and those of the bundle's history.

    Only for a thread that holds the lock of the recommender; `rebuilt` takes it by itself, in
    steps.

    positions: of the items by id, which the catalogue goes on changing.
    """

    def __init__(
        self, bundle: Bundle, runtime: Runtime, positions: Mapping[str, int], users: Users
    ) -> None:
        manifest, history = bundle.manifest, bundle.history
        self._runtime, self._users, self._positions = runtime, users, positions
        self._lock = users.lock
        self._event_types = {name: number for number, name in enumerate(manifest.event_types)}
        roles = () if manifest.roles is UNSET else manifest.roles
        # What decides which items are hidden; None where no event can
        self._roles = roles_by_type(roles) if "negative" in roles else None
        self._encoder = manifest.user_encoder
        self._table = bundle.weights.user_table
        self._no_features = np.zeros(manifest.dim, np.float32)  # of all users without
        self._one_event = np.empty(1, np.int32), np.empty(1, np.int32)  # reused: item and type
        self._history = history
        known = history.users if history else []
        self._history_index = {user: place for place, user in enumerate(known)}
        self._in_history = history_until(
            history.end if history else -math.inf,
            len(manifest.event_types),
            with_tail=history is not None and history.recent is not None,
        )

    # Ids, as they were given where they are known so: that needs no checking.

    def _is_known(self, user_id: str) -> bool:
        return user_id in self._users or user_id in self._history_index

    def user_id(self, user_id: Id) -> str:
        """Return the id of a user, known or not. Raises InvalidIdError."""
        return (
            user_id
            if type(user_id) is str and self._is_known(user_id)
            else as_id(user_id, "user_id")
        )

    def knows(self, user_id: Id) -> bool:
        """Return whether anything is known of this user."""
        known = type(user_id) is str and self._is_known(user_id)
        return known or self._is_known(as_id(user_id, "user_id"))

    def some(self, limit: int) -> list[str]:
        """Return some users with a history; see `Recommender.some_users`."""
        recent = [user for user in self._users.recent(limit) if self._users.peek(user).length]  # type: ignore[union-attr]
        others = (user for user in self._history_index if user not in self._users)
        rest = zip(others, range(limit - len(recent)), strict=False)
        return [*recent, *(user for user, _ in rest)]

    def everyone(self) -> list[str]:
        """Return the users of the bundle's history, and those in memory."""
        return [*self._history_index, *self._users.recent(len(self._users))]

    @property
    def has_teacher(self) -> bool:
        """Whether the bundle holds what the teacher would recommend."""
        return self._history is not None and self._history.teacher_items is not None

    def teacher_items(self, user_id: Id) -> Places:
        """Return what the teacher would recommend after the history in the bundle, best first."""
        place = self._history_index.get(self.user_id(user_id))
        lists = None if self._history is None else self._history.teacher_items
        if place is None or lists is None:
            return np.zeros(0, np.int32)
        found: Places = lists[place][lists[place] >= 0]
        return found

    # States

    def stranger(self) -> User:
        """Return an unknown user without events, not in memory."""
        return User(self._runtime.new_state(), self._no_features, np.empty((2, 0), np.int32))

    def new(self, user_id: str) -> User:
        """Return a user without events, who is in memory from now on."""
        user = self.stranger()
        self._users.put(user_id, user)
        return user

    def find(self, user_id: Id) -> User | None:
        """Return a user, folded from the bundle's history on first use; None for a stranger."""
        user = self._users.use(user_id) if type(user_id) is str else None
        return self._find_elsewhere(self.user_id(user_id)) if user is None else user

    def _find_elsewhere(self, user_id: str) -> User | None:
        user = self._users.get(user_id)
        if user is None and (place := self._history_index.get(user_id)) is not None:
            user = self._of_history(place)
            self._users.put(user_id, user)
        return user

    def _of_history(self, place: int) -> User:
        """Return a user as folded from the bundle's history, not in memory yet."""
        h = self._history
        # Only a history has places.
        assert h is not None
        start, stop = h.offsets[place], h.offsets[place + 1]
        items, events = h.items[start:stop], h.events[start:stop]
        user = self.stranger()
        user.has_history = True
        if h.recent is not None and (count := int(h.recent[place])):
            kinds = [0] * count if self._in_history.one_type else events[-count:].tolist()
            user.unmatched = list(zip(items[-count:].tolist(), kinds, strict=True))
        self._runtime.fold(user.state, items, events)
        self._users.remember_all(user, items, events)
        if self._roles is not None:
            user.hidden = still_hidden(None, items, events, self._roles)
        if h.last_times is not None:
            times = h.last_times[place, : min(len(items), 2)].tolist()
            user.folded, user.folded_before = (*times, NEVER, NEVER)[:2]
        if h.visits is not None:
            user.visit = int(h.visits[place])
        if len(columns := h.user_columns[place]):
            user.features = embed_bag(zip(columns, h.user_weights[place], strict=True), self._table)
        return user

    def fold(self, user: User, place: int, event_type: str, when: float) -> None:
        """Fold one event, on the item at this place, into a user's state. when: it happened."""
        kind = self._event_types.get(event_type, 0)
        item, event = self._one_event
        item[0], event[0] = place, kind
        self._runtime.fold(user.state, item, event)
        self._users.remember(user, place, kind)
        if self._roles is not None:
            self._users.hide(user, still_hidden(user.hidden, item, event, self._roles))
        if self._runtime.timed:
            user.happened(when, self._runtime.visit_gap)

    def features(self, features: Mapping[str, object], *, strict: bool = True) -> Floats:
        """Return U f_u of these features; see `Recommender.user_features`. Needs no lock."""
        return embed_features(features, self._encoder, self._table, "user", strict=strict)

    def set_features(self, user_id: Id, embedded: Floats) -> None:
        """Set the features of a new or known user."""
        name = self.user_id(user_id)
        user = self.find(name) or self.new(name)
        user.features = embedded

    # What a store needs.

    def since(self, user_id: Id) -> Since:
        """Return up to where the log of a user is folded in."""
        name = self.user_id(user_id)
        user = self._users.peek(name)
        return Since(name) if user is None else Since(name, user.epoch, user.position)

    def restore(self, asked: Since, record: UserRecord, rebuilt: User | None) -> bool:
        """Bring a user up to date with what a store said; see `Recommender.restore`."""
        user_id = asked.user_id
        user = self._users.peek(user_id)
        if record.erased and self._history_index.pop(user_id, None) is not None:
            self._users.drop(user_id)
        current = (
            user is not None and user.epoch == record.epoch and user.position >= record.position
        )
        if record.restart:
            if current and not record.erased:
                return True  # nothing is stored and nothing was, or another answer came first
            self._users.drop(user_id)
            if (user := rebuilt or self.rebuilt(user_id, record)) is not None:
                self._users.put(user_id, user)
            return True
        if current:
            return True  # another answer came first
        events = placed(record.events)
        if user is None or (user.epoch, user.position) != asked[1:] or not _in_order(user, events):
            self._users.drop(user_id)
            return False
        for event in events:
            self._follow(user, event)
        user.position = record.position
        return True

    def follow(self, event: StoredEvent, position: int) -> None:
        """Fold one event that has just been stored; see `Recommender.follow`."""
        user = self._users.peek(event.user_id)
        if user is None or position <= user.position:
            return
        if not follows(event, user.last, user.received):
            # Late: the next answer folds the log again, in order.
            self._users.drop(event.user_id)
            return
        self._follow(user, placed([event])[0])
        user.position = position

    def forget(self, user_id: Id, *, history: bool) -> None:
        """Drop a user from memory; with `history` also what the bundle knows of them."""
        name = self.user_id(user_id)
        self._users.drop(name)
        if history:
            self._history_index.pop(name, None)

    def drop_erased(self, names: Iterable[str]) -> None:
        """Forget users and what the bundle knows of them, by exactly these names."""
        for name in names:
            self._users.drop(name)
            self._history_index.pop(name, None)

    def rebuilt(self, user_id: str, record: UserRecord) -> User | None:
        """Return a user as folded from a whole log; see `Recommender.rebuilt`.

        Takes the lock by itself, and lets go of it between the steps of a long log.
        """
        events = placed(record.events)
        with self._lock:
            place = None if record.erased else self._history_index.get(user_id)
            user = self.stranger() if place is None else self._of_history(place)
        if place is None and not events and record.features is None:
            return None
        user.epoch, user.position = record.epoch, record.position
        if record.features is not None:
            user.features = self.features(record.features, strict=False)
        # Compared in order of arrival.
        self._fold_all(user, [event for event in events if not self._is_history(user, event)])
        if events:
            user.last = max(event.when for event in events)
            user.received = events[-1].received
        return user

    def after(self, user: User | None, events: Sequence[StoredEvent]) -> User:
        """Return who a user, None for a stranger, would be after these events, which arrive in this
        order; not in memory. The user stays as it is.
        """
        found = self.stranger() if user is None else replace(user, state=user.state.copy())
        self._fold_all(found, placed(events))
        return found

    def _fold_all(self, user: User, new: list[Placed]) -> None:
        """Fold events, given in order of arrival, into a user who is not in memory; takes the lock,
        and lets go of it between the steps.
        """
        new.sort(key=lambda event: event.when)  # stable: equal times in order of arrival
        new = [each for each in new if each.event.item_id in self._positions]
        known = [each.event for each in new]
        items = np.array([self._positions[event.item_id] for event in known], np.int32)
        kinds = np.array([self._event_types.get(event.event_type, 0) for event in known], np.int32)
        for start in range(0, len(items), _FOLDED):
            with self._lock:
                self._runtime.fold(
                    user.state, items[start : start + _FOLDED], kinds[start : start + _FOLDED]
                )
            if start:
                time.sleep(0)  # a thread that waits for the lock gets it
        self._users.remember_all(user, items, kinds)
        if self._roles is not None:
            user.hidden = still_hidden(user.hidden, items, kinds, self._roles)
        for event in new if self._runtime.timed else ():
            user.happened(event.when, self._runtime.visit_gap)

    def _follow(self, user: User, event: Placed) -> None:
        user.last, user.received = event.when, event.received
        if not self._is_history(user, event):
            place = self._positions.get(event.event.item_id)
            if place is not None:
                self.fold(user, place, event.event.event_type, event.when)

    def _is_history(self, user: User, event: Placed) -> bool:
        """Return whether the bundle's history of the user, with which the state begins, holds a
        stored event.
        """
        if not user.has_history:
            return False
        place, kind = (
            self._positions.get(event.event.item_id, -1),
            self._event_types.get(event.event.event_type, 0),
        )
        return self._in_history.holds(user.unmatched, place, kind, event.received)


def _in_order(user: User, events: Sequence[Placed]) -> bool:
    """Return whether new events can be folded as they come, after those that the user has."""
    last, received = user.last, user.received
    for event in events:
        if event.received != event.event.received or not follows(event.event, last, received):
            return False
        last, received = event.when, event.received
    return True
