"""The store for several processes and machines that is a PostgreSQL database (14 or later). Install
with `distilrec[postgresql]`.

All tables are in one schema, named by the prefix. A transaction first locks the rows of its users,
in the order of their ids, so that transactions never wait for each other in a circle. Positions
come from a sequence while the lock is held: those of one user are committed in their order, and a
reader who asks for what lies after a position misses nothing, although the sequence has gaps. What
is counted over all users (outcomes, items, erasures) is written last, under the lock of a row of
`counters`.

| table | what |
|---|---|
| counters | numbers: version of the schema; last change of an item; erasures, and cleaned ones |
| settings | settings, and the salt of the hashes of erased users |
| users | epoch and features; no epoch where only impressions are known of a user |
| events | events; the order of a user's positions is that of their arrival |
| merged | ids that were taken over into a user |
| shown | impressions; `mark` is the hash of event id and item |
| marks, outcomes, provenances, batches | see `distilrec.stores.outcomes` |
| items | item records; the order of `change` is that of their last changes |
| erased | hashes of erased users |
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import msgspec

from distilrec.errors import (
    ConfigError,
    StoreError,
    StoreUnavailableError,
    missing_extra,
)
from distilrec.stores.locks import OwnersLock
from distilrec.stores.opening import shown
from distilrec.stores.outcomes import OUTCOME_DAYS, Outcomes, Sum, add_up, counted, marks_of
from distilrec.stores.postgresql_lines import Line, escaped, explained, unescaped
from distilrec.stores.records import (
    IMPRESSION,
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
    merged,
    new_epoch,
    page_of,
    taken_over,
)

# Step n takes a schema from version n to n + 1. Released steps are never changed, only followed by
# new ones.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE settings (name text PRIMARY KEY, value text NOT NULL);
    CREATE TABLE users (user_id text COLLATE "C" PRIMARY KEY, epoch text, features bytea)
        WITH (fillfactor = 70);
    CREATE TABLE events (
        position bigint GENERATED ALWAYS AS IDENTITY,
        user_id text COLLATE "C" NOT NULL,
        event_id text COLLATE "C" NOT NULL,
        item_id text COLLATE "C" NOT NULL,
        event_type text COLLATE "C" NOT NULL,
        timestamp double precision NOT NULL,
        received double precision NOT NULL,
        PRIMARY KEY (user_id, position),
        UNIQUE (user_id, event_id)
    );
    CREATE INDEX events_by_time ON events (timestamp, event_type, item_id);
    CREATE TABLE merged (user_id text COLLATE "C", source text COLLATE "C",
        PRIMARY KEY (user_id, source));
    CREATE INDEX merged_sources ON merged (source);
    CREATE TABLE shown (user_id text COLLATE "C", mark bytea, item_id text COLLATE "C" NOT NULL,
        timestamp double precision NOT NULL, PRIMARY KEY (user_id, mark));
    CREATE INDEX shown_by_time ON shown (user_id, timestamp);
    CREATE TABLE marks (recommendation bytea, mark bytea, number double precision NOT NULL,
        PRIMARY KEY (recommendation, mark));
    CREATE TABLE outcomes (day bigint, provenance text COLLATE "C", position bigint,
        measure text COLLATE "C", amount double precision NOT NULL,
        PRIMARY KEY (day, provenance, position, measure)) WITH (fillfactor = 70);
    CREATE TABLE provenances (provenance text COLLATE "C" PRIMARY KEY, description text NOT NULL);
    CREATE TABLE batches (batch text PRIMARY KEY, added double precision NOT NULL);
    CREATE TABLE items (item_id text COLLATE "C" PRIMARY KEY, change bigint NOT NULL UNIQUE,
        record bytea NOT NULL);
    CREATE TABLE erased (hash bytea PRIMARY KEY);
    """,
)
_COUNTERS = "items", "outcomes", "erasures", "cleaned"
_CONNECT_SECONDS = 2
_MILLISECONDS = 10_000  # that a statement may take
_IDLE_MILLISECONDS = 10_000  # that a process may pause within a transaction
_ATTEMPTS = 5  # of a transaction that the server gave up
_BATCH_SECONDS = 86_400  # for which a batch of outcomes is remembered
_SHOWN_SECONDS = 3600 * SHOWN_HOURS
_LONGEST_NAME = 63  # bytes; PostgreSQL cuts longer ones
_DURABLE = "fsync", "full_page_writes", "synchronous_commit"

