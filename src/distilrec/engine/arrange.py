"""Put a list together from items in order of their scores, under three kinds of rules: items at
fixed slots, at most n items of a group, and at least n items of a kind.

Nothing here knows where items come from: `Look` gives them, as far down as they are needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

Group = tuple[int, int]
"""The number of a limit, and of one category that it counts."""


class Candidate(NamedTuple):
    """An item that may be in the list.

    place: of the item; key: the larger, the earlier in the list; groups: those it counts in; kinds:
    the numbers of the requirements that it counts for.
    """

    place: int
    key: float
    groups: tuple[Group, ...] = ()
    kinds: frozenset[int] = frozenset()


class Look(Protocol):
    """Gives the next items."""

    def __call__(
        self, taken: Collection[int], full: Collection[Group], kind: int | None
    ) -> Sequence[Candidate]:
        """Return the first items, best first, that are not among `taken`, in no group that is full,
        and of this kind, where one is given; empty where there are none.
        """
        ...


class Arrangement(NamedTuple):
    """items: in order; added: by place the requirement that an item is there for; full: the groups
    that take no more items.
    """

    items: list[Candidate]
    added: dict[int, int]
    full: frozenset[Group]


def arrange(
    look: Look,
    k: int,
    pins: Mapping[int, Candidate],
    at_most: Sequence[int],
    at_least: Sequence[int],
) -> Arrangement:
    """Return a list of k items; fewer where no more are allowed.

    pins: by slot, from 1 to k: these stay, also where a group is full, and count in it; in a list
    that ends before their slot they are its last ones. All others are in order of their keys.
    at_most: of each limit, how many items a group may have. at_least: of each requirement, how many
    items must be of its kind: where they are missing, the best of them replace the last of the
    others, as far as there are any and the limits allow it.

    O(k) looks; one where nothing is missing and enough of what it finds fits in.
    """
    held = list(pins.values())
    added: dict[int, int] = {}
    first = look((), (), None)
    while True:
        chosen, counts = _filled(look, first, held, k - len(held), at_most)
        found = None
        if len(held) < k:
            found = _missing(look, held, chosen, at_most, at_least)
        if found is None:
            break
        candidate, kind = found
        held.append(candidate)
        added[candidate.place] = kind
    rest = sorted([*held[len(pins) :], *chosen], key=lambda candidate: -candidate.key)
    return Arrangement(_at_slots(pins, rest), added, _full(counts, at_most))


def _filled(
    look: Look, first: Sequence[Candidate], held: list[Candidate], room: int, at_most: Sequence[int]
) -> tuple[list[Candidate], Counter[Group]]:
    """Return the best items beside those that are held, and how many items each group has."""
    counts = Counter(group for candidate in held for group in candidate.groups)
    taken = {candidate.place for candidate in held}
    chosen: list[Candidate] = []
    candidates = first
    while candidates and len(chosen) < room:
        for candidate in candidates:
            if len(chosen) == room:
                break
            if candidate.place not in taken and _fits(candidate, counts, at_most):
                chosen.append(candidate)
                taken.add(candidate.place)
                for group in candidate.groups:
                    counts[group] = counts.get(group, 0) + 1
        if len(chosen) < room:
            candidates = look(taken, _full(counts, at_most), None)
    return chosen, counts


def _fits(candidate: Candidate, counts: Mapping[Group, int], at_most: Sequence[int]) -> bool:
    """Return whether no group of an item is full."""
    return all(counts.get(group, 0) < at_most[group[0]] for group in candidate.groups)


def _missing(
    look: Look,
    held: list[Candidate],
    chosen: list[Candidate],
    at_most: Sequence[int],
    at_least: Sequence[int],
) -> tuple[Candidate, int] | None:
    """Return the best item of a kind of which there are too few, and that kind; None where no more
    are needed, or there are none.
    """
    listed = [*held, *chosen]
    for kind, number in enumerate(at_least):
        if sum(kind in candidate.kinds for candidate in listed) < number:
            counts = Counter(group for candidate in held for group in candidate.groups)
            taken = {candidate.place for candidate in listed}
            if found := look(taken, _full(counts, at_most), kind):
                return found[0], kind
    return None


def _full(counts: Mapping[Group, int], at_most: Sequence[int]) -> frozenset[Group]:
    return frozenset(group for group, count in counts.items() if count >= at_most[group[0]])


def _at_slots(pins: Mapping[int, Candidate], rest: Sequence[Candidate]) -> list[Candidate]:
    waiting = list(rest)[::-1]
    found = []
    for slot in range(1, len(rest) + max(pins, default=0) + 1):
        if slot in pins:
            found.append(pins[slot])
        elif waiting:
            found.append(waiting.pop())
    return found
