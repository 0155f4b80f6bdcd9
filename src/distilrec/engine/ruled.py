"""A list under rules: `distilrec.engine.arrange` with the items and scores of a student."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple, overload

import numpy as np

from distilrec.engine.answers import Recommendation
from distilrec.engine.arrange import Arrangement, Candidate, Group, arrange
from distilrec.engine.catalogue import Catalogue
from distilrec.engine.diversity import diversified, pool_of
from distilrec.engine.filters import Filter
from distilrec.engine.fitted import Fitted, fitted
from distilrec.engine.items import Floats, Mask, Places
from distilrec.engine.rules import Pin, Rules
from distilrec.engine.runtimes.runtime import Runtime
from distilrec.errors import DistilrecError
from distilrec.ids import Id

_FURTHER = 50  # items that are looked at beyond those of the list

Source = Callable[[Places, Mask, int], tuple[Places, Floats]]
"""Gives the best k items that are not among these and pass the mask, with their keys."""


class Moved(NamedTuple):
    """What a rule did with an item.

    before: its rank without rules, None where it was further down than was looked; rank: its rank,
    None where it is left out; reason: why an item is not at the slot that it is pinned to.
    """

    rule: str
    item_id: str
    before: int | None
    rank: int | None
    reason: str = ""


class Arranged(NamedTuple):
    """items: best first, with the scores of the student, which rules do not change; moved: what the
    rules did; problems: why rules were left out, of a list that may leave some out; first: rank of
    the first item.
    """

    items: list[Recommendation]
    moved: list[Moved]
    problems: list[DistilrecError]
    first: int


@dataclass(frozen=True)
class Wanted:
    """A list that is asked for.

    state, features: of the user; had: the items that the user has had; unwanted: those that the
    user does not want to see, whatever the rules say; places are those of the catalogue; shown:
    what is on the pages before, in ids; impressions: how often items were shown to the user while
    that counts, by id; lenient: leave rules out that do not fit the catalogue, in place of raising;
    others as of `Recommender.arrange`.
    """

    state: Floats
    features: Floats
    had: Places
    unwanted: Places
    k: int
    exclude_seen: bool
    where: Filter | None
    diversity: float
    now: float
    shown: list[Id]
    impressions: Mapping[str, int]
    lenient: bool


def arranged(
    runtime: Runtime, kernels: ModuleType, catalogue: Catalogue, rules: Rules, wanted: Wanted
) -> Arranged:
    """Return a list under rules. Raises what the first of them that does not fit raises, unless the
    list is lenient; ConfigError and InvalidIdError for the filter.
    """
    fit = fitted(rules, catalogue, wanted.now, wanted.impressions)
    if fit.problems and not wanted.lenient:
        raise fit.problems[0]
    asked = catalogue.filters.mask(wanted.where)
    known = (catalogue.place(item) for item in wanted.shown)
    shown = np.array([place for place in known if place is not None], np.int32)
    hidden = np.concatenate([wanted.had, shown]) if wanted.exclude_seen else shown
    if len(wanted.unwanted):
        hidden = np.concatenate([hidden, wanted.unwanted])
    plain, source = _sources(runtime, kernels, fit, wanted)
    depth = min(_depth(wanted), len(catalogue.ids))
    without_rules: list[int] = plain(hidden, asked, depth)[0].tolist()
    mask = allowed = _all_of(asked, [] if fit.only is None else [fit.only])
    if fit.tired is not None:
        mask = _all_of(allowed, [fit.tired[1]])
    slots, refused = _slots(fit, wanted, catalogue, allowed, set(shown.tolist()))
    pinned = np.array([place for _, place in slots.values()], np.int32)
    look = _Look(source, mask, fit, np.concatenate([hidden, pinned]), depth, len(catalogue.ids))
    arrangement = arrange(
        look,
        wanted.k,
        {slot: look.candidate(place, math.inf) for slot, (_, place) in slots.items()},
        [limit.at_most for _, limit, _ in fit.limits],
        [rule.items for _, rule, _ in fit.required],
    )
    places = [candidate.place for candidate in arrangement.items]
    scores = runtime.scores_of(wanted.state[None], wanted.features, np.array(places, np.int32))[0]
    ids = catalogue.ids
    items = list(map(Recommendation, [ids[place] for place in places], scores.tolist()))
    before = {place: rank for rank, place in enumerate(without_rules, len(wanted.shown) + 1)}
    moved = [
        *_shown(fit, arrangement, {place: name for name, place in slots.values()}, before, wanted),
        *_left_out(fit, arrangement, before, wanted, look),
    ]
    named_moves = [Moved(rule, ids[place], was, rank) for rule, place, was, rank in moved]
    refusals = [
        Moved(name, str(pin.item_id), before.get(place), None, reason)
        for name, pin, place, reason in refused
    ]
    return Arranged(items, named_moves + refusals, fit.problems, len(wanted.shown) + 1)


def _all_of(mask: Mask, others: Iterable[Mask]) -> Mask:
    """Return where several masks are 1. mask: empty where it is 1 everywhere."""
    for other in others:
        mask = mask & other if len(mask) else other
    return mask


def _depth(wanted: Wanted) -> int:
    return pool_of(wanted.k) if wanted.diversity else wanted.k + _FURTHER


def _sources(
    runtime: Runtime, kernels: ModuleType, fit: Fitted, wanted: Wanted
) -> tuple[Source, Source]:
    """Return where items come from without rules, and with boosts."""

    def by_score(seen: Places, mask: Mask, k: int) -> tuple[Places, Floats]:
        return runtime.best(wanted.state, wanted.features, seen, mask, k)

    plain = boosted = by_score
    if fit.boosts:
        # Not only the best by score can be the best with boosts: all are scored.
        changed = runtime.scores(runtime.query(wanted.state, wanted.features))
        for _, boost, mask in fit.boosts:
            changed += np.float32(math.log(boost.weight)) * mask

        def by_boosted_score(seen: Places, mask: Mask, k: int) -> tuple[Places, Floats]:
            places, keys = np.empty(k, np.int32), np.empty(k, np.float32)
            count = kernels.top_k(changed.copy(), seen, mask, k, places, keys)
            return places[:count], keys[:count]

        boosted = by_boosted_score
    if not wanted.diversity:
        return plain, boosted
    diverse = [_diverse(source, runtime, kernels, wanted.diversity) for source in (plain, boosted)]
    return diverse[0], diverse[1]


def _diverse(source: Source, runtime: Runtime, kernels: ModuleType, diversity: float) -> Source:
    """Return a source whose items come in order of their marginal relevance."""
    given = 0

    def in_order(seen: Places, mask: Mask, k: int) -> tuple[Places, Floats]:
        nonlocal given
        places, scores = source(seen, mask, k)
        order = diversified(runtime, kernels, places, scores, len(places), diversity)
        keys = -np.arange(given, given + len(places), dtype=np.float32)
        given += len(places)
        return places[order], keys

    return in_order


def _slots(
    fit: Fitted, wanted: Wanted, catalogue: Catalogue, mask: Mask, shown: Collection[int]
) -> tuple[dict[int, tuple[str, int]], list[tuple[str, Pin, int, str]]]:
    """Return the pins by their slots on this page, as names and places, and those that are refused,
    with the reason.
    """
    slots: dict[int, tuple[str, int]] = {}
    refused = []
    had = set(wanted.had.tolist()) if wanted.exclude_seen and fit.pins else ()
    for name, pin in fit.pins:
        slot = pin.slot - len(wanted.shown)
        if not 1 <= slot <= wanted.k:
            continue
        place = catalogue.place(pin.item_id)
        if place is None or not catalogue.knows(pin.item_id):
            reason = "unknown"
        elif not catalogue.filters.is_available(place):
            reason = "not available"
        elif len(mask) and not mask[place]:
            reason = "filtered"
        elif place in shown:
            reason = "shown"
        elif place in wanted.unwanted:
            reason = "unwanted"
        elif place in had and not pin.seen:
            reason = "seen"
        else:
            slots[slot] = name, place
            continue
        refused.append((name, pin, -1 if place is None else place, reason))
    return slots, refused


class _Look:
    """Gives `arrange` the items of a source that may be in the list."""

    def __init__(
        self, source: Source, mask: Mask, fit: Fitted, hidden: Places, depth: int, items: int
    ) -> None:
        self._source, self._mask, self._hidden, self._depth = source, mask, hidden, depth
        self._items = items
        self._limits = [counted for _, _, counted in fit.limits]
        self._required = [required for _, _, required in fit.required]
        self._counts_nothing = not self._limits and not self._required

    def __call__(
        self, taken: Collection[int], full: Collection[Group], kind: int | None
    ) -> Sequence[Candidate]:
        mask = self._mask
        if kind is not None:
            mask = self._required[kind] & mask if len(mask) else self._required[kind]
        if full:
            mask = mask.copy() if len(mask) else np.ones(self._items, np.uint8)
            for group in full:
                mask[self._members(*group)] = 0
        seen = np.concatenate([self._hidden, np.fromiter(taken, np.int32, len(taken))])
        places, keys = self._source(seen, mask, self._depth if kind is None else 1)
        return _Candidates(self, places.tolist(), keys.tolist())

    def candidate(self, place: int, key: float) -> Candidate:
        """Return an item with what it counts for."""
        if self._counts_nothing:
            return Candidate(place, key)
        kinds = frozenset(kind for kind, mask in enumerate(self._required) if mask[place])
        return Candidate(place, key, tuple(self.groups_of(place)), kinds)

    def groups_of(self, place: int) -> list[Group]:
        """Return the groups that an item counts in."""
        return [
            (number, category)
            for number, (groups, where) in enumerate(self._limits)
            if where is None or where[place]
            for category in ((0,) if groups is None else groups.of(place))
        ]

    def _members(self, limit: int, category: int) -> Places:
        groups, where = self._limits[limit]
        if groups is None:
            assert where is not None  # a limit has one of the two
            return np.flatnonzero(where).astype(np.int32)
        members = groups.members(category)
        return members if where is None else members[where[members] == 1]


class _Candidates(Sequence[Candidate]):
    """Items with what they count for, which is looked up as far as they are read: most lists are
    full after a few.
    """

    def __init__(self, look: _Look, places: list[int], keys: list[float]) -> None:
        self._look, self._places, self._keys = look, places, keys
        self._known: list[Candidate] = []

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, rank: int) -> Candidate: ...
    @overload
    def __getitem__(self, rank: slice) -> Sequence[Candidate]: ...
    def __getitem__(self, rank: int | slice) -> Candidate | Sequence[Candidate]:
        if isinstance(rank, slice):
            return [self[number] for number in range(*rank.indices(len(self)))]
        number = range(len(self))[rank]
        while len(self._known) <= number:
            self._look_up()
        return self._known[number]

    def __iter__(self) -> Iterator[Candidate]:
        known = self._known
        for number in range(len(self._places)):
            if number == len(known):
                self._look_up()
            yield known[number]

    def _look_up(self) -> None:
        """Add the next item to those that are known."""
        number = len(self._known)
        self._known.append(self._look.candidate(self._places[number], self._keys[number]))


_Move = tuple[str, int, int | None, int | None]  # rule, place, rank without rules, rank


def _shown(
    fit: Fitted,
    arrangement: Arrangement,
    pins: dict[int, str],
    before: dict[int, int],
    wanted: Wanted,
) -> Iterator[_Move]:
    """Yield what the rules did with the items of the list. pins: names by place."""
    for rank, candidate in enumerate(arrangement.items, len(wanted.shown) + 1):
        place = candidate.place
        was = before.get(place)
        if place in pins:
            yield pins[place], place, was, rank
        elif place in arrangement.added:
            yield fit.required[arrangement.added[place]][0], place, was, rank
        elif was != rank:
            for name in _boosts(fit, place, up=was is None or rank < was):
                yield name, place, was, rank


def _left_out(
    fit: Fitted, arrangement: Arrangement, before: dict[int, int], wanted: Wanted, look: _Look
) -> Iterator[_Move]:
    """Yield what the rules did with items that would be in the list without them."""
    listed = {candidate.place for candidate in arrangement.items}
    for place, was in before.items():
        if was > len(wanted.shown) + wanted.k:
            return
        if place in listed:
            continue
        if fit.only is not None and not fit.only[place]:
            names = ["filter"]
        elif fit.tired is not None and not fit.tired[1][place]:
            names = [fit.tired[0]]
        else:
            full = {limit for limit, _ in arrangement.full.intersection(look.groups_of(place))}
            names = [fit.limits[limit][0] for limit in sorted(full)]
            names = names or _boosts(fit, place, up=False)
        for name in names:
            yield name, place, was, None


def _boosts(fit: Fitted, place: int, *, up: bool) -> list[str]:
    """Return the names of the rules that raise the score of an item, or that lower it."""
    return [name for name, boost, mask in fit.boosts if mask[place] and (boost.weight > 1) == up]
