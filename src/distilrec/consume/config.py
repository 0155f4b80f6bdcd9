"""The settings of a consumer of events; every field is an option of `distilrec consume`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from distilrec.errors import ConfigError
from distilrec.settings import Count, NotNegative, Settings

TimeUnit = Literal["s", "ms", "us"]
Begin = Literal["oldest", "newest"]
UNITS: dict[TimeUnit, float] = {"s": 1.0, "ms": 1e3, "us": 1e6}
"""How many of each make a second."""


class Fields(Settings, frozen=True):
    """Names of the fields of a message that hold the parts of an event.

    A name with dots, such as `payload.user`, leads into objects within the message.
    """

    user_id: str = "user_id"
    """Who."""
    item_id: str = "item_id"
    """What it happened to."""
    event_type: str = "event_type"
    """What happened; `interaction` where a message lacks it."""
    timestamp: str = "timestamp"
    """When it happened; the time of the message itself where a message lacks it."""
    event_id: str = "event_id"
    """What tells the event from others of its user; made from the place of the message where a
    message lacks it.
    """
    recommendation_id: str = "recommendation_id"
    """The answer that the event is about."""
    position: str = "position"
    """Place of the item in that answer, from 1."""
    value: str = "value"
    """What a conversion was worth."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [getattr(self, role) for role in self.__struct_fields__]
        for name in names:
            if not name or names.count(name) > 1:
                raise ConfigError(
                    "the fields name nothing" if not name else f"the fields name {name!r} twice",
                    fix="give each part of an event a field of its own, for example "
                    "user_id=customer,item_id=sku",
                    parameter="fields",
                )


class ConsumeConfig(Settings, frozen=True):
    """Where events come from, where they go, and how messages are read. See docs/serving.md."""

    source: str
    """Where messages come from: `kafka://HOST:PORT,HOST:PORT/TOPIC` or
    `redis-stream://HOST:PORT/NUMBER/STREAM` (`rediss-stream` with TLS), never with a password.
    """
    to: str
    """Where events go: the address of a service, such as `http://127.0.0.1:8000`, or of a store."""
    group: Annotated[str, Meta(min_length=1, max_length=200)] = "distilrec"
    """Name of the group whose consumers share the messages; what it has read is remembered by it.
    """
    name: str | None = None
    """Name of this consumer in the group of a Redis stream; by default that of the machine."""
    begin: Begin = "oldest"
    """Where a group begins that has read nothing yet."""
    fields: Fields = Fields()
    """Names of the fields of a message."""
    json_field: str | None = None
    """Field of an entry of a Redis stream that holds the whole event as JSON; without it each part
    of an event is a field.
    """
    time_unit: TimeUnit = "s"
    """Unit of timestamps that are numbers, since 1970."""
    ignore_other_fields: bool = False
    """Whether messages may have fields that no event has; such a message is a dead letter
    otherwise.
    """
    batch: Annotated[int, Meta(ge=1, le=10_000)] = 500
    """Maximum number of messages that are read, stored and committed together."""
    claim_after: NotNegative = 60.0
    """Seconds after which entries of a Redis stream that another consumer has read and not
    acknowledged are taken over.
    """
    kafka_options: str | None = None
    """File of further options of the Kafka client, one `name = value` on a line."""
    store_prefix: str = "distilrec:"
    """Prefix of every key in a store in Redis; without its colon the schema in PostgreSQL."""
    store_password_file: str | None = None
    """File that holds the password of a store in Redis or PostgreSQL."""
    dead_letters: str = "dead-letters.jsonl"
    """File to which messages that hold no event are appended."""
    metrics: str | None = None
    """File for the metrics, in the text format of Prometheus."""
    until_empty: bool = False
    """Whether to end when there is no message left."""
    metrics_seconds: Count = 5
    """Seconds between two versions of the file of metrics."""
