"""What a store keeps, and what every store can do. The event log in the store is the truth; a
user's state is a fold of it.

`distilrec.testing.stores.StoreContract` holds every implementation to this.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from distilrec.errors import StoreVersionError
from distilrec.features.attributes import Value
from distilrec.stores.outcomes import Attribution, Outcomes, Sum


class StoredEvent(msgspec.Struct, frozen=True, gc=False):
    """One acknowledged event. timestamp: when it happened, received: when the service took it,
    seconds since 1970.

    event_id: unique for its user; the same id again is a repetition of the same event and changes
    nothing. attribution: the answer that the event names; it is counted, and not kept with the
    event.
    """

    user_id: str
    item_id: str
    event_type: str
    timestamp: float
    received: float
    event_id: str
    attribution: Attribution | None = None


class ItemRecord(msgspec.Struct, frozen=True):
    """What was said about an item while serving: a new one, or a change to one of the bundle.

    A feature or attribute that is not named stays as it was; an attribute with the value None is
    removed. The record of a store always says whether the item is available.
    """

    item_id: str
    title: str | None = None
    features: dict[str, object] = {}
    attributes: dict[str, Value] = {}
    available: bool | None = None
    removed: bool = False


class Since(NamedTuple):
    """Which user, and up to where their log has been read. The default means: not at all."""

    user_id: str
    epoch: str = ""
    position: int = 0


class UserRecord(NamedTuple):
    """What a store has to say about one user.

    epoch: changes whenever anything but the end of the log changed; empty for an unknown user.
    position: of the last event. restart: `events` is the whole log, not only what came after the
    position asked for.
    erased: what the bundle knows of this user must not be used. more: there are more events than
    were asked for.
    """

    epoch: str
    position: int
    restart: bool
    events: Sequence[StoredEvent]
    features: Mapping[str, object] | None = None
    erased: bool = False
    more: bool = False


class Store(Protocol):
    """One interface, several implementations. Every write is durable, or has failed, when the call
    returns.

    All methods raise `StoreUnavailableError` when the store cannot be reached or written,
    `StoreCorruptedError` when what is in it cannot be read. One thread at a time writes; any thread
    may read.
    """

    shared: bool
    """Whether other processes write to it too: then what is in memory must be compared with it
    before each answer.
    """

    @property
    def generation(self) -> str:
        """Change when the store may have lost what it once said: another server answers, or
        another program has written to the file. Then nothing that was read before may be used.
        Every call brings it up to date.
        """
        ...

    def append(self, events: Sequence[StoredEvent]) -> list[int]:
        """Add events in this order, all or none; return their positions in the logs, 0 for a
        repeated event id.

        Those of the type `IMPRESSION` are in no log and no count: they are kept apart, for `shown`.
        The position of one is -1, or 0 where the same event id and item are there already.
        The attributions of events that are new are counted with them, as
        `distilrec.stores.outcomes.counted` says.
        """
        ...

    def shown(self, user_id: str, since: float) -> dict[str, int]:
        """Return how often each item was shown to a user since a time, in seconds since 1970.

        Of the impressions of a user the latest `MAX_SHOWN` count, and none that is more than
        `SHOWN_HOURS` older than the latest to arrive. They follow merges and erasures; an event id
        and item that both users of a merge have count once.
        """
        ...

    def read(self, users: Sequence[Since], at_most: int | None = None) -> list[UserRecord]:
        """Return what is new about each of these users. at_most: events of each; the record says
        whether there are more.

        Reading without `at_most` may take long, and does not delay those who read with it.
        """
        ...

    def users(self, after: str = "", at_most: int = 1_000) -> tuple[list[str], str]:
        """Return ids of users, about `at_most`, and what to give as `after` for the next ones,
        empty behind the last.

        Who has events from the first call to the last comes at least once; others may come. Raises
        ValueError for an `after` that cannot have been given.
        """
        ...

    def set_features(self, user_id: str, features: Mapping[str, object]) -> None:
        """Set the features of a user, in place of earlier ones."""
        ...

    def merge(self, source: str, target: str) -> int:
        """Take a user over into another one: all events, in order of arrival, and the features
        where the other one has none. Nothing is left of the first, and its id is remembered with
        the other. All or nothing; return the number of events taken over.

        Their event ids become those of `taken_over`: they are never taken for events of the other
        user, and what is sent or merged again counts once.
        """
        ...

    def merged(self, user_id: str) -> list[str]:
        """Return the ids that were taken over into this user, sorted, also those that these had
        taken over before.
        """
        ...

    def erase(self, user_id: str) -> int:
        """Remove everything about a user, and about all ids that were taken over into this one, and
        remember, as salted hashes, not to use the bundle's history of them.

        Return the number of events removed. Begin to take the bytes out of the files too: `clean`
        says what is left.
        """
        ...

    def clean(self) -> str:
        """Take what was erased out of the files as far as that is possible now; does not wait.

        Returns what is left to be done, empty where nothing is: to be called again until then, also
        after a restart.
        """
        ...

    def erasures(self) -> int:
        """Return a number that changes with every erasure, here or by another process."""
        ...

    def erased_among(self, user_ids: Iterable[str]) -> list[str]:
        """Return those of whom a bundle's history must not be used."""
        ...

    def counts(
        self, first: int, last: int, event_types: Collection[str] | None = None
    ) -> dict[tuple[int, str], int]:
        """Return how many events, of these types or of all, happened to each item in each hour from
        first to last, by hour and item id; only hours with events.

        Hours are counted since 1970. Events that were `KEPT_HOURS` old when they arrived need not
        be counted; those of erased users are not.
        """
        ...

    def add_outcomes(
        self, batch: str, sums: Mapping[Sum, float], provenances: Mapping[str, str]
    ) -> None:
        """Add to the sums of outcomes, and keep what is said about provenances.

        batch: names these sums; the batch that a process has added last is not added again.
        """
        ...

    def outcomes(self, first: int, last: int) -> Outcomes:
        """Return the sums of answers of these days, since 1970. Sums of answers that are more than
        `OUTCOME_DAYS` old need not be there.
        """
        ...

    def put_item(self, record: ItemRecord) -> None:
        """Keep what was said about an item, merged with what was said before."""
        ...

    def items(self, after: int = 0) -> tuple[list[ItemRecord], int]:
        """Return items changed after this position, in order of change, and the position to ask
        from next.

        All items where the store has never come as far as this position. A record that cannot be
        read is logged and left out; the next change of the item replaces it.
        """
        ...

    def setting(self, name: str) -> str | None:
        """Return a value that the service keeps across restarts, such as the folder of the active
        bundle.
        """
        ...

    def set_setting(self, name: str, value: str | None) -> None:
        """Set or (None) remove it."""
        ...

    def first_setting(self, name: str, value: str) -> str:
        """Set a value where none is set; return the one that is set, the same in every process."""
        ...

    def check(self) -> list[str]:
        """Return warnings about the store, for a person; raise where it cannot be used."""
        ...

    def verify(self) -> None:
        """Read all that may be damaged, however long that takes. Raises StoreCorruptedError."""
        ...

    def close(self) -> None:
        """Write back what there is to write and let go of the store."""
        ...


