"""What a visitor did in a session, as a caller tells it with the question: none of it is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from distilrec.engine.events import MAX_EVENT_TYPE
from distilrec.engine.moments import check_timestamp
from distilrec.errors import ConfigError
from distilrec.ids import Id, as_id, as_label
from distilrec.stores.records import IMPRESSION, StoredEvent


class PastEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One event of a history. timestamp: when it happened, seconds since 1970, now where it is left
    out.
    """

    item_id: str | int | float
    event_type: str = "interaction"
    timestamp: float | None = None


History = Iterable[Id | PastEvent | Mapping[str, object]]
"""Events, or ids of items, oldest first."""


def events_of(history: History, now: float) -> list[StoredEvent]:
    """Return a history as events that arrive now, in this order, without impressions.

    Raises InvalidIdError for an item or a type that cannot be one, ConfigError for what is no event
    and for an impossible timestamp.
    """
    if isinstance(history, str | bytes | Mapping) or not isinstance(history, Iterable):
        raise ConfigError(
            f"history is a {type(history).__name__}, not a list",
            fix='give a list of item ids, such as ["7"], or of events',
            parameter="history",
        )
    events = []
    for place, given in enumerate(history):
        where = f"history[{place}]"
        event = _as_past(given, where)
        item = as_id(event.item_id, f"{where}.item_id")
        kind = as_label(event.event_type, f"{where}.event_type", MAX_EVENT_TYPE)
        when = event.timestamp
        check_timestamp(when, now, where)
        if kind != IMPRESSION:
            events.append(
                StoredEvent("", item, kind, now if when is None else when, now, str(place))
            )
    return events


def _as_past(given: object, where: str) -> PastEvent:
    if isinstance(given, PastEvent):
        return given
    if not isinstance(given, Mapping):
        return PastEvent(given)  # type: ignore[arg-type]  # `as_id` says whether it is an id
    values = dict(given)
    if "item_id" in values:
        values["item_id"] = as_id(values["item_id"], f"{where}.item_id")
    try:
        return msgspec.convert(values, PastEvent)
    except msgspec.ValidationError as problem:
        raise ConfigError(
            f"{where} is not an event: {problem}",
            fix="give item_id, and optionally event_type and timestamp",
            parameter="history",
        ) from None
