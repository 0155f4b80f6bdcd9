"""Visits in training: which events of a user belong together, `distilrec.engine.visits`, for whole
batches, and where a log has them.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset
from distilrec.engine.visits import VISIT_GAP
from distilrec.networks.batches import Batch, times_of

_RARE = 0.01  # share of the events that begin a visit, or go on with one


def visits_of(batch: Batch, gap: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the number of the visit of each input, and of that in which each position is asked,
    (batch, length) int64 each. gap: seconds without an event that end a visit.

    Raises InvalidValueError for a batch that does not know when its events happened.
    """
    times, asked = times_of(batch)
    visits = (times.diff(dim=1, prepend=times[:, :1]) >= gap).cumsum(1)
    return visits, visits + (asked - times >= gap)


def begins_visit(batch: Batch, gap: float) -> torch.Tensor:
    """Return whether each position is asked after the end of the visit of its input, (batch,
    length). Raises as `visits_of` does.
    """
    times, asked = times_of(batch)
    return asked - times >= gap


def visit_gap_of(dataset: Dataset, wanted: float | None) -> float:
    """Return the seconds that end a visit for a model of this data set, 0 where visits are not
    known: weights that few events of the training meet would be those of chance.

    wanted: of the configuration, None for the default.
    """
    if not dataset.timed:
        return 0.0
    if wanted is not None or not dataset.info.repeats:
        return wanted or 0.0
    return VISIT_GAP if _RARE <= _share_within(dataset, VISIT_GAP) <= 1 - _RARE else 0.0


def _share_within(dataset: Dataset, gap: float) -> float:
    """Return the share of the training events, but for the first of each user, that belong to the
    visit of the event before.
    """
    rows, users = dataset.is_training(), dataset.user_rows()
    pairs = rows[1:] & rows[:-1] & (users[1:] == users[:-1])
    same = np.diff(visits_of_rows(dataset, gap))[pairs] == 0
    return float(same.mean()) if pairs.any() else 0.0


def visits_of_rows(dataset: Dataset, gap: float) -> NDArray[np.int64]:
    """Return the visit of every row, (rows,), numbered through all users; with a gap of 0 all rows
    of a user are one.
    """
    users = dataset.user_rows()
    begins = users[1:] != users[:-1]
    if gap:
        begins |= np.diff(np.floor(dataset.times)) >= gap
    visits: NDArray[np.int64] = np.concatenate([[0], np.cumsum(begins)])[: len(users)]
    return visits
