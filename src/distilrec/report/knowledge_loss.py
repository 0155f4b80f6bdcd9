"""What changed on the way from the teacher to the student: where the lists differ, and how popular
they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import msgspec
import numpy as np
from numpy.typing import NDArray

from distilrec.data.dataset import UNKNOWN_ITEM, Dataset
from distilrec.measure.ranking import Ranking
from distilrec.measure.slices import item_groups, user_slices

_SHOWN = 10  # items listed on each side
_GROUPS, _LISTED = 5, 5  # groups of people, and items for each
_FEWEST = 5  # people in the smallest group that is shown
HELD_OUT = "held-out items"


class ItemShift(msgspec.Struct, frozen=True):
    """An item and to how many users (of one seed, on average) each model shows it among the first
    K.
    """

    item_id: str
    title: str
    interactions: int
    shown: dict[str, float]


class ChangedList(msgspec.Struct, frozen=True):
    """What people whose latest item was this one are shown most often, by titles; overlap: share
    that both lists have.
    """

    after: str
    users: int
    teacher: tuple[str, ...]
    student: tuple[str, ...]
    overlap: float


class KnowledgeLoss(msgspec.Struct, frozen=True):
    """overlap: model -> slice of users -> share of the teacher's first K that the model shows too.

    popularity: model (and the held-out items themselves) -> mean training interactions of what is
    shown, and the share of it that goes to head items; more, less: items that the student shows
    more, or less, often than the teacher; changed: groups of people (never less than five) whose
    lists differ most.
    """

    overlap: dict[str, dict[str, float]]
    popularity: dict[str, dict[str, float]]
    more: tuple[ItemShift, ...]
    less: tuple[ItemShift, ...]
    changed: tuple[ChangedList, ...] = ()


def knowledge_loss(
    dataset: Dataset, rankings: Mapping[str, Sequence[Ranking]], teacher: str, student: str, k: int
) -> KnowledgeLoss | None:
    """Compare the lists of all models; None without a teacher and a student."""
    if teacher not in rankings or student not in rankings:
        return None
    asked = rankings[teacher][0].asked
    popular = dataset.popularity()
    head = item_groups(popular) == 0
    slices = user_slices(dataset, asked.histories.users)
    overlap, popularity = {}, {}
    for name, of_seeds in rankings.items():
        if name != teacher:
            pairs = zip(of_seeds, cycle(rankings[teacher]), strict=False)
            each_seed = [_overlap(a.top[:, :k], b.top[:, :k]) for a, b in pairs]
            shares = np.mean(each_seed, axis=0)  # (users,)
            overlap[name] = {
                each: float(shares[inside].mean())
                for each, inside in slices.items()
                if inside.any()
            }
        popularity[name] = _popularity(
            np.concatenate([r.top[:, :k].ravel() for r in of_seeds]), popular, head
        )
    popularity[HELD_OUT] = _popularity(asked.targets, popular, head)
    shown = {
        name: np.mean([_counts(r.top[:, :k], dataset.catalogue_size) for r in of_seeds], axis=0)
        for name, of_seeds in rankings.items()
    }
    shift = shown[student] - shown[teacher]

    def listed(order: NDArray[np.int64]) -> tuple[ItemShift, ...]:
        return tuple(
            ItemShift(
                dataset.info.item_ids[item],
                dataset.info.titles[item],
                int(popular[item]),
                {name: float(counts[item]) for name, counts in shown.items()},
            )
            for item in order[:_SHOWN]
            if shift[item]
        )

    return KnowledgeLoss(
        overlap,
        popularity,
        listed(np.argsort(-shift, kind="stable")),
        listed(np.argsort(shift, kind="stable")),
        _changed(dataset, rankings[teacher][0], rankings[student][0], k),
    )


def _changed(
    dataset: Dataset, teacher: Ranking, student: Ranking, k: int
) -> tuple[ChangedList, ...]:
    """Return the groups by latest item, of the first seed, whose most frequent recommendations
    differ most.
    """
    histories, titles = teacher.asked.histories, dataset.info.titles
    there = np.diff(histories.offsets) > 0
    latest = np.full(len(histories), UNKNOWN_ITEM)
    latest[there] = histories.items[histories.offsets[1:][there] - 1]
    groups, sizes = np.unique(latest[there], return_counts=True)

    def most_shown(ranking: Ranking, users: NDArray[np.bool_]) -> list[int]:
        counts = _counts(ranking.top[users, :k], dataset.catalogue_size)
        order = np.argsort(-counts, kind="stable")[:_LISTED]
        return [int(item) for item in order if counts[item]]

    found = []
    for item, size in zip(groups.tolist(), sizes.tolist(), strict=True):
        if size >= _FEWEST:
            own, other = (most_shown(ranking, latest == item) for ranking in (teacher, student))
            overlap = len(set(own) & set(other)) / max(len(own), 1)
            shown = [tuple(titles[each] for each in items) for items in (own, other)]
            found.append(ChangedList(titles[item], size, shown[0], shown[1], overlap))
    return tuple(sorted(found, key=lambda group: (group.overlap, -group.users))[:_GROUPS])


def _overlap(own: NDArray[np.int32], other: NDArray[np.int32]) -> NDArray[np.float64]:
    there = (other != UNKNOWN_ITEM).sum(1)
    both = (
        ((own[:, :, None] == other[:, None, :]) & (other != UNKNOWN_ITEM)[:, None, :]).any(1).sum(1)
    )
    share: NDArray[np.float64] = both / np.maximum(there, 1)
    return share


def _popularity(
    items: NDArray[np.int32], popular: NDArray[np.int64], head: NDArray[np.bool_]
) -> dict[str, float]:
    known = items[items != UNKNOWN_ITEM]
    if not len(known):
        return {}
    return {
        "average popularity": float(popular[known].mean()),
        "share of head items": float(head[known].mean()),
    }


def _counts(top: NDArray[np.int32], catalogue_size: int) -> NDArray[np.int64]:
    return np.bincount(top[top != UNKNOWN_ITEM], minlength=catalogue_size)
