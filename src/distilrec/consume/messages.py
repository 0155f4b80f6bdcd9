"""Read the event in a message, or say why there is none."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from distilrec.consume.config import UNITS, ConsumeConfig
from distilrec.engine.stored import Clock, as_stored
from distilrec.errors import (
    ConfigError,
    DistilrecError,
    MalformedRequestError,
    RequestError,
)
from distilrec.serve.schemas import EventBody

_ROLES = EventBody.__struct_fields__


class Message(msgspec.Struct, frozen=True):
    """One message of a source."""

    position: str
    """Where it stands in the source, for people."""
    event_id: str
    """Event id of an event that has none: the same whenever the message is read."""
    time: float | None
    """When it was written, in seconds since 1970, where the source says it."""
    value: bytes | None
    """What was written, as JSON where it is an event."""
    parts: Mapping[str, str] | None = None
    """The fields of the message in place of a value, as texts."""


class DeadLetter(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message without an event that can be stored, as it is kept."""

    id: str
    """What tells the message from all others; the event id of an event that has none."""
    source: str
    """Address of the source."""
    position: str
    """Where the message stands in the source."""
    reason: str
    """Code of the error: what the service would answer to this event."""
    message: str
    """What is wrong with it."""
    value: str | None = None
    """The message, where it is text."""
    base64: str | None = None
    """The message, where it is not text."""


def stable_id(*place: object) -> str:
    """Return an event id for the message at a place of a source."""
    text = "/".join(map(str, place))
    return hashlib.blake2b(_bytes(text), digest_size=16).hexdigest()


def dead_letter(source: str, message: Message, problem: DistilrecError) -> DeadLetter:
    """Return a message as it is kept, with the reason."""
    value = message.value
    if message.parts is not None:
        value = msgspec.json.encode(
            {_shown(name): _shown(text) for name, text in message.parts.items()}
        )
    text, binary = None, None
    if value is not None:
        try:
            text = value.decode()
        except UnicodeDecodeError:
            binary = base64.b64encode(value).decode()
    return DeadLetter(
        message.event_id, source, message.position, problem.code, str(problem), text, binary
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _shown(text: str) -> str:
    """Return the text of a field, bytes that are not UTF-8 by their numbers."""
    return _bytes(text).decode("utf-8", "backslashreplace")


class EventReader:
    """Reads events by the names of their fields."""

    def __init__(self, config: ConsumeConfig) -> None:
        self._places = {role: getattr(config.fields, role) for role in _ROLES}
        self._known = {
            name for place in self._places.values() for name in (place, place.split(".")[0])
        }
        self._strict, self._json_field = not config.ignore_other_fields, config.json_field
        self._unit = UNITS[config.time_unit]
        self._clock = Clock()

    def read(self, message: Message) -> EventBody:
        """Return the event of a message, with an event id and, where either says it, the time.

        Raises MalformedRequestError for what is no JSON, RequestError for a field that is missing,
        unknown or of the wrong type, InvalidIdError, and ConfigError for a time that cannot be.
        """
        content, from_text = self._content(message)
        if self._strict and (others := sorted(content.keys() - self._known)):
            raise RequestError(
                f"the message has the field {others[0]!r}, which no event has",
                fix="name the fields of your messages (--fields), or let others be ignored "
                "(--ignore-other-fields)",
            )
        values: dict[str, Any] = {}
        for role, place in self._places.items():
            if (value := _at(content, place)) is not None:
                values[role] = value
        for role in ("user_id", "item_id"):
            if role not in values:
                raise RequestError(
                    f"the message has no field {self._places[role]!r}, which holds the {role}",
                    fix="name the fields of your messages (--fields)",
                )
        if "timestamp" in values:
            values["timestamp"] = self._seconds(values["timestamp"])
        elif message.time is not None:
            values["timestamp"] = message.time
        values.setdefault("event_id", message.event_id)
        try:
            event = msgspec.convert(values, EventBody, strict=not from_text)
        except msgspec.ValidationError as problem:
            raise RequestError(f"the message is no event: {problem}", fix="correct it") from None
        as_stored(event, self._clock.now())
        return event

    def _content(self, message: Message) -> tuple[Mapping[str, Any], bool]:
        """Return the fields of a message, and whether all of them are texts."""
        value = message.value
        if message.parts is not None:
            if self._json_field is None:
                return message.parts, True
            if self._json_field not in message.parts:
                raise RequestError(
                    f"the message has no field {self._json_field!r}, which holds the event",
                    fix="name the field with --json-field",
                )
            value = _bytes(message.parts[self._json_field])
        try:
            content = msgspec.json.decode(value or b"")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
            raise MalformedRequestError(
                f"the message is not JSON: {problem}" if value else "the message is empty",
                fix="write each event as a JSON object",
            ) from None
        if not isinstance(content, dict):
            raise RequestError(
                "the message is JSON, and not an object", fix="write each event as a JSON object"
            )
        return content, False

    def _seconds(self, given: Any) -> float:
        """Return a timestamp in seconds since 1970: a number of the unit, or a date and time of ISO
        8601 with its zone.
        """
        if isinstance(given, str):
            try:
                return float(given) / self._unit
            except ValueError:
                pass
            try:
                moment = datetime.fromisoformat(given)
            except ValueError:
                moment = None
            if moment is None or moment.tzinfo is None:
                raise ConfigError(
                    f"the timestamp {given[:40]!r} is neither a number nor a date and time with a "
                    "zone",
                    fix="write seconds since 1970, or 2026-11-28T09:30:00Z",
                    parameter="timestamp",
                )
            return moment.timestamp()
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise ConfigError(
                f"the timestamp is a {type(given).__name__}",
                fix="write seconds since 1970, or 2026-11-28T09:30:00Z",
                parameter="timestamp",
            )
        try:
            return given / self._unit
        except OverflowError:
            return float("inf")


def _at(content: Mapping[str, Any], place: str) -> Any:
    """Return what a field holds; None without one. A name with dots leads into objects."""
    if place in content:
        return content[place]
    inner: Any = content
    for name in place.split("."):
        if not isinstance(inner, Mapping):
            return None
        inner = inner.get(name)
    return inner
