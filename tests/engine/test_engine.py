"""The recommender beyond scores: filters, availability, diversity, bounded memory, and states that follow a store."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distilrec import load
from distilrec.bundle.format import erase_user, read_bundle
from distilrec.engine.filters import Condition, Filter
from distilrec.engine.probabilities import Objective
from distilrec.engine.rules import Rules
from distilrec.engine.stored import StoredRecommender
from distilrec.errors import (
    BundleCorruptedError,
    ConfigError,
    StoreUnavailableError,
    UnknownItemError,
)
from distilrec.features.attributes import (
    ItemAttributes,
    collect_attributes,
    pack_attributes,
    unpack_attributes,
)
from distilrec.stores.records import ItemRecord
from distilrec.stores.redis import RedisStore
from distilrec.stores.sqlite import SqliteStore
from tests.servers import Redis
from tests.small_run import tables

EVERYTHING = 99


@pytest.fixture
def recommender(bundle):
    return load(bundle)


@pytest.fixture(scope="module")
def catalogue():
    """The item table as it was given: genres and price by item."""
    return {row["item_id"]: row for row in tables()["items"].to_dicts()}


def ids(answers):
    return [answer.item_id for answer in answers]


def genres(row):
    return set(row["genres"].split("|"))


# Filters


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    any_of=st.none() | st.lists(st.sampled_from(["g0", "g1", "g2", "g3", "g9"]), max_size=3),
    none_of=st.lists(st.sampled_from(["g0", "g1", "g2", "g9"]), max_size=2),
    low=st.none() | st.floats(0, 10),
    high=st.none() | st.floats(0, 10),
    allow=st.none() | st.lists(st.integers(0, 45).map("i{}".format), max_size=20),
    deny=st.lists(st.integers(0, 45).map("i{}".format), max_size=20),
    user=st.sampled_from(["u1", "u2", "stranger"]),
)
def test_a_filter_gives_what_a_plain_loop_gives(
    recommender, catalogue, any_of, none_of, low, high, allow, deny, user
):
    where = Filter(
        attributes={
            "genres": Condition(
                any_of=None if any_of is None else tuple(any_of), none_of=tuple(none_of)
            ),
            "price": Condition(min=low, max=high),
        },
        allow=None if allow is None else tuple(allow),
        deny=tuple(deny),
    )

    def passes(item):
        row = catalogue[item]
        return (
            (any_of is None or genres(row) & set(any_of))
            and not genres(row) & set(none_of)
            and (low is None or row["price"] >= low)
            and (high is None or row["price"] <= high)
            and (allow is None or item in allow)
            and item not in deny
        )

    everything = ids(recommender.recommend(user, k=EVERYTHING))
    assert ids(recommender.recommend(user, k=EVERYTHING, where=where)) == [
        item for item in everything if passes(item)
    ]
    assert (
        ids(recommender.recommend(user, k=2, where=where))
        == [item for item in everything if passes(item)][:2]
    )


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            Filter(attributes={"colour": Condition(any_of=("red",))}),
            "no item has an attribute 'colour'; known: genres",
        ),
        (Filter(attributes={"price": Condition(any_of=("1",))}), "'price' is numeric"),
        (Filter(attributes={"genres": Condition(min=1)}), "'genres' is categorical"),
    ],
)
def test_filters_that_do_not_fit(recommender, where, message):
    with pytest.raises(ConfigError, match=message):
        recommender.recommend("u1", where=where)


def test_a_changed_item_binds_at_once_also_for_filters_used_before(recommender):
    cheap = Filter(attributes={"price": Condition(max=5.0)})
    best = ids(recommender.recommend("u1", where=cheap))[0]
    recommender.put_item(ItemRecord(best, attributes={"price": 500.0}))
    assert best not in ids(recommender.recommend("u1", k=EVERYTHING, where=cheap))
    recommender.put_item(ItemRecord(best, attributes={"price": 1.0}, available=False))
    assert best not in ids(recommender.recommend("u1", k=EVERYTHING, where=cheap))
    assert best not in ids(recommender.recommend("u1", k=EVERYTHING))
    assert best not in ids(recommender.recommend("u1", k=EVERYTHING, where=Filter(allow=(best,))))
    assert ids(recommender.recommend("u1", [best])) == [
        best
    ]  # ranking given items is not recommending
    recommender.put_item(ItemRecord(best, "Title"))
    assert not recommender.item(best).available
    recommender.put_item(ItemRecord(best, available=True))
    assert ids(recommender.recommend("u1", where=cheap))[0] == best


def test_new_attributes_and_removed_items(recommender):
    first, second = recommender.item_ids[:2]
    recommender.put_item(
        ItemRecord(first, attributes={"in_stock": True, "shelf": ["a", "b"], "weight": 2.5})
    )
    in_stock = Filter(attributes={"in_stock": Condition(any_of=("true",))})
    assert ids(recommender.recommend("nobody", where=in_stock)) == [first]
    assert recommender.item(first).attributes["shelf"] == ["a", "b"]
    recommender.put_item(ItemRecord(first, attributes={"shelf": None, "weight": None}))
    assert {"shelf", "weight"}.isdisjoint(recommender.item(first).attributes)
    with pytest.raises(ConfigError, match="'price' is numeric"):
        recommender.put_item(ItemRecord(first, attributes={"in_stock": False, "price": "cheap"}))
    assert recommender.item(first).attributes["in_stock"] == ["true"]  # all or nothing
    recommender.put_item(ItemRecord(second, removed=True))
    assert second not in recommender.item_ids
    with pytest.raises(UnknownItemError):
        recommender.recommend("u1", [second])
    recommender.add_item(second, {})
    assert second in ids(recommender.recommend("nobody", k=EVERYTHING))


def test_many_new_items(recommender):
    """More than the room that is kept for them; scores stay those of the features."""
    for n in range(150):
        recommender.add_item(f"new-{n}", {"price": 3.0, "genres": ["g1"]}, f"New {n}")
    answers = recommender.recommend("u1", [f"new-{n}" for n in range(150)])
    scores = [answer.score for answer in answers]
    assert scores == pytest.approx([scores[0]] * 150, abs=1e-5)
    listed = ids(recommender.recommend("u1", k=500))
    assert {f"new-{n}" for n in range(150)} <= set(listed)
    recommender.put_item(ItemRecord("new-3", features={"price": 8.0}))
    changed, same = (recommender.recommend("u1", [item])[0].score for item in ("new-3", "new-4"))
    assert changed != same
    assert recommender.search("new 14", limit=3)[0].item_id == "new-14"


@settings(deadline=None)
@given(data=st.data())
def test_attributes_survive_storage(data):
    items = data.draw(st.integers(0, 12))
    text = st.none() | st.lists(st.sampled_from(["a", "b", "ü|"]), max_size=3)
    numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
    tags = data.draw(st.lists(text, min_size=items, max_size=items))
    prices = data.draw(st.lists(numbers, min_size=items, max_size=items))
    made = collect_attributes({"tags": ("multi", tags), "price": ("numeric", prices)}, items)
    again = unpack_attributes(pack_attributes(made), items)
    for item in range(items):
        assert made.of(item) == again.of(item)
        expected = {} if prices[item] is None else {"price": prices[item]}
        if wanted := sorted(set(tags[item] or [])):
            expected["tags"] = wanted
        assert again.of(item) == expected


def test_attributes_that_do_not_fit_are_refused(bundle):
    from distilrec.bundle.format import write_bundle

    read = read_bundle(bundle)
    attributes = read.catalogue.attributes
    wrong = {**attributes, "members:genres": attributes["members:genres"] + 500}
    catalogue = replace(read.catalogue, attributes=wrong)
    write_bundle(bundle, read.manifest, read.weights, catalogue, read.history)
    with pytest.raises(BundleCorruptedError, match="attributes that do not fit"):
        load(bundle)


def test_changing_attributes_is_like_building_them_anew():
    rng = np.random.default_rng(0)
    made = ItemAttributes(8)
    plain: list[dict] = [{} for _ in range(8)]
    for _ in range(200):
        item = int(rng.integers(8))
        tags = [str(tag) for tag in rng.choice(list("abc"), rng.integers(0, 3), replace=False)]
        made.change(item, {"tags": tags, "n": float(item)})
        plain[item] = {"n": float(item), **({"tags": sorted(tags)} if tags else {})}
    assert [
        {k: sorted(v) if isinstance(v, list) else v for k, v in made.of(item).items()}
        for item in range(8)
    ] == plain


# Diversity, batches, explanations


def test_diversity_trades_score_against_likeness(recommender):
    plain = recommender.recommend("u1", k=8)
    assert recommender.recommend("u1", k=8, diversity=0.0) == plain
    assert len(recommender.recommend("u1", k=8, diversity=0.5)) == 8

    def likeness(answers):
        vectors = recommender._runtime.item_vectors(
            np.array([recommender._catalogue.index[answer.item_id] for answer in answers], np.int32)
        )
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return (unit @ unit.T).sum() - len(answers)

    values = [likeness(recommender.recommend("u1", k=8, diversity=d)) for d in (0.0, 0.4, 0.9)]
    assert values[0] > values[1] > values[2]
    assert (
        recommender.recommend("u1", k=8, diversity=0.9)[0] == plain[0]
    )  # the best one comes first in any case
    with pytest.raises(ConfigError, match=r"diversity is 1\.5"):
        recommender.recommend("u1", diversity=1.5)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 20), diversity=st.floats(0, 1))
def test_maximal_marginal_relevance_against_plain_python(seed, n, diversity):
    from distilrec.engine import kernels

    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, 4)).astype(np.float32)
    relevance = np.sort(rng.random(n).astype(np.float32))[::-1].copy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    k = int(rng.integers(1, n + 1))
    got = np.empty(k, np.int32)
    kernels.diversify(vectors, relevance, np.float32(diversity), got)
    chosen: list[int] = []
    for item in got.tolist():
        values = {
            i: (1 - diversity) * relevance[i]
            - diversity * max((float(unit[i] @ unit[j]) for j in chosen), default=0)
            for i in range(n)
            if i not in chosen
        }
        assert (
            values[item] >= max(values.values()) - 1e-4
        )  # nearly equal ones may change places between float32 and float64
        chosen.append(item)


def test_a_batch_is_the_single_answers(recommender):
    users = ["u1", "u2", "nobody"]
    where = Filter(deny=("i3",))
    assert recommender.recommend_many(users, k=4, where=where) == [
        recommender.recommend(user, k=4, where=where) for user in users
    ]


@pytest.mark.parametrize("repeats", [False, True])
def test_what_a_user_has_had_is_left_out_as_it_was_measured(bundle, repeats, request, tmp_path):
    """By every door, and otherwise where the caller says so."""
    path = request.getfixturevalue("bundle_with_repeats") if repeats else bundle
    stored = StoredRecommender(load(path), SqliteStore(tmp_path / "events.db"))
    stored.update([{"user_id": "a", "item_id": item, "event_type": "buy"} for item in ("i3", "i9")])
    worth = Objective(probability=1.0)

    def lists(**said):
        return [
            ids(stored.recommend("a", k=EVERYTHING, **said)),
            ids(stored.recommend_many(["a"], k=EVERYTHING, **said)[0]),
            ids(stored.recommend("a", k=EVERYTHING, diversity=0.1, **said)),
            ids(stored.recommend_by_value("a", worth, k=EVERYTHING, **said)),
            ids(stored.arrange("a", Rules(), EVERYTHING, **said).items),
            ids(stored.similar("i2", EVERYTHING, user_id="a", **said)),
            ids(stored.latest("price", EVERYTHING, user_id="a", **said)),
            ids(stored.popular(k=EVERYTHING, user_id="a", **said)),
        ]

    for found in lists():
        assert ("i3" in found) == repeats
    for found, without in zip(lists(exclude_seen=False), lists(exclude_seen=True), strict=True):
        assert set(found) - set(without) == {"i3", "i9"}
    chances = stored.probabilities("a", ["i3", "i9"])
    assert [chance > 0 for chance in chances] == [repeats, repeats]
    # Of given items each has a chance as it was measured, whatever is said.
    given = stored.recommend_by_value("a", worth, ["i3"], exclude_seen=not repeats)
    assert (given[0].probability > 0) == repeats


def test_only_the_latest_events_are_remembered_but_all_are_in_the_state(bundle):
    short, whole = load(bundle, max_events=4), load(bundle)
    items = whole.item_ids[:12]
    for recommender in (short, whole):
        recommender.update({"user_id": "a", "item_id": item, "event_type": "buy"} for item in items)
    every = short.recommend("a", k=EVERYTHING, exclude_seen=False)
    assert every == whole.recommend("a", k=EVERYTHING, exclude_seen=False)
    assert set(items[:8]) <= set(ids(short.recommend("a", k=EVERYTHING)))
    assert set(items[8:]).isdisjoint(ids(short.recommend("a", k=EVERYTHING)))
    # The explanation of what is remembered stays exact.
    full = {c.item_id: c.contribution for c in whole.explain("a", items[0], k=EVERYTHING)}
    part = {c.item_id: c.contribution for c in short.explain("a", items[0], k=EVERYTHING)}
    assert set(part) == set(items[8:])
    for item, contribution in part.items():
        assert contribution == pytest.approx(full[item], abs=2e-5)


# Memory and stores


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def store(request, tmp_path):
    if request.param == "sqlite":
        opened = SqliteStore(tmp_path / "store.db")
        yield opened
        opened.close()
        return
    server = Redis(tmp_path)
    opened = RedisStore(server.url)
    yield opened
    opened.close()
    server.stop()


def test_users_who_leave_memory_come_back_from_the_store(bundle, store):
    """Three users fit; ten act in turn; everybody's answers are those of a recommender that forgets nobody."""
    small, plain = StoredRecommender(load(bundle, max_users=3), store), load(bundle)
    rng = np.random.default_rng(0)
    users = [f"u{n}" for n in range(6)] + [f"new{n}" for n in range(4)]
    for n in range(150):
        user, item = str(rng.choice(users)), str(rng.choice(plain.item_ids))
        kind = str(rng.choice(["view", "buy"]))
        assert small.update(
            [{"user_id": user, "item_id": item, "event_type": kind, "event_id": str(n)}]
        ) == [True]
        plain.update([{"user_id": user, "item_id": item, "event_type": kind}])
        if n % 3 == 0:
            assert small.recommend(user) == plain.recommend(user)
    for user in users:
        assert small.recommend(user) == plain.recommend(user)
    assert len(small.recommender.users) <= 3
    assert small.recommender.users.evicted > 0
    held = [small.recommender.users.peek(user) for user in small.recommender.users.recent(9)]
    assert small.recommender.users.nbytes == sum(user.nbytes for user in held)


