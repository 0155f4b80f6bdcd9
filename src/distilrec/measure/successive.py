"""Evaluation as a service lives: each held-out event is asked for at its own time, with all that
its user did before it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from distilrec.data.dataset import UNKNOWN_ITEM, Dataset, Part
from distilrec.errors import ConfigError, NothingToEvaluateError
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import Questions, Scorer, rank
from distilrec.measure.statistics import RESAMPLES, Interval

MOST_EVENTS = 20_000
"""Maximum number of held-out events that are asked for; of more, this many are drawn at random."""
K = 10


class OverTime(msgspec.Struct, frozen=True):
    """How well a model finds each held-out event at its own time.

    quality: NDCG@10, the mean over events, its interval over users; periods: the same mean in equal
    parts of the time from the first to the last held-out event, NaN for a part without events.
    """

    name: str
    quality: Interval
    periods: tuple[float, ...]


def successive_questions(
    dataset: Dataset,
    part: Part,
    exclude_seen: bool | None = None,
    *,
    most: int = MOST_EVENTS,
    seed: int = 0,
) -> Questions:
    """Return a question for each held-out event of a part, with the user's earlier events of all
    parts as the history, in the order of users and events; `exclude_seen=None` masks seen items
    unless the log has repeats.

    most: of more events, this many are drawn, with `seed`. Raises NothingToEvaluateError when no
    held-out item is in the catalogue.
    """
    exclude = not dataset.info.repeats if exclude_seen is None else exclude_seen
    starts, stops = dataset.part_bounds(part)
    owners = dataset.user_rows()
    every = np.arange(len(owners))
    rows = every[(every >= starts[owners]) & (every < stops[owners])]
    fresh = ~_repetitions(dataset)[rows] if exclude else np.ones(len(rows), bool)
    repeated, rows = int((~fresh).sum()), rows[fresh]
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
    if dataset.why_no_times:
        raise ConfigError(
            f"quality over time needs times: {dataset.why_no_times}",
            fix="name the column of times in data.schema.timestamp",
            parameter="timestamp",
        )
    if periods < 1:
        raise ConfigError(f"periods is {periods}", fix="ask for 1 or more", parameter="periods")
    asked = successive_questions(dataset, part)
    now = asked.histories.now
    assert now is not None
    bounds = np.linspace(now.min(), now.max(), periods + 1)[1:-1]
    period = np.searchsorted(bounds, now, side="right")
    counts = np.bincount(period, minlength=periods)
    found = []
    for name, scorer in scorers.items():
        values = ndcg(rank(scorer, asked, depth=0), K)
        sums = np.bincount(period, values, minlength=periods)
        means = np.divide(sums, counts, out=np.full(periods, np.nan), where=counts > 0)
        found.append(OverTime(name, _interval(values, asked.histories.users), tuple(means)))
    return tuple(found)


def _interval(values: NDArray[np.float64], users: NDArray[np.int64], seed: int = 0) -> Interval:
    """Return the mean of values with a bootstrap interval in which users are drawn, each with all
    of their values.
    """
    _, owner = np.unique(users, return_inverse=True)
    sums, counts = np.bincount(owner, values), np.bincount(owner)
    rng, means = np.random.default_rng(seed), np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        times = np.bincount(rng.integers(len(counts), size=len(counts)), minlength=len(counts))
        means[number] = (times @ sums) / (times @ counts)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))
