"""Searching large catalogues: the scan in integers and the graph against the exact scan, and bundles mapped into memory."""

from __future__ import annotations

import mmap
import shutil
import sys
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distilrec import load
from distilrec.bundle import format as bundle_format
from distilrec.bundle.format import read_bundle
from distilrec.bundle.manifest import CATALOGUE, GRAPH, FileEntry, SearchInfo
from distilrec.engine import kernels
from distilrec.engine import search as engine_search
from distilrec.engine.items import ItemTable
from distilrec.engine.search import ExactSearch, GraphSearch, QuantisedSearch, build_graph
from distilrec.errors import BundleCorruptedError, ConfigError, MissingExtraError
from distilrec.export.export import export_bundle
from distilrec.export.search import BundleConfig, choose_search
from distilrec.networks.mlp import MlpConfig
from distilrec.stores.records import ItemRecord
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import load_model, train_model

pytestmark = pytest.mark.slow

EVERYTHING = np.zeros(0, np.uint8)
NOTHING = np.zeros(0, np.int32)
GRAPH_INFO = SearchInfo("graph", connectivity=16, expansion_add=128, expansion_search=128)


def table(seed, items, dim):
    """Item vectors in clusters, popular items with larger biases."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, dim))
    vectors = centres[rng.integers(20, size=items)] + 0.5 * rng.normal(size=(items, dim))
    return ItemTable(
        vectors.astype(np.float32), np.sort(rng.normal(size=items))[::-1].astype(np.float32)
    )


def exact(items, query, seen, mask, k):
    """The plain way."""
    scores = items.vectors.astype(np.float64) @ query + items.biases
    allowed = np.ones(items.count, bool) if not len(mask) else mask == 1
    allowed[seen] = False
    order = [item for item in np.argsort(-scores, kind="stable") if allowed[item]]
    return np.array(order[:k], np.int32), scores


def rounding(items, query):
    """How far apart two sums in float32 may be: large terms of different signs leave a small sum."""
    return 1e-4 + 1e-6 * float((np.abs(items.vectors) @ np.abs(query)).max())


def assert_honest(found, scores, items, query, seen, mask):
    """Best first, each with its exact score, none that is left out."""
    np.testing.assert_allclose(
        scores,
        items.vectors[found] @ query + items.biases[found],
        rtol=1e-4,
        atol=rounding(items, query),
    )
    assert (np.diff(scores) <= 0).all()
    assert len(set(found.tolist())) == len(found)
    assert not set(found.tolist()) & set(seen.tolist())
    assert not len(mask) or (mask[found] == 1).all()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1_000),
    items=st.sampled_from([1, 7, 64, 400, 9_000]),
    dim=st.sampled_from([1, 5, 16, 40]),
    k=st.integers(1, 30),
    passing=st.sampled_from([None, 0.0, 0.02, 0.5]),
    scale=st.sampled_from([0.0, 1.0, 1e-20, 1e6]),
)
def test_the_scans_find_what_is_best(seed, items, dim, k, passing, scale):
    rng = np.random.default_rng(seed)
    known = table(seed, items, dim)
    seen = rng.integers(items, size=5).astype(np.int32)
    mask = EVERYTHING if passing is None else (rng.random(items) < passing).astype(np.uint8)
    query = (scale * rng.normal(size=dim)).astype(np.float32)
    best, exact_scores = exact(known, query, seen, mask, k)
    for search in (ExactSearch(known, kernels), QuantisedSearch(known, kernels)):
        found, scores = search.best(query, seen, mask, k)
        assert_honest(found, scores, known, query, seen, mask)
        assert len(found) == len(best)
        # Equal up to rounding: a different item may only stand where its score is as good.
        np.testing.assert_allclose(
            exact_scores[found], exact_scores[best], rtol=1e-4, atol=rounding(known, query)
        )


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    known = table(1, 30_000, 16)
    file = tmp_path_factory.mktemp("graph") / GRAPH
    build_graph(known.vectors, known.biases, GRAPH_INFO, file)
    return known, file


@pytest.mark.parametrize("passing", [None, 0.9, 0.1, 0.001])
@pytest.mark.parametrize("seen_near", [0, 12, 3_000])
def test_the_graph_finds_nearly_all(graph, passing, seen_near):
    known, file = graph
    search = GraphSearch(known, file, GRAPH_INFO, kernels)
    rng = np.random.default_rng(0)
    hits = wanted = 0
    for _ in range(40):
        query = (known.vectors[rng.integers(known.count)] + 0.3 * rng.normal(size=16)).astype(
            np.float32
        )
        seen = exact(known, query, NOTHING, EVERYTHING, seen_near)[0]
        mask = (
            EVERYTHING if passing is None else (rng.random(known.count) < passing).astype(np.uint8)
        )
        found, scores = search.best(query, seen, mask, 10)
        assert_honest(found, scores, known, query, seen, mask)
        best, _ = exact(known, query, seen, mask, 10)
        assert len(found) == len(best)
        hits += len(np.intersect1d(found, best))
        wanted += len(best)
    assert hits >= 0.95 * wanted


def test_the_graph_and_the_scan_follow_new_items(graph):
    known, file = graph
    for search in (
        lambda items: QuantisedSearch(items, kernels),
        lambda items: GraphSearch(items, file, GRAPH_INFO, kernels),
    ):
        items = ItemTable(known.vectors.copy(), known.biases.copy())
        searched = search(items)
        query = np.ones(16, np.float32)
        for place in range(known.count, known.count + 100):
            items.put(place, np.full(16, 100.0 + place, np.float32), 0.0)
            searched.put_item(place)
            assert searched.best(query, NOTHING, EVERYTHING, 3)[0][0] == place
        items.put(
            known.count, np.full(16, -1.0, np.float32), 0.0
        )  # changed: no longer among the best
        searched.put_item(known.count)
        assert known.count not in searched.best(query, NOTHING, EVERYTHING, 100)[0]
        old = int(
            exact(known, -query, NOTHING, EVERYTHING, 1)[0][0]
        )  # far away from this query, until it changes
        items.put(old, np.full(16, 1e5, np.float32), 0.0)
        searched.put_item(old)
        found = searched.best(query, NOTHING, EVERYTHING, 100)[0]
        assert found[0] == old
        assert len(set(found.tolist())) == 100


@pytest.fixture
def searched(finished_run, small, tmp_path):
    """The small run's student, exported for each kind of search."""
    student = load_model(finished_run.folder / "student", small)
    for kind in ("exact", "quantised", "graph"):
        export_bundle(
            student, small, tmp_path / kind, config=BundleConfig(kind, expansion_search=40)
        )
    return tmp_path


