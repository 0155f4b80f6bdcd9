"""Evaluation as a service lives: each held-out event is asked for at its own time, with all that
its user did before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from distilrec.data.dataset import UNKNOWN_ITEM, Dataset, Part
from distilrec.errors import ConfigError, NothingToEvaluateError
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import Questions, Scorer, rank
from distilrec.measure.statistics import RESAMPLES, Difference, Interval, randomisation_test

MOST_EVENTS = 20_000
"""Maximum number of held-out events that are asked for; of more, this many are drawn at random."""
K = 10
Targets = Literal["successive", "last"]
"""Every held-out event, or the last one of each user."""


class OverTime(msgspec.Struct, frozen=True):
    """How well a model finds each held-out event at its own time.

    quality: NDCG@10, the mean over events (and seeds), its interval over users (and seeds);
    periods: the same mean in equal parts of the time from the first to the last held-out event, NaN
    for a part without events; by_seed: the mean of each scorer.
    """

    name: str
    quality: Interval
    periods: tuple[float, ...]
    by_seed: tuple[float, ...] = ()


class ComparedOverTime(msgspec.Struct, frozen=True):
    """Several models on the same held-out events.

    events, users: how many are asked for; unreachable: events whose item no model could recommend;
    repeated: events left out because seen items are; period_events: events in each part of the
    time; starts: when these parts begin, in seconds since 1970.
    """

    targets: Targets
    events: int
    users: int
    unreachable: int
    repeated: int
    period_events: tuple[int, ...]
    starts: tuple[float, ...]
    models: tuple[OverTime, ...]
    differences: tuple[Difference, ...]


def successive_questions(
    dataset: Dataset,
    part: Part,
    exclude_seen: bool | None = None,
    *,
    targets: Targets = "successive",
    most: int = MOST_EVENTS,
    seed: int = 0,
) -> Questions:
    """Return a question for each held-out event of a part, with the user's earlier events of all
    parts as the history, in the order of users and events; `exclude_seen=None` masks seen items
    unless the log has repeats.

    targets: "last" asks for the last event of each user only, among those whose item is not masked.
    most: of more events, this many are drawn, with `seed`. Raises NothingToEvaluateError when no
    held-out item is in the catalogue.
    """
    exclude = not dataset.info.repeats if exclude_seen is None else exclude_seen
    starts, stops = dataset.part_bounds(part)
    owners = dataset.user_rows()
    every = np.arange(len(owners))
    rows = every[(every >= starts[owners]) & (every < stops[owners]) & dataset.is_target()]
    fresh = ~_repetitions(dataset)[rows] if exclude else np.ones(len(rows), bool)
    repeated, rows = int((~fresh).sum()), rows[fresh]
    if targets == "last":
        rows = rows[np.diff(owners[rows], append=-1) != 0]
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    if not (dataset.items[rows] != UNKNOWN_ITEM).any():
        raise NothingToEvaluateError(
            f"the {part} part has no event whose item any model could recommend",
            fix="give more data, or a larger share for this part",
        )
    return Questions(
        dataset.histories(owners[rows], rows),
        np.arange(len(rows) + 1),
        dataset.items[rows],
        exclude,
        repeated,
        dataset.catalogue_size,
        dataset.roles,
    )


def _repetitions(dataset: Dataset) -> NDArray[np.bool_]:
    """Return which rows hold an item that their user had before, (rows,)."""
    owners, items = dataset.user_rows(), dataset.items
    order = np.lexsort((items, owners))  # stable: of equal pairs, the earlier row comes first
    again = np.zeros(len(items), bool)
    pairs = np.stack([owners[order], items[order]])
    again[order[1:]] = (pairs[:, 1:] == pairs[:, :-1]).all(0)
    again &= items != UNKNOWN_ITEM
    return again


def over_time(
    dataset: Dataset, scorers: Mapping[str, Scorer], part: Part = "test", periods: int = 5
) -> tuple[OverTime, ...]:
    """Return how well each model finds the held-out events of a part, each at its own time.

    Raises ConfigError for a log without usable times, and NothingToEvaluateError.
    """
    by_seed = {name: (scorer,) for name, scorer in scorers.items()}
    return compare_over_time(dataset, by_seed, part, periods).models


def compare_over_time(
    dataset: Dataset,
    scorers: Mapping[str, Sequence[Scorer]],
    part: Part = "test",
    periods: int = 5,
    *,
    targets: Targets = "successive",
    pairs: Sequence[tuple[str, str]] = (),
    on_model: Callable[[str], None] = lambda name: None,
) -> ComparedOverTime:
    """Return how well several models, each with a scorer for each seed, find the held-out events of
    a part, each event at its own time.

    pairs: names of models whose difference is asked for; of models with fewer seeds, the seeds are
    taken in turn. Raises ConfigError for a log without usable times, and NothingToEvaluateError.
    """
    if dataset.why_no_times:
        raise ConfigError(
            f"quality over time needs times: {dataset.why_no_times}",
            fix="name the column of times in data.schema.timestamp",
            parameter="timestamp",
        )
    if periods < 1:
        raise ConfigError(f"periods is {periods}", fix="ask for 1 or more", parameter="periods")
    asked = successive_questions(dataset, part, targets=targets)
    now = asked.histories.now
    assert now is not None
    bounds = np.linspace(now.min(), now.max(), periods + 1)[:-1]
    period = np.searchsorted(bounds[1:], now, side="right")
    events = _Events.of(asked.histories.users, period, periods)
    models, sums = [], {}
    for name, of_seeds in scorers.items():
        on_model(name)
        values = np.stack([ndcg(rank(scorer, asked, depth=0), K) for scorer in of_seeds])
        models.append(events.model(name, values))
        sums[name] = events.sums(values)
    return ComparedOverTime(
        targets,
        len(period),
        len(events.counts),
        int((asked.targets == UNKNOWN_ITEM).sum()),
        asked.repeated,
        tuple(np.bincount(period, minlength=periods).tolist()),
        tuple(bounds.tolist()),
        tuple(models),
        tuple(_difference(a, sums[a], b, sums[b], events.counts) for a, b in pairs),
    )


@dataclass(frozen=True)
class _Events:
    """Whose the held-out events are, and when they were.

    owners: (events,), places among the users who are asked for; counts: (users,), events of each;
    period: (events,), below `periods`.
    """

    owners: NDArray[np.int64]
    counts: NDArray[np.int64]
    period: NDArray[np.int64]
    periods: int

    @classmethod
    def of(cls, users: NDArray[np.int64], period: NDArray[np.int64], periods: int) -> _Events:
        _, owners = np.unique(users, return_inverse=True)
        return cls(owners, np.bincount(owners), period, periods)

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sums of each user's values, (seeds, users), of values (seeds, events)."""
        return np.stack([np.bincount(self.owners, of_seed) for of_seed in values])

    def model(self, name: str, values: NDArray[np.float64]) -> OverTime:
        """Return what a model reached, from its values, (seeds, events)."""
        counts = np.bincount(self.period, minlength=self.periods)
        sums = np.bincount(self.period, values.mean(0), minlength=self.periods)
        means = np.divide(sums, counts, out=np.full(self.periods, np.nan), where=counts > 0)
        return OverTime(
            name,
            _interval(self.sums(values), self.counts),
            tuple(means.tolist()),
            tuple(values.mean(1).tolist()),
        )


def _difference(
    a: str,
    sums_a: NDArray[np.float64],
    b: str,
    sums_b: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> Difference:
    """Compare two models by the sums of each user's values, (seeds, users); the test flips the
    signs of users.
    """
    seeds = np.arange(max(len(sums_a), len(sums_b)))
    sums = sums_a[seeds % len(sums_a)] - sums_b[seeds % len(sums_b)]
    p_value = randomisation_test(sums.mean(0) / counts.mean())
    return Difference(f"ndcg@{K}", a, b, _interval(sums, counts), p_value)


def _interval(sums: NDArray[np.float64], counts: NDArray[np.int64], seed: int = 0) -> Interval:
    """Return the mean over events with a bootstrap interval in which users are drawn, each with all
    of their events, and seeds.

    sums: (seeds, users), the sums of each user's values; counts: (users,), how many these are.
    """
    (seeds, users), rng = sums.shape, np.random.default_rng(seed)
    mean = sums.mean(0)
    means = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        times = np.bincount(rng.integers(users, size=users), minlength=users)
        drawn = mean if seeds == 1 else sums[rng.integers(seeds, size=seeds)].mean(0)
        means[number] = (times @ drawn) / (times @ counts)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(mean.sum() / counts.sum()), float(low), float(high))
