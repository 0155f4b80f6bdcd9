"""Items that are like others."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from distilrec import load
from distilrec.engine import Condition, Filter, StoredRecommender
from distilrec.errors import ConfigError, InvalidIdError, UnknownItemError
from distilrec.export.export import export_bundle
from distilrec.stores import open_store
from distilrec.stores.records import ItemRecord
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import train_model
from tests import small_run

pytestmark = pytest.mark.slow

GIVEN = ["i1", "i7", "i3"]


@pytest.fixture(scope="module", params=["neighbours", *small_run.STUDENTS])
def folder(request, small, tmp_path_factory):
    """The bundle of a student of each kind, and of one with neighbours."""
    config = small_run.STUDENTS.get(request.param)
    if config is None:
        config = msgspec.structs.replace(
            small_run.STUDENTS["recurrent"], neighbours=5, repeat_events=20
        )
    training = TrainingConfig(epochs=2, batch_size=16)
    student = train_model(config, small, training, seed=0)
    path = tmp_path_factory.mktemp("similar") / "bundle"
    export_bundle(student, small, path)
    return path


@pytest.fixture(params=["numba", "numpy"])
def recommender(request, folder):
    return load(folder, runtime=request.param)


def expected(recommender, given, popularity=0.1):
    """Every item that is not among the given ones with its likeness, in plain Python."""
    biases = recommender._runtime._items.biases.astype(np.float64)
    runtime, ids = recommender._runtime, recommender.item_ids
    vectors = runtime.item_vectors(np.arange(len(ids), dtype=np.int32)).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = {}
    for item in range(len(ids)):
        parts = []
        for name in given:
            j = ids.index(name)
            near, values = runtime.neighbours_of(j)
            moved = dict(zip(near.tolist(), values.tolist(), strict=True)).get(item, 0.0)
            parts.append(unit[j] @ unit[item] + 0.1 * moved)
        if ids[item] not in given:
            found[ids[item]] = float(np.mean(parts) + popularity * biases[item])
    return found


@pytest.mark.parametrize("given", [["i1"], GIVEN, ["i41"]])
def test_likeness_is_cosine_and_what_neighbours_add(recommender, given):
    answer = recommender.similar(given, k=99)
    wanted = expected(recommender, given)
    assert {one.item_id for one in answer} == set(wanted)
    scores = [one.score for one in answer]
    assert scores == sorted(scores, reverse=True)
    assert scores == pytest.approx([wanted[one.item_id] for one in answer], abs=1e-5)
    assert recommender.similar(given, k=4) == answer[:4]
    alone = recommender.similar(given, k=99, popularity=0)
    assert {one.item_id: one.score for one in alone} == pytest.approx(
        expected(recommender, given, popularity=0), abs=1e-5
    )


def test_neighbours_are_in_it(small, folder):
    recommender = load(folder)
    near = [recommender._runtime.neighbours_of(n)[0] for n in range(small.catalogue_size)]
    with_rows = [n for n, items in enumerate(near) if len(items)]
    assert len(with_rows) in {0, small.info.warm_items}


def test_one_item_several_and_repetitions(recommender):
    assert recommender.similar("i1") == recommender.similar(["i1"])
    assert recommender.similar(["i1", "i7", "i1"], k=99) == recommender.similar(["i1", "i7"], k=99)


def test_filters_users_and_diversity(recommender):
    everything = recommender.similar(GIVEN, k=99)
    cheap = Filter(attributes={"price": Condition(max=4.0)}, deny=("i2",))
    passing = {
        one.item_id
        for one in everything
        if recommender.item(one.item_id).attributes["price"] <= 4 and one.item_id != "i2"
    }
    assert recommender.similar(GIVEN, k=99, where=cheap) == [
        one for one in everything if one.item_id in passing
    ]
    past = set(recommender.past("u1", 99))
    assert past
    assert recommender.similar(GIVEN, k=99, user_id="u1") == [
        one for one in everything if one.item_id not in past
    ]
    assert recommender.similar(GIVEN, k=99, user_id="a stranger") == everything
    mixed = recommender.similar(GIVEN, k=8, diversity=0.9)
    assert mixed[0] == everything[0] and len(mixed) == 8
    assert [one.item_id for one in mixed] != [one.item_id for one in everything[:8]]
    assert recommender.similar(GIVEN, k=8, diversity=0.0) == everything[:8]


def test_changed_items_bind_at_once(folder):
    recommender = load(folder)
    best = recommender.similar("i1", k=99)
    twin = recommender.item("i1").attributes
    recommender.add_item("new", {"genres": twin["genres"], "price": twin["price"]})
    answer = recommender.similar("i1", k=99)
    assert [one for one in answer if one.item_id != "new"] == best
    assert {one.item_id for one in recommender.similar("new", k=99)} == {
        "i1", *(one.item_id for one in best)
    }  # fmt: skip
    assert {one.item_id: one.score for one in answer} == pytest.approx(
        expected(recommender, ["i1"]), abs=1e-5
    )
    recommender.put_item(ItemRecord("i1", available=False))
    assert recommender.similar("i1", k=99) == answer  # sold out: its page is still there
    assert "i1" not in [one.item_id for one in recommender.similar("new", k=99)]
    recommender.put_item(ItemRecord("new", removed=True))
    assert recommender.similar("i1", k=99) == best
    with pytest.raises(UnknownItemError):
        recommender.similar(["i1", "new"])


@pytest.mark.parametrize(
    ("item_ids", "options", "error", "words"),
    [
        ("nothing", {}, UnknownItemError, "'nothing' is not in the catalogue"),
        ([], {}, ConfigError, "no item is given"),
        ([None], {}, InvalidIdError, "item_id None is missing"),
        ("i1", {"k": 0}, ConfigError, "k is 0"),
        ("i1", {"diversity": -0.1}, ConfigError, r"diversity is -0\.1"),
        ("i1", {"popularity": 1.1}, ConfigError, r"popularity is 1\.1"),
        ("i1", {"where": Filter(attributes={"colour": Condition()})}, ConfigError, "'colour'"),
        ("i1", {"user_id": ""}, InvalidIdError, "user_id"),
    ],
)
def test_what_cannot_be_asked(bundle, item_ids, options, error, words):
    with pytest.raises(error, match=words):
        load(bundle).similar(item_ids, **options)


def test_over_a_store_what_was_just_had_is_left_out(bundle, tmp_path):
    stored = StoredRecommender(load(bundle), open_store(f"sqlite:///{tmp_path / 'store.db'}"))
    first = stored.similar("i1", user_id="buyer")
    stored.update([{"user_id": "buyer", "item_id": first[0].item_id}])
    assert stored.similar("i1", user_id="buyer")[:9] == first[1:]
    assert stored.similar("i1") == first
    stored.store.close()
