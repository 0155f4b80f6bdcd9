"""Declared checks of the tables: what must hold for every row, and what happens to rows for which
it does not.

Declared in the configuration, made into a dataframely schema, run on every table before anything
else is done with it:

    [[data.checks]]
    column = "rating"
    minimum = 1
    maximum = 5
    otherwise = "fail"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import polars as pl

from distilrec.data.schema import need_column
from distilrec.errors import CheckFailedError, ColumnTypeError, ConfigError
from distilrec.settings import Settings

Table = Literal["interactions", "users", "items"]
_ROW = "\0row"  # no column of a text file can have this name
_SHOWN = 3  # rows that a message names


class DataCheck(Settings, frozen=True):
    """What must hold for a column. A missing value breaks `required` only."""

    column: str
    """Name of the column."""
    table: Table = "interactions"
    """Table of the column."""
    required: bool = False
    """Whether every row must have a value."""
    minimum: float | None = None
    """Smallest number that is allowed."""
    maximum: float | None = None
    """Largest number that is allowed."""
    allowed: tuple[str, ...] | None = None
    """List of all values that are allowed, as text."""
    pattern: str | None = None
    """Regular expression that the whole text must match."""
    unique: bool = False
    """Whether no value may occur twice, in the user or item table."""
    otherwise: Literal["drop", "fail"] = "drop"
    """`drop` leaves rows that break the check out and counts them, `fail` stops and names the
    first.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rules():
            raise ConfigError(
                f"the check of column {self.column!r} demands nothing",
                fix="add required, minimum, maximum, allowed, pattern or unique",
                parameter="data.checks",
            )
        if self.unique and self.table == "interactions":
            raise ConfigError(
                f"the check of column {self.column!r} demands unique values in the log, which is "
                "read in parts",
                fix="leave it out: duplicate rows are dropped by cleaning.drop_duplicates",
                parameter="data.checks",
            )
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
                # polars knows fewer kinds of expression.
                pl.Series([""]).str.contains(f"^(?:{self.pattern})$")
            except (re.error, pl.exceptions.PolarsError) as problem:
                raise ConfigError(
                    f"the pattern of column {self.column!r} is not a regular expression: {problem}",
                    fix="correct it",
                    parameter="data.checks",
                ) from None

    def rules(self, dtype: pl.DataType | None = None) -> dict[str, pl.Expr]:
        """Return the expression that is true where all is well, by what it demands. dtype: of the
        column, text if left out.
        """
        value = pl.col(self.column)
        text = value.cast(pl.String, strict=False)
        number = value.cast(pl.Float64, strict=False).fill_nan(None)
        if dtype is not None and dtype.is_float():  # 5.0 is 5
            whole = value.cast(pl.Int64, strict=False)
            text = (
                pl.when(whole.cast(pl.Float64) == value).then(whole.cast(pl.String)).otherwise(text)
            )
            value = value.fill_nan(None)
        elif isinstance(dtype, pl.String):
            number = value.str.strip_chars().cast(pl.Float64, strict=False).fill_nan(None)
        missing = value.is_null() | (text.str.strip_chars() == "").fill_null(value=False)
        rules = {}
        if self.required:
            rules["is required"] = ~missing
        if self.minimum is not None:
            rules[f"is at least {self.minimum:g}"] = number >= self.minimum
        if self.maximum is not None:
            rules[f"is at most {self.maximum:g}"] = number <= self.maximum
        if self.allowed is not None:
            rules[f"is one of {', '.join(self.allowed)}"] = text.is_in(list(self.allowed))
        if self.pattern is not None:
            rules[f"matches {self.pattern}"] = text.str.contains(f"^(?:{self.pattern})$")
        if self.unique:
            rules["is unique"] = value.is_unique()
        # What cannot be read as a number or text is wrong; what is missing is not, unless it is
        # required.
        return {
            f"{self.column} {demand}": rule
            if demand == "is required"
            else missing | rule.fill_null(value=False)
            for demand, rule in rules.items()
        }


def _same(expression: pl.Expr, schema: object) -> pl.Expr:
    """Return what a rule of a dataframely schema is asked for."""
    return expression


def check_table(
    rows: pl.DataFrame, checks: Sequence[DataCheck], table: Table, source: str, first: int = 0
) -> tuple[pl.Series, dict[str, int]]:
    """Return the numbers of the rows that pass, in their order, and how many rows each rule that
    drops leaves out.

    source: the name of the table in messages; first: the number of its first row there. A row that
    breaks several rules is counted with the first of them. Raises CheckFailedError where a rule
    that fails is broken, and ColumnMissingError.
    """
    of_table = [check for check in checks if check.table == table]
    if not of_table:
        return pl.int_range(rows.height, eager=True), {}
    _need_columns(rows, of_table, source)
    kept, broken = _schema(rows.schema, of_table).filter(
        rows.with_row_index(_ROW).select({_ROW, *(check.column for check in of_table)})
    )
    counts = broken.counts()
    for check in of_table:
        for rule in check.rules() if check.otherwise == "fail" else ():
            if rule in counts:
                raise _failed(check, rule, counts[rule], broken.details(), source, first)
    return kept[_ROW].sort(), _left_out(of_table, broken.details().sort(_ROW))


def _need_columns(rows: pl.DataFrame, checks: Sequence[DataCheck], source: str) -> None:
    """Raise ColumnMissingError or ColumnTypeError for a column that cannot be checked."""
    for check in checks:
        need_column(rows.columns, check.column, source)
    for check in checks:
        if rows.schema[check.column].is_nested():
            raise ColumnTypeError(
                f"{source}: column {check.column!r} holds lists or objects, which no check is for",
                fix="remove the check of that column",
                file=source,
                column=check.column,
            )


def _schema(types: pl.Schema, checks: Sequence[DataCheck]) -> Any:
    """Return the dataframely schema with the rules of these checks, and a column of row numbers."""
    import dataframely

    members: dict[str, Any] = {
        column: dataframely.Any() for column in {_ROW, *(check.column for check in checks)}
    }
    for check in checks:
        members |= {
            name: dataframely.rule()(partial(_same, expression))
            for name, expression in check.rules(types[check.column]).items()
        }
    return type("Checks", (dataframely.Schema,), members)


def _failed(
    check: DataCheck, rule: str, count: int, details: pl.DataFrame, source: str, first: int
) -> CheckFailedError:
    """Return the error for a broken rule, with the first rows that break it."""
    bad = details.filter(_breaks(rule)).head(_SHOWN).select(_ROW, check.column)
    shown = ", ".join(f"row {first + row + 1} ({value!r})" for row, value in bad.iter_rows())
    return CheckFailedError(
        f"{source}: {count:,} rows break the check that {rule}: {shown}",
        fix='correct them, or set otherwise = "drop" in that check to leave such rows out',
        file=source,
        column=check.column,
        rule=rule,
    )


def _left_out(checks: Sequence[DataCheck], details: pl.DataFrame) -> dict[str, int]:
    """Return the number of rows that each broken rule leaves out, each row counted once."""
    left_out: dict[str, int] = {}
    for rule in (rule for check in checks for rule in check.rules()):
        if rule in details.columns:
            if count := details.filter(_breaks(rule)).height:
                left_out[rule] = count
            details = details.filter(~_breaks(rule))
    return left_out


def _breaks(rule: str) -> pl.Expr:
    return pl.col(rule).cast(pl.String) == "invalid"
