"""A model of the `implicit` library (ALS, BPR, logistic matrix factorisation, item neighbours) as a
teacher.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset, Histories
from distilrec.teachers.external import FunctionTeacher, function_teacher


def training_matrix(dataset: Dataset) -> Any:
    """Return who had what how often in training: a scipy CSR matrix (users, items with training
    rows), for `model.fit`.
    """
    from scipy.sparse import csr_matrix

    rows = dataset.target_rows()
    shape = (dataset.users, dataset.info.warm_items)
    ones = np.ones(len(rows), np.float32)
    return csr_matrix((ones, (dataset.user_rows()[rows], dataset.items[rows])), shape=shape)


def from_implicit(
    model: Any, dataset: Dataset, *, identity: str, scale: float = 1.0
) -> FunctionTeacher:
    """Return a teacher from a fitted implicit model: it knows users, not their order of events, and
    is asked once per user.

    scale: what its scores are multiplied with to be logits; scores of ALS lie between 0 and 1, so
    that 10 is reasonable.
    """
    matrix = training_matrix(dataset)
    items = dataset.info.warm_items

    def scores(histories: Histories) -> NDArray[np.float32]:
        ids, values = model.recommend(
            histories.users, matrix[histories.users], N=items, filter_already_liked_items=False
        )
        # A neighbour model leaves out items without a common user: ids are -1 there, and the lowest
        # score is theirs.
        out = np.full((len(histories), items), np.nan, np.float32)
        for k in range(len(histories)):
            is_known = (ids[k] >= 0) & (ids[k] < items) & (values[k] > -1e30)
            out[k, ids[k][is_known]] = values[k][is_known]
            lowest = values[k][is_known].min() if is_known.any() else 0.0
            out[k, np.isnan(out[k])] = lowest
        return out * np.float32(scale)

    return function_teacher(scores, dataset, identity=identity, per="user")
