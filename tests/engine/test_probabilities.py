"""Probabilities: a softmax over the candidates, at a temperature that was fitted, and lists ranked by expected worth."""

from __future__ import annotations

import json
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec import load
from distilrec.bundle.format import read_bundle, write_manifest
from distilrec.bundle.manifest import Calibration
from distilrec.engine import Condition, Filter, Objective, StoredRecommender
from distilrec.engine.web import write_drec
from distilrec.errors import BundleCorruptedError, ConfigError, UnknownItemError
from distilrec.export.calibration import calibrate
from distilrec.measure.ranking import Tempered, questions
from distilrec.stores import open_store
from distilrec.stores.records import ItemRecord

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["numba", "numpy"])
def recommender(request, folder):
    return load(folder, runtime=request.param)


ITEMS = [f"i{n}" for n in range(42)]
some_histories = st.lists(
    st.tuples(st.sampled_from(ITEMS), st.sampled_from(["view", "buy"])), max_size=15
)


@settings(max_examples=25)
@given(data=st.data())
def test_they_sum_to_one_in_the_order_of_the_scores(recommender, data):
    told = data.draw(some_histories)
    history = [{"item_id": item, "event_type": kind} for item, kind in told]
    user = recommender.session(history)
    exclude_seen = data.draw(st.booleans())
    answer = recommender.recommend(user, k=99, exclude_seen=exclude_seen)
    shown = [one.item_id for one in answer]
    found = recommender.probabilities(user, shown, exclude_seen)
    assert sum(found) == pytest.approx(1, abs=1e-5)
    assert all(p >= q * (1 - 1e-5) for p, q in pairwise(found))
    assert min(found) > 0
    # By hand, from the scores of the answer alone
    logits = np.array([one.score for one in answer], np.float64)
    logits /= recommender.manifest.calibration.temperature
    by_hand = np.exp(logits - logits.max())
    assert found == pytest.approx(by_hand / by_hand.sum(), rel=1e-3, abs=1e-7)
    # Over the whole catalogue the others have no share
    everything = recommender.probabilities(user, ITEMS, exclude_seen)
    assert sum(everything) == pytest.approx(1, abs=1e-5)
    left_out = {item for item, _ in told} if exclude_seen else set()
    assert {item for item, p in zip(ITEMS, everything, strict=True) if not p} == left_out


def test_filters_search_and_asking_for_fewer_change_nothing(folder, recommender):
    chosen = Filter(attributes={"price": Condition(max=4.0)})
    cheap = [one.item_id for one in recommender.recommend("u1", k=5, where=chosen)]
    everything = [one.item_id for one in recommender.recommend("u1", k=99)]
    by_item = dict(zip(everything, recommender.probabilities("u1", everything), strict=True))
    assert recommender.probabilities("u1", cheap) == [by_item[item] for item in cheap]
    assert recommender.probabilities("u1", []) == []
    had = recommender.past("u1", 99)
    assert recommender.probabilities("u1", had) == [0.0] * len(had)
    assert min(recommender.probabilities("u1", had, exclude_seen=False)) > 0
    if recommender.manifest.kind == "recurrent":
        quick = load(folder, search="quantised")
        assert quick.probabilities("u1", cheap) == pytest.approx(
            [by_item[item] for item in cheap], rel=1e-4
        )


def test_items_that_are_not_available_have_no_share(folder):
    recommender = load(folder)
    best = [one.item_id for one in recommender.recommend("u1", k=99)]
    before = recommender.probabilities("u1", best)
    recommender.put_item(ItemRecord(best[0], available=False))
    after = recommender.probabilities("u1", best)
    assert after[0] == 0
    assert after[1:] == pytest.approx([p / (1 - before[0]) for p in before[1:]], rel=1e-4)
    recommender.add_item("new", {"genres": ["g1"], "price": 3.0})
    assert sum(recommender.probabilities("u1", [*best, "new"])) == pytest.approx(1, abs=1e-5)
    everything = Filter(allow=())
    assert recommender.recommend_by_value("u1", Objective(1.0), where=everything) == []
    for item in recommender.item_ids:
        recommender.put_item(ItemRecord(item, available=False))
    assert recommender.probabilities("u1", best) == [0.0] * len(best)
    with pytest.raises(UnknownItemError):
        recommender.probabilities("u1", ["of another shop"])


