"""Items that were shown lately, over HTTP: events of the type `impression`, and answers that count."""

from __future__ import annotations

import time

import pytest
import redis

from tests.servers import Server, unnamed, until

pytestmark = pytest.mark.server

TIRED = {"tired": {"impressions": 2, "hours": 1}}
ANSWERS = {"tired": {"impressions": 1, "answers": True}}


def asked(service, user="u3", **more):
    """A list over a connection of its own, so that it may come from any worker."""
    service.client.close()
    service._at(service.port)
    return service.post("/v1/recommend", user_id=user, k=4, **more)


def listed(service, user="u3", **more):
    return [item["item_id"] for item in asked(service, user, **more)["items"]]


def see(service, user, item, number, hours=0.0):
    event = {
        "user_id": user,
        "item_id": item,
        "event_type": "impression",
        "event_id": f"{item}-{number}",
        "timestamp": time.time() - 3600 * hours,
    }
    return service.post("/v1/events", events=[event])


def test_impressions_that_a_client_sends(opened):
    service = opened()
    plain = listed(service, rules={})
    assert see(service, "u3", plain[0], 1) == {"accepted": 1, "duplicates": 0, "unknown_items": 0}
    assert see(service, "u3", plain[0], 1) == {"accepted": 0, "duplicates": 1, "unknown_items": 0}
    see(service, "u3", plain[0], 2, hours=2)  # too long ago
    assert listed(service, rules=TIRED) == plain
    see(service, "u3", plain[0], 3)
    assert listed(service, rules=TIRED)[:3] == plain[1:]
    answer = asked(service, rules=TIRED)
    assert answer["rules"]["moved"] == [
        {"rule": "tired", "item_id": plain[0], "before": 1, "rank": None}
    ]
    # No rule asks: nothing has changed, and neither has the user
    assert listed(service) == plain and listed(service, "u4", rules=TIRED) == listed(service, "u4")
    assert service.client.get("/v1/users/u3").json()["event_count"] == 0
    stranger = {"user_id": "visitor", "item_id": plain[0], "event_type": "impression"}
    service.post("/v1/events", events=[stranger])
    assert asked(service, "visitor")["known_user"] is False
    assert service.post("/v1/popular")["items"] == []
    sunk = {"tired": {"impressions": 2, "weight": 0.9999}}
    assert listed(service, rules=sunk)[0] == plain[0]
    service.kill()
    assert listed(opened(), rules=TIRED)[:3] == plain[1:]


def test_answers_that_count_never_repeat(opened):
    service = opened()
    service.post("/v1/rules/load", placements={"home": ANSWERS})
    until(
        lambda: all("rules" in asked(service, "w", placement="home", history=[]) for _ in range(9)),
        "followed",
    )
    lists = [listed(service, placement="home") for _ in range(3)]
    service.kill()
    service = opened()
    lists.append(listed(service, placement="home"))
    batch = service.post(
        "/v1/recommend/batch", requests=[{"user_id": "u3", "k": 4, "placement": "home"}] * 1
    )
    lists.append([item["item_id"] for item in batch["results"][0]["items"]])
    everything = [item for one in lists for item in one]
    assert len(set(everything)) == len(everything) == 20
    assert listed(service) == lists[0]  # other places are not affected
    # Merged, and erased
    shown = listed(service, "phone", placement="home")
    service.post("/v1/users/login/merge", source="phone")
    assert not set(listed(service, "login", placement="home")) & set(shown)
    service.client.delete("/v1/users/login")
    assert listed(service, "login", placement="home") == shown
    sessions = [
        unnamed(service.post("/v1/recommend", history=["i1"], k=4, placement="home"))
        for _ in range(2)
    ]
    assert sessions[0] == sessions[1]


def test_answers_are_given_where_impressions_cannot_be_stored(bundle, redis_server):
    service = Server(bundle, redis_server.url)
    service.items("u3", rules=ANSWERS)
    client = redis.Redis.from_url(redis_server.url)
    client.config_set("maxmemory", 100_000)  # less than what is in use already
    assert len(service.items("u3", rules=ANSWERS)) == 10
    metrics = service.client.get("/metrics").text
    assert 'distilrec_events_total{outcome="lost_impression"} 10.0' in metrics
    client.config_set("maxmemory", 0)
    client.close()
    assert service.stop() == 0
