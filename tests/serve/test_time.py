"""The time of a question over HTTP and KServe: answers, mistakes, and a restart."""

from __future__ import annotations

import time

import pytest

from distilrec import load
from distilrec.export.export import export_bundle
from distilrec.networks.recurrent import RecurrentConfig
from tests.servers import Server, served
from tests.small_run import timed_student

pytestmark = pytest.mark.server

START, DAY = 1.65e9, 86_400.0
LATER = START + 9 * DAY
INFER = "/v2/models/distilrec/infer"


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("timed") / "bundle"
    config = RecurrentConfig(dim=8, max_history=12, time=True, timezone="Europe/Berlin")
    export_bundle(timed_student(config, small), small, folder)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with served(folder) as service:
        yield service


def scores(answer):
    return {item["item_id"]: pytest.approx(item["score"], abs=1e-5) for item in answer["items"]}


def expected(recommender, now, **more):
    return {one.item_id: one.score for one in recommender.recommend("a", now=now, **more)}


def test_answers_are_those_of_the_library_at_any_time(server, folder):
    library = load(folder)
    for n, item in enumerate(("i3", "i9")):
        event = {"user_id": "a", "item_id": item, "timestamp": START + n * DAY}
        server.event(**{"user": "a", "item": item, "timestamp": event["timestamp"]})
        library.update([event])
    found = []
    for now in (START + DAY, LATER):
        answer = server.post("/v1/recommend", user_id="a", k=9, now=now, explain=True)
        found.append(expected(library, now, k=9))
        assert scores(answer) == found[-1]
        for item in answer["items"]:
            why = library.explain("a", item["item_id"], k=3, now=now)
            assert [one["contribution"] for one in item["because"]] == pytest.approx(
                [one.contribution for one in why], abs=1e-5
            )
        ranked = server.post("/v1/rank", user_id="a", item_ids=["i1", "i2"], now=now)
        assert scores(ranked) == expected(library, now, item_ids=["i1", "i2"])
    assert found[0] != found[1]
    both = [{"user_id": "a", "k": 9, "now": now} for now in (START + DAY, LATER)]
    results = server.post("/v1/recommend/batch", requests=both)["results"]
    assert [scores(answer) for answer in results] == found


def test_a_session_is_asked_about_at_a_time(server, folder):
    library = load(folder)
    history = [{"item_id": "i3", "timestamp": START}, {"item_id": "i9", "timestamp": START + DAY}]
    for now in (START + DAY, LATER):
        session = library.session(history, now=now)
        answer = server.post("/v1/recommend", history=history, k=9, now=now, explain=True)
        best = library.recommend(session, k=9, now=now)
        assert scores(answer) == {one.item_id: one.score for one in best}
        for item in answer["items"]:
            why = library.explain(session, item["item_id"], k=3, now=now)
            assert [one["contribution"] for one in item["because"]] == pytest.approx(
                [one.contribution for one in why], abs=1e-5
            )
        ranked = server.post("/v1/rank", history=history, item_ids=["i1", "i2"], now=now)
        best = library.recommend(session, ["i1", "i2"], now=now)
        assert scores(ranked) == {one.item_id: one.score for one in best}
    told = {"history": history, "now": START}  # the second event is from a day later
    response = server.client.post("/v1/recommend", json=told)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "config_invalid")


def test_without_now_it_is_the_time_of_the_clock(server):
    server.event("b", "i4")
    before = time.time()
    answer = server.post("/v1/recommend", user_id="b", k=5)
    seconds = range(int(before), int(time.time()) + 2)
    at_each = [server.post("/v1/recommend", user_id="b", k=5, now=now) for now in seconds]
    assert answer["items"] in [one["items"] for one in at_each]


def test_kserve_asks_at_a_time(server):
    inputs = [
        {"name": "user_id", "shape": [1], "datatype": "BYTES", "data": ["b"]},
        {"name": "k", "shape": [1], "datatype": "INT32", "data": [3]},
    ]
    later = int(time.time()) + 200
    now = {"name": "now", "shape": [1], "datatype": "INT64", "data": [later]}
    answer = server.post(INFER, inputs=[*inputs, now])
    outputs = {one["name"]: one["data"] for one in answer["outputs"]}
    items = server.post("/v1/recommend", user_id="b", k=3, now=later)["items"]
    assert outputs["item_id"] == [item["item_id"] for item in items]
    assert outputs["score"] == pytest.approx([item["score"] for item in items], abs=1e-5)
    for wrong, words in (
        ({**now, "data": [later, later], "shape": [2]}, "is [2], not [1]"),
        ({**now, "datatype": "FP32"}, "'now' is FP32, not INT64"),
        ({**now, "data": [-5]}, "not a time between 1970 and now"),
    ):
        response = server.client.post(INFER, json={"inputs": [*inputs, wrong]})
        assert response.status_code == 422
        assert words in response.json()["error"]


@pytest.mark.parametrize(
    ("now", "status", "code"),
    [
        ("NaN", 400, "request_malformed"),
        ("1e999", 422, "request_invalid"),
        ("-1", 422, "request_invalid"),
        ('"soon"', 422, "request_invalid"),
        ("true", 422, "request_invalid"),
        ("1.65e12", 422, "config_invalid"),
        (str(START - 400), 422, "config_invalid"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/rank", "/v1/recommend/batch"])
def test_wrong_times(server, path, now, status, code):
    server.event("c", "i4", timestamp=START)
    body = f'{{"user_id": "c", "now": {now}' + (', "item_ids": ["i1"]}' if "rank" in path else "}")
    if "batch" in path:
        body = f'{{"requests": [{body}]}}'
    headers = {"content-type": "application/json"}
    response = server.client.post(path, content=body, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.json()["error"]["fix"]


def test_a_restarted_service_answers_as_before(folder, tmp_path):
    store = f"sqlite:///{tmp_path / 'store.db'}"
    answers = []
    for start in range(2):
        server = Server(folder, store, log_folder=tmp_path)
        if not start:
            for n in (0, 2, 1):  # the last one is late
                server.event("a", f"i{n + 3}", timestamp=START + n * DAY, event_id=f"{n}")
                server.items("a", now=LATER)
        answers.append(
            server.post("/v1/recommend", user_id="a", k=20, now=LATER, explain=True)["items"]
        )
        assert server.stop() == 0
    assert answers[0] == answers[1]
