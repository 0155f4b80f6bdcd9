"""The context of a question: learned from columns of the log, told with a request, the same in torch and in the engine."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
import torch

from distilrec import load
from distilrec.bundle.format import read_bundle, read_manifest
from distilrec.bundle.manifest import CONTEXT, WITH_CONTEXT
from distilrec.data.dataset import load_dataset
from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Feature, Schema
from distilrec.distill.altered import Alteration, AlteredConfig
from distilrec.engine.rules import Rules
from distilrec.engine.stored import StoredRecommender
from distilrec.engine.web import write_drec
from distilrec.errors import ColumnMissingError, ColumnTypeError, ConfigError, InvalidValueError
from distilrec.export.export import export_bundle
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.measure.ranking import questions
from distilrec.networks.batches import batch_of, histories_at, prediction_batch, training_windows
from distilrec.networks.build import build_model
from distilrec.networks.mlp import MlpConfig
from distilrec.networks.orders import Orders
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.sequence import TorchScorer
from distilrec.networks.transformer import TransformerConfig
from distilrec.privacy import PrivateTrainingConfig, train_private
from distilrec.report.comparison import BundleScorer
from distilrec.stores.opening import open_store
from distilrec.teachers.external import function_teacher
from distilrec.teachers.teacher import ModelTeacher
from distilrec.testing.students import StudentContract, small_dataset
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import load_model, save_model, train_model

DEVICE, HOUR = Feature("device", "categorical"), Feature("loudness", "numeric")
SCHEMA = Schema(timestamp="timestamp", event_type="kind", context_features=(DEVICE, HOUR))
PLAIN = Schema(timestamp="timestamp", event_type="kind")
STUDENT = RecurrentConfig(dim=8, max_history=61, neighbours=0, repeat_events=0)
TEACHER = TransformerConfig(dim=8, layers=1, heads=2, feed_forward=16, max_history=12)


def log(users=40, events=10):
    """On the phone people want x, at the TV y, and elsewhere z; loudness says nothing."""
    rng = np.random.default_rng(0)
    wanted = {"phone": "x", "tv": "y", None: "z"}
    rows = []
    for user in range(users):
        for place in range(events):
            device = [None, "phone", "tv"][rng.choice(3, p=[0.2, 0.4, 0.4])]
            loud = None if place == 3 else float(rng.normal())
            kind = "view" if place % 2 else "buy"
            rows.append(
                (f"u{user}", wanted[device], 1.5e9 + 3600 * place + user, kind, device, loud)
            )
    names = ["user_id", "item_id", "timestamp", "kind", "device", "loudness"]
    return pl.DataFrame(rows, schema=names, orient="row")


def varied():
    """The small data set of the contract, with a context in its log."""
    rng = np.random.default_rng(1)
    rows = [
        (f"u{user}", f"i{item}", 1.5e9 + 60 * place, str(rng.choice(["phone", "tv"])), rng.normal())
        for user in range(50)
        for place, item in enumerate(rng.choice(30, 12, replace=False))
    ]
    names = ["user_id", "item_id", "timestamp", "device", "loudness"]
    schema = Schema(timestamp="timestamp", context_features=(DEVICE, HOUR))
    return prepare_dataset(pl.DataFrame(rows, schema=names, orient="row"), schema)


def draw(model):
    """Draw the table of the context, which matters more then than after a short training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        table = model.context.table
        table.copy_(torch.randn(table.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def dataset():
    return prepare_dataset(log(), SCHEMA)


@pytest.fixture(scope="module")
def learned(dataset):
    training = TrainingConfig(epochs=12, batch_size=8, learning_rate=2e-2, averaging=0)
    return train_model(STUDENT, dataset, training, seed=0)


@pytest.fixture(scope="module")
def bundle(learned, dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    export_bundle(learned, dataset, folder)
    return folder


class TestContract(StudentContract):
    """Torch and the engine give the same in random contexts, after random histories."""

    config = RecurrentConfig(dim=8, scales=3)

    @pytest.fixture(scope="class")
    @classmethod
    def dataset(cls):
        base, told = small_dataset(), varied()
        rng = np.random.default_rng(2)
        info = msgspec.structs.replace(
            base.info, schema=told.info.schema, context_encoder=told.info.context_encoder
        )
        context = told.context.take(rng.integers(len(told.items), size=len(base.items)))
        return dataclasses.replace(base, info=info, context=context)

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, dataset):
        config = msgspec.structs.replace(cls.config, max_history=61)
        trained = train_model(config, dataset, TrainingConfig(epochs=1, batch_size=16), seed=0)
        draw(trained.model)
        return trained


class TestContractWithTime(TestContract):
    config = RecurrentConfig(dim=8, scales=3, time=True, neighbours=4)


# The log


def test_each_row_has_its_context(dataset):
    made = log()
    encoder = dataset.info.context_encoder
    assert encoder.column_names()[:3] == ["device=unknown", "device=phone", "device=tv"]
    for place, user in enumerate(dataset.info.user_ids):
        own = made.filter(pl.col("user_id") == user).sort("timestamp")
        for row, values in enumerate(own.iter_rows(named=True)):
            bag = encoder.encode(values)
            at = dataset.offsets[place] + row
            assert dataset.context.columns[at].tolist() == [column for column, _ in bag]
            np.testing.assert_allclose(
                dataset.context.weights[at], [weight for _, weight in bag], rtol=1e-6
            )


def test_the_encoder_knows_training_rows_only():
    made = log()
    last = pl.col("timestamp") == pl.col("timestamp").max().over("user_id")
    device = pl.when(last).then(pl.lit("fridge")).otherwise("device")
    loudness = pl.when(last).then(pl.lit(1e9)).otherwise("loudness")
    data = prepare_dataset(made.with_columns(device=device, loudness=loudness), SCHEMA)
    categories, numbers = data.info.context_encoder.encodings
    assert categories.values == ("phone", "tv")
    assert max(numbers.quantiles) < 100
    last_rows = data.offsets[1:] - 1
    assert (data.context.columns[last_rows, 0] == 0).all()


def test_parts_and_files_change_nothing(dataset, tmp_path):
    in_parts = prepare_dataset(log(), SCHEMA, rows_per_part=30)
    assert in_parts.fingerprint() == dataset.fingerprint()
    dataset.save(tmp_path)
    again = load_dataset(tmp_path)
    assert again.fingerprint() == dataset.fingerprint()
    np.testing.assert_array_equal(again.context.columns, dataset.context.columns)
    some = again.select_users(np.array([3, 7]))
    rows = np.arange(again.offsets[7], again.offsets[8])
    np.testing.assert_array_equal(
        some.context.columns[some.offsets[1] :], again.context.columns[rows]
    )


def test_flags_and_whole_floats_are_categories():
    made = log().with_columns(device=pl.int_range(pl.len()) % 2 == 0)
    flags = prepare_dataset(made, SCHEMA).info.context_encoder.encodings[0]
    assert flags.values == ("false", "true")
    numbers = made.with_columns(device=(pl.int_range(pl.len()) % 2).cast(pl.Float64))
    assert prepare_dataset(numbers, SCHEMA).info.context_encoder.encodings[0].values == ("0", "1")


@pytest.mark.parametrize(
    ("columns", "error", "says"),
    [
        ({"loudness": pl.lit("loud")}, ColumnTypeError, "row 1: column 'loudness' holds 'loud'"),
        ({"loudness": pl.lit(math.inf)}, InvalidValueError, "context feature 'loudness' is inf"),
        ({"device": pl.concat_list("user_id")}, ColumnTypeError, "'device' holds lists"),
    ],
)
def test_columns_of_the_wrong_type_are_errors(columns, error, says):
    with pytest.raises(error, match=says):
        prepare_dataset(log().with_columns(**columns), SCHEMA)


def test_the_schema_says_what_can_be():
    with pytest.raises(ColumnMissingError, match="no column 'device'"):
        prepare_dataset(log().drop("device"), SCHEMA)
    with pytest.raises(ConfigError, match="is of the kind 'text'"):
        Schema(context_features=(Feature("page", "text"),))
    with pytest.raises(ConfigError, match="declares 'device' twice"):
        Schema(context_features=(DEVICE, DEVICE))
    with pytest.raises(ConfigError, match="9 context features are declared"):
        Schema(context_features=tuple(Feature(f"f{n}", "numeric") for n in range(9)))


def test_a_log_without_context_is_what_it_was():
    data = prepare_dataset(log(), PLAIN)
    assert data.context is None
    assert b"context" not in msgspec.json.encode(data.info)
    assert data.histories(np.arange(3), data.train_end[:3]).context is None


# Torch


@pytest.mark.parametrize("config", [STUDENT, TEACHER], ids=["student", "transformer"])
def test_training_and_prediction_agree(dataset, config):
    model = draw(build_model(config, dataset, 0))
    vectors, windows = model.items.vectors(), training_windows(dataset, 12)
    for user in (0, 5, 30):
        own = np.flatnonzero(windows.users == user)
        histories = dataset.histories(np.array([user]), dataset.train_end[[user]] - 1)
        batch = batch_of(dataset, windows, own[:1])
        asked = prediction_batch(histories, dataset.catalogue_size, batch.items.shape[1])
        found = model.encode(asked, vectors)[asked.targets == 0][0]
        torch.testing.assert_close(model.encode(batch, vectors)[0, -1], found)
        again = histories_at(
            batch,
            torch.tensor([0]),
            torch.tensor([batch.items.shape[1] - 1]),
            dataset.catalogue_size,
        )
        np.testing.assert_array_equal(again.context.columns, histories.context.columns)


@pytest.mark.parametrize("config", [STUDENT, TEACHER], ids=["student", "transformer"])
def test_no_context_is_the_unknown_one(dataset, config):
    scorer = TorchScorer(draw(build_model(config, dataset, 0)))
    histories = dataset.histories(np.arange(5), dataset.offsets[1:6])  # nothing comes after them
    none = dataclasses.replace(histories, context=None)
    np.testing.assert_array_equal(scorer.scores(histories), scorer.scores(none))
    phone = dataset.info.context_encoder.encode_rows([{"device": "phone"}] * 5)
    told = scorer.scores(dataclasses.replace(histories, context=phone))
    assert not np.allclose(told, scorer.scores(none), atol=0.1)
    wrong = dataclasses.replace(phone, columns=phone.columns[:, :1], weights=phone.weights[:, :1])
    with pytest.raises(InvalidValueError, match="have 1 context features"):
        scorer.scores(dataclasses.replace(histories, context=wrong))


def test_a_teacher_is_asked_in_the_context_of_each_event(dataset, tmp_path):
    training = TrainingConfig(epochs=1, batch_size=16)
    teacher = ModelTeacher(train_model(TEACHER, dataset, training, seed=0))
    draw(teacher.trained.model)
    labels = extract_labels(teacher, dataset, tmp_path, LabelConfig(top_k=2, samples=1), seed=0)
    rows = dataset.train_end[:9] - 1
    told = labels.at(torch.from_numpy(rows))
    scores = teacher.scores(dataset.histories(np.arange(9), rows))
    at_top = np.take_along_axis(scores, told.top_items.numpy(), 1)
    best = at_top.max(1, keepdims=True)  # which logits are stored against
    np.testing.assert_allclose(told.top_logits.numpy(), at_top - best, 2e-3, 2e-3)


def test_altered_windows_keep_the_context(dataset):
    batch = batch_of(dataset, training_windows(dataset, 12), np.arange(4))
    altered = Alteration(AlteredConfig(), dataset)(batch, np.random.default_rng(0))
    assert altered.context is batch.context
    assert altered.context_weights is batch.context_weights


def test_a_function_is_told_the_context(dataset):
    heard = []

    def scores(histories):
        heard.append(histories.context)
        return np.zeros((len(histories), dataset.catalogue_size), np.float32)

    histories = questions(dataset, "test").histories
    function_teacher(scores, dataset, identity="zeros").scores(histories)
    np.testing.assert_array_equal(heard[0].columns, histories.context.columns)


def test_drawn_orders_carry_the_context(dataset):
    unordered = dataclasses.replace(
        dataset, info=msgspec.structs.replace(dataset.info, order="none")
    )
    shuffled = Orders(0, 0).of_epoch(unordered, 1)
    np.testing.assert_array_equal(
        shuffled.dataset.context.columns, dataset.context.columns[shuffled.keys]
    )


def test_a_private_student_is_told_no_context(dataset):
    with pytest.raises(ConfigError, match="told a context cannot be trained privately"):
        train_private(STUDENT, dataset, PrivateTrainingConfig(epsilon=3), seed=0)


def test_a_student_is_saved_and_loaded(learned, dataset, tmp_path):
    save_model(learned, tmp_path)
    again = load_model(tmp_path, dataset)
    asked = questions(dataset, "test").histories
    np.testing.assert_array_equal(
        TorchScorer(again.model).scores(asked), TorchScorer(learned.model).scores(asked)
    )


# The engine


def first(recommender, user="u1", **told):
    return recommender.recommend(user, k=1, exclude_seen=False, **told)[0].item_id


def test_the_context_decides_what_is_next(bundle):
    recommender = load(bundle)
    for user in ("u1", "u7", "a stranger"):
        assert first(recommender, user, context={"device": "phone"}) == "x"
        assert first(recommender, user, context={"device": "tv", "loudness": 0.5}) == "y"
        ranked = recommender.recommend(user, ["x", "y", "z"], context={"device": "phone"})
        assert ranked[0].item_id == "x"
        arranged = recommender.arrange(user, Rules(), 1, False, context={"device": "tv"})
        assert arranged.items[0].item_id == "y"
    assert first(recommender, "u1") == first(recommender, "u1", context={}) == "z"


def test_what_is_unknown_counts_as_unknown(bundle):
    recommender = load(bundle)
    plain = recommender.recommend("u1")
    assert recommender.recommend("u1", context={"device": "fridge"}) == plain
    assert recommender.recommend("u1", context={"device": None, "loudness": None}) == plain
    assert recommender.unknown_context({"device": "fridge", "loudness": 1.0}) == ["device"]
    assert recommender.unknown_context({"device": "tv"}) == []
    assert recommender.unknown_context({"device": None}) == []


@pytest.mark.parametrize(
    ("context", "says"),
    [
        ({"page": "home"}, "no context feature 'page'; it has: device, loudness"),
        ({"device": ["phone"]}, "'device' is .* not a text, a number, true or false"),
        ({"loudness": "loud"}, "'loudness' is 'loud', which is not a finite number"),
        ({"loudness": True}, "'loudness' is True"),
        ({"loudness": math.nan}, "'loudness' is nan"),
    ],
)
def test_wrong_contexts_are_errors(bundle, context, says):
    recommender = load(bundle)
    for ask in (
        lambda: recommender.recommend("u1", context=context),
        lambda: recommender.recommend("u1", ["x"], context=context),
        lambda: recommender.recommend_many(["u1"], context=context),
        lambda: recommender.explain("u1", "x", context=context),
    ):
        with pytest.raises(ConfigError, match=says):
            ask()


def test_explanations_are_exact_in_a_context(bundle):
    """The score minus the score had the last event not happened."""
    recommender, context = load(bundle), {"device": "tv", "loudness": -1.0}
    recommender.update([{"user_id": "new", "item_id": item, "event_type": "view"} for item in "xy"])
    recommender.update([{"user_id": "less", "item_id": "x", "event_type": "view"}])
    both, one = (
        {
            answer.item_id: answer.score
            for answer in recommender.recommend(user, list("xyz"), context=context)
        }
        for user in ("new", "less")
    )
    (why,) = [c for c in recommender.explain("new", "z", context=context) if c.item_id == "y"]
    assert why.contribution == pytest.approx(both["z"] - one["z"], abs=1e-4)


def test_a_store_answers_alike(bundle, tmp_path):
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    stored = StoredRecommender(load(bundle), store)
    stored.update([{"user_id": "new", "item_id": "x"}])
    assert first(stored, "new", context={"device": "phone"}) == "x"
    assert first(stored, "new", context={"device": "tv"}) == "y"
    store.close()


def test_a_bundle_is_measured_as_it_was_trained(learned, dataset, bundle):
    asked = questions(dataset, "test").histories
    np.testing.assert_allclose(
        BundleScorer(bundle, dataset).scores(asked),
        TorchScorer(learned.model).scores(asked),
        1e-4,
        1e-4,
    )


def test_only_a_bundle_with_context_has_the_new_format(bundle, dataset, tmp_path):
    manifest = read_manifest(bundle / "manifest.json")
    assert manifest.format_version == WITH_CONTEXT
    assert all(golden.context is not msgspec.UNSET for golden in manifest.golden)
    data = prepare_dataset(log(), PLAIN)
    plain = train_model(STUDENT, data, TrainingConfig(epochs=1), seed=0)
    assert plain.model.context is None
    without = export_bundle(plain, data, tmp_path / "plain")
    assert without.format_version < WITH_CONTEXT
    assert b'"context' not in (tmp_path / "plain" / "manifest.json").read_bytes()
    assert CONTEXT not in read_bundle(tmp_path / "plain").weights.of_kind
    with pytest.raises(ConfigError, match="no context feature 'device'; it has: none"):
        load(tmp_path / "plain").recommend("u1", context={"device": "tv"})
    # Another kind of student learns without the context
    other = train_model(MlpConfig(dim=8, hidden=8), dataset, TrainingConfig(epochs=1), seed=0)
    assert export_bundle(other, dataset, tmp_path / "mlp").context_encoder is msgspec.UNSET
    load(tmp_path / "mlp")


def test_a_web_page_is_told_no_context(bundle, tmp_path):
    with pytest.raises(ConfigError, match="told a context cannot be exported for the web"):
        write_drec(read_bundle(bundle), Path(tmp_path) / "student.drec")
