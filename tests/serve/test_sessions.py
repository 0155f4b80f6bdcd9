"""A history that comes with the question, and visitors who log in, over HTTP."""

from __future__ import annotations

import itertools
import sqlite3
import threading
import time
from contextlib import ExitStack

import httpx
import pytest

from tests.servers import PATIENCE, Server, unnamed

pytestmark = pytest.mark.server

VISIT = [
    "i3",
    {"item_id": "i1", "event_type": "buy"},
    {"item_id": "i9", "timestamp": 1_600_000_000.5},
    "of another shop",
    {"item_id": 7},
]


def as_events(user, history):
    return [
        {"user_id": user, **(one if isinstance(one, dict) else {"item_id": one})} for one in history
    ]


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def servers(request, bundle, tmp_path):
    """Two processes over one Redis, or one process over SQLite twice."""
    with ExitStack() as stack:
        if request.param == "redis":
            address = request.getfixturevalue("redis_server").url
            found = [Server(bundle, address) for _ in range(2)]
        else:
            found = [Server(bundle, f"sqlite:///{tmp_path / 'store.db'}")]
        for server in found:
            stack.callback(server.stop)
        yield found[0], found[-1]
        for server in found:
            assert "unforeseen" not in server.log.read_text()


def test_answers_are_those_of_a_user_with_these_events(servers):
    here, there = servers
    more = {"k": 30, "explain": True, "titles": True, "diversity": 0.2}
    told = here.post("/v1/recommend", history=VISIT, **more)
    on_top = here.post("/v1/recommend", user_id="u1", history=VISIT, **more)
    ranked = here.post("/v1/rank", history=VISIT, item_ids=["i2", "i30"], explain=True)
    assert told["user_id"] is None and told["known_user"] and on_top["user_id"] == "u1"
    assert here.post("/v1/recommend", user_id="u1", **more)["items"] != on_top["items"]
    together = here.post("/v1/recommend/batch", requests=[{"history": VISIT, **more}])
    assert [unnamed(one) for one in together["results"]] == [unnamed(told)]
    for user, answer in (("visitor", told), ("u1", on_top)):
        here.post("/v1/events", events=as_events(user, VISIT))
        found = there.post("/v1/recommend", user_id=user, **more)
        assert unnamed(found) == {**unnamed(answer), "user_id": user}
    stored = there.post("/v1/rank", user_id="visitor", item_ids=["i2", "i30"], explain=True)
    assert stored["items"] == ranked["items"]


def test_nothing_of_it_is_kept(servers):
    server, _ = servers
    users = server.client.get("/v1/users", params={"limit": 500}).json()
    prior = server.post("/v1/recommend", user_id="stranger")["items"]
    server.post("/v1/recommend", history=["i3"])
    server.post("/v1/recommend", user_id="stranger", history=["i3"])
    assert server.client.get("/v1/users/stranger").status_code == 404
    assert server.client.get("/v1/users", params={"limit": 500}).json() == users
    assert server.post("/v1/recommend", user_id="stranger")["items"] == prior
    empty = server.post("/v1/recommend", history=[])
    assert (empty["items"], empty["known_user"]) == (prior, False)
    assert not server.post("/v1/recommend", history=["of another shop"])["known_user"]


