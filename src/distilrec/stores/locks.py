"""A lock that belongs to the process that made it."""

from __future__ import annotations

import os
import threading

from distilrec.errors import StoreUnavailableError


class OwnersLock:
    """A lock for the process that made it; in one that was forked off, where it may be held for
    ever, it raises StoreUnavailableError.

    store: the name of the store in the message; fix: what to do instead; where: context of the
    error.
    """

    def __init__(self, store: str, fix: str, **where: str) -> None:
        self._store, self._fix, self._where = store, fix, where
        self._process, self._lock = os.getpid(), threading.Lock()

    @property
    def elsewhere(self) -> bool:
        """Whether this is another process than the one that made it."""
        return os.getpid() != self._process

    def __enter__(self) -> None:
        if self.elsewhere:
            raise StoreUnavailableError(
                f"{self._store} was opened before this process was forked, and belongs to the "
                "other one",
                fix=self._fix,
                **self._where,
            )
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()
