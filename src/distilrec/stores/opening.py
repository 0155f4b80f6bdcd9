"""Open a store by its address, and show an address without its secrets.

`SCHEMES` is the one table of the kinds of stores: a new kind is a file beside this one and a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distilrec.errors import ConfigError, FileMissingError
from distilrec.stores.records import Store

Opener = Callable[[str, str, str | None], Store]
"""Open the store at an address, with a prefix of its keys and a password (None without one)."""

_WHOLE = re.compile(r"(.*)", re.DOTALL)
_HOST = re.compile(
    r"(rediss?://)(?:[^@/?#]*@)?([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d+)?(/\d*)?(?:\?[^#]*)?"
)
_SOCKET = re.compile(r"(unix://)(?:[^@/?#]*@)?(/[^?#@]*)(?:\?[^#]*)?")
_PLACE = r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::\d+)?"
_PLACES = rf"({_PLACE}(?:,{_PLACE})*)"
_HOSTS = re.compile(r"(postgres(?:ql)?://)(?:[^@/?#]*@)?" + _PLACES + r"(/[\w.-]*)?(?:\?[^#]*)?")
_CLUSTER = re.compile(r"(rediss?\+cluster://)(?:[^@/?#]*@)?" + _PLACES + r"(/0?)?(?:\?[^#]*)?")
_SCHEME = re.compile(r"[a-z+]{1,15}://")
_SECRET = re.compile(r"://[^/]*@|[?&]\w*password=", re.IGNORECASE)


@dataclass(frozen=True)
class Scheme:
    """One kind of store, found by the beginning of its address."""

    opens: Opener
    """Function that opens a store of this kind; it imports the module of the store."""
    name: str
    """Name for messages, with its article."""
    example: str
    """Address for messages and help."""
    several_processes: bool
    """Whether several processes may open the same store."""
    has_password: bool = False
    """Whether the store may ask for a password."""
    public: re.Pattern[str] = _WHOLE
    """Pattern of a whole address; what its groups match may be shown."""


def _sqlite(address: str, prefix: str, password: str | None) -> Store:
    from distilrec.stores.sqlite import SqliteStore

    return SqliteStore(address.removeprefix("sqlite:///"))


def _redis(address: str, prefix: str, password: str | None) -> Store:
    from distilrec.stores.redis import RedisStore

    return RedisStore(address, prefix, password)


def _postgresql(address: str, prefix: str, password: str | None) -> Store:
    from distilrec.stores.postgresql import PostgresqlStore

    return PostgresqlStore(address, prefix, password)


_POSTGRESQL = Scheme(
    _postgresql,
    "a PostgreSQL database",
    "postgresql://USER@HOST/DATABASE",
    several_processes=True,
    has_password=True,
    public=_HOSTS,
)


def _redis_row(
    public: re.Pattern[str],
    name: str = "a Redis server",
    example: str = "redis://HOST:PORT/NUMBER",
) -> Scheme:
    return Scheme(_redis, name, example, several_processes=True, has_password=True, public=public)


_REDIS_CLUSTER = _redis_row(_CLUSTER, "a Redis Cluster", "redis+cluster://HOST:PORT,HOST:PORT")


SCHEMES: dict[str, Scheme] = {
    "sqlite:///": Scheme(_sqlite, "an SQLite store", "sqlite:///FILE", several_processes=False),
    "redis://": _redis_row(_HOST),
    "rediss://": _redis_row(_HOST),
    "unix://": _redis_row(_SOCKET),
    "redis+cluster://": _REDIS_CLUSTER,
    "rediss+cluster://": _REDIS_CLUSTER,
    "postgresql://": _POSTGRESQL,
    "postgres://": _POSTGRESQL,
}
"""By the beginning of an address."""


def open_store(
    address: str, prefix: str = "distilrec:", password_file: Path | str | None = None
) -> Store:
    """Open `sqlite:///relative.db`, `sqlite:////absolute.db`, `redis://host:port/number`,
    `redis+cluster://host:port,host:port` or `postgresql://user@host:port/database`.

    prefix: of every key in Redis; without its colons the name of the schema in PostgreSQL.
    password_file: holds the password of the store, so that it need not be in the address.
    Raises ConfigError for anything else, FileMissingError, and what the stores raise.
    """
    scheme = scheme_of(address)
    if password_file is None:
        return scheme.opens(address, prefix, None)
    if not scheme.has_password:
        raise ConfigError(
            f"{scheme.name} has no password",
            fix="leave --store-password-file out",
            parameter="store_password_file",
        )
    return scheme.opens(address, prefix, _password(Path(password_file)))


def scheme_of(address: str) -> Scheme:
    """Return the kind of store that an address names. Raises ConfigError where it names none."""
    if (scheme := _found(address)) is not None:
        return scheme
    raise ConfigError(
        f"{shown(address)!r} is not the address of a store",
        fix=f"give {addresses()}",
        parameter="store",
    )


def addresses(*, several_processes: bool = False) -> str:
    """Return the addresses that can be given, for messages; those that several processes may share
    where that is asked for.
    """
    examples = [
        scheme.example
        for scheme in SCHEMES.values()
        if scheme.several_processes or not several_processes
    ]
    return " or ".join(dict.fromkeys(examples))


def check_sharing(address: str, parameter: str, who: str, other: str = "") -> None:
    """Raise ConfigError for a store that several processes (who) cannot share.

    parameter: the setting to blame; other: what could be done instead of giving another store.
    """
    scheme = scheme_of(address)
    if not scheme.several_processes:
        raise ConfigError(
            f"{who} cannot share {scheme.name}",
            fix=f"give --store {addresses(several_processes=True)}{other}",
            parameter=parameter,
        )


def shown(address: str) -> str:
    """Return an address without what could be a user name, a password, or a mistyped one: for
    messages and logs.
    """
    scheme = _found(address)
    if scheme is not None and (match := scheme.public.fullmatch(address)):
        return "".join(part or "" for part in match.groups())
    beginning = _SCHEME.match(address)
    return f"{beginning[0] if beginning else ''}…"


def holds_secret(address: str) -> bool:
    """Whether an address holds a password."""
    scheme = _found(address)
    if scheme is not None and not scheme.has_password:
        return False
    return _SECRET.search(address) is not None


def _found(address: str) -> Scheme | None:
    for beginning, scheme in SCHEMES.items():
        if address.startswith(beginning) and len(address) > len(beginning):
            return scheme
    return None


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
