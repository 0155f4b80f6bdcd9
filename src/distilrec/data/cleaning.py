"""From a raw log to a clean one, with every dropped row counted by its reason."""

from __future__ import annotations

import time

import msgspec
import polars as pl

from distilrec.data.schema import Schema
from distilrec.errors import ColumnMissingError, ColumnTypeError, NotEnoughDataError

_DAY = 86_400.0


class Cleaning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What counts as noise. Everything that is dropped shows up in the report.

    min_weight, max_weight: keep rows whose weight lies in this closed range.
    min_time, max_time: seconds since 1970; `max_time=None` means now (plus a day for clocks that differ).
    bot_events_per_day: all rows of a user with more events than this on any one day (UTC) go; None keeps them.
    min_user_events, min_item_events: repeated until every user and item left has that many (k-core); 0 is off.
    """

    drop_duplicates: bool = True
    min_weight: float | None = None
    max_weight: float | None = None
    min_time: float = 0.0
    max_time: float | None = None
    bot_events_per_day: int | None = 2_000
    min_user_events: int = 0
    min_item_events: int = 0


class CleaningReport(msgspec.Struct, frozen=True):
    """Rows in, rows out, and the rows dropped by reason, in the order in which the checks ran."""

    rows_in: int
    rows_out: int
    dropped: dict[str, int]

    def lines(self) -> list[str]:
        return [
            f"{self.rows_in:,} rows read",
            *(f"{count:,} dropped: {reason}" for reason, count in self.dropped.items() if count),
            f"{self.rows_out:,} rows kept",
        ]


def clean_log(
    table: pl.DataFrame, schema: Schema, cleaning: Cleaning, source: str = "the log"
) -> tuple[pl.DataFrame, CleaningReport]:
    """The clean log, sorted by user, time and original order, and the report.

    Columns of the result: user_id str, item_id str, timestamp float64 (seconds), event_type str, weight float64.
    Raises ColumnMissingError, ColumnTypeError (with the first bad row) and NotEnoughDataError.
    """
    log = _typed(table, schema, source)
    rows_in = log.height
    if rows_in == 0:
        raise NotEnoughDataError(
            f"{source} has no rows", fix="give a log with at least a few interactions", file=source
        )
    dropped: dict[str, int] = {}

    def keep(reason: str, condition: pl.Expr) -> None:
        nonlocal log
        kept = log.filter(condition)
        dropped[reason] = log.height - kept.height
        log = kept

    keep("no user id", pl.col("user_id").is_not_null() & (pl.col("user_id") != ""))
    keep("no item id", pl.col("item_id").is_not_null() & (pl.col("item_id") != ""))
    keep("no timestamp", pl.col("timestamp").is_finite().fill_null(value=False))
    keep("weight missing or not a number", pl.col("weight").is_finite().fill_null(value=False))
    if schema.timestamp is not None:
        latest = time.time() + _DAY if cleaning.max_time is None else cleaning.max_time
        keep("time out of range", pl.col("timestamp").is_between(cleaning.min_time, latest))
    if cleaning.min_weight is not None:
        keep("weight below min_weight", pl.col("weight") >= cleaning.min_weight)
    if cleaning.max_weight is not None:
        keep("weight above max_weight", pl.col("weight") <= cleaning.max_weight)
    if cleaning.drop_duplicates and schema.timestamp is not None:
        same = ["user_id", "item_id", "timestamp", "event_type"]
        keep("duplicate row", pl.struct(same).is_first_distinct())
    elif cleaning.drop_duplicates:
        keep("duplicate row", pl.struct("user_id", "item_id", "event_type").is_first_distinct())
    if cleaning.bot_events_per_day is not None and schema.timestamp is not None:
        day = (pl.col("timestamp") // _DAY).alias("day")
        busiest = log.group_by("user_id", day).len().group_by("user_id").agg(pl.col("len").max())
        bots = busiest.filter(pl.col("len") > cleaning.bot_events_per_day)["user_id"]
        keep(
            f"user with more than {cleaning.bot_events_per_day:,} events on one day",
            ~pl.col("user_id").is_in(bots.implode()),
        )
    before = log.height
    while cleaning.min_user_events or cleaning.min_item_events:
        core = log.filter(
            (pl.len().over("user_id") >= cleaning.min_user_events)
            & (pl.len().over("item_id") >= cleaning.min_item_events)
        )
        if core.height == log.height:
            break
        log = core
    if cleaning.min_user_events or cleaning.min_item_events:
        dropped["user or item with too few events"] = before - log.height
    report = CleaningReport(rows_in, log.height, dropped)
    _enough(log, report, source)
    return log.sort("user_id", "timestamp", "row", maintain_order=True).drop("row"), report


def _enough(log: pl.DataFrame, report: CleaningReport, source: str) -> None:
    for count, what in (
        (log.height, "interaction"),
        (log["user_id"].n_unique(), "user"),
        (log["item_id"].n_unique(), "item"),
    ):
        if count < 2:
            raise NotEnoughDataError(
                f"{source}: {count} {what}{'' if count == 1 else 's'} left after cleaning ({'; '.join(report.lines())})",
                fix="a recommender needs at least two users and two items: give more data or drop less",
                file=source,
            )


def _typed(table: pl.DataFrame, schema: Schema, source: str) -> pl.DataFrame:
    for column in (schema.user_id, schema.item_id, schema.timestamp, schema.event_type, schema.weight):
        if column is not None:
            need_column(table, column, source)
    rows = pl.int_range(table.height, eager=True).alias("row")
    return pl.DataFrame(
        [
            as_id(table[schema.user_id], source).alias("user_id"),
            as_id(table[schema.item_id], source).alias("item_id"),
            (rows.cast(pl.Float64) if schema.timestamp is None else _as_seconds(table[schema.timestamp], source)).alias(
                "timestamp"
            ),
            (
                pl.repeat("interaction", table.height, eager=True)
                if schema.event_type is None
                else as_id(table[schema.event_type], source).fill_null("unknown")
            ).alias("event_type"),
            (
                pl.repeat(1.0, table.height, eager=True)
                if schema.weight is None
                else as_numbers(table[schema.weight], source)
            ).alias("weight"),
            rows,
        ]
    )


def need_column(table: pl.DataFrame, column: str, source: str) -> None:
    """Raises ColumnMissingError that lists the columns there are."""
    if column not in table.columns:
        raise ColumnMissingError(
            f"{source} has no column {column!r}; it has: {', '.join(table.columns)}",
            fix="correct the column name in the schema",
            file=source,
            column=column,
        )


def as_id(column: pl.Series, source: str) -> pl.Series:
    """Ids as text: integers as they are, whole floats without their `.0` (pandas turns integers with gaps into floats)."""
    if column.dtype.is_float():
        whole = column.drop_nulls().drop_nans()
        if (whole.floor() != whole).any():
            raise ColumnTypeError(
                f"{source}: column {column.name!r} holds fractions, which cannot be ids",
                fix="name the right id column in the schema",
                file=source,
                column=column.name,
            )
        column = column.fill_nan(None).cast(pl.Int64)
    if column.dtype.is_nested():
        raise ColumnTypeError(
            f"{source}: column {column.name!r} holds lists, which cannot be ids",
            fix="name the right id column in the schema",
            file=source,
            column=column.name,
        )
    return column.cast(pl.String).str.strip_chars()


def as_numbers(column: pl.Series, source: str) -> pl.Series:
    """A float64 series; empty text is a missing value, other text an error that names its row."""
    if column.dtype == pl.String:
        text = column.str.strip_chars()
        numbers = text.cast(pl.Float64, strict=False)
        wrong = (numbers.is_null() & text.is_not_null() & (text != "")).arg_true()
    else:
        numbers = (
            column.cast(pl.Float64, strict=False) if not column.dtype.is_nested() else pl.Series([None] * len(column))
        )
        wrong = (numbers.is_null() & column.is_not_null()).arg_true()
    if len(wrong):
        row = int(wrong[0])
        raise ColumnTypeError(
            f"{source}, row {row + 1}: column {column.name!r} holds {column[row]!r}, which is not a number",
            fix="correct the value or the column name in the schema",
            file=source,
            column=column.name,
            row=row + 1,
        )
    return numbers


def _as_seconds(column: pl.Series, source: str) -> pl.Series:
    """Seconds since 1970 from dates, ISO text or numbers; numbers past the year 5000 are milli-, micro- or nanoseconds."""
    if column.dtype in (pl.Date, pl.Datetime):
        return column.cast(pl.Datetime("us")).dt.timestamp("us") / 1e6
    if column.dtype == pl.String and not _looks_numeric(column):
        try:
            parsed = column.str.strip_chars().str.to_datetime(time_unit="us", strict=False)
        except pl.exceptions.PolarsError:
            parsed = pl.Series([None] * len(column), dtype=pl.Datetime("us"))
        wrong = (parsed.is_null() & column.is_not_null() & (column != "")).arg_true()
        if len(wrong):
            row = int(wrong[0])
            raise ColumnTypeError(
                f"{source}, row {row + 1}: column {column.name!r} holds {column[row]!r}, which is no time",
                fix="use seconds since 1970 or ISO 8601 text such as 2024-05-01 12:30:00",
                file=source,
                column=column.name,
                row=row + 1,
            )
        if parsed.dtype.time_zone is not None:  # type: ignore[attr-defined]
            parsed = parsed.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return parsed.dt.timestamp("us") / 1e6
    numbers = as_numbers(column, source)
    typical = numbers.median()
    scale = 1.0
    while isinstance(typical, float) and typical / scale > 1e11:
        scale *= 1e3
    return numbers / scale


def _looks_numeric(column: pl.Series) -> bool:
    sample = column.drop_nulls().head(1_000).str.strip_chars()
    sample = sample.filter(sample != "")
    numeric = int(sample.cast(pl.Float64, strict=False).is_not_null().sum())
    return numeric >= len(sample) / 2
