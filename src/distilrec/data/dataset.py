"""The prepared data: what every later stage reads.

On disk a record (`distilrec.files`): `dataset.json` (ids, encoders, report) names
`dataset-*.safetensors` (arrays) and `attributes-*.safetensors` (of items, for filters). No pickle.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from distilrec.data.cleaning import CleaningReport
from distilrec.data.clocks import why_no_times
from distilrec.data.order import Order
from distilrec.data.schema import Feature, Schema
from distilrec.data.splits import Split
from distilrec.errors import DataError
from distilrec.features.attributes import ItemAttributes, pack_attributes, unpack_attributes
from distilrec.features.encoding import FeatureEncoder, FeatureMatrix
from distilrec.files import RecordKind
from distilrec.offsets import groups_of, offsets_of, take_rows
from distilrec.targets import Roles, Targets, roles_of

FORMAT_VERSION = 1
Part = Literal["validation", "test"]
UNKNOWN_ITEM = -1
POPULARITY = Feature("popularity", "numeric")
SALES_VOLUME = Feature("sales_volume", "numeric")


def derived_features(schema: Schema) -> tuple[Feature, Feature]:
    """Return what is derived from the log for each item: popularity and sales volume, under other
    names where the schema has columns of these names.
    """
    taken = {feature.name for feature in schema.item_columns}
    popularity, volume = (
        Feature(
            feature.name if feature.name not in taken else f"{feature.name}_in_log", feature.kind
        )
        for feature in (POPULARITY, SALES_VOLUME)
    )
    return popularity, volume


_BY_TIME: Order = "time"
_NO_CONTEXT = FeatureEncoder()


class DatasetInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything about a dataset that is not an array.

    user_ids: users with training rows first. item_ids: items with training rows, most popular
    first, then the items that only the item table knows (`warm_items` says where these begin).
    event_types: position 0 is the unknown slot. order: "none" where nothing says what a user did
    first, or nothing should; the rows of a user are then in a drawn order, with a split in time in
    that of their times. targets: what the event types mean; without
    it all are to be predicted. context_encoder: of the context features.
    """

    name: str
    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    warm_users: int
    warm_items: int
    event_types: tuple[str, ...]
    user_encoder: FeatureEncoder
    item_encoder: FeatureEncoder
    split: Split
    schema: Schema
    cleaning_report: CleaningReport
    notes: tuple[str, ...]
    repeats: bool
    order: Order = _BY_TIME
    targets: Targets | None = None
    context_encoder: FeatureEncoder = _NO_CONTEXT

    def __post_init__(self) -> None:
        # msgspec leaves out a default that is the very same object
        if self.order == _BY_TIME:
            msgspec.structs.force_setattr(self, "order", _BY_TIME)
        if self.context_encoder == _NO_CONTEXT:
            msgspec.structs.force_setattr(self, "context_encoder", _NO_CONTEXT)


@dataclass(frozen=True)
class Histories:
    """What some users did, one after the other: user k of the batch did items[offsets[k]:offsets[k
    + 1]].

    users: (batch,) int64 positions in `user_ids`; offsets: (batch + 1,) int64; items, events: (n,)
    int32; every item is in the catalogue.
    times: (n,) float64, when each event happened, in seconds since 1970; now: (batch,) float64,
    when the next event of each user is asked for. Both are None where the log has no usable times.
    context: in which context the next event of each user is asked for, (batch,) rows, None where
    the log has no context features or it is not known.
    """

    users: NDArray[np.int64]
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    events: NDArray[np.int32]
    times: NDArray[np.float64] | None = None
    now: NDArray[np.float64] | None = None
    context: FeatureMatrix | None = None

    def __len__(self) -> int:
        return len(self.users)

    def of(self, k: int) -> NDArray[np.int32]:
        """Return the items of the k-th user of this batch."""
        return self.items[self.offsets[k] : self.offsets[k + 1]]

    def select(self, start: int, stop: int) -> Histories:
        """Return the users from start to stop."""
        low, high = self.offsets[start], self.offsets[min(stop, len(self))]
        return Histories(
            self.users[start:stop],
            self.offsets[start : stop + 1] - low,
            self.items[low:high],
            self.events[low:high],
            None if self.times is None else self.times[low:high],
            None if self.now is None else self.now[start:stop],
            None if self.context is None else self.context.take(slice(start, stop)),
        )

    def only(self, kinds: NDArray[np.bool_]) -> Histories:
        """Return the events of some types. kinds: (types,), which ones."""
        kept = kinds[self.events]
        return replace(
            self,
            offsets=np.concatenate([[0], np.cumsum(kept)])[self.offsets],
            items=self.items[kept],
            events=self.events[kept],
            times=None if self.times is None else self.times[kept],
        )

    def take(self, users: NDArray[np.int64]) -> Histories:
        """Return these users, given by their places in the batch, in this order."""
        offsets, events = take_rows(self.offsets, users)
        return Histories(
            self.users[users],
            offsets,
            self.items[events],
            self.events[events],
            None if self.times is None else self.times[events],
            None if self.now is None else self.now[users],
            None if self.context is None else self.context.take(users),
        )


