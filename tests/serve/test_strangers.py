"""Users without events over HTTP: what is popular of late is in their scores, in every process."""

from __future__ import annotations

import math
import time

import pytest

from tests.servers import Server, served, until

WEIGHT = 4
OPTIONS = ("--strangers-weight", WEIGHT, "--strangers-half-life", 2_000)


def first(service, user="nobody", **more):
    """The first item of an answer over a connection of its own, so that it may come from any
    worker.
    """
    service.client.close()
    service._at(service.port)
    return service.post("/v1/recommend", user_id=user, k=1, explain=True, **more)["items"][0]


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def start(request, bundle, tmp_path):
    """Starts a service over the same store, again and again: one process, or two workers."""
    workers, address = [], f"sqlite:///{tmp_path / 'store.db'}"
    if request.param == "redis":
        workers, address = ["--workers", 2], request.getfixturevalue("redis_server").url
    return lambda: Server(bundle, address, *OPTIONS, *workers)


@pytest.mark.server
def test_what_strangers_get_follows_the_events(start):
    service = start()
    plain = first(service)
    assert "popular" not in plain
    known = first(service, "u3")
    visits = [{"user_id": f"v{n}", "item_id": "i9"} for n in range(50)]
    service.post("/v1/events", events=visits)
    until(
        lambda: all(first(service)["item_id"] == "i9" for _ in range(6)), "the events are counted"
    )
    best = first(service)
    assert best["popular"] == pytest.approx(WEIGHT * math.log1p(50), rel=0.01)
    assert best["because"] == []
    ranked = service.post("/v1/rank", user_id="nobody", item_ids=["i8", "i9"])["items"]
    assert ranked[0]["score"] == pytest.approx(best["score"], rel=0.01)
    batch = service.post("/v1/recommend/batch", requests=[{"history": [], "k": 1}])["results"]
    assert batch[0]["items"][0]["item_id"] == "i9"
    assert first(service, "u3") == known
    assert first(service, filter={"deny": ["i9"]})["item_id"] == plain["item_id"]
    service.kill()
    service = start()
    assert first(service)["item_id"] == "i9"  # from the first answer on
    for visit in visits[:49]:
        service.client.delete(f"/v1/users/{visit['user_id']}")
    until(
        lambda: all(first(service, filter={"allow": ["i9"]})["popular"] < WEIGHT for _ in range(6)),
        "erased users are not counted",
    )
    assert service.stop() == 0
    assert "unforeseen" not in service.log.read_text()


@pytest.mark.server
def test_a_loaded_model_follows_them_too(two_bundles):
    with served(two_bundles / "one", *OPTIONS) as service:
        now = time.time()
        service.post(
            "/v1/events",
            events=[{"user_id": f"v{n}", "item_id": "i9", "timestamp": now} for n in range(50)],
        )
        service.post("/v1/model/load", bundle="two", shadow_requests=0)
        assert first(service)["item_id"] == "i9"
        service.post("/v1/experiments/start", name="summer", share=0.5, bundle="one")
        given = [first(service, f"visitor-{n}") for n in range(12)]
        assert {one["item_id"] for one in given} == {"i9"}
