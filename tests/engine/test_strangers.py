"""What is popular of late in the answers for users without events, in Python: exact, and for nobody else."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec import load
from distilrec.engine import Boost, Condition, Filter, Pin, Rules, StoredRecommender
from distilrec.engine.strangers import Blend
from distilrec.errors import ConfigError, UnknownItemError
from distilrec.stores import open_store

BOOST = Rules(boost=(Boost(Filter(allow=("i5", "i6")), weight=3),))


@pytest.fixture(scope="module")
def recommender(bundle_copy):
    return load(bundle_copy)


counts = st.dictionaries(
    st.integers(0, 45).map("i{}".format), st.floats(0, 1e6), min_size=1, max_size=30
)


@given(counts=counts, weight=st.floats(0.01, 3), k=st.integers(1, 60))
def test_every_list_is_by_score_and_popularity(recommender, counts, weight, k):
    recommender.follow_popular([], Blend())
    plain = dict(recommender.recommend("nobody", k=1_000))
    recommender.follow_popular([*counts.items()], Blend(weight))
    parts = {item: weight * math.log1p(counts.get(item, 0.0)) for item in plain}
    wanted = {item: score + parts[item] for item, score in plain.items()}
    items = sorted(wanted, key=wanted.__getitem__, reverse=True)

    def check(found, passing):
        best = [wanted[item] for item in items if passing(item)]
        assert [score for _, score in found] == pytest.approx(best[: len(found)], abs=1e-4)
        assert all(score == pytest.approx(wanted[item], abs=1e-4) for item, score in found)
        assert len({item for item, _ in found}) == len(found) == min(k, len(best))

    check(recommender.recommend("nobody", k=k), lambda item: True)
    some = {"i1", "i2", "i5", "i30"}
    where = Filter(allow=tuple(some))
    check(recommender.recommend("nobody", k=k, where=where), some.__contains__)
    check(recommender.arrange("nobody", Rules(), k).items, lambda item: True)
    check(recommender.recommend(recommender.session([]), k=k), lambda item: True)
    ranked = recommender.recommend("nobody", ["i3", "i4", "i5"])
    assert [score for _, score in ranked] == pytest.approx(
        sorted((wanted[item] for item in ("i3", "i4", "i5")), reverse=True), abs=1e-4
    )
    assert recommender.popular_parts("nobody", items[:9]) == pytest.approx(
        [parts[item] for item in items[:9]], rel=1e-5
    )
    boosted = {item: wanted[item] + math.log(3) * (item in {"i5", "i6"}) for item in wanted}
    (first,) = recommender.arrange("nobody", BOOST, 1).items
    assert boosted[first.item_id] == pytest.approx(max(boosted.values()), abs=1e-4)


def test_probabilities_grow_with_a_power_of_the_count(recommender):
    recommender.follow_popular([], Blend())
    before = recommender.probabilities("nobody", ["i7", "i8"])
    temperature = recommender.manifest.calibration.temperature
    recommender.follow_popular([("i7", 9.0)], Blend(temperature))
    after = recommender.probabilities("nobody", ["i7", "i8"])
    odds = after[0] / after[1] / (before[0] / before[1])
    assert odds == pytest.approx(10, rel=1e-4)
    assert sum(recommender.probabilities("nobody", recommender.item_ids)) == pytest.approx(1)


def test_it_is_for_users_without_events(recommender):
    recommender.follow_popular([], Blend())
    users = ["u3", recommender.session(["i1"])]
    plain = [recommender.recommend(user, k=1_000) for user in users]
    recommender.set_user("only features", {})
    featured = dict(recommender.recommend("only features", k=1_000))
    recommender.follow_popular([("i9", 1e6), ("of another shop", 5.0)], Blend(2.0))
    assert [recommender.recommend(user, k=1_000) for user in users] == plain
    assert recommender.popular_parts("u3", ["i9"]) == [0.0]
    (best,) = recommender.recommend("only features", k=1)
    assert best.score == pytest.approx(featured["i9"] + 2 * math.log1p(1e6), abs=1e-4)
    assert recommender.explain("only features", "i9") == []
    with pytest.raises(UnknownItemError):
        recommender.popular_parts("nobody", ["of another shop"])


def test_unavailable_and_new_items(bundle):
    recommender = load(bundle)
    recommender.add_item("new", {"price": 3.0})
    recommender.follow_popular([("new", 1e9), ("i2", 1e8)], Blend(3.0))
    assert [item for item, _ in recommender.recommend("nobody", k=2)] == ["new", "i2"]
    recommender.add_item("newer", {"price": 3.0})  # one that was not counted yet
    assert recommender.recommend("nobody", ["newer", "i2"])[0].item_id == "i2"
    pinned = recommender.arrange("nobody", Rules(pin=(Pin("newer", slot=1),)), 3).items
    assert [item for item, _ in pinned] == ["newer", "new", "i2"]
    where = Filter(attributes={"price": Condition(min=1e9)})
    assert recommender.recommend("nobody", where=where) == []


def test_from_the_stored_events(bundle, tmp_path):
    stored = StoredRecommender(load(bundle), open_store(f"sqlite:///{tmp_path / 'store.db'}"))
    (first,) = stored.recommend("nobody", k=1)
    stored.update({"user_id": f"v{n}", "item_id": "i9"} for n in range(99))
    assert stored.recommend("nobody", k=1) == [first]
    stored.follow_popular(5.0)
    assert stored.recommend("nobody", k=1)[0].item_id == "i9"
    old = {"user_id": "w", "item_id": "i8", "timestamp": time.time() - 20 * 86_400}
    stored.update([old])
    stored.follow_popular(5.0)
    assert stored.recommender.popular_parts("nobody", ["i8", "i7"]) == [0.0, 0.0]
    stored.follow_popular(0.0)
    assert stored.recommend("nobody", k=1) == [first]
    for weight, half_life, words in ((-1.0, 24.0, "weight"), (1.0, 0.0, "half_life")):
        with pytest.raises(ConfigError, match=words):
            stored.follow_popular(weight, half_life)
    stored.store.close()