@pytest.mark.parametrize(
    ("path", "body", "code", "words"),
    [
        ("recommend", {}, "request_invalid", "user_id"),
        ("rank", {"item_ids": ["i1"]}, "request_invalid", "user_id"),
        ("recommend", {"history": "i1"}, "request_invalid", "array"),
        ("recommend", {"history": [None]}, "request_invalid", "history[0]"),
        ("recommend", {"history": [{"item": "i1"}]}, "request_invalid", "`item`"),
        ("recommend", {"history": [""]}, "id_invalid", "history[0].item_id"),
        ("recommend", {"history": [1.5]}, "id_invalid", "history[0].item_id"),
        (
            "recommend",
            {"history": ["i1", {"item_id": "i1", "timestamp": 4e12}]},
            "config_invalid",
            "history[1] is not a time",
        ),
        ("recommend", {"history": ["i1"] * 1_001}, "request_invalid", "events in a history"),
        ("rank", {"history": ["i1"] * 1_001, "item_ids": ["i1"]}, "request_invalid", "history"),
        ("users/u1/merge", {}, "request_invalid", "what the user takes over"),
        ("users/u1/merge", {"source": "a", "session_id": "s"}, "request_invalid", "takes over"),
        ("users/u1/merge", {"history": ["i1"]}, "request_invalid", "takes over"),
        ("users/u1/merge", {"source": " u1 "}, "request_invalid", "own id"),
        ("users/u1/merge", {"source": ""}, "id_invalid", "source"),
        ("users/u1/merge", {"session_id": "\n", "history": ["i1"]}, "id_invalid", "session_id"),
        ("users/u1/merge", {"session_id": "s", "history": []}, "request_invalid", "length >= 1"),
        ("users/%00/merge", {"source": "a"}, "id_invalid", "user_id"),
    ],
)
def test_what_cannot_be_asked(open_server, path, body, code, words):
    response = open_server.client.post(f"/v1/{path}", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (422, code), error
    assert words in error["message"]


@pytest.fixture(scope="module")
def open_server(bundle_copy):
    service = Server(bundle_copy, f"sqlite:///{bundle_copy.parent / 'sessions.db'}")
    yield service
    assert service.stop() == 0


def test_a_visitor_who_logs_in_is_one_user(servers):
    here, there = servers
    for number, user in enumerate(["visitor", "ann", "visitor", "whole"]):
        for server in servers:  # states of both are in memory, in all processes
            server.items(user)
        events = {"user_id": user, "item_id": f"i{number + 3}", "timestamp": 1_700_000_000 + number}
        here.post("/v1/events", events=[events])
    whole = [
        {"user_id": "whole", "item_id": f"i{number + 3}", "timestamp": 1_700_000_000 + number}
        for number in range(3)
    ]
    here.post("/v1/events", events=whole)
    here.post(
        "/v1/events", events=[{"user_id": "ann", "item_id": "i6", "timestamp": 1_700_000_003}]
    )
    prior = there.items("stranger")
    assert here.post("/v1/users/ann/merge", source="visitor") == {"user_id": "ann", "events": 2}
    for server in servers:
        assert server.items("ann", k=99) == server.items("whole", k=99)
        assert server.items("visitor") == prior
        assert server.client.get("/v1/users/visitor").status_code == 404
    assert there.client.get("/v1/users/ann").json()["event_count"] == 4
    assert there.post("/v1/users/ann/merge", source="visitor")["events"] == 0
    # A page that has not heard of the login: the next merge, and an erasure, reach it.
    there.event("visitor", "i20")
    assert here.post("/v1/users/ann/merge", source="visitor")["events"] == 1
    here.event("visitor", "i21")
    assert there.client.delete("/v1/users/ann").json()["events_removed"] == 6
    for server in servers:
        for user in ("ann", "visitor"):
            assert server.items(user) == prior
            assert server.client.get(f"/v1/users/{user}").status_code == 404


def test_an_id_with_slashes_and_the_name_of_the_action(open_server):
    assert open_server.post("/v1/users/a/b%2Fc/merge", source="visitor/merge") == {
        "user_id": "a/b/c",
        "events": 0,
    }
    path = "/v1/users/a/merge"  # a user of this name
    assert open_server.client.get(path).status_code == 404
    open_server.event("a/merge", "i1")
    assert open_server.client.get(path).json()["user_id"] == "a/merge"
    assert open_server.client.put(path, json={"features": {"age": 30}}).status_code == 200
    assert open_server.client.delete(path).json()["events_removed"] == 1
    assert open_server.client.post("/v1/users/a", json={}).status_code == 405


def test_a_session_that_only_the_page_knows_is_taken_over_once(servers):
    here, there = servers
    expected = here.post("/v1/recommend", history=VISIT, k=99)["items"]
    body = {"session_id": "of today", "history": VISIT}
    assert here.post("/v1/users/bob/merge", **body)["events"] == len(VISIT)
    assert there.post("/v1/users/bob/merge", **body)["events"] == 0
    assert there.post("/v1/recommend", user_id="bob", k=99)["items"] == expected
    longer = {**body, "history": [*VISIT, "i12"]}
    assert there.post("/v1/users/bob/merge", **longer)["events"] == 1
    assert here.client.get("/v1/users/bob").json()["event_count"] == len(VISIT) + 1
    assert here.client.delete("/v1/users/bob").json()["events_removed"] == len(VISIT) + 1


def test_erasure_of_a_visitor_of_the_bundle(bundle, tmp_path):
    """What a bundle's history holds of the other id goes with the user who took it over."""
    server = Server(bundle, f"sqlite:///{tmp_path / 'store.db'}")
    stranger = server.items("stranger")
    assert server.items("u10") != stranger
    server.post("/v1/users/ann/merge", source="u10")
    answer = server.client.delete("/v1/users/ann").json()
    assert (answer["bundle"], answer["store"]) == ("clean", "clean")
    assert server.items("u10") == stranger
    assert server.stop() == 0
    names = [path for path in tmp_path.rglob("*") if path.is_file() and b"u10" in path.read_bytes()]
    assert [path.name for path in names if path.suffix != ".log"] == []


def test_kill_9_during_merges_loses_and_doubles_nothing(bundle, tmp_path):
    """Each event is sent once to a visitor, who is merged again and again meanwhile."""
    path = tmp_path / "store.db"
    numbers, acknowledged, merged = itertools.count(), [], []
    for _ in range(3):
        server = Server(bundle, f"sqlite:///{path}")
        threads = [
            threading.Thread(target=_send, args=(server.url, n, numbers, acknowledged, merged))
            for n in range(3)
        ]
        before = len(acknowledged), len(merged)
        for thread in threads:
            thread.start()
        end = time.monotonic() + PATIENCE
        while len(acknowledged) < before[0] + 60 or len(merged) < before[1] + 20:
            assert time.monotonic() < end
            time.sleep(0.01)
        server.kill()
        for thread in threads:
            thread.join()
    db = sqlite3.connect(path)
    items = [item for (item,) in db.execute("SELECT item_id FROM events")]
    db.close()
    assert len(items) == len(set(items)) and set(acknowledged) <= set(items)
    server = Server(bundle, f"sqlite:///{path}")
    for n in range(3):
        server.post("/v1/users/ann/merge", source=f"visitor-{n}")
    count = server.client.get("/v1/users/ann").json()["event_count"]
    assert count == len(items)
    assert server.client.delete("/v1/users/ann").json()["events_removed"] == count
    assert server.stop() == 0


def _send(url, n, numbers, acknowledged, merged):
    with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:
        try:
            while True:
                item = f"thing {next(numbers)}"
                events = [{"user_id": f"visitor-{n}", "item_id": item, "event_id": item}]
                sent = client.post("/v1/events", json={"events": events})
                assert sent.status_code == 200
                acknowledged.append(item)
                done = client.post("/v1/users/ann/merge", json={"source": f"visitor-{n}"})
                assert done.status_code == 200
                merged.append(done.json()["events"])
        except httpx.TransportError:
            return  # the service was killed
