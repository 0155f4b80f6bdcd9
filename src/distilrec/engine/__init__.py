"""Answers from a bundle, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names

if TYPE_CHECKING:
    from distilrec.engine.answers import Recommendation
    from distilrec.engine.events import Event
    from distilrec.engine.filters import Condition, Filter
    from distilrec.engine.recommender import Recommender, load
    from distilrec.engine.stored import StoredRecommender

_MODULES = {
    "Condition": "filters",
    "Event": "events",
    "Filter": "filters",
    "Recommendation": "answers",
    "Recommender": "recommender",
    "StoredRecommender": "stored",
    "load": "recommender",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "Condition",
    "Event",
    "Filter",
    "Recommendation",
    "Recommender",
    "StoredRecommender",
    "load",
]
