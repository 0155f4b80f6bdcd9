"""Entries of a Redis stream, shared by the consumers of a group. Install with
`distilrec[redis]`.
"""

from __future__ import annotations

import math
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import SplitResult, unquote

from distilrec.consume.config import ConsumeConfig
from distilrec.consume.messages import Message, stable_id
from distilrec.errors import ConfigError, SourceUnavailableError, first_line, missing_extra

_TIMEOUT = 10.0  # seconds
_PATH = re.compile(r"/(\d+)/(.+)", re.DOTALL)
_CLAIM_EVERY = 10.0  # seconds, at most
_START = "0-0"
_LEAST = 10**12  # milliseconds since 1970, in 2001

Entries = Sequence[tuple[bytes, Mapping[bytes, bytes] | None]]


class RedisStream:
    """See `distilrec.consume.source.Source`. An entry is acknowledged after the event is stored.

    First come the entries that this consumer has read before a restart and not acknowledged, then
    new ones, and between them those that another consumer of the group has had for too long.
    """

    def __init__(self, address: SplitResult, config: ConsumeConfig, password: str | None) -> None:
        try:
            import redis
        except ModuleNotFoundError:
            raise missing_extra("redis", "redis") from None
        self._redis, self._password = redis, password
        found = _PATH.fullmatch(address.path)
        if found is None:
            raise ConfigError(
                "the address of a stream names no database or no stream",
                fix="write redis-stream://HOST:PORT/NUMBER/STREAM, such as "
                "redis-stream://127.0.0.1:6379/0/events",
                parameter="source",
            )
        self._stream = unquote(found[2])
        self.where = f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"
        self._group, self._name = config.group, config.name or socket.gethostname()
        self._first = "0" if config.begin == "oldest" else "$"
        self._claim_after = config.claim_after
        self._own: str | None = "0"  # the last entry of those that were read before a restart
        self._claimed, self._next_claim = _START, 0.0
        self._taken: list[bytes] = []
        self._empty = False
        self.expired = 0
        try:
            port = address.port or 6379
        except ValueError:
            raise ConfigError(
                "the address of a stream has no valid port",
                fix="write redis-stream://HOST:PORT/NUMBER/STREAM",
                parameter="source",
            ) from None
        self._client: Any = redis.Redis(
            host=address.hostname or "127.0.0.1",
            port=port,
            db=int(found[1]),
            username=unquote(address.username) if address.username else None,
            password=password,
            ssl=address.scheme == "rediss-stream",
            socket_timeout=_TIMEOUT,
            socket_connect_timeout=_TIMEOUT,
        )
        with self._errors():
            self._join(self._first)

    def _join(self, first: str) -> None:
        """Make the group where there is none, and the stream."""
        try:
            self._client.xgroup_create(self._stream, self._group, id=first, mkstream=True)
        except self._redis.ResponseError as problem:
            if "BUSYGROUP" not in str(problem):
                raise

    def poll(self, count: int, seconds: float) -> Sequence[Message]:
        with self._errors():
            if self._own is not None:
                if entries := self._read(count, self._own):
                    self._own = entries[-1][0].decode()
                    return self._messages(entries)
                self._own = None
            if entries := self._claim(count):
                return self._messages(entries)
            entries = self._read(count, ">", max(1, round(1_000 * seconds)))
            self._empty = not entries
            return self._messages(entries)

    def _read(self, count: int, after: str, milliseconds: int | None = None) -> Entries:
        answer = self._client.xreadgroup(
            self._group, self._name, {self._stream: after}, count=count, block=milliseconds
        )
        streams = answer.values() if isinstance(answer, dict) else [one[1] for one in answer or ()]
        return [entry for entries in streams for entry in entries]

    def _claim(self, count: int) -> Entries:
        """Take over what others have read and not acknowledged for too long, as they have ended or
        hang; a hanging one that goes on stores nothing twice.
        """
        if time.monotonic() < self._next_claim:
            return ()
        self._claimed, entries, gone = self._client.xautoclaim(
            self._stream,
            self._group,
            self._name,
            min_idle_time=round(1_000 * self._claim_after),
            start_id=self._claimed,
            count=count,
        )
        self.expired += len(gone)
        if self._claimed in {_START, _START.encode()}:
            self._next_claim = time.monotonic() + min(max(self._claim_after, 1.0), _CLAIM_EVERY)
        return list(entries)

    def _messages(self, entries: Entries) -> list[Message]:
        """Return entries as messages; those that were trimmed while they waited are counted and
        acknowledged.
        """
        messages = []
        for name, fields in entries:
            if not fields:
                self._client.xack(self._stream, self._group, name)
                self.expired += 1
                continue
            self._taken.append(name)
            entry = name.decode()
            parts = {_text(field): _text(value) for field, value in fields.items()}
            messages.append(
                Message(
                    f"{self._stream}/{entry}",
                    stable_id("redis", self._stream, entry),
                    _time_of(entry),
                    None,
                    parts,
                )
            )
        return messages

    def commit(self) -> None:
        if self._taken:
            with self._errors():
                self._client.xack(self._stream, self._group, *self._taken)
                self._taken.clear()

    def rest(self) -> None:
        """Do nothing: a consumer of a stream is not asked whether it lives."""

    @property
    def at_end(self) -> bool:
        return self._empty and self._own is None and self._claimed in {_START, _START.encode()}

    def lag(self) -> float:
        with suppress(self._redis.RedisError):
            for group in self._client.xinfo_groups(self._stream):
                if _text(group["name"]) == self._group:
                    waiting = group.get("lag")  # Redis does not know it after some trims
                    return math.nan if waiting is None else int(waiting) + int(group["pending"])
        return math.nan

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn the errors of the client into ours. A group that is gone is made again, at the
        oldest entry: whatever was stored already counts once.
        """
        try:
            yield
        except self._redis.RedisError as problem:
            if "NOGROUP" in str(problem):
                with suppress(self._redis.RedisError):
                    self._join("0")
                self._own, self._claimed = "0", _START
                self._taken.clear()
            said = first_line(problem)
            raise SourceUnavailableError(
                f"{self.where}: "
                + (said.replace(self._password, "***") if self._password else said),
                fix="name the file of its certificate authority in the environment variable "
                "SSL_CERT_FILE"
                if "certificate verify failed" in said
                else "check that the server runs, its address, and user and password where it "
                "wants some",
                parameter="source",
            ) from None


def _time_of(entry: str) -> float | None:
    """Return when an entry was added, in seconds since 1970; None where its id is a
    number that the writer has chosen.
    """
    milliseconds = int(entry.split("-", maxsplit=1)[0])
    return milliseconds / 1_000 if milliseconds >= _LEAST else None


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
