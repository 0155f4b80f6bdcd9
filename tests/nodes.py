"""Clients of several services that share a store: each request goes to the next one."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException
from itertools import count
from typing import Any
from urllib.parse import urlsplit

from distilrec.stores.records import Since, Store
from tests.servers import PATIENCE, until


@contextmanager
def opening(make: Callable[..., Store]) -> Iterator[Callable[..., Any]]:
    """Opens stores as often as a test likes, and closes them in the end."""
    with ExitStack() as stack:

        def open_one(**options: object) -> Store:
            store = make(**options)
            stack.callback(store.close)
            return store

        yield open_one


class Alternating:
    """Threads that send an event and ask for an answer without pause, each time to the next of the
    services. What one does not answer is sent to the next, the event with the same id.

    acknowledged: ids of events, by number, once for each; times: seconds until an answer of the kind;
    retried: requests that a service did not answer; refused: answers other than 200. item: of events.
    """

    def __init__(
        self, urls: Sequence[str], threads: int = 4, users: int = 7, item: str = "i{}"
    ) -> None:
        self.urls, self.users, self.item = list(urls), users, item
        self.acknowledged: list[str] = []
        self.times: dict[str, list[float]] = {"events": [], "recommend": []}
        self.retried, self.refused = 0, Counter[int]()
        self._numbers, self._stop = count(), threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(threads)
        ]

    def __enter__(self) -> Alternating:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads)

    def wait(self, events: int) -> None:
        """Until so many more events have been acknowledged, by each service that answers."""
        wanted = len(self.acknowledged) + events
        until(lambda: len(self.acknowledged) >= wanted, "events are acknowledged")

    def user(self, number: int) -> str:
        return str(1 + number % self.users)

    def _run(self, turn: int) -> None:
        connections = {url: self._connection(url) for url in self.urls}
        while not self._stop.is_set():
            number = next(self._numbers)
            event = {
                "user_id": self.user(number),
                "item_id": self.item.format(number % 40),
                "event_id": f"e{number}",
            }
            turn = self._until_answered(connections, turn, "events", {"events": [event]})
            self.acknowledged.append(f"e{number}")
            asked = {"user_id": self.user(number), "k": 10}
            turn = self._until_answered(connections, turn, "recommend", asked)
        for connection in connections.values():
            connection.close()

    def _until_answered(
        self, connections: dict[str, HTTPConnection], turn: int, path: str, body: object
    ) -> int:
        """Return whose turn it is then."""
        began, content = time.perf_counter(), json.dumps(body)
        while True:
            url = self.urls[turn % len(self.urls)]
            turn += 1
            connection = connections[url]
            try:
                headers = {"content-type": "application/json"}
                connection.request("POST", f"/v1/{path}", content, headers)
                answer = connection.getresponse()
                answer.read()
            except (OSError, HTTPException):
                self.retried += 1
                connection.close()
                connections[url] = self._connection(url)
                continue
            if answer.status == 200:
                self.times[path].append(time.perf_counter() - began)
                return turn
            self.refused[answer.status] += 1

    @staticmethod
    def _connection(url: str) -> HTTPConnection:
        address = urlsplit(url)
        assert address.hostname is not None
        return HTTPConnection(address.hostname, address.port, timeout=PATIENCE)


def stored(store: Store, users: Sequence[str]) -> Counter[str]:
    """How often each event is in a store, by its id."""
    records = store.read([Since(user) for user in users])
    return Counter(event.event_id for record in records for event in record.events)
