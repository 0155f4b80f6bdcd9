"""The list that a request asks for."""

from __future__ import annotations

from distilrec.engine.filters import Filter
from distilrec.engine.recommender import Recommender
from distilrec.engine.users import User
from distilrec.serve.parameters import check_filter, check_limit
from distilrec.serve.schemas import RecommendRequest

_MAX_DIVERSIFIED = 200

Best = tuple[list[str], list[float]]
"""Items and their scores, best first."""


def best_for(recommender: Recommender, user: str | User, request: RecommendRequest) -> Best:
    """Return the best items for a user, without rules and objectives."""
    return recommender.best(
        user,
        request.k,
        request.exclude_seen,
        request.filter,
        request.diversity,
        request.now,
        request.context,
    )


def check_list(k: int, chosen: Filter | None, diversity: float) -> None:
    """Raise RequestError for a list that would take longer than other requests can wait."""
    if diversity:
        check_limit("k of a diversified list", k, _MAX_DIVERSIFIED)
    if chosen is not None:
        check_filter(chosen)
