"""The default store: one SQLite file, for one process. Durable (WAL, synchronous=FULL), checked,
migrated on opening.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec

from distilrec.errors import (
    StoreCorruptedError,
    StoreError,
    StoreUnavailableError,
)
from distilrec.stores.locks import OwnersLock
from distilrec.stores.outcomes import OUTCOME_DAYS, Outcomes, Sum, add_up, counted, marks_of
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

# Step n takes a database from schema version n to n + 1. Released steps are never changed, only
# followed by new ones.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE users (id INTEGER PRIMARY KEY, user_id TEXT NOT NULL UNIQUE, \
epoch TEXT NOT NULL, features BLOB);
    CREATE TABLE events (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        user INTEGER NOT NULL REFERENCES users (id),
        event_id TEXT NOT NULL,
        item_id TEXT NOT NULL,
        event_type TEXT NOT NULL,
        timestamp REAL NOT NULL,
        received REAL NOT NULL
    );
    CREATE UNIQUE INDEX events_once ON events (user, event_id);
    CREATE INDEX events_in_order ON events (user, position);
    CREATE TABLE items (item_id TEXT PRIMARY KEY, change INTEGER NOT NULL UNIQUE, \
record BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE erased (hash BLOB PRIMARY KEY) WITHOUT ROWID;
    """,
    """
    CREATE TABLE merged (user INTEGER NOT NULL REFERENCES users (id), source TEXT NOT NULL, \
PRIMARY KEY (user, source)) WITHOUT ROWID;
    CREATE INDEX merged_sources ON merged (source);
    """,
    "CREATE INDEX events_by_time ON events (timestamp, event_type, item_id);",
    """
    CREATE TABLE shown (user_id TEXT NOT NULL, event_id TEXT NOT NULL, item_id TEXT NOT NULL, \
timestamp REAL NOT NULL, PRIMARY KEY (user_id, event_id, item_id)) WITHOUT ROWID;
    CREATE INDEX shown_by_time ON shown (user_id, timestamp, item_id);
    """,
    """
    CREATE TABLE marks (recommendation BLOB NOT NULL, mark BLOB NOT NULL, number REAL NOT NULL, \
PRIMARY KEY (recommendation, mark)) WITHOUT ROWID;
    CREATE TABLE outcomes (day INTEGER NOT NULL, provenance TEXT NOT NULL, \
position INTEGER NOT NULL, measure TEXT NOT NULL, amount REAL NOT NULL, \
PRIMARY KEY (day, provenance, position, measure)) WITHOUT ROWID;
    CREATE TABLE provenances (provenance TEXT PRIMARY KEY, description TEXT NOT NULL) WITHOUT ROWID;
    """,
)
_BUSY_MILLISECONDS = 5_000
_LOW_SPACE = 256 * 2**20
_BATCH = "outcomes_batch"  # name of the setting: the batch of outcomes that was added last
_CORRUPTED = ("malformed", "not a database", "corrupt")


