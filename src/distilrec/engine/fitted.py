"""Rules as masks and groups over the items of a catalogue."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

from distilrec.engine.catalogue import Catalogue
from distilrec.engine.filters import Filter
from distilrec.engine.groups import Groups
from distilrec.engine.items import Mask
from distilrec.engine.rules import (
    DAY,
    Boost,
    Limit,
    Newness,
    Pin,
    Requirement,
    Rules,
    Tiredness,
    named,
)
from distilrec.errors import ConfigError, DistilrecError

Rule = TypeVar("Rule", Boost, Limit, Requirement)
Fit = TypeVar("Fit")


@dataclass
class Fitted:
    """Rules by kind, each with its name and what it means for this catalogue. problems: why the
    others do not fit it. tired: name, and 0 for items that are left out because they were shown.
    """

    only: Mask | None
    pins: list[tuple[str, Pin]]
    boosts: list[tuple[str, Boost, Mask]]
    limits: list[tuple[str, Limit, tuple[Groups | None, Mask | None]]]
    required: list[tuple[str, Requirement, Mask]]
    problems: list[DistilrecError] = field(default_factory=list)
    tired: tuple[str, Mask] | None = None


def fitted(
    rules: Rules, catalogue: Catalogue, now: float, shown: Mapping[str, int] | None = None
) -> Fitted:
    """Return the rules that fit a catalogue.

    now: of the question, in seconds since 1970; shown: how often items were shown to the user while
    that counts, by id.
    """
    masks, problems = catalogue.filters, list[DistilrecError]()

    def fits(name: str, make: Callable[[], Fit]) -> list[Fit]:
        try:
            return [make()]
        except DistilrecError as problem:
            message = f"rule {name!r}: {problem.message}"
            problems.append(type(problem)(message, fix=problem.fix, **problem.context))
            return []

    def all_of(
        kind: str, given: tuple[Rule, ...], make: Callable[[Rule], Fit]
    ) -> list[tuple[str, Rule, Fit]]:
        return [
            (name, rule, made)
            for name, rule in named(kind, given)
            for made in fits(name, partial(make, rule))
        ]

    only = [] if rules.filter is None else fits("filter", lambda: masks.mask(rules.filter))
    found = Fitted(
        only[0] if only else None,
        named("pin", rules.pin),
        all_of("boost", rules.boost, lambda boost: masks.mask(boost.where)),
        all_of("limit", rules.limit, lambda limit: _counted(limit, catalogue)),
        all_of("at_least", rules.at_least, lambda rule: _of_kind(rule, catalogue, now)),
        problems,
    )
    if rules.tired is not None and shown:
        _tire(found, rules.tired, shown, catalogue)
    return found


def _tire(found: Fitted, rule: Tiredness, shown: Mapping[str, int], catalogue: Catalogue) -> None:
    """Add what happens to the items that were shown too often: a boost of less than 1, or a
    mask.
    """
    places = [
        place
        for item, number in shown.items()
        if number >= rule.impressions and (place := catalogue.index.get(item)) is not None
    ]
    if not places:
        return
    tired = np.zeros(len(catalogue.ids), np.uint8)
    tired[places] = 1
    if rule.weight:
        found.boosts.append((rule.name, Boost(Filter(), rule.weight), tired))
    else:
        found.tired = rule.name, np.uint8(1) - tired


def _counted(limit: Limit, catalogue: Catalogue) -> tuple[Groups | None, Mask | None]:
    groups = None if limit.attribute is None else catalogue.filters.groups(limit.attribute)
    return groups, None if limit.where is None else catalogue.filters.mask(limit.where)


def _of_kind(rule: Requirement, catalogue: Catalogue, now: float) -> Mask:
    if rule.new is None:
        return catalogue.filters.mask(rule.where)
    mask = _new_items(rule.new, catalogue, now)
    return mask if rule.where is None else mask & catalogue.filters.mask(rule.where)


def _new_items(new: Newness, catalogue: Catalogue, now: float) -> Mask:
    if new.attribute is None:
        return (np.arange(len(catalogue.ids)) >= catalogue.of_bundle).astype(np.uint8)
    numbers = catalogue.filters.attributes.numbers
    since = numbers.get(new.attribute)
    if since is None:
        raise ConfigError(
            f"no item has a numeric attribute {new.attribute!r}; known: "
            f"{', '.join(sorted(numbers)) or 'none'}",
            fix="name an attribute that holds seconds since 1970",
            parameter="new.attribute",
        )
    # An item without the attribute, not a number, is not new
    return ((since <= now) & (since > now - DAY * new.days)).astype(np.uint8)
