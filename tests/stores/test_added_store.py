"""A kind of store that is added by one row: the contract, the command line's checks and a service."""

from __future__ import annotations

import asyncio
import collections
import threading

import httpx
import msgspec
import pytest

from distilrec.errors import ConfigError, StoreUnavailableError
from distilrec.serve.app import make_app
from distilrec.serve.config import ServiceConfig
from distilrec.serve.keys import Keys
from distilrec.serve.service import open_service
from distilrec.stores.opening import SCHEMES, Scheme, open_store, shown
from distilrec.stores.outcomes import Outcomes, add_up, counted
from distilrec.stores.records import (
    IMPRESSION,
    MAX_SHOWN,
    SHOWN_HOURS,
    ItemRecord,
    UserRecord,
    hour_of,
    merged,
    page_of,
    taken_over,
)
from distilrec.testing.stores import StoreContract
from tests.servers import unnamed


class Memory:
    """What a store of this process keeps, also while it is closed."""

    def __init__(self):
        self.lock = threading.Lock()
        self.events, self.features, self.epochs, self.erased = {}, {}, {}, {}
        self.items, self.settings, self.merged = {}, {}, {}
        self.shown, self.marks, self.sums, self.provenances = {}, {}, {}, {}
        self.batch = None
        self.changes = self.last_epoch = 0


class MemoryStore:
    """A store in memory; it keeps the contract as long as its process lives."""

    shared = False
    generation = ""

    def __init__(self, memory):
        self.memory, self.closed = memory, False

    def append(self, events):
        with self._open() as memory:
            positions = []
            for event in events:
                positions.append(self._append(memory, event))
                if event.attribution is not None and positions[-1]:
                    marks = memory.marks.setdefault(event.attribution.recommendation, {})
                    added, new = counted(event.attribution, marks)
                    add_up(memory.sums, added)
                    marks.update(new)
            return positions

    def _append(self, memory, event):
        if event.event_type == IMPRESSION:
            return self._append_shown(memory, event)
        log = memory.events.setdefault(event.user_id, [])
        if any(event.event_id == other.event_id for other in log):
            return 0
        if event.user_id not in memory.epochs:
            self._new_epoch(event.user_id)
        log.append(msgspec.structs.replace(event, attribution=None))
        return len(log)

    def _append_shown(self, memory, event):
        """Keep the latest impressions of a user by event id and item."""
        shown, key = memory.shown.setdefault(event.user_id, {}), (event.event_id, event.item_id)
        if key in shown:
            return 0
        shown[key] = event.timestamp
        oldest = event.received - 3600 * SHOWN_HOURS
        left = {key: when for key, when in shown.items() if when >= oldest}
        memory.shown[event.user_id] = self._latest(left)
        return -1

    @staticmethod
    def _latest(shown):
        return dict(sorted(shown.items(), key=lambda pair: -pair[1])[:MAX_SHOWN])

    def shown(self, user_id, since):
        with self._open() as memory:
            shown = memory.shown.get(user_id, {})
            return collections.Counter(item for (_, item), when in shown.items() if when >= since)

    def read(self, asked, at_most=None):
        with self._open() as memory:
            records = []
            for user, epoch, position in asked:
                now, log = memory.epochs.get(user, ""), memory.events.get(user, [])
                restart = not epoch or epoch != now
                new = log if restart else log[position:]
                part = new[:at_most]
                last = (0 if restart else position) + len(part)
                records.append(
                    UserRecord(
                        now, last, restart, list(part), memory.features.get(user),
                        user in memory.erased, len(part) < len(new),
                    )
                )  # fmt: skip
            return records

    def set_features(self, user_id, features):
        with self._open() as memory:
            memory.features[user_id] = dict(features)
            self._new_epoch(user_id)

    def merge(self, source, target):
        with self._open() as memory:
            self._new_epoch(target)
            if source == target:
                return 0
            both = memory.shown.pop(source, {}) | memory.shown.get(target, {})
            memory.shown[target] = self._latest(both)
            log, moved = memory.events.setdefault(target, []), 0
            for event in memory.events.pop(source, []):
                event_id = taken_over("salt", source, event.event_id)
                if all(other.event_id != event_id for other in log):
                    log.append(msgspec.structs.replace(event, user_id=target, event_id=event_id))
                    moved += 1
            log.sort(key=lambda event: event.received)
            if source in memory.features:
                memory.features.setdefault(target, memory.features.pop(source))
            memory.epochs.pop(source, None)
            names = memory.merged.pop(source, set()) | memory.merged.get(target, set()) | {source}
            memory.merged[target] = names - {target}
            return moved

    def merged(self, user_id):
        return sorted(self.memory.merged.get(user_id, ()))

    def erase(self, user_id):
        names = [user_id, *self.merged(user_id)]
        with self._open() as memory:
            for name in names:
                for table in (
                    memory.features,
                    memory.epochs,
                    memory.merged,
                    memory.erased,
                    memory.shown,
                ):
                    table.pop(name, None)
                for others in memory.merged.values():
                    others.discard(name)
                memory.erased[name] = memory.changes = memory.changes + 1
            return sum(len(memory.events.pop(name, [])) for name in names)

    def users(self, after="", at_most=1_000):
        with self._open() as memory:
            behind = sorted(user for user in memory.events if user > after)
        return page_of(behind[:at_most], at_most)

    def clean(self):
        return ""

    def erasures(self):
        return max(self.memory.erased.values(), default=0)

    def erased_among(self, user_ids):
        return [user for user in user_ids if user in self.memory.erased]

    def counts(self, first, last, event_types=None):
        with self._open() as memory:
            events = [event for log in memory.events.values() for event in log]
        return collections.Counter(
            (hour_of(event.timestamp), event.item_id)
            for event in events
            if first <= hour_of(event.timestamp) <= last
            and (event_types is None or event.event_type in event_types)
        )

    def add_outcomes(self, batch, sums, provenances):
        with self._open() as memory:
            if batch != memory.batch:
                memory.batch = batch
                add_up(memory.sums, sums.items())
                memory.provenances.update(provenances)

    def outcomes(self, first, last):
        with self._open() as memory:
            sums = {key: amount for key, amount in memory.sums.items() if first <= key.day <= last}
            named = {key.provenance for key in sums}
            return Outcomes(
                sums, {key: text for key, text in memory.provenances.items() if key in named}
            )

    def put_item(self, record):
        with self._open() as memory:
            memory.changes += 1
            before = memory.items.pop(record.item_id, (0, None))[1]
            before = before if isinstance(before, ItemRecord) else None
            memory.items[record.item_id] = memory.changes, merged(before, record)

    def items(self, after=0):
        with self._open() as memory:
            last = max((change for change, _ in memory.items.values()), default=0)
            after = after if after <= last else 0
            new = [record for change, record in memory.items.values() if change > after]
        for record in new:
            if not isinstance(record, ItemRecord):
                import logging

                logging.getLogger("distilrec").warning("an item record cannot be read")
        return [record for record in new if isinstance(record, ItemRecord)], last

    def setting(self, name):
        return self.memory.settings.get(name)

    def set_setting(self, name, value):
        self.memory.settings[name] = value

    def first_setting(self, name, value):
        return self.memory.settings.setdefault(name, value)

    def check(self):
        return []

    def verify(self):
        pass

    def close(self):
        self.closed = True

    def _new_epoch(self, user):
        self.memory.last_epoch += 1
        self.memory.epochs[user] = str(self.memory.last_epoch)

    def _open(self):
        if self.closed:
            raise StoreUnavailableError("the store is closed", fix="open it again")
        return _Locked(self.memory)


