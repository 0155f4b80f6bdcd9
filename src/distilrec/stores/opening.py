"""From an address to a store, and what of an address may be shown."""

from __future__ import annotations

import re
from pathlib import Path

from distilrec.errors import ConfigError, FileMissingError
from distilrec.stores.records import Store

_SQLITE = "sqlite:///"
_REDIS = ("redis://", "rediss://", "unix://")
_HOST = re.compile(
    r"(rediss?://)(?:[^@/?#]*@)?([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d+)?(/\d*)?(?:\?[^#]*)?"
)
_SOCKET = re.compile(r"(unix://)(?:[^@/?#]*@)?(/[^?#@]*)(?:\?[^#]*)?")
_SCHEME = re.compile(r"[a-z]{1,10}://")
_SECRET = re.compile(r"://[^/]*@|[?&]\w*password=", re.IGNORECASE)


def open_store(
    address: str, prefix: str = "distilrec:", password_file: Path | str | None = None
) -> Store:
    """`sqlite:///relative.db`, `sqlite:////absolute.db`, or `redis://host:port/number`.

    password_file: holds the password of a Redis server, so that it need not be in the address.
    Raises ConfigError for anything else, FileMissingError, and what the stores raise.
    """
    if address.startswith(_SQLITE) and len(address) > len(_SQLITE):
        from distilrec.stores.sqlite import SqliteStore

        if password_file is not None:
            raise ConfigError(
                "an SQLite file has no password",
                fix="leave --store-password-file out",
                parameter="store_password_file",
            )
        return SqliteStore(address.removeprefix(_SQLITE))
    if address.startswith(_REDIS):
        from distilrec.stores.redis import RedisStore

        return RedisStore(
            address, prefix, None if password_file is None else _password(Path(password_file))
        )
    raise ConfigError(
        f"{shown(address)!r} is not the address of a store",
        fix="give sqlite:///FILE or redis://HOST:PORT/NUMBER",
        parameter="store",
    )


def shown(address: str) -> str:
    """Returns an address without what could be a user name, a password, or a mistyped one: for
    messages and logs.
    """
    if address.startswith(_SQLITE):
        return address
    for known in (_HOST, _SOCKET):
        if match := known.fullmatch(address):
            return "".join(part or "" for part in match.groups())
    scheme = _SCHEME.match(address)
    return f"{scheme[0] if scheme else ''}…"


def holds_secret(address: str) -> bool:
    """Whether an address holds a password."""
    return not address.startswith(_SQLITE) and _SECRET.search(address) is not None


def _password(path: Path) -> str:
    try:
        text = path.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "not text"
        raise FileMissingError(
            f"the file of the store's password {path} cannot be read: {why}",
            fix="give a file that holds the password and nothing else",
            file=str(path),
        ) from None
    if not text:
        raise ConfigError(
            f"the file of the store's password {path} is empty",
            fix="write the password into it",
            file=str(path),
        )
    return text
