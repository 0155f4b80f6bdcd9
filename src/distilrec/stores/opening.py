"""From an address to a store."""

from __future__ import annotations

from distilrec.errors import ConfigError
from distilrec.stores.records import Store

_SQLITE = "sqlite:///"
_REDIS = ("redis://", "rediss://", "unix://")


def open_store(address: str, prefix: str = "distilrec:") -> Store:
    """`sqlite:///relative.db`, `sqlite:////absolute.db`, or `redis://host:port/number`.

    Raises ConfigError for anything else, and what the stores raise.
    """
    if address.startswith(_SQLITE) and len(address) > len(_SQLITE):
        from distilrec.stores.sqlite import SqliteStore

        return SqliteStore(address.removeprefix(_SQLITE))
    if address.startswith(_REDIS):
        from distilrec.stores.redis import RedisStore

        return RedisStore(address, prefix)
    raise ConfigError(
        f"{address!r} is not the address of a store",
        fix="give sqlite:///FILE or redis://HOST:PORT/NUMBER",
        parameter="store",
    )
