"""The store for several processes: Redis or Valkey (one server, not a cluster). Install with `distilrec[redis]`.

An event is as durable as the server makes it: `appendonly yes` and `appendfsync always` for the guarantee that SQLite
gives; `check` warns of less.

| key (after the prefix) | what |
|---|---|
| schema, salt | version of this layout; salt of the hashes of erased users |
| settings | hash of settings |
| user:ID | hash: epoch, features |
| events:ID | list of events, oldest first |
| ids:ID | set of the event ids of that list |
| items, items:changes, items:counter | hash of item records; sorted set of items by their last change |
| erased | set of hashes |
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from distilrec.errors import StoreCorruptedError, StoreUnavailableError, StoreVersionError, missing_extra
from distilrec.stores.records import ItemRecord, Since, StoredEvent, UserRecord, merged

SCHEMA_VERSION = 1
_TIMEOUT = 2.0  # seconds

# Several events at once, all or none; ARGV: prefix, then user, event id, epoch of a new user and payload of each.
_APPEND = """
local positions, prefix = {}, ARGV[1]
for i = 2, #ARGV, 4 do
  if redis.call('SADD', prefix .. 'ids:' .. ARGV[i], ARGV[i + 1]) == 1 then
    redis.call('HSETNX', prefix .. 'user:' .. ARGV[i], 'epoch', ARGV[i + 2])
    positions[#positions + 1] = redis.call('RPUSH', prefix .. 'events:' .. ARGV[i], ARGV[i + 3])
  else
    positions[#positions + 1] = 0
  end
end
return positions
"""


class _Payload(msgspec.Struct, frozen=True, array_like=True):
    item_id: str
    event_type: str
    timestamp: float
    received: float
    event_id: str


class RedisStore:
    """See `distilrec.stores.records.Store`. url: redis://, rediss:// or unix://; prefix: of every key.

    Raises MissingExtraError without the package `redis`, StoreUnavailableError, StoreVersionError.
    """

    shared = True

    def __init__(self, url: str, prefix: str = "distilrec:") -> None:
        try:
            import redis
            from redis.backoff import ExponentialBackoff
            from redis.retry import Retry
        except ModuleNotFoundError:
            raise missing_extra("redis", "redis") from None
        self._redis, self._prefix = redis, prefix
        try:
            self._client: Any = redis.Redis.from_url(
                url,
                socket_timeout=_TIMEOUT,
                socket_connect_timeout=_TIMEOUT,
                retry=Retry(ExponentialBackoff(cap=0.2, base=0.05), 1),  # every write may be repeated: event ids
                health_check_interval=15,
            )
        except ValueError as problem:
            raise StoreUnavailableError(
                f"the address of the store is not valid: {problem}", fix="give redis://host:port/number"
            ) from None
        self._where = url.rsplit("@", 1)[-1]  # without a password
        self._append = self._client.register_script(_APPEND)
        with self._errors():
            self._client.setnx(prefix + "schema", SCHEMA_VERSION)
            self._client.setnx(prefix + "salt", secrets.token_hex(16))
            version, salt = map(_text, self._client.mget(prefix + "schema", prefix + "salt"))
        if int(version) > SCHEMA_VERSION:
            raise StoreVersionError(
                f"the store {self._where} has schema version {int(version)}; this distilrec knows up to {SCHEMA_VERSION}",
                fix="upgrade distilrec (pip install -U distilrec)",
            )
        self._salt = salt

    def append(self, events: Sequence[StoredEvent]) -> list[int]:
        arguments: list[str | bytes] = [self._prefix]
        for e in events:
            payload = msgspec.msgpack.encode(_Payload(e.item_id, e.event_type, e.timestamp, e.received, e.event_id))
            arguments += [e.user_id, e.event_id, secrets.token_hex(8), payload]
        with self._errors():
            return [int(position) for position in self._append(args=arguments)] if events else []

    def read(self, asked: Sequence[Since]) -> list[UserRecord]:
        records = self._read(asked)
        stale = [place for place, record in enumerate(records) if record.restart and asked[place].position]
        if stale:  # their log begins anew: all of it is needed
            for place, record in zip(stale, self._read([Since(asked[place].user_id) for place in stale]), strict=True):
                records[place] = record
        return records

    def _read(self, asked: Sequence[Since]) -> list[UserRecord]:
        with self._errors():
            pipe = self._client.pipeline(transaction=True)
            for user_id, _, position in asked:
                pipe.hmget(f"{self._prefix}user:{user_id}", "epoch", "features")
                pipe.lrange(f"{self._prefix}events:{user_id}", position, -1)
                pipe.sismember(self._prefix + "erased", self._hash(user_id))
            answers: Iterator[Any] = iter(pipe.execute())
            return [self._record(each, next(answers), next(answers), bool(next(answers))) for each in asked]

    @staticmethod
    def _record(asked: Since, user: Sequence[bytes | None], payloads: Sequence[bytes], erased: bool) -> UserRecord:
        epoch, features = user
        if epoch is None:
            return UserRecord("", 0, True, (), None, erased)
        events = []
        for payload in payloads:
            e = msgspec.msgpack.decode(payload, type=_Payload)
            events.append(StoredEvent(asked.user_id, e.item_id, e.event_type, e.timestamp, e.received, e.event_id))
        known = None if features is None else msgspec.json.decode(features, type=dict[str, object])
        restart = epoch.decode() != asked.epoch
        return UserRecord(epoch.decode(), asked.position + len(events), restart, events, known, erased)

    def set_features(self, user_id: str, features: Mapping[str, object]) -> None:
        values = {"features": msgspec.json.encode(features), "epoch": secrets.token_hex(8)}
        with self._errors():
            self._client.hset(f"{self._prefix}user:{user_id}", mapping=values)

    def erase(self, user_id: str) -> int:
        with self._errors():
            pipe = self._client.pipeline(transaction=True)
            pipe.llen(f"{self._prefix}events:{user_id}")
            pipe.delete(*(f"{self._prefix}{kind}:{user_id}" for kind in ("user", "events", "ids")))
            pipe.sadd(self._prefix + "erased", self._hash(user_id))
            removed = int(pipe.execute()[0])
            with suppress(self._redis.ResponseError):  # a rewrite is running already, or the server does not allow it
                self._client.bgrewriteaof()  # takes the bytes out of the append-only file as well
        return removed

    def put_item(self, record: ItemRecord) -> None:
        table = self._prefix + "items"

        def change(pipe: Any) -> None:
            raw = pipe.hget(table, record.item_id)
            before = None if raw is None else msgspec.json.decode(raw, type=ItemRecord)
            number = int(pipe.get(table + ":counter") or 0) + 1
            pipe.multi()
            pipe.hset(table, record.item_id, msgspec.json.encode(merged(before, record)))
            pipe.zadd(table + ":changes", {record.item_id: number})
            pipe.set(table + ":counter", number)

        with self._errors():
            self._client.transaction(change, table, table + ":counter")

    def items(self, after: int = 0) -> tuple[list[ItemRecord], int]:
        table = self._prefix + "items"
        with self._errors():
            changed = self._client.zrangebyscore(table + ":changes", f"({after}", "+inf", withscores=True)
            if not changed:
                return [], after
            raw = self._client.hmget(table, [item for item, _ in changed])
            return [msgspec.json.decode(each, type=ItemRecord) for each in raw], int(changed[-1][1])

    def setting(self, name: str) -> str | None:
        with self._errors():
            value = self._client.hget(self._prefix + "settings", name)
        return None if value is None else value.decode()

    def set_setting(self, name: str, value: str | None) -> None:
        with self._errors():
            if value is None:
                self._client.hdel(self._prefix + "settings", name)
            else:
                self._client.hset(self._prefix + "settings", name, value)

    def check(self) -> list[str]:
        with self._errors():
            self._client.ping()
            try:
                found: dict[str, str] = self._client.config_get("appendonly", "appendfsync", "maxmemory-policy")
            except self._redis.ResponseError:
                return ["the server does not show its configuration: whether events survive its crash is not known"]
        options = {_text(name): _text(value) for name, value in found.items()}
        warnings = []
        if options.get("appendonly") != "yes":
            warnings.append("the server has no append-only file: a crash of it loses events (set `appendonly yes`)")
        elif options.get("appendfsync") != "always":
            warnings.append(
                f"the server writes its file `{options.get('appendfsync')}`: a crash of its machine can lose a second "
                "of events (set `appendfsync always`)"
            )
        if options.get("maxmemory-policy", "noeviction") != "noeviction":
            warnings.append(
                "the server evicts keys when memory is short: events get lost (set maxmemory-policy noeviction)"
            )
        return warnings

    def close(self) -> None:
        self._client.close()

    def _hash(self, user_id: str) -> str:
        return hashlib.sha256(f"{self._salt}:{user_id}".encode()).hexdigest()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._redis.RedisError as problem:
            raise StoreUnavailableError(
                f"the store {self._where} cannot be used: {problem}",
                fix="check that the server runs and accepts writes; the same request may be sent again",
            ) from None
        except msgspec.MsgspecError as problem:
            raise StoreCorruptedError(
                f"the store {self._where} holds something that distilrec did not write: {problem}",
                fix="give the service a key prefix of its own (--store-prefix), or restore a backup",
            ) from None


def _text(value: str | bytes | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""
