"""The service as its users meet it: `distilrec serve` in a process of its own, asked over HTTP."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from distilrec import load
from distilrec.errors import RateLimitedError
from distilrec.serve.keys import Caller, KeyEntry
from tests.servers import PATIENCE, Server, served, unnamed, until

pytestmark = pytest.mark.server

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def server(bundle_copy):
    with served(bundle_copy, "--max-body", 20_000, "--max-batch", 50) as service:
        yield service


@pytest.fixture
def library(finished_run):
    return load(finished_run.bundle)


# Answers


def test_recommendations_are_those_of_the_library(server, library):
    answer = server.post("/v1/recommend", user_id="u10", k=5)
    expected = library.recommend("u10", k=5)
    assert [(item["item_id"], item["rank"]) for item in answer["items"]] == [
        (e.item_id, n) for n, e in enumerate(expected, 1)
    ]
    assert [item["score"] for item in answer["items"]] == pytest.approx(
        [e.score for e in expected], abs=1e-5
    )
    assert answer["known_user"] and answer["model_version"] == library.manifest.model_version
    assert "title" not in answer["items"][0] and "because" not in answer["items"][0]


def test_everything_that_can_be_asked_for(server, library):
    answer = server.post(
        "/v1/recommend", user_id="u11", k=4, titles=True, explain=True, diversity=0.3, exclude_seen=False,
        filter={"attributes": {"price": {"min": 2}, "genres": {"none_of": ["g0"]}}, "deny": ["i7"]},
    )  # fmt: skip
    for item in answer["items"]:
        assert item["title"] == library.title(item["item_id"])
        assert library.item(item["item_id"]).attributes["price"] >= 2
        expected = library.explain("u11", item["item_id"], k=3)
        assert [b["item_id"] for b in item["because"]] == [e.item_id for e in expected]
        assert [b["contribution"] for b in item["because"]] == pytest.approx(
            [e.contribution for e in expected], abs=1e-5
        )


def test_strangers_get_the_prior(server):
    answer = server.post("/v1/recommend", user_id="nobody at all")
    assert answer["known_user"] is False
    assert answer["items"] == server.post("/v1/recommend", user_id=987_654)["items"]


def test_ranking(server, library):
    answer = server.post("/v1/rank", user_id="u12", item_ids=["i3", "i1", "i2", "i3"])
    assert [i["item_id"] for i in answer["items"]] == [
        e.item_id for e in library.recommend("u12", ["i3", "i1", "i2"])
    ]
    response = server.client.post("/v1/rank", json={"user_id": "u12", "item_ids": ["i3", "stale"]})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "item_unknown")
    answer = server.post("/v1/rank", user_id="u12", item_ids=["i3", "stale"], skip_unknown=True)
    assert ([i["item_id"] for i in answer["items"]], answer["unknown_items"]) == (["i3"], ["stale"])


def test_a_batch_is_the_single_answers(server):
    requests = [{"user_id": f"u{n}", "k": n % 3 + 1} for n in range(45)]
    results = server.post("/v1/recommend/batch", requests=requests)["results"]
    alone = [server.post("/v1/recommend", **request) for request in requests]
    assert list(map(unnamed, results)) == list(map(unnamed, alone))


def test_an_acknowledged_event_changes_the_next_answer(server, library):
    for n in range(5):
        best = server.items("reader")[0]
        assert server.event("reader", best, event_type="buy") == {
            "accepted": 1,
            "duplicates": 0,
            "unknown_items": 0,
        }
        library.update([{"user_id": "reader", "item_id": best, "event_type": "buy"}])
        assert best not in server.items("reader", k=99)
        assert server.items("reader", k=99) == [
            e.item_id for e in library.recommend("reader", k=99)
        ], n


def test_duplicates_and_unknown_items_are_counted(server):
    events = [
        {"user_id": "counter", "item_id": "i1", "event_id": "a"},
        {"user_id": "counter", "item_id": "i1", "event_id": "a"},
        {"user_id": "counter", "item_id": "of another shop", "event_id": "b"},
    ]
    assert server.post("/v1/events", events=events) == {
        "accepted": 2,
        "duplicates": 1,
        "unknown_items": 1,
    }
    assert server.post("/v1/events", events=events) == {
        "accepted": 0,
        "duplicates": 3,
        "unknown_items": 0,
    }
    about = server.client.get("/v1/users/counter").json()
    assert about["event_count"] == 2
    assert [e["event_id"] for e in about["events"]] == ["b", "a"]
    assert [item["item_id"] for item in about["recent"]] == ["i1"]


def test_late_events_take_their_place(server):
    for user, order in (("late", (0, 2, 1)), ("punctual", (0, 1, 2))):
        for n in order:
            server.event(user, f"i{n + 3}", timestamp=1_000.0 + n)
            server.items(user)
    late, punctual = (
        server.post("/v1/recommend", user_id=user)["items"] for user in ("late", "punctual")
    )
    assert late == punctual


# Items and users


def test_items(server):
    assert server.client.get("/v1/items/i1").json()["title"] == "Thing number 1"
    body = {
        "title": "Brand new",
        "features": {"price": 3.5, "genres": ["g1"]},
        "attributes": {"shelf": "top"},
    }
    made = server.client.put("/v1/items/new%2Fone", json=body).json()
    assert (made["item_id"], made["available"], made["in_training"]) == ("new/one", True, False)
    assert made["attributes"]["price"] == 3.5 and made["attributes"]["shelf"] == ["top"]
    assert "new/one" in server.items(
        "u13", k=99, filter={"attributes": {"shelf": {"any_of": ["top"]}}}
    )
    assert server.client.get("/v1/items", params={"search": "brand", "limit": 5}).json()[
        "items"
    ] == [made]
    assert (
        server.client.put("/v1/items/new/one", json={"available": False}).json()["title"]
        == "Brand new"
    )
    assert "new/one" not in server.items("u13", k=99)
    assert server.client.delete("/v1/items/new/one").json() == {"status": "removed"}
    assert server.client.get("/v1/items/new/one").status_code == 404
    assert server.client.delete("/v1/items/new/one").status_code == 404
    response = server.client.put("/v1/items/x", json={"features": {"colour": "red"}})
    assert (response.status_code, response.json()["error"]["code"]) == (422, "config_invalid")
    assert "it has: genres" in response.json()["error"]["message"]
    assert server.client.get("/v1/items/x").status_code == 404


def test_users(server, library):
    assert server.client.get("/v1/users/stranger").status_code == 404
    assert (
        server.client.put(
            "/v1/users/cold", json={"features": {"age": 30, "country": "fr"}}
        ).status_code
        == 200
    )
    library.set_user("cold", {"age": 30, "country": "fr"})
    assert server.items("cold") == [e.item_id for e in library.recommend("cold")]
    about = server.client.get("/v1/users/cold").json()
    assert about["features"] == {"age": 30, "country": "fr"} and about["event_count"] == 0
    response = server.client.put("/v1/users/cold", json={"features": {"shoe_size": 30}})
    assert (response.status_code, response.json()["error"]["code"]) == (422, "config_invalid")
    known = server.client.get("/v1/users/u14").json()
    assert [item["item_id"] for item in known["teacher"]] == library.teacher_items("u14")
    assert "u14" in server.client.get("/v1/users", params={"limit": 100}).json()["users"]


def test_a_shop_recommends_again_what_a_user_has_had(bundle_with_repeats, tmp_path):
    """Unless the request says otherwise."""
    with served(bundle_with_repeats, store=str(tmp_path / "store.db")) as shop:
        shop.event("buyer", "i9")
        asked = {"user_id": "buyer", "k": 99}
        for path, more in (
            ("recommend", {}),
            ("recommend", {"probabilities": True, "objective": {"probability": 1}}),
            ("recommend", {"rules": {}}),
            ("similar", {"item_ids": ["i2"]}),
            ("popular", {}),
            ("latest", {"by": "price"}),
        ):
            for said, there in (
                ({}, True),
                ({"exclude_seen": None}, True),
                ({"exclude_seen": True}, False),
            ):
                answer = shop.post(f"/v1/{path}", **asked, **more, **said)
                assert ("i9" in [one["item_id"] for one in answer["items"]]) == there, (path, said)


def test_erasure_is_proved_by_a_scan_of_all_files(finished_run, tmp_path):
    """A user of the bundle with live events and features: afterwards no file of store or bundle holds the id."""
    from distilrec.bundle.format import read_bundle, write_bundle

    read = read_bundle(finished_run.bundle)
    secret = "Tricia.McMillan@example.org"
    read.history.users[20] = secret
    bundle = tmp_path / "bundle"
    write_bundle(bundle, read.manifest, read.weights, read.catalogue, read.history)
    service = Server(bundle, f"sqlite:///{tmp_path / 'store' / 'store.db'}")
    service.event(secret, "an item nobody else has seen")
    service.client.put(f"/v1/users/{secret}", json={"features": {"age": 30}})
    service.items(secret)

    def holding() -> set[str]:
        files = [file for file in tmp_path.rglob("*") if file.is_file()]
        return {
            file.name
            for file in files
            for text in (secret, "nobody else")
            if text.encode() in file.read_bytes()
        }

    assert len(holding()) >= 2
    stranger = service.items("stranger")
    assert service.items(secret) != stranger
    answer = service.client.delete(f"/v1/users/{secret}").json()
    assert answer == {"user_id": secret, "events_removed": 1, "bundle": "clean", "store": "clean"}
    assert holding() == set()
    assert service.items(secret) == stranger
    assert service.client.get(f"/v1/users/{secret}").status_code == 404
    assert service.client.delete(f"/v1/users/{secret}").json()["events_removed"] == 0
    assert service.stop() == 0
    assert holding() == set()
    again = Server(bundle, f"sqlite:///{tmp_path / 'store' / 'store.db'}")
    assert again.items(secret) == stranger
    again.stop()


# Wrong requests


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "words"),
    [
        ("recommend", b"{", 400, "request_malformed", "not valid JSON"),
        ("recommend", b"", 400, "request_malformed", "not valid JSON"),
        ("recommend", b"\xff\xfe", 400, "request_malformed", "not valid JSON"),
        ("recommend", b"[" * 10_000, 422, "request_invalid", "Expected `object`"),
        ("recommend", b"[]", 422, "request_invalid", "Expected `object`"),
        ("recommend", b"{}", 422, "request_invalid", "user_id"),
        ("recommend", b'{"user_id": ""}', 422, "id_invalid", "is empty"),
        ("recommend", b'{"user_id": "' + b"x" * 300 + b'"}', 422, "id_invalid", "300 characters"),
        ("recommend", b'{"user_id": null}', 422, "request_invalid", "neither a user_id"),
        ("recommend", b'{"user_id": true}', 422, "request_invalid", "$.user_id"),
        ("recommend", b'{"user_id": "u", "k": 0}', 422, "request_invalid", "$.k"),
        ("recommend", b'{"user_id": "u", "k": -1}', 422, "request_invalid", "$.k"),
        ("recommend", b'{"user_id": "u", "k": 1.5}', 422, "request_invalid", "$.k"),
        ("recommend", b'{"user_id": "u", "k": "ten"}', 422, "request_invalid", "$.k"),
        ("recommend", b'{"user_id": "u", "k": 1001}', 422, "request_invalid", "limit of 1,000"),
        ("recommend", b'{"user_id": "u", "k": 1e400}', 422, "request_invalid", "out of range"),
        ("recommend", b'{"user_id": "u", "diversity": NaN}', 400, "request_malformed", ""),
        ("recommend", b'{"user_id": "u", "diversity": 2}', 422, "request_invalid", "$.diversity"),
        ("recommend", b'{"user_id": "u", "kk": 5}', 422, "request_invalid", "kk"),
        ("recommend", b'{"user_id": "\\ud800"}', 400, "request_malformed", ""),
        ("recommend", b'{"user_id": "u", "filter": {"attributes": {"x": {}}}}', 422, "config_invalid", "'x'"),
        ("recommend", b'{"user_id": "u", "filter": {"attributes": {"price": {"min": "a"}}}}', 422, "request_invalid", "min"),
        ("recommend", b'{"user_id": "u", "filter": {"where": 1}}', 422, "request_invalid", "where"),
        ("recommend/batch", b'{"requests": []}', 422, "request_invalid", "length >= 1"),
        ("recommend/batch", json.dumps({"requests": [{"user_id": "u"}] * 51}).encode(), 422, "request_invalid", "limit of 50"),
        ("rank", b'{"user_id": "u", "item_ids": []}', 422, "request_invalid", "item_ids"),
        ("rank", b'{"user_id": "u", "item_ids": ["nope"]}', 404, "item_unknown", "nope"),
        ("events", b'{"events": []}', 422, "request_invalid", "events"),
        ("events", b'{"events": [{"user_id": "u"}]}', 422, "request_invalid", "item_id"),
        ("events", b'{"events": [{"user_id": "u", "item_id": "i1", "timestamp": -1}]}', 422, "request_invalid", "timestamp"),
        ("events", b'{"events": [{"user_id": "u", "item_id": "i1", "timestamp": 9e12}]}', 422, "config_invalid", "of events[0]"),
        ("events", b'{"events": [{"user_id": "u", "item_id": "i1", "event_id": ""}]}', 422, "request_invalid", "event_id"),
        ("events", b" " * 20_001, 413, "body_too_large", "20,000"),
        ("model/load", b'{"bundle": "/etc"}', 422, "config_invalid", "outside the bundle root"),
        ("model/load", b'{"bundle": "../../etc"}', 422, "config_invalid", "outside the bundle root"),
        ("model/load", b'{"bundle": "nothing"}', 422, "bundle_missing", "no bundle"),
        ("model/load", b'{"bundle": "' + b"x" * 300 + b'"}', 422, "config_invalid", "cannot be a path"),
        ("model/load", b'{"bundle": "a\\u0000b"}', 422, "config_invalid", "cannot be a path"),
        ("model/rollback", b"", 409, "swap_conflict", "no earlier model"),
    ],
)  # fmt: skip
def test_wrong_bodies(server, path, body, status, code, words):
    response = server.client.post(f"/v1/{path}", content=body, headers=JSON)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), error
    assert words in error["message"]
    assert error["request_id"] == response.headers["x-request-id"]
    assert error.get("fix")


def test_a_refused_request_stores_nothing(server):
    bad = [
        {"user_id": "half", "item_id": "i1"},
        {"user_id": "half", "item_id": "i2", "timestamp": 9e12},
    ]
    assert server.client.post("/v1/events", json={"events": bad}).status_code == 422
    assert server.client.get("/v1/users/half").status_code == 404


def test_wrong_paths_methods_and_types(server):
    def code(response):
        return response.status_code, response.json()["error"]["code"]

    assert code(server.client.get("/v1/nothing")) == (404, "not_found")
    response = server.client.get("/v1/recommend")
    assert code(response) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    assert server.client.patch("/v1/users/x").headers["allow"] == "GET, PUT, DELETE"
    assert code(server.client.post("/v1/recommend", content=b"{}")) == (415, "media_type")
    form = {"content-type": "text/plain"}  # what a form of another site could send
    assert code(server.client.post("/v1/events", content=b"{}", headers=form)) == (
        415,
        "media_type",
    )
    assert code(server.client.get("/v1/users/" + "x" * 257)) == (422, "id_invalid")
    assert code(server.client.get("/v1/items?limit=ten")) == (422, "request_invalid")
    assert code(server.client.get("/v1/items?limit=0")) == (422, "config_invalid")
    assert server.client.head("/healthz").status_code == 200
    assert server.client.head("/healthz").content == b""


def test_a_body_without_a_length_is_bounded_too(server):
    def chunks():
        for _ in range(50):
            yield b" " * 1_000

    response = server.client.post("/v1/events", content=chunks(), headers=JSON)
    assert response.status_code == 413


# Around the answers


def test_request_ids_and_headers(server):
    mine = server.client.get("/healthz", headers={"x-request-id": "trace-1.2:3"})
    assert mine.headers["x-request-id"] == "trace-1.2:3"
    unsafe = server.client.get("/healthz", headers={"x-request-id": "a b\tc"})
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]+", unsafe.headers["x-request-id"])
    assert mine.headers["x-content-type-options"] == "nosniff"
    assert mine.headers["cache-control"] == "no-store"
    script = server.client.get("/distilrec.js")
    assert script.headers.get_list("cache-control") == ["public, max-age=3600"]
    assert script.headers["x-content-type-options"] == "nosniff"
    policy = server.client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_metrics(server):
    server.items("u15")
    server.client.post("/v1/recommend", content=b"{", headers=JSON)
    text = server.client.get("/metrics").text
    found = dict(re.findall(r"^(\S+) (\S+)$", text, re.MULTILINE))
    assert float(found['distilrec_request_seconds_count{endpoint="recommend"}']) > 1
    assert (
        float(found['distilrec_errors_total{code="request_malformed",endpoint="recommend"}']) >= 1
    )
    assert float(found["distilrec_users_in_memory"]) >= 1
    assert float(found["distilrec_state_bytes"]) > 0
    assert re.search(r'distilrec_model_info\{model_version="[0-9a-f]{16}"\} 1\.0', text)
    assert not re.search(r"u15|reader", text)


def test_the_description_matches_what_is_served(server):
    described = server.client.get("/openapi.json").json()
    assert described["openapi"] == "3.1.0"
    assert {"/v1/recommend", "/v1/rank", "/v1/events", "/v1/items/{item_id}", "/v1/users/{user_id}", "/healthz", "/readyz",
            "/metrics", "/v2/models/{name}/infer", "/v1/model/load"} <= set(described["paths"])  # fmt: skip
    assert described["components"]["schemas"]["RecommendRequest"]["additionalProperties"] is False


def test_kserve(server):
    client = server.client
    assert client.get("/v2").json()["name"] == "distilrec"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    about = client.get("/v2/models/distilrec").json()
    version = about["versions"][0]
    assert client.get(f"/v2/models/distilrec/versions/{version}/ready").json() == {"ready": True}
    assert client.get("/v2/models/other").status_code == 404
    assert client.get("/v2/models/distilrec/versions/7").status_code == 404
    users = {"name": "user_id", "shape": [2], "datatype": "BYTES", "data": ["u16", "nobody"]}
    k = {"name": "k", "shape": [1], "datatype": "INT64", "data": [3]}
    answer = client.post(
        "/v2/models/distilrec/infer", json={"id": "7", "inputs": [users, k]}
    ).json()
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert answer["id"] == "7" and answer["model_version"] == version
    assert outputs["item_id"]["shape"] == [2, 3]
    assert outputs["item_id"]["data"] == server.items("u16", k=3) + server.items("nobody", k=3)
    assert outputs["count"]["data"] == [3, 3]
    only = {"inputs": [users, {**k, "data": [200]}], "outputs": [{"name": "count"}]}
    counts = client.post(f"/v2/models/distilrec/versions/{version}/infer", json=only).json()[
        "outputs"
    ]
    assert [output["name"] for output in counts] == ["count"] and counts[0]["data"][1] < 200
    for inputs in (
        [k],
        [users, {**k, "name": "x"}],
        [{**users, "shape": [3]}],
        [users, {**k, "data": [0]}],
        [{**users, "data": [1, 2]}],
    ):
        response = client.post("/v2/models/distilrec/infer", json={"inputs": inputs})
        assert response.status_code == 422 and "how to fix" in response.json()["error"], inputs


def test_deep_nesting_is_refused(server):
    for depth in (200, 9_000):
        data = "[" * depth + "]" * depth
        body = f'{{"inputs": [{{"name": "user_id", "shape": [1], "datatype": "BYTES", "data": {data}}}]}}'
        response = server.client.post("/v2/models/distilrec/infer", content=body, headers=JSON)
        assert response.status_code in (400, 422), response.text


def test_neither_torch_nor_polars_is_in_the_process(server):
    mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "numba" in mapped or "llvmlite" in mapped
    assert not re.search(r"torch|polars|pandas|matplotlib|pyarrow", mapped)


def test_logs_name_no_user(bundle, tmp_path):
    service = Server(bundle, f"sqlite:///{tmp_path / 'store.db'}", "--log-requests")
    service.items("Arthur-Dent")
    service.event("Arthur-Dent", "i1")
    service.client.get("/v1/users/Arthur-Dent")
    service.client.post("/v1/rank", json={"user_id": "Arthur-Dent", "item_ids": ["nope"]})
    assert service.stop() == 0
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert {line["endpoint"] for line in requests} >= {"recommend", "events", "get_user"}
    assert all(line["request_id"] and line["status"] and line["seconds"] >= 0 for line in requests)
    assert "Arthur" not in service.log.read_text()
    assert {"ready", "listening", "stopped"} <= {line["event"] for line in lines}
    (address,) = (line["address"] for line in lines if line["event"] == "listening")
    assert address == service.url  # the port that the system has chosen


# Keys


def test_keys_scopes_and_rates(bundle, tmp_path):
    secrets, entries = {}, ""
    for name, options in {
        "reader": ["--scopes", "recommend"],
        "slow": ["--scopes", "recommend", "--rate", "0.5"],
        "all": ["--scopes", "recommend,events,items,users,admin,metrics"],
    }.items():
        run = subprocess.run(
            [sys.executable, "-m", "distilrec.cli", "key", "--name", name, *options],
            capture_output=True,
            text=True,
            check=True,
        )
        secrets[name] = run.stderr.split()[-1]
        assert secrets[name] not in run.stdout
        entries += run.stdout
    entries = entries.replace("rate = 0.5", "rate = 0.5\nburst = 2")
    (tmp_path / "keys.toml").write_text(entries)
    service = Server(bundle, f"sqlite:///{tmp_path / 'store.db'}", "--keys", tmp_path / "keys.toml")

    def ask(name, path="/v1/recommend", header="authorization", **body):
        given = {"authorization": f"Bearer {name}", "x-api-key": name}[header] if name else ""
        return service.client.post(
            path, json=body or {"user_id": "u1"}, headers={header: given} if name else {}
        )

    assert ask(secrets["reader"]).status_code == 200
    assert ask(secrets["reader"], header="x-api-key").status_code == 200
    for wrong in ("", "dr_wrong", secrets["reader"][:-1]):
        response = ask(wrong)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
    response = ask(secrets["reader"], "/v1/events", events=[{"user_id": "u1", "item_id": "i1"}])
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")
    assert (
        ask(secrets["all"], "/v1/events", events=[{"user_id": "u1", "item_id": "i1"}]).status_code
        == 200
    )
    statuses = [ask(secrets["slow"]).status_code for _ in range(4)]
    assert statuses[:2] == [200, 200] and 429 in statuses
    response = ask(secrets["slow"])
    assert (
        response.json()["error"]["code"] == "rate_limited"
        and int(response.headers["retry-after"]) >= 1
    )
    assert service.client.get("/metrics").status_code == 401
    assert service.client.get("/healthz").status_code == 200
    assert (
        service.client.get("/").status_code == 200
    )  # the page holds nothing; what it asks for needs the key
    assert service.client.get("/openapi.json").json()["components"]["securitySchemes"]
    assert service.stop() == 0


def test_a_bucket_fills_again():
    now = [0.0]
    caller = Caller(
        KeyEntry("x", "00" * 32, ("recommend",), rate=2.0, burst=3), clock=lambda: now[0]
    )
    admitted = 0
    for _ in range(80):  # ten seconds, eight attempts each, in steps that floats know exactly
        now[0] += 0.125
        try:
            caller.admit("recommend")
            admitted += 1
        except RateLimitedError:
            pass
    assert admitted == 3 + 19  # the bucket, and then every fourth attempt from the fifth on


# Starting


def start(*options, **environment) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "distilrec.cli", *map(str, options)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "there are no API keys"),
        (["--workers", "2"], "several workers cannot share an SQLite store"),
        (["--max-users", "0"], "max_users is 0"),
        (["--strangers-weight", "-1"], "strangers_weight is -1"),
        (["--strangers-half-life", "0"], "strangers_half_life is 0"),
        (["--port", "70000"], "port is 70000"),
        (["--store", "mysql://x"], "is not the address of a store"),
        (["--store", "redis://127.0.0.1:1/0"], "cannot be used"),
        (["--keys", "missing.toml"], "missing.toml does not exist"),
        (["--bundle", "nowhere"], "there is no bundle"),
    ],
)  # fmt: skip
def test_a_service_that_cannot_start_says_why(bundle, options, words):
    given = options if "--bundle" in options else ["--bundle", bundle, *options]
    run = start("serve", *given)
    assert run.returncode == 2
    assert words in run.stderr and "how to fix" in run.stderr and "Traceback" not in run.stderr


@pytest.mark.parametrize(
    "text",
    ["", "key = 1", "[[key]]\nname = 'x'", "[[key]]\nname='x'\nsha256='zz'\nscopes=[]", "\0"],
)
def test_wrong_key_files(bundle, tmp_path, text):
    (tmp_path / "keys.toml").write_text(text)
    run = start("serve", "--bundle", bundle, "--keys", tmp_path / "keys.toml")
    assert run.returncode == 2 and "keys.toml" in run.stderr and "how to fix" in run.stderr


def test_doctor(bundle, tmp_path, server):
    store = f"sqlite:///{tmp_path / 'store.db'}"
    run = start("doctor", "--bundle", bundle, "--store", store, "--port", "0")
    assert run.returncode == 0, run.stdout + run.stderr
    for words in (
        "ok  versions: distilrec",
        "ok  bundle: model",
        "ok  store: SqliteStore can be read and written",
        "ok  address",
    ):
        assert words in run.stdout
    (bundle / "weights.safetensors").write_bytes(b"")
    (tmp_path / "bad.db").write_bytes(b"no database " * 1_000)
    run = start(
        "doctor",
        "--bundle",
        bundle,
        "--store",
        f"sqlite:///{tmp_path / 'bad.db'}",
        "--port",
        server.port,
    )
    assert run.returncode == 1
    assert len(re.findall("failed  ", run.stdout)) == 3
    assert (
        "bundle_corrupted" in run.stdout
        and "store_corrupted" in run.stdout
        and "cannot be used" in run.stdout
    )


def test_without_a_folder_for_compiled_code(bundle, tmp_path):
    """A read-only environment and no home: slower starts, and the doctor says why."""
    code = (
        "import sys, numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from distilrec.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    options = [
        "doctor",
        "--bundle",
        bundle,
        "--store",
        f"sqlite:///{tmp_path / 'store.db'}",
        "--port",
        "0",
    ]
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, options)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert (
        "warning  kernels" in run.stdout
        and "NUMBA_CACHE_DIR" in run.stdout
        and "answering after" in run.stdout
    )


def test_forget(bundle):
    assert start("forget", "--bundle", bundle, "--user-id", "u1").stdout == "erased\n"
    again = start("forget", "--bundle", bundle, "--user-id", "u1")
    assert again.returncode == 2 and "user_unknown" in again.stderr
    again = start("forget", "--bundle", bundle, "--user-id", "u1", "--missing-ok")
    assert again.returncode == 0, again.stderr
    assert not load(bundle).knows_user("u1")


def test_wrong_scopes():
    run = start("key", "--name", "x", "--scopes", "recommend,everything")
    assert run.returncode == 2 and "use some of: recommend, events" in run.stderr
    run = start("key", "--name", "x", "--rate", "0")
    assert run.returncode == 2 and "the rate is 0.0" in run.stderr


def test_restarts_keep_everything(bundle, tmp_path):
    store = f"sqlite:///{tmp_path / 'store.db'}"
    first = Server(bundle, store)
    first.event("u1", "i2", event_type="buy")
    first.event("new", "i2")
    first.client.put("/v1/items/late", json={"features": {"price": 4.0}, "title": "Late"})
    first.client.put("/v1/users/cold", json={"features": {"age": 50}})
    answers = [first.items(user, k=99) for user in ("u1", "new", "cold")]
    assert first.stop() == 0
    second = Server(bundle, store, "--max-users", 1)
    assert [second.items(user, k=99) for user in ("u1", "new", "cold")] == answers
    assert "late" in answers[0]
    with pytest.raises(AssertionError, match="in use by another process"):
        Server(bundle, store)
    second.stop()


def test_a_signal_that_comes_just_before_the_server_listens_to_signals(bundle, tmp_path):
    """It must not get lost: a worker that is told to stop while it starts would be killed at last."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, uvicorn\n"
        "run = uvicorn.Server.run\n"
        "def interrupted(*arguments):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    run(*arguments)\n"
        "uvicorn.Server.run = interrupted\n"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), *sys.path]))
    store = f"sqlite:///{tmp_path / 'store.db'}"
    service = Server(bundle, store, wait=False, env=os.environ | {"PYTHONPATH": path})
    assert service.process.wait(PATIENCE) == 0
    service.client.close()


def test_draining(bundle, tmp_path):
    """After SIGTERM: not ready, but still answering, then gone with exit code 0."""
    import signal

    service = Server(bundle, f"sqlite:///{tmp_path / 'store.db'}", "--drain-seconds", 8.0)
    service.process.send_signal(signal.SIGTERM)
    until(
        lambda: service.client.get("/readyz").status_code != 200,
        "the service says that it is not ready",
    )
    response = service.client.get("/readyz")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")
    assert response.headers["retry-after"] == "1"
    assert service.items("u1")
    assert service.process.wait(PATIENCE) == 0
    with pytest.raises(httpx.TransportError):
        service.client.get("/healthz")