@pytest.mark.parametrize("kind", ["quantised", "graph"])
def test_a_bundle_answers_the_same_whatever_the_search(searched, small, kind):
    recommender, plain = load(searched / kind), load(searched / "exact")
    search = recommender.manifest.search
    assert (search.kind, search.recall, search.queries) == (
        kind,
        1.0,
        small.users,
    )  # small enough to find everything
    new = ItemRecord("new", "New", {"genres": "g1|g2", "price": 3.0})
    for engine in (recommender, plain):
        engine.put_item(new)
        engine.update(
            [{"user_id": "u1", "item_id": "new"}, {"user_id": "stranger", "item_id": "i3"}]
        )
    for user in ("u1", "u5", "stranger", "nobody"):
        for k in (1, 10, 99):
            ours, theirs = recommender.recommend(user, k=k), plain.recommend(user, k=k)
            assert [a.item_id for a in ours] == [a.item_id for a in theirs]
            np.testing.assert_allclose(
                [a.score for a in ours], [a.score for a in theirs], rtol=1e-4, atol=1e-4
            )
    assert [c.item_id for c in recommender.explain("u1", "i3")] == [
        c.item_id for c in plain.explain("u1", "i3")
    ]


def test_the_search_can_be_chosen_when_loading(searched):
    for kind in ("exact", "quantised", "graph"):
        answers = load(searched / "graph", search=kind).recommend("u1")
        assert [a.item_id for a in answers] == [
            a.item_id for a in load(searched / "exact").recommend("u1")
        ]
    with pytest.raises(ConfigError, match="has no graph to search by"):
        load(searched / "quantised", search="graph")


def test_a_large_catalogue_is_scanned_by_rows(searched, monkeypatch):
    plain = load(searched / "exact")
    monkeypatch.setattr(engine_search, "_IN_CACHE", 0)
    rows = load(searched / "exact")
    new = ItemRecord("new", "New", {"genres": "g1|g2", "price": 3.0})
    for engine in (rows, plain):
        engine.put_item(new)
        engine.update([{"user_id": "u1", "item_id": "new"}])
    for user in ("u1", "u5", "nobody"):
        ours, theirs = rows.recommend(user, k=99), plain.recommend(user, k=99)
        assert [a.item_id for a in ours] == [a.item_id for a in theirs]
        np.testing.assert_allclose(
            [a.score for a in ours], [a.score for a in theirs], rtol=1e-4, atol=1e-4
        )


