"""A thread that takes all waiting jobs at once: how many requests share one commit, or one round
trip to the store.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from distilrec.errors import NotReadyError, OverloadedError

Job = TypeVar("Job")
Result = TypeVar("Result")
_Outcome = tuple["asyncio.Future[Result]", Result | BaseException]


class Batches(Generic[Job, Result]):
    """Jobs go in from the event loop, and are worked on in order, in batches, in a thread of their
    own.

    work: gets the jobs of a batch, gives a result or an exception for each; max_pending: of weight
    that may wait.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[list[Job]], list[Result | BaseException]],
        max_pending: int,
        max_batch: int,
    ) -> None:
        self._work, self._max_pending, self._max_batch = work, max_pending, max_batch
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Job, asyncio.Future[Result], int]] = deque()
        self._pending = 0
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Weight that is waiting or being worked on."""
        return self._pending

    async def submit(self, job: Job, weight: int = 1) -> Result:
        """The result of a job. Raises what the work raised, OverloadedError when too much is
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
        future: asyncio.Future[Result] = self._loop.create_future()
        self._pending += weight
        self._waiting.append((job, future, weight))
        self._wake.set()
        return await asyncio.shield(
            future
        )  # a caller who goes away does not undo what is being stored

    async def stop(self) -> None:
        """Finishes what is waiting, then ends the thread."""
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
                    self._loop.call_soon_threadsafe(
                        self._deliver, outcomes, sum(weight for _, _, weight in batch)
                    )
                except RuntimeError:  # the loop is closed: nobody waits any more
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
