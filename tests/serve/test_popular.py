"""`POST /v1/popular`, over HTTP and in Python: what the stored events of a window say."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec import load
from distilrec.engine import Condition, Filter, StoredRecommender
from distilrec.engine.popular import window_of
from distilrec.errors import ConfigError, InvalidIdError
from distilrec.stores import open_store
from tests.servers import Server, until

HOUR = 3_600


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def address(request, tmp_path):
    if request.param == "redis":
        return request.getfixturevalue("redis_server").url
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture
def servers(address, bundle):
    """Two processes over one Redis, or one process over SQLite twice."""
    with ExitStack() as stack:
        found = [Server(bundle, address) for _ in range(1 + address.startswith("redis"))]
        for server in found:
            stack.callback(server.stop)
        yield found[0], found[-1]
        for server in found:
            assert "unforeseen" not in server.log.read_text()


def listed(server, **more):
    answer = server.post("/v1/popular", **more)
    assert [item["rank"] for item in answer["items"]] == list(range(1, len(answer["items"]) + 1))
    return [(item["item_id"], item["score"]) for item in answer["items"]]


def events(now):
    """Who had what, how many hours ago."""
    rows = [
        ("ann", "i1", "view", 0), ("bob", "i1", "view", 5), ("cid", "i1", "buy", 30),
        ("ann", "i2", "view", 40), ("bob", "i2", "view", 40), ("cid", "i2", "view", 41),
        ("dan", "i2", "view", 41), ("ann", "i3", "buy", 1), ("ann", "of another shop", "view", 0),
        ("bob", "i4", "view", 200),
    ]  # fmt: skip
    return [
        {"user_id": user, "item_id": item, "event_type": kind, "timestamp": now - HOUR * hours}
        for user, item, kind, hours in rows
    ]


@pytest.mark.server
def test_windows_decay_types_and_filters(servers):
    here, there = servers
    assert listed(here) == []
    here.post("/v1/events", events=events(time.time()))
    week = until(lambda: len(found := listed(there)) == 3 and found, "the events are counted")
    assert week == [("i2", 4.0), ("i1", 3.0), ("i3", 1.0)]
    assert listed(there, window=300)[-1] == ("i4", 1.0)
    assert listed(there, window=24) == [("i1", 2.0), ("i3", 1.0)]
    assert [item for item, _ in listed(there, half_life=6)] == ["i1", "i3", "i2"]
    assert dict(listed(there, half_life=6))["i2"] < 4 * 0.5 ** (39 / 6)
    assert listed(there, event_types=["buy"]) == [("i1", 1.0), ("i3", 1.0)]
    assert listed(there, event_types=["rent"]) == []
    assert listed(there, k=1, user_id="dan") == [("i1", 3.0)]
    assert listed(there, k=1, user_id="dan", exclude_seen=False) == [("i2", 4.0)]
    assert listed(there, filter={"deny": ["i2"]}, k=1) == [("i1", 3.0)]
    answer = there.post("/v1/popular", titles=True)["items"]
    assert [item["title"] for item in answer] == [f"Thing number {n}" for n in (2, 1, 3)]
    here.client.put("/v1/items/i2", json={"available": False})
    until(lambda: listed(there) == [("i1", 3.0), ("i3", 1.0)], "items that are sold out leave")


@pytest.mark.server
def test_it_follows_erasures_and_merges(servers):
    here, there = servers
    here.post("/v1/events", events=events(time.time()))
    here.post("/v1/users/ann/merge", source="bob")
    until(lambda: listed(there, window=300)[0] == ("i2", 4.0), "the events are counted")
    assert here.client.delete("/v1/users/ann").json()["events_removed"] == 7
    left = [("i2", 2.0), ("i1", 1.0)]
    until(lambda: listed(there, window=300) == left, "erased users are not counted")


@pytest.mark.server
def test_a_restart_changes_nothing(address, bundle):
    server = Server(bundle, address)
    server.post("/v1/events", events=events(time.time()))
    server.kill()
    again = Server(bundle, address)
    assert [item for item, _ in listed(again, window=300)] == ["i2", "i1", "i3", "i4"]
    again.stop()


@pytest.fixture(scope="module")
def open_server(bundle_copy):
    service = Server(bundle_copy, f"sqlite:///{bundle_copy.parent / 'popular.db'}")
    yield service
    assert service.stop() == 0


@pytest.mark.server
@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"k": 0}, "request_invalid", ">= 1"),
        ({"k": 1_001}, "request_invalid", "k: 1,001"),
        ({"window": 0}, "request_invalid", ">= 1"),
        ({"window": 2_161}, "request_invalid", "<= 2160"),
        ({"window": 1.5}, "request_invalid", "int"),
        ({"half_life": 0}, "request_invalid", "> 0"),
        ({"event_types": []}, "request_invalid", "length >= 1"),
        ({"event_types": ["\n"]}, "id_invalid", "event_types"),
        ({"event_types": ["view"] * 101}, "request_invalid", "event_types: 101"),
        ({"user_id": ""}, "id_invalid", "user_id"),
        ({"filter": {"attributes": {"colour": {}}}}, "config_invalid", "'colour'"),
    ],
)
def test_what_cannot_be_asked(open_server, body, code, words):
    response = open_server.client.post("/v1/popular", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (422, code), error
    assert words in error["message"]


@pytest.mark.server
def test_it_is_measured(open_server):
    listed(open_server)
    assert 'request_seconds_count{endpoint="popular"}' in open_server.client.get("/metrics").text


counts = st.dictionaries(
    st.tuples(st.integers(0, 60), st.sampled_from("abc")), st.integers(1, 9), max_size=20
)


@given(counts=counts, half_life=st.none() | st.floats(0.5, 100))
def test_a_ranking_is_a_sum_of_decayed_events(counts, half_life):
    now = 58  # some events are ahead of the clock
    found = window_of(48, half_life, None).ranking(counts, now)
    wanted = Counter()
    for (hour, item), number in counts.items():
        for _ in range(number):
            wanted[item] += 2 ** (-max(0, now - hour) / half_life) if half_life else 1
    assert dict(found) == pytest.approx(dict(wanted))
    assert found == sorted(found, key=lambda pair: (-pair[1], pair[0]))


@pytest.mark.slow
def test_in_python(bundle, tmp_path):
    stored = StoredRecommender(load(bundle), open_store(f"sqlite:///{tmp_path / 'store.db'}"))
    stored.update(events(time.time()))
    assert stored.popular(2) == [("i2", 4.0), ("i1", 3.0)]
    assert stored.popular(window=24, event_types=["buy"]) == [("i3", 1.0)]
    assert stored.popular(1, user_id="dan") == [("i1", 3.0)]
    assert stored.popular(1, user_id="dan", exclude_seen=False) == [("i2", 4.0)]
    cheap = Filter(attributes={"price": Condition(max=0)})
    assert stored.popular(where=cheap) == []
    for wrong, error, words in (
        ({"k": 0}, ConfigError, "k is 0"),
        ({"window": 0}, ConfigError, "window is 0"),
        ({"half_life": -1.0}, ConfigError, r"half_life is -1\.0"),
        ({"event_types": "view"}, ConfigError, "event_types is 'view'"),
        ({"event_types": [""]}, InvalidIdError, "event_types"),
    ):
        with pytest.raises(error, match=words):
            stored.popular(**wrong)
    stored.store.close()
