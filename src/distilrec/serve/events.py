"""Take events: store them, and let the models in memory follow them."""

from __future__ import annotations

import math

from distilrec.engine.stored import Clock, to_stored
from distilrec.errors import RequestError
from distilrec.serve.config import ServiceConfig
from distilrec.serve.http import Call, Endpoint
from distilrec.serve.metrics import Metrics
from distilrec.serve.models import Models
from distilrec.serve.outcomes import Outcomes
from distilrec.serve.parameters import check_limit, text_of
from distilrec.serve.schemas import EventsRequest, EventsResponse, KeptEvent, KeptEvents
from distilrec.serve.storage import Storage
from distilrec.stores.records import IMPRESSION


class Events:
    """Store events, all of a request or none."""

    def __init__(
        self,
        config: ServiceConfig,
        models: Models,
        storage: Storage,
        outcomes: Outcomes,
        metrics: Metrics,
    ) -> None:
        self._max_batch = config.max_batch
        self._models, self._storage, self._metrics = models, storage, metrics
        self._outcomes = outcomes
        self._clock = Clock()

    async def add(self, request: EventsRequest) -> EventsResponse:
        check_limit("events", len(request.events), self._max_batch)
        stored = to_stored(request.events, self._clock)
        verdicts = self._outcomes.attribute(request.events, stored)
        with self._storage.unless_failed({event.user_id for event in stored}):
            positions = await self._storage.append(stored)
        self._storage.forget_what_the_store_lost()
        if not self._storage.shared:  # otherwise each answer asks the store what is new
            for served in self._models.all():
                for event, position in zip(stored, positions, strict=True):
                    served.recommender.follow(event, position)
        active = self._models.active.recommender
        duplicates = positions.count(0)
        unknown = sum(
            not active.knows_item(e.item_id) for e, p in zip(stored, positions, strict=True) if p
        )
        new_types = sum(
            not active.knows_event_type(e.event_type)
            for e, p in zip(stored, positions, strict=True)
            if p and e.event_type != IMPRESSION
        )
        accepted = len(stored) - duplicates
        for outcome, number in (
            ("accepted", accepted),
            ("duplicate", duplicates),
            ("unknown_item", unknown),
            ("unknown_type", new_types),
        ):
            if number:
                self._metrics.events.labels(outcome).inc(number)
        new = [(stored[place], verdict) for place, verdict in verdicts.items() if positions[place]]
        for event, verdict in new:
            self._outcomes.note(verdict, event)
        attributed = sum(event.attribution is not None for event, _ in new)
        return EventsResponse(
            accepted, duplicates, unknown, new_types, attributed, len(new) - attributed
        )

    async def kept(self, call: Call) -> KeptEvents:
        """Return the stored events of some users. Raises RequestError, StoreErrors."""
        since = _seconds(text_of(call, "since"))
        try:
            events, after = await self._storage.events_of_some(text_of(call, "after"))
        except ValueError:
            raise RequestError(
                "the parameter after is not one of an answer", fix="begin without it"
            ) from None
        told = [
            KeptEvent(
                one.user_id, one.item_id, one.event_type, one.timestamp, one.received, one.event_id
            )
            for one in events
            if one.received >= since
        ]
        return KeptEvents(told, after or None)


def _seconds(text: str) -> float:
    """Return a time of a query string, 0 without one. Raises RequestError."""
    try:
        seconds = float(text or 0)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise RequestError(
            "since is not a time", fix="give seconds since 1970, such as ?since=1796083200"
        )
    return seconds


def endpoints(events: Events, config: ServiceConfig) -> list[Endpoint]:
    """Return the endpoint that takes events."""
    return [
        Endpoint(
            "POST", "/v1/events", "events", "Stores events; the next answers follow them.",
            "events", EventsRequest, EventsResponse, lambda call: events.add(call.body),
            # More than max_batch are refused, and cost no more than that.
            weight=lambda body: min(len(body.events), config.max_batch),
        ),
        Endpoint(
            "GET", "/v1/events", "kept_events",
            "Stored events, those of some users in each answer.", "admin", None, KeptEvents,
            events.kept,
            {
                "after": "What the answer before says under this name; the first users without it.",
                "since": "Only events that the service took from then on, in seconds since 1970.",
            },
        ),
    ]  # fmt: skip
