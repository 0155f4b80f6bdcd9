"""`Recommender`: answers in microseconds from a bundle, and follows every event.

What happens with ids that are not known:
- an unknown user gets the prior: what the student recommends without history and features;
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

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import UNSET

from distilrec.bundle.drec import read_drec
from distilrec.bundle.format import Bundle, read_bundle
from distilrec.bundle.manifest import Manifest, SearchKind
from distilrec.engine.answers import (
    Contribution,
    Item,
    Recommendation,
    UpdateResult,
    ValuedItem,
    as_recommendation,
)
from distilrec.engine.catalogue import Catalogue
from distilrec.engine.context import Context, ContextInputs
from distilrec.engine.diversity import diversified, pool_of
from distilrec.engine.events import Event, as_event
from distilrec.engine.explanations import effects_of
from distilrec.engine.filters import Filter
from distilrec.engine.fitted import fitted
from distilrec.engine.golden import verify_golden
from distilrec.engine.history import History, events_of
from distilrec.engine.items import Floats, Places
from distilrec.engine.loops import RuntimeName, loops_of
from distilrec.engine.moments import check_not_before, checked_moment
from distilrec.engine.popular import Ranking
from distilrec.engine.probabilities import (
    Asked,
    Objective,
    best_by_worth,
    likely,
    temperature_of,
    valued,
    worth_of,
)
from distilrec.engine.ruled import Arranged, Wanted, arranged
from distilrec.engine.rules import Rules, named
from distilrec.engine.runtimes.kinds import make_runtime
from distilrec.engine.runtimes.runtime import Runtime
from distilrec.engine.sessions import Sessions
from distilrec.engine.similar import POPULARITY, SimilarItems
from distilrec.engine.strangers import Blend, BlendedRuntime
from distilrec.engine.time_inputs import NEVER
from distilrec.engine.users import NO_ITEMS, User, Users
from distilrec.errors import ConfigError, DistilrecError, UnknownItemError
from distilrec.ids import Id, as_id, listed_ids
from distilrec.stores.records import IMPRESSION, ItemRecord, Since, StoredEvent, UserRecord

MAX_EVENTS = 10_000


class Recommender:
    """A served student. Make one with `distilrec.load(path)`.

    max_users: how many users stay in memory, None for all; max_events: how many of the latest
    events of each user are remembered as seen and can be explained. The state itself is a fold of
    all events. search: how the best items are found, where not as the bundle says. runtime:
    "numba" compiles the loops, "numpy" needs no compiler.

    lock: every method holds it; a thread that holds it makes several calls as one.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        max_users: int | None = None,
        max_events: int = MAX_EVENTS,
        search: SearchKind | None = None,
        runtime: RuntimeName = "numba",
    ) -> None:
        for name, value in (("max_users", max_users), ("max_events", max_events)):
            if value is not None and value < 1:
                raise ConfigError(
                    f"{name} is {value}", fix="give a number of at least 1", parameter=name
                )
        # Not the bundle itself: what only loading needs leaves memory.
        self._manifest, self._folder = bundle.manifest, bundle.folder
        self.model_version = bundle.manifest.model_version
        self._kernels = loops_of(runtime)
        self._runtime = make_runtime(bundle, search, self._kernels)
        self._blended: BlendedRuntime | None = None  # for users without events
        self._timed = self._runtime.timed
        self._context = ContextInputs(bundle)
        # Whether an answer depends on more than the user: the time, the context
        self._moving = self._timed or self._context.told
        self._catalogue = Catalogue(bundle, self._runtime)
        self._users = Users(max_users, max_events)
        self._sessions = Sessions(bundle, self._runtime, self._catalogue.index, self._users)
        self._similar = SimilarItems(self._runtime, bundle.weights.biases, self._kernels)
        self.lock = self._users.lock
        # Of the catalogue, nearer for every answer.
        self._item_ids, self._filters = self._catalogue.ids, self._catalogue.filters
        approximate = (search or bundle.manifest.search.kind) != "exact"
        no_filter = self._filters.mask(None)
        verify_golden(bundle, self._runtime, self._kernels, no_filter, approximate=approximate)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself: kind, versions, metrics."""
        return self._manifest

    @property
    def folder(self) -> Path:
        """Where the bundle is."""
        return self._folder

    # Items

    @property
    def item_ids(self) -> list[str]:
        """All items of the catalogue, the most popular in training first; without removed ones."""
        with self.lock:
            return self._catalogue.present()

    @property
    def target_types(self) -> list[str] | None:
        """The event types that are to be predicted, None where all are."""
        roles, types = self._manifest.roles, self._manifest.event_types
        if roles is UNSET:
            return None
        return [name for name, role in zip(types, roles, strict=True) if role == "target"]

    def knows_event_type(self, event_type: str) -> bool:
        """Return whether an event type has a meaning here; one that has none only informs."""
        return self._manifest.roles is UNSET or event_type in self._manifest.event_types

    @property
    def item_count(self) -> int:
        """How many items the catalogue has, without removed ones."""
        with self.lock:
            return self._catalogue.count

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
        """Return the title of an item, or its id where the data had none. Raises
        UnknownItemError.
        """
        with self.lock:
            return self._catalogue.title(item_id)

    def knows_item(self, item_id: Id) -> bool:
        """Return whether an item is in the catalogue."""
        with self.lock:
            return self._catalogue.knows(item_id)

    def title_of_past(self, item_id: Id) -> str:
        """Return the title of an item that may have been removed since, or its id."""
        with self.lock:
            return self._catalogue.title_of_past(item_id)

    def item(self, item_id: Id) -> Item:
        """Return what is known about an item. Raises UnknownItemError."""
        with self.lock:
            return self._catalogue.item(item_id)

    def search(
        self, text: str, limit: int = 20, start: int = 0, stop: int | None = None
    ) -> list[Item]:
        """Return items whose title or id contains a text, most popular first; all items where the
        text is empty.

        start, stop: look at these places of the catalogue only.
        """
        with self.lock:
            return self._catalogue.search(text, limit, start, stop)

    def add_item(
        self, item_id: Id, features: Mapping[str, object], title: str | None = None
    ) -> None:
        """Add a new item, scored by its features alone from now on. Raises ConfigError for an item
        that exists.
        """
        with self.lock:
            self._catalogue.add(item_id, features, title)

    def check_item(self, record: ItemRecord, *, foreign_features: bool = False) -> None:
        """Raise the error that `put_item` would raise, and change nothing.

        foreign_features: accept features that this bundle does not have.
        """
        with self.lock:
            self._catalogue.check(record, foreign_features=foreign_features)

    def follow_item(self, record: ItemRecord) -> list[DistilrecError]:
        """`put_item` for what is stored already: apply what this bundle can take of it, and return
        why not the rest.

        Raises InvalidIdError for a record of what cannot be an item.
        """
        with self.lock:
            return self._catalogue.follow(record)

    def put_item(self, record: ItemRecord) -> None:
        """Add an item, or change one: title, attributes, availability; of a new item also the
        features.

        The vector of an item that training knew stays as it is. Features are attributes too, where
        their names are attributes. Raises InvalidIdError, ConfigError for a feature that the bundle
        does not have, and for values of the wrong kind.
        """
        with self.lock:
            self._catalogue.put(record)

    # Users

    @property
    def users(self) -> Users:
        """The users in memory."""
        return self._users

    def some_users(self, limit: int) -> list[str]:
        """Return some users with a history: those in memory, the latest first, then those of the
        bundle.
        """
        with self.lock:
            return self._sessions.some(limit)

    def all_users(self) -> list[str]:
        """Return everyone of whom something is known: the users of the bundle's history, and those
        in memory.
        """
        with self.lock:
            return self._sessions.everyone()

    def knows_user(self, user_id: Id) -> bool:
        """Return whether anything is known of this user: history, features or events since the
        start.
        """
        with self.lock:
            return self._sessions.knows(user_id)

    def past(self, user_id: Id, limit: int) -> list[str]:
        """Return the latest items of a user, latest first."""
        with self.lock:
            user = self._sessions.find(user_id)
            return [self._item_ids[place] for place in user.items[::-1][:limit]] if user else []

    @property
    def has_teacher(self) -> bool:
        """Whether the bundle holds what the teacher would recommend."""
        return self._sessions.has_teacher

    def teacher_items(self, user_id: Id) -> list[str]:
        """Return what the teacher would recommend after the history in the bundle, best first;
        empty where that is not there.
        """
        with self.lock:
            return [self._item_ids[place] for place in self._sessions.teacher_items(user_id)]

    def set_user(self, user_id: Id, features: Mapping[str, object]) -> None:
        """Set the features of a new or known user. Unknown categories count as unknown, absent
        ones as missing.

        Raises ConfigError for a feature that the bundle does not have.
        """
        embedded = self.user_features(features)
        with self.lock:
            self._sessions.set_features(user_id, embedded)

    def user_features(self, features: Mapping[str, object]) -> Floats:
        """Return U f_u of these features, (dim,). Raises ConfigError for a feature that the bundle
        does not have.
        """
        return self._sessions.features(features)

    # Answers

    def session(
        self, history: History, user_id: Id | None = None, *, now: float | None = None
    ) -> User:
        """Return who a user, without an id a stranger, would be after a session, to be given to
        `recommend` or `explain` in place of the id. Nothing of it is kept.

        history: ids of items, oldest first, or events with item_id, and optionally event_type and
        timestamp (seconds since 1970, now without one: for a student that knows visits, what was
        had in earlier ones needs one), which count in order of their times, after all that is known
        of the user. Items that are not known are left out. now: when the session is told, as of
        `recommend`.
        Raises InvalidIdError, and ConfigError for what is no event or has an impossible timestamp.
        """
        events = events_of(history, time.time() if now is None else checked_moment(now, "now"))
        with self.lock:
            return self._sessions.after(
                None if user_id is None else self._sessions.find(user_id), events
            )

    def recommend(
        self,
        user_id: Id | User,
        item_ids: Iterable[Id] | None = None,
        k: int = 10,
        exclude_seen: bool | None = None,
        *,
        where: Filter | None = None,
        diversity: float = 0.0,
        now: float | None = None,
        context: Context | None = None,
    ) -> list[Recommendation]:
        """Return the k best items for a user, best first; fewer where fewer pass.

        user_id: or what `session` returns.
        item_ids: rank exactly these items instead, each once, seen or not; then nothing else but
        `now` and `context` applies.
        exclude_seen: leave out what the user has already had; by default as it was measured, unless
        the training log has repeats. What the user does not want to see is left out in any case (an
        item with a negative event and no target event after it). where: only items that pass this
        filter.
        diversity: from 0 (best first) to 1: trades score against likeness to the items before, by
        maximal marginal relevance among the best max(50, 5 k).
        now: when the question is asked, in seconds since 1970, the time of the clock by default; it
        matters for a student that is told the time or knows visits.
        context: values of the context features, for a student that is told them; what is left out,
        and a category that no training event had, is unknown.
        Raises InvalidIdError, UnknownItemError for an id in `item_ids` that is not in the
        catalogue, ConfigError for k < 1, a diversity outside [0, 1], a filter that does not fit,
        a `now` that is not a time, more than five minutes ahead of the clock, or as much before
        the user's last event, and a context feature that the bundle does not have or whose value is
        of the wrong type.
        """
        if item_ids is not None:
            return self._rank(user_id, listed_ids(item_ids, "item_ids"), now, context)
        best = self.best(user_id, k, exclude_seen, where, diversity, now, context)
        return list(map(as_recommendation, zip(*best, strict=True)))

    def best(
        self,
        user_id: Id | User,
        k: int,
        exclude_seen: bool | None = None,
        where: Filter | None = None,
        diversity: float = 0.0,
        now: float | None = None,
        context: Context | None = None,
    ) -> tuple[list[str], list[float]]:
        """Return the items of `recommend` and their scores, apart."""
        _check_list(k, diversity)
        now = _checked(now)
        pool = pool_of(k) if diversity else k
        with self.lock:
            # What `Sessions.find` does first: most are there.
            user = self._users.use(user_id) if type(user_id) is str else None
            if user is None:
                user = self._user(user_id)
            left_out = user.left_out(seen=self._leaves_out(exclude_seen))
            runtime = self._runtime_of(user)
            places, best = runtime.best(
                user.state,
                self._features(user, now, context) if self._moving or context else user.features,
                left_out,
                self._filters.mask(where),
                min(pool, len(self._item_ids)),
            )
            if diversity:
                places, best = self._diversified(places, best, k, diversity)
            ids = self._item_ids
        return [ids[place] for place in places.tolist()], best.tolist()

    def arrange(  # noqa: PLR0913 - as `recommend`, with what belongs to rules
        self,
        user_id: Id | User,
        rules: Rules,
        k: int = 10,
        exclude_seen: bool | None = None,
        *,
        where: Filter | None = None,
        diversity: float = 0.0,
        now: float | None = None,
        context: Context | None = None,
        shown: Iterable[Id] = (),
        impressions: Mapping[str, int] | None = None,
        lenient: bool = False,
    ) -> Arranged:
        """Return the k best items for a user under rules, and what each rule did.

        Items come in order of their scores, with what boosts add, or of a diversified list of
        them; fewer than k only where no more are allowed. No item is there twice, and none that is
        not available, does not pass the filters, or is one that the user does not want to see;
        items that the user has had are left out, but for pins that say otherwise.
        user_id, exclude_seen, where, diversity, now, context: as for `recommend`. shown: what is on
        the pages before, in order: these are left out, ranks and slots go on behind them.
        impressions: how often each item was shown to the user lately, for `rules.tired`. lenient:
        leave rules out that do not fit the catalogue, and return why, in place of raising.
        Raises ConfigError for rules that do not fit, and as `recommend` does, and InvalidIdError.
        """
        _check_list(k, diversity)
        now = _checked(now)
        given = [as_id(item, "shown") for item in listed_ids(shown, "shown")]
        with self.lock:
            user = self._user(user_id)
            wanted = Wanted(
                user.state,
                self._features(user, now, context),
                user.items,
                user.left_out(seen=False),
                k,
                self._leaves_out(exclude_seen),
                where,
                diversity,
                time.time() if now is None else now,
                list(dict.fromkeys(given)),
                impressions or {},
                lenient,
            )
            runtime = self._runtime_of(user)
            return arranged(runtime, self._kernels, self._catalogue, rules, wanted)

    def check_rules(self, rules: Rules) -> list[DistilrecError]:
        """Return why rules do not fit the catalogue, and which pinned items are not in it."""
        with self.lock:
            problems = fitted(rules, self._catalogue, time.time()).problems
            for name, pin in named("pin", rules.pin):
                try:
                    self._catalogue.position(pin.item_id)
                except UnknownItemError as problem:
                    problems.append(
                        UnknownItemError(f"rule {name!r}: {problem.message}", fix=problem.fix)
                    )
        return problems

    def probabilities(
        self,
        user_id: Id | User,
        item_ids: Iterable[Id],
        exclude_seen: bool | None = None,
        *,
        now: float | None = None,
        context: Context | None = None,
    ) -> list[float]:
        """Return how likely each of these items is to be the next one of a user, 0 for one that is
        no candidate.

        softmax(score / temperature) over all candidates: every available item of the catalogue,
        without those that the user does not want to see, and without those that the user has had
        where `exclude_seen` says so. Over all items the sum is 1, and the order is that of the
        scores. One pass over all item vectors.
        user_id, exclude_seen, now, context: as for `recommend`.
        Raises UnknownItemError, InvalidIdError, and ConfigError where the bundle has no temperature
        and for what `recommend` would refuse.
        """
        given = listed_ids(item_ids, "item_ids")
        now = _checked(now)
        temperature = temperature_of(self._manifest)
        with self.lock:
            places = self._catalogue.positions(given)
            user = self._user(user_id)
            asked = self._asked(user, exclude_seen, None, now, context)
            found = likely(self._runtime_of(user), asked, temperature).probabilities
        probabilities: list[float] = found[np.array(places, np.int32)].tolist()
        return probabilities

    def recommend_by_value(  # noqa: PLR0913 - as `recommend`, with an objective
        self,
        user_id: Id | User,
        objective: Objective,
        item_ids: Iterable[Id] | None = None,
        k: int = 10,
        exclude_seen: bool | None = None,
        *,
        where: Filter | None = None,
        diversity: float = 0.0,
        now: float | None = None,
        context: Context | None = None,
    ) -> list[ValuedItem]:
        """Return the k items with the highest expected worth for a user, best first: probability
        times what the objective says that an item is worth.

        objective: for example `Objective(attributes={"price": 1})` for price x probability. The
        other arguments are those of `recommend`; the catalogue is always scored as a whole. Items
        that are given in `item_ids` and are no candidates have the probability 0.
        Raises what `recommend` and `probabilities` raise, and ConfigError for an objective that
        weighs nothing, weights that are not finite, and attributes that are not numbers.
        """
        _check_list(k, diversity)
        now = _checked(now)
        given = None if item_ids is None else listed_ids(item_ids, "item_ids")
        if given is not None:
            exclude_seen = None
        temperature = temperature_of(self._manifest)
        with self.lock:
            worth = worth_of(objective, self._filters.attributes)
            user = self._user(user_id)
            asked = self._asked(user, exclude_seen, where, now, context)
            found = likely(self._runtime_of(user), asked, temperature)
            if given is None:
                places = best_by_worth(
                    self._runtime, self._kernels, asked, found, worth, k, diversity
                )
            else:
                distinct = list(dict.fromkeys(self._catalogue.positions(given)))
                places = np.array(distinct, np.int32)
            ranked = valued(places, self._item_ids, found, worth)
        if given is None and diversity:
            return ranked
        return sorted(ranked, key=lambda item: -item.value)

    def _asked(
        self,
        user: User,
        exclude_seen: bool | None,
        where: Filter | None,
        now: float | None,
        context: Context | None,
    ) -> Asked:
        """Return who asks for probabilities. now: as of `recommend`, checked."""
        return Asked(
            user.state,
            self._features(user, now, context),
            user.left_out(seen=self._leaves_out(exclude_seen)),
            self._filters.mask(None),
            self._filters.mask(where),
        )

    def similar(
        self,
        item_ids: Id | Iterable[Id],
        k: int = 10,
        *,
        user_id: Id | None = None,
        where: Filter | None = None,
        diversity: float = 0.0,
        popularity: float = POPULARITY,
        exclude_seen: bool | None = None,
    ) -> list[Recommendation]:
        """Return the k items that are most like an item, or like several together, such as a cart,
        best first; without the items themselves.

        The scores are likenesses, not logits: the mean cosine of the student's item vectors, a part
        of its item-to-item weights where it has some, and of the items' biases
        (`distilrec.engine.similar`).
        user_id: also leave out what this user does not want to see, and what they have already had
        where `exclude_seen` says so. where, diversity, exclude_seen: as for `recommend`.
        popularity: from 0 (likeness alone) to 1: how much the bias of an item counts.
        Raises InvalidIdError, UnknownItemError for an item that is not in the catalogue,
        ConfigError for no items, a popularity outside [0, 1], and as `recommend` does.
        """
        if isinstance(item_ids, str) or not isinstance(item_ids, Iterable):
            item_ids = [item_ids]
        given = listed_ids(item_ids, "item_ids")
        best = self.most_similar(given, k, user_id, where, diversity, popularity, exclude_seen)
        return list(map(as_recommendation, zip(*best, strict=True)))

    def most_similar(
        self,
        item_ids: Sequence[Id],
        k: int,
        user_id: Id | None = None,
        where: Filter | None = None,
        diversity: float = 0.0,
        popularity: float = POPULARITY,
        exclude_seen: bool | None = None,
    ) -> tuple[list[str], list[float]]:
        """Return the items of `similar` and their scores, apart."""
        _check_list(k, diversity)
        pool = pool_of(k) if diversity else k
        if not 0 <= popularity <= 1:
            raise ConfigError(
                f"popularity is {popularity}",
                fix="give a number from 0 to 1",
                parameter="popularity",
            )
        if not item_ids:
            raise ConfigError(
                "no item is given", fix="give at least one item", parameter="item_ids"
            )
        with self.lock:
            given = np.array(list(dict.fromkeys(self._catalogue.positions(item_ids))), np.int32)
            places, best = self._similar.best(
                given,
                self._items_of(user_id, exclude_seen),
                self._filters.mask(where),
                min(pool, len(self._item_ids)),
                popularity,
                self._catalogue.vector_changes,
            )
            if diversity:
                places, best = self._diversified(places, best, k, diversity)
            ids = self._item_ids
        return [ids[place] for place in places.tolist()], best.tolist()

    def first_of(
        self,
        ranking: Iterable[tuple[str, float]],
        k: int,
        user_id: Id | None = None,
        where: Filter | None = None,
        *,
        exclude_seen: bool | None = None,
    ) -> list[Recommendation]:
        """Return the first k items of a ranking that may be recommended and pass the filter, with
        their scores; items that are not in the catalogue are left out.

        user_id: also leave out what this user does not want to see, and what they have already had
        where `exclude_seen`, as for `recommend`, says so.
        Raises InvalidIdError, and ConfigError for k < 1 and a filter that does not fit.
        """
        _check_list(k)
        with self.lock:
            mask = self._filters.mask(where)
            seen = set(self._items_of(user_id, exclude_seen).tolist())
            places = ((self._catalogue.index.get(item), score) for item, score in ranking)
            passing = (
                Recommendation(self._item_ids[place], score)
                for place, score in places
                if place is not None and place not in seen and (not len(mask) or mask[place])
            )
            return list(islice(passing, k))

    def latest(
        self,
        by: str,
        k: int = 10,
        *,
        user_id: Id | None = None,
        where: Filter | None = None,
        exclude_seen: bool | None = None,
    ) -> list[Recommendation]:
        """Return the k items with the largest numbers of an attribute, such as the time when they
        were published; of equal ones those that were most popular in training first. The scores are
        these numbers.

        Items without the attribute are left out. user_id, exclude_seen: as for `first_of`; where:
        only items that pass this filter.
        Raises ConfigError for an attribute that no item has or that is not a number, and as
        `first_of` does.
        """
        with self.lock:
            order = self._filters.order(by)
            numbers = self._filters.attributes.numbers[by]
            ids = self._item_ids
            ranking = ((ids[place], float(numbers[place])) for place in order.tolist())
            return self.first_of(ranking, k, user_id, where, exclude_seen=exclude_seen)

    def _diversified(
        self, places: Places, scores: Floats, k: int, diversity: float
    ) -> tuple[Places, Floats]:
        length = min(k, len(places))
        order = diversified(self._runtime, self._kernels, places, scores, length, diversity)
        return places[order], scores[order]

    def recommend_many(
        self,
        user_ids: Iterable[Id],
        k: int = 10,
        exclude_seen: bool | None = None,
        *,
        where: Filter | None = None,
        diversity: float = 0.0,
        now: float | None = None,
        context: Context | None = None,
    ) -> list[list[Recommendation]]:
        """Return the lists of `recommend` for several users."""
        return [
            self.recommend(
                user,
                k=k,
                exclude_seen=exclude_seen,
                where=where,
                diversity=diversity,
                now=now,
                context=context,
            )
            for user in listed_ids(user_ids, "user_ids")
        ]

    def _user(self, user_id: Id | User) -> User:
        if isinstance(user_id, User):
            return user_id
        return self._sessions.find(user_id) or self._sessions.stranger()

    def _runtime_of(self, user: User) -> Runtime:
        return self._runtime if user.length else self._blended or self._runtime

    def _items_of(self, user_id: Id | None, exclude_seen: bool | None) -> Places:
        """Return the items that a list for a user leaves out; none without an id."""
        user = None if user_id is None else self._sessions.find(user_id)
        return NO_ITEMS if user is None else user.left_out(seen=self._leaves_out(exclude_seen))

    def _leaves_out(self, exclude_seen: bool | None) -> bool:
        """Return whether a list leaves out what the user has had. exclude_seen: None for the
        default, which is what quality was measured with.
        """
        return not self._manifest.repeats if exclude_seen is None else exclude_seen

    def unknown_context(self, context: Context) -> list[str]:
        """Return the categorical features of a context whose value no training event had: they
        count as unknown.
        """
        return list(self._context.unknown(context))

    def _features(self, user: User, now: float | None, context: Context | None) -> Floats:
        """Return what stands for the features of a user in an answer, (dim,). now: as of
        `recommend`, checked; context: as of `recommend`.
        """
        known = self._context.added(user.features, context)
        if not self._timed:
            return known
        if now is not None:
            check_not_before(now, user)
        asked = time.time() if now is None else now
        return self._runtime.asked_at(known, user.folded, asked, user.visit)

    def _rank(
        self, user_id: Id | User, item_ids: list[Id], now: float | None, context: Context | None
    ) -> list[Recommendation]:
        now = _checked(now)
        with self.lock:
            user = self._user(user_id)
            asked = list(dict.fromkeys(self._catalogue.positions(item_ids)))
            scores = self._runtime_of(user).scores_of(
                user.state[None], self._features(user, now, context), np.array(asked, np.int32)
            )[0]
            ids = self._item_ids
        order = np.argsort(-scores, kind="stable")
        best = [ids[asked[n]] for n in order.tolist()], scores[order].tolist()
        return list(map(as_recommendation, zip(*best, strict=True)))

    def explain(
        self,
        user_id: Id | User,
        item_id: Id,
        k: int = 5,
        *,
        now: float | None = None,
        context: Context | None = None,
    ) -> list[Contribution]:
        """Return the k past events that matter most for the score of an item, by the size of their
        contribution.

        Exact counterfactuals, for the latest 1,000 events: the score minus the score had that one
        event not happened. O(events S d + events d^2). now, context: as of `recommend`.
        Raises UnknownItemError, and ConfigError as `recommend` does. A user without events has no
        contributions.
        """
        return self.explain_many(user_id, [item_id], k, now=now, context=context)[0]

    def explain_many(
        self,
        user_id: Id | User,
        item_ids: Iterable[Id],
        k: int = 5,
        *,
        now: float | None = None,
        context: Context | None = None,
    ) -> list[list[Contribution]]:
        """Return what `explain` does for several items of one user: the states without each event
        are computed once.
        """
        given = listed_ids(item_ids, "item_ids")
        now = _checked(now)
        with self.lock:
            asked = np.array(self._catalogue.positions(given), np.int32)
            user = self._user(user_id)
            if not user.length:
                return [[] for _ in given]
            if now is not None:
                check_not_before(now, user)
            moment = time.time() if now is None else now
            known = self._context.added(user.features, context)
            effects = effects_of(self._runtime, user, known, asked, self._users.max_events, moment)
        return effects.largest(k, self._item_ids)

    # Users without events

    def follow_popular(self, ranking: Ranking, blend: Blend) -> None:
        """Add what is popular of late to the scores of users without events from now on, in place
        of what was added before: weight x log(1 + count). The probability of an item then grows
        with that power of its count.

        ranking: items and their counts, of `blend.window`; those that are not in the catalogue are
        left out.
        """
        with self.lock:
            places, parts = blend.parts(ranking, self._catalogue.index)
            self._blended = BlendedRuntime(self._runtime, places, parts) if len(places) else None

    def popular_parts(self, user_id: Id | User, item_ids: Iterable[Id]) -> list[float]:
        """Return how much of the score of each of these items is from what is popular of late: 0
        for users with events. Raises UnknownItemError and InvalidIdError.
        """
        given = listed_ids(item_ids, "item_ids")
        with self.lock:
            places = np.array(self._catalogue.positions(given), np.int32)
            if self._blended is None or self._user(user_id).length:
                return [0.0] * len(given)
            parts: list[float] = self._blended.part_of(places).tolist()
            return parts

    # Events

    def update(self, events: Iterable[Event | Mapping[str, Any]]) -> UpdateResult:
        """Follow events, oldest first: the next `recommend` takes them into account. O(S d) per
        event.

        Impressions (events of the type `impression`) change nothing and are not counted.
        Raises ConfigError for an event without user_id or item_id, and for a timestamp that is none
        where answers depend on the time, and InvalidIdError; then none of the events has been
        applied.
        """
        given = [as_event(event) for event in events]
        moments = self._moments(given) if self._timed else repeat(NEVER)
        sessions, catalogue = self._sessions, self._catalogue
        applied = 0
        with self.lock:
            checked = [
                (sessions.user_id(user), catalogue.place(item), kind)
                for user, item, kind, _ in given
            ]
            for (user_id, place, event_type), when in zip(checked, moments, strict=False):
                if place is not None and event_type != IMPRESSION:
                    user = sessions.find(user_id) or sessions.new(user_id)
                    sessions.fold(user, place, event_type, when)
                    applied += 1
        impressions = sum(event_type == IMPRESSION for *_, event_type in checked)
        return UpdateResult(applied, len(checked) - applied - impressions)

    def _moments(self, events: Sequence[tuple[Id, Id, str, object]]) -> list[float]:
        """Return when events happened, now where they do not say it."""
        now = time.time()
        return [
            now if when is None else checked_moment(when, f"events[{place}].timestamp")
            for place, (*_, when) in enumerate(events)
        ]

    # What a store needs.

    def since(self, user_id: Id) -> Since:
        """Return up to where the log of a user is folded in."""
        with self.lock:
            return self._sessions.since(user_id)

    def restore(self, asked: Since, record: UserRecord, rebuilt: User | None = None) -> bool:
        """Bring a user up to date with what a store answered to `asked`.

        rebuilt: what `rebuilt` made of the record, where the record begins again. Returns False
        where that takes the whole log, to be read again from the beginning: an event came late, or
        what is in memory has changed between question and answer.
        """
        with self.lock:
            return self._sessions.restore(asked, record, rebuilt)

    def follow(self, event: StoredEvent, position: int) -> None:
        """Fold one event that has just been stored, if its user is in memory and it is not in the
        state already.
        """
        with self.lock:
            self._sessions.follow(event, position)

    def forget(self, user_id: Id, *, history: bool = False) -> None:
        """Drop a user from memory; with `history` also what the bundle knows of them."""
        with self.lock:
            self._sessions.forget(user_id, history=history)

    def drop_erased(self, names: Iterable[str]) -> None:
        """Forget users and what the bundle knows of them; by exactly these names, also where they
        are no ids any more.
        """
        with self.lock:
            self._sessions.drop_erased(names)

    def rebuilt(self, user_id: str, record: UserRecord) -> User | None:
        """Return a user as folded from a whole log, None for a stranger; it is not in memory yet.

        Takes long for a long log, and does not hold the lock meanwhile.
        """
        return self._sessions.rebuilt(user_id, record)


def _check_list(k: int, diversity: float = 0.0) -> None:
    """Raise ConfigError for a list that cannot be made."""
    if k < 1:
        raise ConfigError(f"k is {k}", fix="ask for at least one item", parameter="k")
    if not 0 <= diversity <= 1:
        raise ConfigError(
            f"diversity is {diversity}", fix="give a number from 0 to 1", parameter="diversity"
        )


def _checked(now: float | None) -> float | None:
    """Return the time that a question names, if any. Raises ConfigError for what is none."""
    return None if now is None else checked_moment(now, "now")


def load(
    path: Path | str,
    *,
    max_users: int | None = None,
    max_events: int = MAX_EVENTS,
    search: SearchKind | None = None,
    runtime: RuntimeName = "numba",
) -> Recommender:
    """Return a recommender from a bundle folder, or from a file of `distilrec export --web`:
    files checked, kernels compiled, golden answers reproduced.

    max_users: how many users stay in memory (None: all). Without a store, a user who leaves memory
    loses what was not in the bundle. search: "exact", "quantised" or "graph", None for what the
    bundle says. runtime: "numba", or "numpy" where nothing can be compiled: slower, and numba is
    not loaded.
    Raises BundleMissingError, BundleCorruptedError, BundleVersionError; ConfigError for another
    runtime and for a search that this bundle cannot do, MissingExtraError for a graph without the
    package usearch.
    """
    return Recommender(
        read_drec(path) if Path(path).is_file() else read_bundle(path),
        max_users=max_users,
        max_events=max_events,
        search=search,
        runtime=runtime,
    )
