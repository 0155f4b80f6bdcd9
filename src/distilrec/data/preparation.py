"""From a log and its feature tables to a prepared data set, part by part: by this process or by the
workers of a cluster.

The log is never in memory as a whole: a part of about a million rows is, and what the data set
holds of each row (16 bytes).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from distilrec.data.checks import DataCheck, check_table
from distilrec.data.cleaning import ROWS_PER_PART, Cleaning, CleanLog, clean_log
from distilrec.data.dataset import UNKNOWN_ITEM, Dataset, DatasetInfo
from distilrec.data.dataset import derived_features as derived_names
from distilrec.data.erased import ErasedUsers, as_erased
from distilrec.data.features import feature_rows, fit_encoder, title_of
from distilrec.data.lines import TextFormat
from distilrec.data.pseudonyms import pseudonym
from distilrec.data.readers import open_log
from distilrec.data.schema import Feature, Schema
from distilrec.data.splits import Split, split_moments, split_rows
from distilrec.errors import ConfigError, NotEnoughDataError
from distilrec.features.attributes import collect_attributes
from distilrec.workers import InProcess, Workers


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
    text: TextFormat | None = None,
    user_text: TextFormat | None = None,
    item_text: TextFormat | None = None,
    pseudonym_key: bytes | None = None,
    derived_features: bool = True,
    checks: Sequence[DataCheck] = (),
    erased_users: Sequence[object] | ErasedUsers = (),
    workers: Workers | None = None,
    scratch: Path | None = None,
    rows_per_part: int = ROWS_PER_PART,
    on_step: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Dataset:
    """Reads, cleans, splits and encodes a log and its feature tables.

    log, users, items: a path, a polars frame or a pandas frame; `*columns` name the fields of files
    without a header.
    text: encoding and quotes of files of text; user_text, item_text: of the feature tables, where
    they differ.
    pseudonym_key: users of the log and of the table get pseudonyms with this key
    (`distilrec.data.pseudonyms`).
    checks: what must hold for the columns of the tables. erased_users: whose rows are left out, by
    id or pseudonym; ids that match no user of the log are an error, but for `ErasedUsers.others`.
    derived_features: popularity, and sales volume where there are weights, become features of the
    items; they get other names (`popularity_in_log`) where the schema has columns of these names.
    workers: who works on the parts, this process if left out; the data set is the same. scratch: a
    folder for the parts, a temporary one if left out; it is removed, and workers on other machines
    must see it. rows_per_part: what is in memory at once, about 400 bytes for each row. on_step: is
    called with what is being done, finished parts and all parts.
    Raises UnknownUserError for ids of `erased_users`, and the DataErrors of the readers, the
    cleaning and the encoders.
    """
    split, workers, notes = split or Split(), workers or InProcess(), list[str]()
    user_table = _side_table(
        users,
        user_columns,
        user_text or text,
        schema.user_key,
        schema.user_features,
        None,
        "users",
        notes,
        checks,
    )
    if pseudonym_key is not None:
        user_table = {pseudonym(user, pseudonym_key): row for user, row in user_table.items()}
    of_items = (*schema.item_features, *schema.item_attributes)
    item_table = _side_table(
        items,
        item_columns,
        item_text or text,
        schema.item_key,
        of_items,
        schema.title,
        "items",
        notes,
        checks,
    )
    erased = (
        erased_users
        if isinstance(erased_users, ErasedUsers)
        else ErasedUsers(as_erased(erased_users))
    )
    with _folder(scratch) as folder:
        opened = open_log(log, folder, columns, text)
        clean = clean_log(
            opened, schema, cleaning or Cleaning(), folder, workers, rows_per_part,
            lambda done, total: on_step("clean", done, total), pseudonym_key, checks, erased.all(),
        )  # fmt: skip
        notes += erased.check(clean.erased, pseudonym_key)
        parts = _split(clean, split, workers, lambda done, total: on_step("split", done, total))
        counts = _training_counts(parts)
        if counts.is_empty():
            raise NotEnoughDataError(
                f"{opened.name}: no row is left for training",
                fix="use a smaller validation and test share",
            )
        # Vocabularies and derived features: training rows, and the item table, never validation or
        # test rows.
        warm = counts["item_id"].to_list()
        known = set(warm)
        item_ids = (*warm, *(item for item in item_table if item not in known))
        event_types = (
            "unknown",
            *sorted(set().union(*(part.event_types for part in parts)) - {"unknown"}),
        )
        encoding = _Encoding(
            clean,
            tuple(part.trains == 0 for part in parts),
            pl.Series(item_ids, dtype=pl.String),
            event_types,
        )
        rows = _encode(encoding, parts, workers, lambda done, total: on_step("encode", done, total))
    taken = {feature.name for feature in of_items}
    popularity, volume = derived_names(schema)
    derived = (popularity, *((volume,) if schema.weight else ())) if derived_features else ()
    for own in derived:
        if own.name in taken:
            raise ConfigError(
                f"the schema names an item column {own.name!r}, as a feature that is derived from "
                "the log",
                fix="rename that column, or set derived_features = false",
                parameter="derived_features",
            )
    item_features = (*schema.item_features, *derived)
    item_rows = [dict(item_table.get(item, {})) for item in item_ids]
    for own, column in zip(derived, ("count", "volume"), strict=False):
        for row in item_rows:
            row[own.name] = 0.0
        for row, value in zip(item_rows, counts[column], strict=False):
            row[own.name] = float(value)

    # Users without training rows go last.
    trains = np.concatenate([part.trains for part in parts])
    order = np.argsort(trains == 0, kind="stable")
    sizes = np.concatenate([part.sizes for part in parts])[order]
    validations = np.concatenate([part.validations for part in parts])[order]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    user_ids = tuple(pl.concat([part.user_ids for part in parts]).gather(order).to_list())
    warm_users = int((trains > 0).sum())
    nothing: dict[str, object] = {}
    user_rows = [user_table.get(user, nothing) for user in user_ids]
    user_encoder = fit_encoder(user_rows[:warm_users], schema.user_features)
    item_encoder = fit_encoder(item_rows[: len(warm)], item_features)

    for table, ids, what in ((user_table, user_ids, "user"), (item_table, item_ids, "item")):
        if table and (missing := sum(entity not in table for entity in ids)):
            notes.append(
                f"{missing:,} {what}s of the log have no row in the {what} table: features unknown"
            )
    if unknown := int((rows.items == UNKNOWN_ITEM).sum()):
        notes.append(
            f"{unknown:,} validation or test rows hold items that no training row and no table "
            "knows"
        )
    if cold := len(item_ids) - len(warm):
        notes.append(
            f"{cold:,} items have no training row: they are ranked by their features alone"
        )
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
            cleaning_report=clean.report,
            notes=tuple(notes),
            repeats=any(part.repeats for part in parts),
        ),
        offsets=offsets,
        train_end=offsets[:-1] + trains[order],
        validation_end=offsets[:-1] + validations,
        items=rows.items,
        events=rows.events,
        times=rows.times,
        user_features=user_encoder.encode_rows(user_rows),
        item_features=item_encoder.encode_rows(item_rows),
        attributes=collect_attributes(
            {
                each.name: (each.kind, [row.get(each.name) for row in item_rows])
                for each in (*item_features, *schema.item_attributes)
                if each.kind not in ("text", "vector")
            },
            len(item_ids),
            {
                each.name: each.separator
                for each in (*item_features, *schema.item_attributes)
                if each.kind == "multi"
            },
        ),
    )


@contextmanager
def _folder(scratch: Path | None) -> Iterator[Path]:
    """A folder that is empty now and gone afterwards."""
    if scratch is None:
        with tempfile.TemporaryDirectory(prefix="distilrec-") as folder:
            yield Path(folder)
        return
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch.absolute()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class _Part:
    """A part of the log, split. user_ids, sizes, trains, validations: (users,), how many rows each
    user has, how many are training rows, and training or validation rows; counts: training rows and
    their weight by `item_id`.
    """

    number: int
    user_ids: pl.Series
    sizes: NDArray[np.int64]
    trains: NDArray[np.int64]
    validations: NDArray[np.int64]
    counts: pl.DataFrame
    event_types: frozenset[str]
    repeats: bool


@dataclass(frozen=True)
class _Splitting:
    clean: CleanLog
    moments: tuple[float, float] | None


def _split(
    clean: CleanLog, split: Split, workers: Workers, on_step: Callable[[int, int], None]
) -> list[_Part]:
    moments = None
    if split.kind == "global-time":
        times = [
            pl.read_parquet(part, columns=["timestamp"])["timestamp"].to_numpy()
            for part in clean.parts
        ]
        moments = split_moments(np.concatenate(times), split)
    parts = []
    for part in workers.map(_split_part, _Splitting(clean, moments), range(len(clean.parts))):
        parts.append(part)
        on_step(len(parts), len(clean.parts))
    return sorted(parts, key=lambda part: part.number)


def _split_part(task: _Splitting, number: int) -> _Part:
    log = task.clean.part(number)
    user_of_row = log["user_id"].to_numpy()
    begins = np.flatnonzero(
        np.concatenate([np.ones(min(1, log.height), bool), user_of_row[1:] != user_of_row[:-1]])
    )
    offsets = np.concatenate([begins, [log.height]]).astype(np.int64)
    train_end, validation_end = split_rows(offsets, log["timestamp"].to_numpy(), task.moments)
    sizes, trains, validations = (
        end - offsets[:-1] for end in (offsets[1:], train_end, validation_end)
    )
    training = log.filter(
        pl.Series(np.arange(log.height) < np.repeat(train_end, sizes), dtype=pl.Boolean)
    )
    counts = training.group_by("item_id").agg(
        pl.len().alias("count"), pl.col("weight").sum().alias("volume")
    )
    return _Part(
        number,
        log["user_id"].gather(begins),
        sizes,
        trains,
        validations,
        counts,
        frozenset(training["event_type"].unique().to_list()),
        bool(training.select(pl.struct("user_id", "item_id").is_duplicated().any()).item()),
    )


def _training_counts(parts: list[_Part]) -> pl.DataFrame:
    """Training rows and their weight by item, the most popular first. The parts' sums are added in
    their order.
    """
    together = pl.concat([part.counts for part in parts]).group_by("item_id", maintain_order=True)
    counts = together.agg(pl.col("count").sum(), pl.col("volume").sum())
    return counts.sort(["count", "item_id"], descending=[True, False])


@dataclass(frozen=True)
class _Encoding:
    """cold: for every part, which of its users have no training rows."""

    clean: CleanLog
    cold: tuple[NDArray[np.bool_], ...]
    item_ids: pl.Series
    event_types: tuple[str, ...]


@dataclass(frozen=True)
class _Rows:
    """items, events: (rows,) int32; times: (rows,) float64; the rows of users without training rows
    are the last.
    """

    number: int
    items: NDArray[np.int32]
    events: NDArray[np.int32]
    times: NDArray[np.float64]


def _encode(
    task: _Encoding, parts: list[_Part], workers: Workers, on_step: Callable[[int, int], None]
) -> _Rows:
    cold = [int(part.sizes[part.trains == 0].sum()) for part in parts]  # rows of cold users
    warm = [int(part.sizes.sum()) - few for part, few in zip(parts, cold, strict=True)]
    begins = np.concatenate(
        [[0], np.cumsum([*warm, *cold])]
    )  # the warm rows of all parts, then the cold ones
    count = int(begins[-1])
    whole = _Rows(
        0, np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.float64)
    )
    for done, rows in enumerate(workers.map(_encode_part, task, range(len(parts))), start=1):
        for first, own in (
            (int(begins[rows.number]), slice(0, warm[rows.number])),
            (int(begins[len(parts) + rows.number]), slice(warm[rows.number], None)),
        ):
            for there, here in (
                (whole.items, rows.items),
                (whole.events, rows.events),
                (whole.times, rows.times),
            ):
                there[first : first + len(here[own])] = here[own]
        on_step(done, len(parts))
    return whole


def _encode_part(task: _Encoding, number: int) -> _Rows:
    log, cold = task.clean.part(number), task.cold[number]
    items = _positions(log["item_id"], task.item_ids, UNKNOWN_ITEM)
    events = _positions(log["event_type"], pl.Series(task.event_types, dtype=pl.String), 0)
    times = log["timestamp"].to_numpy().astype(np.float64)
    if cold.any():
        sizes = log.group_by("user_id", maintain_order=True).len()["len"].to_numpy()
        order = np.argsort(np.repeat(cold, sizes), kind="stable")
        items, events, times = items[order], events[order], times[order]
    return _Rows(number, items, events, times)


def _positions(column: pl.Series, values: pl.Series, otherwise: int) -> NDArray[np.int32]:
    """Where each text of a column stands among `values`, (rows,); `otherwise` for one that is not
    there.
    """
    places: NDArray[np.int32] = column.replace_strict(
        values,
        np.arange(len(values), dtype=np.int32),
        default=otherwise,
        return_dtype=pl.Int32,
    ).to_numpy(writable=True)
    return places


def _side_table(
    source: object | None,
    columns: Sequence[str] | None,
    text: TextFormat | None,
    key: str | None,
    features: Sequence[Feature],
    title: str | None,
    what: Literal["users", "items"],
    notes: list[str],
    checks: Sequence[DataCheck],
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
    with tempfile.TemporaryDirectory(prefix="distilrec-") as folder:
        opened = open_log(source, Path(folder), columns, text)
        table = opened.slice(0, opened.rows, opened.schema().names())
    passed, broken = check_table(table, checks, what, name)
    notes += [
        *opened.notes,
        *(
            f"{name}: {count:,} rows left out by the check that {rule}"
            for rule, count in broken.items()
        ),
    ]
    rows, said = feature_rows(table[passed], key, features, title, name, passed)
    notes += said
    return rows
