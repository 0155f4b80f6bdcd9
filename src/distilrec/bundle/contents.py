"""What the files of a bundle hold, as named fields.

`pack` gives the arrays of a file; `unpack` checks those of a file, which may hold anything, and
raises ValueError where they do not fit the manifest. docs/bundle-format.md has the tables.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from distilrec.bundle.checks import (
    Arrays,
    check_offsets,
    check_shapes,
    checked_array,
    checked_texts,
    distinct,
    inside,
    length_of,
    require,
)
from distilrec.bundle.manifest import Manifest
from distilrec.features.attributes import unpack_attributes
from distilrec.features.texts import pack_texts

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class BundleWeights:
    """The arrays of a student, float32.

    vectors: (items, dim); biases: (items,); user_table, item_table: a row for each column of the
    encoders; of_kind: the arrays that only this kind of student has, which the engine checks where
    it makes a runtime of them.
    """

    vectors: Floats
    biases: Floats
    user_table: Floats
    item_table: Floats
    of_kind: Arrays

    def pack(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of the file."""
        return {
            **self.of_kind,
            "vectors": self.vectors,
            "biases": self.biases,
            "user_table": self.user_table,
            "item_table": self.item_table,
        }

    @classmethod
    def unpack(cls, arrays: Arrays, m: Manifest) -> Self:
        """Return the weights in these arrays."""
        shapes = {
            "vectors": (m.items, m.dim),
            "biases": (m.items,),
            "user_table": (m.user_encoder.width, m.dim),
            "item_table": (m.item_encoder.width, m.dim),
        }
        check_shapes(arrays, shapes)
        of_kind = {name: array for name, array in arrays.items() if name not in shapes}
        return cls(**{name: arrays[name] for name in shapes}, of_kind=of_kind)


