"""Probabilities and lists by worth over HTTP and on the command line."""

from __future__ import annotations

import json

import pytest

from distilrec import load
from distilrec.cli.app import main
from distilrec.engine import Objective
from tests.servers import served, unnamed

pytestmark = pytest.mark.server
PRICE = {"attributes": {"price": 1.0}}


@pytest.fixture(scope="module")
def server(bundle_copy):
    with served(bundle_copy) as service:
        yield service


@pytest.fixture(scope="module")
def library(finished_run):
    return load(finished_run.bundle)


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


def test_probabilities_are_those_of_the_library(server, library):
    plain = server.post("/v1/recommend", user_id="u3", k=5)
    assert "probability" not in plain["items"][0]
    told = server.post("/v1/recommend", user_id="u3", k=5, probabilities=True, titles=True)
    assert ids(told) == ids(plain)
    found = [item["probability"] for item in told["items"]]
    assert found == pytest.approx(library.probabilities("u3", ids(told), True), rel=1e-4)
    ranked = server.post("/v1/rank", user_id="u3", item_ids=["i1", "i2"], probabilities=True)
    wanted = library.probabilities("u3", ids(ranked))
    assert [item["probability"] for item in ranked["items"]] == pytest.approx(wanted, rel=1e-4)
    session = {"history": ["i1", "i2"], "k": 2, "probabilities": True}
    (batch,) = server.post("/v1/recommend/batch", requests=[session])["results"]
    assert unnamed(batch) == unnamed(server.post("/v1/recommend", **session))
    assert server.client.get("/v1/model").json()["calibration"]["temperature"] > 0


def test_lists_by_worth_are_those_of_the_library(server, library):
    answer = server.post("/v1/recommend", user_id="u3", k=4, objective=PRICE, explain=True)
    worth = library.recommend_by_value("u3", Objective(attributes={"price": 1.0}), k=4)
    assert ids(answer) == [one.item_id for one in worth]
    for item, one in zip(answer["items"], worth, strict=True):
        assert item["value"] == pytest.approx(one.value, rel=1e-4)
        assert item["parts"] == pytest.approx(one.parts, rel=1e-4)
        assert item["score"] == pytest.approx(one.score, abs=1e-5)
    values = [item["value"] for item in answer["items"]]
    assert values == sorted(values, reverse=True)


def test_rules_have_probabilities_and_no_objective(server):
    rules = {"limit": [{"attribute": "genres", "at_most": 1}]}
    asked = {"user_id": "u3", "k": 3, "rules": rules}
    plain, told = (
        server.post("/v1/recommend", **asked, probabilities=wanted) for wanted in (False, True)
    )
    assert ids(told) == ids(plain)
    assert all(0 < item["probability"] < 1 for item in told["items"])
    refused = server.client.post("/v1/recommend", json={**asked, "objective": PRICE})
    assert refused.status_code == 422
    assert "do not go together" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ({}, "weighs nothing"),
        ({"attributes": {"margin": 1}}, "'margin' is unknown"),
        ({"attributes": {"price": "much"}}, "Expected `float`"),
        ({"price": 1}, "unknown field"),
    ],
)
def test_what_cannot_be_an_objective(server, objective, words):
    refused = server.client.post("/v1/recommend", json={"user_id": "u3", "objective": objective})
    assert refused.status_code == 422
    assert words in refused.json()["error"]["message"]


def test_the_command_line_says_them_too(finished_run, library, capsys):
    command = ["recommend", "--bundle", str(finished_run.bundle), "--user_id", "u3", "--k", "2"]
    main([*command, "--probabilities", "--json"])
    likely = json.loads(capsys.readouterr().out)["items"]
    wanted = library.probabilities("u3", [item["item_id"] for item in likely], True)
    assert [item["probability"] for item in likely] == pytest.approx(wanted, rel=1e-4)
    main([*command, "--objective", "price=1", "--json"])
    by_price = json.loads(capsys.readouterr().out)["items"]
    assert by_price[0]["value"] >= by_price[1]["value"] > 0
    with pytest.raises(SystemExit):
        main([*command, "--objective", "price"])
    assert "--objective has the part 'price'" in capsys.readouterr().err


def test_the_command_line_mixes_lists(finished_run, library, capsys):
    command = ["recommend", "--bundle", str(finished_run.bundle), "--user_id", "u3", "--json"]

    def listed(*more):
        main([*command, *more])
        return [item["item_id"] for item in json.loads(capsys.readouterr().out)["items"]]

    mixed = [one.item_id for one in library.recommend("u3", diversity=0.9)]
    assert listed("--diversity", "0.9") == mixed != listed()
    worth = Objective(attributes={"price": 1.0})
    valued = library.recommend_by_value("u3", worth, diversity=0.9)
    assert listed("--diversity", "0.9", "--objective", "price=1") == [one.item_id for one in valued]
    with pytest.raises(SystemExit):
        main([*command, "--diversity", "0.9", "--item_ids", "i1,i2"])
    assert "--diversity chooses items" in capsys.readouterr().err