@settings(max_examples=25)
@given(
    base=st.sampled_from([0.0, 0.5, -2.0]),
    price=st.sampled_from([1.0, -0.5, 1e6]),
    k=st.integers(1, 50),
)
def test_the_objective_is_probability_times_worth(recommender, base, price, k):
    objective = Objective(base, {"price": price})
    answer = recommender.recommend_by_value("u2", objective, k=k)
    everything = [one.item_id for one in recommender.recommend("u2", k=99)]
    likely = dict(zip(everything, recommender.probabilities("u2", everything), strict=True))
    worth = {
        item: likely[item] * (base + price * recommender.item(item).attributes["price"])
        for item in everything
    }
    best = sorted(worth.values(), reverse=True)[:k]
    assert [one.value for one in answer] == pytest.approx(best, rel=1e-5)
    for one in answer:
        assert one.value == pytest.approx(worth[one.item_id], rel=1e-5)
        assert one.value == pytest.approx(sum(one.parts.values()))
        assert set(one.parts) == {"price", *(["probability"] if base else [])}
        assert one.probability == likely[one.item_id]
    given_items = everything[:7]
    ranked = recommender.recommend_by_value("u2", objective, given_items)
    assert sorted(one.item_id for one in ranked) == sorted(given_items)
    assert [one.value for one in ranked] == sorted((one.value for one in ranked), reverse=True)


def test_probability_alone_is_the_order_of_recommend(recommender):
    wanted = [one.item_id for one in recommender.recommend("u3", k=9)]
    found = recommender.recommend_by_value("u3", Objective(2.0), k=9)
    assert [one.item_id for one in found] == wanted
    cheap = Filter(attributes={"price": Condition(max=4.0)})
    some = recommender.recommend_by_value("u3", Objective(1.0), k=9, where=cheap)
    assert [one.item_id for one in some] == [
        one.item_id for one in recommender.recommend("u3", k=9, where=cheap)
    ]
    mixed = recommender.recommend_by_value("u3", Objective(2.0), k=9, diversity=0.9)
    assert mixed[0] == found[0] and len(mixed) == 9
    assert [one.item_id for one in mixed] != wanted


def test_an_item_without_the_attribute_counts_nothing_and_says_so(folder):
    recommender = load(folder)
    item = recommender.recommend("u1", k=1)[0].item_id
    recommender.put_item(ItemRecord(item, attributes={"price": None}))
    objective = Objective(0.25, {"price": 1.0})
    (one,) = recommender.recommend_by_value("u1", objective, [item])
    assert set(one.parts) == {"probability"}
    assert one.value == pytest.approx(0.25 * one.probability)


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (Objective(), "weighs nothing"),
        (Objective(0.0, {"price": 0.0}), "weighs nothing"),
        (Objective(float("nan")), "weight of 'probability' is nan"),
        (Objective(1.0, {"price": float("inf")}), "weight of 'price' is inf"),
        (Objective(1.0, {"margin": 1.0}), "'margin' is unknown.*numbers: popularity, price"),
        (Objective(1.0, {"genres": 1.0}), "'genres' is not a number"),
        (Objective(1.0, {"probability": 1.0}), "'probability' cannot be weighed"),
        (Objective(1.0, {"price": 1e308}), "more than a float can hold"),
        (Objective(1.0, {f"a{n}": 1.0 for n in range(33)}), "weighs 33 attributes"),
    ],
)
def test_what_cannot_be_an_objective(recommender, objective, words):
    with pytest.raises(ConfigError, match=words):
        recommender.recommend_by_value("u1", objective)


def test_a_stored_recommender_follows_events(folder, tmp_path):
    stored = StoredRecommender(load(folder), open_store(f"sqlite:///{tmp_path / 'store.db'}"))
    best = stored.recommend("visitor", k=1)[0].item_id
    assert stored.probabilities("visitor", [best])[0] > 0
    stored.update([{"user_id": "visitor", "item_id": best}])
    assert stored.probabilities("visitor", [best]) == [0.0]
    assert stored.recommend_by_value("visitor", Objective(1.0), k=1)[0].item_id != best


