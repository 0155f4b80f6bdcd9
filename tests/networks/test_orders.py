"""The orders in which trainings read a log without order, and the labels that belong to each."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Schema
from distilrec.distill import distillation
from distilrec.distill.distillation import DistillationConfig, distill_model
from distilrec.distill.sources import AskedTeacher
from distilrec.errors import ConfigError, LabelStoreError
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.networks.batches import training_batches, training_windows
from distilrec.networks.orders import Orders, shuffled_rows
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.teachers.teacher import Answer, Cost
from distilrec.training.options import RunOptions, TrainingConfig
from distilrec.training.trained import train_model
from tests.training.test_trainer import Interrupted, interrupt_after, weights

STUDENT = RecurrentConfig(dim=8, max_history=12)
TRAINING = TrainingConfig(epochs=4, patience=4, batch_size=16)


@pytest.fixture(scope="module")
def unordered():
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{item}")
        for user in range(40)
        for item in rng.choice(25, rng.integers(3, 20), replace=False)
    ]
    log = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    return prepare_dataset(log, Schema())


@pytest.fixture(scope="module")
def baskets():
    """Of each user three visits, of which each has one time."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{item}", 1_000.0 * visit)
        for user in range(30)
        for visit in range(3)
        for item in rng.choice(25, rng.integers(2, 7), replace=False)
    ]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return prepare_dataset(log, Schema(timestamp="timestamp"), ties="unordered")


class HistoryTeacher:
    """Expects items that follow from the last two items of the history and from its length."""

    per_user = False
    state_dim = 0
    identity = "history"
    cost = Cost(0, 0.0)

    def __init__(self, max_history=12, per_user=False):
        self.max_history, self.per_user = max_history, per_user

    def answer(self, batch, window, position, items):
        last = batch.items[window, position]
        before = batch.items[window, (position - 1).clamp(min=0)]
        had = batch.earlier.ne(batch.items.max()).sum(1)[window] + position
        return Answer(self.logits(last, before, had, items))

    @staticmethod
    def logits(last, before, had, items):
        item = torch.arange(items)
        mixed = 31 * last[:, None] + 17 * before[:, None] + 7 * had[:, None] + 3 * item
        return torch.sin(mixed.double()).float()

    def scores(self, histories):
        return np.tile(np.arange(25, dtype=np.float32), (len(histories), 1))[:, : self.items]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), epoch=st.integers(1, 1000))
def test_an_order_is_a_permutation_of_the_training_rows_of_each_user(unordered, seed, epoch):
    ordered = Orders(seed).of_epoch(unordered, epoch)
    training = unordered.is_training()
    rows = np.arange(len(unordered.items))
    assert (ordered.keys[~training] == rows[~training]).all()
    users = unordered.user_rows()
    assert (users[ordered.keys] == users).all()
    assert (np.sort(ordered.keys) == rows).all()
    assert (ordered.dataset.items == unordered.items[ordered.keys]).all()
    assert (ordered.dataset.events == unordered.events[ordered.keys]).all()
    again = Orders(seed).of_epoch(unordered, epoch)
    assert (again.keys == ordered.keys).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), epoch=st.integers(1, 1000))
def test_only_events_at_the_same_time_change_places(baskets, seed, epoch):
    assert baskets.info.order == "ties"
    keys = Orders(seed).of_epoch(baskets, epoch).keys
    rows = np.arange(len(baskets.items))
    assert (np.sort(keys) == rows).all() and (keys != rows).any()
    assert (baskets.user_rows()[keys] == baskets.user_rows()).all()
    assert (baskets.times[keys] == baskets.times).all()
    assert (keys[~baskets.is_training()] == rows[~baskets.is_training()]).all()


