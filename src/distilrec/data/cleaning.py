"""From a raw log to a clean one, with every dropped row counted by its reason."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import polars as pl

from distilrec.data.checks import DataCheck, check_table
from distilrec.data.columns import PROBLEMS, as_event_types, as_ids, as_numbers
from distilrec.data.context import context_columns, context_values
from distilrec.data.pseudonyms import pseudonyms
from distilrec.data.readers import Log
from distilrec.data.schema import Schema, need_column
from distilrec.data.source import Source
from distilrec.data.times import PLAUSIBLE_FROM, TimeFormat, as_seconds, time_format
from distilrec.errors import ConfigError, NotEnoughDataError
from distilrec.settings import Count, Positive, Settings, ZeroOrMore
from distilrec.targets import EventRole, Targets
from distilrec.workers import InProcess, Workers, write_whole

OnStep = Callable[[int, int], None]
_DAY = 86_400.0
_SAMPLES = 1_000  # rows of the log for each boundary between parts


class Cleaning(Settings, frozen=True):
    """What counts as noise. Everything that is dropped shows up in the report."""

    drop_duplicates: bool = True
    """Whether of several rows with the same user, item, time and event type one is kept."""
    min_weight: float | None = None
    """Smallest weight to keep."""
    max_weight: float | None = None
    """Largest weight to keep."""
    min_time: float = 0.0
    """Earliest time to keep, in seconds since 1970."""
    max_time: float | None = None
    """Latest time to keep, in seconds since 1970; a day from now by default."""
    max_age_days: Positive | None = None
    """Age in days beyond which rows are dropped."""
    bot_events_per_day: Count | None = 2_000
    """Users with more events than this on any day (UTC) are dropped with all their rows."""
    min_user_events: ZeroOrMore = 0
    """Events that every user must have, together with the next key (k-core); 0 is off."""
    min_item_events: ZeroOrMore = 0
    """Events that every item must have; repeated until users and items have enough; 0 is off."""


class CleaningReport(msgspec.Struct, frozen=True):
    """Rows in, rows out, and the rows dropped by reason, in the order in which the checks ran.
    notes: how values were read where there was more than one way to.
    """

    rows_in: int
    rows_out: int
    dropped: dict[str, int]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        return [
            f"{self.rows_in:,} rows read",
            *self.notes,
            *(f"{count:,} dropped: {reason}" for reason, count in self.dropped.items() if count),
            f"{self.rows_out:,} rows kept",
        ]


ROWS_PER_PART = 1_000_000


@dataclass(frozen=True)
class CleanLog:
    """A clean log in parts, each a Parquet file; all rows of a user are in one part, and the parts
    follow the user ids.

    Columns: user_id str, item_id str, timestamp float64 (seconds), event_type str, weight float64,
    and those of `context_columns`; sorted by user, time and original order. rows: how many are in
    each part. erased: the users on the list of erased users who were in the log.
    """

    parts: tuple[Path, ...]
    rows: tuple[int, ...]
    report: CleaningReport
    erased: frozenset[str] = frozenset()

    def part(self, number: int) -> pl.DataFrame:
        """Read one part and return it."""
        return pl.read_parquet(self.parts[number])


def clean_log(
    log: Log,
    source: Source,
    cleaning: Cleaning,
    scratch: Path,
    workers: Workers | None = None,
    rows_per_part: int = ROWS_PER_PART,
    on_step: OnStep = lambda done, total: None,
) -> CleanLog:
    """Return the clean log and the report of what was dropped. No more than about `rows_per_part`
    rows are in memory together.

    Slices of the log are checked row by row and divided by user id; then every part is cleaned by
    itself.
    log: the opened log of the source, whose schema, checks, key of pseudonyms and erased users
    count. scratch: a folder for the parts, which all workers see. on_step: is called with the
    number of finished slices and parts, and of all.
    Raises ColumnMissingError, ColumnTypeError and CheckFailedError (with the first bad row) and
    NotEnoughDataError.
    """
    schema, key = source.schema, source.pseudonym_key
    columns = log.schema().names()
    for column in _log_columns(schema, source.checks):
        need_column(columns, column, log.name, schema)
    if log.rows == 0:
        raise NotEnoughDataError(
            f"{log.name} has no rows",
            fix="give a log with at least a few interactions",
            file=log.name,
        )
    task = _Task(
        log,
        schema,
        cleaning,
        time_format(log, schema),
        -math.inf if cleaning.max_age_days is None else time.time() - cleaning.max_age_days * _DAY,
        time.time() + _DAY if cleaning.max_time is None else cleaning.max_time,
        _boundaries(log, schema.user_id, -(-log.rows // rows_per_part), key),
        scratch,
        rows_per_part,
        key,
        source.checks,
        _erased(source.erased.all(), key),
        source.targets,
    )
    return _cleaned_log(task, workers or InProcess(), on_step)


def _cleaned_log(task: _Task, workers: Workers, on_step: OnStep) -> CleanLog:
    parts = range(len(task.boundaries) + 1)
    steps = len(task.slices) + len(parts)
    read = _Reading()
    for done, one_slice in enumerate(workers.map(_read_slice, task, task.slices), start=1):
        read.add(*one_slice)
        on_step(done, steps)
    cleaned: dict[int, _Cleaned] = {}
    begun = len(task.slices) + 1
    for done, part in enumerate(workers.map(_clean_part, task, parts), start=begun):
        cleaned[part.part] = part
        read.dropped.update(part.dropped)
        on_step(done, steps)
    for file in task.scratch.glob("slice-*.parquet"):
        file.unlink()
    if task.cleaning.min_user_events or task.cleaning.min_item_events:
        before = _rows(cleaned)
        cleaned = _core(task, workers, cleaned)
        read.dropped["user or item with too few events"] = before - _rows(cleaned)
    rows = tuple(cleaned[number].rows for number in parts)
    files = tuple(_part_file(task.scratch, number) for number in parts)
    notes = (*task.log.notes, *task.times.notes, *read.notes(), *_time_notes(task, files))
    report = CleaningReport(task.log.rows, sum(rows), dict(read.dropped), notes)
    _enough(cleaned.values(), report, task.log.name)
    return CleanLog(files, rows, report, frozenset(read.erased))


@dataclass
class _Reading:
    """What is counted while slices are read: dropped rows, ways to read values, erased users."""

    dropped: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    erased: set[str] = field(default_factory=set)

    def add(self, dropped: dict[str, int], erased: list[str], ways: dict[str, int]) -> None:
        """Add the counts of one slice."""
        self.dropped.update(dropped)
        self.erased.update(erased)
        self.ways.update(ways)

    def notes(self) -> list[str]:
        """Return what a report should say about the ways to read values."""
        return [f"{count:,} {what}" for what, count in self.ways.items() if count]


@dataclass(frozen=True)
class _Task:
    """What a worker must know. oldest: the first second that is kept; latest: the last one that is
    believed; boundaries: the user ids at which parts begin.
    """

    log: Log
    schema: Schema
    cleaning: Cleaning
    times: TimeFormat
    oldest: float
    latest: float
    boundaries: pl.Series
    scratch: Path
    rows_per_slice: int
    pseudonym_key: bytes | None
    checks: tuple[DataCheck, ...]
    erased: pl.Series
    targets: Targets | None

    @property
    def slices(self) -> range:
        return range(-(-self.log.rows // self.rows_per_slice))


@dataclass(frozen=True)
class _Cleaned:
    """What is left of a part. items: how many rows each item has, by `item_id` and `len`."""

    part: int
    rows: int
    users: int
    items: pl.DataFrame
    dropped: dict[str, int]


def _erased(users: Sequence[str], key: bytes | None) -> pl.Series:
    ids = pl.Series("user_id", [user.strip() for user in users], dtype=pl.String)
    return ids if key is None else pl.concat([ids, pseudonyms(ids, key)])


def _log_columns(schema: Schema, checks: Sequence[DataCheck]) -> list[str]:
    """Return the columns of the log that are read, each once."""
    declared = [schema.user_id, schema.item_id, schema.timestamp, schema.event_type, schema.weight]
    declared += [feature.name for feature in schema.context]
    declared += [check.column for check in checks if check.table == "interactions"]
    return list(dict.fromkeys(column for column in declared if column is not None))


def _slice_file(scratch: Path, number: int, part: int) -> Path:
    return scratch / f"slice-{number}-{part}.parquet"


def _part_file(scratch: Path, part: int) -> Path:
    return scratch / f"part-{part}.parquet"


def _boundaries(log: Log, column: str, parts: int, key: bytes | None) -> pl.Series:
    """Return user ids that divide the rows into about equal parts, from a sample of them; fewer
    where few users have most.
    """
    if parts == 1:
        return pl.Series("user_id", [], dtype=pl.String)
    step = max(1, log.rows // (parts * _SAMPLES))
    sample = _user_ids(
        log.scan().select(column).gather_every(step).collect()[column], log.name, key
    )
    sample = sample.drop_nulls().sort()
    positions = [len(sample) * part // parts for part in range(1, parts)]
    return sample.gather(positions).unique(maintain_order=True) if len(sample) else sample


def _read_slice(task: _Task, number: int) -> tuple[dict[str, int], list[str], dict[str, int]]:
    """Read a slice, drop what is wrong with single rows, and write a file for each part.

    Returns what was dropped, by reason; the users who are to be erased and are in this slice; and
    how many values were read in a way that a report should say.
    """
    schema, cleaning, first = task.schema, task.cleaning, number * task.rows_per_slice
    table = task.log.slice(first, task.rows_per_slice, _log_columns(schema, task.checks))
    erased = _erased_in(task, table)
    passed, broken = check_table(table, task.checks, "interactions", task.log.name, first)
    log, read = _typed(
        table[passed], schema, task.times, task.log.name, passed + first, task.pseudonym_key
    )
    dropped = {f"check that {rule}": count for rule, count in broken.items()}

    def keep(reason: str, condition: pl.Expr) -> None:
        nonlocal log
        log = _kept(log, condition, reason, dropped)

    def keep_ids(what: str) -> None:
        problem = pl.col(f"{what}_problem")
        for name in PROBLEMS:
            if (log[f"{what}_problem"] == name).any():
                keep(f"{what} id that {name}", problem.is_null() | (problem != name))
        keep(f"no {what} id", pl.col(f"{what}_id").is_not_null())

    keep_ids("user")
    if len(task.erased):
        keep("erased user", ~pl.col("user_id").is_in(task.erased.implode()))
    keep_ids("item")
    keep("no timestamp", pl.col("timestamp").is_finite().fill_null(value=False))
    keep("weight missing or not a number", pl.col("weight").is_finite().fill_null(value=False))
    if schema.timestamp is not None:
        keep("time out of range", pl.col("timestamp").is_between(cleaning.min_time, task.latest))
        if cleaning.max_age_days is not None:
            keep("older than max_age_days", pl.col("timestamp") >= task.oldest)
    if cleaning.min_weight is not None:
        keep("weight below min_weight", pl.col("weight") >= cleaning.min_weight)
    if cleaning.max_weight is not None:
        keep("weight above max_weight", pl.col("weight") <= cleaning.max_weight)
    log = log.select(list(_columns(schema))).with_columns(
        part=task.boundaries.search_sorted(log["user_id"], side="right")
    )
    for (part,), rows in log.partition_by("part", as_dict=True, include_key=False).items():
        write_whole(rows, _slice_file(task.scratch, number, part), "lz4")
    return dropped, erased, read


def _erased_in(task: _Task, table: pl.DataFrame) -> list[str]:
    """Return the users of a slice who are to be erased, also those of rows that a check drops."""
    if not len(task.erased):
        return []
    users = _user_ids(table[task.schema.user_id], task.log.name, task.pseudonym_key)
    return users.filter(users.is_in(task.erased.implode())).unique().to_list()


def _kept(
    log: pl.DataFrame, condition: pl.Expr, reason: str, dropped: dict[str, int]
) -> pl.DataFrame:
    kept = log.filter(condition)
    dropped[reason] = log.height - kept.height
    return kept


def _clean_part(task: _Task, part: int) -> _Cleaned:
    """Put the rows of a part together, drop duplicates and bots, sort and write them."""
    files = [_slice_file(task.scratch, number, part) for number in task.slices]
    slices = [pl.read_parquet(file) for file in files if file.is_file()]
    log = pl.concat(slices) if slices else pl.DataFrame(schema=_columns(task.schema))
    timed, limit = task.schema.timestamp is not None, task.cleaning.bot_events_per_day
    dropped: dict[str, int] = {}
    if task.cleaning.drop_duplicates:
        same = ["user_id", "item_id", *(["timestamp"] if timed else []), "event_type"]
        log = _kept(log, pl.struct(same).is_first_distinct(), "duplicate row", dropped)
    if limit is not None and timed:
        day = (pl.col("timestamp") // _DAY).alias("day")
        busiest = log.group_by("user_id", day).len().group_by("user_id").agg(pl.col("len").max())
        bots = busiest.filter(pl.col("len") > limit)["user_id"]
        reason = f"user with more than {limit:,} events on one day"
        log = _kept(log, ~pl.col("user_id").is_in(bots.implode()), reason, dropped)
    for event in task.targets.by_weight if task.targets else ():
        log = _divided(log, event, task.log.name)
    log = log.sort("user_id", "timestamp", "row", maintain_order=True).drop("row")
    write_whole(log, _part_file(task.scratch, part), "lz4")
    return _cleaned(log, part, dropped)


def _divided(log: pl.DataFrame, event: EventRole, source: str) -> pl.DataFrame:
    """Return the log with the events of one type divided by their weight. Raises ConfigError where
    the log has a type of such a name already.
    """
    kind, weight = pl.col("event_type"), pl.col("weight")
    names = {role: name for name, role in event.roles().items()}
    for name in (names["inform"], names["negative"]):
        if (log["event_type"] == name).any():
            raise ConfigError(
                f"{source} has events of type {name!r}, which [targets] makes of "
                f"{event.event_type!r}",
                fix="rename that type in the log, or leave out target_from and negative_to",
                parameter="targets.events",
            )
    low, high = event.negative_to, event.target_from
    otherwise = pl.lit(names["target" if high is None else "inform"])
    parts = otherwise if high is None else pl.when(weight >= high).then(kind).otherwise(otherwise)
    if low is not None:
        parts = pl.when(weight <= low).then(pl.lit(names["negative"])).otherwise(parts)
    divided = pl.when(kind == event.event_type).then(parts).otherwise(kind)
    return log.with_columns(divided.alias("event_type"))


def _cleaned(log: pl.DataFrame, part: int, dropped: dict[str, int]) -> _Cleaned:
    return _Cleaned(
        part, log.height, log["user_id"].n_unique(), log.group_by("item_id").len(), dropped
    )


@dataclass(frozen=True)
class _CoreTask:
    task: _Task
    items: pl.Series  # that have enough events


def _core(task: _Task, workers: Workers, cleaned: dict[int, _Cleaned]) -> dict[int, _Cleaned]:
    """Drop users and items with too few events until all that are left have enough (k-core, the
    largest such log).
    """
    while True:
        counts = (
            pl.concat([part.items for part in cleaned.values()])
            .group_by("item_id")
            .agg(pl.col("len").sum())
        )
        core = _CoreTask(
            task, counts.filter(pl.col("len") >= task.cleaning.min_item_events)["item_id"]
        )
        smaller = {part.part: part for part in workers.map(_core_part, core, list(cleaned))}
        if _rows(smaller) == _rows(cleaned):
            return smaller
        cleaned = smaller


def _rows(cleaned: dict[int, _Cleaned]) -> int:
    return sum(part.rows for part in cleaned.values())


def _core_part(core: _CoreTask, part: int) -> _Cleaned:
    file = _part_file(core.task.scratch, part)
    log = pl.read_parquet(file)
    kept = log.filter(pl.col("item_id").is_in(core.items.implode()))
    kept = kept.filter(pl.len().over("user_id") >= core.task.cleaning.min_user_events)
    if kept.height < log.height:
        write_whole(kept, file, "lz4")
    return _cleaned(kept, part, {})


def _enough(cleaned: Collection[_Cleaned], report: CleaningReport, source: str) -> None:
    items = pl.concat([part.items for part in cleaned])["item_id"].n_unique()
    for count, what in (
        (report.rows_out, "interaction"),
        (sum(part.users for part in cleaned), "user"),
        (items, "item"),
    ):
        if count < 2:
            raise NotEnoughDataError(
                f"{source}: {count} {what}{'' if count == 1 else 's'} left after cleaning "
                f"({'; '.join(report.lines())})",
                fix="a recommender needs at least two users and two items: give more data or drop "
                "less",
                file=source,
            )


_COLUMNS: dict[str, type[pl.DataType]] = {
    "user_id": pl.String,
    "item_id": pl.String,
    "timestamp": pl.Float64,
    "event_type": pl.String,
    "weight": pl.Float64,
    "row": pl.Int64,
}


def _columns(schema: Schema) -> dict[str, type[pl.DataType]]:
    """Return the columns of the parts, with that of the row numbers."""
    return {**_COLUMNS, **context_columns(schema)}


def _user_ids(column: pl.Series, source: str, key: bytes | None) -> pl.Series:
    ids = as_ids(column, source).values
    return ids if key is None else pseudonyms(ids, key)


def _typed(
    table: pl.DataFrame,
    schema: Schema,
    times: TimeFormat,
    source: str,
    rows: pl.Series,
    key: bytes | None,
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the five columns, what is wrong with the ids, and the row numbers of some rows; and
    how many values were read in a way that a report should say. rows: their numbers in the log,
    from 0.
    """
    rows = rows.cast(pl.Int64).alias("row")
    users, items = as_ids(table[schema.user_id], source), as_ids(table[schema.item_id], source)
    read = {
        "user ids are whole numbers written as floats: 7.0 is read as 7": users.from_floats,
        "item ids are whole numbers written as floats: 7.0 is read as 7": items.from_floats,
    }
    if schema.event_type is None:
        events = pl.repeat("interaction", table.height, eager=True)
    else:
        events = as_event_types(table[schema.event_type], source)
        read["rows have no event type: it is read as unknown"] = events.null_count()
    typed = pl.DataFrame(
        [
            (users.values if key is None else pseudonyms(users.values, key)).alias("user_id"),
            users.problems.alias("user_problem"),
            items.values.alias("item_id"),
            items.problems.alias("item_problem"),
            (
                rows.cast(pl.Float64)
                if schema.timestamp is None
                else as_seconds(table[schema.timestamp], times, source, rows)
            ).alias("timestamp"),
            events.fill_null("unknown").alias("event_type"),
            (
                pl.repeat(1.0, table.height, eager=True)
                if schema.weight is None
                else as_numbers(table[schema.weight], source, rows)
            ).alias("weight"),
            rows,
            *context_values(table, schema, source, rows),
        ]
    )
    return typed, read


def _time_notes(task: _Task, parts: Sequence[Path]) -> list[str]:
    """Return what a report should say about the times that were kept."""
    if task.schema.timestamp is None:
        return []
    time = pl.col("timestamp")
    whole = (time % _DAY == 0).all()
    found = pl.scan_parquet(list(parts), glob=False).select(
        time.min(), time.max().alias("last"), whole.alias("whole")
    )
    first, last, dates_only = found.collect(engine="streaming").row(0)
    notes = []
    if last is not None and last < PLAUSIBLE_FROM:
        notes.append(
            f"the times lie between {_moment(first)} and {_moment(last)}: set "
            "data.schema.timestamp_format if they are not seconds since 1970"
        )
    elif last is not None and (task.times.dates_only or dates_only):
        notes.append(
            f"the times are dates without a time of day, read as 00:00 in {task.times.zone}: the "
            "events of a day share their time, their order is what data.ties says, and the log "
            f"ends at {_moment(last)}, before the end of its last day"
        )
    return notes


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