def test_repeated_and_late_events(bundle, store):
    """Whatever the order of arrival, the state is that of the order in time; a repeated event id counts once."""
    items = load(bundle).item_ids[:6]
    events = [
        {"user_id": "a", "item_id": item, "timestamp": 1000.0 + n, "event_id": str(n)}
        for n, item in enumerate(items)
    ]
    in_order = StoredRecommender(load(bundle), store)
    in_order.update([{**event, "user_id": "ordered"} for event in events])
    expected = in_order.recommend("ordered")
    mixed = StoredRecommender(load(bundle), store)
    for place in (0, 3, 1, 1, 5, 2, 4, 0):
        mixed.update([events[place]])
        mixed.recommend("a")
    assert mixed.recommend("a") == expected
    assert mixed.update([events[2]]) == [False]
    assert mixed.recommend("a") == expected
    assert StoredRecommender(load(bundle), store).recommend("a") == expected  # and after a restart


@pytest.mark.parametrize("when", [-1.0, float("nan"), float("inf"), 4e12])
def test_impossible_times_are_refused(bundle, tmp_path, when):
    stored = StoredRecommender(load(bundle), SqliteStore(tmp_path / "store.db"))
    with pytest.raises(ConfigError, match="is not a time between 1970 and now"):
        stored.update(
            [
                {"user_id": "a", "item_id": "i1"},
                {"user_id": "a", "item_id": "i1", "timestamp": when},
            ]
        )
    assert not stored.recommender.knows_user("a")


