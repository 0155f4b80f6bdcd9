"""`Recommender`: answers in microseconds from a bundle, and follows every event.

What happens with ids that are not known:
- an unknown user gets the prior: what the student recommends to somebody without history and features;
- a user with features only (`set_user`) gets recommendations from the features;
- events on unknown items are counted and otherwise ignored: nothing is known about such an item;
- a new item (`add_item`) is scored by its features alone, with the bias of the least popular item;
- asking for the score of an unknown item raises UnknownItemError.

The state of every user who was asked for or had an event stays in memory. A Recommender belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from distilrec.bundle.format import WEIGHTS, Bundle, Manifest, read_bundle, unpack_texts
from distilrec.encoding import FeatureEncoder
from distilrec.engine.runtime import Floats, make_runtime
from distilrec.errors import BundleCorruptedError, ConfigError, UnknownItemError

_GOLDEN_TOLERANCE = 1e-4
_NO_ITEMS = np.zeros(0, np.int32)


class Recommendation(NamedTuple):
    """An item and its score: a logit, higher is better; a softmax over the catalogue makes it a probability."""

    item_id: str
    score: float


class Event(msgspec.Struct, frozen=True):
    """One interaction. An event type that training did not know counts as the unknown type."""

    user_id: str
    item_id: str
    event_type: str = "interaction"


class UpdateResult(NamedTuple):
    """How many events changed a state, and how many were on unknown items and changed nothing."""

    applied: int
    unknown_items: int


class Contribution(NamedTuple):
    """What one past event did for a score: the score minus the score had the event not happened.

    place: which event of the user it was, from 0, the oldest.
    """

    item_id: str
    contribution: float
    place: int


@dataclass
class _User:
    """state: what the runtime folds events into; features: U f_u, (dim,); log: (2, capacity) int32, items and events."""

    state: Floats
    features: Floats
    log: NDArray[np.int32]
    length: int = field(default=0)

    @property
    def items(self) -> NDArray[np.int32]:
        """All items so far, oldest first, with repetitions, (length,)."""
        return self.log[0, : self.length]

    @property
    def events(self) -> NDArray[np.int32]:
        """Their event types, (length,)."""
        return self.log[1, : self.length]

    def remember(self, item: int, event: int) -> None:
        if self.length == self.log.shape[1]:
            self.log = np.concatenate([self.log, np.empty((2, max(16, self.length)), np.int32)], axis=1)
        self.log[:, self.length] = item, event
        self.length += 1


class Recommender:
    """A served student. Make one with `distilrec.load(path)`."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._runtime = make_runtime(bundle)
        self._item_ids = unpack_texts("ids", bundle.catalogue)
        self._titles = unpack_texts("titles", bundle.catalogue)
        self._item_index = {item: place for place, item in enumerate(self._item_ids)}
        self._event_index = {event: place for place, event in enumerate(bundle.manifest.event_types)}
        self._user_table, self._item_table = bundle.weights["user_table"], bundle.weights["item_table"]
        self._users: dict[str, _User] = {}
        known = unpack_texts("users", bundle.history) if bundle.history else []
        self._history_index = {user: place for place, user in enumerate(known)}
        self._verify_golden()

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself: kind, versions, metrics."""
        return self._bundle.manifest

    @property
    def item_ids(self) -> list[str]:
        """All items of the catalogue, the most popular in training first."""
        return list(self._item_ids)

    def title(self, item_id: str) -> str:
        """The title of an item, or its id where the data had none. Raises UnknownItemError."""
        return self._titles[self._position(item_id)]

    def knows_user(self, user_id: str | int) -> bool:
        """Whether anything is known of this user: history, features or events since the start."""
        return str(user_id) in self._users or str(user_id) in self._history_index

    def recommend(
        self,
        user_id: str | int,
        item_ids: Sequence[str | int] | None = None,
        k: int = 10,
        exclude_seen: bool = True,
    ) -> list[Recommendation]:
        """The k best items for a user, best first.

        item_ids: rank exactly these items instead, each once, seen or not; then `k` and `exclude_seen` do not apply.
        exclude_seen: leave out what the user has already had.
        Raises UnknownItemError for an id in `item_ids` that is not in the catalogue, ConfigError for k < 1.
        """
        user = self._find(str(user_id))
        if user is None:
            user = self._stranger
        if item_ids is not None:
            asked = [self._position(str(item)) for item in dict.fromkeys(item_ids)]
            scores = self._runtime.scores(self._runtime.query(user.state, user.features))
            ranked = sorted(asked, key=lambda place: -scores[place])
            return [Recommendation(self._item_ids[place], float(scores[place])) for place in ranked]
        if k < 1:
            raise ConfigError(f"k is {k}", fix="ask for at least one item", parameter="k")
        seen = user.items if exclude_seen else _NO_ITEMS
        places, best = self._runtime.best(user.state, user.features, seen, min(k, len(self._item_ids)))
        return list(map(Recommendation, map(self._item_ids.__getitem__, places.tolist()), best.tolist()))

    def update(self, events: Iterable[Event | Mapping[str, str]]) -> UpdateResult:
        """Follows events, oldest first: the next `recommend` takes them into account. O(S d) per event.

        Raises ConfigError for an event without user_id or item_id; then none of the events has been applied.
        """
        applied = unknown = 0
        for event in [_as_event(event) for event in events]:
            place = self._item_index.get(event.item_id)
            if place is None:
                unknown += 1
                continue
            user = self._find(event.user_id) or self._new_user(event.user_id)
            kind = self._event_index.get(event.event_type, 0)
            self._runtime.fold(user.state, np.array([place], np.int32), np.array([kind], np.int32))
            user.remember(place, kind)
            applied += 1
        return UpdateResult(applied, unknown)

    def explain(self, user_id: str | int, item_id: str | int, k: int = 5) -> list[Contribution]:
        """The k past events that matter most for the score of an item, by the size of their contribution.

        Exact counterfactuals: the score minus the score had that one event not happened. O(events S d + events d^2).
        Raises UnknownItemError. A user without events has no contributions.
        """
        place = self._position(str(item_id))
        user = self._find(str(user_id))
        if user is None or not user.length:
            return []
        runtime = self._runtime
        score = runtime.score(runtime.query(user.state, user.features), place)
        without = runtime.without_each(user.items, user.events)
        others = [runtime.score(runtime.query(state, user.features), place) for state in without]
        effects = score - np.array(others)
        order = np.argsort(-np.abs(effects), kind="stable")[:k]
        return [Contribution(self._item_ids[user.items[n]], float(effects[n]), int(n)) for n in order]

    def set_user(self, user_id: str | int, features: Mapping[str, object]) -> None:
        """Sets the features of a new or known user. Unknown categories count as unknown, absent ones as missing."""
        user = self._find(str(user_id)) or self._new_user(str(user_id))
        user.features = self._embed(features, self.manifest.user_encoder, self._user_table, "user")

    def add_item(self, item_id: str | int, features: Mapping[str, object], title: str | None = None) -> None:
        """Adds a new item, scored by its features alone from now on. Raises ConfigError for an item that exists."""
        name = str(item_id)
        if name in self._item_index:
            raise ConfigError(
                f"item {name!r} is already in the catalogue", fix="choose another id", parameter="item_id"
            )
        vector = self._embed(
            {"popularity": 0.0, "sales_volume": 0.0, **features}, self.manifest.item_encoder, self._item_table, "item"
        )
        self._runtime.append_item(vector, float(self._bundle.weights["biases"].min()))
        self._item_index[name] = len(self._item_ids)
        self._item_ids.append(name)
        self._titles.append(title or name)

    def _embed(self, features: Mapping[str, object], encoder: FeatureEncoder, table: Floats, entity: str) -> Floats:
        known = {encoding.name for encoding in encoder.encodings}
        if wrong := sorted(set(features) - known - {"popularity", "sales_volume"}):
            raise ConfigError(
                f"the bundle has no {entity} feature {wrong[0]!r}; it has: {', '.join(sorted(known)) or 'none'}",
                fix="correct the name",
                parameter=wrong[0],
            )
        return embed_bag(encoder.encode(features), table)

    def _position(self, item_id: str) -> int:
        place = self._item_index.get(item_id)
        if place is None:
            raise UnknownItemError(
                f"item {item_id!r} is not in the catalogue of this bundle ({len(self._item_ids):,} items, "
                f"such as {', '.join(self._item_ids[:3])})",
                fix="check the id, or add the item with its features",
                item_id=item_id,
            )
        return place

    @property
    def _stranger(self) -> _User:
        return _User(self._runtime.new_state(), np.zeros(self.manifest.dim, np.float32), np.empty((2, 0), np.int32))

    def _new_user(self, user_id: str) -> _User:
        user = self._users[user_id] = self._stranger
        return user

    def _find(self, user_id: str) -> _User | None:
        """The user's state, folded from the bundle's history on first use."""
        user = self._users.get(user_id)
        if user is None and (place := self._history_index.get(user_id)) is not None:
            h = self._bundle.history
            start, stop = h["offsets"][place], h["offsets"][place + 1]
            user = self._new_user(user_id)
            user.log = np.stack([h["items"][start:stop], h["events"][start:stop]])
            user.length = user.log.shape[1]
            self._runtime.fold(user.state, user.items, user.events)
            bag = zip(h["user_columns"][place], h["user_weights"][place], strict=True)
            user.features = embed_bag(bag, self._user_table)
        return user

    def _verify_golden(self) -> None:
        """Answers the golden questions by every kernel, which also compiles them all before the first request."""
        for golden in self.manifest.golden:
            state = self._runtime.new_state()
            self._runtime.fold(state, np.array(golden.items, np.int32), np.array(golden.events, np.int32))
            user = embed_bag(golden.user_features, self._user_table)
            seen = np.array(golden.items, np.int32)
            self._runtime.without_each(seen, np.array(golden.events, np.int32))
            scores = self._runtime.scores(self._runtime.query(state, user))
            _, best = self._runtime.best(state, user, seen, len(golden.top_items))
            expected = np.array(golden.top_scores)
            if not all(
                len(each) == len(expected) and np.allclose(each, expected, _GOLDEN_TOLERANCE, _GOLDEN_TOLERANCE)
                for each in (best, scores[list(golden.top_items)])
            ):
                raise BundleCorruptedError(
                    f"{self._bundle.folder / WEIGHTS}: this machine does not reproduce the golden answers of the bundle "
                    f"({best.tolist()[:3]} instead of {expected.tolist()[:3]})",
                    fix="export the bundle again with this version of distilrec",
                    file=str(self._bundle.folder),
                )


def _as_event(event: Event | Mapping[str, str]) -> Event:
    if isinstance(event, Event):
        return event
    try:
        return msgspec.convert(event, Event)
    except msgspec.ValidationError as problem:
        raise ConfigError(f"an event is not valid: {problem}", fix="give user_id and item_id as text") from None


def embed_bag(bag: Iterable[tuple[int, float]], table: Floats) -> Floats:
    """The weighted sum of table rows, (dim,) float32."""
    out = np.zeros(table.shape[1], np.float32)
    for column, weight in bag:
        out += np.float32(weight) * table[column]
    return out


def load(path: Path | str) -> Recommender:
    """A recommender from a bundle folder: files checked, kernels compiled, golden answers reproduced.

    Raises BundleMissingError, BundleCorruptedError and BundleVersionError.
    """
    return Recommender(read_bundle(path))
