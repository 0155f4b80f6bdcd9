"""Rankings of the catalogue, metrics, and intervals around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names
from distilrec.confidence import Arm, ArmComparison, compare_arms

if TYPE_CHECKING:
    from distilrec.measure.metrics import ndcg
    from distilrec.measure.ranking import Ranking, questions, rank
    from distilrec.measure.statistics import bootstrap, paired_difference
    from distilrec.measure.successive import (
        ComparedOverTime,
        OverTime,
        compare_over_time,
        over_time,
    )

_MODULES = {
    "ComparedOverTime": "successive",
    "OverTime": "successive",
    "Ranking": "ranking",
    "bootstrap": "statistics",
    "compare_over_time": "successive",
    "ndcg": "metrics",
    "over_time": "successive",
    "paired_difference": "statistics",
    "questions": "ranking",
    "rank": "ranking",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "Arm",
    "ArmComparison",
    "ComparedOverTime",
    "OverTime",
    "Ranking",
    "bootstrap",
    "compare_arms",
    "compare_over_time",
    "ndcg",
    "over_time",
    "paired_difference",
    "questions",
    "rank",
]
