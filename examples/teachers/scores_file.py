"""Your teacher as a file of scores: what a nightly job of another system leaves behind.

python examples/teachers/scores_file.py [--users 200] [--epochs 5]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from shop import distill_from

from distilrec.data import Dataset
from distilrec.report import ease
from distilrec.teachers import ScoresConfig, Teacher, read_scores


def write_scores(dataset: Dataset, path: Path, depth: int = 100) -> None:
    """Stands for your system: the best items of every user with their scores. Here it is EASE."""
    model = ease(dataset, 300.0)
    users = np.arange(dataset.info.warm_users)
    scores = 10 * model.scores(dataset.histories(users, dataset.train_end[users]))
    best = np.argsort(-scores, axis=1)[:, :depth]
    ids = np.array(dataset.info.item_ids)
    pl.DataFrame(
        {
            "customer": np.repeat(np.array(dataset.info.user_ids)[users], best.shape[1]),
            "sku": ids[best].ravel(),
            "score": np.take_along_axis(scores, best, 1).ravel(),
        }
    ).write_parquet(path)


def teacher(dataset: Dataset) -> Teacher:
    path = Path("runs") / "teacher-scores.parquet"
    path.parent.mkdir(exist_ok=True)
    write_scores(dataset, path)
    return read_scores(
        ScoresConfig(str(path), user_id="customer", item_id="sku", score="score"), dataset
    )


if __name__ == "__main__":
    distill_from("scores-file", teacher)
