"""Tables from a query on a database: SQLite, PostgreSQL, MySQL and MariaDB.

The rows are fetched in batches of a bounded size through the database's own driver (PEP 249) and
written as Parquet files, so that an answer may be larger than memory. The connection only reads.
A password comes from the environment alone and stands in no message.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit
from uuid import UUID

import msgspec
import polars as pl

from distilrec.data.objects import column_of
from distilrec.data.separated import Batches, distinct
from distilrec.errors import (
    ConfigError,
    DataError,
    FileMissingError,
    NotEnoughDataError,
    SourceUnavailableError,
    first_line,
    missing_extra,
)
from distilrec.settings import Positive, Settings

_BATCH = 100_000  # rows
_TIMEOUT = 10  # seconds to connect
_KEPT = (str, bool, int, float, bytes, Decimal, UUID, date, time, timedelta)
_EXAMPLE = "postgresql://user@host/database, mysql://user@host/database or sqlite:///shop.db"


class Query(Settings, frozen=True, tag_field="kind", tag="sql"):
    """A query on a database, in place of a file."""

    query: str
    """The SELECT statement, whose columns are those of the table."""
    database: str
    """Where: postgresql://user@host/database, mysql://user@host/database, or sqlite:///file, never
    with a password.
    """
    password_env: str | None = None
    """Name of the environment variable that holds the password."""
    timeout: Positive = 3_600.0
    """Seconds that the database may take for the first rows, and for each 100,000 after them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_address(self.database)
        if not self.query.strip():
            raise ConfigError("the query is empty", fix="write a SELECT", parameter="query")

    @property
    def name(self) -> str:
        """What messages call the table: the query's database, which says no password."""
        address = urlsplit(self.database)
        return f"the query on {address._replace(query='').geturl()}"

    @property
    def short_name(self) -> str:
        """The name of the database."""
        return Path(urlsplit(self.database).path).stem or "log"

    def relative_to(self, folder: Path) -> Query:
        """Return the same query, the file of an SQLite database relative to a folder."""
        address = urlsplit(self.database)
        if address.scheme != "sqlite":
            return self
        file = (folder / unquote(address.path[1:])).resolve()
        return msgspec.structs.replace(self, database=f"sqlite:///{quote(str(file))}")


@dataclass(frozen=True)
class Since:
    """The rows from a moment on. column: of times; value: the earliest, as the column writes it."""

    column: str
    value: float | str | date | datetime


@dataclass(frozen=True)
class Answer:
    """The rows of a query in Parquet files, and what a report should say about them."""

    files: tuple[Path, ...]
    notes: tuple[str, ...]


def run_query(query: Query, scratch: Path, since: Since | None = None) -> Answer:
    """Return the rows of a query, written into a folder that holds no others of its kind.

    since: asks the database for these rows only, in order of time; there may be none then.
    Raises SourceUnavailableError where the database does not answer in time or refuses the user,
    ConfigError where it refuses the query or the password is not in the environment,
    NotEnoughDataError without a row, ColumnTypeError for values that no table holds, and
    MissingExtraError without the driver.
    """
    folder = scratch / "query"
    folder.mkdir(parents=True, exist_ok=True)
    store, digest, rows = Batches(folder), hashlib.sha256(), 0
    password = _password(query)
    with closing(_connected(query, password)) as connection, _cursor(connection) as cursor:
        with _explained(query, password, _refused), _in_time(query, connection):
            cursor.execute(*_statement(query, since))
        if cursor.description is None:
            raise ConfigError(
                f"{query.name} returns no table", fix="write a SELECT", parameter="query"
            )
        names = [str(column[0]) for column in cursor.description]
        distinct(names, query.name)
        while batch := _next_batch(query, password, connection, cursor):
            batch = [tuple(map(_plain, row)) for row in batch]
            digest.update("".join(map(repr, batch)).encode())
            columns = zip(names, map(list, zip(*batch, strict=True)), strict=True)
            store.write(pl.DataFrame([column_of(*column, query.name) for column in columns]))
            rows += len(batch)
    if not rows and since is not None:
        store.write(pl.DataFrame({name: [] for name in names}))
    elif not rows:
        raise NotEnoughDataError(
            f"{query.name} returned no rows", fix="check its conditions", parameter="query"
        )
    return Answer(tuple(store.files), _notes(query, rows, digest.hexdigest(), since))


