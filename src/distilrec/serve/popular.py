"""Answer with what is popular, for everybody: the events of a window, counted in the store."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from itertools import count

from distilrec.engine.popular import Ranking, Window, window_of
from distilrec.serve.config import ServiceConfig
from distilrec.serve.http import Endpoint
from distilrec.serve.lists import check_list
from distilrec.serve.models import Models
from distilrec.serve.outcomes import Outcomes
from distilrec.serve.parameters import check_limit
from distilrec.serve.schemas import PopularItem, PopularRequest, PopularResponse
from distilrec.serve.storage import Storage

_FRESH = 1.0  # seconds for which a ranking is used again, at least
_REST = 10  # times as long as it took to make
_KEPT = 8  # rankings in memory
_MAX_TYPES = 100


class Popular:
    """List the items with most events, as the store counts them."""

    def __init__(
        self, config: ServiceConfig, models: Models, storage: Storage, outcomes: Outcomes
    ) -> None:
        self._max_k = config.max_k
        self._models, self._storage, self._outcomes = models, storage, outcomes
        self._turns = asyncio.Lock()
        self._kept: OrderedDict[Window, tuple[float, Ranking]] = OrderedDict()

    async def popular(self, request: PopularRequest) -> PopularResponse:
        check_limit("k", request.k, self._max_k)
        check_list(request.k, request.filter, 0.0)
        check_limit("event_types", len(request.event_types or ()), _MAX_TYPES)
        recommender = self._models.active.recommender
        types = request.event_types or recommender.target_types
        window = window_of(request.window, request.half_life, types)
        user_id = await self._storage.caught_up(recommender, request.user_id)
        async with self._turns:  # one at a time: those who wait use the same ranking
            ranking = await self._ranking(window)
        best = recommender.first_of(
            ranking, request.k, user_id, request.filter, exclude_seen=request.exclude_seen
        )
        items = [
            PopularItem(item, score, rank, recommender.title(item) if request.titles else None)
            for rank, (item, score) in zip(count(1), best, strict=False)
        ]
        version = recommender.model_version
        answer_id = self._outcomes.identify(
            "popular", request.placement, version, record=request.record
        )
        return PopularResponse(version, items, answer_id)

    async def _ranking(self, window: Window) -> Ranking:
        kept, now = self._kept.get(window), time.monotonic()
        if kept is not None and kept[0] > now:
            return kept[1]
        ranking = await self._storage.ranking(window)
        done = time.monotonic()
        self._kept[window] = done + max(_FRESH, _REST * (done - now)), ranking
        self._kept.move_to_end(window)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return ranking


def endpoints(popular: Popular) -> list[Endpoint]:
    """Return the endpoint of popular items."""
    return [
        Endpoint(
            "POST", "/v1/popular", "popular", "The items with most events of late.",
            "recommend", PopularRequest, PopularResponse, lambda call: popular.popular(call.body),
        ),
    ]  # fmt: skip
