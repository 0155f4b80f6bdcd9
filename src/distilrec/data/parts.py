"""The parts of a clean log, split by the time of rows and encoded as positions of items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from distilrec.data.cleaning import CleanLog
from distilrec.data.context import encode_context, training_context
from distilrec.data.dataset import UNKNOWN_ITEM
from distilrec.data.schema import Schema
from distilrec.data.splits import Split, split_moments, split_rows
from distilrec.features.encoding import FeatureEncoder, FeatureMatrix
from distilrec.offsets import offsets_of
from distilrec.targets import Targets
from distilrec.workers import Workers


@dataclass(frozen=True)
class Part:
    """A part of the log, split. user_ids, sizes, trains, validations: (users,), how many rows each
    user has, how many are training rows, and training or validation rows; counts: training rows and
    their weight by `item_id`, of targets only; context: of `training_context`.
    """

    number: int
    user_ids: pl.Series
    sizes: NDArray[np.int64]
    trains: NDArray[np.int64]
    validations: NDArray[np.int64]
    counts: pl.DataFrame
    event_types: frozenset[str]
    repeats: bool
    context: tuple[pl.Series, ...]


@dataclass(frozen=True)
class _Splitting:
    clean: CleanLog
    schema: Schema
    moments: tuple[float, float] | None
    targets: Targets | None


def split_parts(
    clean: CleanLog,
    schema: Schema,
    split: Split,
    workers: Workers,
    on_step: Callable[[int, int], None],
    targets: Targets | None = None,
) -> list[Part]:
    """Return the parts of a log, in order, with the rows of each user divided by the split.

    targets: what the events mean. Only targets are held out and counted.
    """
    moments = None
    if split.kind == "global-time":
        times = [_times(part, targets) for part in clean.parts]
        moments = split_moments(np.concatenate(times), split)
    parts = []
    task = _Splitting(clean, schema, moments, targets)
    for part in workers.map(_split_part, task, range(len(clean.parts))):
        parts.append(part)
        on_step(len(parts), len(clean.parts))
    return sorted(parts, key=lambda part: part.number)


def _times(part: Path, targets: Targets | None) -> NDArray[np.float64]:
    """Return the times of the targets of a part, (rows,) seconds."""
    if targets is None:
        return pl.read_parquet(part, columns=["timestamp"])["timestamp"].to_numpy()
    log = pl.read_parquet(part, columns=["timestamp", "event_type"])
    return log.filter(_is_target(targets))["timestamp"].to_numpy()


def _is_target(targets: Targets | None) -> pl.Expr:
    """Return which rows of a clean log are targets."""
    if targets is None:
        return pl.lit(value=True)
    names = [name for name, role in targets.roles().items() if role == "target"]
    return pl.col("event_type").is_in(names)


def _split_part(task: _Splitting, number: int) -> Part:
    log = task.clean.part(number)
    user_of_row = log["user_id"].to_numpy()
    begins = np.flatnonzero(
        np.concatenate([np.ones(min(1, log.height), bool), user_of_row[1:] != user_of_row[:-1]])
    )
    offsets = np.concatenate([begins, [log.height]]).astype(np.int64)
    targets = None
    if task.targets is not None:
        targets = log.select(_is_target(task.targets)).to_series().to_numpy()
    times = log["timestamp"].to_numpy()
    train_end, validation_end = split_rows(offsets, times, task.moments, targets)
    sizes, trains, validations = (
        end - offsets[:-1] for end in (offsets[1:], train_end, validation_end)
    )
    training = log.filter(
        pl.Series(np.arange(log.height) < np.repeat(train_end, sizes), dtype=pl.Boolean)
    )
    counts = _counts(training, task.targets)
    return Part(
        number,
        log["user_id"].gather(begins),
        sizes,
        trains,
        validations,
        counts,
        frozenset(training["event_type"].unique().to_list()),
        bool(training.select(pl.struct("user_id", "item_id").is_duplicated().any()).item()),
        training_context(training, task.schema),
    )


def _counts(training: pl.DataFrame, targets: Targets | None) -> pl.DataFrame:
    """Return the training rows and their weight by item; of targets only, 0 where there is none."""
    by_item = training.group_by("item_id")
    if targets is None:
        return by_item.agg(pl.len().alias("count"), pl.col("weight").sum().alias("volume"))
    counted = _is_target(targets)
    return by_item.agg(
        counted.sum().cast(pl.UInt32).alias("count"),
        pl.col("weight").filter(counted).sum().alias("volume"),
    )


def training_counts(parts: Sequence[Part]) -> pl.DataFrame:
    """Return training rows and their weight by item, the most popular first. The parts' sums are
    added in their order.
    """
    together = pl.concat([part.counts for part in parts]).group_by("item_id", maintain_order=True)
    counts = together.agg(pl.col("count").sum(), pl.col("volume").sum())
    return counts.sort(["count", "item_id"], descending=[True, False])


@dataclass(frozen=True)
class Encoding:
    """cold: for every part, which of its users have no training rows."""

    clean: CleanLog
    cold: tuple[NDArray[np.bool_], ...]
    item_ids: pl.Series
    event_types: tuple[str, ...]
    context: FeatureEncoder


@dataclass(frozen=True)
class Rows:
    """items, events: (rows,) int32; times: (rows,) float64; context: of each row; the rows of users
    without training rows are the last.
    """

    number: int
    items: NDArray[np.int32]
    events: NDArray[np.int32]
    times: NDArray[np.float64]
    context: FeatureMatrix

    def arrays(self) -> tuple[NDArray[np.generic], ...]:
        """Return what there is of each row."""
        context = self.context
        return (self.items, self.events, self.times, context.columns, context.weights)


def encode_parts(
    task: Encoding, parts: Sequence[Part], workers: Workers, on_step: Callable[[int, int], None]
) -> Rows:
    """Return the rows of all parts as positions of items and event types."""
    cold = [int(part.sizes[part.trains == 0].sum()) for part in parts]  # rows of cold users
    warm = [int(part.sizes.sum()) - few for part, few in zip(parts, cold, strict=True)]
    # The warm rows of all parts, then the cold ones.
    begins = offsets_of([*warm, *cold])
    count = int(begins[-1])
    shape = (count, len(task.context.encodings))
    whole = Rows(
        0,
        np.empty(count, np.int32),
        np.empty(count, np.int32),
        np.empty(count, np.float64),
        FeatureMatrix(np.empty(shape, np.int32), np.empty(shape, np.float32), task.context.width),
    )
    for done, rows in enumerate(workers.map(_encode_part, task, range(len(parts))), start=1):
        for first, own in (
            (int(begins[rows.number]), slice(0, warm[rows.number])),
            (int(begins[len(parts) + rows.number]), slice(warm[rows.number], None)),
        ):
            for there, here in zip(whole.arrays(), rows.arrays(), strict=True):
                there[first : first + len(here[own])] = here[own]
        on_step(done, len(parts))
    return whole


def _encode_part(task: Encoding, number: int) -> Rows:
    log, cold = task.clean.part(number), task.cold[number]
    items = _positions(log["item_id"], task.item_ids, UNKNOWN_ITEM)
    events = _positions(log["event_type"], pl.Series(task.event_types, dtype=pl.String), 0)
    times = log["timestamp"].to_numpy().astype(np.float64)
    context = encode_context(log, task.context)
    if cold.any():
        sizes = log.group_by("user_id", maintain_order=True).len()["len"].to_numpy()
        order = np.argsort(np.repeat(cold, sizes), kind="stable")
        items, events, times = items[order], events[order], times[order]
        context = context.take(order)
    return Rows(number, items, events, times, context)


def _positions(column: pl.Series, values: pl.Series, otherwise: int) -> NDArray[np.int32]:
    """Return where each text of a column stands among `values`, (rows,); `otherwise` for one that
    is not there.
    """
    positions: NDArray[np.int32] = column.replace_strict(
        values,
        np.arange(len(values), dtype=np.int32),
        default=otherwise,
        return_dtype=pl.Int32,
    ).to_numpy(writable=True)
    return positions
