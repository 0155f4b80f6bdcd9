"""`Recommender`: answers in microseconds from a bundle, and follows every event.

What happens with ids that are not known:
- an unknown user gets the prior: what the student recommends to somebody without history and features;
- a user with features only (`set_user`) gets recommendations from the features;
- events on unknown items are counted and otherwise ignored: nothing is known about such an item;
- a new item (`put_item`) is scored by its features alone, with the bias of the least popular item;
- asking for the score of an unknown item raises UnknownItemError.

Any thread may call any method: they take turns. After a fork the child goes on with a copy of
everything. Alone it keeps every user in memory; with a store (`distilrec.engine.stored`, or the
service) users come from there when they are asked for, and leave memory when there are too many.

Ids follow `distilrec.ids.as_id`: 7, 7.0 and "7" are one user, and what cannot be an id raises
InvalidIdError.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from distilrec.bundle.format import Bundle, read_bundle
from distilrec.bundle.manifest import WEIGHTS, Manifest, SearchKind
from distilrec.engine import kernels
from distilrec.engine.filters import Filter, Filters
from distilrec.engine.items import Floats, Places
from distilrec.engine.order import Placed, follows, history_until, placed
from distilrec.engine.runtimes.kinds import make_runtime
from distilrec.engine.users import User, Users
from distilrec.errors import (
    BundleCorruptedError,
    ConfigError,
    DistilrecError,
    InvalidIdError,
    UnknownItemError,
)
from distilrec.features.attributes import Value, check_size, unpack_attributes
from distilrec.features.encoding import (
    CategoricalEncoding,
    FeatureEncoder,
    MultiEncoding,
    as_category,
    as_parts,
)
from distilrec.features.texts import unpack_texts
from distilrec.ids import Id, as_id, listed_ids
from distilrec.stores.records import ItemRecord, Since, StoredEvent, UserRecord, merged

_GOLDEN_TOLERANCE = 1e-4
_NO_ITEMS = np.zeros(0, np.int32)
# 0 for a new item, under another name where the catalogue has such a column.
_DERIVED = "popularity", "sales_volume"
_POOL, _POOL_FACTOR = 50, 5  # candidates of a diversified list of k: max(50, 5 k)
_EXPLAINED = 1_000
_FOLDED = 500  # events of a long log that are folded before others get their turn
_MAX_PROBLEMS = 10  # of one item
MAX_EVENTS = 10_000


class Recommendation(NamedTuple):
    """An item and its score: a logit, higher is better; a softmax over the catalogue makes it a
    probability.
    """

    item_id: str
    score: float


# The fast way to make one.
_recommendation: Callable[[tuple[str, float]], Recommendation] = partial(
    tuple.__new__, Recommendation
)


class Event(msgspec.Struct, frozen=True):
    """One interaction. An event type that training did not know counts as the unknown type."""

    user_id: Id
    item_id: Id
    event_type: str = "interaction"


class UpdateResult(NamedTuple):
    """How many events changed a state, and how many were on unknown items and changed nothing."""

    applied: int
    unknown_items: int


class Contribution(NamedTuple):
    """What one past event did for a score: the score minus the score had the event not happened.

    place: which of the remembered events of the user it was, from 0, the oldest.
    """

    item_id: str
    contribution: float
    place: int


class Item(NamedTuple):
    """What is known about one item, for people and for filters."""

    item_id: str
    title: str
    attributes: dict[str, float | list[str]]
    available: bool
    in_training: bool


class Recommender:
    """A served student. Make one with `distilrec.load(path)`.

    max_users: how many users stay in memory, None for all; max_events: how many of the latest
    events of each user are remembered as seen and can be explained. The state itself is a fold of
    all events. search: how the best items are found, where not as the bundle says.

    lock: every method holds it; a thread that holds it makes several calls as one.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        max_users: int | None = None,
        max_events: int = MAX_EVENTS,
        search: SearchKind | None = None,
    ) -> None:
        for name, value in (("max_users", max_users), ("max_events", max_events)):
            if value is not None and value < 1:
                raise ConfigError(
                    f"{name} is {value}", fix="give a number of at least 1", parameter=name
                )
        self._bundle = bundle
        self.model_version = bundle.manifest.model_version
        self._approximate = (search or bundle.manifest.search.kind) != "exact"
        self._runtime = make_runtime(bundle, search)
        self._item_ids = unpack_texts("ids", bundle.catalogue)
        self._titles = unpack_texts("titles", bundle.catalogue)
        self._item_index = {item: place for place, item in enumerate(self._item_ids)}
        self._event_index = {
            event: place for place, event in enumerate(bundle.manifest.event_types)
        }
        self._user_table, self._item_table = (
            bundle.weights["user_table"],
            bundle.weights["item_table"],
        )
        self._filters = Filters(
            unpack_attributes(bundle.catalogue, len(self._item_ids)), self._item_index
        )
        encodings = bundle.manifest.item_encoder.encodings
        self._categorical = {
            each.name for each in encodings if isinstance(each, CategoricalEncoding)
        }
        self._separators = {
            each.name: each.separator for each in encodings if isinstance(each, MultiEncoding)
        }
        self._separators |= self._filters.attributes.separators
        self._live: dict[str, ItemRecord] = {}  # items that the bundle does not have
        self._removed: set[str] = set()
        self._no_features = np.zeros(bundle.manifest.dim, np.float32)  # of all users without
        self._one_event = np.empty(1, np.int32), np.empty(1, np.int32)  # reused: item and type
        self._users = Users(max_users, max_events)
        self.lock = self._users.lock
        known = unpack_texts("users", bundle.history) if bundle.history else []
        self._history_index = {user: place for place, user in enumerate(known)}
        self._in_history = history_until(
            float(bundle.history["end"][0]) if bundle.history else -math.inf,
            len(bundle.manifest.event_types),
            with_tail="recent" in bundle.history,
        )
        self._verify_golden()

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself: kind, versions, metrics."""
        return self._bundle.manifest

    @property
    def folder(self) -> Path:
        """Where the bundle is."""
        return self._bundle.folder

    @property
    def users(self) -> Users:
        """The users in memory."""
        return self._users

    @property
    def item_ids(self) -> list[str]:
        """All items of the catalogue, the most popular in training first; without removed ones."""
        with self.lock:
            return [item for item in self._item_ids if item not in self._removed]

    @property
    def places(self) -> int:
        """How many places the catalogue has, for `search`, removed items among them."""
        return len(self._item_ids)

    @property
    def attributes(self) -> list[str]:
        """What answers can be filtered by."""
        with self.lock:
            return self._filters.attributes.names

    def title(self, item_id: Id) -> str:
        """The title of an item, or its id where the data had none. Raises UnknownItemError."""
        with self.lock:
            return self._titles[self._position(item_id)]

    def knows_item(self, item_id: Id) -> bool:
        """Whether an item is in the catalogue."""
        with self.lock:
            place = self._place(item_id)
            return place is not None and self._item_ids[place] not in self._removed

    def title_of_past(self, item_id: Id) -> str:
        """The title of an item that may have been removed since, or its id."""
        with self.lock:
            place = self._place(item_id)
            return as_id(item_id, "item_id") if place is None else self._titles[place]

    def item(self, item_id: Id) -> Item:
        """What is known about an item. Raises UnknownItemError."""
        with self.lock:
            place = self._position(item_id)
            name = self._item_ids[place]
            return Item(
                name,
                self._titles[place],
                self._filters.attributes.of(place),
                self._filters.is_available(place),
                name not in self._live,
            )

    @property
    def item_count(self) -> int:
        """How many items the catalogue has, without removed ones."""
        with self.lock:
            return len(self._item_ids) - len(self._removed)

    def search(
        self, text: str, limit: int = 20, start: int = 0, stop: int | None = None
    ) -> list[Item]:
        """Items whose title or id contains a text, most popular first; all items where the text is
        empty.

        start, stop: look at these places of the catalogue only.
        """
        wanted = text.casefold()
        found: list[Item] = []
        with self.lock:
            places = zip(self._item_ids[start:stop], self._titles[start:stop], strict=True)
            for item_id, title in places:
                if len(found) == limit:
                    break
                if (
                    wanted in title.casefold() or wanted in item_id.casefold()
                ) and item_id not in self._removed:
                    found.append(self.item(item_id))
        return found

    def some_users(self, limit: int) -> list[str]:
        """Some users with a history: those in memory, the latest first, then those of
        the bundle.
        """
        with self.lock:
            recent = [user for user in self._users.recent(limit) if self._users.peek(user).length]  # type: ignore[union-attr]
            others = (user for user in self._history_index if user not in self._users)
            return [
                *recent,
                *(user for user, _ in zip(others, range(limit - len(recent)), strict=False)),
            ]

    def all_users(self) -> list[str]:
        """Returns everyone of whom something is known: the users of the bundle's history, and those
        in memory.
        """
        with self.lock:
            return [*self._history_index, *self._users.recent(len(self._users))]

    def knows_user(self, user_id: Id) -> bool:
        """Whether anything is known of this user: history, features or events since the start."""
        with self.lock:
            known = type(user_id) is str and self._is_known(user_id)
            return known or self._is_known(as_id(user_id, "user_id"))

    def past(self, user_id: Id, limit: int) -> list[str]:
        """The latest items of a user, latest first."""
        with self.lock:
            user = self._find(user_id)
            return [self._item_ids[place] for place in user.items[::-1][:limit]] if user else []

    @property
    def has_teacher(self) -> bool:
        """Whether the bundle holds what the teacher would recommend."""
        return "teacher_items" in self._bundle.history

    def teacher_items(self, user_id: Id) -> list[str]:
        """What the teacher would recommend after the history in the bundle, best first; empty where
        that is not there.
        """
        with self.lock:
            place = self._history_index.get(self._user_id(user_id))
            lists = self._bundle.history.get("teacher_items")
            if place is None or lists is None:
                return []
            return [self._item_ids[item] for item in lists[place] if item >= 0]

    def recommend(
        self,
        user_id: Id,
        item_ids: Iterable[Id] | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        *,
        where: Filter | None = None,
        diversity: float = 0.0,
    ) -> list[Recommendation]:
        """The k best items for a user, best first; fewer where fewer pass.

        item_ids: rank exactly these items instead, each once, seen or not; then nothing else
        applies.
        exclude_seen: leave out what the user has already had. where: only items that pass this
        filter.
        diversity: from 0 (best first) to 1: trades score against likeness to the items before, by
        maximal marginal relevance among the best max(50, 5 k).
        Raises InvalidIdError, UnknownItemError for an id in `item_ids` that is not in the
        catalogue, ConfigError for k < 1, a diversity outside [0, 1] and a filter that does not fit.
        """
        if item_ids is not None:
            return self._rank(user_id, listed_ids(item_ids, "item_ids"))
        best = self.best(user_id, k, exclude_seen, where, diversity)
        return list(map(_recommendation, zip(*best, strict=True)))

    def best(
        self,
        user_id: Id,
        k: int,
        exclude_seen: bool = True,
        where: Filter | None = None,
        diversity: float = 0.0,
    ) -> tuple[list[str], list[float]]:
        """`recommend` as items and scores apart."""
        if k < 1:
            raise ConfigError(f"k is {k}", fix="ask for at least one item", parameter="k")
        if not 0 <= diversity <= 1:
            raise ConfigError(
                f"diversity is {diversity}", fix="give a number from 0 to 1", parameter="diversity"
            )
        pool = max(_POOL, _POOL_FACTOR * k) if diversity else k
        with self.lock:
            # What `_find` does first: most are there.
            user = self._users.use(user_id) if type(user_id) is str else None
            if user is None:
                user = self._find(user_id) or self._stranger
            places, best = self._runtime.best(
                user.state,
                user.features,
                user.items if exclude_seen else _NO_ITEMS,
                self._filters.mask(where),
                min(pool, len(self._item_ids)),
            )
            if diversity:
                order = self._diversified(places, best, min(k, len(places)), diversity)
                places, best = places[order], best[order]
            ids = self._item_ids
        return [ids[place] for place in places.tolist()], best.tolist()

    def recommend_many(
        self,
        user_ids: Iterable[Id],
        k: int = 10,
        exclude_seen: bool = True,
        *,
        where: Filter | None = None,
        diversity: float = 0.0,
    ) -> list[list[Recommendation]]:
        """`recommend` for several users."""
        return [
            self.recommend(user, k=k, exclude_seen=exclude_seen, where=where, diversity=diversity)
            for user in listed_ids(user_ids, "user_ids")
        ]

    def _rank(self, user_id: Id, item_ids: list[Id]) -> list[Recommendation]:
        with self.lock:
            user = self._find(user_id) or self._stranger
            asked = list(dict.fromkeys(self._positions(item_ids)))
            scores = self._runtime.scores_of(
                user.state[None], user.features, np.array(asked, np.int32)
            )[0]
            ids = self._item_ids
        order = np.argsort(-scores, kind="stable")
        best = [ids[asked[n]] for n in order.tolist()], scores[order].tolist()
        return list(map(_recommendation, zip(*best, strict=True)))

    def _diversified(self, places: Places, scores: Floats, k: int, diversity: float) -> Places:
        chosen = np.empty(k, np.int32)
        if k:
            span = max(float(scores[0] - scores[-1]), 1e-9)
            relevance = (scores - scores[-1]) / np.float32(span)
            kernels.diversify(
                self._runtime.item_vectors(places), relevance, np.float32(diversity), chosen
            )
        return chosen

    def update(self, events: Iterable[Event | Mapping[str, Any]]) -> UpdateResult:
        """Follows events, oldest first: the next `recommend` takes them into account. O(S d) per
        event.

        Raises ConfigError for an event without user_id or item_id and InvalidIdError; then none of
        the events has been applied.
        """
        given = [_as_event(event) for event in events]
        applied = 0
        with self.lock:
            checked = [(self._user_id(user), self._place(item), kind) for user, item, kind in given]
            for user_id, place, event_type in checked:
                if place is not None:
                    self._fold(self._find(user_id) or self._new_user(user_id), place, event_type)
                    applied += 1
        return UpdateResult(applied, len(checked) - applied)

    def explain(self, user_id: Id, item_id: Id, k: int = 5) -> list[Contribution]:
        """The k past events that matter most for the score of an item, by the size of their
        contribution.

        Exact counterfactuals, for the latest 1,000 events: the score minus the score had that one
        event not happened. O(events S d + events d^2).
        Raises UnknownItemError. A user without events has no contributions.
        """
        return self.explain_many(user_id, [item_id], k)[0]

    def explain_many(
        self, user_id: Id, item_ids: Iterable[Id], k: int = 5
    ) -> list[list[Contribution]]:
        """`explain` for several items of one user: the states without each event are
        computed once.
        """
        given = listed_ids(item_ids, "item_ids")
        with self.lock:
            asked = np.array(self._positions(given), np.int32)
            user = self._find(user_id)
            if user is None or not user.length:
                return [[] for _ in given]
            runtime = self._runtime
            start = max(0, user.length - _EXPLAINED)
            items, kinds = user.items[start:].copy(), user.events[start:]
            # Events that are in the state, but not among these.
            older = start or user.length == self._users.max_events
            states = runtime.without_each(items, kinds, user.state if older else None)
            scores = runtime.scores_of(user.state[None], user.features, asked)  # (1, asked)
            effects = scores - runtime.scores_of(states, user.features, asked)  # (events, asked)
        order = np.argsort(-np.abs(effects), axis=0, kind="stable")[:k]
        return [
            [
                Contribution(self._item_ids[items[n]], float(effects[n, column]), int(n) + start)
                for n in order[:, column]
            ]
            for column in range(len(asked))
        ]

    def set_user(self, user_id: Id, features: Mapping[str, object]) -> None:
        """Sets the features of a new or known user. Unknown categories count as unknown, absent
        ones as missing.

        Raises ConfigError for a feature that the bundle does not have.
        """
        embedded = self.user_features(features)
        with self.lock:
            name = self._user_id(user_id)
            user = self._find(name) or self._new_user(name)
            user.features = embedded

    def user_features(self, features: Mapping[str, object]) -> Floats:
        """U f_u of these features, (dim,). Raises ConfigError for a feature that the bundle does
        not have.
        """
        return self._embed(features, self.manifest.user_encoder, self._user_table, "user")

    def add_item(
        self, item_id: Id, features: Mapping[str, object], title: str | None = None
    ) -> None:
        """Adds a new item, scored by its features alone from now on. Raises ConfigError for an item
        that exists.
        """
        with self.lock:
            if self.knows_item(item_id):
                raise ConfigError(
                    f"item {item_id!r} is already in the catalogue",
                    fix="choose another id",
                    parameter="item_id",
                )
            self.put_item(ItemRecord(as_id(item_id, "item_id"), title, dict(features)))

    def check_item(self, record: ItemRecord, *, foreign_features: bool = False) -> None:
        """Raises the error that `put_item` would raise, and changes nothing.

        foreign_features: accept features that this bundle does not have.
        """
        check_size(record.features, record.attributes)
        with self.lock:
            self._place(record.item_id)
            self._item_vector(record, strict=not foreign_features)
            self._filters.attributes.check(self._attributes_of(record))

    def follow_item(self, record: ItemRecord) -> list[DistilrecError]:
        """`put_item` for what is stored already: applies what this bundle can take of it, and
        returns why not the rest.

        Raises InvalidIdError for a record of what cannot be an item.
        """
        with self.lock:
            usable, problems = self._usable(record)
            self.put_item(usable)
        return problems

    def _usable(self, record: ItemRecord) -> tuple[ItemRecord, list[DistilrecError]]:
        """Returns a record without the features and attributes that cannot be applied, and the
        error of each.
        """
        try:
            self.check_item(record)
        except InvalidIdError:
            raise
        except DistilrecError:
            problems: list[DistilrecError] = []
            parts: dict[str, dict[str, Any]] = {"features": {}, "attributes": {}}
            for part, kept in parts.items():
                for name, value in getattr(record, part).items():
                    try:
                        alone = {part: {**kept, name: value}}
                        self.check_item(
                            msgspec.structs.replace(ItemRecord(record.item_id), **alone)
                        )
                    except DistilrecError as problem:
                        problems.append(problem)
                        # Of many fields, the rest is not worth the time.
                        if len(problems) > _MAX_PROBLEMS:
                            return msgspec.structs.replace(record, **parts), problems
                    else:
                        kept[name] = value
            return msgspec.structs.replace(record, **parts), problems
        return record, []

    def put_item(self, record: ItemRecord) -> None:
        """Adds an item, or changes one: title, attributes, availability; of a new item also the
        features.

        The vector of an item that training knew stays as it is. Features are attributes too, where
        their names are attributes. Raises InvalidIdError, ConfigError for a feature that the bundle
        does not have, and for values of the wrong kind.
        """
        with self.lock:
            self.check_item(record)
            place = self._place(record.item_id)
            known = place is not None
            if place is None:
                place = len(self._item_ids)
            name = self._item_ids[place] if known else as_id(record.item_id, "item_id")
            if not known or name in self._live:
                # An attribute may have got a kind since.
                record, _ = self._usable(merged(self._live.get(name), record))
                self._runtime.put_item(
                    place, self._item_vector(record), float(self._bundle.weights["biases"].min())
                )
                self._live[name] = record
                if not known:
                    self._item_index[name] = place
                    self._item_ids.append(name)
                    self._titles.append(name)
                    self._filters.attributes.append()
            if record.title is not None:
                self._titles[place] = record.title
            self._filters.attributes.change(place, self._attributes_of(record))
            available = record.available
            if available is None:  # an item that was removed before is there again
                available = name in self._removed or self._filters.is_available(place)
            if record.removed:
                self._removed.add(name)
            else:
                self._removed.discard(name)
            self._filters.set_available(place, available and not record.removed)

    def _item_vector(self, record: ItemRecord, *, strict: bool = True) -> Floats:
        encoder = self.manifest.item_encoder
        names = {encoding.name for encoding in encoder.encodings}
        derived = {
            other if (other := f"{name}_in_log") in names else name: 0.0 for name in _DERIVED
        }
        return self._embed(
            {**derived, **record.features}, encoder, self._item_table, "item", strict=strict
        )

    def _attributes_of(self, record: ItemRecord) -> dict[str, Value]:
        """What a record says about attributes: by its features where they are attributes too, and
        by its attributes.
        """
        names = self._filters.attributes.names
        of_features = {name: value for name, value in record.features.items() if name in names}
        return {
            name: self._as_value(name, value)
            for name, value in {**of_features, **record.attributes}.items()
        }

    def _as_value(self, name: str, value: object) -> Value:
        """The value as the model reads the feature of this name, if there is one: filters must see
        the same parts.
        """
        if value is None:
            return None
        if name in self._separators:
            return as_parts(value, self._separators[name])
        if name in self._categorical:
            return as_category(value)
        return value if isinstance(value, int | float | str | list | tuple) else str(value)

    # What a store needs.

    def since(self, user_id: Id) -> Since:
        """Up to where the log of a user is folded in."""
        with self.lock:
            name = self._user_id(user_id)
            user = self._users.peek(name)
            return Since(name) if user is None else Since(name, user.epoch, user.position)

    def restore(self, asked: Since, record: UserRecord, rebuilt: User | None = None) -> bool:
        """Brings a user up to date with what a store answered to `asked`.

        rebuilt: what `rebuilt` made of the record, where the record begins again. False where that
        takes the whole log, to be read again from the beginning: an event came late, or what is in
        memory has changed between question and answer.
        """
        user_id = asked.user_id
        with self.lock:
            user = self._users.peek(user_id)
            if record.erased and self._history_index.pop(user_id, None) is not None:
                self._users.drop(user_id)
            current = (
                user is not None and user.epoch == record.epoch and user.position >= record.position
            )
            if record.restart:
                if current and not record.erased:
                    return True  # nothing is stored and nothing was, or another answer came first
                self._users.drop(user_id)
                if (user := rebuilt or self.rebuilt(user_id, record)) is not None:
                    self._users.put(user_id, user)
                return True
            if current:
                return True  # another answer came first
            events = placed(record.events)
            if (
                user is None
                or (user.epoch, user.position) != asked[1:]
                or not _in_order(user, events)
            ):
                self._users.drop(user_id)
                return False
            for event in events:
                self._follow(user, event)
            user.position = record.position
            return True

    def follow(self, event: StoredEvent, position: int) -> None:
        """Folds one event that has just been stored, if its user is in memory and it is not in the
        state already.
        """
        with self.lock:
            user = self._users.peek(event.user_id)
            if user is None or position <= user.position:
                return
            if not follows(event, user.last, user.received):
                # Late: the next answer folds the log again, in order.
                self._users.drop(event.user_id)
                return
            self._follow(user, placed([event])[0])
            user.position = position

    def forget(self, user_id: Id, *, history: bool = False) -> None:
        """Drops a user from memory; with `history` also what the bundle knows of them."""
        with self.lock:
            name = self._user_id(user_id)
            self._users.drop(name)
            if history:
                self._history_index.pop(name, None)

    def drop_erased(self, names: Iterable[str]) -> None:
        """Forgets users and what the bundle knows of them; by exactly these names, also where they
        are no ids any more.
        """
        with self.lock:
            for name in names:
                self._users.drop(name)
                self._history_index.pop(name, None)

    def rebuilt(self, user_id: str, record: UserRecord) -> User | None:
        """Returns a user as folded from a whole log, None for a stranger; it is not in memory yet.

        Takes long for a long log, and does not hold the lock meanwhile.
        """
        events = placed(record.events)
        with self.lock:
            place = None if record.erased else self._history_index.get(user_id)
            user = self._stranger if place is None else self._of_history(place)
        if place is None and not events and record.features is None:
            return None
        user.epoch, user.position = record.epoch, record.position
        if record.features is not None:
            user.features = self._embed(
                record.features, self.manifest.user_encoder, self._user_table, "user", strict=False
            )
        # Compared in order of arrival.
        new = [event for event in events if not self._is_history(user, event)]
        new.sort(key=lambda event: event.when)  # stable: equal times in order of arrival
        known = [each.event for each in new if each.event.item_id in self._item_index]
        items = np.array([self._item_index[event.item_id] for event in known], np.int32)
        kinds = np.array([self._event_index.get(event.event_type, 0) for event in known], np.int32)
        for start in range(0, len(items), _FOLDED):
            with self.lock:
                self._runtime.fold(
                    user.state, items[start : start + _FOLDED], kinds[start : start + _FOLDED]
                )
            if start:
                time.sleep(0)  # whoever waits for the lock gets it
        self._users.remember_all(user, items, kinds)
        if events:
            user.last = max(event.when for event in events)
            user.received = events[-1].received
        return user

    def _follow(self, user: User, event: Placed) -> None:
        user.last, user.received = event.when, event.received
        if not self._is_history(user, event):
            self._fold_known(user, event.event)

    def _is_history(self, user: User, event: Placed) -> bool:
        """Whether the bundle's history of the user, with which the state begins, holds a stored
        event.
        """
        if not user.has_history:
            return False
        place, kind = (
            self._item_index.get(event.event.item_id, -1),
            self._event_index.get(event.event.event_type, 0),
        )
        return self._in_history.holds(user.unmatched, place, kind, event.received)

    def _fold_known(self, user: User, event: StoredEvent) -> None:
        place = self._item_index.get(event.item_id)
        if place is not None:
            self._fold(user, place, event.event_type)

    def _fold(self, user: User, place: int, event_type: str) -> None:
        kind = self._event_index.get(event_type, 0)
        item, event = self._one_event
        item[0], event[0] = place, kind
        self._runtime.fold(user.state, item, event)
        self._users.remember(user, place, kind)

    def _embed(
        self,
        features: Mapping[str, object],
        encoder: FeatureEncoder,
        table: Floats,
        entity: str,
        *,
        strict: bool = True,
    ) -> Floats:
        known = {encoding.name for encoding in encoder.encodings}
        if strict and (wrong := sorted(set(features) - known - set(_DERIVED))):
            raise ConfigError(
                f"the bundle has no {entity} feature {wrong[0]!r}; it has: "
                f"{', '.join(sorted(known)) or 'none'}",
                fix="correct the name",
                parameter=wrong[0],
            )
        return embed_bag(encoder.encode(features), table)

    # Ids, as they were given where they are known so: that needs no checking.

    def _is_known(self, user_id: str) -> bool:
        return user_id in self._users or user_id in self._history_index

    def _user_id(self, user_id: Id) -> str:
        return (
            user_id
            if type(user_id) is str and self._is_known(user_id)
            else as_id(user_id, "user_id")
        )

    def _place(self, item_id: Id) -> int | None:
        """The position of an item, also of a removed one; None for an unknown one."""
        place = self._item_index.get(item_id) if type(item_id) is str else None
        return self._item_index.get(as_id(item_id, "item_id")) if place is None else place

    def _positions(self, item_ids: list[Id]) -> list[int]:
        index = {} if self._removed else self._item_index
        return [
            index[each] if type(each) is str and each in index else self._position(each)
            for each in item_ids
        ]

    def _position(self, item_id: Id) -> int:
        place = self._place(item_id)
        if place is None or self._item_ids[place] in self._removed:
            raise UnknownItemError(
                f"item {as_id(item_id)!r} is not in the catalogue of this bundle "
                f"({len(self._item_ids):,} items, "
                f"such as {', '.join(self._item_ids[:3])})",
                fix="check the id, or add the item with its features",
                item_id=item_id,
            )
        return place

    @property
    def _stranger(self) -> User:
        return User(self._runtime.new_state(), self._no_features, np.empty((2, 0), np.int32))

    def _new_user(self, user_id: str) -> User:
        user = self._stranger
        self._users.put(user_id, user)
        return user

    def _find(self, user_id: Id) -> User | None:
        """The user's state, folded from the bundle's history on first use."""
        user = self._users.use(user_id) if type(user_id) is str else None
        return self._find_elsewhere(self._user_id(user_id)) if user is None else user

    def _find_elsewhere(self, user_id: str) -> User | None:
        user = self._users.get(user_id)
        if user is None and (place := self._history_index.get(user_id)) is not None:
            user = self._of_history(place)
            self._users.put(user_id, user)
        return user

    def _of_history(self, place: int) -> User:
        """A user as folded from the bundle's history, not in memory yet."""
        h = self._bundle.history
        start, stop = h["offsets"][place], h["offsets"][place + 1]
        items, events = h["items"][start:stop], h["events"][start:stop]
        user = self._stranger
        user.has_history = True
        if "recent" in h and (count := int(h["recent"][place])):
            kinds = [0] * count if self._in_history.one_type else events[-count:].tolist()
            user.unmatched = list(zip(items[-count:].tolist(), kinds, strict=True))
        self._runtime.fold(user.state, items, events)
        self._users.remember_all(user, items, events)
        if len(columns := h["user_columns"][place]):
            user.features = embed_bag(
                zip(columns, h["user_weights"][place], strict=True), self._user_table
            )
        return user

    def _verify_golden(self) -> None:
        """Answers the golden questions by every kernel, which also compiles them all before the
        first request.
        """
        for golden in self.manifest.golden:
            state = self._runtime.new_state()
            self._runtime.fold(
                state, np.array(golden.items, np.int32), np.array(golden.events, np.int32)
            )
            user = embed_bag(golden.user_features, self._user_table)
            seen = np.array(golden.items, np.int32)
            without = self._runtime.without_each(seen, np.array(golden.events, np.int32))
            self._runtime.scores_of(without, user, seen)
            scores = self._runtime.scores(self._runtime.query(state, user))
            places, best = self._runtime.best(
                state, user, seen, self._filters.mask(None), len(golden.top_items)
            )
            self._diversified(places, best, len(places), 0.5)
            expected = np.array(golden.top_scores)
            # Whatever the search, its scores are exact; which items they are is only sure where it
            # looks at all.
            of_best = scores[places] if self._approximate else expected
            pairs = ((best, of_best), (scores[list(golden.top_items)], expected))
            if not all(
                len(ours) == len(theirs)
                and np.allclose(ours, theirs, _GOLDEN_TOLERANCE, _GOLDEN_TOLERANCE)
                for ours, theirs in pairs
            ):
                raise BundleCorruptedError(
                    f"{self._bundle.folder / WEIGHTS}: this machine does not reproduce the golden "
                    "answers of the bundle "
                    f"({best.tolist()[:3]} instead of {expected.tolist()[:3]})",
                    fix="export the bundle again with this version of distilrec",
                    file=str(self._bundle.folder),
                )


