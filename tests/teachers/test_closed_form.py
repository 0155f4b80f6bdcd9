"""EASE and the linear transition model: dense and on neighbours, alone and joined to other teachers."""

from __future__ import annotations

import msgspec
import numpy as np
import polars as pl
import pytest
import torch

from distilrec import runs
from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Schema
from distilrec.errors import ConfigError, TrainingError
from distilrec.networks.batches import training_batches, training_windows
from distilrec.report.baselines import fitted_baselines
from distilrec.runs.config import read_config
from distilrec.runs.teachers import open_teacher
from distilrec.teachers import ease as ease_module
from distilrec.teachers.build import (
    EnsembleConfig,
    MemberConfig,
    kind_of,
    load_teacher,
    make_teacher,
    members_of,
    with_closed_form,
)
from distilrec.teachers.ease import EaseConfig, fit_ease, load_ease, save_ease
from distilrec.teachers.ensemble import EnsembleTeacher, single_teachers
from distilrec.teachers.external import FunctionConfig, ScoresConfig, function_teacher
from distilrec.teachers.item_weights import SparseWeights
from distilrec.teachers.linear import LinearConfig, fit_linear, load_linear, save_linear
from distilrec.testing.teachers import TeacherContract
from distilrec.training.options import TrainingConfig
from distilrec.training.validation import validation_ndcg
from tests.small_run import NETWORKS, Said, dataset, interaction_matrix, write_tables

SPARSE = {"dense_items": 0, "neighbours": 12}
KINDS = {
    "ease": (EaseConfig, fit_ease),
    "linear": (LinearConfig, lambda config, data: fit_linear(config, data, 0)),
}


class TestEase(TeacherContract):
    @pytest.fixture
    def dataset(self, small):
        return small

    @pytest.fixture
    def teacher(self, small):
        return fit_ease(EaseConfig(ridge=10.0), small)


class TestSparseEase(TestEase):
    @pytest.fixture
    def teacher(self, small):
        return fit_ease(EaseConfig(ridge=10.0, **SPARSE), small)


class TestSparseLinear(TestEase):
    @pytest.fixture
    def teacher(self, small):
        return fit_linear(LinearConfig(ridge=10.0, **SPARSE), small, 0)


def test_ease_is_its_equation(small):
    x = interaction_matrix(small)[:, : small.info.warm_items].astype(np.float64)
    inverse = np.linalg.inv(x.T @ x + 20.0 * np.eye(x.shape[1]))
    expected = np.eye(x.shape[1]) - inverse / np.diag(inverse)
    got = fit_ease(EaseConfig(ridge=20.0), small).weights
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_how_many_users_had_both_items_is_counted_a_few_users_at_a_time(small, monkeypatch):
    x = interaction_matrix(small)[:, : small.info.warm_items]
    assert np.array_equal(ease_module.shared_users(small), x.T @ x)
    monkeypatch.setattr(ease_module, "users_at_once", lambda items: 7)
    assert np.array_equal(ease_module.shared_users(small), x.T @ x)


