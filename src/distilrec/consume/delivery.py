"""Where events go: a service over HTTP, or a store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from distilrec.consume.config import ConsumeConfig
from distilrec.consume.patience import Patience
from distilrec.engine.stored import Clock, to_stored
from distilrec.errors import RequestError, ServiceError
from distilrec.serve.client import KEY_VARIABLE, ask, service_address
from distilrec.serve.schemas import EventBody, EventsResponse
from distilrec.stores.opening import open_store

_SECONDS = 60.0  # until the service answers
_MISTAKES = frozenset(
    {"request_invalid", "request_malformed", "id_invalid", "config_invalid", "body_too_large"}
)


@dataclass
class Delivered:
    """What became of events. refused: by place, why an event cannot be stored."""

    accepted: int = 0
    duplicates: int = 0
    unattributed: int = 0
    refused: dict[int, RequestError] = field(default_factory=dict)


class Delivery(Protocol):
    """Stores events, durably."""

    def deliver(self, events: Sequence[EventBody], patience: Patience) -> Delivered:
        """Store events in this order; wait while that is impossible. Raises what is not mended by
        waiting, such as a key that is not valid, and Stopped.
        """
        ...

    def close(self) -> None:
        """Let go of the store."""
        ...


def open_delivery(config: ConsumeConfig) -> Delivery:
    """Return the delivery to an address. Raises ConfigError, FileMissingError, StoreErrors."""
    if config.to.startswith(("http://", "https://")):
        return ToService(config.to, os.environ.get(KEY_VARIABLE))
    return ToStore(config)


class ToService:
    """Posts events to a running service."""

    def __init__(self, service: str, key: str | None) -> None:
        self._url = f"{service_address(service, 'to')}/v1/events"
        self._key = key

    def deliver(self, events: Sequence[EventBody], patience: Patience) -> Delivered:
        done = Delivered()
        waiting = [(0, len(events))] if events else []
        while waiting:
            first, last = waiting.pop()
            body = {"events": [_said(event) for event in events[first:last]]}
            try:
                answer = patience.until(
                    partial(ask, self._url, body, self._key, EventsResponse, _SECONDS)
                )
            except ServiceError as problem:
                if problem.context["code"] not in _MISTAKES:
                    raise
                if last - first == 1:
                    done.refused[first] = RequestError(problem.message, fix=problem.fix)
                else:  # the service takes all or none: find the one
                    middle = (first + last) // 2
                    waiting += [(middle, last), (first, middle)]
                continue
            done.accepted += answer.accepted
            done.duplicates += answer.duplicates
            done.unattributed += answer.unattributed
        return done

    def close(self) -> None:
        """Do nothing: there is a connection for each request."""


def _said(event: EventBody) -> dict[str, object]:
    """Return an event as JSON without the fields that it leaves out: an older service knows less of
    them.
    """
    values = {name: getattr(event, name) for name in event.__struct_fields__}
    return {name: value for name, value in values.items() if value is not None}


class ToStore:
    """Appends events to a store, without a service."""

    def __init__(self, config: ConsumeConfig) -> None:
        self._store = open_store(config.to, config.store_prefix, config.store_password_file)
        self._clock = Clock()

    def deliver(self, events: Sequence[EventBody], patience: Patience) -> Delivered:
        if not events:
            return Delivered()
        positions = patience.until(lambda: self._store.append(to_stored(events, self._clock)))
        new = [event for event, position in zip(events, positions, strict=True) if position]
        named = sum(event.recommendation_id is not None for event in new)
        return Delivered(len(new), len(events) - len(new), named)

    def close(self) -> None:
        self._store.close()
