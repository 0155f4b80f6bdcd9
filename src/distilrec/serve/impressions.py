"""What users were shown lately: read before an answer whose rules ask for it, noted after it."""

from __future__ import annotations

import time
from collections.abc import Iterable

from distilrec.engine.rules import Rules
from distilrec.engine.stored import as_impressions
from distilrec.errors import ServiceError, StoreError
from distilrec.serve.metrics import Metrics
from distilrec.serve.outcomes import Outcomes
from distilrec.serve.schemas import RecommendResponse
from distilrec.serve.storage import Storage


class Impressions:
    """The impressions in the store."""

    def __init__(self, storage: Storage, outcomes: Outcomes, metrics: Metrics) -> None:
        self._storage, self._outcomes, self._metrics = storage, outcomes, metrics

    async def of(
        self, user_id: str | None, rules: Rules | None, now: float | None
    ) -> dict[str, int]:
        """Return how often items were shown to a user while that counts for the rules; nothing
        where no rule asks. Raises StoreErrors.
        """
        if user_id is None or rules is None or rules.tired is None:
            return {}
        return await self._storage.shown(user_id, rules.tired, now)

    async def note(self, answers: Iterable[tuple[RecommendResponse, Rules | None]]) -> None:
        """Store that users were shown these answers, where their rules count answers. What cannot
        be stored is counted, and the answers are given all the same.
        """
        now = time.time()
        events = [
            event
            for answer, rules in answers
            if rules is not None and rules.tired is not None and rules.tired.answers
            if answer.user_id is not None
            for event in self._outcomes.shown(
                answer.recommendation_id,
                as_impressions(answer.user_id, [item.item_id for item in answer.items], now),
                [item.rank for item in answer.items],
            )
        ]
        if not events:
            return
        try:
            await self._storage.append(events)
        except (StoreError, ServiceError):
            self._metrics.events.labels("lost_impression").inc(len(events))
            return
        for event in events:
            if event.attribution is not None:
                self._outcomes.note("impression", event)