class SqliteStore:
    """See `distilrec.stores.records.Store`.

    Raises StoreUnavailableError where another process has the file or it cannot be made,
    StoreVersionError for a newer schema, StoreCorruptedError for a file that is not a database.
    """

    shared = False

    def __init__(self, path: Path | str, migrations: Sequence[str] = MIGRATIONS) -> None:
        self.path = Path(path).resolve()  # one lock for all links to a file
        self._reading, self._scanning, self._writing = (self._owners_lock() for _ in range(3))
        self._foreign = 0  # how often other programs have written to the file
        with ExitStack() as undo:
            self._locks = self._lock(undo)
            with self._errors():
                self._writer = self._connect()
                undo.callback(self._writer.close)
                self._migrate(migrations)
                self._reader = self._connect()
                undo.callback(self._reader.close)
                self._scanner = self._connect()
                self._version = self._data_version()
            self._files = [
                (name, self._identity(name)) for name in (self.path, Path(f"{self.path}-wal"))
            ]
            undo.pop_all()  # it is open now: nothing to undo
        self._salt = self.setting("salt") or ""
        if not self._salt:
            self._salt = secrets.token_hex(16)
            self.set_setting("salt", self._salt)

    @property
    def generation(self) -> str:
        return str(self._foreign)

    def append(self, events: Sequence[StoredEvent]) -> list[int]:
        with self._transaction() as db:
            users: dict[str, int] = {}
            positions = []
            latest: dict[str, float] = {}  # by user with impressions, when one arrived
            attributed = []
            for event in events:
                if event.event_type == IMPRESSION:
                    positions.append(_append_shown(db, event))
                    received = latest.get(event.user_id, event.received)
                    latest[event.user_id] = max(received, event.received)
                else:
                    user = users.get(event.user_id)
                    if user is None:
                        user = users[event.user_id] = self._user(db, event.user_id)
                    positions.append(_append(db, user, event))
                if event.attribution is not None and positions[-1]:
                    attributed.append(event)
            if attributed:
                _attribute(db, attributed)
            for name, received in latest.items():
                db.execute(
                    "DELETE FROM shown WHERE user_id = ? AND timestamp < ?",
                    (name, received - 3600 * SHOWN_HOURS),
                )
                _keep_latest_shown(db, name)
        return positions

    def read(self, users: Sequence[Since], at_most: int | None = None) -> list[UserRecord]:
        lock, db = (
            (self._scanning, self._scanner) if at_most is None else (self._reading, self._reader)
        )
        with lock, self._errors():
            self._check_files()
            db.execute("BEGIN")
            try:
                return [self._read(db, since, at_most) for since in users]
            finally:
                db.execute("ROLLBACK")

    def users(self, after: str = "", at_most: int = 1_000) -> tuple[list[str], str]:
        with self._scanning, self._errors():
            self._check_files()
            rows = self._scanner.execute(
                "SELECT user_id FROM users WHERE user_id > ? ORDER BY user_id LIMIT ?",
                (after, at_most),
            ).fetchall()
        return page_of([user for (user,) in rows], at_most)

    def _read(self, db: sqlite3.Connection, since: Since, at_most: int | None) -> UserRecord:
        erased = (
            db.execute(
                "SELECT 1 FROM erased WHERE hash = ?", (self._hash(since.user_id),)
            ).fetchone()
            is not None
        )
        row = db.execute(
            "SELECT id, epoch, features FROM users WHERE user_id = ?", (since.user_id,)
        ).fetchone()
        if row is None:
            return UserRecord("", 0, True, (), None, erased)
        user, epoch, features = row
        restart = epoch != since.epoch
        rows = db.execute(
            "SELECT position, item_id, event_type, timestamp, received, event_id FROM events"
            " WHERE user = ? AND position > ? ORDER BY position LIMIT ?",
            (user, 0 if restart else since.position, -1 if at_most is None else at_most + 1),
        ).fetchall()
        more = at_most is not None and len(rows) > at_most
        rows = rows[:at_most]
        events = [StoredEvent(since.user_id, *rest) for _, *rest in rows]
        position = rows[-1][0] if rows else (0 if restart else since.position)
        decoded = decoded_features(features)
        return UserRecord(epoch, position, restart, events, decoded, erased, more)

    def shown(self, user_id: str, since: float) -> dict[str, int]:
        with self._reading, self._errors():
            self._check_files()
            rows = self._reader.execute(
                "SELECT item_id, count(*) FROM shown WHERE user_id = ? AND timestamp >= ?"
                " GROUP BY item_id",
                (user_id, since),
            ).fetchall()
        return dict(rows)

    def set_features(self, user_id: str, features: Mapping[str, object]) -> None:
        with self._transaction() as db:
            user = self._user(db, user_id)
            db.execute(
                "UPDATE users SET features = ?, epoch = ? WHERE id = ?",
                (msgspec.json.encode(features), new_epoch(), user),
            )

    def merge(self, source: str, target: str) -> int:
        with self._transaction() as db:
            into, moved = self._user(db, target), 0
            row = db.execute("SELECT id FROM users WHERE user_id = ?", (source,)).fetchone()
            if row is not None and row[0] != into:
                moved = self._take_over(db, row[0], source, into)
            self._take_over_shown(db, source, target)
            if source != target:
                db.execute("INSERT OR IGNORE INTO merged VALUES (?, ?)", (into, source))
            # Taken over by an id that this one had taken over before
            db.execute("DELETE FROM merged WHERE user = ? AND source = ?", (into, target))
            db.execute("UPDATE users SET epoch = ? WHERE id = ?", (new_epoch(), into))
        return moved

    def _take_over(self, db: sqlite3.Connection, user: int, name: str, into: int) -> int:
        """Move the events, features and merged ids of a user; return the number of events."""
        moved = db.execute(
            "UPDATE OR IGNORE events SET user = ?, event_id = ? || event_id WHERE user = ?",
            (into, taken_over(self._salt, name, ""), user),
        ).rowcount
        db.execute("DELETE FROM events WHERE user = ?", (user,))  # what was taken over before
        db.execute(
            "UPDATE users SET features = (SELECT features FROM users WHERE id = ?)"
            " WHERE id = ? AND features IS NULL",
            (user, into),
        )
        db.execute("UPDATE OR IGNORE merged SET user = ? WHERE user = ?", (into, user))
        db.execute("DELETE FROM merged WHERE user = ?", (user,))
        db.execute("DELETE FROM users WHERE id = ?", (user,))
        return moved

    @staticmethod
    def _take_over_shown(db: sqlite3.Connection, source: str, target: str) -> None:
        if source != target:
            db.execute("UPDATE OR IGNORE shown SET user_id = ? WHERE user_id = ?", (target, source))
            db.execute("DELETE FROM shown WHERE user_id = ?", (source,))
            _keep_latest_shown(db, target)

    def merged(self, user_id: str) -> list[str]:
        with self._reading, self._errors():
            rows = self._reader.execute(
                "SELECT source FROM merged WHERE user = (SELECT id FROM users WHERE user_id = ?)"
                " ORDER BY source",
                (user_id,),
            ).fetchall()
        return [source for (source,) in rows]

    def erase(self, user_id: str) -> int:
        with self._transaction() as db:
            rows = db.execute(
                "SELECT source FROM merged WHERE user = (SELECT id FROM users WHERE user_id = ?)",
                (user_id,),
            ).fetchall()
            removed = sum(self._erase(db, name) for name in (user_id, *(name for (name,) in rows)))
        # The user is erased; the rest is reported, and tried again, by `clean`.
        with suppress(StoreError):
            self.clean()
        return removed

    def _erase(self, db: sqlite3.Connection, user_id: str) -> int:
        """Remove one user and their name from all others; return the number of events."""
        row = db.execute("SELECT id FROM users WHERE user_id = ?", (user_id,)).fetchone()
        removed = 0
        if row is not None:
            removed = db.execute("DELETE FROM events WHERE user = ?", row).rowcount
            db.execute("DELETE FROM merged WHERE user = ?", row)
            db.execute("DELETE FROM users WHERE id = ?", row)
        db.execute("DELETE FROM shown WHERE user_id = ?", (user_id,))
        db.execute("DELETE FROM merged WHERE source = ?", (user_id,))
        db.execute("INSERT OR IGNORE INTO erased VALUES (?)", (self._hash(user_id),))
        return removed

    def clean(self) -> str:
        """Empty the log of earlier page contents; in the database itself, deleted content is
        overwritten with zeros (secure_delete).
        """
        with self._writing, self._errors():
            self._writer.execute("PRAGMA busy_timeout=0")
            try:
                busy, _, _ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self._writer.execute(f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}")
        return (
            "another program reads the database, whose log is emptied when it has finished"
            if busy
            else ""
        )

    def erasures(self) -> int:
        with self._writing, self._errors():
            self._look_for_others()
            return int(self._writer.execute("SELECT count(*) FROM erased").fetchone()[0])

    def erased_among(self, user_ids: Iterable[str]) -> list[str]:
        with self._reading, self._errors():
            hashes = {row[0] for row in self._reader.execute("SELECT hash FROM erased")}
        return [user for user in user_ids if self._hash(user) in hashes] if hashes else []

    def counts(
        self, first: int, last: int, event_types: Collection[str] | None = None
    ) -> dict[tuple[int, str], int]:
        types = None if event_types is None else msgspec.json.encode(list(event_types)).decode()
        with self._scanning, self._errors():
            self._check_files()
            rows = self._scanner.execute(
                "SELECT CAST(timestamp / 3600 AS INTEGER) AS hour, item_id, count(*) FROM events"
                " WHERE timestamp >= ? AND timestamp < ?"
                " AND (? IS NULL OR event_type IN (SELECT value FROM json_each(?)))"
                " GROUP BY hour, item_id",
                (3600.0 * first, 3600.0 * (last + 1), types, types),
            ).fetchall()
        return {(hour, item): number for hour, item, number in rows}

    def add_outcomes(
        self, batch: str, sums: Mapping[Sum, float], provenances: Mapping[str, str]
    ) -> None:
        with self._transaction() as db:
            row = db.execute("SELECT value FROM settings WHERE name = ?", (_BATCH,)).fetchone()
            if row == (batch,):
                return
            db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (_BATCH, batch))
            db.executemany("INSERT OR IGNORE INTO provenances VALUES (?, ?)", provenances.items())
            _add_up(db, sums)
            if sums:
                oldest = max(key.day for key in sums) - OUTCOME_DAYS
                db.execute("DELETE FROM outcomes WHERE day < ?", (oldest,))

    def outcomes(self, first: int, last: int) -> Outcomes:
        with self._reading, self._errors():
            self._check_files()
            rows = self._reader.execute(
                "SELECT day, provenance, position, measure, amount FROM outcomes"
                " WHERE day >= ? AND day <= ?",
                (first, last),
            ).fetchall()
            sums = {Sum(*key): amount for *key, amount in rows}
            named = {key.provenance for key in sums}
            described = self._reader.execute("SELECT * FROM provenances").fetchall()
        return Outcomes(sums, {name: text for name, text in described if name in named})

    def put_item(self, record: ItemRecord) -> None:
        with self._transaction() as db:
            row = db.execute(
                "SELECT record FROM items WHERE item_id = ?", (record.item_id,)
            ).fetchone()
            before = decoded_item(row[0], record.item_id) if row else None
            db.execute(
                "INSERT OR REPLACE INTO items VALUES (?, (SELECT coalesce(max(change), 0) + 1 "
                "FROM items), ?)",
                (record.item_id, msgspec.json.encode(merged(before, record))),
            )

    def items(self, after: int = 0) -> tuple[list[ItemRecord], int]:
        with self._reading, self._errors():
            last = self._reader.execute("SELECT coalesce(max(change), 0) FROM items").fetchone()[0]
            rows = self._reader.execute(
                "SELECT record, item_id FROM items WHERE change > ? AND change <= ? ORDER BY "
                "change",
                (after if after <= last else 0, last),
            ).fetchall()
        return decoded_items(rows), last

    def setting(self, name: str) -> str | None:
        with self._reading, self._errors():
            row = self._reader.execute(
                "SELECT value FROM settings WHERE name = ?", (name,)
            ).fetchone()
        return row[0] if row else None

    def set_setting(self, name: str, value: str | None) -> None:
        with self._transaction() as db:
            if value is None:
                db.execute("DELETE FROM settings WHERE name = ?", (name,))
            else:
                db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))

    def first_setting(self, name: str, value: str) -> str:
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO settings VALUES (?, ?)", (name, value))
            row = db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return str(row[0])

    def check(self) -> list[str]:
        """Also writes one transaction: a read-only disk is noticed here, not at the first event."""
        self.set_setting("checked", secrets.token_hex(4))
        free = shutil.disk_usage(self.path.parent).free
        warnings = (
            [f"only {free // 2**20:,} MiB are free on the disk of {self.path}"]
            if free < _LOW_SPACE
            else []
        )
        if os.stat(self.path).st_nlink > 1:
            warnings.append(
                f"{self.path} has other names (hard links): opened by another one, it would lack "
                "what is in its log"
            )
        return warnings

    def verify(self) -> None:
        """Read the whole database. Raises StoreCorruptedError."""
        with self._reading, self._errors():
            problems = [row[0] for row in self._reader.execute("PRAGMA quick_check(5)")]
        if problems != ["ok"]:
            raise self._corrupted("; ".join(problems))

    def close(self) -> None:
        if self._reading.elsewhere:
            return  # a copy that a fork made: the process that opened the file closes it
        with self._reading, self._scanning, self._writing:
            self._reader.close()
            self._scanner.close()
            self._writer.close()
            # After the connections: closing the file takes SQLite's own locks from it.
            for handle in self._locks:
                os.close(handle)

    def _owners_lock(self) -> OwnersLock:
        return OwnersLock(
            f"the store {self.path}",
            "open the store after the fork, in one process; use Redis (redis://…) or PostgreSQL "
            "(postgresql://…) where several share users",
            file=str(self.path),
        )

    def _lock(self, undo: ExitStack) -> list[int]:
        """Locks a file beside the database, which stays when the database is replaced, and the
        database itself, for the sake of hard links. SQLite does not use this kind of lock.
        """
        handles = []
        for name in (f"{self.path}.lock", self.path):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)  # user data: no one else's
            except OSError as problem:
                raise StoreUnavailableError(
                    f"the store {self.path} cannot be opened: {problem.strerror}",
                    fix="check the folder and its permissions",
                    file=str(self.path),
                ) from None
            undo.callback(os.close, handle)
            handles.append(handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StoreUnavailableError(
                    f"the store {self.path} is in use by another process",
                    fix="stop the other service, or use Redis or PostgreSQL (--store redis://… or "
                    "postgresql://…) where several processes share users",
                    file=str(self.path),
                ) from None
        return handles

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "secure_delete=ON",
            f"busy_timeout={_BUSY_MILLISECONDS}",
        ):
            db.execute(f"PRAGMA {pragma}")
        db.execute(
            "SELECT count(*) FROM sqlite_master"
        ).fetchone()  # now the write-ahead log exists
        return db

    @staticmethod
    def _identity(name: Path) -> tuple[int, int] | None:
        try:
            found = os.stat(name)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _check_files(self) -> None:
        """Raise StoreUnavailableError where the files under the names of the store are not those
        that are open.
        """
        for name, identity in self._files:
            if self._identity(name) != identity:
                raise StoreUnavailableError(
                    f"{name} has been deleted or replaced while it is in use: nothing can be "
                    "stored",
                    fix="restart the service; to restore a backup, stop it first",
                    file=str(name),
                )

    def _data_version(self) -> int:
        return int(self._writer.execute("PRAGMA data_version").fetchone()[0])

    def _look_for_others(self) -> None:
        """Notices that another program has written to the database, for example restored a backup
        of it.
        """
        if (version := self._data_version()) != self._version:
            self._version = version
            self._foreign += 1

    def _migrate(self, migrations: Sequence[str]) -> None:
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        check_schema(str(self.path), version, len(migrations), file=str(self.path))
        for step in range(version, len(migrations)):
            self._writer.executescript(
                f"BEGIN IMMEDIATE; {migrations[step]} PRAGMA user_version = {step + 1}; COMMIT;"
            )

    def _user(self, db: sqlite3.Connection, user_id: str) -> int:
        row = db.execute("SELECT id FROM users WHERE user_id = ?", (user_id,)).fetchone()
        if row is None:
            row = db.execute(
                "INSERT INTO users (user_id, epoch) VALUES (?, ?) RETURNING id",
                (user_id, new_epoch()),
            ).fetchone()
        return int(row[0])

    def _hash(self, user_id: str) -> bytes:
        return erased_hash(self._salt, user_id)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._writing, self._errors():
            self._check_files()
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                self._look_for_others()
                yield self._writer
                self._writer.execute("COMMIT")
                self._check_files()  # what was written into a deleted file is not acknowledged
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as problem:
            text = str(problem)
            if any(word in text for word in _CORRUPTED):
                raise self._corrupted(text) from None
            raise StoreUnavailableError(
                f"the store {self.path} cannot be used: {text}",
                fix="check the space and the permissions of its disk; the same request may be "
                "sent again",
                file=str(self.path),
            ) from None
        except msgspec.MsgspecError as problem:
            raise self._corrupted(str(problem)) from None

    def _corrupted(self, what: str) -> StoreCorruptedError:
        return StoreCorruptedError(
            f"the store {self.path} is damaged: {what}",
            fix="restore it from a backup, or rescue what can be read with `sqlite3 FILE .recover`",
            file=str(self.path),
        )