def test_a_graph_without_usearch_says_what_to_install(searched, monkeypatch):
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(MissingExtraError, match="usearch") as caught:
        load(searched / "graph")
    assert "distilrec[ann]" in caught.value.fix
    assert load(searched / "graph", search="quantised").recommend("u1")


def test_a_damaged_graph_is_refused(searched):
    file = searched / "graph" / GRAPH
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleCorruptedError, match=f"{GRAPH} has been edited"):
        read_bundle(searched / "graph")
    file.unlink()
    with pytest.raises(BundleCorruptedError, match=f"{GRAPH} is missing"):
        read_bundle(searched / "graph")


def test_exporting_again_without_a_graph_removes_it(searched, finished_run, small):
    student = load_model(finished_run.folder / "student", small)
    export_bundle(student, small, searched / "graph", config=BundleConfig("exact"))
    assert not (searched / "graph" / GRAPH).exists()
    assert load(searched / "graph").manifest.search == SearchInfo()


def test_auto_goes_by_the_size_of_the_catalogue(monkeypatch):
    def auto(kind, items):
        return choose_search(BundleConfig(), kind, items).kind

    assert [auto("recurrent", items) for items in (100, 50_000, 50_001, 200_001)] == [
        "exact",
        "exact",
        "quantised",
        "graph",
    ]
    assert auto("soft_tree", 10_000_000) == "exact"
    monkeypatch.setattr("distilrec.export.search.find_spec", lambda name: None)
    assert auto("recurrent", 200_001) == "quantised"


def test_only_the_recurrent_student_is_searched_otherwise(small, tmp_path):
    student = train_model(MlpConfig(dim=4, hidden=4), small, TrainingConfig(epochs=1), seed=0)
    with pytest.raises(ConfigError, match="kind mlp cannot be searched by"):
        export_bundle(student, small, tmp_path, config=BundleConfig("graph"))
    export_bundle(student, small, tmp_path)
    with pytest.raises(ConfigError, match="kind mlp cannot be searched by"):
        load(tmp_path, search="quantised")


# Bundles mapped into memory


@pytest.fixture
def mapped(monkeypatch):
    """Every file counts as large."""
    monkeypatch.setattr(bundle_format, "MAPPED_FROM", 0)


def answers(recommender, users=("u1", "u2", "u9", "stranger")):
    return [recommender.recommend(user) for user in users]


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("kind", ["exact", "quantised", "graph"])
def test_a_mapped_bundle_answers_the_same(searched, kind, monkeypatch):
    recommender = load(searched / kind)
    assert isinstance(recommender._runtime._items._vectors.base.base.obj, mmap.mmap)
    recommender.update([{"user_id": "u1", "item_id": "i7"}])
    recommender.put_item(ItemRecord("new", "New", {"genres": "g1", "price": 3.0}))
    monkeypatch.setattr(bundle_format, "MAPPED_FROM", 10**12)
    plain = load(searched / kind)
    plain.update([{"user_id": "u1", "item_id": "i7"}])
    plain.put_item(ItemRecord("new", "New", {"genres": "g1", "price": 3.0}))
    assert answers(recommender) == answers(plain)


@pytest.mark.usefixtures("mapped")
def test_a_mapped_bundle_can_be_exported_again_while_it_serves(searched, finished_run, small):
    recommender = load(searched / "exact")
    before = answers(recommender)
    student = load_model(finished_run.folder / "baseline", small)
    other = replace(student, record=msgspec.structs.replace(student.record))
    export_bundle(other, small, searched / "exact", with_history=False)
    recommender.users.clear()
    assert answers(recommender) == before  # its files are still there for it
    assert answers(load(searched / "exact")) != before


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_damaged_arrays_are_read(bundle, data):
    """Even where the hash is right (somebody computed it anew), a file that makes no sense is refused as such."""
    folder = shutil.copytree(bundle, bundle.parent / "damaged", dirs_exist_ok=True)
    file = folder / CATALOGUE
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 600)))] = data.draw(
            st.integers(0, 255)
        )
    file.write_bytes(content)
    entry = FileEntry(bundle_format.hash_of(file), len(content))
    try:
        arrays = bundle_format._read_arrays(file, entry)
    except BundleCorruptedError:
        return
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
