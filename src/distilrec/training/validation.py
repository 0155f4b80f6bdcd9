"""The number that early stopping watches: NDCG@10 on the validation part, never on the
test part.
"""

from __future__ import annotations

import numpy as np
import torch

from distilrec.data.dataset import Dataset
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import Scorer, questions, rank
from distilrec.training import parallel


def validation_ndcg(scorer: Scorer, dataset: Dataset) -> float:
    """Return the mean NDCG@10 over validation users, full catalogue. The processes of a group share
    the users.
    """
    held_out = questions(dataset, "validation")
    rank_here, size = parallel.rank_and_size()
    users = len(held_out.histories)
    mine = held_out.select(users * rank_here // size, users * (rank_here + 1) // size)
    values = ndcg(rank(scorer, mine, depth=0), 10) if len(mine.histories) else np.zeros(0)
    together = parallel.total(
        torch.tensor([float(values.sum()), float(len(values))], dtype=torch.float64)
    )
    return float(together[0] / together[1])
