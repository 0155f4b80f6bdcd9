"""Answers from a bundle, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names

if TYPE_CHECKING:
    from distilrec.engine.answers import Recommendation, ValuedItem
    from distilrec.engine.events import Event
    from distilrec.engine.filters import Condition, Filter
    from distilrec.engine.probabilities import Objective
    from distilrec.engine.recommender import Recommender, load
    from distilrec.engine.rules import (
        Boost,
        Limit,
        Newness,
        Pin,
        Requirement,
        Rules,
        Tiredness,
        read_rules,
    )
    from distilrec.engine.stored import StoredRecommender

_MODULES = {
    "Boost": "rules",
    "Condition": "filters",
    "Event": "events",
    "Filter": "filters",
    "Limit": "rules",
    "Newness": "rules",
    "Objective": "probabilities",
    "Pin": "rules",
    "Recommendation": "answers",
    "Recommender": "recommender",
    "Requirement": "rules",
    "Rules": "rules",
    "StoredRecommender": "stored",
    "Tiredness": "rules",
    "ValuedItem": "answers",
    "load": "recommender",
    "read_rules": "rules",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "Boost",
    "Condition",
    "Event",
    "Filter",
    "Limit",
    "Newness",
    "Objective",
    "Pin",
    "Recommendation",
    "Recommender",
    "Requirement",
    "Rules",
    "StoredRecommender",
    "Tiredness",
    "ValuedItem",
    "load",
    "read_rules",
]