# What looks rows up by their keys is planned once, also while the tables are small.
_PLANNED_ONCE = (
    "SET jit TO off; SET plan_cache_mode TO force_generic_plan; SET enable_seqscan TO off"
)

# Changes where another server answers, or where the table of events was made or emptied again.
_GENERATION = (
    "extract(epoch FROM pg_postmaster_start_time())::text || '.'"
    " || pg_relation_filenode(to_regclass('events'))::text"
)
_LOCK = """
INSERT INTO users (user_id, epoch)
SELECT user_id, epoch FROM unnest(%s::text[], %s::text[])
    WITH ORDINALITY AS new (user_id, epoch, number) ORDER BY number
ON CONFLICT (user_id) DO UPDATE SET epoch = excluded.epoch
    WHERE users.epoch IS NULL AND excluded.epoch IS NOT NULL
"""
_APPEND = """
INSERT INTO events (user_id, event_id, item_id, event_type, timestamp, received)
SELECT user_id, event_id, item_id, event_type, timestamp, received
FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::float8[], %s::float8[])
    WITH ORDINALITY AS new (user_id, event_id, item_id, event_type, timestamp, received, number)
ORDER BY number
ON CONFLICT (user_id, event_id) DO NOTHING
RETURNING user_id, event_id, position
"""
_APPEND_SHOWN = """
INSERT INTO shown (user_id, mark, item_id, timestamp)
SELECT * FROM unnest(%s::text[], %s::bytea[], %s::text[], %s::float8[])
ON CONFLICT DO NOTHING RETURNING user_id, mark
"""
_FORGET_SHOWN = """
DELETE FROM shown USING unnest(%s::text[], %s::float8[]) AS limits (user_id, oldest)
WHERE shown.user_id = limits.user_id AND shown.timestamp < limits.oldest
"""
_KEEP_LATEST_SHOWN = """
DELETE FROM shown WHERE (user_id, mark) IN (
    SELECT old.user_id, old.mark FROM unnest(%s::text[]) AS names (name), LATERAL (
        SELECT user_id, mark FROM shown WHERE user_id = name ORDER BY timestamp DESC OFFSET %s
    ) AS old
)
"""
_READ = f"""
SELECT {_GENERATION}, known.epoch, known.features,
    EXISTS (SELECT FROM erased WHERE erased.hash = asked.hash), new.*
FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bytea[])
    WITH ORDINALITY AS asked (user_id, epoch, position, hash, number)
LEFT JOIN users AS known ON known.user_id = asked.user_id AND known.epoch IS NOT NULL
LEFT JOIN LATERAL (
    SELECT array_agg(position), array_agg(item_id), array_agg(event_type), array_agg(timestamp),
        array_agg(received), array_agg(event_id)
    FROM (
        SELECT * FROM events
        WHERE events.user_id = asked.user_id AND events.position > CASE
            WHEN known.epoch || '.' || {_GENERATION} = asked.epoch THEN asked.position ELSE 0 END
        ORDER BY events.position LIMIT %s
    ) AS part
) AS new ON true
ORDER BY asked.number
"""  # noqa: S608 - of constants
_MERGE_EVENTS = """
UPDATE events SET user_id = %(target)s, event_id = %(mark)s || event_id
WHERE user_id = %(source)s AND NOT EXISTS (
    SELECT FROM events AS own
    WHERE own.user_id = %(target)s AND own.event_id = %(mark)s || events.event_id
)
"""
_MERGE_SHOWN = """
UPDATE shown SET user_id = %(target)s WHERE user_id = %(source)s AND NOT EXISTS (
    SELECT FROM shown AS own WHERE own.user_id = %(target)s AND own.mark = shown.mark
)
"""
_MERGE_NAMES = """
INSERT INTO merged SELECT %(target)s, source FROM (
    SELECT source FROM merged WHERE user_id = %(source)s UNION SELECT %(source)s
) AS names WHERE source <> %(target)s ON CONFLICT DO NOTHING
"""
_COUNTS = """
SELECT floor(timestamp / 3600)::bigint AS hour, item_id, count(*) FROM events
WHERE timestamp >= %s AND timestamp < %s AND (%s::text[] IS NULL OR event_type = ANY (%s::text[]))
GROUP BY hour, item_id
"""
_ITEMS = f"""
SELECT {_GENERATION}, counters.value, items.record, items.item_id FROM counters
LEFT JOIN items ON items.change > CASE WHEN %(after)s <= counters.value THEN %(after)s ELSE 0 END
WHERE counters.name = 'items' ORDER BY items.change
"""  # noqa: S608 - of constants

