"""The fidelity of the student: where its lists differ from the teacher's, and how popular the items
of both are.
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


class Fidelity(msgspec.Struct, frozen=True):
    """How far the student shows what the teacher would show.

    overlap: model -> slice of users -> share of the teacher's first K that the model shows too.

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


def fidelity(
    dataset: Dataset, rankings: Mapping[str, Sequence[Ranking]], teacher: str, student: str, k: int
) -> Fidelity | None:
    """Compare the lists of all models; None without a teacher and a student."""
    if teacher not in rankings or student not in rankings:
        return None
    questions = rankings[teacher][0].questions
    popular = dataset.popularity()
    head = item_groups(popular) == 0
    slices = user_slices(dataset, questions.histories.users)
    overlap, popularity = {}, {}
    for name, of_seeds in rankings.items():
        if name != teacher:
            pairs = zip(of_seeds, cycle(rankings[teacher]), strict=False)
            by_seed = [_overlap(a.top[:, :k], b.top[:, :k]) for a, b in pairs]
            shares = np.mean(by_seed, axis=0)  # (users,)
            overlap[name] = {
                users: float(shares[inside].mean())
                for users, inside in slices.items()
                if inside.any()
            }
        popularity[name] = _popularity(
            np.concatenate([r.top[:, :k].ravel() for r in of_seeds]), popular, head
        )
    popularity[HELD_OUT] = _popularity(questions.targets, popular, head)
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

    return Fidelity(
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
    histories, titles = teacher.questions.histories, dataset.info.titles
    has_history = np.diff(histories.offsets) > 0
    latest = np.full(len(histories), UNKNOWN_ITEM)
    latest[has_history] = histories.items[histories.offsets[1:][has_history] - 1]
    groups, sizes = np.unique(latest[has_history], return_counts=True)

    def most_shown(ranking: Ranking, users: NDArray[np.bool_]) -> list[int]:
        counts = _counts(ranking.top[users, :k], dataset.catalogue_size)
        order = np.argsort(-counts, kind="stable")[:_LISTED]
        return [int(item) for item in order if counts[item]]

    changed = []
    for item, size in zip(groups.tolist(), sizes.tolist(), strict=True):
        if size >= _FEWEST:
            by_teacher, by_student = (
                most_shown(ranking, latest == item) for ranking in (teacher, student)
            )
            overlap = len(set(by_teacher) & set(by_student)) / max(len(by_teacher), 1)
            shown = [tuple(titles[i] for i in items) for items in (by_teacher, by_student)]
            changed.append(ChangedList(titles[item], size, shown[0], shown[1], overlap))
    return tuple(sorted(changed, key=lambda group: (group.overlap, -group.users))[:_GROUPS])


def _overlap(student: NDArray[np.int32], teacher: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the share of each of the teacher's lists that the student has too, (users,)."""
    is_item = teacher != UNKNOWN_ITEM
    both = ((student[:, :, None] == teacher[:, None, :]) & is_item[:, None, :]).any(1).sum(1)
    share: NDArray[np.float64] = both / np.maximum(is_item.sum(1), 1)
    return share


def _popularity(
    items: NDArray[np.int32], popular: NDArray[np.int64], head: NDArray[np.bool_]
) -> dict[str, float]:
    items = items[items != UNKNOWN_ITEM]
    if not len(items):
        return {}
    return {
        "average popularity": float(popular[items].mean()),
        "share of head items": float(head[items].mean()),
    }


def _counts(top: NDArray[np.int32], catalogue_size: int) -> NDArray[np.int64]:
    return np.bincount(top[top != UNKNOWN_ITEM], minlength=catalogue_size)
