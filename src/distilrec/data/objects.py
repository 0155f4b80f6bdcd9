"""Python's objects as columns: what pandas frames and databases hold."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from math import isnan
from typing import Any
from uuid import UUID

import polars as pl

from distilrec.data.separated import distinct
from distilrec.errors import ColumnTypeError, ConfigError


def from_pandas(source: object) -> pl.DataFrame:
    """Return a pandas frame as a polars frame, named index levels as columns. Raises ConfigError
    for anything else.
    """
    if type(source).__module__.split(".")[0] != "pandas" or not hasattr(source, "columns"):
        raise ConfigError(
            "a table must be a path, a polars frame or a pandas frame, not "
            f"{type(source).__name__}",
            fix="convert it with polars.DataFrame(...)",
        )
    frame: Any = source
    levels = [name for name in frame.index.names if name is not None and name not in frame.columns]
    if levels:
        others = [name for name in frame.index.names if name not in levels]
        frame = frame.reset_index(level=others, drop=True) if others else frame
        frame = frame.reset_index()
    names = [str(name) for name in frame.columns]
    distinct(names, "the frame")
    return pl.DataFrame(
        [_from_pandas_column(name, frame.iloc[:, position]) for position, name in enumerate(names)]
    )


def _from_pandas_column(name: str, column: Any) -> pl.Series:
    """Return one column, through numpy where it has a type for it and through Python's objects
    otherwise: no pyarrow needed.
    """
    kind = getattr(column.dtype, "kind", "O")
    if kind == "M":
        if getattr(column.dtype, "tz", None) is not None:
            utc = (
                column.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy().astype("datetime64[us]")
            )
            return pl.Series(name, utc).dt.replace_time_zone("UTC")
        return pl.Series(name, column.to_numpy().astype("datetime64[us]"))
    if kind in "iufb" and type(column.dtype).__module__.startswith("numpy"):
        return pl.Series(name, column.to_numpy())
    return column_of(name, column.tolist())


def without_objects(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a frame whose columns of Python's objects (such as UUIDs) became text."""
    objects = [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.Object)]
    return (
        frame.with_columns([column_of(name, frame[name].to_list()) for name in objects])
        if objects
        else frame
    )


def column_of(name: str, values: list[Any], table: str = "the frame") -> pl.Series:
    """Return Python's objects as a column: mixed ones as text, whole numbers exactly. table:
    what messages call it. Raises ColumnTypeError.
    """
    values = [None if _is_missing(value) else value for value in values]
    values = [_without_zone(value) if isinstance(value, datetime) else value for value in values]
    kinds = {type(value) for value in values if value is not None}
    if any(issubclass(kind, UUID | Decimal) for kind in kinds) or (
        len(kinds) > 1 and all(issubclass(kind, str | int | float | bytes) for kind in kinds)
    ):
        values = [None if value is None else _as_text(value) for value in values]
    try:
        return pl.Series(name, values, strict=True)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as problem:
        if kinds <= {int}:
            return pl.Series(name, [None if value is None else str(value) for value in values])
        first = next(value for value in values if value is not None)
        raise ColumnTypeError(
            f"{table}: column {name!r} holds values that a table cannot hold, such as "
            f"{first!r} ({problem})",
            fix="give text, numbers, times or lists of these",
            column=name,
        ) from None


def _as_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return f"{int(value)}.0"  # such an id is refused where it is 2^53 or more
    return format(value, "f") if isinstance(value, Decimal) else str(value)


def _without_zone(value: datetime) -> datetime:
    """Return a time as polars takes it: pandas' own class as Python's, a zone as UTC."""
    plain: datetime = value.to_pydatetime(warn=False) if hasattr(value, "to_pydatetime") else value
    return plain


def _is_missing(value: object) -> bool:
    """Whether a value is None, NaN, pandas.NA or pandas.NaT: the missing values that a pandas
    column of objects may hold.
    """
    return (
        value is None
        or type(value).__name__ in {"NAType", "NaTType"}
        or (isinstance(value, float) and isnan(value))
    )
