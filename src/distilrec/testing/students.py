"""Tests that every kind of student must pass; a test class per kind inherits them.

They need the packages pytest and hypothesis, and run in the test suite that imports them:

    class TestMine(StudentContract):
        config = MineConfig(dim=8)

The kind must stand in both tables, `distilrec.networks.kinds.STUDENTS` and
`distilrec.engine.runtimes.kinds.RUNTIMES`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar, get_args

import msgspec
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distilrec.bundle.checks import Arrays
from distilrec.bundle.format import Bundle, encoded, read_bundle, write_bundle, write_manifest
from distilrec.bundle.manifest import HISTORY, WEIGHTS, FileEntry, SearchKind, hidden_in
from distilrec.data.dataset import Dataset, Histories
from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Feature, Schema
from distilrec.engine.embedding import embed_bag
from distilrec.engine.golden import user_of
from distilrec.engine.items import Floats, Places
from distilrec.engine.loops import RuntimeName, loops_of
from distilrec.engine.recommender import Recommender, load
from distilrec.engine.runtimes.kinds import RUNTIMES, make_runtime
from distilrec.engine.runtimes.runtime import Runtime
from distilrec.errors import BundleCorruptedError, ConfigError
from distilrec.export.export import export_bundle, holds
from distilrec.features.encoding import CategoricalEncoding, FeatureEncoder
from distilrec.files import write_whole
from distilrec.measure.asked import user_asked
from distilrec.networks.batches import prediction_batch
from distilrec.networks.kinds import STUDENTS
from distilrec.networks.sequence import TorchScorer
from distilrec.networks.student import Student, StudentSettings, kind_of
from distilrec.targets import Targets
from distilrec.testing.properties import of_contract
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import TrainedModel, train_model

LONGEST = 60  # events of a history
FIRST_TIME, LAST_TIME = 1.5e9, 1.7e9
_TOLERANCE = 1e-5
_COMMON = {"vectors", "biases", "user_table", "item_table"}
_EVERYTHING = np.zeros(0, np.uint8)
_RUNTIMES = get_args(RuntimeName)


def small_dataset(targets: Targets | None = None) -> Dataset:
    """Return a data set of 50 users and 32 items, two of which have no events. targets: what its
    events, of the types "view" and "buy", mean.
    """
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{item}", FIRST_TIME + 60 * n, str(rng.choice(["view", "buy"])))
        for user in range(50)
        for n, item in enumerate(rng.choice(30, rng.integers(4, 15), replace=False))
    ]
    users = {
        "user_id": [f"u{user}" for user in range(50)],
        "age": [None if user % 7 == 0 else float(rng.integers(18, 80)) for user in range(50)],
        "country": [str(rng.choice(["de", "fr", "pl"])) for _ in range(50)],
    }
    items = {
        "item_id": [f"i{item}" for item in range(32)],
        "genres": [f"g{item % 4}|h{item % 3}" for item in range(32)],
        "price": [float(rng.uniform(1, 9)) for _ in range(32)],
    }
    return prepare_dataset(
        pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "event_type"], orient="row"),
        Schema(
            timestamp="timestamp",
            event_type="event_type",
            user_key="user_id",
            item_key="item_id",
            user_features=(Feature("age", "numeric"), Feature("country", "categorical")),
            item_features=(Feature("genres", "multi"), Feature("price", "numeric")),
        ),
        users=pl.DataFrame(users),
        items=pl.DataFrame(items),
        name="small",
        targets=targets,
    )


class StudentContract:
    """The contract between a student in torch and its runtime in the engine: both answer the same.

    A subclass says in `config` which student it is. Sizes are best small.
    """

    config: ClassVar[StudentSettings]

    @pytest.fixture(scope="class")
    @classmethod
    def dataset(cls) -> Dataset:
        """Return the data set on which the student is trained."""
        return small_dataset()

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, dataset: Dataset) -> TrainedModel:
        """Return a student that has learned for two epochs."""
        config: Any = msgspec.structs.replace(cls.config, max_history=LONGEST + 1)
        return train_model(config, dataset, TrainingConfig(epochs=2, batch_size=16), seed=0)

    @pytest.fixture(scope="class")
    @classmethod
    def student(cls, trained: TrainedModel) -> Student:
        """Return the student itself."""
        assert isinstance(trained.model, Student)
        return trained.model

    @pytest.fixture(scope="class")
    @classmethod
    def folder(
        cls, trained: TrainedModel, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
    ) -> Path:
        """Return the folder of its bundle: look, do not change."""
        folder = tmp_path_factory.mktemp("bundle")
        export_bundle(trained, dataset, folder)
        return folder

    @pytest.fixture
    def bundle(self, folder: Path) -> Bundle:
        """Return its bundle."""
        return read_bundle(folder)

    @pytest.fixture(params=_RUNTIMES)
    def runtime(self, bundle: Bundle, request: pytest.FixtureRequest) -> Runtime:
        """Return a runtime of its bundle, compiled or in numpy."""
        return make_runtime(bundle, "exact", loops_of(request.param))

    @pytest.fixture(params=_RUNTIMES)
    def recommender(self, folder: Path, request: pytest.FixtureRequest) -> Recommender:
        """Return a recommender of its bundle; loading it checks the golden answers."""
        return load(folder, runtime=request.param)

    # Tables and settings

    def test_both_tables_have_the_kind(self) -> None:
        kind = kind_of(self.config)
        assert STUDENTS[kind].settings is type(self.config)
        assert "max_history" in self.config.__struct_fields__
        assert "exact" in RUNTIMES[kind].searches

    def test_every_value_of_the_search_space_is_allowed(self) -> None:
        for name, values in STUDENTS[kind_of(self.config)].space.items():
            assert type(getattr(self.config, name)) is type(values.low)
            whole = isinstance(values.high, int)
            highest = values.high if whole else float(np.nextafter(values.high, values.low))
            for value in (values.low, highest):
                changes: Any = {name: value}
                assert getattr(msgspec.structs.replace(self.config, **changes), name) == value

    # Torch equals engine

    @of_contract
    @given(data=st.data())
    def test_states_and_scores(
        self, student: Student, dataset: Dataset, bundle: Bundle, runtime: Runtime, data: Any
    ) -> None:
        one = data.draw(histories(dataset))
        with torch.inference_mode():
            batch = prediction_batch(one, dataset.catalogue_size, student.max_history)
            encoded = student.encode(batch, student.items.vectors())[batch.targets == 0]
        user = asking(runtime, bundle, dataset, one)
        state = folded(runtime, one.items, one.events)
        query = runtime.query(state, user)
        width = encoded.shape[1]
        np.testing.assert_allclose(query[:width], encoded[0].numpy(), _TOLERANCE, _TOLERANCE)
        assert not query[width:].any()
        expected = TorchScorer(student).scores(one)[0]
        np.testing.assert_allclose(runtime.scores(query), expected, _TOLERANCE, _TOLERANCE)
        several = np.array([3, 0, dataset.catalogue_size - 1], np.int32)
        np.testing.assert_allclose(
            runtime.scores_of(state[None], user, several)[0],
            expected[several],
            _TOLERANCE,
            _TOLERANCE,
        )
        stepwise = runtime.new_state()
        for n in range(len(one.items)):
            runtime.fold(stepwise, one.items[n : n + 1], one.events[n : n + 1])
        np.testing.assert_allclose(stepwise, state, _TOLERANCE, _TOLERANCE)

    @of_contract
    @given(data=st.data())
    def test_the_best_are_the_top_of_the_scores(
        self, student: Student, dataset: Dataset, bundle: Bundle, runtime: Runtime, data: Any
    ) -> None:
        one = data.draw(histories(dataset))
        k = data.draw(st.integers(1, dataset.catalogue_size))
        masked = data.draw(st.booleans())
        mask = np.arange(dataset.catalogue_size) % 3 > 0
        state = folded(runtime, one.items, one.events)
        user = asking(runtime, bundle, dataset, one)
        seen = np.unique(one.items)
        found, scores = runtime.best(
            state, user, seen, mask.astype(np.uint8) if masked else _EVERYTHING, k
        )
        expected = TorchScorer(student).scores(one)[0]
        allowed = np.setdiff1d(np.flatnonzero(mask | (not masked)), seen)
        assert len(found) == min(k, len(allowed)) == len(set(found.tolist()))
        assert set(found.tolist()) <= set(allowed.tolist())
        np.testing.assert_allclose(scores, expected[found], _TOLERANCE, _TOLERANCE)
        top = np.sort(expected[allowed])[::-1][:k]
        np.testing.assert_allclose(scores, top, _TOLERANCE, _TOLERANCE)

    @pytest.mark.parametrize(("count", "older"), [(1, 0), (2, 0), (9, 0), (2, 7), (9, 7)])
    def test_states_without_each_event(
        self, dataset: Dataset, bundle: Bundle, runtime: Runtime, count: int, older: int
    ) -> None:
        rng = np.random.default_rng(count)
        items = rng.integers(dataset.catalogue_size, size=older + count).astype(np.int32)
        events = rng.integers(len(dataset.info.event_types), size=len(items)).astype(np.int32)
        state = folded(runtime, items, events) if older else None
        found = runtime.without_each(items[older:], events[older:], state)
        assert found.shape == (count, *runtime.new_state().shape)
        nothing = np.zeros(bundle.manifest.dim, np.float32)
        everything = np.arange(dataset.catalogue_size, dtype=np.int32)
        for n in range(count):
            kept = np.arange(len(items)) != older + n
            expected = folded(runtime, items[kept], events[kept])
            np.testing.assert_allclose(
                runtime.scores_of(found[n : n + 1], nothing, everything),
                runtime.scores_of(expected[None], nothing, everything),
                1e-4,
                1e-4,
            )

    def test_a_new_item_is_scored_by_its_vector(
        self, dataset: Dataset, bundle: Bundle, runtime: Runtime
    ) -> None:
        """As many items as the table has no room for; each is the copy of one that is there.

        The user's items have no training rows: the others may move scores by more than vectors.
        """
        cold = np.arange(dataset.info.warm_items, dataset.catalogue_size, dtype=np.int32)
        state = folded(runtime, np.tile(cold, 2), np.zeros(2 * len(cold), np.int32))
        nothing = np.zeros(bundle.manifest.dim, np.float32)
        vectors, biases = bundle.weights.vectors, bundle.weights.biases
        copied = np.arange(100) % dataset.catalogue_size
        before = runtime.scores(runtime.query(state, nothing))
        for n, item in enumerate(copied):
            runtime.put_item(dataset.catalogue_size + n, vectors[item].copy(), float(biases[item]))
        after = runtime.scores(runtime.query(state, nothing))
        np.testing.assert_allclose(after[: len(before)], before, _TOLERANCE, _TOLERANCE)
        np.testing.assert_allclose(after[len(before) :], before[copied], _TOLERANCE, _TOLERANCE)
        items, _ = runtime.best(state, nothing, np.zeros(0, np.int32), _EVERYTHING, len(after))
        assert sorted(items.tolist()) == list(range(len(after)))

    # Export

    def test_a_bundle_has_the_arrays_of_the_kind(
        self, trained: TrainedModel, folder: Path, bundle: Bundle
    ) -> None:
        kind = kind_of(self.config)
        assert bundle.manifest.kind == kind
        own = RUNTIMES[kind].shapes(bundle.manifest, bundle.weights.of_kind)
        whole = RUNTIMES[kind].whole_numbers(bundle.manifest, bundle.weights.of_kind)
        assert set(bundle.weights.pack()) == _COMMON | set(own) | set(whole)
        assert not _COMMON & set(own)
        assert holds(folder, trained)

    def test_an_export_is_reproducible(
        self, trained: TrainedModel, dataset: Dataset, bundle: Bundle, tmp_path: Path
    ) -> None:
        again = export_bundle(trained, dataset, tmp_path, with_history=False)
        assert again.model_version == bundle.manifest.model_version
        assert HISTORY not in again.files

    def test_golden_answers(self, bundle: Bundle, runtime: Runtime) -> None:
        assert {len(golden.items) for golden in bundle.manifest.golden} >= {0, 1, 5}
        for golden in bundle.manifest.golden:
            items = np.array(golden.items, np.int32)
            state = folded(runtime, items, np.array(golden.events, np.int32))
            user = user_of(golden, bundle, runtime)
            hidden = np.array(hidden_in(golden, bundle.manifest), np.int32)
            found, scores = runtime.best(state, user, hidden, _EVERYTHING, len(golden.top_items))
            np.testing.assert_allclose(scores, golden.top_scores, 1e-4, 1e-4)
            every = runtime.scores(runtime.query(state, user))
            np.testing.assert_allclose(every[found], golden.top_scores, 1e-4, 1e-4)

    def test_other_weights_do_not_give_the_golden_answers(
        self, bundle: Bundle, tmp_path: Path
    ) -> None:
        changed = {**bundle.weights.pack(), "vectors": bundle.weights.vectors[::-1]}
        rewrite(bundle, changed, tmp_path)
        with pytest.raises(BundleCorruptedError, match="golden answers"):
            load(tmp_path)

    @pytest.mark.parametrize("damage", ["missing", "cut", "other type", "not finite"])
    def test_damaged_arrays_are_refused(self, bundle: Bundle, damage: str, tmp_path: Path) -> None:
        for name, array in bundle.weights.pack().items():
            if not array.size:
                continue
            changed = bundle.weights.pack()
            match damage:
                case "missing":
                    del changed[name]
                case "cut":
                    changed[name] = array[..., :-1]
                case "other type":
                    changed[name] = array.astype(np.float64)
                case _ if np.issubdtype(array.dtype, np.integer):
                    changed[name] = np.full_like(array, np.iinfo(array.dtype).max)
                case _:
                    changed[name] = np.full_like(array, np.nan)
            rewrite(bundle, changed, tmp_path)
            with pytest.raises(BundleCorruptedError) as caught:
                load(tmp_path)
            assert str(tmp_path) in str(caught.value), name

    def test_searches(self, trained: TrainedModel, dataset: Dataset, folder: Path) -> None:
        """Those of the kind answer, with exact scores; the others are refused."""
        exact = load(folder)
        every = {
            answer.item_id: answer.score for answer in exact.recommend("u1", k=999, now=LAST_TIME)
        }
        for search in get_args(SearchKind):
            if search not in RUNTIMES[kind_of(self.config)].searches:
                with pytest.raises(ConfigError, match=f"cannot be searched by {search!r}"):
                    load(folder, search=search)
            elif search != "graph":  # a graph is a file of its own
                answers = load(folder, search=search).recommend("u1", k=5, now=LAST_TIME)
                for answer in answers:
                    assert answer.score == pytest.approx(every[answer.item_id], abs=1e-4)

    # Through the recommender

    def test_recommendations_are_the_top_of_the_scores(
        self, student: Student, dataset: Dataset, recommender: Recommender
    ) -> None:
        info = dataset.info
        for user in range(0, dataset.users, 7):
            one = dataset.histories(np.array([user]), dataset.offsets[user + 1 : user + 2])
            scores = TorchScorer(student).scores(one)[0].astype(np.float64)
            if not info.repeats:  # where users choose again, what they have had is an answer too
                scores[one.items] = -np.inf
            assert one.now is not None
            answers = recommender.recommend(info.user_ids[user], k=5, now=float(one.now[0]))
            expected = [info.item_ids[item] for item in np.argsort(-scores, kind="stable")[:5]]
            assert [answer.item_id for answer in answers] == expected
            np.testing.assert_allclose(
                [answer.score for answer in answers],
                np.sort(scores)[::-1][:5],
                _TOLERANCE,
                _TOLERANCE,
            )

    @pytest.mark.parametrize("events", [1, 2, 9])
    def test_explanations_are_exact(
        self, dataset: Dataset, recommender: Recommender, events: int
    ) -> None:
        """Each contribution is the score minus that of a user without this one event."""
        items, asked = dataset.info.item_ids[3 : 3 + events], dataset.info.item_ids[20]
        log = [
            {
                "user_id": "a",
                "item_id": item,
                "event_type": "buy" if n % 2 else "view",
                "timestamp": FIRST_TIME + 4.0**n,
            }
            for n, item in enumerate(items)
        ]
        now = FIRST_TIME + 5.0**events
        recommender.update(log)
        (whole,) = recommender.recommend("a", [asked], now=now)
        contributions = recommender.explain("a", asked, k=99, now=now)
        assert sorted(one.place for one in contributions) == list(range(events))
        for item, contribution, place in contributions:
            assert item == items[place]
            other = f"without {place}"
            recommender.update(
                {**event, "user_id": other} for n, event in enumerate(log) if n != place
            )
            (without,) = recommender.recommend(other, [asked], now=now)
            assert contribution == pytest.approx(whole.score - without.score, abs=2e-5)
        sizes = [abs(one.contribution) for one in contributions]
        assert sizes == sorted(sizes, reverse=True)

    def test_a_cold_item_scores_like_a_new_one_with_its_features(
        self, dataset: Dataset, recommender: Recommender, bundle: Bundle
    ) -> None:
        cold = len(dataset.info.item_ids) - 1
        features = {"genres": [f"g{cold % 4}", f"h{cold % 3}"], "price": 3.0}
        recommender.add_item("one", features)
        recommender.add_item("two", features)
        one, two = recommender.recommend("u1", ["one", "two"], now=LAST_TIME)
        assert one.score == two.score
        assert {"one", "two"} <= {answer.item_id for answer in recommender.recommend("u1", k=999)}


def histories(dataset: Dataset) -> st.SearchStrategy[Histories]:
    """Return a strategy of the history of one user, with the time of the question."""
    gap = st.one_of(st.floats(0, 100), st.floats(0, 5e7))  # seconds
    event = st.tuples(
        st.integers(0, dataset.catalogue_size - 1),
        st.integers(0, len(dataset.info.event_types) - 1),
        gap,
    )

    encoder, told = dataset.info.context_encoder, dataset.context is not None

    def made(
        drawn: tuple[int, list[tuple[int, int, float]], float, dict[str, object]],
    ) -> Histories:
        user, events, wait, context = drawn
        times = FIRST_TIME + np.cumsum(np.array([gap for _, _, gap in events], np.float64))
        return Histories(
            np.array([user]),
            np.array([0, len(events)]),
            np.array([item for item, _, _ in events], np.int32),
            np.array([event_type for _, event_type, _ in events], np.int32),
            times,
            times.max(initial=FIRST_TIME, keepdims=True) + wait,
            encoder.encode_rows([context]) if told else None,
        )

    users = st.integers(0, dataset.users - 1)
    drawn = st.tuples(users, st.lists(event, max_size=LONGEST), gap, contexts(encoder))
    return drawn.map(made)


def contexts(encoder: FeatureEncoder) -> st.SearchStrategy[dict[str, object]]:
    """Return a strategy of contexts: values of the training and others, each left out at times."""
    values: dict[str, st.SearchStrategy[object]] = {
        one.name: st.sampled_from((*one.values, "another", None))
        if isinstance(one, CategoricalEncoding)
        else st.none() | st.floats(-1e6, 1e6)
        for one in encoder.encodings
    }
    return st.fixed_dictionaries({}, optional=values)


def folded(runtime: Runtime, items: Places, events: Places) -> Floats:
    """Return the state after these events."""
    state = runtime.new_state()
    runtime.fold(state, items, events)
    return state


def user_vector(bundle: Bundle, dataset: Dataset, user: int) -> Floats:
    """Return U f_u of a user of the data set, (dim,)."""
    features = dataset.user_features
    pairs = zip(features.columns[user], features.weights[user], strict=True)
    return embed_bag(pairs, bundle.weights.user_table)


def asking(runtime: Runtime, bundle: Bundle, dataset: Dataset, one: Histories) -> Floats:
    """Return what stands for U f_u when a user asks, (dim,)."""
    return user_asked(runtime, user_vector(bundle, dataset, int(one.users[0])), one, 0)


def rewrite(bundle: Bundle, weights: Arrays, folder: Path) -> None:
    """Write a bundle with other weights, right or wrong, and the hashes that belong to them."""
    manifest = write_bundle(
        folder, bundle.manifest, bundle.weights, bundle.catalogue, bundle.history
    )
    data = encoded(weights)
    write_whole(folder / WEIGHTS, data)
    entry = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    write_manifest(
        folder, msgspec.structs.replace(manifest, files={**manifest.files, WEIGHTS: entry})
    )
