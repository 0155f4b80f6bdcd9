"""Rules of a list: what a shop wants besides the scores; per request, or by placement in a file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from distilrec.engine.filters import Filter
from distilrec.errors import ConfigError
from distilrec.ids import as_id
from distilrec.settings import Count, Positive, Settings, Share, converted, read_settings
from distilrec.stores.records import SHOWN_HOURS

MAX_RULES = 32  # of one kind
DAY = 86_400.0  # seconds

Name = Annotated[str, Meta(max_length=128)]
Placement = Annotated[str, Meta(min_length=1, max_length=128)]


class Pin(Settings, frozen=True, omit_defaults=True):
    """Shows an item at a slot. An item that is unknown, not available, or does not pass the filters
    is not shown.
    """

    item_id: str | int | float
    """Id of the item."""
    slot: Count
    """Where it is shown, from 1; a slot of the whole list where that has several pages."""
    seen: bool = False
    """Whether also users see it there who have already had the item."""
    name: Name = ""
    """What answers call the rule; `pin 1`, `pin 2`, … without it."""


class Boost(Settings, frozen=True, omit_defaults=True):
    """Makes items count for more, or for less."""

    where: Filter
    """Which items."""
    weight: Positive
    """What their probability is multiplied by, which adds log(weight) to the score: more than 1
    boosts, less than 1 buries.
    """
    name: Name = ""
    """What answers call the rule; `boost 1`, … without it."""


class Limit(Settings, frozen=True, omit_defaults=True):
    """Shows at most n items of each category, or of those that pass a filter. Pinned items count,
    and stay.
    """

    at_most: Count
    """How many."""
    attribute: str | None = None
    """Attribute whose categories, or numbers, are counted apart; an item with several categories
    counts for each, one without the attribute for none.
    """
    where: Filter | None = None
    """Which items are counted; all without it."""
    name: Name = ""
    """What answers call the rule; `limit 1`, … without it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attribute is None and self.where is None:
            raise ConfigError(
                "a limit says neither `attribute` nor `where`",
                fix="name the attribute whose categories are limited, or say which items are",
                parameter="limit",
            )


class Newness(Settings, frozen=True, omit_defaults=True):
    """Which items are new."""

    attribute: str | None = None
    """Numeric attribute with the time from which an item is there, in seconds since 1970; without
    it, new are the items that were added since the bundle was made.
    """
    days: Positive = 30.0
    """For how many days an item is new after that time."""


class Requirement(Settings, frozen=True, omit_defaults=True):
    """Shows at least n items of a kind: the best of them replace the last of the others."""

    items: Count = 1
    """How many."""
    where: Filter | None = None
    """Which items."""
    new: Newness | None = None
    """Only new items."""
    name: Name = ""
    """What answers call the rule; `at_least 1`, … without it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.where is None and self.new is None:
            raise ConfigError(
                "a rule of `at_least` says neither `where` nor `new`",
                fix="say which items there must be: where = {…}, or new = {}",
                parameter="at_least",
            )


class Tiredness(Settings, frozen=True, omit_defaults=True):
    """What happens to items that were shown to the user lately. Pinned items stay."""

    impressions: Count = 3
    """How often an item is shown before it is tired."""
    hours: Annotated[float, Meta(gt=0, le=SHOWN_HOURS)] = 24.0
    """For how long an impression counts."""
    weight: Share = 0.0
    """What the probability of a tired item is multiplied by, as of a boost; 0 leaves it out."""
    answers: bool = False
    """Whether every item of an answer to the user counts as shown, besides events of the type
    `impression`.
    """
    name: Name = "tired"
    """What answers call the rule."""


class Rules(Settings, frozen=True, omit_defaults=True):
    """The rules of one list. No item is in it twice, and none that is not available."""

    pin: Annotated[tuple[Pin, ...], Meta(max_length=MAX_RULES)] = ()
    """Items at fixed slots."""
    boost: Annotated[tuple[Boost, ...], Meta(max_length=MAX_RULES)] = ()
    """Items that count for more or less."""
    limit: Annotated[tuple[Limit, ...], Meta(max_length=MAX_RULES)] = ()
    """At most n items of a category."""
    at_least: Annotated[tuple[Requirement, ...], Meta(max_length=MAX_RULES)] = ()
    """At least n items of a kind."""
    filter: Filter | None = None
    """Only items that pass; besides the filter of the request."""
    tired: Tiredness | None = None
    """Items that were shown lately."""

    def __post_init__(self) -> None:
        slots = Counter(pin.slot for pin in self.pin)
        items = Counter(as_id(pin.item_id, "pin.item_id") for pin in self.pin)
        for what, counts in (("slot", slots), ("item", items)):
            if twice := [value for value, count in counts.items() if count > 1]:
                raise ConfigError(
                    f"two rules of `pin` have the {what} {twice[0]!r}",
                    fix="give each pin a slot and an item of its own",
                    parameter="pin",
                )

    @property
    def count(self) -> int:
        """How many rules there are."""
        of_lists = len(self.pin) + len(self.boost) + len(self.limit) + len(self.at_least)
        return of_lists + (self.filter is not None) + (self.tired is not None)

    @property
    def filters(self) -> list[Filter]:
        """All filters of the rules."""
        found = [self.filter, *(boost.where for boost in self.boost)]
        found += [limit.where for limit in self.limit]
        found += [rule.where for rule in self.at_least]
        return [chosen for chosen in found if chosen is not None]


class _File(Settings, frozen=True):
    placements: dict[Placement, dict[str, Any]] = msgspec.field(default_factory=dict)


Rule = TypeVar("Rule", Pin, Boost, Limit, Requirement)


def named(kind: str, rules: tuple[Rule, ...]) -> list[tuple[str, Rule]]:
    """Return the rules of a kind with the names that answers call them by."""
    return [(rule.name or f"{kind} {number}", rule) for number, rule in enumerate(rules, 1)]


def read_rules(path: Path | str) -> dict[str, Rules]:
    """Return the rules of each placement in a TOML file: `[placements.NAME]` has those of the lists
    at that place.

    Raises FileMissingError, and ConfigError that names the placement and the key; InvalidIdError.
    """
    content = read_settings(path, _File, fix="give the path of a file with [placements.NAME]")
    return {
        name: converted(section, Rules, f"{path}, placement {name!r}")
        for name, section in content.placements.items()
    }
