"""The number that early stopping watches: NDCG@10 on the validation part, never on the
test part.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import torch

from distilrec.data.dataset import Dataset
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import Questions, Scorer, questions, rank
from distilrec.training import parallel

S = TypeVar("S", bound=Scorer)


def validation_ndcg(scorer: Scorer, dataset: Dataset) -> float:
    """Return the mean NDCG@10 over all validation users, full catalogue. The processes of a group
    share the users.
    """
    return mean_ndcg(scorer, questions(dataset, "validation"))


def best_on_validation(scorers: Iterable[S], dataset: Dataset) -> S:
    """Return the scorer whose NDCG@10 over all validation users is the highest, the first of equal
    ones. They are made one after the other where `scorers` makes them so.
    """
    held_out = questions(dataset, "validation")
    return max(scorers, key=lambda scorer: mean_ndcg(scorer, held_out))


def mean_ndcg(scorer: Scorer, held_out: Questions) -> float:
    """Return the mean NDCG@10 over the users of some questions. The processes of a group share
    them.
    """
    rank_here, size = parallel.rank_and_size()
    users = len(held_out.histories)
    mine = held_out.select(users * rank_here // size, users * (rank_here + 1) // size)
    values = ndcg(rank(scorer, mine, depth=0), 10) if len(mine.histories) else np.zeros(0)
    together = parallel.total(
        torch.tensor([float(values.sum()), float(len(values))], dtype=torch.float64)
    )
    return float(together[0] / together[1])


def sample_of(held_out: Questions, users: int, seed: int) -> Questions:
    """Return the questions about this many users, drawn by the seed; all of them where there are no
    more, and for 0.
    """
    if not 0 < users < len(held_out.histories):
        return held_out
    # An epoch, counted from 1, draws from (seed, epoch)
    drawn = np.random.default_rng([seed, 0]).choice(len(held_out.histories), users, replace=False)
    return held_out.take(np.sort(drawn))
