"""Tests that every store must pass; a test class per kind of store inherits them.

They need the packages pytest and hypothesis, and run in the test suite that imports them:

    class TestMyStore(StoreContract):
        @pytest.fixture
        def opener(self, tmp_path):
            return lambda: open_store(f"mine://{tmp_path}")

        def damage_item(self, store, item_id):
            ...
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import count, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec.errors import StoreUnavailableError
from distilrec.stores.outcomes import DAY, Attribution, Kind, Sum
from distilrec.stores.records import (
    IMPRESSION,
    MAX_SHOWN,
    SHOWN_HOURS,
    ItemRecord,
    Since,
    Store,
    StoredEvent,
    hour_of,
)
from distilrec.testing.properties import of_contract

Opener = Callable[[], Store]

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
_PATIENCE = 120.0  # seconds
_ANSWERS = count(1)  # of the examples of a test, which share a store
_GIVEN = int(time.time())  # when the answers were given: what is old is forgotten


def event(
    user: str = "u",
    item: str = "i",
    number: int = 0,
    event_id: str | None = None,
    when: float = 1.5,
) -> StoredEvent:
    """Return an event that differs from others by its number."""
    return StoredEvent(user, f"{item}{number}", "view", when, when + 1, event_id or f"e{number}")


def impression(user: str, item: str, event_id: str, when: float) -> StoredEvent:
    """Return an impression that arrives when it happens."""
    return StoredEvent(user, item, IMPRESSION, when, when, event_id)


def attributed(
    kind: Kind,
    item: str,
    event_id: str,
    answer: int = 0,
    position: int = 0,
    value: float = 0.0,
    user: str = "u",
    when: float = _GIVEN,
) -> StoredEvent:
    """Return an event that names an answer of today; answers with odd numbers are of `p1`."""
    attribution = Attribution(
        _GIVEN.to_bytes(4) + answer.to_bytes(6),
        f"p{answer % 2}",
        kind,
        item.encode()[:8],
        event_id.encode()[:8],
        position,
        value,
    )
    return StoredEvent(
        user, item, IMPRESSION if kind == "impression" else kind, when, when, event_id, attribution
    )


def sums_of(store: Store) -> dict[tuple[str, int, str], float]:
    """Return all sums of outcomes of that day that are not 0."""
    day = _GIVEN // DAY
    assert store.outcomes(day - 5, day - 1).sums == {}
    return {key[1:]: amount for key, amount in store.outcomes(day, day).sums.items() if amount}


def sums_by_hand(
    events: Iterable[StoredEvent],
) -> dict[tuple[str, int, str], float]:
    """Return the sums of events in order of arrival, computed answer by answer."""
    answers: dict[bytes, list[Attribution]] = {}
    for one in events:
        assert one.attribution is not None
        answers.setdefault(one.attribution.recommendation, []).append(one.attribution)
    sums: Counter[tuple[str, int, str]] = Counter()
    for said in answers.values():
        name, places = said[0].provenance, dict[tuple[str, bytes], int]()
        once: dict[tuple[str, bytes, bytes], Attribution] = {}
        for a in said:
            if (key := (a.kind, a.item, a.event if a.kind == "conversion" else b"")) in once:
                continue
            once[key] = a
            earlier = places.get(("impression", a.item)) or places.get(("click", a.item)) or 0
            place = a.position or earlier
            if a.kind == "conversion":
                sums[name, place, "value"] += a.value  # type: ignore[assignment]
            else:
                places[a.kind, a.item] = place
            sums[name, place, f"{a.kind}s"] += 1
        for item in {item for kind, item in places if kind == "impression"}:
            if ("click", item) in places:
                sums[name, places["impression", item], "clicked_impressions"] += 1
        kinds = {kind for kind, *_ in once}
        for kind, measure in (
            ("impression", "shown"),
            ("click", "clicked"),
            ("conversion", "converted"),
        ):
            sums[name, 0, measure] += kind in kinds
        worth = sum(a.value for a in once.values() if a.kind == "conversion")
        sums[name, 0, "squares"] += worth**2  # type: ignore[assignment]
    return {key: amount for key, amount in sums.items() if amount}


class StoreContract:
    """The contract of `distilrec.stores.records.Store`.

    A subclass says in `opener` how its store is opened, again after it was closed as after a
    restart, and in `damage_item` how the record of an item gets unreadable.
    """

    @pytest.fixture
    def opener(self) -> Opener:
        """Return a function that opens the store of a test, always the same one."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, opener: Opener) -> Iterator[Store]:
        """Give the store, opened."""
        opened = opener()
        yield opened
        opened.close()

    def test_what_is_appended_is_read_in_order_also_after_a_restart(self, opener: Opener) -> None:
        store = opener()
        events = [event(number=n) for n in range(5)] + [event("other", number=9)]
        positions = store.append(events)
        assert all(a < b for a, b in pairwise(positions[:5]))
        store.close()
        store = opener()
        mine, others, stranger = store.read([Since("u"), Since("other"), Since("stranger")])
        assert list(mine.events) == events[:5]
        assert mine.position == positions[4]
        assert mine.restart and mine.epoch and not mine.erased and mine.features is None
        assert list(others.events) == events[5:]
        assert (stranger.epoch, stranger.position, stranger.restart) == ("", 0, True)
        assert (list(stranger.events), stranger.features, stranger.erased) == ([], None, False)
        store.close()

    def test_only_what_is_new_is_read(self, store: Store) -> None:
        store.append([event(number=n) for n in range(3)])
        first = store.read([Since("u")])[0]
        (nothing,) = store.read([Since("u", first.epoch, first.position)])
        assert (list(nothing.events), nothing.restart, nothing.position) == (
            [],
            False,
            first.position,
        )
        store.append([event("other", number=7), event(number=3)])
        (new,) = store.read([Since("u", first.epoch, first.position)])
        assert [e.event_id for e in new.events] == ["e3"]
        assert not new.restart and new.position > first.position

    def test_a_part_of_a_log_says_that_there_is_more(self, store: Store) -> None:
        store.append([event(number=n) for n in range(5)])
        (part,) = store.read([Since("u")], at_most=3)
        assert ([e.event_id for e in part.events], part.more) == (["e0", "e1", "e2"], True)
        (rest,) = store.read([Since("u", part.epoch, part.position)], at_most=3)
        assert ([e.event_id for e in rest.events], rest.more, rest.restart) == (
            ["e3", "e4"],
            False,
            False,
        )
        assert (
            not store.read([Since("u")], at_most=5)[0].more and not store.read([Since("u")])[0].more
        )

    def test_all_users_with_events_are_told(self, store: Store) -> None:
        """In parts, with others than those who are asked for left out once they are erased."""
        assert store.users() == ([], "")
        names = [f"u*{n}" for n in range(7)] + ["Zoë", "u[1]", "v:w"]
        store.append([event(name, "a", n) for n, name in enumerate(names)])
        store.append([impression("only shown", "a", "x", 5.0)])
        store.set_features("u*1", {"age": 31.0})
        store.merge("u*2", "u*3")
        store.erase("u*4")
        for at_most in (1, 3, 1_000):
            found, after = store.users(at_most=at_most)
            while after:
                more, after = store.users(after, at_most)
                found += more
            with_events = {
                user
                for user, record in zip(
                    found, store.read([Since(user) for user in found]), strict=True
                )
                if record.events
            }
            assert with_events == {*names} - {"u*2", "u*4"}

    def test_an_event_id_counts_once_per_user(self, opener: Opener) -> None:
        store = opener()
        assert all(store.append([event(number=1), event("other", number=1)]))
        assert store.append([event(number=1), event(number=2), event(number=2)])[0::2] == [0, 0]
        store.close()
        store = opener()
        assert store.append([event(number=1)]) == [0]
        assert [e.event_id for e in store.read([Since("u")])[0].events] == ["e1", "e2"]
        store.close()

    def test_features_change_the_epoch(self, store: Store) -> None:
        store.append([event()])
        before = store.read([Since("u")])[0]
        store.set_features("u", {"age": 31, "tags": ["a", "b"], "none": None})
        after = store.read([Since("u", before.epoch, before.position)])[0]
        assert after.restart and after.epoch != before.epoch
        assert after.features == {"age": 31, "tags": ["a", "b"], "none": None}
        assert len(after.events) == 1
        store.set_features("only features", {"age": 1})
        assert store.read([Since("only features")])[0].features == {"age": 1}

    def test_erasing_leaves_nothing_but_the_mark(self, opener: Opener) -> None:
        store = opener()
        store.append([event(number=n) for n in range(4)] + [event("other")])
        store.set_features("u", {"age": 31})
        before = store.read([Since("u")])[0]
        assert store.erase("u") == 4
        gone = store.read([Since("u", before.epoch, before.position)])[0]
        assert (
            gone.erased
            and gone.restart
            and not gone.events
            and gone.features is None
            and gone.epoch == ""
        )
        assert store.erase("u") == 0
        assert store.erase("never seen") == 0
        # A user who comes back has an empty log, and the same event ids count again.
        assert all(store.append([event(number=1)]))
        back = store.read([Since("u", before.epoch, before.position)])[0]
        assert back.restart and back.erased and len(back.events) == 1 and back.epoch != before.epoch
        assert len(store.read([Since("other")])[0].events) == 1
        store.close()
        store = opener()
        assert store.read([Since("u")])[0].erased
        store.close()

    def test_a_user_is_taken_over_into_another(self, opener: Opener) -> None:
        store = opener()
        store.append([event(number=n, when=float(n)) for n in (0, 2, 4)])
        store.append([event("session", number=n, when=float(n)) for n in (1, 3)])
        before = {name: store.read([Since(name)])[0] for name in ("u", "session")}
        assert store.merge("session", "u") == 2
        store.close()
        store = opener()
        mine, gone = store.read(
            [Since(name, record.epoch, record.position) for name, record in before.items()]
        )
        assert mine.restart and mine.epoch != before["u"].epoch
        assert [e.user_id for e in mine.events] == ["u"] * 5
        items = sorted((e.received, e.item_id, e.timestamp) for e in mine.events)
        assert items == [(n + 1.0, f"i{n}", float(n)) for n in range(5)]
        assert (gone.epoch, list(gone.events), gone.features, gone.erased) == ("", [], None, False)
        assert store.merged("u") == ["session"] and store.merged("session") == []
        position = mine.position
        assert store.merge("session", "u") == 0  # again: nothing is doubled
        again = store.read([Since("u")])[0]
        assert (list(again.events), again.position) == (list(mine.events), position)
        (new,) = store.append([event(number=9)])
        assert new > position
        store.close()

    def test_equal_event_ids_of_two_users_are_two_events(self, store: Store) -> None:
        store.append([event(number=1), event("session", "other", number=1)])
        assert store.merge("session", "u") == 1
        assert sorted(e.item_id for e in store.read([Since("u")])[0].events) == ["i1", "other1"]
        # Sent again, by a sender who has not heard of the first time, and merged again.
        assert store.append([event(number=1)]) == [0]
        assert all(store.append([event("session", "other", number=1)]))
        assert store.merge("session", "u") == 0
        assert store.read([Since("session")])[0].epoch == ""
        assert len(store.read([Since("u")])[0].events) == 2

    def test_features_are_taken_over_where_there_are_none(self, store: Store) -> None:
        store.set_features("session", {"country": "fr"})
        assert store.merge("session", "u") == 0
        assert store.read([Since("u")])[0].features == {"country": "fr"}
        store.set_features("session", {"country": "de"})
        store.merge("session", "u")
        assert store.read([Since("u")])[0].features == {"country": "fr"}

    def test_nothing_is_lost_where_a_user_is_merged_with_itself_or_in_a_circle(
        self, store: Store
    ) -> None:
        store.append([event("a", number=1)])
        assert store.merge("a", "a") == 0 and store.merged("a") == []
        assert len(store.read([Since("a")])[0].events) == 1
        assert store.merge("a", "b") == 1 and store.merge("b", "a") == 1
        assert store.merged("a") == ["b"] and store.merged("b") == []
        assert len(store.read([Since("a")])[0].events) == 1
        assert store.merge("never seen", "a") == 0 and store.merged("a") == ["b", "never seen"]

    def test_erasing_reaches_what_was_taken_over(self, opener: Opener) -> None:
        store = opener()
        store.append([event("phone", number=1), event("tablet", number=2), event(number=3)])
        store.merge("phone", "tablet")
        store.merge("tablet", "u")
        assert store.merged("u") == ["phone", "tablet"]
        store.append([event("phone", number=4)])  # a sender who has not heard of it yet
        store.set_features("tablet", {"age": 31})
        store.close()
        store = opener()
        assert store.erase("u") == 4
        for name in ("u", "phone", "tablet"):
            (left,) = store.read([Since(name)])
            assert left.erased and left.epoch == "" and not left.events and not left.features
        assert store.merged("u") == []
        assert store.erased_among(["u", "tablet", "x", "phone"]) == ["u", "tablet", "phone"]
        store.append([event("phone", number=5)])
        assert store.erase("u") == 0 and len(store.read([Since("phone")])[0].events) == 1
        store.close()

    def test_an_erased_source_is_not_named_any_more(self, store: Store) -> None:
        store.append([event("phone", number=1)])
        store.merge("phone", "u")
        assert store.erase("phone") == 0
        assert store.merged("u") == []
        assert len(store.read([Since("u")])[0].events) == 1

    @of_contract
    @given(data=st.data())
    def test_counts_are_those_of_the_events_that_are_there(self, store: Store, data: Any) -> None:
        """Compare with a plain model, through repetitions, merges and erasures."""
        users, now = ("a", "b"), time.time()
        for user in users:
            store.erase(user)
        for number in range(data.draw(st.integers(0, 12))):
            user, other = (data.draw(st.sampled_from(users)) for _ in range(2))
            match data.draw(st.sampled_from(["append", "append", "append", "merge", "erase"])):
                case "append":
                    item, kind = data.draw(IDS), data.draw(st.sampled_from(["view", "buy"]))
                    when = now - data.draw(st.integers(0, 7_200))
                    name = f"id{data.draw(st.integers(0, 3))}"
                    store.append([StoredEvent(user, item, kind, when, now + number, name)])
                case "merge":
                    store.merge(user, other)
                case _:
                    store.erase(user)
        left = [e for record in store.read([Since(user) for user in users]) for e in record.events]
        last = hour_of(now)
        for first in (last - 3, last - 1):
            for types in (None, ["view"], ["view", "buy"], []):
                wanted = Counter(
                    (hour_of(e.timestamp), e.item_id)
                    for e in left
                    if hour_of(e.timestamp) >= first and (types is None or e.event_type in types)
                )
                assert store.counts(first, last, types) == wanted

    def test_impressions_are_kept_apart_also_after_a_restart(self, opener: Opener) -> None:
        store = opener()
        now = time.time()
        rows = [("u", "a", 0), ("u", "a", 1), ("u", "b", 2), ("other", "a", 3)]
        events = [
            impression(user, item, f"e{n}", now - hours * 3600)
            for n, (user, item, hours) in enumerate(rows)
        ]
        assert store.append([*events[:2], event(number=9, when=now), *events[2:]])[:2] == [-1, -1]
        assert store.append([events[0], impression("u", "c", "e0", now)]) == [0, -1]
        store.close()
        store = opener()
        assert store.shown("u", now - 9000) == {"a": 2, "b": 1, "c": 1}
        assert store.shown("u", now - 3600) == {"a": 2, "c": 1}
        assert store.shown("other", 0) == {"a": 1} and store.shown("stranger", 0) == {}
        mine, others = store.read([Since("u"), Since("other")])
        assert [e.event_id for e in mine.events] == ["e9"]
        assert (others.epoch, list(others.events)) == ("", [])  # nothing else is known of them
        hour = hour_of(now)
        assert store.counts(hour - 5, hour + 1) == {(hour, "i9"): 1}
        assert store.append([event("u", number=0, when=now)]) != [0]  # ids of events are others
        store.close()

    def test_impressions_follow_merges_and_erasures(self, store: Store) -> None:
        now = 1e9
        store.append([impression("phone", "a", "1", now), impression("phone", "b", "2", now)])
        store.append([impression("u", "a", "1", now), impression("u", "a", "3", now - 50)])
        store.merge("phone", "u")
        assert store.shown("u", 0) == {"a": 2, "b": 1} and store.shown("phone", 0) == {}
        store.merge("u", "u")
        assert store.shown("u", now) == {"a": 1, "b": 1}
        store.append([impression("phone", "c", "4", now)])
        assert store.erase("u") == 0
        assert store.shown("u", 0) == {} and store.shown("phone", 0) == {}
        assert store.append([impression("u", "a", "1", now)]) == [-1]

    def test_impressions_are_bounded(self, store: Store) -> None:
        now = 1e9
        hours = SHOWN_HOURS * 3600
        store.append([impression("u", "old", "0", now - 1)])
        store.append([impression("u", f"i{n}", f"e{n}", now + n) for n in range(MAX_SHOWN)])
        assert store.shown("u", 0) == {f"i{n}": 1 for n in range(MAX_SHOWN)}
        store.append([impression("v", "a", "0", now), impression("v", "b", "0", now + hours)])
        assert store.shown("v", 0) == {"a": 1, "b": 1}
        store.append([impression("v", "c", "0", now + hours + 1)])
        assert store.shown("v", 0) == {"b": 1, "c": 1}
        store.merge("v", "u")
        assert sum(store.shown("u", 0).values()) == MAX_SHOWN

    @of_contract
    @given(data=st.data())
    def test_impressions_are_those_of_a_list(self, store: Store, data: Any) -> None:
        """Compare with a plain model: repetitions, merges and erasures, any ids."""
        users, kept = ("a", "b"), dict[tuple[str, str, str], float]()
        for user in users:
            store.erase(user)
        for _ in range(data.draw(st.integers(1, 10))):
            user, other = (data.draw(st.sampled_from(users)) for _ in range(2))
            match data.draw(st.sampled_from(["show", "show", "show", "merge", "erase"])):
                case "show":
                    key = user, data.draw(IDS), f"e{data.draw(st.integers(0, 3))}"
                    when = 1e9 + data.draw(st.integers(0, 9))
                    (position,) = store.append([impression(*key, when)])
                    assert position == (0 if key in kept else -1)
                    kept.setdefault(key, when)
                case "merge" if user != other:
                    store.merge(user, other)
                    moved = {
                        (other, *rest): when for (name, *rest), when in kept.items() if name == user
                    }
                    left = {key: when for key, when in kept.items() if key[0] != user}
                    kept = moved | left
                case "erase":
                    names = [user, *store.merged(user)]
                    store.erase(user)
                    kept = {key: when for key, when in kept.items() if key[0] not in names}
        for user in users:
            wanted = Counter(item for name, item, _ in kept if name == user)
            assert store.shown(user, 1e9) == wanted
            assert sum(store.shown(user, 1e9 + 9.5).values()) == 0

    def test_outcomes_count_once_also_after_a_restart(self, opener: Opener) -> None:
        store = opener()
        events = [
            attributed("impression", "a", "e1", position=1),
            attributed("impression", "b", "e1", position=2),
            attributed("click", "b", "e2"),
            attributed("conversion", "b", "e3", value=2.5),
        ]
        assert store.append(events[:2]) == [-1, -1]
        assert all(store.append(events[2:]))
        store.close()
        store = opener()
        assert store.append(events) == [0, 0, 0, 0]
        # Another event says again what is known; another purchase of the item is another one
        assert all(store.append([attributed("click", "b", "e4", position=7)]))
        assert all(store.append([attributed("conversion", "b", "e5", value=1.5)]))
        assert sums_of(store) == {
            ("p0", 1, "impressions"): 1,
            ("p0", 2, "impressions"): 1,
            ("p0", 2, "clicks"): 1,
            ("p0", 2, "clicked_impressions"): 1,
            ("p0", 2, "conversions"): 2,
            ("p0", 2, "value"): 4.0,
            ("p0", 0, "shown"): 1,
            ("p0", 0, "clicked"): 1,
            ("p0", 0, "converted"): 1,
            ("p0", 0, "squares"): 16.0,
        }
        before = sums_of(store)
        store.merge("u", "v")
        store.erase("v")
        assert sums_of(store) == before  # they are of answers, not of users
        # What is sent again after an erasure is new to the log, and not to the sums
        assert all(store.append(events))
        assert sums_of(store) == before
        store.close()

    def test_outcomes_of_plain_events_are_none(self, store: Store) -> None:
        store.append([event(), impression("u", "a", "1", 1e9)])
        assert store.outcomes(0, 100_000) == ({}, {})

    @of_contract
    @given(data=st.data())
    def test_outcomes_are_those_of_a_list(self, store: Store, data: Any) -> None:
        """Compare with sums by hand: repetitions, any order, several answers."""
        answers = [next(_ANSWERS), next(_ANSWERS)]
        before, new = sums_of(store), []
        for user in ("u", "v"):
            store.erase(user)
        for _ in range(data.draw(st.integers(1, 12))):
            one = attributed(
                data.draw(st.sampled_from(["impression", "click", "conversion"])),
                data.draw(st.sampled_from("ab")),
                f"e{data.draw(st.integers(0, 3))}",
                data.draw(st.sampled_from(answers)),
                data.draw(st.integers(0, 3)),
                data.draw(st.sampled_from([0.0, 0.25, 2.0])),
                data.draw(st.sampled_from("uv")),
            )
            if store.append([one])[0]:
                new.append(one)
        wanted = Counter(before)
        wanted.update(sums_by_hand(new))
        assert sums_of(store) == wanted

    def test_sums_of_answers_are_added_once(self, opener: Opener) -> None:
        store = opener()
        day = _GIVEN // DAY
        sums = {Sum(day, "p0", 0, "answers"): 3.0, Sum(day + 1, "p1", 0, "answers"): 1.0}
        store.add_outcomes("batch 1", sums, {"p0": "one", "p1": "other"})
        store.add_outcomes("batch 1", sums, {"p0": "one", "p1": "other"})
        store.close()
        store = opener()
        store.add_outcomes("batch 1", sums, {"p0": "one"})
        assert store.outcomes(day, day + 1) == (sums, {"p0": "one", "p1": "other"})
        store.add_outcomes("batch 2", sums, {"p0": "one"})
        first = {Sum(day, "p0", 0, "answers"): 6.0}
        assert store.outcomes(day - 9, day) == (first, {"p0": "one"})
        store.add_outcomes("batch 3", {}, {})
        store.append([attributed("click", "a", "e")])
        assert sums_of(store)["p0", 0, "answers"] == 6 and sums_of(store)["p0", 0, "clicked"] == 1
        store.close()

    def test_what_is_set_first_stays(self, opener: Opener) -> None:
        store = opener()
        assert store.first_setting("key", "1") == "1"
        assert store.first_setting("key", "2") == "1"
        store.close()
        store = opener()
        assert store.first_setting("key", "3") == store.setting("key") == "1"
        store.close()

    def test_counts_are_there_after_a_restart(self, opener: Opener) -> None:
        store = opener()
        now = time.time()
        store.append([StoredEvent("u", f"i{n % 2}", "view", now, now, f"e{n}") for n in range(3)])
        store.close()
        store = opener()
        hour = hour_of(now)
        assert store.counts(hour, hour) == {(hour, "i0"): 2, (hour, "i1"): 1}
        assert store.counts(hour - 5, hour - 1) == {}
        store.close()

    @of_contract
    @given(data=st.data())
    def test_merging_is_like_merging_lists(self, store: Store, data: Any) -> None:
        """Compare with a plain model: each event counts once, in order of arrival."""
        users = ("a", "b", "c")
        for user in users:
            store.erase(user)
        logs: dict[str, dict[Any, tuple[float, str]]] = {user: {} for user in users}
        for number in range(data.draw(st.integers(1, 12))):
            user, other = (data.draw(st.sampled_from(users)) for _ in range(2))
            if data.draw(st.booleans()):
                name = f"id{data.draw(st.integers(0, 3))}"
                one = StoredEvent(user, f"i{number}", "view", 1.0, float(number), name)
                (position,) = store.append([one])
                assert (position == 0) == (name in logs[user])
                logs[user].setdefault(name, (one.received, one.item_id))
                continue
            new = {(user, key): value for key, value in logs[user].items()}
            if user == other:
                new = {}
            else:
                logs[user] = {}
            new = {key: value for key, value in new.items() if key not in logs[other]}
            assert store.merge(user, other) == len(new)
            logs[other] |= new
        for user, record in zip(users, store.read([Since(user) for user in users]), strict=True):
            found = [(e.received, e.item_id) for e in record.events]
            assert found == sorted(logs[user].values())

    def test_erased_users_are_known_to_other_bundles(self, opener: Opener) -> None:
        store = opener()
        before = store.erasures()
        assert store.erased_among(["u", "v"]) == []
        store.erase("u")
        store.erase("only in a bundle")
        assert store.erasures() != before
        assert store.erased_among(["v", "u", "w", "only in a bundle"]) == ["u", "only in a bundle"]
        number = store.erasures()
        store.close()
        store = opener()
        assert store.erasures() == number
        assert store.erased_among(["u"]) == ["u"]
        store.close()

    def test_the_bytes_of_erased_users_leave_the_files_in_the_end(self, store: Store) -> None:
        store.append([event()])
        store.erase("u")
        end = time.monotonic() + _PATIENCE
        while store.clean():
            assert time.monotonic() < end, "the store never finishes its cleaning"
            time.sleep(0.01)
        assert store.clean() == ""

    def test_an_unreadable_item_is_left_out_and_can_be_replaced(
        self, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        for item in ("a", "b", "c"):
            store.put_item(ItemRecord(item, item.upper()))
        self.damage_item(store, "b")
        records, position = store.items()
        assert [record.item_id for record in records] == ["a", "c"]
        assert "an item record cannot be read" in caplog.text
        store.put_item(ItemRecord("b", "new"))
        assert store.items(position)[0] == [ItemRecord("b", "new", available=True)]

    def damage_item(self, store: Store, item_id: str) -> None:
        """Make the stored record of an item unreadable."""
        raise NotImplementedError

    def test_a_position_that_the_store_never_reached_starts_again(self, store: Store) -> None:
        store.put_item(ItemRecord("a"))
        records, position = store.items(10_000)
        assert [record.item_id for record in records] == ["a"] and position < 10_000

    def test_items_are_merged_and_told_once(self, opener: Opener) -> None:
        store = opener()
        store.put_item(ItemRecord("a", "A", {"price": 1.0}, {"shelf": "x"}))
        store.put_item(ItemRecord("b"))
        records, position = store.items()
        assert [record.item_id for record in records] == ["a", "b"]
        assert store.items(position) == ([], position)
        store.put_item(ItemRecord("a", None, {}, {"shelf": "y", "new": 2.0}, available=False))
        store.close()
        store = opener()
        ((changed,), later) = store.items(position)
        assert changed == ItemRecord(
            "a", "A", {"price": 1.0}, {"shelf": "y", "new": 2.0}, available=False
        )
        assert later > position
        assert [record.item_id for record in store.items()[0]] == ["b", "a"]
        store.close()

    def test_availability_that_is_not_named_stays(self, store: Store) -> None:
        def said(**change: Any) -> bool | None:
            store.put_item(ItemRecord("a", **change))
            (record,) = store.items()[0]
            return record.available and not record.removed

        assert said() is True
        assert said(available=False) is False
        assert said(title="A") is False
        assert said(available=True) is True
        assert said(removed=True) is False
        assert said(title="B") is True

    def test_the_whole_store_can_be_verified(self, store: Store) -> None:
        store.append([event()])
        store.verify()

    def test_settings(self, opener: Opener) -> None:
        store = opener()
        assert store.setting("x") is None
        store.set_setting("x", "1")
        store.set_setting("x", "2")
        store.close()
        store = opener()
        assert store.setting("x") == "2"
        store.set_setting("x", None)
        assert store.setting("x") is None
        store.close()

    def test_nothing_to_do(self, store: Store) -> None:
        assert store.append([]) == []
        assert store.read([]) == []
        assert isinstance(store.check(), list)

    @of_contract
    @given(data=st.data())
    def test_a_store_behaves_like_a_list_per_user(self, store: Store, data: Any) -> None:
        """Compare with a plain model: any ids, repeated event ids, readers at several positions."""
        users = data.draw(st.lists(IDS, min_size=1, max_size=3, unique=True))
        for user in users:
            store.erase(user)
        logs: dict[str, list[StoredEvent]] = {user: [] for user in users}
        places = {user: Since(user) for user in users}
        known = dict.fromkeys(users, 0)  # how many events the reader has
        for _ in range(data.draw(st.integers(1, 6))):
            batch = [
                StoredEvent(user, item, "view", 1.0, float(number), f"id{number}")
                for user, item, number in data.draw(
                    st.lists(st.tuples(st.sampled_from(users), IDS, st.integers(0, 8)), max_size=6)
                )
            ]
            for one, position in zip(batch, store.append(batch), strict=True):
                repeated = any(stored.event_id == one.event_id for stored in logs[one.user_id])
                assert (position == 0) == repeated
                if not repeated:
                    logs[one.user_id].append(one)
            user = data.draw(st.sampled_from(users))
            (record,) = store.read([places[user]])
            seen = 0 if record.restart else places[user].position
            whole = store.read([Since(user)])[0]
            assert list(whole.events) == logs[user]
            assert list(record.events) == logs[user][0 if record.restart else known[user] :]
            known[user] = len(logs[user])
            assert seen <= record.position == whole.position
            places[user] = Since(user, record.epoch, record.position)

    def test_reading_while_writing(self, store: Store) -> None:
        """Let a reader in another thread see the log grow, without a gap and by whole batches."""
        batches = [[event(number=n * 10 + k) for k in range(10)] for n in range(30)]
        done = threading.Event()
        lengths: list[int] = []
        problems: list[BaseException] = []

        def read() -> None:
            try:
                while not done.is_set() or not lengths or lengths[-1] < 300:
                    events = store.read([Since("u")])[0].events
                    assert [e.event_id for e in events] == [f"e{n}" for n in range(len(events))]
                    lengths.append(len(events))
            except BaseException as problem:
                problems.append(problem)

        reader = threading.Thread(target=read)
        reader.start()
        for batch in batches:
            store.append(batch)
        done.set()
        reader.join(_PATIENCE)
        assert not reader.is_alive() and not problems
        assert np.all(np.diff(lengths) >= 0)
        assert set(np.array(lengths) % 10) == {0}

    def test_a_closed_store_is_unavailable(self, opener: Opener) -> None:
        store = opener()
        store.close()
        if store.shared:  # a Redis client connects again by itself
            assert all(store.append([event()]))
            store.close()
            return
        with pytest.raises(StoreUnavailableError):
            store.append([event()])
