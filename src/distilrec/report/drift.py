"""How far what comes in now is from what the student was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset
from distilrec.measure.slices import item_groups

_GROUPS = 10


@dataclass(frozen=True)
class Drift:
    """One thing that may have moved. value: a share, or a population stability index; limit: from
    where it is too much.
    """

    what: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.value <= self.limit

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "moved"
        return f"{verdict:>6}  {self.what}: {self.value:.3f} (limit {self.limit:g})"


def drift(
    dataset: Dataset, live: pl.DataFrame, *, stability: float = 0.25, unknown: float = 0.2
) -> list[Drift]:
    """Compare events of today with the log that the data set was made of.

    live: a clean log (`distilrec.data.cleaning.clean_log`). stability: the limit of each population
    stability index, of which .25 is commonly called a major shift (Siddiqi 2006); unknown: the
    limit of each share of events whose user, item or type the training did not know.
    """
    users = set(dataset.info.user_ids[: dataset.info.warm_users])
    positions = {item: n for n, item in enumerate(dataset.info.item_ids[: dataset.info.warm_items])}
    items = np.array([positions.get(item, -1) for item in live["item_id"].to_list()])
    types = {name: n for n, name in enumerate(dataset.info.event_types)}
    kinds = np.array([types.get(name, 0) for name in live["event_type"].to_list()])
    training = dataset.training_rows()
    group = item_groups(dataset.popularity()[: dataset.info.warm_items], _GROUPS)
    per_user = live.group_by("user_id").len()["len"].to_numpy()
    before = (dataset.train_end - dataset.offsets[:-1])[: dataset.info.warm_users]
    share = live["user_id"].is_in(list(users)).mean()
    assert isinstance(share, float)
    levels = np.unique(np.quantile(per_user / per_user.mean(), np.linspace(0, 1, 6)[1:-1]))
    return [
        Drift("events of users without training rows", 1 - share, unknown),
        Drift("events of items without training rows", float((items < 0).mean()), unknown),
        Drift("events of unknown types", float((kinds == 0).mean()), unknown),
        Drift(
            "popularity of the items (stability index)",
            stability_index(
                np.bincount(group[dataset.items[training]], minlength=_GROUPS),
                np.bincount(group[items[items >= 0]], minlength=_GROUPS),
            ),
            stability,
        ),
        Drift(
            "types of events (stability index)",
            stability_index(
                np.bincount(dataset.events[training], minlength=len(types)),
                np.bincount(kinds, minlength=len(types)),
            ),
            stability,
        ),
        Drift(
            "events per user, in units of their mean (stability index)",
            stability_index(
                np.bincount(
                    np.searchsorted(levels, before / before.mean()), minlength=len(levels) + 1
                ),
                np.bincount(
                    np.searchsorted(levels, per_user / per_user.mean()), minlength=len(levels) + 1
                ),
            ),
            stability,
        ),
    ]


def stability_index(before: NDArray[np.int64], now: NDArray[np.int64]) -> float:
    """Sum (p - q) log(p / q) over groups, the population stability index; before, now: (groups,)
    counts.

    Half a count is added to every group, so that an empty one is no infinity.
    """
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (before, now))
    return float(((p - q) * np.log(p / q)).sum())
