"""The default store: one SQLite file, for one process. Durable (WAL, synchronous=FULL), checked, migrated on opening."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from distilrec.errors import StoreCorruptedError, StoreUnavailableError, StoreVersionError
from distilrec.stores.records import ItemRecord, Since, StoredEvent, UserRecord, merged

# Step n takes a database from schema version n to n + 1. Released steps are never changed, only followed by new ones.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE users (id INTEGER PRIMARY KEY, user_id TEXT NOT NULL UNIQUE, epoch TEXT NOT NULL, features BLOB);
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
    CREATE TABLE items (item_id TEXT PRIMARY KEY, change INTEGER NOT NULL UNIQUE, record BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE erased (hash BLOB PRIMARY KEY) WITHOUT ROWID;
    """,
)
_LOW_SPACE = 256 * 2**20
_CORRUPTED = ("malformed", "not a database", "corrupt")


class SqliteStore:
    """See `distilrec.stores.records.Store`.

    Raises StoreUnavailableError where another process has the file or it cannot be made, StoreVersionError for a newer
    schema, StoreCorruptedError for a file that is no database.
    """

    shared = False

    def __init__(self, path: Path | str, migrations: Sequence[str] = MIGRATIONS) -> None:
        self.path = Path(path)
        self._lock_file = self._lock()
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        with ExitStack() as undo:
            undo.callback(os.close, self._lock_file)
            with self._errors():
                self._writer = self._connect()
                undo.callback(self._writer.close)
                self._migrate(migrations)
                self._reader = self._connect()
            undo.pop_all()  # it is open now: nothing to undo
        self._salt = self.setting("salt") or ""
        if not self._salt:
            self._salt = secrets.token_hex(16)
            self.set_setting("salt", self._salt)

    def append(self, events: Sequence[StoredEvent]) -> list[int]:
        with self._transaction() as db:
            users: dict[str, int] = {}
            positions = []
            for event in events:
                user = users.get(event.user_id)
                if user is None:
                    user = users[event.user_id] = self._user(db, event.user_id)
                row = db.execute(
                    "INSERT INTO events (user, event_id, item_id, event_type, timestamp, received) VALUES (?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT (user, event_id) DO NOTHING RETURNING position",
                    (user, event.event_id, event.item_id, event.event_type, event.timestamp, event.received),
                ).fetchone()
                positions.append(row[0] if row else 0)
        return positions

    def read(self, asked: Sequence[Since]) -> list[UserRecord]:
        with self._reading, self._errors():
            self._reader.execute("BEGIN")
            try:
                return [self._read(each) for each in asked]
            finally:
                self._reader.execute("ROLLBACK")

    def _read(self, asked: Since) -> UserRecord:
        db = self._reader
        erased = db.execute("SELECT 1 FROM erased WHERE hash = ?", (self._hash(asked.user_id),)).fetchone() is not None
        row = db.execute("SELECT id, epoch, features FROM users WHERE user_id = ?", (asked.user_id,)).fetchone()
        if row is None:
            return UserRecord("", 0, True, (), None, erased)
        user, epoch, features = row
        restart = epoch != asked.epoch
        rows = db.execute(
            "SELECT position, item_id, event_type, timestamp, received, event_id FROM events"
            " WHERE user = ? AND position > ? ORDER BY position",
            (user, 0 if restart else asked.position),
        ).fetchall()
        events = [StoredEvent(asked.user_id, *rest) for _, *rest in rows]
        position = rows[-1][0] if rows else (0 if restart else asked.position)
        known = None if features is None else msgspec.json.decode(features, type=dict[str, object])
        return UserRecord(epoch, position, restart, events, known, erased)

    def set_features(self, user_id: str, features: Mapping[str, object]) -> None:
        with self._transaction() as db:
            user = self._user(db, user_id)
            db.execute(
                "UPDATE users SET features = ?, epoch = ? WHERE id = ?",
                (msgspec.json.encode(features), secrets.token_hex(8), user),
            )

    def erase(self, user_id: str) -> int:
        with self._transaction() as db:
            row = db.execute("SELECT id FROM users WHERE user_id = ?", (user_id,)).fetchone()
            removed = 0
            if row is not None:
                removed = db.execute("DELETE FROM events WHERE user = ?", row).rowcount
                db.execute("DELETE FROM users WHERE id = ?", row)
            db.execute("INSERT OR IGNORE INTO erased VALUES (?)", (self._hash(user_id),))
        # Deleted content is overwritten with zeros (secure_delete); now also empty the log of earlier page contents.
        with self._reading, self._writing, self._errors():
            busy, _, _ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise StoreUnavailableError(
                    f"{self.path}: the write-ahead log could not be emptied, another process is reading the file",
                    fix="close the other process and erase the user again",
                    file=str(self.path),
                )
        return removed

    def put_item(self, record: ItemRecord) -> None:
        with self._transaction() as db:
            row = db.execute("SELECT record FROM items WHERE item_id = ?", (record.item_id,)).fetchone()
            before = msgspec.json.decode(row[0], type=ItemRecord) if row else None
            db.execute(
                "INSERT OR REPLACE INTO items VALUES (?, (SELECT coalesce(max(change), 0) + 1 FROM items), ?)",
                (record.item_id, msgspec.json.encode(merged(before, record))),
            )

    def items(self, after: int = 0) -> tuple[list[ItemRecord], int]:
        with self._reading, self._errors():
            rows = self._reader.execute(
                "SELECT record, change FROM items WHERE change > ? ORDER BY change", (after,)
            ).fetchall()
        return [msgspec.json.decode(record, type=ItemRecord) for record, _ in rows], rows[-1][1] if rows else after

    def setting(self, name: str) -> str | None:
        with self._writing, self._errors():
            row = self._writer.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def set_setting(self, name: str, value: str | None) -> None:
        with self._transaction() as db:
            if value is None:
                db.execute("DELETE FROM settings WHERE name = ?", (name,))
            else:
                db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))

    def check(self) -> list[str]:
        """Also writes one transaction: a read-only disk is noticed here, not at the first event."""
        self.set_setting("checked", secrets.token_hex(4))
        free = shutil.disk_usage(self.path.parent).free
        return [f"only {free // 2**20:,} MiB are free on the disk of {self.path}"] if free < _LOW_SPACE else []

    def verify(self) -> None:
        """Reads the whole database. Raises StoreCorruptedError."""
        with self._reading, self._errors():
            problems = [row[0] for row in self._reader.execute("PRAGMA quick_check(5)")]
        if problems != ["ok"]:
            raise self._corrupted("; ".join(problems))

    def close(self) -> None:
        with self._reading, self._writing:
            self._reader.close()
            self._writer.close()
            os.close(self._lock_file)

    def _lock(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as problem:
            raise StoreUnavailableError(
                f"the store {self.path} cannot be opened: {problem.strerror}",
                fix="check the folder and its permissions",
                file=str(self.path),
            ) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise StoreUnavailableError(
                f"the store {self.path} is in use by another process",
                fix="stop the other service, or use Redis (--store redis://…) where several processes share users",
                file=str(self.path),
            ) from None
        return handle

    def _connect(self) -> sqlite3.Connection:
        if not self.path.exists():
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # user data: nobody else's
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, cached_statements=64)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "busy_timeout=5000"):
            db.execute(f"PRAGMA {pragma}")
        return db

    def _migrate(self, migrations: Sequence[str]) -> None:
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version > len(migrations):
            raise StoreVersionError(
                f"{self.path} has schema version {version}; this distilrec knows up to {len(migrations)}",
                fix="upgrade distilrec (pip install -U distilrec)",
                file=str(self.path),
            )
        for step in range(version, len(migrations)):
            self._writer.executescript(f"BEGIN IMMEDIATE; {migrations[step]} PRAGMA user_version = {step + 1}; COMMIT;")

    def _user(self, db: sqlite3.Connection, user_id: str) -> int:
        row = db.execute("SELECT id FROM users WHERE user_id = ?", (user_id,)).fetchone()
        if row is None:
            row = db.execute(
                "INSERT INTO users (user_id, epoch) VALUES (?, ?) RETURNING id", (user_id, secrets.token_hex(8))
            ).fetchone()
        return int(row[0])

    def _hash(self, user_id: str) -> bytes:
        return hashlib.sha256(f"{self._salt}:{user_id}".encode()).digest()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._writing, self._errors():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
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
                fix="check the space and the permissions of its disk; the same request may be sent again",
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
