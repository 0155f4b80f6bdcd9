"""A recommender in your own process whose users live in a store: memory is bounded, and nothing is
lost on a restart.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from uuid import uuid4

import msgspec

from distilrec.engine.answers import Contribution, Recommendation, ValuedItem
from distilrec.engine.context import Context
from distilrec.engine.events import MAX_EVENT_ID, MAX_EVENT_TYPE
from distilrec.engine.filters import Filter
from distilrec.engine.history import History
from distilrec.engine.locks import fork_safe_lock
from distilrec.engine.moments import check_timestamp
from distilrec.engine.popular import WEEK, ranking_of, window_of
from distilrec.engine.probabilities import Objective
from distilrec.engine.recommender import Recommender
from distilrec.engine.ruled import Arranged
from distilrec.engine.rules import Rules, Tiredness
from distilrec.engine.similar import POPULARITY
from distilrec.engine.strangers import HALF_LIFE, Blend
from distilrec.engine.users import User
from distilrec.errors import ConfigError, DistilrecError, InvalidIdError
from distilrec.ids import Id, as_id, as_label, listed_ids
from distilrec.stores.records import IMPRESSION, ItemRecord, Since, Store, StoredEvent

_log = logging.getLogger("distilrec")
_SMALL_STEP = 5.0  # seconds


class EventInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One interaction, as a caller reports it.

    timestamp: when it happened, seconds since 1970, now where it is left out; event_id: give one of
    your own, unique for the user, and sending the event again does not count twice.
    """

    user_id: str | int | float
    item_id: str | int | float
    event_type: str = "interaction"
    timestamp: float | None = None
    event_id: str | None = None


class Clock:
    """Seconds since 1970 that do not go back by small steps, which would only make states be folded
    again.

    A clock that is set back by more than a few seconds was wrong before or is wrong now, and is
    followed: the order of arrival is kept by `distilrec.engine.order`, in every process and after a
    restart.
    """

    def __init__(self) -> None:
        self._last = 0.0

    def now(self) -> float:
        """Return the time, or the last one given where the clock of the machine has gone back a
        little.
        """
        now = time.time()
        if not self._last - _SMALL_STEP <= now < self._last:
            self._last = now
        return self._last


def to_stored(events: Iterable[EventInput], clock: Clock) -> list[StoredEvent]:
    """Return events as they are stored.

    Raises ConfigError for a timestamp that is negative, not finite, or in the future,
    InvalidIdError for an id, an event type or an event id that cannot be kept exactly.
    """
    return [as_stored(event, clock.now(), f"events[{place}]") for place, event in enumerate(events)]


def as_stored(event: EventInput, now: float, name: str = "event") -> StoredEvent:
    """Return an event as it is stored. now: when it arrives, in seconds since 1970; name: what
    errors call the event.

    Raises what `to_stored` raises.
    """
    when, given = event.timestamp, event.event_id
    check_timestamp(when, now, name)
    user = as_id(event.user_id, f"{name}.user_id")
    item = as_id(event.item_id, f"{name}.item_id")
    kind = as_label(event.event_type, f"{name}.event_type", MAX_EVENT_TYPE)
    identity = uuid4().hex if given is None else as_label(given, f"{name}.event_id", MAX_EVENT_ID)
    return StoredEvent(user, item, kind, now if when is None else when, now, identity)


def bring_up_to_date(recommender: Recommender, store: Store, user_ids: Sequence[Id]) -> None:
    """Make what is in memory about these users equal to what the store says."""
    positions = [recommender.since(user) for user in user_ids]
    for since, record in zip(positions, store.read(positions), strict=True):
        if not recommender.restore(since, record):
            whole = Since(since.user_id)
            recommender.restore(whole, store.read([whole])[0])


def follow_item(recommender: Recommender, record: ItemRecord) -> list[DistilrecError]:
    """Apply a stored record of an item as far as that is possible; return what stood against the
    rest. Nothing does where the item was removed.
    """
    try:
        return recommender.follow_item(record)
    except InvalidIdError as problem:
        return [] if record.removed else [problem]


def forget_erased(recommender: Recommender, store: Store) -> int:
    """Take users whom the store remembers as erased out of what a recommender knows from its
    bundle.

    Returns the store's number of erasures: as long as that stays, there is nothing to do.
    """
    number = store.erasures()
    if number:
        recommender.drop_erased(store.erased_among(recommender.all_users()))
    return number


