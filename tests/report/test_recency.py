"""Recent popularity, and held-out events that are asked for at their own times."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest

from distilrec.data.dataset import UNKNOWN_ITEM
from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Schema
from distilrec.errors import ConfigError, InvalidValueError, NothingToEvaluateError
from distilrec.measure.ranking import questions
from distilrec.measure.successive import compare_over_time, over_time, successive_questions
from distilrec.report.baselines import popularity
from distilrec.report.recency import recent_baselines, recent_popularity
from tests.small_run import dataset, tables

DAY = 86_400.0


@pytest.fixture(scope="module")
def later():
    return dataset("global-time")


@pytest.mark.parametrize("days", [1, 300])
def test_recent_popularity_counts_what_happened_before_the_question(small, days):
    histories = questions(small, "test").histories
    scores = recent_popularity(small, days).scores(histories)
    for k in range(len(histories)):
        age = histories.now[k] - small.times
        rows = (age > 0) & (age <= days * DAY) & (small.items != UNKNOWN_ITEM)
        expected = np.bincount(small.items[rows], minlength=small.catalogue_size)
        np.testing.assert_array_equal(scores[k], expected)
    assert recent_popularity(small, 1).scores(histories.select(0, 0)).shape == (
        0,
        small.catalogue_size,
    )


def test_recent_popularity_needs_times(small):
    histories = small.histories(np.arange(2), small.train_end[:2])
    with pytest.raises(InvalidValueError, match="time of the question"):
        recent_popularity(small, 1).scores(dataclasses.replace(histories, now=None))
    log = tables()["log"].with_columns(timestamp=pl.from_epoch("timestamp").dt.date())
    dates = prepare_dataset(log, Schema(timestamp="timestamp"))
    with pytest.raises(ConfigError, match="dates without a time of day"):
        recent_popularity(dates, 1)
    with pytest.raises(ConfigError, match="quality over time needs times"):
        over_time(dates, {"popularity": popularity(dates)})
    assert recent_baselines(dates) == {}


def test_recent_popularity_is_a_baseline_of_several_spans(small):
    names = ["popularity, last day", "popularity, last 7 days", "popularity, last 30 days"]
    assert list(recent_baselines(small)) == names
    assert [one.seconds / DAY for one in recent_baselines(small).values()] == [1, 7, 30]


@pytest.mark.parametrize("part", ["validation", "test"])
def test_each_event_is_asked_for_with_all_that_came_before_it(later, part):
    asked = successive_questions(later, part)
    starts, stops = later.part_bounds(part)
    expected = []
    for user in range(later.users):
        for row in range(starts[user], stops[user]):
            before = later.items[later.offsets[user] : row]
            if later.items[row] == UNKNOWN_ITEM or later.items[row] not in before:
                expected.append((user, row, before[before != UNKNOWN_ITEM]))
    assert len(expected) == len(asked.histories) == len(asked.targets)
    for k, (user, row, before) in enumerate(expected):
        assert asked.histories.users[k] == user
        assert asked.targets[k] == later.items[row]
        assert asked.histories.now[k] == later.times[row]
        np.testing.assert_array_equal(asked.histories.of(k), before)
    assert asked.repeated == (stops - starts).sum() - len(expected)


def test_of_many_events_some_are_drawn(later):
    asked, again = (successive_questions(later, "test", most=5, seed=3) for _ in range(2))
    assert len(asked.targets) == 5
    np.testing.assert_array_equal(asked.histories.users, again.histories.users)
    np.testing.assert_array_equal(asked.targets, again.targets)


def test_quality_over_time_is_a_mean_over_events_in_parts_of_the_test_period(later):
    class Oracle:
        def scores(self, histories):
            scores = np.zeros((len(histories), later.catalogue_size), np.float32)
            asked = successive_questions(later, "test")
            for k, (user, now) in enumerate(zip(histories.users, histories.now, strict=True)):
                same = (asked.histories.users == user) & (asked.histories.now == now)
                scores[k, asked.targets[same][asked.targets[same] >= 0]] = 1.0
            return scores

    best, counted = over_time(
        later, {"oracle": Oracle(), "popularity": popularity(later)}, periods=3
    )
    asked = successive_questions(later, "test")
    known = float((asked.targets != UNKNOWN_ITEM).mean())
    assert best.quality.mean == pytest.approx(known)
    assert counted.quality.low <= counted.quality.mean <= counted.quality.high
    assert counted.quality.mean < best.quality.mean
    assert len(best.periods) == 3
    period = np.digitize(
        asked.histories.now,
        np.linspace(asked.histories.now.min(), asked.histories.now.max(), 4)[1:-1],
    )
    shares = np.bincount(period, minlength=3) / len(period)
    assert np.nansum(np.array(counted.periods) * shares) == pytest.approx(counted.quality.mean)
    with pytest.raises(ConfigError, match="periods is 0"):
        over_time(later, {}, periods=0)


def test_the_last_event_of_each_user_is_asked_for_by_itself(later):
    every, last = (successive_questions(later, "test", targets=t) for t in ("successive", "last"))
    users = every.histories.users
    places = [np.flatnonzero(users == user)[-1] for user in np.unique(users)]
    np.testing.assert_array_equal(last.histories.users, np.unique(users))
    np.testing.assert_array_equal(last.targets, every.targets[places])
    np.testing.assert_array_equal(last.histories.now, every.histories.now[places])
    for k, place in enumerate(places):
        np.testing.assert_array_equal(last.histories.of(k), every.histories.of(place))


class Noise:
    """Scores that follow from the catalogue and a seed alone."""

    def __init__(self, dataset, seed):
        self.row = np.random.default_rng(seed).normal(size=dataset.catalogue_size)

    def scores(self, histories):
        return np.repeat(self.row[None].astype(np.float32), len(histories), axis=0)


@pytest.mark.parametrize("targets", ["successive", "last"])
def test_seeds_are_compared_event_by_event(later, targets):
    noise = [Noise(later, seed) for seed in range(3)]
    scorers = {"three": noise, "one": noise[:1], "other": [popularity(later)]}
    pairs = [("three", "three"), ("one", "one"), ("three", "one"), ("one", "other")]
    compared = compare_over_time(later, scorers, targets=targets, periods=4, pairs=pairs)
    three, one, other = compared.models
    alone = [over_time(later, {"n": scorer})[0].quality for scorer in noise]
    if targets == "successive":
        assert three.by_seed == pytest.approx([quality.mean for quality in alone])
        assert one.quality == alone[0]
        assert compared.events > compared.users
    else:
        assert compared.events == compared.users
    assert three.quality.mean == pytest.approx(np.mean(three.by_seed))
    assert sum(compared.period_events) == compared.events
    assert len(compared.starts) == len(compared.period_events) == 4
    same, level, apart, against = compared.differences
    assert same.interval.mean == level.interval.low == level.interval.high == 0
    assert level.p_value == 1
    assert apart.interval.mean == pytest.approx(three.quality.mean - one.quality.mean)
    assert against.interval.mean == pytest.approx(one.quality.mean - other.quality.mean)
    assert against.interval.low <= against.interval.mean <= against.interval.high


def test_a_part_without_known_items_is_refused(later):
    unknown = later.items.copy()
    unknown[~later.is_training()] = UNKNOWN_ITEM
    with pytest.raises(NothingToEvaluateError, match="test part"):
        successive_questions(dataclasses.replace(later, items=unknown), "test")
