"""What became of answers, as a store counts it: sums by day, provenance and position of an item.

An event that names an answer has an `Attribution`. What it says counts once, however often it
is said: for each answer a store remembers marks, which hold no ids of users or items, only hashes.
Everything happens in the transaction that appends the event. `counted` is the one definition; the
script of `distilrec.stores.redis` says the same.

| measure | what it is a sum of |
|---|---|
| answers | answers that were given |
| shown, clicked, converted | answers of which at least one item was shown, clicked, converted |
| impressions, clicks | items of answers that were shown, clicked: an item of an answer once |
| clicked_impressions | items that were both shown and clicked |
| conversions | conversions: several of an item where their event ids differ |
| value | the values of conversions |
| squares | for each answer the square of the sum of its values |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import msgspec

Kind = Literal["impression", "click", "conversion"]
MARKS: dict[Kind, bytes] = {"impression": b"i", "click": b"c", "conversion": b"v"}
"""First byte of the marks of a kind."""
PER_ANSWER: dict[Kind, str] = {"impression": "shown", "click": "clicked", "conversion": "converted"}
"""Measure of the answers with at least one event of a kind."""
DAY = 86_400  # seconds
OUTCOME_DAYS = 400
"""For how many days every store keeps sums."""


class Attribution(msgspec.Struct, frozen=True, gc=False):
    """What an event says of the answer that it names."""

    recommendation: bytes
    """The answer: when it was given, in seconds since 1970 (4 bytes, big-endian), and the rest of
    what tells it from others.
    """
    provenance: str
    """Key of where the answer comes from."""
    kind: Kind
    """What happened to an item of it."""
    item: bytes
    """Hash of the item's id."""
    event: bytes
    """Hash of the event id: several conversions of an item count."""
    position: int = 0
    """Of the item in the list, from 1; 0 where it is not known."""
    value: float = 0.0
    """Of a conversion."""
    keep: int = 7 * DAY
    """For how many seconds after the answer its marks are needed."""

    @property
    def given(self) -> int:
        """When the answer was given, in seconds since 1970."""
        return int.from_bytes(self.recommendation[:4])


class Sum(NamedTuple):
    """What is added up. day: of the answer, since 1970, in UTC; position: 0 for whole answers and
    for items whose position is not known.
    """

    day: int
    provenance: str
    position: int
    measure: str


class Outcomes(NamedTuple):
    """Sums, and what a service said about the provenances that are in them."""

    sums: Mapping[Sum, float]
    provenances: Mapping[str, str]


def marks_of(event: Attribution) -> tuple[bytes, bytes, bytes, bytes]:
    """Return the marks of its answer that say whether, and where, an event counts: its own one, the
    impression and the click of its item, and the first event of its kind.
    """
    code, item = MARKS[event.kind], event.item
    own = code + item + (event.event if event.kind == "conversion" else b"")
    return own, b"i" + item, b"c" + item, code


def counted(
    event: Attribution, marks: Mapping[bytes, float]
) -> tuple[list[tuple[Sum, float]], dict[bytes, float]]:
    """Return what an event adds to the sums, and the marks to set for it; nothing where it has
    counted already.

    marks: those of `marks_of` that are set, and their numbers: the position of an item, or what the
    conversions of the answer were worth. An item whose position the event does not say is where an
    earlier event of the answer said.
    """
    own, impression, click, code = marks_of(event)
    if own in marks:
        return [], {}
    shown, clicked = marks.get(impression), marks.get(click)
    position = event.position or int(shown or clicked or 0)
    new = {own: float(position)}
    added = [(position, f"{event.kind}s", 1.0)]
    if event.kind == "impression" and clicked is not None:
        added.append((position, "clicked_impressions", 1.0))
    if event.kind == "click" and shown is not None:
        added.append((int(shown), "clicked_impressions", 1.0))
    if code not in marks:
        added.append((0, PER_ANSWER[event.kind], 1.0))
        new[code] = 0.0
    if event.kind == "conversion":
        total = marks.get(code, 0.0)
        added.append((position, "value", event.value))
        added.append((0, "squares", event.value * (2 * total + event.value)))
        new[code] = total + event.value
    day = event.given // DAY
    sums = [
        (Sum(day, event.provenance, place, measure), amount) for place, measure, amount in added
    ]
    return sums, new


def add_up(sums: dict[Sum, float], added: Iterable[tuple[Sum, float]]) -> None:
    """Add amounts to sums, in place."""
    for key, amount in added:
        sums[key] = sums.get(key, 0.0) + amount