def _next_batch(query: Query, password: str | None, connection: Any, cursor: Any) -> list[Any]:
    with _explained(query, password, _lost), _in_time(query, connection):
        return list(cursor.fetchmany(_BATCH))


def _statement(query: Query, since: Since | None) -> tuple[Any, ...]:
    """Return what a driver executes: the query, or the rows of it since a moment, which is bound as
    a parameter.
    """
    if since is None:
        return (query.query,)
    scheme = urlsplit(query.database).scheme
    mark = '"' if scheme.startswith("postgres") else "`"  # SQLite reads "x" as a text where it can
    column = mark + since.column.replace(mark, 2 * mark) + mark
    inner = query.query.strip().removesuffix(";")
    # The line end closes a comment at the end of the query.
    rows = f"select * from ({inner}\n) as distilrec_log"  # noqa: S608 - the query of the run
    order = f"order by {column}"
    if scheme == "sqlite":
        return f"{rows} where {column} >= :since {order}", {"since": since.value}
    rows, column, order = (part.replace("%", "%%") for part in (rows, column, order))
    return f"{rows} where {column} >= %s {order}", (since.value,)


def _notes(query: Query, rows: int, digest: str, since: Since | None) -> tuple[str, ...]:
    said = f"{query.name} returned {rows:,} rows with the SHA-256 {digest}"
    if since is not None:
        return (f"{said}, those since {since.value}",)
    if re.search(r"\border\s+by\b", query.query, re.IGNORECASE):
        return (said,)
    return (
        said,
        f"{query.name} has no ORDER BY: rows of a user at the same time are in the order in which "
        "the database returned them",
    )


def _plain(value: Any) -> Any:
    """Return a value as a column takes it: JSON, network addresses and the like as text."""
    if value is None or isinstance(value, _KEPT):
        return value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def _check_address(database: str) -> None:
    """Raise ConfigError for an address that cannot be used; the message never shows it, as it may
    hold a password.
    """
    try:
        address = urlsplit(database)
        has_password = address.password is not None or any(
            "pass" in name.lower() and name != "passfile" for name, _ in parse_qsl(address.query)
        )
        known = address.scheme in _CONNECT and address.port != 0
    except ValueError:
        known, has_password = False, False
    if known and has_password:
        raise ConfigError(
            "the address of the database holds a password, which would be stored with the run",
            fix='take it out, and name an environment variable: password_env = "SHOP_DB_PASSWORD"',
            parameter="database",
        )
    if not known or "@" in address.path or address.fragment or not address.path.strip("/"):
        raise ConfigError(
            "this is not the address of a database",
            fix=f"write {_EXAMPLE}, special characters as %40 and so on",
            parameter="database",
        )
    if bool(address.hostname) is (address.scheme == "sqlite"):
        raise ConfigError(
            "the address of the database "
            + (
                "names a host, and an SQLite database has none"
                if address.hostname
                else "names no host"
            ),
            fix=f"write {_EXAMPLE}",
            parameter="database",
        )


def _password(query: Query) -> str | None:
    if query.password_env is None:
        return None
    password = os.environ.get(query.password_env)
    if not password:
        raise ConfigError(
            f"{query.name} needs a password, and the environment variable {query.password_env} "
            "is not set",
            fix=f"set {query.password_env}",
            parameter="password_env",
        )
    return password


def _connected(query: Query, password: str | None) -> Any:
    """Return a connection of the driver. Raises what `run_query` raises."""
    address = urlsplit(query.database)
    connect = _CONNECT[address.scheme]
    with _explained(query, password, _away):
        return connect(address, password)


def _connect_sqlite(address: SplitResult, password: str | None) -> Any:
    file = Path(unquote(address.path[1:]))
    if not file.is_file():
        raise FileMissingError(
            f"{file} does not exist", fix="check the path of the database", file=str(file)
        )
    connection = sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=_TIMEOUT)
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    return connection


def _connect_postgresql(address: SplitResult, password: str | None) -> Any:
    try:
        import psycopg
    except ImportError:
        raise missing_extra("psycopg", "sql") from None
    options: dict[str, Any] = {"connect_timeout": _TIMEOUT, **dict(parse_qsl(address.query))}
    if password is not None:
        options["password"] = password
    connection = psycopg.connect(address._replace(query="").geturl(), **options)
    connection.read_only = True
    return connection


