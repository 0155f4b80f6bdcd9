"""What a service does beside answering: it follows what other processes change, and finishes what
could not be done at once.

Whatever fails is logged once and tried again; nothing ends it but the service itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from distilrec.errors import StoreError
from distilrec.serve.logs import log
from distilrec.serve.metrics import Metrics

_POLL_SECONDS = 0.5
_CLEAN_SECONDS = 2.0  # between two attempts to take erased users out of files
_CLEAN_ATTEMPTS, _CLEAN_PAUSE = 20, 0.05  # while the caller who erased somebody waits
_LONGEST_DELAY = 30.0  # seconds before a bundle that could not be loaded is tried again


class Followed(Protocol):
    """The part of the service that is worked on here."""

    metrics: Metrics

    def set_gauges(self) -> None: ...

    async def follow(self) -> None: ...

    async def follow_choice(self) -> None: ...

    async def clean(self) -> str: ...


class Upkeep:
    """Works on a service in the background, from `run` until that is cancelled."""

    def __init__(self, service: Followed) -> None:
        self._service = service
        self._unclean = True  # what was left to be done before a restart
        self._next_cleaning = self._next_choice = 0.0
        self._delay = 0.0
        self._failing: dict[str, str] = {}

    @property
    def behind(self) -> str:
        """Why this process does not answer with the model that it should; empty where it does."""
        return self._failing.get("model", "") if self._delay else ""

    async def run(self) -> None:
        """Works until it is cancelled."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            await self._tried("metrics", self._show)
            await self._tried("store", self._service.follow)
            if time.monotonic() >= self._next_choice:
                await self._follow_choice()
            if self._unclean and time.monotonic() >= self._next_cleaning:
                self._next_cleaning = time.monotonic() + _CLEAN_SECONDS
                await self._tried("cleaning", self._clean_once)

    async def clean(self) -> str:
        """Takes erased users out of the files of the store: `clean`, or `pending: ` and what goes
        on in the background.
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
        left = await self._service.clean()
        self._unclean = bool(left)
        return left

    async def _show(self) -> None:
        self._service.set_gauges()
        self._service.metrics.flush()

    async def _follow_choice(self) -> None:
        problem = await self._tried("model", self._service.follow_choice)
        if problem is None or isinstance(problem, StoreError):
            self._delay = 0.0
            return
        self._delay = min(max(2 * self._delay, 1.0), _LONGEST_DELAY)
        self._next_choice = time.monotonic() + self._delay

    async def _tried(self, what: str, work: Callable[[], Awaitable[object]]) -> Exception | None:
        """Does one thing; its problem, which is logged when it is a new one."""
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
