"""The prepared data: what every later stage reads.

On disk: `dataset.json` (ids, encoders, report), `dataset.safetensors` (arrays) and `attributes.safetensors` (of items,
for filters). No pickle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from distilrec.attributes import ItemAttributes, collect_attributes, pack_attributes, unpack_attributes
from distilrec.data.cleaning import Cleaning, CleaningReport, clean_log
from distilrec.data.features import feature_rows, fit_encoder, title_of
from distilrec.data.readers import read_table
from distilrec.data.schema import Feature, Schema
from distilrec.data.splits import Split, split_rows
from distilrec.encoding import FeatureEncoder, FeatureMatrix
from distilrec.errors import ConfigError, DataError, FileMissingError, NotEnoughDataError

Part = Literal["validation", "test"]
UNKNOWN_ITEM = -1
POPULARITY = Feature("popularity", "numeric")
SALES_VOLUME = Feature("sales_volume", "numeric")


class DatasetInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything about a dataset that is not an array.

    user_ids: users with training rows first. item_ids: items with training rows, most popular first, then the items
    that only the item table knows (`warm_items` says where these begin). event_types: position 0 is the unknown slot.
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


@dataclass(frozen=True)
class Histories:
    """What some users did, one after the other: user k of the batch did items[offsets[k]:offsets[k + 1]].

    users: (batch,) int64 positions in `user_ids`; offsets: (batch + 1,) int64; items, events: (n,) int32; every item is
    in the catalogue.
    """

    users: NDArray[np.int64]
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    events: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.users)

    def of(self, k: int) -> NDArray[np.int32]:
        """The items of the k-th user of this batch."""
        return self.items[self.offsets[k] : self.offsets[k + 1]]

    def select(self, start: int, stop: int) -> Histories:
        """The users from start to stop."""
        low, high = self.offsets[start], self.offsets[min(stop, len(self))]
        return Histories(
            self.users[start:stop], self.offsets[start : stop + 1] - low, self.items[low:high], self.events[low:high]
        )


@dataclass(frozen=True)
class Dataset:
    """A split log over a catalogue, with encoded features.

    offsets: (users + 1,), train_end, validation_end: (users,), all int64 row numbers; items: (rows,) int32, UNKNOWN_ITEM
    where an item is neither in training nor in the item table; events: (rows,) int32; times: (rows,) float64 seconds.
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

    @property
    def users(self) -> int:
        return len(self.info.user_ids)

    @property
    def catalogue_size(self) -> int:
        return len(self.info.item_ids)

    def user_rows(self) -> NDArray[np.int64]:
        """The user of every row, (rows,)."""
        return np.repeat(np.arange(self.users), np.diff(self.offsets))

    def is_training(self) -> NDArray[np.bool_]:
        """Which rows are training rows, (rows,)."""
        return np.arange(len(self.items)) < np.repeat(self.train_end, np.diff(self.offsets))

    def training_rows(self) -> NDArray[np.int64]:
        """The training rows whose item is in the catalogue, (rows,) row numbers in order."""
        return np.flatnonzero(self.is_training() & (self.items != UNKNOWN_ITEM))

    def part_bounds(self, part: Part) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and last-plus-one row of every user in this part."""
        if part == "validation":
            return self.train_end, self.validation_end
        return self.validation_end, self.offsets[1:]

    def histories(self, users: NDArray[np.int64], end: NDArray[np.int64]) -> Histories:
        """The rows of these users before `end` (a row number per user), without unknown items."""
        chunks = [slice(self.offsets[user], stop) for user, stop in zip(users, end, strict=True)]
        known = [self.items[rows] != UNKNOWN_ITEM for rows in chunks]
        items = [self.items[rows][keep] for rows, keep in zip(chunks, known, strict=True)]
        events = [self.events[rows][keep] for rows, keep in zip(chunks, known, strict=True)]
        empty = [np.zeros(0, np.int32)]
        return Histories(
            np.asarray(users, np.int64),
            np.concatenate([[0], np.cumsum([len(each) for each in items])]).astype(np.int64),
            np.concatenate(items or empty),
            np.concatenate(events or empty),
        )

    def popularity(self) -> NDArray[np.int64]:
        """Training interactions per item of the catalogue, (items,)."""
        rows = self.items[self.is_training()]
        return np.bincount(rows[rows != UNKNOWN_ITEM], minlength=self.catalogue_size)

    def fingerprint(self) -> str:
        """A hash over everything that a model can learn from: not over the attributes, which only filters use."""
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
        }

    def save(self, folder: Path) -> None:
        """Writes the dataset into a folder, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(a) for name, a in self._arrays().items()}, folder / "dataset.safetensors")
        save_file(pack_attributes(self.attributes), folder / "attributes.safetensors")
        (folder / "dataset.json").write_bytes(msgspec.json.encode(self.info))