def test_events_that_the_bundle_already_holds_are_not_folded_twice(bundle, tmp_path):
    """A bundle whose history reaches past the moment when a stored event was received has that event in its history."""
    from distilrec.bundle.format import write_bundle

    store = SqliteStore(tmp_path / "store.db")
    old = StoredRecommender(load(bundle), store)
    item = old.recommend("u1")[0].item_id
    before = old.recommend("u1")
    old.update([{"user_id": "u1", "item_id": item}, {"user_id": "newcomer", "item_id": item}])
    assert old.recommend("u1") != before
    read = read_bundle(bundle)
    history = replace(read.history, end=4e9)
    newer = bundle.parent / "newer"
    write_bundle(newer, read.manifest, read.weights, read.catalogue, history)
    new = StoredRecommender(load(newer), store)
    assert new.recommend("u1") == before
    assert new.recommend("newcomer") == old.recommend(
        "newcomer"
    )  # not in the bundle: all events count
    store.close()


def test_a_failed_write_leaves_memory_as_the_store(bundle, tmp_path, monkeypatch):
    """Whether the write happened or not: the next answer is the store's."""
    store = SqliteStore(tmp_path / "store.db")
    stored = StoredRecommender(load(bundle), store)
    stored.update([{"user_id": "a", "item_id": "i1"}])
    stored.recommend("a")
    for name, use in (
        ("append", lambda: stored.update([{"user_id": "a", "item_id": "i2"}])),
        ("set_features", lambda: stored.set_user("a", {"age": 70})),
        ("erase", lambda: stored.erase("a")),
    ):
        really = getattr(store, name)

        def write_and_fail(*arguments: object, really=really) -> None:
            really(*arguments)
            raise StoreUnavailableError("the answer got lost")

        with monkeypatch.context() as patch:
            patch.setattr(store, name, write_and_fail)
            with pytest.raises(StoreUnavailableError, match="got lost"):
                use()
        assert stored.recommend("a") == StoredRecommender(load(bundle), store).recommend("a"), name
    store.close()


