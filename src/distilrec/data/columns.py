"""Columns of tables as ids, event types and numbers."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from distilrec.errors import ColumnTypeError
from distilrec.ids import MAX_CHARACTERS, MAX_WHOLE_FLOAT, REFUSED, SPACES, WHOLE_FLOAT

_CHARACTERS = "holds characters that no id may have"
_LONG = f"has more than {MAX_CHARACTERS} characters"
_LARGE = "is a float so large that several integers are the same"
_INFINITE = "is infinite"
PROBLEMS = (_CHARACTERS, _LONG, _LARGE, _INFINITE)


@dataclass(frozen=True)
class Ids:
    """A column of ids. values: text, null where there is none; problems: one of PROBLEMS where a
    value is refused, null elsewhere; from_floats: how many were whole numbers written as floats.
    """

    values: pl.Series
    problems: pl.Series
    from_floats: int


def as_ids(column: pl.Series, source: str) -> Ids:
    """Return the ids in a column, by the rule of `distilrec.ids`. Raises ColumnTypeError for a
    column that cannot hold ids.
    """
    dtype = column.dtype
    nothing = pl.repeat(None, len(column), dtype=pl.String, eager=True)
    if dtype.is_integer() or isinstance(dtype, pl.Null):
        return Ids(column.cast(pl.String), nothing, 0)
    if dtype.is_float():
        return _floats(column, source)
    if isinstance(dtype, pl.Decimal):
        text = column.cast(pl.String).str.replace(r"\.0+$", "")
        if text.str.contains(".", literal=True).any():
            raise _not_ids(column, "fractions", source)
        return Ids(text, nothing, 0)
    if not isinstance(dtype, pl.String):
        what = (
            "lists or objects"
            if dtype.is_nested()
            else "dates"
            if dtype.is_temporal()
            else f"{dtype} values"
        )
        raise _not_ids(column, what, source)
    return _texts(column)


def _floats(column: pl.Series, source: str) -> Ids:
    column = column.fill_nan(None)
    infinite = column.is_infinite()
    # A float of 32 bits is exact up to 2^24 only.
    limit = 2.0**24 if isinstance(column.dtype, pl.Float32) else MAX_WHOLE_FLOAT
    if ((column.floor() != column) & ~infinite).any():
        raise _not_ids(column, "fractions", source)
    large = (column.abs() >= limit) & ~infinite
    values = column.set(infinite | large, None).cast(pl.Int64).cast(pl.String)
    frame = pl.select(
        problem=pl.when(infinite).then(pl.lit(_INFINITE)).when(large).then(pl.lit(_LARGE))
    )
    return Ids(values, frame["problem"], len(values) - values.null_count())


def _texts(column: pl.Series) -> Ids:
    text = column.str.strip_chars(SPACES)
    refused = column.str.contains(REFUSED)
    long = text.str.len_chars() > MAX_CHARACTERS
    problem = pl.when(refused).then(pl.lit(_CHARACTERS)).when(long).then(pl.lit(_LONG))
    floats = text.str.ends_with("0") & text.str.contains(".0", literal=True)
    from_floats = 0
    if floats.any():
        whole = text.set(~floats.fill_null(value=False), None).str.extract(WHOLE_FLOAT, 1)
        large = whole.cast(pl.Float64, strict=False).abs() >= MAX_WHOLE_FLOAT
        problem = problem.when(large).then(pl.lit(_LARGE))
        whole = whole.replace("-0", "0")
        text = pl.select(pl.when(whole.is_not_null()).then(whole).otherwise(text)).to_series()
        from_floats = len(whole) - whole.null_count() - int(large.sum() or 0)
    problems = pl.select(problem.alias("problem")).to_series()
    values = pl.select(
        pl.when(problems.is_null() & (text != "")).then(text).alias("id")
    ).to_series()
    return Ids(values, problems, from_floats)


def _not_ids(column: pl.Series, what: str, source: str) -> ColumnTypeError:
    return ColumnTypeError(
        f"{source}: column {column.name!r} holds {what}, which cannot be ids",
        fix="name the right id column in the schema",
        file=source,
        column=column.name,
    )


def as_event_types(column: pl.Series, source: str) -> pl.Series:
    """Return the types of events as text, null where there is none."""
    if column.dtype.is_float() and ((column.floor() != column) & column.is_finite()).any():
        column = column.cast(pl.String)
    if isinstance(column.dtype, pl.Boolean):
        column = column.cast(pl.String)
    return as_ids(column, source).values


def as_numbers(column: pl.Series, source: str, rows: pl.Series | None = None) -> pl.Series:
    """Return a float64 series; empty text is a missing value, other text an error that names its
    row.

    rows: the number of each row in the table, from 0; in order if left out.
    """
    if column.dtype == pl.String:
        text = column.str.strip_chars()
        numbers = text.cast(pl.Float64, strict=False)
        wrong = (numbers.is_null() & text.is_not_null() & (text != "")).arg_true()
    else:
        plain = column.dtype.is_numeric() or isinstance(column.dtype, pl.Boolean | pl.Null)
        numbers = (
            column.cast(pl.Float64, strict=False)
            if plain
            else pl.repeat(None, len(column), dtype=pl.Float64, eager=True)
        )
        wrong = (numbers.is_null() & column.is_not_null()).arg_true()
    if len(wrong):
        position = int(wrong[0])
        row = row_number(rows, position)
        raise ColumnTypeError(
            f"{source}, row {row:,}: column {column.name!r} holds {column[position]!r}, which is "
            "not a number",
            fix="correct the value (no thousands separators, a decimal point) or the column name "
            "in the schema",
            file=source,
            column=column.name,
            row=row,
        )
    return numbers


def row_number(rows: pl.Series | None, position: int) -> int:
    """Return the number of a row in its table, counted from 1."""
    return (position if rows is None else int(rows[position])) + 1