def load_dataset(folder: Path | str) -> Dataset:
    """A dataset that `prepare` or `Dataset.save` wrote. Raises FileMissingError and DataError."""
    folder = Path(folder)
    for name in ("dataset.json", "dataset.safetensors", "attributes.safetensors"):
        if not (folder / name).is_file():
            raise FileMissingError(
                f"{folder / name} does not exist", fix="run `distilrec prepare` first", file=str(folder / name)
            )
    try:
        info = msgspec.json.decode((folder / "dataset.json").read_bytes(), type=DatasetInfo)
        arrays = load_file(folder / "dataset.safetensors")
        return Dataset(
            info=info,
            user_features=FeatureMatrix(
                arrays.pop("user_columns"), arrays.pop("user_weights"), info.user_encoder.width
            ),
            item_features=FeatureMatrix(
                arrays.pop("item_columns"), arrays.pop("item_weights"), info.item_encoder.width
            ),
            attributes=unpack_attributes(load_file(folder / "attributes.safetensors"), len(info.item_ids)),
            **arrays,
        )
    except (msgspec.MsgspecError, SafetensorError, KeyError, TypeError, ValueError) as problem:
        raise DataError(f"{folder} is not a readable dataset: {problem}", fix="run `distilrec prepare` again") from None


def prepare_dataset(
    log: object,
    schema: Schema,
    *,
    users: object | None = None,
    items: object | None = None,
    name: str = "log",
    cleaning: Cleaning | None = None,
    split: Split | None = None,
    columns: Sequence[str] | None = None,
    user_columns: Sequence[str] | None = None,
    item_columns: Sequence[str] | None = None,
) -> Dataset:
    """Reads, cleans, splits and encodes a log and its feature tables.

    log, users, items: a path, a polars frame or a pandas frame; `*columns` name the fields of files without a header.
    Raises the DataErrors of the readers, the cleaning and the encoders.
    """
    split = split or Split()
    source = str(log) if isinstance(log, str | Path) else "the log"
    clean, report = clean_log(read_table(log, columns), schema, cleaning or Cleaning(), source)
    notes: list[str] = []
    user_table = _side_table(users, user_columns, schema.user_key, schema.user_features, None, "users", notes)
    item_table = _side_table(
        items,
        item_columns,
        schema.item_key,
        (*schema.item_features, *schema.item_attributes),
        schema.title,
        "items",
        notes,
    )

    user_of_row = clean["user_id"].to_numpy()
    first_rows = np.flatnonzero(np.concatenate([[True], user_of_row[1:] != user_of_row[:-1]]))
    offsets = np.concatenate([first_rows, [clean.height]]).astype(np.int64)
    times = clean["timestamp"].to_numpy().astype(np.float64)
    train_end, validation_end = split_rows(offsets, times, split)

    # Users without training rows go last; the rows follow them.
    cold = train_end == offsets[:-1]
    order = np.argsort(cold, kind="stable")
    sizes, trains, validations = ((end - offsets[:-1])[order] for end in (offsets[1:], train_end, validation_end))
    if cold.any():
        rows = np.argsort(np.repeat(cold, np.diff(offsets)), kind="stable")
        clean, times = clean[rows], times[rows]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    train_end, validation_end = offsets[:-1] + trains, offsets[:-1] + validations
    user_ids = tuple(clean["user_id"].gather(offsets[:-1]).to_list())
    training = np.arange(clean.height) < np.repeat(train_end, sizes)
    if not training.any():
        raise NotEnoughDataError(
            f"{source}: no row is left for training", fix="use a smaller validation and test share"
        )

    # Vocabularies and derived features: training rows, and the item table, never validation or test rows.
    train_rows = clean.filter(pl.Series(training))
    counts = train_rows.group_by("item_id").agg(pl.len().alias("count"), pl.col("weight").sum().alias("volume"))
    counts = counts.sort(["count", "item_id"], descending=[True, False])
    warm = counts["item_id"].to_list()
    known = set(warm)
    item_ids = (*warm, *(item for item in item_table if item not in known))
    item_features = (*schema.item_features, POPULARITY, *((SALES_VOLUME,) if schema.weight else ()))
    item_rows = [dict(item_table.get(item, {})) for item in item_ids]
    for row in item_rows:
        row |= {POPULARITY.name: 0.0, SALES_VOLUME.name: 0.0}
    for row, count, volume in zip(item_rows, counts["count"], counts["volume"], strict=False):
        row |= {POPULARITY.name: float(count), SALES_VOLUME.name: float(volume)}
    warm_users = int((trains > 0).sum())
    user_rows = [user_table.get(user, {}) for user in user_ids]
    user_encoder = fit_encoder(user_rows[:warm_users], schema.user_features)
    item_encoder = fit_encoder(item_rows[: len(warm)], item_features)
    event_types = ("unknown", *sorted(train_rows["event_type"].unique().to_list()))

    item_codes = _positions(clean["item_id"], item_ids, UNKNOWN_ITEM)
    for table, ids, what in ((user_table, user_ids, "user"), (item_table, item_ids, "item")):
        if table and (missing := sum(entity not in table for entity in ids)):
            notes.append(f"{missing:,} {what}s of the log have no row in the {what} table: features unknown")
    if unknown := int((item_codes == UNKNOWN_ITEM).sum()):
        notes.append(f"{unknown:,} validation or test rows hold items that no training row and no table knows")
    if cold := len(item_ids) - len(warm):
        notes.append(f"{cold:,} items have no training row: they are ranked by their features alone")
    if cold := len(user_ids) - warm_users:
        notes.append(f"{cold:,} users have no training row: cold users")
    return Dataset(
        info=DatasetInfo(
            name=name,
            user_ids=user_ids,
            item_ids=item_ids,
            titles=tuple(title_of(item_table.get(item), item) for item in item_ids),
            warm_users=warm_users,
            warm_items=len(warm),
            event_types=event_types,
            user_encoder=user_encoder,
            item_encoder=item_encoder,
            split=split,
            schema=schema,
            cleaning_report=report,
            notes=tuple(notes),
            repeats=bool(train_rows.select(pl.struct("user_id", "item_id").is_duplicated().any()).item()),
        ),
        offsets=offsets,
        train_end=train_end,
        validation_end=validation_end,
        items=item_codes,
        events=_positions(clean["event_type"], event_types, 0),
        times=times,
        user_features=user_encoder.encode_rows(user_rows),
        item_features=item_encoder.encode_rows(item_rows),
        attributes=collect_attributes(
            {
                each.name: (each.kind, [row.get(each.name) for row in item_rows])
                for each in (*item_features, *schema.item_attributes)
                if each.kind != "text"
            },
            len(item_ids),
        ),
    )


def _positions(column: pl.Series, values: Sequence[str], otherwise: int) -> NDArray[np.int32]:
    """Where each text of a column stands among `values`, (rows,); `otherwise` for one that is not there."""
    places: NDArray[np.int32] = column.replace_strict(
        pl.Series(values, dtype=pl.String),
        np.arange(len(values), dtype=np.int32),
        default=otherwise,
        return_dtype=pl.Int32,
    ).to_numpy(writable=True)
    return places


def _side_table(
    source: object | None,
    columns: Sequence[str] | None,
    key: str | None,
    features: Sequence[Feature],
    title: str | None,
    what: str,
    notes: list[str],
) -> dict[str, dict[str, object]]:
    if source is None:
        if features:
            raise ConfigError(
                f"the schema declares features of {what}, but there is no table of {what}",
                fix=f"give the table (data.{what}), or remove the features",
                parameter=what,
            )
        return {}
    name = str(source) if isinstance(source, str | Path) else f"the {what} table"
    rows, dropped = feature_rows(read_table(source, columns), key, features, title, name)
    if dropped:
        notes.append(f"{name}: {dropped:,} rows without an id or with the id of an earlier row were left out")
    return rows
