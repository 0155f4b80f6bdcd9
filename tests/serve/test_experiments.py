"""Experiments over HTTP: who gets which model, and what a restart, kill -9 and other processes change."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec import load
from distilrec.serve.assignment import GROUPS, Assigner
from distilrec.serve.experiment_results import sums_by_group
from distilrec.serve.outcomes import Provenance
from distilrec.stores import open_store
from tests.servers import Server, served, until

pytestmark = pytest.mark.server

USERS = [f"u{n}" for n in range(60)]
PIN = {"home": {"pin": [{"item_id": "i41", "slot": 1}]}}


@pytest.fixture
def versions(two_bundles):
    return [load(two_bundles / name).model_version for name in ("one", "two")]


def start(service, name="summer", **more):
    return service.post("/v1/experiments/start", name=name, **more)


def answers(service):
    """Which variant and which model answers each user."""
    batch = service.post("/v1/recommend/batch", requests=[{"user_id": u, "k": 3} for u in USERS])
    return {
        answer["user_id"]: (answer.get("variant", ""), answer["model_version"])
        for answer in batch["results"]
    }


def refused(service, path, **body):
    response = service.client.post(path, json=body)
    return response.status_code, response.json()["error"]["code"]


@given(st.binary(min_size=16, max_size=64), st.floats(0, 1), st.text("abc/ü\u1234", max_size=40))
def test_shares_grow_without_moving_anybody(key, share, user):
    small, large = (Assigner(key, "e", part).of("user", user) for part in (share / 2, share))
    assert small.group == large.group < GROUPS
    assert small.variant <= large.variant
    assert Assigner(key, "e", 0).of("user", user).variant is False
    assert Assigner(key, "e", 1).of("user", user).variant is True


def test_arms_and_groups_are_independent_of_each_other_and_of_other_experiments():
    one, other = (Assigner(bytes(32), name, 0.3) for name in ("one", "other"))
    places = [(one.of("user", f"{n}"), other.of("user", f"{n}")) for n in range(20_000)]
    share = [a.variant for a, _ in places]
    assert 0.28 < sum(share) / len(share) < 0.32
    both = sum(a.variant and b.variant for a, b in places) / len(places)
    assert 0.08 < both < 0.1
    low = [a.variant for a, _ in places if a.group < GROUPS // 2]
    assert 0.28 < sum(low) / len(low) < 0.32 and 9_500 < len(low) < 10_500
    assert one.of("visitor", "1") != one.of("user", "1") or one.of("visitor", "2") != one.of(
        "user", "2"
    )


def test_a_share_of_users_gets_the_other_model(two_bundles, versions):
    with served(two_bundles / "one") as service:
        before = answers(service)
        assert set(before.values()) == {("", versions[0])}
        assert service.client.get("/v1/experiments").json() == {"experiments": []}
        begun = start(service, bundle="two", share=0.4)
        assert begun["state"] == "running" and begun["share"] == 0.4
        assert [begun["control_version"], begun["variant_version"]] == versions
        split = answers(service)
        assert set(split.values()) == {
            ("summer/control", versions[0]),
            ("summer/variant", versions[1]),
        }
        inside = [user for user, (arm, _) in split.items() if arm == "summer/variant"]
        assert 10 <= len(inside) <= 40
        # One request, a batch and a ranking agree; ids that mean the same are the same user
        two = load(two_bundles / "two")
        for user in USERS[:20]:
            answer = service.post("/v1/recommend", user_id=f" {user} ", k=3)
            assert (answer["variant"], answer["model_version"]) == split[user]
            ranked = service.post("/v1/rank", user_id=user, item_ids=["i1", "i2"])
            assert (ranked["variant"], ranked["model_version"]) == split[user]
            if user in inside:
                found = [(one.item_id, one.score) for one in two.recommend(user, k=3)]
                assert found == [
                    (item["item_id"], pytest.approx(item["score"])) for item in answer["items"]
                ]
        # Events are in the next answer of both models, users in memory or not
        for user in USERS[:20]:
            shown = service.items(user, k=3)
            service.event(user, shown[0])
            assert shown[0] not in service.items(user, k=50)
        service.client.put("/v1/items/i41", json={"available": False})
        assert all("i41" not in service.items(user, k=100) for user in USERS[:20])
        # KServe names one model
        body = {
            "inputs": [{"name": "user_id", "shape": [2], "datatype": "BYTES", "data": USERS[:2]}]
        }
        found = service.client.post("/v2/models/distilrec/infer", json=body).json()
        assert found["model_version"] == versions[0]
        assert service.post("/v1/experiments/stop", name="summer")["state"] == "stopped"
        assert answers(service) == before
        (kept,) = service.client.get("/v1/experiments").json()["experiments"]
        assert (kept["name"], kept["state"]) == ("summer", "stopped")


def test_strangers_get_the_control_unless_they_say_who_they_are(two_bundles, versions):
    with served(two_bundles / "one") as service:
        start(service, bundle="two", share=0.99)
        for more in ({}, {"filter": {}}):
            stranger = service.post("/v1/recommend", history=["i1"], k=3, **more)
            assert stranger["model_version"] == versions[0] and "variant" not in stranger
        visits = [
            service.post("/v1/recommend", history=["i1"], visitor_id=f"v{n % 20}", k=3)
            for n in range(40)
        ]
        assert [one["variant"] for one in visits[:20]] == [one["variant"] for one in visits[20:]]
        assert {one["model_version"] for one in visits} >= {versions[1]}
        response = service.client.post("/v1/recommend", json={"history": [], "visitor_id": ""})
        assert response.json()["error"]["code"] == "id_invalid"


def test_an_experiment_goes_on_after_kill_9_and_a_promotion_stays(two_bundles, versions, tmp_path):
    address = f"sqlite:///{tmp_path / 'store.db'}"
    service = Server(two_bundles / "one", address)
    start(service, bundle="two")
    split = answers(service)
    service.kill()
    service = Server(two_bundles / "one", address)
    assert answers(service) == split
    assert refused(service, "/v1/model/load", bundle="two") == (409, "experiment_conflict")
    assert refused(service, "/v1/model/rollback") == (409, "experiment_conflict")
    assert service.post("/v1/experiments/promote", name="summer")["state"] == "promoted"
    assert set(answers(service).values()) == {("", versions[1])}
    service.kill()
    service = Server(two_bundles / "one", address)
    assert set(answers(service).values()) == {("", versions[1])}
    (kept,) = service.client.get("/v1/experiments").json()["experiments"]
    assert kept["state"] == "promoted"
    assert service.post("/v1/model/rollback")["model_version"] == versions[0]
    assert service.stop() == 0


@pytest.mark.parametrize("already", [False, True])
def test_a_promotion_that_was_killed_is_finished(two_bundles, versions, tmp_path, already):
    """Its beginning is stored. already: so is the choice of the model."""
    address = f"sqlite:///{tmp_path / 'store.db'}"
    service = Server(two_bundles / "one", address)
    start(service, bundle="two", rules={"placements": PIN})
    service.kill()
    store = open_store(address)
    begun = json.loads(store.setting("experiments:1"))
    store.first_setting("experiments:2", json.dumps({**begun, "state": "promoting"}))
    if already:
        folders = {name: str((two_bundles / name).resolve()) for name in ("one", "two")}
        choice = {"base": folders["one"], "active": folders["two"], "previous": folders["one"]}
        store.set_setting("active_bundle", json.dumps(choice))
    store.close()
    service = Server(two_bundles / "one", address)
    assert set(answers(service).values()) == {("", versions[1])}
    assert service.client.get("/v1/rules").json()["placements"] == PIN
    (kept,) = service.client.get("/v1/experiments").json()["experiments"]
    assert kept["state"] == "promoted"
    assert service.post("/v1/model/rollback")["model_version"] == versions[0]
    assert service.stop() == 0


def test_a_variant_that_is_gone_leaves_the_control(two_bundles, versions, tmp_path):
    address = f"sqlite:///{tmp_path / 'store.db'}"
    service = Server(two_bundles / "one", address)
    start(service, bundle="two")
    split = answers(service)
    service.kill()
    (two_bundles / "two").rename(two_bundles / "away")
    service = Server(two_bundles / "one", address)
    assert set(answers(service).values()) == {("", versions[0])}
    (kept,) = service.client.get("/v1/experiments").json()["experiments"]
    assert kept["state"] == "running" and "not loaded" in kept["problem"]
    status, code = refused(service, "/v1/experiments/promote", name="summer")
    assert status == 422 and code.startswith(("bundle", "file"))
    (two_bundles / "away").rename(two_bundles / "two")
    until(lambda: answers(service) == split, "the variant is loaded when it is back")
    assert service.stop() == 0


def test_another_set_of_rules(two_bundles, versions):
    with served(two_bundles / "one") as service:
        start(service, rules={"placements": PIN})
        split = answers(service)
        assert {version for _, version in split.values()} == {versions[0]}
        for user in USERS[:20]:
            answer = service.post("/v1/recommend", user_id=user, placement="home", k=3)
            pinned = answer["items"][0]["item_id"] == "i41" and "rules" in answer
            assert pinned == (answer["variant"] == "summer/variant") or "i41" in service.items(user)
        service.post("/v1/experiments/promote", name="summer")
        assert service.client.get("/v1/rules").json()["placements"] == PIN
        found = service.post("/v1/recommend", user_id="new", placement="home", k=3)
        assert found["items"][0]["item_id"] == "i41" and "variant" not in found


def test_what_cannot_be_started(two_bundles):
    with served(two_bundles / "one") as service:
        path = "/v1/experiments/start"
        assert refused(service, path, name="a") == (422, "request_invalid")
        assert refused(service, path, name="a/b", bundle="two") == (422, "config_invalid")
        assert refused(service, path, name="", bundle="two") == (422, "request_invalid")
        assert refused(service, path, name="a", bundle="../..") == (422, "config_invalid")
        assert refused(service, path, name="a", bundle="two", share=1) == (422, "request_invalid")
        status, code = refused(service, path, name="a", bundle="none")
        assert status == 422 and code.startswith(("bundle", "file"))
        wrong = {"placements": {"home": {"limit": [{"at_most": 1, "attribute": "size"}]}}}
        assert refused(service, path, name="a", rules=wrong) == (422, "config_invalid")
        for change in ("stop", "promote"):
            found = refused(service, f"/v1/experiments/{change}", name="a")
            assert found == (409, "experiment_conflict")
        assert service.client.get("/v1/experiments").json() == {"experiments": []}
        assert set(answers(service).values()) == {("", answers(service)["u1"][1])}
        start(service, "a", bundle="two")
        assert refused(service, path, name="b", bundle="two") == (409, "experiment_conflict")
        service.post("/v1/experiments/stop", name="a")
        assert refused(service, path, name="a", bundle="two") == (409, "experiment_conflict")


def test_what_an_experiment_brings(two_bundles):
    """The counts are those by hand, the interval that of the library, by groups of users."""
    with served(two_bundles / "one") as service:
        start(service, bundle="two", metric="clicks", planned=500)
        people = [f"p{n}" for n in range(800)]
        answers, events = [], []
        for first in range(0, len(people), 50):
            asked = [{"user_id": user, "k": 3} for user in people[first : first + 50]]
            answers += service.post("/v1/recommend/batch", requests=asked * 2)["results"]
        for number, answer in enumerate(answers):
            if number % 7 < (4 if answer["variant"] == "summer/variant" else 2):
                for item in answer["items"][: 1 + number % 2]:  # an answer counts once
                    events.append({"user_id": answer["user_id"], "item_id": item["item_id"],
                                   "event_type": "click", "recommendation_id": answer["recommendation_id"]})  # fmt: skip
        for first in range(0, len(events), 500):
            service.post("/v1/events", events=events[first : first + 500])
        (found,) = service.client.get("/v1/experiments").json()["experiments"]
        clicked = {event["recommendation_id"] for event in events}
        for arm in ("control", "variant"):
            given = [one for one in answers if one["variant"] == f"summer/{arm}"]
            hits = sum(one["recommendation_id"] in clicked for one in given)
            result = found["result"][arm]
            assert (result["answers"], result["clicked"]) == (len(given), hits)
            assert result["per_answer"] == pytest.approx(hits / len(given))
        result = found["result"]
        assert result["low"] < result["difference"] < result["high"]
        assert result["low"] > 0 and result["different"] and result["p_value"] < 0.05
        groups = service.client.get("/v1/outcomes?by=variant").json()["groups"]
        assert {one["variant"]: one["answers"] for one in groups} == {
            f"summer/{arm}": result[arm]["answers"] for arm in ("control", "variant")
        }
        service.post("/v1/experiments/stop", name="summer")
        (kept,) = service.client.get("/v1/experiments").json()["experiments"]
        assert kept["result"] == result


def test_the_sums_of_a_group_are_those_of_its_users():
    where = (("summer/variant", 7), ("summer/control", 63), ("summer/control", 7), ("other/variant", 7), ("", 0))  # fmt: skip
    parts = [Provenance("recommend", "", "v", "", *place) for place in where]
    found = {
        (1, parts[0], 0): {"answers": 5.0, "clicked": 2.0},
        (2, parts[0], 3): {"value": 2.5, "clicks": 9.0},
        (1, parts[1], 0): {"clicked": 3.0},  # whose answers a killed process has not stored
        (1, parts[2], 0): {"answers": 1.0},
        (1, parts[3], 0): {"answers": 100.0},
        (1, parts[4], 0): {"answers": 100.0},
    }
    sums = sums_by_group(found, ["summer"])["summer"]
    assert sums[1, :, 7].tolist() == [5, 2, 0, 2.5]
    assert sums[0, :, 63].tolist() == [3, 3, 0, 0] and sums[0, :, 7].tolist() == [1, 0, 0, 0]
    assert sums.sum() == 9.5 + 6 + 1


def test_all_workers_follow(two_bundles, versions, redis_server):
    service = Server(two_bundles / "one", redis_server.url, "--workers", 2)
    until(lambda: service.log.read_text().count('"event":"ready"') == 2, "both are ready")

    def seen() -> set:
        """The answers over many connections: of both workers."""
        found = set()
        for _ in range(12):
            service.client.close()
            service._at(service.port)
            found.add(tuple(answers(service).items()))
        return found

    start(service, bundle="two")
    until(lambda: len(found := seen()) == 1 and "/" in str(found), "both workers split alike")
    (split,) = seen()
    assert {version for _, (_, version) in split} == set(versions)
    service.kill()
    service = Server(two_bundles / "one", redis_server.url, "--workers", 2)
    until(lambda: service.log.read_text().count('"event":"ready"') == 2, "both are ready")
    assert seen() == {split}
    service.post("/v1/experiments/promote", name="summer")
    everybody = tuple((user, ("", versions[1])) for user in USERS)
    until(lambda: seen() == {everybody}, "both workers answer with the variant")
    assert service.stop() == 0