class _Locked:
    def __init__(self, memory):
        self.memory = memory

    def __enter__(self):
        self.memory.lock.acquire()
        return self.memory

    def __exit__(self, *error):
        self.memory.lock.release()


@pytest.fixture
def row(monkeypatch):
    """The row that adds the kind of store."""
    memories = {}
    scheme = Scheme(
        lambda address, prefix, password: MemoryStore(memories.setdefault(address, Memory())),
        "a store in memory",
        "memory://NAME",
        several_processes=False,
    )
    monkeypatch.setitem(SCHEMES, "memory://", scheme)


class TestMemory(StoreContract):
    @pytest.fixture
    def opener(self, row):
        return lambda: open_store("memory://one")

    def damage_item(self, store, item_id):
        store.memory.items[item_id] = store.memory.items[item_id][0], "not a record"


def test_the_row_is_known_everywhere(bundle, row):
    assert shown("memory://one") == "memory://one"
    with pytest.raises(ConfigError, match="or memory://NAME"):
        open_store("mysql://x")
    with pytest.raises(ConfigError, match="several workers cannot share a store in memory"):
        ServiceConfig(str(bundle), store="memory://one", workers=2)
    with pytest.raises(ConfigError, match="a store in memory has no password"):
        open_store("memory://one", password_file="somewhere")


def test_a_service_over_the_added_store(bundle, row):
    config = ServiceConfig(str(bundle), store="memory://one")

    async def ask(*, restart):
        service = open_service(config)
        await service.start()
        try:
            transport = httpx.ASGITransport(make_app(service, Keys(())))
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost"
            ) as client:
                if not restart:
                    event = {"user_id": "of memory", "item_id": "i2", "event_id": "1"}
                    sent = await client.post("/v1/events", json={"events": [event]})
                    assert sent.json()["accepted"] == 1
                    await client.put("/v1/items/i3", json={"available": False})
                answer = await client.post("/v1/recommend", json={"user_id": "of memory", "k": 99})
                user = await client.get("/v1/users/of%20memory")
                assert (await client.get("/readyz")).status_code == 200
        finally:
            await service.stop()
        items = [item["item_id"] for item in answer.json()["items"]]
        assert user.json()["event_count"] == 1 and answer.json()["known_user"]
        assert items and not {"i2", "i3"} & set(items)
        return unnamed(answer.json())

    assert asyncio.run(ask(restart=False)) == asyncio.run(ask(restart=True))
