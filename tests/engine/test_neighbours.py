"""The neighbours of the latest events in the engine: kernels against plain numpy, every search, late events, bad bundles."""

from __future__ import annotations

import json
import shutil

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec import load
from distilrec.bundle.format import read_bundle
from distilrec.bundle.manifest import (
    FORMAT_VERSION,
    GRAPH,
    WEIGHTS,
    WITH_NEIGHBOURS,
    WITH_REPEATS,
    SearchInfo,
)
from distilrec.engine import search as engine_search
from distilrec.engine.items import ItemTable
from distilrec.engine.loops import loops_of
from distilrec.engine.runtimes.kinds import make_runtime
from distilrec.engine.search import Added, ExactSearch, GraphSearch, QuantisedSearch, build_graph
from distilrec.engine.stored import StoredRecommender
from distilrec.errors import BundleCorruptedError
from distilrec.export.export import export_bundle
from distilrec.export.search import BundleConfig
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.stores.records import ItemRecord
from distilrec.stores.sqlite import SqliteStore
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import train_model
from tests.bundle.test_forged_bundles import forge_arrays, put, swap

CONFIG = RecurrentConfig(dim=8, max_history=12, neighbours=6, neighbour_events=4, repeat_events=0)
REPEATS = {
    "neighbours": {},
    "repeats": {"repeat_events": 7},
    "alone": {"neighbours": 0, "repeat_events": 3},
}
EVERYTHING, NOTHING = np.zeros(0, np.uint8), np.zeros(0, np.int32)


@pytest.fixture(scope="module", params=["numba", "numpy"])
def kernels(request):
    return loops_of(request.param)