def test_a_backup_restored_into_the_file_is_followed(bundle, tmp_path):
    store = SqliteStore(tmp_path / "store.db")
    stored = StoredRecommender(load(bundle), store)
    stored.update([{"user_id": "a", "item_id": "i1"}])
    with (
        closing(sqlite3.connect(tmp_path / "store.db")) as live,
        closing(sqlite3.connect(tmp_path / "copy")) as copy,
    ):
        live.backup(copy)
        stored.update([{"user_id": "a", "item_id": item} for item in ("i2", "i3", "i4")])
        stored.recommend("a")
        copy.backup(live)
    stored.update([{"user_id": "a", "item_id": "i5"}])
    assert stored.recommend("a") == StoredRecommender(load(bundle), store).recommend("a")
    store.close()


def test_two_processes_share_users(bundle, redis_server):
    stores = [RedisStore(redis_server.url) for _ in range(2)]
    one, two = (StoredRecommender(load(bundle), store) for store in stores)
    alone = load(bundle)
    for n, item in enumerate(alone.item_ids[:10]):
        (one if n % 3 else two).update([{"user_id": "u1", "item_id": item}])
        alone.update([{"user_id": "u1", "item_id": item}])
        assert one.recommend("u1") == two.recommend("u1") == alone.recommend("u1")
    one.set_user("u1", {"age": 70, "country": "pl"})
    alone.set_user("u1", {"age": 70, "country": "pl"})
    assert one.recommend("u1") == two.recommend("u1") == alone.recommend("u1")
    one.put_item(ItemRecord("brand new", "New", {"price": 1.0}))
    two.refresh_items()
    assert two.recommender.title("brand new") == "New"
    one.erase("u1")
    stranger = alone.recommend("nobody", ["i1", "i2"])
    assert one.recommend("u1", ["i1", "i2"]) == two.recommend("u1", ["i1", "i2"]) == stranger
    for store in stores:
        store.close()


