"""The store for several processes: Redis or Valkey, one server or one hash slot of a cluster.
Install with `distilrec[redis]`.

An event is as durable as the server makes it: `appendonly yes` and `appendfsync always` for the
guarantee that SQLite gives; `check` warns of less.

In a cluster the prefix is a hash tag, so that all keys are in one slot and `redis_slot` follows it.
A script makes up the names of its keys. So that it never fails half-way because a part of them has
moved to another node, each names `schema`, which is always there, and `never`, which never is: a
node refuses that as long as the slot moves, and nothing else.

| key (after the prefix) | what |
|---|---|
| schema, salt | version of this layout; salt of the hashes of erased users |
| never | never there |
| settings | hash of settings |
| user:ID | hash: epoch, features |
| events:ID | list of events, oldest first |
| ids:ID | set of the event ids of that list |
| merged:ID, merged-into:ID | sets: the ids taken over into a user; who took an id over |
| shown:ID | sorted set of impressions, event id and item, by time; leaves by itself |
| marks:ANSWER | hash: what was counted of an answer; leaves by itself |
| outcomes:DAY | hash: sums of outcomes of a day since 1970; leaves by itself |
| outcomes:batch:NAME | a batch of sums that was added lately; leaves by itself |
| provenances | hash of what is said about provenances |
| counts:HOUR | hash: events of an hour since 1970 by type and item; leaves by itself |
| items, items:changes | hash of item records; sorted set of items by their last change |
| items:counter | number of the last change of an item |
| erased, erased:counter | set of hashes; number of erasures |
| erased:pending | number of the latest erasure whose user may still be in the append-only file |
"""

from __future__ import annotations

import heapq
import re
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from distilrec.errors import (
    ConfigError,
    StoreCorruptedError,
    StoreError,
    StoreUnavailableError,
    missing_extra,
)
from distilrec.stores.opening import shown
from distilrec.stores.outcomes import DAY, MARKS, OUTCOME_DAYS, Attribution, Outcomes, Sum
from distilrec.stores.records import (
    IMPRESSION,
    KEPT_HOURS,
    MAX_SHOWN,
    SHOWN_HOURS,
    ItemRecord,
    Since,
    StoredEvent,
    UserRecord,
    check_schema,
    decoded_features,
    decoded_item,
    decoded_items,
    erased_hash,
    hour_of,
    merged,
    new_epoch,
    taken_over,
)

SCHEMA_VERSION = 1
_TIMEOUT = 2.0  # seconds
_READ_ATTEMPTS = 10
_SHOWN_SECONDS = 3600 * SHOWN_HOURS

