"""What a service does beside answering: it follows what other processes change, and finishes what
takes several attempts.

Whatever fails is logged once and tried again; nothing ends it but the service itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from distilrec.errors import StoreError
from distilrec.serve.config import ServiceConfig
from distilrec.serve.experiments import Experiments
from distilrec.serve.logs import log
from distilrec.serve.metrics import Metrics
from distilrec.serve.models import Models
from distilrec.serve.outcomes import Outcomes
from distilrec.serve.rules import PlacementRules
from distilrec.serve.storage import Storage
from distilrec.serve.swap import Swap

_POLL_SECONDS = 0.5
_CLEAN_SECONDS = 2.0  # between two attempts to take erased users out of files
_CLEAN_ATTEMPTS, _CLEAN_PAUSE = 20, 0.05  # while the caller who erased a user waits
_LONGEST_DELAY = 30.0  # seconds before a bundle that could not be loaded is tried again


class Upkeep:
    """Work on a service in the background, between `start` and `stop`."""

    def __init__(
        self,
        config: ServiceConfig,
        models: Models,
        storage: Storage,
        swap: Swap,
        rules: PlacementRules,
        experiments: Experiments,
        outcomes: Outcomes,
        metrics: Metrics,
    ) -> None:
        self._max_pending = config.max_pending
        self._models, self._storage, self._swap = models, storage, swap
        self._rules, self._experiments, self._outcomes = rules, experiments, outcomes
        self._metrics = metrics
        self._task: asyncio.Task[None] | None = None
        self._unclean = True  # what was left to be done before a restart
        self._next_cleaning = 0.0
        # Of what loads models: seconds between attempts where one cannot be loaded, and the next.
        self._delays: dict[str, float] = {}
        self._next: dict[str, float] = {}
        self._failing: dict[str, str] = {}

    def start(self) -> None:
        """Begin to work."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the work."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def show_state(self) -> None:
        """Bring the metrics that are states up to date."""
        users = self._models.active.recommender.users
        self._metrics.users.set(len(users))
        self._metrics.state_bytes.set(users.nbytes)
        self._metrics.evicted.set(users.evicted)
        self._metrics.pending.set(self._storage.pending)
        self._metrics.pending_limit.set(self._max_pending)

    @property
    def behind(self) -> str:
        """Why this process does not answer with the model that it should; empty where it does."""
        return self._failing.get("model", "") if "model" in self._delays else ""

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            await self._tried("metrics", self._show)
            await self._tried("store", self._storage.follow)
            await self._tried("rules", self._rules.follow)
            await self._loaded("model", self._swap.follow_choice)
            await self._loaded("experiment", self._experiments.follow)
            await self._tried("outcomes", self._outcomes.flush)
            if self._unclean and time.monotonic() >= self._next_cleaning:
                self._next_cleaning = time.monotonic() + _CLEAN_SECONDS
                await self._tried("cleaning", self._clean_once)

    async def clean(self) -> str:
        """Take erased users out of the files of the store; return `clean`, or `pending: ` and what
        goes on in the background.
        """
        left = ""
        for _ in range(_CLEAN_ATTEMPTS):
            try:
                left = await self._clean_once()
            except StoreError as problem:
                self._unclean = True
                return f"pending: {problem.code}"
            if not left:
                return "clean"
            await asyncio.sleep(_CLEAN_PAUSE)
        return f"pending: {left}"

    async def _clean_once(self) -> str:
        left = await self._storage.clean()
        self._unclean = bool(left)
        return left

    async def _show(self) -> None:
        self.show_state()
        self._metrics.flush()

    async def _loaded(self, what: str, work: Callable[[], Awaitable[object]]) -> None:
        """Do what may load a model, more and more rarely where it cannot be loaded."""
        if time.monotonic() < self._next.get(what, 0.0):
            return
        problem = await self._tried(what, work)
        if problem is None or isinstance(problem, StoreError):
            self._delays.pop(what, None)
            return
        self._delays[what] = min(max(2 * self._delays.get(what, 0.0), 1.0), _LONGEST_DELAY)
        self._next[what] = time.monotonic() + self._delays[what]

    async def _tried(self, what: str, work: Callable[[], Awaitable[object]]) -> Exception | None:
        """Do one thing; return its problem, which is logged when it is a new one."""
        try:
            await work()
        except Exception as problem:
            code = getattr(problem, "code", type(problem).__name__)
            if self._failing.get(what) != code:
                unforeseen = None if hasattr(problem, "code") else problem
                log("upkeep fails", logging.WARNING, what=what, code=code, exception=unforeseen)
            self._failing[what] = code
            return problem
        if self._failing.pop(what, None):
            log("upkeep works again", what=what)
        return None