def _append(db: sqlite3.Connection, user: int, event: StoredEvent) -> int:
    """Add an event to a log; return its position, 0 for a repetition."""
    row = db.execute(
        "INSERT INTO events (user, event_id, item_id, event_type, timestamp, received)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (user, event_id) DO NOTHING RETURNING position",
        (user, event.event_id, event.item_id, event.event_type, event.timestamp, event.received),
    ).fetchone()
    return row[0] if row else 0


def _append_shown(db: sqlite3.Connection, event: StoredEvent) -> int:
    """Keep an impression; return -1, 0 for a repetition."""
    return -db.execute(
        "INSERT OR IGNORE INTO shown VALUES (?, ?, ?, ?)",
        (event.user_id, event.event_id, event.item_id, event.timestamp),
    ).rowcount


def _keep_latest_shown(db: sqlite3.Connection, user_id: str) -> None:
    db.execute(
        "DELETE FROM shown WHERE user_id = ? AND (event_id, item_id) IN (SELECT event_id, item_id"
        " FROM shown WHERE user_id = ? ORDER BY timestamp DESC LIMIT -1 OFFSET ?)",
        (user_id, user_id, MAX_SHOWN),
    )


def _attribute(db: sqlite3.Connection, events: Iterable[StoredEvent]) -> None:
    """Count what events say of answers, and forget the marks of old answers."""
    sums: dict[Sum, float] = {}
    marks: dict[tuple[bytes, bytes], float] = {}  # to be set
    oldest = 0
    for event in events:
        attribution = event.attribution
        assert attribution is not None
        answer, names = attribution.recommendation, marks_of(attribution)
        found = dict(
            db.execute(
                "SELECT mark, number FROM marks WHERE recommendation = ? AND mark IN (?, ?, ?, ?)",
                (answer, *names),
            ).fetchall()
        )
        found |= {name: marks[answer, name] for name in names if (answer, name) in marks}
        added, new = counted(attribution, found)
        add_up(sums, added)
        marks |= {(answer, name): number for name, number in new.items()}
        oldest = max(oldest, int(event.received) - attribution.keep)
    rows = [(*key, number) for key, number in marks.items()]
    db.executemany("INSERT OR REPLACE INTO marks VALUES (?, ?, ?)", rows)
    _add_up(db, sums)
    db.execute("DELETE FROM marks WHERE recommendation < ?", (oldest.to_bytes(4),))


def _add_up(db: sqlite3.Connection, sums: Mapping[Sum, float]) -> None:
    db.executemany(
        "INSERT INTO outcomes VALUES (?, ?, ?, ?, ?) ON CONFLICT (day, provenance, position,"
        " measure) DO UPDATE SET amount = amount + excluded.amount",
        [(*key, amount) for key, amount in sums.items()],
    )