def shown_lately(store: Store, user_id: str, rule: Tiredness, now: float) -> dict[str, int]:
    """Return how often each item was shown to a user while that counts for a rule. Raises
    StoreErrors.
    """
    return store.shown(user_id, now - 3600 * rule.hours)


def as_impressions(user_id: str, items: Iterable[str], now: float) -> list[StoredEvent]:
    """Return the events that say that a list was shown to a user."""
    answer = uuid4().hex
    return [StoredEvent(user_id, item, IMPRESSION, now, now, answer) for item in items]


class StoredRecommender:
    """`Recommender` over a `Store`: the same answers, durable events.

    Any thread may call any method; what a thread has stored is in its next answer. Users in memory
    are answered while the store works for others, unless other processes share the store. A forked
    process opens a store of its own.
    """

    def __init__(self, recommender: Recommender, store: Store) -> None:
        self.recommender, self.store = recommender, store
        # No thread reads a user between an event's storing and following.
        self._lock = fork_safe_lock()
        self._process = os.getpid()
        self._clock = Clock()
        self._item_changes = 0
        self._generation = store.generation
        forget_erased(recommender, store)
        self.refresh_items()

    def recommend(
        self,
        user_id: Id | User,
        item_ids: Iterable[Id] | None = None,
        k: int = 10,
        exclude_seen: bool | None = None,
        *,
        where: Filter | None = None,
        diversity: float = 0.0,
        now: float | None = None,
        context: Context | None = None,
    ) -> list[Recommendation]:
        """See `Recommender.recommend`. user_id: or what `session` returns."""
        recommender = self.recommender
        answer = partial(
            recommender.recommend,
            user_id,
            None if item_ids is None else listed_ids(item_ids, "item_ids"),
            k,
            exclude_seen,
            where=where,
            diversity=diversity,
            now=now,
            context=context,
        )
        if isinstance(user_id, User):
            return answer()
        if not self.store.shared and os.getpid() == self._process:
            name = user_id if type(user_id) is str else as_id(user_id, "user_id")
            with recommender.lock:
                if name in recommender.users:
                    return answer()
        with self._lock:
            bring_up_to_date(recommender, self.store, [user_id])
            return answer()

    def arrange(  # noqa: PLR0913 - see `Recommender.arrange`
        self,
        user_id: Id | User,
        rules: Rules,
        k: int = 10,
        exclude_seen: bool | None = None,
        *,
        where: Filter | None = None,
        diversity: float = 0.0,
        now: float | None = None,
        context: Context | None = None,
        shown: Iterable[Id] = (),
        lenient: bool = False,
    ) -> Arranged:
        """See `Recommender.arrange`. What was shown lately comes from the store, and is stored
        where `rules.tired` counts answers.
        """
        tired = None if isinstance(user_id, User) else rules.tired
        name = "" if isinstance(user_id, User) else as_id(user_id, "user_id")
        with self._lock:
            if name:
                bring_up_to_date(self.recommender, self.store, [name])
            moment = self._clock.now() if now is None else now
            impressions = None if tired is None else shown_lately(self.store, name, tired, moment)
            found = self.recommender.arrange(
                user_id,
                rules,
                k,
                exclude_seen,
                where=where,
                diversity=diversity,
                now=now,
                context=context,
                shown=shown,
                impressions=impressions,
                lenient=lenient,
            )
            if tired is not None and tired.answers:
                items = [one.item_id for one in found.items]
                self.store.append(as_impressions(name, items, self._clock.now()))
        return found

    def recommend_many(
        self,
        user_ids: Iterable[Id],
        k: int = 10,
        exclude_seen: bool | None = None,
        *,
        where: Filter | None = None,
        diversity: float = 0.0,
        now: float | None = None,
        context: Context | None = None,
    ) -> list[list[Recommendation]]:
        """Return the lists of `recommend` for several users."""
        return [
            self.recommend(
                user,
                k=k,
                exclude_seen=exclude_seen,
                where=where,
                diversity=diversity,
                now=now,
                context=context,
            )
            for user in listed_ids(user_ids, "user_ids")
        ]

    def explain(
        self,
        user_id: Id | User,
        item_id: Id,
        k: int = 5,
        *,
        now: float | None = None,
        context: Context | None = None,
    ) -> list[Contribution]:
        """See `Recommender.explain`."""
        return self.explain_many(user_id, [item_id], k, now=now, context=context)[0]

    def explain_many(
        self,
        user_id: Id | User,
        item_ids: Iterable[Id],
        k: int = 5,
        *,
        now: float | None = None,
        context: Context | None = None,
    ) -> list[list[Contribution]]:
        """See `Recommender.explain_many`."""
        with self._lock:
            self._bring_up_to_date(user_id)
            return self.recommender.explain_many(user_id, item_ids, k, now=now, context=context)

    def probabilities(
        self,
        user_id: Id | User,
        item_ids: Iterable[Id],
        exclude_seen: bool | None = None,
        *,
        now: float | None = None,
        context: Context | None = None,
    ) -> list[float]:
        """See `Recommender.probabilities`."""
        with self._lock:
            self._bring_up_to_date(user_id)
            return self.recommender.probabilities(
                user_id, item_ids, exclude_seen, now=now, context=context
            )

    def recommend_by_value(  # noqa: PLR0913 - as `recommend`, with an objective
        self,
        user_id: Id | User,
        objective: Objective,
        item_ids: Iterable[Id] | None = None,
        k: int = 10,
        exclude_seen: bool | None = None,
        *,
        where: Filter | None = None,
        diversity: float = 0.0,
        now: float | None = None,
        context: Context | None = None,
    ) -> list[ValuedItem]:
        """See `Recommender.recommend_by_value`."""
        with self._lock:
            self._bring_up_to_date(user_id)
            return self.recommender.recommend_by_value(
                user_id,
                objective,
                item_ids,
                k,
                exclude_seen,
                where=where,
                diversity=diversity,
                now=now,
                context=context,
            )

    def _bring_up_to_date(self, user_id: Id | User | None) -> None:
        if user_id is not None and not isinstance(user_id, User):
            bring_up_to_date(self.recommender, self.store, [user_id])

    def session(
        self, history: History, user_id: Id | None = None, *, now: float | None = None
    ) -> User:
        """See `Recommender.session`."""
        with self._lock:
            self._bring_up_to_date(user_id)
            return self.recommender.session(history, user_id, now=now)

    def similar(
        self,
        item_ids: Id | Iterable[Id],
        k: int = 10,
        *,
        user_id: Id | None = None,
        where: Filter | None = None,
        diversity: float = 0.0,
        popularity: float = POPULARITY,
        exclude_seen: bool | None = None,
    ) -> list[Recommendation]:
        """See `Recommender.similar`."""
        with self._lock:
            self._bring_up_to_date(user_id)
            return self.recommender.similar(
                item_ids,
                k,
                user_id=user_id,
                where=where,
                diversity=diversity,
                popularity=popularity,
                exclude_seen=exclude_seen,
            )

    def popular(
        self,
        k: int = 10,
        *,
        window: int = WEEK,
        half_life: float | None = None,
        event_types: Collection[str] | None = None,
        user_id: Id | None = None,
        where: Filter | None = None,
        exclude_seen: bool | None = None,
    ) -> list[Recommendation]:
        """Return the k items with most stored events of late, with their numbers, best first.

        window: in hours, the current one and those before it, up to 2,160; half_life: hours after
        which an event counts half, all count alike without it; event_types: that count, those that
        are to be predicted without them. user_id, where, exclude_seen: as for
        `Recommender.first_of`.
        Raises ConfigError for another window and as `Recommender.first_of` does, InvalidIdError,
        StoreError.
        """
        if event_types is None:
            event_types = self.recommender.target_types
        chosen = window_of(window, half_life, event_types)
        with self._lock:
            self._bring_up_to_date(user_id)
            ranking = ranking_of(self.store, chosen, self._clock.now())
        return self.recommender.first_of(ranking, k, user_id, where, exclude_seen=exclude_seen)

    def follow_popular(self, weight: float, half_life: float = HALF_LIFE) -> None:
        """Count the stored events of late, and blend them into the answers for users without
        events from now on; call it again to follow newer events.

        weight: weight x log(1 + count) is added to the score of an item; half_life: hours after
        which an event counts half. The event types are those that are to be predicted.
        Raises ConfigError for a negative weight and for another half-life, StoreError.
        """
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(
                f"weight is {weight}", fix="give a number of at least 0", parameter="weight"
            )
        blend = Blend(weight, half_life)
        window = blend.window(self.recommender.target_types)
        with self._lock:
            ranking = ranking_of(self.store, window, self._clock.now()) if weight else []
        self.recommender.follow_popular(ranking, blend)

    def latest(
        self,
        by: str,
        k: int = 10,
        *,
        user_id: Id | None = None,
        where: Filter | None = None,
        exclude_seen: bool | None = None,
    ) -> list[Recommendation]:
        """See `Recommender.latest`."""
        with self._lock:
            self._bring_up_to_date(user_id)
            return self.recommender.latest(
                by, k, user_id=user_id, where=where, exclude_seen=exclude_seen
            )

    def update(self, events: Iterable[EventInput | Mapping[str, object]]) -> list[bool]:
        """Store events, durably, and follow them; return for each whether it is new (not a repeated
        event id).

        Raises ConfigError for an event that is not valid, InvalidIdError, and StoreError; then none
        has been stored.
        """
        given = [_as_input(event) for event in events]
        with self._lock:
            stored = to_stored(given, self._clock)
            with self._writing(event.user_id for event in stored):
                positions = self.store.append(stored)
            if not self.store.shared:
                for event, position in zip(stored, positions, strict=True):
                    self.recommender.follow(event, position)
        return [position != 0 for position in positions]

    def set_user(self, user_id: Id, features: Mapping[str, object]) -> None:
        """Store the features of a user. Raises ConfigError for a feature that the bundle does not
        have.
        """
        name = as_id(user_id, "user_id")
        self.recommender.user_features(features)
        with self._lock:
            with self._writing([name]):
                self.store.set_features(name, features)
            self.recommender.forget(name)

    def put_item(self, record: ItemRecord) -> None:
        """Store and apply what is said about an item. Raises ConfigError and InvalidIdError;
        then nothing changed.
        """
        with self._lock:
            self.recommender.check_item(record)
            self.store.put_item(
                msgspec.structs.replace(record, item_id=as_id(record.item_id, "item_id"))
            )
            self.refresh_items()

    def refresh_items(self) -> None:
        """Apply what was said about items, here or by other processes.

        What this bundle cannot take of it, such as features of another bundle, is left out and
        logged.
        """
        with self._lock:
            records, self._item_changes = self.store.items(self._item_changes)
            for record in records:
                for problem in follow_item(self.recommender, record):
                    _log.warning("item %r: left out: %s", record.item_id, problem.message)

    def merge(self, source: Id, user_id: Id) -> int:
        """Take a user, such as a visitor who logs in, over into another one; return the number of
        events. What a bundle's history holds of `source` stays there.
        """
        names = as_id(source, "source"), as_id(user_id, "user_id")
        with self._lock:
            with self._writing(names):
                moved = self.store.merge(*names)
            for name in names:
                self.recommender.forget(name)
        return moved

    def erase(self, user_id: Id) -> int:
        """Remove a user, and all ids that were merged into this one, from the store and from
        memory; the bundle's history of them is not used any more.
        """
        name = as_id(user_id, "user_id")
        with self._lock:
            names = [name, *self.store.merged(name)]
            with self._writing(names):
                removed = self.store.erase(name)
            for merged_name in names:
                self.recommender.forget(merged_name, history=True)
        return removed

    def clean(self) -> str:
        """Go on taking erased users out of the store's files; return what is left to be done, empty
        where nothing is.
        """
        with self._lock:
            return self.store.clean()

    @contextmanager
    def _writing(self, users: Iterable[str]) -> Iterator[None]:
        """Write what the block writes about these users.

        A write that failed may have happened all the same: the next answer asks the store about
        them. And where the store may lack what it once said, nothing that was read before is used
        any more.
        """
        try:
            yield
        except BaseException:
            for user in users:
                self.recommender.forget(user)
            raise
        if self.store.generation != self._generation:
            self._generation, self._item_changes = self.store.generation, 0
            self.recommender.users.clear()
            forget_erased(self.recommender, self.store)
            self.refresh_items()


def _as_input(event: EventInput | Mapping[str, object]) -> EventInput:
    if isinstance(event, EventInput):
        user_id, item_id = as_id(event.user_id, "user_id"), as_id(event.item_id, "item_id")
        return msgspec.structs.replace(event, user_id=user_id, item_id=item_id)
    if not isinstance(event, Mapping):
        raise ConfigError(
            f"an event is not valid: it is a {type(event).__name__}",
            fix="give a list of events, each with user_id and item_id",
            parameter="events",
        )
    ids = {name: as_id(event[name], name) for name in ("user_id", "item_id") if name in event}
    try:
        return msgspec.convert({**event, **ids}, EventInput)
    except msgspec.ValidationError as problem:
        raise ConfigError(
            f"an event is not valid: {problem}", fix="give user_id and item_id", parameter="events"
        ) from None
