"""What became of answers: their ids, events that name them, and `GET /v1/outcomes`."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime

import httpx
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import binomtest

from distilrec.errors import ConfigError, StoreUnavailableError
from distilrec.serve.config import ServiceConfig
from distilrec.serve.metrics import Metrics
from distilrec.serve.outcome_report import mean_of_sums, wilson
from distilrec.serve.outcomes import OTHER_PLACEMENT, SETTING, Outcomes, Provenance
from distilrec.serve.recommendation_ids import RecommendationId, RecommendationIds
from distilrec.stores import open_store
from tests import ROOT
from tests.servers import served, until


def asked(service, path="recommend", **more):
    """An answer over a connection of its own, so that it may come from any worker."""
    service.client.close()
    service._at(service.port)
    body = {"k": 4, **more}
    if path == "recommend":
        body = {"user_id": "u3", **body}
    return service.post(f"/v1/{path}", **body)


def said(service, answer, item, event_type="click", **more):
    """The answer to an event that names an answer."""
    given = {"recommendation_id": answer["recommendation_id"], "event_type": event_type, **more}
    return service.event("u3", item, **given)


def outcomes(service, by="placement", **more):
    answer = service.client.get("/v1/outcomes", params={"by": by, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["groups"]


def numbers(group):
    """The counts of a group that are not 0."""
    return {
        name: number for name, number in group.items() if isinstance(number, int | float) and number
    }


def all_answers(service, number, **more):
    """The only group, once all workers have stored the answers that they counted."""
    return until(
        lambda: (found := outcomes(service, **more)) and found[0]["answers"] == number and found,
        "answers are counted",
    )[0]


@pytest.mark.server
def test_an_answer_and_what_became_of_it(opened):
    service = opened()
    first, other = asked(service, placement="home"), asked(service, placement="home")
    assert first["recommendation_id"] != other["recommendation_id"]
    items = [item["item_id"] for item in first["items"]]
    shown = [
        {"user_id": "u3", "item_id": item, "event_type": "impression", "event_id": "seen",
         "recommendation_id": first["recommendation_id"], "position": place}
        for place, item in enumerate(items, 1)
    ]  # fmt: skip
    assert service.post("/v1/events", events=shown)["attributed"] == 4
    clicked = said(service, first, items[1], event_id="c")
    assert (clicked["accepted"], clicked["attributed"]) == (1, 1)
    said(service, first, items[1], "buy", event_id="b1", value=2.5)
    said(service, first, items[1], "buy", event_id="b2", value=1.5)
    said(service, other, items[0])  # of which no impression was sent
    before = all_answers(service, 2)
    assert before["placement"] == "home"
    assert numbers(before) == {
        "answers": 2, "shown": 1, "clicked": 2, "converted": 1,
        "impressions": 4, "clicks": 2, "conversions": 2, "value": 4.0,
    }  # fmt: skip
    assert before["impression_click_rate"]["mean"] == 0.25
    assert before["click_rate"]["mean"] == 1.0 and before["conversion_rate"]["mean"] == 0.5
    assert before["value_per_answer"]["mean"] == 2.0
    # Doubled: the same events, and other ones that say the same
    assert service.post("/v1/events", events=shown)["duplicates"] == 4
    assert said(service, first, items[1], event_id="c")["duplicates"] == 1
    assert said(service, first, items[1])["attributed"] == 1
    assert said(service, first, items[1], "buy", event_id="b2", value=9.0)["duplicates"] == 1
    assert outcomes(service) == [before]
    service.kill()
    service = opened()
    assert outcomes(service) == [before]
    # Late, after a restart; and erased users leave what is counted
    said(service, other, items[3], "purchase", value=8.0, position=4)
    service.client.delete("/v1/users/u3")
    assert numbers(outcomes(service)[0])["value"] == 12.0
    places = outcomes(service, "position")
    assert [numbers(group) for group in places] == [
        {"clicks": 1},
        {"impressions": 1, "position": 1},
        {"impressions": 1, "clicks": 1, "conversions": 2, "value": 4.0, "position": 2},
        {"impressions": 1, "position": 3},
        {"impressions": 1, "conversions": 1, "value": 8.0, "position": 4},
    ]
    assert "answers" not in places[0]
    assert places[2]["impression_click_rate"]["mean"] == 1.0


@pytest.mark.server
def test_every_list_has_an_id_by_where_it_comes_from(bundle):
    with served(bundle) as service:
        rules = {"pin": [{"item_id": "i9", "slot": 1}]}
        version = service.post("/v1/rules/load", placements={"cart": rules})["version"]
        lists = [
            asked(service),
            asked(service, placement="cart"),
            asked(service, placement="home", rules=rules),
            asked(service, history=["i1"], placement="home"),
            service.post("/v1/rank", user_id="u3", item_ids=["i1", "i2"]),
            asked(service, "similar", item_ids=["i1"], placement="cart"),
            asked(service, "popular"),
            *service.post("/v1/recommend/batch", requests=[{"user_id": "u3"}] * 2)["results"],
        ]
        assert len({one["recommendation_id"] for one in lists}) == len(lists)
        found = outcomes(service, "endpoint,placement,rules,variant,model_version")
        assert {(g["endpoint"], g["placement"], g["rules"]): g["answers"] for g in found} == {
            ("recommend", "", ""): 3,
            ("recommend", "cart", version): 1,
            ("recommend", "home", "request"): 1,
            ("recommend", "home", ""): 1,
            ("rank", "", ""): 1,
            ("similar", "cart", ""): 1,
            ("popular", "", ""): 1,
        }
        assert {g["model_version"] for g in found} == {lists[0]["model_version"]}
        assert {g["variant"] for g in found} == {""}
        today = str(datetime.now(UTC).date())
        assert [(g["day"], g["answers"]) for g in outcomes(service, "day")] == [(today, len(lists))]
        metrics = service.client.get("/metrics").text
        assert 'distilrec_answers_total{endpoint="similar",model_version=' in metrics


@pytest.mark.server
def test_kserve_has_ids_too(bundle):
    def tensor(name, *values):
        return {"name": name, "shape": [len(values)], "datatype": "BYTES", "data": values}

    body = {"inputs": [tensor("user_id", "u3", "u5"), tensor("placement", "mail")],
            "outputs": [{"name": "item_id"}, {"name": "recommendation_id"}]}  # fmt: skip
    with served(bundle) as service:
        answer = service.post("/v2/models/distilrec/infer", **body)
        service.post("/v2/models/distilrec/infer", inputs=body["inputs"])  # without: not counted
        items, ids = (output["data"] for output in answer["outputs"])
        assert len(set(ids)) == 2
        said(service, {"recommendation_id": ids[0]}, items[0])
        found = all_answers(service, 2)
        assert (found["placement"], found["clicks"]) == ("mail", 1)
    with served(bundle, "--no-outcomes") as service:
        answer = service.post("/v2/models/distilrec/infer", **body)
        assert answer["outputs"][1]["data"] == ["", ""]


@pytest.mark.server
def test_ids_that_do_not_count(bundle):
    """Forged, too old or of another type: the event is a plain one, and it is said."""
    path = bundle.parent / "store.db"
    with served(bundle, "--outcome-days", 2, "--click-types", "view,open") as service:
        answer = asked(service)
        item, good = answer["items"][0]["item_id"], answer["recommendation_id"]
        forged = good[:-1] + ("A" if good[-1] != "A" else "B")
        for bad in (forged, "x", "ä", "A" * 32):
            done = said(service, {"recommendation_id": bad}, item, "view")
            assert (done["accepted"], done["unattributed"]) == (1, 1) and "attributed" not in done
        assert said(service, answer, item, "click")["unattributed"] == 1
        with closing(sqlite3.connect(path)) as db:
            (secret,) = db.execute(
                "SELECT value FROM settings WHERE name = ?", (SETTING,)
            ).fetchone()
        made, now = RecommendationIds(bytes.fromhex(secret)), int(time.time())
        day = 86_400

        def at(days, of, **more):
            one = {"recommendation_id": made.block(b"other", now - round(days * day))[0]}
            return said(service, one, item, "open", timestamp=now - of * day, **more)

        assert at(3.1, 3)["unattributed"] == 1  # arrives too late
        assert at(2.9, 0.8)["unattributed"] == 1  # happened too late
        assert at(1, 2)["unattributed"] == 1  # happened before the answer
        assert at(2.9, 1)["attributed"] == 1  # in time, and late to arrive
        assert service.client.get("/v1/users/u3").json()["event_count"] == 9
        found = outcomes(service, "model_version,endpoint")
        assert {group["model_version"]: numbers(group) for group in found} == {
            answer["model_version"]: {"answers": 1},
            "(unknown)": {"answers": 1, "clicked": 1, "clicks": 1},
        }
        refused = service.client.post(
            "/v1/events",
            json={"events": [{"user_id": "u", "item_id": item, "recommendation_id": "a" * 65}]},
        )
        assert refused.status_code == 422
        metrics = service.client.get("/metrics").text
        for outcome, number in (("unknown", 4), ("other_type", 1), ("expired", 3), ("click", 1)):
            assert (
                f'distilrec_outcomes_total{{model_version="",outcome="{outcome}",placement=""}} {number}.0'
                in metrics
            )


@pytest.mark.server
def test_impressions_by_the_rule_of_the_answer(opened):
    service = opened()
    rules = {"tired": {"impressions": 1, "answers": True}}
    first = asked(service, rules=rules, placement="home")
    shown = [item["item_id"] for item in first["items"]]
    next_page = asked(service, rules=rules, placement="home", shown=shown)
    item = next_page["items"][1]["item_id"]
    said(service, next_page, item)
    group = all_answers(service, 2)
    assert numbers(group) == {
        "answers": 2, "shown": 2, "clicked": 1, "impressions": 8, "clicks": 1
    }  # fmt: skip
    places = {group["position"]: group for group in outcomes(service, "position")}
    assert list(places) == list(range(1, 9)) and places[6]["clicks"] == 1
    metrics = until(
        lambda: 'outcome="impression"' in (text := service.client.get("/metrics").text) and text,
        "impressions are measured",
    )
    counts = re.findall(r'outcomes_total{.*outcome="impression",placement="home".*} (.*)', metrics)
    assert sum(map(float, counts)) == 8


@pytest.mark.server
def test_each_model_answers_for_itself(two_bundles):
    with served(two_bundles / "one") as service:
        before = asked(service)
        service.post("/v1/model/load", bundle="two", shadow_seconds=0)
        after = asked(service)
        assert before["model_version"] != after["model_version"]
        said(service, before, before["items"][0]["item_id"])
        found = {group["model_version"]: group for group in outcomes(service, "model_version")}
        assert found[before["model_version"]]["clicks"] == 1
        assert numbers(found[after["model_version"]]) == {"answers": 1}


@pytest.mark.server
def test_arms_of_an_experiment_are_told_apart(bundle):
    with served(bundle) as service:
        rules = {"home": {"pin": [{"item_id": "i9", "slot": 1}]}}
        service.post("/v1/experiments/start", name="summer", share=0.5, rules={"placements": rules})
        answers = [asked(service, user_id=f"u{n}", placement="home") for n in range(1, 25)]
        for answer in answers[:12]:
            said(service, answer, answer["items"][0]["item_id"])
        given = Counter(answer["variant"] for answer in answers)
        clicked = Counter(answer["variant"] for answer in answers[:12])
        assert set(given) == {"summer/control", "summer/variant"}
        found = {group["variant"]: group for group in outcomes(service, "variant")}
        assert {name: group["answers"] for name, group in found.items()} == given
        assert {name: group["clicked"] for name, group in found.items()} == clicked
        groups = outcomes(service, "variant,group,rules")
        assert len(groups) > 10 and sum(group["answers"] for group in groups) == 24
        assert {(group["variant"], group["rules"] != "") for group in groups} == {
            ("summer/control", False), ("summer/variant", True)
        }  # fmt: skip


@pytest.mark.server
def test_a_look_leaves_no_trace(bundle):
    with served(bundle) as service:
        tired = {"tired": {"impressions": 1, "answers": True}}
        rules = {"placements": {"home": tired}}
        service.post("/v1/rules/load", **rules)
        service.post("/v1/experiments/start", name="summer", share=0.5, rules=rules)
        look = {"user_id": "u3", "k": 4, "placement": "home", "record": False}
        looks = [
            service.post("/v1/recommend", **look),
            *service.post("/v1/recommend/batch", requests=[look, look])["results"],
            asked(service, probabilities=True, record=False),
            asked(service, record=False),
            service.post("/v1/rank", user_id="u3", item_ids=["i1", "i2"], record=False),
            asked(service, "similar", item_ids=["i1"], record=False),
            asked(service, "popular", record=False),
            asked(service, "latest", by="price", record=False),
        ]
        assert not any("recommendation_id" in one for one in looks)
        assert all(one["variant"].startswith("summer/") for one in looks[:-3])
        assert looks[-1]["items"]
        assert outcomes(service) == []
        answer = service.post("/v1/recommend", **{**look, "record": True})
        assert answer["items"] == looks[0]["items"] == looks[2]["items"]
        seen = {item["item_id"] for item in answer["items"]}
        after = service.post("/v1/recommend", **look)
        assert not seen & {item["item_id"] for item in after["items"]}
        assert [numbers(group)["answers"] for group in outcomes(service)] == [1]


@pytest.mark.server
def test_a_service_without_outcomes(bundle):
    with served(bundle, "--no-outcomes") as service:
        answer = asked(service)
        assert "recommendation_id" not in answer
        item = answer["items"][0]["item_id"]
        done = said(service, {"recommendation_id": "anything"}, item, position=1, value=1)
        assert done == {"accepted": 1, "duplicates": 0, "unknown_items": 0, "unattributed": 1}
        assert outcomes(service) == []


@pytest.mark.server
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"by": "user"}, "cannot be grouped by 'user'"),
        ({"by": ","}, "cannot be grouped by ''"),
        ({"from": "yesterday"}, "from is not a day"),
        ({"to": "2026-02-30"}, "to is not a day"),
        ({"from": "2026-05-02", "to": "2026-05-01"}, "from is 2026-05-02, after to"),
        ({"from": "2024-05-02", "to": "2026-05-01"}, "days: 730 is more than the limit of 400"),
    ],
)
def test_questions_that_cannot_be_answered(small_service, query, message):
    answer = small_service.client.get("/v1/outcomes", params=query)
    assert answer.status_code == 422
    assert message in answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def small_service(bundle_copy):
    with served(bundle_copy) as service:
        yield service


@pytest.mark.parametrize(
    "types",
    [
        {"click_types": ("buy",)},
        {"click_types": ("impression",)},
        {"conversion_types": ("impression",)},
    ],
)
def test_a_type_means_one_thing(types):
    with pytest.raises(ConfigError, match="cannot mean two things"):
        ServiceConfig("bundle", **types)


class FailingStorage:
    """A storage whose first write fails although it has happened."""

    def __init__(self, store):
        self.store, self.writes, self.outcomes = store, 0, None

    async def add_outcomes(self, batch, sums, provenances):
        self.writes += 1
        self.store.add_outcomes(batch, sums, provenances)
        if self.writes == 1:
            raise StoreUnavailableError("the store does not answer", fix="wait")


@pytest.fixture
def counting(tmp_path):
    """Outcomes over a store whose first write fails, and the store."""
    store = open_store(f"sqlite:///{tmp_path / 'store.db'}")
    yield Outcomes(ServiceConfig("bundle"), store, FailingStorage(store), Metrics()), store
    store.close()


def answers_in(store):
    """Answers by provenance."""
    sums, texts = store.outcomes(0, 100_000)
    found = {key.provenance: amount for key, amount in sums.items() if key.measure == "answers"}
    return {msgspec.json.decode(texts[key], type=Provenance): n for key, n in found.items()}


def test_answers_of_a_write_that_failed_count_once(counting):
    outcomes, store = counting
    for variant, group in (("summer/control", 3), ("summer/control", 3), ("summer/variant", 0)):
        assert outcomes.identify("recommend", "home", "v1", "", variant, group)
    with pytest.raises(StoreUnavailableError):
        asyncio.run(outcomes.flush())
    outcomes.identify("recommend", "home", "v1")
    asyncio.run(outcomes.flush())
    asyncio.run(outcomes.flush())
    assert answers_in(store) == {
        Provenance("recommend", "home", "v1", "", "summer/control", 3): 2,
        Provenance("recommend", "home", "v1", "", "summer/variant", 0): 1,
        Provenance("recommend", "home", "v1"): 1,
    }


def test_placements_are_bounded(counting):
    outcomes, store = counting
    for number in range(1_100):
        for _ in range(2):
            outcomes.identify("recommend", f"place {number}", "v1")
    with pytest.raises(StoreUnavailableError):
        asyncio.run(outcomes.flush())
    found = answers_in(store)
    assert len(found) == 1_001 and sum(found.values()) == 2_200
    assert found[Provenance("recommend", OTHER_PLACEMENT, "v1")] == 200


def test_every_answer_has_an_id_of_its_own(counting):
    outcomes, _ = counting
    ids = [outcomes.identify("similar", None, "v1") for _ in range(10_000)]
    assert len(set(ids)) == len(ids)


SECRET = bytes(range(32))


@given(st.binary(min_size=5, max_size=5), st.integers(0, 2**32 - 1), st.integers(0, 31))
def test_ids_say_what_they_were_made_of(provenance, seconds, place):
    text = RecommendationIds(SECRET).block(provenance, seconds)[place]
    assert len(text) == 32 and httpx.URL(f"http://x/{text}").path == f"/{text}"
    found = RecommendationIds(SECRET).read(text)
    assert isinstance(found, RecommendationId) and len(found.number) == 6
    assert (found.given, found.provenance) == (seconds, provenance)
    assert RecommendationIds(SECRET[:-1] + b"x").read(text) is None
    both = [RecommendationIds(SECRET).block(provenance, seconds) for _ in range(2)]
    assert len({text, *both[0], *both[1]}) == 65


@given(st.integers(0, 31), st.text(max_size=3))
@example(31, "A=")
def test_ids_that_were_changed_are_not_read(place, other):
    ids = RecommendationIds(SECRET)
    text = ids.block(b"abcde", 1_764_201_600)[place % 32]
    changed = text[:place] + other + text[place + 1 :]
    assert ids.read(changed) is None or changed == text


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_is_that_of_scipy(successes, more):
    trials = successes + more
    found = wilson(successes, trials)
    wanted = binomtest(successes, trials).proportion_ci(method="wilson")
    assert found.mean == successes / trials
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-6)
    assert wilson(0, 0) is None


def test_the_mean_of_sums():
    values = [0.0] * 90 + [10.0] * 10
    found = mean_of_sums(sum(values), sum(v * v for v in values), len(values))
    deviation = (90 * 1.0 + 10 * 81.0) / 99
    half = 1.96 * (deviation / 100) ** 0.5
    assert (found.mean, found.low, found.high) == pytest.approx((1.0, 1 - half, 1 + half), rel=1e-3)
    assert mean_of_sums(3.0, 9.0, 1) is None


@pytest.mark.server
def test_the_example(bundle):
    with served(bundle) as service:
        done = subprocess.run(
            [sys.executable, ROOT / "examples" / "outcomes.py", service.url],
            capture_output=True,
            text=True,
            check=True,
        )
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "cart", "home", *(f"position {n}" for n in range(1, 6))
    ]  # fmt: skip
    assert "home: 40 lists" in lines[1] and "position 1" in lines[2] and "of 80 clicked" in lines[2]
