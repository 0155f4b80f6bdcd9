"""Which items may be recommended: conditions on attributes, allow and deny lists, availability; as
masks over items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from distilrec.engine.groups import Groups
from distilrec.engine.items import Mask
from distilrec.errors import ConfigError
from distilrec.features.attributes import ItemAttributes
from distilrec.features.encoding import as_category
from distilrec.ids import Id, as_id, listed_ids

_CACHED_BYTES = 32 * 2**20


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """On one attribute. any_of, none_of: categories; min, max: the closed range of a number.

    An item without the attribute fulfils `none_of` only.
    """

    any_of: tuple[str, ...] | None = None
    none_of: tuple[str, ...] = ()
    min: float | None = None
    max: float | None = None


class Filter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An item passes when it fulfils every condition, is in `allow` where that is given, and is not
    in `deny`.

    Item ids and categories that are unknown match nothing; an unknown attribute is an error. Ids
    follow `distilrec.ids.as_id`.
    """

    attributes: dict[str, Condition] = {}
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()


def values_of(chosen: Filter) -> int:
    """Return how many ids and categories a filter names."""
    conditions = chosen.attributes.values()
    named = sum(len(condition.any_of or ()) + len(condition.none_of) for condition in conditions)
    return len(chosen.allow or ()) + len(chosen.deny) + named


class Filters:
    """Masks over the catalogue, (items,) uint8, 1 where an item may be recommended; kept until the
    catalogue changes.
    """

    def __init__(self, attributes: ItemAttributes, positions: Mapping[str, int]) -> None:
        self.attributes = attributes
        self._positions = positions
        self._blocked: set[int] = set()
        self._masks: dict[bytes, Mask] = {}
        self._groups: dict[str, Groups] = {}
        self._orders: dict[str, NDArray[np.int64]] = {}
        self._bytes = 0
        self._open: Mask | None = np.zeros(0, np.uint8)  # None: to be made when it is asked for

    def set_available(self, item: int, available: bool) -> None:
        """Set whether an item may be recommended at all, whatever the filter."""
        if available:
            self._blocked.discard(item)
        else:
            self._blocked.add(item)
        self.changed()

    def is_available(self, item: int) -> bool:
        """Return whether an item may be recommended at all."""
        return item not in self._blocked

    def changed(self) -> None:
        """Forget all masks: items or attributes are no longer what they were."""
        self._masks.clear()
        self._groups.clear()
        self._orders.clear()
        self._bytes = 0
        self._open = None

    def mask(self, chosen: Filter | None) -> Mask:
        """Return the mask of a filter; an empty array where every item may be recommended.

        Raises ConfigError for an attribute that no item has and a condition that its kind does not
        allow, InvalidIdError for what cannot be an id.
        """
        if chosen is None:
            if self._open is None:
                self._open = self._everything() if self._blocked else np.zeros(0, np.uint8)
            return self._open
        try:
            key = msgspec.msgpack.encode(chosen, enc_hook=repr)
        except (UnicodeError, OverflowError):
            # Characters and integers that cannot be written: seldom, and not kept.
            return self._compile(chosen)
        mask = self._masks.get(key)
        if mask is None:
            mask = self._compile(chosen)
            if self._bytes + len(mask) + len(key) > _CACHED_BYTES:
                self._masks.clear()
                self._bytes = 0
            self._masks[key] = mask
            self._bytes += len(mask) + len(key)
        return mask

    def groups(self, name: str) -> Groups:
        """Return the items by their categories of an attribute, or by their numbers. Raises
        ConfigError for an attribute that no item has.
        """
        found = self._groups.get(name)
        if found is None:
            if name not in self.attributes.numbers and name not in self.attributes.categories:
                raise self._unknown(name, "attribute")
            found = self._groups[name] = Groups(self.attributes, name)
        return found

    def order(self, name: str) -> NDArray[np.int64]:
        """Return the places of all items with a numeric attribute, those with the largest numbers
        first, of equal ones those of the bundle, the most popular first.

        Raises ConfigError for an attribute that no item has or that is not a number.
        """
        found = self._orders.get(name)
        if found is None:
            if name not in self.attributes.numbers:
                if name not in self.attributes.categories:
                    raise self._unknown(name, "by")
                raise ConfigError(
                    f"the attribute {name!r} is not a number",
                    fix="name one that is, such as the time when an item was published",
                    parameter="by",
                )
            numbers = self.attributes.numbers[name]
            order = np.argsort(-numbers, kind="stable")
            found = self._orders[name] = order[~np.isnan(numbers[order])]
        return found

    def _everything(self) -> Mask:
        mask = np.ones(self.attributes.items, np.uint8)
        mask[list(self._blocked)] = 0
        return mask

    def _compile(self, chosen: Filter) -> Mask:
        mask = self._everything()
        for name, condition in chosen.attributes.items():
            if name in self.attributes.numbers:
                mask &= self._in_range(name, condition)
            elif name in self.attributes.categories:
                mask &= self._in_categories(name, condition)
            else:
                raise self._unknown(name, f"filter.attributes.{name}")
        if chosen.allow is not None:
            mask &= self._only(chosen.allow, "filter.allow")
        if chosen.deny:
            mask[self._only(chosen.deny, "filter.deny") == 1] = 0
        return mask

    def _unknown(self, name: str, parameter: str) -> ConfigError:
        return ConfigError(
            f"no item has an attribute {name!r}; known: "
            f"{', '.join(self.attributes.names) or 'none'}",
            fix="correct the name",
            parameter=parameter,
        )

    def _in_range(self, name: str, condition: Condition) -> Mask:
        if condition.any_of is not None or condition.none_of:
            raise _wrong_kind(name, "numeric", "min and max")
        column = self.attributes.numbers[name]
        inside = ~np.isnan(column)
        if condition.min is not None:
            inside &= column >= condition.min
        if condition.max is not None:
            inside &= column <= condition.max
        return inside.astype(np.uint8)

    def _in_categories(self, name: str, condition: Condition) -> Mask:
        if condition.min is not None or condition.max is not None:
            raise _wrong_kind(name, "categorical", "any_of and none_of")
        index = self.attributes.categories[name]
        fulfils = (np.ones if condition.any_of is None else np.zeros)(
            self.attributes.items, np.uint8
        )
        for chosen, passes in ((condition.any_of, 1), (condition.none_of, 0)):
            if isinstance(chosen, str):
                raise ConfigError(
                    f"the condition on {name!r} has the text {chosen!r} where a list of "
                    "categories belongs",
                    fix=f"give a list: [{chosen!r}]",
                    parameter=f"filter.attributes.{name}",
                )
            for category in dict.fromkeys(map(as_category, chosen or ())):
                if category in index:
                    fulfils[index[category]] = passes
        return fulfils

    def _only(self, item_ids: Iterable[Id], what: str) -> Mask:
        mask = np.zeros(self.attributes.items, np.uint8)
        places = [self._place(item, what) for item in listed_ids(item_ids, what)]
        mask[[place for place in places if place is not None]] = 1
        return mask

    def _place(self, item_id: Id, what: str) -> int | None:
        place = self._positions.get(item_id) if type(item_id) is str else None
        return self._positions.get(as_id(item_id, what)) if place is None else place


def _wrong_kind(name: str, kind: str, allowed: str) -> ConfigError:
    return ConfigError(
        f"attribute {name!r} is {kind}: it can be filtered by {allowed} only",
        fix="use a condition of that kind",
        parameter=f"filter.attributes.{name}",
    )
