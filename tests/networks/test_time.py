"""Networks that are told the time: attention with a bias of gaps, and what it sees of the clock."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch

from distilrec.data.dataset import Histories
from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Schema
from distilrec.errors import InvalidValueError
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.networks.batches import (
    batch_of,
    prediction_batch,
    training_batches,
    training_windows,
)
from distilrec.networks.build import build_model
from distilrec.networks.on_cpu import only_torch
from distilrec.networks.sequence import TorchScorer
from distilrec.networks.time_attention import BUCKETS, gap_buckets, time_attention
from distilrec.networks.transformer import TransformerConfig, attention, position_bias
from distilrec.teachers.teacher import ModelTeacher
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import load_model, save_model, train_model
from tests.small_run import tables

PLAIN = TransformerConfig(dim=8, layers=2, heads=2, feed_forward=16, max_history=12)
TIMED = TransformerConfig(dim=8, layers=2, heads=2, feed_forward=16, max_history=12, time_bias=True)
DAY = 86_400.0


def timed_model(dataset, seed=0):
    """A model whose tables of gaps are not 0, as after a training."""
    model = build_model(TIMED, dataset, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for block in model.blocks:
            block.gaps.copy_(torch.randn(block.gaps.shape, generator=generator))
    return model


def test_buckets_are_half_octaves_and_have_ends():
    gaps = torch.tensor([-5, 0, 1, 3, 2**20 - 1, 2**31, 2**62])
    assert gap_buckets(gaps).tolist() == [0, 0, 2, 4, 40, BUCKETS - 1, BUCKETS - 1]
    many = torch.arange(0, 10**9, 997)
    assert (gap_buckets(many).int().diff() >= 0).all()


@pytest.mark.parametrize("by_kernels", [True, False])
def test_attention_has_the_bias_of_gaps(by_kernels):
    """Against the equation, gradients as well."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 9, 4, generator=generator) for _ in range(3))
    ages = torch.randn(3, 9, generator=generator)
    table = torch.randn(3, BUCKETS, generator=generator)
    buckets = torch.randint(BUCKETS, (2, 9, 9), generator=generator).to(torch.uint8)
    causal = torch.ones(9, 9, dtype=torch.bool).tril()

    def expected(query, key, value, ages, table):
        bias = ages[:, None, :] + table[:, buckets.long()].transpose(0, 1)
        logits = query @ key.transpose(-1, -2) / 4**0.5 + bias
        return torch.softmax(logits.masked_fill(~causal, -torch.inf), -1) @ value

    def ours(*tensors):
        if by_kernels:
            return time_attention(*tensors, buckets)
        with only_torch():
            return time_attention(*tensors, buckets)

    found = []
    for function in (ours, expected):
        leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value, ages, table)]
        mixed = function(*leaves)
        found.append([mixed.detach(), *torch.autograd.grad((mixed**2).sum(), leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_table_of_zeros_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 9, 4, generator=generator) for _ in range(3))
    slopes = torch.tensor([-3.0, 0.0, 1.0])
    buckets = torch.randint(BUCKETS, (2, 9, 9), generator=generator).to(torch.uint8)
    timed = time_attention(
        query, key, value, position_bias(slopes, 9), torch.zeros(3, BUCKETS), buckets
    )
    torch.testing.assert_close(timed, attention(query, key, value, slopes), rtol=1e-4, atol=1e-5)


def test_what_happens_later_changes_nothing(small):
    """Neither do the items and times of later events, nor the times at which they are asked for."""
    model = timed_model(small)
    vectors = model.items.vectors()
    batch = next(training_batches(small, training_windows(small, 12), 8, None))
    later_times, later_asked = batch.times.clone(), batch.asked.clone()
    later_times[:, 6:] += 10_000
    later_asked[:, 6:] += 90_000
    changed = dataclasses.replace(batch, times=later_times, asked=later_asked)
    before, after = model.encode(batch, vectors), model.encode(changed, vectors)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_scores_depend_on_when_they_are_asked_for(small):
    scorer = TorchScorer(timed_model(small))
    histories = small.histories(np.arange(4), small.train_end[:4])
    soon = scorer.scores(histories)
    late = scorer.scores(dataclasses.replace(histories, now=histories.now + 30 * DAY))
    shifted = dataclasses.replace(
        histories, now=histories.now + 3 * DAY, times=histories.times + 3 * DAY
    )
    assert not np.allclose(soon, late)
    np.testing.assert_allclose(soon, scorer.scores(shifted), rtol=1e-4, atol=1e-5)
    everyone = small.histories(np.arange(small.users), small.train_end)
    np.testing.assert_allclose(scorer.scores(everyone)[:4], soon, rtol=1e-4, atol=1e-5)


def test_histories_without_times_are_refused(small):
    scorer = TorchScorer(timed_model(small))
    given = Histories(
        np.array([0]), np.array([0, 2]), np.array([1, 2], np.int32), np.ones(2, np.int32)
    )
    with pytest.raises(InvalidValueError, match="these histories do not say it") as problem:
        scorer.scores(given)
    assert "times and now" in problem.value.fix


@pytest.mark.parametrize("dates", [True, False])
def test_without_usable_times_it_is_the_network_without_time(dates):
    log = tables()["log"]
    of_day = pl.from_epoch("timestamp").dt.date()
    log = log.with_columns(timestamp=of_day if dates else pl.lit(1_600_000_000))
    dated = prepare_dataset(log, Schema(timestamp="timestamp"))
    histories = dated.histories(np.arange(9), dated.train_end[:9])
    told, untold = (build_model(config, dated, 3) for config in (TIMED, PLAIN))
    np.testing.assert_array_equal(
        TorchScorer(told).scores(histories), TorchScorer(untold).scores(histories)
    )


def test_labels_are_asked_at_the_time_of_their_event(small, tmp_path):
    """The teacher says about an event, in its labels, what it says when it is asked at its time."""
    trained = train_model(TIMED, small, TrainingConfig(epochs=1), seed=0)
    timed = timed_model(small)
    trained.model.load_state_dict(timed.state_dict())
    teacher = ModelTeacher(trained)
    labels = extract_labels(
        teacher, small, tmp_path, LabelConfig(top_k=small.info.warm_items), seed=0, mask_seen=False
    )
    user = int(np.flatnonzero(small.train_end - small.offsets[:-1] > 4)[0])
    row = int(small.train_end[user]) - 1
    scores = teacher.scores(small.histories(np.array([user]), np.array([row])))
    stored = labels.at(torch.tensor([row]))
    warm = scores[0, : small.info.warm_items]
    np.testing.assert_allclose(
        stored.top_logits[0].numpy(), np.sort(warm)[::-1] - warm.max(), atol=0.02
    )


def test_a_timed_teacher_is_saved_and_loaded(small, tmp_path):
    trained = train_model(TIMED, small, TrainingConfig(epochs=2), seed=0)
    save_model(trained, tmp_path)
    again = load_model(tmp_path, small)
    histories = small.histories(np.arange(4), small.train_end[:4])
    np.testing.assert_array_equal(
        TorchScorer(trained.model).scores(histories), TorchScorer(again.model).scores(histories)
    )
    assert any(float(block.gaps.detach().abs().max()) > 0 for block in trained.model.blocks)


def test_training_and_prediction_agree(small):
    """The state at the end of a window is that of a prediction for the same events."""
    model = timed_model(small)
    vectors = model.items.vectors()
    user = int(np.argmax(small.train_end - small.offsets[:-1] <= 11))
    windows = training_windows(small, 12)
    own = np.flatnonzero(windows.users == user)
    batch = batch_of(small, windows, own[:1])
    histories = small.histories(np.array([user]), small.train_end[[user]] - 1)
    asked = prediction_batch(histories, small.catalogue_size, 12)
    torch.testing.assert_close(
        model.encode(batch, vectors)[0, -1], model.encode(asked, vectors)[asked.targets == 0][0]
    )
