"""The events that a service has stored, as new rows of the log of a run."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode

import polars as pl

from distilrec.data.readers import Log
from distilrec.data.schema import Schema
from distilrec.data.times import time_format, written
from distilrec.serve.client import ask, service_address
from distilrec.serve.schemas import KeptEvent, KeptEvents

_SECONDS = 300.0  # until the events of some users are there


@dataclass(frozen=True)
class ServiceLog:
    """The log that a running service keeps. address: such as http://127.0.0.1:8000; key: with the
    scope admin, where the service wants one; since: seconds since 1970, from which on the service
    took the events.
    """

    address: str
    key: str | None = None
    since: float = 0.0

    def read(self) -> pl.DataFrame:
        """Return the events, each once, in order of time: user_id, item_id and event_type as text,
        timestamp float64, in seconds since 1970.

        Raises ConfigError for what is no address, ServiceError.
        """
        base, after = service_address(self.address, "log"), ""
        events: dict[tuple[str, str], KeptEvent] = {}
        while True:
            query = urlencode({"after": after, "since": self.since})
            page = ask(f"{base}/v1/events?{query}", None, self.key, KeptEvents, _SECONDS)
            events.update(((one.user_id, one.event_id), one) for one in page.events)
            if page.after is None:
                break
            after = page.after
        names = ("user_id", "item_id", "event_type", "timestamp")
        types = {name: pl.String for name in names} | {"timestamp": pl.Float64}
        rows = [[getattr(one, name) for name in names] for one in events.values()]
        return pl.DataFrame(rows, schema=types, orient="row").sort("timestamp", maintain_order=True)

    def rows_for(self, log: Log, schema: Schema) -> pl.DataFrame:
        """Return the events as rows of a log: with its columns, their types, and its form of times.
        Columns that the service knows nothing about are empty. Raises as `read`, and the errors of
        the time column.
        """
        events = self.read()
        types = log.schema()
        known = {schema.user_id: events["user_id"], schema.item_id: events["item_id"]}
        if schema.event_type is not None:
            known[schema.event_type] = events["event_type"]
        if schema.timestamp is not None:
            known[schema.timestamp] = written(
                events["timestamp"], time_format(log, schema), types[schema.timestamp]
            )
        columns = [
            (known[name] if name in known else pl.Series(name, [None] * events.height))
            .cast(dtype, strict=False)
            .alias(name)
            for name, dtype in types.items()
        ]
        return pl.DataFrame(columns)
