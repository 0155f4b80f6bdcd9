"""Which items may be recommended: conditions on attributes, allow and deny lists, availability; as masks over items."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from distilrec.attributes import ItemAttributes
from distilrec.engine.items import Mask
from distilrec.errors import ConfigError

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
    """An item passes when it fulfils every condition, is in `allow` where that is given, and is not in `deny`.

    Item ids and categories that nobody knows match nothing; an unknown attribute is an error.
    """

    attributes: dict[str, Condition] = {}
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()


class Filters:
    """Masks over the catalogue, (items,) uint8, 1 where an item may be recommended; kept until the catalogue changes."""

    def __init__(self, attributes: ItemAttributes, positions: Mapping[str, int]) -> None:
        self.attributes = attributes
        self._positions = positions
        self._blocked: set[int] = set()
        self._masks: dict[bytes, Mask] = {}
        self._bytes = 0
        self._open = np.zeros(0, np.uint8)

    def set_available(self, item: int, available: bool) -> None:
        """An item that is not available is never recommended, whatever the filter."""
        if available:
            self._blocked.discard(item)
        else:
            self._blocked.add(item)
        self.changed()

    def is_available(self, item: int) -> bool:
        """Whether it may be recommended at all."""
        return item not in self._blocked

    def changed(self) -> None:
        """Forgets all masks: items or attributes are no longer what they were."""
        self._masks.clear()
        self._bytes = 0
        self._open = self._everything() if self._blocked else np.zeros(0, np.uint8)

    def mask(self, chosen: Filter | None) -> Mask:
        """The mask of a filter; an empty array where every item may be recommended.

        Raises ConfigError for an attribute that no item has and a condition that its kind does not allow.
        """
        if chosen is None:
            return self._open
        key = msgspec.msgpack.encode(chosen)
        mask = self._masks.get(key)
        if mask is None:
            mask = self._compile(chosen)
            if self._bytes + len(mask) > _CACHED_BYTES:
                self._masks.clear()
                self._bytes = 0
            self._masks[key] = mask
            self._bytes += len(mask) + len(key)
        return mask

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
                raise ConfigError(
                    f"no item has an attribute {name!r}; known: {', '.join(self.attributes.names) or 'none'}",
                    fix="correct the name",
                    parameter=f"filter.attributes.{name}",
                )
        if chosen.allow is not None:
            mask &= self._only(chosen.allow)
        if chosen.deny:
            mask[self._only(chosen.deny) == 1] = 0
        return mask

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
        fulfils = (np.ones if condition.any_of is None else np.zeros)(self.attributes.items, np.uint8)
        for category in condition.any_of or ():
            if category in index:
                fulfils[index[category]] = 1
        for category in condition.none_of:
            if category in index:
                fulfils[index[category]] = 0
        return fulfils

    def _only(self, item_ids: tuple[str, ...]) -> Mask:
        mask = np.zeros(self.attributes.items, np.uint8)
        mask[[self._positions[item] for item in item_ids if item in self._positions]] = 1
        return mask


def _wrong_kind(name: str, kind: str, allowed: str) -> ConfigError:
    return ConfigError(
        f"attribute {name!r} is {kind}: it can be filtered by {allowed} only",
        fix="use a condition of that kind",
        parameter=f"filter.attributes.{name}",
    )
