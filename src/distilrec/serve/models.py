"""The models that a running service has in memory: the active one, the one before it, a candidate
that is being tried, and the variant of an experiment. `distilrec.serve.swap` and
`distilrec.serve.experiments` change them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from distilrec.engine.filters import values_of
from distilrec.engine.recommender import Recommender
from distilrec.serve.schemas import RecommendRequest

if TYPE_CHECKING:
    from distilrec.serve.arms import Running

_REMEMBERED = 1_000  # requests, for shadowing
_REMEMBERED_BYTES = 4_096  # of the filter of each of these
_REMEMBERED_VALUES = 100


class Choice(msgspec.Struct, frozen=True):
    """Which bundle answers, kept in the store."""

    base: str
    """Folder of the bundle that the service was started with."""
    active: str
    """Folder of the bundle that answers."""
    previous: str | None = None
    """Folder of the bundle before it, which a rollback goes back to."""
    previous_version: str | None = None
    """Model version of that bundle."""


@dataclass
class Served:
    """A recommender, and how far it has followed the store."""

    recommender: Recommender
    item_changes: int = 0
    """Position of the latest change of an item that it has followed."""
    erasures: int = -1
    """Number of erasures that it has followed."""

    @property
    def version(self) -> str:
        return self.recommender.model_version


class Models:
    """The models in memory, and the latest requests, which a candidate is shadowed with.

    earlier: what the store says of the models before this start; running: the experiment that users
    are split for, with `variant`, its model where that is another one.
    """

    def __init__(self, active: Recommender, earlier: Choice | None = None) -> None:
        self.active = Served(active)
        self.previous: Served | None = None
        self.candidate: Served | None = None
        self.variant: Served | None = None
        self.running: Running | None = None
        self.earlier = earlier
        self.recent: deque[RecommendRequest] = deque(maxlen=_REMEMBERED)

    @property
    def previous_version(self) -> str | None:
        """The model that a rollback goes back to, also where it is not in memory."""
        if self.previous is not None:
            return self.previous.version
        return self.earlier.previous_version if self.earlier else None

    def remember(self, request: RecommendRequest) -> None:
        """Keep a request for shadowing, unless its filter is large: a thousand of those would fill
        the memory.
        """
        if request.rules is not None or request.shown is not None:
            # Models are compared without them.
            request = msgspec.structs.replace(request, rules=None, shown=None)
        chosen = request.filter
        if chosen is not None and (
            values_of(chosen) > _REMEMBERED_VALUES
            or len(msgspec.msgpack.encode(chosen)) > _REMEMBERED_BYTES
        ):
            return
        self.recent.append(request)

    def forget_requests(self, users: Iterable[str]) -> None:
        """Drop the requests of these users from those that are kept for shadowing."""
        names = set(users)
        remaining = [request for request in self.recent if str(request.user_id) not in names]
        self.recent.clear()
        self.recent.extend(remaining)

    def all(self) -> Iterable[Served]:
        """Return every model in memory, the active one first."""
        return (
            served
            for served in (self.active, self.previous, self.candidate, self.variant)
            if served is not None
        )

    def folders(self) -> list[tuple[str, Path]]:
        """Return version and folder of every model in memory, and of the one that a rollback would
        load.
        """
        folders_by_version = [(served.version, served.recommender.folder) for served in self.all()]
        earlier = self.earlier
        if self.previous is None and earlier is not None and earlier.previous is not None:
            folders_by_version.append((earlier.previous_version or "", Path(earlier.previous)))
        return [(version, folder) for version, folder in folders_by_version if folder.is_dir()]
