"""The times of a log: one format for a whole column, found from all of its rows or told by the
schema.

Two readings that both make sense, or two formats in one column, are errors that show both.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import polars as pl

from distilrec.data.columns import as_numbers, row_number
from distilrec.data.readers import Log
from distilrec.data.schema import UNITS, Schema
from distilrec.errors import ColumnTypeError, ConfigError, first_line

PLAUSIBLE_FROM = 788_918_400.0  # 1995-01-01: no log of users is older
_DAY = 86_400.0
_SAMPLE = 1_000
# Numbers whose digits are a date, with how many there are.
_DIGITS = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_DATES = (
    "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%d.%m.%Y",
    "%m.%d.%Y", "%d %b %Y", "%b %d, %Y", "%d-%b-%Y", "%d/%b/%Y", "%a, %d %b %Y", "%d %B %Y",
    "%B %d, %Y", "%Y%m%d",
)  # fmt: skip
_CLOCKS = ("", " %H:%M:%S%.f", " %H:%M", " %I:%M:%S %p", " %I:%M %p")
_OTHERS = ("%Y%m%dT%H%M%S", "%Y%m%dT%H%M%S%z", "%a %b %d %H:%M:%S %z %Y", "%d/%b/%Y:%H:%M:%S %z")


@dataclass(frozen=True)
class TimeFormat:
    """How the times of a log are written. pattern: of text, or of numbers whose digits are a date;
    scale: what other numbers are divided by to be seconds; zone: of times that name none;
    dates_only: the times have no time of day; notes: for the report.
    """

    kind: Literal["rows", "dates", "text", "numbers"]
    pattern: str | None = None
    scale: float = 1.0
    zone: str = "UTC"
    dates_only: bool = False
    notes: tuple[str, ...] = ()


def time_format(log: Log, schema: Schema) -> TimeFormat:
    """Return the one format of the time column. Raises ColumnTypeError where there is none or more
    than one, and ConfigError.
    """
    column, zone = schema.timestamp, schema.timezone or "UTC"
    if column is None:
        return TimeFormat("rows")
    dtype, form = log.schema()[column], schema.timestamp_format
    if isinstance(dtype, pl.Date | pl.Datetime):
        zoneless = isinstance(dtype, pl.Date) or dtype.time_zone is None
        dates_only = isinstance(dtype, pl.Date)
        return TimeFormat("dates", zone=zone, dates_only=dates_only, notes=_notes(zoneless, schema))
    if not (dtype.is_numeric() or isinstance(dtype, pl.String | pl.Null)):
        raise ColumnTypeError(
            f"{log.name}: column {column!r} holds {dtype}, which is not a time",
            fix="give times, dates, text or seconds since 1970",
            file=log.name,
            column=column,
        )
    if form is not None:
        return _declared(log, schema, form, zone)
    text = _text(column, dtype)
    number = (
        text.cast(pl.Float64, strict=False)
        if isinstance(dtype, pl.String)
        else pl.col(column).cast(pl.Float64)
    )
    number = number.fill_nan(None)
    # The columns first, then the figures: in one step, polars makes the numbers for each figure.
    columns = log.scan().select(number=number, filled=text != "")
    figures = columns.select(
        pl.col("number").count(),
        pl.col("filled").sum(),
        pl.col("number").min().alias("first"),
        pl.col("number").max().alias("last"),
    )
    numbers, filled, first, last = figures.collect(engine="streaming").row(0)
    if isinstance(dtype, pl.String) and filled - numbers > numbers:
        return _text_format(log, schema, zone)
    if numbers and (unit := _only_unit(first, last)) is not None:
        return TimeFormat("numbers", scale=UNITS[unit])
    return _number_format(log, schema, number, zone)


def as_seconds(column: pl.Series, times: TimeFormat, source: str, rows: pl.Series) -> pl.Series:
    """Return seconds since 1970, null where the time is missing. Raises ColumnTypeError.

    rows: the number of each row, from 0.
    """
    if times.kind == "dates":
        return _seconds(column, times.zone)
    if times.kind == "numbers" and times.pattern is None:
        return as_numbers(column, source, rows) / times.scale
    assert times.pattern is not None
    if column.dtype.is_numeric():
        column = _digits(column)
    text = column.cast(pl.String).str.strip_chars()
    if times.kind == "numbers":
        text = text.str.replace(r"\.0+$", "")
    parsed = _parsed(text, times.pattern)
    wrong = (parsed.is_null() & (text != "")).fill_null(value=False).arg_true()
    if len(wrong):
        position = int(wrong[0])
        row = row_number(rows, position)
        raise ColumnTypeError(
            f"{source}, row {row:,}: column {column.name!r} holds {column[position]!r}, which is "
            "not a time"
            f"{'' if times.pattern == _ISO else f' in the format of the others, {times.pattern}'}",
            fix="use one format in all rows, such as seconds since 1970 or 2024-05-01 12:30:00, "
            "or set timestamp_format in [data.schema]",
            file=source,
            column=column.name,
            row=row,
        )
    return _seconds(parsed, times.zone)


def written(seconds: pl.Series, times: TimeFormat, dtype: pl.DataType) -> pl.Series:
    """Return seconds since 1970 (float64) as a log writes its times, in a column of this type: the
    inverse of `as_seconds`, but for parts of a second that the form has no place for.
    """
    if times.kind == "numbers" and times.pattern is None:
        numbers = seconds * times.scale
        return numbers if dtype.is_float() else numbers.floor().cast(pl.Int64).cast(dtype)
    moments = (seconds * 1e6).round().cast(pl.Int64).cast(pl.Datetime("us", "UTC"))
    local = moments.dt.convert_time_zone(times.zone)
    if times.pattern is None:
        zone = dtype.time_zone if isinstance(dtype, pl.Datetime) else None
        told = moments.dt.convert_time_zone(zone) if zone else local.dt.replace_time_zone(None)
        return told.cast(dtype)
    return local.dt.strftime(times.pattern).cast(dtype)


def _digits(column: pl.Series) -> pl.Series:
    """Return numbers as the digits that they are written with."""
    return column.cast(pl.Int64, strict=False).cast(pl.String)


_ISO = "%Y-%m-%d %H:%M:%S%.f"


def _text(column: str, dtype: pl.DataType) -> pl.Expr:
    return (
        pl.col(column).str.strip_chars()
        if isinstance(dtype, pl.String)
        else pl.col(column).cast(pl.String)
    )


def _seconds(values: pl.Series, zone: str) -> pl.Series:
    """Return seconds since 1970 of dates and times; those that name no zone are times in `zone`."""
    values = values.cast(pl.Datetime("us")) if isinstance(values.dtype, pl.Date) else values
    values = values.dt.cast_time_unit("us")
    if zone != "UTC" and values.dtype.time_zone is None:  # type: ignore[attr-defined]
        local = values.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
        # What a clock set forward leaves out is an hour later.
        later = values.dt.offset_by("1h").dt.replace_time_zone(
            zone, ambiguous="earliest", non_existent="null"
        )
        values = local.fill_null(later)
    return values.dt.timestamp("us") / 1e6


def _normal(text: pl.Expr) -> pl.Expr:
    """Return times as text, in the form that the patterns have: a blank before the clock, zones as
    offsets without a blank.
    """
    return (
        text.str.replace(r"^(\d{4}-\d{1,2}-\d{1,2})[Tt](\d)", "${1} ${2}")
        .str.replace(r"(:\d{2}),(\d{1,9})", "${1}.${2}")
        .str.replace(r"\s*(?:Z|z|UTC|GMT)$", "+0000")
        .str.replace(r"(:\d{2}(?:\.\d+)?)\s*([+-]\d{2}:?\d{2})$", "${1}${2}")
        .str.replace(r"(:\d{2}(?:\.\d+)?)\s*([+-]\d{2})$", "${1}${2}00")
    )


def _parse(text: pl.Expr, pattern: str) -> pl.Expr:
    parsed = _normal(text).str.to_datetime(pattern, time_unit="us", strict=False)
    # Two digits of a year are no year.
    return pl.when(parsed.dt.year() >= 1000).then(parsed)


def _parsed(text: pl.Series, pattern: str) -> pl.Series:
    try:
        return text.to_frame("text").select(_parse(pl.col("text"), pattern)).to_series()
    except pl.exceptions.PolarsError as problem:
        raise ConfigError(
            f"times cannot be read as {pattern!r}: {first_line(problem)}",
            fix='for example timestamp_format = "%d/%m/%Y %H:%M"',
            parameter="timestamp_format",
        ) from None


def _declared(log: Log, schema: Schema, form: str, zone: str) -> TimeFormat:
    if form in UNITS:
        return TimeFormat("numbers", scale=UNITS[form])
    if form == "yyyymmdd":
        return TimeFormat(
            "numbers", "%Y%m%d", zone=zone, dates_only=True, notes=_notes(True, schema)
        )
    dates_only = not any(mark in form for mark in ("%H", "%I", "%T", "%R", "%s", "%c", "%X", "%r"))
    _parsed(pl.Series(["x"]), form)
    return TimeFormat(
        "text", form, zone=zone, dates_only=dates_only, notes=_notes("%z" not in form, schema)
    )


def _notes(zoneless: bool, schema: Schema) -> tuple[str, ...]:
    if not zoneless:
        return ()
    if schema.timezone is None:
        return (
            "the times name no zone and are read as UTC: set data.schema.timezone if they are "
            "local times",
        )
    return (f"the times name no zone and are read as times in {schema.timezone}",)


def _only_unit(first: float, last: float) -> str | None:
    """Return the unit in which all numbers between two are plausible times, None if there is none.

    The ranges of the units and of dates as digits do not overlap: no other reading is plausible
    then, and the log need not be read again to look for one.
    """
    latest = time.time() + _DAY
    fits = (
        unit
        for unit, scale in UNITS.items()
        if first >= PLAUSIBLE_FROM * scale and last <= latest * scale
    )
    return next(fits, None)


def _number_format(log: Log, schema: Schema, number: pl.Expr, zone: str) -> TimeFormat:
    """Seconds, milli-, micro- or nanoseconds since 1970, or dates as digits: what makes all of them
    plausible times.
    """
    column, latest = str(schema.timestamp), time.time() + _DAY
    fits = {
        unit: number.is_between(PLAUSIBLE_FROM * scale, latest * scale)
        for unit, scale in UNITS.items()
    }
    whole = number.cast(pl.Int64, strict=False)
    year = datetime.now(UTC).year + 1
    for digits, pattern in _DIGITS.items():
        date = whole // 10 ** (digits - 8)
        fits[pattern] = (
            (date // 10_000).is_between(1995, year)
            & (date // 100 % 100).is_between(1, 12)
            & (date % 100).is_between(1, 31)
            & (number == number.floor())
        )
    counted = log.scan().select(
        number.count().alias("all"),
        number.median().alias("median"),
        *(fit.sum().alias(name) for name, fit in fits.items()),
    )
    row = counted.collect(engine="streaming").row(0, named=True)
    found = [name for name in fits if row[name]]
    units = [name for name in found if name in UNITS]
    if len(found) > 1 and units:
        raise _two_formats(log, column, [(name, fits[name]) for name in found[:2]])
    dates = max(_DIGITS.values(), key=lambda pattern: row[pattern])
    if not units and row[dates] and row[dates] * 2 >= row["all"]:
        note = f"the numbers in column {column!r} are read as dates, digit by digit ({dates})"
        return TimeFormat(
            "numbers",
            dates,
            zone=zone,
            dates_only=dates == "%Y%m%d",
            notes=(note, *_notes(True, schema)),
        )
    if units:
        return TimeFormat("numbers", scale=UNITS[units[0]])
    if row["median"] is not None and row["median"] > latest:
        readings = ", ".join(
            f"{_shown(row['median'] / scale)} in {unit}" for unit, scale in UNITS.items()
        )
        raise ColumnTypeError(
            f"{log.name}: column {column!r} holds numbers such as {row['median']:.0f}, and no "
            "reading of them is a "
            f"plausible time: {readings}",
            fix="convert them to seconds since 1970, or set timestamp_format (such as "
            '"seconds") in [data.schema]',
            file=log.name,
            column=column,
        )
    return TimeFormat("numbers")


def _shown(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):
        return "a year past 9999"


def _two_formats(log: Log, column: str, fits: list[tuple[str, pl.Expr]]) -> ColumnTypeError:
    numbered = log.scan().select(column).with_row_index("row")
    first = [numbered.filter(fit).head(1).collect(engine="streaming").row(0) for _, fit in fits]
    shown = " and ".join(
        f"{value!r} in row {row + 1:,}, {name if name in UNITS else f'a date written as {name}'}"
        for (row, value), (name, _) in zip(first, fits, strict=True)
    )
    return ColumnTypeError(
        f"{log.name}: column {column!r} holds times of two kinds: {shown}",
        fix='write all of them in one way, or set timestamp_format (such as "seconds") in '
        "[data.schema]",
        file=log.name,
        column=column,
        row=max(row for row, _ in first) + 1,
    )


def _text_format(log: Log, schema: Schema, zone: str) -> TimeFormat:
    """Return the one pattern that fits the text of all rows."""
    column = str(schema.timestamp)
    text = pl.col(column).str.strip_chars()
    filled = log.scan().select(text).filter(pl.col(column) != "")
    sample = filled.head(_SAMPLE).collect()[column]
    patterns = [
        *(
            f"{date}{clock}{offset}"
            for date in _DATES
            for clock in _CLOCKS
            for offset in ("", "%z")
        ),
        *_OTHERS,
    ]
    patterns = [
        pattern for pattern in patterns if "%H" in pattern or "%I" in pattern or "%z" not in pattern
    ]
    fit = {pattern: len(sample) - _parsed(sample, pattern).null_count() for pattern in patterns}
    best = max(fit.values())
    if best == 0:
        return TimeFormat("text", _ISO, zone=zone)  # which names the first row
    chosen = [pattern for pattern in patterns if fit[pattern] == best]
    if len(chosen) > 1:
        parsed = {
            pattern: _parse(pl.col(column), pattern).dt.replace_time_zone(None)
            for pattern in chosen
        }
        counts = filled.select(value.count().alias(pattern) for pattern, value in parsed.items())
        row = counts.collect(engine="streaming").row(0, named=True)
        chosen = [pattern for pattern in chosen if row[pattern] == max(row.values())]
        for other in chosen[1:]:
            differs = (
                filled.filter(parsed[chosen[0]] != parsed[other])
                .head(1)
                .collect(engine="streaming")[column]
            )
            if len(differs):
                raise _ambiguous(log, column, differs, chosen[0], other)
    pattern = chosen[0]
    dates_only = "%H" not in pattern and "%I" not in pattern
    return TimeFormat(
        "text", pattern, zone=zone, dates_only=dates_only, notes=_notes("%z" not in pattern, schema)
    )


def _ambiguous(log: Log, column: str, value: pl.Series, first: str, second: str) -> ColumnTypeError:
    readings = " and ".join(
        f"{_parsed(value, pattern)[0]:%Y-%m-%d} as {pattern}" for pattern in (first, second)
    )
    return ColumnTypeError(
        f"{log.name}: column {column!r} holds times that can be read in two ways: {value[0]!r} is "
        f"{readings}",
        fix=f'set timestamp_format = "{first}" or "{second}" in [data.schema]',
        file=log.name,
        column=column,
    )
