"""Visits: which of a user's latest events belong to the visit in which is asked.

A visit goes on as long as no two of its events are `gap` seconds apart, and a question belongs to
it that is asked sooner than that after its last event. Whole seconds count, as in training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from distilrec.engine.time_inputs import NEVER

VISIT_GAP = 1800.0
"""Seconds without an event that end a visit, by default: half an hour, as usual for a session on
the web.
"""


def goes_on(last: float, when: float, gap: float) -> bool:
    """Return whether what happens at a time belongs to the visit whose last event happened at
    another; no event did where that is NEVER. Both in seconds since 1970.
    """
    return last != NEVER and math.floor(when) - math.floor(last) < gap


def of_question(visit: int, last: float, now: float, gap: float) -> int:
    """Return how many of the latest events are of the visit in which is asked at a time. visit: how
    many are of the last one; last: when the last event happened, NEVER without one.
    """
    return visit if goes_on(last, now, gap) else 0


def events_of_visit(times: Sequence[float], gap: float) -> int:
    """Return how many of a user's events, whose times these are, oldest first, are those of the
    last visit.
    """
    count = min(len(times), 1)
    while count < len(times) and goes_on(times[-count - 1], times[-count], gap):
        count += 1
    return count
