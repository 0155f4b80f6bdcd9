"""Which column of a table is what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import UNSET, UnsetType

from distilrec.errors import ColumnMissingError, ConfigError
from distilrec.settings import Settings
from distilrec.zones import check_zone

FeatureKind = Literal["categorical", "multi", "numeric", "text", "vector"]
MOST_CONTEXT_FEATURES = 8
UNITS = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
"""Units of numbers that count time from 1970, and how many of them a second has."""


class Feature(Settings, frozen=True):
    """One column of features or attributes."""

    name: str
    """Name of the column."""
    kind: FeatureKind
    """How its values are read; a vector is a list of numbers, as many in every row, such as the
    embedding of a text.
    """
    separator: str = "|"
    """What separates the values in the text of a multi or vector column."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.separator:
            raise ConfigError(
                f"the separator of {self.name!r} is empty",
                fix="leave it out, or give a character",
                parameter="separator",
            )


class Schema(Settings, frozen=True):
    """The columns of the log and of the optional user and item tables."""

    user_id: str = "user_id"
    """Column of the log with the user."""
    item_id: str = "item_id"
    """Column of the log with the item."""
    timestamp: str | None = None
    """Column with the time; without it the order of the rows is the order in time."""
    timestamp_format: str | None = None
    """seconds, milliseconds, microseconds or nanoseconds since 1970, yyyymmdd, or a strptime
    pattern such as %d/%m/%Y; found from all rows by default.
    """
    timezone: str | None = None
    """Zone of times that name none, such as Europe/Berlin; UTC by default."""
    event_type: str | None = None
    """Column with the type of the event, such as view, cart or purchase."""
    weight: str | None = None
    """Column with a rating or quantity, for `cleaning` and the feature `sales_volume`."""
    context_features: tuple[Feature, ...] | UnsetType = UNSET
    """Up to 8 categorical or numeric columns of the log that a request says too, such as the device
    or the page; none by default.
    """
    user_key: str | None = None
    """Id column of the user table."""
    item_key: str | None = None
    """Id column of the item table."""
    title: str | None = None
    """Column of the item table that people read."""
    user_features: tuple[Feature, ...] = ()
    """Columns of the user table that models learn from."""
    item_features: tuple[Feature, ...] = ()
    """Columns of the item table that models learn from, and that answers can be filtered by."""
    item_attributes: tuple[Feature, ...] = ()
    """More columns of the item table, for filters only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        form = self.timestamp_format
        if form is not None and form not in UNITS and form != "yyyymmdd" and "%" not in form:
            raise ConfigError(
                f"timestamp_format is {form!r}",
                fix=f"use {', '.join(UNITS)}, yyyymmdd, or a strptime pattern such as "
                '"%d/%m/%Y %H:%M"',
                parameter="timestamp_format",
            )
        if self.timezone is not None:
            check_zone(self.timezone)
        for declared, features in (
            ("user_features", self.user_features),
            ("item_features (with item_attributes)", self.item_columns),
            ("context_features", self.context),
        ):
            names = [feature.name for feature in features]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ConfigError(
                    f"{declared} declares {twice[0]!r} twice",
                    fix="keep one of them",
                    parameter=twice[0],
                )

        self._check_context()

    def _check_context(self) -> None:
        if len(self.context) > MOST_CONTEXT_FEATURES:
            raise ConfigError(
                f"{len(self.context)} context features are declared",
                fix=f"declare at most {MOST_CONTEXT_FEATURES}",
                parameter="context_features",
            )
        for feature in self.context:
            if feature.kind not in ("categorical", "numeric"):
                raise ConfigError(
                    f"context feature {feature.name!r} is of the kind {feature.kind!r}",
                    fix='use kind = "categorical" or "numeric"',
                    parameter=feature.name,
                )

    @property
    def context(self) -> tuple[Feature, ...]:
        """The context features, none where they are left out."""
        return () if self.context_features is UNSET else self.context_features

    @property
    def item_columns(self) -> tuple[Feature, ...]:
        """The features and attributes of the item table."""
        return (*self.item_features, *self.item_attributes)

    def log_settings(self, column: str) -> str:
        """Return which settings name a column of the log, such as "user_id"; "" where none does."""
        names = ("user_id", "item_id", "timestamp", "event_type", "weight")
        settings = [name for name in names if getattr(self, name) == column]
        if any(feature.name == column for feature in self.context):
            settings.append("context_features")
        return " and ".join(settings)


def need_column(
    columns: Sequence[str], column: str, source: str, schema: Schema | None = None
) -> None:
    """Raise ColumnMissingError that lists the columns there are. schema: where it is the log's."""
    if column not in columns:
        settings = "" if schema is None else schema.log_settings(column)
        raise ColumnMissingError(
            f"{source} has no column {column!r}; it has: {', '.join(columns)}",
            fix=f"name the right column: {settings} in [data.schema]"
            if settings
            else "correct the name of the column in the configuration",
            file=source,
            column=column,
        )
