"""A recommender in your own process whose users live in a store: memory is bounded, and nothing is lost on a restart."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from uuid import uuid4

import msgspec

from distilrec.engine.filters import Filter
from distilrec.engine.order import MAX_CLOCK_SKEW
from distilrec.engine.recommender import Recommendation, Recommender
from distilrec.errors import ConfigError
from distilrec.stores.records import ItemRecord, Since, Store, StoredEvent

_SMALL_STEP = 5.0  # seconds


class EventInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One interaction, as a caller reports it.

    timestamp: when it happened, seconds since 1970, now where it is left out; event_id: give one of your own, unique for
    the user, and sending the event again does not count twice.
    """

    user_id: str
    item_id: str
    event_type: str = "interaction"
    timestamp: float | None = None
    event_id: str | None = None


class Clock:
    """Seconds since 1970 that do not go back by small steps, which would only make states be folded again.

    A clock that is set back by more than a few seconds was wrong before or is wrong now, and is followed: the order of
    arrival is kept by `distilrec.engine.order`, in every process and after a restart.
    """

    def __init__(self) -> None:
        self._last = 0.0

    def now(self) -> float:
        """Returns the time, or the last one given where the clock of the machine has gone back a little."""
        now = time.time()
        if not self._last - _SMALL_STEP <= now < self._last:
            self._last = now
        return self._last


def to_stored(events: Iterable[EventInput], clock: Clock) -> list[StoredEvent]:
    """Events as they are stored. Raises ConfigError for a timestamp that is negative, not finite, or in the future."""
    stored = []
    for place, event in enumerate(events):
        now = clock.now()
        when = event.timestamp
        if when is not None and not 0 <= when <= now + MAX_CLOCK_SKEW:
            raise ConfigError(
                f"the timestamp {when} of event {place} is not a time between 1970 and now (seconds)",
                fix="set the clock of the sender, convert milliseconds to seconds, or leave the timestamp out",
                parameter=f"events[{place}].timestamp",
            )
        identity = event.event_id or uuid4().hex
        stored.append(
            StoredEvent(event.user_id, event.item_id, event.event_type, now if when is None else when, now, identity)
        )
    return stored


def bring_up_to_date(recommender: Recommender, store: Store, user_ids: Sequence[str]) -> None:
    """Makes what is in memory about these users equal to what the store says."""
    asked = [recommender.since(user) for user in user_ids]
    for each, record in zip(asked, store.read(asked), strict=True):
        if not recommender.restore(each, record):
            whole = Since(each.user_id)
            recommender.restore(whole, store.read([whole])[0])


class StoredRecommender:
    """`Recommender` over a `Store`: the same answers, durable events. It belongs to one thread."""

    def __init__(self, recommender: Recommender, store: Store) -> None:
        self.recommender, self.store = recommender, store
        self._clock = Clock()
        self._item_changes = 0
        self.refresh_items()

    def recommend(
        self,
        user_id: str,
        item_ids: Sequence[str] | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        *,
        where: Filter | None = None,
        diversity: float = 0.0,
    ) -> list[Recommendation]:
        """See `Recommender.recommend`."""
        if self.store.shared or user_id not in self.recommender.users:
            bring_up_to_date(self.recommender, self.store, [user_id])
        return self.recommender.recommend(user_id, item_ids, k, exclude_seen, where=where, diversity=diversity)

    def update(self, events: Iterable[EventInput | Mapping[str, object]]) -> list[bool]:
        """Stores events, durably, and follows them; says of each whether it is new (not a repeated event id).

        Raises ConfigError for an event that is not valid, and StoreError; then none has been stored.
        """
        try:
            given = [each if isinstance(each, EventInput) else msgspec.convert(each, EventInput) for each in events]
        except msgspec.ValidationError as problem:
            raise ConfigError(f"an event is not valid: {problem}", fix="give user_id and item_id as text") from None
        stored = to_stored(given, self._clock)
        positions = self.store.append(stored)
        if not self.store.shared:
            for event, position in zip(stored, positions, strict=True):
                self.recommender.follow(event, position)
        return [position > 0 for position in positions]

    def set_user(self, user_id: str, features: Mapping[str, object]) -> None:
        """Stores the features of a user. Raises ConfigError for a feature that the bundle does not have."""
        self.recommender.user_features(features)
        self.store.set_features(user_id, features)
        self.recommender.forget(user_id)

    def put_item(self, record: ItemRecord) -> None:
        """Stores and applies what is said about an item. Raises ConfigError; then nothing changed."""
        self.recommender.check_item(record)
        self.store.put_item(record)
        self.refresh_items()

    def refresh_items(self) -> None:
        """Applies what was said about items, here or by other processes."""
        records, self._item_changes = self.store.items(self._item_changes)
        for record in records:
            self.recommender.put_item(record)

    def erase(self, user_id: str) -> int:
        """Removes a user from the store and from memory; the bundle's history of them is not used any more."""
        removed = self.store.erase(user_id)
        self.recommender.forget(user_id, history=True)
        return removed
