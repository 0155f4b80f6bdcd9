"""The models of a running service: the active one, the one before it, and a candidate that is being
tried.

A candidate is verified (files, hashes, golden answers), shadowed by real requests, and then
switched in by one assignment on the event loop: a request is answered by one model from beginning
to end. The states of its users are folded anew from the store when they are next asked for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import msgspec

from distilrec.engine.filters import values_of
from distilrec.engine.recommender import Recommender, load
from distilrec.errors import ConfigError, DistilrecError, NotReadyError, SwapConflictError
from distilrec.serve.config import ServiceConfig
from distilrec.serve.logs import log
from distilrec.serve.schemas import LoadRequest, LoadResponse, RecommendRequest, Shadow

_REMEMBERED = 1_000  # requests, for shadowing
_REMEMBERED_BYTES = 4_096  # of the filter of each of these
_REMEMBERED_VALUES = 100
_PAUSE = 5  # shadowed requests at once, before real ones get their turn
ACTIVE_BUNDLE = "active_bundle"  # name of the setting in the store


class Choice(msgspec.Struct, frozen=True):
    """Which bundle answers, kept in the store.

    base: the one that the service was started with; previous: the one before, which a rollback goes
    back to.
    """

    base: str
    active: str
    previous: str | None = None
    previous_version: str | None = None


@dataclass
class Served:
    """A recommender, and up to which change of items, and which number of erasures, in the store it
    has followed.
    """

    recommender: Recommender
    item_changes: int = 0
    erasures: int = -1

    @property
    def version(self) -> str:
        return self.recommender.model_version


class Models:
    """Loads, tries, switches and takes back models.

    earlier: what the store says of the models before this start. catch_up: makes users of a
    recommender current; follow: applies what the store knows about items and erased users; keep:
    writes a choice into the store.
    """

    def __init__(
        self,
        config: ServiceConfig,
        active: Recommender,
        earlier: Choice | None,
        catch_up: Callable[[Recommender, list[str]], Awaitable[None]],
        follow: Callable[[Served], Awaitable[None]],
        keep: Callable[[Choice], Awaitable[None]],
    ) -> None:
        self.active = Served(active)
        self.previous: Served | None = None
        self.candidate: Served | None = None
        self.recent: deque[RecommendRequest] = deque(maxlen=_REMEMBERED)
        self._config, self._earlier = config, earlier
        self._catch_up, self._follow, self._keep = catch_up, follow, keep
        self._changing = asyncio.Lock()
        self._give_up: DistilrecError | None = None  # why a candidate is not tried any longer
        self._stopping = False

    @property
    def previous_version(self) -> str | None:
        """The model that a rollback goes back to, also where it is not in memory."""
        if self.previous is not None:
            return self.previous.version
        return self._earlier.previous_version if self._earlier else None

    def remember(self, request: RecommendRequest) -> None:
        """Keeps a request for shadowing, unless its filter is large: a thousand of those would fill
        the memory.
        """
        chosen = request.filter
        if chosen is not None and (
            values_of(chosen) > _REMEMBERED_VALUES
            or len(msgspec.msgpack.encode(chosen)) > _REMEMBERED_BYTES
        ):
            return
        self.recent.append(request)

    def all(self) -> Iterable[Served]:
        """Every model in memory, the active one first."""
        return (each for each in (self.active, self.previous, self.candidate) if each is not None)

    def folders(self) -> list[tuple[str, Path]]:
        """Version and folder of every model in memory, and of the one that a rollback
        would load.
        """
        found = [(served.version, served.recommender.folder) for served in self.all()]
        if (
            self.previous is None
            and self._earlier is not None
            and self._earlier.previous is not None
        ):
            found.append((self._earlier.previous_version or "", Path(self._earlier.previous)))
        return [(version, folder) for version, folder in found if folder.is_dir()]

    async def load(self, request: LoadRequest) -> LoadResponse:
        """Tries a bundle, and switches to it where it agrees enough.

        Raises BundleErrors, ConfigError, StoreErrors; SwapConflictError where another one is being
        tried or a rollback ends the trial, NotReadyError where the service stops.
        """
        async with self._alone():
            self._give_up = self._stopped() if self._stopping else None
            try:
                served = await self._prepare(_inside(self._root, request.bundle))
                before = self.active.version
                log("trying a model", model_version=served.version)
                shadow = await self._shadow(
                    served.recommender, request.shadow_requests, request.shadow_seconds
                )
                reason = _objection(shadow, request.min_agreement)
                self._check_wanted()
                if not reason:
                    await self._store_and_switch(served)
            finally:
                self.candidate = None
        return LoadResponse(not reason, served.version, before, shadow, reason)

    async def follow(self, choice: Choice) -> None:
        """Switches to the bundle that another worker has switched to, and remembers which was
        before it.
        """
        if str(self.active.recommender.folder) != choice.active:
            async with self._alone():
                if (
                    self.previous is not None
                    and str(self.previous.recommender.folder) == choice.active
                ):
                    self._switch(self.previous)
                else:
                    try:
                        self._switch(await self._prepare(Path(choice.active)))
                    finally:
                        self.candidate = None
        if choice.previous and (
            self.previous is None or str(self.previous.recommender.folder) != choice.previous
        ):
            self.previous, self._earlier = None, choice

    async def rollback(self) -> LoadResponse:
        """Back to the model before, also to one from before a restart; ends the trial of a
        candidate.

        Raises SwapConflictError where there is no earlier model, BundleErrors where it is gone,
        StoreErrors.
        """
        trial = self._changing.locked()
        if trial:
            self._give_up = SwapConflictError(
                "a rollback has ended the trial of this bundle", fix="load it again"
            )
        async with self._changing:
            before = self.active.version
            try:
                previous = self.previous or await self._earlier_model()
                if previous is not None:
                    await self._store_and_switch(previous)
            finally:
                self.candidate = None
        if previous is not None:
            return LoadResponse(True, self.active.version, before, Shadow(0))
        if trial:
            return LoadResponse(
                False, before, before, Shadow(0), "the trial has ended; there is no earlier model"
            )
        raise SwapConflictError("there is no earlier model", fix="load the bundle you want")

    def stop(self) -> None:
        """Ends the trial of a candidate, because the service is about to stop."""
        self._stopping = True
        self._give_up = self._stopped()

    def _check_wanted(self) -> None:
        if self._give_up is not None:
            raise self._give_up

    @staticmethod
    def _stopped() -> NotReadyError:
        return NotReadyError(
            "the service is shutting down", fix="load the bundle again after the restart"
        )

    async def _earlier_model(self) -> Served | None:
        if self._earlier is None or self._earlier.previous is None:
            return None
        return await self._prepare(Path(self._earlier.previous))

    async def _store_and_switch(self, served: Served) -> None:
        """The store first: where it cannot be written, this process goes on with the model that the
        others have.
        """
        now = self.active
        folders = str(served.recommender.folder), str(now.recommender.folder)
        await self._keep(Choice(base_of(self._config), *folders, now.version))
        self._switch(served)

    def _alone(self) -> asyncio.Lock:
        if self._changing.locked():
            raise SwapConflictError(
                "another model is being loaded", fix="wait until that has finished"
            )
        return self._changing

    @property
    def _root(self) -> Path:
        config = self._config
        return (
            Path(config.bundle_root) if config.bundle_root else Path(config.bundle).resolve().parent
        )

    async def _prepare(self, folder: Path) -> Served:
        recommender = await asyncio.to_thread(load_for, self._config, folder)
        served = self.candidate = Served(recommender)
        await self._follow(served)
        return served

    def _switch(self, served: Served) -> None:
        self.previous, self.active, self._earlier = self.active, served, None
        self.previous.recommender.users.clear()
        log("model switched", model_version=served.version, previous_version=self.previous.version)

    async def _shadow(self, candidate: Recommender, requests: int, seconds: float) -> Shadow:
        """The latest requests, then those that come in, answered by both models."""
        overlaps: list[float] = []
        times: tuple[list[float], list[float]] = ([], [])
        waiting = list(self.recent)[-requests:] if requests else []
        last = self.recent[-1] if self.recent else None
        deadline = time.monotonic() + seconds
        while len(overlaps) < requests and time.monotonic() < deadline:
            self._check_wanted()
            if not waiting:
                await asyncio.sleep(0.01)
                newest = self.recent[-1] if self.recent else None
                if newest is not last and newest is not None:
                    waiting, last = [newest], newest
                continue
            chunk, waiting = waiting[:_PAUSE], waiting[_PAUSE:]
            for asked in chunk:
                user_id = str(asked.user_id)
                try:
                    lists = []
                    for recommender, spent in zip(
                        (self.active.recommender, candidate), times, strict=True
                    ):
                        await self._catch_up(recommender, [user_id])
                        started = time.perf_counter()
                        lists.append(
                            recommender.best(
                                user_id, asked.k, asked.exclude_seen, asked.filter, asked.diversity
                            )[0]
                        )
                        spent.append((time.perf_counter() - started) * 1e6)
                    overlaps.append(_overlap(*lists))
                except ConfigError:  # a filter on an attribute that only one of the two has
                    overlaps.append(0.0)
            await asyncio.sleep(0)
        if not overlaps:
            return Shadow(0)
        agreement = sum(overlaps) / len(overlaps)
        return Shadow(
            len(overlaps), agreement, *(median(spent) if spent else None for spent in times)
        )


def _overlap(one: list[str], other: list[str]) -> float:
    longest = max(len(one), len(other))
    return len(set(one) & set(other)) / longest if longest else 1.0


def _objection(shadow: Shadow, min_agreement: float) -> str:
    if not min_agreement:
        return ""
    if shadow.agreement is None:
        return "no request came in to shadow the candidate with, so its agreement is not known"
    if shadow.agreement < min_agreement:
        return f"the candidate agrees with the active model on {shadow.agreement:.3f} of the items, not {min_agreement:.3f}"
    return ""


def _inside(root: Path, folder: str) -> Path:
    """The folder, absolute. Raises ConfigError outside the bundle root: a request must not open any
    file it likes.
    """
    try:
        found = (root / folder).resolve()
        (found / "manifest.json").is_file()
    except (OSError, ValueError):  # too long, or with characters that no path has
        raise ConfigError(
            "the name of the bundle cannot be a path",
            fix="name a folder inside the bundle root",
            parameter="bundle",
        ) from None
    if not found.is_relative_to(root.resolve()):
        raise ConfigError(
            "the bundle is outside the bundle root of this service",
            fix="name a folder inside it, or start the service with another --bundle-root",
            parameter="bundle",
        )
    return found


def base_of(config: ServiceConfig) -> str:
    """The bundle that the service was started with, as the store names it."""
    return str(Path(config.bundle).resolve())


def switched_to(config: ServiceConfig, setting: str | None) -> Choice | None:
    """Returns what a service started with this bundle has switched to, by the setting in the store;
    None for nothing.
    """
    try:
        choice = msgspec.json.decode(setting, type=Choice) if setting else None
    except msgspec.MsgspecError:  # not ours
        return None
    return choice if choice is not None and choice.base == base_of(config) else None


def load_for(config: ServiceConfig, folder: Path | str) -> Recommender:
    """A bundle, with the limits of the service. Raises BundleErrors."""
    return load(
        folder, max_users=config.max_users, max_events=config.max_events, search=config.search
    )


def first_model(config: ServiceConfig, choice: Choice | None) -> Recommender:
    """The model to begin with: the one switched to before a restart, unless the service is started
    with another now.
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
