"""Where messages come from: what every source can do, and the table of sources."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

from distilrec.consume.config import ConsumeConfig
from distilrec.consume.messages import Message
from distilrec.errors import ConfigError

PASSWORD_VARIABLE = "DISTILREC_SOURCE_PASSWORD"  # noqa: S105 - the name of a variable
"""The environment variable with the password of a source."""
_EXAMPLES = "kafka://HOST:PORT/TOPIC or redis-stream://HOST:PORT/NUMBER/STREAM"


class Source(Protocol):
    """Messages in order, each of them again until it was committed.

    All methods but `close` raise SourceUnavailableError where the source is away; then they may be
    called again. One thread calls them.
    """

    where: str
    """Address of the source, without a user."""
    expired: int
    """Messages that were gone before they were read, as far as the source says so."""

    def poll(self, count: int, seconds: float) -> Sequence[Message]:
        """Return up to `count` messages; none where none comes within this time."""
        ...

    def commit(self) -> None:
        """Acknowledge all messages that `poll` has returned."""
        ...

    def rest(self) -> None:
        """Stay a member of the group, to be called once a second while nothing is polled."""
        ...

    @property
    def at_end(self) -> bool:
        """Whether there was no further message for this consumer when it last looked."""
        ...

    def lag(self) -> float:
        """Return the number of messages that wait; NaN where that is not known."""
        ...

    def close(self) -> None:
        """Leave the group, so that others need not wait for this consumer."""
        ...


def _kafka(address: SplitResult, config: ConsumeConfig, password: str | None) -> Source:
    from distilrec.consume.kafka import KafkaTopic

    return KafkaTopic(address, config, password)


def _redis_stream(address: SplitResult, config: ConsumeConfig, password: str | None) -> Source:
    from distilrec.consume.redis_stream import RedisStream

    return RedisStream(address, config, password)


SOURCES: dict[str, Callable[[SplitResult, ConsumeConfig, str | None], Source]] = {
    "kafka": _kafka,
    "redis-stream": _redis_stream,
    "rediss-stream": _redis_stream,
}
"""By the scheme of an address."""


def open_source(config: ConsumeConfig) -> Source:
    """Open the source of a consumer; its password comes from the environment.

    Raises ConfigError for an address or an option that cannot be used, MissingExtraError,
    SourceUnavailableError where the source does not answer or refuses the user.
    """
    address = source_address(config.source)
    return SOURCES[address.scheme](address, config, os.environ.get(PASSWORD_VARIABLE) or None)


def source_address(source: str) -> SplitResult:
    """Return the parts of an address. Raises ConfigError, whose message never shows what could be a
    password.
    """
    try:
        address = urlsplit(source)
        has_password = address.password is not None or bool(address.query)
    except ValueError:
        raise _no_address() from None
    if address.scheme not in SOURCES or address.fragment or not address.netloc:
        raise _no_address()
    if has_password or "@" in address.path:
        raise ConfigError(
            "the address of the source holds a password or options, which every user of this "
            "machine can read",
            fix=f"write {_EXAMPLES}, and give the password as {PASSWORD_VARIABLE} in the "
            "environment",
            parameter="source",
        )
    return address


def _no_address() -> ConfigError:
    return ConfigError(
        "this is not the address of a source of events",
        fix=f"write {_EXAMPLES}",
        parameter="source",
    )
