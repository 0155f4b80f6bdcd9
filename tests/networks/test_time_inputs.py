"""What the time of a question adds in torch: against the formula, from windows and histories, and where a log has no usable times."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import polars as pl
import pytest
import torch

from distilrec.data.dataset import Histories
from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Schema
from distilrec.engine.time_inputs import KNOTS
from distilrec.errors import ConfigError, InvalidValueError
from distilrec.networks.batches import batch_of, prediction_batch, training_windows
from distilrec.networks.build import build_model
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.sequence import TorchScorer
from distilrec.networks.transformer import TransformerConfig
from distilrec.privacy import PrivateTrainingConfig, train_private
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import load_model, save_model, train_model
from tests.small_run import draw_times, tables

ZONE = "Australia/Lord_Howe"  # half an hour of summer time
PLAIN = RecurrentConfig(dim=8, max_history=12)
TIMED = msgspec.structs.replace(PLAIN, time=True, timezone=ZONE)
TEACHER = TransformerConfig(
    dim=8, layers=2, heads=2, feed_forward=16, max_history=12, time=True, timezone=ZONE
)
BOTH = pytest.mark.parametrize("config", [TIMED, TEACHER], ids=["student", "transformer"])
VISITS = msgspec.structs.replace(
    PLAIN, neighbours=4, neighbour_events=5, repeat_events=7, visit_gap=1800.0
)
ALL = pytest.mark.parametrize(
    "config", [TIMED, TEACHER, VISITS], ids=["student", "transformer", "visits"]
)
DAY = 86_400.0


@pytest.fixture(scope="module")
def spread():
    """A log whose gaps go from seconds to weeks."""
    log = tables()["log"]
    gaps = np.floor(np.exp(np.random.default_rng(0).uniform(0, 14, len(log))))
    times = 1_500_000_000 + np.cumsum(gaps)
    return prepare_dataset(
        log.with_columns(timestamp=pl.Series(times)), Schema(timestamp="timestamp")
    )


def test_it_is_the_formula(spread):
    """At each position of a prediction batch, by Python's clocks."""
    inputs = draw_times(build_model(TIMED, spread, 0)).time
    histories = spread.histories(np.arange(20), spread.train_end[:20])
    batch = prediction_batch(histories, spread.catalogue_size, 12)
    with torch.no_grad():
        found = inputs(batch).numpy()
    gaps, nothing, hours, days = (
        table.detach().numpy().astype(np.float64)
        for table in (inputs.gaps, inputs.nothing, inputs.hours, inputs.days)
    )
    for row, column in np.ndindex(batch.items.shape):
        asked, last = int(batch.asked[row, column]), int(batch.times[row, column])
        clock = datetime.fromtimestamp(asked, ZoneInfo(ZONE))
        hour = clock.hour + clock.minute / 60 + clock.second / 3600
        place = np.log(1 + max(asked - last, 0)) / np.log(4)
        first = batch.items[row, column] == spread.catalogue_size
        for c in range(8):
            of_gap = nothing[c] if first else np.interp(place, np.arange(KNOTS), gaps[:, c])
            of_hour = np.interp(hour, np.arange(24), hours[:, c], period=24)
            expected = of_gap + of_hour + days[(clock.weekday() - 3) % 7, c]
            assert found[row, column, c] == pytest.approx(expected, abs=2e-5)


def test_gaps_beyond_the_longest_of_the_training_are_read_as_it(small):
    """So a question after a year is one after the longest wait that was learned from."""
    model = draw_times(build_model(msgspec.structs.replace(TIMED, timezone="UTC"), small, 0))
    model.begin(small)
    scorer = TorchScorer(model)
    histories = small.histories(np.arange(9), small.train_end[:9])
    soon, late, later = (
        scorer.scores(dataclasses.replace(histories, now=histories.now + wait))
        for wait in (-59, 70 * DAY, 1_400 * DAY)  # the same hour of the same weekday
    )
    np.testing.assert_allclose(late, later, rtol=1e-4, atol=1e-5)
    assert not np.allclose(soon, late, atol=0.1)
    reached, table = int(model.time.reached), model.time.arrays()["time_gaps"]
    assert 4 ** (reached - 1) <= 60 < 4 ** (reached + 1)  # a minute is between all events
    assert (table[reached:] == model.time.gaps[reached]).all()
    assert (table[:reached] == model.time.gaps[:reached]).all()