def test_a_bundle_without_a_temperature_says_what_to_do(folder, tmp_path):
    manifest = read_bundle(folder).manifest
    old = tmp_path / "old"
    old.mkdir()
    for name in manifest.files:
        (old / name).write_bytes((folder / name).read_bytes())
    write_manifest(old, msgspec.structs.replace(manifest, calibration=msgspec.UNSET))
    assert "calibration" not in json.loads((old / "manifest.json").read_text())
    recommender = load(old)
    assert recommender.recommend("u1") == load(folder).recommend("u1")
    for ask in (
        lambda: recommender.probabilities("u1", ["i1"]),
        lambda: recommender.recommend_by_value("u1", Objective(1.0)),
    ):
        with pytest.raises(ConfigError, match="no temperature"):
            ask()
    wrong = msgspec.structs.replace(manifest.calibration, temperature=0.0)
    write_manifest(old, msgspec.structs.replace(manifest, calibration=wrong))
    with pytest.raises(BundleCorruptedError, match="temperature"):
        load(old)


def test_the_file_for_web_pages_has_the_temperature_too(small, folder, tmp_path):
    bundle = read_bundle(folder)
    if bundle.manifest.kind != "recurrent":
        pytest.skip("only this kind has such a file")
    write_drec(bundle, tmp_path / "student.drec")
    small_one = load(tmp_path / "student.drec")
    assert small_one.manifest.calibration == bundle.manifest.calibration
    items = small_one.item_ids
    assert sum(small_one.probabilities("stranger", items)) == pytest.approx(1, abs=1e-5)


class Known:
    """Logits of a world in which the next item is drawn from softmax(logits)."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits = logits

    def scores(self, histories):
        return self.logits[histories.users].copy()


@pytest.fixture(scope="module")
def world(small):
    """A data set whose held-out validation items are drawn from known logits, without what each user has had."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (small.users, small.catalogue_size)).astype(np.float32)
    asked = questions(small, "validation")
    items = small.items.copy()
    starts, _ = small.part_bounds("validation")
    for k, user in enumerate(asked.histories.users):
        own = logits[user].astype(np.float64)
        own[asked.histories.of(k)] = -np.inf
        shares = np.exp(own - own.max())
        items[starts[user]] = rng.choice(len(own), p=shares / shares.sum())
    from dataclasses import replace

    return replace(small, items=items), logits


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_the_temperature_of_a_known_world_is_found(world, temperature):
    dataset, logits = world
    found = calibrate(Known(logits * np.float32(temperature)), dataset)
    assert found.temperature == pytest.approx(temperature, rel=0.3)
    assert found.users == found.targets == len(questions(dataset, "validation").histories)
    if temperature == 4.0:  # far too sure of itself
        assert found.error_after < found.error_before
    # It is the likeliest one: every other one is less likely
    asked = questions(dataset, "validation")

    def loss(other: float) -> float:
        scores = Tempered(Known(logits * np.float32(temperature)), other).scores(asked.histories)
        total = 0.0
        for k in range(len(asked.histories)):
            row = scores[k].astype(np.float64)
            row[asked.histories.of(k)] = -np.inf
            total += np.logaddexp.reduce(row) - row[asked.targets[asked.offsets[k]]]
        return total

    best = loss(found.temperature)
    assert best < loss(found.temperature * 1.05) and best < loss(found.temperature / 1.05)


def test_scores_that_say_nothing_or_the_contrary(small):
    flat = np.zeros((small.users, small.catalogue_size), np.float32)
    assert calibrate(Known(flat), small).error_before < 0.1
    popular = small.popularity().astype(np.float32)
    against = np.tile(-popular, (small.users, 1))
    assert calibrate(Known(against), small).temperature == pytest.approx(64, rel=0.01)


def test_what_the_manifest_says(small, folder):
    found = read_bundle(folder).manifest.calibration
    assert isinstance(found, Calibration)
    assert 1 / 64 < found.temperature < 64
    assert found.users == len(questions(small, "validation").histories)
    assert 0 <= found.error_after <= 1 and 0 <= found.error_before <= 1
