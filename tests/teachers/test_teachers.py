"""Teachers other than the two networks: linear, ensembles, and everything that comes from outside."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec import runs
from distilrec.data.dataset import Histories
from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Schema
from distilrec.distill import losses
from distilrec.distill.distillation import DistillationConfig, distill_model, distillation_loss
from distilrec.errors import (
    ColumnMissingError,
    ConfigError,
    LabelStoreError,
    TeacherError,
    TrainingError,
)
from distilrec.labels import extract
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.labels.store import open_labels
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import questions, rank
from distilrec.networks.batches import training_batches, training_windows
from distilrec.networks.mlp import MlpConfig
from distilrec.networks.products import add_decayed_products, add_visit_products
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.sequence import TorchScorer
from distilrec.networks.soft_tree import SoftTreeConfig
from distilrec.networks.transformer import TransformerConfig
from distilrec.runs.config import read_config
from distilrec.targets import EventRole, Targets
from distilrec.teachers.build import EnsembleConfig, MemberConfig, load_teacher, make_teacher
from distilrec.teachers.ensemble import EnsembleTeacher, pooled_ensemble
from distilrec.teachers.external import (
    FunctionConfig,
    ScoresConfig,
    function_teacher,
    read_scores,
    user_scores,
)
from distilrec.teachers.linear import LinearConfig, fit_linear, load_linear, save_linear
from distilrec.teachers.teacher import ModelTeacher
from distilrec.training.options import RunOptions, TrainingConfig
from distilrec.training.scoring import Scored
from distilrec.training.trained import train_model
from distilrec.training.validation import validation_ndcg
from tests import ROOT, small_run
from tests.small_run import Heard, dataset, small_config, tables, write_tables

TRAINING = TrainingConfig(epochs=2, batch_size=16)
STUDENT = RecurrentConfig(dim=8, max_history=12)
TRANSFORMER = TransformerConfig(dim=8, layers=1, feed_forward=16, max_history=12)


def network(small, seed=0):
    return ModelTeacher(train_model(TRANSFORMER, small, TRAINING, seed=seed))


def table(small, users=None, items=10, value=lambda user, item: float(item)):
    chosen = small.info.user_ids[: small.info.warm_users] if users is None else users
    rows = [
        (user, small.info.item_ids[item], value(user, item))
        for user in chosen
        for item in range(items)
    ]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "score"], orient="row")


# --- linear ---


def test_the_linear_teacher_solves_the_ridge_regression(small):
    config = LinearConfig(ridge=5.0, decay=0.5, rows=10**9)
    teacher = fit_linear(config, small, 0)
    inputs, targets = [], []
    for user in range(small.info.warm_users):
        own = small.items[small.offsets[user] : small.train_end[user]]
        for n in range(1, len(own)):
            x = np.zeros(small.info.warm_items)
            for age, item in enumerate(own[n - 1 :: -1]):
                x[item] += 0.5**age
            inputs.append(x)
            targets.append(own[n])
    x, y = np.array(inputs), np.eye(small.info.warm_items)[targets]
    expected = np.linalg.solve(x.T @ x + 5.0 * np.eye(x.shape[1]), x.T @ y)
    np.testing.assert_allclose(teacher.weights, expected, rtol=1e-3, atol=1e-4)


@given(
    events=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans(), st.booleans()), max_size=40
    ),
    decay=st.sampled_from([0.3, 0.9, 1.0]),
)
@settings(deadline=None)
def test_the_products_of_the_linear_teacher_are_those_of_its_histories(events, decay):
    """Each event: user, item, whether it is one of the regression, whether it counts in a history."""
    events = sorted(events, key=lambda event: event[0])
    users, items, chosen, counted = np.array(events, np.int64).reshape(-1, 4).T
    gram, cross, expected_gram, expected_cross = np.zeros((4, 6, 6))
    add_decayed_products(
        np.searchsorted(users, np.arange(5)),
        items.astype(np.int32),
        chosen.astype(bool),
        counted.astype(bool),
        decay,
        gram,
        cross,
    )
    for user in range(4):
        state = np.zeros(6)
        for row in np.flatnonzero(users == user):
            if chosen[row]:
                expected_gram += np.outer(state, state)
                expected_cross[items[row]] += state
            if counted[row]:
                state = decay * state
                state[items[row]] += 1.0
    np.testing.assert_allclose(gram + gram.T, expected_gram, atol=1e-6)
    np.testing.assert_allclose(cross, expected_cross, atol=1e-6)


def answers_are_the_scores_of_the_prefix(teacher, data, length, rtol):
    for batch in training_batches(data, training_windows(data, length), 8, None):
        window, position = (batch.targets >= 0).nonzero(as_tuple=True)
        answer = teacher.answer(batch, window, position, data.catalogue_size).logits
        histories = data.histories(
            batch.users[window].numpy(), batch.rows[window, position].numpy()
        )
        expected = teacher.scores(histories)
        np.testing.assert_allclose(answer.numpy(), expected, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("decay", [0.7, 1.0])
def test_linear_answers_are_the_scores_of_the_prefix(small, decay):
    """Also with windows that begin in the middle of a history."""
    teacher = fit_linear(LinearConfig(ridge=5.0, decay=decay), small, 0)
    answers_are_the_scores_of_the_prefix(teacher, small, 4, rtol=1e-4)


@given(
    events=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(0, 5),
            st.sampled_from([0, 1, 9]),
            st.booleans(),
            st.booleans(),
        ),
        max_size=40,
    ),
    decay=st.sampled_from([0.3, 1.0]),
    earlier=st.sampled_from([0.9, 1.0]),
)
@settings(deadline=None)
def test_the_products_with_visits_are_those_of_two_histories(events, decay, earlier):
    """Each event: user, item, time since the one before, whether it is one of the regression, whether it counts."""
    events = sorted(events, key=lambda event: event[0])
    users, items, gaps, chosen, counted = np.array(events, np.int64).reshape(-1, 5).T
    gram, cross = np.zeros((12, 12), np.float32), np.zeros((12, 6), np.float32)
    add_visit_products(
        np.searchsorted(users, np.arange(5)),
        items.astype(np.int32),
        np.cumsum(gaps).astype(np.float64),
        chosen.astype(bool),
        counted.astype(bool),
        (5.0, decay, earlier),
        gram,
        cross,
    )
    expected_gram, expected_cross = np.zeros((12, 12)), np.zeros((12, 6))
    for user in range(4):
        rows = np.flatnonzero(users == user)
        visits = np.cumsum(gaps[rows] >= 5)
        for n, row in enumerate(rows):
            state, ages = np.zeros(12), [0, 0]
            for m in range(n - 1, -1, -1):
                if counted[rows[m]]:
                    block = int(visits[m] != visits[n])
                    state[6 * block + items[rows[m]]] += (decay, earlier)[block] ** ages[block]
                    ages[block] += 1
            if chosen[row]:
                expected_gram += np.outer(state, state)
                expected_cross[:, items[row]] += state
    np.testing.assert_allclose(gram, expected_gram, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(cross, expected_cross, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def in_visits(small):
    return small_run.in_visits(small)


@pytest.mark.parametrize("length", [4, 10])
@pytest.mark.parametrize("told", [{}, {"decay": 0.7, "earlier_decay": 0.8}])
def test_linear_answers_with_visits_are_the_scores_of_the_prefix(in_visits, length, told):
    """Also with windows that begin in the middle of a visit."""
    teacher = fit_linear(LinearConfig(ridge=5.0, **told), in_visits, 0)
    assert teacher.weights.shape == (2 * in_visits.info.warm_items, in_visits.info.warm_items)
    answers_are_the_scores_of_the_prefix(teacher, in_visits, length, rtol=1e-3)


def test_a_negative_event_holds_a_visit_together(in_visits):
    """Events a minute apart, of which views say nothing, and visits that end after 90 seconds."""
    targets = Targets((EventRole("buy"), EventRole("view", role="negative")))
    shop = replace(in_visits, info=msgspec.structs.replace(in_visits.info, targets=targets))
    teacher = fit_linear(LinearConfig(ridge=5.0, visit_gap=90.0), shop, 0)
    assert len(teacher.weights) == 2 * shop.info.warm_items
    answers_are_the_scores_of_the_prefix(teacher, shop, 7, rtol=1e-3)


def test_the_lines_of_a_basket_weigh_the_same(in_visits, tmp_path):
    """In their order as out of it, of this visit; the answer depends on when it is asked."""
    baskets = replace(in_visits, info=msgspec.structs.replace(in_visits.info, order="ties"))
    teacher = fit_linear(LinearConfig(), baskets, 0)
    histories = baskets.histories(np.arange(9), baskets.offsets[:9] + 5)  # the sixth of an event
    turned = replace(histories, items=histories.items.copy())
    for n, now in enumerate(histories.now):
        own = slice(histories.offsets[n], histories.offsets[n + 1])
        basket = own.start + np.flatnonzero(now - histories.times[own] < 1800)
        turned.items[basket] = histories.items[basket[::-1]]
    assert (turned.items != histories.items).any()
    scores = teacher.scores(histories)
    np.testing.assert_allclose(teacher.scores(turned), scores, rtol=1e-4, atol=1e-6)
    later = replace(histories, now=histories.now + 9_000)
    assert np.abs(teacher.scores(later) - scores).max() > 1e-3
    save_linear(teacher, tmp_path)
    again = load_linear(tmp_path, baskets)
    np.testing.assert_allclose(again.scores(histories), scores, rtol=1e-4, atol=1e-6)


def test_a_linear_teacher_is_saved_and_checked(small, tmp_path):
    teacher = fit_linear(LinearConfig(), small, 0)
    save_linear(teacher, tmp_path)
    again = load_linear(tmp_path, small)
    assert again.identity == teacher.identity
    assert np.array_equal(again.weights, teacher.weights)
    with pytest.raises(TrainingError, match="another data set"):
        load_linear(tmp_path, dataset("global-time"))
    (weights,) = tmp_path.glob("linear-*.safetensors")
    weights.write_bytes(b"broken")
    with pytest.raises(TrainingError, match=r"linear-\w+\.safetensors has 6 bytes instead of"):
        load_linear(tmp_path, small)


# --- ensemble ---


@pytest.mark.slow
def test_the_ensemble_is_the_weighted_sum(small):
    members = [network(small), fit_linear(LinearConfig(), small, 0)]
    ensemble = EnsembleTeacher(members, [0.5, 3.0])
    users = np.arange(5)
    histories = small.histories(users, small.train_end[users])
    expected = 0.5 * members[0].scores(histories) + 3.0 * members[1].scores(histories)
    np.testing.assert_allclose(ensemble.scores(histories), expected, rtol=1e-5)
    batch = next(training_batches(small, training_windows(small, 12), 8, None))
    window, position = (batch.targets >= 0).nonzero(as_tuple=True)
    member_scores = [
        member.answer(batch, window, position, small.info.warm_items).logits for member in members
    ]
    torch.testing.assert_close(
        ensemble.answer(batch, window, position, small.info.warm_items).logits,
        0.5 * member_scores[0] + 3.0 * member_scores[1],
    )
    assert ensemble.max_history == 12
    assert ensemble.cost.parameters == sum(member.cost.parameters for member in members)


@pytest.mark.slow
def test_calibration_finds_the_better_member(small):
    """Beside a member that knows the answer, one of pure noise gets no weight."""
    asked = questions(small, "validation")
    truth = dict(zip(asked.histories.users.tolist(), asked.targets.tolist(), strict=True))
    rng = np.random.default_rng(0)

    def knows(histories):
        scores = rng.normal(0, 1, (len(histories), small.info.warm_items)).astype(np.float32)
        for k, user in enumerate(histories.users):
            if truth.get(int(user), -1) < small.info.warm_items:
                scores[k, truth[int(user)]] += 2.0
        return scores

    def noise(histories):
        return rng.normal(0, 5, (len(histories), small.info.warm_items)).astype(np.float32)

    ensemble = pooled_ensemble(
        [
            function_teacher(knows, small, identity="knows"),
            function_teacher(noise, small, identity="noise"),
        ],
        small,
        0,
    )
    assert ensemble.weights[0] > 0.5
    assert ensemble.weights[1] < 0.1


@pytest.mark.slow
def test_an_ensemble_is_made_once_and_loaded(small, tmp_path):
    config = EnsembleConfig(
        (
            MemberConfig(TRANSFORMER),
            MemberConfig(LinearConfig()),
            MemberConfig(STUDENT, TRAINING, 7),
        )
    )
    epochs = []
    made = make_teacher(
        config,
        small,
        TRAINING,
        tmp_path,
        seed=0,
        options=RunOptions(progress=Heard(lambda name, *_: epochs.append(name))),
    )
    assert epochs == ["teacher 1/3"] * 2 + ["teacher 3/3"] * 2
    again = make_teacher(
        config,
        small,
        TRAINING,
        tmp_path,
        seed=0,
        options=RunOptions(
            on_epoch=lambda *_: epochs.append("again"),
            progress=Heard(lambda *_: epochs.append("again")),
        ),
    )
    assert "again" not in epochs
    loaded = load_teacher(config, tmp_path, small)
    assert loaded.identity == made.identity == again.identity
    histories = small.histories(np.arange(3), small.train_end[:3])
    np.testing.assert_allclose(loaded.scores(histories), made.scores(histories), rtol=1e-6)
    assert validation_ndcg(made, small) > 0


# --- your own scores ---


def test_scores_of_a_file_become_the_teacher(small, tmp_path):
    table(small).write_parquet(tmp_path / "scores.parquet")
    teacher = read_scores(ScoresConfig(str(tmp_path / "scores.parquet"), score="score"), small)
    scores = teacher.scores(small.histories(np.arange(4), small.train_end[:4]))
    assert scores.shape == (4, small.catalogue_size)
    # The differences count
    np.testing.assert_allclose(scores[:, :10], np.tile(np.arange(10.0) - 9, (4, 1)))
    assert (scores[:, 10:] < -9).all()
    labels = extract_labels(
        teacher, small, tmp_path / "labels", LabelConfig(top_k=3, samples=4), seed=0
    )
    assert len(labels) == small.info.warm_users  # one label per user, not per event
    assert labels.extraction.events == int(small.is_training().sum())
    known = labels.at(torch.arange(3))
    assert known.top_items.tolist() == [[9, 8, 7]] * 3
    student = distill_model(STUDENT, small, labels, TRAINING, DistillationConfig(), seed=0)
    assert np.isfinite(student.best_ndcg)


def test_ranks_become_falling_logits(small, tmp_path):
    table(small, value=lambda user, item: 10 - item).rename({"score": "rank"}).write_csv(
        tmp_path / "ranks.csv"
    )
    teacher = read_scores(ScoresConfig(str(tmp_path / "ranks.csv"), rank="rank"), small)
    scores = teacher.scores(small.histories(np.arange(1), small.train_end[:1]))[0]
    assert scores[9] - scores[7] == pytest.approx(1.0)  # ranks 1 and 3: -log2(2) + log2(4)
    assert np.array_equal(np.argsort(-scores)[:10], np.arange(9, -1, -1))


def test_labels_of_a_user_give_nothing_to_items_already_had(small, tmp_path):
    """Such labels do not know what a user had before an event; the losses leave those items out."""
    labels = extract_labels(
        user_scores(table(small), small), small, tmp_path, LabelConfig(top_k=5, samples=5), seed=0
    )
    rows = torch.arange(4)
    student = torch.randn(4, small.info.warm_items)
    student[:, 9] = -1e9  # the teacher's first one
    student.requires_grad_()
    config = DistillationConfig(
        1.0,
        rd_weight=1,
        rrd_weight=1,
        plackett_luce_weight=1,
        rce_weight=1,
        unkd_weight=1,
        own_candidates=5,
    )
    loss = distillation_loss(labels, config, dataset=small)(
        Scored(student, torch.tensor([1, 2, 3, 4]), rows, student, student.shape[1])
    )
    loss.backward()
    assert 0 < float(loss.detach()) < 100
    assert torch.isfinite(student.grad).all()
    assert (student.grad[:, 9] == 0).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.with_columns(score=pl.when(pl.arange(0, pl.len()) == 3).then(float("nan")).otherwise("score")),
         "1 lines hold no finite number in column 'score', the first for user"),
        (lambda t: t.with_columns(score=pl.lit("high")), "hold no finite number"),
        (lambda t: pl.concat([t, t.head(1)]), "2 lines name a user and an item twice"),
        (lambda t: t.filter(pl.col("user_id") != "u1"), "no scores for 1 of the 60 users of the log: 'u1'"),
        (lambda t: t.with_columns(user_id=pl.lit("x") + pl.col("user_id")), "the ids do not match"),
        (lambda t: t.with_columns(item_id=pl.lit("x") + pl.col("item_id")), "the ids do not match"),
    ],
)  # fmt: skip
def test_scores_that_cannot_be_used_are_refused(spoil, message, small):
    with pytest.raises(TeacherError, match=message) as caught:
        user_scores(spoil(table(small)), small)
    assert "how to fix" in str(caught.value)


@pytest.mark.parametrize("offset", [0.0, 70_000.0, -70_000.0, 2e9, -1e12])
def test_only_the_differences_between_scores_of_a_user_count(small, tmp_path, offset):
    """Half precision ends at 65,504, and single precision has no room for a half beside two billions."""
    plain = user_scores(table(small, value=lambda user, item: item / 2), small)
    moved = user_scores(
        table(small, value=lambda user, item: offset * (1 + int(user[1:]) % 3) + item / 2), small
    )
    config = LabelConfig(top_k=12, samples=20)
    expected, got = (
        extract_labels(teacher, small, tmp_path / str(n), config, seed=0).at(torch.arange(40))
        for n, teacher in enumerate((plain, moved))
    )
    assert expected.top_logits[:, :4].tolist() == [[0.0, -0.5, -1.0, -1.5]] * 40
    for name in ("top_items", "top_logits", "rest_log_sum", "sample_items", "sample_logits"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name


@pytest.mark.parametrize("per", ["user", "event"])
@pytest.mark.parametrize("offset", [3e5, -3e5, 1e10])
def test_the_differences_of_a_function_count_too(small, tmp_path, per, offset):
    """Whatever is added to all scores of a history, the labels are the same; masked items stay masked."""
    items = small.info.warm_items

    def scores(histories):
        own = np.arange(items) / 4
        return np.stack([own + added * (1 + user % 5) for user in histories.users])

    found = []
    for added in (0.0, offset):
        teacher = function_teacher(scores, small, identity=f"of {added}", per=per)
        folder = tmp_path / str(added)
        labels = extract_labels(
            teacher, small, folder, LabelConfig(top_k=items, samples=items), seed=0
        )
        found.append(labels.at(torch.from_numpy(np.flatnonzero(small.is_training()))))
    plain, moved = found
    assert torch.equal(plain.top_items, moved.top_items)
    torch.testing.assert_close(plain.top_logits, moved.top_logits, rtol=0, atol=1e-2)
    assert (plain.top_logits[:, 0] == 0).all()
    masked = plain.top_logits < -50_000
    assert masked.any() == (per == "event")
    assert plain.top_logits[~masked].min() >= -items / 4
    torch.testing.assert_close(plain.rest_log_sum, moved.rest_log_sum, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("kind", ["scores", "user", "event"])
def test_scores_that_are_too_far_apart_are_refused(small, tmp_path, kind):
    """They would become equal in the labels. The message names the user, the item, and how far it is below the best."""
    if kind == "scores":
        wide = lambda user, item: 1e5 * item if user == "u3" else item  # noqa: E731
        teacher, message = (
            user_scores(table(small, value=wide), small),
            r"for user 'u3' span 900,002, from the best to item '.*'",
        )
    else:
        steps = np.linspace(0, -60_000, small.info.warm_items, dtype=np.float32)
        teacher = function_teacher(
            lambda h: np.tile(steps, (len(h), 1)), small, identity="steep", per=kind
        )
        message = r"for user 'u\d+' span \d\d,\d\d\d, from the best to item 'i\d+'; labels keep what is at most 49,000"
    with pytest.raises(TeacherError, match=message):
        extract_labels(teacher, small, tmp_path, LabelConfig(top_k=3, samples=3), seed=0)


def test_what_spans_less_is_told_from_masked_items(small, tmp_path):
    """The lowest score that is kept is no masked item to the losses."""
    steps = np.linspace(0, -49_000, small.info.warm_items, dtype=np.float32)
    teacher = function_teacher(
        lambda h: np.tile(steps, (len(h), 1)), small, identity="steep", per="user"
    )
    items = small.info.warm_items
    labels = extract_labels(
        teacher, small, tmp_path, LabelConfig(top_k=1, samples=items * 3), seed=0
    )
    known = labels.at(torch.arange(30))
    assert known.sample_logits.min() == -48_992  # the nearest half
    outside = losses._outside(known)
    assert torch.equal(outside >= 0, known.sample_items != known.top_items)


@pytest.mark.parametrize(
    "form", [float, "{}.0".format, " {} ".format, str, int], ids=["float", "7.0", " 7 ", "7", "int"]
)
def test_ids_of_scores_follow_the_rule_of_all_ids(form):
    """A pandas frame with gaps has floats where the log has integers: they are the same users and items."""
    rows = [
        (user, item, 100 * user + n)
        for user in range(1, 9)
        for n, item in enumerate(range(1, 13))
        if (user + item) % 4
    ]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    data = prepare_dataset(log, Schema(timestamp="timestamp"), name="numbers")
    plain = pl.DataFrame(
        [(user, item, float(item)) for user in range(1, 9) for item in range(1, 13)],
        schema=["user_id", "item_id", "score"],
        orient="row",
    )
    same = pl.DataFrame(
        {name: [form(value) for value in plain[name].to_list()] for name in ("user_id", "item_id")}
    ).with_columns(plain["score"])
    assert user_scores(same, data).identity == user_scores(plain, data).identity


@pytest.mark.parametrize("wrong", [None, "", "i1\n", "x" * 257])
def test_lines_of_scores_without_an_id_are_refused(small, wrong):
    more = pl.concat(
        [table(small), table(small).head(1).with_columns(item_id=pl.lit(wrong, pl.String))]
    )
    with pytest.raises(
        TeacherError,
        match="1 lines have no valid id in 'user_id' or 'item_id', the first for user 'u",
    ):
        user_scores(more, small)


def test_a_scores_file_needs_its_columns(small, tmp_path):
    table(small).write_csv(tmp_path / "scores.csv")
    with pytest.raises(ColumnMissingError, match="no column 'points'"):
        read_scores(ScoresConfig(str(tmp_path / "scores.csv"), score="points"), small)
    with pytest.raises(ConfigError, match="either a column of scores or one of ranks"):
        ScoresConfig("scores.csv")


def test_lines_about_unknown_users_and_items_are_counted(small):
    more = pl.concat([table(small), table(small, users=["stranger"])])
    teacher = user_scores(more, small)
    assert teacher.notes == (
        "the teacher's scores: 10 of 610 lines are about users or items without training rows",
    )


# --- your own function ---


def recency(small):
    """The later an item of the history, the higher its score."""

    def scores(histories):
        out = np.zeros((len(histories), small.info.warm_items), np.float32)
        for k in range(len(histories)):
            out[k, histories.of(k)] = np.arange(1, len(histories.of(k)) + 1)
        return out

    return scores


def test_a_function_is_asked_for_every_event(small, tmp_path):
    teacher = function_teacher(recency(small), small, identity="recency", max_history=12)
    labels = extract_labels(
        teacher, small, tmp_path, LabelConfig(top_k=1, samples=2), seed=0, mask_seen=False
    )
    assert len(labels) == int(small.is_training().sum())
    for user in range(5):
        first, end = int(small.offsets[user]), int(small.train_end[user])
        known = labels.at(torch.arange(first + 1, end))
        # The newest item of the prefix
        assert known.top_items[:, 0].tolist() == small.items[first : end - 1].tolist()


def test_a_function_never_sees_items_without_training_rows(small):
    cold = small.info.warm_items
    seen = []
    teacher = function_teacher(
        lambda h: seen.append(h.items.max(initial=0)) or np.zeros((len(h), cold), np.float32),
        small,
        identity="x",
    )
    histories = small.histories(np.arange(3), small.train_end[:3])
    items = np.where(np.arange(len(histories.items)) == 1, cold, histories.items).astype(np.int32)
    with_cold = Histories(histories.users, histories.offsets, items, histories.events)
    assert teacher.scores(with_cold).shape == (3, small.catalogue_size)
    assert max(seen) < cold


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda h: np.zeros((len(h), 3), np.float32), r"shape \(60, 3\) for 60 histories"),
        (lambda h: np.zeros((1, 40), np.float32), r"shape \(1, 40\)"),
        (lambda h: np.full((len(h), 40), np.nan, np.float32), "gave nan for user 'u"),
        (lambda h: np.full((len(h), 40), np.inf, np.float32), "gave inf for user 'u"),
    ],
)
@pytest.mark.parametrize("per", ["user", "event"])
def test_a_function_that_misbehaves_is_refused(function, message, per, small, tmp_path):
    assert small.info.warm_items == 40
    teacher = function_teacher(function, small, identity="bad", per=per)
    if per == "event":
        message = message.replace("60 histories", r"\d+ histories").replace(r"\(60", r"\(\d+")
    with pytest.raises(TeacherError, match=message.replace("60", r"\d+")):
        extract_labels(teacher, small, tmp_path, LabelConfig(top_k=2, samples=2), seed=0)


@pytest.mark.slow
def test_teachers_from_the_configuration_file(tmp_path, monkeypatch):
    """A scores file and a function, through the same door as every other setting; the report compares the members."""
    write_tables(tmp_path)
    small = dataset()
    table(small).write_csv(tmp_path / "scores.csv")
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def make(dataset):\n"
        "    counts = dataset.popularity()[: dataset.info.warm_items].astype(np.float32)\n"
        "    return lambda histories: np.tile(np.log(counts), (len(histories), 1))\n"
    )
    (tmp_path / "run.toml").write_text(
        """
