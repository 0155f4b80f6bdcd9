"""Know what became of answers: an id for each, and events that name it.

An answer costs no write: answers are counted in memory, and added to the store every half second.
The store counts what events say, in the transaction that appends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Literal

import msgspec

from distilrec.engine.order import MAX_CLOCK_SKEW
from distilrec.errors import ServiceError, StoreError
from distilrec.serve.config import ServiceConfig
from distilrec.serve.metrics import Metrics
from distilrec.serve.recommendation_ids import KEY_BYTES, RecommendationId, RecommendationIds
from distilrec.serve.schemas import EventBody
from distilrec.serve.storage import Storage
from distilrec.stores.outcomes import DAY, Attribution, Kind, Sum
from distilrec.stores.records import IMPRESSION, Store, StoredEvent

SETTING = "recommendation_ids"  # of the store: the secret of the ids
OTHER_PLACEMENT = "(other)"
_MAX_PLACEMENTS = 1_000  # that are told apart
_LATE = DAY  # seconds after the window in which events of the window may arrive

_Fields = tuple[str, str, str, str, str, int]  # of a Provenance
Verdict = Literal["impression", "click", "conversion", "unknown", "expired", "other_type"]


class Provenance(msgspec.Struct, frozen=True):
    """Where an answer comes from: outcomes are counted by it."""

    endpoint: str
    """What was asked: `recommend`, `rank`, `similar`, `popular` or `latest`."""
    placement: str
    """Where the list is shown; empty where the request does not say it."""
    model_version: str
    rules: str = ""
    """Version of the rules that the list follows, `request` for those of the request itself."""
    variant: str = ""
    """Arm of an experiment, such as `summer/control`."""
    group: int = 0
    """Group of users in that arm."""

    @property
    def key(self) -> bytes:
        """Return what stands for it in ids and sums."""
        return blake2b(msgspec.json.encode(self), digest_size=KEY_BYTES).digest()


_UNKNOWN = Provenance("(unknown)", "(unknown)", "(unknown)")
"""Of answers of a process that was killed before it could store where they come from."""


class _Source:
    """The answers of a provenance that were counted in a second, and ids for the next ones."""

    __slots__ = ("ids", "key", "number", "seconds")

    def __init__(self, key: bytes) -> None:
        self.key, self.seconds, self.number = key, 0, 0
        self.ids: list[str] = []


class Outcomes:
    """Give ids to answers, and read those that events name."""

    def __init__(
        self, config: ServiceConfig, store: Store, storage: Storage, metrics: Metrics
    ) -> None:
        self._storage, self._metrics = storage, metrics
        self._window = round(config.outcome_days * DAY)
        self._kinds: dict[str, Kind] = {
            IMPRESSION: "impression",
            **dict.fromkeys(config.click_types, "click"),
            **dict.fromkeys(config.conversion_types, "conversion"),
        }
        self._ids = RecommendationIds(_secret(store)) if config.outcomes else None
        self._sources: dict[_Fields, _Source] = {}
        self._provenances: dict[bytes, Provenance] = {}
        self._placements: set[str] = set()
        self._answers: dict[tuple[int, bytes], int] = {}
        self._waiting: tuple[str, dict[tuple[int, bytes], int]] | None = None
        self._flushing = asyncio.Lock()

    def identify(
        self,
        endpoint: str,
        placement: str | None,
        model_version: str,
        rules: str = "",
        variant: str = "",
        group: int = 0,
        *,
        record: bool = True,
    ) -> str | None:
        """Count an answer, and return its id; None where answers have no ids. record: False for a
        look, which has none and is not counted.
        """
        if self._ids is None or not record:
            return None
        fields = endpoint, placement or "", model_version, rules, variant, group
        source = self._sources.get(fields) or self._source(fields)
        seconds = int(time.time())
        if source.seconds != seconds or not source.ids:
            self._count(source)
            source.seconds, source.ids = seconds, self._ids.block(source.key, seconds)
        source.number += 1
        return source.ids.pop()

    def _source(self, fields: _Fields) -> _Source:
        """Return what answers of a provenance are counted in, new or not. Clients choose the names
        of placements: beyond a number they are not told apart.
        """
        endpoint, placement, *_ = fields
        if placement not in self._placements:
            if len(self._placements) >= _MAX_PLACEMENTS and placement != OTHER_PLACEMENT:
                other = endpoint, OTHER_PLACEMENT, *fields[2:]
                return self._sources.get(other) or self._source(other)
            self._placements.add(placement)
        provenance = Provenance(*fields)
        key = provenance.key
        self._provenances[key] = provenance
        self._sources[fields] = source = _Source(key)
        return source

    def _count(self, source: _Source) -> None:
        """Take the answers that a source has counted."""
        if source.number:
            counted = source.seconds // DAY, source.key
            self._answers[counted] = self._answers.get(counted, 0) + source.number
            source.number = 0

    def attribute(
        self, bodies: Sequence[EventBody], events: list[StoredEvent]
    ) -> dict[int, Verdict]:
        """Put into events, in place, what they say of the answers that they name; return by place
        what that is, for those that name one.
        """
        verdicts: dict[int, Verdict] = {}
        for place, body in enumerate(bodies):
            if body.recommendation_id is not None:
                found = self._attribution(body, events[place])
                if isinstance(found, Attribution):
                    verdicts[place] = found.kind
                    events[place] = msgspec.structs.replace(events[place], attribution=found)
                else:
                    verdicts[place] = found
        return verdicts

    def _attribution(self, body: EventBody, event: StoredEvent) -> Attribution | Verdict:
        given = None
        if self._ids is not None and body.recommendation_id is not None:
            given = self._ids.read(body.recommendation_id)
        if given is None:
            return "unknown"
        kind = self._kinds.get(event.event_type)
        if kind is None:
            return "other_type"
        after, late = event.timestamp - given.given, event.received - given.given
        if not -MAX_CLOCK_SKEW <= after <= self._window or late > self._window + _LATE:
            return "expired"
        return self._said(given, kind, event, body.position or 0, body.value)

    def _said(
        self,
        given: RecommendationId,
        kind: Kind,
        event: StoredEvent,
        position: int,
        value: float = 0.0,
    ) -> Attribution:
        return Attribution(
            given.given.to_bytes(4) + given.number,
            given.provenance.hex(),
            kind,
            _hash(event.item_id),
            _hash(event.event_id),
            position,
            value if kind == "conversion" else 0.0,
            self._window + _LATE,
        )

    def shown(
        self, recommendation_id: str | None, events: Sequence[StoredEvent], ranks: Iterable[int]
    ) -> list[StoredEvent]:
        """Return the impressions of the items of an answer, at these ranks, as its outcomes."""
        if self._ids is None or recommendation_id is None:
            return list(events)
        given = self._ids.read(recommendation_id)
        assert given is not None
        return [
            msgspec.structs.replace(
                event, attribution=self._said(given, "impression", event, position)
            )
            for event, position in zip(events, ranks, strict=True)
        ]

    def note(self, verdict: Verdict, event: StoredEvent) -> None:
        """Count in the metrics what an event that is stored said."""
        said = event.attribution
        one = self._provenances.get(bytes.fromhex(said.provenance)) if said else None
        where = (one.placement, one.model_version) if one is not None else ("", "")
        self._metrics.outcomes.labels(verdict, *where).inc()
        if said is not None and said.value:
            self._metrics.outcome_value.labels(*where).inc(said.value)

    async def flush(self) -> None:
        """Add the answers that were counted to the store. Raises StoreErrors; then they are added
        later, and once.
        """
        async with self._flushing:
            if self._waiting is not None:
                await self._add(*self._waiting)
            for source in self._sources.values():
                self._count(source)
            if self._answers:
                self._waiting, self._answers = (secrets.token_hex(8), self._answers), {}
                await self._add(*self._waiting)

    async def _add(self, batch: str, answers: Mapping[tuple[int, bytes], int]) -> None:
        sums = {
            Sum(day, key.hex(), 0, "answers"): float(number)
            for (day, key), number in answers.items()
        }
        texts = {
            key.hex(): msgspec.json.encode(self._provenances[key]).decode() for _, key in answers
        }
        await self._storage.add_outcomes(batch, sums, texts)
        self._waiting = None
        for (_, key), number in answers.items():
            one = self._provenances[key]
            self._metrics.answers.labels(one.endpoint, one.placement, one.model_version).inc(number)

    async def stop(self) -> None:
        """Add what was counted, as far as the store takes it."""
        with contextlib.suppress(StoreError, ServiceError):
            await self.flush()

    async def between(
        self, first: int, last: int
    ) -> dict[tuple[int, Provenance, int], dict[str, float]]:
        """Return the measures of answers of these days since 1970, by day, provenance and position;
        with all answers of this process up to now. Raises StoreErrors.
        """
        await self.flush()
        found = await self._storage.outcomes(first, last)
        known = {key: _provenance(text) for key, text in found.provenances.items()}
        groups: dict[tuple[int, Provenance, int], dict[str, float]] = {}
        for (day, key, position, measure), amount in found.sums.items():
            group = groups.setdefault((day, known.get(key, _UNKNOWN), position), {})
            group[measure] = group.get(measure, 0.0) + amount
        return groups


def _provenance(text: str) -> Provenance:
    try:
        return msgspec.json.decode(text, type=Provenance)
    except msgspec.MsgspecError:  # of another version
        return _UNKNOWN


def _secret(store: Store) -> bytes:
    return bytes.fromhex(
        store.setting(SETTING) or store.first_setting(SETTING, secrets.token_hex(32))
    )


def _hash(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()