def _connect_mysql(address: SplitResult, password: str | None) -> Any:
    try:
        import pymysql
        from pymysql.cursors import SSCursor
    except ImportError:
        raise missing_extra("pymysql", "sql") from None
    options: Mapping[str, str] = dict(parse_qsl(address.query))
    if unknown := sorted(options.keys() - {"ssl_ca", "ssl_cert", "ssl_key"}):
        raise ConfigError(
            f"the address of a MySQL database has an option {unknown[0]!r}",
            fix="there are: ssl_ca, ssl_cert, ssl_key",
            parameter="database",
        )
    return pymysql.connect(
        host=address.hostname,
        port=address.port or 3306,
        user=unquote(address.username or ""),
        password=password or "",
        database=unquote(address.path.strip("/")),
        charset="utf8mb4",
        connect_timeout=_TIMEOUT,
        init_command="SET SESSION TRANSACTION READ ONLY",
        cursorclass=SSCursor,
        **options,
    )


_CONNECT: dict[str, Callable[[SplitResult, str | None], Any]] = {
    "sqlite": _connect_sqlite,
    "postgresql": _connect_postgresql,
    "postgres": _connect_postgresql,
    "mysql": _connect_mysql,
    "mariadb": _connect_mysql,
}


@contextmanager
def _cursor(connection: Any) -> Iterator[Any]:
    """Yield a cursor that does not hold the whole answer in memory."""
    cursor = connection.cursor("distilrec") if _is_psycopg(connection) else connection.cursor()
    try:
        yield cursor
    except BaseException:
        # The connection may be lost. PyMySQL would read the rest of the answer from it
        if (result := getattr(cursor, "_result", None)) is not None:
            result.unbuffered_active = False
        with contextlib.suppress(Exception):
            cursor.close()
        raise
    cursor.close()


@contextmanager
def _in_time(query: Query, connection: Any) -> Iterator[None]:
    """Give up what the block waits for when the time of a query is over, also where the database
    or the network says nothing more. Raises SourceUnavailableError then.
    """
    over = threading.Event()

    def give_up() -> None:
        over.set()
        _interrupt(connection)

    timer = threading.Timer(query.timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception:
        if over.is_set():
            raise _too_slow(query) from None
        raise
    finally:
        timer.cancel()


def _interrupt(connection: Any) -> None:
    """End what another thread waits for on a connection, which is of no use then."""
    if isinstance(connection, sqlite3.Connection):
        connection.interrupt()
        return
    number = connection.fileno() if _is_psycopg(connection) else connection._sock.fileno()
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as shared:
        shared.shutdown(socket.SHUT_RDWR)


def _is_psycopg(connection: Any) -> bool:
    return type(connection).__module__.startswith("psycopg")


Explain = Callable[[Query, str], Exception]


@contextmanager
def _explained(query: Query, password: str | None, explain: Explain) -> Iterator[None]:
    """Turn the errors of a driver into ours, and take the password out of what it says."""
    try:
        yield
    except (DataError, ConfigError):
        raise
    except Exception as problem:
        drivers = ("sqlite3", "psycopg", "pymysql")
        if not type(problem).__module__.startswith(drivers) and not isinstance(problem, OSError):
            raise
        said = first_line(problem)
        if problem.args and isinstance(problem.args[-1], str) and len(problem.args) > 1:
            said = problem.args[-1].splitlines()[0]  # PyMySQL: a number, and the text
        raise explain(query, said.replace(password, "***") if password else said) from None


def _away(query: Query, said: str) -> Exception:
    return SourceUnavailableError(
        f"{query.name}: no connection: {said}",
        fix="check that the database runs, its address, the user, and the password in the "
        "variable that password_env names",
        parameter="database",
    )


def _too_slow(query: Query) -> Exception:
    return SourceUnavailableError(
        f"{query.name} gave no answer for {query.timeout:g} s",
        fix="make it faster, such as by an index on the column of times, or raise `timeout`",
        parameter="timeout",
    )


def _refused(query: Query, said: str) -> Exception:
    return ConfigError(
        f"{query.name} is refused: {said}",
        fix="correct the SELECT; try it in the database's own shell",
        parameter="query",
    )


def _lost(query: Query, said: str) -> Exception:
    return SourceUnavailableError(
        f"{query.name} stopped in the middle: {said}",
        fix="correct the query where that says so; otherwise run the same command again",
        parameter="database",
    )
