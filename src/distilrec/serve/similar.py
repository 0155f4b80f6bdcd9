"""Answer with items that are like others."""

from __future__ import annotations

import asyncio
from itertools import count

from distilrec.serve.config import ServiceConfig
from distilrec.serve.http import Endpoint
from distilrec.serve.lists import check_list
from distilrec.serve.models import Models
from distilrec.serve.outcomes import Outcomes
from distilrec.serve.parameters import check_limit, known_items
from distilrec.serve.schemas import SimilarItem, SimilarRequest, SimilarResponse
from distilrec.serve.storage import Storage


class Similar:
    """Find similar items with the active model."""

    def __init__(
        self, config: ServiceConfig, models: Models, storage: Storage, outcomes: Outcomes
    ) -> None:
        self._max_k = config.max_k
        self._models, self._storage, self._outcomes = models, storage, outcomes
        self._turns = asyncio.Lock()

    async def similar(self, request: SimilarRequest) -> SimilarResponse:
        check_limit("item_ids", len(request.item_ids), self._max_k)
        check_limit("k", request.k, self._max_k)
        check_list(request.k, request.filter, request.diversity)
        recommender = self._models.active.recommender
        user_id = await self._storage.caught_up(recommender, request.user_id)
        given, unknown = known_items(recommender, request.item_ids, skip=request.skip_unknown)
        items: list[str] = []
        scores: list[float] = []
        if given:
            async with self._turns:  # one at a time, others in between: it scans the catalogue
                await asyncio.sleep(0)
                items, scores = recommender.most_similar(
                    given,
                    request.k,
                    user_id,
                    request.filter,
                    request.diversity,
                    request.popularity,
                    request.exclude_seen,
                )
        titles = [recommender.title(item) if request.titles else None for item in items]
        similar_items = list(map(SimilarItem, items, scores, count(1), titles))
        version = recommender.model_version
        answer_id = self._outcomes.identify(
            "similar", request.placement, version, record=request.record
        )
        return SimilarResponse(version, similar_items, unknown, answer_id)


def endpoints(similar: Similar) -> list[Endpoint]:
    """Return the endpoint of similar items."""
    return [
        Endpoint(
            "POST", "/v1/similar", "similar", "Items that are like one item, or like several.",
            "recommend", SimilarRequest, SimilarResponse, lambda call: similar.similar(call.body),
        ),
    ]  # fmt: skip