@pytest.mark.parametrize("kind", KINDS)
def test_on_all_neighbours_the_weights_are_the_dense_ones(kind):
    """Of a log where every item was had together with all others, and again."""
    rng = np.random.default_rng(0)
    events = [
        (f"u{u}", f"i{i}", n) for u in range(30) for n, i in enumerate(rng.integers(9, size=20))
    ]
    log = pl.DataFrame(events, ["user_id", "item_id", "time"], orient="row")
    data = prepare_dataset(log, Schema(timestamp="time"))
    config, fit = KINDS[kind]
    dense = fit(config(ridge=5.0), data).weights
    teacher = fit(config(ridge=5.0, dense_items=0, neighbours=data.info.warm_items), data)
    assert isinstance(teacher.item_weights, SparseWeights)
    np.testing.assert_allclose(teacher.weights, dense, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_has_no_more_weights_than_neighbours(small, kind):
    config, fit = KINDS[kind]
    weights = fit(config(ridge=5.0, **SPARSE), small).weights
    assert 0 < (weights != 0).sum(0).max() <= SPARSE["neighbours"]
    if kind == "ease":
        assert (np.diag(weights) == 0).all()


@pytest.mark.parametrize("sparse", [{}, SPARSE])
def test_ease_looks_at_the_whole_history_and_counts_an_item_once(small, sparse):
    teacher = fit_ease(EaseConfig(ridge=5.0, **sparse), small)
    for batch in training_batches(small, training_windows(small, 4), 8, None):
        batch.items[:, -1] = batch.items[:, 0]  # an item again, in other positions than before
        last = torch.full((len(batch.items),), batch.items.shape[1] - 1)
        asked = torch.arange(len(batch.items))
        answer = teacher.answer(batch, asked, last, small.info.warm_items).logits.numpy()
        for k in range(len(batch.items)):
            history = np.unique(np.concatenate([batch.earlier[k].numpy(), batch.items[k].numpy()]))
            history = history[history < small.info.warm_items]
            expected = teacher.weights[history].sum(0)
            np.testing.assert_allclose(answer[k], expected, rtol=1e-4, atol=1e-5)


def test_the_ridge_is_the_best_on_validation(small):
    chosen = fit_ease(EaseConfig(), small)
    by_ridge = {
        ridge: validation_ndcg(fit_ease(EaseConfig(ridge=ridge), small), small)
        for ridge in ease_module.RIDGES
    }
    assert by_ridge[chosen.ridge] == max(by_ridge.values())
    assert fit_ease(EaseConfig(ridge=7.0), small).ridge == 7.0


@pytest.mark.parametrize("sparse", [{}, SPARSE])
def test_both_are_saved_and_checked(small, tmp_path, sparse):
    made = {
        "ease": (fit_ease(EaseConfig(ridge=9.0, **sparse), small), save_ease, load_ease),
        "linear": (fit_linear(LinearConfig(**sparse), small, 0), save_linear, load_linear),
    }
    for name, (teacher, save, load) in made.items():
        save(teacher, tmp_path / name)
        again = load(tmp_path / name, small)
        assert (again.identity, again.config) == (teacher.identity, teacher.config)
        assert np.array_equal(again.weights, teacher.weights)
        with pytest.raises(TrainingError, match="another data set"):
            load(tmp_path / name, dataset("global-time"))
        (weights,) = (tmp_path / name).glob(f"{name}-*.safetensors")
        weights.write_bytes(b"broken")
        with pytest.raises(TrainingError, match="6 bytes instead of"):
            load(tmp_path / name, small)


def test_the_baseline_of_the_report_is_the_teacher(small):
    teacher = fit_ease(EaseConfig(), small)
    assert fitted_baselines(small)["EASE"].identity == teacher.identity
    assert fitted_baselines(small, {"EASE": teacher})["EASE"] is teacher


# --- joining ---

NETWORK = NETWORKS[0]
SCORES = ScoresConfig(file="x.csv", score="score")
TINY = TrainingConfig(epochs=1, batch_size=16)


def kinds(config):
    members = config.members if isinstance(config, EnsembleConfig) else (MemberConfig(config),)
    return [member.model.__struct_config__.tag for member in members]


@pytest.mark.parametrize(
    ("config", "closed_form", "expected"),
    [
        (NETWORK, None, ["transformer", "ease", "linear"]),
        (NETWORK, True, ["transformer", "ease", "linear"]),
        (NETWORK, False, ["transformer"]),
        (LinearConfig(), None, ["linear", "ease"]),
        (EaseConfig(), False, ["ease"]),
        (SCORES, None, ["scores"]),
        (SCORES, True, ["scores", "ease", "linear"]),
        (FunctionConfig("a:b"), None, ["function"]),
        (EnsembleConfig((MemberConfig(NETWORK), MemberConfig(EaseConfig()))), None, ["transformer", "ease", "linear"]),
        (EnsembleConfig((MemberConfig(NETWORK), MemberConfig(SCORES))), None, ["transformer", "scores"]),
        (EnsembleConfig((MemberConfig(NETWORK),)), False, ["transformer"]),
    ],
)  # fmt: skip
def test_who_joins_which_teacher(config, closed_form, expected):
    assert kinds(with_closed_form(config, closed_form, 1_000)) == expected


def test_nobody_joins_by_default_where_the_catalogue_is_too_large():
    assert with_closed_form(NETWORK, None, 100_001) == NETWORK
    assert kinds(with_closed_form(NETWORK, True, 100_001)) == ["transformer", "ease", "linear"]


def test_a_closed_form_alone_gets_a_temperature(small, tmp_path):
    """Its scores are shares of people, which a softmax would take for nearly equal."""
    config = with_closed_form(EaseConfig(), False, small.info.warm_items)
    teacher = make_teacher(config, small, TINY, tmp_path, seed=0)
    assert teacher.weights[0] > 2.0
    assert load_teacher(config, tmp_path, small).identity == teacher.identity


def test_several_seeds_are_several_members():
    member = MemberConfig(NETWORK, TINY, seed=5, seeds=3)
    config = EnsembleConfig((member, MemberConfig(LinearConfig())))
    assert [(m.model, m.training, m.seed, m.seeds) for m in members_of(config)] == [
        (NETWORK, TINY, 5, 1),
        (NETWORK, TINY, 1_005, 1),
        (NETWORK, TINY, 2_005, 1),
        (LinearConfig(), None, 0, 1),
    ]
    for model in (LinearConfig(), EaseConfig(), SCORES, FunctionConfig("a:b")):
        with pytest.raises(ConfigError, match="seeds") as caught:
            MemberConfig(model, seeds=2)
        assert "how to fix" in str(caught.value)
    with pytest.raises(ConfigError, match="seeds is 0"):
        MemberConfig(NETWORK, seeds=0)


TOML = """
{top}
[data]
interactions = "log.csv"
schema = {{ timestamp = "timestamp" }}
[teacher]
{teacher}
[teacher_training]
epochs = 1
[labels]
top_k = 5
samples = 5
[student]
kind = "recurrent"
dim = 8
[student_training]
epochs = 1
"""
SMALL = 'kind = "transformer"\ndim = 8\nlayers = 1\nfeed_forward = 16'


def config_of(folder, teacher, top=""):
    write_tables(folder)
    (folder / "run.toml").write_text(TOML.format(teacher=teacher, top=top))
    return read_config(folder / "run.toml")


def test_a_network_of_a_file_is_joined_and_found_again(tmp_path):
    said = Said()
    run, data = runs.prepare(config_of(tmp_path, SMALL), tmp_path / "run", said)
    teacher = runs.train_teacher(run, data)
    assert [kind_of(member) for member in single_teachers(teacher)] == [
        "transformer",
        "ease",
        "linear",
    ]
    for kind in ("transformer", "ease", "linear"):
        assert any(f"member {kind}, validation NDCG@10 0." in line for line in said.lines)
    assert open_teacher(runs.open_run(tmp_path / "run"), data).identity == teacher.identity
    again = runs.train_teacher(run, data)
    assert again.identity == teacher.identity
    assert said.lines[-1].endswith("already trained")


def test_a_network_of_a_file_stays_alone_where_that_is_asked_for(tmp_path):
    config = config_of(tmp_path, SMALL, "closed_form = false")
    run, data = runs.prepare(config, tmp_path / "run")
    assert kind_of(runs.train_teacher(run, data)) == "transformer"


@pytest.mark.slow
def test_seeds_of_a_file_are_members(tmp_path):
    member = 'kind = "ensemble"\n[[teacher.members]]\nseeds = 2\n'
    member += 'model = { kind = "transformer", dim = 8, layers = 1, feed_forward = 16 }'
    run, data = runs.prepare(config_of(tmp_path, member), tmp_path / "run")
    teacher = runs.train_teacher(run, data)
    found = [kind_of(one) for one in teacher.members]
    assert found == ["transformer", "transformer", "ease", "linear"]
    assert len({one.identity for one in teacher.members}) == 4
    wrong = member.replace("transformer", "linear").replace(
        ", dim = 8, layers = 1, feed_forward = 16", ""
    )
    with pytest.raises(ConfigError, match="a member of the kind linear has 2 seeds"):
        config_of(tmp_path, wrong)


@pytest.mark.slow
@pytest.mark.parametrize("closed_form", [None, True])
def test_a_teacher_from_python_is_joined_where_that_is_asked_for(tmp_path, closed_form):
    config = msgspec.structs.replace(config_of(tmp_path, SMALL), closed_form=closed_form)

    def make(data):
        rng = np.random.default_rng(0)
        scores = rng.normal(size=(data.users, data.info.warm_items))
        return function_teacher(lambda h: scores[h.users], data, identity="mine", per="user")

    comparison = runs.run_all(config, tmp_path / "run", teacher=make)
    members = [row.name for row in comparison.rows if row.name.startswith("member")]
    expected = ["member 1: function", "member 2: ease", "member 3: linear"]
    assert members == (expected if closed_form else [])


def test_an_ensemble_has_the_hidden_layer_of_its_only_network(small, tmp_path):
    teacher = make_teacher(
        with_closed_form(NETWORK, None, small.info.warm_items), small, TINY, tmp_path, seed=0
    )
    network = teacher.members[0]
    joined = EnsembleTeacher(teacher.members, [0.5, 1.0, 1.0])
    nested = EnsembleTeacher([joined, network], [1.0, 1.0])
    assert single_teachers(nested) == [*teacher.members, network]
    assert joined.state_dim == network.state_dim > 0
    assert joined.max_history == network.max_history
    assert EnsembleTeacher([network, network], [0.5, 0.5]).state_dim == 0
    batch = next(training_batches(small, training_windows(small, 12), 8, None))
    window, position = (batch.targets >= 0).nonzero(as_tuple=True)
    states = joined.answer(batch, window, position, small.info.warm_items).states
    expected = network.answer(batch, window, position, small.info.warm_items).states
    assert torch.equal(states, expected)