IMPRESSION = "impression"
"""Type of the events that say that an item was shown to a user; they are in no state."""
MAX_SHOWN, SHOWN_HOURS = 1_000, 30 * 24

KEPT_HOURS = 90 * 24
"""For how many hours every store can count events."""


def page_of(users: list[str], at_most: int) -> tuple[list[str], str]:
    """Return user ids in order, and behind which the next ones are, for `Store.users`."""
    return users, users[-1] if len(users) == at_most else ""


def hour_of(timestamp: float) -> int:
    """Return the hour since 1970 that a time is in."""
    return int(timestamp // 3600)


def decoded_item(raw: bytes, item_id: str) -> ItemRecord | None:
    """Return an item record, or None, with a warning in the log, where it cannot be read."""
    try:
        return msgspec.json.decode(raw, type=ItemRecord)
    except msgspec.MsgspecError as problem:
        facts = {"item_id": item_id, "reason": str(problem)}
        logging.getLogger("distilrec").warning(
            "an item record cannot be read", extra={"facts": facts}
        )
        return None


def decoded_items(rows: Iterable[tuple[bytes, str]]) -> list[ItemRecord]:
    """Return the item records that can be read, from their bytes and item ids."""
    records = (decoded_item(raw, item_id) for raw, item_id in rows)
    return [record for record in records if record is not None]


def decoded_features(raw: bytes | None) -> dict[str, object] | None:
    """Return the features of a user, None where none are stored."""
    return None if raw is None else msgspec.json.decode(raw, type=dict[str, object])


def new_epoch() -> str:
    """Return an epoch that no user has had before."""
    return secrets.token_hex(8)


def erased_hash(salt: str, user_id: str) -> bytes:
    """Return what a store keeps of an erased user: it tells whether an id is erased, and not which
    ids are.
    """
    return hashlib.sha256(f"{salt}:{user_id}".encode()).digest()


def taken_over(salt: str, source: str, event_id: str) -> str:
    """Return the event id under which another user keeps an event of `source`."""
    return f"{erased_hash(salt, source).hex()[:16]}:{event_id}"


def check_schema(store: str, version: int, newest: int, **where: str) -> None:
    """Raise StoreVersionError where a store was written by a later version of distilrec."""
    if version > newest:
        raise StoreVersionError(
            f"{store} has schema version {version}; this distilrec knows up to {newest}",
            fix="upgrade distilrec (pip install -U distilrec)",
            **where,
        )


def merged(before: ItemRecord | None, now: ItemRecord) -> ItemRecord:
    """Return the record of what was said about an item before and now; what is said now wins.

    Availability that nothing was said about stays; an item that is new, or was removed, is
    available.
    """
    if before is None:
        return msgspec.structs.replace(now, available=now.available is not False)
    available = now.available
    if available is None:
        available = before.removed or before.available is not False
    return ItemRecord(
        now.item_id,
        now.title if now.title is not None else before.title,
        {**before.features, **now.features},
        {**before.attributes, **now.attributes},
        available,
        now.removed,
    )
