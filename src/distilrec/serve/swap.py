"""Load, try, switch and take back models.

A candidate is verified (files, hashes, golden answers), shadowed by real requests, and then
switched in by one assignment on the event loop: a request is answered by one model from beginning
to end. The states of its users are folded again from the store when they are next asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from statistics import median

import msgspec
from msgspec import UNSET

from distilrec.engine.recommender import Recommender, load
from distilrec.errors import (
    ConfigError,
    DistilrecError,
    NotReadyError,
    StoreError,
    SwapConflictError,
)
from distilrec.serve.config import ServiceConfig, bundle_root
from distilrec.serve.http import Endpoint
from distilrec.serve.lists import best_for
from distilrec.serve.logs import log
from distilrec.serve.metrics import Metrics
from distilrec.serve.models import Choice, Models, Served
from distilrec.serve.parameters import inside
from distilrec.serve.schemas import (
    LoadRequest,
    LoadResponse,
    ModelResponse,
    RecommendRequest,
    Shadow,
)
from distilrec.serve.storage import Storage

_PAUSE = 5  # shadowed requests before real ones get their turn
ACTIVE_BUNDLE = "active_bundle"  # name of the setting in the store


class Swap:
    """Change the models in memory, and tell the store which one answers."""

    def __init__(
        self, config: ServiceConfig, models: Models, storage: Storage, metrics: Metrics
    ) -> None:
        self._config, self._models, self._storage = config, models, storage
        self._metrics = metrics
        self._changing = asyncio.Lock()
        self._give_up: DistilrecError | None = None  # why a candidate is not tried any longer
        self._stopping = False
        self.guard: Callable[[], Awaitable[None]] = _always
        """Raises an error where no model may be changed now."""
        # Changes under way here: not to be undone because the store does not know them yet.
        self._under_way = 0

    async def model(self) -> ModelResponse:
        recommender = self._models.active.recommender
        m = recommender.manifest
        return ModelResponse(
            m.model_version,
            str(recommender.folder),
            m.kind,
            recommender.item_count,
            m.parameters,
            m.dataset,
            list(m.event_types[1:]),
            recommender.attributes,
            [encoding.name for encoding in m.user_encoder.encodings],
            [encoding.name for encoding in m.item_encoder.encodings],
            m.metrics,
            recommender.has_teacher,
            self._models.previous_version,
            None if m.roles is UNSET else dict(zip(m.event_types, m.roles, strict=True)),
            None if m.calibration is UNSET else m.calibration,
        )

    async def load(self, request: LoadRequest) -> LoadResponse:
        """Try a bundle, and switch to it where it agrees enough.

        Raises BundleErrors, ConfigError, StoreErrors; SwapConflictError where another one is being
        tried or a rollback ends the trial, NotReadyError where the service stops,
        ExperimentConflictError while an experiment runs.
        """
        await self.guard()
        with self._change():
            response = await self._load(request)
            if response.switched:
                await self._switched("load")
        return response

    async def rollback(self) -> LoadResponse:
        """Go back to the model before, also to one from before a restart; end the trial of a
        candidate.

        Raises SwapConflictError where there is no earlier model, BundleErrors where it is gone,
        StoreErrors, ExperimentConflictError while an experiment runs.
        """
        await self.guard()
        with self._change():
            response = await self._roll_back()
            if response.switched:
                await self._switched("rollback")
        return response

    async def promote(self, served: Served) -> None:
        """Switch to a model in memory, that of an experiment. Raises StoreErrors, and
        SwapConflictError where another one is being tried.
        """
        with self._change():
            async with self._alone():
                if served.recommender.folder == self._models.active.recommender.folder:
                    return
                await self._store_and_switch(served)
            await self._switched("promote")

    @property
    def is_busy(self) -> bool:
        """Whether a model is being changed."""
        return self._under_way > 0 or self._changing.locked()

    async def follow_choice(self) -> None:
        """Follow the other workers to the bundle that they have switched to. Raises StoreErrors,
        BundleErrors.
        """
        choice = switched_to(self._config, await self._storage.setting(ACTIVE_BUNDLE))
        if choice is None or self._under_way:
            return
        before = self._models.active
        await self._follow(choice)
        if self._models.active is not before:
            self._metrics.show_model(self._models.active.version)

    def stop(self) -> None:
        """End the trial of a candidate, because the service is about to stop."""
        self._stopping = True
        self._give_up = self._stopped()

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    async def _switched(self, kind: str) -> None:
        active = self._models.active
        self._metrics.swaps.labels(kind).inc()
        self._metrics.show_model(active.version)
        with contextlib.suppress(StoreError):  # tried again soon
            await self._storage.follow_store(active)

    async def _load(self, request: LoadRequest) -> LoadResponse:
        async with self._alone():
            self._give_up = self._stopped() if self._stopping else None
            try:
                served = await self._prepare(
                    inside(bundle_root(self._config), request.bundle, "bundle", "bundle")
                )
                before = self._models.active.version
                log("trying a model", model_version=served.version)
                shadow = await self._shadow(
                    served.recommender, request.shadow_requests, request.shadow_seconds
                )
                reason = _objection(shadow, request.min_agreement)
                self._check_wanted()
                if not reason:
                    await self._store_and_switch(served)
            finally:
                self._models.candidate = None
        return LoadResponse(not reason, served.version, before, shadow, reason)

    async def _follow(self, choice: Choice) -> None:
        """Switch to the bundle that another worker has switched to, and remember which was
        before it.
        """
        if str(self._models.active.recommender.folder) != choice.active:
            async with self._alone():
                known = next(
                    (one for one in self._models.all() if _is_in(one, choice.active)), None
                )
                if known is not None:
                    self._switch(known)
                else:
                    try:
                        self._switch(await self._prepare(Path(choice.active)))
                    finally:
                        self._models.candidate = None
        if choice.previous and (
            self._models.previous is None
            or str(self._models.previous.recommender.folder) != choice.previous
        ):
            self._models.previous, self._models.earlier = None, choice

    async def _roll_back(self) -> LoadResponse:
        trial = self._changing.locked()
        if trial:
            self._give_up = SwapConflictError(
                "a rollback has ended the trial of this bundle", fix="load it again"
            )
        async with self._changing:
            before = self._models.active.version
            try:
                previous = self._models.previous or await self._earlier_model()
                if previous is not None:
                    await self._store_and_switch(previous)
            finally:
                self._models.candidate = None
        if previous is not None:
            return LoadResponse(True, self._models.active.version, before, Shadow(0))
        if trial:
            return LoadResponse(
                False, before, before, Shadow(0), "the trial has ended; there is no earlier model"
            )
        raise SwapConflictError("there is no earlier model", fix="load the bundle you want")

    def _check_wanted(self) -> None:
        if self._give_up is not None:
            raise self._give_up

    @staticmethod
    def _stopped() -> NotReadyError:
        return NotReadyError(
            "the service is shutting down", fix="load the bundle again after the restart"
        )

    async def _earlier_model(self) -> Served | None:
        if self._models.earlier is None or self._models.earlier.previous is None:
            return None
        return await self._prepare(Path(self._models.earlier.previous))

    async def _store_and_switch(self, served: Served) -> None:
        """Write the store first: where that fails, this process goes on with the model that the
        others have.
        """
        now = self._models.active
        folders = str(served.recommender.folder), str(now.recommender.folder)
        choice = Choice(base_of(self._config), *folders, now.version)
        await self._storage.set_setting(ACTIVE_BUNDLE, msgspec.json.encode(choice).decode())
        self._switch(served)

    def _alone(self) -> asyncio.Lock:
        if self._changing.locked():
            raise SwapConflictError(
                "another model is being loaded", fix="wait until that has finished"
            )
        return self._changing

    async def _prepare(self, folder: Path) -> Served:
        recommender = await asyncio.to_thread(load_for, self._config, folder)
        served = self._models.candidate = Served(recommender)
        await self._storage.follow_store(served)
        return served

    def _switch(self, served: Served) -> None:
        self._models.previous, self._models.active, self._models.earlier = (
            self._models.active,
            served,
            None,
        )
        self._models.previous.recommender.users.clear()
        if self._models.variant is served:
            self._models.variant = None
        log(
            "model switched",
            model_version=served.version,
            previous_version=self._models.previous.version,
        )

    async def _shadow(self, candidate: Recommender, requests: int, seconds: float) -> Shadow:
        """Let both models answer the latest requests, then those that come in."""
        overlaps: list[float] = []
        times: tuple[list[float], list[float]] = ([], [])
        waiting = list(self._models.recent)[-requests:] if requests else []
        last = self._models.recent[-1] if self._models.recent else None
        deadline = time.monotonic() + seconds
        while len(overlaps) < requests and time.monotonic() < deadline:
            self._check_wanted()
            if not waiting:
                await asyncio.sleep(0.01)
                newest = self._models.recent[-1] if self._models.recent else None
                if newest is not last and newest is not None:
                    waiting, last = [newest], newest
                continue
            chunk, waiting = waiting[:_PAUSE], waiting[_PAUSE:]
            for request in chunk:
                overlaps.append(await self._compared(candidate, request, times))
            await asyncio.sleep(0)
        if not overlaps:
            return Shadow(0)
        agreement = sum(overlaps) / len(overlaps)
        return Shadow(
            len(overlaps), agreement, *(median(spent) if spent else None for spent in times)
        )

    async def _compared(
        self,
        candidate: Recommender,
        request: RecommendRequest,
        times: tuple[list[float], list[float]],
    ) -> float:
        """Return how much the answers of both models agree now, whenever the request was asked:
        its user may have acted since. Add their times in microseconds.
        """
        request = msgspec.structs.replace(request, now=None)
        user_id = str(request.user_id)
        lists = []
        try:
            for recommender, spent in zip(
                (self._models.active.recommender, candidate), times, strict=True
            ):
                await self._storage.catch_up(recommender, [user_id])
                started = time.perf_counter()
                best, _ = best_for(recommender, user_id, request)
                lists.append(best)
                spent.append((time.perf_counter() - started) * 1e6)
        except ConfigError:  # a filter on an attribute that only one of the two has
            return 0.0
        return _overlap(*lists)


def endpoints(swap: Swap) -> list[Endpoint]:
    """Return the endpoints of the model."""
    return [
        Endpoint(
            "GET", "/v1/model", "model", "The model that answers.", "recommend", None,
            ModelResponse, lambda call: swap.model(),
        ),
        Endpoint(
            "POST", "/v1/model/load", "load_model",
            "Verifies, shadows and switches to another bundle.", "admin", LoadRequest,
            LoadResponse, lambda call: swap.load(call.body),
        ),
        Endpoint(
            "POST", "/v1/model/rollback", "rollback", "Back to the model before.", "admin", None,
            LoadResponse, lambda call: swap.rollback(),
        ),
    ]  # fmt: skip


async def _always() -> None:
    pass


def _is_in(served: Served, folder: str) -> bool:
    return str(served.recommender.folder) == folder


def _overlap(one: list[str], other: list[str]) -> float:
    longest = max(len(one), len(other))
    return len(set(one) & set(other)) / longest if longest else 1.0


def _objection(shadow: Shadow, min_agreement: float) -> str:
    if not min_agreement:
        return ""
    if shadow.agreement is None:
        return "no request came in to shadow the candidate with, so its agreement is not known"
    if shadow.agreement < min_agreement:
        return (
            f"the candidate agrees with the active model on {shadow.agreement:.3f} of the items, "
            f"not {min_agreement:.3f}"
        )
    return ""


def base_of(config: ServiceConfig) -> str:
    """Return the bundle that the service was started with, as the store names it."""
    return str(Path(config.bundle).resolve())


def switched_to(config: ServiceConfig, setting: str | None) -> Choice | None:
    """Return what a service started with this bundle has switched to, by the setting in the store;
    None for nothing.
    """
    try:
        choice = msgspec.json.decode(setting, type=Choice) if setting else None
    except msgspec.MsgspecError:  # not ours
        return None
    return choice if choice is not None and choice.base == base_of(config) else None


def load_for(config: ServiceConfig, folder: Path | str) -> Recommender:
    """Load a bundle, with the limits of the service. Raises BundleErrors."""
    return load(
        folder, max_users=config.max_users, max_events=config.max_events, search=config.search
    )


def first_model(config: ServiceConfig, choice: Choice | None) -> Recommender:
    """Return the model to begin with: the one switched to before a restart, unless the service is
    started with another now.
    """
    base = base_of(config)
    if choice is None or choice.active == base:
        return load_for(config, base)
    try:
        recommender = load_for(config, choice.active)
    except (DistilrecError, OSError) as problem:
        code = getattr(problem, "code", type(problem).__name__)
        log(
            "the model switched to earlier cannot be loaded",
            logging.ERROR,
            code=code,
            bundle=choice.active,
        )
        return load_for(config, base)
    log("going on with the model switched to earlier", bundle=choice.active)
    return recommender