def _in_order(user: User, events: Sequence[Placed]) -> bool:
    """Whether new events can be folded as they come, after those that the user has."""
    last, received = user.last, user.received
    for event in events:
        if event.received != event.event.received or not follows(event.event, last, received):
            return False
        last, received = event.when, event.received
    return True


def _as_event(event: Event | Mapping[str, Any]) -> tuple[Id, Id, str]:
    """User, item and event type, ids as they were given."""
    if isinstance(event, Event):
        return event.user_id, event.item_id, event.event_type
    if type(event) is not dict and not isinstance(event, Mapping):
        raise _invalid_event(
            f"it is a {type(event).__name__}",
            "give a list of events, each with user_id and item_id",
        )
    for name in ("user_id", "item_id"):
        if name not in event:
            raise _invalid_event(f"it has no {name}", "give user_id and item_id")
    event_type = event.get("event_type", "interaction")
    if not isinstance(event_type, str):
        raise _invalid_event(
            f"its event_type is {event_type!r}", "give the event type as text, or leave it out"
        )
    return event["user_id"], event["item_id"], event_type


def _invalid_event(problem: str, fix: str) -> ConfigError:
    return ConfigError(f"an event is not valid: {problem}", fix=fix, parameter="events")


def embed_bag(bag: Iterable[tuple[int, float]], table: Floats) -> Floats:
    """The weighted sum of table rows, (dim,) float32."""
    out = np.zeros(table.shape[1], np.float32)
    for column, weight in bag:
        out += np.float32(weight) * table[column]
    return out


def load(
    path: Path | str,
    *,
    max_users: int | None = None,
    max_events: int = MAX_EVENTS,
    search: SearchKind | None = None,
) -> Recommender:
    """A recommender from a bundle folder: files checked, kernels compiled, golden answers
    reproduced.

    max_users: how many users stay in memory (None: all). Without a store, a user who leaves memory
    loses what was not in the bundle. search: "exact", "quantised" or "graph", None for what the
    bundle says.
    Raises BundleMissingError, BundleCorruptedError, BundleVersionError; ConfigError for a search
    that this bundle cannot do, MissingExtraError for a graph without the package usearch.
    """
    return Recommender(read_bundle(path), max_users=max_users, max_events=max_events, search=search)