def test_an_erased_user_is_a_stranger_also_to_another_bundle(bundle, tmp_path):
    store = SqliteStore(tmp_path / "store.db")
    stored = StoredRecommender(load(bundle), store)
    stored.update([{"user_id": "u1", "item_id": "i5"}])
    stranger = stored.recommend("nobody")
    assert stored.recommend("u1") != stranger
    assert stored.erase("u1") == 1
    assert stored.recommend("u1") == stranger
    again = StoredRecommender(load(bundle), store)
    assert "u1" not in again.recommender.all_users() and len(again.recommender.some_users(99)) == 59
    assert again.recommend("u1") == stranger
    stored.update([{"user_id": "u1", "item_id": "i5"}, {"user_id": "other", "item_id": "i5"}])
    assert stored.recommend("u1") == stored.recommend("other")
    store.close()


def test_erasing_a_user_from_a_bundle(bundle):
    before = load(bundle)
    others = {user: before.recommend(user) for user in ("u0", "u2", "u59")}
    version, stranger = before.manifest.model_version, before.recommend("nobody")
    assert erase_user(bundle, "u1")
    after = load(bundle)
    assert not after.knows_user("u1")
    assert after.recommend("u1") == stranger
    assert {user: after.recommend(user) for user in others} == others
    assert {user: after.teacher_items(user) for user in others} == {
        user: before.teacher_items(user) for user in others
    }
    assert after.manifest.model_version == version
    assert not erase_user(bundle, "u1")
    users = [user for user in (f"u{n}" for n in range(60)) if load(bundle).knows_user(user)]
    for user in users[:5]:
        assert erase_user(bundle, user)
    assert len(list(bundle.glob("history*"))) == 1
    assert not load(bundle).knows_user(users[0])


@pytest.mark.parametrize("call", [{"max_users": 0}, {"max_events": -1}])
def test_limits_must_be_positive(bundle, call):
    with pytest.raises(ConfigError, match="give a number of at least 1"):
        load(bundle, **call)


def test_the_teacher_goes_with_the_bundle(bundle, finished_run):
    from distilrec.data.dataset import load_dataset
    from distilrec.networks.sequence import TorchScorer
    from distilrec.training.trained import load_model

    dataset = load_dataset(finished_run.folder / "data")
    teacher = load_model(finished_run.folder / "teacher", dataset)
    recommender = load(bundle)
    assert recommender.has_teacher
    user = 7
    histories = dataset.histories(np.array([user]), dataset.offsets[user + 1 : user + 2])
    scores = TorchScorer(teacher.model).scores(histories)[0]
    scores[histories.items] = -np.inf
    expected = [
        dataset.info.item_ids[item]
        for item in np.argsort(-scores, kind="stable")[:20]
        if np.isfinite(scores[item])
    ]
    assert recommender.teacher_items(dataset.info.user_ids[user]) == expected
    assert recommender.teacher_items("nobody") == []
