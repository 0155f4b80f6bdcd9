"""What the service does with its store: read and write it, and keep the models in memory equal to
what it says about users, items and erasures.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from distilrec.engine.popular import Ranking, Window, ranking_of
from distilrec.engine.recommender import Recommender
from distilrec.engine.rules import Tiredness
from distilrec.engine.stored import follow_item, forget_erased, shown_lately
from distilrec.engine.strangers import Blend
from distilrec.ids import Id, as_id
from distilrec.serve.config import ServiceConfig
from distilrec.serve.logs import log
from distilrec.serve.metrics import Metrics
from distilrec.serve.models import Models, Served
from distilrec.serve.writer import StoreThreads
from distilrec.stores.outcomes import Outcomes, Sum
from distilrec.stores.records import ItemRecord, Since, Store, StoredEvent, UserRecord

TURN_SECONDS = 0.005  # of work on the event loop before others get their turn
_USERS = 200  # whose events are told together
_LONG = 2_000  # events of a log that is folded in a thread
_POPULAR_SECONDS = 1.0  # between two counts of what is popular of late, at least
_POPULAR_REST = 100  # times as long as a count took
_ITEMS_BETWEEN_TURNS = 20  # changed items that are applied before requests get their turn


class Storage:
    """The store of a service, its threads, and the models that follow it.

    shared: whether other processes write to the store too.
    """

    def __init__(
        self, config: ServiceConfig, store: Store, models: Models, metrics: Metrics
    ) -> None:
        self.store, self.shared, self._models = store, store.shared, models
        self._threads = StoreThreads(store, metrics, config.max_pending)
        self._blend = Blend(config.strangers_weight, config.strangers_half_life)
        self._next_count = 0.0
        self._generation = store.generation
        self._following, self._rebuilding = asyncio.Lock(), asyncio.Lock()

    def start(self) -> None:
        """Start the threads of the store."""
        self._threads.start()

    async def stop(self) -> None:
        """Store what was taken, then let go of the store."""
        await self._threads.stop()
        self.store.close()

    @property
    def pending(self) -> int:
        """Number of events that wait to be stored or are being stored."""
        return self._threads.pending

    # Writing; one thing after the other, in the thread of the writer.

    async def append(self, events: list[StoredEvent]) -> list[int]:
        """Store events; return their positions, as `Store.append` does."""
        positions: list[int] = await self._threads.write(events, len(events))
        return positions

    async def put_item(self, record: ItemRecord) -> None:
        await self._threads.write(partial(self.store.put_item, record))

    async def set_features(self, user_id: str, features: Mapping[str, object]) -> None:
        await self._threads.write(partial(self.store.set_features, user_id, features))

    async def erase(self, user_id: str) -> int:
        removed: int = await self._threads.write(partial(self.store.erase, user_id))
        return removed

    async def merge(self, source: str, target: str) -> int:
        moved: int = await self._threads.write(partial(self.store.merge, source, target))
        return moved

    async def merged(self, user_id: str) -> list[str]:
        return await asyncio.to_thread(self.store.merged, user_id)

    async def set_setting(self, name: str, value: str) -> None:
        await self._threads.write(partial(self.store.set_setting, name, value))

    async def first_setting(self, name: str, value: str) -> str:
        """Set a value where none is set; return the one that is set."""
        first: str = await self._threads.write(partial(self.store.first_setting, name, value))
        return first

    async def add_outcomes(
        self, batch: str, sums: Mapping[Sum, float], provenances: Mapping[str, str]
    ) -> None:
        await self._threads.write(partial(self.store.add_outcomes, batch, sums, provenances))

    async def clean(self) -> str:
        """Take erased users out of the files of the store; return what is left to be done. Raises
        StoreErrors.
        """
        left: str = await self._threads.write(self.store.clean)
        return left

    # Reading.

    async def read(self, users: list[Since]) -> list[UserRecord]:
        """Read users, together with all others who are waiting for the store."""
        return await self._threads.read(users)

    async def whole_user(self, user_id: str) -> UserRecord:
        """Read everything about a user, which may take long."""
        (record,) = await asyncio.to_thread(self.store.read, [Since(user_id)])
        return record

    async def events_of_some(self, after: str) -> tuple[list[StoredEvent], str]:
        """Return all events of some users, and what to give as `after` for the next ones, empty
        behind the last; may take long.
        """
        users, after = await asyncio.to_thread(self.store.users, after, _USERS)
        records = await asyncio.to_thread(self.store.read, [Since(user) for user in users])
        return [event for record in records for event in record.events], after

    async def all_items(self) -> list[ItemRecord]:
        """Read all that was said about items."""
        records, _ = await asyncio.to_thread(self.store.items)
        return records

    async def ranking(self, window: Window) -> Ranking:
        """Return the items of a window, best first, which may take long."""
        return await asyncio.to_thread(ranking_of, self.store, window, time.time())

    async def shown(self, user_id: str, rule: Tiredness, now: float | None) -> dict[str, int]:
        """Return how often each item was shown to a user while that counts for a rule."""
        moment = time.time() if now is None else now
        return await asyncio.to_thread(shown_lately, self.store, user_id, rule, moment)

    async def outcomes(self, first: int, last: int) -> Outcomes:
        """Return what became of the answers of these days, which may take long."""
        return await asyncio.to_thread(self.store.outcomes, first, last)

    async def setting(self, name: str) -> str | None:
        return await asyncio.to_thread(self.store.setting, name)

    # Keeping the memory equal to the store.

    @contextlib.contextmanager
    def unless_failed(self, users: Iterable[str]) -> Iterator[None]:
        """Forget these users where a write fails: it may have happened all the same, and the next
        answer asks the store.
        """
        try:
            yield
        except BaseException:
            self.forget(users)
            for served in self._models.all():
                served.erasures = -1
            raise

    def forget(self, users: Iterable[str]) -> None:
        """Drop the states of users; the next answer asks the store."""
        for served in self._models.all():
            for user in users:
                served.recommender.users.drop(user)

    async def caught_up(self, recommender: Recommender, user_id: Id | None) -> str | None:
        """Return the id of a user who is brought up to date, None without one. Raises
        InvalidIdError.
        """
        if user_id is None:
            return None
        name = as_id(user_id, "user_id")
        await self.catch_up(recommender, [name])
        return name

    async def catch_up(self, recommender: Recommender, user_ids: Sequence[str]) -> None:
        """Make what is in memory about these users equal to what the store says."""
        if not self.shared:
            until = time.perf_counter() + TURN_SECONDS
            for user in user_ids:
                if user not in recommender.users:
                    await self._read_here(recommender, user)
                    if time.perf_counter() > until:
                        await asyncio.sleep(0)
                        until = time.perf_counter() + TURN_SECONDS
            return
        questions = [recommender.since(user) for user in user_ids]
        while questions:
            records = await self._threads.read(questions)
            again = []
            for since, record in zip(questions, records, strict=True):
                if record.restart and len(record.events) > _LONG:
                    await self._rebuild(recommender, since, record)
                    again.append(recommender.since(since.user_id))  # with what has come meanwhile
                elif not recommender.restore(since, record):
                    again.append(Since(since.user_id))
            questions = again

    async def _read_here(self, recommender: Recommender, user_id: str) -> None:
        """Read a user from a file in the page cache: no thread is needed, unless the log is
        long.
        """
        while True:
            since = recommender.since(user_id)
            (record,) = self.store.read([since], _LONG)
            if record.more:
                await self._rebuild(recommender, Since(user_id), await self.whole_user(user_id))
            elif recommender.restore(since, record):
                return
            else:
                recommender.forget(user_id)

    async def _rebuild(self, recommender: Recommender, since: Since, record: UserRecord) -> None:
        """Fold a long log in a thread, one at a time: together they would take the processor from
        all others.
        """
        async with self._rebuilding:
            rebuilt = await asyncio.to_thread(recommender.rebuilt, since.user_id, record)
        recommender.restore(since, record, rebuilt)

    async def follow(self) -> None:
        """Follow what other processes have changed: items, erased users. Raises StoreErrors."""
        for served in list(self._models.all()):
            await self.follow_erasures(served)
        await self.follow_items(self._models.active)
        if self._models.variant is not None:
            await self.follow_items(self._models.variant)
        if time.monotonic() >= self._next_count:
            began = time.monotonic()
            for served in list(self._models.all()):
                await self.follow_popular(served)
            done = time.monotonic()
            self._next_count = done + max(_POPULAR_SECONDS, _POPULAR_REST * (done - began))

    async def follow_store(self, served: Served) -> None:
        """Let a model follow all that the store says about items, erased users and events of
        late.
        """
        await self.follow_items(served)
        await self.follow_erasures(served)
        await self.follow_popular(served)

    async def follow_popular(self, served: Served) -> None:
        """Count the events of late for the users without any, where their answers ask for it."""
        if not self._blend.weight:
            return
        recommender = served.recommender
        ranking = await self.ranking(self._blend.window(recommender.target_types))
        recommender.follow_popular(ranking, self._blend)

    async def follow_items(self, served: Served) -> None:
        """Apply what the store says about items since a model has followed it last."""
        async with self._following:
            if self.shared:
                records, served.item_changes = await asyncio.to_thread(
                    self.store.items, served.item_changes
                )
            else:
                records, served.item_changes = self.store.items(served.item_changes)
            for number, record in enumerate(records, 1):
                for problem in follow_item(served.recommender, record):
                    log(
                        "a part of an item was left out",
                        logging.WARNING,
                        code=problem.code,
                        item_id=record.item_id,
                        model_version=served.version,
                        parameter=problem.context.get("parameter"),
                    )
                if number % _ITEMS_BETWEEN_TURNS == 0:
                    await asyncio.sleep(0)

    async def follow_erasures(self, served: Served) -> None:
        """Take users who were erased, here or elsewhere, out of what a model knows from its
        bundle.
        """
        number = await asyncio.to_thread(self.store.erasures)
        self.forget_what_the_store_lost()
        if number == served.erasures:
            return
        served.erasures = await asyncio.to_thread(forget_erased, served.recommender, self.store)

    def forget_what_the_store_lost(self) -> None:
        """Drop all that was read from the store where it may lack what it once said."""
        if self.store.generation == self._generation:
            return
        self._generation = self.store.generation
        for served in self._models.all():
            served.recommender.users.clear()
            served.item_changes, served.erasures = 0, -1