Result = TypeVar("Result")


class PostgresqlStore:
    """See `distilrec.stores.records.Store`. address: postgresql://user@host:port/database, as
    libpq takes it, several hosts included; prefix: names the schema; password: where neither the
    address, nor PGPASSWORD, nor ~/.pgpass has one.

    Raises MissingExtraError without the package `psycopg`, ConfigError for a prefix that names no
    schema, StoreUnavailableError, StoreVersionError.
    """

    shared = True

    def __init__(
        self,
        address: str,
        prefix: str = "distilrec:",
        password: str | None = None,
        migrations: Sequence[str] = MIGRATIONS,
    ) -> None:
        try:
            import psycopg
        except ImportError:
            raise missing_extra("psycopg", "postgresql") from None
        self._where, self._schema = shown(address), _schema_of(prefix)
        self._options: dict[str, Any] = {"connect_timeout": _CONNECT_SECONDS}
        try:
            self._options |= psycopg.conninfo.conninfo_to_dict(address)
        except psycopg.Error:  # whose text may hold a part of the password
            raise StoreUnavailableError(
                f"the address of the store, {self._where}, is not valid",
                fix="give postgresql://user@host:port/database, and percent-encode special "
                "characters in it",
            ) from None
        self._options |= {"application_name": "distilrec", "client_encoding": "utf8"}
        self._options |= {"tcp_user_timeout": _MILLISECONDS, "keepalives_idle": 10}
        if password is not None:
            self._options["password"] = password
        self._secrets = tuple(
            str(value) for name in ("password", "user") if (value := self._options.get(name))
        )
        self._generation = ""
        self._writer, self._reader, self._asker = (self._line() for _ in range(3))
        # What they do may take long: sums over all events, cleaning
        self._scanner, self._cleaner = (self._line(patient=True) for _ in range(2))
        self._cleaning: threading.Thread | None = None
        self._cleaning_failed = ""
        try:
            with self._errors():
                self._migrate(migrations)
            self._salt = self.first_setting("salt", secrets.token_hex(16))
        except BaseException:
            self.close()
            raise

    @property
    def generation(self) -> str:
        return self._generation

    def append(self, events: Sequence[StoredEvent]) -> list[int]:
        return self._write(lambda db: self._append(db, events)) if events else []

    def _append(self, db: Any, events: Sequence[StoredEvent]) -> list[int]:
        logged = [e for e in events if e.event_type != IMPRESSION]
        seen = [e for e in events if e.event_type == IMPRESSION]
        self._lock(db, {e.user_id for e in events}, {e.user_id for e in logged})
        new: dict[tuple[str, str | bytes], int] = {}
        if logged:
            columns = _columns((e.user_id, e.event_id, *_rest(e)) for e in logged)
            rows = db.execute(_APPEND, columns).fetchall()
            new |= {(user, event_id): position for user, event_id, position in rows}
        if seen:
            new |= dict.fromkeys(_append_shown(db, seen), -1)
        positions = [new.pop((e.user_id, _key(e)), 0) for e in events]
        attributed = [
            e for e, position in zip(events, positions, strict=True) if position and e.attribution
        ]
        if attributed:
            _attribute(db, attributed)
        return positions

    @staticmethod
    def _lock(db: Any, names: Iterable[str], known: Collection[str]) -> None:
        """Lock users until the transaction ends; those that are `known` get an epoch where they
        have none.
        """
        ordered = sorted(names)
        db.execute(_LOCK, (ordered, [new_epoch() if name in known else None for name in ordered]))

    def shown(self, user_id: str, since: float) -> dict[str, int]:
        with self._errors(), self._asker as db:
            rows = db.execute(
                "SELECT item_id, count(*) FROM shown WHERE user_id = %s AND timestamp >= %s"
                " GROUP BY item_id",
                (user_id, since),
            ).fetchall()
        return dict(rows)

    def read(self, users: Sequence[Since], at_most: int | None = None) -> list[UserRecord]:
        if not users:
            return []
        columns = _columns(users)
        hashes = [self._hash(since.user_id) for since in users]
        limit = None if at_most is None else at_most + 1
        with self._errors(), self._reader if at_most is None else self._asker as db:
            rows = db.execute(_READ, (*columns, hashes, limit), binary=True).fetchall()
            self._generation = rows[0][0]
            return [self._record(*pair, at_most) for pair in zip(users, rows, strict=True)]

    def users(self, after: str = "", at_most: int = 1_000) -> tuple[list[str], str]:
        with self._errors(), self._reader as db:
            rows = db.execute(
                "SELECT user_id FROM users WHERE user_id > %s AND epoch IS NOT NULL"
                " ORDER BY user_id LIMIT %s",
                (after, at_most),
            ).fetchall()
        return page_of([user for (user,) in rows], at_most)

    @staticmethod
    def _record(since: Since, row: tuple[Any, ...], at_most: int | None) -> UserRecord:
        generation, stored, features, erased, positions, *columns = row
        if stored is None:
            return UserRecord("", 0, True, (), None, erased)
        epoch = f"{stored}.{generation}"
        restart = epoch != since.epoch
        if positions is None:
            position = 0 if restart else since.position
            return UserRecord(epoch, position, restart, [], decoded_features(features), erased)
        more = at_most is not None and len(positions) > at_most
        events = [StoredEvent(since.user_id, *rest) for rest in zip(*columns, strict=True)][
            :at_most
        ]
        position = positions[: len(events)][-1]
        return UserRecord(
            epoch, position, restart, events, decoded_features(features), erased, more
        )

    def set_features(self, user_id: str, features: Mapping[str, object]) -> None:
        row = (user_id, new_epoch(), msgspec.json.encode(features))
        self._write(
            lambda db: db.execute(
                "INSERT INTO users VALUES (%s, %s, %s) ON CONFLICT (user_id) DO UPDATE"
                " SET epoch = excluded.epoch, features = excluded.features",
                row,
            )
        )

    def merge(self, source: str, target: str) -> int:
        return self._write(lambda db: self._merge(db, source, target))

    def _merge(self, db: Any, source: str, target: str) -> int:
        self._lock(db, {source, target}, {target})
        names = {"source": source, "target": target, "epoch": new_epoch()}
        db.execute("UPDATE users SET epoch = %(epoch)s WHERE user_id = %(target)s", names)
        if source == target:
            return 0
        names["mark"] = taken_over(self._salt, source, "")
        moved = db.execute(_MERGE_EVENTS, names).rowcount
        db.execute(_MERGE_SHOWN, names)
        db.execute(_MERGE_NAMES, names)
        db.execute(
            "UPDATE users SET features = (SELECT features FROM users WHERE user_id = %(source)s)"
            " WHERE user_id = %(target)s AND features IS NULL",
            names,
        )
        # Taken over by an id that this one had taken over before
        db.execute("DELETE FROM merged WHERE user_id = %(target)s AND source = %(target)s", names)
        for table in ("events", "shown", "merged", "users"):
            db.execute(f"DELETE FROM {table} WHERE user_id = %(source)s", names)  # noqa: S608
        db.execute(_KEEP_LATEST_SHOWN, ([target], MAX_SHOWN))
        return int(moved)

    def merged(self, user_id: str) -> list[str]:
        with self._errors(), self._asker as db:
            return _merged(db, user_id)

    def erase(self, user_id: str) -> int:
        removed = None
        while removed is None:  # until no other id is taken over meanwhile
            names = [user_id, *self.merged(user_id)]
            removed = self._write(partial(self._erase, names=names))
        # The user is erased; the rest is reported, and tried again, by `clean`.
        with suppress(StoreError):
            self.clean()
        return removed

    def _erase(self, db: Any, names: list[str]) -> int | None:
        """Remove a user and all that were taken over into this one; None where these are others."""
        self._lock(db, names, ())
        if _merged(db, names[0]) != names[1:]:
            return None
        removed = db.execute("DELETE FROM events WHERE user_id = ANY (%s)", (names,)).rowcount
        for table in ("users", "shown", "merged"):
            db.execute(f"DELETE FROM {table} WHERE user_id = ANY (%s)", (names,))  # noqa: S608
        db.execute("DELETE FROM merged WHERE source = ANY (%s)", (names,))
        db.execute(
            "INSERT INTO erased SELECT * FROM unnest(%s::bytea[]) ON CONFLICT DO NOTHING",
            ([self._hash(name) for name in names],),
        )
        _next(db, "erasures")
        return int(removed)

    def clean(self) -> str:
        """Let the server vacuum the tables, in a thread of its own: then no query finds the rows of
        erased users. Their bytes stay in free space and in the write-ahead log until others take
        their place.
        """
        with self._errors(), self._writer as db:
            numbers = dict(
                db.execute(
                    "SELECT name, value FROM counters WHERE name IN ('erasures', 'cleaned')"
                ).fetchall()
            )
        if numbers["cleaned"] >= numbers["erasures"]:
            return ""
        if self._cleaning is None or not self._cleaning.is_alive():
            if self._cleaning_failed:
                failed, self._cleaning_failed = self._cleaning_failed, ""
                return f"the tables of the server are not vacuumed ({failed})"
            self._cleaning = threading.Thread(target=self._clean, daemon=True)
            self._cleaning.start()
        return "the server is vacuuming its tables"

    def _clean(self) -> None:
        try:
            with self._errors(), self._cleaner as db:
                (number,) = db.execute(
                    "SELECT value FROM counters WHERE name = 'erasures'"
                ).fetchone()
                db.execute("VACUUM events, users, shown, merged")
                db.execute(
                    "UPDATE counters SET value = greatest(value, %s) WHERE name = 'cleaned'",
                    (number,),
                )
        except StoreError as problem:
            self._cleaning_failed = problem.message

    def erasures(self) -> int:
        with self._errors(), self._asker as db:
            self._generation, number = db.execute(
                f"SELECT {_GENERATION}, value FROM counters WHERE name = 'erasures'"  # noqa: S608
            ).fetchone()
        return int(number)

    def erased_among(self, user_ids: Iterable[str]) -> list[str]:
        with self._errors(), self._scanner as db:
            hashes = {row[0] for row in db.execute("SELECT hash FROM erased").fetchall()}
        return [user for user in user_ids if self._hash(user) in hashes] if hashes else []

    def counts(
        self, first: int, last: int, event_types: Collection[str] | None = None
    ) -> dict[tuple[int, str], int]:
        types = None if event_types is None else list(event_types)
        with self._errors(), self._scanner as db:
            rows = db.execute(
                _COUNTS, (3600.0 * first, 3600.0 * (last + 1), types, types)
            ).fetchall()
        return {(hour, item): number for hour, item, number in rows}

    def add_outcomes(
        self, batch: str, sums: Mapping[Sum, float], provenances: Mapping[str, str]
    ) -> None:
        self._write(lambda db: _add_outcomes(db, batch, sums, provenances))

    def outcomes(self, first: int, last: int) -> Outcomes:
        with self._errors(), self._scanner as db:
            rows = db.execute(
                "SELECT day, provenance, position, measure, amount FROM outcomes"
                " WHERE day >= %s AND day <= %s",
                (first, last),
            ).fetchall()
            described = db.execute("SELECT provenance, description FROM provenances").fetchall()
        sums = {Sum(*key): amount for *key, amount in rows}
        named = {key.provenance for key in sums}
        return Outcomes(sums, {name: text for name, text in described if name in named})

    def put_item(self, record: ItemRecord) -> None:
        self._write(lambda db: self._put_item(db, record))

    @staticmethod
    def _put_item(db: Any, record: ItemRecord) -> None:
        number = _next(db, "items")  # also the lock: changes are committed in their order
        row = db.execute(
            "SELECT record FROM items WHERE item_id = %s", (record.item_id,)
        ).fetchone()
        before = decoded_item(row[0], record.item_id) if row else None
        db.execute(
            "INSERT INTO items VALUES (%s, %s, %s) ON CONFLICT (item_id) DO UPDATE"
            " SET change = excluded.change, record = excluded.record",
            (record.item_id, number, msgspec.json.encode(merged(before, record))),
        )

    def items(self, after: int = 0) -> tuple[list[ItemRecord], int]:
        with self._errors(), self._scanner as db:
            rows = db.execute(_ITEMS, {"after": after}).fetchall()
        self._generation, last = rows[0][:2]
        return decoded_items((raw, item) for *_, raw, item in rows if raw is not None), last

    def setting(self, name: str) -> str | None:
        with self._errors(), self._asker as db:
            return _setting(db, name)

    def set_setting(self, name: str, value: str | None) -> None:
        def change(db: Any) -> None:
            if value is None:
                db.execute("DELETE FROM settings WHERE name = %s", (name,))
                return
            db.execute(
                "INSERT INTO settings VALUES (%s, %s) ON CONFLICT (name) DO UPDATE"
                " SET value = excluded.value",
                (name, value),
            )

        self._write(change)

    def first_setting(self, name: str, value: str) -> str:
        if (there := self.setting(name)) is not None:  # also where nothing can be written
            return there

        def change(db: Any) -> str:
            db.execute("INSERT INTO settings VALUES (%s, %s) ON CONFLICT DO NOTHING", (name, value))
            return _setting(db, name) or value

        return self._write(change)

    def check(self) -> list[str]:
        """Also writes one transaction: a server that does not is noticed here, not at the first
        event.
        """
        self.set_setting("checked", secrets.token_hex(4))
        with self._errors(), self._writer as db:
            rows = db.execute(
                "SELECT name, setting FROM pg_settings WHERE name = ANY (%s)", (list(_DURABLE),)
            ).fetchall()
        return [
            f"the server runs with {name} = off: a crash of its machine can lose events or damage "
            f"the database (set {name} = on)"
            for name, setting in rows
            if setting == "off"
        ]

    def verify(self) -> None:
        """Do nothing: a server checks its pages when it reads them, if it has checksums."""

    def close(self) -> None:
        while self._cleaning is not None and self._cleaning.is_alive():
            self._cleaner.cancel()
            self._cleaning.join(0.1)
        for line in (self._writer, self._reader, self._asker, self._scanner, self._cleaner):
            line.close()

    def _hash(self, user_id: str) -> bytes:
        return erased_hash(self._salt, user_id)

    def _line(self, *, patient: bool = False) -> Line:
        """Return a connection. patient: for statements that may take long."""
        lock = OwnersLock(
            f"the store {self._where}", "open the store after the fork, in each child"
        )
        return Line(lambda: self._connect(patient), lock)

    def _connect(self, patient: bool) -> Any:
        import psycopg
        from psycopg import sql

        connection: Any = psycopg.connect(**self._options, autocommit=True)
        try:
            _keep_nul(connection)
            connection.execute(
                sql.SQL(
                    "SET search_path TO {}; SET statement_timeout TO {};"
                    " SET idle_in_transaction_session_timeout TO {};"
                ).format(
                    sql.Identifier(self._schema),
                    0 if patient else _MILLISECONDS,
                    _IDLE_MILLISECONDS,
                )
            )
            if not patient:
                connection.execute(_PLANNED_ONCE)
            encoding, commit, generation = connection.execute(
                "SELECT current_setting('server_encoding'), current_setting('synchronous_commit'),"
                f" {_GENERATION}"
            ).fetchone()
            if encoding != "UTF8":
                raise StoreUnavailableError(
                    f"the database of the store {self._where} has the encoding {encoding}",
                    fix="create one with ENCODING 'UTF8'",
                )
            if commit == "off":
                connection.execute("SET synchronous_commit TO on")
        except BaseException:
            connection.close()
            raise
        if generation is not None:  # there are tables
            self._generation = generation
        return connection

    def _migrate(self, migrations: Sequence[str]) -> None:
        with self._writer as db:
            if self._version(db, migrations) < len(migrations):
                with db.transaction():
                    self._upgrade(db, migrations)
        with self._reader:  # which says what the generation of the new tables is
            pass

    def _version(self, db: Any, migrations: Sequence[str]) -> int:
        if db.execute("SELECT to_regclass('counters')").fetchone()[0] is None:
            return 0
        (version,) = db.execute("SELECT value FROM counters WHERE name = 'schema'").fetchone()
        check_schema(f"the store {self._where}", version, len(migrations))
        return int(version)

    def _upgrade(self, db: Any, migrations: Sequence[str]) -> None:
        """Take the schema to the newest version; other processes wait."""
        from psycopg import sql

        name = f"distilrec {self._schema}"
        db.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (name,))
        (there,) = db.execute(
            "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %s)", (self._schema,)
        ).fetchone()
        if not there:
            db.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self._schema)))
        version = self._version(db, migrations)
        if version == 0:
            db.execute("CREATE TABLE counters (name text PRIMARY KEY, value bigint NOT NULL)")
            for counter in ("schema", *_COUNTERS):
                db.execute("INSERT INTO counters VALUES (%s, 0)", (counter,))
        for migration in migrations[version:]:
            db.execute(migration)
        db.execute("UPDATE counters SET value = %s WHERE name = 'schema'", (len(migrations),))

    def _write(self, work: Callable[[Any], Result]) -> Result:
        """Return what a function returns that writes in one transaction, after its commit."""
        from psycopg import errors

        with self._errors(), self._writer as db:
            for _ in range(_ATTEMPTS - 1):
                with suppress(errors.DeadlockDetected, errors.SerializationFailure):
                    with db.transaction():
                        result = work(db)
                    return result
            with db.transaction():
                return work(db)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with explained(self._where, self._secrets):
            yield


