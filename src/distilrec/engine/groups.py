"""The items of each category of an attribute, and the categories of each item."""

from __future__ import annotations

import numpy as np

from distilrec.engine.items import Places
from distilrec.features.attributes import ItemAttributes


class Groups:
    """The categories of one attribute, numbered; of a numeric attribute, its distinct values."""

    def __init__(self, attributes: ItemAttributes, name: str) -> None:
        places, categories = _pairs(attributes, name)
        count = int(categories.max(initial=-1)) + 1
        by_item = np.argsort(places, kind="stable")
        # Single numbers are read from a memoryview several times as fast as from an array
        self._of_items = categories[by_item].data
        self._items_start = _starts(places[by_item], attributes.items).data
        by_category = np.argsort(categories, kind="stable")
        self._of_categories = places[by_category]
        self._categories_start = _starts(categories[by_category], count)

    def of(self, item: int) -> list[int]:
        """Return the numbers of the categories that an item has."""
        starts = self._items_start
        return self._of_items[starts[item] : starts[item + 1]].tolist()

    def members(self, category: int) -> Places:
        """Return the items that have a category, sorted."""
        start, stop = self._categories_start[category : category + 2]
        return self._of_categories[start:stop]


def _pairs(attributes: ItemAttributes, name: str) -> tuple[Places, Places]:
    """Return every item with every category that it has, as two arrays."""
    if name in attributes.numbers:
        column = attributes.numbers[name]
        places = np.flatnonzero(~np.isnan(column)).astype(np.int32)
        return places, np.unique(column[places], return_inverse=True)[1].astype(np.int32)
    members = list(attributes.categories[name].values())
    sizes = [len(items) for items in members]
    numbers = np.repeat(np.arange(len(members), dtype=np.int32), sizes)
    return np.concatenate([np.zeros(0, np.int32), *members]), numbers


def _starts(rising: Places, count: int) -> Places:
    """Return where each number from 0 on begins in an array of rising numbers, and its end."""
    return np.searchsorted(rising, np.arange(count + 1)).astype(np.int32)
