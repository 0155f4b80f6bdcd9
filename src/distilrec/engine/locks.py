"""Locks that survive a fork: it waits until no other thread holds one, so that the child finds
whole states and free locks.

A thread that holds one of these locks may only wait for locks that were made earlier; a fork takes
them in the same order.
"""

from __future__ import annotations

import os
import threading
from itertools import count
from weakref import WeakValueDictionary

_numbers = count()
_locks: WeakValueDictionary[int, threading.RLock] = WeakValueDictionary()
_guard = threading.Lock()  # of what stands above and below; held during a fork
_held: list[threading.RLock] = []


def fork_safe_lock() -> threading.RLock:
    """Return a lock that the thread that holds it may take again."""
    lock = threading.RLock()
    with _guard:
        _locks[next(_numbers)] = lock
    return lock


def _take_all() -> None:
    _guard.acquire()
    _held.extend(lock for _, lock in sorted(_locks.items(), reverse=True))
    for lock in _held:
        lock.acquire()


def _release_all() -> None:
    for lock in reversed(_held):
        lock.release()
    _held.clear()
    _guard.release()


os.register_at_fork(before=_take_all, after_in_parent=_release_all, after_in_child=_release_all)