@dataclass(frozen=True)
class Dataset:
    """A split log over a catalogue, with encoded features.

    offsets: (users + 1,), train_end, validation_end: (users,), all int64 row numbers; items:
    (rows,) int32, UNKNOWN_ITEM where an item is neither in training nor in the item table; events:
    (rows,) int32; times: (rows,) float64 seconds; context: of each row, None without context
    features.
    """

    info: DatasetInfo
    offsets: NDArray[np.int64]
    train_end: NDArray[np.int64]
    validation_end: NDArray[np.int64]
    items: NDArray[np.int32]
    events: NDArray[np.int32]
    times: NDArray[np.float64]
    user_features: FeatureMatrix
    item_features: FeatureMatrix
    attributes: ItemAttributes
    context: FeatureMatrix | None = None

    @property
    def users(self) -> int:
        return len(self.info.user_ids)

    @property
    def catalogue_size(self) -> int:
        return len(self.info.item_ids)

    @cached_property
    def why_no_times(self) -> str:
        """Why no model is told the times of this log, as a clause; "" where they are usable."""
        why = why_no_times(self.times, named=self.info.schema.timestamp is not None)
        unordered = "no order of a user's events is known" if self.info.order == "none" else ""
        return why or unordered

    @cached_property
    def timed(self) -> bool:
        """Whether events have times in their order, be it dates alone: these say which events are
        of one visit, though not how long ago one was.
        """
        named = self.info.schema.timestamp is not None and self.info.order != "none"
        return named and bool(len(self.times)) and self.times.min() < self.times.max()

    def user_rows(self) -> NDArray[np.int64]:
        """Return the user of every row, (rows,)."""
        return groups_of(self.offsets)

    def tied_events(self) -> int:
        """Return how many training events have the same time as the one before of their user."""
        rows = self.training_rows()
        same = [np.diff(of[rows]) == 0 for of in (self.times, self.user_rows())]
        return int((same[0] & same[1]).sum())

    def is_training(self) -> NDArray[np.bool_]:
        """Return which rows are training rows, (rows,)."""
        return np.arange(len(self.items)) < np.repeat(self.train_end, np.diff(self.offsets))

    @cached_property
    def roles(self) -> Roles | None:
        """What the event types mean; None where all are to be predicted."""
        targets = self.info.targets
        return None if targets is None else roles_of(targets, self.info.event_types)

    def is_target(self) -> NDArray[np.bool_]:
        """Return which rows are to be predicted, (rows,)."""
        if self.roles is None:
            return np.ones(len(self.items), bool)
        return self.roles.target[self.events]

    def training_rows(self) -> NDArray[np.int64]:
        """Return the training rows whose item is in the catalogue, (rows,) row numbers in order."""
        return np.flatnonzero(self.is_training() & (self.items != UNKNOWN_ITEM))

    def target_rows(self) -> NDArray[np.int64]:
        """Return the training rows that are to be predicted and whose item is in the catalogue,
        (rows,) row numbers in order.
        """
        rows = self.training_rows()
        return rows if self.roles is None else rows[self.is_target()[rows]]

    def part_bounds(self, part: Part) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first and last-plus-one row of every user in this part."""
        if part == "validation":
            return self.train_end, self.validation_end
        return self.validation_end, self.offsets[1:]

    def histories(self, users: NDArray[np.int64], end: NDArray[np.int64]) -> Histories:
        """Return the rows of these users before `end` (a row number per user), without unknown
        items. They ask for the next event when it happened, and in its context; where there is
        none, at the end of the log and in no known context.
        """
        chunks = [slice(self.offsets[user], stop) for user, stop in zip(users, end, strict=True)]
        kept = [self.items[rows] != UNKNOWN_ITEM for rows in chunks]
        items = [self.items[rows][keep] for rows, keep in zip(chunks, kept, strict=True)]
        events = [self.events[rows][keep] for rows, keep in zip(chunks, kept, strict=True)]
        empty = [np.zeros(0, np.int32)]
        histories = Histories(
            np.asarray(users, np.int64),
            offsets_of([len(chunk) for chunk in items]),
            np.concatenate(items or empty),
            np.concatenate(events or empty),
        )
        if self.context is not None:
            asked = self._contexts_of_questions(histories.users, np.asarray(end, np.int64))
            histories = replace(histories, context=asked)
        if not self.timed:
            return histories
        times = [self.times[rows][keep] for rows, keep in zip(chunks, kept, strict=True)]
        return replace(
            histories,
            times=np.concatenate(times or [np.zeros(0)]),
            now=self._times_of_questions(histories.users, np.asarray(end, np.int64)),
        )

    def _times_of_questions(
        self, users: NDArray[np.int64], end: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the time of the event at `end` of each user, (batch,); that of the newest event of
        the log where a user has no more.
        """
        more = end < self.offsets[users + 1]
        now = np.full(len(end), self.times.max(initial=0.0))
        now[more] = self.times[end[more]]
        return now

    def _contexts_of_questions(
        self, users: NDArray[np.int64], end: NDArray[np.int64]
    ) -> FeatureMatrix:
        """Return the context of the event at `end` of each user, the unknown one where a user has
        no more.
        """
        assert self.context is not None
        more = end < self.offsets[users + 1]
        columns, weights = zip(*self.info.context_encoder.encode({}), strict=True)
        asked_columns = np.tile(np.array(columns, np.int32), (len(end), 1))
        asked_weights = np.tile(np.array(weights, np.float32), (len(end), 1))
        asked_columns[more] = self.context.columns[end[more]]
        asked_weights[more] = self.context.weights[end[more]]
        return FeatureMatrix(asked_columns, asked_weights, self.context.width)

    def select_users(self, users: NDArray[np.int64]) -> Dataset:
        """Return the data set of some users, by position in rising order; the catalogue and the
        encoders stay as they are.
        """
        rows = np.concatenate(
            [
                np.zeros(0, np.int64),
                *(np.arange(self.offsets[u], self.offsets[u + 1]) for u in users),
            ]
        )
        offsets = offsets_of(np.diff(self.offsets)[users])
        begins = offsets[:-1] - self.offsets[users]
        info = msgspec.structs.replace(
            self.info,
            user_ids=tuple(self.info.user_ids[user] for user in users),
            warm_users=int((users < self.info.warm_users).sum()),
        )
        features = replace(
            self.user_features,
            columns=self.user_features.columns[users],
            weights=self.user_features.weights[users],
        )
        return replace(
            self,
            info=info,
            offsets=offsets,
            train_end=self.train_end[users] + begins,
            validation_end=self.validation_end[users] + begins,
            items=self.items[rows],
            events=self.events[rows],
            times=self.times[rows],
            context=None if self.context is None else self.context.take(rows),
            user_features=features,
        )

    def with_training_users(self, users: NDArray[np.bool_]) -> Dataset:
        """Return the same rows, of which those of some users alone are for training and validation.
        users: (users,).

        Users and rows keep their numbers, so that what is stored for them still fits.
        """
        return replace(
            self,
            train_end=np.where(users, self.train_end, self.offsets[:-1]),
            validation_end=np.where(users, self.validation_end, self.offsets[:-1]),
        )

    def popularity(self) -> NDArray[np.int64]:
        """Return the training events per item that are to be predicted, (items,)."""
        return np.bincount(self.items[self.target_rows()], minlength=self.catalogue_size)

    def fingerprint(self) -> str:
        """Return a hash over everything that a model can learn from: not over the attributes, which
        only filters use.
        """
        digest = hashlib.sha256(msgspec.json.encode(self.info))
        for name, array in sorted(self._arrays().items()):
            digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            "offsets": self.offsets,
            "train_end": self.train_end,
            "validation_end": self.validation_end,
            "items": self.items,
            "events": self.events,
            "times": self.times,
            "user_columns": self.user_features.columns,
            "user_weights": self.user_features.weights,
            "item_columns": self.item_features.columns,
            "item_weights": self.item_features.weights,
            **self._context_arrays(),
        }

    def _context_arrays(self) -> dict[str, NDArray[np.generic]]:
        if self.context is None:
            return {}
        return {"context_columns": self.context.columns, "context_weights": self.context.weights}

    def save(self, folder: Path, made_from: str = "") -> None:
        """Write the data set into a folder, which is made if needed, in the place of the one that
        is there.

        made_from: a key of the choices that led to it.
        """
        arrays = {"dataset": self._arrays(), "attributes": pack_attributes(self.attributes)}
        PREPARED.write(folder, self.info, arrays, made_from=made_from)