def kept_events(items, events, kept):
    """What a state keeps, as a list of items plus 1 and then types."""
    latest = [int(item) + 1 for item in items[::-1][:kept]]
    kinds = [int(kind) for kind in events[::-1][:kept]]
    nothing = [0] * (kept - len(latest))
    return [*latest, *nothing, *kinds, *nothing]


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 12),
    cut=st.integers(0, 12),
    kept=st.integers(1, 6),
    dim=st.sampled_from([1, 3, 16]),
)
def test_a_state_keeps_the_latest_events(kernels, seed, count, cut, kept, dim):
    rng = np.random.default_rng(seed)
    items, events = rng.integers(2**24 - 1, size=count), rng.integers(3, size=count)
    items, events = items.astype(np.int32), events.astype(np.int32)
    rows = np.zeros((-(-2 * kept // dim), dim), np.float32)
    for some in (slice(0, cut), slice(cut, None)):
        kernels.keep_latest(rows, items[some], events[some], kept)
    assert rows.ravel()[: 2 * kept].tolist() == kept_events(items, events, kept)
    latest = np.full(2 * (kept - 1), 7, np.float32)
    known = kept_events(items, events, kept)
    for visit in range(kept + 1):
        kernels.read_latest(rows, kept, visit, 3, latest)
        types = [
            kind + 3 * (known[age] > 0 and age >= visit)
            for age, kind in enumerate(known[kept : 2 * kept - 1])
        ]
        assert latest.tolist() == [*known[: kept - 1], *types]


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 9), kept=st.integers(2, 6))
def test_what_is_kept_without_each_event(kernels, seed, count, kept):
    """All that counts for a score, which is one event less than a state keeps."""
    rng = np.random.default_rng(seed)
    items, events = rng.integers(50, size=count + 3), rng.integers(3, size=count + 3)
    items, events = items.astype(np.int32), events.astype(np.int32)
    rows = np.zeros((-(-2 * kept // 4), 4), np.float32)
    kernels.keep_latest(rows, items, events, kept)
    out = np.full((count, *rows.shape), 7, np.float32)
    kernels.latest_without_each(rows, kept, out)
    found, expected = np.zeros((2, 2 * (kept - 1)), np.float32)
    for j in range(count):
        left = np.arange(count + 3) != 3 + j
        again = np.zeros_like(rows)
        kernels.keep_latest(again, items[left], events[left], kept)
        kernels.read_latest(out[j], kept, kept, 3, found)
        kernels.read_latest(again, kept, kept, 3, expected)
        np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module", params=REPEATS)
def student(small, request):
    """With neighbours, with repeats of more events besides, and with repeats alone."""
    config = msgspec.structs.replace(CONFIG, **REPEATS[request.param])
    trained = train_model(config, small, TrainingConfig(epochs=3, batch_size=16), seed=0)
    with torch.no_grad():
        weights = trained.model.neighbours.repeats
        weights += torch.randn(weights.shape, generator=torch.Generator().manual_seed(0))
    return trained


@pytest.fixture(scope="module")
def exported(student, small, tmp_path_factory):
    """Its bundle for each kind of search."""
    folder = tmp_path_factory.mktemp("neighbours")
    for kind in ("exact", "quantised", "graph"):
        export_bundle(student, small, folder / kind, config=BundleConfig(kind, expansion_search=40))
    return folder


@pytest.fixture
def bundle(exported, tmp_path):
    return shutil.copytree(exported / "exact", tmp_path / "copy")


@pytest.mark.parametrize("kind", ["exact", "quantised", "graph"])
def test_a_bundle_answers_the_same_whatever_the_search(exported, monkeypatch, kind):
    """exact: by the scan of a large catalogue."""
    plain = load(exported / "exact")
    if kind == "exact":
        monkeypatch.setattr(engine_search, "_IN_CACHE", 0)
    other = load(exported / kind)
    assert other.manifest.search.recall == 1.0
    log = [{"user_id": "a", "item_id": f"i{n}", "event_type": "buy"} for n in (3, 9, 9, 20, 1, 2)]
    for recommender in (plain, other):
        recommender.put_item(ItemRecord("new", "New", {"genres": "g1|g2", "price": 3.0}))
        recommender.update([*log, {"user_id": "b", "item_id": "new"}])
    for user in ("a", "b", "u1", "u5", "nobody"):
        for k in (1, 10, 99):
            ours, theirs = other.recommend(user, k=k), plain.recommend(user, k=k)
            assert [one.item_id for one in ours] == [one.item_id for one in theirs]
            np.testing.assert_allclose(
                [one.score for one in ours], [one.score for one in theirs], rtol=1e-4, atol=1e-4
            )
        asked = plain.item_ids[::5]
        ranked = {one.item_id: one.score for one in other.recommend(user, asked)}
        whole = {one.item_id: one.score for one in plain.recommend(user, k=99, exclude_seen=False)}
        for item in asked:
            assert ranked[item] == pytest.approx(whole[item], abs=1e-4)


def test_the_term_counts(exported, student):
    """The bundle's answers are others than those without it."""
    bundle = read_bundle(exported / "exact")
    runtime = make_runtime(bundle)
    state, nobody = runtime.new_state(), np.zeros(8, np.float32)
    runtime.fold(state, np.array([3, 4], np.int32), np.zeros(2, np.int32))
    query = runtime.query(state, nobody)
    term = student.model.neighbours
    assert query[8 : 8 + term.events].tolist() == [5, 4, *[0] * (term.events - 2)]
    without = query.copy()
    without[8:] = 0
    added = runtime.scores(query) - runtime.scores(without)
    moved = {*term.items[[3, 4]].unique().tolist(), *([3, 4] if term.repeats.numel() else [])}
    assert set(np.flatnonzero(added).tolist()) <= moved
    assert np.count_nonzero(added) > (3 if term.items.numel() else 1)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1_000), k=st.integers(1, 30))
def test_every_search_takes_what_a_user_adds(kernels, tmp_path_factory, seed, k):
    """Above all items that the graph, which knows nothing of it, finds far away."""
    rng = np.random.default_rng(seed)
    items = ItemTable(
        rng.normal(size=(2_000, 8)).astype(np.float32), rng.normal(size=2_000).astype(np.float32)
    )
    info = SearchInfo("graph", connectivity=16, expansion_add=128, expansion_search=400)
    file = tmp_path_factory.mktemp("graph") / GRAPH
    build_graph(items.vectors, items.biases, info, file)
    query = rng.normal(size=8).astype(np.float32)
    far = np.argsort(items.vectors @ query)[:20].astype(np.int32)
    biases = items.biases.copy()
    biases[far] += 20
    seen = far[:3]
    own, exact = items.vectors @ query + items.biases, items.vectors @ query + biases
    exact[seen] = -np.inf
    best = np.argsort(-exact)[:k]
    for search in (
        ExactSearch(items, kernels),
        QuantisedSearch(items, kernels),
        GraphSearch(items, file, info, kernels),
    ):
        for mask in (EVERYTHING, np.ones(2_000, np.uint8)):
            found, scores = search.best(query, seen, mask, k, Added(biases, far))
            np.testing.assert_allclose(scores, exact[found], rtol=1e-4, atol=1e-4)
            assert {*best.tolist()} & {*far.tolist()} <= {*found.tolist()}
            if isinstance(search, ExactSearch) or (
                k <= 17 and not isinstance(search, GraphSearch)  # which now and then misses one
            ):
                np.testing.assert_allclose(scores, exact[best], rtol=1e-4, atol=1e-4)
        # without it, the table's own biases count again
        found, scores = search.best(query, NOTHING, EVERYTHING, 1)
        np.testing.assert_allclose(scores, own[found], rtol=1e-4, atol=1e-4)
        if not isinstance(search, GraphSearch):  # which now and then misses the best
            np.testing.assert_allclose(scores, own.max(), rtol=1e-4, atol=1e-4)


def test_late_events_are_folded_in_their_place(bundle, tmp_path):
    store = SqliteStore(tmp_path / "store.db")
    live = StoredRecommender(load(bundle), store)
    log = [
        {"user_id": "a", "item_id": f"i{n}", "timestamp": 1.7e9 + 60 * place, "event_id": f"{n}"}
        for place, n in enumerate((3, 9, 20, 1, 2, 7))
    ]
    for n in (0, 2, 5, 1, 3, 4, 4):  # late ones, and one twice
        live.update([log[n]])
        live.recommend("a")
    ordered = load(bundle)
    ordered.update([{name: one[name] for name in ("user_id", "item_id")} for one in log])
    for ours, theirs in zip(live.recommend("a", k=99), ordered.recommend("a", k=99), strict=True):
        assert ours.item_id == theirs.item_id
        assert ours.score == pytest.approx(theirs.score, abs=1e-5)
    store.close()


@pytest.mark.parametrize("max_events", [2, 3, 10])
def test_explanations_where_few_events_are_remembered(bundle, max_events):
    """The state knows more events than are remembered, and without one of these an older one counts."""
    log = [{"user_id": "a", "item_id": f"i{n}"} for n in (3, 9, 20, 1, 2, 7, 11)]
    short, whole = load(bundle, max_events=max_events), load(bundle)
    for recommender in (short, whole):
        recommender.update(log)
    expected = {one.item_id: one.contribution for one in whole.explain("a", "i30", k=99)}
    found = short.explain("a", "i30", k=99)
    assert len(found) == min(max_events, len(log))
    for item, contribution, _ in found:
        assert contribution == pytest.approx(expected[item], abs=1e-4)


def test_a_bundle_with_neighbours_has_a_format_of_its_own(bundle, student, finished_run):
    expected = WITH_REPEATS if student.model.neighbours.repeats.numel() else WITH_NEIGHBOURS
    assert json.loads((bundle / "manifest.json").read_text())["format_version"] == expected
    assert read_bundle(finished_run.bundle).manifest.format_version == FORMAT_VERSION


@pytest.mark.parametrize("student", ["repeats"], indirect=True)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("neighbours"), "no table of neighbours"),
        (lambda arrays: arrays.pop("neighbour_values"), "has no array 'neighbour_values'"),
        (lambda arrays: arrays.pop("neighbour_units"), "has no array 'neighbour_units'"),
        (lambda arrays: arrays.pop("neighbour_ages"), "has no array 'neighbour_ages'"),
        (put("neighbours", (0, -1), 10**6), "'neighbours' holds numbers that it must not"),
        (put("neighbours", (0, 0), -1), "'neighbours' holds numbers that it must not"),
        (put("neighbours", (0, 0), 41), "neighbours out of order"),
        (swap("neighbours", lambda a: a[:, :-1]), "'neighbour_values' is"),
        (swap("neighbours", lambda a: np.vstack([a, a])), "no table of neighbours"),
        (swap("neighbours", lambda a: a.astype(np.int64)), "'neighbours' is .* int64"),
        (swap("neighbour_values", lambda a: a.astype(np.int32)), "'neighbour_values' is .* int32"),
        (swap("neighbour_ages", lambda a: a[:1]), "'neighbour_ages' is"),
        (swap("neighbour_ages", lambda a: a * 3), "does not reproduce the golden answers"),
        (put("neighbour_units", 0, np.nan), "'neighbour_units' holds NaN"),
        (swap("repeat_weights", lambda a: a[:1]), "'repeat_weights' is"),
        (swap("repeat_weights", np.ravel), "'repeat_weights' is"),
        (put("repeat_weights", (0, 0), np.inf), "'repeat_weights' holds"),
    ],
)
def test_arrays_that_make_no_sense(bundle, change, message):
    forge_arrays(bundle, WEIGHTS, change)
    with pytest.raises(BundleCorruptedError, match=message) as caught:
        load(bundle)
    assert caught.value.fix


def test_settings_of_bundles_without_it_are_as_they_were(small):
    plain = msgspec.structs.replace(CONFIG, neighbours=0, repeat_events=0)
    trained = train_model(plain, small, TrainingConfig(epochs=1, batch_size=16), seed=0)
    assert not any(name.startswith("neighbour") for name in trained.model.state_dict())
    assert not any(name.startswith("neighbour") for name in trained.model.arrays())
