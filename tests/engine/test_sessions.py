"""A history that comes with the question, in place of a user or on top of one."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec import load
from distilrec.engine import StoredRecommender
from distilrec.engine.history import PastEvent
from distilrec.errors import ConfigError, InvalidIdError
from distilrec.stores import open_store

pytestmark = pytest.mark.slow

ITEMS = [f"i{n}" for n in range(42)]
events = st.fixed_dictionaries(
    {"item_id": st.sampled_from([*ITEMS, "of another shop"])},
    optional={
        "event_type": st.sampled_from(["view", "buy", "odd"]),
        "timestamp": st.floats(0, time.time()),
    },
)


@pytest.fixture(scope="module")
def stored(finished_run, tmp_path_factory):
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('sessions') / 'store.db'}")
    yield StoredRecommender(load(finished_run.bundle), store)
    store.close()


def answers(recommender, user):
    return [
        recommender.recommend(user, k=99),
        recommender.recommend(user, k=7, exclude_seen=False, diversity=0.3),
        recommender.recommend(user, ["i3", "i1", "i30"]),
    ]


@settings(max_examples=60)
@given(history=st.lists(events, max_size=25), base=st.sampled_from([None, "u1", "u7"]))
def test_a_session_is_answered_like_a_user_with_exactly_these_events(stored, history, base):
    """The other user lives in the store, and comes back from it."""
    name = base or "visitor"
    before = len(stored.recommender.users)
    known = set(stored.recommender.all_users())
    session = stored.session(history, base)
    found = answers(stored, session)
    reasons = [stored.explain(session, item) for item in ("i3", "i20")]
    assert set(stored.recommender.all_users()) == known
    assert len(stored.recommender.users) <= before + (base is not None)
    assert stored.store.read([stored.recommender.since(name)])[0].events == ()
    stored.update([{"user_id": name, **event} for event in history])
    stored.recommender.users.drop(name)
    assert answers(stored, name) == found
    stored.recommender.users.drop(name)
    assert [stored.explain(name, item) for item in ("i3", "i20")] == reasons
    both = stored.recommender.explain_many(name, ["i3", "i20"])
    assert stored.explain_many(name, ["i3", "i20"]) == both
    assert stored.recommend_many([name], exclude_seen=False) == [
        stored.recommend(name, exclude_seen=False)
    ]
    # Not erased for good: that would take the user's history of the bundle away.
    stored.store._writer.execute("DELETE FROM events")
    stored.store._writer.execute("DELETE FROM users")
    stored.recommender.users.drop(name)


def test_ids_and_events_may_be_mixed(stored):
    recommender = stored.recommender
    mixed = recommender.session(
        [" i3 ", {"item_id": "i1", "event_type": "interaction"}, PastEvent("i2")]
    )
    plain = recommender.session(["i3", "i1", "i2"])
    assert recommender.recommend(mixed) == recommender.recommend(plain)
    assert not {"i1", "i2", "i3"} & {one.item_id for one in recommender.recommend(plain, k=99)}
    assert recommender.recommend(recommender.session([])) == recommender.recommend("a stranger")


def test_events_count_in_order_of_their_times(stored):
    late = [{"item_id": "i5"}, {"item_id": "i6", "timestamp": 10}, {"item_id": "i7"}]
    session, in_order = (stored.session(history) for history in (late, ["i6", "i5", "i7"]))
    assert stored.recommend(session) == stored.recommend(in_order)
    assert stored.recommend(session) != stored.recommend(stored.session(["i5", "i7", "i6"]))


def test_the_user_is_not_changed(stored):
    before = answers(stored, "u3")
    session = stored.session(["i1", "i2"], "u3")
    assert answers(stored, session) != before
    assert answers(stored, "u3") == before


@pytest.mark.parametrize(
    ("history", "error", "words"),
    [
        ("i1", ConfigError, "history is a str, not a list"),
        ({"item_id": "i1"}, ConfigError, "history is a dict, not a list"),
        ([None], InvalidIdError, r"history\[0\].item_id"),
        (["i1", {"item": "i1"}], ConfigError, r"history\[1\] is not an event"),
        ([{"item_id": "i1", "event_type": "\n"}], InvalidIdError, r"history\[0\].event_type"),
        ([{"item_id": "i1", "timestamp": -1}], ConfigError, r"-1.0 of history\[0\] is not a time"),
        ([{"item_id": "i1", "timestamp": 4e12}], ConfigError, "is not a time"),
        ([{"item_id": "i1", "timestamp": "soon"}], ConfigError, "Expected `float"),
    ],
)
def test_what_is_no_history(stored, history, error, words):
    with pytest.raises(error, match=words):
        stored.session(history)