@dataclass(frozen=True, eq=False)
class BundleCatalogue:
    """The items of a bundle.

    popularity: training rows of each item, (items,) int64; attributes: packed, so that each reader
    unpacks a copy that it may change.
    """

    ids: list[str]
    titles: list[str]
    popularity: NDArray[np.int64]
    attributes: Arrays

    def pack(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of the file."""
        return {
            **pack_texts("ids", self.ids),
            **pack_texts("titles", self.titles),
            "popularity": self.popularity,
            **self.attributes,
        }

    @classmethod
    def unpack(cls, arrays: Arrays, m: Manifest) -> Self:
        """Return the catalogue in these arrays."""
        ids = checked_texts("ids", arrays, m.items)
        require(distinct(ids), "holds an item twice")
        titles = checked_texts("titles", arrays, m.items)
        try:
            attributes = unpack_attributes(arrays, m.items)
        except (KeyError, ValueError, TypeError, IndexError) as problem:
            raise ValueError(f"holds attributes that do not fit: {problem}") from None
        for name, categories in attributes.categories.items():
            for members in categories.values():
                require(
                    members.ndim == 1 and bool((np.diff(members) > 0).all()),
                    f"attribute {name!r} has unsorted items",
                )
        popularity = arrays.get("popularity", np.zeros(m.items, np.int64))
        packed = {name: array for name, array in arrays.items() if ":" in name}
        return cls(ids, titles, popularity, packed)


@dataclass(frozen=True, eq=False)
class BundleHistory:
    """What the users of a bundle have done: user data.

    events of user n are those from offsets[n] up to offsets[n + 1]; items: of the events, oldest
    first within a user; events: their types; user_columns, user_weights: (users, n), the features
    of each user; end: the last time of the log, seconds since 1970; recent: how many of each user's
    last events lie near it, None in bundles of distilrec 0.1; teacher_items: what the teacher would
    recommend, (users, depth), -1 where there is less, None where it was not asked; last_times: when
    the last event of each user happened and the one before, (users, 2), seconds since 1970, 0 where
    there is none, None where answers do not depend on it; visits: how many of each user's events
    are those of the last visit, (users,), None where the student knows no visits.
    """

    users: list[str]
    offsets: NDArray[np.int64]
    items: Integers
    events: Integers
    user_columns: Integers
    user_weights: Floats
    end: float
    recent: Integers | None = None
    teacher_items: Integers | None = None
    last_times: NDArray[np.float64] | None = None
    visits: Integers | None = None

    def pack(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of the file."""
        optional = {
            "recent": self.recent,
            "teacher_items": self.teacher_items,
            "last_times": self.last_times,
            "visits": self.visits,
        }
        return {
            **pack_texts("users", self.users),
            "offsets": self.offsets,
            "items": self.items,
            "events": self.events,
            "user_columns": self.user_columns,
            "user_weights": self.user_weights,
            "end": np.array([self.end]),
            **{name: array for name, array in optional.items() if array is not None},
        }

    @classmethod
    def unpack(cls, arrays: Arrays, m: Manifest) -> Self:
        """Return the history in these arrays."""
        users = length_of(arrays, "users.offsets") - 1
        names = checked_texts("users", arrays, users)
        require(distinct(names), "holds a user twice")
        items = checked_array(arrays, "items", np.int32, (length_of(arrays, "items"),))
        events = checked_array(arrays, "events", np.int32, items.shape)
        require(inside(items, m.items), "holds items outside the catalogue")
        require(inside(events, len(m.event_types)), "holds events of unknown types")
        offsets = checked_array(arrays, "offsets", np.int64, (users + 1,))
        check_offsets("offsets", offsets, len(items))
        end = checked_array(arrays, "end", np.float64, (1,))
        require(bool(np.isfinite(end).all()), "does not say when it ends")
        recent = _checked_recent(arrays, offsets)
        columns, weights = _checked_features(arrays, users, m)
        lists = _checked_lists(arrays, users, m)
        times = _checked_times(arrays, users, m)
        visits = _checked_visits(arrays, offsets, m)
        return cls(
            names,
            offsets,
            items,
            events,
            columns,
            weights,
            float(end[0]),
            recent,
            lists,
            times,
            visits,
        )

    def without(self, place: int) -> Self:
        """Return the history without the user at this place."""
        start, stop = self.offsets[place], self.offsets[place + 1]
        rows = np.s_[start:stop]
        later = self.offsets[place + 2 :] - (stop - start)
        return replace(
            self,
            users=self.users[:place] + self.users[place + 1 :],
            offsets=np.concatenate([self.offsets[: place + 1], later]),
            items=np.delete(self.items, rows),
            events=np.delete(self.events, rows),
            user_columns=np.delete(self.user_columns, place, axis=0),
            user_weights=np.delete(self.user_weights, place, axis=0),
            recent=None if self.recent is None else np.delete(self.recent, place),
            teacher_items=None
            if self.teacher_items is None
            else np.delete(self.teacher_items, place, axis=0),
            last_times=None
            if self.last_times is None
            else np.delete(self.last_times, place, axis=0),
            visits=None if self.visits is None else np.delete(self.visits, place),
        )


def _checked_recent(arrays: Arrays, offsets: NDArray[np.int64]) -> Integers | None:
    if "recent" not in arrays:  # bundles of distilrec 0.1 do not say it
        return None
    recent = checked_array(arrays, "recent", np.int32, (len(offsets) - 1,))
    require(
        bool(((recent >= 0) & (recent <= np.diff(offsets))).all()),
        "has more recent events than events",
    )
    return recent


def _checked_features(arrays: Arrays, users: int, m: Manifest) -> tuple[Integers, Floats]:
    columns = arrays.get("user_columns", np.zeros(0))
    require(columns.ndim == 2, "has no features of the users")
    columns = checked_array(arrays, "user_columns", np.int32, (users, columns.shape[1]))
    weights = checked_array(arrays, "user_weights", np.float32, columns.shape)
    require(inside(columns, m.user_encoder.width), "holds features that are not encoded")
    require(bool(np.isfinite(weights).all()), "holds features that are NaN or infinite")
    return columns, weights


def _checked_times(arrays: Arrays, users: int, m: Manifest) -> NDArray[np.float64] | None:
    if not m.timed:
        return None
    times = checked_array(arrays, "last_times", np.float64, (users, 2))
    require(bool(np.isfinite(times).all()), "holds times that are NaN or infinite")
    return times


def _checked_visits(arrays: Arrays, offsets: NDArray[np.int64], m: Manifest) -> Integers | None:
    if m.visit_gap is UNSET:
        return None
    visits = checked_array(arrays, "visits", np.int32, (len(offsets) - 1,))
    events = np.diff(offsets)
    require(
        bool(((visits >= np.minimum(events, 1)) & (visits <= events)).all()),
        "has visits of more events than there are, or of none",
    )
    return visits


def _checked_lists(arrays: Arrays, users: int, m: Manifest) -> Integers | None:
    lists = arrays.get("teacher_items")
    if lists is None:
        return None
    require(
        lists.ndim == 2 and lists.dtype == np.int32 and len(lists) == users,
        "has other lists of the teacher",
    )
    require(inside(lists + 1, m.items + 1), "holds recommendations outside the catalogue")
    return lists
