"""Answer with the latest items, by a number that items have, such as when they were published."""

from __future__ import annotations

import asyncio
from itertools import count

from distilrec.serve.config import ServiceConfig
from distilrec.serve.http import Endpoint
from distilrec.serve.lists import check_list
from distilrec.serve.models import Models
from distilrec.serve.outcomes import Outcomes
from distilrec.serve.parameters import check_limit
from distilrec.serve.schemas import LatestItem, LatestRequest, LatestResponse
from distilrec.serve.storage import Storage


class Latest:
    """List items by an attribute of theirs."""

    def __init__(
        self, config: ServiceConfig, models: Models, storage: Storage, outcomes: Outcomes
    ) -> None:
        self._max_k = config.max_k
        self._models, self._storage, self._outcomes = models, storage, outcomes
        self._turns = asyncio.Lock()

    async def latest(self, request: LatestRequest) -> LatestResponse:
        check_limit("k", request.k, self._max_k)
        check_list(request.k, request.filter, 0.0)
        recommender = self._models.active.recommender
        user_id = await self._storage.caught_up(recommender, request.user_id)
        async with self._turns:  # one at a time, others in between: it may sort the catalogue
            await asyncio.sleep(0)
            best = recommender.latest(
                request.by,
                request.k,
                user_id=user_id,
                where=request.filter,
                exclude_seen=request.exclude_seen,
            )
        items = [
            LatestItem(item, number, rank, recommender.title(item) if request.titles else None)
            for rank, (item, number) in zip(count(1), best, strict=False)
        ]
        version = recommender.model_version
        answer_id = self._outcomes.identify(
            "latest", request.placement, version, record=request.record
        )
        return LatestResponse(version, items, answer_id)


def endpoints(latest: Latest) -> list[Endpoint]:
    """Return the endpoint of the latest items."""
    return [
        Endpoint(
            "POST", "/v1/latest", "latest", "The items with the largest numbers of an attribute.",
            "recommend", LatestRequest, LatestResponse, lambda call: latest.latest(call.body),
        ),
    ]  # fmt: skip
