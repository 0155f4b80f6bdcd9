"""Try again until it works: what is away comes back, and until then nothing more is read."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from distilrec.errors import (
    DistilrecError,
    ServiceError,
    SourceUnavailableError,
    StoreUnavailableError,
)
from distilrec.serve.logs import log

Found = TypeVar("Found")
_FIRST, _LONGEST = 0.1, 10.0  # seconds between two tries
_SAID_EVERY = 60.0  # seconds between two lines of the log
_TURN = 1.0  # seconds between two signs of life
_LATER = frozenset({408, 425, 429})
_NO_ANSWER = object()


class Stopped(Exception):
    """The consumer was told to end while it waited."""


class Patience:
    """Waits longer and longer between tries.

    rest: called once a second while it waits; retried: called before each further try.
    """

    def __init__(
        self,
        stop: threading.Event,
        rest: Callable[[], None] = lambda: None,
        retried: Callable[[], None] = lambda: None,
    ) -> None:
        self._stop, self._rest, self._retried = stop, rest, retried

    def until(self, action: Callable[[], Found]) -> Found:
        """Return what an action returns when it works. Raises Stopped, and every error that further
        tries do not mend.
        """
        pause, since = _FIRST, time.monotonic()
        said: float | None = None
        while True:
            try:
                found = action()
            except (ServiceError, SourceUnavailableError, StoreUnavailableError) as problem:
                if not passes(problem):
                    _say_end(said, since)
                    raise
                if said is None or time.monotonic() - said >= _SAID_EVERY:
                    said = time.monotonic()
                    log("waiting", logging.WARNING, code=problem.code, reason=problem.message)
                asked = problem.context.get("retry_after")
                wish = float(asked) if isinstance(asked, int | float) else 0.0
                self._wait(min(max(wish, pause * random.uniform(0.5, 1.0)), _LONGEST))  # noqa: S311
                pause = min(2 * pause, _LONGEST)
                self._retried()
            else:
                _say_end(said, since)
                return found

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._stop.wait(min(left, _TURN)):
                raise Stopped
            self._rest()
        if self._stop.is_set():
            raise Stopped


def _say_end(said: float | None, since: float) -> None:
    """Write to the log that there is an answer, where it says that there was none."""
    if said is not None:
        log("going on", seconds=round(time.monotonic() - since, 1))


def passes(problem: DistilrecError) -> bool:
    """Return whether an error is one that passes by itself."""
    status = problem.context.get("status", _NO_ANSWER)
    return (
        not isinstance(problem, ServiceError)
        or status is None
        or (isinstance(status, int) and (status in _LATER or status >= 500))
    )