[data]
interactions = "log.csv"
schema = { timestamp = "timestamp" }
[teacher]
kind = "ensemble"
members = [
  { model = { kind = "scores", file = "scores.csv", score = "score" } },
  { model = { kind = "function", function = "mine:make" } },
]
[labels]
top_k = 5
samples = 5
[student]
kind = "recurrent"
dim = 8
[student_training]
epochs = 1
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    comparison = runs.run_all(read_config(tmp_path / "run.toml"), tmp_path / "run")
    names = [row.name for row in comparison.rows]
    assert names[:3] == ["teacher", "member 1: scores", "member 2: function"]
    assert [cost.stage for cost in comparison.costs] == [
        "prepare",
        "teacher",
        "baseline",
        "labels",
        "student",
        "export",
        "evaluate",
    ]
    assert all(cost.seconds > 0 for cost in comparison.costs)
    assert {d.b for d in comparison.differences} >= {"member 1: scores", "member 2: function"}


def test_a_function_that_cannot_be_imported(small):
    with pytest.raises(ConfigError, match="cannot be imported"):
        load_teacher(FunctionConfig("no_such_module:make"), Path(), small)
    with pytest.raises(ConfigError, match="cannot be imported"):
        load_teacher(FunctionConfig("json:no_such_name"), Path(), small)


