"""The threads that write and read the store.

A thread takes all waiting jobs together: many requests share one commit, or one round trip.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from distilrec.errors import NotReadyError, OverloadedError, StoreCorruptedError, StoreError
from distilrec.serve.logs import log
from distilrec.serve.metrics import Metrics
from distilrec.stores.records import Since, Store, StoredEvent, UserRecord

_BATCH_OF_JOBS = 4_096
_MAX_READS = 100_000  # that may wait
_SAME_PROBLEM_SECONDS = 60.0  # a problem of the store that lasts is logged again

Job = TypeVar("Job")
Result = TypeVar("Result")
_Outcome = tuple["asyncio.Future[Result]", Result | BaseException]


class Batches(Generic[Job, Result]):
    """Take jobs from the event loop, and work on them in order, in batches, in a thread.

    work: gets the jobs of a batch, gives a result or an exception for each; max_pending: maximum
    weight that may wait.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[list[Job]], list[Result | BaseException]],
        max_pending: int,
        max_batch: int,
    ) -> None:
        self._work, self._max_pending, self._max_batch = work, max_pending, max_batch
        self._waiting: deque[tuple[Job, asyncio.Future[Result], int]] = deque()
        self._pending = 0
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def pending(self) -> int:
        """Weight that is waiting or being worked on."""
        return self._pending

    async def submit(self, job: Job, weight: int = 1) -> Result:
        """Return the result of a job. Raises what the work raised, OverloadedError when too much is
        waiting.
        """
        if self._stopping:
            raise NotReadyError(
                "the service is shutting down", fix="send the request again, to another instance"
            )
        if self._pending + weight > self._max_pending:
            raise OverloadedError(
                f"{self._pending:,} events are waiting to be written",
                fix="send the request again later, and fewer events per second",
                retry_after=1.0,
            )
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._pending += weight
        self._waiting.append((job, future, weight))
        self._wake.set()
        # A caller who goes away does not undo what is being stored.
        return await asyncio.shield(future)

    async def stop(self) -> None:
        """Finish what is waiting, then end the thread."""
        self._stopping = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch = [
                    self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch))
                ]
                try:
                    results = self._work([job for job, _, _ in batch])
                except BaseException as problem:
                    results = [problem] * len(batch)
                outcomes = [
                    (future, result) for (_, future, _), result in zip(batch, results, strict=True)
                ]
                try:
                    batch[0][1].get_loop().call_soon_threadsafe(
                        self._deliver, outcomes, sum(weight for _, _, weight in batch)
                    )
                except RuntimeError:  # the loop is closed: no caller waits any more
                    return
            if self._stopping and not self._waiting:
                return

    def _deliver(self, outcomes: list[_Outcome[Result]], weight: int) -> None:
        self._pending -= weight
        for future, result in outcomes:
            if future.cancelled():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
                future.exception()  # seen, even if the caller has gone away
            else:
                future.set_result(result)


_Write = list[StoredEvent] | Callable[[], Any]


class StoreThreads:
    """One thread that writes a store and one that reads it.

    max_pending: maximum number of events that may wait to be stored.
    """

    def __init__(self, store: Store, metrics: Metrics, max_pending: int) -> None:
        self._store, self._metrics = store, metrics
        self._writer: Batches[_Write, Any] = Batches(
            "store-writer", self._write, max_pending, _BATCH_OF_JOBS
        )
        self._reader: Batches[list[Since], list[UserRecord]] = Batches(
            "store-reader", self._read, _MAX_READS, _BATCH_OF_JOBS
        )
        self._noted = ("", 0.0)  # the latest problem of the store that is in the log

    def start(self) -> None:
        """Start both threads."""
        self._writer.start()
        self._reader.start()

    async def stop(self) -> None:
        """Finish what is waiting, then end both threads."""
        await self._writer.stop()
        await self._reader.stop()

    @property
    def pending(self) -> int:
        """Number of events that wait to be stored or are being stored."""
        return self._writer.pending

    async def write(self, job: _Write, weight: int = 1) -> Any:
        """Store events, or call a function of the store, after everything before it."""
        return await self._writer.submit(job, weight)

    async def read(self, users: list[Since]) -> list[UserRecord]:
        """Read users of the store."""
        return await self._reader.submit(users)

    def _write(self, jobs: list[_Write]) -> list[Any]:
        """Work in the thread of the writer: neighbouring events share one commit, everything keeps
        its order.
        """
        results: list[Any] = []
        position = 0
        while position < len(jobs):
            stop = position
            while stop < len(jobs) and isinstance(jobs[stop], list):
                stop += 1
            if stop > position:
                results += self._commit(
                    [job for job in jobs[position:stop] if isinstance(job, list)]
                )
                position = stop
                continue
            job = jobs[position]
            assert not isinstance(job, list)
            try:
                results.append(job())
            except Exception as problem:
                results.append(self._failed(problem))
            position += 1
        return results

    def _commit(self, groups: list[list[StoredEvent]]) -> list[Any]:
        started = time.perf_counter()
        try:
            positions = iter(self._store.append([event for group in groups for event in group]))
        except StoreError as problem:
            return [self._failed(problem)] * len(groups)
        except Exception as problem:
            if len(groups) == 1:
                return [self._failed(problem)]
            # One of them cannot be stored: not the others' fault.
            return [self._commit([group])[0] for group in groups]
        self._metrics.commit_seconds.observe(time.perf_counter() - started)
        self._metrics.commit_events.observe(sum(map(len, groups)))
        return [[next(positions) for _ in group] for group in groups]

    def _read(self, jobs: list[list[Since]]) -> list[Any]:
        """Work in the thread of the reader: one round trip for all who wait."""
        try:
            records = iter(self._store.read([since for job in jobs for since in job]))
        except StoreError as problem:
            if isinstance(problem, StoreCorruptedError) and len(jobs) > 1:
                # One of them cannot be read: not the others' fault.
                return [self._read([job])[0] for job in jobs]
            return [self._failed(problem)] * len(jobs)
        return [[next(records) for _ in job] for job in jobs]

    def _failed(self, problem: Exception) -> Exception:
        if isinstance(problem, StoreError):
            self._metrics.store_errors.inc()
            if (problem.message, time.monotonic() // _SAME_PROBLEM_SECONDS) != self._noted:
                self._noted = problem.message, time.monotonic() // _SAME_PROBLEM_SECONDS
                log("the store fails", logging.WARNING, code=problem.code, reason=problem.message)
        return problem
