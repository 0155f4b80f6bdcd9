"""Answers with probabilities, and lists ranked by an objective."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from distilrec.engine.answers import ValuedItem
from distilrec.engine.recommender import Recommender
from distilrec.engine.users import User
from distilrec.serve.lists import Best, best_for
from distilrec.serve.schemas import RankedItem, RankRequest, RecommendRequest


class LikelyItems(NamedTuple):
    """The items of an answer with their scores, and what is known beside that; valued: where there
    is an objective.
    """

    best: Best
    probabilities: list[float]
    valued: list[ValuedItem] | None

    def added_to(self, items: list[RankedItem]) -> list[RankedItem]:
        """Return these items, in the same order, with probabilities and values."""
        if self.valued is None:
            return _likely(items, self.probabilities)
        return [
            msgspec.structs.replace(
                item, probability=one.probability, value=one.value, parts=one.parts
            )
            for item, one in zip(items, self.valued, strict=True)
        ]


def is_asked_for(request: RecommendRequest | RankRequest) -> bool:
    """Return whether a request wants probabilities or has an objective."""
    return request.probabilities or request.objective is not None


def recommended(
    recommender: Recommender, user: str | User, request: RecommendRequest
) -> LikelyItems:
    """Return the best items for a user, by the objective where there is one."""
    if request.objective is not None:
        return _of_valued(
            recommender.recommend_by_value(
                user,
                request.objective,
                None,
                request.k,
                request.exclude_seen,
                where=request.filter,
                diversity=request.diversity,
                now=request.now,
                context=request.context,
            )
        )
    best = best_for(recommender, user, request)
    return LikelyItems(best, _probabilities(recommender, user, request, best[0]), None)


def ranked(
    recommender: Recommender, user: str | User, items: list[str], request: RankRequest
) -> LikelyItems:
    """Return these items for a user, best first, by the objective where there is one."""
    if request.objective is not None:
        return _of_valued(
            recommender.recommend_by_value(
                user, request.objective, items, now=request.now, context=request.context
            )
        )
    answer = recommender.recommend(user, items, now=request.now, context=request.context)
    best = [one.item_id for one in answer], [one.score for one in answer]
    found = recommender.probabilities(user, best[0], now=request.now, context=request.context)
    return LikelyItems(best, found, None)


def with_probabilities(
    recommender: Recommender,
    user: str | User,
    request: RecommendRequest,
    items: list[RankedItem],
) -> list[RankedItem]:
    """Return the items of a list under rules, with probabilities where they are asked for."""
    if not request.probabilities:
        return items
    names = [item.item_id for item in items]
    return _likely(items, _probabilities(recommender, user, request, names))


def _probabilities(
    recommender: Recommender, user: str | User, request: RecommendRequest, items: list[str]
) -> list[float]:
    return recommender.probabilities(
        user, items, request.exclude_seen, now=request.now, context=request.context
    )


def _of_valued(valued: list[ValuedItem]) -> LikelyItems:
    best = [one.item_id for one in valued], [one.score for one in valued]
    return LikelyItems(best, [one.probability for one in valued], valued)


def _likely(items: list[RankedItem], probabilities: list[float]) -> list[RankedItem]:
    return [
        msgspec.structs.replace(item, probability=probability)
        for item, probability in zip(items, probabilities, strict=True)
    ]