PREPARED = RecordKind(
    "dataset.json",
    DatasetInfo,
    ("dataset", "attributes"),
    FORMAT_VERSION,
    DataError,
    what="prepared data",
    fix="run `distilrec prepare` first",
    again="run `distilrec prepare` again",
)


def load_dataset(folder: Path | str) -> Dataset:
    """Return a data set that `prepare` or `Dataset.save` wrote. Raises FileMissingError and
    DataError.
    """
    record = PREPARED.read(Path(folder))
    info, arrays = record.about, record.arrays("dataset")
    try:
        attributes = unpack_attributes(record.arrays("attributes"), len(info.item_ids))
    except (KeyError, IndexError, UnicodeDecodeError, ValueError) as problem:
        raise PREPARED.damaged(
            record.path("attributes"), f"does not fit the items of dataset.json: {problem}"
        ) from None
    try:
        dataset = Dataset(
            info=info,
            user_features=FeatureMatrix(
                arrays.pop("user_columns"), arrays.pop("user_weights"), info.user_encoder.width
            ),
            item_features=FeatureMatrix(
                arrays.pop("item_columns"), arrays.pop("item_weights"), info.item_encoder.width
            ),
            attributes=attributes,
            context=_context_in(arrays, info),
            **arrays,
        )
        _check(dataset)
    except (KeyError, TypeError, ValueError) as problem:
        raise PREPARED.damaged(
            record.path("dataset"), f"does not fit dataset.json: {problem}"
        ) from None
    return dataset


