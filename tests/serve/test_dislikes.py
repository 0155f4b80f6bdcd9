"""Negative events over HTTP: dislikes hide an item at once, in every list, after a restart and in another process."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests import dislikes, small_run
from tests.servers import Server

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return dislikes.exported(small_run.STUDENT, tmp_path_factory.mktemp("dislikes") / "bundle")


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def address(request, tmp_path):
    if request.param == "redis":
        return request.getfixturevalue("redis_server").url
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture
def serve(folder, address):
    with ExitStack() as stack:

        def started():
            server = Server(folder, address)
            stack.callback(server.stop)
            return server

        yield started


def say(server, user, item, kind):
    return server.post(
        "/v1/events", events=[{"user_id": user, "item_id": item, "event_type": kind}]
    )


def items(answer):
    return [one["item_id"] for one in answer["items"]]


def recommended(server, user, **options):
    return items(server.post("/v1/recommend", user_id=user, k=99, exclude_seen=False, **options))


def in_tensors(server, user):
    """What KServe's protocol answers; it leaves seen items out."""
    tensors = [
        {"name": "user_id", "shape": [1], "datatype": "BYTES", "data": [user]},
        {"name": "k", "shape": [1], "datatype": "INT32", "data": [99]},
    ]
    answer = server.client.post("/v2/models/distilrec/infer", json={"inputs": tensors}).json()
    return {output["name"]: output for output in answer["outputs"]}["item_id"]["data"]


def test_a_dislike_hides_the_item_everywhere(serve, address):
    server = serve()
    assert "i5" in recommended(server, "new")
    say(server, "new", "i5", "dislike")
    say(server, "new", "i6", "buy")
    other = serve() if "redis" in address else server  # a process that has not taken the event
    for process in (server, other):
        assert "i5" not in recommended(process, "new") and "i6" in recommended(process, "new")
        assert "i5" not in items(process.post("/v1/similar", item_ids=["i1"], k=99, user_id="new"))
        assert "i5" not in in_tensors(process, "new")
        assert "i5" in recommended(process, "somebody else")
    server.stop()
    again = serve()
    assert "i5" not in recommended(again, "new")
    say(again, "new", "i5", "view")
    assert "i5" not in recommended(again, "new")
    say(again, "new", "i5", "buy")
    assert "i5" in recommended(again, "new")


def test_a_dislike_in_a_session_counts_for_its_answer(serve):
    server = serve()
    history = ["i6", {"item_id": "i5", "event_type": "dislike"}]
    told = items(server.post("/v1/recommend", history=history, k=99, exclude_seen=False))
    assert "i5" not in told and "i6" in told
    session = {"history": history, "session_id": "s1"}
    server.client.post("/v1/users/new/merge", json=session).raise_for_status()
    assert "i5" not in recommended(server, "new")
    server.client.delete("/v1/users/new").raise_for_status()
    assert "i5" in recommended(server, "new")


def test_what_is_popular_is_what_was_wanted(serve):
    server = serve()
    for n in range(3):
        say(server, f"v{n}", "i7", "dislike")
    say(server, "v0", "i8", "buy")
    assert items(server.post("/v1/popular")) == ["i8"]
    assert items(server.post("/v1/popular", event_types=["dislike"])) == ["i7"]
    assert items(server.post("/v1/popular", user_id="v0", event_types=["dislike", "buy"])) == []


def test_the_service_says_what_events_mean(serve):
    server = serve()
    roles = server.client.get("/v1/model").json()["event_roles"]
    assert roles == {
        "unknown": "inform", "buy": "target", "view": "inform", "dislike": "negative", "hide": "negative",
    }  # fmt: skip
    assert say(server, "new", "i1", "look") == {
        "accepted": 1, "duplicates": 0, "unknown_items": 0, "unknown_types": 1,
    }  # fmt: skip
    assert "unknown_types" not in say(server, "new", "i1", "hide")
    metrics = server.client.get("/metrics").text
    assert 'distilrec_events_total{outcome="unknown_type"} 1.0' in metrics