# --- labels ---


@pytest.mark.slow
def test_an_interrupted_extraction_goes_on(small, tmp_path, monkeypatch):
    """The labels are the same, and the shards that were there are not made again."""
    monkeypatch.setattr(extract, "_BATCH", 4)
    monkeypatch.setattr(extract, "_BATCHES_PER_SHARD", 2)
    teacher, config = network(small), LabelConfig(top_k=5, samples=5)
    whole = extract_labels(teacher, small, tmp_path / "whole", config, seed=3)
    assert whole.manifest.shards > 3

    class Stopped(Exception):
        pass

    def stop(task, done, total):
        if done >= 2:
            raise Stopped

    with pytest.raises(Stopped):
        extract_labels(
            teacher,
            small,
            tmp_path / "parts",
            config,
            seed=3,
            options=RunOptions(progress=Heard(stop)),
        )
    made = sorted((tmp_path / "parts").glob("labels-*.npy"))
    assert len(made) == 2
    times = [path.stat().st_mtime_ns for path in made]
    parts = extract_labels(teacher, small, tmp_path / "parts", config, seed=3)
    assert [path.stat().st_mtime_ns for path in made] == times
    rows = torch.from_numpy(small.is_training().nonzero()[0])
    for one, two in zip(vars(whole.at(rows)).values(), vars(parts.at(rows)).values(), strict=True):
        assert torch.equal(one, two)
    assert parts.extraction.bytes == sum(
        path.stat().st_size for path in (tmp_path / "parts").glob("*.npy")
    )
    # One that was damaged meanwhile is named, and made again.
    (tmp_path / "parts" / "manifest.json").unlink()
    made[1].write_bytes(made[1].read_bytes()[:-9])
    (tmp_path / "parts" / "unfinished").write_text(
        extract.key_of(parts.manifest, extract.FORMAT_VERSION)
    )
    with pytest.raises(
        LabelStoreError, match=r"labels-00001\.npy cannot be read, and has been removed"
    ):
        extract_labels(teacher, small, tmp_path / "parts", config, seed=3)
    again = extract_labels(teacher, small, tmp_path / "parts", config, seed=3)
    assert torch.equal(again.at(rows).top_logits, whole.at(rows).top_logits)
    # Another teacher begins anew.
    other = extract_labels(network(small, seed=1), small, tmp_path / "parts", config, seed=3)
    assert not torch.equal(other.at(rows).top_logits, whole.at(rows).top_logits)


