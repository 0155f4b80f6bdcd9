"""Attributes of items, for filters: numbers by item, and for each category the items that have it.

Both sides use this module: the training side writes the attributes of the item table into the
bundle, the engine filters by them and changes them while it serves. It needs numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilrec.errors import ConfigError
from distilrec.features.encoding import as_category, as_parts
from distilrec.features.texts import pack_texts, unpack_texts

MAX_NAMES = 256  # features, and attributes, of one item
MAX_NAME = 128  # characters
MAX_PARTS = 8_192  # of one value, such as the numbers of a vector
MAX_TEXT = 65_536  # characters of one value
MAX_CATEGORIES = 1_000  # of one attribute of one item
MAX_CATEGORY = 1_024  # characters
MAX_ATTRIBUTES = 1_000  # of a catalogue, before new ones are refused

Value = float | str | bool | Sequence[str] | None


@dataclass
class ItemAttributes:
    """Columns of the item table. An attribute is either numeric or categorical (one or several
    categories per item).

    numbers: (items,) float64 by name, NaN where an item has none; categories: by name and category
    the positions of its items, sorted int32; separators: by name what separates the parts of a
    text, of attributes declared as `multi`.
    """

    items: int
    numbers: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    categories: dict[str, dict[str, NDArray[np.int32]]] = field(default_factory=dict)
    separators: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All attributes, sorted."""
        return sorted([*self.numbers, *self.categories])

    def of(self, item: int) -> dict[str, float | list[str]]:
        """Return the attributes that one item has. O(categories)."""
        found: dict[str, float | list[str]] = {
            name: float(column[item])
            for name, column in self.numbers.items()
            if not math.isnan(column[item])
        }
        for name, index in self.categories.items():
            if has := [category for category, members in index.items() if _holds(members, item)]:
                found[name] = has
        return found

    def append(self) -> None:
        """Make room for one more item, without attributes."""
        self.items += 1
        for name, column in self.numbers.items():
            self.numbers[name] = np.append(column, np.nan)

    def change(self, item: int, values: Mapping[str, Value]) -> None:
        """Set attributes of one item; None removes one. A new name becomes an attribute of the
        kind of its value.

        Raises ConfigError for a text where the attribute is numeric, and the other way round; then
        nothing changed.
        """
        self.check(values)
        for name, value in values.items():
            if name in self.numbers or (_is_number(value) and name not in self.categories):
                column = self.numbers.setdefault(name, np.full(self.items, np.nan))
                column[item] = np.nan if value is None else value
                continue
            wanted = set(categories_of(value))
            index = self.categories.setdefault(name, {})
            for category in sorted(wanted - set(index)):
                index[category] = np.zeros(0, np.int32)
            for category, members in index.items():
                if (category in wanted) != _holds(members, item):
                    position = int(np.searchsorted(members, item))
                    changed = (
                        np.insert(members, position, item)
                        if category in wanted
                        else np.delete(members, position)
                    )
                    index[category] = changed.astype(np.int32)

    def check(self, values: Mapping[str, Value]) -> None:
        """Raise the ConfigError that `change` would raise."""
        new = 0
        for name, value in values.items():
            self._check(name, value)
            if name not in self.numbers and name not in self.categories:
                new += 1
                if len(self.numbers) + len(self.categories) + new > MAX_ATTRIBUTES:
                    raise _too_much(
                        name,
                        f"would be one of more than {MAX_ATTRIBUTES:,} attributes of the catalogue",
                    )

    def _check(self, name: str, value: Value) -> None:
        if value is None:
            return
        number = _is_number(value)
        if not number:
            has = categories_of(value)
            if len(has) > MAX_CATEGORIES or any(len(category) > MAX_CATEGORY for category in has):
                raise _too_much(
                    name,
                    f"has more than {MAX_CATEGORIES:,} categories, or one of over "
                    f"{MAX_CATEGORY:,} characters",
                )
        if isinstance(value, int) and abs(value) > 1e300:
            raise _too_much(name, "is a number that no float can hold")
        if number and not math.isfinite(float(value)):  # type: ignore[arg-type]
            raise ConfigError(
                f"attribute {name!r} is {value}", fix="give a finite number or null", parameter=name
            )
        if (name in self.numbers and not number) or (name in self.categories and number):
            kind, other = (
                ("numeric", "text") if name in self.numbers else ("categorical", "a number")
            )
            raise ConfigError(
                f"attribute {name!r} is {kind}, but the value is {other}: {value!r}",
                fix="give a value of that kind, or use another name",
                parameter=name,
            )


