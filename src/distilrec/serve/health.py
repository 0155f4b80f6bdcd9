"""Say whether the service lives, whether it can take requests, and how it fares."""

from __future__ import annotations

import time

from distilrec.errors import NotReadyError
from distilrec.serve.http import Call, Endpoint, Reply
from distilrec.serve.metrics import Metrics
from distilrec.serve.schemas import StatusResponse
from distilrec.serve.storage import Storage
from distilrec.serve.upkeep import Upkeep
from distilrec.stores.records import Since

_READY_SECONDS = 1.0


class Health:
    """The state of a service between its start and its end."""

    def __init__(self, storage: Storage, upkeep: Upkeep, metrics: Metrics) -> None:
        self._storage, self._upkeep, self._metrics = storage, upkeep, metrics
        self.started = self.draining = False
        self._store_checked = 0.0

    async def alive(self) -> StatusResponse:
        return StatusResponse("alive")

    async def readiness(self) -> StatusResponse:
        """Raise NotReadyError while starting and shutting down, StoreError when the store is
        away.
        """
        if not self.started or self.draining:
            raise NotReadyError(
                "shutting down" if self.started else "starting", fix="send requests elsewhere"
            )
        now = time.monotonic()
        if now - self._store_checked > _READY_SECONDS:
            await self._storage.read([Since("readiness")])
            self._store_checked = now
        if self._storage.shared and self._upkeep.behind:
            raise NotReadyError(
                "the model that the other workers answer with cannot be loaded "
                f"({self._upkeep.behind})",
                fix="mend or restore its bundle, or load another one",
            )
        return StatusResponse("ready")

    async def exposition(self, call: Call) -> Reply:
        """Return the metrics, in the text format of Prometheus."""
        self._upkeep.show_state()
        return Reply(self._metrics.exposition(), b"text/plain; version=0.0.4; charset=utf-8")


def endpoints(health: Health) -> list[Endpoint]:
    """Return the endpoints for those who watch the service."""
    return [
        Endpoint(
            "GET", "/healthz", "healthz", "Whether the process lives.", None, None, StatusResponse,
            lambda call: health.alive(),
        ),
        Endpoint(
            "GET", "/readyz", "readyz", "Whether requests should be sent here.", None, None,
            StatusResponse, lambda call: health.readiness(),
        ),
        Endpoint(
            "GET", "/metrics", "metrics", "For Prometheus.", "metrics", None, str,
            health.exposition, gives_type="text/plain",
        ),
    ]  # fmt: skip
