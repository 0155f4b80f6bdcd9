"""Answer with items: recommendations, one or several, and rankings, with reasons and titles where
they are asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from itertools import count

from distilrec.engine.answers import Contribution
from distilrec.engine.filters import values_of
from distilrec.engine.recommender import Recommender
from distilrec.engine.ruled import Arranged
from distilrec.engine.rules import Rules
from distilrec.engine.users import User
from distilrec.errors import RequestError
from distilrec.ids import as_id
from distilrec.serve import likely
from distilrec.serve.arms import Arm
from distilrec.serve.config import ServiceConfig
from distilrec.serve.http import Endpoint
from distilrec.serve.impressions import Impressions
from distilrec.serve.lists import best_for, check_list
from distilrec.serve.metrics import Metrics
from distilrec.serve.models import Models
from distilrec.serve.outcomes import Outcomes
from distilrec.serve.parameters import check_limit, known_items
from distilrec.serve.rules import PlacementRules, check_rules
from distilrec.serve.schemas import (
    BatchRequest,
    BatchResponse,
    FollowedRules,
    MovedItem,
    RankedItem,
    RankRequest,
    Reason,
    RecommendRequest,
    RecommendResponse,
)
from distilrec.serve.storage import TURN_SECONDS, Storage

_REASONS = 3
_QUICK = 100  # items of an answer that need not wait for its turn
_BATCH_PART = 50  # requests of a batch whose users are read together
# What one request may ask for: more is refused.
_MAX_ITEMS = 50_000
_MAX_EXPLAINED = 200
_MAX_HISTORY = 1_000
_NO_RULES = Rules()


class Answers:
    """Recommend and rank with the active model."""

    def __init__(
        self,
        config: ServiceConfig,
        models: Models,
        storage: Storage,
        placed: PlacementRules,
        impressions: Impressions,
        outcomes: Outcomes,
        metrics: Metrics,
    ) -> None:
        self._max_k, self._max_batch = config.max_k, config.max_batch
        self._models, self._storage, self._placed = models, storage, placed
        self._impressions, self._outcomes, self._metrics = impressions, outcomes, metrics
        self._shared = storage.shared
        self._turns = asyncio.Lock()

    async def recommend(self, request: RecommendRequest) -> RecommendResponse:
        recommender, user_id, arm = self._models.active.recommender, request.user_id, None
        if self._models.running is not None:
            arm = self._models.running.arm(request)
            recommender = self._recommender(arm)
        if self._shared or type(user_id) is not str or user_id not in recommender.users:
            user_id = _user_of(request)  # of users in memory it has been found to be an id
            if user_id is not None:
                await self._storage.catch_up(recommender, [user_id])
        chosen, rules = request.filter, self._rules_of(request, arm)
        costly = request.explain or request.diversity or request.k > _QUICK or request.history
        costly = costly or likely.is_asked_for(request) or rules is not None
        if costly or chosen is not None:
            self._check_cost([request], [arm])
        if costly or (chosen is not None and values_of(chosen) > _QUICK):
            impressions = await self._impressions.of(user_id, rules, request.now)
            async with self._turns:  # costly answers are given one at a time, others in between
                await asyncio.sleep(0)
                answer = self._answer(recommender, user_id, request, rules, impressions, arm)
            if request.record:
                await self._impressions.note([(answer, rules)])
        else:
            answer = self._answer(recommender, user_id, request, None, {}, arm)
        return answer if arm is None else arm.named(answer)

    async def recommend_batch(
        self, request: BatchRequest, *, experiments: bool = True, note_all: bool = False
    ) -> BatchResponse:
        """Answer several requests. experiments: whether users who are in one get their arm;
        note_all: items count as shown where rules say so, also of requests without `record`.
        """
        check_limit("requests", len(request.requests), self._max_batch)
        running = self._models.running if experiments else None
        all_arms = [None if running is None else running.arm(one) for one in request.requests]
        self._check_cost(request.requests, all_arms)
        results: list[RecommendResponse] = []
        for start in range(0, len(request.requests), _BATCH_PART):
            part = request.requests[start : start + _BATCH_PART]
            users = [_user_of(one) for one in part]
            arms = all_arms[start : start + _BATCH_PART]
            recommenders = [self._recommender(arm) for arm in arms]
            await self._catch_up(recommenders, users)
            rules = [self._rules_of(one, arm) for one, arm in zip(part, arms, strict=True)]
            impressions = [
                await self._impressions.of(user, followed, one.now)
                for user, followed, one in zip(users, rules, part, strict=True)
            ]
            waiting = [*zip(recommenders, users, part, rules, impressions, arms, strict=True)][::-1]
            while waiting:
                async with self._turns:
                    await asyncio.sleep(0)
                    until = time.perf_counter() + TURN_SECONDS
                    while waiting and time.perf_counter() < until:
                        asked = waiting.pop()
                        arm, answer = asked[-1], self._answer(*asked)
                        results.append(answer if arm is None else arm.named(answer))
            answered = zip(part, results[start:], rules, strict=True)
            await self._impressions.note(
                [(answer, followed) for one, answer, followed in answered if note_all or one.record]
            )
        return BatchResponse(results)

    async def rank(self, request: RankRequest) -> RecommendResponse:
        check_limit("item_ids", len(request.item_ids), self._max_k)
        if request.explain:
            check_limit("explained items in a request", len(request.item_ids), _MAX_EXPLAINED)
        check_limit("events in a history", len(request.history or ()), _MAX_HISTORY)
        arm = None if self._models.running is None else self._models.running.arm(request)
        recommender, user_id = self._recommender(arm), _user_of(request)
        if user_id is not None:
            await self._storage.catch_up(recommender, [user_id])
        user, known = _asked(recommender, user_id, request)
        items, unknown = known_items(recommender, request.item_ids, skip=request.skip_unknown)
        if likely.is_asked_for(request):
            async with self._turns:
                await asyncio.sleep(0)
                chances = likely.ranked(recommender, user, items, request)
                answer = chances.added_to(_ranked(recommender, user, chances.best, request))
        else:
            ranked = recommender.recommend(user, items, now=request.now, context=request.context)
            best = [one.item_id for one in ranked], [one.score for one in ranked]
            answer = _ranked(recommender, user, best, request)
        self._count_unknown(recommender, request)
        version = recommender.model_version
        answer_id = self._identify(request, "rank", None, version, "", arm)
        found = RecommendResponse(
            user_id, known, version, answer, unknown, recommendation_id=answer_id
        )
        return found if arm is None else arm.named(found)

    def _identify(
        self,
        request: RecommendRequest | RankRequest,
        endpoint: str,
        placement: str | None,
        version: str,
        rules: str,
        arm: Arm | None,
    ) -> str | None:
        variant, group = ("", 0) if arm is None else (arm.name, arm.group)
        return self._outcomes.identify(
            endpoint, placement, version, rules, variant, group, record=request.record
        )

    def _recommender(self, arm: Arm | None) -> Recommender:
        return self._models.active.recommender if arm is None else arm.recommender

    async def _catch_up(
        self, recommenders: Sequence[Recommender], users: Sequence[str | None]
    ) -> None:
        """Bring users up to date, each in the model that answers about them."""
        for recommender in {id(one): one for one in recommenders}.values():
            await self._storage.catch_up(
                recommender,
                list(
                    dict.fromkeys(
                        user
                        for one, user in zip(recommenders, users, strict=True)
                        if one is recommender and user is not None
                    )
                ),
            )

    def _answer(
        self,
        recommender: Recommender,
        user_id: str | None,
        request: RecommendRequest,
        rules: Rules | None,
        impressions: Mapping[str, int],
        arm: Arm | None,
    ) -> RecommendResponse:
        if request.k > self._max_k:
            check_limit("k", request.k, self._max_k)
        if rules is not None:
            return self._under_rules(recommender, user_id, request, rules, impressions, arm)
        if user_id is None or request.history is not None or likely.is_asked_for(request):
            return self._seldom(recommender, user_id, request, arm)
        best = best_for(recommender, user_id, request)
        if request.context:
            self._count_unknown(recommender, request)
        if request.filter is None:
            self._models.recent.append(request)
        else:
            self._models.remember(request)
        version = recommender.model_version
        return RecommendResponse(
            user_id,
            recommender.knows_user(user_id),
            version,
            _ranked(recommender, user_id, best, request),
            recommendation_id=self._identify(
                request, "recommend", request.placement, version, "", arm
            ),
        )

    def _seldom(
        self,
        recommender: Recommender,
        user_id: str | None,
        request: RecommendRequest,
        arm: Arm | None,
    ) -> RecommendResponse:
        """Answer about a history that the request tells, or with probabilities; it is not
        remembered for shadowing.
        """
        user, known = _asked(recommender, user_id, request)
        if likely.is_asked_for(request):
            chances = likely.recommended(recommender, user, request)
            items = chances.added_to(_ranked(recommender, user, chances.best, request))
        else:
            best = best_for(recommender, user, request)
            items = _ranked(recommender, user, best, request)
        self._count_unknown(recommender, request)
        version = recommender.model_version
        answer_id = self._identify(request, "recommend", request.placement, version, "", arm)
        return RecommendResponse(user_id, known, version, items, recommendation_id=answer_id)

    def _rules_of(self, request: RecommendRequest, arm: Arm | None) -> Rules | None:
        """Return the rules that a list follows; none, but not None, where it goes on behind other
        pages.
        """
        if request.rules is None and request.placement is None and request.shown is None:
            return None
        if request.rules is not None:
            return request.rules
        no_rules = None if request.shown is None else _NO_RULES
        if arm is not None and arm.placements is not None:
            return arm.placements.get(request.placement or "", no_rules)
        return self._placed.placements.get(request.placement or "", no_rules)

    def _under_rules(
        self,
        recommender: Recommender,
        user_id: str | None,
        request: RecommendRequest,
        rules: Rules,
        impressions: Mapping[str, int],
        arm: Arm | None,
    ) -> RecommendResponse:
        """Answer under rules. impressions: what the user was shown while that counts for them."""
        user, known = _asked(recommender, user_id, request)
        if request.history is None:
            self._models.remember(request)
        found = recommender.arrange(
            user,
            rules,
            request.k,
            request.exclude_seen,
            where=request.filter,
            diversity=request.diversity,
            now=request.now,
            context=request.context,
            shown=request.shown or (),
            impressions=impressions,
            lenient=request.rules is None,
        )
        self._count_unknown(recommender, request)
        best = [one.item_id for one in found.items], [one.score for one in found.items]
        version, followed = recommender.model_version, ""
        if rules is not _NO_RULES:
            followed = "request" if request.rules is not None else self._rules_version(arm)
        return RecommendResponse(
            user_id,
            known,
            version,
            likely.with_probabilities(
                recommender, user, request, _ranked(recommender, user, best, request, found.first)
            ),
            rules=None if rules is _NO_RULES else self._followed(found, request, arm),
            recommendation_id=self._identify(
                request, "recommend", request.placement, version, followed, arm
            ),
        )

    def _followed(
        self, found: Arranged, request: RecommendRequest, arm: Arm | None
    ) -> FollowedRules:
        return FollowedRules(
            [MovedItem(*move) for move in found.moved],
            "" if request.rules is not None else self._rules_version(arm),
            [problem.message for problem in found.problems],
        )

    def _rules_version(self, arm: Arm | None) -> str:
        if arm is not None and arm.placements is not None:
            return arm.rules_version
        return self._placed.version

    def _count_unknown(
        self, recommender: Recommender, request: RecommendRequest | RankRequest
    ) -> None:
        for feature in recommender.unknown_context(request.context or {}):
            self._metrics.unknown_context.labels(feature).inc()

    def _check_cost(self, requests: Sequence[RecommendRequest], arms: Sequence[Arm | None]) -> None:
        """Raise RequestError for what would take longer than other requests can wait."""
        for request, arm in zip(requests, arms, strict=True):
            check_list(request.k, request.filter, request.diversity)
            if request.rules is not None:
                check_rules(request.rules)
            if request.objective is not None and self._rules_of(request, arm) is not None:
                raise RequestError(
                    "an objective and rules do not go together",
                    fix="leave out `objective`, or `rules`, `placement` and `shown`",
                )
            check_limit("events in a history", len(request.history or ()), _MAX_HISTORY)
        items = sum(min(request.k, self._max_k + 1) for request in requests)
        if items > self._max_k:
            check_limit("items in all answers of a request", items, max(_MAX_ITEMS, self._max_k))
        explained = sum(request.k for request in requests if request.explain)
        check_limit("explained items in a request", explained, _MAX_EXPLAINED)


def endpoints(answers: Answers, config: ServiceConfig) -> list[Endpoint]:
    """Return the endpoints that answer with items."""
    return [
        Endpoint(
            "POST", "/v1/recommend", "recommend", "The best items for a user.", "recommend",
            RecommendRequest, RecommendResponse, lambda call: answers.recommend(call.body),
        ),
        Endpoint(
            "POST", "/v1/rank", "rank", "Given items for a user, best first.", "recommend",
            RankRequest, RecommendResponse, lambda call: answers.rank(call.body),
        ),
        Endpoint(
            "POST", "/v1/recommend/batch", "recommend_batch", "Several recommendations at once.",
            "recommend", BatchRequest, BatchResponse,
            lambda call: answers.recommend_batch(call.body),
            # More than max_batch are refused, and cost no more than that.
            weight=lambda body: min(len(body.requests), config.max_batch),
        ),
    ]  # fmt: skip


def _user_of(request: RecommendRequest | RankRequest) -> str | None:
    """Return the id of the user of a request, None where only a history is asked about. Raises
    RequestError where there is neither, InvalidIdError.
    """
    if request.user_id is not None:
        return as_id(request.user_id, "user_id")
    if request.history is None:
        raise RequestError(
            "there is neither a user_id nor a history",
            fix="give a user_id, or a history, [] for an unknown visitor",
        )
    return None


def _asked(
    recommender: Recommender, user_id: str | None, request: RecommendRequest | RankRequest
) -> tuple[str | User, bool]:
    """Return who a request is about, and whether anything is known of them."""
    known = user_id is not None and recommender.knows_user(user_id)
    if request.history is None:
        assert user_id is not None  # `_user_of` has seen to it
        return user_id, known
    session = recommender.session(request.history, user_id, now=request.now)
    return session, known or bool(session.length)


def _ranked(
    recommender: Recommender,
    user_id: str | User,
    best: tuple[list[str], list[float]],
    request: RecommendRequest | RankRequest,
    first: int = 1,
) -> list[RankedItem]:
    items, scores = best
    explain, titles = request.explain, request.titles
    if not explain and not titles:
        return list(map(RankedItem, items, scores, count(first)))
    whys: list[list[Contribution]] = [[] for _ in items]
    parts = [0.0] * len(items)
    if explain and items:
        parts = recommender.popular_parts(user_id, items)
        whys = recommender.explain_many(
            user_id, items, _REASONS, now=request.now, context=request.context
        )
    found = []
    for rank, item, score, why, part in zip(count(first), items, scores, whys, parts, strict=False):
        because = [
            Reason(
                c.item_id, c.contribution, recommender.title_of_past(c.item_id) if titles else None
            )
            for c in why
        ]
        found.append(
            RankedItem(
                item,
                score,
                rank,
                recommender.title(item) if titles else None,
                because if explain else None,
                popular=part or None,
            )
        )
    return found
