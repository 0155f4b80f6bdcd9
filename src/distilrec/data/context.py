"""The context of events: columns of the log that a request says too, such as the device.

In the parts of a clean log they are called `context_0`, `context_1` and so on, in the order of the
schema: text, or float64 of a numeric feature, null where nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
import polars as pl

from distilrec.data.columns import as_numbers, row_number
from distilrec.data.features import fit_encoding
from distilrec.data.schema import Feature, Schema
from distilrec.errors import ColumnTypeError, InvalidValueError
from distilrec.features.encoding import (
    CategoricalEncoding,
    FeatureEncoder,
    FeatureMatrix,
    NumericEncoding,
    as_category,
    quantile_levels,
)


def context_columns(schema: Schema) -> dict[str, type[pl.DataType]]:
    """Return the columns of the context in the parts of a clean log, with their types."""
    return {
        f"context_{number}": pl.Float64 if feature.kind == "numeric" else pl.String
        for number, feature in enumerate(schema.context)
    }


def context_values(
    table: pl.DataFrame, schema: Schema, source: str, rows: pl.Series
) -> Iterator[pl.Series]:
    """Yield these columns for some rows of a log.

    rows: their numbers in the log, from 0. Raises ColumnTypeError for text in a numeric column and
    for lists, InvalidValueError for infinite numbers; both name the row.
    """
    for name, feature in zip(context_columns(schema), schema.context, strict=True):
        column = table[feature.name]
        values = _numbers if feature.kind == "numeric" else _categories
        yield values(column, source, rows).alias(name)


def _numbers(column: pl.Series, source: str, rows: pl.Series) -> pl.Series:
    numbers = as_numbers(column, source, rows).fill_nan(None)
    wrong = numbers.is_infinite().fill_null(value=False).arg_true()
    if len(wrong):
        row = row_number(rows, int(wrong[0]))
        raise InvalidValueError(
            f"{source}, row {row:,}: context feature {column.name!r} is infinite",
            fix="leave the value empty where it is not known",
            file=source,
            column=column.name,
            row=row,
        )
    return numbers


def _categories(column: pl.Series, source: str, rows: pl.Series) -> pl.Series:
    if column.dtype.is_nested():
        raise ColumnTypeError(
            f"{source}: column {column.name!r} holds lists or objects, and a context feature has "
            "one value",
            fix="give text, numbers or flags",
            file=source,
            column=column.name,
        )
    different = column.drop_nulls().unique()
    texts = [as_category(value) or None for value in different.to_list()]
    return column.replace_strict(
        different, pl.Series(texts, dtype=pl.String), default=None, return_dtype=pl.String
    )


def training_context(training: pl.DataFrame, schema: Schema) -> tuple[pl.Series, ...]:
    """Return what the encoder is fitted on, of the training rows of a part: the different values of
    a categorical feature, all numbers of a numeric one.
    """
    return tuple(
        training[name].drop_nulls() if feature.kind == "numeric" else training[name].unique()
        for name, feature in zip(context_columns(schema), schema.context, strict=True)
    )


def fit_context(
    features: Sequence[Feature], parts: Sequence[tuple[pl.Series, ...]]
) -> FeatureEncoder:
    """Return the encoder of the context features. parts: of each part, what `training_context`
    gave.
    """
    values = (pl.concat(column).to_list() for column in zip(*parts, strict=True))
    return FeatureEncoder(tuple(map(fit_encoding, features, values)))


def encode_context(log: pl.DataFrame, encoder: FeatureEncoder) -> FeatureMatrix:
    """Return the encoded context of the rows of a part: one column for each feature."""
    shape = (log.height, len(encoder.encodings))
    columns, weights = np.zeros(shape, np.int32), np.ones(shape, np.float32)
    starts = accumulate((encoding.width for encoding in encoder.encodings), initial=0)
    for number, (start, encoding) in enumerate(zip(starts, encoder.encodings, strict=False)):
        values = log[f"context_{number}"]
        if isinstance(encoding, NumericEncoding):
            missing = values.is_null().to_numpy()
            levels = quantile_levels(encoding, values.fill_null(0.0).to_numpy())
            columns[:, number] = start + missing
            weights[:, number] = np.where(missing, 1.0, levels)
        elif isinstance(encoding, CategoricalEncoding):
            slots = {value: slot for slot, value in enumerate(encoding.values, start=1)}
            columns[:, number] = (
                start
                + values.replace_strict(
                    pl.Series(list(slots), dtype=pl.String),
                    pl.Series(list(slots.values()), dtype=pl.Int32),
                    default=0,
                    return_dtype=pl.Int32,
                ).to_numpy()
            )
    return FeatureMatrix(columns, weights, encoder.width)
