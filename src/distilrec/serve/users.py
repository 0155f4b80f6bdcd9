"""Show, describe and erase users."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from distilrec.bundle.format import erase_user
from distilrec.engine.recommender import Recommender
from distilrec.errors import DistilrecError, InvalidIdError, RequestError, UnknownUserError
from distilrec.ids import as_id, as_label
from distilrec.serve.events import Events
from distilrec.serve.http import Endpoint
from distilrec.serve.logs import log
from distilrec.serve.models import Models
from distilrec.serve.parameters import id_of, limit_of
from distilrec.serve.schemas import (
    MAX_SESSION_ID,
    ErasedResponse,
    EventBody,
    EventsRequest,
    HistoryEvent,
    ItemId,
    MergeRequest,
    MergeResponse,
    NamedItem,
    StatusResponse,
    UserEvent,
    UserRequest,
    UserResponse,
    UsersResponse,
)
from distilrec.serve.storage import Storage
from distilrec.serve.upkeep import Upkeep
from distilrec.stores.records import Since

_SHOWN_EVENTS = 50


class Users:
    """What the store, the bundles and the memory know about users."""

    def __init__(self, models: Models, storage: Storage, upkeep: Upkeep, events: Events) -> None:
        self._models, self._storage, self._upkeep = models, storage, upkeep
        self._events = events

    async def some(self, limit: int) -> UsersResponse:
        await self._storage.follow_erasures(self._models.active)
        return UsersResponse(self._models.active.recommender.some_users(limit))

    async def get(self, user_id: str) -> UserResponse:
        record = await self._storage.whole_user(user_id)
        recommender = self._models.active.recommender
        await self._storage.catch_up(recommender, [user_id])
        if not record.epoch and not recommender.knows_user(user_id):
            raise UnknownUserError(
                "nothing is known about this user",
                fix="send events or features first",
                user_id=user_id,
            )
        latest = [
            UserEvent(e.item_id, e.event_type, e.timestamp, e.event_id)
            for e in record.events[-_SHOWN_EVENTS:]
        ]
        features: Any = record.features
        return UserResponse(
            user_id,
            len(record.events),
            latest[::-1],
            _named(recommender, recommender.past(user_id, _SHOWN_EVENTS)),
            _named(recommender, recommender.teacher_items(user_id)),
            features,
        )

    async def put(self, user_id: str, request: UserRequest) -> StatusResponse:
        """Store the features of a user. Raises ConfigError where the bundle cannot take them."""
        self._models.active.recommender.user_features(request.features)
        try:
            await self._storage.set_features(user_id, request.features)
        finally:  # also where it failed: it may have been written all the same
            self._storage.forget([user_id])
        return StatusResponse("stored")

    async def merge(self, user_id: str, request: MergeRequest) -> MergeResponse:
        """Take another id or a session over. Raises RequestError where it is not said which, and
        for the user's own id.
        """
        if request.history is not None and request.session_id and request.source is None:
            return await self._take_session(user_id, request.session_id, request.history)
        if request.source is None or request.history is not None or request.session_id is not None:
            raise RequestError(
                "it is not clear what the user takes over",
                fix="give the other id as `source`, or `session_id` and `history`",
            )
        source = as_id(request.source, "source")
        if source == user_id:
            raise RequestError("source is the user's own id", fix="give the id before the login")
        with self._storage.unless_failed([source, user_id]):
            moved = await self._storage.merge(source, user_id)
        self._storage.forget_what_the_store_lost()
        self._storage.forget([source, user_id])
        return MergeResponse(user_id, moved)

    async def _take_session(
        self, user_id: str, session_id: str, history: list[ItemId | HistoryEvent]
    ) -> MergeResponse:
        as_label(session_id, "session_id", MAX_SESSION_ID)
        events = [
            EventBody(
                user_id,
                event.item_id,
                event.event_type,
                event.timestamp,
                f"{session_id}:{position}",
            )
            if isinstance(event, HistoryEvent)
            else EventBody(user_id, event, event_id=f"{session_id}:{position}")
            for position, event in enumerate(history)
        ]
        taken = await self._events.add(EventsRequest(events))
        return MergeResponse(user_id, taken.accepted)

    async def delete(self, user_id: str) -> ErasedResponse:
        """Erase events, features and state, also of ids that the user has taken over; and their
        rows in the histories of the loaded bundles.

        What was stored under exactly this text before ids followed a rule is erased too. Raises
        InvalidIdError for a text that cannot be an id, and was none.
        """
        spellings = await self._spellings(user_id)
        names = spellings + [
            source for name in spellings for source in await self._storage.merged(name)
        ]
        removed, bundle = 0, "clean"
        for name in names:
            with self._storage.unless_failed([name]):
                removed += await self._storage.erase(name)
        self._models.forget_requests(names)
        for served in self._models.all():
            served.recommender.drop_erased(names)
        for version, folder in self._models.folders():
            for name in names:
                try:
                    await asyncio.to_thread(erase_user, folder, name)
                except (DistilrecError, OSError) as problem:
                    kind = type(problem).__name__
                    bundle = f"{version}: not used any more, but still in the file ({kind})"
                    log("a bundle could not be cleaned", logging.WARNING, model_version=version)
        return ErasedResponse(names[0], removed, bundle, await self._upkeep.clean())

    async def _spellings(self, user_id: str) -> list[str]:
        """Return the id that a text means, and the text itself where something is kept under it
        that is not an id.
        """
        try:
            names = [as_id(user_id, "user_id")]
        except InvalidIdError:
            if not await self._keeps(user_id):
                raise
            return [user_id]
        if user_id != names[0] and await self._keeps(user_id):
            names.append(user_id)
        return names

    async def _keeps(self, user_id: str) -> bool:
        """Whether the store or a bundle in memory has a user under exactly this text."""
        (record,) = await self._storage.read([Since(user_id)])
        if record.epoch or record.erased:
            return True
        with contextlib.suppress(InvalidIdError):
            return any(served.recommender.knows_user(user_id) for served in self._models.all())
        return False


def endpoints(users: Users) -> list[Endpoint]:
    """Return the endpoints of users."""
    return [
        Endpoint(
            "GET", "/v1/users", "users", "Some users with a history.", "users", None, UsersResponse,
            lambda call: users.some(limit_of(call)), {"limit": "how many, 20 without it"},
        ),
        Endpoint(
            "GET", "/v1/users/{user_id:path}", "get_user", "What is known about a user.", "users",
            None, UserResponse, lambda call: users.get(id_of(call, "user_id")),
        ),
        Endpoint(
            "PUT", "/v1/users/{user_id:path}", "put_user", "Sets the features of a user.", "users",
            UserRequest, StatusResponse, lambda call: users.put(id_of(call, "user_id"), call.body),
        ),
        Endpoint(
            "DELETE", "/v1/users/{user_id:path}", "delete_user", "Erases everything about a user.",
            "users", None, ErasedResponse, lambda call: users.delete(call.path["user_id"]),
        ),
        Endpoint(
            "POST", "/v1/users/{user_id:path}/merge", "merge_user",
            "Takes another id, or a session, over into a user.", "users", MergeRequest,
            MergeResponse, lambda call: users.merge(id_of(call, "user_id"), call.body),
            weight=lambda body: max(1, len(body.history or ())),
        ),
    ]  # fmt: skip


def _named(recommender: Recommender, items: list[str]) -> list[NamedItem]:
    return [NamedItem(item, recommender.title_of_past(item)) for item in items]