@ALL
def test_training_and_prediction_agree(spread, config):
    """The state at the end of a window is that of a prediction for the same events."""
    model = draw_times(build_model(config, spread, 0))
    vectors = model.items.vectors()
    windows = training_windows(spread, 12)
    for user in (0, 5, 30):
        own = np.flatnonzero(windows.users == user)  # the newest window first
        histories = spread.histories(np.array([user]), spread.train_end[[user]] - 1)
        batch = batch_of(spread, windows, own[:1])
        asked = prediction_batch(histories, spread.catalogue_size, batch.items.shape[1])
        torch.testing.assert_close(
            model.encode(batch, vectors)[0, -1], model.encode(asked, vectors)[asked.targets == 0][0]
        )


@ALL
def test_nothing_later_changes_a_position(spread, config):
    model = draw_times(build_model(config, spread, 0))
    vectors = model.items.vectors()
    batch = batch_of(spread, training_windows(spread, 12), np.arange(8))
    later_times, later_asked = batch.times.clone(), batch.asked.clone()
    later_times[:, 6:] += 10_000
    later_asked[:, 6:] += 90_000
    changed = dataclasses.replace(batch, times=later_times, asked=later_asked)
    before, after = model.encode(batch, vectors), model.encode(changed, vectors)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


@BOTH
def test_it_learns_what_the_time_says(spread, config):
    """All tables move in a training, and are saved and loaded."""
    trained = train_model(config, spread, TrainingConfig(epochs=2, batch_size=16), seed=0)
    for table in trained.model.time.parameters():
        assert float(table.detach().abs().max()) > 0


def test_a_student_is_saved_and_loaded(spread, tmp_path):
    trained = train_model(TIMED, spread, TrainingConfig(epochs=1, batch_size=16), seed=0)
    assert 0 < trained.model.time.reached < KNOTS - 1
    save_model(trained, tmp_path)
    again = load_model(tmp_path, spread)
    histories = spread.histories(np.arange(4), spread.train_end[:4])
    later = dataclasses.replace(histories, now=histories.now + 900 * DAY)
    np.testing.assert_array_equal(
        TorchScorer(trained.model).scores(later), TorchScorer(again.model).scores(later)
    )


def test_histories_without_times_are_refused(small):
    scorer = TorchScorer(build_model(TIMED, small, 0))
    given = Histories(
        np.array([0]), np.array([0, 2]), np.array([1, 2], np.int32), np.ones(2, np.int32)
    )
    with pytest.raises(InvalidValueError, match="these histories do not say it"):
        scorer.scores(given)


@pytest.mark.parametrize("times", ["dates", "equal", "none"])
def test_without_usable_times_it_is_the_student_without_time(times):
    """And the notes of the report say so, where there is a column of times."""
    log = tables()["log"]
    schema = Schema(timestamp=None if times == "none" else "timestamp")
    if times != "none":
        dates = pl.from_epoch("timestamp").dt.date()
        log = log.with_columns(timestamp=dates if times == "dates" else pl.lit(1_600_000_000))
    dataset = prepare_dataset(log, schema)
    told, untold = (build_model(config, dataset, 3) for config in (TIMED, PLAIN))
    assert told.time is None and told.timezone is None
    histories = dataset.histories(np.arange(9), dataset.train_end[:9])
    np.testing.assert_array_equal(
        TorchScorer(told).scores(histories), TorchScorer(untold).scores(histories)
    )
    assert told.arrays().keys() == untold.arrays().keys()
    notes = [note for note in dataset.info.notes if "no model is told the time" in note]
    assert len(notes) == (times != "none")


def test_a_student_without_it_has_nothing_of_it(small):
    plain = build_model(PLAIN, small, 0)
    assert not any("time" in name for name in (*plain.state_dict(), *plain.arrays()))


def test_a_private_student_is_not_told_the_time(small):
    with pytest.raises(ConfigError, match="told the time cannot be trained privately") as problem:
        train_private(TIMED, small, PrivateTrainingConfig(), seed=0)
    assert problem.value.context["parameter"] == "time"
