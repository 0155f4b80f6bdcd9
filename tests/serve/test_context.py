"""The context of a question over HTTP and on the command line: answers, mistakes, and what is counted."""

from __future__ import annotations

import json

import pytest

from distilrec import load
from distilrec.cli.app import main
from distilrec.export.export import export_bundle
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import train_model
from tests.servers import served
from tests.small_run import in_context

pytestmark = pytest.mark.server

PHONE = {"device": "phone", "load": 0.5}


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("context") / "bundle"
    dataset = in_context(small)
    config, training = RecurrentConfig(dim=8, max_history=12), TrainingConfig(epochs=3)
    export_bundle(train_model(config, dataset, training, seed=0), dataset, folder)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with served(folder) as service:
        yield service


def scores(answer):
    return {item["item_id"]: pytest.approx(item["score"], abs=1e-5) for item in answer["items"]}


def expected(recommender, user, **more):
    return {one.item_id: one.score for one in recommender.recommend(user, **more)}


def test_answers_are_those_of_the_library(server, folder):
    library = load(folder)
    asked = {"user_id": "a", "k": 5, "titles": True}
    plain, told = expected(library, "a", k=5), expected(library, "a", k=5, context=PHONE)
    assert plain != told
    assert scores(server.post("/v1/recommend", **asked)) == plain
    assert scores(server.post("/v1/recommend", **asked, context=PHONE)) == told
    session = server.post("/v1/recommend", history=["i3"], k=5, context=PHONE, explain=True)
    assert scores(session) == expected(library, library.session(["i3"]), k=5, context=PHONE)
    for item in session["items"]:
        (why,) = library.explain(library.session(["i3"]), item["item_id"], context=PHONE)
        assert item["because"][0]["contribution"] == pytest.approx(why.contribution, abs=1e-5)
    both = [asked, {**asked, "context": PHONE}]
    results = server.post("/v1/recommend/batch", requests=both)["results"]
    assert [scores(answer) for answer in results] == [plain, told]
    ranked = server.post("/v1/rank", user_id="a", item_ids=["i1", "i2"], context=PHONE)
    assert scores(ranked) == expected(library, "a", item_ids=["i1", "i2"], context=PHONE)


def test_an_unknown_value_is_unknown_and_counted(server):
    asked = {"user_id": "a", "k": 5}
    plain = scores(server.post("/v1/recommend", **asked))
    for context in ({"device": "fridge"}, {"device": None}, {}, None):
        assert scores(server.post("/v1/recommend", **asked, context=context)) == plain
    server.post("/v1/rank", user_id="a", item_ids=["i1"], context={"device": "oven", "load": 1})
    line = 'distilrec_context_unknown_total{feature="device"} 2.0'
    assert line in server.client.get("/metrics").text


def test_kserve_says_the_context(server):
    def answered(*told):
        tensors = [
            {"name": name, "shape": [1], "datatype": "BYTES", "data": [text]}
            for name, text in [("user_id", "a"), *told]
        ]
        return server.client.post("/v2/models/distilrec/infer", json={"inputs": tensors})

    for told, context in (([], None), ([("context", json.dumps(PHONE))], PHONE)):
        outputs = {one["name"]: one["data"] for one in answered(*told).json()["outputs"]}
        items = server.post("/v1/recommend", user_id="a", context=context)["items"]
        assert outputs["score"] == pytest.approx([item["score"] for item in items], abs=1e-5)
    for text, words in (
        ("phone", "cannot be read"),
        ('["phone"]', "Expected `object | null`"),
        ('{"page": "home"}', "no context feature 'page'"),
    ):
        refused = answered(("context", text))
        assert refused.status_code == 422 and words in refused.json()["error"]


@pytest.mark.parametrize(
    ("context", "code", "says"),
    [
        ({"page": "home"}, "config_invalid", "no context feature 'page'; it has: device, load"),
        ({"load": "much"}, "config_invalid", "'load' is 'much', which is not a finite number"),
        ({"device": ["phone"]}, "request_invalid", "context"),
        ("phone", "request_invalid", "context"),
    ],
)
def test_wrong_contexts_are_refused(server, context, code, says):
    for path, more in (("/v1/recommend", {}), ("/v1/rank", {"item_ids": ["i1"]})):
        answer = server.client.post(path, json={"user_id": "a", "context": context, **more})
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == code
        assert says in answer.json()["error"]["message"]


def test_the_command_line_says_the_context(folder, capsys):
    library = load(folder)
    asked = ["recommend", "--bundle", str(folder), "--user-id", "a", "--k", "3", "--json"]
    told = ["--context", "device=phone", "--context", "load=0.5"]
    main([*asked, *told])
    answer = json.loads(capsys.readouterr().out)
    assert scores(answer) == expected(library, "a", k=3, context=PHONE)
