"""Rules by placement and by request, over HTTP: loaded, followed by all workers, kept."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from distilrec import load
from distilrec.engine import Condition, Filter, Limit, Pin, Rules
from distilrec.stores import open_store
from tests.servers import Server, served, until

pytestmark = pytest.mark.server

HOME = {"pin": [{"item_id": "i41", "slot": 2, "name": "ad"}]}
FILE = """
[placements.home]
pin = [{ item_id = "i41", slot = 2, name = "ad" }]

[[placements.home.boost]]
weight = 0.01
where = { attributes = { genres = { any_of = ["g0"] } } }

[placements.cart]
limit = [{ attribute = "genres", at_most = 1 }]
at_least = [{ new = {} }]
"""


@pytest.fixture(scope="module")
def server(bundle_copy):
    with served(bundle_copy, store="rules.db") as service:
        yield service


@pytest.fixture
def library(finished_run):
    return load(finished_run.bundle)


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


def put(server, **body):
    response = server.client.post("/v1/rules/load", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_rules_of_a_request_are_those_of_the_library(server, library):
    rules = Rules(pin=(Pin("i41", 1),), limit=(Limit(2, attribute="genres"),))
    found = library.arrange("u3", rules, 6, where=Filter(attributes={"price": Condition(min=2)}))
    body = {
        "user_id": "u3",
        "k": 6,
        "filter": {"attributes": {"price": {"min": 2}}},
        "rules": {
            "pin": [{"item_id": "i41", "slot": 1}],
            "limit": [{"at_most": 2, "attribute": "genres"}],
        },
    }
    answer = server.post("/v1/recommend", **body, titles=True, explain=True)
    assert ids(answer) == [one.item_id for one in found.items]
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4, 5, 6][: len(found.items)]
    assert all("because" in item and "title" in item for item in answer["items"])
    moved = [
        tuple(move.get(name, "") for name in found.moved[0]._fields)
        for move in answer["rules"]["moved"]
    ]
    assert moved == [tuple(move) for move in found.moved]
    batch = server.post("/v1/recommend/batch", requests=[body, {"user_id": "u3"}])["results"]
    assert ids(batch[0]) == ids(answer) and "rules" in batch[0] and "rules" not in batch[1]
    session = server.post("/v1/recommend", history=["i1"], rules=body["rules"])
    assert ids(session)[0] == "i41"


def test_a_placement_follows_its_rules(server, bundle_copy):
    plain = server.items("u3", k=5)
    assert server.client.get("/v1/rules").json() == {"version": "", "placements": {}}
    (bundle_copy.parent / "rules.toml").write_text(FILE)
    loaded = put(server, file="rules.toml")
    assert loaded["placements"].keys() == {"home", "cart"} and "problems" not in loaded
    assert server.client.get("/v1/rules").json() == loaded
    answer = server.post("/v1/recommend", user_id="u3", k=5, placement="home")
    assert ids(answer)[1] == "i41"
    assert answer["rules"]["version"] == loaded["version"] and "problems" not in answer["rules"]
    assert ("ad", 2) in [(move["rule"], move["rank"]) for move in answer["rules"]["moved"]]
    # A name without rules, and no name
    assert "rules" not in server.post("/v1/recommend", user_id="u3", k=5, placement="search")
    assert server.items("u3", k=5, placement="search") == server.items("u3", k=5) == plain
    # Rules of the request come in place of the placement's
    assert server.items("u3", k=5, placement="home", rules={}) == plain
    assert put(server, placements={"home": HOME})["version"] != loaded["version"]
    assert put(server, placements={})["placements"] == {}
    assert server.items("u3", k=5, placement="home") == plain


def test_kserve_follows_the_rules_of_a_placement(server):
    put(server, placements={"home": HOME})
    given = {"shape": [1], "datatype": "BYTES"}
    user = {"name": "user_id", **given, "data": ["u3"]}
    for placement in ("home", "search"):
        at = {"name": "placement", **given, "data": [placement]}
        answer = server.post("/v2/models/distilrec/infer", inputs=[user, at])
        outputs = {one["name"]: one["data"] for one in answer["outputs"]}
        assert outputs["item_id"] == server.items("u3", placement=placement)
    # An answer whose id is not asked for counts as shown all the same, where rules ask for that
    put(server, placements={"home": {"tired": {"impressions": 1, "answers": True}}})
    at = {"name": "placement", **given, "data": ["home"]}
    first, second = (
        server.post("/v2/models/distilrec/infer", inputs=[user, at])["outputs"][0]["data"]
        for _ in range(2)
    )
    assert first == outputs["item_id"] and not set(first) & set(second)
    refused = server.client.post(
        "/v2/models/distilrec/infer",
        json={"inputs": [user, {"name": "placement", **given, "data": [""]}]},
    )
    assert refused.status_code == 422
    assert "the input 'placement' cannot be read" in refused.json()["error"]


def test_what_no_rule_may_show(server):
    put(server, placements={"home": HOME})
    server.client.put("/v1/items/i41", json={"available": False})
    answer = server.post("/v1/recommend", user_id="u3", k=50, placement="home")
    assert "i41" not in ids(answer) and answer["rules"]["moved"][0]["reason"] == "not available"
    server.client.put("/v1/items/i41", json={"available": True})
    assert server.items("u3", placement="home")[1] == "i41"
    server.event("u3", "i41")
    answer = server.post("/v1/recommend", user_id="u3", k=50, placement="home")
    assert "i41" not in ids(answer) and answer["rules"]["moved"][0]["reason"] == "seen"


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({}, 422, "request_invalid", "not clear which rules"),
        ({"file": "rules.toml", "placements": {}}, 422, "request_invalid", "not clear"),
        ({"file": "../secret"}, 422, "config_invalid", "outside the bundle root"),
        ({"file": "none.toml"}, 422, "file_missing", "does not exist"),
        ({"file": "a\u0000b"}, 422, "config_invalid", "cannot be a path"),
        ({"placements": {"": {}}}, 422, "request_invalid", "length >= 1"),
        ({"placements": {"home": {"pins": []}}}, 422, "request_invalid", "pins"),
        ({"placements": {"home": {"boost": [{"where": {}, "weight": 0}]}}}, 422, "request_invalid", "> 0"),
        ({"placements": {"home": {"limit": [{"at_most": 1}]}}}, 422, "config_invalid", "neither"),
        ({"placements": {"home": {"pin": [{"item_id": "", "slot": 1}]}}}, 422, "id_invalid", "empty"),
        (
            {"placements": {"home": {"limit": [{"at_most": 1, "attribute": "size"}]}}},
            422,
            "config_invalid",
            "placement 'home', rule 'limit 1': no item has an attribute 'size'",
        ),
        (
            {"placements": {"home": {"filter": {"allow": ["i1"] * 10_001}}}},
            422,
            "request_invalid",
            "ids and categories",
        ),
    ],
)  # fmt: skip
def test_rules_that_are_refused_change_nothing(server, body, status, code, words):
    before = put(server, placements={"home": HOME})
    response = server.client.post("/v1/rules/load", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), error
    assert words in error["message"]
    assert server.client.get("/v1/rules").json() == before


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"rules": {"limit": [{"at_most": 1, "attribute": "size"}]}}, "config_invalid", "'size'"),
        ({"rules": {"pin": [{"item_id": "i1", "slot": 0}]}}, "request_invalid", ">= 1"),
        ({"rules": {"pin": [{"item_id": f"i{n}", "slot": 1} for n in (1, 2)]}}, "config_invalid", "slot 1"),
        ({"rules": {"boost": [{"where": {}, "weight": 2}] * 33}}, "request_invalid", "<= 32"),
        ({"placement": ""}, "request_invalid", "length >= 1"),
        ({"shown": ["i1"] * 1_001}, "request_invalid", "<= 1000"),
        ({"shown": [""]}, "id_invalid", "shown"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(server, body, code, words):
    response = server.client.post("/v1/recommend", json={"user_id": "u1", **body})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (422, code), error
    assert words in error["message"]


def test_pages_go_on_behind_each_other_while_the_list_moves(server):
    put(server, placements={"home": {"pin": [{"item_id": "i20", "slot": 7}]}})
    shown = []
    for page in range(4):
        answer = server.post("/v1/recommend", user_id="pager", k=5, placement="home", shown=shown)
        assert [item["rank"] for item in answer["items"]] == list(range(5 * page + 1, 5 * page + 6))
        shown += ids(answer)
        server.event("pager", shown[5 * page + 2])
    assert len(set(shown)) == 20 and shown[6] == "i20"
    bare = server.post("/v1/recommend", user_id="pager", k=3, shown=shown)
    assert "rules" not in bare and not set(ids(bare)) & set(shown)
    assert bare["items"][0]["rank"] == 21
    assert server.post("/v1/recommend", user_id="pager", k=3, shown=[])["items"][0]["rank"] == 1


def test_a_service_with_keys_gives_rules_to_the_admin_only(bundle, tmp_path):
    from distilrec.serve.keys import new_key

    secret, entry = new_key("shop", ["recommend"], None)
    (tmp_path / "keys.toml").write_text(entry)
    with served(bundle, "--keys", tmp_path / "keys.toml") as service:
        for method, path in (("GET", "/v1/rules"), ("POST", "/v1/rules/load")):
            response = service.client.request(
                method, path, json={"placements": {}} if method == "POST" else None,
                headers={"x-api-key": secret},
            )  # fmt: skip
            assert response.json()["error"]["code"] == "forbidden"


def test_all_workers_follow_and_a_restart_keeps_them(bundle, redis_server):
    service = Server(bundle, redis_server.url, "--workers", 2)
    until(lambda: service.log.read_text().count('"event":"ready"') == 2, "both are ready")
    loaded = put(service, placements={"home": HOME})

    def seconds() -> list[str]:
        """The second item, asked over many connections: of both workers."""
        found = []
        for _ in range(20):
            service.client.close()
            service._at(service.port)
            found.append(service.items("u3", placement="home")[1])
        return found

    until(lambda: set(seconds()) == {"i41"}, "both workers follow the rules")
    service.kill()
    again = Server(bundle, redis_server.url, "--workers", 2)
    until(lambda: again.log.read_text().count('"event":"ready"') == 2, "both are ready")
    assert again.items("u3", placement="home")[1] == "i41"
    assert again.client.get("/v1/rules").json() == loaded
    assert again.stop() == 0


def test_stored_rules_that_the_model_cannot_follow_are_left_out_and_named(bundle, tmp_path):
    """As after a change of the model: the others stay in force, in the answer of the rest."""
    address = f"sqlite:///{tmp_path / 'kept.db'}"
    store = open_store(address)
    colour = {"limit": [{"at_most": 1, "attribute": "colour"}]}
    store.set_setting("rules", json.dumps({"home": {**HOME, **colour}}))
    store.close()
    service = Server(bundle, address)
    answer = service.post("/v1/recommend", user_id="u3", placement="home")
    assert ids(answer)[1] == "i41"
    (problem,) = answer["rules"]["problems"]
    assert problem.startswith("rule 'limit 1': no item has an attribute 'colour'")
    assert service.stop() == 0
    run = doctor(bundle, address)
    assert run.returncode == 0 and "placement 'home', rule 'limit 1'" in run.stdout
    store = open_store(address)
    store.set_setting("rules", '{"home": {"of a later version": 1}}')
    store.close()
    service = Server(bundle, address)
    assert "stored rules cannot be read" in service.log.read_text()
    assert "rules" not in service.post("/v1/recommend", user_id="u3", placement="home")
    put(service, placements={"home": HOME})
    assert service.items("u3", placement="home")[1] == "i41"
    assert service.stop() == 0


def doctor(bundle, store):
    command = [
        sys.executable,
        "-m",
        "distilrec.cli",
        "doctor",
        "--bundle",
        bundle,
        "--port",
        "0",
        "--store",
        store,
    ]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)  # fmt: skip


def test_the_command_checks_a_file(bundle, tmp_path):
    def check(text):
        (tmp_path / "rules.toml").write_text(text)
        command = [
            sys.executable,
            "-m",
            "distilrec.cli",
            "rules",
            "check",
            "rules.toml",
            "--bundle",
            bundle,
        ]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=tmp_path)  # fmt: skip

    good = check(FILE)
    assert (good.returncode, good.stdout) == (0, "home: ok, 2 rules\ncart: ok, 2 rules\n")
    bad = check(
        FILE
        + '[placements.x]\npin = [{item_id = "zz", slot = 1}]\nlimit = [{at_most = 1, attribute = "size"}]'
    )
    assert (
        bad.returncode == 1 and "x: rule 'limit 1': no item has an attribute 'size'" in bad.stdout
    )
    assert "x: rule 'pin 1': item 'zz' is not in the catalogue" in bad.stdout
    wrong = check("[placements.home]\npins = []")
    assert wrong.returncode == 2 and "did you mean `pin`" in wrong.stderr
