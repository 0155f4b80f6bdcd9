"""The items of a recommender, and what changes about them while it serves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from distilrec.bundle.format import Bundle
from distilrec.engine.answers import Item
from distilrec.engine.embedding import DERIVED, embed_features
from distilrec.engine.filters import Filters
from distilrec.engine.items import Floats
from distilrec.engine.runtimes.runtime import Runtime
from distilrec.errors import ConfigError, DistilrecError, InvalidIdError, UnknownItemError
from distilrec.features.attributes import Value, check_size, unpack_attributes
from distilrec.features.encoding import CategoricalEncoding, MultiEncoding, as_category, as_parts
from distilrec.ids import Id, as_id
from distilrec.stores.records import ItemRecord, merged

_MAX_PROBLEMS = 10  # of one item


class Catalogue:
    """Ids, titles, features, attributes and availability of the items, removed ones among them.

    Only for a thread that holds the lock of the recommender.

    ids: by position; index: the position of each id; filters: which items may be recommended. All
    three stay the same objects, which others may keep. of_bundle: how many items the bundle has;
    others stand behind these.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        self.ids = list(bundle.catalogue.ids)
        self.of_bundle = len(self.ids)
        self.index = {item: place for place, item in enumerate(self.ids)}
        attributes = unpack_attributes(bundle.catalogue.attributes, len(self.ids))
        self.filters = Filters(attributes, self.index)
        self._runtime = runtime
        self._titles = list(bundle.catalogue.titles)
        self._encoder = bundle.manifest.item_encoder
        self._table = bundle.weights.item_table
        self._bias_of_new = float(bundle.weights.biases.min())
        encodings = self._encoder.encodings
        self._names = {encoding.name for encoding in encodings}
        self._categorical = {
            encoding.name for encoding in encodings if isinstance(encoding, CategoricalEncoding)
        }
        self._separators = {
            encoding.name: encoding.separator
            for encoding in encodings
            if isinstance(encoding, MultiEncoding)
        }
        self._separators |= attributes.separators
        self._live: dict[str, ItemRecord] = {}  # items that the bundle does not have
        self.vector_changes = 0  # how many vectors have been set since the start
        self._removed: set[str] = set()

    @property
    def count(self) -> int:
        """How many items there are, without removed ones."""
        return len(self.ids) - len(self._removed)

    def present(self) -> list[str]:
        """Return the ids of all items, without removed ones."""
        return [item for item in self.ids if item not in self._removed]

    def place(self, item_id: Id) -> int | None:
        """Return the position of an item, also of a removed one; None for an unknown one."""
        place = self.index.get(item_id) if type(item_id) is str else None
        return self.index.get(as_id(item_id, "item_id")) if place is None else place

    def position(self, item_id: Id) -> int:
        """Return the position of an item. Raises UnknownItemError, also for a removed one."""
        place = self.place(item_id)
        if place is None or self.ids[place] in self._removed:
            raise UnknownItemError(
                f"item {as_id(item_id)!r} is not in the catalogue of this bundle "
                f"({len(self.ids):,} items, "
                f"such as {', '.join(self.ids[:3])})",
                fix="check the id, or add the item with its features",
                item_id=item_id,
            )
        return place

    def positions(self, item_ids: Iterable[Id]) -> list[int]:
        """Return `position` of each item."""
        index = {} if self._removed else self.index
        return [
            index[item_id] if type(item_id) is str and item_id in index else self.position(item_id)
            for item_id in item_ids
        ]

    def knows(self, item_id: Id) -> bool:
        """Return whether an item is there and has not been removed."""
        place = self.place(item_id)
        return place is not None and self.ids[place] not in self._removed

    def title(self, item_id: Id) -> str:
        """Return the title of an item. Raises UnknownItemError."""
        return self._titles[self.position(item_id)]

    def title_of_past(self, item_id: Id) -> str:
        """Return the title of an item that may have been removed since, or its id."""
        place = self.place(item_id)
        return as_id(item_id, "item_id") if place is None else self._titles[place]

    def item(self, item_id: Id) -> Item:
        """Return what is known about an item. Raises UnknownItemError."""
        place = self.position(item_id)
        name = self.ids[place]
        return Item(
            name,
            self._titles[place],
            self.filters.attributes.of(place),
            self.filters.is_available(place),
            name not in self._live,
        )

    def search(self, text: str, limit: int, start: int, stop: int | None) -> list[Item]:
        """Return items whose title or id contains a text; see `Recommender.search`."""
        wanted = text.casefold()
        items: list[Item] = []
        for item_id, title in zip(self.ids[start:stop], self._titles[start:stop], strict=True):
            if len(items) == limit:
                break
            if (
                wanted in title.casefold() or wanted in item_id.casefold()
            ) and item_id not in self._removed:
                items.append(self.item(item_id))
        return items

    # Changes

    def add(self, item_id: Id, features: Mapping[str, object], title: str | None) -> None:
        """Add a new item. Raises ConfigError for one that is there."""
        if self.knows(item_id):
            raise ConfigError(
                f"item {item_id!r} is already in the catalogue",
                fix="choose another id",
                parameter="item_id",
            )
        self.put(ItemRecord(as_id(item_id, "item_id"), title, dict(features)))

    def check(self, record: ItemRecord, *, foreign_features: bool = False) -> None:
        """Raise the error that `put` would raise; see `Recommender.check_item`."""
        check_size(record.features, record.attributes)
        self.place(record.item_id)
        self._vector(record, strict=not foreign_features)
        self.filters.attributes.check(self._attributes_of(record))

    def put(self, record: ItemRecord) -> None:
        """Add or change an item; see `Recommender.put_item`."""
        self.check(record)
        place = self.place(record.item_id)
        if place is None:
            place, name = len(self.ids), as_id(record.item_id, "item_id")
            record = self._put_live(place, name, record)
        elif (name := self.ids[place]) in self._live:
            record = self._put_live(place, name, record)
        if record.title is not None:
            self._titles[place] = record.title
        self.filters.attributes.change(place, self._attributes_of(record))
        available = record.available
        if available is None:  # an item that was removed before is there again
            available = name in self._removed or self.filters.is_available(place)
        if record.removed:
            self._removed.add(name)
        else:
            self._removed.discard(name)
        self.filters.set_available(place, available and not record.removed)

    def follow(self, record: ItemRecord) -> list[DistilrecError]:
        """Apply what can be applied of a record; see `Recommender.follow_item`."""
        usable, problems = self._usable(record)
        self.put(usable)
        return problems

    def _put_live(self, place: int, name: str, record: ItemRecord) -> ItemRecord:
        """Give an item that the bundle does not have its vector; return all that was said of it."""
        # An attribute may have got a kind since.
        record, _ = self._usable(merged(self._live.get(name), record))
        self._runtime.put_item(place, self._vector(record), self._bias_of_new)
        self.vector_changes += 1
        self._live[name] = record
        if place == len(self.ids):
            self.index[name] = place
            self.ids.append(name)
            self._titles.append(name)
            self.filters.attributes.append()
        return record

    def _usable(self, record: ItemRecord) -> tuple[ItemRecord, list[DistilrecError]]:
        """Return a record without the features and attributes that cannot be applied, and the error
        of each.
        """
        if self._problem(record) is None:
            return record, []
        problems: list[DistilrecError] = []
        parts: dict[str, dict[str, Any]] = {"features": {}, "attributes": {}}
        for part, kept in parts.items():
            for name, value in getattr(record, part).items():
                alone = {part: {**kept, name: value}}
                problem = self._problem(
                    msgspec.structs.replace(ItemRecord(record.item_id), **alone)
                )
                if problem is None:
                    kept[name] = value
                    continue
                problems.append(problem)
                # Of many fields, the rest is not worth the time.
                if len(problems) > _MAX_PROBLEMS:
                    return msgspec.structs.replace(record, **parts), problems
        return msgspec.structs.replace(record, **parts), problems

    def _problem(self, record: ItemRecord) -> DistilrecError | None:
        """Return what stands against a record. Raises InvalidIdError for one of no item."""
        try:
            self.check(record)
        except InvalidIdError:
            raise
        except DistilrecError as problem:
            return problem
        return None

    def _vector(self, record: ItemRecord, *, strict: bool = True) -> Floats:
        derived = {
            other if (other := f"{name}_in_log") in self._names else name: 0.0 for name in DERIVED
        }
        features = {**derived, **record.features}
        return embed_features(features, self._encoder, self._table, "item", strict=strict)

    def _attributes_of(self, record: ItemRecord) -> dict[str, Value]:
        """Return what a record says about attributes: by its features where they are attributes
        too, and by its attributes.
        """
        names = self.filters.attributes.names
        of_features = {name: value for name, value in record.features.items() if name in names}
        return {
            name: self._as_value(name, value)
            for name, value in {**of_features, **record.attributes}.items()
        }

    def _as_value(self, name: str, value: object) -> Value:
        """Return the value as the model reads the feature of this name, if there is one: filters
        must see the same parts.
        """
        if value is None:
            return None
        if name in self._separators:
            return as_parts(value, self._separators[name])
        if name in self._categorical:
            return as_category(value)
        return value if isinstance(value, int | float | str | list | tuple) else str(value)
