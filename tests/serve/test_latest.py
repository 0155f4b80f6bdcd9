"""`POST /v1/latest`: items by a number that they have, over HTTP and in Python."""

from __future__ import annotations

import pytest

from distilrec import load
from distilrec.engine import Condition, Filter, StoredRecommender
from distilrec.errors import ConfigError
from distilrec.stores import open_store
from tests.servers import served


def listed(server, **more):
    answer = server.post("/v1/latest", **more)
    assert [item["rank"] for item in answer["items"]] == list(range(1, len(answer["items"]) + 1))
    return [(item["item_id"], item["value"]) for item in answer["items"]]


def test_the_largest_numbers_come_first_and_of_equal_ones_the_popular(finished_run):
    recommender = load(finished_run.bundle)
    numbers = recommender._filters.attributes.numbers["price"]
    numbers[[7, 3, 5]] = 8.5
    by_hand = sorted(
        ((item, number) for item, number in zip(recommender._item_ids, numbers.tolist(), strict=True) if number == number),
        key=lambda pair: -pair[1],
    )  # fmt: skip
    assert [tuple(one) for one in recommender.latest("price", k=1_000)] == by_hand
    cheap = Filter(attributes={"price": Condition(max=5.0)})
    found = recommender.latest("price", k=3, where=cheap)
    assert [one.item_id for one in found] == [item for item, n in by_hand if n <= 5.0][:3]


@pytest.mark.server
def test_over_http(bundle):
    library = load(bundle)
    with served(bundle) as server:
        assert listed(server, by="price", k=7) == library.latest("price", k=7)
        # A new item, a changed one, one that is gone, and what a user has had
        server.client.put("/v1/items/newest", json={"attributes": {"price": 5_000.0}, "title": "N"})
        answer = server.post("/v1/latest", by="price", k=1, titles=True)["items"]
        assert answer == [{"item_id": "newest", "value": 5_000.0, "rank": 1, "title": "N"}]
        server.client.put("/v1/items/i1", json={"attributes": {"price": 6_000.0}})
        assert [item for item, _ in listed(server, by="price", k=2)] == ["i1", "newest"]
        server.client.put("/v1/items/i1", json={"available": False})
        assert [item for item, _ in listed(server, by="price", k=1)] == ["newest"]
        server.event("u3", "newest")
        assert "newest" not in dict(listed(server, by="price", user_id="u3", k=50))
        kept = listed(server, by="price", user_id="u3", exclude_seen=False, k=1)
        assert kept == [("newest", 5_000.0)]
        server.client.put("/v1/items/newest", json={"attributes": {"published_at": 1.7e9}})
        assert listed(server, by="published_at") == [("newest", 1.7e9)]
        assert len(server.post("/v1/latest", by="price")["recommendation_id"]) == 32
        for body, says in (
            ({"by": "genres"}, "is not a number"),
            ({"by": "colour"}, "no item has an attribute 'colour'"),
            ({}, "missing required field `by`"),
            ({"by": "price", "k": 0}, ">= 1"),
        ):
            refused = server.client.post("/v1/latest", json=body)
            assert refused.status_code == 422
            assert says in refused.json()["error"]["message"]


def test_in_python_with_a_store(finished_run, tmp_path):
    store = open_store(f"sqlite:///{tmp_path / 'store.db'}")
    recommender = StoredRecommender(load(finished_run.bundle), store)
    first = recommender.latest("price", k=1)[0].item_id
    recommender.update([{"user_id": "new", "item_id": first}])
    assert recommender.latest("price", k=1, user_id="new")[0].item_id != first
    kept = recommender.latest("price", k=1, user_id="new", exclude_seen=False)
    assert kept[0].item_id == first
    store.close()


def test_in_python_mistakes_are_named(finished_run):
    recommender = load(finished_run.bundle)
    with pytest.raises(ConfigError, match="is not a number"):
        recommender.latest("genres")
    with pytest.raises(ConfigError, match="k is 0"):
        recommender.latest("price", k=0)