# Several events together, all or none; ARGV: prefix, how many impressions of a user are kept, for
# how many seconds, then user, event id, epoch of a new user, payload, hour, or nothing for an event
# that is not counted, until when it is counted, type and item, and attribution of each, or nothing.
# The payload of an impression is its item, the hour its time and the next one when it arrived; its
# type is empty. What an attribution adds: see `distilrec.stores.outcomes.counted`.
_APPEND = """
local positions, prefix, most, seconds = {}, ARGV[1], ARGV[2], ARGV[3]
local names = {i = {'impressions', 'shown'}, c = {'clicks', 'clicked'},
               v = {'conversions', 'converted'}}

local function attribute(packed)
  local answer, day, provenance, code, item, event, position, value, keep, forget =
    unpack(cmsgpack.unpack(packed))
  local marks, sums = prefix .. 'marks:' .. answer, prefix .. 'outcomes:' .. day
  local function add(place, measure, amount)
    redis.call('HINCRBYFLOAT', sums, provenance .. '\\0' .. place .. '\\0' .. measure, amount)
  end
  local mark = code .. item
  if code == 'v' then mark = mark .. event end
  if redis.call('HEXISTS', marks, mark) == 1 then return end
  local shown = redis.call('HGET', marks, 'i' .. item)
  local clicked = redis.call('HGET', marks, 'c' .. item)
  if position == '0' then position = shown or clicked or '0' end
  redis.call('HSET', marks, mark, position)
  add(position, names[code][1], 1)
  if code == 'i' and clicked then add(position, 'clicked_impressions', 1) end
  if code == 'c' and shown then add(shown, 'clicked_impressions', 1) end
  local before = redis.call('HGET', marks, code)
  if not before then add('0', names[code][2], 1) end
  if code == 'v' then
    local total = tonumber(before or '0')
    add(position, 'value', value)
    add('0', 'squares', string.format('%.17g', value * (2 * total + value)))
    redis.call('HSET', marks, code, string.format('%.17g', total + value))
  elseif not before then
    redis.call('HSET', marks, code, '0')
  end
  redis.call('EXPIREAT', marks, keep)
  redis.call('EXPIREAT', sums, forget)
end

for i = 4, #ARGV, 8 do
  if ARGV[i + 6] == '' then
    local key = prefix .. 'shown:' .. ARGV[i]
    local member = ARGV[i + 1] .. '\\0' .. ARGV[i + 3]
    positions[#positions + 1] = -redis.call('ZADD', key, 'NX', ARGV[i + 4], member)
    redis.call('ZREMRANGEBYSCORE', key, '-inf', '(' .. ARGV[i + 5])
    redis.call('ZREMRANGEBYRANK', key, 0, -most - 1)
    redis.call('EXPIRE', key, seconds)
  elseif redis.call('SADD', prefix .. 'ids:' .. ARGV[i], ARGV[i + 1]) == 1 then
    redis.call('HSETNX', prefix .. 'user:' .. ARGV[i], 'epoch', ARGV[i + 2])
    positions[#positions + 1] = redis.call('RPUSH', prefix .. 'events:' .. ARGV[i], ARGV[i + 3])
    if ARGV[i + 4] ~= '' then
      local key = prefix .. 'counts:' .. ARGV[i + 4]
      if redis.call('HINCRBY', key, ARGV[i + 6], 1) == 1 then
        redis.call('EXPIREAT', key, ARGV[i + 5])
      end
    end
  else
    positions[#positions + 1] = 0
  end
  if ARGV[i + 7] ~= '' and positions[#positions] ~= 0 then attribute(ARGV[i + 7]) end
end
return positions
"""


# Users and everything about them; ARGV: prefix, then each user and hash: first one user, then all
# that were taken over into this one; -1 where these are others. Begins with a removal: a server
# whose memory is full refuses a script only up to its first write.
_ERASE = """
local prefix, removed = ARGV[1], 0
local known = redis.call('SMEMBERS', prefix .. 'merged:' .. ARGV[2])
if #known ~= #ARGV / 2 - 1.5 then return -1 end
for i = 4, #ARGV, 2 do
  if redis.call('SISMEMBER', prefix .. 'merged:' .. ARGV[2], ARGV[i]) == 0 then return -1 end
end
for i = 2, #ARGV, 2 do
  local user = ARGV[i]
  local events = redis.call('LRANGE', prefix .. 'events:' .. user, 0, -1)
  removed = removed + #events
  redis.call('DEL', prefix .. 'user:' .. user, prefix .. 'events:' .. user,
             prefix .. 'ids:' .. user, prefix .. 'shown:' .. user)
  for _, payload in ipairs(events) do
    local event = cmsgpack.unpack(payload)
    local key = prefix .. 'counts:' .. string.format('%d', math.floor(event[3] / 3600))
    local field = event[2] .. '\\0' .. event[1]
    if event[6] and redis.call('HEXISTS', key, field) == 1 then
      if redis.call('HINCRBY', key, field, -1) == 0 then redis.call('HDEL', key, field) end
    end
  end
  for _, source in ipairs(redis.call('SMEMBERS', prefix .. 'merged:' .. user)) do
    redis.call('SREM', prefix .. 'merged-into:' .. source, user)
  end
  for _, other in ipairs(redis.call('SMEMBERS', prefix .. 'merged-into:' .. user)) do
    redis.call('SREM', prefix .. 'merged:' .. other, user)
  end
  redis.call('DEL', prefix .. 'merged:' .. user, prefix .. 'merged-into:' .. user)
end
for i = 2, #ARGV, 2 do redis.call('SADD', prefix .. 'erased', ARGV[i + 1]) end
redis.call('SET', prefix .. 'erased:pending', redis.call('INCR', prefix .. 'erased:counter'))
return removed
"""

