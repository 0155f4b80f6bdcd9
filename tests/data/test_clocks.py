"""Which times of a log are told to models, and that they go with the events."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from distilrec.data.clocks import why_no_times
from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Schema
from distilrec.networks.batches import (
    histories_at,
    prediction_batch,
    training_batches,
    training_windows,
)
from tests.small_run import SCHEMA, dataset, tables

DAY = 86_400.0


def test_times_are_usable_unless_they_say_nothing_about_gaps():
    days = np.arange(400) * DAY
    assert why_no_times(days + 17.0 * np.arange(400), named=True) == ""
    assert why_no_times(days + np.arange(400) % 24 * 3600.0, named=True) == ""
    assert "no column" in why_no_times(days, named=False)
    assert "equal" in why_no_times(np.full(9, 5.0), named=True)
    assert "equal" in why_no_times(np.zeros(0), named=True)
    assert "dates" in why_no_times(days, named=True)
    # Midnight in Berlin, in winter and in summer
    berlin = days - np.where(np.arange(400) % 365 < 90, 3600.0, 7200.0)
    assert "dates" in why_no_times(berlin, named=True)


@pytest.mark.parametrize("kind", ["none", "equal", "dates"])
def test_a_log_without_usable_times_gives_none_and_says_so(kind):
    made, schema = tables(), SCHEMA
    log = made["log"]
    if kind == "none":
        schema = Schema()
    elif kind == "equal":
        log = log.with_columns(timestamp=pl.lit(1_600_000_000))
    else:
        log = log.with_columns(timestamp=pl.from_epoch("timestamp").dt.date())
    small = prepare_dataset(log, Schema(timestamp=schema.timestamp))
    assert small.why_no_times
    histories = small.histories(np.arange(3), small.train_end[:3])
    assert histories.times is None
    assert histories.now is None
    assert prediction_batch(histories, small.catalogue_size, 9).times is None
    batch = next(training_batches(small, training_windows(small, 12), 8, None))
    assert batch.times is None
    assert batch.asked is None
    said = [note for note in small.info.notes if "no model is told" in note]
    assert said == ([] if kind == "none" else [f"{small.why_no_times}: no model is told the time"])


def test_histories_know_when_each_event_was_and_when_the_next_is_asked_for(small):
    users = np.array([3, 0, 5])
    end = np.array([small.train_end[3], small.offsets[1], small.validation_end[5]])
    histories = small.histories(users, end)
    expected = [small.times[small.train_end[3]], small.times.max()]
    expected.append(small.times[small.validation_end[5]])
    np.testing.assert_array_equal(histories.now, expected)
    first = small.offsets[3]
    known = small.items[first : small.train_end[3]] >= 0
    np.testing.assert_array_equal(
        histories.times[: histories.offsets[1]], small.times[first : small.train_end[3]][known]
    )
    again = histories.take(np.array([2, 0])).select(1, 2)
    np.testing.assert_array_equal(again.now, expected[:1])
    np.testing.assert_array_equal(again.times, histories.times[: histories.offsets[1]])


def test_a_window_knows_the_time_of_each_input_and_of_each_target(small):
    windows = training_windows(small, 6, context=2)
    for batch in training_batches(small, windows, 4, None):
        scored = batch.rows >= 0
        rows = batch.rows[scored].numpy()
        np.testing.assert_array_equal(batch.asked[scored].numpy(), small.times[rows])
        users = small.user_rows()[rows]
        before = np.maximum(rows - 1, small.offsets[users])
        np.testing.assert_array_equal(batch.times[scored].numpy(), small.times[before])
        assert (batch.asked >= batch.times).all()


@pytest.mark.parametrize("length", [3, 50])
def test_a_question_is_asked_now_and_each_event_when_it_happened(small, length):
    """Prediction and training see the same times at the same events."""
    user = int(np.argmax(np.diff(small.offsets)))
    size = int(small.train_end[user] - small.offsets[user])
    histories = small.histories(np.array([user]), small.train_end[[user]])
    batch = prediction_batch(histories, small.catalogue_size, length)
    own = histories.times
    inputs = np.concatenate([own[:1], own])[-min(length, size + 1) :]
    asked = np.concatenate([own, histories.now])[-min(length, size + 1) :]
    np.testing.assert_array_equal(batch.times[0].numpy(), inputs)
    np.testing.assert_array_equal(batch.asked[0].numpy(), asked)
    nothing = small.histories(np.array([user]), small.offsets[[user]])
    empty = prediction_batch(nothing, small.catalogue_size, length)
    assert (empty.times == empty.asked).all()
    assert float(empty.asked) == nothing.now[0]


def test_histories_of_the_positions_of_a_batch_know_their_times(small):
    windows = training_windows(small, 50)
    batch = next(training_batches(small, windows, 4, None))
    window, position = (batch.targets >= 0).nonzero(as_tuple=True)
    found = histories_at(batch, window, position, small.catalogue_size)
    rows = batch.rows[window, position].numpy()
    expected = small.histories(batch.users[window].numpy(), rows)
    for name in ("offsets", "items", "times", "now"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_times_of_a_global_split_are_those_of_the_first_held_out_event():
    small = dataset("global-time")
    users = np.flatnonzero(small.validation_end > small.train_end)
    histories = small.histories(users, small.train_end[users])
    np.testing.assert_array_equal(histories.now, small.times[small.train_end[users]])
