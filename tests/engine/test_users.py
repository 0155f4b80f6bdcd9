"""The users in memory, against a plain model of what they should remember."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec.engine.users import User, Users


def user(size: int = 3) -> User:
    return User(np.zeros(size, np.float32), np.zeros(2, np.float32), np.empty((2, 0), np.int32))


actions = st.one_of(
    st.tuples(st.just("put"), st.sampled_from("abcd")),
    st.tuples(st.just("get"), st.sampled_from("abcd")),
    st.tuples(st.just("peek"), st.sampled_from("abcd")),
    st.tuples(st.just("drop"), st.sampled_from("abcd")),
    st.tuples(st.just("event"), st.sampled_from("abcd")),
    st.tuples(st.just("clear"), st.just("")),
)


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.lists(actions, min_size=25, max_size=60),
    st.sampled_from([None, 1, 2, 3]),
    st.sampled_from([1, 3, 40]),
)
def test_a_model_of_the_least_recently_used(done, max_users, max_events):
    users, expected, evicted = (
        Users(max_users, max_events),
        {},
        0,
    )  # a dict keeps its order: the latest used stand last
    for number, (action, name) in enumerate(done):
        match action:
            case "put":
                users.put(name, user(1 + number % 3))
                expected.pop(name, None)
                expected[name] = []
                if max_users is not None and len(expected) > max_users:
                    expected.pop(next(iter(expected)))
                    evicted += 1
            case "get":
                assert (users.get(name) is None) == (name not in expected)
                if name in expected:
                    expected[name] = expected.pop(name)
            case "peek":
                assert (users.peek(name) is None) == (name not in expected)
            case "drop":
                users.drop(name)
                expected.pop(name, None)
            case "event" if name in expected:
                users.remember(users.peek(name), number, number + 100)
                expected[name].append(number)
            case "clear":
                users.clear()
                expected.clear()
        assert len(users) == len(expected)
        assert [name for name in "abcd" if name in users] == sorted(expected)
        assert users.recent(10) == list(expected)[::-1]
        assert users.recent(1) == list(expected)[::-1][:1]
        assert users.nbytes == sum(users.peek(name).nbytes for name in expected)
        assert users.evicted == evicted
        for name, events in expected.items():
            held = users.peek(name)
            assert held.items.tolist() == events[-max_events:]
            assert held.events.tolist() == [event + 100 for event in events[-max_events:]]
            assert held.length == min(len(events), max_events)


@pytest.mark.parametrize("max_events", [1, 4, 100])
def test_many_events_at_once_are_as_many_one_by_one(max_events):
    one, all_at_once = Users(None, max_events), Users(None, max_events)
    first, second = user(), user()
    items, events = np.arange(7, dtype=np.int32), np.arange(7, 14, dtype=np.int32)
    for item, event in zip(items, events, strict=True):
        one.remember(first, int(item), int(event))
    all_at_once.remember_all(second, items[:3], events[:3])
    all_at_once.remember_all(second, items[3:], events[3:])
    assert first.items.tolist() == second.items.tolist() == items[-max_events:].tolist()
    assert first.events.tolist() == second.events.tolist() == events[-max_events:].tolist()
    assert second.length == min(7, max_events)
    assert second.log.base is None  # no view that keeps the whole in memory


def test_room_grows_by_a_quarter_and_never_past_the_limit():
    users, one = Users(None, 23), user()
    room = []
    for number in range(30):
        users.remember(one, number, 0)
        room.append(one.log.shape[1])
    assert room[:16] == [16] * 16
    assert room[16:] == [23] * 14
    assert one.items.tolist() == list(range(7, 30))
    large, many = Users(None, 10_000), user()
    large.remember_all(many, np.zeros(100, np.int32), np.zeros(100, np.int32))
    large.remember(many, 1, 1)
    assert many.log.shape[1] == 125
    assert (
        large.nbytes == 25 * 2 * 4
    )  # the user counts when it is put; what was added before counts at once


def test_bytes_are_those_of_the_arrays():
    one = user(5)
    assert one.nbytes == 5 * 4 + 2 * 4
    one.log = np.zeros((2, 6), np.int32)
    assert one.nbytes == 5 * 4 + 2 * 4 + 48
    assert one.last == -np.inf and one.epoch == "" and one.position == 0 and not one.has_history