# Sums of outcomes; ARGV: prefix, batch, for how many seconds it is remembered, then day, when the
# day is forgotten, field and amount of each.
_ADD = """
local prefix = ARGV[1]
local batch = prefix .. 'outcomes:batch:' .. ARGV[2]
if not redis.call('SET', batch, '1', 'NX', 'EX', ARGV[3]) then return end
for i = 4, #ARGV, 4 do
  redis.call('HINCRBYFLOAT', prefix .. 'outcomes:' .. ARGV[i], ARGV[i + 2], ARGV[i + 3])
  redis.call('EXPIREAT', prefix .. 'outcomes:' .. ARGV[i], ARGV[i + 1])
end
"""
_BATCH_SECONDS = 86_400

# KEYS: key; ARGV: value.
_DELETE_IF_EQUAL = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""


class _Payload(msgspec.Struct, frozen=True, array_like=True):
    item_id: str
    event_type: str
    timestamp: float
    received: float
    event_id: str
    counted: bool = False

    @property
    def field(self) -> str:
        """The field of this event in the counts of its hour."""
        return f"{self.event_type}\0{self.item_id}"


class RedisStore:
    """See `distilrec.stores.records.Store`. url: redis://, rediss:// or unix://, or of a cluster
    redis+cluster:// or rediss+cluster://; prefix: of every key, in a cluster a hash tag; password:
    where the url has none.

    Raises MissingExtraError without the package `redis`, StoreUnavailableError, StoreVersionError,
    ConfigError for a prefix that cannot be a hash tag.
    """

    shared = True

    def __init__(self, url: str, prefix: str = "distilrec:", password: str | None = None) -> None:
        try:
            import redis

            from distilrec.stores.redis_problems import check_files
            from distilrec.stores.redis_slot import SlotClient
        except ModuleNotFoundError:
            raise missing_extra("redis", "redis") from None
        self._redis, self._cluster = redis, "+cluster://" in url[:17]
        self._tls = url.startswith("rediss")
        self._prefix = prefix = _tagged(prefix) if self._cluster else prefix
        self._shortened = 0  # how often a log was found to be shorter than it had been
        # The latest erasure that a rewrite which was started here covers.
        self._rewriting: bytes | None = None
        options = {
            "password": password,
            "socket_timeout": _TIMEOUT,
            "socket_connect_timeout": _TIMEOUT,
            "health_check_interval": 15,
        }
        self._client: Any
        self._run_id: Callable[[], str]  # of the server
        self._moves: Callable[[], int] = lambda: 0  # to another node
        try:
            if self._cluster:
                self._client = SlotClient(url, prefix, **options)
                self._run_id, self._moves = self._client.run_id, self._client.moves
            else:
                self._client, self._run_id = self._one_server(url, options)
            self._client.connection_pool.make_connection()  # refuses options that it does not know
        except (ValueError, TypeError, redis.RedisError):  # that may show a part of the password
            raise StoreUnavailableError(
                f"the address of the store, {shown(url)}, is not valid",
                fix="give redis://host:port/number or redis+cluster://host:port,host:port, with "
                "TLS and its options rediss:// or rediss+cluster://, and percent-encode a user "
                "name and a password in it",
            ) from None
        self._where = shown(url)
        check_files(self._client.connection_pool.connection_kwargs, self._where)
        self._append = self._client.register_script(_APPEND)
        self._named = [prefix + "schema", prefix + "never"]
        with self._errors():
            for name, value in (("schema", str(SCHEMA_VERSION)), ("salt", secrets.token_hex(16))):
                # A server whose memory is full refuses even to try.
                if not self._client.exists(prefix + name):
                    self._client.setnx(prefix + name, value)
            version, salt = (_text(self._client.get(prefix + name)) for name in ("schema", "salt"))
        check_schema(f"the store {self._where}", int(version), SCHEMA_VERSION)
        self._salt = salt

    @property
    def generation(self) -> str:
        return f"{self._run_id()}.{self._moves()}.{self._shortened}"

    def append(self, events: Sequence[StoredEvent]) -> list[int]:
        arguments: list[str | bytes] = [self._prefix, str(MAX_SHOWN), str(_SHOWN_SECONDS)]
        for e in events:
            if e.event_type == IMPRESSION:
                oldest = repr(e.received - _SHOWN_SECONDS)
                arguments += [e.user_id, e.event_id, "", e.item_id, repr(e.timestamp), oldest, ""]
                arguments.append(_packed(e.attribution))
                continue
            hour = hour_of(e.timestamp)
            counted = hour_of(e.received) - hour < KEPT_HOURS
            payload = _Payload(
                e.item_id, e.event_type, e.timestamp, e.received, e.event_id, counted
            )
            arguments += [e.user_id, e.event_id, new_epoch(), msgspec.msgpack.encode(payload)]
            until = str(3600 * (hour + KEPT_HOURS + 1))
            arguments += [str(hour) if counted else "", until, payload.field]
            arguments.append(_packed(e.attribution))
        with self._errors():
            positions = self._append(keys=self._named, args=arguments) if events else []
            return [int(position) for position in positions]

    def shown(self, user_id: str, since: float) -> dict[str, int]:
        with self._errors():
            found = self._client.zrangebyscore(self._shown(user_id), repr(since), "+inf")
        return dict(Counter(_text(member).split("\0", 1)[1] for member in found))

    def _shown(self, user_id: str) -> str:
        return f"{self._prefix}shown:{user_id}"

    def read(self, users: Sequence[Since], at_most: int | None = None) -> list[UserRecord]:
        records: list[UserRecord | None] = [None] * len(users)
        waiting = list(range(len(users)))
        questions = list(users)
        for _ in range(_READ_ATTEMPTS):
            for index, record in zip(
                waiting, self._read([questions[index] for index in waiting], at_most), strict=True
            ):
                records[index] = record
                if record is not None and record.restart and questions[index].position:
                    records[index] = None  # their log begins from the start: all of it is needed
                if records[index] is None:
                    questions[index] = Since(users[index].user_id)
            waiting = [index for index in waiting if records[index] is None]
            if not waiting:
                return [record for record in records if record is not None]
        raise StoreUnavailableError(
            f"the store {self._where} changes faster than it can be read",
            fix="send the request again",
        )

    def _read(self, users: Sequence[Since], at_most: int | None) -> list[UserRecord | None]:
        """None for a user who was changed while being read. Not a transaction: a server that is
        full refuses those.
        """
        with self._errors():
            generation = self.generation
            pipe = self._client.pipeline(transaction=False)
            for user_id, _, position in users:
                pipe.hmget(f"{self._prefix}user:{user_id}", "epoch", "features")
                last = -1 if at_most is None else position + at_most - 1
                pipe.lrange(f"{self._prefix}events:{user_id}", position, last)
                pipe.llen(f"{self._prefix}events:{user_id}")
                pipe.sismember(self._prefix + "erased", self._hash(user_id))
                pipe.hget(f"{self._prefix}user:{user_id}", "epoch")
            answers: Iterator[Any] = iter(pipe.execute())
            records = [self._record(since, *(next(answers) for _ in range(5))) for since in users]
            return records if generation == self.generation else [None] * len(users)

    def _record(
        self,
        since: Since,
        user: Sequence[bytes | None],
        payloads: Sequence[bytes],
        length: int,
        erased: bool,
        epoch_after: bytes | None,
    ) -> UserRecord | None:
        stored, features = user
        if stored != epoch_after:
            return None
        if stored is None:
            return UserRecord("", 0, True, (), None, bool(erased))
        # Another server may lack events that this one had
        epoch = f"{stored.decode()}.{self.generation}"
        restart = epoch != since.epoch
        if not restart and length < since.position:
            self._shortened += 1
            return None
        events = []
        for payload in payloads:
            e = msgspec.msgpack.decode(payload, type=_Payload)
            events.append(
                StoredEvent(
                    since.user_id, e.item_id, e.event_type, e.timestamp, e.received, e.event_id
                )
            )
        position = since.position + len(events)
        return UserRecord(
            epoch,
            position,
            restart,
            events,
            decoded_features(features),
            bool(erased),
            length > position,
        )

    def users(self, after: str = "", at_most: int = 1_000) -> tuple[list[str], str]:
        start = f"{self._prefix}events:"
        literal = re.sub(r"([][*?\\^])", r"\\\1", start)
        place, _, server = after.partition("@")
        first = int(place or 0)
        with self._errors():
            self._client.exists(*self._named)  # not while the keys are on their way to another node
            now = self._run_id()
            # A place that another server, or another run of it, has given says nothing here.
            found = self._client.scan(first if server == now else 0, f"{literal}*", at_most)
            self._client.exists(*self._named)
        cursor, keys = found
        if now != self._run_id():
            return [], f"0@{now}"  # from the start
        users = [_text(key).removeprefix(start) for key in keys]
        return users, f"{cursor}@{now}" if cursor else ""

    def set_features(self, user_id: str, features: Mapping[str, object]) -> None:
        values = {"features": msgspec.json.encode(features), "epoch": new_epoch()}
        with self._errors():
            self._client.hset(f"{self._prefix}user:{user_id}", mapping=values)

    def merge(self, source: str, target: str) -> int:
        parts = ("user", "events", "ids", "merged")
        of_source, of_target = (
            {part: f"{self._prefix}{part}:{name}" for part in parts} for name in (source, target)
        )

        def change(pipe: Any) -> int:
            own = pipe.lrange(of_target["events"], 0, -1)
            known = {id_.decode() for id_ in pipe.smembers(of_target["ids"])}
            old = pipe.lrange(of_source["events"], 0, -1)
            new, doubled = self._taken_over(old, source, known)
            counted = [
                (key, payload.field)
                for payload in doubled
                if payload.counted
                and pipe.hexists(key := self._counts(hour_of(payload.timestamp)), payload.field)
            ]
            features = pipe.hget(of_source["user"], "features")
            names = {*map(_text, pipe.smembers(of_source["merged"])), source} - {target}
            pipe.multi()
            pipe.hset(of_target["user"], "epoch", new_epoch())
            if source == target:
                return 0
            if new:
                decoded = (_decoded(own), new)
                in_order = heapq.merge(*decoded, key=lambda payload: payload.received)
                pipe.delete(of_target["events"])
                pipe.rpush(of_target["events"], *map(msgspec.msgpack.encode, in_order))
                pipe.sadd(of_target["ids"], *(payload.event_id for payload in new))
            if features is not None:
                pipe.hsetnx(of_target["user"], "features", features)
            for key, field in counted:
                pipe.hincrby(key, field, -1)
            both = self._shown(target), self._shown(source)
            pipe.zunionstore(both[0], both, aggregate="MAX")
            pipe.zremrangebyrank(both[0], 0, -MAX_SHOWN - 1)
            pipe.expire(both[0], _SHOWN_SECONDS)
            pipe.delete(*of_source.values(), both[1])
            pipe.srem(of_target["merged"], target)
            pipe.sadd(of_target["merged"], *names)
            for name in names:
                pipe.srem(f"{self._prefix}merged-into:{name}", source)
                pipe.sadd(f"{self._prefix}merged-into:{name}", target)
            return len(new)

        watched = (*of_source.values(), *of_target.values())
        with self._errors():
            return int(self._client.transaction(change, *watched, value_from_callable=True))

    def _taken_over(
        self, payloads: Sequence[bytes], source: str, known: set[str]
    ) -> tuple[list[_Payload], list[_Payload]]:
        """Return the events of a user as another one keeps them, and apart from these, those that
        this one knows already.
        """
        new: list[_Payload] = []
        doubled: list[_Payload] = []
        for payload in _decoded(payloads):
            event_id = taken_over(self._salt, source, payload.event_id)
            part = doubled if event_id in known else new
            part.append(msgspec.structs.replace(payload, event_id=event_id))
        return new, doubled

    def merged(self, user_id: str) -> list[str]:
        with self._errors():
            return sorted(map(_text, self._client.smembers(f"{self._prefix}merged:{user_id}")))

    def erase(self, user_id: str) -> int:
        removed = -1
        while removed < 0:  # until no other id is taken over meanwhile
            names = [user_id, *self.merged(user_id)]
            pairs = [text for name in names for text in (name, self._hash(name))]
            with self._errors():
                removed = int(self._client.eval(_ERASE, 2, *self._named, self._prefix, *pairs))
        # The user is erased; the rest is reported, and tried again, by `clean`.
        with suppress(StoreError):
            self.clean()
        return removed

    def clean(self) -> str:
        """Let the server rewrite its append-only file: that takes the bytes out of it, if it
        began after the erasure.
        """
        key = self._prefix + "erased:pending"
        with self._errors():
            pending: bytes | None = self._client.get(key)
            if pending is None:
                return ""
            about = self._client.info("persistence")
            busy = about.get("aof_rewrite_in_progress") or about.get("aof_rewrite_scheduled")
            if not about.get("aof_enabled"):
                self._rewriting, busy = pending, False
            if self._rewriting is not None and not busy:
                covered, self._rewriting = self._rewriting, None
                if about.get("aof_last_bgrewrite_status", "ok") == "ok":
                    self._client.eval(_DELETE_IF_EQUAL, 1, key, covered)
                    if covered == pending:
                        return ""
            if self._rewriting is None:
                try:
                    self._client.bgrewriteaof()
                    self._rewriting = pending
                except self._redis.ResponseError as problem:
                    if "in progress" not in str(problem):
                        return f"the server does not rewrite its append-only file ({problem})"
        return "the server is rewriting its append-only file"

    def erasures(self) -> int:
        with self._errors():
            return int(self._client.get(self._prefix + "erased:counter") or 0)

    def erased_among(self, user_ids: Iterable[str]) -> list[str]:
        with self._errors():
            hashes = set(map(_text, self._client.smembers(self._prefix + "erased")))
        return [user for user in user_ids if self._hash(user) in hashes] if hashes else []

    def _counts(self, hour: int) -> str:
        return f"{self._prefix}counts:{hour}"

    def counts(
        self, first: int, last: int, event_types: Collection[str] | None = None
    ) -> dict[tuple[int, str], int]:
        hours = range(first, last + 1)
        with self._errors():
            pipe = self._client.pipeline(transaction=False)
            for hour in hours:
                pipe.hgetall(self._counts(hour))
            answers = pipe.execute()
        found: dict[tuple[int, str], int] = {}
        for hour, counted in zip(hours, answers, strict=True):
            for field, number in counted.items():
                event_type, item_id = _text(field).split("\0", 1)
                if int(number) > 0 and (event_types is None or event_type in event_types):
                    found[hour, item_id] = found.get((hour, item_id), 0) + int(number)
        return found

    def add_outcomes(
        self, batch: str, sums: Mapping[Sum, float], provenances: Mapping[str, str]
    ) -> None:
        arguments = [self._prefix, batch, str(_BATCH_SECONDS)]
        for key, amount in sums.items():
            field = f"{key.provenance}\0{key.position}\0{key.measure}"
            arguments += [str(key.day), str(_forgotten(key.day)), field, repr(amount)]
        with self._errors():
            if provenances:
                self._client.hset(self._prefix + "provenances", mapping=provenances)
            self._client.eval(_ADD, 2, *self._named, *arguments)

    def outcomes(self, first: int, last: int) -> Outcomes:
        days = range(first, last + 1)
        with self._errors():
            pipe = self._client.pipeline(transaction=False)
            for day in days:
                pipe.hgetall(f"{self._prefix}outcomes:{day}")
            pipe.hgetall(self._prefix + "provenances")
            *answers, described = pipe.execute()
        sums = {}
        for day, fields in zip(days, answers, strict=True):
            for field, amount in fields.items():
                provenance, position, measure = _text(field).split("\0")
                sums[Sum(day, provenance, int(position), measure)] = float(amount)
        named = {key.provenance for key in sums}
        texts = {_text(name): _text(text) for name, text in described.items()}
        return Outcomes(sums, {name: text for name, text in texts.items() if name in named})

    def put_item(self, record: ItemRecord) -> None:
        table = self._prefix + "items"

        def change(pipe: Any) -> None:
            raw = pipe.hget(table, record.item_id)
            before = None if raw is None else decoded_item(raw, record.item_id)
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
            last = int(self._client.get(table + ":counter") or 0)
            start = after if after <= last else 0
            changed = self._client.zrangebyscore(table + ":changes", f"({start}", str(last))
            found = self._client.hmget(table, changed) if changed else []
        rows = zip(found, map(_text, changed), strict=True)
        return decoded_items((raw, item) for raw, item in rows if raw is not None), last

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

    def first_setting(self, name: str, value: str) -> str:
        with self._errors():
            # A server whose memory is full refuses even to try.
            if not self._client.hexists(self._prefix + "settings", name):
                self._client.hsetnx(self._prefix + "settings", name, value)
            return _text(self._client.hget(self._prefix + "settings", name))

    def check(self) -> list[str]:
        with self._errors():
            self._client.get(self._prefix + "schema")  # of a cluster, the node that has the keys
            nothing = [self._prefix, str(MAX_SHOWN), str(_SHOWN_SECONDS)]
            errors = self._redis.exceptions
            with suppress(errors.AskError, errors.TryAgainError):  # the slot is moving
                self._append(keys=self._named, args=nothing)  # refused where the user may not
            try:
                replicas = int(self._client.info("replication").get("connected_slaves", 0))
                found: dict[str, str] = self._client.config_get(
                    "appendonly", "appendfsync", "maxmemory-policy"
                )
            except self._redis.ResponseError:
                return [
                    "the server does not show its configuration: whether events survive its crash "
                    "is not known"
                ]
        options = {_text(name): _text(value) for name, value in found.items()}
        warnings = []
        if options.get("appendonly") != "yes":
            warnings.append(
                "the server has no append-only file: a crash of it loses events (set `appendonly "
                "yes`)"
            )
        elif options.get("appendfsync") != "always":
            warnings.append(
                f"the server writes its file `{options.get('appendfsync')}`: a crash of its "
                "machine can lose a second "
                "of events (set `appendfsync always`)"
            )
        if options.get("maxmemory-policy", "noeviction") != "noeviction":
            warnings.append(
                "the server evicts keys when memory is short: events get lost (set "
                "maxmemory-policy noeviction)"
            )
        if self._cluster and replicas:
            warnings.append(
                "a replica takes over when the node dies, and may lack the latest acknowledged "
                "events: it follows asynchronously (set `cluster-replica-no-failover yes` on "
                "replicas to wait for the node instead)"
            )
        return warnings

    def verify(self) -> None:
        """Do nothing: a server checks its files when it loads them."""

    def close(self) -> None:
        self._client.close()

    def _hash(self, user_id: str) -> str:
        return erased_hash(self._salt, user_id).hex()

    def _one_server(self, url: str, options: Mapping[str, Any]) -> tuple[Any, Callable[[], str]]:
        """Return a client of one server, and which run of which server it has reached. Each new
        connection asks: after a restart, or where a replica was promoted, events may be missing
        that were read before.
        """
        from redis.backoff import ExponentialBackoff
        from redis.retry import Retry

        from distilrec.stores.redis_slot import greeted

        reached = ""

        def connected(connection: Any) -> None:
            nonlocal reached
            reached = greeted(connection) or reached

        client = self._redis.Redis.from_url(
            url,
            **options,
            # Every write may be repeated: event ids.
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.05), 1),
            redis_connect_func=connected,
        )
        return client, lambda: reached

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._redis.OutOfMemoryError:
            raise StoreUnavailableError(
                f"the store {self._where} is full (maxmemory): it can be read, and users can be "
                "erased",
                fix="give the server more memory (maxmemory), or erase users; the same request "
                "may be sent again",
            ) from None
        except self._redis.RedisError as problem:
            from distilrec.stores.redis_problems import explained

            why, fix = explained(problem, cluster=self._cluster, tls=self._tls)
            raise StoreUnavailableError(
                f"the store {self._where} cannot be used: {why}", fix=fix
            ) from None
        except msgspec.MsgspecError as problem:
            raise StoreCorruptedError(
                f"the store {self._where} holds something that distilrec did not write: {problem}",
                fix="give the service a key prefix of its own (--store-prefix), or restore a "
                "backup",
            ) from None


