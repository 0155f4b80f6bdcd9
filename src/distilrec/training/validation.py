"""The number that early stopping watches: NDCG@10 on the validation part, never on the test part."""

from __future__ import annotations

from distilrec.data.dataset import Dataset
from distilrec.evaluate.metrics import ndcg
from distilrec.evaluate.ranking import Scorer, questions, rank


def validation_ndcg(scorer: Scorer, dataset: Dataset) -> float:
    """Mean NDCG@10 over validation users, full catalogue."""
    return float(ndcg(rank(scorer, questions(dataset, "validation")), 10).mean())