def check_size(*tables: Mapping[str, object]) -> None:
    """Raise ConfigError for features or attributes of one item that are too many, or too large to
    work with.
    """
    for table in tables:
        if len(table) > MAX_NAMES:
            raise _too_much(
                next(iter(table)), f"is one of {len(table):,} names, more than {MAX_NAMES}"
            )
        for name, value in table.items():
            if not 1 <= len(name) <= MAX_NAME:
                raise _too_much(
                    name[:MAX_NAME], f"has a name of {len(name):,} characters, not 1 to {MAX_NAME}"
                )
            parts = value if isinstance(value, list | tuple | set) else [value]
            size = sum(len(part) for part in parts if isinstance(part, str))
            if len(parts) > MAX_PARTS or size > MAX_TEXT:
                raise _too_much(
                    name, f"has more than {MAX_PARTS:,} parts or {MAX_TEXT:,} characters"
                )


def _too_much(name: str, what: str) -> ConfigError:
    return ConfigError(f"the feature or attribute {name!r} {what}", fix="give less", parameter=name)


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _holds(members: NDArray[np.int32], item: int) -> bool:
    position = int(np.searchsorted(members, item))
    return position < len(members) and int(members[position]) == item


def categories_of(value: Value) -> list[str]:
    """Return the categories of one value: a list has one for each of its parts."""
    return (
        as_parts(value)
        if isinstance(value, list | tuple | set)
        else [as_category(value)]
        if value is not None
        else []
    )


def collect_attributes(
    columns: Mapping[str, tuple[str, Iterable[object]]],
    items: int,
    separators: Mapping[str, str] | None = None,
) -> ItemAttributes:
    """Return the attributes in columns by name: their kind (numeric, categorical or multi) and one
    value per item.

    separators: of columns of kind multi, what will separate the parts of a text that is given
    later.
    """
    found = ItemAttributes(items, separators=dict(separators or {}))
    for name, (kind, values) in columns.items():
        if kind == "numeric":
            numbers = [np.nan if v is None else float(v) for v in values]  # type: ignore[arg-type]
            found.numbers[name] = np.array(numbers, np.float64)
            continue
        members: dict[str, list[int]] = {}
        for item, value in enumerate(values):
            parts = as_parts(value) if kind == "multi" else categories_of(value)  # type: ignore[arg-type]
            for category in dict.fromkeys(parts):
                if category:
                    members.setdefault(category, []).append(item)
        found.categories[name] = {
            category: np.array(members[category], np.int32) for category in sorted(members)
        }
    return found


def pack_attributes(attributes: ItemAttributes) -> dict[str, NDArray[Any]]:
    """Return the attributes as named arrays: `number:NAME`, and for categories their texts, their
    items end to end, and where each ends; `separator:NAME` in UTF-8.
    """
    arrays: dict[str, NDArray[Any]] = {
        f"number:{name}": column for name, column in attributes.numbers.items()
    }
    for name, separator in attributes.separators.items():
        arrays[f"separator:{name}"] = np.frombuffer(separator.encode(), np.uint8)
    for name, index in attributes.categories.items():
        arrays |= pack_texts(f"category:{name}", list(index))
        arrays[f"members:{name}"] = np.concatenate([np.zeros(0, np.int32), *index.values()])
        arrays[f"ends:{name}"] = np.cumsum([len(members) for members in index.values()]).astype(
            np.int64
        )
    return arrays


def unpack_attributes(arrays: Mapping[str, NDArray[Any]], items: int) -> ItemAttributes:
    """Return what `pack_attributes` stored, as copies that may be changed. Raises ValueError where
    it does not fit `items`.
    """
    found = ItemAttributes(items)
    for key, array in arrays.items():
        kind, _, name = key.partition(":")
        if kind == "number":
            found.numbers[name] = array.astype(np.float64)
            if array.shape != (items,):
                raise ValueError(f"attribute {name!r} has {array.shape} values for {items} items")
        elif kind == "separator":
            found.separators[name] = array.tobytes().decode()
            if not len(array):
                raise ValueError(f"attribute {name!r} has an empty separator")
        elif kind == "members":
            if len(array) and not 0 <= array.min() <= array.max() < items:
                raise ValueError(f"attribute {name!r} names items outside the catalogue")
            ends = arrays[f"ends:{name}"]
            if not np.array_equal(np.sort(ends), ends) or (ends[-1] if len(ends) else 0) != len(
                array
            ):
                raise ValueError(f"attribute {name!r} is cut at the wrong places")
            parts = np.split(array.astype(np.int32), ends)[:-1]
            texts = unpack_texts(f"category:{name}", arrays)
            found.categories[name] = dict(zip(texts, parts, strict=True))
    return found
