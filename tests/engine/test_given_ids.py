"""The one rule for ids at the doors of the library and of `distilrec recommend`: the same id in every form, nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from uuid import UUID

import numpy as np
import pytest

from distilrec import load
from distilrec.engine.events import Event
from distilrec.engine.filters import Filter
from distilrec.engine.stored import EventInput, StoredRecommender
from distilrec.errors import InvalidIdError, UnknownItemError
from distilrec.stores.records import ItemRecord
from distilrec.stores.sqlite import SqliteStore

SEVENS = [7, 7.0, "7", "7.0", " 7 ", np.int64(7), np.float64(7), np.str_("7")]
NO_IDS = [
    None,
    True,
    7.5,
    float("nan"),
    "",
    "  ",
    "7\n",
    "a\x00",
    "\ud800",
    "x" * 257,
    b"7",
    [7],
    {"id": 7},
    2.0**60,
]


@pytest.fixture
def recommender(bundle):
    made = load(bundle)
    for number, item in enumerate(("7", "8", "4", "5", "6", "456")):
        made.put_item(ItemRecord(item, f"Title {item}", {"price": float(number)}))
    made.update([{"user_id": "7", "item_id": "8"}])
    return made


@pytest.fixture
def stored(bundle, tmp_path):
    store = SqliteStore(tmp_path / "store.db")
    made = StoredRecommender(load(bundle), store)
    made.put_item(ItemRecord("7"))
    made.put_item(ItemRecord("8"))
    made.update([{"user_id": "7", "item_id": "8"}])
    yield made
    store.close()


@pytest.mark.parametrize("seven", SEVENS, ids=repr)
def test_all_forms_of_an_id_are_one(recommender, seven):
    r = recommender
    assert r.knows_user(seven) and r.knows_item(seven)
    assert r.recommend(seven) == r.recommend("7") != r.recommend("nobody")
    assert r.best(seven, 3) == r.best("7", 3)
    assert r.recommend_many([seven, "7"]) == [r.recommend("7")] * 2
    assert r.recommend("u1", [seven]) == r.recommend("u1", ["7"])
    assert r.explain(seven, seven) == r.explain("7", "7") != []
    assert r.explain_many(seven, [seven, "5"]) == r.explain_many("7", ["7", "5"])
    assert r.title(seven) == r.title_of_past(seven) == "Title 7"
    assert r.item(seven) == r.item("7")
    assert r.past(seven, 9) == ["8"]
    assert r.since(seven) == r.since("7")
    for where in (Filter(allow=(seven,)), Filter(allow=("7", "8", seven), deny=(8,))):
        assert [a.item_id for a in r.recommend("u1", where=where)] == ["7"]
    assert "7" not in [a.item_id for a in r.recommend("u1", k=99, where=Filter(deny=(seven,)))]
    r.update([{"user_id": seven, "item_id": seven}, Event(seven, seven)])
    assert r.past("7", 9) == ["7", "7", "8"]
    r.set_user(seven, {"age": 30})
    assert [user for user in r.some_users(99) if user.strip().startswith("7")] == ["7"]
    r.put_item(ItemRecord(seven, "Another title"))
    assert r.title("7") == "Another title"
    assert [item for item in r.item_ids if item.strip().startswith("7")] == ["7"]
    r.forget(seven)
    assert not r.knows_user("7")


@pytest.mark.parametrize("seven", SEVENS, ids=repr)
def test_all_forms_of_an_id_are_one_in_a_store(stored, seven):
    assert stored.recommend(seven, [seven, 8]) == stored.recommend("7", ["7", "8"])
    before = stored.recommend("7", ["8"])
    assert stored.update([{"user_id": seven, "item_id": seven}, EventInput(seven, seven)]) == [
        True,
        True,
    ]
    assert stored.recommend("7", [8]) != before
    stored.set_user(seven, {"age": 30})
    stored.put_item(ItemRecord(seven, "A title"))
    assert stored.recommender.title("7") == "A title"
    records, _ = stored.store.items()
    assert sorted(record.item_id for record in records) == ["7", "8"]
    assert stored.erase(seven) == 3


@pytest.mark.parametrize("wrong", NO_IDS, ids=repr)
def test_what_cannot_be_an_id_is_refused_at_every_door(recommender, stored, wrong):
    r = recommender
    users = sorted(r.some_users(99))
    events = [{"user_id": "new", "item_id": "8"}, {"user_id": wrong, "item_id": "7"}]
    items = [{"user_id": "new", "item_id": "8"}, {"user_id": "new", "item_id": wrong}]
    for call in (
        lambda: r.recommend(wrong), lambda: r.recommend("u1", [wrong]), lambda: r.recommend_many([wrong]),
        lambda: r.best(wrong, 3), lambda: r.explain(wrong, "7"), lambda: r.explain("u1", wrong), lambda: r.title(wrong),
        lambda: r.item(wrong), lambda: r.knows_user(wrong), lambda: r.knows_item(wrong), lambda: r.past(wrong, 3),
        lambda: r.title_of_past(wrong), lambda: r.teacher_items(wrong), lambda: r.since(wrong), lambda: r.forget(wrong),
        lambda: r.update(events), lambda: r.update(items), lambda: r.update([Event("new", wrong)]),
        lambda: r.set_user(wrong, {}), lambda: r.add_item(wrong, {}), lambda: r.put_item(ItemRecord(wrong)),
        lambda: r.check_item(ItemRecord(wrong)), lambda: r.recommend("u1", where=Filter(allow=(wrong,))),
        lambda: r.recommend("u1", where=Filter(deny=("7", wrong))),
        lambda: stored.recommend(wrong), lambda: stored.recommend("u1", [wrong]), lambda: stored.update(events),
        lambda: stored.update(items), lambda: stored.update([EventInput(wrong, "7")]), lambda: stored.set_user(wrong, {}),
        lambda: stored.put_item(ItemRecord(wrong)), lambda: stored.erase(wrong),
    ):  # fmt: skip
        with pytest.raises(InvalidIdError):
            call()
    assert sorted(r.some_users(99)) == users
    assert not r.knows_user("new")  # all events or none
    assert not stored.store.read([stored.recommender.since("new")])[0].events


def test_one_id_where_a_list_belongs_is_refused(recommender, stored):
    for one in ("456", b"456", 456, None, UUID(int=4)):
        calls = [
            lambda one=one: recommender.recommend_many(one),
            lambda one=one: recommender.explain_many("u1", one),
        ]
        if one is not None:  # which means: all items, or no filter
            calls += [
                lambda one=one: recommender.recommend("123", one),
                lambda one=one: stored.recommend("123", one),
                lambda one=one: recommender.recommend("u1", where=Filter(allow=one)),
                lambda one=one: recommender.recommend("u1", where=Filter(deny=one)),
            ]
        for call in calls:
            with pytest.raises(InvalidIdError, match="not a list of ids"):
                call()
    with pytest.raises(InvalidIdError) as caught:
        recommender.recommend("123", "456")
    assert "give a list, such as ['456']" in str(caught.value)


def test_an_item_is_ranked_once(recommender):
    ranked = recommender.recommend("u1", [7, "7", 7.0, "8", " 8"])
    assert sorted(answer.item_id for answer in ranked) == ["7", "8"]
    assert recommender.explain_many("7", [8, "8"]) == recommender.explain_many("7", ["8"]) * 2
    with pytest.raises(UnknownItemError, match="item '9' is not in the catalogue"):
        recommender.recommend("u1", [7, 9.0])


def test_any_iterable_of_ids_will_do(recommender):
    expected = sorted(recommender.recommend("u1", ["7", "8"]))
    for items in (
        (7, 8),
        {7, 8},
        iter([7, 8]),
        np.array([7, 8]),
        {"7": 1, "8": 2},
        (n for n in (7, 8)),
    ):
        assert sorted(recommender.recommend("u1", items)) == expected


@pytest.mark.slow
def test_the_command_follows_the_same_rule(recommender, bundle):
    def run(*options):
        command = [
            sys.executable,
            "-m",
            "distilrec.cli",
            "recommend",
            "--bundle",
            bundle,
            "--json",
            *options,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    plain = run("--user_id", "u1", "--item_ids", "i1,i2")
    spaced = run("--user_id", " u1 ", "--item_ids", " i1,i2 ,,i1")
    assert plain.returncode == 0, plain.stderr
    assert spaced.stdout == plain.stdout
    assert json.loads(plain.stdout)["known_user"]
    for options in (
        ("--user_id", "u1\n"),
        ("--user_id", "x" * 257),
        ("--user_id", "u1", "--item_ids", "i1,a\tb"),
    ):
        refused = run(*options)
        assert refused.returncode == 2
        assert "error [id_invalid]" in refused.stderr
        assert "Traceback" not in refused.stderr
