"""The user data of a bundle: histories, and what the teacher would recommend after them."""

from __future__ import annotations

import time

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from distilrec.bundle.contents import BundleHistory
from distilrec.bundle.manifest import Manifest
from distilrec.data.dataset import UNKNOWN_ITEM, Dataset, Histories
from distilrec.engine.order import TAIL
from distilrec.engine.visits import events_of_visit
from distilrec.measure.ranking import MOST_SCORES
from distilrec.teachers.teacher import Teacher

_TEACHER_DEPTH = 20


def history_of(dataset: Dataset, teacher: Teacher | None, manifest: Manifest) -> BundleHistory:
    """Return what the users of a data set have done, with the teacher's lists where there is one.

    manifest: of the bundle, which says whether the times of the last events and the last visits go
    with the history.

    Events that a service received long before `end` are in the histories; those from around it are
    compared with each user's last events, of which there are `recent`.
    """
    histories = dataset.histories(np.arange(dataset.users), dataset.offsets[1:])
    info = dataset.info
    end = min(float(dataset.times.max(initial=0.0)), time.time())
    return BundleHistory(
        users=list(info.user_ids),
        offsets=histories.offsets,
        items=histories.items,
        events=histories.events,
        user_columns=dataset.user_features.columns,
        user_weights=dataset.user_features.weights,
        end=end,
        recent=recent_events(dataset, end - TAIL),
        teacher_items=teacher_lists(teacher, histories, info.repeats, dataset.catalogue_size)
        if teacher
        else None,
        last_times=_last_times(histories) if manifest.timed else None,
        visits=None if manifest.visit_gap is UNSET else _last_visits(histories, manifest.visit_gap),
    )


def _last_times(histories: Histories) -> NDArray[np.float64]:
    """Return when the last event of each user happened and the one before, (users, 2); 0 where
    there is none.
    """
    assert histories.times is not None  # only then do answers depend on them
    starts, stops = histories.offsets[:-1], histories.offsets[1:]
    found = np.zeros((len(histories), 2))
    for column, back in enumerate((1, 2)):
        there = stops - starts >= back
        found[there, column] = histories.times[stops[there] - back]
    return found


def _last_visits(histories: Histories, gap: float) -> NDArray[np.int32]:
    """Return how many events of each user are those of the last visit, (users,) int32."""
    assert histories.times is not None  # only then does a student know visits
    bounds = zip(histories.offsets[:-1], histories.offsets[1:], strict=True)
    times = histories.times.tolist()
    return np.array([events_of_visit(times[a:b], gap) for a, b in bounds], np.int32)


def recent_events(dataset: Dataset, since: float) -> NDArray[np.int32]:
    """Return how many events of each user's history stand at or behind the first one with a time
    after `since`, (users,) int32.
    """
    rows = np.arange(len(dataset.times))
    first = dataset.offsets[1:].copy()
    users, late = dataset.user_rows(), dataset.times > since
    np.minimum.at(first, users[late], rows[late])
    counted = (rows >= first[users]) & (dataset.items != UNKNOWN_ITEM)
    before = np.concatenate([[0], np.cumsum(counted)])
    recent: NDArray[np.int32] = np.diff(before[dataset.offsets]).astype(np.int32)
    return recent


def teacher_lists(
    teacher: Teacher, histories: Histories, repeats: bool, catalogue_size: int
) -> NDArray[np.int32]:
    """Return the teacher's best items for these users, best first, (users, depth) int32; -1 where
    there are fewer.
    """
    chunks = []
    step = max(1, MOST_SCORES // catalogue_size)
    for start in range(0, len(histories), step):
        part = histories.select(start, start + step)
        scores = teacher.scores(part)
        if not repeats:
            for k in range(len(part)):
                scores[k, part.of(k)] = -np.inf
        depth = min(_TEACHER_DEPTH, catalogue_size)
        top = np.sort(np.argpartition(-scores, depth - 1, axis=1)[:, :depth], axis=1)
        order = np.argsort(-np.take_along_axis(scores, top, 1), axis=1, kind="stable")
        top = np.take_along_axis(top, order, 1)
        chunks.append(
            np.where(np.isneginf(np.take_along_axis(scores, top, 1)), -1, top).astype(np.int32)
        )
    return np.concatenate(chunks)
