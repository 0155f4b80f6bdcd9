"""The source that the log of a run came from, asked for what has come since: a query, a table, or
files.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import polars as pl

from distilrec.data.queries import Query, Since
from distilrec.data.readers import Log, open_answer, open_log, open_table, readable
from distilrec.data.schema import Schema
from distilrec.data.source import Table
from distilrec.data.tables import DeltaTable, IcebergTable
from distilrec.data.times import PLAUSIBLE_FROM, TimeFormat, as_seconds, time_format, written
from distilrec.errors import ConfigError

_ROWS = 1_000_000  # in memory together
_DAY = 86_400.0
# Times as text that sort as they follow each other, by their dates
_SORTED = ("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d")
_LIKE = {
    date: "^"
    + date.replace(".", r"\.")
    .replace("%Y", r"\d{4}")
    .replace("%m", r"\d\d?")
    .replace("%d", r"\d\d?")
    for date in _SORTED
}
_GIVE = "give the new rows in a file (--log)"


@dataclass(frozen=True)
class OwnSource:
    """The source of a run's log. table: what it is; overlap: seconds before the newest time of the
    log from which on it is asked for rows, because some come late.
    """

    table: Table
    overlap: float

    def since(self, log: Log, schema: Schema, scratch: Path) -> Log:
        """Return the rows of the source since the newest time of the log minus the overlap; the log
        has some of them already. Rows without a time are left out by
        databases.

        log: of the run so far. scratch: a folder. Raises what the source raises, and ConfigError
        where the log has no times, or times that cannot be compared as they are written.
        """
        with readable(log.name, scratch):
            since, times = self._moment(log, schema)
        if isinstance(self.table.source, Query):
            return open_answer(self.table.source, scratch, since)
        if isinstance(self.table.source, DeltaTable | IcebergTable):
            keep = _at_least(since, times, log.schema())
            opened = open_table(self.table.source, scratch, keep)
            note = f"{opened.name}: {opened.rows:,} rows since {since.value}"
            return replace(opened, notes=(*opened.notes, note))
        opened = self.table.open(scratch)
        rows = opened.since(since, _at_least(since, times, opened.schema()))
        (scratch / "since").mkdir(parents=True)
        with readable(opened.name, scratch):
            rows.sink_parquet(scratch / "since/log.parquet")
        newest = open_log(scratch / "since", scratch)
        note = f"{opened.name}: {newest.rows:,} rows since {since.value}"
        return replace(newest, name=opened.name, notes=(*opened.notes, note))

    def _moment(self, log: Log, schema: Schema) -> tuple[Since, TimeFormat]:
        """Return from when on the source is asked, as its column of times writes it."""
        if schema.timestamp is None:
            raise ConfigError(
                "a source cannot be asked for its newest rows without a column of times",
                fix=f"name it in data.schema.timestamp and run again, or {_GIVE}",
                parameter="data.schema.timestamp",
            )
        times = time_format(log, schema)
        newest = max(_times(log, schema.timestamp, times), default=None)
        if newest is None:
            raise ConfigError(
                f"the log of the run has no row with a time in {schema.timestamp!r} up to now",
                fix=_GIVE,
                parameter="data.schema.timestamp",
            )
        value = _value(newest - self.overlap, times, log.schema()[schema.timestamp])
        return Since(schema.timestamp, value), times


def _times(log: Log, column: str, times: TimeFormat) -> Iterator[float]:
    """Yield the newest time of each slice of a log; not of rows from the future, which would hide
    all that comes until then.
    """
    now = time.time()
    for first in range(0, log.rows, _ROWS):
        read = log.slice(first, _ROWS, [column])[column]
        rows = pl.Series(range(first, first + len(read)), dtype=pl.Int64)
        seconds = as_seconds(read, times, log.name, rows)
        newest = seconds.filter((seconds <= now).fill_null(value=False)).max()
        if newest is not None:
            yield float(newest)  # type: ignore[arg-type]


def _value(seconds: float, times: TimeFormat, dtype: pl.DataType) -> float | str | datetime:
    """Return a moment as the times of a log are written; text as its date alone, which every text
    of that day or later follows.
    """
    if times.kind == "numbers" and times.pattern is None:
        value = seconds * times.scale
        return value if dtype.is_float() else int(value // 1)
    if times.kind != "text":
        return written(pl.Series([seconds]), times, dtype).item()  # type: ignore[no-any-return]
    pattern = times.pattern or ""
    sorts = next((date for date in _SORTED if pattern.startswith(date)), None)
    if sorts is None:
        raise ConfigError(
            f"times written as {pattern} cannot be compared as text",
            fix=f"write them as 2024-05-31 12:30:00 or as seconds since 1970, or {_GIVE}",
            parameter="data.schema.timestamp",
        )
    day = seconds - (_DAY if "%z" in pattern else 0.0)  # a text may name any zone
    date = TimeFormat("text", sorts, zone=times.zone)
    return str(written(pl.Series([day]), date, pl.String()).item())


def _at_least(since: Since, times: TimeFormat, schema: pl.Schema) -> pl.Expr:
    """Return the condition on the column of times of files. Numbers in files of text are text.

    Rows without a time meet it, and those whose times are not of the form of the log: the cleaning
    counts the ones, and refuses the others by their number.
    """
    column = pl.col(since.column)
    if times.kind == "text":
        date = next(form for form in _SORTED if (times.pattern or "").startswith(form))
        return (column >= since.value) | ~column.str.contains(_LIKE[date]).fill_null(value=False)
    if times.kind == "numbers" and isinstance(schema[since.column], pl.String):
        column = column.str.strip_chars().cast(pl.Float64, strict=False)
    wanted = column.is_null() | (column >= pl.lit(since.value))
    if times.kind == "numbers" and times.pattern is None:  # seconds among milliseconds
        wanted |= column < PLAUSIBLE_FROM * times.scale
    return wanted
