"""Logs without order: how they are recognised, and the order in which their events are put.

Where nothing says what came first, the order of the rows is an accident of the file. The events of
each user are then put into an order that is drawn from their ids alone: the last ones, which a
split holds out, are a random sample, the same however the file is sorted. Events of a user at the
same time, such as those of a basket, are such a log in small.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from distilrec.data.cleaning import CleanLog
from distilrec.data.splits import Split
from distilrec.errors import ConfigError
from distilrec.workers import Workers, write_whole

WantedOrder = Literal["auto", "time", "none"]
Order = Literal["time", "ties", "none"]
"""Of the events of a user: in time, in time but for those at the same time, or none."""
Ties = Literal["auto", "rows", "shuffled", "unordered"]
NEARLY_ALL = 0.95
"""Share of the users with several events whose times must all be equal for "auto" to find no
order."""
MANY_TIES = 0.5
"""Share of the events with the time of the one before of their user from which on ties are many:
"auto" finds them to be without order where the log has repeats.
"""


@dataclass(frozen=True)
class FoundOrder:
    """Whether the events of a user have an order in time, and what a report should say of it."""

    order: Order
    notes: tuple[str, ...] = ()


def find_order(
    clean: CleanLog, wanted: WantedOrder, split: Split, *, timed: bool, workers: Workers
) -> FoundOrder:
    """Return the order of a log: what is `wanted`, and for "auto" what the times say.

    timed: whether the log has a column of times; without one, "time" takes the order of its rows.
    Raises ConfigError for a split in time of a log whose times say nothing.
    """
    if wanted == "time":
        rows = "the log has no column of times: its rows are taken to be in the order of time"
        return FoundOrder("time", () if timed else (rows,))
    if wanted == "none" and timed and split.kind == "global-time":
        return FoundOrder("none", ('data.order is "none": models are trained on sets of events',))
    if wanted == "none":
        return _no_order('data.order is "none"', split)
    if not timed:
        return _no_order("the log has no column of times", split)
    counts = [*workers.map(_level_users, clean, range(len(clean.parts)))]
    several, level = (sum(column) for column in zip(*counts, strict=True))
    if several == 0 or level < NEARLY_ALL * several:
        return FoundOrder("time")
    return _no_order(
        f"for {level:,} of {several:,} users with several events, all of these have the same time",
        split,
    )


def _no_order(reason: str, split: Split) -> FoundOrder:
    if split.kind == "global-time":
        raise ConfigError(
            f"a global split needs times, and no order of the events is known: {reason}",
            fix='set split.kind = "leave-one-out"; or name the column of times in '
            'data.schema.timestamp; or set data.order = "time" where the rows of the log are in '
            "the order of time",
            parameter="split.kind",
        )
    return FoundOrder(
        "none",
        (
            f"no order of a user's events is known: {reason}",
            "the held-out events are drawn at random, and models are trained on sets of events",
        ),
    )


def _level_users(clean: CleanLog, number: int) -> tuple[int, int]:
    """Return how many users of a part have several events, and for how many of these all have the
    same time.
    """
    log = pl.read_parquet(clean.parts[number], columns=["user_id", "timestamp"])
    time = pl.col("timestamp")
    users = log.group_by("user_id").agg(pl.len(), level=time.min() == time.max())
    several = users.filter(pl.col("len") > 1)
    return several.height, int(several["level"].sum())


def check_wanted(wanted: str, draw: int, ties: str) -> None:
    """Raise ConfigError for an order, a draw and ties that cannot be or do not go together."""
    for name, value, values in (("order", wanted, WantedOrder), ("ties", ties, Ties)):
        if value not in get_args(values):
            raise ConfigError(
                f"data.{name} is {value!r}",
                fix="use one of: " + ", ".join(get_args(values)),
                parameter=f"data.{name}",
            )
    if draw < 0:
        raise ConfigError(f"data.draw is {draw}", fix="use at least 0", parameter="data.draw")
    if wanted != "auto":
        check_order("none" if wanted == "none" else "time", draw, ties)


def check_order(order: Order, draw: int, ties: str) -> None:
    """Raise ConfigError for a draw or ties that a log with or without order cannot have."""
    if order == "none" and ties not in ("auto", "rows"):
        raise ConfigError(
            f'data.ties is "{ties}", but no order of the events is known: that of all of them is '
            "drawn",
            fix="leave data.ties out; data.draw chooses another order",
            parameter="data.ties",
        )
    if order == "time" and draw and ties == "rows":
        raise ConfigError(
            f"data.draw is {draw}, but the events have an order: the last ones are held out",
            fix='set data.draw = 0; or data.order = "none", to hold out events drawn at random; or '
            'data.ties = "shuffled", to draw the order of events at the same time',
            parameter="data.draw",
        )


def find_ties(clean: CleanLog, workers: Workers) -> Ties:
    """Return what "auto" says of events of a user at the same time: they are "unordered" where
    there are many in a log with repeats, which are baskets, and in the order of the "rows"
    otherwise.
    """
    counts = [*workers.map(_count_ties, clean, range(len(clean.parts)))]
    events, tied, repeats = (sum(column) for column in zip(*counts, strict=True))
    return "unordered" if repeats and tied >= MANY_TIES * events else "rows"


def _count_ties(clean: CleanLog, number: int) -> tuple[int, int, bool]:
    """Return how many events a part has, how many have the time of the one before of their user,
    and whether a user has an item twice.
    """
    log = pl.read_parquet(clean.parts[number], columns=["user_id", "item_id", "timestamp"])
    events, moments, items = log.select(
        pl.len(),
        moments=pl.struct("user_id", "timestamp").n_unique(),
        items=pl.struct("user_id", "item_id").n_unique(),
    ).row(0)
    return events, events - moments, items < events


@dataclass(frozen=True)
class _Drawing:
    """What a worker must know. timed: whether the times of the log mean anything."""

    clean: CleanLog
    draw: int
    timed: bool


def draw_order(
    clean: CleanLog,
    draw: int,
    *,
    timed: bool,
    workers: Workers,
    on_step: Callable[[int, int], None],
) -> None:
    """Put the events of each user of a clean log into a drawn order, in its files.

    draw: each one holds out other events; those of two draws overlap only for users with fewer
    than twice as many events as draws. Without a column of times, all times become 0.
    """
    parts = range(len(clean.parts))
    task = _Drawing(clean, draw, timed)
    for done, _ in enumerate(workers.map(_draw_part, task, parts), start=1):
        on_step(done, len(parts))


def _draw_part(task: _Drawing, number: int) -> None:
    log, drawn = _with_numbers(task.clean.part(number))
    users = log["user_id"].rle_id().to_numpy()
    log = log[np.lexsort((drawn, users))]
    begins = np.flatnonzero(np.diff(users, prepend=-1))
    sizes = np.diff(begins, append=log.height)
    begins, sizes = np.repeat(begins, sizes), np.repeat(sizes, sizes)
    place = (np.arange(log.height) - begins + 2 * task.draw) % sizes
    log = log[np.argsort(begins + place, kind="stable")]
    if not task.timed:
        log = log.with_columns(timestamp=pl.lit(0.0))
    write_whole(log, task.clean.parts[number], "lz4")


def shuffle_ties(
    clean: CleanLog,
    draw: int,
    why: str,
    *,
    timed: bool,
    workers: Workers,
    on_step: Callable[[int, int], None],
) -> str:
    """Put events of a user at the same time into a drawn order, in the files of a clean log; return
    what a report should say of it.

    draw: each one is another order. why: the setting that says so. timed: whether the log has a
    column of times. Raises ConfigError where it has none.
    """
    if not timed:
        raise ConfigError(
            f"{why}, but the log has no column of times: no events share one",
            fix="leave data.ties out, or name the column of times in data.schema.timestamp",
            parameter="data.ties",
        )
    parts, tied = range(len(clean.parts)), 0
    task = _Drawing(clean, draw, timed)
    for done, count in enumerate(workers.map(_shuffle_part, task, parts), start=1):
        tied += count
        on_step(done, len(parts))
    return (
        f"{tied:,} of {sum(clean.rows):,} events share their time with another one of the same "
        f"user: their order is drawn ({why}, draw {draw})"
    )


def _shuffle_part(task: _Drawing, number: int) -> int:
    """Shuffle the ties of a part; return how many events have the time of another one of the same
    user.
    """
    log, drawn = _with_numbers(task.clean.part(number))
    users, times = log["user_id"].rle_id().to_numpy(), log["timestamp"].to_numpy()
    log = log[np.lexsort((_mixed(drawn + np.uint64(task.draw)), times, users))]
    write_whole(log, task.clean.parts[number], "lz4")
    shared = log.select(pl.len().over("user_id", "timestamp") > 1).to_series()
    return int(shared.sum())


def _with_numbers(log: pl.DataFrame) -> tuple[pl.DataFrame, NDArray[np.uint64]]:
    """Return the rows of a part sorted by user, and a drawn number for each. Neither the order of
    the file matters, nor whether this was done before.
    """
    log = log.sort("user_id", "item_id", "timestamp", "event_type", "weight")
    repetition = log.select(pl.int_range(pl.len()).over("user_id", "item_id")).to_series()
    return log, drawn_numbers(log["user_id"], log["item_id"], repetition.to_numpy())


def drawn_numbers(
    users: pl.Series, items: pl.Series, repetition: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Return a number for each event that is as good as random and depends on its user, its item
    and its repetition alone, (rows,).
    """
    mixed = _mixed(_hashes(users)) ^ _hashes(items)
    return _mixed(_mixed(mixed) + repetition.astype(np.uint64))


def _hashes(ids: pl.Series) -> NDArray[np.uint64]:
    """Return a hash of each id, (rows,)."""
    distinct = ids.unique(maintain_order=True)
    hashes = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in distinct]
    numbers = np.frombuffer(b"".join(hashes), "<u8")
    found: NDArray[np.uint64] = ids.replace_strict(
        distinct, numbers, return_dtype=pl.UInt64
    ).to_numpy()
    return found


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return numbers of which every bit depends on every bit of the given ones (the finaliser of
    splitmix64, Steele et al. 2014).
    """
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