def test_labels_of_baskets_know_several_orders(baskets, tmp_path):
    config, orders = LabelConfig(5, 5, orders=3), Orders(3, 3)
    labels = extract_labels(HistoryTeacher(), baskets, tmp_path, config, seed=3)
    assert labels.manifest.orders == 3
    for epoch in range(1, 5):
        ordered = orders.of_epoch(baskets, epoch)
        at = torch.from_numpy(ordered.keys[baskets.training_rows()])
        assert len(labels.at(at).top_items) == len(at)
    distill_model(
        STUDENT, baskets, [labels], TRAINING, DistillationConfig(), seed=0, options=RunOptions()
    )


def test_each_epoch_and_each_seed_has_an_order_of_its_own(unordered):
    keys = [Orders(seed).of_epoch(unordered, epoch).keys for seed in (0, 1) for epoch in (1, 2, 3)]
    assert len({key.tobytes() for key in keys}) == 6


def test_a_few_orders_are_used_in_turn(unordered):
    rows = len(unordered.items)
    keys = [Orders(0, 3).of_epoch(unordered, epoch).keys for epoch in range(1, 7)]
    for first, second in zip(keys[:3], keys[3:], strict=True):
        assert (first == second).all()
    assert [int(key.min() // rows) for key in keys] == [0, 1, 2, 0, 1, 2]
    assert len({(key % rows).tobytes() for key in keys}) == 3


def test_all_orders_are_as_likely(unordered):
    user = int(np.diff(unordered.offsets)[: unordered.info.warm_users].argmax())
    first, stop = unordered.offsets[user], unordered.train_end[user]
    rng = np.random.default_rng(0)
    places = [
        int(np.flatnonzero(shuffled_rows(unordered, rng)[first:stop] == first)[0])
        for _ in range(2000)
    ]
    size = int(stop - first)
    expected = 2000 / size
    counts = np.bincount(places, minlength=size)
    assert ((counts - expected) ** 2 / expected).sum() < 45  # p < .001 for up to 20 places


def test_a_log_with_order_keeps_it(small):
    for orders in (Orders(0), Orders(5, 3)):
        ordered = orders.of_epoch(small, 1)
        assert ordered.dataset is small
        assert (ordered.keys == np.arange(len(small.items))).all()


@pytest.mark.parametrize("context", [0.0, 0.5])
def test_labels_are_what_the_teacher_says_of_the_history_that_the_student_sees(
    unordered, tmp_path, context
):
    """Every label that an epoch looks up is the answer to the very history before its target."""
    teacher, orders = HistoryTeacher(max_history=40), Orders(3, 3)
    config = LabelConfig(top_k=25, samples=1, orders=3)
    labels = extract_labels(teacher, unordered, tmp_path, config, seed=3, mask_seen=False)
    assert labels.manifest.orders == 3
    assert len(labels) == 3 * labels.extraction.events == 3 * len(unordered.training_rows())
    found = set()
    for epoch in range(1, 5):
        ordered = orders.of_epoch(unordered, epoch)
        windows = training_windows(unordered, 40, int(context * 40))
        for batch in training_batches(
            ordered.dataset, windows, 7, np.random.default_rng(epoch), keys=ordered.keys
        ):
            window, position = (batch.targets >= 0).nonzero(as_tuple=True)
            keys = batch.rows[window, position]
            targets = unordered.items[keys.numpy() % len(unordered.items)]
            assert (batch.targets[window, position].numpy() == targets).all()
            stored = labels.at(keys)
            said = teacher.answer(batch, window, position, 25).logits
            said = said - said.amax(1, keepdim=True)
            kept = torch.empty_like(said).scatter_(1, stored.top_items, stored.top_logits)
            assert torch.allclose(kept, said, atol=2e-3)
            found |= set(keys.tolist())
    assert len(found) == len(labels)


def test_labels_of_other_orders_are_missed(unordered, tmp_path):
    """The test above would fail with labels of one order for all epochs."""
    config = LabelConfig(top_k=25, samples=1, orders=1)
    labels = extract_labels(HistoryTeacher(40), unordered, tmp_path, config, seed=3)
    ordered = Orders(3, 2).of_epoch(unordered, 2)
    with pytest.raises(LabelStoreError, match="no labels are stored for row"):
        labels.at(torch.from_numpy(ordered.keys[unordered.training_rows()]))


def test_labels_of_a_log_with_order_know_one(small, tmp_path):
    labels = extract_labels(HistoryTeacher(), small, tmp_path, LabelConfig(5, 5), seed=0)
    assert labels.manifest.orders == 0
    assert len(labels) == labels.extraction.events


@pytest.mark.slow
def test_the_student_looks_at_the_orders_of_its_labels(unordered, tmp_path, monkeypatch):
    labels = extract_labels(
        HistoryTeacher(), unordered, tmp_path, LabelConfig(5, 5, orders=2), seed=0
    )
    used = []
    objective = distillation.Objective

    def spied(*of):
        made = objective(*of)
        used.append(made.orders)
        return made

    monkeypatch.setattr(distillation, "Objective", spied)
    asked = AskedTeacher(HistoryTeacher(), unordered)
    for settings_of, source in (
        (DistillationConfig(), labels),
        (DistillationConfig(denoise=0.2, rrd_weight=0.1), labels),
        (DistillationConfig(), asked),
    ):
        trained = distill_model(STUDENT, unordered, source, TRAINING, settings_of, seed=1)
        assert all(np.isfinite(epoch.loss) for epoch in trained.record.curve)
    # A teacher that is asked sees the order of each epoch
    assert used == [Orders(0, 2), Orders(0, 2), None]


@pytest.mark.slow
def test_labels_of_users_hold_for_every_order(unordered, tmp_path):
    teacher = HistoryTeacher(per_user=True)
    teacher.items = unordered.catalogue_size
    labels = extract_labels(teacher, unordered, tmp_path / "a", LabelConfig(5, 5), seed=0)
    assert labels.manifest.orders == 0
    assert distillation._orders([labels]) is None
    of_events = extract_labels(
        HistoryTeacher(), unordered, tmp_path / "b", LabelConfig(5, 5, orders=2), seed=0
    )
    distill_model(STUDENT, unordered, [of_events, labels], TRAINING, DistillationConfig(), seed=0)


def test_labels_of_different_orders_are_refused(unordered, tmp_path):
    stores = [
        extract_labels(
            HistoryTeacher(), unordered, tmp_path / str(n), LabelConfig(5, 5, orders=n), seed=0
        )
        for n in (1, 2)
    ]
    with pytest.raises(ConfigError, match="different orders of the histories"):
        distill_model(STUDENT, unordered, stores, TRAINING, DistillationConfig(), seed=0)


def distilled(data, folder, options):
    labels = extract_labels(HistoryTeacher(), data, folder, LabelConfig(5, 5, orders=2), seed=0)
    return distill_model(
        STUDENT, data, labels, TRAINING, DistillationConfig(), seed=3, options=options
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["alone", "distilled"])
def test_a_resumed_training_on_sets_equals_an_uninterrupted_one(unordered, tmp_path, kind):
    def trained(**options):
        if kind == "distilled":
            return distilled(unordered, tmp_path / "labels", RunOptions(**options))
        return train_model(STUDENT, unordered, TRAINING, seed=3, options=RunOptions(**options))

    whole = trained()
    with pytest.raises(Interrupted):
        trained(checkpoint=tmp_path / "c", on_epoch=interrupt_after(1))
    resumed = trained(checkpoint=tmp_path / "c")
    assert all(torch.equal(weights(whole)[name], weights(resumed)[name]) for name in weights(whole))
    assert whole.record.identity == resumed.record.identity


@pytest.mark.slow
def test_training_on_sets_differs_from_training_in_the_drawn_order(unordered):
    info = msgspec.structs.replace(unordered.info, order="time")
    one, two = (
        train_model(STUDENT, data, TRAINING, seed=3)
        for data in (unordered, replace(unordered, info=info))
    )
    assert any(not torch.equal(weights(one)[name], weights(two)[name]) for name in weights(one))
