"""A RecTools model (any `ModelBase`: SASRec, BERT4Rec, EASE, LightFM …) as a teacher."""

from __future__ import annotations

from typing import Any

import numpy as np

from distilrec.data.dataset import Dataset
from distilrec.errors import TeacherError
from distilrec.teachers.external import UserScores, user_scores


def training_frame(dataset: Dataset) -> Any:
    """Return the training rows as the pandas frame that `rectools.dataset.Dataset.construct` takes,
    with the ids of the log.
    """
    import pandas as pd

    rows = dataset.target_rows()
    users, items = np.array(dataset.info.user_ids), np.array(dataset.info.item_ids)
    return pd.DataFrame(
        {
            "user_id": users[dataset.user_rows()[rows]],
            "item_id": items[dataset.items[rows]],
            "weight": 1.0,
            "datetime": pd.to_datetime(dataset.times[rows], unit="s"),
        }
    )


def from_rectools(
    model: Any, rectools_dataset: Any, dataset: Dataset, *, k: int = 200
) -> UserScores:
    """Return a teacher from a fitted RecTools model: its k best items of every user, with their
    scores.

    Its scores are taken as logits. Raises TeacherError when the model has nothing to say about a
    user.
    """
    users = np.array(dataset.info.user_ids[: dataset.info.warm_users])
    try:
        table = model.recommend(users=users, dataset=rectools_dataset, k=k, filter_viewed=False)
    except (KeyError, ValueError) as problem:
        raise TeacherError(
            f"the RecTools model cannot recommend to the users of the log: {problem}",
            fix="build its data set from `training_frame(dataset)`, so that the ids are those of "
            "the log",
        ) from None
    return user_scores(table, dataset, source=f"the RecTools model {type(model).__name__}")
