"""Lists under rules, over catalogues of plain numbers: what must hold for all of them."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from distilrec.engine.arrange import Candidate, arrange


@st.composite
def catalogues(draw):
    """Items with their scores; some of a few categories of two attributes, some of two kinds."""
    count = draw(st.integers(0, 30))
    group = st.tuples(st.integers(0, 1), st.integers(0, 3))
    return [
        Candidate(
            place,
            draw(st.floats(-5, 5, allow_nan=False)),
            tuple(draw(st.sets(group, max_size=3))),
            draw(st.frozensets(st.integers(0, 1))),
        )
        for place in range(count)
    ]


@st.composite
def questions(draw):
    items = draw(catalogues())
    k = draw(st.integers(1, 12))
    slots = draw(st.sets(st.integers(1, k), max_size=min(4, len(items))))
    chosen = draw(st.permutations(items))
    pins = dict(zip(sorted(slots), chosen, strict=False))
    at_most = draw(st.lists(st.integers(1, 4), min_size=2, max_size=2))
    at_least = draw(st.lists(st.integers(0, 4), min_size=2, max_size=2))
    depth = draw(st.integers(1, 8))
    return items, k, pins, at_most, at_least, depth


class Look:
    """Gives the next few items; counts how often it is asked."""

    def __init__(self, items, pins, depth):
        self.items = sorted(items, key=lambda item: (-item.key, item.place))
        self.items = [item for item in self.items if item not in pins.values()]
        self.depth, self.asked = depth, 0

    def __call__(self, taken, full, kind):
        self.asked += 1
        found = (
            item
            for item in self.items
            if item.place not in taken
            and not set(item.groups) & set(full)
            and (kind is None or kind in item.kinds)
        )
        return list(found)[: self.depth if kind is None else 1]


def counts_of(items):
    return Counter(group for item in items for group in item.groups)


@given(question=questions())
def test_what_holds_for_every_list(question):
    items, k, pins, at_most, at_least, depth = question
    look = Look(items, pins, depth)
    found = arrange(look, k, pins, at_most, at_least)
    listed = found.items
    places = [item.place for item in listed]
    assert len(set(places)) == len(places) <= k
    rest = [item for item in listed if item not in pins.values()]
    # Pins at their slots, in their order at the end of a list that is too short
    assert set(pins.values()) <= set(listed)
    for slot, pin in pins.items():
        place = listed.index(pin) + 1
        assert place == slot or (place < slot and not set(listed[place:]) - set(pins.values()))
    # The others by score
    assert [item.key for item in rest] == sorted((item.key for item in rest), reverse=True)
    # Limits hold but for what is pinned
    counts, of_pins = counts_of(listed), counts_of(pins.values())
    for (limit, category), count in counts.items():
        assert count <= max(at_most[limit], of_pins[limit, category])
    # Fewer than k only where nothing else is allowed
    full = {group for group, count in counts.items() if count >= at_most[group[0]]}
    assert found.full == full
    if len(listed) < k:
        assert all(item in listed or set(item.groups) & full for item in items)
    assert look.asked <= 3 * (k + 2) ** 2


@given(question=questions())
def test_without_limits_requirements_are_met_where_they_can_be(question):
    items, k, pins, _, at_least, depth = question
    at_most = [len(items) + 1] * 2
    listed = arrange(Look(items, pins, depth), k, pins, at_most, [at_least[0]]).items
    there = sum(0 in item.kinds for item in listed)
    pinned = sum(0 in pin.kinds for pin in pins.values())
    possible = min(sum(0 in item.kinds for item in items), pinned + k - len(pins))
    assert there >= min(at_least[0], possible)
    assert len(listed) == min(k, len(items))


@given(question=questions())
def test_without_requirements_a_list_is_the_greedy_one(question):
    items, k, pins, at_most, _, depth = question
    counts, greedy = counts_of(pins.values()), []
    for item in sorted(items, key=lambda item: (-item.key, item.place)):
        fits = all(counts[group] < at_most[group[0]] for group in item.groups)
        if len(greedy) + len(pins) < k and item not in pins.values() and fits:
            greedy.append(item)
            counts.update(item.groups)
    listed = arrange(Look(items, pins, depth), k, pins, at_most, []).items
    assert [item for item in listed if item not in pins.values()] == greedy


@given(items=catalogues(), k=st.integers(1, 12))
def test_without_rules_the_best_come_first(items, k):
    look = Look(items, {}, 50)
    best = sorted(items, key=lambda item: (-item.key, item.place))[:k]
    found = arrange(look, k, {}, [99, 99], [0])
    assert found.items == best
    assert not found.added and not found.full
    assert look.asked == 1 + (0 < len(items) < k)


def test_the_best_of_a_kind_replaces_the_last():
    items = [
        Candidate(place, -place, (), frozenset({0} if place >= 7 else ())) for place in range(9)
    ]
    found = arrange(Look(items, {}, 50), 3, {}, [], [1])
    assert [item.place for item in found.items] == [0, 1, 7]
    assert found.added == {7: 0}


def test_a_list_that_a_limit_empties_is_filled_from_further_down():
    items = [Candidate(place, -place, ((0, place // 100),)) for place in range(1_000)]
    look = Look(items, {}, 20)
    found = arrange(look, 6, {}, [2], [])
    assert [item.place for item in found.items] == [0, 1, 100, 101, 200, 201]
    assert look.asked == 3
