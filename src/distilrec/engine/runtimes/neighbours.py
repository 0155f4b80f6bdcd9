"""The neighbours of the latest events, `distilrec.networks.neighbours`, as numpy arrays."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from distilrec.bundle.checks import Arrays, Shapes, Whole, length_of, require
from distilrec.bundle.manifest import NEIGHBOURS, REPEATS, VISITS, WITH_REPEATS, Manifest
from distilrec.engine.items import Floats, ItemTable, Places
from distilrec.engine.search import Added

_VALUES, _UNITS, _AGES = "neighbour_values", "neighbour_units", "neighbour_ages"
_EARLIER_REPEATS = "earlier_repeats"


class NeighbourArrays(NamedTuple):
    """S, w and r. items: (rows, number), rising in each row; values: of the same shape, in `units`
    (rows,); ages, repeats: (event types, n), and behind these rows as many for events of earlier
    visits, for a student that knows visits. The rows of S are the first items of the catalogue.
    """

    items: Places
    values: NDArray[np.int8]
    units: Floats
    ages: Floats
    repeats: Floats

    @property
    def events(self) -> int:
        """How many latest events count, n."""
        return self.ages.shape[1]

    @property
    def kept(self) -> int:
        """How many latest events a state keeps: one more, so that it is known without each."""
        return self.events + 1 if self.events else 0

    def of(self, item: int) -> tuple[Places, Floats]:
        """Return the neighbours of an item and its row of S; none for an item without a row."""
        rows = slice(item, item + 1)
        parts: Floats = self.units[rows, None] * self.values[rows].astype(np.float32)
        return self.items[rows].ravel(), parts.ravel()

    def rows_of_state(self, dim: int) -> int:
        """Return how many rows of `dim` floats a state needs for these."""
        return -(-2 * self.kept // dim)


def shapes_of_neighbours(manifest: Manifest, weights: Arrays) -> Shapes:
    """Return the shapes of the float32 arrays of the term; empty for a student without it."""
    visits = manifest.visit_gap is not UNSET
    require(visits == (VISITS in weights), "has a visit_gap or weights of earlier visits, not both")
    if not _has(weights):
        return {}
    weighed = {_AGES: _AGES}
    if manifest.format_version >= WITH_REPEATS:
        weighed[REPEATS] = REPEATS
    if visits:  # as many ages as those of this visit
        weighed |= {VISITS: _AGES, _EARLIER_REPEATS: REPEATS}
    return {_UNITS: (length_of(weights, NEIGHBOURS),)} | {
        name: (len(manifest.event_types), _columns(weights, like)) for name, like in weighed.items()
    }


def _columns(weights: Arrays, name: str) -> int:
    array = weights.get(name, np.zeros(0))
    return array.shape[1] if array.ndim == 2 else 0


def whole_numbers_of_neighbours(manifest: Manifest, weights: Arrays) -> dict[str, Whole]:
    """Return what the arrays of whole numbers of the term must be; empty for a student without it.
    Raises ValueError where the items of a row do not rise.
    """
    if not _has(weights):
        return {}
    items = weights.get(NEIGHBOURS, np.zeros(0))
    require(items.ndim == 2 and len(items) <= manifest.items, "has no table of neighbours")
    require(bool((np.diff(items, axis=1) > 0).all()), "has neighbours out of order")
    return {
        NEIGHBOURS: Whole(np.int32, items.shape, 0, manifest.items),
        _VALUES: Whole(np.int8, items.shape, -128, 128),
    }


def neighbours_in(weights: Arrays, event_types: int) -> NeighbourArrays:
    """Return the arrays of the term, which are empty for a student without it."""
    if not _has(weights):
        return NeighbourArrays(
            np.zeros((0, 0), np.int32),
            np.zeros((0, 0), np.int8),
            np.zeros(0, np.float32),
            np.zeros((event_types, 0), np.float32),
            np.zeros((event_types, 0), np.float32),
        )
    # One loop over the latest events serves both
    names = np.array([[_AGES, VISITS], [REPEATS, _EARLIER_REPEATS]])
    if VISITS not in weights:
        names = names[:, :1]
    events = max(_columns(weights, name) for name in names.flat)
    tables = np.zeros((*names.shape, event_types, events), np.float32)
    for table, name in zip(tables.reshape(-1, event_types, events), names.flat, strict=True):
        table[:, : _columns(weights, name)] = weights.get(name, 0)
    ages, repeats = tables.reshape(2, -1, events)
    items, values, units = (weights[name] for name in (NEIGHBOURS, _VALUES, _UNITS))
    return NeighbourArrays(items, values, units, ages, repeats)


def _has(weights: Arrays) -> bool:
    return any(name in weights for name in (NEIGHBOURS, _VALUES, _UNITS, _AGES, REPEATS, VISITS))


class OwnBiases:
    """The biases of the items with what the term adds to them for one user, so that every search
    that reads biases finds the best of this user. Few change, and these are set back.
    """

    def __init__(self, items: ItemTable, neighbours: NeighbourArrays, kernels: ModuleType) -> None:
        self._items, self._neighbours, self._kernels = items, neighbours, kernels
        self._biases = np.empty(0, np.float32)
        self._changed = np.zeros(0, np.int32)

    def of(self, latest: Floats) -> Added:
        """Return the biases for a user, until the next call. latest: see `kernels.read_latest`."""
        self._set_back()
        past = latest[: self._neighbours.events].astype(np.int32) - 1
        known = past[(past >= 0) & (past < len(self._neighbours.items))]
        self._changed = np.concatenate([self._neighbours.items[known].ravel(), known])
        self._kernels.add_neighbours(latest, *self._neighbours, self._biases)
        return Added(self._biases[: self._items.count], self._changed)

    def put_item(self, item: int) -> None:
        """Take over the bias of an item that is new."""
        self._set_back()
        self._biases[item] = self._items.biases[item]

    def _set_back(self) -> None:
        if len(self._biases) != self._items.room:
            self._biases = np.zeros(self._items.room, np.float32)
            self._biases[: self._items.count] = self._items.biases
        self._biases[self._changed] = self._items.biases[self._changed]
        self._changed = self._changed[:0]
