"""`POST /v1/similar`, over HTTP."""

from __future__ import annotations

import pytest

from distilrec import load
from tests.servers import served

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(bundle_copy):
    with served(bundle_copy, store="similar.db") as service:
        yield service


@pytest.fixture
def library(finished_run):
    return load(finished_run.bundle)


def items(answer):
    return [(one["item_id"], one["rank"]) for one in answer["items"]]


def ranked(found):
    return [(one.item_id, rank) for rank, one in enumerate(found, 1)]


def test_answers_are_those_of_the_library(server, library):
    answer = server.post("/v1/similar", item_ids=["i1", "i7", "i1"], k=5)
    found = library.similar(["i1", "i7"], k=5)
    assert items(answer) == ranked(found)
    assert [one["score"] for one in answer["items"]] == pytest.approx([one.score for one in found])
    alone = server.post("/v1/similar", item_ids=["i1"], k=99, popularity=0)
    assert items(alone) == ranked(library.similar("i1", k=99, popularity=0))
    assert answer["model_version"] == library.model_version and "title" not in answer["items"][0]


def test_everything_that_can_be_asked_for(server, library):
    server.event("buyer", "i9")
    answer = server.post(
        "/v1/similar", item_ids=["i2", "stale"], k=9, user_id="buyer", diversity=0.5, titles=True, popularity=0,
        skip_unknown=True, filter={"attributes": {"price": {"min": 2}}, "deny": ["i7"]},
    )  # fmt: skip
    names = [one["item_id"] for one in answer["items"]]
    assert len(names) == 9 and not {"i2", "i7", "i9"} & set(names)
    assert answer["unknown_items"] == ["stale"]
    for one in answer["items"]:
        assert one["title"] == library.title(one["item_id"])
        assert library.item(one["item_id"]).attributes["price"] >= 2
    asked = {"item_ids": ["i2"], "k": 99, "user_id": "buyer"}
    kept = server.post("/v1/similar", **asked, exclude_seen=False)
    assert items(kept) == ranked(library.similar("i2", k=99))
    assert ("i9" in dict(items(kept))) and "i9" not in dict(
        items(server.post("/v1/similar", **asked))
    )
    nothing = server.post("/v1/similar", item_ids=["stale"], skip_unknown=True)
    assert nothing["items"] == [] and nothing["unknown_items"] == ["stale"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("similar", {"item_ids": ["i1"]}, "explain"),
        ("similar", {"item_ids": ["i1"]}, "rules"),
        ("popular", {}, "diversity"),
        ("popular", {}, "history"),
        ("latest", {"by": "price"}, "shown"),
        ("latest", {"by": "price"}, "probabilities"),
        ("rank", {"item_ids": ["i1"]}, "filter"),
        ("recommend/batch", {"requests": [{}]}, "record"),
    ],
)
def test_what_a_list_does_not_know_is_refused_by_name(server, path, body, field):
    answer = server.client.post(f"/v1/{path}", json={**body, field: None})
    assert answer.status_code == 422
    assert f"unknown field `{field}`" in answer.json()["error"]["message"]


def test_one_that_is_taken_out_is_not_in_the_answer(server):
    first = server.post("/v1/similar", item_ids=["i1"])["items"][0]["item_id"]
    server.client.put(f"/v1/items/{first}", json={"available": False})
    assert first not in [
        one["item_id"] for one in server.post("/v1/similar", item_ids=["i1"], k=99)["items"]
    ]
    server.client.put(f"/v1/items/{first}", json={"available": True})
    assert server.post("/v1/similar", item_ids=["i1"])["items"][0]["item_id"] == first


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({"item_ids": ["i1", "stale"]}, 404, "item_unknown", "'stale' is not in the catalogue"),
        ({"item_ids": []}, 422, "request_invalid", "length >= 1"),
        ({"item_id": "i1"}, 422, "request_invalid", "item_id"),
        ({"item_ids": [""]}, 422, "id_invalid", "is empty"),
        ({"item_ids": ["i1"], "k": 0}, 422, "request_invalid", ">= 1"),
        ({"item_ids": ["i1"], "k": 1_001}, 422, "request_invalid", "k: 1,001 is more than"),
        ({"item_ids": ["i1"] * 1_001}, 422, "request_invalid", "item_ids: 1,001"),
        ({"item_ids": ["i1"], "k": 201, "diversity": 0.1}, 422, "request_invalid", "of 200"),
        ({"item_ids": ["i1"], "diversity": 2}, 422, "request_invalid", "<= 1"),
        ({"item_ids": ["i1"], "user_id": "\u0000"}, 422, "id_invalid", "U+0000"),
        (
            {"item_ids": ["i1"], "filter": {"attributes": {"colour": {"min": 1}}}},
            422,
            "config_invalid",
            "no item has an attribute 'colour'",
        ),
    ],
)
def test_what_cannot_be_asked(server, body, status, code, words):
    response = server.client.post("/v1/similar", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), error
    assert words in error["message"]


def test_it_is_measured(server):
    server.post("/v1/similar", item_ids=["i1"])
    text = server.client.get("/metrics").text
    assert 'distilrec_request_seconds_count{endpoint="similar"}' in text
