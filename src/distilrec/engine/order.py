"""The order in which a user's stored events are folded, and which of them the bundle's history
holds already.

docs/decisions/event-times.md says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from distilrec.stores.records import StoredEvent

MAX_CLOCK_SKEW = 300.0  # seconds that a timestamp of a sender may lie in the future
_HOUR = 3600.0
BEFORE = 14 * _HOUR
"""The log's times may be this many seconds late: local times of UTC+14 that were read as UTC."""
AFTER = 38 * _HOUR
"""The log's times may be this many seconds early: dates without a time of day (24 hours), in UTC-12
or -14.
"""
TAIL = BEFORE + AFTER
"""A stored event from around the end of a log is looked for among the events of this many last
seconds of the log.
"""


class Placed(NamedTuple):
    """A stored event with its arrival and its place in time, as far as the clock of the service can
    be believed.
    """

    event: StoredEvent
    received: float
    when: float


def placed(events: Sequence[StoredEvent]) -> list[Placed]:
    """Return events, given in order of arrival, with the times that they can have had, in order of
    arrival.

    No event was received later than one that arrived after it: where the clock was ahead once, or
    has been set back, the earliest later arrival counts. An event without a time of its sender
    happened when it was received.
    """
    placed_events: list[Placed] = []
    received = float("inf")
    for event in reversed(events):
        received = min(received, event.received)
        placed_events.append(Placed(event, received, _when(event, received)))
    return placed_events[::-1]


def _when(event: StoredEvent, received: float) -> float:
    if event.timestamp == event.received:
        return received
    return min(event.timestamp, received + MAX_CLOCK_SKEW)


def follows(event: StoredEvent, last: float, received: float) -> bool:
    """Return whether a new event can be folded after the others without sorting them again.

    last: the latest time of the others; received: when the latest of them arrived.
    """
    return event.received >= received and _when(event, event.received) >= last


class History(NamedTuple):
    """How to tell which stored events are in the bundle's history.

    certain: what was received up to here is in it, or was left out of it on purpose; over: what was
    received later than this is not; tail: events between the two, and those shortly before, are
    compared with the user's last events.
    one_type: the log had a single type of event, so types cannot be compared.
    """

    certain: float
    over: float
    tail: float
    one_type: bool

    def holds(
        self, unmatched: list[tuple[int, int]] | None, item: int, kind: int, received: float
    ) -> bool:
        """Return whether an event is in the history. unmatched: the user's events of the tail,
        less what was found.
        """
        if received > self.over:
            return False
        if unmatched and received > self.tail:
            pair = (item, 0 if self.one_type else kind)
            if pair in unmatched:
                unmatched.remove(pair)
                return True
        return received <= self.certain


def history_until(end: float, event_types: int, *, with_tail: bool) -> History:
    """Return the rules for a history whose last event has the time `end` in the log.

    with_tail: whether the bundle says which events are from around the end; older bundles do not,
    and are believed to the second.
    """
    one_type = event_types <= 2  # the unknown type comes first
    if not with_tail:
        return History(end, end, end, one_type)
    return History(end - BEFORE, end + AFTER, end - TAIL, one_type)
