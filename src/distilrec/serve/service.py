"""What the service does, without HTTP: one method per endpoint, on the event loop; the store works
in threads of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

import msgspec

from distilrec.bundle.format import erase_user
from distilrec.engine.filters import values_of
from distilrec.engine.recommender import Contribution, Item, Recommender
from distilrec.engine.stored import Clock, EventInput, follow_item, forget_erased, to_stored
from distilrec.errors import (
    ConfigError,
    DistilrecError,
    InvalidIdError,
    NotReadyError,
    RequestError,
    StoreCorruptedError,
    StoreError,
    UnknownUserError,
)
from distilrec.ids import as_id
from distilrec.serve.batches import Batches
from distilrec.serve.config import ServiceConfig
from distilrec.serve.logs import log
from distilrec.serve.metrics import Metrics
from distilrec.serve.models import ACTIVE_BUNDLE, Choice, Models, Served, first_model, switched_to
from distilrec.serve.schemas import (
    BatchRequest,
    BatchResponse,
    ErasedResponse,
    EventsRequest,
    EventsResponse,
    ItemRequest,
    ItemResponse,
    ItemsResponse,
    LoadRequest,
    LoadResponse,
    ModelResponse,
    NamedItem,
    RankedItem,
    RankRequest,
    Reason,
    RecommendRequest,
    RecommendResponse,
    StatusResponse,
    UserEvent,
    UserRequest,
    UserResponse,
    UsersResponse,
)
from distilrec.serve.upkeep import Upkeep
from distilrec.stores.opening import open_store
from distilrec.stores.records import ItemRecord, Since, Store, StoredEvent, UserRecord

_READY_SECONDS = 1.0
_SAME_PROBLEM_SECONDS = 60.0  # a problem of the store that lasts is logged again
_REASONS = 3
_SHOWN_EVENTS = 50
_MAX_LISTED = 500
_BATCH_OF_JOBS = 4_096
_LONG = 2_000  # events of a log that is folded in a thread
_TURN_SECONDS = 0.005  # of work on the event loop before others get their turn
_QUICK = 100  # items of an answer that need not wait for its turn
_SEARCHED = 2_000  # titles before others get their turn
# What one request may ask for: more is refused.
_MAX_ITEMS = 50_000
_MAX_EXPLAINED = 200
_MAX_DIVERSIFIED = 200
_MAX_VALUES = 10_000
_MAX_CONDITIONS = 32
_ITEMS_BETWEEN_TURNS = 20  # changed items that are applied before requests get their turn

_Write = list[StoredEvent] | Callable[[], Any]


class Service:
    """Made by `open_service`; `start` and `stop` belong to the event loop that it lives on."""

    def __init__(
        self,
        config: ServiceConfig,
        store: Store,
        recommender: Recommender,
        choice: Choice | None = None,
    ) -> None:
        self.config, self.store, self.metrics = config, store, Metrics()
        self._first, self._choice = recommender, choice
        self._clock = Clock()
        self._draining = False
        self._store_checked = 0.0
        self._own_swaps = (
            0  # under way here: not to be taken back because the store does not know them yet
        )
        self._generation = store.generation
        self._noted = ("", 0.0)  # the latest problem of the store that is in the log
        self._ready = False

    async def start(self) -> None:
        """Starts the threads and follows what the store knows about items. Raises StoreError."""
        self._writer: Batches[_Write, Any] = Batches(
            "store-writer", self._write, self.config.max_pending, _BATCH_OF_JOBS
        )
        self._reader: Batches[list[Since], list[UserRecord]] = Batches(
            "store-reader", self._read, 100_000, _BATCH_OF_JOBS
        )
        self.models = Models(
            self.config,
            self._first,
            self._choice,
            self._catch_up,
            self._follow_store,
            self._keep_choice,
        )
        self._following = asyncio.Lock()
        self._changing_items, self._turns, self._rebuilding = (
            asyncio.Lock(),
            asyncio.Lock(),
            asyncio.Lock(),
        )
        await self._follow_store(self.models.active)
        self.metrics.show_model(self.models.active.version)
        self._upkeep = Upkeep(self)
        self._poller = asyncio.create_task(self._upkeep.run())
        self._ready = True
        log("ready", model_version=self.models.active.version, store=type(self.store).__name__)

    def drain(self) -> None:
        """From now on `/readyz` says no, so that no new requests are sent here."""
        self._draining = True
        if self._ready:
            self.models.stop()

    @property
    def draining(self) -> bool:
        """Whether it is about to stop."""
        return self._draining

    async def stop(self) -> None:
        """Stores what was taken, then lets go of the store."""
        self.drain()
        self._poller.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._poller
        await self._writer.stop()
        await self._reader.stop()
        self.store.close()
        log("stopped")

    # Recommendations

    async def recommend(self, request: RecommendRequest) -> RecommendResponse:
        recommender, user_id = self.models.active.recommender, request.user_id
        if self.store.shared or type(user_id) is not str or user_id not in recommender.users:
            user_id = as_id(user_id, "user_id")  # of users in memory it has been found to be one
            await self._catch_up(recommender, [user_id])
        chosen = request.filter
        costly = request.explain or request.diversity or request.k > _QUICK
        if costly or chosen is not None:
            self._check_cost([request])
        if costly or (chosen is not None and values_of(chosen) > _QUICK):
            async with self._turns:  # costly answers are given one at a time, others in between
                await asyncio.sleep(0)
                return self._answer(recommender, user_id, request)
        return self._answer(recommender, user_id, request)

    async def recommend_batch(self, request: BatchRequest) -> BatchResponse:
        self._limit("requests", len(request.requests), self.config.max_batch)
        self._check_cost(request.requests)
        recommender = self.models.active.recommender
        results = []
        for start in range(0, len(request.requests), 50):
            part = request.requests[start : start + 50]
            users = [as_id(each.user_id, "user_id") for each in part]
            await self._catch_up(recommender, list(dict.fromkeys(users)))
            waiting = list(zip(users, part, strict=True))[::-1]
            while waiting:
                async with self._turns:
                    await asyncio.sleep(0)
                    until = time.perf_counter() + _TURN_SECONDS
                    while waiting and time.perf_counter() < until:
                        results.append(self._answer(recommender, *waiting.pop()))
        return BatchResponse(results)

    def _check_cost(self, requests: Sequence[RecommendRequest]) -> None:
        """Raises RequestError for what would take so long that others had to wait."""
        for each in requests:
            if each.diversity:
                self._limit("k of a diversified list", each.k, _MAX_DIVERSIFIED)
            if (chosen := each.filter) is not None:
                self._limit("ids and categories in a filter", values_of(chosen), _MAX_VALUES)
                self._limit("conditions in a filter", len(chosen.attributes), _MAX_CONDITIONS)
        items = sum(min(each.k, self.config.max_k + 1) for each in requests)
        if items > self.config.max_k:
            self._limit(
                "items in all answers of a request", items, max(_MAX_ITEMS, self.config.max_k)
            )
        explained = sum(each.k for each in requests if each.explain)
        self._limit("explained items in a request", explained, _MAX_EXPLAINED)

    def _answer(
        self, recommender: Recommender, user_id: str, request: RecommendRequest
    ) -> RecommendResponse:
        if request.k > self.config.max_k:
            self._limit("k", request.k, self.config.max_k)
        best = recommender.best(
            user_id, request.k, request.exclude_seen, request.filter, request.diversity
        )
        if request.filter is None:
            self.models.recent.append(request)
        else:
            self.models.remember(request)
        return RecommendResponse(
            user_id,
            recommender.knows_user(user_id),
            recommender.model_version,
            _ranked(recommender, user_id, best, explain=request.explain, titles=request.titles),
        )

    async def rank(self, request: RankRequest) -> RecommendResponse:
        self._limit("item_ids", len(request.item_ids), self.config.max_k)
        if request.explain:
            self._limit("explained items in a request", len(request.item_ids), _MAX_EXPLAINED)
        recommender, user_id = self.models.active.recommender, as_id(request.user_id, "user_id")
        await self._catch_up(recommender, [user_id])
        items = list(dict.fromkeys(as_id(item, "item_id") for item in request.item_ids))
        unknown = (
            [item for item in items if not recommender.knows_item(item)]
            if request.skip_unknown
            else []
        )
        left_out = set(unknown)
        ranked = recommender.recommend(user_id, [item for item in items if item not in left_out])
        best = [each.item_id for each in ranked], [each.score for each in ranked]
        return RecommendResponse(
            user_id,
            recommender.knows_user(user_id),
            recommender.model_version,
            _ranked(recommender, user_id, best, explain=request.explain, titles=request.titles),
            unknown,
        )

    # Events

    async def events(self, request: EventsRequest) -> EventsResponse:
        self._limit("events", len(request.events), self.config.max_batch)
        given = (
            EventInput(e.user_id, e.item_id, e.event_type, e.timestamp, e.event_id)
            for e in request.events
        )
        stored = to_stored(given, self._clock)
        with self._unless_failed({event.user_id for event in stored}):
            positions: list[int] = await self._writer.submit(stored, len(stored))
        self.forget_what_the_store_lost()
        if not self.store.shared:  # otherwise each answer asks the store what is new
            for served in self.models.all():
                for event, position in zip(stored, positions, strict=True):
                    served.recommender.follow(event, position)
        active = self.models.active.recommender
        duplicates = positions.count(0)
        unknown = sum(
            not active.knows_item(e.item_id) for e, p in zip(stored, positions, strict=True) if p
        )
        accepted = len(stored) - duplicates
        for outcome, number in (
            ("accepted", accepted),
            ("duplicate", duplicates),
            ("unknown_item", unknown),
        ):
            if number:
                self.metrics.events.labels(outcome).inc(number)
        return EventsResponse(accepted, duplicates, unknown)

    # Items

    async def put_item(self, item_id: str, request: ItemRequest) -> ItemResponse:
        record = ItemRecord(
            item_id,
            request.title,
            dict(request.features),
            dict(request.attributes),
            request.available,
        )
        await self._change_item(record)
        return _item(self.models.active.recommender.item(item_id))

    async def delete_item(self, item_id: str) -> StatusResponse:
        recommender = self.models.active.recommender
        try:
            item_id = recommender.item(item_id).item_id  # raises where it is unknown
        except InvalidIdError:
            async with self._changing_items:
                await self._remove_stored(item_id)
            return StatusResponse("removed")
        await self._change_item(ItemRecord(item_id, available=False, removed=True))
        return StatusResponse("removed")

    async def _remove_stored(self, item_id: str) -> None:
        """Remove what the store keeps under a text that cannot be an id any more; no model uses
        it. Raises InvalidIdError where there is nothing.
        """
        records, _ = await asyncio.to_thread(self.store.items)
        if not any(record.item_id == item_id and not record.removed for record in records):
            as_id(item_id, "item_id")  # raises
        record = ItemRecord(item_id, available=False, removed=True)
        await self._writer.submit(partial(self.store.put_item, record))

    async def _change_item(self, record: ItemRecord) -> None:
        """Checks a change against all models in memory, stores it, applies it: all or nothing, and
        one after the other.
        """
        async with self._changing_items:
            for served in self.models.all():
                served.recommender.check_item(
                    record, foreign_features=served is not self.models.active
                )
            await self._writer.submit(partial(self.store.put_item, record))
            for served in self.models.all():
                await self._follow_items(served)

    async def get_item(self, item_id: str) -> ItemResponse:
        return _item(self.models.active.recommender.item(item_id))

    async def items(self, search: str, limit: int) -> ItemsResponse:
        recommender = self.models.active.recommender
        found: list[Item] = []
        for start in range(
            0, recommender.places, _SEARCHED
        ):  # titles are looked through one by one
            found += recommender.search(search, limit - len(found), start, start + _SEARCHED)
            if len(found) >= limit:
                break
            await asyncio.sleep(0)
        return ItemsResponse([_item(each) for each in found])

    # Users

    async def get_user(self, user_id: str) -> UserResponse:
        (record,) = await asyncio.to_thread(self.store.read, [Since(user_id)])
        recommender = self.models.active.recommender
        await self._catch_up(recommender, [user_id])
        if not record.epoch and not recommender.knows_user(user_id):
            raise UnknownUserError(
                "nothing is known about this user",
                fix="send events or features first",
                user_id=user_id,
            )
        latest = [
            UserEvent(e.item_id, e.event_type, e.timestamp, e.event_id)
            for e in record.events[-_SHOWN_EVENTS:]
        ]
        features: Any = record.features
        return UserResponse(
            user_id,
            len(record.events),
            latest[::-1],
            _named(recommender, recommender.past(user_id, _SHOWN_EVENTS)),
            _named(recommender, recommender.teacher_items(user_id)),
            features,
        )

    async def put_user(self, user_id: str, request: UserRequest) -> StatusResponse:
        self.models.active.recommender.user_features(
            request.features
        )  # raises where they do not fit
        try:
            await self._writer.submit(lambda: self.store.set_features(user_id, request.features))
        finally:  # also where it failed: it may have been written all the same
            self._forget([user_id])
        return StatusResponse("stored")

    async def delete_user(self, user_id: str) -> ErasedResponse:
        """Events, features and state; and the user's rows in the histories of the loaded bundles.

        What was stored under exactly this text before ids followed a rule is erased too. Raises
        InvalidIdError for a text that cannot be an id, and was none.
        """
        names = await self._spellings(user_id)
        removed, bundle = 0, "clean"
        for name in names:
            with self._unless_failed([name]):
                removed += await self._writer.submit(partial(self.store.erase, name))
        kept = [request for request in self.models.recent if str(request.user_id) not in names]
        self.models.recent.clear()
        self.models.recent.extend(kept)
        for served in self.models.all():
            served.recommender.drop_erased(names)
        for version, folder in self.models.folders():
            for name in names:
                try:
                    await asyncio.to_thread(erase_user, folder, name)
                except (DistilrecError, OSError) as problem:
                    bundle = f"{version}: not used any more, but still in the file ({type(problem).__name__})"
                    log("a bundle could not be cleaned", logging.WARNING, model_version=version)
        return ErasedResponse(names[0], removed, bundle, await self._upkeep.clean())

    async def _spellings(self, user_id: str) -> list[str]:
        """Returns the id that a text means, and the text itself where something is kept under it
        that is not an id.
        """
        try:
            names = [as_id(user_id, "user_id")]
        except InvalidIdError:
            if not await self._keeps(user_id):
                raise
            return [user_id]
        if user_id != names[0] and await self._keeps(user_id):
            names.append(user_id)
        return names

    async def _keeps(self, user_id: str) -> bool:
        """Whether the store or a bundle in memory has a user under exactly this text."""
        (record,) = await self._reader.submit([Since(user_id)])
        if record.epoch or record.erased:
            return True
        with contextlib.suppress(InvalidIdError):
            return any(served.recommender.knows_user(user_id) for served in self.models.all())
        return False

    @contextlib.contextmanager
    def _unless_failed(self, users: Iterable[str]) -> Iterator[None]:
        """A write that failed may have happened all the same: the next answer asks the store about
        these users.
        """
        try:
            yield
        except BaseException:
            self._forget(users)
            for served in self.models.all():
                served.erasures = -1
            raise

    def _forget(self, users: Iterable[str]) -> None:
        for served in self.models.all():
            for user in users:
                served.recommender.users.drop(user)

    async def users(self, limit: int) -> UsersResponse:
        await self.follow_erasures(self.models.active)
        return UsersResponse(self.models.active.recommender.some_users(limit))

    # Model

    async def model(self) -> ModelResponse:
        recommender = self.models.active.recommender
        m = recommender.manifest
        return ModelResponse(
            m.model_version,
            str(recommender.folder),
            m.kind,
            recommender.item_count,
            m.parameters,
            m.dataset,
            list(m.event_types[1:]),
            recommender.attributes,
            [encoding.name for encoding in m.user_encoder.encodings],
            [encoding.name for encoding in m.item_encoder.encodings],
            m.metrics,
            recommender.has_teacher,
            self.models.previous_version,
        )

    async def load_model(self, request: LoadRequest) -> LoadResponse:
        self._own_swaps += 1
        try:
            response = await self.models.load(request)
            if response.switched:
                await self._switched("load")
        finally:
            self._own_swaps -= 1
        return response

    async def rollback(self) -> LoadResponse:
        self._own_swaps += 1
        try:
            response = await self.models.rollback()
            if response.switched:
                await self._switched("rollback")
        finally:
            self._own_swaps -= 1
        return response

    async def _switched(self, kind: str) -> None:
        active = self.models.active
        self.metrics.swaps.labels(kind).inc()
        self.metrics.show_model(active.version)
        with contextlib.suppress(StoreError):  # tried again soon
            await self._follow_store(active)

    async def _keep_choice(self, choice: Choice) -> None:
        text = msgspec.json.encode(choice).decode()
        await self._writer.submit(lambda: self.store.set_setting(ACTIVE_BUNDLE, text))

    # Health

    async def alive(self) -> StatusResponse:
        return StatusResponse("alive")

    async def readiness(self) -> StatusResponse:
        """Raises NotReadyError while starting and shutting down, StoreError when the
        store is away.
        """
        if not self._ready or self._draining:
            raise NotReadyError(
                "starting" if not self._ready else "shutting down", fix="send requests elsewhere"
            )
        now = time.monotonic()
        if now - self._store_checked > _READY_SECONDS:
            await self._reader.submit([Since("readiness")])
            self._store_checked = now
        if self.store.shared and self._upkeep.behind:
            raise NotReadyError(
                "the model that the other workers answer with cannot be loaded "
                f"({self._upkeep.behind})",
                fix="mend or restore its bundle, or load another one",
            )
        return StatusResponse("ready")

    def exposition(self) -> bytes:
        """The metrics, in the text format of Prometheus."""
        self.set_gauges()
        return self.metrics.exposition()

    def set_gauges(self) -> None:
        """Brings the metrics that are states up to date."""
        users = self.models.active.recommender.users
        self.metrics.users.set(len(users))
        self.metrics.state_bytes.set(users.nbytes)
        self.metrics.evicted.set(users.evicted)
        self.metrics.pending.set(self._writer.pending)
        self.metrics.pending_limit.set(self.config.max_pending)

    # The store

    def _limit(self, what: str, given: int, limit: int) -> None:
        if given > limit:
            raise RequestError(
                f"{what}: {given:,} is more than the limit of {limit:,}", fix="ask for less at once"
            )

    async def _catch_up(self, recommender: Recommender, user_ids: list[str]) -> None:
        """Makes what is in memory about these users equal to what the store says."""
        if not self.store.shared:
            until = time.perf_counter() + _TURN_SECONDS
            for user in user_ids:
                if user not in recommender.users:
                    await self._read_here(recommender, user)
                    if time.perf_counter() > until:
                        await asyncio.sleep(0)
                        until = time.perf_counter() + _TURN_SECONDS
            return
        asked = [recommender.since(user) for user in user_ids]
        while asked:
            records = await self._reader.submit(asked)
            again = []
            for since, record in zip(asked, records, strict=True):
                if record.restart and len(record.events) > _LONG:
                    await self._rebuild(recommender, since, record)
                    again.append(recommender.since(since.user_id))  # with what has come meanwhile
                elif not recommender.restore(since, record):
                    again.append(Since(since.user_id))
            asked = again

    async def _read_here(self, recommender: Recommender, user_id: str) -> None:
        """Reads a user from a file in the page cache: no thread is needed, unless the
        log is long.
        """
        while True:
            since = recommender.since(user_id)
            (record,) = self.store.read([since], _LONG)
            if record.more:
                whole = Since(user_id)
                (record,) = await asyncio.to_thread(self.store.read, [whole])
                await self._rebuild(recommender, whole, record)
            elif recommender.restore(since, record):
                return
            else:
                recommender.forget(user_id)

    async def _rebuild(self, recommender: Recommender, since: Since, record: UserRecord) -> None:
        """Folds a long log in a thread, one at a time: together they would take the processor from
        all others.
        """
        async with self._rebuilding:
            rebuilt = await asyncio.to_thread(recommender.rebuilt, since.user_id, record)
        recommender.restore(since, record, rebuilt)

    async def _follow_items(self, served: Served) -> None:
        async with self._following:
            if self.store.shared:
                records, served.item_changes = await asyncio.to_thread(
                    self.store.items, served.item_changes
                )
            else:
                records, served.item_changes = self.store.items(served.item_changes)
            for number, record in enumerate(records, 1):
                for problem in follow_item(served.recommender, record):
                    log(
                        "a part of an item was left out", logging.WARNING, code=problem.code, item_id=record.item_id,
                        model_version=served.version, parameter=problem.context.get("parameter"),
                    )  # fmt: skip
                if number % _ITEMS_BETWEEN_TURNS == 0:
                    await asyncio.sleep(0)

    async def _follow_store(self, served: Served) -> None:
        await self._follow_items(served)
        await self.follow_erasures(served)

    async def follow_erasures(self, served: Served) -> None:
        """Takes users who were erased, here or elsewhere, out of what a model knows from its
        bundle.
        """
        number = await asyncio.to_thread(self.store.erasures)
        self.forget_what_the_store_lost()
        if number == served.erasures:
            return
        served.erasures = await asyncio.to_thread(forget_erased, served.recommender, self.store)

    def forget_what_the_store_lost(self) -> None:
        """Where the store may lack what it once said, nothing that was read from it before is used
        any more.
        """
        if self.store.generation == self._generation:
            return
        self._generation = self.store.generation
        for served in self.models.all():
            served.recommender.users.clear()
            served.item_changes, served.erasures = 0, -1

    async def follow(self) -> None:
        """Follows what other processes have changed: items, erased users. Raises StoreErrors."""
        for served in list(self.models.all()):
            await self.follow_erasures(served)
        await self._follow_items(self.models.active)

    async def follow_choice(self) -> None:
        """Follows the other workers to the bundle that they have switched to. Raises StoreErrors,
        BundleErrors.
        """
        choice = switched_to(
            self.config, await asyncio.to_thread(self.store.setting, ACTIVE_BUNDLE)
        )
        if choice is None or self._own_swaps:
            return
        before = self.models.active
        await self.models.follow(choice)
        if self.models.active is not before:
            self.metrics.show_model(self.models.active.version)

    async def clean(self) -> str:
        """Takes erased users out of the files of the store; returns what is left to be done. Raises
        StoreErrors.
        """
        left: str = await self._writer.submit(self.store.clean)
        return left

    def _write(self, jobs: list[_Write]) -> list[Any]:
        """In the writer's thread: neighbouring events share one commit, everything keeps
        its order.
        """
        results: list[Any] = []
        place = 0
        while place < len(jobs):
            stop = place
            while stop < len(jobs) and isinstance(jobs[stop], list):
                stop += 1
            if stop > place:
                results += self._commit([job for job in jobs[place:stop] if isinstance(job, list)])
                place = stop
                continue
            job = jobs[place]
            assert not isinstance(job, list)
            try:
                results.append(job())
            except Exception as problem:
                results.append(self._failed(problem))
            place += 1
        return results

    def _commit(self, groups: list[list[StoredEvent]]) -> list[Any]:
        started = time.perf_counter()
        try:
            positions = iter(self.store.append([event for group in groups for event in group]))
        except StoreError as problem:
            return [self._failed(problem)] * len(groups)
        except Exception as problem:
            if len(groups) == 1:
                return [self._failed(problem)]
            return [
                self._commit([group])[0] for group in groups
            ]  # one of them cannot be stored: not the others' fault
        self.metrics.commit_seconds.observe(time.perf_counter() - started)
        self.metrics.commit_events.observe(sum(map(len, groups)))
        return [[next(positions) for _ in group] for group in groups]

    def _read(self, jobs: list[list[Since]]) -> list[Any]:
        """In the reader's thread: one round trip for all who wait."""
        try:
            records = iter(self.store.read([asked for job in jobs for asked in job]))
        except StoreError as problem:
            if isinstance(problem, StoreCorruptedError) and len(jobs) > 1:
                return [
                    self._read([job])[0] for job in jobs
                ]  # one of them cannot be read: not the others' fault
            return [self._failed(problem)] * len(jobs)
        return [[next(records) for _ in job] for job in jobs]

    def _failed(self, problem: Exception) -> Exception:
        if isinstance(problem, StoreError):
            self.metrics.store_errors.inc()
            if (problem.message, time.monotonic() // _SAME_PROBLEM_SECONDS) != self._noted:
                self._noted = problem.message, time.monotonic() // _SAME_PROBLEM_SECONDS
                log("the store fails", logging.WARNING, code=problem.code, reason=problem.message)
        return problem


def open_service(config: ServiceConfig) -> Service:
    """A service with its store opened and its model loaded and compiled. Raises BundleErrors and
    StoreErrors.
    """
    store = open_store(config.store, config.store_prefix, config.store_password_file)
    try:
        for warning in store.check():
            log("store", logging.WARNING, warning=warning)
        choice = switched_to(config, store.setting(ACTIVE_BUNDLE))
        return Service(config, store, first_model(config, choice), choice)
    except BaseException:
        store.close()
        raise


def listed(value: int) -> int:
    """A limit of a list, checked. Raises ConfigError."""
    if not 1 <= value <= _MAX_LISTED:
        raise ConfigError(
            f"limit is {value}", fix=f"give a number from 1 to {_MAX_LISTED}", parameter="limit"
        )
    return value


def _ranked(
    recommender: Recommender,
    user_id: str,
    best: tuple[list[str], list[float]],
    *,
    explain: bool,
    titles: bool,
) -> list[RankedItem]:
    items, scores = best
    if not explain and not titles:
        return list(map(RankedItem, items, scores, count(1)))
    whys: list[list[Contribution]] = [[] for _ in items]
    if explain and items:
        whys = recommender.explain_many(user_id, items, _REASONS)
    found = []
    for rank, item, score, why in zip(count(1), items, scores, whys, strict=False):
        because = [
            Reason(
                c.item_id, c.contribution, recommender.title_of_past(c.item_id) if titles else None
            )
            for c in why
        ]
        found.append(
            RankedItem(
                item,
                score,
                rank,
                recommender.title(item) if titles else None,
                because if explain else None,
            )
        )
    return found


def _named(recommender: Recommender, items: list[str]) -> list[NamedItem]:
    return [NamedItem(item, recommender.title_of_past(item)) for item in items]


def _item(item: Item) -> ItemResponse:
    return ItemResponse(item.item_id, item.title, item.attributes, item.available, item.in_training)
