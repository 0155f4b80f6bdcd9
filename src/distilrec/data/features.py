"""Fitting of feature encoders, on training users and items only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from distilrec.data.columns import PROBLEMS, as_ids, as_numbers, row_number
from distilrec.data.schema import Feature, need_column
from distilrec.errors import ColumnTypeError, ConfigError, InvalidValueError
from distilrec.features.encoding import (
    CategoricalEncoding,
    Encoding,
    FeatureEncoder,
    MultiEncoding,
    NumericEncoding,
    TextEncoding,
    VectorEncoding,
    as_category,
    as_parts,
    as_vector,
)
from distilrec.features.lists import parse_list

_QUANTILES = 33
_TEXT_BUCKETS = 256


def feature_rows(
    table: pl.DataFrame,
    key: str | None,
    features: Sequence[Feature],
    title: str | None,
    source: str,
    numbers: pl.Series | None = None,
) -> tuple[dict[str, dict[str, object]], list[str]]:
    """Return the declared columns of a feature table as one row per id, and what a report should
    say about the rows left out.

    numbers: of the rows in their file, from 0, for messages. Raises ColumnMissingError,
    ColumnTypeError for text in a numeric column, InvalidValueError for NaN and infinities.
    """
    if key is None:
        raise ConfigError(
            f"{source}: which column holds the id?", fix="set user_key or item_key in the schema"
        )
    need_column(table.columns, key, source)
    columns: dict[str, list[object]] = {}
    for feature in features:
        need_column(table.columns, feature.name, source)
        columns[feature.name] = _values(table[feature.name], feature, source, numbers)
    if title is not None:
        need_column(table.columns, title, source)
        columns[_TITLE] = [_as_text(value) for value in table[title].to_list()]
    rows: dict[str, dict[str, object]] = {}
    ids = as_ids(table[key], source)
    dropped = 0
    for row, entity in enumerate(ids.values.to_list()):
        if entity is None or entity in rows:
            dropped += 1
            continue
        rows[entity] = {name: values[row] for name, values in columns.items()}
    notes = []
    if ids.from_floats:
        notes.append(
            f"{source}: {ids.from_floats:,} ids are whole numbers written as floats: 7.0 is read "
            "as 7"
        )
    for problem in PROBLEMS:
        if count := int((ids.problems == problem).sum()):
            dropped -= count
            notes.append(f"{source}: {count:,} rows with an id that {problem} were left out")
    if dropped:
        notes.append(
            f"{source}: {dropped:,} rows without an id or with the id of an earlier row were left "
            "out"
        )
    return rows, notes


_TITLE = "\0title"  # no column of a text file can have this name


def title_of(row: dict[str, object] | None, fallback: str) -> str:
    """Return the title of one item row, or the id where there is none."""
    return str((row or {}).get(_TITLE) or fallback)


def _as_text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _values(
    column: pl.Series, feature: Feature, source: str, rows: pl.Series | None
) -> list[object]:
    match feature.kind:
        case "numeric":
            numbers = as_numbers(column, source, rows)
            wrong = (~numbers.is_finite()).fill_null(value=False).arg_true()
            if len(wrong):
                row = row_number(rows, int(wrong[0]))
                raise InvalidValueError(
                    f"{source}, row {row:,}: feature {feature.name!r} is {numbers[int(wrong[0])]}",
                    fix="leave the value empty where it is not known",
                    file=source,
                    column=feature.name,
                    row=row,
                )
            return numbers.to_list()
        case "multi" | "vector" if column.dtype == pl.String:
            return _split(column, feature, source, rows)
        case "multi" | "vector" if isinstance(_inner(column.dtype), pl.Struct):
            raise ColumnTypeError(
                f"{source}: column {feature.name!r} holds objects, which are not values of a "
                "feature",
                fix="give a list of texts or numbers",
                file=source,
                column=feature.name,
            )
        case "text":
            return [_as_text(value) for value in column.to_list()]
        case "categorical":
            return [_as_text(v) if isinstance(v, list) else v for v in column.to_list()]
        case _:
            return column.to_list()


def _inner(dtype: pl.DataType) -> pl.DataType:
    return dtype.inner if isinstance(dtype, pl.List | pl.Array) else dtype  # type: ignore[return-value]


def _split(
    column: pl.Series, feature: Feature, source: str, rows: pl.Series | None
) -> list[object]:
    """Return the values in each cell of text. Raises ColumnTypeError for what looks like a list and
    cannot be read as one.
    """
    found: list[object] = []
    for position, text in enumerate(column.to_list()):
        if text is None:
            found.append(None)
            continue
        try:
            listed = parse_list(text)
            parts: list[str] = text.split(feature.separator) if listed is None else listed
            if feature.kind == "vector":
                as_vector(feature.name, parts)
        except (ValueError, ColumnTypeError, InvalidValueError) as problem:
            row = row_number(rows, position)
            message = (
                problem.message
                if isinstance(problem, ColumnTypeError | InvalidValueError)
                else str(problem)
            )
            raise ColumnTypeError(
                f"{source}, row {row:,}: column {feature.name!r} holds {text!r}: {message}",
                fix='write lists as JSON, such as ["red", "blue"], or with the separator of the '
                "feature between the values",
                file=source,
                column=feature.name,
                row=row,
            ) from None
        found.append(parts)
    return found


def fit_encoder(rows: Sequence[dict[str, object]], features: Sequence[Feature]) -> FeatureEncoder:
    """Return the encodings of the declared features, learned from these rows (those of training
    users or items).
    """
    return FeatureEncoder(
        tuple(
            fit_encoding(feature, [row.get(feature.name) for row in rows]) for feature in features
        )
    )


def fit_encoding(feature: Feature, values: Sequence[object]) -> Encoding:
    """Return the encoding of a feature, learned from these values."""
    match feature.kind:
        case "categorical":
            found = {as_category(value) for value in values if value is not None} - {""}
            return CategoricalEncoding(feature.name, tuple(sorted(found)))
        case "multi":
            parts = {part for value in values for part in as_parts(value)}
            return MultiEncoding(feature.name, tuple(sorted(parts)), feature.separator)
        case "numeric":
            numbers = [float(value) for value in values if isinstance(value, int | float)]
            levels = np.quantile(numbers or [0.0], np.linspace(0, 1, _QUANTILES))
            return NumericEncoding(
                feature.name, tuple(float(level) for level in _increasing(levels))
            )
        case "text":
            return TextEncoding(feature.name, _TEXT_BUCKETS)
        case "vector":
            vectors = (as_vector(feature.name, value) for value in values if value is not None)
            return VectorEncoding(feature.name, len(next(vectors, [])), feature.separator)


def _increasing(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nudge equal quantiles apart: interpolation wants increasing points."""
    for position in range(1, len(levels)):
        if levels[position] <= levels[position - 1]:
            levels[position] = np.nextafter(levels[position - 1], np.inf)
    return levels
