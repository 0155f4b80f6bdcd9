"""`distilrec consume`: events from Kafka or a Redis stream. Needs no torch."""

from __future__ import annotations

import signal
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from distilrec.cli.app import app
from distilrec.consume.config import Begin, Fields, TimeUnit
from distilrec.errors import ConfigError
from distilrec.stores.opening import addresses, holds_secret


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Reading:
    """How messages are read: options of `consume` that are fields of the ConsumeConfig."""

    group: Annotated[
        str, Parameter(help="Group whose consumers share the messages, and remember them.")
    ] = "distilrec"
    name: Annotated[
        str | None,
        Parameter(help="Name of this consumer of a Redis stream; that of the machine by default."),
    ] = None
    begin: Annotated[Begin, Parameter(help="Where a group begins that has read nothing.")] = (
        "oldest"
    )
    json_field: Annotated[
        str | None,
        Parameter(
            help="Field of an entry of a Redis stream that holds the event as JSON; each part of "
            "an event is a field without it."
        ),
    ] = None
    time_unit: Annotated[TimeUnit, Parameter(help="Unit of timestamps that are numbers.")] = "s"
    ignore_other_fields: Annotated[
        bool, Parameter(help="Messages may have fields that no event has.")
    ] = False
    batch: Annotated[int, Parameter(help="Most messages that are committed together.")] = 500
    claim_after: Annotated[
        float,
        Parameter(
            help="Seconds after which entries of a Redis stream are taken over that another "
            "consumer has not acknowledged."
        ),
    ] = 60.0
    until_empty: Annotated[bool, Parameter(help="End when no message is left.")] = False


@app.command
def consume(  # noqa: PLR0913 - options of a command
    *,
    source: Annotated[
        str,
        Parameter(
            name="--from",
            help="kafka://HOST:PORT/TOPIC or redis-stream://HOST:PORT/NUMBER/STREAM; a password is "
            "in the environment variable DISTILREC_SOURCE_PASSWORD.",
        ),
    ],
    to: Annotated[
        str,
        Parameter(
            help="Address of a service, whose key is in DISTILREC_KEY, or of a store: "
            f"{addresses()}.",
        ),
    ],
    fields: Annotated[
        str,
        Parameter(
            help="Names of the fields of your messages, such as "
            "user_id=customer,item_id=sku,timestamp=payload.time."
        ),
    ] = "",
    dead_letters: Annotated[
        Path, Parameter(help="File to which messages that hold no event are appended.")
    ] = Path("dead-letters.jsonl"),
    metrics: Annotated[
        Path | None,
        Parameter(
            help="File for what was consumed, in the text format of Prometheus, such as the "
            "textfile collector of its node_exporter reads (NAME.prom)."
        ),
    ] = None,
    kafka_options: Annotated[
        Path | None,
        Parameter(help="File of options of the Kafka client, one `name = value` on a line."),
    ] = None,
    store_prefix: Annotated[
        str, Parameter(help="Prefix of every key in a store in Redis; the schema in PostgreSQL.")
    ] = "distilrec:",
    store_password_file: Annotated[
        Path | None,
        Parameter(help="File that holds the password of a store in Redis or PostgreSQL."),
    ] = None,
    reading: Reading = Reading(),
) -> None:
    """Take events as they happen from Kafka or a Redis stream into a service or a store: each
    counts once, and none is lost. SIGTERM ends it after the messages in hand.
    """
    from distilrec.consume import ConsumeConfig
    from distilrec.consume import consume as run_consumer
    from distilrec.serve.logs import start_logging

    if holds_secret(to):
        raise ConfigError(
            "--to holds a password, which every user of this machine can read",
            fix="give the password of the store by --store-password-file",
            parameter="to",
        )
    config = ConsumeConfig(
        source=source,
        to=to,
        fields=_fields(fields),
        dead_letters=str(dead_letters),
        metrics=None if metrics is None else str(metrics),
        kafka_options=None if kafka_options is None else str(kafka_options),
        store_prefix=store_prefix,
        store_password_file=None if store_password_file is None else str(store_password_file),
        **asdict(reading),
    )
    start_logging()
    stop = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: stop.set())
    print(run_consumer(config, stop).line)


def _fields(text: str) -> Fields:
    """Return the names that the option says, such as user_id=customer,item_id=sku."""
    names: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        role, sign, name = part.partition("=")
        role = role.strip()
        if not sign or role in names or role not in Fields.__struct_fields__:
            raise ConfigError(
                f"--fields has the part {part!r}",
                fix=f"give some of {', '.join(Fields.__struct_fields__)} once, for example "
                "--fields user_id=customer,item_id=sku",
                parameter="fields",
            )
        names[role] = name.strip()
    return Fields(**names)