def _context_in(arrays: dict[str, NDArray[Any]], info: DatasetInfo) -> FeatureMatrix | None:
    """Take the context of the rows out of the arrays of a file."""
    width = info.context_encoder.width
    if not info.schema.context:
        return None
    return FeatureMatrix(arrays.pop("context_columns"), arrays.pop("context_weights"), width)


def _check(dataset: Dataset) -> None:
    """Raise ValueError where the parts of a data set do not fit each other."""
    info, users, items = dataset.info, dataset.users, dataset.catalogue_size
    rows, offsets = len(dataset.items), dataset.offsets
    _true(len(info.titles) == items, f"{len(info.titles)} titles for {items} items")
    _true(
        0 <= info.warm_users <= users and 0 <= info.warm_items <= items,
        "more users or items in training than there are",
    )
    for name, wanted in (("offsets", users + 1), ("train_end", users), ("validation_end", users)):
        array = getattr(dataset, name)
        _true(
            array.shape == (wanted,) and array.dtype == np.int64,
            f"{name} is not int64 of length {wanted}",
        )
    for name in ("items", "events", "times"):
        _true(
            getattr(dataset, name).shape == (rows,),
            f"{name} lacks one value for each of {rows} rows",
        )
    _true(offsets[0] == 0 and offsets[-1] == rows, f"offsets do not go from 0 to {rows}")
    ends = [offsets[:-1], dataset.train_end, dataset.validation_end, offsets[1:]]
    _true(
        all(bool((a <= b).all()) for a, b in pairwise(ends)),
        "the parts of a user are not one after the other",
    )
    for name, least, most in (("items", UNKNOWN_ITEM, items), ("events", 0, len(info.event_types))):
        array = getattr(dataset, name)
        _true(
            not rows or bool(least <= array.min() <= array.max() < most), f"{name} go beyond {most}"
        )
    tables = [("user", dataset.user_features, users), ("item", dataset.item_features, items)]
    if dataset.context is not None:
        tables.append(("context", dataset.context, rows))
    for what, features, count in tables:
        columns, weights = features.columns, features.weights
        _true(
            columns.ndim == 2 and columns.shape == weights.shape,
            f"{what}_columns and {what}_weights differ in shape",
        )
        _true(len(columns) == count, f"{what}_columns has {len(columns)} rows for {count} {what}s")
        inside = not columns.size or bool(0 <= columns.min() <= columns.max() < features.width)
        _true(inside, f"{what}_columns go beyond the {features.width} columns of the encoder")


def _true(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)
