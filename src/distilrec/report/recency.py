"""Popularity of the last days, a baseline that is hard to beat where time matters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distilrec.data.dataset import UNKNOWN_ITEM, Dataset, Histories
from distilrec.errors import ConfigError, InvalidValueError

DAYS = (1, 7, 30)
_DAY = 86_400.0


@dataclass(frozen=True)
class RecentPopularity:
    """Scores an item by its events of the last seconds before a question, by whomever.

    times, items: (rows,), all events of the log in the order of time, held-out ones too: at the
    time of a question, those before it have happened. catalogue: number of items.
    """

    times: NDArray[np.float64]
    items: NDArray[np.int32]
    catalogue: int
    seconds: float

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Return scores, (batch, items) float32. Raises InvalidValueError for histories that do not
        say when they are asked.
        """
        if histories.now is None:
            raise InvalidValueError(
                "recent popularity needs the time of the question, and these histories have none",
                fix="give Histories with now, such as those of Dataset.histories",
            )
        out = np.empty((len(histories), self.catalogue), np.float32)
        order = np.argsort(histories.now, kind="stable")
        now = histories.now[order]
        # What happens at the very time of a question may be its answer
        stops = np.searchsorted(self.times, now, side="left")
        starts = np.searchsorted(self.times, now - self.seconds, side="left")
        counts = np.zeros(self.catalogue, np.int64)
        low = high = int(starts[0]) if len(starts) else 0
        for number, start, stop in zip(order, starts, stops, strict=True):
            counts += np.bincount(self.items[high:stop], minlength=self.catalogue)
            counts -= np.bincount(self.items[low:start], minlength=self.catalogue)
            low, high = int(start), int(stop)
            out[number] = counts
        return out


def recent_popularity(dataset: Dataset, days: float) -> RecentPopularity:
    """Return the popularity of the last days before each question. Raises ConfigError for a log
    without usable times.
    """
    if dataset.why_no_times:
        raise ConfigError(
            f"recent popularity needs times: {dataset.why_no_times}",
            fix="name the column of times in data.schema.timestamp",
            parameter="timestamp",
        )
    known = np.flatnonzero(dataset.items != UNKNOWN_ITEM)
    order = known[np.argsort(dataset.times[known], kind="stable")]
    return RecentPopularity(
        dataset.times[order], dataset.items[order], dataset.catalogue_size, days * _DAY
    )


def recent_baselines(dataset: Dataset) -> dict[str, RecentPopularity]:
    """Return the popularity of the last 1, 7 and 30 days by name; nothing where the log has no
    usable times.
    """
    if dataset.why_no_times:
        return {}
    names = ("popularity, last " + ("day" if days == 1 else f"{days} days") for days in DAYS)
    return {name: recent_popularity(dataset, days) for name, days in zip(names, DAYS, strict=True)}
