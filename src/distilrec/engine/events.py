"""The events that a recommender follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from distilrec.errors import ConfigError
from distilrec.ids import Id

MAX_EVENT_TYPE, MAX_EVENT_ID = 64, 128  # characters


class Event(msgspec.Struct, frozen=True):
    """One interaction. An event type that training did not know counts as the unknown type.

    timestamp: when it happened, seconds since 1970, now where it is left out; read only for a
    student that is told the time or knows visits.
    """

    user_id: Id
    item_id: Id
    event_type: str = "interaction"
    timestamp: float | None = None


def as_event(event: Event | Mapping[str, Any]) -> tuple[Id, Id, str, object]:
    """Return user, item, event type and timestamp, ids and timestamp as they were given. Raises
    ConfigError.
    """
    if isinstance(event, Event):
        return event.user_id, event.item_id, event.event_type, event.timestamp
    if type(event) is not dict and not isinstance(event, Mapping):
        raise _invalid_event(
            f"it is a {type(event).__name__}",
            "give a list of events, each with user_id and item_id",
        )
    for name in ("user_id", "item_id"):
        if name not in event:
            raise _invalid_event(f"it has no {name}", "give user_id and item_id")
    event_type = event.get("event_type", "interaction")
    if not isinstance(event_type, str):
        raise _invalid_event(
            f"its event_type is {event_type!r}", "give the event type as text, or leave it out"
        )
    return event["user_id"], event["item_id"], event_type, event.get("timestamp")


def _invalid_event(problem: str, fix: str) -> ConfigError:
    return ConfigError(f"an event is not valid: {problem}", fix=fix, parameter="events")
