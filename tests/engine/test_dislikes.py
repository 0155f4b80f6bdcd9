"""Negative events in Python: the item is not shown again, and the answers turn away from it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec import load
from distilrec.engine.rules import Pin, Rules
from distilrec.engine.stored import StoredRecommender
from distilrec.stores.opening import open_store
from distilrec.testing.properties import of_contract
from tests import dislikes, small_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=sorted(small_run.STUDENTS))
def folder(request, tmp_path_factory) -> Path:
    return dislikes.exported(small_run.STUDENTS[request.param], tmp_path_factory.mktemp("bundle"))


@pytest.fixture(params=["numba", "numpy"])
def recommender(request, folder):
    return load(folder, runtime=request.param)


def shown(recommender, user, **options):
    return [one.item_id for one in recommender.recommend(user, k=99, **options)]


def event(user, item, kind):
    return {"user_id": user, "item_id": item, "event_type": kind}


@pytest.mark.parametrize("kind", ["dislike", "hide"])
def test_a_disliked_item_is_not_shown_until_a_target_event(recommender, kind):
    said = [event("new", "i3", "buy"), event("new", "i5", kind)]
    recommender.update(said)
    for options in ({}, {"exclude_seen": False}, {"exclude_seen": False, "diversity": 0.5}):
        assert "i5" not in shown(recommender, "new", **options)
    assert "i3" in shown(recommender, "new", exclude_seen=False)
    session = recommender.session([{"item_id": one["item_id"], "event_type": one["event_type"]} for one in said])  # fmt: skip
    assert shown(recommender, session, exclude_seen=False) == shown(
        recommender, "new", exclude_seen=False
    )
    recommender.update([event("new", "i5", "view"), event("new", "i5", "of another shop")])
    assert "i5" not in shown(recommender, "new", exclude_seen=False)  # these only inform
    recommender.update([event("new", "i5", "buy")])
    assert "i5" in shown(recommender, "new", exclude_seen=False)
    assert "i5" in shown(recommender, "somebody else", exclude_seen=False)


def test_it_is_in_no_other_list(recommender):
    recommender.update([event("new", "i5", "dislike")])
    assert "i5" not in [one.item_id for one in recommender.similar("i1", k=99, user_id="new")]
    assert "i5" in [one.item_id for one in recommender.similar("i1", k=99)]
    recommender.update([event("new", "i6", "buy")])
    kept = {one.item_id for one in recommender.similar("i1", 99, user_id="new", exclude_seen=False)}
    assert "i6" in kept and "i5" not in kept
    both = [("i5", 2.0), ("i6", 1.0)]
    assert recommender.first_of(both, 9, "new", exclude_seen=False) == [("i6", 1.0)]
    ranking = [("i5", 2.0), ("i7", 1.0)]
    assert [one.item_id for one in recommender.first_of(ranking, 9, "new")] == ["i7"]
    rules = Rules(pin=(Pin("i5", 1, seen=True),))
    arranged = recommender.arrange("new", rules, k=99, exclude_seen=False)
    assert "i5" not in [one.item_id for one in arranged.items]
    assert recommender.arrange("somebody else", rules, k=9).items[0].item_id == "i5"
    # But it is ranked where it is asked for by its id.
    assert [one.item_id for one in recommender.recommend("new", ["i5"])] == ["i5"]


def test_the_history_of_the_bundle_counts(recommender, folder):
    data = dislikes.dataset()
    for user in range(0, data.users, 9):
        rows = slice(data.offsets[user], data.offsets[user + 1])
        kinds = [data.info.event_types[kind] for kind in data.events[rows]]
        disliked = {data.info.item_ids[item] for item, kind in zip(data.items[rows], kinds, strict=True) if kind == "dislike"}  # fmt: skip
        answer = shown(recommender, data.info.user_ids[user], exclude_seen=False)
        assert disliked and set(answer) == set(data.info.item_ids) - disliked


def mean_score(recommender, user, of_genre, without):
    """The mean score of a genre's items, less that of all."""
    every = {
        one.item_id: one.score for one in recommender.recommend(user, list(recommender.item_ids))
    }
    mine = [
        score
        for item, score in every.items()
        if dislikes.genre(item) == of_genre and item != without
    ]
    return np.mean(mine) - np.mean(list(every.values()))


def test_a_dislike_lowers_the_item_and_its_likes_at_once(tmp_path):
    student = small_run.STUDENTS["recurrent"]
    recommender = load(dislikes.exported(student, tmp_path, learned=True))
    for item in ("i4", "i5", "i6", "i7"):
        user, other = f"dislikes {item}", f"buys {item}"
        recommender.update([event(user, item, "dislike"), event(other, item, "buy")])
        both = [mean_score(recommender, who, dislikes.genre(item), item) for who in (user, other)]
        before = mean_score(recommender, "nobody", dislikes.genre(item), item)
        assert both[0] < before < both[1]
        (now,) = recommender.recommend(user, [item])
        (bought,) = recommender.recommend(other, [item])
        assert now.score < bought.score


def test_what_leaves_the_remembered_events_stays_hidden(folder):
    few = load(folder, max_events=2)
    few.update(
        [event("new", "i5", "dislike"), *(event("new", f"i{n}", "view") for n in range(10, 15))]
    )
    assert len(few.past("new", 99)) == 2
    for exclude_seen in (True, False):
        assert "i5" not in shown(few, "new", exclude_seen=exclude_seen)


EVENTS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["buy", "view", "dislike", "hide", "look"])), max_size=15
)  # fmt: skip


@of_contract
@given(events=EVENTS)
def test_one_by_one_together_stored_and_again(folder, events):
    """However events arrive, the same items are hidden; the memory that is counted is what there is."""
    plain = load(folder, runtime="numpy")
    said = [event("new", f"i{item}", kind) for item, kind in events]
    for one in said:
        plain.update([one])
    hidden = set()
    for item, kind in events:
        if kind in ("dislike", "hide"):
            hidden.add(f"i{item}")
        elif kind == "buy":
            hidden.discard(f"i{item}")
    assert set(plain.item_ids) - set(shown(plain, "new", exclude_seen=False)) == hidden
    session = plain.session([{"item_id": f"i{item}", "event_type": kind} for item, kind in events])
    assert shown(plain, session, exclude_seen=False) == shown(plain, "new", exclude_seen=False)
    users = plain.users
    assert users.nbytes == sum(users.peek(name).nbytes for name in users.recent(99))


def test_a_store_keeps_it(folder, tmp_path):
    address = f"sqlite:///{tmp_path / 'store.db'}"
    said = [event("new", "i5", "dislike"), event("new", "i6", "buy"), event("u1", "i6", "hide")]
    with closing(open_store(address)) as store:
        first = StoredRecommender(load(folder), store)
        first.update(said)
        answers = [shown(first, user, exclude_seen=False) for user in ("new", "u1")]
        assert [one.item_id for one in first.popular(k=9)] == [
            "i6"
        ]  # dislikes make nothing popular
        assert {one.item_id for one in first.popular(k=9, event_types=["dislike"])} == {"i5"}
    with closing(open_store(address)) as store:
        again = StoredRecommender(load(folder), store)
        assert [shown(again, user, exclude_seen=False) for user in ("new", "u1")] == answers
    assert "i5" not in answers[0] and "i6" not in answers[1]