def _schema_of(prefix: str) -> str:
    """Return the name of the schema that a prefix means. Raises ConfigError."""
    name = prefix.rstrip(":")
    if not name or "\0" in name or len(name.encode()) > _LONGEST_NAME or name.startswith("pg_"):
        raise ConfigError(
            f"the prefix {prefix!r} does not name a schema of PostgreSQL",
            fix=f"give 1 to {_LONGEST_NAME} bytes that do not begin with pg_",
            parameter="store_prefix",
        )
    return name


def _keep_nul(connection: Any) -> None:
    """Let texts that go through a connection hold NUL."""
    from psycopg.types import string

    class Dumper(string.StrDumper):
        def dump(self, obj: str) -> Any:
            return super().dump(escaped(obj))

    class Loader(string.TextLoader):
        def load(self, data: Any) -> str | bytes:
            text = super().load(data)
            return unescaped(text) if isinstance(text, str) else text

    class BinaryLoader(string.TextBinaryLoader):
        def load(self, data: Any) -> str | bytes:
            text = super().load(data)
            return unescaped(text) if isinstance(text, str) else text

    connection.adapters.register_dumper(str, Dumper)
    connection.adapters.register_loader("text", Loader)
    connection.adapters.register_loader("text", BinaryLoader)


def _rest(event: StoredEvent) -> tuple[str, str, float, float]:
    return event.item_id, event.event_type, float(event.timestamp), float(event.received)