@pytest.mark.slow
def test_labels_are_small(small, tmp_path):
    labels = extract_labels(
        network(small), small, tmp_path, LabelConfig(top_k=10, samples=10), seed=0
    )
    shard = np.load(tmp_path / "labels-00000.npy", mmap_mode="r")
    assert shard.dtype["top_items"] == np.dtype(("<u2", (10,)))
    assert shard.dtype["top_logits"] == np.dtype(("<f2", (10,)))
    assert shard.dtype.itemsize == 8 + 10 * 4 + 4 + 10 * 4
    assert labels.extraction.labels == len(labels) == labels.extraction.events


# --- the losses, in training ---


LOSSES = {
    "rd": DistillationConfig(0.0, rd_weight=0.5),
    "rrd": DistillationConfig(0.0, rrd_weight=0.5),
    "plackett-luce": DistillationConfig(0.0, plackett_luce_weight=0.5),
    "rce": DistillationConfig(0.0, rce_weight=0.5),
    "unkd": DistillationConfig(0.0, unkd_weight=0.5),
    "hint": DistillationConfig(0.0, hint_weight=0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_every_student(name, small, tmp_path):
    teacher = network(small)
    labels = extract_labels(
        teacher, small, tmp_path, LabelConfig(top_k=8, samples=8, states=True), seed=0
    )
    for config in (STUDENT, SoftTreeConfig(depth=2, inputs=5, max_history=12)):
        trained = distill_model(config, small, labels, TRAINING, LOSSES[name], seed=0)
        plain = distill_model(config, small, labels, TRAINING, DistillationConfig(0.0), seed=0)
        weights, others = trained.model.state_dict(), plain.model.state_dict()
        assert weights.keys() == others.keys()  # the projection of the hint is gone
        assert any(not torch.equal(weights[key], others[key]) for key in weights)
        assert all(torch.isfinite(value).all() for value in weights.values())


def test_the_hint_needs_states(small, tmp_path):
    labels = extract_labels(
        network(small), small, tmp_path, LabelConfig(top_k=8, samples=8), seed=0
    )
    with pytest.raises(LabelStoreError, match="hold no states"):
        distill_model(STUDENT, small, labels, TRAINING, LOSSES["hint"], seed=0)
    linear = fit_linear(LinearConfig(), small, 0)
    with pytest.raises(ConfigError, match="no hidden layer"):
        extract_labels(linear, small, tmp_path / "linear", LabelConfig(states=True), seed=0)


@pytest.mark.slow
def test_a_hint_resumes_from_its_checkpoint(small, tmp_path):
    labels = extract_labels(
        network(small), small, tmp_path, LabelConfig(top_k=8, samples=8, states=True), seed=0
    )
    training = TrainingConfig(epochs=3, patience=3, batch_size=16)
    whole = distill_model(STUDENT, small, labels, training, LOSSES["hint"], seed=0)

    class Stopped(Exception):
        pass

    def stop(epoch, total):
        if epoch.epoch == 2:
            raise Stopped

    with pytest.raises(Stopped):
        distill_model(
            STUDENT,
            small,
            labels,
            training,
            LOSSES["hint"],
            seed=0,
            options=RunOptions(checkpoint=tmp_path / "c", on_epoch=stop),
        )
    resumed = distill_model(
        STUDENT,
        small,
        labels,
        training,
        LOSSES["hint"],
        seed=0,
        options=RunOptions(checkpoint=tmp_path / "c"),
    )
    for one, two in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.slow
def test_a_curriculum_of_several_teachers(tmp_path):
    write_tables(tmp_path)
    config = small_config(tmp_path)
    config = msgspec.structs.replace(
        config,
        teacher=EnsembleConfig((MemberConfig(config.teacher), MemberConfig(LinearConfig()))),
        distillation=DistillationConfig(curriculum=True),
    )
    run, small = runs.prepare(config, tmp_path / "run")
    runs.train_teacher(run, small)
    stores = runs.teacher_labels(run, small)
    assert len({store.manifest.teacher for store in stores}) == 2
    trained = runs.distill_student(run, small)
    assert np.isfinite(trained.best_ndcg)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["rce_weight", "unkd_weight"])
def test_losses_over_the_whole_catalogue_do_without_a_sampled_softmax(small, tmp_path, loss):
    labels = extract_labels(
        network(small), small, tmp_path, LabelConfig(top_k=8, samples=8), seed=0
    )
    with pytest.raises(ConfigError, match="sampled softmax"):
        distill_model(
            STUDENT,
            small,
            labels,
            TrainingConfig(negatives=5),
            DistillationConfig(**{loss: 1.0}),
            seed=0,
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "student", [STUDENT, MlpConfig(dim=8, hidden=8), SoftTreeConfig(depth=3, inputs=40)]
)
def test_a_student_learns_from_labels_with_a_sampled_softmax(small, tmp_path, student):
    """What large catalogues need: 12 of 40 items are scored in each step, and the teacher's one simple idea is learned."""
    items = np.arange(small.info.warm_items)

    def like_the_last_one(histories):
        last = np.array(
            [histories.of(k)[-1] if len(histories.of(k)) else 0 for k in range(len(histories))]
        )
        return 5.0 * (items % 3 == last[:, None] % 3)

    teacher = function_teacher(like_the_last_one, small, identity="like the last one")
    labels = extract_labels(teacher, small, tmp_path, LabelConfig(top_k=8, samples=8), seed=0)
    training = TrainingConfig(
        epochs=25, patience=25, batch_size=16, negatives=12, learning_rate=2e-2
    )
    curve = distill_model(
        student, small, labels, training, DistillationConfig(0.9, hard_weight=0.1), seed=0
    ).record.curve
    assert np.mean([epoch.loss for epoch in curve[-3:]]) < curve[0].loss - 0.1


@pytest.mark.slow
def test_a_student_learns_about_items_that_nobody_had(small, tmp_path, monkeypatch):
    """The teacher puts the last item of the catalogue, which has no training row, first for everybody; the student learns
    it through the item's features. Without labels over cold items it cannot know.
    """
    # The last epoch is kept: nobody had the new item in the validation part either
    rising = itertools.count()
    monkeypatch.setattr(
        "distilrec.training.trainer.mean_ndcg", lambda scorer, held_out: float(next(rising))
    )
    cold = small.catalogue_size - 1
    assert cold >= small.info.warm_items

    def always_the_new_one(histories):
        return np.tile(5.0 * (np.arange(small.catalogue_size) == cold), (len(histories), 1))

    teacher = function_teacher(always_the_new_one, small, identity="the new one")
    training = TrainingConfig(epochs=15, patience=15, batch_size=16, learning_rate=2e-2)
    asked = questions(small, "test").histories
    places = []
    for cold_items in (True, False):
        config = LabelConfig(top_k=8, samples=8, cold_items=cold_items)
        labels = extract_labels(teacher, small, tmp_path / str(cold_items), config, seed=0)
        assert (labels.hard_labels() == cold).all() == cold_items
        student = distill_model(STUDENT, small, labels, training, DistillationConfig(0.9), seed=0)
        scores = TorchScorer(student.model).scores(asked)
        places.append(float((scores > scores[:, [cold]]).sum(1).mean()))
    assert places[0] < 1 < places[1]
    with pytest.raises(ConfigError, match="items without training rows, which a sampled"):
        distill_model(
            STUDENT,
            small,
            open_labels(tmp_path / "True", small),
            TrainingConfig(negatives=5),
            LOSSES["rd"],
            seed=0,
        )


@pytest.mark.slow
@pytest.mark.parametrize("together", [7, 100])
def test_labels_do_not_depend_on_how_many_are_asked_for_at_once(
    small, tmp_path, monkeypatch, together
):
    teacher, asked_for = network(small), []
    answer = teacher.answer

    def counting(batch, window, position, items):
        asked_for.append((len(window), len(batch.users)))
        return answer(batch, window, position, items)

    config = LabelConfig(top_k=8, samples=8)
    whole = extract_labels(teacher, small, tmp_path / "whole", config, seed=0)
    monkeypatch.setattr("distilrec.labels.extract._LOGITS", together * small.catalogue_size)
    monkeypatch.setattr(teacher, "answer", counting)
    parts = extract_labels(teacher, small, tmp_path / "parts", config, seed=0)
    assert all(positions <= together for positions, _ in asked_for)
    if together == 100:  # whole windows fit: each is in one batch, and asked for once
        windows = training_windows(small, teacher.max_history, teacher.max_history // 2)
        assert sum(number for _, number in asked_for) == len(windows.starts)
        assert max(number for _, number in asked_for) > 1
    rows = torch.from_numpy(small.training_rows())
    for name in ("top_items", "top_logits", "rest_log_sum", "sample_items", "sample_logits"):
        torch.testing.assert_close(
            getattr(parts.at(rows), name), getattr(whole.at(rows), name), rtol=1e-3, atol=1e-3
        )


# --- adapters: each example, as a user runs it ---


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache with a small log in the place of ML-100K: the examples run without the network."""
    folder = tmp_path_factory.mktemp("cache") / "ml-100k"
    folder.mkdir()
    made = tables()
    number = pl.col("user_id").str.strip_prefix("u").cast(pl.Int64) + 1
    log = (
        made["log"]
        .with_columns(number, rating=pl.lit(4))
        .select("user_id", "item_id", "rating", "timestamp")
    )
    log.write_csv(folder / "interactions.csv")
    users = made["users"].with_columns(
        number, gender=pl.col("country"), occupation=pl.col("country")
    )
    users.write_csv(folder / "users.csv")
    made["items"].with_columns(release_year=pl.lit(1990)).write_csv(folder / "items.csv")
    (folder / "complete").write_text("made by a test")
    return folder.parent


@pytest.mark.adapters
@pytest.mark.parametrize(
    "example",
    ["scores_file", "function", "keras_model", "implicit_model", "rectools_model", "recbole_model"],
)
def test_the_examples_run(example, cache, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "teachers" / f"{example}.py", "--users", "60", "--epochs", "1",
         "--folder", str(tmp_path / "run")],
        capture_output=True, text=True, check=False, timeout=600, cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": "torch", "DISTILREC_CACHE": str(cache)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert any(line.startswith("student without distillation") for line in lines)
    assert "Thing number" in lines[-1]


def test_ndcg_of_an_external_teacher_is_measured_like_any_other(small):
    asked = questions(small, "test")
    teacher = user_scores(table(small), small)
    assert 0 <= float(ndcg(rank(teacher, asked), 10).mean()) <= 1