def _packed(event: Attribution | None) -> bytes:
    """Return an attribution as the script that appends reads it, all as texts; nothing for none."""
    if event is None:
        return b""
    day = event.given // DAY
    fields: tuple[object, ...] = (
        event.recommendation.hex(),
        day,
        event.provenance,
        MARKS[event.kind].decode(),
        event.item.hex(),
        event.event.hex(),
        event.position,
        repr(event.value),
        event.given + event.keep,
        _forgotten(day),
    )
    return msgspec.msgpack.encode([str(field) for field in fields])


def _forgotten(day: int) -> int:
    """Return when the sums of a day leave, in seconds since 1970."""
    return DAY * (day + OUTCOME_DAYS + 1)


def _tagged(prefix: str) -> str:
    """Return a prefix as a hash tag, which puts all keys into one slot: `{distilrec}:`."""
    name = prefix.rstrip(":")
    if not name or {"{", "}"} & set(name):
        raise ConfigError(
            f"the prefix {prefix!r} cannot be a hash tag, which keeps the keys of a store together",
            fix="give a prefix without braces, such as `shop:`; they are added",
            parameter="store_prefix",
        )
    return f"{{{name}}}{prefix[len(name) :]}"


def _decoded(payloads: Sequence[bytes]) -> list[_Payload]:
    return [msgspec.msgpack.decode(payload, type=_Payload) for payload in payloads]


def _text(value: str | bytes | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""
