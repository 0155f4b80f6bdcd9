"""Rankings of the catalogue, metrics, and intervals around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names

if TYPE_CHECKING:
    from distilrec.measure.metrics import ndcg
    from distilrec.measure.ranking import Ranking, questions, rank
    from distilrec.measure.statistics import bootstrap, paired_difference

_MODULES = {
    "Ranking": "ranking",
    "bootstrap": "statistics",
    "ndcg": "metrics",
    "paired_difference": "statistics",
    "questions": "ranking",
    "rank": "ranking",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "Ranking",
    "bootstrap",
    "ndcg",
    "paired_difference",
    "questions",
    "rank",
]
