"""Fitting of feature encoders, on training users and items only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from distilrec.data.cleaning import as_id, as_numbers
from distilrec.data.schema import Feature, need_column
from distilrec.encoding import (
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
from distilrec.errors import ConfigError, InvalidValueError

_QUANTILES = 33
_TEXT_BUCKETS = 256


def feature_rows(
    table: pl.DataFrame, key: str | None, features: Sequence[Feature], title: str | None, source: str
) -> tuple[dict[str, dict[str, object]], int]:
    """The declared columns of a feature table as one row per id, and the number of rows dropped (no id, or twice).

    Raises ColumnMissingError, ColumnTypeError for text in a numeric column, InvalidValueError for NaN and infinities.
    """
    if key is None:
        raise ConfigError(f"{source}: which column holds the id?", fix="set user_key or item_key in the schema")
    need_column(table.columns, key, source)
    columns: dict[str, list[object]] = {}
    for feature in features:
        need_column(table.columns, feature.name, source)
        columns[feature.name] = _values(table[feature.name], feature, source)
    if title is not None:
        need_column(table.columns, title, source)
        columns[_TITLE] = [_as_text(value) for value in table[title].to_list()]
    rows: dict[str, dict[str, object]] = {}
    dropped = 0
    for row, entity in enumerate(as_id(table[key], source).to_list()):
        if not entity or entity in rows:
            dropped += 1
            continue
        rows[entity] = {name: values[row] for name, values in columns.items()}
    return rows, dropped


_TITLE = "\0title"  # no column of a text file can have this name


def title_of(row: dict[str, object] | None, fallback: str) -> str:
    """The title of one item row, or the id where there is none."""
    return str((row or {}).get(_TITLE) or fallback)


def _as_text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _values(column: pl.Series, feature: Feature, source: str) -> list[object]:
    match feature.kind:
        case "numeric":
            numbers = as_numbers(column, source)
            wrong = (~numbers.is_finite()).fill_null(value=False).arg_true()
            if len(wrong):
                row = int(wrong[0])
                raise InvalidValueError(
                    f"{source}, row {row + 1}: feature {feature.name!r} is {numbers[row]}",
                    fix="leave the value empty where it is not known",
                    file=source,
                    column=feature.name,
                    row=row + 1,
                )
            return numbers.to_list()
        case "multi" | "vector" if column.dtype == pl.String:
            return [None if text is None else text.split(feature.separator) for text in column.to_list()]
        case "text":
            return [_as_text(value) for value in column.to_list()]
        case "categorical":
            return [_as_text(v) if isinstance(v, list) else v for v in column.to_list()]
        case _:
            return column.to_list()


def fit_encoder(rows: Sequence[dict[str, object]], features: Sequence[Feature]) -> FeatureEncoder:
    """The encodings of the declared features, learned from these rows (those of training users or items)."""
    return FeatureEncoder(tuple(_fit(feature, [row.get(feature.name) for row in rows]) for feature in features))


def _fit(feature: Feature, values: Sequence[object]) -> Encoding:
    match feature.kind:
        case "categorical":
            found = {as_category(value) for value in values if value is not None} - {""}
            return CategoricalEncoding(feature.name, tuple(sorted(found)))
        case "multi":
            parts = {part for value in values for part in as_parts(value)}
            return MultiEncoding(feature.name, tuple(sorted(parts)), feature.separator)
        case "numeric":
            known = [float(value) for value in values if isinstance(value, int | float)]
            levels = np.quantile(known or [0.0], np.linspace(0, 1, _QUANTILES))
            return NumericEncoding(feature.name, tuple(float(level) for level in _increasing(levels)))
        case "text":
            return TextEncoding(feature.name, _TEXT_BUCKETS)
        case "vector":
            known_vectors = (as_vector(feature.name, value) for value in values if value is not None)
            return VectorEncoding(feature.name, len(next(known_vectors, [])), feature.separator)


def _increasing(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equal quantiles nudged apart: interpolation wants increasing points."""
    for place in range(1, len(levels)):
        if levels[place] <= levels[place - 1]:
            levels[place] = np.nextafter(levels[place - 1], np.inf)
    return levels
