"""What is popular: events of a window of hours, counted by item, newer ones perhaps for more."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from distilrec.engine.events import MAX_EVENT_TYPE
from distilrec.errors import ConfigError
from distilrec.ids import as_label
from distilrec.stores.records import KEPT_HOURS, Store, hour_of

WEEK = 7 * 24
Ranking = list[tuple[str, float]]
"""Items and their scores, best first."""


class Window(NamedTuple):
    """Which events count: those of the current hour and of the `hours - 1` hours before it.

    half_life: hours after which an event counts half; None: all count alike. event_types: sorted,
    None for all.
    """

    hours: int
    half_life: float | None = None
    event_types: tuple[str, ...] | None = None

    def ranking(self, counts: Mapping[tuple[int, str], int], hour: int) -> Ranking:
        """Return the items of `Store.counts` with sum n 2^(-age / half_life), age in hours, best
        first, equal ones by id. hour: the current one.
        """
        scores: dict[str, float] = {}
        for (when, item), number in counts.items():
            age = max(hour - when, 0)
            weight = 1.0 if self.half_life is None else 0.5 ** (age / self.half_life)
            scores[item] = scores.get(item, 0.0) + weight * number
        return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


def ranking_of(store: Store, window: Window, now: float) -> Ranking:
    """Return the items of a window, best first, as a store counts them. Raises StoreError."""
    hour = hour_of(now)  # an event may be a little ahead of the clock
    counts = store.counts(hour - window.hours + 1, hour + 1, window.event_types)
    return window.ranking(counts, hour)


def window_of(hours: int, half_life: float | None, event_types: Collection[str] | None) -> Window:
    """Return a checked window. Raises ConfigError and InvalidIdError."""
    if not 1 <= hours <= KEPT_HOURS:
        raise ConfigError(
            f"window is {hours}", fix=f"give hours, from 1 to {KEPT_HOURS:,}", parameter="window"
        )
    if half_life is not None and not 0 < half_life <= KEPT_HOURS:
        raise ConfigError(
            f"half_life is {half_life}",
            fix=f"give hours, more than 0 and up to {KEPT_HOURS:,}",
            parameter="half_life",
        )
    if event_types is None:
        return Window(hours, half_life)
    if isinstance(event_types, str) or not event_types:
        raise ConfigError(
            f"event_types is {event_types!r}",
            fix='give a list of types, such as ["view"], or leave it out',
            parameter="event_types",
        )
    types = {as_label(name, "event_types", MAX_EVENT_TYPE) for name in event_types}
    return Window(hours, half_life, tuple(sorted(types)))
