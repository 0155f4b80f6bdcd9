"""Connections to PostgreSQL that come back by themselves, and what its errors mean, for
`distilrec.stores.postgresql`.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from distilrec.errors import StoreCorruptedError, StoreUnavailableError, first_line
from distilrec.stores.locks import OwnersLock

_ESCAPE = "\x1a"


def escaped(text: str) -> str:
    """Return a text without NUL, which PostgreSQL does not store; `unescaped` gives it back."""
    if "\0" not in text and _ESCAPE not in text:
        return text
    return text.replace(_ESCAPE, f"{_ESCAPE}1").replace("\0", f"{_ESCAPE}0")


def unescaped(text: str) -> str:
    """Return what `escaped` was given."""
    if _ESCAPE not in text:
        return text
    return text.replace(f"{_ESCAPE}0", "\0").replace(f"{_ESCAPE}1", _ESCAPE)


class Line:
    """One connection, which one thread at a time uses: `with line as connection`.

    It is opened when it is first used, and again where the server has closed it meanwhile.
    opens: returns a new connection of psycopg.
    """

    def __init__(self, opens: Callable[[], Any], lock: OwnersLock) -> None:
        self._opens, self._lock = opens, lock
        self._connection: Any = None

    def __enter__(self) -> Any:
        self._lock.__enter__()
        try:
            if self._connection is None or _is_lost(self._connection):
                self._drop()
                self._connection = self._opens()
        except BaseException:
            self._lock.__exit__()
            raise
        return self._connection

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        from psycopg import errors

        try:
            # A server that only reads is a standby: the next connection may find the primary
            if problem is not None and (
                isinstance(problem, errors.ReadOnlySqlTransaction) or not _is_idle(self._connection)
            ):
                self._drop()
        finally:
            self._lock.__exit__()

    def cancel(self) -> None:
        """Ask the server to give up what it is doing; from any thread."""
        if (connection := self._connection) is not None:
            with suppress(Exception):
                connection.cancel()

    def close(self) -> None:
        """Close the connection; nothing happens in a process that was forked off."""
        if self._lock.elsewhere:
            return
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _is_idle(connection: Any) -> bool:
    from psycopg.pq import TransactionStatus

    return not connection.closed and connection.info.transaction_status == TransactionStatus.IDLE


def _is_lost(connection: Any) -> bool:
    """Whether the server has closed a connection while it was not used; does not wait."""
    import psycopg

    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    try:
        while poll.poll(0):  # a message of the server, or the end
            connection.pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return False


@contextmanager
def explained(where: str, secrets: tuple[str, ...]) -> Iterator[None]:
    """Turn the errors of psycopg into those of a store. where: its address as messages show it;
    secrets: what no message may show.
    """
    import psycopg

    try:
        yield
    except psycopg.Error as problem:
        raise _ours(problem, where, secrets) from None
    except msgspec.MsgspecError as problem:
        raise _corrupted(where, str(problem)) from None


def _ours(problem: Any, where: str, secrets: tuple[str, ...]) -> Exception:
    """Return an error of ours for one of psycopg."""
    from psycopg import errors

    said = first_line(problem)
    for secret in secrets:
        said = said.replace(secret, "***")
    if isinstance(
        problem, errors.UndefinedTable | errors.UndefinedColumn | errors.InvalidSchemaName
    ):
        return _corrupted(where, said)
    if isinstance(problem, errors.DataCorrupted | errors.IndexCorrupted):
        return _corrupted(where, said)
    fix = "check that the server runs and accepts writes; the same request may be sent again"
    if isinstance(problem, errors.InsufficientPrivilege):
        fix = (
            "GRANT CREATE ON DATABASE … TO the user of the address, or give it a schema of its own"
        )
    elif isinstance(problem, errors.QueryCanceled):
        fix = (
            "look for what holds its locks or its disk (pg_stat_activity); the same request may be "
            "sent again"
        )
    elif "SSL" in said or "certificate" in said:
        fix = (
            "check sslmode and sslrootcert in the address, and that the server speaks TLS (ssl = "
            "on)"
        )
    elif "database" in said and "does not exist" in said:
        fix = "create the database (createdb), or correct its name in the address"
    elif "authentication" in said or "password" in said:
        fix = "check the user, and the password in PGPASSWORD, ~/.pgpass or --store-password-file"
    return StoreUnavailableError(f"the store {where} cannot be used: {said}", fix=fix)


def _corrupted(where: str, said: str) -> StoreCorruptedError:
    return StoreCorruptedError(
        f"the store {where} holds something that distilrec did not write: {said}",
        fix="give the service a schema of its own (--store-prefix), or restore a backup",
    )