def _key(event: StoredEvent) -> str | bytes:
    """Return what an event of a user counts once by."""
    if event.event_type != IMPRESSION:
        return event.event_id
    text = f"{len(event.event_id)} {event.event_id}{event.item_id}"
    return hashlib.sha256(text.encode()).digest()[:16]


def _columns(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    """Return the columns of rows, for `unnest`."""
    return [list(column) for column in zip(*rows, strict=True)]


def _append_shown(db: Any, events: Sequence[StoredEvent]) -> list[tuple[str, bytes]]:
    """Keep impressions; return user and mark of those that are new."""
    columns = zip(
        *((e.user_id, _key(e), e.item_id, float(e.timestamp)) for e in events), strict=True
    )
    new = db.execute(_APPEND_SHOWN, [list(column) for column in columns]).fetchall()
    latest: dict[str, float] = {}  # by user, when one arrived
    for event in events:
        latest[event.user_id] = max(latest.get(event.user_id, event.received), event.received)
    oldest = [float(received) - _SHOWN_SECONDS for received in latest.values()]
    db.execute(_FORGET_SHOWN, (list(latest), oldest))
    db.execute(_KEEP_LATEST_SHOWN, (list(latest), MAX_SHOWN))
    return list(map(tuple, new))


def _attribute(db: Any, events: Sequence[StoredEvent]) -> None:
    """Count what events say of answers, and forget the marks of old answers."""
    said = [event.attribution for event in events if event.attribution is not None]
    names = [(a.recommendation, mark) for a in said for mark in dict.fromkeys(marks_of(a))]
    _take(db, "outcomes")
    rows = db.execute(
        "SELECT recommendation, mark, number FROM marks WHERE (recommendation, mark) IN"
        " (SELECT * FROM unnest(%s::bytea[], %s::bytea[]))",
        _columns(names),
    ).fetchall()
    known = {(answer, mark): number for answer, mark, number in rows}
    changed: dict[tuple[bytes, bytes], float] = {}
    sums: dict[Sum, float] = {}
    for a in said:
        found = {m: known[key] for m in marks_of(a) if (key := (a.recommendation, m)) in known}
        added, new = counted(a, found)
        add_up(sums, added)
        for mark, number in new.items():
            known[a.recommendation, mark] = changed[a.recommendation, mark] = number
    if changed:
        db.execute(
            "INSERT INTO marks SELECT * FROM unnest(%s::bytea[], %s::bytea[], %s::float8[])"
            " ON CONFLICT (recommendation, mark) DO UPDATE SET number = excluded.number",
            [
                list(c)
                for c in zip(*((*key, number) for key, number in changed.items()), strict=True)
            ],
        )
    _add_up(db, sums)
    oldest = max(int(e.received) - e.attribution.keep for e in events if e.attribution is not None)
    db.execute("DELETE FROM marks WHERE recommendation < %s", (max(oldest, 0).to_bytes(4),))


def _add_outcomes(
    db: Any, batch: str, sums: Mapping[Sum, float], provenances: Mapping[str, str]
) -> None:
    _take(db, "outcomes")
    now = time.time()
    new = db.execute(
        "INSERT INTO batches VALUES (%s, %s) ON CONFLICT DO NOTHING", (batch, now)
    ).rowcount
    if not new:
        return
    db.execute("DELETE FROM batches WHERE added < %s", (now - _BATCH_SECONDS,))
    if provenances:
        db.execute(
            "INSERT INTO provenances SELECT * FROM unnest(%s::text[], %s::text[])"
            " ON CONFLICT DO NOTHING",
            (list(provenances), list(provenances.values())),
        )
    _add_up(db, sums)
    if sums:
        oldest = max(key.day for key in sums) - OUTCOME_DAYS
        db.execute("DELETE FROM outcomes WHERE day < %s", (oldest,))


def _add_up(db: Any, sums: Mapping[Sum, float]) -> None:
    if sums:
        db.execute(
            "INSERT INTO outcomes SELECT * FROM"
            " unnest(%s::bigint[], %s::text[], %s::bigint[], %s::text[], %s::float8[])"
            " ON CONFLICT (day, provenance, position, measure)"
            " DO UPDATE SET amount = outcomes.amount + excluded.amount",
            [
                list(c)
                for c in zip(*((*key, float(amount)) for key, amount in sums.items()), strict=True)
            ],
        )


def _take(db: Any, counter: str) -> None:
    """Lock a counter until the transaction ends."""
    db.execute("SELECT FROM counters WHERE name = %s FOR UPDATE", (counter,))


def _next(db: Any, counter: str) -> int:
    """Raise a counter by one, and lock it until the transaction ends; return its new value."""
    (number,) = db.execute(
        "UPDATE counters SET value = value + 1 WHERE name = %s RETURNING value", (counter,)
    ).fetchone()
    return int(number)


def _merged(db: Any, user_id: str) -> list[str]:
    rows = db.execute("SELECT source FROM merged WHERE user_id = %s", (user_id,)).fetchall()
    return sorted(source for (source,) in rows)


def _setting(db: Any, name: str) -> str | None:
    row = db.execute("SELECT value FROM settings WHERE name = %s", (name,)).fetchone()
    return None if row is None else str(row[0])
